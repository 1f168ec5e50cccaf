"""Read the account and the tables after a publish, and find what is wrong in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmsnix_ops.outcomes import SUCCEEDED
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET, REGION = "vmsnix-images", "us-east-1"
ENDED = ("completed", "deleted", "deleting", "cancelled", "cancelling", "error")


@dataclass(frozen=True)
class Account:
    """Everything that a publish creates, as AWS lists it."""

    amis: dict[str, str]  # id to state
    snapshots: dict[str, str]
    digests: tuple[str, ...]  # of the AMIs
    objects: tuple[str, ...]
    uploads: tuple[str, ...]
    tasks: dict[str, str]  # id to status

    @property
    def running(self) -> list[str]:
        return [task for task, status in self.tasks.items() if status not in ENDED]

    @property
    def empty(self) -> bool:
        return not (self.amis or self.snapshots or self.objects or self.uploads or self.running)

    def problems(self, *, amis: int = 1) -> Iterator[str]:
        """Yield what differs from `amis` available AMIs with one snapshot each and nothing else."""
        for name, found in (("AMIs", self.amis), ("snapshots", self.snapshots)):
            if len(found) != amis:
                yield f"{len(found)} {name} instead of {amis}: {found}"
        for name, state in {**self.amis, **self.snapshots}.items():
            if state not in ("available", "completed"):
                yield f"{name} is {state}"
        for name, left in (("objects", self.objects), ("uploads", self.uploads), ("tasks", self.running)):
            if left:
                yield f"{name} left behind: {', '.join(left)}"


def read_account(aws: Any, *, region: str = REGION, bucket: str = BUCKET) -> Account:
    """Read everything in a region and a bucket of the sandbox."""
    ec2, s3 = _client(aws, "ec2", region), _client(aws, "s3", region)
    images = ec2.describe_images(Owners=["self"])["Images"]
    tags = [{tag["Key"]: tag["Value"] for tag in image.get("Tags", ())} for image in images]
    tasks = ec2.describe_import_snapshot_tasks()["ImportSnapshotTasks"]
    return Account(
        amis={image["ImageId"]: image["State"] for image in images},
        snapshots={
            found["SnapshotId"]: found["State"]
            for found in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
        },
        digests=tuple(one.get("vmsnix:digest", "") for one in tags),
        objects=tuple(found["Key"] for found in s3.list_objects_v2(Bucket=bucket).get("Contents", [])),
        uploads=tuple(
            found["UploadId"] for found in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        ),
        tasks={task["ImportTaskId"]: task["SnapshotTaskDetail"]["Status"] for task in tasks},
    )


@lru_cache(maxsize=8)
def _client(aws: Any, service: str, region: str) -> Any:
    return aws.client(service, region)


def table_problems(state: Path, *, run_id: str, ami_id: str) -> Iterator[str]:
    """Yield what is wrong in the tables after a run that succeeded."""
    tables = Tables(state / "history")
    amis, steps, runs = (tables.read(name) for name in ("amis", "steps", "runs"))
    if list(amis["ami_id"]) != [ami_id]:
        yield f"amis has {list(amis['ami_id'])} instead of {ami_id}"
    doubled = [
        pair for pair, count in Counter(zip(steps["run_id"], steps["step"], strict=True)).items() if count > 1
    ]
    if doubled:
        yield f"steps has twice: {doubled}"
    unknown = set(steps["status"]) - set(SUCCEEDED)
    if unknown:
        yield f"steps has {unknown}"
    missing = {"build", "digest", "register", "finish"} - set(steps["step"][steps["run_id"] == run_id])
    if missing:
        yield f"steps lacks {missing}"
    rows = runs[runs["run_id"] == run_id]
    if list(rows["status"]) != ["done"]:
        yield f"runs has {list(rows['status'])} for the run that succeeded"
    if set(runs["status"]) - {"done"}:
        yield f"runs has {list(runs['status'])}"
