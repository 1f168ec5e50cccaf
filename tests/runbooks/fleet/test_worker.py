"""What a worker does with a target, for each content of the ledger; without Dask and notebooks."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import join, kill, require, wait_until
from vmsnix_ops.errors import ArchiveError, FleetError
from vmsnix_ops.nix import command
from vmsnix_ops.runbooks.execution import lease
from vmsnix_ops.runbooks.execution.execute import RunOutcome
from vmsnix_ops.runbooks.execution.status import Failure
from vmsnix_ops.runbooks.fleet import worker as workers
from vmsnix_ops.runbooks.fleet.ledger import (
    Document,
    Ledger,
    _start_of,
    change,
    ledger_id,
    this_process,
)
from vmsnix_ops.runbooks.fleet.worker import (
    CREDENTIALS,
    Account,
    FleetSession,
    FleetTarget,
    environment_of,
    nix_config,
    run_target,
)
from vmsnix_ops.sandbox import sandbox

ELSEWHERE = {"id": "other", "machine": "elsewhere", "pid": 1, "born": "1", "host": "elsewhere"}


@dataclass
class Worker:
    """A worker that runs the targets in this process, with invented outcomes of their notebooks."""

    session: FleetSession
    target: FleetTarget
    outcomes: list[Any] = field(default_factory=list)
    ran: list[dict[str, Any]] = field(default_factory=list)

    def start(self, *before: Document, later: bool = False, **changes: Any) -> Document:
        """Give the worker the target, with changes; `later` from another client."""
        session = replace(self.session, id="later") if later else self.session
        return run_target(session, replace(self.target, **changes), *before)

    def run(self, runbook: str, given: dict[str, object], **options: Any) -> RunOutcome:
        self.ran.append(options)
        outcome = self.outcomes.pop(0) if self.outcomes else "done"
        if callable(outcome):
            outcome = outcome(options)
        if isinstance(outcome, BaseException):
            raise outcome
        code = {"done": 0, "partial": 3, "wrong": 2}.get(outcome, 1)
        if outcome == "unsaved":
            status, code, error = "partial", 3, None
        else:
            error = None if outcome == "done" else Failure("SomeError", f"It {outcome}.", exit_code=code)
            status = "failed" if outcome == "wrong" else outcome
        values = {"ami_id": "ami-1", "parameters": {"secret": "no"}}
        number = len(self.ran)
        return RunOutcome(f"run-{number}", runbook, status, code, "n", "r", "j", "l", 1.5, error, values)

    def document(self) -> Document:
        document, _ = Ledger(self.session.ledger).read(self.target.claim)
        assert document is not None
        return document

    def found(self, **values: Any) -> None:
        """Leave a claim in the ledger, as another process would."""
        claim = self.target.document("running") | {"beat": 0, "owner": ELSEWHERE, "started_at": STARTED}
        change(Ledger(self.session.ledger), self.target.claim, lambda _: {**claim, **values})


STARTED = "2026-11-25T00:00:00+00:00"


def in_this_process(*arguments: Any) -> str:
    workers.run_claimed(*arguments)
    return ""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    target = FleetTarget("greet/a", "greet", {}, {"name": "a"}, "k" * 24, retry_wait=0.0, fingerprint="f")
    ledger, place = str(tmp_path / "ledger"), str(tmp_path)
    identity = ledger_id(Ledger(ledger))
    session = FleetSession(f"session-{tmp_path.name}", ledger, identity, place, place, "", {}, 0.6)
    made = Worker(session, target)
    monkeypatch.setattr(workers, "run", made.run)
    monkeypatch.setattr(workers, "_run_process", in_this_process)
    return made


def test_the_result_of_a_target_is_recorded(worker: Worker) -> None:
    document = worker.start()
    assert document == worker.document()
    assert (document["state"], document["result"]) == ("done", {"ami_id": "ami-1"})
    (attempt,) = document["attempts"]
    assert (attempt["run_id"], attempt["status"]) == ("run-1", "done")


def test_a_target_that_is_done_is_not_run_again(worker: Worker) -> None:
    first = worker.start()
    again = worker.start(later=True)
    assert len(worker.ran) == 1
    assert again == first


def test_a_target_that_lacks_only_evidence_is_done(worker: Worker) -> None:
    worker.outcomes = ["unsaved"]
    document = worker.start(retries=1)
    (attempt,) = document["attempts"]
    assert (document["state"], attempt["status"], attempt["exit_code"]) == ("done", "done", 3)
    worker.start(later=True)
    assert len(worker.ran) == 1


def test_a_result_for_another_fingerprint_does_not_count(worker: Worker) -> None:
    worker.start()
    document = worker.start(fingerprint="changed")
    assert len(worker.ran) == 2
    assert (document["fingerprint"], len(document["attempts"])) == ("changed", 1)


def test_retries_are_counted_and_kept(worker: Worker) -> None:
    worker.outcomes = ["failed", "partial", "done"]
    document = worker.start(retries=2)
    assert [attempt["status"] for attempt in document["attempts"]] == ["failed", "partial", "done"]
    assert document["error"] is None


def test_the_last_retry_decides(worker: Worker) -> None:
    worker.outcomes = ["failed", "partial", "done"]
    document = worker.start(retries=1)
    assert (document["state"], document["error"], len(worker.ran)) == ("partial", "It partial.", 2)


@pytest.mark.parametrize("outcome", ["wrong", "cancelled"])
def test_usage_errors_and_interrupts_are_not_retried(worker: Worker, outcome: str) -> None:
    worker.outcomes = [outcome]
    assert worker.start(retries=3)["state"] in ("failed", "cancelled")
    assert len(worker.ran) == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ArchiveError("The archive is full."), "The archive is full."),
        (ZeroDivisionError("no"), "ZeroDivisionError: no"),
        (ValueError("AKIAABCDEFGHIJKLMNOP"), "removed"),
    ],
)
def test_an_error_of_the_runner_fails_the_target(worker: Worker, error: Exception, text: str) -> None:
    worker.outcomes = [error]
    document = worker.start()
    assert document["state"] == "failed"
    assert text in document["error"]
    assert "AKIA" not in document["error"]


def test_the_next_client_runs_a_failed_target_again(worker: Worker) -> None:
    worker.outcomes = ["failed"]
    worker.start()
    document = worker.start(later=True)
    assert (document["state"], len(document["attempts"])) == ("done", 2)


def test_a_target_is_skipped_when_one_before_it_is_not_done(worker: Worker) -> None:
    document = worker.start({"target": "first", "state": "done"}, {"target": "second", "state": "failed"})
    assert (document["state"], document["error"]) == (
        "skipped",
        "Not run, because these are not done: second.",
    )
    assert worker.ran == []
    assert worker.start(later=True)["state"] == "done"


# Another process has the claim


def test_a_worker_waits_for_a_run_on_another_machine(worker: Worker) -> None:
    worker.found(beat=1)
    over = threading.Event()

    def live() -> None:
        for beat in range(2, 10):
            worker.found(beat=beat)
            time.sleep(0.2)
        over.set()  # before the result can be read
        worker.found(state="done", beat=10, result={"ami_id": "ami-elsewhere"})

    thread = threading.Thread(target=live)
    thread.start()
    document = worker.start()
    assert over.is_set()
    join(thread)
    assert (document["state"], document["result"]["ami_id"]) == ("done", "ami-elsewhere")
    assert worker.ran == []


def test_a_run_on_another_machine_is_taken_over_when_its_beat_does_not_change(worker: Worker) -> None:
    worker.found(beat=7)
    began = time.monotonic()
    document = worker.start()
    assert time.monotonic() - began > worker.session.lease_seconds
    assert [attempt["status"] for attempt in document["attempts"]] == ["lost", "done"]


def test_only_one_of_two_workers_runs_a_target(worker: Worker) -> None:
    worker.outcomes = [lambda options: time.sleep(1.5) or "done"]
    documents: list[Document] = []
    threads = [
        threading.Thread(target=lambda later=later: documents.append(worker.start(later=later)))
        for later in (False, True)
    ]
    for thread in threads:
        thread.start()
    join(*threads)
    assert len(worker.ran) == 1
    assert [document["state"] for document in documents] == ["done", "done"]


def test_a_target_whose_process_ended_three_times_is_failed(worker: Worker) -> None:
    lost = {"status": "lost", "session": worker.session.id, "error": "died"}
    worker.found(beat=1, session=worker.session.id, attempts=[lost, lost])
    document = worker.start()
    assert document["state"] == "failed"
    assert "ended 3 times" in document["error"]
    assert worker.ran == []


def test_processes_lost_by_an_earlier_client_do_not_count(worker: Worker) -> None:
    lost = {"status": "lost", "session": "earlier", "error": "died"}
    worker.found(beat=1, session="earlier", attempts=[lost] * 5)
    document = worker.start()
    assert document["state"] == "done"
    assert [attempt["status"] for attempt in document["attempts"]] == [*["lost"] * 6, "done"]


def test_a_run_that_lost_its_claim_is_stopped_and_may_change_nothing(worker: Worker) -> None:
    def taken_over(options: dict[str, Any]) -> str:
        file = Path(options["environment"][lease.VARIABLE])
        lease.check(file)
        worker.found(beat=0, session="theirs")
        wait_until(lambda: options["interrupter"].requested, "the request to stop")
        with pytest.raises(FleetError, match="lost its claim"):
            lease.check(file)
        worker.found(state="done", session="theirs", result={"ami_id": "ami-theirs"})
        return "cancelled"

    worker.outcomes = [taken_over]
    document = worker.start()
    assert document["result"] == {"ami_id": "ami-theirs"}
    assert worker.document()["owner"]["id"] == "other"


def test_a_run_whose_ledger_cannot_be_written_stops_before_another_machine_may_take_over(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, broken = Ledger.write, threading.Event()

    def refuse(self: Ledger, name: str, value: Document, last: str | None) -> str:
        if broken.is_set():
            raise ArchiveError("The ledger is on a disk that is gone.")
        return write(self, name, value, last)

    def run(options: dict[str, Any]) -> str:
        file = Path(options["environment"][lease.VARIABLE])
        assert float(file.read_text()) < lease.now() + worker.session.lease_seconds  # then it is taken over
        broken.set()
        wait_until(lambda: options["interrupter"].requested, "the request to stop")
        with pytest.raises(FleetError, match="lost its claim"):
            lease.check(file)
        broken.clear()
        return "cancelled"

    monkeypatch.setattr(Ledger, "write", refuse)
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.0)
    worker.outcomes = [run]
    found = workers.run_claimed(worker.session, worker.target, worker.target.document("planned"), None)
    assert found == workers.NOT_OURS
    assert worker.document()["state"] == "running"


def test_a_beat_that_was_stored_although_its_write_failed_is_recognized_as_our_own(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, beats = Ledger.write, []

    def fail_once(self: Ledger, name: str, value: Document, last: str | None) -> str:
        version = write(self, name, value, last)
        beats.append(value.get("beat"))
        if beats.count(1) == 1 and beats[-1] == 1:
            raise ArchiveError("The connection broke before the answer.")
        return version

    def run(_options: dict[str, Any]) -> str:
        wait_until(lambda: 3 in beats, "further beats")
        return "done"

    monkeypatch.setattr(Ledger, "write", fail_once)
    worker.outcomes = [run]
    assert worker.start()["state"] == "done"
    assert len(worker.ran) == 1


def test_a_stopped_process_of_this_machine_keeps_its_claim(worker: Worker) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        owner = this_process() | {"pid": process.pid, "born": _start_of(process.pid)}
        worker.found(owner=owner, beat=1)
        thread = threading.Thread(target=worker.start)
        thread.start()
        time.sleep(3 * worker.session.lease_seconds)
        assert worker.ran == []
        kill(process)
    join(thread)
    assert [attempt["status"] for attempt in worker.document()["attempts"]] == ["lost", "done"]


def test_a_stopped_fleet_interrupts_its_runs_and_starts_no_more(worker: Worker) -> None:
    def stopped(_options: dict[str, Any]) -> str:
        workers.stop(worker.session.id)
        return "failed"

    worker.outcomes = [stopped]
    assert len(worker.start(retries=3)["attempts"]) == 1
    assert worker.start(key="other")["state"] == "cancelled"
    assert len(worker.ran) == 1


# A worker that cannot run the target


def test_a_worker_with_another_version_runs_nothing(worker: Worker) -> None:
    document = run_target(replace(worker.session, version="0.0.1"), worker.target)
    assert document["state"] == "failed"
    assert "0.0.1" in document["error"]


def test_a_worker_with_another_ledger_runs_nothing(worker: Worker, tmp_path: Path) -> None:
    document = run_target(replace(worker.session, ledger=str(tmp_path / "elsewhere")), worker.target)
    assert "has no access to the ledger" in document["error"]
    assert worker.ran == []


# Account and environment


def test_a_profile_has_priority_over_keys_in_the_environment(worker: Worker) -> None:
    made = environment_of(replace(worker.target, account=Account("p", profile="production")), {"A": "b"})
    assert made["AWS_PROFILE"] == "production"
    assert [made[name] for name in CREDENTIALS] == [None, None, None]
    assert (made["A"], made["GITHUB_OUTPUT"]) == ("b", None)


def test_the_worker_assumes_the_role_and_passes_the_keys_to_the_run_only(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"},'
        ' "Action": "sts:AssumeRole"}]}'
    )
    with sandbox() as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        iam = aws.client("iam")
        role = iam.create_role(RoleName="publisher", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        account = Account("p", aws.account, role=role)
        worker.target = replace(worker.target, account=account, axes={"region": "us-east-1"})
        document = worker.start()
        given = worker.ran[0]["environment"]
        assert all(given[name] for name in CREDENTIALS)
        assert given["AWS_ACCESS_KEY_ID"] != aws.environment["AWS_ACCESS_KEY_ID"]
        assert not any(given[name] in str(document) for name in CREDENTIALS)
        missing = replace(account, role=role + "-not")
        refused = worker.start(account=missing, axes={"region": "us-east-1"}, key="x")
        assert "Could not assume the role" in refused["error"]


def test_nix_reads_the_settings_of_the_plan(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    builders = "ssh-ng://builder.example x86_64-linux - 8"
    config = nix_config({"builders": builders, "max-jobs": "0"})
    run_target(replace(worker.session, environment={"NIX_CONFIG": config}), worker.target)
    given = worker.ran[0]["environment"]["NIX_CONFIG"]
    require("nix")
    monkeypatch.setenv("NIX_CONFIG", given)
    shown = command.read_json(["show-config"], "The settings of Nix cannot be read.")
    assert isinstance(shown, dict)
    assert (shown["builders"]["value"], shown["max-jobs"]["value"]) == (builders, 0)
