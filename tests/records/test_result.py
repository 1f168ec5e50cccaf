"""The base of all results."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.display import DisplayTable, make_table
from vmsnix_ops.errors import PartialError, UnsavedError, VmsnixError
from vmsnix_ops.records.result import MOST_ROWS, Result, saving
from vmsnix_ops.records.run_context import RunContext
from vmsnix_ops.runbooks.evidence.github import summary

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Job(Result):
    """A result of a job on some regions, with another file."""

    run: RunContext = field()
    rows: int = 1
    error: VmsnixError | None = None
    title: str = "Regions"

    def as_dict(self) -> dict[str, Any]:
        return {"status": "partial" if self.error else "done"}

    def table(self) -> DisplayTable:
        return make_table(("region", "outcome"), [("eu-west-1", "a|b")] * self.rows)

    def _write_files(self, folder: Path) -> None:
        with saving(folder / "beside.csv"):
            (folder / "beside.csv").write_text("")


@pytest.fixture
def run(tmp_path: Path) -> RunContext:
    return RunContext("r1", "job", tmp_path, managed=True)


def written(run: RunContext) -> dict[str, Any]:
    return json.loads((run.folder / "result.json").read_text())


def test_a_done_result_is_saved_and_raises_nothing(run: RunContext) -> None:
    result = Job(run)
    assert result.save() == run.folder / "result.json"
    assert result.save() == run.folder / "result.json"
    result.raise_for_status()
    assert (written(run)["run_id"], written(run)["status"]) == (result.run_id, "done")
    assert (run.folder / "beside.csv").exists()


def test_a_failed_result_is_saved_and_raises_its_error(run: RunContext) -> None:
    result = Job(run, error=PartialError("Half of it is done.", why="A region refused.", fix="Run it again."))
    result.save()
    assert written(run)["status"] == "partial"
    with pytest.raises(PartialError, match="Half of it is done") as raised:
        result.raise_for_status()
    assert raised.value.exit_code == 3


def test_the_summary_of_a_ci_job_shows_the_table_of_a_result(run: RunContext) -> None:
    Job(run, rows=MOST_ROWS + 1).save()
    text = summary(written(run))
    assert "### Regions\n\n| region | outcome |\n| --- | --- |\n| eu-west-1 | a\\|b |\n" in text
    assert text.count("eu-west-1") == MOST_ROWS


def test_result_json_is_written_although_another_file_fails(run: RunContext) -> None:
    (run.folder / "beside.csv").mkdir()
    with pytest.raises(UnsavedError, match=r"could not be saved in .*beside\.csv"):
        Job(run).save()
    assert written(run)["status"] == "done"


def test_an_unsaved_result_does_not_hide_the_error_of_the_job(run: RunContext) -> None:
    (run.folder / "result.json").mkdir()
    with pytest.raises(UnsavedError):
        Job(run).save()
    with pytest.raises(PartialError, match="Half") as raised:
        Job(run, error=PartialError("Half of it is done.")).save()
    assert "could not be saved" in raised.value.__notes__[0]
