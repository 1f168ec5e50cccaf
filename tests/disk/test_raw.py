"""A raw image has the bytes of its disk; holes are skipped, and an incomplete copy is found."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import pytest

from tests.disk.images import BLOCK, MIB, qemu_make, scattered, whole, write_raw
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.image import Block
from vmsnix_ops.errors import ImageFormatError

if TYPE_CHECKING:
    from pathlib import Path


def partitioned(size: int, *, start: int, sectors: int, kind: int = 0x83) -> bytes:
    """Return a disk with one partition."""
    disk = bytearray(size)
    struct.pack_into("<B3xB3xII", disk, 446, 0x80, kind, start, sectors)
    disk[510:512] = b"\x55\xaa"
    return bytes(disk)


def test_a_raw_disk_has_the_bytes_of_its_file(tmp_path: Path) -> None:
    disk = scattered(5 * MIB + 512)
    assert whole(write_raw(tmp_path / "disk", disk)) == disk


def test_a_hole_of_100_gib_is_not_read(tmp_path: Path) -> None:
    size = 100 << 30
    with (tmp_path / "disk").open("wb") as file:
        file.seek(size // 2)
        file.write(b"x")
        file.truncate(size)
    with open_image(tmp_path / "disk") as image:
        assert list(image.blocks()) == [Block(size // 2 // BLOCK, b"x".ljust(BLOCK, b"\0"))]
        assert len(list(image.stored_blocks(bytearray(BLOCK)))) <= 2


def test_a_stored_zero_block_is_not_yielded(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4 * BLOCK - 1) + b"x")
    with open_image(tmp_path / "disk") as image:
        assert [block.index for block in image.blocks()] == [3]
        assert list(image.stored_blocks(bytearray(BLOCK))) == [0, 1, 2, 3]


def test_a_disk_that_ends_within_a_partition_is_refused(tmp_path: Path) -> None:
    disk = partitioned(4 * MIB, start=2048, sectors=6144)
    with open_image(io.BytesIO(disk)) as image:
        assert image.size == 4 * MIB
    with pytest.raises(ImageFormatError, match="Partition 1 ends at byte 4194304") as caught:
        open_image(io.BytesIO(disk[:-512]))
    assert (caught.value.offset, caught.value.field) == (458, "partition 1 size")


def test_a_fixed_vhd_without_its_end_is_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", partitioned(4 * MIB, start=2048, sectors=6144))
    image = qemu_make(tmp_path / "disk.vhd", raw, "vpc", "subformat=fixed,force_size=on").read_bytes()
    with pytest.raises(ImageFormatError, match="incomplete"):
        open_image(io.BytesIO(image[:-1024]))


def test_a_disk_without_its_second_partition_table_is_refused() -> None:
    disk = bytearray(partitioned(4 * MIB, start=1, sectors=0xFFFFFFFF, kind=0xEE))
    disk[512:520] = b"EFI PART"
    struct.pack_into("<Q", disk, 512 + 32, 4 * MIB // 512 - 1)
    with open_image(io.BytesIO(disk)) as image:
        assert image.format == "raw"
    with pytest.raises(ImageFormatError, match="The second table is at sector 8191") as caught:
        open_image(io.BytesIO(disk[:-512]))
    assert (caught.value.offset, caught.value.field) == (544, "GPT alternate LBA")
