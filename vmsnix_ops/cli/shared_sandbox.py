"""The sandbox that all commands of a user share: one process serves it while a command uses it.

``vmsnix demo``, ``vmsnix sandbox`` and ``--sandbox`` of other commands use the same account, whose resources
are kept below the setting ``state``. The first command starts ``python -m vmsnix_ops.cli.shared_sandbox``;
later ones join it. Each command locks the file ``users`` (shared) while it uses the sandbox; the process ends
when it gets this lock alone. So a killed command keeps nothing running.

The address is in a file that only the user can read. It is used only while a process has the lock of the
sandbox's folder, which is the user's own: the address of a killed sandbox, or of another program that has its
port now, is not used.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import RunError, UsageError
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.sandbox.access import Access

FOLDER, SERVER = "sandbox", "sandbox-server"  # below the setting `state`: the account, and its server
SEEDED = "seeded"  # in the account's folder: it was filled with the demo
USERS, STARTING, ADDRESS, LOG = "users", "starting", "address.json", "log.txt"
ACCESS = ("url", "access_key", "secret_key", "account")  # the arguments of `Access`, in the file `ADDRESS`
SPEED = 60.0  # sandbox seconds per real second, so that an import takes seconds instead of minutes
START_SECONDS = 60.0
BUSY = 75  # exit code of a process that finds the folder in use
POLL_SECONDS = 0.1
IDLE_SECONDS = 0.5  # between two checks whether a command uses the sandbox
URL = re.compile(r"http://127\.0\.0\.1:[0-9]{1,5}")


@contextmanager
def shared(state: Path) -> Iterator[Access]:
    """Join the sandbox below the setting ``state`` until the block ends, or start it if it does not run."""
    server = state / SERVER
    with files.state_errors("The sandbox could not start."):
        files.make_folder(server)
        users = files.create(server / USERS, os.O_RDWR)
    try:
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while an unused sandbox saves its state
        yield _join_or_start(state)
    finally:
        os.close(users)
        _STARTED[:] = [process for process in _STARTED if process.poll() is None]


_STARTED: list[subprocess.Popen[bytes]] = []
"""Processes that this one has started and that may still run."""


@atexit.register
def _forget_started() -> None:
    """Prevent a warning about processes that still run; they end when no command uses the sandbox."""
    for process in _STARTED:
        process.returncode = 0


@contextmanager
def _unused(state: Path) -> Iterator[None]:
    """Keep commands from using the sandbox until the block ends; a UsageError if they use it."""
    server = state / SERVER
    files.make_folder(server)
    users = files.create(server / USERS, os.O_RDWR)
    try:
        deadline = time.monotonic() + 10 * IDLE_SECONDS
        while not _locked(users) or _is_served(state):
            fcntl.flock(users, fcntl.LOCK_UN)  # an unused sandbox locks it before it ends
            if time.monotonic() > deadline:
                raise UsageError(
                    "The sandbox is in use.",
                    why="Another command uses it, such as vmsnix lab --sandbox.",
                    fix="Stop that command, then try again.",
                )
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(users)


def start_anew(state: Path) -> Path | None:
    """Let the user's sandbox start with an empty account, and return the folder of the old one, if any.

    A `UsageError` if commands use the sandbox.
    """
    with _unused(state):
        folder = state / FOLDER
        if not folder.is_dir():
            return None
        kept = state / f"{FOLDER}-until-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
        folder.rename(kept)
        return kept


def seed(state: Path, home: str) -> dict[str, list[dict[str, Any]]]:
    """Fill the user's sandbox with the demo, and return the rows of the tables about it.

    Empty if it was filled before; its AMIs may have changed since. `home` is the region of the publishes. A
    `UsageError` if commands use the sandbox, or it has AMIs of the user.
    """
    from vmsnix_ops.sandbox import Sandbox

    mark = state / FOLDER / SEEDED
    if mark.exists():
        return {}
    with _unused(state):
        aws = Sandbox(state=state / FOLDER / "aws")
        try:
            rows = aws.add_demo(home)
        finally:
            aws.stop()
        if not rows:
            raise UsageError(
                "The account of the sandbox has AMIs, so it was not filled.",
                why="Those of the demo would be mixed with yours.",
                fix="To keep the account in a folder and start with an empty one: vmsnix sandbox --reset. "
                "For a separate sandbox, add --port 0.",
            )
        files.write(mark, "")
        return rows


def _locked(descriptor: int) -> bool:
    """Lock a file for this process alone; return false if other processes use it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _join_or_start(state: Path) -> Access:
    """Return the access to the running sandbox, or start it; one command at a time."""
    server = state / SERVER
    with files.locked(server / STARTING):
        found = _read_address(server / ADDRESS)
        if found is not None and _is_served(state):
            return found
        with suppress(FileNotFoundError):  # of a sandbox that was killed
            (server / ADDRESS).unlink()
        process = _start(state)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            found = _read_address(server / ADDRESS)
            if found is not None:
                return found
            code = process.poll()
            if code == BUSY:  # a sandbox whose first command was killed starts or ends
                process = _start(state)
            elif code is not None:
                raise RunError("The sandbox could not start.", why=_last_line(server / LOG), fix=_FIX)
    raise RunError(f"The sandbox did not start within {START_SECONDS:.0f} s.", fix=_FIX)


_FIX = "To start with an empty account and keep the old one: vmsnix sandbox --reset"


def _is_served(state: Path) -> bool:
    """Whether a process has the lock of the account's folder."""
    try:
        descriptor = os.open(state / FOLDER / "aws" / "in-use", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locked(descriptor)
    finally:
        os.close(descriptor)


def _read_address(path: Path) -> Access | None:
    """Return the access in a file that only the user can read; otherwise ``None``."""
    from vmsnix_ops.sandbox.access import Access

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            return None
        try:
            values = json.loads(file.read())
            found = Access(*(str(values[name]) for name in ACCESS))
        except (ValueError, KeyError, TypeError):
            return None
    return found if URL.fullmatch(found.url) else None


def _write_private(path: Path, text: str) -> None:
    """Write a file for its owner only, atomically, with the keys that `files.write` would remove."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def _start(state: Path) -> subprocess.Popen[bytes]:
    """Start the process that serves the sandbox; it ends when no command uses it."""
    from vmsnix_ops.runbooks.execution import kernels

    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    log = files.create(state / SERVER / LOG, os.O_WRONLY | os.O_TRUNC)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "vmsnix_ops.cli.shared_sandbox", str(state), str(SPEED)],
            cwd=state / SERVER,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment | kernels.python_path(os.environ),
            start_new_session=True,  # Ctrl-C of one command must not end it for the others
        )
        _STARTED.append(process)
        return process
    finally:
        os.close(log)


def _last_line(path: Path) -> str:
    try:
        lines = files.read(path).decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((text for text in reversed(lines) if text.strip()), "Its process ended at the start.")


def exit_on(*numbers: signal.Signals) -> None:
    """Let signals end this process as an exit does, so that a sandbox saves its state."""

    def end(_number: int, _frame: object) -> None:
        raise SystemExit(0)

    for number in numbers:
        signal.signal(number, end)


def serve(state: Path, speed: float) -> int:
    """Serve the sandbox until no command uses it, and return the exit code."""
    from vmsnix_ops.sandbox import Sandbox

    exit_on(signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    address = state / SERVER / ADDRESS
    users = files.create(state / SERVER / USERS, os.O_RDWR)
    try:
        sandbox = Sandbox(speed=speed, state=state / FOLDER / "aws")
    except OSError as error:
        echo(str(error), err=True)
        return BUSY if error.errno == errno.EBUSY else 1
    with sandbox as aws:
        facts = {name: getattr(aws, name) for name in ACCESS} | {"pid": os.getpid()}
        try:
            _write_private(address, json.dumps(facts))
            while not _locked(users):
                time.sleep(IDLE_SECONDS)
        finally:
            with suppress(OSError):
                address.unlink()
    return 0  # `users` is locked until the state is saved


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1]), float(sys.argv[2])))
