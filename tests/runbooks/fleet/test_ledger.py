"""The ledger of a fleet: no write is lost, and claims of processes that ended can be taken over."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support import join, kill, read_line
from vmsnix_ops.errors import ArchiveError, AwsError
from vmsnix_ops.runbooks.fleet import ledger as ledgers
from vmsnix_ops.runbooks.fleet.ledger import (
    Document,
    Ledger,
    StaleError,
    Watch,
    change,
    has_ended,
    ledger_id,
    this_process,
)
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "targets/abc.json"


@pytest.fixture(scope="module")
def aws() -> Iterator[Sandbox]:
    with sandbox() as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment.items():
            patch.setenv(name, value)
        started.client("s3").create_bucket(Bucket="acme-fleets")
        yield started


@pytest.fixture(params=["folder", "s3"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "folder":
        return Ledger(str(tmp_path / "fleets"))
    request.getfixturevalue("aws")
    return Ledger(f"s3://acme-fleets/{tmp_path.name}")


def test_the_last_version_of_a_document_is_read(ledger: Ledger) -> None:
    assert ledger.read(NAME) == (None, None)
    version = ledger.write(NAME, {"state": "running"}, None)
    assert ledger.read(NAME) == ({"state": "running"}, version)
    assert ledger.write(NAME, {"state": "done"}, version) != version
    assert ledger.read(NAME)[0] == {"state": "done"}


def test_only_a_writer_that_read_the_last_version_replaces_it(ledger: Ledger) -> None:
    first = ledger.write(NAME, {"n": 1}, None)
    with pytest.raises(StaleError):
        ledger.write(NAME, {"n": 2}, None)  # it exists
    ledger.write(NAME, {"n": 3}, first)
    with pytest.raises(StaleError):
        ledger.write(NAME, {"n": 4}, first)
    with pytest.raises(StaleError):
        ledger.write("targets/none.json", {"n": 5}, first)
    assert ledger.read(NAME)[0] == {"n": 3}


def test_many_writers_at_once_lose_nothing(ledger: Ledger) -> None:
    def count(now: Document | None) -> Document:
        return {"n": (now or {"n": 0})["n"] + 1}

    def write() -> None:
        for _ in range(5):
            change(ledger, NAME, count)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    join(*threads)
    assert ledger.read(NAME)[0] == {"n": 20}


def test_all_clients_of_a_ledger_read_the_same_id(ledger: Ledger) -> None:
    assert ledger_id(ledger) == ledger_id(ledger) != ""


def test_a_change_may_leave_a_document_unchanged(ledger: Ledger) -> None:
    assert change(ledger, NAME, lambda now: None) is None
    ledger.write(NAME, {"n": 1}, None)
    assert change(ledger, NAME, lambda now: None) == {"n": 1}


def test_a_write_with_a_lost_answer_is_recognized_as_our_own(aws: Sandbox) -> None:
    ledger = Ledger("s3://acme-fleets/lost")
    rule = aws.faults.add({"op": "s3:PutObject", "do": "drop", "when": "after", "nth": 1})
    version = ledger.write(NAME, {"beat": 1}, None)
    assert rule.applied == 1
    ledger.write(NAME, {"beat": 2}, version)


def test_a_write_that_s3_always_rejects_ends_with_an_error(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "FIRST_PAUSE", 0.0)
    ledger = Ledger("s3://acme-fleets/rejected")
    rule = aws.faults.add(
        {"op": "s3:PutObject", "do": "error", "code": "ConditionalRequestConflict", "http": 409}
    )
    with pytest.raises(ArchiveError, match="cannot be written"):
        ledger.write(NAME, {"beat": 1}, None)
    assert rule.applied == ledgers.ATTEMPTS
    aws.faults.clear()
    ledger.write(NAME, {"beat": 1}, None)  # nothing was left behind


def test_a_missing_bucket_is_an_error_of_aws(aws: Sandbox) -> None:
    with pytest.raises(AwsError, match="NoSuchBucket"):
        Ledger("s3://acme-nowhere/x").write(NAME, {}, None)


def test_a_broken_document_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / NAME).write_text("{")
    with pytest.raises(ArchiveError, match="not JSON"):
        Ledger(str(tmp_path)).read(NAME)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="cannot be"):
        Ledger(str(tmp_path / "file")).write(NAME, {}, None)


# Claims of other processes


def test_the_claim_of_a_process_of_this_machine_ends_with_the_process() -> None:
    code = (
        "import json; from vmsnix_ops.runbooks.fleet.ledger import this_process;"
        "print(json.dumps(this_process()), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        claim = {"state": "running", "owner": json.loads(read_line(process)), "beat": 3}
        watch = Watch(0.0)
        assert not watch.is_abandoned(claim)
        assert not watch.is_abandoned(claim)  # although its beat stands still
        kill(process)
    assert Watch(60).is_abandoned(claim)
    # The same ID with another start is another process.
    assert has_ended(this_process() | {"born": "1"})
    assert not has_ended(claim["owner"] | {"machine": "elsewhere"})


def test_the_claim_of_another_machine_is_abandoned_when_its_beat_does_not_change() -> None:
    elsewhere = {"id": "id", "machine": "elsewhere", "pid": 1, "born": "1", "host": "elsewhere"}
    watch = Watch(0.2)
    for beat in range(4):
        assert not watch.is_abandoned({"owner": elsewhere, "beat": beat})
        time.sleep(0.1)
    time.sleep(0.25)
    assert watch.is_abandoned({"owner": elsewhere, "beat": 3})
