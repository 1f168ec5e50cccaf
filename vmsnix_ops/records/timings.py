"""Durations of steps: percentiles, rates, trends, slow steps, and a comparison of direct upload and import.

Only steps that changed something are timed; reused and failed steps are only counted.
`vmsnix_ops.records.timing_plots` draws the plots.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, errors, outcomes
from vmsnix_ops.disk.image import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from vmsnix_ops.records.tables import Tables


# A step is slow by comparison with its history: the latest finished steps, `FEWEST` to `WINDOW`, of the same
# step, image, region and method (via), with a similar amount of work. The amount of work of a build is the
# number of digits of its `items` (0, 1 to 9, 10 to 99, ...), so that builds without a cache are compared with
# each other. Durations vary by factors, so the limit is
#
#     median · max(`FACTOR`, exp(`DEVIATIONS` · 1.4826 · MAD of the logarithms))
#
# where the median absolute deviation (MAD) is robust against outliers. The limit is at least `ABOVE_P90`
# times the 90th percentile, so that a duration of every tenth step is no alarm. For a step that transferred
# more bytes than usual, the limit grows by the same factor. A step within `SECONDS` of the median is never
# slow.

WINDOW, FEWEST = 50, 8
"""Maximum and minimum number of earlier steps in a history."""

FACTOR, DEVIATIONS, ABOVE_P90, SECONDS = 1.5, 4.0, 1.25, 1.0
"""Parts of the limit: factor of the median, standard deviations, factor of the 90th percentile, seconds."""

GROUP = ("step", "via", "image", "region")
"""Columns that group steps."""

BY = (*GROUP, "account", "endpoint", "digest", "run_id")
"""All columns by which steps can be grouped."""

PERCENTILES = (0.5, 0.9, 0.99)

COLUMNS = ("run_id", *GROUP, "status", "started_at", "seconds", "bytes", "items")
"""Columns of the table `steps` that are needed to find slow steps."""


@dataclass(frozen=True, slots=True)
class SlowStep:
    """A step that was slower than its history."""

    step: str
    seconds: float
    usual_seconds: float  # median of the history
    limit_seconds: float
    earlier: int  # number of steps in the history

    def __str__(self) -> str:
        usual = f"usual: {display.seconds(self.usual_seconds)} (median of {self.earlier} earlier steps)"
        return f"{self.step} took {display.seconds(self.seconds)}; {usual}"

    def as_dict(self) -> dict[str, Any]:
        """Return the values for ``result.json``, with a sentence as ``text``."""
        return {**asdict(self), "text": str(self)}


def slow_steps(tables: Tables, run_id: str, *, image: str, region: str, via: str) -> tuple[SlowStep, ...]:
    """Return the slow steps of a run in their order; none without a history."""
    same = {"image": image, "region": region, "via": via}
    where = [*((name, "==", value) for name, value in same.items()), ("status", "in", outcomes.WORKED)]
    found = finished_steps(tables.read("steps", columns=COLUMNS, where=where))
    late = found[found["is_slow"] & (found["run_id"] == run_id)]
    return tuple(
        SlowStep(
            str(row["step"]),
            round(float(row["seconds"]), 3),
            round(float(row["usual_seconds"]), 3),
            round(float(row["limit_seconds"]), 3),
            int(row["earlier"]),
        )
        for row in late.to_dict("records")
    )


def finished_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the finished steps, oldest first, each compared with its history.

    `steps` are rows of the table `steps` in any order; without the column `items` they have the same amount
    of work. New columns: ``usual_seconds`` and ``limit_seconds`` (empty if the history is too short),
    ``earlier`` (number of steps in the history) and ``is_slow``.
    """
    import numpy as np

    ordered = steps.sort_values("started_at", kind="stable")
    worked = ordered["status"].isin(outcomes.WORKED)
    finished = ordered[worked & ordered["seconds"].notna()].reset_index(drop=True)
    seconds = finished["seconds"].to_numpy(dtype="float64")
    moved = np.asarray(finished["bytes"].to_numpy(dtype="float64", na_value=np.nan))
    usual, limit = np.full(len(finished), np.nan), np.full(len(finished), np.nan)
    earlier = np.zeros(len(finished), dtype="int64")
    alike = [*(finished[name] for name in GROUP), _magnitude(finished)]
    for rows in finished.groupby(alike, dropna=False, sort=False).indices.values():
        usual[rows], limit[rows], earlier[rows] = _history(seconds[rows], moved[rows])
    return finished.assign(
        usual_seconds=usual,
        limit_seconds=limit,
        earlier=earlier,
        is_slow=(seconds > limit) & (seconds > usual + SECONDS),
    )


def _magnitude(steps: pd.DataFrame) -> NDArray[np.int64]:
    """Return the number of digits of the amount of work: 0 for no work, -1 if it is unknown."""
    import numpy as np

    if "items" not in steps:
        return np.full(len(steps), -1)
    items = np.asarray(steps["items"].to_numpy(dtype="float64", na_value=-1.0))
    digits = np.searchsorted(10.0 ** np.arange(18), items, side="right")
    return np.where(items < 0, -1, digits)


def _history(
    seconds: NDArray[np.float64], moved: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return median, limit and number of the earlier steps for each step of one group."""
    import numpy as np

    count = len(seconds)
    earlier = np.minimum(np.arange(count), WINDOW)
    usual, limit = np.full(count, np.nan), np.full(count, np.nan)
    if count <= FEWEST:
        return usual, limit, earlier
    # Row n has the WINDOW values before step n in ascending order; missing values are NaN and come last. Zero
    # has no logarithm.
    enough = slice(FEWEST, None)
    logs = np.sort(_before(np.log(np.maximum(seconds, 1e-3)))[enough], axis=1)
    middle = np.nanmedian(logs, axis=1)
    deviation = 1.4826 * np.nanmedian(np.abs(logs - middle[:, None]), axis=1)
    ninth = np.take_along_axis(logs, (0.9 * (earlier[enough] - 1)).astype(int)[:, None], axis=1)[:, 0]
    usual[enough] = np.exp(middle)
    # A step with more bytes than usual may take longer. Without known bytes the factor is 1.
    known = np.where(moved > 0, moved, np.nan)
    before = _before(known)[enough]
    comparable = ~np.isnan(before).all(axis=1)
    more = np.ones(len(before))
    ratio = known[enough][comparable] / np.nanmedian(before[comparable], axis=1)
    more[comparable] = np.fmax(1.0, ratio)
    spread = usual[enough] * np.maximum(FACTOR, np.exp(DEVIATIONS * deviation))
    limit[enough] = np.maximum(spread, ABOVE_P90 * np.exp(ninth)) * more
    return usual, limit, earlier


def _before(values: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    padded = np.concatenate([np.full(WINDOW, np.nan), values])[:-1]
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW)


NEWEST = 10
"""Number of latest steps that a trend compares with the earlier ones."""

SNAPSHOT_STEPS = ("upload", "import")
"""The steps from an image file to its snapshot, of both methods."""


def _checked(by: str | Sequence[str], known: Sequence[str] = BY) -> list[str]:
    """Return the columns to group by; refuse an empty list and unknown columns."""
    keys = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    keys = ["via" if name == "method" else name for name in keys]
    for name in keys:
        if name not in known:
            raise errors.ParameterError(
                f"Steps cannot be grouped by {name!r}.",
                why=errors.nearest(str(name), known),
                fix=f"Set by to some of {', '.join(known)}.",
            )
    if not keys:
        raise errors.ParameterError(
            "by is empty: there is no column to group the steps by.",
            fix=f"Set by to some of {', '.join(known)}.",
        )
    return keys


def _percentile_columns(percentiles: float | Sequence[float]) -> dict[str, float]:
    """Return the column of each percentile: 0.95 is ``p95_seconds``."""
    given = [percentiles] if isinstance(percentiles, int | float) else list(percentiles)
    for one in given:
        if not isinstance(one, int | float) or isinstance(one, bool) or not 0 <= one <= 1:
            hint = f"Use {one / 100:g} for the percentile {one:g}." if _is_percent(one) else ""
            raise errors.ParameterError(
                f"Invalid percentile {one!r}.",
                why="A percentile is a number from 0 to 1.",
                fix=hint or "Use numbers such as 0.5 and 0.95.",
            )
    return {f"p{100 * one:g}_seconds": float(one) for one in given}


def _is_percent(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 < value <= 100


def summary(
    steps: pd.DataFrame,
    *,
    by: str | Sequence[str] = GROUP,
    percentiles: float | Sequence[float] = PERCENTILES,
) -> pd.DataFrame:
    """Return one row per step, method, image and region.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order.
    by
        Columns of `BY` to group by; ``["step", "via"]`` combines images and regions. Slow steps are always
        found by comparison with the same image and region.
    percentiles
        Numbers from 0 to 1.

    Returns
    -------
    DataFrame
        In the order of the steps in a run: the columns of `by`; the numbers ``count`` (finished), ``failed``
        and ``reused``; a column for each percentile, such as ``p50_seconds``; ``max_seconds``;
        ``last_seconds``; ``change`` (median of the latest `NEWEST` divided by that of the earlier ones, minus
        one); ``bytes`` (of the last step), ``mib_per_second`` and ``seconds_per_gib`` (of all steps with
        bytes); ``slow`` (number of slow steps), ``last_slow`` (whether the last step is slow). Unknown values
        are empty.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        `by` is empty or contains an unknown column, or a percentile is not from 0 to 1.
    """
    import pandas as pd

    keys, columns = _checked(by), _percentile_columns(percentiles)
    ordered = steps.sort_values("started_at", kind="stable")
    groups = ordered.groupby(keys, dropna=False, sort=False)
    counts = (
        pd.DataFrame({name: ordered["status"].isin(statuses) for name, statuses in _COUNTED.items()})
        .groupby([ordered[name] for name in keys], dropna=False, sort=False)
        .sum()
    )
    finished = finished_steps(ordered)
    by_group = finished.groupby(keys, dropna=False, sort=False)
    seconds = by_group["seconds"]
    # Only steps with bytes and a duration have a rate.
    moved = finished[(finished["bytes"] > 0) & (finished["seconds"] > 0)]
    totals = moved.groupby(keys, dropna=False, sort=False)[["bytes", "seconds"]].sum().astype("float64")
    figures = pd.DataFrame(
        {
            **{name: seconds.quantile(value) for name, value in columns.items()},
            "max_seconds": seconds.max(),
            "last_seconds": seconds.last(),
            "change": seconds.agg(_change),
            "bytes": by_group["bytes"].last(),
            "mib_per_second": totals["bytes"] / MIB / totals["seconds"],
            "seconds_per_gib": totals["seconds"] / (totals["bytes"] / GIB),
            "slow": by_group["is_slow"].sum(),
            "last_slow": by_group["is_slow"].last(),
        }
    )
    order = groups["started_at"].first().index
    table = counts.join(figures).reindex(order).reset_index()
    table["slow"] = table["slow"].fillna(0).astype("int64")
    table["last_slow"] = table["last_slow"].astype("boolean").fillna(value=False).astype("bool")
    table["bytes"] = table["bytes"].astype("Int64")
    return table


def slow(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the slow steps, newest first, with the columns of `finished_steps`."""
    finished = finished_steps(steps)
    return finished[finished["is_slow"]].sort_values("started_at", ascending=False, ignore_index=True)


def _change(seconds: pd.Series[Any]) -> float:
    before, latest = seconds.iloc[:-NEWEST], seconds.iloc[-NEWEST:]
    if len(before) < FEWEST or not before.median():
        return float("nan")
    return float(latest.median() / before.median() - 1)


def trend(steps: pd.DataFrame, *, every: str = "W-MON", by: str | Sequence[str] = GROUP) -> pd.DataFrame:
    """Return the medians over time.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order.
    every
        Length of a period as a pandas frequency: ``"D"``, ``"W-MON"`` (weeks that start on Monday), ``"MS"``.
    by
        Columns of `BY` to group by.

    Returns
    -------
    DataFrame
        The columns of `by`, ``period`` (its start, UTC), ``count``, ``p50_seconds``, ``p90_seconds``, without
        periods that have no finished step.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        `every` is not a pandas frequency; or as for `summary`.
    """
    import pandas as pd

    keys, finished = _checked(by), finished_steps(steps)
    try:
        begin = pd.Grouper(key="started_at", freq=every, label="left", closed="left")
    except ValueError as error:
        raise errors.ParameterError(
            f"Invalid length of time {every!r}.",
            why=f"{error}.",
            fix="Use D (days), W-MON (weeks that start on Monday) or MS (months).",
        ) from error
    seconds = finished.groupby([*keys, begin], dropna=False)["seconds"]
    table = pd.DataFrame(
        {
            "count": seconds.size(),
            "p50_seconds": seconds.quantile(0.5),
            "p90_seconds": seconds.quantile(0.9),
        }
    )
    table = table[table["count"] > 0]
    return table.reset_index().rename(columns={"started_at": "period"})


def snapshots(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the durations of upload and import, one row per run that created a snapshot.

    Columns: ``run_id``, ``image``, ``region``, ``via``, ``started_at``, ``upload_seconds``,
    ``import_seconds``, ``seconds`` (their sum), ``sent_bytes``, ``image_bytes``, and for each GiB of the
    image ``upload_seconds_per_gib``, ``import_seconds_per_gib`` and ``seconds_per_gib``. Runs that reused the
    upload or the snapshot are left out.
    """
    import pandas as pd

    done = steps[steps["step"].isin(SNAPSHOT_STEPS) & steps["status"].isin(outcomes.WORKED)]
    done = done.sort_values("started_at", kind="stable").drop_duplicates(["run_id", "step"], keep="last")
    upload, making = (done[done["step"] == name].set_index("run_id") for name in SNAPSHOT_STEPS)
    both = upload.add_suffix("_upload").join(making.add_suffix("_import"), how="inner")
    image = both["bytes_import"].astype("Float64").astype("float64")
    gib = image.where(image > 0) / GIB
    seconds = both["seconds_upload"] + both["seconds_import"]
    table = pd.DataFrame(
        {
            "image": both["image_import"],
            "region": both["region_import"],
            "via": both["via_import"],
            "started_at": both["started_at_upload"],
            "upload_seconds": both["seconds_upload"],
            "import_seconds": both["seconds_import"],
            "seconds": seconds,
            "sent_bytes": both["bytes_upload"],
            "image_bytes": both["bytes_import"],
            "upload_seconds_per_gib": both["seconds_upload"] / gib,
            "import_seconds_per_gib": both["seconds_import"] / gib,
            "seconds_per_gib": seconds / gib,
        }
    )
    return table.reset_index().sort_values("started_at", ignore_index=True)


def compare(steps: pd.DataFrame, *, by: Sequence[str] = ("image", "region")) -> pd.DataFrame:
    """Compare direct upload and import by the seconds for each GiB of the image.

    The time for a whole image does not compare the methods: images grow, and teams change the method later.

    Returns
    -------
    DataFrame
        One row per image and region; with the prefixes ``import_`` and ``direct_``: ``count``,
        ``seconds_per_gib``, ``p50_seconds`` and ``p90_seconds`` (from the image file to the finished
        snapshot), ``image_bytes`` and ``sent_bytes`` (medians); and ``times_as_fast``, the seconds for a GiB
        of import divided by those of direct. Values of a method without runs are empty.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        As for `summary`.
    """
    import pandas as pd

    made, keys = snapshots(steps), _checked(by, ("image", "region"))
    parts = []
    for via in ("import", "direct"):
        groups = made[made["via"] == via].groupby(keys, dropna=False, sort=False)
        part = pd.DataFrame(
            {
                "count": groups.size(),
                "seconds_per_gib": groups["seconds_per_gib"].median(),
                "p50_seconds": groups["seconds"].quantile(0.5),
                "p90_seconds": groups["seconds"].quantile(0.9),
                "image_bytes": groups["image_bytes"].median(),
                "sent_bytes": groups["sent_bytes"].median(),
            }
        )
        parts.append(part.add_prefix(f"{via}_"))
    table = parts[0].join(parts[1], how="outer")
    for column in ("import_count", "direct_count"):
        table[column] = table[column].fillna(0).astype("int64")
    table["times_as_fast"] = table["import_seconds_per_gib"] / table["direct_seconds_per_gib"]
    return table.reset_index()


def show_summary(table: pd.DataFrame) -> display.DisplayTable:
    """Return a `summary` as a table for display."""
    keys = [name for name in BY if name in table]
    percentiles = [name for name in map(str, table) if re.fullmatch(r"p[\d.]+_seconds", name)]
    rows = [
        [
            *(row[name] for name in keys),
            row["count"],
            *(display.seconds(row[name]) for name in (*percentiles, "max_seconds", "last_seconds")),
            display.change(row["change"]),
            display.quantity(row["seconds_per_gib"], "s/GiB"),
            display.quantity(row["mib_per_second"], "MiB/s"),
            row["failed"] or "",
            row["reused"] or "",
            f"{row['slow']}{', the last too' if row['last_slow'] else ''}" if row["slow"] else "",
        ]
        for row in table.to_dict("records")
    ]
    shown = [name.removesuffix("_seconds") for name in percentiles]
    figures = ("n", *shown, "longest", "last", "trend", "per GiB", "rate")
    columns = [*(_HEADINGS.get(name, name) for name in keys), *figures, "failed", "reused", "slow"]
    return replace(
        display.make_table(columns, rows, right=columns[len(keys) : -1], nothing=_NOTHING), values=table
    )


def show_slow(table: pd.DataFrame) -> display.DisplayTable:
    """Return `slow` steps as a table for display."""
    rows = [
        [
            display.moment(row["started_at"]),
            *(row[name] for name in GROUP),
            display.seconds(row["seconds"]),
            display.seconds(row["usual_seconds"]),
            display.seconds(row["limit_seconds"]),
            row["run_id"],
        ]
        for row in table.to_dict("records")
    ]
    columns = ("started (UTC)", "step", "method", "image", "region", "took", "usual", "limit", "run")
    return replace(
        display.make_table(columns, rows, right=("took", "usual", "limit"), nothing="No slow steps."),
        values=table,
    )


def show_compare(table: pd.DataFrame) -> display.DisplayTable:
    """Return a `compare` frame as a table for display."""
    rows = [
        [
            row["image"],
            row["region"],
            *(
                cell
                for via in ("import", "direct")
                for cell in (
                    row[f"{via}_count"],
                    display.quantity(row[f"{via}_seconds_per_gib"], "s/GiB"),
                    display.seconds(row[f"{via}_p50_seconds"]),
                    display.size(row[f"{via}_image_bytes"]),
                    display.size(row[f"{via}_sent_bytes"]),
                )
            ),
            display.quantity(row["times_as_fast"], "x"),
        ]
        for row in table.to_dict("records")
    ]
    parts = [
        f"{via}: {name}" for via in ("import", "direct") for name in ("n", "per GiB", "p50", "size", "sent")
    ]
    columns = ("image", "region", *parts, "speed-up per GiB")
    nothing = "No finished snapshots of this kind."
    return replace(display.make_table(columns, rows, right=columns[2:], nothing=nothing), values=table)


def show_steps(steps: pd.DataFrame, *, last: int = 20) -> display.DisplayTable:
    """Return the newest steps as a table for display."""
    newest = steps.sort_values("started_at", ascending=False, kind="stable").head(last)
    rows = [
        [
            display.moment(row["started_at"]),
            row["step"],
            row["status"],
            row["via"],
            row["image"],
            row["region"],
            display.seconds(row["seconds"]),
            display.size(row["bytes"]),
            row["run_id"],
        ]
        for row in newest.to_dict("records")
    ]
    columns = ("started (UTC)", "step", "status", "method", "image", "region", "took", "bytes", "run")
    return replace(display.make_table(columns, rows, right=("took", "bytes"), nothing=_NOTHING), values=steps)


_COUNTED: dict[str, tuple[str, ...]] = {
    "count": outcomes.WORKED,
    "failed": ("failed",),
    "reused": ("reused", "unchanged"),
}
_HEADINGS = {"via": "method"}
_NOTHING = "No steps of this kind."
