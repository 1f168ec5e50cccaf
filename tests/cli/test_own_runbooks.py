"""Own runbooks: a folder in vmsnix.toml, whose notebooks are commands like those of the package."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from tests.command_line import run_vmsnix
from tests.runbooks.shelf import notebook
from vmsnix_ops import history
from vmsnix_ops.cli import COMMANDS, cli, completion, lab
from vmsnix_ops.errors import PlanError
from vmsnix_ops.runbooks import catalog, copies
from vmsnix_ops.runbooks.console.runner import RunPage
from vmsnix_ops.runbooks.execution.execute import run
from vmsnix_ops.runbooks.fleet.plan_file import read_plan

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_vmsnix"]
RunVmsnix = Any
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "own-runbooks.md").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a vmsnix.toml that names a folder of own runbooks."""
    folder = tmp_path / "project"
    (folder / "runbooks").mkdir(parents=True)
    (folder / "below").mkdir()
    (folder / "vmsnix.toml").write_text('runbooks = ["runbooks"]\n')
    monkeypatch.chdir(folder / "below")  # relative folders start at vmsnix.toml
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    return folder


def put(project: Path, name: str, *cells: str, **options: Any) -> Path:
    path = project / "runbooks" / name
    path.write_text(json.dumps(notebook(*cells, **options)))
    return path


def test_the_page_makes_a_first_runbook(
    tmp_path: Path, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    (settings,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (shell,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    first, second, third = (line.split("#")[0].split()[1:] for line in shell.splitlines())
    code, _, complaint = run_vmsnix(*first)
    assert code == 2
    assert f"Add this line at the top of vmsnix.toml: {settings.strip()}" in complaint
    (tmp_path / "vmsnix.toml").write_text(settings)
    code, shown, complaint = run_vmsnix(*first)
    assert (code, complaint) == (0, "")
    made = tmp_path / "runbooks" / "10-weekly-report.ipynb"
    assert shown == f"Created {made}. To run it: vmsnix weekly-report\n"
    source = "\n".join("".join(cell["source"]) for cell in json.loads(made.read_text())["cells"])
    assert [line for line in python.splitlines() if line.strip("# ") and line not in source] == [
        line for line in python.splitlines() if line.startswith("# ")
    ]
    code, shown, complaint = run_vmsnix(*second)
    assert (code, complaint) == (0, "")
    assert "weekly-report done" in shown
    code, shown, _ = run_vmsnix(*third)
    assert re.search(r"weekly-report .* \(own, in runbooks\)", shown)
    assert run_vmsnix(*first)[0] == 2  # it exists


def test_an_own_runbook_is_marked_in_every_list(project: Path, run_vmsnix: RunVmsnix) -> None:
    put(project, "10-greet.ipynb")
    marked = "What it is for. (own, in runbooks)"
    assert marked in " ".join(run_vmsnix("--help")[1].split())
    assert marked in " ".join(run_vmsnix("greet", "--help")[1].split())
    assert marked in run_vmsnix("list")[1]
    (item,) = cli.shell_complete(click.Context(cli), "gre")
    assert (item.value, item.help) == ("greet", "own runbook")
    (item,) = completion.runbooks("gre")
    assert item.help == marked
    listed = {one["name"]: one["own"] for one in json.loads(run_vmsnix("list", "--json")[1])}
    assert listed["greet"] is True
    assert listed["publish-ami"] is False
    assert list(listed)[-1] == "greet"


def test_an_own_runbook_runs_with_its_settings_folder_from_everywhere(
    project: Path, tmp_path: Path, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = "from vmsnix_ops import publish\npublish.check_parameters('greet', globals())"
    path = put(project, "10-greet.ipynb", validated, "print(name, count)")
    code, shown, _ = run_vmsnix("greet", "--name", "Bob")
    assert code == 0
    assert "Bob 1" in shown
    (row,) = history.runs().to_dict("records")
    assert row["runbook"] == "greet"
    assert row["modified"] is not True
    path.write_text(path.read_text().replace("count: int = 1", "count: int = 2"))
    monkeypatch.chdir(tmp_path)  # here, no vmsnix.toml is found
    assert run_vmsnix("greet")[0] == 2
    outcome = run("greet", cwd=project, record=False, archive=tmp_path / "archive")
    assert outcome.status == "done", outcome.error
    assert outcome.values["modified"] is None
    assert "world 2" in Path(outcome.log).read_text()
    code, shown, _ = run_vmsnix("rerun", str(row["run_id"]))
    assert code == 0
    assert "Bob 1" in shown


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("publish-ami", "publish-ami is a runbook of the package."),
        ("publish", "publish is the short name of the runbook publish-ami."),
        ("runs", "runs is a command of vmsnix."),
        ("greet", "10-greet.ipynb, which comes first."),
    ],
)
def test_a_name_that_is_in_use_disables_only_that_notebook(
    project: Path, run_vmsnix: RunVmsnix, name: str, why: str
) -> None:
    put(project, "10-greet.ipynb")
    path = put(project, f"20-{name}.ipynb", side_effects="deletes")
    before = catalog.find("publish")
    code, listed, complaint = run_vmsnix("list")
    assert code == 0
    words = " ".join(complaint.split())
    assert f"The own runbook {path} cannot be used. " in words
    assert why in words
    assert f", for example to 20-own-{name}.ipynb." in words
    assert len(re.findall(r"^greet", listed, re.MULTILINE)) == 1
    assert "20-" + name in run_vmsnix("--help")[1].replace("\n", "").replace(" ", "")
    assert catalog.find("publish") == before
    assert catalog.find("publish-ami") == before
    assert catalog.find("greet").side_effects == "read_only"


@pytest.mark.parametrize(
    ("name", "better"),
    [("11-Weekly Report", "11-weekly-report"), ("7_audit", "07-audit"), ("123", "12-report")],
)
def test_a_numbered_notebook_whose_name_is_no_command_is_reported(
    project: Path, run_vmsnix: RunVmsnix, name: str, better: str
) -> None:
    put(project, "10-greet.ipynb")
    path = put(project, f"{name}.ipynb")
    code, listed, complaint = run_vmsnix("list")
    assert (code, "greet" in listed) == (0, True)
    assert f"{path} cannot be used. " in " ".join(complaint.split())
    assert f"for example to {better}.ipynb." in complaint
    assert run_vmsnix("greet", "--help")[0] == 0


def test_a_byte_order_mark_is_read_and_half_a_character_is_named(
    project: Path, run_vmsnix: RunVmsnix
) -> None:
    path = put(project, "10-marked.ipynb")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    put(project, "20-default.ipynb", parameters="names: list[str] = ['\\ud83d']  # of \U0001f600")
    put(project, "30-comment.ipynb", parameters="name: str = ''  # \ud83d")
    put(project, "40-damaged.ipynb").write_text("{")
    put(project, "50-damaged.ipynb")
    code, listed, complaint = run_vmsnix("list")
    assert code == 0
    words = " ".join(complaint.split())
    assert re.findall(r"^(?!runbook)\S+(?=.*\(own)", listed, re.MULTILINE) == ["marked"]
    assert (
        "20-default.ipynb cannot be used: names: list[str] = ['\\ud83d'] Its default contains half" in words
    )
    assert "30-comment.ipynb is not a runbook. It contains '\\ud83d', half of a character." in words
    assert "40-damaged.ipynb is not a runbook. It is not JSON" in words
    assert "40-damaged.ipynb, which comes first. Rename it or the other, for example to" in words
    assert catalog.content(catalog.find("marked"))[0].startswith("{")


def test_the_names_of_commands_are_complete() -> None:
    assert set(COMMANDS) == catalog.COMMAND_NAMES


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_runbooks_is_reported_and_disables_nothing(
    project: Path, run_vmsnix: RunVmsnix, folder: str
) -> None:
    (project / "empty").mkdir()
    (project / "vmsnix.toml").write_text(f'runbooks = ["{folder}"]\n')
    code, listed, complaint = run_vmsnix("list")
    assert code == 0
    assert "publish" in listed
    assert str(project / folder) in complaint
    assert "the setting runbooks in vmsnix.toml" in " ".join(complaint.split())


def test_help_works_with_an_invalid_setting(project: Path, run_vmsnix: RunVmsnix) -> None:
    (project / "vmsnix.toml").write_text("runbooks = 5\n")
    code, shown, _ = run_vmsnix("--help")
    assert code == 0
    assert "publish" in shown
    assert "runbooks = 5" in shown


def test_the_console_has_a_form_for_an_own_runbook(project: Path, console_bar: Callable[[], Any]) -> None:
    put(project, "10-greet.ipynb")
    page = RunPage(console_bar(), lambda: None)
    assert ("10  greet (own)", "greet") in page.pick.options
    page.pick.value = "greet"
    assert "account" in page._form.fields


@pytest.fixture
def console_bar(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    from vmsnix_ops.runbooks.console import backends

    monkeypatch.setattr(
        backends, "read_caller", lambda _backend: backends.BackendCaller("0" * 12, "arn", "x")
    )
    return lambda: backends.BackendBar(lambda: None)


def test_a_plan_runs_an_own_runbook_and_refuses_a_modified_one(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(project, "10-greet.ipynb")
    plan = project / "below" / "plan.toml"
    monkeypatch.chdir(tmp_path)  # the plan's folder decides
    plan.write_text('[[entry]]\nrunbook = "greet"\n')
    (target,) = read_plan(plan).targets
    assert str(target).startswith("greet (own)")

    copy = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", copy, ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setattr(catalog, "default_folder", lambda: copy)
    path = copy / "30-promote-ami.ipynb"
    path.write_text(path.read_text().replace("# Promote an AMI", "# Changed"))
    entry = '[[entry]]\nrunbook = "promote-ami"\nregions = ["us-east-1", "eu-west-1"]\n'
    on, off = (f'parameters = {{ image = "ecs-node", dry_run = {one} }}\n' for one in ("true", "false"))
    plan.write_text(entry + off)
    with pytest.raises(PlanError, match=r"30-promote-ami.ipynb was modified.*set modified = true") as caught:
        read_plan(plan)
    assert str(caught.value).count("was modified") == 1
    plan.write_text(entry + on)
    assert not any(target.modified for target in read_plan(plan).targets)
    plan.write_text(f"{entry}{off}modified = true\n")
    assert all(target.modified for target in read_plan(plan).targets)


def test_the_lab_links_the_folders_of_own_runbooks_and_never_copies_into_one(
    project: Path, tmp_path: Path, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "find_spec", lambda _name: True)
    monkeypatch.setattr(lab, "_serve", lambda *_arguments: 0)
    path = put(project, "10-greet.ipynb")
    for _ in range(2):
        assert run_vmsnix("lab", "--no-browser")[0] == 0
    linked = copies.work_folder(tmp_path / "state") / "own-runbooks" / "10-greet.ipynb"
    assert linked.samefile(path)
    code, _, complaint = run_vmsnix("lab", "--folder", str(project / "runbooks"))
    assert code == 2
    assert "is a folder of own runbooks" in complaint
