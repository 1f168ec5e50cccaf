"""Roles.

Sources: CreateRole, GetRole, ListRoles, UpdateRole, UpdateAssumeRolePolicy, DeleteRole, TagRole, UntagRole,
ListRoleTags in the IAM API Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from ..credentials import unique_id
from . import documents
from .common import (
    PAGING,
    check_name,
    check_path,
    conflict,
    exists_already,
    page,
    read_tags,
    role_of,
    tag_list,
)
from .state import Role

if TYPE_CHECKING:
    from ..core import Context, Params


def describe(role: Role) -> dict[str, Any]:
    """Return a role as answers show it."""
    shown: dict[str, Any] = {
        "Path": role.path,
        "RoleName": role.name,
        "RoleId": role.role_id,
        "Arn": role.arn,
        "CreateDate": role.created,
        "AssumeRolePolicyDocument": documents.shown(role.trust_policy),
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
    trust = documents.check(params["AssumeRolePolicyDocument"], trust=True)
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
    role.trust_policy = documents.check(params["PolicyDocument"], trust=True)
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
