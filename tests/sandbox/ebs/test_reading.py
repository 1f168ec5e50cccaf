"""ListSnapshotBlocks, ListChangedBlocks, GetSnapshotBlock, and the blocks of copies, volumes and images.

Sources: the operations' reference pages; "Read snapshots using the EBS direct APIs" (life of tokens).
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from tests.sandbox.clients import BLOCK, SandboxClients, refused

DAY = 24 * 3600


def checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def write(aws: SandboxClients, blocks: dict[int, bytes], parent: str | None = None) -> str:
    """Return a completed snapshot whose blocks begin with these bytes."""
    more = {"ParentSnapshotId": parent} if parent else {}
    snapshot: str = aws.ebs.start_snapshot(VolumeSize=1, **more)["SnapshotId"]
    for index, start in blocks.items():
        data = start.ljust(BLOCK, b"\0")
        aws.ebs.put_snapshot_block(
            SnapshotId=snapshot,
            BlockIndex=index,
            BlockData=data,
            DataLength=BLOCK,
            Checksum=checksum(data),
            ChecksumAlgorithm="SHA256",
        )
    aws.ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=len(blocks))
    aws.pass_time(60)
    return snapshot


def read(aws: SandboxClients, snapshot: str, region: str = "us-east-1") -> dict[int, bytes]:
    """Return the first bytes of the blocks of a snapshot."""
    ebs = aws.client("ebs", region)
    found = {}
    for block in ebs.list_snapshot_blocks(SnapshotId=snapshot)["Blocks"]:
        answer = ebs.get_snapshot_block(SnapshotId=snapshot, **block)
        data = answer["BlockData"].read()
        assert (answer["DataLength"], len(data)) == (BLOCK, BLOCK)
        assert answer["Checksum"] == checksum(data)
        found[block["BlockIndex"]] = data.rstrip(b"\0")
    return found


def indices(answer: dict[str, Any]) -> list[int]:
    return [block["BlockIndex"] for block in answer["Blocks"]]


def test_written_blocks_are_read_back_in_order(aws: SandboxClients) -> None:
    written = {5: b"five", 0: b"zero", 1: b"one"}
    snapshot = write(aws, written)
    answer = aws.ebs.list_snapshot_blocks(SnapshotId=snapshot)
    assert indices(answer) == [0, 1, 5]
    assert (answer["BlockSize"], answer["VolumeSize"]) == (BLOCK, 1)
    assert read(aws, snapshot) == written


def test_pages_together_list_everything(aws: SandboxClients) -> None:
    snapshot = write(aws, dict.fromkeys(range(0, 250, 2), b"x"))
    first = aws.ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=100)
    second = aws.ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=100, NextToken=first["NextToken"])
    assert (len(first["Blocks"]), len(second["Blocks"])) == (100, 25)
    assert indices(first) + indices(second) == list(range(0, 250, 2))
    assert "NextToken" not in second
    assert indices(aws.ebs.list_snapshot_blocks(SnapshotId=snapshot, StartingBlockIndex=245)) == [246, 248]


def test_a_token_is_valid_for_its_own_purpose_only(aws: SandboxClients) -> None:
    one, other = write(aws, {0: b"a", 1: b"b"}), write(aws, {0: b"a"})
    first, second = aws.ebs.list_snapshot_blocks(SnapshotId=one)["Blocks"]
    for snapshot, index, token in (
        (one, 0, "AAAA"),
        (one, 0, second["BlockToken"]),
        (other, 0, first["BlockToken"]),
    ):
        with refused("ValidationException"):
            aws.ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockToken=token)
    with refused("ValidationException"):
        aws.ebs.list_snapshot_blocks(SnapshotId=one, NextToken=first["BlockToken"])


def test_tokens_expire(aws: SandboxClients) -> None:
    snapshot = write(aws, dict.fromkeys(range(101), b"x"))
    page = aws.ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=100)
    aws.pass_time(2 * 3600)
    aws.ebs.get_snapshot_block(SnapshotId=snapshot, **page["Blocks"][0])
    with refused("ValidationException"):
        aws.ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=100, NextToken=page["NextToken"])
    aws.pass_time(7 * DAY)
    with refused("ValidationException"):
        aws.ebs.get_snapshot_block(SnapshotId=snapshot, **page["Blocks"][0])


def test_a_child_has_the_blocks_of_its_parent_that_it_did_not_replace(aws: SandboxClients) -> None:
    parent = write(aws, {0: b"old", 1: b"old"})
    child = write(aws, {1: b"new", 3: b"new"}, parent)
    assert read(aws, child) == {0: b"old", 1: b"new", 3: b"new"}
    assert read(aws, parent) == {0: b"old", 1: b"old"}


def test_a_child_keeps_its_blocks_when_its_parent_is_deleted(aws: SandboxClients) -> None:
    parent = write(aws, {0: b"old"})
    child = write(aws, {}, parent)
    aws.ec2.delete_snapshot(SnapshotId=parent)
    assert read(aws, child) == {0: b"old"}


def test_changed_blocks_are_those_that_differ(aws: SandboxClients) -> None:
    parent = write(aws, {0: b"same", 1: b"old"})
    child = write(aws, {0: b"same", 1: b"new", 3: b"new"}, parent)
    answer = aws.ebs.list_changed_blocks(FirstSnapshotId=parent, SecondSnapshotId=child)
    changed = {b["BlockIndex"]: b for b in answer["ChangedBlocks"]}
    assert sorted(changed) == [1, 3]
    assert "FirstBlockToken" in changed[1]
    assert "FirstBlockToken" not in changed[3]
    for snapshot, token, expected in (
        (parent, "FirstBlockToken", b"old"),
        (child, "SecondBlockToken", b"new"),
    ):
        got = aws.ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=1, BlockToken=changed[1][token])
        assert got["BlockData"].read().rstrip(b"\0") == expected


def test_without_a_first_snapshot_every_block_changed(aws: SandboxClients) -> None:
    snapshot = write(aws, {0: b"a", 7: b"b"})
    changed = aws.ebs.list_changed_blocks(SecondSnapshotId=snapshot)["ChangedBlocks"]
    assert [(b["BlockIndex"], "FirstBlockToken" in b) for b in changed] == [(0, False), (7, False)]


def test_unrelated_snapshots_have_no_changes(aws: SandboxClients) -> None:
    one, other = write(aws, {0: b"a"}), write(aws, {0: b"b"})
    with pytest.raises(aws.ebs.exceptions.ValidationException) as caught:
        aws.ebs.list_changed_blocks(FirstSnapshotId=one, SecondSnapshotId=other)
    assert caught.value.response["Reason"] == "UNRELATED_SNAPSHOTS"


def test_a_pending_snapshot_is_not_read(aws: SandboxClients) -> None:
    snapshot = aws.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    with refused("ValidationException"):
        aws.ebs.list_snapshot_blocks(SnapshotId=snapshot)


def test_a_public_snapshot_is_not_read(aws: SandboxClients) -> None:
    snapshot = write(aws, {0: b"x"})
    permission = {"Attribute": "createVolumePermission", "GroupNames": ["all"]}
    aws.ec2.modify_snapshot_attribute(SnapshotId=snapshot, OperationType="add", **permission)
    with refused("ValidationException", "is public"):
        aws.ebs.list_snapshot_blocks(SnapshotId=snapshot)
    aws.ec2.modify_snapshot_attribute(SnapshotId=snapshot, OperationType="remove", **permission)
    assert read(aws, snapshot) == {0: b"x"}


def test_an_archived_snapshot_is_not_read(aws: SandboxClients) -> None:
    snapshot = write(aws, {0: b"x"})
    aws.ec2.modify_snapshot_tier(SnapshotId=snapshot)
    assert read(aws, snapshot) == {0: b"x"}
    aws.pass_time(3600)
    with refused("ValidationException", "is archived"):
        aws.ebs.list_snapshot_blocks(SnapshotId=snapshot)


def test_unknown_snapshots_are_refused(aws: SandboxClients) -> None:
    with refused("ResourceNotFoundException"):
        aws.ebs.list_snapshot_blocks(SnapshotId="snap-0123456789abcdef0")
    with refused("ResourceNotFoundException"):
        aws.ebs.list_changed_blocks(SecondSnapshotId="snap-0123456789abcdef0")


def test_copies_volumes_and_images_have_the_same_blocks(aws: SandboxClients) -> None:
    written = {0: b"boot", 9: b"data"}
    snapshot = write(aws, written)
    ireland = aws.client("ec2", "eu-west-1")
    copied = ireland.copy_snapshot(SourceSnapshotId=snapshot, SourceRegion="us-east-1")["SnapshotId"]
    volume = aws.ec2.create_volume(SnapshotId=snapshot, AvailabilityZone="us-east-1a")["VolumeId"]
    again = aws.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    image = ireland.copy_image(Name="copy", SourceImageId=aws.image(snapshot), SourceRegion="us-east-1")[
        "ImageId"
    ]
    aws.pass_time(600)
    of_image = aws.describe(image, "eu-west-1")["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    assert read(aws, copied, "eu-west-1") == written
    assert read(aws, again) == written
    assert read(aws, of_image, "eu-west-1") == written


def test_a_snapshot_of_a_restored_volume_belongs_to_the_lineage(aws: SandboxClients) -> None:
    snapshot = write(aws, {0: b"a"})
    volume = aws.ec2.create_volume(SnapshotId=snapshot, AvailabilityZone="us-east-1a")["VolumeId"]
    again = aws.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    aws.pass_time(600)
    answer = aws.ebs.list_changed_blocks(FirstSnapshotId=snapshot, SecondSnapshotId=again)
    assert answer.get("ChangedBlocks", []) == []
