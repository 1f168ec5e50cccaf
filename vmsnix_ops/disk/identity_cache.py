"""A cache of the identities of image files, so that a second publish of a file does not read it.

The key of a path in the Nix store, which never changes, is store path and NAR hash. The key of another file
is device, inode, size, modification time and change time (ctime), which no program can set. Two changes
within the resolution of the clock have the same times. So a file that changed shortly before it was read is
not cached. Nor is a file that a program has open for writing: if it has mapped the file into memory, only the
first write to a page changes the times.

A wrong identity in the cache cannot publish other bytes: all sent bytes are compared with its digests.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.disk.digests import SUM
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.disk.source import stamp_of
from vmsnix_ops.disk.survey import Survey
from vmsnix_ops.errors import RecordsError

if TYPE_CHECKING:
    from pathlib import Path

RESOLUTION_SECONDS = 10.0  # more than the resolution of a file system's clock, and the delay of a server's
MOST_FILES = 50  # identities; that of a full disk of 100 GiB has 7 MiB


class IdentityCache:
    """A cache in a folder, which `save` creates. Errors of the file system are ignored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, path: Path, *, parts: bool, store: str = "") -> Survey | None:
        """Return the cached identity of a file, or ``None``; `parts`: with the digests of the file's ranges.

        `store` is the key of an image in the Nix store (store path, NAR hash, path inside); empty for other
        files.
        """
        try:
            state = path.stat()
            key = store or _key(state)
            header, _, rest = self._place(key).read_bytes().partition(b"\n")
            known = json.loads(header)
            digest, content = rest[:SUM], rest[SUM:]
            if hashlib.sha256(header + content).digest() != digest or known["key"] != key:
                return None
            count = known["parts"] * SUM
            manifest = Manifest.load(content[count:])
            manifest.check_identity()
        except (OSError, ValueError, KeyError, TypeError, RecursionError, RecordsError):
            return None
        if known["file_bytes"] != state.st_size or (parts and not count):
            return None
        return Survey(
            identity=manifest.identity,
            stamp=(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns),
            blocks=manifest.blocks,
            file_bytes=known["file_bytes"],
            disk_bytes=manifest.disk_bytes,
            parts=content[:count] if parts else b"",
            changed_ns=state.st_ctime_ns,
        )

    def save(self, path: Path, surveyed: Survey, *, started: float, store: str = "") -> None:
        """Save the identity of a file that was read after `started` (`time.time`); `store` as for `find`."""
        with suppress(OSError):
            state = path.stat()
            if not store and (
                stamp_of(path) != surveyed.stamp
                or state.st_ctime_ns != surveyed.changed_ns
                or max(state.st_ctime, state.st_mtime) > started - RESOLUTION_SECONDS
                or _is_open_for_writing(path)
            ):
                return
            key = store or _key(state)
            manifest = Manifest(surveyed.identity, surveyed.disk_bytes, "", "", surveyed.blocks)
            known = {"key": key, "file_bytes": surveyed.file_bytes, "parts": len(surveyed.parts) // SUM}
            header, content = json.dumps(known).encode(), surveyed.parts + manifest.dump()
            files.make_folder(self._folder)
            place = self._place(key)
            temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
            try:
                with os.fdopen(files.create(temporary), "wb") as file:
                    file.write(header + b"\n" + hashlib.sha256(header + content).digest() + content)
                temporary.replace(place)
            finally:
                temporary.unlink(missing_ok=True)
            self._delete_oldest()

    def delete(self, path: Path, *, store: str = "") -> None:
        """Delete the identity of a file; `path` and `store` as for `find`."""
        with suppress(OSError):
            self._place(store or _key(path.stat())).unlink(missing_ok=True)

    def _place(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def _delete_oldest(self) -> None:
        known = sorted(self._folder.iterdir(), key=lambda place: place.stat().st_mtime_ns)
        for place in known[:-MOST_FILES]:
            place.unlink(missing_ok=True)


def _key(state: os.stat_result) -> str:
    numbers = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return "file " + " ".join(map(str, numbers))


def _is_open_for_writing(path: Path) -> bool:
    """Return whether a process on this machine has a file open for writing, or mapped.

    Then Linux refuses a read lease (fcntl_locking(2), ``F_SETLEASE``). Without leases (another system, a file
    of another user), the result is false.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # A process that opens the file meanwhile causes a signal. SIGIO, the default, would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
