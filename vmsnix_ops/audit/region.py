"""Read one account and region: AMIs, snapshots and imports, what uses them, and the values of channels.

Audits and retirements both read with this module, so both decide by the same facts. `RegionState.unread` and
`References.unread` list what could not be read: what is missing there is unknown, not absent.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from vmsnix_ops import errors
from vmsnix_ops.aws import images, imports, instances, parameters, references, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.identity import NOT_ENABLED_CODES, region_not_enabled
from vmsnix_ops.aws.references import Link, Reference, References, RegionClients
from vmsnix_ops.aws.session import calling
from vmsnix_ops.aws.snapshots import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    import boto3
    from types_boto3_ec2.client import EC2Client

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.imports import ImportTask
    from vmsnix_ops.aws.paging import TimeLimit

T = TypeVar("T")

REGIONS_AT_ONCE = 8
WHOLE_REGION = "region"
"""Source in `RegionState.unread` of a region of which nothing can be read."""
ONE_BY_ONE = "references and permissions"
"""Source in `References.unread` of what `with_references_one_by_one` reads."""


@dataclass(frozen=True, slots=True)
class RegionContext:
    """An account and the clients of a region. Any thread may use the clients; only one may create them."""

    account: str
    clients: RegionClients
    channel_prefix: str  # prefix of the names of the channels' parameters

    @classmethod
    def of(
        cls,
        session: boto3.Session,
        region: str,
        account: str,
        *,
        channel_prefix: str,
        limit: TimeLimit | None = None,
    ) -> RegionContext:
        """Return a context with new clients."""
        return cls(account, RegionClients.of(session, region, limit), channel_prefix)

    @property
    def region(self) -> str:
        """Name of the region."""
        return self.clients.region

    @property
    def ec2(self) -> EC2Client:
        """The region's EC2."""
        return self.clients.ec2


@dataclass(frozen=True, slots=True)
class RegionState:
    """What was read of one account and region."""

    region: str
    account: str
    # All that the account owns: AMIs oldest first, snapshots by ID.
    amis: tuple[Ami, ...]
    snapshots: Mapping[str, Snapshot]
    references: References
    # The AMIs of each channel by the name of its parameter: the current one, then earlier ones.
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Digests of the images that are being imported.
    importing: frozenset[str] = frozenset()
    # The AMIs and snapshots whose references and permissions were read one by one; None for all.
    read_one_by_one: frozenset[str] | None = None
    imports: tuple[ImportTask, ...] = ()
    # Lists that could not be read, each with the error. Nothing can be decided about such a region.
    unread: Mapping[str, errors.AwsError] = field(default_factory=dict)

    def amis_by_snapshot(self) -> dict[str, list[str]]:
        """Return the AMIs that reference each snapshot."""
        found: dict[str, list[str]] = {}
        for ami in self.amis:
            for snapshot_id in dict.fromkeys(ami.snapshot_ids):
                found.setdefault(snapshot_id, []).append(ami.ami_id)
        return found

    def orphans(self) -> tuple[Snapshot, ...]:
        """Return the snapshots that vmsnix published and no AMI of this account references, oldest first."""
        referenced = self.amis_by_snapshot()
        found = [
            one
            for one in self.snapshots.values()
            if one.snapshot_id not in referenced and tagging.is_published(one.tags)
        ]
        return tuple(sorted(found, key=lambda one: (one.created_at, one.snapshot_id)))

    def for_retirement(self) -> RegionState:
        """Return only what retirement rules read. An audit keeps it of all regions, so it has to be small."""
        orphans = {one.snapshot_id: one for one in self.orphans()}
        # A copy that is not finished may not have its tags yet.
        amis = [ami for ami in self.amis if tagging.is_published(ami.tags) or ami.state == "pending"]
        # Rules only check whether a snapshot of an AMI exists, so one object represents all of them.
        names = {name for ami in amis for name in ami.snapshot_ids if name in self.snapshots}
        existing = dict.fromkeys(names, _EXISTING)
        slim = tuple(replace(ami, tags=_retirement_tags(ami.tags)) for ami in amis)
        return replace(self, amis=slim, snapshots=existing | orphans, imports=())


def _retirement_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in tags.items()
        if key in (tagging.IMAGE, tagging.DIGEST) or retiring.is_retirement_tag(key)
    }


_EXISTING = Snapshot("", "completed", images.UNKNOWN_TIME, 0, {})


def read_region(context: RegionContext, *, usage: bool = True) -> RegionState:
    """Return what a region contains, and the references that take the same calls for any number of AMIs.

    Without `usage`, only AMIs and snapshots are read.
    """
    ec2, unread = context.ec2, dict[str, errors.AwsError]()

    def attempt(source: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except errors.AwsError as error:
            unread[source] = error
            return None

    # Snapshots first: an AMI that is registered between the two lists then only lacks its snapshot, which is
    # read below. In the other order its snapshot would look like one without an AMI.
    found = attempt("snapshots", lambda: snapshots.list_snapshots(ec2)) or {}
    closed = _why_closed(context.region, unread)
    if closed is not None:
        nothing = References(context.region, {})
        return RegionState(context.region, context.account, (), {}, nothing, unread={WHOLE_REGION: closed})
    amis = attempt("AMIs", lambda: images.list_amis(ec2)) or ()
    late = [name for ami in amis for name in ami.snapshot_ids if name not in found]
    if late and "snapshots" not in unread:
        found |= attempt("snapshots", lambda: snapshots.list_snapshots(ec2, late)) or {}
    state = RegionState(
        context.region, context.account, amis, found, References(context.region, {}), unread=unread
    )
    if not usage:
        return state
    tasks = attempt("imports", lambda: imports.list_tasks(ec2)) or ()
    return replace(
        state,
        references=references.read_references(context.clients),
        channels=attempt("channels", lambda: channel_values(context)) or {},
        importing=digests_importing(tasks),
        read_one_by_one=frozenset(),
        imports=tasks,
    )


def read_regions(contexts: Iterable[RegionContext], *, usage: bool = True) -> dict[str, RegionState]:
    """Return what `read_region` finds in several regions of one account, by region."""
    with ThreadPoolExecutor(REGIONS_AT_ONCE, thread_name_prefix="region") as pool:
        found = pool.map(lambda context: read_region(context, usage=usage), contexts)
        return {one.region: one for one in found}


def _why_closed(region: str, unread: Mapping[str, errors.AwsError]) -> errors.AwsError | None:
    """Return why nothing of a region can be read, to report it once instead of for every source."""
    for error in unread.values():
        if error.code in NOT_ENABLED_CODES:
            return region_not_enabled(region, error.why)
        if isinstance(error, errors.DeadlineError):
            return error
    return None


def with_references_one_by_one(
    context: RegionContext, state: RegionState, resource_ids: Collection[str]
) -> RegionState:
    """Return a region with the references of some AMIs and snapshots that AWS reports only one by one.

    If they cannot be read, the references of the region are incomplete, and rules keep all of its AMIs.
    """
    amis = {
        ami.ami_id: [name for name in ami.snapshot_ids if name in state.snapshots]
        for ami in state.amis
        if ami.ami_id in resource_ids
    }
    orphans = [name for name in resource_ids if name in state.snapshots]
    try:
        more = references_one_by_one(context.ec2, amis, orphans)
    except errors.AwsError as error:
        more = References(context.region, {}, {ONE_BY_ONE: error})
    read = (state.read_one_by_one or frozenset()).union(resource_ids)
    return replace(
        state, references=references.merge_references(state.references, more), read_one_by_one=read
    )


def current_references(
    context: RegionContext,
    *,
    amis: Mapping[str, Collection[str]] | None = None,
    orphans: Collection[str] = (),
) -> References:
    """Read all references to a few AMIs and snapshots again; raise an error if a source cannot be read."""
    found = references.read_references(context.clients)
    for error in found.unread.values():
        raise error
    return references.merge_references(found, references_one_by_one(context.ec2, amis or {}, orphans))


def digests_importing(tasks: Iterable[ImportTask]) -> frozenset[str]:
    """Return the digests of the images that are being imported."""
    running = [one for one in tasks if one.running]
    return frozenset(one.tags[tagging.DIGEST] for one in running if tagging.DIGEST in one.tags)


@needs("ssm:GetParametersByPath", "ssm:GetParameterHistory")
def channel_values(context: RegionContext) -> dict[str, tuple[str, ...]]:
    """Return the AMIs of each channel, each once: the current one, then earlier ones."""
    found, ssm = {}, context.clients.ssm
    for channel in parameters.list_parameters(ssm, context.channel_prefix):
        values = [channel.value, *(one.value for one in reversed(parameters.read_history(ssm, channel.name)))]
        found[channel.name] = tuple(dict.fromkeys(values))
    return found


@needs(
    "ec2:DescribeImageReferences",
    "ec2:DescribeImageAttribute",
    "ec2:DescribeSnapshotAttribute",
    "ec2:DescribeLockedSnapshots",
)
def references_one_by_one(
    ec2: EC2Client, amis: Mapping[str, Collection[str]], orphans: Collection[str] = ()
) -> References:
    """Return what AWS reports for single AMIs and snapshots: EC2's own search, permissions and locks.

    `amis` contains the snapshots of each AMI that belong to this account; their permissions and locks count
    for the AMI. `orphans` are snapshots without an AMI.
    """
    found: dict[str, dict[Reference, None]] = {}
    locked = snapshots.list_locks(ec2)
    for resource_id, names in {**amis, **{name: [name] for name in orphans}}.items():
        for name in locked.keys() & set(names):
            lock = Reference("snapshot-lock", name, type=locked[name])
            found.setdefault(resource_id, {})[lock] = None
    with calling(f"read the references of AMIs and snapshots of {ec2.meta.region_name}"):
        for source in (references.image_references, references.launch_permission_references):
            for ami_id, one in source(ec2, list(amis)):
                found.setdefault(ami_id, {})[one] = None
        owned = {name for names in amis.values() for name in names}
        for snapshot_id, one in references.snapshot_permission_references(ec2, sorted(owned.union(orphans))):
            if snapshot_id in orphans:
                found.setdefault(snapshot_id, {})[one] = None
            through = (Link("snapshot", snapshot_id),)
            for ami_id in (ami_id for ami_id, names in amis.items() if snapshot_id in names):
                shared = Reference("snapshot-shared-with", one.id, through=through, type=one.type)
                found.setdefault(ami_id, {})[shared] = None
    return References(ec2.meta.region_name, {name: tuple(some) for name, some in found.items()})


@needs("ssm:GetParametersByPath", "ec2:DescribeInstances")
def channels_and_instances(context: RegionContext, ami_id: str) -> list[str]:
    """Return the channels that have an AMI now, and the instances that run from it.

    Promotions, rollbacks and smoke tests write these, so two calls show whether one of them has started to
    use the AMI. `current_references` reads everything else that may use it.
    """
    channels = parameters.list_parameters(context.clients.ssm, context.channel_prefix)
    with calling(f"list the instances of {ami_id}"):
        running = [
            one["InstanceId"]
            for one in instances.list_instances(context.ec2, {"image-id": [ami_id]})
            if one["State"]["Name"] != "terminated"
        ]
    names = [f"parameter {one.name}" for one in channels if one.value == ami_id]
    return names + [f"instance {name}" for name in running]
