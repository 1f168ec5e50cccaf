"""The check of the caller's rights: every action of a publish, asked of IAM's simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws.checks import Check
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.iam.simulation import lacking
from vmsnix_ops.aws.preflight.role import unknown_principal
from vmsnix_ops.aws.session import Client, code_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.aws.identity import Identity


@needs("iam:SimulatePrincipalPolicy")
def rights(
    iam: Client, who: Identity, place: policies.Place, *, name: str, actions: Iterable[str], printed: str
) -> Check:
    """Check whether the caller may do all of this.

    Parameters
    ----------
    iam
        Client.
    who
        The caller.
    place
        With account, bucket and one region.
    name
        Of the check.
    actions
        Keys of `vmsnix_ops.aws.iam.permissions.PERMISSIONS`.
    printed
        The command that prints the policy with these permissions.
    """
    if who.is_root:
        return Check(name, "pass", "the root user may do everything")
    lacks: dict[str, None] = {}
    try:
        for statement in policies.statements(actions, place):
            # iam:PassRole and iam:SimulatePrincipalPolicy have checks of their own.
            asked = [
                action for action in statement["Action"] if not action.startswith(("iam:Pass", "iam:Sim"))
            ]
            if statement["Effect"] == "Allow" and asked:
                resources = [_one(arn) for arn in statement["Resource"]]
                keys = {"aws:RequestedRegion": place.regions[0], **_keys(statement.get("Condition", {}))}
                lacks |= dict.fromkeys(lacking(iam, who.policy_source, asked, resources, keys))
    except errors.AwsError as error:
        if code_of(error) != "NoSuchEntity":
            raise
        return unknown_principal(name, who)
    if lacks:
        raise errors.VmsnixError(
            f"The caller lacks {', '.join(sorted(lacks))}.",
            why=f"The policies of {who.policy_source} do not allow it here.",
            cure=f"Attach the policy that {printed} prints.",
        )
    return Check(name, "pass", f"{who.policy_source.rpartition('/')[2]} may do all of it")


def _keys(condition: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return condition keys of a call that this condition allows."""
    found = {key: "x" for key, absent in condition.get("Null", {}).items() if absent == "false"}
    for operator, keys in condition.items():
        if operator == "Null" or "Not" in operator:
            continue
        for key, values in keys.items():
            value = values if isinstance(values, str) else values[0]
            found[key] = value.replace("?*", "0" * 64).replace("*", "0")
    return found


def _one(arn: str) -> str:
    """Return one resource that an ARN with a wildcard at its end stands for."""
    return f"{arn[:-1]}0123456789abcdef0" if len(arn) > 1 and arn.endswith("*") else arn
