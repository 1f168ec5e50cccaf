"""Tables on the sandbox's S3: conditional commits, lost answers, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import RecordsError
from vmsnix_ops.records.rebuild import rebuild
from vmsnix_ops.records.tables import Tables, storage_options
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PLACE = "s3://acme-records/history"
STEP = {
    "run_id": "r1",
    "step": "upload",
    "status": "created",
    "started_at": datetime(2026, 11, 22, 12, tzinfo=UTC),
    "seconds": 2.5,
    "bytes": 2**40,
}


@pytest.fixture
def aws() -> Iterator[Sandbox]:
    with sandbox() as started:
        started.client("s3").create_bucket(Bucket="acme-records")
        yield started


@pytest.fixture
def tables(aws: Sandbox) -> Tables:
    return Tables(PLACE, storage_options=aws.environment)


def test_tables_work_on_s3_as_in_a_folder(tables: Tables) -> None:
    assert tables.read("steps").empty
    for number in range(3):
        tables.append("steps", [STEP | {"seconds": number, "detail": {"n": number}}])
    assert sorted(tables.read("steps")["seconds"]) == [0, 1, 2]
    assert len(tables.read("steps", columns=["run_id"], where=[("seconds", ">", 1)])) == 1
    tables.compact("steps")
    with tables.reading("steps") as found:
        assert found is not None
        assert len(found[0].file_uris()) == 1
    assert len(tables.read("steps")) == 3


def test_a_damaged_table_on_s3_is_rebuilt_and_kept(aws: Sandbox, tables: Tables) -> None:
    for number in range(3):
        tables.append("steps", [STEP | {"step": f"step-{number}"}])
    before = tables.read("steps")
    s3, prefix = aws.client("s3"), PLACE.removeprefix("s3://acme-records/")
    log = f"{prefix}/steps/_delta_log/"
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket="acme-records", Prefix=log)["Contents"]]
    s3.put_object(Bucket="acme-records", Key=max(key for key in keys if key.endswith(".json")), Body=b"torn")
    with pytest.raises(RecordsError, match="vmsnix history rebuild steps"):
        tables.read("steps")
    assert rebuild(tables, "steps", []).read == 3
    again = tables.read("steps")
    assert sorted(again["step"]) == sorted(before["step"])
    tables.append("steps", [STEP | {"step": "more"}])
    assert len(tables.read("steps")) == 4


def test_every_commit_is_conditional(aws: Sandbox, tables: Tables) -> None:
    tables.append("steps", [STEP])
    tables.append("steps", [STEP])
    commits = [
        call
        for call in aws.calls
        if call.operation == "PutObject" and str(call.params.get("Key", "")).endswith(".json")
    ]
    assert len(commits) == 2
    assert {call.params.get("IfNoneMatch") for call in commits} == {"*"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_with_a_lost_answer_is_made_once(aws: Sandbox, tables: Tables, when: str) -> None:
    tables.append("steps", [STEP])
    commit = {"Key": "history/steps/_delta_log/*.json"}
    aws.faults.add({"op": "s3:PutObject", "where": commit, "nth": 1, "do": "drop", "when": when})
    tables.append("steps", [STEP | {"step": "import"}])
    assert sorted(tables.read("steps")["step"]) == ["import", "upload"]


def test_temporary_server_errors_are_retried(aws: Sandbox, tables: Tables) -> None:
    aws.faults.add({"op": "s3:*", "nth": [1, 3, 4], "do": "error", "code": "SlowDown", "http": 503})
    tables.append("steps", [STEP])
    assert len(tables.read("steps")) == 1


def test_a_missing_bucket_is_named(aws: Sandbox) -> None:
    nowhere = Tables("s3://nobody-has-this/history", storage_options=aws.environment)
    with pytest.raises(RecordsError, match=r"s3://nobody-has-this/history/steps.*S3 answered NoSuchBucket"):
        nowhere.read("steps")
    with pytest.raises(RecordsError, match=r"S3 answered NoSuchBucket.*Check the bucket's name"):
        nowhere.append("steps", [STEP])


def test_wrong_credentials_are_not_shown(aws: Sandbox) -> None:
    environment = dict(aws.environment, AWS_SECRET_ACCESS_KEY="not-the-secret")
    with pytest.raises(RecordsError, match="S3 answered SignatureDoesNotMatch") as caught:
        Tables(PLACE, storage_options=environment).read("steps")
    assert environment["AWS_ACCESS_KEY_ID"] not in str(caught.value)


@pytest.mark.parametrize("machines", [3, 1])
@pytest.mark.parametrize(
    ("writers", "count"), [(3, 5), pytest.param(16, 200, marks=pytest.mark.long(seconds=600))]
)
@pytest.mark.long(seconds=5)
def test_simultaneous_writers_lose_and_duplicate_nothing_on_s3(
    aws: Sandbox, tables: Tables, tmp_path: Path, machines: int, writers: int, count: int
) -> None:
    # Writers on one machine wait for the lock. Writers on several machines conflict in the commit, and retry.
    program = [sys.executable, str(ROOT / "tests" / "records" / "writer.py"), PLACE]
    environment = os.environ | aws.environment | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [*program, f"w{number}", str(count)],
            env=environment | {"XDG_CACHE_HOME": str(tmp_path / f"machine-{number % machines}")},
        )
        for number in range(writers)
    ]
    assert [process.wait(240 * writers) for process in running] == [0] * writers
    frame = tables.read("steps", columns=["run_id", "step"])
    expected = {(f"w{writer}", f"step-{number}") for writer in range(writers) for number in range(count)}
    assert len(frame) == writers * count
    assert set(frame.itertuples(index=False, name=None)) == expected
    if writers > 3 and machines > 1:  # a few commits may not conflict by chance
        assert [call for call in aws.calls if call.outcome == "PreconditionFailed"]


KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def test_plain_http_is_allowed_only_on_this_machine() -> None:
    here = storage_options(KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"})
    assert here["AWS_ALLOW_HTTP"] == "true"
    assert "AWS_ALLOW_HTTP" not in storage_options(KEYS | {"AWS_ENDPOINT_URL": "http://storage.example"})
    assert "AWS_ALLOW_HTTP" not in storage_options(
        KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1.evil.example"}
    )


def test_the_s3_endpoint_and_region_of_the_environment_have_priority() -> None:
    given = KEYS | {
        "AWS_ENDPOINT_URL": "https://all.example",
        "AWS_ENDPOINT_URL_S3": "https://s3.example",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_SESSION_TOKEN": "token",
    }
    options = storage_options(given, region="sa-east-1")
    assert options["AWS_ENDPOINT_URL"] == "https://s3.example"
    assert options["AWS_REGION"] == "eu-west-1"
    assert options["AWS_SESSION_TOKEN"] == "token"
    assert options["aws_conditional_put"] == "etag"
    assert storage_options(KEYS, region="sa-east-1")["AWS_REGION"] == "sa-east-1"


def test_credentials_come_from_the_profile_as_with_boto3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = tmp_path / "process.py"
    process.write_text("""print('{"Version": 1, "AccessKeyId": "from", "SecretAccessKey": "process"}')""")
    config = tmp_path / "config"
    config.write_text(
        f"[profile records]\nregion = ap-south-1\ncredential_process = {sys.executable} {process}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_PROFILE", "records")
    options = storage_options()
    assert (options["AWS_ACCESS_KEY_ID"], options["AWS_SECRET_ACCESS_KEY"]) == ("from", "process")
    assert options["AWS_REGION"] == "ap-south-1"


def test_a_profile_with_empty_keys_has_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("[records]\naws_access_key_id =\naws_secret_access_key =\n", encoding="utf-8")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_PROFILE", "records")
    with pytest.raises(RecordsError, match="no AWS credentials"):
        storage_options()


def test_missing_credentials_are_an_error_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(RecordsError, match=r"no AWS credentials.*aws sso login"):
        storage_options()
