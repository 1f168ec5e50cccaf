"""Retries of reads: which errors are retried, for how long, and what ends the retries."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.sandbox.ec2.conftest import aws, still_sandbox
from tests.support import join, wait_until
from vmsnix_ops import errors
from vmsnix_ops.aws import paging
from vmsnix_ops.aws.references import RegionClients
from vmsnix_ops.aws.session import client

if TYPE_CHECKING:
    from tests.sandbox.clients import SandboxClients

__all__ = ["aws", "still_sandbox"]
REGION = "us-east-1"
THROTTLED = {"do": "error", "code": "RequestLimitExceeded", "http": 503}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging.TimeLimit, "wait", lambda _self, _seconds: None)
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)


def clients(aws: SandboxClients, limit: paging.TimeLimit | None = None) -> RegionClients:
    return RegionClients.of(aws.sandbox.session(), REGION, limit)


def describe(ec2: Any, operation: str = "describe_launch_templates") -> dict[str, Any]:
    answer: dict[str, Any] = paging.call_with_retries(getattr(ec2, operation))
    return answer


@pytest.mark.parametrize(
    "fault",
    [
        {"do": "drop"},
        {"do": "reset"},
        THROTTLED,
        {"do": "error", "code": "InternalServerError", "http": 500},
        {"do": "error", "code": "Throttling", "http": 400},
    ],
    ids=lambda fault: fault.get("code", fault["do"]),
)
def test_transient_errors_are_retried(aws: SandboxClients, fault: dict[str, Any]) -> None:
    aws.sandbox.faults.add({"op": "ec2:DescribeLaunchTemplates", "nth": list(range(1, 8)), **fault})
    assert describe(clients(aws).ec2)["LaunchTemplates"] == []


def test_a_final_error_is_not_retried(aws: SandboxClients) -> None:
    denied = {
        "op": "ec2:DescribeLaunchTemplates",
        "do": "error",
        "code": "UnauthorizedOperation",
        "http": 403,
    }
    aws.sandbox.faults.add(denied)
    ec2 = clients(aws).ec2
    aws.sandbox.calls.clear()
    with pytest.raises(ec2.exceptions.ClientError, match="UnauthorizedOperation"):
        describe(ec2)
    assert aws.sandbox.calls.count("ec2:DescribeLaunchTemplates") == 1


def test_the_time_for_retries_is_shared_by_all_lists_of_a_client(
    aws: SandboxClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.sandbox.faults.add({"op": "ec2:Describe*", **THROTTLED})
    monkeypatch.setattr(paging, "THROTTLING_SECONDS", 0.3)
    ec2 = clients(aws).ec2
    with pytest.raises(ec2.exceptions.ClientError):
        describe(ec2)
    aws.sandbox.calls.clear()
    with pytest.raises(ec2.exceptions.ClientError):
        describe(ec2, "describe_instances")
    assert aws.sandbox.calls.count("ec2:DescribeInstances") <= 2  # botocore may make two attempts
    aws.sandbox.faults.clear()
    describe(ec2)
    aws.sandbox.faults.add({"op": "ec2:DescribeInstances", "nth": [1, 2, 3, 4], **THROTTLED})
    assert describe(ec2, "describe_instances")["Reservations"] == []


def test_a_time_limit_ends_the_retries_of_all_its_clients(aws: SandboxClients) -> None:
    limit = paging.TimeLimit(time.time() + 3600, fix="Give more time.")
    ec2 = clients(aws, limit).ec2
    describe(ec2)
    limit.until = time.time()
    with pytest.raises(errors.DeadlineError, match="Give more time"):
        describe(ec2)
    with pytest.raises(errors.DeadlineError):
        describe(clients(aws, limit).ssm, "describe_parameters")
    describe(clients(aws).ec2)  # a client without this limit


def test_stopping_a_time_limit_ends_a_wait_at_once(
    aws: SandboxClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    aws.sandbox.faults.add({"op": "ec2:DescribeLaunchTemplates", **THROTTLED})
    limit, caught = paging.TimeLimit(), []
    ec2 = clients(aws, limit).ec2

    def wait() -> None:
        try:
            describe(ec2)
        except Exception as error:  # noqa: BLE001 - the test asserts its type
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: aws.sandbox.calls.count("ec2:DescribeLaunchTemplates") >= 4, "the fourth attempt")
    limit.stop()
    join(thread)
    assert [type(error) for error in caught] == [errors.InterruptedRunError]


def test_the_fast_time_parser_returns_equal_times_and_only_for_its_client(aws: SandboxClients) -> None:
    aws.image()
    session = aws.sandbox.session()
    fast = RegionClients.of(session, REGION).ec2
    plain = client(session, "ec2", REGION)
    assert fast is not plain
    (read,), (wanted,) = (
        {one["StartTime"] for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
        for ec2 in (fast, plain)
    )
    assert (read, read.utcoffset()) == (wanted, wanted.utcoffset())
    assert type(read.tzinfo) is not type(wanted.tzinfo)  # Python's, and dateutil's
    after = session.client("ec2", region_name=REGION)
    (moment,) = {one["StartTime"] for one in after.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert type(moment.tzinfo) is type(wanted.tzinfo)
