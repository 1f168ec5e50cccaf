"""Retire, delete and restore AMIs in the sandbox, and check what is recorded."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.audit.retirement.fleet import OTHER_ACCOUNT, REGION, Fleet, why
from tests.support import finish
from vmsnix_ops import errors
from vmsnix_ops.audit.retirement.decisions import ELSEWHERE
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


# Retire, delete, restore


def test_a_retired_ami_is_private_deprecated_disabled_and_tagged(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.share(ami, OTHER_ACCOUNT)
    (snapshot,) = fleet.snapshots_of(ami)
    fleet.share_snapshot(snapshot)
    result = fleet.apply(allow_shared=True)
    assert [one.outcome for one in result.outcomes] == ["changed"]
    image = fleet.image(ami)
    assert (image["State"], image["Public"], fleet.permissions(ami)) == ("disabled", False, [])
    assert image["DeprecationTime"]
    tags = tagging.to_dict(image["Tags"])
    assert tags[tagging.SHARED_WITH] == OTHER_ACCOUNT
    assert tags[tagging.RETIRED_BY] == result.plan.run.run_id
    assert fleet.snapshot_permissions(snapshot) == []
    assert snapshot in fleet.snapshots()


@pytest.mark.parametrize(("others", "error"), [(0, errors.RunFailedError), (1, errors.PartialError)])
def test_a_selected_ami_that_a_rule_keeps_fails_the_run(
    fleet: Fleet, others: int, error: type[errors.VmsnixError]
) -> None:
    kept = fleet.ami("kept", days=1)
    amis = [kept, *(fleet.ami(f"old-{number}") for number in range(others))]
    dry = fleet.plan(amis=amis)
    assert [one.resource_id for one in dry.planned] == amis[1:]
    result = fleet.apply(amis=amis)
    with pytest.raises(error, match=f"{kept}: created"):
        finish(result)
    again = fleet.apply(amis=amis[1:] or [kept], min_age_days=0)
    finish(again)  # an AMI that is retired already is no failure


def test_a_retired_ami_is_deleted_with_its_snapshots_after_the_retention_period(fleet: Fleet) -> None:
    ami, other = fleet.ami(devices=3), fleet.ami("other", days=1)
    kept = fleet.snapshots_of(other)
    assert len(fleet.snapshots_of(ami)) == 3
    fleet.apply(retention_days=14)
    soon = fleet.plan(now=fleet.later(13))
    assert "can be restored until" in why(soon, ami)
    result = fleet.apply(now=fleet.later(15), min_age_days=30)
    assert [one.outcome for one in result.outcomes] == ["deleted"]
    assert fleet.amis() == {other: "available"}
    assert fleet.snapshots() == set(kept)
    finish(result)


def test_a_snapshot_without_our_tag_is_neither_changed_nor_deleted(fleet: Fleet) -> None:
    """The snapshot of a data volume may come from elsewhere, also if an AMI of ours uses it."""
    foreign = fleet.snapshot(tags={"Name": "payroll"})
    fleet.share_snapshot(foreign)
    ami = fleet.ami(snapshots=(fleet.snapshot(tags={tagging.DIGEST: "x"}), foreign), days=60)
    plan = fleet.plan(allow_shared=True)
    (one,) = plan.planned
    assert one.kept_snapshots == ((foreign, f"not published by vmsnix: it has no tag {tagging.DIGEST}"),)
    plan.apply()
    fleet.apply(now=fleet.later(), min_age_days=30, allow_shared=True)
    assert ami not in fleet.amis()
    assert fleet.snapshots() == {foreign}
    row = fleet.row("snapshots", foreign)
    assert row.tags == {"Name": "payroll"}
    assert fleet.snapshot_permissions(foreign) == [{"UserId": OTHER_ACCOUNT}]


def test_an_ami_with_a_snapshot_of_another_account_is_retired_and_deleted(fleet: Fleet) -> None:
    """Only its owner may read the permissions of a snapshot."""
    theirs = fleet.aws.other_account(OTHER_ACCOUNT).client("ec2", REGION)
    volume = theirs.create_volume(AvailabilityZone=f"{REGION}a", Size=1, VolumeType="gp3")["VolumeId"]
    fleet.aws.clock.advance(60)
    foreign = theirs.create_snapshot(VolumeId=volume)["SnapshotId"]
    fleet.aws.clock.advance(3600)
    theirs.modify_snapshot_attribute(
        SnapshotId=foreign,
        Attribute="createVolumePermission",
        OperationType="add",
        UserIds=[fleet.aws.account],
    )
    fleet.fail("ec2:DescribeSnapshotAttribute", "AuthFailure", where={"SnapshotId": foreign})
    ami = fleet.ami(snapshots=(fleet.snapshot(tags={tagging.DIGEST: "x"}), foreign), days=60)
    (one,) = fleet.apply().outcomes
    assert (one.outcome, one.problem) == ("changed", "")
    assert fleet.amis() == {ami: "disabled"}
    (one,) = fleet.apply(now=fleet.later(), min_age_days=30).outcomes
    assert (one.outcome, one.problem) == ("deleted", "")
    (kept,) = theirs.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert kept["SnapshotId"] == foreign


def test_a_snapshot_that_another_ami_needs_is_kept(fleet: Fleet) -> None:
    shared = fleet.snapshot(tags={tagging.DIGEST: "x"})
    own = fleet.snapshot(tags={tagging.DIGEST: "y"})
    going = fleet.ami(snapshots=(shared, own), days=60)
    staying = fleet.ami(snapshots=(shared,), days=1)
    plan = fleet.plan()
    (one,) = plan.planned
    assert one.kept_snapshots == ((shared, f"{staying} needs it"),)
    plan.apply()
    fleet.apply(now=fleet.later(), min_age_days=30)
    assert fleet.amis() == {staying: "available"}
    assert fleet.snapshots() == {shared}
    assert going not in fleet.amis()


def test_a_snapshot_of_two_amis_is_deleted_with_the_last(fleet: Fleet) -> None:
    shared = fleet.snapshot(tags={tagging.DIGEST: "x"})
    first, last = fleet.ami(snapshots=(shared,), days=61), fleet.ami(snapshots=(shared,), days=60)
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    assert {one.resource_id: one.snapshots for one in plan.planned} == {first: (), last: (shared,)}
    plan.apply()
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


def test_deleting_waits_while_aws_still_counts_the_ami_of_a_snapshot(fleet: Fleet) -> None:
    fleet.ami()
    fleet.apply()
    message = "The snapshot is currently in use by ami-0123456789abcdef0"
    fleet.fail("ec2:DeleteSnapshot", "InvalidSnapshot.InUse", 400, nth=[1, 2], message=message)
    assert [one.outcome for one in fleet.apply(now=fleet.later()).outcomes] == ["deleted"]
    assert fleet.snapshots() == set()


def test_an_ami_used_again_in_the_retention_period_is_not_deleted(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    fleet.client("ssm").put_parameter(Name="/theirs", Value=ami, Type="String")
    plan = fleet.plan(now=fleet.later())
    assert "in use: parameter /theirs" in why(plan, ami)


def test_a_retired_ami_with_a_locked_snapshot_is_not_deleted(fleet: Fleet) -> None:
    ami, orphan = fleet.ami(devices=2), fleet.snapshot(tags={tagging.DIGEST: "d"})
    data = fleet.snapshots_of(ami)[1]
    for name in (data, orphan):
        fleet.ec2.lock_snapshot(SnapshotId=name, LockMode="governance", LockDuration=90)
    assert [one.outcome for one in fleet.apply().outcomes] == ["changed", "changed"]
    plan = fleet.plan(now=fleet.later())
    assert f"{data} is locked (governance, until" in why(plan, ami)
    assert f"{orphan} is locked (governance, until" in why(plan, orphan)
    for name in (data, orphan):
        fleet.ec2.unlock_snapshot(SnapshotId=name)
    assert [one.outcome for one in fleet.apply(now=fleet.later()).outcomes] == ["deleted", "deleted"]


def test_deregistration_protection_after_the_plan_skips_the_ami(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    plan = fleet.plan(now=fleet.later())
    message = "The image is protected from deregistration."
    fleet.fail("ec2:DeregisterImage", "OperationNotPermitted", 400, message=message)
    result = plan.apply()
    assert [one.outcome for one in result.outcomes] == ["skipped"]
    assert ami in fleet.amis()
    assert tagging.DELETING not in fleet.tags(ami)  # or nobody could restore the AMI
    assert len(fleet.snapshots()) == 1
    with pytest.raises(errors.VmsnixError, match="protected from deregistration"):
        finish(result)


def test_restoring_restores_permissions_and_deprecation_date(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.share(ami, OTHER_ACCOUNT, "111122223333")
    (snapshot,) = fleet.snapshots_of(ami)
    fleet.share_snapshot(snapshot)
    date = (datetime.now(UTC) + timedelta(days=100)).replace(second=0, microsecond=0)
    fleet.ec2.enable_image_deprecation(ImageId=ami, DeprecateAt=date)
    before = fleet.image(ami)
    fleet.apply(allow_shared=True)
    result = fleet.apply(action="restore")
    assert [one.outcome for one in result.outcomes] == ["changed"]
    after = fleet.image(ami)
    assert after == before
    assert fleet.permissions(ami) == [{"UserId": "111122223333"}, {"UserId": OTHER_ACCOUNT}]
    assert fleet.snapshot_permissions(snapshot) == [{"UserId": OTHER_ACCOUNT}]
    assert fleet.plan(action="restore").planned == ()


def test_restoring_an_ami_without_deprecation_date_removes_the_date(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    fleet.apply(action="restore", amis=[ami])
    image = fleet.image(ami)
    assert image.get("DeprecationTime") is None
    assert not [name for name in fleet.tags(ami) if name.startswith("vmsnix:retired")]


def test_restoring_an_ami_that_was_disabled_before_keeps_it_disabled(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.ec2.disable_image(ImageId=ami)
    (snapshot,) = fleet.snapshots_of(ami)
    fleet.share_snapshot(snapshot)
    before = fleet.image(ami)
    fleet.apply(allow_shared=True)
    assert "can be restored until" in why(fleet.plan(), ami)
    assert fleet.tags(ami)[tagging.STATE_BEFORE] == "disabled"
    plan = fleet.plan(action="restore")
    assert "remains disabled, as before" in why(plan, ami)
    assert [(one.outcome, one.detail) for one in plan.apply().outcomes] == [
        ("changed", "disabled, as before")
    ]
    after = fleet.image(ami)
    assert after == before
    assert fleet.snapshot_permissions(snapshot) == [{"UserId": OTHER_ACCOUNT}]


def test_restoring_reports_a_missing_snapshot(fleet: Fleet) -> None:
    ami = fleet.ami(devices=2)
    data = fleet.snapshots_of(ami)[1]
    fleet.apply()
    fleet.remove("snapshots", data)
    assert f"{data}: {ELSEWHERE}" in why(fleet.plan(action="restore"), ami)
    plan = fleet.plan(now=fleet.later())
    assert dict(plan.planned[0].kept_snapshots) == {data: ELSEWHERE}
    assert [one.outcome for one in plan.apply().outcomes] == ["deleted"]
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


def test_the_retention_period_starts_when_the_plan_is_applied(fleet: Fleet) -> None:
    ami, orphan = fleet.ami(), fleet.snapshot(tags={tagging.DIGEST: "d"})
    plan = fleet.plan(now=datetime.now(UTC) - timedelta(days=20), retention_days=14)
    plan.apply()
    soon = fleet.plan(now=fleet.later(13))
    assert "can be restored until" in why(soon, ami)
    assert "can be restored until" in why(soon, orphan)


def test_an_unreadable_tag_fails_only_its_ami(fleet: Fleet) -> None:
    spoiled, whole = fleet.ami(days=90), fleet.ami(days=80)
    fleet.apply()
    fleet.ec2.create_tags(Resources=[spoiled], Tags=[{"Key": tagging.SHARED_WITH, "Value": "who knows"}])
    result = fleet.apply(action="restore")
    assert [one.outcome for one in result.outcomes] == ["failed", "changed"]
    assert "'who' is not an account or an organization" in result.outcomes[0].detail
    assert fleet.amis()[whole] == "available"


def test_sharing_with_fifty_accounts_is_restored(fleet: Fleet) -> None:
    ami = fleet.ami()
    many = [f"{number:012d}" for number in range(100, 150)]
    fleet.share(ami, *many)
    fleet.apply(allow_shared=True)
    fleet.apply(action="restore")
    assert sorted(one["UserId"] for one in fleet.permissions(ami)) == many


def test_an_ami_enabled_by_hand_gets_a_new_retention_period(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    fleet.ec2.enable_image(ImageId=ami)
    plan = fleet.plan(now=fleet.later())
    assert why(plan, ami).startswith("retire")
    plan.apply()
    assert fleet.amis() == {ami: "disabled"}
    assert "can be restored until" in why(fleet.plan(now=fleet.later(25)), ami)


def test_a_second_retirement_keeps_what_the_first_recorded(fleet: Fleet) -> None:
    """Both groups of accounts and the first date are restored after it was enabled and shared by hand."""
    ami, first, second = fleet.ami(), "101010101010", "202020202020"
    date = datetime(2031, 5, 1, tzinfo=UTC)
    fleet.ec2.enable_image_deprecation(ImageId=ami, DeprecateAt=date)
    fleet.share(ami, first)
    fleet.apply(allow_shared=True)
    fleet.ec2.enable_image(ImageId=ami)
    fleet.share(ami, second)
    fleet.apply(allow_shared=True)
    assert fleet.permissions(ami) == []
    fleet.apply(action="restore")
    assert sorted(one["UserId"] for one in fleet.permissions(ami)) == [first, second]
    image = fleet.image(ami)
    assert image["DeprecationTime"].startswith("2031-05-01")


def test_publishing_a_retired_image_names_the_command_that_restores_it(fleet: Fleet) -> None:
    ami = fleet.ami(digest="d")
    wanted = images.Registration(f"web-{fleet.number}", "x86_64", "", "/dev/sda1", fleet.snapshots_of(ami)[0])
    fleet.apply()
    with pytest.raises(errors.RegistrationError, match=f"--action restore --amis {ami}"):
        images.register_ami(fleet.ec2, wanted, digest="d")


# Orphans, and AMIs that were deleted in part


def test_snapshots_of_an_ami_deregistered_by_hand_are_deleted(fleet: Fleet) -> None:
    ami = fleet.ami(devices=2)
    snapshots = fleet.snapshots_of(ami)
    fleet.apply()
    fleet.ec2.deregister_image(ImageId=ami)
    plan = fleet.plan(now=fleet.later())
    assert {one.resource_id for one in plan.planned} == set(snapshots)
    assert why(plan, snapshots[1]).startswith(
        f"delete: its AMI {ami} no longer exists; retention period ended on"
    )
    plan.apply()
    assert fleet.snapshots() == set()


def test_an_orphan_is_deleted_after_the_retention_period(fleet: Fleet) -> None:
    ours = fleet.snapshot(tags={tagging.DIGEST: "d", tagging.IMAGE: "web"})
    young = fleet.snapshot(days=1, tags={tagging.DIGEST: "e"})
    theirs = fleet.snapshot()
    plan = fleet.plan()
    assert [one.resource_id for one in plan.decisions] == [ours, young]
    assert "a publish may still need it" in why(plan, young)
    assert [one.outcome for one in plan.apply().outcomes] == ["changed"]
    assert fleet.plan().planned == ()
    fleet.apply(now=fleet.later(), images=["web"])
    assert fleet.snapshots() == {young, theirs}


def test_a_restored_orphan_is_retired_again_before_it_is_deleted(fleet: Fleet) -> None:
    ours = fleet.snapshot(tags={tagging.DIGEST: "d"})
    fleet.apply()
    fleet.apply(action="restore")
    assert why(fleet.plan(now=fleet.later()), ours).startswith("retire")


def test_a_failed_direct_upload_is_deleted(fleet: Fleet) -> None:
    ebs = fleet.client("ebs")
    started = ebs.start_snapshot(VolumeSize=1, Tags=[{"Key": tagging.DIGEST, "Value": "d"}])["SnapshotId"]
    assert "a publish may still need it" in why(fleet.plan(), started)
    fleet.row("snapshots", started).started = datetime.now(UTC) - timedelta(days=10)
    fleet.aws.clock.advance(2 * 3600)  # AWS fails an upload after an hour without a block
    plan = fleet.plan()
    assert why(plan, started) == "delete: state error: its upload or import did not complete"
    plan.apply()
    assert fleet.snapshots() == set()


def test_orphans_are_kept_without_the_option(fleet: Fleet) -> None:
    fleet.snapshot(tags={tagging.DIGEST: "d"})
    assert fleet.plan(orphans=False).decisions == ()


def test_a_failed_copy_is_deleted_at_once_with_its_snapshot(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.row("images", ami).failure = "Given key ID is not accessible"
    plan = fleet.plan()
    assert why(plan, ami).startswith("delete: it never became available")
    plan.apply()
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


# What is recorded


def test_the_tables_record_what_was_done_when_and_why(fleet: Fleet) -> None:
    ami = fleet.ami()
    (snapshot,) = fleet.snapshots_of(ami)
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


def test_history_retirements_lists_retirements(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    ami = fleet.ami()
    fleet.apply()
    capsys.readouterr()
    assert main(["history", "retirements", "--resource-id", ami, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["resource_id"], row["action"]) == (ami, "retired")
    assert main(["history", "retirements"]) == 0
    assert ami in capsys.readouterr().out


def test_result_json_lists_the_outcome_of_each_resource(fleet: Fleet) -> None:
    ami = fleet.ami()
    result = fleet.apply()
    finish(result)
    written = json.loads((result.plan.run.folder / "result.json").read_text())
    assert (written["status"], written["planned"], written["changed"]) == ("done", 1, 1)
    assert [(one["resource_id"], one["action"]) for one in written["outcomes"]] == [(ami, "retire")]
    assert ami in Path(written["plan"]).read_text()


def test_a_long_plan_is_shown_in_part(fleet: Fleet) -> None:
    for days in (90, 80, 70):
        fleet.ami(days=days)
    plan = fleet.plan(keep_last=3)
    assert len(plan.show_kept(most=2)) == 2
    assert plan.show_kept(most=2).title == "3 kept; the first 2 are shown, plan.csv has all"
    assert plan.show_kept().title == "3 kept"


def test_sizes_are_stored_bytes_or_marked_as_volumes(fleet: Fleet) -> None:
    full, unknown = fleet.ami(), fleet.ami("other")
    (snapshot,) = fleet.snapshots_of(full)
    fleet.row("snapshots", snapshot).blocks = dict.fromkeys(range(100), b"x" * 32)
    (pending,) = fleet.snapshots_of(unknown)
    fleet.row("snapshots", pending).seconds = 1e12  # AWS reports the size of a complete snapshot
    plan = fleet.plan()
    assert {one.resource_id: one.stored_bytes for one in plan.planned} == {full: 100 * 524_288, unknown: None}
    assert "50.0 MiB stored, 1 GiB of volumes whose stored size AWS does not report" in str(plan)
    assert {row[5] for row in plan.show_planned().rows} == {"50.0 MiB", "1 GiB volume"}


def test_a_plan_is_shown_as_text_html_and_frame(fleet: Fleet) -> None:
    ami = fleet.ami(Description="<b>web</b>", tags={tagging.IMAGE: "web", tagging.DIGEST: "d", "k": "<b>"})
    plan = fleet.plan()
    assert ami in str(plan)
    assert "1 AMI, 0 B stored" in plan._repr_html_()
    assert "<b>" not in plan.show_planned()._repr_html_()
    frame = plan.frame()
    assert list(frame["action"]) == ["retire"]
    assert len(frame["fingerprint"][0]) == 16
