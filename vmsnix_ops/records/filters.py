"""The filters of the history: names, values and times that people give, checked and explained."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from vmsnix_ops.errors import ParameterError, nearest
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.region_names import check_region_name

if TYPE_CHECKING:
    from vmsnix_ops.records.schemas import Column, Schema

Filter: TypeAlias = str | bool | int | Iterable[str] | Iterable[bool] | Iterable[int] | None
"""One value of a column, or several; ``None`` and an empty text are every value."""

When: TypeAlias = str | date | timedelta | None
"""A duration before now (``"30D"`` or a timedelta), a date, or a datetime with a time zone."""

P = ParamSpec("P")
R = TypeVar("R")

UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), timedelta(seconds=1)),
    **dict.fromkeys(("min", "minute", "minutes"), timedelta(minutes=1)),
    **dict.fromkeys(("h", "hour", "hours"), timedelta(hours=1)),
    **dict.fromkeys(("d", "day", "days"), timedelta(days=1)),
    **dict.fromkeys(("w", "week", "weeks"), timedelta(weeks=1)),
}
"""Units of a duration. Months and ``m`` are ambiguous, so they are refused."""

OTHER_NAMES = {
    "method": "via",
    "limit": "last",
    "head": "last",
    "n": "last",
    "start": "since",
    "after": "since",
    "end": "until",
    "before": "until",
    "min_age": "older_than",
}
"""Names that people try, with the filter that they mean."""

DECLARED: dict[str, Callable[[], Iterable[str]]] = {}
"""Values that exist, whether they are recorded or not, by column; `runbooks.history` adds them."""

FULL_NAMES: dict[str, Callable[[str], str]] = {}
"""Functions that return the recorded form of a value, by column; `runbooks.history` adds them."""

OPEN_COLUMNS = ("image", "runbook", "step", "channel", "rule", "state", "system")
"""Columns in which a value that is not recorded, but similar to a recorded one, is a typing mistake."""


def explain_wrong_calls(function: Callable[P, R]) -> Callable[P, R]:
    """Explain a call that Python would refuse with a TypeError, by the names of the arguments."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        names = [
            name
            for name, one in signature.parameters.items()
            if one.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            unknown = next((name for name in kwargs if name not in names), "")
            raise ParameterError(
                f"history.{function.__name__}: {error}.",
                why=suggestion(unknown, names) if unknown else "",
                fix=f"Its arguments are {', '.join(names)}; give all but the first by name.",
            ) from error
        tables = given.get("tables")
        if tables is not None and not isinstance(tables, Tables):
            full = FULL_NAMES.get("runbook", str)(str(tables))
            columns = [column for column, values in DECLARED.items() if full in values()]
            likely = next(name for name in (*columns, "image", *names[1:]) if name in names)
            raise ParameterError(
                f"history.{function.__name__}: {tables!r} has no name.",
                why="Only the tables can be given without a name; by default they are those of the settings.",
                fix=f"Give it by name, such as {likely}={tables!r}. The names are {', '.join(names[1:])}.",
            )
        return function(*args, **kwargs)

    return call


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for an unknown name, or an empty text."""
    names = list(known)
    other = OTHER_NAMES.get(name, "")
    return f"Did you mean {other!r}?" if other in names else nearest(name, names)


def filter_names(schema: Schema) -> list[str]:
    """Return the columns of a table that can be filters: texts, counts and flags."""
    return [column.name for column in schema.columns if column.kind in ("text", "count", "flag")]


def column_of(schema: Schema, name: str, more: Iterable[str]) -> Column:
    """Return the column of a filter; `more` are the other arguments of the function, for the error."""
    names = filter_names(schema)
    if name in names:
        return schema.column(name)
    if name in schema.names:
        kind = schema.column(name).kind
        fix = {
            "json": f"Read all rows, then use history.unpack(frame, {name!r}).",
            "time": "Use since, until or older_than, or compare the column of the frame.",
        }
        raise ParameterError(
            f"history.{schema.name} has no filter {name!r}.",
            why=f"The column {name} contains {'JSON' if kind == 'json' else f'a {kind}'}.",
            fix=fix.get(kind, "Compare the column of the frame."),
        )
    raise ParameterError(
        f"history.{schema.name} has no filter {name!r}.",
        why=suggestion(name, [*names, *more]),
        fix=f"Its filters are {', '.join(names)}; and {', '.join(more)}.",
    )


def wanted_values(column: Column, given: object) -> list[Any] | None:
    """Return the wanted values of a column; ``None`` for all values.

    A value of another type, or one that the column cannot contain, is a `ParameterError`.
    """
    if given is None or (isinstance(given, str) and given == ""):
        return None
    single = isinstance(given, str | bool | int) or not hasattr(given, "__iter__")
    if isinstance(given, Mapping):
        raise _refusal(column, given, "It is a mapping.")
    values = [given] if single else list(given)  # type: ignore[call-overload]
    kinds: dict[str, tuple[type, ...]] = {"text": (str,), "flag": (bool,), "count": (int,)}
    for value in values:
        plain = value.item() if hasattr(value, "item") else value  # NumPy's values
        fits = isinstance(plain, kinds[column.kind]) and (
            column.kind == "flag" or not isinstance(plain, bool)
        )
        if not fits:
            raise _refusal(column, value, f"Its type is {type(value).__name__}.")
        if column.values and plain not in column.values:
            raise ParameterError(
                f"Invalid {column.name} {plain!r}.",
                why=nearest(str(plain), column.values),
                fix=f"Use {', '.join(column.values)}, or a list of them.",
            )
    full_name: Callable[[Any], Any] = FULL_NAMES.get(column.name, lambda value: value)
    return [full_name(value.item() if hasattr(value, "item") else value) for value in values]


def _refusal(column: Column, value: object, why: str) -> ParameterError:
    words = {"text": "a text", "flag": "True or False", "count": "a whole number"}
    return ParameterError(
        f"Invalid {column.name} {value!r}.", why=why, fix=f"Use {words[column.kind]}, or a list of them."
    )


def refuse_typos(
    column: str, wanted: Iterable[Any], recorded: Iterable[str], declared: Iterable[str]
) -> None:
    """Refuse a value if a recorded or declared one is similar, and regions that do not exist."""
    known, all_known = sorted(set(recorded)), sorted({*recorded, *declared})
    for value in wanted:
        if value in known:
            continue
        if column == "region":
            check_region_name(value, likely=known)
        if column in OPEN_COLUMNS and (similar := nearest(value, all_known)):
            raise ParameterError(
                f"No {column} {value!r} is recorded.",
                why=similar,
                fix=f"Recorded: {', '.join(known[:20]) or 'none'}{', ...' if len(known) > 20 else ''}.",
            )


def moment(name: str, given: object, *, end: bool = False, ahead: bool = False) -> datetime | None:
    """Return a point in time; ``None`` without one.

    `given` is a duration before now (with `ahead`: after now), a date (its start in UTC, with `end` its end),
    or a datetime with a time zone. Everything else is a `ParameterError` with the `name` of the argument.
    """
    if given is None or given == "":
        return None
    try:
        found = _moment(name, given, end=end, sign=1 if ahead else -1)
    except (OverflowError, ValueError):
        found = None
    if found is None:
        raise ParameterError(
            f"Invalid {name} {given!r}.",
            why="Months and years have different lengths."
            if re.fullmatch(r"\s*[\d.]+\s*(m|mo|months?|y|years?)\s*", str(given), re.IGNORECASE)
            else "It is neither a duration nor a date.",
            fix='Use a duration such as "30D", "12h" or "2W", a date such as "2026-11-01", or a datetime '
            "with a time zone.",
        )
    return found


def _moment(name: str, given: object, *, end: bool, sign: int) -> datetime | None:
    if isinstance(given, str):
        duration = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", given)
        if duration:
            unit = UNITS.get(duration[2].lower()) if duration[2] not in ("M", "m") else None
            return datetime.now(UTC) + sign * float(duration[1]) * unit if unit else None
        text = given.strip()
        try:
            given = date.fromisoformat(text)
        except ValueError:
            given = datetime.fromisoformat(text)
    if isinstance(given, timedelta):
        return datetime.now(UTC) + sign * given if given >= timedelta() else None
    if isinstance(given, datetime):
        if given != given:  # pandas.NaT
            return None
        if given.utcoffset() is None:
            raise ParameterError(
                f"The time {given.isoformat()} of {name} has no time zone.",
                why="The tables are in UTC. A local time would be wrong by hours.",
                fix=f"Use {given.isoformat()}+00:00 for UTC.",
            )
        return given
    if isinstance(given, date):
        start = datetime.combine(given, time(), UTC)
        return start + timedelta(days=1) - timedelta(microseconds=1) if end else start
    return None
