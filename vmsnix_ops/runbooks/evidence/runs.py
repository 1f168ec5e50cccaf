"""Past runs in the archive: list them, find one, open its evidence, repair it.

The archive contains runs to open and to repeat. For queries over many runs, use the tables
(`vmsnix_ops.records.history`).
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
from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.errors import ArchiveError, RecordsError, UnknownRunError, nearest
from vmsnix_ops.records import run_tables, schemas
from vmsnix_ops.records.result import once_of, parse, runs_row
from vmsnix_ops.records.run_context import NEW_RUN_ID
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.redaction import Redactor, remember, secret_values
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import chain, writing
from vmsnix_ops.runbooks.execution.status import PARTIAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.records.tables import Tables
    from vmsnix_ops.settings import Settings

PARALLEL_READS = 16  # entries that are read from S3 at the same time
RUNNING, LOST, UNREADABLE = "running", "lost", "unreadable"


def _runbook_of(run_id: str) -> str:
    """Return the runbook in a run ID; empty for the ID of another program."""
    match = NEW_RUN_ID.fullmatch(run_id)
    return match["runbook"] if match else ""


def _first_values(run_id: str) -> dict[str, Any]:
    """Return the values of ``result.json`` that a run ID contains."""
    named = NEW_RUN_ID.fullmatch(run_id)
    if named is None:
        return {"run_id": run_id}
    started = datetime.strptime(named["started"], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
    return {"run_id": run_id, "runbook": named["runbook"], "started_at": started.isoformat()}


@dataclass(frozen=True, slots=True)
class ArchivedRun:
    """A run in the archive."""

    run_id: str
    values: Mapping[str, Any]  # content of its entry, result.json
    # One of `outcomes.RUN_STATUSES`, or "unreadable" if its entry cannot be read.
    status: str

    @property
    def runbook(self) -> str:
        """Name of its runbook."""
        return str(self.values.get("runbook") or _runbook_of(self.run_id))

    @property
    def parameters(self) -> Mapping[str, object]:
        """Every parameter with its value."""
        given = self.values.get("parameters")
        return given if isinstance(given, dict) else {}

    @property
    def repeatable(self) -> bool:
        """Whether its entry has the parameters, which are needed to repeat it."""
        return self.values.get("parameters") is not None

    @property
    def attempt(self) -> int:
        """Number of its attempt: 1, and one more each time it was resumed."""
        return int(self.values.get("attempt") or 1)

    @property
    def cwd(self) -> Path | None:
        """Working directory of the run; ``None`` if it no longer exists."""
        folder = str(self.values.get("cwd") or "")
        return Path(folder) if folder and Path(folder).is_dir() else None

    @property
    def image(self) -> str:
        """The image of the run; empty if it had none."""
        return str(self.values.get("image") or self.parameters.get("image") or "")

    def command(self, words: str) -> str:
        """Return a command about the run where it ran, such as ``vmsnix runs repair --sandbox ID``.

        A shell that uses a sandbox needs no option.
        """
        elsewhere = self.values.get("sandbox") and endpoint_kind() != "sandbox"
        return f"vmsnix {words}{' --sandbox' if elsewhere else ''} {self.run_id}"


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive of runs."""

    location: str  # local folder, or s3://bucket/prefix
    work: Path  # local folder of runs whose archive is on S3
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)  # for S3

    @property
    def remote(self) -> bool:
        """Whether the archive is in a bucket."""
        return archives.is_remote(self.location)

    def ids(self) -> list[str]:
        """Return the IDs of all runs, newest first; empty if there is no archive yet."""
        if self.remote:
            with self._archive_errors():
                names = archives.folders(self.environment, self.location)
        else:
            try:
                names = [path.name for path in Path(self.location).iterdir()]
            except FileNotFoundError:
                names = []
            except OSError as error:
                raise ArchiveError(
                    f"Could not read the archive: {self.location}.",
                    why=f"{error.strerror}.",
                    fix="Correct its permissions, or use another with --archive.",
                ) from error
        return sorted((name for name in names if NEW_RUN_ID.fullmatch(name)), reverse=True)

    def runs(
        self, *, runbook: str = "", image: str = "", status: str = "", ami: str = "", last: int | None = None
    ) -> list[ArchivedRun]:
        """Return the runs with these values, newest first; with `last`, only the newest N.

        An empty value matches every run.
        """
        matching = (
            run
            for run in self.read_all([name for name in self.ids() if f"-{runbook}" in name])
            if runbook in ("", run.runbook)
            and status in ("", run.status)
            and ami in ("", run.values.get("ami_id"))
            and (image in ("", run.image) or run.image.endswith(f"#{image}"))
        )
        return list(islice(matching, last))

    def find(self, word: str) -> ArchivedRun:
        """Return the run whose ID is `word`, or the only one whose ID starts or ends with it."""
        found = self._read(self.full_id(word))
        if found is None:
            raise self._unknown(word, self.ids())
        return found

    def full_id(self, word: str) -> str:
        """Return the run ID that `find` would find, also if its entry cannot be read; same errors."""
        ids = self.ids()
        matching = [name for name in ids if name == word] or [
            name for name in ids if word and (name.startswith(word) or name.endswith(f"-{word}"))
        ]
        if len(matching) == 1:
            return matching[0]
        if len(matching) > 1:
            shown = ", ".join(matching[:5]) + (", ..." if len(matching) > 5 else "")
            raise UnknownRunError(
                f"{len(matching)} runs start with {word!r}.",
                why=f"They are {shown}.",
                fix="Use more characters of the run ID.",
            )
        raise self._unknown(word, ids)

    def _unknown(self, word: str, ids: list[str]) -> UnknownRunError:
        return UnknownRunError(
            f"No run {word!r} in {self.location}.",
            why=nearest(word, ids) or ("" if ids else "The archive contains no runs yet."),
            fix="Run vmsnix runs to list them. To search elsewhere, use --archive or --sandbox.",
        )

    def read_file(self, run: ArchivedRun, name: str) -> bytes:
        """Return a file of a run, such as ``"report.html"``, after checking its SHA-256.

        An `ArchiveError` if it does not exist, cannot be read, or was changed.
        """
        stored = (run.values.get("files") or {}).get(name)
        if not isinstance(stored, dict):
            raise ArchiveError(
                f"The run {run.run_id} has no {name}.",
                why=f"It is {run.status}." if run.status in (RUNNING, LOST) else "",
                fix="Use its other files.",
            )
        location = str(stored["place"])
        content = self.content(location)
        if content is None:
            raise ArchiveError(
                f"The evidence no longer exists: {location}.",
                why="The run's result.json lists it, but the file is missing.",
                fix="Restore it, or find out who deleted it.",
            )
        if hashlib.sha256(content).hexdigest() != stored["sha256"]:
            raise ArchiveError(
                f"The evidence was changed: {location}.",
                why=f"Its SHA-256 is not {stored['sha256']}, which the run's result.json has.",
                fix="Do not use it as evidence.",
            )
        return content

    def _read_nearest(self, run: ArchivedRun, name: str) -> bytes:
        """Return a file of a run from its folder on this machine, or else from the archive."""
        local = self.local_folder(run.run_id) / name
        return files.read(local) if local.is_file() else self.read_file(run, name)

    def earlier_attempts(self, run: ArchivedRun) -> list[dict[str, Any]]:
        """Return the ``result.json`` of each earlier attempt that can be read, the first one first."""
        found = []
        for number in range(1, run.attempt):
            with suppress(ArchiveError, OSError):
                found.append(parse(self._read_nearest(run, f"attempt-{number}/{archives.RESULT}")))
        return found

    def notebook(self, run: ArchivedRun) -> bytes | None:
        """Return the notebook of a run, also of a lost one; ``None`` if it has none.

        Errors are as for `read_file`.
        """
        if archives.NOTEBOOK in (run.values.get("files") or {}):
            return self.read_file(run, archives.NOTEBOOK)
        return _read_local(self.local_folder(run.run_id) / archives.NOTEBOOK)

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows of tables that the runs have saved, each with the name of its table.

        A run whose files cannot be read is skipped.
        """
        for run in self.read_all(self.ids()):
            for values in (*self.earlier_attempts(run), run.values):
                with suppress(KeyError, TypeError, ValueError):
                    if values.get("finished_at"):
                        yield "runs", runs_row(values)
            with suppress(ArchiveError, OSError):
                for line in run_tables.lines_of(self._read_nearest(run, run_tables.FILE_NAME)):
                    yield from ((line["table"], row) for row in run_tables.rows_from(line))

    def local_folder(self, run_id: str) -> Path:
        """Return the folder of a run on this machine, which may not exist."""
        return (self.work if self.remote else Path(self.location)) / run_id

    def read_all(self, ids: list[str]) -> Iterator[ArchivedRun]:
        """Yield runs by their IDs; a run that was just deleted is left out."""
        if not self.remote:
            yield from filter(None, map(self._read_or_mark, ids))
            return
        with ThreadPoolExecutor(PARALLEL_READS) as pool:  # in batches, because the caller may stop early
            for start in range(0, len(ids), PARALLEL_READS):
                yield from filter(None, pool.map(self._read_or_mark, ids[start : start + PARALLEL_READS]))

    def _read_or_mark(self, run_id: str) -> ArchivedRun | None:
        """Return a run; a run whose entry cannot be read gets the status ``unreadable``."""
        try:
            return self._read(run_id)
        except ArchiveError as error:
            values = {"run_id": run_id, "runbook": _runbook_of(run_id), "error": str(error)}
            return ArchivedRun(run_id, values, UNREADABLE)

    def entry(self, run_id: str) -> tuple[str, bytes | None]:
        """Return the location and the content of a run's ``result.json``; ``None`` if it is missing."""
        path = self.local_folder(run_id) / archives.RESULT
        location, content = str(path), _read_local(path)
        values = parse(content)
        if values.get("status") in (None, RUNNING) and self.remote:
            location = f"{self.location.rstrip('/')}/{run_id}/{archives.RESULT}"
            remote = self.content(location)
            content = content if remote is None and not values else remote
        return location, content

    def _read(self, run_id: str) -> ArchivedRun | None:
        """Return a run; a run without an entry is lost, and ``None`` if its folder was just deleted."""
        local = self.local_folder(run_id)
        location, content = self.entry(run_id)
        values = parse(content)
        if content is None:
            if not self.remote and not local.is_dir():
                return None
            missing = {
                "what": f"The entry of the run is missing: {location}.",
                "why": "It was deleted, or the process was killed before writing it.",
                "fix": f"Restore it from the tables, on the machine of the run: vmsnix runs repair {run_id}",
            }
            status = RUNNING if archives.is_running(local) else LOST
            return ArchivedRun(run_id, _first_values(run_id) | {"failure": missing}, status)
        if not values:
            raise ArchiveError(
                f"The entry of the run {run_id} is damaged: {location}.",
                why=f"Its {len(content)} bytes are not a complete result.json.",
                fix=f"Restore it from the tables, on the machine of the run: vmsnix runs repair {run_id}",
            )
        status = str(values.get("status") or RUNNING)
        lost = status == RUNNING and self._is_lost(local, values)
        return ArchivedRun(run_id, values, LOST if lost else status)

    def _is_lost(self, local: Path, values: Mapping[str, Any]) -> bool:
        """Whether the process of a running run has ended; unknown, and so false, on another machine."""
        here = not self.remote or local.exists() or values.get("host") == socket.gethostname()
        return here and not archives.is_running(local)

    def content(self, location: str) -> bytes | None:
        """Return the content at a path or an S3 location; ``None`` if it does not exist."""
        if not archives.is_remote(location):
            return _read_local(Path(location))
        with self._archive_errors():
            return archives.get(self.environment, location)

    def _archive_errors(self) -> Any:
        return archives.archive_errors(
            f"Could not read the archive: {self.location}.",
            "Correct the bucket or the permissions, or use another with --archive.",
        )


def open_archive(
    settings: Settings, *, location: str = "", environment: Mapping[str, str] | None = None
) -> Archive:
    """Return the archive of the settings, or the one at `location`: a folder, or ``s3://bucket/prefix``."""
    return Archive(
        location or settings.archive,
        settings.state / "runs",
        os.environ if environment is None else environment,
    )


def _read_local(path: Path) -> bytes | None:
    try:
        return files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArchiveError(
            f"Could not read the evidence: {path}.", why=f"{error.strerror}.", fix="Correct its permissions."
        ) from error


DAMAGED = "result.json.damaged"
RESULT_KEYS: dict[str, dict[str, str]] = {
    "runs": {name: name for name in schemas.RUNS.names} | {"version": "package_version"},
    "amis": {"ami_id": "ami_id", "name": "image_name"}
    | {name: name for name in ("image", "region", "account", "snapshot_id", "digest")},
}
"""For each table, its columns with values of ``result.json``, and the key of each."""


@dataclass(frozen=True, slots=True)
class RepairedRun:
    """The result of repairing a run."""

    run_id: str
    status: str  # "lost" if its process ended without a result
    problems: tuple[str, ...]  # rows and files that still could not be saved, and why


def repair(archive: Archive, settings: Settings, *, run_id: str = "") -> Iterator[RepairedRun]:
    """Save the rows and files that runs on this machine could not save; yield the result for each of them.

    Missing rows are appended to the tables, a missing report is created, and missing evidence is uploaded to
    S3. The tables complete a run whose entry is damaged or has no result: on a full disk, the row can be
    saved although the entry is not. A run without a row becomes ``lost``, with the AMI that it created.

    A notebook or a log that could not be saved is lost, because only the run's process had it. Its entry
    keeps this as a problem, which later repairs do not report again.

    With `run_id`, only this run is repaired. Safe to run twice; running runs are not changed.
    """
    tables = open_tables(settings)
    folders = [archive.work if archive.remote else Path(archive.location), settings.state / "runs"]
    for folder in dict.fromkeys(folders):
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in found:
            if run_id in ("", path.name) and not archives.is_running(path):
                repaired = _repair(path, archive if folder is folders[0] else None, tables)
                if repaired is not None:
                    yield repaired


def _repair(path: Path, archive: Archive | None, tables: Tables) -> RepairedRun | None:
    """Repair the run in a folder; return ``None`` if it needs no repair."""
    remote = archive is not None and archive.remote  # completely stored runs have no local folder
    content, missing = None, False
    try:
        content = files.read(path / archives.RESULT)
    except FileNotFoundError:  # the work folder also has runs of Python programs, without an entry
        missing = archive is not None and (not remote or path.name in archive.ids())
    except OSError:
        pass
    values = parse(content)
    named = NEW_RUN_ID.fullmatch(path.name) is not None
    damaged = named and not values and (content is not None or missing)
    status, problems_before = values.get("status") or LOST, values.get("problems") or []
    unsaved = run_tables.has_unsaved(path)
    solvable = [problem for problem in problems_before if problem not in _LOST_FILES.values()]
    if not (unsaved or damaged or solvable or status == RUNNING or remote):
        return None
    problems = run_tables.append_unsaved(path, tables)
    if damaged:
        try:
            if not missing:
                (path / archives.RESULT).rename(path / DAMAGED)
        except OSError as error:
            problems.append(f"{path / archives.RESULT} is damaged and cannot be renamed: {error.strerror}.")
            return RepairedRun(path.name, LOST, tuple(problems))
        values = _first_values(path.name)
    if not values:
        return RepairedRun(path.name, LOST, tuple(problems))
    if values.get("status") in (None, RUNNING, LOST):
        recorded = _read_tables(tables, path.name, values.get("attempt") or 1)
        values |= {
            key: value
            for key, value in recorded.items()
            if not values.get(key) or key in ("status", "started_at")
        }
        values.setdefault("status", LOST)
        if values["status"] == RUNNING:
            values["status"] = LOST
    elif values.get("finished_at"):
        if not problems and _lacks_evidence(values):
            values["status"] = "done"
        try:
            tables.append("runs", [runs_row(values)], once=once_of(values))
        except RecordsError as error:
            problems.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path / archives.RESULT} has no valid start and end of the run: {error}.")
    values["problems"] = problems
    if archive is not None:
        try:
            _store_run(path, archive, values)
        except (ArchiveError, OSError) as error:
            problems.append(files.describe(error))
    return RepairedRun(path.name, values["status"], tuple(problems))


def _lacks_evidence(values: Mapping[str, Any]) -> bool:
    """Return whether a run is partial only because evidence is missing."""
    return values.get("status") == "partial" and not values.get("failure")


def _read_tables(tables: Tables, run_id: str, attempt: int) -> dict[str, Any]:
    """Return the values of a run in the tables, with the keys of ``result.json``.

    Only a row of ``runs`` contains the status. A row of ``amis`` shows that a run created its AMI.
    """
    found: dict[str, Any] = {}
    for table, keys in RESULT_KEYS.items():
        try:
            frame = tables.read(table, columns=list(keys), where=[("run_id", "==", run_id)], endpoint="all")
        except RecordsError:
            continue  # opening the tables reports this error
        if "attempt" in frame:  # rows of earlier versions have no number
            frame = frame[frame["attempt"].fillna(1) == attempt]
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        for name, value in rows[-1].items() if rows else ():
            key = keys[str(name)]
            if value is not None and not found.get(key):
                found[key] = (
                    value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
                )
    if isinstance(found.get("parameters"), str):
        found["parameters"] = json.loads(found["parameters"])
    return found


def _store_run(path: Path, archive: Archive, values: dict[str, Any]) -> None:
    """Store every file of a run in the archive, and write its entry again."""
    remote = archive.location.rstrip("/") if archive.remote else ""
    credentials.watch_botocore()
    remember(*credentials.read_files(archive.environment))
    redactor = Redactor(secret_values(archive.environment))
    folder = archives.RunFolder(path.name, path, remote, archive.environment, redactor)
    values["problems"] += folder.redact()  # a killed run has not searched the files of its last cell
    values["files"] = dict(values.get("files") or {})
    _write_from_journal(folder, values)
    if values.get("finished_at"):
        values["problems"] += _complete(folder, values)
    writing.store(folder, values, folder.names())
    if values["status"] == "done" or _lacks_evidence(values):
        complete = not values["problems"]
        values["status"], values["exit_code"] = ("done", 0) if complete else ("partial", PARTIAL)
    folder.write_json(archives.RESULT, values)
    folder.close(done=values["status"] == "done")


_LOST_FILES = {
    archives.NOTEBOOK: "The executed notebook is incomplete: its last state could not be saved.",
    archives.LOG: "The log is lost: it was deleted while the run wrote it.",
}


def _write_from_journal(folder: archives.RunFolder, values: Mapping[str, Any]) -> None:
    """Write notebook and report of an interactive run whose kernel was killed, from its journal."""
    entries = chain.read(folder.local)
    executed = any(entry.get("kind") == "run" for entry in entries)
    if not executed or folder.path(archives.NOTEBOOK).is_file() or archives.NOTEBOOK in values["files"]:
        return
    from vmsnix_ops.runbooks.evidence import cells, report

    notebook = cells.notebook(entries)
    notebook.metadata["vmsnix_run"] = {key: values.get(key) for key in ("run_id", "runbook", "status")}
    writing.write_notebook(folder, notebook)
    folder.write(archives.REPORT, report.render(notebook, values))


def _complete(folder: archives.RunFolder, values: Mapping[str, Any]) -> list[str]:
    """Create a missing report from the notebook; return the problems of files that are lost."""
    import nbformat

    problems = []
    stored = values["files"]
    try:
        notebook = nbformat.reads(_content(folder, stored, archives.NOTEBOOK), as_version=4)  # type: ignore[no-untyped-call]
    except (ArchiveError, OSError, ValueError):
        notebook = None
    if notebook is None or "vmsnix_run" not in notebook.metadata:  # written when the run has ended
        problems.append(_LOST_FILES[archives.NOTEBOOK])
    if notebook is not None and archives.REPORT not in stored and not folder.path(archives.REPORT).is_file():
        from vmsnix_ops.runbooks.evidence import report

        folder.write(archives.REPORT, report.render(notebook, values))
    if archives.LOG not in stored and not folder.path(archives.LOG).is_file():
        problems.append(_LOST_FILES[archives.LOG])
    return problems


def _content(folder: archives.RunFolder, stored: Mapping[str, Any], name: str) -> str:
    """Return a file of a run from its folder or from S3; empty if there is none."""
    path = folder.path(name)
    if path.is_file() or name not in stored:
        return files.read(path).decode()
    return (archives.get(folder.environment, stored[name]["place"]) or b"").decode()
