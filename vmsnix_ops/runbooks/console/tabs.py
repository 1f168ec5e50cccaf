"""The tabs beside the runs: history and timings; `audits` has two more. Each reads the tables of the place.

A tab reads when it is opened, and again when a run has ended since.
"""

from __future__ import annotations

import io
import json
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops import outcomes
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.records import figures, history, timing_plots, timings
from vmsnix_ops.runbooks.console.grid import Column, Grid
from vmsnix_ops.templates import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from vmsnix_ops.runbooks.console.places import Place
    from vmsnix_ops.runbooks.evidence.runs import Entry


RUNS = 2000
"""Runs that the history reads at most, the newest."""

STEPS = 5000

THEME = {
    figures.INK: "--jp-ui-font-color1",
    figures.SOFT: "--jp-ui-font-color2",
    figures.GRID: "--jp-border-color2",
    figures.GROUND: "--jp-layout-color0",
    "#000000": "--jp-ui-font-color1",
}
"""Colours of figures, and what they are in JupyterLab's theme."""


class Tab:
    """What every tab has.

    Parameters
    ----------
    open_runbook
        Shows the form of a runbook, filled in with values.

    Attributes
    ----------
    title
        Its name.
    widget
        The tab as it is shown.
    """

    title = ""

    def __init__(self, open_runbook: Callable[[str, Mapping[str, object]], None]) -> None:
        self._open_runbook = open_runbook
        self._problem = ipywidgets.HTML("")
        self._read_for: tuple[str, int] | None = None
        self._lock = threading.Lock()
        self.widget = ipywidgets.VBox([self._problem, *self._parts()])
        self.widget.add_class("vmsnix-tab")
        self.widget.add_class(f"vmsnix-tab-{self.title.lower()}")

    def refresh(self, place: Place, ended: int) -> None:
        """Read the tables, unless nothing can have changed since the last time.

        Parameters
        ----------
        place
            Whose tables.
        ended
            How many runs have ended: another number means that there may be news.
        """
        with self._lock:  # two in a row, and the later one has nothing to do
            if self._read_for == (place.url, ended):
                return
            try:
                self._read(place)
            except (VmsnixError, OSError, ValueError) as error:  # the latter two: a file that is read
                self._problem.value = fill(_PROBLEM, error=error)
                return
            self._problem.value = ""
            self._read_for = (place.url, ended)

    def _parts(self) -> list[Any]:
        raise NotImplementedError

    def _read(self, place: Place) -> None:
        raise NotImplementedError


class HistoryTab(Tab):
    """Every run; each can be looked at, and repeated.

    Parameters
    ----------
    open_runbook
        As for every tab.
    look_at
        Shows what became of a run, a row of the table `runs`.
    """

    title = "History"
    columns = (
        Column("started_at", "started (UTC)", "time"),
        Column("runbook"),
        Column("status", "", "badge"),
        Column("image"),
        Column("region"),
        Column("ami_id", "AMI", "code"),
        Column("seconds", "took", "seconds"),
        Column("user"),
        Column("error"),
        Column("run_id", "run", "code"),
    )

    def __init__(
        self,
        open_runbook: Callable[[str, Mapping[str, object]], None],
        look_at: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._look_at = look_at
        super().__init__(open_runbook)

    def _parts(self) -> list[Any]:
        self._grid = Grid(
            self.columns,
            narrow="runbook",
            sort="-started_at",
            empty="No runs yet. Runs of the console, of the command line and of CI are listed here.",
            changed=self._on_rows,
        )
        self._which = ipywidgets.Dropdown(options=[], description="Run")
        self._which.add_class("vmsnix-which")
        self._look = ipywidgets.Button(description="Show it")
        self._look.on_click(self._on_look)
        self._again = ipywidgets.Button(description="Fill in its form")
        self._again.tooltip = "Open the runbook's form with the parameters of this run"
        self._again.on_click(self._on_again)
        self._actions = ipywidgets.HBox([self._which, self._look, self._again])
        self._actions.add_class("vmsnix-actions")
        self._actions.layout.display = "none"  # until there is a row that they could act on
        self._rows: dict[str, dict[str, Any]] = {}
        return [self._grid.widget, self._actions]

    def _read(self, place: Place) -> None:
        self._grid.show(history.runs(place.tables(), last=RUNS))

    def _on_rows(self, rows: pd.DataFrame) -> None:
        records: list[Any] = rows.to_dict("records")
        self._rows = {str(row["run_id"]): row for row in records}
        self._which.options = [
            (f"{row['started_at']:%Y-%m-%d %H:%M} {row['runbook']}, {row['status']}", run_id)
            for run_id, row in self._rows.items()
        ]
        if self._rows:
            self._which.index = 0
        self._actions.layout.display = "" if self._rows else "none"

    def _on_look(self, _button: object) -> None:
        self._look_at(_known(self._rows[self._which.value]))

    def _on_again(self, _button: object) -> None:
        row = _known(self._rows[self._which.value])
        self._open_runbook(str(row["runbook"]), json.loads(str(row.get("parameters") or "{}")))


class TimingsTab(Tab):
    """How long steps take, by image: pictures, percentiles, what was slow."""

    title = "Timings"

    def _parts(self) -> list[Any]:
        self._image = ipywidgets.Dropdown(options=[("every image", "")], description="Image")
        self._image.observe(self._draw, "value")
        self._shown = ipywidgets.HTML("")
        self._steps: pd.DataFrame | None = None
        return [self._image, self._shown]

    def _read(self, place: Place) -> None:
        self._steps = history.steps(place.tables(), last=STEPS)
        names = sorted({str(name) for name in self._steps["image"].dropna()})
        before = self._image.value
        self._image.options = [("every image", ""), *((name, name) for name in names)]
        self._image.value = before if before in names else ""
        self._image.layout.display = "" if len(names) > 1 else "none"
        self._draw()

    def _draw(self, _change: object = None) -> None:
        if self._steps is None:
            return
        steps = self._steps
        if self._image.value:
            steps = steps[steps["image"] == self._image.value]
        if not steps["status"].isin(outcomes.WORKED).any():
            self._shown.value = _NOTHING_TIMED
            return
        pictures = (timing_plots.plot_usual(steps), timing_plots.plot_trend(steps))
        tables = (timings.show_summary(timings.summary(steps)), timings.show_slow(timings.slow(steps)))
        titles = ("Time per step", "Trend", "Usual durations", "Slow steps")
        parts = zip(titles, [*map(svg, pictures), *tables], strict=True)
        self._shown.value = fill(_PARTS, parts=parts)


_PROBLEM = '<p class="vmsnix-error" role="alert">{{ error }}</p>'
_NOTHING_TIMED = """\
<p class="vmsnix-empty">No timings yet. A publish records the time of each step.</p>
"""
_PARTS = """\
{% for title, part in parts %}
<section class="vmsnix-part"><h4>{{ title }}</h4><div class="vmsnix-scroll">{{ part }}</div></section>
{% endfor %}
"""
_SVG = "{{ svg | safe }}"  # of matplotlib, which escapes the texts of a plot


def svg(figure: Figure) -> Markup:
    """Return a figure as SVG whose ink and grid follow JupyterLab's theme."""
    import matplotlib as mpl

    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "vmsnix"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var({variable})")
    return fill(_SVG, svg=text)


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without what is empty."""
    import pandas as pd

    return {name: value for name, value in row.items() if not pd.isna(value)}


# The tabs of audits: what the newest one saw, and what it found wrong.


AUDIT = "audit-inventory"
NO_AUDIT = "No audits yet."
LOOKED_THROUGH = 5
"""Audits in which a table is looked for."""
_SEEN = '<p class="vmsnix-quiet">From the audit of {{ when }}.</p>'


class AuditTab(Tab):
    """A file of the newest audit, as a table."""

    columns: tuple[Column, ...] = ()
    file = ""
    narrow = ""
    sort = ""
    clean = "The audit found no resources."

    def __init__(
        self,
        open_runbook: Callable[[str, Mapping[str, object]], None],
        look_at: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._look_at = look_at
        self._run_id = ""
        super().__init__(open_runbook)

    def _parts(self) -> list[Any]:
        self._head = ipywidgets.HTML("")
        self._grid = Grid(self.columns, narrow=self.narrow, sort=self.sort, empty=NO_AUDIT)
        audit = ipywidgets.Button(description="Audit now")
        audit.on_click(lambda _button: self._open_runbook(AUDIT, {}))
        self._look = ipywidgets.Button(description="Show that audit")
        self._look.on_click(lambda _button: self._look_at({"run_id": self._run_id}))
        buttons = ipywidgets.HBox([audit, self._look])
        buttons.add_class("vmsnix-actions")
        return [self._head, self._grid.widget, buttons]

    def _read(self, place: Place) -> None:
        frame, entry = last_audit(place, self.file)
        self._run_id = entry.run_id if entry else ""
        self._look.layout.display = "" if entry else "none"
        self._head.value = _seen(entry)
        self._grid.empty = self.clean if entry else NO_AUDIT
        self._grid.show(frame)


class InventoryTab(AuditTab):
    """What the newest audit saw in the account."""

    title = "Inventory"
    file = "inventory"
    narrow = "kind"
    sort = "-created_at"
    columns = (
        Column("kind"),
        Column("resource_id", "resource", "code"),
        Column("name"),
        Column("region"),
        Column("state", "", "badge"),
        Column("created_at", "created (UTC)", "time"),
        Column("size_gib", "GiB", "number"),
        Column("monthly_usd", "USD a month", "usd"),
        Column("referenced", "in use"),
        Column("public"),
        Column("image"),
    )


class FindingsTab(AuditTab):
    """What the newest audit found wrong, the worst first."""

    title = "Findings"
    file = "findings"
    narrow = "severity"
    clean = "No findings."
    columns = (
        Column("severity", "", "badge"),
        Column("rule"),
        Column("resource_id", "resource", "code"),
        Column("region"),
        Column("reason", "", "long"),
        Column("fix", "", "command"),
    )


def last_audit(place: Place, name: str) -> tuple[pd.DataFrame, Entry | None]:
    """Return a table of the newest audit that has it, and that run; an empty one when there is none.

    Parameters
    ----------
    place
        Whose archive.
    name
        Of the file, without its ending.

    Raises
    ------
    ArchiveError
        The archive cannot be read, or the file is not what was kept.
    """
    import pandas as pd

    from vmsnix_ops.runbooks.evidence.runs import open_archive

    archive = open_archive(place.settings(), environment=place.environment)
    file = f"{name}.csv"
    for entry in archive.entries(runbook=AUDIT, last=LOOKED_THROUGH):  # one with fail_on may end as failed
        if file in entry.values.get("files", {}):
            content = io.BytesIO(archive.fetch(entry, file))
            frame = pd.read_csv(content, dtype={"account": "str"}, keep_default_na=True)
            if "created_at" in frame:
                frame["created_at"] = pd.to_datetime(frame["created_at"], utc=True, format="ISO8601")
            return frame, entry
    return pd.DataFrame(), None


def _seen(entry: Entry | None) -> str:
    if entry is None:
        return ""
    when = f"{datetime.fromisoformat(str(entry.values['started_at'])):%Y-%m-%d %H:%M} UTC"
    return fill(_SEEN, when=when)
