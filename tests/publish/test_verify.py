"""Verification: what was recorded of every AMI against what AWS says, field by field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.publish.promoting import EUROPE, HOME, OTHER, aws, served, session
from vmsnix_ops import errors
from vmsnix_ops.aws import images
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import promote, roll_back, verify, verify_fields
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox import Sandbox

__all__ = ["aws", "served", "session"]
USUAL: dict[str, Any] = {"dry_run": False, "progress": silent(), "channel": "stable"}


@pytest.fixture
def ami(aws: Sandbox) -> str:
    """An AMI that was promoted to two regions, shared, dated and protected."""
    made = make_ami(aws)
    wanted = {"regions": [EUROPE], "share_with": [OTHER], "deprecate_days": 365, "protect": True}
    assert promote.apply(promote.plan(ami=made, **wanted, **USUAL)).status == "done"
    return made


def drift(**asked: Any) -> dict[str, tuple[str, str]]:
    """Return what differs in the home region: recorded and found, by field."""
    table = verify.check(**asked).drift
    here = table[table["region"] == HOME]
    return {row["field"]: (row["recorded"], row["found"]) for row in here.to_dict("records")}


def state(aws: Sandbox, ami: str) -> Any:
    return aws.world.tables.table(aws.account, HOME, "images")[ami]


def test_what_is_as_it_was_has_no_drift(aws: Sandbox, ami: str) -> None:
    before = len(aws.calls)
    report = verify.check()
    assert report.drift.empty
    assert list(report.drift.columns) == list(verify.COLUMNS)
    clean = {"amis": 1, "drifted": 0, "fields": 0, "unread": 0}
    assert {row.pop("region"): row for row in report.regions.to_dict("records")} == {
        HOME: clean,
        EUROPE: clean,
    }
    verify.finish(report)
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


def publicise(aws: Sandbox, ami: str) -> None:
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
        del aws.world.tables.table(aws.account, HOME, "snapshots")[snapshot_id]


def repoint(aws: Sandbox, ami: str) -> None:
    other = make_ami(aws, version="other")
    put = {"Name": "/vmsnix/ecs-node/stable", "Value": other, "Type": "String", "DataType": "aws:ec2:image"}
    aws.client("ssm").put_parameter(**put, Overwrite=True)
    aws.clock.advance(5)


def unpoint(aws: Sandbox, ami: str) -> None:
    aws.client("ssm").delete_parameter(Name="/vmsnix/ecs-node/stable")


def untype(aws: Sandbox, ami: str) -> None:
    put = {"Name": "/vmsnix/ecs-node/stable", "Value": ami, "Type": "String", "DataType": "text"}
    aws.client("ssm").put_parameter(**put, Overwrite=True)


def as_if(**changes: Any) -> Callable[[Sandbox, str], None]:
    """Change what EC2 knows of the AMI: what no operation of AWS changes, but another registration would."""

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
        (publicise, {"public": ("False", "True")}),
        (unprotect, {"protected": ("True", "False")}),
        (repoint, {"pointer": None}),
        (unpoint, {"pointer": None}),
        (untype, {"pointer": None}),
        (undeprecate, {"deprecated_at": None}),
        (postpone, {"deprecated_at": None}),
        (disable, {"state": ("available", "disabled"), "shared_with": (OTHER, "")}),
        (deregister, {"ami": ("available", "gone")}),
        (drop_snapshot, None),
        (as_if(boot_mode="uefi"), {"boot_mode": ("legacy-bios", "uefi")}),
        (as_if(architecture="arm64"), {"architecture": ("x86_64", "arm64")}),
        (as_if(root_device="/dev/xvda"), {"root_device": ("/dev/sda1", "/dev/xvda")}),
        (as_if(imds=""), {"imds_support": ("v2.0", "")}),
        (as_if(ena=False), {"ena_support": ("True", "False")}),
        (as_if(tpm="v2.0"), {"tpm_support": ("", "v2.0")}),
        (as_if(name="mine"), {"name": ("altf4llc-ecs-node-26.11", "mine")}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_drift_is_the_field_that_drifted_and_no_other(
    aws: Sandbox, ami: str, change: Callable[[Sandbox, str], None], fields: dict[str, Any] | None
) -> None:
    change(aws, ami)
    found = drift()
    if fields is None:
        assert found["snapshot_state"] == ("completed", "gone")
        return
    assert set(found) == set(fields)
    assert {name: found[name] for name, value in fields.items() if value} == {
        name: value for name, value in fields.items() if value
    }


def test_drift_ends_the_run_and_says_what(aws: Sandbox, ami: str) -> None:
    unprotect(aws, ami)
    report = verify.check()
    with pytest.raises(errors.DriftError, match=f"protected of {ami} in {HOME}"):
        verify.finish(report)
    verify.finish(report, fail_on_drift=False)


def test_a_tag_that_somebody_added_is_no_drift(aws: Sandbox, ami: str) -> None:
    aws.client("ec2").create_tags(Resources=[ami], Tags=[{"Key": "CostCentre", "Value": "7"}])
    assert drift() == {}


def test_a_later_promotion_and_a_rollback_are_what_counts(aws: Sandbox, ami: str) -> None:
    newer = make_ami(aws, version="26.12")
    promote.apply(promote.plan(ami=newer, **USUAL))
    assert drift() == {}
    back = {"image": "ecs-node", "channel": "stable", "regions": [HOME], "progress": silent()}
    roll_back.plan(**back, dry_run=False).apply()
    assert drift() == {}
    repoint(aws, ami)
    assert set(drift()) == {"pointer"}


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
    with pytest.raises(errors.PartlyDoneError) as caught:
        verify.finish(report)
    assert caught.value.exit_code == 3
    unprotect(aws, ami)
    assert set(drift()) == {"protected"}


def test_what_is_not_recorded_is_not_compared(aws: Sandbox) -> None:
    with pytest.raises(errors.ParameterError, match="know no AMI"):
        verify.check()
    made = images.describe(aws.client("ec2"), make_ami(aws))
    row = images.row(made, recorded_at=datetime.now(UTC), source="sync")
    old = {name: value for name, value in row.items() if name not in ("imds_support", "ena_support")}
    open_tables(load()).append("amis", [old])  # by an older version of this package
    state(aws, made.ami_id).imds = ""
    share(aws, made.ami_id)
    assert drift() == {}


def test_a_mistyped_region_and_a_wrong_account_are_no_success(aws: Sandbox, ami: str) -> None:
    with pytest.raises(errors.RegionError, match="no AWS region 'eu-west-7'"):
        verify.check(regions=[HOME, "eu-west-7"])
    stranger = aws.other_account("109876543210").session()
    with pytest.raises(errors.ParameterError, match="not of the account 109876543210"):
        verify.check(session=stranger)


def test_every_field_has_a_meaning(aws: Sandbox, ami: str) -> None:
    assert set(verify_fields.REGISTERED) <= set(verify_fields.MEANINGS)
