"""``vmsnix runs`` and ``vmsnix rerun``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.command_line import run_vmsnix, shelf
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf

__all__ = ["run_vmsnix", "shelf"]
PARAMETERS = """\
name: str = "world"  # whom to greet
regions: list[str] = []  # where
image: str = ""  # which image
"""
FAIL = """\
from vmsnix_ops.errors import RoleError
raise RoleError("It broke.", why="It was old.", fix="Mend it.")
"""
RunVmsnix = Any


def result(run_vmsnix: RunVmsnix, *words: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run_vmsnix(*words, "--json")[1])
    return values


def test_past_runs_are_listed_opened_and_repeated(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_vmsnix("runs") == (0, "No runs yet.\n", "")
    assert run_vmsnix("runs", "--image", "ecs-node") == (0, "No matching runs.\n", "")
    shelf.put("10-try-this.ipynb", "import os\nprint(name, regions, os.getcwd())", parameters=PARAMETERS)
    shelf.put("20-fail-well.ipynb", FAIL)
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    first = result(
        run_vmsnix, "run", "try-this", "--name", "Ada", "--regions", "eu-west-1", "--image", "x#gc-fwd"
    )
    monkeypatch.chdir(tmp_path)
    failed = result(run_vmsnix, "run", "fail-well")

    lines = run_vmsnix("runs")[1].splitlines()[1:]
    assert [line.split()[2:4] for line in lines] == [["fail-well", "failed"], ["try-this", "done"]]
    assert "It broke." in lines[0]
    assert lines[1].split()[-1] == first["run_id"]
    assert [row["run_id"] for row in json.loads(run_vmsnix("runs", "--json", "--image", "gc-fwd")[1])] == [
        first["run_id"]
    ]
    assert [row["status"] for row in json.loads(run_vmsnix("runs", "--json", "--status", "failed")[1])] == [
        "failed"
    ]

    code, shown, _ = run_vmsnix("runs", "show", failed["run_id"][-6:])
    assert code == 0
    for words in (
        "fail-well failed in",
        "It broke.",
        "It was old.",
        "Mend it.",
        "report.html",
        "vmsnix rerun",
    ):
        assert words in shown
    shown = run_vmsnix("runs", "show", first["run_id"])[1]
    assert 'parameters name Ada regions ["eu-west-1"] image x#gc-fwd' in " ".join(shown.split())
    assert json.loads(run_vmsnix("runs", "show", first["run_id"], "--json")[1]) == first

    code, printed, complaint = run_vmsnix("rerun", first["run_id"], "--name", "Bob")
    assert (code, complaint) == (0, "")
    assert f"Bob ['eu-west-1'] {there}" in printed  # the rest as it was, in the folder where it was

    shelf.put("10-try-this.ipynb", "1", parameters="name: str = ''  # whom\nplace: str = ''  # where\n")
    code, printed, complaint = run_vmsnix("rerun", first["run_id"])
    assert (code, printed) == (2, "")
    assert "Removed since then: regions, image; added since then: place." in complaint


def test_a_report_is_opened_in_the_browser(
    shelf: Shelf, run_vmsnix: RunVmsnix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    shelf.put("10-try-this.ipynb", "print('hello')")
    with sandbox(speed=1000) as aws:
        aws.client("s3").create_bucket(Bucket="evidence")
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        made = result(run_vmsnix, "run", "try-this", "--archive", "s3://evidence/runs")
        assert run_vmsnix("runs", "--archive", "s3://evidence/runs")[1].rstrip().endswith(made["run_id"])
        words = ("runs", "show", made["run_id"], "--archive", "s3://evidence/runs", "--open")
        assert run_vmsnix(*words)[0] == 0
        opened = Path((tmp_path / "opened").read_text().removeprefix("file://"))
        assert "hello" in opened.read_text()
        assert run_vmsnix("runs", "--archive", "s3://nowhere")[0] == 1
        code, _, complaint = run_vmsnix("runs", "show", "2025", "--archive", "s3://evidence/runs")
    assert code == 2
    assert complaint.startswith("Error: No run '2025' in s3://evidence/runs.\n")


def test_a_run_on_the_sandbox_is_not_repeated_in_the_real_aws(
    shelf: Shelf, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://aws.invalid")  # no sandbox
    ran = shelf.folder.parent / "ran"
    shelf.put("10-try-this.ipynb", f"open({str(ran)!r}, 'w').close()")
    folder = shelf.archive / "20261120T080000366Z-try-this-0a0b0c"
    folder.mkdir(parents=True)
    entry = {"runbook": "try-this", "status": "done", "sandbox": "http://127.0.0.1:1", "parameters": {}}
    (folder / "result.json").write_text(json.dumps(entry))
    code, _, complaint = run_vmsnix("rerun", "0a0b0c")
    assert code == 2
    assert "ran on a sandbox" in complaint
    assert "--sandbox" in complaint
    assert not ran.exists()
    assert "vmsnix rerun --sandbox 2026" in run_vmsnix("runs", "show", "0a0b0c")[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # a shell that uses this sandbox
    assert "vmsnix rerun 2026" in run_vmsnix("runs", "show", "0a0b0c")[1]


def test_the_next_command_of_a_lost_run_works(
    shelf: Shelf, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://aws.invalid")  # no sandbox
    shelf.put("10-try-this.ipynb", "1")
    folder = shelf.archive / "20261120T080000366Z-try-this-0a0b0c"
    folder.mkdir(parents=True)
    entry = {"runbook": "try-this", "status": "running", "sandbox": "http://127.0.0.1:1", "parameters": {}}
    for more, command in (({}, "runs resume"), ({"interactive": True}, "runs repair")):
        (folder / "result.json").write_text(json.dumps(entry | more))
        assert f": vmsnix {command} --sandbox {folder.name}\n" in run_vmsnix("runs", "show", "0a0b0c")[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    code, _, complaint = run_vmsnix("runs", "resume", "0a0b0c")
    assert (code, f"vmsnix rerun {folder.name}" in " ".join(complaint.split())) == (2, True)


@pytest.mark.parametrize("width", ["60", "80", "120"])
@pytest.mark.variants(quick=2)
def test_lists_show_whole_values_in_a_narrow_terminal(
    shelf: Shelf, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    shelf.put("20-fail-well.ipynb", FAIL)
    run_id = result(run_vmsnix, "run", "fail-well")["run_id"]
    monkeypatch.setenv("COLUMNS", width)
    for words, values in (
        (("runs",), [run_id, "fail-well", "failed", "It broke."]),
        (("history", "runs"), [run_id, "fail-well", "failed", "started_at"]),
        (("runs", "verify", run_id), ["notebook.ipynb", "report.html", "intact"]),
        (("list",), ["fail-well", "read-only"]),
    ):
        shown = run_vmsnix(*words)[1]
        assert [value for value in values if value not in shown] == []
        assert "…" not in shown
        assert [line for line in shown.splitlines()[:-1] if len(line) > int(width)] == []


def test_verify_finds_a_changed_report(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    shelf.put("10-try-this.ipynb", "print(name)", parameters=PARAMETERS)
    run = result(run_vmsnix, "run", "try-this")
    code, shown, _ = run_vmsnix("runs", "verify", run["run_id"])
    assert code == 0, shown
    assert re.search(r"intact. Anchored in the state folder .*, the history \(table runs\).", shown)
    Path(run["report"]).write_text("All is well.")
    code, shown, _ = run_vmsnix("runs", "verify", run["run_id"], "--json")
    assert code == 1
    assert json.loads(shown)["finding"] == "changed"
