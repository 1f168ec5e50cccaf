"""CopyImage. Sources: its reference page, "Copy an Amazon EC2 AMI", public reports of copies that failed."""

from __future__ import annotations

import pytest

from tests.sandbox.clients import SandboxClients, refused

OTHER = "eu-west-1"
FOREIGN_KEY = "arn:aws:kms:us-east-1:012345678901:key/11111111-2222-3333-4444-555555555555"


def copy(aws: SandboxClients, image: str, **more: object) -> str:
    params = {"Name": "copy", "SourceImageId": image, "SourceRegion": "us-east-1"} | more
    copied: str = aws.client("ec2", OTHER).copy_image(**params)["ImageId"]
    return copied


def test_a_copy_is_pending_first_and_available_later(aws: SandboxClients) -> None:
    copied = copy(aws, aws.image())
    assert aws.describe(copied, OTHER)["State"] == "pending"
    aws.pass_time(600)
    assert aws.describe(copied, OTHER)["State"] == "available"


def test_a_copy_has_a_snapshot_of_its_own_in_its_region(aws: SandboxClients) -> None:
    source = aws.image()
    copied = copy(aws, source)
    original = aws.describe(source)["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    snapshot = aws.describe(copied, OTHER)["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    shown = aws.describe_snapshot(snapshot, OTHER)
    assert snapshot != original
    assert shown["VolumeSize"] == 3
    assert shown["State"] == "pending"
    assert shown["VolumeId"] == "vol-ffffffff"
    assert shown["Description"].startswith(
        f"Copied for DestinationAmi {copied} from SourceAmi {source} for SourceSnapshot {original}."
    )


def test_a_copy_boots_as_its_source_does(aws: SandboxClients) -> None:
    source = aws.image(Architecture="arm64", BootMode="uefi", ImdsSupport="v2.0", TpmSupport="v2.0")
    copied = aws.describe(copy(aws, source), OTHER)
    kept = ("Architecture", "BootMode", "EnaSupport", "ImdsSupport", "RootDeviceName", "TpmSupport")
    assert {name: copied[name] for name in kept} == {name: aws.describe(source)[name] for name in kept}
    assert copied["SourceImageId"] == source
    assert copied["SourceImageRegion"] == "us-east-1"


def test_tags_are_copied_only_on_request(aws: SandboxClients) -> None:
    tags = [{"Key": "Name", "Value": "node"}]
    source = aws.image(TagSpecifications=[{"ResourceType": "image", "Tags": tags}])
    assert "Tags" not in aws.describe(copy(aws, source, Name="plain"), OTHER)
    assert aws.describe(copy(aws, source, Name="tagged", CopyImageTags=True), OTHER)["Tags"] == tags


def test_the_snapshots_of_a_copy_can_be_tagged(aws: SandboxClients) -> None:
    tags = [{"Key": "Name", "Value": "node"}]
    specifications = [{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")]
    copied = aws.describe(copy(aws, aws.image(), TagSpecifications=specifications), OTHER)
    snapshot = copied["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    assert copied["Tags"] == tags
    assert aws.describe_snapshot(snapshot, OTHER)["Tags"] == tags


def test_launch_permissions_are_not_copied(aws: SandboxClients) -> None:
    source = aws.image()
    aws.ec2.modify_image_attribute(ImageId=source, LaunchPermission={"Add": [{"Group": "all"}]})
    assert aws.describe(copy(aws, source), OTHER)["Public"] is False


def test_the_same_token_makes_one_copy(aws: SandboxClients) -> None:
    source = aws.image()
    assert copy(aws, source, ClientToken="once") == copy(aws, source, ClientToken="once")
    with refused("IdempotentParameterMismatch"):
        copy(aws, source, ClientToken="once", Name="another")


def test_a_copy_may_have_a_name_in_use(aws: SandboxClients) -> None:
    """Public reports: two copies of an image can have one name."""
    source = aws.image()
    first, second = copy(aws, source), copy(aws, source)
    assert first != second
    assert aws.describe(first, OTHER)["Name"] == aws.describe(second, OTHER)["Name"]


def test_an_unknown_source_is_refused(aws: SandboxClients) -> None:
    with refused("InvalidAMIID.NotFound"):
        copy(aws, "ami-0123456789abcdef0")


def test_a_copy_with_a_key_of_another_region_fails_later(aws: SandboxClients) -> None:
    """Public reports: the image is ``failed``, and only its snapshot's StateMessage has the reason."""
    copied = copy(aws, aws.image(), Encrypted=True, KmsKeyId=FOREIGN_KEY)
    assert aws.describe(copied, OTHER)["State"] == "pending"
    aws.pass_time(600)
    image = aws.describe(copied, OTHER)
    snapshot = aws.describe_snapshot(image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"], OTHER)
    assert image["State"] == "failed"
    assert snapshot["State"] == "error"
    assert snapshot["StateMessage"] == "Given key ID is not accessible"


def test_a_copy_can_be_encrypted_but_not_decrypted(aws: SandboxClients) -> None:
    copied = copy(aws, aws.image(), Encrypted=True)
    aws.pass_time(600)
    device = aws.describe(copied, OTHER)["BlockDeviceMappings"][0]["Ebs"]
    snapshot = aws.describe_snapshot(device["SnapshotId"], OTHER)
    assert device["Encrypted"] is True
    assert snapshot["Encrypted"] is True
    assert snapshot["KmsKeyId"].startswith(f"arn:aws:kms:{OTHER}:{aws.account}:key/")
    with refused("InvalidParameterCombination"):
        aws.ec2.copy_image(Name="plain", SourceImageId=copied, SourceRegion=OTHER, Encrypted=False)


def test_a_key_needs_encryption(aws: SandboxClients) -> None:
    with refused("InvalidParameterDependency"):
        copy(aws, aws.image(), KmsKeyId=FOREIGN_KEY)


def test_twenty_snapshots_are_copied_to_a_region_at_once(aws: SandboxClients) -> None:
    """Source: quota "Concurrent snapshot copies per destination Region"."""
    source = aws.image()
    for number in range(20):
        copy(aws, source, Name=f"copy-{number}")
    with refused("ResourceLimitExceeded", "The limit is 20"):
        copy(aws, source, Name="one-too-many")
    aws.pass_time(600)
    copy(aws, source, Name="one-too-many")


@pytest.mark.parametrize("minutes", [10, 14, 20, 2895])
def test_a_completion_duration_is_a_multiple_of_15_minutes(aws: SandboxClients, minutes: int) -> None:
    with refused("InvalidParameterValue"):
        copy(aws, aws.image(), SnapshotCopyCompletionDurationMinutes=minutes)


def test_a_fault_rule_can_make_a_copy_fail(aws: SandboxClients) -> None:
    aws.sandbox.faults.add(
        {"op": "ec2:CopyImage", "do": "outcome", "outcome": {"state_message": "Out of luck"}}
    )
    copied = copy(aws, aws.image())
    aws.pass_time(600)
    image = aws.describe(copied, OTHER)
    snapshot = aws.describe_snapshot(image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"], OTHER)
    assert (image["State"], snapshot["StateMessage"]) == ("failed", "Out of luck")
