"""A sandbox for one run: what ``--sandbox`` of a command starts.

Its environment cannot reach the real AWS, and its history and archive are apart from those of production.
``python -m vmsnix_ops.cli.run_sandbox`` serves one for another process, such as the console: it prints the
variables as one line of JSON and ends when its standard input does, so that it never outlives its starter.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmsnix_ops.errors import RunError, VmsnixError
from vmsnix_ops.settings import load
from vmsnix_ops.text import json, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

BUCKET = "vmsnix-images"
SPEED = 60.0  # sandbox seconds in one real second: an import of minutes takes seconds


@dataclass(frozen=True, slots=True)
class RunSandbox:
    """A sandbox that serves, and what a run needs to use it.

    Attributes
    ----------
    url
        Its address.
    environment
        Variables on top of those of this process, which has no ``AWS_*`` variables of its own meanwhile.
    state
        Folder of the history and the archive of its runs.
    """

    url: str
    environment: dict[str, str]
    state: Path


def record_folders(folder: Path) -> dict[str, str]:
    """Return the variables that put state, history and archive of a run below one folder."""
    return {
        "VMSNIX_STATE": str(folder),
        "VMSNIX_HISTORY": str(folder / "history"),
        "VMSNIX_ARCHIVE": str(folder / "archive"),
    }


@contextmanager
def _no_aws_variables() -> Iterator[None]:
    """Remove the caller's AWS variables: a profile or an endpoint among them would lead elsewhere."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def run_sandbox(
    *, name: str = "sandbox", speed: float = SPEED, keep: bool = True, port: int = 0
) -> Iterator[RunSandbox]:
    """Serve a sandbox in this process for the length of the block.

    Parameters
    ----------
    name
        Of the folder below the setting ``state``.
    speed
        Sandbox seconds in one real second.
    keep
        Whether the next sandbox of this name has the resources of this one.
    port
        0 takes a free one.

    Raises
    ------
    RunError
        When the port is taken or the folder is in use.
    """
    from vmsnix_ops.sandbox import sandbox

    settings = load()
    folder = settings.state / name
    region = settings.region or "us-east-1"
    try:
        served = sandbox(speed=speed, port=port, state=folder / "aws" if keep else None)
    except OSError as error:
        raise RunError("The sandbox cannot start.", why=f"{error}") from error
    if not keep:
        # Tables that outlive their sandbox would list AMIs that no longer exist.
        shutil.rmtree(folder / "history", ignore_errors=True)
    with _no_aws_variables(), served as aws:
        aws.prepare(bucket=BUCKET, region=region, role=settings.role_name)
        yield RunSandbox(
            url=aws.url,
            environment=aws.environment
            | record_folders(folder)
            | {
                "AWS_REGION": region,
                "AWS_DEFAULT_REGION": region,
                "VMSNIX_SANDBOX": aws.url,
                "VMSNIX_BUCKET": BUCKET,
                "VMSNIX_REGION": region,
                "VMSNIX_ALLOWED_ACCOUNTS": aws.account,
            },
            state=folder,
        )


def main() -> int:
    """Serve until standard input ends; return the exit code."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGHUP):  # the sandbox saves its state before it ends
        signal.signal(number, end)
    try:
        with run_sandbox() as served:
            _print({"environment": served.environment})
            sys.stdin.read()
    except VmsnixError as error:
        _print({"error": str(error)})
        return error.exit_code
    return 0


def _print(facts: dict[str, object]) -> None:
    write(sys.stdout, json(facts) + "\n")


if __name__ == "__main__":
    sys.exit(main())
