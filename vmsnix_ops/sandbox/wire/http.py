"""HTTP/1.1 as the sandbox needs it: requests off a socket, answers onto it.

Python's ``http.server`` buffers ``100 Continue`` until the answer, which costs a client that waits for it one
second on every S3 upload; hence this module.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cached_property
from http.client import responses
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_plus

from .body import LINE_LIMIT, Body, DisconnectedError, HttpBody

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable
    from pathlib import Path

MAX_HEADERS = 200


class BadRequestError(Exception):
    """What arrived is not HTTP, or not HTTP that this server speaks."""


@dataclass
class Request:
    """One HTTP request, its body still on the wire."""

    method: str
    target: str
    headers: dict[str, str]  # by lower-case name; repeated ones joined with commas
    body: Body
    expects_continue: bool = False

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


def read_request(source: io.BufferedReader, announce: Callable[[], None]) -> Request | None:
    """Read the head of the next request; None when the client closed the connection.

    Parameters
    ----------
    source
        The connection.
    announce
        Sends ``100 Continue``.

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
    parts = line.decode("utf-8", "surrogateescape").split()
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):
        raise BadRequestError("not an HTTP/1.1 request line")
    headers = _read_headers(source)
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise BadRequestError("Content-Length is not a number")
    expects = headers.get("expect", "").lower() == "100-continue"

    def nothing() -> None:
        return None

    body = HttpBody(source, int(length), chunked=chunked, before_read=announce if expects else nothing)
    return Request(parts[0].upper(), parts[1], headers, Body(body), expects)


def _read_headers(source: io.BufferedReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = source.readline(4 * LINE_LIMIT)
        if line in {b"\r\n", b"\n"}:
            return headers
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
        if not colon or not line.endswith(b"\n"):
            raise BadRequestError("a header line without a colon, or too long")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    raise BadRequestError("too many headers")


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
            sent = connection.sendfile(file, one.offset, length)
        if sent != length:
            raise DisconnectedError(f"{one.path} is shorter than it should be")
        limit -= length


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
