"""Make a damaged table anew: from what can still be read of it, and from rows that runs have kept.

Tables are append-only, so every data file that can be read holds true rows, whichever commit named it. Rows
that runs kept (`vmsnix_ops.records.run_tables`) and the results of runs fill in what is lost. The damaged
table is kept beside the new one until somebody deletes it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.records import schemas
from vmsnix_ops.records.frames import to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa
    import pyarrow.fs as pa_fs

    from vmsnix_ops.records.schemas import Schema
    from vmsnix_ops.records.tables import Tables

KEYS: dict[str, tuple[str, ...]] = {
    "runs": ("run_id",),
    "steps": ("run_id", "step", "region", "started_at"),
    "amis": ("ami_id", "region", "recorded_at"),
    "promotions": ("run_id", "region", "ami_id", "channel", "promoted_at"),
    "retirements": ("run_id", "region", "resource_id", "action", "done_at"),
}
"""The columns by which a row that a run has kept is found in the table; all where it is not listed."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one table.

    Attributes
    ----------
    table
        Its name.
    read, added
        Rows that could be read from the table itself, and rows that only runs had kept.
    unreadable
        Data files that could not be read.
    kept_as
        Name of the folder beside the new table that holds the old one; empty when there was none.
    """

    table: str
    read: int
    added: int
    unreadable: int
    kept_as: str


def rebuild(tables: Tables, table: str, rows: Iterable[Mapping[str, Any]]) -> Rebuilt:
    """Make a table anew and put it in the place of the old one.

    Safe to run twice, and after a crash: the old table is moved away only when the new one is whole. On S3
    no run should write to the table meanwhile.

    Parameters
    ----------
    tables
        Where it is.
    table
        Its name.
    rows
        What runs have kept of it; rows that the table has are not added twice.

    Raises
    ------
    vmsnix_ops.errors.RecordsError
        The place cannot be read or written.
    """
    import pyarrow as pa

    schema = schemas.schema(table)
    key = KEYS.get(table, schema.names)
    with tables.replacing(table) as (files, old):
        folders = [*([table] if old else ()), *_moved(files, table)]
        salvaged = [_salvage(files, schema, folder) for folder in folders]
        found = [data for some, _ in salvaged for data in some]
        unreadable = sum(number for _, number in salvaged)
        own = pa.concat_tables([*found, schema.arrow().empty_table()])
        own = own.filter(pa.array(_new(own), pa.bool_()))
        kept = to_arrow(schema, list(rows))
        more = kept.filter(pa.array(_missing(kept, own, key), pa.bool_()))
        moment = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        tables.put_in_place(files, table, pa.concat_tables([own, more]), moment)
    return Rebuilt(table, own.num_rows, more.num_rows, unreadable, f"{table}.damaged-{moment}" if old else "")


def _moved(files: pa_fs.FileSystem, table: str) -> list[str]:
    """Return the folders that rebuilds have left beside a table, when one was killed between its moves.

    Then the table has no commit.
    """
    import pyarrow.fs as pa_fs

    log = files.get_file_info(pa_fs.FileSelector(f"{table}/_delta_log", allow_not_found=True))
    if any(info.type == pa_fs.FileType.File for info in log):
        return []
    found = files.get_file_info(pa_fs.FileSelector("", allow_not_found=True))
    names = (f"{table}.new-", f"{table}.damaged-")
    return sorted(info.base_name for info in found if info.base_name.startswith(names))


def _salvage(files: pa_fs.FileSystem, schema: Schema, folder: str) -> tuple[list[pa.Table], int]:
    """Return the rows of every data file that can be read, and how many cannot."""
    import pyarrow as pa
    import pyarrow.fs as pa_fs
    import pyarrow.parquet as pq

    found, unreadable = [], 0
    if files.get_file_info(folder).type == pa_fs.FileType.File:
        return [], 1
    for info in files.get_file_info(pa_fs.FileSelector(folder, recursive=True)):
        if info.type != pa_fs.FileType.File or "/_delta_log/" in info.path or info.extension != "parquet":
            continue
        try:
            data = pq.ParquetFile(files.open_input_file(info.path)).read()
            found.append(_fitted(data, schema))
        except (pa.ArrowException, OSError, ValueError):
            unreadable += 1
    return found, unreadable


def _fitted(data: pa.Table, schema: Schema) -> pa.Table:
    """Return a data file's rows in today's columns: one that it lacks is empty."""
    import pyarrow as pa

    arrays = [
        data.column(field.name).cast(field.type)
        if field.name in data.column_names
        else pa.nulls(data.num_rows, field.type)
        for field in schema.arrow()
    ]
    return pa.Table.from_arrays(arrays, schema=schema.arrow())


def _new(data: pa.Table) -> list[bool]:
    """Return for every row whether none before it is the same: compacting copies rows to another file."""
    new, seen = [], set()
    for row in data.to_pylist():
        text = repr(row)  # in which one missing number is like another
        new.append(text not in seen)
        seen.add(text)
    return new


def _missing(kept: pa.Table, own: pa.Table, key: tuple[str, ...]) -> list[bool]:
    """Return for every row that runs have kept whether the table lacks it.

    Several rows can have one key. The table lacks as many of them as runs have kept more than it has.
    """

    def key_of(row: Mapping[str, Any]) -> str:
        return repr([row[name] for name in key])

    rows = own.to_pylist()
    there = {repr(row) for row in rows}
    candidates = list(zip(kept.to_pylist(), _new(kept), strict=True))
    lacking = Counter(key_of(row) for row, new in candidates if new)
    lacking.subtract(map(key_of, rows))
    missing = []
    for row, new in candidates:
        lacks = new and repr(row) not in there and lacking[key_of(row)] > 0
        lacking[key_of(row)] -= lacks
        missing.append(lacks)
    return missing


def rows_that_fit(table: str, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that fit a table; what somebody edited or another version wrote is left out."""
    from vmsnix_ops.errors import SchemaError

    schema, fitting = schemas.schema(table), []
    for row in rows:
        with suppress(SchemaError):
            to_arrow(schema, [row])
            fitting.append(row)
    return fitting
