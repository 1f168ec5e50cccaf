"""Find permissions that a user or role lacks, with IAM's policy simulator.

Source: SimulatePrincipalPolicy in the IAM API Reference. The simulator evaluates identity policies and
permission boundaries, but not bucket policies or policies of the organization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from types_boto3_iam.client import IAMClient
    from types_boto3_iam.type_defs import ContextEntryTypeDef, EvaluationResultTypeDef


@needs("iam:SimulatePrincipalPolicy")
def missing_actions(
    iam: IAMClient,
    principal: str,
    actions: Iterable[str],
    resources: Iterable[str],
    keys: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the actions that are not allowed on all of the resources.

    `principal` is the ARN of a user or role (``NoSuchEntity`` if it does not exist); `keys` are condition
    keys of the calls, such as ``aws:RequestedRegion``.
    """
    results = _simulated(iam, principal, actions, resources, keys)
    denied = {result["EvalActionName"]: None for result in results if result["EvalDecision"] != "allowed"}
    return list(denied)


@needs("iam:SimulatePrincipalPolicy")
def allowed_resources(iam: IAMClient, principal: str, action: str, resources: Iterable[str]) -> list[str]:
    """Return the resources on which an action is allowed; parameters as for `missing_actions`."""
    results = _simulated(iam, principal, [action], resources, None)
    return [result["EvalResourceName"] for result in results if result["EvalDecision"] == "allowed"]


def _simulated(
    iam: IAMClient,
    principal: str,
    actions: Iterable[str],
    resources: Iterable[str],
    keys: Mapping[str, str] | None,
) -> list[EvaluationResultTypeDef]:
    entries: list[ContextEntryTypeDef] = [
        {"ContextKeyName": name, "ContextKeyValues": [value], "ContextKeyType": "string"}
        for name, value in (keys or {}).items()
    ]
    with calling(f"read the permissions of {principal.rpartition('/')[2]}"):
        pages = iam.get_paginator("simulate_principal_policy").paginate(
            PolicySourceArn=principal,
            ActionNames=list(actions),
            ResourceArns=list(resources),
            ContextEntries=entries,
        )
        return [result for page in pages for result in page["EvaluationResults"]]
