"""The tabs Channels, History, Timings, Inventory and Findings, and the grid that shows their tables.

A tab reads its tables, or AWS, when it is opened, and again when a run has ended since then.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops import display, outcomes
from vmsnix_ops.audit.acknowledgements import COLUMNS as ACKNOWLEDGED
from vmsnix_ops.audit.acknowledgements import split
from vmsnix_ops.channels import overview
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.progress import counted
from vmsnix_ops.records import figures, history, timing_plots, timings
from vmsnix_ops.runbooks.console.widgets import ActiveHTML, button, row, stack, styled, with_hidden_label
from vmsnix_ops.templates import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pandas as pd
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from vmsnix_ops.runbooks.console.backends import Backend
    from vmsnix_ops.runbooks.evidence.runs import ArchivedRun

MAX_ROWS = 200
"""Rows that a grid shows; the search finds the others."""
MAX_RUNS = 2000
"""Newest runs that the history reads."""
MAX_STEPS = 5000

DRY_RUN = "dry run"
BADGES = {
    "vmsnix-good": frozenset({"done", "available", "completed", *outcomes.SUCCEEDED}),
    "vmsnix-mixed": frozenset({"partial", "cancelled", "lost", "medium"}),
    "vmsnix-bad": frozenset({"failed", "error", "high", "critical"}),
}
"""Style of a badge, and its words; other words have a neutral badge."""

THEME = {
    figures.INK: "--jp-ui-font-color1",
    figures.SOFT: "--jp-ui-font-color2",
    figures.GRID: "--jp-border-color2",
    figures.GROUND: "--jp-layout-color0",
    "#000000": "--jp-ui-font-color1",
}
"""Colours of figures, and the variable of JupyterLab's theme for each."""


@dataclass(frozen=True, slots=True)
class TabColumn:
    """A column of a grid."""

    name: str  # in the frame
    title: str = ""  # heading; by default the name
    # text, code, badge, time, seconds, bytes, number, usd, command, long (several lines), or rest: what the
    # others leave of the width
    kind: str = "text"
    wide: bool = False  # whether only a wide screen shows it

    @property
    def first_order(self) -> str:
        """The order after the first click on its head: the newest and the most first."""
        down = self.kind in ("time", "seconds", "bytes", "number", "usd")
        return f"-{self.name}" if down else self.name

    @property
    def style(self) -> str:
        """Its classes."""
        return f"vmsnix-is-{self.kind}{' vmsnix-wide' if self.wide else ''}"

    def head(self, sort: str) -> dict[str, str]:
        """Return its head for an order of the grid."""
        orders = {self.name: ("ascending", "▲"), f"-{self.name}": ("descending", "▼")}
        order, mark = orders.get(sort, ("none", ""))
        title = self.title or self.name
        return {"name": self.name, "title": title, "style": self.style, "order": order, "mark": mark}


class Grid:
    """Shows a frame as a table with a search, a filter and column heads that sort.

    Columns that the frame does not have are left out. The values of the column `filter_by` can be selected
    from a list. `sort` is the column for the first order, with ``-`` before it for descending; without it,
    the order is that of the frame. `empty` is shown for a frame without rows. A click on a row, which the
    column `key` identifies, calls `picked` with it.
    """

    def __init__(
        self,
        columns: Sequence[TabColumn],
        *,
        filter_by: str = "",
        sort: str = "",
        empty: str = "No rows.",
        key: str = "",
        picked: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._columns, self._filter_by, self.empty = tuple(columns), filter_by, empty
        self._key, self._picked = key, picked
        self.sort = sort
        self._lock = threading.RLock()
        self._frame: pd.DataFrame | None = None
        self._text: pd.Series[str] | None = None
        self.search = ipywidgets.Text(
            placeholder="Search", continuous_update=True, tooltip="Search all columns"
        )
        with_hidden_label(styled(self.search, "vmsnix-search"), "Search all columns")
        self.filter = ipywidgets.Dropdown(options=[("all", "")], tooltip=f"Show only this {filter_by}")
        with_hidden_label(self.filter, f"Show only this {filter_by}")
        self._count = ipywidgets.HTML("")
        self.table = ActiveHTML(self._on_click)
        self._bar = row("vmsnix-grid-bar", self.search, self.filter, self._count)
        self.widget = stack("vmsnix-grid", self._bar, self.table)
        for control in (self.search, self.filter):
            control.observe(self._draw, "value")

    def _on_click(self, action: str) -> None:
        """Sort by a column, or pick a row. A second click on a head turns the order around."""
        kind, _, what = action.partition(":")
        if kind == "sort":
            first = next((column.first_order for column in self._columns if column.name == what), what)
            other = what if first.startswith("-") else f"-{what}"
            self.sort = other if self.sort == first else first
            self._draw()
        elif kind == "row" and self._frame is not None and self._picked is not None:
            found: list[Any] = self._frame[self._frame[self._key].astype("str") == what].to_dict("records")
            if found:
                self._picked({name: value for name, value in found[0].items() if not display.missing(value)})

    def show(self, frame: pd.DataFrame) -> None:
        """Show another frame, with the same search, filter and order."""
        with self._lock:
            self._frame = frame
            names = [column.name for column in self._columns if column.name in frame.columns]
            texts = frame[names].astype("object").map(to_text)
            self._text = texts.agg(" ".join, axis=1).str.lower() if len(frame) else None
            known = frame[self._filter_by].dropna() if self._filter_by in frame else ()
            _set_choices(self.filter, self._filter_by, known)
            self._draw()

    def rows(self) -> pd.DataFrame | None:
        """Return the rows that match search and filter, in their order; ``None`` before `show`."""
        frame = self._frame
        if frame is None or self._text is None:
            return frame
        matching = self._text.notna()
        for word in self.search.value.lower().split():
            matching &= self._text.str.contains(word, regex=False)
        if self.filter.value:
            matching &= frame[self._filter_by].astype("string").fillna("") == self.filter.value
        name = self.sort.removeprefix("-")
        found = frame[matching]
        if name in found:
            found = found.sort_values(
                name, ascending=not self.sort.startswith("-"), kind="stable", na_position="last"
            )
        return found

    def _draw(self, _change: object = None) -> None:
        with self._lock:  # a thread can show a new frame during a search
            rows = self.rows()
            if rows is None or self._frame is None:
                return
            total = len(self._frame)
            self._bar.layout.display = "" if total else "none"
            self._count.value = fill(_COUNT, rows=len(rows), total=total, most=MAX_ROWS)
            empty = self.empty if not total else "No row matches the search."
            self.table.html = self._html(rows.head(MAX_ROWS), empty)

    def _html(self, rows: pd.DataFrame, empty: str) -> Markup:
        present = [column for column in self._columns if column.name in rows.columns]
        keys = rows[self._key].astype("str") if self._key in rows else [""] * len(rows)
        names = [column.name for column in present]
        cells = [
            (key, [_cell(column, value) for column, value in zip(present, row, strict=True)])
            for key, row in zip(keys, rows[names].itertuples(index=False, name=None), strict=True)
        ]
        return fill(_TABLE, columns=[column.head(self.sort) for column in present], rows=cells, empty=empty)


def _set_choices(choice: Any, noun: str, known: Iterable[object]) -> None:
    """Let a person choose every or one of these values; hide the choice if there is only one."""
    values = sorted({str(value) for value in known} - {""})
    before = choice.value
    choice.options = [(f"every {noun}", ""), *((value, value) for value in values)]
    choice.value = before if before in values else ""
    choice.layout.display = "" if len(values) > 1 else "none"


_COUNT = """\
<span class="vmsnix-quiet">{{ "{:,}".format(rows) }} of {{ "{:,}".format(total) }}
{%- if rows > most %}, the first {{ most }} are shown{% endif %}</span>
"""

_TABLE = """\
{% if rows %}
<div class="vmsnix-scroll" tabindex="0" role="region" aria-label="Table">
<table class="vmsnix-table">
<thead><tr>
{% for column in columns %}
<th scope="col" class="{{ column.style }}" aria-sort="{{ column.order }}">
<button data-do="sort:{{ column.name }}">{{ column.title }}
<span aria-hidden="true">{{ column.mark }}</span></button>
</th>
{% endfor %}
</tr></thead><tbody>
{% for key, row in rows %}
<tr{% if key %} data-do="row:{{ key }}"{% endif %}>
{% for cell in row %}
<td class="{{ cell.style }}"{% if cell.full %} title="{{ cell.full }}"{% endif %}>
{%- if key and loop.first %}<button data-do="row:{{ key }}">{{ cell.text }}</button>
{%- elif cell.badge %}<span class="vmsnix-badge {{ cell.badge }}">{{ cell.text }}</span>
{%- else %}{{ cell.text }}{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p class="vmsnix-empty">{{ empty }}</p>
{% endif %}
"""


def _cell(column: TabColumn, value: Any) -> dict[str, str]:
    text, badge = format_value(column.kind, value), ""
    if column.kind == "badge" and text:
        badge = next((style for style, words in BADGES.items() if text in words), "vmsnix-plain")
    full = to_text(value) if len(text) > 40 or column.kind == "code" else ""
    return {"style": column.style, "text": text, "badge": badge, "full": full}


def format_value(kind: str, value: Any) -> str:
    """Return the text of a value in the format of its column; empty for a missing value."""
    if display.missing(value):
        return ""
    if kind == "usd":
        return f"{float(value):,.2f}"
    if kind == "number":
        return f"{float(value):,.6g}"
    text: str = FORMATS.get(kind, to_text)(value)
    return text


FORMATS: dict[str, Any] = {"time": display.moment, "seconds": display.seconds, "bytes": display.size}


def to_text(value: Any) -> str:
    """Return the plain text of a value, which the search also uses."""
    if display.missing(value):
        return ""
    if type(value).__name__ in ("bool", "bool_"):
        return "yes" if value else "no"
    return str(value)


class Tab:
    """Base class of the tabs.

    `open_runbook` opens the form of a runbook, filled in with values. `show_run` shows a past run, a row of
    the table ``runs``.
    """

    title = ""

    def __init__(
        self,
        open_runbook: Callable[[str, Mapping[str, object]], None],
        show_run: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._open_runbook, self._show_run = open_runbook, show_run
        self._problem = ipywidgets.HTML("")
        self._read_for: tuple[str, int] | None = None
        self._lock = threading.Lock()
        self.widget = stack("vmsnix-tab", self._problem, *self._parts())
        self.widget.add_class(f"vmsnix-tab-{self.title.lower()}")

    def refresh(self, backend: Backend, runs_ended: int) -> None:
        """Read the tables, unless neither the backend nor the number of ended runs has changed."""
        self._wanted = (backend, runs_ended)
        with self._lock:  # of two calls at the same time, the second reads nothing
            if self._read_for == (backend.url, runs_ended):
                return
            self._problem.value = fill(_READING)
            try:
                self._read(backend)
            except (VmsnixError, OSError, ValueError) as error:  # OSError and ValueError: a file of an audit
                self._problem.value = fill(_PROBLEM, error=error)
                return
            self._problem.value = ""
            self._read_for = (backend.url, runs_ended)

    def _parts(self) -> list[Any]:
        raise NotImplementedError

    def _read(self, backend: Backend) -> None:
        raise NotImplementedError


Actions = dict[str, tuple[str, dict[str, object]]]
"""Runbook and values by the text of a button."""
_CHANNELS = """\
{% import "channels/cells.html" as cells %}
{% if rows %}
<div class="vmsnix-channels">
<div class="vmsnix-cells vmsnix-cells-head">
{% for title in cells.titles %}
<button data-do="sort:{{ heads[loop.index0].name }}">{{ title }}
<span aria-hidden="true">{{ heads[loop.index0].mark }}</span></button>
{% endfor %}
</div>
{% for place, row, actions in rows %}
<div class="vmsnix-channel">
<div class="vmsnix-cells">
{% if row.channel %}
{% for name in cells.names %}<div class="vmsnix-cell">{{ cells[name](row) }}</div>{% endfor %}
{% else %}
<div class="vmsnix-cell"><b>{{ row.region }}</b></div>
<div class="vmsnix-cell vmsnix-rest"><b class="vmsnix-mixed">unknown</b><span>{{ row.problem }}</span></div>
{% endif %}
</div>
<div class="vmsnix-channel-actions">
{% for name in actions %}
<button class="jupyter-button vmsnix-small" data-do="act:{{ place }}:{{ name }}"
 title="Open the form: {{ name }} {{ row.image }} {{ row.channel }} in {{ row.region }}">{{ name }}</button>
{% endfor %}
</div></div>
{% endfor %}
</div>
{% else %}
<p class="vmsnix-empty">{{ empty }}</p>
{% endif %}
"""


def channel_actions(row: Mapping[str, Any], channels: Sequence[str]) -> Actions:
    """Return what can be done with a channel, with the values of the runbooks' forms.

    An AMI is promoted to the next channel; one of the last channel to other regions.
    """
    if not row["channel"]:
        return {}
    here = {"image": row["image"], "channel": row["channel"], "region": row["region"]}
    verify: Actions = {"verify": ("verify-amis", {"image": row["image"], "regions": [row["region"]]})}
    if not row["ami_id"]:
        return {"promote": ("promote-ami", here), **verify}
    ami = {"ami": row["ami_id"], "region": row["region"]}
    later = [*channels[channels.index(row["channel"]) + 1 :]] if row["channel"] in channels else []
    return {
        "promote": ("promote-ami", here | ami | {"channel": (*later, row["channel"])[0]}),
        "roll back": ("rollback", here | {"regions": [row["region"]]}),
        **verify,
        "smoke-test": ("smoke-test", {"image": row["image"], **ami}),
    }


class ChannelGrid(Grid):
    """Shows each channel with buttons that open a form; `act` is called with its runbook and values."""

    heads = (
        TabColumn("image"),
        *(TabColumn(name, kind="time") for name in ("created_at", "since")),
        TabColumn("drift"),
        TabColumn("instances", kind="number"),
    )
    """The columns by which the heads sort."""

    def __init__(self, act: Callable[[str, Mapping[str, object]], None]) -> None:
        others = set(overview.COLUMNS) - {head.name for head in self.heads}
        super().__init__([*self.heads, *map(TabColumn, sorted(others))], filter_by="channel")
        self._act, self.channels = act, tuple[str, ...]()
        self._actions: dict[int, Actions] = {}

    def show_nothing(self, why: str) -> None:
        """Show a text instead of rows."""
        import pandas as pd

        self.empty = why
        self.show(pd.DataFrame(columns=list(overview.COLUMNS)))

    def _html(self, rows: pd.DataFrame, empty: str) -> Markup:
        texts = dict(zip(rows.index, overview.texts(rows), strict=True))
        self._actions = {place: channel_actions(row, self.channels) for place, row in texts.items()}
        shown = [(place, row, list(self._actions[place])) for place, row in texts.items()]
        heads = [head.head(self.sort) for head in self.heads]
        return fill(_CHANNELS, heads=heads, rows=shown, empty=empty)

    def _on_click(self, action: str) -> None:
        if not action.startswith("act:"):
            super()._on_click(action)
            return
        _, place, name = action.split(":")
        found = self._actions.get(int(place), {}).get(name)
        if found is not None:
            self._act(*found)


class ChannelsTab(Tab):
    """The AMI that each channel serves now, read from AWS."""

    title = "Channels"

    def _parts(self) -> list[Any]:
        self._head = ipywidgets.HTML("")
        self._grid = ChannelGrid(self._open_runbook)
        again = button("Read again", lambda: threading.Thread(target=self._again, daemon=True).start())
        return [self._head, self._grid.widget, again]

    def _again(self) -> None:
        self._read_for = None
        self.refresh(*self._wanted)

    def _read(self, backend: Backend) -> None:
        self._head.value = ""
        self._grid.show_nothing("Reading the channels from AWS ...")  # never the buttons of another backend
        try:
            settings = backend.settings()
            frame = overview.read(settings=settings, tables=backend.tables(), session=backend.session())
        except VmsnixError:
            self._grid.show_nothing("The channels could not be read.")
            raise
        regions = ", ".join(frame.attrs["regions"])
        self._grid.channels = settings.channels
        self._grid.empty = f"No channel has a value in {regions}. To set one, run promote."
        self._grid.show(frame)
        problem, when = frame.attrs["problem"], f"{datetime.now(UTC):%H:%M} UTC"
        self._head.value = fill(_READ_CHANNELS, when=when, regions=regions, problem=problem)


_READ_CHANNELS = """\
<p class="vmsnix-quiet">Read at {{ when }} in {{ regions }}.</p>
{% if problem %}<p class="vmsnix-warning">{{ problem }}</p>{% endif %}
"""


class HistoryTab(Tab):
    """All runs. A click on a row shows the run."""

    title = "History"
    columns = (
        TabColumn("started_at", "started (UTC)", "time"),
        TabColumn("runbook"),
        TabColumn("status", "", "badge"),
        TabColumn("dry_run", "dry run", "badge"),
        TabColumn("image"),
        TabColumn("region"),
        TabColumn("ami_id", "AMI", "code"),
        TabColumn("seconds", "took", "seconds"),
        TabColumn("user", wide=True),
        TabColumn("error", kind="rest"),
        TabColumn("run_id", "run", "code", wide=True),
    )

    def _parts(self) -> list[Any]:
        self._grid = Grid(
            self.columns,
            filter_by="runbook",
            sort="-started_at",
            empty="No runs yet. Runs of the console, of the command line and of CI are listed here.",
            key="run_id",
            picked=lambda row: self._show_run({**row, "dry_run": row["dry_run"] == DRY_RUN}),
        )
        return [self._grid.widget]

    def _read(self, backend: Backend) -> None:
        frame = history.runs(backend.tables(), last=MAX_RUNS)
        # As words, which the badge shows and the search finds.
        words = [DRY_RUN if dry_run else "" for dry_run in frame["dry_run"].fillna(value=False)]
        self._grid.show(frame.assign(dry_run=words))


class TimingsTab(Tab):
    """The duration of steps, by image: plots, percentiles, and slow steps."""

    title = "Timings"

    def _parts(self) -> list[Any]:
        self._image = ipywidgets.Dropdown(options=[("every image", "")], description="Image")
        self._image.observe(self._draw, "value")
        self._content = ipywidgets.HTML("")
        self._steps: pd.DataFrame | None = None
        return [self._image, self._content]

    def _read(self, backend: Backend) -> None:
        self._steps = history.steps(backend.tables(), last=MAX_STEPS)
        _set_choices(self._image, "image", self._steps["image"].dropna())
        self._draw()

    def _draw(self, _change: object = None) -> None:
        if self._steps is None:
            return
        steps = self._steps
        if self._image.value:
            steps = steps[steps["image"] == self._image.value]
        if not steps["status"].isin(outcomes.WORKED).any():
            self._content.value = _NO_TIMINGS
            return
        plots = (timing_plots.plot_usual(steps), timing_plots.plot_trend(steps))
        tables = (timings.show_summary(timings.summary(steps)), timings.show_slow(timings.slow(steps)))
        titles = ("Time per step", "Trend", "Usual durations", "Slow steps")
        parts = zip(titles, [*map(svg, plots), *tables], strict=True)
        self._content.value = fill(_PARTS, parts=parts)


_PROBLEM = '<p class="vmsnix-error" role="alert">{{ error }}</p>'
_READING = '<p class="vmsnix-quiet" role="status">Reading ...</p>'
_NO_TIMINGS = """\
<p class="vmsnix-empty">No timings yet. A publish records the time of each step.</p>
"""
_PARTS = """\
{% for title, part in parts %}
<section class="vmsnix-part"><h4>{{ title }}</h4><div class="vmsnix-scroll">{{ part }}</div></section>
{% endfor %}
"""
_SVG = "{{ svg | safe }}"  # matplotlib escapes the texts of a plot


def svg(figure: Figure) -> Markup:
    """Return a figure as SVG in the colours of JupyterLab's theme."""
    import matplotlib as mpl

    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "vmsnix"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var({variable})")
    return fill(_SVG, svg=text)


AUDIT = "audit-inventory"
NO_AUDITS = "No audits yet."
AUDITS_SEARCHED = 5
"""Newest audits in which a table is searched."""
_AUDIT_TIME = '<p class="vmsnix-quiet">From the audit of {{ when }}.</p>'


class AuditTab(Tab):
    """A table of the newest audit."""

    columns: tuple[TabColumn, ...] = ()
    file = ""
    filter_by = ""
    sort = ""
    empty = "The audit found no resources."

    def _parts(self) -> list[Any]:
        self._run_id = ""
        self._head = ipywidgets.HTML("")
        self._grid = Grid(self.columns, filter_by=self.filter_by, sort=self.sort, empty=NO_AUDITS)
        audit = button("Audit now", lambda: self._open_runbook(AUDIT, {}))
        self._show_button = button("Show that audit", lambda: self._show_run({"run_id": self._run_id}))
        return [self._head, self._grid.widget, row("vmsnix-actions", audit, self._show_button)]

    def _read(self, backend: Backend) -> None:
        frame, run = last_audit(backend, self.file)
        self._run_id = run.run_id if run else ""
        self._show_button.layout.display = "" if run else "none"
        self._head.value = ""
        if run is not None:
            started = datetime.fromisoformat(str(run.values["started_at"]))
            self._head.value = fill(_AUDIT_TIME, when=f"{started:%Y-%m-%d %H:%M} UTC")
        self._grid.empty = self.empty if run else NO_AUDITS
        self._show(frame)

    def _show(self, frame: pd.DataFrame) -> None:
        self._grid.show(frame)


class InventoryTab(AuditTab):
    """The resources that the newest audit found."""

    title = "Inventory"
    file = "inventory"
    filter_by = "kind"
    sort = "-created_at"
    columns = (
        TabColumn("kind"),
        TabColumn("resource_id", "resource", "code"),
        TabColumn("name", kind="rest"),
        TabColumn("region"),
        TabColumn("state", "", "badge"),
        TabColumn("created_at", "created (UTC)", "time"),
        TabColumn("size_gib", "GiB", "number"),
        TabColumn("monthly_usd", "USD/month", "usd"),
        TabColumn("referenced", "in use"),
        TabColumn("public", wide=True),
        TabColumn("image", wide=True),
    )


_FOLDED = """\
{% if text %}
<details class="vmsnix-folded"><summary>{{ text }}</summary>
<div class="vmsnix-scroll" tabindex="0" role="region" aria-label="Acknowledged findings">{{ table }}</div>
</details>
{% endif %}
"""


class FindingsTab(AuditTab):
    """The findings of the newest audit, the highest severity first; acknowledged ones are folded."""

    title = "Findings"
    file = "findings"
    filter_by = "severity"
    empty = "No findings."
    columns = (
        TabColumn("severity", "", "badge"),
        TabColumn("rule"),
        TabColumn("resource_id", "resource", "code"),
        TabColumn("region"),
        TabColumn("reason", "", "long"),
        TabColumn("remediation", "fix", "command"),
    )

    def _parts(self) -> list[Any]:
        self._folded = ipywidgets.HTML("")
        *above, buttons = super()._parts()
        return [*above, self._folded, buttons]

    def _show(self, frame: pd.DataFrame) -> None:
        shown = frame
        text, table = "", None
        if "acknowledged_until" in frame:  # not without an audit, nor in one of an earlier version
            shown, acknowledged = split(frame)
            names = ("severity", "rule", "region", "resource_id", *ACKNOWLEDGED)
            text = counted(len(acknowledged), "acknowledged finding") if len(acknowledged) else ""
            table = display.frame_table(acknowledged[list(names)].head(MAX_ROWS))
        self._grid.show(shown)
        self._folded.value = fill(_FOLDED, text=text, table=table)


def last_audit(backend: Backend, name: str) -> tuple[pd.DataFrame, ArchivedRun | None]:
    """Return the table ``NAME.csv`` of the newest audit with this table, and its run; else an empty frame."""
    import pandas as pd

    from vmsnix_ops.runbooks.evidence.runs import open_archive

    archive = open_archive(backend.settings(), environment=backend.environment)
    file = f"{name}.csv"
    for run in archive.runs(runbook=AUDIT, last=AUDITS_SEARCHED):  # of any status: fail_on can fail an audit
        if file in run.values.get("files", {}):
            content = io.BytesIO(archive.read_file(run, file))
            frame = pd.read_csv(content, dtype={"account": "str"}, keep_default_na=True)
            if "created_at" in frame:
                frame["created_at"] = pd.to_datetime(frame["created_at"], utc=True, format="ISO8601")
            return frame, run
    return pd.DataFrame(), None
