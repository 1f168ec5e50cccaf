"""Bucket policies: what S3 accepts as one, when it is public, and what it decides beside identity policies.

Sources: "Policy evaluation logic" and "Cross-account policy evaluation logic" in the IAM User Guide (within
an account one of the two policies is enough, across accounts both must allow, a Deny in either wins);
PutBucketPolicy in the Amazon S3 API Reference (the root user of the owner can always manage the policy);
"Blocking public access to your Amazon S3 storage" (the meaning of public, RestrictPublicBuckets);
"Troubleshoot access denied (403 Forbidden) errors in Amazon S3" (across accounts the text says no reason).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ..core import AwsError, load_json
from ..iam import evaluation
from ..iam.documents import PRINCIPAL_KINDS, listed, statements
from ..iam.evaluation import ALLOWED, DELEGATED, EXPLICIT_DENY, evaluate, evaluate_resource_policy, matches
from ..objects import find_bucket

if TYPE_CHECKING:
    from ..core import Tables
    from ..objects import Bucket

MANAGES_POLICY = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})
NARROWS = frozenset(
    {
        "aws:principalaccount",
        "aws:principalarn",
        "aws:principalorgid",
        "aws:sourceaccount",
        "aws:sourcearn",
        "aws:sourceip",
        "aws:sourceowner",
        "aws:sourcevpc",
        "aws:sourcevpce",
        "aws:userid",
        "s3:dataaccesspointaccount",
        "s3:dataaccesspointarn",
    }
)
"""Keys that make an Allow to everybody no public one, when they are compared with fixed values."""


def parse(text: str, bucket: str) -> dict[str, Any]:
    """Return a bucket policy as S3 accepts it.

    Raises
    ------
    AwsError
        ``MalformedPolicy``.
    """
    try:
        document = load_json(text)
    except ValueError:
        raise _malformed("Policies must be valid JSON and the first byte must be '{'") from None
    if not isinstance(document, dict) or not document.get("Statement"):
        raise _malformed("Missing required field Statement")
    for statement in statements(document):
        for name in ("Effect", "Principal", "Action", "Resource"):
            if name not in statement and f"Not{name}" not in statement:
                raise _malformed(f"Missing required field {name}")
        principal = statement.get("Principal", statement.get("NotPrincipal"))
        if principal != "*" and not (isinstance(principal, dict) and set(principal) <= PRINCIPAL_KINDS):
            raise _malformed("Invalid principal in policy")
        for resource in listed(statement.get("Resource", statement.get("NotResource"))):
            found = re.fullmatch(r"arn:aws[\w-]*:s3:::([^/]*)(/.*)?", resource, re.DOTALL)
            if resource != "*" and (found is None or not matches(found[1], bucket)):
                raise _malformed("Policy has invalid resource")
    return document


def _malformed(text: str) -> AwsError:
    return AwsError("MalformedPolicy", text)


def is_public(document: dict[str, Any]) -> bool:
    """Return whether a policy lets everybody in: an Allow to ``*`` that no fixed value of a key narrows."""
    return any(
        statement.get("Effect") == "Allow"
        and ("NotPrincipal" in statement or "*" in _principals(statement))
        and not _narrowed(statement.get("Condition") or {})
        for statement in statements(document)
    )


def _principals(statement: dict[str, Any]) -> list[Any]:
    principal = statement.get("Principal")
    return listed(principal.get("AWS")) if isinstance(principal, dict) else [principal]


def _narrowed(conditions: dict[str, dict[str, Any]]) -> bool:
    return any(
        key.lower() in NARROWS and not any(set("*?") & set(str(one)) for one in listed(values))
        for name, keys in conditions.items()
        if not name.endswith("IfExists") and "Not" not in name and name != "Null"
        for key, values in keys.items()
    )


def why_not(
    tables: Tables,
    question: evaluation.Question,
    *,
    account: str,
    principal: str,
    documents: list[str] | None,
    root: bool = False,
) -> str:
    """Return why a principal may not do something in S3, in AWS's words; "" when it may.

    Parameters
    ----------
    tables
        Of the sandbox: the policy is that of the bucket which the question's resource names.
    question
        Action, ARN and condition keys.
    account, principal
        Account and ARN of who asks; of a service role, the ARN of its session.
    documents
        The identity policies of the principal; None when they allow everything.
    root
        Whether the principal stands for the root user of its account.
    """
    action = question.action
    identity = ALLOWED if documents is None else evaluate(documents, question)
    if identity == EXPLICIT_DENY:
        return "with an explicit deny in an identity-based policy"
    bucket = None if action == "s3:CreateBucket" else find_bucket(tables, _bucket_name(question.resource))
    across = bucket is not None and bucket.account != account
    decision = _of_policy(bucket, principal, account, question)
    if decision == EXPLICIT_DENY and not (root and not across and action in MANAGES_POLICY):
        return "with an explicit deny in a resource-based policy"
    if across and decision not in {ALLOWED, DELEGATED}:
        return f"because no resource-based policy allows the {action} action"
    if identity != ALLOWED and (across or decision != ALLOWED):
        return f"because no identity-based policy allows the {action} action"
    return ""


def _bucket_name(resource: str) -> str:
    return resource.partition(":::")[2].partition("/")[0]


def _of_policy(bucket: Bucket | None, principal: str, account: str, question: evaluation.Question) -> str:
    """Return what the policy of a bucket decides; ``implicitDeny`` where there is none."""
    text = bucket.settings.get("policy") if bucket is not None else None
    if bucket is None or not text:
        return evaluation.IMPLICIT_DENY
    decision = evaluate_resource_policy(text, principal, account, question)
    restricted = bucket.settings.get("public_access_block", {}).get("RestrictPublicBuckets")
    if decision != EXPLICIT_DENY and account != bucket.account and restricted:
        return evaluation.IMPLICIT_DENY if is_public(json.loads(text)) else decision
    return decision
