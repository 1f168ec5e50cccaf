"""One look tells who an image is and what its blocks are."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from tests.disk.images import BLOCK, MIB, scattered, write_raw
from tests.disk.test_image import build, disks
from tests.support import require
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.qemu_img import lines
from vmsnix_ops.disk.survey import block_digests, check_unchanged, survey
from vmsnix_ops.errors import ImageError, ImageFormatError

if TYPE_CHECKING:
    from pathlib import Path


def expected(disk: bytes) -> dict[int, str]:
    """Return the digests of the blocks that hold something."""
    blocks = {at // BLOCK: disk[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(disk), BLOCK)}
    return {index: hashlib.sha256(block).hexdigest() for index, block in blocks.items() if any(block)}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(disks)
def test_it_tells_the_digests_of_file_and_blocks(
    tmp_path_factory: pytest.TempPathFactory, disk: tuple[int, dict[int, int], str]
) -> None:
    content, path = build(*disk, tmp_path_factory.mktemp("disk"))
    with open_image(path) as image:
        seen = survey(image)
        stored = set(image.allocated(BLOCK))
    assert seen.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen.blocks is not None
    assert set(seen.blocks) == stored
    assert {index: digest for index, digest in seen.blocks.items() if digest} == expected(content)


def test_all_cores_find_the_same_and_tell_their_progress(tmp_path: Path) -> None:
    disk = scattered(80 * MIB, pieces=200)
    done: list[int] = []
    with open_image(write_raw(tmp_path / "disk", disk)) as image:
        found = block_digests(image, on_progress=done.append)
    assert {index: digest for index, digest in found.items() if digest} == expected(disk)
    assert list(found) == sorted(found)
    assert sum(done) == len(disk)
    assert min(done) >= 0


def test_a_reader_can_be_looked_at_too() -> None:
    disk = scattered(3 * MIB, pieces=9)
    with open_image(io.BytesIO(disk)) as image:
        assert survey(image).stamp is None
        assert block_digests(image) == {
            index: expected(disk).get(index, "") for index in range(len(disk) // BLOCK)
        }


def test_blocks_that_nobody_wants_are_not_read(tmp_path: Path) -> None:
    with open_image(write_raw(tmp_path / "disk", scattered(MIB))) as image:
        assert survey(image, blocks=False).blocks is None


def test_an_image_that_must_be_converted_is_not_converted_for_it(tmp_path: Path) -> None:
    require("qemu-img")
    raw = write_raw(tmp_path / "disk", scattered(4 * MIB, pieces=9))
    packed = tmp_path / "packed.qcow2"
    list(lines(["convert", "-c", "-O", "qcow2", str(raw), str(packed)], name="raw", kind="raw"))
    with open_image(packed) as image:
        assert survey(image).blocks is None
        assert image._raw is None  # type: ignore[attr-defined]
        found = block_digests(image)
    assert {index: digest for index, digest in found.items() if digest} == expected(raw.read_bytes())


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "disk", scattered(4 * MIB, pieces=9))

    def write(_bytes: int) -> None:
        os.utime(path, ns=(1, 1))

    with open_image(path) as image, pytest.raises(ImageError, match="changed"):
        survey(image, on_progress=write)


def test_a_file_that_is_cut_short_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "disk", b"\xeb" * (4 * MIB))
    with open_image(path) as image:
        os.truncate(path, 3 * MIB + 512)
        with pytest.raises(ImageFormatError) as caught:
            survey(image)
    assert (caught.value.offset, caught.value.field) == (3 * MIB + 512, "end of file")


def test_an_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(8 << 30)
        for at in range(0, 8 << 30, 64 * MIB):
            file.seek(at)
            file.write(b"x")
    before = threading.active_count()

    def press(_bytes: int) -> None:
        raise KeyboardInterrupt

    with open_image(path) as image, pytest.raises(KeyboardInterrupt):
        survey(image, on_progress=press)
    assert threading.active_count() == before


def test_a_file_is_unchanged_until_it_is_written_replaced_or_gone(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "disk", scattered(MIB))
    with open_image(path) as image:
        stamp = image.stamp()
    check_unchanged(path, stamp)
    path.read_bytes()
    path.chmod(0o400)
    check_unchanged(path, stamp)
    copy = write_raw(tmp_path / "copy", path.read_bytes())
    kept = path.rename(tmp_path / "kept")
    with pytest.raises(ImageError, match="changed"):
        check_unchanged(path, stamp)
    copy.rename(path)
    os.utime(path, ns=(kept.stat().st_atime_ns, kept.stat().st_mtime_ns))
    with pytest.raises(ImageError, match="changed"):
        check_unchanged(path, stamp)
    kept.rename(path)
    check_unchanged(path, stamp)
    os.utime(path)
    with pytest.raises(ImageError, match="changed"):
        check_unchanged(path, stamp)
