"""Report progress as events, log them, and show them on a terminal, in a notebook or in a CI log.

Work is reported as steps. A reporter shows their events: bars or lines for commands and notebooks, nothing in
a program that uses the package. Each step is also logged below the logger ``vmsnix_ops``, at level INFO. With
``VMSNIX_EVENTS`` the events are also written to a file that another process can follow.

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
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO
from weakref import WeakSet

from vmsnix_ops import files
from vmsnix_ops.errors import InterruptedRunError
from vmsnix_ops.templates import fill
from vmsnix_ops.text import html, line, lines, write, write_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


LOGGER = logging.getLogger(__name__)
# Without a handler, Python would print the warnings in a program that has not configured logging.
logging.getLogger("vmsnix_ops").addHandler(logging.NullHandler())

Forecast = Callable[[float], float | None]
"""Estimates the remaining seconds from the elapsed ones; ``None`` once the estimate is exceeded."""

Kind = Literal["started", "advanced", "message", "finished", "failed", "stopped"]
ENDS = frozenset({"finished", "failed", "stopped"})
"""The kinds of the last event of a step; an interrupt stops it."""

Unit = Literal["bytes", "percent", "derivations", "items"]


@dataclass(frozen=True, slots=True)
class Event:
    """A change in a step."""

    step: str  # name of the step
    kind: Kind
    done: float = 0.0  # the finished amount
    total: float | None = None  # None while it is unknown
    unit: Unit = "items"
    message: str = ""  # a line for the operator
    seconds: float = 0.0  # since the step started
    remaining: float | None = None  # seconds, estimated from earlier steps

    @property
    def rate(self) -> float:
        """Units per second since the start; 0 at the start."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Remaining seconds, from earlier steps or else from the rate; ``None`` while it is unknown."""
        if self.remaining is not None:
            return self.remaining
        if self.total is None or self.rate <= 0:
            return None
        return max(self.total - self.done, 0.0) / self.rate

    @property
    def fraction(self) -> float | None:
        """The finished part, from 0 to 1: of the estimated time, or else of the total."""
        if self.remaining is not None and self.kind not in ENDS:
            whole = self.seconds + self.remaining
            return self.seconds / whole if whole > 0 else 0.0
        return min(max(self.done / self.total, 0.0), 1.0) if self.total else None


Reporter = Callable[[Event], None]
MESSAGE = "application/vnd.vmsnix.progress+json"
"""MIME type of the display messages with which the kernel of a run sends its events to the runner."""
MESSAGE_EVERY = 0.1
"""Seconds between two updates of a step; each is a message to the runner, or to the browser."""


@dataclass(eq=False)
class Step:
    """A running step. Parallel uploads may call `advance` from several threads.

    With a `forecast`, the remaining time is estimated from earlier steps instead of the rate.
    """

    name: str
    report: Reporter
    total: float | None = None
    unit: Unit = "items"
    done: float = 0.0
    started: float = field(default_factory=time.monotonic)
    forecast: Forecast | None = None

    def advance(self, amount: float) -> None:
        """Add to the finished amount; a negative amount when a retry starts again."""
        self.done += amount
        self.emit("advanced")

    def update(self, done: float, total: float | None = None, message: str = "") -> None:
        """Set the finished amount, and the total if it is given."""
        self.done = done
        self.total = self.total if total is None else total
        self.emit("advanced", message)

    def refresh(self, message: str = "") -> None:
        """Show the elapsed time of a step whose finished amount is unchanged."""
        self.emit("advanced", message)

    def message(self, text: str) -> None:
        """Show a line."""
        self.emit("message", text)

    def emit(self, kind: Kind, message: str = "") -> None:
        """Report an event with the amounts and the elapsed time of the step."""
        seconds = time.monotonic() - self.started
        remaining = self.forecast(seconds) if self.forecast is not None else None
        self.report(Event(self.name, kind, self.done, self.total, self.unit, message, seconds, remaining))


NO_STEP = Step("", lambda _event: None)
"""Stands for the step of a caller that shows no progress."""


class Progress:
    """Logs steps, and reports them to a reporter, which is called with every event, in its thread."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def report(self, event: Event) -> None:
        """Log an event, and pass it to the reporter."""
        if event.kind != "advanced":
            _log(event)
        self.reporter(event)

    @contextmanager
    def step(self, name: str, *, total: float | None = None, unit: Unit = "items") -> Iterator[Step]:
        """Report the block as one step."""
        step = Step(name, self.report, total, unit)
        step.emit("started")
        try:
            yield step
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | InterruptedRunError)
            step.emit("stopped" if stopped else "failed", str(error) or type(error).__name__)
            raise
        step.emit("finished")


def silent() -> Progress:
    """Return a `Progress` that shows nothing."""
    return Progress(lambda _event: None)


def _log(event: Event) -> None:
    level = logging.WARNING if event.kind == "failed" else logging.INFO
    if LOGGER.isEnabledFor(level):
        from vmsnix_ops.redaction import Redactor, secret_values

        text = {"message": event.message, "started": "started"}.get(event.kind) or _outcome(event)
        LOGGER.log(level, "%s", line(Redactor(secret_values()).text(f"{event.step}: {text}")))


def on_screen() -> Progress:
    """Return the `Progress` of a command: bars on a terminal, and lines elsewhere (CI)."""
    return Progress(TerminalBars() if sys.stdout.isatty() else LogLines(sys.stdout))


def current() -> Progress:
    """Return the `Progress` for this process.

    It shows widgets in JupyterLab, lines in other kernels (papermill), and nothing in a program, which gets
    the log. The kernel of a run sends its events to the runner. With ``VMSNIX_EVENTS`` the events are also
    written to that file.
    """
    reporter = _default_reporter()
    if getattr(_shell(), "kernel", None) is not None:
        reporter = _both(_remember, reporter)
    path = os.environ.get("VMSNIX_EVENTS")
    return Progress(_both(reporter, EventFile(Path(path))) if path else reporter)


def in_jupyter() -> bool:
    """Return whether this is a kernel of JupyterLab, and not the kernel of a run."""
    return "JPY_SESSION_NAME" in os.environ and "VMSNIX_RUN_ID" not in os.environ


def _default_reporter() -> Reporter:
    mode = os.environ.get("VMSNIX_PROGRESS")
    if mode == "messages":
        return _kernel_messages() if "IPython" in sys.modules else LogLines(sys.stdout)
    if mode == "silent" or getattr(_shell(), "kernel", None) is None:
        return silent().reporter
    return NotebookBars() if in_jupyter() else LogLines(sys.stdout)


_steps: dict[str, Event] = {}
_bars_in_notebook: WeakSet[NotebookBars] = WeakSet()


def _remember(event: Event) -> None:
    if event.kind != "message":
        _steps[event.step] = event


def begin_cell() -> None:
    """Forget the steps of the cell before."""
    _steps.clear()


def steps_of_cell() -> list[Event]:
    """Return the newest event of each step that the running cell has shown."""
    return list(_steps.values())


def end_cell() -> None:
    """Show the unfinished steps of a failed cell as stopped, such as those of threads that it left behind."""
    for shown in list(_bars_in_notebook):
        shown.stop()


def _both(first: Reporter, second: Reporter) -> Reporter:
    def report(event: Event) -> None:
        first(event)
        second(event)

    return report


def human_bytes(count: float) -> str:
    """Return a byte count in binary units.

    >>> human_bytes(4 * 2**30)
    '4.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_seconds(seconds: float, *, whole: bool = False) -> str:
    """Return a duration with two significant digits, or in whole seconds.

    >>> human_seconds(0.0421), human_seconds(4.26), human_seconds(47.2), human_seconds(75.2)
    ('0.04 s', '4.3 s', '47 s', '1 min 15 s')
    """
    if seconds < 0.005:
        return "0 s"
    if seconds < 59.5:
        digits = 0 if whole or seconds >= 9.95 else 1 if seconds >= 0.995 else 2
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def counted(number: int, word: str, plural: str = "") -> str:
    """Return a number with a noun in the singular or the plural.

    >>> counted(1, "target"), counted(1200, "target"), counted(2, "retry", "retries")
    ('1 target', '1,200 targets', '2 retries')
    """
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def amount(event: Event) -> str:
    """Return the finished and the total amount of a step, such as ``3 of 12 items`` or ``75 %``."""
    if event.unit == "percent":
        fraction = 1.0 if event.kind == "finished" else event.fraction
        return f"{event.done if fraction is None else 100 * fraction:.0f} %"
    if event.unit == "bytes":
        return human_bytes(event.done) + (f" of {human_bytes(event.total)}" if event.total else "")
    one = event.unit.removesuffix("s")
    if event.total:
        return f"{event.done:g} of {counted(int(event.total), one)}"
    return counted(int(event.done), one)


def describe(event: Event) -> str:
    """Return the finished amount, percentage, rate and remaining time of a step as one line."""
    parts = [amount(event)]
    if event.total and event.unit != "percent":
        parts.append(f"{100 * event.done / event.total:.0f} %")
    if event.unit == "bytes" and event.rate:
        parts.append(f"{human_bytes(event.rate)}/s")
    if event.kind == "advanced" and event.eta:
        parts.append(f"{human_seconds(max(event.eta, 1), whole=True)} left")
    if event.message:
        parts.append(event.message)
    return ", ".join(parts)


class LogLines:
    """Writes progress as lines: at the start and the end of a step, and at an interval in seconds between.

    With `folds`, by default in GitHub Actions, every step is a group (``::group::``).
    """

    def __init__(self, stream: TextIO, *, every: float = 10.0, folds: bool | None = None) -> None:
        self.stream, self.every = stream, every
        self._last: dict[str, float] = {}
        self._groups = os.environ.get("GITHUB_ACTIONS") == "true" if folds is None else folds

    def __call__(self, event: Event) -> None:
        """Write the line of an event, if it is due."""
        if event.kind == "started":
            self._last[event.step] = 0.0
            self._write(f"{event.step} ...", "group", event.step)
        elif event.kind == "message" or (
            event.kind == "advanced" and event.seconds - self._last.get(event.step, 0.0) >= self.every
        ):
            self._last[event.step] = event.seconds
            text = event.message if event.kind == "message" else describe(event)
            self._write(f"{event.step}: {text}")
        elif event.kind in ENDS:
            shown = event.message or (describe(event) if event.done else "")
            outcome = f"{event.step} {_end(event)}"
            self._write(f"{outcome}: {shown}" if shown else outcome)
            self._write("", "endgroup")

    def _write(self, text: str, command: str = "", name: str = "") -> None:
        """Write text, or in GitHub Actions the workflow command instead of it."""
        if command and self._groups:
            write_command(self.stream, command, name)
        elif text:
            write(self.stream, text + "\n", indent="  | ")


class Throttle:
    """Passes events on to a reporter, but ``advanced`` events of a step only at an interval in seconds.

    An ``advanced`` event with a message is always passed on.
    """

    def __init__(self, report: Reporter, every: float) -> None:
        self.report, self.every = report, every
        self._moved: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Pass an event on, unless it comes too early."""
        with self._lock:
            if event.kind == "started":
                self._moved.pop(event.step, None)
            elif event.kind == "advanced" and not event.message:
                if event.seconds - self._moved.get(event.step, -self.every) < self.every:
                    return
                self._moved[event.step] = event.seconds
            self.report(event)


class EventFile(Throttle):
    """Appends events to a file, one JSON object per line, for another process.

    Each object has the fields of `Event`, and ``at``: the time in seconds since the epoch.
    """

    def __init__(self, path: Path, *, every: float = 0.2) -> None:
        super().__init__(self._write, every)
        self.path = path

    def _write(self, event: Event) -> None:
        # The reading process may have deleted the folder; the work continues without it.
        with suppress(OSError):
            files.append_line(self.path, json.dumps({**asdict(event), "at": time.time()}))


def _kernel_messages() -> Throttle:
    """Return the reporter of a run's kernel, which sends the events to the runner."""

    def publish(event: Event) -> None:
        from IPython.display import publish_display_data

        publish_display_data({MESSAGE: asdict(event)})  # type: ignore[no-untyped-call]

    return Throttle(publish, every=MESSAGE_EVERY)


def _end(event: Event) -> str:
    return f"{event.kind} {'after' if event.kind == 'stopped' else 'in'} {human_seconds(event.seconds)}"


def _outcome(event: Event) -> str:
    parts = [_end(event)]
    if event.kind == "failed" and event.message:
        parts.append(event.message)
    elif event.done:
        parts.append(describe(replace(event, message="")) if event.kind == "stopped" else describe(event))
    return ", ".join(parts)


class NotebookBars(Throttle):
    """Shows a bar for each step below the cell that starts it: blue, then green, red, or orange if stopped.

    Each cell that starts a step has its own `box`, a widget with a row for each step: its name, its bar and a
    line of text. A step that continues in another cell keeps its row. A cell that is executed again has a new
    box, because JupyterLab removes its outputs.
    """

    def __init__(self) -> None:
        import ipywidgets

        super().__init__(self._show, MESSAGE_EVERY)
        self.box: Any = ipywidgets.VBox([])
        self._rows: dict[str, tuple[Any, Any]] = {}
        self._running: dict[str, Event] = {}
        self._cell: str | None = None  # of the box
        _bars_in_notebook.add(self)

    def stop(self) -> None:
        """Show all running steps as stopped."""
        for event in list(self._running.values()):
            self(replace(event, kind="stopped"))

    def _show(self, event: Event) -> None:
        """Update the bar of the event's step."""
        if event.kind == "started" or event.step not in self._rows:
            self._add(event)
        bar, text = self._rows[event.step]
        if event.kind in ENDS:
            self._running.pop(event.step, None)
            self._finish(event, bar, text)
            return
        self._running[event.step] = event
        bar.bar_style = "info"
        if event.kind != "started":
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
        # HTML with escaped text: a Label shows text between two dollar signs as a formula.
        text = ipywidgets.HTML("started")
        self._rows[event.step] = (bar, text)
        row = ipywidgets.HBox([name, bar, text])
        cell = _running_cell()
        if self._cell is None or cell not in (None, self._cell):
            from IPython.display import display

            self._cell, self.box = cell or "", ipywidgets.VBox([row])
            display(self.box)  # type: ignore[no-untyped-call]
        else:
            self.box.children = (*self.box.children, row)

    def _finish(self, event: Event, bar: Any, text: Any) -> None:
        if event.kind == "finished":
            bar.value, bar.bar_style = bar.max, "success"
        else:
            bar.bar_style = "danger" if event.kind == "failed" else "warning"
            # An empty bar would show no colour.
            bar.value = min(max(event.done, 0.05 * bar.max), bar.max)
        text.value = html(_outcome(event))


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _running_cell() -> str | None:
    """Return the ID of the newest request to execute a cell; ``None`` if the kernel answers another request.

    Jupyter shows outputs below the cell whose request is the parent of the message, also for threads.
    """
    shell = _shell()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    header = (parent or {}).get("header", {})
    return header.get("msg_id") if header.get("msg_type") == "execute_request" else None


class TerminalBars:
    """Shows a bar for each step at the bottom of a terminal, by default standard output, with rich.

    When the last step ends, the bars become text. The cursor is never hidden, so that a process killed by
    SIGKILL leaves a usable terminal. ``NO_COLOR`` works.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _console()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._running: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Update the bar of the event's step."""
        from rich.text import Text

        with self._lock:
            if event.kind == "started" or event.step not in self._running:
                self._begin(event)
            bars, task = self._bars, self._tasks[event.step]
            if bars is None:  # for mypy: _begin has set it
                return
            if event.kind == "message":
                bars.console.print(Text(lines(f"{event.step}: {event.message}", indent="  | ")))
            elif event.kind == "advanced":
                fraction = event.fraction
                done = event.done if fraction is None or not event.total else fraction * event.total
                bars.update(task, completed=done, total=event.total, detail=line(describe(event)))
            elif event.kind in ENDS:
                self._end(event, bars, task)

    def close(self) -> None:
        """Turn all bars into text, also those of steps whose process was killed."""
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
        marks = {"finished": ("✓", "green"), "stopped": ("■", "bold yellow")}
        mark, style = marks.get(event.kind, ("✗", "bold red"))
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
        """The name of the step and the mark of its outcome."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.fields['mark']} {task.description}", style=task.fields["style"])

    class Detail(ProgressColumn):
        """The amount, rate and remaining time of the step."""

        def render(self, task: Task) -> Text:
            return Text(task.fields["detail"], overflow="ellipsis", no_wrap=True)

    return Progress(Name(), BarColumn(bar_width=24), Detail(), console=console, refresh_per_second=8)
