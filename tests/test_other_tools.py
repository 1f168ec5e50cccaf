"""The AWS CLI and plain boto3 read what vmsnix published to the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.command_line import aws_program
from vmsnix_ops import publish
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["aws_program"]
REGION = "us-east-1"
BUCKET = "vmsnix-images"


@dataclass(frozen=True)
class Published:
    aws: Any
    result: Any
    environment: dict[str, str]
    aws_program: str


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, aws_program: str) -> Iterator[Published]:
    """Publish an image to a sandbox once, for all tests of this file."""
    folder = tmp_path_factory.mktemp("other_tools")
    with sandbox(speed=1000) as aws, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "VMSNIX_"))]:
            patch.delenv(name)
        for name, value in aws.environment.items():
            patch.setenv(name, value)
        patch.setenv("VMSNIX_STATE", str(folder / "state"))
        patch.setenv("VMSNIX_PROGRESS", "silent")
        # Do not use the configuration in ~/.aws.
        patch.setenv("AWS_CONFIG_FILE", str(folder / "no-config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-credentials"))
        patch.setenv("AWS_PAGER", "")
        aws.prepare(bucket=BUCKET, region=REGION)
        image = make_sample_image(folder, name="tools")
        plan = publish.plan(image=str(image), region=REGION, bucket=BUCKET, tags={"team": "platform"})
        yield Published(aws, plan.apply(), dict(os.environ), aws_program)


def aws_cli(published: Published, *arguments: str) -> str:
    done = subprocess.run(
        [published.aws_program, *arguments],
        env=published.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def aws_json(published: Published, *arguments: str) -> Any:
    return json.loads(aws_cli(published, *arguments, "--output", "json"))


def tags_of(resource: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags", [])}


def test_the_aws_cli_describes_our_ami(published: Published) -> None:
    (image,) = aws_json(published, "ec2", "describe-images", "--owners", "self")["Images"]
    assert image["ImageId"] == published.result.ami_id
    assert image["State"] == "available"
    assert image["RootDeviceName"] == "/dev/sda1"
    (device,) = image["BlockDeviceMappings"]
    assert device["Ebs"]["SnapshotId"] == published.result.snapshot_id
    assert tags_of(image)["vmsnix:digest"] == published.result.digest
    assert tags_of(image)["team"] == "platform"


def test_the_aws_cli_describes_our_import_task(published: Published) -> None:
    (task,) = aws_json(published, "ec2", "describe-import-snapshot-tasks")["ImportSnapshotTasks"]
    assert task["SnapshotTaskDetail"]["Status"] == "completed"
    assert task["SnapshotTaskDetail"]["SnapshotId"] == published.result.snapshot_id


def test_the_aws_cli_describes_our_snapshot(published: Published) -> None:
    (snapshot,) = aws_json(published, "ec2", "describe-snapshots", "--owner-ids", "self")["Snapshots"]
    assert snapshot["SnapshotId"] == published.result.snapshot_id
    assert snapshot["State"] == "completed"
    assert tags_of(snapshot)["vmsnix:digest"] == published.result.digest


def test_the_aws_cli_filters_by_tag(published: Published) -> None:
    def found(digest: str) -> list[str]:
        chosen = f"Name=tag:vmsnix:digest,Values={digest}"
        images = aws_json(published, "ec2", "describe-images", "--owners", "self", "--filters", chosen)[
            "Images"
        ]
        return [image["ImageId"] for image in images]

    assert found(published.result.digest) == [published.result.ami_id]
    assert found("0" * 64) == []


def test_the_aws_cli_lists_an_empty_bucket_after_the_publish(published: Published) -> None:
    assert BUCKET in aws_cli(published, "s3", "ls")
    assert aws_cli(published, "s3", "ls", f"s3://{BUCKET}", "--recursive") == ""


@pytest.mark.long(seconds=3)
def test_the_aws_cli_uploads_and_downloads_a_file(
    published: Published, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("copied")
    sent, received = folder / "sent", folder / "received"
    sent.write_bytes(os.urandom(9 * 1024 * 1024))  # above the CLI's multipart threshold of 8 MiB
    aws_cli(published, "s3", "cp", "--quiet", str(sent), f"s3://{BUCKET}/tools/sent")
    assert "tools/sent" in aws_cli(published, "s3", "ls", f"s3://{BUCKET}", "--recursive")
    aws_cli(published, "s3", "cp", "--quiet", f"s3://{BUCKET}/tools/sent", str(received))
    aws_cli(published, "s3", "rm", "--quiet", f"s3://{BUCKET}/tools/sent")
    assert received.read_bytes() == sent.read_bytes()


def test_the_aws_cli_gets_the_errors_of_aws(published: Published) -> None:
    command = [published.aws_program, "ec2", "describe-images", "--image-ids", "ami-0123456789abcdef0"]
    done = subprocess.run(command, env=published.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "InvalidAMIID.NotFound" in done.stderr


def test_plain_boto3_reads_the_same(published: Published) -> None:
    import boto3

    session = boto3.Session(
        aws_access_key_id=published.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=published.environment["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
    )
    ec2 = session.client("ec2", endpoint_url=published.aws.url)
    (image,) = ec2.describe_images(Owners=["self"])["Images"]
    (snapshot,) = ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    (task,) = ec2.describe_import_snapshot_tasks()["ImportSnapshotTasks"]
    assert image["ImageId"] == published.result.ami_id
    assert snapshot["SnapshotId"] == published.result.snapshot_id
    assert task["SnapshotTaskDetail"]["SnapshotId"] == published.result.snapshot_id
    assert tags_of(image)["vmsnix:digest"] == tags_of(snapshot)["vmsnix:digest"] == published.result.digest
