"""Verification of the records of AMIs against AWS, field by field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.channels.conftest import EUROPE, HOME, OTHER, changes, copies
from tests.support import finish
from vmsnix_ops import errors
from vmsnix_ops.audit import retirement
from vmsnix_ops.audit.sync import sync
from vmsnix_ops.aws import drift as drift_fields
from vmsnix_ops.aws import images
from vmsnix_ops.channels import promote, rollback, verify
from vmsnix_ops.progress import silent
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

    import boto3

    from vmsnix_ops.sandbox import Sandbox

ORGANIZATION = "arn:aws:organizations::012345678901:organization/o-abcdefghij"
DIGEST = "snapshot tag vmsnix:digest"
USUAL: dict[str, Any] = {"dry_run": False, "progress": silent(), "channel": "stable"}


@pytest.fixture
def ami(aws: Sandbox) -> str:
    """An AMI that was promoted to two regions, with sharing, a date and protection."""
    made = make_ami(aws)
    wanted = {"regions": [EUROPE], "share_with": [OTHER], "deprecate_days": 365, "protect": True}
    assert promote.plan(ami=made, **wanted, **USUAL).apply().status == "done"
    return made


def drift(**request: Any) -> dict[str, tuple[str, str]]:
    """Return the differences in the home region: recorded and found value by field."""
    table = verify.check(**request).drift
    here = table[table["region"] == HOME]
    return {row["field"]: (row["recorded"], row["found"]) for row in here.to_dict("records")}


def state(aws: Sandbox, ami: str) -> Any:
    return aws.state.tables.table(aws.account, HOME, "images")[ami]


def test_an_unchanged_ami_has_no_drift(aws: Sandbox, ami: str) -> None:
    before = len(aws.calls)
    report = verify.check()
    assert report.drift.empty
    assert list(report.drift.columns) == list(verify.COLUMNS)
    clean = {"amis": 1, "drifted": 0, "fields": 0, "unread": 0}
    assert {row.pop("region"): row for row in report.regions.to_dict("records")} == {
        HOME: clean,
        EUROPE: clean,
    }
    finish(report)
    calls = list(aws.calls)[before:]
    assert verify.check(regions=["all"]).regions.equals(report.regions)
    assert all(call.operation.startswith(("Describe", "Get")) for call in calls)


def untag(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").delete_tags(Resources=[ami], Tags=[{"Key": "vmsnix:version"}])


def retag(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").create_tags(Resources=[ami], Tags=[{"Key": "Name", "Value": "mine"}])


def share(aws: Sandbox, ami: str) -> None:
    permission = {"Add": [{"UserId": "109876543210"}]}
    aws.client("ec2").modify_image_attribute(ImageId=ami, LaunchPermission=permission)


def unshare_snapshot(aws: Sandbox, ami: str) -> None:
    (snapshot,) = state(aws, ami).snapshot_ids()
    aws.client("ec2").reset_snapshot_attribute(SnapshotId=snapshot, Attribute="createVolumePermission")


def make_snapshot_public(aws: Sandbox, ami: str) -> None:
    (snapshot,) = state(aws, ami).snapshot_ids()
    permission = {"Add": [{"Group": "all"}]}
    request = {"SnapshotId": snapshot, "Attribute": "createVolumePermission"}
    aws.client("ec2").modify_snapshot_attribute(**request, CreateVolumePermission=permission)


def share_snapshot(aws: Sandbox, ami: str) -> None:
    (snapshot,) = state(aws, ami).snapshot_ids()
    permission = {"Add": [{"UserId": "109876543210"}]}
    request = {"SnapshotId": snapshot, "Attribute": "createVolumePermission"}
    aws.client("ec2").modify_snapshot_attribute(**request, CreateVolumePermission=permission)


def share_with_organization(aws: Sandbox, ami: str) -> None:
    permission = {"Add": [{"OrganizationArn": ORGANIZATION}]}
    aws.client("ec2").modify_image_attribute(ImageId=ami, LaunchPermission=permission)


def untag_snapshot(aws: Sandbox, ami: str) -> None:
    (snapshot,) = state(aws, ami).snapshot_ids()
    aws.client("ec2").delete_tags(Resources=[snapshot], Tags=[{"Key": "vmsnix:digest"}])


def describe(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").modify_image_attribute(ImageId=ami, Description={"Value": "mine"})


def protect(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").enable_image_deregistration_protection(ImageId=ami)


def make_public(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").modify_image_attribute(ImageId=ami, LaunchPermission={"Add": [{"Group": "all"}]})


def undeprecate(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").disable_image_deprecation(ImageId=ami)


def postpone(aws: Sandbox, ami: str) -> None:
    moment = datetime.now(UTC) + timedelta(days=500)
    aws.client("ec2").enable_image_deprecation(ImageId=ami, DeprecateAt=moment)


def unprotect(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").disable_image_deregistration_protection(ImageId=ami)


def disable(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").disable_image(ImageId=ami)


def deregister(aws: Sandbox, ami: str) -> None:
    unprotect(aws, ami)
    aws.client("ec2").deregister_image(ImageId=ami)


def drop_snapshot(aws: Sandbox, ami: str) -> None:
    for snapshot_id in state(aws, ami).snapshot_ids():
        del aws.state.tables.table(aws.account, HOME, "snapshots")[snapshot_id]


def replace_channel(aws: Sandbox, ami: str) -> None:
    other = make_ami(aws, version="other")
    put = {"Name": "/vmsnix/ecs-node/stable", "Value": other, "Type": "String", "DataType": "aws:ec2:image"}
    ssm = aws.client("ssm")
    ssm.delete_parameter(Name=put["Name"])  # AWS cannot change the data type of a parameter
    ssm.put_parameter(**put)
    aws.clock.advance(5)


def delete_channel(aws: Sandbox, ami: str) -> None:
    aws.client("ssm").delete_parameter(Name="/vmsnix/ecs-node/stable")


def untype(aws: Sandbox, ami: str) -> None:
    put = {"Name": "/vmsnix/ecs-node/stable", "Value": ami, "Type": "String", "DataType": "text"}
    ssm = aws.client("ssm")
    ssm.delete_parameter(Name=put["Name"])  # AWS cannot change the data type of a parameter
    ssm.put_parameter(**put)


def registered_with(**changes: Any) -> Callable[[Sandbox, str], None]:
    """Change fields of the AMI that only another registration could change in AWS."""

    def change(aws: Sandbox, ami: str) -> None:
        for name, value in changes.items():
            setattr(state(aws, ami), name, value)

    change.__name__ = "-".join(changes)
    return change


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (untag, {"tag vmsnix:version": ("26.11", "")}),
        (retag, {"tag Name": ("altf4llc-ecs-node-26.11", "mine")}),
        (share, {"shared_with": (OTHER, f"109876543210, {OTHER}")}),
        (unshare_snapshot, {"snapshots_shared_with": (OTHER, "")}),
        (make_snapshot_public, {"snapshots_shared_with": (OTHER, f"{OTHER}, public")}),
        (untag_snapshot, {DIGEST: None}),
        (describe, {"description": ("", "mine")}),
        (make_public, {"public": ("False", "True")}),
        (unprotect, {"protected": ("True", "False")}),
        (replace_channel, {"channel": None}),
        (delete_channel, {"channel": None}),
        (untype, {"channel": None}),
        (undeprecate, {"deprecated_at": None}),
        (postpone, {"deprecated_at": None}),
        (disable, {"state": ("available", "disabled"), "shared_with": (OTHER, "")}),
        (deregister, {"ami": ("available", "deleted")}),
        (drop_snapshot, {"snapshot_state": ("completed", "deleted")}),
        (registered_with(boot_mode="uefi"), {"boot_mode": ("legacy-bios", "uefi")}),
        (registered_with(architecture="arm64"), {"architecture": ("x86_64", "arm64")}),
        (registered_with(root_device="/dev/xvda"), {"root_device": ("/dev/sda1", "/dev/xvda")}),
        (registered_with(imds=""), {"imds_support": ("v2.0", "")}),
        (registered_with(ena=False), {"ena_support": ("True", "False")}),
        (registered_with(tpm="v2.0"), {"tpm_support": ("", "v2.0")}),
        (registered_with(name="mine"), {"name": ("altf4llc-ecs-node-26.11", "mine")}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.variants(seconds=1)
def test_each_change_is_drift_of_one_field(
    aws: Sandbox, ami: str, change: Callable[[Sandbox, str], None], fields: dict[str, Any]
) -> None:
    change(aws, ami)
    assert_drift(fields)


def assert_drift(fields: dict[str, Any]) -> None:
    """Check that exactly these fields differ; ``None`` stands for any value."""
    found = drift()
    assert set(found) == set(fields)
    assert {name: found[name] for name, value in fields.items() if value} == {
        name: value for name, value in fields.items() if value
    }


def record(aws: Sandbox, ami: str, *, source: str = "publish", without: tuple[str, ...] = ()) -> None:
    """Record an AMI as a publish or a sync does; `without` columns, as an older version."""
    found = images.describe_ami(aws.client("ec2"), ami)
    row = images.ami_row(found, recorded_at=datetime.now(UTC), source=source)
    open_tables(load()).append("amis", [{k: v for k, v in row.items() if k not in without}])


YOUNG = ("deprecated_at", "protected", "description")


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (share, {"shared_with": ("", "109876543210")}),
        (share_with_organization, {"shared_with": ("", ORGANIZATION)}),
        (share_snapshot, {"snapshots_shared_with": ("", "109876543210")}),
        (make_snapshot_public, {"snapshots_shared_with": ("", "public")}),
        (untag_snapshot, {DIGEST: None}),
        (make_public, {"public": ("False", "True")}),
        (postpone, {"deprecated_at": None}),
        (protect, {"protected": ("False", "True")}),
        (drop_snapshot, {"snapshot_state": ("completed", "deleted")}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_published_ami_must_be_private_without_date_and_protection(
    aws: Sandbox, change: Callable[[Sandbox, str], None], fields: dict[str, Any]
) -> None:
    made = make_ami(aws)
    record(aws, made)
    change(aws, made)
    assert_drift(fields)


def test_an_ami_of_an_older_version_must_be_private_too(aws: Sandbox) -> None:
    made = make_ami(aws)
    record(aws, made, without=YOUNG)
    assert drift() == {}
    for change in (share, make_public, make_snapshot_public, postpone, protect):
        change(aws, made)
    assert set(drift()) == {"shared_with", "public", "snapshots_shared_with", "deprecated_at", "protected"}


def test_a_sync_does_not_record_unrecorded_grants(aws: Sandbox, session: boto3.Session) -> None:
    published, found = make_ami(aws), make_ami(aws, version="26.12")
    record(aws, published)
    record(aws, found, source="sync")
    for made in (published, found):
        for change in (share, make_public, postpone, protect):
            change(aws, made)
    sync(regions=[HOME], session=session)
    drifted = verify.check().drift.groupby("ami_id")["field"].agg(set)
    assert set(drifted.index) == {published, found}
    assert all(fields == {"shared_with", "public", "deprecated_at", "protected"} for fields in drifted)


def test_a_later_publish_overrides_a_promotion(aws: Sandbox, ami: str) -> None:
    make_public(aws, ami)
    record(aws, ami)
    assert drift() == {}


def test_the_state_that_a_publish_found_is_the_recorded_one(aws: Sandbox) -> None:
    made = make_ami(aws)
    for change in (make_public, postpone, protect, describe):
        change(aws, made)
    record(aws, made)
    assert drift() == {}
    unprotect(aws, made)
    undeprecate(aws, made)
    assert set(drift()) == {"protected", "deprecated_at"}


@pytest.mark.parametrize(("days", "fields"), [(730, set()), (500, {"deprecated_at"})])
def test_the_automatic_date_of_a_public_ami_is_not_drift(aws: Sandbox, days: int, fields: set[str]) -> None:
    made = make_ami(aws)
    make_public(aws, made)
    record(aws, made)
    created = images.describe_ami(aws.client("ec2"), made).created_at
    state(aws, made).deprecate_at = created + timedelta(days=days)
    assert set(drift()) == fields


@pytest.mark.parametrize("change", [share, make_snapshot_public, postpone, unprotect])
@pytest.mark.variants(seconds=1)
def test_a_promotion_without_changes_records_the_current_state(
    aws: Sandbox, ami: str, session: boto3.Session, change: Callable[[Sandbox, str], None]
) -> None:
    change(aws, ami)
    with pytest.raises(errors.DriftError) as caught:
        finish(verify.check())
    assert f"vmsnix promote --ami {ami} --region {HOME}, with --protect or" in caught.value.fix
    assert "history sync" not in caught.value.fix
    sync(regions=[HOME], session=session)  # a sync does not record the promoted fields
    assert len(drift()) == 1
    promote_without_changes(aws, ami, HOME)
    assert drift() == {}


def promote_without_changes(aws: Sandbox, ami: str, region: str) -> None:
    """Promote an AMI without changes."""
    seen = images.describe_ami(aws.client("ec2", region), ami)
    kept = "unprotect" if seen.protection == "disabled" else "protect"
    before = len(changes(aws))
    made = promote.plan(ami=ami, region=region, dry_run=False, progress=silent(), **{kept: True})
    assert made.apply().status == "done"
    assert len(changes(aws)) == before


def test_a_copy_can_be_promoted_in_its_own_region(aws: Sandbox, ami: str) -> None:
    (copy,) = copies(aws, EUROPE)
    permission = {"Add": [{"UserId": "109876543210"}]}
    aws.client("ec2", EUROPE).modify_image_attribute(ImageId=copy["ImageId"], LaunchPermission=permission)
    assert list(verify.check().drift["field"]) == ["shared_with"]
    promote_without_changes(aws, copy["ImageId"], EUROPE)
    assert verify.check().drift.empty


@pytest.mark.parametrize("change", [untag, describe, deregister])
@pytest.mark.variants
def test_a_sync_records_fields_that_a_promotion_does_not(
    aws: Sandbox, ami: str, session: boto3.Session, change: Callable[[Sandbox, str], None]
) -> None:
    change(aws, ami)
    with pytest.raises(errors.DriftError) as caught:
        finish(verify.check())
    assert f"vmsnix history sync --region {HOME}" in caught.value.fix
    assert "promote-ami" not in caught.value.fix
    sync(regions=[HOME], session=session)
    assert drift() == {}


def test_a_retired_ami_must_be_private_and_a_restored_one_shared_as_before(
    aws: Sandbox, session: boto3.Session
) -> None:
    made = make_ami(aws)
    wanted: dict[str, Any] = {"share_with": [OTHER], "deprecate_days": 365}
    promote.plan(ami=made, dry_run=False, progress=silent(), **wanted).apply()
    rules: dict[str, Any] = {"amis": [made], "dry_run": False, "confirm": "1", "session": session}
    later = datetime.now(UTC) + timedelta(days=300)
    out = {"keep_last": 0, "min_age_days": 1, "allow_shared": True, "now": later}
    assert [one.outcome for one in retirement.plan(**rules, **out).apply().outcomes] == ["changed"]
    assert drift() == {}
    share_snapshot(aws, made)
    assert_drift({"snapshots_shared_with": ("", "109876543210")})
    unshare_snapshot(aws, made)
    retirement.plan(action="restore", **rules).apply()
    assert drift() == {}
    sync(regions=[HOME], session=session)
    assert drift() == {}
    share(aws, made)
    assert_drift({"shared_with": (OTHER, f"109876543210, {OTHER}")})


def test_drift_fails_the_run_and_is_listed(aws: Sandbox, ami: str) -> None:
    unprotect(aws, ami)
    report = verify.check()
    with pytest.raises(errors.DriftError, match=f"protected of {ami} in {HOME}"):
        finish(report)
    finish(verify.check(fail_on_drift=False))


def test_an_added_tag_is_not_drift(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").create_tags(Resources=[ami], Tags=[{"Key": "CostCentre", "Value": "7"}])
    assert drift() == {}


def test_the_latest_promotion_or_rollback_is_the_recorded_one(aws: Sandbox, ami: str) -> None:
    newer = make_ami(aws, version="26.12")
    promote.plan(ami=newer, **USUAL).apply()
    assert drift() == {}
    back = {"image": "ecs-node", "channel": "stable", "regions": [HOME], "progress": silent()}
    rollback.plan(**back, dry_run=False).apply()
    assert drift() == {}
    replace_channel(aws, ami)
    assert set(drift()) == {"channel"}


def test_a_region_that_cannot_be_read_is_a_finding_and_the_others_are_compared(
    aws: Sandbox, ami: str
) -> None:
    words = "You are not authorized to perform: ec2:DescribeImages"
    denied = {"op": "ec2:DescribeImages", "where": {"region": EUROPE}, "do": "error", "http": 403}
    denied |= {"code": "UnauthorizedOperation", "message": words}
    aws.faults.add(denied)
    report = verify.check()
    assert list(report.drift["field"]) == ["access"]
    assert "ec2:DescribeImages" in report.drift["found"][0]
    with pytest.raises(errors.PartialError) as caught:
        finish(report)
    assert caught.value.exit_code == 3
    unprotect(aws, ami)
    assert set(drift()) == {"protected"}
    with pytest.raises(errors.DriftError, match=f"1 item could not be read, first {EUROPE}: .*{words}"):
        finish(verify.check())


@pytest.mark.parametrize("refused", [(HOME,), (EUROPE,), (HOME, EUROPE)])
@pytest.mark.variants
def test_a_region_that_refuses_sts_is_a_finding(aws: Sandbox, ami: str, refused: tuple[str, ...]) -> None:
    for region in refused:
        for operation in ("sts:*", "ec2:*"):
            shut = {"op": operation, "where": {"region": region}, "do": "error", "http": 403}
            aws.faults.add({**shut, "code": "InvalidClientTokenId", "message": "The token is invalid."})
    if len(refused) == 2:
        with pytest.raises(errors.CredentialsError):
            verify.check()
        return
    report = verify.check()
    assert [(row["region"], row["field"]) for row in report.drift.to_dict("records")] == [
        (*refused, "access")
    ]


def test_unrecorded_fields_are_not_compared_except_permissions(aws: Sandbox) -> None:
    with pytest.raises(errors.ParameterError, match="No recorded AMI"):
        verify.check()
    made = make_ami(aws)
    record(aws, made, source="sync", without=("imds_support", "ena_support", *YOUNG))
    with pytest.raises(errors.ParameterError, match=r"Did you mean 'ecs-node'\? Searched"):
        verify.check(image="ecs-nod")
    state(aws, made).imds = ""
    protect(aws, made)
    describe(aws, made)
    postpone(aws, made)
    assert drift() == {}
    share(aws, made)  # an unrecorded grant
    assert set(drift()) == {"shared_with"}


def test_an_unknown_region_and_another_account_are_errors(aws: Sandbox, ami: str) -> None:
    with pytest.raises(errors.RegionError, match="'eu-west-7' is not an AWS region"):
        verify.check(regions=[HOME, "eu-west-7"])
    other_session = aws.other_account("109876543210").session()
    with pytest.raises(errors.ParameterError, match="do not belong to the account 109876543210"):
        verify.check(session=other_session)


def test_every_field_has_a_meaning(aws: Sandbox, ami: str) -> None:
    named = {*drift_fields.REGISTERED, *drift_fields.PROMOTED_FIELDS, *drift_fields.UNFIXABLE_FIELDS}
    assert named <= set(drift_fields.MEANINGS)
