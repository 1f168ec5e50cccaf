"""Promotions: steps, channel, sharing and announcements."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from tests.aws.account import make_ami
from tests.channels.conftest import (
    EUROPE,
    HOME,
    KEY,
    OTHER,
    WEST,
    changes,
    channel_value,
    copies,
    outcomes,
    plan,
)
from vmsnix_ops import errors
from vmsnix_ops.aws import images, sharing, snapshots
from vmsnix_ops.channels import history, verify
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

ORGANIZATION = "arn:aws:organizations::012345678901:organization/o-abcdefghij"


EVERYTHING = {
    "channel": "stable",
    "regions": [WEST, EUROPE],
    "kms_keys": {EUROPE: KEY},
    "share_with": [OTHER, ORGANIZATION],
    "revoke_from": ["109876543210"],
    "deprecate_days": 365,
    "protect": True,
}


def test_a_promotion_with_all_steps_changes_everything_once(aws: Sandbox, ami: str) -> None:
    shown = str(plan(**EVERYTHING))
    assert "  copy         planned" in shown
    assert changes(aws)[-1].startswith(("CreateVolume", "RegisterImage")) or "CopyImage" not in changes(aws)
    found = plan(**EVERYTHING).apply()
    per_region = [
        "share changed",
        "revoke unchanged",
        "deprecate changed",
        "protect changed",
        "set channel changed",
    ]
    assert outcomes(found) == {
        HOME: per_region,
        WEST: ["copy created", *per_region],
        EUROPE: ["copy created", *per_region],
    }
    assert found.status == "done"
    source = images.describe_ami(aws.client("ec2", HOME), ami)
    for region in (HOME, WEST, EUROPE):
        ec2 = aws.client("ec2", region)
        (image,) = copies(aws, region)
        one = images.parse_ami(image, region)
        assert channel_value(aws, region) == one.ami_id
        assert dict(one.tags) == dict(source.tags)  # with the run that published it
        assert sharing.read_launch_permissions(ec2, one.ami_id) == sharing.parse_audience(
            [OTHER, ORGANIZATION]
        )
        assert sharing.read_snapshot_permissions(ec2, one.snapshot_ids[0]) == sharing.parse_audience([OTHER])
        assert one.deprecated_at is not None
        assert abs(one.deprecated_at - source.created_at - timedelta(days=365)) <= timedelta(seconds=31)
        assert one.protection.startswith("enabled")
        (snapshot,) = ec2.describe_snapshots(SnapshotIds=list(one.snapshot_ids))["Snapshots"]
        assert {tag["Key"] for tag in snapshot["Tags"]} >= {"vmsnix:digest", "vmsnix:image"}
        snapshot = snapshots.find_snapshots(ec2, one.snapshot_ids)[one.snapshot_ids[0]]
        assert (snapshot.encrypted, snapshot.kms_key) == ((True, KEY) if region == EUROPE else (False, ""))

    before = changes(aws)
    again = plan(**EVERYTHING).apply()
    assert {row.outcome for row in again.rows} == {"reused", "unchanged"}
    assert changes(aws) == before

    tables = open_tables(load())
    rows = tables.read("promotions")
    assert sorted(rows["region"]) == sorted([HOME, WEST, EUROPE])  # the second run records nothing new
    assert set(rows["channel"]) == {"stable"}
    assert {json.dumps(sorted(json.loads(one))) for one in rows["shared_with"]} == {
        json.dumps(sorted([OTHER, ORGANIZATION]))
    }
    amis = tables.read("amis")
    assert set(amis["source"]) == {"promote"}
    steps = tables.read("steps")
    assert set(steps[steps["run_id"] == found.run_id]["status"]) == {"created", "changed", "unchanged"}
    assert set(steps[steps["run_id"] == again.run_id]["status"]) == {"reused", "unchanged"}
    assert list(tables.read("runs")["status"]) == ["done", "done"]


def test_a_dry_run_shows_the_plan_and_changes_nothing(aws: Sandbox, ami: str) -> None:
    before = changes(aws)
    found = plan(**EVERYTHING, dry_run=True).apply()
    assert changes(aws) == before
    assert {row.outcome for row in found.rows} == {"planned", "unchanged"}
    assert found.error is None
    assert "Dry run: nothing will be changed." in str(plan(**EVERYTHING, dry_run=True))
    assert open_tables(load()).read("steps").empty


def test_the_plan_and_the_outcome_are_tables_in_a_notebook(aws: Sandbox, ami: str) -> None:
    made = plan(channel="stable", regions=[WEST])
    assert f"create /vmsnix/ecs-node/stable with {ami}" in made._repr_html_()
    done = made.apply()
    assert "✓ changed" in done._repr_html_()
    frame = done.regions()
    assert list(frame.columns) == ["region", "ami_id", "copy", "set channel", "why"]
    assert len(done.frame()) == 3


# The plan and its AMI


def test_a_channel_changed_after_the_plan_is_not_set(aws: Sandbox, ami: str) -> None:
    made = plan(ami=ami, channel="stable", regions=[WEST])
    other = make_ami(aws, version="26.12")
    plan(ami=other, channel="stable").apply()
    found = made.apply()
    assert outcomes(found) == {HOME: ["set channel failed"], WEST: ["copy created", "set channel changed"]}
    assert "after the plan was made" in found.failed[0].why
    assert channel_value(aws, HOME) == other


def test_an_ami_of_another_architecture_is_refused_for_the_channel(aws: Sandbox, ami: str) -> None:
    plan(ami=ami, channel="stable").apply()
    arm = make_ami(aws, version="26.12", Architecture="arm64", BootMode="uefi")
    with pytest.raises(errors.ParameterError, match="AMIs for arm64 and x86_64") as caught:
        plan(channel="stable")  # two AMIs could be the newest
    assert "altf4llc-ecs-node-26.12 (arm64)" in caught.value.why
    (target,) = plan(ami=arm, channel="stable").targets
    assert target.steps[0].outcome == "failed"
    assert "contains an AMI for x86_64" in target.steps[0].why
    assert outcomes(plan(ami=arm, channel="stable").apply())[HOME] == ["set channel failed"]
    assert channel_value(aws, HOME) == ami
    assert plan(ami=arm, channel="candidate").apply().status == "done"


def test_the_plan_shows_the_current_ami_of_the_channel(aws: Sandbox, ami: str) -> None:
    plan(channel="stable").apply()
    make_ami(aws, version="26.12")
    shown = str(plan(channel="stable"))
    assert f" from {ami} (altf4llc-ecs-node-26.11) to " in shown
    assert "(altf4llc-ecs-node-26.12)" in shown


def test_a_long_history_is_short_as_text_and_complete_in_a_notebook() -> None:
    row = dict.fromkeys(history.COLUMNS) | {"changed_by": "user/a", "state": "available", "note": ""}
    values = [
        row | {"region": region, "ami_id": f"ami-{number}"}
        for region in ("us-east-1", "eu-west-1")
        for number in range(9, 2, -1)
    ]
    shown = history.show(pd.DataFrame(values))
    lines = str(shown).splitlines()
    assert lines[-1] == "4 earlier values are in the report."
    assert [line.split()[0] for line in lines[1:-1]] == ["us-east-1"] * 5 + ["eu-west-1"] * 5
    assert "ami-9" in lines[1]
    assert shown._repr_html_().count("ami-3") == 2
    assert len(str(history.show(pd.DataFrame(values[:5]))).splitlines()) == 6


def test_a_history_that_cannot_be_read_has_a_row_with_the_reason(aws: Sandbox, ami: str) -> None:
    plan(channel="stable").apply()
    denied = {"op": "ssm:GetParameterHistory", "do": "error", "code": "AccessDeniedException", "http": 400}
    aws.faults.add(denied)
    try:
        shown = str(history.show(plan(channel="stable").history()))
    finally:
        aws.faults.clear()
    assert "has no value" not in shown
    assert "GetParameterHistory" in shown


# Sharing


def test_sharing_with_accounts_includes_snapshots_and_revoking_removes_both(aws: Sandbox, ami: str) -> None:
    ec2 = aws.client("ec2")
    (snapshot,) = images.describe_ami(ec2, ami).snapshot_ids
    plan(share_with=[OTHER, ORGANIZATION]).apply()
    assert sharing.read_snapshot_permissions(ec2, snapshot).accounts == (OTHER,)
    found = plan(revoke_from=[OTHER]).apply()
    assert outcomes(found)[HOME] == ["revoke changed"]
    assert sharing.read_launch_permissions(ec2, ami) == sharing.parse_audience([ORGANIZATION])
    assert not sharing.read_snapshot_permissions(ec2, snapshot)


def test_public_needs_the_account_id_and_obeys_block_public_access(aws: Sandbox, ami: str) -> None:
    for wrong in (
        {"public": True},
        {"confirm_public": aws.account},
        {"public": True, "confirm_public": OTHER},
    ):
        with pytest.raises(errors.ParameterError):
            plan(**wrong)
    agreed = {"public": True, "confirm_public": aws.account}
    ec2 = aws.client("ec2")
    ec2.enable_image_block_public_access(ImageBlockPublicAccessState="block-new-sharing")
    made = plan(**agreed, channel="stable")
    assert [step.outcome for step in made.targets[0].steps] == ["failed", "skipped"]
    found = made.apply()
    assert "disable-image-block-public-access" in found.failed[0].why
    assert channel_value(aws, HOME) == ""  # an AMI that could not be shared is not in the channel
    ec2.disable_image_block_public_access()
    assert plan(**agreed).apply().status == "done"
    assert sharing.read_launch_permissions(ec2, ami).public
    assert plan(revoke_from=["public"]).apply().status == "done"
    assert not sharing.read_launch_permissions(ec2, ami)


def test_a_public_ami_cannot_be_encrypted(aws: Sandbox, ami: str) -> None:
    agreed = {"public": True, "confirm_public": aws.account}
    with pytest.raises(errors.ParameterError, match="cannot be public"):
        plan(**agreed, regions=[EUROPE], kms_keys={EUROPE: KEY})


def test_unrecorded_grants_are_reported(aws: Sandbox, ami: str) -> None:
    ec2, unrecorded = aws.client("ec2"), "109876543210"
    share = {"LaunchPermission": {"Add": [{"UserId": unrecorded}, {"UserId": OTHER}]}}
    ec2.modify_image_attribute(ImageId=ami, **share)
    made = plan(channel="stable", share_with=[OTHER])
    assert f"is also shared with {unrecorded}, which is not recorded" in str(made)
    made.apply()
    assert "not recorded" not in str(plan(channel="stable"))


def test_a_grant_revoked_by_another_promotion_is_not_drift(aws: Sandbox, ami: str) -> None:
    third = "109876543210"
    plan(channel="candidate", share_with=[OTHER]).apply()
    plan(channel="stable", share_with=[third]).apply()
    plan(channel="candidate", revoke_from=[third]).apply()
    assert verify.check().drift.empty


def test_a_plan_obeys_the_quota_of_public_amis(aws: Sandbox, ami: str) -> None:
    for number in range(5):
        taken = make_ami(aws, version=f"25.{number}")
        aws.client("ec2").modify_image_attribute(ImageId=taken, LaunchPermission={"Add": [{"Group": "all"}]})
    (target,) = plan(ami=ami, public=True, confirm_public=aws.account).targets
    assert target.steps[0].outcome == "failed"
    assert "The quota for public AMIs is reached" in target.steps[0].why


# Announcements


def test_a_topic_gets_the_same_message_once(aws: Sandbox, ami: str) -> None:
    topic = aws.client("sns").create_topic(Name="images")["TopicArn"]
    request = {"channel": "stable", "regions": [WEST], "topic": topic}
    assert outcomes(plan(**request).apply())[HOME][-1] == "announce created"
    assert outcomes(plan(**request).apply())[HOME][-1] == "announce unchanged"
    (message,) = aws.state.tables.table(aws.account, HOME, "topics")[topic].messages
    content = json.loads(message.text)
    assert (content["channel"], content["amis"][HOME]) == ("stable", ami)
    assert set(content["amis"]) == {HOME, WEST}


def test_a_missing_topic_does_not_undo_the_promotion(aws: Sandbox, ami: str) -> None:
    topic = aws.client("sns").create_topic(Name="images")["TopicArn"]
    made = plan(channel="stable", topic=topic)
    aws.client("sns").delete_topic(TopicArn=topic)
    found = made.apply()
    assert outcomes(found)[HOME] == ["set channel changed", "announce failed"]
    error = found.error
    assert isinstance(error, errors.PartialError)
    assert "1 of 1 region succeeded" in error.what
    with pytest.raises(errors.ParameterError, match="No SNS topic"):
        plan(channel="stable", topic=topic)


def test_an_ami_that_was_disabled_after_the_plan_is_not_promoted(aws: Sandbox, ami: str) -> None:
    made = plan(channel="stable")
    aws.client("ec2").disable_image(ImageId=ami)
    found = made.apply()
    assert "is disabled" in found.failed[0].why
    assert channel_value(aws, HOME) == ""
    assert aws.calls.matching("ssm:PutParameter") == []  # a launch could not read it in between


def test_the_ami_is_found_by_name_by_channel_and_as_the_newest(aws: Sandbox, ami: str) -> None:
    newer = make_ami(aws, version="26.12")
    plan(ami="altf4llc-ecs-node-26.11", channel="candidate").apply()
    assert channel_value(aws, HOME, "candidate") == ami
    plan(ami="candidate", channel="stable").apply()
    assert channel_value(aws, HOME) == ami
    plan(channel="stable").apply()
    assert channel_value(aws, HOME) == newer
    with pytest.raises(errors.ChannelError, match="has no value"):
        plan(ami="candidate", image="other-node", channel="stable")
