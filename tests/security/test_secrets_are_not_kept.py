"""Secrets in rows of tables, results, tags, errors and parameters are removed."""

from __future__ import annotations

import json
import random
import string
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from vmsnix_ops import errors
from vmsnix_ops.aws import tags
from vmsnix_ops.records import secrets
from vmsnix_ops.records.result import write_result
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.secrets import without_secrets
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.redaction import HINT, SHAPES, Redactor, find_secret, remember

if TYPE_CHECKING:
    from pathlib import Path

# Built from parts, so that a scanner for secrets does not report this file.
KEY = "AKIA" + "ABCDEFGHIJKLMNOP"
SECRET = "A1/" * 13 + "B"
PLANTED = {
    "access key": f"used {KEY} for it",
    "secret key": f"AWS_SECRET_ACCESS_KEY={SECRET}",
    "session token": "aws_session_token: " + "IQoJb3JpZ2lu" + "X" * 80,
    "presigned URL": "https://b.s3.amazonaws.com/k?X-Amz-Signature=" + "0a" * 32,
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAK\n-----END RSA " + "PRIVATE KEY-----",
    "password in a flake's address": "git+https://me:" + "hunter22secret@example.org/repository",
    "GitHub token": "ghs_" + "a1" * 20,
    "web token": "eyJ" + "hbGciOiJIUzI1" + ".eyJ" + "zdWIiOiIxMjM0" + "." + "abcdefghijkl",
}
CORES = [KEY, SECRET, "X" * 60, "0a" * 32, "MIIEow", "hunter22secret", "a1a1a1", "zdWIiOiIxMjM0"]


def bare(text: str) -> bool:
    return not any(core in text for core in CORES)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return current_run("security")


@pytest.mark.parametrize("case", PLANTED)
def test_a_row_of_a_table_contains_no_secret(case: str, tmp_path: Path) -> None:
    tables = Tables(tmp_path / "history")
    row = {
        "run_id": "r1",
        "step": "upload",
        "status": "failed",
        "started_at": "2026-11-22T10:00:00+00:00",
        "detail": {"message": PLANTED[case], "list": [PLANTED[case]], "bytes": 1},
        "image": PLANTED[case],
    }
    from datetime import UTC, datetime

    row["started_at"] = datetime.now(UTC)
    row["finished_at"] = datetime.now(UTC)
    tables.append("steps", [row])
    kept = tables.read("steps").iloc[0]
    assert bare(str(kept["image"]))
    assert bare(str(kept["detail"]))
    detail = kept["detail"]
    read = json.loads(detail) if isinstance(detail, str) else detail
    assert read["bytes"] == 1, "JSON stays JSON"
    for file in (tmp_path / "history").rglob("*"):
        if file.is_file():
            assert bare(file.read_bytes().decode("latin-1"))


@pytest.fixture(params=["few rows", "many rows"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redact a table as a small and as a large one."""
    if request.param == "many rows":
        monkeypatch.setattr(secrets, "FEW_ROWS", 0)


@pytest.mark.usefixtures("rows")
def test_a_secret_of_the_environment_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "an-ordinary-looking-word")
    data = pa.table({"text": ["all is well", "it said an-ordinary-looking-word", None]})
    kept = without_secrets(data).column("text").to_pylist()
    assert kept == ["all is well", "it said [secret removed: secret of the environment]", None]


@pytest.mark.usefixtures("rows")
@pytest.mark.variants
def test_credentials_in_use_are_found_with_any_characters() -> None:
    values = [
        "a.b*c+d?e(f)g[h]",
        "slash/and+plus/1234==",
        "back\\slash 'quote' #",
        *map("{:040d}x".format, range(600)),
    ]
    remember(*values)
    clean = without_secrets(pa.table({"text": [f"key {value}, and more" for value in values]}))
    assert set(clean.column("text").to_pylist()) == {"key [secret removed: credentials in use], and more"}


@pytest.mark.usefixtures("rows")
def test_a_table_without_secrets_is_unchanged() -> None:
    data = pa.table({"text": ["ami-0123456789abcdef0", None], "number": [1, 2]})
    assert without_secrets(data) is data


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("case", PLANTED)
def test_the_hint_matches_whatever_a_pattern_matches(case: str) -> None:
    column = pa.table({"text": [PLANTED[case]]})
    assert bare(without_secrets(column).column("text").to_pylist()[0])


@pytest.mark.usefixtures("rows")
def test_the_hint_matches_whatever_a_pattern_matches_in_random_text() -> None:
    chance = random.Random(5)
    starts = [
        "AKIA",
        "ASIA",
        "Signature=",
        "secret_key=",
        "session-token: ",
        "://u:",
        "ghp_",
        "eyJ",
        "authorization: a ",
    ]
    texts = [
        chance.choice(starts) + "".join(chance.choices(string.ascii_letters + string.digits + "/+=.@_", k=70))
        for _ in range(2000)
    ]
    import re

    found = [text for text in texts if any(shape.search(text) for _, shape in SHAPES)]
    assert len(found) > 50
    assert all(re.search(HINT, text) for text in found)


def test_lists_of_result_json_stay_lists(run: Any) -> None:
    for given in (["ami-1"], ["ami-1", "ami-2"], []):
        path = write_result(run, {"status": "done", "amis": given})
        assert json.loads(path.read_text())["amis"] == given


def test_result_json_contains_no_secret(run: Any) -> None:
    path = write_result(run, {"status": "failed", "notes": list(PLANTED.values()), "more": {"deep": PLANTED}})
    assert bare(path.read_text())
    assert json.loads(path.read_text())["status"] == "failed"


@pytest.mark.parametrize("case", PLANTED)
def test_a_secret_in_a_given_tag_is_refused(case: str) -> None:
    with pytest.raises(errors.ParameterError, match="contains a secret") as caught:
        tags.check_tags({"Note": PLANTED[case]})
    assert bare(str(caught.value))


@pytest.mark.parametrize("case", PLANTED)
def test_a_secret_in_a_vmsnix_tag_is_redacted(case: str) -> None:
    (tag,) = tags.to_list({tags.FLAKE: PLANTED[case]})
    assert bare(tag["Value"])
    assert "[secret removed" in tag["Value"]


def test_json_stays_valid_when_a_private_key_is_removed() -> None:
    text = json.dumps({"error": "-----BEGIN " + "PRIVATE KEY-----\nMIIEow", "code": 1})
    assert json.loads(Redactor().json(text))["code"] == 1


def test_credentials_of_the_sandbox_are_secret_too() -> None:
    from vmsnix_ops.sandbox import sandbox

    with sandbox() as aws:
        for name in ("AWS_ACCESS_KEY_ID",):
            assert find_secret(aws.environment[name])
