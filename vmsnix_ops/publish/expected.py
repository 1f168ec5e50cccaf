"""How long a step will take, by the records of earlier runs with images of about the same size."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from vmsnix_ops.errors import RecordsError

if TYPE_CHECKING:
    from vmsnix_ops.records.tables import Tables

ALIKE = 1.5  # sizes that differ by no more than this factor are about the same
FEWEST = 3  # earlier steps from which an expectation is told
LATEST = 50


@dataclass(frozen=True, slots=True)
class Expectation:
    """What earlier steps of the same kind and size took.

    Attributes
    ----------
    seconds
        Of each, in ascending order.
    """

    seconds: tuple[float, ...]

    @property
    def usual(self) -> float:
        """The median, in seconds."""
        return median(self.seconds)

    def remaining(self, elapsed: float) -> float | None:
        """Return how many seconds are to go after so many.

        The median of those earlier steps that had not ended by then either; ``None`` when this one is slower
        than all of them, so that nothing is known.

        Examples
        --------
        >>> Expectation((60.0, 100.0, 300.0)).remaining(20)
        80.0
        >>> Expectation((60.0, 100.0, 300.0)).remaining(150)
        150.0
        """
        slower = self.seconds[bisect_right(self.seconds, elapsed) :]
        return median(slower) - elapsed if slower else None


def expected(tables: Tables, *, step: str, via: str, region: str, size: int) -> Expectation | None:
    """Return what the latest finished steps of this kind and size took.

    ``None`` when there are too few, or the table cannot be read.

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
    try:
        found = tables.read("steps", columns=["started_at", "seconds"], where=[*kinds, *sizes])
    except RecordsError:
        return None
    if len(found) < FEWEST:
        return None
    latest = found.sort_values("started_at")["seconds"].tail(LATEST)
    return Expectation(tuple(sorted(float(seconds) for seconds in latest)))
