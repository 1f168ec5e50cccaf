"""Ctrl-C, SIGTERM and SIGHUP, sent to a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import read_line, wait_until
from vmsnix_ops.runbooks.evidence.runs import Archive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.runbooks.shelf import Shelf

ROOT = Path(__file__).parents[3]
PROGRAM = """# forked
import sys
from pathlib import Path
from vmsnix_ops.runbooks.execution.execute import run
outcome = run("try-this", folder=Path(sys.argv[1]), archive=sys.argv[2], screen=sys.stdout, record=False)
print(outcome.result, flush=True)
sys.exit(outcome.exit_code)
"""
WAITS = """
import subprocess, time
helper = subprocess.Popen(["sleep", "300"])
try:
    print("under way", helper.pid, flush=True)
    time.sleep(300)
finally:
    print("cleaned up", flush=True)
"""
STUBBORN = """
import time
said = False
while True:
    try:  # a signal can arrive after the first output
        if not said:
            said = True
            print("under way", 0, flush=True)
        time.sleep(300)
    except KeyboardInterrupt:
        print("not yet", flush=True)
"""


class Running:
    """A run in its own process, whose kernel is running."""

    def __init__(self, shelf: Shelf, cell: str, *, before: Sequence[str] = ()) -> None:
        shelf.put("10-try-this.ipynb", cell, "print('never')")
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", PROGRAM, str(shelf.folder), str(shelf.archive)],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VMSNIX_STATE": str(shelf.archive.parent / "state")},
        )
        self.helper = int(self.wait_for("under way").split()[-1])

    def wait_for(self, words: str) -> str:
        return read_line(self.process, words)

    def kill(self) -> None:
        """Kill the run, and end the program of its notebook, which has inherited the pipes."""
        self.process.kill()
        os.kill(self.helper, signal.SIGTERM)
        assert self.end()[0] == -signal.SIGKILL

    def end(self) -> tuple[int, str, str]:
        printed, complained = self.process.communicate(timeout=120)
        return self.process.returncode, printed, complained


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.variants
def test_a_signal_lets_the_notebook_clean_up_and_keeps_the_evidence(
    shelf: Shelf, number: signal.Signals
) -> None:
    running = Running(shelf, WAITS)
    running.process.send_signal(number)
    code, printed, complained = running.end()
    assert code == 1
    assert "cleaned up" in printed
    assert "never\n" not in printed
    assert f"{number.name}: the notebook cleans up" in complained
    assert "Traceback" not in complained
    result = json.loads(Path(printed.split()[-1]).read_text())
    assert result["status"] == "cancelled"
    assert "cleaned up" in Path(result["notebook"]).read_text()
    assert Path(result["report"]).is_file()
    # The programs that the notebook had started were interrupted with it.
    wait_until(lambda: not Path(f"/proc/{running.helper}").exists(), "the end of the notebook's program")


def test_a_hangup_is_ignored_by_a_run_that_was_started_to_ignore_it(shelf: Shelf) -> None:
    running = Running(shelf, WAITS, before=["nohup"])
    running.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(timeout=2)
    running.process.send_signal(signal.SIGTERM)
    code, printed, complained = running.end()
    assert code == 1
    assert "cleaned up" in printed
    assert "SIGHUP" not in complained


def test_a_second_signal_stops_at_once_and_keeps_the_evidence(shelf: Shelf) -> None:
    running = Running(shelf, STUBBORN)
    running.process.send_signal(signal.SIGTERM)
    running.wait_for("not yet")
    running.process.send_signal(signal.SIGTERM)
    code, printed, complained = running.end()
    assert code == 1
    assert "stopping immediately" in complained
    assert json.loads(Path(printed.split()[-1]).read_text())["status"] == "cancelled"


def test_a_killed_run_leaves_its_files(shelf: Shelf) -> None:
    running = Running(shelf, WAITS)
    running.kill()
    (folder,) = shelf.archive.glob("*/")
    assert json.loads((folder / "result.json").read_text())["status"] == "running"
    assert Archive(str(shelf.archive), folder).find(folder.name).status == "lost"
    cells = json.loads((folder / "notebook.ipynb").read_text())["cells"]
    assert [cell.get("execution_count") for cell in cells] == [None, 1, None, None]
    assert "under way" in (folder / "log.txt").read_text()
