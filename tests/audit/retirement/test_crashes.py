"""A retirement that is killed at any call that changes something is completed by the same command."""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit.retirement.fleet import OTHER_ACCOUNT, REGION, Fleet
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

READS = ("Describe", "Get", "List")
RETIRING, RESTORING, DELETING = 7, 8, 4
"""How many calls of each job change something, for an AMI with two snapshots that others may use."""


def kill_points(last: int, *chosen: int) -> list[Any]:
    """Return before which calls a job is killed, most of them as long tests; 0 is a complete job."""
    quick = (0, *chosen)
    return [
        at if at in quick else pytest.param(at, marks=pytest.mark.long(seconds=5)) for at in range(last + 1)
    ]


class KilledError(BaseException):
    """Ends a job like kill -9: the code under test does not catch it."""


class Killer:
    """Kills a job right before its call number `at` that changes something; 0 only counts."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, event_name: str, **_: Any) -> None:
        if event_name.rpartition(".")[2].startswith(READS):
            return
        self.count += 1
        if self.count == self.at:
            raise KilledError


def run_until_killed(fleet: Fleet, at: int, **changes: Any) -> int:
    """Run a job until the call number `at`; return how many calls it made before."""
    killer = Killer(at)
    killed = Fleet(fleet.aws, fleet.aws.session(REGION), {})
    killed.session.events.register("before-send.ec2", killer)
    if at:
        with pytest.raises(KilledError):
            killed.apply(**changes)
    else:
        killed.apply(**changes)
    return killer.count


def shared(fleet: Fleet) -> str:
    ami = fleet.ami(devices=2)
    fleet.share(ami, OTHER_ACCOUNT)
    fleet.share_snapshot(fleet.snapshots_of(ami)[0])
    return ami


def current_state(fleet: Fleet, ami: str) -> list[Any]:
    """Return everything of an AMI and its snapshots that a restoration restores."""
    permissions = [fleet.snapshot_permissions(one) for one in fleet.snapshots_of(ami)]
    return [fleet.image(ami), permissions, fleet.permissions(ami)]


@pytest.mark.parametrize("at", kill_points(RETIRING, 2, 5, 7))
@pytest.mark.variants
def test_a_killed_retirement_is_completed_by_the_next_run(fleet: Fleet, at: int) -> None:
    ami = shared(fleet)
    before = current_state(fleet, ami)
    count = run_until_killed(fleet, at, allow_shared=True)
    assert at or count == RETIRING, "the numbers above no longer cover every call"
    if at:
        fleet.apply(allow_shared=True)
    assert fleet.amis() == {ami: "disabled"}
    assert fleet.permissions(ami) == []
    fleet.apply(action="restore")
    assert current_state(fleet, ami) == before


@pytest.mark.parametrize("at", kill_points(RESTORING, 1, 2, 8))
@pytest.mark.variants
def test_a_killed_restoration_is_completed_by_the_next_run(fleet: Fleet, at: int) -> None:
    ami = shared(fleet)
    before = current_state(fleet, ami)
    fleet.apply(allow_shared=True)
    count = run_until_killed(fleet, at, action="restore")
    assert at or count == RESTORING, "the numbers above no longer cover every call"
    if at:
        fleet.apply(action="restore")
    assert current_state(fleet, ami) == before


@pytest.mark.parametrize("at", kill_points(DELETING, 1, 2, 3, 4))
@pytest.mark.variants
def test_a_killed_deletion_is_completed_by_the_next_run(fleet: Fleet, at: int) -> None:
    ami = shared(fleet)
    fleet.apply(allow_shared=True)
    count = run_until_killed(fleet, at, now=fleet.later(), allow_shared=True)
    assert at or count == DELETING, "the numbers above no longer cover every call"
    if at:
        fleet.apply(now=fleet.later(), allow_shared=True)
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())
    rows = open_tables(load()).read("retirements", where=[("action", "==", "deleted")])
    assert sorted(rows["kind"]) == ["ami", "snapshot", "snapshot"]
    assert set(rows[rows["kind"] == "ami"]["resource_id"]) == {ami}
