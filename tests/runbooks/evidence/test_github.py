"""Step outputs and summary of a GitHub Actions job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmsnix_ops.errors import RunError
from vmsnix_ops.runbooks.evidence.github import outputs, summary, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

VALUES = {
    "runbook": "publish-ami",
    "status": "done",
    "ami_id": "ami-1",
    "image_name": "altf4llc-x",
    "seconds": 75.2,
    "exit_code": 0,
    "public": False,
    "snapshot_id": None,
    "parameters": {"image": "x"},
    "steps": [{"step": "upload", "status": "created", "seconds": 3.0, "bytes": 2048}],
    "failure": None,
    "error": None,
    "report": "/r/report.html",
}


def parse(text: str) -> dict[str, str]:
    """Parse ``$GITHUB_OUTPUT`` like GitHub's runner."""
    found, lines = {}, iter(text.splitlines())
    for line in lines:
        if "<<" in line and ("=" not in line or line.index("<<") < line.index("=")):
            key, _, word = line.partition("<<")
            value = []
            for inner in lines:
                if inner == word:
                    break
                value.append(inner)
            found[key] = "\n".join(value)
        else:
            key, _, value_text = line.partition("=")
            found[key] = value_text
    return found


def test_texts_and_numbers_of_a_result_become_step_outputs() -> None:
    found = parse(outputs(VALUES))
    assert found["ami_id"] == "ami-1"
    assert found["public"] == "false"
    assert found["exit_code"] == "0"
    assert not {"parameters", "steps", "snapshot_id", "failure"} & set(found)


def test_a_value_with_several_lines_cannot_add_outputs() -> None:
    hostile = "first\nami_id=ami-evil\nEOF\nlast"
    found = parse(outputs({"error": hostile, "ami_id": "ami-1"}))
    assert found == {"error": hostile, "ami_id": "ami-1"}


def test_the_summary_shows_result_and_steps() -> None:
    text = summary(VALUES)
    assert text.startswith("## ✅ publish-ami: done\n")
    incomplete = summary({**VALUES, "status": "partial", "problems": ["The report could not be created."]})
    assert incomplete.startswith("## ⚠️ publish-ami: partial, evidence incomplete\n")
    assert "| ami_id | `ami-1` |" in text
    assert "| seconds | 1 min 15 s |" in text
    assert "| upload | created | 3.0 s | 2.0 KiB |" in text
    assert "| report | `/r/report.html` |" in text


def test_the_summary_shows_slow_steps() -> None:
    slow = [{"step": "import", "text": "import took 41 min 0 s; usual is 11 min 2 s, by the 50 before it"}]
    assert "\n> Slow: import took 41 min 0 s; usual is 11 min 2 s" in summary(VALUES | {"slow": slow})
    assert "Slow" not in summary(VALUES | {"slow": []})
    assert "Slow" not in summary(VALUES | {"slow": None})


def test_the_summary_shows_the_error() -> None:
    failure = {"what": "It broke.", "why": "Old | rusty <b>.", "fix": "Mend it."}
    text = summary(VALUES | {"status": "failed", "failure": failure})
    assert "❌" in text
    assert "**It broke.**" in text
    assert "Old \\| rusty &lt;b>." in text


def test_a_huge_summary_is_cut_below_github_s_limit() -> None:
    steps = [{"step": "x" * 1000, "status": "created", "seconds": 1.0}] * 2000
    assert len(summary(VALUES | {"steps": steps}).encode()) < 1024 * 1024


def test_a_run_in_github_actions_appends_to_both_files(shelf: Shelf, tmp_path: Path) -> None:
    output, page = tmp_path / "output", tmp_path / "summary"
    output.write_text("before=1\n")
    environment = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(page)}
    outcome = shelf.run("1", environment=environment)
    found = parse(output.read_text())
    assert found["before"] == "1"
    assert found["run_id"] == outcome.run_id
    assert found["status"] == "done"
    assert found["report"] == outcome.report
    assert "try-this: done" in page.read_text()


def test_outside_of_github_actions_nothing_is_written(tmp_path: Path) -> None:
    write(VALUES, {})
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="GITHUB_OUTPUT"):
        write(VALUES, {"GITHUB_OUTPUT": str(tmp_path / "no" / "folder")})
