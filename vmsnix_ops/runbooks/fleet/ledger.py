"""What a fleet remembers: one small JSON document a target, in a local folder or on S3.

A document is only ever replaced by whoever read its last version (compare and swap: a lock in a folder,
``If-Match`` on S3), so two fleets that want the same target cannot both have it, and whatever is killed
leaves the last whole document.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vmsnix_ops import files
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.errors import ArchiveError, VmsnixError
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.redaction import Redactor, secret_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef, PutObjectRequestTypeDef

    from vmsnix_ops.runbooks.execution._interrupts import Interrupter
    from vmsnix_ops.runbooks.fleet.targets import Target


Document = dict[str, Any]


class StaleError(Exception):
    """Somebody else replaced the document since it was read."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A document and the version that was read."""

    value: Document
    version: str


class Ledger(Protocol):
    """Where the documents are."""

    def read(self, name: str) -> Kept | None:
        """Return a document, ``None`` when there is none."""

    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace the version `last` (``None``: make it), and return the new version.

        Raises
        ------
        StaleError
            When that is not the last version any more.
        """


def open_ledger(location: str) -> Ledger:
    """Return the ledger at a place: a local folder, or ``s3://bucket/prefix``."""
    return S3Ledger(location) if location.startswith("s3://") else FolderLedger(Path(location))


@dataclass(frozen=True, slots=True)
class FolderLedger:
    """Documents in a folder of this machine, or one that all machines mount and can lock.

    Attributes
    ----------
    folder
        Made when first written to.
    """

    folder: Path

    def read(self, name: str) -> Kept | None:
        """Return a document, ``None`` when there is none."""
        try:
            text = files.read(self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused("read", str(self.folder / name), error) from error
        return Kept(_parsed(text, str(self.folder / name)), hashlib.sha256(text).hexdigest())

    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace a document under the folder's lock; see `Ledger.write`."""
        text = _text(value)
        try:
            files.make_folder((self.folder / name).parent)
            with self._locked():
                kept = self.read(name)
                if (kept.version if kept else None) != last:
                    raise StaleError(name)
                files.write(self.folder / name, text)
        except OSError as error:
            raise _refused("written", str(self.folder / name), error) from error
        return hashlib.sha256(text.encode()).hexdigest()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = files.create(self.folder / ".lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class S3Ledger:
    """Documents on S3, replaced by conditional PUTs; credentials are those of this process.

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
    def read(self, name: str) -> Kept | None:
        """Return a document, ``None`` when there is none."""
        from vmsnix_ops.aws.session import calling

        place = f"s3://{self.bucket}/{self.prefix}{name}"
        with calling(f"read {place}"):
            answer, text = self._get(name)
            return Kept(_parsed(text, place), answer["ETag"]) if answer else None

    @needs("s3:PutObject")
    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace a document if nobody else did; see `Ledger.write`."""
        from vmsnix_ops.aws.session import calling, code_of, retrying

        mark = uuid.uuid4().hex
        request: PutObjectRequestTypeDef = {
            "Bucket": self.bucket,
            "Key": self.prefix + name,
            "Body": _text(value).encode(),
            "ContentType": "application/json",
            "Metadata": {"write": mark},
        }
        if last is None:
            request["IfNoneMatch"] = "*"
        else:
            request["IfMatch"] = last
        with calling(f"write s3://{self.bucket}/{self.prefix}{name}"):
            try:
                # Two writers at the same moment: S3 asks one of them to try again.
                written = retrying(lambda: self._s3().put_object(**request), "ConditionalRequestConflict")
            except Exception as error:
                if code_of(error) not in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                    raise
                # A lost answer makes our own write look like somebody else's; the mark tells.
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
    """Replace a document by what `decide` makes of it, and try again when somebody else was faster.

    Parameters
    ----------
    ledger, name
        Which document.
    decide
        Told the document as it is (``None``: there is none); what it returns is written, and ``None``
        leaves all as it is.

    Returns
    -------
    dict or None
        The document as it is then.
    """
    while True:
        kept = ledger.read(name)
        wanted = decide(dict(kept.value) if kept else None)
        if wanted is None:
            return kept.value if kept else None
        with suppress(StaleError):
            ledger.write(name, wanted, kept.version if kept else None)
            return wanted


def _text(value: Document) -> str:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n"
    return Redactor(secret_values()).json(text)


def _parsed(text: bytes, place: str) -> Document:
    try:
        value = json.loads(text)
        return dict(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArchiveError(
            f"The ledger contains a file that is not JSON: {place}.",
            why=f"{error}.",
            fix="Move the file away. The target runs again, which creates nothing twice.",
        ) from error


def _refused(done: str, place: str, error: OSError) -> ArchiveError:
    return ArchiveError(
        f"The ledger cannot be {done}: {place}.",
        why=f"{error.strerror}.",
        fix="Correct its permissions, or use another location with --ledger.",
    )


# Who runs a target, and whether that run is still alive.
#
# Who runs a target holds its lease: the document says ``running``, and its ``beat`` counts up while the run
# lives. A lease ends when its beat stood still for `Watch.seconds` by the clock of the one who waits; the
# clocks of other machines are never trusted. On the same machine a dead process is seen at once.


KERNEL_SECONDS = 2.0  # a kernel looks once a second whether the process that started it is still there


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that runs a target.

    Attributes
    ----------
    id
        New for every claim.
    machine
        Host, boot and process namespace, within which a process id means something.
    pid, born
        The process, and when it started in the kernel's count, since ids are used again.
    host
        What people call the machine.
    """

    id: str
    machine: str
    pid: int
    born: str
    host: str

    @classmethod
    def this_process(cls) -> Owner:
        """Return this process as the owner of a new claim."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex, _machine(), pid, _born(pid), socket.gethostname())

    @staticmethod
    def is_dead(owner: Mapping[str, Any]) -> bool:
        """Tell whether an owner's process surely has ended; of another machine's nobody here can tell."""
        return bool(owner["machine"] == _machine() and _born(owner["pid"]) != owner["born"])

    def as_dict(self) -> dict[str, Any]:
        """Return it as a document holds it."""
        return asdict(self)


@dataclass
class Watch:
    """Watches the lease of somebody else until it has ended.

    Attributes
    ----------
    seconds
        How long a beat may stand still.
    """

    seconds: float
    _seen: tuple[str, int] | None = None
    _since: float = field(default_factory=time.monotonic)

    def has_ended(self, document: Mapping[str, Any]) -> bool:
        """Tell whether the run of a ``running`` document is dead; ask again and again."""
        if Owner.is_dead(document["owner"]):
            time.sleep(KERNEL_SECONDS)  # its kernel may live a moment longer
            return True
        seen = (document["owner"]["id"], document["beat"])
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since > self.seconds


class Beating:
    """Counts the document's beat up in a thread, and stops the run when the lease is lost."""

    def __init__(
        self, ledger: Ledger, name: str, document: Document, interrupter: Interrupter, seconds: float
    ) -> None:
        self.document = document
        self.lost = ""
        self._ledger, self._name, self._interrupter = ledger, name, interrupter
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fleet-beat", daemon=True)
        self._good = time.monotonic()

    def __enter__(self) -> Beating:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        every = self._seconds / 6
        while not self._over.wait(every if self.document["beat"] else 0):
            try:
                self.write(self.document | {"beat": self.document["beat"] + 1})
                self._good = time.monotonic()
            except StaleError:
                self.lost = "another run took over the target."
            except VmsnixError as error:
                # Those who wait may take over soon; until then this may pass.
                if time.monotonic() - self._good > self._seconds * 2 / 3:
                    self.lost = str(error)
            if self.lost:
                self._interrupter.interrupt()
                return

    def write(self, document: Document) -> None:
        """Replace our own document.

        Raises
        ------
        StaleError
            When it is not ours any more.
        """
        owner = document["owner"]["id"]

        def ours(now: Document | None) -> Document:
            if now is None or now["owner"]["id"] != owner or now["state"] != "running":
                raise StaleError(self._name)
            return document

        change(self._ledger, self._name, ours)
        self.document = document


def _machine() -> str:
    def read(path: str) -> str:
        with suppress(OSError):
            return Path(path).read_text(encoding="ascii").strip()
        return ""

    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
    return f"{socket.gethostname()} {read('/proc/sys/kernel/random/boot_id')} {namespace}"


def _born(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended


# The rounds of a fleet in its ledger: which is under way, and how far it is.


def open_round(ledger: Ledger, name: str, *, fresh: bool) -> str:
    """Return the round that is under way, or begin one; of two clients that begin one, both get the same."""
    begun = new_run_id(f"fleet-{name}")

    def decide(now: Document | None) -> Document | None:
        if now is not None and not now["closed"] and not fresh:
            return None
        return {"fleet": name, "round": begun, "closed": False}

    document = change(ledger, f"fleets/{name}.json", decide)
    fleet = str(document["round"]) if document else begun
    change(ledger, f"fleets/{fleet}.json", lambda now: None if now else {"fleet": name, "round": fleet})
    return fleet


def close_round(ledger: Ledger, name: str, fleet: str) -> None:
    """Close a round, all of whose targets are done: the next start begins a new one."""

    def decide(now: Document | None) -> Document | None:
        return {**now, "closed": True} if now and now["round"] == fleet and not now["closed"] else None

    change(ledger, f"fleets/{name}.json", decide)


def unfinished_round(ledger: Ledger, name: str) -> str:
    """Return the round that is under way; empty when there is none."""
    kept = ledger.read(f"fleets/{name}.json")
    return "" if kept is None or kept.value["closed"] else str(kept.value["round"])


def states(ledger: Ledger, targets: Sequence[Target], fleet: str) -> dict[str, str]:
    """Return the state of each target in a round, by key; ``planned`` where nothing is known."""
    return {
        target.key: last_word(ledger, target, fleet)["state"] if fleet else "planned" for target in targets
    }


def last_word(ledger: Ledger, target: Target, fleet: str) -> Document:
    """Return what the ledger says of a target in a round."""
    kept = ledger.read(f"targets/{target.key}.json")
    if kept is None or kept.value["fleet"] != fleet:
        return unrun(target, "planned")
    return {**kept.value, "target": target.name}


def unrun(target: Target, state: str) -> Document:
    """Return the document of a target that was never run."""
    return {
        "target": target.name,
        "key": target.key,
        "runbook": target.runbook,
        "state": state,
        "attempts": [],
        "error": None,
        "result": {},
        "session": "",
    }
