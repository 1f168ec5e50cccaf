"""HTTP/1.1: read requests from a socket, write answers to it.

Python's ``http.server`` buffers ``100 Continue`` until the answer. A client that waits for it would lose
one second with every S3 upload.
"""

from __future__ import annotations

import hashlib
import hmac
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

from vmsnix_ops.sandbox.core import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from vmsnix_ops.sandbox.wire.checksums import Checksums


BUFFER = 256 * 1024  # bytes; fits the processor's cache, so several hashes read memory once
MAX_MEMORY = 16 * 2**20
MAX_LINE = 16 * 1024
MAX_TRAILERS = 100
SIGNATURE_TEXT = (
    "The request signature we calculated does not match the signature you provided. Check your key and "
    "signing method."
)


class DisconnectedError(ConnectionError):
    """The client disconnected during a request."""


class TooSlowError(TimeoutError):
    """The client sent too little for too long."""


class _Reader(io.RawIOBase):
    def readable(self) -> bool:
        """Return True."""
        return True


class HttpBody(_Reader):
    """The body of an HTTP message, with Content-Length (`length` bytes) or in chunks.

    `source` is the connection, after the headers. `before_read` is called before the first byte is read, to
    answer ``Expect: 100-continue``.
    """

    def __init__(
        self,
        source: io.BufferedReader,
        length: int,
        *,
        chunked: bool,
        before_read: Callable[[], None] | None = None,
    ) -> None:
        self._source, self._remaining, self._chunked = source, 0 if chunked else length, chunked
        self._before_read = before_read
        self.untouched = True  # no byte was read yet
        self.finished = not chunked and length == 0
        self.broken = False  # the start of the next request is unknown
        self.cut_after: int | None = None  # a fault rule disconnects after this many bytes of the payload

    def readinto(self, buffer: object) -> int:
        """Fill a buffer and return the number of bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if self.finished:
            return 0
        if self.untouched:
            self.untouched = False
            if self._before_read is not None:
                self._before_read()
        try:
            return self._read(view)
        except TooSlowError:
            self.broken = True
            raise ApiError("RequestTimeout", TIMEOUT_TEXT) from None
        except ApiError:
            self.broken = True
            raise
        except DisconnectedError:
            raise
        except ConnectionError as error:  # the client was killed
            raise DisconnectedError("the connection was reset during a request body") from error

    def _read(self, view: memoryview) -> int:
        if self._chunked and self._remaining == 0 and not self._next_chunk():
            return 0
        count = self._source.readinto(view[: self._remaining])
        if not count:
            raise DisconnectedError("the connection ended during a request body")
        self._remaining -= count
        if self._remaining == 0:
            if self._chunked:
                if self._line():
                    raise _incomplete()
            else:
                self.finished = True
        return count

    def _line(self) -> bytes:
        line = self._source.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            if len(line) == MAX_LINE:
                raise _incomplete()
            raise DisconnectedError("the connection ended during a chunk")
        return line.strip()

    def _next_chunk(self) -> bool:
        self._remaining = _hexadecimal(self._line().partition(b";")[0])
        if self._remaining == 0:
            for _ in range(MAX_TRAILERS):  # AWS has no trailers of HTTP chunks
                if not self._line():
                    break
            else:
                raise _incomplete()
            self.finished = True
        return not self.finished


class ChunkSigner:
    """Verifies the signatures of the chunks of an ``aws-chunked`` body. Each covers the previous one."""

    def __init__(self, key: bytes, scope: str, timestamp: str, seed: str) -> None:
        self._key, self._scope, self._timestamp, self._previous = key, scope, timestamp, seed

    def check(self, signature: str, payload_sha256: str) -> None:
        """Check the signature of a chunk."""
        empty = hashlib.sha256(b"").hexdigest()
        self._compare("AWS4-HMAC-SHA256-PAYLOAD", signature, f"{empty}\n{payload_sha256}")

    def check_trailer(self, signature: str, trailer_sha256: str) -> None:
        """Check the signature of the trailers."""
        self._compare("AWS4-HMAC-SHA256-TRAILER", signature, trailer_sha256)

    def _compare(self, algorithm: str, signature: str, rest: str) -> None:
        text = f"{algorithm}\n{self._timestamp}\n{self._scope}\n{self._previous}\n{rest}"
        expected = hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise ApiError("SignatureDoesNotMatch", SIGNATURE_TEXT, status=403)
        self._previous = expected


class AwsChunkedBody:
    """The payload of an ``aws-chunked`` body, and its trailers. Without a signer, they are unsigned."""

    def __init__(self, inner: HttpBody, signer: ChunkSigner | None) -> None:
        self._inner = io.BufferedReader(inner, 64 * 1024)
        self._signer = signer
        self._remaining = 0
        self._signature = ""
        self._hash = hashlib.sha256()
        self.trailers: dict[str, str] = {}
        self.finished = False

    def readinto(self, view: memoryview) -> int:
        """Fill a buffer with payload, and return the number of bytes; 0 at the end."""
        if self._remaining == 0 and not self._next_chunk():
            return 0
        count = self._inner.readinto(view[: self._remaining])
        if not count:
            raise _incomplete()
        if self._signer is not None:
            self._hash.update(view[:count])
        self._remaining -= count
        if self._remaining == 0:
            if self._line():
                raise _incomplete()
            if self._signer is not None:
                self._signer.check(self._signature, self._hash.hexdigest())
        return count

    def _line(self) -> bytes:
        return self._inner.readline(MAX_LINE).rstrip(b"\r\n")

    def _next_chunk(self) -> bool:
        if self.finished:
            return False
        size, _, extension = self._line().partition(b";")
        self._remaining = _hexadecimal(size)
        self._signature = extension.partition(b"chunk-signature=")[2].decode("ascii", "replace")
        self._hash = hashlib.sha256()
        if self._remaining:
            return True
        if self._signer is not None:
            self._signer.check(self._signature, self._hash.hexdigest())
        self._read_trailers()
        self.finished = True
        return False

    def _read_trailers(self) -> None:
        covered = b""
        while line := self._line():
            if len(self.trailers) == MAX_TRAILERS or len(covered) > MAX_LINE:
                raise _incomplete()
            name, _, value = line.decode("utf-8", "replace").partition(":")
            if name.strip().lower() == "x-amz-trailer-signature":
                if self._signer is not None:
                    self._signer.check_trailer(value.strip(), hashlib.sha256(covered).hexdigest())
                continue
            covered += line.strip() + b"\n"
            self.trailers[name.strip().lower()] = value.strip()
        while more := self._inner.read(MAX_LINE):  # it belongs to this request
            if more.strip():
                raise _incomplete()


class Body:
    """The payload of a request. Reading it checks the hash that the client signed."""

    def __init__(self, http: HttpBody) -> None:
        self.http = http
        self._payload: HttpBody | AwsChunkedBody = http
        self.signed_sha256: str | None = None  # hexadecimal, in the headers; reading the payload checks it
        self._content: bytes | None = None

    def unwrap_chunks(self, signer: ChunkSigner | None) -> None:
        """Decode ``aws-chunked`` when the payload is read."""
        self._payload = AwsChunkedBody(self.http, signer)

    @property
    def trailers(self) -> dict[str, str]:
        """The trailers by lower-case name. They are complete when the payload was read."""
        return self._payload.trailers if isinstance(self._payload, AwsChunkedBody) else {}

    def chunks(self, *, hashed: bool = True) -> Iterator[memoryview]:
        """Yield the payload in pieces. Each piece is valid until the next one is read.

        Errors: ``IncompleteBody``, and ``XAmzContentSHA256Mismatch`` unless the caller checks the signed hash
        itself (`hashed` is false).
        """
        if self._content is not None:
            yield memoryview(self._content)
            return
        signed = hashlib.sha256() if hashed and self.signed_sha256 is not None else None
        buffer = memoryview(bytearray(BUFFER))
        total = 0
        while count := self._payload.readinto(buffer):
            piece = buffer[:count]
            if signed is not None:
                signed.update(piece)
            total += count
            if self.http.cut_after is not None and total >= self.http.cut_after:
                raise DisconnectedError("a fault rule cut this upload")
            yield piece
        if signed is not None:
            self._compare(signed.hexdigest())

    def _compare(self, computed: str) -> None:
        if self.signed_sha256 not in {None, computed}:
            raise ApiError(
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
                ClientComputedContentSHA256=self.signed_sha256,
                S3ComputedContentSHA256=computed,
            )

    def read(self, limit: int = MAX_MEMORY) -> bytes:
        """Return the whole payload. It can be read again.

        More than `limit` bytes are ``MaxMessageLengthExceeded``.
        """
        if self._content is None:
            pieces, total = [], 0
            for piece in self.chunks():
                total += len(piece)
                if total > limit:
                    raise ApiError("MaxMessageLengthExceeded", "Your request was too big.")
                pieces.append(bytes(piece))
            self._content = b"".join(pieces)
        return self._content

    def save(self, path: Path, digests: Checksums) -> int:
        """Write the payload to a file as `save_pieces`. The file is deleted if it is not as signed."""
        return save_pieces(self._pieces_for(digests), path, digests)

    def _pieces_for(self, digests: Checksums) -> Iterator[memoryview]:
        shared = "sha256" in digests  # then one SHA-256 is computed for both purposes
        yield from self.chunks(hashed=not shared)
        if shared:
            self._compare(digests.hex("sha256"))

    def drain(self, limit: int) -> bool:
        """Read the rest of the body, and return whether the connection can be used again."""
        if self.http.finished:
            return True
        if self.http.broken:
            return False
        buffer = memoryview(bytearray(64 * 1024))
        total = 0
        try:
            while count := self.http.readinto(buffer):
                total += count
                if total > limit:
                    return False
        except ApiError:  # the request was answered already
            return False
        return True


def save_pieces(pieces: Iterable[memoryview], path: Path, digests: Checksums) -> int:
    """Write pieces to a file, update the digests with each, and return the length in bytes.

    The file is deleted when the pieces end with an error.
    """
    total = 0
    try:
        with path.open("wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                digests.update(piece)
                total += len(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return total


TIMEOUT_TEXT = (
    "Your socket connection to the server was not read from or written to within the timeout period. "
    "Idle connections will be closed."
)


def _incomplete() -> ApiError:
    return ApiError(
        "IncompleteBody",
        "You did not provide the number of bytes specified by the Content-Length HTTP header",
    )


def _hexadecimal(text: bytes) -> int:
    if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", text.strip()):
        raise _incomplete()
    return int(text, 16)


MAX_HEADERS = 200
MAX_HEAD_BYTES = 128 * 1024
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (/[!-~]*) HTTP/1\.([01])[ \t]*\r?\n")
HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*?)\r?\n")
BAD_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


class BadRequestError(ApiError):
    """The bytes are not an HTTP/1.1 request that this server accepts."""

    def __init__(
        self, why: str, *, status: int = 400, code: str = "BadRequest", request: Request | None = None
    ) -> None:
        super().__init__(code, why, status=status)
        self.request = request


def limit_time(connection: socket.socket, option: int, seconds: float) -> None:
    """Limit the time of a receive or send in the kernel: with Python's limit, each costs a system call more.

    `option` is ``SO_RCVTIMEO`` or ``SO_SNDTIMEO``; 0 seconds: no limit.
    """
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, option, limit)


class TimedSocketReader(_Reader):
    """Reads a client's socket, with timeouts."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.set_timeout(0.0)

    def set_timeout(self, seconds: float, *, per_byte: float = 0.0) -> None:
        """Set the time that the client has from now on: in total, and the longest time without a byte.

        0: no limit. Each received byte adds `per_byte` seconds.
        """
        self._started, self._seconds, self._per_byte, self._received = monotonic(), seconds, per_byte, 0
        limit_time(self._connection, socket.SO_RCVTIMEO, seconds)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and return the number of bytes; 0 at the end."""
        try:
            count = self._connection.recv_into(buffer)
        except BlockingIOError:
            raise TooSlowError("no byte arrived") from None
        self._received += count
        allowed = self._seconds + self._per_byte * self._received
        if self._seconds and monotonic() - self._started > allowed:
            raise TooSlowError("too few bytes arrived")
        return count


@dataclass
class Request:
    """One HTTP request. Its body is not read yet."""

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

    def query_values(self, key: str) -> list[str]:
        """Return all values of a repeated key of the query."""
        return [unquote_plus(value) for name, value in self.raw_query if unquote_plus(name) == key]

    @cached_property
    def path(self) -> str:
        """The decoded path."""
        return unquote(self.raw_path)


@dataclass(frozen=True)
class FileRange:
    """A range of a file."""

    path: Path
    offset: int
    length: int


@dataclass
class Response:
    """One HTTP answer.

    Content-Length, Connection and, unless given, Date are added to the headers. The body is bytes, or ranges
    of files, which the kernel sends without copying them into this process. `length` is the Content-Length of
    an answer to HEAD, which has no body.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | list[FileRange] = b""
    length: int | None = None
    cut_after: int | None = None  # a fault rule disconnects after this many bytes of the body
    drop: bool = False  # a fault rule disconnects without an answer


def read_request(
    source: io.BufferedReader, announce: Callable[[], None], begin_body: Callable[[], None]
) -> Request | None:
    """Read the head of the next request; None when the client closed the connection.

    `announce` sends ``100 Continue``. `begin_body` is called before the body is read, to start its time: a
    fault rule may have delayed the request.
    """
    line = source.readline(MAX_LINE)
    if line in {b"\r\n", b"\n"}:  # RFC 9112: tolerate an empty line before the request line
        line = source.readline(MAX_LINE)
    if not line:
        return None
    if len(line) == MAX_LINE and not line.endswith(b"\n"):
        raise BadRequestError("The request line is too long", status=414)
    parts = REQUEST_LINE.fullmatch(line)
    if parts is None:
        raise BadRequestError("This is not an HTTP/1.1 request line")
    method, target, version = (part.decode("ascii") for part in parts.groups())
    headers = _read_headers(source)
    request = Request(method.upper(), target, headers, Body(HttpBody(source, 0, chunked=False)))
    options = {word.strip().lower() for word in headers.get("connection", "").split(",")}
    request.keeps_alive = "close" not in options and (version != "0" or "keep-alive" in options)
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
        line = source.readline(MAX_HEAD_BYTES)
        size += len(line)
        if size > MAX_HEAD_BYTES:
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


def _check_encoding(request: Request) -> None:
    """Check that the percent-encoding of path and query is valid UTF-8."""
    right = BAD_PERCENT.search(request.target) is None
    try:
        unquote(request.target, errors="strict")
    except UnicodeDecodeError:
        right = False
    if not right:
        raise BadRequestError("Couldn't parse the specified URI.", code="InvalidURI", request=request)


def _framing(request: Request, version: str) -> tuple[int, bool]:
    """Return the body's length and whether it comes in chunks.

    A request with both, or with several lengths, is refused: a proxy could read it in another way (RFC
    9112, 6.3).
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
    """Send an answer, and return whether the connection can be used again."""
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
            while left:  # `socket.sendfile` has no timeout for a client that does not read
                sent = os.sendfile(connection.fileno(), file.fileno(), offset, left)
                if sent == 0:
                    raise DisconnectedError(f"{one.path} is shorter than it should be")
                offset, left = offset + sent, left - sent
        limit -= length


def linger(connection: socket.socket) -> None:
    """Close a connection after the client has read the answer.

    When a connection with unread bytes is closed, TCP resets it and the client loses the answer.
    """
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        source = TimedSocketReader(connection)
        source.set_timeout(2.0)
        while source.readinto(bytearray(64 * 1024)):
            pass


def abort(connection: socket.socket) -> None:
    """Reset a connection."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    close(connection)


def close(connection: socket.socket) -> None:
    """Close a connection, which may already be closed."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        connection.close()
