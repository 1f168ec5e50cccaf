"""A runbook in a kernel that vmsnix did not start is a run with its journal, its guard and its row."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.runbooks.execution.kernel import RunFiles, code_cells, kernel, runs_in
from tests.support import DEADLINE
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.evidence import chain, verification
from vmsnix_ops.runbooks.evidence.runs import open_archive, repair
from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TIMINGS = code_cells("import-timings")
DELETE = """
import boto3
ec2 = boto3.client("ec2", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="y")
ec2.delete_snapshot(SnapshotId="snap-0123456789abcdef0")
"""

PLAN = """
class Plan:
    def __getattr__(self, name):
        return lambda: ec2.delete_snapshot(SnapshotId="snap-0123456789abcdef0")
plan = Plan()
"""
# On the closed port of the tests, which counts as a sandbox otherwise.
ON_AWS = 'from vmsnix_ops.runbooks.execution import interactive\ninteractive.endpoint_kind = lambda: "aws"'


def rows(state: Path) -> list[dict[str, Any]]:
    return Tables(state / "history").read("runs").to_dict("records")


def with_cell(runbook: str, source: str, folder: Path) -> Path:
    """Return a copy of a runbook with another cell after the first call."""
    notebook = json.loads(catalog.find(runbook).path.read_text())
    first = next(
        at for at, cell in enumerate(notebook["cells"]) if "check_parameters(" in "".join(cell["source"])
    )
    added = copy.deepcopy(notebook["cells"][first])
    added |= {"id": "added", "source": source}
    notebook["cells"].insert(first + 1, added)
    path = folder / f"copy-of-{runbook}.ipynb"
    path.write_text(json.dumps(notebook))
    return path


def program(words: list[str], state: Path) -> tuple[int, str, RunFiles]:
    """Run a program that executes a notebook; return its exit code, its output, and the run."""
    state.mkdir()
    environment: Mapping[str, str] = {**os.environ, "VMSNIX_STATE": str(state)}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=environment,
        cwd=state,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    (run,) = runs_in(state)
    return done.returncode, done.stdout + done.stderr, run


def test_a_session_in_jupyterlab_is_one_run(tmp_path: Path) -> None:
    with kernel(tmp_path) as lab:
        lab.execute_cells("import-timings", "parameters", "parameter-types")
        run = lab.run()
        assert run.values["status"] == "running"
        assert run.values["interactive"] is True
        assert run.values["parameters"] == {"image": "", "region": "", "via": ""}

        lab.execute(
            TIMINGS["parameters"].replace('region: str = ""', 'region: str = "eu-west-1"'), "parameters"
        )
        lab.execute_cells("import-timings", "parameter-types")
        assert run.values["parameters"]["region"] == "eu-west-1"
        assert lab.execute("unknown_name", "scratch").startswith("NameError")
        assert run.values["status"] == "running"
        lab.execute_cells("import-timings", "choose", "usual", "plot")
        lab.execute_cells("import-timings", "choose", "newest")
        assert run.values["status"] == "done"
        (row,) = rows(tmp_path)
        assert (row["run_id"], row["status"], row["interactive"]) == (run.folder.name, "done", True)
        assert row["journal_sha256"] == run.entries[row["journal_entries"] - 1]["sha256"]

        lab.execute("password = 'AKIAABCDEFGHIJKLMNOP'")
        lab.shut_down()
    assert run.values["status"] == "done"
    assert [found.folder for found in runs_in(tmp_path)] == [run.folder]
    assert chain.first_defect(run.entries) is None
    assert "AKIA" not in run.journal.read_text()
    by_cell = {entry["cell"]: entry for entry in run.entries if entry["kind"] == "cell"}
    assert [entry["outcome"] for entry in by_cell.values()] == [*["ok"] * 3, "error", *["ok"] * 6]
    assert "unknown_name" in by_cell[5]["error"]["what"]
    notes = run.notes()
    assert notes[5] == "This cell is not in the runbook."
    assert notes[7] == "Out of date: a cell above it was executed again later as cell [9]."
    assert "Out of order: it was executed after cell [8]" in notes[9]
    assert "4 cells above it had not been executed" in notes[10]
    assert notes[10] in (run.folder / "report.html").read_text()


def test_the_guard_follows_dry_run_and_a_killed_kernel_leaves_its_journal(tmp_path: Path) -> None:
    first = code_cells("retire-amis")
    with kernel(tmp_path, AWS_REGION="eu-central-1") as lab:
        assert lab.execute(ON_AWS) == ""
        lab.execute_cells("retire-amis", "parameters", "parameter-types")
        assert lab.execute(DELETE).startswith("SideEffectsError")
        lab.execute(
            first["parameters"].replace("dry_run: bool = True", "dry_run: bool = False"), "parameters"
        )
        lab.execute_cells("retire-amis", "parameter-types")
        refused = lab.execute(DELETE)
        assert re.match(r"ConfirmationError: .*DeleteSnapshot: cell \[\d+\] is not in the runbook", refused)
        assert re.match(r"ConfirmationError: .*cell \[\d+\] was modified", lab.execute(DELETE, "plan"))
        call = first["parameter-types"].replace("globals()", "globals(), modified=True")
        assert lab.execute(call, "parameter-types") == ""
        assert lab.execute(DELETE, "plan").startswith("EndpointConnectionError")
        lab.execute_cells("retire-amis", "parameter-types")
        assert lab.execute(PLAN) == ""
        assert "was modified" in lab.execute(first["staying"], "staying")  # the plan was made by other cells
        lab.execute_cells("retire-amis", "parameters", "parameter-types")
        assert lab.execute(DELETE).startswith("SideEffectsError")
        lab.kill()
        run = lab.run()
    assert run.values["status"] == "running"
    assert chain.read_anchors(tmp_path, run.folder.name)[-1].sha256 == run.entries[-1]["sha256"]
    repaired = subprocess.run(
        [sys.executable, "-m", "vmsnix_ops", "runs", "repair", run.folder.name],
        env={**os.environ, "VMSNIX_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert "lost" in repaired.stdout, repaired.stderr
    assert run.values["status"] == "lost"
    assert "SideEffectsError" in (run.folder / "notebook.ipynb").read_text()


def test_papermill_makes_a_run(tmp_path: Path) -> None:
    book = str(catalog.find("import-timings").path)
    code, output, run = program(["papermill", book, "out.ipynb", "-r", "image", "a"], tmp_path / "state")
    assert code == 0, output
    assert (run.values["status"], run.values["exit_code"], run.values["problems"]) == ("done", 0, [])
    assert run.values["parameters"] == {"image": "a", "region": "", "via": ""}
    assert run.values["files"].keys() >= {"notebook.ipynb", "report.html", "evidence.jsonl", "log.txt"}
    assert [row["status"] for row in rows(tmp_path / "state")] == ["done"]


@pytest.mark.parametrize(
    ("source", "options", "exit_code", "status"),
    [
        ("from vmsnix_ops import errors\nraise errors.PartialError('one of two')", [], 3, "partial"),
        ("1", ["-r", "via", "neither"], 2, "failed"),
    ],
)
@pytest.mark.variants
def test_the_exit_code_that_papermill_does_not_have_is_in_the_result(
    tmp_path: Path, source: str, options: list[str], exit_code: int, status: str
) -> None:
    book = with_cell("import-timings", source, tmp_path)
    words = ["papermill", str(book), "out.ipynb", *options]
    code, output, run = program(words, tmp_path / "state")
    assert code == 1, output
    assert (run.values["status"], run.values["exit_code"]) == (status, exit_code)
    assert run.values["failure"]["what"] in (run.folder / "report.html").read_text()
    assert [row["status"] for row in rows(tmp_path / "state")] == [status]


@pytest.mark.parametrize("words", [["nbconvert", "--execute", "--to", "notebook"], ["jupyter", "execute"]])
@pytest.mark.variants(seconds=6)
def test_jupyter_execute_and_nbconvert_make_a_run_also_of_a_changed_copy(
    tmp_path: Path, words: list[str]
) -> None:
    book = with_cell("import-timings", "raise ValueError('a mistake')", tmp_path)
    code, output, run = program([*words, str(book)], tmp_path / "state")
    assert code == 1, output
    assert (run.values["status"], run.values["exit_code"]) == ("failed", 1)
    assert "a mistake" in run.values["error"]


def test_a_new_first_call_after_the_end_starts_a_new_run(tmp_path: Path) -> None:
    wrong = TIMINGS["parameters"].replace('via: Literal["", "import", "direct"] = ""', 'via: str = "neither"')
    with kernel(tmp_path) as lab:
        lab.execute(wrong, "parameters")
        assert lab.execute(TIMINGS["parameter-types"], "parameter-types").startswith("ParameterError")
        assert not (tmp_path / "archive").exists()  # a mistake that a person corrects is no run
        lab.execute_cells("import-timings")
        lab.execute_cells("import-timings", "parameters", "parameter-types", "choose")
        first, second = runs_in(tmp_path)
        entries = second.entries
        second.journal.unlink()
        second.journal.mkdir()  # an error of the journal stops no cell
        lab.execute_cells("import-timings", "usual")
        lab.shut_down()
    assert any("The journal of the run could not be written" in text for text in second.values["problems"])
    assert first.folder != second.folder
    assert (first.values["status"], first.values["problems"]) == ("done", [])
    assert second.values["status"] == "cancelled"
    assert second.values["failure"]["what"] == "The kernel was shut down before its last cell."
    assert [entry["source"] for entry in entries if entry["kind"] == "earlier"] == [TIMINGS["parameters"]]
    assert first.notes() == {}


def test_a_kernel_that_dies_under_papermill_leaves_a_lost_run(tmp_path: Path) -> None:
    book = with_cell("import-timings", "import os\nos._exit(1)", tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    with sandbox() as aws:
        aws.prepare(bucket="evidence", region="us-east-1")
        variables = {**aws.environment, "VMSNIX_ARCHIVE": "s3://evidence/runs", "VMSNIX_STATE": str(state)}
        environment = {**os.environ, **variables}
        words = [sys.executable, "-m", "papermill", str(book), "out.ipynb"]
        done = subprocess.run(words, env=environment, cwd=state, stderr=-1, timeout=DEADLINE)
        assert done.returncode != 0
        settings = load(tmp_path, variables)
        archive = open_archive(settings, environment=environment)
        (lost,) = archive.runs()
        assert lost.status == "lost"
        entries = chain.read(archive.local_folder(lost.run_id))
        assert entries[-1]["source"].endswith("os._exit(1)")
        before = verification.verify(archive, settings, lost)
        assert [(check.name, check.finding) for check in before.checks] == [("journal", "intact")]

        (repaired,) = repair(archive, settings)
        assert (repaired.status, repaired.problems) == ("lost", ())
        (found,) = archive.runs()
        assert b"os._exit(1)" in archive.read_file(found, "notebook.ipynb")
        after = verification.verify(archive, settings, found)
        assert {check.finding for check in after.checks} <= {"intact", "not anchored"}


def test_an_archive_on_s3_gets_the_evidence_of_papermill(tmp_path: Path) -> None:
    book = catalog.find("import-timings").path
    state = tmp_path / "state"
    state.mkdir()
    with sandbox() as aws:
        aws.prepare(bucket="evidence", region="us-east-1")
        variables = {**aws.environment, "VMSNIX_ARCHIVE": "s3://evidence/runs", "VMSNIX_STATE": str(state)}
        words = [sys.executable, "-m", "papermill", str(book), "out.ipynb"]
        subprocess.run(
            words, env={**os.environ, **variables}, cwd=state, check=True, stderr=-1, timeout=DEADLINE
        )
        settings = load(tmp_path, variables)
        archive = open_archive(settings, environment={**os.environ, **variables})
        (run,) = archive.runs()
        found = verification.verify(archive, settings, run)
    assert (run.values["problems"], run.status, found.finding) == ([], "done", "intact")
    assert "the archive (s3://evidence/runs)" in found.anchors
    assert not list((state / "runs").iterdir())
