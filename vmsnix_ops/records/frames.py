"""Convert rows and frames to arrow tables of a schema, and arrow tables to frames."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from vmsnix_ops.errors import SchemaError, nearest
from vmsnix_ops.records.schemas import arrow_type

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from vmsnix_ops.records.schemas import Column, Kind, Schema

    Rows: TypeAlias = Iterable[Mapping[str, object]] | pd.DataFrame | pa.Table

EXPECTED: dict[Kind, str] = {
    "text": "text",
    "json": "a mapping, a list, or JSON text",
    "time": "a datetime with a time zone",
    "count": "a whole number",
    "number": "a finite number",
    "flag": "true or false",
}


class _Misfit(Exception):  # noqa: N818 - never leaves this module
    """A value is invalid for its column."""


def to_arrow(schema: Schema, rows: Rows) -> pa.Table:
    """Return rows as an arrow table of the schema; a SchemaError for an unknown column or an invalid value.

    Only lossless conversions are done: other time zones to UTC, whole floats to counts (pandas makes floats
    of counts with missing values), mappings and lists to JSON text. Text is not parsed as a number, and a
    time without a time zone is refused. Times have microseconds. Missing columns, ``None``, ``NaN``, ``NaT``
    and ``pandas.NA`` are empty.
    """
    import pandas as pd
    import pyarrow as pa

    if isinstance(rows, pa.Table):
        return _check_table(schema, rows)
    if isinstance(rows, pd.DataFrame):
        _check_names(schema, [str(name) for name in rows.columns])
        length = len(rows)
        given: dict[str, Sequence[Any]] = {str(name): _listed(rows[name]) for name in rows.columns}
    else:
        mappings = list(rows)
        length = len(mappings)
        for mapping in mappings:
            _check_names(schema, mapping)
        present = {name for mapping in mappings for name in mapping}
        given = {name: [mapping.get(name) for mapping in mappings] for name in present}
    empty = [None] * length
    arrays = [_array(schema, column, given.get(column.name, empty)) for column in schema.columns]
    return pa.Table.from_arrays(arrays, schema=schema.arrow())


def _check_table(schema: Schema, table: pa.Table) -> pa.Table:
    """Return the columns of an arrow table; refuse wrong types and missing required values."""
    for column, wanted in zip(schema.columns, schema.arrow(), strict=True):
        found = table.schema.field(column.name).type if column.name in table.column_names else None
        if found != wanted.type:
            _refuse(schema, column, 0, f"a column of {found or 'no type'}", expected=f"one of {wanted.type}")
        if column.required and table.column(column.name).null_count:
            _refuse(schema, column, 0, "nothing")
    return table.select(schema.names).cast(schema.arrow())


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return an arrow table as a frame with the dtypes in `vmsnix_ops.records.schemas`."""
    import pandas as pd
    import pyarrow as pa

    dtypes = {
        pa.string(): pd.StringDtype(na_value=float("nan")),
        pa.int64(): pd.Int64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    frame: pd.DataFrame = table.to_pandas(types_mapper=dtypes.get)
    return frame


def _check_names(schema: Schema, names: Iterable[str]) -> None:
    for name in names:
        if name not in schema.names:
            schema.column(name)  # raises the error


def _listed(series: pd.Series[Any]) -> list[Any]:
    values: list[Any] = series.astype(object).where(series.notna(), None).tolist()
    return values


def _array(schema: Schema, column: Column, values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    convert = _CONVERTERS[column.kind]
    converted: list[Any] = []
    for row, value in enumerate(values):
        if value is None or _is_missing(value):
            if column.required:
                _refuse(schema, column, row, "nothing")
            converted.append(None)
            continue
        try:
            result = convert(value)
        except _Misfit as misfit:
            _refuse(schema, column, row, str(misfit) or f"{value!r} ({type(value).__name__})")
        if column.values and result not in column.values:
            hint = nearest(result, column.values)
            _refuse(
                schema, column, row, f"{value!r}", expected=f"one of {', '.join(column.values)}", hint=hint
            )
        converted.append(result)
    try:
        return pa.array(converted, type=arrow_type(column.kind))
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise SchemaError(
            f"Column {column.name!r} of the table {schema.name!r} cannot be stored.",
            why=f"{error}.",
            fix="Correct the values: a count has 64 bits, and text is Unicode without lone surrogates.",
        ) from error


def _refuse(
    schema: Schema, column: Column, row: int, found: str, *, expected: str = "", hint: str = ""
) -> NoReturn:
    expected = expected or EXPECTED[column.kind]
    unit = f" in {column.unit}" if column.unit and column.kind != "time" else ""
    raise SchemaError(
        f"Invalid value in column {column.name!r} of the table {schema.name!r}: row {row} contains {found}.",
        why=f"Expected: {expected}{unit}.",
        fix=hint or "Correct the row; nothing was written.",
    )


def _is_missing(value: object) -> bool:
    if isinstance(value, (str, bytes, Mapping, list, tuple)):
        return False
    import pandas as pd

    return value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Misfit
    return str(value)


def _json(value: object) -> str:
    if isinstance(value, str):
        try:
            json.loads(value)
        except (ValueError, RecursionError) as error:
            message = f"text that is not JSON ({error})"
            raise _Misfit(message) from error
        return str(value)
    if not isinstance(value, (Mapping, list, tuple)):
        raise _Misfit
    try:
        # Sorted, so that equal values become equal texts.
        return json.dumps(
            dict(value) if isinstance(value, Mapping) else value,
            sort_keys=True,
            allow_nan=False,
            ensure_ascii=False,
        )
    except (TypeError, ValueError) as error:
        message = f"a value that JSON cannot represent ({error})"
        raise _Misfit(message) from error


def _time(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise _Misfit
    if value.utcoffset() is None:
        message = f"{value.isoformat()}, which has no time zone"
        raise _Misfit(message)
    moment = value.astimezone(UTC)
    # pandas.Timestamp is a datetime with nanoseconds; the tables have microseconds.
    return datetime.combine(moment.date(), moment.time(), tzinfo=UTC)


def _count(value: object) -> int:
    if isinstance(value, bool):
        raise _Misfit
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _Misfit


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise _Misfit
    return float(value)


def _flag(value: object) -> bool:
    # NumPy's booleans are not instances of bool.
    if isinstance(value, bool) or type(value).__name__ in {"bool", "bool_"}:
        return bool(value)
    raise _Misfit


_CONVERTERS: dict[Kind, Callable[[object], Any]] = {
    "text": _text,
    "json": _json,
    "time": _time,
    "count": _count,
    "number": _number,
    "flag": _flag,
}
