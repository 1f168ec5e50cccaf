"""The base class of disk images: read bytes and blocks of a disk.

A format (`formats`, `vhd`, `qemu`) only has to yield the stored ranges of the disk (`DiskImage.extents`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmsnix_ops.errors import ImageFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from vmsnix_ops.disk.source import ByteSource, Stamp


FIX = "Build the image again, or copy it again from its source."


def damaged(
    name: str, kind: str, field: str, offset: int | None, why: str, *, fix: str = FIX
) -> ImageFormatError:
    """Return the error for a damaged image.

    `field` is the name of the invalid field in the format's specification, `offset` its position in the file
    if it is known. `why` and `fix` are one sentence each.
    """
    place = "" if offset is None else f" at byte {offset}"
    return ImageFormatError(
        f"{name} is not a valid {kind} image: {field}{place} is wrong.",
        why=why,
        fix=fix,
        offset=offset,
        field=field,
    )


def volume_gib(disk_bytes: int) -> int:
    """Return the GiB of the smallest EBS volume for a disk."""
    return max(1, -(-disk_bytes // GIB))


def check_disk_size(name: str, size: int) -> None:
    """Refuse a disk of more than 64 TiB with an `ImageFormatError`: no EBS volume is larger."""
    if size > MAX_DISK:
        raise ImageFormatError(
            f"The disk in {name} is larger than 64 TiB.",
            why=f"It has {size} bytes, but an EBS volume has at most {MAX_DISK}.",
            fix="Build a smaller image. If it is smaller, the file is damaged: copy it again.",
            field="disk size",
        )


SECTOR, MIB, GIB = 512, 2**20, 2**30
MAX_DISK = 64 * 1024 * GIB
"""Bytes of the largest EBS volume."""

BLOCK_BYTES = 512 * 1024
"""Bytes of a block of an EBS snapshot (EBS direct APIs: ``BlockSize`` is always 524288)."""

ZEROS = bytes(BLOCK_BYTES)
"""The bytes of a block of zeros."""

READ_LIMIT = GIB
"""Maximum length of a `DiskImage.read`, so that a wrong length cannot use all memory."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the disk that contains a byte other than zero."""

    index: int  # number of the block; it starts at byte `index * len(data)` of the disk
    data: bytes  # its bytes; the last block of a disk is padded with zeros


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of the disk that is stored in a file; all numbers are bytes."""

    offset: int  # position on the disk
    length: int
    stored: int  # position in the file

    @property
    def end(self) -> int:
        """First byte of the disk after the range."""
        return self.offset + self.length

    def part(self, start: int, stop: int) -> Extent:
        """Return the part between two positions of the disk."""
        first, last = max(start, self.offset), min(stop, self.end)
        return Extent(first, last - first, self.stored + first - self.offset)


class DiskImage:
    """An open disk image; a context manager. Get one from `vmsnix_ops.disk.formats.open_image`.

    Several threads can read at the same time. An image that was opened from a path can be pickled: another
    process opens the file again. `size` and `file_bytes` are the bytes of the disk and of the file.
    """

    format: str = "raw"  # "vhd", "raw", "qcow2", "vhdx" or "vmdk"
    subformat: str = ""  # "fixed" or "dynamic" of a VHD; `createType` of a VMDK, such as "streamOptimized"
    converts: bool = False  # whether the first read creates a temporary copy of the whole disk
    own_layout: bool = True  # whether this package reads the positions of blocks, and not `qemu-img`

    def __init__(self, source: ByteSource, size: int) -> None:
        self.source, self.size = source, size
        self.reopen: Callable[[Path], DiskImage] | None = None  # opens the image in another process
        self.file_bytes = source.size

    @property
    def path(self) -> Path | None:
        """Path of the file; ``None`` for a reader."""
        return self.source.path

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """Yield the stored ranges between two positions of the disk, ascending and disjoint.

        All other ranges are zero. A stored range may be zero, too. By default the file contains the bytes of
        the disk, and the ranges that its file system has stored are yielded.
        """
        stop = self.size if stop is None else min(stop, self.size)
        for first, last in self._stored().data_ranges(start, stop):
            yield Extent(first, last - first, first)

    def file_span(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return start and end of the part of the file that contains a range of the disk.

        ``None`` if the file stores nothing of the range. Only for images with `own_layout`.
        """
        return start, stop

    def _stored(self) -> ByteSource:
        """Return the file of `Extent.stored`: the image file, or the converted copy."""
        return self.source

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range of the disk, which ends at the end of the disk as with a file.

        ValueError if the range is negative or longer than 1 GiB.
        """
        if offset < 0 or not 0 <= length <= READ_LIMIT:
            message = f"cannot read {length} bytes at {offset}: the length must be between 0 and {READ_LIMIT}"
            raise ValueError(message)
        stop = min(offset + length, self.size)
        if offset >= stop:
            return b""
        return self._assemble(offset, stop, list(self.extents(offset, stop)))

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill `buffer` with the disk's bytes at `offset`; bytes after the end of the disk are zero.

        This is faster than `read`, which allocates memory.
        """
        self._gather(offset, buffer, self.extents(offset, min(offset + len(buffer), self.size)))

    def stored_blocks(self, buffer: bytearray, *, first: int = 0, stop: int | None = None) -> Iterator[int]:
        """Read each stored block into `buffer`, and yield its index. A stored block may be zero.

        The length of `buffer` is the size of a block. Only blocks with ``first <= index < stop`` are read, so
        that several workers can share an image.
        """
        size = len(buffer)
        end = self.size if stop is None else min(stop * size, self.size)
        for index, pieces in self._pieces(size, first * size, end):
            self._gather(index * size, buffer, pieces)
            yield index

    def blocks(self, size: int = BLOCK_BYTES, *, first: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Yield the blocks of `size` bytes that contain a byte other than zero; `first`, `stop` as above."""
        if size < 1:
            raise ValueError(f"a block cannot have {size} bytes")
        zeros = bytes(size)
        end = self.size if stop is None else min(stop * size, self.size)
        for index, pieces in self._pieces(size, first * size, end):
            data = self._assemble(index * size, (index + 1) * size, pieces)
            if data != zeros:  # one memcmp, which stops at the first difference
                yield Block(index, data)

    def stamp(self) -> Stamp | None:
        """Return the stamp of the file; ``None`` for a reader."""
        return self.source.stamp()

    def plain_descriptor(self) -> int:
        """Return the converted copy as an open raw file, for another process; -1 without a conversion."""
        return -1

    def close(self) -> None:
        """Close the file."""
        self.source.close()

    def _pieces(self, size: int, start: int, stop: int) -> Iterator[tuple[int, list[Extent]]]:
        """Yield the index of each block with stored ranges, and those ranges."""
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
        """Return the bytes between two positions, given the stored ranges between them."""
        if len(pieces) == 1 and pieces[0].length == stop - start:
            return self._stored().read(pieces[0].stored, pieces[0].length)
        buffer = bytearray(stop - start)
        self._gather(start, buffer, pieces)
        return bytes(buffer)

    def _gather(self, start: int, buffer: bytearray, pieces: Iterable[Extent]) -> None:
        """Fill a buffer with the bytes from `start` on, given the stored ranges."""
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

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[Path], DiskImage], tuple[Path]]:
        if self.path is None or self.reopen is None:
            message = "an image that was opened from a reader cannot be sent to another process"
            raise TypeError(message)
        return self.reopen, (self.path.absolute(),)

    def __repr__(self) -> str:
        kind = " ".join(part for part in (self.subformat, self.format) if part)
        return f"<{kind} image {self.source.name}: {self.size} bytes>"
