"""RegisterImage and DescribeImages. Sources: their reference pages, and the pages that each test names."""

from __future__ import annotations

import pytest

from tests.sandbox.clients import SandboxClients, refused


def test_an_image_keeps_its_snapshot_and_takes_the_size_from_it(aws: SandboxClients) -> None:
    snapshot = aws.snapshot(size=7)
    device = aws.describe(aws.image(snapshot))["BlockDeviceMappings"][0]["Ebs"]
    assert device == {
        "SnapshotId": snapshot,
        "VolumeSize": 7,
        "VolumeType": "gp3",
        "DeleteOnTermination": True,
        "Encrypted": False,
    }


def test_an_image_has_the_registered_attributes(aws: SandboxClients) -> None:
    given = {
        "Architecture": "arm64",
        "BootMode": "uefi-preferred",
        "Description": "a description",
        "EnaSupport": True,
        "ImdsSupport": "v2.0",
        "SriovNetSupport": "simple",
        "VirtualizationType": "hvm",
    }
    shown = aws.describe(aws.image(**given))
    assert {name: shown[name] for name in given} == given
    assert shown["State"] == "available"
    assert shown["Public"] is False
    assert shown["ImageType"] == "machine"
    assert shown["RootDeviceType"] == "ebs"
    assert shown["OwnerId"] == aws.account
    assert shown["ImageLocation"] == f"{aws.account}/{shown['Name']}"


def test_an_image_has_its_tags_at_registration(aws: SandboxClients) -> None:
    tags = [{"Key": "Name", "Value": "node"}]
    image = aws.image(TagSpecifications=[{"ResourceType": "image", "Tags": tags}])
    assert aws.describe(image)["Tags"] == tags


def test_only_the_image_can_be_tagged_at_registration(aws: SandboxClients) -> None:
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "a", "Value": "b"}]}]
    with refused(
        "InvalidParameterValue", "'snapshot' is not a valid taggable resource type for this operation."
    ):
        aws.image(TagSpecifications=tags)


def test_the_error_for_a_name_in_use_contains_its_image(aws: SandboxClients) -> None:
    first = aws.image(Name="node")
    with refused("InvalidAMIName.Duplicate", f"AMI name node is already in use by AMI {first}"):
        aws.image(Name="node")


def test_a_name_is_free_again_after_deregistration(aws: SandboxClients) -> None:
    aws.ec2.deregister_image(ImageId=aws.image(Name="node"))
    assert aws.describe(aws.image(Name="node"))["Name"] == "node"


@pytest.mark.parametrize("name", ["a" * 129, "a*b", "a:b", "ä-name"])
def test_names_have_3_to_128_of_the_documented_characters(aws: SandboxClients, name: str) -> None:
    snapshot = aws.snapshot()
    with refused("InvalidAMIName.Malformed"):
        aws.image(snapshot, Name=name)


def test_a_name_may_have_every_documented_character(aws: SandboxClients) -> None:
    assert aws.describe(aws.image(Name="Az09()[] ./-'@_"))["Name"] == "Az09()[] ./-'@_"


def test_the_root_device_needs_a_snapshot(aws: SandboxClients) -> None:
    devices = [{"DeviceName": "/dev/sdb", "Ebs": {"SnapshotId": aws.snapshot()}}]
    with refused("InvalidBlockDeviceMapping", "No root snapshot specified in device mapping."):
        aws.image(aws.snapshot(), BlockDeviceMappings=devices)


def test_an_unknown_snapshot_is_refused(aws: SandboxClients) -> None:
    with refused("InvalidSnapshot.NotFound", "The snapshot 'snap-0123456789abcdef0' does not exist."):
        aws.image("snap-0123456789abcdef0")


def test_a_pending_snapshot_is_refused(aws: SandboxClients) -> None:
    volume = aws.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]
    pending = aws.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    with refused("IncorrectState", "pending"):
        aws.image(pending)


def test_a_volume_smaller_than_its_snapshot_is_refused(aws: SandboxClients) -> None:
    snapshot = aws.snapshot(size=3)
    small = [{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot, "VolumeSize": 2}}]
    with refused("InvalidBlockDeviceMapping", "is smaller than snapshot"):
        aws.image(snapshot, BlockDeviceMappings=small)


@pytest.mark.parametrize(
    ("ebs", "code"),
    [
        ({"VolumeType": "gp9"}, "InvalidParameterValue"),
        ({"VolumeType": "gp3", "Iops": 2999}, "InvalidParameterValue"),
        ({"VolumeType": "gp3", "Throughput": 2001}, "InvalidParameterValue"),
        ({"VolumeType": "gp2", "Throughput": 125}, "InvalidParameterCombination"),
        ({"VolumeType": "gp2", "Iops": 3000}, "InvalidParameterCombination"),
        ({"VolumeType": "io2", "VolumeSize": 4}, "MissingParameter"),
        ({"VolumeType": "standard", "VolumeSize": 1025}, "InvalidParameterValue"),
        ({"Encrypted": True}, "InvalidParameterCombination"),
    ],
)
def test_volumes_have_the_documented_limits(aws: SandboxClients, ebs: dict[str, object], code: str) -> None:
    """Source: "EbsBlockDevice" of the API reference."""
    snapshot = aws.snapshot()
    with refused(code):
        aws.image(
            snapshot, BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot} | ebs}]
        )


def test_a_tpm_needs_uefi(aws: SandboxClients) -> None:
    """Source: "NitroTPM for Amazon EC2 instances", requirements."""
    assert aws.describe(aws.image(BootMode="uefi", TpmSupport="v2.0"))["TpmSupport"] == "v2.0"
    with refused("InvalidParameterCombination"):
        aws.image(BootMode="legacy-bios", TpmSupport="v2.0")


def test_an_image_of_a_bundle_can_be_registered_but_not_copied_or_launched(aws: SandboxClients) -> None:
    location, bundle = "bundles/image.manifest.xml", {"Name": "bundle", "VirtualizationType": "hvm"}
    with refused("InvalidManifest"):
        aws.ec2.register_image(ImageLocation=location, **bundle)
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="bundles")
    s3.put_object(Bucket="bundles", Key="image.manifest.xml", Body=b"<manifest/>")
    ami = aws.ec2.register_image(ImageLocation=location, **bundle)["ImageId"]
    shown = aws.describe(ami)
    assert (shown["RootDeviceType"], shown["ImageLocation"]) == ("instance-store", location)
    assert shown["BlockDeviceMappings"] == []
    with refused("NotImplemented", "RunInstances"):
        aws.ec2.run_instances(ImageId=ami, InstanceType="t3.small", MinCount=1, MaxCount=1)
    with refused("NotImplemented", "CopyImage"):
        aws.ec2.copy_image(Name="copy", SourceImageId=ami, SourceRegion="us-east-1")


def test_malformed_and_unknown_ids_have_different_errors(aws: SandboxClients) -> None:
    with refused("InvalidAMIID.NotFound", "The image id '[ami-0123456789abcdef0]' does not exist"):
        aws.ec2.describe_images(ImageIds=["ami-0123456789abcdef0"])
    with refused("InvalidAMIID.Malformed", 'Invalid id: "foo" (expecting "ami-...")'):
        aws.ec2.describe_images(ImageIds=["foo"])


def test_pages_together_list_everything(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    made = {aws.image(snapshot) for _ in range(5)}
    pages = [
        [image["ImageId"] for image in page["Images"]]
        for page in aws.ec2.get_paginator("describe_images").paginate(
            Owners=["self"], PaginationConfig={"PageSize": 2}
        )
    ]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert {image for page in pages for image in page} == made


def test_pages_are_complete_while_images_are_deregistered(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    made = sorted(aws.image(snapshot) for _ in range(4))
    first = aws.ec2.describe_images(Owners=["self"], MaxResults=2)
    aws.ec2.deregister_image(ImageId=made[0])
    second = aws.ec2.describe_images(Owners=["self"], MaxResults=2, NextToken=first["NextToken"])
    assert [image["ImageId"] for image in second["Images"]] == made[2:]


def test_a_token_belongs_to_its_request(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    for _ in range(3):
        aws.image(snapshot)
    token = aws.ec2.describe_images(Owners=["self"], MaxResults=2)["NextToken"]
    with refused("InvalidNextToken"):
        aws.ec2.describe_images(Owners=["amazon"], MaxResults=2, NextToken=token)
    with refused("InvalidNextToken"):
        aws.ec2.describe_images(Owners=["self"], MaxResults=2, NextToken="nonsense")


def test_each_region_has_its_own_images(aws: SandboxClients) -> None:
    image = aws.image()
    with refused("InvalidAMIID.NotFound"):
        aws.describe(image, "eu-west-1")
