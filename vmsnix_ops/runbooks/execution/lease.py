"""The lease of a run: a file with the time until which its kernel may change something in AWS.

In a fleet, only one process may run a target. This process extends the lease while it has the claim on the
target (`vmsnix_ops.runbooks.fleet.ledger.Claim`). If it cannot extend the lease, or another process has the
claim, the lease ends, and the kernel refuses every call that would change something.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.errors import FleetError

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "VMSNIX_LEASE"
"""Environment variable of the kernel: the path of the file."""
WAIT_SECONDS = 15.0
"""Maximum wait of a kernel for an extension: after a suspend of the machine, the kernel can run first."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # includes the time of a suspend


def now() -> float:
    """Return the time of the clock that all processes of this machine share."""
    return time.clock_gettime(_CLOCK)


def extend(path: Path, until: float) -> None:
    """Set the time until which the run may change something; 0 ends the lease permanently."""
    files.write(path, str(until))


def check(path: Path) -> None:
    """Return if the run may change something; wait a while if its lease has ended.

    A `FleetError` if the lease was not extended: another process may run the same target.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            until = float(files.read(path))
        except (OSError, ValueError):  # the process with the claim has deleted it and ended
            until = 0.0
        if now() < until:
            return
        if until == 0.0 or time.monotonic() > deadline:
            raise FleetError(
                "This run lost its claim on the target, so it may not change anything.",
                why="Another process may run the target, or the ledger could not be written for too long.",
                fix="Start the fleet again: it waits for the other process, and runs the other targets.",
            )
        time.sleep(0.1)
