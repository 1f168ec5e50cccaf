"""The history of a channel: its values, who set them, and the state and instances of each AMI."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, get_args

from vmsnix_ops import display, errors
from vmsnix_ops.aws import images, instances, parameters
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.parameters import ParameterVersion

BRIEF = 5
"""Most values of a region as text on a terminal and in a log; a notebook and the report show all."""

COLUMNS = {
    "region": "AWS region",
    "since": "when the channel was set to the AMI, UTC",
    "until": "when the channel was set to another AMI, UTC; empty for the current AMI",
    "ami_id": "AMI ID",
    "name": "AMI name",
    "state": "state in AWS; deprecated once its date has passed; deleted if it no longer exists",
    "instances": "instances that run from it now, in this account and region; empty if not allowed",
    "last_launched": "last launch of an instance from it, UTC; AWS reports it a day later",
    "changed_by": "ARN that set the channel",
    "note": "why it was set and by which run, or the description that others wrote",
}
"""Columns of `frame`, and their meaning."""

VALUES_IN_A_FILTER = 200  # AWS
How = Literal["promote", "roll back", "restore"]


@dataclass(frozen=True, slots=True)
class Note:
    """Why a run set a channel. Parameter Store keeps the note as the parameter's description, as JSON."""

    how: How  # the kind of change; "restore" restores the value before a promotion or rollback that failed
    name: str  # name of the AMI; with "restore", of the AMI that the run removed from the channel
    run_id: str
    before: str = ""  # with "roll back": name or ID of the AMI before the rollback

    @classmethod
    def read(cls, text: str) -> Note | None:
        """Return the note in a parameter's description; ``None`` for any other text."""
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
        """Return the note as text for the parameter's description."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        if self.how == "roll back":
            return f"{self.name}, rolled back from {self.before} by the run {self.run_id}"
        if self.how == "restore":
            return f"restored by the run {self.run_id}, because {self.name} cannot be used"
        return f"{self.name}, promoted by the run {self.run_id}"


@dataclass(frozen=True, slots=True)
class ChannelEntry:
    """One value of a channel; the fields are `COLUMNS`."""

    region: str
    version: int  # in Parameter Store
    ami_id: str
    since: datetime
    until: datetime | None
    changed_by: str
    note: Note | str  # why the value was set; text if another tool or a person wrote it
    name: str
    digest: str  # SHA-256 of the AMI's image; empty if the AMI is deleted
    state: str
    usable: bool  # whether the AMI can be launched and is not deprecated
    instances: int | None
    last_launched: datetime | None


@needs("ec2:DescribeInstances")
def count_instances(ec2: EC2Client, ami_ids: Iterable[str]) -> dict[str, int]:
    """Return the number of instances of each AMI; stopped instances count, terminated ones do not."""
    counted = dict.fromkeys(ami_ids, 0)
    if not counted:
        return counted
    chosen = {"image-id": list(counted)} if len(counted) <= VALUES_IN_A_FILTER else {}
    with calling("count the instances of each AMI"):
        for one in instances.list_instances(ec2, {**chosen, "instance-state-name": instances.ALIVE}):
            if one["ImageId"] in counted:
                counted[one["ImageId"]] += 1
    return counted


def note_of(versions: Sequence[ParameterVersion], number: int) -> Note | str:
    """Return why a value was set: a note, or the description that others wrote.

    A value that was set without a description has the description of the value before, which is ignored.
    """
    version, before = versions[number], versions[number - 1] if number else None
    if before and version.description == before.description and version.value != before.value:
        return ""
    return Note.read(version.description) or version.description


def entries(ec2: EC2Client, ssm: SSMClient, parameter: str) -> tuple[ChannelEntry, ...]:
    """Return the values in a parameter's history, oldest first; empty if there is no such parameter."""
    versions = parameters.read_history(ssm, parameter)
    ids = [version.value for version in versions if version.value.startswith("ami-")]
    known = images.find_amis(ec2, ids) if ids else {}
    try:
        counted = count_instances(ec2, dict.fromkeys(ids))
    except errors.AccessDeniedError:
        counted = {}  # the counts are shown only; a channel can be set without them
    now, found = datetime.now(UTC), []
    for number, version in enumerate(versions):
        ami = known.get(version.value)
        deprecated = ami is not None and ami.deprecated_at is not None and ami.deprecated_at <= now
        state = "deleted" if ami is None else "deprecated" if deprecated else ami.state
        found.append(
            ChannelEntry(
                region=ec2.meta.region_name,
                version=version.version,
                ami_id=version.value,
                since=version.modified_at,
                until=versions[number + 1].modified_at if number + 1 < len(versions) else None,
                changed_by=version.modified_by,
                note=note_of(versions, number),
                name=ami.name if ami else "",
                digest=ami.digest if ami else "",
                state=state,
                usable=state == "available",
                instances=counted.get(version.value),
                last_launched=ami.launched_at if ami else None,
            )
        )
    return tuple(found)


def frame(regions: Iterable[Iterable[ChannelEntry]], unread: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return entries as a frame with the columns `COLUMNS`, the newest of each region first.

    `unread` contains the reason for each region that could not be read; it has a row in the frame, too.
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


def show(table: pd.DataFrame) -> display.DisplayTable:
    """Return a frame of entries as a table for display."""
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
    whole = display.make_table(columns, rows, right=("instances",), nothing="The channel has never been set.")
    numbers = table.groupby("region", sort=False).cumcount()
    newest = [row for row, number in zip(whole.rows, numbers, strict=True) if number < BRIEF]
    if not (left := len(rows) - len(newest)):
        return whole
    text = "1 earlier value is" if left == 1 else f"{left:,} earlier values are"
    return replace(whole, brief=f"{replace(whole, rows=tuple(newest))}\n{text} in the report.")
