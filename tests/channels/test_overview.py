"""The list of channels has one row for each channel and region; what cannot be read is unknown."""

from __future__ import annotations

import html
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tests.aws.account import make_ami
from tests.channels.conftest import EUROPE, HOME, WEST
from tests.pages import Page
from vmsnix_ops import channels, errors
from vmsnix_ops.channels import history, overview, promote, rollback
from vmsnix_ops.progress import silent
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

USUAL: dict[str, Any] = {"dry_run": False, "progress": silent()}
STABLE = "/vmsnix/ecs-node/stable"


def promoted(aws: Sandbox, version: str, channel: str = "stable", **options: Any) -> str:
    ami_id = make_ami(aws, version=version, image=options.pop("image", "ecs-node"))
    assert promote.plan(ami=ami_id, channel=channel, **options, **USUAL).apply().status == "done"
    return ami_id


def only(frame: pd.DataFrame) -> Any:
    (row,) = frame.to_dict("records")
    return row


def launch(aws: Sandbox, ami_id: str, number: int, kind: str = "t3.micro") -> None:
    request: dict[str, Any] = {"InstanceType": kind, "MinCount": number, "MaxCount": number}
    aws.client("ec2").run_instances(ImageId=ami_id, **request)


def deny(aws: Sandbox, operation: str, region: str = HOME) -> None:
    where = {"region": region}
    aws.faults.add(
        {"op": operation, "do": "error", "code": "AccessDeniedException", "http": 403, "where": where}
    )


@pytest.fixture(autouse=True)
def no_faults(aws: Sandbox) -> Any:
    yield
    aws.faults.clear()


def test_each_channel_has_a_row_in_each_region(aws: Sandbox) -> None:
    old = promoted(aws, "26.11", regions=[EUROPE])
    new = promoted(aws, "26.12", "candidate")
    promoted(aws, "1.0", image="gc-fwd")
    launch(aws, old, 3)
    frame = channels.read()
    assert list(frame.columns) == list(overview.COLUMNS)
    assert frame.attrs["regions"] == [HOME, EUROPE]
    assert frame[["image", "channel", "region"]].to_numpy().tolist() == [
        ["ecs-node", "candidate", HOME],
        ["ecs-node", "stable", EUROPE],
        ["ecs-node", "stable", HOME],
        ["gc-fwd", "stable", HOME],
    ]
    candidate, _, stable, _ = frame.to_dict("records")
    assert (candidate["ami_id"], candidate["name"]) == (new, "altf4llc-ecs-node-26.12")
    assert (candidate["instances"], candidate["older_instances"]) == (0, 3)
    assert (stable["ami_id"], stable["instances"], stable["older_instances"]) == (old, 3, 0)
    assert stable["state"] == "available"
    assert "promote-ami" in stable["run_id"]
    assert stable["changed_by"].endswith(":user/operator")
    assert stable["age_days"] >= 0
    assert not frame["drifted"].any()
    assert frame["proven_at"].isna().all()
    assert set(frame["problem"]) == {""}
    assert overview.error_of(frame) is None
    assert list(channels.read(image="gc-fwd")["image"]) == ["gc-fwd"]


def test_a_region_is_read_with_few_calls(aws: Sandbox) -> None:
    for image in ("a", "b", "c"):
        promoted(aws, "1", image=image)
    before = len(aws.calls)
    assert len(channels.read(regions=[HOME])) == 3
    made = [call.operation for call in list(aws.calls)[before:]]
    for_each_channel = ("GetParameterHistory", "DescribeImageAttribute", "DescribeSnapshotAttribute")
    assert sorted(made) == sorted(
        [
            "DescribeImages",
            "DescribeInstances",
            "DescribeSnapshots",
            "GetCallerIdentity",
            "GetParametersByPath",
            *(3 * for_each_channel),
        ]
    )


def test_a_region_without_channels_has_no_row_and_is_named(aws: Sandbox) -> None:
    frame = channels.read(regions=[WEST])
    assert frame.empty
    assert str(channels.show(frame)) == f"No channel has a value in {WEST}. To set one, use vmsnix promote."
    assert f"in {WEST}" in channels.page(frame)
    of_image = channels.read(image="ecs-node", regions=[WEST])
    assert str(channels.show(of_image)).startswith(f"No channel of 'ecs-node' has a value in {WEST}.")


def test_all_means_every_enabled_region(aws: Sandbox) -> None:
    promoted(aws, "26.11")
    frame = channels.read(regions=["all"])
    assert {HOME, WEST, EUROPE} <= set(frame.attrs["regions"])
    assert only(frame)["region"] == HOME


def test_a_region_that_cannot_be_read_is_unknown(aws: Sandbox) -> None:
    promoted(aws, "26.11", regions=[EUROPE])
    deny(aws, "ssm:GetParametersByPath", EUROPE)
    frame = channels.read()
    stable, unknown = frame.to_dict("records")
    assert (stable["region"], stable["state"]) == (HOME, "available")
    assert (unknown["region"], unknown["state"], unknown["channel"]) == (EUROPE, "unknown", "")
    assert pd.isna(unknown["drifted"])
    assert pd.isna(unknown["instances"])
    assert "GetParametersByPath" in unknown["problem"]
    error = overview.error_of(frame)
    assert isinstance(error, errors.PartialError)
    assert unknown["problem"] in error.why


@pytest.mark.parametrize(
    ("operation", "unknown"),
    [
        ("ec2:DescribeImages", {"state", "drifted", "older_instances"}),
        ("ec2:DescribeInstances", {"instances", "older_instances"}),
        ("ec2:DescribeSnapshots", {"drifted"}),
        ("ec2:DescribeImageAttribute", {"drifted"}),
        ("ssm:GetParameterHistory", {"changed_by"}),
    ],
)
def test_what_cannot_be_read_is_unknown(aws: Sandbox, operation: str, unknown: set[str]) -> None:
    ami_id = promoted(aws, "26.11")
    deny(aws, operation)
    row = only(channels.read())
    assert row["ami_id"] == ami_id
    assert {
        name
        for name in ("state", "drifted", "instances", "older_instances", "run_id", "changed_by", "since")
        if pd.isna(row[name]) or row[name] in ("", "unknown")
    } == unknown
    assert row["problem"].startswith(f"{HOME}: ")
    assert operation.partition(":")[2].lower() in row["problem"].lower()


def test_tables_that_cannot_be_read_make_the_drift_unknown(aws: Sandbox) -> None:
    promoted(aws, "26.11")
    for log in Path(load().history).rglob("_delta_log/*.json"):
        log.write_text("{")
    row = only(channels.read())
    assert pd.isna(row["drifted"])
    assert pd.isna(row["older_instances"])
    assert row["instances"] == 0
    assert row["problem"]
    aws.client("ssm").delete_parameter(Name=STABLE)
    frame = channels.read()
    assert frame.empty
    error = overview.error_of(frame)  # other regions may have channels
    assert error is not None
    assert error.why == row["problem"]
    assert "vmsnix history rebuild" in error.why
    assert error.fix == ""  # no action is missing
    assert row["problem"] in html.unescape(channels.page(frame))


def test_an_empty_history_of_another_machine_is_not_a_drift(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    promoted(aws, "26.11")
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "other"))
    row = only(channels.read())
    assert pd.isna(row["drifted"])
    assert row["drift"] == "not recorded"
    assert row["problem"] == ""
    assert "promote-ami" in row["run_id"]


def test_a_channel_that_another_tool_set_has_drifted(aws: Sandbox) -> None:
    promoted(aws, "26.11")
    other = make_ami(aws, version="26.12")
    aws.client("ssm").put_parameter(Name=STABLE, Value=other, Overwrite=True, DataType="aws:ec2:image")
    row = only(channels.read())
    assert (row["ami_id"], row["drifted"], row["drift"], row["run_id"]) == (other, True, "channel", "")
    assert row["changed_by"].endswith(":user/operator")


def test_an_ami_that_was_shared_by_hand_has_drifted(aws: Sandbox) -> None:
    ami_id = promoted(aws, "26.11")
    permission = {"Add": [{"UserId": "109876543210"}]}
    aws.client("ec2").modify_image_attribute(ImageId=ami_id, LaunchPermission=permission)
    row = only(channels.read())
    assert (row["drifted"], row["drift"]) == (True, "shared_with")
    assert "shared_with" in str(channels.show(channels.read()))


def test_a_deregistered_ami_is_gone_and_a_deleted_channel_is_not_set(aws: Sandbox) -> None:
    ami_id = promoted(aws, "26.11")
    launch(aws, ami_id, 1)
    aws.client("ec2").deregister_image(ImageId=ami_id)
    row = only(channels.read())
    assert (row["state"], row["drift"], row["instances"]) == ("deleted", "ami", 1)
    assert row["name"] == "altf4llc-ecs-node-26.11"  # from the tables
    aws.client("ssm").delete_parameter(Name=STABLE)
    row = only(channels.read())
    assert (row["state"], row["ami_id"], row["drift"]) == ("not set", "", "channel")


def test_a_value_that_is_no_ami_is_invalid_and_not_shown(aws: Sandbox) -> None:
    ssm = aws.client("ssm")
    ssm.put_parameter(Name=STABLE, Value="hunter2", Type="SecureString")
    ssm.put_parameter(Name="/vmsnix/ecs-node/settings/token", Value="hunter2", Type="SecureString")
    ssm.put_parameter(Name="/vmsnix/other", Value="ami-0123456789abcdef0", Type="String")
    frame = channels.read()
    assert (only(frame)["state"], only(frame)["ami_id"], only(frame)["drift"]) == ("invalid", "", "channel")
    assert "hunter2" not in frame.to_csv()


def test_since_is_the_first_time_that_the_value_was_set(aws: Sandbox) -> None:
    ami_id = promoted(aws, "26.11")
    before = only(channels.read())
    aws.clock.advance(3600)
    aws.client("ssm").put_parameter(Name=STABLE, Value=ami_id, Overwrite=True, DataType="aws:ec2:image")
    after = only(channels.read())
    assert (after["since"], after["run_id"]) == (before["since"], before["run_id"])


def test_instances_of_deregistered_amis_are_older_ones(
    aws: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = promoted(aws, "26.10"), promoted(aws, "26.11")
    arm = make_ami(aws, version="26.11-arm", Architecture="arm64", BootMode="uefi")
    promoted(aws, "26.12")
    launch(aws, first, 2)
    launch(aws, second, 1)
    launch(aws, arm, 1, "t4g.small")  # of another architecture, so it is not counted
    aws.client("ec2").deregister_image(ImageId=first)
    assert only(channels.read())["older_instances"] == 3
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "other"))  # only the channel's history has it
    assert only(channels.read())["older_instances"] == 3


def test_after_a_rollback_the_newer_ami_is_not_an_older_one(aws: Sandbox) -> None:
    promoted(aws, "26.11")
    bad = promoted(aws, "26.12")
    launch(aws, bad, 1)
    back = rollback.plan(image="ecs-node", channel="stable", **USUAL).apply()
    row = only(channels.read())
    assert row["run_id"] == back.plan.run.run_id
    assert (row["instances"], row["older_instances"]) == (0, 0)


def test_many_amis_are_counted_with_one_call(aws: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    old = promoted(aws, "26.11")
    promoted(aws, "26.12")
    launch(aws, old, 2)
    monkeypatch.setattr(history, "VALUES_IN_A_FILTER", 1)
    before = len(aws.calls)
    assert only(channels.read())["older_instances"] == 2
    assert [call.operation for call in list(aws.calls)[before:]].count("DescribeInstances") == 1


@pytest.mark.parametrize("verdict", ["proven", "differs"])
def test_the_last_proof_is_shown(aws: Sandbox, verdict: str) -> None:
    ami_id, when = promoted(aws, "26.11"), datetime.now(UTC) - timedelta(days=2)
    row = {
        "run_id": "r",
        "proved_at": when,
        "ami_id": ami_id,
        "region": HOME,
        "verdict": verdict,
        "extent": "whole",
        "snapshot_id": "snap-1",
    }
    open_tables(load()).append("proofs", [row])
    found = only(channels.read())
    if verdict == "proven":
        assert found["proven_at"] == pd.Timestamp(when).floor("us")
    else:
        assert pd.isna(found["proven_at"])
        assert (found["drifted"], found["drift"]) == (True, "content")


def test_the_page_is_one_file_that_loads_nothing(aws: Sandbox) -> None:
    ami_id = promoted(aws, "26.11")
    deny(aws, "ssm:GetParametersByPath", EUROPE)
    frame = channels.read(regions=[HOME, EUROPE])
    frame.loc[0, "name"] = "<script>alert(1)</script>"
    text = channels.page(frame)
    page = Page(text)
    assert not {"link", "img", "iframe"} & page.tags
    assert not {"src", "href", "style"} & page.attributes.keys()
    assert "&lt;script&gt;alert(1)" in text  # without JavaScript
    channel, unread = page.rows("Channels")
    assert (channel["ami_id"], channel["name"]) == (ami_id, "<script>alert(1)</script>")
    assert (channel["instances"], channel["drift"], channel["proven"]) == (0, "none", "never")
    assert (unread["region"], unread["state"]) == (EUROPE, "unknown")
    assert "GetParametersByPath" in unread["problem"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"regions": ["eu-west-9"]}, errors.InvalidRegionError),
        ({"regions": [HOME, "cn-north-1"]}, errors.InvalidRegionError),
        ({"regions": HOME}, errors.ParameterError),
        ({"image": "a b"}, errors.ParameterError),
        ({"image": ".."}, None),
    ],
)
def test_invalid_arguments_are_refused(aws: Sandbox, arguments: Any, error: Any) -> None:
    if error is None:
        assert channels.read(**arguments).empty
        return
    with pytest.raises(error):
        channels.read(**arguments)
