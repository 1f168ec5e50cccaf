"""The targets of a fleet, and the Dask task that runs one in a process of its own.

Dask can start a task more than once, on several workers. So a task first reads the claim of its target: it
returns the result if the target is done, and waits while another process runs it. The process of a target
runs papermill, and the notebook's kernel is its child. It owns the claim, and continues when its worker or
the client ends. Workers have their own credentials: the client sends them no secrets.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import __version__
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.progress import counted
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks.execution import lease
from vmsnix_ops.runbooks.execution._interrupts import Interrupter
from vmsnix_ops.runbooks.execution.execute import run
from vmsnix_ops.runbooks.execution.kernels import python_path
from vmsnix_ops.runbooks.fleet.ledger import IDENTITY, Claim, Ledger, StaleError, Watch, has_ended

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.fleet.ledger import Document

USAGE_ERROR = 2
NOT_OURS = 75  # exit code of a process that did not get the claim, or lost it
MOST_LOSSES = 3  # after this many processes without a result, a target is failed
RESULT_KEYS = (
    "ami_id",
    "snapshot_id",
    "image_name",
    "region",
    "account",
    "digest",
    "report",
    "notebook",
    "dry_run",
)
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
JOB_FILES = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")
COMMAND = "from vmsnix_ops.runbooks.fleet.worker import main; raise SystemExit(main())"


@dataclass(frozen=True, slots=True)
class Account:
    """An AWS account of a plan file; `plan_file.AccountTable` describes the fields."""

    name: str = ""
    id: str = ""
    role: str = ""
    profile: str = ""


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """One run of one runbook."""

    name: str  # the entry, and the values that distinguish the target: publish/ecs-node/eu-central-1
    runbook: str
    axes: Mapping[str, object]  # one value from each list of the entry
    given: Mapping[str, object]  # the parameters, with their declared types
    key: str  # hash of the content: runbook, parameters, environment, account
    account: Account = field(default_factory=Account)
    environment: Mapping[str, str] = field(default_factory=dict)  # never credentials
    resources: Mapping[str, float] = field(default_factory=dict)  # that a worker must have
    retries: int = 0
    retry_wait: float = 5.0  # seconds before the first retry; doubled each time
    effects: str = "read_only"  # read_only (also in a dry run), creates, changes or deletes
    own: bool = False  # a runbook that is not one of the package
    modified: bool = False  # may run although its notebook was modified
    after: tuple[str, ...] = ()  # names of the targets that must be done first
    fingerprint: str = ""  # hash of the plan's name, the key, and the fingerprints of the targets in `after`

    @property
    def claim(self) -> str:
        """Name of its document in the ledger; equal targets of two plans share it."""
        return f"targets/{self.key}.json"

    def is_done(self, document: Document) -> bool:
        """Return whether a document of the ledger is the result of this target, and the target is done."""
        return (document["state"], document.get("fingerprint")) == ("done", self.fingerprint)

    def document(self, state: str, error: str | None = None) -> Document:
        """Return a new document of the target, without attempts."""
        return {
            "target": self.name,
            "runbook": self.runbook,
            "fingerprint": self.fingerprint,
            "state": state,
            "session": "",
            "attempts": [],
            "error": error,
            "result": {},
        }

    def described(self) -> dict[str, Any]:
        """Return ``parameters``, ``after``, ``needs`` and ``retries`` for tables."""
        return {
            "parameters": ", ".join(f"{name}={value}" for name, value in self.given.items()),
            "after": ", ".join(self.after),
            "needs": ", ".join(f"{name}={count:g}" for name, count in self.resources.items()),
            "retries": self.retries,
        }

    def __str__(self) -> str:
        given = " ".join(f"{name}={value}" for name, value in self.given.items())
        parts = [f"{self.runbook}{' (own)' if self.own else ''} {given}".strip()]
        parts += [f"{word} {found}" for word in ("after", "needs") if (found := self.described()[word])]
        parts += ["deletes"] if self.effects == "deletes" else []
        parts += [counted(self.retries, "retry", "retries")] if self.retries else []
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class FleetSession:
    """One start of a fleet: the values that a worker needs to run its targets."""

    id: str
    ledger: str
    ledger_id: str
    archive: str
    folder: str  # working directory
    notebooks: str  # empty: those of the package
    environment: Mapping[str, str]  # of all runs, such as NIX_CONFIG
    lease_seconds: float  # without a beat, until a claim of another machine is taken over
    version: str = __version__


_lock = threading.Lock()
_stopped: set[str] = set()  # IDs of sessions
_running: dict[str, list[subprocess.Popen[bytes]]] = defaultdict(list)  # by ID of their session


def dask_setup(_worker: object) -> None:
    """Ignore the signals of the client's terminal, because the client calls `stop`. Dask calls this."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the runs would inherit


def stop(session: str) -> None:
    """Interrupt the runs of a client; the second time, they kill their kernels. Runs in every worker."""
    with _lock:
        _stopped.add(session)
        for process in _running[session]:
            process.send_signal(signal.SIGTERM)


def run_target(session: FleetSession, target: FleetTarget, *before: Document) -> Document:
    """Run a target, with its retries, and return its document. An error of the target is not raised.

    `before` are the documents of the targets that must be done first. Safe to run twice, also at the same
    time: only the process with the claim runs the target.
    """
    ledger, watch, tries = Ledger(session.ledger), Watch(session.lease_seconds), 0
    if session.version != __version__:
        problem = f"The worker has vmsnix_ops {__version__}, but the client has {session.version}."
        return target.document("failed", problem)
    if ledger.read(IDENTITY)[0] != {"id": session.ledger_id}:
        fix = "use a folder that all machines mount, or s3://."
        problem = f"The worker has no access to the ledger {session.ledger}: {fix}"
        return target.document("failed", problem)
    missing = [document["target"] for document in before if document["state"] != "done"]
    report = partial(_report, session.id, target.name)
    while True:
        document, version = ledger.read(target.claim)
        if document and target.is_done(document):
            return document
        if session.id in _stopped:
            return target.document("cancelled", "The fleet was stopped before this run started.")
        if document and document["state"] == "running" and not watch.is_abandoned(document):
            owner = document["owner"]
            report("waiting", f"It runs on {owner['host']} as process {owner['pid']}.")
            time.sleep(min(session.lease_seconds / 6, 5.0))
            continue
        wanted = _next(session, target, document, missing)
        if wanted["state"] != "planned":
            with suppress(StaleError):
                ledger.write(target.claim, wanted, version)
                return wanted
            continue
        report("running")
        if problem := _run_process(session, target, wanted, version):
            return target.document("failed", problem)
        document, _ = ledger.read(target.claim)
        if document is None or document["state"] == "running" or document["session"] != session.id:
            continue  # its process was killed, or another process has the claim
        tries += 1
        useless = document["attempts"][-1]["exit_code"] == USAGE_ERROR
        if document["state"] in ("done", "cancelled") or useless or tries > target.retries:
            return document
        # Not Dask's own retries, which do not pause and also repeat usage errors.
        report("retrying", document["error"])
        until = time.monotonic() + target.retry_wait * 2 ** (tries - 1)
        while time.monotonic() < until and session.id not in _stopped:
            time.sleep(0.1)
        if session.id in _stopped:
            return document


def _next(
    session: FleetSession, target: FleetTarget, current: Document | None, missing: list[str]
) -> Document:
    """Return the next document of a target that no process runs.

    Its state is ``planned`` if a process may claim the target, otherwise ``skipped`` or ``failed``.
    """
    wanted = target.document("planned") | {"session": session.id}
    if current and current.get("fingerprint") == target.fingerprint:
        wanted["attempts"] = list(current["attempts"])
        if current["state"] == "running":
            reason = f"Its process on {current['owner']['host']} ended without a result."
            lost = {"session": current["session"], "started_at": current["started_at"], "error": reason}
            wanted["attempts"].append({"status": "lost", **lost})
    losses = sum(one["status"] == "lost" and one["session"] == session.id for one in wanted["attempts"])
    if missing:
        reason = f"Not run, because these are not done: {', '.join(missing)}."
        wanted |= {"state": "skipped", "error": reason}
    elif losses >= MOST_LOSSES:
        reason = f"Its process ended {losses} times; a common reason is a lack of memory."
        wanted |= {"state": "failed", "error": reason}
    return wanted


def _run_process(session: FleetSession, target: FleetTarget, wanted: Document, version: str | None) -> str:
    """Run a target in a process of its own, and wait for its end; return an error outside of the run."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # so that Ctrl-C in the client's terminal interrupts it only by `stop`
            env={**os.environ, **python_path(os.environ)},
        )
        with _lock:
            _running[session.id].append(process)
        process.communicate(json.dumps([asdict(session), asdict(target), wanted, version]).encode())
        with _lock:
            _running[session.id].remove(process)
        if process.returncode in (0, NOT_OURS) or process.returncode < 0:
            return ""
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return Redactor(secret_values()).text(f"The process of the run ended with an error: {last}")


def main() -> int:
    """Run the target that a worker has written to standard input."""
    session, target, wanted, version = json.load(sys.stdin.buffer)
    target |= {"account": Account(**target["account"]), "after": tuple(target["after"])}
    return run_claimed(FleetSession(**session), FleetTarget(**target), wanted, version)


def run_claimed(session: FleetSession, target: FleetTarget, wanted: Document, version: str | None) -> int:
    """Claim a target, run its notebook once, and replace the claim by the result; return the exit code."""
    interrupter = Interrupter()
    started = {"session": session.id, "started_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    with tempfile.TemporaryDirectory(prefix="vmsnix-lease-") as folder, suppress(StaleError):
        file = Path(folder) / "until"
        claim = Claim(
            Ledger(session.ledger),
            target.claim,
            wanted | started,
            version,
            seconds=session.lease_seconds,
            lease_file=file,
            on_loss=interrupter.interrupt,
        )
        with claim:
            attempt = (
                started
                | {"host": claim.document["owner"]["host"]}
                | _attempt(session, target, interrupter, file)
            )
        if not claim.lost:
            result = {"state": attempt["status"], "error": attempt["error"], "result": attempt["result"]}
            claim.finish(claim.document | {"attempts": [*wanted["attempts"], attempt]} | result)
            return 0
    return NOT_OURS


def _attempt(
    session: FleetSession, target: FleetTarget, interrupter: Interrupter, lease_file: Path
) -> Document:
    """Run the notebook once, and return the result."""
    clock = time.monotonic()
    attempt: Document = {"status": "failed", "exit_code": 1, "run_id": "", "result": {}}
    try:
        outcome = run(
            target.runbook,
            dict(target.given),
            folder=Path(session.notebooks) if session.notebooks else None,
            archive=session.archive,
            environment={**environment_of(target, session.environment), lease.VARIABLE: str(lease_file)},
            cwd=Path(session.folder),
            interrupter=interrupter,
            confirmed=True,  # `FleetPlan.apply` checked it
            modified=target.modified,
        )
    except VmsnixError as error:
        attempt |= {"exit_code": error.exit_code, "error": str(error)}
    except Exception as error:  # noqa: BLE001 - the error of one target must not end the fleet
        attempt["error"] = f"{type(error).__name__}: {error}"
    else:
        attempt |= {name: getattr(outcome, name) for name in ("status", "exit_code", "run_id")}
        if outcome.status == "partial" and outcome.error is None:  # only evidence is missing
            attempt["status"] = "done"
        attempt["error"] = str(outcome.error) if outcome.error else " ".join(outcome.problems) or None
        attempt["result"] = {name: outcome.values[name] for name in RESULT_KEYS if outcome.values.get(name)}
    attempt["seconds"] = round(time.monotonic() - clock, 3)
    return dict(Redactor(secret_values()).value(attempt))


def environment_of(target: FleetTarget, common: Mapping[str, str]) -> dict[str, str | None]:
    """Return the changes to the worker's variables for a target's run; ``None`` removes a variable.

    For each try, the worker assumes the role of the account with its own credentials. Only the environment of
    the run contains the temporary keys. The fleet writes the files of the CI job, so its runs do not.
    """
    made: dict[str, str | None] = {**dict.fromkeys(JOB_FILES), **common, **target.environment}
    account = target.account
    if account.profile:
        # AWS would use keys in the environment instead of the profile.
        made |= {**dict.fromkeys(CREDENTIALS), "AWS_PROFILE": account.profile}
    if account.role:
        from vmsnix_ops.aws.accounts import assume_role
        from vmsnix_ops.aws.session import session
        from vmsnix_ops.credentials import session_keys

        region = str(target.axes.get("region", ""))
        assumed = assume_role(session(region or None), account.role, region=region or "us-east-1")
        made |= {**dict(zip(CREDENTIALS, session_keys(assumed) or (), strict=True)), "AWS_PROFILE": None}
    return made


def nix_config(settings: Mapping[str, str]) -> str:
    """Return settings as the value of ``NIX_CONFIG``, which Nix reads after its files."""
    return "\n".join(f"{name} = {value}" for name, value in settings.items())


def state_of(target: FleetTarget, ledger: Ledger) -> Document:
    """Return the document of a target in the ledger, or a new one with the state ``planned``."""
    document, _ = ledger.read(target.claim)
    if document and document["state"] == "running":
        state = "lost" if has_ended(document["owner"]) else "running"
        return document | {"target": target.name, "state": state}
    if document and document.get("fingerprint") == target.fingerprint:
        return document | {"target": target.name}
    return target.document("planned")


def topic(session: str) -> str:
    """Return the name of the Dask topic in which the workers report to a client."""
    return f"vmsnix-fleet-{session}"


def _report(session: str, target: str, state: str, error: str | None = None) -> None:
    """Report the state of a target to the client's display."""
    with suppress(Exception):  # the result is in the ledger
        from distributed import get_worker

        get_worker().log_event(topic(session), {"report": (target, state, error)})
