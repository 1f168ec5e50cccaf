"""Fill the table ``amis`` from AWS.

AWS has everything that a row contains, so anyone who may describe images can fill a lost or new table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.aws import images
from vmsnix_ops.aws.regions import check_regions, home_region
from vmsnix_ops.aws.session import client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.display import missing
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import boto3

DEREGISTERED = "deregistered"
OWN_COLUMNS = ("recorded_at", "source", "via")
"""Columns that do not come from AWS; a difference in them is not a change."""


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The result of a sync: regions that were read, AMIs that were found, and rows that were written."""

    regions: tuple[str, ...]
    found: int
    added: int  # AMIs that were not in the table
    changed: int  # AMIs that differ from their row
    deregistered: int  # AMIs that no longer exist


@check_arguments
def sync(
    *, regions: Iterable[str] = (), tables: Tables | None = None, session: boto3.Session | None = None
) -> SyncResult:
    """Write a row for every AMI that vmsnix published and whose latest row is missing or differs.

    Safe to run twice: the second run writes nothing. By default the region of the settings or of AWS is read.
    """
    settings, session = load(), session or default_session()
    chosen = check_regions(tuple(regions) or (home_region(session, settings.region),))
    tables = tables or open_tables(settings)
    known = {(str(row["ami_id"]), str(row["region"])): row for row in _latest(tables)}
    now = datetime.now(UTC)
    added, changed, deregistered, found = [], [], [], 0
    for region in chosen:
        amis = images.list_published_amis(client(session, "ec2", region))
        found += len(amis)
        for ami in amis:
            before = known.get((ami.ami_id, region))
            row = images.ami_row(
                ami, recorded_at=now, source="sync", via=before.get("via") if before else None
            )
            if before is None:
                added.append(row)
            elif _differs(before, row):
                changed.append(row)
        present = {ami.ami_id for ami in amis}
        deregistered += [
            {**row, "state": DEREGISTERED, "recorded_at": now, "source": "sync"}
            for (ami_id, where), row in known.items()
            if where == region and ami_id not in present and row.get("state") != DEREGISTERED
        ]
    if added or changed or deregistered:
        tables.append("amis", [*added, *changed, *deregistered])
    return SyncResult(chosen, found, len(added), len(changed), len(deregistered))


def _latest(tables: Tables) -> Iterator[dict[str, Any]]:
    """Yield the latest row of each AMI, without empty values."""
    for row in history.amis(tables).to_dict("records"):
        yield {str(name): value for name, value in row.items() if not missing(value)}


def _differs(before: dict[str, Any], row: dict[str, Any]) -> bool:
    return any(_plain(before.get(name)) != _plain(row[name]) for name in row if name not in OWN_COLUMNS)


def _plain(value: Any) -> Any:
    """Return a value from a frame as it comes from AWS: tags are JSON text in a frame."""
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value.item() if hasattr(value, "item") else value
