"""Bucket policies: with the policies of the caller, for other accounts, and for VM Import.

Sources: "Policy evaluation logic", "Cross-account policy evaluation logic" and "AWS JSON policy elements:
Principal" in the IAM User Guide; PutBucketPolicy in the Amazon S3 API Reference; "Blocking public access to
your Amazon S3 storage" in the Amazon S3 User Guide.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.sandbox.clients import ONCE, refused, user_access
from vmsnix_ops.sandbox import Access, Sandbox, sandbox

BUCKET, OTHER = "vmsnix-images", "111122223333"
HOME = f"arn:aws:s3:::{BUCKET}"


@pytest.fixture
def aws(enforcing_sandbox: Sandbox) -> Sandbox:
    return enforcing_sandbox


def statement(effect: str, principal: Any, *actions: str, **more: Any) -> dict[str, Any]:
    return {
        "Effect": effect,
        "Principal": principal,
        "Action": list(actions) or ["s3:*"],
        "Resource": [HOME, f"{HOME}/*"],
    } | more


def put_policy(aws: Sandbox, *statements: dict[str, Any]) -> None:
    document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
    aws.client("s3").put_bucket_policy(Bucket=BUCKET, Policy=document)


def open_to_public_policies(aws: Sandbox, **changes: bool) -> None:
    block = {"BlockPublicPolicy": False, "RestrictPublicBuckets": False, **changes}
    aws.client("s3").put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=block)


def user(aws: Sandbox, *actions: str, name: str = "carol") -> Access:
    allowed = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    return user_access(aws, *([allowed] if actions else []), name=name)


def s3(who: Any) -> Any:
    return who.client("s3", config=ONCE)


def arn(aws: Sandbox, name: str = "carol") -> str:
    return f"arn:aws:iam::{aws.account}:user/{name}"


def may_read(client: Any, key: str = "vmsnix/a") -> bool:
    try:
        client.get_object(Bucket=BUCKET, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":
            raise
        return False
    return True


def test_a_deny_overrides_the_policies_of_the_caller(aws: Sandbox) -> None:
    carol = s3(user(aws, "s3:*"))
    put_policy(aws, statement("Deny", {"AWS": arn(aws)}, "s3:GetObject"))
    with refused("AccessDenied", "with an explicit deny in a resource-based policy"):
        carol.get_object(Bucket=BUCKET, Key="vmsnix/a")
    carol.list_objects_v2(Bucket=BUCKET)


def test_an_allow_to_a_user_of_the_account_is_enough(aws: Sandbox) -> None:
    carol, dave = s3(user(aws)), s3(user(aws, name="dave"))
    put_policy(aws, statement("Allow", {"AWS": [arn(aws)]}, "s3:GetObject"))
    assert may_read(carol)
    assert not may_read(dave)
    with refused("AccessDenied", "no identity-based policy allows the s3:PutObject action"):
        carol.put_object(Bucket=BUCKET, Key="b", Body=b"")


@pytest.mark.parametrize("principal", ["arn:aws:iam::{}:root", "{}"])
def test_an_allow_to_the_account_delegates_to_the_policies_of_its_users(aws: Sandbox, principal: str) -> None:
    carol, dave = s3(user(aws)), s3(user(aws, "s3:GetObject", name="dave"))
    put_policy(aws, statement("Allow", {"AWS": principal.format(aws.account)}, "s3:*"))
    assert not may_read(carol)
    assert may_read(dave)


def test_the_operator_is_denied_everything_but_the_policy_itself(aws: Sandbox) -> None:
    put_policy(aws, statement("Deny", "*"))
    operator = s3(aws)
    assert not may_read(operator)
    for operation, more in (("put_object", {"Key": "b", "Body": b""}), ("list_objects_v2", {})):
        with refused("AccessDenied"):
            getattr(operator, operation)(Bucket=BUCKET, **more)
    assert operator.get_bucket_policy(Bucket=BUCKET)["Policy"]
    operator.delete_bucket_policy(Bucket=BUCKET)
    assert may_read(operator)


def test_an_administrator_who_is_not_root_can_lock_itself_out(aws: Sandbox) -> None:
    carol = s3(user(aws, "*"))
    put_policy(aws, statement("Deny", "*"))
    with refused("AccessDenied", "explicit deny in a resource-based policy"):
        carol.delete_bucket_policy(Bucket=BUCKET)


def test_a_user_without_policies_is_denied_too_when_policies_are_not_enforced() -> None:
    with sandbox(speed=1000) as aws:
        aws.prepare()
        aws.client("s3").put_object(Bucket=BUCKET, Key="vmsnix/a", Body=b"a")
        carol = s3(user(aws))
        assert may_read(carol)
        put_policy(aws, statement("Deny", {"AWS": arn(aws)}))
        assert not may_read(carol)


def test_another_account_needs_both_policies(aws: Sandbox) -> None:
    other = aws.other_account(OTHER)
    iam = other.client("iam")
    iam.create_user(UserName="eve")
    key = iam.create_access_key(UserName="eve")["AccessKey"]
    eve = s3(Access(aws.url, key["AccessKeyId"], key["SecretAccessKey"], OTHER))
    assert not may_read(s3(other))
    put_policy(aws, statement("Allow", {"AWS": f"arn:aws:iam::{OTHER}:root"}, "s3:GetObject"))
    assert may_read(s3(other))
    assert not may_read(eve)
    allowed = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{HOME}/*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="eve", PolicyName="p", PolicyDocument=document)
    assert may_read(eve)
    with refused("AccessDenied") as _:
        s3(other).put_object(Bucket=BUCKET, Key="b", Body=b"")


def test_another_account_gets_no_reason(aws: Sandbox) -> None:
    with pytest.raises(ClientError) as caught:
        s3(aws.other_account(OTHER)).get_object(Bucket=BUCKET, Key="vmsnix/a")
    assert caught.value.response["Error"]["Message"] == "Access Denied"


def test_another_account_never_manages_the_policy(aws: Sandbox) -> None:
    put_policy(aws, statement("Allow", {"AWS": OTHER}))
    for operation in ("get_bucket_policy", "delete_bucket_policy"):
        with refused("MethodNotAllowed"):
            getattr(s3(aws.other_account(OTHER)), operation)(Bucket=BUCKET)


def test_an_object_is_copied_only_if_the_caller_may_read_it(aws: Sandbox) -> None:
    other = s3(aws.other_account(OTHER))
    other.create_bucket(Bucket="theirs")
    params = {"Bucket": "theirs", "Key": "a", "CopySource": f"{BUCKET}/vmsnix/a"}
    with refused("AccessDenied"):
        other.copy_object(**params)
    put_policy(aws, statement("Allow", {"AWS": OTHER}, "s3:GetObject"))
    other.copy_object(**params)


def test_a_policy_names_a_session_by_its_role_or_its_own_arn(aws: Sandbox) -> None:
    iam = aws.client("iam")
    trust = {"Effect": "Allow", "Principal": {"AWS": aws.account}, "Action": "sts:AssumeRole"}
    iam.create_role(
        RoleName="reader",
        Path="/team/",
        AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
    )
    role = f"arn:aws:iam::{aws.account}:role/team/reader"
    given = aws.client("sts").assume_role(RoleArn=role, RoleSessionName="night")["Credentials"]
    client = aws.client(
        "s3",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["SessionToken"],
        config=ONCE,
    )
    assert not may_read(client)
    session = f"arn:aws:sts::{aws.account}:assumed-role/reader/night"
    for named in (role, session):
        put_policy(aws, statement("Allow", {"AWS": named}, "s3:GetObject"))
        assert may_read(client), named
    by_key = {"Condition": {"ArnEquals": {"aws:PrincipalArn": role}}}
    put_policy(aws, statement("Allow", {"AWS": role}), statement("Deny", "*", **by_key))
    assert not may_read(client)


def test_not_principal_denies_all_others(aws: Sandbox) -> None:
    carol, dave = s3(user(aws, "s3:*")), s3(user(aws, "s3:*", name="dave"))
    denied = statement("Deny", {}, "s3:GetObject") | {"NotPrincipal": {"AWS": [arn(aws), aws.account]}}
    del denied["Principal"]
    put_policy(aws, denied)
    assert may_read(carol)
    assert not may_read(dave)  # the account in NotPrincipal is only its root user


@pytest.mark.parametrize(
    ("condition", "allowed"),
    [
        ({"Bool": {"aws:SecureTransport": "false"}}, True),
        ({"Bool": {"aws:SecureTransport": "true"}}, False),
        ({"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, False),
        ({"StringNotEquals": {"aws:SourceVpce": "vpce-1"}}, False),
        ({"StringNotEquals": {"aws:PrincipalAccount": "012345678901"}}, True),
        ({"StringNotEquals": {"s3:ResourceAccount": "012345678901"}}, True),
        ({"StringEquals": {"aws:PrincipalIsAWSService": "false"}}, False),
    ],
)
def test_conditions_of_a_deny(aws: Sandbox, condition: dict[str, Any], *, allowed: bool) -> None:
    put_policy(aws, statement("Deny", "*", "s3:GetObject", Condition=condition))
    assert may_read(s3(aws)) is allowed


def test_a_list_permission_can_be_limited_to_a_prefix(aws: Sandbox) -> None:
    carol = s3(user(aws))
    listing = {"Condition": {"StringLike": {"s3:prefix": "vmsnix/*"}}, "Resource": HOME}
    put_policy(aws, statement("Allow", {"AWS": arn(aws)}, "s3:ListBucket", **listing))
    assert carol.list_objects_v2(Bucket=BUCKET, Prefix="vmsnix/")["KeyCount"] == 1
    for params in ({}, {"Prefix": "other/"}):
        with refused("AccessDenied"):
            carol.list_objects_v2(Bucket=BUCKET, **params)


def test_the_encryption_of_a_new_object_can_be_a_condition(aws: Sandbox) -> None:
    only_new = {"Condition": {"Null": {"s3:if-none-match": "true"}}, "Resource": f"{HOME}/*"}
    put_policy(aws, statement("Deny", "*", "s3:PutObject", **only_new))
    with refused("AccessDenied"):
        s3(aws).put_object(Bucket=BUCKET, Key="b", Body=b"")
    s3(aws).put_object(Bucket=BUCKET, Key="b", Body=b"", IfNoneMatch="*")


def test_a_public_policy_allows_other_accounts_unless_restricted(aws: Sandbox) -> None:
    other = s3(aws.other_account(OTHER))
    open_to_public_policies(aws)
    put_policy(aws, statement("Allow", "*", "s3:GetObject"))
    assert may_read(other)
    open_to_public_policies(aws, RestrictPublicBuckets=True)
    assert not may_read(other)
    assert may_read(s3(aws))


@pytest.mark.parametrize(
    ("principal", "condition", "public"),
    [
        ("*", {}, True),
        ({"AWS": ["*"]}, {}, True),
        ({"AWS": OTHER}, {}, False),
        ("*", {"Bool": {"aws:SecureTransport": "true"}}, True),
        ("*", {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, False),
        ("*", {"StringEquals": {"aws:PrincipalOrgID": "o-1"}}, False),
        ("*", {"StringLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/x"}}, True),
        ("*", {"StringNotEquals": {"aws:SourceVpc": "vpc-1"}}, True),
    ],
)
def test_public_policies_are_recognized(
    aws: Sandbox, principal: Any, condition: dict[str, Any], *, public: bool
) -> None:
    open_to_public_policies(aws)
    put_policy(aws, statement("Allow", principal, "s3:GetObject", Condition=condition))
    status = aws.client("s3").get_bucket_policy_status(Bucket=BUCKET)["PolicyStatus"]
    assert status == {"IsPublic": public}


@pytest.mark.parametrize(
    "broken", [{"Resource": "arn:aws:s3:::other/*"}, {"Principal": "carol"}, {"Principal": {"User": "carol"}}]
)
def test_a_policy_for_another_bucket_is_refused(aws: Sandbox, broken: dict[str, Any]) -> None:
    with refused("MalformedPolicy"):
        put_policy(aws, statement("Deny", "*") | broken)


# VM Import


def import_of(aws: Sandbox) -> dict[str, Any]:
    ec2 = aws.client("ec2")
    source = {"Format": "RAW", "UserBucket": {"S3Bucket": BUCKET, "S3Key": "vmsnix/a"}}
    task = ec2.import_snapshot(DiskContainer=source)["ImportTaskId"]
    aws.clock.advance(3600)
    (shown,) = ec2.describe_import_snapshot_tasks(ImportTaskIds=[task])["ImportSnapshotTasks"]
    detail: dict[str, Any] = shown["SnapshotTaskDetail"]
    return detail


def test_an_import_is_denied_by_the_bucket_policy(aws: Sandbox) -> None:
    role = f"arn:aws:iam::{aws.account}:role/vmimport"
    put_policy(aws, statement("Deny", {"AWS": role}, "s3:GetObject"))
    assert "403 Forbidden" in import_of(aws)["StatusMessage"]
    put_policy(aws, statement("Deny", "*"))
    with refused("InvalidParameter", "does not have sufficient permissions"):
        import_of(aws)


def test_an_import_is_allowed_by_the_bucket_policy(aws: Sandbox) -> None:
    aws.client("iam").delete_role_policy(RoleName="vmimport", PolicyName="vmimport")
    with refused("InvalidParameter", "does not have sufficient permissions"):
        import_of(aws)
    role = f"arn:aws:iam::{aws.account}:role/vmimport"
    put_policy(aws, statement("Allow", {"AWS": role}, "s3:GetObject", "s3:ListBucket"))
    assert import_of(aws)["Status"] == "completed"


def test_an_import_from_outside_the_network_of_a_company_is_denied(aws: Sandbox) -> None:
    inside = {"StringNotEquals": {"aws:SourceVpce": "vpce-1"}}
    put_policy(aws, statement("Deny", "*", "s3:GetObject", Condition=inside))
    assert "403 Forbidden" in import_of(aws)["StatusMessage"]


def test_anybody_reads_a_public_object_without_a_signature(aws: Sandbox) -> None:
    anonymous = aws.client("s3", config=ONCE.merge(Config(signature_version=UNSIGNED)))
    assert not may_read(anonymous)
    open_to_public_policies(aws)
    put_policy(aws, statement("Allow", "*", "s3:GetObject"))
    assert may_read(anonymous)
    for call in (
        lambda: anonymous.put_object(Bucket=BUCKET, Key="b", Body=b""),
        lambda: anonymous.list_objects_v2(Bucket=BUCKET),
        lambda: anonymous.create_bucket(Bucket="new"),
        lambda: anonymous.list_buckets(),
    ):
        with refused("AccessDenied", "Access Denied"):
            call()
    with refused("NoSuchBucket"):
        anonymous.list_objects_v2(Bucket="nowhere")
    open_to_public_policies(aws, RestrictPublicBuckets=True)
    assert not may_read(anonymous)


def test_an_anonymous_caller_has_no_account(aws: Sandbox) -> None:
    anonymous = aws.client("s3", config=ONCE.merge(Config(signature_version=UNSIGNED)))
    open_to_public_policies(aws)
    own = {"StringEquals": {"aws:PrincipalAccount": aws.account}}
    put_policy(aws, statement("Allow", "*", "s3:GetObject", Condition=own))
    assert not may_read(anonymous)
    kind = {"StringEquals": {"aws:PrincipalType": "Anonymous"}}
    put_policy(aws, statement("Allow", "*", "s3:GetObject", Condition=kind))
    assert may_read(anonymous)
