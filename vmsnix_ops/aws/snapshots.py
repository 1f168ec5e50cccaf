"""Find and describe snapshots, and check those of an AMI."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.error_codes import SNAPSHOT_NOT_FOUND
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import batches, read_pages
from vmsnix_ops.aws.session import calling, if_found, retry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import FilterTypeDef, SnapshotTypeDef

    from vmsnix_ops.aws.images import Ami

PAGE = 1000
IN_USE_SECONDS = 60.0
NO_VOLUME = "vol-ffffffff"  # of snapshots that were copied, imported or uploaded
_MADE_BY_AWS = ("Copied for ", "[Copied ", "Created by AWS-VMImport", "imported from")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as AWS describes it."""

    snapshot_id: str
    state: str  # "pending", "completed", "error", "recoverable" or "recovering"
    created_at: datetime  # when it was started, in UTC
    size_gib: int  # size of a volume made from it
    tags: Mapping[str, str]  # all tags, not only those of vmsnix
    # Full size of its data, the most that AWS bills; `None` if AWS does not report it.
    stored_bytes: int | None = None
    percent: float = 0.0
    message: str = ""  # AWS's StateMessage: why it is in `error`
    encrypted: bool = False
    kms_key: str = ""  # ARN of the key
    account: str = ""  # of its owner
    archived: bool = False  # whether it is in the archive tier, or restored from it temporarily
    volume_id: str = ""  # the volume that it was created from; empty for a copy, an import or a direct upload
    description: str = ""  # by AWS or by its creator
    tier: str = ""
    made_by_aws: bool = False  # whether AWS created it as a copy or import, by its fields or its description

    @property
    def usable(self) -> bool:
        """Whether an AMI can be registered from it."""
        return self.state == "completed" and not self.archived


def parse_snapshot(one: SnapshotTypeDef) -> Snapshot:
    """Return an entry of DescribeSnapshots as a `Snapshot`."""
    return Snapshot(
        snapshot_id=one["SnapshotId"],
        state=sys.intern(one.get("State", "")),
        created_at=one["StartTime"],
        size_gib=one.get("VolumeSize") or 0,
        tags=tagging.to_dict(one.get("Tags")),
        stored_bytes=one.get("FullSnapshotSizeInBytes"),
        percent=_percent(one.get("Progress")),
        message=one.get("StateMessage") or "",
        encrypted=bool(one.get("Encrypted")),
        kms_key=one.get("KmsKeyId") or "",
        account=sys.intern(one.get("OwnerId") or ""),
        archived=one.get("StorageTier") == "archive" or bool(one.get("RestoreExpiryTime")),
        volume_id="" if one.get("VolumeId") == NO_VOLUME else (one.get("VolumeId") or ""),
        description=one.get("Description") or "",
        tier=sys.intern(one.get("StorageTier") or ""),
        made_by_aws="TransferType" in one or (one.get("Description") or "").startswith(_MADE_BY_AWS),
    )


@needs("ec2:DescribeSnapshots")
def find_snapshots(ec2: EC2Client, snapshot_ids: Iterable[str]) -> dict[str, Snapshot]:
    """Return the snapshots that exist, by ID."""
    wanted, found = list(dict.fromkeys(snapshot_ids)), {}
    with calling("read snapshots"):
        for batch in batches(wanted):
            pages = ec2.get_paginator("describe_snapshots").paginate(
                Filters=[{"Name": "snapshot-id", "Values": batch}]
            )
            for one in (parse_snapshot(one) for page in pages for one in page["Snapshots"]):
                found[one.snapshot_id] = one
    return found


@needs("ec2:DescribeSnapshots")
def list_snapshots(ec2: EC2Client, snapshot_ids: Sequence[str] = ()) -> dict[str, Snapshot]:
    """Return the account's snapshots by ID, in any state: all, or those of the given IDs that exist."""
    chosen: list[list[FilterTypeDef]] = [
        [{"Name": "snapshot-id", "Values": batch}] for batch in batches(snapshot_ids)
    ]
    with calling(f"list the snapshots of {ec2.meta.region_name}"):
        return {
            one["SnapshotId"]: parse_snapshot(one)
            for which in chosen or [[]]
            for page in read_pages(ec2.describe_snapshots, OwnerIds=["self"], MaxResults=PAGE, Filters=which)
            for one in page["Snapshots"]
        }


@needs("ec2:DescribeSnapshots")
def list_public_snapshots(ec2: EC2Client) -> frozenset[str]:
    """Return the IDs of the account's public snapshots."""
    with calling(f"list the public snapshots of {ec2.meta.region_name}"):
        found = read_pages(
            ec2.describe_snapshots, OwnerIds=["self"], RestorableByUserIds=["all"], MaxResults=PAGE
        )
        return frozenset(one["SnapshotId"] for page in found for one in page["Snapshots"])


@needs("ec2:DescribeSnapshots")
def is_public(ec2: EC2Client, snapshot_id: str) -> bool:
    """Return whether everybody may use a snapshot; the EBS direct APIs do not read such a snapshot."""
    chosen: list[FilterTypeDef] = [{"Name": "snapshot-id", "Values": [snapshot_id]}]
    with calling(f"check whether {snapshot_id} is public"):
        found = read_pages(
            ec2.describe_snapshots, RestorableByUserIds=["all"], Filters=chosen, MaxResults=PAGE
        )
        return any(page["Snapshots"] for page in found)


@needs("ec2:DescribeLockedSnapshots")
def list_locks(ec2: EC2Client) -> dict[str, str]:
    """Return mode and end of the lock of each locked snapshot, which cannot be deleted, by snapshot ID."""
    locked: list[FilterTypeDef] = [
        {"Name": "lock-state", "Values": ["compliance", "compliance-cooloff", "governance"]}
    ]
    with calling(f"read which snapshots of {ec2.meta.region_name} are locked"):
        found = read_pages(ec2.describe_locked_snapshots, Filters=locked, MaxResults=PAGE)
        return {
            one["SnapshotId"]: f"{one['LockState']}, until {one['LockExpiresOn']:%Y-%m-%d}"
            for page in found
            for one in page["Snapshots"]
        }


def check_snapshots_of(ec2: EC2Client, ami: Ami) -> tuple[Snapshot, ...]:
    """Return the snapshots of an AMI, or refuse an AMI whose snapshots cannot be launched."""
    found = find_snapshots(ec2, ami.snapshot_ids)
    missing = [snapshot_id for snapshot_id in ami.snapshot_ids if snapshot_id not in found]
    if missing or not ami.snapshot_ids:
        raise errors.RegistrationError(
            f"The AMI {ami.ami_id} in {ami.region} is incomplete.",
            why=f"Its snapshot {', '.join(missing)} no longer exists." if missing else "It has no snapshot.",
            fix="It cannot be launched. Deregister it, then "
            f"{'promote' if ami.source_ami_id else 'publish'} the image again.",
        )
    bad = [one for one in found.values() if one.state != "completed"]
    if bad:
        raise errors.RegistrationError(
            f"The AMI {ami.ami_id} in {ami.region} is not ready.",
            why=f"Its snapshot {bad[0].snapshot_id} is {bad[0].state}. {bad[0].message}".strip(),
            fix="Wait until the snapshot is completed. If its state is error, publish the image again.",
            status_message=bad[0].message,
        )
    archived = [one for one in found.values() if one.archived]
    if archived:
        raise errors.RegistrationError(
            f"The AMI {ami.ami_id} in {ami.region} cannot be launched.",
            why=f"Its snapshot {archived[0].snapshot_id} is in the archive tier.",
            fix=f"Restore it: {restore_tier_command(archived[0].snapshot_id, ami.region)}",
        )
    return tuple(found.values())


def restore_tier_command(snapshot_id: str, region: str) -> str:
    """Return the command that restores a snapshot permanently from the archive tier."""
    return f"aws ec2 restore-snapshot-tier --snapshot-id {snapshot_id} --permanent-restore --region {region}"


def delete_command(snapshot_id: str, region: str) -> str:
    """Return the command that deletes a snapshot."""
    return f"aws ec2 delete-snapshot --snapshot-id {snapshot_id} --region {region}"


@needs("ec2:DescribeSnapshots")
def find_snapshots_by_digest(ec2: EC2Client, digest: str) -> list[Snapshot]:
    """Return the account's snapshots with the digest tag of an image, in any state, oldest first."""
    filters: list[FilterTypeDef] = [{"Name": f"tag:{tagging.DIGEST}", "Values": [digest]}]
    with calling("find snapshots of this image"):
        pages_found = read_pages(ec2.describe_snapshots, OwnerIds=["self"], Filters=filters)
        found = [parse_snapshot(one) for page in pages_found for one in page["Snapshots"]]
        return sorted(found, key=lambda one: (one.created_at, one.snapshot_id))


@needs("ec2:DescribeSnapshots")
def describe_snapshot(ec2: EC2Client, snapshot_id: str, *, seconds: float) -> Snapshot:
    """Return a snapshot; retry for some seconds while a new one is not visible yet."""
    with calling(f"read the snapshot {snapshot_id}"):
        call = partial(ec2.describe_snapshots, SnapshotIds=[snapshot_id])
        answer = retry(call, SNAPSHOT_NOT_FOUND, seconds=seconds)
    return parse_snapshot(answer["Snapshots"][0])


@needs("ec2:DeleteSnapshot")
def delete_snapshot(ec2: EC2Client, snapshot_id: str) -> None:
    """Delete a snapshot. Safe to run twice.

    After the deregistration of its AMI, AWS reports the snapshot as in use for some seconds; this is retried.
    """
    in_use = "currently in use"  # not by fast snapshot restore, which does not end by itself
    call = partial(ec2.delete_snapshot, SnapshotId=snapshot_id)
    with calling(f"delete the snapshot {snapshot_id}"):
        if_found(
            partial(retry, call, "InvalidSnapshot.InUse", containing=in_use, seconds=IN_USE_SECONDS),
            SNAPSHOT_NOT_FOUND,
        )


def _percent(text: object) -> float:
    digits = str(text or "0").rstrip("%")
    return float(digits) if digits.replace(".", "", 1).isdigit() else 0.0
