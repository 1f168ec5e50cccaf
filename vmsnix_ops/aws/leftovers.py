"""What uploads leave in a bucket: objects that no import needs, and multipart uploads without an end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import patiently

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from vmsnix_ops.aws.session import Client


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that costs money in a bucket.

    Attributes
    ----------
    kind
        ``"object"`` or ``"multipart-upload"``.
    id
        Its key, or the upload's id.
    key
        Its key.
    since
        When it was written or begun.
    bytes
        What is billed.
    """

    kind: str
    id: str
    key: str
    since: datetime
    bytes: int


@needs("s3:ListBucket")
def region_of(s3: Client, bucket: str) -> str:
    """Return the region of a bucket."""
    return str(patiently(s3, "head_bucket", Bucket=bucket).get("BucketRegion") or "us-east-1")


@needs("s3:ListBucket")
def objects(s3: Client, bucket: str, prefix: str) -> Iterator[Leftover]:
    """Yield the objects below a prefix."""
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        answer = patiently(s3, "list_objects_v2", **request)
        for one in answer.get("Contents") or ():
            yield Leftover("object", one["Key"], one["Key"], one["LastModified"], one["Size"])
        if not answer.get("IsTruncated"):
            return
        request["ContinuationToken"] = answer["NextContinuationToken"]


@needs("s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts")
def uploads(s3: Client, bucket: str, prefix: str) -> Iterator[Leftover]:
    """Yield the unfinished multipart uploads below a prefix, with the bytes of their parts."""
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        answer = patiently(s3, "list_multipart_uploads", **request)
        for one in answer.get("Uploads") or ():
            held = _part_bytes(s3, bucket, one["Key"], one["UploadId"])
            yield Leftover("multipart-upload", one["UploadId"], one["Key"], one["Initiated"], held)
        if not answer.get("IsTruncated"):
            return
        request |= {
            "KeyMarker": answer["NextKeyMarker"],
            "UploadIdMarker": answer["NextUploadIdMarker"],
        }


def _part_bytes(s3: Client, bucket: str, key: str, upload_id: str) -> int:
    request: dict[str, Any] = {"Bucket": bucket, "Key": key, "UploadId": upload_id}
    total = 0
    while True:
        try:
            answer = patiently(s3, "list_parts", **request)
        except s3.exceptions.NoSuchUpload:  # it ended meanwhile
            return total
        total += sum(int(part["Size"]) for part in answer.get("Parts") or ())
        if not answer.get("IsTruncated"):
            return total
        request["PartNumberMarker"] = answer["NextPartNumberMarker"]
