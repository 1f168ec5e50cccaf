"""Scan accounts and regions, and join everything in one frame: AMIs, snapshots, imports and uploads.

`scan` reads all regions of all accounts in parallel. Something that cannot be read (a region that is not
enabled, an account that refuses, a missing permission) does not end it. It is listed in `Inventory.unread`,
becomes a finding, and makes the usage of the AMIs there unknown.
"""

from __future__ import annotations

import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from vmsnix_ops import display, errors
from vmsnix_ops.arguments import check_range
from vmsnix_ops.audit import region as reading
from vmsnix_ops.audit.region import RegionContext
from vmsnix_ops.audit.retirement.decisions import RetirementRules, RuleResult, decide
from vmsnix_ops.aws import buckets as s3_buckets
from vmsnix_ops.aws import images, references, snapshots
from vmsnix_ops.aws import regions as aws_regions
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.accounts import open_accounts
from vmsnix_ops.aws.buckets import bucket_errors
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import TimeLimit, batches, with_time_limit
from vmsnix_ops.aws.references import Reference, References
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.disk.image import GIB
from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.progress import current
from vmsnix_ops.records import schemas
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    import boto3
    import pandas as pd
    import pyarrow as pa
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import FilterTypeDef

    from vmsnix_ops.audit.region import RegionState
    from vmsnix_ops.aws.accounts import MemberAccount
    from vmsnix_ops.aws.buckets import BucketItem
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.imports import ImportTask
    from vmsnix_ops.aws.snapshots import Snapshot
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.settings import Settings


@dataclass(frozen=True, slots=True)
class UnreadSource:
    """Something that could not be read."""

    account: str
    region: str  # empty for a whole account
    source: str  # such as "snapshots"
    error: errors.AwsError
    bucket: str = ""  # set if a bucket could not be read; then only its content is unknown


@dataclass(frozen=True, slots=True)
class ForeignReference:
    """A reference in an account and region to an AMI that the account does not own."""

    account: str
    region: str
    ami_id: str  # or a text that is no AMI, such as resolve:ssm:... for a parameter that does not exist
    reference: Reference
    owner: str  # of the AMI; empty if it does not exist or this account may not see it
    unshared: str = ""  # the scanned account that owns the AMI and does not share it with this account


USER_COLUMNS = ("ami_id", "region", "kind", "id", "detail", "source", "uses", "user_account")


@dataclass(frozen=True, slots=True)
class Inventory(display.Displayed):
    """The result of a scan: AMIs, snapshots, imports and uploads with their users and costs.

    A notebook shows numbers and costs by account, region and kind. The columns of `frame` are those of the
    table ``inventory``.
    """

    # Columns as in `vmsnix_ops.records.schemas.INVENTORY`; AMIs first, oldest first.
    frame: pd.DataFrame = field(repr=False)  # type: ignore[assignment]  # a scan is this table
    run: RunContext = field(repr=False)
    scanned_at: datetime  # start of the scan, UTC
    # The accounts and regions that were read, each with the number of its AMIs.
    regions: Mapping[tuple[str, str], int]
    unread: tuple[UnreadSource, ...] = ()  # what could not be read
    # References to AMIs of accounts that were not scanned, and to AMIs that their account cannot launch.
    foreign_references: tuple[ForeignReference, ...] = ()
    # The accounts and regions with too many AMIs to read the launch permissions of each. The usage of an AMI
    # there is unknown unless something references it.
    not_read_one_by_one: tuple[tuple[str, str], ...] = ()
    # The account and name of each bucket that was read, with its region.
    buckets: Mapping[tuple[str, str], str] = field(default_factory=dict)
    rules: RetirementRules = field(default_factory=RetirementRules)  # the retirement rules of `rule_results`
    # What a retirement would do with AMIs and orphan snapshots that vmsnix published, by account, region and
    # ID: all that it would retire or delete, and why it keeps those that failed or are pending.
    rule_results: Mapping[tuple[str, str, str], RuleResult] = field(default_factory=dict, repr=False)

    @property
    def amis(self) -> pd.DataFrame:
        """The AMIs, oldest first.

        The columns are those of `frame` without ``kind``, with ``source`` as ``source_ami_id``, and with
        ``ami_id``, and ``age_days`` at the scan.
        """
        rows = self.ami_rows.drop(columns="kind").rename(columns={"source": "source_ami_id"})
        return rows.assign(ami_id=rows["resource_id"], age_days=self.age_days(rows))

    @property
    def ami_rows(self) -> pd.DataFrame:
        """The rows of the AMIs: the first of the frame, so not a copy."""
        return self.frame.iloc[: int((self.frame["kind"] == "ami").sum())]

    @property
    def snapshots(self) -> pd.DataFrame:
        """The snapshots, oldest first, without ``kind`` and with ``snapshot_id`` and ``age_days``.

        A snapshot with ``referenced`` false belongs to no AMI.
        """
        rows = self.frame[self.frame["kind"] == "snapshot"].drop(columns="kind")
        return rows.assign(snapshot_id=rows["resource_id"], age_days=self.age_days(rows))

    @property
    def findings(self) -> NoReturn:
        """A scan evaluates no rules; `audit.check` does, and its result has the findings."""
        raise AttributeError(
            "A scan has no findings: it evaluates no rules. Use audit.check(...).findings instead of "
            "audit.scan(...).findings."
        )

    def users(self) -> pd.DataFrame:
        """Return one row for each AMI and each of its users, which ``amis.merge(users)`` joins to the AMIs.

        ``kind`` and ``id`` are those of the user: ``instance``, ``launch-template``, ``auto-scaling-group``,
        ``launch-configuration``, ``parameter`` (such as that of a channel), ``image-recipe``,
        ``container-recipe`` or ``shared-with``. ``detail`` has versions, the capacity of a group and the
        resources between, ``source`` the part of AWS that reported the user. ``uses`` is false for an account
        that may launch the AMI: its resources were not read. ``user_account`` is set for a user in another
        account.
        """
        import pandas as pd

        rows = []
        amis = self.ami_rows[["resource_id", "region", "references"]]
        for ami_id, region, texts in amis.itertuples(index=False):
            for one in references.references_from_json(texts):
                if one.kind == "launched":
                    continue
                source = one.source or references.SOURCES.get(one.kind, "")
                uses = one.kind in references.USE_KINDS
                rows.append((ami_id, region, one.kind, one.id, one.detail, source, uses, one.account))
        return pd.DataFrame(rows, columns=list(USER_COLUMNS)).astype(
            {name: "bool" if name == "uses" else "str" for name in USER_COLUMNS}
        )

    def age_days(self, rows: pd.DataFrame) -> pd.Series[float]:
        """Return the age of each row at the scan, in days."""
        days: pd.Series[float] = (self.scanned_at - rows["created_at"]).dt.total_seconds() / 86400
        return days

    def summary(self) -> pd.DataFrame:
        """Return numbers, sizes and costs by account, region and kind."""
        frame = self.frame
        marked = frame.assign(
            unused=~frame["referenced"].fillna(value=True),
            unknown=frame["referenced"].isna(),
            stored_gib=frame["stored_bytes"].astype("Float64") / GIB,
            age_days=self.age_days(frame),
        )
        groups = marked.groupby(["account", "region", "kind"], as_index=False)
        table = groups.agg(
            count=("resource_id", "size"),
            unused=("unused", "sum"),
            unknown=("unknown", "sum"),
            size_gib=("size_gib", "sum"),
            stored_gib=("stored_gib", "sum"),
            monthly_usd=("monthly_usd", "sum"),
            oldest_days=("age_days", "max"),
        )
        return table.round({"stored_gib": 2, "monthly_usd": 2, "oldest_days": 1})

    @property
    def title(self) -> str:
        """The title."""
        return "Inventory"

    def table(self) -> display.DisplayTable:
        """Return `summary` for people."""
        return display.frame_table(self.summary(), nothing="No resources.")

    def notes(self) -> list[str]:
        """Return what could not be read."""
        return [
            f"Not read: {' '.join(filter(None, (one.source, one.account, one.region)))}. {one.error}"
            for one in self.unread
        ]

    def unreadable(self, source: str) -> set[tuple[str, str]]:
        """Return the accounts and regions in which a source could not be read."""
        return {(one.account, one.region) for one in self.unread if one.source == source}


@dataclass(frozen=True, slots=True)
class ScanPart:
    """What was read of one account and region, or of one bucket."""

    account: str
    region: str
    references: References
    ami_count: int
    amis_by_snapshot: Mapping[str, list[str]]
    unread: tuple[UnreadSource, ...]
    # Whether the launch permissions of its AMIs were not read.
    not_read_one_by_one: bool = False
    # The owners of referenced AMIs of other accounts; empty for those that this account cannot see.
    foreign_owners: Mapping[str, str] = field(default_factory=dict)
    # AMIs of other scanned accounts that this account may launch, and whose references here were read.
    visible_foreign_amis: frozenset[str] = frozenset()
    bucket: str = ""
    # Whether nothing could be read, because the region is not enabled.
    closed: bool = False
    # What retirement rules read.
    state: RegionState | None = None


# Scan.

OneByOne = Literal["auto", "yes", "no"]

DEADLINE_MINUTES = 180.0
MAX_ONE_BY_ONE = 500
"""Number of AMIs of a region up to which ``one_by_one="auto"`` reads each one."""


def scan(
    rules: RetirementRules | None = None,
    *,
    regions: Iterable[str] = (),
    accounts: Iterable[str] = (),
    buckets: Iterable[str] = (),
    one_by_one: OneByOne = "auto",
    deadline_minutes: float = DEADLINE_MINUTES,
    session: boto3.Session | None = None,
) -> Inventory:
    """Read everything that accounts own in some regions, and its usage.

    A retirement of the same account and regions by the same rules, by default the policy of the settings,
    decides as the audit does. The other parameters are those of `vmsnix_ops.audit.check`.
    """
    settings, session = load(), session or default_session()
    home = settings.region or session.region_name or "us-east-1"
    rules = rules or RetirementRules.of(settings.retirement)
    limit = _check_limit(settings, one_by_one, deadline_minutes)
    wanted = aws_regions.requested_regions(session, regions, home=settings.region)
    run, now = current_run("audit-inventory", make_folder=False), datetime.now(UTC)
    with _interruptible(limit):
        members = open_accounts(
            tuple(accounts) or settings.audit_accounts,
            role=settings.audit_role,
            external_id=settings.audit_external_id,
            region=home,
            limit=limit,
            session=session,
        )
        jobs, unread = _jobs(members, wanted, home)
    sessions = {account: member_session for account, member_session, _ in jobs}
    scanned = frozenset(sessions)

    def context_of(account: str, region: str) -> RegionContext:
        prefix = settings.channel_prefix
        return RegionContext.of(sessions[account], region, account, channel_prefix=prefix, limit=limit)

    progress = current().step("scan", total=len(jobs), unit="items")
    pool = ThreadPoolExecutor(reading.REGIONS_AT_ONCE, thread_name_prefix="scan")
    # `_interruptible` stops the limit before the pool waits for its threads, so that they end.
    with progress as step, _rare_garbage_collection(), pool, _interruptible(limit, pool):
        slots = BoundedSemaphore(reading.REGIONS_AT_ONCE + 1)

        def read(context: RegionContext) -> tuple[ScanPart, pa.Table]:
            try:
                columns = InventoryColumns(run.run_id, now, context.account, context.region)
                part = scan_region(context, columns, one_by_one, scanned)
                return part, columns.arrow()
            finally:
                step.advance(1)
                slots.release()

        futures = []
        for account, _, region in jobs:
            # Sessions are not thread-safe, so clients are created here; only a few at once, because each
            # takes a megabyte and there may be thousands of regions.
            slots.acquire()
            futures.append(pool.submit(read, context_of(account, region)))
        found = [future.result() for future in futures]
    del futures  # they reference every table
    with _interruptible(limit):
        rule_results, undecided = _decide([part for part, _ in found], rules, now, context_of)
    found = [(replace(part, state=None), table) for part, table in found]  # it is large, and no longer needed
    own = next((one for one in members if one.session is session), None)
    names = tuple(dict.fromkeys(buckets)) or tuple(filter(None, [settings.bucket]))
    if own is not None:
        with _interruptible(limit):
            for name in names:
                columns = InventoryColumns(run.run_id, now, own.account, home)
                part = _scan_bucket(session, name, settings.key_prefix, columns, limit)
                found.append((part, columns.arrow()))
    tables = [table for _, table in found]
    parts = [part for part, _ in found]
    found.clear()  # so that only `_join` references the tables, and can free them
    unread += undecided
    return _join(parts, tables, unread, run, now, settings.snapshot_prices, rules, rule_results)


def _check_limit(settings: Settings, one_by_one: str, deadline_minutes: float) -> TimeLimit:
    """Return the time limit of a scan; raise before anything is read if a parameter is invalid."""
    if one_by_one not in get_args(OneByOne):
        raise errors.ParameterError(
            f"Invalid one_by_one {one_by_one!r}.", fix=f"Use {', '.join(get_args(OneByOne))}."
        )
    check_range("deadline_minutes", deadline_minutes)
    for region in settings.snapshot_prices.keys() - {"default"}:
        try:
            aws_regions.check_regions([region])
        except errors.RegionError as error:
            raise errors.SettingsError(
                f"Unknown region {region!r} in the setting snapshot_prices.",
                why=error.why,
                fix="Correct or remove it. The price of default applies to all regions that are not listed.",
            ) from error
    fix = f"Scan fewer regions at once, or give more than {deadline_minutes:g} minutes (deadline_minutes)."
    return TimeLimit(time.time() + 60 * deadline_minutes, fix=fix)


def _jobs(
    members: Iterable[MemberAccount], wanted: tuple[str, ...], home: str
) -> tuple[list[tuple[str, boto3.Session, str]], list[UnreadSource]]:
    """Return account, session and region of everything to read, and the accounts that cannot be read."""
    jobs, unread = [], []
    for member in members:
        if member.session is None:
            if member.error is not None:
                unread.append(UnreadSource(member.account, "", "account", member.error))
            continue
        regions = wanted
        if wanted == (aws_regions.ALL,):
            try:
                regions = aws_regions.enabled_regions(client(member.session, "ec2", home))
            except errors.AwsError as error:
                unread.append(UnreadSource(member.account, "", "enabled regions", error))
                regions = (home,)
        jobs += [(member.account, member.session, region) for region in regions]
    return jobs, unread


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Let Python collect garbage less often. Nearly all that a scan reads is kept."""
    earlier = gc.get_threshold()
    gc.set_threshold(50_000, *earlier[1:])
    try:
        yield
    finally:
        gc.set_threshold(*earlier)


@contextmanager
def _interruptible(limit: TimeLimit, pool: ThreadPoolExecutor | None = None) -> Iterator[None]:
    """Stop all waiting if the operator interrupts a scan, and raise an error that explains it."""
    try:
        yield
    except BaseException as error:
        limit.stop()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, KeyboardInterrupt):
            raise errors.InterruptedRunError(
                "The audit was interrupted.",
                why="Nothing was changed, and its results were not saved.",
                fix="Run it again. It starts from the beginning.",
            ) from error
        raise


@needs("ec2:DescribeSnapshots", "ec2:DescribeImages", "ec2:DescribeImportSnapshotTasks")
def scan_region(
    context: RegionContext,
    columns: InventoryColumns,
    one_by_one: OneByOne,
    scanned: frozenset[str] = frozenset(),
) -> ScanPart:
    """Read one account and region, one source after the other, and add its rows to columns.

    `scanned` are all accounts of the scan. References in this account to their AMIs are read, too.
    """
    account, region, ec2 = context.account, context.region, context.ec2
    state = reading.read_region(context)
    unread = [UnreadSource(account, region, source, error) for source, error in state.unread.items()]
    if reading.WHOLE_REGION in state.unread:
        return ScanPart(account, region, state.references, 0, {}, tuple(unread), closed=True)

    @contextmanager
    def attempt(source: str) -> Iterator[None]:
        try:
            with calling(f"read the {source} of {region} in account {account}"):
                yield
        except errors.AwsError as error:
            unread.append(UnreadSource(account, region, source, error))

    public: frozenset[str] | None = None
    with attempt("public snapshots"):  # few, so one call
        public = snapshots.list_public_snapshots(ec2)
    add_snapshots(columns, state.snapshots.values(), public)
    add_amis(columns, state.amis, state.snapshots)
    add_imports(columns, state.imports)
    own = {ami.ami_id for ami in state.amis}
    skip_each = one_by_one == "no" or (one_by_one == "auto" and len(own) > MAX_ONE_BY_ONE)
    visible: frozenset[str] = frozenset()
    if not skip_each and scanned - {account}:
        with attempt("AMIs of the other accounts"):
            others = sorted(scanned - {account})
            shared = images.read_images(ec2, Owners=others, ExecutableUsers=["self"])
            visible = frozenset(image["ImageId"] for image in shared)
    found = state.references
    if not skip_each:
        found = references.merge_references(
            found, references.search_references(context.clients, own, foreign_images=visible)
        )
    unread += [UnreadSource(account, region, source, error) for source, error in found.unread.items()]
    owners: dict[str, str] = {}
    with attempt("AMIs of others"):
        foreign = [one for one in found.by_ami if one.startswith("ami-") and one not in own]
        if "AMIs" not in state.unread:
            owners = _owners(ec2, foreign)
    owners |= {one: "" for one in found.by_ami if not one.startswith(("ami-", "snap-"))}
    launched = {ami.ami_id: ami.launched_at for ami in state.amis if ami.launched_at is not None}
    return ScanPart(
        account,
        region,
        references.add_last_launches(found, launched),
        len(own),
        state.amis_by_snapshot(),
        tuple(unread),
        skip_each and bool(own),
        owners,
        visible,
        state=state.for_retirement(),
    )


def _owners(ec2: EC2Client, ami_ids: list[str]) -> dict[str, str]:
    """Return the owner of each AMI; empty for those that do not exist or are not visible."""
    owners = dict.fromkeys(ami_ids, "")
    for batch in batches(ami_ids):  # a filter may contain missing AMIs
        chosen: list[FilterTypeDef] = [{"Name": "image-id", "Values": batch}]
        owners |= {one["ImageId"]: one.get("OwnerId", "?") for one in images.read_images(ec2, Filters=chosen)}
    return owners


def _scan_bucket(
    session: boto3.Session, name: str, key_prefix: str, columns: InventoryColumns, limit: TimeLimit
) -> ScanPart:
    """Read objects and multipart uploads that publishing left in a bucket."""
    region, unread = "", []
    try:
        with bucket_errors(name, f"read the bucket {name}"):
            home = with_time_limit(client(session, "s3", columns.region, attempts=2), limit)
            columns.region = region = s3_buckets.bucket_region(home, name)
            s3 = with_time_limit(client(session, "s3", region, attempts=2), limit)
            for read in (s3_buckets.list_objects, s3_buckets.list_multipart_uploads):
                add_leftovers(columns, name, read(s3, name, key_prefix))
    except errors.AwsError as error:
        unread.append(UnreadSource(columns.account, region, f"bucket {name}", error, name))
    return ScanPart(columns.account, region, References(region, {}), 0, {}, tuple(unread), bucket=name)


def _decide(
    parts: Iterable[ScanPart],
    rules: RetirementRules,
    now: datetime,
    context_of: Callable[[str, str], RegionContext],
) -> tuple[dict[tuple[str, str, str], RuleResult], list[UnreadSource]]:
    """Return what a retirement in each account would do, and what could not be read for this."""
    by_account: dict[str, dict[str, RegionState]] = {}
    for part in parts:
        if part.state is not None:
            by_account.setdefault(part.account, {})[part.region] = part.state
    rule_results: dict[tuple[str, str, str], RuleResult] = {}
    unread: list[UnreadSource] = []
    for account, regions in by_account.items():
        read = partial(context_of, account)
        found, undecided = decide(regions, rules, now, read, include_kept=_is_incomplete)
        for one in found:
            if one.digest:
                rule_results[account, one.region, one.resource_id] = RuleResult(one.action, one.reasons)
        for region, error in undecided.items():
            state = regions[region]
            if not state.unread and not state.references.unread:  # else it is reported already
                why = errors.AwsError(error.what, why=error.why, fix=error.fix)
                unread.append(UnreadSource(account, region, reading.ONE_BY_ONE, why))
    return rule_results, unread


def _is_incomplete(one: Ami | Snapshot) -> bool:
    """Return whether a finding has to explain why something is kept: if it failed or is pending."""
    return one.state not in ("available", "disabled", "completed")


# Join what was read of all accounts and regions.

_USAGE_SOURCES = frozenset(
    {"instances", "launch templates", "Auto Scaling groups", "parameters", "image references"}
    | {"launch permissions", "AMIs", references.PARAMETERS_OF_TEMPLATES}
)
"""If one of these sources could not be read, an AMI without references may still be used."""


def _join(
    parts: list[ScanPart],
    tables: list[pa.Table],
    unread: list[UnreadSource],
    run: RunContext,
    now: datetime,
    prices: Mapping[str, tuple[float, float]],
    rules: RetirementRules,
    rule_results: Mapping[tuple[str, str, str], RuleResult],
) -> Inventory:
    """Return one inventory of everything that was read. References of one account count for all accounts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from vmsnix_ops.records.frames import to_frame

    table = pa.concat_tables([schemas.INVENTORY.arrow().empty_table(), *tables])
    tables.clear()
    used, texts = _usage(table, parts, now, rules.launched_days)
    for name, values in (("referenced", used), ("references", texts)):
        number, field_ = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(number, field_, pa.array(values, field_.type))
    order = [(name, "ascending") for name in ("kind", "created_at", "resource_id")]
    # Sorting in arrow copies the table once, and frees the original before pandas copies it again.
    table = table.take(pc.sort_indices(table, sort_keys=order))
    frame = to_frame(table)
    frame["monthly_usd"] = monthly_usd(frame, prices)
    frame["cost_basis"] = cost_basis(frame)
    regions: dict[tuple[str, str], int] = {}
    for part in parts:
        if not part.bucket and not part.closed:
            place = part.account, part.region
            regions[place] = regions.get(place, 0) + part.ami_count
    return Inventory(
        frame,
        run,
        now,
        regions,
        (*unread, *(one for part in parts for one in part.unread)),
        tuple(_foreign_references(parts, frame)),
        tuple((part.account, part.region) for part in parts if part.not_read_one_by_one),
        {(part.account, part.bucket): part.region for part in parts if part.bucket},
        rules,
        rule_results,
    )


def _foreign_references(parts: list[ScanPart], frame: pd.DataFrame) -> Iterator[ForeignReference]:
    scanned = {part.account for part in parts}
    hidden = {ami_id for part in parts for ami_id, owner in part.foreign_owners.items() if not owner}
    known = frame[frame["resource_id"].isin(hidden) & (frame["kind"] == "ami")]
    owners = dict(zip(known["resource_id"], known["account"], strict=True))
    for part in parts:
        for ami_id, owner in part.foreign_owners.items():
            if owner in scanned:
                continue
            for one in part.references.names(ami_id):
                unshared = "" if owner else owners.get(ami_id, "")
                yield ForeignReference(part.account, part.region, ami_id, one, owner, unshared)


_EVERYBODY = Reference("shared-with", "all", type="everybody")


def _usage(
    table: pa.Table, parts: list[ScanPart], now: datetime, launched_days: float
) -> tuple[list[bool | None], list[str]]:
    """Return, for each row, whether it is used (``None``: unknown), and its references as JSON."""
    by_resource: dict[tuple[str, str], list[Reference]] = {}
    by_snapshot: dict[tuple[str, str], list[str]] = {}
    unreadable: set[tuple[str, str]] = set()
    unknown_sharing: set[tuple[str, str]] = set()
    visible: dict[tuple[str, str], frozenset[str]] = {}
    for part in parts:
        place = part.account, part.region
        for resource_id, found in part.references.by_ami.items():
            foreign = resource_id in part.foreign_owners
            known = by_resource.setdefault((part.region, resource_id), [])
            known += [replace(one, account=part.account) if foreign else one for one in found]
        by_snapshot |= {(part.region, key): amis for key, amis in part.amis_by_snapshot.items()}
        if any(one.source in _USAGE_SOURCES for one in part.unread):
            unreadable.add(place)
        elif part.visible_foreign_amis:
            visible[place] = part.visible_foreign_amis
        if part.not_read_one_by_one:
            unknown_sharing.add(place)
    incomplete = unreadable | unknown_sharing
    used: list[bool | None] = []
    texts: list[str] = []
    columns = [
        table.column(name).to_pylist()
        for name in ("kind", "account", "region", "resource_id", "public", "created_at")
    ]
    for kind, account, region, resource_id, public, created_at in zip(*columns, strict=True):
        some = by_resource.get((region, resource_id), [])
        if kind == "ami":
            if public and _EVERYBODY not in some:  # known even if launch permissions were not read
                some = [*some, _EVERYBODY]
            # Sharing with a scanned account is no sign of use: the references in that account were read.
            relevant = [
                one
                for one in some
                if one.kind != "shared-with" or resource_id not in visible.get((one.id, region), ())
            ]
            settled = created_at is None or created_at < now - references.LAUNCH_REPORT_DELAY
            complete = settled and (account, region) not in incomplete
            used.append(references.is_used(relevant, complete=complete, now=now, launched_days=launched_days))
            texts.append(references.references_to_json(some))
        elif kind in ("snapshot", "direct-upload"):
            amis = by_snapshot.get((region, resource_id), [])
            unknown = not amis and (account, region) in unreadable
            used.append(None if unknown else bool(amis or some))
            texts.append(references.references_to_json([*(Reference("ami", one) for one in amis), *some]))
        else:
            used.append(None)
            texts.append("[]")
    return used, texts


# What snapshots cost, by the bytes that they store.
#
# AWS bills the stored blocks of a snapshot, not the size of its volume. ``FullSnapshotSizeInBytes`` is the
# size of all blocks that a volume created from it would contain. A snapshot that shares blocks with an older
# one of the same volume is billed only for its own blocks, which AWS does not report, so the cost is an upper
# limit. If the size is unknown, the size of the volume is used and the row is marked as estimated; this
# includes pending snapshots. A failed snapshot stores nothing and costs nothing.

DEFAULT = (0.05, 0.0125)
"""USD per GiB and month, standard and archive tier: AWS's list price in us-east-1."""

OBJECT_USD = 0.023
"""USD per GiB and month of S3 Standard in us-east-1, for objects that publishing left."""


def monthly_usd(frame: pd.DataFrame, prices: Mapping[str, tuple[float, float]]) -> pd.Series[float]:
    """Return the monthly cost of each row of an inventory; 0 if it stores nothing.

    Prices are USD in the standard and in the archive tier by region, from the setting ``snapshot_prices``;
    ``default`` applies to all other regions.
    """
    import pandas as pd

    whole = frame["size_gib"].astype("Float64") * GIB
    size = frame["stored_bytes"].astype("Float64").fillna(whole).fillna(0.0) / GIB
    size = size.mask((frame["state"] == "error").fillna(value=False), 0.0)
    archive = (frame["tier"] == "archive").fillna(value=False)
    regions = frame["region"].astype(object)
    known = {name: prices.get(name) or prices.get("default") or DEFAULT for name in regions.unique()}
    price = regions.map({name: standard for name, (standard, _) in known.items()})
    price = price.where(~archive, regions.map({name: archived for name, (_, archived) in known.items()}))
    price = price.where(~frame["kind"].isin(["object", "multipart-upload"]), OBJECT_USD)
    return pd.Series(size.to_numpy("float64") * price.to_numpy("float64"), index=frame.index).round(4)


def cost_basis(frame: pd.DataFrame) -> pd.Series[str]:
    """Return what the cost of each row of an inventory is computed from; empty if it costs nothing.

    ``snapshots``: an AMI, whose snapshots have rows of their own, so that a sum must leave it out.
    ``stored``: the bytes that the row stores. ``volume``: the size of its volume, because AWS does not report
    the bytes.
    """
    import pandas as pd

    basis = pd.Series(None, index=frame.index, dtype=pd.StringDtype(na_value=float("nan")))
    failed = (frame["state"] == "error").fillna(value=False)
    basis[frame["size_gib"].notna() & ~failed] = "volume"
    basis[frame["stored_bytes"].notna() & ~failed] = "stored"
    basis[frame["kind"] == "ami"] = "snapshots"
    return basis


def total_usd(frame: pd.DataFrame) -> float:
    """Return the monthly cost of all rows. AMIs are left out: their snapshots have rows of their own."""
    return float(frame.loc[frame["kind"] != "ami", "monthly_usd"].sum())


# Rows of the inventory.
#
# An account may have a hundred thousand AMIs. A dictionary for each would take gigabytes, so rows are written
# directly into columns. Missing fields (an AMI without its snapshot, a task that just started) stay empty.

PACK = 1000  # rows that are kept as Python objects


class InventoryColumns:
    """The columns of one account and region, to which rows are added."""

    def __init__(self, run_id: str, scanned_at: datetime, account: str, region: str) -> None:
        self.run_id, self.scanned_at, self.account, self.region = run_id, scanned_at, account, region
        self.endpoint = endpoint_kind()
        # The columns of the attributes above are equal in all rows.
        self._values: dict[str, list[Any]] = {
            name: [] for name in schemas.INVENTORY.names if not hasattr(self, name)
        }
        self._packed: list[pa.Table] = []
        self._length = 0

    def add(self, **row: Any) -> None:
        """Add a row; columns that are not given are empty."""
        for name, values in self._values.items():
            values.append(row.get(name))
        self._length += 1
        if self._length == PACK:
            self._pack()

    def arrow(self) -> pa.Table:
        """Return the rows as a table of the schema, and remove them from here."""
        import pyarrow as pa

        self._pack()
        packed, self._packed = self._packed, []
        return pa.concat_tables(packed)

    def _pack(self) -> None:
        """Move the new rows to arrow, which needs a fifth of the memory of Python's texts."""
        import pyarrow as pa

        arrays = []
        for column in (schema := schemas.INVENTORY.arrow()):
            if column.name in self._values:
                values, self._values[column.name] = self._values[column.name], []
                arrays.append(pa.array(values, column.type))
            else:
                constant = pa.scalar(getattr(self, column.name), column.type)
                arrays.append(pa.repeat(constant, self._length))
        self._packed.append(pa.Table.from_arrays(arrays, schema=schema))
        self._length = 0


def add_snapshots(
    columns: InventoryColumns, found: Iterable[Snapshot], public: Collection[str] | None = None
) -> None:
    """Add snapshots; `public` are those that everybody may use, ``None`` if this is unknown.

    A pending snapshot that has no volume and is no copy is an EBS direct upload, running or given up.
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
            # Distinguishes a backup of a volume from a snapshot of an image.
            source=one.volume_id or one.description or None,
            message=one.message or None,
            **_tag_columns(one.tags),
        )


def add_amis(
    columns: InventoryColumns, found: Iterable[Ami], snapshots_by_id: Mapping[str, Snapshot]
) -> None:
    """Add AMIs, with the sizes of their snapshots."""
    for ami in found:
        stored = [
            snapshots_by_id[one].stored_bytes if one in snapshots_by_id else None for one in ami.snapshot_ids
        ]
        known = [size for size in stored if size is not None]
        columns.add(
            kind="ami",
            resource_id=ami.ami_id,
            name=ami.name or None,
            state=ami.state,
            created_at=None if ami.created_at == images.UNKNOWN_TIME else ami.created_at,
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
            **_tag_columns(ami.tags),
        )


def add_imports(columns: InventoryColumns, found: Iterable[ImportTask]) -> None:
    """Add imports. AWS lists ended imports for a week."""
    for task in found:
        columns.add(
            kind="import-task",
            resource_id=task.task_id,
            name=task.tags.get(tagging.NAME),
            state=task.status,
            message=task.message or None,
            source=task.source or None,
            snapshots=json.dumps([task.snapshot_id] if task.snapshot_id else []),
            **_tag_columns(task.tags),
        )


def add_leftovers(columns: InventoryColumns, bucket: str, found: Iterable[BucketItem]) -> None:
    """Add objects and multipart uploads that publishing left in a bucket."""
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


def _tag_columns(tags: Mapping[str, str]) -> dict[str, str | None]:
    return {
        "image": tags.get(tagging.IMAGE),
        "digest": tags.get(tagging.DIGEST),
        "tags": json.dumps(tags, sort_keys=True, ensure_ascii=False),
    }
