"""The note of a channel's value: stored as data, shown as a sentence."""

from __future__ import annotations

import json

import pytest

from vmsnix_ops.channels.history import Note

BACK = Note("roll back", "web-1", "run-1", before='web-2, rolled back from x by the run y"')


@pytest.mark.parametrize("note", [BACK, Note("promote", "web-1", "r"), Note("restore", "web-1", "r")])
def test_a_note_is_read_back_as_it_was_written(note: Note) -> None:
    assert Note.read(note.text()) == note


def test_a_note_is_shown_as_a_sentence() -> None:
    note = Note("roll back", "web-1", "run-1", before="web-2")
    assert str(note) == "web-1, rolled back from web-2 by the run run-1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        str(BACK),
        "[" * 1024,
        "{}",
        '"roll back"',
        json.dumps({"how": "roll back", "name": "web-1", "run_id": "r", "before": 1}),
        json.dumps({"how": "away", "name": "web-1", "run_id": "r", "before": ""}),
        json.dumps({"how": ["promote"], "name": "web-1", "run_id": "r", "before": ""}),
    ],
)
def test_a_description_of_another_tool_is_not_a_note(text: str) -> None:
    assert Note.read(text) is None
