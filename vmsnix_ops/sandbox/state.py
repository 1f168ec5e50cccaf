"""The state of one sandbox: tables, blocks, clock, fault rules and call log, in memory and in a folder.

The state file of ``--state`` has the tables as JSON. Reading a file never runs code from it. A file that is
incomplete, of another version or of another program is refused and not changed.

Plain values are written as they are. Any other value is an object with one key that begins with ``$``, such
as ``{"$type": ["ec2.resources.Image", {...}]}`` for a dataclass of the sandbox. Fields with their default
value are left out. Maps from block index to digest are packed, because a disk has many blocks.
"""

from __future__ import annotations

import base64
import dataclasses
import errno
import fcntl
import json
import logging
import os
import shutil
import struct
import sys
import tempfile
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.authorization import Authorizer
from vmsnix_ops.sandbox.calls import CallLog
from vmsnix_ops.sandbox.core import Clock, SandboxTables, load_operations
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
from vmsnix_ops.sandbox.storage import BlockStore

if TYPE_CHECKING:
    from collections.abc import Callable


logger = logging.getLogger("vmsnix_ops.sandbox")
STATE_FILE = "tables.json"
FORMER_STATE_FILE = "tables.pickle"  # of earlier versions; reading it would run code in it
SAVE_EVERY = 0.5  # seconds between a change and its save, at most


class SandboxState:
    """The state of one sandbox; the arguments are those of `vmsnix_ops.sandbox.Sandbox`.

    Without a folder, the state is in a temporary one. A `ValueError` for unknown limits, and an `OSError` if
    the folder cannot be written, another sandbox uses it, or its state file cannot be read.
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
        return load_tables(before) if rule.is_stale(number) else None

    def _load(self) -> SandboxTables:
        """Return the tables of the state file. A file that cannot be read is not changed."""
        path, former = self.folder / STATE_FILE, self.folder / FORMER_STATE_FILE
        text = "is not a state file of this version of the sandbox:"
        if not path.exists() and former.exists():
            text = f"{former} {text} an earlier version wrote it, and it may contain code."
            raise OSError(f"{text} Choose another folder, or delete the file.")
        if not path.exists():
            return SandboxTables()
        try:
            content = path.read_bytes()
            tables = load_tables(content)
            self.clock.restore_steps(load_steps(content))
        except StateError as error:
            raise OSError(f"{path} {text} {error}. Choose another folder.") from error
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
    """Lock a folder for this process, and return the descriptor of its lock file."""
    path = folder / "in-use"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        text = f"Another sandbox uses the folder {folder}. Stop it first, or choose another folder."
        raise OSError(errno.EBUSY, text) from None
    return descriptor


FORMAT = "vmsnix-sandbox-state"
VERSION = 3
PLAIN = (str, int, float, type(None))  # bool is an int
DIGEST_BYTES = 32


class StateError(ValueError):
    """The bytes are not a state file of this version."""


Steps = list[tuple[str, float]]
"""The calls of `Clock.advance`: time and seconds."""


def dump_tables(tables: SandboxTables, steps: Steps | None = None) -> bytes:
    """Return the bytes of a state file with these tables and calls of `Clock.advance`.

    A `TypeError` for a value of a type that a state file cannot contain.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tables": [[*key, _encode(table)] for key, table in tables.items()],
        "steps": steps or [],
    }
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def load_tables(content: bytes) -> SandboxTables:
    """Return the tables of a state file; see `load_steps` for its other content.

    A `StateError` if the bytes are not a complete state file of this version.
    """
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StateError(f"it is not complete JSON ({error})") from error
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise StateError("it was not written by the sandbox")
    if read.get("version") != VERSION:
        raise StateError(f"it has version {read.get('version')!r}, this program reads version {VERSION}")
    load_operations()  # which defines every dataclass of a state file
    try:
        return SandboxTables(
            ((str(account), str(region), str(kind)), _decode(table))
            for account, region, kind, table in read["tables"]
        )
    except StateError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, struct.error) as error:
        raise StateError(f"its content is not as expected ({type(error).__name__}: {error})") from error


def load_steps(content: bytes) -> Steps:
    """Return the calls of `Clock.advance` in a state file that `load_tables` has read."""
    try:
        steps = json.loads(content).get("steps", [])
        return [(datetime.fromisoformat(at).isoformat(), float(seconds)) for at, seconds in steps]
    except (TypeError, ValueError) as error:
        raise StateError(f"its steps are not as expected ({error})") from error


def _encode(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        if _is_block_map(value):
            indices = struct.pack(f">{len(value)}Q", *value)
            return {"$blocks": base64.b64encode(indices + b"".join(value.values())).decode("ascii")}
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item) for key, item in value.items()}
        return {"$dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {f"${type(value).__name__}": [_encode(item) for item in sorted(value)]}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, datetime):
        return {"$time": value.isoformat()}
    if isinstance(value, timedelta):
        return {"$seconds": value.total_seconds()}
    name = _name_of(type(value))
    if name is None:
        raise TypeError(f"a state cannot contain a {type(value).__name__}")
    members = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return {"$type": [name, {f.name: _encode(one) for f, one in members if not _is_default(f, one)}]}


def _is_block_map(value: dict[Any, Any]) -> bool:
    return bool(value) and all(
        type(key) is int and key >= 0 and type(item) is bytes and len(item) == DIGEST_BYTES
        for key, item in value.items()
    )


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return type(value) is type(default) and bool(value == default)


def _name_of(kind: type) -> str | None:
    """Return the name of a dataclass of the sandbox (``ec2.resources.Image``), None for any other class."""
    module, package = kind.__module__, f"{__package__}."
    if not dataclasses.is_dataclass(kind) or not module.startswith(package) or "." in kind.__qualname__:
        return None
    return f"{module.removeprefix(package)}.{kind.__qualname__}"


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, content),) = value.items()
        if key.startswith("$"):
            if key not in DECODERS:
                raise StateError(f"it contains {key!r}, which this version does not have")
            return DECODERS[key](content)
    return {key: _decode(item) for key, item in value.items()}


def _decode_blocks(content: str) -> dict[int, bytes]:
    raw = base64.b64decode(content, validate=True)
    count, rest = divmod(len(raw), 8 + DIGEST_BYTES)
    if rest:
        raise StateError("a map of blocks is cut off")
    indices = struct.unpack_from(f">{count}Q", raw)
    digests = struct.iter_unpack(f"{DIGEST_BYTES}s", raw[8 * count :])
    return {index: digest for index, (digest,) in zip(indices, digests, strict=True)}


def _decode_type(content: list[Any]) -> Any:
    name, values = content
    module, _, word = str(name).rpartition(".")
    # Only dataclasses of the sandbox are created, and no module is imported because a file names it.
    kind = getattr(sys.modules.get(f"{__package__}.{module}"), word, None)
    if not isinstance(kind, type) or _name_of(kind) != name:
        raise StateError(f"it contains {name!r}, which this version does not have")
    unknown = set(values) - {field.name for field in dataclasses.fields(kind) if field.init}
    if unknown:
        raise StateError(f"{name} has no {', '.join(sorted(unknown))} in this version")
    return kind(**{key: _decode(item) for key, item in values.items()})


DECODERS: dict[str, Callable[[Any], Any]] = {
    "$blocks": _decode_blocks,
    "$bytes": lambda content: base64.b64decode(content, validate=True),
    "$dict": lambda content: {_decode(key): _decode(item) for key, item in content},
    "$frozenset": lambda content: frozenset(map(_decode, content)),
    "$seconds": lambda content: timedelta(seconds=content),
    "$set": lambda content: set(map(_decode, content)),
    "$time": datetime.fromisoformat,
    "$tuple": lambda content: tuple(map(_decode, content)),
    "$type": _decode_type,
}
