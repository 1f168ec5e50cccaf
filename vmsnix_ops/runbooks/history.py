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

`keep` keeps a table with the run of a notebook: in the folder of the run as ``NAME.csv``, in the notebook and
the report as a table, in the summary of a CI job, and in ``result.json`` below ``tables``. Programs that read
notebooks find its rows as the scrap ``NAME``, in the format of nteract scrapbook.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, files, outcomes
from vmsnix_ops.arguments import check_parameters
from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.progress import counted
from vmsnix_ops.records import filters, result, schemas
from vmsnix_ops.records.filters import Filter, When, explain_wrong_calls
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
from vmsnix_ops.records.recorded_amis import ARCHITECTURES
from vmsnix_ops.records.result import KEYS
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.secrets import frame_without_secrets
from vmsnix_ops.records.tables import ALL_ENDPOINTS
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.evidence.runs import Archive, open_archive
from vmsnix_ops.runbooks.execution import cards
from vmsnix_ops.settings import load
from vmsnix_ops.text import echo, write_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pandas as pd

    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.runbooks.evidence.runs import ArchivedRun

__all__ = [
    "Timings",
    "amis",
    "check_parameters",
    "findings",
    "inventory",
    "keep",
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


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SCRAP = "application/scrapbook.scrap.json+json"
SCRAP_VERSION = 1
"""Media type and version of a scrap. Source: the chapter "Models" of scrapbook's documentation."""

_own_run: RunContext | None = None
"""The run of this process, if nothing else has started one."""


def _rules() -> Iterable[str]:
    from vmsnix_ops.audit import findings, rules  # noqa: F401 - the module of the rules registers them

    return findings.RULES


STATES = (
    *("active", "available", "completed", "deleted", "deleting", "deregistered", "disabled", "error"),
    *("failed", "invalid", "pending", "recoverable", "recovering", "transient"),
)
"""States of AMIs, snapshots and import tasks in AWS, and of AMIs that were deregistered."""

filters.DECLARED.update(
    runbook=catalog.names, rule=_rules, state=lambda: STATES, system=lambda: tuple(ARCHITECTURES)
)
filters.FULL_NAMES["runbook"] = catalog.full_name


@explain_wrong_calls
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
    for name in set(names or ()) - set(catalog.names()):
        if similar := nearest(name, catalog.names()):
            raise ParameterError(f"No runbook {name!r}.", why=similar, fix="vmsnix list shows the runbooks.")
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


def keep(
    table: pd.DataFrame | pd.Series[Any] | display.Displayed | Iterable[Mapping[str, object]],
    name: str,
    *,
    title: str = "",
) -> None:
    """Keep a table with the run, and show it. Safe to run twice: the same name replaces the table.

    Secrets are removed. In the CSV file, a text that starts like a formula gets an apostrophe before it.

    Parameters
    ----------
    table
        A frame, a series, a result or a table that it shows, or a list of dictionaries. A named index
        becomes columns.
    name
        Name of the file without ``.csv``, and of the scrap: letters, digits, dots, dashes and underscores.
    title
        Title above the table; by default the name.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The name is invalid, or the run has another file of this name.
    vmsnix_ops.errors.UnsavedError
        The file or ``result.json`` cannot be written.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ParameterError(
            f"Invalid name of a table {name!r}.",
            why="It is the name of a file in the folder of the run.",
            fix='Use up to 100 letters, digits, dots, dashes and underscores, such as "management".',
        )
    frame = frame_without_secrets(_as_frame(table))
    run = _run()
    path, title = run.folder / f"{name}.csv", title or name
    _check_free(run, name, path)
    content = io.StringIO()
    write_csv(frame, content, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
    with result.saving(path):
        files.make_folder(run.folder)
        files.write(path, content.getvalue())
    first = display.frame_table(frame.head(result.MOST_ROWS))
    rows = [list(row) for row in first.rows]
    if len(frame) > len(rows):
        title = f"{title}: the first {len(rows):,} of {counted(len(frame), 'row')}"
    entry = {"title": title, "columns": list(first.columns), "rows": rows, "name": name, "file": path.name}
    result.keep_table(run, entry)
    _show(name, frame, replace(first, title=title), path)


def _as_frame(table: Any) -> pd.DataFrame:
    """Return a table as a frame whose columns are unique texts."""
    import pandas as pd

    if isinstance(table, display.Displayed):
        table = table.frame() if callable(table.frame) else table.frame  # of a scan it is a field
    if isinstance(table, pd.Series):
        table = table.to_frame(name=table.name if table.name is not None else "value")
    elif not isinstance(table, pd.DataFrame):
        try:
            table = pd.DataFrame(list(table))
        except (TypeError, ValueError) as error:
            raise ParameterError(
                f"Cannot keep {type(table).__name__} as a table.",
                why=f"{error}.",
                fix="Give a DataFrame, a Series, a table of a result, or a list of dictionaries.",
            ) from error
    if any(level is not None for level in table.index.names):
        table = table.reset_index()
    names = [
        " ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)
        for name in table.columns
    ]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ParameterError(
            f"Cannot keep a table with two columns {min(repeated)!r}.",
            why="A column of the CSV file would hide the other.",
            fix="Rename one: frame.rename(columns=...).",
        )
    frame: pd.DataFrame = table.set_axis(names, axis="columns")
    return frame


def _run() -> RunContext:
    """Return the run of the runner or the kernel; else one run for this process."""
    global _own_run
    run = current_run(make_folder=False)
    if run.managed:
        return run
    _own_run = _own_run or run
    return _own_run


def _check_free(run: RunContext, name: str, path: Path) -> None:
    if path.exists() and name not in result.kept_tables(run):
        raise ParameterError(
            f"The run has another file {path.name}.",
            why=f"{path} is part of its result.",
            fix=f"Choose another name, such as {name}-2.",
        )


def _show(name: str, frame: pd.DataFrame, table: display.DisplayTable, path: Path) -> None:
    """Show a table in a notebook, with a scrap of its rows; in a program, print it."""
    if cards.kernel_shell() is None:
        echo(f"{table}\nKept in {path}.")
        return
    from IPython.display import display as show

    data = json.loads(frame.to_json(orient="records", date_format="iso", date_unit="us"))
    scrap = {"name": name, "data": data, "encoder": "json", "version": SCRAP_VERSION}
    # One output: of two outputs with a name, scrapbook would read only the last.
    output = {SCRAP: scrap, "text/plain": str(table), "text/html": table._repr_html_()}
    metadata = {"scrapbook": {"name": name, "data": True, "display": True}}
    show(output, metadata=metadata, raw=True)  # type: ignore[no-untyped-call]
