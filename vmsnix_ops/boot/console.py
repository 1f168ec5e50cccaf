"""What a machine says on its serial console: kept as evidence, and read for the words that decide.

A console may say anything, and any amount of it. What is kept is bounded: the beginning as it came, and the
last lines.
"""

from __future__ import annotations

import os
import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import files
from vmsnix_ops.progress import counted
from vmsnix_ops.redaction import LineRedactor, Redactor, secret_values
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

RAW = ("utf-8", "surrogateescape")
KEPT_BYTES = 8 * 2**20
"""How much of the console is written down as it came."""

TAIL_LINES = 40
LONGEST_LINE = 2000
"""Characters after which a line is cut: a flood without line ends must not grow in memory."""

FAILURES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), meaning)
    for pattern, meaning in (
        (r"Kernel panic - not syncing", "its kernel panicked"),
        (r"No bootable device|No bootable option or device was found", "its firmware found no boot device"),
        (r"^Shell> |UEFI Interactive Shell", "its firmware found no boot device and opened its shell"),
        (r"grub rescue>|error: unknown filesystem\.", "its boot loader could not find its files"),
        (r"An error occurred in stage 1 of the boot process", "NixOS could not mount its root file system"),
        (r"You are in (emergency|rescue) mode", "systemd could not reach its target"),
        (r"systemd\[1\]: Freezing execution", "systemd stopped executing"),
    )
)
"""Words after which no machine goes on by itself, and what they mean: the deadline need not be waited for."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Finding:
    """A line that decides: the one that was waited for, or one after which nothing will come."""

    kind: Literal["expected", "failed"]
    line: str
    meaning: str = ""


class Console:
    """Takes what the console says and looks for the words that decide.

    Parameters
    ----------
    path
        Where the console is written, as it came.
    expect
        What to wait for, in one line, terminal colours removed. A prompt without an end of line counts too.
    """

    def __init__(self, path: Path, expect: re.Pattern[str]) -> None:
        self._file = os.fdopen(files.create(path), "wb")
        self._redactor = LineRedactor(Redactor(secret_values()))
        self._expect = expect
        self._line = ""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.bytes = 0

    def feed(self, data: bytes) -> Finding | None:
        """Take some bytes; return the first line in them that decides, if there is one."""
        room = max(KEPT_BYTES - self.bytes, 0)
        # Byte for byte what came, where it holds no secret.
        self._file.write(self._redactor.feed(data[:room].decode(*RAW)).encode(*RAW))
        self.bytes += len(data)
        *whole, self._line = (self._line + data.decode("utf-8", "replace")).split("\n")
        found: Finding | None = None
        for line in whole:
            text = clean(line)
            if text:
                self._tail.append(text)
            found = found or self._judge(text)
        last = clean(self._line)
        if len(self._line) > LONGEST_LINE:
            self._tail.append(last)
            self._line = ""
        return found or self._judge(last)

    def tail(self) -> list[str]:
        """Return the last lines that were not empty, at most `TAIL_LINES`, without terminal colours."""
        last = clean(self._line)
        return [*self._tail, *([last] if last else [])][-TAIL_LINES:]

    def close(self) -> None:
        """End the file; what was left out of its middle is told, and the last lines follow."""
        if self._file.closed:
            return
        self._file.write(self._redactor.flush().encode(*RAW))
        if self.bytes > KEPT_BYTES:
            told = f"\n[{counted(self.bytes - KEPT_BYTES, 'more byte')}; the last lines:]\n"
            self._file.write((told + "\n".join(self.tail()) + "\n").encode())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _judge(self, text: str) -> Finding | None:
        if not text:
            return None
        if self._expect.search(text):
            return Finding("expected", text)
        for pattern, meaning in FAILURES:
            if pattern.search(text):
                return Finding("failed", text, meaning)
        return None


def clean(line: str) -> str:
    r"""Return a line as a person reads it: without terminal sequences, other control characters, and cut.

    Examples
    --------
    >>> clean("\x1b[1;32m  OK  \x1b[0m Reached target\r")
    '  OK   Reached target'
    """
    return _CONTROL.sub("", plain(line)).rstrip()[:LONGEST_LINE]
