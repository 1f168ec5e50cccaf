"""The steps of a promotion in one region, and the checks of its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import channels, deprecation, identity, image_copy, images, parameters, sharing
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.checks import raise_for_failure, run_check
from vmsnix_ops.aws.quotas import check_public_sharing, check_quotas
from vmsnix_ops.aws.references import AMI_ID
from vmsnix_ops.aws.regions import ALL, check_regions, enabled_regions
from vmsnix_ops.aws.sharing import Audience
from vmsnix_ops.channels.plans import SET_CHANNEL
from vmsnix_ops.progress import NO_STEP, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from types_boto3_ec2.client import EC2Client
    from types_boto3_service_quotas.client import ServiceQuotasClient
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.channels.history import Note
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.publish.home import HomeRegion


def check_audiences(
    share_with: Iterable[str], revoke_from: Iterable[str], *, public: bool
) -> tuple[Audience, Audience]:
    """Return who gains and who loses access; refuse an account in both, and ``public`` in `share_with`."""
    share, revoke = sharing.parse_audience(share_with), sharing.parse_audience(revoke_from)
    if share.public:
        raise errors.ParameterError(
            "public is not an account to share with.",
            why="A public AMI can be copied by anyone, which cannot be undone.",
            fix="To make the AMI public, pass --public and --confirm-public ACCOUNT (ACCOUNT+keys if its "
            "image has SSH keys).",
        )
    share = replace(share, public=public)
    both = share.within(revoke)
    if both:
        raise errors.ParameterError(
            f"{both} is in both share_with and revoke_from.", fix="Remove it from one of them."
        )
    return share, revoke


def other_regions(
    home: HomeRegion, regions: tuple[str, ...], best_effort: tuple[str, ...]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the regions other than the home region, and the best-effort regions among them."""
    if ALL in regions or ALL in best_effort:
        every = enabled_regions(home.ec2)
        best_effort = every if ALL in best_effort else best_effort
    else:
        every = ()
    chosen = (name for name in (*regions, *every, *best_effort) if name not in (ALL, home.region))
    # A region in `regions` is not best effort, even where `best_effort` is "all".
    return check_regions(chosen), frozenset(best_effort) - frozenset(regions) - {home.region}


def chosen_protection(*, protect: bool, unprotect: bool) -> bool | None:
    """Return whether to turn the protection on or off, ``None`` for neither; refuse both."""
    if protect and unprotect:
        raise errors.ParameterError(
            "protect and unprotect cannot be used together.", fix="Use only one of them."
        )
    return protect if protect or unprotect else None


def check_keys(keys: Mapping[str, str], home: str, others: tuple[str, ...]) -> None:
    """Refuse a key for a region without a copy, and a key of another region."""
    for region, key in keys.items():
        if region not in others:
            raise errors.ParameterError(
                f"kms_keys has a key for {region}, but nothing is copied there.",
                why="It is the AMI's own region." if region == home else errors.nearest(region, others),
                fix="Remove the key, or add the region to regions.",
            )
        if key.startswith("arn:") and f":kms:{region}:" not in key:
            raise errors.ParameterError(
                f"The key for {region} is in another region.",
                why=f"The key is {key}.",
                fix=f"Use a key in {region}.",
            )


def check_image(source: Ami, image: str) -> str:
    """Return the image of an AMI; refuse another `image`."""
    own = source.tags[tagging.IMAGE]
    if image and image != own:
        raise errors.ParameterError(
            f"The AMI {source.ami_id} belongs to the image {own!r}.",
            why=f"image is {image!r}.",
            fix="Remove image, or choose another AMI.",
        )
    return own


@dataclass(frozen=True, slots=True)
class PromotionRequest:
    """The state that a promotion wants in every region."""

    # The AMI in its home region, and whether one of its snapshots is encrypted.
    source: Ami
    source_encrypted: bool
    # Who gains access, and who loses it.
    share: Audience
    revoke: Audience
    deprecate_at: datetime | None  # `None` keeps the current date
    protected: bool | None  # deregistration protection; `None` keeps it
    parameter: str  # of the channel; empty without a channel
    note: Note  # why the channel is set; stored as the parameter's description


@dataclass
class PromotionContext:
    """One region of a promotion: its clients, and the state that the steps read and write."""

    request: PromotionRequest
    # The region, and the key that encrypts the copy there.
    region: str
    kms_key: str
    # Clients of the region, and of EC2 in the AMI's home region.
    ec2: EC2Client
    ssm: SSMClient
    quotas: ServiceQuotasClient
    home_ec2: EC2Client
    ami: Ami | None = None  # `None` until it is copied
    previous_ami_id: str = ""  # the channel's value before it was set
    # The channel's value when the plan was made; `None` until it is read.
    expected: parameters.ExpectedValue | None = None
    written: parameters.ChannelWrite | None = None
    progress: Step = NO_STEP
    check_interrupt: Callable[[], None] = lambda: None  # raises after an interrupt

    @property
    def is_home(self) -> bool:
        """Whether this is the AMI's own region."""
        return self.region == self.request.source.region

    @property
    def ami_id(self) -> str:
        """ID of the AMI in the region; empty until it is copied."""
        return self.ami.ami_id if self.ami else ""

    def found(self) -> dict[str, str]:
        """Return the state that the steps read, by the names of the steps."""
        ami, expected = self.ami, self.expected
        found = {SET_CHANNEL: f"{expected.value} (version {expected.version})" if expected else ""}
        if ami is not None:
            date = ami.deprecated_at
            found[Deprecate.name] = f"{date:%Y-%m-%d %H:%M}" if date else ""
            if not self.is_home:
                missing = ", ".join(sorted(image_copy.missing_tags(self.request.source, ami)))
                found[CopyStep.name] = f"{ami.ami_id}{missing and f' without the tags {missing}'}"
            if self.request.protected is not None:
                found[Protect(on=self.request.protected).name] = ami.protection
        return {name: value for name, value in found.items() if value}

    def check_region(self) -> None:
        """Refuse a region that is not enabled: AWS would only report unknown credentials."""
        if not self.is_home:
            raise_for_failure([run_check("region", identity.check_region, self.home_ec2, self.region)])

    def check_public(self) -> None:
        """Refuse a public AMI with encrypted snapshots, as AWS does at the last step."""
        if self.request.share.public and (self.request.source_encrypted or self.kms_key):
            raise errors.ParameterError(
                f"The AMI in {self.region} cannot be public.",
                why="Its snapshots are or will be encrypted, and AWS does not allow a public AMI with "
                "encrypted snapshots.",
                fix="Share it with accounts or an organization, or promote it without a key.",
            )


@dataclass(frozen=True, slots=True)
class StepCheck:
    """The result of a step's check: whether there is nothing to do, and what the step did or will do."""

    done: bool
    what: str


class PromotionStep(ABC):
    """A step of a promotion. It is safe to run twice: what is already in the desired state is unchanged."""

    name: str  # shown in tables and recorded
    # Outcome if there is nothing to do, and after `apply`.
    existing: StepOutcome = "unchanged"
    applied: StepOutcome = "changed"

    @abstractmethod
    def check(self, context: PromotionContext) -> StepCheck:
        """Read the current state; change nothing. The AMI may not be copied yet."""

    @abstractmethod
    def apply(self, context: PromotionContext) -> None:
        """Make the change. The AMI exists in the region."""


class CopyStep(PromotionStep):
    """Copies the AMI into a region other than its own. See `vmsnix_ops.aws.image_copy.copy_ami`."""

    name = "copy"
    existing = "reused"
    applied = "created"

    def check(self, context: PromotionContext) -> StepCheck:
        """Find a finished or unfinished copy, and the tags that it lacks."""
        request, source = context.request, context.request.source
        found = image_copy.find_copy(context.ec2, image_copy.ImageCopy(source, context.kms_key))
        if found is not None and found.state == "available":
            context.ami = channels.check_usable(found, owner=source.account)
            missing = image_copy.missing_tags(source, found)
            if missing:
                return StepCheck(False, f"add the tags {', '.join(sorted(missing))} to {found.ami_id}")
            return StepCheck(True, f"{found.ami_id} exists")
        if found is not None:
            return StepCheck(False, f"wait for {found.ami_id} ({found.state})")
        if request.share:
            encrypted = request.source_encrypted
            sharing.check_copy_key(context.ec2, kms_key=context.kms_key, encrypted=encrypted)
        key = f", encrypted with {context.kms_key}" if context.kms_key else ""
        return StepCheck(False, f"copy {source.ami_id} from {source.region}{key}")

    def apply(self, context: PromotionContext) -> None:
        """Make the copy or wait for it, and add the tags that its source has since."""
        source = context.request.source
        context.ami, _ = image_copy.copy_ami(
            context.ec2,
            image_copy.ImageCopy(source, context.kms_key),
            step=context.progress,
            still_wanted=context.check_interrupt,
        )
        image_copy.copy_tags(context.ec2, source, context.ami)


class Share(PromotionStep):
    """Shares the AMI, and its snapshots with accounts: an account that copies the AMI needs them."""

    name = "share"

    def check(self, context: PromotionContext) -> StepCheck:
        """Find the missing permissions, and whether AWS allows a public AMI."""
        share = context.request.share
        missing, snapshots = self._missing(context)
        unchecked = self._check_public(context) if missing.public else ""
        if not missing and not snapshots:
            return StepCheck(context.ami is not None, f"with {share}")
        return StepCheck(False, f"with {missing or Audience(share.accounts)}{unchecked}")

    def apply(self, context: PromotionContext) -> None:
        """Share the snapshots first, so that everybody who may launch the AMI may also copy it."""
        missing, snapshots = self._missing(context)
        for snapshot_id, accounts in snapshots.items():
            sharing.share_snapshot(context.ec2, snapshot_id, accounts)
        sharing.share_ami(context.ec2, context.ami_id, missing)

    def _missing(self, context: PromotionContext) -> tuple[Audience, dict[str, tuple[str, ...]]]:
        """Return who may not use the AMI yet, and which accounts may not use each snapshot yet."""
        share = context.request.share
        if context.ami is None:
            return share, {}
        accounts, snapshots = Audience(share.accounts), dict[str, tuple[str, ...]]()
        for snapshot_id in context.ami.snapshot_ids if accounts else ():
            missing = accounts.minus(sharing.read_snapshot_permissions(context.ec2, snapshot_id)).accounts
            if missing:
                snapshots[snapshot_id] = missing
        return share.minus(sharing.read_launch_permissions(context.ec2, context.ami_id)), snapshots

    def _check_public(self, context: PromotionContext) -> str:
        """Refuse a public AMI where AWS would; return a warning about what could not be checked."""
        check_public_sharing(context.ec2, public=True)
        more = context.ami is None
        quota = run_check("quotas", check_quotas, context.ec2, context.quotas, public=True, one_more=more)
        raise_for_failure([quota])
        return f" ({quota.name} {quota.found} {quota.fix})" if quota.outcome == "warn" else ""


class Revoke(PromotionStep):
    """Stops sharing the AMI and its snapshots with some accounts."""

    name = "revoke"

    def check(self, context: PromotionContext) -> StepCheck:
        """Find who still has a permission that must be removed."""
        revoke = context.request.revoke
        if context.ami is None:
            return StepCheck(True, f"a new copy is not shared with {revoke}")
        image, snapshots = self._remaining(context)
        still = sharing.parse_audience([name for one in (image, *snapshots.values()) for name in one.names()])
        return StepCheck(not still, f"from {still}" if still else f"not shared with {revoke}")

    def apply(self, context: PromotionContext) -> None:
        """Remove the permissions from the AMI, then from its snapshots."""
        image, snapshots = self._remaining(context)
        sharing.revoke_ami(context.ec2, context.ami_id, image)
        for snapshot_id, still in snapshots.items():
            sharing.revoke_snapshot(context.ec2, snapshot_id, still)

    def _remaining(self, context: PromotionContext) -> tuple[Audience, dict[str, Audience]]:
        """Return who may still use the AMI, and each of its snapshots."""
        ec2, revoke = context.ec2, context.request.revoke
        ids = context.ami.snapshot_ids if context.ami else ()
        snapshots = {name: sharing.read_snapshot_permissions(ec2, name).within(revoke) for name in ids}
        return sharing.read_launch_permissions(ec2, context.ami_id).within(revoke), snapshots


class Deprecate(PromotionStep):
    """Sets the deprecation date. It counts from the AMI's creation, so it is the same in every run."""

    name = "deprecate"

    def __init__(self, date: datetime) -> None:
        self.date = date

    def check(self, context: PromotionContext) -> StepCheck:
        """Compare the date."""
        date = deprecation.to_the_minute(self.date)
        done = context.ami is not None and context.ami.deprecated_at == date
        return StepCheck(done, f"from {date:%Y-%m-%d %H:%M} UTC")

    def apply(self, context: PromotionContext) -> None:
        """Set the date."""
        deprecation.deprecate(context.ec2, context.ami_id, self.date)


class Protect(PromotionStep):
    """Turns deregistration protection on or off. AWS ends a protection with a cooldown a day later."""

    def __init__(self, *, on: bool) -> None:
        self.on, self.name = on, "protect" if on else "unprotect"

    def check(self, context: PromotionContext) -> StepCheck:
        """Read the protection; a new copy has none."""
        is_on = context.ami is not None and context.ami.protection.startswith("enabled")
        return StepCheck(is_on == self.on, f"deregistration protection {'on' if self.on else 'off'}")

    def apply(self, context: PromotionContext) -> None:
        """Turn it on or off."""
        (deprecation.protect if self.on else deprecation.unprotect)(context.ec2, context.ami_id)


class SetChannel(PromotionStep):
    """Sets the channel to the AMI."""

    name = SET_CHANNEL

    def check(self, context: PromotionContext) -> StepCheck:
        """Read the channel's value, and compare it with the value when the plan was made."""
        name = context.request.parameter
        found = parameters.find_parameter(context.ssm, name)
        if found is not None:
            parameters.check_parameter_type(found)
        current = parameters.ExpectedValue.of(found)
        context.previous_ami_id = current.value
        if found is not None and context.ami is not None and found.value == context.ami_id:
            context.previous_ami_id, context.expected = "", current
            return StepCheck(True, f"{name} already contains it")
        if context.expected not in (None, current):
            raise parameters.changed_since_plan(name, context.region, found)
        if context.expected is None and found is not None:
            parameters.check_accepts_value(name, parameters.read_history(context.ssm, name), context.region)
        context.expected = current
        to = f"{context.ami_id or 'the copy'} ({context.request.source.name})"
        if found is None:
            return StepCheck(False, f"create {name} with {to}")
        return StepCheck(False, f"set {name} from {self._previous(context)} to {to}")

    def _previous(self, context: PromotionContext) -> str:
        """Return the current AMI; refuse another architecture, because launches would fail."""
        before = context.previous_ami_id
        ami = images.find_ami(context.ec2, before) if AMI_ID.fullmatch(before) else None
        if ami is None:
            return before
        new = context.request.source.architecture
        if ami.architecture != new:
            raise errors.ChannelError(
                f"{context.request.parameter} in {context.region} contains an AMI for {ami.architecture}.",
                why=f"{context.request.source.name} is for {new}; launches from the channel expect "
                f"{ami.architecture}.",
                fix=f"Use one channel per architecture (channels in vmsnix.toml, such as stable-{new}). If "
                f"all launches expect {new} now, delete the parameter first.",
            )
        return f"{before} ({ami.name})"

    def apply(self, context: PromotionContext) -> None:
        """Write the value, unless it changed since `check`."""
        context.written = parameters.set_channel(
            context.ssm,
            context.request.parameter,
            context.ami_id,
            expected=context.expected or parameters.ExpectedValue(),
            description=context.request.note.text(),
            tags={tagging.IMAGE: context.request.source.tags.get(tagging.IMAGE, "")},
        )


def region_steps(request: PromotionRequest, *, home: bool) -> tuple[PromotionStep, ...]:
    """Return the steps of a region in their order.

    The channel comes last, so that it never contains an AMI that does not exist or must not be launched.
    """
    return (
        *(() if home else (CopyStep(),)),
        *((Share(),) if request.share else ()),
        *((Revoke(),) if request.revoke else ()),
        *((Deprecate(request.deprecate_at),) if request.deprecate_at else ()),
        *((Protect(on=request.protected),) if request.protected is not None else ()),
        *((SetChannel(),) if request.parameter else ()),
    )
