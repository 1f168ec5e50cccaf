"""Repair saves what a run could not save: rows of tables, its status, evidence on S3."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.command_line import run_vmsnix
from tests.runbooks.execution.test_signals import WAITS, Running
from tests.runbooks.shelf import make_shelf
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

    RunVmsnix = Callable[..., tuple[int, str, str]]

__all__ = ["run_vmsnix"]
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
        [{"run_id": run.run_id, "step": "x", "status": "created", "started_at": datetime.now(UTC)}],
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


@dataclass(frozen=True)
class Past:
    """An archive and a history with two runs."""

    archive: Path
    history: Path
    first: str
    second: str


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Past:
    folder = tmp_path_factory.mktemp("past")
    history = folder / "history"
    history.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMSNIX_HISTORY", str(history))
        shelf = make_shelf(folder, folder / "archive", patch)
        first, second = shelf.run("print(1)", record=True), shelf.run("print(2)", record=True)
    shutil.copytree(shelf.archive, folder / "copies" / "archive")
    shutil.copytree(history, folder / "copies" / "history")
    return Past(shelf.archive, history, first.run_id, second.run_id)


@pytest.fixture
def past(two_runs: Past, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Past:
    for place, variable in ((two_runs.archive, "VMSNIX_ARCHIVE"), (two_runs.history, "VMSNIX_HISTORY")):
        shutil.rmtree(place)
        shutil.copytree(place.parent / "copies" / place.name, place)
        monkeypatch.setenv(variable, str(place))
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    return two_runs


def test_rows_that_a_run_could_not_save_are_saved_by_repair(
    shelf: Shelf, history: Path, run_vmsnix: RunVmsnix
) -> None:
    for name in ("steps", "runs"):
        (history / name).write_text("in the way")
    outcome = shelf.run(RECORDS, record=True)
    assert (outcome.status, outcome.exit_code) == ("partial", 3)
    assert "kept for later" in shelf.screen.getvalue()
    code, printed, _ = run_vmsnix("runs", "repair")
    assert code == 3
    assert "vmsnix history rebuild steps" in printed
    for name in ("steps", "runs"):
        (history / name).unlink()
    assert run_vmsnix("runs", "repair")[0] == 0
    tables = Tables(history)
    assert list(tables.read("steps")["run_id"]) == [outcome.run_id]
    (row,) = tables.read("runs").to_dict("records")
    assert (row["run_id"], row["status"]) == (outcome.run_id, "done")
    entry = json.loads((shelf.archive / outcome.run_id / "result.json").read_text())
    assert (entry["status"], entry["problems"], entry["exit_code"]) == ("done", [], 0)
    assert "No runs to" in run_vmsnix("runs", "repair")[1]
    assert len(Tables(history).read("steps")) == 1


def test_tables_are_rebuilt_from_the_archive(shelf: Shelf, history: Path, run_vmsnix: RunVmsnix) -> None:
    shelf.run(RECORDS, record=True)
    tables = Tables(history)
    before = {name: tables.read(name) for name in ("runs", "steps")}
    for name in before:
        for path in (history / name).rglob("*"):
            if path.is_file():
                path.write_bytes(b"overwritten")
    code, printed, complained = run_vmsnix("history", "rebuild", "runs", "steps")
    assert code == 0, complained
    for name, frame in before.items():
        assert tables.read(name).equals(frame)
        assert f"{name}: 0 rows kept, 1 restored" in printed


def test_a_killed_run_is_marked_lost_by_repair(shelf: Shelf, history: Path, run_vmsnix: RunVmsnix) -> None:
    running = Running(shelf, WAITS)
    assert "No runs to" in run_vmsnix("runs", "repair")[1]  # it is running
    running.kill()
    assert "lost" in run_vmsnix("runs", "repair")[1]
    (folder,) = shelf.archive.glob("*/")
    assert json.loads((folder / "result.json").read_text())["status"] == "lost"


def deeply(path: Path) -> None:
    path.write_text("[" * 100_000)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:100])


def wrong(**values: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return write


WRONG = {
    "numbers": wrong(parameters=3, problems=5, files=5, steps=5, image=5, runbook=5, started_at=5, slow=5),
    "texts": wrong(parameters="x", problems="abc", failure="x", seconds="x", exit_code="x", steps=["x"]),
    "lists": wrong(status=["done"], ami_id=["ami"], error=["x"], finished_at=["x"], user=["x"], slow=["x"]),
    "no time": wrong(started_at="yesterday"),
    "no number": wrong(seconds=float("nan")),
    "files without places": wrong(files={"report.html": {}, "log.txt": 5}),
}


@pytest.mark.parametrize("damage", [deeply, as_pipe, as_folder, as_loop, cut, *WRONG.values()])
def test_a_damaged_entry_hides_no_other_run(
    past: Past, run_vmsnix: RunVmsnix, damage: Callable[[Path], None]
) -> None:
    damage(past.archive / past.second / "result.json")
    for words in (("runs",), ("runs", "--json"), ("runs", "--runbook", "try-this")):
        code, printed, complained = run_vmsnix(*words)
        assert code == 0, complained
        assert past.first in printed
        assert past.second in printed
    assert run_vmsnix("runs", "--ami", "ami-1")[0] == 0
    assert run_vmsnix("runs", "show", past.second)[0] in (0, 1, 2)
    assert run_vmsnix("runs", "repair")[0] in (0, 3)
    (past.history / "runs" / "_delta_log" / "00000000000000000000.json").write_text("{")
    assert run_vmsnix("history", "rebuild", "runs")[0] == 0
    assert set(Tables(past.history).read("runs")["run_id"]) == {past.first, past.second}


@pytest.mark.parametrize("content", [None, "", "{", '{"run_id": "x", "sta', "[]", "{}", "null", "\0" * 300])
def test_a_damaged_entry_is_listed_and_restored_from_the_tables(
    past: Past, run_vmsnix: RunVmsnix, content: str | None
) -> None:
    entry = past.archive / past.second / "result.json"
    whole = json.loads(entry.read_text())
    if content is None:
        entry.unlink()
    else:
        entry.write_text(content)
    listed = {one["run_id"]: one["status"] for one in json.loads(run_vmsnix("runs", "--json")[1])}
    assert listed == {past.first: "done", past.second: "lost" if content is None else "unreadable"}
    code, shown, complained = run_vmsnix("runs", "show", past.second)
    assert code == (0 if content is None else 1)
    assert f"vmsnix runs repair {past.second}" in " ".join((shown + complained).split())
    for words in (["rerun", past.second], ["runs", "resume", past.second], ["runs", "verify", past.second]):
        code, shown, complained = run_vmsnix(*words)
        assert code == 1
        assert "result.json" in shown + complained
    assert run_vmsnix("runs", "repair", past.second)[0] == 0
    restored = json.loads(entry.read_text())
    for key in ("run_id", "runbook", "status", "exit_code", "started_at", "parameters", "user", "host"):
        assert restored[key] == whole[key], key
    assert {"notebook.ipynb", "report.html"} <= set(restored["files"])
    assert "No runs to" in run_vmsnix("runs", "repair")[1]


def test_a_run_with_a_damaged_entry_and_no_rows_is_lost(
    shelf: Shelf, history: Path, run_vmsnix: RunVmsnix
) -> None:
    outcome = shelf.run("print(1)")
    (shelf.archive / outcome.run_id / "result.json").write_text("{")
    assert f"{outcome.run_id}  lost" in run_vmsnix("runs", "repair")[1]
    (listed,) = json.loads(run_vmsnix("runs", "--json")[1])
    assert (listed["status"], listed["runbook"]) == ("lost", "try-this")


def test_a_lost_run_shows_the_ami_that_it_created(shelf: Shelf, history: Path, run_vmsnix: RunVmsnix) -> None:
    running = Running(shelf, WAITS)
    running.kill()
    (folder,) = shelf.archive.glob("*/")
    made = {"ami_id": "ami-0123456789abcdef0", "name": "acme", "region": "eu-west-1", "source": "publish"}
    made |= {"run_id": folder.name, "recorded_at": datetime.now(UTC)}
    Tables(history).append("amis", [made])
    assert "lost" in run_vmsnix("runs", "repair")[1]
    entry = json.loads((folder / "result.json").read_text())
    assert (entry["status"], entry["ami_id"]) == ("lost", "ami-0123456789abcdef0")
    assert entry["image_name"] == "acme"


def test_a_run_whose_entry_did_not_fit_on_the_disk_gets_its_status_from_the_history(
    shelf: Shelf, history: Path, run_vmsnix: RunVmsnix
) -> None:
    """The first entry is complete, and has the status running."""
    outcome = shelf.run("print(1)", record=True)
    entry = shelf.archive / outcome.run_id / "result.json"
    first = {key: value for key, value in json.loads(entry.read_text()).items() if key in BEGUN}
    entry.write_text(json.dumps(first | {"status": "running"}))
    assert f"{outcome.run_id}  done" in run_vmsnix("runs", "repair")[1]
    restored = json.loads(entry.read_text())
    assert (restored["status"], restored["exit_code"]) == ("done", 0)
    assert restored["finished_at"]


BEGUN = ("run_id", "runbook", "started_at", "parameters", "user", "host", "cwd")
LINES = (
    '{"table": "steps"}',
    '{"table": "steps", "once": "a", "rows": 5}',
    '{"table": "steps", "once": "b", "rows": [5]}',
    '{"table": "steps", "once": ["c"], "rows": []}',
    '{"table": ["steps"], "once": "d", "rows": []}',
    '{"saved": {"a": 1}}',
    '{"table": "steps", "once": "e", "rows": [{"run_id": 5}]}',
    '{"table": "steps", "once": "f", "rows": [{"run_id": "x", "step": "x", "started_at": "then"}]}',
    "[" * 100_000,
)


def test_a_line_that_is_not_a_row_hides_no_other_line(
    shelf: Shelf, history: Path, run_vmsnix: RunVmsnix
) -> None:
    (history / "steps").write_text("in the way")
    outcome = shelf.run(RECORDS, record=True)
    kept = shelf.archive / outcome.run_id / "rows.jsonl"
    kept.write_text("\n".join((*LINES, kept.read_text())))
    (history / "steps").unlink()
    run_vmsnix("runs", "repair")
    assert list(Tables(history).read("steps")["run_id"]) == [outcome.run_id]
    (history / "steps" / "_delta_log" / "00000000000000000000.json").write_text("{")
    for path in (history / "steps").glob("*.parquet"):
        path.unlink()
    assert run_vmsnix("history", "rebuild", "steps")[0] == 0
    assert list(Tables(history).read("steps")["run_id"]) == [outcome.run_id]


SPOILS = """
import os
from pathlib import Path
entry = Path(os.environ["VMSNIX_RUN_DIR"]) / "result.json"
entry.unlink()
"""


@pytest.mark.parametrize(
    "how",
    [
        "os.mkfifo(entry)",
        "entry.write_text('[' * 100_000)",
        'entry.write_text(\'{"problems": 5, "steps": 7, "failure": "x"}\')',
        "os.mkfifo(entry.with_name('.error.json')); raise ValueError('it ends so')",
    ],
)
@pytest.mark.variants(quick=2, seconds=1)
def test_a_notebook_that_damages_its_entry_still_gets_its_verdict(shelf: Shelf, how: str) -> None:
    outcome = shelf.run(SPOILS + how)
    assert outcome.status == ("failed" if "raise" in how else "done")
    if "mkfifo(entry)" not in how:
        assert json.loads((shelf.archive / outcome.run_id / "result.json").read_text())["runbook"]


def test_repair_searches_a_killed_run_for_secrets(
    shelf: Shelf, history: Path, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "Zq7/hunter+Xk29=pL0")
    running = Running(
        shelf,
        "import os; from pathlib import Path\n"
        "(Path(os.environ['VMSNIX_RUN_DIR']) / 'kept').write_text(os.environ['SERVICE_TOKEN'])\n" + WAITS,
    )
    running.kill()
    assert "lost" in run_vmsnix("runs", "repair")[1]
    (kept,) = shelf.archive.glob("*/kept")
    assert kept.read_text() == "[secret removed: secret of the environment]"
