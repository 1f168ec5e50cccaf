"""Read and compare the blocks of snapshots; block tokens and page tokens.

Source: "Read snapshots using the EBS direct APIs": block tokens are good for seven days, page tokens for 60
minutes. AWS does not tell how its tokens look; they must match ``^[A-Za-z0-9+/=]+$``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import Params, operation
from vmsnix_ops.sandbox.ebs import writing
from vmsnix_ops.sandbox.ec2.state import BLOCK_BYTES, Snapshot
from vmsnix_ops.sandbox.wire.http import FileRange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.sandbox.core import Context


BLOCK_LIFE, PAGE_LIFE = timedelta(days=7), timedelta(minutes=60)
_CONTENT = struct.Struct(">QI")
_SIGNATURE_BYTES = 16


class Signer:
    """Makes and checks the tokens of one purpose, such as reading one snapshot.

    Parameters
    ----------
    context
        The call; the key is kept with the sandbox's state.
    purpose
        What the tokens are good for; a token of another purpose is refused.
    life
        How long its tokens are good.
    expires
        When tokens made here end.
    """

    def __init__(
        self, context: Context, purpose: str, life: timedelta, expires: datetime | None = None
    ) -> None:
        table = context.tables.table("", "", "ebs_secret")
        key = table.setdefault("key", secrets.token_bytes(32))
        self._base = hashlib.blake2b(purpose.encode(), key=key, digest_size=_SIGNATURE_BYTES)
        self._clock, self._life = context.clock, life
        self._expires = int(expires.timestamp()) if expires is not None else 0

    def token(self, number: int) -> str:
        """Return the token of a block index or a page's start."""
        content = _CONTENT.pack(number, self._expires)
        return base64.b64encode(content + self._sign(content)).decode("ascii")

    def number(self, token: str) -> int | None:
        """Return what a token stands for; None when it is not one of these, or has expired."""
        try:
            raw = base64.b64decode(token, validate=True)
        except (binascii.Error, ValueError):
            return None
        content, signature = raw[: _CONTENT.size], raw[_CONTENT.size :]
        if len(content) < _CONTENT.size or not hmac.compare_digest(signature, self._sign(content)):
            return None
        number, expires = _CONTENT.unpack(content)
        end = datetime.fromtimestamp(expires, UTC)
        return None if self._clock.passed(end, since=end - self._life) else int(number)

    def _sign(self, content: bytes) -> bytes:
        signing = self._base.copy()
        signing.update(content)
        return signing.digest()


# ListSnapshotBlocks, ListChangedBlocks and GetSnapshotBlock.
#
# Sources: the reference pages of the operations; "Read snapshots using the EBS direct APIs".


LEAST_RESULTS, MOST_RESULTS = 100, 10_000


def _page(
    context: Context, params: Params, purpose: str, indices: Iterable[int]
) -> tuple[list[int], str | None]:
    """Return the block indices of one page, ascending, and the token of the next page."""
    size = params.get("MaxResults", MOST_RESULTS)
    if not LEAST_RESULTS <= size <= MOST_RESULTS:
        text = f"MaxResults must be between {LEAST_RESULTS} and {MOST_RESULTS}, not {size}."
        raise writing.invalid("INVALID_PARAMETER_VALUE", text)
    start = params.get("StartingBlockIndex", 0)
    if params.get("NextToken"):  # documented: StartingBlockIndex is ignored then
        found = Signer(context, purpose, PAGE_LIFE).number(params["NextToken"])
        if found is None:
            raise writing.invalid("INVALID_PAGE_TOKEN", "The page token is not valid, or has expired.")
        start = found
    ordered = sorted(indices)
    first = bisect_left(ordered, start)
    shown, rest = ordered[first : first + size], ordered[first + size : first + size + 1]
    if not rest:
        return shown, None
    return shown, Signer(context, purpose, PAGE_LIFE, context.clock.now() + PAGE_LIFE).token(rest[0])


def _envelope(context: Context, snapshot: Snapshot, token: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "VolumeSize": snapshot.size_gib,
        "BlockSize": BLOCK_BYTES,
        "ExpiryTime": context.clock.now() + BLOCK_LIFE,
    }
    return answer | ({"NextToken": token} if token else {})


def _signer(context: Context, snapshot: Snapshot, answer: dict[str, Any] | None = None) -> Signer:
    return Signer(
        context, f"block {snapshot.snapshot_id}", BLOCK_LIFE, answer["ExpiryTime"] if answer else None
    )


@operation(
    "ebs", "ListSnapshotBlocks", honours=("MaxResults", "NextToken", "SnapshotId", "StartingBlockIndex")
)
def list_snapshot_blocks(context: Context, params: Params) -> dict[str, Any]:
    """Return the blocks of a snapshot, its parents' included, by ascending index."""
    snapshot = writing.readable(context, params["SnapshotId"])
    shown, token = _page(context, params, f"list {snapshot.snapshot_id}", snapshot.blocks)
    answer = _envelope(context, snapshot, token)
    signer = _signer(context, snapshot, answer)
    return answer | {"Blocks": [{"BlockIndex": index, "BlockToken": signer.token(index)} for index in shown]}


@operation(
    "ebs",
    "ListChangedBlocks",
    honours=("FirstSnapshotId", "MaxResults", "NextToken", "SecondSnapshotId", "StartingBlockIndex"),
)
def list_changed_blocks(context: Context, params: Params) -> dict[str, Any]:
    """Return the blocks that differ between two related snapshots; without the first, those of the second."""
    second = writing.readable(context, params["SecondSnapshotId"])
    first = None
    if params.get("FirstSnapshotId"):
        first = writing.readable(context, params["FirstSnapshotId"])
        if first.lineage != second.lineage:
            text = f"The snapshots '{first.snapshot_id}' and '{second.snapshot_id}' are unrelated."
            raise writing.invalid("UNRELATED_SNAPSHOTS", text)
    before: dict[int, bytes] = first.blocks if first is not None else {}
    after = second.blocks
    changed = [index for index in before.keys() | after.keys() if before.get(index) != after.get(index)]
    purpose = f"changed {params.get('FirstSnapshotId', '')} {second.snapshot_id}"
    shown, token = _page(context, params, purpose, changed)
    answer = _envelope(context, second, token)
    old = _signer(context, first, answer) if first is not None else None
    new = _signer(context, second, answer)
    blocks = []
    for index in shown:
        block: dict[str, Any] = {"BlockIndex": index}
        if old is not None and index in before:
            block["FirstBlockToken"] = old.token(index)
        if index in after:
            block["SecondBlockToken"] = new.token(index)
        blocks.append(block)
    return answer | {"ChangedBlocks": blocks}


@operation("ebs", "GetSnapshotBlock", honours=("BlockIndex", "BlockToken", "SnapshotId"), locks=False)
def get_snapshot_block(context: Context, params: Params) -> dict[str, Any]:
    """Return one block with its checksum."""
    snapshot = writing.readable(context, params["SnapshotId"])
    index = params["BlockIndex"]
    if _signer(context, snapshot).number(params["BlockToken"]) != index or index not in snapshot.blocks:
        raise writing.invalid(
            "INVALID_BLOCK_TOKEN", "The block token is not valid for this block, or has expired."
        )
    digest = snapshot.blocks[index]
    return {
        "DataLength": BLOCK_BYTES,
        "BlockData": [FileRange(context.blocks.path(digest.hex()), 0, BLOCK_BYTES)],
        "Checksum": base64.b64encode(digest).decode("ascii"),
        "ChecksumAlgorithm": "SHA256",
    }
