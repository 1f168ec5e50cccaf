"""Direct uploads: write an image file to a snapshot through the EBS direct APIs.

Blocks of zeros and blocks of the parent snapshot are not sent. An interrupted upload continues in the same
pending snapshot for up to an hour after its last block; after that it starts a new snapshot.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import error_codes, imports, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import engine, manifests
from vmsnix_ops.aws.ebs_direct.engine import BlockRefusedError, TransferConfig
from vmsnix_ops.aws.ebs_direct.journal import BlockJournal, JournalHeader, lock_journal
from vmsnix_ops.aws.ebs_direct.worker import THROTTLED
from vmsnix_ops.aws.iam.permissions import denied_action, needs
from vmsnix_ops.aws.polling import Outcome, PollResult, poll
from vmsnix_ops.aws.session import calling, client, client_token, if_found, retry
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.disk.identity import ZERO
from vmsnix_ops.disk.image import BLOCK_BYTES, volume_gib
from vmsnix_ops.disk.manifest import Manifest
from vmsnix_ops.disk.survey import changed, identify, still_identified
from vmsnix_ops.progress import NO_STEP, counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import boto3
    from types_boto3_ebs.client import EBSClient
    from types_boto3_ebs.type_defs import StartSnapshotRequestTypeDef
    from types_boto3_ec2.client import EC2Client

    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step
    from vmsnix_ops.records.tables import Tables


@dataclass(frozen=True, slots=True)
class SnapshotUpload:
    """The parameters of an upload."""

    path: Path  # the disk image, in any format of `vmsnix_ops.disk.formats.open_image`
    digest: str  # Identity of the disk. A file with another identity is refused.
    image: str  # name of the image; its earlier snapshots are candidates for the parent
    region: str
    tags: Mapping[str, str]
    journal: Path  # file for the acknowledged blocks
    incremental: bool = True  # whether to start from an earlier snapshot
    kms_key: str = ""  # ARN of the key for the snapshot; empty for the account's default encryption
    # The digests of the image; by default the upload reads the image to compute them.
    survey: Survey | None = None


@dataclass(frozen=True, slots=True)
class DirectSnapshot:
    """A snapshot with all its blocks, and the statistics of its upload."""

    snapshot_id: str
    size_gib: int
    outcome: StepOutcome  # "created" or "reused"
    parent_id: str = ""  # parent of the snapshot; empty for a full upload
    why_full: str = ""  # reason for a full upload; empty for an incremental one
    compared: int = 0  # number of blocks in the image or the parent
    sent: int = 0  # number of blocks that this run sent
    throttled: int = 0
    # All blocks of the snapshot; empty if they are unknown.
    blocks: Digests = field(default_factory=Digests, repr=False)
    disk_bytes: int = 0  # size of the uploaded disk

    @property
    def sent_bytes(self) -> int:
        """Bytes of the blocks that this run sent."""
        return self.sent * BLOCK_BYTES


# An upload to one pending snapshot.

TIMEOUT_MINUTES = 60
COMPLETION_SECONDS = 20.0  # until AWS shows that a snapshot was completed
MAX_TOKENS = 50
ENDED = ("ResourceNotFoundException", "ConflictException", "ValidationException")
"""Error codes for a snapshot that is no longer pending."""

IMPORT_POLICY = "vmsnix iam-policy publisher"
DIRECT_POLICY = "vmsnix iam-policy publisher --via direct"
INCREMENTAL_POLICY = f"{DIRECT_POLICY} --incremental"


@dataclass(frozen=True, slots=True)
class Task:
    """An upload and its context."""

    upload: SnapshotUpload
    survey: Survey  # The digests of the image. AWS compares the blocks with them.
    descriptor: int  # the converted disk as an open raw file; -1 if the format needs no conversion
    session: boto3.Session
    ec2: EC2Client
    ebs: EBSClient
    tables: Tables
    step: Step
    config: TransferConfig

    def find_snapshot(self) -> tuple[str, int] | None:
        """Return ID and size (GiB) of the completed snapshot of the image, if there is one."""
        return imports.find_snapshot(self.ec2, self.upload.digest, kms_key=self.upload.kms_key)


def snapshot_blocks(blocks: Digests, parent: Digests) -> Digests:
    """Return the blocks of a snapshot: those of the image, and zeros for other blocks of the parent."""
    if not parent:
        return blocks
    zero = ZERO.hex()
    ascending = merge(blocks.pairs(), ((index, zero) for index in parent), key=itemgetter(0))
    # Of two blocks with the same index, the image's comes first.
    return Digests(next(same) for _, same in groupby(ascending, key=itemgetter(0)))


def aggregate(digests: Iterable[str]) -> str:
    """Return the LINEAR checksum of CompleteSnapshot: SHA-256 over the sent blocks' SHA-256, base64.

    The digests are hexadecimal, in ascending order of the blocks' index.
    """
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(bytes.fromhex(digest))
    return base64.b64encode(whole.digest()).decode()


class CompletedMeanwhile(Exception):  # noqa: N818 (caught in this module)
    """Another publisher completed a snapshot of the image after `upload` had searched for one."""

    def __init__(self, found: tuple[str, int]) -> None:
        super().__init__(found[0])
        self.found = found


class PendingUpload:
    """An upload to one pending snapshot; `attempt` snapshots were started for the image before."""

    def __init__(self, task: Task, attempt: int) -> None:
        self.task, self.attempt, self.snapshot_id = task, attempt, ""
        self.journal = BlockJournal(task.upload.journal)

    def carry_out(self) -> DirectSnapshot:
        """Start or continue the snapshot, send the missing blocks, and complete it."""
        size_gib = volume_gib(self.task.survey.disk_bytes)
        parent, done = self._begin(size_gib)
        known = parent.blocks
        contained = snapshot_blocks(self.task.survey.blocks, known)
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
            self.task.survey.disk_bytes,
        )

    def expired(self, error: errors.AwsError) -> bool:
        """Return whether the error means that the pending snapshot no longer exists."""
        if error.code not in ENDED or not self.snapshot_id:
            return False
        return self._state(self.snapshot_id) in ("", "error")

    def completed_elsewhere(self, error: errors.AwsError) -> bool:
        """Return whether the error means that another publisher has completed this snapshot."""
        if error.code not in ENDED or not self.snapshot_id:
            return False
        return self._state(self.snapshot_id) in ("pending", "completed") and self._completes_by_itself()

    def abandon(self) -> None:
        """Delete the pending snapshot and the journal. A completed snapshot is kept."""
        if self.snapshot_id and self._state(self.snapshot_id) != "completed":
            snapshots.delete_snapshot(self.task.ec2, self.snapshot_id)
        self.journal.remove()

    def _begin(self, size_gib: int) -> tuple[manifests.Parent, set[int]]:
        """Continue the pending snapshot of the journal, or start one; return parent and finished blocks."""
        continued = self._continue()
        if continued is not None:
            return continued
        parent = manifests.Parent(why="incremental is off")
        try:
            if self.task.upload.incremental:
                parent = manifests.choose_parent(
                    self.task.ec2,
                    self.task.ebs,
                    self.task.tables,
                    image=self.task.upload.image,
                    size_gib=size_gib,
                    kms_key=self.task.upload.kms_key,
                )
            if parent.snapshot_id:
                self._start(size_gib, parent)
        except errors.AccessDeniedError as error:
            # A parent needs a separate permission, and only saves time.
            action = denied_action(error.why, error.operation) or "an action"
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
        self.task.step.message(
            f"uploading only what differs from {parent.snapshot_id}"
            if parent.snapshot_id
            else f"uploading all blocks: {parent.why}"
        )
        self.journal.begin(JournalHeader(self.snapshot_id, self.attempt, parent.snapshot_id, parent.identity))
        return parent, set()

    def _continue(self) -> tuple[manifests.Parent, set[int]] | None:
        """Return parent and finished blocks of the upload in the journal; ``None`` if it cannot continue."""
        known = self.journal.read()
        if known is None:
            return None
        header, done = known
        parent = manifests.Parent(header.parent_id, why="it continues an upload of all blocks")
        if header.parent_id:
            blocks = manifests.load(self.task.tables, header.parent_id, identity=header.parent_identity)
            parent = replace(parent, blocks=blocks)
        self.snapshot_id, self.attempt = header.snapshot_id, header.attempt
        state = self._state(self.snapshot_id)
        self._stop_when_completed(state)
        # Without the parent's manifest, the blocks that have become zero are unknown.
        if state == "pending" and (parent.blocks or not header.parent_id):
            self.journal.resume()
            self.task.step.message(f"continuing {self.snapshot_id}, which has {counted(len(done), 'block')}")
            return parent, done
        if state in ("pending", "error"):
            snapshots.delete_snapshot(self.task.ec2, self.snapshot_id)
            self.task.step.message(f"{self.snapshot_id} cannot be continued: it expired")
        self.snapshot_id, self.attempt = "", header.attempt + 1
        return None

    def _start(self, size_gib: int, parent: manifests.Parent) -> None:
        """Start a snapshot, and set the attempt to the one in its token."""
        self._remove_expired()
        # `finish` adds the run's tag: all requests with a token must have the same parameters.
        tags = {key: value for key, value in self.task.upload.tags.items() if key != tagging.RUN}
        key = self.task.upload.kms_key
        if not key and self.task.upload.incremental:
            tags |= self._default_key()
        request: StartSnapshotRequestTypeDef = {
            "VolumeSize": size_gib,
            "Tags": tagging.to_list(tags),
            "Description": f"{tags.get(tagging.NAME, self.task.upload.image)} {self.task.upload.digest[:12]}"[
                :255
            ],
            "Timeout": TIMEOUT_MINUTES,
        }
        if parent.snapshot_id:
            # A child has its parent's encryption; AWS refuses a request with both parameters.
            request["ParentSnapshotId"] = parent.snapshot_id
        elif key:
            request |= {"Encrypted": True, "KmsKeyArn": key}
        # AWS refuses a known token with other parameters, so the token depends on all of them.
        fingerprint = dict(request)
        for number in range(self.attempt, self.attempt + MAX_TOKENS):
            request["ClientToken"] = client_token(self.task.upload.digest, "direct", number, fingerprint)
            try:
                with calling("start a snapshot"):
                    answer = self.task.ebs.start_snapshot(**request)
            except errors.AwsError as error:
                if error.code == "ConflictException":
                    continue  # another version of vmsnix used the token with other parameters
                raise
            snapshot_id = answer["SnapshotId"]
            state = self._state(snapshot_id)
            self._stop_when_completed(state)
            if answer["Status"] == "pending" and state in ("pending", ""):
                self.snapshot_id, self.attempt = snapshot_id, number
                return
            if state == "error":  # it has expired
                snapshots.delete_snapshot(self.task.ec2, snapshot_id)
        raise errors.SnapshotFailedError(
            "Could not start a new snapshot.",
            why="For each client token of this image, AWS returned an earlier snapshot that has expired.",
            fix="Wait a day until the tokens expire, or use --via import.",
        )

    def _default_key(self) -> dict[str, str]:
        """Return the tag with the account's default key, if that is an alias, for later uploads."""
        try:
            with calling("read how snapshots are encrypted by default"):
                default = manifests.default_key(self.task.ec2)
        except errors.AccessDeniedError:
            return {}  # without the tag, later uploads are full ones
        return {tagging.KEY: default} if "alias/" in default else {}

    def _stop_when_completed(self, state: str) -> None:
        """Raise `CompletedMeanwhile` if this snapshot is completed and contains the disk."""
        found = self.task.find_snapshot() if state == "completed" else None
        if found:
            raise CompletedMeanwhile(found)

    def _remove_expired(self) -> None:
        """Delete failed snapshots of the image, which killed runs left.

        A run that is killed between StartSnapshot and the first line of its journal leaves a pending
        snapshot. The token finds it for `TIMEOUT_MINUTES`; after that its state is ``error``.
        """
        for one in snapshots.find_snapshots_by_digest(self.task.ec2, self.task.upload.digest):
            if one.state == "error":
                snapshots.delete_snapshot(self.task.ec2, one.snapshot_id)

    def _send(self, blocks: Digests) -> int:
        """Send blocks, and add them to the journal when AWS has acknowledged them."""
        self.task.step.update(0, len(blocks) * BLOCK_BYTES)

        def acknowledge(batch: Sequence[int]) -> None:
            self.journal.add(batch)
            self.task.step.advance(len(batch) * BLOCK_BYTES)

        try:
            throttled = engine.run(
                "put",
                blocks.items(),
                session=self.task.session,
                region=self.task.upload.region,
                snapshot_id=self.snapshot_id,
                path=self.task.upload.path,
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
                self.task.step.message(self.journal.problem)
        # Each block was compared when it was sent. This check reports changes elsewhere in the file.
        self._check_file()
        return throttled

    def _check_file(self) -> None:
        if not still_identified(self.task.upload.path, self.task.survey):
            raise changed(str(self.task.upload.path))

    def _state(self, snapshot_id: str) -> str:
        """Return the snapshot's state; empty if EC2 does not find it."""
        with calling(f"read the snapshot {snapshot_id}"):
            call = partial(self.task.ec2.describe_snapshots, SnapshotIds=[snapshot_id])
            answer = if_found(call, error_codes.SNAPSHOT_NOT_FOUND)
        return answer["Snapshots"][0]["State"] if answer else ""

    def _complete(self, sent: Digests) -> None:
        """Complete the snapshot, with number and checksum of the sent blocks."""
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
                # The first response may have been lost, or another machine has completed the snapshot.
                if not self._completes_by_itself():
                    raise

    def _completes_by_itself(self) -> bool:
        def read() -> PollResult[None]:
            state = self._state(self.snapshot_id)
            ended: dict[str, Outcome] = {"completed": "done", "error": "failed", "": "failed"}
            return PollResult(ended.get(state, "waiting"), None)

        try:
            result = poll(read, what=f"the snapshot {self.snapshot_id}", deadline=COMPLETION_SECONDS)
        except errors.DeadlineError:
            return False
        return result.outcome == "done"


# The steps of a publish.

MAX_SNAPSHOTS = 3  # that one run starts if they expire during the upload
_MAY_PASS_LATER = THROTTLED | error_codes.SERVER_FAULTS | {"ConnectionFailed", "WorkerDied"}


@needs("ec2:DescribeSnapshots")
def find(session: boto3.Session, region: str, digest: str, *, kms_key: str = "") -> str:
    """Return the ID of the completed snapshot of an image; empty if there is none."""
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
    wanted: SnapshotUpload,
    *,
    tables: Tables,
    step: Step = NO_STEP,
    config: TransferConfig | None = None,
) -> DirectSnapshot:
    """Send an image's blocks and complete the snapshot, or find the existing snapshot. `finish` waits for it.

    Safe to run twice: a completed snapshot with the digest is reused, and the pending snapshot of the journal
    is continued. The ClientToken of StartSnapshot derives from digest and attempt, so a machine without the
    journal gets the same pending snapshot and sends its blocks again.

    The pending snapshot is deleted if the file does not contain the identified image or is damaged, or if AWS
    refuses a block for ever. After other errors the next run continues from the sent blocks.
    """
    ec2, ebs = client(session, "ec2", wanted.region), client(session, "ebs", wanted.region)
    with (
        lock_journal(wanted.journal, "uploads this image", step),
        _identified(wanted, step) as (survey, descriptor),
    ):
        task = Task(wanted, survey, descriptor, session, ec2, ebs, tables, step, config or TransferConfig())
        return _upload(task)


def _upload(task: Task) -> DirectSnapshot:
    """Find or create the snapshot. If the pending snapshot expires during the upload, start another."""
    found = task.find_snapshot()
    if found:
        return _reused(found, task)
    attempt = 0
    for number in range(1, MAX_SNAPSHOTS + 1):
        running = PendingUpload(task, attempt)
        try:
            return running.carry_out()
        except CompletedMeanwhile as completed:
            return _reused(completed.found, task)
        except errors.ImageError:
            running.abandon()
            raise
        except errors.AwsError as error:
            if running.completed_elsewhere(error):
                found = task.find_snapshot()
                if found:
                    return _reused(found, task)
            expired = running.expired(error)
            if not expired and _may_pass_later(error):
                raise
            running.abandon()
            if not expired or number == MAX_SNAPSHOTS:
                raise
            task.step.message(
                f"{running.snapshot_id} no longer exists ({error.why}); starting a new snapshot"
            )
            attempt = running.attempt + 1
    raise RuntimeError("unreachable: the last attempt returns or raises")  # pragma: no cover


@needs("ec2:DescribeSnapshots", "ec2:CreateTags of our resources", "ec2:DeleteSnapshot")
def finish(
    session: boto3.Session,
    wanted: SnapshotUpload,
    made: DirectSnapshot,
    *,
    tables: Tables,
    step: Step = NO_STEP,
) -> DirectSnapshot:
    """Wait until a snapshot is completed, tag it with the run, and write its manifest.

    Safe to run twice: tags and manifest are the same. A snapshot that failed is deleted.
    """
    ec2 = client(session, "ec2", wanted.region)
    try:
        size = imports.wait_for_snapshot(ec2, made.snapshot_id, step=step)
    except errors.SnapshotFailedError:
        snapshots.delete_snapshot(ec2, made.snapshot_id)
        BlockJournal(wanted.journal).remove()
        raise
    if made.outcome == "created":
        # StartSnapshot has set the digest; the policy does not allow that tag on an existing resource.
        added = {key: value for key, value in wanted.tags.items() if key != tagging.DIGEST}
        with calling(f"tag the snapshot {made.snapshot_id}"):
            ec2.create_tags(Resources=[made.snapshot_id], Tags=tagging.to_list(added))
    if made.blocks:
        manifests.save(
            tables, Manifest(wanted.digest, made.disk_bytes, made.snapshot_id, wanted.region, made.blocks)
        )
    BlockJournal(wanted.journal).remove()
    return replace(made, size_gib=size)


@contextmanager
def _identified(wanted: SnapshotUpload, step: Step) -> Iterator[tuple[Survey, int]]:
    """Yield the image's digests, and its converted disk as an open raw file; -1 without a conversion."""
    survey = wanted.survey or identify(wanted.path)
    if survey.identity != wanted.digest:
        raise changed(str(wanted.path))
    try:
        image = open_image(wanted.path)
    except errors.ImageFormatError as error:  # it was valid when it was identified
        raise changed(str(wanted.path)) from error
    with image:
        if image.converts:
            step.message("converting the image with qemu-img")
        try:
            descriptor = image.plain_descriptor()
        except errors.ImageFormatError as error:
            raise changed(str(wanted.path)) from error
        yield survey, descriptor


def _reused(found: tuple[str, int], task: Task) -> DirectSnapshot:
    """Return the existing snapshot, with its blocks if its run was killed before it wrote the manifest."""
    snapshot_id, size = found
    known = BlockJournal(task.upload.journal).read()
    if known is None or known[0].snapshot_id != snapshot_id:
        return DirectSnapshot(snapshot_id, size, "reused")
    parent_id, identity = known[0].parent_id, known[0].parent_identity
    parent = manifests.load(task.tables, parent_id, identity=identity) if parent_id else Digests()
    contained = snapshot_blocks(task.survey.blocks, parent) if parent or not parent_id else Digests()
    return DirectSnapshot(
        snapshot_id, size, "reused", parent_id, blocks=contained, disk_bytes=task.survey.disk_bytes
    )


def _may_pass_later(error: errors.AwsError) -> bool:
    """Return whether another run may succeed, so that the pending snapshot is kept."""
    if isinstance(error, errors.CredentialsError | errors.DeadlineError):
        return True
    if isinstance(error, BlockRefusedError):
        return error.code in _MAY_PASS_LATER or error.code.startswith("HTTP 5")
    return not error.code or error.code in _MAY_PASS_LATER
