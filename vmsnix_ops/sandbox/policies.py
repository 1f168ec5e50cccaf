"""Policy documents: the check of a document, its evaluation, and some managed policies of AWS.

``managed_policies.tsv`` has six of about 1,400 managed policies; the others are not emulated. Their source is
the AWS Managed Policy Reference; identifiers and dates are as ``aws iam list-policies`` shows them.

Sources, all in the IAM User Guide: "IAM JSON policy element reference"; "Policy evaluation logic"; "IAM
JSON policy elements: Condition operators" (a negated operator holds for a missing key, ``ForAnyValue`` does
not; an ARN is compared part by part); "IAM policy elements: Variables and tags" (``${*}`` is a literal
asterisk; a policy of the version 2008-10-17 has no variables); "AWS JSON policy elements: Principal" (an
account as principal delegates to the policies of its users and roles) and "NotPrincipal".
"""

from __future__ import annotations

import ipaddress
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, load_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


POLICY_LANGUAGE_VERSIONS = {"2012-10-17", "2008-10-17"}
PRINCIPAL_KINDS = {"AWS", "Service", "Federated", "CanonicalUser"}


def check_policy(text: str, *, trust: bool) -> str:
    """Return the JSON of a policy document, or raise ``MalformedPolicyDocument``.

    A trust policy has principals and no resources; other policies have resources and no principals.
    """
    try:
        document = load_json(text)
    except ValueError:
        raise _malformed("This policy contains invalid Json") from None
    if not isinstance(document, dict) or set(document) - {"Version", "Id", "Statement"}:
        raise _malformed("Syntax errors in policy.")
    if document.get("Version", "2008-10-17") not in POLICY_LANGUAGE_VERSIONS:
        raise _malformed("Syntax errors in policy.")
    if "Statement" not in document:
        raise _malformed("Missing required field Statement")
    for statement in statements(document):
        _check_statement(statement, trust=trust)
    return text


def _check_statement(statement: dict[str, Any], *, trust: bool) -> None:
    if not isinstance(statement, dict) or statement.get("Effect") not in {"Allow", "Deny"}:
        raise _malformed("Syntax errors in policy.")
    if not {"Action", "NotAction"} & set(statement):
        raise _malformed("Missing required field Action")
    if trust:
        if {"Resource", "NotResource"} & set(statement):
            raise _malformed("Has prohibited field Resource")
        if not {"Principal", "NotPrincipal"} & set(statement):
            raise _malformed("Missing required field Principal")
        principal = statement.get("Principal")
        if isinstance(principal, dict) and set(principal) - PRINCIPAL_KINDS:
            raise _malformed("Invalid principal in policy")
        return
    if {"Principal", "NotPrincipal"} & set(statement):
        raise _malformed("Policy document should not specify a principal.")
    if not {"Resource", "NotResource"} & set(statement):
        raise _malformed("Policy statement must contain resources.")
    for action in as_list(statement.get("Action", statement.get("NotAction"))):
        if action != "*" and ":" not in action:
            raise _malformed("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
    for resource in as_list(statement.get("Resource", statement.get("NotResource"))):
        if resource != "*" and not resource.startswith("arn:") and not resource.startswith("*"):
            raise _malformed(f'Resource {resource} must be in ARN format or "*".')


def _malformed(text: str) -> ApiError:
    return ApiError("MalformedPolicyDocument", text)


def statements(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the statements of a document, as a list also for a single one."""
    found: list[dict[str, Any]] = as_list(document.get("Statement"))
    return found


def as_list(value: Any) -> list[Any]:
    """Return a list; a single value becomes a list of one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


ALLOWED, EXPLICIT_DENY, IMPLICIT_DENY = "allowed", "explicitDeny", "implicitDeny"
DELEGATED = "delegated"


@dataclass(frozen=True)
class AccessRequest:
    """A request to evaluate: an action on a resource."""

    action: str  # such as "s3:GetObject"
    resource: str = "*"  # ARN, or "*"
    keys: Mapping[str, list[str]] = field(default_factory=dict)  # values of condition keys in lower case


def request_tag_keys(tags: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the condition keys of the tags in a request."""
    values = {tag["Key"]: tag.get("Value", "") for tag in tags}
    keys = {f"aws:requesttag/{key.lower()}": [value] for key, value in values.items()}
    return keys | ({"aws:tagkeys": list(values)} if values else {})


def evaluate(documents: Iterable[str], request: AccessRequest) -> str:
    """Return the decision of identity policies (JSON): ``allowed``, ``explicitDeny`` or ``implicitDeny``."""
    decision = IMPLICIT_DENY
    for text in documents:
        document = json.loads(text)
        for statement in statements(document):
            if not _statement_applies(statement, request, _has_variables(document)):
                continue
            if statement["Effect"] == "Deny":
                return EXPLICIT_DENY
            decision = ALLOWED
    return decision


def evaluate_resource_policy(text: str, principal: str, account: str, request: AccessRequest) -> str:
    """Return the decision of a resource policy about a principal.

    The principal is the ARN of the caller, or a service such as ``"vmie.amazonaws.com"``; in the request of a
    session, ``aws:PrincipalArn`` is the ARN of its role. The decision is ``explicitDeny``, ``allowed``,
    ``implicitDeny``, or ``delegated``: allowed to the account of the caller, so the caller's own policies
    must allow it too.
    """
    document = json.loads(text)
    decision = IMPLICIT_DENY
    for statement in statements(document):
        named = _named_principal(statement, principal, account, request)
        if not named or not _statement_applies(statement, request, _has_variables(document)):
            continue
        if statement["Effect"] == "Deny":
            return EXPLICIT_DENY
        decision = named if decision != ALLOWED else decision
    return decision


def trust_policy_allows(document: str, principal: str, account: str, request: AccessRequest) -> bool:
    """Return whether a trust policy allows a principal; see `evaluate_resource_policy`."""
    return evaluate_resource_policy(document, principal, account, request) in {ALLOWED, DELEGATED}


def _has_variables(document: dict[str, Any]) -> bool:
    return document.get("Version") == "2012-10-17"


def _named_principal(statement: dict[str, Any], arn: str, account: str, request: AccessRequest) -> str:
    """Return ``allowed`` or ``delegated`` when a statement is about a principal, else ""."""
    if "NotPrincipal" in statement:
        # An account in NotPrincipal is only its root user.
        excluded = _principal_match(statement["NotPrincipal"], arn, account, request) == ALLOWED
        return "" if excluded else ALLOWED
    return _principal_match(statement.get("Principal"), arn, account, request)


def _principal_match(principal: Any, arn: str, account: str, request: AccessRequest) -> str:
    if principal == "*":
        return ALLOWED
    if not isinstance(principal, dict):
        return ""
    named = [name for kind in ("AWS", "Service", "Federated") for name in as_list(principal.get(kind))]
    role = re.sub(r"^(arn:[^:]+):sts:(.*):assumed-role/([^/]+)/.*$", r"\1:iam:\2:role/\3", arn)
    if {"*", arn, role, *request.keys.get("aws:principalarn", ())} & set(named):
        return ALLOWED
    root = re.compile(rf"arn:aws[\w-]*:iam::{re.escape(account)}:root") if account else None
    whole = any(name == account or (root is not None and root.fullmatch(name)) for name in named if account)
    return DELEGATED if whole else ""


def _statement_applies(statement: dict[str, Any], request: AccessRequest, variables: bool) -> bool:
    action, resource, keys = request.action.lower(), request.resource, request.keys if variables else None
    return (
        _element_applies(statement, "Action", lambda pattern: wildcard_match(pattern.lower(), action))
        and _element_applies(statement, "Resource", lambda pattern: wildcard_match(pattern, resource, keys))
        and _conditions_hold(statement.get("Condition", {}), request, keys)
    )


def _element_applies(statement: dict[str, Any], name: str, matches: Callable[[str], bool]) -> bool:
    """Return whether an element or its negation, such as ``NotAction``, applies; a missing one does."""
    if name in statement:
        return any(map(matches, as_list(statement[name])))
    return not any(map(matches, as_list(statement.get(f"Not{name}"))))


ConditionKeys = Mapping[str, list[str]]
_TOKEN = re.compile(r"\$\{([^}]+)\}|([*?])")


def wildcard_match(pattern: str, text: str, keys: ConditionKeys | None = None) -> bool:
    """Return whether a pattern with ``*``, ``?`` and variables matches a text.

    `keys` are the condition keys for variables; None: the policy has no variables. Wildcards in the value
    of a variable are literal.
    """
    regular, end = "", 0
    for token in _TOKEN.finditer(pattern):
        regular += re.escape(pattern[end : token.start()])
        end = token.end()
        if token[2]:
            regular += ".*" if token[2] == "*" else "."
        else:
            regular += re.escape(token[0] if keys is None else _variable_value(token[1], keys, token[0]))
    return re.fullmatch(regular + re.escape(pattern[end:]), text, re.DOTALL) is not None


def _variable_value(variable: str, keys: ConditionKeys, otherwise: str) -> str:
    """Return the value of a policy variable such as ``aws:username``."""
    if variable in {"*", "?", "$"}:
        return variable
    name, comma, default = variable.partition(",")
    found = keys.get(name.strip().lower())
    if found:
        return found[0]
    return default.strip().strip("'") if comma else otherwise


def _conditions_hold(
    conditions: dict[str, dict[str, Any]], request: AccessRequest, keys: ConditionKeys | None
) -> bool:
    def as_text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return all(
        _condition_holds(name, request.keys.get(key.lower()), [*map(as_text, as_list(wanted))], keys)
        for name, by_key in conditions.items()
        for key, wanted in by_key.items()
    )


def _condition_holds(
    written: str, actual: list[str] | None, wanted: list[str], keys: ConditionKeys | None
) -> bool:
    quantifier, _, name = written.rpartition(":")
    if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    if name == "Null":
        return any((not actual) == (one.lower() == "true") for one in wanted)
    compare = COMPARISONS.get(NEGATED.get(name, name))
    if compare is None or quantifier not in {"", "ForAllValues", "ForAnyValue"}:
        raise ValueError(f"the sandbox does not emulate the condition operator {written}")
    if not actual:
        return if_exists or quantifier == "ForAllValues" or (name in NEGATED and quantifier != "ForAnyValue")
    matched = [any(compare(value, one, keys) for one in wanted) for value in actual]
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


def _timestamp(text: str) -> float:
    if text.replace(".", "", 1).isdecimal():
        return float(text)
    moment = datetime.fromisoformat(text)
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()


def _arn_like(actual: str, wanted: str, keys: ConditionKeys | None) -> bool:
    """Compare two ARNs part by part. A wildcard matches within its part; the last part is the rest."""
    if wanted == "*":
        return True
    parts, patterns = actual.split(":", 5), wanted.split(":", 5)
    return len(parts) == len(patterns) and all(
        wildcard_match(pattern, part, keys) for pattern, part in zip(patterns, parts, strict=True)
    )


def _comparing_text(compare: Callable[[str, str], bool]) -> Comparison:
    def compared(actual: str, wanted: str, keys: ConditionKeys | None) -> bool:
        if keys is not None:
            wanted = re.sub(r"\$\{([^}]+)\}", lambda one: _variable_value(one[1], keys, one[0]), wanted)
        return compare(actual, wanted)

    return compared


def _same_text(actual: str, wanted: str) -> bool:
    return actual.lower() == wanted.lower()


def _comparing_numbers(compare: Callable[[float, float], bool]) -> Comparison:
    def compared(actual: str, wanted: str, _keys: ConditionKeys | None) -> bool:
        try:
            return compare(float(actual), float(wanted))
        except ValueError:
            return False

    return compared


def _comparing_times(compare: Callable[[float, float], bool]) -> Comparison:
    return lambda actual, wanted, _keys: compare(_timestamp(actual), _timestamp(wanted))


Comparison = Callable[[str, str, "ConditionKeys | None"], bool]
ORDERS: dict[str, Callable[[float, float], bool]] = {
    "Equals": operator.eq,
    "LessThan": operator.lt,
    "LessThanEquals": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanEquals": operator.ge,
}
COMPARISONS: dict[str, Comparison] = {
    "StringEquals": _comparing_text(operator.eq),
    "StringEqualsIgnoreCase": _comparing_text(_same_text),
    "StringLike": lambda actual, wanted, keys: wildcard_match(wanted, actual, keys),
    "ArnEquals": _arn_like,
    "ArnLike": _arn_like,
    "Bool": _comparing_text(_same_text),
    **{f"Numeric{name}": _comparing_numbers(compare) for name, compare in ORDERS.items()},
    **{f"Date{name}": _comparing_times(compare) for name, compare in ORDERS.items()},
    "IpAddress": _comparing_text(
        lambda actual, wanted: ipaddress.ip_address(actual) in ipaddress.ip_network(wanted, strict=False)
    ),
}


@dataclass(frozen=True)
class ManagedPolicy:
    """A managed policy of AWS. `updated` is the creation time of its default version."""

    name: str
    entity_id: str
    default_version: str
    created: datetime
    updated: datetime
    description: str
    document: str  # JSON of the default version
    path: str = "/"
    tags: dict[str, str] = field(default_factory=dict)


def _managed_policies() -> Iterator[ManagedPolicy]:
    text = files(__package__).joinpath("managed_policies.tsv").read_text("ascii")
    for line in text.splitlines()[1:]:
        name, entity_id, version, created, updated, description, document = line.split("\t")
        times = (datetime.fromisoformat(created), datetime.fromisoformat(updated))
        yield ManagedPolicy(name, entity_id, version, *times, description, document)


MANAGED_POLICIES = {policy.name: policy for policy in _managed_policies()}
