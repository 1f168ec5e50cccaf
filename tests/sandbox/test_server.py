"""The server: its address, its connections, invalid requests."""

from __future__ import annotations

import hashlib
import socket

import pytest

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox import Sandbox

EMPTY = hashlib.sha256(b"").hexdigest()


def test_listens_on_the_loopback_address_only(aws: SandboxClients) -> None:
    assert aws.sandbox.url.startswith("http://127.0.0.1:")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", aws.port), timeout=5):
        pass


@pytest.mark.parametrize(
    "host", ["example.com", "169.254.169.254", "localhost.example.com", "127.0.0.1.nip.io"]
)
def test_refuses_a_host_header_that_is_not_local(aws: SandboxClients, host: str) -> None:
    with aws.connection() as connection:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        assert answer.status == 403
        assert b"local clients only" in answer.read()


def test_a_web_site_cannot_control_it_through_a_browser(aws: SandboxClients) -> None:
    with aws.connection() as connection:
        connection.request("GET", "/_vmsnix/calls", headers={"Origin": "https://example.com"})
        assert connection.getresponse().status == 403


def test_the_host_can_contain_the_bucket(aws: SandboxClients) -> None:
    aws.s3.put_object(Bucket=aws.bucket("in-host"), Key="k", Body=b"found")
    headers = {"x-amz-content-sha256": EMPTY, "Host": f"in-host.localhost:{aws.port}"}
    status, body = aws.send("GET", "/k", headers=headers)
    assert (status, body) == (200, b"found")


def test_a_port_in_use_is_reported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"Port {port} on 127.0.0.1 is in use. Choose another port"):
            Sandbox(port=port)


def test_sends_100_continue_before_the_body(aws: SandboxClients) -> None:
    aws.bucket()
    body = b"x" * 100_000
    digest = hashlib.sha256(body).hexdigest()
    headers = aws.signed("PUT", "/images/k", body, headers={"x-amz-content-sha256": digest})
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Host: 127.0.0.1:{aws.port}", f"Content-Length: {len(body)}", "Expect: 100-continue"]
    with socket.create_connection(("127.0.0.1", aws.port), timeout=30) as raw:
        raw.sendall(("PUT /images/k HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        assert raw.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(body)
        assert raw.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_refuses_an_upload_before_its_body_when_the_client_waits(aws: SandboxClients) -> None:
    headers = aws.signed("PUT", "/no-such-bucket/k", headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Host: 127.0.0.1:{aws.port}", "Content-Length: 1000000000", "Expect: 100-continue"]
    with socket.create_connection(("127.0.0.1", aws.port), timeout=30) as raw:
        raw.sendall(("PUT /no-such-bucket/k HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 404 Not Found")
    assert b"Connection: close" in answer


def test_a_refused_upload_leaves_the_connection_clean(aws: SandboxClients) -> None:
    body = b"x" * 300_000
    digest = {"x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
    with aws.connection() as connection:
        connection.request("PUT", "/nowhere/k", body, aws.signed("PUT", "/nowhere/k", body, headers=digest))
        first = connection.getresponse()
        assert (first.status, b"NoSuchBucket" in first.read()) == (404, True)
        socket_before = connection.sock
        headers = aws.signed("GET", "/", headers={"x-amz-content-sha256": EMPTY})
        connection.request("GET", "/", headers=headers)
        second = connection.getresponse()
        assert (second.status, b"ListAllMyBucketsResult" in second.read()) == (200, True)
        assert connection.sock is socket_before


def test_reads_bodies_that_http_sends_in_chunks(aws: SandboxClients) -> None:
    aws.bucket()
    headers = aws.signed("PUT", "/images/chunked", headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    with aws.connection() as connection:
        connection.request("PUT", "/images/chunked", iter([b"one,", b"two"]), headers, encode_chunked=True)
        assert connection.getresponse().status == 200
    assert aws.s3.get_object(Bucket="images", Key="chunked")["Body"].read() == b"one,two"


def test_invalid_http_gets_400(aws: SandboxClients) -> None:
    with socket.create_connection(("127.0.0.1", aws.port), timeout=30) as raw:
        raw.sendall(b"hello\r\n\r\n")
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 400 ")


def test_a_client_that_disconnects_during_an_upload_leaves_nothing(aws: SandboxClients) -> None:
    aws.bucket()
    headers = aws.signed("PUT", "/images/half", headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    with aws.connection() as connection:
        connection.putrequest("PUT", "/images/half")
        for name, value in (headers | {"Content-Length": "1000"}).items():
            connection.putheader(name, value)
        connection.endheaders(b"only this")
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_WR)
        with pytest.raises((ConnectionError, OSError)):
            connection.getresponse()
    with refused("404"):
        aws.s3.head_object(Bucket="images", Key="half")
    assert [call.outcome for call in aws.sandbox.calls.matching("s3:PutObject")] == ["Disconnected"]


def test_a_bug_in_the_sandbox_is_reported(
    aws: SandboxClients, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(aws.sandbox.state, "authorize", break_down)
    with refused("InternalError", "ZeroDivisionError: a bug"):
        aws.sts.get_caller_identity()
    assert "sts:GetCallerIdentity failed" in caplog.text
