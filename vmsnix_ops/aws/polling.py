"""Poll AWS until a resource is done, has failed, or the deadline has passed.

Botocore's waiters continue to poll in states that can never become good (an import that is ``deleted``), show
no progress, and drop AWS's message. `poll` returns at the first final state, with the message. It polls often
at the start and near the end, and less often in between. When a step has a forecast from earlier work
(`vmsnix_ops.progress.Step.expect`), `poll` also updates the remaining time between two reads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from vmsnix_ops import errors
from vmsnix_ops.progress import NO_STEP, Step, human_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")
Outcome = Literal["waiting", "done", "failed"]
TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PollResult(Generic[Value]):
    """The state of a resource, as one read returned it."""

    outcome: Outcome
    value: Value  # the resource
    percent: float | None = None  # progress; `None` while AWS does not report it
    # AWS's own state and message, for the operator.
    state: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class PollInterval:
    """How long to wait between two reads."""

    # Seconds. The first interval is the shortest. Later ones grow to the longest, and shrink near the end.
    shortest: float = 0.5
    longest: float = 15.0
    growth: float = 1.4  # factor from one interval to the next
    near: float = 90.0  # percent of progress from which the intervals shrink

    def next(self, seconds: float, percent: float | None) -> float:
        """Return the interval that follows an interval of this many seconds, at this progress."""
        if percent is not None and percent >= self.near:
            return max(seconds / 2, self.shortest)
        return min(seconds * self.growth, self.longest)


def poll(
    read: Callable[[], PollResult[Value]],
    *,
    what: str,
    deadline: float,
    step: Step = NO_STEP,
    interval: PollInterval = PollInterval(),
) -> PollResult[Value]:
    """Read a resource until it is done or failed, and return the last result; at most `deadline` seconds.

    `what` is the resource, for the deadline's error.
    """
    started, pause, shown = time.monotonic(), interval.shortest, ""
    while True:
        result = read()
        message = _progress_message(result, step)
        if result.percent is not None:
            step.update(result.percent, message=message)
        elif message and message != shown:
            step.message(message)
        shown = message
        if result.outcome == "done" and result.percent is None and step.unit == "percent":
            step.update(100.0)  # AWS reports no percentage for a finished resource
        if result.outcome != "waiting":
            return result
        waited = time.monotonic() - started
        if waited + pause > deadline:
            raise errors.DeadlineError(
                f"Timed out waiting for {what} after {human_seconds(waited)}.",
                why=f"It is still {result.state or 'unfinished'}"
                f"{': ' + result.message if result.message else ''}.",
                fix="It continues in AWS. Run the same command again: it waits for it and starts nothing "
                "new.",
            )
        _sleep(pause, step, message)
        pause = interval.next(pause, result.percent)


def _progress_message(result: PollResult[Value], step: Step) -> str:
    """Return AWS's state and message; also its percentage where the step shows a forecast instead."""
    parts = [result.state, result.message]
    if step.forecast is not None and result.percent is not None:
        parts.append(f"({result.percent:.0f} % by AWS)")
    return " ".join(part for part in parts if part)


def _sleep(seconds: float, step: Step, message: str) -> None:
    """Sleep; update the remaining time of a step with a forecast every second."""
    if step.forecast is None:
        time.sleep(seconds)
        return
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, TICK_SECONDS))
        step.refresh(message)
