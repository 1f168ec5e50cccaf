"""The commands, options, settings, recipes and files that the documentation names exist."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
import pytest

from tests.browser.pictures import PICTURES
from tests.docs.page import FENCE, NAMES, ROOT, blocks, text_of
from vmsnix_ops.cli import cli
from vmsnix_ops.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_TEXT = re.compile(r"`vmsnix (?!NAME|disk 1)([^`]+)`")  # a placeholder, and the text of a test vector
RECIPE = re.compile(r"`just ([a-z][a-z-]*)")
VARIABLE = re.compile(r"\bVMSNIX_([A-Z_]+)")
FILE = re.compile(r"`((?:\.ci|\.github|benchmarks|docs|nix|notebooks|tests|vmsnix_ops)/[\w./-]*\w)`")
OWN_RUNBOOKS = {"weekly-report", "count-amis"}  # which pages create
OTHER_VARIABLES = {"CONFIG", "PROGRESS", "REQUIRE"}  # they are not settings
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+\.png)\)")
MEASURED = {"docs/how-to/pictures/direct-upload.png"}
"""Pictures of measurements, which `just bench-upload --plot` draws."""
each_page = pytest.mark.parametrize("page", NAMES)


def in_sentences(text: str) -> list[str]:
    """Return the arguments of the calls of ``vmsnix`` in the sentences of a text."""
    return IN_TEXT.findall(text.replace("\n", " "))


def in_blocks(page: str) -> Iterator[str]:
    """Yield the arguments of the calls of ``vmsnix`` in the blocks of a page."""
    for block in blocks(page):
        for command in block.commands():
            words = command.text.replace("\\\n", " ").removeprefix(".venv/bin/").split("#")[0]
            if words.startswith("vmsnix "):
                yield words.removeprefix("vmsnix ").split(">")[0]


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
def test_commands_and_options_exist(page: str) -> None:
    calls = [*in_sentences(FENCE.sub("", text_of(page))), *in_blocks(page)]
    assert {line: wrong for line in calls if (wrong := list(unknown(line)))} == {}


@pytest.mark.parametrize("line", ["pulbish --image x", "publish --imgae x", "runs shwo ID", "runs --lats 3"])
def test_an_unknown_command_or_option_is_found(line: str) -> None:
    (found,) = in_sentences(f"Run `vmsnix {line}`.")
    assert len(list(unknown(found))) == 1


@each_page
def test_recipes_variables_and_files_exist(page: str) -> None:
    text = text_of(page)
    recipes = set(
        re.findall(r"^([a-z][a-z-]*)", (ROOT / "justfile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    variables = {name.upper() for name in Settings.__dataclass_fields__} | OTHER_VARIABLES
    assert set(RECIPE.findall(text)) <= recipes
    assert set(VARIABLE.findall(text)) <= variables
    assert [file for file in FILE.findall(text) if not (ROOT / file).exists()] == []


def test_every_picture_of_the_pages_can_be_drawn_again() -> None:
    shown = {(ROOT / page).parent / name for page in NAMES for name in PICTURE.findall(text_of(page))}
    names = {path.resolve().relative_to(ROOT).as_posix() for path in shown}
    assert names == PICTURES.keys() | MEASURED
    assert all((ROOT / name).is_file() for name in names)
    kept = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*.png")
        if "_build" not in path.parts
    }
    assert kept == names
