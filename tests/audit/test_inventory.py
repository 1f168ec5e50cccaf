"""What the first audit shows."""

from __future__ import annotations

import pytest

from vmsnix_ops import errors, publish
from vmsnix_ops.audit import inventory

REGION = "us-east-1"


@pytest.fixture
def orphan(aws) -> str:
    """A snapshot that no AMI holds."""
    ec2 = aws.client("ec2", REGION)
    volume = ec2.create_volume(Size=3, AvailabilityZone=f"{REGION}a")["VolumeId"]
    return ec2.create_snapshot(VolumeId=volume)["SnapshotId"]


def test_an_account_without_anything_gives_an_empty_frame_with_all_columns(aws):
    found = inventory.scan(regions=[REGION])
    assert list(found.columns) == list(inventory.COLUMNS)
    assert len(found) == 0
    assert len(inventory.summary(found)) == 0


def test_amis_and_snapshots_are_listed_with_age_size_and_what_uses_them(aws, plan, orphan):
    result = publish.run(plan())
    found = inventory.scan(regions=[REGION]).set_index("resource_id")
    ami, snapshot = found.loc[result.ami_id], found.loc[result.snapshot_id]
    assert (ami["kind"], ami["name"], ami["image"]) == ("ami", result.image_name, "sample")
    assert (ami["size_gib"], ami["referenced"], ami["public"]) == (1, False, False)
    assert 0 <= ami["age_days"] < 1
    assert (snapshot["referenced"], snapshot["evidence"]) == (True, result.ami_id)
    assert (found.loc[orphan]["referenced"], found.loc[orphan]["size_gib"]) == (False, 3)


def test_an_ami_with_an_instance_is_referenced(aws, plan):
    result = publish.run(plan())
    ec2 = aws.client("ec2", REGION)
    run = ec2.run_instances(ImageId=result.ami_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance = run["Instances"][0]["InstanceId"]
    found = inventory.scan(regions=[REGION]).set_index("resource_id")
    assert (found.loc[result.ami_id]["referenced"], found.loc[result.ami_id]["evidence"]) == (True, instance)


def test_several_regions_are_scanned_together(aws, orphan):
    ec2 = aws.client("ec2", "eu-west-1")
    volume = ec2.create_volume(Size=5, AvailabilityZone="eu-west-1a")["VolumeId"]
    ec2.create_snapshot(VolumeId=volume)
    found = inventory.scan(regions=[REGION, "eu-west-1"])
    assert set(found["region"]) == {REGION, "eu-west-1"}
    assert list(inventory.summary(found)["size_gib"]) == [5, 3]


def test_all_means_every_enabled_region(aws, orphan):
    assert set(inventory.scan(regions=["all"])["resource_id"]) == {orphan}


def test_more_than_a_page_is_listed_whole(aws, monkeypatch):
    ec2 = aws.client("ec2", REGION)
    volumes = [ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a")["VolumeId"] for _ in range(12)]
    made = {ec2.create_snapshot(VolumeId=volume)["SnapshotId"] for volume in volumes}
    monkeypatch.setattr(inventory, "PAGE", 5)
    assert set(inventory.scan(regions=[REGION])["resource_id"]) == made


def test_an_unknown_region_is_refused_with_the_nearest(aws):
    with pytest.raises(errors.RegionError, match="eu-west-1"):
        inventory.scan(regions=["eu-wset-1"])


def test_a_region_that_cannot_be_read_ends_the_scan(aws):
    aws.faults.add(
        {"op": "ec2:DescribeSnapshots", "do": "error", "code": "UnauthorizedOperation", "http": 403}
    )
    with pytest.raises(errors.AccessDeniedError, match="DescribeSnapshots"):
        inventory.scan(regions=[REGION])


def test_the_plot_has_units_on_its_axes(aws, orphan):
    axes = inventory.plot(inventory.scan(regions=[REGION])).axes[0]
    assert "GiB" in axes.get_ylabel()
    assert "age" in axes.get_xlabel()
