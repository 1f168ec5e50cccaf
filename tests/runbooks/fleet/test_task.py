"""What a worker does with one target, whatever it finds in the ledger; without Dask and notebooks."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import join, require, wait_until
from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.nix import command
from vmsnix_ops.runbooks.execution.execute import RunOutcome
from vmsnix_ops.runbooks.execution.verdict import Failure
from vmsnix_ops.runbooks.fleet import engine
from vmsnix_ops.runbooks.fleet.engine import Job, run_target
from vmsnix_ops.runbooks.fleet.ledger import Document, Owner, change, open_ledger
from vmsnix_ops.runbooks.fleet.targets import CREDENTIALS, Account, Target, environment_of, nix_config
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from pathlib import Path

FLEET = "20261125T000000227Z-fleet-test-abcdef"
ELSEWHERE = Owner("other", "elsewhere", 1, "1", "elsewhere")


@dataclass
class Worker:
    """A worker whose notebooks are played."""

    job: Job
    outcomes: list[Any] = field(default_factory=list)
    ran: list[dict[str, Any]] = field(default_factory=list)

    def play(self, runbook: str, given: dict[str, object], **options: Any) -> RunOutcome:
        self.ran.append(options)
        outcome = self.outcomes.pop(0) if self.outcomes else "done"
        if callable(outcome):
            outcome = outcome(options)
        if isinstance(outcome, BaseException):
            raise outcome
        code = {"done": 0, "partial": 3, "wrong": 2}.get(outcome, 1)
        error = None if outcome == "done" else Failure("SomeError", f"It {outcome}.", exit_code=code)
        verdict = "failed" if outcome == "wrong" else outcome
        values = {"ami_id": "ami-1", "parameters": {"secret": "no"}}
        number = len(self.ran)
        return RunOutcome(f"run-{number}", runbook, verdict, code, "n", "r", "j", "l", 1.5, error, values)

    def document(self) -> Document:
        kept = open_ledger(self.job.ledger).read(self.job.document)
        assert kept is not None
        return kept.value

    def found(self, **values: Any) -> None:
        """Leave a document in the ledger as another worker would."""
        whole = engine._blank(self.job, "running") | {"owner": ELSEWHERE.as_dict()} | values
        change(open_ledger(self.job.ledger), self.job.document, lambda _: whole)  # the run may be beating


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    target = Target("greet/a", "greet", "greet", {}, {"name": "a"}, "k" * 24, retry_wait=0.0)
    ledger = str(tmp_path / "ledger")
    open_ledger(ledger).write(f"fleets/{FLEET}.json", {"round": FLEET}, None)
    made = Worker(
        Job(target, FLEET, f"session-{tmp_path.name}", ledger, str(tmp_path), str(tmp_path), "", {}, 0.6)
    )
    monkeypatch.setattr(engine, "run", made.play)
    monkeypatch.setattr("vmsnix_ops.runbooks.fleet.ledger.KERNEL_SECONDS", 0.0)
    return made


def retries(worker: Worker, count: int) -> None:
    worker.job = replace(worker.job, target=replace(worker.job.target, retries=count))


def test_a_target_is_run_and_remembered(worker: Worker) -> None:
    document = run_target(worker.job)
    assert document == worker.document()
    assert (document["state"], document["result"]) == ("done", {"ami_id": "ami-1"})
    (attempt,) = document["attempts"]
    assert (attempt["run_id"], attempt["verdict"]) == ("run-1", "done")


def test_what_is_done_is_not_run_again(worker: Worker) -> None:
    first = run_target(worker.job)
    again = run_target(replace(worker.job, session="later"))
    assert len(worker.ran) == 1
    assert again == first


def test_a_new_round_runs_it_again(worker: Worker) -> None:
    run_target(worker.job)
    ledger = open_ledger(worker.job.ledger)
    ledger.write("fleets/next.json", {"round": "next"}, None)
    document = run_target(replace(worker.job, fleet="next"))
    assert len(worker.ran) == 2
    assert (document["fleet"], len(document["attempts"])) == ("next", 1)


def test_retries_are_counted_and_kept(worker: Worker) -> None:
    retries(worker, 2)
    worker.outcomes = ["failed", "partial", "done"]
    document = run_target(worker.job)
    assert [attempt["verdict"] for attempt in document["attempts"]] == ["failed", "partial", "done"]
    assert document["error"] is None


def test_after_the_last_retry_it_is_what_it_is(worker: Worker) -> None:
    retries(worker, 1)
    worker.outcomes = ["failed", "partial", "done"]
    document = run_target(worker.job)
    assert (document["state"], document["error"], len(worker.ran)) == ("partial", "It partial.", 2)


@pytest.mark.parametrize("outcome", ["wrong", "cancelled"])
def test_a_wrong_call_and_an_interrupt_are_not_tried_again(worker: Worker, outcome: str) -> None:
    retries(worker, 3)
    worker.outcomes = [outcome]
    assert run_target(worker.job)["state"] in ("failed", "cancelled")
    assert len(worker.ran) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ArchiveError("The archive is full."), "The archive is full."),
        (ZeroDivisionError("no"), "ZeroDivisionError: no"),
        (ValueError("AKIAABCDEFGHIJKLMNOP"), "removed"),
    ],
)
def test_an_error_of_the_runner_is_the_targets(worker: Worker, error: Exception, said: str) -> None:
    worker.outcomes = [error]
    document = run_target(worker.job)
    assert document["state"] == "failed"
    assert said in document["error"]
    assert "AKIA" not in document["error"]


def test_a_failed_target_is_run_again_by_the_next_start(worker: Worker) -> None:
    worker.outcomes = ["failed"]
    run_target(worker.job)
    document = run_target(replace(worker.job, session="later"))
    assert (document["state"], len(document["attempts"])) == ("done", 2)


def test_a_target_is_skipped_when_one_before_it_is_not_done(worker: Worker) -> None:
    document = run_target(
        worker.job, {"target": "first", "state": "done"}, {"target": "second", "state": "failed"}
    )
    assert (document["state"], document["error"]) == (
        "skipped",
        "Not run, because these are not done: second.",
    )
    assert worker.ran == []
    assert run_target(replace(worker.job, session="later"))["state"] == "done"


# Somebody else has it


def test_a_living_run_elsewhere_is_waited_for(worker: Worker) -> None:
    worker.found(beat=1)
    over = threading.Event()

    def live() -> None:
        for beat in range(2, 10):
            worker.found(beat=beat)
            time.sleep(0.2)
        over.set()  # before anybody can see that it is
        worker.found(state="done", beat=10, result={"ami_id": "ami-elsewhere"})

    thread = threading.Thread(target=live)
    thread.start()
    document = run_target(worker.job)
    assert over.is_set()
    join(thread)
    assert (document["state"], document["result"]["ami_id"]) == ("done", "ami-elsewhere")
    assert worker.ran == []


def test_a_dead_run_is_taken_over_once_its_lease_has_ended(worker: Worker) -> None:
    worker.found(beat=7, attempt={"session": worker.job.session, "started_at": "2026-11-25T00:00:00+00:00"})
    began = time.monotonic()
    document = run_target(worker.job)
    assert time.monotonic() - began > worker.job.lease_seconds
    assert [attempt["verdict"] for attempt in document["attempts"]] == ["lost", "done"]


def test_of_two_workers_one_runs_it(worker: Worker) -> None:
    worker.outcomes = [lambda options: time.sleep(1.5) or "done"]
    documents: list[Document] = []
    jobs = [worker.job, replace(worker.job, session="other")]
    threads = [threading.Thread(target=lambda job=job: documents.append(run_target(job))) for job in jobs]
    for thread in threads:
        thread.start()
    join(*threads)
    assert len(worker.ran) == 1  # for longer than the lease: it beat
    assert [document["state"] for document in documents] == ["done", "done"]


def test_a_target_that_kills_its_workers_is_given_up(worker: Worker) -> None:
    lost = {"verdict": "lost", "session": worker.job.session, "error": "died"}
    worker.found(beat=1, attempts=[lost, lost], attempt={"session": worker.job.session})
    document = run_target(worker.job)
    assert document["state"] == "failed"
    assert "ended 3 times" in document["error"]
    assert worker.ran == []


def test_deaths_in_an_earlier_session_do_not_count(worker: Worker) -> None:
    lost = {"verdict": "lost", "session": "earlier", "error": "died"}
    worker.found(beat=1, session="earlier", attempts=[lost] * 5, attempt={"session": "earlier"})
    document = run_target(worker.job)
    assert document["state"] == "done"
    assert [attempt["verdict"] for attempt in document["attempts"]] == [*["lost"] * 6, "done"]


def test_a_run_whose_lease_was_lost_is_stopped(worker: Worker) -> None:
    def taken_over(options: dict[str, Any]) -> str:
        worker.found(beat=0, id="new")
        wait_until(lambda: options["interrupter"].requested, "the request to stop")
        worker.found(state="done", result={"ami_id": "ami-theirs"})
        return "cancelled"

    worker.outcomes = [taken_over]
    document = run_target(worker.job)
    assert document["result"] == {"ami_id": "ami-theirs"}
    assert worker.document()["owner"]["id"] == "other"


def test_a_fleet_that_is_stopped_interrupts_its_runs_and_begins_no_more(worker: Worker) -> None:
    retries(worker, 3)

    def stopped(options: dict[str, Any]) -> str:
        assert engine.stop("another session") == 0
        assert engine.stop(worker.job.session) == 1
        assert options["interrupter"].requested
        return "failed"

    worker.outcomes = [stopped]
    assert len(run_target(worker.job)["attempts"]) == 1
    engine._HERE.stopped.discard("another session")
    assert (
        run_target(replace(worker.job, target=replace(worker.job.target, key="other")))["state"]
        == "cancelled"
    )
    assert len(worker.ran) == 1


# What is wrong with the worker


def test_a_worker_of_another_version_runs_nothing(worker: Worker) -> None:
    document = run_target(replace(worker.job, version="0.0.1"))
    assert document["state"] == "failed"
    assert "0.0.1" in document["error"]


def test_a_worker_that_does_not_see_the_ledger_says_so(worker: Worker, tmp_path: Path) -> None:
    document = run_target(replace(worker.job, ledger=str(tmp_path / "elsewhere")))
    assert "cannot see the ledger" in document["error"]
    assert worker.ran == []


# Who it is


def with_account(target: Target, account: Account) -> Target:
    return replace(target, account=account, axes={"region": "us-east-1"})


def test_a_profile_wins_over_keys_in_the_environment(worker: Worker) -> None:
    made = environment_of(with_account(worker.job.target, Account("p", profile="production")), {"A": "b"})
    assert made["AWS_PROFILE"] == "production"
    assert [made[name] for name in CREDENTIALS] == [None, None, None]
    assert (made["A"], made["GITHUB_OUTPUT"]) == ("b", None)


def test_a_role_is_taken_by_the_worker_and_stays_there(
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
        worker.job = replace(worker.job, target=with_account(worker.job.target, account))
        document = run_target(worker.job)
        given = worker.ran[0]["environment"]
        assert all(given[name] for name in CREDENTIALS)
        assert given["AWS_ACCESS_KEY_ID"] != aws.environment["AWS_ACCESS_KEY_ID"]
        assert not any(given[name] in str(document) for name in CREDENTIALS)
        missing = replace(account, role=role + "-not")
        refused = run_target(
            replace(worker.job, target=replace(with_account(worker.job.target, missing), key="x"))
        )
        assert "Could not assume the role" in refused["error"]


def test_nix_hears_the_settings_of_the_plan(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    builders = "ssh-ng://builder.example x86_64-linux - 8"
    config = nix_config({"builders": builders, "max-jobs": "0"})
    run_target(replace(worker.job, environment={"NIX_CONFIG": config}))
    given = worker.ran[0]["environment"]["NIX_CONFIG"]
    require("nix")
    monkeypatch.setenv("NIX_CONFIG", given)
    shown = command.ask(["show-config"], "The settings of Nix cannot be read.")
    assert isinstance(shown, dict)
    assert (shown["builders"]["value"], shown["max-jobs"]["value"]) == (builders, 0)
