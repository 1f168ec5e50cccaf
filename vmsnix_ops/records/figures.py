"""Figures that show themselves in any notebook, without pyplot and its global state, in one style.

A figure brings its own white ground, so that it reads the same on a light page and on a dark one; `INK` on it
has a contrast of 10 to 1. Colours are Okabe and Ito's, which people who see colours differently can tell
apart.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 144
INK, SOFT, GRID, GROUND = "#333a45", "#5b6470", "#e3e6eb", "#ffffff"
PATH_COLOURS = {"import": "#0072b2", "direct": "#d55e00"}
"""Colours of the two ways of making a snapshot, the same in every figure."""

OTHER_COLOUR, ALARM = "#5b6470", "#d32f2f"


def new_figure(**options: Any) -> Figure:
    """Return an empty figure.

    Parameters
    ----------
    options
        Of ``matplotlib.figure.Figure``.
    """
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A kernel draws plain figures only once pyplot was imported; this one brings its own picture."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.15)
            return picture.getvalue()

    return ShownFigure(**({"facecolor": GROUND} | options))


def saying(words: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    figure = new_figure(figsize=(7, 1.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=12, color=SOFT)
    return figure


def tidy(axes: Axes, *, grid: str) -> None:
    """Leave of a plot what is needed: no frame, no tick marks, a faint grid along one axis."""
    axes.set_facecolor(GROUND)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.7)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)


def dates(axes: Axes, *, most: int = 8) -> None:
    """Write the days of an axis of times as short as they can be read."""
    import matplotlib.dates as mdates

    # matplotlib's dates have no type hints.
    locator = mdates.AutoDateLocator(minticks=3, maxticks=most)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Write a legend above all panels."""
    figure.legend(
        handles=list(handles),
        loc="outside upper left",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=SOFT,
        handletextpad=0.5,
        columnspacing=1.6,
        handleheight=0.8,
        handlelength=2.4,
    )


DURATIONS = (*(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20), *(60 * n for n in (0.5, 1, 2, 5, 10, 20)))
DURATIONS += (*(3600 * n for n in (0.5, 1, 2, 5, 10)), *(86400 * n for n in (1, 2, 5, 10)))
"""Round durations in seconds, each about twice the one before."""

LEAST_RANGE = 4.0
"""How many times the least duration the largest of a scale is, so that mere noise looks like it."""


def duration_scale(axes: Axes, seconds: Iterable[float], *, most: int = 5) -> None:
    """Make the upward axis one of durations: logarithmic, with round ones as marks, each with its unit.

    Parameters
    ----------
    axes
        Of the plot.
    seconds
        What it must hold.
    most
        How many durations are written at most.
    """
    import math

    values = [max(value, DURATIONS[0]) for value in seconds] or [1.0]
    low, high = min(values), max(values)
    # Room for a dot and a ring above the largest, however far that is from the least.
    wider = max(1.0, math.sqrt(LEAST_RANGE * low / high)) * 1.2 * (high / low) ** 0.07
    low, high = low / wider, high * wider
    inside = [tick for tick in DURATIONS if low <= tick <= high]
    ticks = inside[:: math.ceil(len(inside) / most)]
    axes.set(yscale="log", ylim=(low, high))
    axes.set_yticks(ticks, [duration(tick) for tick in ticks])
    axes.set_yticks([], minor=True)


def duration(seconds: float) -> str:
    """Return a round duration with its unit.

    >>> duration(0.5), duration(30), duration(600), duration(7200), duration(172800)
    ('0.5 s', '30 s', '10 min', '2 h', '2 d')
    """
    for unit, one in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= one:
            return f"{seconds / one:g} {unit}"
    return f"{seconds:g} s"


def duration_unit(longest: float) -> tuple[str, float]:
    """Return the unit in which durations up to this one read well, and how many seconds it has.

    >>> duration_unit(42), duration_unit(900), duration_unit(20000)
    (('s', 1.0), ('min', 60.0), ('h', 3600.0))
    """
    if longest < 180:
        return "s", 1.0
    return ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
