"""A run while it happens: a bar a step with rate and time to go, the last lines of the log, Cancel.

Pages are made here as HTML text, from what `jobs.Follower` saw; all of it is escaped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import ipywidgets

from vmsnix_ops.progress import counted, human_bytes, human_seconds
from vmsnix_ops.text import html

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.progress import Event
    from vmsnix_ops.runbooks.console.following import Look, StepState

MARKS = {"finished": "✓", "failed": "✗"}
STOPPING = "stopping: the notebook cleans up, and what a publish began is undone"
INSIST_SECONDS = 3.0
"""How long after the first wish to stop the second can be pressed: a double click must not kill."""


class LiveView:
    """Shows how far a run is.

    Parameters
    ----------
    cancel
        Called with False to stop it, with True to stop it at once.

    Attributes
    ----------
    widget
        The view as it is shown.
    """

    def __init__(self, cancel: Callable[[bool], None]) -> None:
        self._ask = cancel
        self._asked_at = 0.0
        self._head = ipywidgets.HTML("")
        self._steps = ipywidgets.HTML("")
        self._log = ipywidgets.HTML("")
        self.cancel_button = ipywidgets.Button(description="Cancel", button_style="warning")
        self.cancel_button.tooltip = "Interrupt the notebook, and undo what a publish began"
        self.cancel_button.on_click(self._on_cancel)
        self.insist_button = ipywidgets.Button(description="Stop at once", button_style="danger")
        self.insist_button.tooltip = "Kill the notebook's kernel; what it began may be left behind"
        self.insist_button.on_click(self._on_insist)
        top = ipywidgets.HBox([self._head, self.cancel_button, self.insist_button])
        top.add_class("vmsnix-live-head")
        self.widget = ipywidgets.VBox([top, self._steps, self._log])
        self.widget.add_class("vmsnix-live")
        self.begin("")

    def begin(self, title: str, place: str = "") -> None:
        """Show a run that has just begun."""
        self._title, self._place, self._asked_at = title, place, 0.0
        self._steps.value = self._log.value = ""
        self._head.value = _head(title, place, "starting", "") + whole_bar(None)
        self.cancel_button.disabled = False
        self.insist_button.layout.display = "none"

    def show(self, look: Look) -> None:
        """Show how far the run is."""
        if look.cancelled and not self._asked_at:
            self._asked_at = time.monotonic()
        self.cancel_button.disabled = look.cancelled
        patience = time.monotonic() - self._asked_at > INSIST_SECONDS
        self.insist_button.layout.display = "" if look.cancelled and patience else "none"
        state = STOPPING if look.cancelled else "running"
        cells = f"cell {min(look.cells_done + 1, look.cells)} of {look.cells}" if look.cells else ""
        parts = [human_seconds(look.seconds), *([cells] if cells else [])]
        share = look.cells_done / look.cells if look.cells else None
        self._head.value = _head(self._title, self._place, state, ", ".join(parts)) + whole_bar(share)
        self._steps.value = steps_html(look.steps)
        self._log.value = log_html(look.tail)

    def _on_cancel(self, _button: object) -> None:
        if not self._asked_at:
            self._asked_at = time.monotonic()
            self.cancel_button.disabled = True
            self._ask(False)

    def _on_insist(self, _button: object) -> None:
        self.insist_button.layout.display = "none"
        self._ask(True)


def steps_html(steps: tuple[StepState, ...], *, notes: bool = True) -> str:
    """Return the table of steps: name, bar, how far, how fast, how long, and what each said last."""
    if not steps:
        return ""
    rows = "".join(_step_row(step, notes=notes) for step in steps)
    return (
        '<table class="vmsnix-steps"><thead><tr><th>step</th><th></th><th>done</th><th>rate</th>'
        f"<th>time</th><th>to go</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def whole_bar(share: float | None) -> str:
    """Return a thin bar for the notebook as a whole: the share of its cells that ran, if that is known."""
    kind, width = ("", f"width: {100 * share:.0f}%") if share is not None else ("vmsnix-unknown", "")
    return f'<div class="vmsnix-bar vmsnix-whole {kind}"><div style="{width}"></div></div>'


def log_html(lines: tuple[str, ...]) -> str:
    """Return the last lines of a log; the newest is in view (the box grows from its bottom)."""
    if not lines:
        return ""
    text = html("\n".join(lines))
    return f'<div class="vmsnix-log" tabindex="0" role="log" aria-label="Log"><pre>{text}</pre></div>'


def _head(title: str, place: str, state: str, more: str) -> str:
    where = f' <span class="vmsnix-quiet">{html(place)}</span>' if place else ""
    return f'<h3>{html(title)}{where}</h3><p role="status"><b>{html(state)}</b> {html(more)}</p>'


def _step_row(step: StepState, *, notes: bool) -> str:
    event = step.event
    seconds = event.seconds if step.ended else event.seconds + max(time.time() - step.heard_at, 0.0)
    note = step.notes[-1] if notes and step.notes and event.kind != "finished" else ""
    cells = [
        f"<th>{MARKS.get(event.kind, '')} {html(event.step)}</th>",
        f"<td>{_bar(event)}</td>",
        f"<td>{html(_amount(event))}</td>",
        f"<td>{html(_rate(event))}</td>",
        f"<td>{human_seconds(seconds)}</td>",
        f"<td>{_to_go(event)}</td>",
    ]
    state = event.kind if step.ended else "running"
    row = f'<tr class="vmsnix-step-{state}">{"".join(cells)}</tr>'
    if note:
        row += f'<tr class="vmsnix-note"><td></td><td colspan="5">{html(note)}</td></tr>'
    return row


def _bar(event: Event) -> str:
    kind = {"finished": "vmsnix-good", "failed": "vmsnix-bad"}.get(event.kind, "")
    label = f'role="progressbar" aria-label="{html(event.step)}"'
    share = _share(event)
    if share is None:
        return f'<div class="vmsnix-bar vmsnix-unknown" {label}><div></div></div>'
    percent = f"{100 * share:.0f}"
    return (
        f'<div class="vmsnix-bar {kind}" {label} aria-valuenow="{percent}" aria-valuemin="0" '
        f'aria-valuemax="100"><div style="width: {percent}%"></div></div>'
    )


def _share(event: Event) -> float | None:
    """Return how much is done, from 0 to 1; ``None`` while nobody knows."""
    if event.kind == "finished":
        return 1.0
    if event.total:
        return min(max(event.done / event.total, 0.0), 1.0)
    return 0.05 if event.kind == "failed" else None


def _amount(event: Event) -> str:
    if event.unit == "percent":
        return f"{event.done:.0f} %"
    if event.unit == "bytes":
        done = human_bytes(event.done)
        return f"{done} of {human_bytes(event.total)}" if event.total else (done if event.done else "")
    if event.total:
        return f"{event.done:g} of {counted(int(event.total), event.unit.removesuffix('s'))}"
    return f"{event.done:g} {event.unit}" if event.done else ""


def _rate(event: Event) -> str:
    return f"{human_bytes(event.rate)}/s" if event.unit == "bytes" and event.rate else ""


def _to_go(event: Event) -> str:
    eta = event.eta if event.kind in ("advanced", "message") else None
    return human_seconds(eta) if eta else ""


__all__ = ["LiveView", "log_html", "steps_html"]
