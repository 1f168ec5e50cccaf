"""Read what the tables recorded: runs, steps, AMIs, promotions, retirements, and how long steps took.

>>> from vmsnix_ops import history
>>> history.amis(image="ecs-node", last=3)  # doctest: +SKIP
>>> history.read(image="ecs-node").summary()  # doctest: +SKIP

A frame has the newest row first, and the columns of the page *Tables*. A filter that is left out lets every
row pass.
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

    from vmsnix_ops.display import Shown

__all__ = ["Timings", "amis", "promotions", "read", "retirements", "runs", "steps"]


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
    """Return runs, the one that started last first.

    Parameters
    ----------
    tables
        Where they are recorded; by default as ``vmsnix.toml`` says.
    run_id, runbook, status, image, region
        Only runs with this value.
    since
        Only runs that started at this time (with a time zone) or later, or at most so long ago.
    last
        Only so many, the newest.

    Raises
    ------
    UsageError
        When `since` has no time zone, or `last` is negative.
    RecordsError
        When the table cannot be read.
    """
    equal = {"run_id": run_id, "runbook": runbook, "status": status, "image": image, "region": region}
    return _newest(_matching(tables, "runs", equal, "started_at", since), "started_at", last)


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
    """Return steps, the one that started last first.

    Parameters
    ----------
    tables
        Where they are recorded; by default as ``vmsnix.toml`` says.
    run_id, step, status, image, region, via
        Only steps with this value.
    since, last
        As for `runs`.

    Raises
    ------
    UsageError
        When `since` has no time zone, or `last` is negative.
    RecordsError
        When the table cannot be read.
    """
    equal = {
        "run_id": run_id,
        "step": step,
        "status": status,
        "image": image,
        "region": region,
        "via": via,
    }
    return _newest(_matching(tables, "steps", equal, "started_at", since), "started_at", last)


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
    """Return AMIs as they were last recorded, the one recorded last first.

    Parameters
    ----------
    tables
        Where they are recorded; by default as ``vmsnix.toml`` says.
    ami_id, name, image, region, run_id, digest
        Only AMIs with this value in the row that counts.
    since, last
        As for `runs`, by the time of recording.
    all_rows
        Show every row that was ever recorded, not only the latest of each AMI and region.

    Raises
    ------
    UsageError
        When `since` has no time zone, or `last` is negative.
    RecordsError
        When the table cannot be read.
    """
    # Which row counts must be settled before rows are left out for what may differ between an AMI's rows;
    # its identity never does.
    frame = _matching(tables, "amis", {"ami_id": ami_id, "region": region}, "recorded_at", None)
    frame = _newest(frame, "recorded_at", None)
    if not all_rows:
        frame = frame.drop_duplicates(["ami_id", "region"], keep="first")
    for column, value in {"name": name, "image": image, "run_id": run_id, "digest": digest}.items():
        if value is not None:
            frame = frame[frame[column] == value]
    moment = _moment(since)
    if moment is not None:
        frame = frame[frame["recorded_at"] >= moment]
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
    """Return retirements, restorations and deletions, the latest first.

    Parameters
    ----------
    tables
        Where they are recorded; by default as ``vmsnix.toml`` says.
    resource_id, action, kind, image, region, run_id
        Only rows with this value.
    since, last
        As for `runs`, by the time when it was done.

    Raises
    ------
    UsageError
        When `since` has no time zone, or `last` is negative.
    RecordsError
        When the table cannot be read.
    """
    equal = {
        "resource_id": resource_id,
        "action": action,
        "kind": kind,
        "image": image,
        "region": region,
        "run_id": run_id,
    }
    return _newest(_matching(tables, "retirements", equal, "done_at", since), "done_at", last)


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
    """Return promotions and rollbacks, the latest first.

    Parameters
    ----------
    tables
        Where they are recorded; by default as ``vmsnix.toml`` says.
    ami_id, channel, image, region, run_id
        Only rows with this value.
    since, last
        As for `runs`, by the time when it was done.

    Raises
    ------
    UsageError
        When `since` has no time zone, or `last` is negative.
    RecordsError
        When the table cannot be read.
    """
    equal = {"ami_id": ami_id, "channel": channel, "image": image, "region": region, "run_id": run_id}
    return _newest(_matching(tables, "promotions", equal, "promoted_at", since), "promoted_at", last)


def _open(tables: Tables | None) -> Tables:
    return open_tables(load()) if tables is None else tables


def _matching(
    tables: Tables | None,
    table: str,
    equal: dict[str, str | None],
    column: str,
    since: datetime | timedelta | None,
) -> pd.DataFrame:
    where: list[tuple[str, str, object]] = [
        (name, "==", value) for name, value in equal.items() if value is not None
    ]
    moment = _moment(since)
    if moment is not None:
        where.append((column, ">=", moment))
    return _open(tables).read(table, where=where)


def _moment(since: datetime | timedelta | None) -> datetime | None:
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


PATHS = ("import", "direct")
"""The two ways to a snapshot, as the column `via` has them."""


@dataclass(frozen=True, slots=True)
class Timings(Result):
    """How long the steps of publishes took.

    It shows itself as one line: how many steps were found, or why none.

    The methods without ``show`` return frames; see `vmsnix_ops.records.timings` for their columns.

    Attributes
    ----------
    steps
        Rows of the table `steps`, newest first.
    words
        That line.
    """

    runbook = "import-timings"
    steps: pd.DataFrame
    words: str

    def notes(self) -> tuple[str]:
        """Return that line."""
        return (self.words,)

    def frame(self) -> pd.DataFrame:
        """Return the steps."""
        return self.steps

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        return {"status": "done", "recorded_steps": len(self.steps), "slow_steps": len(self.slow())}

    def summary(self, *, by: Sequence[str] = timings.GROUP) -> pd.DataFrame:
        """Return one row a step, path, image and region (or what `by` names): percentiles, trend, rates."""
        return timings.summary(self.steps, by=by)

    def slow(self) -> pd.DataFrame:
        """Return the steps that were slow by their own history, newest first."""
        return timings.slow(self.steps)

    def trend(self, *, every: str = "W-MON", by: Sequence[str] = timings.GROUP) -> pd.DataFrame:
        """Return the medians of each week, or of another period as pandas names it."""
        return timings.trend(self.steps, every=every, by=by)

    def compare(self) -> pd.DataFrame:
        """Return direct upload beside import, from the file of an image to its snapshot."""
        return timings.compare(self.steps)

    def show_summary(self) -> Shown:
        """Return `summary` for people."""
        return timings.show_summary(self.summary())

    def show_slow(self) -> Shown:
        """Return `slow` for people."""
        return timings.show_slow(self.slow())

    def show_compare(self) -> Shown:
        """Return `compare` for people."""
        return timings.show_compare(self.compare())

    def show_steps(self, *, last: int = 20) -> Shown:
        """Return the newest steps for people."""
        return timings.show_steps(self.steps, last=last)

    def plot_usual(self) -> Figure:
        """Draw the median and the 90th percentile of each step."""
        return timing_plots.plot_usual(self.steps)

    def plot_trend(self) -> Figure:
        """Draw each run as a dot, and their running median."""
        return timing_plots.plot_trend(self.steps)

    def plot_compare(self) -> Figure:
        """Draw direct upload beside import."""
        return timing_plots.plot_compare(self.steps)


@check_arguments
def read(*, image: str = "", region: str = "", via: str = "", tables: Tables | None = None) -> Timings:
    """Return the timings of an image, a region and a path; of all where nothing is given.

    An image or a region of which nothing is recorded is no error: it may not have been published yet. The
    words say so, and name the nearest one that is recorded.

    Parameters
    ----------
    image, region, via
        Only steps with this value.
    tables
        Where they are recorded; by default as ``vmsnix.toml`` says.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is no such region or path at all.
    vmsnix_ops.errors.RecordsError
        The table cannot be read.
    """
    if region:
        _check_region(region)
    if via and via not in PATHS:
        raise errors.ParameterError(
            f"Invalid method {via!r}.",
            why=errors.nearest(via, PATHS),
            fix=f"Use {' or '.join(map(repr, PATHS))}, or leave via out.",
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
    words = [f"No steps{_of(wanted)}."]
    for name, value in wanted.items():
        known = sorted(recorded[name].dropna().unique())
        if value and value not in known:
            words += [
                errors.nearest(value, known),
                f"Recorded {_WORDS.get(name, name)}s: {', '.join(known)}.",
            ]
    return Timings(found, " ".join(filter(None, words)))


def _of(wanted: dict[str, str]) -> str:
    told = [f"{_WORDS.get(name, name)} {value!r}" for name, value in wanted.items() if value]
    return f" of {', '.join(told)}" if told else ""


def _check_region(region: str) -> None:
    """Refuse a region that botocore does not know; AWS is not asked."""
    known = known_regions()
    if region not in known:
        raise errors.ParameterError(
            f"Unknown AWS region {region!r}.",
            why=errors.nearest(region, known) or "It is not in botocore's list of regions.",
            fix="Check the name; if the region is brand new, update botocore.",
        )


_WORDS = {"via": "method"}
