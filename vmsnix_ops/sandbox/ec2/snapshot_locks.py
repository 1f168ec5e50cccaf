"""Locked snapshots: LockSnapshot, UnlockSnapshot, DescribeLockedSnapshots.

Sources: the reference pages of the three operations; "Amazon EBS snapshot lock" of the EBS user guide. A
governance lock ends when somebody unlocks it; one of compliance only while its cooling-off period runs.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import checks, ids
from vmsnix_ops.sandbox.ec2.filters import page, select
from vmsnix_ops.sandbox.ec2.state import Lock, Snapshot

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Clock, Context

DAYS, HOURS = range(1, 36501), range(1, 73)


def state(lock: Lock, clock: Clock) -> str:
    """Return the ``LockState``: the mode, ``compliance-cooloff`` or ``expired``."""
    if clock.passed(lock.expires, since=lock.created):
        return "expired"
    if lock.mode == "compliance" and lock.cool_off and not _cooled_off(lock, clock):
        return "compliance-cooloff"
    return lock.mode


def locked(snapshot: Snapshot, clock: Clock) -> bool:
    """Tell whether a snapshot cannot be deleted."""
    return snapshot.lock is not None and state(snapshot.lock, clock) != "expired"


def check_unlocked(snapshot: Snapshot, clock: Clock) -> None:
    """Refuse to delete a snapshot while it is locked."""
    if locked(snapshot, clock):
        # Documented that it is refused, whoever asks; code and text are from memory.
        text = f"The snapshot {snapshot.snapshot_id} is locked and cannot be deleted."
        raise AwsError("OperationNotPermitted", text)


def _cooled_off(lock: Lock, clock: Clock) -> bool:
    return clock.passed(lock.created + timedelta(hours=lock.cool_off), since=lock.created)


def _view(snapshot: Snapshot, lock: Lock, clock: Clock) -> dict[str, Any]:
    view: dict[str, Any] = {
        "SnapshotId": snapshot.snapshot_id,
        "LockState": state(lock, clock),
        "LockDuration": max((lock.expires - lock.created).days, 1),
        "LockCreatedOn": lock.created,
        "LockDurationStartTime": lock.created,
        "LockExpiresOn": lock.expires,
    }
    if lock.cool_off:
        view["CoolOffPeriod"] = lock.cool_off
        view["CoolOffPeriodExpiresOn"] = lock.created + timedelta(hours=lock.cool_off)
    return view


@operation(
    "ec2",
    "LockSnapshot",
    honours=("CoolOffPeriod", "ExpirationDate", "LockDuration", "LockMode", "SnapshotId"),
)
def lock_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Lock a snapshot for some days or until a date, or lock it for longer."""
    snapshot: Snapshot = ids.find_own(context, ids.SNAPSHOT, params["SnapshotId"])
    mode, cool_off = params["LockMode"], params.get("CoolOffPeriod") or 0
    checks.one_of("lockMode", mode, ("compliance", "governance"))
    if cool_off and (mode != "compliance" or cool_off not in HOURS):
        text = f"Value ({cool_off}) for parameter coolOffPeriod is invalid."  # text from memory
        raise AwsError("InvalidParameterValue", text)
    now = context.clock.now()
    lock = Lock(mode, now, _expiry(params, now), cool_off)
    before = snapshot.lock
    if before is not None and state(before, context.clock) == "compliance":
        if mode != "compliance" or cool_off or lock.expires < before.expires:
            # Documented: it can only be locked for longer; code and text are from memory.
            raise AwsError("OperationNotPermitted", "A lock in compliance mode can only be extended.")
        lock = Lock(mode, before.created, lock.expires, before.cool_off)
    snapshot.lock = lock
    return _view(snapshot, lock, context.clock)


def _expiry(params: Params, now: datetime) -> datetime:
    days: int | None = params.get("LockDuration")
    date: datetime | None = params.get("ExpirationDate")
    if days is not None and date is not None:  # the code is from memory, as the texts here are
        text = "The parameters lockDuration and expirationDate cannot be used together."
        raise AwsError("InvalidParameterCombination", text)
    if days is not None:
        if days not in DAYS:
            raise AwsError("InvalidParameterValue", f"Value ({days}) for parameter lockDuration is invalid.")
        return now + timedelta(days=days)
    if date is None:
        text = "The request must contain the parameter lockDuration or expirationDate"
        raise AwsError("MissingParameter", text)
    if date <= now:
        raise AwsError("InvalidParameterValue", "The expiration date must be in the future.")
    return date


@operation("ec2", "UnlockSnapshot", honours=("SnapshotId",))
def unlock_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """End a lock, unless it is one of compliance whose cooling-off period is over."""
    snapshot: Snapshot = ids.find_own(context, ids.SNAPSHOT, params["SnapshotId"])
    if snapshot.lock is not None and state(snapshot.lock, context.clock) == "compliance":
        # Documented that it is refused; code and text are from memory.
        text = f"The snapshot {snapshot.snapshot_id} is locked in compliance mode and cannot be unlocked."
        raise AwsError("OperationNotPermitted", text)
    snapshot.lock = None
    return {"SnapshotId": snapshot.snapshot_id}


@operation("ec2", "DescribeLockedSnapshots", honours=("Filters", "MaxResults", "NextToken", "SnapshotIds"))
def describe_locked_snapshots(context: Context, params: Params) -> dict[str, Any]:
    """Return this account's snapshots that are or were locked, with what is known of their locks."""
    asked = params.get("SnapshotIds") or []
    if asked:
        found = [ids.find_own(context, ids.SNAPSHOT, name) for name in dict.fromkeys(asked)]
    else:
        found = list(context.table("snapshots").values())
    locked = [one for one in found if one.lock is not None]
    readers = {"lock-state": lambda one: [state(one.lock, context.clock)]}
    kept = select(locked, params, readers, tags=False)
    shown, token = page(kept, params, lambda one: one.snapshot_id, smallest=5)
    views = [_view(one, one.lock, context.clock) | {"OwnerId": one.owner} for one in shown]
    return {"Snapshots": views} | ({"NextToken": token} if token else {})
