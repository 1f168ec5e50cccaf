"""The steps of a promotion in one region, each of which looks first, and what is checked before them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from vmsnix_ops import errors
from vmsnix_ops.aws import channels, deprecation, identity, image_copy, images, parameters, sharing, topics
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.checks import checked, require
from vmsnix_ops.aws.quotas import check_public_sharing, check_quotas
from vmsnix_ops.aws.references import AMI_ID
from vmsnix_ops.aws.regions import ALL, enabled, named
from vmsnix_ops.aws.sharing import Audience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import boto3
    from types_boto3_ec2.client import EC2Client
    from types_boto3_service_quotas.client import ServiceQuotasClient
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.checks import Check
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.channels.history import Note
    from vmsnix_ops.progress import Step as Shown
    from vmsnix_ops.publish.home import Home


def audiences(
    share_with: Iterable[str], revoke_from: Iterable[str], *, public: bool
) -> tuple[sharing.Audience, sharing.Audience]:
    """Return who gets and who loses it; refuse who would do both, and a public that slipped in."""
    share, revoke = sharing.audience(share_with), sharing.audience(revoke_from)
    if share.public:
        raise errors.ParameterError(
            "public is not an account to share with.",
            why="A public AMI can be copied by anyone, which cannot be undone.",
            fix="To make the AMI public, pass --public and --confirm-public ACCOUNT.",
        )
    share = replace(share, public=public)
    both = share.within(revoke)
    if both:
        raise errors.ParameterError(
            f"{both} is in both share_with and revoke_from.", fix="Remove it from one of them."
        )
    return share, revoke


def regions_of(
    home: Home, regions: tuple[str, ...], best_effort: tuple[str, ...]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the other regions, and those among them whose failure does not count."""
    if ALL in regions or ALL in best_effort:
        every = enabled(home.ec2)
        best_effort = every if ALL in best_effort else best_effort
    else:
        every = ()
    asked = (name for name in (*regions, *every, *best_effort) if name not in (ALL, home.region))
    # A region that is named counts as it is named, whatever "all" says of it.
    return named(asked), frozenset(best_effort) - frozenset(regions) - {home.region}


def check_protection(*, protect: bool, unprotect: bool) -> None:
    """Refuse a promotion that would do both."""
    if protect and unprotect:
        raise errors.ParameterError(
            "protect and unprotect cannot be used together.", fix="Use only one of them."
        )


def check_keys(keys: Mapping[str, str], home: str, others: tuple[str, ...]) -> None:
    """Refuse a key for a region that nothing is copied to, and a key of another region."""
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


def check_topic(topic: str) -> None:
    """Refuse what is no ARN of an SNS topic."""
    if topic and (topic.count(":") != 5 or not topic.startswith("arn:") or ":sns:" not in topic):
        raise errors.ParameterError(
            f"{topic!r} is not an SNS topic ARN.",
            fix="Use an ARN such as arn:aws:sns:eu-central-1:012345678901:images.",
        )


def topic_checks(topic: str, session: boto3.Session) -> list[Check]:
    """Return whether the topic is there, when one was given; nobody should learn it after the pointers moved.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is none of that ARN.
    """
    checks = [checked("topic", lambda: topics.check(topic, session=session))] if topic else []
    require(checks)
    return checks


def image_of(source: Ami, image: str) -> str:
    """Return the image of an AMI; an operator who names another one is wrong about one of the two."""
    own = source.tags[tagging.IMAGE]
    if image and image != own:
        raise errors.ParameterError(
            f"The AMI {source.ami_id} belongs to the image {own!r}.",
            why=f"image is {image!r}.",
            fix="Remove image, or choose another AMI.",
        )
    return own


# The steps of a promotion in one region. Each looks first; what is so already is left alone.
#
# That makes them safe to run twice, in any order of crashes: looking is the same in the plan, in the first
# run and in the one that goes on after it. The order matters: what points comes last, so that nobody is
# pointed to an AMI that is not there, or that one may not launch.


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a promotion wants of every region.

    Attributes
    ----------
    source, source_encrypted
        The AMI, in its home region, and whether one of its snapshots is encrypted.
    share, revoke
        Who may launch it from now on, and who may no longer.
    deprecate_at
        From when on it is deprecated; ``None`` leaves the date as it is.
    protect, unprotect
        Whether it can no longer be deregistered, or can again; with neither that stays as it is.
    pointer
        Name of the parameter that shall point to it; empty when none shall.
    note
        Why a channel is set; kept beside its value.
    """

    source: Ami
    source_encrypted: bool = False
    share: Audience = field(default_factory=Audience)
    revoke: Audience = field(default_factory=Audience)
    deprecate_at: datetime | None = None
    protect: bool = False
    unprotect: bool = False
    pointer: str = ""
    note: Note | None = None


@dataclass
class Spot:
    """One region while it is looked at or worked on.

    Attributes
    ----------
    wanted
        What is wanted there.
    region, kms_key
        Where, and the key of the copy.
    ec2, ssm, home, quotas
        Clients of the region; of EC2 in the AMI's own region; of Service Quotas, when it shall be public.
    ami
        The AMI there; ``None`` while it is still to be copied.
    pointed_to
        Where the pointer pointed before it was moved.
    planned
        The channel's value that the plan saw; ``None`` when nobody looked.
    moved
        What setting the channel did.
    shown, still_wanted
        Where progress is shown; what raises when the operator asked to stop.
    """

    wanted: Wanted
    region: str
    kms_key: str
    ec2: EC2Client
    ssm: SSMClient
    home: EC2Client
    quotas: ServiceQuotasClient
    ami: Ami | None = None
    pointed_to: str = ""
    planned: parameters.ExpectedValue | None = None
    moved: parameters.ChannelWrite | None = None
    shown: Shown | None = None
    still_wanted: Callable[[], None] = lambda: None

    @property
    def is_home(self) -> bool:
        """Whether this is the AMI's own region."""
        return self.region == self.wanted.source.region

    def check_region(self) -> None:
        """Refuse a region that is not enabled, which would only say that it does not know the credentials.

        Raises
        ------
        vmsnix_ops.errors.RegionError
            It is not enabled for this account.
        """
        if not self.is_home:
            enabled = checked("region", lambda: identity.check_region(self.home, self.region))
            require([enabled])

    @property
    def ami_id(self) -> str:
        """Its id, empty while there is none."""
        return self.ami.ami_id if self.ami else ""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a step found: whether all is as wanted, and what it does, or would do."""

    so: bool
    what: str


class Step(Protocol):
    """A step: `look` changes nothing and may be asked of a copy that is not there; `do` needs it there."""

    name: str

    def look(self, spot: Spot) -> Looked:
        """Tell whether there is anything to do."""

    def do(self, spot: Spot) -> None:
        """Do it."""


class Copy:
    """Copies the AMI into the region; not in its own. See `vmsnix_ops.aws.image_copy.copy`."""

    name = "copy"

    def look(self, spot: Spot) -> Looked:
        """Find the copy that is there or on its way, and what it lacks."""
        source = spot.wanted.source
        found = image_copy.find(spot.ec2, image_copy.Copy(source, spot.kms_key))
        if found is not None and found.state == "available":
            spot.ami = channels.check_usable(found, owner=source.account, now=datetime.now(UTC))
            lacking = image_copy.missing_tags(source, found)
            if lacking:
                return Looked(False, f"add the tags {', '.join(sorted(lacking))} to {found.ami_id}")
            return Looked(True, f"{found.ami_id} exists")
        if found is not None:
            return Looked(False, f"wait for {found.ami_id} ({found.state})")
        if spot.wanted.share:
            encrypted = spot.wanted.source_encrypted
            sharing.check_key_of_copies(spot.ec2, kms_key=spot.kms_key, encrypted=encrypted)
        key = f", encrypted with {spot.kms_key}" if spot.kms_key else ""
        return Looked(False, f"copy {source.ami_id} from {source.region}{key}")

    def do(self, spot: Spot) -> None:
        """Make the copy or wait for it, and carry the tags that its source got since."""
        wanted = image_copy.Copy(spot.wanted.source, spot.kms_key)
        spot.ami, _ = image_copy.copy(spot.ec2, wanted, step=spot.shown, still_wanted=spot.still_wanted)
        image_copy.carry_tags(spot.ec2, spot.wanted.source, spot.ami)


class Share:
    """Shares the AMI, and with accounts its snapshots, too: an account that copies it needs them."""

    name = "share"

    def look(self, spot: Spot) -> Looked:
        """Find who is missing, and whether AWS would let everybody in."""
        share = spot.wanted.share
        missing = share.minus(sharing.of_image(spot.ec2, spot.ami.ami_id)) if spot.ami else share
        unchecked = self._check_public(spot) if missing.public else ""
        snapshots = [] if spot.ami is None else self._snapshots(spot)
        if not missing and not snapshots:
            return Looked(spot.ami is not None, f"with {share}")
        return Looked(False, f"with {missing or Audience(share.accounts)}{unchecked}")

    def do(self, spot: Spot) -> None:
        """Share the snapshots first, so that who may launch the AMI may copy it, too."""
        for snapshot_id, accounts in self._snapshots(spot):
            sharing.share_snapshot(spot.ec2, snapshot_id, accounts)
        missing = spot.wanted.share.minus(sharing.of_image(spot.ec2, spot.ami_id))
        sharing.share(spot.ec2, spot.ami_id, missing)

    def _check_public(self, spot: Spot) -> str:
        """Refuse what AWS would refuse of a public AMI; return what could not be looked at."""
        check_public_sharing(spot.ec2, public=True)
        room = checked(
            "quotas",
            lambda: check_quotas(spot.ec2, spot.quotas, public=True, one_more=spot.ami is None),
        )
        require([room])
        return f" ({room.name} {room.evidence} {room.fix})" if room.outcome == "warn" else ""

    def _snapshots(self, spot: Spot) -> list[tuple[str, tuple[str, ...]]]:
        accounts, found = spot.wanted.share.accounts, []
        for snapshot_id in spot.ami.snapshot_ids if spot.ami and accounts else ():
            missing = Audience(accounts).minus(sharing.of_snapshot(spot.ec2, snapshot_id)).accounts
            found += [(snapshot_id, missing)] if missing else []
        return found


class Revoke:
    """Stops sharing the AMI and its snapshots with some."""

    name = "revoke"

    def look(self, spot: Spot) -> Looked:
        """Find who still has what shall be taken away."""
        revoke = spot.wanted.revoke
        if spot.ami is None:
            return Looked(True, f"a new copy is not shared with {revoke}")
        still = sharing.of_image(spot.ec2, spot.ami_id).within(revoke)
        for snapshot_id in spot.ami.snapshot_ids:
            more = sharing.of_snapshot(spot.ec2, snapshot_id).within(revoke)
            still = sharing.audience([*still.names(), *more.names()])
        return Looked(not still, f"from {still}" if still else f"not shared with {revoke}")

    def do(self, spot: Spot) -> None:
        """Take it away."""
        revoke = spot.wanted.revoke
        sharing.revoke(spot.ec2, spot.ami_id, sharing.of_image(spot.ec2, spot.ami_id).within(revoke))
        for snapshot_id in spot.ami.snapshot_ids if spot.ami else ():
            still = sharing.of_snapshot(spot.ec2, snapshot_id).within(revoke)
            sharing.revoke_snapshot(spot.ec2, snapshot_id, still)


class Deprecate:
    """Sets the deprecation date; it counts from the AMI's creation, so that it is the same in every run."""

    name = "deprecate"

    def look(self, spot: Spot) -> Looked:
        """Compare the date."""
        moment = deprecation.to_the_minute(self._moment(spot))
        so = spot.ami is not None and spot.ami.deprecated_at == moment
        return Looked(so, f"from {moment:%Y-%m-%d %H:%M} UTC")

    def do(self, spot: Spot) -> None:
        """Set it."""
        deprecation.deprecate(spot.ec2, spot.ami_id, self._moment(spot))

    def _moment(self, spot: Spot) -> datetime:
        if spot.wanted.deprecate_at is None:
            raise RuntimeError("a promotion without a date has no such step")
        return spot.wanted.deprecate_at


class Protect:
    """Protects the AMI from being deregistered."""

    name = "protect"

    def look(self, spot: Spot) -> Looked:
        """Look at the protection; one that was lifted and ends within a day is none."""
        so = spot.ami is not None and spot.ami.protection.startswith("enabled")
        return Looked(so, "deregistration protection on")

    def do(self, spot: Spot) -> None:
        """Enable it."""
        deprecation.protect(spot.ec2, spot.ami_id)


class Unprotect:
    """Lifts that protection; with a cooldown AWS does so a day later."""

    name = "unprotect"

    def look(self, spot: Spot) -> Looked:
        """Look at the protection; a new copy has none."""
        so = spot.ami is None or not spot.ami.protection.startswith("enabled")
        return Looked(so, "deregistration protection off")

    def do(self, spot: Spot) -> None:
        """Disable it."""
        deprecation.unprotect(spot.ec2, spot.ami_id)


class Point:
    """Sets the channel to the AMI.

    The AMI is read once more after the channel was set: a retirement that marked it in between does not see
    the channel in time, or has seen it and gives up. So this promotion gives up, too, and gives the channel
    its earlier value back; see `vmsnix_ops.aws.retiring`.
    """

    name = "point"

    def look(self, spot: Spot) -> Looked:
        """Read which AMI the channel names, and whether that is still what the plan was made for."""
        name = spot.wanted.pointer
        found = parameters.find_parameter(spot.ssm, name)
        if found is not None:
            parameters.check_parameter_type(found)
        now = parameters.ExpectedValue.of(found)
        spot.pointed_to = now.value
        if found is not None and spot.ami is not None and found.value == spot.ami_id:
            spot.pointed_to = ""
            return Looked(True, f"{name} already contains it")
        if spot.planned not in (None, now):
            raise parameters.changed_since_plan(name, spot.region, found)
        if spot.planned is None and found is not None:
            parameters.check_accepts_value(name, parameters.read_history(spot.ssm, name), spot.region)
        spot.planned = now
        to = f"{spot.ami_id or 'the copy'} ({spot.wanted.source.name})"
        if found is None:
            return Looked(False, f"create {name} with {to}")
        return Looked(False, f"set {name} from {self._before(spot)} to {to}")

    def _before(self, spot: Spot) -> str:
        """Return where it points, unless that is an AMI for other machines: fleets would no longer start."""
        before = spot.pointed_to
        known = images.find(spot.ec2, [before]).get(before) if AMI_ID.fullmatch(before) else None
        if known is None:
            return before
        new = spot.wanted.source.architecture
        if known.architecture != new:
            raise errors.ChannelError(
                f"{spot.wanted.pointer} in {spot.region} contains an AMI for {known.architecture}.",
                why=f"{spot.wanted.source.name} is for {new}; launches from the channel expect "
                f"{known.architecture}.",
                fix=f"Use one channel per architecture (channels in vmsnix.toml, such as stable-{new}). If "
                f"the fleet has moved to {new}, delete the parameter first.",
            )
        return f"{before} ({known.name})"

    def do(self, spot: Spot) -> None:
        """Set it."""
        planned = spot.planned or parameters.ExpectedValue()
        spot.moved = parameters.set_channel(
            spot.ssm,
            spot.wanted.pointer,
            spot.ami_id,
            expected=planned,
            description=spot.wanted.note.text() if spot.wanted.note else "",
            tags=pointer_tags(spot.wanted.source),
        )

    def give_back(self, spot: Spot) -> str:
        """Give the channel the value that it had before `do`, and return what became of it, as a sentence."""
        if spot.moved is None or spot.moved.outcome == "reused":
            return f"{spot.wanted.pointer} in {spot.region} contained it before."
        earlier = spot.planned or parameters.ExpectedValue()
        return parameters.restore_channel(
            spot.ssm,
            spot.wanted.pointer,
            spot.moved,
            earlier,
            description=replace(spot.wanted.note, how="take back").text() if spot.wanted.note else "",
        )


def pointer_tags(source: Ami) -> Mapping[str, str]:
    """Return the tags of a pointer: whose image it is. The digest changes with what it points to."""
    return {tagging.IMAGE: source.tags.get(tagging.IMAGE, "")}


def steps(wanted: Wanted, *, home: bool) -> tuple[Step, ...]:
    """Return the steps of a region, in their order."""
    return (
        *(() if home else (Copy(),)),
        *((Share(),) if wanted.share else ()),
        *((Revoke(),) if wanted.revoke else ()),
        *((Deprecate(),) if wanted.deprecate_at else ()),
        *((Protect(),) if wanted.protect else ()),
        *((Unprotect(),) if wanted.unprotect else ()),
        *((Point(),) if wanted.pointer else ()),
    )


def refuse_encrypted_public(spot: Spot) -> None:
    """Refuse what AWS refuses at the very last step: a public AMI with encrypted snapshots."""
    if spot.wanted.share.public and (spot.wanted.source_encrypted or spot.kms_key):
        raise errors.ParameterError(
            f"The AMI in {spot.region} cannot be public.",
            why="Its snapshots are or will be encrypted, and AWS does not allow a public AMI with encrypted "
            "snapshots.",
            fix="Share it with accounts or an organization, or promote it without a key.",
        )
