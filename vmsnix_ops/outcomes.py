"""The words for outcomes, the same in code, tables, ``result.json``, console and docs."""

from __future__ import annotations

from typing import Literal, get_args

StepOutcome = Literal["created", "reused", "changed", "deleted", "unchanged", "planned", "skipped", "failed"]
"""What a step came to.

``reused``: its result existed already. ``unchanged``: already in the desired state. ``planned``: a dry run.
``skipped``: not tried, because an earlier step failed or nothing was to do.
"""

RunStatus = Literal["running", "done", "partial", "failed", "cancelled", "lost"]
"""What a run came to.

``partial``: some of it is done, or done and not fully recorded (exit code 3). ``cancelled``: somebody stopped
it. ``lost``: its process is gone without a verdict.
"""

RUN_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
VERDICTS = RUN_STATUSES[1:5]
"""What a run says of itself when it ends."""
WORKED = ("created", "changed", "deleted")
"""Outcomes of steps that did work: these have timings that can be compared."""
SUCCEEDED = (*WORKED, "reused", "unchanged")
"""Outcomes of steps that came as wanted."""
