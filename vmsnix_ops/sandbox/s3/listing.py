"""Listing objects, old and new.

Sources: ListObjectsV2, ListObjects in the Amazon S3 API Reference.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.s3.common import bucket_of, owner_id, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.objects import Bucket, StoredObject

MAX_KEYS = 1000
BEHIND = "\U0010ffff"  # sorts behind every character that a key has


@dataclass
class Page:
    """What one page of a listing shows."""

    keys: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    last: str = ""  # the key or prefix that was shown last
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.keys) + len(self.prefixes)


def page_of(keys: Iterable[str], prefix: str, delimiter: str, after: str, limit: int) -> Page:
    """Return one page of keys.

    Parameters
    ----------
    keys
        All keys, in any order; S3 lists in the order of UTF-8 bytes, which is that of Python's texts.
    prefix
        Only keys that begin so.
    delimiter
        Keys that are equal up to this behind the prefix become one common prefix.
    after
        The key or common prefix that the page before ended with.
    limit
        Keys and common prefixes together.
    """
    ordered = sorted(keys)
    position = bisect_left(ordered, prefix) if prefix > after else bisect_right(ordered, after)
    page = Page()
    while position < len(ordered) and ordered[position].startswith(prefix):
        key = ordered[position]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        common = key[: cut + len(delimiter)] if cut >= 0 else None
        if common is not None and after.startswith(common):  # shown on the page before
            position = bisect_left(ordered, common + BEHIND)
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
            position = bisect_left(ordered, common + BEHIND)
    return page


def encoder(params: Params) -> Any:
    """Return how keys are written: as they are, or percent-encoded with ``encoding-type=url``."""
    kind = params.get("EncodingType")
    if kind not in {None, "url"}:
        raise AwsError(
            "InvalidArgument", "Invalid Encoding Method specified in Request", ArgumentName="encoding-type"
        )
    return (lambda text: quote(text, safe="/-_.~*")) if kind == "url" else (lambda text: text)


def limit_of(params: Params, member: str) -> int:
    """Return how much may be on a page: at most 1,000.

    Raises
    ------
    AwsError
        ``InvalidArgument`` for negative numbers.
    """
    limit = int(params.get(member, MAX_KEYS))
    if limit < 0:
        raise AwsError("InvalidArgument", f"Argument {member} must be an integer between 0 and 2147483647")
    return min(limit, MAX_KEYS)


def _entry(stored: StoredObject, encode: Any, bucket: Bucket, *, owner: bool) -> dict[str, Any]:
    entry = {
        "Key": encode(stored.key),
        "LastModified": stored.modified,
        "ETag": quoted(stored.etag),
        "Size": stored.size,
        "StorageClass": stored.headers.get("StorageClass", "STANDARD"),
    }
    if stored.checksums:
        entry["ChecksumAlgorithm"] = [name.upper() for name in stored.checksums]
        entry["ChecksumType"] = stored.checksum_type
    if owner:
        entry["Owner"] = {"ID": owner_id(bucket.account)}
    return entry


@operation(
    "s3",
    "ListObjectsV2",
    honours=[
        "Bucket",
        "Delimiter",
        "EncodingType",
        "MaxKeys",
        "Prefix",
        "ContinuationToken",
        "FetchOwner",
        "StartAfter",
        "ExpectedBucketOwner",
    ],
)
def list_objects_v2(context: Context, params: Params) -> dict[str, Any]:
    """List objects, page by page."""
    bucket, encode = bucket_of(context, params), encoder(params)
    limit = limit_of(params, "MaxKeys")
    after = params.get("StartAfter", "")
    token = params.get("ContinuationToken")
    if token is not None:
        after = _read_token(token)
    prefix, delimiter = params.get("Prefix", ""), params.get("Delimiter", "")
    page = page_of(bucket.objects, prefix, delimiter, after, limit)
    owner = bool(params.get("FetchOwner"))
    answer: dict[str, Any] = {
        "Name": bucket.name,
        "Prefix": encode(prefix),
        "MaxKeys": limit,
        "KeyCount": len(page),
        "IsTruncated": page.truncated,
        "Contents": [_entry(bucket.objects[key], encode, bucket, owner=owner) for key in page.keys],
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


@operation(
    "s3",
    "ListObjects",
    honours=["Bucket", "Delimiter", "EncodingType", "Marker", "MaxKeys", "Prefix", "ExpectedBucketOwner"],
)
def list_objects(context: Context, params: Params) -> dict[str, Any]:
    """List objects, the way of 2006: the next page begins behind the last key."""
    bucket, encode = bucket_of(context, params), encoder(params)
    limit = limit_of(params, "MaxKeys")
    prefix, delimiter, marker = (
        params.get("Prefix", ""),
        params.get("Delimiter", ""),
        params.get("Marker", ""),
    )
    page = page_of(bucket.objects, prefix, delimiter, marker, limit)
    answer: dict[str, Any] = {
        "Name": bucket.name,
        "Prefix": encode(prefix),
        "Marker": encode(marker),
        "MaxKeys": limit,
        "IsTruncated": page.truncated,
        "Contents": [_entry(bucket.objects[key], encode, bucket, owner=True) for key in page.keys],
        "CommonPrefixes": [{"Prefix": encode(common)} for common in page.prefixes],
    }
    if delimiter:
        answer["Delimiter"] = encode(delimiter)
        if page.truncated:
            answer["NextMarker"] = encode(page.last)
    if "EncodingType" in params:
        answer["EncodingType"] = "url"
    return answer
