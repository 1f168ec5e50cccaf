"""What a channel pointed to, since when, who changed it, what became of each AMI, and what runs from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, get_args

from vmsnix_ops import display, errors
from vmsnix_ops.aws import images, parameters
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

COLUMNS = {
    "region": "AWS region",
    "since": "when the channel was set to the AMI, UTC",
    "until": "when the channel was set to another AMI, UTC; empty for the current AMI",
    "ami_id": "AMI ID",
    "name": "AMI name",
    "state": "state in AWS; deprecated once its date has passed; gone if it no longer exists",
    "instances": "instances that run from it now, in this account and region; empty if not allowed",
    "last_launched": "last launch of an instance from it, UTC; AWS reports it a day later",
    "changed_by": "ARN that set the channel",
    "note": "why it was set and by which run, or the description that others wrote",
}
"""Columns of `frame`, and their meaning."""

How = Literal["promote", "roll back", "take back"]


@dataclass(frozen=True, slots=True)
class Note:
    """Why a run set a channel to an AMI. Parameter Store keeps it beside the value, as JSON.

    Attributes
    ----------
    how
        ``"take back"``: the run gave the channel its earlier value again, because it could not be kept.
    name
        Name of the AMI: of a value that was taken back, the one that was not kept.
    run_id
        The run.
    before
        With ``"roll back"``: name or id of the AMI that the channel had until then.
    """

    how: How
    name: str
    run_id: str
    before: str = ""

    @classmethod
    def read(cls, text: str) -> Note | None:
        """Return the note that a parameter's description holds; ``None`` for any other text."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or set(found) != {"how", "name", "run_id", "before"}:
            return None
        if found["how"] not in get_args(How) or not all(isinstance(one, str) for one in found.values()):
            return None
        return cls(**found)

    def text(self) -> str:
        """Return it as the parameter's description."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        if self.how == "roll back":
            return f"{self.name}, rolled back from {self.before} by the run {self.run_id}"
        if self.how == "take back":
            return f"set back by the run {self.run_id}: {self.name} could not be kept"
        return f"{self.name}, promoted by the run {self.run_id}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of a channel; the fields are `COLUMNS`.

    Attributes
    ----------
    version
        Its number in Parameter Store.
    note
        Why it was set; text where somebody else wrote it.
    digest
        Of the AMI's image; empty when it is gone.
    usable
        Whether the AMI can be launched and is not deprecated.
    """

    region: str
    version: int
    ami_id: str
    since: datetime
    until: datetime | None
    changed_by: str
    note: Note | str
    name: str
    digest: str
    state: str
    usable: bool
    instances: int | None
    last_launched: datetime | None


@needs("ec2:DescribeInstances")
def running(ec2: EC2Client, ami_ids: Iterable[str]) -> dict[str, int]:
    """Return how many instances run from each of these AMIs, those that just start or stop included."""
    counted = dict.fromkeys(ami_ids, 0)
    if not counted:
        return counted
    with calling("count the instances of each AMI"):
        pages = ec2.get_paginator("describe_instances").paginate(
            Filters=[
                {"Name": "image-id", "Values": list(counted)},
                {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
            ]
        )
        for page in pages:
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    counted[instance["ImageId"]] += 1
    return counted


def entries(ec2: EC2Client, ssm: SSMClient, pointer: str) -> tuple[Entry, ...]:
    """Return every value that AWS still knows of a pointer, the oldest first; empty when there is none."""
    versions = parameters.read_history(ssm, pointer)
    ids = [version.value for version in versions if version.value.startswith("ami-")]
    known = images.find(ec2, ids) if ids else {}
    try:
        counted = running(ec2, dict.fromkeys(ids))
    except errors.AccessDeniedError:
        counted = {}  # nice to know, and no reason not to point a channel elsewhere
    now, found = datetime.now(UTC), []
    for number, version in enumerate(versions):
        ami = known.get(version.value)
        deprecated = ami is not None and ami.deprecated_at is not None and ami.deprecated_at <= now
        state = "gone" if ami is None else "deprecated" if deprecated else ami.state
        found.append(
            Entry(
                region=ec2.meta.region_name,
                version=version.version,
                ami_id=version.value,
                since=version.modified_at,
                until=versions[number + 1].modified_at if number + 1 < len(versions) else None,
                changed_by=version.modified_by,
                note=Note.read(version.description) or version.description,
                name=ami.name if ami else "",
                digest=ami.digest if ami else "",
                state=state,
                usable=state == "available",
                instances=counted.get(version.value),
                last_launched=ami.launched_at if ami else None,
            )
        )
    return tuple(found)


def frame(regions: Iterable[Iterable[Entry]], unread: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return entries as a frame with the columns `COLUMNS`, the newest of each region first.

    Parameters
    ----------
    regions
        What is known of each region.
    unread
        Regions of which nothing is known, and why.
    """
    import pandas as pd

    rows = [
        {name: getattr(entry, name) for name in COLUMNS} | {"note": str(entry.note)}
        for known in regions
        for entry in reversed(tuple(known))
    ]
    blank = dict.fromkeys(("ami_id", "name", "changed_by"), "")
    for region, why in (unread or {}).items():
        rows.append(blank | {"region": region, "state": "unknown", "note": why})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for name in ("since", "until", "last_launched"):
        table[name] = pd.to_datetime(table[name], utc=True)
    return table.astype({"instances": pd.Int64Dtype()})


def show(table: pd.DataFrame) -> display.Shown:
    """Return that frame for people."""
    columns = ("region", "since (UTC)", "until", "AMI", "name", "state", "instances", "changed by", "note")
    rows = [
        [
            row["region"],
            display.moment(row["since"]),
            "now" if row["ami_id"] and display.missing(row["until"]) else display.moment(row["until"]),
            row["ami_id"],
            row["name"],
            row["state"],
            "unknown" if display.missing(row["instances"]) else row["instances"],
            row["changed_by"].rpartition(":")[2],
            row["note"],
        ]
        for row in table.to_dict("records")
    ]
    return display.shown(columns, rows, right=("instances",), nothing="The channel has never been set.")
