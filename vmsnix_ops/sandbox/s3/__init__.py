"""Amazon S3: buckets, their settings, objects, multipart uploads."""

from vmsnix_ops.sandbox.s3 import buckets, listing, multipart, objects

__all__ = ["buckets", "listing", "multipart", "objects"]
