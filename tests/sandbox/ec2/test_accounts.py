"""Images and snapshots that are shared with another account.

Sources: "Share an AMI with specific AWS accounts", "Deprecate an AMI", "Disable an AMI", "Share a snapshot".
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.credentials import Credential, credentials_table

if TYPE_CHECKING:
    from collections.abc import Callable

FRIEND = "999988887777"


@pytest.fixture(scope="session")
def friend(still_sandbox: SandboxClients) -> Callable[[str], Any]:
    """Return the function that creates clients of another account."""
    key, secret = "AKIAFRIENDFRIEND0000", "a secret of the friend"
    arn = f"arn:aws:iam::{FRIEND}:user/friend"
    known = credentials_table(still_sandbox.sandbox.state.tables)
    known[key] = Credential(key, secret, FRIEND, arn, "AIDAFRIEND")
    session = boto3.Session(aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1")
    made: dict[str, Any] = {}

    def client(service: str) -> Any:
        if service not in made:
            made[service] = session.client(service, endpoint_url=still_sandbox.sandbox.url)
        return made[service]

    return client


def visible_images(client: Any, **params: Any) -> list[str]:
    """Return the IDs of the listed images, apart from those of Amazon, which every account sees."""
    images = client.describe_images(**params)["Images"]
    return [image["ImageId"] for image in images if image.get("ImageOwnerAlias") != "amazon"]


def share(aws: SandboxClients, image: str, **entry: str) -> None:
    aws.ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [entry or {"UserId": FRIEND}]})


def test_a_private_image_is_unknown_to_other_accounts(aws: SandboxClients, friend: Any) -> None:
    image = aws.image()
    assert visible_images(friend("ec2")) == []
    with refused("InvalidAMIID.NotFound"):
        visible_images(friend("ec2"), ImageIds=[image])


def test_a_shared_image_is_visible_to_its_grantees(aws: SandboxClients, friend: Any) -> None:
    image = aws.image()
    share(aws, image)
    assert visible_images(friend("ec2"), Owners=[aws.account]) == [image]
    assert visible_images(friend("ec2"), Owners=["self"]) == []
    assert visible_images(friend("ec2"), ExecutableUsers=["self"]) == [image]
    assert visible_images(friend("ec2"), ExecutableUsers=["all"]) == []
    assert visible_images(aws.ec2, ExecutableUsers=[FRIEND]) == [image]


def test_a_public_image_is_visible_to_all_accounts(aws: SandboxClients, friend: Any) -> None:
    image = aws.image()
    share(aws, image, Group="all")
    assert visible_images(friend("ec2"), ExecutableUsers=["all"]) == [image]
    assert visible_images(friend("ec2"), Filters=[{"Name": "is-public", "Values": ["true"]}]) == [image]


def test_a_grantee_may_launch_but_not_change_an_image(aws: SandboxClients, friend: Any) -> None:
    image = aws.image()
    share(aws, image)
    friend("ec2").run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    with refused("AuthFailure", f"Not authorized for image:{image}"):
        friend("ec2").deregister_image(ImageId=image)
    with refused("AuthFailure"):
        friend("ec2").modify_image_attribute(ImageId=image, Description={"Value": "mine"})


def test_a_grantee_copies_an_image_only_when_its_snapshot_is_shared(aws: SandboxClients, friend: Any) -> None:
    """Public reports: "You do not have permission to access the storage of this ami"."""
    snapshot = aws.snapshot()
    image = aws.image(snapshot)
    share(aws, image)
    params = {"Name": "mine", "SourceImageId": image, "SourceRegion": "us-east-1"}
    with refused("InvalidRequest", "You do not have permission to access the storage of this ami"):
        friend("ec2").copy_image(**params)
    aws.ec2.modify_snapshot_attribute(
        SnapshotId=snapshot, CreateVolumePermission={"Add": [{"UserId": FRIEND}]}
    )
    copied = friend("ec2").copy_image(**params)["ImageId"]
    assert visible_images(friend("ec2"), Owners=["self"]) == [copied]


def test_a_disabled_image_is_invisible_to_grantees(aws: SandboxClients, friend: Any) -> None:
    image = aws.image()
    share(aws, image)
    aws.ec2.disable_image(ImageId=image)
    assert visible_images(friend("ec2"), IncludeDisabled=True) == []
    aws.ec2.enable_image(ImageId=image)
    assert visible_images(friend("ec2")) == []


def test_grantees_see_a_deprecated_image_only_with_include_deprecated(
    aws: SandboxClients, friend: Any
) -> None:
    image = aws.image()
    share(aws, image)
    aws.ec2.enable_image_deprecation(ImageId=image, DeprecateAt=datetime.now(UTC) + timedelta(hours=1))
    aws.pass_time(2 * 3600)
    assert visible_images(friend("ec2")) == []
    assert visible_images(friend("ec2"), IncludeDeprecated=True) == [image]


def test_a_grantee_reads_and_restores_a_shared_snapshot(aws: SandboxClients, friend: Any) -> None:
    snapshot = aws.snapshot()
    with pytest.raises(friend("ebs").exceptions.AccessDeniedException):
        friend("ebs").list_snapshot_blocks(SnapshotId=snapshot)
    with refused("InvalidSnapshot.NotFound"):
        friend("ec2").describe_snapshots(SnapshotIds=[snapshot])
    aws.ec2.modify_snapshot_attribute(
        SnapshotId=snapshot, CreateVolumePermission={"Add": [{"UserId": FRIEND}]}
    )
    assert friend("ebs").list_snapshot_blocks(SnapshotId=snapshot)["VolumeSize"] == 3
    restorable = friend("ec2").describe_snapshots(RestorableByUserIds=["self"])["Snapshots"]
    assert [s["SnapshotId"] for s in restorable] == [snapshot]
    assert friend("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"] == []
    friend("ec2").create_volume(SnapshotId=snapshot, AvailabilityZone="us-east-1a")
