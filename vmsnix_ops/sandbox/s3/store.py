"""The bucket of a call, and its objects: find, store, delete and list their versions, apply lifecycle rules.

A bucket without versioning has one version of each object, with the ID ``null``. Lifecycle rules expire
objects, noncurrent versions and unfinished uploads at midnight UTC, in real time; `Clock.advance` brings that
nearer. AWS may delete up to some days later. Transitions have no effect: an object keeps its storage class.

Sources, in the Amazon S3 User Guide: "Using Requester Pays general purpose buckets for storage transfers and
usage", "Lifecycle configuration elements", "Expiring objects", "Examples of S3 Lifecycle configurations" (of
overlapping rules the earlier expiry wins), "Retaining multiple versions of objects with S3 Versioning",
"Working with delete markers" and "Working with objects in a versioning-suspended bucket"; in the Amazon S3
API Reference: ListObjectVersions, "Error Responses". Errors, and which answers have a ``VersionId``: AWS's
answers of February 2026 in LocalStack's ``test_s3.snapshot.json``, ``test_s3_api.snapshot.json`` and
``test_s3_list_operations.snapshot.json``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from datetime import datetime, time
from functools import wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vmsnix_ops.sandbox.core import ApiError, later, not_emulated, operation
from vmsnix_ops.sandbox.s3.common import abort_upload, invalid_argument, remove_parts, s3_error
from vmsnix_ops.sandbox.storage import Bucket, DeleteMarker, StoredObject, find_bucket
from vmsnix_ops.sandbox.wire.models import format_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmsnix_ops.sandbox.core import Context, Handler, Params
    from vmsnix_ops.sandbox.storage import Bucket


NULL = "null"
Version = StoredObject | DeleteMarker


def versioning(bucket: Bucket) -> str:
    """Return ``Enabled`` or ``Suspended``; "" when versioning was never enabled."""
    return str(bucket.settings.get("versioning") or "")


def versions_of(bucket: Bucket, key: str) -> list[Version]:
    """Return all versions of a key, newest first."""
    current = bucket.objects.get(key)
    return [*([current] if current is not None else []), *bucket.history.get(key, ())]


# Version IDs
#
# S3 answers InvalidArgument for an ID that it never made, and NoSuchVersion for that of a deleted version. So
# an ID contains a check value. It also contains its time: a page can begin after a version that was deleted.


def _new_version_id(moment: datetime) -> str:
    body = _microseconds(moment).to_bytes(8, "big") + secrets.token_bytes(4)
    return _encode(body) + _check_value(body)


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**6 + moment.microsecond


def _encode(body: bytes) -> str:
    return base64.b64encode(body, b"._").decode()


def _check_value(body: bytes) -> str:
    return _encode(hashlib.sha256(b"version " + body).digest()[:12])


def _time_in_id(version_id: str) -> int | None:
    """Return the time in a version ID, in microseconds since 1970; None when S3 never made this ID."""
    try:
        body = base64.b64decode(version_id[:16], b"._", validate=True)
    except ValueError:
        return None
    return int.from_bytes(body[:8], "big") if version_id == _encode(body) + _check_value(body) else None


def _check_version_id(version_id: str) -> None:
    if version_id != NULL and _time_in_id(version_id) is None:
        raise invalid_argument("Invalid version id specified", "versionId", version_id)


# Find


def find_object(
    bucket: Bucket, key: str, version_id: str | None, *, method: str = "GET", tags: bool = False
) -> StoredObject:
    """Return the current version of an object, or another one by its ID.

    `method` and `tags`: a call with this HTTP method, or about tags, has its own error about a delete marker.
    Errors: ``NoSuchKey``, ``NoSuchVersion``, ``InvalidArgument`` for an invalid ID, ``MethodNotAllowed``.
    """
    if version_id is not None:
        _check_version_id(version_id)
    for version in versions_of(bucket, key):
        if version_id is None or version.version_id == version_id:
            if isinstance(version, StoredObject):
                return version
            raise _marker_error(version, method, named=version_id is not None or tags)
    if version_id is not None:
        raise s3_error("NoSuchVersion", Key=key, VersionId=version_id)
    raise s3_error("NoSuchKey", Key=key)


def _marker_error(marker: DeleteMarker, method: str, *, named: bool) -> ApiError:
    headers = {"x-amz-delete-marker": "true", "x-amz-version-id": marker.version_id}
    if not named:
        return s3_error("NoSuchKey", headers=headers, Key=marker.key)
    headers["Allow"] = "DELETE"
    return s3_error("MethodNotAllowed", headers=headers, Method=method, ResourceType="DeleteMarker")


def version_member(bucket: Bucket, version: Version) -> dict[str, Any]:
    """Return the ``VersionId`` of an answer that reads an object, if the bucket has versions."""
    return {"VersionId": version.version_id} if versioning(bucket) else {}


# Store and delete


def store_object(context: Context, bucket: Bucket, stored: StoredObject) -> dict[str, Any]:
    """Store a new current version, and return the ``VersionId`` of the answer, if it has one.

    With versioning, the former object becomes noncurrent. Otherwise the new one replaces version ``null``.
    """
    enabled = versioning(bucket) == "Enabled"
    stored.version_id = _new_version_id(stored.modified) if enabled else NULL
    _push(context, bucket, stored.key)
    bucket.objects[stored.key] = stored
    return {"VersionId": stored.version_id} if enabled else {}


def _push(context: Context, bucket: Bucket, key: str) -> None:
    """Prepare a key for a new version: the current one becomes noncurrent, or is deleted."""
    older = versions_of(bucket, key)
    if versioning(bucket) != "Enabled":
        for version in older:
            if version.version_id == NULL:
                _remove_files(context, version)
        older = [version for version in older if version.version_id != NULL]
    bucket.objects.pop(key, None)
    _set_history(bucket, key, older)


def _set_history(bucket: Bucket, key: str, versions: list[Version]) -> None:
    if versions:
        bucket.history[key] = versions
    else:
        bucket.history.pop(key, None)


def _remove_files(context: Context, version: Version) -> None:
    if isinstance(version, StoredObject):
        remove_parts(context, version.parts)


def delete_object(context: Context, bucket: Bucket, key: str, etag: str | None = None) -> dict[str, Any]:
    """Delete the current version of a key; with versioning, add a delete marker. Return the answer.

    An unknown key is not an error, unless the caller expects an ETag (DeleteObject in the Amazon S3 API
    Reference: a conditional delete of a missing object fails with 404).
    """
    current = bucket.objects.get(key)
    if etag is not None:
        if current is None:
            raise s3_error("NoSuchKey", Key=key)
        if etag.strip('"') not in {"*", current.etag}:
            raise s3_error("PreconditionFailed", Condition="If-Match")
    state = versioning(bucket)
    if not state and current is None:
        return {}
    _push(context, bucket, key)
    if not state:
        return {}
    now = context.clock.now()
    marker = DeleteMarker(key, now, _new_version_id(now) if state == "Enabled" else NULL)
    _set_history(bucket, key, [marker, *bucket.history.get(key, [])])
    return {"DeleteMarker": True, "VersionId": marker.version_id}


def delete_version(context: Context, bucket: Bucket, key: str, version_id: str) -> dict[str, Any]:
    """Delete one version permanently, and return the answer. An older one may become the current one."""
    _check_version_id(version_id)
    found = [version for version in versions_of(bucket, key) if version.version_id == version_id]
    for version in found:
        remove_version(context, bucket, version)
    answer: dict[str, Any] = {"VersionId": version_id} if versioning(bucket) else {}
    if any(isinstance(version, DeleteMarker) for version in found):
        answer["DeleteMarker"] = True
    return answer


def remove_version(context: Context, bucket: Bucket, version: Version) -> None:
    """Delete one version permanently."""
    left = [one for one in versions_of(bucket, version.key) if one is not version]
    _remove_files(context, version)
    bucket.objects.pop(version.key, None)
    if left and isinstance(left[0], StoredObject):
        bucket.objects[version.key] = left.pop(0)  # type: ignore[assignment]
    _set_history(bucket, version.key, left)


# List


def versions_after(bucket: Bucket, prefix: str, key_marker: str, id_marker: str) -> Iterator[Version]:
    """Yield the versions after the markers of a page, sorted by key, newest first."""
    for key in sorted(bucket.objects.keys() | bucket.history.keys()):
        if not key.startswith(prefix) or key < key_marker:
            continue
        if key != key_marker or not key_marker:
            yield from versions_of(bucket, key)
        elif id_marker:
            yield from _older_versions(bucket, key, id_marker)


def _older_versions(bucket: Bucket, key: str, id_marker: str) -> list[Version]:
    """Return the versions of a key that are older than one of them, which may be deleted."""
    versions = versions_of(bucket, key)
    ids = [version.version_id for version in versions]
    if id_marker in ids:
        return versions[ids.index(id_marker) + 1 :]
    marked = _time_in_id(id_marker)
    if marked is None:
        raise not_emulated("a version-id-marker of another key")
    return [version for version in versions if _microseconds(version.modified) < marked]


Rule = dict[str, Any]


def _rules_of(bucket: Bucket) -> list[Rule]:
    rules: list[Rule] = bucket.settings.get("lifecycle", {}).get("Rules", [])
    return [rule for rule in rules if rule["Status"] == "Enabled"]


def _covers(rule: Rule, key: str, version: Version | None = None) -> bool:
    """Return whether a rule is about a key: with `version`, also about its size and tags."""
    chosen = rule.get("Filter") or {"Prefix": rule.get("Prefix", "")}
    wanted = {**chosen, **chosen.get("And", {})}
    if not key.startswith(wanted.get("Prefix", "")):
        return False
    tags = {tag["Key"]: tag["Value"] for tag in [*wanted.get("Tags", ()), *filter(None, [wanted.get("Tag")])]}
    sizes = {"ObjectSizeGreaterThan", "ObjectSizeLessThan"} & set(wanted)
    if not isinstance(version, StoredObject):
        return not tags and not sizes
    return tags.items() <= version.tags.items() and (
        wanted.get("ObjectSizeGreaterThan", -1) < version.size < wanted.get("ObjectSizeLessThan", 2**63)
    )


def _after_days(moment: datetime, days: int) -> datetime:
    """Return the midnight UTC that follows a number of days after a moment."""
    exact = later(moment, days=days)
    midnight = datetime.combine(exact.date(), time(), exact.tzinfo)
    return midnight if midnight == exact else later(midnight, days=1)


def _expiry(bucket: Bucket, version: Version) -> tuple[datetime, str] | None:
    """Return when a current version expires and by which rule; None when no rule expires it."""
    found = []
    for rule in _rules_of(bucket):
        expiration = rule.get("Expiration", {})
        if not _covers(rule, version.key, version):
            continue
        if "Days" in expiration:
            found.append((_after_days(version.modified, expiration["Days"]), rule["ID"]))
        elif "Date" in expiration:
            found.append((expiration["Date"], rule["ID"]))
    return min(found, default=None)


def expiration_member(bucket: Bucket, stored: StoredObject) -> dict[str, str]:
    """Return the ``Expiration`` of an answer about a current object, if a rule expires it."""
    found = _expiry(bucket, stored)
    if found is None:
        return {}
    moment, rule = found
    date = format_time(moment, "rfc822")
    return {"Expiration": f'expiry-date="{date}", rule-id="{quote(rule, safe="-_.~")}"'}


def expire_objects(context: Context, bucket: Bucket) -> None:
    """Delete the expired objects and uploads of a bucket, once a day and after each `Clock.advance`."""
    if "lifecycle" not in bucket.settings:
        return
    today = f"{context.clock.now():%Y-%m-%d} {context.clock.steps}"
    if bucket.expired_on == today:
        return
    bucket.expired_on = today
    for key in [*bucket.objects.keys() | bucket.history.keys()]:
        _expire_key(context, bucket, key)
    for upload in list(bucket.uploads.values()):
        for rule in _rules_of(bucket):
            days = rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")
            if days and _covers(rule, upload.key) and _is_due(context, upload.initiated, days):
                abort_upload(context, bucket, upload)
                break


def _expire_key(context: Context, bucket: Bucket, key: str) -> None:
    for version in _expired_noncurrent(context, bucket, key):
        remove_version(context, bucket, version)
    versions = versions_of(bucket, key)
    if versions and isinstance(versions[0], StoredObject):
        found = _expiry(bucket, versions[0])
        if found is not None and context.clock.is_past(found[0], since=versions[0].modified):
            delete_object(context, bucket, key)
    elif len(versions) == 1 and _marker_is_due(context, bucket, versions[0]):
        remove_version(context, bucket, versions[0])


def _expired_noncurrent(context: Context, bucket: Bucket, key: str) -> Iterator[Version]:
    """Yield the noncurrent versions that expire. A version is noncurrent since the next newer one exists."""
    versions = versions_of(bucket, key)
    for number, (newer, version) in enumerate(pairwise(versions)):
        for rule in _rules_of(bucket):
            expiration = rule.get("NoncurrentVersionExpiration", {})
            days, kept = expiration.get("NoncurrentDays"), expiration.get("NewerNoncurrentVersions", 0)
            covered = days and number >= kept and _covers(rule, key, version)
            if covered and _is_due(context, newer.modified, days):
                yield version
                break


def _marker_is_due(context: Context, bucket: Bucket, marker: Version) -> bool:
    """Return whether a rule removes a delete marker without other versions."""
    rules = [rule.get("Expiration", {}) for rule in _rules_of(bucket) if _covers(rule, marker.key, marker)]
    if any(expiration.get("ExpiredObjectDeleteMarker") for expiration in rules):
        return True
    found = _expiry(bucket, marker)
    return found is not None and context.clock.is_past(found[0], since=marker.modified)


def _is_due(context: Context, since: datetime, days: int) -> bool:
    return context.clock.is_past(_after_days(since, days), since=since)


def requested_bucket(context: Context, params: Params) -> Bucket:
    """Return the bucket of a call. The permissions of the caller were checked before.

    Errors: ``NoSuchBucket``, ``PermanentRedirect`` to its region, ``AccessDenied`` for an unexpected owner or
    a requester who does not pay.
    """
    name = params["Bucket"]
    bucket = existing_bucket(context, name)
    if bucket.region != context.region:
        endpoint = f"{name}.s3.{bucket.region}.amazonaws.com"
        raise s3_error("PermanentRedirect", Endpoint=endpoint, Bucket=name, BucketRegion=bucket.region)
    check_owner(bucket, params.get("ExpectedBucketOwner"))
    if is_charged(context, bucket) and params.get("RequestPayer") != "requester":
        raise s3_error("AccessDenied")
    expire_objects(context, bucket)
    return bucket


def existing_bucket(context: Context, name: str) -> Bucket:
    """Return a bucket of any account and region, or raise ``NoSuchBucket``."""
    bucket = find_bucket(context.tables, name)
    if bucket is None:
        raise s3_error("NoSuchBucket", BucketName=name)
    return bucket


def check_owner(bucket: Bucket, expected: str | None) -> None:
    """Check the account that the caller expects to own a bucket."""
    if expected is None:
        return
    if not re.fullmatch("[0-9]{12}", expected):
        raise ApiError(
            "InvalidBucketOwnerAWSAccountID",
            f"The value of the expected bucket owner parameter must be an AWS Account ID... [{expected}]",
        )
    if expected != bucket.account:
        raise s3_error("AccessDenied")


def is_charged(context: Context, bucket: Bucket) -> bool:
    """Return whether the caller, not the owner of the bucket, pays for a call."""
    return bucket.settings.get("payer") == "Requester" and context.account != bucket.account


def object_operation(name: str, *parameters: str, locks: bool = True) -> Callable[[Handler], Handler]:
    """Register an operation of S3 that also has the parameters ExpectedBucketOwner and RequestPayer.

    Its answer has ``RequestCharged`` when the requester pays. The other parameters are those of `operation`.
    """

    def register(handler: Handler) -> Handler:
        @wraps(handler)
        def handle(context: Context, params: Params) -> dict[str, Any]:
            answer = handler(context, params)
            bucket = find_bucket(context.tables, params["Bucket"])
            if bucket is not None and is_charged(context, bucket):
                answer["RequestCharged"] = "requester"
            return answer

        operation("s3", name, *parameters, "ExpectedBucketOwner RequestPayer", locks=locks)(handle)
        return handler

    return register
