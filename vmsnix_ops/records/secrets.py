"""Keeps secrets out of the tables: the one door through which every row goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.redaction import HINT, Redactor, secret_values

if TYPE_CHECKING:
    import pyarrow as pa


def without_secrets(data: pa.Table) -> pa.Table:
    """Return rows with a note in the place of every secret.

    Arrow looks for hints in whole columns first, so that a table of a million digests costs milliseconds.

    Parameters
    ----------
    data
        Rows of any table; only columns of text are looked at.
    """
    import pyarrow as pa

    redactor = Redactor(secret_values())
    for number, column in enumerate(data.schema):
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        suspects = _suspects(data.column(number), redactor.values)
        if not suspects:
            continue
        values = data.column(number).to_pylist()
        for row in suspects:
            values[row] = redactor.json(values[row])
        data = data.set_column(number, column, pa.array(values, type=column.type))
    return data


def _suspects(column: Any, known: tuple[str, ...]) -> list[int]:
    """Return the numbers of the rows that may hold a secret."""
    import pyarrow.compute as pc

    found = pc.match_substring_regex(column, HINT)
    for value in known:
        found = pc.or_(found, pc.match_substring(column, value))
    return [number for number, hit in enumerate(found.to_pylist()) if hit] if pc.any(found).as_py() else []
