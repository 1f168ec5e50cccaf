"""Start, fill and complete snapshots; the errors of the EBS direct APIs.

Source: "Errors" of the six operations' reference pages; the reasons are the enumerations of botocore's model.
The texts are from memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import common, encryption
from vmsnix_ops.sandbox.ec2.state import BLOCK_BYTES, GIB, Snapshot, Upload
from vmsnix_ops.sandbox.ec2.tags import EBS_VALUE_LENGTH, checked, tag_list

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context


SNAPSHOT_ID = re.compile(r"snap-([0-9a-f]{8}|[0-9a-f]{17})")


def invalid(reason: str, text: str) -> AwsError:
    """Return a ValidationException with its reason."""
    return AwsError("ValidationException", text, status=400, Reason=reason)


def missing(snapshot_id: str) -> AwsError:
    """Return a ResourceNotFoundException for a snapshot."""
    text = f"The snapshot '{snapshot_id}' does not exist."
    return AwsError("ResourceNotFoundException", text, status=404, Reason="SNAPSHOT_NOT_FOUND")


def own(context: Context, snapshot_id: str) -> Snapshot:
    """Return a snapshot of the caller's account in this region."""
    found: Snapshot | None = context.table("snapshots").get(snapshot_id)
    if found is None:
        if not SNAPSHOT_ID.fullmatch(snapshot_id):
            raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot ID '{snapshot_id}' is not valid.")
        raise missing(snapshot_id)
    return found


def readable(context: Context, snapshot_id: str) -> Snapshot:
    """Return a completed snapshot that the caller owns or that was shared with it."""
    if not SNAPSHOT_ID.fullmatch(snapshot_id):
        raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot ID '{snapshot_id}' is not valid.")
    for (_, region), table in context.tables.everywhere("snapshots").items():
        if region == context.region and snapshot_id in table:
            found: Snapshot = table[snapshot_id]
            break
    else:
        raise missing(snapshot_id)
    if not found.readable_by(context.account):
        text = f"You are not allowed to read the snapshot '{snapshot_id}'."
        raise AwsError("AccessDeniedException", text, status=403, Reason="UNAUTHORIZED_ACCOUNT")
    state = found.state(context.clock)
    if state != "completed":
        raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot '{snapshot_id}' is not completed: it is {state}.")
    return found


# StartSnapshot, PutSnapshotBlock and CompleteSnapshot.
#
# Sources: the reference pages of the operations; "Amazon EBS direct APIs": the block size, the aggregated
# checksum, the timeout, the quota of pending snapshots. Rates are not limited here: fault rules throttle
# (``RequestThrottledException``).


PENDING_SNAPSHOTS = 100
"""Snapshots of an account and region that were started and not completed (documented quota)."""

BLOCKS_PER_GIB = GIB // BLOCK_BYTES
LARGEST_GIB = 65_536
TIMEOUT_MINUTES, LEAST_MINUTES, MOST_MINUTES = 60, 10, 4320
COMPLETE_SECONDS, SECONDS_PER_WRITTEN_GIB = 8.0, 8.0
"""How long a snapshot stays pending after CompleteSnapshot; guesses."""


@operation(
    "ebs",
    "StartSnapshot",
    honours=(
        "ClientToken",
        "Description",
        "Encrypted",
        "KmsKeyArn",
        "ParentSnapshotId",
        "Tags",
        "Timeout",
        "VolumeSize",
    ),
)
def start_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Begin a snapshot that blocks are then put into; what is not put comes from the parent."""
    known = _earlier(context, params)
    if known is not None:
        return _started(context, known)
    size, minutes = params["VolumeSize"], params.get("Timeout", TIMEOUT_MINUTES)
    if not 1 <= size <= LARGEST_GIB:
        raise invalid(
            "INVALID_VOLUME_SIZE", f"The volume size {size} is not between 1 and {LARGEST_GIB} GiB."
        )
    if not LEAST_MINUTES <= minutes <= MOST_MINUTES:
        text = f"The timeout {minutes} is not between {LEAST_MINUTES} and {MOST_MINUTES} minutes."
        raise invalid("INVALID_PARAMETER_VALUE", text)
    parent = _parent(context, params)
    encrypted, key = _encryption(context, params, parent)
    try:
        tags = checked(params.get("Tags") or [], longest=EBS_VALUE_LENGTH)
    except AwsError as error:
        raise invalid("INVALID_TAG", error.message) from error
    table, clock = context.table("snapshots"), context.clock
    pending = [s for s in table.values() if s.upload is not None and not s.upload.expired(clock)]
    if len(pending) >= PENDING_SNAPSHOTS:
        raise AwsError(
            "ServiceQuotaExceededException",
            f"Your account has reached its limit of {PENDING_SNAPSHOTS} pending snapshots.",
            status=402,
            Reason="DEPENDENCY_SERVICE_QUOTA_EXCEEDED",
        )
    now, snapshot_id = clock.now(), common.new_id("snap")
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        owner=context.account,
        region=context.region,
        size_gib=size,
        started=now,
        since=now,
        description=params.get("Description", ""),
        lineage=parent.lineage if parent is not None else snapshot_id,
        encrypted=encrypted,
        kms_key=key,
        tags=tags,
        direct=True,
        upload=Upload(params.get("ParentSnapshotId"), minutes, now),
        blocks=parent.blocks if parent is not None else {},
    )
    table[snapshot_id] = snapshot
    if params.get("ClientToken"):
        context.table("ebs_tokens")[params["ClientToken"]] = (_fingerprint(params), snapshot_id)
    return _started(context, snapshot)


def _fingerprint(params: Params) -> str:
    asked = {k: v for k, v in params.items() if k != "ClientToken"}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def _earlier(context: Context, params: Params) -> Snapshot | None:
    """Return what an earlier call with this token started, if it is still there."""
    digest, snapshot_id = context.table("ebs_tokens").get(params.get("ClientToken", ""), ("", ""))
    found: Snapshot | None = context.table("snapshots").get(snapshot_id)
    if found is not None and digest != _fingerprint(params):
        text = "The client token was already used in a request with other parameters."
        raise AwsError("ConflictException", text, status=409)
    return found


def _parent(context: Context, params: Params) -> Snapshot | None:
    parent_id = params.get("ParentSnapshotId")
    if parent_id is None:
        return None
    parent = own(context, parent_id)
    state = parent.state(context.clock)
    if state != "completed":
        text = f"The parent snapshot '{parent_id}' is not completed: it is {state}."
        raise invalid("INVALID_DEPENDENCY_REQUEST", text)
    if parent.size_gib > params["VolumeSize"]:
        text = f"The volume size must not be below the {parent.size_gib} GiB of the parent snapshot."
        raise invalid("INVALID_VOLUME_SIZE", text)
    return parent


def _encryption(context: Context, params: Params, parent: Snapshot | None) -> tuple[bool, str]:
    """Return whether the snapshot is encrypted, and with which key."""
    if parent is not None:
        if "Encrypted" in params or "KmsKeyArn" in params:
            # Documented: with a parent, Encrypted must be omitted and the parent's key is used.
            text = "Encrypted and KmsKeyArn cannot be given together with ParentSnapshotId."
            raise invalid("INVALID_PARAMETER_VALUE", text)
        return parent.encrypted, parent.kms_key
    if params.get("KmsKeyArn") and not params.get("Encrypted"):
        text = "KmsKeyArn can only be given together with Encrypted."
        raise invalid("INVALID_PARAMETER_VALUE", text)
    chosen = encryption.choose(context, wanted=params.get("Encrypted"), key=params.get("KmsKeyArn"))
    if chosen.failure:
        raise invalid("INVALID_CUSTOMER_KEY", chosen.failure)
    return chosen.encrypted, chosen.key


def _started(context: Context, snapshot: Snapshot) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "SnapshotId": snapshot.snapshot_id,
        "OwnerId": snapshot.owner,
        "Status": snapshot.state(context.clock),
        "StartTime": snapshot.started,
        "VolumeSize": snapshot.size_gib,
        "BlockSize": BLOCK_BYTES,
    }
    if snapshot.description:
        answer["Description"] = snapshot.description
    if snapshot.tags:
        answer["Tags"] = tag_list(snapshot.tags)
    if snapshot.upload is not None and snapshot.upload.parent_id:
        answer["ParentSnapshotId"] = snapshot.upload.parent_id
    if snapshot.kms_key:
        answer |= {"KmsKeyArn": snapshot.kms_key, "SseType": "sse-kms"}
    return answer


def _upload(context: Context, snapshot: Snapshot) -> Upload:
    """Return the upload of a snapshot that can be written."""
    if snapshot.upload is None:
        text = f"The snapshot '{snapshot.snapshot_id}' is not pending: no block can be written to it."
        raise invalid("INVALID_SNAPSHOT_ID", text)
    if snapshot.upload.expired(context.clock):
        text = f"Nothing was written to the snapshot '{snapshot.snapshot_id}' before its timeout."
        raise invalid("WRITE_REQUEST_TIMEOUT", text)
    return snapshot.upload


@operation(
    "ebs",
    "PutSnapshotBlock",
    honours=(
        "BlockData",
        "BlockIndex",
        "Checksum",
        "ChecksumAlgorithm",
        "DataLength",
        "Progress",
        "SnapshotId",
    ),
    locks=False,
)
def put_snapshot_block(context: Context, params: Params) -> dict[str, Any]:
    """Write one block; the lock is held only to note its digest."""
    snapshot = own(context, params["SnapshotId"])
    upload = _upload(context, snapshot)
    index = params["BlockIndex"]
    if not 0 <= index < snapshot.size_gib * BLOCKS_PER_GIB:
        text = f"The block index {index} is beyond the volume of {snapshot.size_gib} GiB."
        raise invalid("INVALID_BLOCK", text)
    if params["DataLength"] != BLOCK_BYTES:
        text = f"The data length must be {BLOCK_BYTES} bytes, not {params['DataLength']}."
        raise invalid("INVALID_PARAMETER_VALUE", text)
    if params["ChecksumAlgorithm"] != "SHA256":
        raise invalid("INVALID_PARAMETER_VALUE", "The checksum algorithm must be SHA256.")
    progress = params.get("Progress", 0)
    if not 0 <= progress <= 100:
        raise invalid("INVALID_PARAMETER_VALUE", f"The progress {progress} is not between 0 and 100.")
    digest = bytes.fromhex(context.blocks.put(_read_block(context)))
    if digest != decoded(params["Checksum"]):
        raise invalid("INVALID_BLOCK", "The checksum does not match the data of the block.")
    with context.lock:
        # Another request may have sealed the snapshot, or it may have expired, while this one was read.
        upload = _upload(context, snapshot)
        upload.written[index] = digest
        upload.last_write = context.clock.now()
        upload.progress = max(upload.progress, progress)
    return {"Checksum": params["Checksum"], "ChecksumAlgorithm": "SHA256"}


def _read_block(context: Context) -> bytearray:
    """Return the body, which must be one block, copied once."""
    block, filled = bytearray(BLOCK_BYTES), 0
    for piece in context.body.chunks():
        if filled + len(piece) > BLOCK_BYTES:
            raise invalid("INVALID_BLOCK", f"The block has more than {BLOCK_BYTES} bytes.")
        block[filled : filled + len(piece)] = piece
        filled += len(piece)
    if filled != BLOCK_BYTES:
        raise invalid("INVALID_BLOCK", f"The block has {filled} bytes, not {BLOCK_BYTES}.")
    return block


def decoded(checksum: str) -> bytes:
    """Return a base64 checksum's bytes; empty when it is none."""
    try:
        return base64.b64decode(checksum, validate=True)
    except binascii.Error:
        return b""


@operation(
    "ebs",
    "CompleteSnapshot",
    honours=(
        "ChangedBlocksCount",
        "Checksum",
        "ChecksumAggregationMethod",
        "ChecksumAlgorithm",
        "SnapshotId",
    ),
)
def complete_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Seal a snapshot: no more blocks; it is completed a while later.

    A fault rule's outcome may give ``status_message``: the snapshot then becomes ``error`` with it.
    """
    snapshot = own(context, params["SnapshotId"])
    if snapshot.upload is None and snapshot.direct:
        return {"Status": snapshot.state(context.clock)}  # asked again, perhaps because the answer was lost
    upload = _upload(context, snapshot)
    count = params["ChangedBlocksCount"]
    if count != len(upload.written):
        text = f"ChangedBlocksCount is {count}, but {len(upload.written)} blocks were written."
        raise invalid("INVALID_PARAMETER_VALUE", text)
    _check_aggregate(params, upload)
    snapshot.blocks = snapshot.blocks | upload.written
    snapshot.upload = None
    snapshot.since = context.clock.now()
    snapshot.seconds = COMPLETE_SECONDS + count / BLOCKS_PER_GIB * SECONDS_PER_WRITTEN_GIB
    snapshot.failure = str(context.outcome.get("status_message", ""))
    return {"Status": snapshot.state(context.clock)}


def _check_aggregate(params: Params, upload: Upload) -> None:
    """Compare the checksum over the blocks' checksums (LINEAR: raw digests in ascending order of index)."""
    given = [
        name for name in ("Checksum", "ChecksumAggregationMethod", "ChecksumAlgorithm") if name in params
    ]
    if not given:
        return
    if len(given) != 3 or (params["ChecksumAggregationMethod"], params["ChecksumAlgorithm"]) != (
        "LINEAR",
        "SHA256",
    ):
        text = "Checksum, ChecksumAlgorithm (SHA256) and ChecksumAggregationMethod (LINEAR) belong together."
        raise invalid("INVALID_PARAMETER_VALUE", text)
    aggregate = hashlib.sha256()
    for index in sorted(upload.written):
        aggregate.update(upload.written[index])
    if aggregate.digest() != decoded(params["Checksum"]):
        text = "The checksum does not match the checksums of the blocks that were written."
        raise invalid("INVALID_PARAMETER_VALUE", text)
