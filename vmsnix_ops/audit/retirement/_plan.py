"""The plan of a retirement, its result, and how it is applied."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors
from vmsnix_ops.audit import region as reading
from vmsnix_ops.audit.retirement.decisions import (
    Decision,
    PlanAction,
    ami_facts,
    read_and_decide,
    snapshot_facts,
    tags_as_text,
)
from vmsnix_ops.aws import images, imports, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.references import References
from vmsnix_ops.aws.retiring import RetirementTags
from vmsnix_ops.outcomes import WORKED
from vmsnix_ops.progress import counted
from vmsnix_ops.records import acts, history
from vmsnix_ops.records.fingerprints import (
    FINGERPRINT,
    FingerprintedPlan,
    check_plan,
    differences,
    record_plan,
)
from vmsnix_ops.records.result import Result, saving
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load
from vmsnix_ops.text import write_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.audit.region import RegionContext
    from vmsnix_ops.audit.retirement.decisions import RetirementRules
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.snapshots import Snapshot
    from vmsnix_ops.outcomes import RunStatus, StepOutcome
    from vmsnix_ops.progress import Progress
    from vmsnix_ops.records.run_context import RunContext


DONE_WORDS = {"retire": "retired", "delete": "deleted", "restore": "restored"}
OUTCOMES: tuple[StepOutcome, ...] = ("changed", "deleted", "skipped", "failed")
"""Outcomes of an AMI or a snapshot when a plan is applied. Retired and restored ones are ``changed``."""


@dataclass(frozen=True, slots=True)
class RetirementPlan(FingerprintedPlan):
    """What to retire, delete, restore or keep, and why. Nothing has been changed."""

    account: str
    regions: tuple[str, ...]
    action: PlanAction
    rules: RetirementRules
    # One for each AMI of the account, and for each snapshot that vmsnix published and no AMI uses.
    decisions: tuple[Decision, ...]
    unread: Mapping[str, errors.VmsnixError]  # regions that could not be read; nothing is done there
    now: datetime  # the time of the plan; ages count from here
    dry_run: bool
    confirm: str  # `apply` requires it without `dry_run`
    expect_plan: str  # fingerprint of the plan that `apply` may carry out, which also confirms it
    run: RunContext = field(repr=False)
    contexts: Mapping[str, RegionContext] = field(repr=False, compare=False)
    progress: Progress = field(repr=False, compare=False)

    @property
    def planned(self) -> tuple[Decision, ...]:
        """What to retire, delete or restore, the oldest first within a region."""
        return tuple(one for one in self.decisions if not one.kept)

    def content(self) -> dict[str, str]:
        """Return what is planned, its state and its references by name; the reasons change with the time."""
        facts = {"account": self.account, "action": self.action}
        if self.action == "retire":
            facts["retention_days"] = f"{self.rules.retention_days:g}"
        for one in self.planned:
            facts |= {
                f"{one.resource_id} in {one.region}, {name}": text for name, text in one.content().items()
            }
        return facts

    def is_done(self, name: str, before: Mapping[str, str]) -> bool:
        """Return whether a fact is about an AMI or a snapshot that was retired, deleted or restored since."""
        resource = name.rpartition(", ")[0]
        action = before.get(f"{resource}, action")
        one = self._decision(resource)
        if action is None or one is None or not one.kept:
            return action == "delete" and one is None and not self.unread
        retired = any(map(retiring.is_retirement_tag, json.loads(dict(one.facts)["tags"])))
        return action == ("retire" if retired else "restore")

    def _decision(self, subject: str) -> Decision | None:
        return next((one for one in self.decisions if f"{one.resource_id} in {one.region}" == subject), None)

    def _reason(self, subject: str) -> str:
        return "; ".join(one.reasons) if (one := self._decision(subject)) is not None else ""

    def apply(self) -> RetirementResult:
        """Retire, delete and restore as planned, and return the outcomes. A dry run changes nothing.

        Safe to run again after it was killed at any call: a new plan contains what is left to do.

        Raises
        ------
        vmsnix_ops.errors.ParameterError
            The plan is not confirmed.
        vmsnix_ops.errors.StalePlanError
            Something changed since the plan, or since the plan that was confirmed; nothing was done.
        vmsnix_ops.errors.InterruptedRunError
            Ctrl-C; ``result.json`` lists the outcomes.
        """
        facts, tables = self.content(), open_tables(load())
        check_plan(facts, self.expect_plan, tables, is_done=self.is_done, reason=self._reason)
        if self.expect_plan != self.fingerprint:
            record_plan(facts, tables, runbook=self.run.runbook, run_id=self.run.run_id)
        if self.dry_run:
            return RetirementResult(self, tuple(ResourceOutcome(one, "planned") for one in self.planned))
        if not self.planned:
            return RetirementResult(self, ())
        self._check_confirmed()
        try:
            outcomes, stopped_by = _apply(self)
            return RetirementResult(self, outcomes, stopped_by)
        except _Interrupted as stopped:
            result = RetirementResult(self, stopped.outcomes, interrupted=True)
            result.save()
            done = sum(one.outcome in WORKED for one in result.outcomes)
            raise errors.InterruptedRunError(
                f"The retirement was interrupted: {done} of {len(self.planned)} done.",
                why=f"It was working on {stopped.current.resource_id} in {stopped.current.region}.",
                fix="result.json lists the outcomes. To continue, make a new plan: it contains the rest, and "
                "what was done only in part.",
            ) from stopped

    def _check_confirmed(self) -> None:
        count, confirm = len(self.planned), self.confirm.strip()
        if self.expect_plan or confirm in (self.account, str(count)):
            return
        if FINGERPRINT.fullmatch(confirm):
            facts, tables = self.content(), open_tables(load())
            check_plan(facts, confirm, tables, is_done=self.is_done, reason=self._reason, option="--confirm")
            return
        words = [DONE_WORDS[action] for action in dict.fromkeys(one.action for one in self.planned)]
        raise errors.ParameterError(
            f"{_counts(self.planned)} would be {' or '.join(words)}, but the plan is not confirmed.",
            why=f"confirm is {self.confirm!r}." if self.confirm else "dry_run is off and confirm is empty.",
            fix=f"Check the plan, then pass --confirm {self.fingerprint}. Instead of the fingerprint you can "
            f"give the number of resources ({count}) or the account ID ({self.account}).",
        )

    def frame(self) -> pd.DataFrame:
        """Return the plan as a table, one row per AMI or snapshot; what is planned comes first."""
        import pandas as pd

        rows = [
            {
                **{name: getattr(one, name) for name in COLUMNS},
                "reasons": "; ".join(one.reasons),
                "snapshots": ", ".join(one.snapshots),
                "kept_snapshots": "; ".join(f"{name}: {why}" for name, why in one.kept_snapshots),
            }
            for one in sorted(self.decisions, key=lambda one: one.kept)
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"stored_bytes": "Int64"})

    def show_planned(self, *, most: int = 200) -> display.DisplayTable:
        """Return what to retire, delete or restore, for people; `frame` has all rows."""
        rows = [
            [one.action, *row, len(one.snapshots) or "", why]
            for one in self.planned[:most]
            for *row, why in [_row(one)]
        ]
        *names, last = _COLUMNS_SHOWN
        columns = ("action", *names, "snapshots", last)
        return display.make_table(
            columns,
            rows,
            right=("stored", "snapshots"),
            title=_title(len(self.planned), "planned", most),
            nothing="Nothing to retire, delete or restore.",
        )

    def show_kept(self, *, most: int = 200) -> display.DisplayTable:
        """Return what is kept, for people; `frame` has all rows."""
        kept = [one for one in self.decisions if one.kept]
        title = _title(len(kept), "kept", most)
        rows = [_row(one) for one in kept[:most]]
        table = display.make_table(
            _COLUMNS_SHOWN, rows, right=("stored",), title=title, nothing="No AMIs or snapshots are kept."
        )
        return replace(table, brief=_by_reason(kept)) if len(kept) > BRIEF else table

    def facts(self) -> list[tuple[str, str]]:
        """Return the numbers of AMIs and snapshots by action, the policy and the fingerprint."""
        lines = []
        for action in (*DONE_WORDS, "keep"):
            found = [one for one in self.decisions if one.action == action]
            if found:
                lines.append((action, f"{_counts(found)}, {_sizes(found)}"))
        lines += [(region, f"could not be read: {error}") for region, error in self.unread.items()]
        if self.action == "retire":
            lines.append(("policy", str(self.rules)))
        if self.planned:
            lines.append(("fingerprint", self.fingerprint))
        if self.dry_run and self.planned:
            lines.append(("dry run", f"nothing will be changed. {self.how_to_apply}"))
        return lines

    def table(self) -> display.DisplayTable | None:
        """Return what is planned, for people."""
        return self.show_planned()

    @property
    def title(self) -> str:
        """The action, the regions and the account."""
        return f"{self.action.capitalize()} in {', '.join(self.regions)}, account {self.account}"


COLUMNS = {
    "action": "keep, retire, delete or restore",
    "kind": "ami, or snapshot (without an AMI)",
    "resource_id": "identifier of the AMI or snapshot",
    "name": "name of the AMI or snapshot",
    "image": "tag vmsnix:image",
    "region": "AWS region",
    "created_at": "time of its creation, UTC",
    "size_gib": "size of its volumes, GiB",
    "stored_bytes": "size of its snapshots, which AWS bills, bytes; empty if AWS does not report it",
    "reasons": "reasons for the action",
    "snapshots": "snapshots that are retired, deleted or restored with an AMI",
    "kept_snapshots": "snapshots of an AMI that are kept, and why",
    "fingerprint": "of the action, the state and the references",
}
"""Columns of `RetirementPlan.frame` and their meaning."""

_COLUMNS_SHOWN = ("AMI or snapshot", "name", "region", "created", "stored", "why")


BRIEF = 10
"""Most AMIs and snapshots that a terminal and a log list; of more, they show the reasons."""
EXAMPLES = 3  # of each reason
_FIGURES = re.compile(r"[0-9][0-9.,:-]*|/\S+|(?<= of )\S+|(?<=: ).*|'[^']*'")


def _by_reason(kept: Sequence[Decision]) -> str:
    """Return the number of kept AMIs and snapshots for each kind of reason, with some examples."""
    groups: dict[str, list[Decision]] = {}
    for one in kept:
        # Reasons of one kind differ by numbers and names only.
        groups.setdefault(_FIGURES.sub("", one.reasons[0]) if one.reasons else "", []).append(one)
    lines = []
    for found in sorted(groups.values(), key=len, reverse=True):
        names = ", ".join(one.resource_id for one in found[:EXAMPLES])
        more = f" and {len(found) - EXAMPLES:,} more" if len(found) > EXAMPLES else ""
        lines += [
            f"{len(found):>6,}  such as: {'; '.join(found[0].reasons) or '-'}",
            f"        {names}{more}",
        ]
    return "\n".join([*lines, "plan.csv and the report list all with their reasons."])


def _row(one: Decision) -> list[object]:
    why = [*one.reasons, *(f"{name} is kept: {reason}" for name, reason in one.kept_snapshots)]
    # What is stored is what costs; where AWS does not report it, the size of the volumes is shown as such.
    stored = f"{one.size_gib} GiB volume" if one.stored_bytes is None else display.size(one.stored_bytes)
    created = display.moment(one.created_at)[:10]
    return [one.resource_id, one.name, one.region, created, stored, "; ".join(why)]


def _title(count: int, word: str, most: int) -> str:
    if count > most:
        return f"{count} {word}; the first {most} are shown, plan.csv has all"
    return f"{count} {word}" if count else ""


def _counts(decisions: Sequence[Decision]) -> str:
    amis = sum(one.kind == "ami" for one in decisions)
    parts = [(amis, "AMI"), (len(decisions) - amis, "orphan snapshot")]
    return " and ".join(counted(number, word) for number, word in parts if number)


def _sizes(decisions: list[Decision]) -> str:
    known = [one.stored_bytes for one in decisions if one.stored_bytes is not None]
    unknown = [one.size_gib for one in decisions if one.stored_bytes is None]
    parts = [f"{display.size(sum(known))} stored"] if known else []
    parts += [f"{sum(unknown)} GiB of volumes whose stored size AWS does not report"] if unknown else []
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class ResourceOutcome:
    """The outcome of one AMI or snapshot.

    It is ``changed`` (retired or restored), ``deleted``, ``planned`` (a dry run), ``skipped`` (it is not as
    planned, it is protected, or the run stopped before it) or ``failed``.
    """

    decision: Decision
    outcome: StepOutcome
    detail: str = ""  # why, and what is kept as planned
    problem: str = ""  # what is not as planned: a snapshot that was not deleted, a row that was not written

    @property
    def text(self) -> str:
        """Detail and problem as one text."""
        return "; ".join(part for part in (self.detail, self.problem) if part)

    def as_dict(self) -> dict[str, str]:
        """Return it as ``result.json`` contains it."""
        one = self.decision
        return {
            "kind": one.kind,
            "resource_id": one.resource_id,
            "region": one.region,
            "action": one.action,
            "outcome": self.outcome,
            "detail": self.detail,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class RetirementResult(Result):
    """The outcome of a retirement, by region and by AMI."""

    plan: RetirementPlan
    outcomes: tuple[ResourceOutcome, ...]  # one for each AMI and snapshot, in the order of the plan
    stopped_by: errors.UnrecordedActError | None = None  # an irreversible change could not be recorded
    interrupted: bool = False

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.plan.run

    @property
    def incomplete(self) -> tuple[ResourceOutcome, ...]:
        """The outcomes that are not as planned."""
        return tuple(one for one in self.outcomes if one.outcome in ("skipped", "failed") or one.problem)

    def status(self) -> tuple[RunStatus, list[str]]:
        """Return the status of the run, and what is not as planned."""
        wrong = [str(error) for error in self.plan.unread.values()]
        wrong += [f"{one.decision.resource_id}: {one.text}" for one in self.incomplete]
        if not wrong:
            return "done", []
        # A region that was read and has nothing to do counts as done.
        nothing_done = len(self.plan.unread) == len(self.plan.regions) or bool(
            self.outcomes and all(one.outcome in ("skipped", "failed") for one in self.outcomes)
        )
        return "failed" if nothing_done and self.stopped_by is None else "partial", wrong

    @property
    def error(self) -> errors.VmsnixError | None:
        """A `PartialError` if something is not as planned, or the first error if nothing was done."""
        status, wrong = self.status()
        if not wrong:
            return _named_but_kept(self.plan)
        if status == "failed" and self.plan.unread:
            return next(iter(self.plan.unread.values()))
        if self.stopped_by is not None:
            return _stopped_early(self.outcomes, self.stopped_by)
        kind = errors.VmsnixError if status == "failed" else errors.PartialError
        whole = len(self.plan.regions) + len(self.plan.planned)
        return kind(
            f"{len(wrong)} of {whole} regions, AMIs and snapshots are not as planned.",
            why=" ".join(wrong[:3]),
            fix="Fix the cause and run the same command again: it does the rest.",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        plan = self.plan
        status, wrong = self.status()
        return {
            "status": "cancelled" if self.interrupted else status,
            "dry_run": plan.dry_run,
            "account": plan.account,
            "regions": list(plan.regions),
            "plan": path if (path := plan.run.folder / "plan.csv").is_file() else None,
            "plan_fingerprint": plan.fingerprint if plan.planned else None,
            "planned": len(plan.planned),
            "kept": len(plan.decisions) - len(plan.planned),
            "incomplete": wrong,
            **_count(self.outcomes),
            "outcomes": [one.as_dict() for one in self.outcomes],
        }

    def _write_files(self, folder: Path) -> None:
        with saving(folder / "plan.csv"):
            write_csv(self.plan.frame(), folder / "plan.csv")

    @property
    def title(self) -> str:
        """The title of the plan."""
        return self.plan.title + (" (dry run)" if self.plan.dry_run else "")

    def frame(self) -> pd.DataFrame:
        """Return one row per region: numbers planned, kept and by outcome, and what is not as planned."""
        import pandas as pd

        rows = []
        for region in self.plan.regions:
            here = [one for one in self.outcomes if one.decision.region == region]
            wrong = [str(self.plan.unread[region])] if region in self.plan.unread else []
            wrong += [f"{one.decision.resource_id}: {one.text}" for one in self.incomplete if one in here]
            decisions = [one for one in self.plan.decisions if one.region == region]
            rows.append(
                {
                    "region": region,
                    "planned": sum(not one.kept for one in decisions),
                    **_count(here),
                    "kept": sum(one.kept for one in decisions),
                    "why": "; ".join(wrong),
                }
            )
        return pd.DataFrame(rows, columns=["region", "planned", *OUTCOMES, "kept", "why"])

    def table(self) -> display.DisplayTable:
        """Return the outcome by region, for people; of a dry run only what is planned."""
        frame = self.frame()
        if self.plan.dry_run:
            frame = frame.drop(columns=list(OUTCOMES))
        rows = [
            [value or "" if name not in ("region", "planned") else value for name, value in row.items()]
            for row in frame.to_dict("records")
        ]
        columns = [str(name) for name in frame.columns]
        return display.make_table(columns, rows, right=columns[1:-1])

    def show_each(self) -> display.DisplayTable:
        """Return the outcome of each AMI and snapshot, for people."""
        rows = []
        for each in self.outcomes:
            one = each.decision
            rows.append([one.resource_id, one.name, one.region, one.action, each.outcome, each.text])
        columns = ("AMI or snapshot", "name", "region", "action", "outcome", "detail")
        return display.make_table(columns, rows, nothing="There was nothing to do.")


def _count(outcomes: Sequence[ResourceOutcome]) -> dict[str, int]:
    return {name: sum(one.outcome == name for one in outcomes) for name in OUTCOMES}


def _stopped_early(
    outcomes: Sequence[ResourceOutcome], cause: errors.UnrecordedActError
) -> errors.UnrecordedActError:
    done = [
        f"{one.decision.resource_id} {DONE_WORDS[one.decision.action]}"
        for one in outcomes
        if one.outcome in WORKED
    ]
    last = next((one.decision for one in reversed(outcomes) if one.outcome == "failed"), None)
    if last is not None and last.action == "retire" and cause.announced:
        # It has the tags, and may have lost permissions already: a promotion would refuse it.
        done.append(f"{last.resource_id} retired in part")
    return errors.UnrecordedActError(
        f"The run stopped early. Done: {', '.join(done) or 'nothing'}.",
        why=f"{cause.what} {cause.why}",
        fix=cause.fix,
    )


def _named_but_kept(plan: RetirementPlan) -> errors.VmsnixError | None:
    """Return an error if AMIs that were given by ID are kept."""
    planned = {one.resource_id for one in plan.planned}
    kept = [
        one
        for one in plan.decisions
        if one.resource_id in plan.rules.amis
        and one.resource_id not in planned
        and dict(one.facts).get("state") != "disabled"  # retired already
    ]
    if plan.dry_run or plan.action != "retire" or not kept:
        return None
    kind = errors.PartialError if planned else errors.RunFailedError
    return kind(
        f"{len(kept)} of {counted(len(plan.rules.amis), 'AMI')} in amis cannot be retired.",
        why=" ".join(f"{one.resource_id}: {'; '.join(one.reasons)}." for one in kept[:3]),
        fix="Change the rule that keeps them, or leave them out of amis.",
    )


# Apply a plan: one AMI or snapshot after the other. Each is read once more right before it is changed.
#
# A run may be killed at any point. The next plan finds what it did only in part: an AMI by its tags and its
# state, a snapshot whose AMI is deregistered by its tags.
#
# Other jobs may run at the same time. So an AMI is tagged first; then everything that may use it is read
# again, and the tags are removed if something appeared. `vmsnix_ops.aws.retiring` explains why this is
# enough. Before an irreversible change, a line is written to the disk (`vmsnix_ops.records.acts`); if it
# cannot be written, the run stops.
#
# If the tables cannot be written, the result still lists what was done. Retiring and restoring continue,
# because the tags record them, too. Nothing more is deleted, because nothing would record what it was.

DEREGISTERED = "deregistered"
MAX_LISTED = 5
UNRECORDED = "an earlier change could not be recorded, and nothing is deleted without a record"
NOT_FOUND = "it no longer exists"


class _Interrupted(Exception):  # noqa: N818 (becomes an InterruptedRunError)
    """A run was interrupted while it worked on one of several resources; has the outcome of all."""

    def __init__(self, plan: RetirementPlan, done: Sequence[ResourceOutcome]) -> None:
        super().__init__("cancelled")
        self.current, *rest = plan.planned[len(done) :]
        self.outcomes: tuple[ResourceOutcome, ...] = (
            *done,
            ResourceOutcome(self.current, "failed", "the run was interrupted while it worked on this"),
            *(ResourceOutcome(one, "skipped", "the run was interrupted before it") for one in rest),
        )


class _Skipped(Exception):  # noqa: N818 (becomes the outcome)
    """An AMI or snapshot must not be changed; its text says why."""


def _apply(plan: RetirementPlan) -> tuple[tuple[ResourceOutcome, ...], errors.UnrecordedActError | None]:
    """Check the plan again, apply it, and return the outcomes and why the run stopped early, if it did."""
    unread = _check_current(plan)
    tables, unrecorded = open_tables(load()), False
    outcomes: list[ResourceOutcome] = []
    stopped_by: errors.UnrecordedActError | None = None
    with plan.progress.step(plan.action, total=len(plan.planned)) as step:
        for one in plan.planned:
            if stopped_by is not None:
                outcomes.append(ResourceOutcome(one, "skipped", f"the run stopped before it. {stopped_by}"))
            elif one.region in unread:
                outcomes.append(ResourceOutcome(one, "failed", str(unread[one.region])))
            elif unrecorded and one.action == "delete":
                outcomes.append(ResourceOutcome(one, "skipped", UNRECORDED))
            else:
                step.message(f"{one.action} {one.resource_id} in {one.region}")
                change = _Change(plan, one, tables)
                try:
                    with acts.recording(plan.run.folder, plan.run.run_id):
                        outcomes.append(change.apply())
                except KeyboardInterrupt as error:
                    raise _Interrupted(plan, outcomes) from error
                unrecorded = unrecorded or change.unrecorded is not None
                stopped_by = change.stopped_by
            step.advance(1)
    return tuple(outcomes), stopped_by


def _check_current(plan: RetirementPlan) -> Mapping[str, errors.VmsnixError]:
    """Refuse a plan that is out of date, and return the regions that can no longer be read.

    All regions are read, because usage in one region may keep a copy in another.
    """
    only = frozenset(one.resource_id for one in plan.planned)
    decisions, unread = read_and_decide(plan.contexts, plan.action, plan.rules, plan.now, only=only)
    now = {one.resource_id: one for one in decisions}
    changed = []
    for one in plan.planned:
        changes = () if one.region in unread else one.changes(now.get(one.resource_id))
        if changes:
            changed.append(f"{one.resource_id}: {', '.join(changes)}")
    if changed:
        more = f" And {len(changed) - MAX_LISTED} more." if len(changed) > MAX_LISTED else ""
        raise errors.StalePlanError(
            f"The plan of {plan.now:%Y-%m-%d %H:%M} UTC is out of date. Nothing was done.",
            why=". ".join(changed[:MAX_LISTED]) + "." + more,
            fix="Make a new plan and check it.",
        )
    return unread


class _Change:
    def __init__(self, plan: RetirementPlan, one: Decision, tables: Tables) -> None:
        self.plan, self.one, self.tables = plan, one, tables
        self.context: RegionContext = plan.contexts[one.region]
        self.ec2 = self.context.ec2
        self.run_id = plan.run.run_id
        self.unrecorded: errors.VmsnixError | None = None
        self.stopped_by: errors.UnrecordedActError | None = None
        # A notebook may apply last week's plan: the retention period starts now.
        self.now = max(plan.now, datetime.now(UTC))

    def apply(self) -> ResourceOutcome:
        try:
            if self.one.action != "restore":
                # Announced before the first tag, so that a full disk leaves nothing done in part.
                acts.announce(f"retire-amis:{self.one.action}", self.one.resource_id, self.one.region)
            outcome = self._apply_to_snapshot() if self.one.kind == "snapshot" else self._apply_to_ami()
        except _Skipped as skipped:
            outcome = self._outcome("skipped", str(skipped))
        except errors.UnrecordedActError as error:
            self.stopped_by = error
            outcome = self._outcome("failed", str(error))
        except errors.VmsnixError as error:  # also for an invalid tag
            outcome = self._outcome("failed", str(error))
        if self.unrecorded is None:
            return outcome
        problem = f"not recorded: {self.unrecorded}"
        return replace(outcome, problem="; ".join(filter(None, (outcome.problem, problem))))

    def _outcome(self, outcome: StepOutcome, detail: str = "", problem: str = "") -> ResourceOutcome:
        return ResourceOutcome(self.one, outcome, detail, problem)

    def _apply_to_ami(self) -> ResourceOutcome:
        one = self.one
        ami = self._read_ami()
        references = References(one.region, {})  # a restoration is independent of its usage
        if one.action != "restore":
            references = self._current_references(ami)
        _check_same(dict(one.facts), dict(ami_facts(ami, references)))
        if one.action == "retire":
            return self._retire(ami, references)
        return self._restore(ami) if one.action == "restore" else self._delete(ami, references)

    def _read_ami(self) -> Ami:
        ami = images.find_ami(self.ec2, self.one.resource_id)
        if ami is None:
            raise _Skipped(NOT_FOUND)
        return ami

    def _current_references(self, ami: Ami) -> References:
        found = snapshots.find_snapshots(self.ec2, ami.snapshot_ids).values()
        own = [each.snapshot_id for each in found if each.account == self.context.account]
        return reading.current_references(self.context, amis={ami.ami_id: own})

    def _check_same_ami(self, before: Ami, references: References, untagged: Callable[[Ami], Ami]) -> None:
        """Check that nothing changed since this run tagged an AMI; `untagged` removes these tags."""
        now = self._read_ami()
        facts = dict(ami_facts(untagged(now), self._current_references(now)))
        _check_same(dict(ami_facts(untagged(before), references)), facts)

    @contextmanager
    def _claim(self, key: str) -> Iterator[None]:
        """Claim the resource for a deletion or a restoration; release it if it is not deleted."""
        resource = self.one.resource_id
        other = tagging.RESTORING if key == tagging.DELETING else tagging.DELETING
        other_run = retiring.claim(self.ec2, resource, key, self.run_id)
        if other_run:
            raise _Skipped(retiring.claimed_by(resource, other, other_run, self.one.region))
        try:
            yield
        except (Exception, KeyboardInterrupt):
            if key == tagging.DELETING:  # the tag of a restoration is kept: it prevents a deletion
                with suppress(errors.AwsError):  # if this fails, the next deletion overwrites the tag
                    retiring.release(self.ec2, resource, key)
            raise

    def _retire(self, ami: Ami, references: References) -> ResourceOutcome:
        retention = timedelta(days=self.plan.rules.retention_days)
        record = retiring.retirement_tags(self.ec2, ami, run_id=self.run_id, at=self.now, retention=retention)
        if ami.state != "disabled":  # a disabled AMI cannot be launched
            try:
                self._tag_as_retired(ami, references, record)
            except _Skipped:
                retiring.undo_retirement_tags(self.ec2, ami, record)
                raise
            except (Exception, KeyboardInterrupt):
                with suppress(errors.AwsError):
                    retiring.undo_retirement_tags(self.ec2, ami, record)
                raise
        retiring.retire(self.ec2, ami, self.one.snapshots, record)
        lost = retiring.why_not_retired(self.ec2, ami.ami_id, record)
        used = "" if lost or ami.state == "disabled" else self._newly_used(ami)  # by a run that was killed
        if used or lost == retiring.RESTORED:
            # A restoration may have run before this run disabled the AMI, and removed its tags.
            tagged = replace(ami, tags={**ami.tags, **record.tags()})
            retiring.restore(self.ec2, tagged, self.one.snapshots, at=self.now)
        if used or lost:
            raise _Skipped(used or lost)
        self._record(
            "retired",
            shared_with=list(record.shared_with),
            deprecated_before=record.deprecated_before,
            retained_until=record.retained_until,
        )
        self._record_ami(ami)
        return self._outcome("changed", f"can be restored until {record.retained_until:%Y-%m-%d}")

    def _tag_as_retired(self, ami: Ami, references: References, record: RetirementTags) -> None:
        """Tag an AMI, then check that it did not change and nothing has started to use it."""
        retiring.write_retirement_tags(self.ec2, ami, record)
        self._check_same_ami(ami, references, retiring.without_retirement_tags)
        if used := self._newly_used(ami):
            raise _Skipped(used)

    def _newly_used(self, ami: Ami) -> str:
        """Return which channels and instances use an AMI since it was tagged, as a text; empty if none.

        Promotions and smoke tests write these, then read the tags. This reads several times what they write.
        """
        for _ in retiring.repeated_reads():
            names = reading.channels_and_instances(self.context, ami.ami_id)
            if names:
                return f"in use: {', '.join(names)}"
        return ""

    def _restore(self, ami: Ami) -> ResourceOutcome:
        record = RetirementTags.parse(ami.tags)
        with self._claim(tagging.RESTORING):
            shared = retiring.restore(self.ec2, self._read_ami(), self.one.snapshots, at=self.now)
        remains_disabled = record is not None and record.state_before == "disabled"
        lost = self._why_not_restored(ami.ami_id, "disabled" if remains_disabled else "available")
        if lost:
            # It was disabled after this run enabled it. Without its tags it could not be restored again.
            tags = {key: value for key, value in ami.tags.items() if retiring.is_retirement_tag(key)}
            now = images.find_ami(self.ec2, ami.ami_id)
            if now is not None and now.state == "disabled" and not retiring.retired_by(now):
                retiring.add_tags(self.ec2, [ami.ami_id], tags)
            return self._outcome("failed", f"{lost}: make a new plan and restore it again")
        self._record("restored", shared_with=list(shared.names()))
        self._record_ami(ami)
        return self._outcome(
            "changed", "disabled, as before" if remains_disabled else f"shared with {shared}"
        )

    def _why_not_restored(self, ami_id: str, state: str) -> str:
        """Return why an AMI is no longer restored, as a text; empty if it still is."""
        found = ""
        for _ in retiring.repeated_reads():
            ami = images.find_ami(self.ec2, ami_id)
            if ami is None:
                return "it was deregistered at the same time"
            run = retiring.retired_by(ami)
            if run:
                found = f"{run} retired it at the same time"
            else:
                found = "" if ami.state == state else f"it is {ami.state}"
        return found  # only the last read counts: an earlier one may be some moments old

    def _delete(self, ami: Ami, references: References) -> ResourceOutcome:
        with self._claim(tagging.DELETING):
            self._check_same_ami(ami, references, retiring.without_deletion_tag)
            if retiring.deregister(self.ec2, ami.ami_id) == "protected":
                unprotect = "aws ec2 disable-image-deregistration-protection"
                fix = f"{unprotect} --region {self.one.region} --image-id {ami.ami_id}"
                raise _Skipped(f"it is protected from deregistration; to end that: {fix}")
        self._record("deleted")
        self._record_ami(ami, state=DEREGISTERED)
        kept, problems = [f"{name} is kept: {why}" for name, why in self.one.kept_snapshots], []
        for snapshot_id in self.one.snapshots:
            if self.unrecorded is not None or self.stopped_by is not None:
                problems.append(f"{snapshot_id} is kept: {self.stopped_by or UNRECORDED}")
                continue
            try:
                why = ", ".join(str(one) for one in references.names(snapshot_id))
                why = why or ", ".join(retiring.delete_snapshot(self.ec2, snapshot_id, of=ami.ami_id))
            except errors.UnrecordedActError as error:
                self.stopped_by = error
                problems.append(f"{snapshot_id} is kept: {error}")
                continue
            except errors.AwsError as error:  # continue with the others; the next plan finds this one
                problems.append(f"{snapshot_id} is kept: {error}")
                continue
            if why:
                kept.append(f"{snapshot_id} is kept: {why} needs it")
            else:
                self._record("deleted", kind="snapshot", resource_id=snapshot_id, ami_id=ami.ami_id)
        return self._outcome("deleted", "; ".join(kept), "; ".join(problems))

    def _apply_to_snapshot(self) -> ResourceOutcome:
        one, snapshot_id = self.one, self.one.resource_id
        snapshot = self._read_snapshot()
        self._check_same_snapshot(dict(one.facts), snapshot)
        if one.action == "restore":
            with self._claim(tagging.RESTORING):
                retiring.restore_snapshot(self.ec2, snapshot_id)
            self._record("restored")
            return self._outcome("changed")
        if one.action == "delete":
            # Everything must be as planned, except the tag of this deletion.
            tags = tags_as_text(retiring.without_deletion_tag(snapshot).tags)
            with self._claim(tagging.DELETING):
                now = retiring.without_deletion_tag(self._read_snapshot())
                self._check_same_snapshot({**dict(one.facts), "tags": tags}, now)
                if needed_by := retiring.delete_snapshot(self.ec2, snapshot_id):
                    raise _Skipped(f"{needed_by[0]} needs it")
            known = RetirementTags.parse(snapshot.tags)
            self._record("deleted", ami_id=(known.with_ami if known else "") or None)
            return self._outcome("deleted")
        until = self.now + timedelta(days=self.plan.rules.retention_days)
        record = RetirementTags(self.now, until, self.run_id)
        record = retiring.retire_snapshot(self.ec2, snapshot_id, record)
        self._record("retired", shared_with=list(record.shared_with), retained_until=until)
        return self._outcome("changed", f"can be restored until {until:%Y-%m-%d}")

    def _read_snapshot(self) -> Snapshot:
        snapshot_id = self.one.resource_id
        snapshot = snapshots.find_snapshots(self.ec2, [snapshot_id]).get(snapshot_id)
        if snapshot is None:
            raise _Skipped(NOT_FOUND)
        return snapshot

    def _check_same_snapshot(self, before: Mapping[str, str], snapshot: Snapshot) -> None:
        """Check that a snapshot did not change, and that no AMI needs it."""
        references, importing = References(self.one.region, {}), frozenset[str]()
        if self.one.action != "restore":
            references = reading.current_references(self.context, orphans=[snapshot.snapshot_id])
            importing = reading.digests_importing(imports.list_tasks(self.ec2))
        _check_same(before, dict(snapshot_facts(snapshot, references, importing)))
        for ami_id in images.find_amis_of_snapshot(self.ec2, snapshot.snapshot_id):
            raise _Skipped(f"{ami_id} needs it")

    def _record(self, action: str, **more: Any) -> None:
        """Write one row to the table `retirements`. Safe to run twice: the row is written once."""
        one = self.one
        row = {
            "run_id": self.run_id,
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
        with self._remember_failure():
            self.tables.append("retirements", [row], once=f"{self.run_id}/{action}/{row['resource_id']}")

    def _record_ami(self, ami: Ami, *, state: str = "") -> None:
        with self._remember_failure():
            now = ami if state else images.find_ami(self.ec2, ami.ami_id) or ami
            known = history.amis(self.tables, ami_id=ami.ami_id, region=ami.region)
            via = next((value for value in known["via"] if isinstance(value, str)), None)
            row = images.ami_row(now, recorded_at=datetime.now(UTC), source="retire", via=via)
            self.tables.append("amis", [{**row, "state": state or now.state}])

    @contextmanager
    def _remember_failure(self) -> Iterator[None]:
        """Remember a failed write to the tables without failing the change, which is done."""
        try:
            yield
        except (errors.RecordsError, errors.AwsError) as error:
            self.unrecorded = self.unrecorded or error


def _check_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    if changes := differences(before, now):
        raise _Skipped(", ".join(changes))
