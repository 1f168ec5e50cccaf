"""The ledger of a fleet: one JSON document for each target, in a local folder or on S3.

A document is first the claim of the process that runs the target, and later the result. A process can
replace a document only if it has read the latest version (with a lock in a folder, with ``If-Match`` on S3):
one of two processes gets the target. The owner of a claim increases its number ``beat`` regularly. Another
process may take over a claim of the same machine when its owner has ended. It may take over a claim of
another machine when the beat did not change for a while, by the clock of the waiting process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.aws.session import calling
from vmsnix_ops.errors import ArchiveError, VmsnixError
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.execution import lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Document = dict[str, Any]
IDENTITY = "ledger.json"
"""Contains the ID of a ledger. A worker compares it with the ID of the client's ledger."""
MARK = "write"
"""Key of a document in its file: a random value, different for each write."""
ATTEMPTS = 8
"""Maximum number of requests for one write; the pause after the first is `FIRST_PAUSE`, then doubled."""
FIRST_PAUSE = 0.05
"""In seconds."""


class StaleError(Exception):
    """Another process replaced the document after it was read."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Documents in a folder (also of a shared file system with locks), or in ``s3://bucket/prefix``."""

    location: str

    def read(self, name: str) -> tuple[Document | None, str | None]:
        """Return a document and its version; ``None, None`` if it does not exist."""
        place = f"{self.location}/{name}"
        text, version = self._read(place)
        if text is None:
            return None, None
        try:
            document = dict(json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise ArchiveError(
                f"The ledger contains a file that is not JSON: {place}.",
                why=f"{error}.",
                fix="Move the file to another folder. The target then runs again and creates nothing twice.",
            ) from error
        document.pop(MARK, None)
        return document, version

    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace the version `last` of a document (``None``: create it), and return the new version.

        Raises `StaleError` if the document has another version, and `ArchiveError` if S3 rejects every
        attempt although it does not.
        """
        place, mark = f"{self.location}/{name}", uuid.uuid4().hex
        marked = json.dumps(value | {MARK: mark}, indent=1, sort_keys=True, ensure_ascii=False, default=str)
        text = Redactor(secret_values()).json(marked).encode()
        for attempt in range(ATTEMPTS):
            if version := self._replace(place, text, last or ""):
                return version
            # If S3's answer was lost, the repeated request fails because of the first one. The mark shows
            # that this process wrote it. S3 may also reject a request because of one that then fails.
            now, version = self._read(place)
            if now is not None and mark.encode() in now:
                return version
            if version != (last or ""):
                raise StaleError(name)
            time.sleep(FIRST_PAUSE * 2**attempt)
        raise ArchiveError(
            f"The ledger cannot be written: {place}.",
            why=f"S3 rejected {ATTEMPTS} conditional requests, although the object had not changed.",
            fix="Run the fleet again, or use a bucket that supports If-Match and If-None-Match (--ledger).",
        )

    def _read(self, place: str) -> tuple[bytes | None, str]:
        """Return the content and the version of a file, which is empty if the file does not exist."""
        if archive.is_remote(place):
            with calling(f"read {place}"):
                return archive.get_version(os.environ, place)
        with _folder_errors("read", place), suppress(FileNotFoundError):
            text = files.read(Path(place))
            return text, hashlib.sha256(text).hexdigest()
        return None, ""

    def _replace(self, place: str, text: bytes, last: str) -> str:
        """Replace the version `last` of a file, and return the new version; empty if it has another one."""
        if archive.is_remote(place):
            with calling(f"write {place}"):
                return archive.put_if(os.environ, place, text, last)
        with _folder_errors("written", place):
            files.make_folder(Path(place).parent)
            # Not `files.locked`, which continues without a lock where a file system has none.
            lock = files.create(Path(self.location, ".lock"), os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._read(place)[1] != last:
                    return ""
                files.write(Path(place), text, clean=True)
            finally:
                os.close(lock)
        return hashlib.sha256(text).hexdigest()


@contextmanager
def _folder_errors(done: str, place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArchiveError(
            f"The ledger cannot be {done}: {place}.",
            why=f"{error.strerror}.",
            fix=f"{files.fix_of(error)}, or use another location with --ledger.",
        ) from error


def change(
    ledger: Ledger, name: str, decide: Callable[[Document | None], Document | None]
) -> Document | None:
    """Replace a document by the result of `decide` for the current one, and return the new document.

    `decide` gets ``None`` if there is no document, and returns ``None`` to change nothing. It is called again
    if another process replaced the document meanwhile.
    """
    while True:
        current, version = ledger.read(name)
        wanted = decide(dict(current) if current else None)
        if wanted is None:
            return current
        with suppress(StaleError):
            ledger.write(name, wanted, version)
            return wanted


def ledger_id(ledger: Ledger) -> str:
    """Return the ID of a ledger, created on first use."""
    made = {"id": uuid.uuid4().hex}
    return str((change(ledger, IDENTITY, lambda current: None if current else made) or made)["id"])


def this_process() -> Document:
    """Return the description of this process as the owner of a new claim."""
    pid, host = os.getpid(), socket.gethostname()
    return {"id": uuid.uuid4().hex, "machine": _machine(), "pid": pid, "born": _start_of(pid), "host": host}


def has_ended(owner: Mapping[str, Any]) -> bool:
    """Return whether the process of an owner has ended; False if it is on another machine."""
    return bool(owner["machine"] == _machine() and _start_of(owner["pid"]) not in (owner["born"], "unknown"))


@dataclass
class Watch:
    """Watches the claim of another process."""

    seconds: float  # after this time without a new beat, a claim of another machine is abandoned
    _beat: tuple[str, int] | None = None
    _since: float = field(default_factory=time.monotonic)

    def is_abandoned(self, claim: Mapping[str, Any]) -> bool:
        """Return whether the claim, as it was just read, can be taken over."""
        if claim["owner"]["machine"] == _machine():  # without the beat: a suspended process can continue
            return has_ended(claim["owner"])
        beat = (claim["owner"]["id"], claim["beat"])
        if beat != self._beat:
            self._beat, self._since = beat, time.monotonic()
        return time.monotonic() - self._since > self.seconds


class Claim:
    """The claim of this process on a target, for a ``with`` block. A thread increases the beat.

    Entering the block raises `StaleError` if another process has the claim. `last` is the version of the
    document that the claim replaces. After `seconds` without a beat, another machine may take over.
    `lease_file` has the time until which the run may change something
    (`vmsnix_ops.runbooks.execution.lease`). `on_loss` is called when the claim is lost; the reason is then in
    `lost`.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        document: Document,
        last: str | None,
        *,
        seconds: float,
        lease_file: Path,
        on_loss: Callable[[], None],
    ) -> None:
        self.document = {**document, "state": "running", "owner": this_process(), "beat": 0}
        self.lost = ""
        self._ledger, self._name, self._version = ledger, name, last
        self._seconds, self._lease_file, self._on_loss = seconds, lease_file, on_loss
        self._renewed = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fleet-beat", daemon=True)

    def __enter__(self) -> Claim:
        self._renew(self.document)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def finish(self, document: Document) -> None:
        """Replace the claim by the result, after the block; raise `StaleError` if another process has it."""
        try:
            self._version = self._ledger.write(self._name, document, self._version)
        except StaleError:  # also raised if an earlier write ended with an error but was stored
            current, version = self._ledger.read(self._name)
            if (current or {}).get("owner") != self.document["owner"]:
                raise
            self._version = self._ledger.write(self._name, document, version)

    def _renew(self, document: Document) -> None:
        # The time before the request, because the answer can arrive long after the ledger stored the beat.
        sent = lease.now()
        self.finish(document)
        self.document, self._renewed = document, sent
        lease.extend(self._lease_file, sent + self._seconds * 2 / 3)

    def _beat(self) -> None:
        while not self.lost and not self._end.wait(self._seconds / 6):
            try:
                self._renew(self.document | {"beat": self.document["beat"] + 1})
            except StaleError:
                self.lost = "Another process took over the target."
            except VmsnixError as error:  # no loss until another machine could take over
                self.lost = str(error) if lease.now() - self._renewed > self._seconds * 2 / 3 else ""
        if self.lost:
            lease.extend(self._lease_file, 0.0)
            self._on_loss()


def _machine() -> str:
    """Return host name, boot ID and process namespace; a process ID is unique only within these."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - a name, not a path
    return " ".join(parts)


def _start_of(pid: int) -> str:
    """Return the start time of a process, because its ID can be reused; empty if the process has ended.

    The result is ``unknown`` if /proc does not show the process, such as one of another user.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        with suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return ""
        return "unknown"
    parts = stat.rpartition(")")[2].split()
    return "" if parts[0] in "ZX" else parts[19]
