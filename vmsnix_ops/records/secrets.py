"""Remove secrets from tables and frames."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops.redaction import HINT, SHORTEST, Redactor, secret_values

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FEW_ROWS = 1000  # for more rows, a search with Arrow is faster than redacting every value
LITERALS = 500  # maximum in one regular expression: more would exceed RE2's memory


def without_secrets(data: pa.Table) -> pa.Table:
    """Return rows with a note instead of each secret.

    In a large table, Arrow first finds the rows that may contain a secret. This takes milliseconds.
    """
    import pyarrow as pa

    redactor = Redactor(secret_values())
    for number, column in enumerate(data.schema):
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        texts = data.column(number)
        suspects = range(len(texts)) if len(texts) < FEW_ROWS else _suspects(texts, redactor.known_texts())
        found = {row: texts[row].as_py() for row in suspects}
        clean = {row: redactor.json(text) for row, text in found.items() if text is not None}
        if any(found[row] != text for row, text in clean.items()):
            values = [clean.get(row, text) for row, text in enumerate(texts.to_pylist())]
            data = data.set_column(number, column, pa.array(values, type=column.type))
    return data


def frame_without_secrets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with a note instead of each secret, also in lists and mappings."""
    import pandas as pd

    redactor = Redactor(secret_values())
    clean = frame
    for name in frame.columns:
        kind = frame[name].dtype
        if not (pd.api.types.is_object_dtype(kind) or pd.api.types.is_string_dtype(kind)):
            continue
        values = [redactor.value(value) for value in frame[name].array]
        if any(
            now is not before and now != before for now, before in zip(values, frame[name].array, strict=True)
        ):
            clean = clean.copy() if clean is frame else clean
            clean[name] = pd.Series(values, index=frame.index, dtype=kind)
    return clean


def _suspects(column: Any, known: tuple[str, ...]) -> list[int]:
    """Return the indexes of the rows that may contain a secret."""
    import pyarrow.compute as pc

    found = pc.match_substring_regex(column, HINT)
    prefixes = sorted({re.escape(form[:SHORTEST]) for form in known})
    for first in range(0, len(prefixes), LITERALS):
        found = pc.or_(found, pc.match_substring_regex(column, "|".join(prefixes[first : first + LITERALS])))
    return [number for number, hit in enumerate(found.to_pylist()) if hit] if pc.any(found).as_py() else []
