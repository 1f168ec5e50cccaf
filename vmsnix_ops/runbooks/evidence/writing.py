"""What is kept of a run: executed notebook, report, log, ``result.json``, a row in the history."""

from __future__ import annotations

import copy
import platform
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import ArchiveError, VmsnixError
from vmsnix_ops.records.result import KEYS, parse, runs_row
from vmsnix_ops.redaction import Redactor
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.execution.verdict import PARTIAL, Failure
from vmsnix_ops.settings import user_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmsnix_ops.outcomes import RunStatus
    from vmsnix_ops.runbooks import catalog
    from vmsnix_ops.runbooks.execution._output import Live
    from vmsnix_ops.settings import Settings


OWN = {archive.NOTEBOOK: "notebook", archive.REPORT: "report", archive.LOG: "log"}


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that is settled before the first cell."""

    runbook: catalog.Runbook
    parameters: Mapping[str, object]
    settings: Settings
    environment: Mapping[str, str]
    cwd: Path
    folder: archive.RunFolder
    started: datetime

    @property
    def settled(self) -> dict[str, object]:
        """Every parameter with its value."""
        return settled(self.runbook, self.parameters)

    def about(self) -> dict[str, object]:
        """Return the part of ``result.json`` that is known from the start."""
        return about(
            self.runbook, self.folder.run_id, self.parameters, self.started, self.environment, self.cwd
        )


def settled(runbook: catalog.Runbook, given: Mapping[str, object]) -> dict[str, object]:
    """Return every parameter with its value: the one that was given, or the notebook's default."""
    return {parameter.name: parameter.default for parameter in runbook.parameters} | dict(given)


def about(
    runbook: catalog.Runbook,
    run_id: str,
    given: Mapping[str, object],
    started: datetime,
    environment: Mapping[str, str],
    cwd: Path,
) -> dict[str, object]:
    """Return what ``result.json`` says from the first second on."""
    from vmsnix_ops import __version__

    return {
        "run_id": run_id,
        "runbook": runbook.name,
        "side_effects": runbook.side_effects,
        "started_at": started.isoformat(timespec="milliseconds"),
        "parameters": settled(runbook, given),
        "sandbox": environment.get("VMSNIX_SANDBOX") or None,
        "user": user_name(),
        "host": platform.node(),
        "cwd": str(cwd),
        "package_version": __version__,  # `version` is the image's, where there is one
    }


def without_secrets(notebook: Any, redactor: Redactor) -> tuple[Any, dict[str, int]]:
    """Return a copy of the notebook without secrets, and how many were removed, by kind."""
    kept = copy.deepcopy(notebook)
    scan = Redactor(redactor.values)
    scan.notebook(kept)
    return kept, scan.found


def write_notebook(folder: archive.RunFolder, notebook: Any) -> None:
    """Write a notebook that has no secrets."""
    import nbformat

    text = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    folder.write(archive.NOTEBOOK, text)


def keep(
    run: Run,
    notebook: Any,
    redactor: Redactor,
    live: Live,
    judged: RunStatus,
    failure: Failure | None,
    seconds: float,
    *,
    record: bool,
) -> dict[str, Any]:
    """Keep all evidence of a judged run, and list what could not be kept among its ``problems``.

    Nothing that fails here changes the verdict, or stops what comes after it. The entry, ``result.json``,
    comes last: it names only what is there.

    Returns
    -------
    dict
        Content of ``result.json``.
    """
    folder = run.folder
    values = redactor.value(_values(run, judged, failure, seconds))
    problems: list[str] = values["problems"]
    notebook.metadata["vmsnix_run"] = {key: values[key] for key in ("run_id", "runbook", "status", "failure")}
    kept, found = without_secrets(notebook, redactor)
    found = {**redactor.found, **found}
    with _collecting(problems, "The folder of the run could not be written"):
        files.make_folder(folder.local)  # the notebook may have removed it
    with _collecting(problems, "The notebook could not be saved"):
        write_notebook(folder, kept)
    with _collecting(problems, "The report could not be created"):
        from vmsnix_ops.runbooks.evidence import report

        folder.write(archive.REPORT, report.render(kept, values))
    if record:
        problems += [text for text in _save_rows(run) if text not in problems]
    others: list[str] = []
    with _collecting(problems, "The files of the run could not be searched for secrets"):
        problems += folder.clean()
        others = [name for name in folder.names() if name not in OWN]
    found |= redactor.found
    bring(folder, values, [archive.NOTEBOOK, archive.REPORT, *others])
    if found:
        live.note(f"Secrets were removed from the evidence: {', '.join(sorted(found))}")
    values["secrets_removed"] = found
    if record:
        with _collecting(problems, "The run could not be recorded in the history"):
            _record(run, values)
    problems += live.problems
    for problem in problems:
        live.note(problem, screen=False)
    live.close()
    problems += [problem for problem in live.problems if problem not in problems]
    if not folder.path(archive.LOG).is_file():
        problems.append(f"The log is lost: {folder.path(archive.LOG)} was deleted while the run wrote it.")
    bring(folder, values, [archive.LOG])
    clean: dict[str, Any] = redactor.value(values)
    _close(run, clean, judged, failure)
    with _collecting(clean["problems"], "The summary of the CI job could not be written"):
        from vmsnix_ops.runbooks.evidence import github

        github.tell(clean, run.environment)
    clean["exit_code"] = _exit_code(judged, failure, clean["problems"])
    return clean


@contextmanager
def _collecting(problems: list[str], what: str) -> Iterator[None]:
    """Add an error of the block to the problems."""
    try:
        yield
    except VmsnixError as error:
        problems.append(f"{what}: {error}")
    except Exception as error:  # noqa: BLE001 - the run is over: whatever fails must not hide its verdict
        problems.append(f"{what}: {type(error).__name__}: {error}.")


def _values(run: Run, judged: RunStatus, failure: Failure | None, seconds: float) -> dict[str, Any]:
    """Return the content of ``result.json``: what the notebook wrote, then what the runner knows."""
    written: dict[str, Any] = {}
    with suppress(OSError):  # removed by the notebook; what the runner knows is written anew
        written = parse(files.read(run.folder.path(archive.RESULT)))
    return {
        **dict.fromkeys(KEYS),
        **written,
        **run.about(),
        "status": judged,
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
        "problems": written.get("problems") or [],
    }


def bring(folder: archive.RunFolder, values: dict[str, Any], names: list[str]) -> None:
    """Bring files to where they are kept and name the places; where S3 refuses they stay on this machine."""
    for name in names:
        path = str(folder.path(name))
        try:
            kept = folder.keep(name)
        except (ArchiveError, OSError) as error:
            values["problems"].append(str(error))
            place = path
        else:
            if kept is None:
                continue
            place = kept.place
            values["files"][name] = kept.to_json()
        if name in OWN:
            values[OWN[name]] = place
        for key, value in values.items():
            if value == path:  # the notebook told where it wrote
                values[key] = place


def _close(run: Run, values: dict[str, Any], judged: RunStatus, failure: Failure | None) -> None:
    """Write the entry; where S3 refuses it stays on this machine."""
    problems = values["problems"]

    def write() -> None:
        values["exit_code"] = _exit_code(judged, failure, problems)
        with _collecting(problems, "The entry of the run could not be written"):
            run.folder.write_json(archive.RESULT, values)

    write()
    before = len(problems)
    with _collecting(problems, "The entry of the run is not in the archive"):
        run.folder.close(done=judged == "done" and not problems)
    if len(problems) > before:
        values["result"] = str(run.folder.path(archive.RESULT))
        write()


def _exit_code(judged: RunStatus, failure: Failure | None, problems: list[str]) -> int:
    if failure is not None:
        return failure.exit_code
    return PARTIAL if judged == "partial" or problems else 0


def _save_rows(run: Run) -> list[str]:
    """Append the rows of the run that have not reached the tables; return what still fails."""
    from vmsnix_ops.records import run_tables, tables

    return run_tables.append_unsaved(run.folder.local, tables.open_tables(run.settings))


def _record(run: Run, values: Mapping[str, Any]) -> None:
    """Append the run to the history."""
    from vmsnix_ops.records import tables

    tables.open_tables(run.settings).append("runs", [runs_row(values)], once=run.folder.run_id)
