"""What policies allow: for AssumeRole, SimulatePrincipalPolicy and the enforcement of every call.

Sources, all in the IAM User Guide: "Policy evaluation logic"; "IAM JSON policy elements: Condition operators"
(a negated operator holds for a missing key; ``ForAnyValue`` does not; an ARN is compared part by part);
"IAM policy elements: Variables and tags" (``${*}`` is an asterisk and no wildcard; a policy of the version
2008-10-17 has no variables); "AWS JSON policy elements: Principal" (an account as principal delegates to the
policies of its users and roles) and "NotPrincipal".
"""

from __future__ import annotations

import ipaddress
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.iam.common import PAGING, no_such, page, role_of, user_of
from vmsnix_ops.sandbox.iam.identities import managed_document
from vmsnix_ops.sandbox.iam.policies import listed, statements

from .. import credentials

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.iam.common import Role, User


ALLOWED, EXPLICIT_DENY, IMPLICIT_DENY = "allowed", "explicitDeny", "implicitDeny"
DELEGATED = "delegated"


@dataclass(frozen=True)
class Question:
    """What is asked of policies.

    Parameters
    ----------
    action
        Such as ``"s3:GetObject"``.
    resource
        ARN, or ``"*"``.
    context
        Condition keys in lower case, each with one or more values.
    """

    action: str
    resource: str = "*"
    context: Mapping[str, list[str]] = field(default_factory=dict)


def evaluate(documents: Iterable[str], question: Question) -> str:
    """Return ``allowed``, ``explicitDeny`` or ``implicitDeny`` for identity policies.

    Parameters
    ----------
    documents
        The JSON of all policies that apply.
    question
        What is asked.
    """
    decision = IMPLICIT_DENY
    for text in documents:
        document = json.loads(text)
        for statement in statements(document):
            if not _applies(statement, question, _variables(document)):
                continue
            if statement["Effect"] == "Deny":
                return EXPLICIT_DENY
            decision = ALLOWED
    return decision


def evaluate_resource_policy(text: str, principal: str, account: str, question: Question) -> str:
    """Return what a policy of a resource decides about a principal.

    Parameters
    ----------
    text
        JSON of the policy, whose statements name principals.
    principal
        ARN of the caller, or a service such as ``"vmie.amazonaws.com"``.
    account
        Account of the caller.
    question
        The action, the resource and the condition keys; ``aws:PrincipalArn`` names the role of a session.

    Returns
    -------
    str
        ``explicitDeny``, ``allowed``, ``delegated`` (allowed to the account of the caller as a whole: the
        caller's own policies must allow it too) or ``implicitDeny``.
    """
    document = json.loads(text)
    decision = IMPLICIT_DENY
    for statement in statements(document):
        named = _names(statement, principal, account, question)
        if not named or not _applies(statement, question, _variables(document)):
            continue
        if statement["Effect"] == "Deny":
            return EXPLICIT_DENY
        decision = named if decision != ALLOWED else decision
    return decision


def trusts(document: str, principal: str, account: str, question: Question) -> bool:
    """Return whether a trust policy lets a principal assume its role; the parameters are those above."""
    return evaluate_resource_policy(document, principal, account, question) in {ALLOWED, DELEGATED}


def _variables(document: dict[str, Any]) -> bool:
    return document.get("Version") == "2012-10-17"


def _names(statement: dict[str, Any], arn: str, account: str, question: Question) -> str:
    """Return how a statement names a principal: ``allowed``, ``delegated`` or not at all ("")."""
    if "NotPrincipal" in statement:
        # An account among them stands for its root user alone.
        return "" if _among(statement["NotPrincipal"], arn, account, question) == ALLOWED else ALLOWED
    return _among(statement.get("Principal"), arn, account, question)


def _among(principal: Any, arn: str, account: str, question: Question) -> str:
    if principal == "*":
        return ALLOWED
    if not isinstance(principal, dict):
        return ""
    named = [name for kind in ("AWS", "Service", "Federated") for name in listed(principal.get(kind))]
    role = re.sub(r"^(arn:[^:]+):sts:(.*):assumed-role/([^/]+)/.*$", r"\1:iam:\2:role/\3", arn)
    if {"*", arn, role, *question.context.get("aws:principalarn", ())} & set(named):
        return ALLOWED
    root = re.compile(rf"arn:aws[\w-]*:iam::{re.escape(account)}:root") if account else None
    whole = any(name == account or (root is not None and root.fullmatch(name)) for name in named if account)
    return DELEGATED if whole else ""


def _applies(statement: dict[str, Any], question: Question, variables: bool) -> bool:
    action = question.action.lower()
    if "Action" in statement:
        if not any(_like(pattern.lower(), action) for pattern in listed(statement["Action"])):
            return False
    elif any(_like(pattern.lower(), action) for pattern in listed(statement.get("NotAction"))):
        return False
    known = question.context if variables else None
    if "Resource" in statement:
        if not any(_like(pattern, question.resource, known) for pattern in listed(statement["Resource"])):
            return False
    elif "NotResource" in statement and any(
        _like(pattern, question.resource, known) for pattern in listed(statement["NotResource"])
    ):
        return False
    return _conditions_hold(statement.get("Condition", {}), question, known)


Known = Mapping[str, list[str]]
_TOKEN = re.compile(r"\$\{([^}]+)\}|([*?])")


def _like(pattern: str, text: str, known: Known | None = None) -> bool:
    """Match with ``*`` and ``?`` only; what stands for a variable is taken literally.

    `known` are the condition keys that variables stand for; None where there are no variables.
    """
    regular, end = "", 0
    for token in _TOKEN.finditer(pattern):
        regular += re.escape(pattern[end : token.start()])
        end = token.end()
        if token[2]:
            regular += ".*" if token[2] == "*" else "."
        else:
            regular += re.escape(token[0] if known is None else _value(token[1], known, token[0]))
    return re.fullmatch(regular + re.escape(pattern[end:]), text, re.DOTALL) is not None


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern with ``*`` and ``?`` matches the whole text."""
    return _like(pattern, text)


def _value(variable: str, known: Known, otherwise: str) -> str:
    """Return what a policy variable such as ``aws:username`` stands for."""
    if variable in {"*", "?", "$"}:
        return variable
    name, comma, default = variable.partition(",")
    found = known.get(name.strip().lower())
    if found:
        return found[0]
    return default.strip().strip("'") if comma else otherwise


def _filled(text: str, known: Known | None) -> str:
    """Return a text in which variables are replaced."""
    if known is None:
        return text
    return re.sub(r"\$\{([^}]+)\}", lambda match: _value(match[1], known, match[0]), text)


def _conditions_hold(conditions: dict[str, dict[str, Any]], question: Question, known: Known | None) -> bool:
    return all(
        _holds(name, question.context.get(key.lower()), [str(_plain(v)) for v in listed(wanted)], known)
        for name, keys in conditions.items()
        for key, wanted in keys.items()
    )


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _holds(written: str, actual: list[str] | None, wanted: list[str], known: Known | None) -> bool:
    quantifier, _, name = written.rpartition(":")
    if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    if name == "Null":
        return any((not actual) == (one.lower() == "true") for one in wanted)
    compare = COMPARISONS.get(NEGATED.get(name, name))
    if compare is None or quantifier not in {"", "ForAllValues", "ForAnyValue"}:
        raise ValueError(f"the sandbox does not know the condition operator {written}")
    if not actual:
        return if_exists or quantifier == "ForAllValues" or (name in NEGATED and quantifier != "ForAnyValue")
    matched = [any(compare(value, one, known) for one in wanted) for value in actual]
    if name in NEGATED:
        matched = [not one for one in matched]
        return any(matched) if quantifier == "ForAnyValue" else all(matched)
    return all(matched) if quantifier == "ForAllValues" else any(matched)


NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnLike",
    "ArnNotLike": "ArnLike",
    "NumericNotEquals": "NumericEquals",
    "DateNotEquals": "DateEquals",
    "NotIpAddress": "IpAddress",
}


def _time(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else datetime.fromisoformat(text).timestamp()


def _arn_like(actual: str, wanted: str, known: Known | None) -> bool:
    """Compare two ARNs part by part: a wildcard matches within its part, the last part has the rest."""
    if wanted == "*":
        return True
    parts, patterns = actual.split(":", 5), wanted.split(":", 5)
    return len(parts) == len(patterns) and all(
        _like(pattern, part, known) for pattern, part in zip(patterns, parts, strict=True)
    )


def _on_texts(compare: Callable[[str, str], bool]) -> Comparison:
    return lambda actual, wanted, known: compare(actual, _filled(wanted, known))


def _on_numbers(compare: Callable[[float, float], bool]) -> Comparison:
    def compared(actual: str, wanted: str, _known: Known | None) -> bool:
        try:
            return compare(float(actual), float(wanted))
        except ValueError:
            return False

    return compared


def _on_times(compare: Callable[[float, float], bool]) -> Comparison:
    return lambda actual, wanted, _known: compare(_time(actual), _time(wanted))


Comparison = Callable[[str, str, "Known | None"], bool]
COMPARISONS: dict[str, Comparison] = {
    "StringEquals": _on_texts(operator.eq),
    "StringEqualsIgnoreCase": _on_texts(lambda actual, wanted: actual.lower() == wanted.lower()),
    "StringLike": lambda actual, wanted, known: _like(wanted, actual, known),
    "ArnEquals": _arn_like,
    "ArnLike": _arn_like,
    "Bool": _on_texts(lambda actual, wanted: actual.lower() == wanted.lower()),
    "NumericEquals": _on_numbers(operator.eq),
    "NumericLessThan": _on_numbers(operator.lt),
    "NumericLessThanEquals": _on_numbers(operator.le),
    "NumericGreaterThan": _on_numbers(operator.gt),
    "NumericGreaterThanEquals": _on_numbers(operator.ge),
    "DateEquals": _on_times(operator.eq),
    "DateLessThan": _on_times(operator.lt),
    "DateLessThanEquals": _on_times(operator.le),
    "DateGreaterThan": _on_times(operator.gt),
    "DateGreaterThanEquals": _on_times(operator.ge),
    "IpAddress": _on_texts(
        lambda actual, wanted: ipaddress.ip_address(actual) in ipaddress.ip_network(wanted, strict=False)
    ),
}


# What would be allowed: SimulatePrincipalPolicy.
#
# Source: SimulatePrincipalPolicy in the IAM API Reference. Identity policies are evaluated; resource
# policies, permission boundaries of organizations and sessions are not.


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
