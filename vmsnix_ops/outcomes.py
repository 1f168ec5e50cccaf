"""The names of outcomes in code, tables, ``result.json``, console and documentation."""

from __future__ import annotations

from typing import Literal, get_args

StepOutcome = Literal["created", "reused", "changed", "deleted", "unchanged", "planned", "skipped", "failed"]
"""The outcome of a step.

``reused``: its result existed. ``unchanged``: it was already in the desired state. ``planned``: in a dry run.
``skipped``: not tried, because an earlier step failed or there was nothing to do.
"""

RunStatus = Literal["running", "done", "partial", "failed", "cancelled", "lost"]
"""The status of a run.

``partial``: done in part, or done but not fully recorded (exit code 3). ``cancelled``: stopped by a person.
``lost``: its process ended without recording a status.
"""

RUN_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
FINAL_STATUSES = RUN_STATUSES[1:5]
"""The statuses that a run itself records at its end."""
WORKED = ("created", "changed", "deleted")
"""Outcomes of steps that changed something; only these have comparable timings."""
SUCCEEDED = (*WORKED, "reused", "unchanged")
"""Outcomes of successful steps."""

Severity = Literal["critical", "high", "medium", "low", "info"]
"""The severity of a finding."""

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The severities, the worst first."""
