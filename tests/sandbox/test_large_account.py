"""A filled account has the resources that calls could have created."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.large_account import REGIONS, fill, populate
from vmsnix_ops.sandbox.core import SandboxTables

if TYPE_CHECKING:
    from tests.sandbox.clients import SandboxClients

ACCOUNT = "012345678901"


def test_twenty_regions_are_filled_with_opt_in_where_needed(aws: SandboxClients) -> None:
    made = populate(aws.sandbox, amis=3)
    assert (made.amis, made.snapshots, len(REGIONS)) == (60, 60, 20)
    shown = {region["RegionName"] for region in aws.ec2.describe_regions()["Regions"]}
    assert set(REGIONS) <= shown
    for region in ("us-east-1", "me-south-1"):
        images = aws.client("ec2", region).describe_images(Owners=["self"])["Images"]
        assert len(images) == 3


def test_images_have_existing_snapshots_with_blocks(aws: SandboxClients) -> None:
    populate(aws.sandbox, regions=["us-east-1"], amis=40, referenced_one_in=10)
    images = aws.ec2.describe_images(Owners=["self"])["Images"]
    snapshots = {s["SnapshotId"]: s for s in aws.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    used = {image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"] for image in images}
    assert used == set(snapshots)
    assert all(one["FullSnapshotSizeInBytes"] > 0 for one in snapshots.values())
    aws.ec2.deregister_image(ImageId=images[0]["ImageId"])


def test_one_ami_in_twenty_is_referenced_by_each_kind_in_turn(aws: SandboxClients) -> None:
    made = populate(aws.sandbox, regions=["us-east-1"], amis=40, referenced_one_in=10)
    assert made.referenced == 4
    scaling = aws.client("autoscaling")
    named = {
        *(i["ImageId"] for r in aws.ec2.describe_instances()["Reservations"] for i in r["Instances"]),
        *(c["ImageId"] for c in scaling.describe_launch_configurations()["LaunchConfigurations"]),
        *(p["Value"] for p in aws.ssm.get_parameters_by_path(Path="/vmsnix", Recursive=True)["Parameters"]),
    }
    latest = aws.ec2.describe_launch_template_versions(Versions=["$Latest"])["LaunchTemplateVersions"]
    named |= {version["LaunchTemplateData"]["ImageId"] for version in latest}
    assert len(named) == 4
    assert len(scaling.describe_auto_scaling_groups()["AutoScalingGroups"]) == 1
    assert latest[0]["VersionNumber"] == 3


def test_the_same_seed_creates_the_same_account() -> None:
    def ids(seed: int) -> list[str]:
        tables = SandboxTables()
        fill(tables, ACCOUNT, regions=["us-east-1"], amis=5, seed=seed)
        return list(tables.table(ACCOUNT, "us-east-1", "images"))

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
