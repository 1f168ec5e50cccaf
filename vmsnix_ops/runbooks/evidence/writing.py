"""Save the evidence of a run: executed notebook, report, log, ``result.json``, and a row in the history."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.endpoints import endpoint_kind, sandbox_url
from vmsnix_ops.errors import ArchiveError, VmsnixError
from vmsnix_ops.records import run_tables
from vmsnix_ops.records.result import KEYS, once_of, parse, runs_row
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.redaction import Redactor
from vmsnix_ops.runbooks.evidence import archive, chain, pictures
from vmsnix_ops.runbooks.execution.status import PARTIAL, Failure
from vmsnix_ops.settings import user_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmsnix_ops.outcomes import RunStatus
    from vmsnix_ops.pages import Lanes
    from vmsnix_ops.runbooks import catalog
    from vmsnix_ops.runbooks.execution._output import LiveOutput
    from vmsnix_ops.settings import Settings

LOCATION_KEYS = {archive.NOTEBOOK: "notebook", archive.REPORT: "report", archive.LOG: "log"}

INCOMPLETE = "The evidence of the run was not completely saved."
"""The problem of a run that has ended, until all its evidence is saved."""
RUNNER_KEYS = (
    "status",
    "exit_code",
    "finished_at",
    "seconds",
    "error",
    "failure",
    "notebook",
    "report",
    "log",
    "result",
    "files",
    "problems",
    "secrets_removed",
    "journal_entries",
    "journal_sha256",
)
"""Keys of ``result.json`` whose values are known when the evidence is saved."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run before its first cell; `entry` is the part of ``result.json`` that is known then."""

    runbook: catalog.Runbook
    content: str  # of its notebook
    parameters: Mapping[str, object]
    settings: Settings
    environment: Mapping[str, str]
    cwd: Path
    folder: archive.RunFolder
    entry: Mapping[str, Any]


def all_parameters(runbook: catalog.Runbook, given: Mapping[str, object]) -> dict[str, object]:
    """Return the given parameters, and the defaults of all others."""
    return {parameter.name: parameter.default for parameter in runbook.parameters} | dict(given)


def first_entry(
    runbook: catalog.Runbook,
    run_id: str,
    parameters: Mapping[str, object],
    environment: Mapping[str, str],
    cwd: Path,
    started: datetime,
    *,
    interactive: bool = False,
    attempt: int = 1,
) -> dict[str, object]:
    """Return the part of ``result.json`` that is known before the first cell."""
    from vmsnix_ops import __version__

    return {
        "run_id": run_id,
        "runbook": runbook.name,
        "interactive": interactive,
        "side_effects": runbook.side_effects,
        "started_at": started.isoformat(timespec="milliseconds"),
        "parameters": dict(parameters),
        "dry_run": parameters.get("dry_run") is True,
        "endpoint": endpoint_kind(environment),
        "sandbox": sandbox_url(environment) or None,
        "user": user_name(),
        "host": platform.node(),
        "cwd": str(cwd),
        "package_version": __version__,  # `version` is the version of the image
        "attempt": attempt,
    }


def without_secrets(notebook: Any, redactor: Redactor) -> tuple[Any, dict[str, int]]:
    """Return a copy of a notebook without secrets, and the number of removed secrets by kind."""
    clean = copy.deepcopy(notebook)
    scan = Redactor(redactor.values)
    scan.notebook(clean)
    return clean, scan.found


def write_notebook(folder: archive.RunFolder, notebook: Any) -> None:
    """Write a notebook that contains no secrets."""
    import nbformat

    folder.write(archive.NOTEBOOK, nbformat.writes(notebook))  # type: ignore[no-untyped-call]


def save(
    run: PreparedRun,
    notebook: Any,
    live: LiveOutput,
    status: RunStatus,
    failure: Failure | None,
    seconds: float,
    *,
    record: bool,
    keep: bool = False,
    finished: str = "",
) -> dict[str, Any]:
    """Save all evidence of a run that has ended, and return the content of its ``result.json``.

    Errors of this are its ``problems``. The order: files, log, the journal with their SHA-256, the row with
    the SHA-256 of the journal, the entry. An error here does not stop the next steps, and a run that is
    otherwise done ends ``partial``. The entry, ``result.json``, is written last, because it lists only files
    that exist.

    With `keep`, the run's process may continue to write into the folder, and save the evidence again.
    `finished` is the end of the run, by default now.
    """
    folder, redactor = run.folder, run.folder.redactor
    values = redactor.value(_result(run, status, failure, seconds))
    values["finished_at"] = finished or values["finished_at"]
    problems: list[str] = values["problems"]
    notebook.metadata["vmsnix_run"] = {key: values[key] for key in ("run_id", "runbook", "status", "failure")}
    clean_notebook, found = without_secrets(notebook, redactor)
    found = {**redactor.found, **found}
    with _collecting(problems, "The folder of the run could not be written"):
        files.make_folder(folder.local)  # the notebook may have deleted it
    with _collecting(problems, "The notebook could not be saved"):
        write_notebook(folder, clean_notebook)
    shown: list[Lanes] = []
    with _collecting(problems, "The pictures of the report could not be drawn"):
        shown = pictures.draw(folder.local, open_tables(run.settings))
    with _collecting(problems, "The report could not be created"):
        from vmsnix_ops.runbooks.evidence import report

        folder.write(archive.REPORT, report.render(clean_notebook, values, shown))
    if record:
        unsaved = run_tables.append_unsaved(folder.local, open_tables(run.settings))
        problems += [text for text in unsaved if text not in problems]
    others: list[str] = []
    journal = chain.continued(folder.local, run.settings.state, folder.run_id, redactor)
    with _collecting(problems, "The files of the run could not be searched for secrets"):
        problems += folder.redact()
        journal.reload()  # a secret that became known later may be in an entry
        others = [name for name in folder.names() if name not in (*LOCATION_KEYS, chain.FILE_NAME)]
    found |= redactor.found
    store(folder, values, [archive.NOTEBOOK, archive.REPORT, *others])
    if found:
        live.note(f"Secrets were removed from the evidence: {', '.join(sorted(found))}")
    values["secrets_removed"] = found
    problems += live.problems
    for problem in problems:
        live.note(problem, screen=False)
    live.close()
    problems += [problem for problem in live.problems if problem not in problems]
    if not folder.path(archive.LOG).is_file():
        problems.append(f"The log is lost: {folder.path(archive.LOG)} was deleted while the run wrote it.")
    store(folder, values, [archive.LOG])
    with _collecting(problems, "The journal could not be completed"):  # it contains the SHA-256 of all files
        chain.append_end(folder.local, redactor.value(values), result_digest(redactor.value(values)))
        values |= chain.last(folder.local)
    store(folder, values, [chain.FILE_NAME])
    if record:
        _set_status(values)
        with _collecting(problems, "The run could not be recorded in the history"):
            open_tables(run.settings).append("runs", [runs_row(values)], once=once_of(values))
    clean: dict[str, Any] = redactor.value(values)
    _close(run, clean, keep=keep)
    with _collecting(clean["problems"], "The summary of the CI job could not be written"):
        from vmsnix_ops.runbooks.evidence import github

        github.write(clean, run.environment)
    _set_status(clean)
    return clean


@contextmanager
def _collecting(problems: list[str], what: str) -> Iterator[None]:
    """Add an error of the block to the problems."""
    try:
        yield
    except VmsnixError as error:
        problems.append(f"{what}: {error}")
    except OSError as error:
        problems.append(f"{what}: {files.describe(error)}")
    except Exception as error:  # noqa: BLE001 - no error may hide the outcome of a run that has ended
        problems.append(f"{what}: {type(error).__name__}: {error}.")


def _result(run: PreparedRun, status: RunStatus, failure: Failure | None, seconds: float) -> dict[str, Any]:
    """Return the content of ``result.json``: the notebook's values, and then the runner's own."""
    written = written_values(run.folder.path(archive.RESULT))
    return {
        **dict.fromkeys(KEYS),
        **written,
        **run.entry,
        "status": status,
        "exit_code": 0,
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": seconds,
        "error": str(failure) if failure is not None else None,
        "failure": failure.to_json() if failure is not None else None,
        "notebook": "",
        "report": "",
        "log": "",
        "result": run.folder.entry,
        "files": {},
        "problems": [text for text in written.get("problems") or [] if text != INCOMPLETE],
    }


def result_digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content of ``result.json``, without the keys that a repair may change."""
    lasting = {"error", "failure", "finished_at", "seconds", "secrets_removed"}
    kept = {key: value for key, value in values.items() if key not in RUNNER_KEYS or key in lasting}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def written_values(path: Path) -> dict[str, Any]:
    """Return the values of the job in ``result.json``; empty if it has none."""
    with suppress(OSError):  # the notebook has deleted it
        return parse(files.read(path))
    return {}


def store(folder: archive.RunFolder, values: dict[str, Any], names: list[str]) -> None:
    """Store files in the archive, and enter their locations; keep a file that S3 refuses on this machine."""
    for name in names:
        path = str(folder.path(name))
        try:
            stored = folder.store(name)
        except (ArchiveError, OSError) as error:
            values["problems"].append(files.describe(error))
            location = path
        else:
            if stored is None:
                continue
            location = stored["place"]
            values["files"][name] = stored
        if name in LOCATION_KEYS:
            values[LOCATION_KEYS[name]] = location
        for key, value in values.items():
            if value == path:  # the notebook entered the path of a file that it wrote
                values[key] = location


def _close(run: PreparedRun, values: dict[str, Any], *, keep: bool) -> None:
    """Write the entry to the archive; if S3 refuses it, keep it on this machine."""
    problems = values["problems"]

    def write() -> None:
        _set_status(values)
        with _collecting(problems, "The entry of the run could not be written"):
            run.folder.write_json(archive.RESULT, values)

    write()
    before = len(problems)
    with _collecting(problems, "The entry of the run is not in the archive"):
        run.folder.close(done=values["status"] == "done", keep=keep)
    if len(problems) > before:
        values["result"] = str(run.folder.path(archive.RESULT))
        write()


def _set_status(values: dict[str, Any]) -> None:
    """Set status and exit code: without all its evidence, a run that did not fail is ``partial``."""
    if values["failure"] is not None:
        values["exit_code"] = values["failure"]["exit_code"]
    else:
        values["status"], values["exit_code"] = ("partial", PARTIAL) if values["problems"] else ("done", 0)
