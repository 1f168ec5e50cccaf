"""Promote an AMI: copy it to regions, share it, set its dates, and set a channel to it.

>>> from vmsnix_ops import promote
>>> plan = promote.plan(image="ecs-node", channel="stable", regions=["eu-west-1"])  # doctest: +SKIP
>>> print(plan.apply())  # doctest: +SKIP
region        ami_id                 copy        point       why
eu-central-1  ami-0123456789abcdef0              changed
eu-west-1     ami-0fedcba9876543210  created     unchanged

Every step finds its result or creates it (`vmsnix_ops.channels.steps`). To finish a promotion that was
killed, or that AWS refused in one region, run it again.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors, outcomes
from vmsnix_ops.arguments import MOST_DAYS, in_range
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.aws import channels, deprecation, images, parameters, sharing, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.session import client
from vmsnix_ops.channels import records
from vmsnix_ops.channels import steps as each_region
from vmsnix_ops.channels.history import Note, entries, frame, show
from vmsnix_ops.channels.steps import Spot, Wanted
from vmsnix_ops.progress import Progress, counted, current
from vmsnix_ops.progress import Step as Shown
from vmsnix_ops.publish._plan import check_public
from vmsnix_ops.publish.home import ONE_OF_MANY, checked_home
from vmsnix_ops.publish.interrupts import stopping
from vmsnix_ops.publish.journal import record_outcomes, record_run
from vmsnix_ops.publish.outcomes import ANNOUNCE, CONFLICT, Outcomes, RegionStep, recorded
from vmsnix_ops.records import acts
from vmsnix_ops.records.run_context import RunContext, current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future

    import boto3
    import pandas as pd

    from vmsnix_ops.aws.checks import Check
    from vmsnix_ops.outcomes import StepOutcome

__all__ = ["PromotionPlan", "PromotionResult", "plan"]


def __dir__() -> list[str]:
    return __all__


@dataclass(frozen=True, slots=True)
class Planned:
    """What is planned of one step in one region.

    Attributes
    ----------
    step
        Its name.
    outcome
        ``"planned"``, ``"reused"`` or ``"unchanged"``; ``"failed"``: it would fail, `what` says why.
    what
        What will happen, or what is there already.
    problem
        Behind a failure.
    """

    step: str
    outcome: StepOutcome
    what: str
    problem: errors.VmsnixError | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Target:
    """What is planned in one region.

    Attributes
    ----------
    region, best_effort
        Where, and whether a failure there is only told.
    kms_key
        Key of the copy; empty for none.
    ami_id
        The AMI there, when it is there already.
    steps
        In their order.
    strangers
        Who may use the AMI or its snapshots, was not recorded and is not asked for.
    """

    region: str
    best_effort: bool
    kms_key: str
    ami_id: str
    steps: tuple[Planned, ...]
    strangers: sharing.Audience = field(default_factory=sharing.Audience)


@dataclass(frozen=True, slots=True)
class PromotionPlan(display.Displayed):
    """A checked promotion that has not started. Make it with `plan`.

    Attributes
    ----------
    wanted
        The AMI, and what is wanted of every region.
    account
        Whose it is.
    image, channel
        The channel that will point to it; an empty channel moves no pointer.
    targets
        What is planned, region by region; the AMI's own region first.
    spots
        The regions themselves, with their clients.
    topic
        ARN of an SNS topic that is told; empty for none.
    checks
        What was checked of credentials, account and region.
    dry_run
        `apply` does nothing.
    """

    wanted: Wanted
    account: str
    image: str
    channel: str
    targets: tuple[Target, ...]
    topic: str
    checks: tuple[Check, ...]
    dry_run: bool
    spots: tuple[Spot, ...] = field(repr=False, compare=False)
    session: boto3.Session = field(repr=False, compare=False)
    run: RunContext = field(repr=False, compare=False)
    tables: RunTables = field(repr=False, compare=False)
    progress: Progress = field(repr=False, compare=False)
    started_at: datetime = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """One line: what becomes what."""
        source = self.wanted.source
        to = f" to {self.channel}" if self.channel else ""
        return f"Promote {source.name}{to} in {counted(len(self.targets), 'region')}, account {self.account}"

    def apply(self) -> PromotionResult:
        """Do everything that the plan lists, and return the outcome. A dry run does nothing.

        Safe to run twice, and after a crash at any point: every step looks first, copies have ClientTokens of
        their content, and a message goes out once the tables do not know it. SIGINT and SIGTERM end it
        between two looks; the second one at once.

        Raises
        ------
        vmsnix_ops.errors.InterruptedRunError
            The operator asked to stop.
        """
        return _apply(self)

    def history(self) -> pd.DataFrame:
        """Return what the channel pointed to in the regions of the plan, as it is now; empty without one.

        A region that may not be read has one row, which says so in its note.
        """
        pointer, known, unread = self.wanted.pointer, [], {}
        for spot in self.spots if pointer else ():
            try:
                known.append(entries(spot.ec2, spot.ssm, pointer))
            except errors.VmsnixError as error:
                unread[spot.region] = str(error)
        return frame(known, unread)

    def show_history(self) -> display.Shown:
        """Return `history` for people."""
        return show(self.history())

    def table(self) -> display.Shown:
        """Return what will happen, for people."""
        rows = []
        for target in self.targets:
            name = f"{target.region} (best effort)" if target.best_effort else target.region
            rows += [[name, step.step, step.outcome, step.what] for step in target.steps]
        if self.topic:
            rows.append([self.topic.split(":")[3], "announce", "planned", f"to {self.topic}"])
        return display.shown(("region", "step", "outcome", "what"), rows)

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        refused = any(step.outcome == "failed" for target in self.targets for step in target.steps)
        found = ["A refused step will fail; the other regions continue."] if refused else []
        found += [
            f"{target.ami_id} in {target.region} is also shared with {target.strangers}, which is not "
            "recorded. The promotion will record it. To end it, pass --revoke-from."
            for target in self.targets
            if target.strangers
        ]
        found += [
            f"{check.name}: {check.evidence} {check.fix}" for check in self.checks if check.outcome == "warn"
        ]
        return [*found, *(["Dry run: nothing will be changed."] if self.dry_run else [])]


@dataclass(frozen=True, slots=True)
class PromotionResult(Outcomes):
    """The outcome of a promotion, by region and step."""

    job = "The promotion"
    plan: PromotionPlan

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        source = self.plan.wanted.source
        amis = {row.region: row.ami_id for row in self.rows if row.ami_id}
        return {
            "status": self.status,
            "dry_run": self.plan.dry_run,
            "ami_id": source.ami_id,
            "image_name": source.name,
            "region": source.region,
            "account": self.plan.account,
            "image": self.plan.image,
            "digest": source.digest,
            "channel": self.plan.channel or None,
            "pointer": self.plan.wanted.pointer or None,
            "amis": amis,
            "outcomes": [self.plain(row) for row in self.rows],
            "overwritten": [error.overwritten for error in self.conflicts],
            "seconds": round(sum(row.seconds for row in self.rows), 3),
        }


@typed
def plan(
    *,
    ami: str = "",
    image: str = "",
    channel: str = "",
    region: str = "",
    regions: Iterable[str] = (),
    best_effort: Iterable[str] = (),
    kms_keys: Mapping[str, str] | None = None,
    share_with: Iterable[str] = (),
    revoke_from: Iterable[str] = (),
    public: bool = False,
    confirm_public: str = "",
    deprecate_days: int = 0,
    protect: bool = False,
    unprotect: bool = False,
    topic: str = "",
    dry_run: bool = True,
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> PromotionPlan:
    """Check the AMI and every region, and return what will happen. Nothing is changed.

    Parameters
    ----------
    ami
        The AMI: its id, its name, a channel (what that points to), or nothing: the newest of the image.
    image
        Short name of the image; only needed where `ami` does not say it.
    channel
        The channel that shall point to it; nothing moves no pointer.
    region
        Where the AMI is; by default the settings' region, else AWS's own.
    regions, best_effort
        Where it shall be, too; a failure in one of the latter is told and does not count. ``["all"]``: every
        region that is enabled.
    kms_keys
        Region and key, for copies that shall be encrypted with a key of yours.
    share_with, revoke_from
        Accounts, ARNs of organizations and organizational units; ``public`` may be revoked, too. What is not
        named stays as it is.
    public, confirm_public
        Let everybody launch it: with the id of the account once more, as for a publish.
    deprecate_days
        Deprecate it so many days after its creation; 0 leaves its date as it is.
    protect, unprotect
        Protect it from being deregistered, or lift that protection; with neither it stays as it is.
    topic
        ARN of an SNS topic to tell.
    dry_run
        `apply` only repeats the plan.
    settings, progress, session
        Where they do not come from the surroundings.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        A parameter is missing or cannot be right.
    vmsnix_ops.errors.AwsError
        Credentials, account or home region would not do, or the AMI is not one to promote. What is wrong in
        one of the other regions is no error here; the plan shows it.
    """
    settings = settings or load()
    in_range("deprecate_days", deprecate_days, 0, MOST_DAYS, "days")
    share, revoke = each_region.audiences(share_with, revoke_from, public=public)
    check_public(public, confirm_public)
    if channel:
        channels.check_channel(channel, settings)
    each_region.check_protection(protect=protect, unprotect=unprotect)
    home = checked_home(region, settings=settings, session=session)
    check_public(public, confirm_public, home.account)
    each_region.check_topic(topic)
    others, willing = each_region.regions_of(home, tuple(regions), tuple(best_effort))
    keys = dict(kms_keys or {})
    each_region.check_keys(keys, home.region, others)

    ec2 = home.ec2
    if not ami and not image:
        raise errors.ParameterError("No AMI given.", fix="Add --ami, or --image for the image's newest AMI.")
    found = channels.find_ami(ec2, home.ssm, ami, image=image, settings=settings)
    source = channels.check_usable(found, owner=home.account, now=datetime.now(UTC))
    held = snapshots.check_whole(ec2, source)
    image = each_region.image_of(source, image)
    moment = source.created_at + timedelta(days=deprecate_days) if deprecate_days else None
    if moment is not None:
        deprecation.check_date(source, moment, public=public or source.public)
    topic_there = each_region.topic_checks(topic, home.session)
    run = current_run("promote-ami", settings=settings)
    wanted = Wanted(
        source=source,
        source_encrypted=any(one.encrypted for one in held),
        share=share,
        revoke=revoke,
        deprecate_at=moment,
        protect=protect,
        unprotect=unprotect,
        pointer=parameters.parameter_name(settings.pointer_prefix, image, channel) if channel else "",
        note=Note("promote", source.name, run.run_id),
    )
    spots = [
        # One after the other: sessions are not thread safe, clients are.
        Spot(
            wanted,
            name,
            keys.get(name, ""),
            client(home.session, "ec2", name, **ONE_OF_MANY),
            client(home.session, "ssm", name, **ONE_OF_MANY),
            ec2,
            client(home.session, "service-quotas", name, **ONE_OF_MANY),
        )
        for name in (home.region, *others)
    ]
    spots[0].ami = source
    for each in spots:
        each_region.refuse_encrypted_public(each)
    if not any(each_region.steps(wanted, home=each.is_home) for each in spots):
        raise errors.ParameterError(
            "Nothing to do.",
            why="No channel, regions, sharing, deprecation date or protection given.",
            fix="Add at least one of them, such as --channel stable.",
        )
    tables, progress = RunTables(settings, run), progress or current()
    with (
        progress.step("read the regions", total=len(spots)) as shown,
        ThreadPoolExecutor(len(spots), thread_name_prefix="look") as pool,
    ):

        def look(each: Spot) -> Target:
            target = _look(each, tables, best_effort=each.region in willing)
            shown.advance(1)
            return target

        targets = tuple(pool.map(look, spots))
    return PromotionPlan(
        wanted=wanted,
        account=home.account,
        image=image,
        channel=channel,
        targets=targets,
        topic=topic,
        checks=(*home.checks, *topic_there),
        dry_run=dry_run,
        spots=tuple(spots),
        session=home.session,
        run=run,
        tables=tables,
        progress=progress,
        started_at=datetime.now(UTC),
    )


def _look(spot: Spot, tables: RunTables, *, best_effort: bool) -> Target:
    """Look at one region; whatever is wrong there is part of the plan."""
    planned: list[Planned] = []
    refused = ""
    for step in each_region.steps(spot.wanted, home=spot.is_home):
        if refused:
            planned.append(Planned(step.name, "skipped", f"because {refused} was refused"))
            continue
        try:
            if not planned:
                spot.check_region()
            looked = step.look(spot)
            planned.append(Planned(step.name, _found(step) if looked.so else "planned", looked.what))
        except errors.VmsnixError as error:
            planned.append(Planned(step.name, "failed", str(error), error))
            refused = step.name
    strangers = sharing.Audience()
    if spot.ami is not None and not refused:
        known = spot.wanted.share.names() + spot.wanted.revoke.names()
        there = records.strangers(tables, spot.ec2, spot.ami)
        strangers = sharing.audience([name for name in there.names() if name not in known])
    return Target(spot.region, best_effort, spot.kms_key, spot.ami_id, tuple(planned), strangers)


# Carrying a promotion out: all regions at once, each by itself, and everything written down.
#
# A region ends at its first failure and the others go on. What a region came to is recorded as soon as it
# ends.
#
# A channel that somebody changed between plan and write ends the promotion everywhere: nothing more is
# changed, and a person decides which value is right.

HALTED = "a channel was changed between plan and write; the remaining steps were skipped"
UNRECORDED = "an irreversible act could not be announced on the disk; the remaining steps were skipped"


def _apply(plan: PromotionPlan) -> PromotionResult:
    if plan.dry_run:
        return PromotionResult(tuple(_planned(plan)), plan)
    stop, halted = threading.Event(), list[str]()
    spots = [replace(each, ami=None, still_wanted=lambda: _stop_if(stop)) for each in plan.spots]
    done: dict[str, list[RegionStep]] = {}
    with stopping(), ThreadPoolExecutor(len(spots), thread_name_prefix="promote") as pool:
        running = {
            pool.submit(_region, plan, target, each, halted): each
            for target, each in zip(plan.targets, spots, strict=True)
        }
        try:
            for future in as_completed(running):
                each = running[future]
                done[each.region] = _record(plan, each, future)
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future, each in running.items():
                if each.region not in done and not future.cancelled() and future.exception() is None:
                    done[each.region] = _record(plan, each, future)
            interrupted = isinstance(error, KeyboardInterrupt)
            record_run(
                plan.run, plan.tables, "cancelled" if interrupted else "failed", plan.started_at,
                **_run_columns(plan), error=str(error) or type(error).__name__,
            )  # fmt: skip
            if interrupted:
                raise _interrupted() from error
            raise
    rows = [row for target in plan.targets for row in done[target.region]]
    if plan.topic and halted:
        rows.append(RegionStep(plan.topic.split(":")[3], ANNOUNCE, "skipped", why=halted[0]))
    elif plan.topic:
        rows += _announce(plan, spots, rows)
    outcomes = PromotionResult(tuple(rows), plan)
    return record_outcomes(plan.run, plan.tables, outcomes, plan.started_at, **_run_columns(plan))


def _planned(plan: PromotionPlan) -> list[RegionStep]:
    """Return what a dry run comes to: what would be done, and what would be refused."""
    rows = []
    for target in plan.targets:
        for step in target.steps:
            row = RegionStep(
                target.region,
                step.step,
                step.outcome,
                ami_id=target.ami_id,
                best_effort=target.best_effort,
                error=step.problem,
            )
            sound = step.outcome in ("planned", *outcomes.SUCCEEDED)
            rows.append(replace(row, what=step.what) if sound else replace(row, why=step.what))
    return rows + records.planned(plan.topic)


def _region(plan: PromotionPlan, target: Target, spot: Spot, halted: list[str]) -> list[RegionStep]:
    """Carry out the steps of one region, up to the first that fails, or that ends the whole promotion.

    `halted` says why nothing more is changed anywhere; it is empty as long as the promotion goes on.
    """
    rows: list[RegionStep] = []
    failed = ""
    with (
        acts.recording(plan.run.folder, plan.run.run_id),
        plan.progress.step(spot.region, total=100, unit="percent") as shown,
    ):
        spot.shown = shown
        steps = each_region.steps(plan.wanted, home=spot.is_home)
        for step in steps:
            row = RegionStep(spot.region, step.name, "skipped", best_effort=target.best_effort)
            if failed or halted:
                why = f"because {failed} failed" if failed else halted[0]
                rows.append(replace(row, why=why, ami_id=spot.ami_id))
                continue
            started = time.monotonic()
            try:
                spot.still_wanted()
                if not rows:
                    spot.check_region()
                if spot.is_home:
                    _look_again(plan, spot)
                row = _step(step, spot, row)
                if step is steps[-1] and {row.outcome, *(one.outcome for one in rows)} & set(outcomes.WORKED):
                    _check_again(plan, spot, step)
            except errors.InterruptedRunError:
                raise
            except errors.VmsnixError as error:
                row, failed = replace(row, outcome="failed", why=str(error), error=error), step.name
                if isinstance(error, errors.UnrecordedActError):
                    halted.append(UNRECORDED)
                shown.message(f"{step.name} failed: {error}")
            rows.append(replace(row, ami_id=spot.ami_id, seconds=round(time.monotonic() - started, 3)))
            if spot.moved is not None and spot.moved.overwritten is not None:
                halted.append(HALTED)
                overwrote = spot.moved.overwritten.error()
                spot.pointed_to = spot.moved.overwritten.value
                # It counts also where a failure would not: somebody else's value was replaced.
                rows.append(
                    RegionStep(
                        spot.region,
                        CONFLICT,
                        "failed",
                        why=str(overwrote),
                        ami_id=spot.ami_id,
                        error=overwrote,
                    )
                )
    return rows


def _found(step: each_region.Step) -> StepOutcome:
    return "reused" if step.name == "copy" else "unchanged"


def _made(step: each_region.Step) -> StepOutcome:
    return "created" if step.name == "copy" else "changed"


def _step(step: each_region.Step, spot: Spot, row: RegionStep) -> RegionStep:
    looked = step.look(spot)
    if looked.so:
        return replace(row, outcome=_found(step), what=looked.what)
    if isinstance(spot.shown, Shown):
        spot.shown.message(f"{step.name}: {looked.what}")
    step.do(spot)
    return replace(row, outcome=_made(step), what=looked.what)


def _check_again(plan: PromotionPlan, spot: Spot, step: each_region.Step) -> None:
    """Check once more that nobody retires the AMI of a region, after everything there was written.

    Raises
    ------
    vmsnix_ops.errors.RegistrationError
        Somebody does; the channel has its earlier value again, if we set it and nobody else did since.
    vmsnix_ops.errors.UnrecordedActError
        The AMI is being retired, and the channel that this run made could not be deleted again.
    """
    try:
        channels.check_repeatedly(spot.ec2, spot.ami_id, owner=plan.account)
    except errors.VmsnixError as error:
        if not isinstance(step, each_region.Point) or spot.moved is None:
            raise
        kind: type[errors.VmsnixError] = errors.RegistrationError
        fix = error.fix
        if spot.moved.overwritten is not None:
            what = f"{plan.wanted.pointer} in {spot.region} still contains it."  # nothing more is changed
        else:
            try:
                what = step.give_back(spot)
            except errors.VmsnixError as second:
                what = f"{plan.wanted.pointer} in {spot.region} still contains it. {second.what} {second.why}"
                if isinstance(second, errors.UnrecordedActError):
                    kind = errors.UnrecordedActError  # which ends the promotion in every region
                    where = f"--region {spot.region} --name {plan.wanted.pointer}"
                    fix = f"{error.fix} Delete the channel: aws ssm delete-parameter {where}"
        raise kind(error.what, why=f"{error.why} {what}".strip(), fix=fix) from error


def _look_again(plan: PromotionPlan, spot: Spot) -> None:
    """See whether the AMI is still one to promote: the plan may be hours old."""
    source = plan.wanted.source
    found = images.find(spot.ec2, [source.ami_id]).get(source.ami_id)
    if found is None:
        raise errors.RegistrationError(
            f"The AMI {source.ami_id} in {source.region} no longer exists.",
            why="It was deregistered after the plan was made.",
            fix="Make a new plan.",
        )
    spot.ami = channels.check_usable(found, owner=plan.account, now=datetime.now(UTC))


def _record(plan: PromotionPlan, spot: Spot, future: Future[list[RegionStep]]) -> list[RegionStep]:
    """Write down what a region came to; where that fails, what was done is done, and the others go on."""
    rows = future.result()
    failed = any(row.outcome in ("failed", "skipped") for row in rows if row.step != CONFLICT)

    def look_back() -> None:
        if spot.ami is not None:
            _record_ami(plan, spot, pointed=not failed)

    return recorded(rows, spot.region, look_back, lambda: _write_steps(plan, rows))


def _announce(plan: PromotionPlan, spots: list[Spot], rows: list[RegionStep]) -> list[RegionStep]:
    """Tell the topic of every region that is as wanted."""
    failed = {row.region for row in rows if row.outcome == "failed" and row.step != "record"}
    amis = {spot.region: spot.ami_id for spot in spots if spot.ami_id and spot.region not in failed}
    source = plan.wanted.source
    content = {
        "image": plan.image,
        "channel": plan.channel,
        "name": source.name,
        "digest": source.digest,
        "account": plan.account,
        "amis": dict(sorted(amis.items())),
    }
    return records.announce(plan.topic, content, run=plan.run, tables=plan.tables, session=plan.session)


def _write_steps(plan: PromotionPlan, rows: list[RegionStep]) -> None:
    digest = plan.wanted.source.digest
    records.write_rows(plan.tables, plan.run, rows, image=plan.image, digest=digest)


def _run_columns(plan: PromotionPlan) -> dict[str, Any]:
    source = plan.wanted.source
    return {
        "region": source.region,
        "account": plan.account,
        "image": plan.image,
        "image_name": source.name,
        "ami_id": source.ami_id,
    }


def _stop_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise _interrupted()


def _interrupted() -> errors.InterruptedRunError:
    return errors.InterruptedRunError(
        "The promotion was interrupted.",
        why="Running copies continue in AWS; completed steps are kept.",
        fix="Run the same command again to continue.",
    )


def _record_ami(plan: PromotionPlan, spot: Spot, *, pointed: bool = True) -> None:
    """Record what the AMI of one region is now, as AWS says it; safe to run twice.

    A row is only written when it says something new of the AMI or of the channel, so that a promotion that
    died between its last step and this is recorded by the next one, and one that finds everything done adds
    nothing.

    Parameters
    ----------
    plan, spot
        Which promotion, and which region of it.
    pointed
        Whether the channel points to the AMI; not so where a step of the region failed.
    """
    channel = plan.channel if pointed else ""
    ami = images.describe(spot.ec2, spot.ami_id)
    source = plan.wanted.source
    records.record_ami(plan.tables, ami)
    row = {
        "run_id": plan.run.run_id,
        "promoted_at": datetime.now(UTC),
        "how": "promote",
        "ami_id": ami.ami_id,
        "region": ami.region,
        "account": ami.account,
        "name": ami.name,
        "image": plan.image,
        "version": ami.tags.get(tagging.VERSION),
        "digest": ami.digest,
        "source_ami_id": source.ami_id if ami.region != source.region else None,
        "source_region": source.region if ami.region != source.region else None,
        "channel": channel or None,
        "pointer": plan.wanted.pointer or None if pointed else None,
        "previous_ami_id": spot.pointed_to or None,
        **records.facts(spot.ec2, ami),
    }
    of_channel, of_ami = (
        records.latest(plan.tables, ami.region, plan.image, channel),
        records.latest_of(plan.tables, ami),
    )
    if not records.same(of_channel, row, ("ami_id", "channel", *records.FACTS)) or not records.same(
        of_ami, row, records.FACTS
    ):
        plan.tables.append("promotions", [row])
