"""Do what a plan of a retirement says: one AMI after the other, each looked at once more right before.

Everything is done in an order that may stop anywhere. What a run leaves half done, the next plan finds: an
AMI by its tags and its state, a snapshot whose AMI is gone by its tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.audit.retirement_values import Decision, ami_facts, snapshot_facts
from vmsnix_ops.audit.retirement_view import one_by_one
from vmsnix_ops.aws import images, retiring, sharing, snapshots
from vmsnix_ops.aws.references import References
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.audit.retirement_plan import Plan
    from vmsnix_ops.audit.retirement_view import Place
    from vmsnix_ops.aws.images import Ami

What = Literal["retired", "deleted", "restored", "changed", "protected", "failed"]
GONE = "deregistered"
TOLD = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one AMI or orphan.

    Attributes
    ----------
    decision
        What was planned.
    outcome
        ``"retired"``, ``"deleted"`` or ``"restored"``; ``"changed"`` (it is not what it was, and was left
        alone), ``"protected"`` (from deregistration: left alone) or ``"failed"``.
    detail
        Why, and what stays.
    """

    decision: Decision
    outcome: What
    detail: str = ""


def apply(plan: Plan) -> tuple[Outcome, ...]:
    """Hold the plan against the account, then do it.

    Raises
    ------
    vmsnix_ops.errors.StalePlanError
        Anything that the plan would touch has changed: nothing was done.
    """
    unread = _check_still_holds(plan)
    tables = open_tables(load())
    outcomes = []
    with plan.progress.step(plan.work, total=len(plan.going)) as step:
        for one in plan.going:
            if one.region in unread:
                outcomes.append(Outcome(one, "failed", str(unread[one.region])))
            else:
                step.message(f"{one.action} {one.resource_id} in {one.region}")
                outcomes.append(_Doing(plan, one, tables).do())
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

    def do(self) -> Outcome:
        try:
            return self._snapshot() if self.one.kind == "snapshot" else self._ami()
        except errors.AwsError as error:
            return Outcome(self.one, "failed", str(error))

    def _ami(self) -> Outcome:
        one = self.one
        ami = retiring.look(self.ec2, one.resource_id)
        if ami is None:
            return Outcome(one, "changed", "it is gone")
        restoring = one.action == "restore"
        evidence = (
            References(one.region, {}) if restoring else one_by_one(self.ec2, one.region, [one.resource_id])
        )
        differences = _differences(dict(one.facts), dict(ami_facts(ami, evidence)))
        if differences:
            return Outcome(one, "changed", f"left alone: {differences}")
        if one.action == "retire":
            return self._retire(ami)
        return self._restore(ami) if restoring else self._delete(ami)

    def _retire(self, ami: Ami) -> Outcome:
        grace = timedelta(days=self.plan.rules.grace_days)
        noted = retiring.retire(
            self.ec2, ami, self.one.snapshots, run_id=self.plan.run.run_id, at=self.plan.now, grace=grace
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
        shared = retiring.restore(self.ec2, ami, self.one.snapshots, at=self.plan.now)
        self._record("restored", shared_with=list(shared.names()))
        self._record_ami(ami)
        return Outcome(self.one, "restored", f"shared with {shared}")

    def _delete(self, ami: Ami) -> Outcome:
        if retiring.deregister(self.ec2, ami.ami_id) == "protected":
            lift = "aws ec2 disable-image-deregistration-protection"
            how = f"{lift} --region {self.one.region} --image-id {ami.ami_id}"
            return Outcome(
                self.one, "protected", f"it is protected from deregistration; lift that first: {how}"
            )
        self._record("deleted")
        self._record_ami(ami, state=GONE)
        stays = [f"{snapshot_id} stays: {why}" for snapshot_id, why in self.one.kept_snapshots]
        for snapshot_id in self.one.snapshots:
            holders = retiring.remove_snapshot(self.ec2, snapshot_id, of=ami.ami_id)
            if holders:
                stays.append(f"{snapshot_id} stays: {', '.join(holders)} needs it")
            else:
                self._record("deleted", kind="snapshot", resource_id=snapshot_id, ami_id=ami.ami_id)
        return Outcome(self.one, "deleted", "; ".join(stays))

    def _snapshot(self) -> Outcome:
        one, snapshot_id = self.one, self.one.resource_id
        snapshot = snapshots.find(self.ec2, [snapshot_id]).get(snapshot_id)
        if snapshot is None:
            return Outcome(one, "changed", "it is gone")
        shared = sharing.of_snapshot(self.ec2, snapshot_id).names() if one.action != "restore" else ()
        differences = _differences(dict(one.facts), dict(snapshot_facts(snapshot, shared)))
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
        until = self.plan.now + timedelta(days=self.plan.rules.grace_days)
        noted = retiring.Mark(self.plan.now, until, self.plan.run.run_id)
        retiring.retire_snapshot(self.ec2, snapshot_id, noted)
        self._record("retired", shared_with=list(shared), grace_until=until)
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
        self.tables.append("retirements", [row], once=once)

    def _record_ami(self, ami: Ami, *, state: str = "") -> None:
        """Write the AMI's new state into the table `amis`."""
        now = ami if state else retiring.look(self.ec2, ami.ami_id) or ami
        known = history.amis(self.tables, ami_id=ami.ami_id, region=ami.region)
        via = next((value for value in known["via"] if isinstance(value, str)), None)
        row = images.row(now, recorded_at=datetime.now(UTC), source="retire", via=via)
        self.tables.append("amis", [{**row, "state": state or now.state}])


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    return ", ".join(_each(before, after))


def _each(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for name, value in after.items():
        if before.get(name, "") != value:
            yield f"{name} was {before.get(name) or 'nothing'} and is {value or 'nothing'}"
