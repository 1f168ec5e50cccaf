"""Do what a plan of a retirement says: one AMI after the other, each looked at once more right before.

Everything is done in an order that may stop anywhere. What a run leaves half done, the next plan finds: an
AMI by its tags and its state, a snapshot whose AMI is gone by its tags.

Other jobs may run at the same time. An AMI is marked first, then everything that may use it is read again,
and the mark is taken back if something appeared; `vmsnix_ops.aws.retiring` says why that is enough. Before
anything is changed that cannot be undone, a line says so on the disk (`vmsnix_ops.records.acts`); without it
the run stops there.

What was done is told, also where the tables cannot be written: that is trouble, and what can be undone goes
on, because the tags know it, too. Nothing more is removed then; nobody would find out what was.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.audit.retirement import view
from vmsnix_ops.audit.retirement.view import Decision, ami_facts, snapshot_facts
from vmsnix_ops.aws import images, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.references import References
from vmsnix_ops.records import acts, history
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vmsnix_ops.audit.retirement._plan import Plan
    from vmsnix_ops.audit.retirement.view import Place
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.snapshots import Snapshot

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


def apply(plan: Plan) -> tuple[tuple[Outcome, ...], errors.UnrecordedActError | None]:
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

    def __init__(self, plan: Plan, one: Decision, tables: Tables) -> None:
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
        return view.right_before(self.place, amis={ami.ami_id: own})

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
        grace = timedelta(days=self.plan.rules.grace_days)
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
            grace_until=noted.grace_until,
        )
        self._record_ami(ami)
        return Outcome(self.one, "retired", f"can be restored until {noted.grace_until:%Y-%m-%d}")

    def _used_now(self, ami: Ami) -> str:
        """Return which promotions and smoke tests have begun with an AMI since it was marked, in words.

        They read the mark after they wrote; here is read what they write, several times for some moments.
        """
        for _ in retiring.looks():
            names = view.used_now(self.place, self.plan.prefix, ami.ami_id)
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
        until = self.now + timedelta(days=self.plan.rules.grace_days)
        noted = retiring.Mark(self.now, until, self.run_id)
        noted = retiring.retire_snapshot(self.ec2, snapshot_id, noted)
        self._record("retired", shared_with=list(noted.shared_with), grace_until=until)
        return Outcome(one, "retired", f"is kept until {until:%Y-%m-%d}")

    def _snapshot_now(self) -> _SnapshotNow:
        """Return what is known of a snapshot at this moment."""
        one, snapshot_id = self.one, self.one.resource_id
        snapshot = snapshots.find(self.ec2, [snapshot_id]).get(snapshot_id)
        if snapshot is None:
            return _SnapshotNow(None)
        references, importing = References(one.region, {}), frozenset[str]()
        if one.action != "restore":
            references = view.right_before(self.place, loose=[snapshot_id])
            importing = view.importing(self.ec2)
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
