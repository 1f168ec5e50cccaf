"""Objects: put, get, head, attributes, tags, delete, list.

Sources: the reference pages of the operations in the Amazon S3 API Reference; RFC 9110 for ranges and
conditions; AWS's answers of February 2026 in LocalStack's ``test_s3.snapshot.json``, ``test_s3_api...`` and
``test_s3_list_operations...``.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from vmsnix_ops.sandbox.core import ApiError, given, not_emulated, operation, tag_list, words
from vmsnix_ops.sandbox.s3.common import (
    CHECKSUM_MEMBERS,
    STORED_HEADERS,
    canonical_user_id,
    check_acl,
    check_key,
    check_readable,
    check_tags,
    check_user_metadata,
    check_write_conditions,
    checksum_members,
    invalid_argument,
    invalid_request,
    owner_acl,
    parse_tags,
    quote_etag,
    receive_upload,
    s3_error,
    shown_headers,
    stored_headers,
)
from vmsnix_ops.sandbox.s3.store import (
    delete_object,
    delete_version,
    expiration_member,
    find_object,
    object_operation,
    requested_bucket,
    store_object,
    version_member,
    versions_after,
    versions_of,
)
from vmsnix_ops.sandbox.storage import StoredObject, file_ranges
from vmsnix_ops.sandbox.wire.protocols import malformed_xml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.s3.store import Version
    from vmsnix_ops.sandbox.storage import Bucket, Part
    from vmsnix_ops.sandbox.wire.http import FileRange


MAX_BUFFERED = 256 * 1024  # bytes; larger objects are sent from their files
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
RESPONSE_OVERRIDES = {
    f"Response{member}": member
    for member in words("CacheControl ContentDisposition ContentEncoding ContentLanguage ContentType Expires")
}
READ_PARAMETERS = (
    "Bucket Key VersionId Range PartNumber ChecksumMode",
    "IfMatch IfNoneMatch IfModifiedSince IfUnmodifiedSince",
    *RESPONSE_OVERRIDES,
)
WRITE_PARAMETERS = ("Bucket Key ACL Metadata Tagging", *STORED_HEADERS)


@object_operation(
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
        except ApiError:
            part.path(context.folder).unlink()
            raise
        version = store_object(context, bucket, stored)
    return {
        "ETag": quote_etag(stored.etag),
        "ServerSideEncryption": headers["ServerSideEncryption"],
        "ChecksumType": "FULL_OBJECT",
        **checksum_members(part.checksums),
        **expiration_member(bucket, stored),
        **version,
    }


@object_operation("GetObject", *READ_PARAMETERS)
def get_object(context: Context, params: Params) -> dict[str, Any]:
    """Return an object's bytes, or a range of them."""
    stored, answer = _read_object(context, params, "GET")
    if answer.get("__status__") == 304:
        return answer
    check_readable(stored)
    start, length = answer.pop("__range__")
    answer["Body"] = _content(context, stored, start, length)
    return answer


@object_operation("HeadObject", *READ_PARAMETERS)
def head_object(context: Context, params: Params) -> dict[str, Any]:
    """Return the headers of GetObject."""
    _, answer = _read_object(context, params, "HEAD")
    answer.pop("__range__", None)
    return answer


def _read_object(context: Context, params: Params, method: str) -> tuple[StoredObject, dict[str, Any]]:
    """Return the requested version of an object, and its headers."""
    bucket, version_id = requested_bucket(context, params), params.get("VersionId")
    stored = find_object(bucket, params["Key"], version_id, method=method)
    answer = _object_answer(stored, params, context.clock.shown()) | version_member(bucket, stored)
    if answer.get("__status__") != 304 and version_id is None:
        answer |= expiration_member(bucket, stored)
    return stored, answer


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


def _object_answer(stored: StoredObject, params: Params, now: datetime) -> dict[str, Any]:
    """Return the headers of an object; ``__range__`` is (start, length) of its body."""
    facts: dict[str, Any] = {"ETag": quote_etag(stored.etag), "LastModified": stored.modified}
    if is_not_modified(stored, params, now):
        return {**facts, "__status__": 304}
    start, length, partial = _requested_range(stored, params)
    answer = {
        **shown_headers(stored),
        **facts,
        "AcceptRanges": "bytes",
        "ContentLength": length,
        "Metadata": stored.metadata,
        "__range__": (start, length),
        **given(TagCount=len(stored.tags)),
    }
    if partial:
        answer["__status__"] = 206
        answer["ContentRange"] = f"bytes {start}-{start + length - 1}/{stored.size}"
    if "PartNumber" in params and stored.multipart:
        answer["PartsCount"] = len(stored.parts)
    if params.get("ChecksumMode") == "ENABLED":
        answer |= _checksums(stored, params, partial=partial)
    return answer | {RESPONSE_OVERRIDES[name]: params[name] for name in RESPONSE_OVERRIDES if name in params}


def _checksums(stored: StoredObject, params: Params, *, partial: bool) -> dict[str, Any]:
    """Return the checksums of the object or of the requested part; none for other ranges.

    A part has a checksum in a ``COMPOSITE`` object, and when it is the whole object.
    """
    checksums = stored.checksums
    if "PartNumber" in params and stored.multipart:
        if stored.checksum_type == "COMPOSITE":
            checksums = stored.parts[params["PartNumber"] - 1].checksums
        elif len(stored.parts) > 1:
            return {}
    elif partial and "PartNumber" not in params:
        return {}
    return {**checksum_members(checksums), "ChecksumType": stored.checksum_type if checksums else None}


def is_not_modified(
    stored: StoredObject, params: Params, now: datetime, *, names: str = "", header: str = ""
) -> bool:
    """Check the conditions of a read in the order of RFC 9110, and return whether the answer is 304.

    Times are compared in whole seconds, as HTTP dates have them. A time in the future is ignored: no client
    can have read the object then. `names` and `header` are prefixes of the parameters and the headers, such
    as ``CopySource`` and ``x-amz-copy-source-``.
    """
    match, none_match, unmodified, modified = (
        params.get(f"{names}{name}")
        for name in ("IfMatch", "IfNoneMatch", "IfUnmodifiedSince", "IfModifiedSince")
    )
    if match is not None:
        if match != "*" and stored.etag not in _etags(match):
            raise s3_error("PreconditionFailed", Condition=f"{header}If-Match")
    elif unmodified is not None and _is_newer(stored.modified, unmodified):
        raise s3_error("PreconditionFailed", Condition=f"{header}If-Unmodified-Since")
    if none_match is not None:
        return none_match == "*" or stored.etag in _etags(none_match)
    return modified is not None and modified <= now and not _is_newer(stored.modified, modified)


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
        raise s3_error("InvalidRange", RangeRequested=params["Range"], ActualObjectSize=stored.size)
    return start, end - start + 1, True


def _part_range(stored: StoredObject, number: int) -> tuple[int, int, bool]:
    parts = stored.parts if stored.multipart else ()
    count = max(len(parts), 1)
    if not 1 <= number <= count:
        raise s3_error("InvalidPartNumber", PartNumberRequested=number, ActualPartCount=count)
    if not parts:
        return 0, stored.size, True
    return sum(part.size for part in parts[: number - 1]), parts[number - 1].size, True


@object_operation("GetObjectAcl", "Bucket Key VersionId")
def get_object_acl(context: Context, params: Params) -> dict[str, Any]:
    """Return the ACL of every object with BucketOwnerEnforced: full control for the owner."""
    bucket = requested_bucket(context, params)
    find_object(bucket, params["Key"], params.get("VersionId"))
    return owner_acl(bucket)


# Attributes

OBJECT_ATTRIBUTES = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}


@object_operation("GetObjectAttributes", "Bucket Key VersionId ObjectAttributes MaxParts PartNumberMarker")
def get_object_attributes(context: Context, params: Params) -> dict[str, Any]:
    """Return the requested attributes. Composite checksums have no "-N" here."""
    bucket = requested_bucket(context, params)
    stored = find_object(bucket, params["Key"], params.get("VersionId"))
    wanted = set(params["ObjectAttributes"])
    if not wanted <= OBJECT_ATTRIBUTES:
        raise invalid_argument("Invalid attribute name specified.", "x-amz-object-attributes")
    facts: dict[str, Any] = {
        "ETag": stored.etag,
        "ObjectSize": stored.size,
        "StorageClass": stored.headers.get("StorageClass", "STANDARD"),
    }
    if stored.checksums:
        plain = {name: value.partition("-")[0] for name, value in stored.checksums.items()}
        facts["Checksum"] = {**checksum_members(plain), "ChecksumType": stored.checksum_type}
    if "ObjectParts" in wanted and stored.multipart:
        facts["ObjectParts"] = _parts_view(stored, params)
    shown = {name: value for name, value in facts.items() if name in wanted}
    return {"LastModified": stored.modified, **version_member(bucket, stored), **shown}


def _parts_view(stored: StoredObject, params: Params) -> dict[str, Any]:
    if stored.checksum_type != "COMPOSITE" or not stored.checksums:  # only parts with checksums are listed
        return {"TotalPartsCount": len(stored.parts)}
    shown, answer = page_of_parts(stored.parts, params)
    parts = [{"PartNumber": p.number, "Size": p.size, **checksum_members(p.checksums)} for p in shown]
    return {"TotalPartsCount": len(stored.parts), **answer, "Parts": parts}


def page_of_parts(parts: Iterable[Part], params: Params) -> tuple[list[Part], dict[str, Any]]:
    """Return the parts on a page, and the members of an answer that describe the page."""
    marker, limit = params.get("PartNumberMarker", 0), page_limit(params, "MaxParts")
    waiting = [part for part in parts if part.number > marker]
    shown = waiting[:limit]
    return shown, {
        "PartNumberMarker": marker,
        "NextPartNumberMarker": shown[-1].number if shown else 0,
        "MaxParts": limit,
        "IsTruncated": len(waiting) > limit,
    }


# Tags


@object_operation("GetObjectTagging", "Bucket Key VersionId")
def get_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Return the tags of an object."""
    bucket, stored = _tagged_object(context, params, "GET")
    return {"TagSet": tag_list(stored.tags), **version_member(bucket, stored)}


@object_operation("PutObjectTagging", "Bucket Key VersionId Tagging ContentMD5 ChecksumAlgorithm")
def put_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Replace the tags of an object."""
    bucket, stored = _tagged_object(context, params, "PUT")
    stored.tags = check_tags(params["Tagging"]["TagSet"], limit=10)
    return version_member(bucket, stored)


@operation("s3", "DeleteObjectTagging", "Bucket Key VersionId ExpectedBucketOwner")
def delete_object_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Remove the tags of an object."""
    bucket, stored = _tagged_object(context, params, "DELETE")
    stored.tags = {}
    return {"__status__": 204, **version_member(bucket, stored)}


def _tagged_object(context: Context, params: Params, method: str) -> tuple[Bucket, StoredObject]:
    bucket = requested_bucket(context, params)
    return bucket, find_object(bucket, params["Key"], params.get("VersionId"), method=method, tags=True)


# Delete

MAX_DELETED = 1000


@object_operation("DeleteObject", "Bucket Key VersionId IfMatch")
def delete_one(context: Context, params: Params) -> dict[str, Any]:
    """Delete an object or one of its versions. An unknown key is not an error."""
    bucket, key, etag = requested_bucket(context, params), params["Key"], params.get("IfMatch")
    if "VersionId" not in params:
        return {"__status__": 204, **delete_object(context, bucket, key, etag)}
    if etag is not None:
        raise not_emulated("IfMatch with VersionId of s3:DeleteObject")
    return {"__status__": 204, **delete_version(context, bucket, key, params["VersionId"])}


@object_operation("DeleteObjects", "Bucket Delete ChecksumAlgorithm")
def delete_objects(context: Context, params: Params) -> dict[str, Any]:
    """Delete up to 1,000 objects or versions, and return the outcome of each."""
    bucket = requested_bucket(context, params)
    if not any(name == "content-md5" or name.startswith("x-amz-checksum-") for name in context.headers):
        raise invalid_request("Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
    listed, quiet = params["Delete"]["Objects"], params["Delete"].get("Quiet", False)
    if not 1 <= len(listed) <= MAX_DELETED:
        raise malformed_xml()
    deleted, errors = [], []
    for entry in listed:
        named = {name: entry[name] for name in ("Key", "VersionId") if name in entry}
        try:
            deleted.append({**named, **_delete_entry(context, bucket, entry)})
        except ApiError as error:
            errors.append({**named, "Code": error.code, "Message": error.message})
    return {"Deleted": [] if quiet else deleted, "Errors": errors}


def _delete_entry(context: Context, bucket: Bucket, entry: dict[str, Any]) -> dict[str, Any]:
    """Delete an object or version in the list of a request, and return its outcome without its name."""
    key, version_id, etag = entry["Key"], entry.get("VersionId"), entry.get("ETag")
    for member in entry:
        if member not in {"Key", "VersionId", "ETag"}:
            raise not_emulated(f"{member} of s3:DeleteObjects")
    if version_id is None:
        done = delete_object(context, bucket, key, etag)
    elif etag is not None:
        raise not_emulated("ETag with VersionId of s3:DeleteObjects")
    else:
        try:
            done = delete_version(context, bucket, key, version_id)
        except ApiError:  # here the error for an ID that S3 never made is another one
            raise s3_error("NoSuchVersion", Key=key, VersionId=version_id) from None
    if not done.get("DeleteMarker"):
        return {}
    return {"DeleteMarker": True, "DeleteMarkerVersionId": done["VersionId"]}


MAX_KEYS = 1000
Item = TypeVar("Item")


@dataclass
class ListPage(Generic[Item]):
    """One page of a list: its items and common prefixes."""

    items: list[Item] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    last: Item | str = ""  # the last item or common prefix of the page
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.items) + len(self.prefixes)


def list_page(
    items: Iterable[Item], key: Callable[[Item], str], prefix: str, delimiter: str, marker: str, limit: int
) -> ListPage[Item]:
    """Return one page of items; they have the prefix, come after the marker, and are sorted by their key.

    Items whose keys are equal up to the delimiter after the prefix become one common prefix. The marker is
    the last key or common prefix of the previous page. The limit counts items and common prefixes.
    """
    page: ListPage[Item] = ListPage()
    for item in items:
        name = key(item)
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        common = name[: cut + len(delimiter)] if cut >= 0 else None
        if common is not None and (page.prefixes[-1:] == [common] or marker.startswith(common)):
            continue  # on this page, or on the previous one
        if len(page) >= limit:
            page.truncated = limit > 0
            break
        if common is None:
            page.items.append(item)
            page.last = item
        else:
            page.prefixes.append(common)
            page.last = common
    return page


def list_keys(keys: Iterable[str], prefix: str, delimiter: str, after: str, limit: int) -> ListPage[str]:
    """Return one page of keys, given in any order. S3 sorts by UTF-8 bytes, as Python sorts texts."""
    later = [key for key in sorted(keys) if key > after and key.startswith(prefix)]
    return list_page(later, str, prefix, delimiter, after, limit)


def list_members(params: Params, page: ListPage[Any], encode: Any) -> dict[str, Any]:
    """Return the members that the answers of all lists have."""
    return {
        "Prefix": encode(params.get("Prefix", "")),
        "IsTruncated": page.truncated,
        "CommonPrefixes": [{"Prefix": encode(common)} for common in page.prefixes],
        **given(Delimiter=encode(params.get("Delimiter", "")), EncodingType=params.get("EncodingType")),
    }


def key_encoder(params: Params) -> Any:
    """Return the function that writes keys: unchanged, or percent-encoded with ``encoding-type=url``."""
    kind = params.get("EncodingType")
    if kind not in {None, "url"}:
        raise invalid_argument("Invalid Encoding Method specified in Request", "encoding-type", kind)
    return (lambda text: quote(text, safe="/-_.~*")) if kind == "url" else (lambda text: text)


def page_limit(params: Params, member: str) -> int:
    """Return the size of a page: at most 1,000, or raise ``InvalidArgument`` for a negative number."""
    limit = int(params.get(member, MAX_KEYS))
    if limit < 0:
        raise ApiError("InvalidArgument", f"Argument {member} must be an integer between 0 and 2147483647")
    return min(limit, MAX_KEYS)


def _object_entry(stored: StoredObject, encode: Any, bucket: Bucket, *, owner: bool) -> dict[str, Any]:
    return {
        "Key": encode(stored.key),
        "LastModified": stored.modified,
        "ETag": quote_etag(stored.etag),
        "Size": stored.size,
        "StorageClass": stored.headers.get("StorageClass", "STANDARD"),
        "ChecksumAlgorithm": [name.upper() for name in stored.checksums],
        "ChecksumType": stored.checksum_type if stored.checksums else None,
        "Owner": {"ID": canonical_user_id(bucket.account)} if owner else None,
    }


@object_operation(
    "ListObjectsV2", "Bucket Delimiter EncodingType MaxKeys Prefix ContinuationToken FetchOwner StartAfter"
)
def list_objects_v2(context: Context, params: Params) -> dict[str, Any]:
    """List objects, with continuation tokens."""
    bucket, encode = requested_bucket(context, params), key_encoder(params)
    limit, token = page_limit(params, "MaxKeys"), params.get("ContinuationToken")
    after = params.get("StartAfter", "") if token is None else _read_token(token)
    page = list_keys(bucket.objects, params.get("Prefix", ""), params.get("Delimiter", ""), after, limit)
    owner = bool(params.get("FetchOwner"))
    answer = list_members(params, page, encode) | {
        "Name": bucket.name,
        "MaxKeys": limit,
        "KeyCount": len(page),
        "Contents": [_object_entry(bucket.objects[key], encode, bucket, owner=owner) for key in page.items],
    }
    if "StartAfter" in params:
        answer["StartAfter"] = encode(params["StartAfter"])
    if token is not None:
        answer["ContinuationToken"] = token
    if page.truncated:
        answer["NextContinuationToken"] = base64.urlsafe_b64encode(page.last.encode()).decode()
    return answer


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise invalid_argument("The continuation token provided is incorrect", "continuation-token") from None


@object_operation("ListObjects", "Bucket Delimiter EncodingType Marker MaxKeys Prefix")
def list_objects(context: Context, params: Params) -> dict[str, Any]:
    """List objects in the form of 2006: the next page begins after a key."""
    bucket, encode = requested_bucket(context, params), key_encoder(params)
    limit, marker = page_limit(params, "MaxKeys"), params.get("Marker", "")
    page = list_keys(bucket.objects, params.get("Prefix", ""), params.get("Delimiter", ""), marker, limit)
    answer = list_members(params, page, encode) | {
        "Name": bucket.name,
        "Marker": encode(marker),
        "MaxKeys": limit,
        "Contents": [_object_entry(bucket.objects[key], encode, bucket, owner=True) for key in page.items],
    }
    if page.truncated and params.get("Delimiter"):
        answer["NextMarker"] = encode(page.last)
    return answer


@object_operation(
    "ListObjectVersions", "Bucket Delimiter EncodingType KeyMarker MaxKeys Prefix VersionIdMarker"
)
def list_object_versions(context: Context, params: Params) -> dict[str, Any]:
    """List versions and delete markers, sorted by key, newest first."""
    bucket, encode = requested_bucket(context, params), key_encoder(params)
    prefix, delimiter = params.get("Prefix", ""), params.get("Delimiter", "")
    key_marker, id_marker = params.get("KeyMarker", ""), params.get("VersionIdMarker", "")
    if id_marker and not key_marker:
        raise invalid_argument(
            "A version-id marker cannot be specified without a key marker.", "version-id-marker", id_marker
        )
    limit = page_limit(params, "MaxKeys")
    versions = versions_after(bucket, prefix, key_marker, id_marker)
    page = list_page(versions, lambda version: version.key, prefix, delimiter, key_marker, limit)
    objects = [version for version in page.items if isinstance(version, StoredObject)]
    markers = [version for version in page.items if not isinstance(version, StoredObject)]
    answer = list_members(params, page, encode) | {
        "Name": bucket.name,
        "KeyMarker": encode(key_marker),
        "VersionIdMarker": id_marker,
        "MaxKeys": limit,
        "Versions": [_version_entry(bucket, version, encode) for version in objects],
        "DeleteMarkers": [_version_entry(bucket, version, encode) for version in markers],
    }
    if not page.truncated:
        return answer
    if isinstance(page.last, str):
        return answer | {"NextKeyMarker": encode(page.last)}
    return answer | {"NextKeyMarker": encode(page.last.key), "NextVersionIdMarker": page.last.version_id}


def _version_entry(bucket: Bucket, version: Version, encode: Any) -> dict[str, Any]:
    if isinstance(version, StoredObject):
        entry = _object_entry(version, encode, bucket, owner=True)
    else:
        owner = {"ID": canonical_user_id(bucket.account)}
        entry = {"Key": encode(version.key), "LastModified": version.modified, "Owner": owner}
    latest = versions_of(bucket, version.key)[0] is version
    return {**entry, "VersionId": version.version_id, "IsLatest": latest}
