"""What became of a run: judged by what ran and what it left, never by papermill's status.

papermill saves cells that never ran as "completed" after an interrupt, a time-out and a dead kernel.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors, files
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmsnix_ops.outcomes import RunStatus

INTERRUPTS = frozenset({"KeyboardInterrupt", "InterruptedRunError"})
PARTIAL = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """The one error that ended a run.

    Attributes
    ----------
    type
        Class of the error.
    what, why, fix
        What happened, why, and what to do.
    exit_code
        1, or what the error's class says.
    cell
        Number of the cell as it is shown (``In [3]``), 0 when no cell is to blame.
    detail
        What else the error carried: AWS's code, operation, request ID ...
    """

    type: str
    what: str
    why: str = ""
    fix: str = ""
    exit_code: int = 1
    cell: int = 0
    detail: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the sentences."""
        return " ".join(part for part in (self.what, self.why, self.fix) if part)

    def to_json(self) -> dict[str, object]:
        """Return it as ``result.json`` has it."""
        return asdict(self)


def judge(
    notebook: Any, *, interrupted: bool, crash: Failure | None = None, kept: Mapping[str, Any] | None = None
) -> tuple[RunStatus, Failure | None]:
    """Return the verdict on an executed notebook, and the error behind it.

    Parameters
    ----------
    notebook
        Executed ``NotebookNode``, or ``None`` when it never started.
    interrupted
        Whether somebody asked the run to stop.
    crash
        What ended the run from outside of its cells: a dead kernel.
    kept
        The error as the kernel kept it (`_kernel.describe`), which holds more than the notebook does.
    """
    failure = _cell_error(notebook, kept or {}) if notebook is not None else None
    if failure is None and crash is not None:
        failure = crash
    if failure is None and notebook is not None and not _missing(notebook):
        return "done", None
    if interrupted or (failure is not None and failure.type in INTERRUPTS):
        return "cancelled", _interruption(failure, notebook)
    if failure is None:
        failure = Failure(
            "RunFailedError",
            "The notebook stopped before its end.",
            why=f"{len(_missing(notebook))} of its cells did not run." if notebook is not None else "",
            fix="The executed notebook shows the last cell that ran.",
        )
    return ("partial" if failure.exit_code == PARTIAL else "failed"), failure


def kept_error(path: Path) -> dict[str, Any]:
    """Return the error that the kernel kept, and remove the file; empty when there is none."""
    try:
        described = json.loads(files.read(path))
    except (OSError, ValueError, RecursionError):
        return {}
    with suppress(OSError):
        path.unlink()
    return described if isinstance(described, dict) else {}


def _missing(notebook: Any) -> list[Any]:
    """Return the cells that should have run and did not."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code"
        and cell.source.strip()
        and cell.execution_count is None
        and "skip-execution" not in cell.metadata.get("tags", [])
    ]


def _cell_error(notebook: Any, kept: Mapping[str, Any]) -> Failure | None:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return _describe(output, cell.execution_count or 0, kept)
    return None


def _describe(output: Any, number: int, kept: Mapping[str, Any]) -> Failure:
    name, text = output.ename, plain(output.evalue)
    if kept.get("type") == name and "what" in kept:
        return Failure(
            name,
            str(kept["what"]),
            str(kept.get("why", "")),
            str(kept.get("fix", "")),
            int(kept.get("exit_code", 1)),
            number,
            kept.get("detail", {}),
        )
    if name == "SystemExit":
        return Failure(
            name,
            f"Cell {number} ended the notebook: sys.exit({text}).",
            why="A notebook that exits reports no outcome of its job.",
            fix="Raise an error of vmsnix_ops.errors instead.",
            cell=number,
        )
    ours = getattr(errors, name, None)
    return Failure(
        name,
        f"Cell {number} failed: {name}: {text}".rstrip(": ") if text else f"Cell {number} failed: {name}.",
        why=_place(output),
        fix="The executed notebook contains the whole traceback.",
        exit_code=int(getattr(ours, "exit_code", 1)),
        cell=number,
    )


def _place(output: Any) -> str:
    """Return the deepest place of a traceback, as far as IPython's text shows it."""
    told = plain("\n".join(output.get("traceback", [])))
    places = re.findall(r"^File (\S+?):(\d+), in ([\w.<>]+)", told, re.MULTILINE)
    return f"Raised at {places[-1][0]}:{places[-1][1]} in {places[-1][2]}." if places else ""


def _interruption(failure: Failure | None, notebook: Any) -> Failure:
    if failure is not None and failure.type == "InterruptedRunError":
        return failure
    number = failure.cell if failure is not None else 0
    started = notebook is not None and any(cell.get("execution_count") for cell in notebook.cells)
    where = f"in cell {number}" if number else ("between two cells" if started else "before its first cell")
    return Failure(
        "InterruptedRunError",
        f"The run was interrupted {where}.",
        why="Ctrl-C was pressed, or the machine asked the process to end.",
        fix="Run it again with the same parameters: it continues where it stopped.",
        cell=number,
        detail=failure.detail if failure is not None else {},
    )
