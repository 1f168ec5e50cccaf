"""The check of the caller's rights: every action of a publish, asked of IAM's simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import policies
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.checks import Check
from vmsnix_ops.aws.permissions import PERMISSIONS, Target, needs
from vmsnix_ops.aws.preflight_role import unknown_principal
from vmsnix_ops.aws.session import Client, code_of
from vmsnix_ops.aws.simulation import lacking

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.aws.identity import Identity


@needs("iam:SimulatePrincipalPolicy")
def rights(iam: Client, who: Identity, place: policies.Place, *, name: str, actions: Iterable[str]) -> Check:
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
        What is asked.
    """
    if who.is_root:
        return Check(name, "pass", "the root user may do everything")
    by_target: dict[Target, list[str]] = {}
    for action in actions:
        if action not in ("iam:PassRole", "iam:SimulatePrincipalPolicy"):  # looked at on their own
            by_target.setdefault(PERMISSIONS[action].target, []).append(action)
    keys = {"aws:RequestedRegion": place.regions[0], f"aws:ResourceTag/{tagging.DIGEST}": "0" * 64}
    lacks: list[str] = []
    try:
        for target, group in by_target.items():
            exact = [_one(arn) for arn in policies.resources(target, place)]
            lacks += lacking(iam, who.policy_source, group, exact, keys)
    except errors.AwsError as error:
        if code_of(error) != "NoSuchEntity":
            raise
        return unknown_principal(name, who)
    if lacks:
        raise errors.VmsnixError(
            f"The caller lacks {', '.join(sorted(lacks))}.",
            why=f"The policies of {who.policy_source} do not allow it here.",
            cure="Attach the policy that vmsnix iam-policy publisher prints.",
        )
    return Check(name, "pass", f"{who.policy_source.rpartition('/')[2]} may do all of it")


def _one(arn: str) -> str:
    """Return one resource that an ARN with a wildcard at its end stands for."""
    return f"{arn[:-1]}0123456789abcdef0" if len(arn) > 1 and arn.endswith("*") else arn
