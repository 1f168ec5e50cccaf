"""Uploads or downloads the blocks of a snapshot with several worker processes.

This module distributes the blocks, sends refreshed credentials to the workers, and raises a worker's failure.
Only the workers have blocks in memory, so memory does not grow with the image.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from vmsnix_ops import errors
from vmsnix_ops.aws import error_codes
from vmsnix_ops.aws.ebs_direct import wire
from vmsnix_ops.aws.ebs_direct.worker import CHANGED, THROTTLED, TransferJob
from vmsnix_ops.aws.session import LOGGER
from vmsnix_ops.disk.image import BLOCK_BYTES
from vmsnix_ops.disk.survey import NEXT_TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    import boto3

BATCH = 16  # blocks in a message: 8 MiB of image
CONNECTIONS = 64
CEILING = 1000.0  # requests a second; AWS's example for one account
BUDGET_SECONDS = 300.0
TOTAL_SECONDS = 6 * 3600.0

Item = tuple[int, str]
"""A block's index, and its SHA-256 in hexadecimal (put) or its token (get, digest)."""


@dataclass(frozen=True, slots=True)
class TransferConfig:
    """Limits of a transfer."""

    processes: int = 0  # worker processes; by default as many as there are cores, at most four
    connections: int = CONNECTIONS  # number of concurrent requests of all workers
    # Maximum number of requests a second of all workers. After throttled responses a worker is slower.
    ceiling: float = CEILING
    budget_seconds: float = BUDGET_SECONDS  # how many seconds a block is retried
    read_seconds: float = 20.0  # timeout of the first request for a block; it doubles with each retry
    total_seconds: float = TOTAL_SECONDS  # maximum duration of the transfer

    def workers(self) -> int:
        """Return the number of processes."""
        return self.processes or min(os.cpu_count() or 1, 4)


class BlockRefusedError(errors.AwsError):
    """AWS refused a block, or all retries failed. `code` is AWS's error code, `index` the block."""

    def __init__(self, code: str, message: str, index: int, *, reason: str = "", operation: str = "") -> None:
        self.index = index
        fix = "Run the same command again: it continues from the uploaded blocks."
        why = f"{code}: {message}"
        if code not in THROTTLED:
            why += f" ({reason})" if reason else ""
        else:
            cause = error_codes.throttle_cause(code, reason, operation)
            why = f"{why.rstrip('.')}. {cause}" if cause else why
            fix = (
                "Lower put_ceiling in vmsnix.toml or VMSNIX_PUT_CEILING (blocks per second), or run the same "
                "command again later: it continues from the uploaded blocks."
            )
        super().__init__(
            f"Block {index} could not be transferred." if index >= 0 else "A worker for blocks failed.",
            why=why,
            fix=fix,
            code=code,
        )


def run(
    verb: Literal["put", "get", "digest"],
    items: Collection[Item],
    *,
    session: boto3.Session,
    region: str,
    snapshot_id: str,
    path: Path | None = None,
    descriptor: int = -1,
    on_done: Callable[[Sequence[Any]], None],
    config: TransferConfig = TransferConfig(),
) -> int:
    """Transfer blocks in the given order, and return the number of throttled responses.

    ``put`` uploads blocks of the image in `path` (or in `descriptor`, an open raw disk), ``get`` downloads
    blocks into the existing file `path`, ``digest`` downloads blocks and returns their SHA-256.

    `on_done` is called in this thread with the indices of each finished batch; for ``digest`` with pairs of
    index and SHA-256 in hexadecimal. An error that it raises ends the transfer. After a BlockRefusedError
    other blocks may have been transferred.
    """
    if not items:
        return 0
    count = min(config.workers(), len(items))
    place = f"/dev/fd/{descriptor}" if descriptor >= 0 else str(path.absolute()) if path else ""
    job = TransferJob(
        verb,
        snapshot_id,
        place,
        descriptor >= 0,
        max(config.connections // count, 1),
        config.ceiling / count,
        config.budget_seconds,
    )
    deadline = time.monotonic() + config.total_seconds
    with _WorkerPool(job, session, count, descriptor) as pool:
        # The workers are starting while botocore creates a client, which takes as long.
        pool.open(wire.target(session, region, read_seconds=config.read_seconds))
        return pool.carry_out(items, on_done, deadline=deadline)


class _WorkerPool:
    """The worker processes of one transfer; a context manager, which ends them."""

    def __init__(self, job: TransferJob, session: boto3.Session, count: int, descriptor: int) -> None:
        self.job, self.session, self.descriptor = job, session, descriptor
        self.keys = wire.keys(session)
        self.inbox: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
        self.listeners: list[threading.Thread] = []
        self.workers = [self._start(number) for number in range(count)]
        self.throttled = [0] * count

    def __enter__(self) -> _WorkerPool:
        return self

    def __exit__(self, *_exception: object) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        for listener in self.listeners:
            listener.join()  # it may still read the last message of its worker
        for worker in self.workers:
            for stream in cast("tuple[IO[str], IO[str]]", (worker.stdin, worker.stdout)):
                with suppress(BrokenPipeError):  # the worker has ended
                    stream.close()

    def open(self, where: wire.BlockEndpoint) -> None:
        """Send every worker its job."""
        message = {"job": asdict(self.job), "target": asdict(where), "keys": asdict(self.keys)}
        for number in range(len(self.workers)):
            self._send(number, {**message, "parent": os.getpid()})

    def carry_out(
        self, items: Collection[Item], on_done: Callable[[Sequence[Any]], None], *, deadline: float
    ) -> int:
        """Send batches to the workers until all blocks are done; return the number of throttled responses."""
        left = _batches(items, self.job.threads * len(self.workers))
        waiting = [0] * len(self.workers)
        depth = self.job.threads + 2  # one batch for each thread, and two in reserve
        for _ in range(depth):
            for number in range(len(self.workers)):
                waiting[number] += self._supply(number, left)
        while any(waiting):
            try:
                number, message = self.inbox.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise errors.DeadlineError(
                    f"The transfer of the blocks of {self.job.snapshot_id} timed out.",
                    why="It took longer than its time limit.",
                    fix="Run the same command again: it continues from the transferred blocks.",
                ) from None
            if message is None:
                raise BlockRefusedError("WorkerDied", f"with exit code {self.workers[number].wait()}", -1)
            if "done" in message:
                on_done(message["done"])
                if message["throttled"] and not any(self.throttled):
                    LOGGER.warning("AWS throttles the requests for blocks: trying again at a lower rate.")
                self.throttled[number] = message["throttled"]
                waiting[number] -= 1
                self._pass_keys()
                waiting[number] += self._supply(number, left)
            elif "keys" in message:
                self._pass_keys(number)
            else:
                raise _failure(message["failed"], self.job)
        return sum(self.throttled)

    def _supply(self, number: int, left: Iterator[Sequence[Item]]) -> int:
        """Send a worker its next batch; return the number of batches that were sent."""
        batch = next(left, None)
        if batch is None:
            return 0
        self._send(number, {"blocks": batch})
        return 1

    def _pass_keys(self, asking: int | None = None) -> None:
        """Send the workers the session's credentials if botocore has refreshed them."""
        fresh = wire.keys(self.session)
        if fresh != self.keys:
            self.keys = fresh
            for number in range(len(self.workers)):
                self._send(number, {"keys": asdict(fresh)})
        elif asking is not None:
            self._send(asking, {"keys": asdict(fresh)})

    def _send(self, number: int, message: dict[str, Any]) -> None:
        stream = cast("IO[str]", self.workers[number].stdin)
        with suppress(BrokenPipeError):  # the worker has ended, and the inbox gets its last message
            stream.write(json.dumps(message) + "\n")
            stream.flush()

    def _start(self, number: int) -> subprocess.Popen[str]:
        # In its own session, so that Ctrl-C reaches only the parent, which ends its workers after it has
        # written the journal.
        worker = subprocess.Popen(
            [sys.executable, "-m", "vmsnix_ops.aws.ebs_direct.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=(self.descriptor,) if self.descriptor >= 0 else (),
        )
        listener = threading.Thread(target=self._listen, args=(number, worker), daemon=True)
        self.listeners.append(listener)
        listener.start()
        return worker

    def _listen(self, number: int, worker: subprocess.Popen[str]) -> None:
        for line in worker.stdout or ():
            self.inbox.put((number, json.loads(line)))
        self.inbox.put((number, None))


def _batches(items: Collection[Item], threads: int) -> Iterator[Sequence[Item]]:
    """Yield batches, smaller ones for few blocks, so that each thread gets some."""
    size = max(1, min(BATCH, len(items) // (2 * threads)))
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _failure(failed: dict[str, Any], job: TransferJob) -> errors.VmsnixError:
    code, message, index, reason = (failed[name] for name in ("code", "message", "index", "reason"))
    if code == CHANGED:
        start = index * BLOCK_BYTES
        where = f"Bytes {start} to {start + BLOCK_BYTES} of the disk (block {index}): "
        return errors.ImageChangedError(
            f"{job.path} changed after it was identified.",
            why=f"{where if index >= 0 else ''}{message.rstrip('.')}.",
            fix=NEXT_TIME,
            offset=start if index >= 0 else None,
        )
    if code in error_codes.EXPIRED | error_codes.CREDENTIALS:
        return errors.CredentialsError(
            f"AWS refused the credentials at block {index}.",
            why=f"{code}: {message}",
            fix="Log in again, then run the same command again: it continues from the transferred blocks.",
            code=code,
        )
    if code in error_codes.DENIED:
        return errors.AccessDeniedError(
            f"Block {index} could not be transferred.",
            why=f"{code}: {message}" + (f" ({reason})" if reason else ""),
            fix="Allow ebs:PutSnapshotBlock (to upload) or ebs:GetSnapshotBlock (to verify or download) in "
            "the caller's IAM policy; docs/reference/permissions.md lists all actions.",
            code=code,
        )
    operation = "PutSnapshotBlock" if job.verb == "put" else "GetSnapshotBlock"
    return BlockRefusedError(code, message, index, reason=reason, operation=operation)
