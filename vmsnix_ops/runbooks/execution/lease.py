"""The time until which a run may change something, in a file that the run's kernel reads.

A fleet runs a target in one process only. That process extends the time while it has the target
(`vmsnix_ops.runbooks.fleet.ledger.Claim`). When it cannot, or when another process took the target over, the
time runs out, and the kernel refuses every call that would change something in AWS.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.errors import FleetError

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "VMSNIX_LEASE"
"""Names the file to the kernel."""
WAIT_SECONDS = 15.0
"""How long a kernel waits for an extension: after a suspend of the machine it may be the first to run."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # counts a suspend, too


def now() -> float:
    """Return the time of the clock that all processes of this machine share."""
    return time.clock_gettime(_CLOCK)


def extend(path: Path, until: float) -> None:
    """Let the run change something until this time; 0 ends the lease for good."""
    files.write(path, str(until))


def check(path: Path) -> None:
    """Return when the run may change something.

    Raises
    ------
    FleetError
        It may not: another process may run the same target.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            until = float(files.read(path))
        except (OSError, ValueError):  # the process that extends it removed it, and has ended
            until = 0.0
        if now() < until:
            return
        if until == 0.0 or time.monotonic() > deadline:
            raise FleetError(
                "This run lost its claim on the target and changes nothing more.",
                why="Another process may run the target, or the ledger could not be written for too long.",
                fix="Start the fleet again: it waits for the other process, and runs what is not done.",
            )
        time.sleep(0.1)
