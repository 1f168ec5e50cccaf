"""Look at one region for a retirement: its AMIs, its snapshots, who uses what, and where channels point."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import images, imports, parameters, references, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import items
from vmsnix_ops.aws.references import AMI_ID
from vmsnix_ops.aws.session import Client, calling

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    import boto3

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.references import References
    from vmsnix_ops.aws.snapshots import Snapshot


# What a retirement decides by, and what it decides: rules, what was seen of a region, a decision.

Action = Literal["keep", "retire", "delete", "restore"]
LONGEST_DAYS = 36500


@dataclass(frozen=True, slots=True)
class Rules:
    """What may go.

    Attributes
    ----------
    keep_last
        How many AMIs stay of each image and architecture, the newest; and of each channel, the last that it
        pointed to.
    min_age_days
        No AMI goes that is younger.
    launched_days
        No AMI goes from which an instance was launched since; AWS tells that a day late.
    grace_days
        How long a retired AMI can be restored, before a later run removes it.
    orphan_days
        From what age on a snapshot of ours that no AMI holds is an orphan; a publish that died may go on with
        a younger one.
    max_count
        How many AMIs and orphans may go in one run, over all regions: the oldest.
    allow_shared
        Whether AMIs go that other accounts may launch. Whether they do cannot be seen from here.
    orphans
        Whether orphans go at all.
    images, amis
        Only AMIs of these images, only these AMIs; empty for all.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A number or an id cannot be right.
    """

    keep_last: int = 3
    min_age_days: float = 30
    launched_days: float = 30
    grace_days: float = 14
    orphan_days: float = 7
    max_count: int = 25
    allow_shared: bool = False
    orphans: bool = True
    images: tuple[str, ...] = ()
    amis: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("keep_last", "min_age_days", "launched_days", "grace_days", "orphan_days", "max_count"):
            value = getattr(self, name)
            if not 0 <= value <= LONGEST_DAYS:  # NaN is refused, too
                raise errors.ParameterError(
                    f"{name}={value} cannot be right.", cure=f"Give 0 to {LONGEST_DAYS}."
                )
        for ami_id in self.amis:
            if not AMI_ID.fullmatch(ami_id):
                raise errors.ParameterError(
                    f"{ami_id!r} is not the id of an AMI.",
                    why="One is ami- and 17 or 8 hexadecimal digits.",
                    cure="Give ids as amis; names of images go into images.",
                )


@dataclass(frozen=True, slots=True)
class View:
    """What was seen of one region.

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
        The AMIs that each pointer points and pointed to, the present one first.
    importing
        Digests of images that an import works on.
    asked
        The AMIs and snapshots about which AWS was asked one by one who uses and who may use them; ``None``
        for all.
    """

    region: str
    account: str
    amis: tuple[Ami, ...]
    snapshots: Mapping[str, Snapshot]
    references: References
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    importing: frozenset[str] = frozenset()
    asked: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one AMI or snapshot, and why.

    Attributes
    ----------
    kind
        ``"ami"`` or ``"snapshot"`` (an orphan).
    resource_id, name, image, digest, region
        Which one.
    action
        ``"keep"``, ``"retire"`` (can be restored), ``"delete"`` (cannot) or ``"restore"``.
    reasons
        Why; of an AMI that stays, everything that keeps it.
    snapshots
        What goes with an AMI.
    kept_snapshots
        Which of its snapshots stay, and why.
    created_at, size_gib
        Of the AMI's volumes, or of the snapshot.
    stored_bytes
        What is billed: what its snapshots hold, by AWS's word; ``None`` where AWS does not say.
    facts
        State and references from which this follows; `fingerprint` sums them up.
    """

    kind: Literal["ami", "snapshot"]
    resource_id: str
    name: str
    image: str
    digest: str
    region: str
    action: Action
    reasons: tuple[str, ...]
    created_at: datetime
    size_gib: int
    stored_bytes: int | None = None
    snapshots: tuple[str, ...] = ()
    kept_snapshots: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def of_ami(cls, view: View, ami: Ami, action: Action, reasons: Iterable[str]) -> Decision:
        """Return what becomes of an AMI; `snapshots` and `kept_snapshots` are for whoever knows them."""
        return cls(
            "ami",
            ami.ami_id,
            ami.name,
            ami.tags.get(tagging.IMAGE, ""),
            ami.digest,
            view.region,
            action,
            tuple(reasons),
            ami.created_at,
            ami.size_gib,
            _stored(view, ami),
            facts=ami_facts(ami, view.references),
        )

    @classmethod
    def of_snapshot(cls, view: View, snapshot: Snapshot, action: Action, reasons: Iterable[str]) -> Decision:
        """Return what becomes of a snapshot that no AMI holds."""
        return cls(
            "snapshot",
            snapshot.snapshot_id,
            snapshot.tags.get(tagging.NAME, ""),
            snapshot.tags.get(tagging.IMAGE, ""),
            snapshot.tags.get(tagging.DIGEST, ""),
            view.region,
            action,
            tuple(reasons),
            snapshot.created_at,
            snapshot.size_gib,
            snapshot.stored_bytes,
            facts=snapshot_facts(snapshot, view.references, view.importing),
        )

    @property
    def goes(self) -> bool:
        """Whether anything is to be done."""
        return self.action != "keep"

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with what is to be done, its state, and what uses it."""
        whole = json.dumps(
            [self.kind, self.resource_id, self.region, self.action, self.snapshots, self.facts]
        )
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def changes(self, now: Decision | None) -> tuple[str, ...]:
        """Return what is different now, in words; empty when this still holds."""
        if now is None:
            return ("it is gone",)
        if self.fingerprint == now.fingerprint:
            return ()
        before, after = dict(self.facts), dict(now.facts)
        found = [
            f"{name}: {before.get(name, '') or 'nothing'} before, {after.get(name, '') or 'nothing'} now"
            for name in dict.fromkeys((*before, *after))
            if before.get(name, "") != after.get(name, "")
        ]
        if self.action != now.action:
            found.append(f"it would {now.action} it now: {'; '.join(now.reasons)}")
        if self.snapshots != now.snapshots:
            found.append(f"snapshots: {', '.join(self.snapshots)} before, {', '.join(now.snapshots)} now")
        return tuple(found)


def ami_facts(ami: Ami, references: References) -> tuple[tuple[str, str], ...]:
    """Return state and references of an AMI as texts that can be compared."""
    return (
        ("state", ami.state),
        ("name", ami.name),
        ("snapshots", " ".join(ami.snapshot_ids)),
        ("public", str(ami.public)),
        ("deprecated", str(ami.deprecated_at or "")),
        ("protection", ami.protection),
        ("last launch", str(ami.launched_at or "")),
        ("tags", json.dumps(dict(sorted(ami.tags.items())))),
        ("references", _told(references, ami.ami_id)),
    )


def snapshot_facts(
    snapshot: Snapshot, references: References, importing: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Return state and references of a snapshot as texts that can be compared."""
    busy = snapshot.tags.get(tagging.DIGEST, "") in importing
    return (
        ("state", snapshot.state),
        ("tags", json.dumps(dict(sorted(snapshot.tags.items())))),
        ("references", _told(references, snapshot.snapshot_id)),
        ("import", "of its image under way" if busy else ""),
    )


def _told(references: References, resource_id: str) -> str:
    return "; ".join(sorted(str(one) for one in references.of(resource_id) if one.kind != "launched"))


def _stored(view: View, ami: Ami) -> int | None:
    """Return what the snapshots of an AMI hold; ``None`` when AWS does not say it of all of them."""
    known = [view.snapshots.get(snapshot_id) for snapshot_id in dict.fromkeys(ami.snapshot_ids)]
    sizes = [one.stored_bytes if one else None for one in known]
    return None if None in sizes else sum(size for size in sizes if size is not None)


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
    """Return what there is in a region, with the references that cost the same calls for any number of AMIs.

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
    """Return all references to a few AMIs and snapshots as it is this moment; see `one_by_one`.

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
    found: dict[str, dict[references.Reference, None]] = {}
    held = {name for names in amis.values() for name in names}
    locked = snapshots.locks(ec2)
    for resource_id, names in {**amis, **{name: [name] for name in loose}}.items():
        for name in locked.keys() & set(names):
            lock = references.Reference("snapshot-lock", name, type=locked[name])
            found.setdefault(resource_id, {})[lock] = None
    with calling(f"look who uses AMIs and snapshots of {ec2.meta.region_name}"):
        for read in (references.image_references, references.launch_permissions):
            for ami_id, one in read(ec2, list(amis)):
                found.setdefault(ami_id, {})[one] = None
        for snapshot_id, one in references.snapshot_permissions(ec2, sorted(held.union(loose))):
            if snapshot_id in loose:
                found.setdefault(snapshot_id, {})[one] = None
            for ami_id in (ami_id for ami_id, names in amis.items() if snapshot_id in names):
                through = (references.Through("snapshot", snapshot_id),)
                shared = references.Reference("snapshot-shared-with", one.id, through=through, type=one.type)
                found.setdefault(ami_id, {})[shared] = None
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
