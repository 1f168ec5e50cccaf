"""Versions of objects: find, store and delete them.

A bucket without versioning has one version of each object, with the ID ``null``.

Sources: "Retaining multiple versions of objects with S3 Versioning", "Working with delete markers" and
"Working with objects in a versioning-suspended bucket" in the Amazon S3 User Guide; ListObjectVersions in the
Amazon S3 API Reference. Errors, and which answers have a ``VersionId``: AWS's answers of February 2026 in
LocalStack's ``test_s3_api.snapshot.json`` and ``test_s3_list_operations.snapshot.json``.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, not_emulated
from vmsnix_ops.sandbox.s3.common import precondition_failed, remove_parts
from vmsnix_ops.sandbox.storage import DeleteMarker, StoredObject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context
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
        raise ApiError(
            "InvalidArgument",
            "Invalid version id specified",
            ArgumentName="versionId",
            ArgumentValue=version_id,
        )


def no_such_version(key: str, version_id: str) -> ApiError:
    """Return ``NoSuchVersion``."""
    text = "The specified version does not exist."
    return ApiError("NoSuchVersion", text, status=404, Key=key, VersionId=version_id)


# Find


def find_object(
    bucket: Bucket, key: str, version_id: str | None = None, *, method: str = "GET", tags: bool = False
) -> StoredObject:
    """Return the current version of an object, or another one by its ID.

    Parameters
    ----------
    method
        HTTP method of the call, for the error about a delete marker.
    tags
        Whether the call is about tags, which answers another error when the newest version is a delete
        marker.

    Raises
    ------
    ApiError
        ``NoSuchKey``, ``NoSuchVersion``, ``InvalidArgument`` for an invalid ID, ``MethodNotAllowed`` for a
        delete marker.
    """
    if version_id is not None:
        _check_version_id(version_id)
    for version in versions_of(bucket, key):
        if version_id is None or version.version_id == version_id:
            if isinstance(version, StoredObject):
                return version
            raise _marker_error(version, method, named=version_id is not None or tags)
    if version_id is not None:
        raise no_such_version(key, version_id)
    raise ApiError("NoSuchKey", "The specified key does not exist.", status=404, Key=key)


def _marker_error(marker: DeleteMarker, method: str, *, named: bool) -> ApiError:
    headers = {"x-amz-delete-marker": "true", "x-amz-version-id": marker.version_id}
    if not named:
        text = "The specified key does not exist."
        return ApiError("NoSuchKey", text, status=404, headers=headers, Key=marker.key)
    return ApiError(
        "MethodNotAllowed",
        "The specified method is not allowed against this resource.",
        status=405,
        headers=headers | {"Allow": "DELETE"},
        Method=method,
        ResourceType="DeleteMarker",
    )


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
            raise ApiError("NoSuchKey", "The specified key does not exist.", status=404, Key=key)
        if etag.strip('"') not in {"*", current.etag}:
            raise precondition_failed("If-Match")
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
