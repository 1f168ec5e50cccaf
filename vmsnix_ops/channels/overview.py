"""The AMI that each channel serves, and whether it is unchanged, proven and in use.

Each region is read once: its channels with their histories, the AMIs of vmsnix, and the instances. What
cannot be read is empty in the frame, never zero or "no", and the column ``problem`` has the reason.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops import display, errors, templates
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.aws import images, parameters, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.identity import NOT_ENABLED_CODES, read_account, region_not_enabled
from vmsnix_ops.aws.references import AMI_ID
from vmsnix_ops.aws.regions import ALL, ANY_REGION, check_regions, enabled_regions, home_region
from vmsnix_ops.aws.session import client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.channels.history import Note, count_instances, note_of
from vmsnix_ops.channels.verify import compare_ami
from vmsnix_ops.pages import PLAIN_ROWS, PageColumn, PageTable
from vmsnix_ops.progress import counted as number_of
from vmsnix_ops.publish.home import ONE_OF_MANY
from vmsnix_ops.records import history
from vmsnix_ops.records.recorded_amis import (
    ARCHITECTURES,
    expected_amis,
    newest_proofs,
    plain_rows,
    recorded_channels,
)
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.drift import Difference
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.parameters import ChannelParameter, ParameterVersion

T = TypeVar("T")

REGIONS_AT_ONCE, CALLS_AT_ONCE = 8, 8
COLUMNS = {
    "image": "short name of the image",
    "channel": "channel",
    "region": "AWS region",
    "ami_id": "AMI ID; empty if the channel has none",
    "name": "AMI name",
    "state": "state in AWS; deprecated once its date has passed; deleted if it no longer exists; not set if "
    "the recorded channel was deleted; invalid if its value is not an AMI; unknown if it could not be read",
    "created_at": "when the AMI was created, UTC",
    "age_days": "age of the AMI in days",
    "since": "when the channel was set to the AMI, UTC",
    "run_id": "run that set the channel; empty if another tool or a person did",
    "changed_by": "ARN that set the channel",
    "drifted": "whether the channel or its AMI differs from the records; empty if unknown",
    "drift": "fields that differ; not recorded if the tables do not have the AMI",
    "proven_at": "when the content of the AMI was last proven, UTC",
    "instances": "instances that run from it, in this account and region; empty if unknown",
    "older_instances": "instances that run from an older AMI of the image and architecture; empty if unknown",
    "problem": "what could not be read",
}
"""Columns of the frame, and their meaning."""
_KINDS = {
    **dict.fromkeys(("created_at", "since", "proven_at"), "datetime64[us, UTC]"),
    **dict.fromkeys(("instances", "older_instances"), "Int64"),
    "age_days": "Float64",
    "drifted": "boolean",
}


@check_arguments
def read(
    *,
    image: str = "",
    regions: Iterable[str] = (),
    settings: Settings | None = None,
    tables: Tables | None = None,
    session: boto3.Session | None = None,
) -> pd.DataFrame:
    """Return one row for each channel that was set, and one for each region that could not be read.

    Parameters
    ----------
    image
        Only the channels of this image.
    regions
        Regions to read; by default the default region, and all others with a channel in the tables.
        ``["all"]`` means every enabled region.
    settings, tables, session
        Override the settings, the tables and the AWS session.

    Returns
    -------
    pandas.DataFrame
        Columns as in `vmsnix_ops.channels.overview.COLUMNS`. ``attrs["regions"]`` has the regions,
        ``attrs["problem"]`` the reason if the tables could not be read.

    Raises
    ------
    vmsnix_ops.errors.RegionError
        There is no such region.
    vmsnix_ops.errors.AwsError
        The account of the credentials, or the enabled regions, could not be read.
    """
    import pandas as pd

    settings, session, given = settings or load(), session or default_session(), tuple(regions)
    if image:
        parameters.parameter_name(settings.channel_prefix, image, settings.channels[0])
    named = () if given == (ALL,) else check_regions(given)
    records = _ChannelRecords.read(tables or open_tables(settings))
    own = settings.region or session.region_name
    home = home_region(session, own, *named, *records.regions(), *(given and (ANY_REGION,)))
    account = read_account(session, dict.fromkeys([home, *named, *records.regions()]))
    records = records.of_account(account)
    if given == (ALL,):
        named = enabled_regions(client(session, "ec2", home))
    chosen = named or check_regions([home, *records.regions()])
    clients = [  # in one thread: sessions are not thread safe, clients are
        (client(session, "ec2", name, **ONE_OF_MANY), client(session, "ssm", name, **ONE_OF_MANY))
        for name in chosen
    ]
    readers = [_RegionReader(ec2, ssm, settings, records) for ec2, ssm in clients]
    with ThreadPoolExecutor(REGIONS_AT_ONCE, thread_name_prefix="channels") as pool:
        rows = [row for found in pool.map(lambda reader: reader.rows(image), readers) for row in found]
    order = [*settings.channels, *sorted({row["channel"] for row in rows})]
    rows.sort(key=lambda row: (not row["channel"], row["image"], order.index(row["channel"]), row["region"]))
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({**dict.fromkeys(COLUMNS, "str"), **_KINDS})
    frame.attrs |= {"image": image, "regions": list(chosen), "problem": records.problem}
    return frame


@dataclass(frozen=True, slots=True)
class _ChannelRecords:
    """What the tables contain."""

    # The newest promotion of each channel, by region and name of the parameter.
    channels: Mapping[tuple[str, str], dict[str, Any]]
    expected: Mapping[tuple[str, str], dict[str, Any]]  # the recorded state of each AMI, by region and AMI
    amis: Mapping[tuple[str, str], dict[str, Any]]  # the newest row of each AMI, also of a deregistered one
    proofs: Mapping[str, dict[str, Any]]  # the newest proof of each AMI
    problem: str = ""  # why the tables could not be read

    @classmethod
    def read(cls, tables: Tables) -> _ChannelRecords:
        def by_ami(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
            return {(row["region"], row["ami_id"]): row for row in rows}

        try:
            return cls(
                recorded_channels(tables),
                by_ami(expected_amis(tables)),
                by_ami(plain_rows(history.amis(tables))),
                {row["ami_id"]: row for row in plain_rows(newest_proofs(tables))},
            )
        except errors.RecordsError as error:
            return cls({}, {}, {}, {}, str(error))

    def of_account(self, account: str) -> _ChannelRecords:
        """Return them without the channels of other accounts."""
        own = {key: row for key, row in self.channels.items() if row.get("account", account) == account}
        return replace(self, channels=own)

    def regions(self) -> list[str]:
        """Return the regions with a channel."""
        return sorted({region for region, _ in self.channels})


class _RegionReader:
    """Reads the channels of one region."""

    def __init__(self, ec2: EC2Client, ssm: SSMClient, settings: Settings, records: _ChannelRecords) -> None:
        self._ec2, self._ssm, self._settings, self._records = ec2, ssm, settings, records
        self._name, self._prefix = ec2.meta.region_name, f"{settings.channel_prefix}/"
        self._now = datetime.now(UTC)
        self._problems = dict.fromkeys([records.problem] if records.problem else [])

    def rows(self, image: str) -> list[dict[str, Any]]:
        """Return one row for each channel, also for a recorded one that was deleted."""
        try:
            listed = parameters.list_parameters(self._ssm, f"{self._prefix}{image}".rstrip("/"))
        except errors.AwsError as error:
            closed = error.code in NOT_ENABLED_CODES
            problem = f"{self._name}: {region_not_enabled(self._name, error.why) if closed else error}"
            unknown = {"image": image, "region": self._name, "state": "unknown", "problem": problem}
            return [dict.fromkeys(set(COLUMNS) - _KINDS.keys(), "") | unknown]
        found = {one.name: one for one in listed if self._is_channel(one)}
        deleted = [
            name
            for (region, name), row in self._records.channels.items()
            if (region, row["ami_id"]) in self._records.expected  # a deregistered AMI needs no channel
            and region == self._name
            and name not in found
            and name.startswith(f"{self._prefix}{image or row.get('image')}/")
        ]
        self._read(list(found.values()))
        return [self._row(name, found.get(name)) for name in (*found, *deleted)]

    def _is_channel(self, one: ChannelParameter) -> bool:
        channel = one.name.removeprefix(self._prefix).partition("/")[2]
        return bool(channel) and (channel in self._settings.channels or bool(_ami_of(one)))

    def _attempt(self, call: Callable[[], T]) -> T | None:
        """Return the result of a call; ``None`` if it failed."""
        try:
            return call()
        except errors.AwsError as error:
            self._problems[f"{self._name}: {error}"] = None
            return None

    def _read(self, found: list[ChannelParameter]) -> None:
        """Read what the rows need: each list once for all channels."""
        ec2, names, current = self._ec2, [one.name for one in found], sorted({*map(_ami_of, found)} - {""})
        with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="read") as pool:
            read = pool.map(lambda one: self._attempt(lambda: parameters.read_history(self._ssm, one)), names)
            self._versions = {name: versions or [] for name, versions in zip(names, read, strict=True)}
            self._amis = self._attempt(lambda: self._find_amis(current)) if current else {}
            live = [ami for ami_id, ami in (self._amis or {}).items() if ami_id in current]
            owned = [snapshot_id for ami in live for snapshot_id in ami.snapshot_ids]
            self._snapshots = self._attempt(lambda: snapshots.find_snapshots(ec2, owned)) if owned else {}
            self._differences = dict(zip(current, pool.map(self._compare, current), strict=True))
        self._ages = self._read_ages()
        of_channels = {name.removeprefix(self._prefix).partition("/")[0] for name in names}
        related = [ami_id for ami_id, age in self._ages.items() if age[0] in of_channels]
        earlier = [one.value for some in self._versions.values() for one in some]
        counted = {*current, *related, *filter(AMI_ID.fullmatch, earlier)}
        self._counts = self._attempt(lambda: count_instances(ec2, counted))

    def _find_amis(self, current: Iterable[str]) -> dict[str, Ami]:
        """Return the AMIs that vmsnix published, and those of the channels."""
        found = {ami.ami_id: ami for ami in images.list_published_amis(self._ec2)}
        others = [ami_id for ami_id in current if ami_id not in found]
        return found | (images.find_amis(self._ec2, others) if others else {})

    def _compare(self, ami_id: str) -> list[Difference] | None:
        """Return the differences of an AMI from its record; ``None`` if they are unknown."""
        row = self._records.expected.get((self._name, ami_id))
        if row is None or self._amis is None or self._snapshots is None:
            return None
        return compare_ami(self._ec2, row, self._amis.get(ami_id), self._snapshots)

    def _read_ages(self) -> dict[str, tuple[str, str, datetime, str]]:
        """Return image, architecture, creation and name of each AMI; also of deregistered ones in the tables.

        AMIs of the same second are ordered by name, as in `images.age_key`.
        """
        ages = {
            ami_id: (
                row.get("image", ""),
                ARCHITECTURES.get(row.get("system", ""), ""),
                row["created_at"],
                row.get("name", ""),
            )
            for (region, ami_id), row in self._records.amis.items()
            if region == self._name and "created_at" in row
        }
        for ami in (self._amis or {}).values():
            if ami.created_at != images.UNKNOWN_TIME:
                image = ami.tags.get(tagging.IMAGE, "")
                ages[ami.ami_id] = (image, ami.architecture, ami.created_at, ami.name)
        return ages

    def _row(self, name: str, one: ChannelParameter | None) -> dict[str, Any]:
        image, _, channel = name.removeprefix(self._prefix).partition("/")
        ami_id, key = _ami_of(one), (self._name, _ami_of(one))
        promotion = self._records.channels.get((self._name, name), {})
        proof = self._records.proofs.get(ami_id, {})
        found, ami = self._differences.get(ami_id), (self._amis or {}).get(ami_id)
        fields = [each.field for each in found or () if each.field != "access"]
        unread = [f"{self._name}: {each.found}" for each in found or () if each.field == "access"]
        if not ami_id or promotion.get("ami_id", ami_id) != ami_id:
            fields.insert(0, "channel")
        if proof.get("verdict") == "differs":
            fields.append("content")
        unrecorded = not self._records.problem and key not in self._records.expected
        created = self._ages[ami_id][2] if ami_id in self._ages else None
        since, changed_by, note = _last_change(one, self._versions.get(name, []))
        run_id = note.run_id if isinstance(note, Note) else ""
        if not note and since and promotion.get("ami_id") == ami_id and promotion["promoted_at"] >= since:
            run_id = promotion["run_id"]  # Parameter Store has no description, but the tables have the run
        return {
            "image": image,
            "channel": channel,
            "region": self._name,
            "ami_id": ami_id,
            "name": ami.name if ami else self._records.amis.get(key, {}).get("name", ""),
            "state": self._state(one),
            "created_at": created,
            "age_days": round((self._now - created).total_seconds() / 86400, 1) if created else None,
            "since": since,
            "run_id": run_id,
            "changed_by": changed_by,
            "drifted": True if fields else None if found is None or unread else False,
            "drift": ", ".join(dict.fromkeys(fields)) or ("not recorded" if unrecorded else ""),
            "proven_at": proof.get("proved_at") if proof.get("verdict") == "proven" else None,
            "instances": self._counts[ami_id] if self._counts and ami_id else None,
            "older_instances": self._older(image, ami_id, name),
            "problem": " ".join(dict.fromkeys([*self._problems, *unread])),
        }

    def _state(self, one: ChannelParameter | None) -> str:
        if one is None:
            return "not set"
        if not _ami_of(one):
            return "invalid"
        if self._amis is None:
            return "unknown"
        ami = self._amis.get(one.value)
        return "deleted" if ami is None else "deprecated" if ami.deprecated else ami.state

    def _older(self, image: str, ami_id: str, name: str) -> int | None:
        """Return the number of instances of older AMIs.

        An AMI that neither AWS nor the tables have is older if the channel had it before.
        """
        own, values = self._ages.get(ami_id), [one.value for one in self._versions.get(name, ())]
        if own is None or self._counts is None or self._amis is None or self._records.problem:
            return None
        before = values[: values.index(ami_id)] if ami_id in values else []
        older = {one for one in before if one not in self._ages} | {
            one for one, age in self._ages.items() if age[:2] == (image, own[1]) and age[2:] < own[2:]
        }
        return sum(self._counts.get(one, 0) for one in older)


def _ami_of(one: ChannelParameter | None) -> str:
    """Return the AMI of a channel; empty if it has none, or is of a type that vmsnix does not write."""
    if one is None or (one.kind, one.data_type) != ("String", parameters.IMAGE_TYPE):
        return ""
    return one.value if AMI_ID.fullmatch(one.value) else ""


def _last_change(
    one: ChannelParameter | None, versions: list[ParameterVersion]
) -> tuple[datetime | None, str, Note | str]:
    """Return when, by whom and why a channel was set to its value; setting it again does not count."""
    same = [] if one is None else list(takewhile(lambda each: each.value == one.value, reversed(versions)))
    if not same:
        return (one.modified_at if one else None), "", ""
    return same[-1].modified_at, same[-1].modified_by, note_of(versions, len(versions) - len(same))


def problems_of(frame: pd.DataFrame) -> list[str]:
    """Return what could not be read, each problem once."""
    return [text for text in dict.fromkeys([frame.attrs.get("problem", ""), *frame["problem"]]) if text]


def error_of(frame: pd.DataFrame) -> errors.PartialError | None:
    """Return the error of a frame in which something is unknown; ``None`` if all was read."""
    if not (problems := problems_of(frame)):
        return None
    of_tables = frame.attrs.get("problem", "")  # has its own fix
    refused = any(text not in ("", of_tables) for text in frame["problem"])
    more = f" {number_of(len(problems) - 1, 'more reason')} in the column problem." if problems[1:] else ""
    return errors.PartialError(
        "Some channels could not be read completely.",
        why=problems[0] + more,
        fix="Allow the missing actions (vmsnix iam-policy auditor), or leave these regions out."
        if refused
        else "",
    )


def texts(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Return the rows for people, in the words of the terminal, the page and the console."""
    return [_row_texts(row) for row in frame.to_dict("records")]


def _row_texts(row: Mapping[Any, Any]) -> dict[str, str]:
    unknown, drifted = "unknown" if row["ami_id"] else "", row["drifted"]
    empty = {name for name, value in row.items() if display.missing(value)}
    return {
        **{name: row[name] for name in ("image", "channel", "region", "ami_id", "name", "state")},
        "age": "" if "age_days" in empty else number_of(int(row["age_days"]), "day"),
        "since": "" if "since" in empty else display.moment(row["since"]),
        "set_by": row["run_id"] or row["changed_by"].rpartition(":")[2],
        "drift": row["drift"] or (unknown if "drifted" in empty else "none"),
        "proven": display.moment(row["proven_at"])
        if "proven_at" not in empty
        else unknown
        if row["problem"]
        else "never",
        "instances": unknown if "instances" in empty else f"{row['instances']:,}",
        "older_instances": unknown if "older_instances" in empty else f"{row['older_instances']:,}",
        "problem": row["problem"],
        "level": "mixed" if "drifted" in empty else "bad" if drifted else "good",
    }


def show(frame: pd.DataFrame) -> display.DisplayTable:
    """Return a frame of `read` as a table for display. It has a state and a problem only if there is one."""
    hidden = {"level"} | ({"state"} if set(frame["state"]) <= {"available"} else set())
    hidden |= set() if any(frame["problem"]) else {"problem"}
    titles = {"ami_id": "AMI", "since": "since (UTC)", "set_by": "set by", "older_instances": "older"}
    rows = texts(frame)
    names = [name for name in (rows[0] if rows else ()) if name not in hidden]
    where = ", ".join(frame.attrs.get("regions", ()))
    of_image = f" of {image!r}" if (image := frame.attrs.get("image")) else ""
    return display.make_table(
        [titles.get(name, name) for name in names],
        [[row[name] for name in names] for row in rows],
        right=("age", "instances", "older"),
        nothing=f"No channel{of_image} has a value in {where}. To set one, use vmsnix promote.",
    )


_ALARM = {"0": "", "unknown": "soft", "": "mixed"}
_PAGE = [
    PageColumn("image", width=8, below="channel", filter=True, group=True),
    PageColumn("channel", hidden=True, filter=True, group=True),
    PageColumn("region", width=7.6, filter=True, group=True),
    PageColumn("ami_id", "AMI", kind="id", width=12.3, below="name"),
    PageColumn("name", hidden=True),
    PageColumn("state", width=6.2, below="age", filter=True, tones={"available": "", "": "bad"}),
    PageColumn("age_days", "age (days)", kind="number", hidden=True),
    PageColumn("since", "set (UTC), by", width=8.6, below="set_by"),
    PageColumn("set_by", hidden=True),
    PageColumn(
        *("drift", "drift, proven"),
        below="proven",
        filter=True,
        tones={"none": "good", "unknown": "mixed", "not recorded": "mixed", "": "bad"},
    ),
    PageColumn("proven", "proven (UTC)", hidden=True),
    PageColumn("instances", "instances, older", width=8.2, kind="number", below="older_instances"),
    PageColumn("older_instances", "older", hidden=True, tones=_ALARM),
    *(PageColumn(name, hidden=True) for name in ("problem", "changed_by", "age")),
]


def page(frame: pd.DataFrame) -> str:
    """Return a frame of `read` as one HTML page that loads nothing."""
    import pandas as pd

    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    shown = pd.DataFrame(texts(frame), columns=[one.name for one in _PAGE], index=frame.index)
    shown = shown.assign(age_days=frame["age_days"], changed_by=frame["changed_by"])
    for name in ("instances", "older_instances"):  # numbers are sorted as numbers
        shown[name] = frame[name].astype("object").where(frame[name].notna(), shown[name])
    return templates.page(
        "channels/page.html",
        table=PageTable(
            "channels", "Channels", _PAGE, shown, "image", nothing="No channel has a value there."
        ),
        plain_rows=PLAIN_ROWS,
        when=when,
        regions=frame.attrs.get("regions", sorted(set(frame["region"]))),
        problems=problems_of(frame),
    )
