"""A sandbox, a published sample, and the resources that a publish leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.sandbox.clients import allow_public_images
from vmsnix_ops import publish
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUCKET, REGION = "vmsnix-images", "us-east-1"
READS = ("Describe", "Get", "Head", "List", "Simulate")


@dataclass(frozen=True)
class Left:
    """The resources of the account: IDs of AMIs and snapshots, S3 keys, uploads, and running imports."""

    amis: list[str]
    snapshots: list[str]
    objects: list[str]
    uploads: list[str]
    running: list[str]

    @property
    def nothing(self) -> bool:
        return not (self.amis or self.snapshots or self.objects or self.uploads or self.running)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox with bucket and role, which this process's AWS environment points to."""
    with sandbox(speed=2000) as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
        monkeypatch.chdir(tmp_path)
        aws.prepare(bucket=BUCKET, region=REGION)
        allow_public_images(aws, REGION)
        yield aws


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small bootable disk as a Nix output, about 20 MB of VHD: three parts of an upload."""
    return make_sample_image(tmp_path / "image", name="sample", data_bytes=20 * 2**20)


@pytest.fixture
def plan(aws: Sandbox, image: Path) -> Callable[..., publish.PublishPlan]:
    """Make plans for the sample image; keywords change the parameters."""

    def make(**changes: Any) -> publish.PublishPlan:
        params: dict[str, Any] = {
            "image": str(image),
            "region": REGION,
            "bucket": BUCKET,
            "progress": silent(),
        }
        return publish.plan(**{**params, **changes})

    return make


@pytest.fixture
def left(aws: Sandbox) -> Callable[[], Left]:
    """Return the resources of the account."""

    def list_resources() -> Left:
        ec2, s3 = aws.client("ec2", REGION), aws.client("s3", REGION)
        tasks = ec2.describe_import_snapshot_tasks()["ImportSnapshotTasks"]
        ended = ("completed", "deleted", "deleting")
        return Left(
            [i["ImageId"] for i in ec2.describe_images(Owners=["self"])["Images"]],
            [s["SnapshotId"] for s in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]],
            [o["Key"] for o in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])],
            [u["UploadId"] for u in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])],
            [t["ImportTaskId"] for t in tasks if t["SnapshotTaskDetail"]["Status"] not in ended],
        )

    return list_resources


@pytest.fixture
def changes(aws: Sandbox) -> Callable[[], list[str]]:
    """Return the changing calls since the last use."""
    seen = 0

    def list_changes() -> list[str]:
        nonlocal seen
        calls = list(aws.calls)
        new, seen = calls[seen:], len(calls)
        return [c.operation for c in new if c.ran and c.outcome == "ok" and not c.operation.startswith(READS)]

    return list_changes
