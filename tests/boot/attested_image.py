"""Small disks of attested images: a UKI that does nothing, and a store with dm-verity."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.disk.test_firmware import EFI, fat, gpt
from tests.support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping

USR = uuid.UUID("8484680c-9521-48c6-9c11-b0720656f69e")  # usr partition of x86-64
USR_VERITY = uuid.UUID("77ff5f63-e7b6-4633-acf4-1565b864c0e6")
SALT = bytes(range(32))
SDMAGIC = b"#### LoaderInfo: systemd-stub 262 ####"
MEASURE = Path(__file__).parents[2] / "nix/modules/profiles/measure-uki.py"


def measured_by_the_build(uki: Path) -> dict[str, Any]:
    """Return what the script of the Nix build prints."""
    command = [sys.executable, MEASURE, uki]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def make_pe(sections: dict[str, bytes], *, tail: bytes = b"", signature: bytes = b"") -> bytes:
    """Return a PE32+ file for x86-64 with these sections, further bytes, and a certificate table."""
    head = bytearray(1024)
    head[:2], head[60:64] = b"MZ", struct.pack("<I", 128)
    struct.pack_into("<4sHH12xHH", head, 128, b"PE\0\0", 0x8664, len(sections), 240, 0x22E)
    struct.pack_into("<H", head, 152, 0x20B)
    struct.pack_into("<IIIII", head, 152 + 32, 4096, 512, 0, 0, 0)  # alignments
    struct.pack_into("<IIIH", head, 152 + 56, 1 << 20, 1024, 0xABCD1234, 10)  # sizes, checksum, subsystem
    struct.pack_into("<I", head, 152 + 108, 16)
    body = bytearray()
    for number, (name, content) in enumerate(sections.items()):
        stored = content.ljust(-(-len(content) // 512) * 512, b"\0")
        entry = (name.encode(), len(content), 4096 * (number + 1), len(stored), 1024 + len(body))
        struct.pack_into("<8sIIII12xI", head, 392 + 40 * number, *entry, 0x40000040)
        body += stored
    body += tail
    if signature:
        struct.pack_into("<II", head, 152 + 112 + 32, len(head) + len(body), len(signature))
    return bytes(head + body) + signature


def make_verity(data: bytes, *, block: int = 4096, salt: bytes = SALT) -> tuple[str, bytes]:
    """Return the root hash of `data` and the content of its verity partition, as veritysetup makes them."""

    def hashes(content: bytes) -> bytes:
        return b"".join(
            hashlib.sha256(salt + content[at : at + block]).digest() for at in range(0, len(content), block)
        )

    levels, level = [], data
    while len(level) > block:
        level = hashes(level)
        level = level.ljust(-(-len(level) // block) * block, b"\0")
        levels.insert(0, level)
    superblock = struct.pack("<8sII16s32sIIQH6x256s", b"verity\0\0", 1, 1, bytes(16), b"sha256", block, block,
                             len(data) // block, len(salt), salt)  # fmt: skip
    return hashes(level).hex(), superblock.ljust(block, b"\0") + b"".join(levels)


def make_disk(
    *,
    words: str = "console=ttyS0",
    kernel: bytes = b"a kernel",
    store: bytes = b"a store".ljust(129 * 4096, b"."),
    files: dict[str, bytes] | None = None,
    sections: dict[str, bytes] | None = None,
) -> bytes:
    """Return a raw disk with an EFI system partition, a store and its verity partition."""
    root_hash, tree = make_verity(store)
    parts = {
        ".text": b"\xf4" * 600,
        ".sdmagic": SDMAGIC,
        ".osrel": b"ID=nixos\n",
        ".cmdline": f"{words} usrhash={root_hash}\n".encode(),
        ".linux": kernel,
        ".initrd": b"an initrd",
    }
    uki = make_pe({**parts, **(sections or {})})
    volume = fat({"EFI/BOOT/BOOTX64.EFI": uki, **(files or {})}, bits=16, long=True)
    disk = gpt((EFI, volume), (USR, store), (USR_VERITY, tree))
    for number, half in ((1, root_hash[:32]), (2, root_hash[32:])):
        at = 2 * 512 + number * 128 + 16
        disk[at : at + 16] = uuid.UUID(half).bytes_le
    return bytes(disk)


def write_output(folder: Path, disk: bytes, *, attested: Mapping[str, object] | None = None) -> Path:
    """Write a disk as the output of an image build, and return its folder.

    `attested` is the object in its description; by default that of the disk's own root hash.
    """
    root_hash = disk.partition(b" usrhash=")[2][:64].decode()
    path, support = folder / "attested.img", folder / "nix-support"
    support.mkdir(parents=True, exist_ok=True)
    path.write_bytes(disk)
    declared = {"root_hash": root_hash, "interactive": False, "cluster": None}
    info = {
        "label": "26.11.attested",
        "system": "x86_64-linux",
        "boot_mode": "uefi",
        "file": str(path),
        "logical_bytes": str(len(disk)),
        "registerImage": {"TpmSupport": "v2.0"},
        "attested": declared if attested is None else attested,
    }
    (support / "image-info.json").write_text(json.dumps(info))
    return folder
