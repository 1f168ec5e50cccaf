"""Evidence on S3: one upload a file, and proof of writing before anything runs."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runbooks.shelf import Shelf

BUCKET = "evidence"


@pytest.fixture
def aws() -> Iterator[Any]:
    with sandbox(speed=1000) as served:
        served.client("s3").create_bucket(Bucket=BUCKET)
        yield served


def puts(aws: Any) -> Counter[str]:
    """Return how often each key was put, by its last part."""
    calls = [call for call in aws.calls if call.operation == "PutObject"]
    return Counter(str(call.params["Key"]).rpartition("/")[2] for call in calls)


def test_trap_11_each_file_is_uploaded_once(shelf: Shelf, aws: Any) -> None:
    cells = [f"print({number})" for number in range(5)]
    outcome = shelf.run(*cells, archive=f"s3://{BUCKET}/runs/", environment=aws.environment)
    assert outcome.verdict == "done"
    # result.json says `running` before the first cell; that put is the proof that the archive can be written.
    assert puts(aws) == {"notebook.ipynb": 1, "report.html": 1, "log.txt": 1, "result.json": 2}
    s3 = aws.client("s3")
    assert outcome.result == f"s3://{BUCKET}/runs/{outcome.run_id}/result.json"
    result = s3.get_object(Bucket=BUCKET, Key=f"runs/{outcome.run_id}/result.json")["Body"].read()
    assert json.loads(result) == outcome.values
    report = s3.get_object(Bucket=BUCKET, Key=f"runs/{outcome.run_id}/report.html")
    assert report["ContentType"].startswith("text/html")


def test_nothing_is_left_on_this_machine(shelf: Shelf, aws: Any) -> None:
    shelf.run("1", archive=f"s3://{BUCKET}", environment=aws.environment)
    assert list((shelf.archive.parent / "state").rglob("*.*")) == []


def test_a_failed_run_is_archived_too(shelf: Shelf, aws: Any) -> None:
    outcome = shelf.run("1 / 0", archive=f"s3://{BUCKET}", environment=aws.environment)
    key = outcome.notebook.removeprefix(f"s3://{BUCKET}/")
    notebook = aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert b"ZeroDivisionError" in notebook


def test_a_bucket_that_is_not_there_is_refused_before_anything_runs(
    shelf: Shelf, aws: Any, tmp_path: Any
) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(ArchiveError, match=r"s3://no-such-bucket.*NoSuchBucket"):
        shelf.run(f"open({str(ran)!r}, 'w')", archive="s3://no-such-bucket/runs", environment=aws.environment)
    assert not ran.exists()
    assert list((shelf.archive.parent / "state").rglob("*.*")) == []


def test_an_archive_that_goes_away_leaves_the_files_here_and_says_where(shelf: Shelf, aws: Any) -> None:
    aws.faults.add(
        {"op": "s3:PutObject", "do": "error", "nth": 2, "code": "AccessDenied", "message": "No.", "http": 403}
    )
    with pytest.raises(ArchiveError, match="files of this run are in") as refused:
        shelf.run("1", archive=f"s3://{BUCKET}", environment=aws.environment)
    (folder,) = (shelf.archive.parent / "state" / "runs").iterdir()
    assert str(folder) in refused.value.cure
    assert (folder / "notebook.ipynb").is_file()
