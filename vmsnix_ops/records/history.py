"""Read what the tables recorded: runs, steps, AMIs, promotions, proofs, retirements, and durations of steps.

>>> from vmsnix_ops import history
>>> history.amis(image="ecs-node", last=3)  # doctest: +SKIP
>>> history.read(image="ecs-node").summary()  # doctest: +SKIP

A frame has the newest row first, and the columns of the page *Tables*. Without filters it has all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.errors import UsageError
from vmsnix_ops.progress import counted
from vmsnix_ops.records import timing_plots, timings
from vmsnix_ops.records.result import Result
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.region_names import known_regions
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import pandas as pd
    from matplotlib.figure import Figure

    from vmsnix_ops.display import DisplayTable

__all__ = ["Timings", "amis", "promotions", "proofs", "read", "retirements", "runs", "steps"]


def __dir__() -> list[str]:
    return __all__


def runs(
    tables: Tables | None = None,
    *,
    run_id: str | None = None,
    runbook: str | None = None,
    status: str | None = None,
    image: str | None = None,
    region: str | None = None,
    since: datetime | timedelta | None = None,
    last: int | None = None,
) -> pd.DataFrame:
    """Return runs, the latest start first.

    Parameters
    ----------
    tables
        The tables; by default those of the settings.
    run_id, runbook, status, image, region
        Only runs with this value.
    since
        Only runs that started at this time (with a time zone) or later, or within this duration.
    last
        Maximum number of rows.

    Raises
    ------
    UsageError
        `since` has no time zone, or `last` is negative.
    RecordsError
        The table cannot be read.
    """
    equal = {"run_id": run_id, "runbook": runbook, "status": status, "image": image, "region": region}
    return _select(tables, "runs", "started_at", since, last, **equal)


def steps(
    tables: Tables | None = None,
    *,
    run_id: str | None = None,
    step: str | None = None,
    status: str | None = None,
    image: str | None = None,
    region: str | None = None,
    via: str | None = None,
    since: datetime | timedelta | None = None,
    last: int | None = None,
) -> pd.DataFrame:
    """Return steps, the latest start first; the arguments are as for `runs`."""
    equal = {"run_id": run_id, "step": step, "status": status, "image": image, "region": region, "via": via}
    return _select(tables, "steps", "started_at", since, last, **equal)


def amis(
    tables: Tables | None = None,
    *,
    ami_id: str | None = None,
    name: str | None = None,
    image: str | None = None,
    region: str | None = None,
    run_id: str | None = None,
    digest: str | None = None,
    since: datetime | timedelta | None = None,
    last: int | None = None,
    all_rows: bool = False,
) -> pd.DataFrame:
    """Return the latest record of each AMI, newest first; the arguments are as for `runs`.

    The filters apply to the latest record. With `all_rows`, earlier records are returned too.
    """
    frame = _select(tables, "amis", "recorded_at", None, None, ami_id=ami_id, region=region)
    # Before the other filters: an earlier row of an AMI may match them when its latest does not.
    if not all_rows:
        frame = frame.drop_duplicates(["ami_id", "region"], keep="first")
    for column, value in {"name": name, "image": image, "run_id": run_id, "digest": digest}.items():
        if value is not None:
            frame = frame[frame[column] == value]
    if (earliest := _earliest(since)) is not None:
        frame = frame[frame["recorded_at"] >= earliest]
    return _newest(frame, "recorded_at", last)


def retirements(
    tables: Tables | None = None,
    *,
    resource_id: str | None = None,
    action: str | None = None,
    kind: str | None = None,
    image: str | None = None,
    region: str | None = None,
    run_id: str | None = None,
    since: datetime | timedelta | None = None,
    last: int | None = None,
) -> pd.DataFrame:
    """Return retirements, restorations and deletions, the latest first; the arguments are as for `runs`."""
    equal = {"action": action, "kind": kind, "image": image, "region": region, "run_id": run_id}
    return _select(tables, "retirements", "done_at", since, last, resource_id=resource_id, **equal)


def promotions(
    tables: Tables | None = None,
    *,
    ami_id: str | None = None,
    channel: str | None = None,
    image: str | None = None,
    region: str | None = None,
    run_id: str | None = None,
    since: datetime | timedelta | None = None,
    last: int | None = None,
) -> pd.DataFrame:
    """Return promotions and rollbacks, the latest first; the arguments are as for `runs`."""
    equal = {"ami_id": ami_id, "channel": channel, "image": image, "region": region, "run_id": run_id}
    return _select(tables, "promotions", "promoted_at", since, last, **equal)


def proofs(
    tables: Tables | None = None,
    *,
    ami_id: str | None = None,
    verdict: str | None = None,
    region: str | None = None,
    run_id: str | None = None,
    since: datetime | timedelta | None = None,
    last: int | None = None,
) -> pd.DataFrame:
    """Return the verdicts of proofs, the latest first; the arguments are as for `runs`."""
    equal = {"ami_id": ami_id, "verdict": verdict, "region": region, "run_id": run_id}
    return _select(tables, "proofs", "proved_at", since, last, **equal)


def _open(tables: Tables | None) -> Tables:
    return open_tables(load()) if tables is None else tables


def _select(
    tables: Tables | None,
    table: str,
    time: str,
    since: datetime | timedelta | None,
    last: int | None,
    **equal: str | None,
) -> pd.DataFrame:
    """Return the rows with these values, the newest in the column `time` first."""
    where: list[tuple[str, str, object]] = [(k, "==", v) for k, v in equal.items() if v is not None]
    if (earliest := _earliest(since)) is not None:
        where.append((time, ">=", earliest))
    return _newest(_open(tables).read(table, where=where), time, last)


def _earliest(since: datetime | timedelta | None) -> datetime | None:
    if isinstance(since, timedelta):
        from datetime import UTC, datetime

        return datetime.now(UTC) - since
    if since is not None and since.utcoffset() is None:
        raise UsageError(
            f"The time {since.isoformat()} has no time zone.",
            why="The tables are in UTC. A local time would be wrong by hours.",
            fix=f"Use {since.isoformat()}+00:00 for UTC.",
        )
    return since


def _newest(frame: pd.DataFrame, column: str, last: int | None) -> pd.DataFrame:
    if last is not None and last < 0:
        raise UsageError(f"last={last} is not a number of rows.", why="It is negative.", fix="Use 0 or more.")
    frame = frame.sort_values(column, ascending=False, kind="stable", ignore_index=True)
    return frame if last is None else frame.head(last)


METHODS = ("import", "direct")
"""The methods that create a snapshot, as in the column `via`."""


@dataclass(frozen=True, slots=True)
class Timings(Result):
    """The durations of recorded steps.

    `vmsnix_ops.records.timings` documents the columns of the frames.

    Attributes
    ----------
    steps
        Rows of the table `steps`, newest first.
    text
        The number of steps, or why there are none.
    """

    runbook = "import-timings"
    steps: pd.DataFrame
    text: str

    def notes(self) -> tuple[str]:
        """Return `text`."""
        return (self.text,)

    def frame(self) -> pd.DataFrame:
        """Return the steps."""
        return self.steps

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        return {"status": "done", "recorded_steps": len(self.steps), "slow_steps": len(self.slow())}

    def summary(self, *, by: Sequence[str] = timings.GROUP) -> pd.DataFrame:
        """Return percentiles, trends and rates, one row for each step, method, image and region (or `by`)."""
        return timings.summary(self.steps, by=by)

    def slow(self) -> pd.DataFrame:
        """Return the steps that were slower than their history, newest first."""
        return timings.slow(self.steps)

    def trend(self, *, every: str = "W-MON", by: Sequence[str] = timings.GROUP) -> pd.DataFrame:
        """Return the medians of each week, or of another pandas period."""
        return timings.trend(self.steps, every=every, by=by)

    def compare(self) -> pd.DataFrame:
        """Compare direct upload with import, from the image file to the snapshot."""
        return timings.compare(self.steps)

    def show_summary(self) -> DisplayTable:
        """Return `summary` as a table for display."""
        return timings.show_summary(self.summary())

    def show_slow(self) -> DisplayTable:
        """Return `slow` as a table for display."""
        return timings.show_slow(self.slow())

    def show_compare(self) -> DisplayTable:
        """Return `compare` as a table for display."""
        return timings.show_compare(self.compare())

    def show_steps(self, *, last: int = 20) -> DisplayTable:
        """Return the newest steps as a table for display."""
        return timings.show_steps(self.steps, last=last)

    def plot_usual(self) -> Figure:
        """Draw the median and the 90th percentile of each step."""
        return timing_plots.plot_usual(self.steps)

    def plot_trend(self) -> Figure:
        """Draw a dot for each run, and the running median."""
        return timing_plots.plot_trend(self.steps)

    def plot_compare(self) -> Figure:
        """Draw direct upload and import side by side."""
        return timing_plots.plot_compare(self.steps)


@check_arguments
def read(*, image: str = "", region: str = "", via: str = "", tables: Tables | None = None) -> Timings:
    """Return the timings of an image, a region and a method; by default of all.

    An image or a region without steps is not an error: it may not be published yet. The result's `text` then
    suggests the most similar recorded name.

    Parameters
    ----------
    image, region, via
        Only steps with this value.
    tables
        The tables; by default those of the settings.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The region or the method does not exist.
    vmsnix_ops.errors.RecordsError
        The table cannot be read.
    """
    if region and region not in known_regions():
        raise errors.ParameterError(
            f"Unknown AWS region {region!r}.",
            why=errors.nearest(region, known_regions()) or "It is not in botocore's list of regions.",
            fix="Check the name; if the region is new, update botocore.",
        )
    if via and via not in METHODS:
        raise errors.ParameterError(
            f"Invalid method {via!r}.",
            why=errors.nearest(via, METHODS),
            fix=f"Use {' or '.join(map(repr, METHODS))}, or leave via out.",
        )
    tables = _open(tables)
    wanted = {"image": image, "region": region, "via": via}
    found = steps(tables, image=image or None, region=region or None, via=via or None)
    if len(found):
        runs = counted(found["run_id"].nunique(), "run")
        return Timings(found, f"{counted(len(found), 'step')} of {runs}{_of(wanted)}.")
    recorded = tables.read("steps", columns=list(wanted)).drop_duplicates()
    if recorded.empty:
        return Timings(found, "No steps yet. Publish an image first.")
    parts = [f"No steps{_of(wanted)}."]
    for name, value in wanted.items():
        known = sorted(recorded[name].dropna().unique())
        if value and value not in known:
            parts += [errors.nearest(value, known), f"Recorded {_label(name)}s: {', '.join(known)}."]
    return Timings(found, " ".join(filter(None, parts)))


def _of(wanted: dict[str, str]) -> str:
    parts = [f"{_label(name)} {value!r}" for name, value in wanted.items() if value]
    return f" of {', '.join(parts)}" if parts else ""


def _label(name: str) -> str:
    return "method" if name == "via" else name
