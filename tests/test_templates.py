"""HTML from templates: values are text, and missing values are errors."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest

import vmsnix_ops
from tests.hostile import HOSTILE, hidden
from vmsnix_ops import templates
from vmsnix_ops.templates import fill

PACKAGE = Path(vmsnix_ops.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.html"))


@pytest.mark.parametrize("word", HOSTILE)
def test_a_value_is_text_in_an_element_and_in_an_attribute(word: str) -> None:
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, [name for name, _ in attrs]))

    inner = fill("<b>{{ word }}</b>", word=word)
    shown = fill(
        '<p title="{{ word }}">{{ word }}{{ inner }}{{ [inner, word]|join(word) }}</p>',
        word=word,
        inner=inner,
    )
    Reader().feed(shown)
    assert found == [("p", ["title"]), ("b", []), ("b", [])]
    assert hidden(shown) == []


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        fill("<b>{{ name }}</b>")


def test_a_value_that_the_template_does_not_use_is_an_error() -> None:
    with pytest.raises(TypeError, match="does not use name"):
        fill("<b>{ name }</b>", name="x")


@pytest.mark.parametrize("name", FILES)
def test_every_template_file_can_be_parsed(name: str) -> None:
    templates._environment().get_template(name)


def test_only_style_sheets_cleaned_cells_and_plots_are_inserted_unescaped() -> None:
    found = {}
    for path in [*PACKAGE.rglob("*.html"), *PACKAGE.rglob("*.py")]:
        marked = re.findall(r"\{\{ *(\w+) *\| *safe *\}\}", path.read_text(encoding="utf-8"))
        if marked:
            found[path.relative_to(PACKAGE).as_posix()] = marked
    assert found == {
        "runbooks/console/app.py": ["style"],
        "runbooks/console/tabs.py": ["svg"],
        "runbooks/evidence/report.html": ["style", "cells"],
    }
