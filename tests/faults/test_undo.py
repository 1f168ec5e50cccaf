"""``vmsnix undo RUN`` undoes an unfinished publish and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from tests.faults.account import BUCKET, REGION
from tests.faults.crash_sweep import SPEED
from tests.faults.publishers import Kill
from vmsnix_ops import errors, publish
from vmsnix_ops.cli import cli
from vmsnix_ops.progress import silent
from vmsnix_ops.publish.undo import plan_undo

if TYPE_CHECKING:
    from tests.faults.crash_sweep import Sweep


def killed(sweep: Sweep, via: str, call: str, nth: int = 1, moment: str = "sent") -> str:
    """Kill a publisher, and return the ID of its run."""
    state = Path(os.environ["VMSNIX_STATE"])
    (ended,) = sweep.publishers.run(sweep.job(state, via, Kill(call, nth, moment)))
    assert ended.killed
    return max((state / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime).name


@pytest.mark.parametrize(
    ("via", "call", "nth", "kinds"),
    [
        ("import", "s3:UploadPart", 2, {"upload"}),
        ("import", "ec2:ImportSnapshot", 1, {"import", "upload"}),
        ("direct", "ebs:CompleteSnapshot", 1, {"snapshot", "journal"}),
        ("import", "s3:CompleteMultipartUpload", 1, {"upload"}),
        ("import", "ec2:CreateTags", 1, {"snapshot", "upload"}),
        ("direct", "ebs:StartSnapshot", 1, {"snapshot"}),
    ],
)
@pytest.mark.variants
def test_undo_deletes_what_a_killed_publish_left(sweep, via, call, nth, kinds):
    if call == "ec2:ImportSnapshot":
        sweep.aws.clock.speed = 10  # the import still runs when the publish is undone
    run_id = killed(sweep, via, call, nth)
    plan = plan_undo(run_id)
    assert {leftover.kind for leftover in plan.leftovers} == kinds
    assert run_id in str(plan)
    plan.apply()
    assert sweep.account().empty
    assert [
        path for path in Path(os.environ["VMSNIX_STATE"]).glob("blocks/*") if path.suffix != ".lock"
    ] == []
    plan_undo(run_id).apply()  # once more changes nothing
    sweep.aws.clock.speed = SPEED
    publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent()).apply()
    assert sweep.problems() == []


def test_the_command_lists_in_a_dry_run_and_deletes_otherwise(sweep):
    run_id = killed(sweep, "import", "s3:CompleteMultipartUpload")
    shown = CliRunner().invoke(cli, ["undo", run_id, "--dry-run"])
    assert f"s3://{BUCKET}/" in shown.output
    assert sweep.account().objects
    assert CliRunner().invoke(cli, ["undo", run_id]).exit_code == 0
    assert sweep.account().empty


def test_a_run_that_finished_is_refused(sweep):
    plan = publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent())
    plan.apply()
    with pytest.raises(errors.RunError, match="finished"):
        plan_undo(plan.run_id)
    assert sweep.problems() == []


def test_a_run_that_registered_its_ami_is_refused(sweep):
    run_id = killed(sweep, "import", "ec2:RegisterImage")
    with pytest.raises(errors.RunError, match="registered ami-"):
        plan_undo(run_id)


def test_a_running_run_is_refused(sweep):
    run_id = killed(sweep, "import", "s3:UploadPart", moment="before")
    plan = publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent())
    with plan.journal.step("upload"), pytest.raises(errors.RunError, match="still running"):
        plan_undo(plan.run_id)
    assert plan_undo(run_id).leftovers


def test_resources_of_another_run_of_the_same_image_are_kept(sweep):
    first = killed(sweep, "import", "ec2:CreateTags")
    second = killed(sweep, "import", "ec2:RegisterImage", moment="before")  # it reuses the snapshot
    before = sweep.account().snapshots
    assert len(before) == 1
    plan_undo(second).apply()
    assert sweep.account().snapshots == before
    plan_undo(first).apply()
    assert sweep.account().empty


def test_a_snapshot_that_an_ami_has_since_the_plan_is_kept(sweep):
    plan = plan_undo(killed(sweep, "import", "ec2:CreateTags"))
    assert "snapshot" in {leftover.kind for leftover in plan.leftovers}
    publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent()).apply()
    plan.apply()
    assert sweep.aws.calls.matching("ec2:DeleteSnapshot") == []
    assert sweep.problems() == []


def test_an_object_that_another_tool_imports_is_kept(sweep):
    run_id = killed(sweep, "import", "s3:CompleteMultipartUpload")
    (key,) = sweep.account().objects
    sweep.aws.clock.speed = 0.001
    sweep.aws.client("ec2", REGION).import_snapshot(
        DiskContainer={"Format": "VHD", "UserBucket": {"S3Bucket": BUCKET, "S3Key": key}},
        RoleName="vmimport",
    )
    plan = plan_undo(run_id)
    assert [leftover.kind for leftover in plan.leftovers] == []


def test_unknown_runs_and_invalid_names_are_refused(sweep):
    for name in ("no-such-run", "../../etc", ""):
        with pytest.raises(errors.ParameterError, match="No journal"):
            plan_undo(name)
