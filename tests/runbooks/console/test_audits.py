"""The tabs Inventory and Findings show the evidence of the newest audit, also from a bucket."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.runbooks.console.tabs import FindingsTab, last_audit
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARCHIVE = "s3://evidence/runs"
ACKNOWLEDGED = b"""\
severity,rule,region,resource_id,acknowledged_until,acknowledged_by,acknowledged_reason
high,public,us-east-1,ami-1,,,
low,old,us-east-1,ami-2,2027-06-30T23:59:59.000000Z,ops,=<sample>
"""
FINDINGS = b"severity,rule,account,created_at\nhigh,public,012345678901,2026-11-25T10:00:00+00:00\n"
RUN = "20261125T100000998Z-audit-inventory-0a1b2c"


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Any]:
    """A backend with an archive in a bucket."""
    with sandbox(speed=1000) as aws:
        aws.client("s3").create_bucket(Bucket="evidence")
        settings = load(tmp_path, {"VMSNIX_ARCHIVE": ARCHIVE, "VMSNIX_STATE": str(tmp_path)})
        yield SimpleNamespace(environment=aws.environment, settings=lambda: settings, url="sandbox")


def keep(backend: Any, content: bytes, *, listed: bytes = b"") -> None:
    """Archive an audit whose entry has the digest of the content, or of other content."""
    kept = f"{ARCHIVE}/objects/some/findings.csv"
    files = {
        "findings.csv": {"place": kept, "sha256": hashlib.sha256(listed or content).hexdigest(), "bytes": 1}
    }
    entry = {"runbook": "audit-inventory", "status": "done", "started_at": "2026-11-25T10:00:00+00:00"}
    archive.put(backend.environment, kept, content)
    archive.put(
        backend.environment, f"{ARCHIVE}/{RUN}/result.json", json.dumps({**entry, "files": files}).encode()
    )


def test_an_audit_that_was_archived_in_a_bucket_is_shown(backend: Any) -> None:
    keep(backend, FINDINGS)
    frame, entry = last_audit(backend, "findings")
    assert entry is not None
    assert entry.run_id == RUN
    assert frame.loc[0, "account"] == "012345678901"
    assert str(frame.loc[0, "created_at"].tz) == "UTC"


def test_a_changed_table_is_not_shown(backend: Any) -> None:
    keep(backend, FINDINGS.replace(b"high", b"low"), listed=FINDINGS)
    with pytest.raises(ArchiveError, match="was changed"):
        last_audit(backend, "findings")


def test_acknowledged_findings_are_folded_and_counted_apart(backend: Any) -> None:
    keep(backend, ACKNOWLEDGED)
    tab = FindingsTab(lambda _name, _values: None, lambda _row: None)
    tab.refresh(backend, 0)
    assert tab._problem.value == ""
    assert "ami-1" in tab._grid.table.html
    assert "ami-2" not in tab._grid.table.html
    assert "1 of 1" in tab._grid._count.value
    folded = tab._folded.value
    assert "<details" in folded
    assert "<summary>1 acknowledged finding</summary>" in folded
    assert "ami-2" in folded
    assert "=&lt;sample&gt;" in folded
    assert "ami-1" not in folded
    keep(backend, FINDINGS)  # of an earlier version
    tab.refresh(backend, 1)
    assert tab._folded.value == ""
    assert "1 of 1" in tab._grid._count.value


def test_without_an_audit_the_table_has_no_rows(backend: Any) -> None:
    frame, entry = last_audit(backend, "findings")
    assert frame.empty
    assert entry is None
