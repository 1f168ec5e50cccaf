"""What a worker does for one target: claim it, run it, beat while it runs, and remember what became of it.

A task may be started any number of times, by any number of workers: it finds in the ledger what is done
already, waits while somebody else runs the same target, and takes over when that one is dead. Nothing
secret is in its arguments: credentials are the worker's own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import __version__
from vmsnix_ops.errors import FleetError, VmsnixError
from vmsnix_ops.runbooks.evidence.secrets import Redactor, secret_values
from vmsnix_ops.runbooks.execution._interrupts import Interrupter, signals
from vmsnix_ops.runbooks.execution.execute import run
from vmsnix_ops.runbooks.fleet.cluster import check_workers, connected
from vmsnix_ops.runbooks.fleet.ledger import Beating, Owner, StaleError, Watch, change, last_word, open_ledger
from vmsnix_ops.runbooks.fleet.targets import environment_of, nix_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.fleet.ledger import Document, Ledger
    from vmsnix_ops.runbooks.fleet.plan_file import PlanFile
    from vmsnix_ops.runbooks.fleet.table import Board
    from vmsnix_ops.runbooks.fleet.targets import Target


WRONG_USE = 2
DEATHS = 3  # a target whose worker died so often is not given to another one
RESULT_KEYS = ("ami_id", "snapshot_id", "image_name", "region", "account", "digest", "report", "notebook")


@dataclass(frozen=True, slots=True)
class Job:
    """A target and everything that a worker must know to run it.

    Attributes
    ----------
    target
        What to run.
    fleet, session
        The round that it belongs to, and the start of the fleet that asks for it now.
    ledger, archive
        Where it is remembered, and where its run's folder goes.
    folder, notebooks
        Working directory, and the notebooks; empty: the package's own.
    environment
        Variables of all runs, such as ``NIX_CONFIG``.
    lease_seconds
        How long a run that gives no sign is waited for.
    version
        Of this package, which the worker's must equal.
    """

    target: Target
    fleet: str
    session: str
    ledger: str
    archive: str
    folder: str
    notebooks: str
    environment: Mapping[str, str]
    lease_seconds: float
    version: str = __version__

    @property
    def document(self) -> str:
        """Name of its document in the ledger."""
        return f"targets/{self.target.key}.json"


@dataclass
class _Running:
    """The runs of this process, so that a client can ask them to stop."""

    stopped: set[str] = field(default_factory=set)
    interrupters: dict[str, tuple[str, Interrupter]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_HERE = _Running()


def stop(session: str) -> int:
    """Ask the runs of this process that belong to a start of a fleet to stop; return how many there are.

    Asked again, their kernels are killed. A client calls this in every worker.
    """
    with _HERE.lock:
        _HERE.stopped.add(session)
        asked = [interrupter for owner, interrupter in _HERE.interrupters.values() if owner == session]
    for interrupter in asked:
        interrupter.interrupt()
    return len(asked)


def run_target(job: Job, *before: Document) -> Document:
    """Bring one target to an end, and return its document; an error of the target raises nothing.

    Parameters
    ----------
    job
        The target.
    before
        Documents of the targets that it waits for.
    """
    ledger = open_ledger(job.ledger)
    if job.version != __version__:
        return _blank(
            job, "failed", error=f"The worker has vmsnix_ops {__version__}, but the client has {job.version}."
        )
    if ledger.read(f"fleets/{job.fleet}.json") is None:
        reason = (
            f"The worker cannot see the ledger {job.ledger}: use a folder that all machines mount, or s3://."
        )
        return _blank(job, "failed", error=reason)
    missing = [document["target"] for document in before if document["state"] != "done"]
    return _Claim(job, ledger).bring_to_an_end(missing)


@dataclass
class _Claim:
    """One worker's way with one target."""

    job: Job
    ledger: Ledger
    owner: Owner = field(default_factory=Owner.this_process)

    def bring_to_an_end(self, missing: list[str]) -> Document:
        """Wait, claim and run until the target has a final document in this round."""
        watch = Watch(self.job.lease_seconds)
        while True:
            if self.job.session in _HERE.stopped:
                return _blank(self.job, "cancelled", error="The fleet was stopped before this run started.")
            dead: list[str] = []
            if self._runs_elsewhere(watch, dead):
                self._tell("waiting")
                time.sleep(min(self.job.lease_seconds / 6, 5.0))
                continue
            document = change(
                self.ledger, self.job.document, partial(self._claim, missing=missing, dead=dead)
            )
            if document is None:
                continue
            if document["state"] != "running":
                self._tell(document["state"], document)
                return document
            if document["owner"]["id"] == self.owner.id:
                with contextlib.suppress(StaleError):  # somebody took it over: look again
                    return self._run(document)

    def _runs_elsewhere(self, watch: Watch, dead: list[str]) -> bool:
        """Tell whether a living run has the target; the id of a dead one goes to `dead`."""
        kept = self.ledger.read(self.job.document)
        if kept is None or kept.value["state"] != "running":
            return False
        if not watch.has_ended(kept.value):
            return True
        dead.append(f"{kept.value['owner']['id']} {kept.value['beat']}")
        return False

    def _claim(self, now: Document | None, missing: list[str], dead: list[str]) -> Document | None:
        """Return the document with which the target is ours, or final; ``None`` leaves it as it is."""
        if now is not None and now["state"] == "running":
            if f"{now['owner']['id']} {now['beat']}" not in dead:
                return None  # somebody was faster
            lost = {
                **now.get("attempt", {}),
                "verdict": "lost",
                "error": f"Its process on {now['owner']['host']} ended without a result.",
            }
            now["attempts"] = [*now["attempts"], lost]
        mine = now if now is not None and now["fleet"] == self.job.fleet else _blank(self.job, "running")
        if mine["state"] == "done":
            return None
        mine |= {"owner": self.owner.as_dict(), "beat": 0, "session": self.job.session}
        deaths = sum(attempt["verdict"] == "lost" for attempt in mine["attempts"] if self._ours(attempt))
        if missing:
            return mine | {
                "state": "skipped",
                "error": f"Not run, because these are not done: {', '.join(missing)}.",
            }
        if deaths >= DEATHS:
            reason = f"Its worker ended {deaths} times; a common reason is a lack of memory."
            return mine | {"state": "failed", "error": reason}
        return mine | {"state": "running", "error": None}

    def _ours(self, attempt: Document) -> bool:
        return bool(attempt.get("session") == self.job.session)

    def _run(self, document: Document) -> Document:
        """Run the claimed target until it is done or has no retries left.

        Raises
        ------
        StaleError
            When the lease was lost.
        """
        target, job = self.job.target, self.job
        tries = 0
        while True:
            tries += 1
            interrupter = Interrupter()
            started: Document = {"session": job.session, "started_at": _now(), "host": self.owner.host}
            beating = self._beating(document | {"attempt": started}, interrupter)
            self._tell("running", {"attempts": document["attempts"], "try": tries})
            with beating, _stoppable(job.session, self.owner.id, interrupter):
                attempt = started | self._attempt(interrupter)
            if beating.lost:
                raise StaleError(job.document)
            document = beating.document | {"attempts": [*document["attempts"], attempt]}
            document.pop("attempt", None)
            again = (
                attempt["verdict"] not in ("done", "cancelled")
                and attempt["exit_code"] != WRONG_USE  # stays wrong
                and tries <= target.retries
                and job.session not in _HERE.stopped
            )
            state = "running" if again else attempt["verdict"]
            document |= {"state": state, "error": attempt["error"], "result": attempt["result"]}
            beating.write(document)
            if not again:
                self._tell(state, document)
                return document
            self._tell("retrying", document)
            with self._beating(document, interrupter) as waiting:
                interrupted = job.session in _HERE.stopped or _sleep(
                    job, target.retry_wait * 2 ** (tries - 1)
                )
            document = waiting.document
            if interrupted:
                document |= {"state": "cancelled"}
                waiting.write(document)
                return document

    def _beating(self, document: Document, interrupter: Interrupter) -> Beating:
        return Beating(self.ledger, self.job.document, document, interrupter, self.job.lease_seconds)

    def _attempt(self, interrupter: Interrupter) -> Document:
        """Run the notebook once and return what became of it."""
        job, target = self.job, self.job.target
        clock = time.monotonic()
        try:
            environment = environment_of(target, job.environment)
            outcome = run(
                target.runbook,
                dict(target.given),
                folder=Path(job.notebooks) if job.notebooks else None,
                archive=job.archive,
                environment=environment,
                cwd=Path(job.folder),
                interrupter=interrupter,
                confirmed=True,  # by whoever applied the plan, which says so itself
            )
        except VmsnixError as error:
            text = Redactor(secret_values()).text(str(error))
            return _ended("failed", error.exit_code, clock, text)
        except Exception as error:  # noqa: BLE001 - one target's surprise must not end the fleet
            text = Redactor(secret_values()).text(f"{type(error).__name__}: {error}")
            return _ended("failed", 1, clock, text)
        result = {name: outcome.values[name] for name in RESULT_KEYS if outcome.values.get(name)}
        problems = " ".join(outcome.problems)
        return _ended(
            outcome.verdict,
            outcome.exit_code,
            clock,
            str(outcome.error) if outcome.error else problems or None,
            run_id=outcome.run_id,
            result=result,
        )

    def _tell(self, state: str, document: Document | None = None) -> None:
        """Tell whoever watches; nobody has to."""
        with contextlib.suppress(Exception):  # the ledger is what counts
            from distributed import get_worker

            worker = get_worker()
            told = {"key": self.job.target.key, "state": state, "worker": str(worker.name), "at": time.time()}
            if document is not None:
                told |= {
                    "error": document.get("error"),
                    "tries": len(document.get("attempts", ())),
                    "pid": os.getpid(),
                }
            worker.log_event(topic(self.job.session), told)


@contextlib.contextmanager
def _stoppable(session: str, claim: str, interrupter: Interrupter) -> Any:
    with _HERE.lock:
        _HERE.interrupters[claim] = (session, interrupter)
    if session in _HERE.stopped:
        interrupter.interrupt()
    try:
        yield
    finally:
        with _HERE.lock:
            del _HERE.interrupters[claim]


def topic(session: str) -> str:
    """Return the name under which a start of a fleet hears from its workers."""
    return f"vmsnix-fleet-{session}"


def _sleep(job: Job, seconds: float) -> bool:
    """Wait before a retry; return whether the fleet was stopped meanwhile."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if job.session in _HERE.stopped:
            return True
        time.sleep(0.1)
    return False


def _blank(job: Job, state: str, *, error: str | None = None) -> Document:
    target = job.target
    return {
        "target": target.name,
        "key": target.key,
        "fleet": job.fleet,
        "session": job.session,
        "runbook": target.runbook,
        "state": state,
        "owner": None,
        "beat": 0,
        "attempts": [],
        "error": error,
        "result": {},
    }


def _ended(
    verdict: str,
    exit_code: int,
    clock: float,
    error: str | None,
    *,
    run_id: str = "",
    result: Document | None = None,
) -> Document:
    return {
        "verdict": verdict,
        "exit_code": exit_code,
        "seconds": round(time.monotonic() - clock, 3),
        "error": error,
        "run_id": run_id,
        "result": result or {},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# Hands the targets of a fleet to Dask, and waits until each has come to an end.


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
    """Hands the targets to Dask and collects what becomes of them.

    Attributes
    ----------
    plan
        The plan file, checked.
    ledger
        Where it is remembered what is done.
    ledger_place, archive
        How the workers find it, and where the evidence of their runs goes.
    round, session
        The round of the fleet, and this start of it.
    stop
        By which another thread can stop it.
    lease_seconds
        How long a run that gives no sign of life is waited for.
    environment
        Variables for the workers of a cluster of this machine.
    documents
        What became of each target, in the end.
    """

    plan: PlanFile
    ledger: Ledger
    ledger_place: str
    archive: str
    round: str
    session: str
    stop: Stop
    lease_seconds: float
    environment: Mapping[str, str]
    documents: list[Document] = field(default_factory=list)
    _told: dict[str, Document] = field(default_factory=dict)

    def run(self, board: Board, log: Path) -> FleetError | None:
        """Run everything; return what went wrong with the fleet as a whole."""
        targets = self.plan.targets
        board.begin([(target.key, target.name) for target in targets], self.plan.name)
        trouble: FleetError | None = None
        try:
            with (
                signals(self.stop),
                connected(self.plan.dask, log=log, environment=self.environment) as client,
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
        client.subscribe_topic(topic(self.session), lambda event: board.tell(event[1]))
        futures: dict[str, Any] = {}
        for number, target in enumerate(self.plan.targets):
            futures[target.name] = client.submit(
                run_target,
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
                client.run(stop, self.session, on_error="ignore")
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
        client.unsubscribe_topic(topic(self.session))
        return trouble

    def _name(self, target: Target) -> str:
        return f"{target.name}-{target.key}-{self.session}"

    def _last_word(self, target: Target) -> Document:
        """Return what the ledger says of a target, or a worker that could not write there."""
        document = last_word(self.ledger, target, self.round)
        return self._told.get(self._name(target), document) if document["state"] == "planned" else document

    def _job(self, target: Target) -> Job:
        own = nix_config(self.plan.nix)
        return Job(
            target=target,
            fleet=self.round,
            session=self.session,
            ledger=self.ledger_place,
            archive=self.archive,
            folder=str(self.plan.folder),
            notebooks=str(self.plan.notebooks or ""),
            environment={"NIX_CONFIG": own} if own else {},
            lease_seconds=self.lease_seconds,
        )

    def _scheduler_lost(self) -> FleetError:
        return FleetError(
            f"Lost the scheduler {self.plan.dask.scheduler or 'of this machine'}.",
            why="The connection closed.",
            fix="Start it and the fleet again: finished targets are kept, and the rest is run.",
        )


def _task_lost(future: Any) -> FleetError:
    return FleetError(
        "The outcome of a run is unknown.",
        why=f"{type(future.exception()).__name__}: {future.exception()}",
        fix="Check the log of the workers. Starting the fleet again continues with what is left.",
    )
