"""``vmsnix runs resume``: the next attempt of the same run, with the evidence of the earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.command_line import run_vmsnix, shelf
from vmsnix_ops import settings
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import chain
from vmsnix_ops.runbooks.evidence import runs as evidence
from vmsnix_ops.runbooks.execution.execute import run
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    import pytest

    from tests.runbooks.shelf import Shelf

__all__ = ["run_vmsnix", "shelf"]
PARAMETERS = 'name: str = "world"  # whom to greet\n'
# Its second attempt finds what the first one made.
CELLS = (
    "from pathlib import Path\nimport os\n"
    "print('hello', name, 'reused' if Path('made').exists() else 'created', os.environ['VMSNIX_RUN_ID'])\n"
    "Path('made').touch()",
    "assert Path('ready').exists(), 'not ready'",
)
RunVmsnix = Any


def test_a_failed_run_is_resumed_as_the_next_attempt_and_keeps_the_evidence_of_the_first(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put("10-try-this.ipynb", *CELLS, parameters=PARAMETERS)
    monkeypatch.chdir(tmp_path)
    code, printed, _ = run_vmsnix("try-this", "--name", "Ada", "--json")
    assert code == 1
    first = json.loads(printed)
    assert first["attempt"] == 1
    log = Path(first["log"]).read_bytes()
    (tmp_path / "ready").touch()
    shelf.put("10-try-this.ipynb", "raise SystemExit('another notebook')", parameters=PARAMETERS)

    code, printed, _ = run_vmsnix("runs", "resume", first["run_id"][-6:], "--json")
    second = json.loads(printed)
    assert (code, second["status"], second["attempt"]) == (0, "done", 2)
    assert second["run_id"] == first["run_id"]
    assert second["parameters"] == first["parameters"]
    notebook = Path(second["notebook"]).read_text()
    assert f"hello Ada reused {first['run_id']}" in notebook
    assert notebook.count("injected-parameters") == 1
    earlier = Path(second["result"]).parent / "attempt-1"
    before = json.loads((earlier / "result.json").read_text())
    assert before["status"] == "failed"
    assert Path(before["log"]).read_bytes() == log
    assert Path(before["notebook"]).parent == earlier
    assert {"attempt-1/result.json", "attempt-1/notebook.ipynb"} <= second["files"].keys()

    shown = run_vmsnix("runs", "show", first["run_id"])[1]
    assert "attempt 1 " in shown
    assert str(earlier / "report.html") in shown
    assert run_vmsnix("runs", "verify", first["run_id"])[0] == 0
    rows = open_tables(settings.load()).read("runs", endpoint="all")
    assert sorted(zip(rows["attempt"], rows["status"], strict=True)) == [(1, "failed"), (2, "done")]
    opened = evidence.open_archive(settings.load())
    assert [(row["attempt"], row["status"]) for _, row in opened.rows()] == [(1, "failed"), (2, "done")]

    code, _, complaint = run_vmsnix("runs", "resume", first["run_id"])
    assert code == 2
    assert "cannot be resumed. It is done." in " ".join(complaint.split())


def test_a_run_that_cannot_be_resumed_is_refused_with_the_reason(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = shelf.run("raise ValueError('x')", archive=tmp_path / "state" / "archive")
    path = Path(outcome.result)
    values = json.loads(path.read_text())

    def refusal(*words: str, **changed: object) -> str:
        path.write_text(json.dumps(values | changed))
        code, _, complaint = run_vmsnix("runs", "resume", outcome.run_id, *words)
        assert code == 2
        return " ".join(complaint.split())

    assert "It ran with vmsnix 0.0.1, and this is" in refusal(package_version="0.0.1")
    assert "only evidence is missing" in refusal(status="partial", failure=None)
    assert "A kernel of JupyterLab" in refusal(interactive=True)
    assert "The run needs a value for name." in refusal(parameters={"name": "[secret removed: a token]"})
    assert "used AWS, but this command would use a sandbox" in refusal(endpoint="aws")
    assert "is not as the run left it: result.json." in refusal(
        parameters={**values["parameters"], "name": "Eve"}
    )
    path.write_text(json.dumps(values))
    other = archives.RunFolder(outcome.run_id, path.parent, "", {})
    path.write_text(json.dumps({**values, "status": "running"}))
    other.mark_running()
    assert "It is running on" in refusal(status="running")
    assert "Another process has just resumed it" in refusal()
    other.release()
    assert json.loads(path.read_text()) == values
    with sandbox() as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        assert f"and these are the credentials of {aws.account}" in refusal(account="210987654321")
        path.write_text(json.dumps(values | {"account": "210987654321", "package_version": "0.0.1"}))
        assert run_vmsnix("runs", "resume", outcome.run_id, "--anyway")[0] == 1
    assert json.loads(path.read_text())["attempt"] == 2


def test_a_lost_run_in_an_archive_on_s3_is_resumed_from_another_machine(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shelf.put("10-try-this.ipynb", *CELLS, parameters=PARAMETERS)
    with sandbox() as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        aws.client("s3").create_bucket(Bucket="records")
        archive = "s3://records/archive"
        first = run("try-this", {"name": "Ada"}, archive=archive, record=False)
        assert first.status == "failed"
        monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "another"))
        (tmp_path / "ready").touch()
        code, printed, _ = run_vmsnix("runs", "resume", first.run_id, "--archive", archive, "--json")
        second = json.loads(printed)
        assert (code, second["status"], second["attempt"]) == (0, "done", 2)
        assert "hello Ada reused" in json.dumps(second) or second["notebook"].startswith("s3://")
        opened = evidence.open_archive(settings.load(), location=archive)
        found = opened.find(first.run_id)
        assert b"not ready" in opened.read_file(found, "attempt-1/log.txt")
        (earlier,) = opened.earlier_attempts(found)
        assert earlier["status"] == "failed"
        assert opened.read_file(evidence.ArchivedRun(first.run_id, earlier, "failed"), "report.html")
        assert run_vmsnix("runs", "verify", first.run_id, "--archive", archive)[0] == 0


def test_a_killed_run_without_a_stored_notebook_is_resumed(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ready").touch()
    shelf.put("10-try-this.ipynb", *CELLS, parameters=PARAMETERS)
    outcome = run("try-this", {"name": "Ada"}, record=False)
    folder = Path(outcome.result).parent
    started, *_ = chain.read(folder)
    for path in folder.iterdir():
        path.unlink()
    (folder / chain.FILE_NAME).write_text(json.dumps(started) + "\n")
    (folder / archives.RESULT).write_text(json.dumps(started["entry"] | {"status": "running"}))
    shown = run_vmsnix("runs", "show", outcome.run_id)[1]
    assert f"Continue it: vmsnix runs resume {outcome.run_id}" in shown
    code, printed, _ = run_vmsnix("runs", "resume", outcome.run_id, "--json")
    assert (code, json.loads(printed)["attempt"]) == (0, 2)


def test_a_killed_run_is_not_resumed_with_edited_parameters_or_cells(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shelf.put("10-try-this.ipynb", *CELLS, parameters=PARAMETERS)
    outcome = run("try-this", {"name": "Ada"}, record=False)
    folder = Path(outcome.result).parent
    journal, result, notebook = (
        folder / name for name in (chain.FILE_NAME, archives.RESULT, archives.NOTEBOOK)
    )
    started, *_ = chain.read(folder)
    entry = started["entry"] | {"status": "running"}
    kept = notebook.read_text()
    # As if it had been killed before its end.
    before = {result: json.dumps(entry), notebook: kept, journal: json.dumps(started) + "\n"}
    cells = json.loads(kept)
    cells["cells"][-1]["source"] = "print('another cell')"
    renamed = entry | {"parameters": {"name": "Eve"}}
    forged = chain.chained({"kind": "start", "entry": renamed, "cells": started["cells"]}, 1, "")
    for changed, what in (
        ({result: json.dumps(renamed)}, "result.json"),
        ({notebook: json.dumps(cells)}, "notebook.ipynb"),
        ({result: json.dumps(renamed), journal: json.dumps(forged) + "\n"}, "journal"),
    ):
        for path, text in (before | changed).items():
            path.write_text(text)
        code, _, complaint = run_vmsnix("runs", "resume", outcome.run_id)
        assert (code, f"is not as the run left it: {what}." in " ".join(complaint.split())) == (2, True)
        assert run_vmsnix("runs", "verify", outcome.run_id)[0] == 1
    for path, text in before.items():
        path.write_text(text)
    assert run_vmsnix("runs", "verify", outcome.run_id)[0] == 0
    (tmp_path / "ready").touch()
    code, printed, _ = run_vmsnix("runs", "resume", outcome.run_id, "--json")
    assert (code, json.loads(printed)["attempt"]) == (0, 2)
    assert run_vmsnix("runs", "verify", outcome.run_id)[0] == 0
