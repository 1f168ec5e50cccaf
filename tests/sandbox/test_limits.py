"""Limits on requests with ``limits="aws"``.

Sources: the quotas of Amazon EBS in Service Quotas; RequestThrottledException in the reference of the EBS
direct APIs; "Request throttling for the Amazon EC2 API".
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.sandbox.clients import BLOCK, SandboxClients, refused
from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.sandbox.core import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.exceptions import ClientError


@pytest.fixture(scope="module")
def limited_sandbox() -> Iterator[SandboxClients]:
    with sandbox(limits="aws") as started:
        yield SandboxClients(started)


@pytest.fixture
def aws(limited_sandbox: SandboxClients) -> Iterator[SandboxClients]:
    """A sandbox with limits, whose clock moves only when a test advances it."""
    limited_sandbox.sandbox.reset()
    limited_sandbox.sandbox.state.clock = Clock(0)
    yield limited_sandbox
    limited_sandbox.close()


def succeeded(call: Callable[[], Any], most: int) -> tuple[int, ClientError | None]:
    """Call until an error; return the number of successful calls, and the error."""
    from botocore.exceptions import ClientError

    for count in range(most):
        try:
            call()
        except ClientError as error:
            return count, error
    return most, None


def facts(error: ClientError | None) -> tuple[str, str, int]:
    assert error is not None, "no request was refused"
    answer = error.response
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    return answer["Error"]["Code"], answer.get("Reason", ""), status  # type: ignore[typeddict-item]


def set_quota(aws: SandboxClients, code: str, value: float) -> None:
    aws.sandbox.state.tables.table(aws.account, "us-east-1", "quotas")[f"ebs/{code}"] = value


def start(aws: SandboxClients) -> str:
    aws.pass_time(1)
    snapshot_id: str = aws.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    return snapshot_id


def put(aws: SandboxClients, snapshot_id: str, index: int = 0) -> None:
    data = bytes([index]) * BLOCK
    checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
    aws.ebs.put_snapshot_block(
        SnapshotId=snapshot_id,
        BlockIndex=index,
        BlockData=data,
        DataLength=BLOCK,
        Checksum=checksum,
        ChecksumAlgorithm="SHA256",
    )


def completed(aws: SandboxClients) -> tuple[str, str]:
    """Return a completed snapshot of one block, and the token of the block."""
    snapshot_id = start(aws)
    put(aws, snapshot_id)
    aws.ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=1)
    aws.pass_time(60)
    blocks = aws.ebs.list_snapshot_blocks(SnapshotId=snapshot_id)["Blocks"]
    return snapshot_id, blocks[0]["BlockToken"]


@pytest.mark.parametrize(
    ("operation", "code", "reason", "default"),
    [
        ("put", "L-1774F84A", "RESOURCE_LEVEL_THROTTLE", 1000),
        ("put", "L-AFAE1BE8", "ACCOUNT_THROTTLED", 1000),
        ("get", "L-028ACFB9", "RESOURCE_LEVEL_THROTTLE", 1000),
        ("get", "L-C125AE42", "ACCOUNT_THROTTLED", 1000),
        ("start", "L-AFEBDF7A", "ACCOUNT_THROTTLED", 10),
        ("complete", "L-1D4D9345", "ACCOUNT_THROTTLED", 10),
        ("list", "L-18E976AB", "ACCOUNT_THROTTLED", 50),
        ("changed", "L-DB2FBAA1", "ACCOUNT_THROTTLED", 50),
    ],
)
def test_the_ebs_direct_apis_are_throttled(
    aws: SandboxClients, operation: str, code: str, reason: str, default: int
) -> None:
    quotas = aws.client("service-quotas")
    assert quotas.get_service_quota(ServiceCode="ebs", QuotaCode=code)["Quota"]["Value"] == default
    snapshot_id, token = completed(aws)
    pending = start(aws)
    aws.pass_time(60)
    calls: dict[str, Callable[[], Any]] = {
        "put": lambda: put(aws, pending),
        "get": lambda: aws.ebs.get_snapshot_block(SnapshotId=snapshot_id, BlockIndex=0, BlockToken=token),
        "start": lambda: aws.ebs.start_snapshot(VolumeSize=1),
        "complete": lambda: aws.ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=1),
        "list": lambda: aws.ebs.list_snapshot_blocks(SnapshotId=snapshot_id),
        "changed": lambda: aws.ebs.list_changed_blocks(SecondSnapshotId=snapshot_id),
    }
    count = default
    if default > 50:
        count = 5
        set_quota(aws, code, count)
    done, error = succeeded(calls[operation], 2 * default)
    assert (done, facts(error)) == (count, ("RequestThrottledException", reason, 400))
    aws.pass_time(2 / count)  # tokens for two requests
    assert succeeded(calls[operation], 2 * default)[0] == 2


def test_each_snapshot_has_its_own_limit_within_that_of_the_account(aws: SandboxClients) -> None:
    one, other = start(aws), start(aws)
    set_quota(aws, "L-1774F84A", 4)
    set_quota(aws, "L-AFAE1BE8", 6)
    done, error = succeeded(lambda: put(aws, one), 20)
    assert (done, facts(error)[1]) == (4, "RESOURCE_LEVEL_THROTTLE")
    # A refused request takes nothing from the account.
    done, error = succeeded(lambda: put(aws, other), 20)
    assert (done, facts(error)[1]) == (2, "ACCOUNT_THROTTLED")


@pytest.mark.long(seconds=15)
def test_one_snapshot_takes_a_thousand_blocks_a_second(aws: SandboxClients) -> None:
    snapshot_id = start(aws)
    done, error = succeeded(lambda: put(aws, snapshot_id), 1500)
    assert (done, facts(error)[1]) == (1000, "RESOURCE_LEVEL_THROTTLE")


@pytest.mark.parametrize(
    ("operation", "params", "size", "rate"),
    [
        ("describe_snapshots", {"OwnerIds": ["self"]}, 50, 10),
        ("describe_snapshots", {"OwnerIds": ["self"], "MaxResults": 5}, 100, 20),
        ("enable_ebs_encryption_by_default", {}, 50, 5),
        ("disable_image_block_public_access", {}, 1, 0.1),
        pytest.param("describe_images", {}, 100, 20, marks=pytest.mark.long(seconds=3)),
    ],
)
def test_ec2_has_token_buckets(
    aws: SandboxClients, operation: str, params: dict[str, Any], size: int, rate: float
) -> None:
    def call() -> None:
        getattr(aws.ec2, operation)(**params)

    done, error = succeeded(call, 200)
    assert (done, facts(error)) == (size, ("RequestLimitExceeded", "", 503))
    aws.pass_time(1 / rate)
    assert succeeded(call, 200)[0] == 1
    aws.pass_time(2 * size / rate)
    assert succeeded(call, 200)[0] == size


@pytest.mark.long(seconds=3)
def test_one_copy_of_an_image_a_second_after_a_hundred(aws: SandboxClients) -> None:
    source = {"SourceImageId": "ami-0123456789abcdef0", "SourceRegion": "us-east-1", "Name": "copy"}
    codes = []
    for _ in range(102):
        _, error = succeeded(lambda: aws.ec2.copy_image(**source), 1)
        codes.append(facts(error)[0])
    assert codes == ["InvalidAMIID.NotFound"] * 100 + ["RequestLimitExceeded"] * 2


def test_other_regions_accounts_operations_and_services_are_not_throttled(aws: SandboxClients) -> None:
    aws.ec2.disable_image_block_public_access()
    with refused("RequestLimitExceeded"):
        aws.ec2.disable_image_block_public_access()
    aws.client("ec2", "eu-west-1").disable_image_block_public_access()
    aws.ec2.enable_image_block_public_access(ImageBlockPublicAccessState="block-new-sharing")
    other = aws.sandbox.other_account("222233334444").client("ec2", "us-east-1")
    other.disable_image_block_public_access()
    assert succeeded(aws.sts.get_caller_identity, 120) == (120, None)


def test_a_faster_clock_allows_more_requests(aws: SandboxClients) -> None:
    aws.sandbox.state.clock = Clock(1e6)
    for _ in range(3):
        aws.ec2.disable_image_block_public_access()
    assert succeeded(lambda: aws.ebs.start_snapshot(VolumeSize=1), 15) == (15, None)


def test_instances_have_a_second_bucket(aws: SandboxClients) -> None:
    ids = [f"i-{number:017x}" for number in range(600)]
    with refused("InvalidInstanceID.NotFound"):
        aws.ec2.terminate_instances(InstanceIds=ids)
    with refused("RequestLimitExceeded", "Request limit exceeded."):
        aws.ec2.terminate_instances(InstanceIds=ids)


def test_copies_take_longer_and_time_based_ones_their_time(aws: SandboxClients) -> None:
    source = aws.snapshot()
    west = aws.client("ec2", "us-west-2")
    params = {"SourceRegion": "us-east-1", "SourceSnapshotId": source}
    usual = west.copy_snapshot(**params)["SnapshotId"]
    timed = west.copy_snapshot(**params, CompletionDurationMinutes=15)["SnapshotId"]

    def states() -> list[str]:
        return [aws.describe_snapshot(one, "us-west-2")["State"] for one in (usual, timed)]

    aws.pass_time(200)
    assert states() == ["pending", "pending"]
    aws.pass_time(100)
    assert states() == ["completed", "pending"]
    aws.pass_time(600)
    assert states() == ["completed", "completed"]


def test_limits_are_off_by_default_and_have_one_name() -> None:
    with sandbox() as aws:
        assert aws.state.limits is None
    with pytest.raises(ValueError, match="limits='azure': use 'aws'"):
        sandbox(limits="azure")  # type: ignore[arg-type]


def test_a_clock_can_stand_still(aws: SandboxClients) -> None:
    """A snapshot that an `advance` completed can be described, although its clock does not run."""
    assert aws.sandbox.clock.speed == 0
    assert aws.describe_snapshot(aws.snapshot())["State"] == "completed"
