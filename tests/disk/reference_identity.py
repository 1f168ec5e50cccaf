"""A second implementation of docs/reference/identity.md, which shares no code with the package."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


def identity_of_raw(path: Path) -> str:
    """Return the identity of a raw disk."""
    whole = hashlib.sha256()
    whole.update(b"vmsnix-disk-v1\n")
    with path.open("rb") as disk:
        index = 0
        while block := disk.read(524288):
            block += bytes(524288 - len(block))
            if block.strip(b"\0"):
                whole.update(index.to_bytes(8, "big"))
                whole.update(hashlib.sha256(block).digest())
            index += 1
    return whole.hexdigest()


if __name__ == "__main__":
    print(identity_of_raw(Path(sys.argv[1])))
