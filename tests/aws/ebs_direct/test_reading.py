"""Download a snapshot to a file."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from tests.aws.ebs_direct.test_resume import BLOCK, FOLDER, REGION, Upload, aws, image
from tests.support import kill, wait_until
from vmsnix_ops import errors, files
from vmsnix_ops.aws.ebs_direct import reading
from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
from vmsnix_ops.aws.ebs_direct.journal import locked
from vmsnix_ops.cli import main

__all__ = ["aws", "image"]
GET, GIB = "ebs:GetSnapshotBlock", 2**30


@pytest.fixture
def snapshot(aws, image, tmp_path):
    return Upload(image, tmp_path / "records").run().snapshot_id


def fetched(aws) -> int:
    return sum(call.operation == "GetSnapshotBlock" and call.outcome == "ok" for call in aws.calls)


def download(snapshot, path):
    session = boto3.Session(region_name=REGION)
    return reading.download(
        session, region=REGION, snapshot_id=snapshot, path=path, config=TransferConfig(2, 8, read_seconds=2)
    )


def test_a_download_is_the_disk_and_sparse(snapshot, image, tmp_path):
    done = download(snapshot, tmp_path / "copy.raw")
    assert (done.bytes, done.fetched) == (GIB, 30)
    assert done.path.stat().st_size == GIB
    assert done.path.stat().st_blocks * 512 < 30 * BLOCK + 2**20
    with done.path.open("rb") as file:
        assert file.read(40 * BLOCK) == image.read_bytes()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("copy")} == {"copy.raw"}


def test_a_block_of_zeros_stays_a_hole(aws, image, tmp_path):
    upload = Upload(image, tmp_path / "first")
    upload.run()
    with image.open("r+b") as file:
        file.write(bytes(20 * BLOCK))
    later = Upload(image, tmp_path / "first")
    done = download(later.run().snapshot_id, tmp_path / "copy.raw")
    assert done.fetched == 30
    assert done.path.stat().st_blocks * 512 < 16 * BLOCK + 2**20


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"do": "drop", "when": "body", "keep": 200_000, "nth": [1, 4]}, id="cut"),
        pytest.param(
            {"do": "error", "probability": 0.3, "code": "RequestThrottledException"}, id="throttled"
        ),
        pytest.param({"do": "hang", "nth": [2], "seconds": 60}, id="hung"),
    ],
)
@pytest.mark.variants(seconds=2)
def test_temporary_errors_are_retried(aws, snapshot, image, tmp_path, fault):
    aws.faults.add({"op": GET, **fault})
    done = download(snapshot, tmp_path / "copy.raw")
    with done.path.open("rb") as file:
        assert file.read(40 * BLOCK) == image.read_bytes()


def test_a_killed_download_is_continued(aws, snapshot, image, tmp_path):
    # The sandbox does not answer after the tenth block, so that the download cannot end before it is killed.
    aws.faults.add({"op": GET, "do": "hang", "seconds": 60, "nth": list(range(11, 1000))})
    path = tmp_path / "copy.raw"
    words = ["download", snapshot, str(path), "--region", REGION]
    process = subprocess.Popen([sys.executable, "-m", "vmsnix_ops", *words], cwd=FOLDER, env=dict(os.environ))
    journal = path.with_name("copy.raw.part.journal")
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") > 4, "four fetched blocks")
    kill(process)
    assert not path.exists()
    aws.faults.clear()
    done = download(snapshot, path)
    assert 0 < done.fetched < 30
    with path.open("rb") as file:
        assert file.read(40 * BLOCK) == image.read_bytes()
    assert not journal.exists()


def test_a_file_is_never_overwritten(snapshot, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(errors.UsageError, match="already exists"):
        download(snapshot, tmp_path / "mine")


def test_a_broken_link_is_refused_before_the_download(aws, snapshot, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing.raw")
    with pytest.raises(errors.UsageError, match="already exists"):
        download(snapshot, tmp_path / "link")
    assert fetched(aws) == 0
    assert not (tmp_path / "link.part").exists()


@pytest.mark.parametrize("name", ["x" * 250, "x" * 243, "file/disk.raw"])
def test_a_file_that_cannot_be_created_is_refused_before_the_download(aws, snapshot, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UsageError, match="Could not download to"):
        download(snapshot, tmp_path / name)
    assert fetched(aws) == 0


def test_one_file_by_two_paths_is_one_download(aws, snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    download(snapshot, tmp_path / "link" / "copy.raw")
    with pytest.raises(errors.UsageError, match="already exists"):
        download(snapshot, Path("link/../folder/copy.raw"))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["copy.raw"]


def test_a_snapshot_that_does_not_exist(aws, tmp_path):
    with pytest.raises(errors.AwsError, match="ResourceNotFoundException"):
        download("snap-0123456789abcdef0", tmp_path / "copy.raw")
    assert list(tmp_path.glob("copy*")) == []


def test_the_command(snapshot, tmp_path, capsys):
    path = tmp_path / "copy.raw"
    assert main(["download", snapshot, str(path), "--region", REGION, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"snapshot_id": snapshot, "path": str(path), "bytes": GIB, "fetched_blocks": 30}


def test_the_command_uses_the_region_of_the_settings(snapshot, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VMSNIX_REGION", REGION)
    assert main(["download", snapshot, str(tmp_path / "copy.raw")]) == 0
    assert "30 blocks downloaded" in capsys.readouterr().out


def start_download(snapshot, path):
    words = ["download", snapshot, str(path), "--region", REGION]
    return subprocess.Popen(
        [sys.executable, "-m", "vmsnix_ops", *words], cwd=FOLDER, env=dict(os.environ), stderr=subprocess.PIPE
    )


def begun(path):
    """Whether a download has the first blocks of a file."""
    journal = path.with_name(f"{path.name}.part.journal")
    return journal.exists() and journal.read_text().count("\n") > 1


@pytest.mark.parametrize("same", [True, False], ids=["same snapshot", "another snapshot"])
@pytest.mark.variants(seconds=2)
def test_a_second_download_to_a_file_is_refused_with_the_name_of_the_first(
    aws, snapshot, image, tmp_path, same
):
    content, other = image.read_bytes(), snapshot
    if not same:
        with image.open("r+b") as file:
            file.seek(5 * BLOCK)
            file.write(b"other" * 1000)
        other = Upload(image, tmp_path / "records").run().snapshot_id
    aws.faults.add({"op": GET, "do": "delay", "seconds": 0.5})
    path = tmp_path / "copy.raw"
    first = start_download(snapshot, path)
    wait_until(lambda: begun(path))
    with pytest.raises(errors.RunError, match=rf"[Pp]rocess {first.pid} on .* downloads {snapshot} since 20"):
        download(other, path)
    aws.faults.clear()
    first.communicate(timeout=120)
    assert first.returncode == 0
    with path.open("rb") as file:
        assert file.read(40 * BLOCK) == content
    with pytest.raises(errors.UsageError, match="already exists"):
        download(other, path)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("copy")} == {"copy.raw"}


def test_a_file_that_the_last_owner_of_the_lock_created_is_not_overwritten(
    aws, snapshot, tmp_path, monkeypatch
):
    path = tmp_path / "copy.raw"

    @contextmanager
    def lock(*given, **more):
        with locked(*given, **more):
            path.write_text("mine")
            yield

    monkeypatch.setattr(reading, "locked", lock)
    with pytest.raises(errors.UsageError, match="already exists"):
        download(snapshot, path)
    assert path.read_text() == "mine"
    assert aws.calls.matching(GET) == []


def test_the_lock_of_a_killed_download_does_not_count(aws, snapshot, image, tmp_path):
    rule = aws.faults.add({"op": GET, "do": "delay", "seconds": 0.5})
    path = tmp_path / "copy.raw"
    first = start_download(snapshot, path)
    wait_until(lambda: begun(path))
    kill(first)
    first.communicate(timeout=60)
    assert rule.applied
    assert (tmp_path / "copy.raw.part.lock").exists()
    aws.faults.clear()
    assert download(snapshot, path).path == path
    with path.open("rb") as file:
        assert file.read(40 * BLOCK) == image.read_bytes()
    assert not (tmp_path / "copy.raw.part.lock").exists()


@pytest.mark.long(seconds=5)
def test_many_downloads_at_once_make_one_file(aws, snapshot, image, tmp_path):
    path = tmp_path / "copy.raw"
    all_of_them = [start_download(snapshot, path) for _ in range(4)]
    ended = [(process.communicate(timeout=120)[1].decode(), process.returncode) for process in all_of_them]
    assert sum(code == 0 for _, code in ended) == 1
    for text, code in ended:
        assert "Traceback" not in text
        if code:
            assert "Another download is writing to" in text or "already exists" in text
    with path.open("rb") as file:
        assert file.read(40 * BLOCK) == image.read_bytes()


def test_an_unfinished_file_that_no_download_made_is_not_deleted(snapshot, tmp_path):
    (tmp_path / "copy.raw.part").write_text("mine")
    with pytest.raises(errors.UsageError, match="no download created it"):
        download(snapshot, tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw.part").read_text() == "mine"


def test_a_file_that_appears_during_the_download_is_not_overwritten(aws, snapshot, tmp_path):
    aws.faults.add({"op": GET, "do": "delay", "seconds": 0.2})
    path = tmp_path / "copy.raw"
    process = start_download(snapshot, path)
    wait_until(lambda: begun(path))
    path.write_text("mine")
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 2
    assert "was created by another program during the download" in error
    assert path.read_text() == "mine"
    path.unlink()
    aws.faults.clear()
    assert download(snapshot, path).fetched == 0


def test_a_lock_file_that_its_owner_deleted_locks_nothing(tmp_path, monkeypatch):
    path, create, opened = tmp_path / "disk.raw.part.lock", files.create, []

    def opened_before_it_was_deleted(place, flags):
        opened.append(create(place, flags))
        if len(opened) == 1:
            place.unlink()
        return opened[-1]

    monkeypatch.setattr(files, "create", opened_before_it_was_deleted)
    with (
        locked(path, "downloads", on_busy=lambda _: False),
        path.open("rb") as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert len(opened) == 2
