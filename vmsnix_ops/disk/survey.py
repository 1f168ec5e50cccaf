"""The identity of an image: the SHA-256 of its file, of ranges of the file, and of the disk's blocks.

`survey` reads the file once, and every digest is made from the bytes of that one pass: the digest of the
whole file, which names the image everywhere, the digest of each range that an upload to S3 sends as one part,
and the digest of each block of 512 KiB that an EBS snapshot holds. Digests of ranges and blocks bind what is
read later to the digest of the file: whoever sends bytes compares the buffer that is sent with them. A file
may be replaced or written at any time, and its time of last change can be set back, so nothing else is proof.

SHA-256 is used throughout. A CRC finds errors of a network or a disk, and no more: bytes can be chosen so
that they have a given CRC.
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
from typing import TYPE_CHECKING, Self

from vmsnix_ops.disk.digests import NONE, SUM, Digests, Run
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.image import EBS_BLOCK, ZEROS
from vmsnix_ops.disk.source import DIGEST_CHUNK, ByteSource, PathSource, stamp_of
from vmsnix_ops.errors import ImageChangedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.disk.source import Stamp

MIB = 2**20
SHARE = 64  # blocks that a thread takes at a time: 32 MiB
MOST_THREADS = 8
PART_BYTES = 8 * MIB
MOST_PARTS = 10_000  # S3's limit for one object
PIECE = 4 * MIB  # bytes of the file that are in memory as one; whole blocks of a raw disk
PIECES = 6  # in memory at a time
NEXT_TIME = (
    "Stop other programs from writing to the image, then run the same command again. In a notebook, run it "
    "again from the cell that builds."
)


def part_bytes(size: int) -> int:
    """Return the bytes of a range that has a digest of its own, for a file of this size.

    A range is a part of an upload to S3. The split depends on the size alone, so that two runs (or two
    machines) make the same parts. A file of 100 GiB has 6,400 of them, whose digests take 200 KiB.
    """
    length = PART_BYTES
    while size > length * MOST_PARTS:
        length *= 2
    return length


@dataclass(frozen=True, slots=True)
class Survey:
    """The identity of an image.

    Attributes
    ----------
    digest
        SHA-256 of the file, hex.
    stamp
        Of the file.
    blocks
        Index to SHA-256 (hex) of every stored block of 524288 bytes; empty text for one that is zero.
        ``None`` when nobody wanted them, or where ``qemu-img`` must read the image first.
    file_bytes, disk_bytes
        Bytes of the file, and of the disk.
    parts
        SHA-256 of every range of `part_bytes` bytes of the file, one after the other.
    changed_ns
        When the inode was last changed, which no program can set back; ``None`` for a reader.
    """

    digest: str
    stamp: Stamp | None
    blocks: Digests | None = field(default=None, repr=False)
    file_bytes: int = 0
    disk_bytes: int = 0
    parts: bytes = field(default=b"", repr=False)
    changed_ns: int | None = None

    def part(self, number: int) -> bytes:
        """Return the SHA-256 of a range, counted from 0."""
        return self.parts[number * SUM : (number + 1) * SUM]


def survey(
    image: DiskImage,
    *,
    blocks: bool = True,
    parts: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> Survey:
    """Hash the file, its ranges and its disk's blocks from the same bytes, in one pass.

    One core hashes the file from its beginning to its end; others hash ranges and blocks meanwhile.

    Parameters
    ----------
    image
        The image.
    blocks
        Whether the blocks are wanted. They are left out for an image of which ``qemu-img`` tells the layout:
        what it read cannot be compared with what was hashed. `open_identified` opens such an image.
    parts
        Whether the ranges are wanted. They are hashed all the same where the blocks are left out.
    on_progress
        Called with the number of bytes of the file hashed since the last call.

    Raises
    ------
    ImageChangedError
        The file changed since it was opened.
    ImageError
        The image is damaged, or cannot be read.
    """
    source, own = image.source, image.own_layout
    stamp, changed_ns = image.stamp(), _changed_ns(source)
    due, late = _blocks_by_piece(image) if blocks and own else ({}, array("I"))
    threads = 1 if (os.cpu_count() or 1) < 3 else 2
    parts = parts or not blocks or not own or bool(late)
    with _Pass(image, due, threads if due else 0, parts=parts) as running:
        digest, sums = running.carry_out(on_progress)
        runs = running.runs()
    if image.stamp() != stamp or source.size != _size_now(source):
        raise changed(source.name)
    found = Survey(digest, stamp, None, source.size, image.size, sums, changed_ns)
    if not (blocks and own):
        return found
    if late:
        with closing(IdentifiedSource(source, found)) as checked:
            runs += [_hash_blocks(_over(image, checked), late)]
    stored = bytearray(-(-image.size // EBS_BLOCK))  # by the file system, which is no proof for zeros
    for index in image.allocated():
        stored[index] = 1
    kept = Digests(pair for pair in Digests.of(runs).pairs() if pair[1] or stored[pair[0]])
    return Survey(digest, stamp, kept, source.size, image.size, sums, changed_ns)


def identify(path: Path, *, blocks: bool = False, parts: bool = True) -> Survey:
    """Return the identity of the image in a file, as `survey` finds it."""
    with open_image(path) as image:
        return survey(image, blocks=blocks, parts=parts)


def block_digests(image: DiskImage, *, on_progress: Callable[[int], None] | None = None) -> Digests:
    """Return what `Survey.blocks` is, hashed on all cores.

    Nothing binds these digests to the digest of the file unless `image` is one of `open_identified`.

    Parameters
    ----------
    image
        The image.
    on_progress
        Called with the number of bytes of the disk read since the last call.
    """
    with _BlockHashing(image, min(os.cpu_count() or 1, MOST_THREADS)) as hashing:
        return hashing.result(on_progress)


@contextmanager
def open_identified(path: Path, seen: Survey) -> Iterator[DiskImage]:
    """Open an image of which every byte that is read is one that was identified.

    Parameters
    ----------
    path
        The file.
    seen
        Its identity, with its ranges.

    Raises
    ------
    ImageChangedError
        When it is opened or read: the file is gone, or holds other bytes.
    """
    with closing(PathSource(path)) as file, open_image(IdentifiedSource(file, seen)) as image:
        yield image


def still_identified(path: Path, seen: Survey) -> bool:
    """Return whether a file holds the bytes that were identified.

    The file is read only when it may have been written: when it is another file, or its inode changed.
    """
    stamp = stamp_of(path)
    if stamp is None:
        return False
    if stamp == seen.stamp and path.stat().st_ctime_ns == seen.changed_ns:
        return True
    with closing(PathSource(path)) as file:
        return file.size == seen.file_bytes and file.digest() == seen.digest


@contextmanager
def unchanged(path: Path, seen: Survey) -> Iterator[None]:
    """Let a block read a file by its path, and refuse it unless it was the identified one all the time.

    A file that was changed and changed back has the identified bytes again, but not its earlier inode times.

    Raises
    ------
    ImageChangedError
        It holds other bytes before or after the block, or something wrote to it in between.
    """

    def state() -> tuple[Stamp | None, int]:
        return stamp_of(path), path.stat().st_ctime_ns

    if not still_identified(path, seen):
        raise changed(str(path))
    before = state()
    yield
    if not still_identified(path, seen) or state() != before:
        raise changed(str(path))


def changed(name: str, offset: int | None = None, length: int = 0) -> ImageChangedError:
    """Return the error for an image that changed after it was identified, or while it was.

    Parameters
    ----------
    name
        Of the file.
    offset, length
        The bytes of the file that are others, where that is known.
    """
    why = "Its size, modification time or file is not the one that was hashed."
    if offset is not None:
        why = f"Bytes {offset} to {offset + length} of the file differ from those that were hashed."
    return ImageChangedError(f"{name} changed while it was in use.", why=why, fix=NEXT_TIME, offset=offset)


class IdentifiedSource(ByteSource):
    """A file of which only identified bytes are read.

    Every range is read whole and compared with its digest before any of it is handed out. It has no path, so
    that ``qemu-img`` is given a private copy of these bytes, never the file. Holes of the file count as
    stored: a hole can be made after the file was identified.

    Parameters
    ----------
    file
        The file; it stays open when this is closed.
    seen
        Its identity.
    """

    KEPT = MOST_THREADS + 2  # ranges that were checked and are in memory

    def __init__(self, file: ByteSource, seen: Survey) -> None:
        self.path, self.name, self.size = None, file.name, seen.file_bytes
        self._file, self._seen, self._length = file, seen, part_bytes(seen.file_bytes)
        self._checked: OrderedDict[int, bytes] = OrderedDict()
        self._turn = threading.Lock()
        if file.size != seen.file_bytes:
            at = min(file.size, seen.file_bytes)
            raise changed(self.name, at, max(file.size, seen.file_bytes) - at)

    def _read_some(self, offset: int, length: int) -> bytes:
        number, at = divmod(offset, self._length)
        return self._range(number)[at : at + length] if offset < self.size else b""

    def _read_some_into(self, offset: int, buffer: memoryview) -> int:
        number, at = divmod(offset, self._length)
        data = memoryview(self._range(number))[at : at + len(buffer)] if offset < self.size else b""
        buffer[: len(data)] = data
        return len(data)

    def _range(self, number: int) -> bytes:
        with self._turn:
            if number in self._checked:
                self._checked.move_to_end(number)
                return self._checked[number]
        offset = number * self._length
        data = self._file.read(offset, min(self._length, self.size - offset))
        if hashlib.sha256(data).digest() != self._seen.part(number):
            raise changed(self.name, offset, len(data))
        with self._turn:
            self._checked[number] = data
            if len(self._checked) > self.KEPT:
                self._checked.popitem(last=False)
        return data


class _Pieces(ByteSource):
    """The bytes of a file that `_Pass` has in memory, and no others."""

    def __init__(self, source: ByteSource, buffers: dict[int, memoryview]) -> None:
        self.path, self.name, self.size, self._buffers = None, source.name, source.size, buffers

    def _read_some(self, offset: int, length: int) -> bytes:
        number, at = divmod(offset, PIECE)
        return bytes(self._buffers[number][at : at + length])

    def _read_some_into(self, offset: int, buffer: memoryview) -> int:
        number, at = divmod(offset, PIECE)
        data = self._buffers[number][at : at + len(buffer)]
        buffer[: len(data)] = data
        return len(data)


class _Pass:
    """One pass over a file. Leaving the block stops its threads, wherever they are.

    Parameters
    ----------
    image
        Whose file is read.
    due
        Which blocks are complete when a piece and the one before it are in memory.
    threads
        That hash blocks.
    parts
        Whether the ranges are hashed.
    """

    def __init__(self, image: DiskImage, due: dict[int, array[int]], threads: int, *, parts: bool) -> None:
        self._image, self._source, self._due = image, image.source, due
        self._stop = threading.Event()
        self._blocks = ThreadPoolExecutor(threads) if threads else None
        self._parts = ThreadPoolExecutor(1) if parts else None
        self._runs: list[Future[Run]] = []
        self._sums, self._part, self._length = bytearray(), hashlib.sha256(), part_bytes(self._source.size)

    def carry_out(self, on_progress: Callable[[int], None] | None) -> tuple[str, bytes]:
        """Read and hash everything; return the file's digest (hex) and those of its ranges."""
        whole, size = hashlib.sha256(), self._source.size
        buffers = [memoryview(bytearray(min(PIECE, size))) for _ in range(min(PIECES, -(-size // PIECE)))]
        at_work: dict[int, list[Future[Run] | Future[None]]] = {}
        for number, offset in enumerate(range(0, size, PIECE)):
            # The piece whose memory is used again may also be the first half of what the next one's tasks
            # read.
            for done in (*at_work.pop(number - PIECES, ()), *at_work.pop(number - PIECES + 1, ())):
                done.result()
            piece = buffers[number % PIECES][: size - offset]
            for at in range(0, len(piece), DIGEST_CHUNK):
                chunk = piece[at : at + DIGEST_CHUNK]
                self._source.read_into(offset + at, chunk)
                whole.update(chunk)
                if on_progress is not None:
                    on_progress(len(chunk))
            self._check_opening(offset, piece)
            here = {number: piece}
            if number:
                here[number - 1] = buffers[(number - 1) % PIECES]
            at_work[number] = self._submit(number, piece, here)
        for tasks in at_work.values():
            for done in tasks:
                done.result()
        if self._parts is not None and size % self._length:
            self._sums += self._part.digest()
        return whole.hexdigest(), bytes(self._sums)

    def runs(self) -> list[Run]:
        """Return the blocks that were hashed."""
        return [run for run in (future.result() for future in self._runs) if run[0]]

    def _submit(
        self, number: int, piece: memoryview, here: dict[int, memoryview]
    ) -> list[Future[Run] | Future[None]]:
        tasks: list[Future[Run] | Future[None]] = []
        if self._parts is not None:
            tasks.append(self._parts.submit(self._hash_part, number * PIECE + len(piece), piece))
        if self._blocks is not None and number in self._due:
            view = _over(self._image, _Pieces(self._source, here))
            run = self._blocks.submit(_hash_blocks, view, self._due[number], self._stop)
            self._runs.append(run)
            tasks.append(run)
        return tasks

    def _hash_part(self, end: int, piece: memoryview) -> None:
        """Add a piece to its range; one thread does so, in the file's order."""
        self._part.update(piece)
        if end % self._length == 0:
            self._sums += self._part.digest()
            self._part = hashlib.sha256()

    def _check_opening(self, offset: int, piece: memoryview) -> None:
        """Compare with what was read when the image was opened: headers and tables say where blocks lie."""
        for start, data in self._source.opening:
            first, last = max(start, offset), min(start + len(data), offset + len(piece))
            if first < last and piece[first - offset : last - offset] != data[first - start : last - start]:
                raise changed(self._source.name, first, last - first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        for pool in (self._blocks, self._parts):
            if pool is not None:
                pool.shutdown(cancel_futures=True)


def _blocks_by_piece(image: DiskImage) -> tuple[dict[int, array[int]], array[int]]:
    """Return the blocks by the piece of the file with which they are complete, and those that lie scattered.

    What a scattered block needs is never in memory at one time.
    """
    due: dict[int, array[int]] = defaultdict(lambda: array("I"))
    late = array("I")
    for index in range(-(-image.size // EBS_BLOCK)):
        span = image.file_span(index * EBS_BLOCK, min((index + 1) * EBS_BLOCK, image.size))
        if span is None:
            continue
        first, last = span[0] // PIECE, (span[1] - 1) // PIECE
        if first < last - 1:
            late.append(index)
        else:
            due[last].append(index)
    return due, late


def _hash_blocks(image: DiskImage, indices: array[int], stop: threading.Event | None = None) -> Run:
    """Return the digests of blocks of an image."""
    buffer, found, sums = bytearray(EBS_BLOCK), array("I"), bytearray()
    for index in indices:
        if stop is not None and stop.is_set():
            break
        image.read_into(index * EBS_BLOCK, buffer)
        found.append(index)
        # One memcmp, which stops at the first difference.
        sums += NONE if buffer == ZEROS else hashlib.sha256(buffer).digest()
    return found, sums


def _over(image: DiskImage, source: ByteSource) -> DiskImage:
    """Return the same disk, read from other bytes of the same file."""
    view: DiskImage = object.__new__(type(image))  # a copy would open the file again
    view.__dict__.update(image.__dict__)
    view.source = source
    return view


def _changed_ns(source: ByteSource) -> int | None:
    return os.fstat(source.descriptor).st_ctime_ns if isinstance(source, PathSource) else None


def _size_now(source: ByteSource) -> int:
    if not isinstance(source, PathSource):
        return source.size
    return os.lseek(source.descriptor, 0, os.SEEK_END)


class _BlockHashing:
    """Threads that hash an image's blocks. Leaving the block stops them, wherever they are."""

    def __init__(self, image: DiskImage, threads: int) -> None:
        self._image, self._at = image, 0
        self._shares = iter(range(0, -(-image.size // EBS_BLOCK), SHARE))  # `next` on it is atomic
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._parts = [self._pool.submit(self._work) for _ in range(threads)]

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
