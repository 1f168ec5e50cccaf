"""Polling a resource: when it ends, what it shows, how long it waits."""

from __future__ import annotations

from typing import Any

import pytest

from vmsnix_ops import errors
from vmsnix_ops.aws.polling import PollInterval, PollResult, poll
from vmsnix_ops.progress import NO_STEP, Progress

QUICK = PollInterval(shortest=0.001, longest=0.002)


def poll_results(
    *results: PollResult[Any],
    what: str = "x",
    deadline: float = 10,
    interval: PollInterval = QUICK,
    step=NO_STEP,
) -> PollResult[Any]:
    """Poll a resource whose reads return these results in turn, and the last one again and again."""
    left = list(results)
    return poll(
        lambda: left.pop(0) if len(left) > 1 else left[0],
        what=what,
        deadline=deadline,
        interval=interval,
        step=step,
    )


def test_polling_ends_when_the_resource_is_done():
    result = poll_results(PollResult("waiting", 1), PollResult("waiting", 2), PollResult("done", 3))
    assert (result.outcome, result.value) == ("done", 3)


def test_polling_ends_at_a_failure_and_returns_the_message():
    result = poll_results(PollResult("failed", None, state="deleted", message="why"))
    assert (result.outcome, result.state, result.message) == ("failed", "deleted", "why")


def test_the_error_at_the_deadline_has_the_last_state_and_the_next_command():
    with pytest.raises(errors.DeadlineError, match=r"the import x.*still active: converting.*Run the same"):
        poll_results(
            PollResult("waiting", None, state="active", message="converting"),
            what="the import x",
            deadline=0.01,
        )


def test_progress_is_shown():
    events = []
    with Progress(events.append).step("import", total=100, unit="percent") as step:
        poll_results(
            PollResult("waiting", None, 30.0, "active", "converting"),
            PollResult("done", None, 100.0),
            step=step,
        )
    assert [(e.done, e.message) for e in events if e.kind == "advanced"] == [
        (30.0, "active converting"),
        (100.0, ""),
    ]


def test_an_unchanged_state_without_progress_is_shown_once():
    events = []
    with Progress(events.append).step("register") as step:
        pending = PollResult("waiting", 1, state="pending")
        poll_results(pending, pending, PollResult("done", 1), step=step)
    assert [e.message for e in events if e.kind == "message"] == ["pending"]


def test_intervals_grow_in_the_middle_and_shrink_near_the_end():
    interval = PollInterval(shortest=1, longest=15, growth=2)
    pauses = [1.0]
    for percent in (0, 10, 30, 50, 70, 80, 95, 96, 97, 99, 99):
        pauses.append(interval.next(pauses[-1], percent))
    assert max(pauses) == 15
    assert pauses[-1] == 1
    assert min(pauses) >= 1


def test_a_step_with_a_forecast_is_updated_between_two_reads(monkeypatch):
    monkeypatch.setattr("vmsnix_ops.aws.polling.TICK_SECONDS", 0.01)
    events = []
    with Progress(events.append).step("import", total=100, unit="percent") as step:
        step.forecast = lambda elapsed: 60.0 - elapsed
        poll_results(
            PollResult("waiting", None, 32.0, "active", "validated"),
            PollResult("done", None, 100.0),
            interval=PollInterval(shortest=0.05),
            step=step,
        )
    moved = [event for event in events if event.kind == "advanced"]
    assert len(moved) > 3
    left = [event.eta for event in moved]
    assert left == sorted(left, reverse=True)
    assert 59 < left[-1] < left[0] < 60
    assert {event.message for event in moved[:-1]} == {"active validated (32 % by AWS)"}


def test_a_step_without_a_forecast_is_not_updated_between_two_reads():
    events = []
    with Progress(events.append).step("import", total=100, unit="percent") as step:
        poll_results(PollResult("waiting", None, 32.0), PollResult("done", None, 100.0), step=step)
    assert [event.done for event in events if event.kind == "advanced"] == [32.0, 100.0]
