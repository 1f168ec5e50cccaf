"""Blocks and ranges of a disk: bytes, memory, and concurrent reads."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.disk.images import BLOCK, MIB, scattered, write_ours, write_raw
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.image import Block, DiskImage
from vmsnix_ops.disk.vhd import DEFAULT_BLOCK, write_vhd

ROOT = Path(__file__).parents[2]

# A disk as a mapping of sector to the byte that fills it, and a way to store it.
disks = st.tuples(
    st.integers(1, 9000),
    st.dictionaries(st.integers(0, 8999), st.integers(1, 255), max_size=12),
    st.sampled_from(["dynamic", "fixed", "raw"]),
)


def build(sectors: int, filled: dict[int, int], kind: str, folder: Path) -> tuple[bytes, Path]:
    """Return a disk's bytes and a file that stores them."""
    disk = bytearray(sectors * 512)
    for sector, value in filled.items():
        if sector < sectors:
            disk[sector * 512 : sector * 512 + 512] = bytes([value]) * 512
    disk[:1] = b"\xeb"
    path = folder / "disk"
    return bytes(disk), write_raw(path, bytes(disk)) if kind == "raw" else write_ours(path, bytes(disk), kind)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    disks,
    st.sampled_from([512, 4096, 10_000, BLOCK, 3 * MIB]),
    st.integers(0, 5 * MIB),
    st.integers(0, 5 * MIB),
)
def test_blocks_and_ranges_are_those_of_the_disk(
    tmp_path_factory: pytest.TempPathFactory,
    disk: tuple[int, dict[int, int], str],
    size: int,
    offset: int,
    length: int,
) -> None:
    content, path = build(*disk, tmp_path_factory.mktemp("disk"))
    expected = [
        Block(index, piece.ljust(size, b"\0"))
        for index, piece in enumerate(content[at : at + size] for at in range(0, len(content), size))
        if any(piece)
    ]
    with open_image(path) as image:
        assert image.size == len(content)
        assert list(image.blocks(size)) == expected
        assert {block.index for block in expected} <= set(image.stored_blocks(bytearray(size)))
        assert image.read(offset, length) == content[offset : offset + length]
        buffer = bytearray(b"\xff" * length)
        image.read_into(offset, buffer)
        assert buffer == content[offset : offset + length].ljust(length, b"\0")
        buffer = bytearray(b"\xff" * size)
        stored = [Block(index, bytes(buffer)) for index in image.stored_blocks(buffer)]
        assert [block for block in stored if block.data.strip(b"\0")] == expected
        middle = len(content) // size // 2
        parts = [*image.blocks(size, stop=middle), *image.blocks(size, first=middle)]
        assert parts == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=3000), st.binary(max_size=600))
def test_any_bytes_are_a_disk_or_refused(head: bytes, tail: bytes) -> None:
    from vmsnix_ops.errors import ImageError

    for data in (head, head + tail, b"conectix" + head, head + b"conectix" + tail.ljust(504, b"\0")):
        try:
            with open_image(io.BytesIO(data)) as image:
                assert image.read(0, image.size) == data[: image.size]
        except ImageError as error:
            assert error.why  # noqa: PT017 - raising is one of two right outcomes
            assert error.fix  # noqa: PT017


class SlowReader(io.BytesIO):
    """A reader that gives other threads time between seeking and reading."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        at = super().seek(offset, whence)
        time.sleep(0.0001)
        return at


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "raw"])
def test_many_threads_read_the_right_bytes(tmp_path: Path, kind: str) -> None:
    disk = scattered(8 * MIB, pieces=40)
    path = write_raw(tmp_path / "d", disk) if kind == "raw" else write_ours(tmp_path / "d", disk, kind)
    for source in (path, SlowReader(path.read_bytes())):
        with open_image(source) as image, ThreadPoolExecutor(8) as pool:
            offsets = [at * 12_345 % (8 * MIB) for at in range(400)]
            for at, data in zip(offsets, pool.map(image.read, offsets, [5000] * 400), strict=True):
                assert data == disk[at : at + 5000]


def read_half(image: DiskImage, half: int) -> list[tuple[int, str]]:
    """Return the digests of the blocks of one half of the disk; runs in another process."""
    middle = image.size // BLOCK // 2
    found = image.blocks(stop=middle) if half == 0 else image.blocks(first=middle)
    return [(block.index, hashlib.sha256(block.data).hexdigest()) for block in found]


def test_processes_share_an_image(tmp_path: Path) -> None:
    image = open_image(write_ours(tmp_path / "disk", scattered(8 * MIB, pieces=20), "dynamic"))
    context = multiprocessing.get_context("spawn")
    with image, ProcessPoolExecutor(2, mp_context=context) as pool:
        halves = list(pool.map(read_half, [image, image], [0, 1]))
        assert halves[0] + halves[1] == read_half(image, 0) + read_half(image, 1)


def test_an_image_from_a_reader_cannot_be_pickled() -> None:
    with open_image(io.BytesIO(bytes(512))) as image, pytest.raises(TypeError, match="another process"):
        pickle.dumps(image)


def test_a_block_is_read_without_a_copy(tmp_path: Path) -> None:
    disk = b"\xeb" * (16 * BLOCK)
    for kind in ("dynamic", "fixed"):
        with open_image(write_ours(tmp_path / kind, disk, kind)) as image:
            tracemalloc.start()
            count = sum(len(block.data) for block in image.blocks())
            _now, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert count == len(disk)
        # The current block, the next one, and the zeros that it is compared with.
        assert peak < 3 * BLOCK + 100_000


def test_a_hundred_gib_take_little_memory(tmp_path: Path) -> None:
    blocks = (Block(index * 100, b"\x5a" * DEFAULT_BLOCK) for index in range(50))
    write_vhd(tmp_path / "disk", blocks, size=100 << 30)
    script = (
        "import sys; from vmsnix_ops.disk.formats import open_image\n"
        "with open_image(sys.argv[1]) as image:\n"
        "    print(sum(1 for _ in image.blocks()))\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "disk")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    count, kibibytes = done.stdout.split()
    assert int(count) == 200
    assert int(kibibytes) < 100 * 1024


def test_a_hundred_gib_are_opened_in_milliseconds(tmp_path: Path) -> None:
    write_vhd(tmp_path / "vhd", (Block(0, b"\x5a" * DEFAULT_BLOCK),), size=100 << 30)
    (tmp_path / "raw").write_bytes(b"\xeb" * 512)
    os.truncate(tmp_path / "raw", 100 << 30)
    for name in ("vhd", "raw"):
        before = time.process_time()
        with open_image(tmp_path / name) as image:
            assert next(image.stored_blocks(bytearray(BLOCK))) == 0
        assert image.size == 100 << 30
        assert time.process_time() - before < 0.1


def test_a_block_size_of_zero_is_refused() -> None:
    with (
        open_image(io.BytesIO(bytes(512))) as image,
        pytest.raises(ValueError, match="a block cannot have 0 bytes"),
    ):
        next(image.blocks(0))


def test_closing_twice_is_no_error(tmp_path: Path) -> None:
    image = open_image(write_raw(tmp_path / "disk", scattered(MIB)))
    image.close()
    image.close()


def test_an_image_is_shown_with_its_format_and_size(tmp_path: Path) -> None:
    path = write_ours(tmp_path / "disk", scattered(MIB), "fixed")
    with open_image(path) as image:
        assert repr(image) == f"<fixed vhd image {path}: 1048576 bytes>"
