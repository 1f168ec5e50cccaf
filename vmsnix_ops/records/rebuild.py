"""Rebuild a damaged table from its readable files and from the rows that runs have kept.

Tables are append-only, so every readable data file contains valid rows, also without valid commits. Lost rows
come from the copies in the runs' folders (`vmsnix_ops.records.run_tables`) and from the results of runs. The
damaged table is kept beside the new one.
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
    "proofs": ("run_id", "region", "ami_id"),
    "retirements": ("run_id", "region", "resource_id", "action", "done_at"),
}
"""Columns that identify a row; all columns for other tables."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The result of rebuilding one table."""

    table: str
    read: int  # number of rows from the table's own files
    added: int  # number of rows from the copies of runs
    filled: int  # number of rows of older versions that got an endpoint or an account
    unreadable: int  # number of data files
    kept_as: str  # folder with the old table; empty if there was none


def rebuild(
    tables: Tables,
    table: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    runs: Iterable[Mapping[str, Any]] = (),
    endpoint: str = "",
) -> Rebuilt:
    """Rebuild a table from its readable files and the copies of runs, and replace the old one.

    Safe to run twice, and after a crash: the old table is moved only when the new one is complete. On S3 no
    run should write to the table during the rebuild.

    `rows` are the copies of runs; rows that the table contains are not added again. Rows of older versions
    get the endpoint and the account of their run from `runs`, the rows of that table; those of an unknown run
    get `endpoint`.
    """
    import pyarrow as pa

    schema = schemas.schema(table)
    key = KEYS.get(table, schema.names)
    with tables.locked_files(table) as (files, old):
        folders = [*([table] if old else ()), *_moved(files, table)]
        salvaged = [_salvage(files, schema, folder) for folder in folders]
        found = [data for some, _ in salvaged for data in some]
        unreadable = sum(number for _, number in salvaged)
        own = pa.concat_tables([*found, schema.arrow().empty_table()])
        own = own.filter(pa.array(_new(own), pa.bool_()))
        origins = {row["run_id"]: row for row in runs}
        own, filled = _filled(own, origins, endpoint)
        kept, _ = _filled(to_arrow(schema, list(rows)), origins, endpoint)
        more = kept.filter(pa.array(_missing(kept, own, key), pa.bool_()))
        moment = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        tables.replace(files, table, pa.concat_tables([own, more]), moment)
    return Rebuilt(
        table, own.num_rows, more.num_rows, filled, unreadable, f"{table}.damaged-{moment}" if old else ""
    )


def _filled(data: pa.Table, origins: Mapping[str, Mapping[str, Any]], endpoint: str) -> tuple[pa.Table, int]:
    """Return rows with the endpoint and the account of their run, and the number of changed rows."""
    import pyarrow as pa

    changed: set[int] = set()
    unknown = {"endpoint": endpoint or None}
    for name in ("endpoint", "account"):
        if name not in data.column_names or "run_id" not in data.column_names:
            continue
        values = data.column(name).to_pylist()
        for place, run_id in enumerate(data.column("run_id").to_pylist()):
            known = origins.get(run_id, {}).get(name) or unknown.get(name)
            if values[place] is None and known:
                values[place] = known
                changed.add(place)
        number = data.schema.get_field_index(name)
        data = data.set_column(number, data.schema.field(number), pa.array(values, pa.string()))
    return data, len(changed)


def _moved(files: pa_fs.FileSystem, table: str) -> list[str]:
    """Return the folders of a rebuild that was killed between its moves, when the table has no commit."""
    import pyarrow.fs as pa_fs

    log = files.get_file_info(pa_fs.FileSelector(f"{table}/_delta_log", allow_not_found=True))
    if any(info.type == pa_fs.FileType.File for info in log):
        return []
    found = files.get_file_info(pa_fs.FileSelector("", allow_not_found=True))
    names = (f"{table}.new-", f"{table}.damaged-")
    return sorted(info.base_name for info in found if info.base_name.startswith(names))


def _salvage(files: pa_fs.FileSystem, schema: Schema, folder: str) -> tuple[list[pa.Table], int]:
    """Return the rows of each readable data file, and the number of unreadable files."""
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
            found.append(_with_schema(data, schema))
        except (pa.ArrowException, OSError, ValueError):
            unreadable += 1
    return found, unreadable


def _with_schema(data: pa.Table, schema: Schema) -> pa.Table:
    """Return the rows of a data file with the columns of the schema; missing ones are empty."""
    import pyarrow as pa

    arrays = [
        data.column(field.name).cast(field.type)
        if field.name in data.column_names
        else pa.nulls(data.num_rows, field.type)
        for field in schema.arrow()
    ]
    return pa.Table.from_arrays(arrays, schema=schema.arrow())


def _new(data: pa.Table) -> list[bool]:
    """Return for each row whether it is the first of its value: compaction copies rows to other files."""
    new, seen = [], set()
    for row in data.to_pylist():
        text = repr(row)  # NaN is equal to NaN in this text
        new.append(text not in seen)
        seen.add(text)
    return new


def _missing(kept: pa.Table, own: pa.Table, key: tuple[str, ...]) -> list[bool]:
    """Return for each kept row whether the table does not contain it.

    Several rows can have the same key. Then the number of missing rows is the difference.
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


def valid_rows(table: str, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the valid rows of a table, without edited rows and those of another version."""
    from vmsnix_ops.errors import SchemaError

    schema, fitting = schemas.schema(table), []
    for row in rows:
        with suppress(SchemaError):
            to_arrow(schema, [row])
            fitting.append(row)
    return fitting
