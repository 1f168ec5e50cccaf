"""The state of one sandbox: tables, blocks, clock, fault rules and call log, in memory and in a folder."""

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
from vmsnix_ops.sandbox.core import Clock, SandboxTables
from vmsnix_ops.sandbox.credentials import (
    DEFAULT_ACCESS_KEY,
    DEFAULT_ACCOUNT,
    DEFAULT_SECRET_KEY,
    Credential,
    credentials_table,
    unique_id,
)
from vmsnix_ops.sandbox.faults import Fault, Faults
from vmsnix_ops.sandbox.limits import Limits
from vmsnix_ops.sandbox.state_file import StateError, dump_tables, load_steps, load_tables
from vmsnix_ops.sandbox.storage import BlockStore

logger = logging.getLogger("vmsnix_ops.sandbox")
STATE_FILE = "tables.json"
FORMER_STATE_FILE = "tables.pickle"  # of earlier versions; reading it would run code in it
SAVE_EVERY = 0.5  # seconds between a change and its save, at most


class SandboxState:
    """The state of one sandbox.

    Parameters
    ----------
    speed
        Sandbox seconds per real second.
    folder
        Folder that keeps the state across restarts; None: a temporary folder.
    account
        The account of the first access key, twelve digits.
    enforce_iam
        Whether users and roles without any policy are refused everything, as on AWS.
    limits
        ``"aws"``: limit requests as AWS does; see `limits`. None: do not limit them.

    Raises
    ------
    ValueError
        `limits` has another value.
    OSError
        The folder cannot be written, another sandbox uses it, or its state file cannot be read.
    """

    def __init__(
        self,
        *,
        speed: float = 1.0,
        folder: Path | None = None,
        account: str = DEFAULT_ACCOUNT,
        enforce_iam: bool = False,
        limits: str | None = None,
    ) -> None:
        if limits not in (None, "aws"):
            raise ValueError(f"limits={limits!r}: use 'aws', or None for no limits")
        self.limits = Limits() if limits else None
        self.clock = Clock(speed)
        self.lock = threading.RLock()
        self.faults = Faults()
        self.calls = CallLog()
        # By service: the number of changes, and the state before the last one.
        self._changes: dict[str, tuple[int, bytes]] = {}
        self.authorize = Authorizer(enforce=enforce_iam)  # called before every operation
        self.account = account
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="vmsnix-sandbox-")) if folder is None else folder
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = _lock_folder(self.folder)
        try:
            self.tables = self._load()
        except OSError:
            os.close(self._lock_file)
            raise
        self.blocks = BlockStore(self.folder / "blocks")
        (self.folder / "objects").mkdir(mode=0o700, exist_ok=True)
        self._add_first_key()
        self._dirty, self._stopped = threading.Event(), threading.Event()
        self.clock.changed = self.mark_changed
        self._saver: threading.Thread | None = None
        if not self._temporary:
            self._saver = threading.Thread(target=self._save_changes, name="sandbox-saver", daemon=True)
            self._saver.start()

    @property
    def first_credential(self) -> Credential:
        """The access key in the environment of `Sandbox`."""
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
        """Delete all resources, calls and fault rules, but not the first access key."""
        with self.lock:
            self.tables.clear()
            self._add_first_key()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.calls.clear()
        self.faults.clear()
        self._changes.clear()
        self.clock.forget_steps()
        if self.limits is not None:
            self.limits.clear()
        self.mark_changed()

    def save_tables(self) -> bytes:
        """Return the tables as bytes, for `restore_tables`."""
        with self.lock:
            return dump_tables(self.tables)

    def restore_tables(self, saved: bytes) -> None:
        """Replace the tables by those of `save_tables`, and delete calls and fault rules.

        The bytes contain no blocks and no files of objects: restore only if no object was deleted since.
        """
        with self.lock:
            self.tables.clear()
            self.tables.update(load_tables(saved))
        self._begin_anew()

    def keep_for_stale_reads(self, service: str) -> None:
        """Keep the state before a change, when a ``stale`` rule may answer reads from it."""
        if any(rule.do == "stale" for rule in self.faults.rules):
            number, _ = self._changes.get(service, (0, b""))
            self._changes[service] = (number + 1, self.save_tables())

    def tables_for_read(self, service: str, rule: Fault) -> SandboxTables | None:
        """Return the state before the last change of a service while a rule makes reads stale, else None."""
        number, before = self._changes.get(service, (0, b""))
        if not rule.is_stale(number):
            return None
        return SandboxTables(load_tables(before))

    def _load(self) -> SandboxTables:
        """Return the tables of the state file. A file that cannot be read is not changed."""
        path = self.folder / STATE_FILE
        former = self.folder / FORMER_STATE_FILE
        if not path.exists():
            if former.exists():
                raise OSError(
                    f"{former} is not a state file of this version of the sandbox: an earlier version wrote "
                    "it, and it may contain code. Choose another folder, or delete the file."
                )
            return SandboxTables()
        try:
            content = path.read_bytes()
            tables = SandboxTables(load_tables(content))
            self.clock.restore_steps(load_steps(content))
        except StateError as error:
            raise OSError(
                f"{path} is not a state file of this version of the sandbox: {error}. Choose another folder."
            ) from error
        return tables

    def mark_changed(self) -> None:
        """Mark the state as changed, so that it is saved soon."""
        self._dirty.set()

    def save(self) -> None:
        """Write the state file, atomically."""
        with self.lock:
            self._dirty.clear()
            content = dump_tables(self.tables, self.clock.saved_steps())
        temporary = self.folder / f"{STATE_FILE}.new"
        # Only the owner may read it: it contains the secret keys of the sandbox's users.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / STATE_FILE)

    def _save_changes(self) -> None:
        while not self._stopped.wait(SAVE_EVERY):
            if self._dirty.is_set():
                try:
                    self.save()
                except (OSError, TypeError):
                    logger.exception("the sandbox could not save its state")

    def close(self) -> None:
        """Save the state, or delete the temporary folder."""
        self._stopped.set()
        if self._saver is not None:
            self._saver.join()
            self.save()
        os.close(self._lock_file)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def _lock_folder(folder: Path) -> int:
    """Lock a folder for this process, and return the descriptor of its lock file.

    Raises
    ------
    OSError
        Another sandbox uses the folder.
    """
    path = folder / "in-use"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        text = f"Another sandbox uses the folder {folder}. Stop it first, or choose another folder."
        raise OSError(errno.EBUSY, text) from None
    return descriptor
