"""The metadata service of a boot test answers as EC2 does."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops.boot import metadata
from vmsnix_ops.boot.metadata import MetadataRequest, MetadataResponse, answer, serve

if TYPE_CHECKING:
    from pathlib import Path

PAGES = {
    "meta-data/instance-id": "i-0",
    "meta-data/placement/region": "us-east-1",
    "meta-data/public-keys/0/openssh-key": "ssh-ed25519 AAAA",
    "user-data": "#!/bin/sh\n",
}
SECRET = b"secret"
TTL = "x-aws-ec2-metadata-token-ttl-seconds"


def token(now: float = 1000.0, seconds: str = "60") -> str:
    return answer(
        MetadataRequest("PUT", "/latest/api/token", {TTL: seconds}), PAGES, SECRET, now
    ).body.decode()


def get(path: str, now: float = 1001.0, **headers: str) -> MetadataResponse:
    sent = {"x-aws-ec2-metadata-token": token(), **headers}
    return answer(MetadataRequest("GET", path, sent), PAGES, SECRET, now)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/latest/meta-data/instance-id", b"i-0"),
        ("/2021-07-15/meta-data/instance-id", b"i-0"),
        ("/latest/user-data", b"#!/bin/sh\n"),
        ("/latest/", b"meta-data/\nuser-data"),
        ("/latest/meta-data/", b"instance-id\nplacement/\npublic-keys/"),
        ("/latest/meta-data/public-keys/", b"0=vmsnix"),
        ("/latest/meta-data/public-keys/0", b"openssh-key"),
        ("/", b"1.0\n2021-07-15\nlatest"),
    ],
)
def test_pages_and_folders_are_served(path: str, body: bytes) -> None:
    assert get(path)[:2] == (200, body)


@pytest.mark.parametrize("path", ["/latest/meta-data/nothing", "/newest/user-data", "/latest/meta", "/x"])
def test_an_unknown_path_is_not_found(path: str) -> None:
    assert get(path).status == 404


@pytest.mark.parametrize("sent", ["", "60-00", "x", "é", token(seconds="1") + "0"])
def test_a_request_without_a_valid_token_is_refused(sent: str) -> None:
    request = MetadataRequest("GET", "/latest/user-data", {"x-aws-ec2-metadata-token": sent} if sent else {})
    assert answer(request, PAGES, SECRET, 1000.5).status == 401


def test_a_token_expires() -> None:
    assert get("/latest/user-data", now=1059).status == 200
    assert get("/latest/user-data", now=1060).status == 401


@pytest.mark.parametrize("seconds", ["", "0", "21601", "-1", "many", "1.5"])
def test_a_token_needs_a_valid_lifetime(seconds: str) -> None:
    assert answer(MetadataRequest("PUT", "/latest/api/token", {TTL: seconds}), PAGES, SECRET, 0).status == 400


def test_a_forwarded_token_request_is_refused() -> None:
    headers = {TTL: "60", "x-forwarded-for": "10.0.0.1"}
    assert answer(MetadataRequest("PUT", "/latest/api/token", headers), PAGES, SECRET, 0).status == 403


@pytest.mark.parametrize(("method", "path"), [("POST", "/latest/user-data"), ("PUT", "/latest/user-data")])
def test_writes_are_refused(method: str, path: str) -> None:
    assert answer(MetadataRequest(method, path, {TTL: "60"}), PAGES, SECRET, 0).status == 405


def test_the_program_answers_several_requests_and_logs_them(tmp_path: Path) -> None:
    config, log = tmp_path / "config", tmp_path / "log"
    config.write_text(json.dumps({"pages": PAGES, "secret": SECRET.hex(), "log": str(log)}))
    requests = f"PUT /latest/api/token HTTP/1.1\r\n{TTL}: 60\r\n\r\nGET /latest/user-data HTTP/1.1\r\n\r\n"
    command = [sys.executable, "-I", "-S", metadata.__file__, str(config)]
    done = subprocess.run(command, input=requests.encode(), capture_output=True, check=True, timeout=30)
    assert done.stdout.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 401 Unauthorized" in done.stdout
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        ["PUT", "/latest/api/token", 200],
        ["GET", "/latest/user-data", 401],
    ]


@given(st.binary(max_size=2000))
def test_any_input_is_answered_or_ends_the_connection(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    log = str(tmp_path_factory.getbasetemp() / "any-requests")
    serve(io.BytesIO(data), io.BytesIO(), PAGES, SECRET, log)
