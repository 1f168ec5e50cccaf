"""A small HTTP client for ``PutSnapshotBlock`` and ``GetSnapshotBlock``, one request for each block.

botocore needs more CPU time for a request than the network does. This client sends the same bytes with the
same Signature Version 4. Endpoint (FIPS, dual stack, ``AWS_ENDPOINT_URL``), proxy, certificates and
credentials still come from botocore. All other operations are called through botocore.

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


# One HTTP/1.1 connection.
#
# ``http.client`` and urllib3 need about 0.9 ms of Python for a request, more than reading and sending the
# block itself. Here head and body are sent with one ``sendmsg``.
#
# Source: RFC 9112 (HTTP/1.1), sections 2 to 7; RFC 9110, section 9.3.6 (CONNECT).

LONGEST_HEAD = 65_536
LONGEST_BODY = 16 * 2**20
PIECE = 65_536
CONNECT_SECONDS = 5.0


class ConnectionFailed(Exception):  # noqa: N818 (a condition that is retried, never shown)
    """The connection broke, or the response did not arrive in time."""


class CertificateRefused(Exception):  # noqa: N818 (becomes an answer)
    """The server's certificate is not valid for it; this is not retried."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server, and the proxy for it."""

    scheme: str
    host: str
    port: int
    proxy: str = ""  # URL of an `http` proxy, with user and password if it needs them; empty for none
    context: ssl.SSLContext | None = None  # settings of TLS; None without TLS

    @property
    def proxy_headers(self) -> dict[str, str]:
        """The headers with the user and password for the proxy."""
        parts = urllib.parse.urlsplit(self.proxy)
        if not parts.username:
            return {}
        user, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
        return {"proxy-authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@dataclass(frozen=True, slots=True)
class Reply:
    """A response; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | bytearray = b""


class Connection:
    """A connection that is used for one request after another."""

    def __init__(self, route: ServerAddress) -> None:
        self._route = route
        self._seconds = CONNECT_SECONDS
        self._rest = b""  # bytes received after the last reply
        self.used = False
        self.open = True
        try:
            self._socket = self._connect()
        except ssl.SSLCertVerificationError as error:
            raise CertificateRefused(str(error)) from error
        except OSError as error:
            raise ConnectionFailed(f"could not connect to {route.host}: {error}") from error

    def exchange(self, head: bytes, body: bytes | bytearray | None, *, seconds: float) -> Reply:
        """Send a request and return the reply. `head` ends with the empty line after the headers.

        `seconds` is the maximum time in which the server neither receives nor sends a byte. Without a
        complete reply, ConnectionFailed is raised and the connection is closed.
        """
        try:
            if seconds != self._seconds:
                self._socket.settimeout(seconds)
                self._seconds = seconds
            try:
                self._send(head, body)
            except (BrokenPipeError, ConnectionResetError):
                # A server may refuse a request before it has read the whole body.
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
        """Close the connection. Safe to call twice."""
        self.open = False
        self._socket.close()

    def _connect(self) -> socket.socket:
        route, proxy = self._route, urllib.parse.urlsplit(self._route.proxy)
        address = (proxy.hostname or "", proxy.port or 80) if route.proxy else (route.host, route.port)
        made = socket.create_connection(address, timeout=CONNECT_SECONDS)
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = made
            if route.proxy and route.scheme == "https":
                self._tunnel()
            if route.context is not None:
                made = route.context.wrap_socket(made, server_hostname=route.host)
        except BaseException:
            made.close()
            raise
        return made

    def _tunnel(self) -> None:
        place = f"{self._route.host}:{self._route.port}"
        headers = "".join(f"{name}: {value}\r\n" for name, value in self._route.proxy_headers.items())
        self._socket.sendall(f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n{headers}\r\n".encode())
        status, _headers = self._head()
        if status != 200:
            raise OSError(f"the proxy returned {status} to CONNECT {place}")

    def _send(self, head: bytes, body: bytes | bytearray | None) -> None:
        if body is None:
            self._socket.sendall(head)
            return
        if isinstance(self._socket, ssl.SSLSocket):  # has no sendmsg
            self._socket.sendall(head)
            sent = 0
        else:
            sent = self._socket.sendmsg([head, body]) - len(head)
            if sent < 0:
                self._socket.sendall(head[sent:])
                sent = 0
        view = memoryview(body)
        while sent < len(view):  # not sendall: its timeout is for the whole body
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
        body = bytearray(self._rest)  # until the server closes the connection
        while piece := self._socket.recv(PIECE):
            body += piece
            _check_length(len(body))
        return Reply(status, {**headers, "connection": "close"}, body)

    def _head(self) -> tuple[int, dict[str, str]]:
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


# The two operations.

UNSIGNED = "UNSIGNED-PAYLOAD"  # as in the SDKs: the checksum header is signed, the block is not


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials at one moment."""

    access_key: str
    secret_key: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class BlockEndpoint:
    """The endpoint for blocks, as plain values that can be sent to a worker process."""

    endpoint: str  # URL of the EBS direct APIs, without a trailing slash
    region: str
    proxy: str = ""
    certificates: str = ""  # path of the bundle of trusted certificates
    read_seconds: float = 20.0  # timeout of a request, after which it is sent again


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a block: `code`, `message` and `reason` (of throttling) of an error, or the bytes."""

    status: int
    code: str = ""
    message: str = ""
    reason: str = ""
    body: bytes | bytearray = b""
    checksum: str = ""

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return 200 <= self.status < 300


def target(session: boto3.Session, region: str, *, read_seconds: float = 20.0) -> BlockEndpoint:
    """Return the endpoint of the EBS direct APIs in the session's configuration."""
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
    core = session._session  # boto3 has no public access to the certificate bundle
    bundle = core.get_config_variable("ca_bundle")
    return BlockEndpoint(endpoint, region, proxy, str(bundle or where()), read_seconds)


def keys(session: boto3.Session) -> Keys:
    """Return the session's credentials, which botocore refreshes before they expire."""
    from vmsnix_ops.errors import CredentialsError

    found = credentials.session_keys(session)
    if found is None:
        raise CredentialsError(
            "No AWS credentials found.",
            fix="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in (aws sso login).",
        )
    return Keys(*found)


class BlockWire:
    """Sends signed requests; each thread that uses it at the same time gets its own connection.

    Assign `keys` again when the credentials are refreshed.
    """

    def __init__(self, target: BlockEndpoint, keys: Keys) -> None:
        self.target, self.keys = target, keys
        parts = urllib.parse.urlsplit(target.endpoint)
        self._host, self._path = parts.netloc, parts.path
        self._signing: tuple[str, Keys, bytes] | None = None
        context = ssl.create_default_context(cafile=target.certificates) if parts.scheme == "https" else None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._route = ServerAddress(parts.scheme, parts.hostname or "", port, target.proxy, context)
        # A proxy without TLS needs the whole address in the request line.
        self._before = target.endpoint.removesuffix(self._path) if target.proxy and context is None else ""
        self._extra = self._route.proxy_headers if self._before else {}
        self._free: deque[Connection] = deque()  # append and pop are atomic

    def put(
        self,
        snapshot_id: str,
        index: int,
        block: bytes | bytearray,
        digest: bytes,
        *,
        timeout_factor: int = 1,
    ) -> Answer:
        """Send one block of `BLOCK_BYTES` bytes with its SHA-256 (32 bytes) to a pending snapshot."""
        headers = {
            "content-type": "application/octet-stream",
            "x-amz-checksum": base64.b64encode(digest).decode(),
            "x-amz-checksum-algorithm": "SHA256",
            "x-amz-data-length": str(len(block)),
        }
        return self._send(
            "PUT", f"/snapshots/{snapshot_id}/blocks/{index}", "", headers, block, timeout_factor
        )

    def get(self, snapshot_id: str, index: int, token: str, *, timeout_factor: int = 1) -> Answer:
        """Return one block; `token` is its block token from ``ListSnapshotBlocks``."""
        query = f"blockToken={urllib.parse.quote(token, safe='-_.~')}"
        return self._send("GET", f"/snapshots/{snapshot_id}/blocks/{index}", query, {}, None, timeout_factor)

    def close(self) -> None:
        """Close the unused connections."""
        while self._free:
            self._free.pop().close()

    def _send(
        self,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        body: bytes | bytearray | None,
        timeout_factor: int,
    ) -> Answer:
        path = self._path + path
        signed = self._sign(method, path, query, headers) | self._extra
        if body is not None:
            signed["content-length"] = str(len(body))
        line = f"{method} {self._before}{path}{'?' + query if query else ''} HTTP/1.1\r\n"
        head = line + "".join(f"{name}: {value}\r\n" for name, value in signed.items()) + "\r\n"
        try:
            reply = self._exchange(head.encode("ascii"), body, self.target.read_seconds * timeout_factor)
        except CertificateRefused as error:
            return Answer(0, "CertificateRefused", str(error))
        if 200 <= reply.status < 300:
            return Answer(reply.status, body=reply.body, checksum=reply.headers.get("x-amz-checksum", ""))
        return _refused(reply)

    def _exchange(self, head: bytes, body: bytes | bytearray | None, seconds: float) -> Reply:
        try:
            connection = self._free.pop()
        except IndexError:
            connection = Connection(self._route)
        try:
            reply = connection.exchange(head, body, seconds=seconds)
        except ConnectionFailed as error:
            if not connection.used or isinstance(error.__cause__, TimeoutError):
                raise
            # The server may close an idle connection. A block may be sent twice.
            connection = Connection(self._route)
            reply = connection.exchange(head, body, seconds=seconds)
        if connection.open:
            self._free.append(connection)
        return reply

    def _sign(self, method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, str]:
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
        """Return the signing key, which is the same for a whole day."""
        if self._signing is None or self._signing[:2] != (day, keys):
            key = f"AWS4{keys.secret_key}".encode()
            for part in (day, self.target.region, "ebs", "aws4_request"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._signing = (day, keys, key)
        return self._signing[2]


def _refused(reply: Reply) -> Answer:
    """Return an error of the rest-json protocol, or the beginning of another text, such as a proxy's page."""
    kind = reply.headers.get("x-amzn-errortype", "")
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        text = reply.body[:200].decode(errors="replace")
        return Answer(reply.status, kind.split(":")[0] or f"HTTP {reply.status}", text)
    code = (
        (kind or str(found.get("__type", "")) or str(found.get("code", ""))).split(":")[0].rpartition("#")[2]
    )
    message = str(found.get("Message") or found.get("message") or "")
    return Answer(reply.status, code or f"HTTP {reply.status}", message, str(found.get("Reason") or ""))
