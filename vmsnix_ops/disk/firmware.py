"""Read a disk's partition table, the files of its EFI system partition, and how it can boot.

With UEFI, an EC2 instance starts ``EFI/BOOT/BOOTX64.EFI`` or ``BOOTAA64.EFI`` of an EFI system partition.
With a BIOS, it starts the x86 code in the disk's first sector. Invalid structures are ignored.

Sources: "UEFI Specification 2.10", chapters 3.5.1 (removable media) and 5 (GPT); "Microsoft FAT32 File System
Specification".
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmsnix_ops.disk.image import SECTOR
from vmsnix_ops.errors import ImageFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.disk.image import DiskImage

LOADERS = {"BOOTX64.EFI": "x86_64-linux", "BOOTAA64.EFI": "aarch64-linux"}
"""Files in EFI/BOOT that a UEFI firmware starts, and their systems."""

EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BASIC_DATA = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
LEGACY_BOOTABLE = 1 << 2  # attribute of a GPT partition
FAT_TYPES = frozenset({0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E, 0xEF})  # of an MBR partition
EFI_TYPE = 0xEF
PROTECTIVE = 0xEE  # an MBR partition for a whole GPT; its size is often wrong on purpose
MBR_ENTRIES, MBR_ENTRY = (446, 462, 478, 494), struct.Struct("<B3xB3xII")
BOOT_LOADERS = (b"GRUB", b"LILO", b"LIMINE", b"Limine", b"SYSLINUX", b"ISOLINUX", b"EXTLINUX")
MOST_ENTRIES, MOST_CLUSTERS, MOST_ROOT_BYTES = 1024, 512, 1 << 20
MOST_FILES, DEEPEST = 4096, 8  # of an EFI system partition
_SIGNATURE = b"EFI PART"
_MACHINES = {0x8664: "x86_64-linux", 0xAA64: "aarch64-linux"}


@dataclass(frozen=True, slots=True)
class Firmware:
    """The boot loaders of a disk."""

    table: str  # partition table: "gpt", "mbr" or "none"
    uefi: frozenset[str]  # systems for which the disk has a UEFI boot loader
    bios: bool  # whether the disk has BIOS boot code

    @property
    def systems(self) -> frozenset[str]:
        """The systems that the disk can boot."""
        return self.uefi | ({"x86_64-linux"} if self.bios else set())

    def boot_mode(self, system: str) -> str:
        """Return EC2's boot mode for a system; empty if the disk has no boot loader for it."""
        bios = self.bios and system == "x86_64-linux"
        if system in self.uefi:
            return "uefi-preferred" if bios else "uefi"
        return "legacy-bios" if bios else ""

    def __str__(self) -> str:
        names = {system: name for name, system in LOADERS.items()}
        found = [f"EFI/BOOT/{names[system]}" for system in sorted(self.uefi)]
        found += ["BIOS boot code"] if self.bios else []
        kind = {"gpt": "a GPT", "mbr": "an MBR", "none": "no partition table"}[self.table]
        return f"{kind}, {' and '.join(found) or 'neither a UEFI boot loader nor BIOS boot code'}"


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a disk."""

    start: int  # in bytes
    size: int
    fat: bool  # may contain a UEFI boot loader
    efi: bool
    bios: bool  # GRUB's boot partition, or marked active
    kind: uuid.UUID | None = None  # partition type; None in an MBR
    unique: uuid.UUID | None = None  # PARTUUID; None in an MBR


@dataclass(frozen=True, slots=True)
class EfiFile:
    """A file of an EFI system partition, read without mounting it."""

    image: DiskImage
    path: str  # as "EFI/BOOT/BOOTX64.EFI"; names in upper case
    size: int  # in bytes
    runs: tuple[tuple[int, int], ...]  # start on the disk and length of each part, in bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range, which ends at the end of the file."""
        stop, at, parts = min(offset + length, self.size), 0, []
        for start, size in self.runs:
            first, last = max(offset, at), min(stop, at + size)
            if first < last:
                parts.append(self.image.read(start + first - at, last - first))
            at += size
        return b"".join(parts)


def read_firmware(image: DiskImage) -> Firmware:
    """Return the boot loaders of a disk; refuse one that is partitioned for sectors of 4,096 bytes."""
    check_sector_size(image)
    table, partitions = read_partitions(image)
    uefi = frozenset(
        system for one in partitions if one.fat for system in _loaders(image, one.start, one.size)
    )
    first = _first_sector(image)
    # A BIOS reads the MBR, which can have an active partition beside a GPT (a hybrid MBR).
    return Firmware(table, uefi, _has_boot_code(first, [*partitions, *_mbr(image, first)]))


def read_partitions(image: DiskImage) -> tuple[str, list[Partition]]:
    """Return the kind of the partition table ("gpt", "mbr" or "none") and its partitions."""
    first = _first_sector(image)
    if image.read(SECTOR, 8) == _SIGNATURE:
        return "gpt", list(read_gpt(image))
    if first[510:512] == b"\x55\xaa" and any(first[at + 4] for at in MBR_ENTRIES):
        return "mbr", list(_mbr(image, first))
    return "none", []


def _first_sector(image: DiskImage) -> bytes:
    return image.read(0, SECTOR).ljust(SECTOR, b"\0")


def check_sector_size(image: DiskImage) -> None:
    """Refuse a disk that is partitioned for sectors of 4,096 bytes with an `ImageFormatError`."""
    if image.read(4096, 8) == _SIGNATURE and image.read(SECTOR, 8) != _SIGNATURE:
        raise ImageFormatError(
            f"{image.source.name} is partitioned for sectors of 4,096 bytes.",
            why="Its GPT is at byte 4096. EC2 disks have sectors of 512 bytes, where a GPT is at byte 512.",
            fix="Build the image with sectors of 512 bytes (systemd-repart --sector-size=512).",
            offset=4096,
            field="GPT header",
        )


def _has_boot_code(first: bytes, partitions: list[Partition]) -> bool:
    """Return whether a BIOS can start this disk.

    Code in the first sector is not sufficient: that of partitioning tools only starts an active partition.
    """
    code = first[:440]
    if first[510:512] != b"\x55\xaa" or not any(code):
        return False
    return any(name in code for name in BOOT_LOADERS) or any(one.bios for one in partitions)


def _mbr(image: DiskImage, first: bytes) -> Iterator[Partition]:
    for at in MBR_ENTRIES:
        status, kind, start, count = MBR_ENTRY.unpack_from(first, at)
        if kind and count and kind != PROTECTIVE and start * SECTOR < image.size:
            efi = kind == EFI_TYPE
            active = status == 0x80 and not efi
            yield Partition(start * SECTOR, count * SECTOR, kind in FAT_TYPES, efi, active)


def read_gpt(image: DiskImage) -> Iterator[Partition]:
    """Yield the partitions of a GPT; none if the disk has no valid one."""
    header = image.read(SECTOR, 92)
    if len(header) < 92 or not header.startswith(_SIGNATURE):
        return
    table, count, size = struct.unpack_from("<QII", header, 72)
    if not 128 <= size <= 4096 or table * SECTOR >= image.size:
        return
    entries = image.read(table * SECTOR, min(count, MOST_ENTRIES) * size)
    for at in range(0, len(entries) - 127, size):
        kind = uuid.UUID(bytes_le=entries[at : at + 16])
        start, end, attributes = struct.unpack_from("<QQQ", entries, at + 32)
        if kind.int and start <= end and start * SECTOR < image.size:
            efi = kind == EFI_SYSTEM
            bios = kind == BIOS_BOOT or bool(attributes & LEGACY_BOOTABLE)
            size_bytes = (end - start + 1) * SECTOR
            unique = uuid.UUID(bytes_le=entries[at + 16 : at + 32])
            fat = efi or kind == BASIC_DATA
            yield Partition(start * SECTOR, size_bytes, fat, efi, bios, kind, unique)


def efi_files(image: DiskImage) -> dict[str, EfiFile]:
    """Return all files of the EFI system partitions of a GPT by their paths, in upper case.

    At most `MOST_FILES` files, in folders that are at most `DEEPEST` deep.
    """
    found: dict[str, EfiFile] = {}

    def walk(volume: _Fat, folder: bytes, prefix: str, depth: int) -> None:
        for names, entry in _entries(folder):
            path = f"{prefix}{names[0] or names[1]}"
            if names[1] in (".", "..") or len(found) >= MOST_FILES:
                continue
            if not entry.is_folder:
                # Of two entries with one name, firmwares use the first.
                found.setdefault(
                    path, EfiFile(image, path, entry.size, volume.runs(entry.cluster, entry.size))
                )
            elif depth < DEEPEST:
                walk(volume, volume.chain(entry.cluster), f"{path}/", depth + 1)

    for one in read_gpt(image):
        volume = _Fat.open(image, one.start, one.size) if one.efi else None
        if volume is not None:
            walk(volume, volume.root(), "", 0)
    return found


def _loaders(image: DiskImage, start: int, size: int) -> Iterator[str]:
    """Yield the systems for which the FAT file system at `start` has a boot loader."""
    volume = _Fat.open(image, start, size)
    if volume is None:
        return
    folder = volume.root()
    for name in ("EFI", "BOOT"):
        found = _entry(folder, name)
        if found is None or not found.is_folder:
            return
        folder = volume.chain(found.cluster)
    for name, system in LOADERS.items():
        found = _entry(folder, name)
        if found is not None and not found.is_folder and found.size:
            machine = _machine(volume.cluster(found.cluster))
            if machine in ("", system):
                yield system


def _machine(head: bytes) -> str:
    """Return the system of an EFI program; empty if its first bytes do not contain it."""
    if not head.startswith(b"MZ") or len(head) < 64:
        return ""
    at = int.from_bytes(head[60:64], "little")
    if head[at : at + 4] != b"PE\0\0":
        return ""
    return _MACHINES.get(int.from_bytes(head[at + 4 : at + 6], "little"), "another")


@dataclass(frozen=True, slots=True)
class _FatEntry:
    is_folder: bool
    cluster: int
    size: int


def _entry(folder: bytes, wanted: str) -> _FatEntry | None:
    """Return an entry of a FAT folder by its name, long or short, in any case."""
    return next((entry for names, entry in _entries(folder) if wanted in names), None)


def _entries(folder: bytes) -> Iterator[tuple[tuple[str, str], _FatEntry]]:
    """Yield the entries of a FAT folder with their long and short names, in upper case."""
    long = ""
    for at in range(0, len(folder) - 31, 32):
        entry = folder[at : at + 32]
        if entry[0] == 0:
            return
        if entry[0] == 0xE5:
            long = ""
            continue
        if entry[11] & 0x3F == 0x0F:  # a part of a long name; the last part comes first
            part = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le", "replace")
            long = part.partition("\0")[0] + long
            continue
        base, extension = (text.decode("latin-1").rstrip() for text in (entry[:8], entry[8:11]))
        short = f"{base}.{extension}" if extension else base
        if not entry[11] & 0x08:  # no volume label
            high, low, size = struct.unpack("<H4xHI", entry[20:32])
            yield (long.upper(), short.upper()), _FatEntry(bool(entry[11] & 0x10), high << 16 | low, size)
        long = ""


@dataclass(frozen=True, slots=True)
class _Fat:
    image: DiskImage
    start: int
    fat: int  # byte of the first table
    fat_bytes: int
    bits: int
    root_at: int
    root_bytes: int
    root_cluster: int
    data_at: int
    cluster_bytes: int
    clusters: int

    @classmethod
    def open(cls, image: DiskImage, start: int, size: int) -> _Fat | None:
        """Return the file system at `start`, or ``None``."""
        head = image.read(start, SECTOR)
        if len(head) < SECTOR or head[510:512] != b"\x55\xaa":
            return None
        sector, per_cluster, reserved, tables, roots, small = struct.unpack_from("<HBHBHH", head, 11)
        fat_sectors = struct.unpack_from("<H", head, 22)[0] or struct.unpack_from("<I", head, 36)[0]
        total = small or struct.unpack_from("<I", head, 32)[0]
        known = sector in (512, 1024, 2048, 4096) and per_cluster and per_cluster & (per_cluster - 1) == 0
        if not (known and reserved and tables and fat_sectors and total):
            return None
        root_sectors = -(-roots * 32 // sector)
        data = reserved + tables * fat_sectors + root_sectors
        clusters = (total - data) // per_cluster
        if clusters < 1 or data * sector >= size:
            return None
        # By the standard the number of clusters decides, but some tools create small FAT32 file systems.
        fat32 = not struct.unpack_from("<H", head, 22)[0]
        bits = 32 if fat32 else 12 if clusters < 4085 else 16
        return cls(
            image,
            start,
            start + reserved * sector,
            fat_sectors * sector,
            bits,
            start + (reserved + tables * fat_sectors) * sector,
            min(root_sectors * sector, MOST_ROOT_BYTES),
            struct.unpack_from("<I", head, 44)[0] if fat32 else 0,
            start + data * sector,
            per_cluster * sector,
            clusters,
        )

    def root(self) -> bytes:
        """Return the entries of the root folder."""
        if self.bits == 32:
            return self.chain(self.root_cluster)
        return self.image.read(self.root_at, self.root_bytes)

    def chain(self, cluster: int) -> bytes:
        """Return the content of a folder, at most `MOST_CLUSTERS` clusters."""
        parts, seen = [], set[int]()
        while 2 <= cluster < self.clusters + 2 and cluster not in seen and len(seen) < MOST_CLUSTERS:
            seen.add(cluster)
            parts.append(self.cluster(cluster))
            cluster = self._next(cluster)
        return b"".join(parts)

    def runs(self, cluster: int, size: int) -> tuple[tuple[int, int], ...]:
        """Return start on the disk and length of the parts of a file of `size` bytes.

        They are shorter than the file if its chain of clusters is damaged.
        """
        found, left = list[tuple[int, int]](), min(size, self.clusters * self.cluster_bytes)
        while left > 0 and 2 <= cluster < self.clusters + 2:
            start, length = self.data_at + (cluster - 2) * self.cluster_bytes, min(left, self.cluster_bytes)
            if found and sum(found[-1]) == start:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((start, length))
            left -= length
            cluster = self._next(cluster)
        return tuple(found)

    def cluster(self, number: int) -> bytes:
        """Return the content of a cluster; empty if it does not exist."""
        if not 2 <= number < self.clusters + 2:
            return b""
        return self.image.read(self.data_at + (number - 2) * self.cluster_bytes, self.cluster_bytes)

    def _next(self, cluster: int) -> int:
        at = cluster * self.bits // 8
        if at + 2 > self.fat_bytes:
            return 0
        value = int.from_bytes(self.image.read(self.fat + at, 4)[: 4 if self.bits == 32 else 2], "little")
        if self.bits == 12:
            return value >> 4 if cluster % 2 else value & 0xFFF
        return value & 0x0FFFFFFF
