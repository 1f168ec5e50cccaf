"""Users, access keys, roles, and the policies attached to them or written into them.

Sources: CreateUser, GetUser, ListUsers, DeleteUser in the IAM API Reference.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.credentials import Credential, unique_id
from vmsnix_ops.sandbox.iam import policies
from vmsnix_ops.sandbox.iam.common import (
    PAGING,
    Role,
    User,
    check_name,
    check_path,
    conflict,
    exists_already,
    no_such,
    page,
    policy_of,
    read_tags,
    role_of,
    tag_list,
    user_of,
)

from .. import credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox.core import Context, Params


def _describe(user: User) -> dict[str, Any]:
    return {
        "Path": user.path,
        "UserName": user.name,
        "UserId": user.user_id,
        "Arn": user.arn,
        "CreateDate": user.created,
    }


@operation("iam", "CreateUser", honours=["Path", "UserName", "Tags"])
def create_user(context: Context, params: Params) -> dict[str, Any]:
    """Make a user, who has no keys and no rights yet."""
    name, path = params["UserName"], params.get("Path", "/")
    check_name(name, "userName", 64)
    check_path(path)
    users: dict[str, User] = context.table("users", region="")
    if name in users:
        raise exists_already(f"User with name {name} already exists.")
    arn = f"arn:{context.partition}:iam::{context.account}:user{path}{name}"
    now = context.clock.now().replace(microsecond=0)
    users[name] = User(
        name=name,
        arn=arn,
        user_id=unique_id("AIDA", arn, now.isoformat()),
        path=path,
        created=now,
        tags=read_tags(params.get("Tags")),
    )
    return {"User": _describe(users[name])}


@operation("iam", "GetUser", honours=["UserName"])
def get_user(context: Context, params: Params) -> dict[str, Any]:
    """Return a user; without a name, the one who asks."""
    name = params.get("UserName") or context.principal.rpartition("/")[2]
    user = user_of(context, name)
    return {"User": _describe(user) | ({"Tags": tag_list(user.tags)} if user.tags else {})}


@operation("iam", "ListUsers", honours=["PathPrefix", *PAGING])
def list_users(context: Context, params: Params) -> dict[str, Any]:
    """List users by name."""
    prefix = params.get("PathPrefix", "/")
    users = [
        user for _, user in sorted(context.table("users", region="").items()) if user.path.startswith(prefix)
    ]
    return page([_describe(user) for user in users], params, "Users")


@operation("iam", "DeleteUser", honours=["UserName"])
def delete_user(context: Context, params: Params) -> dict[str, Any]:
    """Delete a user who has no policies and no keys any more."""
    user = user_of(context, params["UserName"])
    if user.attached_policies:
        raise conflict("Cannot delete entity, must detach all policies first.")
    if user.inline_policies:
        raise conflict("Cannot delete entity, must delete policies first.")
    if user.keys:
        raise conflict("Cannot delete entity, must delete access keys first.")
    del context.table("users", region="")[user.name]
    return {}


# Access keys of users.
#
# Sources: CreateAccessKey, ListAccessKeys, UpdateAccessKey, DeleteAccessKey in the IAM API Reference.

KEYS_MOST = 2


def _user(context: Context, params: Params) -> User:
    return user_of(context, params.get("UserName") or context.principal.rpartition("/")[2])


def _key_of(user: User, access_key: str) -> str:
    if access_key not in user.keys:
        raise no_such(f"The Access Key with id {access_key} cannot be found.")
    return access_key


def _status(context: Context, access_key: str) -> str:
    return "Active" if credentials.table(context.tables)[access_key].active else "Inactive"


@operation("iam", "CreateAccessKey", honours=["UserName"])
def create_access_key(context: Context, params: Params) -> dict[str, Any]:
    """Make a key; its secret is shown this once."""
    user = _user(context, params)
    if len(user.keys) >= KEYS_MOST:
        raise AwsError("LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2", status=409)
    credential = Credential(
        access_key="AKIA" + secrets.token_hex(8).upper(),
        secret=secrets.token_urlsafe(30),
        account=context.account,
        principal=user.arn,
        user_id=user.user_id,
    )
    credentials.table(context.tables)[credential.access_key] = credential
    user.keys[credential.access_key] = context.clock.now().replace(microsecond=0)
    return {
        "AccessKey": {
            "UserName": user.name,
            "AccessKeyId": credential.access_key,
            "Status": "Active",
            "SecretAccessKey": credential.secret,
            "CreateDate": user.keys[credential.access_key],
        }
    }


@operation("iam", "ListAccessKeys", honours=["UserName", *PAGING])
def list_access_keys(context: Context, params: Params) -> dict[str, Any]:
    """List a user's keys without their secrets."""
    user = _user(context, params)
    shown = [
        {"UserName": user.name, "AccessKeyId": key, "Status": _status(context, key), "CreateDate": created}
        for key, created in user.keys.items()
    ]
    return page(shown, params, "AccessKeyMetadata")


@operation("iam", "UpdateAccessKey", honours=["UserName", "AccessKeyId", "Status"])
def update_access_key(context: Context, params: Params) -> dict[str, Any]:
    """Switch a key on or off."""
    key = _key_of(_user(context, params), params["AccessKeyId"])
    known = credentials.table(context.tables)
    known[key] = replace(known[key], active=params["Status"] == "Active")
    return {}


@operation("iam", "DeleteAccessKey", honours=["UserName", "AccessKeyId"])
def delete_access_key(context: Context, params: Params) -> dict[str, Any]:
    """Delete a key."""
    user = _user(context, params)
    key = _key_of(user, params["AccessKeyId"])
    del user.keys[key]
    del credentials.table(context.tables)[key]
    return {}


# Roles.
#
# Sources: CreateRole, GetRole, ListRoles, UpdateRole, UpdateAssumeRolePolicy, DeleteRole, TagRole, UntagRole,
# ListRoleTags in the IAM API Reference.


def describe(role: Role) -> dict[str, Any]:
    """Return a role as answers show it."""
    shown: dict[str, Any] = {
        "Path": role.path,
        "RoleName": role.name,
        "RoleId": role.role_id,
        "Arn": role.arn,
        "CreateDate": role.created,
        "AssumeRolePolicyDocument": policies.encoded(role.trust_policy),
        "MaxSessionDuration": role.max_session_seconds,
    }
    if role.description:
        shown["Description"] = role.description
    if role.boundary:
        shown["PermissionsBoundary"] = {
            "PermissionsBoundaryType": "PermissionsBoundaryPolicy",
            "PermissionsBoundaryArn": role.boundary,
        }
    return shown


@operation(
    "iam",
    "CreateRole",
    honours=["Path", "RoleName", "AssumeRolePolicyDocument", "Description", "MaxSessionDuration", "Tags"],
)
def create_role(context: Context, params: Params) -> dict[str, Any]:
    """Make a role."""
    name, path = params["RoleName"], params.get("Path", "/")
    check_name(name, "roleName", 64)
    check_path(path)
    trust = policies.check(params["AssumeRolePolicyDocument"], trust=True)
    roles: dict[str, Role] = context.table("roles", region="")
    if name in roles:
        raise exists_already(f"Role with name {name} already exists.")
    arn = f"arn:{context.partition}:iam::{context.account}:role{path}{name}"
    created = context.clock.now().replace(microsecond=0)
    role = Role(
        name=name,
        arn=arn,
        role_id=unique_id("AROA", arn, created.isoformat()),
        path=path,
        created=created,
        trust_policy=trust,
        description=params.get("Description", ""),
        max_session_seconds=_session_seconds(params),
        tags=read_tags(params.get("Tags")),
    )
    roles[name] = role
    return {"Role": describe(role) | ({"Tags": tag_list(role.tags)} if role.tags else {})}


def _session_seconds(params: Params) -> int:
    seconds = int(params.get("MaxSessionDuration", 3600))
    if not 3600 <= seconds <= 43200:
        bound = "greater than or equal to 3600" if seconds < 3600 else "less than or equal to 43200"
        raise AwsError(
            "ValidationError",
            f"1 validation error detected: Value '{seconds}' at 'maxSessionDuration' failed to satisfy "
            "constraint: "
            f"Member must have value {bound}",
        )
    return seconds


@operation("iam", "GetRole", honours=["RoleName"])
def get_role(context: Context, params: Params) -> dict[str, Any]:
    """Return one role with its tags."""
    role = role_of(context, params["RoleName"])
    return {"Role": describe(role) | {"Tags": tag_list(role.tags), "RoleLastUsed": {}}}


@operation("iam", "ListRoles", honours=["PathPrefix", *PAGING])
def list_roles(context: Context, params: Params) -> dict[str, Any]:
    """List roles by name, without their tags."""
    prefix = params.get("PathPrefix", "/")
    roles = [
        role for _, role in sorted(context.table("roles", region="").items()) if role.path.startswith(prefix)
    ]
    return page([describe(role) for role in roles], params, "Roles")


@operation("iam", "UpdateRole", honours=["RoleName", "Description", "MaxSessionDuration"])
def update_role(context: Context, params: Params) -> dict[str, Any]:
    """Change description and longest session."""
    role = role_of(context, params["RoleName"])
    if "MaxSessionDuration" in params:
        role.max_session_seconds = _session_seconds(params)
    if "Description" in params:
        role.description = params["Description"]
    return {}


@operation("iam", "UpdateAssumeRolePolicy", honours=["RoleName", "PolicyDocument"])
def update_assume_role_policy(context: Context, params: Params) -> dict[str, Any]:
    """Replace the trust policy."""
    role = role_of(context, params["RoleName"])
    role.trust_policy = policies.check(params["PolicyDocument"], trust=True)
    return {}


@operation("iam", "DeleteRole", honours=["RoleName"])
def delete_role(context: Context, params: Params) -> dict[str, Any]:
    """Delete a role that has no policies any more."""
    role = role_of(context, params["RoleName"])
    if role.attached_policies:
        raise conflict("Cannot delete entity, must detach all policies first.")
    if role.inline_policies:
        raise conflict("Cannot delete entity, must delete policies first.")
    del context.table("roles", region="")[role.name]
    return {}


@operation("iam", "TagRole", honours=["RoleName", "Tags"])
def tag_role(context: Context, params: Params) -> dict[str, Any]:
    """Add or replace tags."""
    role = role_of(context, params["RoleName"])
    role.tags |= read_tags(params["Tags"])
    return {}


@operation("iam", "UntagRole", honours=["RoleName", "TagKeys"])
def untag_role(context: Context, params: Params) -> dict[str, Any]:
    """Remove tags; keys that are not there do not matter."""
    role = role_of(context, params["RoleName"])
    for key in params["TagKeys"]:
        role.tags.pop(key, None)
    return {}


@operation("iam", "ListRoleTags", honours=["RoleName", *PAGING])
def list_role_tags(context: Context, params: Params) -> dict[str, Any]:
    """List the tags of a role."""
    return page(tag_list(role_of(context, params["RoleName"]).tags), params, "Tags")


# Managed policies attached to roles and users.
#
# AWS's own policies can be attached by their ARN; what the best known of them allow is in `AWS_MANAGED`.
# Sources: AttachRolePolicy, DetachRolePolicy, ListAttachedRolePolicies and the same for users in the IAM API
# Reference; the AWS Managed Policy Reference.

# Actions that AWS's own policies allow on all resources.
AWS_MANAGED = {
    "AdministratorAccess": ["*"],
    "AmazonEC2FullAccess": ["ec2:*", "elasticloadbalancing:*", "cloudwatch:*", "autoscaling:*"],
    "AmazonEC2ReadOnlyAccess": ["ec2:Describe*", "ec2:GetSecurityGroupsForVpc"],
    "AmazonS3FullAccess": ["s3:*", "s3-object-lambda:*"],
    "AmazonS3ReadOnlyAccess": ["s3:Get*", "s3:List*", "s3:Describe*"],
    "AmazonSSMReadOnlyAccess": ["ssm:Describe*", "ssm:Get*", "ssm:List*"],
}


def managed_document(context: Context, arn: str) -> str:
    """Return the JSON of a managed policy, the account's own or AWS's.

    Raises
    ------
    AwsError
        ``NoSuchEntity``.
    """
    prefix = f"arn:{context.partition}:iam::aws:policy/"
    if not arn.startswith(prefix):
        return policy_of(context, arn).document
    actions = AWS_MANAGED.get(arn.removeprefix(prefix))
    if actions is None:
        raise no_such(f"Policy {arn} does not exist or is not attachable.")
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _register_attachments(kind: str, member: str, find: Callable[[Context, str], Role | User]) -> None:
    """Register the three operations of one kind of owner."""

    def attach(context: Context, params: Params) -> dict[str, Any]:
        owner, arn = find(context, params[member]), params["PolicyArn"]
        managed_document(context, arn)
        if arn not in owner.attached_policies:
            owner.attached_policies.append(arn)
        return {}

    def detach(context: Context, params: Params) -> dict[str, Any]:
        owner, arn = find(context, params[member]), params["PolicyArn"]
        if arn not in owner.attached_policies:
            raise no_such(f"Policy {arn} was not found.")
        owner.attached_policies.remove(arn)
        return {}

    def list_all(context: Context, params: Params) -> dict[str, Any]:
        attached = find(context, params[member]).attached_policies
        shown = [{"PolicyName": arn.rpartition("/")[2], "PolicyArn": arn} for arn in attached]
        return page(shown, params, "AttachedPolicies")

    operation("iam", f"Attach{kind}Policy", honours=[member, "PolicyArn"])(attach)
    operation("iam", f"Detach{kind}Policy", honours=[member, "PolicyArn"])(detach)
    operation("iam", f"ListAttached{kind}Policies", honours=[member, *PAGING])(list_all)


_register_attachments("Role", "RoleName", role_of)
_register_attachments("User", "UserName", user_of)


# Policies inside a role or a user.
#
# Sources: PutRolePolicy, GetRolePolicy, ListRolePolicies, DeleteRolePolicy and the same for users in the IAM
# API Reference.


def _register_inline(kind: str, member: str, find: Callable[[Context, str], Role | User]) -> None:
    """Register the four operations of one kind of owner.

    Parameters
    ----------
    kind
        ``"Role"`` or ``"User"``.
    member
        The parameter that names the owner.
    find
        Returns the owner by name.
    """

    def put(context: Context, params: Params) -> dict[str, Any]:
        check_name(params["PolicyName"], "policyName", 128)
        owner = find(context, params[member])
        owner.inline_policies[params["PolicyName"]] = policies.check(params["PolicyDocument"], trust=False)
        return {}

    def get(context: Context, params: Params) -> dict[str, Any]:
        owner, name = find(context, params[member]), params["PolicyName"]
        if name not in owner.inline_policies:
            raise _missing(name)
        text = policies.encoded(owner.inline_policies[name])
        return {member: owner.name, "PolicyName": name, "PolicyDocument": text}

    def list_all(context: Context, params: Params) -> dict[str, Any]:
        return page(sorted(find(context, params[member]).inline_policies), params, "PolicyNames")

    def delete(context: Context, params: Params) -> dict[str, Any]:
        owner, name = find(context, params[member]), params["PolicyName"]
        if name not in owner.inline_policies:
            raise _missing(name)
        del owner.inline_policies[name]
        return {}

    def _missing(name: str) -> Exception:
        return no_such(f"The {kind.lower()} policy with name {name} cannot be found.")

    operation("iam", f"Put{kind}Policy", honours=[member, "PolicyName", "PolicyDocument"])(put)
    operation("iam", f"Get{kind}Policy", honours=[member, "PolicyName"])(get)
    operation("iam", f"List{kind}Policies", honours=[member, *PAGING])(list_all)
    operation("iam", f"Delete{kind}Policy", honours=[member, "PolicyName"])(delete)


_register_inline("Role", "RoleName", role_of)
_register_inline("User", "UserName", user_of)
