"""Read snapshots through the EBS direct APIs: compare one with an image, hash its blocks, or download it."""

from __future__ import annotations

import base64
import hashlib
import os
import random
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors, files
from vmsnix_ops.aws.ebs_direct import engine, manifests
from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
from vmsnix_ops.aws.ebs_direct.journal import BlockJournal, JournalHeader, locked
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.formats import RawImage
from vmsnix_ops.disk.identity import ZERO
from vmsnix_ops.disk.image import BLOCK_BYTES, GIB
from vmsnix_ops.disk.source import ByteSource
from vmsnix_ops.progress import NO_STEP

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from pathlib import Path

    import boto3
    from types_boto3_ebs.client import EBSClient

    from vmsnix_ops.aws.ebs_direct.journal import DigestJournal
    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.progress import Step

SAMPLE = 256
"""Blocks of a sample: 128 MiB. If 2 % of a snapshot are wrong, a sample contains a wrong block at 99 %."""

BATCH_BLOCKS = 100_000
"""Blocks that are listed at once, 50 GiB: their tokens take 20 MB of memory."""

READ_AHEAD, MOST_BLOCKS = 16, 64
"""Blocks that `open_snapshot` requests at once, and has in memory."""

JOURNAL = ".part.journal"
"""Suffix of a download's journal."""

Verify = Literal["none", "sample", "whole"]
VERIFIES: tuple[Verify, ...] = ("none", "sample", "whole")


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a comparison."""

    snapshot_id: str
    blocks: int  # number of compared blocks
    of: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A downloaded snapshot."""

    snapshot_id: str
    path: Path  # the raw disk, with holes for missing blocks
    bytes: int
    fetched: int  # number of blocks that this run downloaded


@needs("ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock")
def verify(
    session: boto3.Session,
    *,
    region: str,
    snapshot_id: str,
    blocks: Digests,
    how: Verify,
    step: Step = NO_STEP,
    config: TransferConfig | None = None,
) -> Verified:
    """Compare the blocks of a completed snapshot with the digests of an image.

    ``sample`` compares `SAMPLE` random blocks, ``whole`` all, ``none`` no blocks. `blocks` come from the
    identity of the image; other blocks are zero. Blocks that the snapshot does not have must be zero in the
    image. This is checked for all blocks, also with a sample. A SnapshotFailedError if a block differs.
    """
    if how == "none":
        return Verified(snapshot_id, 0, 0)
    tokens = manifests.list_blocks(client(session, "ebs", region), snapshot_id).tokens
    chosen, zero = sorted(tokens), ZERO.hex()
    if how == "sample" and len(chosen) > SAMPLE:
        chosen = sorted(random.sample(chosen, SAMPLE))
    step.update(0, len(chosen) * BLOCK_BYTES)
    for index, digest in blocks.pairs():
        if digest not in ("", zero) and index not in tokens:
            raise _differs(snapshot_id, f"It does not contain block {index} of the image.")

    def compare(batch: Sequence[tuple[int, str]]) -> None:
        for index, digest in batch:
            if digest != (blocks.get(index) or zero):
                raise _differs(snapshot_id, f"Block {index} differs from the image's.")
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
    step: Step = NO_STEP,
    config: TransferConfig | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Yield index and SHA-256 of the blocks of a completed snapshot (or of `only` some), ascending.

    Blocks are listed and read in batches, so that memory does not grow with the snapshot. Safe to run twice:
    the blocks in the journal, which the caller deletes, are not read again, because a completed snapshot
    never changes.
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
                step.advance(len(batch) * BLOCK_BYTES)

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
    """Yield indices and tokens of the blocks of a snapshot, about `BATCH_BLOCKS` at a time."""
    start, batch = 0, [(0, "")]
    while batch:
        batch = []
        # Each batch has a new list, because the token of the next page expires while a batch is read.
        for page in manifests.list_pages(ebs, snapshot_id, start=start):
            batch += [(block["BlockIndex"], block["BlockToken"]) for block in page["Blocks"]]
            if len(batch) >= BATCH_BLOCKS:
                break
        if batch:
            yield batch
            start = batch[-1][0] + 1


class _SnapshotSource(ByteSource):
    """The bytes of a completed snapshot, read block by block.

    After two consecutive blocks, the next ones are read ahead. `MOST_BLOCKS` blocks are in memory.
    """

    def __init__(self, ebs: EBSClient, snapshot_id: str) -> None:
        found = manifests.list_blocks(ebs, snapshot_id)
        self.name, self.path, self.size = snapshot_id, None, found.size_gib * GIB
        self.tokens = found.tokens
        self._ebs, self._last = ebs, -2
        self._pool = ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="snapshot")
        self._blocks = OrderedDict[int, Future[bytes]]()

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        for index in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            if index in self.tokens:
                yield max(start, index * BLOCK_BYTES), min(stop, (index + 1) * BLOCK_BYTES)

    def _read_some(self, offset: int, length: int) -> bytes:
        index, inside = divmod(offset, BLOCK_BYTES)
        ahead = READ_AHEAD if index == self._last + 1 else 1
        self._last = index
        for one in range(index, index + ahead):
            if one in self.tokens and one not in self._blocks:
                self._blocks[one] = self._pool.submit(self._fetch, one)
        if index not in self._blocks:
            return bytes(min(length, BLOCK_BYTES - inside))
        self._blocks.move_to_end(index)
        while len(self._blocks) > MOST_BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[index].result()[inside : inside + length]

    def _fetch(self, index: int) -> bytes:
        with calling(f"read block {index} of {self.name}"):
            answer = self._ebs.get_snapshot_block(
                SnapshotId=self.name, BlockIndex=index, BlockToken=self.tokens[index]
            )
            data = answer["BlockData"].read()
        if hashlib.sha256(data).digest() != base64.b64decode(answer["Checksum"]):
            raise _differs(self.name, f"Block {index} does not match the checksum that AWS sent with it.")
        return data

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@needs("ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock")
def open_snapshot(session: boto3.Session, *, region: str, snapshot_id: str) -> DiskImage:
    """Return the disk in a completed snapshot. Only the blocks that a caller reads are downloaded."""
    source = _SnapshotSource(client(session, "ebs", region, connections=READ_AHEAD), snapshot_id)
    return RawImage(source, source.size)


@needs("ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock")
def download(
    session: boto3.Session,
    *,
    region: str,
    snapshot_id: str,
    path: Path,
    step: Step = NO_STEP,
    config: TransferConfig | None = None,
) -> Downloaded:
    """Download a completed snapshot to a sparse raw file, which must not exist.

    Safe to run twice: a journal beside the file lists the downloaded blocks, and an interrupted download
    continues. The complete file gets its name at the end. A RunError if another process downloads to this
    file.
    """
    _check_free(path)
    found = manifests.list_blocks(client(session, "ebs", region), snapshot_id)
    _check_folder(path)

    def refuse(owner: str) -> bool:
        raise errors.RunError(
            f"Another download is writing to {path}.",
            why=f"{owner[0].upper()}{owner[1:]}.",
            fix="Wait until it ends, or use another file.",
        )

    def acknowledge(batch: Sequence[int]) -> None:
        journal.add(batch)
        step.advance(len(batch) * BLOCK_BYTES)

    lock, doing = path.with_name(f"{path.name}.part.lock"), f"downloads {snapshot_id}"
    with locked(lock, doing, on_busy=refuse, step=step, remove=True):
        _check_free(path)  # the last owner of the lock may have created it
        part, size = path.with_name(f"{path.name}.part"), found.size_gib * GIB
        journal = BlockJournal(path.with_name(f"{path.name}{JOURNAL}"), required=True)
        done = _resume_or_begin(journal, part, snapshot_id, size)
        descriptor = files.create(part, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
        items = [item for item in sorted(found.tokens.items()) if item[0] not in done]
        step.update(0, len(items) * BLOCK_BYTES)
        try:
            engine.run(
                "get",
                items,
                session=session,
                region=region,
                snapshot_id=snapshot_id,
                path=part,
                on_done=acknowledge,
                config=config or TransferConfig(),
            )
        finally:
            journal.close()
        _rename(part, path)
        journal.remove()
        return Downloaded(snapshot_id, path, size, len(items))


def _check_free(path: Path) -> None:
    if os.path.lexists(path):  # also a broken symbolic link
        raise errors.UsageError(
            f"{path} already exists.",
            why="A download does not overwrite files.",
            fix="Use another file, or delete this one.",
        )


def _check_folder(path: Path) -> None:
    """Create the folder of a download, and refuse a name that is too long for its files."""
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


def _rename(part: Path, path: Path) -> None:
    """Give the complete file its name. Unlike a rename, a hard link never replaces another file."""
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


def _resume_or_begin(journal: BlockJournal, part: Path, snapshot_id: str, size: int) -> set[int]:
    """Return the downloaded blocks of the unfinished file; start a new file and journal if there is none."""
    known = journal.read()
    if known is not None and known[0].snapshot_id == snapshot_id and part.exists():
        if part.stat().st_size == size or not known[1]:
            journal.resume()
            return known[1]
    elif part.exists() and not journal.path.exists():  # a download creates its journal first
        raise errors.UsageError(
            f"{part} already exists, and no download created it.",
            why=f"A download writes to that name first, but {journal.path.name} is not beside it.",
            fix="Use another file, or delete this one.",
        )
    files.make_folder(part.parent)
    part.unlink(missing_ok=True)
    journal.begin(JournalHeader(snapshot_id))
    return set()


def _differs(snapshot_id: str, why: str) -> errors.SnapshotFailedError:
    return errors.SnapshotFailedError(
        f"The snapshot {snapshot_id} does not match the image.",
        why=why,
        fix="Delete the snapshot, then run the same command again.",
        code="ContentDiffers",
    )
