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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.errors import ArchiveError, VmsnixError
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks.execution import lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef, PutObjectRequestTypeDef

Document = dict[str, Any]
IDENTITY = "ledger.json"
"""Contains the ID of a ledger. A worker compares it with the ID of the client's ledger."""


class StaleError(Exception):
    """Another process replaced the document after it was read."""


@dataclass(frozen=True, slots=True)
class FolderLedger:
    """Documents in a folder of this machine, or of a shared file system with locks."""

    folder: Path

    def read(self, name: str) -> tuple[Document | None, str | None]:
        """Return a document and its version; ``None, None`` if it does not exist."""
        try:
            text = files.read(self.folder / name)
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise self._error("read", name, error) from error
        return _parsed(text, str(self.folder / name)), hashlib.sha256(text).hexdigest()

    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace the version `last` of a document (``None``: create it), and return the new version.

        Raises `StaleError` if the document has another version.
        """
        text = _as_text(value)
        try:
            files.make_folder((self.folder / name).parent)
            with self._locked():
                if self.read(name)[1] != last:
                    raise StaleError(name)
                files.write(self.folder / name, text)
        except OSError as error:
            raise self._error("written", name, error) from error
        return hashlib.sha256(text.encode()).hexdigest()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Not `files.locked`, which continues without a lock where a file system has none.
        descriptor = files.create(self.folder / ".lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _error(self, done: str, name: str, error: OSError) -> ArchiveError:
        return ArchiveError(
            f"The ledger cannot be {done}: {self.folder / name}.",
            why=f"{error.strerror}.",
            fix=f"{files.fix_of(error)}, or use another location with --ledger.",
        )


class S3Ledger:
    """Documents in ``s3://bucket/prefix``, replaced by conditional requests."""

    def __init__(self, location: str) -> None:
        self.bucket, _, prefix = location.removeprefix("s3://").rstrip("/").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""

    @cached_property
    def _s3(self) -> S3Client:
        from vmsnix_ops.aws.session import client, session

        return client(session(), "s3")

    @needs("s3:GetObject", "s3:ListBucket")
    def read(self, name: str) -> tuple[Document | None, str | None]:
        """Return a document and its version; see `FolderLedger.read`."""
        from vmsnix_ops.aws.session import calling

        place = f"s3://{self.bucket}/{self.prefix}{name}"
        with calling(f"read {place}"):
            answer, text = self._get(name)
        return (_parsed(text, place), answer["ETag"]) if answer else (None, None)

    @needs("s3:PutObject")
    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace a document if its version is still `last`; see `FolderLedger.write`."""
        from vmsnix_ops.aws.session import calling, code_of, retry

        mark = uuid.uuid4().hex
        request: PutObjectRequestTypeDef = {
            "Bucket": self.bucket,
            "Key": self.prefix + name,
            "Body": _as_text(value).encode(),
            "ContentType": "application/json",
            "Metadata": {"write": mark},
        }
        if last is None:
            request["IfNoneMatch"] = "*"
        else:
            request["IfMatch"] = last
        with calling(f"write s3://{self.bucket}/{self.prefix}{name}"):
            try:
                # S3 rejects one of two simultaneous writes, which may be repeated.
                written = retry(lambda: self._s3.put_object(**request), "ConditionalRequestConflict")
            except Exception as error:
                if code_of(error) not in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                    raise
                # If S3's answer was lost, the repeated write fails because of the first one. The mark shows
                # that this process wrote it.
                answer, _ = self._get(name)
                if answer is None or answer["Metadata"].get("write") != mark:
                    raise StaleError(name) from error
                return answer["ETag"]
            return written["ETag"]

    def _get(self, name: str) -> tuple[GetObjectOutputTypeDef | None, bytes]:
        from vmsnix_ops.aws.session import code_of

        try:
            answer = self._s3.get_object(Bucket=self.bucket, Key=self.prefix + name)
        except Exception as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return None, b""
            raise
        with answer["Body"] as body:
            return answer, body.read()


Ledger = FolderLedger | S3Ledger


def open_ledger(location: str) -> Ledger:
    """Return the ledger at a location: a local folder, or ``s3://bucket/prefix``."""
    return S3Ledger(location) if location.startswith("s3://") else FolderLedger(Path(location))


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


def _as_text(value: Document) -> str:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n"
    return Redactor(secret_values()).json(text)


def _parsed(text: bytes, place: str) -> Document:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArchiveError(
            f"The ledger contains a file that is not JSON: {place}.",
            why=f"{error}.",
            fix="Move the file to another folder. The target then runs again and creates nothing twice.",
        ) from error


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
