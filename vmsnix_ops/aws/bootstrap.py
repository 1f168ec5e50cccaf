"""Create what an account needs before its first publish: a bucket, a role and policies.

Only missing or wrong parts are created or changed, so a second bootstrap changes nothing. Statements of
bucket and trust policies and lifecycle rules of others are kept.

Sources: "Required permissions for VM Import/Export"; the operations' pages in the Amazon S3 and IAM API
References.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from vmsnix_ops import errors
from vmsnix_ops.aws import buckets, service_role
from vmsnix_ops.aws.buckets import ALL_BLOCKED
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.iam.documents import as_list, read_statements, same_policy
from vmsnix_ops.aws.iam.permissions import needs, needs_of
from vmsnix_ops.aws.session import calling, client, if_found

if TYPE_CHECKING:
    import boto3
    from types_boto3_iam.client import IAMClient
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.literals import BucketLocationConstraintType
    from types_boto3_s3.type_defs import (
        CreateBucketRequestTypeDef,
        LifecycleRuleOutputTypeDef,
        LifecycleRuleTypeDef,
        PublicAccessBlockConfigurationTypeDef,
        ServerSideEncryptionRuleTypeDef,
    )

    from vmsnix_ops.aws.iam.policies import PolicyScope


LEFTOVER_DAYS = 7
VERSION_DAYS = 1  # the minimum of S3
MOST_VERSIONS = 5  # of a managed policy, IAM's limit
Verdict = Literal["create", "change", "keep"]


@dataclass(frozen=True, slots=True)
class BootstrapPart:
    """A resource that an account needs, and what a bootstrap does with it.

    Attributes
    ----------
    name
        Such as ``"bucket"``.
    verdict
        ``"create"``, ``"change"`` or ``"keep"``.
    what
        The resource, in words.
    """

    name: str
    verdict: Verdict
    what: str


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients of a bootstrap."""

    s3: S3Client
    iam: IAMClient


@needs(
    "s3:ListBucket",
    "s3:GetBucketPublicAccessBlock",
    "s3:GetEncryptionConfiguration",
    "s3:GetBucketPolicy",
    "s3:GetLifecycleConfiguration",
    "iam:GetRole",
    "iam:GetRolePolicy",
    "iam:GetPolicy",
    "iam:GetPolicyVersion",
)
def plan_parts(session: boto3.Session, scope: policies.PolicyScope) -> list[BootstrapPart]:
    """Return all parts, each with what a bootstrap does with it. Changes nothing.

    Parameters
    ----------
    session
        Session of the account.
    scope
        With account, bucket and exactly one region.

    Raises
    ------
    vmsnix_ops.errors.BucketError
        The bucket belongs to another account, or is in another region.
    """
    clients = _clients(session, scope)
    with calling("read what exists"):
        return [BootstrapPart(name, *read(clients, scope)) for name, read, _ in _PARTS]


@needs(
    "s3:CreateBucket",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutEncryptionConfiguration",
    "s3:PutBucketPolicy",
    "s3:PutLifecycleConfiguration",
    "iam:CreateRole",
    "iam:UpdateAssumeRolePolicy",
    "iam:PutRolePolicy",
    "iam:CreatePolicy",
    "iam:ListPolicyVersions",
    "iam:DeletePolicyVersion",
    "iam:CreatePolicyVersion",
)
def apply_part(session: boto3.Session, scope: policies.PolicyScope, part: BootstrapPart) -> None:
    """Create or change one part. Safe to run twice: the next `plan_parts` finds the part unchanged."""
    if part.verdict == "keep":
        return
    clients = _clients(session, scope)
    making = next(making for name, _, making in _PARTS if name == part.name)
    with calling(f"{part.verdict} the {part.name}"):
        making(clients, scope)


def bootstrapper_actions() -> tuple[str, ...]:
    """Return the permissions of a bootstrap."""
    return needs_of(plan_parts, apply_part)


def _clients(session: boto3.Session, scope: policies.PolicyScope) -> Clients:
    region = scope.regions[0]
    return Clients(client(session, "s3", region), client(session, "iam", region))


# The bucket


def _bucket(clients: Clients, scope: policies.PolicyScope) -> tuple[Verdict, str]:
    try:
        buckets.check_bucket(clients.s3, scope.bucket, scope.regions[0], scope.account)
    except errors.BucketError as error:
        if error.code != "NoSuchBucket":
            raise
        return "create", f"{scope.bucket} in {scope.regions[0]}"
    return "keep", f"{scope.bucket} in {scope.regions[0]}"


def _make_bucket(clients: Clients, scope: policies.PolicyScope) -> None:
    region = scope.regions[0]
    # S3 refuses the location us-east-1.
    request: CreateBucketRequestTypeDef = {"Bucket": scope.bucket}
    if region != "us-east-1":
        known = cast("BucketLocationConstraintType", region)  # the stubs lag behind AWS's list
        request["CreateBucketConfiguration"] = {"LocationConstraint": known}
    if_found(lambda: clients.s3.create_bucket(**request), "BucketAlreadyOwnedByYou")


def _block(clients: Clients, scope: policies.PolicyScope) -> tuple[Verdict, str]:
    answer = if_found(
        lambda: clients.s3.get_public_access_block(Bucket=scope.bucket),
        "NoSuchPublicAccessBlockConfiguration",
        "NoSuchBucket",
    )
    on: PublicAccessBlockConfigurationTypeDef = answer["PublicAccessBlockConfiguration"] if answer else {}
    complete = all(on.get(setting) for setting in buckets.ALL_BLOCKED)
    return (
        "keep" if complete else "change" if on else "create"
    ), "all public access to the bucket is blocked"


def _make_block(clients: Clients, scope: policies.PolicyScope) -> None:
    clients.s3.put_public_access_block(
        Bucket=scope.bucket,
        PublicAccessBlockConfiguration=buckets.ALL_BLOCKED,
    )


def _encryption(clients: Clients, scope: policies.PolicyScope) -> tuple[Verdict, str]:
    answer = if_found(
        lambda: clients.s3.get_bucket_encryption(Bucket=scope.bucket),
        "ServerSideEncryptionConfigurationNotFoundError",
        "NoSuchBucket",
    )
    return ("keep" if answer else "create"), "objects are encrypted by default"


def _make_encryption(clients: Clients, scope: policies.PolicyScope) -> None:
    rule: ServerSideEncryptionRuleTypeDef = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    clients.s3.put_bucket_encryption(Bucket=scope.bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})


def _bucket_statements(clients: Clients, scope: policies.PolicyScope) -> list[dict[str, Any]]:
    answer = if_found(
        lambda: clients.s3.get_bucket_policy(Bucket=scope.bucket), "NoSuchBucketPolicy", "NoSuchBucket"
    )
    return read_statements(answer["Policy"]) if answer else []


def _tls(clients: Clients, scope: policies.PolicyScope) -> tuple[Verdict, str]:
    existing = _bucket_statements(clients, scope)
    there = any(buckets.requires_tls(statement) for statement in existing)
    return ("keep" if there else "change" if existing else "create"), "requests without TLS are refused"


def _make_tls(clients: Clients, scope: policies.PolicyScope) -> None:
    existing = [*_bucket_statements(clients, scope), policies.tls_statement(scope)]
    policy = {"Version": policies.VERSION, "Statement": existing}
    clients.s3.put_bucket_policy(Bucket=scope.bucket, Policy=json.dumps(policy))


def lifecycle_rules(scope: policies.PolicyScope) -> list[LifecycleRuleTypeDef]:
    """Return the rules that delete leftovers of uploads and their old versions.

    Delete markers need a separate rule: S3 does not accept them in a rule with an age in days.
    """
    below: LifecycleRuleTypeDef = {"Status": "Enabled", "Filter": {"Prefix": scope.key_prefix}}
    return [
        {
            "ID": "vmsnix-leftovers",
            **below,
            "Expiration": {"Days": LEFTOVER_DAYS},
            "NoncurrentVersionExpiration": {"NoncurrentDays": VERSION_DAYS},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": LEFTOVER_DAYS},
        },
        {"ID": "vmsnix-delete-markers", **below, "Expiration": {"ExpiredObjectDeleteMarker": True}},
    ]


def _rules(clients: Clients, scope: policies.PolicyScope) -> list[LifecycleRuleOutputTypeDef]:
    answer = if_found(
        lambda: clients.s3.get_bucket_lifecycle_configuration(Bucket=scope.bucket),
        "NoSuchLifecycleConfiguration",
        "NoSuchBucket",
    )
    return list(answer["Rules"]) if answer else []


def _lifecycle(clients: Clients, scope: policies.PolicyScope) -> tuple[Verdict, str]:
    rules = _rules(clients, scope)
    what = f"objects and uploads below {scope.key_prefix!r} are deleted after {LEFTOVER_DAYS} days"
    if not rules:
        return "create", what
    check = buckets.check_bucket_lifecycle(clients.s3, scope.bucket, scope.key_prefix)
    expires = buckets.expires_versions(rules, scope.key_prefix)
    return ("keep" if check.outcome == "pass" and expires else "change"), what


def _make_lifecycle(clients: Clients, scope: policies.PolicyScope) -> None:
    ours = lifecycle_rules(scope)
    names = {rule["ID"] for rule in ours}
    others = [rule for rule in _rules(clients, scope) if rule.get("ID") not in names]
    clients.s3.put_bucket_lifecycle_configuration(
        Bucket=scope.bucket, LifecycleConfiguration={"Rules": [*others, *ours]}
    )


# The role


def _role(clients: Clients, scope: policies.PolicyScope) -> tuple[Verdict, str]:
    answer = if_found(lambda: clients.iam.get_role(RoleName=scope.role_name), "NoSuchEntity")
    what = f"{scope.role_name}, which only VM Import may assume"
    if answer is None:
        return "create", what
    trust = service_role.classify_trust(answer["Role"]["AssumeRolePolicyDocument"])
    return ("keep" if trust == "trusted" else "change"), what


def _make_role(clients: Clients, scope: policies.PolicyScope) -> None:
    trust = policies.import_role_trust_policy()
    answer = if_found(lambda: clients.iam.get_role(RoleName=scope.role_name), "NoSuchEntity")
    if answer is None:
        clients.iam.create_role(
            RoleName=scope.role_name,
            AssumeRolePolicyDocument=json.dumps(trust),
            Description="Read by VM Import: uploaded images",
        )
        return
    others = [
        statement
        for statement in read_statements(answer["Role"]["AssumeRolePolicyDocument"])
        if not _is_vm_import(statement)
    ]
    trust["Statement"] = [*others, *trust["Statement"]]
    clients.iam.update_assume_role_policy(RoleName=scope.role_name, PolicyDocument=json.dumps(trust))


def _is_vm_import(statement: dict[str, Any]) -> bool:
    principal = statement.get("Principal")
    return isinstance(principal, dict) and as_list(principal.get("Service")) == [service_role.SERVICE]


def _role_policy(clients: Clients, scope: policies.PolicyScope) -> tuple[Verdict, str]:
    answer = if_found(
        lambda: clients.iam.get_role_policy(RoleName=scope.role_name, PolicyName=scope.role_policy_name),
        "NoSuchEntity",
    )
    what = f"{scope.role_name} may read the bucket and create snapshots"
    if answer is None:
        return "create", what
    return (
        "keep" if same_policy(answer["PolicyDocument"], policies.import_role_policy(scope)) else "change"
    ), what


def _make_role_policy(clients: Clients, scope: policies.PolicyScope) -> None:
    clients.iam.put_role_policy(
        RoleName=scope.role_name,
        PolicyName=scope.role_policy_name,
        PolicyDocument=json.dumps(policies.import_role_policy(scope)),
    )


# The publisher's policy


def _policy_arn(scope: policies.PolicyScope) -> str:
    return f"arn:{scope.partition}:iam::{scope.account}:policy/{scope.policy_name}"


def _policy(clients: Clients, scope: policies.PolicyScope) -> tuple[Verdict, str]:
    arn = _policy_arn(scope)
    what = f"{scope.policy_name}, to attach to publishers"
    answer = if_found(lambda: clients.iam.get_policy(PolicyArn=arn), "NoSuchEntity")
    if answer is None:
        return "create", what
    version = answer["Policy"]["DefaultVersionId"]
    existing = clients.iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
    return ("keep" if same_policy(existing, policies.publisher_policy(scope)) else "change"), what


def _make_policy(clients: Clients, scope: policies.PolicyScope) -> None:
    arn, text = _policy_arn(scope), json.dumps(policies.publisher_policy(scope))
    if if_found(lambda: clients.iam.get_policy(PolicyArn=arn), "NoSuchEntity") is None:
        clients.iam.create_policy(
            PolicyName=scope.policy_name,
            PolicyDocument=text,
            Description="Permissions to publish with vmsnix via VM Import",
        )
        return
    versions = clients.iam.list_policy_versions(PolicyArn=arn)["Versions"]
    if len(versions) >= MOST_VERSIONS:
        others = (v["VersionId"] for v in versions if not v["IsDefaultVersion"])
        oldest = min(others, key=lambda name: int(name.removeprefix("v")))  # dates have whole seconds
        clients.iam.delete_policy_version(PolicyArn=arn, VersionId=oldest)
    clients.iam.create_policy_version(PolicyArn=arn, PolicyDocument=text, SetAsDefault=True)


_Read = Callable[[Clients, policies.PolicyScope], tuple[Verdict, str]]
_Make = Callable[[Clients, policies.PolicyScope], None]
_PARTS: tuple[tuple[str, _Read, _Make], ...] = (
    ("bucket", _bucket, _make_bucket),
    ("public access block", _block, _make_block),
    ("encryption", _encryption, _make_encryption),
    ("TLS-only policy", _tls, _make_tls),
    ("lifecycle", _lifecycle, _make_lifecycle),
    ("role", _role, _make_role),
    ("role policy", _role_policy, _make_role_policy),
    ("publisher policy", _policy, _make_policy),
)


def cloudformation_template(scope: PolicyScope) -> dict[str, Any]:
    """Return a CloudFormation template with the same resources.

    Deploy it in the scope's region, with ``--capabilities CAPABILITY_NAMED_IAM``. Deleting the stack keeps
    the bucket.

    Parameters
    ----------
    scope
        With account, bucket and one region.
    """
    rule = {
        "Id": "vmsnix-leftovers",
        "Status": "Enabled",
        "Prefix": scope.key_prefix,
        "ExpirationInDays": LEFTOVER_DAYS,
        "NoncurrentVersionExpiration": {"NoncurrentDays": VERSION_DAYS},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": LEFTOVER_DAYS},
    }
    markers = {
        "Id": "vmsnix-delete-markers",
        "Status": "Enabled",
        "Prefix": scope.key_prefix,
        "ExpiredObjectDeleteMarker": True,
    }
    encryption = {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "Resources that vmsnix needs once per account: bucket, VM Import role, publisher "
        "policy",
        "Resources": {
            "Bucket": {
                "Type": "AWS::S3::Bucket",
                "DeletionPolicy": "Retain",
                "UpdateReplacePolicy": "Retain",
                "Properties": {
                    "BucketName": scope.bucket,
                    "PublicAccessBlockConfiguration": dict(ALL_BLOCKED),
                    "BucketEncryption": {"ServerSideEncryptionConfiguration": [encryption]},
                    "LifecycleConfiguration": {"Rules": [rule, markers]},
                },
            },
            "BucketPolicy": {
                "Type": "AWS::S3::BucketPolicy",
                "Properties": {
                    "Bucket": {"Ref": "Bucket"},
                    "PolicyDocument": policies.tls_only_policy(scope),
                },
            },
            "ImportRole": {
                "Type": "AWS::IAM::Role",
                "Properties": {
                    "RoleName": scope.role_name,
                    "Description": "Read by VM Import: uploaded images",
                    "AssumeRolePolicyDocument": policies.import_role_trust_policy(),
                    "Policies": [
                        {
                            "PolicyName": scope.role_policy_name,
                            "PolicyDocument": policies.import_role_policy(scope),
                        }
                    ],
                },
            },
            "PublisherPolicy": {
                "Type": "AWS::IAM::ManagedPolicy",
                "Properties": {
                    "ManagedPolicyName": scope.policy_name,
                    "Description": "Permissions to publish with vmsnix via VM Import",
                    "PolicyDocument": policies.publisher_policy(scope),
                },
            },
        },
        "Outputs": {
            "Bucket": {"Value": {"Ref": "Bucket"}},
            "PublisherPolicy": {"Value": {"Ref": "PublisherPolicy"}},
        },
    }
