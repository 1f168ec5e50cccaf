"""Policies inside a role or a user.

Sources: PutRolePolicy, GetRolePolicy, ListRolePolicies, DeleteRolePolicy and the same for users in the IAM
API Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import operation
from . import documents
from .common import PAGING, check_name, no_such, page, role_of, user_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core import Context, Params
    from .state import Role, User


def _register(kind: str, member: str, find: Callable[[Context, str], Role | User]) -> None:
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
        owner.inline_policies[params["PolicyName"]] = documents.check(params["PolicyDocument"], trust=False)
        return {}

    def get(context: Context, params: Params) -> dict[str, Any]:
        owner, name = find(context, params[member]), params["PolicyName"]
        if name not in owner.inline_policies:
            raise _missing(name)
        text = documents.shown(owner.inline_policies[name])
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


_register("Role", "RoleName", role_of)
_register("User", "UserName", user_of)
