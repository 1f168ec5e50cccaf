"""Blocks of snapshots as files named by their content, so that equal blocks are kept once."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class BlockStore:
    """A folder of content-addressed blocks.

    Nothing is ever removed while the sandbox runs: a block may belong to many snapshots, and the folder goes
    with the sandbox (or stays with its state).

    Parameters
    ----------
    folder
        Where the blocks lie; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for number in range(256):
            (folder / f"{number:02x}").mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return the file of a block, by the hexadecimal SHA-256 of its bytes."""
        return self._folder / digest[:2] / digest

    def put(self, data: bytes | memoryview) -> str:
        """Keep a block and return the hexadecimal SHA-256 of its bytes; a rehearsal needs no fsync."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.exists():
            temporary = path.with_name(f"{digest}.{os.urandom(4).hex()}")
            temporary.write_bytes(data)
            temporary.replace(path)  # two writers of the same block both succeed
        return digest

    def get(self, digest: str) -> bytes:
        """Return a block's bytes."""
        return self.path(digest).read_bytes()

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()
