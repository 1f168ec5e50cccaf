"""Look at one region for a retirement: its AMIs, its snapshots, who uses what, and where channels point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.audit.retirement.values import View
from vmsnix_ops.aws import images, imports, parameters, references, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import items
from vmsnix_ops.aws.session import Client, calling

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import boto3

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """One account and region with its clients, which one thread makes and another uses."""

    region: str
    account: str
    clients: references.Clients

    @classmethod
    def of(cls, session: boto3.Session, region: str, account: str) -> Place:
        """Return the clients of a region."""
        return cls(region, account, references.Clients.of(session, region))

    @property
    def ec2(self) -> Client:
        """The region's EC2."""
        return self.clients.ec2


def look(place: Place, *, prefix: str) -> View:
    """Return what there is in a region, with the evidence that costs the same calls for any number of AMIs.

    Parameters
    ----------
    place
        Where.
    prefix
        First part of the names of the channels' pointers.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        AMIs, snapshots, imports or pointers could not be read. What uses the AMIs may be unreadable: that
        stands in the view, and keeps them.
    """
    return View(
        region=place.region,
        account=place.account,
        amis=owned_amis(place.ec2),
        snapshots=snapshots.owned(place.ec2),
        references=references.gather(place.clients),
        channels=channels(place.clients.ssm, prefix),
        importing=importing(place.ec2),
        asked=frozenset(),
    )


def ask(place: Place, view: View, resource_ids: Collection[str]) -> View:
    """Return the view with what only calls about single AMIs and snapshots tell.

    That something could not be read stands in the view, too, and keeps everything of its region.
    """
    held = {
        ami.ami_id: [name for name in ami.snapshot_ids if name in view.snapshots]
        for ami in view.amis
        if ami.ami_id in resource_ids
    }
    loose = [name for name in resource_ids if name in view.snapshots]
    try:
        more = one_by_one(place.ec2, held, loose)
    except errors.AwsError as error:
        more = references.References(place.region, {}, {"references and permissions": error})
    asked = (view.asked or frozenset()).union(resource_ids)
    return replace(view, references=_merged(view.references, more), asked=asked)


def right_before(
    place: Place, *, amis: Mapping[str, Collection[str]] | None = None, loose: Collection[str] = ()
) -> references.References:
    """Return all evidence about a few AMIs and snapshots as it is this moment; see `one_by_one`.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        Some of it cannot be read, so that nobody knows.
    """
    found = references.gather(place.clients)
    for error in found.unread.values():
        raise error
    return _merged(found, one_by_one(place.ec2, amis or {}, loose))


def _merged(one: references.References, other: references.References) -> references.References:
    by_ami = {
        ami_id: tuple(dict.fromkeys((*one.of(ami_id), *other.of(ami_id))))
        for ami_id in {*one.by_ami, *other.by_ami}
    }
    return references.References(one.region, by_ami, {**one.unread, **other.unread}, one.aliases)


@needs("ec2:DescribeImages")
def owned_amis(ec2: Client) -> tuple[images.Ami, ...]:
    """Return every AMI of the account, ours or not, in any state, oldest first."""
    with calling(f"list the AMIs of {ec2.meta.region_name}"):
        found = items(
            ec2,
            "describe_images",
            "Images",
            Owners=["self"],
            IncludeDeprecated=True,
            IncludeDisabled=True,
            MaxResults=PAGE,
        )
        amis = [images.read(image, ec2.meta.region_name) for image in found]
    return tuple(sorted(amis, key=lambda ami: (ami.created_at, ami.ami_id)))


@needs("ec2:DescribeImportSnapshotTasks")
def importing(ec2: Client) -> frozenset[str]:
    """Return the digests of the images that an import works on."""
    with calling(f"list the imports of {ec2.meta.region_name}"):
        found = items(ec2, "describe_import_snapshot_tasks", "ImportSnapshotTasks")
        tags = [
            tagging.to_dict(task.get("Tags"))
            for task in found
            if (task.get("SnapshotTaskDetail") or {}).get("Status") not in imports.FAILED | {"completed"}
        ]
    return frozenset(one[tagging.DIGEST] for one in tags if tagging.DIGEST in one)


@needs("ssm:GetParametersByPath", "ssm:GetParameterHistory")
def channels(ssm: Client, prefix: str) -> dict[str, tuple[str, ...]]:
    """Return the AMIs that each pointer points and pointed to, the present one first, each once."""
    found = {}
    for pointer in parameters.pointers(ssm, prefix):
        values = [pointer.value, *(one.value for one in reversed(parameters.history(ssm, pointer.name)))]
        found[pointer.name] = tuple(dict.fromkeys(values))
    return found


@needs(
    "ec2:DescribeImageReferences",
    "ec2:DescribeImageAttribute",
    "ec2:DescribeSnapshotAttribute",
    "ec2:DescribeLockedSnapshots",
)
def one_by_one(
    ec2: Client, amis: Mapping[str, Collection[str]], loose: Collection[str] = ()
) -> references.References:
    """Return what can be asked about single AMIs and snapshots: EC2's own search, who may use them, locks.

    Parameters
    ----------
    ec2
        Where.
    amis
        AMIs, each with those of its snapshots that are this account's: with whom they are shared counts, too,
        and whether they are locked.
    loose
        Snapshots that no AMI holds.
    """
    found: dict[str, dict[references.Evidence, None]] = {}
    held = {name for names in amis.values() for name in names}
    locked = snapshots.locks(ec2)
    for resource_id, names in {**amis, **{name: [name] for name in loose}}.items():
        for name in locked.keys() & set(names):
            found.setdefault(resource_id, {})[references.Evidence("snapshot-lock", name, locked[name])] = None
    with calling(f"look who uses AMIs and snapshots of {ec2.meta.region_name}"):
        for read in (references.image_references, references.launch_permissions):
            for ami_id, one in read(ec2, list(amis)):
                found.setdefault(ami_id, {})[one] = None
        for snapshot_id, one in references.snapshot_permissions(ec2, sorted(held.union(loose))):
            if snapshot_id in loose:
                found.setdefault(snapshot_id, {})[one] = None
            for ami_id in (ami_id for ami_id, names in amis.items() if snapshot_id in names):
                found.setdefault(ami_id, {})[
                    references.Evidence(f"snapshot-{one.kind}", one.id, snapshot_id)
                ] = None
    return references.References(ec2.meta.region_name, {name: tuple(some) for name, some in found.items()})


@needs("ssm:GetParametersByPath", "ec2:DescribeInstances")
def used_now(place: Place, prefix: str, ami_id: str) -> list[str]:
    """Return the channels that name an AMI and the instances that run from it, as they are this moment.

    These are what promotions, rollbacks and smoke tests write, so two calls tell whether one has begun with
    the AMI. Everything else that may use it is read by `right_before`.
    """
    names = [one.name for one in parameters.pointers(place.clients.ssm, prefix) if one.value == ami_id]
    filters = [{"Name": "image-id", "Values": [ami_id]}]
    with calling(f"list the instances of {ami_id}"):
        found = items(place.ec2, "describe_instances", "Reservations", Filters=filters, MaxResults=PAGE)
        running = [
            one["InstanceId"]
            for reservation in found
            for one in reservation["Instances"]
            if one["State"]["Name"] != "terminated"
        ]
    return [f"parameter {name}" for name in names] + [f"instance {name}" for name in running]


@needs("ec2:DescribeImages")
def owner(ec2: Client, ami_id: str) -> str:
    """Return the account that owns an AMI which we may see; empty when there is none."""
    found = retiring.look(ec2, ami_id)
    return found.account if found else ""
