"""VHDs: the same bytes as QEMU reads, and wrong fields are named with their offset."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import pytest

from tests.disk.images import (
    FOOTER,
    HEADER,
    MIB,
    edited,
    qemu_bytes,
    qemu_create,
    qemu_make,
    scattered,
    whole,
    write_ours,
    write_raw,
)
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.vhd import DEFAULT_BLOCK
from vmsnix_ops.errors import ImageFormatError

if TYPE_CHECKING:
    from pathlib import Path

SIZES = [512, 4096, MIB, 2 * MIB, 2 * MIB + 512, 4 * MIB - 512, 7 * MIB + 1536, 33 * MIB]
SIZE = 5 * MIB  # three blocks of 2 MiB, the last one half


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("force_size", ["on", "off"])
def test_vhds_of_qemu_are_read_as_by_qemu(tmp_path: Path, size: int, subformat: str, force_size: str) -> None:
    disk = scattered(size, seed=size)
    options = f"subformat={subformat},force_size={force_size}"
    path = qemu_make(tmp_path / "disk", write_raw(tmp_path / "raw", disk), "vpc", options)
    ours = whole(path)
    assert ours == qemu_bytes(path, "vhd")
    assert ours[:size] == disk
    with open_image(path) as image:
        assert (image.format, image.subformat, image.file_bytes) == ("vhd", subformat, path.stat().st_size)


def test_a_disk_of_4096_mib_has_the_size_that_ec2_will_see(tmp_path: Path) -> None:
    with open_image(qemu_create(tmp_path / "disk.vhd", "vpc", "4096M")) as image:
        assert image.size == 4295467008


def test_the_size_is_the_size_field_and_not_the_geometry(tmp_path: Path) -> None:
    size = 3 * MIB  # 6144 sectors; the geometry of the format has 6120
    path = write_ours(tmp_path / "disk", scattered(size), "dynamic")
    for creator in (b"vpc ", b"win "):
        image = bytearray(path.read_bytes())
        for at in (0, len(image) - 512):
            image[at + 28 : at + 32] = creator
        with open_image(io.BytesIO(edited(bytes(image), {}))) as opened:
            assert opened.size == size


def test_a_sector_whose_bit_is_clear_reads_as_zeros() -> None:
    # Two sectors of the first block were written: number 1 and the last one.
    block = b"\xaa" * DEFAULT_BLOCK
    bitmap = bytearray(512)
    bitmap[0], bitmap[511] = 0b01000000, 0b00000001
    image = handmade(DEFAULT_BLOCK, bytes(bitmap) + block)
    with open_image(io.BytesIO(image)) as opened:
        disk = opened.read(0, DEFAULT_BLOCK)
        assert disk == bytes(512) + b"\xaa" * 512 + bytes(DEFAULT_BLOCK - 1536) + b"\xaa" * 512
        assert opened.read(700, 500) == b"\xaa" * 324 + bytes(176)
        assert [found.index for found in opened.blocks()] == [0, 3]
        assert [found.index for found in opened.blocks(512)] == [1, 4095]


def handmade(size: int, block: bytes, *, block_size: int = DEFAULT_BLOCK) -> bytes:
    """Return a dynamic VHD whose first block is given, bitmap and all."""
    empty = io.BytesIO()
    footer = bytearray(512)
    footer[:8] = b"conectix"
    struct.pack_into(">IIQ", footer, 8, 2, 0x10000, 512)
    struct.pack_into(">QQ", footer, 40, size, size)
    struct.pack_into(">I", footer, 60, 3)
    header = bytearray(1024)
    header[:8] = b"cxsparse"
    count = -(-size // block_size)
    struct.pack_into(">QQIII", header, 8, 2**64 - 1, 1536, 0x10000, count, block_size)
    table = struct.pack(">I", (1536 + -(-count * 4 // 512) * 512) // 512)
    for part in (footer, header, table.ljust(-(-count * 4 // 512) * 512, b"\xff"), block, footer):
        empty.write(part)
    return edited(empty.getvalue(), {})


@pytest.mark.parametrize("block_size", [512, 4096, 512 * 1024, 4 * MIB])
def test_blocks_of_every_size_are_read(tmp_path: Path, block_size: int) -> None:
    bitmap = -(-block_size // 4096 // 512) * 512
    data = b"\x5a" * block_size
    image = handmade(4 * MIB, b"\xff" * bitmap + data, block_size=block_size)
    (tmp_path / "disk").write_bytes(image)
    assert whole(tmp_path / "disk") == data + bytes(4 * MIB - block_size)


def test_the_last_block_may_end_with_the_disk(tmp_path: Path) -> None:
    image = write_ours(tmp_path / "disk", scattered(SIZE), "dynamic").read_bytes()
    cut = image[: -512 - MIB] + image[-512:]
    (tmp_path / "cut").write_bytes(cut)
    assert whole(tmp_path / "cut") == scattered(SIZE)


def test_any_range_is_read(tmp_path: Path) -> None:
    disk = scattered(SIZE)
    with open_image(write_ours(tmp_path / "disk", disk, "dynamic")) as image:
        for offset, length in (
            (0, 0),
            (1, 1),
            (511, 2),
            (2 * MIB - 7, 14),
            (MIB, 3 * MIB),
            (SIZE - 1, 100),
            (SIZE, 1),
        ):
            assert image.read(offset, length) == disk[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (0, 2**40)])
def test_an_invalid_range_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    with (
        open_image(write_ours(tmp_path / "disk", scattered(MIB), "fixed")) as image,
        pytest.raises(ValueError, match="cannot read"),
    ):
        image.read(offset, length)


# What is changed in a sound dynamic VHD of 5 MiB, and the field at which the error must point.
LIES = {
    "size not whole sectors": ({"footers.current_size": SIZE + 1}, "footer current_size"),
    "no size": ({"footers.current_size": 0}, "footer current_size"),
    "size beyond the table": ({"footers.current_size": SIZE + 2 * MIB}, "dynamic header max_table_entries"),
    "size beyond the format": ({"footers.current_size": 2**62}, "footer current_size"),
    "size less than the table": ({"footers.current_size": 512}, "BAT entry 1"),
    "sizes that differ": ({"copy.current_size": 512}, "footer copy current_size"),
    "types that differ": ({"copy.disk_type": 2}, "footer copy disk_type"),
    "unknown type": ({"footers.disk_type": 6}, "footer disk_type"),
    "differencing disk": ({"footers.disk_type": 4}, "footer disk_type"),
    "fixed disk of another length": ({"footers.disk_type": 2}, "footer current_size"),
    "unknown version": ({"footers.version": 0x20000}, "footer version"),
    "header outside": ({"footers.data_offset": 2**63}, "footer data_offset"),
    "header on no sector": ({"footers.data_offset": 513}, "footer data_offset"),
    "header that is the footer itself": ({"footers.data_offset": 0}, "footer data_offset"),
    "header that is no header": ({"footers.data_offset": 1024}, "dynamic header cookie"),
    "unknown header version": ({"header.version": 0x20000}, "dynamic header version"),
    "block of no size": ({"header.block_size": 0}, "dynamic header block_size"),
    "block size no power of two": ({"header.block_size": 3 * MIB}, "dynamic header block_size"),
    "table outside": ({"header.table_offset": 2**63}, "dynamic header table_offset"),
    "table on no sector": ({"header.table_offset": 1537}, "dynamic header table_offset"),
    "table on the header": ({"header.table_offset": 1024}, "dynamic header table_offset"),
    "table on the footer copy": ({"header.table_offset": 0}, "dynamic header table_offset"),
    "endless table": ({"header.max_table_entries": 2**32 - 1}, "dynamic header max_table_entries"),
    "table longer than the file": ({"header.max_table_entries": 2**21}, "dynamic header table_offset"),
    "block outside": ({"bat.1": 2**32 - 2}, "BAT entry 1"),
    "block on the footer copy": ({"bat.1": 0}, "BAT entry 1"),
    "block on the header": ({"bat.2": 2}, "BAT entry 2"),
    "block on the table": ({"bat.2": 3}, "BAT entry 2"),
    "two blocks in one place": ({"bat.1": 4}, "BAT entry 1"),
    "two blocks that overlap": ({"bat.2": 5}, "BAT entry 2"),
}  # fmt: skip


def place(field: str, footer: int, header: int) -> int:
    """Return the offset of a field in a dynamic VHD whose table follows its header."""
    part, _, name = field.rpartition(" ")
    if part == "BAT entry":
        return 1536 + 4 * int(name)
    base = {"footer": footer, "footer copy": 0, "dynamic header": header}[part]
    return base + (0 if name == "cookie" else (HEADER if part == "dynamic header" else FOOTER)[name][0])


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_field_is_named_with_its_offset(tmp_path: Path, lie: str) -> None:
    changes, field = LIES[lie]
    disk = scattered(SIZE, pieces=40)
    image = write_ours(tmp_path / "disk", disk, "dynamic").read_bytes()
    assert struct.unpack_from(">III", image, 1536) == (4, 4 + 4097, 4 + 2 * 4097), (
        "the disk has data in every block"
    )
    with pytest.raises(ImageFormatError) as caught:
        open_image(io.BytesIO(edited(image, changes)))
    # The header is read at the offset in the footer, even if that is wrong.
    header = changes.get("footers.data_offset", 512)
    assert (caught.value.field, caught.value.offset) == (field, place(field, len(image) - 512, header))
    assert caught.value.why
    assert caught.value.fix
    assert f"at byte {caught.value.offset}" in str(caught.value)


@pytest.mark.parametrize(
    ("at", "field"),
    [
        (20, "footer copy checksum"),
        (600, "dynamic header checksum"),
        (-512 + 90, "footer checksum"),
        (0, "footer copy cookie"),
    ],
)
def test_a_wrong_checksum_is_refused(tmp_path: Path, at: int, field: str) -> None:
    image = bytearray(write_ours(tmp_path / "disk", scattered(SIZE), "dynamic").read_bytes())
    image[at] ^= 1
    with pytest.raises(ImageFormatError) as caught:
        open_image(io.BytesIO(image))
    assert caught.value.field == field


def test_a_damaged_footer_is_refused_even_if_its_copy_is_valid(tmp_path: Path) -> None:
    image = write_ours(tmp_path / "disk", scattered(SIZE), "dynamic").read_bytes()
    with pytest.raises(ImageFormatError, match="incomplete or damaged") as caught:
        open_image(io.BytesIO(image[:-512] + bytes(512)))
    assert (caught.value.field, caught.value.offset) == ("footer cookie", len(image) - 512)


def test_the_fix_for_a_differencing_disk_is_a_merge(tmp_path: Path) -> None:
    image = write_ours(tmp_path / "disk", scattered(SIZE), "dynamic").read_bytes()
    with pytest.raises(ImageFormatError, match=r"differences from a parent.*Merge-VHD"):
        open_image(io.BytesIO(edited(image, {"footers.disk_type": 4})))


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
@pytest.mark.parametrize("keep", [100, 512, 1000, 1536, 2 * MIB, -513, -512, -1])
def test_an_incomplete_vhd_is_never_read_as_another_format(tmp_path: Path, kind: str, keep: int) -> None:
    disk = bytearray(scattered(SIZE))
    struct.pack_into("<B3xB3xII", disk, 446, 0x80, 0x83, 2048, SIZE // 512 - 2048)
    disk[462:512] = bytes(48) + b"\x55\xaa"
    image = write_ours(tmp_path / "disk", bytes(disk), kind).read_bytes()
    if (kind, keep) == ("fixed", -512):
        # Without its footer, the file is a valid raw disk.
        with open_image(io.BytesIO(image[:keep])) as opened:
            assert opened.read(0, SIZE) == disk
        return
    with pytest.raises(ImageFormatError):
        open_image(io.BytesIO(image[:keep]))


@pytest.mark.parametrize(("change", "word"), [(512, "larger"), (-512, "smaller")])
def test_a_fixed_vhd_of_another_size_than_its_size_field_is_refused(
    tmp_path: Path, change: int, word: str
) -> None:
    image = write_ours(tmp_path / "disk", scattered(SIZE), "fixed").read_bytes()
    other = image[:-512] + bytes(512) + image[-512:] if change > 0 else image[: change - 512] + image[-512:]
    with pytest.raises(ImageFormatError, match=f"the image is {word}") as caught:
        open_image(io.BytesIO(other))
    assert caught.value.field == "footer current_size"
    assert caught.value.offset == SIZE + change + 48


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write_ours(tmp_path / "disk", scattered(SIZE, pieces=40), "dynamic")
    with open_image(path) as image:
        with path.open("r+b") as file:
            file.truncate(3 * MIB)
        with pytest.raises(ImageFormatError, match="do not change the file while it is in use"):
            list(image.blocks())
