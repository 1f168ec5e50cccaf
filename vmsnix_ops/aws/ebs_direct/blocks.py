"""EBS direct: from an image file to a snapshot, without a bucket, a role or a wait for VM Import.

Only blocks that are neither zero nor already in the previous snapshot of the image are sent. An upload that
died goes on in the same pending snapshot, which lives for an hour after its last block; later it begins a new
one.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import error_codes, imports
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import manifests
from vmsnix_ops.aws.ebs_direct.engine import BlockRefusedError, Pushing
from vmsnix_ops.aws.ebs_direct.journal import BlockJournal, alone
from vmsnix_ops.aws.ebs_direct.pending import CompletedMeanwhile, PendingUpload, Task, aggregate, held_blocks
from vmsnix_ops.aws.ebs_direct.values import DirectSnapshot, Upload
from vmsnix_ops.aws.ebs_direct.worker import THROTTLED
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.survey import block_digests, changed, identify, open_identified

if TYPE_CHECKING:
    from collections.abc import Iterator

    import boto3

    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.progress import Step
    from vmsnix_ops.records.tables import Tables

__all__ = ["DirectSnapshot", "Upload", "aggregate", "find", "finish", "upload"]

MOST_SNAPSHOTS = 3  # that one run begins, when the ones before expired under it
_MAY_PASS_LATER = THROTTLED | error_codes.SERVER_FAULTS | {"ConnectionFailed", "WorkerDied"}


@needs("ec2:DescribeSnapshots")
def find(session: boto3.Session, region: str, digest: str, *, kms_key: str = "") -> str:
    """Return the id of the completed snapshot that holds an image; empty when there is none."""
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
    pushing: Pushing | None = None,
) -> DirectSnapshot:
    """Send an image's blocks and seal the snapshot, or find the one that holds it. `finish` waits for it.

    Safe to run twice: a completed snapshot that carries the digest is used; a pending one that this machine's
    journal knows is continued; StartSnapshot's ClientToken derives from digest and attempt, so a machine
    without the journal gets the same pending snapshot and sends its blocks again, which changes nothing.

    Raises
    ------
    vmsnix_ops.aws.ebs_direct.engine.BlockRefusedError
        A block was refused for good. The pending snapshot is removed unless another run may go on with it.
    vmsnix_ops.errors.CredentialsError, vmsnix_ops.errors.DeadlineError
        Another run goes on from the blocks that arrived.
    vmsnix_ops.errors.ImageChangedError
        The file holds other bytes than those that were identified. The pending snapshot is removed.
    vmsnix_ops.errors.ImageError
        The image is damaged, or cannot be read. The pending snapshot is removed.
    """
    ec2, ebs = client(session, "ec2", wanted.region), client(session, "ebs", wanted.region)
    with alone(wanted.journal, step), _identified(wanted, step) as (seen, descriptor, known):
        return _upload(
            Task(
                wanted,
                seen,
                descriptor,
                known,
                session,
                ec2,
                ebs,
                tables,
                step,
                pushing or Pushing(),
            )
        )


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
            if running.sealed(error):  # by another machine that publishes the same image
                found = imports.find_snapshot(task.ec2, task.wanted.digest, kms_key=task.wanted.kms_key)
                if found:
                    return _reused(found, task)
            expired = running.expired(error)
            if not expired and _may_pass_later(error):
                raise
            running.abandon()
            if not expired or number == MOST_SNAPSHOTS:
                raise
            task.tell(f"{running.snapshot_id} is no more ({error.why}); beginning a new snapshot")
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
        # The digest is on it since StartSnapshot; a policy lets nobody set that tag on an existing resource.
        added = {key: value for key, value in wanted.tags.items() if key != tagging.DIGEST}
        with calling(f"tag the snapshot {made.snapshot_id}"):
            ec2.create_tags(Resources=[made.snapshot_id], Tags=tagging.to_list(added))
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


@contextmanager
def _identified(wanted: Upload, step: Step | None) -> Iterator[tuple[Survey, int, Digests]]:
    """Yield the image's identity, an open file that is its disk (or -1), and the digests of its blocks.

    Where ``qemu-img`` must read the image, it reads a private copy of the identified bytes.
    """
    seen = wanted.seen or identify(wanted.path, blocks=True)
    if seen.digest != wanted.digest:
        raise changed(str(wanted.path))
    if seen.blocks is not None:
        yield seen, -1, seen.blocks
        return
    with open_identified(wanted.path, seen) as image:
        if step is not None:
            step.message("hashing the blocks of the image")
            step.at(0, image.size)
        known = block_digests(image, on_progress=step.advance if step is not None else None)
        yield replace(seen, disk_bytes=image.size), image.plain_descriptor(), known


def _reused(found: tuple[str, int], task: Task) -> DirectSnapshot:
    """Return the snapshot that was found, with its blocks when its run died before it kept them."""
    snapshot_id, size = found
    known = BlockJournal(task.wanted.journal).read()
    if known is None or known[0].snapshot_id != snapshot_id:
        return DirectSnapshot(snapshot_id, size, "reused")
    parent_id = known[0].parent_id
    parent = manifests.load(task.tables, parent_id) if parent_id else Digests()
    held = held_blocks(task.blocks, parent) if parent or not parent_id else Digests()
    return DirectSnapshot(snapshot_id, size, "reused", parent_id, blocks=held)


def _may_pass_later(error: errors.AwsError) -> bool:
    """Whether the pending snapshot is worth keeping for another run."""
    if isinstance(error, errors.CredentialsError | errors.DeadlineError):
        return True
    if isinstance(error, BlockRefusedError):
        return error.code in _MAY_PASS_LATER or error.code.startswith("HTTP 5")
    return not error.code or error.code in _MAY_PASS_LATER
