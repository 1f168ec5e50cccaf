"""A publish that was killed and run again makes one AMI and one snapshot, and repeats nothing expensive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.publishers import Kill

if TYPE_CHECKING:
    from tests.faults.crash_sweep import Sweep

QUICK = [  # the last test kills at every point
    ("import", Kill("s3:UploadPart", 2, "before")),
    ("import", Kill("ec2:ImportSnapshot", 1, "sent")),
    ("import", Kill("ec2:RegisterImage", 1, "sent")),
    ("import", Kill("table:amis", 1, "before")),
    ("direct", Kill("ebs:PutSnapshotBlock", 7, "after")),
    ("direct", Kill("ebs:CompleteSnapshot", 1, "sent")),
]

SLICES = 8  # of all points; one test each


@pytest.mark.parametrize(("via", "kill"), QUICK, ids=lambda value: str(value))
def test_a_publish_killed_here_converges(sweep: Sweep, via: str, kill: Kill) -> None:
    if via == "direct" and not sweep.blocks:
        sweep.points(via)  # counts the blocks
    assert sweep.kill_and_rerun(via, kill).wrong == ()


def test_all_points_include_the_quick_ones(sweep: Sweep) -> None:
    assert {kill for via, kill in QUICK if via == "import"} <= set(sweep.points("import"))


@pytest.mark.long(seconds=60)
@pytest.mark.parametrize("slice_", range(SLICES))
@pytest.mark.parametrize("via", ["import", "direct"])
def test_a_publish_killed_at_any_call_converges(sweep: Sweep, via: str, slice_: int) -> None:
    swept = [sweep.kill_and_rerun(via, kill) for kill in sweep.points(via)[slice_::SLICES]]
    assert {str(point.kill): point.wrong for point in swept if not point.converged} == {}
