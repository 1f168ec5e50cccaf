"""The runbook ``build-image``, as operators and CI run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmsnix_ops.runbooks.execution.execute import RunOutcome, run

FIXTURE = Path(__file__).parent / "fixture"


def run_build_image(tmp_path: Path, **parameters: str) -> tuple[RunOutcome, str]:
    outcome = run("build-image", parameters, archive=tmp_path / "archive", cwd=tmp_path, record=False)
    return outcome, Path(outcome.report).read_text()


def test_builds_shows_and_leaves_a_result(nix: Path, tmp_path: Path) -> None:
    outcome, report = run_build_image(tmp_path, image="ecs-node")
    assert outcome.error is None
    assert (outcome.status, outcome.exit_code) == ("done", 0)
    result = json.loads(Path(outcome.result).read_text())
    assert (result["image"], result["image_version"], result["format"]) == (
        "ecs-node",
        "26.05.fixture",
        "vhd",
    )
    assert Path(result["path"]).is_file()
    assert result["flake"].startswith(f"path:{FIXTURE}#packages.")
    for text in ("ECS container instance", "openssl", "6.18.3", "300112"):
        assert text in report


@pytest.mark.parametrize(
    ("parameters", "exit_code", "words"),
    [
        ({"image": "ecs-nod"}, 2, "Did you mean &#39;ecs-node&#39;?"),
        ({"image": "ecs-node", "flake": "/no/such"}, 2, "No flake in"),
        ({"image": "talks-and-fails"}, 1, "line 40"),
    ],
)
@pytest.mark.variants(seconds=2)
def test_a_failure_is_in_the_report(
    nix: Path, tmp_path: Path, parameters: dict[str, str], exit_code: int, words: str
) -> None:
    outcome, report = run_build_image(tmp_path, **parameters)
    assert (outcome.status, outcome.exit_code) == ("failed", exit_code)
    assert words in report.replace("'", "&#39;").replace("&#x27;", "&#39;")
