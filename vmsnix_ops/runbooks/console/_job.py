"""The process of one run of the console: ``python -m vmsnix_ops.runbooks.console._job FOLDER``.

Reads the request, runs the runbook as `execute.run` does for everybody, watches for the wish to stop, and
leaves the outcome. A publish that was cancelled is undone: an interrupt alone keeps what the next try could
use. The lock that this was started with is let go when it ends, however it ends.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmsnix_ops import files
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.console.jobs import CANCEL, OUTCOME, REQUEST, SCREEN
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.execution._interrupts import Interrupter
from vmsnix_ops.runbooks.execution._kernel import describe
from vmsnix_ops.runbooks.execution.execute import run

WATCH_SECONDS = 0.1


def main(folder: Path) -> None:
    """Run what the folder asks for."""
    # The shell that started this lets its children ignore Ctrl-C, and theirs, the notebook's kernel too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    stopper, over = Interrupter(), threading.Event()
    watch = threading.Thread(target=_watch, args=(folder / CANCEL, stopper, over), daemon=True)
    watch.start()
    outcome: dict[str, Any] = {key: request[key] for key in ("run_id", "runbook")}
    try:
        with files.open_text(folder / SCREEN) as screen:
            outcome |= asdict(
                run(
                    catalog.read(Path(request["notebook"])),
                    request["given"],
                    screen=screen,
                    interrupter=stopper,
                    run_id=request["run_id"],
                    confirmed=request["confirmed"],
                )
            )
    except VmsnixError as error:
        outcome |= {"verdict": "failed", "exit_code": error.exit_code, "error": describe(error)}
    over.set()
    if outcome["verdict"] == "cancelled" and stopper.requested:
        outcome |= _undo(request["run_id"], Path(request["run_folder"]))
    files.write(folder / OUTCOME, json.dumps(outcome, default=str))


def _watch(wish: Path, stopper: Interrupter, over: threading.Event) -> None:
    """Interrupt the run once somebody wishes so, and kill its kernel once they insist."""
    heeded = 0
    while not over.wait(WATCH_SECONDS):
        try:
            wished = int(wish.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        while heeded < wished:
            heeded += 1
            stopper.interrupt()


def _undo(run_id: str, run_folder: Path) -> dict[str, object]:
    """Remove what a cancelled publish began; what else was run has left no journal, and nothing to undo."""
    if not (run_folder / archive.JOURNAL).is_file():
        return {}
    from vmsnix_ops.publish.undo import plan_undo

    try:
        return {"undone": [str(leftover) for leftover in plan_undo(run_id).apply()]}
    except VmsnixError as error:
        return {"undo_problem": str(error)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
