"""Compare the packages of two AMIs, and their sizes.

A publish writes the digest of an image to the table ``amis`` and its packages to the table ``packages``.
``vmsnix history sync`` adds AMIs that another machine published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.nix.versions import compare
from vmsnix_ops.progress import human_bytes
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load
from vmsnix_ops.text import line

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: dict[str, str] = {
    "change": "added, removed, upgraded, downgraded, or rebuilt (same version, other store paths)",
    "name": "name of the package",
    "before": "versions in the first AMI",
    "after": "versions in the second AMI",
    "bytes_before": "size of its store paths in the first AMI, bytes",
    "bytes_after": "size of its store paths in the second AMI, bytes",
    "bytes": "difference, bytes",
}
"""Columns of the frame and their meaning."""
ORDER = ("upgraded", "downgraded", "added", "removed", "rebuilt")


@dataclass(frozen=True, slots=True)
class PackageDifferences:
    """The packages that differ between two AMIs, which are named as they were given.

    The frame has the columns of `COLUMNS` and is sorted by `ORDER`, the largest difference first.
    """

    before: str
    after: str
    frame: pd.DataFrame = field(repr=False)

    @property
    def bytes(self) -> int:
        """How much larger the second AMI is."""
        return int(self.frame["bytes"].sum())

    def count(self, change: str) -> int:
        """Return how many packages have this change, one of `ORDER`."""
        return int((self.frame["change"] == change).sum())

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(word)} {word}" for word in ORDER)
        sign = "+" if self.bytes >= 0 else "-"
        return f"{line(self.before)} → {line(self.after)}: {counts}; {sign}{human_bytes(abs(self.bytes))}"


@check_arguments
def diff(ami_a: str, ami_b: str, *, tables: Tables | None = None) -> PackageDifferences:
    """Compare the packages of two published AMIs: IDs or names in the table ``amis``, or digests of images.

    The older one comes first. An AMI that is not in the history, or has no recorded packages, is refused.
    """
    tables = tables or open_tables(load())
    amis = history.amis(tables)
    before, after = (_packages(name, amis, tables) for name in (ami_a, ami_b))
    return PackageDifferences(ami_a, ami_b, _compare(before, after))


def _packages(name: str, amis: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    known = amis[(amis["ami_id"] == name) | (amis["name"] == name) | (amis["digest"] == name)]
    if known.empty:
        raise errors.ParameterError(
            f"AMI {name!r} is not in the history.",
            why=errors.nearest(name, [*amis["ami_id"].dropna(), *amis["name"].dropna()]),
            fix="Run vmsnix history sync in its region, or list the AMIs with vmsnix history amis.",
        )
    digest = known["digest"].iloc[0]
    columns = ["name", "version", "store_path", "bytes"]
    packages = tables.read("packages", columns=columns, where=[("digest", "==", digest)])
    if packages.empty:
        raise errors.ParameterError(
            f"The packages of {name} are not recorded.",
            why="A publish records packages only if Nix built the image on the same machine.",
            fix="Publish it again from its flake: this finds the AMI and records its packages.",
        )
    return packages.drop_duplicates("store_path")


def _compare(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    both = pd.merge(
        _by_name(before),
        _by_name(after),
        left_index=True,
        right_index=True,
        how="outer",
        suffixes=("_before", "_after"),
    )
    rows = [
        {
            "change": change,
            "name": name,
            "before": _listed(row["versions_before"]),
            "after": _listed(row["versions_after"]),
            "bytes_before": _bytes(row["bytes_before"]),
            "bytes_after": _bytes(row["bytes_after"]),
            "bytes": _bytes(row["bytes_after"]) - _bytes(row["bytes_before"]),
        }
        for name, row in both.iterrows()
        if (change := _change(row))
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    place = frame["change"].map({word: number for number, word in enumerate(ORDER)})
    order = frame.assign(place=place, weight=frame["bytes"].abs())
    order = order.sort_values(["place", "weight", "name"], ascending=[True, False, True])
    return order.drop(columns=["place", "weight"]).reset_index(drop=True)


def _by_name(packages: pd.DataFrame) -> pd.DataFrame:
    """Return versions (oldest first), store paths and bytes of each package."""
    from functools import cmp_to_key

    def versions(some: pd.Series[str]) -> tuple[str, ...]:
        return tuple(sorted({one for one in some.dropna() if one}, key=cmp_to_key(compare)))

    return packages.groupby("name").agg(
        versions=("version", versions), paths=("store_path", frozenset), bytes=("bytes", "sum")
    )


def _change(row: pd.Series[str]) -> str:
    """Return how a package changed; empty if its store paths are the same."""
    before, after = row["paths_before"], row["paths_after"]
    if not isinstance(before, frozenset):
        return "added"
    if not isinstance(after, frozenset):
        return "removed"
    if before == after:
        return ""
    old, new = row["versions_before"], row["versions_after"]
    if old == new:
        return "rebuilt"
    # An AMI may contain several versions of a package: compare the newest ones.
    newest, earlier = (versions[-1] if versions else "" for versions in (new, old))
    return "downgraded" if compare(newest, earlier) < 0 else "upgraded"


def _listed(versions: object) -> str:
    return ", ".join(versions) if isinstance(versions, tuple) else ""


def _bytes(value: Any) -> int:
    import pandas as pd

    return 0 if pd.isna(value) else int(value)
