"""The identity of the caller, sessions of roles, and quotas.

Sources: AssumeRole and GetSessionToken in the AWS STS API Reference; GetServiceQuota in the Service Quotas
API Reference.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.sandbox.clients import SandboxClients, refused


def make_role(aws: SandboxClients, **condition: Any) -> str:
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": aws.sandbox.account},
        "Action": "sts:AssumeRole",
    } | condition
    trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    arn: str = aws.iam.create_role(RoleName="publisher", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    return arn


def test_the_account_id_is_a_text_that_begins_with_a_zero(aws: SandboxClients) -> None:
    identity = aws.sts.get_caller_identity()
    assert identity["Account"] == "012345678901"
    assert identity["Arn"] == "arn:aws:iam::012345678901:user/operator"


def test_a_session_has_the_identity_of_its_role(aws: SandboxClients) -> None:
    arn = make_role(aws)
    session = aws.sts.assume_role(RoleArn=arn, RoleSessionName="run-1")
    keys = session["Credentials"]
    client = aws.other_client(
        "sts",
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )
    expected = f"arn:aws:sts::{aws.sandbox.account}:assumed-role/publisher/run-1"
    assert client.get_caller_identity()["Arn"] == session["AssumedRoleUser"]["Arn"] == expected
    left = keys["Expiration"] - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(hours=1)


def test_a_role_is_assumed_only_by_principals_that_it_trusts(aws: SandboxClients) -> None:
    arn = make_role(aws, Condition={"StringEquals": {"sts:ExternalId": "secret"}})
    with refused("AccessDenied", "is not authorized to perform: sts:AssumeRole on resource"):
        aws.sts.assume_role(RoleArn=arn, RoleSessionName="run-1")
    aws.sts.assume_role(RoleArn=arn, RoleSessionName="run-1", ExternalId="secret")
    with refused("AccessDenied"):
        aws.sts.assume_role(RoleArn=arn + "-not", RoleSessionName="run-1")


def test_a_session_is_no_longer_than_its_role_allows(aws: SandboxClients) -> None:
    arn = make_role(aws)
    with refused("ValidationError", "exceeds the MaxSessionDuration"):
        aws.sts.assume_role(RoleArn=arn, RoleSessionName="run-1", DurationSeconds=7200)
    aws.sts.assume_role(RoleArn=arn, RoleSessionName="run-1", DurationSeconds=900)


def test_arns_have_the_partition_of_the_region(aws: SandboxClients) -> None:
    trust = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}],
        }
    )
    china = aws.client("iam", "cn-north-1")
    arn = china.create_role(RoleName="publisher", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    assert arn.startswith("arn:aws-cn:iam::")


def test_quotas(aws: SandboxClients) -> None:
    quotas = aws.client("service-quotas")
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-0E3CBAB9")["Quota"]["Value"] == 5.0
    aws.sandbox.state.tables.table(aws.sandbox.account, "us-east-1", "quotas")["ec2/L-0E3CBAB9"] = 7.0
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-0E3CBAB9")["Quota"]["Value"] == 7.0
    default = quotas.get_aws_default_service_quota(ServiceCode="ec2", QuotaCode="L-0E3CBAB9")["Quota"]
    assert (default["Value"], default["QuotaName"]) == (5.0, "Public AMIs")
    with refused("NoSuchResourceException"):
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-NOTHING")
