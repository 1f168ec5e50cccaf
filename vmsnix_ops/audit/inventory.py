"""Every AMI, snapshot, import and leftover of any number of accounts, in one frame, with what uses each.

`scan` reads all regions of all accounts at once. What cannot be read (a region that is not enabled, an
account that refuses us, one missing permission) does not end it: it is kept in `Inventory.unread`, becomes a
finding, and makes the use of what stands there unknown.
"""

from __future__ import annotations

import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.audit import region as reading
from vmsnix_ops.audit.region import RegionContext
from vmsnix_ops.audit.retirement.decisions import RetirementRules, Verdict, decide
from vmsnix_ops.aws import buckets, references, snapshots
from vmsnix_ops.aws import regions as where
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.accounts import open_accounts as sessions_of
from vmsnix_ops.aws.buckets import errors_of
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.images import UNKNOWN_TIME
from vmsnix_ops.aws.paging import TimeLimit, read_pages, with_time_limit
from vmsnix_ops.aws.references import Reference, References
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.progress import current
from vmsnix_ops.records import schemas
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    import boto3
    import pandas as pd
    import pyarrow as pa
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import (
        FilterTypeDef,
    )

    from vmsnix_ops.audit.region import RegionState
    from vmsnix_ops.aws.accounts import MemberAccount
    from vmsnix_ops.aws.buckets import Leftover
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.imports import ImportTask
    from vmsnix_ops.aws.snapshots import Snapshot
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.settings import Settings


# What a scan hands on: what was read, what could not be, and the inventory of it all.


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that could not be read.

    Attributes
    ----------
    account, region
        Where; the region is empty for a whole account.
    source
        What.
    error
        Why, and what to do.
    bucket
        The bucket that could not be read; empty where something else could not. Nothing but what it holds is
        unknown then.
    """

    account: str
    region: str
    source: str
    error: errors.AwsError
    bucket: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """Something that names an AMI which this account does not own.

    Attributes
    ----------
    account, region, ami_id
        Where and what it names; what stands for no AMI at all is kept as it is, such as the
        ``resolve:ssm:...`` of a parameter that is gone.
    reference
        What names it.
    owner
        Whose AMI that is; empty when there is no such AMI, or none that this account may see.
    unshared
        The scanned account that owns it and does not let this account launch it; empty where there is none.
    """

    account: str
    region: str
    ami_id: str
    reference: Reference
    owner: str
    unshared: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What one scan saw.

    Attributes
    ----------
    frame
        Columns as `vmsnix_ops.records.schemas.INVENTORY` documents them; AMIs first, oldest first.
    run
        The run that scanned.
    scanned_at
        When it started, UTC.
    places
        The accounts and regions that were read, each with the number of AMIs; also those without any.
    unread
        What could not be read.
    pointers
        What names AMIs of accounts that were not scanned, or AMIs that its own account cannot launch.
    hurried
        The accounts and regions that have so many AMIs that AWS was not asked about each one. Who else may
        launch those is unknown, and so is their use unless something names them.
    buckets
        The account and name of each bucket that was looked into, with its region.
    rules
        The retirement rules by which `verdicts` were made.
    verdicts
        What a retirement would do with AMIs and orphans of ours, by account, region and id: with all that it
        would retire or delete, and why it keeps those that are not whole.
    """

    frame: pd.DataFrame = field(repr=False)
    run: RunContext = field(repr=False)
    scanned_at: datetime
    places: Mapping[tuple[str, str], int]
    unread: tuple[Unread, ...] = ()
    pointers: tuple[Pointer, ...] = ()
    hurried: tuple[tuple[str, str], ...] = ()
    buckets: Mapping[tuple[str, str], str] = field(default_factory=dict)
    rules: RetirementRules = field(default_factory=RetirementRules)
    verdicts: Mapping[tuple[str, str, str], Verdict] = field(default_factory=dict, repr=False)

    @property
    def amis(self) -> pd.DataFrame:
        """The AMIs: the first rows of the frame, and so no copy of them."""
        return self.frame.iloc[: int((self.frame["kind"] == "ami").sum())]


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of one account and region, or of a bucket.

    Attributes
    ----------
    account, region
        Where.
    found
        What uses AMIs.
    amis
        How many AMIs there are.
    holders
        The AMIs that hold each snapshot.
    unread
        What could not be read.
    hurried
        Whether AWS was not asked about each AMI.
    strangers
        The owners of AMIs that are named here and belong to others; empty for what cannot be seen from here.
    guests
        AMIs of other scanned accounts that may be launched here, and about which AWS was asked here.
    bucket
        The bucket, if it is one.
    closed
        Whether the region let nobody in: it is not enabled.
    seen
        What decides about the retirement of what is there.
    """

    account: str
    region: str
    found: References
    amis: int
    holders: Mapping[str, list[str]]
    unread: tuple[Unread, ...]
    hurried: bool = False
    strangers: Mapping[str, str] = field(default_factory=dict)
    guests: frozenset[str] = frozenset()
    bucket: str = ""
    closed: bool = False
    seen: RegionState | None = None


# What snapshots cost, by the bytes that they hold.
#
# AWS bills a snapshot by its stored blocks, not by the size of its volume, and ``FullSnapshotSizeInBytes``
# tells them: the whole size of what a volume of it would hold. A snapshot that shares blocks with an older
# one of the same volume is billed for its own blocks only, which AWS does not tell, so the figure is a
# ceiling. Where even that is unknown, the volume's size takes its place and the row is marked as estimated;
# so a pending snapshot counts by its volume until AWS tells more. One that failed stores nothing and costs
# nothing.

GIB = 2**30
DEFAULT = (0.05, 0.0125)
"""USD a GiB and month, standard and archive tier: AWS's list price in us-east-1."""

OBJECT_USD = 0.023
"""USD a GiB and month of S3 Standard in us-east-1, for what uploads left behind."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a GiB of snapshot costs a month.

    Attributes
    ----------
    by_region
        USD in the standard and in the archive tier, from the setting ``snapshot_prices``; ``default`` holds
        for regions that are not named. Prices differ by up to two thirds between regions, so set those that
        you use.
    """

    by_region: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, region: str, *, archive: bool = False) -> float:
        """Return the USD of a GiB and month in a region."""
        pair = self.by_region.get(region) or self.by_region.get("default") or DEFAULT
        return pair[1] if archive else pair[0]


def monthly_usd(frame: pd.DataFrame, prices: Prices) -> pd.Series[float]:
    """Return what each row of an inventory costs a month; 0 where it stores nothing.

    Parameters
    ----------
    frame
        Columns ``kind``, ``region``, ``state``, ``tier``, ``stored_bytes``, ``size_gib``.
    prices
        Of snapshots.
    """
    import pandas as pd

    whole = frame["size_gib"].astype("Float64") * GIB
    size = frame["stored_bytes"].astype("Float64").fillna(whole).fillna(0.0) / GIB
    size = size.mask((frame["state"] == "error").fillna(value=False), 0.0)
    archive = (frame["tier"] == "archive").fillna(value=False)
    regions = frame["region"].astype(object)
    standard = regions.map({name: prices.of(name) for name in regions.unique()})
    archived = regions.map({name: prices.of(name, archive=True) for name in regions.unique()})
    price = standard.where(~archive, archived)
    price = price.where(~frame["kind"].isin(["object", "multipart-upload"]), OBJECT_USD)
    return pd.Series(size.to_numpy("float64") * price.to_numpy("float64"), index=frame.index).round(4)


def total_usd(frame: pd.DataFrame) -> float:
    """Return what all rows cost a month; AMIs count by their snapshots, which have rows of their own."""
    return float(frame.loc[frame["kind"] != "ami", "monthly_usd"].sum())


# One answer of AWS, one row of the inventory: columns are filled, and what AWS said is forgotten at once.
#
# An account may hold a hundred thousand AMIs. A dictionary for each would take gigabytes, so rows go straight
# into columns. Fields that are absent (a half-deleted AMI, a task that just began) leave holes, no error.

NAMES = schemas.INVENTORY.names
PACK = 1000  # rows that stay Python's own


class Columns:
    """The growing columns of one account and region.

    Parameters
    ----------
    run_id, scanned_at, account, region
        The same for every row.
    """

    def __init__(self, run_id: str, scanned_at: datetime, account: str, region: str) -> None:
        self.run_id, self.scanned_at, self.account, self.region = run_id, scanned_at, account, region
        self._values: dict[str, list[Any]] = {name: [] for name in NAMES if name not in _SAME}
        self._packed: list[pa.Table] = []
        self._length = 0

    def add(self, **row: Any) -> None:
        """Add a row; columns left out are empty."""
        for name, values in self._values.items():
            values.append(row.get(name))
        self._length += 1
        if self._length == PACK:
            self._pack()

    def arrow(self) -> pa.Table:
        """Return the rows as a table of the schema, and forget them."""
        import pyarrow as pa

        self._pack()
        packed, self._packed = self._packed, []
        return pa.concat_tables(packed)

    def _pack(self) -> None:
        """Put the rows since the last time into arrow's memory, a fifth of what Python's texts take."""
        import pyarrow as pa

        schema = schemas.INVENTORY.arrow()
        same = {
            "run_id": self.run_id,
            "scanned_at": self.scanned_at,
            "account": self.account,
            "region": self.region,
        }
        arrays = []
        for column in schema:
            if column.name in same:
                arrays.append(pa.repeat(pa.scalar(same[column.name], column.type), self._length))
                continue
            values, self._values[column.name] = self._values[column.name], []
            arrays.append(pa.array(values, column.type))
        self._packed.append(pa.Table.from_arrays(arrays, schema=schema))
        self._length = 0


_SAME = frozenset({"run_id", "scanned_at", "account", "region"})


def add_snapshots(columns: Columns, found: Iterable[Snapshot], public: Collection[str] | None = None) -> None:
    """Add snapshots. `public` are those that everybody may use; None where nobody could tell.

    A pending one that comes from no volume and is no copy is being written through the EBS direct APIs, or
    was until its writer died.
    """
    for one in found:
        direct = one.state == "pending" and not one.volume_id and not one.made_by_aws
        columns.add(
            kind="direct-upload" if direct else "snapshot",
            resource_id=one.snapshot_id,
            name=one.tags.get(tagging.NAME),
            state=one.state,
            created_at=one.created_at,
            size_gib=one.size_gib,
            stored_bytes=one.stored_bytes,
            estimated=one.stored_bytes is None,
            tier=one.tier or None,
            public=None if public is None else one.snapshot_id in public,
            encrypted=one.encrypted,
            # What tells a backup of a volume from an image's snapshot.
            source=one.volume_id or one.description or None,
            message=one.message or None,
            image=one.tags.get(tagging.IMAGE),
            digest=one.tags.get(tagging.DIGEST),
            tags=_json(one.tags),
        )


def add_amis(columns: Columns, found: Iterable[Ami], snapshots: Mapping[str, Snapshot]) -> None:
    """Add AMIs; `snapshots` are the account's, by id."""
    for ami in found:
        stored = [snapshots[one].stored_bytes if one in snapshots else None for one in ami.snapshot_ids]
        known = [size for size in stored if size is not None]
        columns.add(
            kind="ami",
            resource_id=ami.ami_id,
            name=ami.name or None,
            state=ami.state,
            created_at=None if ami.created_at == UNKNOWN_TIME else ami.created_at,
            size_gib=ami.size_gib,
            stored_bytes=sum(known) if len(known) == len(stored) else None,
            estimated=len(known) != len(stored),
            public=ami.public,
            encrypted=ami.encrypted,
            last_launched_at=ami.launched_at,
            deprecated_at=ami.deprecated_at,
            snapshots=json.dumps(ami.snapshot_ids),
            imds_support=ami.imds_support,
            boot_mode=ami.boot_mode,
            root_device=ami.root_device,
            source=ami.source_ami_id or None,
            message=ami.message or None,
            image=ami.tags.get(tagging.IMAGE),
            digest=ami.tags.get(tagging.DIGEST),
            tags=_json(ami.tags),
        )


def add_imports(columns: Columns, found: Iterable[ImportTask]) -> None:
    """Add imports; AWS lists those that ended for a week."""
    for task in found:
        columns.add(
            kind="import-task",
            resource_id=task.task_id,
            name=task.tags.get(tagging.NAME),
            state=task.status,
            message=task.message or None,
            source=task.source or None,
            snapshots=json.dumps([task.snapshot_id] if task.snapshot_id else []),
            image=task.tags.get(tagging.IMAGE),
            digest=task.tags.get(tagging.DIGEST),
            tags=_json(task.tags),
        )


def leftovers(columns: Columns, bucket: str, found: Iterable[Leftover]) -> None:
    """Add what uploads left in a bucket."""
    for one in found:
        columns.add(
            kind=one.kind,
            resource_id=one.id,
            name=one.key,
            state="unfinished" if one.kind == "multipart-upload" else "stored",
            created_at=one.since,
            stored_bytes=one.bytes,
            estimated=False,
            source=f"s3://{bucket}/{one.key}",
        )


def _json(tags: Mapping[str, str]) -> str:
    return json.dumps(tags, sort_keys=True, ensure_ascii=False)


# Many accounts and regions, one inventory: what uses each resource, wherever that was seen.


def joined(
    found: list[Read],
    tables: list[pa.Table],
    unread: list[Unread],
    run: RunContext,
    now: datetime,
    prices: Prices,
    rules: RetirementRules,
    verdicts: Mapping[tuple[str, str, str], Verdict],
) -> Inventory:
    """Return one inventory of all that was read; what one account sees counts for the AMIs of another."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from vmsnix_ops.records import schemas
    from vmsnix_ops.records.frames import to_frame

    uses: dict[tuple[str, str], list[Reference]] = {}
    # Of a hurried place AWS was not asked who may launch each AMI: that is as unknown as in a blind one.
    blind = {(one.account, one.region) for read in found for one in read.unread if one.source in _PROOF}
    hurried = {(read.account, read.region) for read in found if read.hurried}
    guests = {(read.account, read.region): read.guests for read in found if read.guests}
    seen = {place: some for place, some in guests.items() if place not in blind}
    for read in found:
        for ami_id, some in read.found.by_ami.items():
            known = uses.setdefault((read.region, ami_id), [])
            known += [replace(one, account=read.account) if ami_id in read.strangers else one for one in some]
    table = pa.concat_tables([schemas.INVENTORY.arrow().empty_table(), *tables])
    tables.clear()
    holders = {(read.region, key): held for read in found for key, held in read.holders.items()}
    used, proofs = _use(table, uses, holders, blind, hurried, seen, now, rules.launched_days)
    for name, values in (("referenced", used), ("references", proofs)):
        number, field_ = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(number, field_, pa.array(values, field_.type))
    order = [(name, "ascending") for name in ("kind", "created_at", "resource_id")]
    # Sorted in arrow, which copies once; what it was copied from goes before pandas sees it.
    table = table.take(pc.sort_indices(table, sort_keys=order))
    frame = to_frame(table)
    frame["monthly_usd"] = monthly_usd(frame, prices)
    places: dict[tuple[str, str], int] = {}
    for read in found:
        if not read.bucket and not read.closed:
            places[read.account, read.region] = places.get((read.account, read.region), 0) + read.amis
    return Inventory(
        frame,
        run,
        now,
        places,
        (*unread, *(one for read in found for one in read.unread)),
        tuple(_pointers(found, frame)),
        tuple((read.account, read.region) for read in found if read.hurried),
        {(read.account, read.bucket): read.region for read in found if read.bucket},
        rules,
        verdicts,
    )


def _pointers(found: list[Read], frame: pd.DataFrame) -> Iterator[Pointer]:
    """Yield what names AMIs that are not its account's, as that account sees them."""
    scanned = {read.account for read in found}
    hidden = {ami_id for read in found for ami_id, owner in read.strangers.items() if not owner}
    known = frame[frame["resource_id"].isin(hidden) & (frame["kind"] == "ami")]
    owners = dict(zip(known["resource_id"], known["account"], strict=True))
    for read in found:
        for ami_id, owner in read.strangers.items():
            if owner in scanned:
                continue
            for one in read.found.names(ami_id):
                unshared = "" if owner else owners.get(ami_id, "")
                yield Pointer(read.account, read.region, ami_id, one, owner, unshared)


_PROOF = frozenset(
    {"instances", "launch templates", "Auto Scaling groups", "parameters", "image references"}
    | {"launch permissions", "AMIs", references.PARAMETERS_OF_TEMPLATES}
)
"""Sources without which nobody can say that an AMI is not used."""


_EVERYBODY = Reference("shared-with", "all", type="everybody")


def _use(
    table: pa.Table,
    uses: Mapping[tuple[str, str], list[Reference]],
    holders: Mapping[tuple[str, str], list[str]],
    blind: set[tuple[str, str]],
    hurried: set[tuple[str, str]],
    seen: Mapping[tuple[str, str], frozenset[str]],
    now: datetime,
    launched_days: float,
) -> tuple[list[bool | None], list[str]]:
    """Return, for each row, whether it is used, and the references as JSON.

    That an AMI is shared with an account is a hint only while nobody looked there: `seen` are the AMIs of
    others about which AWS was asked in each place.
    """
    used: list[bool | None] = []
    proofs: list[str] = []
    columns = [
        table.column(name).to_pylist()
        for name in ("kind", "account", "region", "resource_id", "public", "created_at")
    ]
    for kind, account, region, resource_id, public, created_at in zip(*columns, strict=True):
        if kind == "ami":
            some = uses.get((region, resource_id), [])
            if public and _EVERYBODY not in some:  # known also where AWS was not asked about each AMI
                some = [*some, _EVERYBODY]
            open_ = [
                one
                for one in some
                if one.kind != "shared-with" or resource_id not in seen.get((one.id, region), ())
            ]
            settled = created_at is None or created_at < now - references.SETTLED
            complete = settled and (account, region) not in blind and (account, region) not in hurried
            used.append(references.judge(open_, complete=complete, now=now, launched_days=launched_days))
            proofs.append(references.dump(some))
        elif kind in ("snapshot", "direct-upload"):
            held = holders.get((region, resource_id), [])
            some = uses.get((region, resource_id), [])
            unknown = not held and (account, region) in blind
            used.append(None if unknown else bool(held or some))
            proofs.append(references.dump([*(Reference("ami", one) for one in held), *some]))
        else:
            used.append(None)
            proofs.append("[]")
    return used, proofs


Thoroughness = Literal["auto", "yes", "no"]

REGIONS_AT_ONCE = 8
PAGE = 1000
DEADLINE_MINUTES = 180.0
LONGEST_MINUTES = 7 * 24 * 60
ONE_BY_ONE = 500
"""AMIs of a region up to which, by default, AWS is also asked about each one."""


@check_arguments
def scan(
    *,
    regions: Iterable[str] = (),
    accounts: Iterable[str] = (),
    buckets: Iterable[str] = (),
    one_by_one: Thoroughness = "auto",
    deadline_minutes: float = DEADLINE_MINUTES,
    keep_last: int | None = None,
    min_age_days: float | None = None,
    launched_days: float | None = None,
    retention_days: float | None = None,
    orphan_days: float | None = None,
    max_count: int | None = None,
    session: boto3.Session | None = None,
) -> Inventory:
    """Return everything that these accounts own in these regions, and what uses it.

    Parameters
    ----------
    regions
        Where to look; by default the settings' region, else AWS's own. ``["all"]``: every region that is
        enabled, in each account.
    accounts
        Account IDs or role ARNs (see `vmsnix_ops.aws.accounts.open_accounts`); by default those of the
        setting ``audit_accounts``, else the caller's own.
    buckets
        Buckets of uploads in the caller's own account; by default the settings' bucket.
    one_by_one
        Whether AWS is also asked about each single AMI: which other accounts may launch it, and which
        recipes of Image Builder name it. ``"auto"`` does so in regions with at most `ONE_BY_ONE` AMIs. There
        is no way to ask that of all at once, so elsewhere an AMI that nothing names is not called unused.
    deadline_minutes
        After so many minutes nothing more is asked; what was not read by then is told, as any other gap is.
    keep_last, min_age_days, launched_days, retention_days, orphan_days, max_count
        The retirement policy; by default that of `vmsnix_ops.settings.Settings`. A retirement of the same
        account and regions with the same numbers decides as the audit does.
    session
        Whose account is scanned, and who takes the roles in others.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A parameter or a setting cannot be right.
    vmsnix_ops.errors.InterruptedRunError
        Ctrl-C.
    vmsnix_ops.errors.RegionError
        There is no such region.
    vmsnix_ops.errors.CredentialsError
        The caller has no credentials. Other trouble is in `Inventory.unread`.
    """
    settings, session = load(), session or default_session()
    home = settings.region or session.region_name or "us-east-1"
    limit = checked(settings, one_by_one, deadline_minutes)
    rules = RetirementRules.of(
        settings.retirement,
        {
            "keep_last": keep_last,
            "min_age_days": min_age_days,
            "launched_days": launched_days,
            "retention_days": retention_days,
            "orphan_days": orphan_days,
            "max_count": max_count,
        },
    )
    asked = where.requested_regions(session, regions, home=settings.region)
    run, now = current_run("audit-inventory"), datetime.now(UTC)
    with _interruptible(limit):
        members = sessions_of(
            tuple(accounts) or settings.audit_accounts,
            role=settings.audit_role,
            external_id=settings.audit_external_id,
            region=home,
            limit=limit,
            session=session,
        )
        places, unread = _places(members, asked, home)
    family = frozenset(account for account, _, _ in places)
    shown = current().step("scan", total=len(places), unit="items")
    pool = ThreadPoolExecutor(REGIONS_AT_ONCE, thread_name_prefix="scan")
    # The interrupt is told first, so that the pool can end.
    with shown as step, _rare_collections(), pool, _interruptible(limit, pool):
        turns = BoundedSemaphore(REGIONS_AT_ONCE + 1)

        def read(place: RegionContext) -> tuple[Read, pa.Table]:
            try:
                columns = Columns(run.run_id, now, place.account, place.region)
                result = read_region(place, columns, one_by_one, settings.channel_prefix, family)
                return result, columns.arrow()
            finally:
                step.advance(1)
                turns.release()

        jobs = []
        for account, its_session, region in places:
            # Sessions are not thread safe, so clients are made here; a few at once, because each costs a
            # megabyte and there may be thousands of places.
            turns.acquire()
            jobs.append(pool.submit(read, RegionContext.of(its_session, region, account, limit)))
        found = [job.result() for job in jobs]
    del jobs  # they hold every table
    with _interruptible(limit):
        sessions = {account: its_session for account, its_session, _ in places}
        verdicts, undecided = _decide([one for one, _ in found], sessions, rules, now, limit)
    found = [(replace(one, seen=None), table) for one, table in found]  # it is large, and has served
    own = next((one for one in members if one.session is session), None)
    wanted = tuple(dict.fromkeys(buckets)) or tuple(filter(None, [settings.bucket]))
    if own is not None and wanted:
        when = (run.run_id, now)
        with _interruptible(limit):
            found += [_bucket(session, name, settings, own.account, home, when, limit) for name in wanted]
    tables = [table for _, table in found]
    reads = [one for one, _ in found]
    found.clear()  # so that the join alone holds the tables, and can let them go
    unread += undecided
    return joined(reads, tables, unread, run, now, Prices(settings.snapshot_prices), rules, verdicts)


def _decide(
    reads: Iterable[Read],
    sessions: Mapping[str, boto3.Session],
    rules: RetirementRules,
    now: datetime,
    limit: TimeLimit,
) -> tuple[dict[tuple[str, str, str], Verdict], list[Unread]]:
    """Return what a retirement in each account would do, and what could not be read for that."""
    by_account: dict[str, dict[str, RegionState]] = {}
    for read in reads:
        if read.seen is not None:
            by_account.setdefault(read.account, {})[read.region] = read.seen
    verdicts: dict[tuple[str, str, str], Verdict] = {}
    unread: list[Unread] = []
    for account, regions in by_account.items():

        def context_of(region: str, account: str = account) -> RegionContext:
            return RegionContext.of(sessions[account], region, account, limit)

        found, undecided = decide(regions, rules, now, context_of, include_kept=_is_told)
        for one in found:
            if one.digest:
                verdicts[account, one.region, one.resource_id] = Verdict(one.action, one.reasons)
        for region, error in undecided.items():
            known = regions[region]
            if not known.unread and not known.references.unread:  # nobody has told it yet
                why = errors.AwsError(error.what, why=error.why, fix=error.fix)
                unread.append(Unread(account, region, reading.ONE_BY_ONE, why))
    return verdicts, unread


def _is_told(one: Ami | Snapshot) -> bool:
    """Return whether a finding may have to say why something is kept: only of what is not whole."""
    return one.state not in ("available", "disabled", "completed")


def checked(settings: Settings, one_by_one: str, deadline_minutes: float) -> TimeLimit:
    """Return the limit of a scan whose parameters can be right; raise before anything is read if not."""
    if one_by_one not in get_args(Thoroughness):
        raise errors.ParameterError(
            f"one_by_one cannot be {one_by_one!r}.", fix=f"Choose {', '.join(get_args(Thoroughness))}."
        )
    if not 0 < deadline_minutes <= LONGEST_MINUTES:
        raise errors.ParameterError(
            f"deadline_minutes cannot be {deadline_minutes!r}.",
            fix=f"Give more than 0 minutes, and at most {LONGEST_MINUTES}.",
        )
    for region in settings.snapshot_prices.keys() - {"default"}:
        try:
            where.check_regions([region])
        except errors.RegionError as error:
            raise errors.SettingsError(
                f"The setting snapshot_prices names {region!r}, which is no region.",
                why=error.why,
                fix="Correct it, or leave it out: default holds for the regions that are not named.",
            ) from error
    fix = f"Scan fewer regions at once, or give more than {deadline_minutes:g} minutes (deadline_minutes)."
    return TimeLimit(time.time() + 60 * deadline_minutes, fix=fix)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for garbage less often. Nearly all that a scan reads is kept, and no garbage."""
    known = gc.get_threshold()
    gc.set_threshold(50_000, *known[1:])
    try:
        yield
    finally:
        gc.set_threshold(*known)


@contextmanager
def _interruptible(limit: TimeLimit, pool: ThreadPoolExecutor | None = None) -> Iterator[None]:
    """End all waiting when the operator stops a scan, and say what that means."""
    try:
        yield
    except BaseException as error:
        limit.stop()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, KeyboardInterrupt):
            raise errors.InterruptedRunError(
                "The audit was interrupted.",
                why="Nothing was changed, and nothing of it was kept.",
                fix="Run it again: it begins anew.",
            ) from error
        raise


def _places(
    members: Iterable[MemberAccount], asked: tuple[str, ...], home: str
) -> tuple[list[tuple[str, boto3.Session, str]], list[Unread]]:
    """Return account, session and region of everything to read."""
    places, unread = [], []
    for member in members:
        if member.session is None:
            if member.error is not None:
                unread.append(Unread(member.account, "", "account", member.error))
            continue
        regions = asked
        if asked == (where.ALL,):
            try:
                regions = where.enabled_regions(client(member.session, "ec2", home))
            except errors.AwsError as error:
                unread.append(Unread(member.account, "", "enabled regions", error))
                regions = (home,)
        places += [(member.account, member.session, region) for region in regions]
    return places, unread


@needs("ec2:DescribeSnapshots", "ec2:DescribeImages", "ec2:DescribeImportSnapshotTasks")
def read_region(
    place: RegionContext,
    columns: Columns,
    one_by_one: Thoroughness,
    prefix: str,
    family: frozenset[str] = frozenset(),
) -> Read:
    """Read one account and region, one source after the other.

    Parameters
    ----------
    place
        The account and region.
    columns
        Where rows go.
    one_by_one
        As for `scan`.
    prefix
        First part of the names of the channels' parameters.
    family
        All accounts that are scanned. What this one may launch of the others is looked for here, too.
    """
    account, region, ec2 = place.account, place.region, place.ec2
    seen = reading.read_region(place, prefix=prefix)
    unread = [Unread(account, region, source, error) for source, error in seen.unread.items()]
    if reading.WHOLE_REGION in seen.unread:
        return Read(account, region, seen.references, 0, {}, tuple(unread), closed=True)

    @contextmanager
    def trying(source: str) -> Iterator[None]:
        try:
            with calling(f"read the {source} of {region} in account {account}"):
                yield
        except errors.AwsError as error:
            unread.append(Unread(account, region, source, error))

    public: frozenset[str] | None = None
    with trying("public snapshots"):  # few, so one call
        public = snapshots.public(ec2)
    add_snapshots(columns, seen.snapshots.values(), public)
    add_amis(columns, seen.amis, seen.snapshots)
    add_imports(columns, seen.imports)
    own = {ami.ami_id for ami in seen.amis}
    hurried = one_by_one == "no" or (one_by_one == "auto" and len(own) > ONE_BY_ONE)
    guests: frozenset[str] = frozenset()
    if not hurried and family - {account}:
        with trying("AMIs of the other accounts"):
            theirs = sorted(family - {account})
            shown = read_pages(ec2.describe_images, Owners=theirs, ExecutableUsers=["self"], **_HIDDEN)
            guests = frozenset(image["ImageId"] for page in shown for image in page["Images"])
    found = seen.references
    if not hurried:
        found = references.merged(found, references.search(place.clients, own, guests=guests))
    unread += [Unread(account, region, source, error) for source, error in found.unread.items()]
    strangers: dict[str, str] = {}
    with trying("AMIs of others"):
        others = [one for one in found.by_ami if one.startswith("ami-") and one not in own]
        if "AMIs" not in seen.unread:
            strangers = _owners(ec2, others)
    no_ami = [one for one in found.by_ami if not one.startswith(("ami-", "snap-"))]
    strangers |= dict.fromkeys(no_ami, "")
    launched = {ami.ami_id: ami.launched_at for ami in seen.amis if ami.launched_at is not None}
    return Read(
        account,
        region,
        references.with_launches(found, launched),
        len(own),
        seen.amis_by_snapshot(),
        tuple(unread),
        hurried and bool(own),
        strangers,
        guests,
        seen=seen.for_retirement(),
    )


class _Hidden(TypedDict):
    IncludeDeprecated: bool
    IncludeDisabled: bool


_HIDDEN: _Hidden = {"IncludeDeprecated": True, "IncludeDisabled": True}
"""What `DescribeImages` leaves out unless it is asked for."""


def _owners(ec2: EC2Client, ami_ids: list[str]) -> dict[str, str]:
    """Return the owner of each AMI that we may see; of those that do not exist an empty text."""
    owners = dict.fromkeys(ami_ids, "")
    for start in range(0, len(ami_ids), 200):  # AWS: values of a filter, which, unlike a list, may not exist
        chosen: list[FilterTypeDef] = [{"Name": "image-id", "Values": ami_ids[start : start + 200]}]
        for page in read_pages(ec2.describe_images, Filters=chosen, **_HIDDEN):
            owners |= {image["ImageId"]: image.get("OwnerId", "?") for image in page["Images"]}
    return owners


def _bucket(
    session: boto3.Session,
    name: str,
    settings: Settings,
    account: str,
    home: str,
    when: tuple[str, datetime],
    limit: TimeLimit,
) -> tuple[Read, pa.Table]:
    """Read what uploads left in one bucket."""
    region, unread = "", []
    columns = Columns(*when, account, home)
    try:
        with errors_of(name, f"read the bucket {name}"):
            region = buckets.region_of(with_time_limit(client(session, "s3", home, attempts=2), limit), name)
            s3 = with_time_limit(client(session, "s3", region, attempts=2), limit)
            columns.region = region
            for look in (buckets.objects, buckets.uploads):
                leftovers(columns, name, look(s3, name, settings.key_prefix))
    except errors.AwsError as error:
        unread.append(Unread(account, region, f"bucket {name}", error, name))
    read = Read(account, region, References(region, {}), 0, {}, tuple(unread), bucket=name)
    return read, columns.arrow()
