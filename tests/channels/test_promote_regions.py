"""Promotions in many regions: a failed region does not stop the others, and the next run does the rest."""

from __future__ import annotations

import json
from concurrent.futures import wait
from typing import Any

import pytest

from tests.channels.conftest import EUROPE, HOME, OTHER, WEST, channel_value, outcomes, plan
from tests.support import finish
from vmsnix_ops import errors
from vmsnix_ops.channels import promote, verify
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.sandbox import Access, Sandbox
from vmsnix_ops.settings import load


def test_an_unreachable_region_does_not_stop_the_others(aws: Sandbox, ami: str) -> None:
    broken = {"op": "ec2:CopyImage", "where": {"region": EUROPE}, "do": "error", "code": "InternalError",
              "message": "dead", "http": 400}  # fmt: skip
    aws.faults.add(broken)
    found = plan(channel="stable", regions=[WEST, EUROPE]).apply()
    assert outcomes(found)[EUROPE] == ["copy failed", "set channel skipped"]
    assert outcomes(found)[WEST] == ["copy created", "set channel changed"]
    error = found.error
    assert isinstance(error, errors.PartialError)
    assert error.exit_code == 3
    assert "2 of 3 regions" in error.what
    assert "dead" in error.why
    aws.faults.clear()
    again = plan(channel="stable", regions=[WEST, EUROPE]).apply()
    assert outcomes(again)[WEST] == ["copy reused", "set channel unchanged"]
    assert outcomes(again)[EUROPE] == ["copy created", "set channel changed"]
    assert again.error is None


def test_a_failed_record_of_a_region_does_not_stop_the_others(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Tables.append

    def taken(tables: Tables, table: str, rows: Any, **more: Any) -> None:
        if table == "promotions" and rows.to_pylist()[0]["region"] == HOME:  # the first finished region
            raise errors.CommitConflictError("Others were faster.")
        append(tables, table, rows, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "append", taken)
        found = plan(channel="stable", regions=[WEST]).apply()
    assert outcomes(found) == {
        HOME: ["set channel changed", "record failed"],
        WEST: ["copy created", "set channel changed"],
    }
    assert isinstance(found.error, errors.PartialError)
    again = plan(channel="stable", regions=[WEST]).apply()
    assert again.error is None
    assert set(open_tables(load()).read("promotions")["region"]) == {HOME, WEST}


def test_a_failed_best_effort_region_is_reported_and_does_not_fail_the_run(aws: Sandbox, ami: str) -> None:
    aws.faults.add(
        {"op": "ec2:CopyImage", "where": {"region": EUROPE}, "do": "error", "code": "Dead", "http": 400}
    )
    made = plan(channel="stable", regions=[WEST], best_effort=[EUROPE, WEST])
    assert [(t.region, t.best_effort) for t in made.targets] == [(HOME, False), (WEST, False), (EUROPE, True)]
    found = made.apply()
    assert outcomes(found)[EUROPE] == ["copy failed", "set channel skipped"]
    assert found.status == "done"


def test_a_region_that_is_not_enabled_is_refused_in_the_plan_and_fails_alone(aws: Sandbox, ami: str) -> None:
    made = plan(channel="stable", regions=["af-south-1"])
    assert [step.outcome for step in made.targets[1].steps] == ["failed", "skipped"]
    assert "not enabled" in made.targets[1].steps[0].why
    found = made.apply()
    assert outcomes(found)[HOME] == ["set channel changed"]
    assert outcomes(found)["af-south-1"] == ["copy failed", "set channel skipped"]
    assert isinstance(found.error, errors.PartialError)


def test_a_region_given_in_regions_is_not_best_effort(aws: Sandbox, ami: str) -> None:
    every = plan(regions=["all"], best_effort=[EUROPE])
    assert [t.region for t in every.targets if t.best_effort] == [EUROPE]
    assert WEST in {target.region for target in every.targets}
    willing = plan(regions=[EUROPE], best_effort=["all"])
    assert {t.region for t in willing.targets if not t.best_effort} == {HOME, EUROPE}


def test_steps_before_a_failure_are_recorded(aws: Sandbox, ami: str) -> None:
    denied = {"op": "ssm:PutParameter", "do": "error", "code": "AccessDeniedException", "http": 400}
    aws.faults.add(denied)
    try:
        found = plan(channel="stable", share_with=[OTHER]).apply()
    finally:
        aws.faults.clear()
    assert outcomes(found)[HOME] == ["share changed", "set channel failed"]
    (row,) = open_tables(load()).read("promotions").to_dict("records")
    assert json.loads(row["shared_with"]) == [OTHER]
    assert str(row["channel"]) in ("<NA>", "nan")
    assert verify.check().drift.empty
    plan(channel="stable", share_with=[OTHER]).apply()
    assert list(open_tables(load()).read("promotions")["channel"].dropna()) == ["stable"]


def test_a_dry_run_has_the_status_of_the_promotion(aws: Sandbox, ami: str) -> None:
    request: dict[str, Any] = {"channel": "stable", "dry_run": True}
    partial = plan(regions=["af-south-1"], **request).apply()
    assert outcomes(partial)["af-south-1"] == ["copy failed", "set channel skipped"]
    assert outcomes(partial)[HOME] == ["set channel planned"]
    error = partial.error
    assert isinstance(error, errors.PartialError)
    assert "✗ failed" in str(partial)
    assert "would be partial: 1 of 2 regions would succeed" in error.what
    assert "af-south-1, copy: The region af-south-1 is not enabled" in error.why
    assert plan(best_effort=["af-south-1"], **request).apply().error is None
    assert "not enabled" in str(partial.frame().query("region == 'af-south-1'")["why"].iloc[0])


def test_a_denied_region_names_the_action_and_the_others_continue(aws: Sandbox, ami: str) -> None:
    iam = aws.client("iam")
    iam.create_user(UserName="promoter")
    allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    deny = {"Effect": "Deny", "Action": "ec2:CopyImage", "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": EUROPE}}}  # fmt: skip
    document = json.dumps({"Version": "2012-10-17", "Statement": [allow, deny]})
    iam.put_user_policy(UserName="promoter", PolicyName="only", PolicyDocument=document)
    key = iam.create_access_key(UserName="promoter")["AccessKey"]
    session = Access(aws.url, key["AccessKeyId"], key["SecretAccessKey"], aws.account).session(HOME)
    found = plan(channel="stable", regions=[WEST, EUROPE], session=session).apply()
    assert outcomes(found)[EUROPE] == ["copy failed", "set channel skipped"]
    assert "ec2:CopyImage" in found.failed[0].why
    assert outcomes(found)[WEST] == ["copy created", "set channel changed"]


def test_a_failure_in_all_regions_is_failed_and_not_partial(aws: Sandbox, ami: str) -> None:
    aws.faults.add(
        {
            "op": "ssm:PutParameter",
            "do": "error",
            "code": "ParameterLimitExceeded",
            "message": "busy",
            "http": 400,
        }
    )
    found = plan(channel="stable").apply()
    assert found.status == "failed"
    error = found.error
    assert isinstance(error, errors.AwsError)
    assert error.exit_code == 1
    with pytest.raises(errors.AwsError, match="ParameterLimitExceeded"):
        finish(found)


def test_an_interrupted_promotion_is_continued_by_the_same_command(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.clock.speed = 1.0
    try:

        def interrupt(_running: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(promote, "as_completed", interrupt)
        with pytest.raises(errors.InterruptedRunError, match="continue in AWS"):
            plan(channel="stable", regions=[EUROPE]).apply()
        monkeypatch.undo()
    finally:
        aws.clock.speed = 20000


def test_the_outcome_of_a_region_is_recorded_after_an_interrupt(
    aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes after both regions and before any record."""

    def interrupt(running: Any) -> Any:
        wait(running)
        raise KeyboardInterrupt

    monkeypatch.setattr(promote, "as_completed", interrupt)
    with pytest.raises(errors.InterruptedRunError):
        plan(channel="stable", regions=[WEST]).apply()
    tables = open_tables(load())
    assert set(tables.read("promotions")["region"]) == {HOME, WEST}
    assert set(tables.read("steps")["step"]) == {"copy", "set channel"}
    assert list(tables.read("runs")["status"]) == ["cancelled"]


def test_unwritable_tables_lose_no_outcome(aws: Sandbox, ami: str, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = aws.client("sns").create_topic(Name="images")["TopicArn"]
    made = plan(channel="stable", regions=[WEST], topic=topic)

    def full(_tables: Tables, table: str, _rows: Any, **_more: Any) -> None:
        raise errors.RecordsError(f"The table {table!r} cannot be written.", why="The disk is full.")

    monkeypatch.setattr(Tables, "append", full)
    found = made.apply()
    assert outcomes(found) == {
        HOME: [
            "set channel changed",
            "record failed",
            "announce created",
            "record failed",
        ],  # the announcement, too
        WEST: ["copy created", "set channel changed", "record failed"],
    }
    with pytest.raises(errors.PartialError, match="The disk is full"):
        finish(found)
    result = json.loads((made.run.folder / "result.json").read_text(encoding="utf-8"))
    assert [row["outcome"] for row in result["outcomes"]].count("failed") == 3
    assert channel_value(aws, HOME) == ami
