"""Runs that the console starts: each in a process of its own, followed through files.

The process is no child of the notebook's kernel. Restarting the kernel, or closing the browser, stops no
publish half-way; the console that is opened next finds the run again. A job's folder, readable by its owner
only, holds the request, the lock that its process keeps for as long as it lives, the events, what the
notebook printed, and in the end the outcome.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import RunError
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.runbooks import parameters
from vmsnix_ops.runbooks.execution import kernels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.console.places import Place

REQUEST, LOCK, EVENTS, SCREEN, CANCEL, OUTCOME, WORDS = (
    "request.json",
    "lock",
    "events.jsonl",
    "screen.txt",
    "cancel",
    "outcome.json",
    "words.txt",
)
KEEP_SECONDS = 24 * 3600
SHELL = '"$@" &'
"""Starts a program and does not wait for it, so that it is nobody's child."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that was started.

    Attributes
    ----------
    run_id
        Also the name of its folder in the archive.
    runbook
        Name of the runbook.
    title
        Of the runbook.
    given
        The parameters that it was given.
    folder
        The job's own folder.
    run_folder
        Folder in which the run works.
    started_at
        Seconds since the epoch.
    """

    run_id: str
    runbook: str
    title: str
    given: Mapping[str, object]
    folder: Path
    run_folder: Path
    started_at: float

    @property
    def alive(self) -> bool:
        """Whether its process lives."""
        return _locked(self.folder)

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked it to stop."""
        return (self.folder / CANCEL).exists()

    def cancel(self, *, at_once: bool = False) -> None:
        """Ask it to stop: its notebook is interrupted and cleans up; with `at_once` its kernel is killed."""
        files.write(self.folder / CANCEL, "2" if at_once else "1")


def start(
    runbook: Runbook,
    given: Mapping[str, object],
    place: Place,
    *,
    confirmed: bool = False,
    cwd: Path | None = None,
) -> Job:
    """Start a run and return at once.

    Parameters
    ----------
    runbook, given
        The runbook and its parameters.
    place
        Where it works.
    confirmed
        Whether somebody confirmed that a runbook which destroys shall do so.
    cwd
        Folder from which relative paths in parameters count; this process's by default.

    Raises
    ------
    ParameterError
        A parameter does not fit; nothing was started.
    RunError
        The process cannot be started.
    """
    checked = parameters.check(runbook, given)
    settings = place.settings()
    run_id = new_run_id(runbook.name)
    folder = _jobs(settings.state) / run_id
    remote = settings.archive.startswith("s3://")
    run_folder = (settings.state / "runs" if remote else Path(settings.archive)).absolute() / run_id
    request = {
        "run_id": run_id,
        "runbook": runbook.name,
        "title": runbook.title,
        "notebook": str(runbook.path),
        "given": checked,
        "confirmed": confirmed,
        "run_folder": str(run_folder),
        "started_at": time.time(),
    }
    try:
        files.make_folder(folder, new=True)
        files.write(folder / REQUEST, json.dumps(request, default=str))
        _spawn(folder, place, Path.cwd() if cwd is None else cwd)
    except OSError as error:
        raise RunError(
            "The run cannot be started.",
            why=f"{error.strerror}: {error.filename}.",
            cure="Correct the permissions, or name another folder with VMSNIX_STATE.",
        ) from error
    return _read(folder)


def unfinished(place: Place) -> list[Job]:
    """Return the runs of this place whose process still lives, oldest first; clear away what old ones left.

    Raises
    ------
    SettingsError
        The settings of the place cannot be used.
    """
    alive = []
    for folder in sorted(_jobs(place.settings().state).glob("*/")):
        if _locked(folder):
            alive.append(_read(folder))
        elif time.time() - folder.stat().st_mtime > KEEP_SECONDS:  # another console may still read it
            shutil.rmtree(folder, ignore_errors=True)
    return alive


def _jobs(state: Path) -> Path:
    return state.absolute() / "console"


def _read(folder: Path) -> Job:
    request: dict[str, Any] = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    return Job(
        run_id=request["run_id"],
        runbook=request["runbook"],
        title=request["title"],
        given=request["given"],
        folder=folder,
        run_folder=Path(request["run_folder"]),
        started_at=request["started_at"],
    )


def _spawn(folder: Path, place: Place, cwd: Path) -> None:
    environment = place.environment
    environment |= kernels.python_path(environment)
    environment["VMSNIX_EVENTS"] = str(folder / EVENTS)
    # Variables of the kernel that starts it would make its own kernel take itself for one of JupyterLab's.
    environment.pop("JPY_SESSION_NAME", None)
    environment.pop("JPY_PARENT_PID", None)
    program = [sys.executable, "-m", "vmsnix_ops.runbooks.console._job", str(folder)]
    with files.open_text(folder / LOCK) as lock, files.open_text(folder / WORDS) as words:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the process inherits it, and keeps it until its end
        subprocess.run(
            ["sh", "-c", SHELL, "sh", *program],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment,
            cwd=cwd,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )


def _locked(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
