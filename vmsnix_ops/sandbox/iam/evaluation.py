"""What policies allow: for AssumeRole, SimulatePrincipalPolicy and the enforcement of every call.

Sources: "Policy evaluation logic", "IAM JSON policy elements: Condition operators" in the IAM User Guide.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .documents import listed, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ALLOWED, EXPLICIT_DENY, IMPLICIT_DENY = "allowed", "explicitDeny", "implicitDeny"


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
        for statement in statements(json.loads(text)):
            if not _applies(statement, question):
                continue
            if statement["Effect"] == "Deny":
                return EXPLICIT_DENY
            decision = ALLOWED
    return decision


def trusts(document: str, principal: str, account: str, question: Question) -> bool:
    """Return whether a trust policy lets a principal in.

    Parameters
    ----------
    document
        JSON of the trust policy.
    principal
        ARN of the caller, or a service such as ``"vmie.amazonaws.com"``.
    account
        Account of the caller.
    question
        The action, such as ``sts:AssumeRole``, and its condition keys.
    """
    allowed = False
    for statement in statements(json.loads(document)):
        if not _names(statement.get("Principal"), principal, account) or not _applies(statement, question):
            continue
        if statement["Effect"] == "Deny":
            return False
        allowed = True
    return allowed


def _names(principal: Any, arn: str, account: str) -> bool:
    if principal == "*":
        return True
    if not isinstance(principal, dict):
        return False
    named = [name for kind in ("AWS", "Service", "Federated") for name in listed(principal.get(kind))]
    role = re.sub(r"^(arn:[^:]+):sts:(.*):assumed-role/([^/]+)/.*$", r"\1:iam:\2:role/\3", arn)
    root = re.compile(rf"arn:aws[\w-]*:iam::{re.escape(account)}:root") if account else None
    return any(
        name in {"*", arn, role, account} or (root is not None and root.fullmatch(name)) for name in named
    )


def _applies(statement: dict[str, Any], question: Question) -> bool:
    action = question.action.lower()
    if "Action" in statement:
        if not any(_like(pattern.lower(), action) for pattern in listed(statement["Action"])):
            return False
    elif any(_like(pattern.lower(), action) for pattern in listed(statement.get("NotAction"))):
        return False
    if "Resource" in statement:
        if not any(_like(_fill(p, question), question.resource) for p in listed(statement["Resource"])):
            return False
    elif "NotResource" in statement and any(
        _like(_fill(p, question), question.resource) for p in listed(statement["NotResource"])
    ):
        return False
    return _conditions_hold(statement.get("Condition", {}), question)


def _like(pattern: str, text: str) -> bool:
    """Match with ``*`` and ``?`` only; square brackets are ordinary characters in policies."""
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))


def _fill(pattern: str, question: Question) -> str:
    """Put policy variables such as ``${aws:username}`` in their places."""

    def value(match: re.Match[str]) -> str:
        name, _, default = match[1].partition(",")
        found = question.context.get(name.strip().lower())
        return found[0] if found else default.strip().strip("'") or match[0]

    return re.sub(r"\$\{([^}]+)\}", value, pattern)


def _conditions_hold(conditions: dict[str, dict[str, Any]], question: Question) -> bool:
    return all(
        _holds(
            operator, question.context.get(key.lower()), [str(_plain(v)) for v in listed(wanted)], question
        )
        for operator, keys in conditions.items()
        for key, wanted in keys.items()
    )


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _holds(operator: str, actual: list[str] | None, wanted: list[str], question: Question) -> bool:
    quantifier, _, name = operator.rpartition(":")
    if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    if name == "Null":
        return (actual is None) == (wanted[0].lower() == "true")
    if actual is None:
        return if_exists or quantifier == "ForAllValues" or name in NEGATED
    positive = NEGATED.get(name, name)
    compare = COMPARISONS.get(positive)
    if compare is None:
        raise ValueError(f"the sandbox does not know the condition operator {operator}")
    matched = [any(compare(value, _fill(one, question)) for one in wanted) for value in actual]
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


COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda actual, wanted: actual == wanted,
    "StringEqualsIgnoreCase": lambda actual, wanted: actual.lower() == wanted.lower(),
    "StringLike": lambda actual, wanted: _like(wanted, actual),
    "ArnEquals": lambda actual, wanted: _like(wanted, actual),
    "ArnLike": lambda actual, wanted: _like(wanted, actual),
    "Bool": lambda actual, wanted: actual.lower() == wanted.lower(),
    "NumericEquals": lambda actual, wanted: float(actual) == float(wanted),
    "NumericLessThan": lambda actual, wanted: float(actual) < float(wanted),
    "NumericLessThanEquals": lambda actual, wanted: float(actual) <= float(wanted),
    "NumericGreaterThan": lambda actual, wanted: float(actual) > float(wanted),
    "NumericGreaterThanEquals": lambda actual, wanted: float(actual) >= float(wanted),
    "DateEquals": lambda actual, wanted: _time(actual) == _time(wanted),
    "DateLessThan": lambda actual, wanted: _time(actual) < _time(wanted),
    "DateLessThanEquals": lambda actual, wanted: _time(actual) <= _time(wanted),
    "DateGreaterThan": lambda actual, wanted: _time(actual) > _time(wanted),
    "DateGreaterThanEquals": lambda actual, wanted: _time(actual) >= _time(wanted),
    "IpAddress": lambda actual, wanted: (
        ipaddress.ip_address(actual) in ipaddress.ip_network(wanted, strict=False)
    ),
}
