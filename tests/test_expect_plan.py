"""A run with the fingerprint of a dry run applies exactly that plan, or refuses it with what differs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.sandbox.clients import allow_public_images
from vmsnix_ops import bootstrap, errors, fleet, promote, publish, retire, rollback, smoke_test
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.records.fingerprints import check_plan, record_plan
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGION, WEST, BUCKET, OTHER = "us-east-1", "us-west-2", "vmsnix-images", "210987654321"
READS = ("Describe", "Get", "Head", "List", "Simulate")
STABLE = "/vmsnix/ecs-node/stable"
PLAN = 'name = "f"\n[[entry]]\nrunbook = "verify-amis"\nregions = ["us-east-1", "us-west-2"]\n'


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with sandbox(speed=20000) as aws:
        yield aws


@pytest.fixture
def aws(served: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sandbox:
    """An empty account, and an empty history."""
    served.reset()
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("STATE", "HISTORY", "ARCHIVE"):
        monkeypatch.setenv(f"VMSNIX_{name}", str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    served.prepare(bucket=BUCKET, region=REGION)
    allow_public_images(served, REGION)
    return served


def writes(aws: Sandbox) -> list[str]:
    return [call.operation for call in aws.calls if call.ran and not call.operation.startswith(READS)]


def promotion(**changes: Any) -> promote.PromotionPlan:
    usual = {
        "image": "ecs-node", "channel": "stable", "regions": [WEST], "share_with": [OTHER],
        "deprecate_days": 365, "progress": silent(),
    }  # fmt: skip
    return promote.plan(**(usual | changes))


def dry_run(plan: Any) -> str:
    """Apply the plan of a dry run, and return the fingerprint in its result."""
    values = plan.apply()._values()
    assert values["dry_run"] is True
    assert values["plan_fingerprint"] == plan.fingerprint
    return str(plan.fingerprint)


def refused(aws: Sandbox, plan: Any) -> str:
    """Apply a plan, check that it is refused before anything is changed, and return what differs."""
    before = writes(aws)
    with pytest.raises(errors.StalePlanError) as caught:
        plan.apply()
    assert writes(aws) == before
    assert plan.fingerprint in caught.value.fix
    return caught.value.why


def test_every_runbook_with_a_dry_run_takes_a_fingerprint() -> None:
    given = {book.name: [one.name for one in book.parameters] for book in catalog.runbooks()}
    with_dry_run = {name for name, names in given.items() if "dry_run" in names}
    assert with_dry_run == {name for name, names in given.items() if "expect_plan" in names}


def test_a_promotion_applies_exactly_the_plan_and_can_be_continued(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, new = make_ami(aws, version="26.11"), make_ami(aws, version="26.12")
    promotion(ami=old, regions=[], share_with=[], dry_run=False).apply().raise_for_status()
    checked = dry_run(promotion())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert promotion().fingerprint == checked  # another run, later, in another folder
    apply = {"dry_run": False, "expect_plan": checked}
    # A run that was killed after one region: the same command does the rest.
    promotion(regions=[], dry_run=False).apply().raise_for_status()
    promotion(**apply).apply().raise_for_status()
    assert aws.client("ssm", WEST).get_parameter(Name=STABLE)["Parameter"]["Value"] != new
    assert {row.outcome for row in promotion(**apply).apply().rows} == {"reused", "unchanged"}


@pytest.mark.parametrize("what", ["channel", "newer AMI", "shared", "deprecated", "tagged", "described"])
@pytest.mark.variants
def test_a_promotion_is_refused_with_what_changed(what: str, aws: Sandbox) -> None:
    old, new = make_ami(aws, version="26.11"), make_ami(aws, version="26.12")
    promotion(ami=old, regions=[], share_with=[], dry_run=False).apply().raise_for_status()
    checked = dry_run(promotion())
    ec2 = aws.client("ec2", REGION)
    if what == "channel":
        aws.client("ssm", REGION).put_parameter(
            Name=STABLE, Value=new, Type="String", DataType="aws:ec2:image", Overwrite=True
        )
        aws.clock.advance(60)
        aws.client("ssm", REGION).put_parameter(
            Name=STABLE, Value=old, Type="String", DataType="aws:ec2:image", Overwrite=True
        )
        aws.clock.advance(60)
        change = "planned, now {0} (version 1) before, planned, now {0} (version 3)"
        expected = f"us-east-1, set channel: {change.format(old)}"
    elif what == "newer AMI":
        newest = make_ami(aws, version="27.01")
        expected = f"AMI: {new} (altf4llc-ecs-node-26.12) before, {newest} (altf4llc-ecs-node-27.01) now"
    elif what == "shared":
        ec2.modify_image_attribute(ImageId=new, LaunchPermission={"Add": [{"UserId": "109876543210"}]})
        expected = "us-east-1, other accounts with access: nothing before, 109876543210 now"
    elif what == "tagged":  # copies get the tags and the description of their source
        ec2.create_tags(Resources=[new], Tags=[{"Key": "team", "Value": "web"}])
        expected = "tag team: nothing before, web now"
    elif what == "described":
        ec2.modify_image_attribute(ImageId=new, Description={"Value": "Do not use"})
        expected = "before, Do not use now"
    else:
        ec2.enable_image_deprecation(ImageId=new, DeprecateAt=datetime.now(UTC) + timedelta(days=99))
        expected = "us-east-1, deprecate: planned, now nothing before, planned, now 20"
    why = refused(aws, promotion(dry_run=False, expect_plan=checked))
    assert expected in why
    assert refused(aws, promotion(expect_plan=checked)) == why  # also in a dry run


def test_a_promotion_is_refused_when_its_copy_lost_another_tag(aws: Sandbox) -> None:
    make_ami(aws)
    copied = promotion(dry_run=False).apply()
    copy = next(row.ami_id for row in copied.rows if row.step == "copy")
    ec2 = aws.client("ec2", WEST)
    ec2.delete_tags(Resources=[copy], Tags=[{"Key": "Name"}])
    aws.clock.advance(60)
    checked = dry_run(promotion())
    ec2.delete_tags(Resources=[copy], Tags=[{"Key": "vmsnix:version"}])
    aws.clock.advance(60)
    why = refused(aws, promotion(dry_run=False, expect_plan=checked))
    assert "without the tags Name before, " in why
    assert "without the tags Name, vmsnix:version now" in why
    checked = dry_run(promotion())
    promotion(dry_run=False, expect_plan=checked).apply().raise_for_status()
    aws.client("ec2", REGION).create_tags(
        Resources=[copied.plan.ami.ami_id], Tags=[{"Key": "a", "Value": "b"}]
    )
    ec2.create_tags(Resources=[copy], Tags=[{"Key": "a", "Value": "b"}])
    aws.clock.advance(60)
    # No copy has to be changed, so the tag makes no difference.
    promotion(dry_run=False, expect_plan=checked).apply().raise_for_status()


def test_a_rollback_is_refused_when_the_channel_moved(aws: Sandbox) -> None:
    for version in ("26.11", "26.12"):
        ami = make_ami(aws, version=version)
        promotion(ami=ami, regions=[], share_with=[], dry_run=False).apply().raise_for_status()

    def plan(**changes: Any) -> rollback.RollbackPlan:
        return rollback.plan(image="ecs-node", channel="stable", progress=silent(), **changes)

    checked = dry_run(plan())
    assert plan().fingerprint == checked
    third = make_ami(aws, version="27.01")
    promotion(ami=third, regions=[], share_with=[], dry_run=False).apply().raise_for_status()
    why = refused(aws, plan(dry_run=False, expect_plan=checked))
    assert f"us-east-1, channel: {ami} (version 2) before, {third} (version 3) now" in why
    checked = dry_run(plan())
    plan(dry_run=False, expect_plan=checked).apply().raise_for_status()
    assert plan(dry_run=False, expect_plan=checked).apply().rows[0].outcome == "unchanged"


def test_a_retirement_is_confirmed_by_its_plan_and_refused_when_an_ami_was_launched(aws: Sandbox) -> None:
    for version in ("26.11", "26.12"):
        ami = make_ami(aws, version=version)

    def plan(days: float = 90, **changes: Any) -> retire.RetirementPlan:
        now = datetime.now(UTC) + timedelta(days=days)
        rules: dict[str, Any] = {"keep_last": 0, "min_age_days": 0, "launched_days": 0}
        return retire.plan(**rules, now=now, progress=silent(), **changes)

    checked = dry_run(plan())
    assert plan(days=91).fingerprint == checked
    assert plan(retention_days=2).fingerprint != checked
    instance = aws.client("ec2", REGION).run_instances(
        ImageId=ami, InstanceType="t3.micro", MinCount=1, MaxCount=1
    )["Instances"][0]["InstanceId"]
    for option in ("expect_plan", "confirm"):  # a fingerprint as confirmation is the same
        why = refused(aws, plan(dry_run=False, **{option: checked}))
        assert why == f"{ami} in us-east-1 is no longer in the plan: in use: instance {instance} (running)."
    aws.client("ec2", REGION).terminate_instances(InstanceIds=[instance])
    aws.clock.advance(3600)
    checked = dry_run(plan())
    # A run that was killed after the first AMI: the same command does the rest.
    plan(dry_run=False, amis=[ami], confirm="1").apply().raise_for_status()
    for option, changed in (("expect_plan", 1), ("confirm", 0), ("expect_plan", 0)):
        result = plan(dry_run=False, **{option: checked}).apply()
        assert [one.outcome for one in result.outcomes] == ["changed"] * changed


def test_a_partial_promotion_is_continued_by_its_own_fingerprint(aws: Sandbox) -> None:
    make_ami(aws)
    denied = {"op": "ec2:CopyImage", "do": "error", "code": "UnauthorizedOperation", "http": 403, "nth": 1}
    aws.faults.add(denied)
    first = promotion(dry_run=False)
    assert first.apply().status == "partial"
    again = promotion(dry_run=False, expect_plan=first.fingerprint)  # as `vmsnix runs resume` does
    assert again.fingerprint != first.fingerprint
    assert again.apply().status == "done"


def test_a_fleet_is_refused_when_its_file_was_edited(aws: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(PLAN)
    checked = dry_run(fleet.plan(file))
    file.write_text(f"# nightly\n{PLAN}")
    (tmp_path / "other").mkdir()
    moved = file.rename(tmp_path / "other" / "moved.toml")
    assert fleet.plan(moved).fingerprint == checked  # neither a comment nor the place changes the plan
    moved.write_text(PLAN.replace(', "us-west-2"', "") + 'parameters = { image = "ecs-node" }\n')
    why = refused(aws, fleet.plan(moved, dry_run=False, expect_plan=checked))
    assert "verify-amis/us-west-2: verify-amis regions=['us-west-2']" in why
    assert "image=ecs-node" in why
    assert "nothing now" in why


def test_a_bootstrap_is_refused_when_a_part_changed(aws: Sandbox) -> None:
    checked = dry_run(bootstrap.plan(region=REGION, bucket="another-bucket"))
    why = refused(
        aws, bootstrap.plan(region=REGION, bucket="third-bucket", dry_run=False, expect_plan=checked)
    )
    assert "bucket: create, another-bucket in us-east-1 before, create, third-bucket in" in why
    again = {"region": REGION, "bucket": "another-bucket", "dry_run": False, "expect_plan": checked}
    assert bootstrap.plan(**again).apply().todo == ()
    assert bootstrap.plan(**again).apply().todo == ()  # what is done differs, and is not done again


def test_a_publish_is_refused_before_the_upload_when_the_image_is_another(
    aws: Sandbox, tmp_path: Path
) -> None:
    make_sample_image(tmp_path / "image", name="sample")

    def plan(**changes: Any) -> publish.PublishPlan:
        return publish.plan(image=str(tmp_path / "image"), bucket=BUCKET, progress=silent(), **changes)

    values = plan(dry_run=True).apply().as_dict()
    assert values["plan_fingerprint"]
    assert values["tables"][0]["rows"][0][0] == "build"
    checked = {"expect_plan": values["plan_fingerprint"]}
    first = plan(**checked).apply()
    assert plan(**checked).apply().ami_id == first.ami_id  # again, as after a crash
    (tmp_path / "image").rename(tmp_path / "before")
    make_sample_image(tmp_path / "image", name="sample", seed="other")
    before = writes(aws)
    with pytest.raises(errors.StalePlanError, match=f"digest: {first.digest} before, "):
        plan(**checked).apply()
    assert writes(aws) == before


def test_a_smoke_test_is_refused_when_there_is_a_newer_ami(aws: Sandbox) -> None:
    make_ami(aws)
    checked = dry_run(smoke_test.plan(image="ecs-node", dry_run=True, progress=silent()))
    newer = make_ami(aws, version="27.01")
    plan = smoke_test.plan(image="ecs-node", expect_plan=checked, progress=silent())
    assert newer in refused(aws, plan)


FACTS = {"channel": "stable", "AMI": "ami-1"}


def test_a_text_that_is_no_fingerprint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ParameterError, match="'latest' is not the fingerprint of a plan"):
        check_plan(FACTS, "latest", Tables(tmp_path))


def test_a_plan_that_is_not_recorded_is_refused_with_the_present_plan(tmp_path: Path) -> None:
    with pytest.raises(errors.StalePlanError, match="The plan is now channel: stable; AMI: ami-1") as caught:
        check_plan(FACTS, "0" * 16, Tables(tmp_path))
    assert "is not in the table plans" in caught.value.why


def test_an_edited_row_of_a_plan_does_not_make_another_plan_acceptable(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    row = {"runbook": "promote-ami", "planned_at": datetime.now(UTC), "fingerprint": "0" * 16}
    tables.append("plans", [{**row, "facts": json.dumps(FACTS)}])
    with pytest.raises(errors.StalePlanError, match="is not in the table plans"):
        check_plan(FACTS, "0" * 16, tables, is_done=lambda name, before: True)


def test_an_unwritable_history_does_not_stop_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record_plan(FACTS, Tables(tmp_path / "file"), runbook="promote-ami")
