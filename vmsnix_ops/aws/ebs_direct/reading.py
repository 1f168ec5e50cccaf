"""EBS direct backwards: compare a snapshot with what was identified, or download one.

Both read through ``ListSnapshotBlocks`` and ``GetSnapshotBlock``, so they work with every completed snapshot
that the caller may read, however it was made.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors, files
from vmsnix_ops.aws.ebs_direct import engine, manifests
from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
from vmsnix_ops.aws.ebs_direct.journal import Beginning, BlockJournal, locked
from vmsnix_ops.aws.ebs_direct.wire import BLOCK_BYTES
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import client
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.image import ZEROS

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from pathlib import Path

    import boto3
    from types_boto3_ebs.client import EBSClient

    from vmsnix_ops.aws.ebs_direct.journal import DigestJournal
    from vmsnix_ops.aws.ebs_direct.manifests import Listed
    from vmsnix_ops.progress import Step

GIB = 2**30
DIFFERS = "ContentDiffers"
ZERO = hashlib.sha256(ZEROS).hexdigest()
SAMPLE = 256
"""Blocks of a sample: 128 MiB. It finds a snapshot of which 2 % is wrong with a chance of 99 %."""

AT_ONCE = 100_000
"""Blocks that are listed before they are read, 50 GiB: 20 MB of memory, and minutes of reading."""

JOURNAL = ".part.journal"
"""What the name of a download's journal has behind the file's."""

Verify = Literal["none", "sample", "whole"]
VERIFIES: tuple[Verify, ...] = ("none", "sample", "whole")


@dataclass(frozen=True, slots=True)
class Verified:
    """What was compared.

    Attributes
    ----------
    snapshot_id
        The snapshot.
    blocks
        How many of its blocks were fetched and compared.
    of
        How many it has.
    """

    snapshot_id: str
    blocks: int
    of: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A snapshot in a file.

    Attributes
    ----------
    snapshot_id
        The snapshot.
    path
        The raw disk; what the snapshot does not contain is a hole.
    bytes
        Size of the disk.
    fetched
        Blocks that were fetched in this run.
    """

    snapshot_id: str
    path: Path
    bytes: int
    fetched: int


@needs("ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock")
def verify(
    session: boto3.Session,
    *,
    region: str,
    snapshot_id: str,
    blocks: Digests,
    how: Verify,
    step: Step | None = None,
    config: TransferConfig | None = None,
) -> Verified:
    """Read a completed snapshot back and compare it with the image that was identified.

    The image file is not read: it may contain other bytes by now. Blocks that the snapshot does not have must
    be zero in the image; all of them are checked whatever the sample.

    Parameters
    ----------
    session, region
        Whose, and where.
    snapshot_id
        The snapshot.
    blocks
        Index to SHA-256 (hex) of the image's blocks, from its identity; those that are left out are zero.
    how
        ``"sample"`` compares `SAMPLE` blocks at random, ``"whole"`` all, ``"none"`` nothing.

    Raises
    ------
    vmsnix_ops.errors.SnapshotFailedError
        It contains other bytes.
    """
    if how == "none":
        return Verified(snapshot_id, 0, 0)
    tokens = manifests.listed(client(session, "ebs", region), snapshot_id).tokens
    chosen = sorted(tokens)
    if how == "sample" and len(chosen) > SAMPLE:
        chosen = sorted(random.sample(chosen, SAMPLE))
    if step is not None:
        step.update(0, len(chosen) * BLOCK_BYTES)
    for index, digest in blocks.pairs():
        if digest not in ("", ZERO) and index not in tokens:
            raise _differs(snapshot_id, f"It does not contain block {index} of the image.")

    def compare(batch: Sequence[tuple[int, str]]) -> None:
        for index, digest in batch:
            if digest != (blocks.get(index) or ZERO):
                raise _differs(snapshot_id, f"Block {index} differs from the image's.")
        if step is not None:
            step.advance(len(batch) * BLOCK_BYTES)

    engine.run(
        "digest",
        [(index, tokens[index]) for index in chosen],
        session=session,
        region=region,
        snapshot_id=snapshot_id,
        on_done=compare,
        config=config or TransferConfig(),
    )
    return Verified(snapshot_id, len(chosen), len(tokens))


@needs("ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock")
def digests(
    session: boto3.Session,
    *,
    region: str,
    snapshot_id: str,
    only: Container[int] | None = None,
    journal: DigestJournal | None = None,
    step: Step | None = None,
    config: TransferConfig | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Yield index and SHA-256 of the blocks of a completed snapshot, ascending.

    Memory does not grow with the snapshot: blocks are listed and read some at a time. Safe to run twice: what
    the journal has is not read again, because a completed snapshot never changes.

    Parameters
    ----------
    session, region
        Whose, and where.
    snapshot_id
        The snapshot.
    only
        Indices to read; by default all that AWS lists. Blocks that are not listed are zeros.
    journal
        Where what was read is written down. The caller deletes it when all was read.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        The snapshot cannot be read.
    """
    known = journal.open() if journal is not None else Digests()
    try:
        for page in _batches(client(session, "ebs", region), snapshot_id):
            tokens = {index: token for index, token in page if only is None or index in only}
            found = {index: known[index] for index in tokens if index in known}

            def collect(batch: Sequence[tuple[int, str]], found: dict[int, str] = found) -> None:
                found.update(batch)
                if journal is not None:
                    journal.add(batch)
                if step is not None:
                    step.advance(len(batch) * BLOCK_BYTES)

            if step is not None:
                step.advance(len(found) * BLOCK_BYTES)
            engine.run(
                "digest",
                [(index, token) for index, token in tokens.items() if index not in found],
                session=session,
                region=region,
                snapshot_id=snapshot_id,
                on_done=collect,
                config=config or TransferConfig(),
            )
            for index in sorted(found):
                yield index, bytes.fromhex(found[index])
    finally:
        if journal is not None:
            journal.close()


def _batches(ebs: EBSClient, snapshot_id: str) -> Iterator[list[tuple[int, str]]]:
    """Yield indices and tokens of the blocks of a snapshot, about `AT_ONCE` at a time."""
    start, batch = 0, [(0, "")]
    while batch:
        batch = []
        # A new listing for each batch: the token of the next page expires while a batch is read.
        for page in manifests.pages(ebs, snapshot_id, start=start):
            batch += [(block["BlockIndex"], block["BlockToken"]) for block in page["Blocks"]]
            if len(batch) >= AT_ONCE:
                break
        if batch:
            yield batch
            start = batch[-1][0] + 1


@needs("ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock")
def download(
    session: boto3.Session,
    *,
    region: str,
    snapshot_id: str,
    path: Path,
    step: Step | None = None,
    config: TransferConfig | None = None,
) -> Downloaded:
    """Write a snapshot into a sparse raw file.

    Safe to run twice: what was fetched is recorded beside the file, and a download that died continues from
    there. The file gets its name when it is complete. Of two downloads to one file at the same time the
    second is refused: both would write into the same unfinished file.

    Parameters
    ----------
    session, region
        Whose, and where.
    snapshot_id
        A completed snapshot that the caller may read.
    path
        The file to make.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        The file is there already or cannot be made, or an unfinished one of that name that no download made.
    vmsnix_ops.errors.RunError
        Another process downloads to this file.
    vmsnix_ops.errors.AwsError
        The snapshot cannot be read.
    """
    _check_free(path)
    found = manifests.listed(client(session, "ebs", region), snapshot_id)
    _check_folder(path)

    def refuse(holder: str) -> bool:
        raise errors.RunError(
            f"Another download is writing to {path}.",
            why=f"{holder[0].upper()}{holder[1:]}.",
            fix="Wait until it ends, or use another file.",
        )

    with locked(
        path.with_name(f"{path.name}.part.lock"),
        f"downloads {snapshot_id}",
        on_busy=refuse,
        step=step,
        remove=True,
    ):
        _check_free(path)  # the download that had the lock a moment ago may have made it
        return _fetch(session, region, snapshot_id, found, path, step, config or TransferConfig())


def _fetch(
    session: boto3.Session,
    region: str,
    snapshot_id: str,
    found: Listed,
    path: Path,
    step: Step | None,
    config: TransferConfig,
) -> Downloaded:
    """Fetch what is not there yet, and give the file its name."""
    part = path.with_name(f"{path.name}.part")
    journal = BlockJournal(path.with_name(f"{path.name}{JOURNAL}"), required=True)
    size = found.size_gib * GIB
    done = _done_before(journal, part, snapshot_id, size)
    descriptor = files.create(part, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
    items = [item for item in sorted(found.tokens.items()) if item[0] not in done]
    if step is not None:
        step.update(0, len(items) * BLOCK_BYTES)

    def acknowledge(batch: Sequence[int]) -> None:
        journal.add(batch)
        if step is not None:
            step.advance(len(batch) * BLOCK_BYTES)

    try:
        engine.run(
            "get",
            items,
            session=session,
            region=region,
            snapshot_id=snapshot_id,
            path=part,
            on_done=acknowledge,
            config=config,
        )
    finally:
        journal.close()
    _give_name(part, path)
    journal.remove()
    return Downloaded(snapshot_id, path, size, len(items))


def _check_free(path: Path) -> None:
    if os.path.lexists(path):  # also a symbolic link that leads nowhere
        raise errors.UsageError(
            f"{path} already exists.",
            why="A download does not overwrite files.",
            fix="Use another file, or delete this one.",
        )


def _check_folder(path: Path) -> None:
    """Make the folder of a download, and refuse one in which its files cannot be."""
    try:
        files.make_folder(path.parent)
        path.with_name(f"{path.name}{JOURNAL}").lstat()  # the longest name that is used
    except FileNotFoundError:
        return
    except OSError as error:
        raise errors.UsageError(
            f"Could not download to {path}.",
            why=f"The system reported: {error.strerror or error}. A download also writes a file with the "
            f"suffix {JOURNAL}.",
            fix="Use another file.",
        ) from error


def _give_name(part: Path, path: Path) -> None:
    """Name the complete file; unlike a rename, a link never replaces a file that somebody made meanwhile."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(part, path)
    except FileExistsError:
        raise errors.UsageError(
            f"{path} was created by another program during the download.",
            why=f"A download does not overwrite files; the downloaded data is in {part}.",
            fix=f"Move one of the two files, then run the same command again: it only renames {part}.",
        ) from None
    except OSError:  # a file system without hard links
        _check_free(path)
        part.rename(path)
    else:
        part.unlink()


def _done_before(journal: BlockJournal, part: Path, snapshot_id: str, size: int) -> set[int]:
    """Go on with the journal of this snapshot, or start a new one with an empty file."""
    known = journal.read()
    if known is not None and known[0].snapshot_id == snapshot_id and part.exists():
        if part.stat().st_size == size or not known[1]:
            journal.resume()
            return known[1]
    elif part.exists() and not journal.path.exists():  # a download begins with its journal
        raise errors.UsageError(
            f"{part} already exists, and no download created it.",
            why=f"A download writes to that name first, but {journal.path.name} is not beside it.",
            fix="Use another file, or delete this one.",
        )
    files.make_folder(part.parent)
    part.unlink(missing_ok=True)
    journal.begin(Beginning(snapshot_id))
    return set()


def _differs(snapshot_id: str, why: str) -> errors.SnapshotFailedError:
    return errors.SnapshotFailedError(
        f"The snapshot {snapshot_id} does not match the image.",
        why=why,
        fix="Delete the snapshot, then run the same command again.",
        code=DIFFERS,
    )
