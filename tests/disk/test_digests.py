"""Digests of many blocks: as in a dict, in a fraction of its memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops.aws.ebs_direct.writing import snapshot_blocks
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.image import ZEROS

SUMS = st.sampled_from(["", *(hashlib.sha256(bytes([n])).hexdigest() for n in range(4))])
MAPS = st.dictionaries(st.integers(0, 2**32 - 1), SUMS, max_size=20).map(
    lambda found: dict(sorted(found.items()))
)


def sums_of(found: dict[int, str]) -> bytearray:
    return bytearray(b"".join(bytes.fromhex(digest) if digest else bytes(32) for digest in found.values()))


@given(MAPS, st.integers(0, 2**32 - 1))
def test_digests_equal_a_dict(found: dict[int, str], other: int) -> None:
    digests = Digests(found.items())
    assert digests == found
    assert list(digests) == list(found)
    assert list(digests.values()) == list(found.values())
    assert list(digests.pairs()) == list(found.items())
    assert digests.get(other) == found.get(other)
    assert (other in digests) == (other in found)
    assert bool(digests) == bool(found)


@given(MAPS, st.lists(st.integers(0, 20), max_size=4), st.randoms())
def test_runs_in_any_order_give_the_same_digests(
    found: dict[int, str], cuts: list[int], chance: object
) -> None:
    bounds = [0, *sorted(min(cut, len(found)) for cut in cuts), len(found)]
    items = list(found.items())
    parts = [dict(items[a:b]) for a, b in pairwise(bounds) if a < b]
    runs = [(array("I", part), sums_of(part)) for part in parts]
    chance.shuffle(runs)  # type: ignore[attr-defined]
    assert Digests.of(runs) == found


@given(MAPS, MAPS)
def test_a_block_that_became_zero_is_a_block_of_zeros(image: dict[int, str], parent: dict[int, str]) -> None:
    image = {index: digest for index, digest in image.items() if digest}
    zero = hashlib.sha256(ZEROS).hexdigest()
    expected = dict.fromkeys(parent, zero) | image
    found = snapshot_blocks(Digests(image.items()), Digests(parent.items()))
    assert found == expected
    assert list(found) == sorted(expected)


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([(2, ""), (2, "")], "block 2 comes after block 2"),
        ([(2, ""), (1, "")], "block 1 comes after block 2"),
        ([(1, "abcd")], "not a SHA-256"),
    ],
)
def test_invalid_digests_are_refused(pairs: list[tuple[int, str]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Digests(pairs)


def test_a_block_takes_less_than_forty_bytes() -> None:
    tracemalloc.start()
    try:
        digests = Digests((index, "ab" * 32) for index in range(100_000))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(digests) == 100_000
    assert used < 40 * 100_000 * 1.15  # room at the end of the arrays, to grow into
