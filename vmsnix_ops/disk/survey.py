"""One look at an image: who it is, and what each of its blocks is.

The identity of an image is the SHA-256 of its file: one long sum, at which only one core can work. What an
upload needs besides is the SHA-256 of every block, and other cores can work at those meanwhile. So a single
look, no longer than the sum takes, tells everything; after it, no byte is hashed again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from vmsnix_ops.disk.digests import NONE, Digests, Run
from vmsnix_ops.disk.image import EBS_BLOCK, ZEROS
from vmsnix_ops.disk.source import stamp_of
from vmsnix_ops.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.disk.source import Stamp

SHARE = 64  # blocks that a thread takes at a time: 32 MiB
MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look at an image told.

    Attributes
    ----------
    digest
        SHA-256 of the file, hex.
    stamp
        Of the file that was looked at.
    blocks
        Index to SHA-256 (hex) of every stored block of 524288 bytes; empty text for one that is zero.
        ``None`` when nobody looked at them.
    """

    digest: str
    stamp: Stamp | None
    blocks: Digests | None = field(default=None, repr=False)


def survey(
    image: DiskImage, *, blocks: bool = True, on_progress: Callable[[int], None] | None = None
) -> Survey:
    """Hash the file, and its disk's blocks at the same time.

    Parameters
    ----------
    image
        The image.
    blocks
        Whether the blocks are wanted. They are left out for an image that would have to be converted first:
        who needs them later has to convert it anyway.
    on_progress
        Called with the number of bytes of the file hashed since the last call.

    Raises
    ------
    ImageError
        When the image is damaged, or changed meanwhile.
    """
    stamp = image.stamp()
    if blocks and not image.converts:
        # As many threads as keep up with the one that hashes the file, and leave it a core of its own.
        with _BlockHashing(image, 1 if (os.cpu_count() or 1) < 3 else 2) as hashing:
            digest = image.digest(on_progress)
            hashing.help()
            found = Survey(digest, stamp, hashing.result())
    else:
        found = Survey(image.digest(on_progress), stamp)
    if image.stamp() != stamp:
        raise changed(image.source.name)
    return found


def block_digests(image: DiskImage, *, on_progress: Callable[[int], None] | None = None) -> Digests:
    """Return what `Survey.blocks` is, hashed on all cores.

    Parameters
    ----------
    image
        The image.
    on_progress
        Called with the number of bytes of the disk looked at since the last call.
    """
    with _BlockHashing(image, min(os.cpu_count() or 1, MOST_THREADS)) as hashing:
        return hashing.result(on_progress)


def check_unchanged(path: Path, stamp: Stamp | None) -> None:
    """Refuse a file that is not what it was when its stamp was taken.

    Raises
    ------
    ImageError
        It changed, or is gone.
    """
    if stamp is not None and stamp_of(path) != stamp:
        raise changed(str(path))


def changed(name: str) -> ImageError:
    """Return the error for an image that changed while it was in use."""
    return ImageError(
        f"{name} changed while it was in use.",
        why="Its size, its time of last change or the file itself is another than when it was hashed.",
        cure="Let nothing write to the image, and run the same command again.",
    )


class _BlockHashing:
    """Threads that hash an image's blocks. Leaving the block stops them, wherever they are."""

    def __init__(self, image: DiskImage, threads: int) -> None:
        self._image, self._at = image, 0
        self._shares = iter(range(0, -(-image.size // EBS_BLOCK), SHARE))  # `next` on it is atomic
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._parts = [self._pool.submit(self._work) for _ in range(threads)]

    def help(self) -> None:
        """Hash in this thread too, as long as there is something to do."""
        self._parts.append(Future())
        self._parts[-1].set_result(self._work())

    def result(self, on_progress: Callable[[int], None] | None = None) -> Digests:
        """Wait for all of them, and return the blocks."""
        if on_progress is not None:
            told = 0
            while wait(self._parts, timeout=0.2).not_done:
                at = max(self._at, told)
                on_progress((at - told) * EBS_BLOCK)
                told = at
            on_progress(self._image.size - told * EBS_BLOCK)
        return Digests.of([run for part in self._parts for run in part.result()])

    def _work(self) -> list[Run]:
        buffer, runs = bytearray(EBS_BLOCK), list[Run]()
        while not self._stop.is_set() and (first := next(self._shares, None)) is not None:
            self._at = first
            indices, sums = array("I"), bytearray()
            for index in self._image.stored_blocks(buffer, first=first, stop=first + SHARE):
                indices.append(index)
                # One memcmp, which stops at the first difference.
                sums += NONE if buffer == ZEROS else hashlib.sha256(buffer).digest()
            if indices:
                runs.append((indices, sums))
        return runs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._pool.shutdown()
