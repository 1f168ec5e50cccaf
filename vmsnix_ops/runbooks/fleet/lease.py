"""Who runs a target, and whether that run is still alive.

Who runs a target holds its lease: the document says ``running``, and its ``beat`` counts up while the run
lives. A lease ends when its beat stood still for `Watch.seconds` by the clock of the one who waits; the
clocks of other machines are never trusted. On the same machine a dead process is seen at once.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.runbooks.fleet.ledger import StaleError, change

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.execution._interrupts import Interrupter
    from vmsnix_ops.runbooks.fleet.ledger import Document, Ledger

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
                self.lost = "another run took the target over."
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
