"""The tables of one run, with a copy of each row in the folder of the run.

A damaged or unreachable table must not stop a publish, and no row may be lost. So `RunTables.append` writes
the rows to ``rows.jsonl`` in the folder of the run, then to the table, then a mark that they are saved.
`append_unsaved` appends rows without a mark; the runner calls it at the end of a run, and ``vmsnix runs
repair`` later. The file is archived with the run, and ``vmsnix history rebuild`` restores tables from it
(`vmsnix_ops.records.rebuild`).
"""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import RecordsError, SchemaError
from vmsnix_ops.records import schemas
from vmsnix_ops.records.frames import to_frame
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa

    from vmsnix_ops.records.frames import Rows
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.tables import Where
    from vmsnix_ops.settings import Settings

FILE_NAME = "rows.jsonl"

KEPT = ("runs", "steps", "amis", "promotions", "proofs", "retirements")
"""Tables whose rows are copied to the run's folder; the others are large and can be recreated."""


class RunTables(Tables):
    """The tables of one run, whose folder gets the copies.

    `problems` contains the errors of writes that were not raised, as sentences.
    """

    def __init__(self, settings: Settings, run: RunContext) -> None:
        super().__init__(settings.history, region=settings.region)
        self.run = run
        self.problems: dict[str, None] = {}

    def append(self, table: str, rows: Rows, *, once: str | None = None, clean: bool = False) -> None:
        """Append rows to a table as `Tables.append` does, after a copy to the run's folder.

        Errors of tables that are not in `KEPT` are collected in `problems`: their rows only save later work.
        """
        data = self._checked(table, rows, clean=clean)
        if data.num_rows == 0:
            return
        once = once or f"{self.run.run_id}/{uuid.uuid4().hex}"
        path = self.run.folder / FILE_NAME
        kept = table in KEPT and _write(path, {"table": table, "once": once, "rows": _plain(data)})
        try:
            super().append(table, data, once=once, clean=True)
        except RecordsError as error:
            if table in KEPT:
                raise
            self.problems[str(error)] = None
        if kept:
            _write(path, {"saved": once})

    def write_object(self, name: str, content: bytes) -> None:
        """Write a file as `Tables.write_object` does. An error is collected in `problems`, not raised."""
        try:
            super().write_object(name, content)
        except RecordsError as error:
            self.problems[str(error)] = None

    def read_or_empty(
        self, table: str, *, columns: Sequence[str] | None = None, where: Where | None = None
    ) -> pd.DataFrame:
        """Return rows as `read` does; no rows if the table cannot be read.

        Use it only for information or to save work. For a decision about a resource, use `read`.
        """
        try:
            return self.read(table, columns=columns, where=where)
        except RecordsError:
            import pyarrow as pa

            schema = schemas.schema(table)
            arrow = schema.arrow()
            return to_frame(pa.schema([arrow.field(name) for name in columns or schema.names]).empty_table())


def lines_of(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the lines with rows of a ``rows.jsonl``, without the marks and without incomplete lines."""
    return (line for line in _lines(content) if "table" in line)


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n"):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(found, dict):
            continue
        if isinstance(found.get("saved"), str):
            yield {"saved": found["saved"]}
        elif (
            found.get("table") in KEPT and isinstance(found.get("once"), str) and _are_rows(found.get("rows"))
        ):
            yield found


def _are_rows(rows: object) -> bool:
    """Return whether a value is a list of mappings."""
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def append_unsaved(folder: Path, tables: Tables) -> list[str]:
    """Append the rows of a run that are not saved, and return the remaining problems as sentences.

    Safe to run twice: a table accepts each append once, by its name.
    """
    path, problems = folder / FILE_NAME, {}
    try:
        lines = list(_lines(files.read(path)))
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"The rows of the run cannot be read from {path}: {error.strerror}."]
    saved = {line["saved"] for line in lines if "saved" in line}
    for line in lines:
        if "table" not in line or line["once"] in saved or line["table"] in problems:
            continue
        try:
            tables.append(line["table"], rows_from(line), once=line["once"])
        except SchemaError as error:  # the line is edited or of another version; other lines may be valid
            problems[line["once"]] = str(error)
        except RecordsError as error:
            problems[line["table"]] = str(error)
        else:
            _write(path, {"saved": line["once"]})
    return list(problems.values())


def has_unsaved(folder: Path) -> bool:
    """Return whether a run has unsaved rows; false if its folder cannot be read."""
    try:
        lines = list(_lines(files.read(folder / FILE_NAME)))
    except OSError:
        return False
    return bool({line["once"] for line in lines if "table" in line} - {line.get("saved") for line in lines})


def rows_from(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a line with parsed times, and without columns that are not in the schema."""
    schema = schemas.schema(line["table"])

    def moment(value: Any) -> Any:
        try:
            return datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return value  # the schema refuses it

    times = {column.name for column in schema.columns if column.kind == "time"}
    return [
        {
            name: moment(value) if name in times and value else value
            for name, value in row.items()
            if name in schema.names
        }
        for row in line["rows"]
    ]


def _plain(data: pa.Table) -> list[dict[str, Any]]:
    return [
        {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in row.items()
            if value is not None
        }
        for row in data.to_pylist()
    ]


def _write(path: Path, line: Mapping[str, Any]) -> bool:
    """Append a line, which must not contain secrets; return whether it was written."""
    try:
        files.make_folder(path.parent)
        files.append_line(path, json.dumps(line, ensure_ascii=False), clean=True)
    except OSError:
        return False
    return True
