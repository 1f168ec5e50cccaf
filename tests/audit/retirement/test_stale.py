"""A retirement whose plan is out of date: what changed since the plan is not touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.retirement.fleet import OTHER, OTHER_ACCOUNT, REGION, Fleet
from tests.support import finish
from vmsnix_ops import errors
from vmsnix_ops.audit.retirement import _plan
from vmsnix_ops.aws import retiring
from vmsnix_ops.aws import tags as tagging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmsnix_ops.audit import retirement


def changed(fleet: Fleet, ami: str, how: str) -> None:
    if how == "an instance was launched":
        fleet.ec2.run_instances(ImageId=ami, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    elif how == "it was shared":
        fleet.share(ami, OTHER_ACCOUNT)
    elif how == "it was tagged":
        fleet.ec2.create_tags(Resources=[ami], Tags=[{"Key": "keep", "Value": "please"}])
    elif how == "it was disabled":
        fleet.ec2.disable_image(ImageId=ami)
    elif how == "it is gone":
        fleet.ec2.deregister_image(ImageId=ami)
    elif how == "a channel points at it":
        fleet.set_parameter("/vmsnix/web/stable", ami)
    elif how == "a launch configuration names it":
        fleet.client("autoscaling").create_launch_configuration(
            LaunchConfigurationName="late", ImageId=ami, InstanceType="t3.micro"
        )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("an instance was launched", "in use: instance"),
        ("it was shared", OTHER_ACCOUNT),
        ("it was tagged", "please"),
        ("it was disabled", "state: available before, disabled now"),
        ("it is gone", "it no longer exists"),
        ("a channel points at it", "/vmsnix/web/stable"),
        ("a launch configuration names it", "late"),
    ],
)
def test_an_outdated_plan_is_refused_with_what_changed(fleet: Fleet, how: str, message: str) -> None:
    ami, other = fleet.ami(), fleet.ami("other")
    plan = fleet.plan()
    changed(fleet, ami, how)
    with pytest.raises(errors.StalePlanError, match=f"{ami}.*{message}"):
        plan.apply()
    assert fleet.amis()[other] == "available"


def test_an_ami_that_changes_during_the_run_is_skipped(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = fleet.ami(days=90), fleet.ami(days=80)
    plan, retire = fleet.plan(), retiring.retire

    def launch_and_retire(*args: Any, **more: Any) -> Any:
        fleet.ec2.run_instances(ImageId=second, InstanceType="t3.micro", MinCount=1, MaxCount=1)
        return retire(*args, **more)

    monkeypatch.setattr(retiring, "retire", launch_and_retire)
    result = plan.apply()
    assert [one.outcome for one in result.outcomes] == ["changed", "skipped"]
    assert fleet.amis() == {first: "disabled", second: "available"}
    with pytest.raises(errors.PartialError, match=second):
        finish(result)


def use(fleet: Fleet, resource_id: str, how: str) -> None:
    """Use an AMI or a snapshot in a way that keeps it."""
    image = resource_id if resource_id.startswith("ami-") else ""
    volumes = [] if image else [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": resource_id}}]
    if how == "launch configuration":
        fleet.client("autoscaling").create_launch_configuration(
            LaunchConfigurationName="late",
            ImageId=image or fleet.ami("other", days=1),
            InstanceType="t3.micro",
            BlockDeviceMappings=volumes,
        )
    elif how == "launch template":
        data = {"BlockDeviceMappings": volumes} | ({"ImageId": image} if image else {})
        fleet.ec2.create_launch_template(LaunchTemplateName="late", LaunchTemplateData=data)
    elif how == "parameter":
        fleet.client("ssm").put_parameter(Name="/theirs", Value=f"ami={image}", Type="String")
    elif how == "shared":
        fleet.share_snapshot(*(fleet.snapshots_of(image) if image else [resource_id]))
    elif how == "locked":
        (snapshot,) = fleet.snapshots_of(image) if image else [resource_id]
        fleet.ec2.lock_snapshot(SnapshotId=snapshot, LockMode="governance", LockDuration=9)
    elif how == "ami":
        fleet.ami("other", days=1, snapshots=(resource_id,))
    elif how == "import":
        fleet.aws.prepare(bucket="late", region=REGION, key_prefix="")
        fleet.client("s3").put_object(Bucket="late", Key="image.raw", Body=bytes(2**20))
        fleet.ec2.import_snapshot(
            DiskContainer={"Format": "RAW", "UserBucket": {"S3Bucket": "late", "S3Key": "image.raw"}},
            TagSpecifications=tagging.tag_specifications("import-snapshot-task", {tagging.DIGEST: "d"}),
        )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("launch configuration", "launch-configuration late"),
        ("launch template", "launch-template lt-"),
        ("parameter", "parameter /theirs"),
        ("shared", f"snapshot-shared-with {OTHER_ACCOUNT}"),
        ("locked", "snapshot-lock snap-"),
    ],
)
@pytest.mark.parametrize("days", [0, 20])
@pytest.mark.variants(quick=2)
def test_the_usage_of_an_ami_is_read_again_right_before_it_is_changed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, how: str, message: str, days: int
) -> None:
    ami = fleet.ami()
    if days:
        fleet.apply()
    state, plan = fleet.amis()[ami], fleet.plan(now=fleet.later(days))
    after_the_check(monkeypatch, lambda: use(fleet, ami, how))
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.amis()[ami]) == ("skipped", state)
    assert message in one.detail


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("launch configuration", "launch-configuration late"),
        ("launch template", "launch-template lt-"),
        ("shared", f"shared-with {OTHER_ACCOUNT}"),
        ("locked", "snapshot-lock snap-"),
        ("ami", "needs it"),
        ("import", "import of its image: nothing before, running now"),
    ],
)
@pytest.mark.parametrize("days", [0, 20])
def test_the_usage_of_an_orphan_is_read_again_right_before_it_is_changed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, how: str, message: str, days: int
) -> None:
    orphan = fleet.snapshot(tags={tagging.DIGEST: "d"})
    if days:
        fleet.apply()
    plan = fleet.plan(now=fleet.later(days))
    monkeypatch.setattr(fleet.aws.clock, "speed", 1)  # or the import has ended when it is read
    after_the_check(monkeypatch, lambda: use(fleet, orphan, how))
    (one,) = plan.apply().outcomes
    assert one.outcome == "skipped"
    assert message in one.detail
    assert orphan in fleet.snapshots()


def after_the_check(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Run a function after a plan was checked, before its first action."""
    check = _plan._check_current

    def check_then_change(plan: retirement.RetirementPlan) -> Any:
        found = check(plan)
        meanwhile()
        return found

    monkeypatch.setattr(_plan, "_check_current", check_then_change)


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], None], *, first: bool = False
) -> None:
    """Change something right after (or with `first`, before) a call of a function of `retiring`."""
    called = getattr(retiring, name)

    def call_and_change(*given: Any, **more: Any) -> Any:
        if first:
            change()
        found = called(*given, **more)
        if not first:
            change()
        return found

    monkeypatch.setattr(retiring, name, call_and_change)


def has_retirement_tags(tags: Iterable[str]) -> bool:
    return any(retiring.is_retirement_tag(key) for key in tags)


def test_an_ami_that_is_used_after_it_was_tagged_is_not_retired(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami, plan = fleet.ami(), fleet.plan()
    meanwhile(monkeypatch, "write_retirement_tags", lambda: use(fleet, ami, "launch template"))
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.amis()) == ("skipped", {ami: "available"})
    assert "launch-template lt-" in one.detail
    assert not has_retirement_tags(fleet.tags(ami))


def test_a_second_retirement_that_is_undone_restores_the_tags_of_the_first(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami = fleet.ami()
    fleet.apply()
    before = fleet.tags(ami)
    fleet.ec2.enable_image(ImageId=ami)  # by hand
    plan = fleet.plan(now=fleet.later(3))
    meanwhile(monkeypatch, "write_retirement_tags", lambda: use(fleet, ami, "launch template"))
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.amis()) == ("skipped", {ami: "available"})
    assert fleet.tags(ami) == before


def test_an_ami_that_a_channel_gets_before_it_is_disabled_is_enabled_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami = fleet.ami()
    fleet.share(ami, OTHER_ACCOUNT)
    plan = fleet.plan(allow_shared=True)
    meanwhile(monkeypatch, "retire", lambda: fleet.set_parameter("/vmsnix/web/stable", ami), first=True)
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.amis()) == ("skipped", {ami: "available"})
    assert "in use: " in one.detail
    assert "/vmsnix/web/stable" in one.detail
    assert fleet.permissions(ami) == [{"UserId": OTHER_ACCOUNT}]
    assert not has_retirement_tags(fleet.tags(ami))


def test_an_ami_that_is_used_after_its_deletion_was_claimed_is_kept(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami = fleet.ami()
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    meanwhile(monkeypatch, "claim", lambda: use(fleet, ami, "launch template"))
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.amis()) == ("skipped", {ami: "disabled"})
    assert "launch-template lt-" in one.detail
    assert tagging.DELETING not in fleet.tags(ami)


def test_an_orphan_that_is_used_after_its_deletion_was_claimed_is_kept(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = fleet.snapshot(tags={tagging.DIGEST: "d"})
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    meanwhile(monkeypatch, "claim", lambda: use(fleet, orphan, "launch template"))
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.snapshots()) == ("skipped", {orphan})
    assert "launch-template lt-" in one.detail
    assert tagging.DELETING not in fleet.row("snapshots", orphan).tags


@pytest.mark.parametrize(
    ("key", "other"),
    [(tagging.DELETING, tagging.RESTORING), (tagging.RESTORING, tagging.DELETING)],
)
def test_a_claim_that_meets_another_run_s_is_released(fleet: Fleet, key: str, other: str) -> None:
    ami = fleet.ami()
    retiring.add_tags(fleet.ec2, [ami], {other: "run-1"})
    assert retiring.claim(fleet.ec2, ami, key, "run-2") == "run-1"
    assert key not in fleet.tags(ami)
    assert fleet.tags(ami)[other] == "run-1"


def test_an_ami_whose_usage_cannot_be_read_again_is_kept(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami, plan = fleet.ami(), fleet.plan()
    after_the_check(monkeypatch, lambda: fleet.fail("autoscaling:*", "AccessDenied"))
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.amis()) == ("failed", {ami: "available"})
    assert "Auto Scaling groups" in one.detail


def test_a_snapshot_used_by_a_new_ami_is_kept_when_its_ami_is_deleted(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami, made = fleet.ami(), list[str]()
    fleet.apply()
    (snapshot,) = fleet.snapshots_of(ami)
    plan = fleet.plan(now=fleet.later())
    after_the_check(monkeypatch, lambda: made.append(fleet.ami("other", days=1, snapshots=(snapshot,))))
    (one,) = plan.apply().outcomes
    assert (one.outcome, one.text) == ("deleted", f"{snapshot} is kept: {made[0]} needs it")
    assert fleet.snapshots() == {snapshot}
    assert fleet.aws.calls.matching("ec2:DeleteSnapshot") == []


def test_a_snapshot_in_a_new_template_is_kept_when_its_ami_is_deleted(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami = fleet.ami(devices=2)
    _root, data = fleet.snapshots_of(ami)
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    after_the_check(monkeypatch, lambda: use(fleet, data, "launch template"))
    (one,) = plan.apply().outcomes
    assert one.outcome == "deleted"
    assert f"{data} is kept: launch-template" in one.detail
    assert fleet.snapshots() == {data}


def test_permissions_lost_after_the_plan_fail_only_that_region(fleet: Fleet) -> None:
    here, there = fleet.ami(), fleet.ami(region=OTHER)
    plan = fleet.plan(regions=[REGION, OTHER])
    fleet.fail("ec2:DescribeInstances", where={"region": OTHER})
    result = plan.apply()
    assert {one.decision.resource_id: one.outcome for one in result.outcomes} == {
        here: "changed",
        there: "failed",
    }
    assert fleet.amis(OTHER) == {there: "available"}
    with pytest.raises(errors.PartialError, match="instances"):
        finish(result)


def test_a_region_that_is_not_enabled_does_not_stop_the_others(fleet: Fleet) -> None:
    ami = fleet.ami()
    plan = fleet.plan(regions=["ap-east-1", REGION])
    assert [one.resource_id for one in plan.planned] == [ami]
    assert list(plan.unread) == ["ap-east-1"]
    with pytest.raises(errors.PartialError, match="not enabled"):
        finish(plan.apply())
    with pytest.raises(errors.RegionError, match="ap-east-1 is not enabled"):
        fleet.plan(regions=["ap-east-1"])
