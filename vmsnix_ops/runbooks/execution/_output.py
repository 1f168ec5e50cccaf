"""Show, log and limit the output of a running notebook.

A notebook with 50 MB of output cannot be opened. A cell keeps the beginning and the end of its output; the
log ends at its limit.
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

WIDGET_TEXT = re.compile(r"^<[^\n]*>$|^(HBox|VBox|Output|FloatProgress|IntProgress|HTML|Label)\(.*\)$")

FRAME = 'class="dataframe"'
FRAME_LINES = 20  # of a frame; pandas prints up to 60 rows, once for each group of columns


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """Limits of the saved output, in characters."""

    cell: int = 500_000  # printed text of one cell; half of it from the beginning, half from the end
    notebook: int = 10_000_000  # printed text and display data of all cells
    display: int = 5_000_000  # one display output (a table, a picture)
    log: int = 20_000_000  # log.txt


class HeadAndTail:
    """Keeps a number of characters of a stream: half from its beginning, half from its end."""

    def __init__(self, limit: int) -> None:
        self.head_left = limit // 2
        self.tail_limit = limit - self.head_left
        self.left_out = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0

    def add(self, text: str) -> str:
        """Return the part of the text that belongs to the beginning; keep the rest, which may be the end."""
        head, rest = text[: self.head_left], text[self.head_left :]
        self.head_left -= len(head)
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            while self._tail_size - len(self._tail[0]) >= self.tail_limit:
                size = len(self._tail.popleft())
                self._tail_size -= size
                self.left_out += size
        return head

    def tail(self) -> str:
        """Return the end of the text, preceded by the number of characters that were left out."""
        if self._tail_size > self.tail_limit:
            surplus = self._tail_size - self.tail_limit
            self._tail[0] = self._tail[0][surplus:]
            self._tail_size -= surplus
            self.left_out += surplus
        note = f"\n[... {counted(self.left_out, 'character')} left out ...]\n" if self.left_out else ""
        text = note + "".join(self._tail)
        self._tail.clear()
        return text


class LiveOutput:
    """Shows the output of a notebook line by line, without secrets, and writes it to ``log.txt``.

    The log has at most `limit` characters. With `on_event`, which shows the progress of steps, the screen
    gets no lines about progress. With `folds`, each step is a group in the log of GitHub Actions. `problems`
    has the reasons why the log or the screen is incomplete.
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
        self._log_left = limit
        self._on_event = on_event
        self.problems: dict[str, None] = {}
        self._progress = io.StringIO()
        self._lines_of = LogLines(self._progress, folds=folds)

    def stream(self, name: str, text: str) -> str:
        """Show a piece of standard output or standard error; return the part of it that may be saved now.

        An incomplete line is kept back until `flush`, because a secret could continue in it.
        """
        lines = self._streams.setdefault(name, LineRedactor(self._redactor))
        clean = lines.feed(text)
        self._show(as_lines(plain(clean)))
        return clean

    def progress(self, data: dict[str, Any]) -> str:
        """Show an event of a step, and return its lines for the notebook, if any."""
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
            self.flush()
            self._show(text, screen=self._on_event is None)
        return text

    def display(self, data: dict[str, Any]) -> None:
        """Show the plain text of a display output; of a frame of pandas, the first lines."""
        text = "".join(data.get("text/plain", "")).rstrip()
        rows = text.split("\n")
        if len(rows) > FRAME_LINES and FRAME in "".join(data.get("text/html", "")):
            more = counted(len(rows) - FRAME_LINES, "more line")
            text = "\n".join([*rows[:FRAME_LINES], f"{more} of this table in the report."])
        if text and not WIDGET_TEXT.match(text):
            self.flush()
            self._show(as_lines(plain(self._redactor.text(text))) + "\n")

    def note(self, text: str, *, screen: bool = True) -> None:
        """Show a line from the runner."""
        self.flush()
        self._show(as_lines(plain(self._redactor.text(text))) + "\n", screen=screen)

    def flush(self) -> list[tuple[str, str]]:
        """Show the incomplete lines that were kept back, and return them with their streams."""
        flushed = [(name, rest) for name, lines in self._streams.items() if (rest := lines.flush())]
        for _, rest in flushed:
            text = as_lines(plain(rest))
            if text:
                self._show(text if text.endswith("\n") else text + "\n")
        return flushed

    def close(self) -> None:
        """Show the rest of the output, and close the log."""
        self.flush()
        with self._collecting("The log is incomplete"):
            self._log.close()

    def _show(self, text: str, *, screen: bool = True) -> None:
        """Write safe lines; workflow commands in them come from the runner."""
        if not text:
            return
        # First to the log, so that it contains everything that was shown, even if this process is killed now.
        if self._log_left > 0:
            with self._collecting("The log is incomplete"):
                self._log.write(text[: self._log_left])
                self._log.flush()
            self._log_left -= len(text)
            if self._log_left <= 0:
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
        """Add an error of the block to `problems`: a full disk or a closed terminal must not stop the run."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream was closed in this process
            self.problems.setdefault(f"{problem}: {getattr(error, 'strerror', None) or error}.")
