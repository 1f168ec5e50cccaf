"""A retirement that dies at any call which changes something is finished by the same command."""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit.retirement.fleet import FRIEND, REGION, Fleet
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

READS = ("Describe", "Get", "List")
RETIRING, RESTORING, REMOVING = 7, 8, 4
"""How many calls of each job change something, for an AMI with two snapshots that others may use."""


def points(last: int, *chosen: int) -> list[Any]:
    """Return before which calls a job dies, most of them long; 0 is a job that lives."""
    quick = (0, *chosen)
    return [
        at if at in quick else pytest.param(at, marks=pytest.mark.long(seconds=5)) for at in range(last + 1)
    ]


class DeathError(BaseException):
    """Nothing can catch it, as nothing catches kill -9."""


class Reaper:
    """Kills right before the call number `at` that changes something; 0 only counts."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, event_name: str, **_: Any) -> None:
        if event_name.rpartition(".")[2].startswith(READS):
            return
        self.count += 1
        if self.count == self.at:
            raise DeathError


def die(fleet: Fleet, at: int, **changes: Any) -> int:
    """Do a job until the call number `at`; return how many calls it made before."""
    reaper = Reaper(at)
    mortal = Fleet(fleet.aws, fleet.aws.session(REGION), {})
    mortal.session.events.register("before-send.ec2", reaper)
    if at:
        with pytest.raises(DeathError):
            mortal.apply(**changes)
    else:
        mortal.apply(**changes)
    return reaper.count


def shared(fleet: Fleet) -> str:
    ami = fleet.ami(devices=2)
    fleet.share(ami, FRIEND)
    fleet.ec2.modify_snapshot_attribute(
        SnapshotId=fleet.held(ami)[0],
        Attribute="createVolumePermission",
        OperationType="add",
        UserIds=[FRIEND],
    )
    return ami


def as_it_is(fleet: Fleet, ami: str) -> list[Any]:
    """Return everything of an AMI and its snapshots that a restoration gives back."""
    (image,) = fleet.ec2.describe_images(ImageIds=[ami], IncludeDisabled=True)["Images"]
    snapshots = [
        fleet.ec2.describe_snapshot_attribute(SnapshotId=one, Attribute="createVolumePermission")
        for one in fleet.held(ami)
    ]
    permissions = [answer["CreateVolumePermissions"] for answer in snapshots]
    return [image, permissions, fleet.permissions(ami)]


@pytest.mark.parametrize("at", points(RETIRING, 2, 5, 7))
def test_a_killed_retirement_is_completed_by_the_next_run(fleet: Fleet, at: int) -> None:
    ami = shared(fleet)
    before = as_it_is(fleet, ami)
    count = die(fleet, at, allow_shared=True)
    assert at or count == RETIRING, "the sweep no longer covers every call"
    if at:
        fleet.apply(allow_shared=True)
    assert fleet.amis() == {ami: "disabled"}
    assert fleet.permissions(ami) == []
    fleet.apply(action="restore")
    assert as_it_is(fleet, ami) == before


@pytest.mark.parametrize("at", points(RESTORING, 1, 2, 8))
def test_a_killed_restoration_is_completed_by_the_next_run(fleet: Fleet, at: int) -> None:
    ami = shared(fleet)
    before = as_it_is(fleet, ami)
    fleet.apply(allow_shared=True)
    count = die(fleet, at, action="restore")
    assert at or count == RESTORING, "the sweep no longer covers every call"
    if at:
        fleet.apply(action="restore")
    assert as_it_is(fleet, ami) == before


@pytest.mark.parametrize("at", points(REMOVING, 1, 2, 3, 4))
def test_a_killed_deletion_is_completed_by_the_next_run(fleet: Fleet, at: int) -> None:
    ami = shared(fleet)
    fleet.apply(allow_shared=True)
    count = die(fleet, at, now=fleet.later(), allow_shared=True)
    assert at or count == REMOVING, "the sweep no longer covers every call"
    if at:
        fleet.apply(now=fleet.later(), allow_shared=True)
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())
    rows = open_tables(load()).read("retirements", where=[("action", "==", "deleted")])
    assert sorted(rows["kind"]) == ["ami", "snapshot", "snapshot"]
    assert set(rows[rows["kind"] == "ami"]["resource_id"]) == {ami}
