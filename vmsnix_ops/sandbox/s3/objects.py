"""Objects: put, get, head, attributes, tags, delete.

Sources: PutObject, GetObject, HeadObject in the Amazon S3 API Reference; RFC 9110 for ranges and conditions.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.objects import StoredObject, file_ranges
from vmsnix_ops.sandbox.s3.common import (
    CHECKSUM_MEMBERS,
    HEADERS,
    bucket_of,
    check_acl,
    check_key,
    check_metadata,
    check_tags,
    check_written,
    failed_condition,
    headers_of,
    object_of,
    parse_tags,
    quoted,
    receive,
    remove_parts,
    replace_object,
    shown_checksums,
    shown_headers,
)
from vmsnix_ops.sandbox.s3.listing import limit_of

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.objects import Bucket
    from vmsnix_ops.sandbox.wire.http import FileRange


SMALL = 256 * 1024  # bytes; read at once rather than opened again for sending
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
OVERRIDES = {
    "ResponseCacheControl": "CacheControl",
    "ResponseContentDisposition": "ContentDisposition",
    "ResponseContentEncoding": "ContentEncoding",
    "ResponseContentLanguage": "ContentLanguage",
    "ResponseContentType": "ContentType",
    "ResponseExpires": "Expires",
}
CONDITIONS = ("IfMatch", "IfNoneMatch", "IfModifiedSince", "IfUnmodifiedSince")
READ = (
    "Bucket",
    "Key",
    "Range",
    "PartNumber",
    "ChecksumMode",
    "ExpectedBucketOwner",
    *CONDITIONS,
    *OVERRIDES,
)
WRITE = ("Bucket", "Key", "ACL", "Metadata", "Tagging", "ExpectedBucketOwner", *HEADERS)


@operation(
    "s3",
    "PutObject",
    honours=[
        *WRITE,
        *CHECKSUM_MEMBERS.values(),
        "Body",
        "ContentLength",
        "ContentMD5",
        "ChecksumAlgorithm",
        "IfMatch",
        "IfNoneMatch",
    ],
    locks=False,
)
def put_object(context: Context, params: Params) -> dict[str, Any]:
    """Keep an object. It is there at once, for every reader."""
    check_key(params["Key"])
    check_acl(params)
    with context.lock:
        bucket = bucket_of(context, params)
        check_written(bucket, params["Key"], params)
    headers, metadata = headers_of(params, bucket), check_metadata(params.get("Metadata", {}))
    tags = parse_tags(params.get("Tagging", ""))
    part = receive(context, params["Body"], params, 1)
    stored = StoredObject(
        key=params["Key"],
        parts=(part,),
        etag=part.md5,
        modified=context.clock.now(),
        headers=headers,
        metadata=metadata,
        checksums=part.checksums,
        tags=tags,
    )
    with context.lock:
        try:
            bucket = bucket_of(context, params)  # it may be gone by now, or the condition may hold no more
            check_written(bucket, stored.key, params)
        except AwsError:
            part.path(context.folder).unlink()
            raise
        replace_object(context, bucket, stored)
    return {
        "ETag": quoted(stored.etag),
        "ServerSideEncryption": headers["ServerSideEncryption"],
        "ChecksumType": "FULL_OBJECT" if part.checksums else None,
        **shown_checksums(part.checksums),
    }


@operation("s3", "GetObject", honours=READ)
def get_object(context: Context, params: Params) -> dict[str, Any]:
    """Return an object's bytes, or a range of them."""
    bucket = bucket_of(context, params)
    stored = object_of(bucket, params["Key"])
    answer = _describe(stored, params)
    if answer.get("__status__") == 304:
        return answer
    start, length = answer.pop("__range__")
    answer["Body"] = _content(context, stored, start, length)
    return answer


@operation("s3", "HeadObject", honours=READ)
def head_object(context: Context, params: Params) -> dict[str, Any]:
    """Return what GetObject would say, without the bytes."""
    answer = _describe(object_of(bucket_of(context, params), params["Key"]), params)
    answer.pop("__range__", None)
    return answer


def _content(context: Context, stored: StoredObject, start: int, length: int) -> bytes | list[FileRange]:
    ranges = file_ranges(stored, context.folder, start, length)
    if length > SMALL:
        return ranges
    pieces = []
    for one in ranges:
        with one.path.open("rb") as file:
            file.seek(one.offset)
            pieces.append(file.read(one.length))
    return b"".join(pieces)


def _describe(stored: StoredObject, params: Params) -> dict[str, Any]:
    """Return the headers of an answer about an object; ``__range__`` is its (start, length)."""
    facts: dict[str, Any] = {"ETag": quoted(stored.etag), "LastModified": stored.modified}
    if _unchanged(stored, params):
        return {**facts, "__status__": 304}
    start, length, partial = _range(stored, params)
    answer = {
        **shown_headers(stored),
        **facts,
        "AcceptRanges": "bytes",
        "ContentLength": length,
        "Metadata": stored.metadata,
        "__range__": (start, length),
    }
    if partial:
        answer["__status__"] = 206
        answer["ContentRange"] = f"bytes {start}-{start + length - 1}/{stored.size}"
    if "PartNumber" in params and stored.multipart:
        answer["PartsCount"] = len(stored.parts)
    if stored.tags:
        answer["TagCount"] = len(stored.tags)
    if params.get("ChecksumMode") == "ENABLED":
        answer |= _checksums(stored, params, partial=partial)
    for override, member in OVERRIDES.items():
        if override in params:
            answer[member] = params[override]
    return answer


def _checksums(stored: StoredObject, params: Params, *, partial: bool) -> dict[str, Any]:
    """Return checksums of the whole object, or of the part that was asked for; none for other ranges."""
    if "PartNumber" in params and stored.multipart:
        return shown_checksums(stored.parts[params["PartNumber"] - 1].checksums)
    if partial and "PartNumber" not in params:
        return {}
    return {
        **shown_checksums(stored.checksums),
        "ChecksumType": stored.checksum_type if stored.checksums else None,
    }


def _unchanged(stored: StoredObject, params: Params) -> bool:
    """Check conditions in RFC 9110's order; return whether the answer is 304."""
    match, none_match = params.get("IfMatch"), params.get("IfNoneMatch")
    if match is not None:
        if match != "*" and stored.etag not in _etags(match):
            raise failed_condition("If-Match")
    elif "IfUnmodifiedSince" in params and _newer(stored.modified, params["IfUnmodifiedSince"]):
        raise failed_condition("If-Unmodified-Since")
    if none_match is not None:
        return none_match == "*" or stored.etag in _etags(none_match)
    return "IfModifiedSince" in params and not _newer(stored.modified, params["IfModifiedSince"])


def _etags(header: str) -> list[str]:
    return [part.strip().removeprefix("W/").strip('"') for part in header.split(",")]


def _newer(modified: datetime, moment: datetime) -> bool:
    return modified.replace(microsecond=0) - moment >= timedelta(seconds=1)


def _range(stored: StoredObject, params: Params) -> tuple[int, int, bool]:
    """Return start, length and whether that is a part of the object only."""
    if "PartNumber" in params:
        if "Range" in params:
            raise AwsError(
                "InvalidRequest", "Cannot specify both Range header and partNumber query parameter"
            )
        return _part_range(stored, params["PartNumber"])
    match = RANGE.fullmatch(params.get("Range", "").replace(" ", ""))
    if match is None or match.group(0) == "bytes=-":
        return 0, stored.size, False  # RFC 9110: a range that is not understood is ignored
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) if last else stored.size - 1, stored.size - 1)
        if last and int(last) < int(first):
            return 0, stored.size, False
    else:
        start, end = max(stored.size - int(last), 0), stored.size - 1
        if int(last) == 0:
            start = stored.size
    if start >= stored.size:
        raise AwsError(
            "InvalidRange",
            "The requested range is not satisfiable",
            status=416,
            RangeRequested=params["Range"],
            ActualObjectSize=stored.size,
        )
    return start, end - start + 1, True


def _part_range(stored: StoredObject, number: int) -> tuple[int, int, bool]:
    parts = stored.parts if stored.multipart else ()
    count = max(len(parts), 1)
    if not 1 <= number <= count:
        raise AwsError(
            "InvalidPartNumber",
            "The requested partnumber is not satisfiable",
            status=416,
            PartNumberRequested=number,
            ActualPartCount=count,
        )
    if not parts:
        return 0, stored.size, True
    return sum(part.size for part in parts[: number - 1]), parts[number - 1].size, True


# What S3 knows about an object beside its bytes.
#
# Source: GetObjectAttributes in the Amazon S3 API Reference.

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


# Tags of objects.
#
# Sources: GetObjectTagging, PutObjectTagging, DeleteObjectTagging in the Amazon S3 API Reference.

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


# Deleting objects, one by one or a thousand at once.
#
# Sources: DeleteObject, DeleteObjects in the Amazon S3 API Reference.

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
