"""Questions to the tables: which runs, which steps, which AMIs. Every answer is a frame, newest first.

The columns are those of `vmsnix_ops.records.schemas`; a filter left out lets everything pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.display import Displayed
from vmsnix_ops.errors import UsageError
from vmsnix_ops.progress import counted
from vmsnix_ops.region_names import known_regions

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd

    from vmsnix_ops.records.tables import Tables


def runs(
    tables: Tables,
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
        Where they are kept.
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
    tables: Tables,
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
        Where they are kept.
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
    tables: Tables,
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
        Where they are kept.
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
    tables: Tables,
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
    """Return what was retired, restored and removed, the latest first.

    Parameters
    ----------
    tables
        Where they are kept.
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


def _matching(
    tables: Tables,
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
    return tables.read(table, where=where)


def _moment(since: datetime | timedelta | None) -> datetime | None:
    if isinstance(since, timedelta):
        from datetime import UTC, datetime

        return datetime.now(UTC) - since
    if since is not None and since.utcoffset() is None:
        raise UsageError(
            f"The time {since.isoformat()} has no time zone.",
            why="The tables are in UTC, and a guess would be hours off.",
            cure=f"Write {since.isoformat()}+00:00 for UTC.",
        )
    return since


def _newest(frame: pd.DataFrame, column: str, last: int | None) -> pd.DataFrame:
    if last is not None and last < 0:
        raise UsageError(
            f"last={last} is not a number of rows.", why="It is negative.", cure="Give 0 or more."
        )
    frame = frame.sort_values(column, ascending=False, kind="stable", ignore_index=True)
    return frame if last is None else frame.head(last)


# The steps that somebody asks for, and a word about it when there are none.


PATHS = ("import", "direct")
"""The two ways to a snapshot, as the column `via` has them."""


@dataclass(frozen=True, slots=True)
class Chosen(Displayed):
    """Steps that were asked for; shows itself as one line: how many there are, or why there are none.

    Attributes
    ----------
    steps
        Rows of the table `steps`, newest first.
    words
        That line.
    """

    steps: pd.DataFrame
    words: str

    def notes(self) -> tuple[str]:
        """Return that line."""
        return (self.words,)


@typed
def choose(tables: Tables, *, image: str = "", region: str = "", via: str = "") -> Chosen:
    """Return the steps of an image, a region and a path; of all where nothing is given.

    An image or a region of which nothing is recorded is no error: it may not have been published yet. The
    words say so, and name the nearest one that is recorded.

    Parameters
    ----------
    tables
        Where they are kept.
    image, region, via
        Only steps with this value.

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
            f"There is no path {via!r} to a snapshot.",
            why=errors.nearest(via, PATHS),
            cure=f"Use {' or '.join(map(repr, PATHS))}, or leave via out.",
        )
    wanted = {"image": image, "region": region, "via": via}
    found = steps(tables, image=image or None, region=region or None, via=via or None)
    if len(found):
        runs = counted(found["run_id"].nunique(), "run")
        return Chosen(found, f"{counted(len(found), 'step')} of {runs}{_of(wanted)}.")
    recorded = tables.read("steps", columns=list(wanted)).drop_duplicates()
    if recorded.empty:
        return Chosen(found, "No step has been recorded yet: publish an image first.")
    words = [f"The table has no step{_of(wanted)}."]
    for name, value in wanted.items():
        known = sorted(recorded[name].dropna().unique())
        if value and value not in known:
            words += [errors.nearest(value, known), f"Recorded {name}s: {', '.join(known)}."]
    return Chosen(found, " ".join(filter(None, words)))


def _of(wanted: dict[str, str]) -> str:
    told = [f"{_WORDS.get(name, name)} {value!r}" for name, value in wanted.items() if value]
    return f" of {', '.join(told)}" if told else ""


def _check_region(region: str) -> None:
    """Refuse a region that botocore does not know; AWS is not asked."""
    known = known_regions()
    if region not in known:
        raise errors.ParameterError(
            f"There is no AWS region {region!r}.",
            why=errors.nearest(region, known) or "botocore's list of regions does not have it.",
            cure="Check the name; if the region is brand new, update botocore.",
        )


_WORDS = {"via": "path"}
