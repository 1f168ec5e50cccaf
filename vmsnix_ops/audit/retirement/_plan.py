"""The plan of a retirement, how it is carried out, and what became of it."""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import display, errors
from vmsnix_ops.audit import region as reading
from vmsnix_ops.audit.retirement.decisions import (
    Decision,
    Work,
    ami_facts,
    read_and_decide,
    snapshot_facts,
)
from vmsnix_ops.aws import images, imports, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.references import References
from vmsnix_ops.progress import counted
from vmsnix_ops.records import acts, history
from vmsnix_ops.records.result import Result, saving
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load
from vmsnix_ops.text import write_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.audit.region import Place
    from vmsnix_ops.audit.retirement.decisions import Rules
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.snapshots import Snapshot
    from vmsnix_ops.outcomes import RunStatus
    from vmsnix_ops.progress import Progress
    from vmsnix_ops.records.run_context import RunContext


VERBS = {"retire": "retire", "delete": "remove for good", "restore": "restore", "keep": "keep"}
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
DONE = frozenset({"retired", "deleted", "restored"})


@dataclass(frozen=True, slots=True)
class RetirementPlan(display.Displayed):
    """What will be retired, deleted, restored or kept, and why. Nothing has been changed.

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

    def apply(self) -> RetirementResult:
        """Do what the plan says, and return the outcome of each AMI and orphan. A dry run does nothing.

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
            return RetirementResult(self, ())
        self._check_confirmed()
        try:
            outcomes, unrecorded = apply(self)
            return RetirementResult(self, outcomes, unrecorded)
        except InterruptedInBetween as stopped:
            result = RetirementResult(self, stopped.outcomes, interrupted=True)
            result.save()
            done = sum(one.outcome in DONE for one in result.outcomes)
            raise errors.InterruptedRunError(
                f"The retirement was interrupted: {done} of {len(self.going)} done.",
                why=f"{stopped.at.resource_id} in {stopped.at.region} was under way.",
                fix="result.json tells what became of each. Make a new plan to go on: it finds the rest, "
                "and what is half done.",
            ) from stopped

    def look_again(self) -> tuple[dict[str, Decision], dict[str, errors.VmsnixError]]:
        """Decide anew about what goes, by all regions; see `plan`.

        Also regions in which nothing goes are looked at: what is used there may keep a copy elsewhere.
        """
        only = frozenset(one.resource_id for one in self.going)
        decisions, unread = read_and_decide(
            self.places, self.work, self.rules, self.now, self.prefix, only=only
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
                fix="Look at it, then confirm that one.",
            )
        given = f"Confirm is {self.confirm!r}." if self.confirm else "Dry_run is off, and confirm is empty."
        raise errors.ParameterError(
            f"{_what(self.going)} would go, and nobody confirmed it.",
            why=given,
            fix=f"Look at the plan, then give as confirm its fingerprint ({self.fingerprint}), their number "
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

    def facts(self) -> list[tuple[str, str]]:
        """Return the plan in short: what, and how many."""
        counts = {action: [one for one in self.decisions if one.action == action] for action in VERBS}
        lines = []
        for action, found in counts.items():
            if found:
                lines.append((VERBS[action], f"{_what(found)}, {_sizes(found)}"))
        lines += [(f"{region}", f"not looked at: {error}") for region, error in self.unread.items()]
        if self.work == "retire":
            lines.append(("policy", str(self.rules)))
        if self.going:
            lines.append(("fingerprint", self.fingerprint))
        if self.dry_run and self.going:
            lines.append(("dry run", "nothing of this will be done"))
        return lines

    def table(self) -> display.Shown | None:
        """Return what there is to do, for people."""
        return self.show(going=True)

    @property
    def title(self) -> str:
        """One line."""
        return f"{self.work.capitalize()} in {', '.join(self.regions)}, account {self.account}"


@dataclass(frozen=True, slots=True)
class RetirementResult(Result):
    """The outcome of a retirement, by region and by AMI.

    Attributes
    ----------
    plan
        Which one.
    outcomes
        One for each AMI and orphan that had to go, in the order in which they came; none of a dry run.
    unrecorded
        Why the run stopped early: an irreversible act could not be announced on the disk.
    interrupted
        Whether somebody asked the run to stop.
    """

    plan: RetirementPlan
    outcomes: tuple[Outcome, ...]
    unrecorded: errors.UnrecordedActError | None = None
    interrupted: bool = False

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.plan.run

    @property
    def error(self) -> errors.VmsnixError | None:
        """What was not done: a `PartialError`, or the first error when nothing at all was done."""
        return _error(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it: what went, and what did not."""
        plan = self.plan
        status, wrong = verdict(self)
        counts = {name: sum(one.outcome == name for one in self.outcomes) for name in OUTCOMES}
        return {
            "status": "cancelled" if self.interrupted else status,
            "dry_run": plan.dry_run,
            "account": plan.account,
            "regions": list(plan.regions),
            "plan": path if (path := plan.run.folder / "plan.csv").is_file() else None,
            "fingerprint": plan.fingerprint,
            "going": [one.resource_id for one in plan.going],
            "kept": sum(not one.goes for one in plan.decisions),
            "trouble": wrong,
            **counts,
            "outcomes": [one.plain() for one in self.outcomes],
        }

    def _write_files(self, folder: Path) -> None:
        with saving(folder / "plan.csv"):
            write_csv(self.plan.frame(), folder / "plan.csv")

    @property
    def title(self) -> str:
        """One line."""
        return self.plan.title

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

    def table(self) -> display.Shown:
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
    "fingerprint": "of state and references",
}
"""Columns of `RetirementPlan.frame` and their meaning."""

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


# What ``result.json`` and ``plan.csv`` say of a retirement, also of one that was interrupted.


def verdict(result: RetirementResult) -> tuple[RunStatus, list[str]]:
    """Return what became of the whole, and what is not as planned."""
    plan, wrong = result.plan, [str(error) for error in result.plan.unread.values()]
    wrong += [f"{one.decision.resource_id}: {one.words}" for one in result.trouble]
    # Where one region was read and had nothing to do, that is done, too.
    none = len(plan.unread) == len(plan.regions) or bool(
        result.outcomes and all(one.outcome not in DONE for one in result.outcomes)
    )
    return ("failed" if none and result.unrecorded is None else "partial") if wrong else "done", wrong


def _error(result: RetirementResult) -> errors.VmsnixError | None:
    """Return what was not done as an error."""
    plan, (status, wrong) = result.plan, verdict(result)
    if not wrong:
        return _kept(plan)
    none = status == "failed" and result.unrecorded is None
    if none and plan.unread:
        return next(iter(plan.unread.values()))
    if result.unrecorded is not None:
        done = [f"{one.outcome} {one.decision.resource_id}" for one in result.outcomes if one.outcome in DONE]
        begun = next((one.decision for one in reversed(result.outcomes) if one.outcome == "failed"), None)
        if begun is not None and begun.action == "retire" and result.unrecorded.announced:
            # It has the mark, and may have lost permissions already: a promotion would refuse it.
            done.append(f"a part of the retirement of {begun.resource_id}")
        return errors.UnrecordedActError(
            f"The run stopped early. Done: {', '.join(done) or 'nothing'}.",
            why=f"{result.unrecorded.what} {result.unrecorded.why}",
            fix=result.unrecorded.fix,
        )
    kind = errors.VmsnixError if none else errors.PartialError
    whole = len(plan.regions) + len(plan.going)
    return kind(
        f"{len(wrong)} of {whole} regions, AMIs and snapshots did not come as planned.",
        why=" ".join(wrong[:3]),
        fix="Fix it and run the same command again: it does the rest.",
    )


def _kept(plan: RetirementPlan) -> errors.VmsnixError | None:
    """Return an error when AMIs that were asked for by their ids are kept: some of them, or all."""
    going = {one.resource_id for one in plan.going}
    kept = [
        one
        for one in plan.decisions
        if one.resource_id in plan.rules.amis
        and one.resource_id not in going
        and dict(one.facts).get("state") != "disabled"  # retired already
    ]
    if plan.dry_run or plan.work != "retire" or not kept:
        return None
    kind = errors.PartialError if going else errors.RunFailedError
    return kind(
        f"{len(kept)} of {counted(len(plan.rules.amis), 'AMI')} in amis cannot be retired.",
        why=" ".join(f"{one.resource_id}: {'; '.join(one.reasons)}." for one in kept[:3]),
        fix="Change the rule that keeps them, or leave them out of amis.",
    )


# Do what a plan of a retirement says: one AMI after the other, each looked at once more right before.
#
# Everything is done in an order that may stop anywhere. What a run leaves half done, the next plan finds: an
# AMI by its tags and its state, a snapshot whose AMI is gone by its tags.
#
# Other jobs may run at the same time. An AMI is marked first, then everything that may use it is read again,
# and the mark is taken back if something appeared; `vmsnix_ops.aws.retiring` says why that is enough. Before
# anything is changed that cannot be undone, a line says so on the disk (`vmsnix_ops.records.acts`); without
# it the run stops there.
#
# What was done is told, also where the tables cannot be written: that is trouble, and what can be undone goes
# on, because the tags know it, too. Nothing more is removed then; nobody would find out what was.

What = Literal["retired", "deleted", "restored", "changed", "protected", "skipped", "failed"]
GONE = "deregistered"
TOLD = 5
UNWRITTEN = "what went before could not be written down, and nothing is removed without that"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one AMI or orphan.

    Attributes
    ----------
    decision
        What was planned.
    outcome
        ``"retired"``, ``"deleted"`` or ``"restored"``; ``"changed"`` (it is not what it was, and was left
        alone), ``"protected"`` (from deregistration: left alone), ``"skipped"`` (not removed, because the
        tables cannot be written) or ``"failed"``.
    detail
        Why, and what stays as planned.
    lacking
        What of it is not as planned although it was done: a snapshot that could not be removed, a row that
        could not be written.
    """

    decision: Decision
    outcome: What
    detail: str = ""
    lacking: str = ""

    @property
    def words(self) -> str:
        """All there is to say of it."""
        return "; ".join(part for part in (self.detail, self.lacking) if part)

    def plain(self) -> dict[str, str]:
        """Return it as ``result.json`` has it."""
        one = self.decision
        return {
            "kind": one.kind,
            "resource_id": one.resource_id,
            "region": one.region,
            "outcome": self.outcome,
            "detail": self.detail,
            "lacking": self.lacking,
        }


class InterruptedInBetween(Exception):  # noqa: N818 (becomes an InterruptedRunError)
    """Somebody asked to stop while one of several was under way; what became of all of them."""

    def __init__(self, plan: RetirementPlan, done: Sequence[Outcome]) -> None:
        super().__init__("cancelled")
        self.at, *rest = plan.going[len(done) :]
        self.outcomes: tuple[Outcome, ...] = (
            *done,
            Outcome(self.at, "failed", "interrupted while it was under way"),
            *(Outcome(one, "skipped", "the run was interrupted before its turn") for one in rest),
        )


def apply(plan: RetirementPlan) -> tuple[tuple[Outcome, ...], errors.UnrecordedActError | None]:
    """Compare the plan with the account, then do it.

    Returns
    -------
    tuple
        What became of each, and why the run stopped early if it did: an irreversible act could not be
        announced on the disk.

    Raises
    ------
    vmsnix_ops.errors.StalePlanError
        Anything that the plan would touch has changed: nothing was done.
    InterruptedInBetween
        The operator asked to stop.
    """
    unread = _check_still_holds(plan)
    tables, unwritten = open_tables(load()), False
    outcomes: list[Outcome] = []
    stopped: errors.UnrecordedActError | None = None
    with plan.progress.step(plan.work, total=len(plan.going)) as step:
        for one in plan.going:
            if stopped is not None:
                outcomes.append(Outcome(one, "skipped", f"the run stopped before its turn. {stopped}"))
            elif one.region in unread:
                outcomes.append(Outcome(one, "failed", str(unread[one.region])))
            elif unwritten and one.action == "delete":
                outcomes.append(Outcome(one, "skipped", UNWRITTEN))
            else:
                step.message(f"{one.action} {one.resource_id} in {one.region}")
                doing = _Doing(plan, one, tables)
                try:
                    with acts.recording(plan.run.folder, plan.run.run_id):
                        outcomes.append(doing.do())
                except KeyboardInterrupt as error:
                    raise InterruptedInBetween(plan, outcomes) from error
                unwritten = unwritten or doing.unwritten is not None
                stopped = doing.stopped
            step.advance(1)
    return tuple(outcomes), stopped


def _check_still_holds(plan: RetirementPlan) -> Mapping[str, errors.VmsnixError]:
    """Return the regions that can no longer be looked at: nothing may be done there."""
    now, unread = plan.look_again()
    changed = []
    for one in plan.going:
        differences = () if one.region in unread else one.changes(now.get(one.resource_id))
        if differences:
            changed.append(f"{one.resource_id}: {', '.join(differences)}")
    if changed:
        more = f" And {len(changed) - TOLD} more." if len(changed) > TOLD else ""
        raise errors.StalePlanError(
            f"The plan of {plan.now:%Y-%m-%d %H:%M} UTC no longer holds; nothing was done.",
            why=". ".join(changed[:TOLD]) + "." + more,
            fix="Make a new plan and look at it.",
        )
    return unread


@dataclass(frozen=True, slots=True)
class _SnapshotNow:
    """A snapshot with its facts, also without the tag of a deletion, and the AMIs that have it."""

    snapshot: Snapshot | None
    facts: Mapping[str, str] = field(default_factory=dict)
    plain: Mapping[str, str] = field(default_factory=dict)
    holders: tuple[str, ...] = ()

    def changed(self, before: Mapping[str, str], after: Mapping[str, str]) -> str:
        """Return why it is left alone, in words; empty where nothing has changed."""
        if self.snapshot is None:
            return "it is gone"
        differences = _differences(before, after)
        if differences or self.holders:
            return f"left alone: {differences or f'{self.holders[0]} holds it'}"
        return ""


class _Doing:
    """Does what is planned for one AMI or snapshot, and writes it down."""

    def __init__(self, plan: RetirementPlan, one: Decision, tables: Tables) -> None:
        self.plan, self.one, self.tables = plan, one, tables
        self.place: Place = plan.places[one.region]
        self.ec2 = self.place.ec2
        self.unwritten: errors.VmsnixError | None = None
        self.stopped: errors.UnrecordedActError | None = None
        # A plan may be a notebook's of last week: grace counts from when it is done.
        self.now = max(plan.now, datetime.now(UTC))

    def do(self) -> Outcome:
        try:
            if self.one.action != "restore":
                # Announced before the first mark, so that a full disk leaves nothing half done.
                acts.announce(f"retire-amis:{self.one.action}", self.one.resource_id, self.one.region)
            outcome = self._snapshot() if self.one.kind == "snapshot" else self._ami()
        except errors.UnrecordedActError as error:
            self.stopped = error
            outcome = Outcome(self.one, "failed", str(error))
        except errors.VmsnixError as error:  # also a tag that somebody made unreadable
            outcome = Outcome(self.one, "failed", str(error))
        if self.unwritten is None:
            return outcome
        told = f"not written down: {self.unwritten}"
        return replace(outcome, lacking="; ".join(part for part in (outcome.lacking, told) if part))

    @property
    def run_id(self) -> str:
        return self.plan.run.run_id

    def _ami(self) -> Outcome:
        one = self.one
        ami = retiring.look(self.ec2, one.resource_id)
        if ami is None:
            return Outcome(one, "changed", "it is gone")
        references = References(one.region, {})  # nobody's use matters to what is restored
        if one.action != "restore":
            references = self._references(ami)
        differences = _differences(dict(one.facts), dict(ami_facts(ami, references)))
        if differences:
            return Outcome(one, "changed", f"left alone: {differences}")
        if one.action == "retire":
            return self._retire(ami, references)
        return self._restore(ami) if one.action == "restore" else self._delete(ami, references)

    def _references(self, ami: Ami) -> References:
        """Return who uses an AMI, as it is this moment."""
        held = snapshots.find(self.ec2, ami.snapshot_ids).values()
        own = [each.snapshot_id for each in held if each.account == self.place.account]
        return reading.right_before(self.place, amis={ami.ami_id: own})

    def _appeared(self, before: Ami, references: References, plain: Callable[[Ami], Ami]) -> str:
        """Return what has changed since our own tag was written on an AMI, in words; empty for nothing.

        `plain` takes away the tags that may differ.
        """
        now = retiring.look(self.ec2, before.ami_id)
        if now is None:
            return "it is gone"
        return _differences(
            dict(ami_facts(plain(before), references)), dict(ami_facts(plain(now), self._references(now)))
        )

    def _retire(self, ami: Ami, references: References) -> Outcome:
        grace = timedelta(days=self.plan.rules.retention_days)
        noted = retiring.note(self.ec2, ami, run_id=self.run_id, at=self.now, grace=grace)
        if ami.state != "disabled":  # nobody can begin to use what is disabled
            try:
                retiring.announce(self.ec2, ami, noted)
                appeared = self._appeared(ami, references, retiring.without_marks) or self._used_now(ami)
            except (Exception, KeyboardInterrupt):
                with suppress(errors.AwsError):
                    retiring.take_back(self.ec2, ami, noted)
                raise
            if appeared:
                retiring.take_back(self.ec2, ami, noted)
                return Outcome(self.one, "changed", f"left alone: {appeared}")
        retiring.retire(self.ec2, ami, self.one.snapshots, noted)
        lost = retiring.still_marked(self.ec2, ami.ami_id, noted)
        used = "" if lost or ami.state == "disabled" else self._used_now(ami)  # by a run that was killed
        if used or lost == retiring.RESTORED:
            # What the tags said is known here still; a restoration may have run before we disabled it.
            own = replace(ami, tags={**ami.tags, **noted.tags()})
            retiring.restore(self.ec2, own, self.one.snapshots, at=self.now)
        if used or lost:
            return Outcome(self.one, "changed", f"not retired: {used or lost}")
        self._record(
            "retired",
            shared_with=list(noted.shared_with),
            deprecated_before=noted.deprecated_before,
            retained_until=noted.retained_until,
        )
        self._record_ami(ami)
        return Outcome(self.one, "retired", f"can be restored until {noted.retained_until:%Y-%m-%d}")

    def _used_now(self, ami: Ami) -> str:
        """Return which promotions and smoke tests have begun with an AMI since it was marked, in words.

        They read the mark after they wrote; here is read what they write, several times for some moments.
        """
        for _ in retiring.looks():
            names = reading.used_now(self.place, self.plan.prefix, ami.ami_id)
            if names:
                return f"in use: {', '.join(names)}"
        return ""

    def _restore(self, ami: Ami) -> Outcome:
        known = retiring.mark(ami.tags)
        holder = retiring.claim(self.ec2, ami.ami_id, tagging.RESTORING, self.run_id)
        if holder:
            return self._held(holder, tagging.DELETING)
        marked = retiring.look(self.ec2, ami.ami_id)
        if marked is None:
            return Outcome(self.one, "changed", "it is gone")
        shared = retiring.restore(self.ec2, marked, self.one.snapshots, at=self.now)
        stays = known is not None and known.state_before == "disabled"
        lost = self._not_restored(ami.ami_id, "disabled" if stays else "available")
        if lost:
            # Somebody disabled it after we enabled it. Without its tags nobody could restore it again.
            tags = {key: value for key, value in ami.tags.items() if retiring.is_mark(key)}
            now = retiring.look(self.ec2, ami.ami_id)
            if now is not None and now.state == "disabled" and not retiring.marked_by(now):
                retiring.tag(self.ec2, [ami.ami_id], tags)
            return Outcome(self.one, "failed", f"{lost}: make a new plan and restore it again")
        self._record("restored", shared_with=list(shared.names()))
        self._record_ami(ami)
        how = "disabled, as it was before" if stays else f"shared with {shared}"
        return Outcome(self.one, "restored", how)

    def _not_restored(self, ami_id: str, state: str) -> str:
        """Return why an AMI that was restored is not so any more, in words; empty when it is."""
        found = ""
        for _ in retiring.looks():
            seen = retiring.look(self.ec2, ami_id)
            if seen is None:
                return "it was deregistered at the same time"
            who = retiring.marked_by(seen)
            if who:
                found = f"{who} retired it at the same time"
            else:
                found = "" if seen.state == state else f"it is {seen.state}"
        return found  # a first read may be some moments old

    def _held(self, holder: str, key: str) -> Outcome:
        """Return the outcome of what another run deletes, or restores, at this moment."""
        one = self.one
        return Outcome(
            one, "changed", f"left alone: {retiring.claimed(one.resource_id, key, holder, one.region)}"
        )

    def _delete(self, ami: Ami, references: References) -> Outcome:
        holder = retiring.claim(self.ec2, ami.ami_id, tagging.DELETING, self.run_id)
        if holder:
            return self._held(holder, tagging.RESTORING)
        try:
            appeared = self._appeared(ami, references, retiring.without_claim)
            protected = not appeared and retiring.deregister(self.ec2, ami.ami_id) == "protected"
        except (Exception, KeyboardInterrupt):
            self._disclaim(ami.ami_id)
            raise
        if appeared or protected:
            self._disclaim(ami.ami_id)
        if appeared:
            return Outcome(self.one, "changed", f"left alone: {appeared}")
        if protected:
            lift = "aws ec2 disable-image-deregistration-protection"
            how = f"{lift} --region {self.one.region} --image-id {ami.ami_id}"
            return Outcome(
                self.one, "protected", f"it is protected from deregistration; lift that first: {how}"
            )
        self._record("deleted")
        self._record_ami(ami, state=GONE)
        stays, lacking = [f"{name} stays: {why}" for name, why in self.one.kept_snapshots], []
        for snapshot_id in self.one.snapshots:
            if self.unwritten is not None or self.stopped is not None:
                lacking.append(f"{snapshot_id} stays: {self.stopped or UNWRITTEN}")
                continue
            try:
                why = ", ".join(str(one) for one in references.names(snapshot_id))
                why = why or ", ".join(retiring.remove_snapshot(self.ec2, snapshot_id, of=ami.ami_id))
            except errors.UnrecordedActError as error:
                self.stopped = error
                lacking.append(f"{snapshot_id} stays: {error}")
                continue
            except errors.AwsError as error:  # the others go nevertheless; the next plan finds this one
                lacking.append(f"{snapshot_id} stays: {error}")
                continue
            if why:
                stays.append(f"{snapshot_id} stays: {why} needs it")
            else:
                self._record("deleted", kind="snapshot", resource_id=snapshot_id, ami_id=ami.ami_id)
        return Outcome(self.one, "deleted", "; ".join(stays), "; ".join(lacking))

    def _disclaim(self, resource: str) -> None:
        """Say no more that this run deletes something; the next deletion's tag replaces one that stays."""
        with suppress(errors.AwsError):
            retiring.disclaim(self.ec2, resource, tagging.DELETING)

    def _snapshot(self) -> Outcome:
        one, snapshot_id = self.one, self.one.resource_id
        seen = self._snapshot_now()
        changed = seen.changed(dict(one.facts), seen.facts)
        if seen.snapshot is None or changed:
            return Outcome(one, "changed", changed)
        if one.action == "restore":
            holder = retiring.claim(self.ec2, snapshot_id, tagging.RESTORING, self.run_id)
            if holder:
                return self._held(holder, tagging.DELETING)
            retiring.restore_snapshot(self.ec2, snapshot_id)
            self._record("restored")
            return Outcome(one, "restored")
        if one.action == "delete":
            return self._delete_snapshot(seen.snapshot, seen.plain)
        until = self.now + timedelta(days=self.plan.rules.retention_days)
        noted = retiring.Mark(self.now, until, self.run_id)
        noted = retiring.retire_snapshot(self.ec2, snapshot_id, noted)
        self._record("retired", shared_with=list(noted.shared_with), retained_until=until)
        return Outcome(one, "retired", f"is kept until {until:%Y-%m-%d}")

    def _snapshot_now(self) -> _SnapshotNow:
        """Return what is known of a snapshot at this moment."""
        one, snapshot_id = self.one, self.one.resource_id
        snapshot = snapshots.find(self.ec2, [snapshot_id]).get(snapshot_id)
        if snapshot is None:
            return _SnapshotNow(None)
        references, importing = References(one.region, {}), frozenset[str]()
        if one.action != "restore":
            references = reading.right_before(self.place, loose=[snapshot_id])
            importing = reading.importing(imports.listed(self.ec2))
        unclaimed = {key: value for key, value in snapshot.tags.items() if key != tagging.DELETING}
        return _SnapshotNow(
            snapshot,
            dict(snapshot_facts(snapshot, references, importing)),
            dict(snapshot_facts(replace(snapshot, tags=unclaimed), references, importing)),
            tuple(images.of_snapshot(self.ec2, snapshot_id)),
        )

    def _delete_snapshot(self, snapshot: Snapshot, before: Mapping[str, str]) -> Outcome:
        one, snapshot_id = self.one, snapshot.snapshot_id
        holder = retiring.claim(self.ec2, snapshot_id, tagging.DELETING, self.run_id)
        if holder:
            return self._held(holder, tagging.RESTORING)
        try:
            seen = self._snapshot_now()
            changed = seen.changed(before, seen.plain)
            holders = () if changed else retiring.remove_snapshot(self.ec2, snapshot_id)
        except (Exception, KeyboardInterrupt):
            self._disclaim(snapshot_id)
            raise
        if changed or holders:
            self._disclaim(snapshot_id)
            return Outcome(one, "changed", changed or f"left alone: {holders[0]} holds it")
        known = retiring.mark(snapshot.tags)
        self._record("deleted", ami_id=(known.with_ami if known else "") or None)
        return Outcome(one, "deleted")

    def _record(self, action: str, **more: Any) -> None:
        """Write one row of the table `retirements`; a row that was written before is not doubled."""
        one = self.one
        row = {
            "run_id": self.plan.run.run_id,
            "done_at": datetime.now(UTC),
            "account": self.plan.account,
            "region": one.region,
            "kind": one.kind,
            "resource_id": one.resource_id,
            "action": action,
            "name": one.name or None,
            "image": one.image or None,
            "digest": one.digest or None,
            "reasons": list(one.reasons),
            "size_gib": one.size_gib if "resource_id" not in more else None,
            "stored_bytes": one.stored_bytes if "resource_id" not in more else None,
            **more,
        }
        once = f"{self.plan.run.run_id}/{action}/{row['resource_id']}"
        with self._writing():
            self.tables.append("retirements", [row], once=once)

    def _record_ami(self, ami: Ami, *, state: str = "") -> None:
        """Write the AMI's new state into the table `amis`."""
        with self._writing():
            now = ami if state else retiring.look(self.ec2, ami.ami_id) or ami
            known = history.amis(self.tables, ami_id=ami.ami_id, region=ami.region)
            via = next((value for value in known["via"] if isinstance(value, str)), None)
            row = images.row(now, recorded_at=datetime.now(UTC), source="retire", via=via)
            self.tables.append("amis", [{**row, "state": state or now.state}])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep what hinders the record of something that is done: it must not hide that it is."""
        try:
            yield
        except (errors.RecordsError, errors.AwsError) as error:
            self.unwritten = self.unwritten or error


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    return ", ".join(_each(before, after))


def _each(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for name, value in after.items():
        if before.get(name, "") != value:
            yield f"{name} was {before.get(name) or 'nothing'} and is {value or 'nothing'}"
