"""What a direct upload is asked for, and what it made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vmsnix_ops.aws.ebs_direct.wire import BLOCK_BYTES
from vmsnix_ops.disk.digests import Digests

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmsnix_ops.disk.survey import Survey


@dataclass(frozen=True, slots=True)
class Upload:
    """What to upload.

    Attributes
    ----------
    path
        The disk image, of any format that `vmsnix_ops.disk.formats.open_image` reads.
    digest
        SHA-256 of the file. A file that has another one is refused.
    image
        Name of the image; earlier snapshots of it are candidates for the parent.
    region
        Where to.
    tags
        Of the snapshot.
    journal
        File that remembers acknowledged blocks.
    incremental
        Whether to start from an earlier snapshot.
    kms_key
        ARN of the key that is to encrypt it; empty: as the account encrypts by default.
    seen
        The identity of the image; the upload finds it out where it is not given.
    """

    path: Path
    digest: str
    image: str
    region: str
    tags: Mapping[str, str]
    journal: Path
    incremental: bool = True
    kms_key: str = ""
    seen: Survey | None = None


@dataclass(frozen=True, slots=True)
class DirectSnapshot:
    """A snapshot that holds all its blocks, and what that took.

    Attributes
    ----------
    snapshot_id, size_gib
        Of the snapshot.
    outcome
        ``"created"`` or ``"reused"``.
    parent_id
        The snapshot that it started from; empty for a full upload.
    why_full
        Why the upload was a full one; empty when it was incremental.
    looked_at
        Blocks that the image stores or the parent holds.
    sent
        Blocks that were sent in this run.
    throttled
        Answers that asked to slow down.
    blocks
        Every block that it holds; empty when nobody knows.
    """

    snapshot_id: str
    size_gib: int
    outcome: Literal["created", "reused"]
    parent_id: str = ""
    why_full: str = ""
    looked_at: int = 0
    sent: int = 0
    throttled: int = 0
    blocks: Digests = field(default_factory=Digests, repr=False)

    @property
    def sent_bytes(self) -> int:
        """What went over the wire as blocks."""
        return self.sent * BLOCK_BYTES
