"""The public API is the table in docs/reference/python.md."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import vmsnix_ops
from vmsnix_ops import errors
from vmsnix_ops.cli import cli
from vmsnix_ops.display import Displayed
from vmsnix_ops.records.result import Result
from vmsnix_ops.runbooks import catalog

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
NAMES = vmsnix_ops.__all__


class Row(NamedTuple):
    """A line of the table: a public module, its commands and its notebooks."""

    name: str
    module: str
    commands: tuple[str, ...]
    notebooks: tuple[str, ...]


def cells(line: str) -> list[tuple[str, ...]]:
    return [tuple(re.findall(r"`([^`]+)`", cell)) for cell in line.strip("|").split("|")]


LINES = re.findall(r"^\| `\w+` \|.*\|$", PAGE, re.MULTILINE)
TABLE = [
    Row(name, module, commands, notebooks) for (name,), (module,), commands, notebooks in map(cells, LINES)
]
each_row = pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])


def public(row: Row) -> dict[str, object]:
    module = getattr(vmsnix_ops, row.name)
    return {name: getattr(module, name) for name in module.__all__}


def imported(notebook: Path) -> set[str]:
    """Return the imports of a notebook: ``vmsnix_ops.NAME`` for a public name."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    code = "\n".join("".join(one["source"]) for one in content["cells"] if one["cell_type"] == "code")
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
    return found - {"typing.Literal"}


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.variants(quick=5, seconds=1)
def test_every_public_name_is_a_module_in_a_fresh_process(name: str) -> None:
    program = f"from vmsnix_ops import {name}; import vmsnix_ops; print(vmsnix_ops.{name}.__name__)"
    assert isinstance(getattr(vmsnix_ops, name), ModuleType)
    assert run(program).strip() == getattr(vmsnix_ops, name).__name__


def test_tab_completion_shows_only_the_public_api() -> None:
    import_module("vmsnix_ops.boot.run")  # a private module that is loaded does not show up
    assert dir(vmsnix_ops) == sorted(NAMES) == NAMES


def test_importing_the_package_imports_none_of_its_modules() -> None:
    program = "import json, sys, vmsnix_ops; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run(program))
    assert [name for name in loaded if name.startswith("vmsnix_ops.")] == []
    heavy = {"boto3", "botocore", "pandas", "pydantic", "pyarrow", "deltalake", "papermill", "matplotlib"}
    assert heavy.isdisjoint(loaded)


def test_notebooks_of_earlier_versions_find_their_two_other_names() -> None:
    program = """
from vmsnix_ops import history, parameters, run
values = {"regions": "eu-west-1", "dry_run": "yes"}
parameters.validate("retire-amis", values)
print(values["dry_run"], run.keep is history.keep)
"""
    assert run(program).strip() == "True True"


@pytest.mark.parametrize("name", ["prefligth", "boot", "text", "_private"])
def test_private_names_are_not_attributes(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'vmsnix_ops' has no attribute '{name}'"):
        vmsnix_ops.__getattr__(name)


def test_the_page_lists_the_public_modules() -> None:
    assert [row.name for row in TABLE] == NAMES
    assert [row.module for row in TABLE] == [getattr(vmsnix_ops, name).__name__ for name in NAMES]


def test_the_page_documents_exactly_the_public_names() -> None:
    """A module is documented by its ``__all__``."""
    assert re.findall(r"^\.\. automodule:: (\S+)$", PAGE, re.MULTILINE) == [row.module for row in TABLE]
    assert "ignore-module-all" not in PAGE


def test_each_runbook_is_the_command_of_one_public_module() -> None:
    commands = [command for row in TABLE for command in row.commands]
    assert len(set(commands)) == len(commands)
    listed = {catalog.full_name(name) for name in cli.list_commands(None)}
    assert {book.name for book in catalog.runbooks()} <= set(commands) <= listed


def test_each_notebook_belongs_to_one_public_module() -> None:
    notebooks = sorted(name for row in TABLE for name in row.notebooks)
    assert notebooks == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@each_row
def test_a_notebook_imports_its_public_module_and_nothing_deeper(row: Row) -> None:
    for notebook in row.notebooks:
        assert imported(ROOT / "notebooks" / f"{notebook}.ipynb") == {f"vmsnix_ops.{row.name}"}


@each_row
def test_tab_completion_shows_only_the_public_names_of_a_module(row: Row) -> None:
    module = getattr(vmsnix_ops, row.name)
    assert dir(module) == sorted(module.__all__)
    assert all(inspect.getdoc(one) for one in public(row).values())


@each_row
def test_a_job_has_a_plan_and_a_result_or_a_result_at_once(row: Row) -> None:
    names = public(row)
    results = [one for one in names.values() if isinstance(one, type) and issubclass(one, Result)]
    if not row.notebooks or row.name == "console":
        assert results == []
        return
    (result,) = results
    for method in ("frame", "as_dict"):
        assert getattr(result, method) is not getattr(Result, method), method
    (verb,) = {"plan", "check", "read"} & names.keys()
    returned = names[inspect.signature(names[verb]).return_annotation]
    if verb == "plan":
        assert issubclass(returned, Displayed)
        assert inspect.signature(returned.apply).return_annotation == result.__name__
    else:
        assert returned is result


FRAMES = {f"vmsnix_ops.records.timings.{name}" for name in ("summary", "trend", "compare")}
"""Functions that document the frames of the public `Timings`."""


def full_names(one: object) -> set[str]:
    """Return the full names of a public function, or of a public class and its methods."""
    bases = one.__mro__ if isinstance(one, type) else ()
    ours = [base for base in bases if base.__module__.startswith("vmsnix_ops")]
    members = [one, *ours, *(member for base in ours for member in vars(base).values())]
    found = [
        inspect.unwrap(member) for member in members if inspect.isroutine(member) or isinstance(member, type)
    ]
    return {f"{member.__module__}.{member.__qualname__}" for member in found}


def documented(path: Path) -> set[str]:
    """Return the full names of the functions and classes whose docstring has sections."""
    found = set()

    def walk(node: ast.AST, name: str) -> None:
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef):
                full = f"{name}.{inner.name}"
                if re.search("^----", ast.get_docstring(inner) or "", re.MULTILINE):
                    found.add(full)
                walk(inner, full)

    source = path.read_text(encoding="utf-8")
    parts = path.relative_to(ROOT).with_suffix("").parts
    if "    ----" in source:
        walk(ast.parse(source), ".".join(parts).removesuffix(".__init__"))
    return found


def test_only_docstrings_of_the_public_api_have_sections() -> None:
    public_names = set.union(
        *(full_names(one) for row in TABLE for one in public(row).values()), full_names(Result)
    )
    found = set.union(*(documented(path) for path in (ROOT / "vmsnix_ops").rglob("*.py")))
    assert sorted(found - public_names - FRAMES) == []


def test_every_error_is_public() -> None:
    found = {
        name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)
    }
    assert found == set(errors.__all__)
