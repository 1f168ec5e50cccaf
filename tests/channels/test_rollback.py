"""Rollbacks: one reversible step, and never to an AMI that cannot be launched."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.aws.account import make_ami
from tests.channels.conftest import EUROPE, HOME, WEST, channel_value, outcomes
from tests.support import finish
from vmsnix_ops import errors
from vmsnix_ops.aws import images, parameters
from vmsnix_ops.channels import history, promote, rollback
from vmsnix_ops.channels.history import COLUMNS
from vmsnix_ops.progress import silent
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox import Sandbox

USUAL: dict[str, Any] = {"dry_run": False, "progress": silent()}


def promoted(aws: Sandbox, *versions: str, regions: tuple[str, ...] = ()) -> list[str]:
    """Promote these versions to stable in order, and return the AMIs of the home region."""
    made = []
    for version in versions:
        made.append(make_ami(aws, version=version))
        found = promote.plan(ami=made[-1], channel="stable", regions=regions, **USUAL).apply()
        assert found.status == "done"
    return made


def roll_back(**options: Any) -> rollback.RollbackPlan:
    return rollback.plan(**({"image": "ecs-node", "channel": "stable"} | USUAL | options))


def test_a_rollback_sets_the_earlier_ami_and_to_returns_to_the_later_one(aws: Sandbox) -> None:
    old, new = promoted(aws, "26.11", "26.12", regions=(EUROPE,))
    plan = roll_back()  # the regions come from the tables
    assert [target.region for target in plan.targets] == [HOME, EUROPE]
    assert "altf4llc-ecs-node-26.11" in str(plan)
    assert outcomes(plan.apply()) == {HOME: ["set channel changed"], EUROPE: ["set channel changed"]}
    assert channel_value(aws, HOME) == old
    there = images.describe_ami(aws.client("ec2", EUROPE), channel_value(aws, EUROPE))
    assert there.name == "altf4llc-ecs-node-26.11"
    assert roll_back(to="altf4llc-ecs-node-26.12").apply().status == "done"
    assert channel_value(aws, HOME) == new
    # An ID belongs to one region; in the others the same image is found.
    assert outcomes(roll_back(to=old).apply()) == {
        HOME: ["set channel changed"],
        EUROPE: ["set channel changed"],
    }
    assert channel_value(aws, EUROPE) == there.ami_id
    rows = open_tables(load()).read("promotions", where=[("how", "==", "roll back")])
    assert len(rows) == 6


def test_repeating_a_rollback_changes_nothing(aws: Sandbox) -> None:
    """After a lost answer, an interrupt or a repeated CI job, the bad AMI must not return."""
    old, _ = promoted(aws, "26.11", "26.12")
    assert outcomes(roll_back().apply()) == {HOME: ["set channel changed"]}
    plan = roll_back()
    assert "already rolled back" in str(plan)
    assert "pass --to altf4llc-ecs-node-26.12" in str(plan)
    assert outcomes(plan.apply()) == {HOME: ["set channel unchanged"]}
    assert channel_value(aws, HOME) == old


def test_an_old_rollback_is_not_rolled_back_without_to(aws: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, _, _ = promoted(aws, "26.10", "26.11", "26.12")
    roll_back().apply()
    monkeypatch.setattr(rollback, "REPEATED_WITHIN", timedelta(days=-999))
    (target,) = roll_back().targets
    text = str(target.problem)
    assert "in us-east-1 was already rolled back" in text
    assert "pass --to altf4llc-ecs-node-26.12" in text
    assert "altf4llc-ecs-node-26.10" in text
    assert outcomes(roll_back(to="altf4llc-ecs-node-26.10").apply()) == {HOME: ["set channel changed"]}
    assert channel_value(aws, HOME) == oldest


def test_the_title_of_a_plan_has_channel_image_and_account(aws: Sandbox) -> None:
    promoted(aws, "26.11", "26.12")
    assert str(roll_back()).startswith("Move channel stable of ecs-node back to an earlier AMI, account ")


def test_a_dry_run_sets_no_channel(aws: Sandbox) -> None:
    _, new = promoted(aws, "26.11", "26.12")
    assert {row.outcome for row in roll_back(dry_run=True).apply().rows} == {"planned"}
    assert channel_value(aws, HOME) == new


def test_the_history_shows_times_writers_and_instances(aws: Sandbox) -> None:
    old, new = promoted(aws, "26.11", "26.12")
    ec2 = aws.client("ec2")
    ec2.run_instances(ImageId=old, InstanceType="t3.micro", MinCount=2, MaxCount=2)
    terminated = ec2.run_instances(ImageId=new, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    ec2.terminate_instances(InstanceIds=[terminated["Instances"][0]["InstanceId"]])
    table = roll_back().history()
    assert list(table.columns) == list(COLUMNS)
    assert list(table["ami_id"]) == [new, old]
    assert list(table["instances"]) == [0, 2]
    assert list(table["state"]) == ["available", "available"]
    assert table["until"].isna().tolist() == [True, False]
    assert all(who.endswith(":user/operator") for who in table["changed_by"])
    assert "promoted by the run" in table["note"][0]


def deregister(ec2: Any, ami: str) -> None:
    ec2.deregister_image(ImageId=ami)


def disable(ec2: Any, ami: str) -> None:
    ec2.disable_image(ImageId=ami)


@pytest.mark.parametrize(("spoil", "text"), [(deregister, "no longer exists"), (disable, "is disabled")])
@pytest.mark.variants
def test_an_unusable_ami_is_refused_and_older_ones_are_suggested(
    aws: Sandbox, spoil: Callable[[Any, str], None], text: str
) -> None:
    oldest, old, new = promoted(aws, "26.10", "26.11", "26.12")
    spoil(aws.client("ec2"), old)
    plan = roll_back()
    (target,) = plan.targets
    assert text in str(target.problem)
    assert "--to: altf4llc-ecs-node-26.10" in str(target.problem)
    with pytest.raises(errors.ChannelError, match=text):
        finish(plan.apply())
    assert channel_value(aws, HOME) == new
    assert outcomes(roll_back(to="altf4llc-ecs-node-26.10").apply()) == {HOME: ["set channel changed"]}
    assert outcomes(roll_back(to=oldest).apply()) == {
        HOME: ["set channel unchanged"]
    }  # with `to` it is repeatable


def test_a_deprecated_ami_is_refused(aws: Sandbox) -> None:
    old, _ = promoted(aws, "26.11", "26.12")
    image = aws.state.tables.table(aws.account, HOME, "images")[old]
    image.deprecate_at = datetime.now(UTC) - timedelta(days=1)
    assert "has been deprecated since" in str(roll_back().targets[0].problem)


def test_an_ami_without_its_snapshot_is_refused(aws: Sandbox) -> None:
    old, _ = promoted(aws, "26.11", "26.12")
    image = aws.state.tables.table(aws.account, HOME, "images")[old]
    for snapshot_id in image.snapshot_ids():
        del aws.state.tables.table(aws.account, HOME, "snapshots")[snapshot_id]
    assert "is incomplete" in str(roll_back().targets[0].problem)


def test_a_killed_rollback_is_finished_by_running_it_again(aws: Sandbox) -> None:
    old, _ = promoted(aws, "26.11", "26.12", regions=(EUROPE,))
    roll_back(regions=[HOME]).apply()  # as if it was killed before the second region
    assert outcomes(roll_back().apply()) == {HOME: ["set channel unchanged"], EUROPE: ["set channel changed"]}
    assert channel_value(aws, HOME) == old


def test_regions_with_different_images_are_refused(aws: Sandbox) -> None:
    promoted(aws, "26.10", "26.11", regions=(EUROPE,))
    promoted(aws, "26.12")  # in one of the two regions
    with pytest.raises(errors.ParameterError, match="contain different images"):
        roll_back()
    assert outcomes(roll_back(to="altf4llc-ecs-node-26.10").apply()) == {
        HOME: ["set channel changed"],
        EUROPE: ["set channel changed"],
    }


def test_regions_with_different_images_are_refused_although_their_earlier_image_is_the_same(
    aws: Sandbox,
) -> None:
    promoted(aws, "26.10", "26.11", regions=(EUROPE,))
    roll_back(regions=[HOME]).apply()
    promoted(aws, "26.12")
    with pytest.raises(errors.ParameterError, match="contain different images"):
        roll_back()


def test_a_deregistered_current_ami_does_not_prevent_a_rollback(aws: Sandbox) -> None:
    old, _ = promoted(aws, "26.11", "26.12", regions=(EUROPE,))
    deregister(aws.client("ec2", EUROPE), channel_value(aws, EUROPE))
    assert roll_back().apply().status == "done"
    assert channel_value(aws, HOME) == old


def test_a_lost_answer_is_not_a_failure_if_the_channel_was_set(aws: Sandbox) -> None:
    old, new = promoted(aws, "26.11", "26.12")
    plan = roll_back()
    lost = {"op": "ssm:PutParameter", "do": "drop", "when": "after"}
    aws.faults.add(lost)
    try:
        assert outcomes(plan.apply()) == {HOME: ["set channel changed"]}
    finally:
        aws.faults.clear()
    assert channel_value(aws, HOME) == old
    row = open_tables(load()).read("promotions").sort_values("promoted_at").iloc[-1]
    assert (row["how"], row["ami_id"], row["previous_ami_id"]) == ("roll back", old, new)


def test_an_interrupt_between_regions_lists_the_finished_ones(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = promoted(aws, "26.11", "26.12", regions=(EUROPE,))
    plan, set_channel = roll_back(), parameters.set_channel

    def interrupted(ssm: Any, *words: Any, **more: Any) -> Any:
        if ssm.meta.region_name == EUROPE:
            raise KeyboardInterrupt
        return set_channel(ssm, *words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(parameters, "set_channel", interrupted)
        with pytest.raises(errors.InterruptedRunError, match="Rolled back so far: us-east-1") as caught:
            plan.apply()
    assert "--to altf4llc-ecs-node-26.11" in caught.value.fix
    tables = open_tables(load())
    assert list(tables.read("steps", where=[("run_id", "==", plan.run.run_id)])["region"]) == [HOME]
    assert "cancelled" in set(tables.read("runs")["status"])
    assert outcomes(roll_back().apply()) == {HOME: ["set channel unchanged"], EUROPE: ["set channel changed"]}
    assert channel_value(aws, HOME) == old


def test_a_channel_is_not_set_to_an_ami_disabled_after_the_plan(aws: Sandbox) -> None:
    old, new = promoted(aws, "26.11", "26.12")
    plan = roll_back()
    disable(aws.client("ec2"), old)
    writes = len(aws.calls.matching("ssm:PutParameter"))
    assert "is disabled" in plan.apply().rows[0].why
    assert channel_value(aws, HOME) == new
    assert len(aws.calls.matching("ssm:PutParameter")) == writes  # a launch could not read it in between


def test_a_region_without_the_channel_is_skipped_unless_it_is_given(aws: Sandbox) -> None:
    promoted(aws, "26.11", "26.12", regions=(EUROPE,))
    aws.client("ssm", EUROPE).delete_parameter(Name="/vmsnix/ecs-node/stable")
    plan = roll_back()
    assert "Skipped eu-west-1: it has no such channel" in str(plan)
    assert outcomes(plan.apply()) == {HOME: ["set channel changed"]}


def test_a_rollback_does_not_need_permission_to_count_instances(aws: Sandbox) -> None:
    promoted(aws, "26.11", "26.12")
    denied = {"op": "ec2:DescribeInstances", "do": "error", "code": "UnauthorizedOperation", "http": 403}
    aws.faults.add(denied)
    try:
        plan = roll_back()
        assert plan.history()["instances"].isna().all()
        assert "unknown" in str(history.show(plan.history()))
        assert plan.apply().status == "done"
    finally:
        aws.faults.clear()


def test_a_topic_gets_the_amis_of_the_channel(aws: Sandbox) -> None:
    topic = aws.client("sns").create_topic(Name="images")["TopicArn"]
    options: dict[str, Any] = {"channel": "stable", "topic": topic, **USUAL}
    old, new = make_ami(aws, version="26.11"), make_ami(aws, version="26.12")
    for ami_id in (old, new):
        promote.plan(ami=ami_id, **options).apply()
    assert outcomes(roll_back(topic=topic, dry_run=True).apply())[HOME] == [
        "set channel planned",
        "announce planned",
    ]
    assert outcomes(roll_back(topic=topic).apply())[HOME] == ["set channel changed", "announce created"]
    assert outcomes(roll_back(topic=topic).apply())[HOME] == ["set channel unchanged", "announce unchanged"]
    messages = aws.state.tables.table(aws.account, HOME, "topics")[topic].messages
    assert [json.loads(one.text)["amis"][HOME] for one in messages] == [old, new, old]
    with pytest.raises(errors.ParameterError, match="No SNS topic"):
        roll_back(topic=f"{topic}s")


def test_a_channel_changed_after_the_plan_is_not_rolled_back(aws: Sandbox) -> None:
    promoted(aws, "26.11", "26.12")
    plan = roll_back()
    (newest,) = promoted(aws, "27.01")
    assert "after the plan was made" in plan.apply().rows[0].why
    assert channel_value(aws, HOME) == newest


def test_a_given_region_without_the_channel_fails_and_the_others_roll_back(aws: Sandbox) -> None:
    old, _ = promoted(aws, "26.11", "26.12")
    found = roll_back(regions=[HOME, WEST]).apply()
    assert outcomes(found) == {HOME: ["set channel changed"], WEST: ["set channel failed"]}
    error = found.error
    assert isinstance(error, errors.PartialError)
    assert error.exit_code == 3
    assert channel_value(aws, HOME) == old


def test_all_means_every_region_with_the_channel(aws: Sandbox) -> None:
    old, _ = promoted(aws, "26.11", "26.12", regions=(EUROPE,))
    found = roll_back(regions=["all"])  # read from AWS, because the tables may be lost
    assert {target.region for target in found.targets} == {HOME, EUROPE}
    assert found.apply().status == "done"
    assert channel_value(aws, HOME) == old


def test_with_a_damaged_table_of_promotions_the_regions_must_be_given(aws: Sandbox) -> None:
    old, _ = promoted(aws, "26.11", "26.12")
    commits = sorted((Path(load().history) / "promotions" / "_delta_log").glob("*.json"))
    commits[-1].write_text('{"commitInfo": {"oper')
    with pytest.raises(errors.RecordsError, match="pass --regions all"):
        roll_back()
    roll_back(regions=["all"]).apply()
    assert channel_value(aws, HOME) == old


def test_a_region_given_twice_is_rolled_back_once(aws: Sandbox) -> None:
    old, _ = promoted(aws, "26.11", "26.12")
    assert outcomes(roll_back(regions=[HOME, HOME]).apply()) == {HOME: ["set channel changed"]}
    assert channel_value(aws, HOME) == old


def test_an_unrecorded_rollback_is_recorded_by_the_next_run(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = promoted(aws, "26.11", "26.12")
    append = Tables.append

    def full(tables: Tables, table: str, *rows: Any, **more: Any) -> None:
        if table == "promotions":
            raise errors.RecordsError("The disk is full.")
        append(tables, table, *rows, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "append", full)
        found = roll_back().apply()
    assert outcomes(found) == {HOME: ["set channel changed", "record failed"]}
    error = found.error
    assert isinstance(error, errors.PartialError)
    name = found.fix.removeprefix("Run it again with --to ").split(":")[0]
    assert name in error.fix
    again = roll_back(to=name).apply()
    assert outcomes(again) == {HOME: ["set channel unchanged"]}
    row = open_tables(load()).read("promotions").sort_values("promoted_at").iloc[-1]
    assert (row["how"], row["ami_id"], row["previous_ami_id"]) == ("roll back", old, new)
    assert channel_value(aws, HOME) == old


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        ({"channel": "stabel"}, errors.ParameterError, "Did you mean 'stable'"),
        ({"image": "other-node"}, errors.ChannelError, "No parameter /vmsnix/other-node/stable"),
        ({"regions": ["eu-west-7"]}, errors.RegionError, "is not an AWS region"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_parameters_are_refused(aws: Sandbox, wrong: dict[str, Any], kind: type, text: str) -> None:
    with pytest.raises(kind, match=text):
        roll_back(**wrong)


def test_a_channel_with_one_value_cannot_be_rolled_back(aws: Sandbox) -> None:
    promoted(aws, "26.11")
    assert "has only ever been" in str(roll_back().targets[0].problem)
