"""What an upload (or a download) has already done, in a file that survives the process.

The first line is the snapshot that it belongs to; every further line is the index of a block. Lines are
appended when AWS has acknowledged the blocks, so a killed run loses at most what was under way, and sending
that again is harmless. A torn last line, which a power cut can leave, is ignored. A disk that takes no more
lines stops no work: without its journal a killed run sends everything again.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from vmsnix_ops.progress import Step

HOLDER_SECONDS = 2.0  # in which the process that has just locked a file writes who it is


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the journal belongs to.

    Attributes
    ----------
    snapshot_id
        The pending snapshot (or the one that is read).
    attempt
        How many snapshots of these bytes were begun before.
    parent_id
        Snapshot that it starts from; empty for a full upload.
    """

    snapshot_id: str
    attempt: int = 0
    parent_id: str = ""


class BlockJournal:
    """The journal of one upload or download.

    Parameters
    ----------
    path
        Its file.
    required
        Whether the work must not go on without it: by its journal a download knows whose the file beside it
        is.

    Attributes
    ----------
    problem
        Why it is not written any more, as a sentence; empty while it is.
    """

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self.path = path
        self.required = required
        self.problem = ""
        self._file: IO[str] | None = None

    def read(self) -> tuple[Beginning, set[int]] | None:
        """Return what it belongs to and the blocks that are done, or ``None``."""
        try:
            lines = files.read(self.path).decode("utf-8").split("\n")
            beginning = Beginning(**json.loads(lines[0]))
        except FileNotFoundError:
            return None
        except OSError:
            if self.required:
                raise
            return None
        except (ValueError, TypeError, RecursionError):
            return None  # killed while its first line was written: nothing had been sent yet
        # What follows the last newline is empty or torn. Other versions of this package wrote other lines:
        # what they stand for is done again.
        return beginning, {int(line) for line in lines[1:-1] if line.isdecimal()}

    def begin(self, beginning: Beginning) -> None:
        """Start anew."""
        self.close()
        with self._collecting():
            files.make_folder(self.path.parent)
            self._file = files.open_text(self.path)
            self._file.write(json.dumps(asdict(beginning)) + "\n")
            self._file.flush()

    def resume(self) -> None:
        """Go on where it ended."""
        self.close()
        with self._collecting():
            os.truncate(self.path, files.read(self.path).rfind(b"\n") + 1)
            self._file = files.open_text(self.path, append=True)

    def add(self, done: Sequence[int]) -> None:
        """Write down blocks that are done, by their indices."""
        if self.problem:  # a later line would be joined to the torn one, and be another number
            return
        if self._file is None:
            raise RuntimeError("the journal was neither begun nor resumed")
        with self._collecting():
            self._file.write("".join(f"{index}\n" for index in done))
            self._file.flush()

    def close(self) -> None:
        """Close the file and keep it."""
        if self._file is not None:
            with suppress(OSError):  # what is left of a line that the disk did not take
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """Forget everything: the work is done, or will not be continued."""
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
    """The SHA-256 of the blocks of a snapshot that were read, so that a proof continues where it was cut.

    A line of JSON names the snapshot; then 40 bytes a block: index, SHA-256 and CRC-32 of both. What was
    written after the first damaged entry is read again. Without the file everything is.

    Parameters
    ----------
    path
        Its file.
    snapshot_id, region
        The snapshot.
    """

    _ENTRY = struct.Struct(">I32s")

    def __init__(self, path: Path, *, snapshot_id: str, region: str) -> None:
        self.path = path
        self._head = json.dumps({"snapshot_id": snapshot_id, "region": region}).encode() + b"\n"
        self._file = -1

    def read(self) -> Digests:
        """Return the blocks that are done."""
        return self._read()[0]

    def open(self) -> Digests:
        """Return the blocks that are done, and keep the file open for more."""
        known, end = self._read()
        with suppress(OSError):
            files.make_folder(self.path.parent)
            self._file = files.create(self.path, os.O_WRONLY | os.O_APPEND)
            os.ftruncate(self._file, end)
        self._write(b"" if end else self._head)
        return known

    def _read(self) -> tuple[Digests, int]:
        """Return the blocks that are done, and where the last of them ends in the file."""
        try:
            content = files.read(self.path)
        except OSError:
            content = b""
        if not content.startswith(self._head):
            return Digests(), 0
        size, at = self._ENTRY.size, len(self._head)
        indices, sums = array("I"), bytearray()
        while entry := content[at : at + size + 4]:
            if entry[size:] != self._checksum(entry[:size]):
                break
            index, digest = self._ENTRY.unpack_from(entry)
            indices.append(index)
            sums += digest
            at += size + 4
        return Digests.of([(indices, sums)]) if indices else Digests(), at

    def add(self, done: Sequence[tuple[int, str]]) -> None:
        """Write down blocks that were read: index and SHA-256 in hexadecimal."""
        entries = (self._ENTRY.pack(index, bytes.fromhex(digest)) for index, digest in done)
        self._write(b"".join(entry + self._checksum(entry) for entry in entries))

    def close(self) -> None:
        """Close the file and keep it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Delete the file: the proof is done."""
        self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    @staticmethod
    def _checksum(entry: bytes) -> bytes:
        return zlib.crc32(entry).to_bytes(4, "big")

    def _write(self, data: bytes) -> None:
        if self._file < 0:
            return
        try:
            whole = os.write(self._file, data) == len(data)
        except OSError:
            whole = False
        if not whole:  # a full disk: a proof that is cut reads more again
            self.close()


@contextmanager
def alone(journal: Path, step: Step | None) -> Iterator[None]:
    """Wait for another publisher of the same image on this machine: two would share one journal."""

    def tell(holder: str) -> bool:
        if step is not None:
            step.message(f"{holder}; waiting for it")
        return True

    with ExitStack() as stack:
        try:
            lock = journal.with_name(f"{journal.name}.lock")
            stack.enter_context(locked(lock, "uploads this image", on_busy=tell, step=step))
        except OSError as error:  # a full or read-only disk, on which no journal can be shared either
            if step is not None:
                step.message(f"{journal.parent} cannot be locked ({error.strerror}); continuing")
        yield


@contextmanager
def locked(
    path: Path,
    doing: str,
    *,
    on_busy: Callable[[str], bool],
    step: Step | None = None,
    remove: bool = False,
) -> Iterator[None]:
    """Lock a file for the length of the block. The operating system releases it when the process ends.

    The file names the process. What a killed process left in it does not count: the lock does.

    Parameters
    ----------
    path
        The lock file, made when missing.
    doing
        What this process does, after its name: "downloads snap-1 to disk.raw".
    on_busy
        Called when another process has the lock, with a sentence that says which; returns whether to wait, or
        raises.
    step
        Shows a message when the file system has no locks; the block runs all the same.
    remove
        Whether to delete the lock file at the end.
    """
    files.make_folder(path.parent)
    file = _lock(path, on_busy, step)
    try:
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now(), "doing": doing}
        with suppress(OSError):  # a full disk: the lock is taken, but its owner is not recorded
            os.truncate(file, 0)
            os.pwrite(file, json.dumps(me).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            os.truncate(file, 0)
            if remove:
                path.unlink(missing_ok=True)  # still locked, so that it is the file that others would find
        os.close(file)


def _lock(path: Path, on_busy: Callable[[str], bool], step: Step | None) -> int:
    """Return the locked file."""
    while True:
        file = files.create(path, os.O_RDWR)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_busy(_holder(file)):
                    fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # a file system without locks
                if step is not None:
                    step.message(f"{path.parent} cannot be locked ({error.strerror}); continuing")
                return file
            # The process that had it may have deleted the file meanwhile: then this is the lock of nobody.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _holder(file: int) -> str:
    """Return a sentence that names the process that has a lock."""
    deadline = time.monotonic() + HOLDER_SECONDS
    while True:
        try:
            who = json.loads(os.pread(file, 10_000, 0))
            if who["host"] != socket.gethostname() or _alive(int(who["pid"])):
                return f"process {who['pid']} on {who['host']} {who['doing']} since {who['since']}"
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # it has not written it yet
        if time.monotonic() > deadline:
            return "another process has locked it, but it did not record which"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
