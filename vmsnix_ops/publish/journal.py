"""Record the steps of a run: in its journal file, in the tables, and as progress for the operator.

The journal file gets a line when a step starts and when it ends, so that it is complete also after the
process was killed. The table ``steps`` gets one row for each step.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops import __version__, files
from vmsnix_ops.errors import InterruptedRunError, RecordsError
from vmsnix_ops.progress import silent
from vmsnix_ops.publish.outcomes import record_region
from vmsnix_ops.publish.values import PublishResult, StepTiming
from vmsnix_ops.records import acts, timings
from vmsnix_ops.records.result import write_result
from vmsnix_ops.records.run_tables import RunTables, append_unsaved
from vmsnix_ops.settings import user_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Progress, Step, Unit
    from vmsnix_ops.publish.outcomes import Outcomes
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.tables import Tables
    from vmsnix_ops.records.timings import SlowStep


@dataclass
class JournalEntry:
    """The values that a step adds to its record."""

    step: Step
    bytes: int = 0
    items: int | None = None
    outcome: StepOutcome = "created"
    detail: dict[str, Any] = field(default_factory=dict)


class StepJournal:
    """Records the steps of one run: in ``journal.jsonl`` of its folder, the tables and the progress.

    `region`, `account` and `via` are columns of each row.
    """

    def __init__(
        self, run: RunContext, tables: RunTables, progress: Progress, *, region: str, account: str, via: str
    ) -> None:
        self.run, self.tables, self.progress = run, tables, progress
        self.region, self.account, self.via = region, account, via
        self.image, self.digest = "", ""  # set when they are known
        self.dry_run = False
        self.timings: list[StepTiming] = []
        self._unsaved: dict[str, None] = {}  # problems with the tables; the run's folder has the rows
        self._unwritten: dict[str, None] = {}  # problems with the run's folder
        self.started_at = datetime.now(UTC)
        self._path = run.folder / "journal.jsonl"

    @contextmanager
    def step(
        self, name: str, *, total: float | None = None, unit: Unit = "items", shown: bool = True
    ) -> Iterator[JournalEntry]:
        """Run the block as a step, and record it, also if it fails.

        `total` and `unit` are its size; `shown` is false if the block shows its own progress.
        """
        started = datetime.now(UTC)
        progress = self.progress if shown else silent()
        with (
            self._locked(),
            acts.recording(self.run.folder, self.run.run_id),
            progress.step(name, total=total, unit=unit) as step,
        ):
            self._write(name, "started", region=self.region, account=self.account, via=self.via)
            entry = JournalEntry(step)
            try:
                yield entry
            except BaseException as error:
                entry.detail["error"] = str(error) or type(error).__name__
                interrupted = isinstance(error, KeyboardInterrupt | InterruptedRunError)
                try:
                    self._close(name, "failed", started, entry)
                    self._record_run(
                        "cancelled" if interrupted else "failed", error=str(entry.detail["error"])
                    )
                except (OSError, RecordsError) as unsaved:  # must not replace the error of the step
                    error.add_note(f"The failure could not be recorded: {unsaved}")
                raise
            self._close(name, entry.outcome, started, entry)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the journal, so that `vmsnix undo` refuses a running run. The lock ends with the process."""
        descriptor = -1
        with self.saving():
            files.make_folder(self.run.folder)
            descriptor = files.create(self._path, os.O_RDWR)
            with suppress(OSError):  # on a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def save_again(self) -> tuple[str, ...]:
        """Save the unsaved records again; return the remaining problems, as sentences."""
        if self._unsaved:
            self._unsaved = dict.fromkeys(append_unsaved(self.run.folder, self.tables))
        return self.problems

    def slow(self) -> tuple[SlowStep, ...] | None:
        """Return the steps that were slow compared with their history; ``None`` if it cannot be read."""
        try:
            return timings.slow_steps(
                self.tables, self.run.run_id, image=self.image, region=self.region, via=self.via
            )
        except RecordsError:
            return None

    def finish(self, result: PublishResult) -> None:
        """Write ``result.json``, and the row in ``runs`` unless a runner writes it."""
        if not result.dry_run:
            self._record_run("done", image_name=result.image_name, ami_id=result.ami_id)
        with self.saving():
            write_result(self.run, result.as_dict())

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Collect the block's error in `problems`, so that an unsaved record does not stop the run."""
        try:
            yield
        except RecordsError as error:
            self._unsaved[str(error)] = None
        except OSError as error:
            self._unwritten[f"A record of the run could not be written: {error}."] = None

    @property
    def problems(self) -> tuple[str, ...]:
        """The records that could not be saved, as sentences."""
        return (*self._unwritten, *self._unsaved, *self.tables.problems)

    def _record_run(self, status: str, **more: str) -> None:
        known = {"region": self.region, "account": self.account, "image": self.image or None}
        with self.saving():
            record_run(self.run, self.tables, status, self.started_at, dry_run=self.dry_run, **known, **more)

    def _close(self, name: str, status: str, started: datetime, entry: JournalEntry) -> None:
        finished = datetime.now(UTC)
        seconds = (finished - started).total_seconds()
        self._write(name, status, seconds=seconds, bytes=entry.bytes, detail=entry.detail)
        self.timings.append(
            StepTiming(name, "failed" if status == "failed" else entry.outcome, seconds, entry.bytes)
        )
        if entry.outcome == "planned":
            return  # a dry run is not recorded in the tables
        row = {
            "run_id": self.run.run_id,
            "step": name,
            "status": status,
            "started_at": started,
            "finished_at": finished,
            "seconds": seconds,
            "bytes": entry.bytes,
            "items": entry.items,
            "image": self.image or None,
            "digest": self.digest or None,
            "region": self.region,
            "account": self.account or None,
            "via": self.via or None,
            "detail": entry.detail,
        }
        with self.saving():
            self.tables.append("steps", [row], once=f"{self.run.run_id}/{name}/{len(self.timings)}")

    def _write(self, name: str, status: str, **more: Any) -> None:
        line = {
            "at": datetime.now(UTC).isoformat(),
            "run_id": self.run.run_id,
            "step": name,
            "status": status,
            **more,
        }
        with self.saving():
            files.append_line(self._path, json.dumps(line, default=str), durable=True)


AnyOutcomes = TypeVar("AnyOutcomes", bound="Outcomes")


def record_run(run: RunContext, tables: Tables, status: str, started_at: datetime, **more: Any) -> None:
    """Write the row in ``runs``, unless a runner writes it; of several rows of a run the first one counts."""
    if run.managed:
        return
    finished = datetime.now(UTC)
    row = {
        "run_id": run.run_id,
        "runbook": run.runbook,
        "status": status,
        "started_at": started_at,
        "finished_at": finished,
        "seconds": (finished - started_at).total_seconds(),
        "user": user_name(),
        "host": socket.gethostname(),
        "version": __version__,
        "dry_run": False,
        **more,
    }
    tables.append("runs", [row], once=run.run_id)


def record_outcomes(
    run: RunContext, tables: Tables, outcomes: AnyOutcomes, started_at: datetime, **more: Any
) -> AnyOutcomes:
    """Write the row in ``runs`` of a job on several regions; return the outcomes as `recorded` does."""
    error = outcomes.error
    failure = {"error": str(error)} if error else {}

    def record() -> None:
        record_run(run, tables, outcomes.status, started_at, **more, **failure)

    return replace(outcomes, rows=tuple(record_region(outcomes.rows, str(more["region"]), record)))
