"""Read qcow2, VHDX and VMDK images with ``qemu-img``."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from array import array
from bisect import bisect_right
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops.disk import signatures
from vmsnix_ops.disk.image import SECTOR, DiskImage, Extent, check_disk_size, damaged
from vmsnix_ops.disk.source import ByteSource, PathSource
from vmsnix_ops.errors import ImageError, ImageFormatError, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


# Run ``qemu-img``. Its memory is limited, and it ends with the call. It always gets the format and the file,
# and never detects them itself, so that no file name and no image can make it open other files.

MEMORY_LIMIT = 2 << 30
"""Maximum address space of ``qemu-img``. It needs less than half, but a damaged image can need more."""


def image_options(kind: str, path: Path) -> list[str]:
    """Return the arguments with an image and its format; the path may contain any characters."""
    filename = str(path.absolute()).replace(",", ",,")
    return ["--image-opts", f"driver={kind},file.driver=file,file.filename={filename}"]


def lines(arguments: Sequence[str], *, name: str, kind: str, accepted: Sequence[int] = (0,)) -> Iterator[str]:
    """Run ``qemu-img`` and yield the lines of its output.

    `name` and `kind` are the image and its format in errors: an ImageFormatError with the message of
    ``qemu-img``, or an ImageError if the disk is full or another program has locked the image.
    """
    program = find_program(
        "qemu-img",
        f"{name} is a {kind} image, but qemu-img is not installed on this machine.",
        why="Only VHD and raw images can be read without it.",
        fix="Install it (nix shell nixpkgs#qemu-utils, or apt install qemu-utils), or build a VHD.",
    )
    environment = {**os.environ, "LC_ALL": "C"}
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env=environment,
        )
        with process:
            try:
                _limit_memory(process.pid)
                yield from process.stdout or ()
                status = process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
        if status not in accepted:
            messages.seek(0)
            raise _error(messages.read(20_000).decode(errors="replace"), status, name, kind)


def _limit_memory(pid: int) -> None:
    if sys.platform != "linux":
        return
    with suppress(ProcessLookupError):  # it may have ended already
        resource.prlimit(pid, resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def _error(message: str, status: int, name: str, kind: str) -> ImageError:
    line = message.strip().split("\n")[0].removeprefix("qemu-img: ")
    why = f"qemu-img reported: {line.rstrip('.') or f'nothing, and ended with status {status}'}."
    if "No space left" in message or "File too large" in message:
        fix = "Free disk space, or set TMPDIR to a folder with as much free space as the image contains data."
        return ImageError(f"Not enough space in {temporary_folder()} to unpack {name}.", why=why, fix=fix)
    if re.search("Failed to get .*lock", message):
        fix = "Stop the machine that runs from this image, or copy the image first."
        return ImageError(f"{name} is in use by another program.", why=why, fix=fix)
    return ImageFormatError(
        f"{name} is not a valid {kind} image: qemu-img refuses it.",
        why=why,
        fix="Build the image again, or copy it again from its source.",
        field="as reported by qemu-img",
    )


def temporary_folder() -> Path:
    """Return the folder for large temporary files: ``TMPDIR``, else ``/var/tmp`` (``/tmp`` may be memory)."""
    large = Path("/var/tmp")  # noqa: S108 - only for a new private folder
    if "TMPDIR" not in os.environ and os.access(large, os.W_OK):
        return large
    return Path(tempfile.gettempdir())


MAX_RUNS = 500_000
"""Maximum number of stored ranges in memory (24 bytes each); an image with more is converted."""

LARGE_FILE = 2 << 40
"""Size from which a file system may refuse a file."""

COPY_CHUNK = 1 << 20
# Raw: the size of a VHD is limited to 2,040 GiB, and both methods of publishing support raw images.
WHOLE_FIX = "Convert it to a single file first: qemu-img convert -O raw INPUT OUTPUT.img"


class Runs:
    """The stored ranges of a disk, ascending: position on the disk, length, position in the file (bytes)."""

    def __init__(self) -> None:
        self.starts, self.lengths, self.stored = array("Q"), array("Q"), array("Q")

    def append(self, start: int, length: int, stored: int) -> None:
        """Add a range after the others."""
        self.starts.append(start)
        self.lengths.append(length)
        self.stored.append(stored)

    def between(self, start: int, stop: int) -> Iterator[Extent]:
        """Yield the stored ranges between two positions of the disk."""
        for index in range(max(bisect_right(self.starts, start) - 1, 0), len(self.starts)):
            if self.starts[index] >= stop:
                return
            part = Extent(self.starts[index], self.lengths[index], self.stored[index]).part(start, stop)
            if part.length > 0:
                yield part


class MappedImage(DiskImage):
    """An image with uncompressed data, which are read from the file."""

    own_layout = False

    def __init__(self, source: ByteSource, size: int, kind: str, runs: Runs) -> None:
        super().__init__(source, size)
        self.format, self._runs = kind, runs

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """Yield the ranges that ``qemu-img map`` reported."""
        return self._runs.between(start, self.size if stop is None else min(stop, self.size))


class ConvertedImage(DiskImage):
    """An image that the first read converts to a sparse raw file, which other images of the file use too."""

    converts = True
    own_layout = False

    def __init__(self, source: ByteSource, size: int, kind: str, file: Path, resources: ExitStack) -> None:
        super().__init__(source, size)
        self.format, self._file, self._resources = kind, file, resources
        self._raw: PathSource | None = None
        self._lock = threading.Lock()

    def plain_descriptor(self) -> int:
        """Return the open raw file."""
        return self._stored().descriptor

    def _stored(self) -> PathSource:
        with self._lock:
            if self._raw is None:
                self._raw = _converted(self._file, self.source, self.format, self.size)
            return self._raw

    def close(self) -> None:
        """Close both files."""
        super().close()
        self._resources.close()
        if self._raw is not None:
            self._raw.close()


def open_with_qemu(source: ByteSource, head: bytes) -> DiskImage:
    """Open a qcow2, VHDX or VMDK file, given its first 4096 bytes.

    The bytes of a reader are copied to a temporary file for ``qemu-img``. A file that is damaged or
    encrypted, or needs other files, is refused.
    """
    if head.startswith(signatures.QCOW2):
        kind = "qcow2"
        _check_qcow2(source, head)
    elif head.startswith(signatures.VMDK):
        kind = "vmdk"
        _check_vmdk(source, head)
    else:
        kind = "vhdx"
        _check_vhdx(source)
    with ExitStack() as stack:
        file = source.path or _spool(source, stack)
        size = _disk_size(source, file, kind)
        runs = _map(source, file, kind, size)
        image: DiskImage
        if runs is not None:
            image = MappedImage(source, size, kind, runs)
        else:
            image = ConvertedImage(source, size, kind, file, stack.pop_all())
        if kind == "vmdk":
            image.subformat = _vmdk_subformat(source, head)
        return image


def _check_qcow2(source: ByteSource, head: bytes) -> None:
    """Refuse a qcow2 image that is encrypted, marked as corrupt, or needs other files."""

    def number(at: int, length: int) -> int:
        return int.from_bytes(head[at : at + length], "big")

    def wrong(field: str, at: int, why: str, fix: str = WHOLE_FIX) -> ImageFormatError:
        return damaged(source.name, "qcow2", field, at, why, fix=fix)

    if len(head) < 112:
        raise wrong("header", len(head), f"The file ends after {len(head)} bytes, within its header.")
    if number(4, 4) not in (2, 3):
        raise wrong("version", 4, f"It is {number(4, 4)}, but only versions 2 and 3 are supported.")
    if number(8, 8):
        raise wrong(
            "backing_file_offset",
            8,
            "The image contains only the differences from another file, its backing file.",
        )
    if number(24, 8) % SECTOR:
        raise wrong("size", 24, _not_whole_sectors(number(24, 8)))
    if number(32, 4):
        raise wrong("crypt_method", 32, "The image is encrypted.", "Decrypt it first with qemu-img convert.")
    if number(4, 4) == 3 and number(72, 8) & 4:
        raise wrong("incompatible_features", 72, "The disk's data is in another file.")
    if number(4, 4) == 3 and number(72, 8) & 2:
        raise wrong("incompatible_features", 72, "The image is marked as corrupt.", "Build the image again.")


def _check_vmdk(source: ByteSource, head: bytes) -> None:
    """Refuse a VMDK that needs other files."""
    if len(head) < SECTOR:
        raise damaged(source.name, "VMDK", "header", len(head), "The file ends within its header.")
    if int.from_bytes(head[12:20], "little") == 0:
        why = "It is 0: the file only describes a disk whose data is in other files."
        raise damaged(source.name, "VMDK", "capacity", 12, why, fix=WHOLE_FIX)
    # The description of the disk: at the position in the header, and where QEMU searches for a parent.
    named = int.from_bytes(head[28:36], "little") * SECTOR
    for at in {SECTOR, min(named, source.size)}:
        text = source.read(at, min(20 * SECTOR, source.size - at)) if at < source.size else b""
        hint = text.find(b"parentFileNameHint")
        if hint >= 0:
            why = "The image contains only the differences from another file, its parent."
            raise damaged(source.name, "VMDK", "parentFileNameHint", at + hint, why, fix=WHOLE_FIX)


def _vmdk_subformat(source: ByteSource, head: bytes) -> str:
    """Return ``createType`` of a VMDK's descriptor, such as ``streamOptimized``; empty if it has none."""
    at = int.from_bytes(head[28:36], "little") * SECTOR or SECTOR
    text = source.read(at, min(20 * SECTOR, source.size - at)) if at < source.size else b""
    found = re.search(rb'createType\s*=\s*"([A-Za-z0-9]{1,40})"', text)
    return found[1].decode() if found else ""


def _check_vhdx(source: ByteSource) -> None:
    """Refuse a file that ends within a sector, for which ``qemu-img`` would silently add zeros."""
    if source.size % SECTOR:
        why = "A VHDX has a whole number of megabytes, but this one ends within a sector: it is incomplete."
        raise damaged(source.name, "VHDX", "end of file", source.size, why)
    at = _vhdx_size_at(source)
    if at is not None and (size := int.from_bytes(source.read(at, 8), "little")) % SECTOR:
        raise damaged(source.name, "VHDX", "VirtualDiskSize", at, _not_whole_sectors(size))


# Names of a region and of an item in it, from the VHDX format specification, sections 2.2.3 and 2.6.2.
_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_DISK_SIZE_ITEM = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_REGIONS, _TABLE_BYTES = 192 << 10, 64 << 10


def _vhdx_size_at(source: ByteSource) -> int | None:
    """Return the position of a VHDX's disk size; ``None`` if the tables do not name it."""

    def number_behind(name: bytes, table: int, length: int) -> int | None:
        found = source.read(table, _TABLE_BYTES).find(name) if table + _TABLE_BYTES <= source.size else -1
        at = table + found + len(name)
        return int.from_bytes(source.read(at, length), "little") if found >= 0 else None

    region = number_behind(_METADATA_REGION, _REGIONS, 8)
    item = None if region is None else number_behind(_DISK_SIZE_ITEM, region, 4)
    if region is None or item is None or region + item + 8 > source.size:
        return None  # `qemu-img` reports the error
    return region + item


def _not_whole_sectors(size: int) -> str:
    # `qemu-img` would leave out the part of a sector at the end.
    return f"It is {size} bytes, not a multiple of {SECTOR}."


def _disk_size(source: ByteSource, file: Path, kind: str) -> int:
    """Return the size of the disk, after ``qemu-img`` has checked the image's tables."""
    options = image_options(kind, file)
    text = "".join(lines(["info", "--output=json", *options], name=source.name, kind=kind))
    size = json.loads(text)["virtual-size"]
    if not isinstance(size, int) or size <= 0 or size % SECTOR:
        raise damaged(source.name, kind, "virtual size", None, _not_whole_sectors(size))
    check_disk_size(source.name, size)
    # 3: leaked clusters, which only waste space; 63: a format without a check.
    for _line in lines(["check", "-q", *options], name=source.name, kind=kind, accepted=(0, 3, 63)):
        pass
    return size


def _map(source: ByteSource, file: Path, kind: str, size: int) -> Runs | None:
    """Return the positions of all data in the file, or ``None`` if the image must be converted."""
    runs, end = Runs(), 0
    arguments = ["map", "--output=json", *image_options(kind, file)]
    for line in lines(arguments, name=source.name, kind=kind):
        text = line.strip().strip("[],")
        if not text:
            continue
        entry = json.loads(text)
        start, length, stored = entry["start"], entry["length"], entry.get("offset")
        if start != end:
            why = f"qemu-img reports a range at byte {start} of the disk after one that ends at {end}."
            raise damaged(source.name, kind, "map", None, why)
        end = start + length
        if stored is not None and entry["present"] and stored + length > source.size:
            why = f"Bytes {start} to {end} of the disk are beyond the end of the file: it is incomplete."
            raise damaged(source.name, kind, "end of file", stored, why)
        if entry["data"] and not entry["zero"]:
            if stored is None or entry.get("compressed") or len(runs.starts) >= MAX_RUNS:
                return None
            runs.append(start, length, stored)
    if end != size:
        raise damaged(source.name, kind, "map", None, f"qemu-img reports {end} bytes of a disk of {size}.")
    _check_overlap(source, kind, runs)
    return runs


def _check_overlap(source: ByteSource, kind: str, runs: Runs) -> None:
    """Refuse an image in which two ranges of the disk have the same position in the file."""
    end, previous = 0, 0
    for index in sorted(range(len(runs.stored)), key=runs.stored.__getitem__):
        stored, start = runs.stored[index], runs.starts[index]
        if stored < end:
            why = f"Bytes {start} and {previous} of the disk have the same location in the file."
            raise damaged(source.name, kind, "cluster or grain table", stored, why)
        end, previous = stored + runs.lengths[index], start


def _spool(source: ByteSource, stack: ExitStack) -> Path:
    """Copy a reader to a sparse temporary file, which is deleted when the image is closed."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmsnix-", dir=temporary_folder()))
    path, zeros = Path(folder) / "image", bytes(COPY_CHUNK)
    with path.open("wb") as file:
        for offset in range(0, source.size, COPY_CHUNK):
            data = source.read(offset, min(COPY_CHUNK, source.size - offset))
            if data != zeros[: len(data)]:
                file.seek(offset)
                file.write(data)
        file.truncate(source.size)
    return path


def _check_file_size(output: Path, name: str, size: int) -> None:
    """Refuse a disk that is larger than the maximum size of a file in this file system."""
    if size < LARGE_FILE:
        return
    try:
        with output.open("wb") as file:
            file.truncate(size)
    except OSError as error:
        raise ImageError(
            f"The disk in {name} is larger than the largest file in {temporary_folder()}.",
            why=f"It has {size} bytes, but the file system refuses a file of that size ({error.strerror}; "
            "the limit of ext4 is 16 TiB).",
            fix="Set TMPDIR to a folder on a file system with larger files, such as XFS, or use a raw image.",
        ) from error


_copy: list[tuple[tuple[int, ...], PathSource]] = []  # at most one: stamp of the image, and its raw file
_copy_lock = threading.Lock()


def _converted(file: Path, source: ByteSource, kind: str, size: int) -> PathSource:
    """Return the disk as a raw file, which the caller closes.

    A publish opens an image several times: to find its boot mode, to identify it and to upload it. So the
    last raw file of this process is kept until `delete_copy`, or until another image is converted.
    """
    if source.path is None:
        return _convert(file, source.name, kind, size)
    with _copy_lock:
        before = _stamp(file)
        if not _copy or _copy[0][0] != before:
            _delete_copy()
            raw = _convert(file, source.name, kind, size)
            if _stamp(file) != before:  # it was written meanwhile
                return raw
            _copy.append((before, raw))
        return PathSource(Path(f"/dev/fd/{_copy[0][1].descriptor}"))


def delete_copy() -> None:
    """Delete the raw file of the last image that was converted, as soon as no image reads it."""
    with _copy_lock:
        _delete_copy()


def _delete_copy() -> None:
    for _stamped, raw in _copy:
        raw.close()
    _copy.clear()


def _stamp(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _convert(file: Path, name: str, kind: str, size: int) -> PathSource:
    """Convert the disk to a sparse raw file, which is unlinked at once, so that it is always deleted."""
    folder = Path(tempfile.mkdtemp(prefix="vmsnix-", dir=temporary_folder()))
    try:
        output = folder / "disk.raw"
        _check_file_size(output, name, size)
        options = image_options(kind, file)
        for _line in lines(["convert", *options, "-O", "raw", str(output)], name=name, kind=kind):
            pass
        raw = PathSource(output)
        if raw.size != size:
            raw.close()
            why = f"The disk has {raw.size} bytes, but {size} were expected."
            raise damaged(name, kind, "virtual size", None, why)
        return raw
    finally:
        shutil.rmtree(folder)
