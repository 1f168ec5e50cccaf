"""The live table: what is seen first, on a terminal, in a notebook, in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vmsnix_ops.runbooks.fleet.table import Board, Lines, Terminal, Widget, board_for_here

TARGETS = [("a", "publish/a"), ("b", "publish/<b>"), ("c", "publish/c")]


def play(board: Board) -> None:
    """Play a small fleet: one done, one failed, one skipped."""
    board.begin(TARGETS, "nightly")
    board.tell({"key": "a", "state": "running"})
    board.tell({"key": "b", "state": "running"})
    board.tell({"key": "nobody", "state": "running"})
    board.tell({"key": "a", "state": "done"})
    board.tell({"key": "b", "state": "failed", "error": "It broke."})


def end(board: Board) -> None:
    document = {"state": "skipped", "error": "these are not done: publish/<b>.", "attempts": []}
    board.end({"c": document, "a": {"state": "done", "attempts": [{"seconds": 65.0}], "error": None}})


def test_what_wants_to_be_seen_stands_first() -> None:
    board = Board()
    play(board)
    assert [line.name for line in board.sorted()] == ["publish/<b>", "publish/c", "publish/a"]
    assert board.summary().startswith("nightly: 1 done, 1 planned, 1 failed; ")


def test_a_log_gets_a_line_for_each_change() -> None:
    stream = io.StringIO()
    board = Lines(stream)
    play(board)
    end(board)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "nightly: 3 targets"
    assert [line.partition(" after")[0] for line in lines[1:5]] == [
        "▶ publish/a: running",
        "▶ publish/<b>: running",
        "✓ publish/a: done",
        "✗ publish/<b>: failed",
    ]
    assert lines[4].endswith(": It broke.")
    assert lines[-1].startswith("nightly: 1 done, 1 skipped, 1 failed; ")


def test_a_terminal_keeps_the_whole_table_and_ends_with_the_summary() -> None:
    stream = io.StringIO()
    board = Terminal(Console(file=stream, force_terminal=True, width=100, height=5, color_system=None))
    play(board)
    end(board)
    last = [line for line in stream.getvalue().splitlines() if line.strip("\x1b[?25h")]
    assert "nightly: 1 done, 1 skipped, 1 failed" in last[-1]
    assert any("publish/a" in line and "1 min 5 s" in line for line in last[-4:])
    assert any("these are not done" in line for line in last[-5:])


def test_a_notebook_gets_a_table_with_nothing_of_others_in_its_markup() -> None:
    board = Widget()
    play(board)
    end(board)
    assert "publish/&lt;b&gt;" in board.box.value
    assert "It broke." in board.box.value
    assert "1 done, 1 skipped, 1 failed" in board.box.value


@pytest.mark.parametrize(
    ("variables", "face"),
    [
        ({"VMSNIX_PROGRESS": "silent"}, Board),
        ({"JPY_SESSION_NAME": "x"}, Widget),
        ({"JPY_SESSION_NAME": "x", "VMSNIX_RUN_ID": "r"}, Lines),
        ({}, Lines),
    ],
)
def test_the_face_fits_the_place(
    variables: dict[str, str], face: type[Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VMSNIX_PROGRESS", "JPY_SESSION_NAME", "VMSNIX_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert type(board_for_here()) is face
