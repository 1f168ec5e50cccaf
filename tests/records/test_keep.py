"""`history.keep` keeps a table with the run: CSV, result.json, report, job summary, and a scrap."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tests.runbooks.conftest import shelf
from tests.runbooks.execution.kernel import runs_in
from tests.runbooks.execution.test_interactive import with_cell
from tests.support import DEADLINE
from vmsnix_ops import errors, history
from vmsnix_ops.audit.reports import ShownFindings
from vmsnix_ops.display import frame_table
from vmsnix_ops.records.result import Result, write_result
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.runbooks.evidence.github import summary

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf
    from vmsnix_ops.records.run_context import RunContext

__all__ = ["shelf"]

FRAME = pd.DataFrame(
    {
        "image": ["ecs-node", "=1+1"],
        "amis": [3, 0],
        "monthly_usd": [1.2345, float("nan")],
        "oldest": pd.to_datetime(["2026-01-02T03:04:05Z", None]),
    }
)


class Counted(Result):
    """A result."""

    def frame(self) -> pd.DataFrame:
        return FRAME[["amis"]]


KEEP = """
import pandas as pd
from vmsnix_ops import history
frame = pd.DataFrame({"image": ["ecs-node"], "amis": [3]})
history.keep(frame, "management", title="AMIs by image")
"""


@pytest.fixture
def this_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunContext:
    """The run that a runner has started in this process."""
    monkeypatch.setenv("VMSNIX_RUN_ID", "the-run")
    monkeypatch.setenv("VMSNIX_RUN_DIR", str(tmp_path / "run"))
    return current_run()


def values(this: RunContext) -> dict[str, Any]:
    return json.loads((this.folder / "result.json").read_text())


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def scraps(notebook: Path) -> dict[str, Any]:
    """Return the scraps of an executed notebook, as scrapbook reads them."""
    found = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            for kind, scrap in output.get("data", {}).items():
                if kind.startswith("application/scrapbook.scrap."):
                    assert output["output_type"] == "display_data"
                    assert output["metadata"]["scrapbook"] == {
                        "name": scrap["name"],
                        "data": True,
                        "display": True,
                    }
                    assert {"text/plain", "text/html"} < output["data"].keys()
                    assert (kind, scrap["encoder"], scrap["version"]) == (
                        "application/scrapbook.scrap.json+json",
                        "json",
                        1,
                    )
                    found[scrap["name"]] = scrap["data"]
    return found


def test_a_kept_table_is_a_csv_file_and_a_table_of_the_result(this_run: RunContext) -> None:
    history.keep(FRAME, "management", title="For Monday")
    assert rows(this_run.folder / "management.csv") == [
        ["image", "amis", "monthly_usd", "oldest"],
        ["ecs-node", "3", "1.2345", "2026-01-02T03:04:05.000000Z"],
        ["'=1+1", "0", "", ""],  # no formula for a spreadsheet
    ]
    (table,) = values(this_run)["tables"]
    assert (table["name"], table["file"], table["title"]) == ("management", "management.csv", "For Monday")
    assert table["rows"] == [["ecs-node", "3", "1.23", "2026-01-02 03:04"], ["=1+1", "0", "-", "-"]]
    assert "### For Monday" in summary({**values(this_run), "status": "done"})


def test_a_kept_table_is_printed_in_a_program(
    this_run: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    history.keep(FRAME, "management")
    assert capsys.readouterr().out.splitlines()[0] == "management"
    assert this_run.folder.is_dir()


def test_the_same_name_replaces_a_table_and_others_stay(this_run: RunContext) -> None:
    history.keep(FRAME, "management")
    history.keep(FRAME.head(1), "other")
    history.keep(FRAME.head(1), "management")
    tables = values(this_run)["tables"]
    assert {one["name"]: len(one["rows"]) for one in tables} == {"other": 1, "management": 1}
    assert len(rows(this_run.folder / "management.csv")) == 2


def test_the_result_of_a_job_keeps_the_tables(this_run: RunContext) -> None:
    history.keep(FRAME, "management")
    own = {"title": "Steps", "columns": ["step"], "rows": []}
    write_result(this_run, {"status": "done", "tables": [own]})
    history.keep(FRAME, "second")
    found = values(this_run)
    assert [one.get("name") for one in found["tables"]] == [None, "management", "second"]
    assert found["status"] == "done"


def test_without_a_runner_all_tables_of_a_process_are_in_one_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    monkeypatch.setattr("vmsnix_ops.runbooks.history._own_run", None)
    history.keep(FRAME, "one")
    history.keep(FRAME, "two")
    (folder,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"one.csv", "two.csv", "result.json"}


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (FRAME.groupby("image")["amis"].sum(), ["image", "amis"]),
        (FRAME.groupby("image").size(), ["image", "value"]),
        (FRAME.groupby("image").agg({"amis": ["min", "max"]}), ["image", "amis min", "amis max"]),
        (frame_table(FRAME[["amis"]]), ["amis"]),
        (ShownFindings(FRAME[["amis"]], 2), ["amis"]),
        (Counted(), ["amis"]),
        ([{"image": "a", "amis": 1}], ["image", "amis"]),
        (FRAME.set_axis([1, 2, 3, 4], axis="columns"), ["1", "2", "3", "4"]),
        (FRAME.head(0), list(FRAME.columns)),
    ],
)
def test_frames_series_and_results_are_kept_as_tables(
    this_run: RunContext, table: Any, columns: list[str]
) -> None:
    history.keep(table, "management")
    assert rows(this_run.folder / "management.csv")[0] == columns


def test_a_long_table_is_shortened_in_the_result_only(this_run: RunContext) -> None:
    history.keep(pd.DataFrame({"number": range(1234)}), "numbers")
    (table,) = values(this_run)["tables"]
    assert (len(table["rows"]), table["title"]) == (200, "numbers: the first 200 of 1,234 rows")
    assert len(rows(this_run.folder / "numbers.csv")) == 1235


def test_secrets_are_removed(this_run: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key-of-some-length")
    history.keep([{"note": "key: a-secret-key-of-some-length"}], "notes")
    for path in this_run.folder.iterdir():
        assert "a-secret-key" not in path.read_text()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "two words", "x" * 101, 3, "a\n"])
def test_invalid_names_are_refused(this_run: RunContext, name: Any) -> None:
    with pytest.raises(errors.ParameterError, match="Invalid name of a table"):
        history.keep(FRAME, name)
    assert list(this_run.folder.iterdir()) == []


def test_other_files_of_the_run_are_not_replaced(this_run: RunContext) -> None:
    (this_run.folder / "findings.csv").write_text("rule\n")
    with pytest.raises(errors.ParameterError, match="another file findings"):
        history.keep(FRAME, "findings")


@pytest.mark.parametrize("table", [3, None, pd.concat([FRAME, FRAME], axis=1)])
def test_values_that_are_not_tables_are_refused(this_run: RunContext, table: Any) -> None:
    with pytest.raises(errors.ParameterError, match="Cannot keep"):
        history.keep(table, "management")
    assert list(this_run.folder.iterdir()) == []


def test_a_runbook_keeps_a_table(shelf: Shelf) -> None:
    outcome = shelf.run(KEEP, 'history.keep(frame.assign(amis=4), "management")')
    assert outcome.values["status"] == "done", outcome.values["error"]
    (table,) = outcome.values["tables"]
    assert (table["name"], table["rows"]) == ("management", [["ecs-node", "4"]])
    assert rows(Path(outcome.values["files"]["management.csv"]["place"]))[1] == ["ecs-node", "4"]
    assert scraps(Path(outcome.notebook)) == {"management": [{"image": "ecs-node", "amis": 4}]}
    page = Path(outcome.values["report"]).read_text()
    assert "AMIs by image" in page
    assert "scrapbook" not in page


def test_plain_papermill_keeps_a_table(tmp_path: Path) -> None:
    notebook, state = with_cell("import-timings", KEEP, tmp_path), tmp_path / "state"
    state.mkdir()
    subprocess.run(
        [sys.executable, "-m", "papermill", str(notebook), str(state / "executed.ipynb")],
        env={**os.environ, "VMSNIX_STATE": str(state)},
        cwd=state,
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )
    assert scraps(state / "executed.ipynb") == {"management": [{"image": "ecs-node", "amis": 3}]}
    (this,) = runs_in(state)
    kept = {one["name"]: one for one in this.values["tables"] if one.get("name")}
    assert kept["management"]["rows"] == [["ecs-node", "3"]]
    assert rows(this.folder / "management.csv")[1] == ["ecs-node", "3"]
    assert "AMIs by image" in (this.folder / "report.html").read_text()
