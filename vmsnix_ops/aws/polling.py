"""The one waiter.

botocore's waiters poll on through states that can never become good (an import that turned ``deleted``), show
nothing, and drop the message. This one fails at once on every terminal state, with the message; it has a
deadline, shows progress, and polls fast at both ends and gently in between. A step that knows how long such
work took before (`vmsnix_ops.progress.Step.expect`) shows the time to go by that, and moves on between two
looks; otherwise AWS's own percentage is all there is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from vmsnix_ops import errors
from vmsnix_ops.progress import Step, human_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")
TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sighting(Generic[Value]):
    """What one look at a resource showed.

    Attributes
    ----------
    outcome
        ``"waiting"``, ``"done"`` or ``"failed"``.
    value
        The resource as last seen.
    percent
        Progress in percent, or ``None`` while AWS does not say.
    state, message
        AWS's own state and message, for the operator.
    """

    outcome: Literal["waiting", "done", "failed"]
    value: Value
    percent: float | None = None
    state: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look.

    Attributes
    ----------
    quickest, slowest
        Seconds between two looks: the first at the start and near the end, the second in between. No resource
        is asked more often than once in `quickest` seconds.
    growth
        Factor from one pause to the next.
    near
        Percent from which the end is near.
    """

    quickest: float = 0.5
    slowest: float = 15.0
    growth: float = 1.4
    near: float = 90.0

    def next(self, pause: float, percent: float | None) -> float:
        """Return the pause after a pause, given how far the work is."""
        if percent is not None and percent >= self.near:
            return max(pause / 2, self.quickest)
        return min(pause * self.growth, self.slowest)


def wait(
    look: Callable[[], Sighting[Value]],
    *,
    what: str,
    deadline: float,
    step: Step | None = None,
    pace: Pace = Pace(),
) -> Sighting[Value]:
    """Look until the resource is done or failed.

    Parameters
    ----------
    look
        Asks AWS once. It raises for errors of the call itself.
    what
        The resource, for the deadline's error.
    deadline
        Seconds to give it.
    step
        Where progress is shown.
    pace
        How often to look.

    Returns
    -------
    Sighting
        The last one, ``done`` or ``failed``: the caller knows best how to word a failure.

    Raises
    ------
    vmsnix_ops.errors.DeadlineError
        With the last state and message seen.
    """
    started, pause, told = time.monotonic(), pace.quickest, ""
    while True:
        seen = look()
        news = _news(seen, step)
        if step is not None:
            if seen.percent is not None:
                step.at(seen.percent, message=news)
            elif news and news != told:
                step.message(news)
            told = news
        if seen.outcome == "done" and seen.percent is None and step is not None and step.unit == "percent":
            step.at(100.0)  # AWS shows no percentage any more once it is there
        if seen.outcome != "waiting":
            return seen
        waited = time.monotonic() - started
        if waited + pause > deadline:
            raise errors.DeadlineError(
                f"Timed out waiting for {what} after {human_seconds(waited)}.",
                why=f"It is still {seen.state or 'unfinished'}{': ' + seen.message if seen.message else ''}.",
                fix="It continues in AWS. Run the same command again: it waits for it and starts nothing "
                "new.",
            )
        _sleep(pause, step, news)
        pause = pace.next(pause, seen.percent)


def _news(seen: Sighting[Value], step: Step | None) -> str:
    """Return AWS's own words, with its percentage where the step shows the time instead."""
    parts = [seen.state, seen.message]
    if step is not None and step.forecast is not None and seen.percent is not None:
        parts.append(f"({seen.percent:.0f} % by AWS)")
    return " ".join(part for part in parts if part)


def _sleep(seconds: float, step: Step | None, news: str) -> None:
    """Pause; a step that tells the time to go tells it every second."""
    if step is None or step.forecast is None:
        time.sleep(seconds)
        return
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, TICK_SECONDS))
        step.tick(news)
