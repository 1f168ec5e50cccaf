"""Snapshots and volumes.

Sources: the operations' reference pages; "Amazon EBS quotas"; "Block public access for Amazon EBS snapshots".
"""

from __future__ import annotations

import functools
import operator

import pytest

from tests.sandbox.clients import SandboxClients, refused

FRIEND = "123456789012"


def listed(aws: SandboxClients, **params: object) -> list[str]:
    return [s["SnapshotId"] for s in aws.ec2.describe_snapshots(**params)["Snapshots"]]


def test_a_snapshot_is_pending_first_and_completed_later(aws: SandboxClients) -> None:
    volume = aws.ec2.create_volume(Size=2, AvailabilityZone="us-east-1a")["VolumeId"]
    pending = aws.ec2.create_snapshot(VolumeId=volume, Description="by hand")
    assert (pending["State"], pending["VolumeId"], pending["VolumeSize"]) == ("pending", volume, 2)
    assert "CompletionTime" not in aws.describe_snapshot(pending["SnapshotId"])
    aws.pass_time(10)
    assert 0 < int(aws.describe_snapshot(pending["SnapshotId"])["Progress"].rstrip("%")) < 100
    aws.pass_time(60)
    done = aws.describe_snapshot(pending["SnapshotId"])
    assert (done["State"], done["Progress"], done["StorageTier"]) == ("completed", "100%", "standard")
    assert done["FullSnapshotSizeInBytes"] == 0
    assert done["CompletionTime"] >= done["StartTime"]


def test_the_completion_time_is_constant(aws: SandboxClients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws.sandbox.clock, "speed", 1.0)
    volume = aws.ec2.create_volume(Size=2, AvailabilityZone="us-east-1a")["VolumeId"]
    aws.pass_time(60)
    snapshot = aws.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    shown = set()
    for seconds in (15, 15, 0, 1000):
        aws.pass_time(seconds)
        shown.add(aws.describe_snapshot(snapshot).get("CompletionTime"))
    assert len(shown - {None}) == 1


def test_a_volume_has_one_snapshot_in_fifteen_seconds(aws: SandboxClients) -> None:
    volume = aws.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]
    aws.ec2.create_snapshot(VolumeId=volume)
    with refused("SnapshotCreationPerVolumeRateExceeded"):
        aws.ec2.create_snapshot(VolumeId=volume)
    aws.pass_time(16)
    aws.ec2.create_snapshot(VolumeId=volume)


def test_a_copy_has_an_arbitrary_volume_id(aws: SandboxClients) -> None:
    """Documented: "an arbitrary volume ID that you should not use for any purpose"."""
    tags = [{"Key": "Name", "Value": "copy"}]
    ireland = aws.client("ec2", "eu-west-1")
    answer = ireland.copy_snapshot(
        SourceSnapshotId=aws.snapshot(),
        SourceRegion="us-east-1",
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": tags}],
    )
    shown = aws.describe_snapshot(answer["SnapshotId"], "eu-west-1")
    assert (shown["State"], shown["VolumeId"], shown["VolumeSize"]) == ("pending", "vol-ffffffff", 3)
    assert (shown["Tags"], shown["TransferType"]) == (tags, "standard")


def test_every_filter_compares_its_attribute(aws: SandboxClients) -> None:
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "Name", "Value": "a node"}]}]
    snapshot = aws.snapshot(Description="a probe", TagSpecifications=tags)
    shown = aws.describe_snapshot(snapshot)
    values = {
        "description": "a pr*",
        "encrypted": "false",
        "owner-id": aws.account,
        "progress": "100%",
        "snapshot-id": snapshot,
        "start-time": shown["StartTime"].strftime("%Y-%m-%dT*"),
        "status": "completed",
        "storage-tier": "standard",
        "tag-key": "Name",
        "tag:Name": "a node",
        "volume-id": shown["VolumeId"],
        "volume-size": "3",
    }
    for name, value in values.items():
        assert listed(aws, Filters=[{"Name": name, "Values": [value]}]) == [snapshot], name
        assert listed(aws, Filters=[{"Name": name, "Values": ["no-such-value"]}]) == [], name
    with refused("InvalidParameterValue", "The filter 'bogus' is invalid"):
        listed(aws, Filters=[{"Name": "bogus", "Values": ["x"]}])


def test_pages_have_five_snapshots_or_more(aws: SandboxClients) -> None:
    made = sorted(aws.snapshot() for _ in range(7))
    first = aws.ec2.describe_snapshots(OwnerIds=["self"], MaxResults=5)
    second = aws.ec2.describe_snapshots(OwnerIds=["self"], MaxResults=5, NextToken=first["NextToken"])
    pages = [[s["SnapshotId"] for s in page["Snapshots"]] for page in (first, second)]
    assert ([len(page) for page in pages], functools.reduce(operator.iadd, pages, [])) == ([5, 2], made)
    with refused("InvalidParameterValue", "Expecting a value greater than 5"):
        aws.ec2.describe_snapshots(MaxResults=4)
    with refused("InvalidParameterCombination", "snapshotIds cannot be used with the parameter maxResults"):
        aws.ec2.describe_snapshots(SnapshotIds=made[:1], MaxResults=5)


def test_snapshots_of_other_accounts_are_not_own(aws: SandboxClients) -> None:
    aws.snapshot()
    assert listed(aws, OwnerIds=[FRIEND]) == []
    assert len(listed(aws, OwnerIds=[aws.account])) == 1


def test_unknown_and_malformed_ids_have_different_errors(aws: SandboxClients) -> None:
    with refused("InvalidSnapshot.NotFound", "The snapshot 'snap-0123456789abcdef0' does not exist."):
        listed(aws, SnapshotIds=["snap-0123456789abcdef0"])
    with refused("InvalidSnapshotID.Malformed"):
        listed(aws, SnapshotIds=["foo"])


def test_a_snapshot_in_use_is_not_deleted(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    image = aws.image(snapshot)
    with refused("InvalidSnapshot.InUse", f"The snapshot {snapshot} is currently in use by {image}"):
        aws.ec2.delete_snapshot(SnapshotId=snapshot)


def test_permissions_to_create_volumes_have_two_forms(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    aws.ec2.modify_snapshot_attribute(
        SnapshotId=snapshot, Attribute="createVolumePermission", OperationType="add", UserIds=[FRIEND]
    )
    aws.ec2.modify_snapshot_attribute(SnapshotId=snapshot, CreateVolumePermission={"Add": [{"Group": "all"}]})
    params = {"SnapshotId": snapshot, "Attribute": "createVolumePermission"}
    shown = aws.ec2.describe_snapshot_attribute(**params)["CreateVolumePermissions"]
    assert shown == [{"UserId": FRIEND}, {"Group": "all"}]
    aws.ec2.reset_snapshot_attribute(**params)
    assert aws.ec2.describe_snapshot_attribute(**params)["CreateVolumePermissions"] == []


@pytest.mark.parametrize("state", ["block-all-sharing", "block-new-sharing"])
def test_block_public_access_refuses_public_snapshots(aws: SandboxClients, state: str) -> None:
    snapshot = aws.snapshot()
    aws.ec2.enable_snapshot_block_public_access(State=state)
    assert aws.ec2.get_snapshot_block_public_access_state()["State"] == state
    with refused("OperationNotPermitted"):
        aws.ec2.modify_snapshot_attribute(
            SnapshotId=snapshot, CreateVolumePermission={"Add": [{"Group": "all"}]}
        )
    aws.ec2.disable_snapshot_block_public_access()
    assert aws.ec2.get_snapshot_block_public_access_state()["State"] == "unblocked"


def test_encryption_by_default_encrypts_what_is_new(aws: SandboxClients) -> None:
    assert aws.ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"] is False
    aws.ec2.enable_ebs_encryption_by_default()
    snapshot = aws.describe_snapshot(aws.snapshot())
    assert snapshot["Encrypted"] is True
    assert snapshot["KmsKeyId"].startswith(f"arn:aws:kms:us-east-1:{aws.account}:key/")
    aws.ec2.disable_ebs_encryption_by_default()
    assert aws.describe_snapshot(aws.snapshot())["Encrypted"] is False


def test_the_default_key_can_be_chosen(aws: SandboxClients) -> None:
    key = f"arn:aws:kms:us-east-1:{aws.account}:key/11111111-2222-3333-4444-555555555555"
    assert aws.ec2.get_ebs_default_kms_key_id()["KmsKeyId"] == "alias/aws/ebs"
    aws.ec2.modify_ebs_default_kms_key_id(KmsKeyId=key)
    volume = aws.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a", Encrypted=True)
    assert volume["KmsKeyId"] == key
    managed = aws.ec2.reset_ebs_default_kms_key_id()["KmsKeyId"]
    assert managed.startswith(f"arn:aws:kms:us-east-1:{aws.account}:key/")
    assert managed != key
    assert aws.ec2.get_ebs_default_kms_key_id()["KmsKeyId"] == "alias/aws/ebs"


def test_a_volume_of_a_snapshot_is_at_least_as_large(aws: SandboxClients) -> None:
    snapshot = aws.snapshot(size=3)
    volume = aws.ec2.create_volume(SnapshotId=snapshot, AvailabilityZone="us-east-1a", VolumeType="gp3")
    assert (volume["Size"], volume["State"], volume["Iops"]) == (3, "creating", 3000)
    with refused("InvalidBlockDeviceMapping"):
        aws.ec2.create_volume(SnapshotId=snapshot, Size=2, AvailabilityZone="us-east-1a")
    with refused("InvalidParameterValue", "us-west-2a"):
        aws.ec2.create_volume(Size=1, AvailabilityZone="us-west-2a")


def test_a_volume_can_be_deleted(aws: SandboxClients) -> None:
    volume = aws.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]
    aws.ec2.delete_volume(VolumeId=volume)
    with refused("InvalidVolume.NotFound"):
        aws.ec2.describe_volumes(VolumeIds=[volume])


# Locks


def test_a_locked_snapshot_cannot_be_deleted_until_it_is_unlocked(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    locked = aws.ec2.lock_snapshot(SnapshotId=snapshot, LockMode="governance", LockDuration=30)
    assert (locked["LockState"], locked["LockDuration"]) == ("governance", 30)
    assert (locked["LockExpiresOn"] - locked["LockCreatedOn"]).days == 30
    with refused("OperationNotPermitted", "locked"):
        aws.ec2.delete_snapshot(SnapshotId=snapshot)
    (shown,) = aws.ec2.describe_locked_snapshots()["Snapshots"]
    assert (shown["SnapshotId"], shown["LockState"]) == (snapshot, "governance")
    aws.ec2.unlock_snapshot(SnapshotId=snapshot)
    assert aws.ec2.describe_locked_snapshots()["Snapshots"] == []
    aws.ec2.delete_snapshot(SnapshotId=snapshot)


def test_a_compliance_lock_can_be_removed_only_while_it_cools_off(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    lock = {"SnapshotId": snapshot, "LockMode": "compliance"}
    locked = aws.ec2.lock_snapshot(**lock, LockDuration=2, CoolOffPeriod=3)
    assert (locked["LockState"], locked["CoolOffPeriod"]) == ("compliance-cooloff", 3)
    aws.ec2.unlock_snapshot(SnapshotId=snapshot)
    aws.ec2.lock_snapshot(**lock, LockDuration=2, CoolOffPeriod=3)
    aws.pass_time(4 * 3600)
    for refusal in (
        lambda: aws.ec2.unlock_snapshot(SnapshotId=snapshot),
        lambda: aws.ec2.lock_snapshot(**lock, LockDuration=1),
        lambda: aws.ec2.lock_snapshot(SnapshotId=snapshot, LockMode="governance", LockDuration=9),
    ):
        with refused("OperationNotPermitted"):
            refusal()
    assert aws.ec2.lock_snapshot(**lock, LockDuration=5)["LockDuration"] == 5
    only = [{"Name": "lock-state", "Values": ["expired"]}]
    assert aws.ec2.describe_locked_snapshots(Filters=only)["Snapshots"] == []
    aws.pass_time(6 * 86_400)
    (shown,) = aws.ec2.describe_locked_snapshots(Filters=only)["Snapshots"]
    assert shown["SnapshotId"] == snapshot
    aws.ec2.delete_snapshot(SnapshotId=snapshot)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"LockMode": "governance"}, "MissingParameter"),
        (
            {"LockMode": "governance", "LockDuration": 1, "ExpirationDate": "2100-01-01"},
            "InvalidParameterCombination",
        ),
        ({"LockMode": "governance", "ExpirationDate": "2020-01-01"}, "InvalidParameterValue"),
        ({"LockMode": "governance", "LockDuration": 1, "CoolOffPeriod": 1}, "InvalidParameterValue"),
        ({"LockMode": "for ever", "LockDuration": 1}, "InvalidParameterValue"),
        ({"LockMode": "compliance", "LockDuration": 40_000}, "InvalidParameterValue"),
    ],
)
def test_an_invalid_lock_is_refused(aws: SandboxClients, params: dict[str, object], code: str) -> None:
    with refused(code):
        aws.ec2.lock_snapshot(SnapshotId=aws.snapshot(), **params)
