"""Create what an account needs before its first publish: a bucket, a role and policies.

Only missing or wrong parts are created or changed, so a second bootstrap changes nothing. Statements of
bucket and trust policies and lifecycle rules of others are kept.

Sources: "Required permissions for VM Import/Export"; the operations' pages in the Amazon S3 and IAM API
References.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from vmsnix_ops import errors
from vmsnix_ops.aws import buckets, service_role
from vmsnix_ops.aws.buckets import ALL_BLOCKED
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.iam.documents import as_list, policy, read_statements, same_policy
from vmsnix_ops.aws.iam.permissions import needs, needs_of
from vmsnix_ops.aws.session import calling, client, if_found

if TYPE_CHECKING:
    from collections.abc import Callable

    import boto3
    from types_boto3_iam.client import IAMClient
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.literals import BucketLocationConstraintType
    from types_boto3_s3.type_defs import (
        CreateBucketRequestTypeDef,
        LifecycleRuleTypeDef,
        ServerSideEncryptionRuleTypeDef,
    )

    from vmsnix_ops.aws.iam.policies import PolicyScope


LEFTOVER_DAYS = 7
VERSION_DAYS = 1  # the minimum of S3
MOST_VERSIONS = 5  # of a managed policy, IAM's limit
ROLE_TEXT = "Read by VM Import: uploaded images"
POLICY_TEXT = "Permissions to publish with vmsnix via VM Import"
PartAction = Literal["create", "change", "keep"]


@dataclass(frozen=True, slots=True)
class BootstrapPart:
    """A resource that an account needs, and what a bootstrap does with it."""

    name: str  # such as "bucket"
    action: PartAction
    what: str  # the resource, in words


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients of a bootstrap."""

    s3: S3Client
    iam: IAMClient

    @classmethod
    def of(cls, session: boto3.Session, scope: PolicyScope) -> Clients:
        """Return clients of the scope's region."""
        region = scope.regions[0]
        return cls(client(session, "s3", region), client(session, "iam", region))


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
def plan_parts(session: boto3.Session, scope: PolicyScope) -> list[BootstrapPart]:
    """Return all parts, each with what a bootstrap does with it. The scope has one region."""
    clients = Clients.of(session, scope)
    actions: dict[bool | None, PartAction] = {None: "create", False: "change", True: "keep"}
    with calling("read what exists"):
        return [
            BootstrapPart(name, actions[is_right(clients, scope)], text.format(scope=scope))
            for name, text, is_right, _ in _PARTS
        ]


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
def apply_part(session: boto3.Session, scope: PolicyScope, part: BootstrapPart) -> None:
    """Create or change one part. Safe to run twice: the next `plan_parts` finds the part unchanged."""
    if part.action == "keep":
        return
    put = next(put for name, _, _, put in _PARTS if name == part.name)
    with calling(f"{part.action} the {part.name}"):
        put(Clients.of(session, scope), scope)


def bootstrapper_actions() -> tuple[str, ...]:
    """Return the permissions of a bootstrap."""
    return needs_of(plan_parts, apply_part)


# Each part has two functions. The first returns whether the part is right, or None if it does not exist; the
# second creates or changes it.


def _bucket_is_right(clients: Clients, scope: PolicyScope) -> bool | None:
    try:
        buckets.check_bucket(clients.s3, scope.bucket, scope.regions[0], scope.account)
    except errors.BucketError as error:
        if error.code != "NoSuchBucket":
            raise
        return None
    return True


def _put_bucket(clients: Clients, scope: PolicyScope) -> None:
    region = scope.regions[0]
    request: CreateBucketRequestTypeDef = {"Bucket": scope.bucket}
    if region != "us-east-1":  # S3 refuses this location
        known = cast("BucketLocationConstraintType", region)  # the stubs lag behind AWS's list
        request["CreateBucketConfiguration"] = {"LocationConstraint": known}
    if_found(lambda: clients.s3.create_bucket(**request), "BucketAlreadyOwnedByYou")


def _block_is_right(clients: Clients, scope: PolicyScope) -> bool | None:
    on = buckets.read_public_access_block(clients.s3, scope.bucket)
    return all(on.get(setting) for setting in ALL_BLOCKED) if on else None


def _put_block(clients: Clients, scope: PolicyScope) -> None:
    clients.s3.put_public_access_block(Bucket=scope.bucket, PublicAccessBlockConfiguration=ALL_BLOCKED)


def _encryption_is_right(clients: Clients, scope: PolicyScope) -> bool | None:
    return True if buckets.read_default_encryption(clients.s3, scope.bucket) else None


def _put_encryption(clients: Clients, scope: PolicyScope) -> None:
    rule: ServerSideEncryptionRuleTypeDef = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    clients.s3.put_bucket_encryption(Bucket=scope.bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})


def _tls_is_right(clients: Clients, scope: PolicyScope) -> bool | None:
    existing = buckets.read_bucket_policy(clients.s3, scope.bucket)
    return any(map(buckets.requires_tls, existing)) if existing else None


def _put_tls(clients: Clients, scope: PolicyScope) -> None:
    existing = buckets.read_bucket_policy(clients.s3, scope.bucket)
    text = json.dumps(policy(*existing, policies.tls_statement(scope)))
    clients.s3.put_bucket_policy(Bucket=scope.bucket, Policy=text)


def _lifecycle_is_right(clients: Clients, scope: PolicyScope) -> bool | None:
    rules = buckets.read_lifecycle_rules(clients.s3, scope.bucket)
    if not rules:
        return None
    check = buckets.check_bucket_lifecycle(clients.s3, scope.bucket, scope.key_prefix)
    return check.outcome == "pass" and buckets.expires_versions(rules, scope.key_prefix)


def _put_lifecycle(clients: Clients, scope: PolicyScope) -> None:
    # Delete markers need a separate rule: S3 does not accept them in a rule with an age in days.
    below: LifecycleRuleTypeDef = {"Status": "Enabled", "Filter": {"Prefix": scope.key_prefix}}
    ours: list[LifecycleRuleTypeDef] = [
        {
            "ID": "vmsnix-leftovers",
            **below,
            "Expiration": {"Days": LEFTOVER_DAYS},
            "NoncurrentVersionExpiration": {"NoncurrentDays": VERSION_DAYS},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": LEFTOVER_DAYS},
        },
        {"ID": "vmsnix-delete-markers", **below, "Expiration": {"ExpiredObjectDeleteMarker": True}},
    ]
    names = {rule["ID"] for rule in ours}
    others = [
        rule for rule in buckets.read_lifecycle_rules(clients.s3, scope.bucket) if rule.get("ID") not in names
    ]
    clients.s3.put_bucket_lifecycle_configuration(
        Bucket=scope.bucket, LifecycleConfiguration={"Rules": [*others, *ours]}
    )


def _trust_of_role(clients: Clients, scope: PolicyScope) -> Any:
    answer = if_found(lambda: clients.iam.get_role(RoleName=scope.role_name), "NoSuchEntity")
    return answer["Role"]["AssumeRolePolicyDocument"] if answer else None


def _role_is_right(clients: Clients, scope: PolicyScope) -> bool | None:
    trust = _trust_of_role(clients, scope)
    return None if trust is None else service_role.classify_trust(trust) == "trusted"


def _put_role(clients: Clients, scope: PolicyScope) -> None:
    trust, existing = policies.import_role_trust_policy(), _trust_of_role(clients, scope)
    if existing is None:
        clients.iam.create_role(
            RoleName=scope.role_name, AssumeRolePolicyDocument=json.dumps(trust), Description=ROLE_TEXT
        )
        return
    others = [statement for statement in read_statements(existing) if not _is_for_vm_import(statement)]
    trust["Statement"] = [*others, *trust["Statement"]]
    clients.iam.update_assume_role_policy(RoleName=scope.role_name, PolicyDocument=json.dumps(trust))


def _is_for_vm_import(statement: dict[str, Any]) -> bool:
    principal = statement.get("Principal")
    return isinstance(principal, dict) and as_list(principal.get("Service")) == [service_role.SERVICE]


def _role_policy_is_right(clients: Clients, scope: PolicyScope) -> bool | None:
    answer = if_found(
        lambda: clients.iam.get_role_policy(RoleName=scope.role_name, PolicyName=scope.role_policy_name),
        "NoSuchEntity",
    )
    return same_policy(answer["PolicyDocument"], policies.import_role_policy(scope)) if answer else None


def _put_role_policy(clients: Clients, scope: PolicyScope) -> None:
    clients.iam.put_role_policy(
        RoleName=scope.role_name,
        PolicyName=scope.role_policy_name,
        PolicyDocument=json.dumps(policies.import_role_policy(scope)),
    )


def _policy_arn(scope: PolicyScope) -> str:
    return f"arn:{scope.partition}:iam::{scope.account}:policy/{scope.policy_name}"


def _policy_is_right(clients: Clients, scope: PolicyScope) -> bool | None:
    arn = _policy_arn(scope)
    answer = if_found(lambda: clients.iam.get_policy(PolicyArn=arn), "NoSuchEntity")
    if answer is None:
        return None
    version = clients.iam.get_policy_version(PolicyArn=arn, VersionId=answer["Policy"]["DefaultVersionId"])
    return same_policy(version["PolicyVersion"]["Document"], policies.publisher_policy(scope))


def _put_policy(clients: Clients, scope: PolicyScope) -> None:
    arn, text = _policy_arn(scope), json.dumps(policies.publisher_policy(scope))
    if if_found(lambda: clients.iam.get_policy(PolicyArn=arn), "NoSuchEntity") is None:
        clients.iam.create_policy(PolicyName=scope.policy_name, PolicyDocument=text, Description=POLICY_TEXT)
        return
    versions = clients.iam.list_policy_versions(PolicyArn=arn)["Versions"]
    if len(versions) >= MOST_VERSIONS:
        others = (v["VersionId"] for v in versions if not v["IsDefaultVersion"])
        oldest = min(others, key=lambda name: int(name.removeprefix("v")))  # dates have whole seconds only
        clients.iam.delete_policy_version(PolicyArn=arn, VersionId=oldest)
    clients.iam.create_policy_version(PolicyArn=arn, PolicyDocument=text, SetAsDefault=True)


_IsRight: TypeAlias = "Callable[[Clients, PolicyScope], bool | None]"
_Put: TypeAlias = "Callable[[Clients, PolicyScope], None]"
_PARTS: tuple[tuple[str, str, _IsRight, _Put], ...] = (
    ("bucket", "{scope.bucket} in {scope.regions[0]}", _bucket_is_right, _put_bucket),
    ("public access block", "all public access to the bucket is blocked", _block_is_right, _put_block),
    ("encryption", "objects are encrypted by default", _encryption_is_right, _put_encryption),
    ("TLS-only policy", "requests without TLS are refused", _tls_is_right, _put_tls),
    (
        "lifecycle",
        f"objects and uploads below {{scope.key_prefix!r}} are deleted after {LEFTOVER_DAYS} days",
        _lifecycle_is_right,
        _put_lifecycle,
    ),
    ("role", "{scope.role_name}, which only VM Import may assume", _role_is_right, _put_role),
    (
        "role policy",
        "{scope.role_name} may read the bucket and create snapshots",
        _role_policy_is_right,
        _put_role_policy,
    ),
    ("publisher policy", "{scope.policy_name}, to attach to publishers", _policy_is_right, _put_policy),
)
"""Name, text, and the two functions of each part, in the order in which they are created."""


def cloudformation_template(scope: PolicyScope) -> dict[str, Any]:
    """Return a CloudFormation template with the same resources.

    Deploy it in the scope's region, with ``--capabilities CAPABILITY_NAMED_IAM``. Deleting the stack keeps
    the bucket.
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
                    "Description": ROLE_TEXT,
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
                    "Description": POLICY_TEXT,
                    "PolicyDocument": policies.publisher_policy(scope),
                },
            },
        },
        "Outputs": {
            "Bucket": {"Value": {"Ref": "Bucket"}},
            "PublisherPolicy": {"Value": {"Ref": "PublisherPolicy"}},
        },
    }
