"""The identity of the caller, sessions of roles, and quotas.

Sources: AssumeRole, AssumeRoleWithWebIdentity and GetSessionToken in the AWS STS API Reference; AWS's answers
of 2024 and 2025 in LocalStack's ``test_sts.snapshot.json``; public issues of
aws-actions/configure-aws-credentials for errors; GetServiceQuota in the Service Quotas API Reference.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore import UNSIGNED
from botocore.config import Config

from tests.sandbox.clients import ONCE, SandboxClients, refused
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.sandbox.sts import make_token


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


def session_client(aws: SandboxClients, session: dict[str, Any], service: str = "sts") -> Any:
    keys = session["Credentials"]
    return aws.other_client(
        service,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )


TAGS = [{"Key": "project", "Value": "images"}]


def test_a_session_has_tags_that_policies_read(aws: SandboxClients) -> None:
    arn = make_role(aws, Action=["sts:AssumeRole", "sts:TagSession"])
    allowed = {
        "Effect": "Allow",
        "Action": "s3:*",
        "Resource": "*",
        "Condition": {"StringEquals": {"aws:PrincipalTag/project": "images"}},
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    aws.iam.put_role_policy(RoleName="publisher", PolicyName="p", PolicyDocument=document)
    tagged = aws.sts.assume_role(RoleArn=arn, RoleSessionName="run-1", Tags=TAGS)
    session_client(aws, tagged, "s3").list_buckets()
    plain = aws.sts.assume_role(RoleArn=arn, RoleSessionName="run-2")
    assert "PackedPolicySize" not in plain
    with refused("AccessDenied"):
        session_client(aws, plain, "s3").list_buckets()
    aws.iam.tag_role(RoleName="publisher", Tags=TAGS)
    session_client(aws, plain, "s3").list_buckets()


def test_a_role_must_allow_tags(aws: SandboxClients) -> None:
    arn = make_role(aws)
    with refused("AccessDenied", "is not authorized to perform: sts:TagSession on resource"):
        aws.sts.assume_role(RoleArn=arn, RoleSessionName="run-1", Tags=TAGS)


def test_wrong_session_tags_are_refused(aws: SandboxClients) -> None:
    arn = make_role(aws, Action=["sts:AssumeRole", "sts:TagSession"])
    params = {"RoleArn": arn, "RoleSessionName": "run-1"}
    with refused("InvalidParameterValue", "must be included in the requested tags"):
        aws.sts.assume_role(**params, Tags=TAGS, TransitiveTagKeys=["other"])
    twice = [*TAGS, {"Key": "Project", "Value": "x"}]
    with refused("InvalidParameterValue", "Tag keys are case insensitive"):
        aws.sts.assume_role(**params, Tags=twice)
    first = aws.sts.assume_role(**params, Tags=TAGS, TransitiveTagKeys=["project"])
    with refused("InvalidParameterValue", "conflicts with a transitive tag key"):
        session_client(aws, first).assume_role(**params, Tags=[{"Key": "PROJECT", "Value": "y"}])
    with refused("ValidationError", "1 hour session limit for roles assumed by role chaining"):
        aws.iam.update_role(RoleName="publisher", MaxSessionDuration=7200)
        session_client(aws, first).assume_role(**params, DurationSeconds=7200)


# Tokens of GitHub's workflows

GITHUB = "https://token.actions.githubusercontent.com"
MAIN = "repo:acme/images:ref:refs/heads/main"


@pytest.fixture
def unsigned(aws: SandboxClients) -> Any:
    """Return a client of STS without credentials, as a workflow has it."""
    return aws.other_client("sts", config=ONCE.merge(Config(signature_version=UNSIGNED)))


def trust_github(aws: SandboxClients) -> dict[str, str]:
    """Create the provider and a role that trusts the workflows of one branch, as the documentation says."""
    aws.iam.create_open_id_connect_provider(Url=GITHUB, ClientIDList=["sts.amazonaws.com"])
    scope = policies.PolicyScope(account=aws.account, bucket="images", regions=("us-east-1",))
    trust = json.dumps(policies.github_trust_policy(scope, repository="acme/images"))
    arn = aws.iam.create_role(RoleName="publisher", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    return {"RoleArn": arn, "RoleSessionName": "run-1"}


def test_our_workflow_takes_its_role_with_a_token(aws: SandboxClients, unsigned: Any) -> None:
    params = trust_github(aws)
    query = urlencode({"subject": MAIN, "audience": "sts.amazonaws.com"})
    with aws.connection() as connection:  # ACTIONS_ID_TOKEN_REQUEST_URL of the workflow
        connection.request("GET", f"/_vmsnix/oidc?{query}")
        token = json.loads(connection.getresponse().read())["value"]
    session = unsigned.assume_role_with_web_identity(**params, WebIdentityToken=token, DurationSeconds=900)
    assert session["SubjectFromWebIdentityToken"] == MAIN
    assert session["Audience"] == "sts.amazonaws.com"
    assert session["Provider"].endswith(":oidc-provider/token.actions.githubusercontent.com")
    expected = f"arn:aws:sts::{aws.account}:assumed-role/publisher/run-1"
    assert session["AssumedRoleUser"]["Arn"] == expected
    assert session_client(aws, session).get_caller_identity()["Arn"] == expected


@pytest.mark.parametrize(
    "subject",
    [
        "repo:acme/images:ref:refs/heads/other",
        "repo:acme/images:pull_request",
        "repo:other/images:ref:refs/heads/main",
    ],
)
def test_another_workflow_is_not_authorized(aws: SandboxClients, unsigned: Any, subject: str) -> None:
    params = trust_github(aws)
    with refused("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"):
        token = aws.sandbox.web_identity_token(subject)
        unsigned.assume_role_with_web_identity(**params, WebIdentityToken=token)


def test_invalid_tokens_are_refused(aws: SandboxClients, unsigned: Any) -> None:
    params = trust_github(aws)
    right = aws.sandbox.web_identity_token(MAIN)

    def take(token: str) -> None:
        unsigned.assume_role_with_web_identity(**params, WebIdentityToken=token)

    with refused("InvalidIdentityToken", "Incorrect token audience"):
        take(aws.sandbox.web_identity_token(MAIN, audience="https://github.com/acme"))
    with refused("InvalidIdentityToken", "is not a valid JWT"):
        take("not-a-token")
    with refused("InvalidIdentityToken"):
        take(right[:-4] + "AAAA")
    with refused("ExpiredTokenException", "Token expired"):
        take(make_token(MAIN, seconds=-1))
    header = base64.urlsafe_b64encode(b'{"alg":"RS256","kid":"of-github"}').decode()
    with refused("NotImplemented", "that a real identity provider signed"):
        take(f"{header}.{right.split('.')[1]}.{right.split('.')[2]}")
    aws.sandbox.state.tables.table(aws.account, "", "oidc_providers").clear()
    with refused("InvalidIdentityToken", f"No OpenIDConnect provider found in your account for {GITHUB}"):
        take(right)


def test_only_this_operation_needs_no_signature(aws: SandboxClients, unsigned: Any) -> None:
    params = trust_github(aws)
    with refused("MissingAuthenticationToken"):
        unsigned.assume_role(**params)
    with refused("MissingAuthenticationToken"):
        unsigned.get_caller_identity()


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
