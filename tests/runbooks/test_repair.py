"""What a run could not save is saved later: rows of the tables, verdicts, evidence on S3."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.command_line import say
from tests.runbooks.test_signals import WAITS, Running
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

    Say = Callable[..., tuple[int, str, str]]

__all__ = ["say"]
RECORDS = """
from datetime import UTC, datetime
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.errors import RecordsError
from vmsnix_ops.settings import load
run = current_run()
try:
    RunTables(load(), run).append(
        "steps",
        [{"run_id": run.run_id, "step": "x", "status": "finished", "started_at": datetime.now(UTC)}],
    )
except RecordsError:
    print("kept for later")
"""


@pytest.fixture
def history(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shelf.archive.parent / "history"
    folder.mkdir()
    monkeypatch.setenv("VMSNIX_HISTORY", str(folder))
    monkeypatch.setenv("VMSNIX_ARCHIVE", str(shelf.archive))
    return folder


def test_rows_that_a_run_could_not_save_are_saved_by_repair(shelf: Shelf, history: Path, say: Say) -> None:
    for name in ("steps", "runs"):
        (history / name).write_text("in the way")
    outcome = shelf.run(RECORDS, record=True)
    assert outcome.exit_code == 3
    assert "kept for later" in shelf.screen.getvalue()
    code, said, _ = say("runs", "repair")
    assert code == 3
    assert "vmsnix history rebuild steps" in said
    for name in ("steps", "runs"):
        (history / name).unlink()
    assert say("runs", "repair")[0] == 0
    tables = Tables(history)
    assert list(tables.read("steps")["run_id"]) == [outcome.run_id]
    assert list(tables.read("runs")["run_id"]) == [outcome.run_id]
    entry = json.loads((shelf.archive / outcome.run_id / "result.json").read_text())
    assert (entry["problems"], entry["exit_code"]) == ([], 0)
    assert "No run needs" in say("runs", "repair")[1]
    assert len(Tables(history).read("steps")) == 1


def test_tables_are_rebuilt_from_the_archive(shelf: Shelf, history: Path, say: Say) -> None:
    shelf.run(RECORDS, record=True)
    tables = Tables(history)
    before = {name: tables.read(name) for name in ("runs", "steps")}
    for name in before:
        for path in (history / name).rglob("*"):
            if path.is_file():
                path.write_bytes(b"overwritten")
    code, said, complained = say("history", "rebuild", "runs", "steps")
    assert code == 0, complained
    for name, frame in before.items():
        assert tables.read(name).equals(frame)
        assert f"{name}: 0 rows kept, 1 restored" in said


def test_a_killed_run_is_marked_lost_by_repair(shelf: Shelf, history: Path, say: Say) -> None:
    running = Running(shelf, WAITS)
    assert "No run needs" in say("runs", "repair")[1]  # it is under way
    running.process.kill()
    os.kill(running.helper, signal.SIGTERM)
    running.end()
    assert "lost" in say("runs", "repair")[1]
    (folder,) = shelf.archive.iterdir()
    assert json.loads((folder / "result.json").read_text())["status"] == "lost"
