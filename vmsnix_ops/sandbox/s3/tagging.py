"""Tags of objects.

Sources: GetObjectTagging, PutObjectTagging, DeleteObjectTagging in the Amazon S3 API Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import operation
from .common import bucket_of, check_tags, object_of

if TYPE_CHECKING:
    from ..core import Context, Params

NAMES = ("Bucket", "Key", "ExpectedBucketOwner")


@operation("s3", "GetObjectTagging", honours=NAMES)
def get_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Return the tags of an object."""
    stored = object_of(bucket_of(context, params), params["Key"])
    return {"TagSet": [{"Key": key, "Value": value} for key, value in stored.tags.items()]}


@operation("s3", "PutObjectTagging", honours=[*NAMES, "Tagging", "ContentMD5", "ChecksumAlgorithm"])
def put_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Replace the tags of an object."""
    stored = object_of(bucket_of(context, params), params["Key"])
    stored.tags = check_tags(params["Tagging"]["TagSet"], limit=10)
    return {}


@operation("s3", "DeleteObjectTagging", honours=NAMES)
def delete_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Remove the tags of an object."""
    object_of(bucket_of(context, params), params["Key"]).tags = {}
    return {"__status__": 204}
