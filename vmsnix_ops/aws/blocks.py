"""EBS direct: from an image file to a snapshot, without a bucket, a role or a wait for VM Import.

Only blocks that are neither zero nor already in the previous snapshot of the image are sent. An upload that
died goes on in the same pending snapshot, which lives for `TIMEOUT_MINUTES` after its last block; later it
begins a new one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import block_engine, imports, manifests
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.block_engine import BlockRefusedError, Done, Pushing
from vmsnix_ops.aws.block_journal import Beginning, BlockJournal, pending
from vmsnix_ops.aws.block_wire import BLOCK_BYTES
from vmsnix_ops.aws.block_worker import THROTTLED
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import Client, calling, client, retrying
from vmsnix_ops.aws.waiting import Sighting, wait
from vmsnix_ops.disk.formats import open_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import boto3

    from vmsnix_ops.progress import Step
    from vmsnix_ops.records.tables import Tables

GIB = 2**30
TIMEOUT_MINUTES = 60
SEALED_SECONDS = 20.0  # in which a snapshot that somebody completed shows it
MOST_SNAPSHOTS = 3  # that one run begins, when the ones before expired under it
_GONE = ("ResourceNotFoundException", "WRITE_REQUEST_TIMEOUT", "ConflictException", "ValidationException")


@dataclass(frozen=True, slots=True)
class Upload:
    """What to upload.

    Attributes
    ----------
    path
        The disk image, of any format that `vmsnix_ops.disk.formats.open_image` reads.
    digest
        SHA-256 of the file.
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
    """

    path: Path
    digest: str
    image: str
    region: str
    tags: Mapping[str, str]
    journal: Path
    incremental: bool = True


@dataclass(frozen=True, slots=True)
class DirectSnapshot:
    """A completed snapshot, and what it took.

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
        Blocks that were read and hashed.
    sent
        Blocks that were sent in this run.
    throttled
        Answers that asked to slow down.
    """

    snapshot_id: str
    size_gib: int
    outcome: Literal["created", "reused"]
    parent_id: str = ""
    why_full: str = ""
    looked_at: int = 0
    sent: int = 0
    throttled: int = 0

    @property
    def sent_bytes(self) -> int:
        """What went over the wire as blocks."""
        return self.sent * BLOCK_BYTES


@needs(
    "ec2:DescribeSnapshots",
    "ec2:GetEbsEncryptionByDefault",
    "ec2:CreateTags",
    "ec2:DeleteSnapshot",
    "ebs:StartSnapshot",
    "ebs:PutSnapshotBlock",
    "ebs:CompleteSnapshot",
    "ebs:ListSnapshotBlocks",
)
def upload(
    session: boto3.Session,
    wanted: Upload,
    *,
    tables: Tables,
    step: Step | None = None,
    pushing: Pushing | None = None,
) -> DirectSnapshot:
    """Upload an image as a snapshot, or find the one that holds it.

    Safe to run twice: a completed snapshot that carries the digest is used; a pending one that this machine's
    journal knows is continued; StartSnapshot's ClientToken derives from digest and attempt, so a machine
    without the journal gets the same pending snapshot and sends its blocks again, which changes nothing.

    Raises
    ------
    vmsnix_ops.aws.block_engine.BlockRefusedError
        A block was refused for good. The pending snapshot is removed unless another run may go on with it.
    vmsnix_ops.errors.SnapshotFailedError
        The snapshot ended in an error.
    """
    ec2, ebs = client(session, "ec2", wanted.region), client(session, "ebs", wanted.region)
    found = imports.find_snapshot(ec2, wanted.digest)
    if found:
        BlockJournal(wanted.journal).remove()
        return DirectSnapshot(found[0], found[1], "reused")
    for attempt in range(MOST_SNAPSHOTS):
        running = _Running(session, ec2, ebs, wanted, tables, step, pushing or Pushing())
        try:
            return running.carry_out()
        except BlockRefusedError as error:
            if not running.expired(error) or attempt == MOST_SNAPSHOTS - 1:
                if not _may_pass_later(error):
                    running.abandon()
                raise
            if step is not None:
                step.message(f"{running.snapshot_id} expired: {error.why}; beginning a new snapshot")
            running.abandon()
    raise RuntimeError("unreachable: the last attempt returns or raises")  # pragma: no cover


def aggregate(digests: Iterable[str]) -> str:
    """Return the LINEAR checksum of CompleteSnapshot: SHA-256 over the blocks' SHA-256, base64.

    Parameters
    ----------
    digests
        Hexadecimal, of the blocks that were sent, in ascending order of their index.
    """
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(bytes.fromhex(digest))
    return base64.b64encode(whole.digest()).decode()


class _Running:
    """One upload into one pending snapshot."""

    def __init__(
        self,
        session: boto3.Session,
        ec2: Client,
        ebs: Client,
        wanted: Upload,
        tables: Tables,
        step: Step | None,
        pushing: Pushing,
    ) -> None:
        self.session, self.ec2, self.ebs = session, ec2, ebs
        self.wanted, self.tables, self.step, self.pushing = wanted, tables, step, pushing
        self.journal = BlockJournal(wanted.journal)
        self.snapshot_id = ""

    def carry_out(self) -> DirectSnapshot:
        with open_image(self.wanted.path) as image:
            size_gib = -(-image.size // GIB)
            parent, done = self._begin(size_gib)
            known = parent.blocks or {}
            indices = sorted({*image.allocated(BLOCK_BYTES), *known})
        items = pending([(index, known.get(index)) for index in indices], done)
        if self.step is not None:
            self.step.at((len(indices) - len(items)) * BLOCK_BYTES, len(indices) * BLOCK_BYTES)
        sent_before = sum(sent for _, sent in done.values())

        def acknowledge(batch: Iterable[Done]) -> None:
            batch = list(batch)
            self.journal.add(batch)
            done.update((index, (digest, sent)) for index, digest, sent in batch)
            if self.step is not None:
                self.step.advance(len(batch) * BLOCK_BYTES)

        try:
            throttled = block_engine.run(
                "put",
                items,
                session=self.session,
                region=self.wanted.region,
                snapshot_id=self.snapshot_id,
                path=self.wanted.path,
                on_done=acknowledge,
                pushing=self.pushing,
            )
        finally:
            self.journal.close()
        self._complete({index: digest for index, (digest, sent) in done.items() if sent})
        self._tag_and_keep({**known, **{index: digest for index, (digest, _) in done.items() if digest}})
        return DirectSnapshot(
            self.snapshot_id,
            size_gib,
            "created",
            parent.snapshot_id,
            "" if parent.snapshot_id else parent.why,
            len(indices),
            sum(sent for _, sent in done.values()) - sent_before,
            throttled,
        )

    def expired(self, error: BlockRefusedError) -> bool:
        """Whether AWS refuses blocks because this pending snapshot is no more."""
        if error.code not in _GONE:
            return False
        with calling(f"look at the snapshot {self.snapshot_id}"):
            try:
                answer = self.ec2.describe_snapshots(SnapshotIds=[self.snapshot_id])
            except self.ec2.exceptions.ClientError:
                return True
        return str(answer["Snapshots"][0]["State"]) == "error"

    def abandon(self) -> None:
        """Leave nothing behind: neither the pending snapshot nor the journal."""
        if self.snapshot_id:
            imports.delete_snapshot(self.ec2, self.snapshot_id)
        self.journal.remove()

    def _begin(self, size_gib: int) -> tuple[manifests.Parent, dict[int, tuple[str, bool]]]:
        """Go on with the journal's snapshot while it is pending, or start one."""
        known, attempt = self.journal.read(), 0
        if known is not None:
            beginning, done = known
            attempt = beginning.attempt
            if self._state(beginning.snapshot_id) == "pending":
                self.snapshot_id = beginning.snapshot_id
                self.journal.resume()
                blocks = manifests.load(self.tables, beginning.parent_id) if beginning.parent_id else None
                return manifests.Parent(beginning.parent_id, blocks, "it continues a full upload"), done
            attempt += 1
        parent = manifests.Parent(why="an incremental upload was not wanted")
        if self.wanted.incremental:
            parent = manifests.choose_parent(
                self.ec2, self.ebs, self.tables, image=self.wanted.image, size_gib=size_gib
            )
        if self.step is not None:
            self.step.message(
                f"starting from {parent.snapshot_id}"
                if parent.snapshot_id
                else f"a full upload: {parent.why}"
            )
        self.snapshot_id, attempt = self._start(size_gib, parent, attempt)
        self.journal.begin(Beginning(self.snapshot_id, attempt, parent.snapshot_id))
        return parent, {}

    def _start(self, size_gib: int, parent: manifests.Parent, attempt: int) -> tuple[str, int]:
        """Start a snapshot and return its id and the attempt that its token carries."""
        # The run's tag is added when the snapshot is complete: a token goes with the same parameters only.
        tags = {key: value for key, value in self.wanted.tags.items() if key != tagging.RUN}
        request: dict[str, Any] = {
            "VolumeSize": size_gib,
            "Tags": tagging.to_list(tags),
            "Description": f"{tags.get(tagging.NAME, self.wanted.image)} {self.wanted.digest[:12]}"[:255],
            "Timeout": TIMEOUT_MINUTES,
        }
        if parent.snapshot_id:
            request["ParentSnapshotId"] = parent.snapshot_id
        for number in range(attempt, attempt + 20):
            token = f"vmsnix-{self.wanted.digest[:40]}-{number}"
            try:
                with calling("start a snapshot"):
                    answer = self.ebs.start_snapshot(**request, ClientToken=token)
            except errors.AwsError as error:
                if error.code == "ConflictException":
                    continue  # the token was used for another parent or size: it names another attempt
                raise
            if answer["Status"] == "pending" and self._state(str(answer["SnapshotId"])) in ("pending", ""):
                return str(answer["SnapshotId"]), number
        raise errors.SnapshotFailedError(
            "No new snapshot could be started.",
            why="AWS answers every client token of this image with a snapshot that has ended.",
            cure="Wait a day until AWS forgets the tokens, or publish via import.",
        )

    def _state(self, snapshot_id: str) -> str:
        """Return the snapshot's state; empty when EC2 does not (yet, or any more) know it."""
        with calling(f"look at the snapshot {snapshot_id}"):
            try:
                answer = self.ec2.describe_snapshots(SnapshotIds=[snapshot_id])
            except self.ec2.exceptions.ClientError as error:
                if error.response["Error"]["Code"] == "InvalidSnapshot.NotFound":
                    return ""
                raise
        return str(answer["Snapshots"][0]["State"])

    def _complete(self, sent: Mapping[int, str]) -> None:
        """Seal the snapshot with count and checksum of what was sent, and wait for it."""
        with calling(f"complete the snapshot {self.snapshot_id}"):
            try:
                retrying(
                    lambda: self.ebs.complete_snapshot(
                        SnapshotId=self.snapshot_id,
                        ChangedBlocksCount=len(sent),
                        Checksum=aggregate(sent[index] for index in sorted(sent)),
                        ChecksumAlgorithm="SHA256",
                        ChecksumAggregationMethod="LINEAR",
                    ),
                    "ResourceNotFoundException",
                    seconds=120,
                )
            except self.ebs.exceptions.ClientError:
                # Its first answer may have been lost, or another machine was faster: it is on its way.
                if not self._completes_by_itself():
                    raise
        imports.wait_for_snapshot(self.ec2, self.snapshot_id)

    def _completes_by_itself(self) -> bool:
        def look() -> Sighting[None]:
            return Sighting("done" if self._state(self.snapshot_id) == "completed" else "waiting", None)

        try:
            wait(look, what=f"the snapshot {self.snapshot_id}", deadline=SEALED_SECONDS)
        except errors.DeadlineError:
            return False
        return True

    def _tag_and_keep(self, blocks: Mapping[int, str]) -> None:
        with calling(f"tag the snapshot {self.snapshot_id}"):
            self.ec2.create_tags(Resources=[self.snapshot_id], Tags=tagging.to_list(self.wanted.tags))
        manifests.save(
            self.tables,
            snapshot_id=self.snapshot_id,
            region=self.wanted.region,
            digest=self.wanted.digest,
            image=self.wanted.image,
            blocks=blocks,
        )
        self.journal.remove()


def _may_pass_later(error: BlockRefusedError) -> bool:
    """Whether the pending snapshot is worth keeping for another run."""
    return (
        error.code in THROTTLED
        or error.code in ("ConnectionFailed", "WorkerDied")
        or error.code.startswith("HTTP 5")
    )
