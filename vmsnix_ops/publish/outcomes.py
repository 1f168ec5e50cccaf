"""What became of work on many regions: one outcome a region and step, and one verdict for all of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vmsnix_ops import display, errors
from vmsnix_ops.outcomes import SUCCEEDED
from vmsnix_ops.progress import counted
from vmsnix_ops.records.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from vmsnix_ops.outcomes import RunStatus, StepOutcome
    from vmsnix_ops.records.run_context import RunContext

COLUMNS = {
    "region": "AWS region",
    "step": "step of the job in the region",
    "outcome": "created, reused, changed, unchanged or failed; skipped after a failed step of the region; "
    "planned in a dry run",
    "what": "what was done, or would be done",
    "why": "why it failed or was skipped, with AWS's message",
    "ami_id": "AMI in this region",
    "seconds": "duration",
    "best_effort": "whether a failure in this region does not fail the run",
}
"""Columns of `Outcomes.frame`, and their meaning."""

ANNOUNCE = "announce"
CONFLICT = "conflict"
"""Step of the row that says that a channel was changed between plan and write."""
MARKED = {**{name: f"✓ {name}" for name in SUCCEEDED}, "failed": "✗ failed"}


@dataclass(frozen=True, slots=True)
class RegionStep:
    """What became of one step in one region; the fields are `COLUMNS`.

    Attributes
    ----------
    error
        Behind a failure.
    """

    region: str
    step: str
    outcome: StepOutcome
    what: str = ""
    why: str = ""
    ami_id: str = ""
    seconds: float = 0.0
    best_effort: bool = False
    error: errors.VmsnixError | None = field(default=None, repr=False, compare=False)


class _Plan(Protocol):
    @property
    def run(self) -> RunContext: ...

    @property
    def dry_run(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Outcomes(Result):
    """All of it; shows itself as one line a region. The base of such results.

    Attributes
    ----------
    job
        What was done, as the beginning of a sentence: ``"The promotion"``.
    rows
        In the order of the regions and steps.
    plan
        What was planned.
    """

    rows: tuple[RegionStep, ...]
    plan: _Plan
    job: ClassVar[str] = ""

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.plan.run

    @property
    def dry_run(self) -> bool:
        """Whether nothing was done: what failed would be refused."""
        return self.plan.dry_run

    @property
    def fix(self) -> str:
        """How to go on when it is done in part."""
        return "Run the same command again: it does what is left and repeats nothing."

    @property
    def failed(self) -> tuple[RegionStep, ...]:
        """What failed where a failure counts."""
        return tuple(row for row in self.rows if row.outcome == "failed" and not row.best_effort)

    @property
    def status(self) -> RunStatus:
        """``"partial"`` when something counts as failed and something else is as it should be."""
        if not self.failed:
            return "done"
        fine = any(row.outcome in ("planned", *SUCCEEDED) for row in self.rows)
        unrecorded = any(isinstance(row.error, errors.UnrecordedActError) for row in self.failed)
        return "partial" if fine or unrecorded else "failed"

    @property
    def conflicts(self) -> tuple[errors.OverwrittenValueError, ...]:
        """Changes of a channel that were overwritten without having been planned for."""
        found = (row.error for row in self.rows)
        return tuple(error for error in found if isinstance(error, errors.OverwrittenValueError))

    @property
    def error(self) -> errors.VmsnixError | None:
        """What the run ends with; ``None`` when nothing failed that counts."""
        if self.status == "done":
            return None
        if self.status == "failed":
            return self.failed[0].error or errors.VmsnixError(f"{self.job} failed.", why=self.failed[0].why)
        of_regions = [row for row in self.rows if row.step != ANNOUNCE]  # the topic's is none of the AMI's
        regions = list(dict.fromkeys(row.region for row in of_regions))
        bad = {row.region for row in of_regions if row.outcome == "failed"}
        told = "; ".join(f"{row.region}, {row.step}: {row.why}" for row in self.failed)
        sound = f"{len(regions) - len(bad)} of {counted(len(regions), 'region')}"
        if self.dry_run:
            return errors.PartialError(
                f"{self.job} would be partial: {sound} would succeed.",
                why=told,
                fix="Correct the cause, or leave those regions out, then make the plan again.",
            )
        unrecorded = [row.error for row in self.failed if isinstance(row.error, errors.UnrecordedActError)]
        kind = errors.UnrecordedActError if unrecorded else errors.PartialError
        # Running it again is no answer to a conflict: a person decides which value is right.
        fix = " ".join(error.fix for error in self.conflicts) or self.fix
        return kind(f"{self.job} is partial: {sound} succeeded.", why=told, fix=fix)

    def frame(self) -> pd.DataFrame:
        """Return one row a region and step, with the columns `COLUMNS`."""
        import pandas as pd

        frame = pd.DataFrame([self.plain(row) for row in self.rows], columns=list(COLUMNS))
        return frame.astype({"seconds": float, "best_effort": bool})

    @staticmethod
    def plain(row: RegionStep) -> dict[str, Any]:
        """Return a row as plain values, as ``result.json`` holds it."""
        return {name: getattr(row, name) for name in COLUMNS}

    def regions(self) -> pd.DataFrame:
        """Return one row a region: ``region``, ``ami_id``, the outcome of each step, ``why``."""
        import pandas as pd

        header, lines = self._table()
        return pd.DataFrame(lines, columns=header)

    def show_steps(self) -> display.DisplayTable:
        """Return one row a region and step for people: what was done, how long it took, and why not."""
        rows = [
            (_region(row), row.step, row.outcome, display.seconds(row.seconds or None), row.why or row.what)
            for row in self.rows
        ]
        return display.make_table(
            ("region", "step", "outcome", "took", "what, or why not"), rows, right=("took",)
        )

    def _table(self) -> tuple[list[str], list[list[str]]]:
        by_region: dict[str, list[RegionStep]] = {}
        for row in self.rows:
            by_region.setdefault(row.region, []).append(row)
        # The region with most steps has them in their order; the AMI's own has no copy.
        longest = sorted(by_region.values(), key=len, reverse=True)
        steps = list(dict.fromkeys(row.step for rows in longest for row in rows))
        lines = []
        for rows in by_region.values():
            outcome = {row.step: row.outcome for row in rows}
            ami_id = next((row.ami_id for row in rows if row.ami_id), "")
            why = "; ".join(row.why for row in rows if row.outcome == "failed")
            lines.append([_region(rows[0]), ami_id, *(outcome.get(step, "") for step in steps), why])
        return ["region", "ami_id", *steps, "why"], lines

    @property
    def title(self) -> str:
        """One line."""
        return f"{self.job} (dry run)" if self.dry_run else self.job

    def table(self) -> display.DisplayTable:
        """Return one row a region, for people."""
        header, lines = self._table()
        return display.make_table(header, [[MARKED.get(cell, cell) for cell in line] for line in lines])


def _region(row: RegionStep) -> str:
    return f"{row.region} (best effort)" if row.best_effort else row.region


def recorded(rows: Sequence[RegionStep], region: str, *records: Callable[[], None]) -> list[RegionStep]:
    """Return outcomes, and one more where writing them down fails: what was done is done, and told.

    Parameters
    ----------
    rows, region
        What became of which region.
    records
        Each writes something down; after one that fails the next is still tried.
    """
    failures = []
    for record in records:
        try:
            record()
        except (errors.AwsError, errors.RecordsError) as error:
            failures.append(error)
    told = list(rows)
    known = any(one.step == "record" and one.region == region for one in rows)
    if failures and not known:
        first = failures[0]
        row = RegionStep(region, "record", "failed", why=str(first), error=first)
        ami_id = next((one.ami_id for one in rows if one.ami_id), "")
        told.append(replace(row, ami_id=ami_id, best_effort=any(one.best_effort for one in rows)))
    return told
