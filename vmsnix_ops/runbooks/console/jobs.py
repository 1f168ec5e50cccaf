"""Runs of the console, each in a process of its own: ``python -m vmsnix_ops.runbooks.console.jobs FOLDER``.

The process is not a child of the notebook's kernel. A run continues when the kernel is restarted or the
browser is closed, and the next console finds it again. The job's folder, which only its owner can read,
contains the request, a lock that the process has while it is alive, the events, the output of the notebook,
and finally the outcome.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.progress import ENDS, Event
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks import parameters
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.evidence.writing import all_parameters
from vmsnix_ops.runbooks.execution import kernels
from vmsnix_ops.runbooks.execution.execute import read_notebook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.console.backends import Backend
    from vmsnix_ops.runbooks.execution._interrupts import Interrupter

REQUEST, LOCK, CANCEL, OUTCOME = "request.json", "lock", "cancel", "outcome.json"
EVENTS, SCREEN, PROCESS_OUTPUT = "events.jsonl", "screen.txt", "process.txt"
KEEP_SECONDS = 24 * 3600
POLL_SECONDS = 0.1
LOG_LINES = 200
"""Lines of the log that the console shows."""
SHELL = '"$@" &'
"""Starts a program in the background, so that the shell ends immediately."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that the console started."""

    run_id: str
    runbook: str
    title: str  # of the runbook
    given: Mapping[str, object]  # the given parameters
    folder: Path  # of the job
    run_folder: Path  # in which the run works
    started_at: float  # seconds since the epoch

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return _is_locked(self.folder)

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return (self.folder / CANCEL).exists()

    def cancel(self, *, kill: bool = False) -> None:
        """Interrupt the notebook, which then cleans up; with `kill`, kill its kernel."""
        files.write(self.folder / CANCEL, "2" if kill else "1")


def start(
    runbook: Runbook,
    given: Mapping[str, object],
    backend: Backend,
    *,
    confirmed: bool = False,
    modified: bool = False,
    cwd: Path | None = None,
) -> Job:
    """Start a run, and return without waiting for its end.

    `confirmed` confirms that the runbook may delete, and `modified` that its modified notebook may run.
    Relative paths in parameters start at `cwd`, by default the working directory. The errors are those of
    `execution.execute.run`; after one, nothing was started.
    """
    checked = parameters.check_call(runbook, given, environment=backend.environment, cwd=cwd)
    read_notebook(runbook, all_parameters(runbook, checked), modified=modified or backend.sandbox)
    settings = backend.settings()
    run_id = new_run_id(runbook.name)
    folder = _jobs_folder(settings.state) / run_id
    remote = archive.is_remote(settings.archive)
    run_folder = (settings.state / "runs" if remote else Path(settings.archive)).absolute() / run_id
    request = {
        "run_id": run_id,
        "runbook": runbook.name,
        "title": runbook.title,
        "notebook": str(runbook.path),
        "given": checked,
        "confirmed": confirmed,
        "modified": modified,
        "run_folder": str(run_folder),
        "started_at": time.time(),
    }
    with files.state_errors("Could not start the run."):
        files.make_folder(folder, new=True)
        files.write(folder / REQUEST, json.dumps(request, default=str))
        _start_process(folder, backend, Path.cwd() if cwd is None else cwd)
    return _read_job(folder)


def running_jobs(backend: Backend) -> list[Job]:
    """Return the running jobs of a backend, oldest first, and delete the folders of old jobs."""
    running = []
    for folder in sorted(_jobs_folder(backend.settings().state).glob("*/")):
        if _is_locked(folder):
            running.append(_read_job(folder))
        elif time.time() - folder.stat().st_mtime > KEEP_SECONDS:  # another console can still read newer ones
            shutil.rmtree(folder, ignore_errors=True)
    return running


def _jobs_folder(state: Path) -> Path:
    return state.absolute() / "console"


def _read_job(folder: Path) -> Job:
    request: dict[str, Any] = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    values = {name: request[name] for name in ("run_id", "runbook", "title", "given", "started_at")}
    return Job(folder=folder, run_folder=Path(request["run_folder"]), **values)


def _start_process(folder: Path, backend: Backend, cwd: Path) -> None:
    environment = backend.environment
    environment |= kernels.python_path(environment)
    environment["VMSNIX_EVENTS"] = str(folder / EVENTS)
    # These variables mark the kernels of JupyterLab.
    environment.pop("JPY_SESSION_NAME", None)
    environment.pop("JPY_PARENT_PID", None)
    program = [sys.executable, "-m", "vmsnix_ops.runbooks.console.jobs", str(folder)]
    with files.open_text(folder / LOCK) as lock, files.open_text(folder / PROCESS_OUTPUT) as output:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the process inherits the lock, and has it until it ends
        subprocess.run(
            ["sh", "-c", SHELL, "sh", *program],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=cwd,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )


def _is_locked(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not archive.lock(lock)
    finally:
        os.close(lock)


@dataclass
class StepState:
    """The state of a step."""

    event: Event  # the last one
    notes: list[str] = field(default_factory=list)  # its messages, oldest first
    updated_at: float = 0.0  # time of the last event, in seconds since the epoch

    @property
    def ended(self) -> bool:
        """Whether the step has ended."""
        return self.event.kind in ENDS


@dataclass(frozen=True, slots=True)
class JobState:
    """The state of a job."""

    steps: tuple[StepState, ...]  # in the order of their starts
    log: tuple[str, ...]  # the last lines of the notebook's output
    cells_done: int  # number of code cells that have run; 0 if unknown
    cells: int  # number of all code cells; 0 if unknown
    seconds: float  # since the start
    cancelled: bool
    outcome: Mapping[str, Any] | None  # as in `execute.RunOutcome`; ``None`` while it runs


class JobReader:
    """Reads the state of a job from its files; each call of `read` reads only new lines.

    The secrets of `environment`, the variables of the job, are removed from the state.
    """

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self.job = job
        self._redactor = Redactor(secret_values(environment))
        self._steps: list[StepState] = []
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._offsets: dict[str, int] = {}
        self._cells = (0, 0)
        self._notebook_time = 0

    def read(self) -> JobState:
        """Return the current state."""
        running = self.job.running  # first, so that the files below are complete if the job has ended
        for line in self._new_lines(EVENTS):
            values = json.loads(line)
            self._apply(values.pop("at"), Event(**values))
        self._log.extend(self._new_lines(SCREEN))
        self._count_cells()
        return JobState(
            steps=tuple(self._steps),
            log=tuple(self._log),
            cells_done=self._cells[0],
            cells=self._cells[1],
            seconds=time.time() - self.job.started_at,
            cancelled=self.job.cancelled,
            outcome=None if running else self._outcome(),
        )

    def _new_lines(self, name: str) -> list[str]:
        """Return the complete lines of a file that were added since the last call."""
        try:
            with (self.job.folder / name).open("rb") as file:
                file.seek(self._offsets.get(name, 0))
                new = file.read()
        except FileNotFoundError:
            return []
        complete = new[: new.rfind(b"\n") + 1]
        self._offsets[name] = self._offsets.get(name, 0) + len(complete)
        return complete.decode("utf-8", errors="replace").splitlines()

    def _apply(self, at: float, event: Event) -> None:
        step = next((step for step in reversed(self._steps) if step.event.step == event.step), None)
        if step is None or event.kind == "started":
            step = StepState(event)
            self._steps.append(step)
        step.event, step.updated_at = event, at
        if event.message:
            step.notes.append(self._redactor.text(event.message))

    def _count_cells(self) -> None:
        """Count the cells in the executed notebook, which is saved after every cell."""
        path = self.job.run_folder / archive.NOTEBOOK
        try:
            changed = path.stat().st_mtime_ns
            if changed == self._notebook_time:
                return
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError):
            return  # not saved yet, or deleted; the count is optional
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        self._notebook_time = changed
        self._cells = sum(cell["execution_count"] is not None for cell in code), len(code)

    def _outcome(self) -> Mapping[str, Any]:
        try:
            outcome: dict[str, Any] = json.loads((self.job.folder / OUTCOME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            output = self._new_lines(PROCESS_OUTPUT)
            return {
                "run_id": self.job.run_id,
                "runbook": self.job.runbook,
                "status": "failed",
                "exit_code": 1,
                "error": {
                    "what": "The process of the run ended without a result.",
                    "why": " ".join(output[-3:]) or "It was killed; a common reason is a lack of memory.",
                    "fix": "Run it again: it continues where it stopped.",
                },
                "log": str(self.job.run_folder / archive.LOG),
            }
        return outcome


def main(folder: Path) -> None:
    """Run the runbook of a job's request, and write the outcome.

    A cancelled publish is undone; an interrupt alone would keep its resources for the next attempt.
    """
    from vmsnix_ops.runbooks import catalog
    from vmsnix_ops.runbooks.execution._interrupts import Interrupter
    from vmsnix_ops.runbooks.execution.execute import run
    from vmsnix_ops.runbooks.execution.status import describe

    # The shell starts this process with SIGINT ignored, and the kernel would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    interrupter, ended = Interrupter(), threading.Event()
    arguments = (folder / CANCEL, interrupter, ended)
    threading.Thread(target=_watch_cancel, args=arguments, daemon=True).start()
    outcome: dict[str, Any] = {key: request[key] for key in ("run_id", "runbook")}
    try:
        with files.open_text(folder / SCREEN) as screen:
            outcome |= asdict(
                run(
                    catalog.of_notebook(Path(request["notebook"])),
                    request["given"],
                    screen=screen,
                    interrupter=interrupter,
                    run_id=request["run_id"],
                    confirmed=request["confirmed"],
                    modified=request["modified"],
                )
            )
    except VmsnixError as error:
        outcome |= {"status": "failed", "exit_code": error.exit_code, "error": describe(error)}
    ended.set()
    if outcome["status"] == "cancelled" and interrupter.requested:
        outcome |= _undo(request["run_id"], Path(request["run_folder"]))
    files.write(folder / OUTCOME, json.dumps(outcome, default=str))


def _watch_cancel(path: Path, interrupter: Interrupter, ended: threading.Event) -> None:
    """Interrupt the run; the file contains the number of interrupts."""
    interrupts = 0
    while not ended.wait(POLL_SECONDS):
        try:
            requested = int(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        while interrupts < requested:
            interrupts += 1
            interrupter.interrupt()


def _undo(run_id: str, run_folder: Path) -> dict[str, object]:
    """Undo a cancelled publish; for other runbooks, which have no journal, do nothing."""
    if not (run_folder / archive.JOURNAL).is_file():
        return {}
    from vmsnix_ops.publish.undo import plan_undo

    try:
        return {"undone": [str(leftover) for leftover in plan_undo(run_id).apply()]}
    except VmsnixError as error:
        return {"undo_problem": str(error)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
