"""Fill the table ``amis`` from AWS."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vmsnix_ops.audit.sync import DEREGISTERED, sync
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

REGION = "us-east-1"


def latest():
    return history.amis(open_tables(load()))


def test_sync_fills_a_lost_table(plan):
    plan().apply()
    before = latest().iloc[0]
    shutil.rmtree(Path(load().history) / "amis")
    found = sync(regions=[REGION])
    assert (found.found, found.added, found.changed, found.deregistered) == (1, 1, 0, 0)
    after = latest().iloc[0]
    for column in (
        "ami_id",
        "name",
        "image",
        "version",
        "digest",
        "snapshot_id",
        "run_id",
        "size_gib",
        "root_device",
    ):
        assert after[column] == before[column], column
    assert after["source"] == "sync"


def test_a_second_sync_writes_nothing(plan):
    plan().apply()
    sync(regions=[REGION])
    again = sync(regions=[REGION])
    assert (again.added, again.changed, again.deregistered) == (0, 0, 0)


def test_a_changed_ami_gets_a_row(aws, plan):
    result = plan().apply()
    aws.client("ec2", REGION).create_tags(Resources=[result.ami_id], Tags=[{"Key": "owner", "Value": "ops"}])
    assert sync(regions=[REGION]).changed == 1
    assert "owner" in latest().iloc[0]["tags"]
    assert latest().iloc[0]["via"] == "import"


def test_every_changed_field_is_recorded(aws, plan):
    result, ec2 = plan().apply(), aws.client("ec2", REGION)
    moment = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(days=99)
    changes = [
        lambda: ec2.modify_image_attribute(ImageId=result.ami_id, Description={"Value": "mine"}),
        lambda: ec2.enable_image_deprecation(ImageId=result.ami_id, DeprecateAt=moment),
        lambda: ec2.enable_image_deregistration_protection(ImageId=result.ami_id),
    ]
    for change in changes:
        change()
        assert sync(regions=[REGION]).changed == 1
    assert sync(regions=[REGION]).changed == 0
    row = latest().iloc[0]
    found = row["description"], row["deprecated_at"], bool(row["protected"])
    assert found == ("mine", moment, True)


def test_a_deregistered_ami_gets_a_row(aws, plan):
    result = plan().apply()
    aws.client("ec2", REGION).deregister_image(ImageId=result.ami_id)
    assert sync(regions=[REGION]).deregistered == 1
    assert latest().iloc[0]["state"] == DEREGISTERED
    assert sync(regions=[REGION]).deregistered == 0


def test_amis_that_vmsnix_did_not_publish_are_ignored(aws):
    ec2 = aws.client("ec2", REGION)
    volume = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a")["VolumeId"]
    snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1})
    device = {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}
    ec2.register_image(Name="not-ours", RootDeviceName="/dev/sda1", BlockDeviceMappings=[device])
    assert sync(regions=[REGION]).found == 0
