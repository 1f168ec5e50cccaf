"""Policy documents: what IAM accepts, and how it shows them.

Source: "IAM JSON policy element reference" in the IAM User Guide.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ..core import AwsError, load_json

VERSIONS = {"2012-10-17", "2008-10-17"}
PRINCIPAL_KINDS = {"AWS", "Service", "Federated", "CanonicalUser"}


def check(text: str, *, trust: bool) -> str:
    """Return a policy document that is well-formed.

    Parameters
    ----------
    text
        JSON.
    trust
        Whether it says who may assume a role; such a document names principals and no resources, others the
        reverse.

    Raises
    ------
    AwsError
        ``MalformedPolicyDocument``.
    """
    try:
        document = load_json(text)
    except ValueError:
        raise _malformed("This policy contains invalid Json") from None
    if not isinstance(document, dict) or set(document) - {"Version", "Id", "Statement"}:
        raise _malformed("Syntax errors in policy.")
    if document.get("Version", "2008-10-17") not in VERSIONS:
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
    for action in listed(statement.get("Action", statement.get("NotAction"))):
        if action != "*" and ":" not in action:
            raise _malformed("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
    for resource in listed(statement.get("Resource", statement.get("NotResource"))):
        if resource != "*" and not resource.startswith("arn:") and not resource.startswith("*"):
            raise _malformed(f'Resource {resource} must be in ARN format or "*".')


def _malformed(text: str) -> AwsError:
    return AwsError("MalformedPolicyDocument", text)


def statements(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the statements of a document, which may be one or a list."""
    found: list[dict[str, Any]] = listed(document.get("Statement"))
    return found


def listed(value: Any) -> list[Any]:
    """Return a value that may stand alone as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def shown(text: str) -> str:
    """Return a document as IAM's answers carry it: percent-encoded, as RFC 3986 says."""
    return quote(text, safe="-_.~")
