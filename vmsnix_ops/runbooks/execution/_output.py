"""What a running notebook prints: shown live, kept in the log, and kept from growing without bounds.

50 MB of prints would make a notebook of 50 MB that nobody can open. A cell keeps the beginning and the end
of what it printed; so does the log.
"""

from __future__ import annotations

import io
import re
from collections import deque
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TextIO

from vmsnix_ops import files
from vmsnix_ops.progress import Event, LogLines, counted
from vmsnix_ops.redaction import LineRedactor, Redactor
from vmsnix_ops.text import lines as as_lines
from vmsnix_ops.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmsnix_ops.progress import Reporter

NO_TEXT_OF_ITS_OWN = re.compile(r"^<[^\n]*>$|^(HBox|VBox|Output|FloatProgress|IntProgress|HTML|Label)\(.*\)$")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much output is kept, in characters.

    Attributes
    ----------
    cell
        Printed text of one cell; as much of its beginning as of its end.
    notebook
        Printed text and display data of all cells together.
    display
        One display output (a table, a picture).
    log
        ``log.txt``.
    """

    cell: int = 500_000
    notebook: int = 10_000_000
    display: int = 5_000_000
    log: int = 20_000_000


class Kept:
    """The text of one stream of one cell: its beginning and its end.

    Parameters
    ----------
    limit
        Characters that are kept; half of them from the beginning.
    """

    def __init__(self, limit: int) -> None:
        self.room = limit // 2
        self.tail_limit = limit - self.room
        self.left_out = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0

    def feed(self, text: str) -> str:
        """Return the part of the text that belongs to the beginning; keep the rest as a possible end."""
        head, rest = text[: self.room], text[self.room :]
        self.room -= len(head)
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            while self._tail_size - len(self._tail[0]) >= self.tail_limit:
                self._drop(len(self._tail[0]))
        return head

    def end(self) -> str:
        """Return the end of the text, after a note of what was left out before it."""
        if self._tail_size > self.tail_limit:
            surplus = self._tail_size - self.tail_limit
            self._tail[0] = self._tail[0][surplus:]
            self._tail_size -= surplus
            self.left_out += surplus
        note = f"\n[... {counted(self.left_out, 'character')} left out ...]\n" if self.left_out else ""
        text = note + "".join(self._tail)
        self._tail.clear()
        return text

    def _drop(self, size: int) -> None:
        self._tail.popleft()
        self._tail_size -= size
        self.left_out += size


class Live:
    """Shows what a notebook prints, line by line and redacted, and writes it to ``log.txt``.

    Parameters
    ----------
    log
        The log file.
    screen
        Where people watch; ``None`` when nobody does.
    redactor
        Who knows what is secret.
    limit
        Characters of the log.
    on_event
        Shows how far the steps are, instead of lines on the screen.
    folds
        Whether every step is a fold of GitHub Actions.

    Attributes
    ----------
    problems
        Why the log or the screen lacks something, as sentences.
    """

    def __init__(
        self,
        log: Path,
        screen: TextIO | None,
        redactor: Redactor,
        limit: int,
        *,
        on_event: Reporter | None = None,
        folds: bool = False,
    ) -> None:
        self._log = files.open_text(log)
        self._screen = screen
        self._streams: dict[str, LineRedactor] = {}
        self._redactor = redactor
        self._room = limit
        self._on_event = on_event
        self.problems: dict[str, None] = {}
        self._progress = io.StringIO()
        self._lines_of = LogLines(self._progress, folds=folds)

    def stream(self, name: str, text: str) -> str:
        """Take a piece of standard output or standard error; return what may be kept of it now.

        A line without its end is held back, until `settle`: its secret may only have begun.
        """
        lines = self._streams.setdefault(name, LineRedactor(self._redactor))
        clean = lines.feed(text)
        self._show(as_lines(plain(clean)))
        return clean

    def progress(self, data: dict[str, Any]) -> str:
        """Take an event of a step, and return the lines that it is worth, if any."""
        event = Event(**data)
        event = Event(**self._redactor.value(asdict(event)))
        if self._on_event is not None:
            with self._collecting("The progress display stopped early"):
                self._on_event(event)
        self._lines_of(event)
        text = self._progress.getvalue()
        self._progress.seek(0)
        self._progress.truncate()
        if text:
            self.settle()
            self._show(text, screen=self._on_event is None)
        return text

    def display(self, data: dict[str, Any]) -> None:
        """Take a display output; its plain text is what a log can show of it."""
        text = "".join(data.get("text/plain", "")).rstrip()
        if text and not NO_TEXT_OF_ITS_OWN.match(text):
            self.settle()
            self._show(as_lines(plain(self._redactor.text(text))) + "\n")

    def note(self, text: str, *, screen: bool = True) -> None:
        """Write a line of the runner's own."""
        self.settle()
        self._show(as_lines(plain(self._redactor.text(text))) + "\n", screen=screen)

    def settle(self) -> list[tuple[str, str]]:
        """Show the unfinished lines that are still held back, and return them with their streams."""
        settled = [(name, rest) for name, lines in self._streams.items() if (rest := lines.flush())]
        for _, rest in settled:
            text = as_lines(plain(rest))
            if text:
                self._show(text if text.endswith("\n") else text + "\n")
        return settled

    def close(self) -> None:
        """Show what is left and close the log."""
        self.settle()
        with self._collecting("The log is incomplete"):
            self._log.close()

    def _show(self, text: str, *, screen: bool = True) -> None:
        """Write lines that are safe already; a workflow command among them is the runner's own."""
        if not text:
            return
        # The log first: what somebody has seen is kept, even when this process is killed next.
        if self._room > 0:
            with self._collecting("The log is incomplete"):
                self._log.write(text[: self._room])
                self._log.flush()
            self._room -= len(text)
            if self._room <= 0:
                with self._collecting("The log is incomplete"):
                    self._log.write("\n[... the log reached its size limit; the rest is left out ...]\n")
        if screen and self._screen is not None:
            screen_, self._screen = self._screen, None
            with self._collecting("The output display stopped early"):
                screen_.write(text)
                screen_.flush()
                self._screen = screen_

    @contextmanager
    def _collecting(self, problem: str) -> Iterator[None]:
        """Collect an error of the block: a full disk or a closed terminal must not stop the run."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream was closed in this process
            self.problems.setdefault(f"{problem}: {getattr(error, 'strerror', None) or error}.")
