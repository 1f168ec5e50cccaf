"""CreateImage and DescribeInstanceImageMetadata. Sources: their reference pages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused


def launch(aws: SandboxClients, **more: Any) -> str:
    params = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    instance: str = aws.ec2.run_instances(ImageId=aws.image(), **params)["Instances"][0]["InstanceId"]
    return instance


def test_an_image_of_an_instance_has_snapshots_of_its_volumes(aws: SandboxClients) -> None:
    instance = launch(aws, BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 5}}])
    with refused("IncorrectState"):
        aws.ec2.create_image(InstanceId=instance, Name="copy")
    aws.pass_time(60)
    tags = [{"ResourceType": kind, "Tags": [{"Key": "a", "Value": "b"}]} for kind in ("image", "snapshot")]
    image = aws.ec2.create_image(InstanceId=instance, Name="copy", Description="d", TagSpecifications=tags)
    image_id = image["ImageId"]
    shown = aws.describe(image_id)
    assert (shown["State"], shown["SourceInstanceId"]) == ("pending", instance)
    assert shown["Tags"] == [{"Key": "a", "Value": "b"}]
    devices = {m["DeviceName"]: m["Ebs"] for m in shown["BlockDeviceMappings"]}
    assert {name: ebs["VolumeSize"] for name, ebs in devices.items()} == {"/dev/sda1": 3, "/dev/sdf": 5}
    snapshot = aws.describe_snapshot(devices["/dev/sda1"]["SnapshotId"])
    assert snapshot["Description"] == f"Created by CreateImage({instance}) for {image_id}"
    with refused("InvalidAMIName.Duplicate"):
        aws.ec2.create_image(InstanceId=instance, Name="copy")
    aws.pass_time(120)
    assert aws.describe(image_id)["State"] == "available"


def test_the_images_of_instances_are_listed(aws: SandboxClients) -> None:
    instance = launch(aws)
    (shown,) = aws.ec2.describe_instance_image_metadata(InstanceIds=[instance])["InstanceImageMetadata"]
    image = shown["ImageMetadata"]
    assert (shown["InstanceId"], shown["State"]["Name"]) == (instance, "pending")
    assert image["OwnerId"] == aws.account
    assert (image["State"], image["IsPublic"], image["ImageAllowed"]) == ("available", False, True)
    filters = [{"Name": "owner-alias", "Values": ["amazon"]}]
    assert aws.ec2.describe_instance_image_metadata(Filters=filters)["InstanceImageMetadata"] == []


def test_the_image_of_an_instance_is_listed_after_it_was_deregistered(aws: SandboxClients) -> None:
    instance = launch(aws)

    def shown() -> dict[str, Any]:
        (found,) = aws.ec2.describe_instance_image_metadata(InstanceIds=[instance])["InstanceImageMetadata"]
        assert set(found["State"]) == {"Name", "Code"}
        return dict(found["ImageMetadata"])

    before = shown()
    aws.ec2.deregister_image(ImageId=before["ImageId"])
    assert shown() == before | {"State": "deregistered"}


@pytest.mark.parametrize("name", ["instanceType", "userData"])
def test_a_type_and_user_data_change_only_while_the_instance_is_stopped(
    aws: SandboxClients, name: str
) -> None:
    instance = launch(aws)
    aws.pass_time(20)
    change: dict[str, Any] = {"InstanceType": {"Value": "t3.small"}}
    if name == "userData":
        change = {"UserData": {"Value": b"x"}}
    with refused("IncorrectInstanceState", f"The instance '{instance}' is not in the 'stopped' state."):
        aws.ec2.modify_instance_attribute(InstanceId=instance, **change)
    aws.ec2.stop_instances(InstanceIds=[instance])
    aws.pass_time(60)
    aws.ec2.modify_instance_attribute(InstanceId=instance, **change)
    answer = aws.ec2.describe_instance_attribute(InstanceId=instance, Attribute=name)
    assert answer[name[0].upper() + name[1:]]["Value"] in ("t3.small", "eA==")


def test_groups_change_while_it_runs(aws: SandboxClients) -> None:
    instance = launch(aws)
    aws.pass_time(20)
    group = aws.ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    aws.ec2.modify_instance_attribute(InstanceId=instance, Groups=[group])
    answer = aws.ec2.describe_instance_attribute(InstanceId=instance, Attribute="groupSet")
    assert answer["Groups"] == [{"GroupId": group, "GroupName": "web"}]
    aws.ec2.modify_instance_attribute(InstanceId=instance, Attribute="sourceDestCheck", Value="false")
    shown = aws.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    assert (shown["SourceDestCheck"], shown["SecurityGroups"][0]["GroupId"]) == (False, group)
    with refused("InvalidParameterCombination", "No attributes specified"):
        aws.ec2.modify_instance_attribute(InstanceId=instance)
