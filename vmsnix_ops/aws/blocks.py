"""EBS direct: from an image file to a snapshot, without a bucket, a role or a wait for VM Import.

Only blocks that are neither zero nor already in the previous snapshot of the image are sent. An upload that
died goes on in the same pending snapshot, which lives for `TIMEOUT_MINUTES` after its last block; later it
begins a new one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import block_engine, imports, manifests
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.block_engine import BlockRefusedError, Done, Pushing
from vmsnix_ops.aws.block_journal import Beginning, BlockJournal, alone, pending
from vmsnix_ops.aws.block_values import DirectSnapshot, Upload
from vmsnix_ops.aws.block_wire import BLOCK_BYTES
from vmsnix_ops.aws.block_worker import THROTTLED
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import Client, calling, client, retrying
from vmsnix_ops.aws.waiting import Sighting, wait
from vmsnix_ops.disk.formats import open_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import boto3

    from vmsnix_ops.progress import Step
    from vmsnix_ops.records.tables import Tables

__all__ = ["DirectSnapshot", "Upload", "aggregate", "find", "finish", "upload"]

GIB = 2**30
TIMEOUT_MINUTES = 60
SEALED_SECONDS = 20.0  # in which a snapshot that somebody completed shows it
MOST_SNAPSHOTS = 3  # that one run begins, when the ones before expired under it
MOST_TOKENS = 50  # that are tried: each names an attempt that ended
_GONE = ("ResourceNotFoundException", "ConflictException", "ValidationException")
_MAY_PASS_LATER = ("ConnectionFailed", "WorkerDied", "InternalServerException")


@needs("ec2:DescribeSnapshots")
def find(session: boto3.Session, region: str, digest: str) -> str:
    """Return the id of the completed snapshot that holds an image; empty when there is none."""
    found = imports.find_snapshot(client(session, "ec2", region), digest)
    return found[0] if found else ""


@needs(
    "ec2:DescribeSnapshots",
    "ec2:GetEbsEncryptionByDefault",
    "ec2:GetEbsDefaultKmsKeyId",
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
    """Send an image's blocks and seal the snapshot, or find the one that holds it. `finish` waits for it.

    Safe to run twice: a completed snapshot that carries the digest is used; a pending one that this machine's
    journal knows is continued; StartSnapshot's ClientToken derives from digest and attempt, so a machine
    without the journal gets the same pending snapshot and sends its blocks again, which changes nothing.

    Raises
    ------
    vmsnix_ops.aws.block_engine.BlockRefusedError
        A block was refused for good. The pending snapshot is removed unless another run may go on with it.
    vmsnix_ops.errors.CredentialsError, vmsnix_ops.errors.DeadlineError
        Another run goes on from the blocks that arrived.
    """
    ec2, ebs = client(session, "ec2", wanted.region), client(session, "ebs", wanted.region)
    with alone(wanted.journal, step):
        return _upload(session, ec2, ebs, wanted, tables, step, pushing or Pushing())


def _upload(
    session: boto3.Session,
    ec2: Client,
    ebs: Client,
    wanted: Upload,
    tables: Tables,
    step: Step | None,
    pushing: Pushing,
) -> DirectSnapshot:
    found = imports.find_snapshot(ec2, wanted.digest)
    if found:
        return _reused(found, wanted, tables)
    attempt = 0
    for number in range(1, MOST_SNAPSHOTS + 1):
        running = _Running(session, ec2, ebs, wanted, tables, step, pushing, attempt)
        try:
            return running.carry_out()
        except _CompletedMeanwhile as completed:
            return _reused(completed.found, wanted, tables)
        except errors.AwsError as error:
            if running.sealed(error):  # by another machine that publishes the same image
                found = imports.find_snapshot(ec2, wanted.digest)
                if found:
                    return _reused(found, wanted, tables)
            expired = running.expired(error)
            if not expired and _may_pass_later(error):
                raise
            running.abandon()
            if not expired or number == MOST_SNAPSHOTS:
                raise
            if step is not None:
                step.message(f"{running.snapshot_id} is no more ({error.why}); beginning a new snapshot")
            attempt = running.attempt + 1
    raise RuntimeError("unreachable: the last attempt returns or raises")  # pragma: no cover


@needs("ec2:DescribeSnapshots", "ec2:CreateTags", "ec2:DeleteSnapshot")
def finish(
    session: boto3.Session,
    wanted: Upload,
    made: DirectSnapshot,
    *,
    tables: Tables,
    step: Step | None = None,
) -> DirectSnapshot:
    """Wait until a sealed snapshot is completed, tag it with the run, and keep its manifest.

    Safe to run twice: the tags stay the same, and the table takes a manifest once.

    Raises
    ------
    vmsnix_ops.errors.SnapshotFailedError
        The snapshot ended in an error, and was removed.
    """
    ec2 = client(session, "ec2", wanted.region)
    try:
        size = imports.wait_for_snapshot(ec2, made.snapshot_id, step=step)
    except errors.SnapshotFailedError:
        imports.delete_snapshot(ec2, made.snapshot_id)
        BlockJournal(wanted.journal).remove()
        raise
    if made.outcome == "created":
        with calling(f"tag the snapshot {made.snapshot_id}"):
            ec2.create_tags(Resources=[made.snapshot_id], Tags=tagging.to_list(wanted.tags))
    if made.blocks:
        manifests.save(
            tables,
            snapshot_id=made.snapshot_id,
            region=wanted.region,
            digest=wanted.digest,
            image=wanted.image,
            blocks=made.blocks,
        )
    BlockJournal(wanted.journal).remove()
    return replace(made, size_gib=size)


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


class _CompletedMeanwhile(Exception):  # noqa: N818 (a way out of a step, never shown)
    """Another publisher of the same bytes completed the snapshot after this one had looked for it."""

    def __init__(self, found: tuple[str, int]) -> None:
        super().__init__(found[0])
        self.found = found


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
        attempt: int,
    ) -> None:
        self.session, self.ec2, self.ebs = session, ec2, ebs
        self.wanted, self.tables, self.step, self.pushing = wanted, tables, step, pushing
        self.journal = BlockJournal(wanted.journal)
        self.snapshot_id, self.attempt = "", attempt

    def carry_out(self) -> DirectSnapshot:
        with open_image(self.wanted.path) as image:
            size_gib = -(-image.size // GIB)
            parent, done = self._begin(size_gib)
            known = parent.blocks or {}
            indices = sorted({*image.allocated(BLOCK_BYTES), *known})
            items = pending([(index, known.get(index)) for index in indices], done)
            before = sum(sent for _, sent in done.values())
            throttled = self._send(items, done, image.plain_descriptor())
        sent = {index: digest for index, (digest, was_sent) in done.items() if was_sent}
        self._seal(sent)
        return DirectSnapshot(
            self.snapshot_id,
            size_gib,
            "created",
            parent.snapshot_id,
            "" if parent.snapshot_id else parent.why,
            len(indices),
            len(sent) - before,
            throttled,
            {**known, **{index: digest for index, (digest, _) in done.items() if digest}},
        )

    def expired(self, error: errors.AwsError) -> bool:
        """Whether AWS refuses because this pending snapshot is no more."""
        if error.code not in _GONE or not self.snapshot_id:
            return False
        return self._state(self.snapshot_id) in ("", "error")

    def sealed(self, error: errors.AwsError) -> bool:
        """Whether AWS refuses because somebody else has completed this very snapshot."""
        if error.code not in _GONE or not self.snapshot_id:
            return False
        return self._state(self.snapshot_id) in ("pending", "completed") and self._completes_by_itself()

    def abandon(self) -> None:
        """Leave nothing behind: neither the pending snapshot nor the journal. A completed one is kept."""
        if self.snapshot_id and self._state(self.snapshot_id) != "completed":
            imports.delete_snapshot(self.ec2, self.snapshot_id)
        self.journal.remove()

    def _begin(self, size_gib: int) -> tuple[manifests.Parent, dict[int, tuple[str, bool]]]:
        """Go on with the journal's snapshot while it is pending, or start one."""
        continued = self._continue()
        if continued is not None:
            return continued
        parent = manifests.Parent(why="an incremental upload was not wanted")
        if self.wanted.incremental:
            parent = manifests.choose_parent(
                self.ec2, self.ebs, self.tables, image=self.wanted.image, size_gib=size_gib
            )
        self._tell(
            f"only what differs from {parent.snapshot_id}"
            if parent.snapshot_id
            else f"a full upload: {parent.why}"
        )
        self._start(size_gib, parent)
        self.journal.begin(Beginning(self.snapshot_id, self.attempt, parent.snapshot_id))
        return parent, {}

    def _continue(self) -> tuple[manifests.Parent, dict[int, tuple[str, bool]]] | None:
        """Return the parent and the blocks of the upload that the journal knows, while it can go on."""
        known = self.journal.read()
        if known is None:
            return None
        beginning, done = known
        parent = manifests.Parent(beginning.parent_id, None, "it continues a full upload")
        if beginning.parent_id:
            parent = replace(parent, blocks=manifests.load(self.tables, beginning.parent_id))
        self.snapshot_id, self.attempt = beginning.snapshot_id, beginning.attempt
        state = self._state(self.snapshot_id)
        self._stop_when_completed(state)
        # Without the parent's manifest nobody knows which blocks have become zero.
        if state == "pending" and (parent.blocks or not beginning.parent_id):
            self.journal.resume()
            self._tell(f"going on in {self.snapshot_id}, which has {len(done)} blocks behind it")
            return parent, done
        if state in ("pending", "error"):
            imports.delete_snapshot(self.ec2, self.snapshot_id)
            self._tell(f"{self.snapshot_id} cannot be continued: it expired")
        self.snapshot_id, self.attempt = "", beginning.attempt + 1
        return None

    def _start(self, size_gib: int, parent: manifests.Parent) -> None:
        """Start a snapshot; the attempt becomes the one that its token carries."""
        self._remove_expired()
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
        for number in range(self.attempt, self.attempt + MOST_TOKENS):
            token = f"vmsnix-{self.wanted.digest[:40]}-{number}"
            try:
                with calling("start a snapshot"):
                    answer = self.ebs.start_snapshot(**request, ClientToken=token)
            except errors.AwsError as error:
                if error.code == "ConflictException":
                    continue  # the token was used for another parent or size: it names another attempt
                raise
            snapshot_id = str(answer["SnapshotId"])
            state = self._state(snapshot_id)
            self._stop_when_completed(state)
            if answer["Status"] == "pending" and state in ("pending", ""):
                self.snapshot_id, self.attempt = snapshot_id, number
                return
            if state == "error":  # it expired while the answer was on its way
                imports.delete_snapshot(self.ec2, snapshot_id)
        raise errors.SnapshotFailedError(
            "No new snapshot could be started.",
            why="AWS answers every client token of this image with a snapshot that has ended.",
            cure="Wait a day until AWS forgets the tokens, or publish via import.",
        )

    def _stop_when_completed(self, state: str) -> None:
        """Begin no second snapshot when the one of this token or journal holds the bytes already."""
        found = imports.find_snapshot(self.ec2, self.wanted.digest) if state == "completed" else None
        if found:
            raise _CompletedMeanwhile(found)

    def _remove_expired(self) -> None:
        """Remove snapshots of these bytes that failed: a killed run left them, and nothing uses them.

        A run that dies between StartSnapshot and the first line of its journal leaves a pending snapshot that
        nobody knows; within `TIMEOUT_MINUTES` the token finds it again, after that it is in error.
        """
        filters = [
            {"Name": f"tag:{tagging.DIGEST}", "Values": [self.wanted.digest]},
            {"Name": "status", "Values": ["error"]},
        ]
        with calling("look for expired snapshots of this image"):
            pages = self.ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], Filters=filters)
            found = [str(snapshot["SnapshotId"]) for page in pages for snapshot in page["Snapshots"]]
        for snapshot_id in found:
            imports.delete_snapshot(self.ec2, snapshot_id)

    def _send(
        self,
        items: Sequence[tuple[int, str | None]],
        done: dict[int, tuple[str, bool]],
        descriptor: int,
    ) -> int:
        """Send what is left to send; every acknowledged block is in the journal and in `done`."""
        if self.step is not None:
            self.step.at(0, len(items) * BLOCK_BYTES)

        def acknowledge(batch: Sequence[Done]) -> None:
            self.journal.add(batch)
            done.update((index, (digest, sent)) for index, digest, sent in batch)
            if self.step is not None:
                self.step.advance(len(batch) * BLOCK_BYTES)

        try:
            return block_engine.run(
                "put",
                items,
                session=self.session,
                region=self.wanted.region,
                snapshot_id=self.snapshot_id,
                path=self.wanted.path,
                descriptor=descriptor,
                on_done=acknowledge,
                pushing=self.pushing,
            )
        finally:
            self.journal.close()

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

    def _seal(self, sent: Mapping[int, str]) -> None:
        """Complete the snapshot, with count and checksum of what was sent."""
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

    def _completes_by_itself(self) -> bool:
        def look() -> Sighting[None]:
            state = self._state(self.snapshot_id)
            ended = {"completed": "done", "error": "failed", "": "failed"}
            outcome: Any = ended.get(state, "waiting")
            return Sighting(outcome, None)

        try:
            seen = wait(look, what=f"the snapshot {self.snapshot_id}", deadline=SEALED_SECONDS)
        except errors.DeadlineError:
            return False
        return seen.outcome == "done"

    def _tell(self, text: str) -> None:
        if self.step is not None:
            self.step.message(text)


def _reused(found: tuple[str, int], wanted: Upload, tables: Tables) -> DirectSnapshot:
    """Return the snapshot that was found, with its blocks when its run died before it kept them."""
    snapshot_id, size = found
    known = BlockJournal(wanted.journal).read()
    if known is None or known[0].snapshot_id != snapshot_id:
        return DirectSnapshot(snapshot_id, size, "reused")
    beginning, done = known
    parent = manifests.load(tables, beginning.parent_id) if beginning.parent_id else {}
    blocks = {**parent, **{index: digest for index, (digest, _) in done.items() if digest}}
    complete = bool(parent) or not beginning.parent_id
    return DirectSnapshot(snapshot_id, size, "reused", beginning.parent_id, blocks=blocks if complete else {})


def _may_pass_later(error: errors.AwsError) -> bool:
    """Whether the pending snapshot is worth keeping for another run."""
    if isinstance(error, errors.CredentialsError | errors.DeadlineError):
        return True
    if isinstance(error, BlockRefusedError):
        return error.code in THROTTLED or error.code in _MAY_PASS_LATER or error.code.startswith("HTTP 5")
    return not error.code or error.code in THROTTLED or error.code in _MAY_PASS_LATER
