"""The bytes of an image file, from a path or a seekable binary reader.

Several threads can read at the same time: a path with ``pread``, a reader with a lock, because it has only
one file position.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vmsnix_ops.errors import ImageError, ImageFormatError, ImageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

Stamp = tuple[int, int, int, int]
"""Device, inode, size and modification time (ns) of a file."""


class BinaryReader(Protocol):
    """A seekable binary file object: an open file, `io.BytesIO`, an S3 object made of parts."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position."""

    def read(self, length: int = -1, /) -> bytes:
        """Read up to `length` bytes."""


class ByteSource:
    """The bytes of a file, read by position."""

    name: str  # in messages
    path: Path | None  # `None` for a reader
    size: int
    # Offset and bytes of all headers and tables that were read when the image was opened. They are compared
    # with the bytes that are hashed.
    opening: tuple[tuple[int, bytes], ...] = ()
    _recording: bool = False

    def _read_some(self, offset: int, length: int) -> bytes | memoryview:
        """Return between 1 and `length` bytes at `offset`; none at the end of the file."""
        raise NotImplementedError

    def _read_some_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the beginning of `buffer` with bytes at `offset`; return their number, 0 at the file's end."""
        data = self._read_some(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def record(self, recording: bool) -> None:
        """Start or stop adding the bytes that are read to `opening`."""
        self._recording = recording

    def stamp(self) -> Stamp | None:
        """Return values that change with the file; ``None`` for a reader."""
        return None

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield ``(start, stop)`` of ranges that may contain data, ascending; all other ranges are zeros."""
        if start < stop:
            yield start, stop

    def close(self) -> None:
        """Close the file. Safe to call twice."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`; an ImageFormatError if the file ends before."""
        data = bytes(self._read_some(offset, length))
        if len(data) < length:
            whole = bytearray(data.ljust(length, b"\0"))
            self.read_into(offset + len(data), memoryview(whole)[len(data) :])
            data = bytes(whole)
        if self._recording:
            self.opening += ((offset, data),)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole `buffer` with the bytes at `offset`; errors as for `read`."""
        done = 0
        while done < len(buffer):
            count = self._read_some_into(offset + done, buffer[done:])
            if not count:
                raise ImageFormatError(
                    f"{self.name} ends at byte {offset + done}, but {len(buffer) - done} more were expected.",
                    why="The file is incomplete, or became shorter while it was open.",
                    fix="Build or copy the image again, and do not change the file while it is in use.",
                    offset=offset + done,
                    field="end of file",
                )
            done += count


class PathSource(ByteSource):
    """A file or a block device; everything else, and what cannot be opened, is refused."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self.path, self.name = path, str(path)
        try:
            # Non-blocking, so that a named pipe does not wait for a writer, and is refused below.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            mode = os.fstat(self._descriptor).st_mode
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                self.size = os.lseek(self._descriptor, 0, os.SEEK_END)
        except FileNotFoundError:
            raise ImageNotFoundError(
                f"No image at {path}.",
                why="No file of that name exists.",
                fix="Check the path. If it is a `result` link whose store path was garbage-collected, build "
                "the image again.",
            ) from None
        except (OSError, ValueError) as error:
            self.close()
            raise ImageError(
                f"Could not open {path}.",
                why=f"The system reported: {getattr(error, 'strerror', None) or error}.",
                fix="Make the file readable for this user, or use another one.",
            ) from error
        if stat.S_ISDIR(mode):
            self.close()
            raise ImageNotFoundError(
                f"{path} is a folder, not a disk image.",
                why="A disk image is a file.",
                fix="Use the image file in it; nix-support/image-info.json of a Nix output has its name.",
            )
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            self.close()
            raise ImageError(
                f"{path} is neither a file nor a block device.",
                why="An image is read at many positions, which pipes, sockets and terminals do not support.",
                fix="Write the bytes to a file first.",
            )

    @property
    def descriptor(self) -> int:
        """The open file."""
        return self._descriptor

    def stamp(self) -> Stamp | None:
        """Return the stamp of the open file."""
        return stamp_of(self._descriptor)

    def _read_some(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise self._unreadable(offset, error) from error

    def _read_some_into(self, offset: int, buffer: memoryview) -> int:
        try:
            return os.preadv(self._descriptor, [buffer], offset)
        except OSError as error:
            raise self._unreadable(offset, error) from error

    def _unreadable(self, offset: int, error: OSError) -> ImageError:
        return ImageError(
            f"Could not read {self.name} at byte {offset}.",
            why=f"The system reported: {error.strerror or error}.",
            fix="Check the disk that contains the file, or copy the image to another one.",
        )

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges that the file system has stored (``SEEK_DATA``, ``SEEK_HOLE``).

        If the system does not support this, the whole file counts as stored.
        """
        while start < stop:
            data, hole = start, stop
            try:
                data = os.lseek(self._descriptor, start, os.SEEK_DATA)
                hole = os.lseek(self._descriptor, data, os.SEEK_HOLE)
            except (OSError, AttributeError) as error:
                if isinstance(error, OSError) and error.errno == errno.ENXIO:
                    return  # only a hole until the end of the file
            if data >= stop:
                return
            yield data, min(hole, stop)
            start = hole

    def close(self) -> None:
        """Close the file descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class ReaderSource(ByteSource):
    """A seekable binary reader, which the caller closes."""

    def __init__(self, reader: BinaryReader) -> None:
        self._reader, self._lock = reader, threading.Lock()
        name = getattr(reader, "name", None)  # a descriptor's number for an unnamed file
        self.path, self.name = None, name if isinstance(name, str) else "the image"
        try:
            self.size = reader.seek(0, os.SEEK_END)
        except (OSError, ValueError, io.UnsupportedOperation) as error:
            raise ImageError(
                f"{self.name} does not support reading at a position.",
                why=f"Seeking to its end failed: {error}.",
                fix="Use a path, or a binary reader that can seek.",
            ) from error

    def _read_some(self, offset: int, length: int) -> bytes:
        with self._lock:
            try:
                self._reader.seek(offset)
                return self._reader.read(length)
            except (OSError, ValueError) as error:
                raise ImageError(
                    f"Could not read {self.name} at byte {offset}.",
                    why=f"The reader reported: {error}.",
                    fix="Check the source of the reader, then try again.",
                ) from error


class ThreadBuffer(threading.local):
    """A buffer for each thread. To allocate one for each read would cost more than the read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def get(self, length: int) -> bytearray:
        """Return this thread's buffer; the content of the last call is overwritten."""
        if len(self._buffer) != length:
            self._buffer = bytearray(length)
        return self._buffer


def stamp_of(file: int | Path) -> Stamp | None:
    """Return the stamp of a file, or ``None`` if it does not exist."""
    try:
        found = os.fstat(file) if isinstance(file, int) else file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def open_source(source: Path | str | BinaryReader | ByteSource) -> ByteSource:
    """Return the source for a path or a reader."""
    if isinstance(source, ByteSource):
        return source
    if isinstance(source, str | Path):
        return PathSource(Path(source))
    return ReaderSource(source)
