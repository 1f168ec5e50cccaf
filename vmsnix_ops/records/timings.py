"""What the steps cost in time: percentiles, rates, slow runs, and a picture of them.

Only finished steps count. A reused result took no time worth knowing, and a failed step did not do its
work; both are counted beside the figures.

A run is slow by its own history: a step took more than `SLOW_FACTOR` times the 90th percentile of the
earlier finished ones of the same step, path (via) and image, of which there must be `SLOW_SAMPLES` at
least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLOW_FACTOR = 1.5
"""How many times the 90th percentile a slow step takes."""

SLOW_SAMPLES = 5
"""Earlier finished steps that must be known before any is called slow."""

GROUP = ["step", "via", "image"]
ANY = "(no path)"
"""Stands for an empty ``via`` in pictures."""

INK = "#333a45"
GRID = "#d5d9e0"
COLOURS = ("#3b6fb6", "#e08a2e", "#7a8594")
# Okabe and Ito's colours, which people who see colours differently can tell apart.
STEP_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a8594", "#b8a800")
GIB = 2**30
MIB = 2**20


def summary(steps: pd.DataFrame) -> pd.DataFrame:
    """Return one row per step, path and image.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order.

    Returns
    -------
    DataFrame
        In the order in which the steps of a run follow each other, with the columns ``step``, ``via``,
        ``image``; ``count`` (finished), ``failed``, ``reused``; ``p50_seconds``, ``p90_seconds``,
        ``max_seconds``, ``last_seconds``; ``bytes`` (of the last one), ``mib_per_second`` and
        ``seconds_per_gib`` (over all that tell their bytes); ``slow`` (the last one is). Figures are empty
        where no finished step has them.
    """
    import pandas as pd

    ordered = steps.sort_values("started_at", kind="stable")
    groups = ordered.groupby(GROUP, dropna=False, sort=False)
    counts = (
        pd.DataFrame({status: ordered["status"] == status for status in ("finished", "failed", "reused")})
        .groupby([ordered[name] for name in GROUP], dropna=False, sort=False)
        .sum()
        .rename(columns={"finished": "count"})
    )
    finished = _finished(ordered)
    by_group = finished.groupby(GROUP, dropna=False, sort=False)
    seconds = by_group["seconds"]
    # A rate is only told by steps that moved something and took time.
    moved = finished[(finished["bytes"] > 0) & (finished["seconds"] > 0)]
    totals = moved.groupby(GROUP, dropna=False, sort=False)[["bytes", "seconds"]].sum().astype("float64")
    figures = pd.DataFrame(
        {
            "p50_seconds": seconds.quantile(0.5),
            "p90_seconds": seconds.quantile(0.9),
            "max_seconds": seconds.max(),
            "last_seconds": seconds.last(),
            "bytes": by_group["bytes"].last(),
            "mib_per_second": totals["bytes"] / MIB / totals["seconds"],
            "seconds_per_gib": totals["seconds"] / (totals["bytes"] / GIB),
            "slow": _slow(finished)
            .groupby([finished[name] for name in GROUP], dropna=False, sort=False)
            .last(),
        }
    )
    order = groups["started_at"].first().index
    whole = counts.join(figures).reindex(order).reset_index()
    whole["slow"] = whole["slow"].astype("boolean").fillna(value=False).astype("bool")
    whole["bytes"] = whole["bytes"].astype("Int64")
    return whole


def slow(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the finished steps that were slow by their own history when they ran, newest first.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order.

    Returns
    -------
    DataFrame
        The rows, with ``usual_seconds`` added: the 90th percentile of the earlier ones.
    """
    finished = _finished(steps.sort_values("started_at", kind="stable"))
    finished = finished.assign(usual_seconds=_usual(finished))
    return finished[_slow(finished)].sort_values("started_at", ascending=False, ignore_index=True)


def _finished(ordered: pd.DataFrame) -> pd.DataFrame:
    return ordered[(ordered["status"] == "finished") & ordered["seconds"].notna()].reset_index(drop=True)


def _usual(finished: pd.DataFrame) -> pd.Series[Any]:
    """Return, per finished step, the 90th percentile of the earlier ones; empty while they are too few."""

    def earlier(seconds: pd.Series[Any]) -> pd.Series[Any]:
        return seconds.shift(1).expanding(min_periods=SLOW_SAMPLES).quantile(0.9)

    return finished.groupby(GROUP, dropna=False, sort=False)["seconds"].transform(earlier)


def _slow(finished: pd.DataFrame) -> pd.Series[Any]:
    return finished["seconds"] > SLOW_FACTOR * _usual(finished)


def plot(steps: pd.DataFrame) -> Figure:
    """Return a picture of where the time goes, and of how that changed.

    On the left each step's usual seconds (a bar to the median, a whisker to the 90th percentile) by path;
    on the right every finished step over time, with a ring around the slow ones.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order; the images in them are taken together.

    Returns
    -------
    matplotlib.figure.Figure
        Made without pyplot, so nothing has to be closed; a notebook shows it when it is the last value of a
        cell, and ``figure.savefig(path)`` writes it.
    """
    from vmsnix_ops.records.figures import new_figure

    finished = _finished(steps.sort_values("started_at", kind="stable"))
    figure = new_figure(figsize=(11, 4.2), layout="constrained")
    if finished.empty:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No finished steps yet", ha="center", va="center", fontsize=13, color=INK)
        return figure
    usual, trend = figure.subplots(1, 2, width_ratios=[1, 1.3])
    finished = finished.assign(is_slow=_slow(finished), via=finished["via"].fillna(ANY))
    names = list(finished["step"].unique())
    _plot_usual(usual, finished, names)
    _plot_trend(trend, finished, names)
    for axes in (usual, trend):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(colors=INK, length=0)
        axes.set_axisbelow(True)
    return figure


def _plot_usual(axes: Axes, finished: pd.DataFrame, names: list[str]) -> None:
    paths = sorted(finished["via"].unique())
    height = 0.7 / len(paths)
    for number, path in enumerate(paths):
        seconds = finished[finished["via"] == path].groupby("step")["seconds"]
        median = seconds.quantile(0.5).reindex(names)
        high = seconds.quantile(0.9).reindex(names)
        colour = COLOURS[number % len(COLOURS)]
        label: str | None = path
        for index, name in enumerate(names):
            if median[name] != median[name]:  # NaN: this path has no such step
                continue
            place = index + (number - (len(paths) - 1) / 2) * height
            axes.barh(place, median[name], height * 0.9, color=colour, label=label)
            axes.plot([median[name], high[name]], [place, place], color=INK, linewidth=1)
            axes.annotate(
                _readable(median[name]),
                (high[name], place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
            label = None  # once in the legend
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.08)  # room for the figures
    axes.set_xlabel("seconds (bar: median, whisker: 90th percentile)", color=INK)
    axes.set_title("Where the time goes", loc="left", color=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    if paths != [ANY]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _plot_trend(axes: Axes, finished: pd.DataFrame, names: list[str]) -> None:
    import matplotlib.dates as mdates

    paths = sorted(finished["via"].unique())
    for number, name in enumerate(names):
        label: str | None = name
        for path, style in zip(paths, ("-", "--", ":"), strict=False):
            rows = finished[(finished["step"] == name) & (finished["via"] == path)]
            if rows.empty:
                continue
            axes.plot(
                rows["started_at"].to_numpy(),
                rows["seconds"].clip(lower=0.001).to_numpy(),  # a logarithmic axis has no zero
                linestyle=style,
                marker="o",
                markersize=4,
                linewidth=1,
                color=STEP_COLOURS[number % len(STEP_COLOURS)],
                label=label,
            )
            label = None
    if len(paths) > 1:
        for path, style in zip(paths, ("-", "--", ":"), strict=False):
            axes.plot([], [], linestyle=style, color=INK, linewidth=1, label=path)
    late = finished[finished["is_slow"]]
    if not late.empty:
        axes.plot(
            late["started_at"].to_numpy(),
            late["seconds"].to_numpy(),
            linestyle="",
            marker="o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor="#c0392b",
            label="slow",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    # matplotlib's dates have no type hints.
    locator = mdates.AutoDateLocator(minticks=3)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("started (UTC)", color=INK)
    axes.set_ylabel("seconds (logarithmic)", color=INK)
    axes.set_title("How it changed", loc="left", color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _readable(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f}"
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"
