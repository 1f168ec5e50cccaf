"""Helpers of several tests: required programs, waits with a deadline, parameters of long tests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmsnix_ops.records.result import Result

T = TypeVar("T")

PROGRAMS = {"qemu-system": "qemu-system-x86_64"}
DEADLINE = 90.0  # seconds; more than anything here takes on a busy machine


def require(tool: str) -> str:
    """Return the path of a program, or skip the test; with the tool in ``VMSNIX_REQUIRE`` fail instead.

    ``VMSNIX_REQUIRE`` is a comma-separated list of tools that this machine must have (CI sets it), so that
    a missing installation cannot hide behind a skip.
    """
    path = shutil.which(PROGRAMS.get(tool, tool))
    if path is None:
        unavailable(tool, f"{tool} is not on PATH")
    if tool == "aws" and not _reads_endpoint_url(path):
        unavailable(tool, f"{path} does not read AWS_ENDPOINT_URL: it would reach AWS")
    return path


@lru_cache
def _reads_endpoint_url(path: str) -> bool:
    """Return whether an AWS CLI uses the sandbox without an option: since 1.29 and 2.13."""
    printed = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=DEADLINE).stdout
    found = re.match(r"aws-cli/(\d+)\.(\d+)", printed)
    return found is not None and int(found[2]) >= {"1": 29, "2": 13}.get(found[1], 0)


def unavailable(tool: str, why: str) -> NoReturn:
    """Skip the test, or fail it if ``VMSNIX_REQUIRE`` lists the tool."""
    if tool in os.environ.get("VMSNIX_REQUIRE", "").split(","):
        pytest.fail(f"{tool} is required here (VMSNIX_REQUIRE), but {why}")
    pytest.skip(why)


def wait_until(
    condition: Callable[[], T],
    what: str = "the condition",
    *,
    deadline: float = DEADLINE,
    pause: float = 0.02,
) -> T:
    """Return the first true value of a condition; fail the test when there is none in time.

    Parameters
    ----------
    condition
        Function to call repeatedly.
    what
        Name of the condition for the failure message.
    deadline, pause
        How long to wait in all, and between two calls, in seconds.
    """
    end = time.monotonic() + deadline
    while not (value := condition()):  # ends: at the deadline
        if time.monotonic() > end:
            pytest.fail(f"{what} did not happen within {deadline:g} s")
        time.sleep(pause)
    return value


def join(*threads: threading.Thread, deadline: float = DEADLINE) -> None:
    """Wait for threads; fail the test when one does not end in time."""
    end = time.monotonic() + deadline
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
        assert not thread.is_alive(), f"{thread.name} did not end within {deadline:g} s"


def kill(process: subprocess.Popen[Any], *, deadline: float = DEADLINE) -> None:
    """Kill a program that must still be running, and wait for its end."""
    process.kill()
    status = process.wait(deadline)
    assert status == -signal.SIGKILL, f"the program had ended by itself, with {status}"


@contextmanager
def killed_after(process: subprocess.Popen[Any], seconds: float = DEADLINE) -> Iterator[None]:
    """Kill a program after a time limit, so that reading from its pipes ends."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_line(process: subprocess.Popen[str], words: str = "", *, deadline: float = DEADLINE) -> str:
    """Return the next line of a program's output that contains a text; fail the test if there is none."""
    assert process.stdout is not None
    with killed_after(process, deadline):
        for line in process.stdout:
            if words in line:
                return line
    complaints = process.stderr.read() if process.stderr is not None else ""
    pytest.fail(f"the program ended without printing {words or 'a line'!r}: {complaints}")


def finish(result: Result) -> None:
    """Save a result, then raise its error, as the last cell of a notebook does."""
    result.save()
    result.raise_for_status()
