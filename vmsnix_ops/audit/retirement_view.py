"""Look at one region for a retirement: its AMIs, its snapshots, who uses what, and where channels point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops.audit import retirement_rules as rules_of
from vmsnix_ops.audit.retirement_rules import Rules, Snapshot, View
from vmsnix_ops.aws import images, imports, parameters, retiring, sharing
from vmsnix_ops.aws import references as evidence
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.paging import items
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import Client, calling

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import boto3

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """One account and region with its clients, which one thread makes and another uses."""

    region: str
    account: str
    clients: evidence.Clients

    @classmethod
    def of(cls, session: boto3.Session, region: str, account: str) -> Place:
        """Return the clients of a region."""
        return cls(region, account, evidence.Clients.of(session, region))

    @property
    def ec2(self) -> Client:
        """The region's EC2."""
        return self.clients.ec2


def look(place: Place, rules: Rules, now: datetime, *, prefix: str) -> View:
    """Return what there is in a region, with evidence for every AMI that might go.

    Parameters
    ----------
    place
        Where.
    rules, now
        What might go: only such AMIs and orphans are asked about one by one, since that costs calls.
    prefix
        First part of the names of the channels' pointers.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        AMIs, snapshots, imports or pointers could not be read. What uses the AMIs may be unreadable: that
        stands in the view, and keeps them.
    """
    view = View(
        region=place.region,
        account=place.account,
        amis=owned_amis(place.ec2),
        snapshots=owned_snapshots(place.ec2),
        references=evidence.References(place.region, {}),
        channels=channels(place.clients.ssm, prefix),
        importing=importing(place.ec2),
    )
    asked = rules_of.candidates(view, rules, now)
    view = replace(view, references=evidence.gather(place.clients, asked, launched=False))
    loose = rules_of.orphans(view) if rules.orphans and not rules.amis else ()
    shared = {one.snapshot_id: sharing.of_snapshot(place.ec2, one.snapshot_id).names() for one in loose}
    return replace(view, shared=shared)


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


@needs("ec2:DescribeSnapshots")
def owned_snapshots(ec2: Client) -> dict[str, Snapshot]:
    """Return every snapshot of the account, in any state."""
    with calling(f"list the snapshots of {ec2.meta.region_name}"):
        found = items(ec2, "describe_snapshots", "Snapshots", OwnerIds=["self"], MaxResults=PAGE)
        return {one.snapshot_id: one for one in map(_snapshot, found)}


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


@needs("ec2:DescribeSnapshots")
def look_at_snapshot(ec2: Client, snapshot_id: str) -> Snapshot | None:
    """Return one snapshot as it is now; ``None`` when it is gone."""
    with calling(f"look at the snapshot {snapshot_id}"):
        answer = ec2.describe_snapshots(Filters=[{"Name": "snapshot-id", "Values": [snapshot_id]}])
    return _snapshot(answer["Snapshots"][0]) if answer["Snapshots"] else None


def _snapshot(one: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        str(one["SnapshotId"]),
        str(one["State"]),
        one["StartTime"],
        int(one["VolumeSize"]),
        tagging.to_dict(one.get("Tags")),
    )


@needs("ec2:DescribeImageReferences", "ec2:DescribeImageAttribute")
def quick_evidence(ec2: Client, region: str, ami_id: str) -> evidence.References:
    """Return what can be asked about one AMI: what names it in EC2's own search, and its permissions."""
    with calling(f"look once more who uses {ami_id}"):
        pairs = [
            *evidence.image_references(ec2, [ami_id]),
            *evidence.launch_permissions(ec2, [ami_id]),
        ]
    found = sorted({one for _, one in pairs}, key=lambda one: (one.kind in evidence.HINTS, one.kind, one.id))
    return evidence.References(region, {ami_id: tuple(found)})


@needs("ec2:DescribeImages")
def owner(ec2: Client, ami_id: str) -> str:
    """Return the account that owns an AMI which we may see; empty when there is none."""
    found = retiring.look(ec2, ami_id)
    return found.account if found else ""
