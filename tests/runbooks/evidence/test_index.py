"""The list of all runs is complete, also if runs end at once, and never fails a run."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import index
from vmsnix_ops.runbooks.evidence.runs import Archive
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runbooks.shelf import Shelf

BUCKET = "evidence"
NASTY = "<script>alert(1)</script>"
WRITES_PAGE = """
import os, pathlib
pathlib.Path(os.environ["VMSNIX_RUN_DIR"], "audit.html").write_text("the page")
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[Any]:
    with sandbox(speed=1000) as served:
        served.client("s3").create_bucket(Bucket=BUCKET)
        yield served


class Links(HTMLParser):
    """The rows that the page shows without JavaScript: the texts of the cells, and the addresses of links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ended = False
        self.rows: list[tuple[str, list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append(("", []))
        elif tag == "a":
            self.rows[-1][1].append(unquote(dict(attrs)["href"] or ""))

    def handle_endtag(self, tag: str) -> None:
        self.ended = self.ended or tag == "table"

    def handle_data(self, data: str) -> None:
        if self.rows and not self.ended:
            self.rows[-1] = (f"{self.rows[-1][0]} {data.strip()}".strip(), self.rows[-1][1])


def page_of(folder: Path) -> list[tuple[str, list[str]]]:
    return Links((folder / "index.html").read_text()).rows[1:]


def rows_of(folder: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((folder / "index.json").read_text())["runs"]
    return rows


def put(folder: Path, **values: Any) -> str:
    """Write the entry of a run into a local archive."""
    run_id = new_run_id(values.setdefault("runbook", "audit-inventory"))
    (folder / run_id).mkdir(parents=True)
    found = {"run_id": run_id, "status": "done", "started_at": "2026-11-30T10:00:00.000+00:00", **values}
    (folder / run_id / "result.json").write_text(json.dumps(found))
    return run_id


def test_the_page_links_the_report_of_each_run_and_the_page_of_an_audit(shelf: Shelf) -> None:
    done = shelf.run(WRITES_PAGE)
    failed = shelf.run("1 / 0")
    rows = page_of(shelf.archive)
    assert [re.search(r"\b(done|failed)\b", text)[0] for text, _ in rows] == ["failed", "done"]  # type: ignore[index]
    for (text, links), outcome in zip(rows, (failed, done), strict=True):
        assert outcome.run_id in text
        assert (shelf.archive / links[0]).read_bytes() == Path(outcome.report).read_bytes()
    assert [[(shelf.archive / one).read_text() for one in links[1:]] for _, links in rows] == [
        [],
        ["the page"],
    ]
    assert not failed.problems


def test_missing_and_running_runs_are_added_and_deleted_ones_dropped(tmp_path: Path) -> None:
    opened = Archive(str(tmp_path), tmp_path)
    first, second = put(tmp_path, dry_run=True, ami_id="ami-1"), put(tmp_path, status="running")
    index.rebuild(opened)
    assert {one: row["status"] for one, row in rows_of(tmp_path).items()} == {first: "done", second: "lost"}
    (text,) = (text for text, _ in page_of(tmp_path) if first in text)
    assert "dry run" in text
    assert "ami-1" in text
    third = put(tmp_path, status="failed", failure={"what": NASTY})
    shutil.rmtree(tmp_path / first)
    index.rebuild(opened)
    assert list(rows_of(tmp_path)) == sorted((third, second), reverse=True)
    page = (tmp_path / "index.html").read_text()
    assert NASTY not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def test_a_damaged_list_is_made_again(tmp_path: Path) -> None:
    run_id = put(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 1, "runs": ')
    index.rebuild(Archive(str(tmp_path), tmp_path))
    assert list(rows_of(tmp_path)) == [run_id]


def test_only_new_runs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Archive.read_all

    def counted(self: Archive, ids: list[str]) -> Any:
        read.extend(ids)
        return original(self, ids)

    monkeypatch.setattr(Archive, "read_all", counted)
    opened = Archive(str(tmp_path), tmp_path)
    ids = [put(tmp_path) for _ in range(12)]
    sizes = []
    for _ in range(4):
        index.rebuild(opened, most=5)
        sizes.append(len(rows_of(tmp_path)))
    assert sizes == [5, 10, 12, 12]
    assert sorted(read) == sorted(ids)
    index.rebuild(opened, most=None)
    assert len(read) == 24


def test_runs_that_end_at_once_are_all_in_the_list_of_a_folder(tmp_path: Path) -> None:
    ids = [put(tmp_path) for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        folders = [archives.RunFolder(one, tmp_path / one, "", {}) for one in ids]
        assert set(pool.map(lambda one: index.add(one, {"status": "done"}), folders)) == {""}
    assert sorted(rows_of(tmp_path)) == sorted(ids)
    assert all(any(one in text for text, _ in page_of(tmp_path)) for one in ids)


def test_runs_that_end_at_once_are_all_in_the_list_of_a_bucket(aws: Any, tmp_path: Path) -> None:
    """Each writer replaces only the list that it has read."""
    location = f"s3://{BUCKET}/at-once"
    ids, s3 = [put(tmp_path) for _ in range(8)], aws.client("s3")
    for one in ids:  # a row without a run in the archive is removed
        s3.upload_file(tmp_path / one / "result.json", BUCKET, f"at-once/{one}/result.json")
    with ThreadPoolExecutor(8) as pool:
        folders = [archives.RunFolder(one, tmp_path / one, location, aws.environment) for one in ids]
        assert set(pool.map(lambda one: index.add(one, {"status": "done"}), folders)) == {""}
    data, page = (
        s3.get_object(Bucket=BUCKET, Key=f"at-once/{name}")["Body"].read().decode()
        for name in ("index.json", "index.html")
    )
    assert sorted(json.loads(data)["runs"]) == sorted(ids)
    assert all(one in page for one in ids)


def test_a_run_in_a_bucket_links_its_report_and_its_page(shelf: Shelf, aws: Any) -> None:
    outcome = shelf.run(WRITES_PAGE, archive=f"s3://{BUCKET}/runs", environment=aws.environment)
    assert outcome.problems == ()
    page = aws.client("s3").get_object(Bucket=BUCKET, Key="runs/index.html")
    assert page["ContentType"].startswith("text/html")
    ((text, (report, audit)),) = Links(page["Body"].read().decode()).rows[1:]
    assert outcome.run_id in text
    assert f"s3://{BUCKET}/runs/{report}" == outcome.report
    kept = aws.client("s3").get_object(Bucket=BUCKET, Key=f"runs/{audit}")
    assert kept["Body"].read() == b"the page"
    assert kept["ContentType"].startswith("text/html")


def test_a_list_that_cannot_be_written_does_not_change_the_status_of_a_run(shelf: Shelf) -> None:
    (shelf.archive / index.LOCK).mkdir(parents=True)
    outcome = shelf.run("print(1)")
    assert (outcome.status, outcome.exit_code) == ("done", 0)
    (problem,) = outcome.problems
    assert problem.startswith("The list of runs was not updated")
    assert json.loads(Path(outcome.result).read_text())["problems"] == []
