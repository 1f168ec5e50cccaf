"""The lean way to put and get one block of a snapshot.

botocore spends most of its time between the caller and the socket. This module sends the same bytes with the
same Signature Version 4 over bare connections (`vmsnix_ops.aws.ebs_direct.wire`), and nothing in
between. Everything that decides where the request goes and who sends it is still botocore's: `target` reads
endpoint (FIPS, dual stack, ``AWS_ENDPOINT_URL``), proxies and certificates from the session.

Only ``PutSnapshotBlock`` and ``GetSnapshotBlock`` go this way; everything else is a plain client call.

Source: EBS direct APIs reference, "PutSnapshotBlock"; IAM user guide, "Create a signed AWS API request".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import urllib.parse
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops import credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3
    from types_boto3_ebs.client import EBSClient


# One HTTP/1.1 connection that carries blocks and nothing else.
#
# ``http.client`` and urllib3 spend about nine tenths of a millisecond of Python on a request, which is more
# than reading and sending the block itself. A block needs little of what they can do: a head and a body go
# out in one ``sendmsg``, a short answer comes back.
#
# Source: RFC 9112 (HTTP/1.1), sections 2 to 7; RFC 9110, section 9.3.6 (CONNECT).

LONGEST_HEAD = 65_536
LONGEST_BODY = 16 * 2**20
PIECE = 65_536
CONNECT_SECONDS = 5.0


class ConnectionFailed(Exception):  # noqa: N818 (a condition that is retried, never shown)
    """No answer: the connection broke, or the time was over."""


class CertificateRefused(Exception):  # noqa: N818 (becomes an answer)
    """The other side's certificate does not prove who it is; trying again would not help."""


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach the server.

    Attributes
    ----------
    scheme, host, port
        Of the server.
    proxy
        URL of an ``http`` proxy, with user and password where it wants them; empty for none.
    context
        For TLS.
    """

    scheme: str
    host: str
    port: int
    proxy: str = ""
    context: ssl.SSLContext | None = None

    @property
    def tunnels(self) -> bool:
        """Whether the proxy only passes on what it cannot read."""
        return bool(self.proxy) and self.scheme == "https"

    @property
    def proxy_headers(self) -> dict[str, str]:
        """What tells the proxy who asks."""
        parts = urllib.parse.urlsplit(self.proxy)
        if not parts.username:
            return {}
        user, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
        return {"proxy-authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; names of headers in small letters."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | bytearray = b""


class Connection:
    """A connection that is used for one request after another.

    Parameters
    ----------
    way
        Where to, and how.

    Raises
    ------
    ConnectionFailed
        It could not be opened.
    CertificateRefused
        The server is not who it should be.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._seconds = CONNECT_SECONDS
        self._rest = b""  # what arrived behind the last reply
        self.used = False
        self.open = True
        try:
            self._socket = self._connect()
        except ssl.SSLCertVerificationError as error:
            raise CertificateRefused(str(error)) from error
        except OSError as error:
            raise ConnectionFailed(f"could not connect to {way.host}: {error}") from error

    def exchange(self, head: bytes, body: bytes | bytearray | None, *, seconds: float) -> Reply:
        """Send a request and return the reply.

        Parameters
        ----------
        head
            Request line and headers, with the empty line behind them.
        body
            What follows.
        seconds
            How long the other side may do nothing at all: neither take nor give a byte.

        Raises
        ------
        ConnectionFailed
            There was no whole reply. The connection is closed.
        """
        try:
            if seconds != self._seconds:
                self._socket.settimeout(seconds)
                self._seconds = seconds
            try:
                self._send(head, body)
            except (BrokenPipeError, ConnectionResetError):
                # A server that refuses does not always wait for the whole body: its words may be there.
                reply = self._receive()
                self.close()
                return reply
            reply = self._receive()
        except OSError as error:
            self.close()
            raise ConnectionFailed(str(error) or type(error).__name__) from error
        except (ConnectionFailed, ValueError) as error:
            self.close()
            raise ConnectionFailed(str(error)) from error
        self.used = True
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    def close(self) -> None:
        """Close it. Safe to call twice."""
        self.open = False
        self._socket.close()

    def _connect(self) -> socket.socket:
        way, proxy = self._way, urllib.parse.urlsplit(self._way.proxy)
        address = (proxy.hostname or "", proxy.port or 80) if way.proxy else (way.host, way.port)
        made = socket.create_connection(address, timeout=CONNECT_SECONDS)
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = made
            if way.tunnels:
                self._tunnel()
            if way.context is not None:
                made = way.context.wrap_socket(made, server_hostname=way.host)
        except BaseException:
            made.close()
            raise
        return made

    def _tunnel(self) -> None:
        place = f"{self._way.host}:{self._way.port}"
        headers = "".join(f"{name}: {value}\r\n" for name, value in self._way.proxy_headers.items())
        self._socket.sendall(f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n{headers}\r\n".encode())
        status, _headers = self._head()
        if status != 200:
            raise OSError(f"the proxy returned {status} to CONNECT {place}")

    def _send(self, head: bytes, body: bytes | bytearray | None) -> None:
        if body is None:
            self._socket.sendall(head)
            return
        if isinstance(self._socket, ssl.SSLSocket):  # has no sendmsg; a record for the head is cheap
            self._socket.sendall(head)
            sent = 0
        else:
            sent = self._socket.sendmsg([head, body]) - len(head)
            if sent < 0:
                self._socket.sendall(head[sent:])
                sent = 0
        view = memoryview(body)
        while sent < len(view):  # not sendall, whose time limit is for the whole
            sent += self._socket.send(view[sent:])

    def _receive(self) -> Reply:
        status, headers = self._head()
        while 100 <= status < 200:
            status, headers = self._head()
        if status == 204:
            return Reply(status, headers)
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return Reply(status, headers, self._chunks())
        if "content-length" in headers:
            length = int(headers["content-length"])
            return Reply(status, headers, self._exactly(length))
        body = bytearray(self._rest)  # everything up to the end of the connection
        while piece := self._socket.recv(PIECE):
            body += piece
            _check_length(len(body))
        return Reply(status, {**headers, "connection": "close"}, body)

    def _head(self) -> tuple[int, dict[str, str]]:
        """Read status and headers."""
        data = bytearray(self._rest)
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > LONGEST_HEAD:
                raise ConnectionFailed("the response is not HTTP")
            data += self._more()
        self._rest = bytes(data[end + 4 :])
        lines = data[:end].decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ConnectionFailed("the response is not HTTP")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if version == "HTTP/1.0":
            headers.setdefault("connection", "close")
        return int(rest[:3]), headers

    def _chunks(self) -> bytes:
        """Read a body that comes in chunks, and what trails it."""
        body = bytearray()
        while size := int(self._line().split(b";")[0], 16):
            _check_length(len(body) + size)
            body += self._exactly(size)
            self._line()
        while self._line():
            pass
        return bytes(body)

    def _line(self) -> bytes:
        while (end := self._rest.find(b"\r\n")) < 0:
            if len(self._rest) > LONGEST_HEAD:
                raise ConnectionFailed("the response is not HTTP")
            self._rest += self._more()
        line, self._rest = self._rest[:end], self._rest[end + 2 :]
        return line

    def _exactly(self, length: int) -> bytearray:
        _check_length(length)
        body = bytearray(length)
        have = min(len(self._rest), length)
        body[:have] = self._rest[:have]
        self._rest = self._rest[have:]
        view = memoryview(body)
        while have < length:
            count = self._socket.recv_into(view[have:])
            if not count:
                raise ConnectionFailed("the connection was closed within a response")
            have += count
        return body

    def _more(self) -> bytes:
        piece = self._socket.recv(PIECE)
        if not piece:
            raise ConnectionFailed("the connection was closed without a response")
        return piece


def _check_length(length: int) -> None:
    if not 0 <= length <= LONGEST_BODY:
        raise ConnectionFailed(f"a response of {length} bytes is too large")


__all__ = ["BLOCK_BYTES", "Answer", "BlockWire", "ConnectionFailed", "Keys", "Target", "keys", "target"]

BLOCK_BYTES = 524_288
UNSIGNED = "UNSIGNED-PAYLOAD"  # the API's own choice: the checksum header is signed, the block is not


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials at one moment."""

    access_key: str
    secret_key: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where blocks go: plain values, so that a worker process can be told.

    Attributes
    ----------
    endpoint
        URL of the EBS direct APIs, without a trailing slash.
    region
        For the signature.
    proxy
        URL of the proxy, or empty.
    certificates
        Path of the bundle of certificates that are trusted.
    read_seconds
        How long a request may hang before it is given up and sent again.
    """

    endpoint: str
    region: str
    proxy: str = ""
    certificates: str = ""
    read_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `code`, `message` and `reason` (of throttling) of an error, or the bytes."""

    status: int
    code: str = ""
    message: str = ""
    reason: str = ""
    body: bytes | bytearray = b""
    checksum: str = ""

    @property
    def ok(self) -> bool:
        """Whether the block arrived."""
        return 200 <= self.status < 300


def target(session: boto3.Session, region: str, *, read_seconds: float = 20.0) -> Target:
    """Return where the session's configuration sends calls to the EBS direct APIs.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The proxy is one that is spoken to over TLS.
    """
    from botocore.httpsession import where
    from botocore.utils import get_environ_proxies

    from vmsnix_ops import errors

    client: EBSClient = session.client("ebs", region_name=region)
    endpoint = client.meta.endpoint_url.rstrip("/")
    proxies = client.meta.config.proxies  # type: ignore[attr-defined]  # the stubs lack it
    configured = proxies or get_environ_proxies(endpoint)
    proxy = (configured or {}).get(urllib.parse.urlsplit(endpoint).scheme, "")
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    if urllib.parse.urlsplit(proxy).scheme == "https":
        raise errors.ParameterError(
            "The proxy for the EBS direct APIs cannot be used.",
            why="This client cannot use a proxy over TLS (https://).",
            fix="Set HTTPS_PROXY to the proxy's http:// address (the traffic stays encrypted), or publish "
            "with --via import.",
        )
    core = session._session  # boto3 itself offers no way to the certificate bundle
    bundle = core.get_config_variable("ca_bundle")
    return Target(endpoint, region, proxy, str(bundle or where()), read_seconds)


def keys(session: boto3.Session) -> Keys:
    """Return the session's credentials, refreshed by botocore when they are about to expire."""
    from vmsnix_ops.errors import CredentialsError

    found = credentials.session_keys(session)
    if found is None:
        raise CredentialsError(
            "No AWS credentials found.",
            fix="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in (aws sso login).",
        )
    return Keys(*found)


class BlockWire:
    """Signed requests over as many connections as there are threads that use it at once.

    Parameters
    ----------
    target
        Where to.
    keys
        Who; assign `keys` anew when they are refreshed.
    """

    def __init__(self, target: Target, keys: Keys) -> None:
        self.target, self.keys = target, keys
        parts = urllib.parse.urlsplit(target.endpoint)
        self._host, self._path = parts.netloc, parts.path
        self._signing: tuple[str, Keys, bytes] | None = None
        context = ssl.create_default_context(cafile=target.certificates) if parts.scheme == "https" else None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._way = Way(parts.scheme, parts.hostname or "", port, target.proxy, context)
        # A proxy that can read what it passes on wants the whole address in the request line.
        self._before = target.endpoint.removesuffix(self._path) if target.proxy and context is None else ""
        self._extra = self._way.proxy_headers if self._before else {}
        self._free: deque[Connection] = deque()  # append and pop are atomic

    def put(
        self, snapshot_id: str, index: int, block: bytes | bytearray, digest: bytes, *, patience: int = 1
    ) -> Answer:
        """Send one block.

        Parameters
        ----------
        snapshot_id
            A pending snapshot.
        index
            Of the block.
        block
            `BLOCK_BYTES` bytes.
        digest
            Their SHA-256, 32 bytes.
        patience
            How many times the target's `Target.read_seconds` to wait.

        Raises
        ------
        ConnectionFailed
            There was no answer.
        """
        headers = {
            "content-type": "application/octet-stream",
            "x-amz-checksum": base64.b64encode(digest).decode(),
            "x-amz-checksum-algorithm": "SHA256",
            "x-amz-data-length": str(len(block)),
        }
        return self._send("PUT", f"/snapshots/{snapshot_id}/blocks/{index}", "", headers, block, patience)

    def get(self, snapshot_id: str, index: int, token: str, *, patience: int = 1) -> Answer:
        """Fetch one block with the token that ``ListSnapshotBlocks`` gave for it.

        Raises
        ------
        ConnectionFailed
            There was no answer.
        """
        query = f"blockToken={urllib.parse.quote(token, safe='-_.~')}"
        return self._send("GET", f"/snapshots/{snapshot_id}/blocks/{index}", query, {}, None, patience)

    def close(self) -> None:
        """Close the connections that nobody uses at the moment."""
        while self._free:
            self._free.pop().close()

    def _send(
        self,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        body: bytes | bytearray | None,
        patience: int,
    ) -> Answer:
        path = self._path + path
        signed = self._sign(method, path, query, headers) | self._extra
        if body is not None:
            signed["content-length"] = str(len(body))
        line = f"{method} {self._before}{path}{'?' + query if query else ''} HTTP/1.1\r\n"
        head = line + "".join(f"{name}: {value}\r\n" for name, value in signed.items()) + "\r\n"
        try:
            reply = self._exchange(head.encode("ascii"), body, self.target.read_seconds * patience)
        except CertificateRefused as error:
            return Answer(0, "CertificateRefused", str(error))
        if 200 <= reply.status < 300:
            return Answer(reply.status, body=reply.body, checksum=reply.headers.get("x-amz-checksum", ""))
        return _refused(reply)

    def _exchange(self, head: bytes, body: bytes | bytearray | None, seconds: float) -> Reply:
        try:
            connection = self._free.pop()
        except IndexError:
            connection = Connection(self._way)
        try:
            reply = connection.exchange(head, body, seconds=seconds)
        except ConnectionFailed as error:
            if not connection.used or isinstance(error.__cause__, TimeoutError):
                raise
            # The server may close a connection that was idle; that is no failure, and a block may be sent
            # twice.
            connection = Connection(self._way)
            reply = connection.exchange(head, body, seconds=seconds)
        if connection.open:
            self._free.append(connection)
        return reply

    def _sign(self, method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, str]:
        """Return the headers with a Signature Version 4."""
        now, keys = datetime.now(UTC), self.keys
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        signed = {**headers, "host": self._host, "x-amz-content-sha256": UNSIGNED, "x-amz-date": stamp}
        if keys.token:
            signed["x-amz-security-token"] = keys.token
        names = sorted(signed)
        listed = ";".join(names)
        canonical = "\n".join(
            [method, path, query, *(f"{name}:{signed[name]}" for name in names), "", listed, UNSIGNED]
        )
        scope = f"{stamp[:8]}/{self.target.region}/ebs/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.new(self._key(stamp[:8], keys), text.encode(), hashlib.sha256).hexdigest()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={listed}, "
            f"Signature={signature}"
        )
        return signed

    def _key(self, day: str, keys: Keys) -> bytes:
        """Return the signing key, which stays the same for a day."""
        if self._signing is None or self._signing[:2] != (day, keys):
            key = f"AWS4{keys.secret_key}".encode()
            for part in (day, self.target.region, "ebs", "aws4_request"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._signing = (day, keys, key)
        return self._signing[2]


def _refused(reply: Reply) -> Answer:
    """Read an error of the rest-json protocol; what is not JSON (a proxy's page) keeps its first words."""
    kind = reply.headers.get("x-amzn-errortype", "")
    try:
        said = json.loads(reply.body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        text = reply.body[:200].decode(errors="replace")
        return Answer(reply.status, kind.split(":")[0] or f"HTTP {reply.status}", text)
    code = (kind or str(said.get("__type", "")) or str(said.get("code", ""))).split(":")[0].rpartition("#")[2]
    message = str(said.get("Message") or said.get("message") or "")
    return Answer(reply.status, code or f"HTTP {reply.status}", message, str(said.get("Reason") or ""))
