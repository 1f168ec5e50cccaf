"""The way in: `open_image` tells what a file is from its bytes, and opens it.

The name of a file says nothing here. A VHD called ``disk.raw`` is opened as the VHD that it is; fed to AWS as
raw, it would have become an AMI that never boots.

What counts as a raw disk: whole sectors, with the mark of nothing else. A disk without partition table is
accepted (blank ones and bare file systems exist, and nobody can tell random from encrypted); compressed
files, archives, programs, text and disk formats that cannot be read here are refused by name. With a
partition table in the first sector a file is a disk whatever its other bytes look like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.disk import raw, signatures, vhd, vhd_layout
from vmsnix_ops.disk.damage import damaged
from vmsnix_ops.disk.image import SECTOR, Block, DiskImage, Extent
from vmsnix_ops.disk.source import BinaryReader, ByteSource, open_source
from vmsnix_ops.errors import ImageFormatError
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BinaryReader", "Block", "DiskImage", "Extent", "open_image"]

HEAD = 4096
"""Bytes looked at to tell a format."""


def open_image(source: Path | str | BinaryReader | ByteSource) -> DiskImage:
    """Open a disk image of any known format, which its bytes tell.

    Parameters
    ----------
    source
        A path, or a seekable binary reader (which stays open when the image is closed).

    Returns
    -------
    DiskImage
        A context manager. Opening reads headers and tables only: milliseconds, whatever the size.

    Raises
    ------
    ImageNotFoundError
        There is no such file, or it is a folder.
    ImageFormatError
        The bytes are no disk image, or a damaged one; names the offset and the field.
    ImageError
        The file cannot be read.
    ToolMissingError
        The format is qcow2, VHDX or VMDK, and ``qemu-img`` is not installed.

    Examples
    --------
    >>> import io
    >>> with open_image(io.BytesIO(bytes(1024) + b"x" + bytes(1023))) as image:
    ...     image.format, image.size, [block.index for block in image.blocks(512)]
    ('raw', 2048, [2])
    """
    data = open_source(source)
    data.record(True)
    try:
        return _open(data)
    except BaseException:
        data.close()
        raise
    finally:
        data.record(False)


def _open(source: ByteSource) -> DiskImage:
    """Choose the format; the order matters where a file bears two marks."""
    if source.size == 0:
        raise ImageFormatError(
            f"{source.name} is empty.",
            why="It has 0 bytes; a copy or a build that failed leaves such a file.",
            cure="Build the image again, or copy it again.",
            offset=0,
            field="end of file",
        )
    head = source.read(0, min(HEAD, source.size))
    if vhd.looks_like_vhd(source, head):
        return vhd.open_vhd(source, head)
    _refuse_old_footer(source)
    if head.startswith((signatures.QCOW2, signatures.VHDX, signatures.VMDK)):
        from vmsnix_ops.disk import qemu

        return qemu.open_with_qemu(source, head)
    if not raw.has_partition_table(head):
        _refuse_foreign(source, head)
    return raw.open_raw(source, head)


def _refuse_foreign(source: ByteSource, head: bytes) -> None:
    """Say what a file is that is no disk."""
    found = signatures.foreign(head)
    if found is not None:
        offset, what, cure = found
        raise ImageFormatError(
            f"{source.name} is {what}, not a disk image.",
            why=f"Its bytes at {offset} say so; the name of a file does not count.",
            cure=cure,
            offset=offset,
            field="signature",
        )
    if source.size < SECTOR:
        why = f"It has {counted(source.size, 'byte')}, less than one sector of {SECTOR}."
        raise damaged(source.name, "disk", "end of file", source.size, why)


def _refuse_old_footer(source: ByteSource) -> None:
    """Refuse the footer of 511 bytes that Virtual PC wrote before 2004; a later one has 512."""
    at = source.size - 511
    if source.size % SECTOR == SECTOR - 1 and source.read(at, 8) == vhd_layout.FOOTER_COOKIE:
        raise damaged(
            source.name, "VHD", "footer", at,
            "Its footer has 511 bytes instead of 512, as versions of Virtual PC before 2004 wrote it.",
            cure="Convert it with a tool of that time, or build the image again.",
        )  # fmt: skip
