"""Amazon S3: buckets, their settings, objects, multipart uploads."""

from vmsnix_ops.sandbox.s3 import buckets, multipart, objects

__all__ = ["buckets", "multipart", "objects"]
