"""Killed anywhere, run again: one AMI, one snapshot, nothing else, and nothing expensive done twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.publishers import Kill

if TYPE_CHECKING:
    from tests.faults.crash_sweep import Sweep

QUICK = [  # the sweep below has every point
    ("import", Kill("s3:UploadPart", 2, "before")),
    ("import", Kill("ec2:ImportSnapshot", 1, "sent")),
    ("import", Kill("ec2:RegisterImage", 1, "sent")),
    ("import", Kill("table:amis", 1, "before")),
    ("direct", Kill("ebs:PutSnapshotBlock", 7, "after")),
    ("direct", Kill("ebs:CompleteSnapshot", 1, "sent")),
]

SLICES = 8  # of all points, for a test each


@pytest.mark.parametrize(("via", "kill"), QUICK, ids=lambda value: str(value))
def test_killed_here_the_same_command_converges(publishers: Sweep, via: str, kill: Kill) -> None:
    if via == "direct" and not publishers.blocks:
        publishers.points(via)  # counts the blocks
    assert publishers.sweep(via, kill).wrong == ()


def test_every_quick_point_is_a_point_of_the_whole_sweep(publishers: Sweep) -> None:
    assert {kill for via, kill in QUICK if via == "import"} <= set(publishers.points("import"))


@pytest.mark.long(seconds=60)
@pytest.mark.parametrize("slice_", range(SLICES))
@pytest.mark.parametrize("via", ["import", "direct"])
def test_killed_at_every_call_the_same_command_converges(publishers: Sweep, via: str, slice_: int) -> None:
    swept = [publishers.sweep(via, kill) for kill in publishers.points(via)[slice_::SLICES]]
    assert {str(point.kill): point.wrong for point in swept if not point.converged} == {}
