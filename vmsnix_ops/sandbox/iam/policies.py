"""Managed policies, and the documents that IAM accepts.

Source: "IAM JSON policy element reference" in the IAM User Guide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vmsnix_ops.sandbox.core import AwsError, load_json, operation
from vmsnix_ops.sandbox.credentials import unique_id
from vmsnix_ops.sandbox.iam.common import (
    PAGING,
    Policy,
    check_name,
    check_path,
    conflict,
    exists_already,
    no_such,
    page,
    policy_of,
    read_tags,
    tag_list,
)

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params


VERSIONS = {"2012-10-17", "2008-10-17"}
PRINCIPAL_KINDS = {"AWS", "Service", "Federated", "CanonicalUser"}


def check(text: str, *, trust: bool) -> str:
    """Return a policy document that is well-formed.

    Parameters
    ----------
    text
        JSON.
    trust
        Whether it says who may assume a role; such a document names principals and no resources, others the
        reverse.

    Raises
    ------
    AwsError
        ``MalformedPolicyDocument``.
    """
    try:
        document = load_json(text)
    except ValueError:
        raise _malformed("This policy contains invalid Json") from None
    if not isinstance(document, dict) or set(document) - {"Version", "Id", "Statement"}:
        raise _malformed("Syntax errors in policy.")
    if document.get("Version", "2008-10-17") not in VERSIONS:
        raise _malformed("Syntax errors in policy.")
    if "Statement" not in document:
        raise _malformed("Missing required field Statement")
    for statement in statements(document):
        _check_statement(statement, trust=trust)
    return text


def _check_statement(statement: dict[str, Any], *, trust: bool) -> None:
    if not isinstance(statement, dict) or statement.get("Effect") not in {"Allow", "Deny"}:
        raise _malformed("Syntax errors in policy.")
    if not {"Action", "NotAction"} & set(statement):
        raise _malformed("Missing required field Action")
    if trust:
        if {"Resource", "NotResource"} & set(statement):
            raise _malformed("Has prohibited field Resource")
        if not {"Principal", "NotPrincipal"} & set(statement):
            raise _malformed("Missing required field Principal")
        principal = statement.get("Principal")
        if isinstance(principal, dict) and set(principal) - PRINCIPAL_KINDS:
            raise _malformed("Invalid principal in policy")
        return
    if {"Principal", "NotPrincipal"} & set(statement):
        raise _malformed("Policy document should not specify a principal.")
    if not {"Resource", "NotResource"} & set(statement):
        raise _malformed("Policy statement must contain resources.")
    for action in listed(statement.get("Action", statement.get("NotAction"))):
        if action != "*" and ":" not in action:
            raise _malformed("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
    for resource in listed(statement.get("Resource", statement.get("NotResource"))):
        if resource != "*" and not resource.startswith("arn:") and not resource.startswith("*"):
            raise _malformed(f'Resource {resource} must be in ARN format or "*".')


def _malformed(text: str) -> AwsError:
    return AwsError("MalformedPolicyDocument", text)


def statements(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the statements of a document, which may be one or a list."""
    found: list[dict[str, Any]] = listed(document.get("Statement"))
    return found


def listed(value: Any) -> list[Any]:
    """Return a value that may stand alone as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def encoded(text: str) -> str:
    """Return a document as IAM's answers carry it: percent-encoded, as RFC 3986 says."""
    return quote(text, safe="-_.~")


# Managed policies of the account, and their versions.
#
# Sources: CreatePolicy, GetPolicy, ListPolicies, DeletePolicy, CreatePolicyVersion, GetPolicyVersion,
# ListPolicyVersions, SetDefaultPolicyVersion, DeletePolicyVersion in the IAM API Reference.


VERSIONS_KEPT = 5


def _attachments(context: Context, arn: str) -> int:
    owners = [*context.table("roles", region="").values(), *context.table("users", region="").values()]
    return sum(arn in owner.attached_policies for owner in owners)


def _describe(context: Context, policy: Policy) -> dict[str, Any]:
    return {
        "PolicyName": policy.name,
        "PolicyId": policy.policy_id,
        "Arn": policy.arn,
        "Path": policy.path,
        "DefaultVersionId": policy.default_version,
        "AttachmentCount": _attachments(context, policy.arn),
        "PermissionsBoundaryUsageCount": 0,
        "IsAttachable": True,
        "CreateDate": policy.created,
        "UpdateDate": policy.updated,
    }


@operation("iam", "CreatePolicy", honours=["PolicyName", "Path", "PolicyDocument", "Description", "Tags"])
def create_policy(context: Context, params: Params) -> dict[str, Any]:
    """Make a managed policy."""
    name, path = params["PolicyName"], params.get("Path", "/")
    check_name(name, "policyName", 128)
    check_path(path)
    arn = f"arn:{context.partition}:iam::{context.account}:policy{path}{name}"
    policies: dict[str, Policy] = context.table("policies", region="")
    if arn in policies:
        raise exists_already(f"A policy called {name} already exists. Duplicate names are not allowed.")
    now = context.clock.now().replace(microsecond=0)
    policy = Policy(
        name=name,
        arn=arn,
        policy_id=unique_id("ANPA", arn, now.isoformat()),
        path=path,
        created=now,
        updated=now,
        description=params.get("Description", ""),
        versions={"v1": (check(params["PolicyDocument"], trust=False), now)},
        tags=read_tags(params.get("Tags")),
    )
    policies[arn] = policy
    return {"Policy": _describe(context, policy)}


@operation("iam", "GetPolicy", honours=["PolicyArn"])
def get_policy(context: Context, params: Params) -> dict[str, Any]:
    """Return what a policy is, without its document."""
    policy = policy_of(context, params["PolicyArn"])
    more: dict[str, Any] = {"Tags": tag_list(policy.tags)}
    if policy.description:
        more["Description"] = policy.description
    return {"Policy": _describe(context, policy) | more}


@operation("iam", "ListPolicies", honours=["Scope", "OnlyAttached", "PathPrefix", *PAGING])
def list_policies(context: Context, params: Params) -> dict[str, Any]:
    """List the account's own policies; AWS's are refused rather than listed in part."""
    if params.get("Scope") != "Local":
        raise AwsError("NotImplemented", "The sandbox lists policies with Scope=Local only.", status=501)
    prefix, attached = params.get("PathPrefix", "/"), params.get("OnlyAttached", False)
    found = [_describe(context, policy) for _, policy in sorted(context.table("policies", region="").items())]
    found = [p for p in found if p["Path"].startswith(prefix) and (p["AttachmentCount"] or not attached)]
    return page(found, params, "Policies")


@operation("iam", "DeletePolicy", honours=["PolicyArn"])
def delete_policy(context: Context, params: Params) -> dict[str, Any]:
    """Delete a policy that nothing uses and that has one version only."""
    policy = policy_of(context, params["PolicyArn"])
    if _attachments(context, policy.arn):
        raise conflict("Cannot delete a policy attached to entities.")
    if len(policy.versions) > 1:
        raise conflict(
            "This policy has more than one version. Before you delete a policy, you must delete them."
        )
    del context.table("policies", region="")[policy.arn]
    return {}


def _describe_version(policy: Policy, version: str, *, document: bool) -> dict[str, Any]:
    text, created = policy.versions[version]
    shown: dict[str, Any] = {
        "VersionId": version,
        "IsDefaultVersion": version == policy.default_version,
        "CreateDate": created,
    }
    if document:
        shown["Document"] = encoded(text)
    return shown


def _version_of(policy: Policy, version: str) -> str:
    if version not in policy.versions:
        raise no_such(f"Policy {policy.arn} version {version} does not exist or is not attachable.")
    return version


@operation("iam", "CreatePolicyVersion", honours=["PolicyArn", "PolicyDocument", "SetAsDefault"])
def create_policy_version(context: Context, params: Params) -> dict[str, Any]:
    """Add a version; five are kept at most, and none is deleted by itself."""
    policy = policy_of(context, params["PolicyArn"])
    text = check(params["PolicyDocument"], trust=False)
    if len(policy.versions) >= VERSIONS_KEPT:
        raise AwsError(
            "LimitExceeded",
            "A managed policy can have up to 5 versions. Before you create a new version, you must delete "
            "an existing "
            "version.",
            status=409,
        )
    version = f"v{policy.next_version}"
    policy.next_version += 1
    now = context.clock.now().replace(microsecond=0)
    policy.versions[version] = (text, now)
    if params.get("SetAsDefault"):
        policy.default_version, policy.updated = version, now
    return {"PolicyVersion": _describe_version(policy, version, document=False)}


@operation("iam", "GetPolicyVersion", honours=["PolicyArn", "VersionId"])
def get_policy_version(context: Context, params: Params) -> dict[str, Any]:
    """Return one version with its document."""
    policy = policy_of(context, params["PolicyArn"])
    return {
        "PolicyVersion": _describe_version(policy, _version_of(policy, params["VersionId"]), document=True)
    }


@operation("iam", "ListPolicyVersions", honours=["PolicyArn", *PAGING])
def list_policy_versions(context: Context, params: Params) -> dict[str, Any]:
    """List versions, the newest first."""
    policy = policy_of(context, params["PolicyArn"])
    newest_first = sorted(policy.versions, key=lambda version: -int(version[1:]))
    return page(
        [_describe_version(policy, version, document=False) for version in newest_first], params, "Versions"
    )


@operation("iam", "SetDefaultPolicyVersion", honours=["PolicyArn", "VersionId"])
def set_default_policy_version(context: Context, params: Params) -> dict[str, Any]:
    """Choose the version that counts."""
    policy = policy_of(context, params["PolicyArn"])
    policy.default_version = _version_of(policy, params["VersionId"])
    policy.updated = context.clock.now().replace(microsecond=0)
    return {}


@operation("iam", "DeletePolicyVersion", honours=["PolicyArn", "VersionId"])
def delete_policy_version(context: Context, params: Params) -> dict[str, Any]:
    """Delete a version that is not the default."""
    policy = policy_of(context, params["PolicyArn"])
    version = _version_of(policy, params["VersionId"])
    if version == policy.default_version:
        raise conflict("Cannot delete the default version of a policy.")
    del policy.versions[version]
    return {}
