"""Keeps secrets out of tables and frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.redaction import HINT, Redactor, secret_values

if TYPE_CHECKING:
    import pandas as pd
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
        suspects = _suspects(data.column(number), redactor.known())
        if not suspects:
            continue
        values = data.column(number).to_pylist()
        for row in suspects:
            values[row] = redactor.json(values[row])
        data = data.set_column(number, column, pa.array(values, type=column.type))
    return data


def frame_without_secrets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with a note in the place of every secret; the same one when it has none.

    Parameters
    ----------
    frame
        Any frame; texts are redacted, also in lists and mappings.
    """
    import pandas as pd

    redactor = Redactor(secret_values())
    clean = frame
    for name in frame.columns:
        kind = frame[name].dtype
        if not (pd.api.types.is_object_dtype(kind) or pd.api.types.is_string_dtype(kind)):
            continue
        values = [redactor.anything(value) for value in frame[name].array]
        if any(
            now is not before and now != before for now, before in zip(values, frame[name].array, strict=True)
        ):
            clean = clean.copy() if clean is frame else clean
            clean[name] = pd.Series(values, index=frame.index, dtype=kind)
    return clean


def _suspects(column: Any, known: tuple[str, ...]) -> list[int]:
    """Return the numbers of the rows that may hold a secret."""
    import pyarrow.compute as pc

    found = pc.match_substring_regex(column, HINT)
    for value in known:
        found = pc.or_(found, pc.match_substring(column, value))
    return [number for number, hit in enumerate(found.to_pylist()) if hit] if pc.any(found).as_py() else []
