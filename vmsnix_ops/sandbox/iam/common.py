"""The tables of IAM, and what several of its operations share.

Roles, users and policies are global: ``context.table("roles", region="")`` by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


@dataclass(slots=True)
class Role:
    """A role; in table ``roles`` by name."""

    name: str
    arn: str
    role_id: str
    path: str
    created: datetime
    trust_policy: str  # JSON as it was given
    description: str = ""
    max_session_seconds: int = 3600
    tags: dict[str, str] = field(default_factory=dict)
    inline_policies: dict[str, str] = field(default_factory=dict)  # JSON by name
    attached_policies: list[str] = field(default_factory=list)  # ARNs
    boundary: str | None = None  # ARN of the permissions boundary


@dataclass(slots=True)
class User:
    """A user; in table ``users`` by name. Its keys are in `credentials`."""

    name: str
    arn: str
    user_id: str
    path: str
    created: datetime
    tags: dict[str, str] = field(default_factory=dict)
    inline_policies: dict[str, str] = field(default_factory=dict)
    attached_policies: list[str] = field(default_factory=list)
    keys: dict[str, datetime] = field(default_factory=dict)  # when each access key was made


@dataclass(slots=True)
class Policy:
    """A managed policy of the account; in table ``policies`` by ARN."""

    name: str
    arn: str
    policy_id: str
    path: str
    created: datetime
    updated: datetime
    description: str
    versions: dict[str, tuple[str, datetime]]  # JSON and time by version id, such as "v1"
    default_version: str = "v1"
    next_version: int = 2
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def document(self) -> str:
        """The JSON of the default version."""
        return self.versions[self.default_version][0]


# What several IAM operations share: finding things, paging, tags, names.
#
# Source: "Common Errors" and the operations' pages in the IAM API Reference; "IAM identifiers" in the IAM
# User Guide.

PAGE = 100
NAME = re.compile(r"[\w+=,.@-]+")
PATH = re.compile(r"(\u002F)|(\u002F[\u0021-\u007E]+\u002F)")
PAGING = ("Marker", "MaxItems")


def no_such(what: str) -> AwsError:
    """Return the 404 of IAM."""
    return AwsError("NoSuchEntity", what, status=404)


def exists_already(what: str) -> AwsError:
    """Return the 409 of IAM."""
    return AwsError("EntityAlreadyExists", what, status=409)


def conflict(what: str) -> AwsError:
    """Return the refusal to delete what others still hang on."""
    return AwsError("DeleteConflict", what, status=409)


def role_of(context: Context, name: str) -> Role:
    """Return a role by name, or raise ``NoSuchEntity``."""
    roles: dict[str, Role] = context.table("roles", region="")
    if name not in roles:
        raise no_such(f"The role with name {name} cannot be found.")
    return roles[name]


def user_of(context: Context, name: str) -> User:
    """Return a user by name, or raise ``NoSuchEntity``."""
    users: dict[str, User] = context.table("users", region="")
    if name not in users:
        raise no_such(f"The user with name {name} cannot be found.")
    return users[name]


def policy_of(context: Context, arn: str) -> Policy:
    """Return a managed policy of the account by ARN, or raise ``NoSuchEntity``."""
    policies: dict[str, Policy] = context.table("policies", region="")
    if arn not in policies:
        raise no_such(f"Policy {arn} was not found.")
    return policies[arn]


def check_name(name: str, member: str, longest: int) -> None:
    r"""Refuse names that IAM refuses: other characters than ``\w+=,.@-``, or too long."""
    if not NAME.fullmatch(name):
        raise _invalid(name, member, "Member must satisfy regular expression pattern: [\\w+=,.@-]+")
    if len(name) > longest:
        raise _invalid(name, member, f"Member must have length less than or equal to {longest}")


def check_path(path: str) -> None:
    """Refuse a path that does not begin and end with a slash."""
    if not PATH.fullmatch(path):
        raise AwsError(
            "ValidationError", "The specified value for path is invalid. It must begin and end with /"
        )


def _invalid(value: str, member: str, constraint: str) -> AwsError:
    where = f"Value '{value}' at '{member}'"
    text = f"1 validation error detected: {where} failed to satisfy constraint: {constraint}"
    return AwsError("ValidationError", text)


def page(items: list[Any], params: Params, member: str) -> dict[str, Any]:
    """Return one page of a list, with ``IsTruncated`` and ``Marker``."""
    try:
        start = int(params.get("Marker", "0"))
    except ValueError:
        raise AwsError("ValidationError", "Invalid Marker.") from None
    limit = params.get("MaxItems", PAGE)
    answer: dict[str, Any] = {member: items[start : start + limit], "IsTruncated": start + limit < len(items)}
    if answer["IsTruncated"]:
        answer["Marker"] = str(start + limit)
    return answer


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return tags as AWS lists them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def read_tags(tags: list[dict[str, str]] | None) -> dict[str, str]:
    """Return a list of tags as a dictionary; at most 50, no key twice."""
    found = {tag["Key"]: tag["Value"] for tag in tags or []}
    if len(found) != len(tags or []):
        raise AwsError(
            "InvalidInput", "Duplicate tag keys found. Please note that Tag keys are case insensitive."
        )
    if len(found) > 50:
        raise AwsError("LimitExceeded", "The number of tags has reached the maximum limit.", status=409)
    return found
