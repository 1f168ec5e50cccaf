"""DescribeSnapshots, CreateSnapshot, CopySnapshot and DeleteSnapshot.

Sources: the reference pages of the four operations; quotas of "Amazon EBS quotas".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import encryption, ids, imports, snapshot_locks, snapshot_tiers
from vmsnix_ops.sandbox.ec2.filters import Reader, one, page, select
from vmsnix_ops.sandbox.ec2.state import Snapshot
from vmsnix_ops.sandbox.ec2.tags import at_creation, tag_list

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Clock, Context

CREATE_SECONDS, COPY_SECONDS, SECONDS_PER_STORED_GIB = 20.0, 40.0, 15.0
"""How long a snapshot stays pending; guesses of the right size, AWS promises nothing."""

COPIES_IN_FLIGHT = 20
"""Concurrent snapshot copies to one destination region (documented quota)."""

VOLUME_RATE_SECONDS = 15.0
"""One snapshot of a volume per so many seconds (documented with SnapshotCreationPerVolumeRateExceeded)."""

RELEASE_SECONDS = 1.0
"""A snapshot counts as in use for a moment after its image was deregistered (seen by public tools)."""


def snapshot_view(snapshot: Snapshot, clock: Clock) -> dict[str, Any]:
    """Return a snapshot as DescribeSnapshots shows it."""
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
        **snapshot_tiers.view(snapshot),
    }
    if state == "completed":
        view["CompletionTime"] = snapshot.completed_at(clock)
        view["FullSnapshotSizeInBytes"] = snapshot.stored_bytes()
    if state == "error" and snapshot.failure:
        view["StateMessage"] = snapshot.failure
    if snapshot.kms_key:
        view["KmsKeyId"] = snapshot.kms_key
    if snapshot.copied:
        view["TransferType"] = _transfer(snapshot)
    if snapshot.completion_minutes:
        view["CompletionDurationMinutes"] = snapshot.completion_minutes
    if snapshot.tags:
        view["Tags"] = tag_list(snapshot.tags)
    return view


def _transfer(snapshot: Snapshot) -> str:
    return "time-based" if snapshot.completion_minutes else "standard"


def _readers(clock: Clock) -> dict[str, Reader]:
    return {
        "description": lambda s: [s.description],
        "encrypted": lambda s: [s.encrypted],
        "owner-alias": lambda _s: [],  # only snapshots of AWS itself have one
        "owner-id": lambda s: [s.owner],
        "progress": lambda s: [f"{s.progress(clock)}%"],
        "snapshot-id": lambda s: [s.snapshot_id],
        "start-time": lambda s: [s.started.isoformat(timespec="milliseconds").replace("+00:00", "Z")],
        "status": lambda s: [s.state(clock)],
        "storage-tier": lambda s: [snapshot_tiers.view(s)["StorageTier"]],
        "transfer-type": lambda s: one(_transfer(s) if s.copied else None),
        "volume-id": lambda s: [s.volume_id],
        "volume-size": lambda s: [s.size_gib],
    }


def _may_see(snapshot: Snapshot, context: Context, owners: list[str], restorable: list[str]) -> bool:
    if owners and snapshot.owner not in [context.account if o == "self" else o for o in owners]:
        return False
    for who in restorable:
        if who == "all" and snapshot.public:
            return True
        account = context.account if who == "self" else who
        if account in snapshot.users or account == snapshot.owner:
            return snapshot.readable_by(context.account)
    return not restorable and snapshot.readable_by(context.account)


@operation(
    "ec2",
    "DescribeSnapshots",
    honours=("Filters", "MaxResults", "NextToken", "OwnerIds", "RestorableByUserIds", "SnapshotIds"),
    locks=False,
)
def describe_snapshots(context: Context, params: Params) -> dict[str, Any]:
    """Return snapshots that this account owns or may use."""
    imports.settle(context)
    with context.lock:
        candidates = ids.everywhere(context, ids.SNAPSHOT)
        asked = params.get("SnapshotIds") or []
        if asked:
            visible = {s.snapshot_id: s for s in candidates if s.readable_by(context.account)}
            for snapshot_id in asked:
                ids.check_id(ids.SNAPSHOT, snapshot_id)
                if snapshot_id not in visible:
                    raise ids.not_found(ids.SNAPSHOT, snapshot_id)
            candidates = [visible[snapshot_id] for snapshot_id in dict.fromkeys(asked)]
        owners, restorable = params.get("OwnerIds") or [], params.get("RestorableByUserIds") or []
        candidates = [s for s in candidates if _may_see(s, context, owners, restorable)]
        kept = select(candidates, params, _readers(context.clock))
        shown, token = page(kept, params, lambda s: s.snapshot_id, smallest=5, not_with="SnapshotIds")
        answer: dict[str, Any] = {"Snapshots": [snapshot_view(s, context.clock) for s in shown]}
    return answer | ({"NextToken": token} if token else {})


def usable(
    context: Context, snapshot_id: str, *, region: str | None = None, shared: bool = False
) -> Snapshot:
    """Return a completed snapshot that this account may read, or use by way of a `shared` image.

    Raises
    ------
    AwsError
        It is unknown here, belongs to others who did not share it, or is not completed.
    """
    snapshot: Snapshot | None = ids.find_anywhere(context, ids.SNAPSHOT, snapshot_id, region=region)
    if snapshot is None or not (shared or snapshot.readable_by(context.account)):
        raise ids.not_found(ids.SNAPSHOT, snapshot_id)
    state = snapshot.state(context.clock)
    if state != "completed":
        raise AwsError("IncorrectState", f"Snapshot is in invalid state - {state}")
    snapshot_tiers.check_not_archived(snapshot)
    return snapshot


def pending_seconds(base: float, block_count: int) -> float:
    """Return how long a snapshot of so many stored blocks stays pending."""
    return base + block_count / 2048 * SECONDS_PER_STORED_GIB


@operation("ec2", "CreateSnapshot", honours=("Description", "VolumeId", "TagSpecifications"))
def create_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Begin a snapshot of a volume's blocks as they are now."""
    volume = ids.find_own(context, ids.VOLUME, params["VolumeId"])
    table, clock = context.table("snapshots"), context.clock
    if any(
        s.volume_id == volume.volume_id and clock.age(s.started) < VOLUME_RATE_SECONDS for s in table.values()
    ):
        raise AwsError(
            "SnapshotCreationPerVolumeRateExceeded",
            "The maximum per volume CreateSnapshot request rate has been exceeded. "
            "Use an increasing or variable sleep interval between requests.",
        )
    now = clock.now()
    snapshot = Snapshot(
        snapshot_id=ids.new_id("snap"),
        owner=context.account,
        region=context.region,
        size_gib=volume.size_gib,
        started=now,
        since=now,
        seconds=pending_seconds(CREATE_SECONDS, len(volume.blocks)),
        description=params.get("Description", ""),
        volume_id=volume.volume_id,
        lineage=volume.lineage,
        encrypted=volume.encrypted,
        kms_key=volume.kms_key,
        tags=at_creation(params, "snapshot")["snapshot"],
        blocks=volume.blocks,
    )
    table[snapshot.snapshot_id] = snapshot
    return snapshot_view(snapshot, clock)


def check_copy_limit(context: Context, wanted: int = 1) -> None:
    """Refuse when too many snapshot copies to this region are in flight."""
    copies = [
        s for s in context.table("snapshots").values() if s.copied and s.state(context.clock) == "pending"
    ]
    if len(copies) + wanted > COPIES_IN_FLIGHT:
        raise AwsError(
            "ResourceLimitExceeded",
            f"Too many snapshot copies in progress. The limit is {COPIES_IN_FLIGHT} for this "
            "destination region.",
        )


def copy_of(
    context: Context,
    source: Snapshot,
    chosen: encryption.Encryption,
    *,
    description: str,
    tags: dict[str, str],
    minutes: int | None = None,
) -> Snapshot:
    """Add a pending copy of a snapshot to the caller's region and return it; it shares the blocks."""
    now = context.clock.now()
    snapshot = Snapshot(
        snapshot_id=ids.new_id("snap"),
        owner=context.account,
        region=context.region,
        size_gib=source.size_gib,
        started=now,
        since=now,
        seconds=pending_seconds(COPY_SECONDS, len(source.blocks)),
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
    context.table("snapshots")[snapshot.snapshot_id] = snapshot
    return snapshot


@operation(
    "ec2",
    "CopySnapshot",
    # boto3 adds DestinationRegion and a presigned URL by itself; the call is authenticated already.
    honours=(
        "Description",
        "DestinationRegion",
        "Encrypted",
        "KmsKeyId",
        "PresignedUrl",
        "SourceRegion",
        "SourceSnapshotId",
        "TagSpecifications",
        "CompletionDurationMinutes",
    ),
)
def copy_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Begin a copy of a snapshot in the region that is asked."""
    if params.get("DestinationRegion", context.region) != context.region:
        text = "The destination region must be the region that the request is sent to."
        raise AwsError("InvalidParameterValue", text)
    tags = at_creation(params, "snapshot")["snapshot"]
    source = usable(context, params["SourceSnapshotId"], region=params["SourceRegion"])
    minutes = params.get("CompletionDurationMinutes")
    check_minutes(minutes)
    check_copy_limit(context)
    keep = source.kms_key if source.region == context.region else ""
    chosen = encryption.choose(
        context, wanted=params.get("Encrypted"), key=params.get("KmsKeyId"), source=source.encrypted, old=keep
    )
    snapshot = copy_of(
        context, source, chosen, description=params.get("Description", ""), tags=tags, minutes=minutes
    )
    return {"SnapshotId": snapshot.snapshot_id} | ({"Tags": tag_list(tags)} if tags else {})


def check_minutes(minutes: int | None) -> None:
    """Refuse a completion duration that is not in steps of 15 minutes up to 48 hours."""
    if minutes is not None and (minutes % 15 or not 15 <= minutes <= 2880):
        text = f"Value ({minutes}) for parameter completionDurationMinutes is invalid."
        raise AwsError("InvalidParameterValue", text)


def using_images(context: Context, snapshot_id: str) -> list[str]:
    """Return the images of this account and region that start from a snapshot."""
    images = context.table("images").values()
    return [image.image_id for image in images if snapshot_id in image.snapshot_ids()]


@operation("ec2", "DeleteSnapshot", honours=("SnapshotId",))
def delete_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Delete a snapshot that no image needs; a pending upload may be deleted too."""
    snapshot: Snapshot = ids.find_own(context, ids.SNAPSHOT, params["SnapshotId"])
    users = using_images(context, snapshot.snapshot_id)
    fresh = snapshot.released is not None and context.clock.age(snapshot.released) < RELEASE_SECONDS
    if users or fresh:
        by = f" by {users[0]}" if users else ""
        text = f"The snapshot {snapshot.snapshot_id} is currently in use{by}"
        raise AwsError("InvalidSnapshot.InUse", text)
    snapshot_locks.check_unlocked(snapshot, context.clock)
    del context.table("snapshots")[snapshot.snapshot_id]
    return {}
