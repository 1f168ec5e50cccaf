"""Write files below the state, archive and history folders: only for their owner, and without secrets.

All files of a run are written here. Folders get the mode 0700 and files 0600; with the setting ``shared`` the
umask decides.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import tomllib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from vmsnix_ops.redaction import Redactor, secret_values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmsnix_ops.errors import VmsnixError

_OTHERS = 0o077
_policy = {"shared": False}
_umask_lock = threading.Lock()
_umask = {"users": 0, "before": 0}


def set_shared(shared: bool) -> None:
    """Choose whether the umask decides who may read new files, or only their owner may."""
    _policy["shared"] = shared


def make_folder(folder: Path, *, new: bool = False) -> None:
    """Create a folder and its missing parents; existing folders keep their modes.

    With `new`, an existing folder is an `OSError`.
    """
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    mode = 0o777 if _policy["shared"] else 0o700
    for path in reversed(missing):
        path.mkdir(mode=mode, exist_ok=not (new and path == folder))


def create(path: Path, flags: int = os.O_WRONLY | os.O_TRUNC) -> int:
    """Open a file, create it if it is missing, and return its descriptor."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o666 if _policy["shared"] else 0o600)


def open_text(path: Path, *, append: bool = False) -> TextIO:
    """Open a text file for writing. The caller redacts the text."""
    flags = os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC)
    return open(create(path, flags), "a" if append else "w", encoding="utf-8")


def read(path: Path) -> bytes:
    """Return the content of a file; an OSError for a pipe or a device, which may never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def describe(error: Exception) -> str:
    """Return an error as text for people: of an OSError the reason and the file, without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}." if error.filename else f"{error.strerror}."


@contextmanager
def state_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` of the block, which writes below the state folder, into a `RunError`."""
    from vmsnix_ops.errors import RunError

    try:
        yield
    except OSError as error:
        raise RunError(
            what,
            why=f"{error.strerror}: {error.filename}.",
            fix="Correct the permissions, or set VMSNIX_STATE to another folder.",
        ) from error


def fix_of(error: OSError) -> str:
    """Return what to do if a file cannot be written: ``Free disk space``."""
    return "Free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Correct its permissions"


def read_toml(path: Path, noun: str, error: type[VmsnixError]) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file in UTF-8 and its values; a byte order mark is skipped.

    For an invalid file, an error of the given class is raised, whose text begins with `noun`: ``The plan``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return text, tomllib.loads(text)
    except OSError as cause:
        fix = "Correct its permissions, or use another file."
        raise error(f"{noun} {path} cannot be read.", why=f"{cause.strerror}.", fix=fix) from cause
    except UnicodeDecodeError as cause:
        why = f"Byte {cause.start} is invalid."
        raise error(f"{noun} {path} is not UTF-8 text.", why=why, fix="Save it as UTF-8.") from cause
    except tomllib.TOMLDecodeError as cause:
        fix = "Correct that line."
        raise error(f"{noun} {path} is not valid TOML.", why=f"{cause}.", fix=fix) from cause
    except RecursionError as cause:
        why = "A value is nested too deeply."
        raise error(f"{noun} {path} is not valid TOML.", why=why, fix="Correct that value.") from cause


def write(path: Path, content: str | bytes, *, redactor: Redactor | None = None, clean: bool = False) -> None:
    """Replace a file atomically, without the secrets of the content.

    The suffix of the path decides whether the redacted content must be valid JSON. By default, the secrets of
    this process are removed. `clean` content is known to contain none, and is not searched.
    """
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(create(temporary), "wb") as file:
            file.write(raw if clean else (redactor or Redactor(secret_values())).content(raw, path.name))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str, *, durable: bool = False, clean: bool = False) -> None:
    """Append a line of JSON without its secrets, in one write, so that threads do not mix lines.

    With `durable`, wait until the line, and a new file's entry in its folder, are on the disk. A line that is
    known to contain no secrets is `clean`. After an `OSError`, the line was not written, or only a part of
    it.
    """
    data = (line if clean else Redactor(secret_values()).json(line)).encode() + b"\n"
    new = not path.exists()
    descriptor = create(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # a full disk or a power failure left an incomplete line
        if os.write(descriptor, data) != len(data):  # a full disk writes only a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if durable and new:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def private_umask() -> Iterator[None]:
    """Make files that a library writes in the block readable only for their owner."""
    if _policy["shared"]:
        yield
        return
    with _umask_lock:  # all threads share the umask
        if not _umask["users"]:
            _umask["before"] = os.umask(_OTHERS)
            os.umask(_umask["before"] | _OTHERS)
        _umask["users"] += 1
    try:
        yield
    finally:
        with _umask_lock:
            _umask["users"] -= 1
            if not _umask["users"]:
                os.umask(_umask["before"])


def set_private_umask() -> None:
    """Make all new files of this process readable only for their owner; for kernels."""
    if not _policy["shared"]:
        os.umask(os.umask(_OTHERS) | _OTHERS)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, which is created if missing; continue if the file system has no locks."""
    descriptor = create(path, os.O_RDWR)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
