"""Past runs, as the archive has them: list, find, and open their evidence.

The archive holds what can be opened and repeated; `vmsnix_ops.records.history` holds rows, which are what
questions over many runs are asked of.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import credentials, files
from vmsnix_ops.errors import ArchiveError, RecordsError, UnknownRunError, nearest
from vmsnix_ops.records import run_tables
from vmsnix_ops.records.result import parse, runs_row
from vmsnix_ops.records.run_context import NEW_RUN_ID
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.redaction import Redactor, remember, secret_values
from vmsnix_ops.runbooks.evidence import archive, writing
from vmsnix_ops.runbooks.evidence import archive as archives

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.records.tables import Tables
    from vmsnix_ops.settings import Settings


AT_ONCE = 16  # entries that are read from S3 side by side
RUNNING, LOST, UNREADABLE = "running", "lost", "unreadable"


def _runbook_of(run_id: str) -> str:
    """Return the runbook that a run ID names; empty for the ID of another program."""
    named = NEW_RUN_ID.fullmatch(run_id)
    return named["runbook"] if named else ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A run, as its ``result.json`` tells it.

    Attributes
    ----------
    run_id
        Its name.
    values
        The whole content of ``result.json``.
    status
        ``done``, ``failed``, ``partial``, ``cancelled``, ``running``; ``lost`` when its process is gone
        without a verdict; ``unreadable`` when its files cannot be read.
    """

    run_id: str
    values: Mapping[str, Any]
    status: str

    @property
    def runbook(self) -> str:
        """Name of its runbook."""
        return str(self.values.get("runbook") or _runbook_of(self.run_id))

    @property
    def parameters(self) -> Mapping[str, object]:
        """Every parameter with the value that it had."""
        given = self.values.get("parameters")
        return given if isinstance(given, dict) else {}

    @property
    def image(self) -> str:
        """The image that it was about, empty when about none."""
        return str(self.values.get("image") or self.parameters.get("image") or "")

    def fits(self, *, runbook: str = "", image: str = "", status: str = "", ami: str = "") -> bool:
        """Whether it is one of those that somebody looks for; an empty word lets everything pass."""
        return (
            runbook in ("", self.runbook)
            and status in ("", self.status)
            and ami in ("", self.values.get("ami_id"))
            and (image in ("", self.image) or self.image.endswith(f"#{image}"))
        )


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive, to be read.

    Attributes
    ----------
    place
        Local folder, or ``s3://bucket/prefix``.
    work
        Local folder in which runs work whose archive is on S3.
    environment
        Variables with which S3 is reached.
    """

    place: str
    work: Path
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def remote(self) -> bool:
        """Whether it is in a bucket."""
        return archive.is_remote(self.place)

    def ids(self) -> list[str]:
        """Return the ids of all runs, newest first; none when there is no archive yet.

        Raises
        ------
        ArchiveError
            When it cannot be read.
        """
        if self.remote:
            with self._explained():
                names = archive.folders(self.environment, self.place)
        else:
            try:
                names = [path.name for path in Path(self.place).iterdir()]
            except FileNotFoundError:
                names = []
            except OSError as error:
                raise ArchiveError(
                    f"Could not read the archive: {self.place}.",
                    why=f"{error.strerror}.",
                    fix="Correct its permissions, or use another with --archive.",
                ) from error
        return sorted((name for name in names if NEW_RUN_ID.fullmatch(name)), reverse=True)

    def entries(
        self, *, runbook: str = "", image: str = "", status: str = "", ami: str = "", last: int | None = None
    ) -> list[Entry]:
        """Return runs, newest first.

        Parameters
        ----------
        runbook, image, status, ami
            Only runs of this runbook, about this image, with this status, that made this AMI.
        last
            Only so many, the newest; all when left out.

        Raises
        ------
        ArchiveError
            When the archive cannot be read.
        """
        found = self._read_all([name for name in self.ids() if f"-{runbook}" in name])
        fitting = (one for one in found if one.fits(runbook=runbook, image=image, status=status, ami=ami))
        return list(islice(fitting, last))

    def find(self, word: str) -> Entry:
        """Return the run of that id, or the only one whose id begins or ends so.

        Raises
        ------
        UnknownRunError
            When there is none, which names the nearest, or several.
        ArchiveError
            When the archive cannot be read.
        """
        found = self._read(self.full_id(word))
        if found is None:
            raise self._unknown(word, self.ids())
        return found

    def full_id(self, word: str) -> str:
        """Return the id of a run as `find` does, also of one whose entry cannot be read.

        Raises
        ------
        UnknownRunError
            When there is none, which names the nearest, or several.
        ArchiveError
            When the archive cannot be read.
        """
        ids = self.ids()
        fitting = [name for name in ids if name == word] or [
            name for name in ids if word and (name.startswith(word) or name.endswith(f"-{word}"))
        ]
        if len(fitting) == 1:
            return fitting[0]
        if len(fitting) > 1:
            shown = ", ".join(fitting[:5]) + (", ..." if len(fitting) > 5 else "")
            raise UnknownRunError(
                f"{len(fitting)} runs start with {word!r}.",
                why=f"They are {shown}.",
                fix="Use more characters of the run ID.",
            )
        raise self._unknown(word, ids)

    def _unknown(self, word: str, ids: list[str]) -> UnknownRunError:
        return UnknownRunError(
            f"No run {word!r} in {self.place}.",
            why=nearest(word, ids) or ("" if ids else "The archive contains no runs yet."),
            fix="Run vmsnix runs to list them. To search elsewhere, use --archive or --sandbox.",
        )

    def fetch(self, entry: Entry, name: str) -> bytes:
        """Return a file of a run's evidence, after a look whether it still is what was kept.

        Parameters
        ----------
        entry
            The run.
        name
            Such as ``"report.html"``.

        Raises
        ------
        ArchiveError
            When it is not there, cannot be read, or is not what was kept.
        """
        kept = (entry.values.get("files") or {}).get(name)
        if not isinstance(kept, dict):
            raise ArchiveError(
                f"The run {entry.run_id} has no {name}.",
                why=f"It is {entry.status}." if entry.status in (RUNNING, LOST) else "",
                fix="Use its other files.",
            )
        place = str(kept["place"])
        content = self._content(place)
        if content is None:
            raise ArchiveError(
                f"The evidence no longer exists: {place}.",
                why="The run's result.json lists it, but the file is missing.",
                fix="Restore it, or find out who deleted it.",
            )
        if hashlib.sha256(content).hexdigest() != kept["sha256"]:
            raise ArchiveError(
                f"The evidence was changed: {place}.",
                why=f"Its SHA-256 is not {kept['sha256']}, which the run's result.json has.",
                fix="Do not use it as evidence.",
            )
        return content

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what the runs have kept of the tables: the table's name and a row.

        A run whose files cannot be read has none to give; the others still have.

        Raises
        ------
        ArchiveError
            When the archive cannot be read.
        """
        for entry in self._read_all(self.ids()):
            with suppress(KeyError, TypeError, ValueError):
                if entry.values.get("finished_at"):
                    yield "runs", runs_row(entry.values)
            with suppress(ArchiveError, OSError):
                for line in run_tables.lines_of(self._kept_rows(entry)):
                    yield from ((line["table"], row) for row in run_tables.rows_from(line))

    def _kept_rows(self, entry: Entry) -> bytes:
        local = (self.work if self.remote else Path(self.place)) / entry.run_id / run_tables.FILE_NAME
        if local.is_file():
            return files.read(local)
        return self.fetch(entry, run_tables.FILE_NAME)

    def _read_all(self, ids: list[str]) -> Iterator[Entry]:
        if not self.remote:
            yield from filter(None, map(self._listed, ids))
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for some in _batched(ids, AT_ONCE):  # no more than a few beyond those that are wanted
                yield from filter(None, pool.map(self._listed, some))

    def _listed(self, run_id: str) -> Entry | None:
        """Return a run as a list shows it: one that cannot be read hides no other."""
        try:
            return self._read(run_id)
        except ArchiveError as error:
            known = {"run_id": run_id, "runbook": _runbook_of(run_id), "error": str(error)}
            return Entry(run_id, known, UNREADABLE)

    def _read(self, run_id: str) -> Entry | None:
        """Return a run; ``None`` when what looks like one has no entry.

        Raises
        ------
        ArchiveError
            Its entry cannot be read, or is no whole ``result.json``.
        """
        local = (self.work if self.remote else Path(self.place)) / run_id
        place = str(local / archives.RESULT)
        content = _local(local / archives.RESULT)
        values = parse(content)
        if values.get("status") in (None, RUNNING) and self.remote:
            place = f"{self.place.rstrip('/')}/{run_id}/{archives.RESULT}"
            kept = self._content(place)
            content, values = (content, values) if kept is None and not values else (kept, parse(kept))
        if not values:
            if content is None:
                return None
            raise ArchiveError(
                f"The entry of the run {run_id} is damaged: {place}.",
                why=f"Its {len(content)} bytes are not a complete result.json.",
                fix=f"Restore it from the tables, on the machine of the run: vmsnix runs repair {run_id}",
            )
        status = str(values.get("status") or RUNNING)
        return Entry(run_id, values, LOST if status == RUNNING and self._is_lost(local, values) else status)

    def _is_lost(self, local: Path, values: Mapping[str, Any]) -> bool:
        """Whether a run without a verdict has no process any more; one on another machine may have."""
        here = not self.remote or local.exists() or values.get("host") == socket.gethostname()
        return here and not archives.is_alive(local)

    def _content(self, place: str) -> bytes | None:
        if not archive.is_remote(place):
            return _local(Path(place))
        with self._explained():
            return archive.get(self.environment, place)

    def _explained(self) -> Any:
        return archive.explained(
            f"Could not read the archive: {self.place}.",
            "Correct the bucket or the permissions, or use another with --archive.",
        )


def open_archive(
    settings: Settings, *, location: str = "", environment: Mapping[str, str] | None = None
) -> Archive:
    """Return the archive of these settings.

    Parameters
    ----------
    settings
        Name the archive.
    location
        Another archive: a local folder, or ``s3://bucket/prefix``.
    environment
        Variables with which S3 is reached; ``os.environ`` by default.
    """
    return Archive(
        location or settings.archive,
        settings.state / "runs",
        os.environ if environment is None else environment,
    )


def _local(path: Path) -> bytes | None:
    try:
        return files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArchiveError(
            f"Could not read the evidence: {path}.", why=f"{error.strerror}.", fix="Correct its permissions."
        ) from error


def _batched(ids: list[str], size: int) -> Iterator[list[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


# Complete the evidence of runs that could not save all of it: ``vmsnix runs repair``.


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
    named = NEW_RUN_ID.fullmatch(path.name)
    damaged = content is not None and not values and named is not None
    before = values.get("status") or LOST, values.get("problems") or []
    unsaved = run_tables.has_unsaved(path)
    remote = archive is not None and archive.remote  # whole runs leave no local folder
    if not (unsaved or damaged or before[1] or before[0] == RUNNING or remote):
        return None
    problems = run_tables.append_unsaved(path, tables)
    if damaged and named:
        try:
            (path / archives.RESULT).rename(path / DAMAGED)
        except OSError as error:
            problems.append(f"{path / archives.RESULT} is damaged and cannot be renamed: {error.strerror}.")
            return Repaired(path.name, LOST, tuple(problems))
        started = datetime.strptime(named["started"], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
        values = {"run_id": path.name, "runbook": named["runbook"], "started_at": started.isoformat()}
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
            problems.append(f"{path / archives.RESULT} has no valid start and end of the run: {error}.")
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
    credentials.watch_botocore()
    remember(*credentials.read_files(archive.environment))
    redactor = Redactor(secret_values(archive.environment))
    folder = archives.RunFolder(path.name, path, place, archive.environment, redactor)
    values["problems"] += folder.clean()  # a killed run has not searched what its last cell wrote
    values["files"] = dict(values.get("files") or {})
    writing.bring(folder, values, folder.names())
    if not values["problems"] and values["status"] == "done":
        values["exit_code"] = 0
    folder.write_json(archives.RESULT, values)
    folder.close(done=values["status"] == "done" and not values["problems"])
