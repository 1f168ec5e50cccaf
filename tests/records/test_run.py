"""The current run, and its result.json."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs.records_pages import result_page
from vmsnix_ops.errors import RecordsError, SchemaError, SettingsError
from vmsnix_ops.records.result import KEYS, parse, write_result
from vmsnix_ops.records.run_context import RunContext, current_run, new_run_id
from vmsnix_ops.settings import load


def saved(run: RunContext) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run.folder / "result.json").read_text())
    return values


@pytest.fixture
def run(tmp_path: Path) -> RunContext:
    return RunContext("r1", "publish-ami", tmp_path, managed=True)


def test_the_run_comes_from_the_runner(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on demand"
    run = current_run(
        "ignored",
        environment={"VMSNIX_RUN_ID": "r1", "VMSNIX_RUNBOOK": "publish-ami", "VMSNIX_RUN_DIR": str(folder)},
    )
    assert run == RunContext("r1", "publish-ami", folder, managed=True)
    assert folder.is_dir()


def test_without_a_runner_each_call_creates_a_run(tmp_path: Path) -> None:
    settings = load(tmp_path, {"VMSNIX_STATE": str(tmp_path / "state")})
    first, second = (current_run("explore", settings=settings, environment={}) for _ in range(2))
    assert first.run_id != second.run_id
    assert (first.runbook, first.managed) == ("explore", False)
    assert first.folder == tmp_path / "state" / "runs" / first.run_id
    assert first.folder.is_dir()


def test_the_state_folder_comes_from_the_same_environment(tmp_path: Path) -> None:
    run = current_run(environment={"VMSNIX_STATE": str(tmp_path)})
    assert run.folder.parent == tmp_path / "runs"
    assert run.runbook == "interactive"


@pytest.mark.parametrize("run_id", ["../up", "a/b", "-option", ".", "", "x" * 129, "new\nline", "é"])
def test_a_run_id_cannot_lead_out_of_a_folder(tmp_path: Path, run_id: str) -> None:
    environment = {"VMSNIX_RUN_ID": run_id, "VMSNIX_STATE": str(tmp_path)}
    if run_id == "":
        assert not current_run(environment=environment).managed
        return
    with pytest.raises(SettingsError, match="Invalid run ID"):
        current_run(environment=environment)


def test_run_ids_sort_by_time_and_differ() -> None:
    early = new_run_id("publish-ami", now=datetime(2026, 9, 1, tzinfo=UTC))
    late = new_run_id("audit", now=datetime(2026, 11, 1, tzinfo=UTC))
    later = new_run_id("audit", now=datetime(2026, 11, 1, microsecond=1000, tzinfo=UTC))
    assert early < late < later
    assert len({new_run_id("x") for _ in range(50)}) == 50
    assert re.fullmatch(r"[A-Za-z0-9-]+", new_run_id("../odd name/é"))


def test_an_unwritable_run_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordsError, match="Could not create the folder of the run"):
        current_run(environment={"VMSNIX_STATE": str(tmp_path / "file")})


def test_the_result_has_every_documented_key(run: RunContext) -> None:
    path = write_result(run, {"ami_id": "ami-1", "seconds": 2.5, "report": Path("/x/report.html")})
    assert path == run.folder / "result.json"
    result = json.loads(path.read_text())
    assert list(result)[: len(KEYS)] == list(KEYS)
    assert (result["run_id"], result["runbook"], result["ami_id"]) == ("r1", "publish-ami", "ami-1")
    assert result["report"] == "/x/report.html"
    assert result["snapshot_id"] is None


def test_the_page_of_keys_is_up_to_date() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "result.md").read_text()
    assert page == result_page(), "run python -m docs.records_pages"


def test_a_runbook_may_add_keys_and_the_runner_may_add_more_later(run: RunContext) -> None:
    write_result(run, {"ami_id": "ami-1", "checks": [{"name": "bucket", "outcome": "pass"}]})
    write_result(run, {**saved(run), "report": "report.html", "status": "done"})
    result = saved(run)
    assert (result["ami_id"], result["report"], result["status"]) == ("ami-1", "report.html", "done")
    assert result["checks"] == [{"name": "bucket", "outcome": "pass"}]


def test_times_paths_and_numpy_numbers_become_plain_json(run: RunContext) -> None:
    write_result(
        run, {"at": datetime(2026, 1, 2, tzinfo=UTC), "count": np.int64(3), "nested": {"where": Path("/x")}}
    )
    result = saved(run)
    assert (result["at"], result["count"], result["nested"]) == ("2026-01-02T00:00:00Z", 3, {"where": "/x"})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"ami_id": 5}, "'ami_id' in the result: 5.*It is a int, but str is expected"),
        ({"seconds": "5"}, "'seconds' in the result: '5'.*int or float"),
        ({"seconds": True}, "'seconds' in the result: True"),
        ({"status": "ok"}, "The statuses are running, done, partial, failed, cancelled"),
        ({"steps": {}}, "'steps'.*list"),
        ({"ratio": float("nan")}, "Could not write the result of the run as JSON"),
        ({"at": datetime(2026, 1, 2)}, "has no time zone"),  # noqa: DTZ001
        ({"client": object()}, "Could not write the result of the run as JSON"),
    ],
)
def test_an_invalid_result_is_refused_and_the_old_one_is_kept(
    run: RunContext, result: dict[str, object], message: str
) -> None:
    write_result(run, {"ami_id": "ami-old"})
    with pytest.raises(SchemaError, match=message):
        write_result(run, result)
    assert saved(run)["ami_id"] == "ami-old"
    assert [path.name for path in run.folder.iterdir()] == ["result.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_a_missing_or_broken_result_is_empty(content: bytes | None) -> None:
    assert parse(content) == {}


def test_a_missing_run_folder_is_created(run: RunContext) -> None:
    run.folder.rmdir()
    assert write_result(run, {}).is_file()


def test_an_unwritable_result_reports_that_the_work_is_done(run: RunContext) -> None:
    run.folder.rmdir()
    run.folder.write_text("in the way")
    with pytest.raises(RecordsError, match="The job completed, but its record could not be saved") as caught:
        write_result(run, {})
    assert caught.value.exit_code == 3
