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
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import RunError
from vmsnix_ops.progress import Event
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks import parameters
from vmsnix_ops.runbooks.evidence import archive
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
            "Could not start the run.",
            why=f"{error.strerror}: {error.filename}.",
            fix="Correct the permissions, or set VMSNIX_STATE to another folder.",
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


# How far a run is, as its process writes it: steps, lines, cells, and the outcome in the end.


TAIL_LINES = 200
"""Lines of the log that are shown."""


@dataclass
class StepState:
    """How far one step is.

    Attributes
    ----------
    event
        The last that was heard of it.
    notes
        What it told, oldest first.
    heard_at
        When that was, in seconds since the epoch.
    """

    event: Event
    notes: list[str] = field(default_factory=list)
    heard_at: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.event.kind in ("finished", "failed")


@dataclass(frozen=True, slots=True)
class Look:
    """How far a run is now.

    Attributes
    ----------
    steps
        In the order in which they began.
    tail
        The last lines that the notebook printed.
    cells_done, cells
        Code cells that ran, and all; 0 while that is not known.
    seconds
        Since the start.
    cancelled
        Whether it was asked to stop.
    outcome
        What became of it, as `execute.RunOutcome` says; ``None`` while it runs.
    """

    steps: tuple[StepState, ...]
    tail: tuple[str, ...]
    cells_done: int
    cells: int
    seconds: float
    cancelled: bool
    outcome: Mapping[str, Any] | None


class Follower:
    """Reads what a job writes, from its beginning; each look costs what is new.

    Parameters
    ----------
    job
        The job.
    environment
        Its variables: what is secret in them is not shown.
    """

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self.job = job
        self._redactor = Redactor(secret_values(environment))
        self._steps: list[StepState] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._read: dict[str, int] = {}
        self._cells = (0, 0)
        self._notebook_time = 0

    def look(self) -> Look:
        """Return how far the run is."""
        alive = self.job.alive  # asked first: what is written before the end is read below
        for line in self._new_lines(EVENTS):
            told = json.loads(line)
            self._take(told.pop("at"), Event(**told))
        self._tail.extend(self._new_lines(SCREEN))
        self._count_cells()
        return Look(
            steps=tuple(self._steps),
            tail=tuple(self._tail),
            cells_done=self._cells[0],
            cells=self._cells[1],
            seconds=time.time() - self.job.started_at,
            cancelled=self.job.cancelled,
            outcome=None if alive else self._outcome(),
        )

    def _new_lines(self, name: str) -> list[str]:
        """Return the whole lines that were added to a file since the last look."""
        path = self.job.folder / name
        try:
            with path.open("rb") as file:
                file.seek(self._read.get(name, 0))
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._read[name] = self._read.get(name, 0) + len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()

    def _take(self, at: float, event: Event) -> None:
        known = next((step for step in reversed(self._steps) if step.event.step == event.step), None)
        if known is None or event.kind == "started":
            known = StepState(event)
            self._steps.append(known)
        known.event, known.heard_at = event, at
        if event.message:
            known.notes.append(self._redactor.text(event.message))

    def _count_cells(self) -> None:
        """Count in the executed notebook, which is saved after every cell."""
        path = self.job.run_folder / archive.NOTEBOOK
        try:
            changed = path.stat().st_mtime_ns
            if changed == self._notebook_time:
                return
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError):
            return  # not there yet, or no more; the count is an ornament
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        self._notebook_time = changed
        self._cells = sum(cell["execution_count"] is not None for cell in code), len(code)

    def _outcome(self) -> Mapping[str, Any]:
        try:
            outcome: dict[str, Any] = json.loads((self.job.folder / OUTCOME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            words = self._new_lines(WORDS)
            return {
                "run_id": self.job.run_id,
                "runbook": self.job.runbook,
                "verdict": "failed",
                "exit_code": 1,
                "error": {
                    "what": "The process of the run ended without a result.",
                    "why": " ".join(words[-3:]) or "It was killed; a common reason is a lack of memory.",
                    "fix": "Run it again: it continues where it stopped.",
                },
                "log": str(self.job.run_folder / archive.LOG),
            }
        return outcome
