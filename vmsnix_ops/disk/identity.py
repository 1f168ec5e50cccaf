"""The identity of a disk: a SHA-256 of its content, independent of the image format.

docs/reference/identity.md defines it and has test vectors.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from vmsnix_ops.disk.digests import NONE, SUM
from vmsnix_ops.disk.image import ZEROS

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEME = "vmsnix-disk-v1"
"""Name of this definition. Another definition needs another name, so that identities are never confused."""

ZERO = hashlib.sha256(ZEROS).digest()
"""SHA-256 of a block of zeros."""

_ENTRY = struct.Struct(">Q32s")


def identity_of(blocks: Iterable[tuple[int, bytes]]) -> str:
    """Return the identity of a disk, in hexadecimal.

    `blocks` are index and SHA-256 (32 bytes) of blocks of `BLOCK_BYTES`, ascending; ValueError otherwise.
    Blocks of zeros may be omitted, or have a digest of 32 zero bytes. A partial last block is padded with
    zeros before it is hashed.

    >>> identity_of([])[:16] == identity_of([(7, ZERO)])[:16]
    True
    """
    whole, last = hashlib.sha256(f"{SCHEME}\n".encode()), -1
    for index, digest in blocks:
        if index <= last:
            raise ValueError(f"block {index} comes after block {last}")
        if len(digest) != SUM:
            raise ValueError(f"the digest of block {index} has {len(digest)} bytes instead of {SUM}")
        last = index
        if digest not in (ZERO, NONE):
            whole.update(_ENTRY.pack(index, digest))
    return whole.hexdigest()
