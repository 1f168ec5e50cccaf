"""A killed upload is continued: the same bytes, one snapshot, nothing pending."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from tests import hanging
from tests.publish.test_publish import bytes_of
from tests.quick import SNAPSHOT_MINUTES
from tests.support import DEADLINE, kill, wait_until
from vmsnix_ops.aws.ebs_direct import manifests, writing
from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
from vmsnix_ops.aws.ebs_direct.journal import BlockJournal, JournalHeader
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.disk.survey import identify
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.sandbox import sandbox

REGION, BLOCK = "us-east-1", 524_288
FOLDER = Path(__file__).parents[3]


@pytest.fixture
def aws(monkeypatch, tmp_path):
    with sandbox(speed=100) as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        yield aws


@pytest.fixture
def image(tmp_path):
    """A raw disk of 40 blocks, every fourth of which is zero."""
    path, chance = tmp_path / "disk.raw", random.Random(4)
    path.write_bytes(
        b"".join(bytes(BLOCK) if number % 4 == 3 else chance.randbytes(BLOCK) for number in range(40))
    )
    return path


class Upload:
    """The same upload, in this process or in one that can be killed."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image, self.journal, self.history = image, folder / "journal", folder / "history"
        self.digest = identify(image).identity
        self.tables = Tables(self.history)

    @property
    def wanted(self) -> writing.SnapshotUpload:
        tags = {"Name": "victim", "vmsnix:image": "victim", "vmsnix:digest": self.digest, "vmsnix:run": "1"}
        return writing.SnapshotUpload(self.image, self.digest, "victim", REGION, tags, self.journal)

    def start(self) -> subprocess.Popen[bytes]:
        words = [str(self.image), self.digest, str(self.journal), str(self.history), REGION]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.aws.ebs_direct.uploader", *words],
            cwd=FOLDER,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def run(
        self, config: TransferConfig | None = None, session: boto3.Session | None = None
    ) -> writing.DirectSnapshot:
        session = session or boto3.Session(region_name=REGION)
        made = writing.upload(session, self.wanted, tables=self.tables, config=config or TransferConfig(2, 8))
        return writing.finish(session, self.wanted, made, tables=self.tables)


def snapshots(aws) -> dict[str, str]:
    found = aws.client("ec2", REGION).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    return {snapshot["SnapshotId"]: snapshot["State"] for snapshot in found}


def puts(aws) -> int:
    return sum(call.operation == "PutSnapshotBlock" and call.outcome == "ok" for call in aws.calls)


def put_some_blocks(upload: Upload, aws, blocks_put: int) -> subprocess.Popen[bytes]:
    """Start an upload and return its process once this many blocks were put, or it has ended."""
    before, process = puts(aws), upload.start()
    wait_until(
        lambda: puts(aws) - before >= blocks_put or process.poll() is not None,
        f"the put of {blocks_put} blocks",
        pause=0.005,
    )
    return process


def kill_after_some_blocks(upload: Upload, aws, blocks_put: int) -> None:
    """Kill an upload once this many blocks were put; the sandbox delays the others."""
    others = list(range(blocks_put + 1, 1000))
    delay = aws.faults.add({"op": "ebs:PutSnapshotBlock", "do": "hang", "seconds": 60, "nth": others})
    kill(put_some_blocks(upload, aws, blocks_put))
    aws.faults.remove(delay)


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.long(seconds=200))])
@pytest.mark.long(seconds=25)
def test_killed_at_random_points_and_resumed(aws, image, tmp_path, kills):
    """Every round uploads other bytes, is killed once at a random point, and is run again."""
    chance = random.Random(os.environ.get("PYTEST_RANDOM_SEED", "blocks"))
    aws.faults.add({"op": "ebs:PutSnapshotBlock", "do": "delay", "seconds": 0.05})
    expected: dict[str, bytes] = {}
    for number in range(kills):
        with image.open("r+b") as file:
            file.seek((number % 40) * BLOCK)
            file.write(chance.randbytes(BLOCK))
        upload = Upload(image, tmp_path / f"round-{number}")
        if number % 4 == 3:  # not by blocks but by time: also before, between and after them
            process = upload.start()
            time.sleep(chance.uniform(0.3, 4))
        else:
            process = put_some_blocks(upload, aws, chance.randrange(0, 31))
        process.kill()
        assert process.wait(DEADLINE) in (0, -signal.SIGKILL)  # some rounds end before they are killed
        made = upload.run()
        expected[made.snapshot_id] = image.read_bytes()
        assert not upload.journal.exists()
        assert snapshots(aws) == dict.fromkeys(expected, "completed")
    for snapshot_id, data in expected.items():
        assert bytes_of(aws, snapshot_id, len(data)) == data


def test_a_killed_upload_sends_only_what_was_not_acknowledged(aws, image, tmp_path):
    upload = Upload(image, tmp_path / "records")
    kill_after_some_blocks(upload, aws, 20)
    known = BlockJournal(upload.journal).read()
    assert known is not None
    acknowledged = len(known[1])
    assert acknowledged > 0
    pending = snapshots(aws)
    made = upload.run()
    assert made.sent == 30 - acknowledged
    assert snapshots(aws) == {made.snapshot_id: "completed"}
    assert list(pending) == [made.snapshot_id]


def test_workers_end_with_their_parent(aws, image, tmp_path):
    aws.faults.add({"op": "ebs:PutSnapshotBlock", "do": "delay", "seconds": 0.5})
    kill(put_some_blocks(Upload(image, tmp_path / "records"), aws, 4))

    def quiet() -> bool:
        before = len(list(aws.calls))
        time.sleep(1.5)
        return len(list(aws.calls)) == before

    wait_until(quiet, "the end of the workers")


def test_an_expired_snapshot_is_replaced(aws, image, tmp_path):
    upload = Upload(image, tmp_path / "records")
    kill_after_some_blocks(upload, aws, 5)
    (old,) = snapshots(aws)
    aws.clock.advance((SNAPSHOT_MINUTES + 1) * 60)
    assert snapshots(aws) == {old: "error"}
    made = upload.run()
    assert made.snapshot_id != old
    assert snapshots(aws) == {made.snapshot_id: "completed"}
    assert bytes_of(aws, made.snapshot_id, image.stat().st_size) == image.read_bytes()


def test_a_machine_without_the_journal_continues_in_the_same_snapshot(aws, image, tmp_path):
    upload = Upload(image, tmp_path / "records")
    kill_after_some_blocks(upload, aws, 5)
    (pending,) = snapshots(aws)
    upload.journal.unlink()
    assert upload.run().snapshot_id == pending
    assert snapshots(aws) == {pending: "completed"}


def test_the_manifest_of_a_run_killed_after_the_completion_is_written_later(aws, image, tmp_path):
    upload = Upload(image, tmp_path / "records")
    session = boto3.Session(region_name=REGION)
    sealed = writing.upload(session, upload.wanted, tables=upload.tables, config=TransferConfig(2, 8))
    wait_until(lambda: snapshots(aws)[sealed.snapshot_id] == "completed", "the snapshot's completion")
    again = upload.run()
    assert (again.snapshot_id, again.outcome, again.sent) == (sealed.snapshot_id, "reused", 0)
    assert len(manifests.load(upload.tables, sealed.snapshot_id)) == 30


def test_no_worker_outlives_an_upload_that_is_killed(aws, image, tmp_path):
    upload = Upload(image, tmp_path / "records")
    aws.faults.add({"op": "ebs:PutSnapshotBlock", "do": "hang", "seconds": 60, "nth": list(range(2, 1000))})
    process = put_some_blocks(upload, aws, 1)
    workers = hanging.programs_below(process.pid)
    assert len(workers) == 2
    kill(process)
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "the workers' end")


def test_without_the_parents_manifest_a_killed_upload_is_not_continued(aws, image, tmp_path):
    upload = Upload(image, tmp_path / "records")
    first = upload.run()
    with image.open("r+b") as file:
        file.write(bytes(BLOCK))
        for number in (1, 2, 4):
            file.seek(number * BLOCK)
            file.write(b"new" * 1000)
    later = Upload(image, tmp_path / "records")
    kill_after_some_blocks(later, aws, 1)
    (later.history / "manifests").rename(tmp_path / "lost")
    made = later.run()
    assert made.parent_id == ""
    assert set(snapshots(aws)) == {first.snapshot_id, made.snapshot_id}
    assert bytes_of(aws, made.snapshot_id, image.stat().st_size) == image.read_bytes()


def test_with_a_forged_manifest_of_the_parent_a_killed_upload_is_not_continued(aws, image, tmp_path):
    upload = Upload(image, tmp_path / "records")
    first = upload.run()
    with image.open("r+b") as file:
        for number in (0, 1, 2, 4):
            file.seek(number * BLOCK)
            file.write(b"new" * 1000)
    later = Upload(image, tmp_path / "records")
    kill_after_some_blocks(later, aws, 1)
    new = identify(image)
    manifests.save(
        later.tables, Manifest(new.identity, new.disk_bytes, first.snapshot_id, REGION, new.blocks)
    )
    made = later.run()
    assert made.parent_id == ""
    assert bytes_of(aws, made.snapshot_id, image.stat().st_size) == image.read_bytes()


@pytest.mark.parametrize("line", ["", "{", "[1]", "[" * 99_999, '{"x": 1}'])
def test_a_journal_with_a_damaged_first_line_is_started_again(tmp_path, line):
    (tmp_path / "journal").write_text(f"{line}\n")
    assert BlockJournal(tmp_path / "journal").read() is None


def test_a_block_with_an_incomplete_line_is_sent_again(tmp_path):
    journal = BlockJournal(tmp_path / "journal")
    journal.begin(JournalHeader("snap-0123456789abcdef0"))
    journal.add([7, 123])
    journal.close()
    known = {7, 123}
    for cut_off in ("1", "12", "124"):  # of 1240
        with journal.path.open("a") as file:
            file.write(cut_off)
        found = journal.read()
        assert found is not None
        assert found[1] == known
        journal.resume()  # which removes the half line, or it would be joined to the next one
        journal.add([int(cut_off) + 500])
        journal.close()
        known.add(int(cut_off) + 500)


def test_an_upload_continues_without_a_journal(aws, image, tmp_path, monkeypatch):
    upload = Upload(image, tmp_path / "full")
    original = os.open

    def full(path, flags, *more, **named):
        if flags & os.O_CREAT and Path(os.fsdecode(path)).name.startswith("journal"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return original(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", full)
    made = upload.run()
    assert bytes_of(aws, made.snapshot_id, image.stat().st_size) == image.read_bytes()
    assert snapshots(aws) == {made.snapshot_id: "completed"}


def test_nothing_is_added_to_an_incomplete_line_of_a_journal(tmp_path, monkeypatch):
    journal = BlockJournal(tmp_path / "journal")
    journal.begin(JournalHeader("snap-1"))
    journal.add([1, 2])

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, text):
            self.file.write(text[:3])  # "3\n4" of "3\n45\n"
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            self.file.close()

    journal._file = Full(journal._file)
    journal.add([3, 45])
    assert os.strerror(errno.ENOSPC) in journal.problem
    journal.add([6])  # there is room again: "46" was never sent
    journal.close()
    assert BlockJournal(journal.path).read() == (JournalHeader("snap-1"), {1, 2, 3})


def test_a_download_stops_without_its_journal(tmp_path):
    journal = BlockJournal(tmp_path / "in-the-way" / "journal", required=True)
    (tmp_path / "in-the-way").touch()
    with pytest.raises(OSError, match="exists"):
        journal.begin(JournalHeader("snap-1"))
