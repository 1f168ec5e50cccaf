"""Writes the files of the state folder, the archive and the history: for their owner only, without secrets.

Every module that keeps something of a run writes it through this one. Folders are made with the mode 0700 and
files with 0600, unless the setting ``shared`` says that the group may read (then the umask decides).
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


def share(shared: bool) -> None:
    """Let the umask decide who may read what is written from now on, or only its owner."""
    _policy["shared"] = shared


def make_folder(folder: Path, *, new: bool = False) -> None:
    """Make a folder and what is missing above it; those that are there keep their modes.

    Parameters
    ----------
    folder
        The folder.
    new
        Whether it must not be there yet.

    Raises
    ------
    OSError
        It cannot be made.
    """
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    mode = 0o777 if _policy["shared"] else 0o700
    for path in reversed(missing):
        path.mkdir(mode=mode, exist_ok=not (new and path == folder))


def create(path: Path, flags: int = os.O_WRONLY | os.O_TRUNC) -> int:
    """Open a file, made when missing, and return its descriptor; locks and logs are opened so."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o666 if _policy["shared"] else 0o600)


def open_text(path: Path, *, append: bool = False) -> TextIO:
    """Open a text file to write; what goes in is the caller's to redact."""
    flags = os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC)
    return open(create(path, flags), "a" if append else "w", encoding="utf-8")


def read(path: Path) -> bytes:
    """Return the content of a file; a pipe or a device of that name, which would never end, is refused.

    Raises
    ------
    OSError
        It cannot be read, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def read_toml(path: Path, noun: str, error: type[VmsnixError]) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file and its values.

    Parameters
    ----------
    path
        The file, in UTF-8; a byte order mark, as editors on Windows write it, is skipped.
    noun
        The beginning of the error's sentence, such as ``"The plan"``.
    error
        What to raise when it cannot be read.
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


def write(path: Path, content: str | bytes, *, redactor: Redactor | None = None) -> None:
    """Replace a file by content without its secrets: a reader finds the old one or the new one, never a half.

    Parameters
    ----------
    path
        The file; by its suffix JSON stays JSON.
    content
        Text, or bytes of any kind.
    redactor
        Who knows what is secret; by default what this process was given.
    """
    redactor = redactor or Redactor(secret_values())
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(create(temporary), "wb") as file:
            file.write(redactor.content(raw, path.name))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Append one line of JSON without its secrets.

    Parameters
    ----------
    path
        The file, made when missing.
    line
        Without its end.
    durable
        Whether to return only when the line is on the disk.
    """
    with open_text(path, append=True) as file:
        file.write(Redactor(secret_values()).json(line) + "\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())


@contextmanager
def private_umask() -> Iterator[None]:
    """Let everything that this process makes in the block be for its owner only: for libraries that write."""
    if _policy["shared"]:
        yield
        return
    with _umask_lock:  # the umask is one for all threads
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


def be_private() -> None:
    """Let everything that this process makes from now on be for its owner only: for kernels."""
    if not _policy["shared"]:
        os.umask(os.umask(_OTHERS) | _OTHERS)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait for the lock of a file, made when missing; where files cannot be locked, go on."""
    descriptor = create(path, os.O_RDWR)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
