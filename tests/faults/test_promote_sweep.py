"""A promotion killed anywhere, run again: one copy, one channel value, every step done once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.faults.publishers import Job, Kill, environment, kills_of
from vmsnix_ops.aws import sharing
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.crash_sweep import Sweep

HOME, EUROPE = "us-east-1", "eu-west-1"
WANTED: dict[str, Any] = {
    "channel": "stable",
    "regions": [EUROPE],
    "share_with": ["210987654321"],
    "deprecate_days": 365,
    "protect": True,
    "dry_run": False,
}
POLLED = ("ec2:Describe", "ssm:GetParameter")
QUICK = [
    Kill("ec2:CopyImage", 1, "sent"),
    Kill("ec2:CopyImage", 1, "after"),
    Kill("ec2:ModifySnapshotAttribute", 2, "sent"),
    Kill("ec2:EnableImageDeprecation", 1, "before"),
    Kill("ssm:PutParameter", 1, "sent"),
    Kill("ssm:PutParameter", 2, "after"),
    Kill("sns:Publish", 1, "sent"),
    Kill("table:promotions", 1, "before"),
    Kill("table:steps", 1, "before"),
]
SLICES = 8  # of all points; one test each


def job(sweep: Sweep, state: Path, ami: str, topic: str, kill: Kill | None = None) -> Job:
    plan = {**WANTED, "ami": ami, "topic": topic}
    return Job(plan, environment(sweep.aws, state), kill, does="promote")


def begin(sweep: Sweep) -> tuple[Path, str, str]:
    state = sweep.clean()
    topic = sweep.aws.client("sns").create_topic(Name="images")["TopicArn"]
    return state, make_ami(sweep.aws), topic


def kill_and_rerun(sweep: Sweep, kill: Kill) -> list[str]:
    """Kill a promotion, run the same command again, and return what is wrong."""
    state, ami, topic = begin(sweep)
    (first,) = sweep.publishers.run(job(sweep, state, ami, topic, kill))
    (second,) = sweep.publishers.run(job(sweep, state, ami, topic))
    if not first.killed and first.status == 0 and kill.call.startswith(POLLED):
        return []  # this run polled less often than the one that was counted
    if not first.killed:
        return [f"was not killed but ended with {first.status} {first.error} {first.text}"]
    if second.status or second.result["status"] != "done":
        return [f"the second run: {second.error} {second.text} {second.result}"]
    messages = sweep.aws.state.tables.table(sweep.aws.account, HOME, "topics")[topic].messages
    # A message is sent again if its response was lost, or if the run died before it was recorded.
    most = 2 if kill.call in ("sns:Publish", "table:steps") else 1
    wrong = [] if 1 <= len(messages) <= most else [f"{len(messages)} messages"]
    for region in (HOME, EUROPE):
        wrong += [f"{region}: {text}" for text in wrong_in(sweep, region)]
    return [*wrong, *wrong_tables(state)]


def wrong_in(sweep: Sweep, region: str) -> Iterator[str]:
    ec2, ssm = sweep.aws.client("ec2", region), sweep.aws.client("ssm", region)
    images = ec2.describe_images(Owners=["self"])["Images"]
    snapshots = ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    if len(images) != 1 or len(snapshots) != 1:
        yield f"{len(images)} AMIs and {len(snapshots)} snapshots"
        return
    ami, snapshot = images[0]["ImageId"], snapshots[0]["SnapshotId"]
    if sharing.read_launch_permissions(ec2, ami).accounts != ("210987654321",):
        yield "the AMI is not shared"
    if sharing.read_snapshot_permissions(ec2, snapshot).accounts != ("210987654321",):
        yield "the snapshot is not shared"
    if "DeprecationTime" not in images[0] or images[0]["DeregistrationProtection"] == "disabled":
        yield "no date, or no protection"
    values = ssm.get_parameter_history(Name="/vmsnix/ecs-node/stable")["Parameters"]
    if [one["Value"] for one in values] != [ami]:
        yield f"the channel had the values {[one['Value'] for one in values]}"


def wrong_tables(state: Path) -> Iterator[str]:
    tables = Tables(state / "history")
    for name in ("amis", "promotions"):
        if sorted(tables.read(name)["region"]) != sorted([HOME, EUROPE]):
            yield f"{name} has {list(tables.read(name)['region'])}"
    shared = {tuple(json.loads(one)) for one in tables.read("promotions")["shared_with"]}
    if shared != {("210987654321",)}:
        yield f"recorded as shared with {shared}"


@pytest.mark.parametrize("kill", QUICK, ids=str)
def test_a_promotion_killed_here_converges(sweep: Sweep, kill: Kill) -> None:
    assert kill_and_rerun(sweep, kill) == []


@pytest.mark.long(seconds=60)
@pytest.mark.parametrize("slice_", range(SLICES))
def test_a_promotion_killed_at_any_call_converges(sweep: Sweep, slice_: int) -> None:
    (ended,) = sweep.publishers.run(job(sweep, *begin(sweep)))
    assert ended.status == 0, ended.text
    wrong = {str(kill): kill_and_rerun(sweep, kill) for kill in kills_of(ended.calls)[slice_::SLICES]}
    assert {kill: found for kill, found in wrong.items() if found} == {}
