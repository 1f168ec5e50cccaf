"""Lifecycle rules: when an object expires, and the deletion of expired objects.

Deletions and expiry dates happen at midnight UTC, in real time; `Clock.advance` brings them nearer. AWS may
delete up to some days later. Transitions have no effect: an object keeps its storage class.

Sources: "Lifecycle configuration elements", "Expiring objects" and "Examples of S3 Lifecycle configurations"
(of overlapping rules the earlier expiry wins) in the Amazon S3 User Guide; AWS's answers of February 2026 in
LocalStack's ``test_s3.snapshot.json``.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vmsnix_ops.sandbox.s3.common import abort_upload
from vmsnix_ops.sandbox.s3.versions import delete_object, remove_version, versions_of
from vmsnix_ops.sandbox.storage import StoredObject
from vmsnix_ops.sandbox.wire.models import format_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.s3.versions import Version
    from vmsnix_ops.sandbox.storage import Bucket


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
    exact = moment + timedelta(days=days)
    midnight = datetime.combine(exact.date(), time(), exact.tzinfo)
    return midnight if midnight == exact else midnight + timedelta(days=1)


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
