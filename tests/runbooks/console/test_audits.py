"""The tabs Inventory and Findings show the evidence of the newest audit, also from a bucket."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.runbooks.console.tabs import last_audit
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARCHIVE = "s3://evidence/runs"
FINDINGS = b"severity,rule,account,created_at\nhigh,public,012345678901,2026-11-25T10:00:00+00:00\n"
RUN = "20261125T100000998Z-audit-inventory-0a1b2c"


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Any]:
    """A backend with an archive in a bucket."""
    with sandbox(speed=1000) as aws:
        aws.client("s3").create_bucket(Bucket="evidence")
        settings = load(tmp_path, {"VMSNIX_ARCHIVE": ARCHIVE, "VMSNIX_STATE": str(tmp_path)})
        yield SimpleNamespace(environment=aws.environment, settings=lambda: settings)


def keep(backend: Any, content: bytes) -> None:
    kept = f"{ARCHIVE}/objects/some/findings.csv"
    files = {"findings.csv": {"place": kept, "sha256": hashlib.sha256(FINDINGS).hexdigest(), "bytes": 1}}
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
    keep(backend, FINDINGS.replace(b"high", b"low"))
    with pytest.raises(ArchiveError, match="was changed"):
        last_audit(backend, "findings")


def test_without_an_audit_the_table_has_no_rows(backend: Any) -> None:
    frame, entry = last_audit(backend, "findings")
    assert frame.empty
    assert entry is None
