"""The demo account has the described resources, and the rows of the tables match it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from vmsnix_ops import audit, history, retire, sandbox, verify
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.sandbox import Sandbox, demo
from vmsnix_ops.sandbox.core import SandboxTables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmsnix_ops.audit import AuditResult


@pytest.fixture(scope="module")
def aws() -> Iterator[Sandbox]:
    with sandbox.sandbox(seed="demo") as aws:
        yield aws


@pytest.fixture(scope="module", autouse=True)
def account(aws: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The environment of the demo, and tables with its rows."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws.environment.items():
            patch.setenv(name, value)
        patch.setenv("VMSNIX_STATE", str(folder / "state"))
        patch.setenv("VMSNIX_PROGRESS", "silent")
        patch.setenv("VMSNIX_BUCKET", demo.BUCKET)
        patch.chdir(folder)
        for table, rows in aws.records.items():
            open_tables(load()).append(table, rows)
        yield folder


@pytest.fixture(scope="module")
def found(account: Path) -> AuditResult:
    assert account.is_dir()
    return audit.check(regions=["all"])


def test_some_dozens_of_amis_of_all_ages_images_and_regions(found: AuditResult) -> None:
    amis = found.inventory.amis
    assert 60 <= len(amis) <= 120
    assert set(amis["region"]) == set(demo.REGIONS)
    assert set(amis["image"].dropna()) == set(demo.IMAGES)
    ages = amis["age_days"]
    assert ages.max() > 600
    assert ages.min() < 30
    assert (ages > 365).sum() >= 10


def test_users_of_every_kind(found: AuditResult) -> None:
    users = found.inventory.users()
    kinds = {
        "instance",
        "launch-template",
        "auto-scaling-group",
        "launch-configuration",
        "parameter",
        "shared-with",
    }
    assert set(users["kind"]) == kinds
    assert users["detail"].str.contains("versions? .*default").any()
    amis = found.inventory.amis
    old = amis[amis["age_days"] > 365].merge(users[users["uses"]], on=["region", "ami_id"])
    assert len(old) >= 3
    assert (amis["referenced"] == False).sum() >= 5  # noqa: E712 - a nullable column


def test_drift_is_the_ami_that_was_shared_by_hand() -> None:
    drift = verify.check(regions=["all"]).drift
    assert list(drift["field"]) == ["shared_with"]
    assert demo.UNKNOWN_ACCOUNT in drift.iloc[0]["found"]
    assert demo.UNKNOWN_ACCOUNT not in drift.iloc[0]["recorded"]


def test_leftovers_public_amis_deprecation_and_failed_imports(found: AuditResult) -> None:
    frame, inventory = found.inventory.frame, found.inventory
    orphans = inventory.snapshots[inventory.snapshots["referenced"] == False]  # noqa: E712
    assert len(orphans) == 3
    kinds = frame["kind"].value_counts()
    assert {kinds[kind] for kind in ("direct-upload", "multipart-upload", "object", "import-task")} == {1}
    failed = frame[frame["kind"] == "import-task"].iloc[0]
    assert "Disk validation failed" in failed["message"]
    assert inventory.amis["public"].sum() == 1
    dates = inventory.amis["deprecated_at"].dropna()
    assert (dates < inventory.scanned_at).any()
    assert (dates > inventory.scanned_at).any()
    assert set(found.findings["rule"]) >= {
        "public",
        "shared-with-unknown",
        "no-imdsv2",
        "reference-to-missing",
        "retirement-due",
        "s3-leftover",
        "import-tasks",
        "untagged",
    }
    assert set(found.findings["severity"]) >= {"high", "medium", "low"}


def test_the_history_has_runs_steps_and_both_methods() -> None:
    runs, steps = history.runs(), history.steps()
    assert {"done", "failed", "cancelled"} <= set(runs["status"])
    assert {"publish-ami", "promote-ami", "retire-amis"} == set(runs["runbook"])
    assert set(steps["via"]) == {"import", "direct"}
    assert set(steps["run_id"]) <= set(runs["run_id"])
    span = runs["started_at"].max() - runs["started_at"].min()
    assert span > timedelta(days=700)
    amis = history.amis()
    assert {"available", "deregistered"} == set(amis["state"])
    assert set(amis["run_id"]) <= set(runs["run_id"])
    promotions = history.promotions()
    assert {"candidate", "stable"} == set(promotions["channel"])
    assert len(history.retirements()) >= 30


def test_timings_compare_both_methods() -> None:
    compared = str(history.read(image="ecs-node").show_compare())
    assert "speed-up" in compared
    assert compared.rstrip().endswith(" x")


def test_the_tables_list_the_amis_of_the_account(found: AuditResult) -> None:
    recorded = history.amis()
    present = set(recorded.loc[recorded["state"] == "available", "ami_id"])
    published = found.inventory.amis.dropna(subset="digest")
    assert present == set(published["ami_id"])


def test_a_retirement_has_something_to_plan() -> None:
    plan = str(retire.plan(regions=list(demo.REGIONS)))
    assert re.search(r"retire +\d+ AMIs and 3 orphan snapshots", plan)
    assert re.search(r"keep +\d+ AMIs", plan)


def test_the_same_time_creates_the_same_account(tmp_path: Path) -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)

    def made() -> tuple[list[str], Any]:
        tables = SandboxTables()
        rows = demo.fill(tables, "012345678901", tmp_path, now=now)
        return list(tables.table("012345678901", "us-east-1", "images")), rows

    assert made() == made()


def test_a_seed_does_not_fill_an_account_twice(tmp_path: Path) -> None:
    with sandbox.sandbox(seed="demo", state=tmp_path) as first:
        amis = len(first.client("ec2").describe_images(Owners=["self"])["Images"])
    with sandbox.sandbox(seed="demo", state=tmp_path) as again:
        assert len(again.client("ec2").describe_images(Owners=["self"])["Images"]) == amis
        assert again.records == {}


def test_an_ami_can_be_launched_and_its_snapshot_read(aws: Sandbox) -> None:
    ec2 = aws.client("ec2")
    (image, *_) = ec2.describe_images(Owners=["self"])["Images"]
    launched = ec2.run_instances(ImageId=image["ImageId"], InstanceType="t3.small", MinCount=1, MaxCount=1)
    instance = launched["Instances"][0]["InstanceId"]
    aws.clock.advance(600)
    assert "NixOS" in ec2.get_console_output(InstanceId=instance)["Output"]
    ec2.terminate_instances(InstanceIds=[instance])
    snapshot = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    ebs = aws.client("ebs")
    listed = ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=100)["Blocks"]
    for block in listed[:2]:
        ebs.get_snapshot_block(SnapshotId=snapshot, **block)


def test_an_unknown_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="use 'demo'"):
        sandbox.sandbox(seed="dmeo")  # type: ignore[arg-type]


def test_rows_fit_the_schemas(aws: Sandbox) -> None:
    assert all(len(rows) for rows in aws.records.values())
    assert pd.DataFrame(aws.records["runs"])["run_id"].is_unique
