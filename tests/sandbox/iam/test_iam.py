"""Roles, users, policies and keys.

Source: the operations' pages in the IAM API Reference.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.access import vm_import_role_policy, vm_import_trust_policy

TRUST = json.dumps(vm_import_trust_policy())
READ = json.dumps(vm_import_role_policy("images"))


def make_role(aws: SandboxClients, name: str = "vmimport") -> str:
    arn: str = aws.iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)["Role"]["Arn"]
    return arn


def test_a_role_has_its_attributes(aws: SandboxClients) -> None:
    answer = aws.iam.create_role(
        RoleName="vmimport",
        Path="/service/",
        AssumeRolePolicyDocument=TRUST,
        Description="for VM Import",
        MaxSessionDuration=7200,
        Tags=[{"Key": "a", "Value": "1"}],
    )["Role"]
    assert answer["Arn"] == f"arn:aws:iam::{aws.sandbox.account}:role/service/vmimport"
    role = aws.iam.get_role(RoleName="vmimport")["Role"]
    assert role["AssumeRolePolicyDocument"] == vm_import_trust_policy()
    assert (role["Description"], role["MaxSessionDuration"]) == ("for VM Import", 7200)
    assert role["Tags"] == [{"Key": "a", "Value": "1"}]
    assert role["RoleId"].startswith("AROA")


def test_roles_are_global(aws: SandboxClients) -> None:
    make_role(aws)
    assert aws.client("iam", "eu-west-1").get_role(RoleName="vmimport")["Role"]["RoleName"] == "vmimport"


def test_existing_and_missing_entities_are_refused(aws: SandboxClients) -> None:
    make_role(aws)
    with refused("EntityAlreadyExists"):
        make_role(aws)
    with refused("NoSuchEntity", "The role with name none cannot be found."):
        aws.iam.get_role(RoleName="none")
    with refused("ValidationError"):
        aws.iam.create_role(RoleName="sp ace", AssumeRolePolicyDocument=TRUST)


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        '{"Version": "2012-10-17"}',
        '{"Version": "1999-01-01", "Statement": []}',
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Perhaps", "Action": "s3:*", "Resource": "*"}]}',
        '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "all", "Resource": "*"}}',
        '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "b"}}',
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*"}]}',
        TRUST,
    ],
)
def test_malformed_policies(aws: SandboxClients, document: str) -> None:
    make_role(aws)
    with refused("MalformedPolicyDocument"):
        aws.iam.put_role_policy(RoleName="vmimport", PolicyName="p", PolicyDocument=document)


def test_a_trust_policy_names_principals_and_no_resources(aws: SandboxClients) -> None:
    with refused("MalformedPolicyDocument", "prohibited field Resource"):
        aws.iam.create_role(RoleName="r", AssumeRolePolicyDocument=READ)


def test_inline_policies(aws: SandboxClients) -> None:
    make_role(aws)
    aws.iam.put_role_policy(RoleName="vmimport", PolicyName="read", PolicyDocument=READ)
    shown = aws.iam.get_role_policy(RoleName="vmimport", PolicyName="read")
    assert shown["PolicyDocument"] == vm_import_role_policy("images")
    assert aws.iam.list_role_policies(RoleName="vmimport")["PolicyNames"] == ["read"]
    with refused("DeleteConflict"):
        aws.iam.delete_role(RoleName="vmimport")
    aws.iam.delete_role_policy(RoleName="vmimport", PolicyName="read")
    with refused("NoSuchEntity"):
        aws.iam.get_role_policy(RoleName="vmimport", PolicyName="read")
    aws.iam.delete_role(RoleName="vmimport")


def test_managed_policies_and_their_versions(aws: SandboxClients) -> None:
    make_role(aws)
    arn = aws.iam.create_policy(PolicyName="publisher", PolicyDocument=READ)["Policy"]["Arn"]
    aws.iam.attach_role_policy(RoleName="vmimport", PolicyArn=arn)
    aws.iam.attach_role_policy(
        RoleName="vmimport", PolicyArn="arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"
    )
    attached = aws.iam.list_attached_role_policies(RoleName="vmimport")["AttachedPolicies"]
    assert [one["PolicyName"] for one in attached] == ["publisher", "AmazonS3ReadOnlyAccess"]
    with refused("DeleteConflict"):
        aws.iam.delete_policy(PolicyArn=arn)
    for number in range(2, 6):
        made = aws.iam.create_policy_version(PolicyArn=arn, PolicyDocument=READ, SetAsDefault=True)[
            "PolicyVersion"
        ]
        assert made["VersionId"] == f"v{number}"
    with refused("LimitExceeded"):
        aws.iam.create_policy_version(PolicyArn=arn, PolicyDocument=READ)
    assert aws.iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"] == "v5"
    version = aws.iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]
    assert (version["Document"], version["IsDefaultVersion"]) == (vm_import_role_policy("images"), False)
    with refused("DeleteConflict"):
        aws.iam.delete_policy_version(PolicyArn=arn, VersionId="v5")


def test_an_access_key_works_until_it_is_deactivated(aws: SandboxClients) -> None:
    aws.iam.create_user(UserName="ci")
    key = aws.iam.create_access_key(UserName="ci")["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    client = aws.other_client("sts", **keys)
    assert client.get_caller_identity()["Arn"] == f"arn:aws:iam::{aws.sandbox.account}:user/ci"
    aws.iam.update_access_key(UserName="ci", AccessKeyId=key["AccessKeyId"], Status="Inactive")
    with refused("InvalidClientTokenId"):
        client.get_caller_identity()
    with refused("DeleteConflict"):
        aws.iam.delete_user(UserName="ci")
    aws.iam.delete_access_key(UserName="ci", AccessKeyId=key["AccessKeyId"])
    aws.iam.delete_user(UserName="ci")


def test_lists_have_pages(aws: SandboxClients) -> None:
    for number in range(3):
        make_role(aws, f"role-{number}")
    pages = aws.iam.get_paginator("list_roles").paginate(PaginationConfig={"PageSize": 2})
    names = [[role["RoleName"] for role in page["Roles"]] for page in pages]
    assert names == [["role-0", "role-1"], ["role-2"]]


def test_simulates_what_policies_allow(aws: SandboxClients) -> None:
    arn = make_role(aws)
    aws.iam.put_role_policy(RoleName="vmimport", PolicyName="read", PolicyDocument=READ)

    def decide(action: str, resource: str) -> Any:
        asked = {"PolicySourceArn": arn, "ActionNames": [action], "ResourceArns": [resource]}
        return aws.iam.simulate_principal_policy(**asked)["EvaluationResults"][0]["EvalDecision"]

    assert decide("s3:GetObject", "arn:aws:s3:::images/k") == "allowed"
    assert decide("s3:GetObject", "arn:aws:s3:::others/k") == "implicitDeny"
    assert decide("s3:PutObject", "arn:aws:s3:::images/k") == "implicitDeny"
