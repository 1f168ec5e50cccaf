"""How far a run is, as its process writes it: steps, lines, cells, and the outcome in the end."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.progress import Event
from vmsnix_ops.runbooks.console.jobs import EVENTS, OUTCOME, SCREEN, WORDS
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.evidence.secrets import Redactor, secret_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.console.jobs import Job

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
                    "what": "The process of the run ended without a word.",
                    "why": " ".join(words[-3:]) or "It was killed; the usual reason is a lack of memory.",
                    "cure": "Run it again: it goes on where it stopped.",
                },
                "log": str(self.job.run_folder / archive.LOG),
            }
        return outcome
