"""Show plans, results and tables as text, as HTML in a notebook, and as Markdown.

A pandas frame shows ``NaN`` and six decimals. A `DisplayTable` has units, fewer digits, and dashes for
missing values.
"""

from __future__ import annotations

import math
import os
import sys
import textwrap
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from vmsnix_ops.progress import human_bytes, human_seconds
from vmsnix_ops.templates import fill
from vmsnix_ops.text import line, lines, markdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

UNKNOWN = "-"
"""Text of a missing value."""

UNBROKEN = 32
"""Cells up to this length are not wrapped: IDs, names, dates."""

# Each cell has its alignment, because JupyterLab's style would align names to the right.
_DISPLAYED = """\
{% if title %}<p><b>{{ title }}</b></p>{% endif %}
{% for name, value in facts %}
{% if loop.first %}<table class="vmsnix">{% endif %}
<tr><th style="text-align:left">{{ name }}</th><td style="text-align:left">{{ value }}</td></tr>
{% if loop.last %}</table>{% endif %}
{% endfor %}
{% if table is not none %}{{ table }}{% endif %}
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
"""

_TABLE = """\
{% macro cell(tag, column, text) %}
<{{ tag }} style="text-align:{{ "right" if column in table.right else "left" }}
{%- if text|length <= unbroken %};white-space:nowrap{% endif %}">{{ text }}</{{ tag }}>
{% endmacro %}
{% if table.rows %}
<table class="vmsnix">
{% if table.title %}<caption style="text-align:left">{{ table.title }}</caption>{% endif %}
<thead><tr>
{% for name in table.columns %}{{ cell("th", name, name) }}{% endfor %}
</tr></thead><tbody>
{% for row in table.rows %}
<tr>
{% for text in row %}{{ cell("td", table.columns[loop.index0], text) }}{% endfor %}
</tr>
{% endfor %}
</tbody></table>
{%- else %}
<p>{{ table.title }}{% if table.title and table.nothing %} {% endif %}{{ table.nothing }}</p>
{%- endif %}
"""


class Displayed:
    """The base of plans, results and tables, with their text, HTML and Markdown.

    A subclass overrides `title`, `facts`, `table` and `notes`. They may return any text; it is escaped here.
    """

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Otherwise a dataclass would make its own __repr__.
        cls.__repr__ = Displayed.__repr__  # type: ignore[method-assign]

    @property
    def title(self) -> str:
        """A title of one line."""
        return ""

    def facts(self) -> Iterable[tuple[str, object]]:
        """Return pairs of a name and a value, shown below the title."""
        return ()

    def table(self) -> DisplayTable | None:
        """Return a table, shown below the facts."""
        return None

    def notes(self) -> Iterable[str]:
        """Return sentences, shown below the table."""
        return ()

    def frame(self) -> pd.DataFrame:
        """Return the table as a frame; without a table, a row for each fact."""
        import pandas as pd

        if (table := self.table()) is not None:
            return table.frame()
        return pd.DataFrame([(name, value) for name, value in self.facts()], columns=["name", "value"])

    def __str__(self) -> str:
        facts = [(line(name), value) for name, value in self.facts()]
        indent = "  " if self.title else ""
        width = len(indent) + max((len(name) for name, _ in facts), default=0) + 2
        parts = _fit(line(self.title)) if self.title else []
        between = "\n" + " " * width
        for name, value in facts:
            texts = [
                part for text in lines(value).split("\n") for part in _wrap(text, terminal_width() - width)
            ]
            parts.append(f"{indent + name:<{width}}{between.join(texts)}".rstrip())
        parts += [] if (table := self.table()) is None else [str(table)]
        return "\n".join([*parts, *map(line, self.notes())])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        table = self.table()
        return str(fill(_DISPLAYED, title=self.title, facts=self.facts(), table=table, notes=self.notes()))

    def _repr_markdown_(self) -> str:
        facts = [(name, str(value)) for name, value in self.facts()]
        parts = [f"**{markdown(self.title)}**"] if self.title else []
        parts += [DisplayTable(("", ""), tuple(facts))._repr_markdown_()] if facts else []
        parts += [] if (table := self.table()) is None else [table._repr_markdown_()]
        return "\n\n".join([*parts, *map(markdown, self.notes())])


@dataclass(frozen=True, slots=True)
class DisplayTable(Displayed):
    """A table for display."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()  # headings of the columns that are aligned to the right
    title: str = ""  # shown above the table
    nothing: str = "No rows."  # shown instead of a table without rows
    # The values of the table, if they are those of a frame.
    values: pd.DataFrame | None = field(default=None, compare=False, repr=False)
    brief: str = ""  # shown as text (terminal, log) instead of the rows; a notebook shows the rows

    def frame(self) -> pd.DataFrame:
        """Return the table as a frame: with the values, or if there are only texts, with these."""
        import pandas as pd

        if self.values is not None:
            return self.values
        return pd.DataFrame(list(self.rows), columns=list(self.columns), dtype="str")

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        head = _fit(line(self.title)) if self.title else []
        if not self.rows:
            return "\n".join(filter(None, [*head, line(self.nothing)]))
        if self.brief:
            return "\n".join([*head, *(part for one in lines(self.brief).split("\n") for part in _fit(one))])
        table = ["".join(text for text, _row, _column in one).rstrip() for one in self.parts()]
        return "\n".join([*head, *table])

    def parts(self) -> list[list[Part]]:
        """Return the lines of the rows and their headings, each as texts with the places of their cells."""
        table = [[line(cell) for cell in row] for row in (self.columns, *self.rows)]
        return _table_lines(table, [name in self.right for name in self.columns], terminal_width())

    def _repr_html_(self) -> str:
        return str(fill(_TABLE, table=self, unbroken=UNBROKEN))

    # jinja2 does not escape an object with __html__, such as the table below the facts.
    __html__ = _repr_html_

    def _repr_markdown_(self) -> str:
        title = [f"**{markdown(self.title)}**", ""] if self.title else []
        if not self.rows:
            return "\n".join([*title, markdown(self.nothing)])
        rule = ["---:" if name in self.right else "---" for name in self.columns]
        rows = [map(markdown, self.columns), rule, *(map(markdown, row) for row in self.rows)]
        return "\n".join([*title, *(f"| {' | '.join(cells)} |" for cells in rows)])


def terminal_width() -> int:
    """Return the width of the terminal, by default from ``COLUMNS``; 0 without a terminal, as in a log."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal():
        return int(given)
    try:  # a kernel's stream is no terminal, although its file descriptor can be one
        return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
    except (AttributeError, OSError, ValueError):  # a closed or replaced stream
        return 0


Part: TypeAlias = tuple[str, int, int]
"""A text of a line with the spaces around it, and the row and the column of its cell.

Row 0 has the headings; -1 is a line above the table.
"""


def _table_lines(table: list[list[str]], right: Sequence[bool], limit: int) -> list[list[Part]]:
    """Return the lines of a table; its first row has the headings.

    If it is wider than the limit, a line above lists the columns whose values are all equal, and headings
    have several lines. If it is still too wide, each row continues on further lines.
    """
    places, heads, above = list(range(len(table[0]))), [[text] for text in table[0]], []
    if limit and _line_width(table, places, 2) > limit:
        equal = [place for place in places if len(table) > 2 and len({row[place] for row in table[1:]}) == 1]
        if equal and len(equal) < len(places):
            facts = ", ".join(f"{table[0][place]} {table[1][place]}" for place in equal)
            above, places = _wrap(f"All rows below: {facts}", limit), [p for p in places if p not in equal]
        longest = [max((len(row[place]) for row in table[1:]), default=0) for place in range(len(heads))]
        heads = [_wrap(text, max(longest[place], 1)) for place, text in enumerate(table[0])]
    cells = [heads, *([_wrap(text, limit - 4) for text in row] for row in table[1:])]
    widths = [max(len(text) for row in cells for text in row[place]) for place in range(len(heads))]
    # One space between columns if a row then needs fewer lines.
    groups, gap = min(
        ((_row_lines(places, widths, gap, limit), gap) for gap in (2, 1)), key=lambda one: len(one[0])
    )
    found: list[list[Part]] = [[(text, -1, 0)] for text in above]
    for at, row in enumerate(cells):
        for number, group in enumerate(groups):
            height = max(len(row[place]) for place in group)
            for high in range(height):
                parts: list[Part] = []
                for place in group:
                    # The last line of a heading is above the values.
                    blank = [""] * (height - len(row[place]))
                    text = [*blank, *row[place]][high] if row is heads else [*row[place], *blank][high]
                    text = text.rjust(widths[place]) if right[place] else text.ljust(widths[place])
                    before = gap if parts else 4 if number else 0
                    parts.append((" " * before + text, at, place))
                found.append(parts)
    return found


def _row_lines(places: list[int], widths: list[int], gap: int, limit: int) -> list[list[int]]:
    """Return the columns of each line of a row; the first line is not indented."""
    groups: list[list[int]] = [[]]
    for place in places:
        indent = 4 if len(groups) > 1 else 0
        whole = indent + sum(widths[p] + gap for p in groups[-1]) + widths[place]
        if limit and groups[-1] and whole > limit:
            groups.append([])
        groups[-1].append(place)
    return groups


def _wrap(text: str, limit: int) -> list[str]:
    """Return the lines of a text; words are not broken. Without a limit, it is one line."""
    if limit <= 0 or len(text) <= limit:
        return [text]
    parts = textwrap.wrap(text, limit, break_long_words=False, break_on_hyphens=False)
    return list(map(line, parts))  # a new line may begin like a workflow command


def _fit(text: str) -> list[str]:
    """Return the lines of a text in the terminal; further lines are indented by four more spaces."""
    indent, limit = len(text) - len(text.lstrip()), terminal_width()
    first, *others = _wrap(text.strip(), limit - indent - 4 if 0 < limit < len(text) else 0)
    return [" " * indent + first, *(" " * (indent + 4) + other for other in others)]


def _line_width(table: list[list[str]], places: list[int], gap: int) -> int:
    return sum(max(len(row[place]) for row in table) + gap for place in places) - gap


def make_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[str] = (),
    title: str = "",
    nothing: str = "No rows.",
) -> DisplayTable:
    """Return a table of values as text; a missing value becomes a dash."""
    texts = tuple(tuple(text(value) for value in row) for row in rows)
    return DisplayTable(tuple(columns), texts, frozenset(right), title, nothing)


def steps_table(steps: Iterable[Mapping[str, Any]]) -> DisplayTable:
    """Return the steps of a run, as in ``result.json``: name, status, duration, bytes."""
    rows = [
        (
            step.get("step", ""),
            step.get("status", ""),
            human_seconds(float(step.get("seconds") or 0)),
            human_bytes(float(step["bytes"])) if step.get("bytes") else "",
        )
        for step in steps
    ]
    return make_table(("step", "status", "time", "bytes"), rows, right=("time", "bytes"))


def shortened(table: DisplayTable, most: int, where: str) -> DisplayTable:
    """Return a table whose text has at most this many rows and names the place where the others are.

    >>> print(shortened(make_table(["name"], [["a"], ["b"], ["c"]]), 1, "names.csv"))
    name
    a
    2 more rows in names.csv.
    """
    left = len(table) - most
    if left <= 0:
        return table
    first = str(replace(table, title="", rows=table.rows[:most]))
    return replace(table, brief=f"{first}\n{left:,} more {'row' if left == 1 else 'rows'} in {where}.")


def frame_table(frame: pd.DataFrame, *, title: str = "", nothing: str = "No rows.") -> DisplayTable:
    """Return a frame as a table: numbers have at most two decimals, times end with the minute.

    >>> import pandas as pd
    >>> print(frame_table(pd.DataFrame({"region": ["eu-west-1"], "size_gib": [4.5], "public": [True]})))
    region     size gib  public
    eu-west-1      4.50  yes
    """
    import pandas as pd

    columns = [str(name).replace("_", " ") for name in frame.columns]
    numbers = [
        pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes
    ]
    rows = [[_readable(value) for value in row] for row in frame.itertuples(index=False)]
    right = [name for name, number in zip(columns, numbers, strict=True) if number]
    return replace(make_table(columns, rows, right=right, title=title, nothing=nothing), values=frame)


def _readable(value: object) -> object:
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not missing(value):
        return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
    return value


def text(value: object) -> str:
    """Return a value as text; a missing value and empty text become a dash.

    >>> text(None), text(3), text("")
    ('-', '3', '-')
    """
    return UNKNOWN if missing(value) or value == "" else str(value)


def missing(value: object) -> bool:
    """Return whether a value of a frame is missing: ``None``, ``NaN``, ``NaT`` or ``NA``."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return type(value).__name__ in ("NAType", "NaTType")


def seconds(value: object) -> str:
    """Return a duration.

    >>> seconds(4.26), seconds(75.2), seconds(None)
    ('4.3 s', '1 min 15 s', '-')
    """
    return UNKNOWN if missing(value) else human_seconds(float(value))  # type: ignore[arg-type]


def size(value: object) -> str:
    """Return a byte count in binary units.

    >>> size(4 * 2**30), size(None)
    ('4.0 GiB', '-')
    """
    return UNKNOWN if missing(value) else human_bytes(float(value))  # type: ignore[arg-type]


def quantity(value: object, unit: str) -> str:
    """Return a number and its unit, with two significant digits or as a whole number.

    >>> quantity(212.42, "MiB/s"), quantity(4.83, "s/GiB"), quantity(float("nan"), "s/GiB")
    ('212 MiB/s', '4.8 s/GiB', '-')
    """
    if missing(value):
        return UNKNOWN
    number = float(value)  # type: ignore[arg-type]
    digits = 2 if number < 0.995 else 1 if number < 9.95 else 0
    return f"{number:,.{digits}f} {unit}"


def moment(value: object) -> str:
    """Return a time in UTC to the minute.

    >>> from datetime import UTC, datetime
    >>> moment(datetime(2026, 11, 25, 18, 7, 13, tzinfo=UTC))
    '2026-11-25 18:07'
    """
    return UNKNOWN if missing(value) else f"{value:%Y-%m-%d %H:%M}"


def change(value: object) -> str:
    """Return a relative change in percent, with its sign.

    >>> change(0.123), change(-0.5), change(0.001), change(None)
    ('+12 %', '-50 %', '0 %', '-')
    """
    if missing(value):
        return UNKNOWN
    percent = round(100 * float(value))  # type: ignore[arg-type]
    return f"{percent:+d} %" if percent else "0 %"
