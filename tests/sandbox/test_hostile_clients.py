"""Invalid requests and slow clients: they are refused or disconnected, and other clients are served."""

from __future__ import annotations

import json
import logging
import math
import random
import re
import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from botocore.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import wait_until
from vmsnix_ops.sandbox import core, server
from vmsnix_ops.sandbox.server import Timeouts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sandbox.clients import SandboxClients

UNSIGNED = {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
MIB = 2**20


@pytest.fixture(autouse=True)
def next_client_is_served(aws: SandboxClients, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check after each test that no traceback was written, no thread ended, and the sandbox answers."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert aws.send("GET", "/")[0] == 200


def send(aws: SandboxClients, data: bytes, *, seconds: float = 30) -> tuple[int, bytes]:
    """Send bytes and the end of the stream, and return status and answer; 0 without an answer."""
    with socket.create_connection(("127.0.0.1", aws.port), timeout=seconds) as raw:
        try:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
        except ConnectionError:  # refused before all bytes were sent
            pass
        return read(raw)


def read(raw: socket.socket) -> tuple[int, bytes]:
    answer = b""
    try:
        while piece := raw.recv(65536):  # ends: the socket has a timeout
            answer += piece
    except ConnectionError:
        pass
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert found or not answer
    return int(found[1]) if found else 0, answer


def head(aws: SandboxClients, *lines: str, first: str = "PUT /images/k HTTP/1.1") -> bytes:
    return "\r\n".join([first, f"Host: 127.0.0.1:{aws.port}", *lines, "", ""]).encode()


def signed(aws: SandboxClients, method: str, path: str, body: bytes, *lines: str, **options: Any) -> bytes:
    """Return a signed request with these headers for the length of its body."""
    headers = aws.signed(method, path, body, **options)
    return head(
        aws, *(f"{key}: {value}" for key, value in headers.items()), *lines, first=f"{method} {path} HTTP/1.1"
    )


@pytest.mark.parametrize(
    "length",
    ["9" * 5000, "9" * 19, "-1", "+1", "1_0", "0x10", "1.0", "\u0663", "5, 6", "5,5", "1e3", "", "x"],
)
def test_an_invalid_content_length_is_refused(aws: SandboxClients, length: str) -> None:
    assert send(aws, head(aws, f"Content-Length: {length}") + b"hello")[0] == 400


@pytest.mark.parametrize(
    "encoding", ["gzip", "identity", "chunked, gzip", "gzip, chunked", "chunked, chunked", ""]
)
def test_an_unknown_transfer_encoding_is_refused(aws: SandboxClients, encoding: str) -> None:
    assert send(aws, head(aws, f"Transfer-Encoding: {encoding}") + b"0\r\n\r\n")[0] == 400


def test_a_body_with_two_lengths_is_refused(aws: SandboxClients) -> None:
    both = ["Transfer-Encoding: chunked", "Content-Length: 5"]
    assert send(aws, head(aws, *both) + b"0\r\n\r\n")[0] == 400
    assert send(aws, head(aws, *reversed(both)) + b"0\r\n\r\n")[0] == 400
    assert send(aws, head(aws, "Content-Length: 5", "Content-Length: 6") + b"hello!")[0] == 400
    old = head(aws, "Transfer-Encoding: chunked", first="PUT /images/k HTTP/1.0")
    assert send(aws, old + b"0\r\n\r\n")[0] == 400


@pytest.mark.parametrize(
    "line",
    [
        b"no colon",
        b"two words: value",
        b"before : colon",
        b" folded: line",
        b": no name",
        b"nul: a\x00b",
        b"return: a\rb",
        b"bell: \x07",
        b"latin: \xff",
        "n\u00e4me: value".encode(),
    ],
)
def test_an_invalid_header_line_is_refused(aws: SandboxClients, line: bytes) -> None:
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + line + b"\r\n\r\n"
    assert send(aws, request)[0] == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /", 400),
        (b"GET / HTTP/1.1 more", 400),
        (b"GET / HTTP/2.0", 400),
        (b"GET / HTTP/1.999", 400),
        (b"GET http://127.0.0.1/ HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"G(T / HTTP/1.1", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        ("GET /\u00e4 HTTP/1.1".encode(), 400),
        (b"GET /images/%zz HTTP/1.1", 400),
        (b"GET /images/%f HTTP/1.1", 400),
        (b"GET /images/%ff HTTP/1.1", 400),
        (b"GET /images/%ed%a0%80 HTTP/1.1", 400),
        (b"GET /images?prefix=%ff HTTP/1.1", 400),
        (b"GET /" + b"k" * 20_000 + b" HTTP/1.1", 414),
        (b"k" * MIB, 414),
    ],
)
def test_an_invalid_request_line_is_refused(aws: SandboxClients, line: bytes, status: int) -> None:
    assert send(aws, line + b"\r\nHost: 127.0.0.1\r\n\r\n")[0] == status


@pytest.mark.parametrize(
    "lines", [[f"X-{n}: y" for n in range(5000)], ["X: " + "y" * MIB], ["X: " + "y" * 100_000] * 20]
)
def test_too_many_headers_are_refused(aws: SandboxClients, lines: list[str]) -> None:
    status, answer = send(aws, head(aws, *lines))
    assert status == 431
    assert b"<Code>RequestHeaderSectionTooLarge</Code>" in answer


@pytest.mark.parametrize(
    ("service", "headers", "form"),
    [
        ("s3", {}, b"<Error><Code>BadRequest</Code>"),
        ("ec2", FORM, b"<Response><Errors><Error><Code>BadRequest</Code>"),
        ("sts", FORM, b"<Error><Type>Sender</Type><Code>BadRequest</Code>"),
        ("ssm", {"X-Amz-Target": "AmazonSSM.GetParameter"}, b'{"__type": "BadRequest", "message": '),
        ("ebs", {}, b'{"__type": "BadRequest", "Message": '),
    ],
)
def test_a_refusal_has_the_protocol_of_the_service(
    aws: SandboxClients, service: str, headers: dict[str, str], form: bytes
) -> None:
    request = signed(aws, "POST", "/", b"", f"Content-Length: {'9' * 5000}", service=service, headers=headers)
    status, answer = send(aws, request)
    assert (status, form in answer) == (400, True), answer


CHUNKS = {
    "garbage": b"xyz\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "nothing": b"\r\nhello\r\n0\r\n\r\n",
    "huge": b"f" * 5000 + b"\r\nhello",
    "endless line": b"5" * 100_000,
    "longer than it says": b"5\r\nhello more\r\n0\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: y\r\n" * 10_000,
}


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS)
def test_invalid_chunks_are_refused(aws: SandboxClients, body: bytes) -> None:
    aws.bucket()
    request = signed(aws, "PUT", "/images/k", b"", "Transfer-Encoding: chunked", headers=UNSIGNED)
    status, answer = send(aws, request + body)
    assert (status, b"<Code>IncompleteBody</Code>" in answer) == (400, True), answer
    assert aws.send("GET", "/images/k")[0] == 404


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS)
def test_invalid_aws_chunks_are_refused(aws: SandboxClients, body: bytes) -> None:
    aws.bucket()
    headers = {
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "Content-Encoding": "aws-chunked",
    }
    request = signed(aws, "PUT", "/images/k", b"", f"Content-Length: {len(body)}", headers=headers)
    status, answer = send(aws, request + body)
    assert (status, b"<Code>IncompleteBody</Code>" in answer) == (400, True), answer
    assert aws.send("GET", "/images/k")[0] == 404


def test_a_chunk_signature_that_is_not_ascii_is_refused(aws: SandboxClients) -> None:
    aws.bucket()
    body = b"5;chunk-signature=\xff\r\nhello\r\n0;chunk-signature=\xff\r\n\r\n"
    headers = {
        "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "Content-Encoding": "aws-chunked",
    }
    status, _ = send(
        aws, signed(aws, "PUT", "/images/k", b"", f"Content-Length: {len(body)}", headers=headers) + body
    )
    assert status == 403


@pytest.mark.parametrize("signature", ["%C3%A4", "x" * 5000, ""])
def test_an_invalid_signature_is_refused(aws: SandboxClients, signature: str) -> None:
    credential = f"{aws.sandbox.access_key}/20261128/us-east-1/s3/aws4_request"
    now = aws.sandbox.clock.now().strftime("%Y%m%dT%H%M%SZ")
    query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={now}"
    for expires in ("60", "9" * 5000, "9" * 15, "-1", "nan"):
        target = f"/?{query}&X-Amz-Expires={expires}&X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"
        assert send(aws, head(aws, first=f"GET {target} HTTP/1.1"))[0] in {400, 403}


DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * DEEP,
        b'{"Name":' * DEEP + b"1" + b"}" * DEEP,
        b'{"Name":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"Name": NaN}',
        b'{"Name": "a", "Version": Infinity}',
        b'{"Name": "\\ud800"}',
        b'{"Name": "\xff"}',
        b'{"Name": ' + b"9" * 5000 + b"}",
        b'"text"',
        b"{",
        b'{"Name": "' + b"x" * 2 * MIB + b'"}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_invalid_json_is_refused(aws: SandboxClients, body: bytes) -> None:
    headers = {"X-Amz-Target": "AmazonSSM.GetParameter", "Content-Type": "application/x-amz-json-1.1"}
    status, answer = aws.send("POST", "/", body, service="ssm", headers=headers)
    assert status == 400
    assert json.loads(answer)["__type"]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "NaN"])
def test_a_json_number_out_of_range_is_refused(aws: SandboxClients, number: str) -> None:
    body = b'{"VolumeSize": %s}' % number.encode()
    assert aws.send("POST", "/snapshots", body, service="ebs")[0] == 400


@pytest.mark.parametrize(
    "form",
    [
        "Filter." + "1." * DEEP + "Name=x",
        f"ImageId.{'9' * 5000}=ami-1",
        "ImageId.\u0663=ami-1",
        "MaxResults=" + "9" * 5000,
        "MaxResults=1e3",
        "&".join(f"A{n}=1" for n in range(150_000)),
        "Filter.1.Name=x&Filter.1=y",
        "%=%&%zz=%ff",
        "NextToken=" + "[" * 4000,
    ],
    ids=lambda form: form[:20],
)
def test_an_invalid_form_is_refused(aws: SandboxClients, form: str) -> None:
    body = f"Action=DescribeImages&Version=2016-11-15&{form}".encode()
    status, answer = aws.send("POST", "/", body, service="ec2", headers=FORM)
    assert (status, b"<Response><Errors>" in answer) == (400, True), answer


BOMB = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
BOMB = f'<!DOCTYPE Tagging [<!ENTITY e0 "lol">{BOMB}]><Tagging><TagSet>&e9;</TagSet></Tagging>'
ALSO = '<?xml version="1.0" encoding="{}"?>'


@pytest.mark.parametrize(
    "body",
    [
        BOMB.encode(),
        (ALSO.format("UTF-16") + BOMB).encode("utf-16"),
        ALSO.format("cp037").encode() + BOMB.encode("cp037"),
        b'<!DOCTYPE t SYSTEM "file:///etc/passwd"><Tagging/>',
        b"<Tagging>&undefined;</Tagging>",
        b"<a>" * DEEP,
        b"<a>" * DEEP + b"</a>" * DEEP,
        b"<Tagging><TagSet>" + b"<a/>" * 400_000 + b"</TagSet></Tagging>",
        b"<Tagging>\xff</Tagging>",
        b"<Tagging a='" + b"x" * 5 * MIB + b"'/>",
        b"<",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_invalid_or_too_large_xml_is_refused(aws: SandboxClients, body: bytes) -> None:
    aws.bucket()
    status, answer = aws.send("PUT", "/images?tagging=", body)
    assert (status, b"<Error><Code>M" in answer) == (400, True), (
        answer
    )  # MalformedXML, MaxMessageLengthExceeded


def test_a_policy_that_is_nested_too_deeply_is_refused(aws: SandboxClients) -> None:
    aws.bucket()
    status, answer = aws.send("PUT", "/images?policy=", b"[" * DEEP)
    assert (status, b"<Code>MalformedPolicy</Code>" in answer) == (400, True), answer


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "-1", '"nan"', '"x"', "null", "[]", "{}"]
)
@pytest.mark.parametrize("name", ["speed", "advance", "skew"])
def test_the_clock_accepts_only_valid_seconds(aws: SandboxClients, name: str, value: str) -> None:
    before = aws.sandbox.clock.speed
    with aws.connection() as connection:
        connection.request("POST", "/_vmsnix/clock", f'{{"{name}": {value}}}')
        answer = connection.getresponse()
        refused = not (name == "skew" and value == "-1")  # a negative skew is valid
        assert (answer.status, "error" in json.loads(answer.read())) == (
            (400, True) if refused else (200, False)
        )
    aws.sandbox.clock.skew = type(aws.sandbox.clock.skew)(0)
    assert aws.sandbox.clock.speed == before
    assert math.isfinite(aws.sandbox.clock.age(aws.sandbox.clock.now()))


@pytest.mark.parametrize(
    "body", ["[" * DEEP, "[1]", "5", '"x"', "{", '{"op": "*", "do": "delay", "seconds": "x"}']
)
def test_invalid_faults_and_clocks_are_refused(aws: SandboxClients, body: str) -> None:
    for name in ("faults", "clock"):
        if name == "clock" and "op" in body:
            continue
        with aws.connection() as connection:
            connection.request("POST", f"/_vmsnix/{name}", body)
            assert connection.getresponse().status == 400
    assert aws.sandbox.faults.rules == []


@pytest.mark.parametrize(
    "rule",
    [
        {"seconds": float("1e300")},
        {"seconds": -1},
        {"probability": "x"},
        {"http": 9},
        {"http": "x"},
        {"keep": -1},
        {"where": [1]},
        {"values": 3},
        {"nth": "x"},
        {"nth": ["x"]},
        {"fields": 5},
        {"op": 5},
        {"code": 5},
        {"outcome": []},
    ],
    ids=str,
)
def test_a_fault_rule_that_cannot_apply_is_refused(aws: SandboxClients, rule: dict[str, Any]) -> None:
    with aws.connection() as connection:
        connection.request("POST", "/_vmsnix/faults", json.dumps({"op": "*", "do": "delay", **rule}))
        assert connection.getresponse().status == 400
    assert aws.sandbox.faults.rules == []


# Times at the end of the calendar

LAST = "Fri, 31 Dec 9999 23:59:59 -2359"  # in UTC, in the year 10000


def test_a_signature_with_a_date_beyond_the_calendar_is_refused(aws: SandboxClients) -> None:
    key = aws.sandbox.access_key
    version_2 = head(aws, f"Authorization: AWS {key}:x", f"Date: {LAST}", first="GET / HTTP/1.1")
    assert send(aws, version_2)[0] == 403
    query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={key}/20261130/us-east-1/s3/aws4_request"
    query += "&X-Amz-Date=99991231T235959Z&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&X-Amz-Signature=x"
    assert send(aws, head(aws, first=f"GET /?{query} HTTP/1.1"))[0] == 403


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_a_time_beyond_the_calendar_is_refused(aws: SandboxClients, moment: str) -> None:
    form = f"Action=EnableImageDeprecation&Version=2016-11-15&ImageId=ami-1&DeprecateAt={quote(moment)}"
    status, answer = aws.send("POST", "/", form.encode(), service="ec2", headers=FORM)
    assert (status, b"<Response><Errors>" in answer) == (400, True), answer


def test_a_header_with_a_time_beyond_the_calendar_is_refused(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k")
    assert aws.send("GET", "/images/k", headers={"If-Modified-Since": LAST})[0] in {200, 304, 400}


def test_a_rule_that_expires_objects_after_the_end_of_the_calendar_is_kept(aws: SandboxClients) -> None:
    rule = {"ID": "never", "Status": "Enabled", "Filter": {}, "Expiration": {"Days": 2**31 - 1}}
    aws.s3.put_bucket_lifecycle_configuration(Bucket=aws.bucket(), LifecycleConfiguration={"Rules": [rule]})
    aws.s3.put_object(Bucket="images", Key="k")
    aws.pass_time(86400)
    assert aws.s3.head_object(Bucket="images", Key="k")["ContentLength"] == 0


def test_a_clock_that_was_advanced_beyond_the_calendar_still_works(aws: SandboxClients) -> None:
    signer = aws.other_client("s3", config=Config(signature_version="s3v4"))
    query = signer.generate_presigned_url("list_buckets").partition("?")[2]
    for _ in range(90):  # a hundred years each
        aws.pass_time(core.MAX_SECONDS)
    assert send(aws, head(aws, first=f"GET /?{query} HTTP/1.1"))[0] == 403


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "9" * 400])
def test_a_date_in_a_policy_beyond_the_calendar_is_compared(aws: SandboxClients, text: str) -> None:
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": aws.sandbox.account},
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::images/*",
        "Condition": {"DateLessThan": {"aws:CurrentTime": text}},
    }
    aws.bucket()
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    status, _ = aws.send("PUT", "/images?policy=", json.dumps(policy).encode())
    assert status in {204, 400}
    assert aws.send("GET", "/images/k")[0] == 404


# Slow and silent clients


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox with timeouts of half a second."""
    monkeypatch.setattr(server, "TIMEOUTS", Timeouts(idle=0.5, head=0.5, silence=0.5, per_byte=0.0))


@pytest.fixture
def half(aws: SandboxClients) -> bytes:
    """The head of an upload with a Content-Length beyond the sent bytes."""
    aws.bucket()
    return signed(aws, "PUT", "/images/k", b"", "Content-Length: 1000", headers=UNSIGNED)


@pytest.mark.usefixtures("short_timeouts")
def test_a_silent_client_is_disconnected(aws: SandboxClients) -> None:
    with socket.create_connection(("127.0.0.1", aws.port), timeout=30) as raw:
        assert read(raw) == (0, b"")


@pytest.mark.usefixtures("short_timeouts")
def test_a_client_that_stops_within_the_headers_is_disconnected(aws: SandboxClients) -> None:
    with socket.create_connection(("127.0.0.1", aws.port), timeout=30) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert read(raw)[0] == 408


@pytest.mark.usefixtures("short_timeouts")
def test_a_client_that_stops_within_the_body_is_disconnected(aws: SandboxClients, half: bytes) -> None:
    with socket.create_connection(("127.0.0.1", aws.port), timeout=30) as raw:
        raw.sendall(half + b"hello")
        status, answer = read(raw)
    assert (status, b"<Code>RequestTimeout</Code>" in answer) == (400, True), answer


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("begun", [False, True], ids=["head", "body"])
def test_a_client_that_sends_too_slowly_is_disconnected(
    aws: SandboxClients, half: bytes, begun: bool
) -> None:
    dropped = 0
    with socket.create_connection(("127.0.0.1", aws.port), timeout=30) as raw:
        raw.sendall(half if begun else b"GET / HTTP/1.1\r\n")

        def refused() -> bool:
            nonlocal dropped
            dropped += 1
            try:
                raw.sendall(b"x")
            except ConnectionError:
                return True
            raw.setblocking(False)
            try:
                return raw.recv(1, socket.MSG_PEEK) != b"never"
            except BlockingIOError:
                return False
            finally:
                raw.settimeout(30)

        wait_until(refused, "the end of patience", pause=0.1)
        assert read(raw)[0] in {0, 400, 408}
    assert dropped < 500


def test_a_client_that_does_not_read_its_answer_is_disconnected(
    aws: SandboxClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.s3.put_object(Bucket=aws.bucket(), Key="k", Body=bytes(64 * MIB))
    monkeypatch.setattr(server, "TIMEOUTS", Timeouts(silence=0.5))
    request = signed(aws, "GET", "/images/k", b"", headers=UNSIGNED)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(30)
        raw.connect(("127.0.0.1", aws.port))
        raw.sendall(request)
        time.sleep(3)
        assert len(read(raw)[1]) < 64 * MIB


def test_a_call_delayed_by_a_fault_rule_has_the_full_time_for_its_body(
    aws: SandboxClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TIMEOUTS", Timeouts(silence=0.5, per_byte=0.0))
    aws.bucket()
    aws.sandbox.faults.add({"op": "s3:PutObject", "do": "delay", "seconds": 1.0})
    assert aws.send("PUT", "/images/k", b"x" * 100_000)[0] == 200
    aws.sandbox.faults.clear()


def test_many_silent_clients_do_not_block_others(
    aws: SandboxClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 20)
    with ExitStack() as crowd:
        for _ in range(60):
            with suppress(OSError):  # some are refused before they are connected
                crowd.enter_context(socket.create_connection(("127.0.0.1", aws.port), timeout=30))
    wait_until(lambda: send(aws, head(aws, first="GET / HTTP/1.1"))[0], "an answer")


# Random requests


def alive(status: int) -> bool:
    """Return whether a status is not a failure of the sandbox. 501: AWS has it, the sandbox does not."""
    return status < 500 or status == 501


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), edits=st.integers(1, 12), which=st.integers(0, 4))
def test_requests_with_any_bytes_changed_are_answered(
    aws: SandboxClients, seed: int, edits: int, which: int
) -> None:
    requests = [
        signed(aws, "PUT", "/images/k", b"", "Content-Length: 5", headers=UNSIGNED) + b"hello",
        signed(aws, "PUT", "/images/k", b"", "Transfer-Encoding: chunked", headers=UNSIGNED)
        + b"5\r\nhello\r\n0\r\n\r\n",
        signed(aws, "GET", "/images?list-type=2&prefix=%C3%A4", b"", headers=UNSIGNED),
        head(aws, "Content-Length: 19", first="POST /_vmsnix/clock HTTP/1.1") + b'{"speed": 1000.0}  ',
        head(aws, first="GET / HTTP/1.1") * 3,
    ]
    chance = random.Random(seed)
    data = bytearray(requests[which])
    for _ in range(edits):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice([0, 0, 1, 1, 5, 50]))
        data[at:end] = chance.choice(
            [
                b"",
                chance.randbytes(1),
                chance.randbytes(4),
                b"\r\n",
                b"%",
                b"\x00",
                b"9" * 5000,
                b",",
                b": ",
                bytes(data[:60]),
            ]
        )
    status, answer = send(aws, bytes(data))
    assert alive(status), answer


TEXTS = st.text(max_size=8) | st.sampled_from(["Key", "Value", "Name", "1", "999999999999", "\ud800", "\x00"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(
            st.sampled_from(["Name", "Value", "Type", "Tags", "Key", "Tier", "x"]), below, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=VALUES,
    operation=st.sampled_from(["PutParameter", "GetParametersByPath", "DescribeParameters", "No"]),
)
def test_any_json_is_answered(aws: SandboxClients, value: Any, operation: str) -> None:
    headers = {"X-Amz-Target": f"AmazonSSM.{operation}", "Content-Type": "application/x-amz-json-1.1"}
    status, answer = aws.send("POST", "/", json.dumps(value).encode(), service="ssm", headers=headers)
    assert alive(status), answer
    json.loads(answer)


NAMES = [
    "ImageId.1",
    "Filter.1.Name",
    "Filter.1.Value.1",
    "Owner.1",
    "MaxResults",
    "NextToken",
    "DryRun",
    "x",
]
TAGS = [
    "TagSpecification.1.Tag.1.Key",
    "TagSpecification.1.ResourceType",
    "BlockDeviceMapping.1.Ebs.VolumeSize",
]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(st.sampled_from(NAMES + TAGS) | TEXTS, TEXTS), max_size=8),
    action=st.sampled_from(["DescribeImages", "RegisterImage", "CreateTags", "DescribeSnapshots"]),
)
def test_any_form_is_answered(aws: SandboxClients, pairs: list[tuple[str, str]], action: str) -> None:
    text = "&".join(f"{key}={value}" for key, value in pairs)
    body = f"Action={action}&Version=2016-11-15&{text}".encode("utf-8", "surrogatepass")
    status, answer = aws.send("POST", "/", body, service="ec2", headers=FORM)
    assert alive(status), answer


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.lists(
        st.sampled_from(
            [
                "<Tagging>",
                "<TagSet>",
                "<Tag>",
                "<Key>",
                "</Key>",
                "</Tag>",
                "<a b='c'>",
                "]]>",
                "<![CDATA[",
                "<!--",
                "&amp;",
                "&#0;",
                "</Tagging>",
            ]
        )
        | TEXTS,
        max_size=12,
    )
)
def test_any_xml_is_answered(aws: SandboxClients, body: list[str]) -> None:
    status, answer = aws.send("PUT", "/images?tagging=", "".join(body).encode("utf-8", "surrogatepass"))
    assert alive(status), answer
