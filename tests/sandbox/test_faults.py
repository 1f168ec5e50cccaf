"""Fault rules and the call log."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError, HTTPClientError, ReadTimeoutError

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.faults import Faults


def get_identity(aws: SandboxClients) -> Any:
    return aws.sts.get_caller_identity()


def test_a_rule_applies_to_the_nth_calls(aws: SandboxClients) -> None:
    rule = aws.sandbox.faults.add(
        {
            "op": "ec2:DescribeRegions",
            "nth": [1, 3],
            "do": "error",
            "code": "RequestLimitExceeded",
            "message": "Request limit exceeded.",
            "http": 503,
        }
    )
    for strikes in (True, False, True, False):
        with refused("RequestLimitExceeded") if strikes else nullcontext():
            aws.ec2.describe_regions()
    assert [call.status for call in aws.sandbox.calls.matching("ec2:*")] == [503, 200, 503, 200]
    assert (rule.matched, rule.applied) == (4, 2)


def test_an_error_rule_prevents_the_operation(aws: SandboxClients) -> None:
    aws.sandbox.faults.add({"op": "s3:CreateBucket", "do": "error", "code": "SlowDown", "http": 503})
    with refused("SlowDown"):
        aws.bucket()
    assert aws.sandbox.calls.matching("s3:CreateBucket")[0].ran is False
    aws.sandbox.faults.clear()
    with refused("404"):
        aws.s3.head_bucket(Bucket="images")


def test_an_answer_can_be_lost_after_the_call_ran(aws: SandboxClients) -> None:
    aws.sandbox.faults.add({"op": "s3:CreateBucket", "nth": 1, "do": "drop", "when": "after"})
    with pytest.raises(ConnectionClosedError):
        aws.bucket()
    call = aws.sandbox.calls.matching("s3:CreateBucket")[0]
    assert (call.outcome, call.status, call.ran, call.fault) == ("Dropped", 0, True, "drop after")
    aws.s3.head_bucket(Bucket="images")


@pytest.mark.parametrize("how", ["drop", "reset"])
def test_the_connection_can_break_before_the_call(aws: SandboxClients, how: str) -> None:
    aws.sandbox.faults.add({"op": "sts:*", "do": how})
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        get_identity(aws)
    assert aws.sandbox.calls.matching("sts:*")[0].ran is False


def test_an_answer_can_be_cut_in_its_body(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=b"x" * 1_000_000)
    aws.sandbox.faults.add({"op": "s3:GetObject", "do": "drop", "when": "body", "keep": 1000})
    body = aws.s3.get_object(Bucket="images", Key="k")["Body"]
    with pytest.raises(HTTPClientError):
        body.read()


def test_an_upload_can_be_cut_in_its_body(aws: SandboxClients) -> None:
    aws.bucket()
    rule = {"op": "s3:PutObject", "nth": 1, "do": "reset", "when": "body", "of": "request", "keep": 300_000}
    aws.sandbox.faults.add(rule)
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        aws.s3.put_object(Bucket="images", Key="k", Body=b"x" * 2_000_000)
    with refused("404"):
        aws.s3.head_object(Bucket="images", Key="k")
    aws.s3.put_object(Bucket="images", Key="k", Body=b"x" * 2_000_000)


def test_cutting_a_small_request_drops_it(aws: SandboxClients) -> None:
    aws.sandbox.faults.add({"op": "iam:CreateRole", "do": "drop", "when": "body", "of": "request"})
    with pytest.raises(ConnectionClosedError):
        aws.iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")
    assert aws.sandbox.calls.matching("iam:*")[0].ran is False


def test_a_delay_delays_and_the_call_succeeds(aws: SandboxClients) -> None:
    aws.sandbox.faults.add({"op": "sts:*", "do": "delay", "seconds": 0.05})
    get_identity(aws)
    assert aws.sandbox.calls.matching("sts:*")[0].seconds >= 0.05


def test_a_hanging_call_runs_into_the_clients_timeout(aws: SandboxClients) -> None:
    aws.sandbox.faults.add({"op": "sts:*", "do": "hang", "seconds": 5})
    impatient = Config(read_timeout=0.2, retries={"total_max_attempts": 1})
    with pytest.raises(ReadTimeoutError):
        aws.other_client("sts", config=impatient).get_caller_identity()


def test_a_rule_applies_only_where_its_conditions_match(aws: SandboxClients) -> None:
    rule = {"op": "s3:*", "do": "error", "where": {"region": "us-east-1", "Key": "bad/*"}}
    aws.bucket()
    aws.sandbox.faults.add(rule)
    aws.s3.put_object(Bucket="images", Key="good", Body=b"")
    with refused("InternalError", "A fault rule of the sandbox caused this error."):
        aws.s3.put_object(Bucket="images", Key="bad/1", Body=b"")


def test_a_rule_removes_and_sets_members_at_any_depth(aws: SandboxClients) -> None:
    aws.bucket()
    aws.s3.put_object(Bucket="images", Key="k", Body=b"x")
    aws.sandbox.faults.add({"op": "s3:ListObjectsV2", "do": "blank", "fields": ["ETag", "KeyCount"]})
    aws.sandbox.faults.add({"op": "s3:ListObjectsV2", "do": "set", "values": {"Size": 7}})
    answer = aws.s3.list_objects_v2(Bucket="images")
    assert "KeyCount" not in answer
    assert "ETag" not in answer["Contents"][0]
    assert answer["Contents"][0]["Size"] == 7


def test_probability_is_repeatable() -> None:
    def struck() -> list[int]:
        faults = Faults(seed=7)
        faults.add({"op": "*", "do": "drop", "probability": 0.3})
        return [number for number in range(100) if faults.match("s3:GetObject", {})]

    assert struck() == struck()
    assert 10 < len(struck()) < 60


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({"op": "*", "do": "explode"}, "do='explode' is none of"),
        ({"op": "*", "do": "drop", "when": "never"}, "when='never' is none of"),
        ({"op": "*", "do": "error", "when": "body"}, "when='body' needs"),
        ({"op": "*", "do": "drop", "probability": 2}, "not between 0 and 1"),
        ({"op": "*", "do": "drop", "ntn": 1}, "a fault rule has no ntn"),
    ],
)
def test_invalid_rules_are_refused(rule: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Faults().add(rule)


# The call log


def test_the_log_has_caller_operation_and_region(aws: SandboxClients) -> None:
    aws.bucket("logged")
    call = aws.sandbox.calls.matching("s3:CreateBucket")[0]
    assert (call.name, call.region, call.outcome, call.status) == ("s3:CreateBucket", "us-east-1", "ok", 200)
    assert call.params == {"Bucket": "logged"}
    assert call.principal == f"arn:aws:iam::{aws.sandbox.account}:user/operator"
    assert call.request_id
    assert aws.sandbox.calls.names() == ["s3:CreateBucket"]
    assert aws.sandbox.calls.count("s3:*", ran=True) == 1


def test_the_log_shortens_texts_and_leaves_out_streams(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k" * 1000, Body=b"secret bytes")
    params = aws.sandbox.calls.matching("s3:PutObject")[0].params
    assert len(params["Key"]) < 300
    assert params["Body"] == "<Body>"
