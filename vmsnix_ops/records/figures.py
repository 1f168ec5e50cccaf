"""Figures for notebooks in one style, without pyplot and its global state.

A figure has a white background, so that it is readable on light and dark pages; `INK` has a contrast of 10 to
1. The colours are those of Okabe and Ito, which people with colour vision deficiency can distinguish.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

DOTS_PER_INCH = 144
INK, SOFT, GRID, GROUND = "#333a45", "#5b6470", "#e3e6eb", "#ffffff"
METHOD_COLOURS = {"import": "#0072b2", "direct": "#d55e00"}
"""Colours of the methods in every figure."""

OTHER_COLOUR, ALARM = "#5b6470", "#d32f2f"


def new_figure(**options: Any) -> Figure:
    """Return an empty figure with the options of ``matplotlib.figure.Figure``."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure with its own PNG: a kernel draws other figures only after an import of pyplot."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.15)
            return picture.getvalue()

    return ShownFigure(**({"facecolor": GROUND} | options))


def panels(
    ax: Axes | None, rows: int = 1, columns: int = 1, *, options: Mapping[str, Any], **shared: Any
) -> tuple[Figure, NDArray[Any], Axes | None]:
    """Return a figure, its panels as an array of rows, and the axes for `legend`.

    A single panel is drawn into the axes `ax` of a caller; several panels take their place, and the axes keep
    their title. Without axes, `options` are those of a new figure. `shared` has ``sharex`` and ``sharey``.
    """
    import numpy as np
    from matplotlib.figure import Figure

    if ax is None:
        figure = new_figure(**options)
        return figure, figure.subplots(rows, columns, squeeze=False, **shared), None
    figure = ax.get_figure(root=True) or Figure()
    if rows == columns == 1:
        return figure, np.array([[ax]]), ax
    ax.set_axis_off()
    place = ax.get_subplotspec()
    if place is None:  # not a part of a grid
        box = ax.get_position()
        place = figure.add_gridspec(1, 1, left=box.x0, right=box.x1, bottom=box.y0, top=box.y1)[0]
    both = place.subgridspec(2, 1, height_ratios=(0.06, 1))
    row = figure.add_subplot(both[0])
    row.set_axis_off()
    return figure, both[1].subgridspec(rows, columns).subplots(squeeze=False, **shared), row


def message_figure(text: str, ax: Axes | None = None) -> Figure:
    """Return a figure with a text instead of a plot; `ax` are axes of a caller."""
    figure, ((axes,),), _ = panels(ax, options={"figsize": (7, 1.2), "layout": "constrained"})
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color=SOFT)
    return figure


def style_axes(axes: Axes, *, grid: str) -> None:
    """Remove frame and tick marks, and draw a light grid along one axis."""
    axes.set_facecolor(GROUND)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.7)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)


def format_dates(axes: Axes, *, most: int = 8) -> None:
    """Label an axis of times with short dates, at most `most`."""
    import matplotlib.dates as mdates

    # matplotlib's dates have no type hints.
    locator = mdates.AutoDateLocator(minticks=3, maxticks=most)  # type: ignore[no-untyped-call]
    # Without these, it warns where less than three of the next larger unit need more labels than allowed.
    for unit, whole in ((mdates.MONTHLY, 12), (mdates.DAILY, 31), (mdates.HOURLY, 24), (mdates.MINUTELY, 60)):
        locator.intervald[unit] = [*locator.intervald[unit], whole]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def legend(figure: Figure, handles: Sequence[Any], ax: Axes | None = None) -> None:
    """Draw a legend above all panels: with `ax`, above the title of its panel, or in its empty row."""
    above: Any = {"loc": "outside upper left"}
    if ax is not None and ax.axison:
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 2.2}
    elif ax is not None:
        above = {"loc": "lower left", "borderaxespad": 0}
    (figure if ax is None else ax).legend(
        handles=list(handles),
        **above,
        ncols=len(handles) if ax is None or not ax.axison else min(3, len(handles)),
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
"""Round durations in seconds for axis labels."""

LEAST_RANGE = 4.0
"""Minimum ratio of the largest to the smallest duration of an axis, so that noise looks small."""


def duration_scale(axes: Axes, seconds: Iterable[float]) -> None:
    """Make the y axis logarithmic, with at most five round durations and their units as labels."""
    import math

    values = [max(value, DURATIONS[0]) for value in seconds] or [1.0]
    low, high = min(values), max(values)
    # Space for a dot and a ring above the largest value, whatever the ratio.
    wider = max(1.0, math.sqrt(LEAST_RANGE * low / high)) * 1.2 * (high / low) ** 0.07
    low, high = low / wider, high * wider
    inside = [tick for tick in DURATIONS if low <= tick <= high]
    ticks = inside[:: math.ceil(len(inside) / 5)]
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
    """Return a suitable unit for durations up to this one, and its seconds.

    >>> duration_unit(42), duration_unit(900), duration_unit(20000)
    (('s', 1.0), ('min', 60.0), ('h', 3600.0))
    """
    if longest < 180:
        return "s", 1.0
    return ("min", 60.0) if longest < 3 * 3600 else ("h", 3600.0)
