"""The inventory of many accounts, each account and region read by a Dask task.

`vmsnix_ops.audit.inventory.scan` reads with threads of one process, which is enough until AWS answers faster
than one core can take in. Here the same functions read, on the workers of a Dask client, and what they found
is joined by the same function: what one account sees counts for the AMIs of another, whoever read it.

Each worker finds its own credentials and takes the roles for itself; nothing secret is sent.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.audit import costs, rows
from vmsnix_ops.audit.inventory import DEADLINE_MINUTES, Thoroughness, checked, read_region
from vmsnix_ops.audit.joining import joined
from vmsnix_ops.audit.values import Inventory, Unread
from vmsnix_ops.aws import regions as where
from vmsnix_ops.aws.accounts import accounts as sessions_of
from vmsnix_ops.aws.accounts import each_once
from vmsnix_ops.aws.identity import identity
from vmsnix_ops.aws.paging import Limit, Waits, insist
from vmsnix_ops.aws.references import Clients
from vmsnix_ops.aws.session import client as aws_client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3

    from vmsnix_ops.aws.accounts import Account


@dataclass(frozen=True, slots=True)
class Door:
    """The way into one account; plain words that any worker can follow.

    Attributes
    ----------
    entry
        Account id, or ARN of a role.
    role, external_id
        As in `vmsnix_ops.aws.accounts.accounts`.
    home
        Region whose STS is asked.
    """

    entry: str
    role: str
    external_id: str
    home: str

    def open(self) -> Account:
        """Return the account with its session, which this process keeps; who was refused asks again."""
        with _ONE_AT_A_TIME:
            if self not in _OPEN:
                found = _opened(self)
                if found.session is None:
                    return found
                _OPEN[self] = found
            return _OPEN[self]


@typed
def scan(
    client: Any,
    *,
    regions: Iterable[str] = (),
    accounts: Iterable[str] = (),
    one_by_one: Thoroughness = "auto",
    deadline_minutes: float = DEADLINE_MINUTES,
    session: boto3.Session | None = None,
) -> Inventory:
    """Return what `vmsnix_ops.audit.inventory.scan` returns, without the leftovers in buckets.

    Parameters
    ----------
    client
        ``distributed.Client``; `vmsnix_ops.runbooks.fleet.cluster.connected` makes one.
    regions, accounts, one_by_one, deadline_minutes
        As for `vmsnix_ops.audit.inventory.scan`.
    session
        Whose account it is by default; the workers use their own credentials.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A parameter or a setting cannot be right.
    vmsnix_ops.errors.RegionError
        There is no such region.
    vmsnix_ops.errors.CredentialsError
        There are no credentials. Other trouble is in `Inventory.unread`.
    """
    settings, session = load(), session or default_session()
    home = settings.region or session.region_name or "us-east-1"
    limit = checked(settings, one_by_one, deadline_minutes)
    asked = where.asked(session, regions, home=settings.region)
    run, now = current_run("audit-inventory"), datetime.now(UTC)
    entries = each_once(tuple(accounts) or settings.audit_accounts)
    if not entries:
        entries = each_once([insist(lambda: identity(session, home), Waits(limit)).account])
    doors = [Door(entry, settings.audit_role, settings.audit_external_id, home) for entry in entries.values()]
    listed = client.gather(client.map(regions_of, doors, [asked] * len(doors), pure=False))
    unread = [one for _, some in listed for one in some]
    places = [(door, region) for door, (chosen, _) in zip(doors, listed, strict=True) for region in chosen]
    tasks = (
        client.map(
            read_place,
            *zip(*places, strict=True),
            run_id=run.run_id,
            now=now,
            one_by_one=one_by_one,
            family=frozenset(entries),
            limit=(limit.until, limit.cure),
            pure=False,
        )
        if places
        else []
    )
    found = client.gather(tasks)
    reads, tables = [one for one, _ in found], [table for _, table in found]
    found.clear()  # so that the join alone holds the tables, and can let them go
    return joined(reads, tables, unread, run, now, costs.Prices(settings.snapshot_prices))


def regions_of(door: Door, asked: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Unread, ...]]:
    """Return the regions to read in an account, and what stands in the way."""
    member = door.open()
    if member.session is None:
        return (), (Unread(member.account, "", "account", member.error),) if member.error else ()
    if asked != (where.ALL,):
        return asked, ()
    try:
        with _ONE_AT_A_TIME:
            ec2 = aws_client(member.session, "ec2", door.home)
        return where.enabled(ec2), ()
    except errors.AwsError as error:
        return (door.home,), (Unread(member.account, "", "enabled regions", error),)


def read_place(
    door: Door,
    region: str,
    *,
    run_id: str,
    now: datetime,
    one_by_one: Thoroughness,
    family: frozenset[str],
    limit: tuple[float, str],
) -> Any:
    """Read one account and region, until the limit: its time, and how to have more of it."""
    member = door.open()
    if member.session is None:  # it was open a moment ago
        raise member.error or errors.CredentialsError(f"The account {member.account} cannot be looked into.")
    with _ONE_AT_A_TIME:  # sessions are not thread safe, clients are
        clients = Clients.of(member.session, region, Limit(limit[0], cure=limit[1]))
    columns = rows.Columns(run_id, now, member.account, region)
    result = read_region(clients, columns, one_by_one, family)
    return result, columns.arrow()


_ONE_AT_A_TIME = threading.Lock()
_OPEN: dict[Door, Account] = {}


def _opened(door: Door) -> Account:
    (found,) = sessions_of(
        (door.entry,),
        role=door.role,
        external_id=door.external_id,
        region=door.home,
        session=default_session(),
    )
    return found
