"""Roles, users, policies and keys.

Sources: the operations' pages in the IAM API Reference; AWS's answers of 2025 in LocalStack's
``test_iam.snapshot.json``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused, user_access
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
    assert "MaxSessionDuration" not in answer
    assert answer["Tags"] == [{"Key": "a", "Value": "1"}]
    role = aws.iam.get_role(RoleName="vmimport")["Role"]
    assert role["AssumeRolePolicyDocument"] == vm_import_trust_policy()
    assert (role["Description"], role["MaxSessionDuration"]) == ("for VM Import", 7200)
    assert role["Tags"] == [{"Key": "a", "Value": "1"}]
    assert role["RoleId"].startswith("AROA")


def test_a_role_without_tags_has_no_list_of_tags(aws: SandboxClients) -> None:
    make_role(aws)
    role = aws.iam.get_role(RoleName="vmimport")["Role"]
    assert ("Tags" in role, role["RoleLastUsed"], role["MaxSessionDuration"]) == (False, {}, 3600)
    assert "Tags" not in aws.iam.list_roles()["Roles"][0]


def test_created_policies_and_users_show_their_tags(aws: SandboxClients) -> None:
    tags = [{"Key": "a", "Value": "1"}]
    assert aws.iam.create_policy(PolicyName="p", PolicyDocument=READ, Tags=tags)["Policy"]["Tags"] == tags
    assert "Tags" not in aws.iam.create_policy(PolicyName="q", PolicyDocument=READ)["Policy"]
    assert aws.iam.create_user(UserName="u", Tags=tags)["User"]["Tags"] == tags


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


def test_a_user_has_policies_as_a_role_has(aws: SandboxClients) -> None:
    aws.iam.create_user(UserName="carol")
    user, arn = {"UserName": "carol"}, AWS_POLICY.format("AmazonS3ReadOnlyAccess")
    aws.iam.put_user_policy(**user, PolicyName="read", PolicyDocument=READ)
    shown = aws.iam.get_user_policy(**user, PolicyName="read")
    assert shown["PolicyDocument"] == vm_import_role_policy("images")
    aws.iam.attach_user_policy(**user, PolicyArn=arn)
    assert aws.iam.list_user_policies(**user)["PolicyNames"] == ["read"]
    (attached,) = aws.iam.list_attached_user_policies(**user)["AttachedPolicies"]
    assert attached["PolicyArn"] == arn
    with refused("DeleteConflict"):
        aws.iam.delete_user(**user)
    aws.iam.delete_user_policy(**user, PolicyName="read")
    aws.iam.detach_user_policy(**user, PolicyArn=arn)
    with refused("NoSuchEntity"):
        aws.iam.detach_user_policy(**user, PolicyArn=arn)
    aws.iam.delete_user(**user)


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


AWS_POLICY = "arn:aws:iam::aws:policy/{}"


def test_policies_of_aws_are_listed_and_read(aws: SandboxClients) -> None:
    make_role(aws)
    own = aws.iam.create_policy(PolicyName="own", PolicyDocument=READ)["Policy"]["Arn"]
    administrator, reader = (
        AWS_POLICY.format("AdministratorAccess"),
        AWS_POLICY.format("AmazonS3ReadOnlyAccess"),
    )
    listed = {policy["Arn"] for policy in aws.iam.list_policies()["Policies"]}
    assert {own, administrator} < listed
    assert own not in {policy["Arn"] for policy in aws.iam.list_policies(Scope="AWS")["Policies"]}
    assert [policy["Arn"] for policy in aws.iam.list_policies(Scope="Local")["Policies"]] == [own]
    aws.iam.attach_role_policy(RoleName="vmimport", PolicyArn=reader)
    attached = aws.iam.list_policies(OnlyAttached=True)["Policies"]
    assert [(policy["Arn"], policy["AttachmentCount"]) for policy in attached] == [(reader, 1)]
    policy = aws.iam.get_policy(PolicyArn=reader)["Policy"]
    assert (policy["PolicyId"], policy["DefaultVersionId"]) == ("ANPAIZTJ4DXE7G6AGAE6M", "v3")
    version = aws.iam.get_policy_version(PolicyArn=reader, VersionId="v3")["PolicyVersion"]
    assert version["Document"]["Statement"][0]["Action"][0] == "s3:Get*"
    aws.iam.detach_role_policy(RoleName="vmimport", PolicyArn=reader)
    assert aws.iam.list_policies(OnlyAttached=True)["Policies"] == []


def test_unknown_policies_of_aws_are_refused_as_not_emulated(aws: SandboxClients) -> None:
    make_role(aws)
    other, reader = AWS_POLICY.format("ReadOnlyAccess"), AWS_POLICY.format("AmazonS3ReadOnlyAccess")
    for call in (
        lambda: aws.iam.attach_role_policy(RoleName="vmimport", PolicyArn=other),
        lambda: aws.iam.get_policy(PolicyArn=other),
        lambda: aws.iam.get_policy_version(PolicyArn=reader, VersionId="v1"),
        lambda: aws.iam.list_policy_versions(PolicyArn=reader),
        lambda: aws.iam.create_policy_version(PolicyArn=reader, PolicyDocument=READ),
        lambda: aws.iam.delete_policy(PolicyArn=reader),
    ):
        with refused("NotImplemented"):
            call()


def test_a_policy_that_does_not_exist_is_not_attached(aws: SandboxClients) -> None:
    make_role(aws)
    for arn in ("longpolicynamebutnoarn", "arn:aws:iam::012345678901:role/x"):
        with refused("ValidationError", "Invalid ARN:  Could not be parsed!"):
            aws.iam.attach_role_policy(RoleName="vmimport", PolicyArn=arn)
    arn = f"arn:aws:iam::{aws.account}:policy/none"
    with refused("NoSuchEntity", f"Policy {arn} does not exist or is not attachable."):
        aws.iam.attach_role_policy(RoleName="vmimport", PolicyArn=arn)
    with refused("NoSuchEntity", f"Policy {arn} was not found."):
        aws.iam.delete_policy(PolicyArn=arn)


def test_an_instance_profile_has_one_role(aws: SandboxClients) -> None:
    for name in ("one", "two"):
        make_role(aws, name)
    created = aws.iam.create_instance_profile(InstanceProfileName="p", Path="/x/")["InstanceProfile"]
    assert created["Arn"] == f"arn:aws:iam::{aws.account}:instance-profile/x/p"
    assert created["Roles"] == []
    with refused("EntityAlreadyExists", "Instance Profile p already exists."):
        aws.iam.create_instance_profile(InstanceProfileName="p")
    aws.iam.add_role_to_instance_profile(InstanceProfileName="p", RoleName="one")
    with refused("LimitExceeded"):
        aws.iam.add_role_to_instance_profile(InstanceProfileName="p", RoleName="two")
    found = aws.iam.list_instance_profiles_for_role(RoleName="one")["InstanceProfiles"]
    assert [profile["InstanceProfileName"] for profile in found] == ["p"]
    role = aws.iam.get_instance_profile(InstanceProfileName="p")["InstanceProfile"]["Roles"][0]
    assert role["RoleName"] == "one"
    for call in (
        lambda: aws.iam.delete_role(RoleName="one"),
        lambda: aws.iam.delete_instance_profile(InstanceProfileName="p"),
    ):
        with refused("DeleteConflict", "must remove roles from instance profile first"):
            call()
    aws.iam.remove_role_from_instance_profile(InstanceProfileName="p", RoleName="one")
    aws.iam.delete_role(RoleName="one")
    aws.iam.delete_instance_profile(InstanceProfileName="p")
    with refused("NoSuchEntity", "Instance Profile p cannot be found."):
        aws.iam.get_instance_profile(InstanceProfileName="p")
    assert aws.iam.list_instance_profiles()["InstanceProfiles"] == []


def test_identity_providers(aws: SandboxClients) -> None:
    url = "https://token.actions.githubusercontent.com"
    clients = ["sts.amazonaws.com"]
    made = aws.iam.create_open_id_connect_provider(Url=url, ClientIDList=clients)
    arn = made["OpenIDConnectProviderArn"]
    assert arn == f"arn:aws:iam::{aws.account}:oidc-provider/token.actions.githubusercontent.com"
    with refused("EntityAlreadyExists", f"Provider with url {url} already exists."):
        aws.iam.create_open_id_connect_provider(Url=url)
    with refused("NotImplemented", "thumbprint"):
        aws.iam.create_open_id_connect_provider(Url="https://example.com")
    found = aws.iam.get_open_id_connect_provider(OpenIDConnectProviderArn=arn)
    assert (found["Url"], found["ClientIDList"]) == (url.removeprefix("https://"), ["sts.amazonaws.com"])


def test_an_access_key_works_until_it_is_deleted(aws: SandboxClients) -> None:
    aws.iam.create_user(UserName="ci")
    key = aws.iam.create_access_key(UserName="ci")["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    client = aws.other_client("sts", **keys)
    assert client.get_caller_identity()["Arn"] == f"arn:aws:iam::{aws.sandbox.account}:user/ci"
    with refused("DeleteConflict"):
        aws.iam.delete_user(UserName="ci")
    aws.iam.delete_access_key(UserName="ci", AccessKeyId=key["AccessKeyId"])
    with refused("InvalidClientTokenId"):
        client.get_caller_identity()
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
        params = {"PolicySourceArn": arn, "ActionNames": [action], "ResourceArns": [resource]}
        return aws.iam.simulate_principal_policy(**params)["EvaluationResults"][0]["EvalDecision"]

    assert decide("s3:GetObject", "arn:aws:s3:::images/k") == "allowed"
    assert decide("s3:GetObject", "arn:aws:s3:::others/k") == "implicitDeny"
    assert decide("s3:PutObject", "arn:aws:s3:::images/k") == "implicitDeny"


def test_get_user_without_a_name_returns_the_caller(aws: SandboxClients) -> None:
    """Sources: GetUser; the error of a role in public reports of GetUser and ListAccessKeys."""
    own = user_access(aws.sandbox, name="eve").client("iam")
    assert own.get_user()["User"]["UserName"] == "eve"
    with refused("NotImplemented", "iam:GetUser of arn:aws:iam::"):  # the sandbox has no record of this user
        aws.iam.get_user()
    trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = aws.iam.create_role(RoleName="r", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    given = aws.client("sts").assume_role(RoleArn=role, RoleSessionName="eve")["Credentials"]
    session = aws.other_client(
        "iam",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["SessionToken"],
    )
    for call in (session.get_user, session.list_access_keys):
        with refused("ValidationError", "Must specify userName when calling with non-User credentials"):
            call()
