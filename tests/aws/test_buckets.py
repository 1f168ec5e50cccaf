"""How a file is split, and what a key's tags are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmsnix_ops.aws import buckets


@given(st.integers(min_value=0, max_value=5 * 2**40))
def test_parts_cover_the_file_and_stay_within_what_s3_allows(size):
    if size > 10 * 2**30:
        size -= size % 2**20  # keep the list of parts short enough to look at
    parts = buckets.split(size)
    assert len(parts) <= buckets.MOST_PARTS
    assert parts[0].offset == 0
    assert sum(part.bytes for part in parts) == size
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert all(part.bytes >= 5 * 2**20 for part in parts[:-1])


def test_the_same_size_always_gives_the_same_parts():
    assert buckets.split(3 * 2**30 + 1) == buckets.split(3 * 2**30 + 1)
