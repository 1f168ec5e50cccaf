"""Amazon S3: buckets, their settings, objects, multipart uploads."""

from . import attributes, buckets, copies, deletion, listing, multipart, objects, settings, tagging, uploads

__all__ = [
    "attributes",
    "buckets",
    "copies",
    "deletion",
    "listing",
    "multipart",
    "objects",
    "settings",
    "tagging",
    "uploads",
]
