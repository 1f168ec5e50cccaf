"""Tables and pictures of static pages.

A `PageTable` is a JSON block in the page. The page's script makes it a table that people search, filter, sort
and group, and of which only the visible rows are drawn. Without JavaScript, its first rows are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops.display import missing, moment
from vmsnix_ops.text import html_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    import pandas as pd
    from markupsafe import Markup

PLAIN_ROWS = 500
"""Rows of a table that a page shows without JavaScript."""


@dataclass(frozen=True, slots=True)
class PageColumn:
    """A column of a `PageTable`."""

    name: str  # of the column in the frame
    label: str = ""  # heading; by default the name with spaces
    # An id opens the details of its row, and has a copy button, like a command. Prose takes two lines.
    kind: Literal["text", "id", "command", "prose", "number", "time"] = "text"
    width: float = 0  # in rem; 0 for a share of the rest
    below: str = ""  # name of the column that is shown in the second line
    link: str = ""  # name of the column with the address that the text links to
    digits: int = 0  # least number of decimals
    hidden: bool = False  # whether it is only in the details and the search
    # Whether rows can be filtered and grouped by it.
    filter: bool = False
    group: bool = False
    tones: Mapping[str, str] = field(default_factory=dict)  # colour of each value; of "": of all others
    order: Sequence[str] = ()  # order of the values; by default that of numbers and words
    notes: Mapping[str, str] = field(default_factory=dict)  # text of a group of each value
    lead: str = ""  # name of the column whose first value is shown in the head of a group

    @property
    def title(self) -> str:
        """The heading."""
        return self.label or self.name.replace("_", " ")

    def data(self, values: Iterable[object]) -> dict[str, Any]:
        """Return the column as the script reads it: values, or numbers of words that repeat."""
        found = [_value(value) for value in values]
        words = list(dict.fromkeys(found))
        coded: dict[str, Any] = {"values": found}
        if 2 * len(words) < len(found):
            places = {word: place for place, word in enumerate(words)}
            coded = {"values": [places[word] for word in found], "words": words}
        given = {
            name: getattr(self, name)
            for name in ("width", "below", "link", "digits", "hidden", "filter", "group", "lead")
        }
        more = {"tones": dict(self.tones), "order": list(self.order), "notes": dict(self.notes)}
        kept = {name: value for name, value in (given | more).items() if value}
        return {"name": self.name, "label": self.title, "kind": self.kind, **kept, **coded}


@dataclass(frozen=True)
class PageTable:
    """A table that people search, filter, sort and group."""

    name: str  # anchor in the page
    title: str
    columns: Sequence[PageColumn]
    frame: pd.DataFrame  # has all columns
    sort: str  # column; with "-" before it, descending
    group: str = ""  # column by which the rows are grouped at first
    sum: str = ""  # column whose total each group shows
    nothing: str = "No rows."

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def json(self) -> Markup:
        """The content of the JSON block."""
        from markupsafe import Markup

        columns = [column.data(self.frame[column.name].tolist()) for column in self.columns]
        table = {
            "columns": columns,
            "count": len(self),
            "sort": self.sort,
            "group": self.group,
            "sum": self.sum,
        }
        return Markup(html_json(table))  # noqa: S704 - html_json made it safe

    @property
    def shown(self) -> list[PageColumn]:
        """The columns that are not hidden."""
        return [column for column in self.columns if not column.hidden]

    def plain_rows(self) -> Iterable[list[tuple[str, str, str]]]:
        """Return the shown columns of the first rows: text, second line and address of each cell."""
        first = self.frame.head(PLAIN_ROWS)
        texts = {name: list(map(_plain, first[name])) for name in {one.name for one in self.columns}}
        blank = [""] * len(first)
        cells = [
            zip(*(texts.get(name, blank) for name in (one.name, one.below, one.link)), strict=True)
            for one in self.shown
        ]
        return map(list, zip(*cells, strict=True))


def _value(value: Any) -> str | float | None:
    """Return a value of a frame as the script and the plain table show it."""
    if missing(value) or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if hasattr(value, "strftime"):
        return moment(value)
    number = float(value)
    return int(number) if number.is_integer() else round(number, 3)


def _plain(value: object) -> str:
    found = _value(value)
    return "" if found is None else found if isinstance(found, str) else f"{found:,}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a lane; start and length are shares of its width."""

    start: float
    length: float
    colour: str
    title: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of a picture: a label, segments, and a text."""

    label: str
    segments: Sequence[Segment]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Lanes:
    """A picture of rows with segments: stacked bars, or spans of time."""

    title: str
    lanes: Sequence[Lane]
    legend: Mapping[str, str] = field(default_factory=dict)  # label of each colour
    note: str = ""


@dataclass(frozen=True, slots=True)
class Trend:
    """A line over time, with its first and last value."""

    title: str
    times: Sequence[datetime]
    values: Sequence[float]
    unit: str = ""

    WIDTH, HEIGHT = 300, 60

    @property
    def points(self) -> str:
        """The line in the picture's units."""
        low, high = min(self.values), max(self.values)
        first, last = self.times[0], self.times[-1]
        span = (last - first).total_seconds() or 1.0
        found = []
        for time, value in zip(self.times, self.values, strict=True):
            x = 4 + (self.WIDTH - 8) * (time - first).total_seconds() / span
            share = (value - low) / (high - low) if high > low else 0.5
            found.append(f"{x:.1f},{4 + (self.HEIGHT - 8) * (1 - share):.1f}")
        return " ".join(found)
