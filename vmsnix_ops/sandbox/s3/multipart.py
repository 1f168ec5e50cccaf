"""Multipart uploads, and copies of objects and parts.

Sources: the reference pages of the operations in the Amazon S3 API Reference; "Checking object integrity"
in the Amazon S3 User Guide; AWS's answers of February 2026 in LocalStack's ``test_s3.snapshot.json``,
``test_s3_api...`` and ``test_s3_list_operations...``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from vmsnix_ops.sandbox.core import ApiError, words
from vmsnix_ops.sandbox.s3.common import (
    CHECKSUM_MEMBERS,
    DEFAULT_CHECKSUM,
    MAX_OBJECT_BYTES,
    REQUEST_HEADERS,
    abort_upload,
    canonical_user_id,
    check_acl,
    check_algorithm,
    check_key,
    check_readable,
    check_user_metadata,
    check_write_conditions,
    checksum_members,
    invalid_argument,
    invalid_request,
    new_part_file,
    parse_tags,
    quote_etag,
    receive_upload,
    remove_parts,
    s3_error,
    stored_headers,
)
from vmsnix_ops.sandbox.s3.objects import (
    WRITE_PARAMETERS,
    is_not_modified,
    key_encoder,
    list_members,
    list_page,
    page_limit,
    page_of_parts,
)
from vmsnix_ops.sandbox.s3.store import (
    NULL,
    check_owner,
    existing_bucket,
    expiration_member,
    find_object,
    object_operation,
    requested_bucket,
    store_object,
    version_member,
)
from vmsnix_ops.sandbox.storage import MultipartUpload, Part, StoredObject, object_reader
from vmsnix_ops.sandbox.wire.checksums import (
    Checksums,
    combine_crc,
    decode_base64,
    digest_size,
    encode_base64,
    new_checksum,
)
from vmsnix_ops.sandbox.wire.http import BUFFER, save_pieces
from vmsnix_ops.sandbox.wire.protocols import malformed_xml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.storage import Bucket


@object_operation("ListParts", "Bucket Key UploadId MaxParts PartNumberMarker")
def list_parts(context: Context, params: Params) -> dict[str, Any]:
    """List the parts of an upload, sorted by number."""
    bucket = requested_bucket(context, params)
    upload = _find_upload(bucket, params)
    shown, page = page_of_parts([part for _, part in sorted(upload.parts.items())], params)
    return {
        "Bucket": bucket.name,
        "Key": upload.key,
        "UploadId": upload.upload_id,
        **page,
        "Parts": [
            {
                "PartNumber": part.number,
                "LastModified": part.modified,
                "ETag": quote_etag(part.md5),
                "Size": part.size,
                **_part_checksums(upload, part),
            }
            for part in shown
        ],
        **_upload_owner(bucket, upload),
        **_algorithm_members(upload),
    }


def _algorithm_members(upload: MultipartUpload) -> dict[str, str]:
    if upload.algorithm is None:
        return {}
    return {"ChecksumAlgorithm": upload.algorithm.upper(), "ChecksumType": upload.checksum_type}


def _part_checksums(upload: MultipartUpload, part: Part) -> dict[str, str]:
    """Return the checksums of a part in an answer: none when the upload was created without an algorithm."""
    return checksum_members(part.checksums) if upload.algorithm is not None else {}


def _upload_owner(bucket: Bucket, upload: MultipartUpload) -> dict[str, Any]:
    return {
        "Initiator": {"ID": upload.principal, "DisplayName": upload.principal.rpartition("/")[2]},
        "Owner": {"ID": canonical_user_id(bucket.account)},
        "StorageClass": upload.headers.get("StorageClass", "STANDARD"),
    }


@object_operation(
    "ListMultipartUploads", "Bucket Delimiter EncodingType KeyMarker MaxUploads Prefix UploadIdMarker"
)
def list_multipart_uploads(context: Context, params: Params) -> dict[str, Any]:
    """List unfinished uploads, sorted by key and time."""
    bucket, encode = requested_bucket(context, params), key_encoder(params)
    prefix, delimiter = params.get("Prefix", ""), params.get("Delimiter", "")
    key_marker, id_marker = params.get("KeyMarker", ""), params.get("UploadIdMarker", "")
    limit = page_limit(params, "MaxUploads")
    uploads = _uploads_after(bucket, prefix, key_marker, id_marker)
    page = list_page(uploads, lambda upload: upload.key, prefix, delimiter, key_marker, limit)
    # AWS gives no marker after a common prefix, also when there is another page.
    last = None if isinstance(page.last, str) else page.last
    return list_members(params, page, encode) | {
        "Bucket": bucket.name,
        "KeyMarker": encode(key_marker),
        "UploadIdMarker": id_marker,
        "MaxUploads": limit,
        "NextKeyMarker": encode(last.key) if last is not None else "",
        "NextUploadIdMarker": last.upload_id if last is not None else "",
        "Uploads": [_upload_entry(bucket, upload, encode) for upload in page.items],
    }


def _uploads_after(bucket: Bucket, prefix: str, key_marker: str, id_marker: str) -> list[MultipartUpload]:
    """Return the uploads after the markers, sorted."""
    ordered = sorted(
        bucket.uploads.values(), key=lambda upload: (upload.key, upload.initiated, upload.upload_id)
    )
    matching = [upload for upload in ordered if upload.key.startswith(prefix)]
    if not key_marker:
        return matching
    later = [upload for upload in matching if upload.key > key_marker]
    same = [upload for upload in matching if upload.key == key_marker]
    ids = [upload.upload_id for upload in same]
    if not id_marker:
        return later
    if id_marker not in ids:
        raise invalid_argument("Invalid uploadId marker", "upload-id-marker", id_marker)
    return same[ids.index(id_marker) + 1 :] + later


def _upload_entry(bucket: Bucket, upload: MultipartUpload, encode: Any) -> dict[str, Any]:
    return {
        "Key": encode(upload.key),
        "UploadId": upload.upload_id,
        "Initiated": upload.initiated,
        **_upload_owner(bucket, upload),
        **_algorithm_members(upload),
    }


# Create, upload, complete, abort

MIN_PART_BYTES = 5 * 2**20  # of every part but the last
PART_NUMBERS = range(1, 10_001)
COMPOSITE, FULL_OBJECT = "COMPOSITE", "FULL_OBJECT"
# The checksum types of an algorithm in a multipart upload, its default first.
CHECKSUM_TYPES = {
    "crc32": (COMPOSITE, FULL_OBJECT),
    "crc32c": (COMPOSITE, FULL_OBJECT),
    "crc64nvme": (FULL_OBJECT,),
    "sha1": (COMPOSITE,),
    "sha256": (COMPOSITE,),
}


def _find_upload(bucket: Bucket, params: Params) -> MultipartUpload:
    """Return the upload of a call, or raise ``NoSuchUpload``."""
    upload = bucket.uploads.get(params["UploadId"])
    if upload is None or upload.key != params["Key"]:
        raise s3_error("NoSuchUpload", UploadId=params["UploadId"])
    return upload


@object_operation("CreateMultipartUpload", *WRITE_PARAMETERS, "ChecksumAlgorithm ChecksumType")
def create_multipart_upload(context: Context, params: Params) -> dict[str, Any]:
    """Start an upload. It exists until it is completed or aborted."""
    check_key(params["Key"])
    check_acl(params)
    bucket = requested_bucket(context, params)
    algorithm, kind = _chosen_checksum(params)
    upload = MultipartUpload(
        upload_id=secrets.token_urlsafe(64),
        key=params["Key"],
        initiated=context.clock.now(),
        principal=context.principal,
        algorithm=algorithm,
        checksum_type=kind,
        headers=stored_headers(params, bucket),
        metadata=check_user_metadata(params.get("Metadata", {})),
        tags=parse_tags(params.get("Tagging", "")),
    )
    bucket.uploads[upload.upload_id] = upload
    encryption = {k: v for k, v in upload.headers.items() if k in {"ServerSideEncryption", "SSEKMSKeyId"}}
    named = {"Bucket": bucket.name, "Key": upload.key, "UploadId": upload.upload_id}
    return named | encryption | _algorithm_members(upload)


def _chosen_checksum(params: Params) -> tuple[str | None, str]:
    name, kind = params.get("ChecksumAlgorithm"), params.get("ChecksumType")
    if name is None:
        if kind is not None:
            raise invalid_request(
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header."
            )
        return None, FULL_OBJECT
    check_algorithm(name, CHECKSUM_TYPES)
    types = CHECKSUM_TYPES[name.lower()]
    if kind is not None and kind not in types:
        raise invalid_request(
            f"The {kind} checksum type cannot be used with the {name.lower()} checksum algorithm."
        )
    return name.lower(), kind or types[0]


def _check_part_number(number: int) -> None:
    if number not in PART_NUMBERS:
        raise invalid_argument(
            "Part number must be an integer between 1 and 10000, inclusive", "partNumber", number
        )


@object_operation(
    "UploadPart",
    *CHECKSUM_MEMBERS.values(),
    "Body Bucket Key UploadId PartNumber ContentLength ContentMD5 ChecksumAlgorithm",
    locks=False,
)
def upload_part(context: Context, params: Params) -> dict[str, Any]:
    """Store a part. It replaces an earlier part with this number.

    An upload that was created without an algorithm has CRC64NVME checksums, which no answer about its parts
    shows.
    """
    _check_part_number(params["PartNumber"])
    with context.lock:
        upload = _find_upload(requested_bucket(context, params), params)
    _check_part_algorithm(context, upload, params)
    own = upload.algorithm or DEFAULT_CHECKSUM
    part = receive_upload(context, params["Body"], params, params["PartNumber"], own)
    sent = {k: v for k, v in part.checksums.items() if k == upload.algorithm or k in _sent(context, params)}
    _store_part(context, params, replace(part, checksums={own: part.checksums[own]}))
    return {
        "ETag": quote_etag(part.md5),
        "ServerSideEncryption": upload.headers["ServerSideEncryption"],
        **checksum_members(sent),
    }


def _sent(context: Context, params: Params) -> list[str]:
    """Return the algorithms of the checksums in a request, as headers or as a trailer."""
    trailer = context.headers.get("x-amz-trailer", "").lower().removeprefix("x-amz-checksum-")
    sent = [name for name, member in CHECKSUM_MEMBERS.items() if member in params]
    return [*sent, *([trailer] if trailer else [])]


def _check_part_algorithm(context: Context, upload: MultipartUpload, params: Params) -> None:
    """Check that the checksum of a part has the algorithm of the upload."""
    actual = next(iter(_sent(context, params)), None)
    if upload.algorithm is None or actual == upload.algorithm:
        return
    if actual is None and upload.checksum_type == FULL_OBJECT:
        return
    raise invalid_request(
        f"Checksum Type mismatch occurred, expected checksum Type: {upload.algorithm}, "
        f"actual checksum Type: {actual or 'null'}"
    )


def _store_part(context: Context, params: Params, part: Part) -> None:
    """Add a part to its upload, unless the upload was completed or aborted meanwhile."""
    with context.lock:
        try:
            upload = _find_upload(requested_bucket(context, params), params)
        except ApiError:
            part.path(context.folder).unlink()
            raise
        before = upload.parts.get(part.number)
        upload.parts[part.number] = part
        if before is not None:
            remove_parts(context, [before])


@object_operation(
    "CompleteMultipartUpload",
    *CHECKSUM_MEMBERS.values(),
    "Bucket Key UploadId MultipartUpload ChecksumType MpuObjectSize IfMatch IfNoneMatch",
)
def complete_multipart_upload(context: Context, params: Params) -> dict[str, Any]:
    """Create an object of the uploaded parts, whose files it keeps.

    A repeated call, such as after a lost answer, succeeds while the object is unchanged.
    """
    bucket = requested_bucket(context, params)
    known = bucket.objects.get(params["Key"])
    if known is not None and bucket.completed.get(params["UploadId"]) == (known.key, known.etag):
        return _complete_answer(context, bucket, known)
    upload = _find_upload(bucket, params)
    chosen = _choose_parts(upload, params)
    check_write_conditions(bucket, upload.key, params)
    stored = _assemble(context, upload, chosen)
    _check_object(upload, stored, params)
    del bucket.uploads[upload.upload_id]
    store_object(context, bucket, stored)
    bucket.completed[upload.upload_id] = (stored.key, stored.etag)
    kept = {part.number for part in chosen}
    remove_parts(context, [part for number, part in upload.parts.items() if number not in kept])
    return _complete_answer(context, bucket, stored)


def _complete_answer(context: Context, bucket: Bucket, stored: StoredObject) -> dict[str, Any]:
    return {
        "Location": f"http://{context.headers.get('host', '')}/{bucket.name}/{stored.key}",
        "Bucket": bucket.name,
        "Key": stored.key,
        "ETag": quote_etag(stored.etag),
        "ServerSideEncryption": stored.headers["ServerSideEncryption"],
        "ChecksumType": stored.checksum_type,
        **checksum_members(stored.checksums),
        **expiration_member(bucket, stored),
        **({"VersionId": stored.version_id} if stored.version_id != NULL else {}),
    }


def _choose_parts(upload: MultipartUpload, params: Params) -> list[Part]:
    """Return the listed parts, after all checks."""
    if "MultipartUpload" not in params:
        raise invalid_request("You must specify at least one part")
    listed = params["MultipartUpload"].get("Parts") or []
    if not listed:
        raise malformed_xml()
    numbers = [entry.get("PartNumber", 0) for entry in listed]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise s3_error("InvalidPartOrder", UploadId=upload.upload_id)
    chosen = [_choose_part(upload, entry) for entry in listed]
    for part in chosen[:-1]:
        if part.size < MIN_PART_BYTES:
            sizes = {"ProposedSize": part.size, "MinSizeAllowed": MIN_PART_BYTES}
            raise s3_error("EntityTooSmall", **sizes, PartNumber=part.number, ETag=part.md5)
    return chosen


def _choose_part(upload: MultipartUpload, entry: dict[str, Any]) -> Part:
    number = entry.get("PartNumber", 0)
    part = upload.parts.get(number)
    etag = entry.get("ETag", "").strip('"')
    sent = {name: entry[member] for name, member in CHECKSUM_MEMBERS.items() if member in entry}
    if upload.algorithm is not None and upload.checksum_type == COMPOSITE and upload.algorithm not in sent:
        raise invalid_request(
            f"The upload was created using a {upload.algorithm} checksum. The complete request must include "
            f"the checksum for each part. It was missing for part {number} in the request."
        )
    if part is None or part.md5 != etag or any(part.checksums.get(n) != value for n, value in sent.items()):
        raise s3_error("InvalidPart", UploadId=upload.upload_id, PartNumber=number, ETag=etag)
    return part


def _assemble(context: Context, upload: MultipartUpload, chosen: list[Part]) -> StoredObject:
    joined = hashlib.md5(b"".join(bytes.fromhex(p.md5) for p in chosen), usedforsecurity=False).hexdigest()
    return StoredObject(
        key=upload.key,
        parts=tuple(chosen),
        etag=f"{joined}-{len(chosen)}",
        modified=context.clock.now(),
        headers=upload.headers,
        metadata=upload.metadata,
        checksums=_object_checksum(upload, chosen),
        checksum_type=upload.checksum_type,
        multipart=True,
        tags=upload.tags,
    )


def _object_checksum(upload: MultipartUpload, chosen: list[Part]) -> dict[str, str]:
    """Return the checksum of an object: of its parts' checksums, or of all its bytes."""
    algorithm = upload.algorithm or DEFAULT_CHECKSUM
    width = digest_size(algorithm)
    digests = [decode_base64(part.checksums[algorithm], width) or b"" for part in chosen]
    if upload.checksum_type == COMPOSITE:
        whole = new_checksum(algorithm)
        whole.update(b"".join(digests))
        return {algorithm: f"{encode_base64(whole.digest())}-{len(chosen)}"}
    joined = digests[0]
    for part, digest in zip(chosen[1:], digests[1:], strict=True):
        joined = combine_crc(algorithm, joined, digest, part.size)
    return {algorithm: encode_base64(joined)}


def _check_object(upload: MultipartUpload, stored: StoredObject, params: Params) -> None:
    """Check size and checksums of the object in the request."""
    kind = upload.checksum_type if upload.algorithm is not None else "null"
    if params.get("ChecksumType") not in {None, kind}:
        raise invalid_request(
            f"The upload was created using the {kind} checksum mode. The complete request "
            "must use the same checksum mode."
        )
    size = params.get("MpuObjectSize")
    if size is not None and size != stored.size:
        raise invalid_request(
            f"The provided 'x-amz-mp-object-size' header value {size} does not match what was computed: "
            f"{stored.size}"
        )
    for name, member in CHECKSUM_MEMBERS.items():
        if member in params and params[member] != stored.checksums.get(name):
            raise ApiError("BadDigest", f"The {name} you specified did not match the calculated checksum.")


@object_operation("AbortMultipartUpload", "Bucket Key UploadId")
def abort_multipart_upload(context: Context, params: Params) -> dict[str, Any]:
    """Delete an upload and its parts."""
    bucket = requested_bucket(context, params)
    abort_upload(context, bucket, _find_upload(bucket, params))
    return {"__status__": 204}


# Copies


COPY_SOURCE = words(
    "CopySource CopySourceIfMatch CopySourceIfModifiedSince CopySourceIfNoneMatch "
    "CopySourceIfUnmodifiedSince ExpectedSourceBucketOwner"
)
COPY_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


def _find_copy_source(context: Context, params: Params) -> tuple[Bucket, StoredObject]:
    """Return the object of ``x-amz-copy-source``, after the check of its conditions.

    Errors: ``InvalidArgument``, ``NoSuchBucket``, ``NoSuchKey``, ``NoSuchVersion``, ``PreconditionFailed``,
    ``AccessDenied`` for an unexpected owner.
    """
    text, _, version_id = params["CopySource"].partition("?versionId=")
    name, _, key = unquote(text).lstrip("/").partition("/")
    if not name or not key:
        raise invalid_argument("Invalid copy source object key", "x-amz-copy-source", "x-amz-copy-source")
    bucket = existing_bucket(context, name)
    check_owner(bucket, params.get("ExpectedSourceBucketOwner"))
    stored = find_object(bucket, key, unquote(version_id) or None)
    header = "x-amz-copy-source-"
    if is_not_modified(stored, params, context.clock.shown(), names="CopySource", header=header):
        failed = "If-None-Match" if "CopySourceIfNoneMatch" in params else "If-Modified-Since"
        raise s3_error("PreconditionFailed", Condition=f"{header}{failed}")
    check_readable(stored)
    return bucket, stored


@object_operation(
    "CopyObject",
    *WRITE_PARAMETERS,
    *COPY_SOURCE,
    "MetadataDirective TaggingDirective ChecksumAlgorithm IfMatch IfNoneMatch",
)
def copy_object(context: Context, params: Params) -> dict[str, Any]:
    """Copy an object, by default with its metadata and tags.

    Encryption, storage class and website redirect location are those of the request, not of the source.
    """
    check_key(params["Key"])
    check_acl(params)
    bucket = requested_bucket(context, params)
    source_bucket, source = _find_copy_source(context, params)
    check_write_conditions(bucket, params["Key"], params)
    replaces = params.get("MetadataDirective", "COPY") == "REPLACE"
    changes = (
        replaces
        or any(name in params for name in REQUEST_HEADERS)
        or source is not bucket.objects.get(params["Key"])
        # AWS accepts these too, because the copy gets the default encryption.
        or source.headers["ServerSideEncryption"] != "AES256"
        or "encryption" in bucket.settings
    )
    if not changes:
        raise invalid_request(
            "This copy request is illegal because it is trying to copy an object to itself without changing "
            "the object's metadata, storage class, website redirect location or encryption attributes."
        )
    if source.size > MAX_OBJECT_BYTES:
        raise invalid_request(
            "The specified copy source is larger than the maximum allowable size for a copy source: "
            f"{MAX_OBJECT_BYTES}"
        )
    tags = dict(source.tags)
    if params.get("TaggingDirective") == "REPLACE":
        tags = parse_tags(params.get("Tagging", ""))
    headers = stored_headers(params, bucket)
    if not replaces:
        kept = {name: value for name, value in source.headers.items() if name not in REQUEST_HEADERS}
        headers = kept | {name: headers[name] for name in REQUEST_HEADERS if name in headers}
    etag, checksums = _copy_digests(context, source, params.get("ChecksumAlgorithm"))
    stored = StoredObject(
        key=params["Key"],
        parts=tuple(_link_part(context, part) for part in source.parts),
        etag=etag,
        modified=context.clock.now(),
        headers=headers,
        metadata=check_user_metadata(params.get("Metadata", {})) if replaces else dict(source.metadata),
        checksums=checksums,
        tags=tags,
    )
    version = store_object(context, bucket, stored)
    return {
        "CopyObjectResult": {
            "ETag": quote_etag(etag),
            "LastModified": stored.modified,
            "ChecksumType": "FULL_OBJECT",
            **checksum_members(checksums),
        },
        "ServerSideEncryption": stored.headers["ServerSideEncryption"],
        "CopySourceVersionId": version_member(source_bucket, source).get("VersionId"),
        **expiration_member(bucket, stored),
        **version,
    }


def _link_part(context: Context, part: Part) -> Part:
    """Link a part file, so that original and copy can be deleted independently."""
    file, path = new_part_file(context)
    path.hardlink_to(part.path(context.folder))
    return replace(part, file=file)


def _copy_digests(
    context: Context, source: StoredObject, algorithm: str | None
) -> tuple[str, dict[str, str]]:
    """Return ETag and checksums of a copy, which are those of a single PUT also for a multipart source."""
    if algorithm is not None:
        check_algorithm(algorithm, CHECKSUM_MEMBERS)
    wanted = {algorithm.lower()} if algorithm else set(source.checksums) or {DEFAULT_CHECKSUM}
    if not source.multipart and wanted == set(source.checksums):
        return source.etag, source.checksums
    digests = Checksums({"md5", *wanted})
    for piece in _pieces(context, source, 0, source.size):
        digests.update(piece)
    return digests.hex("md5"), {name: digests.base64(name) for name in wanted}


def _pieces(context: Context, stored: StoredObject, start: int, end: int) -> Iterator[memoryview]:
    """Yield the bytes of an object from one position to another."""
    with object_reader(stored, context.folder) as reader:
        reader.seek(start)
        while start < end:
            piece = memoryview(reader.read(min(BUFFER, end - start)) or b"")
            yield piece
            start += len(piece)


@object_operation(
    "UploadPartCopy", *COPY_SOURCE, "Bucket Key UploadId PartNumber CopySourceRange", locks=False
)
def upload_part_copy(context: Context, params: Params) -> dict[str, Any]:
    """Create a part from the bytes of an object."""
    _check_part_number(params["PartNumber"])
    with context.lock:
        upload = _find_upload(requested_bucket(context, params), params)
        source_bucket, source = _find_copy_source(context, params)
    start, end = _copied_range(source, params)
    algorithm = upload.algorithm or DEFAULT_CHECKSUM
    digests = Checksums({"md5", algorithm})
    file, path = new_part_file(context)
    size = save_pieces(_pieces(context, source, start, end), path, digests)
    checksums = {algorithm: digests.base64(algorithm)}
    part = Part(params["PartNumber"], file, size, digests.hex("md5"), checksums, context.clock.now())
    _store_part(context, params, part)
    result = {"ETag": quote_etag(part.md5), "LastModified": part.modified, **_part_checksums(upload, part)}
    return {
        "CopyPartResult": result,
        "CopySourceVersionId": version_member(source_bucket, source).get("VersionId"),
        "ServerSideEncryption": upload.headers["ServerSideEncryption"],
    }


def _copied_range(source: StoredObject, params: Params) -> tuple[int, int]:
    text = params.get("CopySourceRange")
    if text is None:
        return 0, source.size
    match = COPY_RANGE.fullmatch(text)
    if match is not None and source.size <= int(match[1]) <= int(match[2]):
        raise invalid_request("The specified copy range is invalid for the source object size")
    if match is None or int(match[1]) > int(match[2]):
        reason = (
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are "
            "the zero-based offsets of the first and last bytes to copy"
        )
    elif int(match[2]) >= source.size:
        reason = f"Range specified is not valid for source object of size: {source.size}"
    else:
        return int(match[1]), int(match[2]) + 1
    raise invalid_argument(reason, "x-amz-copy-source-range", text)
