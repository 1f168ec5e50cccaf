"""Read and write VHD images, fixed and dynamic."""

from __future__ import annotations

import hashlib
import re
import struct
import sys
from array import array
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Literal

from vmsnix_ops.disk.image import FIX, SECTOR, Block, DiskImage, Extent, damaged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from vmsnix_ops.disk.source import ByteSource
    from vmsnix_ops.errors import ImageFormatError


# The structures of a VHD file. All numbers are big-endian.
#
# Source of the field names, offsets, checksum and geometry: Microsoft, *Virtual Hard Disk Image Format
# Specification*, version 1.0 (October 2006).

FOOTER_COOKIE = b"conectix"
HEADER_COOKIE = b"cxsparse"
FOOTER_BYTES = 512
HEADER_BYTES = 1024
UNALLOCATED = 0xFFFFFFFF
NO_OFFSET = 0xFFFFFFFFFFFFFFFF
VERSION = 0x00010000
DEFAULT_BLOCK = 2 * 1024 * 1024

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
KINDS = {FIXED: "fixed", DYNAMIC: "dynamic", DIFFERENCING: "differencing"}

MAX_SIZE = 0xFF000000 * SECTOR
"""2040 GiB: the largest disk of a dynamic VHD."""

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_HEADER = struct.Struct(">8sQQIIII")
_CHECKSUM_AT = {FOOTER_BYTES: 64, HEADER_BYTES: 36}


@dataclass(frozen=True, slots=True)
class Footer:
    """The footer, and its copy at the start of a dynamic VHD. Sizes are in bytes.

    `current_size` is the size of the disk for Hyper-V and EC2. The size by the geometry may be smaller,
    because the number of cylinders is an integer. QEMU rounds the size of a new VHD up to a whole geometry.
    """

    features: int
    version: int
    data_offset: int
    timestamp: int
    creator_application: bytes
    creator_version: int
    creator_host: bytes
    original_size: int
    current_size: int
    cylinders: int
    heads: int
    sectors: int
    disk_type: int
    checksum: int
    identifier: bytes
    saved_state: int

    @classmethod
    def parse(cls, data: bytes) -> Footer:
        """Return the fields in 512 bytes, unchecked."""
        return cls(*_FOOTER.unpack_from(data)[1:])

    def pack(self) -> bytes:
        """Return the 512 bytes, with a new checksum."""
        return with_checksum(_FOOTER.pack(FOOTER_COOKIE, *astuple(self)).ljust(FOOTER_BYTES, b"\0"))


FOOTER_OFFSETS = {
    "cookie": 0, "version": 12, "data_offset": 16, "current_size": 48, "disk_type": 60, "checksum": 64,
}  # fmt: skip
"""Positions of the checked fields of the footer."""


@dataclass(frozen=True, slots=True)
class DynamicHeader:
    """The header of a dynamic VHD: where its block allocation table (BAT) is, and how large a block is."""

    data_offset: int
    table_offset: int
    version: int
    max_table_entries: int
    block_size: int
    checksum: int

    @classmethod
    def parse(cls, data: bytes) -> DynamicHeader:
        """Return the fields in 1024 bytes, unchecked."""
        return cls(*_HEADER.unpack_from(data)[1:])

    def pack(self) -> bytes:
        """Return the 1024 bytes, with a new checksum."""
        return with_checksum(_HEADER.pack(HEADER_COOKIE, *astuple(self)).ljust(HEADER_BYTES, b"\0"))


HEADER_OFFSETS = {
    "cookie": 0, "table_offset": 16, "version": 24, "max_table_entries": 28, "block_size": 32, "checksum": 36,
}  # fmt: skip
"""Positions of the checked fields of the dynamic header."""


def checksum(data: bytes) -> int:
    """Return the one's complement of the sum of the bytes of a footer or header, except its checksum."""
    at = _CHECKSUM_AT[len(data)]
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def with_checksum(data: bytes) -> bytes:
    """Return a footer or header with a new checksum."""
    at = _CHECKSUM_AT[len(data)]
    return data[:at] + checksum(data).to_bytes(4, "big") + data[at + 4 :]


def bitmap_bytes(block_size: int) -> int:
    """Return the size of the sector bitmap before a block: one bit for each sector, padded to whole sectors.

    >>> bitmap_bytes(2 * 1024 * 1024)
    512
    """
    return -(-block_size // (SECTOR * 8 * SECTOR)) * SECTOR


def geometry(sectors: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track of a disk (appendix of the specification).

    >>> geometry(8388608)
    (8322, 16, 63)
    """
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads, tracks = 255, 16, sectors // 255
    else:
        per_track = 17
        tracks = sectors // per_track
        heads = max((tracks + 1023) // 1024, 4)
        if tracks >= heads * 1024 or heads > 16:
            per_track, heads, tracks = 31, 16, sectors // 31
        if tracks >= heads * 1024:
            per_track, heads, tracks = 63, 16, sectors // 63
    return tracks // heads, heads, per_track


def geometry_size(size: int) -> int:
    """Round a size up to a whole geometry, as ``qemu-img`` does for a new VHD.

    Disks beyond the largest geometry (127.5 GiB) keep their size.

    >>> geometry_size(4096 * 1024 * 1024)
    4295467008
    """
    wanted = -(-size // SECTOR)
    if wanted >= 65535 * 16 * 255:
        return wanted * SECTOR
    trial = wanted
    while True:
        cylinders, heads, per_track = geometry(trial)
        if cylinders * heads * per_track >= wanted:
            return cylinders * heads * per_track * SECTOR
        trial += 1


MAX_BLOCKS = 2 * 1024 * 1024
"""Maximum number of blocks: 4 TiB in blocks of 2 MiB, with a table of 8 MiB."""

_ONES = re.compile("1+")


class FixedVhd(DiskImage):
    """A VHD with the bytes of the disk and a footer."""

    format, subformat = "vhd", "fixed"


class DynamicVhd(DiskImage):
    """A VHD with only the blocks that were written; `block_size` is their size in bytes."""

    format, subformat = "vhd", "dynamic"

    def __init__(self, source: ByteSource, size: int, block_size: int, table: array[int]) -> None:
        super().__init__(source, size)
        self.block_size, self._table = block_size, table
        self._bitmap_bytes = bitmap_bytes(block_size)

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """Yield the ranges of written sectors within each block."""
        end = self.size if stop is None else min(stop, self.size)
        if start >= end:
            return
        for index in range(start // self.block_size, -(-end // self.block_size)):
            sector = self._table[index]
            if sector == UNALLOCATED:
                continue
            first, at = index * self.block_size, sector * SECTOR
            whole = Extent(first, self.block_size, at + self._bitmap_bytes)
            for run_start, run_stop in self._written(
                at, max(start - first, 0), min(end - first, self.block_size)
            ):
                run = whole.part(first + run_start, first + run_stop)
                # The file may have holes in a written block, because qemu-img does not write zeros.
                for data, hole in self.source.data_ranges(run.stored, run.stored + run.length):
                    yield run.part(run.offset + data - run.stored, run.offset + hole - run.stored)

    def file_span(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return the part of the file with the bitmaps and sectors of a range of the disk."""
        first, last = sys.maxsize, 0
        for index in range(start // self.block_size, -(-stop // self.block_size)):
            if self._table[index] != UNALLOCATED:
                at = self._table[index] * SECTOR
                used = min(stop - index * self.block_size, self.block_size)
                first, last = min(first, at), max(last, at + self._bitmap_bytes + used)
        return (first, last) if last else None

    def _written(self, bitmap_at: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the written ranges between two positions of a block."""
        first_byte, last_byte = start // SECTOR // 8, -(-stop // (SECTOR * 8))
        bits = self.source.read(bitmap_at + first_byte, last_byte - first_byte)
        if bits.count(0xFF) == len(bits):
            yield start, stop
            return
        for run in _ONES.finditer(f"{int.from_bytes(bits, 'big'):0{len(bits) * 8}b}"):
            run_start = max((first_byte * 8 + run.start()) * SECTOR, start)
            run_stop = min((first_byte * 8 + run.end()) * SECTOR, stop)
            if run_start < run_stop:
                yield run_start, run_stop


def is_vhd(source: ByteSource, head: bytes) -> bool:
    """Return whether a file has the cookie of a VHD at its beginning or in its footer."""
    if head.startswith(FOOTER_COOKIE):
        return True
    at = source.size - FOOTER_BYTES
    return at >= 0 and source.read(at, len(FOOTER_COOKIE)) == FOOTER_COOKIE


def open_vhd(source: ByteSource, head: bytes) -> DiskImage:
    """Open a VHD, given its first 4096 bytes; refuse one that is damaged or a differencing disk."""
    at = source.size - FOOTER_BYTES
    tail = source.read(at, FOOTER_BYTES) if at >= 0 else b""
    if not tail.startswith(FOOTER_COOKIE):
        raise damaged(
            source.name, "VHD", "footer cookie", max(at, 0),
            "The file starts as a dynamic VHD but does not end as one: it is incomplete or damaged.",
        )  # fmt: skip
    footer = _check_footer(source, tail, at, "footer")
    if footer.disk_type == FIXED:
        return _open_fixed(source, footer)
    return _open_dynamic(source, head, footer)


def _check_footer(source: ByteSource, data: bytes, at: int, what: str) -> Footer:

    def wrong(field: str, why: str, fix: str = FIX) -> ImageFormatError:
        return damaged(source.name, "VHD", f"{what} {field}", at + FOOTER_OFFSETS[field], why, fix=fix)

    if not data.startswith(FOOTER_COOKIE):
        raise wrong("cookie", "The file ends with a VHD footer, but the copy at its start is missing.")
    footer = Footer.parse(data)
    if footer.checksum != checksum(data):
        why = f"It is {footer.checksum:#010x}, but the footer's bytes add up to {checksum(data):#010x}."
        raise wrong("checksum", why)
    if footer.version >> 16 != VERSION >> 16:
        raise wrong("version", f"It is {footer.version:#010x}; only version 1 of the format exists.")
    if footer.disk_type == DIFFERENCING:
        raise wrong(
            "disk_type",
            "It is a differencing disk: it contains only the differences from a parent in another file.",
            "Merge it with its parent first (in Hyper-V: Merge-VHD), or build the image whole.",
        )
    if footer.disk_type not in KINDS:
        raise wrong("disk_type", f"It is {footer.disk_type}, but must be 2 (fixed) or 3 (dynamic).")
    if footer.current_size == 0 or footer.current_size % SECTOR:
        raise wrong(
            "current_size", f"It is {footer.current_size} bytes, not a multiple of a {SECTOR}-byte sector."
        )
    return footer


def _open_fixed(source: ByteSource, footer: Footer) -> FixedVhd:
    data_bytes = source.size - FOOTER_BYTES
    if footer.current_size != data_bytes:
        kind = "larger" if data_bytes > footer.current_size else "smaller"
        why = f"It is {footer.current_size} bytes, but the file contains {data_bytes}: the image is {kind}."
        raise damaged(
            source.name, "VHD", "footer current_size", data_bytes + FOOTER_OFFSETS["current_size"], why
        )
    return FixedVhd(source, footer.current_size)


def _open_dynamic(source: ByteSource, head: bytes, footer: Footer) -> DynamicVhd:
    copy = _check_footer(source, head[:FOOTER_BYTES], 0, "footer copy")
    for field in ("current_size", "disk_type", "data_offset"):
        ours, theirs = getattr(footer, field), getattr(copy, field)
        if ours != theirs:
            why = f"The copy at the start of the file has {theirs}, the footer at its end has {ours}."
            raise damaged(source.name, "VHD", f"footer copy {field}", FOOTER_OFFSETS[field], why)
    end = source.size - FOOTER_BYTES
    header = _check_header(source, footer, end)
    count = -(-footer.current_size // header.block_size)
    table = _read_table(source, header, count)
    _check_table(source, footer, header, table, end)
    return DynamicVhd(source, footer.current_size, header.block_size, table[:count])


def _check_header(source: ByteSource, footer: Footer, end: int) -> DynamicHeader:
    at = footer.data_offset
    if at % SECTOR or at < FOOTER_BYTES or at + HEADER_BYTES > end:
        where = source.size - FOOTER_BYTES + FOOTER_OFFSETS["data_offset"]
        why = f"The dynamic header is at byte {at}, which is not a sector between the two footers."
        raise damaged(source.name, "VHD", "footer data_offset", where, why)
    data = source.read(at, HEADER_BYTES)

    def wrong(field: str, why: str) -> ImageFormatError:
        return damaged(source.name, "VHD", f"dynamic header {field}", at + HEADER_OFFSETS[field], why)

    if not data.startswith(HEADER_COOKIE):
        raise wrong("cookie", "The dynamic header does not start with 'cxsparse'.")
    header = DynamicHeader.parse(data)
    if header.checksum != checksum(data):
        why = f"It is {header.checksum:#010x}, but the header's bytes add up to {checksum(data):#010x}."
        raise wrong("checksum", why)
    if header.version >> 16 != VERSION >> 16:
        raise wrong("version", f"It is {header.version:#010x}; only version 1 of the format exists.")
    if header.block_size < SECTOR or header.block_size & (header.block_size - 1):
        raise wrong(
            "block_size", f"It is {header.block_size} bytes, not a power of two of at least {SECTOR}."
        )
    if footer.current_size > MAX_SIZE:
        where = end + FOOTER_OFFSETS["current_size"]
        why = f"It is {footer.current_size} bytes; the limit of a dynamic VHD is {MAX_SIZE}."
        raise damaged(source.name, "VHD", "footer current_size", where, why)
    if header.max_table_entries * header.block_size < footer.current_size:
        why = (
            f"{header.max_table_entries} blocks of {header.block_size} bytes are less than the disk's "
            f"{footer.current_size} bytes: one of these values is wrong."
        )
        raise wrong("max_table_entries", why)
    if header.max_table_entries > MAX_BLOCKS:
        why = f"It has {header.max_table_entries} blocks, but at most {MAX_BLOCKS} are supported."
        raise wrong("max_table_entries", why)
    table_end = header.table_offset + header.max_table_entries * 4
    if header.table_offset % SECTOR or header.table_offset < FOOTER_BYTES or table_end > end:
        why = (
            f"The table of {header.max_table_entries} blocks would be at bytes {header.table_offset} to "
            f"{table_end}, which is not between the two footers (the last one is at byte {end})."
        )
        raise wrong("table_offset", why)
    if header.table_offset < at + HEADER_BYTES and table_end > at:
        raise wrong("table_offset", "The block allocation table overlaps its header.")
    return header


def _read_table(source: ByteSource, header: DynamicHeader, count: int) -> array[int]:
    """Return the block allocation table; entries after the end of the disk must be unused."""
    table = array("I")  # four bytes wherever CPython runs
    table.frombytes(source.read(header.table_offset, header.max_table_entries * 4))
    if sys.byteorder == "little":
        table.byteswap()
    for index in range(count, len(table)):
        if table[index] != UNALLOCATED:
            why = (
                f"Block {index} has data, but the disk ends with block {count - 1}: its size field is "
                "smaller than the table."
            )
            raise damaged(source.name, "VHD", f"BAT entry {index}", header.table_offset + 4 * index, why)
    return table


def _check_table(
    source: ByteSource, footer: Footer, header: DynamicHeader, table: array[int], end: int
) -> None:

    def wrong(index: int, why: str) -> ImageFormatError:
        return damaged(source.name, "VHD", f"BAT entry {index}", header.table_offset + 4 * index, why)

    span = (bitmap_bytes(header.block_size) + header.block_size) // SECTOR
    # The disk may end within the last block, and the file may end there, too.
    last = -(-footer.current_size // header.block_size) - 1
    cut = (header.block_size * (last + 1) - footer.current_size) // SECTOR
    limit = end // SECTOR
    taken = [
        (0, FOOTER_BYTES // SECTOR, "the copy of the footer"),
        (footer.data_offset // SECTOR, HEADER_BYTES // SECTOR, "the dynamic header"),
        (header.table_offset // SECTOR, -(-header.max_table_entries * 4 // SECTOR), "the table"),
    ]
    order = [index for index, sector in enumerate(table) if sector != UNALLOCATED]
    order.sort(key=table.__getitem__)
    previous_end, previous = 0, -1
    for index in order:
        sector = table[index]
        length = span - cut if index == last else span
        if sector + length > limit:
            why = (
                f"Block {index} is at bytes {sector * SECTOR} to {(sector + length) * SECTOR}, but the "
                f"blocks end at {end}."
            )
            raise wrong(index, why)
        if sector < previous_end:
            why = f"Block {index} is at byte {sector * SECTOR}, where block {previous} already is."
            raise wrong(index, why)
        for start, sectors, what in taken:
            if sector < start + sectors and sector + length > start:
                raise wrong(index, f"Block {index} is at byte {sector * SECTOR}, where {what} is.")
        previous_end, previous = sector + length, index


# Write VHDs. The same input always gives the same bytes: the identifier of the disk derives from its content,
# and the timestamp is zero (2000-01-01).

# Some readers use either the size or the geometry, depending on the creator. With this one, QEMU's for images
# of an exact size, all of them use the size.
CREATOR = b"qem2"


def write_vhd(
    path: Path, blocks: Iterable[Block], *, size: int, kind: Literal["dynamic", "fixed"] = "dynamic"
) -> None:
    """Write a disk as a VHD; an existing file is replaced.

    `blocks` are the disk's content in blocks of 2 MiB, ascending, such as ``image.blocks(DEFAULT_BLOCK)``;
    other blocks are zero. `size` is a multiple of 512, at most 2040 GiB; `geometry_size` rounds it up as
    nixpkgs does. ``dynamic`` stores only the given blocks; ``fixed`` has the size of the disk, with holes.
    """
    if size <= 0 or size % SECTOR or size > MAX_SIZE:
        raise ValueError(f"the size of a VHD is {size}, but must be a multiple of {SECTOR} up to {MAX_SIZE}")
    count = -(-size // DEFAULT_BLOCK)
    content = hashlib.sha256(f"{kind} {size}".encode())
    table = [UNALLOCATED] * count
    table_at = FOOTER_BYTES + HEADER_BYTES
    bitmap = b"\xff" * bitmap_bytes(DEFAULT_BLOCK)
    with path.open("wb") as file:
        at, previous = table_at + -(-count * 4 // SECTOR) * SECTOR, -1
        for block in blocks:
            if len(block.data) != DEFAULT_BLOCK or not previous < block.index < count:
                found = f"block {block.index} of {len(block.data)} bytes"
                raise ValueError(f"{found} does not fit after block {previous}")
            previous = block.index
            content.update(block.index.to_bytes(8, "big"))
            content.update(block.data)
            if kind == "dynamic":
                table[block.index] = at // SECTOR
                file.seek(at)
                file.write(bitmap)
                file.write(block.data)
                at += len(bitmap) + DEFAULT_BLOCK
            else:
                file.seek(block.index * DEFAULT_BLOCK)
                file.write(memoryview(block.data)[: size - block.index * DEFAULT_BLOCK])
        footer = _footer(size, kind, content.digest()[:16])
        file.seek(at if kind == "dynamic" else size)
        file.write(footer)
        if kind == "dynamic":
            header = DynamicHeader(NO_OFFSET, table_at, VERSION, count, DEFAULT_BLOCK, 0)
            entries = b"".join(sector.to_bytes(4, "big") for sector in table)
            file.seek(0)
            file.write(footer + header.pack() + entries.ljust(-(-len(entries) // SECTOR) * SECTOR, b"\xff"))


def _footer(size: int, kind: str, identifier: bytes) -> bytes:
    cylinders, heads, sectors = geometry(size // SECTOR)
    return Footer(
        features=2,  # a reserved bit that is always set
        version=VERSION,
        data_offset=FOOTER_BYTES if kind == "dynamic" else NO_OFFSET,
        timestamp=0,
        creator_application=CREATOR,
        creator_version=VERSION,
        creator_host=b"Wi2k",
        original_size=size,
        current_size=size,
        cylinders=cylinders,
        heads=heads,
        sectors=sectors,
        disk_type=DYNAMIC if kind == "dynamic" else FIXED,
        checksum=0,
        identifier=identifier,
        saved_state=0,
    ).pack()
