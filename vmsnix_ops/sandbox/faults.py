"""Faults by rule: which call, which occurrence, what happens.

::

    faults.add({"op": "ec2:DescribeImages", "nth": [1, 2], "do": "error", "code": "RequestLimitExceeded",
    "http": 503}) faults.add({"op": "ec2:RegisterImage", "nth": 1, "do": "drop", "when": "after"})    # it
    ran, the answer is lost faults.add({"op": "s3:UploadPart", "nth": 2, "do": "drop", "when": "body", "keep":
    65536, "of": "request"}) faults.add({"op": "s3:*", "do": "delay", "seconds": 0.2, "probability": 0.05})
    faults.add({"op": "ec2:ImportSnapshot", "do": "outcome", "outcome": {"status_message": "SERVER_ERROR :
    ..."}}) faults.add({"op": "ec2:CopyImage", "where": {"region": "eu-west-1"}, "do": "hang"})
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
"""Rules come as JSON too: what must be of which type to strike."""


def _as_items(value: Any) -> Iterable[Any]:
    """Return the members of a list, or what may stand alone."""
    if value is None:
        return ()
    return [value] if isinstance(value, int) else value


@dataclass
class Fault:
    """One rule.

    Parameters
    ----------
    op
        Which operations, such as ``"ec2:DescribeImages"``, ``"s3:*"`` or ``"*"``.
    do
        ``error`` answers with `code`, `message`, `http` and the further members `extra`; ``delay`` waits
        `seconds`; ``hang`` never answers (it holds the connection for `seconds`, an hour unless given);
        ``drop`` closes the connection without an answer; ``reset`` does it with a TCP reset; ``outcome``
        tells the operation how the work that it starts shall end (each operation documents what it
        understands); ``blank`` takes `fields` out of the answer, however deep; ``set`` puts `values` into
        it, by name, however deep.
    when
        ``before``: the operation does not run. ``after``: it ran, and then this happens to the answer.
        ``body``: only for ``drop`` and ``reset``: after `keep` bytes.
    of
        With ``body``: whether the ``answer`` or the ``request`` (the upload) is cut.
    nth
        Which matching calls, counted from 1 since the rule was added; a number, a list, or None for every
        one.
    probability
        Of striking where the rest of the rule matches, 0 to 1.
    where
        Further conditions: ``region``, ``principal``, or the dotted name of a parameter, each with a pattern.
    """

    op: str
    do: str
    when: str = "before"
    of: str = "answer"
    nth: int | list[int] | None = None
    probability: float = 1.0
    where: Mapping[str, str] = field(default_factory=dict)
    code: str = "InternalError"
    message: str = "A fault rule of the sandbox struck."
    http: int = 500
    extra: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    keep: int = 0
    outcome: Mapping[str, Any] = field(default_factory=dict)
    fields: Iterable[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    reads: int = 1
    number: int = 0
    seen: int = 0  # calls that matched, except for nth and probability
    struck: int = 0
    _change: int = 0  # of a ``stale`` rule: the change after which it counts, and the reads since
    _read: int = 0

    def __post_init__(self) -> None:
        for kind, names in TYPES.items():
            for name in names:
                if not isinstance(getattr(self, name), kind):
                    raise TypeError(f"{name}={getattr(self, name)!r} is of the wrong type")
        for name, kind in (("nth", int), ("fields", str)):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(one, kind) for one in _as_items(values)):
                raise TypeError(f"{name}={values!r} is of the wrong type")
        if self.do not in ACTIONS:
            raise ValueError(f"do={self.do!r} is none of {', '.join(ACTIONS)}")
        if self.when not in MOMENTS:
            raise ValueError(f"when={self.when!r} is none of {', '.join(MOMENTS)}")
        if self.when == "body" and self.do not in {"drop", "reset"}:
            raise ValueError(f"when='body' goes with do='drop' or do='reset', not with do={self.do!r}")
        if self.of not in {"answer", "request"}:
            raise ValueError(f"of={self.of!r} is neither 'answer' nor 'request'")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability!r} is not between 0 and 1")
        if self.seconds is not None and not 0 <= self.seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"seconds={self.seconds!r} is not a number of seconds")
        if not 100 <= self.http <= 599:
            raise ValueError(f"http={self.http!r} is not an HTTP status")
        if not self.keep >= 0:
            raise ValueError(f"keep={self.keep!r} is not a number of bytes")
        if self.reads < 1:
            raise ValueError(f"reads={self.reads!r} is not at least 1")
        if self.do in {"blank", "set"}:
            self.when = "after"

    def matches(self, name: str, facts: Mapping[str, str]) -> bool:
        """Return whether a call is one that this rule is about, counting aside."""
        return fnmatch.fnmatchcase(name, self.op) and all(
            fnmatch.fnmatchcase(facts.get(key, ""), pattern) for key, pattern in self.where.items()
        )

    def is_stale(self, change: int) -> bool:
        """Count a read, and return whether it shall not show the change of this number; 0 is none."""
        if change != self._change:
            self._change, self._read = change, 0
        self._read += 1
        return change > 0 and self._read <= self.reads

    def counts(self) -> bool:
        """Return whether the matching call that was just seen is one of `nth`."""
        if self.nth is None:
            return True
        return self.seen in ([self.nth] if isinstance(self.nth, int) else self.nth)


class Faults:
    """The rules of one sandbox, in the order in which they were added.

    Parameters
    ----------
    seed
        Of the random numbers behind `Fault.probability`, so that a soak run can be repeated.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rules: list[Fault] = []
        self._lock = threading.Lock()
        self._random = random.Random(seed)  # noqa: S311 - faults, not secrets
        self._last = 0

    def add(self, rule: Mapping[str, Any] | Fault) -> Fault:
        """Add a rule and return it; its `struck` tells later how often it struck.

        Raises
        ------
        ValueError
            When the rule has an unknown key or value.
        """
        known = {one.name for one in fields(Fault)} - {"number", "seen", "struck", "_change", "_read"}
        if not isinstance(rule, Fault):
            if unknown := set(rule) - known:
                raise ValueError(
                    f"a fault rule has no {', '.join(sorted(unknown))}; it knows {', '.join(sorted(known))}"
                )
            rule = Fault(**rule)
        with self._lock:
            self._last += 1
            rule.number = self._last
            self._rules.append(rule)
        return rule

    def remove(self, rule: Fault) -> None:
        """Take a rule away."""
        with self._lock:
            self._rules.remove(rule)

    def clear(self) -> None:
        """Take all rules away."""
        with self._lock:
            self._rules.clear()

    def seed(self, seed: int) -> None:
        """Start the random numbers anew."""
        self._random.seed(seed)

    @property
    def rules(self) -> list[Fault]:
        """All rules, oldest first."""
        with self._lock:
            return list(self._rules)

    def strike(self, name: str, facts: Mapping[str, str]) -> list[Fault]:
        """Return the rules that strike this call, and count it.

        Parameters
        ----------
        name
            Service and operation, such as ``"ec2:RegisterImage"``.
        facts
            Region, principal and parameters by dotted name.
        """
        struck = []
        with self._lock:
            for rule in self._rules:
                if not rule.matches(name, facts):
                    continue
                rule.seen += 1
                if rule.counts() and (rule.probability >= 1 or self._random.random() < rule.probability):
                    rule.struck += 1
                    struck.append(rule)
        return struck


def flatten_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested parameters by dotted name, as `Fault.where` names them; list members count from 0."""
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
    """Return an answer with members taken out or replaced, however deep they are."""
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
