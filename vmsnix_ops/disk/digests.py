"""The SHA-256 of many blocks in little memory.

A disk of 100 GiB has 204,800 blocks of 512 KiB, and an incremental upload needs several mappings of them. A
`dict` of hexadecimal texts takes 200 bytes for each block, `Digests` takes 36.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TypeAlias

SUM = 32  # bytes of a SHA-256
NONE = bytes(SUM)  # a block of zeros, whose digest is left out

Run: TypeAlias = tuple["array[int]", bytearray]
"""Indices of blocks, ascending, and their concatenated SHA-256."""


class Digests(Mapping[int, str]):
    """An immutable mapping of block indices, ascending, to their SHA-256 (hex); empty for a block of zeros.

    ValueError if the indices do not ascend, or a text is not a SHA-256.

    >>> digests = Digests([(3, "ab" * 32), (7, "")])
    >>> digests[3][:4], digests[7], 5 in digests
    ('abab', '', False)
    """

    __slots__ = ("_indices", "_sums")

    def __init__(self, pairs: Iterable[tuple[int, str]] = ()) -> None:
        self._indices = array("I")
        self._sums = bytearray()
        last = -1
        for index, digest in pairs:
            if index <= last:
                raise ValueError(f"block {index} comes after block {last}")
            last = index
            self._indices.append(index)
            self._sums += _packed(digest)

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Digests:
        """Return the digests of several runs; they must be disjoint and not empty."""
        indices, sums = array("I"), bytearray()
        for some, theirs in sorted(runs, key=lambda run: run[0][0]):
            indices.extend(some)
            sums += theirs
        order = sorted(range(len(indices)), key=indices.__getitem__)
        whole = cls()
        if order == list(range(len(indices))):
            whole._indices, whole._sums = indices, sums
            return whole
        for at in order:
            whole._indices.append(indices[at])
            whole._sums += sums[at * SUM : (at + 1) * SUM]
        return whole

    @classmethod
    def unpacked(cls, indices: array[int], sums: bytes) -> Digests:
        """Return the digests that `packed` returned; ValueError if the indices do not ascend."""
        if len(sums) != len(indices) * SUM:
            raise ValueError(f"{len(indices)} blocks have {len(sums)} bytes of digests")
        for earlier, later in pairwise(indices):
            if later <= earlier:
                raise ValueError(f"block {later} comes after block {earlier}")
        whole = cls()
        whole._indices, whole._sums = indices, bytearray(sums)
        return whole

    def packed(self) -> tuple[array[int], bytes]:
        """Return the indices, and their concatenated SHA-256."""
        return array("I", self._indices), bytes(self._sums)

    def __getitem__(self, index: int) -> str:
        at = bisect_left(self._indices, index)
        if at == len(self._indices) or self._indices[at] != index:
            raise KeyError(index)
        digest = self._sums[at * SUM : (at + 1) * SUM]
        return "" if digest == NONE else digest.hex()

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def pairs(self) -> Iterator[tuple[int, str]]:
        """Yield the pairs of `items`, which is slower."""
        for at, index in enumerate(self._indices):
            digest = self._sums[at * SUM : (at + 1) * SUM]
            yield index, "" if digest == NONE else digest.hex()

    def raw(self) -> Iterator[tuple[int, bytes]]:
        """Yield each index with its SHA-256 as bytes, or with `NONE`."""
        for at, index in enumerate(self._indices):
            yield index, bytes(self._sums[at * SUM : (at + 1) * SUM])

    def __repr__(self) -> str:
        return f"<{len(self)} block digests>"


def _packed(digest: str) -> bytes:
    if not digest:
        return NONE
    sums = bytes.fromhex(digest)
    if len(sums) != SUM:
        raise ValueError(f"{digest!r} is not a SHA-256")
    return sums
