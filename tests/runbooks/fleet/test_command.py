"""``vmsnix fleet``: a plan is shown, refused or confirmed. Whole fleets run in test_fleet and test_kills."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.cli import main, output
from vmsnix_ops.runbooks import fleet
from vmsnix_ops.runbooks.execution import notices
from vmsnix_ops.runbooks.fleet.report import FleetResult

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

DELETES = "dry_run: bool = True  # change nothing\n"


@pytest.fixture
def plan(shelf: Shelf, tmp_path: Path) -> Path:
    shelf.put("10-greet.ipynb")
    shelf.put("60-end.ipynb", parameters=DELETES, side_effects="deletes")
    path = tmp_path / "plan.toml"
    path.write_text('name = "try"\nnotebooks = "notebooks"\n[[entry]]\nrunbook = "greet"\n')
    return path


def test_a_plan_is_only_shown_by_default(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", str(plan)]) == 0
    shown = capsys.readouterr().out
    assert "Fleet try: 1 target on this machine" in shown
    assert "planned  greet   greet" in shown
    assert "Dry run: nothing will be run." in shown
    assert main(["fleet", str(plan), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["fleet"], printed["dry_run"]) == ("try", True)
    assert [(one["target"], one["state"]) for one in printed["targets"]] == [("greet", "planned")]


@pytest.mark.parametrize(
    "words", ["fleet --plan PLAN", "run fleet PLAN", "run fleet --plan PLAN", "run fleet"]
)
def test_every_spelling_is_the_same_command(
    plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    plan.rename(plan.with_name("fleet.toml"))  # the default
    monkeypatch.chdir(plan.parent)
    assert main(words.replace("PLAN", "fleet.toml").split()) == 0
    assert "Fleet try: 1 target on this machine" in capsys.readouterr().out


def test_two_plan_files_are_refused(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", str(plan), "--plan", str(plan)]) == 2
    assert "use PLAN or --plan, not both." in capsys.readouterr().err


def test_an_invalid_plan_is_a_usage_error(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.write_text(plan.read_text().replace('"greet"', '"gret"'))
    assert main(["fleet", str(plan), "--no-dry-run"]) == 2
    assert "Did you mean 'greet'?" in capsys.readouterr().err


def test_targets_that_delete_need_a_confirmation(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with plan.open("a") as file:
        file.write('[[entry]]\nrunbook = "end"\nparameters = { dry_run = false }\n')
    assert main(["fleet", str(plan), "--no-dry-run"]) == 2
    printed = capsys.readouterr()
    assert "end (own) dry_run=False; deletes" in printed.out
    assert "1 target would delete resources. Pass --yes to confirm." in printed.err


def test_a_fleet_whose_output_cannot_be_written_runs(
    plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"report": "R", "result": "S", "problems": []}
    done = FleetResult("try", "run", False, ({"target": "greet", "state": "done"},), 1.0, values)
    monkeypatch.setattr(fleet.FleetPlan, "apply", lambda *_, **__: done)
    monkeypatch.setattr(output, "discard_output", lambda *_: None)  # not that of the tests
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", full)
        assert main(["fleet", str(plan), "--no-dry-run"]) == 3
        assert main(["fleet", str(plan)]) == 1
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    shown = capsys.readouterr().err
    assert "The output could not be written completely: No space left on device." in shown
    assert "report    R" in shown


@pytest.mark.parametrize(("states", "code"), [(["done"], 0), (["done", "failed"], 3), (["failed"], 1)])
def test_the_exit_code_follows_the_states_of_the_targets(
    plan: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    states: list[str],
    code: int,
) -> None:
    documents = tuple({"target": state, "state": state, "error": "No."} for state in states)
    values = {"report": "R", "result": "S", "problems": []}
    outcome = FleetResult("try", "run", False, documents, 1.0, values)
    monkeypatch.setattr(fleet.FleetPlan, "apply", lambda *_, **__: outcome)
    sent: list[Any] = []
    monkeypatch.setattr(notices, "_post", lambda url, payload: sent.append((url, payload["status"])))
    monkeypatch.setenv("VMSNIX_NOTIFY_WEBHOOK", "https://hooks.example.com/fleets")
    assert main(["fleet", str(plan), "--no-dry-run", "--json"]) == code
    assert sent == ([("https://hooks.example.com/fleets", outcome.status)] if code else [])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == values
    assert ("Error: " in printed.err) == (code != 0)
