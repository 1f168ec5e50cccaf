"""Take an AMI out of use, bring it back, remove it for good: calls in an order that may stop anywhere.

A retired AMI is private, deprecated and disabled, and so is out of everybody's reach, and all of that can be
undone. What it was before stands in its tags and in those of its snapshots: they are written before anything
is changed, and removed after everything is restored.

============================  ==========================================================================
``vmsnix:retired``            when (UTC); grace counts from there
``vmsnix:retained-until``        from when on it may be removed for good
``vmsnix:retired-by``         the run that retired it
``vmsnix:shared-with``        with whom it was shared; goes on in ``vmsnix:shared-with-2`` and so forth
``vmsnix:deprecated-before``  its deprecation date, or ``never``
``vmsnix:state-before``       ``disabled`` when somebody else had disabled it already, else ``available``
``vmsnix:retired-with``       of a snapshot: its AMI, by which it is found should the AMI go and it stay
``vmsnix:restoring``          the run that restores it: nobody may delete it
``vmsnix:deleting``           the run that is about to delete it: nobody may restore it
============================  ==========================================================================

The tags are also what jobs that run at the same time see of each other. AWS has no transaction over an AMI,
a parameter and an instance. So each of two jobs writes first (the retirement its mark, a promotion its
channel, a smoke test its instance), waits until its own write can be read, and then reads what the other one
writes, several times over `PAUSES`: reads may be some moments old. Whichever write came second, its writer
sees the first one. Both may then give up; both can never win.

AWS itself makes an AMI private when it disables it, and forgets with whom it was shared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import deprecation, images, sharing
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.polling import PollInterval, PollResult, poll
from vmsnix_ops.aws.session import calling, retrying

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import TagTypeDef

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.sharing import Audience

NEVER = "never"
MOST_PARTS = 10
"""Tags that may hold with whom something was shared; 19 accounts fit into each."""

_MARKS = (
    tagging.RETAINED_UNTIL,
    tagging.RETIRED_BY,
    tagging.DEPRECATED_BEFORE,
    tagging.RETIRED_WITH,
    tagging.STATE_BEFORE,
    tagging.RESTORING,
)
GONE = ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound")
IN_USE_SECONDS = 60.0
UNSEEN_SECONDS = 10.0
RESTORED = "somebody restored it at the same time"
MARK_SECONDS = 60.0  # how long to wait until a mark can be read
PAUSES = (0.0, 0.5, 1.5)
"""Seconds before each of the reads that look for another job's write; AWS states no bound for stale reads."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What the tags of something retired say.

    Attributes
    ----------
    at, retained_until
        When it was retired, and from when on it may be removed; UTC.
    run_id
        The run that did it.
    shared_with
        Who could use it: accounts, ARNs, ``public``.
    deprecated_before
        Its deprecation date; ``None`` when it had none.
    with_ami
        Of a snapshot: the AMI that it belonged to.
    state_before
        Of an AMI: its state.
    """

    at: datetime
    retained_until: datetime
    run_id: str = ""
    shared_with: tuple[str, ...] = ()
    deprecated_before: datetime | None = None
    with_ami: str = ""
    state_before: str = ""

    def tags(self) -> dict[str, str]:
        """Return it as tags."""
        before = self.deprecated_before
        return {
            tagging.RETIRED: _text(self.at),
            tagging.RETAINED_UNTIL: _text(self.retained_until),
            tagging.RETIRED_BY: self.run_id,
            tagging.DEPRECATED_BEFORE: _text(before) if before else NEVER,
            tagging.RETIRED_WITH: self.with_ami,
            tagging.STATE_BEFORE: self.state_before,
            **{_part(number): words for number, words in enumerate(_lines(self.shared_with), 1)},
        }


def mark(tags: Mapping[str, str]) -> Mark | None:
    """Return what tags say of a retirement; ``None`` where there was none, or somebody changed the dates."""
    at, until = _moment(tags.get(tagging.RETIRED, "")), _moment(tags.get(tagging.RETAINED_UNTIL, ""))
    if at is None or until is None:
        return None
    return Mark(
        at,
        until,
        tags.get(tagging.RETIRED_BY, ""),
        _shared_with(tags),
        _moment(tags.get(tagging.DEPRECATED_BEFORE, "")),
        tags.get(tagging.RETIRED_WITH, ""),
        tags.get(tagging.STATE_BEFORE, ""),
    )


def without_marks(ami: Ami) -> Ami:
    """Return an AMI without the tags of retirements, restorations and deletions."""
    return replace(ami, tags={key: value for key, value in ami.tags.items() if not is_mark(key)})


def without_claim(ami: Ami) -> Ami:
    """Return an AMI without the tag of a deletion."""
    return replace(ami, tags={key: value for key, value in ami.tags.items() if key != tagging.DELETING})


def is_mark(key: str) -> bool:
    """Tell whether a tag belongs to a retirement, restoration or deletion of the resource that has it."""
    return key in (tagging.RETIRED, *_MARKS, tagging.DELETING) or key.startswith(tagging.SHARED_WITH)


def fits(names: Iterable[str]) -> bool:
    """Tell whether tags can hold that something was shared with all of these."""
    return len(_lines(names)) <= MOST_PARTS


def looks() -> Iterator[None]:
    """Yield as often as another job's write is read, with the pauses in between."""
    for pause in PAUSES:
        time.sleep(pause)
        yield


def marked_by(ami: Ami) -> str:
    """Return which retirement marked an AMI, in words; empty when none did."""
    if tagging.RETIRED not in ami.tags:
        return ""
    run = ami.tags.get(tagging.RETIRED_BY, "")
    return f"the run {run}" if run else "an unnamed run"


def check_unmarked(ami: Ami) -> None:
    """Refuse to use an AMI that is being retired.

    Raises
    ------
    vmsnix_ops.errors.RegistrationError
        It carries the mark of a retirement; with the command that removes it.
    """
    who = marked_by(ami)
    if not who:
        return
    fix = images.restoring(ami)
    if mark(ami.tags) is None:  # somebody changed its dates, so that a restoration does not know it
        where = f"--region {ami.region} --resources {ami.ami_id}"
        fix = f"aws ec2 delete-tags {where} --tags Key={tagging.RETIRED}"
    raise errors.RegistrationError(
        f"The AMI {ami.ami_id} in {ami.region} is being retired.",
        why=f"It has the tag {tagging.RETIRED}, set by {who}.",
        fix=f"Choose another AMI. If that run is no longer running, undo it: {fix}",
    )


@needs("ec2:DescribeImageAttribute")
def note(ec2: EC2Client, ami: Ami, *, run_id: str, at: datetime, grace: timedelta) -> Mark:
    """Return what the mark of a retirement says of an AMI as it is now. Nothing is changed."""
    known, shared = mark(ami.tags), sharing.of_image(ec2, ami.ami_id)
    return Mark(
        at,
        at + grace,
        run_id,
        _union(known.shared_with if known else (), shared.names()),
        known.deprecated_before if known else ami.deprecated_at,
        state_before=ami.state,
    )


@needs("ec2:CreateTags of our resources", "ec2:DescribeImages")
def announce(ec2: EC2Client, ami: Ami, noted: Mark) -> Ami:
    """Write the mark on an AMI, wait until it can be read, and return the AMI as it is then.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        The mark cannot be read within `MARK_SECONDS`, the AMI is gone, or another run marked it after us.
    """
    tag(ec2, [ami.ami_id], noted.tags())

    def read() -> PollResult[Ami | None]:
        seen = look(ec2, ami.ami_id)
        there = seen is not None and seen.tags.get(tagging.RETIRED_BY) == noted.run_id
        return PollResult("done" if there else "waiting", seen, state="not marked yet")

    what = f"the tag of {ami.ami_id}"
    seen = poll(
        read, what=what, deadline=MARK_SECONDS, interval=PollInterval(shortest=0.2, longest=5.0)
    ).value
    if seen is None:
        raise RuntimeError("a mark was read of an AMI that is not there")
    return seen


@needs("ec2:CreateTags of our resources", "ec2:DeleteTags")
def take_back(ec2: EC2Client, ami: Ami, noted: Mark) -> None:
    """Remove the mark of `announce`; an earlier retirement's mark stays as it was. Safe to run twice."""
    ours = {key for key, value in noted.tags().items() if value}
    new: list[TagTypeDef] = [{"Key": key} for key in sorted(ours - ami.tags.keys())]
    if new:
        with calling(f"remove the retirement tag of {ami.ami_id}"):
            ec2.delete_tags(Resources=[ami.ami_id], Tags=new)
    old = {key: ami.tags[key] for key in sorted(ours & ami.tags.keys())}
    if old:
        tag(ec2, [ami.ami_id], old)


@needs(
    "ec2:CreateTags of our resources",
    "ec2:DisableImage",
    "ec2:DescribeImageAttribute",
    "ec2:DescribeSnapshotAttribute",
)
def retire(ec2: EC2Client, ami: Ami, snapshot_ids: Iterable[str], noted: Mark) -> None:
    """Make a marked AMI and its snapshots private, deprecate and disable it.

    Safe to run twice, and to go on with after a death at any call: the tags come first, and a second run
    adds to what they say and takes nothing from it. Grace counts from the latest run, so that an AMI which
    somebody enabled by hand is not removed the day after it is retired again.

    Parameters
    ----------
    ec2, ami
        Which one, as it was before it was marked.
    snapshot_ids
        Those of its snapshots that are ours (`vmsnix:digest`) and belong to no other AMI.
    noted
        What `note` returned, and `announce` wrote on an AMI that is not disabled.
    """
    for snapshot_id in snapshot_ids:
        retire_snapshot(ec2, snapshot_id, noted, ami)
    if ami.state == "disabled":  # by somebody else: it is out of everybody's reach already
        tag(ec2, [ami.ami_id], noted.tags())  # last: disabled and with these tags it counts as retired
        return
    sharing.revoke(ec2, ami.ami_id, sharing.of_image(ec2, ami.ami_id))
    if ami.deprecated_at is None or ami.deprecated_at > noted.at:
        # AWS takes no date that has passed by the time it looks.
        deprecation.deprecate(ec2, ami.ami_id, datetime.now(UTC) + timedelta(minutes=1))
    with calling(f"disable {ami.ami_id}"):
        ec2.disable_image(ImageId=ami.ami_id)


@needs("ec2:DescribeImages")
def still_marked(ec2: EC2Client, ami_id: str, noted: Mark) -> str:
    """Return why a retired AMI is not as this run left it, in words; empty when it is.

    A restoration that ran at the same time has removed the mark.
    """
    for _ in looks():
        seen = look(ec2, ami_id)
        if seen is None:
            return "it is gone"
        by = seen.tags.get(tagging.RETIRED_BY, "")
        if not by:
            return RESTORED
        if by != noted.run_id:
            return f"the run {by} retired it at the same time"
    return ""


@needs("ec2:CreateTags of our resources", "ec2:DescribeImages", "ec2:DescribeSnapshots", "ec2:DeleteTags")
def claim(ec2: EC2Client, resource: str, key: str, run_id: str) -> str:
    """Say on an AMI or a snapshot that a run deletes or restores it; return who does the other, or nothing.

    A deletion and a restoration of one thing at the same time see each other's tag. The one that sees the
    other one's removes its own again and must do nothing.

    Parameters
    ----------
    ec2, resource
        The AMI or the snapshot.
    key
        ``vmsnix:deleting`` or ``vmsnix:restoring``.
    run_id
        The run that claims it.
    """
    other = tagging.RESTORING if key == tagging.DELETING else tagging.DELETING
    tag(ec2, [resource], {key: run_id})

    def read() -> PollResult[dict[str, str]]:
        tags = _tags_of(ec2, resource)
        return PollResult("done" if tags.get(key) == run_id else "waiting", tags, state="not tagged yet")

    poll(read, what=f"the tag {key} of {resource}", deadline=MARK_SECONDS, interval=PollInterval(0.2, 5.0))
    for _ in looks():
        holder = _tags_of(ec2, resource).get(other, "")
        if holder:
            disclaim(ec2, resource, key)
            return holder
    return ""


@needs("ec2:DeleteTags")
def disclaim(ec2: EC2Client, resource: str, key: str) -> None:
    """Remove the tag of `claim`. Safe to run twice."""
    with calling(f"remove the tag {key} of {resource}"):
        ec2.delete_tags(Resources=[resource], Tags=[{"Key": key}])


def claimed(resource: str, key: str, run_id: str, region: str) -> str:
    """Return what to say of something that another run has claimed, with the way out."""
    doing = "deleting" if key == tagging.DELETING else "restoring"
    return (
        f"the run {run_id} is {doing} it; if that run is no longer running: aws ec2 delete-tags --region "
        f"{region} --resources {resource} --tags Key={key}"
    )


def _tags_of(ec2: EC2Client, resource: str) -> dict[str, str]:
    if resource.startswith("snap-"):
        return _snapshot_tags(ec2, resource)
    seen = look(ec2, resource)
    return dict(seen.tags) if seen else {}


@needs("ec2:CreateTags of our resources", "ec2:DescribeSnapshots", "ec2:DescribeSnapshotAttribute")
def retire_snapshot(ec2: EC2Client, snapshot_id: str, noted: Mark, ami: Ami | None = None) -> Mark:
    """Make a snapshot private, note when it was retired, with which AMI, and who could use it; return that.

    Safe to run twice. The snapshot carries `vmsnix:digest` already: nothing makes a foreign one ours.
    """
    tags, shared = _snapshot_tags(ec2, snapshot_id), sharing.of_snapshot(ec2, snapshot_id)
    known = mark(tags)
    own = Mark(
        noted.at,
        noted.retained_until,
        noted.run_id,
        _union(known.shared_with if known else (), shared.names()),
        with_ami=ami.ami_id if ami else "",
    )
    tag(ec2, [snapshot_id], own.tags())
    sharing.revoke_snapshot(ec2, snapshot_id, shared)
    return own


@needs("ec2:EnableImage", "ec2:DeleteTags")
def restore(ec2: EC2Client, ami: Ami, snapshot_ids: Iterable[str], *, at: datetime) -> Audience:
    """Enable a retired AMI, share it with whom it was shared with, give it its old deprecation date back.

    One that somebody else had disabled before is left so. Safe to run twice, and to go on with after a death
    at any call: the tags that know how it was go last.

    Returns
    -------
    Audience
        With whom it is shared again; nobody when its tags do not say.
    """
    known = mark(ami.tags)
    shared = sharing.audience(_shared_with(ami.tags))
    if known is None or known.state_before != "disabled":
        with calling(f"enable {ami.ami_id}"):
            ec2.enable_image(ImageId=ami.ami_id)
        sharing.share(ec2, ami.ami_id, shared)
        if known is not None and known.deprecated_before is None:
            deprecation.undeprecate(ec2, ami.ami_id)
        elif known is not None and known.deprecated_before and known.deprecated_before > at:
            deprecation.deprecate(ec2, ami.ami_id, known.deprecated_before)
        # A date that has passed meanwhile cannot be set again; it is deprecated, as it would be.
    for snapshot_id in snapshot_ids:
        restore_snapshot(ec2, snapshot_id)
    untag(ec2, ami.ami_id, ami.tags)
    return shared


@needs("ec2:DescribeSnapshots", "ec2:ModifySnapshotAttribute", "ec2:DeleteTags")
def restore_snapshot(ec2: EC2Client, snapshot_id: str) -> None:
    """Share a snapshot with whom it was shared with, and forget that it was retired. Safe to run twice."""
    tags = _snapshot_tags(ec2, snapshot_id)
    shared = sharing.audience(_shared_with(tags))
    sharing.share_snapshot(ec2, snapshot_id, shared.accounts)
    if shared.public:
        with calling(f"make {snapshot_id} public"):
            ec2.modify_snapshot_attribute(
                SnapshotId=snapshot_id,
                Attribute="createVolumePermission",
                CreateVolumePermission={"Add": [{"Group": "all"}]},
            )
    untag(ec2, snapshot_id, tags)


@needs("ec2:DeregisterImage")
def deregister(ec2: EC2Client, ami_id: str) -> Literal["deregistered", "gone", "protected"]:
    """Deregister an AMI; its snapshots stay. Safe to run twice: one that is gone is no error.

    Returns
    -------
    str
        ``"protected"`` when its deregistration protection is on: that is respected, and nothing was done.
    """
    try:
        with calling(f"deregister {ami_id}"):
            ec2.deregister_image(ImageId=ami_id)
    except errors.AwsError as error:
        if error.code in GONE:
            return "gone"
        if error.code == "OperationNotPermitted" and "protect" in error.why.lower():
            return "protected"
        raise
    return "deregistered"


@needs("ec2:DescribeImages", "ec2:DeleteSnapshot")
def remove_snapshot(ec2: EC2Client, snapshot_id: str, *, of: str = "") -> tuple[str, ...]:
    """Delete a snapshot unless an AMI needs it, and return the AMIs that do: empty when it is gone.

    Safe to run twice. For moments AWS still counts an AMI that was just deregistered: that is waited out.

    Parameters
    ----------
    ec2, snapshot_id
        Which one.
    of
        The AMI that was just deregistered and may still be listed.
    """
    holders = tuple(ami_id for ami_id in images.of_snapshot(ec2, snapshot_id) if ami_id != of)
    if holders:
        return holders
    try:
        with calling(f"delete the snapshot {snapshot_id}"):
            retrying(
                lambda: ec2.delete_snapshot(SnapshotId=snapshot_id),
                "InvalidSnapshot.InUse",
                saying="currently in use",  # and not that a fast restore is on, which does not end by itself
                seconds=IN_USE_SECONDS,
            )
    except errors.AwsError as error:
        if error.code not in GONE:
            raise
    return ()


@needs("ec2:DescribeImages")
def look(ec2: EC2Client, ami_id: str) -> Ami | None:
    """Return an AMI as it is now; ``None`` when it is gone."""
    try:
        with calling(f"read {ami_id}"):
            answer = ec2.describe_images(ImageIds=[ami_id], IncludeDisabled=True)
    except errors.AwsError as error:
        if error.code in GONE:
            return None
        raise
    return images.read(answer["Images"][0], ec2.meta.region_name) if answer["Images"] else None


@needs("ec2:CreateTags of our resources")
def tag(ec2: EC2Client, resources: list[str], tags: Mapping[str, str]) -> None:
    """Add or change tags of AMIs or snapshots. Safe to run twice."""
    with calling(f"tag {', '.join(resources)}"):
        ec2.create_tags(Resources=resources, Tags=tagging.to_list(tags))


@needs("ec2:DeleteTags")
def untag(ec2: EC2Client, resource: str, tags: Mapping[str, str]) -> None:
    """Remove the tags of a retirement, last of all, and that of its restoration. Safe to run twice."""
    names = (tagging.RETIRED, *_MARKS, *map(_part, range(1, MOST_PARTS + 1)))
    present: list[TagTypeDef] = [{"Key": name} for name in names if name in tags]
    if present:
        with calling(f"remove the tags of the retirement of {resource}"):
            ec2.delete_tags(Resources=[resource], Tags=present)


def _snapshot_tags(ec2: EC2Client, snapshot_id: str) -> dict[str, str]:
    with calling(f"read the snapshot {snapshot_id}"):
        answer = retrying(
            lambda: ec2.describe_snapshots(SnapshotIds=[snapshot_id]),
            "InvalidSnapshot.NotFound",
            seconds=UNSEEN_SECONDS,
        )
    return tagging.to_dict(answer["Snapshots"][0].get("Tags"))


def _union(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


def _part(number: int) -> str:
    return tagging.SHARED_WITH if number == 1 else f"{tagging.SHARED_WITH}-{number}"


def _lines(names: Iterable[str]) -> list[str]:
    """Return names as lines that fit into a tag each."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + 1 + len(name) <= tagging.LONGEST_VALUE:
            lines[-1] += f" {name}"
        else:
            lines.append(name)
    return lines


def _shared_with(tags: Mapping[str, str]) -> tuple[str, ...]:
    parts = [tags.get(_part(number), "") for number in range(1, MOST_PARTS + 1)]
    return tuple(dict.fromkeys(" ".join(parts).split()))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None
