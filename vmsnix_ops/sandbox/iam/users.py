"""Users.

Sources: CreateUser, GetUser, ListUsers, DeleteUser in the IAM API Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import operation
from ..credentials import unique_id
from .common import (
    PAGING,
    check_name,
    check_path,
    conflict,
    exists_already,
    page,
    read_tags,
    tag_list,
    user_of,
)
from .state import User

if TYPE_CHECKING:
    from ..core import Context, Params


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
