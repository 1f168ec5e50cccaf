"""Save the serial console of a machine, and search it for the expected line and for known failures.

The saved size is limited: the beginning is saved unchanged, and then only the last lines.
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
"""Bytes of the console that are saved unchanged."""

TAIL_LINES = 40
LONGEST_LINE = 2000
"""Maximum number of characters of a line, so that output without line ends does not fill the memory."""

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
"""Messages after which a machine does not continue, and their meaning. The boot fails before its deadline."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class ConsoleMatch:
    """A line that ends the boot: the expected line, or a failure and its meaning."""

    kind: Literal["expected", "failed"]
    line: str
    meaning: str = ""


class BootConsole:
    """Saves the console, and searches it for the expected line and for failures.

    `expect` is searched in lines without terminal colours. A prompt without a line end counts too.
    """

    def __init__(self, path: Path, expect: re.Pattern[str]) -> None:
        self._file = os.fdopen(files.create(path), "wb")
        self._redactor = LineRedactor(Redactor(secret_values()))
        self._expect = expect
        self._line = ""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.bytes = 0

    def feed(self, data: bytes) -> ConsoleMatch | None:
        """Add bytes, and return the first match in them, if any."""
        remaining = max(KEPT_BYTES - self.bytes, 0)
        # The bytes are unchanged, except for secrets.
        self._file.write(self._redactor.feed(data[:remaining].decode(*RAW)).encode(*RAW))
        self.bytes += len(data)
        *complete, self._line = (self._line + data.decode("utf-8", "replace")).split("\n")
        found: ConsoleMatch | None = None
        for line in complete:
            text = clean(line)
            if text:
                self._tail.append(text)
            found = found or self._match(text)
        last = clean(self._line)
        if len(self._line) > LONGEST_LINE:
            self._tail.append(last)
            self._line = ""
        return found or self._match(last)

    def tail(self) -> list[str]:
        """Return the last `TAIL_LINES` lines that are not empty, without terminal colours."""
        last = clean(self._line)
        return [*self._tail, *([last] if last else [])][-TAIL_LINES:]

    def close(self) -> None:
        """Close the file; first add a note about the omitted bytes, and the last lines."""
        if self._file.closed:
            return
        self._file.write(self._redactor.flush().encode(*RAW))
        if self.bytes > KEPT_BYTES:
            note = f"\n[{counted(self.bytes - KEPT_BYTES, 'more byte')}; the last lines:]\n"
            self._file.write((note + "\n".join(self.tail()) + "\n").encode())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _match(self, text: str) -> ConsoleMatch | None:
        if not text:
            return None
        if self._expect.search(text):
            return ConsoleMatch("expected", text)
        for pattern, meaning in FAILURES:
            if pattern.search(text):
                return ConsoleMatch("failed", text, meaning)
        return None


def clean(line: str) -> str:
    r"""Return a shortened line without terminal sequences and other control characters.

    >>> clean("\x1b[1;32m  OK  \x1b[0m Reached target\r")
    '  OK   Reached target'
    """
    return _CONTROL.sub("", plain(line)).rstrip()[:LONGEST_LINE]
