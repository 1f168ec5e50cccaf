"""What a Dask worker does with a target: start a process that runs it, and wait for the result.

Dask may start a task more than once, on several workers. So each task first reads the claim of its target in
the ledger: it returns the result when the target is done, waits while another process runs it, and takes
over when that process has ended.

The target runs in a process of its own: papermill, with the notebook's kernel as its child. That process owns
the claim and increases its beat, not the worker. It goes on when Dask, the worker or the client stops, and
the next task for the target waits for it. Arguments contain no secret: credentials are those of the worker.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops import __version__
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks.execution import lease
from vmsnix_ops.runbooks.execution._interrupts import Interrupter
from vmsnix_ops.runbooks.execution.execute import run
from vmsnix_ops.runbooks.execution.kernels import python_path
from vmsnix_ops.runbooks.fleet.ledger import Claim, StaleError, Watch, has_ended, ledger_id, open_ledger
from vmsnix_ops.runbooks.fleet.targets import environment_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.fleet.ledger import Document, Ledger
    from vmsnix_ops.runbooks.fleet.targets import Target

USAGE_ERROR = 2
NOT_OURS = 75  # exit code of a process that did not get the claim, or lost it
MOST_LOSSES = 3
RESULT_KEYS = ("ami_id", "snapshot_id", "image_name", "region", "account", "digest", "report", "notebook")
COMMAND = "from vmsnix_ops.runbooks.fleet.worker import main; raise SystemExit(main())"


@dataclass(frozen=True, slots=True)
class Job:
    """A target and what a worker must know to run it.

    Attributes
    ----------
    target
        What to run.
    session
        ID of the client that wants it.
    ledger, ledger_id
        Location of the ledger, and its ID.
    archive
        Location of the evidence.
    folder, notebooks
        Working directory, and the folder of the notebooks; empty: those of the package.
    environment
        Variables of all runs, such as ``NIX_CONFIG``.
    lease_seconds
        After how long without a beat a claim of another machine is taken over.
    version
        Version of this package; a worker must have the same.
    """

    target: Target
    session: str
    ledger: str
    ledger_id: str
    archive: str
    folder: str
    notebooks: str
    environment: Mapping[str, str]
    lease_seconds: float
    version: str = __version__


@dataclass
class _Sessions:
    """The sessions that were stopped, and the running processes of each session in this worker."""

    stopped: set[str] = field(default_factory=set)
    running: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


_HERE = _Sessions()


def stop(session: str) -> None:
    """Ask the runs of a client to stop; asked again, they kill their kernels. Runs in every worker."""
    with _HERE.lock:
        _HERE.stopped.add(session)
        for owner, process in _HERE.running:
            if owner == session:
                process.send_signal(signal.SIGTERM)


def run_target(job: Job, *before: Document) -> Document:
    """Bring one target to its end and return its document. An error of the target raises nothing.

    Safe to run again, also at the same time: see `vmsnix_ops.runbooks.fleet.ledger`.

    Parameters
    ----------
    job
        The target.
    before
        Documents of the targets that it waits for.
    """
    ledger = open_ledger(job.ledger)
    if job.version != __version__:
        reason = f"The worker has vmsnix_ops {__version__}, but the client has {job.version}."
        return job.target.document("failed", reason)
    if ledger_id(ledger) != job.ledger_id:
        reason = (
            f"The worker cannot see the ledger {job.ledger}: use a folder that all machines mount, or s3://."
        )
        return job.target.document("failed", reason)
    missing = [document["target"] for document in before if document["state"] != "done"]
    document = _bring_to_an_end(job, ledger, missing)
    _report(job, document["state"], document["error"])
    return document


def _bring_to_an_end(job: Job, ledger: Ledger, missing: list[str]) -> Document:
    target, watch, tries = job.target, Watch(job.lease_seconds), 0
    while True:
        document, version = ledger.read(target.claim)
        if document and target.is_done(document):
            return document
        if job.session in _HERE.stopped:
            return target.document("cancelled", "The fleet was stopped before this run started.")
        if document and document["state"] == "running" and not watch.is_abandoned(document):
            owner = document["owner"]
            _report(job, "waiting", f"It runs on {owner['host']} as process {owner['pid']}.")
            time.sleep(min(job.lease_seconds / 6, 5.0))
            continue
        wanted = _next(job, document, missing)
        if wanted["state"] != "planned":
            with suppress(StaleError):
                ledger.write(target.claim, wanted, version)
                return wanted
            continue
        _report(job, "running")
        if problem := _run_process(job, wanted, version):
            return target.document("failed", problem)
        document, _ = ledger.read(target.claim)
        if document is None or document["state"] == "running" or document["session"] != job.session:
            continue  # its process was killed, or another process was faster
        tries += 1
        useless = document["attempts"][-1]["exit_code"] == USAGE_ERROR
        if document["state"] in ("done", "cancelled") or useless or tries > target.retries:
            return document
        # Not Dask's own retries: these do not pause, and also repeat what cannot succeed.
        _report(job, "retrying", document["error"])
        until = time.monotonic() + target.retry_wait * 2 ** (tries - 1)
        while time.monotonic() < until and job.session not in _HERE.stopped:
            time.sleep(0.1)
        if job.session in _HERE.stopped:
            return document


def _next(job: Job, current: Document | None, missing: list[str]) -> Document:
    """Return the next document of a target that no process runs.

    Its state is ``planned`` if a process may claim it, else ``skipped`` or ``failed``.
    """
    wanted = job.target.document("planned") | {"session": job.session}
    if current and current["fingerprint"] == job.target.fingerprint:
        wanted["attempts"] = list(current["attempts"])
        if current["state"] == "running":
            reason = f"Its process on {current['owner']['host']} ended without a result."
            lost = {"session": current["session"], "started_at": current["started_at"], "error": reason}
            wanted["attempts"].append({"verdict": "lost", **lost})
    losses = sum(one["verdict"] == "lost" and one["session"] == job.session for one in wanted["attempts"])
    if missing:
        reason = f"Not run, because these are not done: {', '.join(missing)}."
        return wanted | {"state": "skipped", "error": reason}
    if losses >= MOST_LOSSES:
        reason = f"Its process ended {losses} times; a common reason is a lack of memory."
        return wanted | {"state": "failed", "error": reason}
    return wanted


def _run_process(job: Job, wanted: Document, version: str | None) -> str:
    """Run a target in a process of its own, and wait for its end; return why it did not start, if so."""
    with tempfile.TemporaryFile() as errors:
        # In a session of its own: a Ctrl-C in the terminal of the client reaches it once, by `stop`.
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, **python_path(os.environ)},
        )
        with _HERE.lock:
            _HERE.running.append((job.session, process))
        process.communicate(pickle.dumps((job, wanted, version)))  # ignores a pipe that is closed
        with _HERE.lock:
            _HERE.running.remove((job.session, process))
        if process.returncode in (0, NOT_OURS) or process.returncode < 0:
            return ""
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return Redactor(secret_values()).text(f"The process of the run ended with an error: {last}")


def main() -> int:
    """Run the target that a worker wrote to standard input; the program of the target's process."""
    job, wanted, version = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our parent
    return run_claimed(job, wanted, version)


def run_claimed(job: Job, wanted: Document, version: str | None) -> int:
    """Claim a target, run its notebook once, and replace the claim by the result; return the exit code."""
    interrupter = Interrupter()
    started: Document = {"session": job.session, "started_at": _now()}
    with tempfile.TemporaryDirectory(prefix="vmsnix-lease-") as folder, suppress(StaleError):
        file = Path(folder) / "until"
        claim = Claim(
            open_ledger(job.ledger),
            job.target.claim,
            wanted | started,
            version,
            seconds=job.lease_seconds,
            lease_file=file,
            on_loss=interrupter.interrupt,
        )
        with claim:
            attempt = started | {"host": claim.document["owner"]["host"]} | _attempt(job, interrupter, file)
        if not claim.lost:
            done = {"state": attempt["verdict"], "error": attempt["error"], "result": attempt["result"]}
            claim.finish(claim.document | {"attempts": [*wanted["attempts"], attempt]} | done)
            return 0
    return NOT_OURS


def _attempt(job: Job, interrupter: Interrupter, lease_file: Path) -> Document:
    """Run the notebook once and return the result."""
    target, clock = job.target, time.monotonic()
    attempt: Document = {"verdict": "failed", "exit_code": 1, "run_id": "", "result": {}}
    try:
        outcome = run(
            target.runbook,
            dict(target.given),
            folder=Path(job.notebooks) if job.notebooks else None,
            archive=job.archive,
            environment={**environment_of(target, job.environment), lease.VARIABLE: str(lease_file)},
            cwd=Path(job.folder),
            interrupter=interrupter,
            confirmed=True,  # `FleetPlan.apply` checked it
        )
    except VmsnixError as error:
        attempt |= {"exit_code": error.exit_code, "error": str(error)}
    except Exception as error:  # noqa: BLE001 - the error of one target must not end the fleet
        attempt["error"] = f"{type(error).__name__}: {error}"
    else:
        attempt |= {
            "verdict": outcome.verdict,
            "exit_code": outcome.exit_code,
            "run_id": outcome.run_id,
            "error": str(outcome.error) if outcome.error else " ".join(outcome.problems) or None,
            "result": {name: outcome.values[name] for name in RESULT_KEYS if outcome.values.get(name)},
        }
    attempt["seconds"] = round(time.monotonic() - clock, 3)
    return dict(Redactor(secret_values()).value(attempt))


def state_of(target: Target, ledger: Ledger) -> Document:
    """Return what the ledger says about a target: its document, or a new one with the state ``planned``."""
    document, _ = ledger.read(target.claim)
    if document and document["state"] == "running":
        ended = has_ended(document["owner"])
        return document | {"target": target.name, "state": "lost" if ended else "running"}
    if document and document["fingerprint"] == target.fingerprint:
        return document | {"target": target.name}
    return target.document("planned")


def topic(session: str) -> str:
    """Return the name of Dask's topic by which the workers report to a client."""
    return f"vmsnix-fleet-{session}"


def _report(job: Job, state: str, error: str | None = None) -> None:
    """Report the state of a target to the client, for its display; only the ledger counts."""
    with suppress(Exception):
        from distributed import get_worker

        get_worker().log_event(topic(job.session), {"report": (job.target.name, state, error)})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
