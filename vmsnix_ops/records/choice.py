"""The steps that somebody asks for, and a word about it when there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.progress import counted
from vmsnix_ops.records import history
from vmsnix_ops.region_names import known_regions
from vmsnix_ops.text import html, line

if TYPE_CHECKING:
    import pandas as pd

    from vmsnix_ops.records.tables import Tables

PATHS = ("import", "direct")
"""The two ways to a snapshot, as the column `via` has them."""


@dataclass(frozen=True, slots=True, repr=False)  # IPython would prefer its repr to our words
class Chosen:
    """Steps that were asked for; shows itself as one line: how many there are, or why there are none.

    Attributes
    ----------
    steps
        Rows of the table `steps`, newest first.
    words
        That line.
    """

    steps: pd.DataFrame
    words: str

    def __str__(self) -> str:
        return line(self.words)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 (IPython's protocol)
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return f"<p>{html(self.words)}</p>"


@typed
def choose(tables: Tables, *, image: str = "", region: str = "", via: str = "") -> Chosen:
    """Return the steps of an image, a region and a path; of all where nothing is given.

    An image or a region of which nothing is recorded is no error: it may not have been published yet. The
    words say so, and name the nearest one that is recorded.

    Parameters
    ----------
    tables
        Where they are kept.
    image, region, via
        Only steps with this value.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        There is no such region or path at all.
    vmsnix_ops.errors.RecordsError
        The table cannot be read.
    """
    if region:
        _check_region(region)
    if via and via not in PATHS:
        raise errors.ParameterError(
            f"There is no path {via!r} to a snapshot.",
            why=errors.nearest(via, PATHS),
            cure=f"Use {' or '.join(map(repr, PATHS))}, or leave via out.",
        )
    wanted = {"image": image, "region": region, "via": via}
    steps = history.steps(tables, image=image or None, region=region or None, via=via or None)
    if len(steps):
        runs = counted(steps["run_id"].nunique(), "run")
        return Chosen(steps, f"{counted(len(steps), 'step')} of {runs}{_of(wanted)}.")
    recorded = tables.read("steps", columns=list(wanted)).drop_duplicates()
    if recorded.empty:
        return Chosen(steps, "No step has been recorded yet: publish an image first.")
    words = [f"The table has no step{_of(wanted)}."]
    for name, value in wanted.items():
        known = sorted(recorded[name].dropna().unique())
        if value and value not in known:
            words += [errors.nearest(value, known), f"Recorded {name}s: {', '.join(known)}."]
    return Chosen(steps, " ".join(filter(None, words)))


def _of(wanted: dict[str, str]) -> str:
    told = [f"{_WORDS.get(name, name)} {value!r}" for name, value in wanted.items() if value]
    return f" of {', '.join(told)}" if told else ""


def _check_region(region: str) -> None:
    """Refuse a region that botocore does not know; AWS is not asked."""
    known = known_regions()
    if region not in known:
        raise errors.ParameterError(
            f"There is no AWS region {region!r}.",
            why=errors.nearest(region, known) or "botocore's list of regions does not have it.",
            cure="Check the name; if the region is brand new, update botocore.",
        )


_WORDS = {"via": "path"}
