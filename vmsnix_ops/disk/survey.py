"""The digests of an image: its identity, its blocks, and the parts of an upload to S3.

`survey` reads the file once, on all cores. The identity (`vmsnix_ops.disk.identity`) derives from the digests
of the disk's blocks. An upload to S3 also needs the digest of each part of the file.

An upload compares each buffer that it sends with these digests. Nothing else is proof, because a file may be
replaced or changed at any time, and its modification time can be set back. All digests are SHA-256: a CRC
detects errors of a network or a disk, but different bytes can have the same CRC on purpose.
"""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from collections import OrderedDict, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from vmsnix_ops.disk.digests import SUM, Digests, Run
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.identity import identity_of
from vmsnix_ops.disk.image import BLOCK_BYTES, MIB, ZEROS
from vmsnix_ops.disk.source import ByteSource, PathSource, stamp_of
from vmsnix_ops.errors import ImageChangedError, ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.disk.source import Stamp

SHARE = 64  # blocks that a thread hashes at a time: 32 MiB
MOST_THREADS = 8
PART_BYTES = 8 * MIB
MOST_PARTS = 10_000  # S3's limit for one object
PIECE = 8 * MIB  # bytes of the file that are read at once; a range has one or more pieces
NEXT_TIME = (
    "Stop other programs from writing to the image, then run the same command again. In a notebook, run it "
    "again from the cell that builds."
)


def part_bytes(size: int) -> int:
    """Return the length of a range with its own digest, for a file of this size.

    A range is a part of an upload to S3. Its length depends only on the size of the file, so that two runs
    (or two machines) upload the same parts. A file of 100 GiB has 6,400 ranges, whose digests take 200 KiB.
    """
    length = PART_BYTES
    while size > length * MOST_PARTS:
        length *= 2
    return length


@dataclass(frozen=True, slots=True)
class Survey:
    """The identity and the digests of an image."""

    identity: str  # identity of the disk, in hexadecimal (`vmsnix_ops.disk.identity`)
    stamp: Stamp | None  # stamp of the file; None for a reader
    # SHA-256 (hex) by index of all blocks of 524288 bytes that contain a byte other than zero.
    blocks: Digests = field(repr=False)
    file_bytes: int = 0
    disk_bytes: int = 0
    # Concatenated SHA-256 of all ranges of `part_bytes` bytes of the file; empty if they were not computed.
    parts: bytes = field(default=b"", repr=False)
    # Change time of the inode (ctime), which no program can set; None for a reader.
    changed_ns: int | None = None

    def part(self, number: int) -> bytes:
        """Return the SHA-256 of a range, counted from 0."""
        return self.parts[number * SUM : (number + 1) * SUM]

    @property
    def file_digest(self) -> str:
        """SHA-256 over the digests of the file's ranges, in hexadecimal; it identifies the file's bytes."""
        return hashlib.sha256(self.parts).hexdigest()


def survey(
    image: DiskImage, *, parts: bool = False, on_progress: Callable[[int], None] | None = None
) -> Survey:
    """Read an image once, on all cores, and return its identity.

    `parts`: also compute the digests of the file's ranges, for an upload to S3. They come from the same bytes
    as those of the blocks. If ``qemu-img`` must read the image, it reads a private copy of the hashed bytes.

    `on_progress` gets the number of bytes hashed since the last call: of the file with `parts`, else of the
    disk. ImageChangedError if the file changed since it was opened.
    """
    source = image.source
    stamp = image.stamp()
    changed_ns = os.fstat(source.descriptor).st_ctime_ns if isinstance(source, PathSource) else None
    sums = b""
    if not parts:
        blocks = block_digests(image, on_progress=on_progress)
    elif image.own_layout:
        blocks, sums = _blocks_and_parts(image, on_progress)
    else:
        sums = _parts(image, on_progress)
    if image.stamp() != stamp or source.size != _size_now(source):
        raise changed(source.name)
    if parts and not image.own_layout:
        hashed = Survey("", stamp, Digests(), source.size, image.size, sums, changed_ns)
        with open_image(IdentifiedSource(source, hashed)) as copy:
            blocks = block_digests(copy)
    return Survey(identity_of(blocks.raw()), stamp, blocks, source.size, image.size, sums, changed_ns)


def identify(path: Path, *, parts: bool = False) -> Survey:
    """Return the identity of the image in a file, as `survey` does."""
    with open_image(path) as image:
        return survey(image, parts=parts)


def block_digests(image: DiskImage, *, on_progress: Callable[[int], None] | None = None) -> Digests:
    """Return the digests of an image's blocks, computed on all cores; parameters are those of `survey`."""
    with _BlockHashing(image, _threads()) as hashing:
        return hashing.result(on_progress)


def still_identified(path: Path, expected: Survey) -> bool:
    """Return whether a file contains the identified image.

    The file is read only if its stamp or the change time of its inode differ.
    """
    stamp = stamp_of(path)
    if stamp is None:
        return False
    if stamp == expected.stamp and path.stat().st_ctime_ns == expected.changed_ns:
        return True
    try:
        with open_image(path) as image:
            if expected.parts:
                return image.source.size == expected.file_bytes and _parts(image) == expected.parts
            return survey(image).identity == expected.identity
    except ImageError:
        return False


@contextmanager
def unchanged(path: Path, expected: Survey) -> Iterator[None]:
    """Check that a file contains the identified image before, during and after the block.

    A file that was changed and restored has the same bytes, but another change time. It is an
    ImageChangedError, too.
    """

    def state() -> tuple[Stamp | None, int]:
        return stamp_of(path), path.stat().st_ctime_ns

    if not still_identified(path, expected):
        raise changed(str(path))
    before = state()
    yield
    if not still_identified(path, expected) or state() != before:
        raise changed(str(path))


def changed(name: str, offset: int | None = None, length: int = 0) -> ImageChangedError:
    """Return the error for an image that changed while or after it was identified, at `offset` if known."""
    why = "Its size, modification time or file is not the one that was hashed."
    if offset is not None:
        why = f"Bytes {offset} to {offset + length} of the file differ from those that were hashed."
    return ImageChangedError(f"{name} changed while it was in use.", why=why, fix=NEXT_TIME, offset=offset)


class IdentifiedSource(ByteSource):
    """A file, which the caller closes, whose bytes are compared with their digests when they are read.

    Each range is read and compared as a whole. The source has no path, so that ``qemu-img`` reads a private
    copy of these bytes. Holes of the file count as stored, because a hole can be made after the file was
    hashed.
    """

    KEPT = MOST_THREADS + 2  # checked ranges in memory

    def __init__(self, file: ByteSource, expected: Survey) -> None:
        self.path, self.name, self.size = None, file.name, expected.file_bytes
        self._file, self._expected, self._length = file, expected, part_bytes(expected.file_bytes)
        self._checked: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        if file.size != expected.file_bytes:
            at = min(file.size, expected.file_bytes)
            raise changed(self.name, at, max(file.size, expected.file_bytes) - at)

    def _read_some(self, offset: int, length: int) -> bytes | memoryview:
        number, at = divmod(offset, self._length)
        return memoryview(self._range(number))[at : at + length] if offset < self.size else b""

    def _range(self, number: int) -> bytes:
        with self._lock:
            if number in self._checked:
                self._checked.move_to_end(number)
                return self._checked[number]
        offset = number * self._length
        data = self._file.read(offset, min(self._length, self.size - offset))
        if hashlib.sha256(data).digest() != self._expected.part(number):
            raise changed(self.name, offset, len(data))
        with self._lock:
            self._checked[number] = data
            if len(self._checked) > self.KEPT:
                self._checked.popitem(last=False)
        return data


class _Pieces(ByteSource):
    def __init__(self, source: ByteSource, buffers: dict[int, memoryview]) -> None:
        self.path, self.name, self.size, self._buffers = None, source.name, source.size, buffers

    def _read_some(self, offset: int, length: int) -> memoryview:
        number, at = divmod(offset, PIECE)
        return self._buffers[number][at : at + length]


class _RangeDigest:
    """The digest of a range, computed piece by piece. A range of zeros is not hashed."""

    def __init__(self) -> None:
        self._hashing, self._zeros, self._data = hashlib.sha256(), 0, False

    def add(self, piece: memoryview, before: Future[None] | None) -> None:
        """Add a piece, after the task `before` has added the previous one."""
        if before is not None:
            before.result()
        if not self._data:
            if _only_zeros(piece):
                self._zeros += len(piece)
                return
            self._data = True
            for _ in range(self._zeros // BLOCK_BYTES):
                self._hashing.update(ZEROS)
        self._hashing.update(piece)

    def digest(self) -> bytes:
        """Return the SHA-256 of all pieces."""
        return self._hashing.digest() if self._data else _digest_of_zeros(self._zeros)


def _only_zeros(piece: memoryview) -> bool:
    for at in range(0, len(piece), BLOCK_BYTES):
        block = piece[at : at + BLOCK_BYTES]
        # A memoryview is compared byte by byte, a copy by memcmp.
        if block[0] or block[-1] or bytes(block) != ZEROS[: len(block)]:
            return False
    return True


@lru_cache(maxsize=8)
def _digest_of_zeros(length: int) -> bytes:
    hashing = hashlib.sha256()
    for at in range(0, length, BLOCK_BYTES):
        hashing.update(ZEROS[: length - at])
    return hashing.digest()


class _Pass:
    """A pass over the file of an image; a context manager, which stops its threads.

    `due` has, by piece, the blocks that are in this piece and the previous one.
    """

    def __init__(self, image: DiskImage, due: dict[int, array[int]]) -> None:
        self._image, self._source, self._due = image, image.source, due
        self._stop, threads = threading.Event(), _threads()
        self._pool = ThreadPoolExecutor(threads)
        self._pieces = threads + 2  # in memory: one for each thread, one that is read, and the one before
        self._runs: list[Future[Run]] = []
        self._parts: list[_RangeDigest] = []
        self._length = part_bytes(self._source.size)
        self._last: Future[None] | None = None  # adds the last piece to the current part

    def carry_out(self, on_progress: Callable[[int], None] | None) -> bytes:
        """Hash the file, and return the digests of its ranges."""
        size, pieces = self._source.size, self._pieces
        buffers = [memoryview(bytearray(min(PIECE, size))) for _ in range(min(pieces, -(-size // PIECE)))]
        at_work: dict[int, list[Future[Run] | Future[None]]] = {}
        for number, offset in enumerate(range(0, size, PIECE)):
            # The tasks of a piece also read the previous one. So the buffer of a piece is free when the tasks
            # of this piece and of the next one are done.
            for done in (*at_work.pop(number - pieces, ()), *at_work.pop(number - pieces + 1, ())):
                done.result()
            piece = buffers[number % pieces][: size - offset]
            self._source.read_into(offset, piece)
            self._check_opening(offset, piece)
            here = {number: piece}
            if number:
                here[number - 1] = buffers[(number - 1) % pieces]
            at_work[number] = self._submit(number, offset, piece, here)
            if on_progress is not None:
                on_progress(len(piece))
        for tasks in at_work.values():
            for done in tasks:
                done.result()
        return b"".join(part.digest() for part in self._parts)

    def runs(self) -> list[Run]:
        """Return the hashed blocks."""
        return [run for run in (future.result() for future in self._runs) if run[0]]

    def _submit(
        self, number: int, offset: int, piece: memoryview, here: dict[int, memoryview]
    ) -> list[Future[Run] | Future[None]]:
        if offset % self._length == 0:
            self._parts.append(_RangeDigest())
            self._last = None
        self._last = self._pool.submit(self._parts[-1].add, piece, self._last)
        tasks: list[Future[Run] | Future[None]] = [self._last]
        if number in self._due:
            view = _over(self._image, _Pieces(self._source, here))
            run = self._pool.submit(_hash_blocks, view, self._due[number], self._stop)
            self._runs.append(run)
            tasks.append(run)
        return tasks

    def _check_opening(self, offset: int, piece: memoryview) -> None:
        """Compare a piece with the headers and tables that were read when the image was opened."""
        for start, data in self._source.opening:
            first, last = max(start, offset), min(start + len(data), offset + len(piece))
            if first < last and piece[first - offset : last - offset] != data[first - start : last - start]:
                raise changed(self._source.name, first, last - first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def _blocks_and_parts(image: DiskImage, on_progress: Callable[[int], None] | None) -> tuple[Digests, bytes]:
    """Return the digests of the blocks and of the file's ranges, from the same bytes."""
    due, late = _blocks_by_piece(image)
    with _Pass(image, due) as running:
        sums = running.carry_out(on_progress)
        runs = running.runs()
    if late:
        hashed = Survey("", None, Digests(), image.source.size, image.size, sums)
        with closing(IdentifiedSource(image.source, hashed)) as checked:
            runs.append(_hash_blocks(_over(image, checked), late))
    return Digests.of([run for run in runs if run[0]]), sums


def _parts(image: DiskImage, on_progress: Callable[[int], None] | None = None) -> bytes:
    with _Pass(image, {}) as running:
        return running.carry_out(on_progress)


def _blocks_by_piece(image: DiskImage) -> tuple[dict[int, array[int]], array[int]]:
    """Return the blocks by their last piece, and the blocks that are not within two consecutive pieces."""
    due: dict[int, array[int]] = defaultdict(lambda: array("I"))
    late = array("I")
    for index in range(-(-image.size // BLOCK_BYTES)):
        span = image.file_span(index * BLOCK_BYTES, min((index + 1) * BLOCK_BYTES, image.size))
        if span is None:
            continue
        first, last = span[0] // PIECE, (span[1] - 1) // PIECE
        if first < last - 1:
            late.append(index)
        else:
            due[last].append(index)
    return due, late


def _hash_blocks(image: DiskImage, indices: array[int], stop: threading.Event | None = None) -> Run:
    buffer, found, sums = bytearray(BLOCK_BYTES), array("I"), bytearray()
    for index in indices:
        if stop is not None and stop.is_set():
            break
        image.read_into(index * BLOCK_BYTES, buffer)
        if buffer != ZEROS:  # one memcmp, which stops at the first difference
            found.append(index)
            sums += hashlib.sha256(buffer).digest()
    return found, sums


def _over(image: DiskImage, source: ByteSource) -> DiskImage:
    """Return the same disk with another source of its bytes."""
    view: DiskImage = object.__new__(type(image))  # a copy would open the file again
    view.__dict__.update(image.__dict__)
    view.source = source
    return view


def _size_now(source: ByteSource) -> int:
    return os.lseek(source.descriptor, 0, os.SEEK_END) if isinstance(source, PathSource) else source.size


def _threads() -> int:
    return min(os.cpu_count() or 1, MOST_THREADS)


class _BlockHashing:
    """Threads that hash an image's blocks; a context manager, which stops them."""

    def __init__(self, image: DiskImage, threads: int) -> None:
        self._image, self._at = image, 0
        self._shares = iter(range(0, -(-image.size // BLOCK_BYTES), SHARE))  # `next` on it is atomic
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._tasks = [self._pool.submit(self._work) for _ in range(threads)]

    def result(self, on_progress: Callable[[int], None] | None = None) -> Digests:
        """Wait for all threads, and return the digests."""
        if on_progress is not None:
            reported = 0
            while wait(self._tasks, timeout=0.2).not_done:
                at = max(self._at, reported)
                on_progress((at - reported) * BLOCK_BYTES)
                reported = at
            on_progress(self._image.size - reported * BLOCK_BYTES)
        return Digests.of([run for task in self._tasks for run in task.result()])

    def _work(self) -> list[Run]:
        buffer, runs = bytearray(BLOCK_BYTES), list[Run]()
        while not self._stop.is_set() and (first := next(self._shares, None)) is not None:
            self._at = first
            indices, sums = array("I"), bytearray()
            for index in self._image.stored_blocks(buffer, first=first, stop=first + SHARE):
                if buffer != ZEROS:  # one memcmp, which stops at the first difference
                    indices.append(index)
                    sums += hashlib.sha256(buffer).digest()
            if indices:
                runs.append((indices, sums))
        return runs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._pool.shutdown()
