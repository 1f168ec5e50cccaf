"""Pictures of `vmsnix_ops.records.timings`: where the time goes, how it changed, direct against import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.records import shown
from vmsnix_ops.records.figures import (
    ALARM,
    INK,
    OTHER_COLOUR,
    PATH_COLOURS,
    SOFT,
    dates,
    duration_unit,
    new_figure,
    saying,
    tidy,
)
from vmsnix_ops.records.slowness import measured
from vmsnix_ops.records.timings import SNAPSHOT_STEPS, snapshots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_STEPS, LEAST_SHARE = 4, 0.03
"""How many steps have a panel of their own, and what part of a run's time a step must take to have one."""

SMOOTH = 15
"""Over how many runs the line through the dots is a median."""

NO_PATH = "any path"


def plot_usual(steps: pd.DataFrame) -> Figure:
    """Return where the time goes: a bar to each step's median and a line to its 90th percentile, by path.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order; images and regions in them are taken together.
    """
    finished = _finished(steps)
    if finished.empty:
        return saying("No step has finished yet: publish an image first.")
    names = _in_order(finished)
    paths = sorted(finished["via"].unique(), key=_path_order)
    figure = new_figure(figsize=(8, 0.9 + 0.34 * len(names) * max(len(paths), 1.3)), layout="constrained")
    axes = figure.subplots()
    unit, one = duration_unit(float(finished.groupby(["step", "via"])["seconds"].quantile(0.9).max()))
    height = 0.8 / len(paths)
    for number, path in enumerate(paths):
        seconds = finished[finished["via"] == path].groupby("step")["seconds"]
        median, high = seconds.quantile(0.5), seconds.quantile(0.9)
        places = [names.index(name) + (number - (len(paths) - 1) / 2) * height for name in median.index]
        axes.barh(places, median / one, height * 0.86, color=_colour(path), label=path)
        for name, place in zip(median.index, places, strict=True):
            axes.plot([median[name] / one, high[name] / one], [place, place], color=INK, linewidth=1.2)
            _write(axes, high[name] / one, place, shown.seconds(median[name]))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.1)  # room for the figures
    axes.set_xlabel(f"{unit}  (bar and figure: median; line: to the 90th percentile)")
    tidy(axes, grid="x")
    _legend(axes, paths)
    return figure


def plot_trend(steps: pd.DataFrame) -> Figure:
    """Return how it changed: each run a dot, their running median a line, the slow ones ringed.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order. The steps that take longest have a panel each.
    """
    finished = _finished(steps)
    if finished.empty:
        return saying("No step has finished yet: publish an image first.")
    names = _in_order(finished)
    share = finished.groupby("step")["seconds"].sum().nlargest(MOST_STEPS)
    names = [name for name in names if share.get(name, 0.0) >= LEAST_SHARE * share.sum()]
    paths = sorted(finished["via"].unique(), key=_path_order)
    figure = new_figure(figsize=(8, 0.7 + 1.55 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, finished[finished["step"] == name], name, paths)
    dates(panels[-1])
    panels[-1].set_xlabel("started (UTC)")
    _legend(panels[0], paths, slow=bool(finished["is_slow"].any()))
    return figure


def plot_compare(steps: pd.DataFrame) -> Figure:
    """Return direct upload against import: the median time from an image's file to its snapshot, by image.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order.
    """
    made = snapshots(steps).dropna(subset=["image", "via"])
    if made.empty:
        return saying("No run has made a snapshot yet: publish an image first.")
    parts = made.groupby(["image", "via"])[[f"{name}_seconds" for name in SNAPSHOT_STEPS]].median()
    images = sorted(made["image"].dropna().unique())
    paths = sorted(made["via"].dropna().unique(), key=_path_order)
    unit, one = duration_unit(float(parts.sum(axis=1).max()))
    figure = new_figure(figsize=(8, 0.9 + 0.36 * len(images) * max(len(paths), 1.3)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(paths)
    for number, path in enumerate(paths):
        for row, image in enumerate(images):
            if (image, path) not in parts.index:
                continue
            place, begin = row + (number - (len(paths) - 1) / 2) * height, 0.0
            for name, strength in zip(SNAPSHOT_STEPS, (0.55, 1.0), strict=True):
                length = float(parts.loc[(image, path), f"{name}_seconds"]) / one
                axes.barh(place, length, height * 0.86, left=begin, color=_colour(path), alpha=strength)
                begin += length
            _write(axes, begin, place, shown.seconds(begin * one))
    axes.set_yticks(range(len(images)), images)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.1)
    axes.set_xlabel(f"{unit}  (median; pale: upload, full: until the snapshot is complete)")
    tidy(axes, grid="x")
    _legend(axes, paths)
    return figure


def _finished(steps: pd.DataFrame) -> pd.DataFrame:
    finished = measured(steps)
    return finished.assign(via=finished["via"].fillna(NO_PATH))


def _in_order(finished: pd.DataFrame) -> list[str]:
    """Return the steps in the order in which a run takes them: by their mean place in their runs."""
    places = finished.groupby("run_id").cumcount()
    return list(places.groupby(finished["step"]).mean().sort_values(kind="stable").index)


def _panel(axes: Axes, rows: pd.DataFrame, name: str, paths: list[str]) -> None:
    unit, one = duration_unit(float(rows["seconds"].max()))
    ends: list[tuple[float, Any, str, str]] = []
    for path in paths:
        # Images differ in size, so each has a line of its own.
        for image, line in rows[rows["via"] == path].groupby("image", dropna=False, sort=False):
            when, took = line["started_at"].to_numpy(), line["seconds"].to_numpy() / one
            few = len(line) < SMOOTH  # hardly a median yet, so the dots must be seen themselves
            size, alpha = (5.0, 0.9) if few else (3.2, 0.3)
            style = {"color": _colour(path), "markeredgewidth": 0, "markersize": size, "alpha": alpha}
            axes.plot(when, took, linestyle="", marker="o", **style)  # type: ignore[arg-type]
            smooth = (line["seconds"].rolling(SMOOTH, min_periods=3, center=True).median() / one).to_numpy()
            axes.plot(when, smooth, linewidth=1.5, color=_colour(path))
            ends.append((float(smooth[-1]), when[-1], "" if image != image else str(image), path))
    late = rows[rows["is_slow"]]
    axes.plot(
        late["started_at"].to_numpy(),
        late["seconds"].to_numpy() / one,
        linestyle="",
        marker="o",
        markersize=8,
        markerfacecolor="none",
        markeredgewidth=1.3,
        markeredgecolor=ALARM,
    )
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    _name_lines(axes, ends)
    axes.locator_params(axis="y", nbins=4)
    axes.set_ylabel(unit, rotation=0, ha="right", va="center")
    axes.set_title(name, loc="left", fontsize=10, color=INK)
    tidy(axes, grid="y")


def _name_lines(axes: Axes, ends: list[tuple[float, Any, str, str]]) -> None:
    """Write each image's name beside the end of its lines, where there is room for it."""
    room, taken = 0.11 * axes.get_ylim()[1], -1.0
    for height, when, name, path in sorted(ends, key=lambda end: end[0] if end[0] == end[0] else -1.0):
        if name and height == height and height - taken >= room:
            _write(axes, when, height, name, colour=_colour(path))
            taken = height


def _write(axes: Axes, x: Any, y: float, words: str, *, colour: str = INK) -> None:
    axes.annotate(
        words, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5, color=colour
    )


def _legend(axes: Axes, paths: list[str], *, slow: bool = False) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], marker="s", linestyle="", markersize=8, color=_colour(path), label=path)
        for path in paths
    ]
    if slow:
        ring = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgecolor": ALARM}
        handles.append(Line2D([], [], linestyle="", label="slow by its own history", **ring))  # type: ignore[arg-type]
    if paths == [NO_PATH] and not slow:
        return
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=SOFT,
        borderaxespad=0.1,
        handletextpad=0.3,
    )


def _path_order(path: str) -> tuple[int, str]:
    known = list(PATH_COLOURS)
    return (known.index(path) if path in known else len(known), path)


def _colour(path: str) -> str:
    return PATH_COLOURS.get(path, OTHER_COLOUR)
