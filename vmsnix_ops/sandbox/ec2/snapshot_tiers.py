"""The archive tier of snapshots: ModifySnapshotTier and RestoreSnapshotTier.

Sources: the reference pages of the two operations; "Archive Amazon EBS snapshots" of the EBS user guide: only
completed snapshots that no enabled AMI uses, and a restore takes up to 72 hours. Here both happen at once.
Codes are documented; texts are from memory.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import checks, ids

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.state import Snapshot

DAYS = range(1, 181)


@operation("ec2", "ModifySnapshotTier", honours=("SnapshotId", "StorageTier"))
def modify_snapshot_tier(context: Context, params: Params) -> dict[str, Any]:
    """Archive a snapshot."""
    snapshot: Snapshot = ids.find_own(context, ids.SNAPSHOT, params["SnapshotId"])
    checks.one_of("storageTier", params.get("StorageTier", "archive"), ("archive",))
    state = snapshot.state(context.clock)
    if state != "completed" or snapshot.archived:
        state = "archived" if snapshot.archived else state
        raise AwsError("IncorrectState", f"The snapshot {snapshot.snapshot_id} is {state}.")
    for image in context.table("images").values():
        if snapshot.snapshot_id in image.snapshot_ids() and not image.disabled:
            text = f"The snapshot {snapshot.snapshot_id} is currently in use by {image.image_id}"
            raise AwsError("InvalidSnapshot.InUse", text)
    snapshot.archived, snapshot.restored_until = True, None
    return {"SnapshotId": snapshot.snapshot_id, "TieringStartTime": context.clock.now()}


@operation("ec2", "RestoreSnapshotTier", honours=("PermanentRestore", "SnapshotId", "TemporaryRestoreDays"))
def restore_snapshot_tier(context: Context, params: Params) -> dict[str, Any]:
    """Bring a snapshot back from the archive tier, for good or for some days."""
    snapshot: Snapshot = ids.find_own(context, ids.SNAPSHOT, params["SnapshotId"])
    days, permanent = params.get("TemporaryRestoreDays"), bool(params.get("PermanentRestore"))
    if permanent == (days is not None) or (days is not None and days not in DAYS):
        text = "Exactly one of permanentRestore and temporaryRestoreDays (1 to 180) must be given."
        raise AwsError("InvalidParameterCombination", text)
    if not snapshot.archived:
        raise AwsError("IncorrectState", f"The snapshot {snapshot.snapshot_id} is not archived.")
    now = context.clock.now()
    snapshot.archived = not permanent
    snapshot.restored_until = None if permanent else now + timedelta(days=days or 0)
    answer = {"SnapshotId": snapshot.snapshot_id, "RestoreStartTime": now, "IsPermanentRestore": permanent}
    return answer if permanent else {**answer, "RestoreDuration": days}


def view(snapshot: Snapshot) -> dict[str, Any]:
    """Return what DescribeSnapshots shows of the tier; one restored for some days is a standard one."""
    if snapshot.archived and snapshot.restored_until is None:
        return {"StorageTier": "archive"}
    shown: dict[str, Any] = {"StorageTier": "standard"}
    return shown | ({"RestoreExpiryTime": snapshot.restored_until} if snapshot.restored_until else {})


def check_not_archived(snapshot: Snapshot) -> None:
    """Refuse to use a snapshot that lies in the archive."""
    if snapshot.archived and snapshot.restored_until is None:
        raise AwsError("IncorrectState", f"The snapshot {snapshot.snapshot_id} is archived.")
