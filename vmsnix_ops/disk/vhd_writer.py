"""Writes VHDs, dynamic and fixed. The same input gives the same bytes, on any machine and at any time.

The identifier of the disk derives from its content; its timestamp is zero, which is 2000-01-01 in VHDs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from vmsnix_ops.disk.image import SECTOR, Block
from vmsnix_ops.disk.vhd_layout import (
    DEFAULT_BLOCK,
    DYNAMIC,
    FIXED,
    FOOTER_BYTES,
    HEADER_BYTES,
    MAX_SIZE,
    NO_OFFSET,
    UNALLOCATED,
    VERSION,
    DynamicHeader,
    Footer,
    bitmap_bytes,
    geometry,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Readers that know a VHD's creator decide by this name whether the size or the geometry counts. This one,
# QEMU's own for images of an exact size, makes all of them take the size.
CREATOR = b"qem2"


def write_vhd(
    path: Path, blocks: Iterable[Block], *, size: int, kind: Literal["dynamic", "fixed"] = "dynamic"
) -> None:
    """Write a disk as a VHD.

    Parameters
    ----------
    path
        The file to write; replaced when it is there.
    blocks
        The disk's content in blocks of 2 MiB, ascending; ``image.blocks(DEFAULT_BLOCK)`` of an opened image,
        for example. Blocks that are left out are zero.
    size
        Bytes of the disk, a multiple of 512; taken as they are (`vhd_layout.geometry_size` rounds up as
        nixpkgs' images do).
    kind
        ``dynamic`` stores only the given blocks; ``fixed`` is as long as the disk, with holes where nothing
        was given.

    Raises
    ------
    ValueError
        When the size is not a multiple of 512 or beyond 2040 GiB, or a block does not fit.
    """
    if size <= 0 or size % SECTOR or size > MAX_SIZE:
        message = f"a VHD of {size} bytes cannot be: it must be a multiple of {SECTOR} up to {MAX_SIZE}"
        raise ValueError(message)
    count = -(-size // DEFAULT_BLOCK)
    content = hashlib.sha256(f"{kind} {size}".encode())
    table = [UNALLOCATED] * count
    table_at = FOOTER_BYTES + HEADER_BYTES
    bitmap = b"\xff" * bitmap_bytes(DEFAULT_BLOCK)
    with path.open("wb") as file:
        at, previous = table_at + -(-count * 4 // SECTOR) * SECTOR, -1
        for block in blocks:
            if len(block.data) != DEFAULT_BLOCK or not previous < block.index < count:
                message = (
                    f"block {block.index} of {len(block.data)} bytes does not fit after block {previous}"
                )
                raise ValueError(message)
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
    """Return the footer of a disk."""
    cylinders, heads, sectors = geometry(size // SECTOR)
    return Footer(
        features=2,  # a reserved bit that the specification wants set
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
