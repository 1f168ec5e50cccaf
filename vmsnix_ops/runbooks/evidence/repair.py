"""Complete the evidence of runs that could not save all of it: ``vmsnix runs repair``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import credentials, files
from vmsnix_ops.errors import ArchiveError, RecordsError
from vmsnix_ops.records import run_tables
from vmsnix_ops.records.result import parse, runs_row
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.redaction import Redactor, remember, secret_values
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import writing
from vmsnix_ops.runbooks.evidence.runs import LOST, RUN_ID, RUNNING, Archive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.records.tables import Tables
    from vmsnix_ops.settings import Settings


DAMAGED = "result.json.damaged"
ROW = {
    name: name
    for names in (
        "runbook status started_at finished_at seconds region account image ami_id image_name",
        "notebook report parameters error user host",
    )
    for name in names.split()
} | {"version": "package_version"}
"""Columns of ``runs``, and the keys of ``result.json`` that they are made of."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of one run.

    Attributes
    ----------
    run_id, status
        The run, and how it ended; ``"lost"`` when its process is gone without a verdict.
    problems
        What still cannot be saved, as sentences.
    """

    run_id: str
    status: str
    problems: tuple[str, ...]


def repair(archive: Archive, settings: Settings, *, run_id: str = "") -> Iterator[Repaired]:
    """Save what the runs on this machine could not save, and yield what became of each of them.

    Rows that did not reach the tables are appended and evidence that did not reach S3 is uploaded. A run
    whose entry has no verdict, or is damaged, gets what the tables have of it: a full disk may have kept the
    entry from being written and not the row. One that is not there either is marked ``lost``, with the AMI
    that it made. Safe to run twice; runs that are under way are left alone.

    Parameters
    ----------
    archive
        Whose runs.
    settings
        Name the tables.
    run_id
        Only this run; all by default.
    """
    tables = open_tables(settings)
    folders = [archive.work if archive.remote else Path(archive.place), settings.state / "runs"]
    for folder in dict.fromkeys(folders):
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in found:
            if run_id in ("", path.name) and not archives.is_alive(path):
                repaired = _repair(path, archive if folder is folders[0] else None, tables)
                if repaired is not None:
                    yield repaired


def _repair(path: Path, archive: Archive | None, tables: Tables) -> Repaired | None:
    """Repair the run in a folder; None when nothing was wrong with it."""
    try:
        content = files.read(path / archives.RESULT)
    except OSError:
        content = None
    values = parse(content)
    damaged = content is not None and not values and RUN_ID.fullmatch(path.name) is not None
    before = values.get("status") or LOST, values.get("problems") or []
    unsaved = run_tables.has_unsaved(path)
    remote = archive is not None and archive.remote  # whole runs leave no local folder
    if not (unsaved or damaged or before[1] or before[0] == RUNNING or remote):
        return None
    problems = run_tables.save_again(path, tables)
    if damaged:
        try:
            (path / archives.RESULT).rename(path / DAMAGED)
        except OSError as error:
            problems.append(f"{path / archives.RESULT} is damaged and cannot be renamed: {error.strerror}.")
            return Repaired(path.name, LOST, tuple(problems))
        started = datetime.strptime(path.name[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        values = {"run_id": path.name, "runbook": path.name[17:-7], "started_at": started.isoformat()}
    if not values:
        return Repaired(path.name, LOST, tuple(problems))
    if values.get("status") in (None, RUNNING, LOST):
        recorded = _recorded(tables, path.name)
        values |= {
            key: value
            for key, value in recorded.items()
            if not values.get(key) or key in ("status", "started_at")
        }
        values.setdefault("status", LOST)
        if values["status"] == RUNNING:
            values["status"] = LOST
    elif values.get("finished_at"):
        try:
            tables.append("runs", [runs_row(values)], once=path.name)
        except RecordsError as error:
            problems.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path / archives.RESULT} does not say when the run began and ended: {error}.")
    values["problems"] = problems
    if archive is not None:
        try:
            _archive(path, archive, values)
        except (ArchiveError, OSError) as error:
            problems.append(str(error))
    return Repaired(path.name, values["status"], tuple(problems))


def _recorded(tables: Tables, run_id: str) -> dict[str, Any]:
    """Return what the tables have of a run, as ``result.json`` has it; nothing where they have nothing.

    Only a row of ``runs`` has a verdict. One of ``amis`` tells that the AMI of a run without one exists.
    """
    found: dict[str, Any] = {}
    names = {"runs": ROW, "amis": {"ami_id": "ami_id", "name": "image_name", "image": "image"}}
    names["amis"] |= {name: name for name in ("region", "account", "snapshot_id", "digest")}
    for table, keys in names.items():
        try:
            frame = tables.read(table, columns=list(keys), where=[("run_id", "==", run_id)])
        except RecordsError:
            continue  # `vmsnix history rebuild` is named elsewhere
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        for name, value in {str(key): value for key, value in rows[-1].items()}.items() if rows else ():
            if value is not None and not found.get(keys[name]):
                found[keys[name]] = (
                    value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
                )
    if isinstance(found.get("parameters"), str):
        found["parameters"] = json.loads(found["parameters"])
    return found


def _archive(path: Path, archive: Archive, values: dict[str, Any]) -> None:
    """Bring every file to where the archive is, and write the entry anew."""
    place = archive.place.rstrip("/") if archive.remote else ""
    credentials.watch()
    remember(*credentials.of_files(archive.environment))
    redactor = Redactor(secret_values(archive.environment))
    folder = archives.RunFolder(path.name, path, place, archive.environment, redactor)
    values["problems"] += folder.clean()  # a killed run has not searched what its last cell wrote
    values["files"] = dict(values.get("files") or {})
    writing.bring(folder, values, folder.names())
    if not values["problems"] and values["status"] == "done":
        values["exit_code"] = 0
    folder.write_json(archives.RESULT, values)
    folder.close(done=values["status"] == "done" and not values["problems"])
