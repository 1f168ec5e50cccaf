"""Matches on the console, and its maximum size."""

from __future__ import annotations

import re
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops.boot.console import KEPT_BYTES, LONGEST_LINE, BootConsole, clean

if TYPE_CHECKING:
    from pathlib import Path

LOGIN = re.compile(r"login:")


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("[    1.23] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n", "its kernel panicked"),
        ("BdsDxe: No bootable option or device was found.\r\n", "its firmware found no boot device"),
        ("grub rescue> ", "its boot loader could not find its files"),
        ("An error occurred in stage 1 of the boot process\n", "NixOS could not mount its root file system"),
        ("You are in emergency mode. After logging in\n", "systemd could not reach its target"),
    ],
)
def test_failure_messages_are_recognized(tmp_path: Path, text: str, meaning: str) -> None:
    with BootConsole(tmp_path / "log", LOGIN) as console:
        found = console.feed(text.encode())
    assert found is not None
    assert (found.kind, found.meaning) == ("failed", meaning)


def test_text_after_the_match_is_saved(tmp_path: Path) -> None:
    with BootConsole(tmp_path / "log", LOGIN) as console:
        found = console.feed(b"Kernel panic - not syncing: x\nCall Trace:\n---[ end Kernel panic ]---\nmore")
        assert found is not None
        assert found.line == "Kernel panic - not syncing: x"
        assert console.tail() == [found.line, "Call Trace:", "---[ end Kernel panic ]---", "more"]


def test_a_prompt_without_a_line_end_is_found_in_any_pieces(tmp_path: Path) -> None:
    pieces = ["\x1b[0;1mhost ", "lo", "gin", ": "]
    with BootConsole(tmp_path / "log", LOGIN) as console:
        found = [console.feed(piece.encode()) for piece in pieces]
    assert found[:3] == [None, None, None]
    assert found[3] is not None
    assert found[3].kind == "expected"


@given(st.binary(max_size=5000), st.integers(1, 700))
def test_the_expected_line_is_found_in_any_pieces_of_any_output(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, size: int
) -> None:
    data = noise + b"\x1b\\\nhost login: "
    with BootConsole(tmp_path_factory.getbasetemp() / "any.log", LOGIN) as console:
        found = [console.feed(data[start : start + size]) for start in range(0, len(data), size)]
    assert any(one is not None and one.kind == "expected" for one in found)


def test_a_console_has_a_maximum_size_in_memory_and_on_disk(tmp_path: Path) -> None:
    with BootConsole(tmp_path / "log", LOGIN) as console:
        tracemalloc.start()
        for _ in range(400):
            console.feed(b"y" * 65_536)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        console.feed(b"\nthe last line\n")
    assert peak < 4 * 2**20
    written = (tmp_path / "log").read_bytes()
    assert len(written) < KEPT_BYTES + 41 * LONGEST_LINE
    assert b"more bytes; the last lines:" in written
    assert written.endswith(b"the last line\n")


def test_terminal_sequences_are_not_shown() -> None:
    assert clean("\x1b[2J\x1b]0;title\x07\x1b[1;31mred\x1b[0m\x00\x7f text \r") == "red text"
