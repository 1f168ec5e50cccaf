"""A process that uploads or downloads blocks.

One Python process cannot use a fast network fully, so `vmsnix_ops.aws.ebs_direct.engine` starts several, as
``python -m vmsnix_ops.aws.ebs_direct.worker``. Messages are JSON, one in a line. The first line on stdin is
the job. Little is imported, so that a worker starts in a tenth of a second.

- On stdin: ``{"blocks": [[index, what], ...]}`` or ``{"keys": {...}}``; the worker ends at the end of stdin.
  ``what`` is the block's digest for ``put``, and its token for ``get`` and ``digest``.
- On stdout: ``{"done": [index, ...], "throttled": n}`` (for ``digest`` with ``[index, digest]``),
  ``{"keys": true}`` if the credentials are expired, or ``{"failed": {...}}``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops.aws import error_codes
from vmsnix_ops.aws.ebs_direct.wire import Answer, BlockEndpoint, BlockWire, ConnectionFailed, Keys
from vmsnix_ops.disk.formats import RawImage, open_image
from vmsnix_ops.disk.image import BLOCK_BYTES, ZEROS
from vmsnix_ops.disk.source import PathSource, ThreadBuffer
from vmsnix_ops.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.disk.image import DiskImage

THROTTLED = error_codes.THROTTLING | {"ServiceQuotaExceededException"}  # the EBS direct APIs' HTTP 402
CHANGED = "ImageChanged"
KEYS_SECONDS = 10.0  # for the parent to fetch new credentials
NOT_FOUND = "ResourceNotFoundException"
NOT_VISIBLE_SECONDS = 120.0  # until the EBS direct APIs find a new snapshot
MAX_PAUSE_SECONDS = 10.0
FIRST_THREADS = 4
RAMP_UP_SECONDS = 0.05
PARENT_SECONDS = 0.2
MAX_TIMEOUT_FACTOR = 8  # on a slow network a block takes longer than the read timeout


@dataclass(frozen=True, slots=True)
class TransferJob:
    """The task of a worker."""

    # "put" uploads blocks of an image, "get" downloads blocks into a file, "digest" downloads blocks and
    # returns their SHA-256.
    verb: Literal["put", "get", "digest"]
    snapshot_id: str
    path: str  # the image to read, or the file to write; empty for digests
    raw: bool  # whether the image is read as a raw disk without detecting its format
    threads: int  # number of concurrent requests
    rate: float  # maximum number of requests a second
    budget: float  # how many seconds a block is retried


Inbox = queue.SimpleQueue["list[list[Any]] | Exception | None"]


class RateLimiter:
    """Limits the requests a second: halves after a throttled response, then rises to the ceiling again."""

    def __init__(self, ceiling: float) -> None:
        self.ceiling = self.rate = ceiling
        self._next, self._cut = time.monotonic(), -math.inf
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait until the next request may be sent."""
        with self._lock:
            now = time.monotonic()
            self.rate = min(self.ceiling, self.rate * (1 + 0.002))
            # After a pause, the requests of up to a quarter of a second may be sent at once.
            turn = max(self._next, now - 0.25)
            self._next = turn + 1 / self.rate
        if turn > now:
            time.sleep(turn - now)

    def slower(self) -> None:
        """Halve the rate, once for a burst of throttled responses."""
        with self._lock:
            now = time.monotonic()
            if now - self._cut > 0.5:
                self.rate, self._cut = max(self.rate / 2, 1.0), now


class RampUp:
    """Limits the number of active threads: few at first, and twice as many while the processor is idle.

    On a fast network a few threads use a whole core, and more threads evict each other's blocks from its
    cache. On a slow network all threads are active after a quarter of a second.
    """

    def __init__(self, most: int) -> None:
        self.open, self.most = min(FIRST_THREADS, most), most
        self._turns = threading.Semaphore(self.open)
        self._at, self._used = time.monotonic(), time.process_time()

    def __enter__(self) -> None:
        self._turns.acquire()

    def __exit__(self, *_exception: object) -> None:
        self._turns.release()

    @property
    def seconds(self) -> float | None:
        """Seconds until the next `update`; ``None`` if all threads are active."""
        return RAMP_UP_SECONDS if self.open < self.most else None

    def update(self) -> None:
        """Activate more threads if this process used less than half a core since the last update."""
        now, used = time.monotonic(), time.process_time()
        if self.open == self.most or now - self._at < RAMP_UP_SECONDS:
            return
        if used - self._used < (now - self._at) / 2:
            more = min(self.open, self.most - self.open)
            self.open += more
            self._turns.release(more)
        self._at, self._used = now, used


class Refused(Exception):  # noqa: N818 (a message between the threads of this process)
    """AWS refused a block, or all retries failed."""

    def __init__(self, answer: Answer, index: int) -> None:
        super().__init__(f"{answer.code}: {answer.message}")
        self.answer, self.index = answer, index


class Worker:
    """Uploads or downloads single blocks, for several threads."""

    def __init__(self, job: TransferJob, target: BlockEndpoint, keys: Keys) -> None:
        self.job = job
        self.wire = BlockWire(target, keys)
        self.limiter = RateLimiter(job.rate)
        self.started = time.monotonic()
        self.throttled = 0
        self.fresh_keys = threading.Event()
        self._write_lock = threading.Lock()
        self._buffer = ThreadBuffer()

    def write(self, message: dict[str, Any]) -> None:
        """Write a message to the parent."""
        with self._write_lock:
            try:
                sys.stdout.write(json.dumps(message) + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                # The parent was killed, and the next run may already send these blocks.
                os._exit(1)

    def put(self, image: DiskImage, index: int, digest: str) -> int:
        """Upload a block with its digest. AWS refuses other bytes; they are hashed here only if it refuses.

        Source: "Use EBS direct APIs checksums to validate snapshot data" in the Amazon EBS User Guide.
        """
        block, raw = self._buffer.get(BLOCK_BYTES), bytes.fromhex(digest)
        try:
            image.read_into(index * BLOCK_BYTES, block)
        except ImageError as error:
            raise Refused(Answer(0, CHANGED, str(error)), index) from error
        try:
            self._retry(
                index,
                lambda factor: self.wire.put(self.job.snapshot_id, index, block, raw, timeout_factor=factor),
            )
        except Refused as refused:
            if hashlib.sha256(block).digest() == raw:
                raise
            text = "the block is not the one that was hashed"
            raise Refused(Answer(0, CHANGED, text), index) from refused
        return index

    def get(self, file: int, index: int, token: str) -> int:
        """Download a block and write it to the file; a block of zeros remains a hole."""
        body = self._fetch(index, token).body
        if body != ZEROS:
            os.pwrite(file, body, index * BLOCK_BYTES)
        return index

    def digest(self, index: int, token: str) -> tuple[int, str]:
        """Download a block, and return its index and its SHA-256 in hexadecimal."""
        return index, base64.b64decode(self._fetch(index, token).checksum).hex()

    def _fetch(self, index: int, token: str) -> Answer:
        """Download a block; wrong bytes are downloaded again."""

        def get(factor: int) -> Answer:
            answer = self.wire.get(self.job.snapshot_id, index, token, timeout_factor=factor)
            if not answer.ok:
                return answer
            digest = base64.b64encode(hashlib.sha256(answer.body).digest()).decode()
            if len(answer.body) != BLOCK_BYTES or digest != answer.checksum:
                raise ConnectionFailed("the bytes do not match their checksum")
            return answer

        return self._retry(index, get)

    def _retry(self, index: int, send: Callable[[int], Answer]) -> Answer:
        """Call `send` until it succeeds, fails permanently, or the budget is spent."""
        deadline, pause, factor = time.monotonic() + self.job.budget, 0.1, 1
        while True:
            self.limiter.wait()
            used = self.wire.keys
            try:
                answer = send(factor)
            except ConnectionFailed as error:
                answer = Answer(0, "ConnectionFailed", str(error))
                factor = min(factor * 2, MAX_TIMEOUT_FACTOR)
            if answer.ok:
                return answer
            if not self._is_retryable(answer) or time.monotonic() + pause > deadline:
                raise Refused(answer, index)
            if answer.code in error_codes.EXPIRED and not self._has_newer_keys(used):
                raise Refused(answer, index)
            time.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    def _is_retryable(self, answer: Answer) -> bool:
        """Return whether the request may succeed later; slow down after a throttled response."""
        if answer.code in THROTTLED or answer.status == 429:
            self.throttled += 1
            self.limiter.slower()
            return True
        if answer.code == NOT_FOUND:
            return time.monotonic() - self.started < NOT_VISIBLE_SECONDS
        return (
            answer.code == "ConnectionFailed"
            or answer.status >= 500
            or answer.code in error_codes.EXPIRED
            or answer.code in error_codes.SERVER_FAULTS
        )

    def _has_newer_keys(self, used: Keys) -> bool:
        """Return whether there are newer credentials than `used`; request them from the parent."""
        if self.wire.keys == used:
            self.fresh_keys.clear()
            self.write({"keys": True})
            self.fresh_keys.wait(KEYS_SECONDS)
        return self.wire.keys != used


def open_disk(path: str, *, raw: bool) -> DiskImage:
    """Open the image of a job; with `raw`, without detecting its format."""
    if not raw:
        return open_image(path)
    source = PathSource(Path(path))
    return RawImage(source, source.size)


def main() -> int:
    """Process the job and the batches on stdin."""
    opening = json.loads(sys.stdin.readline())
    job = TransferJob(**opening["job"])
    worker = Worker(job, BlockEndpoint(**opening["target"]), Keys(**opening["keys"]))
    batches: Inbox = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(worker, batches), daemon=True).start()
    threading.Thread(target=_exit_with, args=(opening["parent"],), daemon=True).start()
    try:
        if job.verb == "get":
            file = os.open(job.path, os.O_WRONLY)
            _run(worker, batches, lambda index, token: worker.get(file, index, token))
        elif job.verb == "digest":
            _run(worker, batches, worker.digest)
        else:
            with open_disk(job.path, raw=job.raw) as image:
                _run(worker, batches, lambda index, digest: worker.put(image, index, digest))
    except Refused as refused:
        worker.write({"failed": _failure(refused.answer, refused.index)})
        return 1
    except Exception as error:  # noqa: BLE001 (the parent reports every error)
        # The image was valid when it was identified. So if it cannot be opened now, it has changed.
        code = CHANGED if isinstance(error, ImageError) else type(error).__name__
        worker.write({"failed": _failure(Answer(0, code, str(error)), -1)})
        return 1
    return 0


def _failure(answer: Answer, index: int) -> dict[str, Any]:
    return {"index": index, "code": answer.code, "message": answer.message, "reason": answer.reason}


def _run(worker: Worker, batches: Inbox, work: Callable[[int, str], int | tuple[int, str]]) -> None:
    """Process batches until the input ends or a block fails."""
    ramp_up = RampUp(worker.job.threads)

    def carry_out(batch: list[list[Any]]) -> None:
        try:
            with ramp_up:
                done = [work(index, extra) for index, extra in batch]
            worker.write({"done": done, "throttled": worker.throttled})
        except Exception as error:  # noqa: BLE001 (handed to the main thread, which reports it to the parent)
            batches.put(error)

    pool = ThreadPoolExecutor(worker.job.threads)
    try:
        while True:
            try:
                batch = batches.get(timeout=ramp_up.seconds)
            except queue.Empty:
                ramp_up.update()
                continue
            ramp_up.update()
            if batch is None:
                break
            if isinstance(batch, Exception):
                raise batch
            pool.submit(carry_out, batch)
        pool.shutdown(wait=True)
        if not batches.empty() and isinstance(failure := batches.get(), Exception):
            raise failure
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _exit_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed."""
    while os.getppid() == parent:  # ends: with this process, or with its parent
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def _listen(worker: Worker, batches: Inbox) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "keys" in message:
            worker.wire.keys = Keys(**message["keys"])
            worker.fresh_keys.set()
        else:
            batches.put(message["blocks"])
    batches.put(None)


if __name__ == "__main__":
    sys.exit(main())
