"""Evidence on S3: each file is uploaded once, and the archive is written before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.redaction import Redactor
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runbooks.shelf import Shelf

BUCKET = "evidence"


@pytest.fixture(scope="module")
def served_sandbox() -> Iterator[Any]:
    with sandbox(speed=1000) as served:
        served.client("s3").create_bucket(Bucket=BUCKET)
        yield served


@pytest.fixture
def aws(served_sandbox: Any) -> Any:
    served_sandbox.faults.clear()
    served_sandbox.calls.clear()
    return served_sandbox


def content(aws: Any, place: str) -> bytes:
    bucket, _, key = place.removeprefix("s3://").partition("/")
    return aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()


def puts(aws: Any) -> Counter[str]:
    """Return the number of uploads of each key, by its last part."""
    calls = [call for call in aws.calls if call.operation == "PutObject"]
    return Counter(str(call.params["Key"]).rpartition("/")[2] for call in calls)


def test_each_file_is_uploaded_once(shelf: Shelf, aws: Any) -> None:
    cells = [f"print({number})" for number in range(5)]
    outcome = shelf.run(*cells, archive=f"s3://{BUCKET}/runs/", environment=aws.environment)
    assert (outcome.status, outcome.problems) == ("done", ())
    # The first put of result.json has the status `running`, and proves that the archive can be written.
    once = ("notebook.ipynb", "report.html", "log.txt", "evidence.jsonl", "index.json", "index.html")
    assert puts(aws) == {**dict.fromkeys(once, 1), "result.json": 2}
    assert outcome.result == f"s3://{BUCKET}/runs/{outcome.run_id}/result.json"
    assert json.loads(content(aws, outcome.result)) == outcome.values
    s3 = aws.client("s3")
    for name, kept in outcome.values["files"].items():
        body = content(aws, kept["place"])
        assert kept["place"] == f"s3://{BUCKET}/runs/objects/{hashlib.sha256(body).hexdigest()}/{name}"
        assert kept["bytes"] == len(body)
    assert outcome.report == outcome.values["files"]["report.html"]["place"]
    report = s3.get_object(Bucket=BUCKET, Key=outcome.report.removeprefix(f"s3://{BUCKET}/"))
    assert report["ContentType"].startswith("text/html")


def test_the_entry_of_a_run_is_never_without_its_lock(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another process could take a run that has just started for a lost one."""
    write, locked = archive.RunFolder.write_json, []

    def observed(self: archive.RunFolder, name: str, value: Any) -> None:
        locked.append(archive.is_running(self.local))
        write(self, name, value)

    monkeypatch.setattr(archive.RunFolder, "write_json", observed)
    shelf.run("print(1)")
    assert locked == [True, True]


def test_a_secret_in_a_linked_file_is_removed_from_the_evidence_only(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("Zq7/hunter+Xk29=pL0")
    folder = archive.RunFolder("one", tmp_path / "run", "", {}, Redactor(("Zq7/hunter+Xk29=pL0",)))
    folder.local.mkdir()
    folder.path("link.txt").symlink_to(outside)
    assert folder.redact() == []
    assert folder.path("link.txt").read_text() == "[secret removed: secret of the environment]"
    assert outside.read_text() == "Zq7/hunter+Xk29=pL0"


def test_the_same_evidence_is_not_uploaded_twice(tmp_path: Path, aws: Any) -> None:
    for number in range(2):
        folder = archive.open_folder(
            f"s3://{BUCKET}", f"run-{number}", {}, work=tmp_path, environment=aws.environment
        )
        folder.path(archive.REPORT).write_text("the same page")
        first, second = folder.store(archive.REPORT), folder.store(archive.REPORT)
        assert first == second
        folder.close(done=True)
    assert puts(aws)["report.html"] == 1


def test_an_incomplete_upload_is_repeated(tmp_path: Path, aws: Any) -> None:
    folder = archive.open_folder(f"s3://{BUCKET}", "run", {}, work=tmp_path, environment=aws.environment)
    folder.path(archive.REPORT).write_text("the page")
    kept = folder.store(archive.REPORT)
    assert kept is not None
    aws.client("s3").put_object(Bucket=BUCKET, Key=kept["place"].removeprefix(f"s3://{BUCKET}/"), Body=b"the")
    assert folder.store(archive.REPORT) == kept
    assert content(aws, kept["place"]) == b"the page"
    folder.release()


def test_nothing_is_left_on_this_machine(shelf: Shelf, aws: Any) -> None:
    shelf.run("1", archive=f"s3://{BUCKET}", environment=aws.environment)
    left = (shelf.archive.parent / "state").rglob("*.*")
    assert [path.parent.name for path in left] == ["anchors"]  # the SHA-256 of its journal


def test_all_files_in_the_folder_of_a_run_are_evidence(shelf: Shelf, aws: Any) -> None:
    cell = """\
import json, os, pathlib
folder = pathlib.Path(os.environ["VMSNIX_RUN_DIR"])
(folder / "tables").mkdir()
(folder / "tables" / "findings.csv").write_text("a,b")
(folder / "result.json").write_text(json.dumps({"findings": str(folder / "tables" / "findings.csv")}))
"""
    outcome = shelf.run(cell, archive=f"s3://{BUCKET}", environment=aws.environment)
    place = outcome.values["findings"]
    assert place == outcome.values["files"]["tables/findings.csv"]["place"]
    assert place.startswith(f"s3://{BUCKET}/objects/")
    assert content(aws, place) == b"a,b"


def test_a_failed_run_is_archived_too(shelf: Shelf, aws: Any) -> None:
    outcome = shelf.run("1 / 0", archive=f"s3://{BUCKET}", environment=aws.environment)
    key = outcome.notebook.removeprefix(f"s3://{BUCKET}/")
    notebook = aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert b"ZeroDivisionError" in notebook


def test_a_missing_bucket_is_refused_before_anything_runs(shelf: Shelf, aws: Any, tmp_path: Any) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(ArchiveError, match=r"s3://no-such-bucket.*NoSuchBucket"):
        shelf.run(f"open({str(ran)!r}, 'w')", archive="s3://no-such-bucket/runs", environment=aws.environment)
    assert not ran.exists()
    assert list((shelf.archive.parent / "state").rglob("*.*")) == []


def test_if_the_archive_fails_the_result_and_the_files_are_kept_on_this_machine(
    shelf: Shelf, aws: Any
) -> None:
    aws.faults.add(
        {"op": "s3:PutObject", "do": "error", "nth": 2, "code": "AccessDenied", "message": "No.", "http": 403}
    )
    outcome = shelf.run("1", archive=f"s3://{BUCKET}", environment=aws.environment)
    assert (outcome.status, outcome.exit_code) == ("partial", 3)
    (folder,) = (shelf.archive.parent / "state" / "runs").iterdir()
    (problem,) = outcome.problems
    assert "AccessDenied" in problem
    assert str(folder) in problem
    assert outcome.notebook == str(folder / "notebook.ipynb")
    assert Path(outcome.notebook).is_file()
    assert json.loads(content(aws, outcome.result))["problems"] == [problem]


def test_the_journal_of_an_unfinished_run_is_kept_to_undo_it(shelf: Shelf, aws: Any) -> None:
    write = "import os, pathlib\npathlib.Path(os.environ['VMSNIX_RUN_DIR'], 'journal.jsonl').write_text('{}')"
    outcome = shelf.run(write, "1 / 0", archive=f"s3://{BUCKET}", environment=aws.environment)
    folder = shelf.archive.parent / "state" / "runs" / outcome.run_id
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]
    assert content(aws, outcome.values["files"]["journal.jsonl"]["place"]) == b"{}"


def test_the_archive_is_written_with_the_profile_of_the_run(
    tmp_path: Path, aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fleet, each target has its own profile, which must also write the archive."""
    keys = aws.environment
    lines = ["[profile other]", *(f"{name.lower()} = {keys[name]}" for name in keys if "KEY" in name)]
    (tmp_path / "config").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    environment = {name: value for name, value in keys.items() if "KEY" not in name}
    archive.put({**environment, "AWS_PROFILE": "other"}, f"s3://{BUCKET}/by-profile", b"evidence")
    assert content(aws, f"s3://{BUCKET}/by-profile") == b"evidence"
