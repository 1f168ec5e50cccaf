"""The identity of an image, its blocks and its parts, from one pass."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import threading
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from tests.disk.images import BLOCK, MIB, scattered, write_ours, write_raw
from tests.disk.test_image import build, disks
from tests.support import require
from vmsnix_ops.disk import vhd
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.identity import identity_of
from vmsnix_ops.disk.qemu import lines
from vmsnix_ops.disk.source import PathSource
from vmsnix_ops.disk.survey import (
    IdentifiedSource,
    Survey,
    block_digests,
    identify,
    part_bytes,
    still_identified,
    survey,
    unchanged,
)
from vmsnix_ops.errors import ImageChangedError, ImageError, ImageFormatError

if TYPE_CHECKING:
    from pathlib import Path


def expected(disk: bytes) -> dict[int, str]:
    """Return the digests of the blocks with data."""
    blocks = {at // BLOCK: disk[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(disk), BLOCK)}
    return {index: hashlib.sha256(block).hexdigest() for index, block in blocks.items() if block.strip(b"\0")}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(disks)
def test_one_pass_finds_the_identity_the_blocks_and_the_parts(
    tmp_path_factory: pytest.TempPathFactory, disk: tuple[int, dict[int, int], str]
) -> None:
    content, path = build(*disk, tmp_path_factory.mktemp("disk"))
    for parts in (False, True):
        surveyed = identify(path, parts=parts)
        assert surveyed.identity == identity_of(Digests(expected(content).items()).raw())
        assert surveyed.blocks == expected(content)
        assert (surveyed.file_bytes, surveyed.disk_bytes) == (path.stat().st_size, len(content))
        assert surveyed.parts == (parts_of(path.read_bytes()) if parts else b"")


def parts_of(content: bytes) -> bytes:
    """Return the digests of the parts of a file."""
    return b"".join(
        hashlib.sha256(content[at : at + 8 * MIB]).digest() for at in range(0, len(content), 8 * MIB)
    )


@pytest.mark.parametrize("zeros", ["none", "first half", "all"])
def test_parts_that_begin_with_zeros_have_their_digest(
    tmp_path: Path, zeros: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmsnix_ops.disk.survey.PIECE", MIB)
    content = bytearray(random.Random(3).randbytes(20 * MIB))
    end = {"none": 0, "first half": 12 * MIB, "all": 20 * MIB}[zeros]
    content[:end] = bytes(end)
    assert identify(write_raw(tmp_path / "disk", bytes(content)), parts=True).parts == parts_of(content)


def test_holes_and_zeros_are_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"\xeb" * BLOCK + bytes(8 * BLOCK))
        file.truncate(1 << 30)
    hashed: list[int] = []
    real = hashlib.sha256

    def counting(data: bytes = b"") -> object:
        hashed.append(len(data))
        return real(data)

    monkeypatch.setattr("vmsnix_ops.disk.survey.hashlib", SimpleNamespace(sha256=counting))
    assert identify(path).blocks == expected(b"\xeb" * BLOCK)
    assert hashed == [BLOCK]


def test_all_cores_find_the_same_and_report_progress(tmp_path: Path) -> None:
    disk = scattered(80 * MIB, pieces=200)
    done: list[int] = []
    with open_image(write_raw(tmp_path / "disk", disk)) as image:
        found = block_digests(image, on_progress=done.append)
    assert found == expected(disk)
    assert list(found) == sorted(found)
    assert sum(done) == len(disk)
    assert min(done) >= 0


def test_a_reader_is_identified_too() -> None:
    disk = scattered(3 * MIB, pieces=9)
    with open_image(io.BytesIO(disk)) as image:
        assert survey(image).stamp is None
        assert survey(image, parts=True).parts == parts_of(disk)
        assert block_digests(image) == expected(disk)


@pytest.mark.parametrize("parts", [False, True])
def test_the_disk_of_an_image_that_must_be_converted_is_identified(tmp_path: Path, parts: bool) -> None:
    require("qemu-img")
    raw = write_raw(tmp_path / "disk", scattered(4 * MIB, pieces=9))
    packed = tmp_path / "packed.qcow2"
    list(lines(["convert", "-c", "-O", "qcow2", str(raw), str(packed)], name="raw", kind="raw"))
    surveyed = identify(packed, parts=parts)
    assert surveyed.identity == identify(raw).identity
    assert surveyed.blocks == expected(raw.read_bytes())
    assert surveyed.parts == (parts_of(packed.read_bytes()) if parts else b"")


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "disk", scattered(4 * MIB, pieces=9))

    def write(_bytes: int) -> None:
        os.utime(path, ns=(1, 1))

    with open_image(path) as image, pytest.raises(ImageError, match="changed"):
        survey(image, on_progress=write)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("size", [3 * MIB, 5 * MIB])
def test_a_file_that_grows_or_shrinks_meanwhile_is_refused(tmp_path: Path, size: int, parts: bool) -> None:
    path = write_raw(tmp_path / "disk", scattered(4 * MIB, pieces=9))

    def resize(_bytes: int) -> None:
        os.truncate(path, size)

    with open_image(path) as image, pytest.raises(ImageChangedError, match="changed while it was in use"):
        survey(image, parts=parts, on_progress=resize)


def test_a_file_that_is_truncated_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "disk", b"\xeb" * (4 * MIB))
    with open_image(path) as image:
        os.truncate(path, 3 * MIB + 512)
        with pytest.raises(ImageChangedError, match="changed while it was in use"):
            survey(image)
        with pytest.raises(ImageFormatError) as caught:
            survey(image, parts=True)
    assert (caught.value.offset, caught.value.field) == (3 * MIB + 512, "end of file")


def test_an_interrupt_ends_the_survey_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(8 << 30)
        for at in range(0, 8 << 30, 64 * MIB):
            file.seek(at)
            file.write(b"x")
    before = set(threading.enumerate())  # of other tests, some may end meanwhile

    def press(_bytes: int) -> None:
        raise KeyboardInterrupt

    with open_image(path) as image, pytest.raises(KeyboardInterrupt):
        survey(image, on_progress=press)
    assert set(threading.enumerate()) <= before


def write_quietly(path: Path, offset: int, data: bytes) -> None:
    """Write in place, and set the time of last change back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_all_digests_are_of_the_same_bytes_whatever_is_written_meanwhile(tmp_path: Path) -> None:
    size = 40 * MIB
    path, content = write_raw(tmp_path / "disk", bytes(range(1, 9)) * (size // 8)), bytearray()
    content += path.read_bytes()
    at = 0

    def write(count: int) -> None:
        nonlocal at
        at += count
        for offset in (at - count, size - BLOCK):  # what was hashed a moment ago, and the last block
            write_quietly(path, offset, bytes([at // count % 250 + 1]) * 512)
        if at < size:
            content[size - BLOCK : size - BLOCK + 512] = bytes([at // count % 250 + 1]) * 512

    with open_image(path) as image:
        surveyed = survey(image, parts=True, on_progress=write)
    assert surveyed.blocks == expected(bytes(content))
    assert surveyed.parts == parts_of(content)


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_headers_and_tables_that_change_before_they_are_hashed_are_found(tmp_path: Path, kind: str) -> None:
    path = write_ours(tmp_path / "disk", b"\xeb" * (6 * MIB), kind)
    with open_image(path) as image:
        if kind == "dynamic":
            table = path.read_bytes()[1536:1544]
            write_quietly(path, 1536, table[4:] + table[:4])
        else:
            write_quietly(path, path.stat().st_size - 1, b"x")
        with pytest.raises(ImageChangedError) as caught:
            survey(image, parts=True)
    assert caught.value.offset is not None


def test_scattered_blocks_are_found_too(tmp_path: Path) -> None:
    """A VHD with blocks of 64 KiB, in the file in any order, so that no block of EBS is in one place."""
    size, block = 16 * MIB, 64 * 1024
    disk = bytes(random.Random(1).randbytes(size))
    path = write_vhd_of_small_blocks(tmp_path / "disk", disk, block)
    with open_image(path) as image:
        assert image.read(0, size) == disk
        surveyed = survey(image, parts=True)
    assert surveyed.blocks == expected(disk)
    assert surveyed.parts == parts_of(path.read_bytes())


def write_vhd_of_small_blocks(path: Path, disk: bytes, block: int) -> Path:
    """Write a dynamic VHD whose blocks are small, and in the file in any order."""
    count, at = len(disk) // block, 2048
    footer = vhd._footer(len(disk), "dynamic", bytes(16))
    header = vhd.DynamicHeader(vhd.NO_OFFSET, 1536, vhd.VERSION, count, block, 0)
    table, body = [0] * count, bytearray()
    at = 1536 + -(-count * 4 // 512) * 512
    order = list(range(count))
    random.Random(2).shuffle(order)
    for index in order:
        table[index] = (at + len(body)) // 512
        body += b"\xff" * vhd.bitmap_bytes(block) + disk[index * block : (index + 1) * block]
    entries = b"".join(sector.to_bytes(4, "big") for sector in table)
    path.write_bytes(footer + header.pack() + entries.ljust(at - 1536, b"\xff") + body + footer)
    return path


def test_the_digests_of_a_large_image_take_little_memory() -> None:
    assert (100 << 30) // part_bytes(100 << 30) * 32 < 512 * 1024
    assert part_bytes(5 << 40) * 10_000 >= 5 << 40


@pytest.mark.parametrize("change", ["behind", "cut", "longer"])
def test_only_identified_bytes_of_an_image_are_read(tmp_path: Path, change: str) -> None:
    path = write_raw(tmp_path / "disk", b"\xeb" * (20 * MIB))
    with open_image(path) as image:
        surveyed = survey(image, parts=True)
    if change == "behind":
        write_quietly(path, 9 * MIB, b"other")
    else:
        os.truncate(path, (20 * MIB) + (512 if change == "longer" else -512))
    with pytest.raises(ImageChangedError) as caught:
        read_identified(path, surveyed)
    assert caught.value.offset == {"behind": 8 * MIB, "cut": 20 * MIB - 512, "longer": 20 * MIB}[change]


def test_a_later_hole_in_the_file_is_not_taken_as_zeros(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "disk", b"\xeb" * (20 * MIB))
    with open_image(path) as image:
        surveyed = survey(image, parts=True)
    path.unlink()
    with path.open("wb") as file:
        file.write(b"\xeb" * (8 * MIB))
        file.truncate(20 * MIB)
    with pytest.raises(ImageChangedError):
        read_identified(path, surveyed)


def test_a_file_that_is_deleted_meanwhile_has_changed(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "disk", b"\xeb" * (2 * MIB))
    surveyed = identify(path)
    with pytest.raises(ImageChangedError), unchanged(path, surveyed):
        path.unlink()


def read_identified(path: Path, surveyed: Survey) -> None:
    """Read a whole image, compared with its digests."""
    with closing(PathSource(path)) as file, open_image(IdentifiedSource(file, surveyed)) as image:
        list(image.blocks())


@pytest.mark.parametrize("parts", [False, True])
def test_a_file_with_the_same_bytes_is_still_identified(tmp_path: Path, parts: bool) -> None:
    path = write_raw(tmp_path / "disk", b"\xeb" * (2 * MIB))
    surveyed = identify(path, parts=parts)
    assert still_identified(path, surveyed)
    os.utime(path)
    path.chmod(0o600)
    assert still_identified(path, surveyed)
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").rename(path)
    assert still_identified(path, surveyed)
    write_quietly(path, MIB, b"x")
    assert not still_identified(path, surveyed)
    path.unlink()
    assert not still_identified(path, surveyed)
