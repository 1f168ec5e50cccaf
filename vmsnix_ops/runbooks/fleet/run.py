"""Hands the targets of a fleet to Dask, and waits until each has come to an end."""

from __future__ import annotations

import queue
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import FleetError
from vmsnix_ops.runbooks.execution._interrupts import Interrupter, signals
from vmsnix_ops.runbooks.fleet import task
from vmsnix_ops.runbooks.fleet.cluster import check_workers, connected
from vmsnix_ops.runbooks.fleet.plan import nix_config
from vmsnix_ops.runbooks.fleet.rounds import last_word

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.runbooks.fleet import Fleet
    from vmsnix_ops.runbooks.fleet.entries import Target
    from vmsnix_ops.runbooks.fleet.ledger import Document, Ledger
    from vmsnix_ops.runbooks.fleet.table import Board

STOP_SECONDS = 45.0
"""How long a stopped fleet waits for its runs to clean up; a run itself has 30."""


STOP_AT_ONCE_SECONDS = 10.0
"""The same once it was asked again, which kills the kernels."""


@dataclass
class Stop(Interrupter):
    """Asks a fleet to stop: once, and its runs clean up; twice, and their kernels are killed.

    Attributes
    ----------
    times
        How often it was asked.
    """

    times: int = 0

    def interrupt(self) -> None:
        """Ask the fleet to stop."""
        self.requested = True
        self.times += 1


@dataclass
class Runner:
    """Hands the targets to Dask and collects what becomes of them."""

    fleet: Fleet
    ledger: Ledger
    round: str
    session: str
    stop: Stop
    documents: list[Document] = field(default_factory=list)
    _told: dict[str, Document] = field(default_factory=dict)

    def run(self, board: Board, log: Path) -> FleetError | None:
        """Run everything; return what went wrong with the fleet as a whole."""
        targets = self.fleet.plan.targets
        board.begin([(target.key, target.name) for target in targets], self.fleet.plan.name)
        trouble: FleetError | None = None
        try:
            with (
                signals(self.stop),
                connected(self.fleet.plan.dask, log=log, environment=self.fleet.environment) as client,
            ):
                check_workers(client, targets)
                trouble = self._attend(client, board)
        finally:
            self.documents = [self._last_word(target) for target in targets]
            board.end({document["key"]: document for document in self.documents})
        return trouble

    def _attend(self, client: Any, board: Board) -> FleetError | None:
        """Submit all targets, and wait until each has come back, or nothing can any more."""
        over: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # For the eye only: what counts comes with the futures, and from the ledger.
        client.subscribe_topic(task.topic(self.session), lambda event: board.tell(event[1]))
        futures: dict[str, Any] = {}
        for number, target in enumerate(self.fleet.plan.targets):
            futures[target.name] = client.submit(
                task.run_target,
                self._job(target),
                *(futures[name] for name in target.after),
                key=self._name(target),
                resources=dict(target.resources) or None,
                priority=-number,
                pure=False,
            )
        for future in futures.values():
            future.add_done_callback(over.put)
        left, asked, deadline, trouble = len(futures), 0, float("inf"), None
        while left and time.monotonic() < deadline:
            if self.stop.times > asked:
                asked = self.stop.times
                deadline = time.monotonic() + (STOP_SECONDS if asked == 1 else STOP_AT_ONCE_SECONDS)
                client.run(task.stop, self.session, on_error="ignore")
            with suppress(queue.Empty):
                future = over.get(timeout=0.2)
                left -= 1
                if future.status == "cancelled":
                    return self._scheduler_lost()
                if future.status == "error":
                    trouble = trouble or _task_lost(future)
                    continue
                document = self._told[future.key] = future.result()
                board.tell({"key": document["key"], "state": document["state"], "error": document["error"]})
        client.unsubscribe_topic(task.topic(self.session))
        return trouble

    def _name(self, target: Target) -> str:
        return f"{target.name}-{target.key}-{self.session}"

    def _last_word(self, target: Target) -> Document:
        """Return what the ledger says of a target, or a worker that could not write there."""
        document = last_word(self.ledger, target, self.round)
        return self._told.get(self._name(target), document) if document["state"] == "planned" else document

    def _job(self, target: Target) -> task.Job:
        plan = self.fleet.plan
        own = nix_config(plan.nix)
        return task.Job(
            target=target,
            fleet=self.round,
            session=self.session,
            ledger=self.fleet.ledger,
            archive=self.fleet.archive,
            folder=str(plan.folder),
            notebooks=str(plan.notebooks or ""),
            environment={"NIX_CONFIG": own} if own else {},
            lease_seconds=self.fleet.lease_seconds,
        )

    def _scheduler_lost(self) -> FleetError:
        return FleetError(
            f"The scheduler {self.fleet.plan.dask.scheduler or 'of this machine'} is gone.",
            why="Its connection broke.",
            cure="Start it and the fleet again: what is done stays done, and the rest is run.",
        )


def _task_lost(future: Any) -> FleetError:
    return FleetError(
        "What became of a run could not be told.",
        why=f"{type(future.exception()).__name__}: {future.exception()}",
        cure="Look at the log of the workers; starting the fleet again goes on with what is left.",
    )
