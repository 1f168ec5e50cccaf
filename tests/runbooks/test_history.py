"""The public history: the results of runs in the archive, and the tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops import history
from vmsnix_ops.errors import ParameterError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in AWS with three runs, and that of runs with --sandbox with one."""
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://ec2.eu-west-1.amazonaws.com")
    put(tmp_path / "archive", 1, "audit-inventory", findings_high=5, region="eu-west-1")
    put(tmp_path / "archive", 2, "publish-ami", status="failed", parameters={"image": "web"})
    put(tmp_path / "archive", 8, "audit-inventory", findings_high=2, tables=[{"title": "x"}], endpoint="aws")
    put(tmp_path / "sandbox" / "archive", 9, "audit-inventory", findings_high=9, sandbox="http://127.0.0.1:1")
    return tmp_path


def put(archive: Path, day: int, runbook: str, **values: Any) -> None:
    folder = archive / f"202611{day:02}T080000000Z-{runbook}-0a0b0c"
    folder.mkdir(parents=True)
    started = {"started_at": f"2026-11-{day:02}T08:00:00.000+00:00", "seconds": 2.5}
    entry = {"run_id": folder.name, "runbook": runbook, "status": "done", "sandbox": None} | started | values
    (folder / "result.json").write_text(json.dumps(entry))


def days(frame: Any) -> list[int]:
    return [one.day for one in frame["started_at"]]


def test_the_results_of_a_runbook_are_a_frame(archive: Path) -> None:
    found = history.results("audit-inventory")
    assert list(found["findings_high"]) == [2, 5]
    assert (found["findings_high"].dtype, str(found["started_at"].dtype)) == ("Int64", "datetime64[us, UTC]")
    assert "failure" not in found
    assert history.unpack(found, "tables")["tables.title"].dropna().tolist() == ["x"]
    assert days(history.results("audit")) == [8, 1]  # the short name


def test_the_results_are_filtered_as_the_tables(archive: Path) -> None:
    assert days(history.results()) == [8, 2, 1]
    assert days(history.results(["publish-ami", "audit-inventory"], since="2026-11-02")) == [8, 2]
    assert days(history.results(until="2026-11-02", status=["done", "partial"])) == [1]
    assert days(history.results(image="web")) == [2]
    assert days(history.results(region="eu-west-1", last=1)) == [1]
    assert days(history.results(endpoint="sandbox")) == [9]
    assert days(history.results(endpoint="all")) == [9, 8, 2, 1]
    statuses = history.results()["status"]
    assert list(statuses > "done") == [False, True, False]
    assert history.results("fleet").empty


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"runbook": "audit-inventry"}, "Did you mean 'audit-inventory'?"),
        ({"status": "faild"}, "Did you mean 'failed'?"),
        ({"stauts": "failed"}, "Did you mean 'status'?"),
        ({"since": "soon"}, "neither a duration nor a date"),
    ],
)
def test_a_wrong_argument_of_the_results_is_explained(
    archive: Path, arguments: dict[str, str], text: str
) -> None:
    with pytest.raises(ParameterError, match=text):
        history.results(**arguments)  # type: ignore[arg-type]
