"""Which AMIs a plan retires and keeps, and what it refuses, in the sandbox."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.audit.retirement.fleet import OTHER, OTHER_ACCOUNT, REGION, Fleet, why
from tests.support import finish
from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging

# What is kept


def test_every_ami_has_a_decision_and_a_reason(fleet: Fleet) -> None:
    old, new, fresh = fleet.ami(days=90), fleet.ami(days=80), fleet.ami("other", days=2)
    foreign = fleet.ami("theirs", tags={})
    plan = fleet.plan(keep_last=1)
    assert {one.resource_id for one in plan.decisions} == {old, new, fresh, foreign}
    assert all(one.reasons for one in plan.decisions)
    assert why(plan, old).startswith("retire: created 90 days ago; 1 newer AMI; nothing uses it")
    assert why(plan, new) == "keep: one of the newest 1 of web (x86_64)"
    assert why(plan, fresh) == (
        "keep: one of the newest 1 of other (x86_64); created 2 days ago, less than 30 days"
    )
    assert why(plan, foreign) == "keep: not published by vmsnix: it has no tag vmsnix:digest"


def test_the_newest_amis_of_each_image_and_architecture_are_kept(fleet: Fleet) -> None:
    made = [fleet.ami(days=days) for days in (90, 80, 70)]
    arm = fleet.ami(days=95, Architecture="arm64", BootMode="uefi")
    plan = fleet.plan(keep_last=2)
    assert [one.resource_id for one in plan.planned] == [made[0]]
    assert "one of the newest 2 of web (arm64)" in why(plan, arm)


def test_an_ami_that_vmsnix_did_not_publish_does_not_count_as_newest(fleet: Fleet) -> None:
    ours = fleet.ami(days=90)
    fleet.ami(days=80, tags={tagging.IMAGE: "web"})
    assert why(fleet.plan(keep_last=1), ours) == "keep: one of the newest 1 of web (x86_64)"


def test_a_disabled_ami_does_not_count_as_newest(fleet: Fleet) -> None:
    usable, disabled = fleet.ami(days=90), fleet.ami(days=80)
    fleet.ec2.disable_image(ImageId=disabled)
    assert why(fleet.plan(keep_last=1), usable) == "keep: one of the newest 1 of web (x86_64)"


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
    assert plan.planned == ()


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


def test_a_channel_keeps_its_current_and_its_last_amis(fleet: Fleet) -> None:
    made = [fleet.ami(days=90 - n) for n in range(4)]
    fleet.set_parameter("/vmsnix/web/stable", *made[:3])
    plan = fleet.plan(keep_last=2)
    assert "in use: parameter /vmsnix/web/stable" in why(plan, made[2])
    assert "one of the last 2 of /vmsnix/web/stable" in why(plan, made[1])
    assert [one.resource_id for one in plan.planned] == [made[0]]


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
    # A region that was not read keeps nothing; the copy does not need its source.
    assert why(fleet.plan(), ami).startswith("retire")


def test_a_shared_ami_is_kept_unless_allow_shared(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.share(ami, OTHER_ACCOUNT)
    assert f"shared with {OTHER_ACCOUNT}, who may use it" in why(fleet.plan(), ami)
    assert f"shared with {OTHER_ACCOUNT}, who will lose access" in why(fleet.plan(allow_shared=True), ami)


@pytest.mark.parametrize("days", [0, 20])
def test_an_ami_that_a_run_restores_is_kept(fleet: Fleet, days: int) -> None:
    ami = fleet.ami()
    if days:
        fleet.apply()
    fleet.ec2.create_tags(Resources=[ami], Tags=[{"Key": tagging.RESTORING, "Value": "run-1"}])
    found = why(fleet.plan(now=fleet.later(days)), ami)
    assert found == "keep: the run run-1 is restoring it, or was interrupted: restore it"


def test_a_failed_ami_is_deleted_at_the_age_of_an_orphan(fleet: Fleet) -> None:
    old, new = fleet.ami(days=8), fleet.ami(days=2)
    for ami in (old, new):
        fleet.row("images", ami).failure = "the copy failed"
    plan = fleet.plan(orphan_days=7, min_age_days=30, keep_last=3)
    assert why(plan, old) == "delete: it never became available; created 8 days ago"
    assert why(plan, new) == "keep: created 2 days ago, less than 7 days"


def test_an_orphan_that_a_run_restores_is_kept(fleet: Fleet) -> None:
    own = {tagging.IMAGE: "web", tagging.DIGEST: "d", tagging.RESTORING: "run-1"}
    snapshot = fleet.snapshot(tags=own)
    found = why(fleet.plan(), snapshot)
    assert found == "keep: the run run-1 is restoring it, or was interrupted: restore it"


def test_a_recently_launched_ami_is_kept(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.row("images", ami).last_launched = datetime.now(UTC) - timedelta(days=5)
    assert "launched 5 days ago, less than 30 days" in why(fleet.plan(), ami)
    assert "last launched 5 days ago" in why(fleet.plan(launched_days=3), ami)


def test_a_protected_ami_is_kept(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.ec2.enable_image_deregistration_protection(ImageId=ami, WithCooldown=False)
    assert "protected from deregistration (enabled-without-cooldown)" in why(fleet.plan(), ami)


def test_the_oldest_amis_are_retired_up_to_the_limit(fleet: Fleet) -> None:
    young, old = fleet.ami(days=50), fleet.ami(days=60)
    plan = fleet.plan(max_count=1)
    assert [one.resource_id for one in plan.planned] == [old]
    assert "over the limit of 1 per run" in why(plan, young)


def test_amis_are_read_one_by_one_only_up_to_the_limit(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.audit.retirement.decisions.MIN_BATCH", 2)
    made = [fleet.ami(days=90 - n) for n in range(6)]
    fleet.share(made[0], OTHER_ACCOUNT)
    fleet.aws.calls.clear()
    plan = fleet.plan(max_count=2)
    assert [one.resource_id for one in plan.planned] == made[1:3]
    assert len(fleet.aws.calls.matching("ec2:DescribeImageAttribute")) == 4


def test_amis_that_are_always_kept_do_not_use_up_the_limit(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest have copies in use in another region, which is known only after all regions were read."""
    monkeypatch.setattr("vmsnix_ops.audit.retirement.decisions.MIN_BATCH", 1)
    there = fleet.client("ec2", OTHER)
    for number in range(2):
        fleet.ami(days=90 - number, digest=f"same{number}")
        copy = fleet.ami(digest=f"same{number}", region=OTHER)
        there.run_instances(ImageId=copy, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    lent, newer = fleet.ami(days=60), fleet.ami(days=50)
    fleet.share(lent, OTHER_ACCOUNT)
    plan = fleet.plan(regions=[REGION, OTHER], max_count=1, launched_days=0)
    assert [one.resource_id for one in plan.planned] == [newer]
    assert [one.outcome for one in plan.apply().outcomes] == ["changed"]


def test_the_oldest_amis_of_all_regions_are_retired_first(fleet: Fleet) -> None:
    made = [fleet.ami(days=days, region=region) for days, region in ((90, OTHER), (80, REGION), (70, OTHER))]
    plan = fleet.plan(regions=[REGION, OTHER], max_count=2)
    assert {one.resource_id for one in plan.planned} == set(made[:2])


def test_orphans_are_read_one_by_one_only_up_to_the_limit(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmsnix_ops.audit.retirement.decisions.MIN_BATCH", 1)
    old, lent, young = (fleet.snapshot(days=days, tags={tagging.DIGEST: "d"}) for days in (90, 80, 1))
    fleet.share_snapshot(lent)
    fleet.aws.calls.clear()
    plan = fleet.plan(max_count=1)
    assert [one.resource_id for one in plan.planned] == [old]
    assert len(fleet.aws.calls.matching("ec2:DescribeSnapshotAttribute")) == 1
    assert f"shared with {OTHER_ACCOUNT}, who may use it" in why(fleet.plan(), lent)
    assert why(fleet.plan(), young).startswith("keep")


def test_an_ami_whose_snapshot_is_shared_is_kept(fleet: Fleet) -> None:
    ami = fleet.ami(devices=2)
    data = fleet.snapshots_of(ami)[1]
    fleet.share_snapshot(data)
    assert f"shared with {OTHER_ACCOUNT} ({data} only), who may use it" in why(fleet.plan(), ami)
    assert f"shared with {OTHER_ACCOUNT} ({data} only), who will lose access" in why(
        fleet.plan(allow_shared=True), ami
    )
    fleet.share(ami, OTHER_ACCOUNT)
    assert f"shared with {OTHER_ACCOUNT}, who may use it" in why(fleet.plan(), ami)


def test_an_ami_that_is_being_copied_is_kept(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    ami = fleet.ami()
    monkeypatch.setattr(fleet.aws.clock, "speed", 1)
    there = fleet.client("ec2", OTHER)
    copy = there.copy_image(Name="copy", SourceImageId=ami, SourceRegion=REGION)["ImageId"]
    plan = fleet.plan(regions=[REGION, OTHER])
    assert f"it is being copied to {copy} in {OTHER}" in why(plan, ami)
    fleet.aws.clock.advance(24 * 3600)
    assert why(fleet.plan(regions=[REGION, OTHER]), ami).startswith("retire")


def test_only_selected_amis_are_retired(fleet: Fleet) -> None:
    web, other = fleet.ami(), fleet.ami("other")
    assert [one.resource_id for one in fleet.plan(images=["web"]).planned] == [web]
    assert [one.resource_id for one in fleet.plan(amis=[other]).planned] == [other]


# Invalid input


def test_an_ami_of_another_account_is_refused(fleet: Fleet) -> None:
    ami = fleet.ami()
    image = fleet.row("images", ami)
    image.owner, image.permissions = OTHER_ACCOUNT, [{"UserId": fleet.aws.account}]
    with pytest.raises(errors.ParameterError, match=f"belongs to account {OTHER_ACCOUNT}"):
        fleet.plan(amis=[ami])
    with pytest.raises(errors.ParameterError, match="no AMI with this ID"):
        fleet.plan(amis=["ami-0123456789abcdef0"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep_last": -1}, "keep_last: -1 is not between 0 and 36500"),
        ({"retention_days": float("nan")}, "retention_days: nan is not between"),
        ({"action": "destroy"}, "retire or restore"),
        ({"regions": ["eu-wset-1"]}, "eu-west-1"),
        ({"amis": ["web-1"]}, "'web-1' is not an AMI ID"),
    ],
)
def test_invalid_parameters_are_refused(fleet: Fleet, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.VmsnixError, match=message):
        fleet.plan(**wrong)


@pytest.mark.parametrize("confirm", ["", "2", "yes", OTHER_ACCOUNT])
@pytest.mark.variants
def test_nothing_happens_without_the_right_confirmation(fleet: Fleet, confirm: str) -> None:
    ami = fleet.ami()
    with pytest.raises(
        errors.ParameterError,
        match=f"number of resources \\(1\\) or the account ID \\({fleet.aws.account}\\)",
    ):
        fleet.apply(confirm=confirm)
    assert fleet.amis() == {ami: "available"}
    assert fleet.apply(confirm="1").outcomes[0].outcome == "changed"


def test_a_fingerprint_confirms_only_the_plan_that_was_checked(fleet: Fleet) -> None:
    ami = fleet.ami(days=60)
    looked_at = fleet.plan(dry_run=True)
    assert looked_at.fingerprint in str(looked_at)
    assert fleet.plan(now=fleet.later(2)).fingerprint == looked_at.fingerprint
    fleet.share(ami, OTHER_ACCOUNT)
    other = fleet.ami("other", days=50)
    late = fleet.plan(confirm=looked_at.fingerprint)
    assert [one.resource_id for one in late.planned] == [
        other
    ]  # one, as before: the number would not show the difference
    with pytest.raises(errors.StalePlanError, match=f"the plan is now {late.fingerprint}"):
        late.apply()
    assert set(fleet.amis().values()) == {"available"}
    fleet.apply(confirm=late.fingerprint)
    assert fleet.amis() == {ami: "available", other: "disabled"}


def test_a_dry_run_changes_nothing(fleet: Fleet) -> None:
    ami = fleet.ami()
    result = fleet.apply(dry_run=True)
    assert fleet.amis() == {ami: "available"}
    assert [(one.decision.resource_id, one.outcome) for one in result.outcomes] == [(ami, "planned")]
    assert "dry run" in str(result.plan)
    assert "(dry run)" in str(result)
    assert "planned" in str(result.show_each())
    assert (result.error, result.as_dict()["status"]) == (None, "done")


def test_an_account_that_is_not_allowed_is_refused(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSNIX_ALLOWED_ACCOUNTS", OTHER_ACCOUNT)
    with pytest.raises(errors.CredentialsError, match=OTHER_ACCOUNT):
        fleet.plan()


# Sources that cannot be read


@pytest.mark.parametrize(
    "operation",
    [
        "autoscaling:DescribeAutoScalingGroups",
        "ec2:DescribeLaunchTemplateVersions",
        "ec2:DescribeInstances",
        "ec2:DescribeImageReferences",
        "ec2:DescribeImageAttribute",
        "ec2:DescribeSnapshotAttribute",
        "ec2:DescribeLockedSnapshots",
        "ssm:DescribeParameters",
    ],
)
def test_nothing_is_retired_if_a_source_of_references_cannot_be_read(fleet: Fleet, operation: str) -> None:
    ami = fleet.ami()
    template = {"ImageId": fleet.ami(), "InstanceType": "t3.micro"}
    fleet.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=template)
    code = "AccessDenied" if operation.startswith("autoscaling") else "UnauthorizedOperation"
    fleet.fail(operation, code)
    plan = fleet.plan()
    assert plan.planned == ()
    assert "usage unknown" in why(plan, ami)
    with pytest.raises(errors.VmsnixError, match=f"Nothing is retired or deleted in {REGION}"):
        finish(plan.apply())


def test_a_region_that_cannot_be_read_does_not_stop_the_others(fleet: Fleet) -> None:
    here, there = fleet.ami(), fleet.ami(region=OTHER)
    fleet.fail("autoscaling:DescribeAutoScalingGroups", "AccessDenied", where={"region": OTHER})
    result = fleet.apply(regions=[REGION, OTHER])
    table = result.frame().set_index("region")
    assert table.loc[REGION, "changed"] == 1
    assert table.loc[OTHER, "planned"] == 0
    assert "AccessDenied" in table.loc[OTHER, "why"]
    assert fleet.amis(OTHER) == {there: "available"}
    assert fleet.amis() == {here: "disabled"}
    with pytest.raises(errors.PartialError) as caught:
        finish(result)
    assert caught.value.exit_code == 3
    assert json.loads((result.plan.run.folder / "result.json").read_text())["status"] == "partial"
