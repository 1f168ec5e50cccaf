"""Plans, results and tables as text, HTML and Markdown."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace

import pandas as pd
import pytest

from tests.hostile import HOSTILE, assert_safe_lines, hidden
from vmsnix_ops.display import Displayed, DisplayTable, frame_table, make_table


def test_a_frame_is_shown_with_formatted_numbers() -> None:
    frame = pd.DataFrame(
        {
            "ami_id": ["ami-1", None],
            "size_gib": pd.array([4, pd.NA], dtype="Int64"),
            "monthly_usd": [1234.5, float("nan")],
            "since": [pd.Timestamp("2026-11-25T21:05:59Z"), pd.NaT],
            "public": [True, False],
        }
    )
    table = frame_table(frame, title="AMIs")
    assert table.columns == ("ami id", "size gib", "monthly usd", "since", "public")
    assert table.right == {"size gib", "monthly usd"}
    assert table.rows == (
        ("ami-1", "4", "1,234.50", "2026-11-25 21:05", "yes"),
        ("-", "-", "-", "-", "no"),
    )
    assert str(frame_table(frame.iloc[:0], title="AMIs")) == "AMIs\nNo rows."


@dataclass(frozen=True, slots=True)
class Everything(Displayed):
    """An object with a title, facts, a table and notes that have the same text."""

    word: str
    title: str = ""

    def facts(self) -> list[tuple[str, str]]:
        return [(self.word, "1"), ("name", self.word)]

    def table(self) -> DisplayTable:
        return make_table((self.word, "b"), [(self.word, 2)], right=("b",), title=self.word)

    def notes(self) -> list[str]:
        return [self.word]


class FactsOnly(Everything):
    """The same without a table."""

    def table(self) -> None:  # type: ignore[override]
        return None


def test_title_facts_table_and_notes_are_shown_as_text_html_and_markdown() -> None:
    whole = Everything("a|b", "Title")
    assert str(whole) == "Title\n  a|b   1\n  name  a|b\na|b\na|b  b\na|b  2\na|b"
    assert whole._repr_markdown_() == (
        "**Title**\n\n|  |  |\n| --- | --- |\n| a\\|b | 1 |\n| name | a\\|b |\n\n"
        "**a\\|b**\n\n| a\\|b | b |\n| --- | ---: |\n| a\\|b | 2 |\n\na\\|b"
    )
    page = whole._repr_html_()
    assert page.startswith(
        '<p><b>Title</b></p><table class="vmsnix"><tr><th style="text-align:left">a|b</th>'
    )
    assert page.endswith("</table><p>a|b</p>")


def test_a_notebook_shows_the_text_and_not_the_fields_of_a_dataclass() -> None:
    from IPython.lib.pretty import pretty

    whole = Everything("a", "Title")
    assert pretty(whole) == repr(whole) == str(whole)


def test_everything_shown_has_a_frame() -> None:
    whole = Everything("a", "Title")
    assert whole.frame().to_dict("list") == {"a": ["a"], "b": ["2"]}
    assert FactsOnly("a").frame().to_dict("list") == {"name": ["a", "name"], "value": ["1", "a"]}


def test_a_table_without_rows_is_shown_too() -> None:
    empty = make_table(("a",), [], title="AMIs", nothing="No AMIs yet.")
    assert str(empty) == "AMIs\nNo AMIs yet."
    assert empty._repr_html_() == "<p>AMIs No AMIs yet.</p>"
    assert empty._repr_markdown_() == "**AMIs**\n\nNo AMIs yet."
    assert str(make_table(("a",), [], title="0 added.", nothing="")) == "0 added."


@pytest.mark.parametrize("word", HOSTILE)
def test_text_from_outside_is_safe_in_every_form(word: str) -> None:
    whole = Everything(word, word)
    for text in (str(whole), whole._repr_markdown_(), whole._repr_html_()):
        assert hidden(text) == []
    assert_safe_lines(str(whole))
    assert len({row.count(" | ") for row in whole._repr_markdown_().split("\n") if row.startswith("| ")}) == 1
    assert "<script" not in whole._repr_html_() + whole._repr_markdown_()


AMIS = make_table(
    ("resource id", "name", "region", "state", "age days", "monthly usd"),
    [
        (
            f"ami-0{number:016x}",
            f"acme-ecs-node-26.11.{number}-x86_64-linux-fcbdbaa2",
            "us-east-1",
            "available",
            age,
            0.5,
        )
        for number, age in enumerate((728.2, 14.5, 3.25))
    ],
    right=("age days", "monthly usd"),
)


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal values are listed once, headings have several lines, and rows continue on further lines."""
    monkeypatch.setenv("COLUMNS", "80")
    assert str(AMIS).split("\n")[:5] == [
        "All rows below: region us-east-1, state available, monthly usd 0.5",
        "                                                                      age",
        "resource id            name                                          days",
        "ami-00000000000000000  acme-ecs-node-26.11.0-x86_64-linux-fcbdbaa2  728.2",
        "ami-00000000000000001  acme-ecs-node-26.11.1-x86_64-linux-fcbdbaa2   14.5",
    ]
    monkeypatch.setenv("COLUMNS", "60")
    assert str(AMIS).split("\n")[-2:] == [
        "ami-00000000000000002",
        "    acme-ecs-node-26.11.2-x86_64-linux-fcbdbaa2   3.25",
    ]
    monkeypatch.delenv("COLUMNS")
    assert len(str(AMIS).split("\n")) == 4
    # Columns have one space between them if a row then needs fewer lines.
    monkeypatch.setenv("COLUMNS", "20")
    words = make_table(("a", "b", "c", "d"), [("1" * 12, "2" * 7, "3" * 8, "4" * 7), ("5", "6", "7", "8")])
    assert str(words).split("\n")[2:4] == ["111111111111 2222222", "    33333333 4444444"]


def test_a_terminal_has_a_width_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not export ``COLUMNS``."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _descriptor: os.terminal_size((60, 24)))
    whole = len(str(AMIS).split("\n"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
    assert max(map(len, str(AMIS).split("\n"))) <= 60
    assert whole == 4


@pytest.mark.parametrize("width", range(20, 161, 7))
def test_no_value_of_a_table_is_lost_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    words = {word for row in AMIS.rows for text in row for word in text.split()}
    shown = str(AMIS)
    assert words <= set(re.split(r"[\s,]+", shown))
    assert max(map(len, shown.split("\n"))) <= max(width, 4 + max(map(len, words)))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_titles_and_brief_texts_fit_the_terminal_too(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    words = "in use by launch-template lt-0123456789abcdef0 (version 1) " * 5
    table = replace(AMIS, title=f"Kept {words}", brief=f"    25  such as: {words}\n        ami-1 and 22 more")
    shown = str(table).split("\n")
    assert max(map(len, shown)) <= width
    assert " ".join(" ".join(shown).split()) == " ".join(f"{table.title} {table.brief}".split())
    assert shown[-1] == "        ami-1 and 22 more"
    assert shown[-2].startswith(" " * 8)  # continues below the text
    assert max(map(len, str(Everything("a", words)).split("\n"))) <= width


def test_a_line_that_is_wrapped_is_no_workflow_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = make_table(("why",), [("word " * 7 + "::error::owned",)])
    assert_safe_lines(str(table))
