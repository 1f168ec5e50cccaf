"""Every AMI, snapshot, import and leftover of any number of accounts, in one frame, with what uses each.

`scan` reads all regions of all accounts at once. What cannot be read (a region that is not enabled, an
account that refuses us, one missing permission) does not end it: it is kept in `Inventory.unread`, becomes a
finding, and makes the use of what stands there unknown.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.audit import costs, rows
from vmsnix_ops.aws import leftovers, references
from vmsnix_ops.aws.accounts import accounts as sessions_of
from vmsnix_ops.aws.paging import items
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.references import Clients, Evidence, References
from vmsnix_ops.aws.session import Client, calling, client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.progress import current
from vmsnix_ops.records.run_context import RunContext, current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import boto3
    import pandas as pd
    import pyarrow as pa

    from vmsnix_ops.aws.accounts import Account
    from vmsnix_ops.settings import Settings

Thoroughness = Literal["auto", "yes", "no"]

REGIONS_AT_ONCE = 8
PAGE = 1000
ONE_BY_ONE = 500
"""AMIs of a region up to which, by default, AWS is also asked about each one."""


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
    """

    account: str
    region: str
    source: str
    error: errors.AwsError


@dataclass(frozen=True, slots=True)
class Pointer:
    """Something that names an AMI which this account does not own.

    Attributes
    ----------
    account, region, ami_id
        Where and what it names.
    evidence
        What names it.
    owner
        Whose AMI that is; empty when there is no such AMI, or none that we may see.
    """

    account: str
    region: str
    ami_id: str
    evidence: Evidence
    owner: str


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
        What names AMIs of other accounts, or AMIs that do not exist.
    hurried
        The accounts and regions that have so many AMIs that AWS was not asked about each one.
    """

    frame: pd.DataFrame = field(repr=False)
    run: RunContext = field(repr=False)
    scanned_at: datetime
    places: Mapping[tuple[str, str], int]
    unread: tuple[Unread, ...] = ()
    pointers: tuple[Pointer, ...] = ()
    hurried: tuple[tuple[str, str], ...] = ()

    @property
    def amis(self) -> pd.DataFrame:
        """The AMIs: the first rows of the frame, and so no copy of them."""
        return self.frame.iloc[: int((self.frame["kind"] == "ami").sum())]


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of one account and region."""

    account: str
    region: str
    found: References
    amis: int
    holders: Mapping[str, list[str]]
    unread: tuple[Unread, ...]
    hurried: bool
    strangers: Mapping[str, str]


def scan(
    *,
    regions: Iterable[str] = (),
    accounts: Iterable[str] = (),
    buckets: Iterable[str] = (),
    one_by_one: Thoroughness = "auto",
    session: boto3.Session | None = None,
) -> Inventory:
    """Return everything that these accounts own in these regions, and what uses it.

    Parameters
    ----------
    regions
        Where to look; by default the settings' region, else AWS's own. ``["all"]``: every region that is
        enabled, in each account.
    accounts
        Account ids or role ARNs (see `vmsnix_ops.aws.accounts.accounts`); by default those of the setting
        ``audit_accounts``, else the caller's own.
    buckets
        Buckets of uploads in the caller's own account; by default the settings' bucket.
    one_by_one
        Whether AWS is also asked about each single AMI: which other accounts may launch it, and which
        recipes of Image Builder name it. ``"auto"`` does so in regions with at most `ONE_BY_ONE` AMIs.
    session
        Whose account is scanned, and who takes the roles in others.

    Raises
    ------
    vmsnix_ops.errors.RegionError
        There is no such region.
    vmsnix_ops.errors.CredentialsError
        The caller has no credentials. Other trouble is in `Inventory.unread`.
    """
    settings, session = load(), session or default_session()
    run, now = current_run("audit-inventory"), datetime.now(UTC)
    home = settings.region or session.region_name or "us-east-1"
    asked = asked_regions(session, settings, tuple(regions))
    members = sessions_of(
        tuple(accounts) or settings.audit_accounts,
        role=settings.audit_role,
        external_id=settings.audit_external_id,
        region=home,
        session=session,
    )
    places, unread = _places(members, asked, home)
    shown = current().step("scan", total=len(places), unit="items")
    with shown as step, ThreadPoolExecutor(REGIONS_AT_ONCE, thread_name_prefix="scan") as pool:

        def read(place: tuple[str, Clients]) -> tuple[_Read, pa.Table]:
            columns = rows.Columns(run.run_id, now, place[0], place[1].region)
            result = read_region(place[1], columns, one_by_one)
            step.advance(1)
            return result, columns.arrow()

        found = list(pool.map(read, places))
    own = next((one for one in members if one.session is session), None)
    wanted = tuple(buckets) or tuple(filter(None, [settings.bucket]))
    if own is not None and wanted:
        found += [_bucket(session, name, settings, own.account, home, (run.run_id, now)) for name in wanted]
    tables = [table for _, table in found]
    reads = [one for one, _ in found]
    found.clear()  # so that the join alone holds the tables, and can let them go
    return joined(reads, tables, unread, run, now, costs.Prices(settings.snapshot_prices))


def asked_regions(session: boto3.Session, settings: Settings, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return the regions to look at, by name; ``("all",)`` stays as it is."""
    if asked == ("all",):
        return asked
    chosen = asked or tuple(filter(None, [settings.region or session.region_name]))
    if not chosen:
        raise errors.ParameterError(
            "No region was given.",
            cure="Give regions (or all), set region in vmsnix.toml, or set AWS_REGION.",
        )
    known = {r for p in session.get_available_partitions() for r in session.get_available_regions("ec2", p)}
    for region in chosen:
        if region not in known:
            raise errors.RegionError(f"There is no AWS region {region!r}.", why=errors.nearest(region, known))
    return tuple(dict.fromkeys(chosen))


@needs("ec2:DescribeRegions")
def enabled(ec2: Client) -> tuple[str, ...]:
    """Return the regions that are enabled for an account."""
    with calling("list the enabled regions"):
        answer = ec2.describe_regions()
    return tuple(sorted(region["RegionName"] for region in answer["Regions"]))


def _places(
    members: Iterable[Account], asked: tuple[str, ...], home: str
) -> tuple[list[tuple[str, Clients]], list[Unread]]:
    """Return account and clients of everything to read; sessions are not thread safe, clients are."""
    places, unread = [], []
    for member in members:
        if member.session is None:
            if member.error is not None:
                unread.append(Unread(member.account, "", "account", member.error))
            continue
        regions = asked
        if asked == ("all",):
            try:
                regions = enabled(client(member.session, "ec2", home))
            except errors.AwsError as error:
                unread.append(Unread(member.account, "", "enabled regions", error))
                regions = (home,)
        places += [(member.account, Clients.of(member.session, region)) for region in regions]
    return places, unread


@needs("ec2:DescribeSnapshots", "ec2:DescribeImages", "ec2:DescribeImportSnapshotTasks")
def read_region(clients: Clients, columns: rows.Columns, one_by_one: Thoroughness) -> _Read:
    """Read one account and region, one source after the other."""
    account, region, ec2 = columns.account, clients.region, clients.ec2
    unread: list[Unread] = []

    @contextmanager
    def reading(source: str) -> Iterator[None]:
        try:
            with calling(f"read the {source} of {region} in account {account}"):
                yield
        except errors.AwsError as error:
            unread.append(Unread(account, region, source, error))

    sizes: dict[str, tuple[int | None, int]] = {}
    holders: dict[str, list[str]] = {}
    launched: dict[str, str] = {}
    with reading("snapshots"):
        sizes = rows.snapshots(
            columns, items(ec2, "describe_snapshots", "Snapshots", OwnerIds=["self"], MaxResults=PAGE)
        )
    with reading("AMIs"):
        asked = {"Owners": ["self"], "IncludeDisabled": True, "IncludeDeprecated": True}
        rows.images(
            columns,
            items(ec2, "describe_images", "Images", MaxResults=PAGE, **asked),
            sizes,
            holders,
            launched,
        )
    with reading("imports"):
        rows.import_tasks(
            columns, items(ec2, "describe_import_snapshot_tasks", "ImportSnapshotTasks", MaxResults=PAGE)
        )
    hurried = one_by_one == "no" or (one_by_one == "auto" and len(launched) > ONE_BY_ONE)
    found = references.gather(clients, () if hurried else list(launched), launched=False)
    unread += [Unread(account, region, source, error) for source, error in found.unread.items()]
    strangers: dict[str, str] = {}
    with reading("AMIs of others"):
        others = [one for one in found.by_ami if one.startswith("ami-") and one not in launched]
        if not any(one.source == "AMIs" for one in unread):
            strangers = _owners(ec2, others)
    return _Read(
        account,
        region,
        references.with_launches(found, launched),
        len(launched),
        holders,
        tuple(unread),
        hurried and bool(launched),
        strangers,
    )


def _owners(ec2: Client, ami_ids: list[str]) -> dict[str, str]:
    """Return the owner of each AMI that we may see; of those that do not exist an empty text."""
    owners = dict.fromkeys(ami_ids, "")
    for start in range(0, len(ami_ids), 200):  # AWS: values of a filter
        chosen = [{"Name": "image-id", "Values": ami_ids[start : start + 200]}]
        shown = items(
            ec2, "describe_images", "Images", Filters=chosen, IncludeDeprecated=True, IncludeDisabled=True
        )
        owners |= {image["ImageId"]: image.get("OwnerId", "?") for image in shown}
    return owners


def _bucket(
    session: boto3.Session,
    name: str,
    settings: Settings,
    account: str,
    home: str,
    when: tuple[str, datetime],
) -> tuple[_Read, pa.Table]:
    """Read what uploads left in one bucket."""
    region, unread = home, []
    columns = rows.Columns(*when, account, region)
    try:
        with calling(f"read the bucket {name}"):
            region = leftovers.region_of(client(session, "s3", home, attempts=2), name)
            s3 = client(session, "s3", region, attempts=2)
            columns.region = region
            for look in (leftovers.objects, leftovers.uploads):
                rows.leftovers(columns, name, look(s3, name, settings.key_prefix))
    except errors.AwsError as error:
        unread.append(Unread(account, region, f"bucket {name}", error))
    nothing = References(region, {})
    read = _Read(account, region, nothing, 0, {}, tuple(unread), hurried=False, strangers={})
    return read, columns.arrow()


def joined(
    found: list[_Read],
    tables: list[pa.Table],
    unread: list[Unread],
    run: RunContext,
    now: datetime,
    prices: costs.Prices,
) -> Inventory:
    """Return one inventory of all that was read; what one account sees counts for the AMIs of another."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from vmsnix_ops.records import schemas
    from vmsnix_ops.records.frames import to_frame

    evidence: dict[tuple[str, str], list[Evidence]] = {}
    blind = {(one.account, one.region) for read in found for one in read.unread if one.source in _PROOF}
    for read in found:
        for ami_id, some in read.found.by_ami.items():
            known = evidence.setdefault((read.region, ami_id), [])
            known += [_seen_from(one, read.account) if ami_id in read.strangers else one for one in some]
    table = pa.concat_tables([schemas.INVENTORY.arrow().empty_table(), *tables])
    tables.clear()
    holders = {(read.region, key): held for read in found for key, held in read.holders.items()}
    used, proofs = _use(table, evidence, holders, blind, now)
    for name, values in (("referenced", used), ("evidence", proofs)):
        number, field_ = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(number, field_, pa.array(values, field_.type))
    order = [(name, "ascending") for name in ("kind", "created_at", "resource_id")]
    # Sorted in arrow, which copies once; what it was copied from goes before pandas sees it.
    table = table.take(pc.sort_indices(table, sort_keys=order))
    frame = to_frame(table)
    frame["monthly_usd"] = costs.monthly_usd(frame, prices)
    places: dict[tuple[str, str], int] = {}
    for read in found:
        places[read.account, read.region] = places.get((read.account, read.region), 0) + read.amis
    own = {
        (read.region, ami_id)
        for read in found
        for ami_id in read.found.by_ami
        if ami_id not in read.strangers
    }
    pointers = [
        Pointer(read.account, read.region, ami_id, one, owner)
        for read in found
        for ami_id, owner in read.strangers.items()
        if (read.region, ami_id) not in own
        for one in read.found.names(ami_id)
    ]
    return Inventory(
        frame,
        run,
        now,
        places,
        (*unread, *(one for read in found for one in read.unread)),
        tuple(pointers),
        tuple((read.account, read.region) for read in found if read.hurried),
    )


_PROOF = frozenset(
    {"instances", "launch templates", "Auto Scaling groups", "parameters", "image references"}
    | {"launch permissions", "AMIs"}
)
"""Sources without which nobody can say that an AMI is not used."""


def _seen_from(one: Evidence, account: str) -> Evidence:
    return Evidence(one.kind, one.id, ", ".join(filter(None, [one.detail, f"account {account}"])))


def _use(
    table: pa.Table,
    evidence: Mapping[tuple[str, str], list[Evidence]],
    holders: Mapping[tuple[str, str], list[str]],
    blind: set[tuple[str, str]],
    now: datetime,
) -> tuple[list[bool | None], list[str]]:
    """Return, for each row, whether it is used and the evidence as JSON."""
    used: list[bool | None] = []
    proofs: list[str] = []
    columns = [table.column(name).to_pylist() for name in ("kind", "account", "region", "resource_id")]
    for kind, account, region, resource_id in zip(*columns, strict=True):
        if kind == "ami":
            some = evidence.get((region, resource_id), [])
            used.append(references.judge(some, complete=(account, region) not in blind, now=now))
            proofs.append(json.dumps([[one.kind, one.id, one.detail] for one in some]) if some else "[]")
        elif kind in ("snapshot", "direct-upload"):
            held = holders.get((region, resource_id), [])
            some = evidence.get((region, resource_id), [])
            unknown = not held and (account, region) in blind
            used.append(None if unknown else bool(held or some))
            proofs.append(
                json.dumps([["ami", one, ""] for one in held] + [[s.kind, s.id, s.detail] for s in some])
            )
        else:
            used.append(None)
            proofs.append("[]")
    return used, proofs
