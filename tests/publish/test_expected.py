"""How long a step usually takes is told from earlier ones of the same kind and size, and only from those."""

from __future__ import annotations

from datetime import UTC, datetime

from vmsnix_ops.publish.expected import usual_seconds
from vmsnix_ops.records.tables import Tables

KIND = {"step": "import", "via": "import", "region": "us-east-1"}


def row(seconds, size=1000, **changes):
    common = {"run_id": f"r{seconds}", "status": "finished", "started_at": datetime.now(UTC)}
    return {**common, **KIND, "seconds": seconds, "bytes": size, **changes}


def test_the_median_of_the_same_size_is_told(tmp_path):
    tables = Tables(tmp_path)
    tables.append("steps", [row(10), row(20, 1100), row(600, 900)])
    tables.append("steps", [row(9000, 10_000), row(1, status="failed"), row(2, region="eu-west-1")])
    assert usual_seconds(tables, **KIND, size=1000) == 20


def test_nothing_is_told_from_too_few(tmp_path):
    tables = Tables(tmp_path)
    assert usual_seconds(tables, **KIND, size=1000) is None
    tables.append("steps", [row(10), row(20)])
    assert usual_seconds(tables, **KIND, size=1000) is None
