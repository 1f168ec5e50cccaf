"""Store scans in the table ``inventory``, and find what changed since the last one.

Each account and region, and each bucket, is compared with the last scan that read it completely. So a region
that could not be read has no deleted AMIs, and a scan of one region reports no changes of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from vmsnix_ops.audit.findings import as_text
from vmsnix_ops.display import missing
from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.records import schemas

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import pyarrow as pa

    from vmsnix_ops.audit.inventory import Inventory
    from vmsnix_ops.records.tables import Tables

IN_BUCKETS = ("object", "multipart-upload")
"""Kinds of resources in a bucket."""

IDENTITY = ["account", "region", "kind", "resource_id"]
COMPARED = (
    "state",
    "name",
    "public",
    "encrypted",
    "referenced",
    "deprecated_at",
    "size_gib",
    "imds_support",
    "tags",
)
"""Columns whose changes are reported. References and costs follow from others, or change every day."""

COLUMNS: dict[str, str] = {
    "change": "added, deleted or changed",
    "account": "AWS account ID, 12 digits",
    "region": "AWS region",
    "kind": "kind of the resource, as in the inventory",
    "resource_id": "identifier of the resource",
    "name": "name of the resource",
    "what": "changed columns with their values before and now",
    "monthly_usd": "cost now, or when it was last read, USD per month",
}
"""Columns of the changes and their meaning."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since the last scan."""

    frame: pd.DataFrame = field(repr=False)  # columns as in COLUMNS
    # The time of the last scan of each account and region; for a bucket, the region is s3:// and its name.
    since: Mapping[tuple[str, str], datetime]
    nothing: str = "No earlier scan to compare with."

    @classmethod
    def none(cls, nothing: str = nothing) -> Changes:
        """Return the changes if there is nothing to compare with."""
        import pandas as pd

        return cls(pd.DataFrame(columns=list(COLUMNS)), {}, nothing)

    def count(self, change: str) -> int:
        """Return how many resources were ``added``, ``deleted`` or ``changed``."""
        return int((self.frame["change"] == change).sum())

    def __str__(self) -> str:
        if not self.since:
            return self.nothing
        oldest = min(self.since.values())
        counts = ", ".join(f"{self.count(word)} {word}" for word in ("added", "deleted", "changed"))
        return f"Since {oldest:%Y-%m-%d %H:%M} UTC: {counts}."


def store(inventory: Inventory, tables: Tables, findings: pd.DataFrame | None = None) -> None:
    """Store a scan in the table ``inventory``, and its findings in ``findings``.

    Safe to run twice: a run stores its first scan only.

    There is also a row for every account and region and every bucket that was read. So the next scan can
    distinguish one without resources from one that was not read.
    """
    import pyarrow as pa

    schema = schemas.INVENTORY.arrow()
    whole = pa.Table.from_pandas(inventory.frame, schema=schema, preserve_index=False)
    incomplete = _incomplete(inventory)
    read = [(account, region, "region", region) for account, region in inventory.regions]
    read += [(account, region, "bucket", name) for (account, name), region in inventory.buckets.items()]
    places = [
        {
            "run_id": inventory.run.run_id,
            "scanned_at": inventory.scanned_at,
            "account": account,
            "region": region,
            "kind": kind,
            "resource_id": name,
            "state": "read in part" if (account, _place(kind, name)) in incomplete else "read",
        }
        for account, region, kind, name in read
    ]
    whole = pa.concat_tables([whole, pa.Table.from_pylist(places, schema=schema)])
    run_id = inventory.run.run_id
    tables.append("inventory", whole, once=f"{run_id}/inventory")
    if findings is not None:
        tables.append("findings", _findings_table(inventory, findings), once=f"{run_id}/findings")


def _findings_table(inventory: Inventory, findings: pd.DataFrame) -> pa.Table:
    """Return findings as rows of the table ``findings``, each with the cost basis of its resource."""
    import pyarrow as pa

    basis = inventory.frame.set_index(IDENTITY)["cost_basis"]
    basis = basis[~basis.index.duplicated()]
    rows = as_text(findings).assign(
        run_id=inventory.run.run_id,
        scanned_at=inventory.scanned_at,
        endpoint=endpoint_kind(),
        acknowledged=findings["acknowledged_until"].notna(),
        cost_basis=findings[IDENTITY].join(basis, on=IDENTITY)["cost_basis"],
    )
    schema = schemas.FINDINGS.arrow()
    rows = rows.reindex(columns=schema.names)
    return pa.Table.from_pandas(rows, schema=schema, preserve_index=False)


def _place(kind: str, name: str) -> str:
    return f"s3://{name}" if kind == "bucket" else name


def _incomplete(inventory: Inventory) -> set[tuple[str, str]]:
    return {
        (one.account, _place("bucket", one.bucket) if one.bucket else one.region) for one in inventory.unread
    }


def since_last(inventory: Inventory, tables: Tables) -> Changes:
    """Return what changed since the last scan, in every region and bucket that both scans read completely.

    The current scan may be stored already.
    """
    import pandas as pd

    read = [*inventory.regions, *((account, f"s3://{name}") for account, name in inventory.buckets)]
    incomplete = _incomplete(inventory)
    places = [place for place in read if place not in incomplete]
    before = _before(inventory, places, tables) if places else {}
    if not before:
        return Changes.none()
    columns = [*IDENTITY, *COMPARED, "monthly_usd"]
    then = _rows_of(before, tables, columns)
    keys = _keys(inventory.frame)
    now = inventory.frame.loc[keys.isin({" ".join(place) for place in before}), columns]
    if now.empty and then.empty:  # pandas cannot join two frames of no text
        return Changes(pd.DataFrame(columns=list(COLUMNS)), before)
    both = now.merge(then, on=IDENTITY, how="outer", suffixes=("", "_then"), indicator=True)
    what = pd.Series("", index=both.index, dtype="str")
    present = both["_merge"] == "both"
    for name in COMPARED:
        new, old = _text(both[name]), _text(both[f"{name}_then"])
        differs = present & (new != old)
        what = what.where(~differs, what + f"{name}: " + old + " → " + new + "; ")
    words = {"left_only": "added", "right_only": "deleted", "both": "changed"}
    both["change"] = both["_merge"].astype("str").map(words)
    both["what"] = what.str.removesuffix("; ")
    deleted = both["change"] == "deleted"
    for name in ("name", "monthly_usd"):
        both[name] = both[name].where(~deleted, both[f"{name}_then"])
    changed = both[~present | (both["what"] != "")]
    frame = changed[list(COLUMNS)].sort_values(["change", *IDENTITY], ignore_index=True)
    return Changes(frame, before)


def _before(
    inventory: Inventory, places: list[tuple[str, str]], tables: Tables
) -> dict[tuple[str, str], datetime]:
    """Return the time of the last complete scan of each place before this one."""
    where = [
        ("kind", "in", ["region", "bucket"]),
        ("state", "==", "read"),
        ("account", "in", sorted({account for account, _ in places})),
        ("scanned_at", "<", inventory.scanned_at),
        ("run_id", "!=", inventory.run.run_id),  # a cell that is executed again finds the same changes
    ]
    columns = ["account", "kind", "resource_id", "scanned_at"]
    earlier = tables.read("inventory", columns=columns, where=where)
    names = earlier["resource_id"].where(earlier["kind"] != "bucket", "s3://" + earlier["resource_id"])
    last = earlier.groupby(["account", names])["scanned_at"].max()
    return {place: last[place].to_pydatetime() for place in places if place in last.index}


def _rows_of(before: Mapping[tuple[str, str], datetime], tables: Tables, columns: list[str]) -> pd.DataFrame:
    """Return the rows of the last scan of each place."""
    where = [
        ("scanned_at", "in", sorted(set(before.values()))),
        ("account", "in", sorted({account for account, _ in before})),
        ("kind", "not in", ["region", "bucket"]),
    ]
    rows = tables.read("inventory", columns=["scanned_at", "source", *columns], where=where)
    moments = _keys(rows).map({" ".join(place): moment for place, moment in before.items()})
    return rows.loc[rows["scanned_at"] == moments, columns]


def _keys(rows: pd.DataFrame) -> pd.Series[str]:
    """Return account and place of each row: its region, or its bucket."""
    bucket = rows["source"].str.extract(r"^(s3://[^/]+)", expand=False)
    place = rows["region"].where(~rows["kind"].isin(IN_BUCKETS), bucket).fillna("")
    return rows["account"].str.cat(place, sep=" ")


def _text(column: pd.Series[str]) -> pd.Series[str]:
    return column.astype("object").map(_word).astype("str")


def _word(value: object) -> str:
    if missing(value):
        return "nothing"
    return f"{value:%Y-%m-%d}" if isinstance(value, datetime) else str(value) or "nothing"
