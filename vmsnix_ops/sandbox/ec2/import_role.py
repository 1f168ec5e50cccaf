"""The service role of VM Import: may VM Import assume it, and what may it read.

Source: "Required permissions for VM Import/Export": the trust policy names ``vmie.amazonaws.com`` with the
external id ``vmimport``, the role's policy allows to read the bucket. Conditions of the role's own policies
are not evaluated: an allowing statement counts as if its condition held, a denying one as if it did not.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.iam.state import Role

SERVICE, EXTERNAL_ID = "vmie.amazonaws.com", "vmimport"

MANAGED = {
    "AdministratorAccess": ["*"],
    "AmazonS3FullAccess": ["s3:*"],
    "AmazonS3ReadOnlyAccess": ["s3:Get*", "s3:List*", "s3:Describe*"],
}
"""What AWS's own policies allow on every resource, as far as S3 is concerned."""


def check(context: Context, role_name: str, bucket: str) -> None:
    """Refuse a role that VM Import cannot use for a bucket.

    Raises
    ------
    AwsError
        AWS has one text for all of it: no such role, not to be assumed by VM Import, no right to read from
        the bucket.
    """
    role = context.table("roles", region="").get(role_name)
    if role is None or not trusts_vm_import(role) or not _reads_from(context, role, bucket):
        raise AwsError(
            "InvalidParameter",
            f"The service role {role_name} provided does not exist or does not have sufficient permissions",
        )


def may(context: Context, role_name: str, action: str, resource: str) -> bool:
    """Tell whether a role allows an action on an S3 resource, such as ``bucket/key``."""
    role = context.table("roles", region="").get(role_name)
    if role is None or not trusts_vm_import(role):
        return False
    arn = f"arn:{context.partition}:s3:::{resource}"
    return _decide(context, role, action, arn, prefix=False)


def _reads_from(context: Context, role: Role, bucket: str) -> bool:
    """Tell whether a role may read any object at all of a bucket."""
    return _decide(context, role, "s3:GetObject", f"arn:{context.partition}:s3:::{bucket}/", prefix=True)


def trusts_vm_import(role: Role) -> bool:
    """Tell whether the trust policy lets VM Import assume the role."""
    for statement in _statements(role.trust_policy):
        principal = statement.get("Principal", {})
        services = ["*"] if principal == "*" else _list(principal.get("Service"))
        if statement.get("Effect") != "Allow" or not {SERVICE, "*"} & set(services):
            continue
        if not any(_matches(pattern, "sts:AssumeRole") for pattern in _list(statement.get("Action"))):
            continue
        if _external_id_fits(statement.get("Condition", {})):
            return True
    return False


def _external_id_fits(condition: dict[str, dict[str, Any]]) -> bool:
    """Tell whether VM Import's external id meets the conditions; those on other keys count as met."""
    for operator, terms in condition.items():
        for key, wanted in terms.items():
            if key.lower() != "sts:externalid":
                continue
            if operator == "StringEquals" and EXTERNAL_ID not in _list(wanted):
                return False
            if operator == "StringLike" and not any(_glob(w).fullmatch(EXTERNAL_ID) for w in _list(wanted)):
                return False
    return True


def _decide(context: Context, role: Role, action: str, arn: str, *, prefix: bool) -> bool:
    allowed = False
    for statement in _policies(context, role):
        if not _speaks_of(statement, action, arn, prefix=prefix):
            continue
        if statement.get("Effect") == "Deny" and not prefix and "Condition" not in statement:
            return False
        allowed = allowed or statement.get("Effect") == "Allow"
    return allowed


def _policies(context: Context, role: Role) -> Iterator[dict[str, Any]]:
    for document in role.inline_policies.values():
        yield from _statements(document)
    customer = context.table("policies", region="")
    for arn in role.attached_policies:
        if arn in customer:
            yield from _statements(customer[arn].document)
        else:
            actions = MANAGED.get(arn.rsplit("/", 1)[-1], [])
            yield {"Effect": "Allow", "Action": actions, "Resource": "*"}


def _speaks_of(statement: dict[str, Any], action: str, arn: str, *, prefix: bool) -> bool:
    if "NotAction" in statement:
        of_action = not any(_matches(pattern, action) for pattern in _list(statement["NotAction"]))
    else:
        of_action = any(_matches(pattern, action) for pattern in _list(statement.get("Action")))
    if not of_action:
        return False
    if "NotResource" in statement:
        return not any(_glob(pattern).fullmatch(arn) for pattern in _list(statement["NotResource"]))
    resources = _list(statement.get("Resource"))
    if prefix:
        # Any object below will do: the pattern's beginning up to its first wildcard is compared.
        return any(_glob(p).fullmatch(arn) or _meets(re.split(r"[*?]", p)[0], arn) for p in resources)
    return any(_glob(pattern).fullmatch(arn) for pattern in resources)


def _meets(literal: str, arn: str) -> bool:
    return literal.startswith(arn) or arn.startswith(literal)


def _matches(pattern: str, action: str) -> bool:
    return _glob(pattern.lower()).fullmatch(action.lower()) is not None


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def _statements(document: str) -> list[dict[str, Any]]:
    found = json.loads(document).get("Statement", [])
    return found if isinstance(found, list) else [found]


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
