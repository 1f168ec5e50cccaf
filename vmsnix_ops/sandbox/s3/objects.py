"""Objects: put, get, head, attributes, tags, delete, list.

Sources: the reference pages of the operations in the Amazon S3 API Reference; RFC 9110 for ranges and
conditions.
"""

from __future__ import annotations

import base64
import binascii
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vmsnix_ops.sandbox.core import AwsError, operation, tag_list
from vmsnix_ops.sandbox.s3.common import (
    CHECKSUM_MEMBERS,
    STORED_HEADERS,
    canonical_user_id,
    check_acl,
    check_key,
    check_tags,
    check_user_metadata,
    check_write_conditions,
    checksum_members,
    find_object,
    invalid_request,
    parse_tags,
    precondition_failed,
    quote_etag,
    receive_upload,
    remove_parts,
    requested_bucket,
    shown_headers,
    store_object,
    stored_headers,
)
from vmsnix_ops.sandbox.storage import StoredObject, file_ranges
from vmsnix_ops.sandbox.wire.codecs import malformed_xml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.storage import Bucket
    from vmsnix_ops.sandbox.wire.http import FileRange


MAX_BUFFERED = 256 * 1024  # bytes; larger objects are sent from their files
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
RESPONSE_OVERRIDES = {
    "ResponseCacheControl": "CacheControl",
    "ResponseContentDisposition": "ContentDisposition",
    "ResponseContentEncoding": "ContentEncoding",
    "ResponseContentLanguage": "ContentLanguage",
    "ResponseContentType": "ContentType",
    "ResponseExpires": "Expires",
}
CONDITIONS = ("IfMatch", "IfNoneMatch", "IfModifiedSince", "IfUnmodifiedSince")
READ_PARAMETERS = (
    "Bucket",
    "Key",
    "Range",
    "PartNumber",
    "ChecksumMode",
    "ExpectedBucketOwner",
    *CONDITIONS,
    *RESPONSE_OVERRIDES,
)
WRITE_PARAMETERS = ("Bucket", "Key", "ACL", "Metadata", "Tagging", "ExpectedBucketOwner", *STORED_HEADERS)


@operation(
    "s3",
    "PutObject",
    *WRITE_PARAMETERS,
    *CHECKSUM_MEMBERS.values(),
    "Body ContentLength ContentMD5 ChecksumAlgorithm IfMatch IfNoneMatch",
    locks=False,
)
def put_object(context: Context, params: Params) -> dict[str, Any]:
    """Store an object."""
    check_key(params["Key"])
    check_acl(params)
    with context.lock:
        bucket = requested_bucket(context, params)
        check_write_conditions(bucket, params["Key"], params)
    headers, metadata = stored_headers(params, bucket), check_user_metadata(params.get("Metadata", {}))
    tags = parse_tags(params.get("Tagging", ""))
    part = receive_upload(context, params["Body"], params, 1)
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
            bucket = requested_bucket(context, params)  # both may have changed during the upload
            check_write_conditions(bucket, stored.key, params)
        except AwsError:
            part.path(context.folder).unlink()
            raise
        store_object(context, bucket, stored)
    return {
        "ETag": quote_etag(stored.etag),
        "ServerSideEncryption": headers["ServerSideEncryption"],
        "ChecksumType": "FULL_OBJECT" if part.checksums else None,
        **checksum_members(part.checksums),
    }


@operation("s3", "GetObject", *READ_PARAMETERS)
def get_object(context: Context, params: Params) -> dict[str, Any]:
    """Return an object's bytes, or a range of them."""
    bucket = requested_bucket(context, params)
    stored = find_object(bucket, params["Key"])
    answer = _object_answer(stored, params)
    if answer.get("__status__") == 304:
        return answer
    start, length = answer.pop("__range__")
    answer["Body"] = _content(context, stored, start, length)
    return answer


@operation("s3", "HeadObject", *READ_PARAMETERS)
def head_object(context: Context, params: Params) -> dict[str, Any]:
    """Return the headers of GetObject."""
    answer = _object_answer(find_object(requested_bucket(context, params), params["Key"]), params)
    answer.pop("__range__", None)
    return answer


def _content(context: Context, stored: StoredObject, start: int, length: int) -> bytes | list[FileRange]:
    ranges = file_ranges(stored, context.folder, start, length)
    if length > MAX_BUFFERED:
        return ranges
    pieces = []
    for one in ranges:
        with one.path.open("rb") as file:
            file.seek(one.offset)
            pieces.append(file.read(one.length))
    return b"".join(pieces)


def _object_answer(stored: StoredObject, params: Params) -> dict[str, Any]:
    """Return the headers of an object; ``__range__`` is (start, length) of its body."""
    facts: dict[str, Any] = {"ETag": quote_etag(stored.etag), "LastModified": stored.modified}
    if _is_not_modified(stored, params):
        return {**facts, "__status__": 304}
    start, length, partial = _requested_range(stored, params)
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
    for override, member in RESPONSE_OVERRIDES.items():
        if override in params:
            answer[member] = params[override]
    return answer


def _checksums(stored: StoredObject, params: Params, *, partial: bool) -> dict[str, Any]:
    """Return the checksums of the object or of the requested part; none for other ranges."""
    if "PartNumber" in params and stored.multipart:
        return checksum_members(stored.parts[params["PartNumber"] - 1].checksums)
    if partial and "PartNumber" not in params:
        return {}
    return {
        **checksum_members(stored.checksums),
        "ChecksumType": stored.checksum_type if stored.checksums else None,
    }


def _is_not_modified(stored: StoredObject, params: Params) -> bool:
    """Check the conditions in the order of RFC 9110, and return whether the answer is 304."""
    match, none_match = params.get("IfMatch"), params.get("IfNoneMatch")
    if match is not None:
        if match != "*" and stored.etag not in _etags(match):
            raise precondition_failed("If-Match")
    elif "IfUnmodifiedSince" in params and _is_newer(stored.modified, params["IfUnmodifiedSince"]):
        raise precondition_failed("If-Unmodified-Since")
    if none_match is not None:
        return none_match == "*" or stored.etag in _etags(none_match)
    return "IfModifiedSince" in params and not _is_newer(stored.modified, params["IfModifiedSince"])


def _etags(header: str) -> list[str]:
    return [part.strip().removeprefix("W/").strip('"') for part in header.split(",")]


def _is_newer(modified: datetime, moment: datetime) -> bool:
    return modified.replace(microsecond=0) - moment >= timedelta(seconds=1)


def _requested_range(stored: StoredObject, params: Params) -> tuple[int, int, bool]:
    """Return start and length of the body, and whether it is only a part of the object."""
    if "PartNumber" in params:
        if "Range" in params:
            raise invalid_request("Cannot specify both Range header and partNumber query parameter")
        return _part_range(stored, params["PartNumber"])
    match = RANGE.fullmatch(params.get("Range", "").replace(" ", ""))
    if match is None or match.group(0) == "bytes=-":
        return 0, stored.size, False  # RFC 9110: an invalid range is ignored
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


# Attributes

OBJECT_ATTRIBUTES = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}


@operation(
    "s3", "GetObjectAttributes", "Bucket Key ObjectAttributes MaxParts PartNumberMarker ExpectedBucketOwner"
)
def get_object_attributes(context: Context, params: Params) -> dict[str, Any]:
    """Return the requested attributes. Composite checksums have no "-N" here."""
    stored = find_object(requested_bucket(context, params), params["Key"])
    wanted = set(params["ObjectAttributes"])
    if not wanted <= OBJECT_ATTRIBUTES:
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
        answer["Checksum"] = {**checksum_members(plain), "ChecksumType": stored.checksum_type}
    if "ObjectParts" in wanted and stored.multipart:
        answer["ObjectParts"] = _parts_view(stored, params)
    return answer


def _parts_view(stored: StoredObject, params: Params) -> dict[str, Any]:
    if not stored.checksums:  # only parts with checksums are listed
        return {"TotalPartsCount": len(stored.parts)}
    marker, limit = params.get("PartNumberMarker", 0), page_limit(params, "MaxParts")
    waiting = [part for part in stored.parts if part.number > marker]
    shown = waiting[:limit]
    return {
        "TotalPartsCount": len(stored.parts),
        "PartNumberMarker": marker,
        "NextPartNumberMarker": shown[-1].number if shown else 0,
        "MaxParts": limit,
        "IsTruncated": len(waiting) > limit,
        "Parts": [
            {"PartNumber": part.number, "Size": part.size, **checksum_members(part.checksums)}
            for part in shown
        ],
    }


# Tags

TAGGING_PARAMETERS = ("Bucket", "Key", "ExpectedBucketOwner")


@operation("s3", "GetObjectTagging", *TAGGING_PARAMETERS)
def get_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Return the tags of an object."""
    return {"TagSet": tag_list(find_object(requested_bucket(context, params), params["Key"]).tags)}


@operation("s3", "PutObjectTagging", *TAGGING_PARAMETERS, "Tagging ContentMD5 ChecksumAlgorithm")
def put_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Replace the tags of an object."""
    stored = find_object(requested_bucket(context, params), params["Key"])
    stored.tags = check_tags(params["Tagging"]["TagSet"], limit=10)
    return {}


@operation("s3", "DeleteObjectTagging", *TAGGING_PARAMETERS)
def delete_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Remove the tags of an object."""
    find_object(requested_bucket(context, params), params["Key"]).tags = {}
    return {"__status__": 204}


# Delete

MAX_DELETED = 1000


def _delete(context: Context, bucket: Bucket, key: str, etag: str | None) -> None:
    stored = bucket.objects.get(key)
    if etag is not None and stored is not None and etag.strip('"') not in {"*", stored.etag}:
        raise precondition_failed("If-Match")
    if stored is not None:
        del bucket.objects[key]
        remove_parts(context, stored.parts)


@operation("s3", "DeleteObject", "Bucket Key IfMatch ExpectedBucketOwner")
def delete_object(context: Context, params: Params) -> dict[str, Any]:
    """Delete an object. An unknown key is no error."""
    _delete(context, requested_bucket(context, params), params["Key"], params.get("IfMatch"))
    return {"__status__": 204}


@operation("s3", "DeleteObjects", "Bucket Delete ChecksumAlgorithm ExpectedBucketOwner")
def delete_objects(context: Context, params: Params) -> dict[str, Any]:
    """Delete up to 1,000 objects, and return the outcome of each."""
    bucket = requested_bucket(context, params)
    if not any(name == "content-md5" or name.startswith("x-amz-checksum-") for name in context.headers):
        raise invalid_request("Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
    listed, quiet = params["Delete"]["Objects"], params["Delete"].get("Quiet", False)
    if not 1 <= len(listed) <= MAX_DELETED:
        raise malformed_xml()
    deleted, errors = [], []
    for entry in listed:
        try:
            _delete(context, bucket, entry["Key"], entry.get("ETag"))
            deleted.append({"Key": entry["Key"]})
        except AwsError as error:
            errors.append({"Key": entry["Key"], "Code": error.code, "Message": error.message})
    return {"Deleted": [] if quiet else deleted, "Errors": errors}


MAX_KEYS = 1000
AFTER_ALL = "\U0010ffff"  # sorts after every character of a key


@dataclass
class KeyPage:
    """The keys and common prefixes of one page."""

    keys: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    last: str = ""  # the last key or prefix of the page
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.keys) + len(self.prefixes)


def list_keys(keys: Iterable[str], prefix: str, delimiter: str, after: str, limit: int) -> KeyPage:
    """Return one page of keys.

    Parameters
    ----------
    keys
        All keys, in any order. S3 sorts by UTF-8 bytes, as Python sorts texts.
    prefix
        Only keys with this prefix.
    delimiter
        Keys that are equal up to the delimiter after the prefix become one common prefix.
    after
        The last key or common prefix of the previous page.
    limit
        Maximum number of keys and common prefixes.
    """
    ordered = sorted(keys)
    position = bisect_left(ordered, prefix) if prefix > after else bisect_right(ordered, after)
    page = KeyPage()
    while position < len(ordered) and ordered[position].startswith(prefix):
        key = ordered[position]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        common = key[: cut + len(delimiter)] if cut >= 0 else None
        if common is not None and after.startswith(common):  # on the previous page
            position = bisect_left(ordered, common + AFTER_ALL)
            continue
        if len(page) >= limit:
            page.truncated = limit > 0
            break
        if common is None:
            page.keys.append(key)
            page.last = key
            position += 1
        else:
            page.prefixes.append(common)
            page.last = common
            position = bisect_left(ordered, common + AFTER_ALL)
    return page


def key_encoder(params: Params) -> Any:
    """Return the function that writes keys: unchanged, or percent-encoded with ``encoding-type=url``."""
    kind = params.get("EncodingType")
    if kind not in {None, "url"}:
        raise AwsError(
            "InvalidArgument", "Invalid Encoding Method specified in Request", ArgumentName="encoding-type"
        )
    return (lambda text: quote(text, safe="/-_.~*")) if kind == "url" else (lambda text: text)


def page_limit(params: Params, member: str) -> int:
    """Return the size of a page: at most 1,000, or raise ``InvalidArgument`` for a negative number."""
    limit = int(params.get(member, MAX_KEYS))
    if limit < 0:
        raise AwsError("InvalidArgument", f"Argument {member} must be an integer between 0 and 2147483647")
    return min(limit, MAX_KEYS)


def _object_entry(stored: StoredObject, encode: Any, bucket: Bucket, *, owner: bool) -> dict[str, Any]:
    entry = {
        "Key": encode(stored.key),
        "LastModified": stored.modified,
        "ETag": quote_etag(stored.etag),
        "Size": stored.size,
        "StorageClass": stored.headers.get("StorageClass", "STANDARD"),
    }
    if stored.checksums:
        entry["ChecksumAlgorithm"] = [name.upper() for name in stored.checksums]
        entry["ChecksumType"] = stored.checksum_type
    if owner:
        entry["Owner"] = {"ID": canonical_user_id(bucket.account)}
    return entry


@operation(
    "s3",
    "ListObjectsV2",
    "Bucket Delimiter EncodingType MaxKeys Prefix ContinuationToken FetchOwner StartAfter",
    "ExpectedBucketOwner",
)
def list_objects_v2(context: Context, params: Params) -> dict[str, Any]:
    """List objects, with continuation tokens."""
    bucket, encode = requested_bucket(context, params), key_encoder(params)
    limit = page_limit(params, "MaxKeys")
    after = params.get("StartAfter", "")
    token = params.get("ContinuationToken")
    if token is not None:
        after = _read_token(token)
    prefix, delimiter = params.get("Prefix", ""), params.get("Delimiter", "")
    page = list_keys(bucket.objects, prefix, delimiter, after, limit)
    owner = bool(params.get("FetchOwner"))
    answer: dict[str, Any] = {
        "Name": bucket.name,
        "Prefix": encode(prefix),
        "MaxKeys": limit,
        "KeyCount": len(page),
        "IsTruncated": page.truncated,
        "Contents": [_object_entry(bucket.objects[key], encode, bucket, owner=owner) for key in page.keys],
        "CommonPrefixes": [{"Prefix": encode(common)} for common in page.prefixes],
    }
    if delimiter:
        answer["Delimiter"] = encode(delimiter)
    if "StartAfter" in params:
        answer["StartAfter"] = encode(params["StartAfter"])
    if "EncodingType" in params:
        answer["EncodingType"] = "url"
    if token is not None:
        answer["ContinuationToken"] = token
    if page.truncated:
        answer["NextContinuationToken"] = base64.urlsafe_b64encode(page.last.encode()).decode()
    return answer


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise AwsError(
            "InvalidArgument",
            "The continuation token provided is incorrect",
            ArgumentName="continuation-token",
        ) from None


@operation("s3", "ListObjects", "Bucket Delimiter EncodingType Marker MaxKeys Prefix ExpectedBucketOwner")
def list_objects(context: Context, params: Params) -> dict[str, Any]:
    """List objects in the form of 2006: the next page begins after a key."""
    bucket, encode = requested_bucket(context, params), key_encoder(params)
    limit = page_limit(params, "MaxKeys")
    prefix, delimiter, marker = (
        params.get("Prefix", ""),
        params.get("Delimiter", ""),
        params.get("Marker", ""),
    )
    page = list_keys(bucket.objects, prefix, delimiter, marker, limit)
    answer: dict[str, Any] = {
        "Name": bucket.name,
        "Prefix": encode(prefix),
        "Marker": encode(marker),
        "MaxKeys": limit,
        "IsTruncated": page.truncated,
        "Contents": [_object_entry(bucket.objects[key], encode, bucket, owner=True) for key in page.keys],
        "CommonPrefixes": [{"Prefix": encode(common)} for common in page.prefixes],
    }
    if delimiter:
        answer["Delimiter"] = encode(delimiter)
        if page.truncated:
            answer["NextMarker"] = encode(page.last)
    if "EncodingType" in params:
        answer["EncodingType"] = "url"
    return answer
