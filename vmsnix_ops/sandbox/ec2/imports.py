"""ImportSnapshot, DescribeImportSnapshotTasks and CancelImportTask.

How far a task is follows from its age on the sandbox's clock; the work behind it is done when somebody looks,
outside the state lock, for some seconds at a time. A task goes through

========== ============= ========================= ======================================================
age        Status        StatusMessage             what is done at the first look
========== ============= ========================= ======================================================
0 s        active        pending
20 s       active        validated                 the source is opened and its format checked
40 s       active        downloading/converting    the blocks that hold data are read
180 s +    completed     (none)                    the source must still be there; the snapshot appears
failure    deleting,     the reason                nothing stays
           then deleted
========== ============= ========================= ======================================================

Sources: public transcripts of describe-import-snapshot-tasks, and the reference pages of the operations; the
times are guesses of the right size (2 to 15 minutes a task).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import encryption, idempotency, ids, import_role, import_source
from vmsnix_ops.sandbox.ec2.filters import page
from vmsnix_ops.sandbox.ec2.state import GIB, ImportTask, Snapshot
from vmsnix_ops.sandbox.ec2.tags import at_creation, tag_list

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

CHECK_SECONDS, CONVERT_SECONDS, BASE_SECONDS, SECONDS_PER_GIB, DELETING_SECONDS = 20.0, 40.0, 180.0, 30.0, 5.0
LISTED_SECONDS = 7 * 24 * 3600.0
"""Finished tasks are listed for seven days (documented)."""

ACTIVE_TASKS = 20
"""Import tasks of a region at the same time (documented quota)."""

FORMATS = ("VHD", "VHDX", "VMDK", "RAW")

KEY_ACTIONS = ("kms:CreateGrant", "kms:DescribeKey", "kms:ReEncryptFrom", "kms:ReEncryptTo")
"""What the role needs on a customer's key, among others ("Required permissions for VM Import/Export")."""

_busy: set[str] = set()
"""Tasks whose source somebody reads at this moment; guarded by the state lock."""


def seconds(task: ImportTask) -> float:
    """Return after how many sandbox seconds a task is completed."""
    return BASE_SECONDS + SECONDS_PER_GIB * task.disk_gib


def settle(context: Context) -> None:
    """Bring every unfinished task of this account and region to where it should be by now.

    Call it without holding the state lock.
    """
    with context.lock:
        tasks = [t for t in context.table("import_tasks").values() if not t.outcome]
    for task in tasks:
        _advance(context, task)


def _advance(context: Context, task: ImportTask) -> None:
    """Do what is due for one task, unless somebody else does it already."""
    age = context.clock.age(task.created)
    with context.lock:
        if task.outcome or task.task_id in _busy or age < CHECK_SECONDS:
            return
        _busy.add(task.task_id)
    try:
        _work(context, task, age)
    except import_source.UnusableError as error:
        with context.lock:
            if not task.outcome:
                _end(context, task, "deleted", str(error))
    finally:
        with context.lock:
            _busy.discard(task.task_id)


def _work(context: Context, task: ImportTask, age: float) -> None:
    if task.message:  # it was decided at the start how this one ends
        raise import_source.UnusableError(task.message)
    if not task.detected:
        found = import_source.inspect(context, task)
        task.size_bytes, task.disk_gib = found.file_bytes, max(1, math.ceil(found.disk_bytes / GIB))
        task.detected = found.image_format
    if age >= CONVERT_SECONDS and not task.read:
        import_source.read_blocks(context, task)
    import_source.require_present(context, task)
    if task.read and context.clock.age(task.created) >= seconds(task):
        _complete(context, task)


def _end(context: Context, task: ImportTask, outcome: str, message: str = "") -> None:
    task.outcome, task.message, task.ended, task.blocks = outcome, message, context.clock.now(), {}


def _complete(context: Context, task: ImportTask) -> None:
    with context.lock:
        if task.outcome:
            return
        now = context.clock.now()
        context.table("snapshots")[task.snapshot_id] = Snapshot(
            snapshot_id=task.snapshot_id,
            owner=task.owner,
            region=task.region,
            size_gib=task.disk_gib,
            started=now,
            since=now,
            description=f"Created by AWS-VMImport service for {task.task_id}",
            lineage=task.snapshot_id,
            encrypted=task.encrypted,
            kms_key=task.kms_key,
            blocks=task.blocks,
        )
        _end(context, task, "completed")


def _state(context: Context, task: ImportTask) -> dict[str, Any]:
    """Return the members of SnapshotTaskDetail that change over time."""
    if task.outcome == "completed":
        return {
            "Status": "completed",
            "DiskImageSize": float(task.size_bytes),
            "SnapshotId": task.snapshot_id,
        }
    if task.outcome:
        fresh = task.ended is not None and context.clock.age(task.ended) < DELETING_SECONDS
        status = "deleting" if fresh else "deleted"
        return {"Status": status, "DiskImageSize": 0.0} | (
            {"StatusMessage": task.message} if task.message else {}
        )
    age = context.clock.age(task.created)
    if not task.detected:
        step, progress = "pending", 0 if age < CHECK_SECONDS / 2 else 3
    elif age < CONVERT_SECONDS:
        step, progress = "validated", 32
    else:
        share = min(1.0, (age - CONVERT_SECONDS) / (seconds(task) - CONVERT_SECONDS))
        step, progress = "downloading/converting", int(42 + 53 * share)
    return {
        "Status": "active",
        "StatusMessage": step,
        "Progress": str(progress),
        "DiskImageSize": float(task.size_bytes),
    }


def task_view(context: Context, task: ImportTask) -> dict[str, Any]:
    """Return a task as both operations show it."""
    detail = _state(context, task)
    if task.detected:
        detail["Format"] = task.image_format
    if task.disk_description:
        detail["Description"] = task.disk_description
    if task.encrypted:
        detail |= {"Encrypted": True, "KmsKeyId": task.kms_key}
    if task.url:
        detail["Url"] = task.url
    else:
        detail["UserBucket"] = {"S3Bucket": task.bucket, "S3Key": task.key}
    view: dict[str, Any] = {"ImportTaskId": task.task_id, "SnapshotTaskDetail": detail}
    if task.description:
        view["Description"] = task.description
    if task.tags:
        view["Tags"] = tag_list(task.tags)
    return view


@operation(
    "ec2",
    "ImportSnapshot",
    honours=(
        "ClientToken",
        "Description",
        "DiskContainer",
        "Encrypted",
        "KmsKeyId",
        "RoleName",
        "TagSpecifications",
    ),
)
def import_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Begin to make a snapshot of a disk image in S3.

    A fault rule's outcome may give ``status_message``: the task then fails with this text when it is
    validated.
    """
    table = context.table("import_tasks")
    known = idempotency.earlier(context, params)
    if known in table:
        return task_view(context, table[known])
    container = params.get("DiskContainer") or {}
    image_format = str(container.get("Format", "")).upper()
    if image_format not in FORMATS:
        # From memory.
        text = f"Unsupported disk image format '{container.get('Format', '')}': use VHD, VMDK or RAW."
        raise AwsError("InvalidParameter", text)
    bucket, key, url = import_source.location(container)
    tags = at_creation(params, "import-snapshot-task")["import-snapshot-task"]
    role_name = params.get("RoleName", "vmimport")
    import_source.check_access(context, role_name, bucket, key)
    if sum(1 for t in table.values() if not t.outcome) >= ACTIVE_TASKS:
        text = f"You have reached the limit of {ACTIVE_TASKS} concurrent import tasks."  # text from memory
        raise AwsError("ResourceCountLimitExceeded", text)
    chosen = encryption.choose(context, wanted=params.get("Encrypted"), key=params.get("KmsKeyId"))
    usable = not params.get("KmsKeyId") or all(
        import_role.may_use_key(context, role_name, action, chosen.key) for action in KEY_ACTIONS
    )
    task = ImportTask(
        task_id=ids.new_id("import-snap"),
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
        snapshot_id=ids.new_id("snap"),
        # The text for a bad key is from memory.
        message=context.outcome.get("status_message")
        or (f"ClientError: {encryption.NOT_ACCESSIBLE}" if chosen.failure or not usable else ""),
    )
    table[task.task_id] = task
    idempotency.remember(context, params, task.task_id)
    return task_view(context, task)


@operation(
    "ec2",
    "DescribeImportSnapshotTasks",
    honours=("Filters", "ImportTaskIds", "MaxResults", "NextToken"),
    locks=False,
)
def describe_import_snapshot_tasks(context: Context, params: Params) -> dict[str, Any]:
    """Return import tasks; a finished one for seven days."""
    settle(context)
    if params.get("Filters"):
        # The reference has the parameter but documents no filter at all.
        name = params["Filters"][0].get("Name", "")
        raise AwsError("InvalidParameterValue", f"The filter '{name}' is invalid")
    with context.lock:
        table = context.table("import_tasks")
        for task_id in [
            k for k, t in table.items() if t.ended and context.clock.age(t.ended) > LISTED_SECONDS
        ]:
            del table[task_id]
        asked = params.get("ImportTaskIds") or []
        found = [ids.find_own(context, ids.IMPORT_TASK, task_id) for task_id in dict.fromkeys(asked)]
        shown, token = page(found if asked else table.values(), params, lambda t: t.task_id)
        answer: dict[str, Any] = {"ImportSnapshotTasks": [task_view(context, task) for task in shown]}
    return answer | ({"NextToken": token} if token else {})


@operation("ec2", "CancelImportTask", honours=("CancelReason", "ImportTaskId"))
def cancel_import_task(context: Context, params: Params) -> dict[str, Any]:
    """End a task that still runs; what it made so far goes away."""
    task_id = params.get("ImportTaskId")
    if not task_id:
        raise AwsError("MissingParameter", "The request must contain the parameter ImportTaskId")
    task: ImportTask = ids.find_own(context, ids.IMPORT_TASK, task_id)
    if task.outcome:
        status = _state(context, task)["Status"]
        text = f"The import task {task_id} is {status} and cannot be cancelled."  # from memory
        raise AwsError("IncorrectState", text)
    previous = _state(context, task)["Status"]
    _end(context, task, "cancelled", params.get("CancelReason", ""))
    return {"ImportTaskId": task_id, "PreviousState": previous, "State": "deleting"}
