"""Plots of `vmsnix_ops.records.timings`: durations of steps, their trend, and direct upload against import.

Images differ in size and regions in distance, so no line combines them. Each image, step and region has its
own panel. In a panel the colour is the method, and the line style is the region.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import display
from vmsnix_ops.progress import counted
from vmsnix_ops.records.figures import (
    ALARM,
    GROUND,
    INK,
    METHOD_COLOURS,
    OTHER_COLOUR,
    SOFT,
    duration_scale,
    duration_unit,
    format_dates,
    legend,
    message_figure,
    panels,
    style_axes,
)
from vmsnix_ops.records.timings import FEWEST, SNAPSHOT_STEPS, finished_steps, snapshots
from vmsnix_ops.text import plot_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_STEPS, LEAST_SHARE = 4, 0.03
"""Maximum number of steps with a panel, and minimum share of a run's time for a panel."""

MOST = 3
"""Maximum number of images and of regions in a figure; those with the most runs are drawn."""

MOST_BARS = 24
"""Maximum number of compared images and regions."""

SMOOTH = 15
"""Number of runs in the running median."""

LEAST_SPAN = "1h"
"""Minimum duration of a trend's time axis."""

STYLES: tuple[tuple[Literal["-", "--", ":"], str], ...] = (("-", "o"), ("--", "D"), (":", "s"))
"""Line style and marker of each region, the region with the most runs first."""

NO_METHOD, UNKNOWN = "any method", "unknown"
NOTHING = "No finished steps of this kind."


def plot_usual(steps: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw each step's median as a bar and its 90th percentile as a line, by method.

    Each image and region has its own panel. `steps` are rows of the table `steps`, in any order. `ax` are
    axes of a caller (see `vmsnix_ops.records.figures.panels`); by default, a new figure is drawn.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    finished, left_out = _select_drawn(steps)
    if finished.empty:
        return message_figure(NOTHING, ax)
    names, methods = _in_order(finished), _methods(finished)
    images, regions = _busiest(finished, "image"), _busiest(finished, "region")
    width = max(8.0, 5.4 * len(regions))
    height = (1.1 + 0.2 * len(names) * max(len(methods), 1.6)) * len(images)
    options = {"figsize": (width, height), "layout": ConstrainedLayoutEngine(wspace=0.06, hspace=0.06)}
    figure, grid, above = panels(ax, len(images), len(regions), options=options, sharex="row", sharey=True)
    for row, image in zip(grid, images, strict=True):
        of_image = finished[finished["image"] == image]
        unit, one = duration_unit(float(of_image.groupby(_LINE)["seconds"].quantile(0.9).max()))
        for axes, region in zip(row, regions, strict=True):
            _usual(axes, of_image[of_image["region"] == region], names, methods, one)
            axes.set_xlabel(f"time ({unit})")
            _title(axes, image, region)
        row[0].set_xlim(left=0)
    grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
    note = f"bar: median, line: to the 90th percentile (p90){left_out}"
    if ax is None:
        figure.supxlabel(note, fontsize=9, color=SOFT)
    else:
        grid[-1, 0].set_xlabel(f"{grid[-1, 0].get_xlabel()}\n{note}")
    legend(figure, [_patch(method) for method in methods], above)
    return figure


def plot_trend(steps: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw each run as a dot, the running median as a line, and a ring around slow runs.

    Each of the longest steps has a row of panels, and each image a column. `steps` are rows of the table
    `steps`, in any order. `ax` is as for `plot_usual`.
    """
    finished, left_out = _select_drawn(steps)
    if finished.empty:
        return message_figure(NOTHING, ax)
    share = finished.groupby("step")["seconds"].sum().nlargest(MOST_STEPS)
    names = [n for n in _in_order(finished) if share.get(n, 0.0) >= LEAST_SHARE * share.sum()]
    methods, images, regions = _methods(finished), _busiest(finished, "image"), _busiest(finished, "region")
    size = (max(8.0, 1.2 + 3.4 * len(images)), 1.0 + 1.9 * len(names))
    options = {"figsize": size, "layout": "constrained"}
    figure, grid, above = panels(ax, len(names), len(images), options=options, sharex=True, sharey="row")
    for row, name in zip(grid, names, strict=True):
        of_step = finished[finished["step"] == name]
        for axes, image in zip(row, images, strict=True):
            _trend(axes, of_step[of_step["image"] == image], methods, regions)
            if axes in grid[0]:
                _title(axes, image)
        duration_scale(row[0], of_step["seconds"])
        row[0].set_ylabel(f"{name} time, log scale")
    for axes in grid[:-1].flat:
        axes.spines["bottom"].set_visible(False)  # the line would be at an unlabelled value
    _least_span(grid[-1, 0], finished["started_at"])
    for axes in grid[-1]:
        format_dates(axes, most=8 if len(images) == 1 else 5)
    note = f"started (UTC){left_out}"
    if ax is None:
        figure.supxlabel(note, fontsize=9, color=SOFT)
    else:
        grid[-1, 0].set_xlabel(note)
    late = bool(finished[finished["step"].isin(names)]["is_slow"].any())
    legend(figure, _trend_handles(methods, regions, slow=late), above)
    return figure


def plot_compare(steps: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw the median time for a GiB, from image file to snapshot, of direct upload and import.

    Each image and region has its own bars. `steps` are rows of the table `steps`, in any order. `ax` is as
    for `plot_usual`.
    """
    made = snapshots(steps).dropna(subset=["image", "via", "seconds_per_gib"])
    if made.empty:
        return message_figure("No finished snapshots of this kind.", ax)
    made = made.assign(
        region=made["region"].fillna(UNKNOWN).map(plot_label),
        **{n: made[n].map(plot_label) for n in ("image", "via")},
    )
    counts = made.groupby(["image", "region"]).size()
    places = sorted(counts.nlargest(MOST_BARS).index)
    methods, regions = _methods(made), made["region"].nunique()
    rates = [f"{name}_seconds_per_gib" for name in SNAPSHOT_STEPS]
    parts = made.groupby(["image", "region", "via"])[[*rates, "seconds"]].median()
    unit, one = duration_unit(float(parts[rates].sum(axis=1).max()))
    size = (8, 1.2 + 0.4 * len(places) * max(len(methods), 1.3))
    figure, ((axes,),), above = panels(ax, options={"figsize": size, "layout": "constrained"})
    height = 0.8 / len(methods)
    for part in parts.reset_index().to_dict("records"):
        image, region, method = (str(part[name]) for name in ("image", "region", "via"))
        if (image, region) not in places:
            continue
        row = places.index((image, region)) + (methods.index(method) - (len(methods) - 1) / 2) * height
        begin = 0.0
        for name, strength in zip(rates, _STRENGTHS, strict=True):
            length = float(part[name]) / one
            axes.barh(row, length, height * 0.86, left=begin, color=_colour(method), alpha=strength)
            begin += length
        rate = display.quantity(begin * one, "s/GiB")
        _write(axes, begin, row, f"{rate} ({display.seconds(part['seconds'])} for an image)")
    named = [image if regions == 1 else f"{image}\n{region}" for image, region in places]
    axes.set_yticks(range(len(places)), named)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.margins(x=0.3)  # space for the texts
    more = len(counts) - len(places)
    left_out = f"; not shown: {counted(more, 'image and region', 'images and regions')}" if more else ""
    axes.set_xlabel(f"median time for a GiB, from image file to snapshot ({unit}){left_out}")
    style_axes(axes, grid="x")
    handles = [_patch(method) for method in methods]
    what = ("upload", "until the snapshot is complete")
    legend(figure, handles + [_patch(w, INK, alpha=s) for w, s in zip(what, _STRENGTHS, strict=True)], above)
    return figure


_LINE = ["step", "via", "region"]
_STRENGTHS = (0.5, 1.0)


def _select_drawn(steps: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the finished steps of the images and regions with the most runs, and a note about the others."""
    finished = finished_steps(steps)
    none = {"via": NO_METHOD, "image": UNKNOWN, "region": UNKNOWN}
    finished = finished.assign(
        step=finished["step"].map(plot_label),
        **{name: finished[name].fillna(word).map(plot_label) for name, word in none.items()},
    )
    omitted = []
    for column in ("image", "region"):
        drawn, count = _busiest(finished, column)[:MOST], finished[column].nunique()
        finished = finished[finished[column].isin(drawn)]
        if count > MOST:
            omitted.append(counted(count - MOST, column))
    return finished, f"; not shown: {' and '.join(omitted)} with fewer runs" if omitted else ""


def _busiest(finished: pd.DataFrame, column: str) -> list[str]:
    """Return the values of a column by number of runs, the most first; `UNKNOWN` comes last."""
    runs = finished.groupby(column)["run_id"].nunique().sort_values(ascending=False, kind="stable")
    return sorted(runs.index, key=lambda value: bool(value == UNKNOWN))


def _in_order(finished: pd.DataFrame) -> list[str]:
    """Return the steps in their order in a run, by their mean position."""
    places = finished.groupby("run_id").cumcount()
    return list(places.groupby(finished["step"]).mean().sort_values(kind="stable").index)


def _usual(axes: Axes, rows: pd.DataFrame, names: list[str], methods: list[str], one: float) -> None:
    height = 0.8 / len(methods)
    for column, words in zip(_COLUMNS, ("median", "p90"), strict=True):
        _beside(axes, -0.62, column, words, color=SOFT, va="bottom")
    for key, seconds in rows.groupby(["step", "via"])["seconds"]:
        name, method = map(str, key)
        median, high = seconds.quantile(0.5), seconds.quantile(0.9)
        place = names.index(name) + (methods.index(method) - (len(methods) - 1) / 2) * height
        axes.barh(place, median / one, height * 0.86, color=_colour(method))
        axes.plot([median / one, high / one], [place, place], color=INK, linewidth=1.2)
        for column, value in zip(_COLUMNS, (median, high), strict=True):
            _beside(axes, place, column, display.seconds(value), color=INK, va="center")
    axes.set_yticks(range(len(names)), names)
    style_axes(axes, grid="x")


_COLUMNS = (66, 132)
"""Right ends of the columns of numbers beside a panel, in points from it; ``11 min 23 s`` takes 60."""


def _beside(axes: Axes, y: float, points: float, words: str, *, color: str, va: str) -> None:
    """Write a number into a column to the right of a panel, outside of the bars."""
    from matplotlib.transforms import ScaledTranslation

    aside = ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
    right = axes.get_yaxis_transform() + aside
    axes.text(1, y, words, transform=right, ha="right", va=va, fontsize=8.5, color=color)


def _trend(axes: Axes, rows: pd.DataFrame, methods: list[str], regions: list[str]) -> None:
    for method in methods:
        for region, (line, dot) in zip(regions, STYLES, strict=False):
            some = rows[(rows["via"] == method) & (rows["region"] == region)]
            when, took = some["started_at"].to_numpy(), some["seconds"].clip(lower=1e-3)
            few = len(some) < FEWEST  # too few for a median line, so the dots are drawn larger
            style: dict[str, Any] = {"color": _colour(method), "markeredgewidth": 0, "linestyle": ""}
            style |= {"markersize": 4.0, "alpha": 0.9} if few else {"markersize": 3.2, "alpha": 0.4}
            axes.plot(when, took.to_numpy(), marker=dot, **style)
            smooth = took.rolling(SMOOTH, min_periods=3, center=True).median().to_numpy()
            axes.plot(when, smooth, linewidth=1.6, linestyle=line, color=_colour(method))
    late = rows[rows["is_slow"]]
    axes.plot(late["started_at"].to_numpy(), late["seconds"].to_numpy(), linestyle="", **_RING)
    axes.margins(x=0.04)
    style_axes(axes, grid="y")


_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgewidth": 1.4,
    "markeredgecolor": ALARM,
}


def _least_span(axes: Axes, when: pd.Series[Any]) -> None:
    """Extend the time axis to `LEAST_SPAN`."""
    import pandas as pd
    from matplotlib.dates import date2num

    short = pd.Timedelta(LEAST_SPAN) - (when.max() - when.min())
    if short > pd.Timedelta(0):
        axes.set_xlim(date2num(when.min() - short / 2), date2num(when.max() + short / 2))  # type: ignore[no-untyped-call]


def _trend_handles(methods: list[str], regions: list[str], *, slow: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    handles: list[Any] = [_patch(method) for method in methods]
    if len(regions) > 1:
        handles += [
            Line2D([], [], linestyle=line, marker=dot, markersize=4, color=INK, label=region)
            for region, (line, dot) in zip(regions, STYLES, strict=False)
        ]
    if slow:
        handles.append(Line2D([], [], linestyle="", label="slower than usual", **_RING))
    return handles


def _title(axes: Axes, *parts: str) -> None:
    title = ", ".join(part for part in parts if part != UNKNOWN)
    axes.set_title(title or "image unknown", loc="left", fontsize=10, color=INK)


def _write(axes: Axes, x: float, y: float, words: str) -> None:
    axes.annotate(
        words, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
    )


def _patch(label: str, colour: str = "", *, alpha: float = 1.0) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour or _colour(label), edgecolor=GROUND, alpha=alpha, label=label)


def _methods(rows: pd.DataFrame) -> list[str]:
    known = list(METHOD_COLOURS)
    return sorted(
        rows["via"].unique(),
        key=lambda method: (known.index(method) if method in known else len(known), method),
    )


def _colour(method: str) -> str:
    return METHOD_COLOURS.get(method, OTHER_COLOUR)
