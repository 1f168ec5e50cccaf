"""Responses of AWS are recorded without secrets, and two recordings are compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import record_aws
from tests.record_aws import Cleaner, differences
from vmsnix_ops import errors
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.redaction import find_secret
from vmsnix_ops.sandbox import sandbox

ROOT = Path(__file__).parent.parent
TOKEN = "IQoJb3JpZ2lu" + "A1b2" * 30


@pytest.fixture(scope="module")
def served():
    with sandbox(speed=5000, account="678901234567") as started:
        started.prepare(bucket="images")
        started.client("iam").create_user(UserName="carol")
        yield started, started.save_tables()


@pytest.fixture
def aws(served):
    started, memory = served
    started.restore_tables(memory)
    return started


@pytest.fixture
def folder(tmp_path, monkeypatch):
    record_into(tmp_path / "kept", monkeypatch)
    return tmp_path / "kept"


def record_into(folder, monkeypatch):
    folder.mkdir()
    for name, value in record_aws.environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BOTOCORE_EXPERIMENTAL__PLUGINS", "vmsnix_record=tests.record_aws")


def kept(folder, name="*"):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}.json"))]


def call_services(aws):
    """Make calls of every protocol, whose responses have secrets and account IDs, and refused calls."""
    session = aws.session()
    client(session, "sts").get_caller_identity()
    client(session, "sts").get_session_token()
    iam = client(session, "iam")
    iam.get_role(RoleName="vmimport")
    iam.create_access_key(UserName="carol")
    s3 = client(session, "s3")
    s3.put_object(Bucket="images", Key="k", Body=b"an image")
    s3.list_objects_v2(Bucket="images", FetchOwner=True)
    assert s3.get_object(Bucket="images", Key="k")["Body"].read() == b"an image"
    client(session, "ebs").start_snapshot(VolumeSize=1)
    client(session, "ec2").describe_images(Owners=["self"])
    with pytest.raises(errors.AwsError), calling("look at it"):
        client(session, "ec2").describe_images(ImageIds=["ami-0123456789abcdef0"])


def test_each_response_is_recorded_with_status_headers_and_body(aws, folder):
    call_services(aws)
    (refused,) = kept(folder, "ec2.DescribeImages.400.*")
    assert (refused["service"], refused["operation"], refused["status"]) == ("ec2", "DescribeImages", 400)
    assert "<Code>InvalidAMIID.NotFound</Code>" in refused["body"]
    assert refused["headers"]["content-type"].startswith("text/xml")
    (snapshot,) = kept(folder, "ebs.StartSnapshot.*")
    assert json.loads(snapshot["body"])["SnapshotId"].startswith("snap-")
    (read,) = kept(folder, "s3.GetObject.*")
    assert (read["status"], read["body"]) == (200, None), "an object's content is no answer"


def test_no_secret_is_recorded(aws, folder):
    call_services(aws)
    ids = {call.request_id for call in aws.calls}
    keys = [
        k["AccessKeyId"] for k in aws.client("iam").list_access_keys(UserName="carol")["AccessKeyMetadata"]
    ]
    files = [path.read_text() for path in folder.iterdir()]
    assert len(files) > 8
    for text in files:
        for secret in (aws.account, aws.access_key, aws.secret_key, *keys, *ids):
            assert secret not in text
        assert find_secret(text) == ""
    (made,) = kept(folder, "iam.CreateAccessKey.*")
    assert "<SecretAccessKey>REMOVED</SecretAccessKey>" in made["body"]
    (token,) = kept(folder, "sts.GetSessionToken.*")
    assert "<SessionToken>REMOVED</SessionToken>" in token["body"]
    (role,) = kept(folder, "iam.GetRole.*")
    assert "arn:aws:iam::000000000000:role/vmimport" in role["body"]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (f'{{"nextToken": "{TOKEN}"}}', '{"nextToken": "REMOVED"}'),
        ("<requestId>0a1b2c3d-0000-4000-8000-0123456789ab</requestId>", "<requestId>REMOVED</requestId>"),
        ("request 0a1b2c3d-0000-4000-8000-0123456789ab failed", "request REMOVED failed"),
        (
            "Encoded authorization failure message: aBc-_123.",
            "Encoded authorization failure message: REMOVED",
        ),
        (
            "arn:aws:iam::123456789012:role/r and 999999999999",
            "arn:aws:iam::000000000000:role/r and 000000000001",
        ),
        ("vmsnix/1234567890123456.vhd", "vmsnix/1234567890123456.vhd"),
        ("<ID>" + "0f" * 32 + "</ID>", "<ID>REMOVED</ID>"),
        ("<digest>" + "0f" * 32 + "</digest>", "<digest>" + "0f" * 32 + "</digest>"),
    ],
)
def test_secrets_are_removed_and_other_text_is_kept(text, cleaned):
    assert Cleaner().text(text) == cleaned


def test_equal_responses_are_recorded_once(aws, folder):
    for _ in range(2):
        client(aws.session(), "s3").head_bucket(Bucket="images")
    assert len(kept(folder, "s3.HeadBucket.*")) == 1


def test_nothing_is_recorded_without_the_variable(aws, tmp_path, monkeypatch):
    monkeypatch.delenv(record_aws.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    client(aws.session(), "sts").get_caller_identity()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_reported_before_the_command_runs(tmp_path, capsys):
    (tmp_path / "file").touch()
    ran = tmp_path / "ran"
    assert record_aws.main(["run", str(tmp_path / "file" / "below"), "touch", str(ran)]) == 2
    assert "Cannot record into" in capsys.readouterr().err
    assert not ran.exists()


def test_two_recordings_of_the_same_calls_have_no_differences(aws, served, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        record_into(tmp_path / name, monkeypatch)
        aws.restore_tables(served[1])
        call_services(aws)
    assert record_aws.main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert capsys.readouterr().out == "No differences in the responses that both have.\n"


@pytest.mark.long(seconds=15)
def test_a_command_is_recorded_in_every_process(tmp_path, monkeypatch):
    """The kernel of the notebook, which the command starts, makes the calls of a runbook."""
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    program = [sys.executable, "-m", "tests.record_aws", "run", str(tmp_path / "kept")]
    demo = [sys.executable, "-m", "vmsnix_ops", "demo"]
    done = subprocess.run([*program, *demo], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "kept", "ec2.RegisterImage.200.*")
    assert "new responses in" in done.stderr


def test_a_command_that_calls_nothing_is_reported(tmp_path, capsys):
    assert record_aws.main(["run", str(tmp_path / "kept"), "true"]) == 1
    assert "0 new responses in" in capsys.readouterr().err


def test_differences_in_text_fields_and_headers_are_listed(tmp_path):
    body = "<R><Code>X</Code><Message>{}</Message>{}</R>"
    answers = {
        "real": {"headers": {"a": "1", "b": "2"}, "body": body.format("as AWS says it", "<Extra/>")},
        "ours": {"headers": {"a": "9"}, "body": body.format("as we say it", "")},
    }
    for name, answer in answers.items():
        (tmp_path / name).mkdir()
        whole = {"service": "ec2", "operation": "Op", "status": 400, **answer}
        (tmp_path / name / "ec2.Op.400.x.json").write_text(json.dumps(whole))
    assert differences(tmp_path / "real", tmp_path / "ours") == [
        "ec2 Op 400 X: only the first has /R/Extra",
        "ec2 Op 400 X: only the first has /R/Message = 'as AWS says it'",
        "ec2 Op 400 X: only the first has header b",
        "ec2 Op 400 X: only the second has /R/Message = 'as we say it'",
    ]
