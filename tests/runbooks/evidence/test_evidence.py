"""Reading an archive: list runs, find a run, read its evidence."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.errors import ArchiveError, UnknownRunError
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.evidence.runs import Archive
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START = datetime(2026, 11, 20, 8, tzinfo=UTC)
BUCKET = "evidence"


@pytest.fixture(scope="module")
def aws() -> Iterator[Any]:
    with sandbox(speed=1000) as served:
        served.client("s3").create_bucket(Bucket=BUCKET)
        yield served


@pytest.fixture(params=["folder", "bucket"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """An archive with three runs of two runbooks, an hour apart."""
    environment: dict[str, str] = {}
    place = str(tmp_path / "archive")
    if request.param == "bucket":
        place = f"s3://{BUCKET}/{tmp_path.name}"
        environment = request.getfixturevalue("aws").environment
    found = Archive(place, tmp_path / "work", environment)
    put(found, "publish-ami", 0, status="failed", parameters={"image": "./nix#ecs-node"})
    put(found, "audit-inventory", 1, parameters={"regions": ["eu-west-1"]})
    put(found, "publish-ami", 2, image="gc-fwd", ami_id="ami-1")
    return found


def put(to: Archive, runbook: str, hour: int, *, close: bool = True, **values: Any) -> str:
    """Archive a run that began at that hour."""
    run_id = new_run_id(runbook, now=START + timedelta(hours=hour))
    entry = {"run_id": run_id, "runbook": runbook, "status": "running"}
    folder = archive.open_folder(to.location, run_id, entry, work=to.work, environment=to.environment)
    if close:
        folder.path(archive.REPORT).write_text(f"page of {run_id}")
        kept = folder.store(archive.REPORT)
        assert kept is not None
        files = {archive.REPORT: kept}
        folder.write_json(archive.RESULT, {**entry, "status": "done", "files": files, **values})
        folder.close(done=True)
    return run_id


def test_runs_come_newest_first(shelf: Archive) -> None:
    assert [one.runbook for one in shelf.runs()] == ["publish-ami", "audit-inventory", "publish-ami"]
    assert [one.run_id for one in shelf.runs()] == shelf.ids() == sorted(shelf.ids(), reverse=True)


@pytest.mark.parametrize(
    ("wanted", "hours"),
    [
        ({"runbook": "publish-ami"}, [10, 8]),
        ({"runbook": "publish"}, []),
        ({"status": "failed"}, [8]),
        ({"image": "ecs-node"}, [8]),
        ({"image": "./nix#ecs-node"}, [8]),
        ({"image": "gc-fwd"}, [10]),
        ({"ami": "ami-1"}, [10]),
        ({"last": 2}, [10, 9]),
        ({"runbook": "publish-ami", "last": 1}, [10]),
    ],
)
def test_runs_can_be_filtered(shelf: Archive, wanted: dict[str, Any], hours: list[int]) -> None:
    assert [int(one.run_id[9:11]) for one in shelf.runs(**wanted)] == hours


def test_a_run_id_can_be_shortened_while_it_is_unique(shelf: Archive) -> None:
    newest = shelf.ids()[0]
    for word in (newest, newest[:11], newest[-6:]):
        assert shelf.find(word).run_id == newest
    with pytest.raises(UnknownRunError, match=r"3 runs start with '2026'.*Use more"):
        shelf.find("2026")


def test_the_error_for_an_unknown_id_suggests_the_nearest(shelf: Archive) -> None:
    newest = shelf.ids()[0]
    mistyped = newest.replace("publish", "publsh")
    with pytest.raises(UnknownRunError, match=f"No run '{mistyped}'.*Did you mean '{newest}'"):
        shelf.find(mistyped)


@pytest.mark.parametrize("word", ["", "..", "objects", "/", "../work"])
def test_a_word_that_is_not_a_run_id_finds_no_run(shelf: Archive, word: str) -> None:
    with pytest.raises(UnknownRunError):
        shelf.find(word)


def test_evidence_has_the_stored_content(shelf: Archive) -> None:
    entry = shelf.find(shelf.ids()[0])
    assert shelf.read_file(entry, archive.REPORT).decode() == f"page of {entry.run_id}"
    with pytest.raises(ArchiveError, match=r"has no log\.txt"):
        shelf.read_file(entry, archive.LOG)


def test_changed_evidence_is_refused(shelf: Archive, aws: Any, tmp_path: Path) -> None:
    entry = shelf.find(shelf.ids()[0])
    place = str(entry.values["files"][archive.REPORT]["place"])
    if shelf.remote:
        aws.client("s3").put_object(Bucket=BUCKET, Key=place.split("/", 3)[3], Body=b"forged")
    else:
        (tmp_path / "archive" / entry.run_id / archive.REPORT).write_text("forged")
    with pytest.raises(ArchiveError, match=r"was changed: .*SHA-256"):
        shelf.read_file(entry, archive.REPORT)


def test_an_error_names_deleted_evidence(shelf: Archive, aws: Any, tmp_path: Path) -> None:
    entry = shelf.find(shelf.ids()[0])
    place = str(entry.values["files"][archive.REPORT]["place"])
    if shelf.remote:
        aws.client("s3").delete_object(Bucket=BUCKET, Key=place.split("/", 3)[3])
    else:
        (tmp_path / "archive" / entry.run_id / archive.REPORT).unlink()
    with pytest.raises(ArchiveError, match=f"evidence no longer exists: {place}"):
        shelf.read_file(entry, archive.REPORT)


def test_a_run_is_running_while_its_process_is_alive_and_lost_afterwards(shelf: Archive) -> None:
    run_id = put(shelf, "publish-ami", 3, close=False)
    local = (shelf.work if shelf.remote else shelf.work.parent / "archive") / run_id
    with (local / archive.LOCK).open() as alive:
        import fcntl

        # `open_folder` keeps its lock until this process ends, and a second lock of the same file fails as it
        # would in another process.
        with pytest.raises(BlockingIOError):
            fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert shelf.find(run_id).status == "running"
    (local / archive.LOCK).unlink()
    (local / archive.LOCK).touch()  # as after a killed process: the file exists, without a lock
    assert shelf.find(run_id).status == "lost"
    assert [one.run_id for one in shelf.runs(status="lost")] == [run_id]


def test_a_damaged_entry_is_listed_as_unreadable_and_hides_no_other_run(
    shelf: Archive, aws: Any, tmp_path: Path
) -> None:
    torn = new_run_id("publish-ami", now=START + timedelta(hours=5))
    if shelf.remote:
        key = f"{tmp_path.name}/{torn}/result.json"
        aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b'{"run_')
    else:
        (tmp_path / "archive" / torn).mkdir()
        (tmp_path / "archive" / torn / "result.json").write_text('{"run_')
    assert [one.run_id for one in shelf.runs(status="unreadable")] == [torn]
    assert len(shelf.runs()) == 4
    with pytest.raises(ArchiveError, match="damaged"):
        shelf.find(torn)


def test_a_missing_archive_contains_no_runs(tmp_path: Path) -> None:
    nowhere = Archive(str(tmp_path / "nowhere"), tmp_path / "work")
    assert nowhere.runs() == []
    with pytest.raises(UnknownRunError, match="contains no runs yet"):
        nowhere.find("2026")


def test_an_error_names_a_bucket_that_cannot_be_read(aws: Any, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"Could not read the archive: s3://no-such-bucket.*NoSuchBucket"):
        Archive("s3://no-such-bucket", tmp_path, aws.environment).runs()


def test_listing_the_newest_reads_few_entries(aws: Any, tmp_path: Path) -> None:
    shelf = Archive(f"s3://{BUCKET}/many", tmp_path, aws.environment)
    s3 = aws.client("s3")
    for hour in range(60):
        run_id = new_run_id("publish-ami", now=START + timedelta(hours=hour))
        body = json.dumps({"run_id": run_id, "runbook": "publish-ami", "status": "done"}).encode()
        s3.put_object(Bucket=BUCKET, Key=f"many/{run_id}/result.json", Body=body)
    aws.calls.clear()
    assert len(shelf.runs(last=5)) == 5
    assert Counter(call.operation for call in aws.calls)["GetObject"] < 40
