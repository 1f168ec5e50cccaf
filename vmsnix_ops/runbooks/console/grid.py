"""A table that can be searched, narrowed and sorted, from a frame; no scripts, nothing remote."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops import display, outcomes
from vmsnix_ops.templates import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from markupsafe import Markup

ROWS = 200
"""Rows that are shown at most; the search finds the others."""

GOOD = frozenset({"done", "available", "completed", *outcomes.SUCCEEDED})
BAD = frozenset({"failed", "error", "high", "critical"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a grid.

    Attributes
    ----------
    name
        In the frame.
    title
        Above the column; the name by default.
    kind
        How its values are shown: ``text``, ``code``, ``badge``, ``time``, ``seconds``, ``bytes``,
        ``number``, ``usd``, ``long`` (text that takes more lines), ``command``.
    """

    name: str
    title: str = ""
    kind: str = "text"


class Grid:
    """Shows a frame.

    Parameters
    ----------
    columns
        In their order; those that the frame lacks are left out.
    narrow
        Column whose values can be chosen from a list.
    sort
        Column by which it is sorted first, with ``-`` before it for downwards; empty leaves the rows as they
        are.
    empty
        What is said when there are no rows.
    changed
        Called after every change with the rows that are shown.

    Attributes
    ----------
    empty
        What is said when there are no rows.
    widget
        The table as it is shown.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        narrow: str = "",
        sort: str = "",
        empty: str = "No rows.",
        changed: Callable[[pd.DataFrame], None] | None = None,
    ) -> None:
        self._columns, self._narrow, self.empty = tuple(columns), narrow, empty
        self._changed = changed
        self._lock = threading.RLock()
        self._frame: pd.DataFrame | None = None
        self._text: pd.Series[str] | None = None
        self.search = ipywidgets.Text(
            placeholder="Search", continuous_update=True, tooltip="Search all columns"
        )
        self.search.add_class("vmsnix-search")
        self.narrow = ipywidgets.Dropdown(options=[("all", "")], tooltip=f"Show only this {narrow}")
        self.sort = ipywidgets.Dropdown(
            options=[
                *([] if sort else [("original order", "")]),
                *(option for each in self._columns for option in _orders(each)),
            ],
            tooltip="Order of the rows",
        )
        if sort:
            self.sort.value = sort
        self._count = ipywidgets.HTML("")
        self._table = ipywidgets.HTML("")
        self._bar = ipywidgets.HBox([self.search, self.narrow, self.sort, self._count])
        self._bar.add_class("vmsnix-grid-bar")
        self.widget = ipywidgets.VBox([self._bar, self._table])
        self.widget.add_class("vmsnix-grid")
        for control in (self.search, self.narrow, self.sort):
            control.observe(self._refresh, "value")

    def show(self, frame: pd.DataFrame) -> None:
        """Show another frame; the search and the order stay."""
        with self._lock:
            self._take(frame)

    def _take(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        names = [column.name for column in self._columns if column.name in frame.columns]
        texts = frame[names].astype("object").map(plain)
        self._text = texts.agg(" ".join, axis=1).str.lower() if len(frame) else None
        values = (
            sorted({str(value) for value in frame[self._narrow].dropna()}) if self._narrow in frame else []
        )
        before = self.narrow.value
        self.narrow.options = [(f"every {self._narrow}", ""), *((value, value) for value in values)]
        self.narrow.value = before if before in values else ""
        self.narrow.layout.display = "" if len(values) > 1 else "none"
        self._refresh()

    def rows(self) -> pd.DataFrame | None:
        """Return the rows that pass the search, in their order; ``None`` before there is a frame."""
        frame = self._frame
        if frame is None or self._text is None:
            return frame
        kept = self._text.notna()
        for word in self.search.value.lower().split():
            kept &= self._text.str.contains(word, regex=False)
        if self.narrow.value:
            kept &= frame[self._narrow].astype("string").fillna("") == self.narrow.value
        name = self.sort.value.removeprefix("-")
        found = frame[kept]
        if name in found:
            found = found.sort_values(
                name, ascending=not self.sort.value.startswith("-"), kind="stable", na_position="last"
            )
        return found

    def _refresh(self, _change: object = None) -> None:
        # A thread shows what it read while somebody types a search: the last one of both counts.
        with self._lock:
            self._draw()

    def _draw(self) -> None:
        rows = self.rows()
        if rows is None or self._frame is None:
            return
        whole = len(self._frame)
        self._bar.layout.display = "" if whole else "none"
        self._count.value = fill(_COUNT, rows=len(rows), whole=whole, most=ROWS)
        empty = self.empty if not whole else "No row matches the search."
        self._table.value = table_html(self._columns, rows.head(ROWS), empty=empty)
        if self._changed is not None:
            self._changed(rows.head(ROWS))


_COUNT = """\
<span class="vmsnix-quiet">{{ rows }} of {{ whole }}
{%- if rows > most %}, the first {{ most }} are shown{% endif %}</span>
"""

_TABLE = """\
{% if rows %}
<div class="vmsnix-scroll" tabindex="0" role="region" aria-label="Table">
<table class="vmsnix-table">
<thead><tr>
{% for column in columns %}
<th scope="col" class="vmsnix-is-{{ column.kind }}">{{ column.title or column.name }}</th>
{% endfor %}
</tr></thead><tbody>
{% for row in rows %}
<tr>
{% for cell in row %}
<td class="vmsnix-is-{{ cell.kind }}"{% if cell.full %} title="{{ cell.full }}"{% endif %}>
{%- if cell.badge %}<span class="vmsnix-badge {{ cell.badge }}">{{ cell.text }}</span>
{%- else %}{{ cell.text }}{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p class="vmsnix-empty">{{ empty }}</p>
{% endif %}
"""


def table_html(columns: Sequence[Column], frame: pd.DataFrame, *, empty: str) -> Markup:
    """Return a frame as an HTML table, or what to say when it is empty."""
    there = [column for column in columns if column.name in frame.columns]
    rows = [
        [_cell(column, value) for column, value in zip(there, row, strict=True)]
        for row in frame[[column.name for column in there]].itertuples(index=False, name=None)
    ]
    return fill(_TABLE, columns=there, rows=rows, empty=empty)


def _orders(column: Column) -> list[tuple[str, str]]:
    title = column.title or column.name
    if column.kind == "time":
        return [(f"{title}, newest first", f"-{column.name}"), (f"{title}, oldest first", column.name)]
    if column.kind in ("seconds", "bytes", "number", "usd"):
        return [(f"{title}, most first", f"-{column.name}"), (f"{title}, least first", column.name)]
    return [(f"{title}, A to Z", column.name)]


def _cell(column: Column, value: Any) -> dict[str, str]:
    text, badge = text_of(column.kind, value), ""
    if column.kind == "badge" and text:
        badge = "vmsnix-good" if text in GOOD else ("vmsnix-bad" if text in BAD else "vmsnix-mixed")
    full = plain(value) if len(text) > 40 or column.kind == "code" else ""
    return {"kind": column.kind, "text": text, "badge": badge, "full": full}


def text_of(kind: str, value: Any) -> str:
    """Return a value as people read it; empty when there is none."""
    if display.missing(value):
        return ""
    if kind == "usd":
        return f"{float(value):,.2f}"
    if kind == "number":
        return f"{float(value):,.6g}"
    text: str = WRITERS.get(kind, plain)(value)
    return text


def plain(value: Any) -> str:
    """Return a value as plain text, which is also what is searched."""
    if display.missing(value):
        return ""
    if type(value).__name__ in ("bool", "bool_"):
        return "yes" if value else "no"
    return str(value)


WRITERS: dict[str, Any] = {
    "time": display.moment,
    "seconds": display.seconds,
    "bytes": display.size,
}
