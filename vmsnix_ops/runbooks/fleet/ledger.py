"""The ledger of a fleet: one JSON document for each target, in a local folder or on S3.

The document is the claim of the process that runs the target, and its result afterwards. Only a process that
read the last version may replace a document (a lock in a folder, ``If-Match`` on S3). So of two processes
that want a target one gets it, and a process that is killed leaves a complete document.

The owner of a claim increases its ``beat`` while it runs. A claim of this machine can be taken over when its
process has ended. The claim of another machine can be taken over when its beat did not change for some time
by the clock of the process that waits: clocks of two machines are never compared.
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
from typing import TYPE_CHECKING, Any, Protocol

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


class StaleError(Exception):
    """Another process replaced the document after it was read."""


class Ledger(Protocol):
    """A place with documents."""

    def read(self, name: str) -> tuple[Document | None, str | None]:
        """Return a document and its version; twice ``None`` if it does not exist."""

    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace the version `last` of a document (``None``: create it) and return the new version.

        Raises
        ------
        StaleError
            `last` is not the last version.
        """


def open_ledger(location: str) -> Ledger:
    """Return the ledger at a location: a local folder, or ``s3://bucket/prefix``."""
    return S3Ledger(location) if location.startswith("s3://") else FolderLedger(Path(location))


@dataclass(frozen=True, slots=True)
class FolderLedger:
    """Documents in a folder of this machine, or in one that all machines mount and can lock."""

    folder: Path

    def read(self, name: str) -> tuple[Document | None, str | None]:
        """Return a document and its version; see `Ledger.read`."""
        try:
            text = files.read(self.folder / name)
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise self._error("read", name, error) from error
        return _parsed(text, str(self.folder / name)), hashlib.sha256(text).hexdigest()

    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace a document under the folder's lock; see `Ledger.write`."""
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
            fix="Correct its permissions, or use another location with --ledger.",
        )


class S3Ledger:
    """Documents on S3, replaced by conditional requests with the credentials of this process.

    Parameters
    ----------
    location
        ``s3://bucket/prefix``.
    """

    def __init__(self, location: str) -> None:
        self.bucket, _, prefix = location.removeprefix("s3://").rstrip("/").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self._client: S3Client | None = None

    @needs("s3:GetObject", "s3:ListBucket")
    def read(self, name: str) -> tuple[Document | None, str | None]:
        """Return a document and its version; see `Ledger.read`."""
        from vmsnix_ops.aws.session import calling

        place = f"s3://{self.bucket}/{self.prefix}{name}"
        with calling(f"read {place}"):
            answer, text = self._get(name)
        return (_parsed(text, place), answer["ETag"]) if answer else (None, None)

    @needs("s3:PutObject")
    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace a document if its version is still `last`; see `Ledger.write`."""
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
                # S3 rejects one of two writes at the same moment; that one may be repeated.
                written = retry(lambda: self._s3().put_object(**request), "ConditionalRequestConflict")
            except Exception as error:
                if code_of(error) not in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                    raise
                # A lost answer makes our own write look like that of another process; the mark shows it.
                answer, _ = self._get(name)
                if answer is None or answer["Metadata"].get("write") != mark:
                    raise StaleError(name) from error
                return answer["ETag"]
            return written["ETag"]

    def _get(self, name: str) -> tuple[GetObjectOutputTypeDef | None, bytes]:
        from vmsnix_ops.aws.session import code_of

        try:
            answer = self._s3().get_object(Bucket=self.bucket, Key=self.prefix + name)
        except Exception as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return None, b""
            raise
        with answer["Body"] as body:
            return answer, body.read()

    def _s3(self) -> S3Client:
        if self._client is None:
            from vmsnix_ops.aws.session import client, session

            self._client = client(session(), "s3")
        return self._client


def change(
    ledger: Ledger, name: str, decide: Callable[[Document | None], Document | None]
) -> Document | None:
    """Replace a document, again if another process replaced it meanwhile, and return it.

    Parameters
    ----------
    ledger, name
        Which document.
    decide
        Returns the new document for the current one (``None``: there is none); ``None`` changes nothing.
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
    """Return the ID of a ledger, and create it in a new one. A worker compares it with that of the client."""
    made = {"id": uuid.uuid4().hex}
    return str((change(ledger, "ledger.json", lambda current: None if current else made) or made)["id"])


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
            fix="Move the file away. The target runs again, which creates nothing twice.",
        ) from error


# The process that owns a claim.


def this_process() -> Document:
    """Return this process as the owner of a new claim.

    ``machine`` is the host, its boot and its process namespace: in these a process ID has a meaning. ``born``
    is the start of the process, because the kernel uses IDs again.
    """
    pid, host = os.getpid(), socket.gethostname()
    return {"id": uuid.uuid4().hex, "machine": _machine(), "pid": pid, "born": _start_of(pid), "host": host}


def has_ended(owner: Mapping[str, Any]) -> bool:
    """Return whether the process of an owner has ended; False for other machines, where nobody can check."""
    return bool(owner["machine"] == _machine() and _start_of(owner["pid"]) not in (owner["born"], "hidden"))


@dataclass
class Watch:
    """Watches the claim of another process.

    Attributes
    ----------
    seconds
        How long the beat of another machine may stand still.
    """

    seconds: float
    _beat: tuple[str, int] | None = None
    _since: float = field(default_factory=time.monotonic)

    def is_abandoned(self, claim: Mapping[str, Any]) -> bool:
        """Return whether a claim can be taken over. Call it again for each new version of the claim."""
        if claim["owner"]["machine"] == _machine():  # also when it stands still: a stopped process continues
            return has_ended(claim["owner"])
        beat = (claim["owner"]["id"], claim["beat"])
        if beat != self._beat:
            self._beat, self._since = beat, time.monotonic()
        return time.monotonic() - self._since > self.seconds


class Claim:
    """The claim of this process on a target, for the time of a ``with`` block. A thread increases its beat.

    Parameters
    ----------
    ledger, name
        Where the document is.
    document
        What the claim contains besides its owner and its beat.
    last
        The version of the document that the claim replaces.
    seconds
        After how long without a beat another machine may take over.
    lease_file
        Gets the time until which the run may change something (`vmsnix_ops.runbooks.execution.lease`).
    on_loss
        Called when the claim is lost.

    Attributes
    ----------
    lost
        Why the claim is lost; empty while this process has it.

    Raises
    ------
    StaleError
        Another process was faster, at the start of the block.
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
        """Replace the claim by the result of the target, after the block; a lost claim is left alone.

        Raises
        ------
        StaleError
            Another process took the target over.
        """
        self._version = self._ledger.write(self._name, document, self._version)

    def _renew(self, document: Document) -> None:
        # The time before the request: the beat may be in the ledger long before the answer arrives.
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
            except VmsnixError as error:  # it may pass until another machine may take over
                self.lost = str(error) if lease.now() - self._renewed > self._seconds * 2 / 3 else ""
        if self.lost:
            lease.extend(self._lease_file, 0.0)
            self._on_loss()


def _machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - a name, not a path
    return " ".join(parts)


def _start_of(pid: int) -> str:
    """Return the start of a process in clock ticks since boot; empty if it has ended or is a zombie.

    ``hidden`` stands for a process of another user that /proc does not show.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            return "hidden"
        return ""
    parts = stat.rpartition(")")[2].split()
    return "" if parts[0] in "ZX" else parts[19]
