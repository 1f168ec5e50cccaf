"""The two live faces of `vmsnix_ops.progress`: bars in a notebook, bars on a terminal.

A face is a callable that is given every event, from whichever thread it happens in.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vmsnix_ops.progress import MESSAGE, Seldom, describe, human_seconds
from vmsnix_ops.text import html, line, lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from vmsnix_ops.progress import Event

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
            f"<b>{html(event.step)}</b>", layout=ipywidgets.Layout(width="9em", flex="0 0 auto")
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
