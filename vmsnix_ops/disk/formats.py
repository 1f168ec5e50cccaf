"""Open a disk image of any format: `open_image` detects the format from the bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.disk import signatures, vhd
from vmsnix_ops.disk.firmware import MBR_ENTRIES, MBR_ENTRY, PROTECTIVE
from vmsnix_ops.disk.image import SECTOR, DiskImage, check_disk_size, damaged
from vmsnix_ops.disk.source import BinaryReader, ByteSource, open_source
from vmsnix_ops.errors import ImageFormatError
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from pathlib import Path

HEAD = 4096
"""Bytes at the beginning of a file by which its format is detected."""

# Raw images: the file contains the bytes of the disk.
#
# A raw image has no header. So a file is a raw image if it has no other format (`signatures`), has whole
# sectors, and its partitions end within the file. The last check finds incomplete copies, also of a fixed
# VHD, which has its footer at the end.


class RawImage(DiskImage):
    """A file with the bytes of a disk. Holes of the file are not read."""

    format = "raw"


def has_partition_table(head: bytes) -> bool:
    """Return whether the first sector is a master boot record: signature, four entries with valid status."""
    return (
        len(head) >= SECTOR
        and head[510:512] == b"\x55\xaa"
        and all(head[at] in (0x00, 0x80) for at in MBR_ENTRIES)
    )


def open_raw(source: ByteSource, head: bytes) -> RawImage:
    """Open a file as a raw image, given its first two sectors or more.

    A file without whole sectors, or that ends within a partition, is refused.
    """
    if source.size % SECTOR:
        raise damaged(
            source.name, "raw", "end of file", source.size,
            f"A raw disk is a multiple of {SECTOR} bytes, but this file has {source.size} bytes. It is not "
            "of another known format either.",
            fix="If the copy is incomplete, copy it again. If this is not a disk image, use the right file.",
        )  # fmt: skip
    if has_partition_table(head):
        _check_partitions(source, head)
    return RawImage(source, source.size)


def _check_partitions(source: ByteSource, head: bytes) -> None:
    fix = "The file is probably incomplete: copy it again, or build the image again."
    for number, at in enumerate(MBR_ENTRIES, 1):
        _status, kind, first, count = MBR_ENTRY.unpack_from(head, at)
        end = (first + count) * SECTOR
        if kind not in (0, PROTECTIVE) and end > source.size:
            why = f"Partition {number} ends at byte {end}, but the file ends at byte {source.size}."
            raise damaged(source.name, "raw", f"partition {number} size", at + 12, why, fix=fix)
    if head[SECTOR : SECTOR + 8] == b"EFI PART" and len(head) >= SECTOR + 40:
        backup = int.from_bytes(head[SECTOR + 32 : SECTOR + 40], "little")
        if (backup + 1) * SECTOR > source.size:
            why = f"The second table is at sector {backup}, but the file has {source.size // SECTOR} sectors."
            raise damaged(source.name, "raw", "GPT alternate LBA", SECTOR + 32, why, fix=fix)


def open_image(source: Path | str | BinaryReader | ByteSource) -> DiskImage:
    """Open a disk image; its format is detected from its bytes. Only headers and tables are read.

    The caller closes a reader. A file that is not a disk image is refused with the offset and the field that
    are wrong; qcow2, VHDX and VMDK need ``qemu-img``.

    >>> import io
    >>> with open_image(io.BytesIO(bytes(1024) + b"x" + bytes(1023))) as image:
    ...     image.format, image.size, [block.index for block in image.blocks(512)]
    ('raw', 2048, [2])
    """
    data = open_source(source)
    data.record(True)
    try:
        image = _open(data)
        check_disk_size(data.name, image.size)
    except BaseException:
        data.close()
        raise
    finally:
        data.record(False)
    image.reopen = open_image
    return image


def _open(source: ByteSource) -> DiskImage:
    """Detect the format. The order matters for a file with two signatures."""
    if source.size == 0:
        raise ImageFormatError(
            f"{source.name} is empty.",
            why="It has 0 bytes, as after a failed copy or build.",
            fix="Build the image again, or copy it again.",
            offset=0,
            field="end of file",
        )
    head = source.read(0, min(HEAD, source.size))
    if vhd.is_vhd(source, head):
        return vhd.open_vhd(source, head)
    _refuse_old_footer(source)
    if head.startswith((signatures.QCOW2, signatures.VHDX, signatures.VMDK)):
        from vmsnix_ops.disk import qemu

        return qemu.open_with_qemu(source, head)
    if not has_partition_table(head):
        _refuse_foreign(source, head)
    return open_raw(source, head)


def _refuse_foreign(source: ByteSource, head: bytes) -> None:
    """Refuse a file of a format that is not a disk image, and a file of less than a sector."""
    found = signatures.foreign(head)
    if found is not None:
        offset, what, fix = found
        raise ImageFormatError(
            f"{source.name} is {what}, not a disk image.",
            why=f"Its bytes at {offset} identify it; the file name is not considered.",
            fix=fix,
            offset=offset,
            field="signature",
        )
    if source.size < SECTOR:
        why = f"It has {counted(source.size, 'byte')}, less than one sector of {SECTOR}."
        raise damaged(source.name, "disk", "end of file", source.size, why)


def _refuse_old_footer(source: ByteSource) -> None:
    """Refuse a VHD with a footer of 511 bytes, as Virtual PC wrote it before 2004."""
    at = source.size - 511
    if source.size % SECTOR == SECTOR - 1 and source.read(at, 8) == vhd.FOOTER_COOKIE:
        raise damaged(
            source.name, "VHD", "footer", at,
            "Its footer has 511 bytes instead of 512, as versions of Virtual PC before 2004 wrote it.",
            fix="Convert it with a tool of that time, or build the image again.",
        )  # fmt: skip
