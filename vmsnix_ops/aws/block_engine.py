"""Runs worker processes over the blocks of a snapshot, both ways.

The caller gives an iterable of work and is told what is done; this module keeps every worker busy, hands on
refreshed credentials, and turns a worker's last word into an error. It holds no block itself: memory does not
grow with the image.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import block_wire
from vmsnix_ops.aws.block_worker import EXPIRED, THROTTLED, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import boto3

BATCH = 16  # blocks a message: 8 MiB of image
CONNECTIONS = 64
CEILING = 1000.0  # puts a second; AWS's own worked example for one account
BUDGET_SECONDS = 300.0

Item = tuple[int, str | None]
"""A block's index, and the parent's digest (put) or the block's token (get)."""

Done = tuple[int, str, bool]
"""A block's index, its SHA-256 (hex; empty: zero and left out), and whether it was sent or fetched."""


@dataclass(frozen=True, slots=True)
class Pushing:
    """How hard to push.

    Attributes
    ----------
    processes
        Worker processes; by default as many as there are cores, at most four.
    connections
        Requests at once, over all workers.
    ceiling
        Requests a second, over all workers, at most. Throttled answers slow a worker down below that by
        themselves.
    budget_seconds
        How long to keep trying one block.
    read_seconds
        How long one request may hang before it is given up and sent again.
    """

    processes: int = 0
    connections: int = CONNECTIONS
    ceiling: float = CEILING
    budget_seconds: float = BUDGET_SECONDS
    read_seconds: float = 20.0

    def workers(self) -> int:
        """Return the number of processes."""
        return self.processes or min(os.cpu_count() or 1, 4)


class BlockRefusedError(errors.AwsError):
    """AWS's final word on a block; `code` is AWS's, and `index` the block."""

    def __init__(self, code: str, message: str, index: int) -> None:
        self.index = index
        cure = "Running the same command again goes on from the blocks that arrived."
        if code in THROTTLED:
            cure = "AWS throttles this account; lower the ceiling of puts a second, or run again later."
        super().__init__(
            f"Block {index} could not be moved." if index >= 0 else "A worker for blocks failed.",
            why=f"{code}: {message}",
            cure=cure,
            code=code,
        )


def run(
    verb: Literal["put", "get"],
    items: Iterable[Item],
    *,
    session: boto3.Session,
    region: str,
    snapshot_id: str,
    path: Path | None,
    on_done: Callable[[Sequence[Done]], None],
    pushing: Pushing = Pushing(),
) -> int:
    """Put or get blocks and return how many answers were throttled.

    Parameters
    ----------
    verb
        ``"put"`` or ``"get"``.
    items
        What to do; consumed as workers become free.
    session, region
        Who and where.
    snapshot_id
        Of the snapshot.
    path
        The image to read, or the existing file to write; ``None`` with ``"get"`` fetches and compares only.
    on_done
        Called in this thread with every batch that is done: what a journal may rely upon.
    pushing
        How hard to push.

    Raises
    ------
    BlockRefusedError
        A block was refused for good, or for longer than the budget. The others may have arrived.
    vmsnix_ops.errors.CredentialsError
        The credentials expired and the session had no newer ones.
    """
    count = pushing.workers()
    job = Job(
        verb,
        snapshot_id,
        str(path) if path else "",
        max(pushing.connections // count, 1),
        pushing.ceiling / count,
        pushing.budget_seconds,
    )
    where = block_wire.target(session, region, read_seconds=pushing.read_seconds)
    with _Crew(job, where, session, count) as crew:
        return crew.carry_out(items, on_done)


class _Crew:
    """The worker processes of one run. Leaving the block ends them, whatever they are doing."""

    def __init__(self, job: Job, where: block_wire.Target, session: boto3.Session, count: int) -> None:
        self.job, self.session = job, session
        self.keys = block_wire.keys(session)
        self.inbox: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
        opening = {"job": asdict(job), "target": asdict(where), "keys": asdict(self.keys)}
        self.workers = [self._start(number, opening) for number in range(count)]
        self.throttled = [0] * count

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_exception: object) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    _close(stream)

    def carry_out(self, items: Iterable[Item], on_done: Callable[[Sequence[Done]], None]) -> int:
        """Keep every worker supplied until nothing is left and all is done."""
        left = _batches(iter(items))
        waiting = [0] * len(self.workers)
        depth = self.job.threads + 2  # one batch a thread, and a little that lies ready
        for _ in range(depth):
            for number in range(len(self.workers)):
                waiting[number] += self._supply(number, left)
        while any(waiting):
            number, message = self.inbox.get()
            if message is None:
                raise BlockRefusedError("WorkerDied", f"with exit code {self.workers[number].wait()}", -1)
            if "done" in message:
                on_done([(index, digest, sent) for index, digest, sent in message["done"]])
                self.throttled[number] = message["throttled"]
                waiting[number] -= 1
                self._hand_on_keys()
                waiting[number] += self._supply(number, left)
            elif "keys" in message:
                self._hand_on_keys(number)
            else:
                raise _failure(message["failed"])
        return sum(self.throttled)

    def _supply(self, number: int, left: Iterator[list[Item]]) -> int:
        """Give a worker its next batch; return how many it got."""
        batch = next(left, None)
        if batch is None:
            return 0
        self._tell(number, {"blocks": batch})
        return 1

    def _hand_on_keys(self, asking: int | None = None) -> None:
        """Give the workers the session's credentials when they changed; botocore refreshes them in time."""
        fresh = block_wire.keys(self.session)
        if fresh != self.keys:
            self.keys = fresh
            for number in range(len(self.workers)):
                self._tell(number, {"keys": asdict(fresh)})
        elif asking is not None:
            self._tell(asking, {"keys": asdict(fresh)})

    def _tell(self, number: int, message: dict[str, Any]) -> None:
        stream = self._input(number)
        try:
            stream.write(json.dumps(message) + "\n")
            stream.flush()
        except BrokenPipeError:
            return  # its last word, or its end, is on the way to the inbox

    def _input(self, number: int) -> IO[str]:
        stream = self.workers[number].stdin
        if stream is None:
            raise RuntimeError("a worker was started without an input")
        return stream

    def _start(self, number: int, opening: dict[str, Any]) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C is for the parent, who ends its workers when it has written its
        # journal.
        worker = subprocess.Popen(
            [sys.executable, "-m", "vmsnix_ops.aws.block_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(number, worker), daemon=True).start()
        if worker.stdin is not None:
            worker.stdin.write(json.dumps(opening) + "\n")
            worker.stdin.flush()
        return worker

    def _listen(self, number: int, worker: subprocess.Popen[str]) -> None:
        for line in worker.stdout or ():
            self.inbox.put((number, json.loads(line)))
        self.inbox.put((number, None))


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _close(stream: IO[str]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return  # the worker was faster


def _failure(said: dict[str, Any]) -> errors.AwsError:
    code, message, index = said["code"], said["message"], said["index"]
    if code in EXPIRED:
        return errors.CredentialsError(
            f"The credentials expired at block {index}.",
            why=f"{code}: {message}",
            cure="Log in again; running the same command again goes on from the blocks that arrived.",
            code=code,
        )
    return BlockRefusedError(code, message, index)
