"""Build an image a second time, and name the first file that differs.

``nix build --rebuild`` builds the image's derivation again, but not what it is made of: the NixOS system and
its packages are taken from the store. If the outputs differ, Nix keeps the second one beside the first, with
the suffix ``.check``. It is not a valid store path, so the next ``nix store gc`` deletes it.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.disk.firmware import efi_files, read_partitions
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.qemu import temporary_folder
from vmsnix_ops.errors import ImageError, NixError
from vmsnix_ops.nix.build import run_build
from vmsnix_ops.nix.command import FEATURES, find_nix
from vmsnix_ops.nix.flake import NO_LOCK
from vmsnix_ops.progress import Progress, current

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.disk.firmware import Partition
    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.nix.build import PlannedBuild
    from vmsnix_ops.nix.image import BuiltImage

_PIECE = 4 << 20  # bytes that are read and compared at a time
_DIFFOSCOPE_SECONDS = 900.0
_DEBUGFS_SECONDS = 300.0
_EXT_MAGIC_AT, _EXT_MAGIC = 1024 + 56, b"\x53\xef"  # ext4's superblock, "Ext4 Disk Layout"


@dataclass(frozen=True, slots=True)
class BuildDifference:
    """Two builds of an image that differ."""

    first: str  # store path of the first build
    second: str  # path of the second build
    file: str  # first file that differs, below these paths; empty for a difference of their kinds
    where: str  # where in the file: partition, file in it, first differing byte

    def __str__(self) -> str:
        return f"the first differing file is {self.file or self.first}: {self.where}"


def rebuild(
    plan: PlannedBuild, built: BuiltImage, *, progress: Progress | None = None
) -> BuildDifference | None:
    """Build an image that is built already again, and return how the two builds differ; ``None`` if equal.

    Safe to run twice: the built image remains unchanged. A NixError if the second build fails.
    """
    what = f"The image {plan.image.name} was not built a second time."
    first = Path(str(built.store_path))
    second = first.with_name(f"{first.name}.check")
    started = time.time()
    arguments = ["build", plan.image.installable, "--rebuild", "--keep-failed", "--no-link"]
    with (progress or current()).step("rebuild", unit="derivations") as step:
        try:
            run_build([find_nix(), *FEATURES, *arguments, NO_LOCK], what, step)
        except NixError:
            # The texts and exit statuses differ between versions of Nix; the second output does not.
            if not os.path.lexists(second) or second.lstat().st_ctime < started - 1:
                raise
        else:
            return None
    with (progress or current()).step("compare builds") as step:
        file, where = compare_outputs(first, second)
        if parts := diffoscope_parts(first / file, second / file):
            where += f"; diffoscope: {parts}"
    return BuildDifference(str(first), str(second), file, where)


def compare_outputs(first: Path, second: Path) -> tuple[str, str]:
    """Return the first differing file of two outputs, and where it differs; two empty texts if none does."""
    for name in sorted({*_names(first), *_names(second)}):
        one, other = (folder / name if name else folder for folder in (first, second))
        if where := _compare_file(one, other):
            return name, where
    return "", ""


def _names(folder: Path) -> Iterator[str]:
    if not folder.is_dir() or folder.is_symlink():
        yield ""
        return
    for path, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(path) / name).is_symlink()]
        for name in (*files, *links):
            yield str((Path(path) / name).relative_to(folder))


def _compare_file(one: Path, other: Path) -> str:
    """Return where two files differ; empty if they are equal."""
    for path, where in ((one, "first"), (other, "second")):
        if not os.path.lexists(path):
            return f"it is missing in the {where} build"
    if one.is_symlink() or other.is_symlink():
        targets = [str(path.readlink()) if path.is_symlink() else "not a link" for path in (one, other)]
        return "" if targets[0] == targets[1] else f"its link targets are {targets[0]} and {targets[1]}"
    if os.access(one, os.X_OK) != os.access(other, os.X_OK):
        return "only one of them is executable"
    if filecmp.cmp(one, other, shallow=False):
        return ""
    with suppress(ImageError):
        return compare_disks(one, other)
    with one.open("rb") as first, other.open("rb") as second:
        at = 0
        while (piece := first.read(_PIECE)) == second.read(_PIECE) and piece:
            at += len(piece)
        first.seek(at)
        second.seek(at)
        return f"first differing byte {at + _common(first.read(_PIECE), second.read(_PIECE)):,}"


def compare_disks(one: Path, other: Path) -> str:
    """Return where two disk images differ: partition, file in it, first differing byte of the disk.

    Files are found in FAT file systems, and in ext4 if ``debugfs`` (e2fsprogs) is installed. An ImageError if
    one of them is not a disk image.
    """
    with ExitStack() as stack:
        first, second = (stack.enter_context(open_image(path)) for path in (one, other))
        if first.size != second.size:
            return f"the disks have {first.size:,} and {second.size:,} bytes"
        for at in range(0, first.size, _PIECE):
            pieces = [disk.read(at, min(_PIECE, first.size - at)) for disk in (first, second)]
            if pieces[0] != pieces[1]:
                byte = at + _common(*pieces)
                return f"first differing byte of the disk: {byte:,}, {_describe(first, byte)}"
    return "the disks are equal, but not their files: the format's headers differ"


def _common(one: bytes, other: bytes) -> int:
    """Return the length of the common start of two texts that differ."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _describe(disk: DiskImage, byte: int) -> str:
    """Return what is at a byte of a disk."""
    for number, one in enumerate(read_partitions(disk)[1], 1):
        if one.start <= byte < one.start + one.size:
            place = f"in partition {number}, at byte {byte - one.start:,} of it"
            file = _file_at(disk, one, byte)
            return f"{place}, {f'in the file {file}' if file else 'in no known file'}"
    return "outside of the partitions"


def _file_at(disk: DiskImage, partition: Partition, byte: int) -> str:
    for path, file in efi_files(disk).items():
        if any(start <= byte < start + length for start, length in file.runs):
            return path
    if disk.read(partition.start + _EXT_MAGIC_AT, 2) == _EXT_MAGIC and shutil.which("debugfs"):
        return _file_of_ext4(disk, partition, byte)
    return ""


def _file_of_ext4(disk: DiskImage, partition: Partition, byte: int) -> str:
    """Return the path of the file that has this byte of the disk; empty for metadata and free space."""
    block_bytes = 1024 << int.from_bytes(disk.read(partition.start + 1024 + 24, 4), "little")
    with tempfile.TemporaryDirectory(prefix="vmsnix-compare-", dir=temporary_folder()) as folder:
        copy = Path(folder) / "partition"
        with copy.open("wb") as file:
            file.truncate(partition.size)
            for extent in disk.extents(partition.start, min(partition.start + partition.size, disk.size)):
                for at in range(extent.offset, extent.end, _PIECE):
                    file.seek(at - partition.start)
                    file.write(disk.read(at, min(_PIECE, extent.end - at)))
        inode = _debugfs(copy, f"icheck {(byte - partition.start) // block_bytes}")
        return _debugfs(copy, f"ncheck {inode}") if inode.isdecimal() else ""


def _debugfs(image: Path, request: str) -> str:
    """Return the second column of debugfs's answer, which has one line after its title."""
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["debugfs", "-R", request, image],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DEBUGFS_SECONDS,
            check=False,
        )
        rows = [row.split("\t", 1) for row in answer.stdout.splitlines()[1:]]
        return rows[0][1].strip() if rows and len(rows[0]) == 2 else ""
    return ""


def diffoscope_parts(one: Path, other: Path) -> str:
    """Return the parts of a file in which diffoscope finds the first difference, such as files of a disk.

    Empty without diffoscope, if it finds no parts, fails, or takes too long.
    """
    program = shutil.which("diffoscope")
    if program is None or one.is_symlink() or not (one.is_file() and other.is_file()):
        return ""
    try:
        answer = subprocess.run(
            [program, "--json", "-", "--no-progress", one, other],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DIFFOSCOPE_SECONDS,
            check=False,
        )
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    parts = []
    while isinstance(found, dict) and isinstance(details := found.get("details"), list) and details:
        found = details[0]
        parts.append(str(found.get("source1", "")) if isinstance(found, dict) else "")
    return " > ".join(filter(None, parts))
