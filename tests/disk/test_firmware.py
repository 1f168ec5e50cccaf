"""The boot loaders of a disk, in real file systems and every format."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import require
from vmsnix_ops import errors
from vmsnix_ops.disk.firmware import read_firmware
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.image import Block
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.disk.vhd import geometry_size, write_vhd
from vmsnix_ops.nix.image import read_image

MIB, SECTOR = 2**20, 512
EFI = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
BIOS = uuid.UUID("21686148-6449-6e6f-744e-656564454649")


def fat(files, *, bits=32, size=0, long=False):
    """Make a FAT file system with these files (paths with slashes, upper or lower case)."""
    per_cluster = 1
    size = size or {12: 1, 16: 8, 32: 34}[bits] * MIB
    sectors = size // SECTOR
    reserved = 32 if bits == 32 else 1
    roots = 0 if bits == 32 else 64
    fat_sectors = -(-sectors * bits // 8 // SECTOR) + 1
    data = reserved + fat_sectors + roots * 32 // SECTOR
    disk = bytearray(size)
    struct.pack_into("<HBHBHH", disk, 11, SECTOR, per_cluster, reserved, 1, roots, 0)
    struct.pack_into("<H", disk, 22, 0 if bits == 32 else fat_sectors)
    struct.pack_into("<I", disk, 32, sectors)
    if bits == 32:
        struct.pack_into("<II", disk, 36, fat_sectors, 0)
        struct.pack_into("<I", disk, 44, 2)
    disk[510:512] = b"\x55\xaa"
    table, last = {}, {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFFFFFF}[bits]
    free = [2]

    def allocate(content):
        count = max(1, -(-len(content) // SECTOR))
        first = free[0]
        for number in range(first, first + count):
            table[number] = number + 1 if number < first + count - 1 else last
        free[0] += count
        at = (data + (first - 2) * per_cluster) * SECTOR
        disk[at : at + len(content)] = content
        return first

    def entry(name, cluster, *, folder, length=0):
        base, _, extension = name.upper().partition(".")
        if long:
            short = (base[:6] + "~1").ljust(8).encode() + extension[:3].ljust(3).encode()
            text = name.encode("utf-16-le") + b"\0\0"
            text = text.ljust(-(-len(text) // 26) * 26, b"\xff")
            parts = []
            for number, at in enumerate(range(0, len(text), 26)):
                piece = text[at : at + 26]
                order = number + 1 | (0x40 if at + 26 >= len(text) else 0)
                parts.insert(
                    0,
                    bytes([order]) + piece[:10] + b"\x0f\0\0" + piece[10:22] + b"\0\0" + piece[22:],
                )
            head = b"".join(parts)
        else:
            short, head = base.ljust(8).encode() + extension.ljust(3).encode(), b""
        attributes = b"\x10" if folder else b"\x20"
        return (
            head
            + short
            + attributes
            + bytes(8)
            + struct.pack("<H4xHI", cluster >> 16, cluster & 0xFFFF, length)
        )

    if bits == 32:
        free[0] = 3  # the root
        table[2] = last
    tree = {}
    for path, content in files.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = content

    def write(place):
        out = b""
        for name, content in place.items():
            if isinstance(content, dict):
                out += entry(name, allocate(write(content)), folder=True)
            else:
                out += entry(name, allocate(content), folder=False, length=len(content))
        return out

    root = write(tree)
    at = (data if bits == 32 else reserved + fat_sectors) * SECTOR
    disk[at : at + len(root)] = root
    for number, following in table.items():
        at = reserved * SECTOR + number * bits // 8
        if bits == 12:
            value = int.from_bytes(disk[at : at + 2], "little")
            value |= following << 4 if number % 2 else following
            disk[at : at + 2] = value.to_bytes(2, "little")
        else:
            disk[at : at + bits // 8] = following.to_bytes(bits // 8, "little")
    return disk


def gpt(*partitions, code=b"", sector=SECTOR):
    """Make a disk with a GPT: partitions are (type, content)."""
    disk = bytearray(MIB)
    entries = bytearray(128 * 128)
    for number, (kind, content) in enumerate(partitions):
        first = len(disk) // sector
        disk += content
        disk += bytes(-len(content) % MIB)
        entries[number * 128 : number * 128 + 16] = kind.bytes_le
        entries[number * 128 + 16 : number * 128 + 32] = uuid.uuid5(EFI, str(number)).bytes_le
        struct.pack_into("<QQQ", entries, number * 128 + 32, first, len(disk) // sector - 1, 0)
    disk += bytes(MIB)
    last = len(disk) // sector - 1
    header = struct.pack("<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, 0, 0, 1, last, 34, last - 34)
    header += EFI.bytes_le + struct.pack("<QIII", 2, 128, 128, 0)
    disk[sector : sector + len(header)] = header
    disk[2 * sector : 2 * sector + len(entries)] = entries
    disk[: len(code)] = code
    disk[446:462] = struct.pack("<B3xB3xII", 0, 0xEE, 1, min(last, 0xFFFFFFFF))
    disk[510:512] = b"\x55\xaa"
    return disk


def mbr(*partitions, code=b""):
    """Make a disk with an MBR: partitions are (type, active, content)."""
    disk = bytearray(MIB)
    for number, (kind, active, content) in enumerate(partitions):
        first = len(disk) // SECTOR
        disk += content
        disk += bytes(-len(content) % MIB)
        at = 446 + 16 * number
        count = len(disk) // SECTOR - first
        disk[at : at + 16] = struct.pack("<B3xB3xII", 0x80 if active else 0, kind, first, count)
    disk[: len(code)] = code
    disk[510:512] = b"\x55\xaa"
    return disk


def pe(machine):
    return b"MZ".ljust(60, b"\0") + (64).to_bytes(4, "little") + b"PE\0\0" + machine.to_bytes(2, "little")


def firmware(disk):
    with open_image(io.BytesIO(disk)) as image:
        found = read_firmware(image)
    return sorted(found.uefi), found.bios


ARM, X86 = {"EFI/BOOT/BOOTAA64.EFI": pe(0xAA64)}, {"EFI/BOOT/BOOTX64.EFI": pe(0x8664)}
BOTH = {**ARM, **X86}
CODE = b"\xeb\x63\x90GRUB \0"


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(
    ("files", "systems"),
    [
        (ARM, ["aarch64-linux"]),
        (X86, ["x86_64-linux"]),
        (BOTH, ["aarch64-linux", "x86_64-linux"]),
        ({"efi/boot/bootaa64.efi": b"no program"}, ["aarch64-linux"]),
        ({"EFI/BOOT/BOOTX64.EFI": pe(0xAA64)}, []),
        ({"EFI/BOOT/BOOTX64.EFI": b""}, []),
        ({"EFI/BOOT/BOOTX64.EFI/X": b"a folder"}, []),
        ({"EFI/NIXOS/GRUBX64.EFI": pe(0x8664)}, []),
        ({**{f"EFI/BOOT/FILE{n:04}.TXT": b"x" for n in range(40)}, **ARM}, ["aarch64-linux"]),
    ],
)
def test_the_boot_loader_is_read_from_every_kind_of_fat(bits, long, files, systems):
    volume = fat(files, bits=bits, long=long)
    assert firmware(gpt((LINUX, b"x"), (EFI, volume))) == (systems, False)
    assert firmware(mbr((0xEF, True, volume), (0x83, False, b"x"))) == (systems, False)


def test_a_file_system_of_real_tools_is_read(tmp_path):
    if not all(map(shutil.which, ("mkfs.vfat", "mcopy", "mmd"))):
        pytest.skip("mkfs.vfat and mtools are not on this machine")
    for bits in (12, 16, 32):
        volume = tmp_path / f"{bits}.fat"
        volume.write_bytes(bytes({12: 2, 16: 16, 32: 64}[bits] * MIB))
        loader = tmp_path / "bootaa64.efi"
        loader.write_bytes(pe(0xAA64))
        for command in (
            ["mkfs.vfat", "-F", str(bits), str(volume)],
            ["mmd", "-i", str(volume), "::efi", "::efi/boot"],
            ["mcopy", "-i", str(volume), str(loader), "::efi/boot/bootaa64.efi"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        assert firmware(gpt((EFI, volume.read_bytes()))) == (["aarch64-linux"], False)


@pytest.mark.parametrize(
    ("disk", "bios"),
    [
        (lambda: mbr((0x83, True, b"x"), code=b"\xfa\xfc"), True),
        (lambda: mbr((0x83, False, b"x"), code=CODE), True),
        (lambda: mbr((0x83, False, b"x"), code=b"\xfa\xfc"), False),
        (lambda: mbr((0x83, True, b"x")), False),
        (lambda: mbr((0xEF, True, b"x"), code=b"\xfa\xfc"), False),
        (lambda: gpt((BIOS, b"x"), (LINUX, b"x"), code=b"\xfa\xfc"), True),
        (lambda: gpt((LINUX, b"x"), code=CODE), True),
        (lambda: gpt((LINUX, b"x"), code=b"\xfa\xfc"), False),
        (lambda: gpt((BIOS, b"x")), False),
        (lambda: bytes(MIB), False),
    ],
)
def test_bios_boot_code_is_distinguished_from_that_of_partitioning_tools(disk, bios):
    assert firmware(disk()) == ([], bios)


def test_a_disk_with_both_boot_loaders_is_uefi_preferred():
    with open_image(io.BytesIO(gpt((BIOS, b"x"), (EFI, fat(X86)), code=CODE))) as image:
        found = read_firmware(image)
    assert found.boot_mode("x86_64-linux") == "uefi-preferred"
    assert found.systems == {"x86_64-linux"}


def test_a_gpt_for_sectors_of_4096_bytes_is_refused(tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(gpt((EFI, fat(X86)), sector=4096))
    for options in ({}, {"system": "x86_64-linux", "boot_mode": "uefi"}):
        with pytest.raises(errors.ImageFormatError, match=r"sectors of 4,096 bytes") as caught:
            read_image(disk, **options)
        assert caught.value.offset == 4096


def test_an_active_partition_of_a_hybrid_mbr_is_started_by_a_bios():
    disk = bytearray(gpt((EFI, fat(X86)), code=b"\xeb\x3c"))
    with open_image(io.BytesIO(bytes(disk))) as image:
        assert read_firmware(image).boot_mode("x86_64-linux") == "uefi"
    disk[462:478] = struct.pack("<B3sB3sII", 0x80, b"", 0x83, b"", 2048, 100)
    with open_image(io.BytesIO(bytes(disk))) as image:
        assert read_firmware(image).boot_mode("x86_64-linux") == "uefi-preferred"


def test_a_gpt_at_byte_512_counts_whatever_is_at_byte_4096():
    disk = bytearray(gpt((BIOS, b"x"), (EFI, fat(X86)), code=CODE))
    disk[4096:4104] = b"EFI PART"
    with open_image(io.BytesIO(bytes(disk))) as image:
        assert read_firmware(image).boot_mode("x86_64-linux") == "uefi-preferred"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_table_or_file_system_is_no_error(data):
    disk = bytearray(gpt((EFI, fat(ARM, bits=data.draw(st.sampled_from([12, 16]))))))
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(
            st.one_of(
                st.integers(SECTOR, SECTOR + 92),
                st.integers(2 * SECTOR, 2 * SECTOR + 128),
                st.integers(MIB, MIB + 64),
                st.integers(MIB + SECTOR, MIB + 60 * SECTOR),
            )
        )
        disk[at] = data.draw(st.integers(0, 255))
    try:
        firmware(bytes(disk))
    except errors.ImageError:
        return


# What `read_image` makes of it


def as_file(tmp_path, disk, kind):
    raw = tmp_path / "disk.img"
    raw.write_bytes(disk)
    if kind == "raw":
        return raw
    path = tmp_path / f"disk.{kind}"
    if kind == "vhd":
        size = geometry_size(len(disk))
        padded = disk.ljust(size, b"\0")
        block = 2 * MIB
        write_vhd(
            path,
            (
                Block(number, padded[number * block : (number + 1) * block].ljust(block, b"\0"))
                for number in range(-(-size // block))
            ),
            size=size,
            kind="dynamic",
        )
        return path
    subprocess.run(
        [require("qemu-img"), "convert", "-f", "raw", "-O", kind, str(raw), str(path)],
        check=True,
        timeout=120,
    )
    return path


@pytest.mark.parametrize("kind", ["raw", "vhd", "qcow2", "vhdx", "vmdk"])
@pytest.mark.parametrize(
    ("disk", "system", "boot_mode"),
    [
        (lambda: gpt((EFI, fat(ARM))), "aarch64-linux", "uefi"),
        (lambda: gpt((EFI, fat(X86))), "x86_64-linux", "uefi"),
        (lambda: gpt((BIOS, b"x"), (EFI, fat(X86)), code=CODE), "x86_64-linux", "uefi-preferred"),
        (lambda: mbr((0x83, True, b"x"), code=CODE), "x86_64-linux", "legacy-bios"),
    ],
)
def test_system_and_boot_mode_come_from_the_image_file(tmp_path, kind, disk, system, boot_mode):
    found = read_image(as_file(tmp_path, disk(), kind))
    assert (found.system, found.boot_mode) == (system, boot_mode)


@pytest.mark.parametrize(
    ("disk", "given", "expected"),
    [
        (lambda: bytes(MIB), {"system": "x86_64-linux", "boot_mode": "uefi"}, ("x86_64-linux", "uefi")),
        (lambda: bytes(MIB), {"boot_mode": "legacy-bios"}, ("x86_64-linux", "legacy-bios")),
        (lambda: bytes(MIB), {"system": "aarch64-linux"}, ("aarch64-linux", "uefi")),
        (lambda: gpt((EFI, fat(BOTH))), {"system": "aarch64-linux"}, ("aarch64-linux", "uefi")),
        (lambda: gpt((EFI, fat(X86))), {"boot_mode": "legacy-bios"}, ("x86_64-linux", "legacy-bios")),
    ],
)
def test_given_values_apply_unless_the_disk_contradicts_them(tmp_path, disk, given, expected):
    found = read_image(as_file(tmp_path, disk(), "raw"), **given)
    assert (found.system, found.boot_mode) == expected


@pytest.mark.parametrize(
    ("disk", "given", "field", "option"),
    [
        (lambda: bytes(MIB), {}, "system", "--system x86_64-linux or --system aarch64-linux"),
        (lambda: gpt((EFI, fat(BOTH))), {}, "system", "--system x86_64-linux or --system aarch64-linux"),
        (lambda: bytes(MIB), {"system": "x86_64-linux"}, "boot_mode", "--boot-mode legacy-bios"),
        (lambda: bytes(MIB), {"boot_mode": "uefi"}, "system", "--system"),
        (lambda: gpt((EFI, fat(ARM))), {"system": "x86_64-linux"}, "system", "--system aarch64-linux"),
        (lambda: gpt((EFI, fat(ARM))), {"boot_mode": "legacy-bios"}, "system", "--system"),
    ],
)
def test_unknown_or_contradicting_values_are_refused_with_the_option(tmp_path, disk, given, field, option):
    with pytest.raises(errors.ImageFormatError) as caught:
        read_image(as_file(tmp_path, disk(), "raw"), **given)
    assert caught.value.field == field
    assert option in str(caught.value)


# Outputs without image-info.json


def output(tmp_path, files, products=""):
    folder = tmp_path / "output"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if products:
        (folder / "nix-support").mkdir(exist_ok=True)
        (folder / "nix-support" / "hydra-build-products").write_text(products.format(out=folder))
    return folder


def test_the_image_of_an_output_in_the_style_of_hydra_is_found(tmp_path):
    disk = gpt((EFI, fat(ARM)))
    files = {"sd-image/nixos.img": disk, "readme.txt": b"read me"}
    folder = output(tmp_path, files, "file sd-image {out}/sd-image/nixos.img\ndoc readme {out}/readme.txt\n")
    found = read_image(folder)
    assert found.path == folder / "sd-image" / "nixos.img"
    assert found.system == "aarch64-linux"


@pytest.mark.parametrize(
    "line",
    [
        "file raw {out}/nixos.img nixos.img",
        'file raw "{out}/nixos.img"',
        "file\traw   {out}/nixos.img  ",
        "file raw nixos.img",
    ],
)
def test_a_line_of_products_is_read_as_hydra_reads_it(tmp_path, line):
    folder = output(tmp_path, {"nixos.img": gpt((EFI, fat(ARM)))}, f"{line}\n")
    assert read_image(folder).path == folder / "nixos.img"


@pytest.mark.parametrize("path", ["a\0b.img", "loop/nixos.img", "x" * 300])
def test_a_product_that_cannot_be_a_file_is_refused(tmp_path, path):
    folder = output(tmp_path, {"readme.txt": b""}, f"file raw {{out}}/{path}\n")
    (folder / "loop").symlink_to("loop")
    with pytest.raises(errors.ImageFormatError, match=r"Invalid field 'file' in "):
        read_image(folder)


@pytest.mark.parametrize("name", ["image.raw", "sd-image/nixos.img"])
def test_the_only_image_of_a_folder_is_found(tmp_path, name):
    folder = output(tmp_path, {name: gpt((EFI, fat(X86))), "repart-output.json": b"[]"})
    assert read_image(folder).path == folder / name


def test_several_images_of_a_folder_are_named(tmp_path):
    folder = output(tmp_path, {"a.raw": bytes(MIB), "b.raw": bytes(MIB), "repart-output.json": b"[]"})
    with pytest.raises(errors.ImageNotFoundError, match=r"has 2 images: a\.raw, b\.raw"):
        read_image(folder)


def test_a_compressed_image_is_refused_as_compressed(tmp_path):
    packed = b"\x28\xb5\x2f\xfd" + bytes(1020)
    folder = output(tmp_path, {"sd-image/nixos.img.zst": packed})
    with pytest.raises(errors.ImageFormatError, match=r"(?i)zst"):
        read_image(folder)


def test_a_product_outside_of_the_output_is_refused(tmp_path):
    (tmp_path / "elsewhere.img").write_bytes(bytes(MIB))
    folder = output(tmp_path, {"x.txt": b""}, f"file img {tmp_path}/elsewhere.img\n")
    with pytest.raises(errors.ImageFormatError, match="outside"):
        read_image(folder)


def test_the_sample_image_without_its_description_boots_by_bios(tmp_path):
    folder = make_sample_image(tmp_path / "sample", data_bytes=MIB)
    found = read_image(next(Path(folder).glob("*.vhd")))
    assert (found.system, found.boot_mode) == ("x86_64-linux", "legacy-bios")
