"""Read the history as frames: the tables, and the results of runs in the archive.

>>> from vmsnix_ops import history
>>> history.runs(since="30D", status=["failed", "partial"])  # doctest: +SKIP
>>> history.amis(image="ecs-node", older_than="90D")  # doctest: +SKIP
>>> history.results("audit-inventory", since="12W")[["started_at", "findings_high"]]  # doctest: +SKIP
>>> history.timings(by=["step", "via"], percentiles=[0.5, 0.95])  # doctest: +SKIP

The functions open the tables of the settings. A frame has the newest row first, and the columns of the page
*Tables*; ``status`` and ``severity`` are ordered, so that ``frame["severity"] >= "high"`` works. Without
filters it has all rows.

Every text, count and flag of a table is a filter, with one value or a list. These arguments are common to all
functions:

``since``, ``until``
    Only rows of this time or later, and of this time or earlier: a duration before now (``"30D"``, ``"12h"``,
    ``"2W"``, a timedelta), a date (``until`` includes the day), or a datetime with a time zone.
``older_than``
    Only rows from before this time.
``endpoint``
    ``"aws"``, ``"sandbox"``, ``"custom"`` or ``"all"``. By default where the requests of this process are
    sent: AWS, unless AWS_ENDPOINT_URL or ``--sandbox`` selects a sandbox. ``"sandbox"`` and ``"all"`` include
    the runs with ``--sandbox``, which have a history of their own.
``last``
    Maximum number of rows.
``tables``
    Other tables than those of the settings.

They raise a `ParameterError` with the nearest name for an unknown filter, status, region, image, runbook or
step, and a `RecordsError` if a table cannot be read.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import outcomes
from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.records import filters, schemas
from vmsnix_ops.records.filters import Filter, When, door
from vmsnix_ops.records.history import (
    Timings,
    amis,
    checked_endpoint,
    checked_last,
    findings,
    inventory,
    ordered,
    packages,
    promotions,
    proofs,
    read,
    retirements,
    runs,
    steps,
    time_bounds,
    timings,
    unpack,
)
from vmsnix_ops.records.result import KEYS
from vmsnix_ops.records.tables import ALL_ENDPOINTS
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.evidence.runs import Archive, open_archive
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from vmsnix_ops.runbooks.evidence.runs import ArchivedRun

__all__ = [
    "Timings",
    "amis",
    "findings",
    "inventory",
    "packages",
    "promotions",
    "proofs",
    "read",
    "results",
    "retirements",
    "runs",
    "steps",
    "timings",
    "unpack",
]


def __dir__() -> list[str]:
    return __all__


@door
def results(
    runbook: Filter = None,
    *,
    run_id: Filter = None,
    status: Filter = None,
    image: Filter = None,
    region: Filter = None,
    account: Filter = None,
    since: When = None,
    until: When = None,
    older_than: When = None,
    endpoint: str | None = None,
    last: int | None = None,
) -> pd.DataFrame:
    """Return the results of runs in the archive, the latest start first.

    A row has a column for each key of ``result.json``. A runbook adds keys of its own, such as
    ``findings_high`` of an audit. Lists and objects are JSON; use `unpack`. Keys that are empty in all rows
    are left out.

    Parameters
    ----------
    runbook
        Only results of this runbook, such as ``"audit-inventory"``, or of several.
    """
    import pandas as pd

    kind, most = checked_endpoint(endpoint) or endpoint_kind(), checked_last(last)
    bounds = time_bounds({"since": since, "until": until, "older_than": older_than})
    given = {"run_id": run_id, "status": status, "image": image, "region": region, "account": account}
    column = schemas.RUNS.column
    known = {name: column(name) for name in given} | {
        "status": replace(column("status"), values=outcomes.RUN_STATUSES)
    }
    wanted = {name: filters.wanted_values(known[name], value) for name, value in given.items()}
    names = filters.wanted_values(column("runbook"), runbook)
    names = None if names is None else [_runbook_name(name) for name in names]
    rows = []
    for run in _archived(kind, names):
        row = _row(run)
        matches = all(values is None or row.get(name) in values for name, values in wanted.items())
        of_kind = kind in (ALL_ENDPOINTS, row["endpoint"])
        if matches and of_kind and (names is None or row["runbook"] in names):
            rows.append(row)
    frame = pd.DataFrame(rows, columns=[*dict.fromkeys([*KEYS, *(key for row in rows for key in row)])])
    for time in ("started_at", "finished_at"):
        frame[time] = pd.to_datetime(frame[time], utc=True, format="ISO8601").astype("datetime64[us, UTC]")
    for operator, edge in bounds:
        started = frame["started_at"]
        frame = frame[{">=": started.ge, "<=": started.le, "<": started.lt}[operator](edge)]
    frame = frame.sort_values("started_at", ascending=False, kind="stable", ignore_index=True)
    empty = [name for name in frame if name not in schemas.RUNS.names and frame[name].isna().all()]
    frame = frame.drop(columns=empty)
    # pandas makes floats of whole numbers with missing values.
    for name in map(str, frame.select_dtypes("number")):
        if all(type(row.get(name)) in (int, type(None)) for row in rows):
            frame[name] = frame[name].astype("Int64")
    frame["status"] = ordered(frame["status"], outcomes.RUN_STATUSES)
    return frame if most is None else frame.head(most)


def _runbook_name(name: str) -> str:
    """Return the full name of a runbook; refuse a name that is similar to one, but none."""
    full, known = catalog.full_name(name), catalog.names()
    if full not in known and (similar := nearest(name, known)):
        raise ParameterError(f"No runbook {name!r}.", why=similar, fix="vmsnix list shows the runbooks.")
    return full


def _archived(kind: str, names: list[str] | None) -> Iterator[ArchivedRun]:
    """Yield the runs in the archives of an endpoint, of some runbooks."""
    settings = load()
    archives = [open_archive(settings)]
    own = Path(settings.state, "sandbox", "archive")  # of runs with --sandbox
    if kind in ("sandbox", ALL_ENDPOINTS) and str(own) != archives[0].location and own.is_dir():
        archives.append(Archive(str(own), own))
    for archive in archives:
        for name in [""] if names is None else names:
            yield from archive.runs(runbook=name)


def _row(run: ArchivedRun) -> dict[str, Any]:
    """Return the values of a run, lists and objects as JSON."""
    values = dict(run.values) | {"run_id": run.run_id, "runbook": run.runbook, "status": run.status}
    kind = values.get("endpoint") or ("sandbox" if values.get("sandbox") else "aws")
    values |= {"endpoint": kind, "image": run.image or None}
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for name, value in values.items()
    }
