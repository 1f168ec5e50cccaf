"""The runbooks for published AMIs, run by papermill on one sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.aws.account import make_ami
from tests.notebooks.test_run import Workspace, workspace
from vmsnix_ops.runbooks.execution.execute import run

if TYPE_CHECKING:
    from vmsnix_ops.runbooks.execution.execute import RunOutcome

__all__ = ["workspace"]
HOME, EUROPE = "us-east-1", "eu-west-1"


def promote(workspace: Workspace, **given: object) -> RunOutcome:
    given = {"channel": "stable", "dry_run": False} | given
    return run("promote-ami", given, environment=workspace.environment, confirmed=True)


@pytest.mark.long(seconds=15)
@pytest.mark.long(seconds=20)
def test_a_promotion_done_in_part_ends_with_three_and_a_channel_is_rolled_back(workspace: Workspace) -> None:
    old, new = (make_ami(workspace.aws, version=version) for version in ("26.11", "26.12"))
    busy = {"op": "ssm:PutParameter", "where": {"region": EUROPE}, "do": "error", "code": "Busy", "http": 400}
    workspace.aws.faults.add(busy)
    partial = promote(workspace, ami=old, regions=[EUROPE])
    workspace.aws.faults.clear()
    assert (partial.status, partial.exit_code) == ("partial", 3)
    assert partial.error is not None
    assert "1 of 2 regions" in partial.error.what
    kept = json.loads(Path(partial.result).read_text())
    assert kept["status"] == "partial"
    assert {(row["region"], row["step"]): row["outcome"] for row in kept["outcomes"]} == {
        (HOME, "set channel"): "changed",
        (EUROPE, "copy"): "created",
        (EUROPE, "set channel"): "failed",
    }
    assert "Busy" in Path(partial.report).read_text()

    done = promote(workspace, ami=new)
    assert (done.status, done.exit_code) == ("done", 0)
    assert done.values["amis"] == {HOME: new}

    back = workspace.run("rollback", image="ecs-node", regions=[HOME], dry_run=False)
    assert back.values["ami_id"] == old
    assert back.values["before"] == {HOME: new}
    assert "user/operator" in Path(back.report).read_text()

    workspace.aws.client("ec2").create_tags(Resources=[old], Tags=[{"Key": "Name", "Value": "mine"}])
    drifted = run("verify-amis", {"image": "ecs-node"}, environment=workspace.environment)
    assert (drifted.status, drifted.exit_code) == ("failed", 1)
    (row,) = json.loads(Path(drifted.result).read_text())["drift"]
    assert (row["region"], row["ami_id"], row["field"], row["found"]) == (HOME, old, "tag Name", "mine")
    assert "it cannot be found" in Path(drifted.report).read_text()


def test_a_smoke_test_saves_its_timings_and_the_console_output(workspace: Workspace) -> None:
    ami = make_ami(workspace.aws, version="smoke")
    outcome = {"console": "<<< Welcome to NixOS >>>\r\n"}
    workspace.aws.faults.add({"op": "ec2:RunInstances", "do": "outcome", "outcome": outcome})
    tested = workspace.run("smoke-test", ami=ami)
    workspace.aws.faults.clear()
    assert tested.values["terminated"] is True
    assert "Welcome to NixOS" in tested.values["console"]
    assert [one["step"] for one in tested.values["steps"]] == [
        "clear",
        "launch",
        "checks",
        "console",
        "terminate",
    ]


@pytest.mark.long(seconds=15)
def test_a_published_ami_and_its_copy_are_proven_by_the_archive_and_another_one_is_not(
    workspace: Workspace,
) -> None:
    published = workspace.run("publish-ami", image=str(workspace.image), via="direct")
    ami = published.values["ami_id"]
    proven = workspace.run("prove-ami", amis=[ami])
    assert (proven.status, proven.values["verdict"], proven.values["ami_id"]) == ("done", "proven", ami)
    (one,) = proven.values["proofs"]
    assert (one["source"], one["notes"]) == ("result", [])
    assert one["found"] == published.values["digest"]
    report = Path(proven.report).read_text()
    for words in ("GetSnapshotBlock", "price", "cross-region traffic", "at 1,000 requests per second"):
        assert words in report
    differs = run("prove-ami", {"amis": [ami], "identity": "0" * 64}, environment=workspace.environment)
    assert (differs.status, differs.exit_code, differs.values["verdict"]) == ("failed", 1, "differs")
    nothing = run("prove-ami", {"amis": ["ami-0123456789abcdef0"]}, environment=workspace.environment)
    assert (nothing.status, nothing.exit_code) == ("partial", 3)
