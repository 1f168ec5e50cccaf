"""What a retirement does and reports if something else fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import finish
from vmsnix_ops import errors
from vmsnix_ops.aws import retiring
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from tests.audit.retirement.fleet import Fleet


def unwritable(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    append = Tables.append

    def full(tables: Tables, name: str, rows: Any, **more: Any) -> None:
        if name == table:
            raise errors.RecordsError("The table cannot be written.", why="No space left on device.")
        append(tables, name, rows, **more)

    monkeypatch.setattr(Tables, "append", full)


@pytest.mark.parametrize("table", ["retirements", "amis"])
def test_a_retirement_that_cannot_be_recorded_is_reported(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    amis = [fleet.ami(days=90 - n) for n in range(2)]
    orphan = fleet.snapshot(tags={tagging.DIGEST: "d"}, days=30)
    unwritable(monkeypatch, table)
    result = fleet.apply()
    assert [one.outcome for one in result.outcomes] == ["changed"] * 3
    assert set(fleet.amis().values()) == {"disabled"}
    with pytest.raises(errors.PartialError, match="No space left") as caught:
        finish(result)
    assert caught.value.exit_code == 3
    written = json.loads((result.plan.run.folder / "result.json").read_text())
    assert (written["status"], written["changed"]) == ("partial", 3)
    outcomes = {one["resource_id"]: one["outcome"] for one in written["outcomes"]}
    assert outcomes == dict.fromkeys([*amis, orphan], "changed")
    assert "No space left" in str(result)
    assert "No space left" in str(result.show_each())


def test_nothing_more_is_deleted_if_it_cannot_be_recorded(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fleet.ami(days=90), fleet.ami(days=80)
    snapshots = {*fleet.snapshots_of(first), *fleet.snapshots_of(second)}
    fleet.apply()
    with monkeypatch.context() as patch:
        unwritable(patch, "retirements")
        result = fleet.apply(now=fleet.later())
    assert [one.outcome for one in result.outcomes] == ["deleted", "skipped"]
    assert "could not be recorded" in result.outcomes[0].problem
    assert "could not be recorded" in result.outcomes[1].detail
    assert (fleet.amis(), fleet.snapshots()) == ({second: "disabled"}, snapshots)
    with pytest.raises(errors.PartialError, match="No space left"):
        finish(result)
    written = json.loads((result.plan.run.folder / "result.json").read_text())
    assert (written["deleted"], written["skipped"]) == (1, 1)
    assert [one.outcome for one in fleet.apply(now=fleet.later()).outcomes] == ["deleted", "deleted"]
    assert (fleet.amis(), fleet.snapshots()) == ({}, set())


def test_a_plan_that_cannot_be_written_does_not_hide_outcomes(fleet: Fleet) -> None:
    fleet.ami()
    result = fleet.apply()
    (result.plan.run.folder / "plan.csv").mkdir()
    with pytest.raises(errors.UnsavedError, match=r"could not be saved in .*plan\.csv"):
        finish(result)
    assert json.loads((result.plan.run.folder / "result.json").read_text())["changed"] == 1


def test_a_snapshot_that_cannot_be_deleted_does_not_keep_the_others(fleet: Fleet) -> None:
    ami = fleet.ami(devices=3)
    first, *_others = fleet.snapshots_of(ami)
    fleet.apply()
    fleet.fail("ec2:DeleteSnapshot", "OperationNotPermitted", 400, nth=[1])
    result = fleet.apply(now=fleet.later())
    (one,) = result.outcomes
    assert one.outcome == "deleted"
    assert f"{first} is kept: Could not delete" in one.problem
    assert fleet.snapshots() == {first}
    with pytest.raises(errors.PartialError, match=first):
        finish(result)
    assert [one.outcome for one in fleet.apply(now=fleet.later()).outcomes] == ["deleted"]
    assert fleet.snapshots() == set()


def test_deleting_does_not_wait_for_fast_snapshot_restore(fleet: Fleet) -> None:
    ami = fleet.ami()
    fleet.apply()
    text = "The snapshot is currently enabled for fast restores in us-east-1a."
    fleet.fail("ec2:DeleteSnapshot", "InvalidSnapshot.InUse", 400, message=text)
    (one,) = fleet.apply(now=fleet.later()).outcomes
    assert (one.outcome, fleet.amis()) == ("deleted", {})
    assert f"{fleet.snapshots().pop()} is kept" in one.problem
    assert "fast restores" in one.problem
    assert len(fleet.aws.calls.matching("ec2:DeleteSnapshot")) == 1
    assert ami in fleet.plan(now=fleet.later()).planned[0].reasons[0]


def test_an_interrupted_run_lists_outcomes_and_the_next_plan_does_the_rest(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    amis, retire = [fleet.ami(days=days) for days in (90, 80, 70)], retiring.retire
    turns: list[str] = []

    def interrupted(ec2: Any, ami: Any, *words: Any, **more: Any) -> Any:
        turns.append(ami.ami_id)
        record = retire(ec2, ami, *words, **more)
        if len(turns) == 2:
            raise KeyboardInterrupt
        return record

    plan = fleet.plan()
    with monkeypatch.context() as patch:
        patch.setattr(retiring, "retire", interrupted)
        with pytest.raises(errors.InterruptedRunError, match="1 of 3 done") as caught:
            plan.apply()
    assert turns[1] in caught.value.why
    result = json.loads((plan.run.folder / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "cancelled"
    outcomes = {one["resource_id"]: one["outcome"] for one in result["outcomes"]}
    assert list(outcomes.values()) == ["changed", "failed", "skipped"]
    assert set(outcomes) == set(amis)
    fleet.apply()
    assert set(fleet.amis().values()) == {"disabled"}
