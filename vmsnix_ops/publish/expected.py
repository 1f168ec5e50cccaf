"""How long a step usually takes, by the records of earlier runs with images of about the same size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmsnix_ops.records.tables import Tables

ALIKE = 1.5  # sizes that differ by no more than this factor are about the same
FEWEST = 3  # earlier steps from which an expectation is told
LATEST = 50


def usual_seconds(tables: Tables, *, step: str, via: str, region: str, size: int) -> float | None:
    """Return the median seconds of the latest finished steps of this kind and size, or ``None``.

    Parameters
    ----------
    tables
        Where the steps are recorded.
    step, via, region
        Which steps count.
    size
        Bytes of the image's file.
    """
    kinds = [("step", "==", step), ("via", "==", via), ("region", "==", region), ("status", "==", "finished")]
    sizes = [("bytes", ">=", int(size / ALIKE)), ("bytes", "<=", int(size * ALIKE))]
    found = tables.read("steps", columns=["started_at", "seconds"], where=[*kinds, *sizes])
    if len(found) < FEWEST:
        return None
    return float(found.sort_values("started_at")["seconds"].tail(LATEST).median())
