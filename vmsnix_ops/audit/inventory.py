"""Every AMI, snapshot, import and leftover of any number of accounts, in one frame, with what uses each.

`scan` reads all regions of all accounts at once. What cannot be read (a region that is not enabled, an
account that refuses us, one missing permission) does not end it: it is kept in `Inventory.unread`, becomes a
finding, and makes the use of what stands there unknown.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, Literal, get_args

from vmsnix_ops import errors
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.audit import costs, rows
from vmsnix_ops.audit.joining import joined
from vmsnix_ops.audit.values import Inventory, Read, Unread
from vmsnix_ops.aws import buckets as leftovers
from vmsnix_ops.aws import references
from vmsnix_ops.aws import regions as where
from vmsnix_ops.aws.accounts import accounts as sessions_of
from vmsnix_ops.aws.buckets import errors_of
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.identity import REFUSED, not_enabled
from vmsnix_ops.aws.paging import Limit, items, limited
from vmsnix_ops.aws.references import Clients, References
from vmsnix_ops.aws.session import Client, calling, client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.progress import current
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import boto3
    import pyarrow as pa

    from vmsnix_ops.aws.accounts import Account
    from vmsnix_ops.settings import Settings

Thoroughness = Literal["auto", "yes", "no"]

REGIONS_AT_ONCE = 8
PAGE = 1000
DEADLINE_MINUTES = 180.0
LONGEST_MINUTES = 7 * 24 * 60
ONE_BY_ONE = 500
"""AMIs of a region up to which, by default, AWS is also asked about each one."""


@typed
def scan(
    *,
    regions: Iterable[str] = (),
    accounts: Iterable[str] = (),
    buckets: Iterable[str] = (),
    one_by_one: Thoroughness = "auto",
    deadline_minutes: float = DEADLINE_MINUTES,
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
        recipes of Image Builder name it. ``"auto"`` does so in regions with at most `ONE_BY_ONE` AMIs. There
        is no way to ask that of all at once, so elsewhere an AMI that nothing names is not called unused.
    deadline_minutes
        After so many minutes nothing more is asked; what was not read by then is told, as any other gap is.
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
    asked = where.asked(session, regions, home=settings.region)
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
    with shown as step, pool, _interruptible(limit, pool):  # which is told first, so that the pool can end
        turns = BoundedSemaphore(REGIONS_AT_ONCE + 1)

        def read(account: str, clients: Clients) -> tuple[Read, pa.Table]:
            try:
                columns = rows.Columns(run.run_id, now, account, clients.region)
                result = read_region(clients, columns, one_by_one, family)
                return result, columns.arrow()
            finally:
                step.advance(1)
                turns.release()

        jobs = []
        for account, its_session, region in places:
            # Sessions are not thread safe, so clients are made here; a few at once, because each costs a
            # megabyte and there may be thousands of places.
            turns.acquire()
            jobs.append(pool.submit(read, account, Clients.of(its_session, region, limit)))
        found = [job.result() for job in jobs]
    del jobs  # they hold every table
    own = next((one for one in members if one.session is session), None)
    wanted = tuple(dict.fromkeys(buckets)) or tuple(filter(None, [settings.bucket]))
    if own is not None and wanted:
        when = (run.run_id, now)
        with _interruptible(limit):
            found += [_bucket(session, name, settings, own.account, home, when, limit) for name in wanted]
    tables = [table for _, table in found]
    reads = [one for one, _ in found]
    found.clear()  # so that the join alone holds the tables, and can let them go
    return joined(reads, tables, unread, run, now, costs.Prices(settings.snapshot_prices))


def checked(settings: Settings, one_by_one: str, deadline_minutes: float) -> Limit:
    """Return the limit of a scan whose parameters can be right; raise before anything is read if not."""
    if one_by_one not in get_args(Thoroughness):
        raise errors.ParameterError(
            f"one_by_one cannot be {one_by_one!r}.", cure=f"Choose {', '.join(get_args(Thoroughness))}."
        )
    if not 0 < deadline_minutes <= LONGEST_MINUTES:
        raise errors.ParameterError(
            f"deadline_minutes cannot be {deadline_minutes!r}.",
            cure=f"Give more than 0 minutes, and at most {LONGEST_MINUTES}.",
        )
    for region in settings.snapshot_prices.keys() - {"default"}:
        try:
            where.named([region])
        except errors.RegionError as error:
            raise errors.SettingsError(
                f"The setting snapshot_prices names {region!r}, which is no region.",
                why=error.why,
                cure="Correct it, or leave it out: default holds for the regions that are not named.",
            ) from error
    cure = f"Scan fewer regions at once, or give more than {deadline_minutes:g} minutes (deadline_minutes)."
    return Limit(time.time() + 60 * deadline_minutes, cure=cure)


@contextmanager
def _interruptible(limit: Limit, pool: ThreadPoolExecutor | None = None) -> Iterator[None]:
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
                cure="Run it again: it begins anew.",
            ) from error
        raise


def _places(
    members: Iterable[Account], asked: tuple[str, ...], home: str
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
                regions = where.enabled(client(member.session, "ec2", home))
            except errors.AwsError as error:
                unread.append(Unread(member.account, "", "enabled regions", error))
                regions = (home,)
        places += [(member.account, member.session, region) for region in regions]
    return places, unread


@needs("ec2:DescribeSnapshots", "ec2:DescribeImages", "ec2:DescribeImportSnapshotTasks")
def read_region(
    clients: Clients,
    columns: rows.Columns,
    one_by_one: Thoroughness,
    family: frozenset[str] = frozenset(),
) -> Read:
    """Read one account and region, one source after the other.

    Parameters
    ----------
    clients
        Of the account and region.
    columns
        Where rows go.
    one_by_one
        As for `scan`.
    family
        All accounts that are scanned. What this one may launch of the others is looked for here, too.
    """
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
    public: set[str] | None = None
    own = {"OwnerIds": ["self"], "MaxResults": PAGE}
    with reading("public snapshots"):  # few, so one call
        listed = items(ec2, "describe_snapshots", "Snapshots", RestorableByUserIds=["all"], **own)
        public = {one["SnapshotId"] for one in listed}
    with reading("snapshots"):
        sizes = rows.snapshots(columns, items(ec2, "describe_snapshots", "Snapshots", **own), public)
    if (closed := _closed(unread)) is not None:
        return Read(account, region, References(region, {}), 0, {}, (closed,), closed=True)
    with reading("AMIs"):
        rows.images(
            columns,
            items(ec2, "describe_images", "Images", MaxResults=PAGE, Owners=["self"], **_HIDDEN),
            sizes,
            holders,
            launched,
        )
    with reading("snapshots"):
        # What was registered between the two lists is in one of them only.
        lost = [one for one in holders if one not in sizes]
        if lost and not any(one.source == "snapshots" for one in unread):
            rows.snapshots(columns, _by_id(ec2, "snapshot", lost, OwnerIds=["self"]))
    with reading("imports"):
        rows.import_tasks(
            columns, items(ec2, "describe_import_snapshot_tasks", "ImportSnapshotTasks", MaxResults=PAGE)
        )
    hurried = one_by_one == "no" or (one_by_one == "auto" and len(launched) > ONE_BY_ONE)
    guests: frozenset[str] = frozenset()
    if not hurried and family - {account}:
        with reading("AMIs of the other accounts"):
            theirs = {"Owners": sorted(family - {account}), "ExecutableUsers": ["self"]}
            shown = items(ec2, "describe_images", "Images", **theirs, **_HIDDEN)
            guests = frozenset(image["ImageId"] for image in shown)
    found = references.gather(clients, () if hurried else list(launched), guests=guests, launched=False)
    unread += [Unread(account, region, source, error) for source, error in found.unread.items()]
    strangers: dict[str, str] = {}
    with reading("AMIs of others"):
        others = [one for one in found.by_ami if one.startswith("ami-") and one not in launched]
        if not any(one.source == "AMIs" for one in unread):
            strangers = _owners(ec2, others)
    no_ami = [one for one in found.by_ami if not one.startswith(("ami-", "snap-"))]
    strangers |= dict.fromkeys(no_ami, "")
    return Read(
        account,
        region,
        references.with_launches(found, launched),
        len(launched),
        holders,
        tuple(unread),
        hurried and bool(launched),
        strangers,
        guests,
    )


def _closed(unread: list[Unread]) -> Unread | None:
    """Return why nothing of a region can be read, so that this is told once and not of every source."""
    for one in unread:
        if one.error.code in REFUSED:
            return replace(one, source="region", error=not_enabled(one.region, one.error.why))
        if isinstance(one.error, errors.DeadlineError):
            return replace(one, source="region")
    return None


_HIDDEN = {"IncludeDeprecated": True, "IncludeDisabled": True}
"""What `DescribeImages` leaves out unless it is asked for."""


def _by_id(ec2: Client, kind: Literal["image", "snapshot"], ids: list[str], **more: Any) -> Iterator[Any]:
    """Yield those AMIs or snapshots that there are; a filter, unlike a list of ids, forgives the others."""
    for start in range(0, len(ids), 200):  # AWS: values of a filter
        chosen = [{"Name": f"{kind}-id", "Values": ids[start : start + 200]}]
        yield from items(ec2, f"describe_{kind}s", f"{kind.capitalize()}s", Filters=chosen, **more)


def _owners(ec2: Client, ami_ids: list[str]) -> dict[str, str]:
    """Return the owner of each AMI that we may see; of those that do not exist an empty text."""
    owners = dict.fromkeys(ami_ids, "")
    shown = _by_id(ec2, "image", ami_ids, **_HIDDEN)
    return owners | {image["ImageId"]: image.get("OwnerId", "?") for image in shown}


def _bucket(
    session: boto3.Session,
    name: str,
    settings: Settings,
    account: str,
    home: str,
    when: tuple[str, datetime],
    limit: Limit,
) -> tuple[Read, pa.Table]:
    """Read what uploads left in one bucket."""
    region, unread = "", []
    columns = rows.Columns(*when, account, home)
    try:
        with errors_of(name, f"read the bucket {name}"):
            region = leftovers.region_of(limited(client(session, "s3", home, attempts=2), limit), name)
            s3 = limited(client(session, "s3", region, attempts=2), limit)
            columns.region = region
            for look in (leftovers.objects, leftovers.uploads):
                rows.leftovers(columns, name, look(s3, name, settings.key_prefix))
    except errors.AwsError as error:
        unread.append(Unread(account, region, f"bucket {name}", error, name))
    read = Read(account, region, References(region, {}), 0, {}, tuple(unread), bucket=name)
    return read, columns.arrow()
