"""The writer makes VHDs that QEMU and we read back as the same disk, and the same bytes every time."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.disk.images import MIB, qemu_bytes, qemu_create, scattered, whole, write_ours
from tests.support import require
from vmsnix_ops.disk.image import Block
from vmsnix_ops.disk.vhd import DEFAULT_BLOCK, geometry, geometry_size, write_vhd

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
@pytest.mark.parametrize("size", [512, 2 * MIB, 2 * MIB + 512, 9 * MIB + 1024])
def test_a_written_vhd_is_read_here_and_by_qemu(tmp_path: Path, kind: str, size: int) -> None:
    disk = scattered(size, seed=size)
    path = write_ours(tmp_path / "disk", disk, kind)
    assert whole(path) == disk
    assert qemu_bytes(path, "vhd") == disk


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_qemu_detects_the_exact_size(tmp_path: Path, kind: str) -> None:
    path = write_ours(tmp_path / "disk", scattered(3 * MIB), kind)
    text = subprocess.run(
        [require("qemu-img"), "info", "--output=json", "-f", "vpc", str(path)],
        capture_output=True,
        check=True,
        timeout=120,
    )
    found = json.loads(text.stdout)
    assert (found["format"], found["virtual-size"]) == ("vpc", 3 * MIB)
    assert text.stderr == b""


def test_the_same_disk_gives_the_same_file_and_another_disk_another_identifier(tmp_path: Path) -> None:
    first, again, other = (
        write_ours(tmp_path / name, scattered(3 * MIB, seed=seed), "dynamic").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first[68:84] != other[68:84]


def test_a_block_without_data_takes_no_space(tmp_path: Path) -> None:
    write_vhd(tmp_path / "disk", [], size=100 * MIB)
    assert (tmp_path / "disk").stat().st_size < 4096


@pytest.mark.parametrize("size", [0, 511, 2**41])
def test_an_invalid_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match="must be a multiple of 512"):
        write_vhd(tmp_path / "disk", [], size=size)


@pytest.mark.parametrize("indices", [[1, 0], [0, 0], [2]])
def test_blocks_out_of_order_or_place_are_refused(tmp_path: Path, indices: list[int]) -> None:
    blocks = [Block(index, b"x" * DEFAULT_BLOCK) for index in indices]
    with pytest.raises(ValueError, match="does not fit"):
        write_vhd(tmp_path / "disk", blocks, size=4 * MIB)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(1, 300_000_000) | st.integers(1, 100_000))
@example(65535 * 16 * 63)
@example(65535 * 16 * 63 - 1)
@example(65535 * 16 * 255)
@example(65535 * 16 * 255 + 1)
def test_sizes_are_rounded_as_qemu_rounds_them(tmp_path: Path, sectors: int) -> None:
    footer = qemu_create(tmp_path / "disk", "vpc", str(sectors * 512)).read_bytes()[:512]
    size = int.from_bytes(footer[48:56], "big")
    assert geometry_size(sectors * 512) == size
    cylinders, heads, per_track = geometry(size // 512)
    assert footer[56:60] == cylinders.to_bytes(2, "big") + bytes([heads, per_track])
