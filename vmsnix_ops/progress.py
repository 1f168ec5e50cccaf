"""One stream of progress events, three faces: terminal, notebook, CI log.

Work is reported by steps. The face that shows them is chosen once, where the work starts; nothing below
knows which one it is. With ``VMSNIX_EVENTS`` another process can follow, too.

>>> from vmsnix_ops.progress import Progress
>>> events = []
>>> with Progress(events.append).step("upload", total=10, unit="bytes") as step:
...     step.advance(4)
...     step.advance(6)
>>> [event.kind for event in events]
['started', 'advanced', 'advanced', 'finished']
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from vmsnix_ops import files
from vmsnix_ops.templates import fill
from vmsnix_ops.text import html, line, lines, write, write_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


Forecast = Callable[[float], float | None]
"""How many seconds are to go after so many, by what is known of earlier work; ``None`` when that ends."""

Kind = Literal["started", "advanced", "message", "finished", "failed"]
Unit = Literal["bytes", "percent", "derivations", "items"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened in a step.

    Attributes
    ----------
    step
        Name of the step, such as ``"upload"``.
    kind
        What happened.
    done, total
        How far the step is, in `unit`; `total` is ``None`` while nobody knows.
    message
        A line for the operator; empty for plain movement.
    seconds
        Since the step started.
    remaining
        Seconds to go by earlier work of this kind; ``None`` when only the pace so far can tell.
    """

    step: str
    kind: Kind
    done: float = 0.0
    total: float | None = None
    unit: Unit = "items"
    message: str = ""
    seconds: float = 0.0
    remaining: float | None = None

    @property
    def rate(self) -> float:
        """Units a second so far; 0 when nothing is done yet."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds to go, by earlier work or else at the rate so far; ``None`` while that cannot be told."""
        if self.remaining is not None:
            return self.remaining
        if self.total is None or self.rate <= 0:
            return None
        return max(self.total - self.done, 0.0) / self.rate

    @property
    def fraction(self) -> float | None:
        """How much is done, from 0 to 1: of the time that it takes, or else of the total."""
        if self.remaining is not None and self.kind not in ("finished", "failed"):
            whole = self.seconds + self.remaining
            return self.seconds / whole if whole > 0 else 0.0
        return min(max(self.done / self.total, 0.0), 1.0) if self.total else None


Reporter = Callable[[Event], None]
MESSAGE = "application/vnd.vmsnix.progress+json"
"""Type of the display messages by which a run's kernel hands its events to the runner."""


@dataclass
class Step:
    """A step that is under way. Thread safe enough for parallel uploads: additions only, under the GIL."""

    name: str
    report: Reporter
    total: float | None = None
    unit: Unit = "items"
    done: float = 0.0
    started: float = field(default_factory=time.monotonic)
    forecast: Forecast | None = None

    def advance(self, amount: float) -> None:
        """Move on by `amount` units; negative when a retry takes something back."""
        self.done += amount
        self._emit("advanced")

    def at(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far the step is, for work that tells its position rather than its pace."""
        self.done = done
        self.total = self.total if total is None else total
        self._emit("advanced", message)

    def expect(self, forecast: Forecast) -> None:
        """Tell from now on how long it will take by earlier work, rather than by the pace so far."""
        self.forecast = forecast

    def tick(self, message: str = "") -> None:
        """Let the operator see time go by; nothing else has moved."""
        self._emit("advanced", message)

    def message(self, text: str) -> None:
        """Tell the operator something."""
        self._emit("message", text)

    def _emit(self, kind: Kind, message: str = "") -> None:
        seconds = time.monotonic() - self.started
        remaining = self.forecast(seconds) if self.forecast is not None else None
        self.report(Event(self.name, kind, self.done, self.total, self.unit, message, seconds, remaining))


class Progress:
    """Reports steps to one face.

    Parameters
    ----------
    report
        Called with every event, from whichever thread it happens in.
    """

    def __init__(self, report: Reporter) -> None:
        self.report = report

    @contextmanager
    def step(self, name: str, *, total: float | None = None, unit: Unit = "items") -> Iterator[Step]:
        """Report everything that happens in the block as one step."""
        step = Step(name, self.report, total, unit)
        step._emit("started")
        try:
            yield step
        except BaseException as error:
            step._emit("failed", str(error) or type(error).__name__)
            raise
        step._emit("finished")


def silent() -> Progress:
    """Return a progress that shows nothing."""
    return Progress(lambda _event: None)


def current() -> Progress:
    """Return the face that fits where this process runs.

    Widgets in a kernel that a Jupyter server started, a live bar on a terminal, plain lines everywhere else
    (CI, papermill). The kernel of a run hands its events to the runner, who has a terminal or not. With
    ``VMSNIX_EVENTS`` the events are also written into that file.
    """
    face = _face()
    followed = os.environ.get("VMSNIX_EVENTS")
    return Progress(_both(face, EventFile(Path(followed))) if followed else face)


def in_jupyter() -> bool:
    """Tell whether this is a kernel that a Jupyter server started for a person, not one of a run."""
    return "JPY_SESSION_NAME" in os.environ and "VMSNIX_RUN_ID" not in os.environ


def _face() -> Reporter:
    if os.environ.get("VMSNIX_PROGRESS") == "silent":
        return silent().report
    if os.environ.get("VMSNIX_PROGRESS") == "messages" and "IPython" in sys.modules:
        return message_face()
    if in_jupyter():
        return widget_face()
    if sys.stdout.isatty():
        return terminal_face()
    return Lines(sys.stdout)


def _both(first: Reporter, second: Reporter) -> Reporter:
    def report(event: Event) -> None:
        first(event)
        second(event)

    return report


def human_bytes(count: float) -> str:
    """Return a byte count as people read it, in binary units.

    >>> human_bytes(4 * 2**30)
    '4.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """Return a duration as people read it.

    >>> human_seconds(75.2)
    '1 min 15 s'
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def counted(number: int, word: str, plural: str = "") -> str:
    """Return a number of things, in the grammar of one or of many.

    >>> counted(1, "target"), counted(1200, "target"), counted(2, "retry", "retries")
    ('1 target', '1,200 targets', '2 retries')
    """
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def describe(event: Event) -> str:
    """Return one line that says how far a step is: amount, share, rate and time to go."""
    amount = human_bytes(event.done) if event.unit == "bytes" else f"{event.done:g}"
    one = event.unit.removesuffix("s")
    if event.unit == "percent":
        fraction = event.fraction
        parts = [f"{event.done if fraction is None else 100 * fraction:.0f} %"]
    elif event.total:
        whole = human_bytes(event.total) if event.unit == "bytes" else counted(int(event.total), one)
        parts = [f"{amount} of {whole}", f"{100 * event.done / event.total:.0f} %"]
    else:
        parts = [amount if event.unit == "bytes" else counted(int(event.done), one)]
    if event.unit == "bytes" and event.rate:
        parts.append(f"{human_bytes(event.rate)}/s")
    if event.kind == "advanced" and event.eta:
        parts.append(f"{human_seconds(event.eta)} to go")
    if event.message:
        parts.append(event.message)
    return ", ".join(parts)


class Lines:
    """Plain lines for logs: a line when a step starts and ends, and one each ten seconds in between.

    In GitHub Actions every step is a fold (``::group::``).

    Parameters
    ----------
    stream
        Where the lines go.
    every
        Seconds between two lines of the same step.
    folds
        Whether every step is a fold; where this process runs in GitHub Actions, by default.
    """

    def __init__(self, stream: TextIO, *, every: float = 10.0, folds: bool | None = None) -> None:
        self.stream, self.every = stream, every
        self._last: dict[str, float] = {}
        self._groups = os.environ.get("GITHUB_ACTIONS") == "true" if folds is None else folds

    def __call__(self, event: Event) -> None:
        """Write the line that this event deserves, if any."""
        if event.kind == "started":
            self._last[event.step] = 0.0
            self._write(f"{event.step} ...", "group", event.step)
        elif event.kind == "message" or (
            event.kind == "advanced" and event.seconds - self._last.get(event.step, 0.0) >= self.every
        ):
            self._last[event.step] = event.seconds
            text = event.message if event.kind == "message" else describe(event)
            self._write(f"{event.step}: {text}")
        elif event.kind in ("finished", "failed"):
            shown = event.message or (describe(event) if event.done else "")
            outcome = f"{event.step} {event.kind} in {human_seconds(event.seconds)}"
            self._write(f"{outcome}: {shown}" if shown else outcome)
            self._write("", "endgroup")

    def _write(self, text: str, command: str = "", name: str = "") -> None:
        """Write text, or the workflow command that stands for it in GitHub Actions."""
        if command and self._groups:
            write_command(self.stream, command, name)
        elif text:
            write(self.stream, text + "\n", indent="  | ")


class Seldom:
    """Hands events on: movements of the same step at most every so many seconds, everything else at once.

    Parameters
    ----------
    report
        Who gets them.
    every
        Seconds.
    """

    def __init__(self, report: Reporter, every: float) -> None:
        self.report, self.every = report, every
        self._moved: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Hand the event on, or not."""
        with self._lock:
            if event.kind == "started":
                self._moved.pop(event.step, None)
            elif event.kind == "advanced" and not event.message:
                if event.seconds - self._moved.get(event.step, -self.every) < self.every:
                    return
                self._moved[event.step] = event.seconds
            self.report(event)


class EventFile(Seldom):
    """Appends the events to a file, one JSON object a line, for a process that follows this one.

    Beside the fields of `Event` each has ``at``, the time in seconds since the epoch.

    Parameters
    ----------
    path
        The file, made when missing.
    every
        Seconds between two movements of the same step; everything else is written at once.
    """

    def __init__(self, path: Path, *, every: float = 0.2) -> None:
        super().__init__(self._write, every)
        self.path = path

    def _write(self, event: Event) -> None:
        # Whoever follows may be gone, and the folder with them; the work goes on.
        with suppress(OSError):
            files.append_line(self.path, json.dumps({**asdict(event), "at": time.time()}))


# The two live faces of `vmsnix_ops.progress`: bars in a notebook, bars on a terminal.
#
# A face is a callable that is given every event, from whichever thread it happens in.


MESSAGE_EVERY = 0.1
"""Seconds between two movements of one step; each is a message to the runner."""
WIDGET_EVERY = 0.1
"""Seconds between two movements of one bar; each is a message to the browser."""


def widget_face() -> WidgetFace:
    """Return a face that shows one bar a step below the running cell."""
    return WidgetFace()


def terminal_face(console: Console | None = None) -> TerminalFace:
    """Return a face that shows one bar a step at the bottom of a terminal.

    Parameters
    ----------
    console
        Where the bars go; standard output by default.
    """
    return TerminalFace(console)


def message_face() -> Seldom:
    """Return a face that hands the events to whoever runs this kernel."""

    def publish(event: Event) -> None:
        from IPython.display import publish_display_data

        publish_display_data({MESSAGE: asdict(event)})  # type: ignore[no-untyped-call]

    return Seldom(publish, every=MESSAGE_EVERY)


def _outcome(event: Event) -> str:
    parts = [f"{event.kind} in {human_seconds(event.seconds)}"]
    if event.kind == "failed" and event.message:
        parts.append(event.message)
    elif event.done:
        parts.append(describe(event))
    return ", ".join(parts)


class WidgetFace:
    """Bars made of ipywidgets: blue while a step runs, green when it finished, red when it failed.

    Attributes
    ----------
    box
        The widget that holds the rows; a row is the step's name, its bar and a line of text.
    """

    def __init__(self) -> None:
        import ipywidgets

        self.box: Any = ipywidgets.VBox([])
        self._rows: dict[str, tuple[Any, Any]] = {}
        self._moved: dict[str, float] = {}
        self._shown = False
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Move the bar of the event's step."""
        with self._lock:
            if event.kind == "started" or event.step not in self._rows:
                self._add(event)
            if event.kind == "started":
                self._moved.pop(event.step, None)
                return
            bar, text = self._rows[event.step]
            if event.kind in {"finished", "failed"}:
                self._end(event, bar, text)
                return
            now = time.monotonic()
            moving = event.kind == "advanced" and not event.message
            if moving and now - self._moved.get(event.step, 0.0) < WIDGET_EVERY:
                return
            self._moved[event.step] = now
            if event.total and event.fraction is not None:
                bar.max, bar.value = event.total, event.fraction * event.total
            text.value = html(event.message if event.kind == "message" else describe(event))

    def _add(self, event: Event) -> None:
        import ipywidgets

        name = ipywidgets.HTML(
            fill("<b>{{ step }}</b>", step=event.step), layout=ipywidgets.Layout(width="9em", flex="0 0 auto")
        )
        bar = ipywidgets.FloatProgress(
            value=0.0,
            min=0.0,
            max=event.total or 1.0,
            bar_style="info",
            layout=ipywidgets.Layout(width="16em", flex="0 0 auto"),
        )
        # HTML with escaped text: a Label would typeset what stands between two dollar signs.
        text = ipywidgets.HTML("started")
        self._rows[event.step] = (bar, text)
        self.box.children = (*self.box.children, ipywidgets.HBox([name, bar, text]))
        if not self._shown:
            from IPython.display import display

            self._shown = True
            display(self.box)  # type: ignore[no-untyped-call]

    def _end(self, event: Event, bar: Any, text: Any) -> None:
        if event.kind == "finished":
            bar.value, bar.bar_style = bar.max, "success"
        else:
            bar.bar_style = "danger"
            # An empty bar has no colour to show.
            bar.value = min(max(event.done, 0.05 * bar.max), bar.max)
        text.value = html(_outcome(event))


class TerminalFace:
    """Bars made by rich, at the bottom of the terminal while any step runs.

    When the last step ends the bars stay as text and the terminal is the shell's again. The cursor is never
    hidden, so that even a process killed by SIGKILL leaves a usable terminal. ``NO_COLOR`` is honoured.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _console()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._running: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Move the bar of the event's step."""
        from rich.text import Text

        with self._lock:
            if event.kind == "started" or event.step not in self._running:
                self._begin(event)
            bars, task = self._bars, self._tasks[event.step]
            if bars is None:  # _begin made them
                return
            if event.kind == "message":
                bars.console.print(Text(lines(f"{event.step}: {event.message}", indent="  | ")))
            elif event.kind == "advanced":
                fraction = event.fraction
                done = event.done if fraction is None or not event.total else fraction * event.total
                bars.update(task, completed=done, total=event.total, detail=line(describe(event)))
            elif event.kind in {"finished", "failed"}:
                self._end(event, bars, task)

    def close(self) -> None:
        """Leave the bars as text, also those of steps whose end nobody told: their process died."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
            self._bars = None
            self._tasks.clear()
            self._running.clear()

    def _begin(self, event: Event) -> None:
        if self._bars is None:
            self._bars = _bars(self._console)
            self._bars.start()
        self._running.add(event.step)
        self._tasks[event.step] = self._bars.add_task(
            line(event.step), total=event.total, detail="", mark=" ", style="bold"
        )

    def _end(self, event: Event, bars: Bars, task: TaskID) -> None:
        whole = event.total or 1.0
        done = whole if event.kind == "finished" else event.done
        mark, style = ("✓", "green") if event.kind == "finished" else ("✗", "bold red")
        bars.update(task, total=whole, completed=done, detail=line(_outcome(event)), mark=mark, style=style)
        bars.stop_task(task)
        self._running.discard(event.step)
        if not self._running:
            bars.stop()
            self._bars = None
            self._tasks.clear()


def _console() -> Console:
    from rich.console import Console

    class SteadyConsole(Console):
        """A console that never hides the cursor."""

        def show_cursor(self, show: bool = True) -> bool:
            return super().show_cursor(show=True) if show else False

    return SteadyConsole(highlight=False)


def _bars(console: Console) -> Bars:
    from rich.progress import BarColumn, Progress, ProgressColumn, Task
    from rich.text import Text

    class Name(ProgressColumn):
        """The step and how it ended."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.fields['mark']} {task.description}", style=task.fields["style"])

    class Detail(ProgressColumn):
        """How far the step is."""

        def render(self, task: Task) -> Text:
            return Text(task.fields["detail"], overflow="ellipsis", no_wrap=True)

    return Progress(Name(), BarColumn(bar_width=24), Detail(), console=console, refresh_per_second=8)
