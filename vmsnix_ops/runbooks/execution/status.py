"""Determine the status of a run from its cells, and describe its error.

papermill's own status is not used: after an interrupt, a time-out or a dead kernel it marks cells that never
ran as "completed".
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
PARTS = ("code", "operation", "request_id", "status_message", "offset", "field", "derivation", "log")


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that ended a run."""

    type: str  # class of the error
    what: str
    why: str = ""
    fix: str = ""
    exit_code: int = 1
    # Number of the cell as JupyterLab shows it (`In [3]`); 0 for an error outside of the cells.
    cell: int = 0
    # Other attributes of the error: AWS code, operation, request ID, ...
    detail: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the text of the error."""
        return " ".join(part for part in (self.what, self.why, self.fix) if part)

    def to_json(self) -> dict[str, object]:
        """Return the entry for ``result.json``."""
        return asdict(self)


def run_status(
    notebook: Any,
    *,
    interrupted: bool,
    crash: Failure | None = None,
    described: Mapping[str, Any] | None = None,
) -> tuple[RunStatus, Failure | None]:
    """Return the status of an executed notebook, and the error that ended it.

    The notebook is ``None`` if it never started. `crash` is an error outside of the cells, such as a dead
    kernel. `described` is the error that the kernel saved (`describe`); it has more parts than the text in
    the notebook.
    """
    failure = _first_failure(notebook, described or {}) if notebook is not None else None
    if failure is None and crash is not None:
        failure = crash
    if failure is None and notebook is not None and not _cells_not_run(notebook):
        return "done", None
    if interrupted or (failure is not None and failure.type in INTERRUPTS):
        return "cancelled", _interrupt_failure(failure, notebook)
    if failure is None:
        failure = Failure(
            "RunFailedError",
            "The notebook stopped before its end.",
            why=f"{len(_cells_not_run(notebook))} of its cells did not run." if notebook is not None else "",
            fix="The executed notebook shows the last cell that ran.",
        )
    return ("partial" if failure.exit_code == PARTIAL else "failed"), failure


def describe(error: BaseException) -> dict[str, object]:
    """Return the parts of an error: those of `VmsnixError`, or its class and text."""
    described: dict[str, object] = {"type": type(error).__name__}
    if isinstance(error, errors.VmsnixError):
        described |= {"what": error.what, "why": error.why, "fix": error.fix, "exit_code": error.exit_code}
        described["detail"] = {part: getattr(error, part) for part in PARTS if getattr(error, part, None)}
    return described


def read_error(path: Path) -> dict[str, Any]:
    """Return the error that the kernel saved, and delete the file; empty if there is none."""
    try:
        described = json.loads(files.read(path))
    except (OSError, ValueError, RecursionError):
        return {}
    with suppress(OSError):
        path.unlink()
    return described if isinstance(described, dict) else {}


def _cells_not_run(notebook: Any) -> list[Any]:
    """Return the code cells that did not run."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code"
        and cell.source.strip()
        and cell.execution_count is None
        and "skip-execution" not in cell.metadata.get("tags", [])
    ]


def _first_failure(notebook: Any, described: Mapping[str, Any]) -> Failure | None:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return cell_failure(output, cell.execution_count or 0, described)
    return None


def cell_failure(output: Any, number: int, described: Mapping[str, Any]) -> Failure:
    """Return the error of a cell from its output and from the parts that the kernel saved, if any."""
    name, text = output.ename, plain(output.evalue)
    if described.get("type") == name and "what" in described:
        return Failure(
            name,
            str(described["what"]),
            str(described.get("why", "")),
            str(described.get("fix", "")),
            int(described.get("exit_code", 1)),
            number,
            described.get("detail", {}),
        )
    if name == "SystemExit":
        return Failure(
            name,
            f"Cell {number} ended the notebook: sys.exit({text}).",
            why="A notebook that exits reports no outcome of its job.",
            fix="Raise an error of vmsnix_ops.errors instead.",
            cell=number,
        )
    own_class = getattr(errors, name, None)
    return Failure(
        name,
        f"Cell {number} failed: {name}: {text}".rstrip(": ") if text else f"Cell {number} failed: {name}.",
        why=_origin(output),
        fix="The executed notebook contains the whole traceback.",
        exit_code=int(getattr(own_class, "exit_code", 1)),
        cell=number,
    )


def _origin(output: Any) -> str:
    """Return the last file and line of IPython's traceback."""
    text = plain("\n".join(output.get("traceback", [])))
    frames = re.findall(r"^File (\S+?):(\d+), in ([\w.<>]+)", text, re.MULTILINE)
    return f"Raised at {frames[-1][0]}:{frames[-1][1]} in {frames[-1][2]}." if frames else ""


def _interrupt_failure(failure: Failure | None, notebook: Any) -> Failure:
    if failure is not None and failure.type == "InterruptedRunError":
        return failure
    number = failure.cell if failure is not None else 0
    started = notebook is not None and any(cell.get("execution_count") for cell in notebook.cells)
    where = f"in cell {number}" if number else ("between two cells" if started else "before its first cell")
    return Failure(
        "InterruptedRunError",
        f"The run was interrupted {where}.",
        why="Ctrl-C was pressed, or the process received SIGTERM or SIGHUP.",
        fix="Run it again with the same parameters: it continues where it stopped.",
        cell=number,
        detail=failure.detail if failure is not None else {},
    )
