"""Look at one region for a retirement: its AMIs, its snapshots, who uses what, and where channels point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.audit import retirement_rules as rules_of
from vmsnix_ops.audit.retirement_values import Rules, View
from vmsnix_ops.aws import images, imports, parameters, retiring, sharing, snapshots
from vmsnix_ops.aws import references as evidence
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.paging import items
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import Client, calling

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    import boto3

PAGE = 1000
ASKED_AT_ONCE = 50  # AMIs about which is asked before looking how many of them go


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
        What might go: only such AMIs and orphans are asked about one by one, since that costs calls, and of
        the AMIs only the oldest, until as many are found as may go in one run.
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
        snapshots=snapshots.owned(place.ec2),
        references=evidence.gather(place.clients),
        channels=channels(place.clients.ssm, prefix),
        importing=importing(place.ec2),
    )
    view = _asked(place, view, rules, now)
    loose = rules_of.orphans(view) if rules.orphans and not rules.amis else ()
    shared = {one.snapshot_id: sharing.of_snapshot(place.ec2, one.snapshot_id).names() for one in loose}
    return replace(view, shared=shared)


def _asked(place: Place, view: View, rules: Rules, now: datetime) -> View:
    """Return the view with evidence that only calls about single AMIs give."""
    left = list(rules_of.candidates(view, rules, now))
    asked: set[str] = set()
    while left and not view.references.unread:
        if len(asked.intersection(rules_of.candidates(view, rules, now))) >= rules.max_count:
            break  # the newer ones do not get a turn in this run
        chunk, left = left[:ASKED_AT_ONCE], left[ASKED_AT_ONCE:]
        asked.update(chunk)
        try:
            more = one_by_one(place.ec2, place.region, chunk)
        except errors.AwsError as error:
            more = evidence.References(place.region, {}, {"references and permissions of AMIs": error})
        view = replace(view, references=_merged(view.references, more))
    return replace(view, asked=frozenset(asked))


def _merged(one: evidence.References, other: evidence.References) -> evidence.References:
    by_ami = {
        ami_id: tuple(dict.fromkeys((*one.of(ami_id), *other.of(ami_id))))
        for ami_id in {*one.by_ami, *other.by_ami}
    }
    return evidence.References(one.region, by_ami, {**one.unread, **other.unread}, one.aliases)


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


@needs("ec2:DescribeImageReferences", "ec2:DescribeImageAttribute")
def one_by_one(ec2: Client, region: str, amis: Collection[str]) -> evidence.References:
    """Return what can be asked about single AMIs: what names them in EC2's own search, and permissions."""
    by_ami: dict[str, tuple[evidence.Evidence, ...]] = {}
    with calling(f"look who uses AMIs of {region}"):
        for read in (evidence.image_references, evidence.launch_permissions):
            for ami_id, one in read(ec2, amis):
                by_ami[ami_id] = (*by_ami.get(ami_id, ()), one)
    return evidence.References(region, by_ami)


@needs("ec2:DescribeImages")
def owner(ec2: Client, ami_id: str) -> str:
    """Return the account that owns an AMI which we may see; empty when there is none."""
    found = retiring.look(ec2, ami_id)
    return found.account if found else ""
