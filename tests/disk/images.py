"""Test disks, and their conversion by QEMU."""

from __future__ import annotations

import random
import struct
import subprocess
from typing import TYPE_CHECKING

from tests.support import require
from vmsnix_ops.disk import vhd
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.vhd import write_vhd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIB = 1024 * 1024
BLOCK = 512 * 1024
QEMU_DRIVERS = {
    "vhd": "vpc,force_size_calc=current_size",
    "raw": "raw",
    "qcow2": "qcow2",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
}


def scattered(size: int, *, seed: int = 0, pieces: int = 6) -> bytes:
    """Return a disk with a few pieces of random data, also in its first and last sector; else zeros."""
    chance, disk = random.Random(seed), bytearray(size)
    places = [0, size - 512, *(512 * chance.randrange(size // 512) for _ in range(pieces))]
    for at in places:
        data = chance.randbytes(min(chance.choice([1, 512, 70_000, 600_000]), size - at))
        disk[at : at + len(data)] = data
    disk[:2] = b"\xeb\x63"  # boot code, so that random data never look like another format
    return bytes(disk)


def write_raw(path: Path, disk: bytes) -> Path:
    """Write a disk sparsely."""
    with path.open("wb") as file:
        for at in range(0, len(disk), 4096):
            piece = disk[at : at + 4096]
            if piece.count(0) != len(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(disk))
    return path


def write_ours(path: Path, disk: bytes, kind: str) -> Path:
    """Write a disk with our own writer."""
    raw = write_raw(path.with_suffix(".source"), disk)
    with open_image(raw) as image:
        write_vhd(path, image.blocks(vhd.DEFAULT_BLOCK), size=image.size, kind=kind)  # type: ignore[arg-type]
    return path


def qemu_make(path: Path, raw: Path, driver: str, options: str = "") -> Path:
    """Let qemu-img write an image from a raw one."""
    extra = ["-o", options] if options else []
    if driver == "compressed":
        driver, extra = "qcow2", ["-c"]
    subprocess.run(
        [require("qemu-img"), "convert", "-f", "raw", "-O", driver, *extra, str(raw), str(path)],
        check=True,
        timeout=120,
    )
    return path


def qemu_create(path: Path, driver: str, *arguments: str) -> Path:
    """Let qemu-img create an image; the arguments are options, and the size unless a parent has it."""
    size = arguments[-1:] if arguments and arguments[-1][0].isdigit() else ()
    options = arguments[: len(arguments) - len(size)]
    command = [require("qemu-img"), "create", "-q", "-f", driver, *options, str(path), *size]
    subprocess.run(command, check=True, timeout=120)
    return path


def qemu_bytes(path: Path, kind: str) -> bytes | None:
    """Return the disk as ``qemu-img convert -O raw`` reads it, or ``None`` if it refuses the image."""
    output = path.with_suffix(".converted")
    options = f"driver={QEMU_DRIVERS[kind]},file.driver=file,file.filename={path}"
    done = subprocess.run(
        [require("qemu-img"), "convert", "--image-opts", options, "-O", "raw", str(output)],
        capture_output=True,
        check=False,
        timeout=120,
    )
    try:
        return output.read_bytes() if done.returncode == 0 else None
    finally:
        output.unlink(missing_ok=True)


def whole(path: Path) -> bytes:
    """Return the disk as the package reads it, from its blocks."""
    with open_image(path) as image:
        disk = bytearray(-(-image.size // BLOCK) * BLOCK)
        previous = -1
        for block in image.blocks():
            assert previous < block.index
            assert len(block.data) == BLOCK
            assert block.data.count(0) < BLOCK
            disk[block.index * BLOCK : (block.index + 1) * BLOCK] = block.data
            previous = block.index
        assert not any(disk[image.size :])
        del disk[image.size :]
        assert image.read(0, image.size) == disk
        return bytes(disk)


FOOTER = {
    "version": (12, ">I"),
    "data_offset": (16, ">Q"),
    "current_size": (48, ">Q"),
    "disk_type": (60, ">I"),
}
HEADER = {
    "table_offset": (16, ">Q"),
    "version": (24, ">I"),
    "max_table_entries": (28, ">I"),
    "block_size": (32, ">I"),
}


def edited(image: bytes, changes: Mapping[str, int], *, checksums: bool = True) -> bytes:
    """Return a VHD with fields changed and, unless told otherwise, the checksums put right again.

    Fields are named ``footer.current_size``, ``copy.disk_type``, ``header.block_size``, ``bat.0``;
    ``footers.`` means both copies of the footer.
    """
    data = bytearray(image)
    tail = len(data) - 512
    table = struct.unpack_from(">Q", data, 512 + 16)[0]
    for name, value in changes.items():
        part, _, field = name.partition(".")
        if part == "bat":
            struct.pack_into(">I", data, table + 4 * int(field), value)
            continue
        at, form = (HEADER if part == "header" else FOOTER)[field]
        for base in {"footer": [tail], "copy": [0], "footers": [0, tail], "header": [512]}[part]:
            struct.pack_into(form, data, base + at, value)
    if checksums:
        for base, length in ((0, 512), (512, 1024), (tail, 512)):
            if data[base : base + 8] in (b"conectix", b"cxsparse"):
                data[base : base + length] = vhd.with_checksum(bytes(data[base : base + length]))
    return bytes(data)
