"""What an account needs once, before its first publish: a bucket, a role, policies.

A part is looked at, and made or put right only where it is missing or wrong, so bootstrapping twice changes
nothing. What other people put beside it stays: statements of a bucket policy, lifecycle rules, statements of
a trust policy.

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
VERSION_DAYS = 1  # S3's least
MOST_VERSIONS = 5  # of a managed policy, IAM's limit
Verdict = Literal["create", "change", "keep"]


@dataclass(frozen=True, slots=True)
class BootstrapPart:
    """One thing that must be there.

    Attributes
    ----------
    name
        Such as ``"bucket"``.
    verdict
        ``"create"``, ``"change"`` or ``"keep"``.
    what
        What will be made or put right, or what is there.
    """

    name: str
    verdict: Verdict
    what: str


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients that the parts are looked at and made with."""

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
def plan_parts(session: boto3.Session, place: policies.PolicyScope) -> list[BootstrapPart]:
    """Return every part with what there is to do about it. Nothing is changed.

    Parameters
    ----------
    session
        Whose account it is.
    place
        With account, bucket and exactly one region.

    Raises
    ------
    vmsnix_ops.errors.BucketError
        The bucket's name is somebody else's, or it is in another region.
    """
    clients = _clients(session, place)
    with calling("read what exists"):
        return [BootstrapPart(name, *looked(clients, place)) for name, looked, _ in _PARTS]


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
def apply_part(session: boto3.Session, place: policies.PolicyScope, part: BootstrapPart) -> None:
    """Make one part, or put it right.

    Safe to run twice: what is kept is not touched, and what is made is looked at again next time.
    """
    if part.verdict == "keep":
        return
    clients = _clients(session, place)
    making = next(making for name, _, making in _PARTS if name == part.name)
    with calling(f"{part.verdict} the {part.name}"):
        making(clients, place)


def bootstrapper_actions() -> tuple[str, ...]:
    """Return what a bootstrap needs: to look at every part, and to make it."""
    return needs_of(plan_parts, apply_part)


def _clients(session: boto3.Session, place: policies.PolicyScope) -> Clients:
    region = place.regions[0]
    return Clients(client(session, "s3", region), client(session, "iam", region))


# The bucket


def _bucket(clients: Clients, place: policies.PolicyScope) -> tuple[Verdict, str]:
    try:
        buckets.check_bucket(clients.s3, place.bucket, place.regions[0], place.account)
    except errors.BucketError as error:
        if error.code != "NoSuchBucket":
            raise
        return "create", f"{place.bucket} in {place.regions[0]}"
    return "keep", f"{place.bucket} in {place.regions[0]}"


def _make_bucket(clients: Clients, place: policies.PolicyScope) -> None:
    region = place.regions[0]
    # us-east-1 is the one region that must not be named.
    request: CreateBucketRequestTypeDef = {"Bucket": place.bucket}
    if region != "us-east-1":
        known = cast("BucketLocationConstraintType", region)  # the stubs lag behind AWS's list
        request["CreateBucketConfiguration"] = {"LocationConstraint": known}
    if_found(lambda: clients.s3.create_bucket(**request), "BucketAlreadyOwnedByYou")


def _block(clients: Clients, place: policies.PolicyScope) -> tuple[Verdict, str]:
    answer = if_found(
        lambda: clients.s3.get_public_access_block(Bucket=place.bucket),
        "NoSuchPublicAccessBlockConfiguration",
        "NoSuchBucket",
    )
    on: PublicAccessBlockConfigurationTypeDef = answer["PublicAccessBlockConfiguration"] if answer else {}
    whole = all(on.get(setting) for setting in buckets.ALL_BLOCKED)
    return ("keep" if whole else "change" if on else "create"), "all public access to the bucket is blocked"


def _make_block(clients: Clients, place: policies.PolicyScope) -> None:
    clients.s3.put_public_access_block(
        Bucket=place.bucket,
        PublicAccessBlockConfiguration=buckets.ALL_BLOCKED,
    )


def _encryption(clients: Clients, place: policies.PolicyScope) -> tuple[Verdict, str]:
    answer = if_found(
        lambda: clients.s3.get_bucket_encryption(Bucket=place.bucket),
        "ServerSideEncryptionConfigurationNotFoundError",
        "NoSuchBucket",
    )
    return ("keep" if answer else "create"), "objects are encrypted by default"


def _make_encryption(clients: Clients, place: policies.PolicyScope) -> None:
    rule: ServerSideEncryptionRuleTypeDef = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    clients.s3.put_bucket_encryption(Bucket=place.bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})


def _bucket_statements(clients: Clients, place: policies.PolicyScope) -> list[dict[str, Any]]:
    answer = if_found(
        lambda: clients.s3.get_bucket_policy(Bucket=place.bucket), "NoSuchBucketPolicy", "NoSuchBucket"
    )
    return read_statements(answer["Policy"]) if answer else []


def _tls(clients: Clients, place: policies.PolicyScope) -> tuple[Verdict, str]:
    held = _bucket_statements(clients, place)
    there = any(buckets.requires_tls(statement) for statement in held)
    return ("keep" if there else "change" if held else "create"), "requests without TLS are refused"


def _make_tls(clients: Clients, place: policies.PolicyScope) -> None:
    held = [*_bucket_statements(clients, place), policies.tls_statement(place)]
    policy = {"Version": policies.VERSION, "Statement": held}
    clients.s3.put_bucket_policy(Bucket=place.bucket, Policy=json.dumps(policy))


def lifecycle_rules(place: policies.PolicyScope) -> list[LifecycleRuleTypeDef]:
    """Return the rules that delete what a dead machine left in the bucket, and what versioning keeps of it.

    Delete markers need a rule of their own: S3 refuses them beside an age in days.
    """
    below: LifecycleRuleTypeDef = {"Status": "Enabled", "Filter": {"Prefix": place.key_prefix}}
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


def _rules(clients: Clients, place: policies.PolicyScope) -> list[LifecycleRuleOutputTypeDef]:
    answer = if_found(
        lambda: clients.s3.get_bucket_lifecycle_configuration(Bucket=place.bucket),
        "NoSuchLifecycleConfiguration",
        "NoSuchBucket",
    )
    return list(answer["Rules"]) if answer else []


def _lifecycle(clients: Clients, place: policies.PolicyScope) -> tuple[Verdict, str]:
    rules = _rules(clients, place)
    what = f"objects and uploads below {place.key_prefix!r} are deleted after {LEFTOVER_DAYS} days"
    if not rules:
        return "create", what
    check = buckets.check_bucket_lifecycle(clients.s3, place.bucket, place.key_prefix)
    expires = buckets.expires_versions(rules, place.key_prefix)
    return ("keep" if check.outcome == "pass" and expires else "change"), what


def _make_lifecycle(clients: Clients, place: policies.PolicyScope) -> None:
    ours = lifecycle_rules(place)
    names = {rule["ID"] for rule in ours}
    others = [rule for rule in _rules(clients, place) if rule.get("ID") not in names]
    clients.s3.put_bucket_lifecycle_configuration(
        Bucket=place.bucket, LifecycleConfiguration={"Rules": [*others, *ours]}
    )


# The role


def _role(clients: Clients, place: policies.PolicyScope) -> tuple[Verdict, str]:
    answer = if_found(lambda: clients.iam.get_role(RoleName=place.role_name), "NoSuchEntity")
    what = f"{place.role_name}, which only VM Import may assume"
    if answer is None:
        return "create", what
    trust = service_role.classify_trust(answer["Role"]["AssumeRolePolicyDocument"])
    return ("keep" if trust == "trusted" else "change"), what


def _make_role(clients: Clients, place: policies.PolicyScope) -> None:
    trust = policies.import_role_trust_policy()
    answer = if_found(lambda: clients.iam.get_role(RoleName=place.role_name), "NoSuchEntity")
    if answer is None:
        clients.iam.create_role(
            RoleName=place.role_name,
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
    clients.iam.update_assume_role_policy(RoleName=place.role_name, PolicyDocument=json.dumps(trust))


def _is_vm_import(statement: dict[str, Any]) -> bool:
    principal = statement.get("Principal")
    return isinstance(principal, dict) and as_list(principal.get("Service")) == [service_role.SERVICE]


def _role_policy(clients: Clients, place: policies.PolicyScope) -> tuple[Verdict, str]:
    answer = if_found(
        lambda: clients.iam.get_role_policy(RoleName=place.role_name, PolicyName=place.role_policy_name),
        "NoSuchEntity",
    )
    what = f"{place.role_name} may read the bucket and create snapshots"
    if answer is None:
        return "create", what
    return (
        "keep" if same_policy(answer["PolicyDocument"], policies.import_role_policy(place)) else "change"
    ), what


def _make_role_policy(clients: Clients, place: policies.PolicyScope) -> None:
    clients.iam.put_role_policy(
        RoleName=place.role_name,
        PolicyName=place.role_policy_name,
        PolicyDocument=json.dumps(policies.import_role_policy(place)),
    )


# The publisher's policy


def _policy_arn(place: policies.PolicyScope) -> str:
    return f"arn:{place.partition}:iam::{place.account}:policy/{place.policy_name}"


def _policy(clients: Clients, place: policies.PolicyScope) -> tuple[Verdict, str]:
    arn = _policy_arn(place)
    what = f"{place.policy_name}, to attach to publishers"
    answer = if_found(lambda: clients.iam.get_policy(PolicyArn=arn), "NoSuchEntity")
    if answer is None:
        return "create", what
    version = answer["Policy"]["DefaultVersionId"]
    held = clients.iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
    return ("keep" if same_policy(held, policies.publisher_policy(place)) else "change"), what


def _make_policy(clients: Clients, place: policies.PolicyScope) -> None:
    arn, text = _policy_arn(place), json.dumps(policies.publisher_policy(place))
    if if_found(lambda: clients.iam.get_policy(PolicyArn=arn), "NoSuchEntity") is None:
        clients.iam.create_policy(
            PolicyName=place.policy_name,
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


_Look = Callable[[Clients, policies.PolicyScope], tuple[Verdict, str]]
_Make = Callable[[Clients, policies.PolicyScope], None]
_PARTS: tuple[tuple[str, _Look, _Make], ...] = (
    ("bucket", _bucket, _make_bucket),
    ("public access block", _block, _make_block),
    ("encryption", _encryption, _make_encryption),
    ("TLS-only policy", _tls, _make_tls),
    ("lifecycle", _lifecycle, _make_lifecycle),
    ("role", _role, _make_role),
    ("role policy", _role_policy, _make_role_policy),
    ("publisher policy", _policy, _make_policy),
)


# The same as `vmsnix_ops.aws.bootstrap`, as a CloudFormation template.


def cloudformation_template(place: PolicyScope) -> dict[str, Any]:
    """Return a template that makes the bucket, the role and the policies.

    Deploy it in the place's region, with ``--capabilities CAPABILITY_NAMED_IAM``. Deleting the stack keeps
    the bucket.

    Parameters
    ----------
    place
        With account, bucket and one region.
    """
    rule = {
        "Id": "vmsnix-leftovers",
        "Status": "Enabled",
        "Prefix": place.key_prefix,
        "ExpirationInDays": LEFTOVER_DAYS,
        "NoncurrentVersionExpiration": {"NoncurrentDays": VERSION_DAYS},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": LEFTOVER_DAYS},
    }
    markers = {
        "Id": "vmsnix-delete-markers",
        "Status": "Enabled",
        "Prefix": place.key_prefix,
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
                    "BucketName": place.bucket,
                    "PublicAccessBlockConfiguration": dict(ALL_BLOCKED),
                    "BucketEncryption": {"ServerSideEncryptionConfiguration": [encryption]},
                    "LifecycleConfiguration": {"Rules": [rule, markers]},
                },
            },
            "BucketPolicy": {
                "Type": "AWS::S3::BucketPolicy",
                "Properties": {
                    "Bucket": {"Ref": "Bucket"},
                    "PolicyDocument": policies.tls_only_policy(place),
                },
            },
            "ImportRole": {
                "Type": "AWS::IAM::Role",
                "Properties": {
                    "RoleName": place.role_name,
                    "Description": "Read by VM Import: uploaded images",
                    "AssumeRolePolicyDocument": policies.import_role_trust_policy(),
                    "Policies": [
                        {
                            "PolicyName": place.role_policy_name,
                            "PolicyDocument": policies.import_role_policy(place),
                        }
                    ],
                },
            },
            "PublisherPolicy": {
                "Type": "AWS::IAM::ManagedPolicy",
                "Properties": {
                    "ManagedPolicyName": place.policy_name,
                    "Description": "Permissions to publish with vmsnix via VM Import",
                    "PolicyDocument": policies.publisher_policy(place),
                },
            },
        },
        "Outputs": {
            "Bucket": {"Value": {"Ref": "Bucket"}},
            "PublisherPolicy": {"Value": {"Ref": "PublisherPolicy"}},
        },
    }
