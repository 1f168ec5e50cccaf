"""Figures that show themselves in any notebook, without pyplot and its global state, in one style.

A figure brings its own white ground, so that it reads the same on a light page and on a dark one; `INK` on it
has a contrast of 10 to 1. Colours are Okabe and Ito's, which people who see colours differently can tell
apart.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 144
INK, SOFT, GRID, GROUND = "#333a45", "#5b6470", "#e3e6eb", "#ffffff"
PATH_COLOURS = {"import": "#0072b2", "direct": "#d55e00"}
"""Colours of the two ways of making a snapshot, the same in every figure."""

OTHER_COLOUR, ALARM = "#5b6470", "#b3261e"


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


def duration_unit(longest: float) -> tuple[str, float]:
    """Return the unit in which durations up to this one read well, and how many seconds it has.

    >>> duration_unit(42), duration_unit(900), duration_unit(20000)
    (('s', 1.0), ('min', 60.0), ('h', 3600.0))
    """
    if longest < 180:
        return "s", 1.0
    return ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
