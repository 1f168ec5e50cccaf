"""The structures of a VHD file, as bytes and as records.

Source of the field names, offsets, checksum and geometry: Microsoft, *Virtual Hard Disk Image Format
Specification*, version 1.0 (October 2006). All numbers in a VHD are big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FOOTER_COOKIE = b"conectix"
HEADER_COOKIE = b"cxsparse"
FOOTER_BYTES = 512
HEADER_BYTES = 1024
SECTOR = 512
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
    """The footer, and its copy at the start of a dynamic VHD. Sizes in bytes.

    `current_size` is the size of the disk: what Hyper-V and EC2 go by. The product of the geometry may be
    less, because cylinders are whole; QEMU rounds the size up to a whole geometry when it creates a VHD.
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
        """Read the fields from 512 bytes; checks nothing."""
        return cls(*_FOOTER.unpack_from(data)[1:])

    def pack(self) -> bytes:
        """Return the 512 bytes, with the checksum put right."""
        fields = (
            FOOTER_COOKIE, self.features, self.version, self.data_offset, self.timestamp,
            self.creator_application, self.creator_version, self.creator_host, self.original_size,
            self.current_size, self.cylinders, self.heads, self.sectors, self.disk_type, 0, self.identifier,
            self.saved_state,
        )  # fmt: skip
        return with_checksum(_FOOTER.pack(*fields).ljust(FOOTER_BYTES, b"\0"))


FOOTER_OFFSETS = {
    "cookie": 0, "version": 12, "data_offset": 16, "current_size": 48, "disk_type": 60, "checksum": 64,
}  # fmt: skip
"""Where the fields of the footer stand that can be wrong, in bytes from its start."""


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
        """Read the fields from 1024 bytes; checks nothing."""
        return cls(*_HEADER.unpack_from(data)[1:])

    def pack(self) -> bytes:
        """Return the 1024 bytes, with the checksum put right."""
        fields = (
            self.data_offset,
            self.table_offset,
            self.version,
            self.max_table_entries,
            self.block_size,
            0,
        )
        return with_checksum(_HEADER.pack(HEADER_COOKIE, *fields).ljust(HEADER_BYTES, b"\0"))


HEADER_OFFSETS = {
    "cookie": 0, "table_offset": 16, "version": 24, "max_table_entries": 28, "block_size": 32, "checksum": 36,
}  # fmt: skip
"""Where the fields of the dynamic header stand, in bytes from its start."""


def checksum(data: bytes) -> int:
    """Return the one's complement of the sum of a footer's or header's bytes, without the checksum's own."""
    at = _CHECKSUM_AT[len(data)]
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def with_checksum(data: bytes) -> bytes:
    """Return a footer or header with its checksum field filled in."""
    at = _CHECKSUM_AT[len(data)]
    return data[:at] + checksum(data).to_bytes(4, "big") + data[at + 4 :]


def bitmap_bytes(block_size: int) -> int:
    """Return how long the sector bitmap in front of a block is: a bit a sector, padded to whole sectors.

    >>> bitmap_bytes(2 * 1024 * 1024)
    512
    """
    return -(-block_size // (SECTOR * 8 * SECTOR)) * SECTOR


def geometry(sectors: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track for a disk of so many sectors (the format's appendix).

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
    """Return the least size that is a whole geometry and holds `size` bytes, as ``qemu-img`` makes new VHDs.

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
