"""The pictures of a report: its steps, and the timeline of a channel."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.runbooks.evidence.pictures import draw
from vmsnix_ops.runbooks.evidence.report import render

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2026, 11, 25, 12, tzinfo=UTC)
RUN = "20261125T120000000Z-publish-ami-abc123"


def step(
    name: str, begin: float, end: float, status: str = "created", region: str = "us-east-1"
) -> dict[str, Any]:
    times = {"started_at": START + timedelta(seconds=begin), "finished_at": START + timedelta(seconds=end)}
    return {"run_id": RUN, "step": name, "status": status, "seconds": end - begin, **times}


def promotion(day: int, ami_id: str, how: str = "promote", **more: Any) -> dict[str, Any]:
    row = {"run_id": f"{RUN}-{day}", "promoted_at": START + timedelta(days=day), "how": how, "ami_id": ami_id}
    return {
        **row,
        "region": "us-east-1",
        "image": "web",
        "channel": "stable",
        "account": "1" * 12,
        "endpoint": endpoint_kind(),
        **more,
    }


def write(folder: Path, table: str, rows: list[dict[str, Any]]) -> None:
    line = {"table": table, "once": f"{RUN}/{table}", "rows": rows}
    (folder / "rows.jsonl").write_text(json.dumps(line, default=datetime.isoformat) + "\n")


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "tables")


def test_each_step_is_drawn_at_its_place_in_the_time_of_the_run(tmp_path: Path, tables: Tables) -> None:
    steps = [step("upload", 10, 60), step("build", 0, 10, "reused"), step("import", 60, 100, "failed")]
    write(tmp_path, "steps", steps)
    (picture,) = draw(tmp_path, tables)
    assert [lane.label for lane in picture.lanes] == ["build", "upload", "import"]
    places = [(one.start, one.length, one.colour) for lane in picture.lanes for one in lane.segments]
    assert places == [(0.0, 0.1, "soft"), (0.1, 0.5, "3"), (0.6, 0.4, "failed")]
    assert picture.lanes[1].text == "50 s, created"
    assert picture.note == "From 2026-11-25 12:00 to 2026-11-25 12:01 UTC."


def test_a_timeline_has_all_values_of_the_channel_in_each_region(tmp_path: Path, tables: Tables) -> None:
    earlier = [promotion(0, "ami-1"), promotion(2, "ami-2"), promotion(0, "ami-9", channel="beta")]
    other = promotion(1, "ami-8", account="2" * 12)
    now = promotion(3, "ami-1", "roll back", name="<script>alert(1)</script>")
    tables.append("promotions", [*earlier, other, now])
    write(tmp_path, "promotions", [now])
    (picture,) = draw(tmp_path, tables)
    assert picture.title == "Channel web/stable"
    (lane,) = picture.lanes
    assert [one.title.split()[0] for one in lane.segments] == ["ami-1", "ami-2", "ami-1"]
    assert [one.colour for one in lane.segments] == ["3", "1", "4"]
    assert sum(one.length for one in lane.segments) == pytest.approx(1)
    assert lane.segments[0].length == pytest.approx(2 * lane.segments[1].length)
    assert lane.text == "ami-1 since 2026-11-28 12:00"
    page = render(nbformat.v4.new_notebook(), {"runbook": "rollback", "status": "done"}, [picture])
    assert "<h2>Channel web/stable</h2>" in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_run_without_rows_or_with_damaged_ones_has_no_pictures(tmp_path: Path, tables: Tables) -> None:
    assert draw(tmp_path, tables) == []
    (tmp_path / "rows.jsonl").write_text('{"table": "steps", "once": "x", "rows"\n[]\n{}\n')
    assert draw(tmp_path, tables) == []
