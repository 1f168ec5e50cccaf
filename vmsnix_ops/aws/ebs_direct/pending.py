"""One upload into one pending snapshot: begun or continued, filled, sealed, or left without a trace."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import imports, keys
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import engine, manifests
from vmsnix_ops.aws.ebs_direct.engine import BlockRefusedError, Pushing
from vmsnix_ops.aws.ebs_direct.journal import Beginning, BlockJournal
from vmsnix_ops.aws.ebs_direct.values import DirectSnapshot, Upload
from vmsnix_ops.aws.ebs_direct.wire import BLOCK_BYTES
from vmsnix_ops.aws.iam.permissions import denied_action
from vmsnix_ops.aws.session import Client, calling, retrying
from vmsnix_ops.aws.waiting import Sighting, wait
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.image import ZEROS
from vmsnix_ops.disk.survey import changed, still_identified
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import boto3

    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.progress import Step
    from vmsnix_ops.records.tables import Tables

GIB = 2**30
TIMEOUT_MINUTES = 60
SEALED_SECONDS = 20.0  # in which a snapshot that somebody completed shows it
MOST_TOKENS = 50  # that are tried: each names an attempt that ended
GONE = ("ResourceNotFoundException", "ConflictException", "ValidationException")
IMPORT_POLICY = "vmsnix iam-policy publisher"
DIRECT_POLICY = "vmsnix iam-policy publisher --via direct"
INCREMENTAL_POLICY = f"{DIRECT_POLICY} --incremental"
_ZERO = hashlib.sha256(ZEROS).hexdigest()


@dataclass(frozen=True, slots=True)
class Task:
    """An upload, and everything that it works with.

    Attributes
    ----------
    wanted
        What to upload.
    seen
        Its identity.
    descriptor
        An open file that is the disk, byte for byte, where its format had to be converted; else -1.
    blocks
        Index to SHA-256 (hex) of every block that it stores; empty text for one that is zero. They are bound
        to the digest of the file: the blocks that are sent are compared with them.
    session, ec2, ebs, tables, step, pushing
        What it works with.
    """

    wanted: Upload
    seen: Survey
    descriptor: int
    blocks: Digests
    session: boto3.Session
    ec2: Client
    ebs: Client
    tables: Tables
    step: Step | None
    pushing: Pushing

    def tell(self, text: str) -> None:
        """Say something to whoever watches."""
        if self.step is not None:
            self.step.message(text)


def held_blocks(blocks: Digests, parent: Digests) -> Digests:
    """Return what a snapshot will hold; a block of its parent that became zero is one of zeros.

    Parameters
    ----------
    blocks
        Of the image, as in `Task`.
    parent
        Every block that the parent holds.
    """
    own = ((index, digest) for index, digest in blocks.pairs() if digest)
    if not parent:
        return Digests(own)
    ascending = merge(own, ((index, _ZERO) for index in parent), key=itemgetter(0))
    # Of equal ones the image's own comes first.
    return Digests(next(same) for _, same in groupby(ascending, key=itemgetter(0)))


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


class CompletedMeanwhile(Exception):  # noqa: N818 (a way out of a step, never shown)
    """Another publisher of the same bytes completed the snapshot after this one had looked for it."""

    def __init__(self, found: tuple[str, int]) -> None:
        super().__init__(found[0])
        self.found = found


class PendingUpload:
    """One upload into one pending snapshot.

    Parameters
    ----------
    task
        The upload.
    attempt
        How many snapshots of these bytes were begun before.
    """

    def __init__(self, task: Task, attempt: int) -> None:
        self.task, self.attempt, self.snapshot_id = task, attempt, ""
        self.journal = BlockJournal(task.wanted.journal)

    def carry_out(self) -> DirectSnapshot:
        """Begin or go on, send what is not there, and seal it."""
        size_gib = -(-self.task.seen.disk_bytes // GIB)
        parent, done = self._begin(size_gib)
        known = parent.blocks
        held = held_blocks(self.task.blocks, known)
        changed = Digests((index, digest) for index, digest in held.pairs() if known.get(index) != digest)
        left = Digests((index, digest) for index, digest in changed.pairs() if index not in done)
        throttled = self._send(left)
        self._seal(changed)
        return DirectSnapshot(
            self.snapshot_id,
            size_gib,
            "created",
            parent.snapshot_id,
            "" if parent.snapshot_id else parent.why,
            len(held),
            len(left),
            throttled,
            held,
        )

    def expired(self, error: errors.AwsError) -> bool:
        """Whether AWS refuses because this pending snapshot is no more."""
        if error.code not in GONE or not self.snapshot_id:
            return False
        return self._state(self.snapshot_id) in ("", "error")

    def sealed(self, error: errors.AwsError) -> bool:
        """Whether AWS refuses because somebody else has completed this very snapshot."""
        if error.code not in GONE or not self.snapshot_id:
            return False
        return self._state(self.snapshot_id) in ("pending", "completed") and self._completes_by_itself()

    def abandon(self) -> None:
        """Leave nothing behind: neither the pending snapshot nor the journal. A completed one is kept."""
        if self.snapshot_id and self._state(self.snapshot_id) != "completed":
            imports.delete_snapshot(self.task.ec2, self.snapshot_id)
        self.journal.remove()

    def _begin(self, size_gib: int) -> tuple[manifests.Parent, set[int]]:
        """Go on with the journal's snapshot while it is pending, or start one."""
        continued = self._continue()
        if continued is not None:
            return continued
        parent = manifests.Parent(why="an incremental upload was not wanted")
        try:
            if self.task.wanted.incremental:
                parent = manifests.choose_parent(
                    self.task.ec2,
                    self.task.ebs,
                    self.task.tables,
                    image=self.task.wanted.image,
                    size_gib=size_gib,
                    kms_key=self.task.wanted.kms_key,
                )
            if parent.snapshot_id:
                self._start(size_gib, parent)
        except errors.AccessDeniedError as error:
            # Starting from another snapshot is a right of its own, and only saves time.
            action = denied_action(error.why, error.operation) or "a right"
            parent = manifests.Parent(why=f"{action} is not allowed; {INCREMENTAL_POLICY} allows it")
        if not self.snapshot_id:
            try:
                self._start(size_gib, parent)
            except errors.AccessDeniedError as error:
                raise error.with_cure(
                    f"Compare the caller's policy with {DIRECT_POLICY}. It allows tags on a new snapshot "
                    "only inside a creating action (ec2:CreateAction). If AWS does not set that key here, "
                    f"publish via import: --via import, with the policy of {IMPORT_POLICY}."
                ) from error
        self.task.tell(
            f"only what differs from {parent.snapshot_id}"
            if parent.snapshot_id
            else f"a full upload: {parent.why}"
        )
        self.journal.begin(Beginning(self.snapshot_id, self.attempt, parent.snapshot_id))
        return parent, set()

    def _continue(self) -> tuple[manifests.Parent, set[int]] | None:
        """Return the parent and the blocks of the upload that the journal knows, while it can go on."""
        known = self.journal.read()
        if known is None:
            return None
        beginning, done = known
        parent = manifests.Parent(beginning.parent_id, why="it continues a full upload")
        if beginning.parent_id:
            parent = replace(parent, blocks=manifests.load(self.task.tables, beginning.parent_id))
        self.snapshot_id, self.attempt = beginning.snapshot_id, beginning.attempt
        state = self._state(self.snapshot_id)
        self._stop_when_completed(state)
        # Without the parent's manifest nobody knows which blocks have become zero.
        if state == "pending" and (parent.blocks or not beginning.parent_id):
            self.journal.resume()
            self.task.tell(
                f"going on in {self.snapshot_id}, which has {counted(len(done), 'block')} behind it"
            )
            return parent, done
        if state in ("pending", "error"):
            imports.delete_snapshot(self.task.ec2, self.snapshot_id)
            self.task.tell(f"{self.snapshot_id} cannot be continued: it expired")
        self.snapshot_id, self.attempt = "", beginning.attempt + 1
        return None

    def _start(self, size_gib: int, parent: manifests.Parent) -> None:
        """Start a snapshot; the attempt becomes the one that its token carries."""
        self._remove_expired()
        # The run's tag is added when the snapshot is complete: a token goes with the same parameters only.
        tags = {key: value for key, value in self.task.wanted.tags.items() if key != tagging.RUN}
        key = self.task.wanted.kms_key
        if not key and self.task.wanted.incremental:
            tags |= self._default_key()
        request: dict[str, Any] = {
            "VolumeSize": size_gib,
            "Tags": tagging.to_list(tags),
            "Description": f"{tags.get(tagging.NAME, self.task.wanted.image)} {self.task.wanted.digest[:12]}"[
                :255
            ],
            "Timeout": TIMEOUT_MINUTES,
        }
        if parent.snapshot_id:
            # A child is encrypted as its parent; to say it as well is refused.
            request["ParentSnapshotId"] = parent.snapshot_id
        elif key:
            request |= {"Encrypted": True, "KmsKeyArn": key}
        for number in range(self.attempt, self.attempt + MOST_TOKENS):
            token = f"vmsnix-{self.task.wanted.digest[:40]}{keys.mark(key)}-{number}"
            try:
                with calling("start a snapshot"):
                    answer = self.task.ebs.start_snapshot(**request, ClientToken=token)
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
                imports.delete_snapshot(self.task.ec2, snapshot_id)
        raise errors.SnapshotFailedError(
            "No new snapshot could be started.",
            why="AWS answers every client token of this image with a snapshot that has ended.",
            cure="Wait a day until AWS forgets the tokens, or publish via import.",
        )

    def _default_key(self) -> dict[str, str]:
        """Return the tag by which a later upload knows the key of a snapshot that an alias encrypts."""
        try:
            with calling("read how snapshots are encrypted by default"):
                default = manifests.default_key(self.task.ec2)
        except errors.AccessDeniedError:
            return {}  # only later uploads miss it, which are full ones then
        return {tagging.KEY: default} if "alias/" in default else {}

    def _stop_when_completed(self, state: str) -> None:
        """Begin no second snapshot when the one of this token or journal holds the bytes already."""
        found = (
            imports.find_snapshot(self.task.ec2, self.task.wanted.digest, kms_key=self.task.wanted.kms_key)
            if state == "completed"
            else None
        )
        if found:
            raise CompletedMeanwhile(found)

    def _remove_expired(self) -> None:
        """Remove snapshots of these bytes that failed: a killed run left them, and nothing uses them.

        A run that dies between StartSnapshot and the first line of its journal leaves a pending snapshot that
        nobody knows; within `TIMEOUT_MINUTES` the token finds it again, after that it is in error.
        """
        filters = [
            {"Name": f"tag:{tagging.DIGEST}", "Values": [self.task.wanted.digest]},
            {"Name": "status", "Values": ["error"]},
        ]
        with calling("look for expired snapshots of this image"):
            pages = self.task.ec2.get_paginator("describe_snapshots").paginate(
                OwnerIds=["self"], Filters=filters
            )
            found = [str(snapshot["SnapshotId"]) for page in pages for snapshot in page["Snapshots"]]
        for snapshot_id in found:
            imports.delete_snapshot(self.task.ec2, snapshot_id)

    def _send(self, blocks: Digests) -> int:
        """Send blocks; every one that is acknowledged is in the journal."""
        if self.task.step is not None:
            self.task.step.at(0, len(blocks) * BLOCK_BYTES)

        def acknowledge(batch: Sequence[int]) -> None:
            self.journal.add(batch)
            if self.task.step is not None:
                self.task.step.advance(len(batch) * BLOCK_BYTES)

        try:
            throttled = engine.run(
                "put",
                blocks.items(),
                session=self.task.session,
                region=self.task.wanted.region,
                snapshot_id=self.snapshot_id,
                path=self.task.wanted.path,
                descriptor=self.task.descriptor,
                on_done=acknowledge,
                pushing=self.task.pushing,
            )
        except BlockRefusedError:
            self._check_file()  # which says more than AWS's refusal
            raise
        finally:
            self.journal.close()
            if self.journal.problem:
                self.task.tell(self.journal.problem)
        # Every block was compared when it was sent. This finds a change elsewhere, which somebody made by
        # mistake and wants to hear of.
        self._check_file()
        return throttled

    def _check_file(self) -> None:
        if not still_identified(self.task.wanted.path, self.task.seen):
            raise changed(str(self.task.wanted.path))

    def _state(self, snapshot_id: str) -> str:
        """Return the snapshot's state; empty when EC2 does not (yet, or any more) know it."""
        with calling(f"look at the snapshot {snapshot_id}"):
            try:
                answer = self.task.ec2.describe_snapshots(SnapshotIds=[snapshot_id])
            except self.task.ec2.exceptions.ClientError as error:
                if error.response["Error"]["Code"] == "InvalidSnapshot.NotFound":
                    return ""
                raise
        return str(answer["Snapshots"][0]["State"])

    def _seal(self, sent: Digests) -> None:
        """Complete the snapshot, with count and checksum of what was sent."""
        with calling(f"complete the snapshot {self.snapshot_id}"):
            try:
                retrying(
                    lambda: self.task.ebs.complete_snapshot(
                        SnapshotId=self.snapshot_id,
                        ChangedBlocksCount=len(sent),
                        Checksum=aggregate(digest for _, digest in sent.pairs()),
                        ChecksumAlgorithm="SHA256",
                        ChecksumAggregationMethod="LINEAR",
                    ),
                    "ResourceNotFoundException",
                    seconds=120,
                )
            except self.task.ebs.exceptions.ClientError:
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
