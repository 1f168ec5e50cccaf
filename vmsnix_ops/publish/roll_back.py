"""Rolling a channel back: it points to the AMI that it pointed to before, in one step in each region.

Parameter Store's history says what it was; no table of ours is asked. A rollback is a value like any other,
so rolling back once more returns to where it was. Not to be confused with ``vmsnix undo``, which removes what
an unfinished publish left.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import images, parameters, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.regions import ALL, enabled, named
from vmsnix_ops.aws.session import Client, client
from vmsnix_ops.progress import Progress, counted, current
from vmsnix_ops.publish import channels, promote_records
from vmsnix_ops.publish.channel_history import Entry, entries, frame
from vmsnix_ops.publish.home import checked_home
from vmsnix_ops.publish.journal import record_outcomes
from vmsnix_ops.publish.outcomes import Outcomes, PlanTable, StepOutcome, recorded
from vmsnix_ops.records.result import write_result
from vmsnix_ops.records.run_context import RunContext, current_run
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3
    import pandas as pd

    from vmsnix_ops.aws.images import Ami

JOB = "The rollback"


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
    entries: tuple[Entry, ...]
    target: Ami | None = None
    problem: errors.VmsnixError | None = field(default=None, compare=False)
    ec2: Client = field(default=None, repr=False, compare=False)
    ssm: Client = field(default=None, repr=False, compare=False)

    @property
    def now(self) -> Entry | None:
        """Where it points now."""
        return self.entries[-1] if self.entries else None

    @property
    def so(self) -> bool:
        """Whether it points to the target already."""
        return self.now is not None and self.target is not None and self.now.ami_id == self.target.ami_id


@dataclass(frozen=True, slots=True, repr=False)
class Plan(PlanTable):
    """A rollback that has been looked at and not begun. Make it with `plan`; printed, it shows what happens.

    Attributes
    ----------
    image, channel, pointer
        Which channel, and the name of its parameter.
    account
        Whose it is.
    targets
        Region by region.
    dry_run
        `apply` does nothing.
    """

    image: str
    channel: str
    pointer: str
    account: str
    targets: tuple[Target, ...]
    dry_run: bool
    run: RunContext = field(repr=False, compare=False)
    tables: Tables = field(repr=False, compare=False)
    progress: Progress = field(repr=False, compare=False)
    started_at: datetime = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """One line: what becomes what."""
        return f"Roll {self.channel} of {self.image} back, account {self.account}"

    def history(self) -> pd.DataFrame:
        """Return what the channel pointed to, who changed it, and what runs from each AMI; newest first."""
        return frame(target.entries for target in self.targets)

    def apply(self) -> Outcomes:
        """Move the pointers; see `apply`."""
        return apply(self)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = []
        for target in self.targets:
            now = _told(target.now.ami_id, target.now.name) if target.now else "nothing"
            then = _told(target.target.ami_id, target.target.name) if target.target else ""
            verdict = "refused" if target.problem else "already so" if target.so else "to do"
            rows.append([target.region, verdict, now, then, str(target.problem or "")])
        return ["region", "verdict", "points to", "will point to", "why"], rows

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        return ["Nothing of this will be done: dry_run is set."] if self.dry_run else []


def plan(
    *,
    image: str,
    channel: str,
    to: str = "",
    region: str = "",
    regions: Iterable[str] = (),
    dry_run: bool = True,
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> Plan:
    """Look at what the channel pointed to, and return what will happen. Nothing is changed.

    Parameters
    ----------
    image, channel
        Which channel.
    to
        Id or name of the AMI to go back to; nothing: the one before. A name means the same image in every
        region, and giving it makes the command safe to repeat.
    region, regions
        Where; by default the region, and every other one that the tables know the channel in. ``["all"]``:
        every enabled region that has the channel.
    dry_run
        `apply` only repeats the plan.
    settings, progress, session
        Where they do not come from the surroundings.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is no such channel, or the regions would not end with the same image.
    vmsnix_ops.errors.PointerError
        The channel points to nothing anywhere.
    """
    settings, asked = settings or load(), tuple(regions)
    channels.check(channel, settings)
    pointer = parameters.pointer_name(settings.pointer_prefix, image, channel)
    home = checked_home(region, settings=settings, session=session)
    tables = open_tables(settings)
    if asked == (ALL,):
        chosen = enabled(home.client("ec2"))
    else:
        chosen = named(home.session, asked or _known_regions(tables, image, channel, home.region))
    # Made one after the other: sessions are not thread safe, clients are.
    spots = [
        Target(name, (), ec2=client(home.session, "ec2", name), ssm=client(home.session, "ssm", name))
        for name in chosen
    ]
    with ThreadPoolExecutor(len(spots), thread_name_prefix="look") as pool:
        targets = list(pool.map(lambda spot: _look(spot, pointer, to, account_id=home.account), spots))
    if asked == (ALL,):
        targets = [target for target in targets if target.entries or target.problem]
    if not any(target.entries for target in targets):
        raise next((t.problem for t in targets if t.problem), None) or errors.PointerError(
            f"The channel {channel} of {image} points to nothing in {', '.join(chosen)}.",
            why=f"There is no parameter {pointer}.",
            cure="Promote an AMI to it first (vmsnix promote-ami).",
        )
    targets = [
        target if target.entries or target.problem else _without(target, pointer) for target in targets
    ]
    _check_alike(targets, to=to)
    return Plan(
        image=image,
        channel=channel,
        pointer=pointer,
        account=home.account,
        targets=tuple(targets),
        dry_run=dry_run,
        run=current_run("rollback", settings=settings),
        tables=tables,
        progress=progress or current(),
        started_at=datetime.now(UTC),
    )


def apply(plan: Plan) -> Outcomes:
    """Move the pointers, one call a region, and return what became of it. In a dry run nothing is moved.

    Safe to run twice: a plan is for the values that it saw. A pointer that was moved meanwhile, by somebody
    or by an earlier run of this plan, is left alone.
    """
    rows: list[StepOutcome] = []
    for target in plan.targets:
        row = StepOutcome(
            target.region, "point", "planned", ami_id=target.target.ami_id if target.target else ""
        )
        if target.problem is not None:
            rows.append(replace(row, outcome="failed", why=str(target.problem), error=target.problem))
        elif plan.dry_run:
            rows.append(replace(row, outcome="already so") if target.so else row)
        else:
            rows += _roll_back(plan, target, row)
    if plan.dry_run:
        return Outcomes(JOB, tuple(rows), plan.run.run_id, dry_run=True)
    home = plan.targets[0].region
    told = recorded(
        rows, home, lambda: promote_records.write_rows(plan.tables, plan.run, rows, image=plan.image)
    )
    outcomes = Outcomes(JOB, tuple(told), plan.run.run_id, _cure(plan))
    where = {"region": home, "account": plan.account, "image": plan.image}
    return record_outcomes(plan.run, plan.tables, outcomes, plan.started_at, **where)


def finish(plan: Plan, outcomes: Outcomes) -> None:
    """Write ``result.json``, and end the run as it deserves.

    Raises
    ------
    vmsnix_ops.errors.PartlyDoneError
        Some regions are rolled back and some are not: exit code 3.
    vmsnix_ops.errors.VmsnixError
        None is.
    """
    first = next((target for target in plan.targets if target.target), None)
    back = first.target if first else None
    write_result(
        plan.run,
        {
            "status": outcomes.status,
            "dry_run": plan.dry_run,
            "ami_id": back.ami_id if back else None,
            "image_name": back.name if back else None,
            "region": plan.targets[0].region,
            "account": plan.account,
            "image": plan.image,
            "digest": back.digest if back else None,
            "channel": plan.channel,
            "pointer": plan.pointer,
            "amis": {row.region: row.ami_id for row in outcomes.rows if row.ami_id},
            "before": {t.region: t.now.ami_id for t in plan.targets if t.now},
            "outcomes": [outcomes.plain(row) for row in outcomes.rows],
        },
    )
    error = outcomes.error()
    if error is not None:
        raise error


def _known_regions(tables: Tables, image: str, channel: str, home: str) -> tuple[str, ...]:
    where = [("image", "==", image), ("channel", "==", channel)]
    known = tables.read("promotions", columns=["region"], where=where)["region"]
    return (home, *sorted(known))


def _look(target: Target, pointer: str, to: str, *, account_id: str) -> Target:
    """Look at one region; what is wrong there is part of the plan."""
    try:
        target = replace(target, entries=entries(target.ec2, target.ssm, pointer))
        if target.entries:
            target = replace(target, target=_choose(target.ec2, target.entries, to, account_id))
    except errors.VmsnixError as error:
        return replace(target, problem=error)
    return target


def _without(target: Target, pointer: str) -> Target:
    """Return a region that was asked for and has no such channel."""
    problem = errors.PointerError(
        f"There is no parameter {pointer} in {target.region}.",
        cure="Leave the region out, or promote an AMI there first.",
    )
    return replace(target, problem=problem)


def _choose(ec2: Client, known: tuple[Entry, ...], to: str, account_id: str) -> Ami:
    """Return the AMI to go back to: the one before, or the one that is named, if it can be used."""
    now = known[-1]
    if to:
        wanted = [entry for entry in known if to in (entry.ami_id, entry.name)]
    else:
        wanted = [entry for entry in known if entry.ami_id != now.ami_id]
    others = list(dict.fromkeys(e.name for e in reversed(known) if e.usable and e.ami_id != now.ami_id))
    cure = f"Choose with --to: {', '.join(others[:5])}." if others else "Promote another AMI."
    if not wanted:
        what = f"never pointed to {to}" if to else f"never pointed to anything but {now.ami_id}"
        raise errors.PointerError(
            f"The channel {what} in {ec2.meta.region_name}.",
            why=f"Its history has {counted(len(known), 'value')}, since {known[0].since:%Y-%m-%d}.",
            cure=cure,
        )
    chosen = wanted[-1].ami_id
    found = images.find(ec2, [chosen]).get(chosen)
    if found is None:
        raise errors.PointerError(
            f"The AMI {chosen}, to which the channel pointed before, is gone from {ec2.meta.region_name}.",
            why="It was deregistered.",
            cure=cure,
        )
    try:
        channels.check_usable(found, owner=account_id, now=datetime.now(UTC))
        snapshots.check_whole(ec2, found)
    except errors.RegistrationError as error:
        raise errors.PointerError(error.what, why=error.why, cure=f"{error.cure} {cure}") from error
    return found


def _check_alike(targets: list[Target], *, to: str) -> None:
    """Refuse to leave regions with different images, as a rollback that was cut off would."""
    sound = [target for target in targets if target.target is not None]
    then = {target.target.digest for target in sound if target.target}
    now = {target.now.digest for target in sound if target.now}
    if len(then) <= 1 and (to or len(now) <= 1):
        return
    told = "; ".join(
        f"{t.region} {t.now.name or t.now.ami_id}, before {t.target.name}"
        for t in sound
        if t.now and t.target
    )
    raise errors.ParameterError(
        "The regions point to different images, so that the one before is not the same everywhere.",
        why=f"{told}. A rollback or a promotion was cut off, or somebody moved one of them.",
        cure="Name the AMI that all shall point to: --to NAME.",
    )


def _cure(plan: Plan) -> str:
    """Return how to go on: the same command without a name would go back to where it came from."""
    name = next((target.target.name for target in plan.targets if target.target), "NAME")
    return f"Run it again with --to {name}: that does what is left, and nothing twice."


def _roll_back(plan: Plan, target: Target, row: StepOutcome) -> list[StepOutcome]:
    """Move the pointer of one region and record it; a pointer that was moved and not recorded is moved."""
    now, then = target.now, target.target
    if now is None or then is None:
        raise RuntimeError("a target without a problem has both")
    row = replace(row, outcome="already so") if target.so else _move(plan, target, row, now, then)
    if row.outcome == "failed":
        return [row]

    def record() -> None:
        known = promote_records.latest(plan.tables, target.region, plan.image, plan.channel)
        recorded = known.get("ami_id", then.ami_id)
        if row.outcome == "done" or recorded != then.ami_id:
            _record(plan, target, then, before=recorded if target.so else now.ami_id)

    return recorded([row], target.region, record)


def _move(plan: Plan, target: Target, row: StepOutcome, now: Entry, then: Ami) -> StepOutcome:
    started = time.monotonic()
    try:
        with plan.progress.step(target.region):
            seen = parameters.find(target.ssm, plan.pointer)
            if seen is None or seen.version != now.version:
                raise errors.PointerError(
                    f"Somebody moved {plan.pointer} in {target.region} after the plan was made.",
                    why=f"It points to {seen.value if seen else 'nothing'}.",
                    cure="Make a new plan.",
                )
            note = f"{then.name}, rolled back from {now.name or now.ami_id} by the run {plan.run.run_id}"
            own = {tagging.IMAGE: plan.image}
            parameters.point(target.ssm, plan.pointer, then.ami_id, description=note, tags=own)
    except errors.VmsnixError as error:
        return replace(row, outcome="failed", why=str(error), error=error)
    return replace(
        row,
        outcome="done",
        what=f"from {_told(now.ami_id, now.name)}",
        seconds=round(time.monotonic() - started, 3),
    )


def _record(plan: Plan, target: Target, then: Ami, *, before: str) -> None:
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
