"""Deprecation, disabling, protection, deregistration.

Sources: the operations' reference pages; "Deprecate", "Disable", "Protect", "Deregister an Amazon EC2 AMI".
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.sandbox.clients import SandboxClients, refused

HOUR = 3600


def soon(**distance: float) -> datetime:
    return datetime.now(UTC) + timedelta(**distance)


def test_a_deprecation_date_is_kept_to_the_minute(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.enable_image_deprecation(ImageId=image, DeprecateAt="2030-01-01T00:00:31Z")
    assert aws.describe(image)["DeprecationTime"] == "2030-01-01T00:01:00.000Z"
    aws.ec2.disable_image_deprecation(ImageId=image)
    assert "DeprecationTime" not in aws.describe(image)


@pytest.mark.parametrize("distance", [{"days": -1}, {"days": 3660}])
def test_a_deprecation_date_lies_within_ten_years_from_now(
    aws: SandboxClients, distance: dict[str, float]
) -> None:
    image = aws.image()
    with refused("InvalidParameterValue"):
        aws.ec2.enable_image_deprecation(ImageId=image, DeprecateAt=soon(**distance))


def test_a_public_image_is_deprecated_within_two_years(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})
    with refused("InvalidParameterValue"):
        aws.ec2.enable_image_deprecation(ImageId=image, DeprecateAt=soon(days=740))


def test_the_owner_always_sees_deprecated_images(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.enable_image_deprecation(ImageId=image, DeprecateAt=soon(hours=1))
    aws.pass_time(2 * HOUR)
    listed = [i["ImageId"] for i in aws.ec2.describe_images(Owners=["self"])["Images"]]
    assert image in listed


def test_a_disabled_image_is_private_not_listed_and_not_launched(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": "123456789012"}]})
    aws.ec2.disable_image(ImageId=image)
    assert aws.ec2.describe_images(Owners=["self"])["Images"] == []
    assert aws.describe(image, IncludeDisabled=True)["State"] == "disabled"
    answer = aws.ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")
    assert answer["LaunchPermissions"] == []
    with refused("InvalidAMIID.Unavailable"):
        aws.ec2.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    with refused("OperationNotPermitted"):
        aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})


def test_an_enabled_image_is_available_and_private(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})
    aws.ec2.disable_image(ImageId=image)
    aws.ec2.enable_image(ImageId=image)
    assert (aws.describe(image)["State"], aws.describe(image)["Public"]) == ("available", False)


def test_a_protected_image_is_not_deregistered(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.enable_image_deregistration_protection(ImageId=image)
    assert aws.describe(image)["DeregistrationProtection"] == "enabled-without-cooldown"
    with refused("OperationNotPermitted"):
        aws.ec2.deregister_image(ImageId=image)
    aws.ec2.disable_image_deregistration_protection(ImageId=image)
    aws.ec2.deregister_image(ImageId=image)


def test_a_cooldown_protects_for_another_day(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.enable_image_deregistration_protection(ImageId=image, WithCooldown=True)
    aws.ec2.disable_image_deregistration_protection(ImageId=image)
    with refused("OperationNotPermitted"):
        aws.ec2.deregister_image(ImageId=image)
    aws.pass_time(25 * HOUR)
    aws.ec2.deregister_image(ImageId=image)


def test_deregistering_keeps_the_snapshots(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    image = aws.image(snapshot)
    answer = aws.ec2.deregister_image(ImageId=image)
    assert "DeleteSnapshotResults" not in answer
    assert aws.describe_snapshot(snapshot)["State"] == "completed"
    with refused("InvalidAMIID.NotFound"):
        aws.describe(image)


def test_deregistering_can_delete_the_snapshots_of_all_devices(aws: SandboxClients) -> None:
    snapshots = [aws.snapshot(), aws.snapshot()]
    devices = [
        {"DeviceName": name, "Ebs": {"SnapshotId": snapshot}}
        for name, snapshot in zip(("/dev/sda1", "/dev/sdb"), snapshots, strict=True)
    ]
    image = aws.image(BlockDeviceMappings=devices)
    results = aws.ec2.deregister_image(ImageId=image, DeleteAssociatedSnapshots=True)["DeleteSnapshotResults"]
    assert results == [{"SnapshotId": snapshot, "ReturnCode": "success"} for snapshot in snapshots]
    with refused("InvalidSnapshot.NotFound"):
        aws.describe_snapshot(snapshots[1])


def test_a_snapshot_of_two_images_is_skipped(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    first, _second = aws.image(snapshot), aws.image(snapshot)
    results = aws.ec2.deregister_image(ImageId=first, DeleteAssociatedSnapshots=True)["DeleteSnapshotResults"]
    assert results == [{"SnapshotId": snapshot, "ReturnCode": "skipped"}]
    assert aws.describe_snapshot(snapshot)["State"] == "completed"


def test_a_deregistered_image_is_not_found_after_its_instances_are_terminated(aws: SandboxClients) -> None:
    """Source: DescribeImages in the Amazon EC2 API Reference."""
    image, other = aws.image(), aws.image()
    launch = {"ImageId": image, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
    instance = aws.ec2.run_instances(**launch)["Instances"][0]["InstanceId"]
    aws.ec2.deregister_image(ImageId=image)
    assert aws.ec2.describe_images(ImageIds=[image])["Images"] == []
    found = aws.ec2.describe_images(ImageIds=[image, other])["Images"]
    assert [one["ImageId"] for one in found] == [other]
    aws.ec2.terminate_instances(InstanceIds=[instance])
    aws.sandbox.clock.advance(60)
    with refused("InvalidAMIID.NotFound"):
        aws.ec2.describe_images(ImageIds=[image])


def test_a_snapshot_is_in_use_for_a_moment_after_deregistration(aws: SandboxClients) -> None:
    """Seen by public tools: InvalidSnapshot.InUse right after DeregisterImage."""
    snapshot = aws.snapshot()
    aws.ec2.deregister_image(ImageId=aws.image(snapshot))
    with refused("InvalidSnapshot.InUse", f"The snapshot {snapshot} is currently in use"):
        aws.ec2.delete_snapshot(SnapshotId=snapshot)
    aws.pass_time(10)
    aws.ec2.delete_snapshot(SnapshotId=snapshot)
