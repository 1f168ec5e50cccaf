"""Promote an AMI: copy it to regions, share it, set its dates, and set a channel to it.

>>> from vmsnix_ops import promote
>>> plan = promote.plan(image="ecs-node", channel="stable", regions=["eu-west-1"])  # doctest: +SKIP
>>> print(plan.apply())  # doctest: +SKIP
region        ami_id                 copy        set channel  why
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
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors, outcomes
from vmsnix_ops.arguments import check_arguments, check_parameters, check_range
from vmsnix_ops.aws import channels, deprecation, image_copy, images, parameters, sharing, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.session import client
from vmsnix_ops.channels import plans, records, steps
from vmsnix_ops.channels.history import Note, entries, frame
from vmsnix_ops.interrupts import stopping
from vmsnix_ops.progress import Progress, counted, current
from vmsnix_ops.publish.home import ONE_OF_MANY, check_home
from vmsnix_ops.publish.journal import record_outcomes, record_run
from vmsnix_ops.publish.outcomes import CONFLICT, RECORD, RegionStep, record_region
from vmsnix_ops.publish.parameters import check_public
from vmsnix_ops.records import acts
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.settings import Settings, check_channel, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future

    import boto3
    import pandas as pd

    from vmsnix_ops.aws.images import Ami

__all__ = ["PromotionPlan", "PromotionResult", "check_parameters", "plan"]


def __dir__() -> list[str]:
    return __all__


TAG, DESCRIPTION = "tag ", "description"
"""Names of facts about what copies get from the AMI; the first one is followed by the key of the tag."""


@dataclass(frozen=True, slots=True)
class PromotionTarget:
    """The plan for one region."""

    # The region, and whether a failure there does not fail the run.
    region: str
    best_effort: bool
    kms_key: str  # of the copy
    ami_id: str  # the AMI in the region; empty if it is not copied yet
    steps: tuple[RegionStep, ...]  # "planned", "reused", "unchanged", "skipped" or "failed" (it would fail)
    # What was read: for each step, the state that it would change, and the other accounts with access.
    found: tuple[tuple[str, str], ...] = ()
    # Accounts that may use the AMI or its snapshots although neither a record nor this promotion says so.
    unrecorded: sharing.Audience = field(default_factory=sharing.Audience)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionPlan(plans.ChannelPlan):
    """A checked promotion that has not started. Make it with `plan`."""

    request: steps.PromotionRequest  # the AMI, and the state that every region will have
    targets: tuple[PromotionTarget, ...]  # the plan for each region; the AMI's own region is first
    # The regions with their clients.
    contexts: tuple[steps.PromotionContext, ...] = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """The AMI, its channel, the number of regions and the account."""
        to = f" to {self.channel}" if self.channel else ""
        return (
            f"Promote {self.ami.name}{to} in {counted(len(self.targets), 'region')}, account {self.account}"
        )

    @property
    def ami(self) -> Ami:
        """The AMI in its home region."""
        return self.request.source

    @property
    def home_region(self) -> str:
        """The AMI's own region."""
        return self.ami.region

    def content(self) -> dict[str, str]:
        """Return the facts of the plan by their names."""
        request, ami = self.request, self.ami
        protection = {None: "", True: "on", False: "off"}[request.protected]
        facts = self.common_content() | {
            "AMI": f"{ami.ami_id} ({ami.name})",
            "identity": ami.digest,
            "snapshots": " ".join(ami.snapshot_ids),
            "share with": ", ".join(request.share.names()),
            "revoke from": ", ".join(request.revoke.names()),
            "deprecate at": f"{request.deprecate_at:%Y-%m-%d %H:%M}" if request.deprecate_at else "",
            "protection": protection,
        }
        if len(self.targets) > 1:
            facts |= {f"{TAG}{key}": value for key, value in image_copy.tags_to_copy(ami).items()}
            facts[DESCRIPTION] = ami.description
        for target in self.targets:
            found = dict(target.found)
            for step in target.steps:
                state = found.pop(step.step, "")
                facts[f"{target.region}, {step.step}"] = f"{step.outcome}, now {state or 'nothing'}"
            facts |= {f"{target.region}, {name}": value for name, value in found.items()}
            facts[f"{target.region}, KMS key"] = target.kms_key
            facts[f"{target.region}, best effort"] = "yes" if target.best_effort else ""
        return facts

    def is_done(self, name: str, before: Mapping[str, str]) -> bool:  # noqa: ARG002 - as in the base class
        """Return whether a fact is about a step, or about all copies, for which nothing will be done."""
        planned = [(target.region, step) for target in self.targets for step in target.steps]
        if name == DESCRIPTION or name.startswith(TAG):
            copies = [step for _, step in planned if step.step == steps.CopyStep.name]
            return all(step.outcome in outcomes.SUCCEEDED for step in copies)
        return any(
            name == f"{region}, {step.step}" and step.outcome in outcomes.SUCCEEDED
            for region, step in planned
        )

    def apply(self) -> PromotionResult:
        """Carry out the plan and return the outcome. A dry run changes nothing.

        It is safe to run twice, and after a crash at any point: every step first checks the current state,
        copies have ClientTokens derived from their content, and the topic is not sent a recorded message
        again. SIGINT and SIGTERM stop it between two requests; a second signal stops it at once.

        Raises
        ------
        vmsnix_ops.errors.StalePlanError
            It is not the expected plan; nothing was done.
        vmsnix_ops.errors.InterruptedRunError
            A signal stopped it.
        """
        self.check_expected()
        return _apply(self)

    def history(self) -> pd.DataFrame:
        """Return the values of the channel in each region, newest first; empty without a channel.

        A region that cannot be read has one row with the reason in its note.
        """
        known, unread = [], {}
        for context in self.contexts if self.parameter else ():
            try:
                known.append(entries(context.ec2, context.ssm, self.parameter))
            except errors.VmsnixError as error:
                unread[context.region] = str(error)
        return frame(known, unread)

    def table(self) -> display.DisplayTable:
        """Return the planned steps as a table for display."""
        rows = []
        for target in self.targets:
            name = f"{target.region} (best effort)" if target.best_effort else target.region
            rows += [[name, step.step, step.outcome, step.what or step.why] for step in target.steps]
        rows += [[row.region, row.step, row.outcome, row.what] for row in self.planned_announcement()]
        return display.make_table(("region", "step", "outcome", "what"), rows)

    def notes(self) -> list[str]:
        """Return warnings that the table does not contain."""
        refused = any(step.outcome == "failed" for target in self.targets for step in target.steps)
        found = ["A refused step will fail; the other regions continue."] if refused else []
        found += [
            f"{target.ami_id} in {target.region} is also shared with {target.unrecorded}, which is not "
            "recorded. The promotion will record it. To end it, pass --revoke-from."
            for target in self.targets
            if target.unrecorded
        ]
        return found + self.last_notes()


@dataclass(frozen=True, slots=True)
class PromotionResult(plans.ChannelResult):
    """The outcome of a promotion, by region and step."""

    job = "The promotion"
    plan: PromotionPlan


@check_arguments
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
    expect_plan: str = "",
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> PromotionPlan:
    """Check the AMI and every region, and return what will happen. Nothing is changed.

    Parameters
    ----------
    ami
        AMI ID, AMI name, or channel whose AMI to use; by default the newest AMI of the image.
    image
        Short name of the image; required unless `ami` is an AMI ID or name.
    channel
        Channel to set; by default none.
    region
        Region of the AMI; by default the region of the settings, then of the AWS configuration.
    regions, best_effort
        Regions to copy the AMI to; a failure in a `best_effort` region does not fail the run. ``["all"]``
        means every enabled region.
    kms_keys
        KMS key by region, for encrypted copies.
    share_with, revoke_from
        Account IDs, and ARNs of organizations and organizational units, to share with and to stop sharing
        with; `revoke_from` may contain ``public``. Other permissions are kept.
    public, confirm_public
        Whether to make the AMI public, and the account ID to confirm it (``ACCOUNT+keys`` if its image has
        keys of an administrator).
    deprecate_days
        Deprecate the AMI this many days after its creation; 0 keeps its date.
    protect, unprotect
        Turn deregistration protection on, or off; without both it is kept.
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
    vmsnix_ops.errors.UsageError
        A parameter is missing or invalid.
    vmsnix_ops.errors.AwsError
        The credentials, the account, the home region or the AMI cannot be used. A problem in another region
        is part of the plan.
    """
    settings = settings or load()
    check_range("deprecate_days", deprecate_days)
    share, revoke = steps.check_audiences(share_with, revoke_from, public=public)
    check_public(public, confirm_public)
    if channel:
        check_channel(channel, settings)
    protected = steps.chosen_protection(protect=protect, unprotect=unprotect)
    home = check_home(region, settings=settings, session=session)
    plans.check_topic(topic)
    others, optional = steps.other_regions(home, tuple(regions), tuple(best_effort))
    keys = dict(kms_keys or {})
    steps.check_keys(keys, home.region, others)

    if not ami and not image:
        raise errors.ParameterError("No AMI given.", fix="Add --ami, or --image for the image's newest AMI.")
    found = channels.find_ami(home.ec2, home.ssm, ami, image=image, settings=settings)
    source = channels.check_usable(found, owner=home.account)
    baked_in = source.tags.get(tagging.ADMIN_KEYS, "")
    check_public(public, confirm_public, home.account, f"{baked_in} keys" if baked_in else "")
    source_snapshots = snapshots.check_snapshots_of(home.ec2, source)
    image = steps.check_image(source, image)
    date = source.created_at + timedelta(days=deprecate_days) if deprecate_days else None
    if date is not None:
        deprecation.check_deprecation_date(source, date, public=public or source.public)
    topic_checks = plans.check_topic_exists(topic, home.session)
    run = current_run("promote-ami", settings=settings)
    request = steps.PromotionRequest(
        source=source,
        source_encrypted=any(one.encrypted for one in source_snapshots),
        share=share,
        revoke=revoke,
        deprecate_at=date,
        protected=protected,
        parameter=parameters.parameter_name(settings.channel_prefix, image, channel) if channel else "",
        note=Note("promote", source.name, run.run_id),
    )
    contexts = [
        # Clients are made one after the other: sessions are not thread safe, clients are.
        steps.PromotionContext(
            request,
            name,
            keys.get(name, ""),
            ec2=client(home.session, "ec2", name, **ONE_OF_MANY),
            ssm=client(home.session, "ssm", name, **ONE_OF_MANY),
            quotas=client(home.session, "service-quotas", name, **ONE_OF_MANY),
            home_ec2=home.ec2,
        )
        for name in (home.region, *others)
    ]
    contexts[0].ami = source
    for context in contexts:
        context.check_public()
    if not any(steps.region_steps(request, home=context.is_home) for context in contexts):
        raise errors.ParameterError(
            "Nothing to do.",
            why="No channel, regions, sharing, deprecation date or protection given.",
            fix="Add at least one of them, such as --channel stable.",
        )
    tables, progress = RunTables(settings, run), progress or current()
    with (
        progress.step("read the regions", total=len(contexts)) as shown,
        ThreadPoolExecutor(len(contexts), thread_name_prefix="read") as pool,
    ):

        def plan_one(context: steps.PromotionContext) -> PromotionTarget:
            target = _plan_region(context, tables, best_effort=context.region in optional)
            shown.advance(1)
            return target

        targets = tuple(pool.map(plan_one, contexts))
    return PromotionPlan(
        account=home.account,
        image=image,
        channel=channel,
        parameter=request.parameter,
        topic=topic,
        checks=(*home.checks, *topic_checks),
        dry_run=dry_run,
        expect_plan=expect_plan,
        session=home.session,
        run=run,
        tables=tables,
        progress=progress,
        request=request,
        targets=targets,
        contexts=tuple(contexts),
    )


def _plan_region(context: steps.PromotionContext, tables: RunTables, *, best_effort: bool) -> PromotionTarget:
    """Check every step in one region; an error there is part of the plan."""
    planned: list[RegionStep] = []
    refused = ""
    for step in steps.region_steps(context.request, home=context.is_home):
        row = RegionStep(context.region, step.name, "skipped", best_effort=best_effort)
        if refused:
            planned.append(replace(row, why=f"because {refused} was refused"))
            continue
        try:
            if not planned:
                context.check_region()
            state = step.check(context)
            outcome = step.existing if state.done else "planned"
            planned.append(replace(row, outcome=outcome, what=state.what))
        except errors.VmsnixError as error:
            planned.append(replace(row, outcome="failed", why=str(error), error=error))
            refused = step.name
    unrecorded, found = sharing.Audience(), context.found()
    if context.ami is not None and not refused:
        requested = context.request.share.names() + context.request.revoke.names()
        grants = records.read_grants(context.ec2, context.ami)
        others = [name for name in grants.names() if name not in requested]
        unrecorded = sharing.parse_audience(records.without_recorded(tables, context.ami, others))
        found["other accounts with access"] = ", ".join(sorted(others))
        for name, audience in (("share", context.request.share), ("revoke", context.request.revoke)):
            found[name] = ", ".join(sorted({*grants.names()} & {*audience.names()}))
    return PromotionTarget(
        context.region,
        best_effort,
        context.kms_key,
        context.ami_id,
        tuple(replace(row, ami_id=context.ami_id) for row in planned),
        tuple(found.items()),
        unrecorded,
    )


# Applying the plan: all regions at once, each with its own thread. A region stops at its first failed step
# and is recorded as soon as it ends; the other regions continue.
#
# A channel that was changed between plan and write stops the promotion in every region, because a person has
# to decide which value is right.

UNRECORDED = "an irreversible change could not be recorded before it; the remaining steps were skipped"


def _apply(plan: PromotionPlan) -> PromotionResult:
    if plan.dry_run:
        planned = [row for target in plan.targets for row in target.steps]
        return PromotionResult((*planned, *plan.planned_announcement()), plan)
    stop, refused = threading.Event(), list[str]()

    def check_interrupt() -> None:
        if stop.is_set():
            raise _interrupted()

    contexts = [replace(one, ami=None, check_interrupt=check_interrupt) for one in plan.contexts]
    done: dict[str, list[RegionStep]] = {}
    with stopping(), ThreadPoolExecutor(len(contexts), thread_name_prefix="promote") as pool:
        running = {
            pool.submit(_apply_region, plan, target, context, refused): context
            for target, context in zip(plan.targets, contexts, strict=True)
        }
        try:
            for future in as_completed(running):
                context = running[future]
                done[context.region] = _record(plan, context, future)
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future, context in running.items():
                if context.region not in done and not future.cancelled() and future.exception() is None:
                    done[context.region] = _record(plan, context, future)
            interrupted = isinstance(error, KeyboardInterrupt)
            record_run(
                plan.run, plan.tables, "cancelled" if interrupted else "failed", plan.started_at,
                **_run_columns(plan), error=str(error) or type(error).__name__,
            )  # fmt: skip
            if interrupted:
                raise _interrupted() from error
            raise
    rows = [row for target in plan.targets for row in done[target.region]]
    failed = {row.region for row in rows if row.outcome == "failed" and row.step != RECORD}
    amis = {one.region: one.ami_id for one in contexts if one.ami_id and one.region not in failed}
    rows += plan.announce(amis, refused=refused[0] if refused else "")
    result = PromotionResult(tuple(rows), plan)
    return record_outcomes(plan.run, plan.tables, result, plan.started_at, **_run_columns(plan))


def _apply_region(
    plan: PromotionPlan, target: PromotionTarget, context: steps.PromotionContext, refused: list[str]
) -> list[RegionStep]:
    """Carry out the steps of one region until one fails or the promotion is stopped.

    `refused` contains why no region may be changed any more; it is empty while the promotion continues.
    """
    rows: list[RegionStep] = []
    failed = ""
    with (
        acts.recording(plan.run.folder, plan.run.run_id),
        plan.progress.step(context.region, total=100, unit="percent") as context.progress,
    ):
        todo = steps.region_steps(plan.request, home=context.is_home)
        for step in todo:
            row = RegionStep(context.region, step.name, "skipped", best_effort=target.best_effort)
            if failed or refused:
                why = f"because {failed} failed" if failed else refused[0]
                rows.append(replace(row, why=why, ami_id=context.ami_id))
                continue
            started = time.monotonic()
            try:
                context.check_interrupt()
                if not rows:
                    context.check_region()
                if context.is_home:  # the plan may be hours old
                    context.ami = channels.check_still_usable(
                        context.ec2, plan.ami.ami_id, owner=plan.account
                    )
                row = _apply_step(step, context, row)
                changed = {row.outcome, *(one.outcome for one in rows)} & set(outcomes.WORKED)
                if step is todo[-1] and changed:
                    _check_after_steps(plan, context)
            except errors.InterruptedRunError:
                raise
            except errors.VmsnixError as error:
                row, failed = replace(row, outcome="failed", why=str(error), error=error), step.name
                if isinstance(error, errors.UnrecordedActError):
                    refused.append(UNRECORDED)
                context.progress.message(f"{step.name} failed: {error}")
            rows.append(replace(row, ami_id=context.ami_id, seconds=round(time.monotonic() - started, 3)))
            if context.written is not None and context.written.overwritten is not None:
                refused.append(plans.CHANGED)
                context.previous_ami_id = context.written.overwritten.value
                rows.append(plans.conflict(context.region, context.written.overwritten, context.ami_id))
    return rows


def _apply_step(step: steps.PromotionStep, context: steps.PromotionContext, row: RegionStep) -> RegionStep:
    state = step.check(context)
    if state.done:
        return replace(row, outcome=step.existing, what=state.what)
    context.progress.message(f"{step.name}: {state.what}")
    step.apply(context)
    return replace(row, outcome=step.applied, what=state.what)


def _check_after_steps(plan: PromotionPlan, context: steps.PromotionContext) -> None:
    """Check that no retirement of the AMI started during the steps: it may not have read them in time.

    `vmsnix_ops.aws.retiring` explains how the two jobs coordinate.
    """
    if context.written is None:
        channels.check_repeatedly(context.ec2, context.ami_id, owner=plan.account)
        return
    plans.check_after_write(
        context.ec2,
        context.ssm,
        plan.parameter,
        ami_id=context.ami_id,
        owner=plan.account,
        written=context.written,
        expected=context.expected or parameters.ExpectedValue(),
        note=plan.request.note,
    )


def _record(
    plan: PromotionPlan, context: steps.PromotionContext, future: Future[list[RegionStep]]
) -> list[RegionStep]:
    """Record the outcome of one region; a failed record becomes a row of its own."""
    rows = future.result()
    failed = any(row.outcome in ("failed", "skipped") for row in rows if row.step != CONFLICT)

    def record_ami() -> None:
        if context.ami is not None:
            _record_ami(plan, context, channel_set=not failed)

    return record_region(rows, context.region, record_ami, lambda: plan.record_steps(rows))


def _run_columns(plan: PromotionPlan) -> dict[str, Any]:
    return {
        "region": plan.ami.region,
        "account": plan.account,
        "image": plan.image,
        "image_name": plan.ami.name,
        "ami_id": plan.ami.ami_id,
    }


def _interrupted() -> errors.InterruptedRunError:
    return errors.InterruptedRunError(
        "The promotion was interrupted.",
        why="Running copies continue in AWS; completed steps are kept.",
        fix="Run the same command again to continue.",
    )


def _record_ami(plan: PromotionPlan, context: steps.PromotionContext, *, channel_set: bool) -> None:
    """Record the AMI of one region as AWS describes it; safe to run twice.

    A row is written only if the facts of the AMI or the channel are not recorded yet. So the next promotion
    records what an interrupted one did not record, and a promotion without changes adds no row. If a step
    failed in the region, the row has no channel.
    """
    ami, source, tables = images.describe_ami(context.ec2, context.ami_id), plan.ami, plan.tables
    unsaved: errors.RecordsError | None = None
    try:
        records.record_ami(tables, ami)
    except errors.RecordsError as error:  # the promotion is recorded nevertheless
        unsaved = error
    row = plan.promotion_row("promote", ami, context.previous_ami_id) | records.facts(context.ec2, ami)
    if ami.region != source.region:
        row |= {"source_ami_id": source.ami_id, "source_region": source.region}
    if not channel_set:
        row |= {"channel": None, "channel_parameter": None}
    of_channel = records.latest_of_channel(tables, ami.region, plan.image, row["channel"] or "")
    of_ami = records.latest_of_ami(tables, ami)
    if not (
        records.is_recorded(row, of_channel, ("ami_id", "channel", *records.FACTS))
        and records.is_recorded(row, of_ami, records.FACTS)
    ):
        tables.append("promotions", [row])
    if unsaved is not None:
        raise unsaved
