"""The plan of a retirement, and what became of it: values that show themselves."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import display, errors
from vmsnix_ops.audit.retirement import _apply as retirement_apply
from vmsnix_ops.audit.retirement.decide import Work, decide
from vmsnix_ops.progress import counted
from vmsnix_ops.records.result import write_result
from vmsnix_ops.text import line, write_csv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.audit.retirement._apply import Outcome
    from vmsnix_ops.audit.retirement.view import Decision, Place, Rules
    from vmsnix_ops.progress import Progress
    from vmsnix_ops.records.run_context import RunContext


VERBS = {"retire": "retire", "delete": "remove for good", "restore": "restore", "keep": "keep"}
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
DONE = frozenset({"retired", "deleted", "restored"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What will become of every AMI and orphan, and why; nothing of it has been done. `apply` does it.

    Attributes
    ----------
    account, regions
        Where.
    work
        ``"retire"`` or ``"restore"``.
    rules
        What may go.
    decisions
        One for each AMI of the account, ours or not, and for each orphan of ours.
    unread
        Regions that could not be looked at, and why; nothing is done there.
    now
        When it was made; ages count from here.
    dry_run, confirm
        `apply` does nothing in a dry run, and asks for a confirmation otherwise.
    """

    account: str
    regions: tuple[str, ...]
    work: Work
    rules: Rules
    decisions: tuple[Decision, ...]
    unread: Mapping[str, errors.VmsnixError]
    now: datetime
    dry_run: bool
    confirm: str
    run: RunContext = field(repr=False)
    places: Mapping[str, Place] = field(repr=False, compare=False)
    progress: Progress = field(repr=False, compare=False)
    prefix: str

    @property
    def going(self) -> tuple[Decision, ...]:
        """What there is to do, the oldest first within a region."""
        return tuple(one for one in self.decisions if one.goes)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with what goes, and with what is known of it."""
        whole = "\n".join(sorted(one.fingerprint for one in self.going))
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def apply(self) -> Result:
        """Do what the plan says, unless it is a dry run; return what became of each AMI and orphan.

        Safe to run again after a death at any call: a new plan finds what is left to do.

        Raises
        ------
        vmsnix_ops.errors.ParameterError
            It is not confirmed.
        vmsnix_ops.errors.StalePlanError
            Something changed since, or since the plan that was confirmed; nothing was done.
        vmsnix_ops.errors.InterruptedRunError
            The operator asked to stop; ``result.json`` tells what became of each.
        """
        if self.dry_run or not self.going:
            return Result(self, ())
        self._check_confirmed()
        try:
            outcomes, unrecorded = retirement_apply.apply(self)
            return Result(self, outcomes, unrecorded)
        except retirement_apply.InterruptedInBetween as stopped:
            result = Result(self, stopped.outcomes)
            write(result, interrupted=True)
            done = sum(one.outcome in DONE for one in result.outcomes)
            raise errors.InterruptedRunError(
                f"The retirement was interrupted: {done} of {len(self.going)} done.",
                why=f"{stopped.at.resource_id} in {stopped.at.region} was under way.",
                cure="result.json tells what became of each. Make a new plan to go on: it finds the rest, "
                "and what is half done.",
            ) from stopped

    def look_again(self) -> tuple[dict[str, Decision], dict[str, errors.VmsnixError]]:
        """Decide anew about what goes, by all regions; see `plan`.

        Also regions in which nothing goes are looked at: what is used there may keep a copy elsewhere.
        """
        only = frozenset(one.resource_id for one in self.going)
        decisions, unread = decide(
            self.places.values(), self.work, self.rules, self.now, self.prefix, only=only
        )
        return {one.resource_id: one for one in decisions}, unread

    def _check_confirmed(self) -> None:
        count, confirm = len(self.going), self.confirm.strip()
        if confirm in (self.account, str(count), self.fingerprint):
            return
        if FINGERPRINT.fullmatch(confirm):
            raise errors.StalePlanError(
                f"The plan {confirm}, which was confirmed, no longer holds; nothing was done.",
                why=f"By what the account is now, the plan is {self.fingerprint}.",
                cure="Look at it, then confirm that one.",
            )
        given = f"Confirm is {self.confirm!r}." if self.confirm else "Dry_run is off, and confirm is empty."
        raise errors.ParameterError(
            f"{_what(self.going)} would go, and nobody confirmed it.",
            why=given,
            cure=f"Look at the plan, then give as confirm its fingerprint ({self.fingerprint}), their number "
            f"({count}) or the account ({self.account}).",
        )

    def frame(self) -> pd.DataFrame:
        """Return the plan as a table, one row an AMI or orphan, what goes first."""
        import pandas as pd

        rows = [
            {
                "action": one.action,
                "kind": one.kind,
                "resource_id": one.resource_id,
                "name": one.name,
                "image": one.image,
                "region": one.region,
                "created_at": one.created_at,
                "size_gib": one.size_gib,
                "stored_bytes": one.stored_bytes,
                "reasons": "; ".join(one.reasons),
                "snapshots": ", ".join(one.snapshots),
                "kept_snapshots": "; ".join(f"{name}: {why}" for name, why in one.kept_snapshots),
                "fingerprint": one.fingerprint,
            }
            for one in sorted(self.decisions, key=lambda one: not one.goes)
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"stored_bytes": "Int64"})

    def show(self, *, going: bool, most: int = 200) -> display.Shown:
        """Return what goes, or what stays, as people read it: so many rows at most; `frame` has all."""
        chosen = [one for one in self.decisions if one.goes == going]
        rows = [
            [
                *([VERBS[one.action]] if going else []),
                one.resource_id,
                one.name,
                one.region,
                display.moment(one.created_at)[:10],
                _size(one),
                "; ".join([*one.reasons, *(f"{name} stays: {why}" for name, why in one.kept_snapshots)]),
                *([len(one.snapshots) or ""] if going else []),
            ]
            for one in chosen[:most]
        ]
        columns = ["AMI or snapshot", "name", "region", "made", "stored", "why"]
        columns = ["what", *columns, "snapshots"] if going else columns
        words = ("goes", "go") if going else ("stays", "stay")
        title = counted(len(chosen), *words) if chosen else ""
        title += f"; the first {most} of them, plan.csv has all" if len(chosen) > most else ""
        nothing = "Nothing goes." if going else "Nothing stays."
        return display.shown(columns, rows, right=("stored", "snapshots"), title=title, nothing=nothing)

    def lines(self) -> list[tuple[str, str]]:
        """Return the plan in short: what, and how many."""
        counts = {action: [one for one in self.decisions if one.action == action] for action in VERBS}
        lines = []
        for action, found in counts.items():
            if found:
                lines.append((VERBS[action], f"{_what(found)}, {_sizes(found)}"))
        lines += [(f"{region}", f"not looked at: {error}") for region, error in self.unread.items()]
        if self.going:
            lines.append(("fingerprint", self.fingerprint))
        if self.dry_run and self.going:
            lines.append(("dry run", "nothing of this will be done"))
        return lines

    def __str__(self) -> str:
        return "\n".join([self._short(), *(line(f"  {_line(one)}") for one in self.going)])

    def _short(self) -> str:
        rows = [f"  {name:<15} {text}" for name, text in self.lines()]
        return "\n".join(map(line, [self._title(), *rows]))

    def _title(self) -> str:
        return f"{self.work.capitalize()} in {', '.join(self.regions)}, account {self.account}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 (IPython's protocol)
        printer.text(self._short())  # a notebook shows what goes right below

    def _repr_html_(self) -> str:
        return display.html_table(self.lines(), caption=self._title())


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a plan.

    Attributes
    ----------
    plan
        Which one.
    outcomes
        One for each AMI and orphan that had to go, in the order in which they came; none of a dry run.
    unrecorded
        Why the run stopped early: an irreversible act could not be announced on the disk.
    """

    plan: Plan
    outcomes: tuple[Outcome, ...]
    unrecorded: errors.UnrecordedActError | None = None

    @property
    def trouble(self) -> tuple[Outcome, ...]:
        """What did not come as planned, also of what was done."""
        return tuple(one for one in self.outcomes if one.outcome not in DONE or one.lacking)

    def frame(self) -> pd.DataFrame:
        """Return one row a region: how many were planned, retired, deleted, restored, and what went wrong."""
        import pandas as pd

        rows = []
        for region in self.plan.regions:
            here = [one for one in self.outcomes if one.decision.region == region]
            counts = {name: sum(one.outcome == name for one in here) for name in OUTCOMES}
            wrong = [str(self.plan.unread[region])] if region in self.plan.unread else []
            wrong += [f"{one.decision.resource_id}: {one.words}" for one in self.trouble if one in here]
            planned = sum(one.region == region for one in self.plan.going)
            kept = sum(one.region == region and not one.goes for one in self.plan.decisions)
            rows.append(
                {"region": region, "planned": planned, **counts, "kept": kept, "why": "; ".join(wrong)}
            )
        return pd.DataFrame(rows, columns=["region", "planned", *OUTCOMES, "kept", "why"])

    def show(self) -> display.Shown:
        """Return the outcome by region as people read it."""
        frame = self.frame()
        rows = [
            [value or "" if name not in ("region", "planned") else value for name, value in row.items()]
            for row in frame.to_dict("records")
        ]
        columns = [str(name) for name in frame.columns]
        return display.shown(columns, rows, right=columns[1:-1])

    def show_each(self) -> display.Shown:
        """Return what became of each AMI and orphan as people read it."""
        rows = [
            [one.decision.resource_id, one.decision.name, one.decision.region, one.outcome, one.words]
            for one in self.outcomes
        ]
        columns = ("AMI or snapshot", "name", "region", "outcome", "detail")
        nothing = "Nothing was done: it is a dry run." if self.plan.dry_run else "There was nothing to do."
        return display.shown(columns, rows, nothing=nothing)

    def __str__(self) -> str:
        return str(self.show())


COLUMNS = {
    "action": "keep, retire, delete or restore",
    "kind": "ami or snapshot (an orphan)",
    "resource_id": "its identifier",
    "name": "its name",
    "image": "tag vmsnix:image",
    "region": "AWS region",
    "created_at": "when it was made, UTC",
    "size_gib": "size of its volumes, GiB",
    "stored_bytes": "bytes that its snapshots hold and that are billed, where AWS tells them",
    "reasons": "why",
    "snapshots": "snapshots that go with an AMI",
    "kept_snapshots": "snapshots of an AMI that stay, and why",
    "fingerprint": "of state and evidence",
}
"""Columns of `Plan.frame` and their meaning."""

OUTCOMES = ("retired", "deleted", "restored", "changed", "protected", "skipped", "failed")


def _what(some: Sequence[Decision]) -> str:
    """Return how many AMIs and how many snapshots without one these are."""
    amis = sum(one.kind == "ami" for one in some)
    parts = [(amis, "AMI"), (len(some) - amis, "orphaned snapshot")]
    return " and ".join(counted(number, word) for number, word in parts if number)


def _size(one: Decision) -> str:
    """Return what is stored, which is what costs; else the size of the volumes, marked so."""
    if one.stored_bytes is None:
        return f"{one.size_gib} GiB volume"
    return display.size(one.stored_bytes)


def _sizes(decisions: list[Decision]) -> str:
    known = [one.stored_bytes for one in decisions if one.stored_bytes is not None]
    unknown = [one.size_gib for one in decisions if one.stored_bytes is None]
    parts = [f"{display.size(sum(known))} stored"] if known else []
    parts += [f"{sum(unknown)} GiB of volumes whose stored size AWS does not tell"] if unknown else []
    return ", ".join(parts)


def _line(one: Decision) -> str:
    with_it = f", with {', '.join(one.snapshots)}" if one.snapshots else ""
    what = f"{VERBS[one.action]:<15} {one.resource_id} {one.name} in {one.region}{with_it}"
    return f"{what}: {'; '.join(one.reasons)}"


# What ``result.json`` and ``plan.csv`` say of a retirement, also of one that was interrupted.


Status = Literal["done", "partly", "failed", "interrupted"]


def verdict(result: Result) -> tuple[Status, list[str]]:
    """Return what became of the whole, and what is not as planned."""
    plan, wrong = result.plan, [str(error) for error in result.plan.unread.values()]
    wrong += [f"{one.decision.resource_id}: {one.words}" for one in result.trouble]
    # Where one region was read and had nothing to do, that is done, too.
    none = len(plan.unread) == len(plan.regions) or bool(
        result.outcomes and all(one.outcome not in DONE for one in result.outcomes)
    )
    return ("failed" if none and result.unrecorded is None else "partly") if wrong else "done", wrong


def write(result: Result, *, interrupted: bool = False) -> tuple[Status, list[str]]:
    """Write both, and return what became of the whole and what is not as planned.

    Parameters
    ----------
    result
        What became of each.
    interrupted
        Whether somebody asked the run to stop.
    """
    plan = result.plan
    status, wrong = verdict(result)
    counts = {name: sum(one.outcome == name for one in result.outcomes) for name in OUTCOMES}
    try:
        path: Path | None = (file := plan.run.folder / "plan.csv")
        write_csv(plan.frame(), file)
    except OSError as error:  # what was done is told nevertheless
        path, wrong = None, [*wrong, f"plan.csv could not be written: {error}."]
        status = "partly" if status == "done" else status
    write_result(
        plan.run,
        {
            "status": "interrupted" if interrupted else status,
            "dry_run": plan.dry_run,
            "account": plan.account,
            "regions": list(plan.regions),
            "plan": path,
            "fingerprint": plan.fingerprint,
            "going": [one.resource_id for one in plan.going],
            "kept": sum(not one.goes for one in plan.decisions),
            "trouble": wrong,
            **counts,
            "outcomes": [one.plain() for one in result.outcomes],
        },
    )
    return status, wrong
