"""Images that ``qemu-img`` made, damaged at random: refused, or read as by QEMU.

``VMSNIX_FUZZ_EXAMPLES`` sets how many damaged images of each kind are tried; with it, every run tries others.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.disk.images import MIB, edited, qemu_bytes, qemu_make, scattered, write_raw
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.vhd import DynamicVhd
from vmsnix_ops.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = int(os.environ.get("VMSNIX_FUZZ_EXAMPLES", "0"))
KINDS = {
    "dynamic VHD": ("vpc", "subformat=dynamic,force_size=on"),
    "fixed VHD": ("vpc", "subformat=fixed,force_size=on"),
    "qcow2": ("qcow2", "cluster_size=65536"),
    "compressed qcow2": ("compressed", ""),
    "VMDK": ("vmdk", ""),
    "stream-optimised VMDK": ("vmdk", "subformat=streamOptimized"),
    "VHDX": ("vhdx", "block_size=1048576"),
}
SIZE = 3 * MIB
TELLING = [0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF, 0x100, 0x200, 512, 4096, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
VHD_FIELDS = [
    "footers.current_size", "footers.data_offset", "footers.disk_type", "copy.current_size",
    "footer.current_size", "header.table_offset", "header.max_table_entries", "header.block_size",
    "bat.0", "bat.1",
]  # fmt: skip

# Offsets where headers and tables are: near the start, near the end, at the start of a page; some anywhere.
places = st.one_of(
    st.integers(0, 2047),
    st.integers(-1024, -1),
    st.integers(0, 80).map(lambda page: page * 65_536).flatmap(lambda at: st.integers(at, at + 63)),
    st.integers(0, 2**40),
)
values = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.builds(
        lambda value, order: value.to_bytes(8, order),
        st.sampled_from(TELLING),
        st.sampled_from(["big", "little"]),
    ),
)
damages = st.one_of(
    st.tuples(st.just("write"), places, values),
    st.tuples(st.just("write"), places, values),
    st.tuples(st.just("cut"), places, st.just(b"")),
    st.tuples(st.just("grow"), st.just(0), st.binary(min_size=1, max_size=1024)),
    st.tuples(st.just("copy"), places, st.integers(0, 2**20).map(lambda at: at.to_bytes(4, "big"))),
    st.tuples(st.just("field"), st.sampled_from(VHD_FIELDS).map(VHD_FIELDS.index), values),
)


def damage(image: bytes, kind: str, what: str, place: int, value: bytes) -> bytes:
    """Return the image with one random damage."""
    at = place % len(image)
    if what == "write":
        return (image[:at] + value + image[at + len(value) :])[: len(image)]
    if what == "cut":
        return image[:at]
    if what == "grow":
        return image + value
    if what == "copy":  # one part over another, as after incomplete writes
        source = int.from_bytes(value, "big") % len(image)
        piece = image[source : source + 512]
        return (image[:at] + piece + image[at + len(piece) :])[: len(image)]
    if kind != "dynamic VHD" or len(image) < 4096:
        return image
    field = VHD_FIELDS[place]
    wide = field.endswith(("current_size", "data_offset", "table_offset"))
    number = int.from_bytes(value[: 8 if wide else 4], "big")
    try:
        return edited(image, {field: number})  # with valid checksums, as only an attacker would write it
    except struct.error:
        return image  # an earlier damage moved the table outside the file


def never_written(path: Path, disk_bytes: int) -> set[int]:
    """Return the sectors that a dynamic VHD's bitmaps call never written; QEMU reads them all the same."""
    image = path.read_bytes()
    table = struct.unpack_from(">Q", image, struct.unpack_from(">Q", image, 16)[0] + 16)[0]
    block_size = struct.unpack_from(">I", image, struct.unpack_from(">Q", image, 16)[0] + 32)[0]
    clear = set()
    for sector in range(disk_bytes // 512):
        block, inner = divmod(sector, block_size // 512)
        start = struct.unpack_from(">I", image, table + 4 * block)[0] * 512
        if start != 0xFFFFFFFF * 512 and not image[start + inner // 8] >> (7 - inner % 8) & 1:
            clear.add(sector)
    return clear


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.variants(quick=3, seconds=1)
def test_a_damaged_image_is_refused_or_read_as_qemu_reads_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    disk = bytearray(scattered(SIZE, seed=7, pieces=12))
    disk[MIB : MIB + 600_000] = (
        b"\xeb\xfe" * 300_000
    )  # compresses, so that compressed images have compressed clusters
    driver, options = KINDS[kind]
    raw = write_raw(tmp_path / "raw", bytes(disk))
    sound = qemu_make(tmp_path / "sound", raw, driver, options).read_bytes()
    outcomes = {"refused": 0, "read": 0}

    @settings(
        max_examples=EXAMPLES or 25,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(damages, min_size=1, max_size=3))
    def attempt(changes: list[tuple[str, int, bytes]]) -> None:
        image = sound
        for change in changes:
            image = damage(image, kind, *change) or b"\0"
        path = tmp_path / "damaged"
        path.write_bytes(image)
        try:
            with open_image(path) as opened:
                assert opened.size <= 64 << 40
                if opened.size > 64 * MIB:  # a larger disk is right when it has no more data than the file
                    assert sum(1 for _ in opened.blocks()) <= len(image) // 512
                    return
                found, known = opened.read(0, opened.size), opened.format
                assert sum(len(block.data) - block.data.count(0) for block in opened.blocks()) == len(
                    found
                ) - found.count(0)
                dynamic = isinstance(opened, DynamicVhd)
        except ImageError as error:
            assert error.why  # noqa: PT017 - being refused is one of two right outcomes
            assert error.fix  # noqa: PT017
            outcomes["refused"] += 1
            return
        outcomes["read"] += 1
        expected = qemu_bytes(path, known)
        if expected is None or found == expected[: len(found)]:
            assert expected is None or len(expected) == len(found)
            return
        assert dynamic
        clear = never_written(path, len(found))
        for sector in range(len(found) // 512):
            ours = found[sector * 512 : sector * 512 + 512]
            assert ours == (bytes(512) if sector in clear else expected[sector * 512 : sector * 512 + 512])

    attempt()
    assert outcomes["refused"], "no damage was found: the mishaps are too harmless"
    assert not list(tmp_path.glob("vmsnix-*"))
