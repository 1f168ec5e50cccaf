"""StartSnapshot, PutSnapshotBlock, CompleteSnapshot.

Sources: the operations' reference pages; "Use EBS direct APIs to access the contents of an EBS snapshot" with
its pages on checksums, idempotency and timeouts; "Quotas for the EBS direct APIs".
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from tests.sandbox.clients import BLOCK, SandboxClients, refused

MINUTE = 60


def checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def linear(*blocks: bytes) -> dict[str, str]:
    """Return the aggregated checksum: SHA-256 of the blocks' raw digests, sorted by index."""
    digests = b"".join(hashlib.sha256(block).digest() for block in blocks)
    return {
        "Checksum": checksum(digests),
        "ChecksumAlgorithm": "SHA256",
        "ChecksumAggregationMethod": "LINEAR",
    }


def block(number: int) -> bytes:
    return bytes([number]) * BLOCK


def start(aws: SandboxClients, **more: Any) -> str:
    snapshot_id: str = aws.ebs.start_snapshot(**({"VolumeSize": 1} | more))["SnapshotId"]
    return snapshot_id


def put(
    aws: SandboxClients, snapshot: str, index: int, data: bytes | None = None, **more: Any
) -> dict[str, Any]:
    data = block(index % 256) if data is None else data
    params = {
        "SnapshotId": snapshot,
        "BlockIndex": index,
        "BlockData": data,
        "DataLength": len(data),
        "Checksum": checksum(data),
        "ChecksumAlgorithm": "SHA256",
    }
    answer: dict[str, Any] = aws.ebs.put_snapshot_block(**(params | more))
    return answer


def complete(aws: SandboxClients, snapshot: str, count: int, **more: Any) -> str:
    status: str = aws.ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=count, **more)["Status"]
    return status


def test_a_started_snapshot_is_pending_in_ebs_and_ec2(aws: SandboxClients) -> None:
    tags = [{"Key": "Name", "Value": "node"}]
    answer = aws.ebs.start_snapshot(VolumeSize=5, Description="direct", Tags=tags)
    shown = aws.describe_snapshot(answer["SnapshotId"])
    assert (answer["BlockSize"], answer["Status"], answer["VolumeSize"]) == (BLOCK, "pending", 5)
    assert (shown["State"], shown["Description"], shown["Tags"]) == ("pending", "direct", tags)
    assert answer["OwnerId"] == aws.account


def test_a_snapshot_is_pending_for_a_while_after_its_completion(aws: SandboxClients) -> None:
    snapshot = start(aws)
    put(aws, snapshot, 0)
    assert complete(aws, snapshot, 1) == "pending"
    aws.pass_time(MINUTE)
    shown = aws.describe_snapshot(snapshot)
    assert (shown["State"], shown["Progress"], shown["FullSnapshotSizeInBytes"]) == (
        "completed",
        "100%",
        BLOCK,
    )


def test_the_answer_to_a_put_repeats_the_checksum(aws: SandboxClients) -> None:
    answer = put(aws, start(aws), 3)
    assert (answer["Checksum"], answer["ChecksumAlgorithm"]) == (checksum(block(3)), "SHA256")


def test_a_block_with_another_checksum_is_refused(aws: SandboxClients) -> None:
    snapshot = start(aws)
    with refused("ValidationException"):
        put(aws, snapshot, 0, Checksum=checksum(b"another"))
    assert complete(aws, snapshot, 0) == "pending"


@pytest.mark.parametrize("length", [1000, BLOCK - 1, BLOCK + 1])
def test_a_block_has_524288_bytes(aws: SandboxClients, length: int) -> None:
    with refused("ValidationException"):
        put(aws, start(aws), 0, b"x" * length)


@pytest.mark.parametrize("length", [1000, BLOCK + 1])
def test_a_wrong_data_length_is_refused(aws: SandboxClients, length: int) -> None:
    with refused("ValidationException"):
        put(aws, start(aws), 0, b"x" * length, DataLength=BLOCK)


def test_a_block_beyond_the_volume_is_refused(aws: SandboxClients) -> None:
    snapshot = start(aws)
    put(aws, snapshot, 2047)
    with refused("ValidationException"):
        put(aws, snapshot, 2048)


def test_progress_is_shown_by_ec2(aws: SandboxClients) -> None:
    snapshot = start(aws)
    put(aws, snapshot, 0, Progress=40)
    assert aws.describe_snapshot(snapshot)["Progress"] == "40%"


def test_a_block_written_twice_counts_once_with_its_last_content(aws: SandboxClients) -> None:
    snapshot = start(aws)
    put(aws, snapshot, 0, block(1))
    put(aws, snapshot, 0, block(2))
    assert complete(aws, snapshot, 1, **linear(block(2))) == "pending"


def test_a_wrong_count_of_blocks_is_refused(aws: SandboxClients) -> None:
    snapshot = start(aws)
    put(aws, snapshot, 0)
    for count in (0, 2):
        with refused("ValidationException"):
            complete(aws, snapshot, count)


def test_a_wrong_aggregated_checksum_is_refused(aws: SandboxClients) -> None:
    snapshot = start(aws)
    for index in (5, 0, 1):
        put(aws, snapshot, index)
    with refused("ValidationException"):
        complete(aws, snapshot, 3, **linear(block(5), block(0), block(1)))
    assert complete(aws, snapshot, 3, **linear(block(0), block(1), block(5))) == "pending"


def test_an_incomplete_aggregated_checksum_is_refused(aws: SandboxClients) -> None:
    with refused("ValidationException"):
        complete(aws, start(aws), 0, Checksum=checksum(b""))


def test_a_completed_snapshot_accepts_no_block(aws: SandboxClients) -> None:
    snapshot = start(aws)
    complete(aws, snapshot, 0)
    with refused("ValidationException"):
        put(aws, snapshot, 0)


def test_completing_again_after_a_lost_answer_succeeds(aws: SandboxClients) -> None:
    snapshot = start(aws)
    complete(aws, snapshot, 0)
    aws.pass_time(MINUTE)
    assert complete(aws, snapshot, 0) == "completed"


def test_unknown_snapshots_are_refused(aws: SandboxClients) -> None:
    unknown = "snap-0123456789abcdef0"
    with refused("ResourceNotFoundException"):
        put(aws, unknown, 0)
    with refused("ResourceNotFoundException"):
        complete(aws, unknown, 0)
    with refused("ResourceNotFoundException"):
        start(aws, ParentSnapshotId=unknown)


def test_a_snapshot_that_was_not_started_directly_accepts_no_block(aws: SandboxClients) -> None:
    snapshot = aws.snapshot()
    with refused("ValidationException"):
        put(aws, snapshot, 0)
    with refused("ValidationException"):
        complete(aws, snapshot, 0)


def test_the_same_token_starts_one_snapshot(aws: SandboxClients) -> None:
    assert start(aws, ClientToken="once") == start(aws, ClientToken="once")
    with refused("ConflictException"):
        start(aws, ClientToken="once", VolumeSize=2)


def test_a_refusal_has_a_reason_and_a_status(aws: SandboxClients) -> None:
    """The reasons are from enumerations in botocore's model."""
    snapshot = start(aws, ClientToken="once")
    with pytest.raises(aws.ebs.exceptions.ValidationException) as caught:
        put(aws, snapshot, 2048)
    assert caught.value.response["Reason"] == "INVALID_BLOCK"
    with pytest.raises(aws.ebs.exceptions.ResourceNotFoundException) as missing:
        put(aws, "snap-0123456789abcdef0", 0)
    assert missing.value.response["Reason"] == "SNAPSHOT_NOT_FOUND"
    assert missing.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    with pytest.raises(aws.ebs.exceptions.ConflictException) as conflict:
        start(aws, ClientToken="once", VolumeSize=2)
    assert conflict.value.response["ResponseMetadata"]["HTTPStatusCode"] == 409


def test_a_snapshot_without_writes_fails_after_an_hour(aws: SandboxClients) -> None:
    snapshot = start(aws)
    aws.pass_time(50 * MINUTE)
    put(aws, snapshot, 0)
    aws.pass_time(50 * MINUTE)
    put(aws, snapshot, 1)
    aws.pass_time(70 * MINUTE)
    with pytest.raises(aws.ebs.exceptions.ValidationException) as caught:
        put(aws, snapshot, 2)
    assert caught.value.response["Reason"] == "WRITE_REQUEST_TIMEOUT"
    assert aws.describe_snapshot(snapshot)["State"] == "error"
    with refused("ValidationException"):
        complete(aws, snapshot, 2)


def test_the_timeout_can_be_chosen(aws: SandboxClients) -> None:
    short, long = start(aws, Timeout=10), start(aws, Timeout=4320)
    aws.pass_time(11 * MINUTE)
    put(aws, long, 0)
    with refused("ValidationException"):
        put(aws, short, 0)


def test_an_account_has_a_hundred_pending_snapshots(aws: SandboxClients) -> None:
    """Source: quota "Pending snapshots per account"; HTTP 402 is from botocore's model."""
    pending = [start(aws) for _ in range(100)]
    with pytest.raises(aws.ebs.exceptions.ServiceQuotaExceededException) as caught:
        start(aws)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 402
    aws.ec2.delete_snapshot(SnapshotId=pending[0])
    start(aws)


def test_a_pending_snapshot_can_be_deleted(aws: SandboxClients) -> None:
    snapshot = start(aws)
    aws.ec2.delete_snapshot(SnapshotId=snapshot)
    with refused("ResourceNotFoundException"):
        put(aws, snapshot, 0)


def test_a_pending_or_larger_parent_is_refused(aws: SandboxClients) -> None:
    with refused("ValidationException"):
        start(aws, ParentSnapshotId=start(aws))
    with refused("ValidationException"):
        start(aws, ParentSnapshotId=aws.snapshot(size=3), VolumeSize=2)
    parent = aws.snapshot(size=1)
    answer = aws.ebs.start_snapshot(VolumeSize=2, ParentSnapshotId=parent)
    assert answer["ParentSnapshotId"] == parent


def test_a_child_is_encrypted_as_its_parent(aws: SandboxClients) -> None:
    """Documented: with ParentSnapshotId, Encrypted must be omitted."""
    with refused("ValidationException"):
        start(aws, ParentSnapshotId=aws.snapshot(size=1), Encrypted=True)


def test_encryption_has_the_default_key_unless_one_is_named(aws: SandboxClients) -> None:
    named = f"arn:aws:kms:us-east-1:{aws.account}:key/11111111-2222-3333-4444-555555555555"
    assert aws.ebs.start_snapshot(VolumeSize=1, Encrypted=True)["KmsKeyArn"].startswith(
        "arn:aws:kms:us-east-1:"
    )
    assert aws.ebs.start_snapshot(VolumeSize=1, Encrypted=True, KmsKeyArn=named)["KmsKeyArn"] == named
    with refused("ValidationException"):
        start(aws, KmsKeyArn=named)


def test_a_fault_rule_can_make_a_completed_snapshot_fail(aws: SandboxClients) -> None:
    outcome = {"status_message": "Out of luck"}
    aws.sandbox.faults.add({"op": "ebs:CompleteSnapshot", "do": "outcome", "outcome": outcome})
    snapshot = start(aws)
    complete(aws, snapshot, 0)
    aws.pass_time(MINUTE)
    assert aws.describe_snapshot(snapshot)["State"] == "error"
