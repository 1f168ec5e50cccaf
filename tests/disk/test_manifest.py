"""Manifests: they are read as written, are small, and other objects are refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.identity import ZERO, identity_of
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.errors import RecordsError

SNAPSHOT = "snap-0123456789abcdef0"


def manifest(blocks: dict[int, bytes], **changes: object) -> Manifest:
    digests = Digests((index, digest.hex()) for index, digest in sorted(blocks.items()))
    whole = Manifest(identity_of(digests.raw()), 2**30, SNAPSHOT, "eu-west-1", digests)
    return replace(whole, **changes)  # type: ignore[arg-type]


def blocks(count: int) -> dict[int, bytes]:
    return {3 * index: hashlib.sha256(bytes([index % 256])).digest() for index in range(count)}


def signed(header: dict[str, object], rest: bytes) -> bytes:
    """Return an object whose checksum is right, whatever is in it."""
    whole = json.dumps(header).encode() + b"\n" + rest
    return whole + hashlib.sha256(whole).digest()


def header_of(data: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(data.partition(b"\n")[0])
    return found


@given(st.dictionaries(st.integers(0, 2**27), st.binary(min_size=32, max_size=32), max_size=20))
def test_a_manifest_survives_a_round_trip(found: dict[int, bytes]) -> None:
    one = manifest({index: digest for index, digest in found.items() if any(digest)})
    assert Manifest.load(one.dump(), snapshot_id=SNAPSHOT) == one


def test_a_block_takes_at_most_forty_bytes_in_all() -> None:
    assert len(manifest(blocks(100)).dump()) <= 40 * 100
    assert len(manifest(blocks(8192)).dump()) <= 37 * 8192


def test_the_identity_is_recomputed_on_request() -> None:
    one = manifest(blocks(50) | {2: ZERO})
    one.check_identity()
    with pytest.raises(RecordsError, match="Its blocks have the identity"):
        replace(one, identity="ab" * 32).check_identity()
    with pytest.raises(RecordsError, match="Block 21 has data, but the disk ends with block 19"):
        replace(one, disk_bytes=10 * 2**20).check_identity()


def test_a_manifest_of_another_snapshot_is_refused() -> None:
    data = manifest(blocks(2), snapshot_id="snap-0fedcba9876543210").dump()
    with pytest.raises(RecordsError, match=f"of {SNAPSHOT} belongs to snap-0fedcba9876543210"):
        Manifest.load(data, snapshot_id=SNAPSHOT)


@pytest.mark.parametrize("change", [{"scheme": "vmsnix-disk-v2"}, {"vmsnix_manifest": 2}])
def test_a_manifest_of_another_scheme_is_refused(change: dict[str, object]) -> None:
    data = signed(header_of(manifest({}).dump()) | change, b"")
    with pytest.raises(RecordsError, match="reads 'vmsnix-disk-v1' in format 1"):
        Manifest.load(data)


@given(st.data())
def test_a_truncated_or_damaged_manifest_is_refused(data: st.DataObject) -> None:
    whole = manifest(blocks(5)).dump()
    at = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(RecordsError):
        Manifest.load(whole[:at])
    bit = 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RecordsError):
        Manifest.load(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
    with pytest.raises(RecordsError, match="bytes after its header"):
        Manifest.load(whole + b"x")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"blocks": "2"}, "blocks in its header is '2'"),
        ({"blocks": -1}, "blocks in its header is -1"),
        ({"disk_bytes": True}, "disk_bytes in its header is True"),
        ({"identity": None}, "identity in its header is None"),
    ],
)
def test_a_wrong_header_is_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(RecordsError, match=text):
        Manifest.load(signed(header_of(manifest({}).dump()) | change, b""))


def test_blocks_that_do_not_ascend_are_refused() -> None:
    rest = (7).to_bytes(4, "big") * 2 + b"\xab" * 64
    with pytest.raises(RecordsError, match="block 7 comes after block 7"):
        Manifest.load(signed(header_of(manifest(blocks(2)).dump()), rest))


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"[]\n", b"vhd image", b'{"other": 1}\n', bytes(5000), b"[" * 99_999]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(RecordsError, match="does not begin with the header of a manifest"):
        Manifest.load(data)
