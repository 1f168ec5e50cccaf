"""What happened, written down three times: for the operator, for the next run, for the tables.

A step is announced before it starts and closed when it ends, however it ends. The journal file is appended
line by line and flushed, so that it tells the truth about a process that was killed; the ``steps`` table gets
one row a step.
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
from vmsnix_ops.publish.outcomes import recorded
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
class Entry:
    """What a step adds to its own record while it runs."""

    step: Step
    bytes: int = 0
    items: int | None = None
    outcome: StepOutcome = "created"
    detail: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Records the steps of one run.

    Parameters
    ----------
    run
        The run; ``journal.jsonl`` goes into its folder.
    tables
        Where the ``steps`` rows go.
    progress
        The face that the operator sees.
    region, account, via
        Where and how; columns of every row.
    """

    def __init__(
        self, run: RunContext, tables: RunTables, progress: Progress, *, region: str, account: str, via: str
    ) -> None:
        self.run, self.tables, self.progress = run, tables, progress
        self.region, self.account, self.via = region, account, via
        self.image, self.digest = "", ""  # its name may be known before it is built, its digest is not
        self.timings: list[StepTiming] = []
        self._unsaved: dict[str, None] = {}  # in the tables; the run's folder has the rows
        self._unwritten: dict[str, None] = {}  # in the run's folder
        self.started_at = datetime.now(UTC)
        self._path = run.folder / "journal.jsonl"

    @contextmanager
    def step(
        self, name: str, *, total: float | None = None, unit: Unit = "items", shown: bool = True
    ) -> Iterator[Entry]:
        """Run the block as one step: announced, timed, and recorded also when it fails.

        Parameters
        ----------
        name
            Of the step.
        total, unit
            Its size, for the operator.
        shown
            False when what runs inside shows its own progress.
        """
        started = datetime.now(UTC)
        face = self.progress if shown else silent()
        with (
            self._at_work(),
            acts.recording(self.run.folder, self.run.run_id),
            face.step(name, total=total, unit=unit) as step,
        ):
            self._write(name, "started", region=self.region, account=self.account, via=self.via)
            entry = Entry(step)
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
                except (OSError, RecordsError) as unsaved:  # it must not hide why the step failed
                    error.add_note(f"The failure could not be recorded: {unsaved}")
                raise
            self._close(name, entry.outcome, started, entry)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Hold the journal's lock, so that nobody undoes what is under way; death releases it too."""
        descriptor = -1
        with self.saving():
            files.make_folder(self.run.folder)
            descriptor = files.create(self._path, os.O_RDWR)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def save_again(self) -> tuple[str, ...]:
        """Save once more what could not be saved; return what still cannot be, as sentences."""
        if self._unsaved:
            self._unsaved = dict.fromkeys(append_unsaved(self.run.folder, self.tables))
        return self.problems

    def slow(self) -> tuple[SlowStep, ...] | None:
        """Return the steps so far that were slow by their own history; ``None`` when it cannot be read.

        By then the work is done, so that a table which cannot be read must not end the run as failed.
        """
        try:
            return timings.slow_steps(
                self.tables, self.run.run_id, image=self.image, region=self.region, via=self.via
            )
        except RecordsError:
            return None

    def finish(self, result: PublishResult) -> None:
        """Write ``result.json``, and the row in ``runs`` unless a runner will do that."""
        if not result.dry_run:
            self._record_run("done", image_name=result.image_name, ami_id=result.ami_id)
        with self.saving():
            write_result(self.run, result.as_dict())

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Collect the block's error in `problems`: a record that cannot be saved must not stop the work."""
        try:
            yield
        except RecordsError as error:
            self._unsaved[str(error)] = None
        except OSError as error:
            self._unwritten[f"A record of the run could not be written: {error}."] = None

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be saved, as sentences."""
        return (*self._unwritten, *self._unsaved, *self.tables.problems)

    def _record_run(self, status: str, **more: str) -> None:
        where = {"region": self.region, "account": self.account, "image": self.image or None}
        with self.saving():
            record_run(self.run, self.tables, status, self.started_at, **where, **more)

    def _close(self, name: str, status: str, started: datetime, entry: Entry) -> None:
        finished = datetime.now(UTC)
        seconds = (finished - started).total_seconds()
        self._write(name, status, seconds=seconds, bytes=entry.bytes, detail=entry.detail)
        self.timings.append(
            StepTiming(name, "failed" if status == "failed" else entry.outcome, seconds, entry.bytes)
        )
        if entry.outcome == "planned":
            return  # a dry run leaves no trace in the tables
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


Some = TypeVar("Some", bound="Outcomes")


def record_run(run: RunContext, tables: Tables, status: str, started_at: datetime, **more: Any) -> None:
    """Write the row in ``runs`` of a run that no runner looks after; the first one of a run counts."""
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
        **more,
    }
    tables.append("runs", [row], once=run.run_id)


def record_outcomes(
    run: RunContext, tables: Tables, outcomes: Some, started_at: datetime, **more: Any
) -> Some:
    """Write the row in ``runs`` of a job on several regions, as `record_run` does.

    Where that fails, what was done is done: the outcomes say so in a row of their own.
    """
    error = outcomes.error
    failure = {"error": str(error)} if error else {}

    def record() -> None:
        record_run(run, tables, outcomes.status, started_at, **more, **failure)

    return replace(outcomes, rows=tuple(recorded(outcomes.rows, str(more["region"]), record)))
