"""The ledger of a fleet and the leases in it: nobody's word is lost, no dead run is waited for for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support import join, kill, read_line
from vmsnix_ops.errors import ArchiveError, AwsError
from vmsnix_ops.runbooks.fleet.ledger import Document, Ledger, Owner, StaleError, Watch, change, open_ledger
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
        return open_ledger(str(tmp_path / "fleets"))
    request.getfixturevalue("aws")
    return open_ledger(f"s3://acme-fleets/{tmp_path.name}")


def test_a_document_is_what_was_written_last(ledger: Ledger) -> None:
    assert ledger.read(NAME) is None
    version = ledger.write(NAME, {"state": "running"}, None)
    kept = ledger.read(NAME)
    assert kept is not None
    assert (kept.value, kept.version) == ({"state": "running"}, version)
    assert ledger.write(NAME, {"state": "done"}, version) != version
    assert (ledger.read(NAME) or kept).value == {"state": "done"}


def test_only_who_read_the_last_version_may_replace_it(ledger: Ledger) -> None:
    first = ledger.write(NAME, {"n": 1}, None)
    with pytest.raises(StaleError):
        ledger.write(NAME, {"n": 2}, None)  # it is there
    ledger.write(NAME, {"n": 3}, first)
    with pytest.raises(StaleError):
        ledger.write(NAME, {"n": 4}, first)
    with pytest.raises(StaleError):
        ledger.write("targets/none.json", {"n": 5}, first)
    kept = ledger.read(NAME)
    assert kept is not None
    assert kept.value == {"n": 3}


def test_of_many_writers_at_once_none_is_lost(ledger: Ledger) -> None:
    def count(now: Document | None) -> Document:
        return {"n": (now or {"n": 0})["n"] + 1}

    def write() -> None:
        for _ in range(5):
            change(ledger, NAME, count)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    join(*threads)
    kept = ledger.read(NAME)
    assert kept is not None
    assert kept.value == {"n": 20}


def test_a_change_may_leave_all_as_it_is(ledger: Ledger) -> None:
    assert change(ledger, NAME, lambda now: None) is None
    ledger.write(NAME, {"n": 1}, None)
    assert change(ledger, NAME, lambda now: None) == {"n": 1}


def test_a_lost_answer_of_s3_is_no_other_writer(aws: Sandbox) -> None:
    ledger = open_ledger("s3://acme-fleets/lost")
    rule = aws.faults.add({"op": "s3:PutObject", "do": "drop", "when": "after", "nth": 1})
    version = ledger.write(NAME, {"beat": 1}, None)
    assert rule.struck == 1
    ledger.write(NAME, {"beat": 2}, version)


def test_a_bucket_that_is_missing_is_aws_own_word(aws: Sandbox) -> None:
    with pytest.raises(AwsError, match="NoSuchBucket"):
        open_ledger("s3://acme-nowhere/x").write(NAME, {}, None)


def test_a_broken_document_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / NAME).write_text("{")
    with pytest.raises(ArchiveError, match="not JSON"):
        open_ledger(str(tmp_path)).read(NAME)


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="cannot be"):
        open_ledger(str(tmp_path / "file")).write(NAME, {}, None)


# Leases


def running(owner: Owner, beat: int) -> Document:
    return {"state": "running", "owner": owner.as_dict(), "beat": beat}


def test_a_dead_process_of_this_machine_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.runbooks.fleet.ledger.KERNEL_SECONDS", 0.0)
    code = (
        "import json; from vmsnix_ops.runbooks.fleet.ledger import Owner;"
        "print(json.dumps(Owner.this_process().as_dict()), flush=True); input()"
    )
    import json

    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        document = {"state": "running", "owner": json.loads(read_line(process)), "beat": 3}
        assert not Watch(60).has_ended(document)
        kill(process)
    assert Watch(60).has_ended(document)
    # The same number with another birth is another process.
    assert Owner.is_dead(Owner.this_process().as_dict() | {"born": "1"})
    assert not Owner.is_dead(document["owner"] | {"machine": "elsewhere"})


def test_a_run_elsewhere_is_dead_when_its_beat_stands_still() -> None:
    elsewhere = Owner("id", "elsewhere", 1, "1", "elsewhere")
    watch = Watch(0.2)
    for beat in range(4):
        assert not watch.has_ended(running(elsewhere, beat))
        time.sleep(0.1)
    time.sleep(0.25)
    assert watch.has_ended(running(elsewhere, 3))
