"""The bytes of a request: read once, hashed on the way, to memory when small and to disk when large."""

from __future__ import annotations

import hashlib
import hmac
import io
import re
from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.core import AwsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmsnix_ops.sandbox.wire.checksums import Digests

BUFFER = (
    256 * 1024
)  # fits the processor's cache, so that several hashes over one piece cost one trip to memory
MEMORY_LIMIT = 16 * 2**20
LINE_LIMIT = 16 * 1024


MOST_TRAILERS = 100


class DisconnectedError(ConnectionError):
    """The client went away in the middle of a request."""


class TooSlowError(TimeoutError):
    """The client sent nothing, or next to nothing, for too long."""


class HttpBody(io.RawIOBase):
    """The message body as HTTP frames it: by Content-Length or in chunks.

    Parameters
    ----------
    source
        The connection, positioned behind the headers.
    length
        Content-Length in bytes; ignored when `chunked`.
    chunked
        Whether Transfer-Encoding is chunked.
    before_read
        Called once before the first byte is read; answers ``Expect: 100-continue``.
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
        self.untouched = True  # nothing was read yet
        self.finished = not chunked and length == 0
        self.broken = False  # nobody knows where the next request begins

    def readable(self) -> bool:
        """Return True: this is for reading."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill a buffer as far as the body goes; 0 at the end."""
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
            raise AwsError("RequestTimeout", TIMEOUT_TEXT) from None
        except AwsError:
            self.broken = True
            raise
        except DisconnectedError:
            raise
        except ConnectionError as error:  # the client was killed
            raise DisconnectedError("the connection was reset in the middle of a request body") from error

    def _read(self, view: memoryview) -> int:
        if self._chunked and self._remaining == 0 and not self._next_chunk():
            return 0
        count = self._source.readinto(view[: self._remaining])
        if not count:
            raise DisconnectedError("the connection ended in the middle of a request body")
        self._remaining -= count
        if self._remaining == 0:
            if self._chunked:
                if self._line():
                    raise _incomplete()
            else:
                self.finished = True
        return count

    def _line(self) -> bytes:
        line = self._source.readline(LINE_LIMIT)
        if not line.endswith(b"\n"):
            if len(line) == LINE_LIMIT:
                raise _incomplete()
            raise DisconnectedError("the connection ended in the middle of a chunk")
        return line.strip()

    def _next_chunk(self) -> bool:
        self._remaining = _hexadecimal(self._line().partition(b";")[0])
        if self._remaining == 0:
            for _ in range(MOST_TRAILERS):  # which AWS does not use at this level
                if not self._line():
                    break
            else:
                raise _incomplete()
            self.finished = True
        return not self.finished


class ChunkSigner:
    """Verifies the signatures of an ``aws-chunked`` body, each of which covers the one before.

    Parameters
    ----------
    key
        The SigV4 signing key.
    scope
        ``date/region/service/aws4_request``.
    timestamp
        ``X-Amz-Date``.
    seed
        The signature of the headers.
    """

    def __init__(self, key: bytes, scope: str, timestamp: str, seed: str) -> None:
        self._key, self._scope, self._timestamp, self._previous = key, scope, timestamp, seed

    def check(self, signature: str, payload_sha256: str) -> None:
        """Compare one chunk's signature."""
        empty = hashlib.sha256(b"").hexdigest()
        self._compare("AWS4-HMAC-SHA256-PAYLOAD", signature, f"{empty}\n{payload_sha256}")

    def check_trailer(self, signature: str, trailer_sha256: str) -> None:
        """Compare the signature of the trailers."""
        self._compare("AWS4-HMAC-SHA256-TRAILER", signature, trailer_sha256)

    def _compare(self, algorithm: str, signature: str, rest: str) -> None:
        text = f"{algorithm}\n{self._timestamp}\n{self._scope}\n{self._previous}\n{rest}"
        expected = hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise AwsError(
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
                status=403,
            )
        self._previous = expected


class AwsChunkedBody(io.RawIOBase):
    """The payload inside an ``aws-chunked`` body, with its trailers.

    Parameters
    ----------
    inner
        The HTTP body.
    signer
        Verifies chunk signatures; None for ``STREAMING-UNSIGNED-PAYLOAD-TRAILER``.
    """

    def __init__(self, inner: HttpBody, signer: ChunkSigner | None) -> None:
        self._inner = io.BufferedReader(inner, 64 * 1024)
        self._signer = signer
        self._remaining = 0
        self._signature = ""
        self._hash = hashlib.sha256()
        self.trailers: dict[str, str] = {}
        self.finished = False

    def readable(self) -> bool:
        """Return True: this is for reading."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill a buffer with payload bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
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
        line = self._inner.readline(LINE_LIMIT)
        return line.rstrip(b"\r\n")

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
            if len(self.trailers) == MOST_TRAILERS or len(covered) > LINE_LIMIT:
                raise _incomplete()
            name, _, value = line.decode("utf-8", "replace").partition(":")
            if name.strip().lower() == "x-amz-trailer-signature":
                if self._signer is not None:
                    self._signer.check_trailer(value.strip(), hashlib.sha256(covered).hexdigest())
                continue
            covered += line.strip() + b"\n"
            self.trailers[name.strip().lower()] = value.strip()
        while more := self._inner.read(LINE_LIMIT):  # it belongs to this request
            if more.strip():
                raise _incomplete()


class Body:
    """What an operation is given to read; reading checks the payload hash that the client signed.

    Parameters
    ----------
    http
        The HTTP body.
    """

    def __init__(self, http: HttpBody) -> None:
        self.http = http
        self._payload: HttpBody | AwsChunkedBody = http
        self._signed_sha256: str | None = None
        self._content: bytes | None = None
        self.cut_after: int | None = None  # a fault: the connection breaks after so many bytes

    def expect_sha256(self, digest: str) -> None:
        """Remember the hexadecimal SHA-256 that the client signed; reading compares it."""
        self._signed_sha256 = digest

    def unwrap_chunks(self, signer: ChunkSigner | None) -> None:
        """Read the payload out of its ``aws-chunked`` wrapping."""
        self._payload = AwsChunkedBody(self.http, signer)

    @property
    def trailers(self) -> dict[str, str]:
        """Trailing headers by lower-case name; complete once the body was read."""
        return self._payload.trailers if isinstance(self._payload, AwsChunkedBody) else {}

    def chunks(self, *, hashed: bool = True) -> Iterator[memoryview]:
        """Yield the payload piece by piece; each piece is valid until the next one is asked for.

        Parameters
        ----------
        hashed
            Whether to compare what the client signed; False where the caller does it.

        Raises
        ------
        AwsError
            ``XAmzContentSHA256Mismatch`` when the bytes are not those that were signed, ``IncompleteBody``.
        """
        if self._content is not None:
            yield memoryview(self._content)
            return
        signed = hashlib.sha256() if hashed and self._signed_sha256 is not None else None
        buffer = memoryview(bytearray(BUFFER))
        total = 0
        while count := self._payload.readinto(buffer):
            piece = buffer[:count]
            if signed is not None:
                signed.update(piece)
            total += count
            if self.cut_after is not None and total >= self.cut_after:
                raise DisconnectedError("a fault rule cut this upload")
            yield piece
        if signed is not None:
            self._compare(signed.hexdigest())

    def _compare(self, computed: str) -> None:
        if self._signed_sha256 not in {None, computed}:
            raise AwsError(
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
                ClientComputedContentSHA256=self._signed_sha256,
                S3ComputedContentSHA256=computed,
            )

    def read(self, limit: int = MEMORY_LIMIT) -> bytes:
        """Return the whole payload; it is kept, so that it can be read again.

        Raises
        ------
        AwsError
            ``MaxMessageLengthExceeded`` beyond `limit` bytes.
        """
        if self._content is None:
            pieces, total = [], 0
            for piece in self.chunks():
                total += len(piece)
                if total > limit:
                    raise AwsError("MaxMessageLengthExceeded", "Your request was too big.")
                pieces.append(bytes(piece))
            self._content = b"".join(pieces)
        return self._content

    def save(self, path: Path, digests: Digests) -> int:
        """Write the payload to a file, hashing it on the way; return its length in bytes.

        The file is removed again when anything is wrong with the bytes.
        """
        total = 0
        shared = "sha256" in digests  # then one SHA-256 serves the signature and the checksum
        try:
            with path.open("wb", buffering=0) as file:
                for piece in self.chunks(hashed=not shared):
                    file.write(piece)
                    digests.update(piece)
                    total += len(piece)
            if shared:
                self._compare(digests.hex("sha256"))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return total

    def drain(self, limit: int) -> bool:
        """Read and drop what was not read; return whether the connection can be used again.

        Parameters
        ----------
        limit
            Bytes to read at most: closing the connection is cheaper than reading gigabytes.
        """
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
        except AwsError:  # the request was answered already
            return False
        return True


TIMEOUT_TEXT = (
    "Your socket connection to the server was not read from or written to within the timeout period. "
    "Idle connections will be closed."
)


def _incomplete() -> AwsError:
    return AwsError(
        "IncompleteBody",
        "You did not provide the number of bytes specified by the Content-Length HTTP header",
    )


def _hexadecimal(text: bytes) -> int:
    if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", text.strip()):
        raise _incomplete()
    return int(text, 16)
