"""Launch permissions and block public access.

Sources: ModifyImageAttribute; "Share an AMI" with its pages on accounts, organizations and public AMIs.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused

FRIEND = "123456789012"
ORGANIZATION = f"arn:aws:organizations::{FRIEND}:organization/o-abcdefghij"
UNIT = f"arn:aws:organizations::{FRIEND}:ou/o-abcdefghij/ou-abcd-12345678"


def permissions(aws: SandboxClients, image: str) -> list[dict[str, Any]]:
    answer = aws.ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")
    found: list[dict[str, Any]] = answer["LaunchPermissions"]
    return found


def test_both_forms_of_the_request_share(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": FRIEND}]})
    aws.ec2.modify_image_attribute(
        ImageId=image, Attribute="launchPermission", OperationType="add", UserGroups=["all"]
    )
    assert permissions(aws, image) == [{"UserId": FRIEND}, {"Group": "all"}]
    assert aws.describe(image)["Public"] is True


def test_both_forms_of_the_request_revoke(aws: SandboxClients) -> None:
    image = aws.image()
    entries = [{"UserId": FRIEND}, {"Group": "all"}, {"OrganizationArn": ORGANIZATION}]
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": entries})
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Remove": [{"Group": "all"}]})
    aws.ec2.modify_image_attribute(
        ImageId=image, Attribute="launchPermission", OperationType="remove", UserIds=[FRIEND]
    )
    assert permissions(aws, image) == [{"OrganizationArn": ORGANIZATION}]
    assert aws.describe(image)["Public"] is False


def test_organizations_and_units_can_be_named(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.modify_image_attribute(
        ImageId=image,
        Attribute="launchPermission",
        OperationType="add",
        OrganizationArns=[ORGANIZATION],
        OrganizationalUnitArns=[UNIT],
    )
    assert permissions(aws, image) == [{"OrganizationArn": ORGANIZATION}, {"OrganizationalUnitArn": UNIT}]


def test_sharing_twice_changes_nothing(aws: SandboxClients) -> None:
    image = aws.image()
    for _ in range(2):
        aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": FRIEND}]})
    assert permissions(aws, image) == [{"UserId": FRIEND}]


@pytest.mark.parametrize(
    "entry", [{"UserId": "12345"}, {"Group": "everybody"}, {"OrganizationArn": "arn:aws:iam::1:x"}]
)
def test_invalid_grantees_are_refused(aws: SandboxClients, entry: dict[str, str]) -> None:
    image = aws.image()
    with refused(
        "InvalidAMIAttributeItemValue", f'Invalid attribute item value "{next(iter(entry.values()))}"'
    ):
        aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [entry]})


def test_reset_makes_an_image_private(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})
    aws.ec2.reset_image_attribute(ImageId=image, Attribute="launchPermission")
    assert permissions(aws, image) == []


def test_block_public_access_refuses_new_sharing(aws: SandboxClients) -> None:
    before, after = aws.image(), aws.image()
    public = {"Add": [{"Group": "all"}]}
    aws.ec2.modify_image_attribute(ImageId=before, LaunchPermission=public)
    assert aws.ec2.get_image_block_public_access_state()["ImageBlockPublicAccessState"] == "unblocked"
    aws.ec2.enable_image_block_public_access(ImageBlockPublicAccessState="block-new-sharing")
    assert aws.ec2.get_image_block_public_access_state()["ImageBlockPublicAccessState"] == "block-new-sharing"
    with refused("OperationNotPermitted", "block public access for AMIs is enabled"):
        aws.ec2.modify_image_attribute(ImageId=after, LaunchPermission=public)
    aws.ec2.modify_image_attribute(ImageId=after, LaunchPermission={"Add": [{"UserId": FRIEND}]})
    assert aws.describe(before)["Public"] is True
    aws.ec2.disable_image_block_public_access()
    aws.ec2.modify_image_attribute(ImageId=after, LaunchPermission=public)


def test_block_public_access_applies_to_one_region(aws: SandboxClients) -> None:
    aws.ec2.enable_image_block_public_access(ImageBlockPublicAccessState="block-new-sharing")
    elsewhere = aws.client("ec2", "eu-west-1")
    elsewhere.disable_image_block_public_access()
    assert elsewhere.get_image_block_public_access_state()["ImageBlockPublicAccessState"] == "unblocked"
    here = aws.ec2.get_image_block_public_access_state()
    assert here["ImageBlockPublicAccessState"] == "block-new-sharing"


def test_a_region_has_five_public_images(aws: SandboxClients) -> None:
    """Source: quota "Public AMIs"."""
    snapshot = aws.snapshot()
    images = [aws.image(snapshot) for _ in range(6)]
    for image in images[:5]:
        aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})
    with refused("ResourceLimitExceeded"):
        aws.ec2.modify_image_attribute(ImageId=images[5], LaunchPermission={"Add": [{"Group": "all"}]})


def test_attributes_are_shown_one_by_one(aws: SandboxClients) -> None:
    image = aws.image(BootMode="uefi", Description="old", ImdsSupport="v2.0", SriovNetSupport="simple")
    aws.ec2.modify_image_attribute(ImageId=image, Description={"Value": "new"})
    shown = {
        name: aws.ec2.describe_image_attribute(ImageId=image, Attribute=attribute)[name]["Value"]
        for attribute, name in (
            ("description", "Description"),
            ("bootMode", "BootMode"),
            ("imdsSupport", "ImdsSupport"),
            ("sriovNetSupport", "SriovNetSupport"),
        )
    }
    assert shown == {
        "Description": "new",
        "BootMode": "uefi",
        "ImdsSupport": "v2.0",
        "SriovNetSupport": "simple",
    }


def test_imds_v2_can_be_required_later(aws: SandboxClients) -> None:
    image = aws.image()
    aws.ec2.modify_image_attribute(ImageId=image, Attribute="imdsSupport", Value="v2.0")
    assert aws.describe(image)["ImdsSupport"] == "v2.0"


def test_block_devices_are_refused_as_attribute(aws: SandboxClients) -> None:
    """Documented: the attribute is deprecated and answers AuthFailure."""
    with refused("AuthFailure"):
        aws.ec2.describe_image_attribute(ImageId=aws.image(), Attribute="blockDeviceMapping")


def test_attributes_of_unknown_images_are_refused(aws: SandboxClients) -> None:
    with refused("InvalidAMIID.NotFound"):
        aws.ec2.describe_image_attribute(ImageId="ami-0123456789abcdef0", Attribute="launchPermission")


def test_attributes_are_accepted_with_a_capital_letter_too(aws: SandboxClients) -> None:
    """As NixOS's upload-ami and others send them to AWS."""
    snapshot = aws.snapshot()
    image = aws.image(snapshot)
    share = {"ImageId": image, "OperationType": "add", "UserIds": [FRIEND]}
    aws.ec2.modify_image_attribute(Attribute="LaunchPermission", **share)
    assert permissions(aws, image) == [{"UserId": FRIEND}]
    aws.ec2.modify_image_attribute(ImageId=image, Attribute="Description", Value="shared")
    assert aws.describe(image)["Description"] == "shared"
    shared = {"SnapshotId": snapshot, "Attribute": "CreateVolumePermission"}
    aws.ec2.modify_snapshot_attribute(OperationType="add", UserIds=[FRIEND], **shared)
    answer = aws.ec2.describe_snapshot_attribute(**shared)
    assert answer["CreateVolumePermissions"] == [{"UserId": FRIEND}]
    aws.ec2.reset_snapshot_attribute(**shared)
    aws.ec2.reset_image_attribute(ImageId=image, Attribute="LaunchPermission")
    assert aws.ec2.describe_image_attribute(ImageId=image, Attribute="Description")["Description"] == {
        "Value": "shared"
    }


def test_a_value_of_aws_that_is_not_emulated_is_not_refused_as_invalid(aws: SandboxClients) -> None:
    image = aws.image()
    with refused("NotImplemented", "the value 'kernel' of the parameter 'attribute'"):
        aws.ec2.modify_image_attribute(ImageId=image, Attribute="kernel", Value="aki-1")
    with refused("InvalidParameterValue", "Value (color) for parameter attribute is invalid"):
        aws.ec2.modify_image_attribute(ImageId=image, Attribute="color", Value="red")
    with refused("NotImplemented", "the value 'capacity-block' of the parameter 'marketType'"):
        market = {"MarketType": "capacity-block"}
        launch = {"MinCount": 1, "MaxCount": 1, "InstanceType": "t3.micro"}
        aws.ec2.run_instances(ImageId=image, InstanceMarketOptions=market, **launch)


def test_a_new_account_blocks_public_images_and_does_not_encrypt(aws: SandboxClients) -> None:
    """Sources: "Block public access to your AMIs" and "Amazon EBS encryption": the defaults of an account."""
    ec2 = aws.client("ec2", "us-west-2")
    assert ec2.get_image_block_public_access_state()["ImageBlockPublicAccessState"] == "block-new-sharing"
    assert ec2.get_snapshot_block_public_access_state()["State"] == "unblocked"
    assert ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"] is False
