"""HTTP/1.1 as the sandbox needs it: requests off a socket, answers onto it.

Python's ``http.server`` buffers ``100 Continue`` until the answer, which costs a client that waits for it one
second on every S3 upload; hence this module.
"""

from __future__ import annotations

import io
import os
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cached_property
from http.client import responses
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_plus

from vmsnix_ops.sandbox.wire.body import LINE_LIMIT, Body, DisconnectedError, HttpBody, TooSlowError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

MAX_HEADERS = 200
HEAD_LIMIT = 128 * 1024
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (/[!-~]*) HTTP/1\.([01])[ \t]*\r?\n")
HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*?)\r?\n")
BAD_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


class BadRequestError(Exception):
    """What arrived is not HTTP, or not HTTP that this server speaks.

    Parameters
    ----------
    why
        What is wrong with it.
    status, code
        HTTP status and AWS's code of the answer.
    request
        As much of the request as was understood.
    """

    def __init__(
        self, why: str, *, status: int = 400, code: str = "BadRequest", request: Request | None = None
    ) -> None:
        super().__init__(why)
        self.status, self.code, self.request = status, code, request


class Incoming(io.RawIOBase):
    """What a client sends, as long as it comes in time.

    Parameters
    ----------
    connection
        The client's socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.allow(0.0)

    def allow(self, seconds: float, *, per_byte: float = 0.0) -> None:
        """Give the client so much time from now on, and so much more for each byte that came.

        Parameters
        ----------
        seconds
            Also the longest silence; 0 is without end.
        per_byte
            Further seconds for each byte.
        """
        self._started, self._seconds, self._per_byte, self._received = monotonic(), seconds, per_byte, 0
        # The kernel's own limit: with Python's, each read would cost another system call.
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def readable(self) -> bool:
        """Return True: this is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what came; 0 at the end."""
        try:
            count = self._connection.recv_into(buffer)
        except BlockingIOError:
            raise TooSlowError("nothing came") from None
        self._received += count
        allowed = self._seconds + self._per_byte * self._received
        if self._seconds and monotonic() - self._started > allowed:
            raise TooSlowError("next to nothing came")
        return count


@dataclass
class Request:
    """One HTTP request, its body still on the wire."""

    method: str
    target: str
    headers: dict[str, str]  # by lower-case name; repeated ones joined with commas
    body: Body
    expects_continue: bool = False
    keeps_alive: bool = True  # whether the client may send another one on the same connection

    @cached_property
    def raw_path(self) -> str:
        """The path as it was sent, percent-encoded."""
        return self.target.partition("?")[0]

    @cached_property
    def raw_query(self) -> list[tuple[str, str]]:
        """The query's pairs as they were sent, percent-encoded, in order."""
        text = self.target.partition("?")[2]
        return [(name, value) for name, _, value in (pair.partition("=") for pair in text.split("&") if pair)]

    @cached_property
    def query(self) -> dict[str, str]:
        """The query's pairs, decoded."""
        return {unquote_plus(name): unquote_plus(value) for name, value in self.raw_query}

    @cached_property
    def path(self) -> str:
        """The decoded path."""
        return unquote(self.raw_path)


@dataclass(frozen=True)
class FileRange:
    """A stretch of a file."""

    path: Path
    offset: int
    length: int


@dataclass
class Response:
    """One HTTP answer.

    Parameters
    ----------
    status
        HTTP status.
    headers
        Names and values; Content-Length, Connection and, unless given, Date are added.
    body
        Bytes, or stretches of files that go to the socket without passing through this process.
    length
        Content-Length, where it is not the body's (answers to HEAD).
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | list[FileRange] = b""
    length: int | None = None
    cut_after: int | None = None  # a fault: the connection breaks after so many bytes of the body
    drop: bool = False  # a fault: the connection closes without an answer


def read_request(
    source: io.BufferedReader, announce: Callable[[], None], begin_body: Callable[[], None]
) -> Request | None:
    """Read the head of the next request; None when the client closed the connection.

    Parameters
    ----------
    source
        The connection.
    announce
        Sends ``100 Continue``.
    begin_body
        Called before the body is read, whose time begins then: a fault may have held the request before.

    Raises
    ------
    BadRequestError
        When it is no HTTP/1 request.
    """
    line = source.readline(LINE_LIMIT)
    if line in {b"\r\n", b"\n"}:  # RFC 9112: tolerate an empty line before the request line
        line = source.readline(LINE_LIMIT)
    if not line:
        return None
    if len(line) == LINE_LIMIT and not line.endswith(b"\n"):
        raise BadRequestError("The request line is too long", status=414)
    parts = REQUEST_LINE.fullmatch(line)
    if parts is None:
        raise BadRequestError("This is not an HTTP/1.1 request line")
    method, target, version = (part.decode("ascii") for part in parts.groups())
    headers = _read_headers(source)
    request = Request(method.upper(), target, headers, Body(HttpBody(source, 0, chunked=False)))
    request.keeps_alive = _keeps_alive(headers, version)
    _check_encoding(request)
    length, chunked = _framing(request, version)
    request.expects_continue = headers.get("expect", "").lower() == "100-continue"

    def before_read() -> None:
        begin_body()
        if request.expects_continue:
            announce()

    request.body = Body(HttpBody(source, length, chunked=chunked, before_read=before_read))
    return request


def _read_headers(source: io.BufferedReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    size = 0
    for _ in range(MAX_HEADERS):
        line = source.readline(HEAD_LIMIT)
        size += len(line)
        if size > HEAD_LIMIT:
            break
        if line in {b"\r\n", b"\n"}:
            return headers
        parts = HEADER_LINE.fullmatch(line)
        if parts is None:
            raise BadRequestError("A header line is not a name, a colon and a value")
        name = parts[1].decode("ascii").lower()
        try:
            value = parts[2].strip().decode("utf-8")
        except UnicodeDecodeError:
            raise BadRequestError(f"The header {name} is not UTF-8") from None
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    text = "Your request header section exceeds the maximum allowed request header section size."
    raise BadRequestError(text, status=431, code="RequestHeaderSectionTooLarge")


def _keeps_alive(headers: dict[str, str], version: str) -> bool:
    wishes = {word.strip().lower() for word in headers.get("connection", "").split(",")}
    return "close" not in wishes and (version != "0" or "keep-alive" in wishes)


def _check_encoding(request: Request) -> None:
    """Refuse a path or a query whose percent-encoding is wrong, or is not of UTF-8."""
    right = BAD_PERCENT.search(request.target) is None
    try:
        unquote(request.target, errors="strict")
    except UnicodeDecodeError:
        right = False
    if not right:
        raise BadRequestError("Couldn't parse the specified URI.", code="InvalidURI", request=request)


def _framing(request: Request, version: str) -> tuple[int, bool]:
    """Return the body's length and whether it comes in chunks.

    A request with both, or with a length of several values, could be read by something in between in another
    way than here (RFC 9112, 6.3), so it is refused.
    """
    encoding = request.headers.get("transfer-encoding")
    length = request.headers.get("content-length")
    if encoding is not None and (encoding.lower() != "chunked" or length is not None or version == "0"):
        text = "Transfer-Encoding must be chunked, of HTTP/1.1, and without Content-Length"
        raise BadRequestError(text, request=request)
    if length is not None and not re.fullmatch("[0-9]{1,18}", length):
        raise BadRequestError("Content-Length is not a number of bytes", request=request)
    return int(length or 0), encoding is not None


def write_response(connection: socket.socket, response: Response, *, head_only: bool, close: bool) -> bool:
    """Send an answer; return whether the connection can be used again.

    Parameters
    ----------
    connection
        The client's socket.
    response
        The answer.
    head_only
        Whether the request was HEAD: the body is counted and not sent.
    close
        Whether to announce that the connection closes.
    """
    size = len(response.body) if isinstance(response.body, bytes) else sum(r.length for r in response.body)
    lines = [f"HTTP/1.1 {response.status} {responses.get(response.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if response.status not in {204, 304}:
        lines.append(f"Content-Length: {size if response.length is None else response.length}")
    if "Date" not in response.headers:
        lines.append(f"Date: {formatdate(usegmt=True)}")
    lines.append(f"Connection: {'close' if close else 'keep-alive'}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")
    if head_only or response.status in {204, 304}:
        connection.sendall(head)
        return not close
    limit = size if response.cut_after is None else min(size, response.cut_after)
    if isinstance(response.body, bytes):
        connection.sendall(head + response.body[:limit])
    else:
        connection.sendall(head)
        _send_files(connection, response.body, limit)
    return not close and limit == size


def _send_files(connection: socket.socket, ranges: Iterable[FileRange], limit: int) -> None:
    for one in ranges:
        length = min(one.length, limit)
        if length <= 0:
            return
        with one.path.open("rb") as file:
            offset, left = one.offset, length
            while left:  # not `socket.sendfile`, which waits without end for a client that does not read
                sent = os.sendfile(connection.fileno(), file.fileno(), offset, left)
                if sent == 0:
                    raise DisconnectedError(f"{one.path} is shorter than it should be")
                offset, left = offset + sent, left - sent
        limit -= length


def linger(connection: socket.socket, seconds: float = 2.0) -> None:
    """End a connection whose client may still send, so that it can read the answer.

    Closed with bytes unread, TCP would reset the connection and take the answer away.
    """
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        source = Incoming(connection)
        source.allow(seconds)
        while source.readinto(bytearray(64 * 1024)):
            pass


def abort(connection: socket.socket) -> None:
    """Close a connection at once, so that the client sees a reset and not an end."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    close(connection)


def close(connection: socket.socket) -> None:
    """Close a connection that may be gone already."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        connection.close()
