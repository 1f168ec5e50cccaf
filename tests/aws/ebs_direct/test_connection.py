"""The HTTP connection: servers, proxies and certificates."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager

import boto3
import pytest
from botocore.httpsession import where

from tests.support import require
from vmsnix_ops import errors
from vmsnix_ops.aws.ebs_direct.wire import (
    BlockEndpoint,
    BlockWire,
    CertificateRefused,
    Connection,
    ConnectionFailed,
    Keys,
    ServerAddress,
    keys,
    target,
)
from vmsnix_ops.disk.image import BLOCK_BYTES

HEAD = b"PUT / HTTP/1.1\r\nhost: here\r\n\r\n"
BLOCK = bytes(range(256)) * 2048


class Server:
    """Answers each connection with the next of its scripts: what it sends, one reply for each request."""

    def __init__(self, *scripts: list[bytes], context: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self._scripts, self._context = scripts, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                connection = self._listener.accept()[0]
                with connection:
                    if self._context:
                        connection = self._context.wrap_socket(connection, server_side=True)
                    self._talk(connection, script)
            except OSError:
                continue  # the client refused the certificate or disconnected

    def _talk(self, connection: socket.socket, script: list[bytes]) -> None:
        with connection:
            for reply in script:
                data = b""
                while b"\r\n\r\n" not in data:  # ends: when the client disconnects
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    data += piece
                head, _, body = data.partition(b"\r\n\r\n")
                self.heads.append(head)
                for line in head.split(b"\r\n"):
                    if line.startswith(b"content-length: "):
                        while len(body) < int(line[16:]):  # ends: when the client disconnects
                            piece = connection.recv(65536)
                            if not piece:
                                return
                            body += piece
                connection.sendall(reply)

    def close(self) -> None:
        self._listener.close()


@contextmanager
def served(*scripts, context=None):
    server = Server(*scripts, context=context)
    try:
        yield server
    finally:
        server.close()


def reply(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


OK = reply("HTTP/1.1 201 Created\nContent-Length: 2\n\n{}")


def send_request(server):
    connection = Connection(ServerAddress("http", "127.0.0.1", server.port))
    try:
        return connection.exchange(HEAD, None, seconds=2)
    finally:
        connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", id="with its length"),
        pytest.param(
            "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nhe\n3;x=y\nllo\n0\na: b\n\n", id="chunks"
        ),
        pytest.param("HTTP/1.1 200 OK\n\nhello", id="up to its end"),
        pytest.param("HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: 5\n\nhello", id="continue"),
        pytest.param("HTTP/1.0 200 OK\nContent-Length: 5\n\nhello", id="of 1.0"),
    ],
)
def test_responses_of_every_framing_are_read(answer):
    with served([reply(answer)]) as server:
        found = send_request(server)
    assert (found.status, bytes(found.body)) == (200, b"hello")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("", id="nothing"),
        pytest.param("HTTP/1.1 200 OK\nContent-Length: 5\n\nhel", id="half a body"),
        pytest.param("HTTP/1.1 200 OK\nContent-Le", id="half a head"),
        pytest.param("HTTP/1.1 200 OK\nContent-Length: -5\n\n", id="a negative length"),
        pytest.param("HTTP/1.1 200 OK\nContent-Length: 99999999999\n\n", id="an absurd length"),
        pytest.param("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nzz\n", id="a wrong chunk"),
        pytest.param("SSH-2.0-OpenSSH\n\n", id="another protocol"),
    ],
)
def test_incomplete_and_invalid_responses_are_errors(answer):
    with served([reply(answer)]) as server, pytest.raises(ConnectionFailed):
        send_request(server)


def test_a_closed_port_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionFailed, match="could not connect"):
        Connection(ServerAddress("http", "127.0.0.1", port))


@pytest.fixture
def wire():
    """Make clients of a server, and close their connections."""
    made = []

    def make(server, *, endpoint="", **more) -> BlockWire:
        place = BlockEndpoint(
            endpoint or f"http://127.0.0.1:{server.port}", "us-east-1", read_seconds=2, **more
        )
        made.append(BlockWire(place, Keys("AKIATEST", "secret", "session")))
        return made[-1]

    yield make
    for one in made:
        one.close()


def put(wire, index=0):
    return wire.put("snap-0123456789abcdef0", index, BLOCK, bytes(32))


def test_a_connection_is_reused(wire):
    with served([OK, OK, OK]) as server:
        client = wire(server)
        assert all(put(client, index).ok for index in range(3))
        assert len(server.heads) == 3


def test_a_connection_that_the_server_closed_while_idle_is_no_failure(wire):
    with served([OK], [OK]) as server:
        client = wire(server)
        assert put(client).ok
        assert put(client).ok


def test_a_connection_is_closed_at_the_servers_request(wire):
    last = reply("HTTP/1.1 201 Created\nConnection: close\nContent-Length: 0\n\n")
    with served([last], [OK]) as server:
        client = wire(server)
        assert put(client).ok
        assert put(client).ok


def test_an_error_keeps_awss_code_message_and_reason(wire):
    body = '{"Message": "Rate exceeded", "Reason": "ACCOUNT_THROTTLED"}'
    kind = "RequestThrottledException:http://x"
    answer = f"HTTP/1.1 400 Bad\nx-amzn-ErrorType: {kind}\nContent-Length: {len(body)}\n\n"
    with served([reply(answer) + body.encode()]) as server:
        found = put(wire(server))
    assert found.code == "RequestThrottledException"
    assert (found.message, found.reason) == ("Rate exceeded", "ACCOUNT_THROTTLED")


@pytest.mark.parametrize("page", ["<html>no!", "[" * 99_999], ids=["html", "nested"])
def test_the_beginning_of_a_foreign_error_page_is_shown(wire, page):
    with served([reply(f"HTTP/1.1 502 Bad Gateway\nContent-Length: {len(page)}\n\n{page}")]) as server:
        found = put(wire(server))
    assert (found.status, found.code, found.message) == (502, "HTTP 502", page[:200])


def test_a_proxy_gets_the_whole_address_and_its_password(wire):
    with served([OK]) as server:
        proxy = f"http://me:p%40ss@127.0.0.1:{server.port}"
        assert put(wire(server, endpoint="http://ebs.example", proxy=proxy)).ok
        head = server.heads[0].decode()
    assert head.startswith("PUT http://ebs.example/snapshots/")
    assert "proxy-authorization: Basic bWU6cEBzcw==" in head  # me:p@ss
    assert "host: ebs.example" in head


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    command = [require("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context, str(folder / "certificate.pem")


def test_tls_with_a_trusted_certificate(certificate, wire):
    context, path = certificate
    with served([OK, OK], context=context) as server:
        client = wire(server, endpoint=f"https://localhost:{server.port}", certificates=path)
        assert put(client).ok
        assert put(client, 1).ok


def test_an_untrusted_certificate_is_refused_at_once(certificate, wire):
    context, _path = certificate
    other = str(where())
    with served([OK], context=context) as server:
        found = put(wire(server, endpoint=f"https://localhost:{server.port}", certificates=other))
    assert found.code == "CertificateRefused"
    assert found.status == 0


def test_a_certificate_of_another_name_is_refused(certificate):
    context, path = certificate
    with served([OK], context=context) as server, pytest.raises(CertificateRefused):
        Connection(
            ServerAddress("https", "127.0.0.1", server.port, context=ssl.create_default_context(cafile=path))
        )


def test_a_proxy_that_refuses_to_connect_is_an_error():
    with served([reply("HTTP/1.1 407 Proxy Authentication Required\nContent-Length: 0\n\n")]) as server:
        route = ServerAddress(
            "https", "ebs.example", 443, f"http://127.0.0.1:{server.port}", ssl.create_default_context()
        )
        with pytest.raises(ConnectionFailed, match="407"):
            Connection(route)
        assert server.heads[0].startswith(b"CONNECT ebs.example:443 HTTP/1.1")


# Routes and proxies


@pytest.fixture
def session(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return boto3.Session


def test_the_endpoint_comes_from_botocore(session, monkeypatch):
    assert target(session(), "eu-west-1").endpoint == "https://ebs.eu-west-1.amazonaws.com"
    assert target(session(), "cn-north-1").endpoint == "https://ebs.cn-north-1.amazonaws.com.cn"
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    assert "fips" in target(session(), "us-east-1").endpoint
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "false")
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    assert target(session(), "us-east-1").endpoint == "https://ebs.us-east-1.api.aws"


def test_proxy_and_certificates_come_from_the_environment(session, monkeypatch, tmp_path):
    assert target(session(), "us-east-1").proxy == ""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "bundle.pem"))
    found = target(session(), "us-east-1")
    assert (found.proxy, found.certificates) == ("http://proxy.example:3128", str(tmp_path / "bundle.pem"))
    monkeypatch.setenv("NO_PROXY", "amazonaws.com")
    assert target(session(), "us-east-1").proxy == ""


def test_a_proxy_over_tls_is_refused_with_a_fix(session, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "https://proxy.example:3128")
    with pytest.raises(errors.ParameterError) as caught:
        target(session(), "us-east-1")
    assert "HTTPS_PROXY" in caught.value.fix


def test_a_profile_with_empty_keys_is_no_credentials(monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text("[empty]\naws_access_key_id =\naws_secret_access_key =\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(errors.CredentialsError, match="No AWS credentials"):
        keys(boto3.Session(profile_name="empty"))


def test_a_block_of_another_size_is_refused():
    assert len(BLOCK) == BLOCK_BYTES
