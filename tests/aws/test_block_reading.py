"""A snapshot becomes a file again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import boto3
import pytest

from tests.aws.test_block_resume import BLOCK, FOLDER, REGION, Upload, aws, image
from vmsnix_ops import errors
from vmsnix_ops.aws import block_reading
from vmsnix_ops.aws.block_engine import Pushing
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
    return block_reading.download(
        session, region=REGION, snapshot_id=snapshot, path=path, pushing=Pushing(2, 8, read_seconds=2)
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
def test_what_passes_is_waited_out(aws, snapshot, image, tmp_path, fault):
    aws.faults.add({"op": GET, **fault})
    done = download(snapshot, tmp_path / "copy.raw")
    with done.path.open("rb") as file:
        assert file.read(40 * BLOCK) == image.read_bytes()


def test_a_killed_download_goes_on(aws, snapshot, image, tmp_path):
    aws.faults.add({"op": GET, "do": "delay", "seconds": 0.5})
    path = tmp_path / "copy.raw"
    words = ["download", snapshot, str(path), "--region", REGION]
    process = subprocess.Popen([sys.executable, "-m", "vmsnix_ops", *words], cwd=FOLDER, env=dict(os.environ))
    journal = path.with_name("copy.raw.part.journal")
    while not (journal.exists() and journal.read_text().count("\n") > 4) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    aws.faults.clear()
    done = download(snapshot, path)
    assert 0 < done.fetched < 30
    with path.open("rb") as file:
        assert file.read(40 * BLOCK) == image.read_bytes()
    assert not journal.exists()


def test_a_file_is_never_overwritten(snapshot, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(errors.UsageError, match="is there already"):
        download(snapshot, tmp_path / "mine")


def test_a_snapshot_that_does_not_exist(aws, tmp_path):
    with pytest.raises(errors.AwsError, match="ResourceNotFoundException"):
        download("snap-0123456789abcdef0", tmp_path / "copy.raw")
    assert list(tmp_path.glob("copy*")) == []


def test_the_command(snapshot, tmp_path, capsys):
    path = tmp_path / "copy.raw"
    assert main(["download", snapshot, str(path), "--region", REGION, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"snapshot_id": snapshot, "path": str(path), "bytes": GIB, "fetched_blocks": 30}


def test_the_command_goes_by_the_settings_region(snapshot, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VMSNIX_REGION", REGION)
    assert main(["download", snapshot, str(tmp_path / "copy.raw")]) == 0
    assert "30 blocks fetched" in capsys.readouterr().out
