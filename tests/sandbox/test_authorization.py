"""Permissions of users and roles, and the errors without them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.sandbox.clients import ONCE, user_access
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION = "us-east-1"


@pytest.fixture
def strict() -> Iterator[Sandbox]:
    with sandbox(speed=1000, enforce_iam=True) as aws:
        aws.prepare()
        yield aws


def allow(*actions: str, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": resource, **more}


def refusal(client: Any, operation: str, **params: Any) -> tuple[str, str, int]:
    with pytest.raises(client.exceptions.ClientError) as caught:
        getattr(client, operation)(**params)
    answer = caught.value.response
    return (
        answer["Error"]["Code"],
        answer["Error"].get("Message", ""),
        answer["ResponseMetadata"]["HTTPStatusCode"],
    )


@pytest.mark.parametrize(
    ("service", "operation", "params", "code", "status", "action"),
    [
        ("ec2", "describe_images", {}, "UnauthorizedOperation", 403, "ec2:DescribeImages"),
        (
            "s3",
            "get_bucket_location",
            {"Bucket": "vmsnix-images"},
            "AccessDenied",
            403,
            "s3:GetBucketLocation",
        ),
        ("s3", "list_buckets", {}, "AccessDenied", 403, "s3:ListAllMyBuckets"),
        ("iam", "get_role", {"RoleName": "vmimport"}, "AccessDenied", 403, "iam:GetRole"),
        ("ebs", "start_snapshot", {"VolumeSize": 1}, "AccessDeniedException", 403, "ebs:StartSnapshot"),
        ("ssm", "get_parameter", {"Name": "/a/b"}, "AccessDeniedException", 400, "ssm:GetParameter"),
        (
            "service-quotas",
            "get_service_quota",
            {"ServiceCode": "ec2", "QuotaCode": "L-B665C33B"},
            "AccessDeniedException",
            400,
            "servicequotas:GetServiceQuota",
        ),
    ],
)
def test_a_refusal_names_caller_and_action(
    strict: Sandbox, service: str, operation: str, params: dict[str, Any], code: str, status: int, action: str
) -> None:
    client = user_access(strict).client(service, REGION, config=ONCE)
    got_code, message, got_status = refusal(client, operation, **params)
    assert (got_code, got_status) == (code, status)
    user = f"arn:aws:iam::{strict.account}:user/carol"
    assert f"User: {user} is not authorized to perform: {action} on resource: " in message
    assert f"because no identity-based policy allows the {action} action" in message


def test_get_caller_identity_needs_no_permission(strict: Sandbox) -> None:
    assert user_access(strict).client("sts").get_caller_identity()["Arn"].endswith(":user/carol")


def test_an_explicit_deny_overrides_an_allow(strict: Sandbox) -> None:
    deny = {"Effect": "Deny", "Action": "ec2:DescribeImages", "Resource": "*"}
    client = user_access(strict, allow("ec2:*"), deny).client("ec2", config=ONCE)
    assert "with an explicit deny in an identity-based policy" in refusal(client, "describe_images")[1]
    assert client.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []


def test_not_action_allows_everything_else(strict: Sandbox) -> None:
    statement = {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}
    carol = user_access(strict, statement)
    assert carol.client("ec2").describe_images(Owners=["self"])["Images"] == []
    assert refusal(carol.client("iam", config=ONCE), "list_roles")[0] == "AccessDenied"


def test_a_region_condition_holds(strict: Sandbox) -> None:
    here = {"StringEquals": {"aws:RequestedRegion": REGION}}
    carol = user_access(strict, allow("ec2:Describe*", Condition=here))
    assert carol.client("ec2", REGION).describe_images(Owners=["self"])["Images"] == []
    elsewhere = carol.client("ec2", "eu-west-1", config=ONCE)
    assert refusal(elsewhere, "describe_images")[0] == "UnauthorizedOperation"


def test_a_permission_can_be_for_one_object(strict: Sandbox) -> None:
    carol = user_access(strict, allow("s3:PutObject", resource="arn:aws:s3:::vmsnix-images/mine/*"))
    s3 = carol.client("s3", config=ONCE)
    s3.put_object(Bucket="vmsnix-images", Key="mine/a", Body=b"a")
    assert refusal(s3, "put_object", Bucket="vmsnix-images", Key="theirs/a", Body=b"a")[0] == "AccessDenied"


def test_without_list_permission_a_missing_object_is_forbidden(strict: Sandbox) -> None:
    carol = user_access(strict, allow("s3:GetObject", resource="arn:aws:s3:::vmsnix-images/*"))
    s3 = carol.client("s3", config=ONCE)
    assert refusal(s3, "head_object", Bucket="vmsnix-images", Key="nothing")[2] == 403


def test_tagging_at_creation_needs_its_own_action(strict: Sandbox) -> None:
    carol = user_access(strict, allow("ebs:StartSnapshot"))
    ebs = carol.client("ebs", config=ONCE)
    assert ebs.start_snapshot(VolumeSize=1)["Status"] == "pending"
    refused = refusal(ebs, "start_snapshot", VolumeSize=1, Tags=[{"Key": "a", "Value": "b"}])
    assert "ec2:CreateTags" in refused[1]


def test_a_dry_run_checks_permissions(strict: Sandbox) -> None:
    ec2 = user_access(strict, allow("ec2:DescribeImages")).client("ec2", config=ONCE)
    assert refusal(ec2, "describe_images", DryRun=True)[0] == "DryRunOperation"
    assert refusal(ec2, "describe_snapshots", DryRun=True)[0] == "UnauthorizedOperation"


@pytest.mark.parametrize(("service", "allowed"), [("vmie.amazonaws.com", True), ("ec2.amazonaws.com", False)])
def test_an_import_needs_permission_to_pass_its_role(strict: Sandbox, service: str, allowed: bool) -> None:
    passing = allow("iam:PassRole", Condition={"StringEquals": {"iam:PassedToService": service}})
    ec2 = user_access(strict, allow("ec2:ImportSnapshot"), passing).client("ec2", config=ONCE)
    strict.client("s3").put_object(Bucket="vmsnix-images", Key="vmsnix/k", Body=b"x")
    source = {"Format": "RAW", "UserBucket": {"S3Bucket": "vmsnix-images", "S3Key": "vmsnix/k"}}
    if allowed:
        assert ec2.import_snapshot(DiskContainer=source)["ImportTaskId"]
        return
    code, message, _ = refusal(ec2, "import_snapshot", DiskContainer=source)
    assert (code, "does not exist or does not have sufficient permissions" in message) == (
        "InvalidParameter",
        True,
    )


def test_a_session_has_the_permissions_of_its_role(strict: Sandbox) -> None:
    iam = strict.client("iam")
    trust = {"Effect": "Allow", "Principal": {"AWS": strict.account}, "Action": "sts:AssumeRole"}
    iam.create_role(
        RoleName="reader",
        AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
    )
    document = json.dumps({"Version": "2012-10-17", "Statement": [allow("ec2:DescribeImages")]})
    iam.put_role_policy(RoleName="reader", PolicyName="p", PolicyDocument=document)
    arn = f"arn:aws:iam::{strict.account}:role/reader"
    given = strict.client("sts").assume_role(RoleArn=arn, RoleSessionName="night")["Credentials"]
    ec2 = strict.client(
        "ec2",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["SessionToken"],
        config=ONCE,
    )
    assert ec2.describe_images(Owners=["self"])["Images"] == []
    assert ":assumed-role/reader/night is not authorized" in refusal(ec2, "describe_snapshots")[1]


def test_the_administrator_may_do_everything(strict: Sandbox) -> None:
    assert strict.client("iam").list_roles()["Roles"]


def test_without_enforcement_only_users_with_policies_are_limited() -> None:
    with sandbox(speed=1000) as aws:
        free = user_access(aws, name="free")
        assert free.client("ec2").describe_images(Owners=["self"])["Images"] == []
        restricted = user_access(aws, allow("s3:ListAllMyBuckets"), name="restricted")
        assert restricted.client("s3").list_buckets()["Buckets"] == []
        assert refusal(restricted.client("ec2", config=ONCE), "describe_images")[0] == "UnauthorizedOperation"


def test_a_refused_call_changes_nothing(strict: Sandbox) -> None:
    ebs = user_access(strict).client("ebs", config=ONCE)
    refusal(ebs, "start_snapshot", VolumeSize=1)
    assert strict.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"] == []
    assert not [call for call in strict.calls if call.operation == "StartSnapshot" and call.ran]


def test_the_first_spot_instance_needs_permission_to_create_its_role(strict: Sandbox) -> None:
    image = make_ami(strict)
    launch = {"ImageId": image, "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1}
    spot = {**launch, "InstanceMarketOptions": {"MarketType": "spot"}}
    carol = user_access(strict, allow("ec2:*")).client("ec2", REGION)
    carol.run_instances(**launch)
    code, text, status = refusal(carol, "run_instances", **spot)
    assert (code, status) == ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", 403)
    assert "service-linked role for EC2 Spot Instances" in text
    role = "arn:aws:iam::012345678901:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
    for_spot = {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}
    may = allow("iam:CreateServiceLinkedRole", resource=role, Condition=for_spot)
    user_access(strict, allow("ec2:*"), may, name="dave").client("ec2", REGION).run_instances(**spot)
    assert strict.client("iam").get_role(RoleName="AWSServiceRoleForEC2Spot")["Role"]["Arn"] == role
    carol.run_instances(**spot)  # the role exists now
