"""Fault rules: the calls that fail, and how.

::

    faults.add({"op": "ec2:DescribeImages", "nth": [1, 2], "do": "error", "code": "RequestLimitExceeded",
                "http": 503})
    faults.add({"op": "ec2:RegisterImage", "nth": 1, "do": "drop", "when": "after"})  # it ran, no answer
    faults.add({"op": "s3:UploadPart", "nth": 2, "do": "drop", "when": "body", "keep": 65536,
                "of": "request"})
    faults.add({"op": "s3:*", "do": "delay", "seconds": 0.2, "probability": 0.05})
    faults.add({"op": "ec2:ImportSnapshot", "do": "outcome",
                "outcome": {"status_message": "SERVER_ERROR : ..."}})
    faults.add({"op": "ec2:CopyImage", "where": {"region": "eu-west-1"}, "do": "hang"})
    faults.add({"op": "ec2:DescribeImportSnapshotTasks", "nth": 1, "do": "blank", "fields": ["SnapshotId"]})
    faults.add({"op": "ec2:DescribeImages", "do": "stale", "reads": 2})
"""

from __future__ import annotations

import fnmatch
import random
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

ACTIONS = ("error", "delay", "hang", "drop", "reset", "outcome", "blank", "set", "stale")
MOMENTS = ("before", "after", "body")
TYPES: dict[type, tuple[str, ...]] = {
    str: ("op", "do", "when", "of", "code", "message"),
    int: ("http", "keep"),
    Mapping: ("where", "extra", "outcome", "values"),
}
"""The types of a rule's fields, which are checked because rules also arrive as JSON."""


def _as_items(value: Any) -> Iterable[Any]:
    """Return a list unchanged, a number as a list, and None as an empty one."""
    if value is None:
        return ()
    return [value] if isinstance(value, int) else value


@dataclass
class Fault:
    """One fault rule.

    Parameters
    ----------
    op
        The operations, such as ``"ec2:DescribeImages"``, ``"s3:*"`` or ``"*"``.
    do
        ``error`` answers with `code`, `message`, `http` and the further members `extra`. ``delay`` waits
        `seconds`. ``hang`` does not answer, and keeps the connection open for `seconds` (default: an hour).
        ``drop`` closes the connection without an answer; ``reset`` closes it with a TCP reset. ``outcome``
        decides how the work ends that an operation starts, such as an import; the operation documents the
        possible members. ``blank`` removes `fields` from the answer, ``set`` sets `values` in it, both at any
        depth. ``stale`` answers the next `reads` reads after a change with the state before the change.
    when
        ``before``: the operation does not run. ``after``: the operation runs, then the fault happens.
        ``body``, for ``drop`` and ``reset``: after `keep` bytes.
    of
        With ``body``: whether the ``answer`` or the body of the ``request`` is cut.
    nth
        Which of the matching calls the rule applies to, counted from 1: a number, a list, or None for all.
    probability
        The probability with which the rule applies to a matching call, 0 to 1.
    where
        Further conditions: ``region``, ``principal``, or the dotted name of a parameter, each with a pattern.
    matched, applied
        How many calls matched `op` and `where`, and to how many of them the rule applied.
    """

    op: str
    do: str
    when: str = "before"
    of: str = "answer"
    nth: int | list[int] | None = None
    probability: float = 1.0
    where: Mapping[str, str] = field(default_factory=dict)
    code: str = "InternalError"
    message: str = "A fault rule of the sandbox caused this error."
    http: int = 500
    extra: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    keep: int = 0
    outcome: Mapping[str, Any] = field(default_factory=dict)
    fields: Iterable[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    reads: int = 1
    number: int = 0
    matched: int = 0
    applied: int = 0
    _change: int = 0  # for ``stale``: the number of the last change
    _reads_since: int = 0  # for ``stale``: the reads since this change

    def __post_init__(self) -> None:
        for kind, names in TYPES.items():
            for name in names:
                if not isinstance(getattr(self, name), kind):
                    raise TypeError(f"{name}={getattr(self, name)!r} is of the wrong type")
        for name, kind in (("nth", int), ("fields", str)):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(one, kind) for one in _as_items(values)):
                raise TypeError(f"{name}={values!r} is of the wrong type")
        valid_seconds = self.seconds is None or 0 <= self.seconds <= threading.TIMEOUT_MAX
        checks = (
            ("do", self.do in ACTIONS, f"is none of {', '.join(ACTIONS)}"),
            ("when", self.when in MOMENTS, f"is none of {', '.join(MOMENTS)}"),
            ("of", self.of in {"answer", "request"}, "is neither 'answer' nor 'request'"),
            ("probability", 0 <= self.probability <= 1, "is not between 0 and 1"),
            ("seconds", valid_seconds, "is not a number of seconds"),
            ("http", 100 <= self.http <= 599, "is not an HTTP status"),
            ("keep", self.keep >= 0, "is not a number of bytes"),
            ("reads", self.reads >= 1, "is not at least 1"),
        )
        for name, valid, problem in checks:
            if not valid:
                raise ValueError(f"{name}={getattr(self, name)!r} {problem}")
        if self.when == "body" and self.do not in {"drop", "reset"}:
            raise ValueError(f"when='body' needs do='drop' or do='reset', not do={self.do!r}")
        if self.do in {"blank", "set"}:
            self.when = "after"

    def matches(self, name: str, facts: Mapping[str, str]) -> bool:
        """Return whether a call matches `op` and `where`."""
        return fnmatch.fnmatchcase(name, self.op) and all(
            fnmatch.fnmatchcase(facts.get(key, ""), pattern) for key, pattern in self.where.items()
        )

    def is_stale(self, change: int) -> bool:
        """Count a read, and return whether it must not show the change with this number (0: no change)."""
        if change != self._change:
            self._change, self._reads_since = change, 0
        self._reads_since += 1
        return change > 0 and self._reads_since <= self.reads

    def is_nth(self) -> bool:
        """Return whether the rule applies to the last matching call by its number."""
        return self.nth is None or self.matched in _as_items(self.nth)


COUNTERS = {"number", "matched", "applied", "_change", "_reads_since"}  # fields that a rule cannot set


class Faults:
    """The fault rules of one sandbox, oldest first."""

    def __init__(self, seed: int = 0) -> None:
        self._rules: list[Fault] = []
        self._lock = threading.Lock()
        self._random = random.Random(seed)  # noqa: S311 - faults, not secrets
        self._last = 0

    def add(self, rule: Mapping[str, Any] | Fault) -> Fault:
        """Add a rule and return it; `Fault.applied` counts the calls to which it applied.

        Raises
        ------
        ValueError
            The rule has an unknown key or value.
        """
        known = {field.name for field in fields(Fault)} - COUNTERS
        if not isinstance(rule, Fault):
            if unknown := ", ".join(sorted(set(rule) - known)):
                raise ValueError(f"a fault rule has no {unknown}; use {', '.join(sorted(known))}")
            rule = Fault(**rule)
        with self._lock:
            self._last += 1
            rule.number = self._last
            self._rules.append(rule)
        return rule

    def remove(self, rule: Fault) -> None:
        """Remove a rule."""
        with self._lock:
            self._rules.remove(rule)

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()

    def seed(self, seed: int) -> None:
        """Restart the random numbers."""
        self._random.seed(seed)

    @property
    def rules(self) -> list[Fault]:
        """All rules, oldest first."""
        with self._lock:
            return list(self._rules)

    def match(self, name: str, facts: Mapping[str, str]) -> list[Fault]:
        """Return the rules that apply to a call, and count it."""
        applied = []
        with self._lock:
            for rule in self._rules:
                if not rule.matches(name, facts):
                    continue
                rule.matched += 1
                if rule.is_nth() and (rule.probability >= 1 or self._random.random() < rule.probability):
                    rule.applied += 1
                    applied.append(rule)
        return applied


def flatten_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested parameters by dotted name, for `Fault.where`. List members have numbers from 0."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten_params(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            flat |= flatten_params({str(n): item for n, item in enumerate(value)}, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | bool):
            flat[f"{prefix}{name}"] = str(value)
    return flat


def edit_answer(answer: Any, blank: Iterable[str], values: Mapping[str, Any]) -> Any:
    """Return an answer with members removed or replaced at any depth."""
    blank = set(blank)
    if isinstance(answer, list):
        return [edit_answer(item, blank, values) for item in answer]
    if not isinstance(answer, dict):
        return answer
    return {
        name: values[name] if name in values else edit_answer(value, blank, values)
        for name, value in answer.items()
        if name not in blank
    }
