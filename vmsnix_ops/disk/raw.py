"""Raw images: the file is the disk, byte for byte.

A raw image has no header, so it cannot be recognised, only not taken for anything else (`signatures` knows
those). What can be told is checked: a disk is whole sectors, and a partition table never reaches beyond the
end of its disk. The second check is what finds a copy that was cut short, be it of a raw image or of a fixed
VHD that lost its footer.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmsnix_ops.disk.damage import damaged
from vmsnix_ops.disk.image import SECTOR, DiskImage, Extent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.disk.source import ByteSource

_PARTITION = struct.Struct("<B3xB3xII")
PROTECTIVE = 0xEE
"""Type of the entry that stands for a whole GPT; its size is often a lie on purpose."""


class RawImage(DiskImage):
    """The bytes of a file as a disk. Holes that the file system knows of are never read."""

    format = "raw"

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """Yield what the file system has stored."""
        end = self.size if stop is None else min(stop, self.size)
        for first, last in self.source.data_ranges(start, end):
            yield Extent(first, last - first, first)


def has_partition_table(head: bytes) -> bool:
    """Tell whether the first sector is a master boot record: signature, four entries with a right status."""
    return (
        len(head) >= SECTOR
        and head[510:512] == b"\x55\xaa"
        and all(head[at] in (0x00, 0x80) for at in (446, 462, 478, 494))
    )


def open_raw(source: ByteSource, head: bytes) -> RawImage:
    """Return the image of a file that is nothing else.

    Parameters
    ----------
    source
        The bytes.
    head
        The first two sectors of them, or more.

    Raises
    ------
    ImageFormatError
        When the file is not whole sectors, or ends before its partitions do.
    """
    if source.size % SECTOR:
        raise damaged(
            source.name, "raw", "end of file", source.size,
            f"A raw disk is a multiple of {SECTOR} bytes, and this file of {source.size} bytes is not; it "
            "bears the mark of no other known format either.",
            cure="If the copy was cut short, copy it again; if it is no disk image, name the right file.",
        )  # fmt: skip
    if has_partition_table(head):
        _check_partitions(source, head)
    return RawImage(source, source.size)


def _check_partitions(source: ByteSource, head: bytes) -> None:
    """Refuse a disk that ends before its partition table says that it does."""
    cure = "The file was probably cut short: copy it again, or build the image again."
    for number in range(4):
        at = 446 + 16 * number
        _status, kind, first, count = _PARTITION.unpack_from(head, at)
        end = (first + count) * SECTOR
        if kind not in (0, PROTECTIVE) and end > source.size:
            why = f"Partition {number + 1} ends at byte {end}, the file already at byte {source.size}."
            raise damaged(source.name, "raw", f"partition {number + 1} size", at + 12, why, cure=cure)
    if head[SECTOR : SECTOR + 8] == b"EFI PART" and len(head) >= SECTOR + 40:
        backup = int.from_bytes(head[SECTOR + 32 : SECTOR + 40], "little")
        if (backup + 1) * SECTOR > source.size:
            why = (
                f"The second table lies at sector {backup}, but the file has {source.size // SECTOR} sectors."
            )
            raise damaged(source.name, "raw", "GPT alternate LBA", SECTOR + 32, why, cure=cure)
