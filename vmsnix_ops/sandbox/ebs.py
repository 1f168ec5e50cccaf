"""The EBS direct APIs: write and read snapshots block by block.

Sources: the reference pages of the six operations, whose errors have a reason from an enumeration in
botocore's model; "Amazon EBS direct APIs" (block size, aggregated checksum, timeout, quota of pending
snapshots); "Read snapshots using the EBS direct APIs" (lifetimes of block tokens and page tokens). The
texts are from memory.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import struct
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, given, operation, params_digest, tag_list
from vmsnix_ops.sandbox.ec2.common import MAX_EBS_TAG_VALUE, check_tags, choose_encryption, new_snapshot
from vmsnix_ops.sandbox.ec2.resources import BLOCK_BYTES, GIB, DirectUpload, EmulatedSnapshot
from vmsnix_ops.sandbox.wire.http import FileRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmsnix_ops.sandbox.core import Context


SNAPSHOT_ID = re.compile(r"snap-([0-9a-f]{8}|[0-9a-f]{17})")


def _validation_error(reason: str, text: str) -> ApiError:
    """Return a ``ValidationException`` with a reason."""
    return ApiError("ValidationException", text, Reason=reason)


def _find_snapshot(context: Context, snapshot_id: str, *, own: bool = True) -> EmulatedSnapshot:
    """Return a snapshot in this region, of the caller or of any account."""
    if not SNAPSHOT_ID.fullmatch(snapshot_id):
        raise _validation_error("INVALID_SNAPSHOT_ID", f"The snapshot ID '{snapshot_id}' is not valid.")
    found: EmulatedSnapshot | None = context.table("snapshots").get(snapshot_id)
    if found is None and not own:
        found = context.tables.find("snapshots", context.region, snapshot_id)
    if found is None:
        text = f"The snapshot '{snapshot_id}' does not exist."
        raise ApiError("ResourceNotFoundException", text, status=404, Reason="SNAPSHOT_NOT_FOUND")
    return found


def _find_readable_snapshot(context: Context, snapshot_id: str) -> EmulatedSnapshot:
    """Return a completed snapshot of the caller, or one that is shared with it."""
    found = _find_snapshot(context, snapshot_id, own=False)
    if not found.readable_by(context.account, context.clock):
        text = f"You are not allowed to read the snapshot '{snapshot_id}'."
        raise ApiError("AccessDeniedException", text, status=403, Reason="UNAUTHORIZED_ACCOUNT")
    state = found.state(context.clock)
    if state != "completed":
        text = f"The snapshot '{snapshot_id}' is not completed: it is {state}."
        raise _validation_error("INVALID_SNAPSHOT_ID", text)
    # Sources: "EBS direct APIs concepts" and "Read snapshots" in the EBS User Guide. The texts are guesses.
    if found.tier(context.clock) == "archive":
        raise _validation_error("INVALID_SNAPSHOT_ID", f"The snapshot '{snapshot_id}' is archived.")
    if found.public:
        raise _validation_error("INVALID_SNAPSHOT_ID", f"The snapshot '{snapshot_id}' is public.")
    return found


# Write

MAX_PENDING_SNAPSHOTS = 100
"""Pending snapshots of an account in a region (documented quota)."""

BLOCKS_PER_GIB = GIB // BLOCK_BYTES
MAX_GIB = 65_536
TIMEOUT_MINUTES = 60
COMPLETE_SECONDS, SECONDS_PER_WRITTEN_GIB = 8.0, 8.0
"""How long a snapshot is pending after CompleteSnapshot; guesses."""


@operation(
    "ebs",
    "StartSnapshot",
    "ClientToken Description Encrypted KmsKeyArn ParentSnapshotId Tags Timeout VolumeSize",
)
def start_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Start a snapshot. Blocks that are not written are those of the parent."""
    known = _snapshot_of_token(context, params)
    if known is not None:
        return _start_answer(context, known)
    size, minutes = params["VolumeSize"], params.get("Timeout", TIMEOUT_MINUTES)
    if size > MAX_GIB:
        raise _validation_error("INVALID_VOLUME_SIZE", f"The volume size {size} is above {MAX_GIB} GiB.")
    parent = _find_parent(context, params)
    encrypted, key = _snapshot_encryption(context, params, parent)
    try:
        tags = check_tags(params.get("Tags") or [], longest=MAX_EBS_TAG_VALUE)
    except ApiError as error:
        raise _validation_error("INVALID_TAG", error.message) from error
    table, clock = context.table("snapshots"), context.clock
    pending = [s for s in table.values() if s.upload is not None and not s.upload.expired(clock)]
    if len(pending) >= MAX_PENDING_SNAPSHOTS:
        raise ApiError(
            "ServiceQuotaExceededException",
            f"Your account has reached its limit of {MAX_PENDING_SNAPSHOTS} pending snapshots.",
            status=402,
            Reason="DEPENDENCY_SERVICE_QUOTA_EXCEEDED",
        )
    more: dict[str, Any] = {} if parent is None else {"lineage": parent.lineage, "blocks": parent.blocks}
    snapshot = new_snapshot(
        context,
        size,
        description=params.get("Description", ""),
        encrypted=encrypted,
        kms_key=key,
        tags=tags,
        direct=True,
        upload=DirectUpload(params.get("ParentSnapshotId"), minutes, clock.now()),
        **more,
    )
    if params.get("ClientToken"):
        digest = params_digest(params, "ClientToken")
        context.table("ebs_tokens")[params["ClientToken"]] = (digest, snapshot.snapshot_id)
    return _start_answer(context, snapshot)


def _snapshot_of_token(context: Context, params: Params) -> EmulatedSnapshot | None:
    """Return the snapshot that an earlier call with this client token started, if it exists."""
    digest, snapshot_id = context.table("ebs_tokens").get(params.get("ClientToken", ""), ("", ""))
    found: EmulatedSnapshot | None = context.table("snapshots").get(snapshot_id)
    if found is not None and digest != params_digest(params, "ClientToken"):
        text = "The client token was already used in a request with other parameters."
        raise ApiError("ConflictException", text, status=409)
    return found


def _find_parent(context: Context, params: Params) -> EmulatedSnapshot | None:
    parent_id = params.get("ParentSnapshotId")
    if parent_id is None:
        return None
    parent = _find_snapshot(context, parent_id)
    state = parent.state(context.clock)
    if state != "completed":
        text = f"The parent snapshot '{parent_id}' is not completed: it is {state}."
        raise _validation_error("INVALID_DEPENDENCY_REQUEST", text)
    if parent.size_gib > params["VolumeSize"]:
        text = f"The volume size must not be below the {parent.size_gib} GiB of the parent snapshot."
        raise _validation_error("INVALID_VOLUME_SIZE", text)
    return parent


def _snapshot_encryption(
    context: Context, params: Params, parent: EmulatedSnapshot | None
) -> tuple[bool, str]:
    """Return whether the snapshot is encrypted, and its key."""
    if parent is not None:
        if "Encrypted" in params or "KmsKeyArn" in params:
            # Documented: with a parent, Encrypted must be omitted and the parent's key is used.
            text = "Encrypted and KmsKeyArn cannot be given together with ParentSnapshotId."
            raise _validation_error("INVALID_PARAMETER_VALUE", text)
        return parent.encrypted, parent.kms_key
    if params.get("KmsKeyArn") and not params.get("Encrypted"):
        text = "KmsKeyArn can only be given together with Encrypted."
        raise _validation_error("INVALID_PARAMETER_VALUE", text)
    chosen = choose_encryption(context, wanted=params.get("Encrypted"), key=params.get("KmsKeyArn"))
    if chosen.failure:
        raise _validation_error("INVALID_CUSTOMER_KEY", chosen.failure)
    return chosen.encrypted, chosen.key


def _start_answer(context: Context, snapshot: EmulatedSnapshot) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "SnapshotId": snapshot.snapshot_id,
        "OwnerId": snapshot.owner,
        "Status": snapshot.state(context.clock),
        "StartTime": snapshot.started,
        "VolumeSize": snapshot.size_gib,
        "BlockSize": BLOCK_BYTES,
    }
    parent_id = snapshot.upload.parent_id if snapshot.upload is not None else ""
    return answer | given(
        Description=snapshot.description,
        Tags=tag_list(snapshot.tags),
        ParentSnapshotId=parent_id,
        KmsKeyArn=snapshot.kms_key,
        SseType="sse-kms" if snapshot.kms_key else "",
    )


def _open_upload(context: Context, snapshot: EmulatedSnapshot) -> DirectUpload:
    """Return the upload of a snapshot that accepts blocks."""
    if snapshot.upload is None:
        text = f"The snapshot '{snapshot.snapshot_id}' is not pending: no block can be written to it."
        raise _validation_error("INVALID_SNAPSHOT_ID", text)
    if snapshot.upload.expired(context.clock):
        text = f"Nothing was written to the snapshot '{snapshot.snapshot_id}' before its timeout."
        raise _validation_error("WRITE_REQUEST_TIMEOUT", text)
    return snapshot.upload


@operation(
    "ebs",
    "PutSnapshotBlock",
    "BlockData BlockIndex Checksum ChecksumAlgorithm DataLength Progress SnapshotId",
    locks=False,
)
def put_snapshot_block(context: Context, params: Params) -> dict[str, Any]:
    """Write one block. Only the record of its digest needs the state lock."""
    snapshot = _find_snapshot(context, params["SnapshotId"])
    upload = _open_upload(context, snapshot)
    index = params["BlockIndex"]
    if index >= snapshot.size_gib * BLOCKS_PER_GIB:
        text = f"The block index {index} is beyond the volume of {snapshot.size_gib} GiB."
        raise _validation_error("INVALID_BLOCK", text)
    if params["DataLength"] != BLOCK_BYTES:
        text = f"The data length must be {BLOCK_BYTES} bytes, not {params['DataLength']}."
        raise _validation_error("INVALID_PARAMETER_VALUE", text)
    digest = bytes.fromhex(context.blocks.receive(_block_pieces(context)))
    if digest != _decode_base64(params["Checksum"]):
        raise _validation_error("INVALID_BLOCK", "The checksum does not match the data of the block.")
    with context.lock:
        # The snapshot may have been completed, or have expired, while this block was received.
        upload = _open_upload(context, snapshot)
        upload.written[index] = digest
        upload.last_write = context.clock.now()
        upload.progress = max(upload.progress, params.get("Progress", 0))
    return {"Checksum": params["Checksum"], "ChecksumAlgorithm": "SHA256"}


def _block_pieces(context: Context) -> Iterator[memoryview]:
    """Yield the body in pieces. It must be one block."""
    total = 0
    for piece in context.body.chunks():
        total += len(piece)
        if total > BLOCK_BYTES:
            raise _validation_error("INVALID_BLOCK", f"The block has more than {BLOCK_BYTES} bytes.")
        yield piece
    if total != BLOCK_BYTES:
        raise _validation_error("INVALID_BLOCK", f"The block has {total} bytes, not {BLOCK_BYTES}.")


def _decode_base64(text: str) -> bytes:
    """Return the bytes of a base64 text; empty for other text."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


@operation(
    "ebs",
    "CompleteSnapshot",
    "ChangedBlocksCount Checksum ChecksumAggregationMethod ChecksumAlgorithm SnapshotId",
)
def complete_snapshot(context: Context, params: Params) -> dict[str, Any]:
    """Complete a snapshot. It accepts no more blocks and is ``completed`` some seconds later.

    With ``status_message`` in the outcome of a fault rule, it becomes ``error`` with this text.
    """
    snapshot = _find_snapshot(context, params["SnapshotId"])
    if snapshot.upload is None and snapshot.direct:
        return {"Status": snapshot.state(context.clock)}  # a repeated call, such as after a lost answer
    upload = _open_upload(context, snapshot)
    count = params["ChangedBlocksCount"]
    if count != len(upload.written):
        text = f"ChangedBlocksCount is {count}, but {len(upload.written)} blocks were written."
        raise _validation_error("INVALID_PARAMETER_VALUE", text)
    _check_aggregate(params, upload)
    snapshot.blocks = snapshot.blocks | upload.written
    snapshot.upload = None
    snapshot.since = context.clock.now()
    snapshot.seconds = COMPLETE_SECONDS + count / BLOCKS_PER_GIB * SECONDS_PER_WRITTEN_GIB
    snapshot.failure = str(context.outcome.get("status_message", ""))
    return {"Status": snapshot.state(context.clock)}


def _check_aggregate(params: Params, upload: DirectUpload) -> None:
    """Check the checksum of the blocks' checksums (LINEAR: raw digests in ascending order of index)."""
    found = {"Checksum", "ChecksumAggregationMethod", "ChecksumAlgorithm"} & params.keys()
    if not found:
        return
    if len(found) != 3:
        text = "Checksum, ChecksumAlgorithm (SHA256) and ChecksumAggregationMethod (LINEAR) belong together."
        raise _validation_error("INVALID_PARAMETER_VALUE", text)
    digests = b"".join(digest for _, digest in sorted(upload.written.items()))
    if hashlib.sha256(digests).digest() != _decode_base64(params["Checksum"]):
        text = "The checksum does not match the checksums of the blocks that were written."
        raise _validation_error("INVALID_PARAMETER_VALUE", text)


BLOCK_TOKEN_LIFETIME, PAGE_TOKEN_LIFETIME = timedelta(days=7), timedelta(minutes=60)
_CONTENT = struct.Struct(">QI")


def _make_token(context: Context, purpose: str, number: int, expires: datetime) -> str:
    """Return a token of a block index or of the first index of a page.

    AWS does not document the content of its tokens. They must match ``^[A-Za-z0-9+/=]+$``.
    """
    content = _CONTENT.pack(number, int(expires.timestamp()))
    return base64.b64encode(content + _sign(context, purpose, content)).decode("ascii")


def _read_token(context: Context, purpose: str, token: str, life: timedelta) -> int | None:
    """Return the number in a token; None when the token is invalid or has expired."""
    raw = _decode_base64(token)
    content, signature = raw[: _CONTENT.size], raw[_CONTENT.size :]
    if len(content) < _CONTENT.size or not hmac.compare_digest(signature, _sign(context, purpose, content)):
        return None
    number, expires = _CONTENT.unpack(content)
    end = datetime.fromtimestamp(expires, UTC)
    return None if context.clock.is_past(end, since=end - life) else int(number)


def _sign(context: Context, purpose: str, content: bytes) -> bytes:
    """Sign a token for one purpose, such as the blocks of one snapshot, with a key in the state."""
    table = context.tables.table("", "", "ebs_secret")
    key = table.get("key") or table.setdefault("key", secrets.token_bytes(32))
    return hashlib.blake2b(purpose.encode() + b"\0" + content, key=key, digest_size=16).digest()


# Read and compare

MAX_RESULTS = 10_000


def _page(
    context: Context, params: Params, purpose: str, indices: Iterable[int]
) -> tuple[list[int], str | None]:
    """Return the block indices of one page, sorted, and the token of the next page."""
    size = params.get("MaxResults", MAX_RESULTS)
    start = params.get("StartingBlockIndex", 0)
    if params.get("NextToken"):  # documented: StartingBlockIndex is ignored then
        found = _read_token(context, purpose, params["NextToken"], PAGE_TOKEN_LIFETIME)
        if found is None:
            raise _validation_error("INVALID_PAGE_TOKEN", "The page token is not valid, or has expired.")
        start = found
    ordered = sorted(indices)
    first = bisect_left(ordered, start)
    shown, rest = ordered[first : first + size], ordered[first + size : first + size + 1]
    expires = context.clock.now() + PAGE_TOKEN_LIFETIME
    return shown, _make_token(context, purpose, rest[0], expires) if rest else None


def _list_answer(context: Context, snapshot: EmulatedSnapshot, token: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "VolumeSize": snapshot.size_gib,
        "BlockSize": BLOCK_BYTES,
        "ExpiryTime": context.clock.now() + BLOCK_TOKEN_LIFETIME,
    }
    return answer | ({"NextToken": token} if token else {})


def _block_token(context: Context, snapshot: EmulatedSnapshot, index: int, answer: dict[str, Any]) -> str:
    return _make_token(context, f"block {snapshot.snapshot_id}", index, answer["ExpiryTime"])


@operation("ebs", "ListSnapshotBlocks", "MaxResults NextToken SnapshotId StartingBlockIndex")
def list_snapshot_blocks(context: Context, params: Params) -> dict[str, Any]:
    """Return the blocks of a snapshot and its parents, sorted by index."""
    snapshot = _find_readable_snapshot(context, params["SnapshotId"])
    shown, token = _page(context, params, f"list {snapshot.snapshot_id}", snapshot.blocks)
    answer = _list_answer(context, snapshot, token)
    tokens = {index: _block_token(context, snapshot, index, answer) for index in shown}
    return answer | {"Blocks": [{"BlockIndex": i, "BlockToken": token} for i, token in tokens.items()]}


@operation(
    "ebs", "ListChangedBlocks", "FirstSnapshotId MaxResults NextToken SecondSnapshotId StartingBlockIndex"
)
def list_changed_blocks(context: Context, params: Params) -> dict[str, Any]:
    """Return the blocks that differ between two related snapshots; without the first, all of the second."""
    second = _find_readable_snapshot(context, params["SecondSnapshotId"])
    first_id = params.get("FirstSnapshotId", "")
    first = _find_readable_snapshot(context, first_id) if first_id else None
    if first is not None and first.lineage != second.lineage:
        text = f"The snapshots '{first_id}' and '{second.snapshot_id}' are unrelated."
        raise _validation_error("UNRELATED_SNAPSHOTS", text)
    before: dict[int, bytes] = first.blocks if first is not None else {}
    after = second.blocks
    changed = [index for index in before.keys() | after.keys() if before.get(index) != after.get(index)]
    shown, token = _page(context, params, f"changed {first_id} {second.snapshot_id}", changed)
    answer = _list_answer(context, second, token)
    blocks = []
    for index in shown:
        block: dict[str, Any] = {"BlockIndex": index}
        if first is not None and index in before:
            block["FirstBlockToken"] = _block_token(context, first, index, answer)
        if index in after:
            block["SecondBlockToken"] = _block_token(context, second, index, answer)
        blocks.append(block)
    return answer | {"ChangedBlocks": blocks}


@operation("ebs", "GetSnapshotBlock", "BlockIndex BlockToken SnapshotId", locks=False)
def get_snapshot_block(context: Context, params: Params) -> dict[str, Any]:
    """Return one block with its checksum."""
    snapshot = _find_readable_snapshot(context, params["SnapshotId"])
    index = params["BlockIndex"]
    purpose = f"block {snapshot.snapshot_id}"
    found = _read_token(context, purpose, params["BlockToken"], BLOCK_TOKEN_LIFETIME)
    if found != index or index not in snapshot.blocks:
        raise _validation_error(
            "INVALID_BLOCK_TOKEN", "The block token is not valid for this block, or has expired."
        )
    digest = snapshot.blocks[index]
    return {
        "DataLength": BLOCK_BYTES,
        "BlockData": [FileRange(context.blocks.path(digest.hex()), 0, BLOCK_BYTES)],
        "Checksum": base64.b64encode(digest).decode("ascii"),
        "ChecksumAlgorithm": "SHA256",
    }
