"""The workflows that people copy: pinned, with the least permissions, and every command is run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.nix.conftest import nix, nix_folders  # noqa: F401 - fixtures
from tests.workflows.job import WORKFLOWS, Job, clean_environment, workflow
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.sandbox.sts import GITHUB

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NAMES = ("build.yml", "publish.yml", "audit.yml")
REGION = "eu-central-1"
INSTALLS = (
    "Install",
)  # from a package index, which no test may reach; CI runs the same lines from the README


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / name
    return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in NAMES:
        for job in workflow(name)["jobs"].values():
            yield name, job


# As they are written


def test_all_workflows_are_tested() -> None:
    assert {path.name for path in WORKFLOWS.iterdir()} == set(NAMES)


def test_zizmor_finds_nothing_even_when_it_is_pedantic() -> None:
    done = tool("zizmor", "--offline", "--no-progress", "--persona=pedantic", ".github")
    assert done.returncode == 0, done.stdout + done.stderr


def test_zizmor_would_find_something(tmp_path: Path) -> None:
    text = (WORKFLOWS / "build.yml").read_text()
    (tmp_path / "w.yml").write_text(text.replace('"$IMAGE"', "${{ github.head_ref }}"))
    done = tool("zizmor", "--offline", "--no-progress", str(tmp_path / "w.yml"))
    assert done.returncode != 0
    assert "template-injection" in done.stdout


@pytest.mark.parametrize("schema", ["github-workflows", "dependabot"])
@pytest.mark.variants
def test_the_workflows_match_the_schemas_of_github(schema: str) -> None:
    files = [
        str(path)
        for path in (
            WORKFLOWS.iterdir() if schema == "github-workflows" else [WORKFLOWS.parent / "dependabot.yml"]
        )
    ]
    done = tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_action_is_pinned_by_commit_with_its_version_beside_it() -> None:
    for name in NAMES:
        for line in (WORKFLOWS / name).read_text().splitlines():
            if "uses:" in line:
                assert re.fullmatch(r"\s+(- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_the_same_action_is_the_same_commit_everywhere() -> None:
    pins = {
        use for name in NAMES for use in re.findall(r"uses: (\S+@\S+ # \S+)", (WORKFLOWS / name).read_text())
    }
    assert len(pins) == len({pin.partition("@")[0] for pin in pins})


def test_a_job_has_the_least_rights() -> None:
    for name, job in jobs():
        assert workflow(name)["permissions"] == {}
        wanted = {"contents": "read"} if name == "build.yml" else {"contents": "read", "id-token": "write"}
        assert job["permissions"] == wanted
        assert job["timeout-minutes"] > 0


def test_pull_requests_get_no_credentials() -> None:
    for name in NAMES:
        if "pull_request" in workflow(name)["on"]:
            text = (WORKFLOWS / name).read_text()
            assert "secrets." not in text
            assert "id-token" not in text
        assert "pull_request_target" not in workflow(name)["on"]


def test_evidence_is_uploaded_after_failed_runs_too() -> None:
    for _, job in jobs():
        (upload,) = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
        assert upload["if"] == "${{ always() }}"
        assert upload is job["steps"][-1]


def test_every_usual_image_of_the_flake_is_built_and_published() -> None:
    images = {path.stem for path in (ROOT / "nix" / "images").glob("*.nix")} - {"default"}
    images = {name for name in images if not name.endswith("-attested")}  # for those who choose them
    for name in ("build.yml", "publish.yml"):
        (job,) = workflow(name)["jobs"].values()
        assert set(job["strategy"]["matrix"]["image"]) == images


def test_the_install_is_that_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for _, job in jobs():
        (install,) = [step["run"] for step in job["steps"] if step["name"] in INSTALLS]
        for line in install.splitlines():
            assert line in readme, line


def test_the_runbooks_and_options_exist() -> None:
    text = "".join((WORKFLOWS / name).read_text() for name in NAMES)
    used = re.findall(r"run: \.venv/bin/vmsnix ([a-z-]+)(.*)", text)
    assert {name for name, _ in used} == {"build-image", "preflight", "publish", "audit"}
    for name, rest in used:
        parameters = {parameter.name for parameter in catalog.find(name).parameters}
        assert set(re.findall(r"--([a-z-]+)", rest)) <= {each.replace("_", "-") for each in parameters}


# As they run


@pytest.fixture(scope="module")
def aws() -> Iterator[Any]:
    with sandbox(speed=1000) as served:
        served.prepare(bucket="acme-images", region=REGION)
        yield served


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what a checkout and the install give to the steps."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def job_of(name: str, checkout: Path, aws: Any, **context: dict[str, str]) -> Job:
    aws.prepare(bucket="acme-images", region=REGION)  # its role reads the bucket that was prepared last
    (described,) = workflow(name)["jobs"].values()
    variables = {
        "VMSNIX_REGION": REGION,
        "VMSNIX_BUCKET": "acme-images",
        "VMSNIX_ALLOWED_ACCOUNTS": aws.account,
        "VMSNIX_HISTORY": str(checkout / "history"),
    }
    environment = {**clean_environment(), **aws.environment, "VMSNIX_STATE": str(checkout / "state")}
    return Job(described, checkout, {"vars": variables, "inputs": {}, **context}, environment, INSTALLS)


@pytest.mark.long(seconds=20)
def test_publish_builds_checks_and_publishes(nix: Path, checkout: Path, aws: Any) -> None:  # noqa: F811
    from tests.nix.conftest import FIXTURE

    job = job_of("publish.yml", checkout, aws, matrix={"image": "ecs-node"})
    job.environment["VMSNIX_FLAKE"] = str(FIXTURE)
    assert job.run() == 0, job.printed
    assert job.ran == ["Build", "Check the account", "Publish", "Say what was made"]
    made = job.outputs("publish")
    (image,) = aws.client("ec2", REGION).describe_images(Owners=["self"])["Images"]
    assert (image["ImageId"], image["Name"]) == (made["ami_id"], made["image_name"])
    assert f"::notice title={image['Name']}::{image['ImageId']}\n" in job.printed
    assert "::group::upload\n" in job.printed
    for words in ("publish-ami: done", "build-image: done", "preflight: done", image["ImageId"]):
        assert words in job.summary
    evidence = [
        path.parent.name.split("-", 1)[1][:-7] for path in (checkout / "evidence").glob("*/report.html")
    ]
    assert sorted(evidence) == ["build-image", "preflight", "publish-ami"]


@pytest.mark.long(seconds=15)
def test_a_dry_run_by_hand_publishes_nothing(nix: Path, checkout: Path, aws: Any) -> None:  # noqa: F811
    from tests.nix.conftest import FIXTURE

    before = aws.client("ec2", "eu-west-1").describe_images(Owners=["self"])["Images"]
    job = job_of("publish.yml", checkout, aws, matrix={"image": "ecs-node"}, inputs={"dry_run": "true"})
    aws.prepare(bucket="acme-west", region="eu-west-1")
    job.context["vars"] |= {"VMSNIX_REGION": "eu-west-1", "VMSNIX_BUCKET": "acme-west"}
    job.environment["VMSNIX_FLAKE"] = str(FIXTURE)
    job.skip += ("Build", "Check the account")
    assert job.run() == 0, job.printed
    assert job.ran == ["Publish"]
    assert aws.client("ec2", "eu-west-1").describe_images(Owners=["self"])["Images"] == before == []


@pytest.mark.long(seconds=15)
def test_audit_scans_and_writes_a_report(checkout: Path, aws: Any) -> None:
    job = job_of("audit.yml", checkout, aws)
    assert job.run() == 0, job.printed
    assert "audit-inventory: done" in job.summary
    assert len(list((checkout / "evidence").glob("*/report.html"))) == 1


# Their roles, taken with the OIDC token of the job as aws-actions/configure-aws-credentials takes it


def policy_of(*arguments: str) -> str:
    done = tool("vmsnix", "iam-policy", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def create_role(aws: Any, name: str, environment: str, policy: str) -> str:
    """Create a role as the documentation of the workflows says, and return its ARN."""
    iam = aws.client("iam")
    with suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_open_id_connect_provider(Url=GITHUB, ClientIDList=["sts.amazonaws.com"])
    chosen = ("--repository", "acme/images", "--subject", f"environment:{environment}")
    trust = policy_of("github-oidc-trust", "--account", aws.account, *chosen)
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]
    if policy:
        iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=policy)
    arn: str = role["Arn"]
    return arn


def take_role(aws: Any, arn: str, workflow_name: str, repository: str = "acme/images") -> dict[str, str]:
    """Return the environment variables that a job of a workflow has after the step "Take the role"."""
    (job,) = workflow(workflow_name)["jobs"].values()
    assert job["permissions"]["id-token"] == "write"
    subject = f"repo:{repository}:environment:{job['environment']}"
    query = urlencode({"subject": subject, "audience": "sts.amazonaws.com"})
    with urlopen(f"{aws.url}/_vmsnix/oidc?{query}", timeout=30) as answer:
        token = json.load(answer)["value"]
    sts = aws.client("sts", config=Config(signature_version=UNSIGNED))
    session = sts.assume_role_with_web_identity(
        RoleArn=arn, RoleSessionName="GitHubActions", WebIdentityToken=token
    )["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
        "AWS_SESSION_TOKEN": session["SessionToken"],
    }


def test_each_workflow_takes_only_its_own_role() -> None:
    with sandbox() as aws:
        publisher = create_role(aws, "publisher", "production", "")
        auditor = create_role(aws, "auditor", "audit", "")
        take_role(aws, publisher, "publish.yml")
        take_role(aws, auditor, "audit.yml")
        for arn, name, repository in (
            (publisher, "audit.yml", "acme/images"),
            (auditor, "publish.yml", "acme/images"),
            (publisher, "publish.yml", "evil/images"),
        ):
            with pytest.raises(ClientError, match="Not authorized to perform sts:AssumeRoleWithWebIdentity"):
                take_role(aws, arn, name, repository)


@pytest.mark.long(seconds=20)
def test_audit_needs_no_more_than_the_role_of_its_token(checkout: Path) -> None:
    with sandbox(speed=1000, enforce_iam=True) as aws:
        role = create_role(aws, "auditor", "audit", policy_of("auditor"))
        job = job_of("audit.yml", checkout, aws)
        job.environment.update(take_role(aws, role, "audit.yml"))
        assert job.run() == 0, job.printed
        assert "audit-inventory: done" in job.summary
        callers = {call.principal for call in aws.calls.matching("ec2:*")}
        assert callers == {f"arn:aws:sts::{aws.account}:assumed-role/auditor/GitHubActions"}


def test_a_step_that_fails_fails_the_job_and_leaves_its_reason(checkout: Path, aws: Any) -> None:
    image = checkout / "image.vhd"
    image.write_text("no disk image")
    job = job_of("publish.yml", checkout, aws, matrix={"image": str(image)})
    job.skip += ("Build", "Check the account")
    assert job.run() == 1
    assert job.ran == ["Publish"]
    assert "❌ publish-ami: failed" in job.summary
    assert "image.vhd" in job.summary
    assert list((checkout / "evidence").glob("*/report.html"))


def test_dependabot_waits_before_it_proposes_a_release() -> None:
    (updates,) = yaml.safe_load((WORKFLOWS.parent / "dependabot.yml").read_text())["updates"]
    assert updates["package-ecosystem"] == "github-actions"
    assert updates["cooldown"]["default-days"] >= 7
