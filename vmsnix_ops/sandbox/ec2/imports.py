"""VM Import: ImportSnapshot, DescribeImportSnapshotTasks, CancelImportTask.

The state of a task is computed from its age on the sandbox's clock. The work happens in the calls that read
tasks or snapshots, without the state lock, for some seconds in each call:

==========  ==========================  =========================  ===================================
age         Status                      StatusMessage              work in the first call of that age
==========  ==========================  =========================  ===================================
0 s         active                      pending
20 s        active                      validated                  open the source, check its format
40 s        active                      downloading/converting     read the blocks that contain data
180 s +     completed                   (none)                     check the source, add the snapshot
failure     deleting, then deleted      the reason
==========  ==========================  =========================  ===================================

The times are realistic guesses (2 to 15 minutes per task). Sources: the reference pages of the operations;
public transcripts of describe-import-snapshot-tasks, also for failure texts unless marked otherwise;
"Required permissions for VM Import/Export": the trust policy names ``vmie.amazonaws.com`` with the external
ID ``vmimport``, and the role may read the bucket. The bucket's policy applies to the role and its sessions.
Assumption: the name of a session, which is not documented.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.sandbox.core import ApiError, Params, given, operation, tag_list
from vmsnix_ops.sandbox.ec2.common import (
    IMPORT_TASK,
    KEY_NOT_ACCESSIBLE,
    choose_encryption,
    find_own,
    find_own_or_all,
    find_token_result,
    missing_parameter,
    new_id,
    new_snapshot,
    record_token_result,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.filters import describe
from vmsnix_ops.sandbox.ec2.resources import BLOCK_BYTES, GIB, EmulatedImportTask
from vmsnix_ops.sandbox.iam import policies_of_identity
from vmsnix_ops.sandbox.policies import ALLOWED, AccessRequest, evaluate, trust_policy_allows
from vmsnix_ops.sandbox.s3.buckets import s3_denial_reason
from vmsnix_ops.sandbox.storage import ObjectReader, find_bucket, open_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.sandbox.core import Context


VM_IMPORT_SERVICE = "vmie.amazonaws.com"
ASSUME_ROLE_REQUEST = AccessRequest("sts:AssumeRole", "*", {"sts:externalid": ["vmimport"]})


def unusable_role(role_name: str) -> ApiError:
    """Return the error for a role that VM Import cannot use.

    Its text is the same for all causes: the role does not exist, does not trust VM Import, or has no
    permissions.
    """
    text = f"The service role {role_name} provided does not exist or does not have sufficient permissions"
    return ApiError("InvalidParameter", text)


def _role_allows(context: Context, role_name: str, action: str, resource: str) -> bool:
    """Return whether VM Import, with this role, may use an S3 resource such as ``bucket/key``."""
    role = context.table("roles", region="").get(role_name)
    if role is None or not trust_policy_allows(role.trust_policy, VM_IMPORT_SERVICE, "", ASSUME_ROLE_REQUEST):
        return False
    keys = {
        "aws:principalaccount": [context.account],
        "aws:principalarn": [role.arn],
        "aws:principalisawsservice": ["false"],
        "aws:principaltype": ["AssumedRole"],
        "aws:requestedregion": [context.region],
        "aws:securetransport": ["true"],
        "aws:viaawsservice": ["false"],
    }
    reason = s3_denial_reason(
        context.tables,
        AccessRequest(action, f"arn:{context.partition}:s3:::{resource}", keys),
        account=context.account,
        principal=context.arn("sts", f"assumed-role/{role.name}/vmimport", region=""),
        documents=policies_of_identity(context, role),
    )
    return not reason


def _role_allows_key(context: Context, role_name: str, action: str, key: str) -> bool:
    """Return whether the role's policies allow the use of a customer key. Key policies are not emulated."""
    role = context.table("roles", region="").get(role_name)
    request = AccessRequest(action, key, {"aws:requestedregion": [context.region]})
    return role is not None and evaluate(policies_of_identity(context, role), request) == ALLOWED


# The source: an S3 object with a disk image


logger = logging.getLogger("vmsnix_ops.sandbox")

READ_SECONDS = 10.0
"""Real seconds that one call reads the source of a task. Clients time out after a minute by default."""

VALIDATION_FAILED = "ClientError: Disk validation failed"


class SourceError(Exception):
    """The source cannot be imported. The text is the StatusMessage of the task."""


def _source_location(container: Params) -> tuple[str, str, str]:
    """Return bucket, key and URL of a DiskContainer; without a URL, that is "".

    Refused: bucket and URL both given or both missing, and a URL that is not an S3 URL.
    """
    bucket, url = container.get("UserBucket") or {}, container.get("Url", "")
    if bool(bucket) == bool(url):
        text = "Exactly one of UserBucket and Url must be given."  # text from memory
        raise ApiError("InvalidParameter", text)
    if not url:
        if not bucket.get("S3Bucket") or not bucket.get("S3Key"):
            raise ApiError("MissingParameter", "The request must contain the parameters S3Bucket and S3Key")
        return bucket["S3Bucket"], bucket["S3Key"], ""
    parts = urlsplit(url)
    path = unquote(parts.path).lstrip("/")
    if parts.scheme == "s3" and parts.netloc and path:
        return parts.netloc, path, url
    host = parts.netloc.split(":")[0]
    if parts.scheme == "https" and host.endswith(".amazonaws.com") and ".s3" in host and path:
        return host.split(".s3")[0], path, url
    raise ApiError("InvalidParameter", f"The URL '{url}' is not one of an S3 object.")  # text from memory


def _check_source_access(context: Context, role_name: str, bucket: str, key: str) -> None:
    """Check what AWS checks before it creates the task: the role, and the region of the bucket.

    When the role may use the bucket but not read this object, the task fails later.
    """
    resources = {"s3:GetObject": f"{bucket}/{key}", "s3:GetBucketLocation": bucket, "s3:ListBucket": bucket}
    if not any(_role_allows(context, role_name, action, arn) for action, arn in resources.items()):
        raise unusable_role(role_name)
    found = find_bucket(context.tables, bucket)
    if found is not None and found.region != context.region:
        raise ApiError("InvalidParameter", "The given S3 object is not local to the region")


def _check_source(context: Context, task: EmulatedImportTask) -> None:
    """Raise `SourceError` when the object is missing, changed, or the role may not read it."""
    bucket, reason = find_bucket(context.tables, task.bucket), ""
    if not _role_allows(context, task.role_name, "s3:GetObject", f"{task.bucket}/{task.key}"):
        reason = "403 Forbidden"
    elif bucket is None or task.key not in bucket.objects:
        # Without s3:ListBucket, S3 does not reveal that the key is missing: 403 instead of 404.
        listing = _role_allows(context, task.role_name, "s3:ListBucket", task.bucket)
        reason = "404 Not Found" if listing else "403 Forbidden"
    elif not _role_decrypts(context, task, bucket.objects[task.key].headers):
        reason = "403 Forbidden"
    elif task.etag and bucket.objects[task.key].etag != task.etag:
        # AWS's text is not known. A snapshot must not contain blocks of two objects.
        raise SourceError(f"{VALIDATION_FAILED} [The given resource was changed while it was read]")
    if reason:
        raise _no_access(reason)


def _no_access(reason: str) -> SourceError:
    return SourceError(f"{VALIDATION_FAILED} [We do not have access to the given resource. Reason {reason}]")


def _role_decrypts(context: Context, task: EmulatedImportTask, headers: Mapping[str, object]) -> bool:
    """Return whether the role may decrypt an object. Key policies of customer keys allow it."""
    key = str(headers.get("SSEKMSKeyId") or "")
    return not key.startswith("arn:") or _role_allows_key(context, task.role_name, "kms:Decrypt", key)


@contextmanager
def _reader(context: Context, task: EmulatedImportTask) -> Iterator[ObjectReader]:
    _check_source(context, task)
    try:
        with open_object(context.tables, context.folder, task.bucket, task.key) as reader:
            yield reader
    except FileNotFoundError as error:  # it was deleted while it was read
        raise _no_access("404 Not Found") from error


@contextmanager
def _image(reader: ObjectReader, task: EmulatedImportTask) -> Iterator[DiskImage]:
    """Open the source in the requested format, or raise `SourceError`."""
    vmdk = task.image_format == "VMDK"
    text = "Unsupported VMDK File Format" if vmdk else "Unsupported specified file format"
    unsupported = SourceError(f"{VALIDATION_FAILED} [{text}]")
    try:
        with open_image(reader) as image:
            supported = not vmdk or image.subformat == "streamOptimized"
            if image.format == task.image_format.lower() and supported:
                yield image
                return
    except (SourceError, OSError):
        raise
    except Exception as error:
        # The sandbox must not import the module with `disk`'s error classes. A missing program on this
        # machine is not an error of the image.
        if type(error).__name__ == "ToolMissingError":
            raise
        logger.info("%s: %s", task.task_id, error)
        raise unsupported from error
    raise unsupported


def _detect_format(context: Context, task: EmulatedImportTask) -> None:
    """Open the source, and record its format and sizes. RAW accepts any bytes, also those of a VHD."""
    with _reader(context, task) as reader:
        bucket = find_bucket(context.tables, task.bucket)
        stored = bucket.objects.get(task.key) if bucket is not None else None
        task.etag = stored.etag if stored is not None else ""
        if reader.size == 0:
            raise SourceError(f"{VALIDATION_FAILED} [Unsupported specified file format]")
        detected, disk_bytes = "raw", reader.size
        if task.image_format != "RAW":
            with _image(reader, task) as image:
                detected, disk_bytes = image.format, image.size
    task.size_bytes, task.disk_gib = reader.size, max(1, math.ceil(disk_bytes / GIB))
    task.detected = detected


def _read_blocks(context: Context, task: EmulatedImportTask) -> None:
    """Store the blocks that contain data, for `READ_SECONDS` at most.

    A large disk is read in several calls, so that no client times out.
    """
    kept: dict[int, bytes] = {}
    enough, done = time.monotonic() + READ_SECONDS, True
    with _reader(context, task) as reader:
        for index, data in _blocks(reader, task):
            kept[index] = bytes.fromhex(context.blocks.put(data))
            if time.monotonic() > enough:
                done = False
                break
    with context.lock:
        task.blocks.update(kept)
        task.next_block = max(kept, default=task.next_block - 1) + 1
        task.read = done


def _blocks(reader: ObjectReader, task: EmulatedImportTask) -> Iterator[tuple[int, bytes | memoryview]]:
    """Yield the blocks with data that were not read yet."""
    if task.image_format != "RAW":
        with _image(reader, task) as image:
            for block in image.blocks(BLOCK_BYTES, first=task.next_block):
                yield block.index, block.data
        return
    index, zeros = task.next_block, bytes(BLOCK_BYTES)
    reader.seek(index * BLOCK_BYTES)
    while data := reader.read(BLOCK_BYTES):
        padded = data.ljust(BLOCK_BYTES, b"\0")
        if padded != zeros:
            yield index, padded
        index += 1


# Tasks

VALIDATION_SECONDS, CONVERT_SECONDS, DELETING_SECONDS = 20.0, 40.0, 5.0
BASE_SECONDS, SECONDS_PER_GIB = 180.0, 30.0
LISTED_SECONDS = 7 * 24 * 3600.0
"""Finished tasks are listed for seven days (documented)."""

MAX_ACTIVE_TASKS = 20
"""Import tasks of a region at the same time (documented quota)."""

FORMATS = ("VHD", "VHDX", "VMDK", "RAW")

KEY_ACTIONS = ("kms:CreateGrant", "kms:DescribeKey", "kms:ReEncryptFrom", "kms:ReEncryptTo")
"""Actions that the role needs on a customer key ("Required permissions for VM Import/Export")."""

_busy: set[str] = set()
"""IDs of the tasks whose source a thread reads now; guarded by the state lock."""


def _import_seconds(task: EmulatedImportTask) -> float:
    """Return the sandbox seconds from the start of a task to its completion."""
    return BASE_SECONDS + SECONDS_PER_GIB * task.disk_gib


def advance_import_tasks(context: Context) -> None:
    """Do the due work of every unfinished task of this account and region.

    Call it without the state lock.
    """
    with context.lock:
        tasks = [t for t in context.table("import_tasks").values() if not t.outcome]
    for task in tasks:
        _advance(context, task)


def _advance(context: Context, task: EmulatedImportTask) -> None:
    """Do the due work of one task, unless another thread does it."""
    age = context.clock.age(task.created)
    with context.lock:
        if task.outcome or task.task_id in _busy or age < VALIDATION_SECONDS:
            return
        _busy.add(task.task_id)
    try:
        _advance_source(context, task, age)
    except SourceError as error:
        with context.lock:
            if not task.outcome:
                _end_task(context, task, "deleted", str(error))
    finally:
        with context.lock:
            _busy.discard(task.task_id)


def _advance_source(context: Context, task: EmulatedImportTask, age: float) -> None:
    if task.message:  # the outcome was set when the task was created
        raise SourceError(task.message)
    if not task.detected:
        _detect_format(context, task)
    if age >= CONVERT_SECONDS and not task.read:
        _read_blocks(context, task)
    _check_source(context, task)
    if task.read and context.clock.age(task.created) >= _import_seconds(task):
        _complete(context, task)


def _end_task(context: Context, task: EmulatedImportTask, outcome: str, message: str = "") -> None:
    task.outcome, task.message, task.ended, task.blocks = outcome, message, context.clock.now(), {}


def _complete(context: Context, task: EmulatedImportTask) -> None:
    with context.lock:
        if task.outcome:
            return
        snapshot = new_snapshot(
            context,
            task.disk_gib,
            description=f"Created by AWS-VMImport service for {task.task_id}",
            encrypted=task.encrypted,
            kms_key=task.kms_key,
            blocks=task.blocks,
        )
        task.snapshot_id = snapshot.snapshot_id
        _end_task(context, task, "completed")


def _task_state(context: Context, task: EmulatedImportTask) -> dict[str, Any]:
    """Return the members of SnapshotTaskDetail that change with time."""
    if task.outcome == "completed":
        sizes = {"DiskImageSize": float(task.size_bytes)}
        return {"Status": "completed", "SnapshotId": task.snapshot_id} | sizes
    if task.outcome:
        fresh = task.ended is not None and context.clock.age(task.ended) < DELETING_SECONDS
        ended = {"Status": "deleting" if fresh else "deleted", "DiskImageSize": 0.0}
        return ended | given(StatusMessage=task.message)
    age = context.clock.age(task.created)
    if not task.detected:
        step, progress = "pending", 0 if age < VALIDATION_SECONDS / 2 else 3
    elif age < CONVERT_SECONDS:
        step, progress = "validated", 32
    else:
        share = min(1.0, (age - CONVERT_SECONDS) / (_import_seconds(task) - CONVERT_SECONDS))
        step, progress = "downloading/converting", int(42 + 53 * share)
    return {
        "Status": "active",
        "StatusMessage": step,
        "Progress": str(progress),
        "DiskImageSize": float(task.size_bytes),
    }


def task_view(context: Context, task: EmulatedImportTask) -> dict[str, Any]:
    """Return a task as both operations show it."""
    detail = _task_state(context, task) | given(
        Format=task.image_format if task.detected else "",
        Description=task.disk_description,
        Encrypted=task.encrypted,
        KmsKeyId=task.kms_key,
        Url=task.url,
        UserBucket={} if task.url else {"S3Bucket": task.bucket, "S3Key": task.key},
    )
    view: dict[str, Any] = {"ImportTaskId": task.task_id, "SnapshotTaskDetail": detail}
    return view | given(Description=task.description, Tags=tag_list(task.tags))


@operation(
    "ec2",
    "ImportSnapshot",
    "ClientToken Description DiskContainer Encrypted KmsKeyId RoleName TagSpecifications",
)
def import_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Start the import of a disk image in S3.

    With ``status_message`` in the outcome of a fault rule, the task fails with this text at its validation.
    """
    table = context.table("import_tasks")
    earlier = find_token_result(context, params)
    if earlier in table:
        return task_view(context, table[earlier])
    container = params.get("DiskContainer") or {}
    image_format = str(container.get("Format", "")).upper()
    if image_format not in FORMATS:
        # From memory.
        text = f"Unsupported disk image format '{container.get('Format', '')}': use VHD, VMDK or RAW."
        raise ApiError("InvalidParameter", text)
    bucket, key, url = _source_location(container)
    tags = tags_at_creation(params, "import-snapshot-task")["import-snapshot-task"]
    role_name = params.get("RoleName", "vmimport")
    _check_source_access(context, role_name, bucket, key)
    if sum(1 for t in table.values() if not t.outcome) >= MAX_ACTIVE_TASKS:
        # Text from memory.
        text = f"You have reached the limit of {MAX_ACTIVE_TASKS} concurrent import tasks."
        raise ApiError("ResourceCountLimitExceeded", text)
    chosen = choose_encryption(context, wanted=params.get("Encrypted"), key=params.get("KmsKeyId"))
    usable = not params.get("KmsKeyId") or all(
        _role_allows_key(context, role_name, action, chosen.key) for action in KEY_ACTIONS
    )
    task = EmulatedImportTask(
        task_id=new_id("import-snap"),
        owner=context.account,
        region=context.region,
        created=context.clock.now(),
        bucket=bucket,
        key=key,
        image_format=image_format,
        description=params.get("Description", ""),
        disk_description=container.get("Description", ""),
        url=url,
        role_name=role_name,
        encrypted=chosen.encrypted,
        kms_key=chosen.key,
        tags=tags,
        # The text for a bad key is from memory.
        message=context.outcome.get("status_message")
        or (f"ClientError: {KEY_NOT_ACCESSIBLE}" if chosen.failure or not usable else ""),
    )
    table[task.task_id] = task
    record_token_result(context, params, task.task_id)
    return task_view(context, task)


@operation("ec2", "DescribeImportSnapshotTasks", "Filters ImportTaskIds MaxResults NextToken", locks=False)
def describe_import_snapshot_tasks(context: Context, params: Params) -> dict[str, Any]:
    """Return import tasks. Finished tasks are listed for seven days.

    The reference of this operation lists no filters. AWS takes those of DescribeImportImageTasks
    (``task-state``) and those for tags.
    """
    advance_import_tasks(context)
    with context.lock:
        table = context.table("import_tasks")
        for task in list(table.values()):
            if task.ended and not context.clock.is_listed(task.ended, LISTED_SECONDS):
                del table[task.task_id]
        tasks = find_own_or_all(context, IMPORT_TASK, params.get("ImportTaskIds"))
        filters = {"task-state": "SnapshotTaskDetail.Status"}
        return describe(context, params, tasks, task_view, filters=filters, key="task_id")


@operation("ec2", "CancelImportTask", "CancelReason ImportTaskId")
def cancel_import_task(context: Context, params: Params) -> dict[str, Any]:
    """Cancel a running task and drop what it read."""
    task_id = params.get("ImportTaskId")
    if not task_id:
        raise missing_parameter("ImportTaskId")
    task: EmulatedImportTask = find_own(context, IMPORT_TASK, task_id)
    previous = _task_state(context, task)["Status"]
    if task.outcome:
        text = f"The import task {task_id} is {previous} and cannot be cancelled."  # from memory
        raise ApiError("IncorrectState", text)
    _end_task(context, task, "cancelled", params.get("CancelReason", ""))
    return {"ImportTaskId": task_id, "PreviousState": previous, "State": "deleting"}
