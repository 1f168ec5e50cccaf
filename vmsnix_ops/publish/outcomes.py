"""The results of jobs on several regions: one row for each region and step, and one status for the job."""

from __future__ import annotations

from dataclasses import dataclass, field
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
"""Columns of `Outcomes.frame`."""

ANNOUNCE = "announce"
RECORD = "record"
"""Step of a row for a region whose result could not be recorded."""
CONFLICT = "conflict"
"""Step of a row for a channel that was changed between plan and write."""
MARKED = {**{name: f"✓ {name}" for name in SUCCEEDED}, "failed": "✗ failed"}


@dataclass(frozen=True, slots=True)
class RegionStep:
    """The result of a step in a region: the fields of `COLUMNS`, and the error of a failure."""

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
    """The base class of results of jobs on several regions."""

    rows: tuple[RegionStep, ...]
    plan: _Plan
    job: ClassVar[str] = ""  # name of the job, as the beginning of a sentence: "The promotion"

    @property
    def run(self) -> RunContext:
        """The run that the job was part of."""
        return self.plan.run

    @property
    def dry_run(self) -> bool:
        """Whether nothing was changed; then failed steps would fail."""
        return self.plan.dry_run

    @property
    def fix(self) -> str:
        """What to do after a partial run."""
        return "Run the same command again: it does what is left and repeats nothing."

    @property
    def failed(self) -> tuple[RegionStep, ...]:
        """The failed steps, without those of best-effort regions."""
        return tuple(row for row in self.rows if row.outcome == "failed" and not row.best_effort)

    @property
    def status(self) -> RunStatus:
        """``"partial"`` if some steps failed and others succeeded."""
        if not self.failed:
            return "done"
        fine = any(row.outcome in ("planned", *SUCCEEDED) for row in self.rows)
        unrecorded = any(isinstance(row.error, errors.UnrecordedActError) for row in self.failed)
        return "partial" if fine or unrecorded else "failed"

    @property
    def conflicts(self) -> tuple[errors.OverwrittenValueError, ...]:
        """The unplanned changes of a channel that were overwritten."""
        found = (row.error for row in self.rows)
        return tuple(error for error in found if isinstance(error, errors.OverwrittenValueError))

    @property
    def error(self) -> errors.VmsnixError | None:
        """The error of the run; ``None`` if no step failed outside of best-effort regions."""
        if self.status == "done":
            return None
        if self.status == "failed":
            return self.failed[0].error or errors.VmsnixError(f"{self.job} failed.", why=self.failed[0].why)
        of_regions = [row for row in self.rows if row.step != ANNOUNCE]  # that row is about the topic
        regions = list(dict.fromkeys(row.region for row in of_regions))
        bad = {row.region for row in of_regions if row.outcome == "failed" and row.step != RECORD}
        lost = {row.region for row in of_regions if row.outcome == "failed"} - bad
        why = "; ".join(f"{row.region}, {row.step}: {row.why}" for row in self.failed)
        good = f"{len(regions) - len(bad)} of {counted(len(regions), 'region')}"
        if self.dry_run:
            return errors.PartialError(
                f"{self.job} would be partial: {good} would succeed.",
                why=why,
                fix="Correct the cause, or leave those regions out, then make the plan again.",
            )
        good += " succeeded" + (f", {len(lost)} could not be recorded" if lost else "")
        unrecorded = [row.error for row in self.failed if isinstance(row.error, errors.UnrecordedActError)]
        kind = errors.UnrecordedActError if unrecorded else errors.PartialError
        # Another run does not resolve a conflict: a person must decide which value is right.
        fix = " ".join(error.fix for error in self.conflicts) or self.fix
        return kind(f"{self.job} is partial: {good}.", why=why, fix=fix)

    def frame(self) -> pd.DataFrame:
        """Return one row for each region and step, with the columns `COLUMNS`."""
        import pandas as pd

        frame = pd.DataFrame([self.plain(row) for row in self.rows], columns=list(COLUMNS))
        return frame.astype({"seconds": float, "best_effort": bool})

    @staticmethod
    def plain(row: RegionStep) -> dict[str, Any]:
        """Return a row as ``result.json`` contains it."""
        return {name: getattr(row, name) for name in COLUMNS}

    def regions(self) -> pd.DataFrame:
        """Return one row for each region: ``region``, ``ami_id``, the outcome of each step, ``why``."""
        import pandas as pd

        header, lines = self._table()
        return pd.DataFrame(lines, columns=header)

    def show_steps(self) -> display.DisplayTable:
        """Return one row for each region and step: what was done, its duration, and why it failed."""
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
        # The region with the most steps has them all in order; the AMI's own region has no copy.
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
        """Return one row for each region."""
        header, lines = self._table()
        return display.make_table(header, [[MARKED.get(cell, cell) for cell in line] for line in lines])


def _region(row: RegionStep) -> str:
    return f"{row.region} (best effort)" if row.best_effort else row.region


def record_region(rows: Sequence[RegionStep], region: str, *records: Callable[[], None]) -> list[RegionStep]:
    """Record the results of a region; return them with a failed row ``record`` if that fails.

    All functions of `records` are called, also after a failure.
    """
    failures = []
    for record in records:
        try:
            record()
        except (errors.AwsError, errors.RecordsError) as error:
            failures.append(error)
    if not failures or any(one.step == RECORD and one.region == region for one in rows):
        return list(rows)
    first = failures[0]
    ami_id = next((one.ami_id for one in rows if one.ami_id), "")
    best_effort = any(one.best_effort for one in rows)
    row = RegionStep(
        region, RECORD, "failed", why=str(first), ami_id=ami_id, best_effort=best_effort, error=first
    )
    return [*rows, row]
