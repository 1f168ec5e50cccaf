"""Do what a plan of a retirement says: one AMI after the other, each looked at once more right before.

Everything is done in an order that may stop anywhere. What a run leaves half done, the next plan finds: an
AMI by its tags and its state, a snapshot whose AMI is gone by its tags.

What was done is told, also where the tables cannot be written: that is trouble, and what can be undone goes
on, because the tags know it, too. Nothing more is removed then; nobody would find out what was.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.audit import retirement_view
from vmsnix_ops.audit.retirement_values import Decision, ami_facts, snapshot_facts
from vmsnix_ops.aws import images, retiring, snapshots
from vmsnix_ops.aws.references import References
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmsnix_ops.audit.retirement_plan import Plan
    from vmsnix_ops.audit.retirement_view import Place
    from vmsnix_ops.aws.images import Ami

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

    def __init__(self, plan: Plan, done: Sequence[Outcome]) -> None:
        super().__init__("interrupted")
        self.at, *rest = plan.going[len(done) :]
        self.outcomes: tuple[Outcome, ...] = (
            *done,
            Outcome(self.at, "failed", "interrupted while it was under way"),
            *(Outcome(one, "skipped", "the run was interrupted before its turn") for one in rest),
        )


def apply(plan: Plan) -> tuple[Outcome, ...]:
    """Hold the plan against the account, then do it.

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
    with plan.progress.step(plan.work, total=len(plan.going)) as step:
        for one in plan.going:
            if one.region in unread:
                outcomes.append(Outcome(one, "failed", str(unread[one.region])))
            elif unwritten and one.action == "delete":
                outcomes.append(Outcome(one, "skipped", UNWRITTEN))
            else:
                step.message(f"{one.action} {one.resource_id} in {one.region}")
                doing = _Doing(plan, one, tables)
                try:
                    outcomes.append(doing.do())
                except KeyboardInterrupt as error:
                    raise InterruptedInBetween(plan, outcomes) from error
                unwritten = unwritten or doing.unwritten is not None
            step.advance(1)
    return tuple(outcomes)


def _check_still_holds(plan: Plan) -> Mapping[str, errors.VmsnixError]:
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
            cure="Make a new plan and look at it.",
        )
    return unread


class _Doing:
    """Does what is planned for one AMI or snapshot, and writes it down."""

    def __init__(self, plan: Plan, one: Decision, tables: Tables) -> None:
        self.plan, self.one, self.tables = plan, one, tables
        self.place: Place = plan.places[one.region]
        self.ec2 = self.place.ec2
        self.unwritten: errors.VmsnixError | None = None
        # A plan may be a notebook's of last week: grace counts from when it is done.
        self.now = max(plan.now, datetime.now(UTC))

    def do(self) -> Outcome:
        try:
            outcome = self._snapshot() if self.one.kind == "snapshot" else self._ami()
        except errors.VmsnixError as error:  # also a tag that somebody made unreadable
            outcome = Outcome(self.one, "failed", str(error))
        if self.unwritten is None:
            return outcome
        told = f"not written down: {self.unwritten}"
        return replace(outcome, lacking="; ".join(part for part in (outcome.lacking, told) if part))

    def _ami(self) -> Outcome:
        one = self.one
        ami = retiring.look(self.ec2, one.resource_id)
        if ami is None:
            return Outcome(one, "changed", "it is gone")
        references = References(one.region, {})  # nobody's use matters to what is restored
        if one.action != "restore":
            held = snapshots.find(self.ec2, ami.snapshot_ids).values()
            own = [each.snapshot_id for each in held if each.account == self.place.account]
            references = retirement_view.right_before(self.place, amis={ami.ami_id: own})
        differences = _differences(dict(one.facts), dict(ami_facts(ami, references)))
        if differences:
            return Outcome(one, "changed", f"left alone: {differences}")
        if one.action == "retire":
            return self._retire(ami)
        return self._restore(ami) if one.action == "restore" else self._delete(ami, references)

    def _retire(self, ami: Ami) -> Outcome:
        grace = timedelta(days=self.plan.rules.grace_days)
        noted = retiring.retire(
            self.ec2, ami, self.one.snapshots, run_id=self.plan.run.run_id, at=self.now, grace=grace
        )
        self._record(
            "retired",
            shared_with=list(noted.shared_with),
            deprecated_before=noted.deprecated_before,
            grace_until=noted.grace_until,
        )
        self._record_ami(ami)
        return Outcome(self.one, "retired", f"can be restored until {noted.grace_until:%Y-%m-%d}")

    def _restore(self, ami: Ami) -> Outcome:
        known = retiring.mark(ami.tags)
        shared = retiring.restore(self.ec2, ami, self.one.snapshots, at=self.now)
        self._record("restored", shared_with=list(shared.names()))
        self._record_ami(ami)
        stays = known is not None and known.state_before == "disabled"
        how = "disabled, as it was before" if stays else f"shared with {shared}"
        return Outcome(self.one, "restored", how)

    def _delete(self, ami: Ami, references: References) -> Outcome:
        if retiring.deregister(self.ec2, ami.ami_id) == "protected":
            lift = "aws ec2 disable-image-deregistration-protection"
            how = f"{lift} --region {self.one.region} --image-id {ami.ami_id}"
            return Outcome(
                self.one, "protected", f"it is protected from deregistration; lift that first: {how}"
            )
        self._record("deleted")
        self._record_ami(ami, state=GONE)
        stays, lacking = [f"{name} stays: {why}" for name, why in self.one.kept_snapshots], []
        for snapshot_id in self.one.snapshots:
            if self.unwritten is not None:
                lacking.append(f"{snapshot_id} stays: {UNWRITTEN}")
                continue
            try:
                why = ", ".join(str(one) for one in references.names(snapshot_id))
                why = why or ", ".join(retiring.remove_snapshot(self.ec2, snapshot_id, of=ami.ami_id))
            except errors.AwsError as error:  # the others go nevertheless; the next plan finds this one
                lacking.append(f"{snapshot_id} stays: {error}")
                continue
            if why:
                stays.append(f"{snapshot_id} stays: {why} needs it")
            else:
                self._record("deleted", kind="snapshot", resource_id=snapshot_id, ami_id=ami.ami_id)
        return Outcome(self.one, "deleted", "; ".join(stays), "; ".join(lacking))

    def _snapshot(self) -> Outcome:
        one, snapshot_id = self.one, self.one.resource_id
        snapshot = snapshots.find(self.ec2, [snapshot_id]).get(snapshot_id)
        if snapshot is None:
            return Outcome(one, "changed", "it is gone")
        references, importing = References(one.region, {}), frozenset[str]()
        if one.action != "restore":
            references = retirement_view.right_before(self.place, loose=[snapshot_id])
            importing = retirement_view.importing(self.ec2)
        differences = _differences(dict(one.facts), dict(snapshot_facts(snapshot, references, importing)))
        holders = retiring.holding(self.ec2, snapshot_id)
        if differences or holders:
            return Outcome(one, "changed", f"left alone: {differences or f'{holders[0]} holds it'}")
        if one.action == "restore":
            retiring.restore_snapshot(self.ec2, snapshot_id)
            self._record("restored")
            return Outcome(one, "restored")
        if one.action == "delete":
            retiring.remove_snapshot(self.ec2, snapshot_id)
            known = retiring.mark(snapshot.tags)
            self._record("deleted", ami_id=(known.with_ami if known else "") or None)
            return Outcome(one, "deleted")
        until = self.now + timedelta(days=self.plan.rules.grace_days)
        noted = retiring.Mark(self.now, until, self.plan.run.run_id)
        noted = retiring.retire_snapshot(self.ec2, snapshot_id, noted)
        self._record("retired", shared_with=list(noted.shared_with), grace_until=until)
        return Outcome(one, "retired", f"is kept until {until:%Y-%m-%d}")

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
