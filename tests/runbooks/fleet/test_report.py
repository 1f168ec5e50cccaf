"""The evidence of a fleet when the archive refuses it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.records.result import KEYS
from vmsnix_ops.runbooks.evidence.archive import RunFolder
from vmsnix_ops.runbooks.fleet.report import FleetResult, page, write
from vmsnix_ops.runbooks.fleet.worker import FleetTarget
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("refused", ["*/objects/*/report.html", "*/result.json"])
def test_files_that_s3_refuses_are_kept_and_do_not_hide_the_result(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_OUTPUT", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    document = FleetTarget("greet", "greet", {}, {}, "k").document("done")
    result = FleetResult("nightly", "run", False, (document,), 1.0)
    with sandbox() as aws:
        aws.client("s3").create_bucket(Bucket="records")
        denied = {"do": "error", "code": "AccessDenied", "http": 403}
        aws.faults.add({"op": "s3:PutObject", "where": {"Key": refused}, **denied})
        folder = RunFolder("run", tmp_path / "run", "s3://records/archive", aws.environment)
        values = write(result, folder, datetime.now(UTC), None)
    assert (values["status"], values["exit_code"]) == ("done", 3)
    assert len(values["problems"]) == 1
    assert "AccessDenied" in values["problems"][0]
    name = refused.rpartition("/")[2]
    assert (tmp_path / "run" / name).is_file()
    if name == "result.json":
        assert json.loads((tmp_path / "run" / name).read_text())["exit_code"] == 3


def test_a_target_that_was_a_dry_run_is_marked() -> None:
    document = {"target": "a", "runbook": "retire-amis", "state": "done", "attempts": [], "error": None}
    marked, plain = ({**document, "result": {"dry_run": dry_run}} for dry_run in (True, False))
    result = FleetResult("nightly", "", False, (marked, plain), 0.0)
    assert str(result.table()).count("done (dry run)") == 1
    values = {**dict.fromkeys(KEYS), **result.as_dict(), "run_id": "f", "started_at": "", "seconds": 1.0}
    assert page(values, result.documents, "/").count('<span class="dry-run">') == 1
