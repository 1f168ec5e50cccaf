"""A rehearsal's stage for another process: ``python -m vmsnix_ops.cli.stage``.

Serves a sandbox as `rehearsal` does, prints its variables as one line of JSON, and ends when its standard
input does, so that it never outlives whoever started it. The console starts it.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from vmsnix_ops.cli.rehearsal import rehearsal
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.text import json, write

if TYPE_CHECKING:
    from types import FrameType


def main() -> int:
    """Serve until standard input ends; return the exit code."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGHUP):  # the sandbox keeps what it has on its way out
        signal.signal(number, end)
    try:
        with rehearsal() as stage:
            _say({"environment": stage.environment})
            sys.stdin.read()
    except VmsnixError as error:
        _say({"error": str(error)})
        return error.exit_code
    return 0


def _say(words: dict[str, object]) -> None:
    write(sys.stdout, json(words) + "\n")


if __name__ == "__main__":
    sys.exit(main())
