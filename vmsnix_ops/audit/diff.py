"""Compare the packages of two AMIs, and their sizes.

A publish writes the digest of an image to the table ``amis`` and its packages to the table ``packages``.
``vmsnix history sync`` adds AMIs that another machine published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import TYPE_CHECKING, NamedTuple

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

    old, new = _by_name(before), _by_name(after)
    none = _Package((), frozenset(), 0)
    pairs = [(name, old.get(name, none), new.get(name, none)) for name in {**old, **new}]
    rows = [
        {
            "change": change,
            "name": name,
            "before": ", ".join(one.versions),
            "after": ", ".join(other.versions),
            "bytes_before": one.bytes,
            "bytes_after": other.bytes,
            "bytes": other.bytes - one.bytes,
        }
        for name, one, other in pairs
        if (change := _change(one, other))
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    place = frame["change"].map({word: number for number, word in enumerate(ORDER)})
    order = frame.assign(place=place, weight=frame["bytes"].abs())
    order = order.sort_values(["place", "weight", "name"], ascending=[True, False, True])
    return order.drop(columns=["place", "weight"]).reset_index(drop=True)


class _Package(NamedTuple):
    versions: tuple[str, ...]  # oldest first
    paths: frozenset[str]
    bytes: int


def _by_name(packages: pd.DataFrame) -> dict[str, _Package]:
    return {
        str(name): _Package(
            tuple(sorted({*some["version"].dropna()} - {""}, key=cmp_to_key(compare))),
            frozenset(some["store_path"]),
            int(some["bytes"].sum()),
        )
        for name, some in packages.groupby("name")
    }


def _change(before: _Package, after: _Package) -> str:
    """Return how a package changed; empty if its store paths are the same."""
    if not before.paths:
        return "added"
    if not after.paths:
        return "removed"
    if before.paths == after.paths:
        return ""
    if before.versions == after.versions:
        return "rebuilt"
    # An AMI may contain several versions of a package: compare the newest ones.
    newest, earlier = (one.versions[-1] if one.versions else "" for one in (after, before))
    return "downgraded" if compare(newest, earlier) < 0 else "upgraded"
