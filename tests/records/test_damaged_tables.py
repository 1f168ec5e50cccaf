"""Damaged or unreachable tables: the work continues, no row is lost, and the tables can be rebuilt."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import deltalake
import pytest

from tests.channels.conftest import HOME, WEST
from tests.publish.conftest import aws, image, plan
from vmsnix_ops.audit.sync import sync
from vmsnix_ops.channels import promote
from vmsnix_ops.errors import RecordsError
from vmsnix_ops.progress import silent
from vmsnix_ops.records import run_tables
from vmsnix_ops.records import tables as tables_module
from vmsnix_ops.records.rebuild import KEYS, rebuild
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops import publish

__all__ = ["aws", "image", "plan"]
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def step(number: int) -> dict[str, object]:
    return {
        "run_id": f"r{number}",
        "step": "upload",
        "status": "created",
        "started_at": NOON,
        "seconds": 1.5,
    }


def commits(folder: Path) -> list[Path]:
    return sorted((folder / "_delta_log").glob("*.json"))


def tear_last_commit(folder: Path) -> None:
    last = commits(folder)[-1]
    last.write_bytes(last.read_bytes()[:40])


def add_foreign_commit(folder: Path) -> None:
    (folder / "_delta_log" / f"{len(commits(folder)):020}.json").write_text("an editor's backup\n")


def lose_data_files(folder: Path) -> None:
    for path in folder.glob("*.parquet"):
        path.unlink()


def need_newer_reader(folder: Path) -> None:
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["x"],
        "writerFeatures": ["x"],
    }
    path = folder / "_delta_log" / f"{len(commits(folder)):020}.json"
    path.write_text(json.dumps({"protocol": protocol}) + "\n")


def need_newer_writer(folder: Path) -> None:
    protocol = {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["x"]}
    path = folder / "_delta_log" / f"{len(commits(folder)):020}.json"
    path.write_text(json.dumps({"protocol": protocol}) + "\n")


def become_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


DAMAGES = [
    tear_last_commit,
    add_foreign_commit,
    lose_data_files,
    need_newer_reader,
    need_newer_writer,
    become_a_file,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.variants(seconds=4)
def test_a_publish_with_damaged_tables_registers_the_ami_and_lists_what_is_not_recorded(
    aws: object, plan: Callable[..., publish.PublishPlan], damage: Callable[[Path], None]
) -> None:
    history = Path(load().history)
    for name in ("runs", "steps", "amis"):
        Tables(history).append(name, [row_of(name)])
        damage(history / name)
    one = plan()
    result = one.apply()
    assert result.ami_id
    shown = str(one.show_history())  # the last cell of the notebook
    if damage is not need_newer_writer:  # it does not prevent a read
        assert "The table 'amis'" in shown
    if damage is not lose_data_files:  # it does not prevent an append
        assert result.as_dict()["status"] == "partial"
        assert any("vmsnix history rebuild steps" in problem for problem in result.problems)


def row_of(table: str) -> dict[str, object]:
    rows: dict[str, dict[str, object]] = {
        "steps": step(0),
        "runs": {"run_id": "r0", "runbook": "publish-ami", "status": "done", "started_at": NOON},
        "amis": {"ami_id": "ami-0", "region": HOME, "recorded_at": NOON, "source": "publish", "name": "x"},
        "promotions": {
            "run_id": "r0", "promoted_at": NOON, "how": "promote", "ami_id": "ami-0", "region": HOME,
        },
    }  # fmt: skip
    return rows[table]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.variants(seconds=4)
def test_a_promotion_with_damaged_tables_sets_the_channel_and_ends_partial(
    aws: object, plan: Callable[..., publish.PublishPlan], damage: Callable[[Path], None]
) -> None:
    ami_id = plan().apply().ami_id
    history = Path(load().history)
    Tables(history).append("promotions", [row_of("promotions")])
    for name in ("steps", "amis", "promotions"):
        damage(history / name)
    wanted = promote.plan(
        ami=ami_id, image="sample", regions=[HOME, WEST], channel="stable", dry_run=False, progress=silent()
    )
    outcomes = wanted.apply()
    assert {row.region for row in outcomes.rows if row.step == "set channel" and row.outcome != "failed"} == {
        HOME,
        WEST,
    }
    assert {row.step for row in outcomes.rows if row.outcome == "failed"} <= {"record"}
    assert outcomes.status == ("done" if damage is lose_data_files else "partial")
    if outcomes.error:
        assert outcomes.error.what.startswith(
            "The promotion is partial: 2 of 2 regions succeeded, 2 could not be recorded."
        )


def test_a_promotion_is_recorded_although_the_table_of_amis_is_damaged(
    aws: object, plan: Callable[..., publish.PublishPlan]
) -> None:
    ami_id = plan().apply().ami_id
    tear_last_commit(Path(load().history) / "amis")
    outcomes = promote.plan(
        ami=ami_id, image="sample", regions=[HOME], channel="stable", dry_run=False, progress=silent()
    ).apply()
    assert outcomes.status == "partial"
    assert list(Tables(load().history).read("promotions")["ami_id"]) == [ami_id]


def test_unsaved_rows_are_saved_later_once(aws: object, plan: Callable[..., publish.PublishPlan]) -> None:
    history = Path(load().history)
    history.mkdir(parents=True)
    (history / "steps").write_text("in the way")
    made = plan()
    result = made.apply()
    assert result.problems
    (history / "steps").unlink()
    for _ in range(2):
        assert run_tables.append_unsaved(made.journal.run.folder, Tables(history)) == []
    recorded = Tables(history).read("steps")
    assert sorted(recorded["step"]) == sorted(timing.step for timing in result.steps)


def use(tables: Tables, name: str) -> None:
    tables.read(name)
    tables.append(name, [row_of(name)])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.variants(seconds=2)
def test_a_damaged_table_is_rebuilt_row_for_row(
    aws: object, plan: Callable[..., publish.PublishPlan], damage: Callable[[Path], None]
) -> None:
    made = plan()
    made.apply()
    tables = open_tables(load())
    before = {name: tables.read(name) for name in ("runs", "steps", "amis")}
    lines = [
        (line["table"], row)
        for line in run_tables.lines_of((made.journal.run.folder / run_tables.FILE_NAME).read_bytes())
        for row in run_tables.rows_from(line)
    ]
    for name, frame in before.items():
        damage(Path(tables.location) / name)
        with pytest.raises(RecordsError, match=f"vmsnix history rebuild {name}"):
            use(tables, name)
        rebuilt = rebuild(tables, name, [row for table, row in lines if table == name])
        assert rebuilt.read + rebuilt.added == len(frame)
        again = tables.read(name).sort_values(list(KEYS[name]), ignore_index=True)
        assert again.equals(frame.sort_values(list(KEYS[name]), ignore_index=True))
        tables.append(name, [row_of(name)])
        assert len(tables.read(name)) == len(frame) + 1
    assert sync().added == 0


def test_rebuilding_a_whole_table_changes_no_row(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    for number in range(5):
        tables.append("steps", [step(number)])
    tables.compact("steps")
    before = tables.read("steps")
    assert rebuild(tables, "steps", [step(3), step(7)]).added == 1
    assert len(tables.read("steps", endpoint="all")) == len(before) + 1


def test_rows_that_differ_in_one_value_are_all_kept_and_restored(tmp_path: Path) -> None:
    rows = [
        {**step(1), "endpoint": "aws", "image": "a"},
        {**step(1), "endpoint": "aws", "image": "b", "seconds": float("nan")},
        {**step(1), "endpoint": "aws", "image": "b", "status": "failed"},
    ]
    tables = Tables(tmp_path, storage_options={})
    tables.append("steps", rows)
    tables.compact("steps")
    before = tables.read("steps")
    for number in (0, 1):  # complete, then a second time
        assert (rebuild(tables, "steps", rows).added, number) == (0, number)
        assert len(tables.read("steps")) == len(before) == 3
    shutil.rmtree(tmp_path / "steps")
    tables.append("steps", rows[:1])
    assert rebuild(tables, "steps", rows).added == 2
    assert sorted(tables.read("steps")["image"]) == ["a", "b", "b"]


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_killed_rebuild_is_finished_by_the_next(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmsnix_ops.sandbox import sandbox

    with ExitStack() as stack:
        location: str | Path = tmp_path
        if place == "bucket":
            served = stack.enter_context(sandbox())
            served.prepare(bucket="evidence")
            for name, value in served.environment.items():
                monkeypatch.setenv(name, value)
            location = "s3://evidence/history"
        tables = Tables(location)
        for number in range(3):
            tables.append("steps", [step(number)])
        moved, original = [], tables_module._move

        def dies(*given: object, **more: object) -> None:
            if moved:
                raise KeyboardInterrupt
            original(*given, **more)  # type: ignore[arg-type]
            moved.append(given)

        with monkeypatch.context() as patched:
            patched.setattr(tables_module, "_move", dies)
            with pytest.raises(KeyboardInterrupt):
                rebuild(tables, "steps", [])
        assert rebuild(tables, "steps", []).read == 3
        assert len(tables.read("steps")) == 3


@pytest.mark.long(seconds=8)
@pytest.mark.long(seconds=10)
def test_tables_that_are_read_while_others_write_and_compact_lose_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables_module, "COMPACT_EVERY", 10)
    monkeypatch.setattr(tables_module, "CHECKPOINT_SECONDS", 0)
    tables, failures = Tables(tmp_path), []
    tables.append("steps", [step(0)])
    done = threading.Event()

    def read() -> None:
        fewest = 1
        while not done.is_set():  # ends: the writer below sets it
            try:
                found = len(tables.read("steps", columns=["run_id"]))
                assert found >= fewest
                fewest = found
            except (AssertionError, RecordsError) as error:
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 120):
            tables.append("steps", [step(number)])
    finally:
        done.set()
        reader.join(timeout=60)
    assert not reader.is_alive()
    assert failures == []
    assert len(tables.read("steps")) == 120


def test_a_reader_whose_checkpoint_was_deleted_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, original, opened = Tables(tmp_path), deltalake.DeltaTable, []
    for number in range(25):
        tables.append("steps", [step(number)])
    checkpoints = sorted((tmp_path / "steps" / "_delta_log").glob("*.checkpoint.parquet"))
    contents = {path: path.read_bytes() for path in checkpoints}

    def open_table(*given: object, **more: object) -> object:
        opened.append(given)
        for path, content in contents.items():
            path.unlink() if len(opened) == 1 else path.write_bytes(content)
        return original(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(deltalake, "DeltaTable", open_table)
    assert len(tables.read("steps")) == 25
    assert len(opened) == 2


def test_replaced_checkpoints_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "COMPACT_EVERY", 50)
    tables = Tables(tmp_path)
    for number in range(60):
        tables.append("steps", [step(number)])
    log = tmp_path / "steps" / "_delta_log"
    assert len(list(log.glob("*.checkpoint.parquet"))) > 2  # young ones may be in use
    monkeypatch.setattr(tables_module, "CHECKPOINT_SECONDS", 0)
    tables.compact("steps")
    assert len(list(log.glob("*.checkpoint.parquet"))) == 2
    assert len(Tables(tmp_path).read("steps")) == 60


def test_files_used_in_the_last_seven_days_are_kept(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    for number in range(3):
        tables.append("steps", [step(number)])
    before = set((tmp_path / "steps").glob("*.parquet"))
    tables.compact("steps")
    assert before <= set((tmp_path / "steps").glob("*.parquet"))
    assert timedelta(hours=tables_module.KEEP_HOURS) == timedelta(days=7)
