"""Committed notebooks are thin, typed, and without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from docs import manifest
from vmsnix_ops.runbooks import catalog

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RUNBOOKS = [path for path in NOTEBOOKS if catalog.FILE_NAME.match(path.name)]
BELONGS_IN_THE_PACKAGE = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.For,
    ast.While,
    ast.If,
    ast.Try,
    ast.With,
    ast.ListComp,
    ast.DictComp,
    ast.SetComp,
    ast.GeneratorExp,
    ast.IfExp,
)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in load(path)["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def complaints(cell: dict[str, Any]) -> list[str]:
    """Return the statements of a code cell that belong in the package, and magics."""
    if source(cell).lstrip().startswith(("%", "!")):
        return ["magic"]
    return [
        f"line {node.lineno}: {type(node).__name__}"
        for node in ast.walk(ast.parse(source(cell)))
        if isinstance(node, BELONGS_IN_THE_PACKAGE)
    ]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


def test_there_are_runbooks() -> None:
    assert len(RUNBOOKS) >= 4
    numbers = [path.name[:2] for path in RUNBOOKS]
    assert len(set(numbers)) == len(numbers)


@each(NOTEBOOKS)
def test_outputs_and_execution_counts_are_not_committed(path: Path) -> None:
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@each(NOTEBOOKS)
def test_it_is_written_as_jupyterlab_writes_it_so_that_saving_it_changes_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert manifest.formatted_as_saved(text) == text, "run `just runbooks`"


@each(NOTEBOOKS)
def test_the_kernel_is_plain_python(path: Path) -> None:
    notebook = load(path)
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@each(NOTEBOOKS)
def test_it_starts_with_a_title_and_its_purpose(path: Path) -> None:
    first = load(path)["cells"][0]
    assert first["cell_type"] == "markdown"
    title, _, text = source(first).partition("\n")
    assert title.startswith("# ")
    assert len(text.split()) >= 5


@each(NOTEBOOKS)
def test_cells_have_ids_of_words(path: Path) -> None:
    ids = [cell["id"] for cell in load(path)["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(name.replace("-", "").isalpha() for name in ids)


@each(NOTEBOOKS)
def test_no_loops_no_branches_no_helpers_in_cells(path: Path) -> None:
    assert [complaint for cell in code_cells(path) for complaint in complaints(cell)] == []


@pytest.mark.parametrize(
    "text", ["def f(): pass", "for x in y: z", "a if b else c", "[x for x in y]", "%pip x"]
)
def test_the_check_of_cells_finds_loops_branches_and_helpers(text: str) -> None:
    assert len(complaints({"source": text})) == 1


@each(RUNBOOKS)
def test_it_declares_title_description_and_side_effects(path: Path) -> None:
    about = load(path)["metadata"]["vmsnix"]
    assert set(about) >= {"name", "title", "description", "side_effects"}
    book = catalog.read(path)
    assert about["name"] == book.name
    assert book.title == source(load(path)["cells"][0]).partition("\n")[0].removeprefix("# ")
    assert book.description.endswith((".", "?"))


@each(RUNBOOKS)
def test_the_parameters_are_the_first_code_cell_typed_and_commented(path: Path) -> None:
    first = code_cells(path)[0]
    assert first["metadata"]["tags"] == ["parameters"]
    declared = [node for node in ast.parse(source(first)).body if not isinstance(node, ast.ImportFrom)]
    assert all(isinstance(node, ast.AnnAssign) for node in declared)
    assert all(parameter.help for parameter in catalog.read(path).parameters)


@each(RUNBOOKS)
def test_every_part_has_a_heading(path: Path) -> None:
    cells = load(path)["cells"]
    headings = [cell for cell in cells[2:] if cell["cell_type"] == "markdown"]
    assert headings
    assert all(source(cell).startswith("## ") for cell in headings)


@each(RUNBOOKS)
def test_every_parameter_has_its_own_line(path: Path) -> None:
    """papermill reads parameters line by line and does not find a wrapped one."""
    declared = [
        node for node in ast.parse(source(code_cells(path)[0])).body if isinstance(node, ast.AnnAssign)
    ]
    assert all(node.lineno == node.end_lineno for node in declared)


@each(RUNBOOKS)
def test_parameters_are_used(path: Path) -> None:
    later = "\n".join(source(cell) for cell in code_cells(path)[1:])
    names = {node.id for node in ast.walk(ast.parse(later)) if isinstance(node, ast.Name)}
    assert {parameter.name for parameter in catalog.read(path).parameters} <= names
