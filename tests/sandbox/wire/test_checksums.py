"""Checksums compared with the check values of the CRC catalogue, and with each other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops.sandbox.wire.checksums import (
    CRC_POLYNOMIALS,
    FOLD_DEGREES,
    Checksums,
    _folding_crc,
    _table_crc,
    combine_crc,
    decode_base64,
    new_checksum,
)


def compute(algorithm: str, data: bytes) -> bytes:
    one = new_checksum(algorithm)
    one.update(data)
    return one.digest()


@pytest.mark.parametrize(
    ("algorithm", "check"),
    [
        ("crc32", "cbf43926"),
        ("crc32c", "e3069283"),
        ("crc64nvme", "ae8b14860a799888"),
        ("md5", "25f9e794323b453885f5181f1b624d0b"),
    ],
)
def test_the_check_value_of_each_algorithm(algorithm: str, check: str) -> None:
    assert compute(algorithm, b"123456789").hex() == check


@pytest.mark.parametrize("algorithm", sorted(CRC_POLYNOMIALS))
@given(first=st.binary(max_size=200), second=st.binary(max_size=200))
def test_the_crc_of_joined_parts_is_that_of_all_bytes(algorithm: str, first: bytes, second: bytes) -> None:
    joined = combine_crc(algorithm, compute(algorithm, first), compute(algorithm, second), len(second))
    assert joined == compute(algorithm, first + second)


@pytest.mark.parametrize("algorithm", sorted(FOLD_DEGREES))
@pytest.mark.parametrize("length", [0, 1, 173, 174, 323, 4097, 70_001, 262_144])
def test_the_fast_crc_is_that_of_the_table(algorithm: str, length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert _folding_crc(algorithm)(data, 77) == _table_crc(algorithm)(data, 77)


def test_several_digests_are_computed_at_once() -> None:
    digests = Checksums({"md5", "sha256", "crc32"})
    digests.update(memoryview(b"123456"))
    digests.update(memoryview(b"789"))
    assert digests.hex("crc32") == "cbf43926"
    assert digests.base64("md5") == "JfnnlDI7RTiF9RgfG2JNCw=="
    assert "sha256" in digests


def test_invalid_checksums_are_recognized() -> None:
    assert decode_base64("JfnnlDI7RTiF9RgfG2JNCw==", 16) is not None
    assert decode_base64("JfnnlDI7RTiF9RgfG2JNCw==", 20) is None
    assert decode_base64("not base64!", 16) is None
