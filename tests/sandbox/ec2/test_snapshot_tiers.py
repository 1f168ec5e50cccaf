"""The archive tier of snapshots. Source: "Archive Amazon EBS snapshots" in the Amazon EBS User Guide."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.ec2.snapshots import ARCHIVE_SECONDS, RESTORE_SECONDS

DAY = 86400
FRIEND = "111122223333"
PERMISSION = {"Attribute": "createVolumePermission", "UserIds": [FRIEND]}


def status(aws: SandboxClients, snapshot_id: str) -> dict[str, Any]:
    filters = [{"Name": "snapshot-id", "Values": [snapshot_id]}]
    (found,) = aws.ec2.describe_snapshot_tier_status(Filters=filters)["SnapshotTierStatuses"]
    return dict(found)


def archived(aws: SandboxClients) -> str:
    """Return a snapshot in the archive tier."""
    snapshot_id = aws.snapshot()
    aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id, StorageTier="archive")
    aws.pass_time(ARCHIVE_SECONDS)
    return snapshot_id


def restored(aws: SandboxClients, days: int = 3) -> str:
    """Return a snapshot that is restored for some days."""
    snapshot_id = archived(aws)
    aws.ec2.restore_snapshot_tier(SnapshotId=snapshot_id, TemporaryRestoreDays=days)
    aws.pass_time(RESTORE_SECONDS)
    return snapshot_id


def make_volume(aws: SandboxClients, snapshot_id: str) -> None:
    aws.ec2.create_volume(SnapshotId=snapshot_id, AvailabilityZone="us-east-1a")


def test_archiving_takes_time_and_ends_the_use_of_a_snapshot(aws: SandboxClients) -> None:
    snapshot_id = aws.snapshot()
    shown = status(aws, snapshot_id)
    assert (shown["StorageTier"], "LastTieringStartTime" in shown) == ("standard", False)
    started = aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id)["TieringStartTime"]
    aws.pass_time(ARCHIVE_SECONDS / 2)
    shown = status(aws, snapshot_id)
    assert shown["LastTieringStartTime"] == started
    assert (shown["LastTieringOperationStatus"], shown["StorageTier"]) == ("archival-in-progress", "standard")
    assert 0 < shown["LastTieringProgress"] < 100
    make_volume(aws, snapshot_id)
    with refused("IncorrectState"):
        aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id)
    aws.pass_time(ARCHIVE_SECONDS / 2)
    shown = status(aws, snapshot_id)
    assert (shown["LastTieringOperationStatus"], shown["StorageTier"]) == ("archival-completed", "archive")
    assert (shown["Status"], shown["LastTieringProgress"]) == ("completed", 100)
    assert shown["ArchivalCompleteTime"] >= started
    found = aws.ec2.describe_snapshots(Filters=[{"Name": "storage-tier", "Values": ["archive"]}])
    assert [one["SnapshotId"] for one in found["Snapshots"]] == [snapshot_id]


def test_an_archived_snapshot_can_only_be_deleted_or_restored(aws: SandboxClients) -> None:
    snapshot_id = archived(aws)
    with refused("IncorrectState", "is archived"):
        make_volume(aws, snapshot_id)
    with refused("IncorrectState", "is archived"):
        aws.client("ec2", "eu-west-1").copy_snapshot(SourceSnapshotId=snapshot_id, SourceRegion="us-east-1")
    with refused("IncorrectState", "is archived"):
        aws.image(snapshot_id)
    with refused("IncorrectState", "is archived"):
        aws.ec2.modify_snapshot_attribute(SnapshotId=snapshot_id, OperationType="add", **PERMISSION)
    with refused("IncorrectState"):
        aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id)
    with refused("ValidationException", "is archived"):
        aws.ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    aws.ec2.create_tags(Resources=[snapshot_id], Tags=[{"Key": "a", "Value": "b"}])
    assert status(aws, snapshot_id)["Tags"] == [{"Key": "a", "Value": "b"}]
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)


def test_archiving_ends_the_sharing_of_a_snapshot(aws: SandboxClients) -> None:
    snapshot_id = aws.snapshot()
    friend = aws.sandbox.other_account(FRIEND).client("ec2")

    def seen() -> bool:
        found = friend.describe_snapshots(RestorableByUserIds=["self"])["Snapshots"]
        return snapshot_id in [one["SnapshotId"] for one in found]

    aws.ec2.modify_snapshot_attribute(SnapshotId=snapshot_id, OperationType="add", **PERMISSION)
    aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id)
    assert seen()
    aws.pass_time(ARCHIVE_SECONDS)
    assert not seen()
    aws.ec2.restore_snapshot_tier(SnapshotId=snapshot_id, PermanentRestore=True)
    aws.pass_time(RESTORE_SECONDS)
    assert not seen()
    shared = aws.ec2.describe_snapshot_attribute(SnapshotId=snapshot_id, Attribute="createVolumePermission")
    assert shared["CreateVolumePermissions"] == []


def test_a_permanent_restore_ends_the_archival(aws: SandboxClients) -> None:
    snapshot_id = archived(aws)
    answer = aws.ec2.restore_snapshot_tier(SnapshotId=snapshot_id, PermanentRestore=True)
    assert (answer["IsPermanentRestore"], "RestoreDuration" in answer) == (True, False)
    shown = status(aws, snapshot_id)
    assert (shown["LastTieringOperationStatus"], shown["StorageTier"]) == (
        "permanent-restore-in-progress",
        "archive",
    )
    with refused("IncorrectState"):
        make_volume(aws, snapshot_id)
    aws.pass_time(RESTORE_SECONDS)
    assert status(aws, snapshot_id)["LastTieringOperationStatus"] == "permanent-restore-completed"
    make_volume(aws, snapshot_id)
    with refused("IncorrectState", "is not archived"):
        aws.ec2.restore_snapshot_tier(SnapshotId=snapshot_id, PermanentRestore=True)
    aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id)


def test_a_temporary_restore_expires(aws: SandboxClients) -> None:
    snapshot_id = restored(aws, 3)
    shown = status(aws, snapshot_id)
    assert (shown["LastTieringOperationStatus"], shown["StorageTier"]) == (
        "temporary-restore-completed",
        "standard",
    )
    assert shown["RestoreExpiryTime"] - shown["LastTieringStartTime"] >= timedelta(days=3)
    assert aws.describe_snapshot(snapshot_id)["RestoreExpiryTime"]
    make_volume(aws, snapshot_id)
    with refused("IncorrectState", "is archived"):
        aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id)
    aws.pass_time(3 * DAY)
    shown = aws.describe_snapshot(snapshot_id)
    assert (shown["StorageTier"], "RestoreExpiryTime" in shown) == ("archive", False)
    with refused("IncorrectState"):
        make_volume(aws, snapshot_id)


def test_the_period_of_a_restore_can_be_changed(aws: SandboxClients) -> None:
    snapshot_id = restored(aws, 1)
    aws.ec2.restore_snapshot_tier(SnapshotId=snapshot_id, TemporaryRestoreDays=10)
    aws.pass_time(9 * DAY)
    make_volume(aws, snapshot_id)  # at once, and longer than the first period
    aws.ec2.restore_snapshot_tier(SnapshotId=snapshot_id, PermanentRestore=True)
    aws.pass_time(30 * DAY)
    assert aws.describe_snapshot(snapshot_id)["StorageTier"] == "standard"


def test_a_restore_is_for_one_day_by_default(aws: SandboxClients) -> None:
    answer = aws.ec2.restore_snapshot_tier(SnapshotId=archived(aws))
    assert (answer["RestoreDuration"], answer["IsPermanentRestore"]) == (1, False)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"TemporaryRestoreDays": 0}, "InvalidParameterValue"),
        ({"TemporaryRestoreDays": 181}, "InvalidParameterValue"),
        ({"TemporaryRestoreDays": 1, "PermanentRestore": True}, "InvalidParameterCombination"),
    ],
    ids=str,
)
def test_invalid_restores_are_refused(aws: SandboxClients, wrong: dict[str, Any], code: str) -> None:
    with refused(code):
        aws.ec2.restore_snapshot_tier(SnapshotId=archived(aws), **wrong)


def test_a_snapshot_of_an_enabled_image_is_not_archived(aws: SandboxClients) -> None:
    snapshot_id = aws.snapshot()
    image_id = aws.image(snapshot_id)
    with refused("InvalidSnapshot.InUse", image_id):
        aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id)
    aws.ec2.disable_image(ImageId=image_id)
    aws.ec2.modify_snapshot_tier(SnapshotId=snapshot_id)


def test_an_archived_snapshot_returns_archived_from_the_recycle_bin(aws: SandboxClients) -> None:
    period = {"RetentionPeriodValue": 7, "RetentionPeriodUnit": "DAYS"}
    aws.rbin.create_rule(RetentionPeriod=period, ResourceType="EBS_SNAPSHOT")
    aws.pass_time(3)
    snapshot_id = archived(aws)
    aws.ec2.delete_snapshot(SnapshotId=snapshot_id)
    aws.ec2.restore_snapshot_from_recycle_bin(SnapshotId=snapshot_id)
    assert aws.describe_snapshot(snapshot_id)["StorageTier"] == "archive"


def test_tiers_are_filtered_by_their_last_operation(aws: SandboxClients) -> None:
    first, second = archived(aws), restored(aws)
    for last, expected in (("archival-completed", first), ("temporary-restore-completed", second)):
        filters = [{"Name": "last-tiering-operation", "Values": [last]}]
        found = aws.ec2.describe_snapshot_tier_status(Filters=filters)["SnapshotTierStatuses"]
        assert [one["SnapshotId"] for one in found] == [expected]
