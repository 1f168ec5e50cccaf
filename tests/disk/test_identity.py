"""The identity of a disk: the same in every format, and as docs/reference/identity.md defines it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.disk.images import MIB, qemu_bytes, qemu_make, write_ours, write_raw
from tests.disk.reference_identity import identity_of_raw
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.identity import ZERO, identity_of
from vmsnix_ops.disk.survey import block_digests

PAGE = Path(__file__).parents[2] / "docs/reference/identity.md"
VECTORS = dict(re.findall(r"^\| (.+?) \| `([0-9a-f]{64})` \|$", PAGE.read_text(), re.MULTILINE))
CONTAINERS = {
    "raw": ("raw", ""),
    "VHD, dynamic": ("vpc", "force_size=on"),
    "VHD, dynamic, rounded up": ("vpc", ""),
    "VHD, fixed": ("vpc", "subformat=fixed,force_size=on"),
    "VHD, fixed, rounded up": ("vpc", "subformat=fixed"),
    "VHD of vmsnix, dynamic": ("ours", "dynamic"),
    "VHD of vmsnix, fixed": ("ours", "fixed"),
    "qcow2": ("qcow2", ""),
    "qcow2, compressed": ("compressed", ""),
    "VMDK": ("vmdk", ""),
    "VMDK, stream-optimized": ("vmdk", "subformat=streamOptimized"),
    "VHDX": ("vhdx", ""),
}


def example() -> bytes:
    """Return the disk of the documentation's second test vector."""
    disk = bytearray(20 * MIB + 512)
    disk[:13] = b"vmsnix disk 1"
    disk[2 * MIB : 3 * MIB] = b"\xab" * MIB
    disk[7 * MIB + 100_000] = 1
    disk[-1] = 0xFF
    return bytes(disk)


def identity(path: Path) -> str:
    """Return the identity of an image, as the package computes it."""
    with open_image(path) as image:
        return identity_of(block_digests(image).raw())


def test_the_vectors_of_the_documentation_are_those_of_the_second_implementation(tmp_path: Path) -> None:
    disks = {
        "a disk of zeros, of any size": bytes(3 * MIB),
        "the example disk": example(),
        "one block of `0xff`": b"\xff" * 524_288,
        "the same block as block 1": bytes(524_288) + b"\xff" * 524_288,
    }
    found = {name: identity_of_raw(write_raw(tmp_path / "raw", disk)) for name, disk in disks.items()}
    assert found == VECTORS


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_format_of_a_disk_has_its_identity(tmp_path: Path, container: str) -> None:
    raw = write_raw(tmp_path / "raw", example())
    driver, options = CONTAINERS[container]
    if driver == "ours":
        path = write_ours(tmp_path / "image", example(), options)
    else:
        path = raw if driver == "raw" else qemu_make(tmp_path / "image", raw, driver, options)
    assert identity(path) == VECTORS["the example disk"]
    if driver in ("vpc", "qcow2", "vhdx", "vmdk"):
        disk = qemu_bytes(path, {"vpc": "vhd"}.get(driver, driver))
        assert disk is not None
        assert identity_of_raw(write_raw(tmp_path / "again", disk)) == VECTORS["the example disk"]
        assert (len(disk) > len(example()) + 512) == ("rounded up" in container)


@given(st.dictionaries(st.integers(0, 2**27), st.binary(min_size=32, max_size=32), max_size=8))
def test_blocks_of_zeros_do_not_count(blocks: dict[int, bytes]) -> None:
    some = {index: digest for index, digest in sorted(blocks.items()) if digest not in (ZERO, bytes(32))}
    absent = [index for index in range(0, 50, 7) if index not in some]
    with_zeros = sorted(
        {**dict.fromkeys(absent, ZERO), **dict.fromkeys(absent[::2], bytes(32)), **some}.items()
    )
    assert identity_of(with_zeros) == identity_of(some.items())


@given(
    st.dictionaries(st.integers(0, 30), st.sampled_from([bytes([n]) * 32 for n in range(1, 5)]), max_size=8)
)
def test_an_index_or_a_digest_that_changes_is_another_identity(blocks: dict[int, bytes]) -> None:
    same = identity_of(sorted(blocks.items()))
    for index, digest in blocks.items():
        without = {other: its for other, its in blocks.items() if other != index}
        assert identity_of(sorted(without.items())) != same
        assert identity_of(sorted((without | {index: hashlib.sha256(digest).digest()}).items())) != same
        assert identity_of(sorted((without | {index + 100: digest}).items())) != same


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([(2, ZERO), (2, ZERO)], "block 2 comes after block 2"),
        ([(2, ZERO), (1, ZERO)], "block 1 comes after block 2"),
        ([(1, b"short")], "has 5 bytes instead of 32"),
    ],
)
def test_blocks_with_invalid_order_or_digest_are_refused(blocks: list[tuple[int, bytes]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        identity_of(blocks)
