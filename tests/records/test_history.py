"""Reading runs, steps and AMIs from the tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import UsageError
from vmsnix_ops.records import history
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "history")


def run(run_id: str, hours: float, **more: object) -> dict[str, object]:
    row = {"run_id": run_id, "runbook": "publish-ami", "status": "done", "started_at": NOON + hours * HOUR}
    return row | more


def step(run_id: str, name: str, hours: float, **more: object) -> dict[str, object]:
    row = {"run_id": run_id, "step": name, "status": "created", "started_at": NOON + hours * HOUR}
    return row | more


def ami(ami_id: str, hours: float, **more: object) -> dict[str, object]:
    row = {"ami_id": ami_id, "name": f"name-of-{ami_id}", "region": "eu-west-1", "source": "publish"}
    return row | {"recorded_at": NOON + hours * HOUR} | more


def test_runs_come_newest_first(tables: Tables) -> None:
    tables.append("runs", [run("middle", 1), run("old", 0)])
    tables.append("runs", [run("new", 2)])
    assert list(history.runs(tables)["run_id"]) == ["new", "middle", "old"]
    assert list(history.runs(tables).index) == [0, 1, 2]


def test_runs_are_filtered(tables: Tables) -> None:
    tables.append(
        "runs",
        [
            run("a", 0, region="eu-west-1", image="ecs-node", status="failed"),
            run("b", 1, region="us-east-1", image="ecs-node"),
            run("c", 2, region="us-east-1", image="nat", runbook="preflight"),
        ],
    )
    assert list(history.runs(tables, image="ecs-node")["run_id"]) == ["b", "a"]
    assert list(history.runs(tables, region="us-east-1", image="nat")["run_id"]) == ["c"]
    assert list(history.runs(tables, status="failed")["run_id"]) == ["a"]
    assert list(history.runs(tables, runbook="preflight")["run_id"]) == ["c"]
    assert list(history.runs(tables, run_id="b")["run_id"]) == ["b"]
    assert list(history.runs(tables, last=2)["run_id"]) == ["c", "b"]
    assert list(history.runs(tables, since=NOON + HOUR)["run_id"]) == ["c", "b"]
    assert history.runs(tables, last=0).empty


def test_since_may_be_a_duration(tables: Tables) -> None:
    now = datetime.now(UTC)
    tables.append(
        "runs", [run("old", 0) | {"started_at": now - 3 * HOUR}, run("new", 0) | {"started_at": now}]
    )
    assert list(history.runs(tables, since=2 * HOUR)["run_id"]) == ["new"]


def test_a_time_without_a_zone_and_a_negative_number_are_refused(tables: Tables) -> None:
    with pytest.raises(UsageError, match="has no time zone"):
        history.runs(tables, since=NOON.replace(tzinfo=None))
    with pytest.raises(UsageError, match="negative"):
        history.steps(tables, last=-1)


def test_an_empty_history_has_its_columns(tables: Tables) -> None:
    for frame in (history.runs(tables), history.steps(tables, via="direct"), history.amis(tables, last=3)):
        assert frame.empty
        assert "region" in frame.columns


def test_steps_are_filtered(tables: Tables) -> None:
    tables.append(
        "steps", [step("a", "upload", 0, via="import"), step("a", "register", 1), step("b", "upload", 2)]
    )
    assert list(history.steps(tables, run_id="a")["step"]) == ["register", "upload"]
    assert list(history.steps(tables, step="upload")["run_id"]) == ["b", "a"]
    assert list(history.steps(tables, via="import")["run_id"]) == ["a"]


def test_the_latest_row_of_an_ami_and_region_counts(tables: Tables) -> None:
    tables.append("amis", [ami("ami-1", 0, state="available"), ami("ami-2", 1)])
    tables.append("amis", [ami("ami-1", 2, state="disabled"), ami("ami-1", 0.5, region="us-east-1")])
    frame = history.amis(tables)
    assert list(zip(frame["ami_id"], frame["region"], strict=True)) == [
        ("ami-1", "eu-west-1"),
        ("ami-2", "eu-west-1"),
        ("ami-1", "us-east-1"),
    ]
    assert frame.loc[0, "state"] == "disabled"
    assert len(history.amis(tables, all_rows=True)) == 4


def test_a_filter_does_not_return_outdated_rows(tables: Tables) -> None:
    tables.append(
        "amis", [ami("ami-1", 0, run_id="first", image="old"), ami("ami-1", 1, run_id="second", image="new")]
    )
    assert history.amis(tables, run_id="first").empty
    assert history.amis(tables, image="old").empty
    assert len(history.amis(tables, run_id="first", all_rows=True)) == 1
    assert list(history.amis(tables, image="new", ami_id="ami-1")["run_id"]) == ["second"]


def test_amis_are_filtered(tables: Tables) -> None:
    tables.append(
        "amis", [ami("ami-1", 0, digest="aa"), ami("ami-2", 1, region="us-east-1"), ami("ami-3", 2)]
    )
    assert list(history.amis(tables, digest="aa")["ami_id"]) == ["ami-1"]
    assert list(history.amis(tables, region="us-east-1")["ami_id"]) == ["ami-2"]
    assert list(history.amis(tables, name="name-of-ami-3")["ami_id"]) == ["ami-3"]
    assert list(history.amis(tables, since=NOON + HOUR, last=1)["ami_id"]) == ["ami-3"]
