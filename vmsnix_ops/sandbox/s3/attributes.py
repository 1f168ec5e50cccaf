"""What S3 knows about an object beside its bytes.

Source: GetObjectAttributes in the Amazon S3 API Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from .common import bucket_of, object_of, shown_checksums
from .listing import limit_of

if TYPE_CHECKING:
    from ..core import Context, Params
    from ..objects import StoredObject

KNOWN = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}


@operation(
    "s3",
    "GetObjectAttributes",
    honours=["Bucket", "Key", "ObjectAttributes", "MaxParts", "PartNumberMarker", "ExpectedBucketOwner"],
)
def get_object_attributes(context: Context, params: Params) -> dict[str, Any]:
    """Return the attributes that were asked for; composite checksums come without their "-N" here."""
    stored = object_of(bucket_of(context, params), params["Key"])
    wanted = set(params["ObjectAttributes"])
    if not wanted <= KNOWN:
        raise AwsError(
            "InvalidArgument", "Invalid attribute name specified.", ArgumentName="x-amz-object-attributes"
        )
    answer: dict[str, Any] = {"LastModified": stored.modified}
    if "ETag" in wanted:
        answer["ETag"] = stored.etag
    if "ObjectSize" in wanted:
        answer["ObjectSize"] = stored.size
    if "StorageClass" in wanted:
        answer["StorageClass"] = stored.headers.get("StorageClass", "STANDARD")
    if "Checksum" in wanted and stored.checksums:
        plain = {name: value.partition("-")[0] for name, value in stored.checksums.items()}
        answer["Checksum"] = {**shown_checksums(plain), "ChecksumType": stored.checksum_type}
    if "ObjectParts" in wanted and stored.multipart:
        answer["ObjectParts"] = _parts(stored, params)
    return answer


def _parts(stored: StoredObject, params: Params) -> dict[str, Any]:
    if not stored.checksums:  # the parts themselves are told of checksummed uploads only
        return {"TotalPartsCount": len(stored.parts)}
    marker, limit = params.get("PartNumberMarker", 0), limit_of(params, "MaxParts")
    waiting = [part for part in stored.parts if part.number > marker]
    shown = waiting[:limit]
    return {
        "TotalPartsCount": len(stored.parts),
        "PartNumberMarker": marker,
        "NextPartNumberMarker": shown[-1].number if shown else 0,
        "MaxParts": limit,
        "IsTruncated": len(waiting) > limit,
        "Parts": [
            {"PartNumber": part.number, "Size": part.size, **shown_checksums(part.checksums)}
            for part in shown
        ],
    }
