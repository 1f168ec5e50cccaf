"""An audit and a retirement decide by the same rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.account import policy_rules
from tests.audit.retirement.fleet import OTHER, REGION
from vmsnix_ops.audit import inventory, retirement
from vmsnix_ops.audit.findings import Command
from vmsnix_ops.audit.rules import evaluate
from vmsnix_ops.aws import retiring
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from tests.audit.retirement.fleet import Fleet

OURS = {tagging.IMAGE: "web", tagging.DIGEST: "d"}
REMOVES = {"deregister-image", "disable-image", "delete-snapshot", "retire"}
POLICIES: list[dict[str, Any]] = [
    {},
    {"keep_last": 0},
    {"keep_last": 1, "max_count": 2},
    {"keep_last": 0, "min_age_days": 0, "launched_days": 0, "orphan_days": 0},
    {"keep_last": 0, "launched_days": 90, "orphan_days": 50, "min_age_days": 70},
    {"max_count": 0},
]


def mark(days_ago: float, retention_days: float) -> dict[str, str]:
    at = datetime.now(UTC) - timedelta(days=days_ago)
    return retiring.RetirementTags(at, at + timedelta(days=retention_days), "run").tags()


def fill(fleet: Fleet) -> None:
    """Create AMIs and snapshots for which the rules decide differently."""
    for days in (400, 200, 120, 90, 60, 45, 20, 2):
        fleet.ami("web", days=days)
    launched, shared, protected, half = (fleet.ami("db", days=100) for _ in range(4))
    fleet.row("images", launched).last_launched = datetime.now(UTC) - timedelta(days=40)
    fleet.share(shared, "210987654321")
    fleet.ec2.enable_image_deregistration_protection(ImageId=protected, WithCooldown=False)
    fleet.remove("snapshots", fleet.snapshots_of(half)[0])
    used, in_channel, lent, volume = (fleet.ami("app", days=150) for _ in range(4))
    for name, ami in (("nodes", used), ("data", volume)):
        data: dict[str, Any] = {"ImageId": ami, "InstanceType": "t3.micro"}
        fleet.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
    fleet.set_parameter("/vmsnix/app/stable", in_channel)
    fleet.share_snapshot(fleet.snapshots_of(lent)[0])
    for region in (REGION, OTHER):  # a copy in use keeps the AMI in the other region
        copy = fleet.ami("copied", days=80, digest="same", region=region)
    data = {"ImageId": copy, "InstanceType": "t3.micro"}
    fleet.client("ec2", OTHER).create_launch_template(LaunchTemplateName="copy", LaunchTemplateData=data)
    fleet.ami("elsewhere", days=95, region=OTHER)
    for days in (30, 3):  # the retention period of one is over
        retired = fleet.ami("gone", days=90, tags={**OURS, **mark(days, 14)})
        fleet.ec2.disable_image(ImageId=retired)
    failed = fleet.ami("failed", days=40)
    fleet.row("images", failed).failure = "the copy failed"
    for days in (60, 10, 3):
        fleet.snapshot(days=days, tags=OURS)
        fleet.snapshot(days=days)
    fleet.share_snapshot(fleet.snapshot(days=60, tags=OURS))
    fleet.snapshot(days=60, tags={**OURS, **mark(30, 14)})
    fleet.snapshot(days=60, tags={**OURS, **mark(3, 14)})
    for days in (20, 2):
        unfinished = fleet.client("ebs").start_snapshot(VolumeSize=1, Tags=tagging.to_list(OURS))[
            "SnapshotId"
        ]
        fleet.row("snapshots", unfinished).started = datetime.now(UTC) - timedelta(days=days)
    fleet.ami("other", days=300, tags={"owner": "somebody"})


def audited(fleet: Fleet, **options: Any) -> pd.DataFrame:
    rules = policy_rules(options)
    found = inventory.scan(rules, regions=[REGION, OTHER], session=fleet.session, **options)
    assert found.unread == ()
    return evaluate(found)


def planned(fleet: Fleet, policy: Mapping[str, Any]) -> dict[str, str]:
    """Return what a retirement would do, by ID."""
    plan = retirement.plan(
        regions=[REGION, OTHER], progress=silent(), session=fleet.session, dry_run=True, **policy
    )
    assert plan.unread == {}
    return {one.resource_id: one.action for one in plan.planned}


def removable(findings: pd.DataFrame) -> set[str]:
    """Return the resources published by vmsnix that the fix of a finding would retire or delete."""
    ours = findings[findings["image"].fillna("") != ""]
    return {
        row["resource_id"]
        for row in ours.to_dict("records")
        if isinstance(row["remediation"], Command) and REMOVES.intersection(row["remediation"].argv)
    }


@pytest.mark.long(seconds=15)
@pytest.mark.long(seconds=15)
def test_an_audit_and_a_retirement_delete_the_same(fleet: Fleet) -> None:
    fill(fleet)
    seen = set()
    for policy in POLICIES:
        expected = planned(fleet, policy)
        for one_by_one in ("yes", "no"):
            findings = audited(fleet, one_by_one=one_by_one, **policy)
            due = findings[findings["rule"] == "retirement-due"]
            assert set(due["resource_id"]) == set(expected), policy
            assert removable(findings) == set(expected), policy
            for row in due.to_dict("records"):
                assert f"would {expected[row['resource_id']]} it: " in row["reason"]
        seen.add(frozenset(expected.items()))
    assert len(seen) == len(POLICIES)
    assert {action for some in seen for _, action in some} == {"retire", "delete"}


def test_a_fix_has_the_policy_of_its_audit(fleet: Fleet) -> None:
    ami = fleet.ami(days=60)
    findings = audited(fleet, keep_last=0, launched_days=12.5)
    (due,) = findings[findings["rule"] == "retirement-due"]["remediation"]
    assert str(due) == f"vmsnix retire --regions {REGION} --keep-last 0 --launched-days 12.5 --amis {ami}"


def test_the_policy_of_the_settings_applies_to_both(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    ami = fleet.ami(days=60)
    assert planned(fleet, {}) == {}
    assert audited(fleet).query("rule == 'retirement-due'").empty
    monkeypatch.setenv("VMSNIX_RETIRE_KEEP_LAST", "0")
    assert planned(fleet, {}) == {ami: "retire"}
    (due,) = audited(fleet).query("rule == 'retirement-due'").to_dict("records")
    assert (due["resource_id"], str(due["remediation"])) == (
        ami,
        f"vmsnix retire --regions {REGION} --amis {ami}",
    )


@pytest.mark.parametrize("operation", ["ec2:DescribeSnapshotAttribute", "ssm:GetParameterHistory"])
def test_nothing_is_due_if_a_source_could_not_be_read(fleet: Fleet, operation: str) -> None:
    fleet.ami(days=60)
    fleet.set_parameter("/vmsnix/app/stable", fleet.ami("app", days=60))
    fleet.fail(operation, message=f"You are not authorized to perform: {operation}")
    rules = policy_rules({"keep_last": 0})
    found = inventory.scan(rules, regions=[REGION], session=fleet.session)
    findings = evaluate(found)
    assert removable(findings) == set()
    (unread,) = findings[findings["rule"] == "unread"].to_dict("records")
    assert operation in f"{unread['reason']} {unread['evidence']}"
