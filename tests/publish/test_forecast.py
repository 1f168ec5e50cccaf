"""The forecast of a step comes from earlier steps of the same kind and size."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from vmsnix_ops.progress import LogLines, Progress
from vmsnix_ops.publish.pipeline import Forecast, forecast
from vmsnix_ops.records.tables import Tables, open_tables
from vmsnix_ops.settings import load

KIND = {"step": "import", "via": "import", "region": "us-east-1"}


def row(seconds, size=1000, **changes):
    common = {"run_id": f"r{seconds}", "status": "created", "started_at": datetime.now(UTC)}
    return {**common, **KIND, "seconds": seconds, "bytes": size, **changes}


def test_earlier_steps_of_the_same_size_count(tmp_path):
    tables = Tables(tmp_path)
    tables.append("steps", [row(10), row(20, 1100), row(600, 900)])
    tables.append("steps", [row(9000, 10_000), row(1, status="failed"), row(2, region="eu-west-1")])
    assert forecast(tables, **KIND, size=1000).seconds == (10, 20, 600)


def test_too_few_earlier_steps_give_no_forecast(tmp_path):
    tables = Tables(tmp_path)
    assert forecast(tables, **KIND, size=1000) is None
    tables.append("steps", [row(10), row(20)])
    assert forecast(tables, **KIND, size=1000) is None


@pytest.mark.parametrize(
    ("elapsed", "remaining"),
    [(0, 100), (20, 80), (100, 200), (150, 150), (299, 1), (300, None), (4000, None)],
)
def test_the_remaining_time_is_the_median_of_longer_steps(elapsed, remaining):
    assert Forecast((60.0, 100.0, 300.0)).remaining(elapsed) == remaining


def test_the_remaining_time_is_never_negative_and_ends_with_the_slowest_step():
    known = Forecast((1.0, 1.5, 2.0, 8.0))
    seen = [known.remaining(tenths / 10) for tenths in range(90)]
    assert all(left > 0 for left in seen[:80])
    assert set(seen[80:]) == {None}


@pytest.mark.parametrize("via", ["import", "direct"])
def test_a_publish_shows_the_remaining_time_from_earlier_ones(aws, plan, image, via):
    size = next(image.glob("*.vhd")).stat().st_size
    tables = open_tables(load())
    tables.append("steps", [row(seconds, size, via=via) for seconds in (400, 500, 600)])
    stream = io.StringIO()
    aws.clock.speed = 100  # so that there is something to wait for
    plan(via=via, progress=Progress(LogLines(stream, every=0.0))).apply()
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("import: ")]
    assert lines[0] == "import: an image of this size usually takes 8 min 20 s"
    assert any(" left" in line and "by AWS)" in line for line in lines), lines
    assert any(" 8 min 1" in line or " 8 min 2" in line for line in lines), lines


def test_a_publish_without_a_history_shows_the_progress_of_aws(aws, plan):
    stream = io.StringIO()
    aws.clock.speed = 100
    plan(progress=Progress(LogLines(stream, every=0.0))).apply()
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("import: ")]
    assert lines
    assert not any("usually" in line or "by AWS)" in line for line in lines), lines
