"""EBS volumes and snapshots: their encryption; create, describe, copy, delete, share, lock, archive.

Sources: the reference pages of the operations; "Amazon EBS quotas". For the keys see `kms`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, given, operation, tag_list, tags_member
from vmsnix_ops.sandbox.ec2.common import (
    EBS_KEY_ALIAS,
    SNAPSHOT,
    VOLUME,
    Encryption,
    attribute_name,
    check_one_of,
    choose_encryption,
    find_of_any_account,
    find_own,
    find_own_or_all,
    find_token_result,
    invalid_value,
    is_managed_key,
    key_not_accessible,
    missing_parameter,
    new_id,
    new_snapshot,
    permission_changes,
    record_token_result,
    resource_not_found,
    select_visible,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.filters import Filters, absent, by_name, describe
from vmsnix_ops.sandbox.ec2.imports import advance_import_tasks
from vmsnix_ops.sandbox.ec2.networks import check_zone
from vmsnix_ops.sandbox.ec2.resources import GIB, EmulatedSnapshot, SnapshotLock, Tiering, Volume
from vmsnix_ops.sandbox.kms import find_key, managed_key
from vmsnix_ops.sandbox.limits import copy_seconds
from vmsnix_ops.sandbox.rbin import delete_or_recycle

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Clock, Context
    from vmsnix_ops.sandbox.ec2.resources import EmulatedInstance


# EBS encryption by default


@operation("ec2", "GetEbsEncryptionByDefault")
def get_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Return whether EBS encryption by default is on in this region."""
    enabled = bool(context.table("ec2_settings").get("ebs_encryption"))
    return {"EbsEncryptionByDefault": enabled, "SseType": "sse-ebs"}


@operation("ec2", "EnableEbsEncryptionByDefault")
def enable_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Encrypt every new volume and snapshot copy of this region."""
    context.table("ec2_settings")["ebs_encryption"] = True
    return {"EbsEncryptionByDefault": True}


@operation("ec2", "DisableEbsEncryptionByDefault")
def disable_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Encrypt only on request."""
    context.table("ec2_settings")["ebs_encryption"] = False
    return {"EbsEncryptionByDefault": False}


@operation("ec2", "GetEbsDefaultKmsKeyId")
def get_ebs_default_kms_key_id(context: Context, _params: Params) -> dict[str, Any]:
    """Return the default key for EBS encryption; ``alias/aws/ebs`` unless another one was set."""
    return {"KmsKeyId": context.table("ec2_settings").get("ebs_key") or EBS_KEY_ALIAS}


@operation("ec2", "ModifyEbsDefaultKmsKeyId", "KmsKeyId")
def modify_ebs_default_kms_key_id(context: Context, params: Params) -> dict[str, Any]:
    """Set the default key for EBS encryption."""
    arn = find_key(context, params["KmsKeyId"], EBS_KEY_ALIAS)
    if arn is None:
        raise key_not_accessible(params["KmsKeyId"])
    context.table("ec2_settings")["ebs_key"] = arn
    return {"KmsKeyId": arn}


@operation("ec2", "ResetEbsDefaultKmsKeyId")
def reset_ebs_default_kms_key_id(context: Context, _params: Params) -> dict[str, Any]:
    """Make the AWS managed key the default again."""
    context.table("ec2_settings").pop("ebs_key", None)
    return {"KmsKeyId": managed_key(context, EBS_KEY_ALIAS)}


CREATE_SECONDS, COPY_SECONDS, SECONDS_PER_STORED_GIB = 20.0, 40.0, 15.0
"""How long a snapshot is pending. Guesses: AWS documents no durations."""

MAX_COPIES_IN_PROGRESS = 20
"""Concurrent snapshot copies to one destination region (documented quota)."""

SECONDS_BETWEEN_SNAPSHOTS = 15.0
"""Seconds between two snapshots of a volume (documented for SnapshotCreationPerVolumeRateExceeded)."""

RELEASE_SECONDS = 1.0
"""How long a snapshot remains in use after its image was deregistered (public tools wait for this)."""


def snapshot_view(context: Context, snapshot: EmulatedSnapshot) -> dict[str, Any]:
    """Return a snapshot as DescribeSnapshots shows it."""
    clock = context.clock
    state = snapshot.state(clock)
    view: dict[str, Any] = {
        "SnapshotId": snapshot.snapshot_id,
        "VolumeId": snapshot.volume_id,
        "State": state,
        "StartTime": snapshot.started,
        "Progress": f"{snapshot.progress(clock)}%",
        "OwnerId": snapshot.owner,
        "Description": snapshot.description,
        "VolumeSize": snapshot.size_gib,
        "Encrypted": snapshot.encrypted,
        **_tier_view(snapshot, clock),
    }
    if state == "completed":
        view["CompletionTime"] = snapshot.completed_at(clock)
        view["FullSnapshotSizeInBytes"] = snapshot.stored_bytes()
    transfer = "time-based" if snapshot.completion_minutes else "standard"
    return view | given(
        StateMessage=snapshot.failure if state == "error" else "",
        KmsKeyId=snapshot.kms_key,
        TransferType=transfer if snapshot.copied else "",
        CompletionDurationMinutes=snapshot.completion_minutes,
        Tags=tag_list(snapshot.tags),
    )


SNAPSHOT_FILTERS: Filters = (
    by_name(
        "encrypted owner-id progress snapshot-id start-time storage-tier transfer-type volume-id volume-size"
    )
    | absent("owner-alias")
    | {"description": lambda snapshot: [snapshot.description], "status": "State"}
)


def _is_selected(
    snapshot: EmulatedSnapshot, context: Context, owners: list[str], restorable: list[str]
) -> bool:
    if owners and snapshot.owner not in [context.account if o == "self" else o for o in owners]:
        return False
    shared = snapshot.shared_with(context.clock)
    for who in restorable:
        if who == "all" and "all" in shared:
            return True
        account = context.account if who == "self" else who
        if account in shared or account == snapshot.owner:
            return snapshot.readable_by(context.account, context.clock)
    return not restorable and snapshot.readable_by(context.account, context.clock)


@operation(
    "ec2",
    "DescribeSnapshots",
    "Filters MaxResults NextToken OwnerIds RestorableByUserIds SnapshotIds",
    locks=False,
)
def describe_snapshots(context: Context, params: Params) -> dict[str, Any]:
    """Return snapshots that this account owns or may use."""
    advance_import_tasks(context)
    with context.lock:
        snapshots = list(context.tables.in_region("snapshots", context.region))
        if params.get("SnapshotIds"):
            visible = {s.snapshot_id: s for s in snapshots if s.readable_by(context.account, context.clock)}
            snapshots = select_visible(SNAPSHOT, visible, params["SnapshotIds"])
        owners, restorable = params.get("OwnerIds") or [], params.get("RestorableByUserIds") or []
        found = [s for s in snapshots if _is_selected(s, context, owners, restorable)]
        return describe(context, params, found, snapshot_view, filters=SNAPSHOT_FILTERS, key="snapshot_id")


def find_usable_snapshot(
    context: Context, snapshot_id: str, *, region: str | None = None, shared: bool = False
) -> EmulatedSnapshot:
    """Return a completed snapshot that this account may read; an archived one is refused.

    With `shared`, the image of the snapshot is shared with this account, and the snapshot itself need not be.
    """
    snapshot: EmulatedSnapshot | None = find_of_any_account(context, SNAPSHOT, snapshot_id, region=region)
    if snapshot is None or not (shared or snapshot.readable_by(context.account, context.clock)):
        raise resource_not_found(SNAPSHOT, snapshot_id)
    state = snapshot.state(context.clock)
    if state != "completed":
        raise ApiError("IncorrectState", f"Snapshot is in invalid state - {state}")
    _check_not_archived(snapshot, context.clock)
    return snapshot


def _pending_seconds(base: float, block_count: int) -> float:
    """Return how many seconds a snapshot with this many stored blocks is pending."""
    return base + block_count / 2048 * SECONDS_PER_STORED_GIB


@operation("ec2", "CreateSnapshot", "Description VolumeId TagSpecifications")
def create_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Start a snapshot of the present blocks of a volume."""
    volume = find_own(context, VOLUME, params["VolumeId"])
    earlier = [s.started for s in context.table("snapshots").values() if s.volume_id == volume.volume_id]
    if any(context.clock.age(started) < SECONDS_BETWEEN_SNAPSHOTS for started in earlier):
        raise ApiError(
            "SnapshotCreationPerVolumeRateExceeded",
            "The maximum per volume CreateSnapshot request rate has been exceeded. "
            "Use an increasing or variable sleep interval between requests.",
        )
    tags = tags_at_creation(params, "snapshot")["snapshot"]
    return snapshot_view(context, add_volume_snapshot(context, volume, params.get("Description", ""), tags))


def add_volume_snapshot(
    context: Context, volume: Volume, description: str, tags: dict[str, str]
) -> EmulatedSnapshot:
    """Add a pending snapshot of the present blocks of a volume."""
    return new_snapshot(
        context,
        volume.size_gib,
        seconds=_pending_seconds(CREATE_SECONDS, len(volume.blocks)),
        description=description,
        volume_id=volume.volume_id,
        lineage=volume.lineage,
        encrypted=volume.encrypted,
        kms_key=volume.kms_key,
        tags=tags,
        blocks=volume.blocks,
    )


def check_copy_limit(context: Context, wanted: int = 1) -> None:
    """Check that this region may receive more snapshot copies at once."""
    copies = (s for s in context.table("snapshots").values() if s.copied)
    if sum(s.state(context.clock) == "pending" for s in copies) + wanted > MAX_COPIES_IN_PROGRESS:
        text = f"The limit is {MAX_COPIES_IN_PROGRESS} for this destination region."
        raise ApiError("ResourceLimitExceeded", f"Too many snapshot copies in progress. {text}")


def add_snapshot_copy(
    context: Context,
    source: EmulatedSnapshot,
    chosen: Encryption,
    *,
    description: str,
    tags: dict[str, str],
    minutes: int | None = None,
) -> EmulatedSnapshot:
    """Add a pending copy of a snapshot, with the same blocks, to the region of the call."""
    seconds = _pending_seconds(COPY_SECONDS, len(source.blocks))
    if context.limits is not None:
        seconds = copy_seconds(minutes, source.stored_bytes() / GIB)
    return new_snapshot(
        context,
        source.size_gib,
        seconds=seconds,
        failure=chosen.failure,
        description=description,
        lineage=source.lineage,
        encrypted=chosen.encrypted,
        kms_key=chosen.key,
        tags=tags,
        blocks=source.blocks,
        copied=True,
        completion_minutes=minutes,
    )


@operation(
    # boto3 adds DestinationRegion and a presigned URL, which is not checked: the call itself is signed.
    "ec2",
    "CopySnapshot",
    "Description DestinationRegion Encrypted KmsKeyId PresignedUrl SourceRegion SourceSnapshotId",
    "TagSpecifications CompletionDurationMinutes",
)
def copy_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Start a copy of a snapshot in the region of the call."""
    if params.get("DestinationRegion", context.region) != context.region:
        raise invalid_value("The destination region must be the region that the request is sent to.")
    tags = tags_at_creation(params, "snapshot")["snapshot"]
    source = find_usable_snapshot(context, params["SourceSnapshotId"], region=params["SourceRegion"])
    minutes = params.get("CompletionDurationMinutes")
    check_completion_minutes(minutes)
    check_copy_limit(context)
    chosen = copy_encryption(context, params, source)
    snapshot = add_snapshot_copy(
        context, source, chosen, description=params.get("Description", ""), tags=tags, minutes=minutes
    )
    return {"SnapshotId": snapshot.snapshot_id} | tags_member(tags)


def copy_encryption(context: Context, params: Params, source: EmulatedSnapshot) -> Encryption:
    """Return the encryption of a copy that CopySnapshot or CopyImage makes of a snapshot."""
    return choose_encryption(
        context,
        wanted=params.get("Encrypted"),
        key=params.get("KmsKeyId"),
        source=source.encrypted,
        source_key=source.kms_key if source.region == context.region else "",
    )


def check_completion_minutes(minutes: int | None) -> None:
    """Check that a completion duration is a multiple of 15 minutes, up to 48 hours."""
    if minutes is not None and (minutes % 15 or not 15 <= minutes <= 2880):
        raise invalid_value(f"Value ({minutes}) for parameter completionDurationMinutes is invalid.")


def images_of_snapshot(context: Context, snapshot_id: str) -> list[str]:
    """Return the IDs of this account's images with this snapshot."""
    return [i.image_id for i in context.table("images").values() if snapshot_id in i.snapshot_ids()]


@operation("ec2", "DeleteSnapshot", "SnapshotId")
def delete_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Delete a snapshot that no image uses, even before it is completed.

    Assumption: only a completed snapshot can enter the Recycle Bin.
    """
    snapshot: EmulatedSnapshot = find_own(context, SNAPSHOT, params["SnapshotId"])
    users = images_of_snapshot(context, snapshot.snapshot_id)
    fresh = snapshot.released is not None and context.clock.age(snapshot.released) < RELEASE_SECONDS
    if users or fresh:
        by = f" by {users[0]}" if users else ""
        text = f"The snapshot {snapshot.snapshot_id} is currently in use{by}"
        raise ApiError("InvalidSnapshot.InUse", text)
    if is_locked(snapshot, context.clock):
        # Documented: it cannot be deleted; code and text are from memory.
        text = f"The snapshot {snapshot.snapshot_id} is locked and cannot be deleted."
        raise ApiError("OperationNotPermitted", text)
    completed = snapshot.state(context.clock) == "completed"
    delete_or_recycle(context, "snapshots", snapshot.snapshot_id, retainable=completed)
    return {}


# Permissions, block public access
#
# Sources: the reference pages of the operations; "Block public access for Amazon EBS snapshots".

SNAPSHOT_ATTRIBUTES = ("createVolumePermission", "productCodes")


@operation(
    "ec2",
    "ModifySnapshotAttribute",
    "Attribute CreateVolumePermission GroupNames OperationType SnapshotId UserIds",
)
def modify_snapshot_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Share a snapshot with accounts or with everybody, or stop sharing it."""
    snapshot: EmulatedSnapshot = find_own(context, SNAPSHOT, params["SnapshotId"])
    attribute_name(params.get("Attribute"), SNAPSHOT_ATTRIBUTES[:1], "SnapshotAttributeName")
    lists = {"UserIds": "UserId", "GroupNames": "Group"}
    added, removed = permission_changes(params, "CreateVolumePermission", lists)
    if not added and not removed:
        raise ApiError("InvalidParameterCombination", "No attributes specified.")
    if added:
        _check_not_archived(snapshot, context.clock)
    published = {"Group": "all"} in added and not snapshot.public
    if published and _public_access_block(context) != "unblocked":
        # The code is documented, the text is from memory.
        text = "You can't publicly share this snapshot because block public access for snapshots is enabled."
        raise ApiError("OperationNotPermitted", text)
    if published and snapshot.encrypted:
        # Documented: encrypted snapshots cannot be public; text from memory.
        text = f"The snapshot {snapshot.snapshot_id} is encrypted and cannot be shared publicly."
        raise ApiError("OperationNotPermitted", text)
    if added and snapshot.encrypted and is_managed_key(context, snapshot.kms_key):
        # Code and text: public transcripts, of Packer among others.
        raise ApiError("OperationNotPermitted", "Encrypted snapshots with EBS default key cannot be shared")
    for entry in removed:
        if "Group" in entry:
            snapshot.public = False
        elif entry.get("UserId") in snapshot.users:
            snapshot.users.remove(entry["UserId"])
    for entry in added:
        if "Group" in entry:
            snapshot.public = True
        elif entry["UserId"] not in snapshot.users:
            snapshot.users.append(entry["UserId"])
    return {}


@operation("ec2", "ResetSnapshotAttribute", "Attribute SnapshotId")
def reset_snapshot_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Make a snapshot private again."""
    attribute_name(params["Attribute"], SNAPSHOT_ATTRIBUTES[:1], "SnapshotAttributeName")
    snapshot: EmulatedSnapshot = find_own(context, SNAPSHOT, params["SnapshotId"])
    snapshot.users.clear()
    snapshot.public = False
    return {}


@operation("ec2", "DescribeSnapshotAttribute", "Attribute SnapshotId")
def describe_snapshot_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Return the accounts that a snapshot of this account is shared with."""
    attribute = attribute_name(params["Attribute"], SNAPSHOT_ATTRIBUTES, "SnapshotAttributeName")
    snapshot: EmulatedSnapshot = find_own(context, SNAPSHOT, params["SnapshotId"])
    answer: dict[str, Any] = {"SnapshotId": snapshot.snapshot_id}
    if attribute == "productCodes":
        return answer | {"ProductCodes": []}
    shared = snapshot.shared_with(context.clock)
    permissions = [{"Group": "all"} if one == "all" else {"UserId": one} for one in shared]
    return answer | {"CreateVolumePermissions": permissions}


def _public_access_block(context: Context) -> str:
    return str(context.table("ec2_settings").get("snapshot_block", "unblocked"))


@operation("ec2", "EnableSnapshotBlockPublicAccess", "State")
def enable_snapshot_block_public_access(context: Context, params: Params) -> dict[str, Any]:
    """Refuse to make snapshots public; ``block-all-sharing`` also hides public ones from other accounts."""
    check_one_of("state", params["State"], ("block-all-sharing", "block-new-sharing"))
    context.table("ec2_settings")["snapshot_block"] = params["State"]
    return {"State": params["State"]}


@operation("ec2", "DisableSnapshotBlockPublicAccess")
def disable_snapshot_block_public_access(context: Context, _params: Params) -> dict[str, Any]:
    """Allow snapshots to be made public."""
    context.table("ec2_settings")["snapshot_block"] = "unblocked"
    return {"State": "unblocked"}


@operation("ec2", "GetSnapshotBlockPublicAccessState")
def get_snapshot_block_public_access_state(context: Context, _params: Params) -> dict[str, Any]:
    """Return whether snapshots may be made public."""
    return {"State": _public_access_block(context), "ManagedBy": "account"}


# Locks
#
# Source: "Amazon EBS snapshot lock" of the EBS user guide. A lock in governance mode can be unlocked; one in
# compliance mode only during its cooling-off period.

LOCK_DAYS, COOL_OFF_HOURS = range(1, 36501), range(1, 73)


def _lock_state(lock: SnapshotLock, clock: Clock) -> str:
    """Return the ``LockState``: the mode, ``compliance-cooloff`` or ``expired``."""
    if clock.is_past(lock.expires, since=lock.created):
        return "expired"
    cooled_off = clock.is_past(lock.created + timedelta(hours=lock.cool_off), since=lock.created)
    return lock.mode if lock.mode != "compliance" or cooled_off else "compliance-cooloff"


def is_locked(snapshot: EmulatedSnapshot, clock: Clock) -> bool:
    """Return whether a lock prevents the deletion of a snapshot."""
    return snapshot.lock is not None and _lock_state(snapshot.lock, clock) != "expired"


def _lock_view(snapshot: EmulatedSnapshot, lock: SnapshotLock, clock: Clock) -> dict[str, Any]:
    view: dict[str, Any] = {
        "SnapshotId": snapshot.snapshot_id,
        "LockState": _lock_state(lock, clock),
        "LockDuration": max((lock.expires - lock.created).days, 1),
        "LockCreatedOn": lock.created,
        "LockDurationStartTime": lock.created,
        "LockExpiresOn": lock.expires,
    }
    ends = lock.created + timedelta(hours=lock.cool_off)
    return view | ({"CoolOffPeriod": lock.cool_off, "CoolOffPeriodExpiresOn": ends} if lock.cool_off else {})


@operation("ec2", "LockSnapshot", "CoolOffPeriod ExpirationDate LockDuration LockMode SnapshotId")
def lock_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Lock a snapshot for some days or until a date, or extend its lock."""
    snapshot: EmulatedSnapshot = find_own(context, SNAPSHOT, params["SnapshotId"])
    mode, cool_off = params["LockMode"], params.get("CoolOffPeriod") or 0
    check_one_of("lockMode", mode, ("compliance", "governance"))
    if cool_off and (mode != "compliance" or cool_off not in COOL_OFF_HOURS):
        raise invalid_value(f"Value ({cool_off}) for parameter coolOffPeriod is invalid.")  # text from memory
    now = context.clock.now()
    lock = SnapshotLock(mode, now, _lock_expiry(params, now), cool_off)
    before = snapshot.lock
    if before is not None and _lock_state(before, context.clock) == "compliance":
        if mode != "compliance" or cool_off or lock.expires < before.expires:
            # Documented: only an extension is possible; code and text are from memory.
            raise ApiError("OperationNotPermitted", "A lock in compliance mode can only be extended.")
        lock = SnapshotLock(mode, before.created, lock.expires, before.cool_off)
    snapshot.lock = lock
    return _lock_view(snapshot, lock, context.clock)


def _lock_expiry(params: Params, now: datetime) -> datetime:
    days, date = params.get("LockDuration"), params.get("ExpirationDate")
    if days is not None and date is not None:  # the code is from memory, as the texts here are
        text = "The parameters lockDuration and expirationDate cannot be used together."
        raise ApiError("InvalidParameterCombination", text)
    if days is not None:
        if days not in LOCK_DAYS:
            raise invalid_value(f"Value ({days}) for parameter lockDuration is invalid.")
        return now + timedelta(days=days)
    if date is None:
        text = "The request must contain the parameter lockDuration or expirationDate"
        raise ApiError("MissingParameter", text)
    if date <= now:
        raise invalid_value("The expiration date must be in the future.")
    return date  # type: ignore[no-any-return]


@operation("ec2", "UnlockSnapshot", "SnapshotId")
def unlock_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Unlock a snapshot, except in compliance mode after the cooling-off period."""
    snapshot: EmulatedSnapshot = find_own(context, SNAPSHOT, params["SnapshotId"])
    if snapshot.lock is not None and _lock_state(snapshot.lock, context.clock) == "compliance":
        # Documented: this is refused; code and text are from memory.
        text = f"The snapshot {snapshot.snapshot_id} is locked in compliance mode and cannot be unlocked."
        raise ApiError("OperationNotPermitted", text)
    snapshot.lock = None
    return {"SnapshotId": snapshot.snapshot_id}


@operation("ec2", "DescribeLockedSnapshots", "Filters MaxResults NextToken SnapshotIds")
def describe_locked_snapshots(context: Context, params: Params) -> dict[str, Any]:
    """Return this account's snapshots that are or were locked, with their locks."""
    snapshots = find_own_or_all(context, SNAPSHOT, params.get("SnapshotIds"))
    locked = [_lock_view(s, s.lock, context.clock) | {"OwnerId": s.owner} for s in snapshots if s.lock]
    return describe(context, params, locked, filters={"lock-state": "LockState"}, key="SnapshotId")


# The archive tier
#
# Source: "Archive Amazon EBS snapshots" of the EBS user guide. Only a completed snapshot that no enabled AMI
# uses can be archived. It cannot be used from the end of the archival until it is restored; a temporary
# restore expires. An archived snapshot is no longer shared. Error codes and texts are from memory.

ARCHIVE_SECONDS, RESTORE_SECONDS = 3600.0, 4 * 3600.0
"""Guesses. The archival in an example of the AWS CLI took 49 minutes; a restore takes up to 72 hours."""

RESTORE_DAYS = range(1, 181)


@operation("ec2", "ModifySnapshotTier", "SnapshotId StorageTier")
def modify_snapshot_tier(context: Context, params: Params) -> dict[str, Any]:
    """Start to archive a snapshot."""
    snapshot: EmulatedSnapshot = find_own(context, SNAPSHOT, params["SnapshotId"])
    check_one_of("storageTier", params.get("StorageTier", "archive"), ("archive",))
    state, last, clock = snapshot.state(context.clock), snapshot.tiering, context.clock
    if last is not None and not last.completed(clock):
        state = f"in the tiering operation {last.operation}-in-progress"
    elif last is not None and last.operation != "permanent-restore":
        state = "archived"  # even while it is temporarily restored
    if state != "completed":
        raise ApiError("IncorrectState", f"The snapshot {snapshot.snapshot_id} is {state}.")
    for image in context.table("images").values():
        if snapshot.snapshot_id in image.snapshot_ids() and not image.disabled:
            text = f"The snapshot {snapshot.snapshot_id} is currently in use by {image.image_id}"
            raise ApiError("InvalidSnapshot.InUse", text)
    now = clock.now()
    snapshot.tiering = Tiering("archival", now, ARCHIVE_SECONDS)
    return {"SnapshotId": snapshot.snapshot_id, "TieringStartTime": now}


@operation("ec2", "RestoreSnapshotTier", "PermanentRestore SnapshotId TemporaryRestoreDays")
def restore_snapshot_tier(context: Context, params: Params) -> dict[str, Any]:
    """Restore a snapshot from the archive tier, permanently or for some days, by default one.

    For a temporarily restored snapshot, this sets a new period, from now, or makes the restore permanent.
    """
    snapshot: EmulatedSnapshot = find_own(context, SNAPSHOT, params["SnapshotId"])
    permanent = bool(params.get("PermanentRestore"))
    if permanent and "TemporaryRestoreDays" in params:
        text = "The parameters permanentRestore and temporaryRestoreDays cannot be used together."
        raise ApiError("InvalidParameterCombination", text)
    days = params.get("TemporaryRestoreDays", 1)
    if days not in RESTORE_DAYS:
        raise invalid_value(f"Value ({days}) for parameter temporaryRestoreDays is invalid.")
    clock, last = context.clock, snapshot.tiering
    if last is None or not last.completed(clock) or last.operation == "permanent-restore":
        raise ApiError("IncorrectState", f"The snapshot {snapshot.snapshot_id} is not archived.")
    archived = last.completed_at(clock) if last.operation == "archival" else last.archived
    seconds = 0.0 if last.tier(clock) == "standard" else RESTORE_SECONDS
    snapshot.users.clear()  # archiving ended its sharing
    snapshot.public = False
    kind, days = ("permanent-restore", 0) if permanent else ("temporary-restore", days)
    now = clock.now()
    snapshot.tiering = Tiering(kind, now, seconds, days, archived)
    answer = {"SnapshotId": snapshot.snapshot_id, "RestoreStartTime": now, "IsPermanentRestore": permanent}
    return answer | given(RestoreDuration=days)


@operation("ec2", "DescribeSnapshotTierStatus", "Filters MaxResults NextToken")
def describe_snapshot_tier_status(context: Context, params: Params) -> dict[str, Any]:
    """Return the tiers of this account's snapshots, with the last archival or restore of each."""
    found = [_tier_status(snapshot, context.clock) for snapshot in context.table("snapshots").values()]
    filters = by_name("snapshot-id volume-id") | {"last-tiering-operation": "LastTieringOperationStatus"}
    return describe(context, params, found, filters=filters, key="SnapshotId")


def _tier_status(snapshot: EmulatedSnapshot, clock: Clock) -> dict[str, Any]:
    view: dict[str, Any] = {
        "SnapshotId": snapshot.snapshot_id,
        "VolumeId": snapshot.volume_id,
        "Status": snapshot.state(clock),
        "OwnerId": snapshot.owner,
        "Tags": tag_list(snapshot.tags),
        **_tier_view(snapshot, clock),
    }
    last = snapshot.tiering
    if last is None:
        return view
    done = last.completed(clock)
    archived = last.completed_at(clock) if last.operation == "archival" and done else last.archived
    view |= {
        "LastTieringStartTime": last.started,
        "LastTieringProgress": 100 if done else int(99 * clock.age(last.started) / last.seconds),
        "LastTieringOperationStatus": f"{last.operation}-{'completed' if done else 'in-progress'}",
    }
    return view | given(ArchivalCompleteTime=archived)


def _tier_view(snapshot: EmulatedSnapshot, clock: Clock) -> dict[str, Any]:
    """Return the tier for DescribeSnapshots. A temporarily restored snapshot is ``standard``."""
    last = snapshot.tiering
    shown: dict[str, Any] = {"StorageTier": snapshot.tier(clock)}
    if last is not None and last.operation == "temporary-restore" and last.restored(clock):
        shown["RestoreExpiryTime"] = last.completed_at(clock) + timedelta(days=last.days)
    return shown


def _check_not_archived(snapshot: EmulatedSnapshot, clock: Clock) -> None:
    if snapshot.tier(clock) == "archive":
        raise ApiError("IncorrectState", f"The snapshot {snapshot.snapshot_id} is archived.")


def volume_view(context: Context, volume: Volume) -> dict[str, Any]:
    """Return a volume as DescribeVolumes shows it."""
    attachment = {
        "VolumeId": volume.volume_id,
        "InstanceId": volume.instance_id,
        "Device": volume.device,
        "State": "attached",
        "AttachTime": volume.attached,
        "DeleteOnTermination": volume.delete_on_termination,
    }
    view: dict[str, Any] = {
        "VolumeId": volume.volume_id,
        "Size": volume.size_gib,
        "SnapshotId": volume.snapshot_id,
        "AvailabilityZone": volume.zone,
        "State": volume.state(context.clock),
        "CreateTime": volume.created,
        "VolumeType": volume.volume_type,
        "Encrypted": volume.encrypted,
        "MultiAttachEnabled": False,
        "Attachments": [attachment] if volume.instance_id else [],
    }
    more = given(Iops=volume.iops, Throughput=volume.throughput, KmsKeyId=volume.kms_key)
    return view | more | tags_member(volume.tags)


def volumes_of(context: Context, instance: EmulatedInstance) -> list[Volume]:
    """Return the attached volumes of an instance."""
    return [one for one in context.table("volumes").values() if one.instance_id == instance.instance_id]


VOLUME_FILTERS: Filters = by_name(
    "availability-zone create-time encrypted multi-attach-enabled size snapshot-id volume-id volume-type"
) | {
    "attachment.attach-time": "Attachments.AttachTime",
    "attachment.delete-on-termination": "Attachments.DeleteOnTermination",
    "attachment.device": "Attachments.Device",
    "attachment.instance-id": "Attachments.InstanceId",
    "attachment.status": "Attachments.State",
    "fast-restored": lambda _volume: [False],
    "status": "State",
}


# Source: "EbsBlockDevice" of the API reference (sizes, IOPS and throughput by volume type).

SIZES = {
    "standard": (1, 1024),
    "gp2": (1, 16384),
    "gp3": (1, 65536),
    "io1": (4, 16384),
    "io2": (4, 65536),
    "st1": (125, 16384),
    "sc1": (125, 16384),
}
"""Smallest and largest size in GiB by volume type."""

IOPS = {"gp3": (3000, 80000), "io1": (100, 64000), "io2": (100, 256000)}
THROUGHPUT = {"gp3": (125, 2000)}


def check_volume_type(kind: str, size: int, iops: int | None, throughput: int | None) -> None:
    """Check size, IOPS and throughput of a volume type."""
    check_one_of("volumeType", kind, SIZES)
    smallest, largest = SIZES[kind]
    if not smallest <= size <= largest:
        text = f"Volume of {size}GiB is invalid for volume type {kind}: between {smallest} and {largest}."
        raise invalid_value(text)  # text from memory
    if kind in ("io1", "io2") and iops is None:
        raise ApiError("MissingParameter", f"The parameter iops must be specified for {kind} volumes.")
    for name, value, limits, text in (
        ("iops", iops, IOPS, "Volume iops of"),
        ("throughput", throughput, THROUGHPUT, "Throughput of"),
    ):
        if value is not None and kind not in limits:
            unsupported = f"The parameter {name} is not supported for {kind} volumes."
            raise ApiError("InvalidParameterCombination", unsupported)
        if value is not None and not limits[kind][0] <= value <= limits[kind][1]:
            raise invalid_value(f"{text} {value} is not between {limits[kind][0]} and {limits[kind][1]}.")


def check_volume_size(size: int, snapshot_id: str, snapshot_gib: int) -> None:
    """Check that a volume is at least as large as its snapshot."""
    if size < snapshot_gib:
        text = f"Volume of size {size}GB is smaller than snapshot '{snapshot_id}'"
        raise ApiError("InvalidBlockDeviceMapping", f"{text}, expect size >= {snapshot_gib}GB")


def add_volume(
    context: Context, ebs: Params, zone: str, tags: dict[str, str], *, through_image: bool = False
) -> Volume:
    """Create a volume of an ``Ebs`` structure or a CreateVolume request.

    With `through_image`, its snapshot is that of a launched image, and need not be shared with the account.
    """
    size, snapshot = ebs.get("VolumeSize"), None
    if ebs.get("SnapshotId"):
        snapshot = find_usable_snapshot(context, ebs["SnapshotId"], shared=through_image)
        size = snapshot.size_gib if size is None else size
        check_volume_size(size, snapshot.snapshot_id, snapshot.size_gib)
    if size is None:
        raise missing_parameter("size/snapshot")
    kind = ebs.get("VolumeType", "gp2")
    check_volume_type(kind, size, ebs.get("Iops"), ebs.get("Throughput"))
    encrypted = snapshot is not None and snapshot.encrypted
    chosen = choose_encryption(
        context,
        wanted=encrypted or ebs.get("Encrypted"),
        key=ebs.get("KmsKeyId"),
        source=encrypted,
        source_key=snapshot.kms_key if snapshot is not None else "",
    )
    if chosen.failure:
        raise key_not_accessible(chosen.key)
    volume_id, iops = new_id("vol"), {"gp2": min(max(100, 3 * size), 16000), "gp3": 3000}
    volume = Volume(
        volume_id=volume_id,
        size_gib=size,
        zone=zone,
        created=context.clock.now(),
        volume_type=kind,
        iops=ebs.get("Iops") or iops.get(kind),
        throughput=ebs.get("Throughput") or (125 if kind == "gp3" else None),
        snapshot_id=snapshot.snapshot_id if snapshot is not None else "",
        lineage=snapshot.lineage if snapshot is not None else volume_id,
        encrypted=chosen.encrypted,
        kms_key=chosen.key,
        tags=tags,
        blocks=snapshot.blocks if snapshot is not None else {},
    )
    context.table("volumes")[volume_id] = volume
    return volume


@operation(
    "ec2",
    "CreateVolume",
    "AvailabilityZone ClientToken Encrypted Iops KmsKeyId Size SnapshotId TagSpecifications Throughput",
    "VolumeType",
)
def create_volume(context: Context, params: Params) -> dict[str, Any]:
    """Create an empty volume, or one with the blocks of a snapshot."""
    earlier = find_token_result(context, params)
    if earlier in context.table("volumes"):
        return volume_view(context, context.table("volumes")[earlier])
    zone = params.get("AvailabilityZone")
    if not zone:
        raise missing_parameter("AvailabilityZone")
    check_zone(context, zone)
    tags = tags_at_creation(params, "volume")["volume"]
    ebs = dict(params) | ({"VolumeSize": params["Size"]} if "Size" in params else {})
    volume = add_volume(context, ebs, zone, tags)
    record_token_result(context, params, volume.volume_id)
    return volume_view(context, volume)


@operation("ec2", "DescribeVolumes", "Filters MaxResults NextToken VolumeIds")
def describe_volumes(context: Context, params: Params) -> dict[str, Any]:
    """Return the account's volumes in this region."""
    volumes = find_own_or_all(context, VOLUME, params.get("VolumeIds"))
    return describe(context, params, volumes, volume_view, filters=VOLUME_FILTERS, key="volume_id")


@operation("ec2", "DeleteVolume", "VolumeId")
def delete_volume(context: Context, params: Params) -> dict[str, Any]:
    """Delete a volume that is not attached."""
    volume: Volume = find_own(context, VOLUME, params["VolumeId"])
    if volume.instance_id:
        text = f"Volume {volume.volume_id} is currently attached to {volume.instance_id}"
        raise ApiError("VolumeInUse", text)
    del context.table("volumes")[volume.volume_id]
    return {}
