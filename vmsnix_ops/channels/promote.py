"""Promoting an AMI: copies in other regions, who may launch it, its dates, and the channel that points to it.

>>> from vmsnix_ops.channels import promote
>>> plan = promote.plan(image="ecs-node", channel="stable", regions=["eu-west-1"])  # doctest: +SKIP
>>> print(promote.apply(plan))  # doctest: +SKIP
region        ami_id                 copy        point       why
eu-central-1  ami-0123456789abcdef0              done
eu-west-1     ami-0fedcba9876543210  done        already so

Every step finds or creates (`vmsnix_ops.channels.promote_steps`), so a promotion that died, or that was
refused in one of its regions, is finished by running it again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.arguments import MOST_DAYS, in_range
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.aws import deprecation, parameters, sharing, snapshots
from vmsnix_ops.channels import promote_checks, promote_records, promote_steps
from vmsnix_ops.channels.history import entries, frame
from vmsnix_ops.channels.promote_steps import Spot, Wanted
from vmsnix_ops.progress import Progress, counted, current
from vmsnix_ops.publish import served
from vmsnix_ops.publish.home import checked_home
from vmsnix_ops.publish.outcomes import PlanTable
from vmsnix_ops.publish.plan import check_public
from vmsnix_ops.records.run_context import RunContext, current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import boto3
    import pandas as pd

    from vmsnix_ops.aws.checks import Check
    from vmsnix_ops.publish.outcomes import Outcomes

Verdict = Literal["to do", "already so", "refused", "not looked at"]


@dataclass(frozen=True, slots=True)
class Planned:
    """What is planned of one step in one region.

    Attributes
    ----------
    step
        Its name.
    verdict
        ``"refused"``: AWS or we would not do it as things stand; `what` tells why.
    what
        What will happen, or what is so already.
    problem
        Behind a refusal.
    """

    step: str
    verdict: Verdict
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


@dataclass(frozen=True, slots=True, repr=False)
class Plan(PlanTable):
    """A promotion that has been looked at and not begun. Make it with `plan`; printed, it shows what happens.

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

    def apply(self) -> Outcomes:
        """Carry it out; see `vmsnix_ops.channels.promote_apply.apply`."""
        from vmsnix_ops.channels import promote_apply

        return promote_apply.apply(self)

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

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = []
        for target in self.targets:
            name = f"{target.region} (best effort)" if target.best_effort else target.region
            rows += [[name, step.step, step.verdict, step.what] for step in target.steps]
        if self.topic:
            rows.append([self.topic.split(":")[3], "announce", "to do", f"to {self.topic}"])
        return ["region", "step", "verdict", "what"], rows

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        refused = any(step.verdict == "refused" for target in self.targets for step in target.steps)
        found = (
            ["A step that is refused fails when it is carried out; the other regions go on."]
            if refused
            else []
        )
        found += [
            f"{target.ami_id} in {target.region} is shared with {target.strangers}, too, which nobody "
            "recorded. The promotion will record it; --revoke-from takes it away."
            for target in self.targets
            if target.strangers
        ]
        found += [
            f"{check.name}: {check.evidence} {check.cure}" for check in self.checks if check.outcome == "warn"
        ]
        return [*found, *(["Nothing of this will be done: dry_run is set."] if self.dry_run else [])]


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
) -> Plan:
    """Look at the AMI and at every region, and return what will happen. Nothing is changed.

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
    share, revoke = promote_checks.audiences(share_with, revoke_from, public=public)
    check_public(public, confirm_public)
    if channel:
        served.check(channel, settings)
    promote_checks.check_protection(protect=protect, unprotect=unprotect)
    home = checked_home(region, settings=settings, session=session)
    check_public(public, confirm_public, home.account)
    promote_checks.check_topic(topic)
    others, willing = promote_checks.regions_of(home, tuple(regions), tuple(best_effort))
    keys = dict(kms_keys or {})
    promote_checks.check_keys(keys, home.region, others)

    ec2 = home.client("ec2")
    if not ami and not image:
        raise errors.ParameterError("No AMI was named.", cure="Give ami, or image for its newest AMI.")
    found = served.find_ami(ec2, home.client("ssm"), ami, image=image, settings=settings)
    source = served.check_usable(found, owner=home.account, now=datetime.now(UTC))
    held = snapshots.check_whole(ec2, source)
    image = promote_checks.image_of(source, image)
    moment = source.created_at + timedelta(days=deprecate_days) if deprecate_days else None
    if moment is not None:
        deprecation.check_date(source, moment, public=public or source.public)
    topic_there = promote_checks.topic_checks(topic, home.session)
    run = current_run("promote-ami", settings=settings)
    wanted = Wanted(
        source=source,
        source_encrypted=any(one.encrypted for one in held),
        share=share,
        revoke=revoke,
        deprecate_at=moment,
        protect=protect,
        unprotect=unprotect,
        pointer=parameters.pointer_name(settings.pointer_prefix, image, channel) if channel else "",
        description=f"{source.name}, promoted by the run {run.run_id}",
    )
    spots = [
        # One after the other: sessions are not thread safe, clients are.
        Spot(
            wanted,
            name,
            keys.get(name, ""),
            home.client_of("ec2", name),
            home.client_of("ssm", name),
            ec2,
            home.client_of("service-quotas", name) if public else None,
        )
        for name in (home.region, *others)
    ]
    spots[0].ami = source
    for each in spots:
        promote_steps.refuse_encrypted_public(each)
    if not any(promote_steps.steps(wanted, home=each.is_home) for each in spots):
        raise errors.ParameterError(
            "There is nothing to do.",
            why="Neither a channel nor regions, sharing, a date or protection were given.",
            cure="Give at least one of them.",
        )
    tables, progress = RunTables(settings, run), progress or current()
    with (
        progress.step("look at the regions", total=len(spots)) as shown,
        ThreadPoolExecutor(len(spots), thread_name_prefix="look") as pool,
    ):

        def look(each: Spot) -> Target:
            target = _look(each, tables, best_effort=each.region in willing)
            shown.advance(1)
            return target

        targets = tuple(pool.map(look, spots))
    return Plan(
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


def apply(plan: Plan) -> Outcomes:
    """Carry out a plan; see `vmsnix_ops.channels.promote_apply.apply`."""
    return plan.apply()


def finish(plan: Plan, outcomes: Outcomes) -> None:
    """Write ``result.json`` and end the run; see `vmsnix_ops.channels.promote_apply.finish`."""
    from vmsnix_ops.channels import promote_apply

    promote_apply.finish(plan, outcomes)


def _look(spot: Spot, tables: RunTables, *, best_effort: bool) -> Target:
    """Look at one region; whatever is wrong there is part of the plan."""
    planned: list[Planned] = []
    refused = ""
    for step in promote_steps.steps(spot.wanted, home=spot.is_home):
        if refused:
            planned.append(Planned(step.name, "not looked at", f"after the refused {refused}"))
            continue
        try:
            if not planned:
                spot.check_region()
            looked = step.look(spot)
            planned.append(Planned(step.name, "already so" if looked.so else "to do", looked.what))
        except errors.VmsnixError as error:
            planned.append(Planned(step.name, "refused", str(error), error))
            refused = step.name
    strangers = sharing.Audience()
    if spot.ami is not None and not refused:
        known = spot.wanted.share.names() + spot.wanted.revoke.names()
        there = promote_records.strangers(tables, spot.ec2, spot.ami)
        strangers = sharing.audience([name for name in there.names() if name not in known])
    return Target(spot.region, best_effort, spot.kms_key, spot.ami_id, tuple(planned), strangers)
