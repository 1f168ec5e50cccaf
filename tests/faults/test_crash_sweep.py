"""Killed anywhere, run again: one AMI, one snapshot, nothing else, and nothing expensive done twice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.faults.publishers import Kill

if TYPE_CHECKING:
    from tests.faults.crash_sweep import Sweep

QUICK = [
    ("import", Kill("s3:CreateMultipartUpload", 1, "sent")),
    ("import", Kill("s3:UploadPart", 2, "before")),
    ("import", Kill("s3:CompleteMultipartUpload", 1, "sent")),
    ("import", Kill("ec2:ImportSnapshot", 1, "sent")),
    ("import", Kill("ec2:CreateTags", 1, "before")),
    ("import", Kill("ec2:RegisterImage", 1, "sent")),
    ("import", Kill("table:amis", 1, "before")),
    ("import", Kill("table:runs", 1, "before")),
    ("direct", Kill("ebs:StartSnapshot", 1, "sent")),
    ("direct", Kill("ebs:PutSnapshotBlock", 7, "after")),
    ("direct", Kill("ebs:CompleteSnapshot", 1, "sent")),
    ("direct", Kill("ec2:RegisterImage", 1, "after")),
]


@pytest.mark.parametrize(("via", "kill"), QUICK, ids=lambda value: str(value))
def test_killed_here_the_same_command_converges(publishers: Sweep, via: str, kill: Kill) -> None:
    if via == "direct" and not publishers.blocks:
        publishers.points(via)  # counts the blocks
    assert publishers.sweep(via, kill).wrong == ()


def test_killed_at_every_call_the_same_command_converges(publishers: Sweep) -> None:
    # The whole is every point of both paths; else the few above and these.
    if not os.environ.get("VMSNIX_WHOLE_TESTS"):
        points = publishers.points("import")
        assert {kill for via, kill in QUICK if via == "import"} <= set(points)
        return
    for via in ("import", "direct"):
        points = publishers.points(via)
        swept = [publishers.sweep(via, kill) for kill in points]
        assert {str(point.kill): point.wrong for point in swept if not point.converged} == {}
