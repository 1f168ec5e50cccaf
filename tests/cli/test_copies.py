"""The copies of the notebooks that `vmsnix lab` opens, and the shared notebooks of a checkout."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.command_line import run_vmsnix
from tests.support import require
from vmsnix_ops.cli import lab
from vmsnix_ops.runbooks import catalog, copies

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_vmsnix"]
RunVmsnix = Any
ROOT = Path(__file__).parents[2]
PROMOTE, CONSOLE = "30-promote-ami.ipynb", "console.ipynb"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's folder of notebooks, and a state folder."""
    folder = tmp_path / "checkout" / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setattr(catalog, "default_folder", lambda: folder)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    return folder


@pytest.fixture
def open_lab(monkeypatch: pytest.MonkeyPatch, run_vmsnix: RunVmsnix) -> Callable[..., tuple[int, str]]:
    """Start `vmsnix lab` without JupyterLab; return its exit code and its messages."""
    monkeypatch.setattr(lab, "find_spec", lambda _name: True)
    monkeypatch.setattr(lab, "_serve", lambda *_arguments: 0)

    def start(*words: str) -> tuple[int, str]:
        code, _out, err = run_vmsnix("lab", "--no-browser", *words)
        return code, err

    return start


def edit(path: Path, old: str = "# ", new: str = "# Edited: ") -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cell = notebook["cells"][0]
    cell["source"] = "".join(cell["source"]).replace(old, new, 1)
    path.write_text(json.dumps(notebook))


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")}


def test_a_copy_is_made_once_and_never_overwritten(
    package: Path, tmp_path: Path, open_lab: Callable[..., tuple[int, str]]
) -> None:
    before = content(package)
    code, shown = open_lab()
    work = tmp_path / "state" / "notebooks"
    assert (code, content(work)) == (0, before)
    assert f"Copies of the runbooks: {work}. Changes here do not change `vmsnix NAME`." in shown
    edit(work / PROMOTE)
    (work / CONSOLE).write_text("my own")
    mine = content(work)
    assert open_lab()[0] == 0
    assert content(work) == mine
    assert content(package) == before
    chosen = tmp_path / "here"
    assert open_lab("--folder", str(chosen))[0] == 0
    assert content(chosen) == before


def test_copies_that_are_older_than_the_package_are_named_with_the_commands(
    package: Path, tmp_path: Path, open_lab: Callable[..., tuple[int, str]], run_vmsnix: RunVmsnix
) -> None:
    work = tmp_path / "state" / "notebooks"
    open_lab()
    edit(work / PROMOTE, new="# Mine: ")
    edit(package / PROMOTE, new="# Newer: ")
    edit(package / CONSOLE, new="# Newer: ")
    mine = (work / PROMOTE).read_text()
    shown = open_lab()[1]
    assert "older than the notebooks of the package: promote-ami (edited), console." in shown
    assert "vmsnix runbooks diff promote-ami console" in shown
    assert "vmsnix runbooks reset promote-ami console" in shown
    code, out, _ = run_vmsnix("runbooks", "diff", "promote")
    assert code == 0
    assert "-# Newer: Promote an AMI\n+# Mine: Promote an AMI\n" in out
    code, out, _ = run_vmsnix("runbooks", "reset", "promote", "console")
    assert code == 0
    assert content(work)[PROMOTE] == content(package)[PROMOTE]
    (old,) = work.glob("30-*.kept-*.ipynb")
    assert old.read_text() == mine
    assert old.name in out
    assert "older than the notebooks of the package" not in open_lab()[1]
    assert "has the cells of the package" in run_vmsnix("runbooks", "reset", "console")[1]


class Answers(io.StringIO):
    """A terminal whose user types these lines."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["keep", "reset"])
def test_on_a_terminal_the_user_chooses(
    package: Path, tmp_path: Path, open_lab: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch, answer: str,
) -> None:  # fmt: skip
    work = tmp_path / "state" / "notebooks"
    open_lab()
    edit(package / PROMOTE, new="# Newer: ")
    mine = content(work)[PROMOTE]
    monkeypatch.setattr(sys, "stdin", Answers(f"compare\n{answer}\n"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = open_lab()[1]
    assert "+# Promote an AMI" in shown
    kept = [path.read_text() for path in work.glob("*.kept-*")]
    assert (content(work)[PROMOTE], kept) == (
        (mine, []) if answer == "keep" else (content(package)[PROMOTE], [mine])
    )
    monkeypatch.setattr(sys, "stdin", Answers(""))
    assert "older than the notebooks of the package" not in open_lab()[1]  # the answer is remembered
    edit(package / PROMOTE, old="# Newer", new="# Newest")
    monkeypatch.setattr(sys, "stdin", Answers("keep\n"))
    assert "older than the notebooks of the package" in open_lab()[1]


def test_a_damaged_notebook_of_the_package_does_not_prevent_other_copies(
    package: Path, tmp_path: Path, open_lab: Callable[..., tuple[int, str]], run_vmsnix: RunVmsnix
) -> None:
    (package / PROMOTE).write_text("{")
    (package / "40-audit-inventory.ipynb").unlink()
    code, shown = open_lab()
    assert code == 0
    assert f"{PROMOTE} is not a runbook." in shown
    restore = f"Restore it: git -C {package} restore 40-audit-inventory.ipynb"
    for words in (("reset", "audit"), ("diff", "audit")):
        shown += "".join(run_vmsnix("runbooks", *words)[1:])
    assert " ".join(shown.split()).count(restore) == 3
    assert len(content(tmp_path / "state" / "notebooks")) == len(content(package)) - 1


def test_the_shared_notebooks_are_opened_only_on_request_and_only_in_a_checkout(
    package: Path, tmp_path: Path, open_lab: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(lab, "_serve", lambda command, _environment: commands.append(command) or 0)
    code, shown = open_lab("--edit")
    assert code == 0
    assert f"SHARED ORIGINALS: {package} is the checkout. Notebooks are saved without outputs." in shown
    assert f"--ServerApp.root_dir={package}" in commands[0]
    assert not (tmp_path / "state" / "notebooks").exists()
    code, shown = open_lab("--folder", str(package))
    assert code == 2
    assert "is the folder of the shared notebooks" in shown
    monkeypatch.setattr(catalog, "default_folder", lambda: tmp_path / "_notebooks")
    code, shown = open_lab("--edit")
    assert code == 1
    assert "belong to an installed package" in shown
    assert open_lab("--edit", "--folder", "x")[0] == 2


def saved(path: str, **changes: Any) -> dict[str, Any]:
    """Return what JupyterLab would save, after the hook."""
    cell: dict[str, Any] = {
        "cell_type": "code", "id": "a", "source": "1", "outputs": [{"output_type": "stream"}],
        "execution_count": 3, "metadata": {"tags": ["x"], "scrolled": True, "execution": {"started": "now"}},
    }  # fmt: skip
    metadata = {
        "kernelspec": {"name": "mine"},
        "language_info": {"version": "3"},
        "widgets": {},
        "vmsnix": {},
    }
    model = {"type": "notebook", "content": {"metadata": metadata, "cells": [cell]}, **changes}
    copies.strip_outputs(path=path, model=model, contents_manager=None)
    return model


@pytest.mark.parametrize("path", [PROMOTE, "/console.ipynb", "36-count-amis.ipynb"])
def test_a_shared_notebook_is_saved_without_what_a_run_adds(path: str) -> None:
    notebook = saved(path)["content"]
    (cell,) = notebook["cells"]
    assert (cell["outputs"], cell["execution_count"], cell["metadata"]) == ([], None, {"tags": ["x"]})
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert notebook["metadata"]["kernelspec"]["display_name"] == "Python 3"
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "vmsnix"}


@pytest.mark.parametrize("path", ["runs/20-publish-ami/notebook.ipynb", "runs/10-a.ipynb", "mine.ipynb"])
def test_other_notebooks_are_saved_as_they_are(path: str) -> None:
    assert saved(path)["content"]["cells"][0]["execution_count"] == 3
    assert saved(PROMOTE, type="file", content="{")["content"] == "{"


def test_diff_compares_the_shared_notebook_with_the_commit(
    package: Path, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = [require("git"), "-C", str(package), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    edit(package / PROMOTE)
    code, shown, _ = run_vmsnix("runbooks", "diff")
    assert code == 0
    assert f"The cells of {package / PROMOTE} differ from those of the package." in shown
    shutil.copy(ROOT / "notebooks" / PROMOTE, package)
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "--message", "first"]):
        subprocess.run([*git, *words], check=True, timeout=60)
    assert run_vmsnix("runbooks", "diff")[1] == "No differences.\n"
    edit(package / PROMOTE)
    code, shown, _ = run_vmsnix("runbooks", "diff")
    assert f"--- the committed {PROMOTE}\n+++ {package / PROMOTE}\n" in shown
    assert "-# Promote an AMI\n+# Edited: Promote an AMI\n" in shown
    subprocess.run([*git, "commit", "-qam", "second"], check=True, timeout=60)
    assert "The manifest is older" in run_vmsnix("runbooks", "diff", "promote")[1]


def test_diff_of_an_unknown_or_an_own_runbook_is_refused(
    package: Path, tmp_path: Path, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Did you mean 'promote-ami'" in run_vmsnix("runbooks", "diff", "promot-ami")[2]
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(package / PROMOTE, own / "10-mine.ipynb")
    monkeypatch.setenv("VMSNIX_RUNBOOKS", str(own))
    code, _, shown = run_vmsnix("runbooks", "reset", "mine")
    assert code == 2
    assert "mine is a runbook of your own." in shown
