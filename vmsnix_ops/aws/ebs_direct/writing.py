"""Direct uploads: from an image file to a snapshot, without a bucket, a role or VM Import.

Only blocks that are neither zero nor already in the previous snapshot of the image are sent. An upload that
died continues in the same pending snapshot, which lives for an hour after its last block; later it starts a
new one.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import error_codes, imports
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import engine, manifests
from vmsnix_ops.aws.ebs_direct.engine import BlockRefusedError, TransferConfig
from vmsnix_ops.aws.ebs_direct.journal import Beginning, BlockJournal, alone
from vmsnix_ops.aws.ebs_direct.wire import BLOCK_BYTES
from vmsnix_ops.aws.ebs_direct.worker import THROTTLED
from vmsnix_ops.aws.iam.permissions import denied_action, needs
from vmsnix_ops.aws.polling import PollResult, poll
from vmsnix_ops.aws.session import calling, client, client_token, retry
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.image import ZEROS
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.disk.survey import changed, identify, still_identified
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import boto3
    from types_boto3_ebs.client import EBSClient
    from types_boto3_ebs.type_defs import StartSnapshotRequestTypeDef
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import FilterTypeDef

    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step
    from vmsnix_ops.records.tables import Tables


@dataclass(frozen=True, slots=True)
class Upload:
    """What to upload.

    Attributes
    ----------
    path
        The disk image, of any format that `vmsnix_ops.disk.formats.open_image` reads.
    digest
        Identity of the disk. A file with another one is refused.
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
        The digests of the image; by default the upload reads the image to compute them.
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
    """A snapshot that contains all its blocks, and what its upload did.

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
    compared
        Blocks that the image or the parent contains.
    sent
        Blocks that were sent in this run.
    throttled
        Throttled answers.
    blocks
        Every block that it contains; empty when unknown.
    disk_bytes
        Of the disk that was uploaded.
    """

    snapshot_id: str
    size_gib: int
    outcome: StepOutcome
    parent_id: str = ""
    why_full: str = ""
    compared: int = 0
    sent: int = 0
    throttled: int = 0
    blocks: Digests = field(default_factory=Digests, repr=False)
    disk_bytes: int = 0

    @property
    def sent_bytes(self) -> int:
        """What went over the wire as blocks."""
        return self.sent * BLOCK_BYTES


# One upload into one pending snapshot: begun or continued, filled, sealed, or left without a trace.


GIB = 2**30
TIMEOUT_MINUTES = 60
COMPLETION_SECONDS = 20.0  # until AWS shows that a snapshot was completed
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
        Its digests. The blocks that are sent are compared with them.
    descriptor
        An open file that is the disk, byte for byte, where its format had to be converted; else -1.
    session, ec2, ebs, tables, step, config
        What it works with.
    """

    wanted: Upload
    seen: Survey
    descriptor: int
    session: boto3.Session
    ec2: EC2Client
    ebs: EBSClient
    tables: Tables
    step: Step | None
    config: TransferConfig

    def report(self, text: str) -> None:
        """Show a message in the step."""
        if self.step is not None:
            self.step.message(text)


def snapshot_blocks(blocks: Digests, parent: Digests) -> Digests:
    """Return what a snapshot will hold; a block of its parent that became zero is one of zeros.

    Parameters
    ----------
    blocks
        Of the image, without blocks of zeros.
    parent
        Every block that the parent contains.
    """
    if not parent:
        return blocks
    ascending = merge(blocks.pairs(), ((index, _ZERO) for index in parent), key=itemgetter(0))
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
        """Start or continue the snapshot, send the missing blocks, and complete it."""
        size_gib = -(-self.task.seen.disk_bytes // GIB)
        parent, done = self._begin(size_gib)
        known = parent.blocks
        contained = snapshot_blocks(self.task.seen.blocks, known)
        changed = Digests(
            (index, digest) for index, digest in contained.pairs() if known.get(index) != digest
        )
        left = Digests((index, digest) for index, digest in changed.pairs() if index not in done)
        throttled = self._send(left)
        self._complete(changed)
        return DirectSnapshot(
            self.snapshot_id,
            size_gib,
            "created",
            parent.snapshot_id,
            "" if parent.snapshot_id else parent.why,
            len(contained),
            len(left),
            throttled,
            contained,
            self.task.seen.disk_bytes,
        )

    def expired(self, error: errors.AwsError) -> bool:
        """Whether AWS refuses because this pending snapshot no longer exists."""
        if error.code not in GONE or not self.snapshot_id:
            return False
        return self._state(self.snapshot_id) in ("", "error")

    def completed_elsewhere(self, error: errors.AwsError) -> bool:
        """Whether AWS refuses because somebody else has completed this very snapshot."""
        if error.code not in GONE or not self.snapshot_id:
            return False
        return self._state(self.snapshot_id) in ("pending", "completed") and self._completes_by_itself()

    def abandon(self) -> None:
        """Delete the pending snapshot and the journal. A completed snapshot is kept."""
        if self.snapshot_id and self._state(self.snapshot_id) != "completed":
            imports.delete_snapshot(self.task.ec2, self.snapshot_id)
        self.journal.remove()

    def _begin(self, size_gib: int) -> tuple[manifests.Parent, set[int]]:
        """Continue the journal's snapshot while it is pending, or start one."""
        continued = self._continue()
        if continued is not None:
            return continued
        parent = manifests.Parent(why="incremental is off")
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
        except errors.AwsError:
            if not parent.snapshot_id or self._state(parent.snapshot_id) == "completed":
                raise
            parent = manifests.Parent(why=f"{parent.snapshot_id} was deleted before the upload started")
        if not self.snapshot_id:
            try:
                self._start(size_gib, parent)
            except errors.AccessDeniedError as error:
                raise error.with_fix(
                    f"Compare the caller's policy with {DIRECT_POLICY}. It allows tags on a new snapshot "
                    "only inside a creating action (ec2:CreateAction). If AWS does not set that key here, "
                    f"use --via import with the policy of {IMPORT_POLICY}."
                ) from error
        self.task.report(
            f"uploading only what differs from {parent.snapshot_id}"
            if parent.snapshot_id
            else f"uploading all blocks: {parent.why}"
        )
        self.journal.begin(Beginning(self.snapshot_id, self.attempt, parent.snapshot_id))
        return parent, set()

    def _continue(self) -> tuple[manifests.Parent, set[int]] | None:
        """Return the parent and the blocks of the upload in the journal, while it can be continued."""
        known = self.journal.read()
        if known is None:
            return None
        beginning, done = known
        parent = manifests.Parent(beginning.parent_id, why="it continues an upload of all blocks")
        if beginning.parent_id:
            parent = replace(parent, blocks=manifests.load(self.task.tables, beginning.parent_id))
        self.snapshot_id, self.attempt = beginning.snapshot_id, beginning.attempt
        state = self._state(self.snapshot_id)
        self._stop_when_completed(state)
        # Only the parent's manifest shows which blocks have become zero.
        if state == "pending" and (parent.blocks or not beginning.parent_id):
            self.journal.resume()
            self.task.report(f"continuing {self.snapshot_id}, which has {counted(len(done), 'block')}")
            return parent, done
        if state in ("pending", "error"):
            imports.delete_snapshot(self.task.ec2, self.snapshot_id)
            self.task.report(f"{self.snapshot_id} cannot be continued: it expired")
        self.snapshot_id, self.attempt = "", beginning.attempt + 1
        return None

    def _start(self, size_gib: int, parent: manifests.Parent) -> None:
        """Start a snapshot; the attempt becomes the one that its token carries."""
        self._remove_expired()
        # The run's tag is added when the snapshot is complete: a token needs the same parameters.
        tags = {key: value for key, value in self.task.wanted.tags.items() if key != tagging.RUN}
        key = self.task.wanted.kms_key
        if not key and self.task.wanted.incremental:
            tags |= self._default_key()
        request: StartSnapshotRequestTypeDef = {
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
        # Another size, key, parent or tag is another token: AWS refuses a token with other parameters.
        fingerprint = dict(request)
        for number in range(self.attempt, self.attempt + MOST_TOKENS):
            request["ClientToken"] = client_token(self.task.wanted.digest, "direct", number, fingerprint)
            try:
                with calling("start a snapshot"):
                    answer = self.task.ebs.start_snapshot(**request)
            except errors.AwsError as error:
                if error.code == "ConflictException":
                    continue  # another version of vmsnix used the token for another request
                raise
            snapshot_id = answer["SnapshotId"]
            state = self._state(snapshot_id)
            self._stop_when_completed(state)
            if answer["Status"] == "pending" and state in ("pending", ""):
                self.snapshot_id, self.attempt = snapshot_id, number
                return
            if state == "error":  # it expired while the answer was on its way
                imports.delete_snapshot(self.task.ec2, snapshot_id)
        raise errors.SnapshotFailedError(
            "Could not start a new snapshot.",
            why="For each client token of this image, AWS returned a snapshot that has ended.",
            fix="Wait a day until AWS forgets the tokens, or use --via import.",
        )

    def _default_key(self) -> dict[str, str]:
        """Return the tag by which a later upload finds the key of a snapshot that an alias encrypts."""
        try:
            with calling("read how snapshots are encrypted by default"):
                default = manifests.default_key(self.task.ec2)
        except errors.AccessDeniedError:
            return {}  # only later uploads miss it, which are full ones then
        return {tagging.KEY: default} if "alias/" in default else {}

    def _stop_when_completed(self, state: str) -> None:
        """Start no second snapshot when the one of this token or journal already contains the disk."""
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
        no journal lists; within `TIMEOUT_MINUTES` the token finds it again, after that it is in error.
        """
        filters: list[FilterTypeDef] = [
            {"Name": f"tag:{tagging.DIGEST}", "Values": [self.task.wanted.digest]},
            {"Name": "status", "Values": ["error"]},
        ]
        with calling("find expired snapshots of this image"):
            pages = self.task.ec2.get_paginator("describe_snapshots").paginate(
                OwnerIds=["self"], Filters=filters
            )
            found = [snapshot["SnapshotId"] for page in pages for snapshot in page["Snapshots"]]
        for snapshot_id in found:
            imports.delete_snapshot(self.task.ec2, snapshot_id)

    def _send(self, blocks: Digests) -> int:
        """Send blocks; every one that is acknowledged is in the journal."""
        if self.task.step is not None:
            self.task.step.update(0, len(blocks) * BLOCK_BYTES)

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
                config=self.task.config,
            )
        except BlockRefusedError:
            self._check_file()  # its error is clearer than AWS's
            raise
        finally:
            self.journal.close()
            if self.journal.problem:
                self.task.report(self.journal.problem)
        # Every block was compared when it was sent. This finds a change elsewhere, which somebody made by
        # mistake and wants to hear of.
        self._check_file()
        return throttled

    def _check_file(self) -> None:
        if not still_identified(self.task.wanted.path, self.task.seen):
            raise changed(str(self.task.wanted.path))

    def _state(self, snapshot_id: str) -> str:
        """Return the snapshot's state; empty when EC2 does not (yet, or any more) know it."""
        with calling(f"read the snapshot {snapshot_id}"):
            try:
                answer = self.task.ec2.describe_snapshots(SnapshotIds=[snapshot_id])
            except self.task.ec2.exceptions.ClientError as error:
                if error.response["Error"]["Code"] == "InvalidSnapshot.NotFound":
                    return ""
                raise
        return answer["Snapshots"][0]["State"]

    def _complete(self, sent: Digests) -> None:
        """Complete the snapshot, with count and checksum of what was sent."""
        with calling(f"complete the snapshot {self.snapshot_id}"):
            try:
                retry(
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
        def read() -> PollResult[None]:
            state = self._state(self.snapshot_id)
            ended: dict[str, Literal["done", "failed"]] = {
                "completed": "done",
                "error": "failed",
                "": "failed",
            }
            return PollResult(ended.get(state, "waiting"), None)

        try:
            seen = poll(read, what=f"the snapshot {self.snapshot_id}", deadline=COMPLETION_SECONDS)
        except errors.DeadlineError:
            return False
        return seen.outcome == "done"


# Steps of a publish.


__all__ = ["DirectSnapshot", "Upload", "aggregate", "find", "finish", "upload"]

MOST_SNAPSHOTS = 3  # that one run begins, when the ones before expired under it
_MAY_PASS_LATER = THROTTLED | error_codes.SERVER_FAULTS | {"ConnectionFailed", "WorkerDied"}


@needs("ec2:DescribeSnapshots")
def find(session: boto3.Session, region: str, digest: str, *, kms_key: str = "") -> str:
    """Return the id of the completed snapshot that contains an image; empty when there is none."""
    found = imports.find_snapshot(client(session, "ec2", region), digest, kms_key=kms_key)
    return found[0] if found else ""


@needs(
    "ec2:DescribeSnapshots",
    "ec2:CreateTags",
    "ec2:DeleteSnapshot",
    "ebs:StartSnapshot",
    "ebs:PutSnapshotBlock",
    "ebs:CompleteSnapshot",
)
def upload(
    session: boto3.Session,
    wanted: Upload,
    *,
    tables: Tables,
    step: Step | None = None,
    config: TransferConfig | None = None,
) -> DirectSnapshot:
    """Send an image's blocks and complete the snapshot, or find the one that exists. `finish` waits for it.

    Safe to run twice: a completed snapshot that carries the digest is used; a pending one that this machine's
    journal lists is continued; StartSnapshot's ClientToken derives from digest and attempt, so a machine
    without the journal gets the same pending snapshot and sends its blocks again, which changes nothing.

    Raises
    ------
    vmsnix_ops.aws.ebs_direct.engine.BlockRefusedError
        A block was refused for good. The pending snapshot is deleted unless another run may continue it.
    vmsnix_ops.errors.CredentialsError, vmsnix_ops.errors.DeadlineError
        Another run continues from the blocks that arrived.
    vmsnix_ops.errors.ImageChangedError
        The file contains other bytes than those that were identified. The pending snapshot is deleted.
    vmsnix_ops.errors.ImageError
        The image is damaged, or cannot be read. The pending snapshot is deleted.
    """
    ec2, ebs = client(session, "ec2", wanted.region), client(session, "ebs", wanted.region)
    with alone(wanted.journal, step), _identified(wanted, step) as (seen, descriptor):
        task = Task(wanted, seen, descriptor, session, ec2, ebs, tables, step, config or TransferConfig())
        return _upload(task)


def _upload(task: Task) -> DirectSnapshot:
    """Find the snapshot, or make it: in one pending snapshot, and in another when that expires meanwhile."""
    found = imports.find_snapshot(task.ec2, task.wanted.digest, kms_key=task.wanted.kms_key)
    if found:
        return _reused(found, task)
    attempt = 0
    for number in range(1, MOST_SNAPSHOTS + 1):
        running = PendingUpload(task, attempt)
        try:
            return running.carry_out()
        except CompletedMeanwhile as completed:
            return _reused(completed.found, task)
        except errors.ImageError:
            running.abandon()
            raise
        except errors.AwsError as error:
            if running.completed_elsewhere(error):  # by another machine that publishes the same image
                found = imports.find_snapshot(task.ec2, task.wanted.digest, kms_key=task.wanted.kms_key)
                if found:
                    return _reused(found, task)
            expired = running.expired(error)
            if not expired and _may_pass_later(error):
                raise
            running.abandon()
            if not expired or number == MOST_SNAPSHOTS:
                raise
            task.report(f"{running.snapshot_id} no longer exists ({error.why}); starting a new snapshot")
            attempt = running.attempt + 1
    raise RuntimeError("unreachable: the last attempt returns or raises")  # pragma: no cover


@needs("ec2:DescribeSnapshots", "ec2:CreateTags of our resources", "ec2:DeleteSnapshot")
def finish(
    session: boto3.Session,
    wanted: Upload,
    made: DirectSnapshot,
    *,
    tables: Tables,
    step: Step | None = None,
) -> DirectSnapshot:
    """Wait until a snapshot is completed, tag it with the run, and keep its manifest.

    Safe to run twice: the tags stay the same, and so does the manifest.

    Raises
    ------
    vmsnix_ops.errors.SnapshotFailedError
        The snapshot ended in an error, and was deleted.
    """
    ec2 = client(session, "ec2", wanted.region)
    try:
        size = imports.wait_for_snapshot(ec2, made.snapshot_id, step=step)
    except errors.SnapshotFailedError:
        imports.delete_snapshot(ec2, made.snapshot_id)
        BlockJournal(wanted.journal).remove()
        raise
    if made.outcome == "created":
        # The digest is on it since StartSnapshot; a policy lets nobody set that tag on an existing resource.
        added = {key: value for key, value in wanted.tags.items() if key != tagging.DIGEST}
        with calling(f"tag the snapshot {made.snapshot_id}"):
            ec2.create_tags(Resources=[made.snapshot_id], Tags=tagging.to_list(added))
    if made.blocks:
        manifests.save(
            tables,
            Manifest(wanted.digest, made.disk_bytes, made.snapshot_id, wanted.region, made.blocks),
        )
    BlockJournal(wanted.journal).remove()
    return replace(made, size_gib=size)


@contextmanager
def _identified(wanted: Upload, step: Step | None) -> Iterator[tuple[Survey, int]]:
    """Yield the image's digests, and an open file that is its disk where it has to be converted (else -1)."""
    seen = wanted.seen or identify(wanted.path)
    if seen.identity != wanted.digest:
        raise changed(str(wanted.path))
    try:
        image = open_image(wanted.path)
    except errors.ImageFormatError as error:  # it was valid when it was identified
        raise changed(str(wanted.path)) from error
    with image:
        if image.converts and step is not None:
            step.message("converting the image with qemu-img")
        try:
            descriptor = image.plain_descriptor()
        except errors.ImageFormatError as error:
            raise changed(str(wanted.path)) from error
        yield seen, descriptor


def _reused(found: tuple[str, int], task: Task) -> DirectSnapshot:
    """Return the snapshot that was found, with its blocks when its run died before it kept them."""
    snapshot_id, size = found
    known = BlockJournal(task.wanted.journal).read()
    if known is None or known[0].snapshot_id != snapshot_id:
        return DirectSnapshot(snapshot_id, size, "reused")
    parent_id = known[0].parent_id
    parent = manifests.load(task.tables, parent_id) if parent_id else Digests()
    contained = snapshot_blocks(task.seen.blocks, parent) if parent or not parent_id else Digests()
    return DirectSnapshot(
        snapshot_id, size, "reused", parent_id, blocks=contained, disk_bytes=task.seen.disk_bytes
    )


def _may_pass_later(error: errors.AwsError) -> bool:
    """Whether the pending snapshot is worth keeping for another run."""
    if isinstance(error, errors.CredentialsError | errors.DeadlineError):
        return True
    if isinstance(error, BlockRefusedError):
        return error.code in _MAY_PASS_LATER or error.code.startswith("HTTP 5")
    return not error.code or error.code in _MAY_PASS_LATER
