"""End tests that take too long: write all stacks, list the programs that they started, and kill those.

pytest-timeout ends the test in its own process. If the main thread does not return from a library, a second
timer writes the stacks and ends the process.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

MORE_SECONDS = 60.0  # after the limit of pytest-timeout


def seconds_of(item: pytest.Item) -> float:
    """Return the time limit of a test."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker and marker.args else item.config.getini("timeout") or 0)


def watch(item: pytest.Item, errors: int) -> None:
    """Write all stacks to a file descriptor and end this process `MORE_SECONDS` after the test's limit."""
    if seconds := seconds_of(item):
        faulthandler.dump_traceback_later(seconds + MORE_SECONDS, exit=True, file=errors)


def programs_below(process: int) -> dict[int, str]:
    """Return the command lines of all processes below a process, by process id."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    below, found = {process}, {}
    for _ in parents:
        more = {child for child, parent in parents.items() if parent in below} - below
        if not more:
            break
        below |= more
    for child in below - {process}:
        with suppress(OSError):
            found[child] = (
                Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            )
    return found


def end_programs() -> str:
    """Kill every program that this process has started, and return their command lines."""
    found = programs_below(os.getpid())
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return "\n".join(f"{process} {line}" for process, line in sorted(found.items()))
