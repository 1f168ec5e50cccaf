"""Everything that one sandbox knows: its tables, blocks, clock, faults and calls."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path

from vmsnix_ops.sandbox.authorization import Authorizer
from vmsnix_ops.sandbox.calls import CallLog
from vmsnix_ops.sandbox.core import Clock, Tables
from vmsnix_ops.sandbox.credentials import (
    DEFAULT_ACCESS_KEY,
    DEFAULT_ACCOUNT,
    DEFAULT_SECRET_KEY,
    Credential,
    credentials_table,
    unique_id,
)
from vmsnix_ops.sandbox.faults import Fault, Faults
from vmsnix_ops.sandbox.state_file import StateError, dump_tables, load_tables
from vmsnix_ops.sandbox.storage import BlockStore

logger = logging.getLogger("vmsnix_ops.sandbox")
STATE_FILE = "tables.json"
FORMER_STATE_FILE = "tables.pickle"  # of earlier versions; reading one would run whatever code it contains
SAVE_EVERY = 0.5  # seconds at most between a change and its being kept


class World:
    """The state of one sandbox.

    Parameters
    ----------
    speed
        How many sandbox seconds pass in one real second.
    state
        A folder that keeps everything across restarts; None for a temporary one.
    account
        The account of the first access key, twelve digits.
    enforce_iam
        Whether users and roles without any policy are refused everything.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """

    def __init__(
        self,
        *,
        speed: float = 1.0,
        state: Path | None = None,
        account: str = DEFAULT_ACCOUNT,
        enforce_iam: bool = False,
    ) -> None:
        self.clock = Clock(speed)
        self.lock = threading.RLock()
        self.faults = Faults()
        self.calls = CallLog()
        self._changes: dict[
            str, tuple[int, bytes]
        ] = {}  # by service: how many, and the state before the last
        self.authorize = Authorizer(enforce=enforce_iam)  # asked before every operation
        self.account = account
        self._temporary = state is None
        self.folder = Path(tempfile.mkdtemp(prefix="vmsnix-sandbox-")) if state is None else state
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim = _claim(self.folder)
        try:
            self.tables = self._load()
        except OSError:
            os.close(self._claim)
            raise
        self.blocks = BlockStore(self.folder / "blocks")
        (self.folder / "objects").mkdir(mode=0o700, exist_ok=True)
        self._add_first_key()
        self._dirty, self._stopped = threading.Event(), threading.Event()
        self._saver: threading.Thread | None = None
        if not self._temporary:
            self._saver = threading.Thread(target=self._keep_saving, name="sandbox-saver", daemon=True)
            self._saver.start()

    @property
    def first_credential(self) -> Credential:
        """The access key that the sandbox's environment hands out."""
        return credentials_table(self.tables)[DEFAULT_ACCESS_KEY]

    def _add_first_key(self) -> None:
        known = credentials_table(self.tables)
        if DEFAULT_ACCESS_KEY not in known:
            arn = f"arn:aws:iam::{self.account}:user/operator"
            known[DEFAULT_ACCESS_KEY] = Credential(
                access_key=DEFAULT_ACCESS_KEY,
                secret=DEFAULT_SECRET_KEY,
                account=self.account,
                principal=arn,
                user_id=unique_id("AIDA", arn),
            )
        self.account = known[DEFAULT_ACCESS_KEY].account

    def reset(self) -> None:
        """Forget everything but the first access key: resources, calls and faults."""
        with self.lock:
            self.tables.clear()
            self._add_first_key()
        self.calls.clear()
        self.faults.clear()
        self._changes.clear()
        self.clock.forget()
        self.changed()

    def remember(self) -> bytes:
        """Return everything that there is now, for `recall`."""
        with self.lock:
            return dump_tables(self.tables.all())

    def recall(self, memory: bytes) -> None:
        """Return to what was remembered, with no calls and no faults; much quicker than to make it again.

        Blocks and the files of objects are not part of it, so an object that was there then must not have
        been removed since.
        """
        with self.lock:
            self.tables.replace(Tables(load_tables(memory)))
        self.calls.clear()
        self.faults.clear()
        self._changes.clear()
        self.clock.forget()
        self.changed()

    def remember_for_stale_reads(self, service: str) -> None:
        """Keep the state before a call that changes something, when a rule may answer reads from it."""
        if any(rule.do == "stale" for rule in self.faults.rules):
            number, _ = self._changes.get(service, (0, b""))
            self._changes[service] = (number + 1, self.remember())

    def tables_for_read(self, service: str, rule: Fault) -> Tables | None:
        """Return the state before a service's last change while a rule lets reads be stale, else None."""
        number, before = self._changes.get(service, (0, b""))
        if not rule.is_stale(number):
            return None
        return Tables(load_tables(before))

    def _load(self) -> Tables:
        """Return the kept tables; a file that cannot be read is left as it is."""
        path = self.folder / STATE_FILE
        former = self.folder / FORMER_STATE_FILE
        if not path.exists():
            if former.exists():
                raise OSError(
                    f"{former} is no state of this version of the sandbox: earlier versions wrote it, and it "
                    "may contain code. Choose another folder, or delete that file to begin without its state."
                )
            return Tables()
        try:
            return Tables(load_tables(path.read_bytes()))
        except StateError as error:
            raise OSError(
                f"{path} is no state of this version of the sandbox: {error}. Choose another folder."
            ) from error

    def changed(self) -> None:
        """Say that something may have changed, so that it is kept soon."""
        self._dirty.set()

    def save(self) -> None:
        """Keep the tables now, in one atomic step."""
        with self.lock:
            self._dirty.clear()
            content = dump_tables(self.tables.all())
        temporary = self.folder / f"{STATE_FILE}.new"
        # It contains the secret keys of the sandbox's users: it is for its owner alone.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / STATE_FILE)

    def _keep_saving(self) -> None:
        while not self._stopped.wait(SAVE_EVERY):
            if self._dirty.is_set():
                try:
                    self.save()
                except (OSError, TypeError):
                    logger.exception("the sandbox could not keep its state")

    def close(self) -> None:
        """Keep the state, or remove the temporary folder."""
        self._stopped.set()
        if self._saver is not None:
            self._saver.join()
            self.save()
        os.close(self._claim)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def _claim(folder: Path) -> int:
    """Claim a folder for this process and return the open file that holds the claim.

    Raises
    ------
    OSError
        When another sandbox has it.
    """
    path = folder / "in-use"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        text = f"Another sandbox keeps its state in {folder}. Stop it first, or choose another folder."
        raise OSError(errno.EBUSY, text) from None
    return descriptor
