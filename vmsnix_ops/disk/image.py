"""What every opened disk image is: a size, and ranges of bytes that may hold something.

A format (`raw`, `vhd`, `qemu`) only has to say where the stored ranges of the disk lie in a file; reading,
blocks and zero detection are written once, here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmsnix_ops.errors import ImageFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from vmsnix_ops.disk.source import ByteSource, Stamp


# The one sentence pattern in which a damaged image is refused: which file, which field, at which byte.

FIX = "Build the image again, or copy it again from its source."


def damaged(
    name: str, kind: str, field: str, offset: int | None, why: str, *, fix: str = FIX
) -> ImageFormatError:
    """Return the error for an image whose bytes contradict its format.

    Parameters
    ----------
    name
        What to call the file.
    kind
        The format, as people call it.
    field
        Name of the wrong field in the format's specification.
    offset
        Byte of the file at which it stands; ``None`` when another program found the damage and did not say
        where.
    why
        One sentence: what is wrong with it.
    fix
        One sentence: what to do.
    """
    place = "" if offset is None else f" at byte {offset}"
    return ImageFormatError(
        f"{name} is not a valid {kind} image: {field}{place} is wrong.",
        why=why,
        fix=fix,
        offset=offset,
        field=field,
    )


def check_disk_size(name: str, size: int) -> None:
    """Refuse a disk that is larger than any EBS volume.

    Raises
    ------
    ImageFormatError
        It has more than 64 TiB.
    """
    if size > MAX_DISK:
        raise ImageFormatError(
            f"The disk in {name} is larger than 64 TiB.",
            why=f"It has {size} bytes, but an EBS volume has at most {MAX_DISK}.",
            fix="Build a smaller image. If it is smaller, the file is damaged: copy it again.",
            field="disk size",
        )


MAX_DISK = 64 << 40
"""Bytes of the largest EBS volume."""

SECTOR = 512
EBS_BLOCK = 512 * 1024
"""Bytes of a block of an EBS snapshot (EBS direct APIs: ``BlockSize`` is always 524288)."""

ZEROS = bytes(EBS_BLOCK)
"""A block that holds nothing."""

READ_LIMIT = 1 << 30
"""Most bytes that one `DiskImage.read` hands out, so that a wrong length cannot eat the machine's memory."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the disk that holds at least one byte other than zero.

    Attributes
    ----------
    index
        Number of the block; it starts at byte ``index * len(data)`` of the disk.
    data
        Its bytes, always of the asked size: the last block of a disk is padded with zeros.
    """

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of the disk that is stored somewhere; all numbers are bytes.

    Attributes
    ----------
    offset
        Where it starts on the disk.
    length
        How long it is.
    stored
        Where its bytes start in the file that holds them.
    """

    offset: int
    length: int
    stored: int

    @property
    def end(self) -> int:
        """First byte of the disk behind it."""
        return self.offset + self.length

    def part(self, start: int, stop: int) -> Extent:
        """Return what of it lies between two positions of the disk."""
        first, last = max(start, self.offset), min(stop, self.end)
        return Extent(first, last - first, self.stored + first - self.offset)


class DiskImage:
    """An opened disk image; a context manager. Get one from `vmsnix_ops.disk.formats.open_image`.

    Reading is safe from several threads at once. An image opened from a path can be pickled: the process that
    receives it opens the file again.

    Attributes
    ----------
    format
        ``vhd``, ``raw``, ``qcow2``, ``vhdx`` or ``vmdk``.
    subformat
        ``fixed`` or ``dynamic`` for a VHD, ``streamOptimized`` or another word of its own for a VMDK, else
        empty.
    size
        Bytes of the disk as a machine sees it.
    file_bytes
        Bytes of the file.
    converts
        Whether the first read makes a copy of the whole disk, which goes when the image is closed.
    own_layout
        Whether this package reads from the file's bytes where the disk's blocks lie; false where ``qemu-img``
        says so.
    source
        The bytes of the file itself.
    """

    format: str = "raw"
    subformat: str = ""
    converts: bool = False
    own_layout: bool = True

    def __init__(self, source: ByteSource, size: int) -> None:
        self.source, self.size = source, size
        self.reopen: Callable[[Path], DiskImage] | None = None  # how another process opens it
        self.file_bytes = source.size

    @property
    def path(self) -> Path | None:
        """Where the file is, or ``None`` when the image came from a reader."""
        return self.source.path

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """Yield the stored ranges between two positions of the disk, ascending and disjoint.

        What is left out is known to be zero. What is yielded may still hold zeros only: `blocks` looks.
        Neighbours may touch.
        """
        raise NotImplementedError

    def file_span(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return the first byte of the file that a range of the disk needs, and the one behind the last.

        ``None`` when the file stores nothing of it. Only for images that have `own_layout`.
        """
        return start, stop

    def _stored(self) -> ByteSource:
        """Return the bytes that `Extent.stored` counts in: the file itself unless a format converts first."""
        return self.source

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range of the disk.

        Parameters
        ----------
        offset, length
            The range, in bytes; at most 1 GiB. As with a file, what lies behind the end of the disk is left
            out.

        Raises
        ------
        ValueError
            When the range is negative or longer than 1 GiB.
        ImageError
            When the image is damaged there, or cannot be read.
        """
        if offset < 0 or not 0 <= length <= READ_LIMIT:
            message = f"cannot read {length} bytes at {offset}: the length must be between 0 and {READ_LIMIT}"
            raise ValueError(message)
        stop = min(offset + length, self.size)
        if offset >= stop:
            return b""
        return self._assemble(offset, stop, list(self.extents(offset, stop)))

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill `buffer` with the disk's bytes at `offset`, which costs less than new bytes for every read.

        Parameters
        ----------
        offset
            Where on the disk. What lies behind its end is zero.
        buffer
            Filled whole.

        Raises
        ------
        ImageError
            When the image is damaged there, or cannot be read.
        """
        self._gather(offset, buffer, self.extents(offset, min(offset + len(buffer), self.size)))

    def stored_blocks(self, buffer: bytearray, *, first: int = 0, stop: int | None = None) -> Iterator[int]:
        """Read the blocks that are stored into `buffer`, one after the other, and yield their indices.

        The buffer holds the block until the next is asked for, and its length is the size of a block. Some
        blocks may hold zeros only.

        Parameters
        ----------
        buffer
            Used for all blocks.
        first, stop
            Only the blocks with ``first <= index < stop``, so that several workers can share an image.

        Raises
        ------
        ImageError
            When the image is damaged, or cannot be read.
        """
        size = len(buffer)
        end = self.size if stop is None else min(stop * size, self.size)
        for index, pieces in self._pieces(size, first * size, end):
            self._gather(index * size, buffer, pieces)
            yield index

    def blocks(self, size: int = EBS_BLOCK, *, first: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Yield the blocks that hold a byte other than zero, ascending by index.

        A block that lies in one piece in the file (all of them, in VHDs as they are usually made) is read
        straight into the bytes that are handed out, and not copied again.

        Parameters
        ----------
        size
            Bytes of a block.
        first, stop
            Only the blocks with ``first <= index < stop``, so that several workers can share an image.

        Raises
        ------
        ImageError
            When the image is damaged, or cannot be read.
        """
        if size < 1:
            message = f"a block of {size} bytes cannot be"
            raise ValueError(message)
        zeros = bytes(size)
        end = self.size if stop is None else min(stop * size, self.size)
        for index, pieces in self._pieces(size, first * size, end):
            data = self._assemble(index * size, (index + 1) * size, pieces)
            if data != zeros:  # one memcmp, which stops at the first difference
                yield Block(index, data)

    def allocated(self, size: int = EBS_BLOCK) -> Iterator[int]:
        """Yield the indices of the blocks that are stored, without reading them; some may hold zeros only.

        Their number is the upper bound that a progress bar wants.
        """
        for index, _pieces in self._pieces(size, 0, self.size):
            yield index

    def digest(self, on_progress: Callable[[int], None] | None = None) -> str:
        """Return the hexadecimal SHA-256 of the file's bytes (not of the disk's).

        Parameters
        ----------
        on_progress
            Called with the number of bytes hashed since the last call.
        """
        return self.source.digest(on_progress)

    def stamp(self) -> Stamp | None:
        """Return what tells the file, as it is, from any other; ``None`` when it came from a reader."""
        return self.source.stamp()

    def plain_descriptor(self) -> int:
        """Return an open file that is the disk, byte for byte, where the format had to make one; else -1.

        Another process that is given it need not convert the image again.
        """
        return -1

    def close(self) -> None:
        """Let go of the file."""
        self.source.close()

    def _pieces(self, size: int, start: int, stop: int) -> Iterator[tuple[int, list[Extent]]]:
        """Yield every block that is touched by a stored range, with the parts of the ranges in it."""
        index, pieces = -1, list[Extent]()
        for extent in self.extents(start, stop):
            at = extent.offset
            while at < extent.end:
                if at // size != index:
                    if pieces:
                        yield index, pieces
                    index, pieces = at // size, []
                piece = extent.part(at, (index + 1) * size)
                pieces.append(piece)
                at = piece.end
        if pieces:
            yield index, pieces

    def _assemble(self, start: int, stop: int, pieces: list[Extent]) -> bytes:
        """Return the bytes between two positions, given everything that is stored there."""
        if len(pieces) == 1 and pieces[0].length == stop - start:
            return self._stored().read(pieces[0].stored, pieces[0].length)
        buffer = bytearray(stop - start)
        self._gather(start, buffer, pieces)
        return bytes(buffer)

    def _gather(self, start: int, buffer: bytearray, pieces: Iterable[Extent]) -> None:
        """Fill a buffer from `start` on, given everything that is stored there; the rest of it is zero."""
        stored, view, at = self._stored(), memoryview(buffer), 0
        for piece in pieces:
            first = piece.offset - start
            if first > at:
                view[at:first] = bytes(first - at)
            at = first + piece.length
            stored.read_into(piece.stored, view[first:at])
        if at < len(view):
            view[at:] = bytes(len(view) - at)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[Path], DiskImage], tuple[Path]]:
        if self.path is None or self.reopen is None:
            message = "an image that was opened from a reader cannot be sent to another process"
            raise TypeError(message)
        return self.reopen, (self.path.absolute(),)

    def __repr__(self) -> str:
        kind = " ".join(part for part in (self.subformat, self.format) if part)
        return f"<{kind} image {self.source.name}: {self.size} bytes>"
