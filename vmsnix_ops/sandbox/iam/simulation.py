"""What would be allowed: SimulatePrincipalPolicy.

Source: SimulatePrincipalPolicy in the IAM API Reference. Identity policies are evaluated; resource policies,
permission boundaries of organizations and sessions are not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .. import credentials
from ..core import AwsError, operation
from .attachments import managed_document
from .common import PAGING, no_such, page, role_of, user_of
from .evaluation import Question, evaluate

if TYPE_CHECKING:
    from ..core import Context, Params
    from .state import Role, User


def owner_of(context: Context, arn: str) -> Role | User:
    """Return the role or user of an ARN; sessions stand for their roles.

    Raises
    ------
    AwsError
        ``NoSuchEntity``.
    """
    kind, _, name = arn.rpartition(":")[2].partition("/")
    if kind == "user":
        return user_of(context, name.rpartition("/")[2])
    if kind == "role":
        return role_of(context, name.rpartition("/")[2])
    if kind == "assumed-role":
        return role_of(context, name.partition("/")[0])
    raise no_such(f"No entity found for {arn}")


def documents_of(context: Context, owner: Role | User) -> list[str]:
    """Return the JSON of all policies of a role or user."""
    attached = [managed_document(context, arn) for arn in owner.attached_policies]
    return [*owner.inline_policies.values(), *attached]


def is_operator(context: Context, principal: str) -> bool:
    """Return whether this is an administrator whom nobody had to make: the sandbox's own, or a root user."""
    if principal.endswith(":root"):
        return True
    first = credentials.table(context.tables).get(credentials.DEFAULT_ACCESS_KEY)
    made = principal.rpartition("/")[2] in context.table("users", region="")
    # The same principal in every partition.
    return first is not None and first.principal.split(":", 2)[2:] == principal.split(":", 2)[2:] and not made


def policies_of(context: Context, arn: str) -> list[str]:
    """Return the JSON of all policies of a role, a user or the operator, by ARN."""
    if is_operator(context, arn):
        return [json.dumps({"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})]
    return documents_of(context, owner_of(context, arn))


@operation(
    "iam",
    "SimulatePrincipalPolicy",
    honours=["PolicySourceArn", "ActionNames", "ResourceArns", "ContextEntries", *PAGING],
)
def simulate_principal_policy(context: Context, params: Params) -> dict[str, Any]:
    """Say for each action and resource what the policies of a role or user decide."""
    documents = policies_of(context, params["PolicySourceArn"])
    keys = {
        entry["ContextKeyName"].lower(): entry["ContextKeyValues"]
        for entry in params.get("ContextEntries", [])
    }
    for action in params["ActionNames"]:
        if ":" not in action:
            raise AwsError("InvalidInput", f"Invalid Entity Arn: {action} is no action.")
    results = [
        {
            "EvalActionName": action,
            "EvalResourceName": resource,
            "EvalDecision": evaluate(documents, Question(action, resource, keys)),
            "MatchedStatements": [],
            "MissingContextValues": [],
        }
        for action in params["ActionNames"]
        for resource in params.get("ResourceArns") or ["*"]
    ]
    return page(results, params, "EvaluationResults")
