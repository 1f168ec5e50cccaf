"""The manifest of the package's runbooks: a changed notebook changes no command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from docs import manifest
from docs.manifest import make_manifest
from tests.runbooks.shelf import replace_package
from vmsnix_ops import history
from vmsnix_ops.cli import main
from vmsnix_ops.errors import ConfirmationError, RunError
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.execution import execute
from vmsnix_ops.runbooks.execution.execute import read_notebook, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.runbooks.shelf import Shelf

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the notebooks, which belongs to the manifest of the package."""
    copy = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", copy, ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setattr(catalog, "default_folder", lambda: copy)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    return copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_manifest_is_up_to_date() -> None:
    expected = manifest.text()
    assert catalog.MANIFEST.read_text(encoding="utf-8") == expected, "run `just runbooks`"


def test_the_manifest_describes_what_the_notebooks_declare() -> None:
    read = {book.name: book for book in catalog.runbooks(ROOT / "notebooks")}
    for book in catalog.runbooks():
        assert (book.parameters, book.side_effects, book.arguments) == (
            read[book.name].parameters,
            read[book.name].side_effects,
            read[book.name].arguments,
        )
        assert catalog.content(book)[1] is False


@pytest.mark.parametrize("how", ["damaged", "edited", "deleted"])
def test_no_command_changes_when_all_notebooks_are_changed_or_deleted(
    folder: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    commands = (["--help"], ["list"], ["list", "--json"], ["promote", "--help"], ["publish-ami", "--help"])

    def shown() -> list[str]:
        assert [main(words) for words in commands] == [0] * len(commands)
        printed = capsys.readouterr()
        assert printed.err == ""
        return [printed.out, *(repr(catalog.find(name)) for name in catalog.names())]

    before = shown()
    for path in folder.glob("*.ipynb"):
        if how == "edited":
            notebook = json.loads(path.read_text(encoding="utf-8"))
            notebook["metadata"]["vmsnix"] = {"side_effects": "read_only", "title": "Changed"}
            for cell in notebook["cells"]:
                cell["source"] = "dry_run: int = 7  # changed"
            path.write_text(json.dumps(notebook))
        elif how == "damaged":
            path.write_text("{")
        else:
            path.unlink()
    assert shown() == before
    promote = {"image": "ecs-node", "region": "us-east-1", "dry_run": "true"}
    parameters.validate("promote-ami", promote)
    assert promote["dry_run"] is True


def test_running_a_missing_or_damaged_notebook_shows_the_command_that_restores_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("VMSNIX_BUCKET", "acme-images")
    path = folder / "20-publish-ami.ipynb"
    path.write_text("{")
    assert main(["publish"]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "20-publish-ami.ipynb is not a runbook. It is not JSON" in shown
    assert f"git -C {folder} restore 20-publish-ami.ipynb" in shown
    path.unlink()
    with pytest.raises(RunError, match="It could not be read: No such file or directory"):
        run("publish")
    installed = tmp_path / "_notebooks"
    monkeypatch.setattr(catalog, "default_folder", lambda: installed)
    with pytest.raises(RunError, match=r"pip install --force-reinstall --no-deps vmsnix-ops"):
        run("publish")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("change", "modified"),
    [
        (lambda cell: cell.update(outputs=[{"output_type": "stream"}], execution_count=3), False),
        (lambda cell: cell.update(id="another"), False),
        (lambda cell: cell["metadata"].update(collapsed=True), False),
        (lambda cell: cell.update(source="".join(cell["source"])), False),
        (lambda cell: cell["metadata"].update(tags=["parameters", "skip"]), True),
        (lambda cell: cell.update(cell_type="markdown"), True),
        (lambda cell: cell["source"].append("\n"), True),
    ],
)
def test_only_types_sources_and_tags_of_cells_count_as_modified(
    folder: Path, change: Callable[[dict[str, Any]], object], modified: bool
) -> None:
    path = folder / "40-audit-inventory.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if cell["id"] == "parameters"]
    change(cell)
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.13"}
    path.write_text(json.dumps(notebook))
    assert catalog.content(catalog.find("audit"))[1] is modified


def test_a_notebook_that_is_not_in_the_manifest_is_refused_with_the_reason(
    folder: Path,
) -> None:
    shutil.copy(folder / "35-verify-amis.ipynb", folder / "36-count-amis.ipynb")
    assert "count-amis" not in catalog.names()
    with pytest.raises(catalog.UnknownRunbookError, match=r"36-count-amis.ipynb is not in the manifest"):
        catalog.find("count-amis")


PARAMETERS = """\
name: str = "world"  # whom to greet
dry_run: bool = True  # change nothing
"""


@pytest.fixture
def edited(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A notebook that was edited after its manifest was written."""
    replace_package(shelf.folder, monkeypatch)
    shelf.put("30-try-this.ipynb", "print(name, dry_run)", parameters=PARAMETERS, side_effects="creates")
    frozen = make_manifest(shelf.folder)
    monkeypatch.setattr(catalog, "load_manifest", lambda: frozen)
    changed = PARAMETERS.replace("world", "moon").replace("True", "False")
    shelf.put("30-try-this.ipynb", "print('Edited', name, dry_run)", parameters=changed)
    monkeypatch.setenv("VMSNIX_ARCHIVE", str(shelf.archive))
    return shelf


def test_a_run_of_a_modified_notebook_has_the_defaults_of_the_manifest_and_is_marked(
    edited: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["try-this"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("30-try-this, run ")
    assert first.endswith("MODIFIED: its cells differ from those of the package")
    assert "Edited world True" in rest
    (folder,) = edited.archive.glob("*/")
    result = json.loads((folder / "result.json").read_text())
    assert (result["modified"], result["parameters"]) == (True, {"name": "world", "dry_run": True})
    assert first in (folder / "log.txt").read_text().splitlines()[0]
    assert '<span class="modified">modified</span>' in (folder / "report.html").read_text()
    (row,) = history.runs().to_dict("records")
    assert row["modified"] is True
    assert main(["runs"]) == 0
    assert "done, modified" in capsys.readouterr().out
    assert main(["runs", "show", result["run_id"]]) == 0
    assert "The cells of the notebook differed from those of the package." in capsys.readouterr().out


def test_a_modified_notebook_changes_nothing_unless_that_is_confirmed(
    edited: Shelf, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["try-this", "--no-dry-run"]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "30-try-this.ipynb was modified: its cells differ from those of the package." in shown
    assert "Compare it: vmsnix runbooks diff try-this." in shown
    assert f"Restore it: git -C {edited.folder} restore 30-try-this.ipynb" in shown
    assert "add --modified" in shown
    with pytest.raises(ConfirmationError):
        run("try-this", {"dry_run": False})
    assert not edited.archive.exists()
    assert main(["try-this", "--no-dry-run", "--modified"]) == 0
    assert "Edited world False" in capsys.readouterr().out
    (folder,) = edited.archive.glob("*/")
    assert main(["rerun", folder.name]) == 2
    assert "add --modified" in capsys.readouterr().err
    book = catalog.find("try-this")
    monkeypatch.setenv("VMSNIX_SANDBOX", "http://127.0.0.1:9")
    monkeypatch.setattr(execute, "_run", lambda prepared, *_others, **_options: prepared)
    on_sandbox: Any = run(book, {"dry_run": False}, archive=edited.archive)
    assert on_sandbox.entry["modified"] is True


def test_a_read_only_runbook_runs_modified_and_an_own_one_is_never_modified(shelf: Shelf) -> None:
    book = catalog.read(shelf.put("10-try-this.ipynb", side_effects="read_only"))
    assert read_notebook(replace(book, digest="another"), {})[1] is True
    assert read_notebook(book, {})[1] is None
