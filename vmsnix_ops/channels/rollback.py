"""Set a channel back to the AMI that it had before, in every region.

>>> from vmsnix_ops import rollback
>>> rollback.plan(image="ecs-node", channel="stable", dry_run=False).apply()  # doctest: +SKIP

The earlier AMIs are read from Parameter Store's history of the channel. A rollback writes a new value, so
another rollback can return to the AMI that it replaced. `vmsnix undo` is different: it deletes what an
unfinished publish created.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors, outcomes
from vmsnix_ops.arguments import check_arguments, check_parameters
from vmsnix_ops.aws import channels, parameters, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.regions import ALL, check_regions, enabled_regions
from vmsnix_ops.aws.session import client
from vmsnix_ops.channels import plans, records
from vmsnix_ops.channels.history import ChannelEntry, Note, entries, frame
from vmsnix_ops.interrupts import stopping
from vmsnix_ops.progress import Progress, counted, current
from vmsnix_ops.publish.home import ONE_OF_MANY, check_home
from vmsnix_ops.publish.journal import record_outcomes, record_run
from vmsnix_ops.publish.outcomes import CONFLICT, RegionStep, record_region
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.settings import Settings, check_channel, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.images import Ami

__all__ = ["RollbackPlan", "RollbackResult", "check_parameters", "plan"]


def __dir__() -> list[str]:
    return __all__


REPEATED_WITHIN = timedelta(hours=1)
"""A second rollback without `to` within this time changes nothing: it is taken for a repetition."""


@dataclass(frozen=True, slots=True)
class RollbackTarget:
    """The plan for one region."""

    region: str
    entries: tuple[ChannelEntry, ...] = ()  # the values of the channel, oldest first
    target: Ami | None = None  # the AMI that the channel will contain; `None` if there is none
    problem: errors.VmsnixError | None = field(default=None, compare=False)  # why the channel cannot be set
    ec2: EC2Client = field(kw_only=True, repr=False, compare=False)
    ssm: SSMClient = field(kw_only=True, repr=False, compare=False)

    @property
    def current(self) -> ChannelEntry | None:
        """The current value of the channel."""
        return self.entries[-1] if self.entries else None

    @property
    def done(self) -> bool:
        """Whether the channel already contains the target."""
        current, target = self.current, self.target
        return current is not None and target is not None and current.ami_id == target.ami_id

    @property
    def rolled_back_from(self) -> str:
        """The AMI that the last rollback replaced; empty if the last change was not a rollback."""
        note = self.current.note if self.current else None
        return note.before if isinstance(note, Note) else ""


def _read(target: RollbackTarget, parameter: str) -> RollbackTarget:
    """Return a region with the values of its channel; an error is part of the plan."""
    try:
        target = replace(target, entries=entries(target.ec2, target.ssm, parameter))
        found = parameters.find_parameter(target.ssm, parameter)
        if found is not None:
            parameters.check_parameter_type(found)
            parameters.check_accepts_value(
                parameter, parameters.read_history(target.ssm, parameter), target.region
            )
    except errors.VmsnixError as error:
        return replace(target, problem=error)
    return target


def _choose(targets: list[RollbackTarget], to: str, *, account: str) -> list[RollbackTarget]:
    """Return the regions with the AMI that each channel will contain.

    `to` is an AMI ID or name; an ID means the same image in every region. Empty: the previous AMI.
    """
    known = [entry for target in targets for entry in target.entries]
    digests = {entry.digest for entry in known if to and to in (entry.ami_id, entry.name)} - {""}
    return [
        _choose_in_region(target, to, digests, account) if target.entries and not target.problem else target
        for target in targets
    ]


def _choose_in_region(target: RollbackTarget, to: str, digests: set[str], account: str) -> RollbackTarget:
    try:
        entry = _chosen_entry(target, to, digests)
        try:
            return replace(target, target=_check_usable(target.ec2, entry.ami_id, account=account))
        except (errors.ChannelError, errors.RegistrationError) as error:
            fix = f"{error.fix} {_choices(target.entries, entry.ami_id)}".strip()
            raise errors.ChannelError(error.what, why=error.why, fix=fix) from error
    except errors.VmsnixError as error:
        return replace(target, problem=error)


def _chosen_entry(target: RollbackTarget, to: str, digests: set[str]) -> ChannelEntry:
    known, current, before = target.entries, target.entries[-1], target.rolled_back_from
    if to:
        found = [one for one in known if to in (one.ami_id, one.name) or one.digest in digests]
    elif before and datetime.now(UTC) - current.since < REPEATED_WITHIN:
        return current
    elif before:
        raise errors.ChannelError(
            f"The channel in {target.region} was already rolled back on {current.since:%Y-%m-%d %H:%M} UTC.",
            why=f"The previous AMI is now {before}, which it was rolled back from.",
            fix=f"To return to {before}, pass --to {before}. {_choices(known)}",
        )
    else:
        found = [one for one in known if one.ami_id != current.ami_id]
    if not found:
        what = f"has never been {to}" if to else f"has only ever been {current.ami_id}"
        raise errors.ChannelError(
            f"Nothing to roll back to: the channel in {target.region} {what}.",
            why=f"Its history has {counted(len(known), 'value')}, since {known[0].since:%Y-%m-%d}.",
            fix=_choices(known),
        )
    return found[-1]


def _choices(known: tuple[ChannelEntry, ...], *refused: str) -> str:
    """Return an instruction with the AMIs that `to` could name."""
    excluded = {known[-1].ami_id, *refused}
    names = dict.fromkeys(e.name for e in reversed(known) if e.usable and e.ami_id not in excluded)
    return f"Choose one with --to: {', '.join(list(names)[:5])}." if names else "Promote another AMI."


def _check_usable(ec2: EC2Client, ami_id: str, *, account: str) -> Ami:
    """Return an AMI as it is now; refuse one that cannot be launched or must not be used."""
    found = channels.check_still_usable(ec2, ami_id, owner=account)
    snapshots.check_snapshots_of(ec2, found)
    return found


def _check_same_image(targets: Iterable[RollbackTarget], *, to: str) -> None:
    """Refuse a rollback after which the regions would contain different images."""
    pairs = [(one, one.current, one.target) for one in targets]
    chosen = [(one, current, ami) for one, current, ami in pairs if current is not None and ami is not None]
    previous = {ami.digest for _, _, ami in chosen}
    # A deregistered AMI has no digest; the regions that are already rolled back may differ.
    current_digests = {current.digest for one, current, _ in chosen if not one.done} - {""}
    if len(previous) <= 1 and (to or len(current_digests) <= 1):
        return
    images = "; ".join(
        f"{one.region} {now.name or now.ami_id}, before {ami.name}" for one, now, ami in chosen
    )
    raise errors.ParameterError(
        "The regions contain different images, so they have no common earlier AMI.",
        why=f"{images}. A promotion was interrupted, or one region was changed separately.",
        fix="Choose the AMI for all regions: --to NAME.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPlan(plans.ChannelPlan):
    """A checked rollback that has not started. Make it with `plan`."""

    targets: tuple[RollbackTarget, ...]
    skipped: tuple[str, ...]  # regions whose channel is recorded in the tables and no longer exists

    @property
    def title(self) -> str:
        """The channel, its image and the account."""
        return f"Move channel {self.channel} of {self.image} back to an earlier AMI, account {self.account}"

    @property
    def ami(self) -> Ami | None:
        """The AMI of the first region with a usable one."""
        return next((target.target for target in self.targets if target.target), None)

    @property
    def home_region(self) -> str:
        """The first region."""
        return self.targets[0].region

    def history(self) -> pd.DataFrame:
        """Return the values of the channel in each region, newest first; columns as in `history.COLUMNS`."""
        return frame(target.entries for target in self.targets)

    def content(self) -> dict[str, str]:
        """Return the facts of the plan by their names."""
        facts = self.common_content() | {"regions without the channel": ", ".join(self.skipped)}
        for target in self.targets:
            current, new = target.current, target.target
            facts[f"{target.region}, channel"] = (
                f"{current.ami_id} (version {current.version})" if current else ""
            )
            facts[f"{target.region}, new AMI"] = f"{new.ami_id} ({new.name}), {new.digest}" if new else ""
            facts[f"{target.region}, problem"] = type(target.problem).__name__ if target.problem else ""
        return facts

    def is_done(self, name: str, before: Mapping[str, str]) -> bool:  # noqa: ARG002 - as in the base class
        """Return whether a fact is about the channel of a region that is already rolled back."""
        return any(name == f"{target.region}, channel" and target.done for target in self.targets)

    def apply(self) -> RollbackResult:
        """Set the channel in each region, and return the outcome. A dry run changes nothing.

        It is safe to run twice: a channel is set only if its value is the one that the plan read, and only to
        an AMI that can still be used.

        Raises
        ------
        vmsnix_ops.errors.StalePlanError
            It is not the expected plan; nothing was done.
        vmsnix_ops.errors.InterruptedRunError
            A signal stopped it.
        """
        self.check_expected()
        return _apply(self)

    def table(self) -> display.DisplayTable:
        """Return the current and the new AMI of each region as a table for display."""
        rows = []
        for target in self.targets:
            current = _labelled(target.current.ami_id, target.current.name) if target.current else "nothing"
            new = _labelled(target.target.ami_id, target.target.name) if target.target else ""
            outcome = "failed" if target.problem else "unchanged" if target.done else "planned"
            rows.append([target.region, outcome, current, new, str(target.problem or "")])
        return display.make_table(("region", "outcome", "current AMI", "new AMI", "why"), rows)

    def notes(self) -> list[str]:
        """Return warnings that the table does not contain."""
        found = [
            f"{target.region} was already rolled back at {target.current.since:%H:%M} UTC from "
            f"{target.rolled_back_from}. To return, pass --to {target.rolled_back_from}."
            for target in self.targets
            if target.done and target.rolled_back_from and target.current
        ]
        if any(entry.instances is None for target in self.targets for entry in target.entries):
            found.append("Instances are not counted: this needs ec2:DescribeInstances.")
        found += [f"Skipped {region}: it has no such channel." for region in self.skipped]
        return found + self.last_notes()


@dataclass(frozen=True, slots=True)
class RollbackResult(plans.ChannelResult):
    """The outcome of a rollback, by region and step."""

    job = "The rollback"
    plan: RollbackPlan

    @property
    def fix(self) -> str:
        """What to do after a partial rollback."""
        return _fix(self.plan)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        before = {one.region: one.current.ami_id for one in self.plan.targets if one.current}
        return plans.ChannelResult.as_dict(self) | {"before": before}


@check_arguments
def plan(
    *,
    image: str,
    channel: str,
    to: str = "",
    region: str = "",
    regions: Iterable[str] = (),
    topic: str = "",
    dry_run: bool = True,
    expect_plan: str = "",
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> RollbackPlan:
    """Read the earlier values of the channel, and return what will happen. Nothing is changed.

    Parameters
    ----------
    image, channel
        The channel to set.
    to
        AMI ID or name to return to, the same image in every region; by default the previous AMI. Without it,
        a channel that was rolled back within the last hour is unchanged, and one that was rolled back earlier
        is refused.
    region, regions
        Regions of the channel; by default the region, and every other one whose channel is recorded in the
        tables. ``["all"]`` means every enabled region that has the channel.
    topic
        ARN of an SNS topic to notify.
    dry_run
        Whether `apply` changes nothing.
    expect_plan
        Fingerprint of the dry run that was checked: `apply` refuses another plan.
    settings, progress, session
        Override the settings, the progress display and the AWS session.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is no such channel, or the regions would contain different images.
    vmsnix_ops.errors.ChannelError
        The channel has no value in any region.
    """
    settings, given = settings or load(), tuple(regions)
    check_channel(channel, settings)
    parameter = parameters.parameter_name(settings.channel_prefix, image, channel)
    plans.check_topic(topic)
    home = check_home(region, settings=settings, session=session)
    run = current_run("rollback", settings=settings)
    tables = RunTables(settings, run)
    if given == (ALL,):
        chosen = enabled_regions(home.ec2)
    else:
        chosen = check_regions(given or _recorded_regions(tables, image, channel, home.region))
    unread = [
        # Clients are made one after the other: sessions are not thread safe, clients are.
        RollbackTarget(
            name,
            ec2=client(home.session, "ec2", name, **ONE_OF_MANY),
            ssm=client(home.session, "ssm", name, **ONE_OF_MANY),
        )
        for name in chosen
    ]
    with ThreadPoolExecutor(len(unread), thread_name_prefix="read") as pool:
        targets = list(pool.map(lambda target: _read(target, parameter), unread))
    if not any(target.entries for target in targets):
        raise next((t.problem for t in targets if t.problem), None) or errors.ChannelError(
            f"The channel {channel} of {image} has no value in {', '.join(chosen)}.",
            why=f"No parameter {parameter}.",
            fix="Promote an AMI to it first: vmsnix promote",
        )
    missing = [target.region for target in targets if not target.entries and not target.problem]
    if given in ((), (ALL,)):
        targets = [target for target in targets if target.region not in missing]
    else:
        targets = [_refuse_missing(one, parameter) if one.region in missing else one for one in targets]
    targets = _choose(targets, to, account=home.account)
    _check_same_image(targets, to=to)
    return RollbackPlan(
        account=home.account,
        image=image,
        channel=channel,
        parameter=parameter,
        topic=topic,
        checks=(*home.checks, *plans.check_topic_exists(topic, home.session)),
        dry_run=dry_run,
        expect_plan=expect_plan,
        session=home.session,
        run=run,
        tables=tables,
        progress=progress or current(),
        targets=tuple(targets),
        skipped=() if given else tuple(missing),
    )


def _recorded_regions(tables: RunTables, image: str, channel: str, home: str) -> tuple[str, ...]:
    where = [("image", "==", image), ("channel", "==", channel)]
    try:
        found = tables.read("promotions", columns=["region"], where=where)
    except errors.RecordsError as error:
        raise errors.RecordsError(
            error.what,
            why=error.why,
            fix=f"To roll back without the table, give the regions, or pass --regions all. {error.fix}",
        ) from error
    return (home, *sorted(found["region"]))


def _refuse_missing(target: RollbackTarget, parameter: str) -> RollbackTarget:
    problem = errors.ChannelError(
        f"No parameter {parameter} in {target.region}.",
        fix="Leave the region out, or promote an AMI there first.",
    )
    return replace(target, problem=problem)


def _apply(plan: RollbackPlan) -> RollbackResult:
    if plan.dry_run:
        planned = [_planned(target) for target in plan.targets] + plan.planned_announcement()
        return RollbackResult(tuple(planned), plan)
    rows: list[RegionStep] = []
    run_columns = {"region": plan.home_region, "account": plan.account, "image": plan.image}

    def refused() -> str:
        return plans.CHANGED if any(row.step == CONFLICT for row in rows) else ""

    try:
        with stopping():
            for target in plan.targets:
                if refused():
                    rows.append(RegionStep(target.region, plans.SET_CHANNEL, "skipped", why=refused()))
                else:
                    rows += _roll_back(plan, target)
    except KeyboardInterrupt as error:
        done = [row.region for row in rows if row.step == plans.SET_CHANNEL and row.outcome != "failed"]
        interrupted = errors.InterruptedRunError(
            "The rollback was interrupted.",
            why=f"Rolled back so far: {', '.join(done) or 'no region, or the current one'}.",
            fix=_fix(plan),
        )
        record_run(plan.run, plan.tables, "cancelled", plan.started_at, **run_columns, error=str(interrupted))
        raise interrupted from error
    amis = {row.region: row.ami_id for row in rows if row.outcome in outcomes.SUCCEEDED}
    rows += plan.announce(amis, refused=refused())
    result = RollbackResult(tuple(rows), plan)
    return record_outcomes(plan.run, plan.tables, result, plan.started_at, **run_columns)


def _planned(target: RollbackTarget) -> RegionStep:
    ami_id = target.target.ami_id if target.target else ""
    row = RegionStep(target.region, plans.SET_CHANNEL, "planned", ami_id=ami_id)
    if target.problem is not None:
        return replace(row, outcome="failed", why=str(target.problem), error=target.problem)
    return replace(row, outcome="unchanged") if target.done else row


def _fix(plan: RollbackPlan) -> str:
    """Return how to continue; the AMI's name makes the command repeatable at any later time."""
    name = plan.ami.name if plan.ami else "NAME"
    return f"Run it again with --to {name}: it does what is left and repeats nothing."


def _roll_back(plan: RollbackPlan, target: RollbackTarget) -> list[RegionStep]:
    """Set the channel of one region and record it; also record an unrecorded earlier rollback."""
    row = _planned(target)
    current, ami = target.current, target.target
    rows, before = [row], current.ami_id if current else ""
    if row.outcome == "planned" and current and ami:
        row, overwritten = _set_channel(plan, target, row, current, ami)
        rows = [row]
        if overwritten is not None:
            before = overwritten.value
            rows.append(plans.conflict(target.region, overwritten))

    def record() -> None:
        if row.outcome == "failed" or current is None or ami is None:
            return
        latest = records.latest_of_channel(plan.tables, target.region, plan.image, plan.channel)
        recorded_ami = latest.get("ami_id", ami.ami_id)
        if row.outcome == "changed" or recorded_ami != ami.ami_id:
            previous = recorded_ami if target.done else before
            plan.tables.append("promotions", [plan.promotion_row("roll back", ami, previous)])

    return record_region(rows, target.region, record, lambda: plan.record_steps(rows))


def _set_channel(
    plan: RollbackPlan, target: RollbackTarget, row: RegionStep, current: ChannelEntry, ami: Ami
) -> tuple[RegionStep, parameters.OverwrittenValue | None]:
    started, overwritten = time.monotonic(), None
    try:
        with plan.progress.step(target.region):
            _check_usable(target.ec2, ami.ami_id, account=plan.account)  # the plan may be hours old
            note = Note("roll back", ami.name, plan.run.run_id, before=current.name or current.ami_id)
            expected = parameters.ExpectedValue(current.version, current.ami_id)
            written = parameters.set_channel(
                target.ssm,
                plan.parameter,
                ami.ami_id,
                expected=expected,
                description=note.text(),
                tags={tagging.IMAGE: plan.image},
            )
            overwritten = written.overwritten
            plans.check_after_write(
                target.ec2,
                target.ssm,
                plan.parameter,
                ami_id=ami.ami_id,
                owner=plan.account,
                written=written,
                expected=expected,
                note=note,
            )
    except errors.VmsnixError as error:
        return replace(row, outcome="failed", why=str(error), error=error), overwritten
    what, seconds = f"from {_labelled(current.ami_id, current.name)}", round(time.monotonic() - started, 3)
    return replace(row, outcome="changed", what=what, seconds=seconds), overwritten


def _labelled(ami_id: str, name: str) -> str:
    return f"{ami_id} ({name})" if name else ami_id
