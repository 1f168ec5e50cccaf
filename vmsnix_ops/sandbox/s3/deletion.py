"""Deleting objects, one by one or a thousand at once.

Sources: DeleteObject, DeleteObjects in the Amazon S3 API Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from .common import bucket_of, failed_condition, remove_parts

if TYPE_CHECKING:
    from ..core import Context, Params
    from ..objects import Bucket

MOST = 1000


def _delete(context: Context, bucket: Bucket, key: str, etag: str | None) -> None:
    stored = bucket.objects.get(key)
    if etag is not None and stored is not None and etag.strip('"') not in {"*", stored.etag}:
        raise failed_condition("If-Match")
    if stored is not None:
        del bucket.objects[key]
        remove_parts(context, stored.parts)


@operation("s3", "DeleteObject", honours=["Bucket", "Key", "IfMatch", "ExpectedBucketOwner"])
def delete_object(context: Context, params: Params) -> dict[str, Any]:
    """Delete an object; deleting what is not there succeeds too."""
    _delete(context, bucket_of(context, params), params["Key"], params.get("IfMatch"))
    return {"__status__": 204}


@operation(
    "s3",
    "DeleteObjects",
    honours=["Bucket", "Delete", "ChecksumAlgorithm", "ExpectedBucketOwner"],
)
def delete_objects(context: Context, params: Params) -> dict[str, Any]:
    """Delete many objects and tell the outcome of each."""
    bucket = bucket_of(context, params)
    if not any(name == "content-md5" or name.startswith("x-amz-checksum-") for name in context.headers):
        raise AwsError(
            "InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*"
        )
    listed, quiet = params["Delete"]["Objects"], params["Delete"].get("Quiet", False)
    if not 1 <= len(listed) <= MOST:
        raise AwsError(
            "MalformedXML",
            "The XML you provided was not well-formed or did not validate against our published schema",
        )
    deleted, errors = [], []
    for entry in listed:
        try:
            _delete(context, bucket, entry["Key"], entry.get("ETag"))
            deleted.append({"Key": entry["Key"]})
        except AwsError as error:
            errors.append({"Key": entry["Key"], "Code": error.code, "Message": error.message})
    return {"Deleted": [] if quiet else deleted, "Errors": errors}
