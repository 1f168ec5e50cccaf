"""VM Import: from an object in S3 to a snapshot.

Facts from public issue trackers (2026):

- A failed import gets the status ``deleted``, not ``error``.
- Fields are empty while a task is pending.
- AWS lists a finished task for seven days.
- Tags in ImportSnapshot are tags of the task, not of the snapshot.
- AWS cancels about one import in a hundred; a second attempt succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.error_codes import SNAPSHOT_NOT_FOUND
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import read_pages
from vmsnix_ops.aws.polling import Outcome, PollResult, poll
from vmsnix_ops.aws.session import calling, client_token, code_of, if_found, retry
from vmsnix_ops.progress import NO_STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from botocore.exceptions import ClientError
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import (
        ImportSnapshotRequestTypeDef,
        ImportSnapshotResultTypeDef,
        ImportSnapshotTaskTypeDef,
    )

    from vmsnix_ops.aws.snapshots import Snapshot
    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step

FORMATS = {"vhd": "VHD", "raw": "RAW", "vmdk": "VMDK"}  # SnapshotDiskContainer.Format
VMDK = "streamOptimized"  # the only VMDK that VM Import supports ("VM Import/Export requirements")
VHD_BYTES = 2040 * 2**30  # the largest VHD
FAILED = frozenset({"deleted", "deleting", "cancelled", "cancelling", "error"})
CANCELLED_BY_AWS = "AWS initiated task cancellation"
DEADLINE_SECONDS = 60 * 60.0
MAX_ATTEMPTS = 3
PAGE = 1000
VISIBLE_SECONDS = 5.0  # until EC2 shows a snapshot that an import has completed


@dataclass(frozen=True, slots=True)
class ImportTask:
    """An import as AWS last described it."""

    task_id: str  # such as `import-snap-0123456789abcdef0`
    status: str  # `active`, `completed`, `deleting`, `deleted`, ...
    message: str  # AWS's `StatusMessage`; empty when there is none
    percent: float | None  # progress; None while AWS does not report it
    snapshot_id: str  # empty unless the task is completed: the field of other tasks may be wrong
    tags: Mapping[str, str]
    kms_key: str = ""  # ARN of the key that encrypts the snapshot; empty for none
    source: str = ""  # the object that is imported, as `s3://bucket/key`; empty if AWS does not report it

    @property
    def running(self) -> bool:
        """Whether it has neither failed nor completed."""
        return self.status not in FAILED | {"completed"}


@dataclass(frozen=True, slots=True)
class ImportedSnapshot:
    """A completed snapshot of an image."""

    snapshot_id: str  # such as `snap-0123456789abcdef0`
    size_gib: int  # size of a volume made from it, in GiB
    task_id: str  # the import that created it; empty if an existing snapshot was found
    outcome: StepOutcome  # "created" or "reused"


@dataclass(frozen=True, slots=True)
class Source:
    """What to import."""

    bucket: str
    key: str
    format: str  # a key of `FORMATS`
    role_name: str  # the service role that may read it
    # How long to retry with a role that was just created: for EC2 it is missing at first.
    role_wait_seconds: float = 0.0
    kms_key: str = ""  # ARN of the key for the snapshot; empty for the account's default encryption

    @property
    def url(self) -> str:
        """The object, as ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"

    def token(self, digest: str, attempt: int) -> str:
        """Return the ClientToken: the same for every import of this object with these parameters."""
        request = {"object": self.url, "format": self.format, "role": self.role_name, "kms_key": self.kms_key}
        return client_token(digest, "import", attempt, request)


def check_format(name: str, disk: DiskImage) -> None:
    """Refuse an image that VM Import does not support, with the command that converts it."""
    if disk.format in FORMATS and (disk.format != "vmdk" or disk.subformat == VMDK):
        return
    kind, stem = f"{disk.subformat} {disk.format}".strip(), name.rpartition(".")[0] or name
    # A VHD cannot be larger; a raw image can.
    output = f"vpc {name} {stem}.vhd" if disk.size <= VHD_BYTES else f"raw {name} {stem}.img"
    raise errors.ImageFormatError(
        f"{name} is a {kind} image, which VM Import does not support.",
        why=f"It supports VHD, raw, and VMDK of the kind {VMDK}.",
        fix=f"Publish it with --via direct, or convert it: qemu-img convert -O {output}",
    )


@needs("ec2:DescribeSnapshots")
def find_snapshot(ec2: EC2Client, digest: str, *, kms_key: str = "") -> tuple[str, int] | None:
    """Return ID and size (GiB) of the oldest snapshot with this digest from which an AMI can be registered.

    Snapshots that are pending, failed, in the recycle bin or in the archive tier are omitted. With `kms_key`,
    only snapshots with that key are returned.
    """
    for snapshot in snapshots.find_snapshots_by_digest(ec2, digest):
        if snapshot.usable and (not kms_key or snapshot.kms_key == kms_key):
            return snapshot.snapshot_id, snapshot.size_gib
    return None


@needs("ec2:DescribeImportSnapshotTasks")
def list_tasks(ec2: EC2Client) -> tuple[ImportTask, ...]:
    """Return all import tasks; AWS lists a finished task for seven days."""
    with calling(f"list the imports of {ec2.meta.region_name}"):
        found = read_pages(ec2.describe_import_snapshot_tasks, MaxResults=PAGE)
        return tuple(_parse_task(task) for page in found for task in page["ImportSnapshotTasks"])


@needs("ec2:DescribeImportSnapshotTasks")
def find_tasks(ec2: EC2Client, digest: str) -> list[ImportTask]:
    """Return the import tasks of an image among those of `list_tasks`."""
    return [task for task in list_tasks(ec2) if task.tags.get(tagging.DIGEST) == digest]


@needs("ec2:DescribeImportSnapshotTasks")
def find_readers(ec2: EC2Client, url: str, *, digest: str) -> list[ImportTask]:
    """Return the running imports that may be reading an object (a URL), also those of other tools.

    If AWS does not report what an import reads, the digest of the image in the object decides.
    """
    return [
        task
        for task in list_tasks(ec2)
        if task.running
        and (task.source == url or (not task.source and task.tags.get(tagging.DIGEST) == digest))
    ]


@needs("ec2:DescribeSnapshots", "ec2:DescribeImportSnapshotTasks")
def find_usable_task(ec2: EC2Client, digest: str, *, kms_key: str = "") -> tuple[ImportTask | None, int]:
    """Return the task of an image that is running or has a usable snapshot, and the number of other tasks.

    A completed task whose snapshot was deleted, archived or has failed is not usable: the image must be
    imported again.
    """
    found, others = None, 0
    for task in find_tasks(ec2, digest):
        if kms_key and task.kms_key != kms_key:
            continue
        if task.status in FAILED or (task.snapshot_id and not _is_usable(ec2, task.snapshot_id)):
            others += 1
        elif found is None:
            found = task
    return found, others


@needs(
    "ec2:DescribeSnapshots",
    "ec2:DescribeImportSnapshotTasks",
    "ec2:ImportSnapshot",
    "ec2:CreateTags",
    "ec2:CreateTags of our resources",
    "ec2:CreateTags of an imported snapshot",
    "iam:PassRole",
)
def import_snapshot(
    ec2: EC2Client,
    source: Source,
    *,
    digest: str,
    tags: Mapping[str, str],
    check: Callable[[], None] = lambda: None,
    step: Step = NO_STEP,
) -> ImportedSnapshot:
    """Import an object as a snapshot, or find the existing snapshot.

    Safe to run twice: a snapshot with the digest is reused, and a running import of the digest is continued.
    A completed import's snapshot gets its tags, which a crash may have prevented. The ClientToken of a new
    task derives from the digest and the number of failed tasks, so two publishers share one task. An import
    that AWS cancelled is started again, at most twice, without another upload. After an hour a DeadlineError;
    the task continues, and the next run waits for it.

    `check` raises if the object does not contain the image. AWS reads the object some time after each
    request, so it is called before each import and after the successful one.
    """
    found = find_snapshot(ec2, digest, kms_key=source.kms_key)
    if found:
        return ImportedSnapshot(found[0], found[1], "", "reused")
    running, attempt = find_usable_task(ec2, digest, kms_key=source.kms_key)
    for _ in range(MAX_ATTEMPTS):
        check()
        task = running or _start(ec2, source, digest=digest, attempt=attempt, tags=tags)
        last = _follow(ec2, task.task_id, step).value
        if last.status not in FAILED:
            _check_imported(ec2, last, check)
            # The snapshot belongs to the publisher that started the task.
            own = running is None and task.tags.get(tagging.RUN) == tags.get(tagging.RUN)
            return _finish(ec2, last, tags, reused=not own)
        if CANCELLED_BY_AWS not in last.message:
            break
        running, attempt = None, attempt + 1
        step.message(f"{last.task_id}: {last.message}; starting again")
    raise import_error(last, source)


def _check_imported(ec2: EC2Client, task: ImportTask, check: Callable[[], None]) -> None:
    """Refuse the snapshot of an object that was replaced during the import.

    The next run would find the snapshot through its task, so the operator must delete it first.
    """
    try:
        check()
    except errors.UploadError as error:
        delete = snapshots.delete_command(task.snapshot_id, ec2.meta.region_name)
        raise error.with_fix(
            f"Delete the snapshot {task.snapshot_id}, which can contain other bytes: {delete}. Find out what "
            "writes to the bucket, then run the same command again."
        ) from error


@needs("ec2:DescribeImportSnapshotTasks", "ec2:CancelImportTask")
def cancel_imports(ec2: EC2Client, digest: str, *, run_id: str = "") -> list[str]:
    """Cancel the running imports of an image, or only those of one run, and return the task IDs.

    Safe to run twice.
    """
    running = [
        task.task_id
        for task in find_tasks(ec2, digest)
        if task.running and (not run_id or task.tags.get(tagging.RUN) == run_id)
    ]
    for task_id in running:
        with calling(f"cancel the import {task_id}"):
            ec2.cancel_import_task(ImportTaskId=task_id, CancelReason="cancelled by vmsnix")
    return running


def import_error(task: ImportTask, source: Source) -> errors.ImportFailedError:
    """Return the error for a failed import, with AWS's message and a fix."""
    message = task.message or f"the task is {task.status}"
    if "404 Not Found" in message:
        fix = (
            f"Run the same command again: {source.url} was deleted before AWS read it, for example by "
            "another publish of the same image."
        )
    elif "403" in message or "access" in message.lower():
        fix = f"Let the role {source.role_name} read {source.url} (s3:GetObject, s3:GetBucketLocation)."
    elif "Disk validation failed" in message:
        fix = (
            f"Check that the image is a valid {source.format} disk (vmsnix checks it before uploading; "
            "qemu-img check does too)."
        )
    elif CANCELLED_BY_AWS in message:
        fix = f"AWS cancelled it {MAX_ATTEMPTS} times. Run the same command again later."
    else:
        fix = "Run the same command again. If it fails with the same message, search for AWS's message."
    return errors.ImportFailedError(
        f"The import {task.task_id} failed.",
        why=f"AWS reported: {message.rstrip('.')}.",
        fix=fix,
        status_message=task.message,
        operation="ImportSnapshot",
    )


def _is_usable(ec2: EC2Client, snapshot_id: str) -> bool:
    """Return whether a snapshot can be used. A new one may not be visible for `VISIBLE_SECONDS`."""
    read = partial(snapshots.describe_snapshot, ec2, snapshot_id, seconds=VISIBLE_SECONDS)
    found = if_found(read, SNAPSHOT_NOT_FOUND)
    return found is not None and found.state in ("pending", "completed") and not found.archived


def _start(
    ec2: EC2Client, source: Source, *, digest: str, attempt: int, tags: Mapping[str, str]
) -> ImportTask:
    request: ImportSnapshotRequestTypeDef = {
        "ClientToken": source.token(digest, attempt),
        "Description": f"{tags.get(tagging.NAME, 'image')} {digest[:12]}",
        "DiskContainer": {
            "Format": FORMATS[source.format],
            "Description": tags.get(tagging.NAME, "image"),
            "UserBucket": {"S3Bucket": source.bucket, "S3Key": source.key},
        },
        "RoleName": source.role_name,
        "TagSpecifications": tagging.tag_specifications("import-snapshot-task", tags),
    }
    if source.kms_key:
        request |= {"Encrypted": True, "KmsKeyId": source.kms_key}
    with calling(f"start the import of {source.url}"):
        try:
            call, wait = partial(ec2.import_snapshot, **request), source.role_wait_seconds
            wanted = partial(retry, call, "InvalidParameter", containing="service role", seconds=wait)
            answer = wanted() if wait else call()
        except ec2.exceptions.ClientError as error:
            if code_of(error) == "IdempotentParameterMismatch":
                # Another publisher of the image was first, with its own run in the tags.
                return _find_other_task(ec2, digest, source.kms_key)
            raise _refusal(error, source) from error
    return _parse_task(answer)


def _find_other_task(ec2: EC2Client, digest: str, kms_key: str) -> ImportTask:
    """Return the task that another publisher of the image has just started."""
    running = [
        task
        for task in find_tasks(ec2, digest)
        if task.status not in FAILED and (not kms_key or task.kms_key == kms_key)
    ]
    if not running:
        raise errors.ImportFailedError(
            "The import of this image by another publisher was not found.",
            why="AWS accepted its client token before, but lists no running task.",
            fix="Run the same command again.",
            operation="ImportSnapshot",
        )
    return running[0]


def _refusal(error: ClientError, source: Source) -> Exception:
    """Return a clearer error for known refusals of ImportSnapshot; otherwise the same error."""
    message = str(error.response["Error"].get("Message", ""))
    details = {"code": code_of(error), "operation": "ImportSnapshot", "status_message": message}
    if "service role" in message:
        return errors.RoleError(
            f"VM Import cannot use the role {source.role_name}.",
            why=f"AWS returned: {message.rstrip('.')}. The role does not exist or was created less than a "
            f"minute ago, it may not read the bucket {source.bucket}, or you may not pass it (iam:PassRole).",
            fix="Run vmsnix preflight to find out which. docs/how-to/first-publish.md describes the role.",
            **details,
        )
    if "not local to the region" in message:
        return errors.BucketError(
            f"The bucket {source.bucket} is in another region.",
            why=f"AWS returned: {message.rstrip('.')}.",
            fix="Use a bucket in the region that you publish to.",
            **details,
        )
    return error


def _follow(ec2: EC2Client, task_id: str, step: Step) -> PollResult[ImportTask]:
    def read() -> PollResult[ImportTask]:
        with calling(f"read the import {task_id}"):
            # AWS may not list a new task at first.
            answer = retry(
                lambda: ec2.describe_import_snapshot_tasks(ImportTaskIds=[task_id]),
                "InvalidConversionTaskId",
                "InvalidConversionTaskId.Malformed",
                "InvalidParameterValue",
                seconds=20,
            )
        task = _parse_task(answer["ImportSnapshotTasks"][0])
        outcome: Outcome = "waiting"
        if task.status in FAILED:
            outcome = "failed"
        elif task.status == "completed" and task.snapshot_id:
            outcome = "done"
        return PollResult(outcome, task, task.percent, task.status, task.message)

    return poll(read, what=f"the import {task_id}", deadline=DEADLINE_SECONDS, step=step)


def _finish(ec2: EC2Client, task: ImportTask, tags: Mapping[str, str], *, reused: bool) -> ImportedSnapshot:
    """Tag the snapshot (ImportSnapshot tags only the task) and wait until it is completed."""
    with calling(f"tag the snapshot {task.snapshot_id}"):
        retry(lambda: _tag(ec2, task.snapshot_id, tags), SNAPSHOT_NOT_FOUND)
    size = wait_for_snapshot(ec2, task.snapshot_id)
    return ImportedSnapshot(task.snapshot_id, size, task.task_id, "reused" if reused else "created")


def _tag(ec2: EC2Client, snapshot_id: str, tags: Mapping[str, str]) -> None:
    """Add the tags of vmsnix to an imported snapshot, in one call, and then the operator's tags.

    The policy allows the tags of vmsnix on an untagged snapshot, and other tags only beside them.
    """

    def set_tags(wanted: Mapping[str, str]) -> None:
        if wanted:
            ec2.create_tags(Resources=[snapshot_id], Tags=tagging.to_list(wanted))

    def has_digest() -> bool:
        (snapshot,) = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        return tagging.DIGEST in tagging.to_dict(snapshot.get("Tags"))

    ours = {key: value for key, value in tags.items() if key in tagging.PUBLISHED}
    if not has_digest():
        try:
            set_tags(ours)
        except ec2.exceptions.ClientError:
            if not has_digest():  # another publisher of this image may have tagged it
                raise
    set_tags({key: value for key, value in tags.items() if key not in ours})


@needs("ec2:DescribeSnapshots")
def wait_for_snapshot(ec2: EC2Client, snapshot_id: str, *, step: Step = NO_STEP) -> int:
    """Wait until a snapshot is completed and return its size in GiB.

    The SnapshotFailedError of a snapshot that failed or was deleted has AWS's ``StateMessage``.
    """
    outcomes: dict[str, Outcome] = {"error": "failed", "recoverable": "failed", "completed": "done"}

    def read() -> PollResult[Snapshot]:
        found = snapshots.describe_snapshot(ec2, snapshot_id, seconds=120)
        outcome = outcomes.get(found.state, "waiting")
        return PollResult(outcome, found, found.percent, found.state, found.message)

    try:
        result = poll(read, what=f"the snapshot {snapshot_id}", deadline=DEADLINE_SECONDS, step=step)
    except errors.AwsError as error:
        if error.code != SNAPSHOT_NOT_FOUND:
            raise
        raise error.restated(
            errors.SnapshotFailedError,
            f"The snapshot {snapshot_id} no longer exists.",
            why="It was deleted by another publisher of the same image, an undo, or an operator.",
            fix="Run the same command again.",
        ) from error
    if result.outcome == "failed":
        raise errors.SnapshotFailedError(
            f"The snapshot {snapshot_id} failed.",
            why=f"AWS reported {result.state}: {result.message or 'no message'}.",
            fix="Run the same command again: it creates a new snapshot.",
            status_message=result.message,
        )
    return result.value.size_gib


def _parse_task(answer: ImportSnapshotTaskTypeDef | ImportSnapshotResultTypeDef) -> ImportTask:
    detail = answer.get("SnapshotTaskDetail") or {}
    progress = detail.get("Progress") or ""
    status = detail.get("Status") or "pending"
    place = detail.get("UserBucket") or {}
    return ImportTask(
        task_id=answer["ImportTaskId"],
        status=status,
        message=detail.get("StatusMessage") or "",
        percent=float(progress) if progress.replace(".", "", 1).isdigit() else None,
        snapshot_id=(detail.get("SnapshotId") or "") if status == "completed" else "",
        tags=tagging.to_dict(answer.get("Tags")),
        kms_key=detail.get("KmsKeyId") or "",
        source=f"s3://{place['S3Bucket']}/{place.get('S3Key', '')}" if place.get("S3Bucket") else "",
    )
