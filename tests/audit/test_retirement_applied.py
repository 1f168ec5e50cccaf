"""Retire, remove and restore AMIs, and what is remembered of it, held against the sandbox."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.fleet import FRIEND, OTHER, REGION, Fleet, why
from vmsnix_ops import errors
from vmsnix_ops.audit import retirement, retirement_apply
from vmsnix_ops.aws import images
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.cli import main
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd


def recorded() -> pd.DataFrame:
    return open_tables(load()).read("retirements")


# Retire, remove, restore


def test_a_retired_ami_is_private_deprecated_disabled_and_says_so(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.share(ami, FRIEND)
    (snapshot,) = fleet.held(ami)
    fleet.lend(snapshot)
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
            "message": "The snapshot is currently in use by ami-0123456789abcdef0",
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


def test_an_ami_stays_retired_while_a_snapshot_of_it_is_locked(fleet: Fleet) -> None:
    ami, orphan = fleet.ami(devices=2), fleet.snapshot(tags={tagging.DIGEST: "d"})
    data = fleet.held(ami)[1]
    for name in (data, orphan):
        fleet.ec2.lock_snapshot(SnapshotId=name, LockMode="governance", LockDuration=90)
    assert [one.outcome for one in fleet.apply().outcomes] == ["retired", "retired"]
    plan = fleet.plan(now=fleet.later())
    assert f"{data} is locked (governance, until" in why(plan, ami)
    assert f"{orphan} is locked (governance, until" in why(plan, orphan)
    for name in (data, orphan):
        fleet.ec2.unlock_snapshot(SnapshotId=name)
    assert [one.outcome for one in fleet.apply(now=fleet.later()).outcomes] == ["deleted", "deleted"]


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
    fleet.lend(snapshot)
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


def test_an_ami_that_somebody_disabled_before_is_restored_as_it_was(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.ec2.disable_image(ImageId=ami)
    (snapshot,) = fleet.held(ami)
    fleet.lend(snapshot)
    (before,) = fleet.ec2.describe_images(ImageIds=[ami], IncludeDisabled=True)["Images"]
    fleet.apply(allow_shared=True)
    assert "can be restored until" in why(fleet.plan(), ami)
    assert fleet.tags(ami)[tagging.STATE_BEFORE] == "disabled"
    plan = fleet.plan(action="restore")
    assert "stays disabled, as it was before" in why(plan, ami)
    assert [(one.outcome, one.detail) for one in plan.apply().outcomes] == [
        ("restored", "disabled, as it was before")
    ]
    (after,) = fleet.ec2.describe_images(ImageIds=[ami], IncludeDisabled=True)["Images"]
    assert after == before
    shared = fleet.ec2.describe_snapshot_attribute(SnapshotId=snapshot, Attribute="createVolumePermission")
    assert shared["CreateVolumePermissions"] == [{"UserId": FRIEND}]


def test_restoring_an_ami_whose_snapshot_is_gone_says_so(fleet: Fleet) -> None:
    ami = fleet.ami(devices=2)
    data = fleet.held(ami)[1]
    fleet.apply()
    del fleet.aws.world.tables.table(fleet.aws.account, REGION, "snapshots")[data]
    assert f"{data} is gone, or another account's" in why(fleet.plan(action="restore"), ami)
    plan = fleet.plan(now=fleet.later())
    assert dict(plan.going[0].kept_snapshots) == {data: "it is another account's, or gone"}
    assert [one.outcome for one in plan.apply().outcomes] == ["deleted"]
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


def test_grace_counts_from_when_an_ami_is_retired_and_not_from_its_plan(fleet: Fleet) -> None:
    ami, orphan = fleet.ami(), fleet.snapshot(tags={tagging.DIGEST: "d"})
    plan = fleet.plan(now=datetime.now(UTC) - timedelta(days=20), grace_days=14)
    plan.apply()
    soon = fleet.plan(now=fleet.later(13))
    assert "can be restored until" in why(soon, ami)
    assert "is kept until" in why(soon, orphan)


def test_a_tag_that_somebody_spoiled_fails_alone(fleet: Fleet) -> None:
    spoiled, whole = fleet.ami(days=90), fleet.ami(days=80)
    fleet.apply()
    fleet.ec2.create_tags(Resources=[spoiled], Tags=[{"Key": tagging.SHARED_WITH, "Value": "who knows"}])
    result = fleet.apply(action="restore")
    assert [one.outcome for one in result.outcomes] == ["failed", "restored"]
    assert "Nobody is called 'who'" in result.outcomes[0].detail
    assert fleet.amis()[whole] == "available"


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


def use(fleet: Fleet, resource_id: str, how: str) -> None:
    """Do with an AMI or a snapshot what keeps it."""
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
    elif how == "lent":
        fleet.lend(*(fleet.held(image) if image else [resource_id]))
    elif how == "locked":
        (held,) = fleet.held(image) if image else [resource_id]
        fleet.ec2.lock_snapshot(SnapshotId=held, LockMode="governance", LockDuration=9)
    elif how == "ami":
        fleet.ami("other", days=1, snapshots=(resource_id,))
    elif how == "import":
        fleet.aws.prepare(bucket="late", region=REGION)
        fleet.client("s3").put_object(Bucket="late", Key="image.raw", Body=bytes(2**20))
        fleet.ec2.import_snapshot(
            DiskContainer={"Format": "RAW", "UserBucket": {"S3Bucket": "late", "S3Key": "image.raw"}},
            TagSpecifications=tagging.specification("import-snapshot-task", {tagging.DIGEST: "d"}),
        )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("launch configuration", "launch-configuration late"),
        ("launch template", "launch-template lt-"),
        ("parameter", "parameter /theirs"),
        ("lent", f"snapshot-shared-with {FRIEND}"),
        ("locked", "snapshot-lock snap-"),
    ],
)
@pytest.mark.parametrize("days", [0, 20])
def test_everything_that_uses_an_ami_is_looked_at_right_before_its_turn(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, how: str, said: str, days: int
) -> None:
    ami = fleet.ami()
    if days:
        fleet.apply()
    state, plan = fleet.amis()[ami], fleet.plan(now=fleet.later(days))
    after_the_check(monkeypatch, lambda: use(fleet, ami, how))
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.amis()[ami]) == ("changed", state)
    assert said in one.detail


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("launch configuration", "launch-configuration late"),
        ("launch template", "launch-template lt-"),
        ("lent", f"shared-with {FRIEND}"),
        ("locked", "snapshot-lock snap-"),
        ("ami", "holds it"),
        ("import", "import was nothing and is of its image under way"),
    ],
)
@pytest.mark.parametrize("days", [0, 20])
def test_everything_that_uses_an_orphan_is_looked_at_right_before_its_turn(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, how: str, said: str, days: int
) -> None:
    orphan = fleet.snapshot(tags={tagging.DIGEST: "d"})
    if days:
        fleet.apply()
    plan = fleet.plan(now=fleet.later(days))
    monkeypatch.setattr(fleet.aws.clock, "speed", 1)  # or an import has ended when it is looked at
    after_the_check(monkeypatch, lambda: use(fleet, orphan, how))
    (one,) = plan.apply().outcomes
    assert one.outcome == "changed"
    assert said in one.detail
    assert orphan in fleet.snapshots()


def after_the_check(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Let something happen when a plan was found to hold, and nothing of it is done yet."""
    check = retirement_apply._check_still_holds

    def checked(plan: retirement.Plan) -> Any:
        found = check(plan)
        meanwhile()
        return found

    monkeypatch.setattr(retirement_apply, "_check_still_holds", checked)


def test_what_cannot_be_looked_at_right_before_its_turn_stays(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami, plan = fleet.ami(), fleet.plan()
    denied = {"op": "autoscaling:*", "do": "error", "code": "AccessDenied", "http": 403}
    after_the_check(monkeypatch, lambda: fleet.aws.faults.add(denied))
    (one,) = plan.apply().outcomes
    assert (one.outcome, fleet.amis()) == ("failed", {ami: "available"})
    assert "Auto Scaling groups" in one.detail


def test_a_snapshot_that_a_launch_uses_lately_stays_when_its_ami_goes(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ami = fleet.ami(devices=2)
    _root, data = fleet.held(ami)
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    after_the_check(monkeypatch, lambda: use(fleet, data, "launch template"))
    (one,) = plan.apply().outcomes
    assert one.outcome == "deleted"
    assert f"{data} stays: launch-template" in one.detail
    assert fleet.snapshots() == {data}


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
    plan = fleet.plan(regions=["ap-east-1", REGION])
    assert [one.resource_id for one in plan.going] == [ami]
    assert list(plan.unread) == ["ap-east-1"]
    with pytest.raises(errors.PartlyDoneError, match="not enabled"):
        retirement.finish(plan.apply())
    with pytest.raises(errors.RegionError, match="ap-east-1 is not enabled"):
        fleet.plan(regions=["ap-east-1"])


# What is done although something else fails


def unwritable(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    append = Tables.append

    def full(tables: Tables, name: str, rows: Any, **more: Any) -> None:
        if name == table:
            raise errors.RecordsError("The table cannot be written.", why="No space left on device.")
        append(tables, name, rows, **more)

    monkeypatch.setattr(Tables, "append", full)


@pytest.mark.parametrize("table", ["retirements", "amis"])
def test_what_is_retired_is_told_where_the_tables_cannot_be_written(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    amis = [fleet.ami(days=90 - n) for n in range(2)]
    orphan = fleet.snapshot(tags={tagging.DIGEST: "d"}, days=30)
    unwritable(monkeypatch, table)
    result = fleet.apply()
    assert [one.outcome for one in result.outcomes] == ["retired"] * 3
    assert set(fleet.amis().values()) == {"disabled"}
    with pytest.raises(errors.PartlyDoneError, match="No space left") as caught:
        retirement.finish(result)
    assert caught.value.exit_code == 3
    written = json.loads((result.plan.run.folder / "result.json").read_text())
    assert (written["status"], written["retired"]) == ("partly", 3)
    told = {one["resource_id"]: one["outcome"] for one in written["outcomes"]}
    assert told == dict.fromkeys([*amis, orphan], "retired")
    assert "No space left" in str(result.show())
    assert "No space left" in str(result.show_each())


def test_nothing_more_is_removed_once_it_cannot_be_written_down(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fleet.ami(days=90), fleet.ami(days=80)
    held = {*fleet.held(first), *fleet.held(second)}
    fleet.apply()
    with monkeypatch.context() as patch:
        unwritable(patch, "retirements")
        result = fleet.apply(now=fleet.later())
    assert [one.outcome for one in result.outcomes] == ["deleted", "skipped"]
    assert "could not be written down" in result.outcomes[0].lacking
    assert "could not be written down" in result.outcomes[1].detail
    assert (fleet.amis(), fleet.snapshots()) == ({second: "disabled"}, held)
    with pytest.raises(errors.PartlyDoneError, match="No space left"):
        retirement.finish(result)
    written = json.loads((result.plan.run.folder / "result.json").read_text())
    assert (written["deleted"], written["skipped"]) == (1, 1)
    assert [one.outcome for one in fleet.apply(now=fleet.later()).outcomes] == ["deleted", "deleted"]
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


def test_a_plan_that_cannot_be_written_hides_no_outcome(fleet: Fleet) -> None:
    fleet.ami()
    result = fleet.apply()
    (result.plan.run.folder / "plan.csv").mkdir()
    with pytest.raises(errors.PartlyDoneError, match=r"plan\.csv could not be written"):
        retirement.finish(result)
    assert json.loads((result.plan.run.folder / "result.json").read_text())["retired"] == 1


def test_one_snapshot_that_aws_does_not_delete_does_not_keep_the_others(fleet: Fleet) -> None:
    ami = fleet.ami(devices=3)
    first, *_others = fleet.held(ami)
    fleet.apply()
    where = {"op": "ec2:DeleteSnapshot", "nth": [1]}
    fleet.aws.faults.add({**where, "do": "error", "code": "OperationNotPermitted", "http": 400})
    result = fleet.apply(now=fleet.later())
    (one,) = result.outcomes
    assert one.outcome == "deleted"
    assert f"{first} stays: Could not delete" in one.lacking
    assert fleet.snapshots() == {first}
    with pytest.raises(errors.PartlyDoneError, match=first):
        retirement.finish(result)
    assert [one.outcome for one in fleet.apply(now=fleet.later()).outcomes] == ["deleted"]
    assert fleet.snapshots() == set()


def test_a_snapshot_with_fast_restore_is_not_waited_for(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    text = "The snapshot is currently enabled for fast restores in us-east-1a."
    fault = {"op": "ec2:DeleteSnapshot", "do": "error", "code": "InvalidSnapshot.InUse", "message": text}
    fleet.aws.faults.add({**fault, "http": 400})
    (one,) = fleet.apply(now=fleet.later()).outcomes
    assert (one.outcome, fleet.amis()) == ("deleted", {})
    assert f"{fleet.snapshots().pop()} stays" in one.lacking
    assert "fast restores" in one.lacking
    assert len(fleet.aws.calls.of("ec2:DeleteSnapshot")) == 1
    assert ami in fleet.plan(now=fleet.later()).going[0].reasons[0]


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
