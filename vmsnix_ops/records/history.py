"""Read the tables as frames, and the durations of steps; `vmsnix_ops.runbooks.history` documents the filters.

Rows come newest first. `runbooks.history` is the public module, which also reads the archive.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vmsnix_ops import errors, outcomes
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.endpoints import ENDPOINT_KINDS, endpoint_kind
from vmsnix_ops.progress import counted
from vmsnix_ops.records import filters, schemas, timing_plots
from vmsnix_ops.records import timings as step_timings
from vmsnix_ops.records.filters import Filter, When, explain_wrong_calls
from vmsnix_ops.records.result import Result
from vmsnix_ops.records.tables import ALL_ENDPOINTS, ENDPOINT, Tables, open_tables
from vmsnix_ops.region_names import check_region_name, known_regions
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vmsnix_ops.display import DisplayTable

_COMMON = {
    **dict.fromkeys(("since", "until", "older_than"), "When"),
    "endpoint": "str | None",
    "last": "int | None",
}
"""The arguments that are common to all tables, with their types."""


def _reader(function: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Give a function the name and the arguments of its table as its signature, and explain wrong calls."""
    kinds = dict.fromkeys(schemas.FILTERS[function.__name__], "Filter") | _COMMON
    kinds |= {"all_rows": "bool"} if function.__name__ == "amis" else {}
    by_name = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None if kind != "bool" else False, annotation=kind)
        for name, kind in kinds.items()
    ]
    signature = inspect.signature(function)
    tables, columns = signature.parameters.values()
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[tables, *by_name, columns.replace(annotation="Filter")]
    )
    return explain_wrong_calls(function)


@_reader
def runs(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return runs, the latest start first. ``older_than`` and the other times compare ``started_at``."""
    return _select("runs", tables, columns)


@_reader
def steps(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return steps, the latest start first; the times compare ``started_at``."""
    return _select("steps", tables, columns)


@_reader
def amis(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return the latest record of each AMI, newest first.

    The filters apply to the latest record. The times compare ``created_at``, the age of the AMI; if AWS does
    not report it, ``recorded_at``. With `all_rows`, earlier records are returned too.
    """
    return _select("amis", tables, columns)


@_reader
def promotions(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return promotions and rollbacks, the latest first; the times compare ``promoted_at``."""
    return _select("promotions", tables, columns)


@_reader
def inventory(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return the resources of every audit, the latest scan first; the times compare ``scanned_at``.

    To sum costs, leave out the rows whose ``cost_basis`` is ``snapshots``: the snapshots of an AMI have rows
    of their own.
    """
    return _select("inventory", tables, columns)


@_reader
def findings(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return the findings of every audit, the latest scan first; the times compare ``scanned_at``."""
    return _select("findings", tables, columns)


@_reader
def packages(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return the packages of published images, the latest first; the times compare ``recorded_at``."""
    return _select("packages", tables, columns)


@_reader
def proofs(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return the verdicts of proofs, the latest first; the times compare ``proved_at``."""
    return _select("proofs", tables, columns)


@_reader
def retirements(tables: Tables | None = None, **columns: Any) -> pd.DataFrame:
    """Return retirements, restorations and deletions, the latest first; the times compare ``done_at``."""
    return _select("retirements", tables, columns)


_TIMES = {
    "runs": "started_at",
    "steps": "started_at",
    "amis": "recorded_at",
    "promotions": "promoted_at",
    "inventory": "scanned_at",
    "findings": "scanned_at",
    "packages": "recorded_at",
    "proofs": "proved_at",
    "retirements": "done_at",
}
"""The column by which the rows of each table are ordered, and which the times compare."""

_ORDERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("runs", "status"): outcomes.RUN_STATUSES,
    ("steps", "status"): get_args(outcomes.StepOutcome),
    ("findings", "severity"): outcomes.SEVERITIES[::-1],
}
"""Columns with an order of their values, from the best to the worst."""


def _select(
    table: str, tables: Tables | None, arguments: Mapping[str, Any], *, strict: bool = True
) -> pd.DataFrame:
    """Return the rows that match the arguments of one of the functions above, newest first.

    With `strict`, a value that is not recorded, but similar to a recorded one, is refused.
    """
    schema, given = schemas.schema(table), dict(arguments)
    all_rows = given.pop("all_rows", False)
    common = {name: given.pop(name, None) for name in _COMMON}
    endpoint, last = checked_endpoint(common["endpoint"]), checked_last(common["last"])
    bounds = time_bounds(common)
    more = (*_COMMON, *(["all_rows"] if table == "amis" else []))
    wanted: dict[str, list[Any]] = {}
    for name, value in given.items():
        values = filters.wanted_values(filters.column_of(schema, name, more), value)
        if values is not None:
            wanted[name] = values
    # An earlier row of an AMI may match when its latest does not, so only its key is a condition.
    early = [name for name in wanted if table != "amis" or all_rows or name in ("ami_id", "region")]
    where: list[tuple[str, str, object]] = [(name, "in", wanted[name]) for name in early]
    time = _TIMES[table]
    if table != "amis":
        where += [(time, operator, edge) for operator, edge in bounds]
    sources = _sources(tables, endpoint)
    frame = _read(sources, table, where).sort_values(time, ascending=False, kind="stable", ignore_index=True)
    if table == "amis":
        frame = frame if all_rows else frame.drop_duplicates(["ami_id", "region"], keep="first")
        for name in set(wanted) - set(early):
            frame = frame[frame[name].isin(wanted[name])]
        age = frame["created_at"].fillna(frame["recorded_at"])
        for operator, edge in bounds:
            frame = frame[{">=": age.ge, "<=": age.le, "<": age.lt}[operator](edge).reindex(frame.index)]
        frame = frame.reset_index(drop=True)
    if strict:
        _refuse_typos(sources, table, wanted, frame)
    for (owner, name), order in _ORDERS.items():
        if owner == table:
            frame[name] = ordered(frame[name], order)
    return frame if last is None else frame.head(last)


def _sources(tables: Tables | None, endpoint: str) -> list[tuple[Tables, str]]:
    """Return the tables to read, each with the endpoint of the rows."""
    if tables is not None:
        return [(tables, endpoint)]
    settings = load()
    found = [(open_tables(settings), endpoint)]
    own = Path(settings.state, "sandbox", "history")  # of runs with --sandbox
    if (
        (endpoint or endpoint_kind()) in ("sandbox", ALL_ENDPOINTS)
        and str(own) != found[0][0].location
        and own.is_dir()
    ):
        found.append((Tables(own), ALL_ENDPOINTS))
    return found


def _read(
    sources: list[tuple[Tables, str]],
    table: str,
    where: Sequence[tuple[str, str, object]] = (),
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    import pandas as pd

    frames = [
        tables.read(table, columns=columns, where=where, endpoint=endpoint) for tables, endpoint in sources
    ]
    for number, frame in enumerate(frames):
        if number and ENDPOINT in frame:
            frames[number] = frame.assign(endpoint=frame[ENDPOINT].fillna("sandbox"))
    full = [frame for frame in frames if len(frame)]
    return pd.concat(full, ignore_index=True) if len(full) > 1 else (full or frames)[0]


def _refuse_typos(
    sources: list[tuple[Tables, str]], table: str, wanted: Mapping[str, list[Any]], frame: pd.DataFrame
) -> None:
    for name in (*filters.OPEN_COLUMNS, "region"):
        missing = set(wanted[name]) - set(frame[name]) if name in wanted else set()
        if missing := {value for value in missing if not _is_declared(name, value, sources)}:
            anywhere = [(tables, ALL_ENDPOINTS) for tables, _ in sources]
            recorded = _read(anywhere, table, columns=[name])[name].dropna()
            filters.refuse_typos(name, sorted(missing), recorded, _declared(name))


def _is_declared(column: str, value: str, sources: list[tuple[Tables, str]]) -> bool:
    """Whether a value exists, although no row of the table has it: it is only not used yet."""
    if column == "region":
        return value in known_regions()
    if column != "image":
        return value in _declared(column)
    if any(
        len(_read(sources, table, [(column, "==", value)], [column])) for table in ("runs", "steps", "amis")
    ):
        return True
    word, flake = re.compile(rf"(?<![\w-]){re.escape(value)}(?![\w-])"), Path(load().flake)
    # The names of a flake's images are words of its files. Nix has the exact list, but takes seconds.
    files = (path for pattern in ("*.nix", "*/*.nix") for path in flake.glob(pattern) if path.is_file())
    return any(word.search(path.read_text(encoding="utf-8", errors="replace")) for path in files)


def _declared(column: str) -> Iterable[str]:
    return load().channels if column == "channel" else filters.DECLARED.get(column, tuple)()


def ordered(values: pd.Series[Any], order: Iterable[str]) -> pd.Series[Any]:
    """Return texts with an order; values of newer versions come last."""
    import pandas as pd

    known = [*order]
    known += sorted(set(values.dropna()) - set(known))
    return values.astype(pd.CategoricalDtype(known, ordered=True))


def time_bounds(common: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the limits of times as operators and points in time, from since, until and older_than."""
    since, until = (
        filters.moment("since", common["since"]),
        filters.moment("until", common["until"], end=True),
    )
    if since is not None and until is not None and since > until:
        raise errors.ParameterError(
            f"since {common['since']!r} is after until {common['until']!r}.",
            fix="Swap them, or leave one of them out.",
        )
    older_than = filters.moment("older_than", common["older_than"])
    edges = ((">=", since), ("<=", until), ("<", older_than))
    return [(operator, edge) for operator, edge in edges if edge is not None]


def checked_endpoint(endpoint: object) -> str:
    """Return an endpoint or ``all``; an empty text for that of the tables."""
    known = (*ENDPOINT_KINDS, ALL_ENDPOINTS)
    if endpoint is None or endpoint == "":
        return ""
    if not isinstance(endpoint, str) or endpoint not in known:
        raise errors.ParameterError(
            f"Invalid endpoint {endpoint!r}.",
            why=errors.nearest(str(endpoint), known),
            fix=f"Use {', '.join(known)}, or leave endpoint out.",
        )
    return endpoint


def checked_last(last: object) -> int | None:
    """Return a number of rows; ``None`` for all."""
    if last is None or (isinstance(last, int) and not isinstance(last, bool) and last >= 0):
        return last
    why = "It is negative." if isinstance(last, int) else f"It is a {type(last).__name__}."
    raise errors.ParameterError(f"last={last!r} is not a number of rows.", why=why, fix="Use 0 or more.")


@explain_wrong_calls
def unpack(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a frame with a JSON column as columns or rows.

    An object becomes a column for each key: ``parameters`` becomes ``parameters.image``,
    ``parameters.region`` and so on. A list becomes a row for each item, as `pandas.DataFrame.explode` does;
    an empty list keeps its row. Objects in a list become both.

    Parameters
    ----------
    frame
        A frame of the history, or of an inventory.
    column
        A column that contains JSON, such as ``parameters``, ``detail``, ``tags``, ``references``.

    Raises
    ------
    ParameterError
        The frame has no such column, or it does not contain JSON.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"run_id": ["a", "b"], "parameters": ['{"image": "web"}', None]})
    >>> unpack(frame, "parameters")["parameters.image"].dropna().tolist()
    ['web']
    """
    if column not in frame:
        raise errors.ParameterError(
            f"The frame has no column {column!r}.",
            why=errors.nearest(str(column), map(str, frame.columns)),
            fix=f"Its columns are {', '.join(map(str, frame.columns))}.",
        )
    try:
        values = [json.loads(one) if isinstance(one, str) else one for one in frame[column]]
    except ValueError as error:
        raise errors.ParameterError(
            f"The column {column!r} does not contain JSON.",
            why=f"{error}.",
            fix="Columns with JSON have the kind json on the page Tables.",
        ) from error
    rows = [one if isinstance(one, list) and one else [one] for one in values]
    places = [place for place, items in enumerate(rows) for _ in items]
    # An empty list is a row without a value, like a missing one.
    items = [None if one == [] or one != one else one for some in rows for one in some]
    keys = dict.fromkeys(key for one in items if isinstance(one, dict) for key in one)
    rest = [None if isinstance(one, dict) else one for one in items]
    found = {
        f"{column}.{key}": [one.get(key) if isinstance(one, dict) else None for one in items] for key in keys
    }
    if not keys or any(one is not None for one in rest):
        found[column] = rest
    at = int(frame.columns.get_loc(column))  # type: ignore[arg-type]
    wide = frame.iloc[places].drop(columns=column)
    for number, (name, content) in enumerate(found.items()):
        wide.insert(at + number, name, content)
    return wide


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

    def summary(
        self,
        *,
        by: str | Sequence[str] = step_timings.GROUP,
        percentiles: Sequence[float] = step_timings.PERCENTILES,
    ) -> pd.DataFrame:
        """Return percentiles, trends and rates, one row for each step, method, image and region (or `by`)."""
        return step_timings.summary(self.steps, by=by, percentiles=percentiles)

    def slow(self) -> pd.DataFrame:
        """Return the steps that were slower than their history, newest first."""
        return step_timings.slow(self.steps)

    def trend(self, *, every: str = "W-MON", by: str | Sequence[str] = step_timings.GROUP) -> pd.DataFrame:
        """Return the medians of each week, or of another pandas period."""
        return step_timings.trend(self.steps, every=every, by=by)

    def compare(self) -> pd.DataFrame:
        """Compare direct upload with import, from the image file to the snapshot."""
        return step_timings.compare(self.steps)

    def show_summary(self) -> DisplayTable:
        """Return `summary` as a table for display."""
        return step_timings.show_summary(self.summary())

    def show_slow(self) -> DisplayTable:
        """Return `slow` as a table for display."""
        return step_timings.show_slow(self.slow())

    def show_compare(self) -> DisplayTable:
        """Return `compare` as a table for display."""
        return step_timings.show_compare(self.compare())

    def show_steps(self, *, last: int = 20) -> DisplayTable:
        """Return the newest steps as a table for display."""
        return step_timings.show_steps(self.steps, last=last)

    def plot_usual(self, *, ax: Axes | None = None) -> Figure:
        """Draw the median and the 90th percentile of each step, by default into a new figure."""
        return timing_plots.plot_usual(self.steps, ax=ax)

    def plot_trend(self, *, ax: Axes | None = None) -> Figure:
        """Draw a dot for each run and the running median, by default into a new figure."""
        return timing_plots.plot_trend(self.steps, ax=ax)

    def plot_compare(self, *, ax: Axes | None = None) -> Figure:
        """Draw direct upload and import side by side, by default into a new figure."""
        return timing_plots.plot_compare(self.steps, ax=ax)


@explain_wrong_calls
def timings(
    tables: Tables | None = None,
    *,
    by: str | Sequence[str] = step_timings.GROUP,
    percentiles: Sequence[float] = step_timings.PERCENTILES,
    step: Filter = None,
    image: Filter = None,
    region: Filter = None,
    account: Filter = None,
    via: Filter = None,
    since: When = None,
    until: When = None,
    endpoint: str | None = None,
) -> pd.DataFrame:
    """Return the usual durations of steps, one row for each step, method, image and region (or `by`).

    Parameters
    ----------
    by
        Columns of the table `steps` to group by, such as ``["step", "via"]``.
    percentiles
        Numbers from 0 to 1: 0.95 is the column ``p95_seconds``.

    Returns
    -------
    DataFrame
        Columns as in `vmsnix_ops.records.timings.summary`.
    """
    given = {"step": step, "image": image, "region": region, "account": account, "via": via}
    common = {"since": since, "until": until, "endpoint": endpoint}
    found = _select("steps", tables, given | common)
    return step_timings.summary(found, by=by, percentiles=percentiles)


@explain_wrong_calls
@check_arguments
def read(
    *,
    image: str = "",
    region: str = "",
    via: str = "",
    since: When = None,
    until: When = None,
    endpoint: str = "",
    tables: Tables | None = None,
) -> Timings:
    """Return the timings of an image, a region and a method with their plots; by default of all.

    An image or a region without steps is not an error: it may not be published yet. The result's `text` then
    suggests the most similar recorded name.

    Parameters
    ----------
    image, region, via
        Only steps with this value.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The region or the method does not exist, or a time is invalid.
    vmsnix_ops.errors.RecordsError
        The table cannot be read.
    """
    if region:
        check_region_name(region)
    if via and via not in METHODS:
        raise errors.ParameterError(
            f"Invalid method {via!r}.",
            why=errors.nearest(via, METHODS),
            fix=f"Use {' or '.join(map(repr, METHODS))}, or leave via out.",
        )
    wanted = {"image": image, "region": region, "via": via}
    common = {"since": since, "until": until, "endpoint": endpoint}
    found = _select("steps", tables, wanted | common, strict=False)
    if len(found):
        runs = counted(found["run_id"].nunique(), "run")
        return Timings(found, f"{counted(len(found), 'step')} of {runs}{_of(wanted)}.")
    recorded = _read(_sources(tables, endpoint), "steps", columns=list(wanted)).drop_duplicates()
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
