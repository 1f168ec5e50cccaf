"""Write, read and compare policy documents."""

from __future__ import annotations

import json
from typing import Any

VERSION = "2012-10-17"


def policy(*statements: dict[str, Any]) -> dict[str, Any]:
    """Return a policy with these statements."""
    return {"Version": VERSION, "Statement": list(statements)}


def allow(
    sid: str, actions: list[str], resources: list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a statement that allows actions on resources."""
    found: dict[str, Any] = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return found | ({"Condition": condition} if condition else {})


def read_statements(document: Any) -> list[dict[str, Any]]:
    """Return the statements of a policy, given as JSON text or data, with one statement or a list."""
    policy = json.loads(document) if isinstance(document, str) else document
    return [dict(statement) for statement in as_list(policy.get("Statement", []))]


def as_list(value: Any) -> list[Any]:
    """Return a value of a policy as a list; a single value becomes a list of one."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def same_policy(left: Any, right: Any) -> bool:
    """Return whether two policies are equal, apart from order, single values in lists, and Sids."""
    return _plain(left) == _plain(right)


def _plain(document: Any) -> list[str]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in sorted(value.items()) if key != "Sid"}
        return sorted(json.dumps(plain(i)) if isinstance(i, dict) else str(i) for i in as_list(value))

    return sorted(json.dumps(plain(statement), sort_keys=True) for statement in read_statements(document))
