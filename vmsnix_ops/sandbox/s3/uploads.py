"""Looking at multipart uploads that are not finished.

Sources: ListParts, ListMultipartUploads in the Amazon S3 API Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import operation
from .common import bucket_of, owner_id, quoted, shown_checksums
from .listing import encoder, limit_of
from .multipart import upload_of

if TYPE_CHECKING:
    from ..core import Context, Params
    from ..objects import Bucket, Upload


@operation(
    "s3",
    "ListParts",
    honours=["Bucket", "Key", "UploadId", "MaxParts", "PartNumberMarker", "ExpectedBucketOwner"],
)
def list_parts(context: Context, params: Params) -> dict[str, Any]:
    """List the parts of an upload, by number."""
    bucket = bucket_of(context, params)
    upload = upload_of(bucket, params)
    limit, marker = limit_of(params, "MaxParts"), params.get("PartNumberMarker", 0)
    waiting = [part for number, part in sorted(upload.parts.items()) if number > marker]
    shown = waiting[:limit]
    answer: dict[str, Any] = {
        "Bucket": bucket.name,
        "Key": upload.key,
        "UploadId": upload.upload_id,
        "PartNumberMarker": marker,
        "NextPartNumberMarker": shown[-1].number if shown else 0,
        "MaxParts": limit,
        "IsTruncated": len(waiting) > limit,
        "Parts": [
            {
                "PartNumber": part.number,
                "LastModified": part.modified,
                "ETag": quoted(part.md5),
                "Size": part.size,
                **shown_checksums(part.checksums),
            }
            for part in shown
        ],
        **_who(bucket, upload),
    }
    if upload.algorithm is not None:
        answer |= {"ChecksumAlgorithm": upload.algorithm.upper(), "ChecksumType": upload.checksum_type}
    return answer


def _who(bucket: Bucket, upload: Upload) -> dict[str, Any]:
    return {
        "Initiator": {"ID": upload.principal, "DisplayName": upload.principal.rpartition("/")[2]},
        "Owner": {"ID": owner_id(bucket.account)},
        "StorageClass": upload.headers.get("StorageClass", "STANDARD"),
    }


@operation(
    "s3",
    "ListMultipartUploads",
    honours=[
        "Bucket",
        "Delimiter",
        "EncodingType",
        "KeyMarker",
        "MaxUploads",
        "Prefix",
        "UploadIdMarker",
        "ExpectedBucketOwner",
    ],
)
def list_multipart_uploads(context: Context, params: Params) -> dict[str, Any]:
    """List uploads that were neither completed nor aborted, by key and then by age."""
    bucket, encode = bucket_of(context, params), encoder(params)
    prefix, delimiter = params.get("Prefix", ""), params.get("Delimiter", "")
    key_marker, id_marker = params.get("KeyMarker", ""), params.get("UploadIdMarker", "")
    limit = limit_of(params, "MaxUploads")
    shown: list[Upload] = []
    prefixes: list[str] = []
    last, truncated = ("", ""), False
    for upload in _behind(bucket, prefix, key_marker, id_marker):
        cut = upload.key.find(delimiter, len(prefix)) if delimiter else -1
        common = upload.key[: cut + len(delimiter)] if cut >= 0 else None
        if common is not None and (common in prefixes or key_marker.startswith(common)):
            continue
        if len(shown) + len(prefixes) >= limit:
            truncated = True
            break
        if common is None:
            shown.append(upload)
            last = (upload.key, upload.upload_id)
        else:
            prefixes.append(common)
            last = (common, "")
    answer: dict[str, Any] = {
        "Bucket": bucket.name,
        "KeyMarker": encode(key_marker),
        "UploadIdMarker": id_marker,
        "MaxUploads": limit,
        "IsTruncated": truncated,
        "Uploads": [_entry(bucket, upload, encode) for upload in shown],
        "CommonPrefixes": [{"Prefix": encode(common)} for common in prefixes],
        "Prefix": encode(prefix),
    }
    if delimiter:
        answer["Delimiter"] = encode(delimiter)
    if "EncodingType" in params:
        answer["EncodingType"] = "url"
    if truncated:
        answer |= {"NextKeyMarker": encode(last[0]), "NextUploadIdMarker": last[1]}
    return answer


def _behind(bucket: Bucket, prefix: str, key_marker: str, id_marker: str) -> list[Upload]:
    """Return the uploads behind the markers, in order."""
    ordered = sorted(
        bucket.uploads.values(), key=lambda upload: (upload.key, upload.initiated, upload.upload_id)
    )
    matching = [upload for upload in ordered if upload.key.startswith(prefix)]
    if not key_marker:
        return matching
    later = [upload for upload in matching if upload.key > key_marker]
    same = [upload for upload in matching if upload.key == key_marker]
    ids = [upload.upload_id for upload in same]
    return (same[ids.index(id_marker) + 1 :] if id_marker in ids else []) + later


def _entry(bucket: Bucket, upload: Upload, encode: Any) -> dict[str, Any]:
    entry = {
        "Key": encode(upload.key),
        "UploadId": upload.upload_id,
        "Initiated": upload.initiated,
        **_who(bucket, upload),
    }
    if upload.algorithm is not None:
        entry |= {"ChecksumAlgorithm": upload.algorithm.upper(), "ChecksumType": upload.checksum_type}
    return entry
