"""Manifests: the blocks of a snapshot in one compact object.

An object has a line of JSON, the indices (4 bytes each, big endian), their SHA-256 (32 bytes each), and the
SHA-256 of everything before.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.disk.digests import NONE, SUM, Digests
from vmsnix_ops.disk.identity import SCHEME, ZERO, identity_of
from vmsnix_ops.disk.image import BLOCK_BYTES
from vmsnix_ops.errors import RecordsError

if TYPE_CHECKING:
    from typing import Self

FORMAT = 1
BYTES_PER_BLOCK = 4 + SUM
_FIX = "Delete this manifest. An upload then sends all blocks, and a proof reads the whole snapshot."
_HEADER: dict[str, type[int] | type[str]] = {
    "vmsnix_manifest": int,
    "scheme": str,
    "identity": str,
    "disk_bytes": int,
    "snapshot_id": str,
    "region": str,
    "blocks": int,
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The blocks of a snapshot."""

    identity: str  # identity of the disk, in hexadecimal
    disk_bytes: int  # size of the disk in the snapshot; blocks after it are zeros
    snapshot_id: str
    region: str
    # SHA-256 of all blocks in the snapshot by index; they may include blocks of zeros.
    blocks: Digests = field(repr=False)

    def dump(self) -> bytes:
        """Return the manifest as an object: a header of about 300 bytes, and 36 bytes for each block."""
        header = {
            "vmsnix_manifest": FORMAT,
            "scheme": SCHEME,  # name of the definition of `identity`
            "identity": self.identity,
            "disk_bytes": self.disk_bytes,
            "snapshot_id": self.snapshot_id,
            "region": self.region,
            "blocks": len(self.blocks),
        }
        indices, sums = self.blocks.packed()
        whole = b"".join(
            (json.dumps(header, separators=(",", ":")).encode(), b"\n", _big_endian(indices).tobytes(), sums)
        )
        return whole + hashlib.sha256(whole).digest()

    @classmethod
    def load(cls, data: bytes, *, snapshot_id: str = "") -> Self:
        """Return the manifest in an object from `dump`, of the expected snapshot or by default of any.

        An object that is damaged or incomplete, or has another scheme or snapshot, is a RecordsError.
        """
        what = f"the manifest of {snapshot_id}" if snapshot_id else "the manifest"
        header, _, rest = data.partition(b"\n")
        found = _header(header, what)
        if found["scheme"] != SCHEME or found["vmsnix_manifest"] != FORMAT:
            raise RecordsError(
                f"Could not read {what}.",
                why=f"It is of scheme {found['scheme']!r} in format {found['vmsnix_manifest']}; this version "
                f"of vmsnix reads {SCHEME!r} in format {FORMAT}.",
                fix="Use the version of vmsnix that wrote it, or delete it.",
            )
        count = found["blocks"]
        expected = count * BYTES_PER_BLOCK + SUM
        if len(rest) != expected:
            raise _damaged(what, f"It has {len(rest)} bytes after its header instead of {expected}.")
        if hashlib.sha256(data[:-SUM]).digest() != data[-SUM:]:
            raise _damaged(what, "Its SHA-256 does not match its content.")
        if snapshot_id and found["snapshot_id"] != snapshot_id:
            raise RecordsError(
                f"The manifest of {snapshot_id} belongs to {found['snapshot_id']}.",
                why="The object was copied, moved or replaced.",
                fix=_FIX,
            )
        try:
            blocks = Digests.unpacked(_big_endian(rest[: count * 4]), rest[count * 4 : -SUM])
        except ValueError as error:
            raise _damaged(what, f"In its list, {error}.") from error
        return cls(
            identity=found["identity"],
            disk_bytes=found["disk_bytes"],
            snapshot_id=found["snapshot_id"],
            region=found["region"],
            blocks=blocks,
        )

    def check_identity(self) -> None:
        """Check that the blocks have the identity in the header; a RecordsError otherwise."""
        what = f"the manifest of {self.snapshot_id}"
        found = identity_of(self.blocks.raw())
        if found != self.identity:
            raise _damaged(what, f"Its blocks have the identity {found}, but it names {self.identity}.")
        beyond = -(-self.disk_bytes // BLOCK_BYTES)
        for index, digest in self.blocks.raw():
            if index >= beyond and digest not in (ZERO, NONE):
                raise _damaged(what, f"Block {index} has data, but the disk ends with block {beyond - 1}.")


def _header(line: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "vmsnix_manifest" not in found:
        raise _damaged(what, "It does not begin with the header of a manifest.")
    for name, kind in _HEADER.items():
        value = found.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise _damaged(what, f"{name} in its header is {value!r}.")
    return found


def _big_endian(indices: array[int] | bytes) -> array[int]:
    """Return indices in big-endian order, or in the machine's order if they were big-endian."""
    swapped = array("I", indices)  # four bytes wherever CPython runs
    if sys.byteorder == "little":
        swapped.byteswap()
    return swapped


def _damaged(what: str, why: str) -> RecordsError:
    return RecordsError(f"{what[0].upper()}{what[1:]} is damaged or incomplete.", why=why, fix=_FIX)
