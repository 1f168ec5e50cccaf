"""Set a channel back to the AMI that it had before, in every region.

>>> from vmsnix_ops import rollback
>>> rollback.plan(image="ecs-node", channel="stable", dry_run=False).apply()  # doctest: +SKIP
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors, outcomes
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.aws import channels, images, parameters, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.regions import ALL, enabled, named
from vmsnix_ops.aws.session import client
from vmsnix_ops.channels import records, steps
from vmsnix_ops.channels.history import Entry, Note, entries, frame, show
from vmsnix_ops.progress import Progress, counted, current
from vmsnix_ops.publish.home import ONE_OF_MANY, checked_home
from vmsnix_ops.publish.interrupts import stopping
from vmsnix_ops.publish.journal import record_outcomes, record_run
from vmsnix_ops.publish.outcomes import ANNOUNCE, CONFLICT, Outcomes, RegionStep, recorded
from vmsnix_ops.records.run_context import RunContext, current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.checks import Check
    from vmsnix_ops.aws.images import Ami

__all__ = ["RollbackPlan", "RollbackResult", "plan"]


def __dir__() -> list[str]:
    return __all__


LATELY = timedelta(hours=1)
"""How long a second rollback without a name is taken for the first one again."""


@dataclass(frozen=True, slots=True)
class Target:
    """One region.

    Attributes
    ----------
    region
        Where.
    entries
        What the channel pointed to there, the oldest first.
    target
        The AMI that it will point to; ``None`` when that cannot be.
    problem
        Why not.
    """

    region: str
    entries: tuple[Entry, ...] = ()
    target: Ami | None = None
    problem: errors.VmsnixError | None = field(default=None, compare=False)
    ec2: EC2Client = field(kw_only=True, repr=False, compare=False)
    ssm: SSMClient = field(kw_only=True, repr=False, compare=False)

    @property
    def now(self) -> Entry | None:
        """Where it points now."""
        return self.entries[-1] if self.entries else None

    @property
    def so(self) -> bool:
        """Whether it points to the target already."""
        return self.now is not None and self.target is not None and self.now.ami_id == self.target.ami_id

    @property
    def before(self) -> str:
        """What it was rolled back from, when that was its last change; empty otherwise."""
        note = self.now.note if self.now else None
        return note.before if isinstance(note, Note) else ""


def look(target: Target, pointer: str) -> Target:
    """Return a region with what its channel pointed to; what is wrong there is part of the plan."""
    try:
        target = replace(target, entries=entries(target.ec2, target.ssm, pointer))
        found = parameters.find_parameter(target.ssm, pointer)
        if found is not None:
            parameters.check_parameter_type(found)
            parameters.check_accepts_value(
                pointer, parameters.read_history(target.ssm, pointer), target.region
            )
    except errors.VmsnixError as error:
        return replace(target, problem=error)
    return target


def without(target: Target, pointer: str) -> Target:
    """Return a region that was asked for and has no such channel."""
    problem = errors.ChannelError(
        f"No parameter {pointer} in {target.region}.",
        fix="Leave the region out, or promote an AMI there first.",
    )
    return replace(target, problem=problem)


def choose(targets: Iterable[Target], to: str, *, account: str) -> list[Target]:
    """Return the regions with the AMI that each will point to.

    Parameters
    ----------
    targets
        The regions, looked at.
    to
        Id or name of the AMI to go back to; an id means the same image in the other regions, too. Nothing:
        the one before.
    account
        Who must own it.
    """
    targets = list(targets)
    known = [entry for target in targets for entry in target.entries]
    digests = {entry.digest for entry in known if to and to in (entry.ami_id, entry.name)} - {""}
    return [
        _chosen(target, to, digests, account) if target.entries and not target.problem else target
        for target in targets
    ]


def check_usable(ec2: EC2Client, ami_id: str, *, account: str) -> Ami:
    """Return an AMI that a channel may go back to, as it is now.

    Raises
    ------
    vmsnix_ops.errors.ChannelError
        It is gone.
    vmsnix_ops.errors.RegistrationError
        It is disabled, deprecated, half deleted, or not ours.
    """
    found = images.find(ec2, [ami_id]).get(ami_id)
    if found is None:
        raise errors.ChannelError(
            f"The channel's earlier AMI {ami_id} no longer exists in {ec2.meta.region_name}.",
            why="It was deregistered.",
        )
    channels.check_usable(found, owner=account, now=datetime.now(UTC))
    snapshots.check_whole(ec2, found)
    return found


def check_alike(targets: Iterable[Target], *, to: str) -> None:
    """Refuse to leave regions with different images; what was rolled back a moment ago may lie ahead.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The one before is not the same everywhere.
    """
    sound = [target for target in targets if target.target is not None and target.now is not None]
    then = {target.target.digest for target in sound if target.target}
    # What is gone has no digest any more, and tells nothing.
    now = {target.now.digest for target in sound if target.now and not target.so} - {""}
    if len(then) <= 1 and (to or len(now) <= 1):
        return
    told = "; ".join(
        f"{t.region} {t.now.name or t.now.ami_id}, before {t.target.name}"
        for t in sound
        if t.now and t.target
    )
    raise errors.ParameterError(
        "The regions contain different images, so they have no common earlier AMI.",
        why=f"{told}. A promotion was interrupted, or one region was changed separately.",
        fix="Choose the AMI for all regions: --to NAME.",
    )


def _chosen(target: Target, to: str, digests: set[str], account: str) -> Target:
    try:
        entry = _entry(target, to, digests)
        try:
            return replace(target, target=check_usable(target.ec2, entry.ami_id, account=account))
        except (errors.ChannelError, errors.RegistrationError) as error:
            fix = f"{error.fix} {_others(target.entries, entry.ami_id)}".strip()
            raise errors.ChannelError(error.what, why=error.why, fix=fix) from error
    except errors.VmsnixError as error:
        return replace(target, problem=error)


def _entry(target: Target, to: str, digests: set[str]) -> Entry:
    """Return the value to go back to."""
    known, now = target.entries, target.entries[-1]
    if to:
        wanted = [one for one in known if to in (one.ami_id, one.name) or one.digest in digests]
    elif target.before and datetime.now(UTC) - now.since < LATELY:
        return now  # the same command again
    elif target.before:
        raise errors.ChannelError(
            f"The channel in {target.region} was already rolled back on {now.since:%Y-%m-%d %H:%M} UTC.",
            why=f"The previous AMI is now {target.before}, which it was rolled back from.",
            fix=f"To return to {target.before}, pass --to {target.before}. {_others(known)}",
        )
    else:
        wanted = [one for one in known if one.ami_id != now.ami_id]
    if not wanted:
        what = f"has never been {to}" if to else f"has only ever been {now.ami_id}"
        raise errors.ChannelError(
            f"Nothing to roll back to: the channel in {target.region} {what}.",
            why=f"Its history has {counted(len(known), 'value')}, since {known[0].since:%Y-%m-%d}.",
            fix=_others(known),
        )
    return wanted[-1]


def _others(known: tuple[Entry, ...], *refused: str) -> str:
    """Return which AMIs there are to choose from."""
    not_these = {known[-1].ami_id, *refused}
    names = dict.fromkeys(e.name for e in reversed(known) if e.usable and e.ami_id not in not_these)
    return f"Choose one with --to: {', '.join(list(names)[:5])}." if names else "Promote another AMI."


# Rolling a channel back: it points to the AMI that it pointed to before, in one step in each region.
#
# Parameter Store's history says what it was; no table of ours is asked. A rollback is a value like any other:
# naming the AMI returns to where it was. The same command again, at night and in a hurry, finds its own work
# and leaves it alone. Not to be confused with ``vmsnix undo``, which removes what an unfinished publish left.


HALTED = "the channel was changed between plan and write; the remaining steps were skipped"


@dataclass(frozen=True, slots=True)
class RollbackPlan(display.Displayed):
    """A checked rollback that has not started. Make it with `plan`.

    Attributes
    ----------
    image, channel, pointer
        Which channel, and the name of its parameter.
    account
        Whose it is.
    targets
        Region by region.
    left_out
        Regions that the tables know the channel in and that have it no more.
    topic
        ARN of an SNS topic that is told; empty for none.
    checks
        What was checked of credentials, account, region and topic.
    dry_run
        `apply` does nothing.
    """

    image: str
    channel: str
    pointer: str
    account: str
    targets: tuple[Target, ...]
    left_out: tuple[str, ...]
    topic: str
    checks: tuple[Check, ...]
    dry_run: bool
    session: boto3.Session = field(repr=False, compare=False)
    run: RunContext = field(repr=False, compare=False)
    tables: RunTables = field(repr=False, compare=False)
    progress: Progress = field(repr=False, compare=False)
    started_at: datetime = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """One line: what becomes what."""
        return f"Move channel {self.channel} of {self.image} back to an earlier AMI, account {self.account}"

    def history(self) -> pd.DataFrame:
        """Return what the channel pointed to, who changed it, and what runs from each AMI; newest first."""
        return frame(target.entries for target in self.targets)

    def show_history(self) -> display.Shown:
        """Return `history` for people."""
        return show(self.history())

    def apply(self) -> RollbackResult:
        """Set the channel in each region, and return the outcome. A dry run does nothing.

        Safe to run twice: a plan is for the values that it saw. A pointer that was moved meanwhile, by
        somebody or by an earlier run of this plan, is left alone, and so is one whose AMI can no longer be
        used.

        Raises
        ------
        vmsnix_ops.errors.InterruptedRunError
            The operator asked to stop.
        """
        return _apply(self)

    def table(self) -> display.Shown:
        """Return what will happen, for people."""
        rows = []
        for target in self.targets:
            now = _told(target.now.ami_id, target.now.name) if target.now else "nothing"
            then = _told(target.target.ami_id, target.target.name) if target.target else ""
            outcome = "failed" if target.problem else "unchanged" if target.so else "planned"
            rows.append([target.region, outcome, now, then, str(target.problem or "")])
        return display.shown(("region", "outcome", "current AMI", "new AMI", "why"), rows)

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        found = [
            f"{target.region} was already rolled back at {target.now.since:%H:%M} UTC from {target.before}. "
            f"To return, pass --to {target.before}."
            for target in self.targets
            if target.so and target.before and target.now
        ]
        if any(entry.instances is None for target in self.targets for entry in target.entries):
            found.append("Instances are not counted: this needs ec2:DescribeInstances.")
        found += [f"Skipped {region}: it has no such channel." for region in self.left_out]
        found += [
            f"{check.name}: {check.evidence} {check.fix}" for check in self.checks if check.outcome == "warn"
        ]
        return [*found, *(["Dry run: nothing will be changed."] if self.dry_run else [])]


@dataclass(frozen=True, slots=True)
class RollbackResult(Outcomes):
    """The outcome of a rollback, by region and step."""

    job = "The rollback"
    plan: RollbackPlan

    @property
    def fix(self) -> str:
        """How to go on when it is done in part."""
        return _fix(self.plan)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        first = next((target for target in self.plan.targets if target.target), None)
        back = first.target if first else None
        return {
            "status": self.status,
            "dry_run": self.plan.dry_run,
            "ami_id": back.ami_id if back else None,
            "image_name": back.name if back else None,
            "region": self.plan.targets[0].region,
            "account": self.plan.account,
            "image": self.plan.image,
            "digest": back.digest if back else None,
            "channel": self.plan.channel,
            "pointer": self.plan.pointer,
            "amis": {row.region: row.ami_id for row in self.rows if row.ami_id},
            "before": {t.region: t.now.ami_id for t in self.plan.targets if t.now},
            "outcomes": [self.plain(row) for row in self.rows],
            "overwritten": [error.overwritten for error in self.conflicts],
        }


@typed
def plan(
    *,
    image: str,
    channel: str,
    to: str = "",
    region: str = "",
    regions: Iterable[str] = (),
    topic: str = "",
    dry_run: bool = True,
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> RollbackPlan:
    """Read the earlier values of the channel, and return what will happen. Nothing is changed.

    Parameters
    ----------
    image, channel
        Which channel.
    to
        Id or name of the AMI to go back to, the same image in every region; nothing: the one before. Without
        it, a channel that was rolled back within the last hour stays as it is, and one that was rolled back
        earlier is refused.
    region, regions
        Where; by default the region, and every other one that the tables know the channel in. ``["all"]``:
        every enabled region that has the channel.
    topic
        ARN of an SNS topic to tell.
    dry_run
        `apply` only repeats the plan.
    settings, progress, session
        Where they do not come from the surroundings.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is no such channel, or the regions would not end with the same image.
    vmsnix_ops.errors.ChannelError
        The channel points to nothing anywhere.
    """
    settings, asked = settings or load(), tuple(regions)
    channels.check_channel(channel, settings)
    pointer = parameters.parameter_name(settings.pointer_prefix, image, channel)
    steps.check_topic(topic)
    home = checked_home(region, settings=settings, session=session)
    run = current_run("rollback", settings=settings)
    tables = RunTables(settings, run)
    if asked == (ALL,):
        chosen = enabled(home.ec2)
    else:
        chosen = named(asked or _known_regions(tables, image, channel, home.region))
    # Clients are made one after the other: sessions are not thread safe, clients are.
    spots = [
        Target(
            name,
            ec2=client(home.session, "ec2", name, **ONE_OF_MANY),
            ssm=client(home.session, "ssm", name, **ONE_OF_MANY),
        )
        for name in chosen
    ]
    with ThreadPoolExecutor(len(spots), thread_name_prefix="look") as pool:
        looked = list(pool.map(lambda spot: look(spot, pointer), spots))
    if not any(target.entries for target in looked):
        raise next((t.problem for t in looked if t.problem), None) or errors.ChannelError(
            f"The channel {channel} of {image} has no value in {', '.join(chosen)}.",
            why=f"No parameter {pointer}.",
            fix="Promote an AMI to it first: vmsnix promote",
        )
    lacking = [target for target in looked if not target.entries and not target.problem]
    if asked in ((), (ALL,)):  # nobody named these regions
        looked = [target for target in looked if target not in lacking]
    else:
        looked = [without(one, pointer) if one in lacking else one for one in looked]
    targets = choose(looked, to, account=home.account)
    check_alike(targets, to=to)
    return RollbackPlan(
        image=image,
        channel=channel,
        pointer=pointer,
        account=home.account,
        targets=tuple(targets),
        left_out=tuple(target.region for target in lacking) if not asked else (),
        topic=topic,
        checks=(*home.checks, *steps.topic_checks(topic, home.session)),
        dry_run=dry_run,
        session=home.session,
        run=run,
        tables=tables,
        progress=progress or current(),
        started_at=datetime.now(UTC),
    )


def _apply(plan: RollbackPlan) -> RollbackResult:
    if plan.dry_run:
        would = [_planned(target) for target in plan.targets] + records.planned(plan.topic)
        return RollbackResult(tuple(would), plan)
    home, rows = plan.targets[0].region, list[RegionStep]()
    where = {"region": home, "account": plan.account, "image": plan.image}
    try:
        with stopping():
            for target in plan.targets:
                if any(row.step == CONFLICT for row in rows):
                    row = RegionStep(target.region, "point", "skipped", why=HALTED)
                    rows.append(row)
                else:
                    rows += _roll_back(plan, target)
    except KeyboardInterrupt as error:
        moved = [row.region for row in rows if row.step == "point" and row.outcome != "failed"]
        interrupted = errors.InterruptedRunError(
            "The rollback was interrupted.",
            why=f"Rolled back so far: {', '.join(moved) or 'no region, or the current one'}.",
            fix=_fix(plan),
        )
        record_run(plan.run, plan.tables, "cancelled", plan.started_at, **where, error=str(interrupted))
        raise interrupted from error
    if plan.topic and any(row.step == CONFLICT for row in rows):
        rows.append(RegionStep(plan.topic.split(":")[3], ANNOUNCE, "skipped", why=HALTED))
    elif plan.topic:
        rows += _announce(plan, rows)
    outcomes = RollbackResult(tuple(rows), plan)
    return record_outcomes(plan.run, plan.tables, outcomes, plan.started_at, **where)


def _known_regions(tables: RunTables, image: str, channel: str, home: str) -> tuple[str, ...]:
    where = [("image", "==", image), ("channel", "==", channel)]
    known = tables.read("promotions", columns=["region"], where=where)["region"]
    return (home, *sorted(known))


def _planned(target: Target) -> RegionStep:
    """Return what a dry run comes to in one region."""
    row = RegionStep(target.region, "point", "planned", ami_id=target.target.ami_id if target.target else "")
    if target.problem is not None:
        return replace(row, outcome="failed", why=str(target.problem), error=target.problem)
    return replace(row, outcome="unchanged") if target.so else row


def _fix(plan: RollbackPlan) -> str:
    """Return how to go on; with a name the command means the same whenever it is given."""
    name = next((target.target.name for target in plan.targets if target.target), "NAME")
    return f"Run it again with --to {name}: it does what is left and repeats nothing."


def _roll_back(plan: RollbackPlan, target: Target) -> list[RegionStep]:
    """Set the channel of one region and record it; one that was set and not recorded is recorded."""
    row = _planned(target)
    now, then = target.now, target.target
    rows, before = [row], now.ami_id if now else ""
    if row.outcome == "planned" and now and then:
        row, overwritten = _move(plan, target, row, now, then)
        rows = [row]
        if overwritten is not None:
            before, error = overwritten.value, overwritten.error()
            rows.append(RegionStep(target.region, CONFLICT, "failed", why=str(error), error=error))

    def record() -> None:
        if row.outcome == "failed" or now is None or then is None:
            return
        known = records.latest(plan.tables, target.region, plan.image, plan.channel)
        recorded_as = known.get("ami_id", then.ami_id)
        if row.outcome == "changed" or recorded_as != then.ami_id:
            _record(plan, target, then, before=recorded_as if target.so else before)

    def record_step() -> None:
        records.write_rows(plan.tables, plan.run, rows, image=plan.image)

    return recorded(rows, target.region, record, record_step)


def _move(
    plan: RollbackPlan, target: Target, row: RegionStep, now: Entry, then: Ami
) -> tuple[RegionStep, parameters.OverwrittenValue | None]:
    started, overwritten = time.monotonic(), None
    try:
        with plan.progress.step(target.region):
            # The plan may be hours old.
            check_usable(target.ec2, then.ami_id, account=plan.account)
            note = Note("roll back", then.name, plan.run.run_id, before=now.name or now.ami_id)
            own = {tagging.IMAGE: plan.image}
            planned = parameters.ExpectedValue(now.version, now.ami_id)
            moved = parameters.set_channel(
                target.ssm, plan.pointer, then.ami_id, expected=planned, description=note.text(), tags=own
            )
            overwritten = moved.overwritten
            _check_again(plan, target, then, moved, planned)
    except errors.VmsnixError as error:
        return replace(row, outcome="failed", why=str(error), error=error), overwritten
    row = replace(
        row,
        outcome="changed",
        what=f"from {_told(now.ami_id, now.name)}",
        seconds=round(time.monotonic() - started, 3),
    )
    return row, overwritten


def _check_again(
    plan: RollbackPlan,
    target: Target,
    then: Ami,
    moved: parameters.ChannelWrite,
    planned: parameters.ExpectedValue,
) -> None:
    """Check once more that nobody retires the AMI, after the channel was set to it.

    Raises
    ------
    vmsnix_ops.errors.RegistrationError
        Somebody does; the channel has its earlier value again, if we set it and nobody else did since.
    """
    try:
        channels.check_repeatedly(target.ec2, then.ami_id, owner=plan.account)
    except errors.VmsnixError as error:
        what = f"{plan.pointer} in {target.region} still contains it."
        if moved.overwritten is None and moved.outcome == "created":
            note = Note("take back", then.name, plan.run.run_id).text()
            try:
                what = parameters.restore_channel(target.ssm, plan.pointer, moved, planned, description=note)
            except errors.VmsnixError as second:
                what = f"{what[:-1]}: {second}"
        raise errors.RegistrationError(
            error.what, why=f"{error.why} {what}".strip(), fix=error.fix
        ) from error


def _announce(plan: RollbackPlan, rows: list[RegionStep]) -> list[RegionStep]:
    """Tell the topic of every region that points where it shall."""
    so = {row.region: row.ami_id for row in rows if row.outcome in outcomes.SUCCEEDED}
    back = next((target.target for target in plan.targets if target.target), None)
    content = {
        "image": plan.image,
        "channel": plan.channel,
        "name": back.name if back else "",
        "digest": back.digest if back else "",
        "account": plan.account,
        "amis": dict(sorted(so.items())),
    }
    return records.announce(plan.topic, content, run=plan.run, tables=plan.tables, session=plan.session)


def _record(plan: RollbackPlan, target: Target, then: Ami, *, before: str) -> None:
    row = {
        "run_id": plan.run.run_id,
        "promoted_at": datetime.now(UTC),
        "how": "roll back",
        "ami_id": then.ami_id,
        "region": target.region,
        "account": plan.account,
        "name": then.name,
        "image": plan.image,
        "version": then.tags.get(tagging.VERSION),
        "digest": then.digest,
        "channel": plan.channel,
        "pointer": plan.pointer,
        "previous_ami_id": before,
    }
    plan.tables.append("promotions", [row])


def _told(ami_id: str, name: str) -> str:
    return f"{ami_id} ({name})" if name else ami_id
