"""The one waiter."""

from __future__ import annotations

import pytest

from vmsnix_ops import errors
from vmsnix_ops.aws.polling import Pace, Sighting, wait
from vmsnix_ops.progress import Progress

QUICK = Pace(quickest=0.001, slowest=0.002)


def looks(*sightings):
    left = list(sightings)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_it_ends_when_the_work_is_done():
    seen = wait(
        looks(Sighting("waiting", 1), Sighting("waiting", 2), Sighting("done", 3)),
        what="x",
        deadline=10,
        pace=QUICK,
    )
    assert (seen.outcome, seen.value) == ("done", 3)


def test_it_ends_at_once_on_a_failure_and_keeps_the_message():
    seen = wait(
        looks(Sighting("failed", None, state="deleted", message="why")), what="x", deadline=10, pace=QUICK
    )
    assert (seen.outcome, seen.state, seen.message) == ("failed", "deleted", "why")


def test_a_deadline_tells_the_last_state_and_that_it_goes_on():
    with pytest.raises(errors.DeadlineError, match=r"the import x.*still active: converting.*Run the same"):
        wait(
            looks(Sighting("waiting", None, state="active", message="converting")),
            what="the import x",
            deadline=0.01,
            pace=QUICK,
        )


def test_progress_is_shown():
    events = []
    with Progress(events.append).step("import", total=100, unit="percent") as step:
        wait(
            looks(Sighting("waiting", None, 30.0, "active", "converting"), Sighting("done", None, 100.0)),
            what="x",
            deadline=10,
            step=step,
            pace=QUICK,
        )
    assert [(e.done, e.message) for e in events if e.kind == "advanced"] == [
        (30.0, "active converting"),
        (100.0, ""),
    ]


def test_a_state_without_progress_is_told_once():
    events = []
    with Progress(events.append).step("register") as step:
        wait(
            looks(
                Sighting("waiting", 1, state="pending"),
                Sighting("waiting", 1, state="pending"),
                Sighting("done", 1),
            ),
            what="x",
            deadline=10,
            step=step,
            pace=QUICK,
        )
    assert [e.message for e in events if e.kind == "message"] == ["pending"]


def test_it_looks_gently_in_the_middle_and_quickly_near_the_end():
    pace = Pace(quickest=1, slowest=15, growth=2)
    pauses = [1.0]
    for percent in (0, 10, 30, 50, 70, 80, 95, 96, 97, 99, 99):
        pauses.append(pace.next(pauses[-1], percent))
    assert max(pauses) == 15
    assert pauses[-1] == 1
    assert min(pauses) >= 1


def test_a_step_that_knows_earlier_work_moves_between_two_looks(monkeypatch):
    monkeypatch.setattr("vmsnix_ops.aws.polling.TICK_SECONDS", 0.01)
    events = []
    with Progress(events.append).step("import", total=100, unit="percent") as step:
        step.expect(lambda elapsed: 60.0 - elapsed)
        wait(
            looks(Sighting("waiting", None, 32.0, "active", "validated"), Sighting("done", None, 100.0)),
            what="x",
            deadline=10,
            step=step,
            pace=Pace(quickest=0.05),
        )
    moved = [event for event in events if event.kind == "advanced"]
    assert len(moved) > 3
    left = [event.eta for event in moved]
    assert left == sorted(left, reverse=True)
    assert 59 < left[-1] < left[0] < 60
    assert {event.message for event in moved[:-1]} == {"active validated (32 % by AWS)"}


def test_a_step_that_knows_nothing_pauses_in_silence():
    events = []
    with Progress(events.append).step("import", total=100, unit="percent") as step:
        wait(
            looks(Sighting("waiting", None, 32.0), Sighting("done", None, 100.0)),
            what="x",
            deadline=10,
            step=step,
            pace=QUICK,
        )
    assert [event.done for event in events if event.kind == "advanced"] == [32.0, 100.0]
