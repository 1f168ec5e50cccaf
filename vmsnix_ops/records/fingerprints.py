"""The fingerprint of a plan: a dry run shows it, and the run that applies exactly this plan is given it.

A fingerprint is made from facts: what will be done, and what was read to decide it. Facts contain no time of
the run, no run ID and no path, so that equal plans have equal fingerprints on every machine and on every day.

The facts are also written to the table ``plans``. If the plan of the later run is another one, the error
lists the facts that differ. Facts of what is done meanwhile may differ, because nothing will be done for it:
the same command continues a run that was killed.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops.display import Displayed
from vmsnix_ops.errors import ParameterError, RecordsError, StalePlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmsnix_ops.records.tables import Tables

FINGERPRINT = re.compile(r"[0-9a-f]{16}")
MOST_LISTED = 10
"""Maximum number of differences in an error."""


def fingerprint(facts: Mapping[str, str]) -> str:
    """Return sixteen hexadecimal digits that change with every fact.

    >>> fingerprint({"channel": "stable", "AMI": "1"}) == fingerprint({"AMI": "1", "channel": "stable"})
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the facts that differ, as texts.

    >>> differences({"state": "available"}, {"state": "disabled"})
    ['state: available before, disabled now']
    """
    return [
        f"{name}: {before.get(name) or 'nothing'} before, {now.get(name) or 'nothing'} now"
        for name in dict.fromkeys((*before, *now))
        if before.get(name, "") != now.get(name, "")
    ]


def _changes(
    before: Mapping[str, str], now: Mapping[str, str], reason: Callable[[str], str] | None
) -> list[str]:
    """Return what differs between two plans: one text for a subject, such as an AMI, that only one has."""
    subjects_before, subjects_now = (
        {name.rpartition(", ")[0] for name, value in facts.items() if value} | {""} for facts in (before, now)
    )
    found: dict[str, None] = {}
    for name in dict.fromkeys((*before, *now)):
        subject = name.rpartition(", ")[0]
        if subject in subjects_before ^ subjects_now:
            word = "now" if subject in subjects_now else "no longer"
            why = reason(subject) if reason is not None else ""
            found[f"{subject} is {word} in the plan{why and f': {why}'}"] = None
        else:
            found |= dict.fromkeys(differences({name: before.get(name, "")}, {name: now.get(name, "")}))
    return list(found)


def record_plan(facts: Mapping[str, str], tables: Tables, *, runbook: str, run_id: str = "") -> None:
    """Write the facts of a plan to the table ``plans``; ignore an error, which loses only details."""
    found = fingerprint(facts)
    row = {
        "run_id": run_id or None,
        "runbook": runbook,
        "planned_at": datetime.now(UTC),
        "fingerprint": found,
        "facts": dict(facts),
    }
    with suppress(RecordsError):
        tables.append("plans", [row], once=f"{run_id}/plan/{found}" if run_id else None)


def check_plan(
    facts: Mapping[str, str],
    expected: str,
    tables: Tables,
    *,
    is_done: Callable[[str, Mapping[str, str]], bool] | None = None,
    reason: Callable[[str], str] | None = None,
    option: str = "--expect-plan",
) -> None:
    """Check that a plan has the expected fingerprint; an empty one accepts any plan.

    `is_done` returns whether a fact may differ because nothing will be done for it; it gets the name of the
    fact and the facts of the earlier plan. `reason` returns why a subject is or is not in the plan, or an
    empty text; the subject is the name of a fact up to its last comma. `option` is the option of the command
    line that takes the fingerprint.

    Raises a `ParameterError` for a text that is not a fingerprint, and a `StalePlanError` with the
    differences for another plan.
    """
    if not expected:
        return
    if not FINGERPRINT.fullmatch(expected):
        raise ParameterError(
            f"{expected!r} is not the fingerprint of a plan.",
            why="A fingerprint has 16 hexadecimal digits.",
            fix="Use the fingerprint that the dry run printed (plan_fingerprint in its result.json).",
        )
    now = fingerprint(facts)
    if expected == now:
        return
    before = _recorded(expected, tables)
    if before is not None and is_done is not None:
        same = [name for name in {*before, *facts} if is_done(name, before)]
        before = {**before, **{name: facts.get(name, "") for name in same}}
    changed = _changes(before or {}, facts, reason)
    if before is not None and not changed:
        return
    shown = ". ".join(changed[:MOST_LISTED]) + "."
    shown += f" And {len(changed) - MOST_LISTED} more." if len(changed) > MOST_LISTED else ""
    if before is None:
        known = [f"{name}: {value}" for name, value in facts.items() if value]
        shown = "That plan is not in the table plans, so what differs is not known. The plan is now "
        shown += f"{'; '.join(known[:MOST_LISTED])}{' ...' if len(known) > MOST_LISTED else '.'}"
    raise StalePlanError(
        f"The plan {expected} is out of date: the plan is now {now}. Nothing was done.",
        why=shown,
        fix=f"Check the new plan in a dry run, then pass {option} {now}.",
    )


def _recorded(expected: str, tables: Tables) -> dict[str, str] | None:
    """Return the facts of an earlier plan; ``None`` if they are not recorded or were changed."""
    try:
        rows = tables.read("plans", columns=["facts"], where=[("fingerprint", "==", expected)])
    except RecordsError:
        return None
    for text in rows["facts"].dropna():
        facts = json.loads(text)
        if isinstance(facts, dict) and fingerprint(facts) == expected:
            return facts
    return None


class FingerprintedPlan(Displayed):
    """The base of plans with a fingerprint."""

    __slots__ = ()

    def content(self) -> dict[str, str]:
        """Return the facts of the plan by their names: what will be done, and what was read to decide it."""
        raise NotImplementedError

    def is_done(self, name: str, before: Mapping[str, str]) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether nothing will be done for a fact of an earlier plan, so that it may differ."""
        return False

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with what is planned and with what was read."""
        return fingerprint(self.content())

    @property
    def how_to_apply(self) -> str:
        """A sentence for a dry run: how to apply exactly this plan."""
        return f"To apply exactly this plan: --no-dry-run --expect-plan {self.fingerprint}"
