"""VM Import: from an object in S3 to a snapshot.

Facts that shaped this file (public trackers, 2026): a failed import turns ``deleted``, not ``error``; fields
are empty while a task is pending; finished tasks are listed for seven days only; tags given to ImportSnapshot
tag the task and not the snapshot; about one import in a hundred is cancelled by AWS and passes on a second
try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import read_pages
from vmsnix_ops.aws.polling import PollResult, poll
from vmsnix_ops.aws.session import calling, client_token, code_of, retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from botocore.exceptions import ClientError
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import (
        ImportSnapshotRequestTypeDef,
        ImportSnapshotResultTypeDef,
        ImportSnapshotTaskTypeDef,
        SnapshotTypeDef,
    )

    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step

FORMATS = {"vhd": "VHD", "raw": "RAW", "vmdk": "VMDK"}  # SnapshotDiskContainer.Format
VMDK = "streamOptimized"  # the only VMDK that VM Import takes ("VM Import/Export requirements")
VHD_BYTES = 2040 * 2**30  # the largest VHD
FAILED = frozenset({"deleted", "deleting", "cancelled", "cancelling", "error"})
CANCELLED_BY_AWS = "AWS initiated task cancellation"
DEADLINE_SECONDS = 60 * 60.0
MOST_ATTEMPTS = 3
PAGE = 1000
SEEN_SECONDS = 5.0  # in which EC2 shows a snapshot that an import has completed


@dataclass(frozen=True, slots=True)
class ImportTask:
    """An import as AWS last described it.

    Attributes
    ----------
    task_id
        Such as ``import-snap-0123456789abcdef0``.
    status
        ``active``, ``completed``, ``deleting``, ``deleted``, ...
    message
        AWS's ``StatusMessage``; empty when there is none.
    percent
        Progress; ``None`` while AWS does not say.
    snapshot_id
        Only of a completed task; fields of others cannot be trusted.
    tags
        Of the task.
    kms_key
        ARN of the key that encrypts the snapshot; empty for none.
    source
        The object that is imported, as ``s3://bucket/key``; empty where AWS does not say.
    """

    task_id: str
    status: str
    message: str
    percent: float | None
    snapshot_id: str
    tags: Mapping[str, str]
    kms_key: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class ImportedSnapshot:
    """A completed snapshot that holds an image.

    Attributes
    ----------
    snapshot_id
        Such as ``snap-0123456789abcdef0``.
    size_gib
        Size of a volume made from it, in GiB.
    task_id
        The import that made it; empty when only the snapshot is left.
    outcome
        ``"created"`` or ``"reused"``.
    """

    snapshot_id: str
    size_gib: int
    task_id: str
    outcome: StepOutcome


@dataclass(frozen=True, slots=True)
class Source:
    """What to import.

    Attributes
    ----------
    bucket, key
        The object.
    format
        ``"vhd"`` or ``"raw"``.
    role_name
        The service role that may read it.
    patience
        Seconds to wait for a role that was made a moment ago: EC2 sees it only later, and says so with the
        very words it has for a missing one.
    kms_key
        ARN of the key that is to encrypt the snapshot; empty: as the account encrypts by default.
    """

    bucket: str
    key: str
    format: str
    role_name: str
    patience: float = 0.0
    kms_key: str = ""

    @property
    def url(self) -> str:
        """The object, as ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"

    def token(self, digest: str, attempt: int) -> str:
        """Return the ClientToken: the same for every import of this object with these parameters."""
        request = {
            "object": self.url,
            "format": self.format,
            "role": self.role_name,
            "kms_key": self.kms_key,
        }
        return client_token(digest, "import", attempt, request)


def check_format(name: str, disk: DiskImage) -> None:
    """Refuse an image that VM Import does not take, with the command that makes one that it takes.

    Raises
    ------
    vmsnix_ops.errors.ImageFormatError
        It is of another format.
    """
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
    """Return id and size (GiB) of the oldest snapshot with this digest that an AMI can be made of.

    Snapshots that are pending, failed, in the recycle bin or in the archive tier are left out.

    Parameters
    ----------
    kms_key
        ARN of the key that must encrypt it; empty: any encryption is accepted.
    """
    for snapshot in snapshots.find_snapshots_by_digest(ec2, digest):
        if snapshot.usable and (not kms_key or snapshot.kms_key == kms_key):
            return snapshot.snapshot_id, snapshot.size_gib
    return None


@needs("ec2:DescribeImportSnapshotTasks")
def listed(ec2: EC2Client) -> tuple[ImportTask, ...]:
    """Return every import task that AWS lists; those that ended for a week."""
    with calling(f"list the imports of {ec2.meta.region_name}"):
        found = read_pages(ec2.describe_import_snapshot_tasks, MaxResults=PAGE)
        return tuple(_read(task) for page in found for task in page["ImportSnapshotTasks"])


@needs("ec2:DescribeImportSnapshotTasks")
def tasks(ec2: EC2Client, digest: str) -> list[ImportTask]:
    """Return every import task of this image that AWS still lists."""
    with calling("list the import tasks"):
        pages = ec2.get_paginator("describe_import_snapshot_tasks").paginate()
        answers = [task for page in pages for task in page["ImportSnapshotTasks"]]
    return [task for task in map(_read, answers) if task.tags.get(tagging.DIGEST) == digest]


@needs("ec2:DescribeSnapshots", "ec2:DescribeImportSnapshotTasks")
def usable(ec2: EC2Client, digest: str, *, kms_key: str = "") -> tuple[ImportTask | None, int]:
    """Return the import of this image that is under way or whose snapshot is there, and how many are not.

    AWS lists a completed import for seven days, also when its snapshot was deleted, archived or failed in the
    meantime: then the image has to be imported again.
    """
    found, useless = None, 0
    for task in tasks(ec2, digest):
        if kms_key and task.kms_key != kms_key:
            continue
        if task.status in FAILED or (task.snapshot_id and not _lasts(ec2, task.snapshot_id)):
            useless += 1
        elif found is None:
            found = task
    return found, useless


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
    step: Step | None = None,
) -> ImportedSnapshot:
    """Import an object as a snapshot, or find the one that was made of it.

    Safe to run twice: a snapshot that carries the digest is used; an import of the digest that is under way
    is waited for; a completed one's snapshot gets the tags that a crash may have kept from it. A new task's
    ClientToken derives from the digest and the number of attempts that failed before, so that two publishers
    share one task. An import that AWS itself cancelled is started again, at most twice, without another
    upload.

    Parameters
    ----------
    ec2, source, digest, tags
        Of which region, what to import, and the tags of the snapshot.
    check
        Raises when the object holds other bytes than those of the digest. AWS reads it again for each import,
        some time after it was asked to, so this is called before each and after the one that succeeded.
    step
        Where progress is shown.

    Raises
    ------
    vmsnix_ops.errors.UploadError
        From `check`.
    vmsnix_ops.errors.ImportFailedError
        With AWS's ``StatusMessage``.
    vmsnix_ops.errors.RoleError
        The service role is missing, or may not read the object.
    vmsnix_ops.errors.DeadlineError
        After an hour. The task goes on; the next run waits for it.
    """
    found = find_snapshot(ec2, digest, kms_key=source.kms_key)
    if found:
        return ImportedSnapshot(found[0], found[1], "", "reused")
    running, attempt = usable(ec2, digest, kms_key=source.kms_key)
    for _ in range(MOST_ATTEMPTS):
        check()
        task = running or _start(ec2, source, digest=digest, attempt=attempt, tags=tags)
        last = _follow(ec2, task.task_id, step).value
        if last.status not in FAILED:
            _check_imported(ec2, last, check)
            # A task that another publisher started is that publisher's, and so is its snapshot.
            own = running is None and task.tags.get(tagging.RUN) == tags.get(tagging.RUN)
            return _finish(ec2, last, tags, reused=not own)
        if CANCELLED_BY_AWS not in last.message:
            break
        running, attempt = None, attempt + 1
        if step is not None:
            step.message(f"{last.task_id}: {last.message}; starting again")
    raise failure(last, source)


def _check_imported(ec2: EC2Client, task: ImportTask, check: Callable[[], None]) -> None:
    """Refuse the snapshot of an object that was replaced while AWS imported it.

    It has no tags yet, but the next run would find it by its task: so it must be deleted first.
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
def cancel(ec2: EC2Client, digest: str, *, run_id: str = "") -> list[str]:
    """Cancel every running import of this image (of one run, when named) and return the task ids.

    Safe to run twice.
    """
    running = [
        task.task_id
        for task in tasks(ec2, digest)
        if task.status not in FAILED | {"completed"} and (not run_id or task.tags.get(tagging.RUN) == run_id)
    ]
    for task_id in running:
        with calling(f"cancel the import {task_id}"):
            ec2.cancel_import_task(ImportTaskId=task_id, CancelReason="cancelled by vmsnix")
    return running


def failure(task: ImportTask, source: Source) -> errors.ImportFailedError:
    """Return the error for an import that ended badly: AWS's message, and what fixes it."""
    message = task.message or f"the task is {task.status}"
    if "Disk validation failed" in message:
        fix = (
            f"Check that the image is a valid {source.format} disk (vmsnix checks it before uploading; "
            "qemu-img check does too)."
        )
    elif "403" in message or "access" in message.lower():
        fix = (
            f"Let the role {source.role_name} read s3://{source.bucket}/{source.key} (s3:GetObject, "
            "s3:GetBucketLocation)."
        )
    elif CANCELLED_BY_AWS in message:
        fix = f"AWS cancelled it {MOST_ATTEMPTS} times. Run the same command again later."
    else:
        fix = "Run the same command again. If it fails with the same message, search for AWS's message."
    return errors.ImportFailedError(
        f"The import {task.task_id} failed.",
        why=f"AWS reported: {message.rstrip('.')}.",
        fix=fix,
        status_message=task.message,
        operation="ImportSnapshot",
    )


def _lasts(ec2: EC2Client, snapshot_id: str) -> bool:
    """Whether a snapshot can be used; one that was just completed gets a few seconds to be seen."""
    try:
        with calling(f"read the snapshot {snapshot_id}"):
            answer = retry(
                lambda: ec2.describe_snapshots(SnapshotIds=[snapshot_id]),
                "InvalidSnapshot.NotFound",
                seconds=SEEN_SECONDS,
            )
    except errors.AwsError as error:
        if error.code != "InvalidSnapshot.NotFound":
            raise
        return False
    found = snapshots.parse_snapshot(answer["Snapshots"][0])
    return found.state in ("pending", "completed") and not found.archived


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
    with calling(f"start the import of s3://{source.bucket}/{source.key}"):
        try:
            if source.patience:
                answer = retry(
                    lambda: ec2.import_snapshot(**request),
                    "InvalidParameter",
                    containing="service role",
                    seconds=source.patience,
                )
            else:
                answer = ec2.import_snapshot(**request)
        except ec2.exceptions.ClientError as error:
            if code_of(error) == "IdempotentParameterMismatch":
                # Another publisher of the same image was first; its task carries its own run in the tags.
                return _adopt(ec2, digest, source.kms_key)
            raise _refused(error, source) from error
    return _read(answer)


def _adopt(ec2: EC2Client, digest: str, kms_key: str) -> ImportTask:
    """Return the task that another publisher of the same image started a moment ago."""
    running = [
        task
        for task in tasks(ec2, digest)
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


def _refused(error: ClientError, source: Source) -> Exception:
    """Word the refusals of ImportSnapshot that have one cause; others go on as they are."""
    message = str(error.response["Error"].get("Message", ""))
    details = {"code": code_of(error), "operation": "ImportSnapshot", "status_message": message}
    if "service role" in message:
        return errors.RoleError(
            f"VM Import cannot use the role {source.role_name}.",
            why=f"AWS returned: {message.rstrip('.')}. The role does not exist or was created less than a "
            f"minute ago, it may not read the bucket {source.bucket}, or you may not pass it (iam:PassRole).",
            fix="Run vmsnix preflight to find out which. docs/how-to/outside-altf4.md has the role's "
            "policies.",
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


def _follow(ec2: EC2Client, task_id: str, step: Step | None) -> PollResult[ImportTask]:
    def read() -> PollResult[ImportTask]:
        with calling(f"read the import {task_id}"):
            # A task is not always listed in the first moments after it was started.
            answer = retry(
                lambda: ec2.describe_import_snapshot_tasks(ImportTaskIds=[task_id]),
                "InvalidConversionTaskId",
                "InvalidConversionTaskId.Malformed",
                "InvalidParameterValue",
                seconds=20,
            )
        task = _read(answer["ImportSnapshotTasks"][0])
        outcome: Literal["waiting", "done", "failed"] = "waiting"
        if task.status in FAILED:
            outcome = "failed"
        elif task.status == "completed" and task.snapshot_id:
            outcome = "done"
        return PollResult(outcome, task, task.percent, task.status, task.message)

    return poll(read, what=f"the import {task_id}", deadline=DEADLINE_SECONDS, step=step)


def _finish(ec2: EC2Client, task: ImportTask, tags: Mapping[str, str], *, reused: bool) -> ImportedSnapshot:
    """Tag the snapshot (ImportSnapshot tags only the task) and wait until it can be used."""
    with calling(f"tag the snapshot {task.snapshot_id}"):
        retry(lambda: _tag(ec2, task.snapshot_id, tags), "InvalidSnapshot.NotFound")
    size = wait_for_snapshot(ec2, task.snapshot_id)
    return ImportedSnapshot(task.snapshot_id, size, task.task_id, "reused" if reused else "created")


def _tag(ec2: EC2Client, snapshot_id: str, tags: Mapping[str, str]) -> None:
    """Give a snapshot that VM Import made our tags, in one call, and then the operator's own.

    The policy allows our tags on a snapshot that has none, and others only on one that is ours already.
    """

    def set_tags(wanted: Mapping[str, str]) -> None:
        if wanted:
            ec2.create_tags(Resources=[snapshot_id], Tags=tagging.to_list(wanted))

    def is_ours() -> bool:
        (snapshot,) = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        return tagging.DIGEST in tagging.to_dict(snapshot.get("Tags"))

    ours = {key: value for key, value in tags.items() if key in tagging.PUBLISHED}
    if not is_ours():
        try:
            set_tags(ours)
        except ec2.exceptions.ClientError:
            if not is_ours():  # another publisher of this image was faster
                raise
    set_tags({key: value for key, value in tags.items() if key not in ours})


@needs("ec2:DescribeSnapshots")
def wait_for_snapshot(ec2: EC2Client, snapshot_id: str, *, step: Step | None = None) -> int:
    """Wait until a snapshot is completed and return its size in GiB.

    Raises
    ------
    vmsnix_ops.errors.SnapshotFailedError
        With the snapshot's ``StateMessage``.
    """

    def read() -> PollResult[SnapshotTypeDef]:
        with calling(f"read the snapshot {snapshot_id}"):
            answer = retry(
                lambda: ec2.describe_snapshots(SnapshotIds=[snapshot_id]),
                "InvalidSnapshot.NotFound",
                seconds=120,
            )
        snapshot = answer["Snapshots"][0]
        state = snapshot["State"]
        outcome: Literal["waiting", "done", "failed"] = "waiting"
        if state in ("error", "recoverable"):
            outcome = "failed"
        elif state == "completed":
            outcome = "done"
        percent = float((snapshot.get("Progress") or "0").rstrip("%"))
        return PollResult(outcome, snapshot, percent, state, snapshot.get("StateMessage", ""))

    try:
        seen = poll(
            read,
            what=f"the snapshot {snapshot_id}",
            deadline=DEADLINE_SECONDS,
            step=step,
        )
    except errors.AwsError as error:
        if error.code != "InvalidSnapshot.NotFound":
            raise
        raise errors.SnapshotFailedError(
            f"The snapshot {snapshot_id} no longer exists.",
            why="It was deleted by another publisher of the same image, an undo, or an operator.",
            fix="Run the same command again.",
            code=error.code,
        ) from error
    if seen.outcome == "failed":
        raise errors.SnapshotFailedError(
            f"The snapshot {snapshot_id} failed.",
            why=f"AWS reported {seen.state}: {seen.message or 'no message'}.",
            fix="Run the same command again: it creates a new snapshot.",
            status_message=seen.message,
        )
    return seen.value["VolumeSize"]


@needs("ec2:DeleteSnapshot")
def delete_snapshot(ec2: EC2Client, snapshot_id: str) -> None:
    """Delete a snapshot.

    Safe to run twice; waits out the moments in which AWS still counts a removed AMI's use of it.
    """
    try:
        with calling(f"delete the snapshot {snapshot_id}"):
            retry(lambda: ec2.delete_snapshot(SnapshotId=snapshot_id), "InvalidSnapshot.InUse", seconds=20)
    except errors.AwsError as error:
        if error.code != "InvalidSnapshot.NotFound":
            raise


def _read(answer: ImportSnapshotTaskTypeDef | ImportSnapshotResultTypeDef) -> ImportTask:
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
