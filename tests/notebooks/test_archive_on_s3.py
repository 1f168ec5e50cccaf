"""An archive on S3: the evidence of an AMI's run and of a fleet."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.cli import main
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmsnix_ops.sandbox import Sandbox

REGION, IMAGES, RECORDS = "us-east-1", "vmsnix-images", "vmsnix-records"
PLACE = f"s3://{RECORDS}/archive"
PLAN = """
name = "nightly"
[dask]
workers = 2
[[entry]]
name = "publish"
runbook = "publish-ami"
images = ["./sample", "./router"]
"""


@dataclass(frozen=True)
class Team:
    """An account whose archive is in a bucket, and a folder to work in."""

    aws: Sandbox
    folder: Path

    def vmsnix(self, *words: str) -> Any:
        """Run a command, and return the JSON that it prints."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main([*words, "--json"]) == 0
        return json.loads(printed.getvalue())

    def get(self, place: str) -> bytes:
        """Read an object without the code of the archive."""
        bucket, _, key = place.removeprefix("s3://").partition("/")
        content: bytes = self.aws.client("s3", REGION).get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def tags(self, ami: str) -> dict[str, str]:
        (image,) = self.aws.client("ec2", REGION).describe_images(ImageIds=[ami])["Images"]
        return {tag["Key"]: tag["Value"] for tag in image["Tags"]}

    def evidence(self, ami: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the entry and the executed notebook of the run in an AMI's tag."""
        entry = json.loads(self.get(self.tags(ami)["vmsnix:evidence"]))
        return entry, json.loads(self.get(entry["notebook"]))


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with sandbox(speed=1000) as aws, pytest.MonkeyPatch.context() as patch:
        aws.prepare(bucket=IMAGES, region=REGION)
        aws.client("s3", REGION).create_bucket(Bucket=RECORDS)
        ours = {
            "VMSNIX_STATE": str(folder / "state"),
            "VMSNIX_ARCHIVE": PLACE,
            "VMSNIX_BUCKET": IMAGES,
            "VMSNIX_REGION": REGION,
        }
        for name, value in {**aws.environment, **ours}.items():
            patch.setenv(name, value)
        for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS", "VMSNIX_HISTORY"):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        yield Team(aws, folder)


@pytest.fixture(scope="module")
def published(team: Team) -> dict[str, Any]:
    """The ``result.json`` of a publish on the command line."""
    make_sample_image(team.folder / "sample")
    values: dict[str, Any] = team.vmsnix("run", "publish-ami", "--image", "./sample")
    return values


def shown(notebook: dict[str, Any]) -> str:
    """Return everything that a notebook shows below its cells."""
    return json.dumps([cell.get("outputs", []) for cell in notebook["cells"]])


@pytest.mark.long(seconds=20)
def test_the_tags_of_an_ami_name_the_run_that_made_it(team: Team, published: dict[str, Any]) -> None:
    ami, run_id = published["ami_id"], published["run_id"]
    tags = team.tags(ami)
    assert tags["vmsnix:evidence"] == f"{PLACE}/{run_id}/result.json"
    entry, notebook = team.evidence(ami)
    assert (entry["run_id"], entry["ami_id"], entry["status"]) == (tags["vmsnix:run"], ami, "done")
    assert (entry["digest"], entry["parameters"]["image"]) == (tags["vmsnix:digest"], "./sample")

    # The notebook has the SHA-256 in the entry, is complete, and shows the AMI.
    digest = hashlib.sha256(team.get(entry["notebook"])).hexdigest()
    assert entry["notebook"] == f"{PLACE}/objects/{digest}/notebook.ipynb"
    assert digest == entry["files"]["notebook.ipynb"]["sha256"]
    assert notebook["metadata"]["vmsnix_run"]["run_id"] == run_id
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (injected,) = [cell for cell in code if "injected-parameters" in cell["metadata"].get("tags", ())]
    assert 'image = "./sample"' in "".join(injected["source"])
    assert all(cell["execution_count"] for cell in code)
    assert ami in shown(notebook)
    assert ami in team.get(entry["report"]).decode()


@pytest.mark.long(seconds=60)
def test_the_bucket_has_the_evidence_of_a_fleet_and_its_runs(team: Team, published: dict[str, Any]) -> None:
    make_sample_image(team.folder / "router", name="router", seed="router")
    (team.folder / "nightly.toml").write_text(PLAN)
    team.aws.calls.clear()
    fleet = team.vmsnix("fleet", "nightly.toml", "--no-dry-run")
    put = Counter(call.params["Key"] for call in team.aws.calls if call.operation == "PutObject")

    # The fleet has an entry like a run, which lists page, targets and log with their SHA-256.
    assert (fleet["status"], fleet["targets"]) == ("done", {"done": 2})
    entry = json.loads(team.get(f"{PLACE}/{fleet['run_id']}/result.json"))
    assert entry == fleet
    assert set(entry["files"]) == {"report.html", "fleet.json", "log.txt"}
    documents = json.loads(team.get(entry["files"]["fleet.json"]["place"]))["targets"]
    page = team.get(entry["report"]).decode()
    runs = {one["target"]: one["attempts"][-1]["run_id"] for one in documents}
    amis = {one["target"]: one["result"]["ami_id"] for one in documents}
    assert set(runs) == {"publish/sample", "publish/router"}

    # Each run has its own evidence. The page contains run IDs, because no browser opens s3:// links; the
    # browser's script makes a link only of a cell that has one.
    entries = {one["run_id"]: one for one in team.vmsnix("runs", "--last", "4")}
    assert set(entries) == {fleet["run_id"], published["run_id"], *runs.values()}
    assert "href=" not in page
    assert "s3://" not in page
    for target, run_id in runs.items():
        assert target in page
        assert run_id in page
        assert entries[run_id] == json.loads(team.get(f"{PLACE}/{run_id}/result.json"))
        assert (entries[run_id]["status"], entries[run_id]["ami_id"]) == ("done", amis[target])
    for one in (entry, *(entries[run_id] for run_id in runs.values())):
        for name, kept in one["files"].items():
            digest = hashlib.sha256(team.get(kept["place"])).hexdigest()
            assert kept["place"] == f"{PLACE}/objects/{digest}/{name}"
            assert digest == kept["sha256"]
            assert put[kept["place"].removeprefix(f"s3://{RECORDS}/")] == 1
    assert [path for path in (team.folder / "state" / "runs").rglob("*") if path.is_file()] == []

    # The tag of each AMI names its run: a run of this fleet for the new AMI, an older run for the reused one.
    router, notebook = team.evidence(amis["publish/router"])
    assert router == entries[runs["publish/router"]]
    assert amis["publish/router"] in shown(notebook)
    assert amis["publish/sample"] == published["ami_id"]
    assert team.evidence(published["ami_id"])[0] == entries[published["run_id"]]
