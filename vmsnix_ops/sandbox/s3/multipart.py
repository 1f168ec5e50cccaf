"""Multipart uploads: create, parts, complete, abort.

Completing copies nothing: the object is the list of its parts. Sources: CreateMultipartUpload, UploadPart,
UploadPartCopy, CompleteMultipartUpload, AbortMultipartUpload in the Amazon S3 API Reference; "Checking object
integrity" in the Amazon S3 User Guide.
"""

from __future__ import annotations

import hashlib
import secrets
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from ..objects import Part, StoredObject, Upload
from ..wire import checksums
from .common import (
    CHECKSUM_MEMBERS,
    bucket_of,
    check_acl,
    check_key,
    check_metadata,
    check_written,
    headers_of,
    parse_tags,
    quoted,
    receive,
    remove_parts,
    replace_object,
    shown_checksums,
)
from .objects import WRITE

if TYPE_CHECKING:
    from ..core import Context, Params
    from ..objects import Bucket

PART_MINIMUM = 5 * 2**20  # bytes, of every part but the last
PART_NUMBERS = range(1, 10_001)
COMPOSITE, FULL_OBJECT = "COMPOSITE", "FULL_OBJECT"
# Which checksum types an algorithm can have in a multipart upload, its default first.
CHECKSUM_TYPES = {
    "crc32": (COMPOSITE, FULL_OBJECT),
    "crc32c": (COMPOSITE, FULL_OBJECT),
    "crc64nvme": (FULL_OBJECT,),
    "sha1": (COMPOSITE,),
    "sha256": (COMPOSITE,),
}


def upload_of(bucket: Bucket, params: Params) -> Upload:
    """Return the upload that a call is about, or raise ``NoSuchUpload``."""
    upload = bucket.uploads.get(params["UploadId"])
    if upload is None or upload.key != params["Key"]:
        raise AwsError(
            "NoSuchUpload",
            "The specified upload does not exist. The upload ID may be invalid, or the upload may have "
            "been aborted "
            "or completed.",
            status=404,
            UploadId=params["UploadId"],
        )
    return upload


@operation("s3", "CreateMultipartUpload", honours=[*WRITE, "ChecksumAlgorithm", "ChecksumType"])
def create_multipart_upload(context: Context, params: Params) -> dict[str, Any]:
    """Begin an upload. It stays, and costs, until it is completed or aborted."""
    check_key(params["Key"])
    check_acl(params)
    bucket = bucket_of(context, params)
    algorithm, kind = _checksum_choice(params)
    upload = Upload(
        upload_id=secrets.token_urlsafe(64),
        key=params["Key"],
        initiated=context.clock.now(),
        principal=context.principal,
        algorithm=algorithm,
        checksum_type=kind,
        headers=headers_of(params, bucket),
        metadata=check_metadata(params.get("Metadata", {})),
        tags=parse_tags(params.get("Tagging", "")),
    )
    bucket.uploads[upload.upload_id] = upload
    answer = {
        "Bucket": bucket.name,
        "Key": upload.key,
        "UploadId": upload.upload_id,
        "ServerSideEncryption": upload.headers["ServerSideEncryption"],
    }
    if "SSEKMSKeyId" in upload.headers:
        answer["SSEKMSKeyId"] = upload.headers["SSEKMSKeyId"]
    if algorithm is not None:
        answer |= {"ChecksumAlgorithm": algorithm.upper(), "ChecksumType": kind}
    return answer


def _checksum_choice(params: Params) -> tuple[str | None, str]:
    name, kind = params.get("ChecksumAlgorithm"), params.get("ChecksumType")
    if name is None:
        if kind is not None:
            raise AwsError(
                "InvalidRequest",
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            )
        return None, FULL_OBJECT
    types = CHECKSUM_TYPES.get(name.lower())
    if types is None:
        raise AwsError(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "
            "[CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
        )
    if kind is not None and kind not in types:
        raise AwsError(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {name.lower()} checksum algorithm.",
        )
    return name.lower(), kind or types[0]


def check_part_number(number: int) -> None:
    """Refuse part numbers that S3 refuses."""
    if number not in PART_NUMBERS:
        raise AwsError(
            "InvalidArgument",
            "Part number must be an integer between 1 and 10000, inclusive",
            ArgumentName="partNumber",
            ArgumentValue=number,
        )


@operation(
    "s3",
    "UploadPart",
    honours=[
        "Body",
        "Bucket",
        "Key",
        "UploadId",
        "PartNumber",
        "ContentLength",
        "ContentMD5",
        "ChecksumAlgorithm",
        "ExpectedBucketOwner",
        *CHECKSUM_MEMBERS.values(),
    ],
    locks=False,
)
def upload_part(context: Context, params: Params) -> dict[str, Any]:
    """Keep one part; a part of the same number is replaced."""
    check_part_number(params["PartNumber"])
    with context.lock:
        upload = upload_of(bucket_of(context, params), params)
    _check_algorithm(context, upload, params)
    part = receive(context, params["Body"], params, params["PartNumber"], upload.algorithm)
    store_part(context, params, part)
    return {
        "ETag": quoted(part.md5),
        "ServerSideEncryption": upload.headers["ServerSideEncryption"],
        **shown_checksums(part.checksums),
    }


def _check_algorithm(context: Context, upload: Upload, params: Params) -> None:
    """Refuse a part whose checksum is of another algorithm than the upload's."""
    sent = [name for name, member in CHECKSUM_MEMBERS.items() if member in params]
    trailer = context.headers.get("x-amz-trailer", "").lower().removeprefix("x-amz-checksum-")
    actual = sent[0] if sent else trailer or None
    if upload.algorithm is None or actual == upload.algorithm:
        return
    if actual is None and upload.checksum_type == FULL_OBJECT:
        return
    raise AwsError(
        "InvalidRequest",
        f"Checksum Type mismatch occurred, expected checksum Type: {upload.algorithm}, "
        f"actual checksum Type: {actual or 'null'}",
    )


def store_part(context: Context, params: Params, part: Part) -> None:
    """Add a part to its upload, unless the upload ended meanwhile."""
    with context.lock:
        try:
            upload = upload_of(bucket_of(context, params), params)
        except AwsError:
            part.path(context.folder).unlink()
            raise
        before = upload.parts.get(part.number)
        upload.parts[part.number] = part
        if before is not None:
            remove_parts(context, [before])


@operation(
    "s3",
    "CompleteMultipartUpload",
    honours=[
        "Bucket",
        "Key",
        "UploadId",
        "MultipartUpload",
        "ChecksumType",
        "MpuObjectSize",
        "IfMatch",
        "IfNoneMatch",
        "ExpectedBucketOwner",
        *CHECKSUM_MEMBERS.values(),
    ],
)
def complete_multipart_upload(context: Context, params: Params) -> dict[str, Any]:
    """Make an object of parts.

    Repeating it, after a lost answer, succeeds while the object is still that one.
    """
    bucket = bucket_of(context, params)
    done = bucket.completed.get(params["UploadId"])
    if done is not None and done[0] == params["Key"] and done[0] in bucket.objects:
        stored = bucket.objects[done[0]]
        if stored.etag == done[1]:
            return _completed(context, bucket, stored)
    upload = upload_of(bucket, params)
    chosen = _choose_parts(upload, params)
    check_written(bucket, upload.key, params)
    stored = _assemble(context, upload, chosen)
    _check_whole(upload, stored, params)
    del bucket.uploads[upload.upload_id]
    replace_object(context, bucket, stored)
    bucket.completed[upload.upload_id] = (stored.key, stored.etag)
    kept = {part.number for part in chosen}
    remove_parts(context, [part for number, part in upload.parts.items() if number not in kept])
    return _completed(context, bucket, stored)


def _completed(context: Context, bucket: Bucket, stored: StoredObject) -> dict[str, Any]:
    return {
        "Location": f"http://{context.headers.get('host', '')}/{bucket.name}/{stored.key}",
        "Bucket": bucket.name,
        "Key": stored.key,
        "ETag": quoted(stored.etag),
        "ServerSideEncryption": stored.headers["ServerSideEncryption"],
        "ChecksumType": stored.checksum_type if stored.checksums else None,
        **shown_checksums(stored.checksums),
    }


def _choose_parts(upload: Upload, params: Params) -> list[Part]:
    """Return the parts that the request lists, after all checks."""
    listed = (params.get("MultipartUpload") or {}).get("Parts") or []
    if not listed:
        raise AwsError(
            "MalformedXML",
            "The XML you provided was not well-formed or did not validate against our published schema",
        )
    numbers = [entry.get("PartNumber", 0) for entry in listed]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise AwsError(
            "InvalidPartOrder",
            "The list of parts was not in ascending order. Parts must be ordered by part number.",
            UploadId=upload.upload_id,
        )
    chosen = [_choose_part(upload, entry) for entry in listed]
    for part in chosen[:-1]:
        if part.size < PART_MINIMUM:
            raise AwsError(
                "EntityTooSmall",
                "Your proposed upload is smaller than the minimum allowed size",
                ProposedSize=part.size,
                MinSizeAllowed=PART_MINIMUM,
                PartNumber=part.number,
                ETag=part.md5,
            )
    return chosen


def _choose_part(upload: Upload, entry: dict[str, Any]) -> Part:
    number = entry.get("PartNumber", 0)
    part = upload.parts.get(number)
    etag = entry.get("ETag", "").strip('"')
    sent = {name: entry[member] for name, member in CHECKSUM_MEMBERS.items() if member in entry}
    if upload.algorithm is not None and upload.checksum_type == COMPOSITE and upload.algorithm not in sent:
        raise AwsError(
            "InvalidRequest",
            f"The upload was created using a {upload.algorithm} checksum. The complete request must include "
            "the "
            f"checksum for each part. It was missing for part {number} in the request.",
        )
    if part is None or part.md5 != etag or any(part.checksums.get(n) != value for n, value in sent.items()):
        raise AwsError(
            "InvalidPart",
            "One or more of the specified parts could not be found.  The part may not have been uploaded, "
            "or the "
            "specified entity tag may not match the part's entity tag.",
            UploadId=upload.upload_id,
            PartNumber=number,
            ETag=etag,
        )
    return part


def _assemble(context: Context, upload: Upload, chosen: list[Part]) -> StoredObject:
    joined = hashlib.md5(b"".join(bytes.fromhex(p.md5) for p in chosen), usedforsecurity=False).hexdigest()
    return StoredObject(
        key=upload.key,
        parts=tuple(chosen),
        etag=f"{joined}-{len(chosen)}",
        modified=context.clock.now(),
        headers=upload.headers,
        metadata=upload.metadata,
        checksums=_whole_checksum(upload, chosen),
        checksum_type=upload.checksum_type,
        multipart=True,
        tags=upload.tags,
    )


def _whole_checksum(upload: Upload, chosen: list[Part]) -> dict[str, str]:
    """Return the object's checksum: over the parts' checksums, or over all its bytes."""
    algorithm = upload.algorithm
    if algorithm is None:
        return {}
    width = checksums.size(algorithm)
    digests = [checksums.decode(part.checksums[algorithm], width) or b"" for part in chosen]
    if upload.checksum_type == COMPOSITE:
        whole = checksums.new(algorithm)
        whole.update(b"".join(digests))
        return {algorithm: f"{checksums.encode(whole.digest())}-{len(chosen)}"}
    joined = digests[0]
    for part, digest in zip(chosen[1:], digests[1:], strict=True):
        joined = checksums.combine_crc(algorithm, joined, digest, part.size)
    return {algorithm: checksums.encode(joined)}


def _check_whole(upload: Upload, stored: StoredObject, params: Params) -> None:
    """Compare what the request says about the whole object."""
    if params.get("ChecksumType") not in {None, upload.checksum_type}:
        raise AwsError(
            "InvalidRequest",
            f"The upload was created using the {upload.checksum_type} checksum mode. The complete request "
            "must use "
            "the same checksum mode.",
        )
    size = params.get("MpuObjectSize")
    if size is not None and size != stored.size:
        raise AwsError(
            "InvalidRequest",
            f"The provided 'x-amz-mp-object-size' header value {size} does not match what was computed: "
            f"{stored.size}",
        )
    for name, member in CHECKSUM_MEMBERS.items():
        if member in params and params[member] != stored.checksums.get(name):
            raise AwsError("BadDigest", f"The {name} you specified did not match the calculated checksum.")


@operation(
    "s3",
    "AbortMultipartUpload",
    honours=["Bucket", "Key", "UploadId", "ExpectedBucketOwner"],
)
def abort_multipart_upload(context: Context, params: Params) -> dict[str, Any]:
    """Drop an upload and its parts."""
    bucket = bucket_of(context, params)
    upload = upload_of(bucket, params)
    del bucket.uploads[upload.upload_id]
    remove_parts(context, list(upload.parts.values()))
    return {"__status__": 204}
