"""Every committed runbook runs through papermill against the sandbox."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import require
from vmsnix_ops.disk.sample import MESSAGE, make_sample_image
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.execution.execute import RunOutcome, run
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION = "us-east-1"
TESTED_HERE = {
    "fleet",
    "preflight",
    "bootstrap",
    "boot-image",
    "publish-ami",
    "audit-inventory",
    "import-timings",
    "retire-amis",
}
TESTED_ELSEWHERE = {
    "build-image",  # tests/nix/test_build_image_runbook.py
    "promote-ami",  # test_after_publishing.py
    "prove-ami",
    "rollback",
    "smoke-test",
    "verify-amis",
}


@dataclass(frozen=True)
class Workspace:
    aws: Any
    environment: dict[str, str | None]
    image: Path

    def run(self, name: str, **given: object) -> RunOutcome:
        outcome = run(name, given, environment=self.environment, confirmed=True)
        assert outcome.error is None, outcome.error
        assert outcome.problems == ()
        return outcome


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("workspace")
    image = make_sample_image(folder / "image")
    with sandbox(speed=1000) as aws:
        aws.prepare(bucket="vmsnix-images", region=REGION)
        ours = {"VMSNIX_STATE": str(folder), "VMSNIX_BUCKET": "vmsnix-images", "VMSNIX_REGION": REGION}
        others = dict.fromkeys(("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "VMSNIX_HISTORY", "VMSNIX_ARCHIVE"))
        yield Workspace(aws, {**others, **aws.environment, **ours}, image)


@pytest.fixture(scope="module")
def published(workspace: Workspace) -> RunOutcome:
    """The first publish of the image."""
    return workspace.run("publish-ami", image=str(workspace.image), tags="Team=platform")


def test_every_runbook_is_run_by_a_test() -> None:
    assert {book.name for book in catalog.runbooks()} == TESTED_HERE | TESTED_ELSEWHERE


def test_publish_ami_makes_one_ami_however_often_it_runs(
    workspace: Workspace, request: pytest.FixtureRequest
) -> None:
    planned = workspace.run("publish-ami", image=str(workspace.image), dry_run=True)
    assert not planned.values["ami_id"]
    assert workspace.aws.client("ec2").describe_images(Owners=["self"])["Images"] == []

    first: RunOutcome = request.getfixturevalue("published")
    again = workspace.run("publish-ami", image=str(workspace.image))
    assert first.values["ami_id"] == again.values["ami_id"]
    assert {step["status"] for step in again.values["steps"]} <= {"reused", "created"}
    (image,) = workspace.aws.client("ec2").describe_images(Owners=["self"])["Images"]
    assert image["ImageId"] == first.values["ami_id"]
    tags = {tag["Key"]: tag["Value"] for tag in image["Tags"]}
    assert tags["Team"] == "platform"
    assert tags["vmsnix:run"] == first.run_id
    assert first.values["ami_id"] in Path(first.report).read_text()


def test_a_publish_that_cannot_work_is_one_clear_error_with_evidence(
    workspace: Workspace, tmp_path: Path
) -> None:
    image = tmp_path / "image.vhd"
    image.write_text("no disk image")
    outcome = run("publish-ami", {"image": str(image)}, environment=workspace.environment)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert outcome.error is not None
    assert str(image) in str(outcome.error)
    assert json.loads(Path(outcome.result).read_text())["status"] == "failed"


@pytest.mark.long(seconds=10)
def test_bootstrap_shows_its_plan_first_and_creates_resources_without_dry_run(workspace: Workspace) -> None:
    s3 = workspace.aws.client("s3", REGION)
    shown = workspace.run("bootstrap", bucket="fresh-images")
    assert shown.values["dry_run"] is True
    assert "bucket" in shown.values["left"]
    assert "fresh-images" not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    assert workspace.run("bootstrap", bucket="fresh-images", dry_run=False).values["left"] == []
    assert workspace.run("bootstrap", bucket="fresh-images", dry_run=False).values["todo"] == []


def test_boot_image_saves_the_console_output(workspace: Workspace) -> None:
    require("qemu-system")
    outcome = workspace.run("boot-image", image=str(workspace.image), expect=MESSAGE)
    assert MESSAGE in outcome.values["line"]
    assert MESSAGE in Path(outcome.notebook).with_name("console.log").read_text()


def test_preflight_passes_in_an_account_that_is_ready(workspace: Workspace) -> None:
    assert workspace.run("preflight").status == "done"


def test_preflight_fails_with_a_fix_where_the_bucket_is_missing(workspace: Workspace) -> None:
    outcome = run("preflight", {"bucket": "no-such-bucket-here"}, environment=workspace.environment)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.fix


def test_audit_inventory_lists_the_resources(workspace: Workspace, published: RunOutcome) -> None:
    outcome = workspace.run("audit-inventory", regions=[REGION])
    report = Path(outcome.report).read_text()
    assert published.values["ami_id"] in report
    assert ">monthly usd</th>" in report
    shown = report.replace('<span class="kc">None</span>', "")  # the source of a cell may contain it
    assert not re.search(r">(?:NaN|NaT|&lt;NA&gt;|None)<", shown)


@pytest.mark.usefixtures("published")
def test_import_timings_shows_table_and_plot(workspace: Workspace) -> None:
    outcome = workspace.run("import-timings")
    report = Path(outcome.report).read_text()
    assert ">p90</th>" in report
    assert "data:image/png;base64," in report
    words = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", report)  # base64 may contain any letters
    assert "NaN" not in words
    assert re.search(r"\d+ steps of \d+ runs?\.", words)


@pytest.mark.long(seconds=15)
def test_fleet_runs_its_plan(workspace: Workspace, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f'[dask]\nworkers = 1\n[[entry]]\nrunbook = "audit-inventory"\nregions = ["{REGION}"]\n')
    outcome = run(
        "fleet", {"plan": str(plan), "dry_run": False}, environment=workspace.environment, confirmed=True
    )
    assert outcome.error is None, outcome.error
    assert outcome.values["targets"] == {"done": 1}
    page = Path(outcome.values["fleet_report"]).read_text()
    assert "audit-inventory/us-east-1" in page
    assert "1 target on this machine" in Path(outcome.report).read_text()


@pytest.mark.long(seconds=10)
def test_retire_amis_plans_in_a_dry_run_and_acts_when_confirmed(
    workspace: Workspace, published: RunOutcome
) -> None:
    ami = published.values["ami_id"]
    loose = {"keep_last": 0, "min_age_days": 0, "amis": [ami]}
    planned = workspace.run("retire-amis", **loose)
    assert (planned.values["planned"], planned.values["changed"]) == (1, 0)
    assert [one["resource_id"] for one in planned.values["outcomes"]] == [ami]
    assert "nothing uses it" in Path(planned.report).read_text()
    assert workspace.run("retire-amis", **loose, dry_run=False, confirm="1").values["changed"] == 1
    (image,) = workspace.aws.client("ec2").describe_images(ImageIds=[ami], IncludeDisabled=True)["Images"]
    assert image["State"] == "disabled"


def test_the_console_does_nothing_under_papermill(workspace: Workspace, tmp_path: Path) -> None:
    before = len(workspace.aws.calls)
    executed = tmp_path / "console.ipynb"
    notebook = catalog.default_folder() / "console.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), str(executed)],
        env={
            name: value
            for name, value in {**os.environ, **workspace.environment}.items()
            if value is not None
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(executed.read_text())["cells"][-1]["outputs"]
    assert "Nothing was done here." in "".join(output["text"])
    assert "20-publish-ami" in "".join(output["text"])
    assert len(workspace.aws.calls) == before
