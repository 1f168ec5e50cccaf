"""One HTTP/1.1 connection that carries blocks and nothing else.

``http.client`` and urllib3 spend about nine tenths of a millisecond of Python on a request, which is more
than reading and sending the block itself. A block needs little of what they can do: a head and a body go out
in one ``sendmsg``, a short answer comes back.

Source: RFC 9112 (HTTP/1.1), sections 2 to 7; RFC 9110, section 9.3.6 (CONNECT).
"""

from __future__ import annotations

import base64
import socket
import ssl
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

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
            raise OSError(f"the proxy answers {status} to CONNECT {place}")

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
                raise ConnectionFailed("the answer is no HTTP")
            data += self._more()
        self._rest = bytes(data[end + 4 :])
        lines = data[:end].decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ConnectionFailed("the answer is no HTTP")
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
                raise ConnectionFailed("the answer is no HTTP")
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
                raise ConnectionFailed("the connection was closed within an answer")
            have += count
        return body

    def _more(self) -> bytes:
        piece = self._socket.recv(PIECE)
        if not piece:
            raise ConnectionFailed("the connection was closed without an answer")
        return piece


def _check_length(length: int) -> None:
    if not 0 <= length <= LONGEST_BODY:
        raise ConnectionFailed(f"an answer of {length} bytes is not for us")
