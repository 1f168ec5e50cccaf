"""What snapshots cost, by the bytes that they hold.

AWS bills a snapshot by its stored blocks, not by the size of its volume, and ``FullSnapshotSizeInBytes``
tells them: the whole size of what a volume of it would hold. A snapshot that shares blocks with an older one
of the same volume is billed for its own blocks only, which AWS does not tell, so the figure is a ceiling.
Where even that is unknown, the volume's size takes its place and the row is marked as estimated; so a pending
snapshot counts by its volume until AWS tells more. One that failed stores nothing and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

GIB = 2**30
DEFAULT = (0.05, 0.0125)
"""USD a GiB and month, standard and archive tier: AWS's list price in us-east-1."""

OBJECT_USD = 0.023
"""USD a GiB and month of S3 Standard in us-east-1, for what uploads left behind."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a GiB of snapshot costs a month.

    Attributes
    ----------
    by_region
        USD in the standard and in the archive tier, from the setting ``snapshot_prices``; ``default`` holds
        for regions that are not named. Prices differ by up to two thirds between regions, so set those that
        you use.
    """

    by_region: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, region: str, *, archive: bool = False) -> float:
        """Return the USD of a GiB and month in a region."""
        pair = self.by_region.get(region) or self.by_region.get("default") or DEFAULT
        return pair[1] if archive else pair[0]


def monthly_usd(frame: pd.DataFrame, prices: Prices) -> pd.Series[float]:
    """Return what each row of an inventory costs a month; 0 where it stores nothing.

    Parameters
    ----------
    frame
        Columns ``kind``, ``region``, ``state``, ``tier``, ``stored_bytes``, ``size_gib``.
    prices
        Of snapshots.
    """
    import pandas as pd

    whole = frame["size_gib"].astype("Float64") * GIB
    size = frame["stored_bytes"].astype("Float64").fillna(whole).fillna(0.0) / GIB
    size = size.mask((frame["state"] == "error").fillna(value=False), 0.0)
    archive = (frame["tier"] == "archive").fillna(value=False)
    regions = frame["region"].astype(object)
    standard = regions.map({name: prices.of(name) for name in regions.unique()})
    archived = regions.map({name: prices.of(name, archive=True) for name in regions.unique()})
    price = standard.where(~archive, archived)
    price = price.where(~frame["kind"].isin(["object", "multipart-upload"]), OBJECT_USD)
    return pd.Series(size.to_numpy("float64") * price.to_numpy("float64"), index=frame.index).round(4)


def total_usd(frame: pd.DataFrame) -> float:
    """Return what all rows cost a month; AMIs count by their snapshots, which have rows of their own."""
    return float(frame.loc[frame["kind"] != "ami", "monthly_usd"].sum())
