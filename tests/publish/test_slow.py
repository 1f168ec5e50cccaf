"""Slow steps: each step is recorded with the image's name, and a slow one is reported at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from vmsnix_ops import display, errors
from vmsnix_ops.nix import build as nix
from vmsnix_ops.nix.image import read_image
from vmsnix_ops.records import history, timings
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

BEFORE = 12


def earlier(step, seconds, **changes):
    """Return rows of `BEFORE` runs before this one."""
    begin = datetime.now(UTC) - timedelta(days=BEFORE)
    common = {"step": step, "status": "created", "image": "sample", "region": "us-east-1", "via": "import"}
    return [
        {**common, "run_id": f"r{n}", "started_at": begin + timedelta(days=n), "seconds": seconds, **changes}
        for n in range(BEFORE)
    ]


@pytest.fixture
def hair_trigger(monkeypatch):
    """Report steps as slow that took less than a second more than usual: in the sandbox, all are fast."""
    monkeypatch.setattr(timings, "SECONDS", 0.0)


def test_a_step_slower_than_its_history_is_reported_at_the_end(plan, hair_trigger):
    tables = open_tables(load())
    tables.append("steps", earlier("import", 0.001))
    tables.append("steps", earlier("register", 3600.0))
    wanted = plan()
    result = wanted.apply()
    (slow,) = result.slow
    assert (slow.step, slow.usual_seconds, slow.limit_seconds) == ("import", 0.001, 0.002)
    assert slow.earlier == BEFORE
    assert slow.seconds == pytest.approx(
        next(t.seconds for t in result.steps if t.step == "import"), abs=0.001
    )
    took = f"import took {display.seconds(slow.seconds)}; usual: 0 s (median of 12 earlier steps)"
    assert took in str(result)
    written = json.loads((wanted.journal.run.folder / "result.json").read_text())
    assert written["slow"] == [slow.as_dict()]
    assert written["status"] == "done"


def test_the_history_of_other_images_regions_and_methods_does_not_count(plan, hair_trigger):
    tables = open_tables(load())
    for other in ({"image": "other"}, {"region": "eu-west-1"}, {"via": "direct"}):
        tables.append("steps", earlier("import", 0.001, **other))
    result = plan().apply()
    assert result.slow == ()
    assert "slow" not in str(result)


def test_a_history_that_cannot_be_read_does_not_fail_a_publish(plan, monkeypatch):
    def broken(*_given, **_more):
        raise errors.RecordsError("The table 'steps' is damaged.")

    monkeypatch.setattr(timings, "finished_steps", broken)
    wanted = plan()
    result = wanted.apply()
    assert result.ami_id
    assert result.slow is None
    assert json.loads((wanted.journal.run.folder / "result.json").read_text())["slow"] is None


def test_a_dry_run_is_not_measured(plan):
    assert plan(dry_run=True).apply().slow is None


def test_the_row_of_a_build_has_the_image_that_was_built(plan, image, monkeypatch):
    wanted = replace(plan(), image="./nix#sample")
    monkeypatch.setattr(nix, "resolve_image", lambda *_, **__: replace(read_image(image), items=12))
    built = wanted.build()
    (row,) = history.steps(open_tables(load()), step="build").to_dict("records")
    assert (row["image"], row["status"], row["items"]) == (built.name, "created", 12)


def test_the_row_of_a_failed_build_has_the_requested_image(plan, monkeypatch):
    def fails(*_given, **_more):
        raise errors.BuildFailedError("The image ecs-node was not built.", derivation="x", log=())

    wanted = replace(plan(), image="./nix#packages.x86_64-linux.ecs-node")
    monkeypatch.setattr(nix, "resolve_image", fails)
    with pytest.raises(errors.BuildFailedError):
        wanted.build()
    tables = open_tables(load())
    (row,) = history.steps(tables, step="build").to_dict("records")
    assert (row["image"], row["status"]) == ("ecs-node", "failed")
    assert list(history.runs(tables)["image"]) == ["ecs-node"]
