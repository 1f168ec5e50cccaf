"""The commands, options, settings, recipes and files that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from vmsnix_ops.cli import cli
from vmsnix_ops.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "nix/README.md", *sorted((ROOT / "docs").glob("[!_]*/*.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(?:sh|console|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
IN_BLOCK = re.compile(r"^(?:\$ |  )?(?:\.venv/bin/)?vmsnix ([^#|>\n]+)", re.MULTILINE)
IN_TEXT = re.compile(r"`vmsnix (?!NAME|disk 1)([^`]+)`")  # a placeholder, and the text of a test vector
RECIPE = re.compile(r"`just ([a-z][a-z-]*)")
VARIABLE = re.compile(r"\bVMSNIX_([A-Z_]+)")
FILE = re.compile(r"`((?:\.ci|\.github|benchmarks|docs|nix|notebooks|tests|vmsnix_ops)/[\w./-]*\w)`")
OWN_RUNBOOKS = {"weekly-report"}  # which a page creates
OTHER_VARIABLES = {"CONFIG", "PROGRESS"}  # they are not settings
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace("\\\n", " ")


def commands(text: str) -> list[str]:
    """Return the arguments of every call of ``vmsnix``."""
    return IN_TEXT.findall(text) + [line for block in BLOCK.findall(text) for line in IN_BLOCK.findall(block)]


def unknown(line: str) -> Iterator[str]:
    """Yield the commands and options of a call that do not exist."""
    words, command, options = line.split(" -- ")[0].split(), cli, {"-h", "--help", "--version"}
    while isinstance(command, click.Group) and words and words[0].islower() and words[0][0].isalpha():
        if words[0] in OWN_RUNBOOKS:
            return
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            yield words[0]
            return
        command, words = found, words[1:]
        options |= {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    if command.name != "rerun":  # it takes the options of any runbook
        yield from (word for word in words if word.startswith("--") and word.split("=")[0] not in options)


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    assert {line: wrong for line in commands(text_of(page)) if (wrong := list(unknown(line)))} == {}


@pytest.mark.parametrize("line", ["pulbish --image x", "publish --imgae x", "runs shwo ID", "runs --lats 3"])
def test_an_unknown_command_or_option_is_found(line: str) -> None:
    (found,) = commands(f"Run `vmsnix {line}`.")
    assert len(list(unknown(found))) == 1


@each_page
def test_recipes_variables_and_files_exist(page: Path) -> None:
    text = text_of(page)
    recipes = set(
        re.findall(r"^([a-z][a-z-]*)", (ROOT / "justfile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    variables = {name.upper() for name in Settings.__dataclass_fields__} | OTHER_VARIABLES
    assert set(RECIPE.findall(text)) <= recipes
    assert set(VARIABLE.findall(text)) <= variables
    assert [file for file in FILE.findall(text) if not (ROOT / file).exists()] == []
