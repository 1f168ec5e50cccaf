"""The live table of a fleet: on a terminal, in a notebook, and as plain lines in a log.

A board is told what happens; what it shows is for the eye only, and the ledger is what counts.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from vmsnix_ops.progress import counted, human_seconds, in_jupyter
from vmsnix_ops.templates import fill
from vmsnix_ops.text import line, write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from vmsnix_ops.runbooks.fleet.ledger import Document

ORDER = ("running", "retrying", "waiting", "failed", "partial", "cancelled", "skipped", "planned", "done")
MARKS = {
    "done": "✓",
    "failed": "✗",
    "partial": "◐",
    "cancelled": "■",
    "skipped": "-",
    "running": "▶",
    "retrying": "↻",
}
STYLES = {
    "done": "green", "failed": "bold red", "partial": "yellow", "cancelled": "yellow", "skipped": "dim",
    "running": "bold", "retrying": "yellow", "waiting": "yellow", "planned": "dim",
}  # fmt: skip
REFRESH_SECONDS = 0.5


@dataclass
class Line:
    """What is known of one target.

    Attributes
    ----------
    name
        The target.
    state
        As in the ledger, or ``planned``, ``waiting`` (for somebody else's run), ``retrying``.
    worker
        Which worker told of it last.
    since
        When it began to run, by this process's monotonic clock.
    seconds
        How long it ran, once it has ended.
    error
        What went wrong.
    """

    name: str
    state: str = "planned"
    worker: str = ""
    since: float = 0.0
    seconds: float | None = None
    error: str = ""

    def told(self, event: Mapping[str, Any]) -> bool:
        """Take an event in; return whether the state is another one now."""
        state = str(event["state"])
        changed = state != self.state
        if state == "running" and changed:
            self.since, self.seconds = time.monotonic(), None
        elif self.state == "running" and changed:
            self.seconds = time.monotonic() - self.since
        self.state = state
        self.worker = str(event.get("worker") or self.worker)
        self.error = str(event.get("error") or "")
        return changed

    def took(self) -> str:
        """Return how long it has run."""
        if self.state == "running":
            return human_seconds(time.monotonic() - self.since)
        return human_seconds(self.seconds) if self.seconds is not None else ""


class Board:
    """Knows the state of every target; the faces below show it. This one shows nothing."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.name = ""
        self.started = time.monotonic()
        self._lock = threading.RLock()  # events come in Dask's own thread

    def begin(self, targets: Sequence[tuple[str, str]], name: str) -> None:
        """Begin with these targets: key and name of each."""
        self.name, self.started = name, time.monotonic()
        self.lines = {key: Line(target) for key, target in targets}
        self.opened()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take in that something happened to a target."""
        with self._lock:
            line = self.lines.get(str(event["key"]))
            if line is not None and line.told(event):
                self.changed(line)

    def end(self, documents: Mapping[str, Document]) -> None:
        """Show the last word on every target."""
        with self._lock:
            for key, document in documents.items():
                if key in self.lines and document["state"] != "planned":
                    self.lines[key].told(document)
                    attempts = document["attempts"]
                    self.lines[key].seconds = attempts[-1].get("seconds") if attempts else None
            self.closed()

    def summary(self) -> str:
        """Return one line: how many targets are in which state, and how long it has taken."""
        counts = Counter(line.state for line in self.lines.values())
        parts = [f"{counts[state]} {state}" for state in reversed(ORDER) if counts[state]]
        return f"{self.name}: {', '.join(parts)}; {human_seconds(time.monotonic() - self.started)}"

    def sorted(self) -> list[Line]:
        """Return the lines, those that want to be seen first."""
        return sorted(
            self.lines.values(), key=lambda line: ORDER.index(line.state) if line.state in ORDER else 0
        )

    def opened(self) -> None:
        """Show that the fleet begins."""

    def changed(self, line: Line) -> None:
        """Show that a target is in another state."""

    def closed(self) -> None:
        """Show how it ended."""


class Lines(Board):
    """One line when a target begins, is tried again, and ends; for logs.

    Parameters
    ----------
    stream
        Where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def opened(self) -> None:
        """Write how many there are."""
        self._write(f"{self.name}: {counted(len(self.lines), 'target')}")

    def changed(self, line: Line) -> None:
        """Write the target, its state, and what went wrong."""
        parts = [f"{MARKS.get(line.state, ' ')} {line.name}: {line.state}"]
        if line.seconds is not None and line.state != "running":
            parts.append(f"after {human_seconds(line.seconds)}")
        self._write(" ".join(parts) + (f": {line.error}" if line.error else ""))

    def closed(self) -> None:
        """Write the summary."""
        self._write(self.summary())

    def _write(self, text: str) -> None:
        write(self.stream, line(text) + "\n")


class Terminal(Board):
    """A table at the bottom of a terminal that stays when the fleet has ended.

    Parameters
    ----------
    console
        Where it goes; standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        from vmsnix_ops.progress import _console

        self.console = console or _console()
        self._live: Any = None
        self._over = False

    def opened(self) -> None:
        """Open the table."""
        from rich.live import Live

        self._live = Live(
            self, console=self.console, refresh_per_second=1 / REFRESH_SECONDS, vertical_overflow="ellipsis"
        )
        self._live.start()

    def closed(self) -> None:
        """Leave the whole table as text."""
        self._over = True
        self._live.vertical_overflow = "visible"
        self._live.stop()

    def __rich__(self) -> Any:
        """Return the table as it is now."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("", "target", "state", "time", ""):
            table.add_column(
                name, justify="right" if name == "time" else "left", no_wrap=name in ("target", "time")
            )
        with self._lock:
            for target in self.sorted():
                style = STYLES.get(target.state, "")
                cells = (MARKS.get(target.state, " "), target.name, target.state, target.took(), target.error)
                table.add_row(*(Text(line(cell), style=style) for cell in cells))
        summary = Text(line(self.summary()), style="bold")
        # While it moves the end of a long table may be cut off; afterwards the end is what is seen.
        return Group(table, summary) if self._over else Group(summary, table)


class Widget(Board):
    """The table below the running cell of a notebook."""

    def __init__(self) -> None:
        super().__init__()
        import ipywidgets

        self.box: Any = ipywidgets.HTML()
        self._drawn = 0.0

    def opened(self) -> None:
        """Show the table."""
        from IPython.display import display

        self.draw()
        display(self.box)  # type: ignore[no-untyped-call]

    def changed(self, line: Line) -> None:  # noqa: ARG002 - all of it is drawn
        """Draw it anew, not too often: each is a message to the browser."""
        if time.monotonic() - self._drawn >= REFRESH_SECONDS:
            self.draw()

    def closed(self) -> None:
        """Draw the end."""
        self.draw()

    def draw(self) -> None:
        """Draw the table as it is now."""
        self._drawn = time.monotonic()
        colours = {"done": "#1a7f37", "failed": "#c4232f", "skipped": "#59636e", "planned": "#59636e"}
        lines = [
            (line, colours.get(line.state, "inherit"), MARKS.get(line.state, "")) for line in self.sorted()
        ]
        self.box.value = fill(_TABLE, summary=self.summary(), lines=lines)


_TABLE = """\
<b>{{ summary }}</b><table>
<thead><tr><th></th><th>target</th><th>state</th><th>time</th><th></th></tr></thead>
<tbody>
{% for line, colour, mark in lines %}
<tr style="color:{{ colour }}"><td>{{ mark }}</td><td>{{ line.name }}</td><td>{{ line.state }}</td>
<td>{{ line.took() }}</td><td>{{ line.error }}</td></tr>
{% endfor %}
</tbody></table>
"""


def board_for_here() -> Board:
    """Return the face that fits where this process runs; as `vmsnix_ops.progress.current`."""
    if os.environ.get("VMSNIX_PROGRESS") == "silent":
        return Board()
    if in_jupyter():
        return Widget()
    return Terminal() if sys.stdout.isatty() else Lines(sys.stdout)
