"""``vmsnix fleet``: a plan shown, refused, confirmed; the whole way is in test_fleet and test_fleet_kills."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.cli import main
from vmsnix_ops.runbooks import fleet
from vmsnix_ops.runbooks.fleet.report import FleetResult

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

DESTROYS = "dry_run: bool = True  # only look\n"


@pytest.fixture
def plan(shelf: Shelf, tmp_path: Path) -> Path:
    shelf.put("10-greet.ipynb")
    shelf.put("60-end.ipynb", parameters=DESTROYS, side_effects="destroys")
    path = tmp_path / "plan.toml"
    path.write_text('name = "try"\nnotebooks = "notebooks"\n[[entry]]\nrunbook = "greet"\n')
    return path


def test_a_plan_is_only_shown_unless_it_is_said_otherwise(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fleet", str(plan)]) == 0
    shown = capsys.readouterr().out
    assert "Fleet try: 1 target on this machine, a new round" in shown
    assert "planned  greet   greet" in shown
    assert "Dry run: nothing will be run." in shown
    assert main(["fleet", str(plan), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["fleet"], told["dry_run"]) == ("try", True)
    assert [(one["target"], one["state"]) for one in told["targets"]] == [("greet", "planned")]


@pytest.mark.parametrize(
    "words", ["fleet --plan PLAN", "run fleet PLAN", "run fleet --plan PLAN", "run fleet"]
)
def test_every_spelling_is_the_same_command(
    plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    plan.rename(plan.with_name("fleet.toml"))  # the default
    monkeypatch.chdir(plan.parent)
    assert main(words.replace("PLAN", "fleet.toml").split()) == 0
    assert "Fleet try: 1 target on this machine, a new round" in capsys.readouterr().out


def test_two_plan_files_are_refused(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", str(plan), "--plan", str(plan)]) == 2
    assert "use PLAN or --plan, not both." in capsys.readouterr().err


def test_a_plan_that_is_wrong_is_wrong_use(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.write_text(plan.read_text().replace('"greet"', '"gret"'))
    assert main(["fleet", str(plan), "--no-dry-run"]) == 2
    assert "Did you mean 'greet'?" in capsys.readouterr().err


def test_what_destroys_wants_to_be_confirmed(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with plan.open("a") as file:
        file.write('[[entry]]\nrunbook = "end"\nparameters = { dry_run = false }\n')
    assert main(["fleet", str(plan), "--no-dry-run"]) == 2
    told = capsys.readouterr()
    assert "end dry_run=False; destroys" in told.out
    assert "1 target would destroy resources. Pass --yes to confirm." in told.err


@pytest.mark.parametrize(("states", "code"), [(["done"], 0), (["done", "failed"], 3), (["failed"], 1)])
def test_the_exit_code_is_the_fleets(
    plan: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    states: list[str],
    code: int,
) -> None:
    documents = tuple({"target": state, "state": state, "error": "No."} for state in states)
    outcome = FleetResult("try", "round", False, documents, 1.0, "s", {"report": "R", "result": "S"})
    monkeypatch.setattr(fleet.FleetPlan, "apply", lambda *_, **__: outcome)
    assert main(["fleet", str(plan), "--no-dry-run", "--json"]) == code
    told = capsys.readouterr()
    assert json.loads(told.out) == {"report": "R", "result": "S"}
    assert ("Error: " in told.err) == (code != 0)
