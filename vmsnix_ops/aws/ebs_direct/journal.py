"""Journals of uploads, downloads and proofs: files with the finished blocks, so that a later run continues.

The first line of an upload's or a download's journal names the snapshot; each further line is the index of a
block, appended after AWS has acknowledged it. So a killed run transfers only the blocks again that were in
progress. An incomplete last line, for example after a power cut, is ignored. A full disk does not stop an
upload: without a journal, the next run uploads all blocks again.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import time
import zlib
from array import array
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.progress import NO_STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from vmsnix_ops.progress import Step

OWNER_SECONDS = 2.0  # in which a process that has just locked a file writes its name into it


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """The first line of a journal."""

    snapshot_id: str  # the pending snapshot of an upload, or the snapshot that is downloaded
    attempt: int = 0  # number of snapshots that were started for the image before
    parent_id: str = ""  # parent of the snapshot; empty for a full upload
    # Identity of the parent's disk; its manifest must still have it when the upload continues.
    parent_identity: str = ""


class BlockJournal:
    """The journal of one upload or download.

    With `required`, an error of the file system is raised: a download needs its journal to recognize its own
    unfinished file. Otherwise `problem` becomes the reason why the journal is no longer written, as a
    sentence.
    """

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self.path = path
        self.required = required
        self.problem = ""
        self._file: IO[str] | None = None

    def read(self) -> tuple[JournalHeader, set[int]] | None:
        """Return the header and the finished blocks, or ``None`` without a journal."""
        try:
            lines = files.read(self.path).decode("utf-8").split("\n")
            header = JournalHeader(**json.loads(lines[0]))
        except FileNotFoundError:
            return None
        except OSError:
            if self.required:
                raise
            return None
        except (ValueError, TypeError, RecursionError):
            return None  # the run was killed while it wrote the first line, before the first block
        # The text after the last newline is empty or incomplete. Lines of other versions of vmsnix are
        # ignored, and their blocks transferred again.
        return header, {int(line) for line in lines[1:-1] if line.isdecimal()}

    def begin(self, header: JournalHeader) -> None:
        """Start a new journal."""
        self.close()
        with self._collecting():
            files.make_folder(self.path.parent)
            self._file = files.open_text(self.path)
            self._file.write(json.dumps(asdict(header)) + "\n")
            self._file.flush()

    def resume(self) -> None:
        """Continue the existing journal."""
        self.close()
        with self._collecting():
            os.truncate(self.path, files.read(self.path).rfind(b"\n") + 1)
            self._file = files.open_text(self.path, append=True)

    def add(self, done: Sequence[int]) -> None:
        """Add the indices of finished blocks."""
        if self.problem:  # a further line would be joined to the incomplete one
            return
        if self._file is None:
            raise RuntimeError("the journal was neither begun nor resumed")
        with self._collecting():
            self._file.write("".join(f"{index}\n" for index in done))
            self._file.flush()

    def close(self) -> None:
        """Close the file and keep it."""
        if self._file is not None:
            with suppress(OSError):  # the disk is full
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the journal."""
        self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.required:
                raise
            self.problem = (
                f"The journal {self.path} cannot be written ({error.strerror}). If this run stops, the next "
                "run uploads all blocks again."
            )
            self.close()


class DigestJournal:
    """The journal of a proof: the SHA-256 of the blocks that were read.

    A line of JSON names the snapshot and, for a sample, the identity that is proven and the seed of the
    choice of blocks. Then each block has 40 bytes: index, SHA-256, and a CRC-32 of both and of the line. A
    file with another line is not used. Entries after the first damaged one are ignored, and their blocks read
    again.

    `seed` are random bytes for a new file; afterwards that of the file, once a valid one was read.
    """

    _ENTRY = struct.Struct(">I32s")

    def __init__(
        self, path: Path, *, snapshot_id: str, region: str, identity: str = "", seed: bytes = b""
    ) -> None:
        self.path, self.seed = path, seed
        self._facts = {"snapshot_id": snapshot_id, "region": region}
        if identity:
            self._facts["identity"] = identity
        self._file = -1

    def read(self) -> Digests:
        """Return the finished blocks."""
        return self._read()[0]

    def open(self) -> Digests:
        """Return the finished blocks, and open the file for more. Then the seed is on the disk."""
        self.close()
        known, end = self._read()
        with suppress(OSError):
            files.make_folder(self.path.parent)
            self._file = files.create(self.path, os.O_WRONLY | os.O_APPEND)
            os.ftruncate(self._file, end)
        if not end:
            self._write(self._head())
            if self.seed and self._file >= 0:
                with suppress(OSError):
                    os.fsync(self._file)
        return known

    def _head(self) -> bytes:
        facts = {**self._facts, "seed": self.seed.hex()} if self.seed else self._facts
        checked = {**facts, "checksum": zlib.crc32(json.dumps(facts).encode())}
        return json.dumps(checked).encode() + b"\n"

    def _read(self) -> tuple[Digests, int]:
        """Return the finished blocks, and the position after the last valid entry; 0 without a valid line."""
        try:
            content = files.read(self.path)
        except OSError:
            content = b""
        new = self.seed
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            found = bytes.fromhex(json.loads(content.partition(b"\n")[0])["seed"])
            self.seed = found if len(found) == len(new) else new
        if not content.startswith(self._head()):
            self.seed = new
            return Digests(), 0
        size, at = self._ENTRY.size, len(self._head())
        of_line, indices, sums = zlib.crc32(self._head()), array("I"), bytearray()
        while entry := content[at : at + size + 4]:
            if entry[size:] != zlib.crc32(entry[:size], of_line).to_bytes(4, "big"):
                break
            index, digest = self._ENTRY.unpack_from(entry)
            indices.append(index)
            sums += digest
            at += size + 4
        return Digests.of([(indices, sums)]) if indices else Digests(), at

    def add(self, done: Sequence[tuple[int, str]]) -> None:
        """Add finished blocks: index and SHA-256 in hexadecimal."""
        of_line = zlib.crc32(self._head())
        entries = (self._ENTRY.pack(index, bytes.fromhex(digest)) for index, digest in done)
        self._write(b"".join(entry + zlib.crc32(entry, of_line).to_bytes(4, "big") for entry in entries))

    def close(self) -> None:
        """Close the file and keep it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Delete the journal."""
        self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        if self._file < 0:
            return
        try:
            whole = os.write(self._file, data) == len(data)
        except OSError:
            whole = False
        if not whole:  # the disk is full; an interrupted proof reads these blocks again
            self.close()


@contextmanager
def lock_journal(journal: Path, doing: str, step: Step, *, remove: bool = False) -> Iterator[None]:
    """Wait for other processes on this machine that use the same journal; parameters are those of `locked`.

    Without a lock file (full or read-only disk), the block runs without a lock.
    """

    def wait(owner: str) -> bool:
        step.message(f"{owner}; waiting for it")
        return True

    with ExitStack() as stack:
        try:
            lock = journal.with_name(f"{journal.name}.lock")
            stack.enter_context(locked(lock, doing, on_busy=wait, step=step, remove=remove))
        except OSError as error:  # there is no journal either
            step.message(f"{journal.parent} cannot be locked ({error.strerror}); continuing")
        yield


@contextmanager
def locked(
    path: Path, doing: str, *, on_busy: Callable[[str], bool], step: Step = NO_STEP, remove: bool = False
) -> Iterator[None]:
    """Lock a file during the block. The operating system releases the lock when the process ends.

    The process that has the lock writes into the file what it does (`doing`, such as "downloads snap-1 to
    disk.raw"). `on_busy` is called with a sentence about that process; it returns whether to wait, or raises.
    If the file system has no locks, `step` shows a message, and the block runs without a lock. With `remove`,
    the file is deleted after the block.
    """
    files.make_folder(path.parent)
    file = _lock(path, on_busy, step)
    try:
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}"
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "doing": doing}
        with suppress(OSError):  # on a full disk the owner is not recorded
            os.truncate(file, 0)
            os.pwrite(file, json.dumps(me).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            os.truncate(file, 0)
            if remove:
                # Before the lock is released, or another process could lock the file that is being deleted.
                path.unlink(missing_ok=True)
        os.close(file)


def _lock(path: Path, on_busy: Callable[[str], bool], step: Step) -> int:
    while True:
        file = files.create(path, os.O_RDWR)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_busy(_lock_owner(file)):
                    fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # a file system without locks
                step.message(f"{path.parent} cannot be locked ({error.strerror}); continuing")
                return file
            # The last owner may have deleted the file meanwhile; then other processes lock a new one.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock_owner(file: int) -> str:
    """Return a sentence about the process that has the lock."""
    deadline = time.monotonic() + OWNER_SECONDS
    while True:
        try:
            who = json.loads(os.pread(file, 10_000, 0))
            if who["host"] != socket.gethostname() or _alive(int(who["pid"])):
                return f"process {who['pid']} on {who['host']} {who['doing']} since {who['since']}"
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # the owner has not written its name yet
        if time.monotonic() > deadline:
            return "another process has locked it, but it did not record which"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # a process of another user
    return True
