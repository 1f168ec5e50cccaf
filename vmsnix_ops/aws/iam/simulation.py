"""What somebody's policies lack, asked of IAM's own simulator.

Source: SimulatePrincipalPolicy in the IAM API Reference. It knows identity policies and permission
boundaries; policies of buckets and of the organization are not part of its answer.
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
    """Return those of the actions that are not allowed on every one of the resources.

    Parameters
    ----------
    iam
        Client.
    principal
        ARN of a user or role.
    actions, resources
        What is asked.
    keys
        Condition keys of the calls, such as ``aws:RequestedRegion``.

    Raises
    ------
    vmsnix_ops.errors.AccessDeniedError
        Simulating is not allowed.
    vmsnix_ops.errors.AwsError
        ``NoSuchEntity``: there is no such user or role.
    """
    results = _simulated(iam, principal, actions, resources, keys)
    refused = {result["EvalActionName"]: None for result in results if result["EvalDecision"] != "allowed"}
    return list(refused)


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
