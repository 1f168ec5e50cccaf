"""Retire, remove and restore AMIs, held against the sandbox."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.fleet import FRIEND, OTHER, REGION, Fleet, why
from vmsnix_ops import errors
from vmsnix_ops.audit import retirement
from vmsnix_ops.aws import images
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.cli import main
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    import pandas as pd


def recorded() -> pd.DataFrame:
    return open_tables(load()).read("retirements")


# What stays


def test_every_ami_has_a_verdict_and_a_reason(fleet: Fleet) -> None:
    old, new, fresh = fleet.ami(days=90), fleet.ami(days=80), fleet.ami("other", days=2)
    foreign = fleet.ami("theirs", tags={})
    plan = fleet.plan(keep_last=1)
    assert {one.resource_id for one in plan.decisions} == {old, new, fresh, foreign}
    assert all(one.reasons for one in plan.decisions)
    assert why(plan, old).startswith("retire: made 90 days ago; 1 newer; nothing uses it")
    assert why(plan, new) == "keep: one of the newest 1 of web (x86_64)"
    assert why(plan, fresh) == (
        "keep: one of the newest 1 of other (x86_64); made 2 days ago, less than 30 days"
    )
    assert why(plan, foreign) == "keep: not ours: it has no tag vmsnix:digest"


def test_the_newest_stay_of_each_image_and_architecture(fleet: Fleet) -> None:
    made = [fleet.ami(days=days) for days in (90, 80, 70)]
    arm = fleet.ami(days=95, Architecture="arm64", BootMode="uefi")
    plan = fleet.plan(keep_last=2)
    assert [one.resource_id for one in plan.going] == [made[0]]
    assert "one of the newest 2 of web (arm64)" in why(plan, arm)


def test_an_instance_keeps_its_ami(fleet: Fleet) -> None:
    ami = fleet.ami()
    run = fleet.ec2.run_instances(ImageId=ami, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    assert f"in use: instance {run['Instances'][0]['InstanceId']}" in why(fleet.plan(launched_days=0), ami)


def test_any_version_of_a_launch_template_keeps_its_ami(fleet: Fleet) -> None:
    old, newer = fleet.ami(), fleet.ami()
    data = {"InstanceType": "t3.micro"}
    made = fleet.ec2.create_launch_template(
        LaunchTemplateName="web", LaunchTemplateData={**data, "ImageId": old}
    )
    template = made["LaunchTemplate"]["LaunchTemplateId"]
    fleet.ec2.create_launch_template_version(
        LaunchTemplateId=template, LaunchTemplateData={**data, "ImageId": newer}
    )
    fleet.ec2.modify_launch_template(LaunchTemplateId=template, DefaultVersion="2")
    plan = fleet.plan()
    assert "in use: launch-template" in why(plan, old)
    assert "version 1" in why(plan, old)
    assert plan.going == ()


def test_a_group_keeps_the_ami_of_its_launch_configuration(fleet: Fleet) -> None:
    ami = fleet.ami()
    scaling = fleet.client("autoscaling")
    scaling.create_launch_configuration(LaunchConfigurationName="old", ImageId=ami, InstanceType="t3.micro")
    scaling.create_auto_scaling_group(
        AutoScalingGroupName="web",
        LaunchConfigurationName="old",
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=0,
        AvailabilityZones=[f"{REGION}a"],
    )
    assert "auto-scaling-group web" in why(fleet.plan(), ami)
    assert "launch-configuration old" in why(fleet.plan(), ami)


def test_a_pointer_keeps_its_ami_and_the_last_ones_for_a_rollback(fleet: Fleet) -> None:
    made = [fleet.ami(days=90 - n) for n in range(4)]
    fleet.point("/vmsnix/web/stable", *made[:3])
    plan = fleet.plan(keep_last=2)
    assert "in use: parameter /vmsnix/web/stable" in why(plan, made[2])
    assert "one of the last 2 of /vmsnix/web/stable" in why(plan, made[1])
    assert [one.resource_id for one in plan.going] == [made[0]]


def test_a_parameter_of_any_name_keeps_its_ami(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.client("ssm").put_parameter(Name="/theirs", Value=json.dumps({"ami": ami}), Type="String")
    assert "in use: parameter /theirs" in why(fleet.plan(), ami)


def test_an_ami_is_kept_while_its_copy_elsewhere_is_in_use(fleet: Fleet) -> None:
    ami = fleet.ami(digest="same")
    copy = fleet.ami(digest="same", region=OTHER)
    there = fleet.client("ec2", OTHER)
    there.run_instances(ImageId=copy, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    plan = fleet.plan(regions=[REGION, OTHER], launched_days=0)
    assert f"a copy is in use: {copy} in {OTHER} by instance" in why(plan, ami)
    assert "in use: instance" in why(plan, copy)
    # Where nobody looked, nothing can be said; the copy lives on without its source.
    assert why(fleet.plan(), ami).startswith("retire")


def test_an_ami_that_others_may_launch_stays_unless_it_is_allowed(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.share(ami, FRIEND)
    assert f"shared with {FRIEND}: whether they use it cannot be seen from here" in why(fleet.plan(), ami)
    assert f"shared with {FRIEND}, who lose it" in why(fleet.plan(allow_shared=True), ami)


def test_an_ami_that_was_launched_lately_stays(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.row("images", ami).last_launched = datetime.now(UTC) - timedelta(days=5)
    assert "launched 5 days ago, less than 30 days" in why(fleet.plan(), ami)
    assert "last launched 5 days ago" in why(fleet.plan(launched_days=3), ami)


def test_a_protected_ami_stays(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.ec2.enable_image_deregistration_protection(ImageId=ami, WithCooldown=False)
    assert "protected from deregistration (enabled-without-cooldown)" in why(fleet.plan(), ami)


def test_no_more_go_than_may_the_oldest_first(fleet: Fleet) -> None:
    young, old = fleet.ami(days=50), fleet.ami(days=60)
    plan = fleet.plan(max_count=1)
    assert [one.resource_id for one in plan.going] == [old]
    assert "no more than 1 go in one run" in why(plan, young)


def test_no_more_amis_are_asked_about_than_may_go(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.audit.retirement_view.ASKED_AT_ONCE", 2)
    made = [fleet.ami(days=90 - n) for n in range(6)]
    fleet.share(made[0], FRIEND)
    fleet.aws.calls.clear()
    plan = fleet.plan(max_count=2)
    assert [one.resource_id for one in plan.going] == made[1:3]
    assert len(fleet.aws.calls.of("ec2:DescribeImageAttribute")) == 4


def test_only_what_was_asked_for_goes(fleet: Fleet) -> None:
    web, other = fleet.ami(), fleet.ami("other")
    assert [one.resource_id for one in fleet.plan(images=["web"]).going] == [web]
    assert [one.resource_id for one in fleet.plan(amis=[other]).going] == [other]


# Bad input


def test_an_ami_of_another_account_is_refused(fleet: Fleet) -> None:
    ami = fleet.ami()
    image = fleet.row("images", ami)
    image.owner, image.permissions = FRIEND, [{"UserId": fleet.aws.account}]
    with pytest.raises(errors.ParameterError, match=f"belongs to {FRIEND}"):
        fleet.plan(amis=[ami])
    with pytest.raises(errors.ParameterError, match="none of that id"):
        fleet.plan(amis=["ami-0123456789abcdef0"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keep_last": -1}, "keep_last=-1"),
        ({"grace_days": float("nan")}, "grace_days=nan"),
        ({"action": "destroy"}, "retire or restore"),
        ({"regions": ["eu-wset-1"]}, "eu-west-1"),
    ],
)
def test_what_cannot_be_right_is_refused(fleet: Fleet, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.VmsnixError, match=said):
        fleet.plan(**wrong)


@pytest.mark.parametrize("confirm", ["", "2", "yes", FRIEND])
def test_nothing_happens_without_the_right_confirmation(fleet: Fleet, confirm: str) -> None:
    ami = fleet.ami()
    with pytest.raises(
        errors.ParameterError, match=f"number \\(1\\) or the account \\({fleet.aws.account}\\)"
    ):
        fleet.apply(confirm=confirm)
    assert fleet.amis() == {ami: "available"}
    assert fleet.apply(confirm="1").outcomes[0].outcome == "retired"


def test_a_dry_run_changes_nothing(fleet: Fleet) -> None:
    ami = fleet.ami()
    result = fleet.apply(dry_run=True)
    assert (fleet.amis(), result.outcomes) == ({ami: "available"}, ())
    assert "dry run" in str(result.plan)
    assert "it is a dry run" in str(result.show_each())


def test_another_account_than_allowed_is_refused(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSNIX_ALLOWED_ACCOUNTS", FRIEND)
    with pytest.raises(errors.CredentialsError, match=FRIEND):
        fleet.plan()


# Incomplete evidence


@pytest.mark.parametrize(
    "operation",
    [
        "autoscaling:DescribeAutoScalingGroups",
        "ec2:DescribeLaunchTemplateVersions",
        "ec2:DescribeInstances",
        "ec2:DescribeImageReferences",
        "ec2:DescribeImageAttribute",
        "ssm:DescribeParameters",
    ],
)
def test_nothing_goes_where_evidence_cannot_be_read(fleet: Fleet, operation: str) -> None:
    ami = fleet.ami()
    template = {"ImageId": fleet.ami(), "InstanceType": "t3.micro"}
    fleet.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=template)
    code = "AccessDenied" if operation.startswith("autoscaling") else "UnauthorizedOperation"
    fleet.aws.faults.add({"op": operation, "do": "error", "code": code, "http": 403})
    plan = fleet.plan()
    assert plan.going == ()
    assert "not known whether it is used" in why(plan, ami)
    with pytest.raises(errors.VmsnixError, match=f"Nothing goes in {REGION}"):
        retirement.finish(plan.apply())


def test_a_region_that_refuses_does_not_stop_the_others(fleet: Fleet) -> None:
    here, there = fleet.ami(), fleet.ami(region=OTHER)
    fleet.aws.faults.add(
        {
            "op": "autoscaling:DescribeAutoScalingGroups",
            "where": {"region": OTHER},
            "do": "error",
            "code": "AccessDenied",
            "http": 403,
        }
    )
    result = fleet.apply(regions=[REGION, OTHER])
    table = result.frame().set_index("region")
    assert table.loc[REGION, "retired"] == 1
    assert table.loc[OTHER, "planned"] == 0
    assert "AccessDenied" in table.loc[OTHER, "why"]
    assert fleet.amis(OTHER) == {there: "available"}
    assert fleet.amis() == {here: "disabled"}
    with pytest.raises(errors.PartlyDoneError) as caught:
        retirement.finish(result)
    assert caught.value.exit_code == 3
    assert json.loads((result.plan.run.folder / "result.json").read_text())["status"] == "partly"


# Retire, remove, restore


def test_a_retired_ami_is_private_deprecated_disabled_and_says_so(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.share(ami, FRIEND)
    (snapshot,) = fleet.held(ami)
    fleet.ec2.modify_snapshot_attribute(
        SnapshotId=snapshot, Attribute="createVolumePermission", OperationType="add", UserIds=[FRIEND]
    )
    result = fleet.apply(allow_shared=True)
    assert [one.outcome for one in result.outcomes] == ["retired"]
    (image,) = fleet.ec2.describe_images(ImageIds=[ami], IncludeDisabled=True)["Images"]
    assert (image["State"], image["Public"], fleet.permissions(ami)) == ("disabled", False, [])
    assert image["DeprecationTime"]
    tags = tagging.to_dict(image["Tags"])
    assert tags[tagging.SHARED_WITH] == FRIEND
    assert tags[tagging.RETIRED_BY] == result.plan.run.run_id
    shared = fleet.ec2.describe_snapshot_attribute(SnapshotId=snapshot, Attribute="createVolumePermission")
    assert shared["CreateVolumePermissions"] == []
    assert snapshot in fleet.snapshots()


def test_it_stays_until_its_grace_is_over_and_then_goes_with_all_its_snapshots(fleet: Fleet) -> None:
    ami, other = fleet.ami(devices=3), fleet.ami("other", days=1)
    kept = fleet.held(other)
    assert len(fleet.held(ami)) == 3
    fleet.apply(grace_days=14)
    soon = fleet.plan(now=fleet.later(13))
    assert "can be restored until" in why(soon, ami)
    result = fleet.apply(now=fleet.later(15), min_age_days=30)
    assert [one.outcome for one in result.outcomes] == ["deleted"]
    assert fleet.amis() == {other: "available"}
    assert fleet.snapshots() == set(kept)
    retirement.finish(result)


def test_snapshots_that_another_ami_needs_stay(fleet: Fleet) -> None:
    shared = fleet.snapshot(tags={tagging.DIGEST: "x"})
    going = fleet.ami(snapshots=(shared, fleet.snapshot()), days=60)
    staying = fleet.ami(snapshots=(shared,), days=1)
    plan = fleet.plan()
    (one,) = plan.going
    assert one.kept_snapshots == ((shared, f"{staying} needs it"),)
    plan.apply()
    fleet.apply(now=fleet.later(), min_age_days=30)
    assert fleet.amis() == {staying: "available"}
    assert fleet.snapshots() == {shared}
    assert going not in fleet.amis()


def test_a_snapshot_of_two_that_go_goes_with_the_last(fleet: Fleet) -> None:
    shared = fleet.snapshot(tags={tagging.DIGEST: "x"})
    first, last = fleet.ami(snapshots=(shared,), days=61), fleet.ami(snapshots=(shared,), days=60)
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    assert {one.resource_id: one.snapshots for one in plan.going} == {first: (), last: (shared,)}
    plan.apply()
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


def test_the_moments_in_which_a_snapshot_still_counts_as_used_are_waited_out(fleet: Fleet) -> None:
    fleet.ami()
    fleet.apply()
    fleet.aws.faults.add(
        {
            "op": "ec2:DeleteSnapshot",
            "nth": [1, 2],
            "do": "error",
            "code": "InvalidSnapshot.InUse",
            "http": 400,
        }
    )
    assert [one.outcome for one in fleet.apply(now=fleet.later()).outcomes] == ["deleted"]
    assert fleet.snapshots() == set()


def test_what_is_used_again_during_its_grace_is_not_removed(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    fleet.client("ssm").put_parameter(Name="/theirs", Value=ami, Type="String")
    plan = fleet.plan(now=fleet.later())
    assert "in use: parameter /theirs" in why(plan, ami)


def test_protection_that_comes_after_the_look_is_respected_and_told(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    fleet.aws.faults.add(
        {
            "op": "ec2:DeregisterImage",
            "do": "error",
            "code": "OperationNotPermitted",
            "message": "The image is protected from deregistration.",
            "http": 400,
        }
    )
    result = plan.apply()
    assert [one.outcome for one in result.outcomes] == ["protected"]
    assert ami in fleet.amis()
    assert len(fleet.snapshots()) == 1
    with pytest.raises(errors.VmsnixError, match="protected from deregistration"):
        retirement.finish(result)


def test_restoring_gives_back_permissions_and_deprecation_as_they_were(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.share(ami, FRIEND, "111122223333")
    (snapshot,) = fleet.held(ami)
    fleet.ec2.modify_snapshot_attribute(
        SnapshotId=snapshot, Attribute="createVolumePermission", OperationType="add", UserIds=[FRIEND]
    )
    date = (datetime.now(UTC) + timedelta(days=100)).replace(second=0, microsecond=0)
    fleet.ec2.enable_image_deprecation(ImageId=ami, DeprecateAt=date)
    (before,) = fleet.ec2.describe_images(ImageIds=[ami])["Images"]
    fleet.apply(allow_shared=True)
    result = fleet.apply(action="restore")
    assert [one.outcome for one in result.outcomes] == ["restored"]
    (after,) = fleet.ec2.describe_images(ImageIds=[ami])["Images"]
    assert after == before
    assert fleet.permissions(ami) == [{"UserId": "111122223333"}, {"UserId": FRIEND}]
    shared = fleet.ec2.describe_snapshot_attribute(SnapshotId=snapshot, Attribute="createVolumePermission")
    assert shared["CreateVolumePermissions"] == [{"UserId": FRIEND}]
    assert fleet.plan(action="restore").going == ()


def test_restoring_an_ami_without_a_date_leaves_it_without(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    fleet.apply(action="restore", amis=[ami])
    (image,) = fleet.ec2.describe_images(ImageIds=[ami])["Images"]
    assert image.get("DeprecationTime") is None
    assert not [name for name in fleet.tags(ami) if name.startswith("vmsnix:retired")]


def test_an_audience_of_many_accounts_is_remembered_whole(fleet: Fleet) -> None:
    ami = fleet.ami()
    many = [f"{number:012d}" for number in range(100, 150)]
    fleet.share(ami, *many)
    fleet.apply(allow_shared=True)
    fleet.apply(action="restore")
    assert sorted(one["UserId"] for one in fleet.permissions(ami)) == many


def test_an_ami_that_somebody_enabled_by_hand_is_given_its_whole_grace_again(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    fleet.ec2.enable_image(ImageId=ami)
    plan = fleet.plan(now=fleet.later())
    assert why(plan, ami).startswith("retire")
    plan.apply()
    assert fleet.amis() == {ami: "disabled"}
    assert "can be restored until" in why(fleet.plan(now=fleet.later(25)), ami)


def test_publishing_what_was_retired_says_how_to_bring_it_back(fleet: Fleet) -> None:
    ami = fleet.ami(digest="d")
    wanted = images.Registration(f"web-{fleet.number}", "x86_64", "", "/dev/sda1", fleet.held(ami)[0])
    fleet.apply()
    with pytest.raises(errors.RegistrationError, match=f"--action restore --amis {ami}"):
        images.register(fleet.ec2, wanted, digest="d")


# A plan that no longer holds


def changed(fleet: Fleet, ami: str, how: str) -> None:
    if how == "an instance was launched":
        fleet.ec2.run_instances(ImageId=ami, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    elif how == "it was shared":
        fleet.share(ami, FRIEND)
    elif how == "it was tagged":
        fleet.ec2.create_tags(Resources=[ami], Tags=[{"Key": "keep", "Value": "please"}])
    elif how == "it was disabled":
        fleet.ec2.disable_image(ImageId=ami)
    elif how == "it is gone":
        fleet.ec2.deregister_image(ImageId=ami)
    elif how == "a channel points at it":
        fleet.point("/vmsnix/web/stable", ami)
    elif how == "a launch configuration names it":
        fleet.client("autoscaling").create_launch_configuration(
            LaunchConfigurationName="late", ImageId=ami, InstanceType="t3.micro"
        )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("an instance was launched", "in use: instance"),
        ("it was shared", FRIEND),
        ("it was tagged", "please"),
        ("it was disabled", "state: available before, disabled now"),
        ("it is gone", "it is gone"),
        ("a channel points at it", "/vmsnix/web/stable"),
        ("a launch configuration names it", "late"),
    ],
)
def test_a_plan_older_than_the_account_s_state_is_refused_with_what_changed(
    fleet: Fleet, how: str, said: str
) -> None:
    ami, other = fleet.ami(), fleet.ami("other")
    plan = fleet.plan()
    changed(fleet, ami, how)
    with pytest.raises(errors.StalePlanError, match=f"{ami}.*{said}"):
        plan.apply()
    assert fleet.amis()[other] == "available"


def test_what_changes_between_the_look_and_its_turn_is_left_alone(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmsnix_ops.aws import retiring

    first, second = fleet.ami(days=90), fleet.ami(days=80)
    plan, retire = fleet.plan(), retiring.retire

    def meanwhile(*args: Any, **more: Any) -> Any:
        fleet.ec2.run_instances(ImageId=second, InstanceType="t3.micro", MinCount=1, MaxCount=1)
        return retire(*args, **more)

    monkeypatch.setattr(retiring, "retire", meanwhile)
    result = plan.apply()
    assert [one.outcome for one in result.outcomes] == ["retired", "changed"]
    assert fleet.amis() == {first: "disabled", second: "available"}
    with pytest.raises(errors.PartlyDoneError, match=second):
        retirement.finish(result)


def test_permissions_lost_between_plan_and_apply_stop_that_region(fleet: Fleet) -> None:
    here, there = fleet.ami(), fleet.ami(region=OTHER)
    plan = fleet.plan(regions=[REGION, OTHER])
    fleet.aws.faults.add(
        {
            "op": "ec2:DescribeInstances",
            "where": {"region": OTHER},
            "do": "error",
            "code": "UnauthorizedOperation",
            "http": 403,
        }
    )
    result = plan.apply()
    assert {one.decision.resource_id: one.outcome for one in result.outcomes} == {
        here: "retired",
        there: "failed",
    }
    assert fleet.amis(OTHER) == {there: "available"}
    with pytest.raises(errors.PartlyDoneError, match="instances"):
        retirement.finish(result)


def test_a_region_that_is_not_enabled_does_not_stop_the_others(fleet: Fleet) -> None:
    ami = fleet.ami()
    for op, code in (("sts:*", "InvalidClientTokenId"), ("ec2:*", "AuthFailure")):
        fleet.aws.faults.add({"op": op, "where": {"region": OTHER}, "do": "error", "code": code, "http": 401})
    plan = fleet.plan(regions=[OTHER, REGION])
    assert [one.resource_id for one in plan.going] == [ami]
    assert list(plan.unread) == [OTHER]
    with pytest.raises(errors.PartlyDoneError):
        retirement.finish(plan.apply())
    with pytest.raises(errors.CredentialsError, match="not enabled"):
        fleet.plan(regions=[OTHER])


# Orphans, and what was half deleted


def test_a_half_deleted_ami_is_finished(fleet: Fleet) -> None:
    ami = fleet.ami(devices=2)
    held = fleet.held(ami)
    fleet.apply()
    fleet.ec2.deregister_image(ImageId=ami)
    plan = fleet.plan(now=fleet.later())
    assert {one.resource_id for one in plan.going} == set(held)
    assert why(plan, held[1]) == f"delete: left behind by {ami}, which is gone; its grace is over"
    plan.apply()
    assert fleet.snapshots() == set()


def test_an_orphan_is_kept_for_its_grace_and_then_removed(fleet: Fleet) -> None:
    ours = fleet.snapshot(tags={tagging.DIGEST: "d", tagging.IMAGE: "web"})
    young = fleet.snapshot(days=1, tags={tagging.DIGEST: "e"})
    theirs = fleet.snapshot()
    plan = fleet.plan()
    assert [one.resource_id for one in plan.decisions] == [ours, young]
    assert "a publish may go on with it" in why(plan, young)
    assert [one.outcome for one in plan.apply().outcomes] == ["retired"]
    assert fleet.plan().going == ()
    fleet.apply(now=fleet.later(), images=["web"])
    assert fleet.snapshots() == {young, theirs}


def test_a_restored_orphan_is_no_longer_counted_down(fleet: Fleet) -> None:
    ours = fleet.snapshot(tags={tagging.DIGEST: "d"})
    fleet.apply()
    fleet.apply(action="restore")
    assert why(fleet.plan(now=fleet.later()), ours).startswith("retire")


def test_a_direct_upload_that_died_is_removed(fleet: Fleet) -> None:
    ebs = fleet.client("ebs")
    started = ebs.start_snapshot(VolumeSize=1, Tags=[{"Key": tagging.DIGEST, "Value": "d"}])["SnapshotId"]
    assert "a publish may go on with it" in why(fleet.plan(), started)
    fleet.row("snapshots", started).started = datetime.now(UTC) - timedelta(days=10)
    fleet.aws.clock.advance(2 * 3600)  # AWS gives an upload up after an hour without a block
    plan = fleet.plan()
    assert why(plan, started) == "delete: it is error: an upload or import that did not end well"
    plan.apply()
    assert fleet.snapshots() == set()


def test_orphans_stay_when_nobody_asked_for_them(fleet: Fleet) -> None:
    fleet.snapshot(tags={tagging.DIGEST: "d"})
    assert fleet.plan(orphans=False).decisions == ()


def test_a_failed_copy_goes_at_once_with_its_snapshot(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.row("images", ami).failure = "Given key ID is not accessible"
    plan = fleet.plan()
    assert why(plan, ami).startswith("delete: it never became available")
    plan.apply()
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


# What is remembered


def test_the_tables_tell_what_was_done_when_and_why(fleet: Fleet) -> None:
    ami = fleet.ami()
    (snapshot,) = fleet.held(ami)
    first = fleet.apply()
    fleet.apply(now=fleet.later())
    rows = recorded()
    done = sorted(zip(rows["resource_id"], rows["action"], strict=True))
    assert done == sorted([(ami, "retired"), (ami, "deleted"), (snapshot, "deleted")])
    (retired,) = rows[rows["action"] == "retired"].to_dict("records")
    assert "nothing uses it" in retired["reasons"]
    assert retired["run_id"] == first.plan.run.run_id
    assert rows[rows["kind"] == "snapshot"]["ami_id"].tolist() == [ami]
    assert set(history.retirements(open_tables(load()), resource_id=ami)["action"]) == {"retired", "deleted"}
    known = history.amis(open_tables(load()), all_rows=True)
    assert sorted(known["state"]) == ["deregistered", "disabled"]
    assert history.amis(open_tables(load()))["state"].tolist() == ["deregistered"]


def test_the_history_is_told_in_a_shell(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    ami = fleet.ami()
    fleet.apply()
    capsys.readouterr()
    assert main(["history", "retirements", "--resource-id", ami, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["resource_id"], row["action"]) == (ami, "retired")
    assert main(["history", "retirements"]) == 0
    assert ami in capsys.readouterr().out


def test_result_json_says_what_went_and_what_did_not(fleet: Fleet) -> None:
    ami = fleet.ami()
    result = fleet.apply()
    retirement.finish(result)
    written = json.loads((result.plan.run.folder / "result.json").read_text())
    assert (written["status"], written["retired"], written["going"]) == ("done", 1, [ami])
    assert ami in Path(written["plan"]).read_text()


def test_a_long_plan_is_shown_in_part(fleet: Fleet) -> None:
    for days in (90, 80, 70):
        fleet.ami(days=days)
    plan = fleet.plan(keep_last=3)
    assert len(plan.show(going=False, most=2)) == 2
    assert plan.show(going=False, most=2).title == "3 stay; the first 2 of them, plan.csv has all"
    assert plan.show(going=False).title == "3 stay"


def test_sizes_are_what_is_stored_or_marked_as_volumes(fleet: Fleet) -> None:
    full, unknown = fleet.ami(), fleet.ami("other")
    (snapshot,) = fleet.held(full)
    fleet.row("snapshots", snapshot).blocks = dict.fromkeys(range(100), b"x" * 32)
    (pending,) = fleet.held(unknown)
    fleet.row("snapshots", pending).seconds = 1e12  # AWS tells a snapshot's size when it is complete
    plan = fleet.plan()
    assert {one.resource_id: one.stored_bytes for one in plan.going} == {full: 100 * 524_288, unknown: None}
    assert "50.0 MiB stored, 1 GiB of volumes whose stored size AWS does not tell" in str(plan)
    assert [row[5] for row in plan.show(going=True).rows] == ["50.0 MiB", "1 GiB volume"]


def test_a_plan_shows_itself(fleet: Fleet) -> None:
    ami = fleet.ami(Description="<b>web</b>", tags={tagging.IMAGE: "web", tagging.DIGEST: "d", "k": "<b>"})
    plan = fleet.plan()
    assert ami in str(plan)
    assert "1 AMI, 0 B stored" in plan._repr_html_()
    assert "<b>" not in plan.show(going=True)._repr_html_()
    frame = plan.frame()
    assert list(frame["action"]) == ["retire"]
    assert len(frame["fingerprint"][0]) == 16
