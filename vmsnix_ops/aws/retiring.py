"""Retire, restore and delete AMIs and their snapshots. A killed run can be continued after any call.

A retired AMI is private, deprecated and disabled, so it cannot be launched. All of that can be undone: the
tags of the AMI and of its snapshots record the earlier state. They are written before anything is changed,
and removed after everything is restored.

============================  ==========================================================================
``vmsnix:retired``            when it was retired (UTC); the retention period starts here
``vmsnix:retained-until``     end of the retention period; it may be deleted from then on
``vmsnix:retired-by``         the run that retired it
``vmsnix:shared-with``        with whom it was shared; continued in ``vmsnix:shared-with-2`` and so on
``vmsnix:deprecated-before``  its deprecation date before, or ``never``
``vmsnix:state-before``       its state before: ``disabled`` or ``available``
``vmsnix:retired-with``       of a snapshot: its AMI, to find the snapshot after the AMI is deregistered
``vmsnix:restoring``          the run that restores it: no other run may delete it
``vmsnix:deleting``           the run that deletes it: no other run may restore it
============================  ==========================================================================

Jobs that run at the same time coordinate by these tags, because AWS has no transaction over an AMI, a
parameter and an instance. Each job writes first: a retirement the tags, a promotion the channel, a smoke test
the instance. It waits until it can read its own write. Then it reads what the other jobs write, several times
over `READ_PAUSES`, because a read may be some moments old. So the job whose write came second always finds
the first write. Both jobs may then give up, but they never both continue.

AWS makes an AMI private when it is disabled, and does not keep with whom it was shared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

from vmsnix_ops import errors
from vmsnix_ops.aws import deprecation, images, sharing, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.polling import PollInterval, PollResult, poll
from vmsnix_ops.aws.session import calling

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import TagTypeDef

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.sharing import Audience
    from vmsnix_ops.aws.snapshots import Snapshot

Resource = TypeVar("Resource", bound="Ami | Snapshot")

NEVER = "never"
MAX_SHARED_WITH_TAGS = 10
"""Tags that may record with whom something was shared; 19 accounts fit into each."""

NOT_FOUND = ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound")
NOT_FOUND_SECONDS = 10.0
RESTORED = "another run restored it at the same time"
TAG_SECONDS = 60.0  # how long to wait until a tag can be read
READ_PAUSES = (0.0, 0.5, 1.5)
"""Seconds before each read of what other jobs write; AWS documents no limit for the age of a read."""


@dataclass(frozen=True, slots=True)
class RetirementTags:
    """What the tags of a retired AMI or snapshot record; the table above explains each."""

    retired_at: datetime
    retained_until: datetime
    run_id: str = ""
    shared_with: tuple[str, ...] = ()  # accounts, ARNs, "public"
    deprecated_before: datetime | None = None
    with_ami: str = ""  # only of a snapshot
    state_before: str = ""  # only of an AMI

    @classmethod
    def parse(cls, tags: Mapping[str, str]) -> RetirementTags | None:
        """Return what tags record; ``None`` if it was not retired, or the dates are invalid."""
        retired_at = _parse_time(tags.get(tagging.RETIRED, ""))
        retained_until = _parse_time(tags.get(tagging.RETAINED_UNTIL, ""))
        if retired_at is None or retained_until is None:
            return None
        return cls(
            retired_at,
            retained_until,
            tags.get(tagging.RETIRED_BY, ""),
            _shared_with(tags),
            _parse_time(tags.get(tagging.DEPRECATED_BEFORE, "")),
            tags.get(tagging.RETIRED_WITH, ""),
            tags.get(tagging.STATE_BEFORE, ""),
        )

    def tags(self) -> dict[str, str]:
        """Return the tags; `parse` reads them."""
        before = self.deprecated_before
        return {
            tagging.RETIRED: _format_time(self.retired_at),
            tagging.RETAINED_UNTIL: _format_time(self.retained_until),
            tagging.RETIRED_BY: self.run_id,
            tagging.DEPRECATED_BEFORE: _format_time(before) if before else NEVER,
            tagging.RETIRED_WITH: self.with_ami,
            tagging.STATE_BEFORE: self.state_before,
            **{_shared_with_key(n): value for n, value in enumerate(_tag_values(self.shared_with), 1)},
        }


def without_retirement_tags(ami: Ami) -> Ami:
    """Return an AMI without the tags of retirements, restorations and deletions."""
    return replace(ami, tags={key: value for key, value in ami.tags.items() if not is_retirement_tag(key)})


def without_deletion_tag(resource: Resource) -> Resource:
    """Return an AMI or a snapshot without the tag of a deletion."""
    tags = {key: value for key, value in resource.tags.items() if key != tagging.DELETING}
    return replace(resource, tags=tags)


def is_retirement_tag(key: str) -> bool:
    """Return whether a tag belongs to a retirement, restoration or deletion of its resource."""
    return key in (*tagging.OF_RETIREMENTS, tagging.DELETING) or key.startswith(tagging.SHARED_WITH)


def fits_into_tags(names: Iterable[str]) -> bool:
    """Return whether tags can record that something was shared with all of these."""
    return len(_tag_values(names)) <= MAX_SHARED_WITH_TAGS


def repeated_reads() -> Iterator[None]:
    """Pause as in `READ_PAUSES`, and yield for each read of what other jobs write."""
    for pause in READ_PAUSES:
        time.sleep(pause)
        yield


def retired_by(ami: Ami) -> str:
    """Return which run is retiring or has retired an AMI, for people; empty if none."""
    if tagging.RETIRED not in ami.tags:
        return ""
    run = ami.tags.get(tagging.RETIRED_BY, "")
    return f"the run {run}" if run else "an unnamed run"


def check_not_retired(ami: Ami) -> None:
    """Refuse to use an AMI that is being retired."""
    run = retired_by(ami)
    if not run:
        return
    fix = images.restore_command(ami)
    if RetirementTags.parse(ami.tags) is None:  # its dates are invalid: a restoration ignores it
        where = f"--region {ami.region} --resources {ami.ami_id}"
        fix = f"aws ec2 delete-tags {where} --tags Key={tagging.RETIRED}"
    raise errors.RegistrationError(
        f"The AMI {ami.ami_id} in {ami.region} is being retired.",
        why=f"It has the tag {tagging.RETIRED}, set by {run}.",
        fix=f"Choose another AMI. If that run is no longer running, undo it: {fix}",
    )


@needs("ec2:DescribeImageAttribute")
def retirement_tags(
    ec2: EC2Client, ami: Ami, *, run_id: str, at: datetime, retention: timedelta
) -> RetirementTags:
    """Return what the tags of a retirement will record of an AMI. Nothing is changed."""
    earlier, shared = RetirementTags.parse(ami.tags), sharing.read_launch_permissions(ec2, ami.ami_id)
    return RetirementTags(
        at,
        at + retention,
        run_id,
        _all_shared(earlier, shared),
        earlier.deprecated_before if earlier else ami.deprecated_at,
        state_before=ami.state,
    )


def _all_shared(earlier: RetirementTags | None, shared: Audience) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*(earlier.shared_with if earlier else ()), *shared.names())))


@needs("ec2:CreateTags of our resources", "ec2:DescribeImages")
def write_retirement_tags(ec2: EC2Client, ami: Ami, record: RetirementTags) -> None:
    """Tag an AMI as retired, and wait until the tags can be read, at most `TAG_SECONDS`."""
    _tag_and_wait(ec2, ami.ami_id, record.tags(), tagging.RETIRED_BY)


def _tag_and_wait(ec2: EC2Client, resource: str, tags: Mapping[str, str], key: str) -> None:
    add_tags(ec2, [resource], tags)

    def read() -> PollResult[None]:
        tagged = _tags_of(ec2, resource).get(key) == tags[key]
        return PollResult("done" if tagged else "waiting", None, state="not tagged yet")

    poll(read, what=f"the tag {key} of {resource}", deadline=TAG_SECONDS, interval=PollInterval(0.2, 5.0))


@needs("ec2:CreateTags of our resources", "ec2:DeleteTags")
def undo_retirement_tags(ec2: EC2Client, ami: Ami, record: RetirementTags) -> None:
    """Undo `write_retirement_tags`: give an AMI the tags that it had before. Safe to run twice."""
    written = {key for key, value in record.tags().items() if value}
    new: list[TagTypeDef] = [{"Key": key} for key in sorted(written - ami.tags.keys())]
    if new:
        with calling(f"remove the retirement tag of {ami.ami_id}"):
            ec2.delete_tags(Resources=[ami.ami_id], Tags=new)
    old = {key: ami.tags[key] for key in sorted(written & ami.tags.keys())}
    if old:
        add_tags(ec2, [ami.ami_id], old)


@needs(
    "ec2:CreateTags of our resources",
    "ec2:DisableImage",
    "ec2:DescribeImageAttribute",
    "ec2:DescribeSnapshotAttribute",
)
def retire(ec2: EC2Client, ami: Ami, snapshot_ids: Iterable[str], record: RetirementTags) -> None:
    """Make an AMI and its snapshots private, deprecate and disable the AMI.

    Safe to run twice, and to continue after it was killed at any call: the tags are written first, and a
    second run only adds to what they record. The retention period starts with the latest run, so an AMI that
    was enabled by hand is not deleted the day after it is retired again.

    `ami` is as it was before it was tagged. `snapshot_ids` are its snapshots that vmsnix published
    (`vmsnix:digest`) and that no other AMI has. `write_retirement_tags` has written `record`, unless the AMI
    is disabled.
    """
    for snapshot_id in snapshot_ids:
        retire_snapshot(ec2, snapshot_id, record, ami)
    if ami.state == "disabled":  # it cannot be launched
        add_tags(ec2, [ami.ami_id], record.tags())  # last: a disabled AMI with these tags counts as retired
        return
    sharing.revoke_ami(ec2, ami.ami_id, sharing.read_launch_permissions(ec2, ami.ami_id))
    if ami.deprecated_at is None or ami.deprecated_at > record.retired_at:
        # AWS refuses a date that has passed when the request arrives.
        deprecation.deprecate(ec2, ami.ami_id, datetime.now(UTC) + timedelta(minutes=1))
    with calling(f"disable {ami.ami_id}"):
        ec2.disable_image(ImageId=ami.ami_id)


@needs("ec2:DescribeImages")
def why_not_retired(ec2: EC2Client, ami_id: str, record: RetirementTags) -> str:
    """Return why an AMI is no longer as this run retired it, for people; empty if it still is.

    A restoration that ran at the same time has removed the tags.
    """
    for _ in repeated_reads():
        ami = images.find_ami(ec2, ami_id)
        if ami is None:
            return "it no longer exists"
        run = ami.tags.get(tagging.RETIRED_BY, "")
        if not run:
            return RESTORED
        if run != record.run_id:
            return f"the run {run} retired it at the same time"
    return ""


@needs("ec2:CreateTags of our resources", "ec2:DescribeImages", "ec2:DescribeSnapshots", "ec2:DeleteTags")
def claim(ec2: EC2Client, resource: str, key: str, run_id: str) -> str:
    """Tag an AMI or a snapshot as being deleted or restored by a run (``vmsnix:deleting``, ``…:restoring``).

    A deletion and a restoration of the same resource at the same time can each read the tag of the other.
    Then this function removes its own tag and returns the other run, and the caller must do nothing. The
    result is empty if the resource is claimed.
    """
    other = tagging.RESTORING if key == tagging.DELETING else tagging.DELETING
    _tag_and_wait(ec2, resource, {key: run_id}, key)
    for _ in repeated_reads():
        other_run = _tags_of(ec2, resource).get(other, "")
        if other_run:
            release(ec2, resource, key)
            return other_run
    return ""


@needs("ec2:DeleteTags")
def release(ec2: EC2Client, resource: str, key: str) -> None:
    """Remove the tag of `claim`. Safe to run twice."""
    with calling(f"remove the tag {key} of {resource}"):
        ec2.delete_tags(Resources=[resource], Tags=[{"Key": key}])


def claimed_by(resource: str, key: str, run_id: str, region: str) -> str:
    """Return a text for people: which run has claimed a resource, and how to remove its claim."""
    doing = "deleting" if key == tagging.DELETING else "restoring"
    return (
        f"the run {run_id} is {doing} it; if that run is no longer running: aws ec2 delete-tags --region "
        f"{region} --resources {resource} --tags Key={key}"
    )


def _tags_of(ec2: EC2Client, resource: str) -> dict[str, str]:
    if resource.startswith("snap-"):
        return dict(snapshots.describe_snapshot(ec2, resource, seconds=NOT_FOUND_SECONDS).tags)
    ami = images.find_ami(ec2, resource)
    return dict(ami.tags) if ami else {}


@needs("ec2:CreateTags of our resources", "ec2:DescribeSnapshots", "ec2:DescribeSnapshotAttribute")
def retire_snapshot(
    ec2: EC2Client, snapshot_id: str, record: RetirementTags, ami: Ami | None = None
) -> RetirementTags:
    """Make a snapshot private, and record in its tags when, with which AMI, and who could use it.

    Safe to run twice. Call it only for snapshots that vmsnix published: they have the tag `vmsnix:digest`.
    """
    tags, shared = _tags_of(ec2, snapshot_id), sharing.read_snapshot_permissions(ec2, snapshot_id)
    earlier = RetirementTags.parse(tags)
    own = RetirementTags(
        record.retired_at,
        record.retained_until,
        record.run_id,
        _all_shared(earlier, shared),
        with_ami=ami.ami_id if ami else "",
    )
    add_tags(ec2, [snapshot_id], own.tags())
    sharing.revoke_snapshot(ec2, snapshot_id, shared)
    return own


@needs("ec2:EnableImage", "ec2:DeleteTags")
def restore(ec2: EC2Client, ami: Ami, snapshot_ids: Iterable[str], *, at: datetime) -> Audience:
    """Enable a retired AMI, share it as before, and set its earlier deprecation date.

    An AMI that was disabled before its retirement remains disabled. Safe to run twice, and to continue after
    it was killed at any call: the tags that record the earlier state are removed last. Returns with whom it
    is shared again.
    """
    record = RetirementTags.parse(ami.tags)
    shared = sharing.parse_audience(_shared_with(ami.tags))
    if record is None or record.state_before != "disabled":
        with calling(f"enable {ami.ami_id}"):
            ec2.enable_image(ImageId=ami.ami_id)
        sharing.share_ami(ec2, ami.ami_id, shared)
        if record is not None and record.deprecated_before is None:
            deprecation.undeprecate(ec2, ami.ami_id)
        elif record is not None and record.deprecated_before and record.deprecated_before > at:
            deprecation.deprecate(ec2, ami.ami_id, record.deprecated_before)
        # AWS refuses a date that has passed. The AMI is deprecated then, as it would be anyway.
    for snapshot_id in snapshot_ids:
        restore_snapshot(ec2, snapshot_id)
    remove_tags(ec2, ami.ami_id, ami.tags)
    return shared


@needs("ec2:DescribeSnapshots", "ec2:ModifySnapshotAttribute", "ec2:DeleteTags")
def restore_snapshot(ec2: EC2Client, snapshot_id: str) -> None:
    """Share a snapshot as before its retirement, and remove the tags of the retirement. Safe to run twice."""
    tags = _tags_of(ec2, snapshot_id)
    shared = sharing.parse_audience(_shared_with(tags))
    sharing.share_snapshot(ec2, snapshot_id, shared.accounts)
    if shared.public:
        with calling(f"make {snapshot_id} public"):
            ec2.modify_snapshot_attribute(
                SnapshotId=snapshot_id,
                Attribute="createVolumePermission",
                CreateVolumePermission={"Add": [{"Group": "all"}]},
            )
    remove_tags(ec2, snapshot_id, tags)


@needs("ec2:DeregisterImage")
def deregister(ec2: EC2Client, ami_id: str) -> Literal["deregistered", "deleted", "protected"]:
    """Deregister an AMI; its snapshots are kept. Safe to run twice.

    It is ``deleted`` if it no longer exists, and ``protected`` and kept with deregistration protection.
    """
    try:
        with calling(f"deregister {ami_id}"):
            ec2.deregister_image(ImageId=ami_id)
    except errors.AwsError as error:
        if error.code in NOT_FOUND:
            return "deleted"
        if error.code == "OperationNotPermitted" and "protect" in error.why.lower():
            return "protected"
        raise
    return "deregistered"


@needs("ec2:DescribeImages", "ec2:DeleteSnapshot")
def delete_snapshot(ec2: EC2Client, snapshot_id: str, *, of: str = "") -> tuple[str, ...]:
    """Delete a snapshot unless an AMI needs it, and return the AMIs that need it.

    `of` is the AMI that was just deregistered. AWS still counts it for some moments; this waits. Safe to run
    twice.
    """
    needed_by = tuple(ami_id for ami_id in images.find_amis_of_snapshot(ec2, snapshot_id) if ami_id != of)
    if needed_by:
        return needed_by
    snapshots.delete_snapshot(ec2, snapshot_id)
    return ()


@needs("ec2:CreateTags of our resources")
def add_tags(ec2: EC2Client, resources: list[str], tags: Mapping[str, str]) -> None:
    """Add or change tags of AMIs or snapshots. Safe to run twice."""
    with calling(f"tag {', '.join(resources)}"):
        ec2.create_tags(Resources=resources, Tags=tagging.to_list(tags))


@needs("ec2:DeleteTags")
def remove_tags(ec2: EC2Client, resource: str, tags: Mapping[str, str]) -> None:
    """Remove the tags of a retirement and of a restoration. Safe to run twice."""
    names = (*tagging.OF_RETIREMENTS, *map(_shared_with_key, range(2, MAX_SHARED_WITH_TAGS + 1)))
    present: list[TagTypeDef] = [{"Key": name} for name in names if name in tags]
    if present:
        with calling(f"remove the tags of the retirement of {resource}"):
            ec2.delete_tags(Resources=[resource], Tags=present)


def _shared_with_key(number: int) -> str:
    return tagging.SHARED_WITH if number == 1 else f"{tagging.SHARED_WITH}-{number}"


def _tag_values(names: Iterable[str]) -> list[str]:
    """Return names, joined by spaces, as values that fit into a tag each."""
    values: list[str] = []
    for name in names:
        if values and len(values[-1]) + 1 + len(name) <= tagging.LONGEST_VALUE:
            values[-1] += f" {name}"
        else:
            values.append(name)
    return values


def _shared_with(tags: Mapping[str, str]) -> tuple[str, ...]:
    values = [tags.get(_shared_with_key(number), "") for number in range(1, MAX_SHARED_WITH_TAGS + 1)]
    return tuple(dict.fromkeys(" ".join(values).split()))


def _format_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _parse_time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None
