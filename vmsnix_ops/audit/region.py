"""Read one account and region: its AMIs, snapshots and imports, what uses them, and the values of channels.

An audit and a retirement both read by this module, so that both decide by the same facts. What cannot be read
stands in `Region.unread` and in `References.unread`; nobody may take it for nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from vmsnix_ops import errors
from vmsnix_ops.aws import images, imports, parameters, references, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.identity import REFUSED, not_enabled
from vmsnix_ops.aws.paging import pages
from vmsnix_ops.aws.references import Clients, Reference, References, Through
from vmsnix_ops.aws.session import calling
from vmsnix_ops.aws.snapshots import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    import boto3
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import FilterTypeDef
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.imports import ImportTask
    from vmsnix_ops.aws.paging import Limit

Found = TypeVar("Found")

AT_ONCE = 8  # regions
PAGE = 1000
WHOLE = "region"
"""Source in `Region.unread` of a region of which nothing can be read."""
ONE_BY_ONE = "references and permissions"
"""Source in `References.unread` of what `ask` reads."""


@dataclass(frozen=True, slots=True)
class Place:
    """One account and region with its clients, which one thread makes and another uses."""

    region: str
    account: str
    clients: Clients

    @classmethod
    def of(cls, session: boto3.Session, region: str, account: str, limit: Limit | None = None) -> Place:
        """Return the clients of a region."""
        return cls(region, account, Clients.of(session, region, limit))

    @property
    def ec2(self) -> EC2Client:
        """The region's EC2."""
        return self.clients.ec2


@dataclass(frozen=True, slots=True)
class Region:
    """What was read of one account and region.

    Attributes
    ----------
    region, account
        Of what.
    amis
        Every AMI of the account, oldest first.
    snapshots
        Every snapshot of the account, by id.
    references
        What uses the AMIs; its `unread` names what could not be read.
    channels
        The AMIs that each channel names and named, the present one first, by the name of its parameter.
    importing
        Digests of images that an import works on.
    asked
        The AMIs and snapshots about which AWS was asked one by one who uses and who may use them; ``None``
        for all.
    imports
        The imports that AWS lists.
    unread
        Lists that could not be read, each with the error. Nobody can decide about such a region.
    """

    region: str
    account: str
    amis: tuple[Ami, ...]
    snapshots: Mapping[str, Snapshot]
    references: References
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    importing: frozenset[str] = frozenset()
    asked: frozenset[str] | None = None
    imports: tuple[ImportTask, ...] = ()
    unread: Mapping[str, errors.AwsError] = field(default_factory=dict)

    def holders(self) -> dict[str, list[str]]:
        """Return the AMIs that have each snapshot."""
        found: dict[str, list[str]] = {}
        for ami in self.amis:
            for snapshot_id in dict.fromkeys(ami.snapshot_ids):
                found.setdefault(snapshot_id, []).append(ami.ami_id)
        return found

    def orphans(self) -> tuple[Snapshot, ...]:
        """Return the snapshots of ours that no AMI of this account has, oldest first."""
        held = self.holders()
        found = [
            one for one in self.snapshots.values() if one.snapshot_id not in held and tagging.ours(one.tags)
        ]
        return tuple(sorted(found, key=lambda one: (one.created_at, one.snapshot_id)))

    def deciding(self) -> Region:
        """Return what decides about ours and nothing else: an audit keeps it of all its regions at once."""
        orphans = {one.snapshot_id: one for one in self.orphans()}
        # A copy that is being made may not have its tags yet.
        amis = [ami for ami in self.amis if tagging.ours(ami.tags) or ami.state == "pending"]
        # Of the snapshots that they have, nobody asks more than whether they are there: one stands for all.
        names = {name for ami in amis for name in ami.snapshot_ids if name in self.snapshots}
        held = dict.fromkeys(names, _THERE)
        slim = tuple(replace(ami, tags=_deciding(ami.tags)) for ami in amis)
        return replace(self, amis=slim, snapshots=held | orphans, imports=())


def _deciding(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags by which is decided."""
    return {key: value for key, value in tags.items() if key in _KEPT or retiring.is_mark(key)}


_THERE = Snapshot("", "completed", images.UNKNOWN_TIME, 0, {})
_KEPT = frozenset({tagging.IMAGE, tagging.DIGEST, tagging.RESTORING})


def read(place: Place, *, prefix: str, usage: bool = True) -> Region:
    """Return what there is in a region, with the references that cost the same calls for any number of AMIs.

    Parameters
    ----------
    place
        Where.
    prefix
        First part of the names of the channels' parameters.
    usage
        Whether to read what uses the AMIs, imports and channels, too.
    """
    ec2, unread = place.ec2, dict[str, errors.AwsError]()

    def attempt(source: str, call: Callable[[], Found]) -> Found | None:
        try:
            return call()
        except errors.AwsError as error:
            unread[source] = error
            return None

    # In this order, what is registered between the two lists lacks its snapshot only, which is read below. In
    # the other order it would be a snapshot that no AMI has.
    held = attempt("snapshots", lambda: snapshots.owned(ec2)) or {}
    closed = _closed(place.region, unread)
    if closed is not None:
        return Region(
            place.region, place.account, (), {}, References(place.region, {}), unread={WHOLE: closed}
        )
    amis = attempt("AMIs", lambda: images.owned(ec2)) or ()
    late = [name for ami in amis for name in ami.snapshot_ids if name not in held]
    if late and "snapshots" not in unread:
        held |= attempt("snapshots", lambda: snapshots.owned(ec2, late)) or {}
    if not usage:
        return Region(place.region, place.account, amis, held, References(place.region, {}), unread=unread)
    tasks = attempt("imports", lambda: imports.listed(ec2)) or ()
    return Region(
        place.region,
        place.account,
        amis,
        held,
        references.gather(place.clients),
        attempt("channels", lambda: channels(place.clients.ssm, prefix)) or {},
        importing(tasks),
        frozenset(),
        tasks,
        unread,
    )


def read_all(places: Iterable[Place], *, prefix: str, usage: bool = True) -> dict[str, Region]:
    """Return what `read` finds in each of several regions of one account, by region."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="region") as pool:
        found = pool.map(lambda place: read(place, prefix=prefix, usage=usage), places)
        return {one.region: one for one in found}


def _closed(region: str, unread: Mapping[str, errors.AwsError]) -> errors.AwsError | None:
    """Return why nothing of a region can be read, so that this is told once and not of every source."""
    for error in unread.values():
        if error.code in REFUSED:
            return not_enabled(region, error.why)
        if isinstance(error, errors.DeadlineError):
            return error
    return None


def ask(place: Place, region: Region, resource_ids: Collection[str]) -> Region:
    """Return the region with what only calls about single AMIs and snapshots tell.

    That something could not be read stands in its references, too, and keeps everything of the region.
    """
    held = {
        ami.ami_id: [name for name in ami.snapshot_ids if name in region.snapshots]
        for ami in region.amis
        if ami.ami_id in resource_ids
    }
    loose = [name for name in resource_ids if name in region.snapshots]
    try:
        more = one_by_one(place.ec2, held, loose)
    except errors.AwsError as error:
        more = References(place.region, {}, {ONE_BY_ONE: error})
    asked = (region.asked or frozenset()).union(resource_ids)
    return replace(region, references=references.merged(region.references, more), asked=asked)


def right_before(
    place: Place, *, amis: Mapping[str, Collection[str]] | None = None, loose: Collection[str] = ()
) -> References:
    """Return all references to a few AMIs and snapshots as they are this moment; see `one_by_one`.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        Some of it cannot be read, so that nobody knows.
    """
    found = references.gather(place.clients)
    for error in found.unread.values():
        raise error
    return references.merged(found, one_by_one(place.ec2, amis or {}, loose))


def importing(tasks: Iterable[ImportTask]) -> frozenset[str]:
    """Return the digests of the images that an import works on."""
    running = [one for one in tasks if one.status not in imports.FAILED | {"completed"}]
    return frozenset(one.tags[tagging.DIGEST] for one in running if tagging.DIGEST in one.tags)


@needs("ssm:GetParametersByPath", "ssm:GetParameterHistory")
def channels(ssm: SSMClient, prefix: str) -> dict[str, tuple[str, ...]]:
    """Return the AMIs that each channel names and named, the present one first, each once."""
    found = {}
    for pointer in parameters.list_parameters(ssm, prefix):
        values = [pointer.value, *(one.value for one in reversed(parameters.read_history(ssm, pointer.name)))]
        found[pointer.name] = tuple(dict.fromkeys(values))
    return found


@needs(
    "ec2:DescribeImageReferences",
    "ec2:DescribeImageAttribute",
    "ec2:DescribeSnapshotAttribute",
    "ec2:DescribeLockedSnapshots",
)
def one_by_one(
    ec2: EC2Client, amis: Mapping[str, Collection[str]], loose: Collection[str] = ()
) -> References:
    """Return what can be asked about single AMIs and snapshots: EC2's own search, who may use them, locks.

    Parameters
    ----------
    ec2
        Where.
    amis
        AMIs, each with those of its snapshots that are this account's: with whom they are shared counts, too,
        and whether they are locked.
    loose
        Snapshots that no AMI has.
    """
    found: dict[str, dict[Reference, None]] = {}
    held = {name for names in amis.values() for name in names}
    locked = snapshots.locks(ec2)
    for resource_id, names in {**amis, **{name: [name] for name in loose}}.items():
        for name in locked.keys() & set(names):
            lock = Reference("snapshot-lock", name, type=locked[name])
            found.setdefault(resource_id, {})[lock] = None
    with calling(f"look who uses AMIs and snapshots of {ec2.meta.region_name}"):
        for source in (references.image_references, references.launch_permissions):
            for ami_id, one in source(ec2, list(amis)):
                found.setdefault(ami_id, {})[one] = None
        for snapshot_id, one in references.snapshot_permissions(ec2, sorted(held.union(loose))):
            if snapshot_id in loose:
                found.setdefault(snapshot_id, {})[one] = None
            through = (Through("snapshot", snapshot_id),)
            for ami_id in (ami_id for ami_id, names in amis.items() if snapshot_id in names):
                shared = Reference("snapshot-shared-with", one.id, through=through, type=one.type)
                found.setdefault(ami_id, {})[shared] = None
    return References(ec2.meta.region_name, {name: tuple(some) for name, some in found.items()})


@needs("ssm:GetParametersByPath", "ec2:DescribeInstances")
def used_now(place: Place, prefix: str, ami_id: str) -> list[str]:
    """Return the channels that name an AMI and the instances that run from it, as they are this moment.

    These are what promotions, rollbacks and smoke tests write, so two calls tell whether one has begun with
    the AMI. Everything else that may use it is read by `right_before`.
    """
    names = [one.name for one in parameters.list_parameters(place.clients.ssm, prefix) if one.value == ami_id]
    filters: list[FilterTypeDef] = [{"Name": "image-id", "Values": [ami_id]}]
    with calling(f"list the instances of {ami_id}"):
        running = [
            one["InstanceId"]
            for page in pages(place.ec2.describe_instances, Filters=filters, MaxResults=PAGE)
            for reservation in page["Reservations"]
            for one in reservation["Instances"]
            if one["State"]["Name"] != "terminated"
        ]
    return [f"parameter {name}" for name in names] + [f"instance {name}" for name in running]
