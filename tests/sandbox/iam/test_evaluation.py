"""The evaluation of policies.

Sources: "Policy evaluation logic", "IAM JSON policy elements: Condition operators" and "IAM policy elements:
Variables and tags" in the IAM User Guide.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmsnix_ops.sandbox.policies import AccessRequest, evaluate, trust_policy_allows

ACCOUNT = "012345678901"
USER = f"arn:aws:iam::{ACCOUNT}:user/operator"


def statement(effect: str = "Allow", **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": "s3:*", "Resource": "*"} | more


def decide(
    *statements: dict[str, Any], action: str = "s3:GetObject", resource: str = "*", **keys: str
) -> str:
    document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
    context = {name.replace("__", ":").lower(): [value] for name, value in keys.items()}
    return evaluate([document], AccessRequest(action, resource, context))


def test_without_policies_nothing_is_allowed() -> None:
    assert evaluate([], AccessRequest("s3:GetObject")) == "implicitDeny"


def test_a_deny_overrides_an_allow() -> None:
    assert decide(statement(), statement("Deny", Action="s3:Get*")) == "explicitDeny"
    assert decide(statement("Deny", Action="s3:Get*"), statement(), action="s3:PutObject") == "allowed"


@pytest.mark.parametrize(
    ("pattern", "action", "matches"),
    [
        ("s3:GetObject", "s3:GetObject", True),
        ("S3:getobject", "s3:GetObject", True),
        ("s3:Get*", "s3:GetObject", True),
        ("s3:GetObjec?", "s3:GetObject", True),
        ("*", "s3:GetObject", True),
        ("s3:Get", "s3:GetObject", False),
        ("ec2:*", "s3:GetObject", False),
        ("s3:[Gg]etObject", "s3:GetObject", False),
    ],
)
def test_actions(pattern: str, action: str, *, matches: bool) -> None:
    assert decide(statement(Action=pattern), action=action) == ("allowed" if matches else "implicitDeny")


def test_all_but_some_actions_and_resources() -> None:
    all_but = {"Effect": "Allow", "NotAction": "iam:*", "NotResource": "arn:aws:s3:::secret/*"}
    assert decide(all_but, resource="arn:aws:s3:::open/k") == "allowed"
    assert decide(all_but, resource="arn:aws:s3:::secret/k") == "implicitDeny"
    assert decide(all_but, action="iam:PassRole", resource="x") == "implicitDeny"


def test_resources_are_case_sensitive_and_take_variables() -> None:
    own = statement(Resource="arn:aws:s3:::home/${aws:username}/*")
    assert decide(own, resource="arn:aws:s3:::home/ann/k", aws__username="ann") == "allowed"
    assert decide(own, resource="arn:aws:s3:::home/bob/k", aws__username="ann") == "implicitDeny"
    assert decide(statement(Resource="arn:aws:s3:::A"), resource="arn:aws:s3:::a") == "implicitDeny"


@pytest.mark.parametrize(
    ("operator", "wanted", "actual", "holds"),
    [
        ("StringEquals", "a", "a", True),
        ("StringEquals", ["b", "a"], "a", True),
        ("StringEquals", "a", "A", False),
        ("StringEquals", "a", None, False),
        ("StringEqualsIfExists", "a", None, True),
        ("StringNotEquals", "a", "b", True),
        ("StringNotEquals", ["a", "b"], "b", False),
        ("StringNotEquals", "a", None, True),
        ("StringEqualsIgnoreCase", "a", "A", True),
        ("StringLike", "a*", "abc", True),
        ("StringNotLike", "a*", "abc", False),
        ("ArnLike", "arn:aws:iam::*:role/x", "arn:aws:iam::1:role/x", True),
        ("Bool", "true", "true", True),
        ("Bool", "false", "true", False),
        ("NumericLessThan", "10", "9", True),
        ("NumericGreaterThanEquals", "10", "9", False),
        ("DateLessThan", "2026-12-01T00:00:00Z", "2026-11-22T00:00:00Z", True),
        ("IpAddress", "10.0.0.0/8", "10.1.2.3", True),
        ("NotIpAddress", "10.0.0.0/8", "10.1.2.3", False),
        ("Null", "true", None, True),
        ("Null", "true", "a", False),
        ("ForAllValues:StringEquals", ["a", "b"], "a", True),
        ("ForAllValues:StringEquals", ["a"], None, True),
        ("ForAnyValue:StringEquals", ["a"], None, False),
    ],
)
def test_conditions(operator: str, wanted: Any, actual: str | None, *, holds: bool) -> None:
    keys = {} if actual is None else {"aws__key": actual}
    decision = decide(statement(Condition={operator: {"aws:Key": wanted}}), **keys)
    assert decision == ("allowed" if holds else "implicitDeny")


def test_an_unknown_operator_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not emulate the condition operator StringMatches"):
        decide(statement(Condition={"StringMatches": {"aws:Key": "a"}}), aws__key="a")


@pytest.mark.parametrize(
    ("principal", "caller", "trusted"),
    [
        ("*", USER, True),
        ({"AWS": "*"}, USER, True),
        ({"AWS": ACCOUNT}, USER, True),
        ({"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, USER, True),
        ({"AWS": [USER]}, USER, True),
        ({"AWS": f"arn:aws:iam::{ACCOUNT}:user/other"}, USER, False),
        ({"AWS": "arn:aws:iam::999999999999:root"}, USER, False),
        ({"AWS": f"arn:aws:iam::{ACCOUNT}:role/ci"}, f"arn:aws:sts::{ACCOUNT}:assumed-role/ci/run-1", True),
        ({"Service": "vmie.amazonaws.com"}, USER, False),
        ({"Service": "vmie.amazonaws.com"}, "vmie.amazonaws.com", True),
    ],
)
def test_trust_policies(principal: Any, caller: str, *, trusted: bool) -> None:
    entry = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": entry})
    account = ACCOUNT if caller.startswith("arn:") else ""
    assert trust_policy_allows(document, caller, account, AccessRequest("sts:AssumeRole")) is trusted


def test_a_wildcard_in_braces_is_a_plain_character() -> None:
    new = statement(Action="ec2:*", Resource="arn:aws:ec2:*::snapshot/${*}")
    for resource, expected in (("*", "allowed"), ("snap-0123", "implicitDeny"), ("x*", "implicitDeny")):
        arn = f"arn:aws:ec2:us-east-1::snapshot/{resource}"
        assert decide(new, action="ec2:CopySnapshot", resource=arn) == expected


def test_an_older_policy_has_no_variables() -> None:
    own = {"Version": "2008-10-17", "Statement": [statement(Resource="arn:aws:s3:::${aws:username}")]}
    for name, expected in (("ann", "implicitDeny"), ("${aws:username}", "allowed")):
        question = AccessRequest("s3:GetObject", f"arn:aws:s3:::{name}", {"aws:username": ["ann"]})
        assert evaluate([json.dumps(own)], question) == expected


def test_a_wildcard_in_the_value_of_a_variable_is_literal() -> None:
    own = statement(Resource="arn:aws:s3:::home/${aws:username}/*")
    assert decide(own, resource="arn:aws:s3:::home/bob/k", aws__username="*") == "implicitDeny"


@pytest.mark.parametrize(
    ("operator", "wanted", "actual", "holds"),
    [
        ("ForAnyValue:StringEquals", "a", None, False),
        ("ForAnyValue:StringNotEquals", "a", None, False),
        ("ForAllValues:StringEquals", "a", None, True),
        ("ForAnyValue:StringEqualsIfExists", "a", None, True),
        ("ForAllValues:StringLike", ["vmsnix:*", "Name"], ["vmsnix:image", "Name"], True),
        ("ForAllValues:StringLike", ["vmsnix:*"], ["vmsnix:image", "Name"], False),
        ("ForAnyValue:StringEquals", "Name", ["vmsnix:image", "Name"], True),
        ("ForAnyValue:StringNotEquals", "Name", ["Name"], False),
        ("StringNotEqualsIfExists", "a", None, True),
        ("Null", "true", None, True),
        ("Null", "true", ["a"], False),
        ("Null", "false", ["a"], True),
        ("Null", "false", None, False),
        ("ArnLike", "arn:aws:ec2:*:*:volume/vol-f*", ["arn:aws:ec2:eu-west-1:1:volume/vol-ff"], True),
        ("ArnLike", "arn:aws:ec2:*:volume/vol-f*", ["arn:aws:ec2:eu-west-1:1:volume/vol-ff"], False),
        ("ArnLike", "arn:*:volume/vol-f*", ["arn:aws:ec2:eu-west-1:1:volume/vol-ff"], False),
        ("ArnNotLike", "arn:aws:ec2:*:*:volume/*", None, True),
        ("NumericLessThan", "8", ["no number"], False),
    ],
)
def test_operators_on_missing_and_many_values(
    operator: str, wanted: Any, actual: list[str] | None, *, holds: bool
) -> None:
    document = {"Version": "2012-10-17", "Statement": [statement(Condition={operator: {"a:b": wanted}})]}
    context = {} if actual is None else {"a:b": actual}
    decision = evaluate([json.dumps(document)], AccessRequest("s3:GetObject", "*", context))
    assert decision == ("allowed" if holds else "implicitDeny")
