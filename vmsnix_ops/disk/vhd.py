"""VHD images, fixed and dynamic.

A **fixed** VHD is the disk followed by a footer. A **dynamic** VHD stores only the blocks that were ever
written: a copy of the footer, a header, the block allocation table (BAT: for each block the sector at which
it starts in the file), the blocks (each led by a bitmap of its sectors; a sector whose bit is 0 was never
written and reads as zeros), the footer.

Decisions:

- The size of the disk is the footer's ``current_size``, as for Hyper-V and EC2, never the product of its
  geometry.
- Both footers of a dynamic VHD must be right. A damaged one could be replaced by the other, but AWS would
  refuse the file, and damage in one place is a reason to doubt the rest.
- A fixed VHD is as long as its ``current_size`` says: a longer file would lose its end silently, a shorter
  one was cut.

Source: Microsoft, *Virtual Hard Disk Image Format Specification*, version 1.0 (October 2006).
"""

from __future__ import annotations

import re
import sys
from array import array
from typing import TYPE_CHECKING

from vmsnix_ops.disk.damage import damaged
from vmsnix_ops.disk.image import SECTOR, DiskImage, Extent
from vmsnix_ops.disk.vhd_layout import (
    DIFFERENCING,
    FIXED,
    FOOTER_BYTES,
    FOOTER_COOKIE,
    FOOTER_OFFSETS,
    HEADER_BYTES,
    HEADER_COOKIE,
    HEADER_OFFSETS,
    KINDS,
    MAX_SIZE,
    UNALLOCATED,
    VERSION,
    DynamicHeader,
    Footer,
    bitmap_bytes,
    checksum,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.disk.source import ByteSource
    from vmsnix_ops.errors import ImageFormatError

MAX_BLOCKS = 2 * 1024 * 1024
"""Most blocks of a table that is read: 4 TiB of the usual blocks of 2 MiB; the table takes 8 MiB then."""

_ONES = re.compile("1+")


class FixedVhd(DiskImage):
    """A VHD that is the disk followed by a footer."""

    format, subformat = "vhd", "fixed"

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """Yield what the file system has stored of the disk."""
        end = self.size if stop is None else min(stop, self.size)
        for first, last in self.source.data_ranges(start, end):
            yield Extent(first, last - first, first)


class DynamicVhd(DiskImage):
    """A VHD that stores only the blocks which were written.

    Attributes
    ----------
    block_size
        Bytes of a block of the file (not of EBS).
    """

    format, subformat = "vhd", "dynamic"

    def __init__(self, source: ByteSource, size: int, block_size: int, table: array[int]) -> None:
        super().__init__(source, size)
        self.block_size, self._table = block_size, table
        self._bitmap_bytes = bitmap_bytes(block_size)

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """Yield the sectors that were written, as runs within a block."""
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
                # A written block may have holes in the file: qemu-img leaves them where it found zeros.
                for data, hole in self.source.data_ranges(run.stored, run.stored + run.length):
                    yield run.part(run.offset + data - run.stored, run.offset + hole - run.stored)

    def file_span(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return where the bitmaps and the sectors of a range of the disk lie in the file."""
        first, last = sys.maxsize, 0
        for index in range(start // self.block_size, -(-stop // self.block_size)):
            if self._table[index] != UNALLOCATED:
                at = self._table[index] * SECTOR
                used = min(stop - index * self.block_size, self.block_size)
                first, last = min(first, at), max(last, at + self._bitmap_bytes + used)
        return (first, last) if last else None

    def _written(self, bitmap_at: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield what was written between two positions of a block, given where its bitmap is."""
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


def looks_like_vhd(source: ByteSource, head: bytes) -> bool:
    """Tell whether a file begins with the cookie of a VHD, or has it where the footer would stand."""
    if head.startswith(FOOTER_COOKIE):
        return True
    at = source.size - FOOTER_BYTES
    return at >= 0 and source.read(at, len(FOOTER_COOKIE)) == FOOTER_COOKIE


def open_vhd(source: ByteSource, head: bytes) -> DiskImage:
    """Return the image of a file that bears the mark of a VHD.

    Parameters
    ----------
    source
        The bytes.
    head
        The first 4096 of them, or all when there are fewer.

    Raises
    ------
    ImageFormatError
        When the file contradicts the specification, names a parent, or was cut short.
    """
    at = source.size - FOOTER_BYTES
    tail = source.read(at, FOOTER_BYTES) if at >= 0 else b""
    if not tail.startswith(FOOTER_COOKIE):
        raise damaged(
            source.name, "VHD", "footer cookie", max(at, 0),
            "The file begins as a dynamic VHD but does not end as one: it was cut short, or damaged.",
        )  # fmt: skip
    footer = _check_footer(source, tail, at, "footer")
    if footer.disk_type == FIXED:
        return _open_fixed(source, footer)
    return _open_dynamic(source, head, footer)


def _check_footer(source: ByteSource, data: bytes, at: int, what: str) -> Footer:
    """Return the fields of a footer, after checking those that stand for themselves."""

    def wrong(field: str, why: str) -> ImageFormatError:
        return damaged(source.name, "VHD", f"{what} {field}", at + FOOTER_OFFSETS[field], why)

    if not data.startswith(FOOTER_COOKIE):
        raise wrong(
            "cookie", "The end of the file is a VHD's footer, but its copy at the start is not there."
        )
    footer = Footer.parse(data)
    if footer.checksum != checksum(data):
        why = f"It is {footer.checksum:#010x}, but the footer's bytes add up to {checksum(data):#010x}."
        raise wrong("checksum", why)
    if footer.version >> 16 != VERSION >> 16:
        raise wrong("version", f"It is {footer.version:#010x}; only version 1 of the format exists.")
    if footer.disk_type == DIFFERENCING:
        raise damaged(
            source.name, "VHD", f"{what} disk_type", at + FOOTER_OFFSETS["disk_type"],
            "It is a differencing disk: it holds only what differs from a parent in another file.",
            cure="Merge it with its parent first (in Hyper-V: Merge-VHD), or build the image whole.",
        )  # fmt: skip
    if footer.disk_type not in KINDS:
        raise wrong("disk_type", f"It is {footer.disk_type}; a fixed disk has 2, a dynamic one 3.")
    if footer.current_size == 0 or footer.current_size % SECTOR:
        raise wrong(
            "current_size", f"It is {footer.current_size} bytes, not a multiple of a {SECTOR}-byte sector."
        )
    return footer


def _open_fixed(source: ByteSource, footer: Footer) -> FixedVhd:
    data_bytes = source.size - FOOTER_BYTES
    if footer.current_size != data_bytes:
        kind = "larger" if data_bytes > footer.current_size else "smaller"
        why = f"It says {footer.current_size} bytes, but the file holds {data_bytes}: the image is {kind}."
        raise damaged(
            source.name, "VHD", "footer current_size", data_bytes + FOOTER_OFFSETS["current_size"], why
        )
    return FixedVhd(source, footer.current_size)


def _open_dynamic(source: ByteSource, head: bytes, footer: Footer) -> DynamicVhd:
    copy = _check_footer(source, head[:FOOTER_BYTES], 0, "footer copy")
    for field in ("current_size", "disk_type", "data_offset"):
        ours, theirs = getattr(footer, field), getattr(copy, field)
        if ours != theirs:
            why = f"The copy at the start of the file says {theirs}, the footer at its end says {ours}."
            raise damaged(source.name, "VHD", f"footer copy {field}", FOOTER_OFFSETS[field], why)
    end = source.size - FOOTER_BYTES
    header = _check_header(source, footer, end)
    count = -(-footer.current_size // header.block_size)
    table = _read_table(source, header, count)
    _check_table(source, footer, header, table, end)
    return DynamicVhd(source, footer.current_size, header.block_size, table[:count])


def _check_header(source: ByteSource, footer: Footer, end: int) -> DynamicHeader:
    """Return the dynamic header, after checking that the table it names can be read."""
    at = footer.data_offset
    if at % SECTOR or at < FOOTER_BYTES or at + HEADER_BYTES > end:
        where = source.size - FOOTER_BYTES + FOOTER_OFFSETS["data_offset"]
        why = f"It puts the dynamic header at byte {at}, which is not a sector between the two footers."
        raise damaged(source.name, "VHD", "footer data_offset", where, why)
    data = source.read(at, HEADER_BYTES)

    def wrong(field: str, why: str) -> ImageFormatError:
        return damaged(source.name, "VHD", f"dynamic header {field}", at + HEADER_OFFSETS[field], why)

    if not data.startswith(HEADER_COOKIE):
        raise wrong("cookie", "The dynamic header does not begin with 'cxsparse'.")
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
        why = f"It says {footer.current_size} bytes; a dynamic VHD holds {MAX_SIZE} at most."
        raise damaged(source.name, "VHD", "footer current_size", where, why)
    if header.max_table_entries * header.block_size < footer.current_size:
        why = (
            f"{header.max_table_entries} blocks of {header.block_size} bytes are less than the disk's "
            f"{footer.current_size} bytes: one of the two lies."
        )
        raise wrong("max_table_entries", why)
    if header.max_table_entries > MAX_BLOCKS:
        why = f"It names {header.max_table_entries} blocks; more than {MAX_BLOCKS} are not supported."
        raise wrong("max_table_entries", why)
    table_end = header.table_offset + header.max_table_entries * 4
    if header.table_offset % SECTOR or header.table_offset < FOOTER_BYTES or table_end > end:
        why = (
            f"The table of {header.max_table_entries} blocks would lie at bytes {header.table_offset} to "
            f"{table_end}, which is not between the two footers (the last one is at byte {end})."
        )
        raise wrong("table_offset", why)
    if header.table_offset < at + HEADER_BYTES and table_end > at:
        raise wrong("table_offset", "The block allocation table overlaps the header that names it.")
    return header


def _read_table(source: ByteSource, header: DynamicHeader, count: int) -> array[int]:
    """Return the block allocation table; entries beyond the disk's end must be unused."""
    table = array("I")  # four bytes wherever CPython runs
    table.frombytes(source.read(header.table_offset, header.max_table_entries * 4))
    if sys.byteorder == "little":
        table.byteswap()
    for index in range(count, len(table)):
        if table[index] != UNALLOCATED:
            why = (
                f"Block {index} holds data, but the disk ends with block {count - 1}: "
                "its size field says less than the table."
            )
            raise damaged(source.name, "VHD", f"BAT entry {index}", header.table_offset + 4 * index, why)
    return table


def _check_table(
    source: ByteSource, footer: Footer, header: DynamicHeader, table: array[int], end: int
) -> None:
    """Check that every block lies in the file, and on nothing else."""

    def wrong(index: int, why: str) -> ImageFormatError:
        return damaged(source.name, "VHD", f"BAT entry {index}", header.table_offset + 4 * index, why)

    span = (bitmap_bytes(header.block_size) + header.block_size) // SECTOR
    # The last block may stand for less than a block of disk; no more than that need be in the file.
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
                f"It puts block {index} at bytes {sector * SECTOR} to {(sector + length) * SECTOR}, "
                f"but the blocks end at {end}."
            )
            raise wrong(index, why)
        if sector < previous_end:
            why = f"It puts block {index} at byte {sector * SECTOR}, where block {previous} already is."
            raise wrong(index, why)
        for start, sectors, what in taken:
            if sector < start + sectors and sector + length > start:
                raise wrong(index, f"It puts block {index} at byte {sector * SECTOR}, on top of {what}.")
        previous_end, previous = sector + length, index
