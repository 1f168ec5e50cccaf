"""State across restarts, and the sandbox in another process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.sandbox.clients import refused
from tests.support import read_line
from vmsnix_ops.sandbox import sandbox, sandbox_process

if TYPE_CHECKING:
    from pathlib import Path


def test_time_that_was_moved_forward_survives_a_restart(tmp_path: Path) -> None:
    with sandbox(state=tmp_path, speed=1e-6) as aws:
        snapshot = aws.client("ebs").start_snapshot(VolumeSize=1)["SnapshotId"]
        started = aws.clock.now()
        aws.client("ebs").complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=0)
        aws.clock.advance(3600)
    with sandbox(state=tmp_path, speed=1e-6) as aws:
        assert aws.clock.age(started) >= 3600
        assert aws.clock.steps == 1
        (found,) = aws.client("ec2").describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
        assert found["State"] == "completed"
        aws.reset()
    with sandbox(state=tmp_path) as aws:
        assert aws.clock.steps == 0


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    with sandbox(state=tmp_path, speed=20) as aws:
        aws.prepare(bucket="images")
        aws.client("s3").put_object(Bucket="images", Key="k", Body=b"kept" * 100_000, Metadata={"a": "1"})
        aws.client("ssm").put_parameter(Name="/pointer", Value="v", Type="String")
        versioned = {"Bucket": "images", "VersioningConfiguration": {"Status": "Enabled"}}
        aws.client("s3").put_bucket_versioning(**versioned)
        version = aws.client("s3").put_object(Bucket="images", Key="v", Body=b"old")["VersionId"]
        aws.client("s3").delete_object(Bucket="images", Key="v")
        snapshot = aws.client("ebs").start_snapshot(VolumeSize=1)["SnapshotId"]
        session = aws.client("sts").get_session_token()["Credentials"]
    with sandbox(state=tmp_path, speed=20) as aws:
        found = aws.client("s3").get_object(Bucket="images", Key="k")
        assert (found["Body"].read(), found["Metadata"]) == (b"kept" * 100_000, {"a": "1"})
        old = aws.client("s3").get_object(Bucket="images", Key="v", VersionId=version)
        assert old["Body"].read() == b"old"
        assert aws.client("s3").list_object_versions(Bucket="images")["DeleteMarkers"][0]["Key"] == "v"
        assert aws.client("ssm").get_parameter(Name="/pointer")["Parameter"]["Value"] == "v"
        assert aws.client("iam").get_role(RoleName="vmimport")["Role"]["RoleName"] == "vmimport"
        found = aws.client("ec2").describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
        assert found[0]["State"] == "pending"
        keys = {
            "aws_access_key_id": session["AccessKeyId"],
            "aws_secret_access_key": session["SecretAccessKey"],
            "aws_session_token": session["SessionToken"],
        }
        aws.client("sts", **keys).get_caller_identity()


def test_restored_tables_replace_all_resources() -> None:
    with sandbox(speed=1000) as aws:
        aws.prepare(bucket="images")
        memory = aws.save_tables()
        aws.client("s3").put_object(Bucket="images", Key="k", Body=b"later")
        aws.client("s3").create_bucket(Bucket="later")
        aws.client("ec2").create_volume(AvailabilityZone="us-east-1a", Size=1, VolumeType="gp3")
        aws.faults.add({"op": "s3:*", "do": "error", "code": "SlowDown", "http": 503})
        aws.clock.advance(60)
        aws.restore_tables(memory)
        assert [bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]] == ["images"]
        assert "Contents" not in aws.client("s3").list_objects_v2(Bucket="images")
        assert aws.client("ec2").describe_volumes()["Volumes"] == []
        assert aws.calls.count("s3:PutObject") == 0
        aws.restore_tables(memory)  # they can be restored again
        assert aws.client("iam").get_role(RoleName="vmimport")["Role"]["RoleName"] == "vmimport"


def test_without_a_folder_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with sandbox() as aws:
        aws.prepare()
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        sandbox(state=tmp_path),
        pytest.raises(OSError, match="Another sandbox uses the folder"),
    ):
        sandbox(state=tmp_path)
    with sandbox(state=tmp_path):
        pass


def test_a_damaged_state_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tables.pickle").write_bytes(b"garbage")
    with pytest.raises(OSError, match=r"tables\.pickle is not a state file of this version of the sandbox"):
        sandbox(state=tmp_path)


def test_a_child_process_can_be_inspected_and_restarted(tmp_path: Path) -> None:
    with sandbox_process(speed=1000, state=tmp_path, limits="aws") as aws:
        aws.prepare(bucket="images")
        aws.add_fault(op="s3:HeadBucket", nth=1, do="error", code="SlowDown", http=503)
        aws.client("s3").head_bucket(Bucket="images")  # boto3 tries again
        assert [call["outcome"] for call in aws.calls("s3:HeadBucket")] == ["SlowDown", "ok"]
        aws.clear_faults()
        assert aws.admin("faults") == []
        assert aws.admin("state")["buckets"] == {f"{aws.account}/": 1}
        aws.advance(60)
        assert aws.admin("clock")["speed"] == 1000
        process = aws.process
    assert process.returncode == 0
    with sandbox_process(state=tmp_path) as aws:
        aws.client("s3").head_bucket(Bucket="images")


def test_a_child_reports_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=r"is in use\. Choose another port"):
            sandbox_process(port=taken.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.variants
def test_serving_in_the_foreground_prints_exports_and_stops_cleanly(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "vmsnix_ops.sandbox", "--prepare", "images"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [read_line(process) for _ in range(9)]
        exports = dict(
            line.removeprefix("export ").strip().split("=", 1) for line in lines if "export" in line
        )
        answer = subprocess.run(
            [
                sys.executable,
                "-c",
                "import boto3; print(boto3.client('s3').list_buckets()['Buckets'][0]['Name'])",
            ],
            env=os.environ | exports,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
    assert answer.stdout == "images\n"
    assert exports["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")


def test_sessions_ignore_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_PROFILE", "production")
    with sandbox() as aws:
        assert aws.session("eu-west-1").client("sts").get_caller_identity()["Account"] == aws.account
        with refused("NoSuchEntity"):
            aws.client("iam").get_role(RoleName="vmimport")
        aws.prepare(region="eu-west-1")
        aws.prepare(region="eu-west-1")
        assert (
            aws.client("s3", "eu-west-1").head_bucket(Bucket="vmsnix-images")["BucketRegion"] == "eu-west-1"
        )


def test_preparing_is_safe_to_repeat_and_creates_a_role_for_vm_import() -> None:
    with sandbox() as aws:
        aws.prepare()
        aws.prepare()
        role = aws.client("iam").get_role(RoleName="vmimport")["Role"]
        statement = role["AssumeRolePolicyDocument"]["Statement"][0]
        assert statement["Principal"] == {"Service": "vmie.amazonaws.com"}
        assert statement["Condition"] == {"StringEquals": {"sts:Externalid": "vmimport"}}
