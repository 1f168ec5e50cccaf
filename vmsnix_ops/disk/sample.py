"""Create a small bootable disk image in milliseconds, for the demo, for tests, and without Nix.

Its boot sector prints a line on the serial port and halts. Its folder has the files of a NixOS image build.
The same arguments give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING, Literal

from vmsnix_ops.disk.image import MIB, SECTOR, Block
from vmsnix_ops.disk.vhd import DEFAULT_BLOCK, geometry_size, write_vhd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# The boot sector: 77 bytes of 16-bit x86 code, assembled with the GNU assembler from the listing beside them.
# The BIOS loads it to 0x7C00. It sets COM1 to 115200 baud, 8 data bits, no parity and one stop bit, as EC2's
# serial console. It waits for the port a limited time, so that a machine without a serial port halts, too.

CODE = bytes.fromhex(
    "fa"  #                cli
    "31c0 8ed8 8ec0 8ed0"  # xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax
    "bc007c"  #            mov sp,0x7c00
    "ea117c0000"  #        jmp 0:0x7c11             some BIOSes start at 07c0:0000
    "fc"  #                cld
    "baf903 30c0 ee"  #    out 0x3f9,0              no interrupts
    "bafb03 b080 ee"  #    out 0x3fb,0x80           divisor visible
    "baf803 b001 ee"  #    out 0x3f8,1              115200 baud
    "42 30c0 ee"  #        out 0x3f9,0
    "bafb03 b003 ee"  #    out 0x3fb,3              8 data bits, no parity, 1 stop bit
    "be4d7c"  #            mov si,0x7c4d            the text
    "ac 84c0 7414"  #      next: lodsb; test al,al; jz done
    "88c3 31c9"  #         mov bl,al; xor cx,cx
    "bafd03 ec a820 e1f8"  # wait: in al,0x3fd; test al,0x20; loopz wait
    "baf803 88d8 ee"  #    out 0x3f8,bl
    "ebe7"  #              jmp next
    "f4 ebfd"  #           done: hlt; jmp done
)
TEXT_LIMIT = 446 - len(CODE) - 3
"""Maximum length of the message: the partition table begins at byte 446, and the line end has three bytes."""


def boot_sector(message: str, *, partition_start: int, partition_sectors: int) -> bytes:
    """Return a first sector that prints `message` when a BIOS boots it.

    `message` is ASCII text of at most `TEXT_LIMIT` characters. The numbers are those of the only partition
    (type Linux, active), in sectors.
    """
    text = message.encode("ascii")
    if len(text) > TEXT_LIMIT or b"\0" in text:
        raise ValueError(f"the message has {len(text)} bytes; at most {TEXT_LIMIT} fit, and none may be zero")
    program = (CODE + text + b"\r\n\0").ljust(440, b"\0")
    signature = b"VMSX\0\0"  # the disk's identifier, and two reserved bytes
    chs = b"\xfe\xff\xff"  # not used: the partition has sector numbers
    entry = b"\x80" + chs + b"\x83" + chs + struct.pack("<II", partition_start, partition_sectors)
    return (program + signature)[:446] + entry + bytes(48) + b"\x55\xaa"


MESSAGE = "vmsnix sample image: ok"
PARTITION_START = MIB // SECTOR
EXTENSIONS = {"vhd": "vhd", "vhd-fixed": "vhd", "raw": "img"}
NIX_FORMATS = {"vhd": "vpc", "vhd-fixed": "vpc", "raw": "raw"}


def make_sample_image(
    folder: Path,
    *,
    message: str = MESSAGE,
    name: str = "sample",
    format: Literal["vhd", "vhd-fixed", "raw"] = "vhd",  # noqa: A002
    size: int = 64 * MIB,
    data_bytes: int = 12 * MIB,
    seed: str = "",
    label: str = "26.11.sample",
    system: str = "x86_64-linux",
    boot_mode: str = "legacy-bios",
) -> Path:
    """Create a bootable sample image in a folder like a Nix output, and return the folder.

    The folder gets ``NAME.vhd`` (``NAME.img`` for raw), ``nix-support/image-info.json`` with label, system
    and boot mode, and ``nix-support/hydra-build-products``. The image prints `message` on the first serial
    port. `size` is that of the disk in bytes; that of a VHD is rounded up to a whole geometry, as in nixpkgs.
    About `data_bytes` are not zero: they look random, do not compress, and depend on `seed`.
    """
    disk_bytes = size if format == "raw" else geometry_size(size)
    if disk_bytes % SECTOR or data_bytes < 0 or 4 * MIB + 2 * data_bytes > disk_bytes:
        raise ValueError(
            f"{data_bytes} bytes of data do not fit a disk of {disk_bytes}: "
            "it must be whole sectors, and at least 4 MiB and twice the data"
        )
    (folder / "nix-support").mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / f"{name}.{EXTENSIONS[format]}"
    blocks = _content(message, seed, disk_bytes, data_bytes)
    # Another process may create or read the same image, so the complete file is renamed.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    if format == "raw":
        _write_raw(unfinished, blocks, disk_bytes)
    else:
        write_vhd(unfinished, blocks, size=disk_bytes, kind="dynamic" if format == "vhd" else "fixed")
    unfinished.replace(path)
    _write_nix_support(path, NIX_FORMATS[format], disk_bytes, label=label, system=system, boot_mode=boot_mode)
    return folder


def _content(message: str, seed: str, disk_bytes: int, data_bytes: int) -> Iterator[Block]:
    """Yield the blocks of the disk: the boot sector, and blocks with three quarters of data."""
    data = memoryview(_data(f"vmsnix {seed}\n{message}", data_bytes))
    sectors = disk_bytes // SECTOR - PARTITION_START
    first = boot_sector(message, partition_start=PARTITION_START, partition_sectors=sectors)
    yield Block(0, first.ljust(DEFAULT_BLOCK, b"\0"))
    run = DEFAULT_BLOCK * 3 // 4
    for number, at in enumerate(range(0, len(data), run)):
        yield Block(1 + number, bytes(data[at : at + run]).ljust(DEFAULT_BLOCK, b"\0"))


def _data(seed: str, length: int) -> bytes:
    """Return bytes that look random; the same seed gives the same bytes."""
    return hashlib.shake_128(seed.encode()).digest(length)


def _write_raw(path: Path, blocks: Iterator[Block], size: int) -> None:
    with path.open("wb") as file:
        for block in blocks:
            file.seek(block.index * DEFAULT_BLOCK)
            file.write(block.data.rstrip(b"\0"))
        file.truncate(size)


def _write_nix_support(
    path: Path, nix_format: str, size: int, *, label: str, system: str, boot_mode: str
) -> None:
    """Write the files that nixpkgs' image builder writes beside an image; their sizes are strings."""
    disk = {"logical_bytes": str(size), "file": str(path)}
    info = {"label": label, "boot_mode": boot_mode, "system": system, **disk, "disks": {"root": disk}}
    support = path.parent / "nix-support"
    (support / "image-info.json").write_text(json.dumps(info, indent=2) + "\n")
    products = f"file {nix_format} {path}\nfile {path.suffix[1:]} {path}\n"
    (support / "hydra-build-products").write_text(products)
