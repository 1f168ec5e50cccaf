"""Which steps were slow, each by its own history.

A history is the latest finished steps, `WINDOW` at most and `FEWEST` at least, of the same step, image,
region and path (via), and of the same amount of work: what a build had to build and to fetch (`items`) is
told apart by order of magnitude (nothing, 1 to 9, 10 to 99, ...), so that a build without a cache is held
against builds without a cache. Durations vary by factors rather than by differences, so the limit is

    median · max(`FACTOR`, exp(`DEVIATIONS` · 1.4826 · MAD of the logarithms))

with the median absolute deviation (MAD), which a few outliers do not move, as the measure of what is usual;
and never below `ABOVE_P90` times the 90th percentile, so that what more than every tenth one does is no alarm
each time. A step that moved more bytes than usual is given as many times the limit, and nothing that took
less than `SECONDS` more than usual is called slow.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from vmsnix_ops.records.tables import Tables

WINDOW, FEWEST = 50, 8
"""How many earlier steps are a history: at most, and at least."""

FACTOR, DEVIATIONS, ABOVE_P90, SECONDS = 1.5, 4.0, 1.25, 1.0
"""Times the median, robust standard deviations, times the 90th percentile, seconds more than usual."""

GROUP = ("step", "via", "image", "region")
"""What tells steps apart."""

COLUMNS = ("run_id", *GROUP, "status", "started_at", "seconds", "bytes", "items")
"""Columns of the table `steps` that tell what was slow."""


@dataclass(frozen=True, slots=True)
class SlowStep:
    """A step that was slow by its own history.

    Attributes
    ----------
    step
        Its name.
    seconds, usual_seconds, limit_seconds
        What it took, the median of its history, and what would still have been usual.
    earlier
        How many earlier steps are that history.
    """

    step: str
    seconds: float
    usual_seconds: float
    limit_seconds: float
    earlier: int

    def __str__(self) -> str:
        usual = f"usual is {display.seconds(self.usual_seconds)}, by the {self.earlier} before it"
        return f"{self.step} took {display.seconds(self.seconds)}; {usual}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, as ``result.json`` holds it, with the sentence that tells it."""
        return {**asdict(self), "text": str(self)}


def of_run(tables: Tables, run_id: str, *, image: str, region: str, via: str) -> tuple[SlowStep, ...]:
    """Return the steps of a run that were slow, in their order; none without a history.

    Reads only the finished steps of that image, region and path.

    Parameters
    ----------
    tables
        Where the steps are recorded, those of this run too.
    run_id
        The run.
    image, region, via
        What it published, where and which way.

    Raises
    ------
    vmsnix_ops.errors.RecordsError
        When the table cannot be read.
    """
    same = {"image": image, "region": region, "via": via, "status": "finished"}
    where = [(name, "==", value) for name, value in same.items()]
    found = measured(tables.read("steps", columns=COLUMNS, where=where))
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


def measured(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the finished steps, oldest first, each held against those before it.

    Parameters
    ----------
    steps
        Rows of the table `steps`, in any order; without the column `items` all are the same amount of work.

    Returns
    -------
    DataFrame
        The rows with ``usual_seconds`` and ``limit_seconds`` (empty while the history is too short),
        ``earlier`` (how many earlier ones count) and ``is_slow`` added.
    """
    import numpy as np

    ordered = steps.sort_values("started_at", kind="stable")
    finished = ordered[(ordered["status"] == "finished") & ordered["seconds"].notna()].reset_index(drop=True)
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
    """Return how many digits the amount of work has: 0 for none at all, -1 where nobody tells."""
    import numpy as np

    if "items" not in steps:
        return np.full(len(steps), -1)
    items = np.asarray(steps["items"].to_numpy(dtype="float64", na_value=-1.0))
    digits = np.searchsorted(10.0 ** np.arange(18), items, side="right")
    return np.where(items < 0, -1, digits)


def _history(
    seconds: NDArray[np.float64], moved: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return, for each step of one kind, the usual and the limit by those before it, and their number."""
    import numpy as np

    count = len(seconds)
    earlier = np.minimum(np.arange(count), WINDOW)
    usual, limit = np.full(count, np.nan), np.full(count, np.nan)
    if count <= FEWEST:
        return usual, limit, earlier
    # Row n holds the WINDOW values before step n in ascending order; what is not there yet is NaN and comes
    # last. A logarithm has no zero.
    enough = slice(FEWEST, None)
    logs = np.sort(_before(np.log(np.maximum(seconds, 1e-3)))[enough], axis=1)
    middle = np.nanmedian(logs, axis=1)
    deviation = 1.4826 * np.nanmedian(np.abs(logs - middle[:, None]), axis=1)
    ninth = np.take_along_axis(logs, (0.9 * (earlier[enough] - 1)).astype(int)[:, None], axis=1)[:, 0]
    usual[enough] = np.exp(middle)
    # Whoever moved more than usual may take longer; where it or those before do not tell, nothing is excused.
    known = np.where(moved > 0, moved, np.nan)
    before = _before(known)[enough]
    told = ~np.isnan(before).all(axis=1)
    more = np.ones(len(before))
    more[told] = np.fmax(1.0, known[enough][told] / np.nanmedian(before[told], axis=1))
    spread = usual[enough] * np.maximum(FACTOR, np.exp(DEVIATIONS * deviation))
    limit[enough] = np.maximum(spread, ABOVE_P90 * np.exp(ninth)) * more
    return usual, limit, earlier


def _before(values: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    padded = np.concatenate([np.full(WINDOW, np.nan), values])[:-1]
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
