"""A process that reads and sends blocks, or fetches them.

One Python process cannot keep a fast network busy, so `vmsnix_ops.aws.ebs_direct.engine` starts a few of
these, as ``python -m vmsnix_ops.aws.ebs_direct.worker``. They speak JSON, a line a message: a first line with
the job, then batches in, and what became of them out. Little is imported, so a worker starts in a tenth of a
second.

In: ``{"blocks": [[index, what], ...]}`` or ``{"keys": {...}}``; the end of input ends the worker. ``what`` is
the block's digest to put it, and its token to get it or to return its digest.
Out: ``{"done": [index, ...], "throttled": n}``, where ``[index, digest]`` stands for ``index`` after
``digest``; ``{"keys": true}`` (they are expired) or ``{"failed": {...}}``.
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
from vmsnix_ops.aws.ebs_direct.wire import BLOCK_BYTES, Answer, BlockWire, ConnectionFailed, Keys, Target
from vmsnix_ops.disk.formats import RawImage, open_image
from vmsnix_ops.disk.image import ZEROS
from vmsnix_ops.disk.source import PathSource
from vmsnix_ops.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.disk.image import DiskImage

THROTTLED = error_codes.THROTTLING | {"ServiceQuotaExceededException"}  # the EBS direct APIs' HTTP 402
CHANGED = "ImageChanged"
KEYS_SECONDS = 10.0  # for the parent to fetch new credentials
NOT_YET = "ResourceNotFoundException"
NOT_YET_SECONDS = 120.0  # a fresh snapshot is sometimes unknown for so long
LONGEST_PAUSE = 10.0
FEW_THREADS = 4
LOOK_SECONDS = 0.05
PARENT_SECONDS = 0.2
MOST_PATIENCE = 8  # times the read timeout; a slow line needs more of it than a hung request


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do.

    Attributes
    ----------
    verb
        ``"put"`` reads the image and sends; ``"get"`` fetches and writes; ``"digest"`` fetches and returns
        the SHA-256.
    snapshot_id
        Of the snapshot.
    path
        The image to read, or the file to write; empty for digests.
    raw
        Whether the image is the disk itself whatever its first bytes look like.
    threads
        How many requests at once.
    rate
        Puts a second that this worker may not exceed.
    budget
        Seconds to keep trying one block.
    """

    verb: Literal["put", "get", "digest"]
    snapshot_id: str
    path: str
    raw: bool
    threads: int
    rate: float
    budget: float


Inbox = queue.SimpleQueue["list[list[Any]] | Exception | None"]


class RateLimiter:
    """A rate that falls by half with every throttled answer and climbs back, never above its ceiling.

    Parameters
    ----------
    ceiling
        Requests a second, at most.
    """

    def __init__(self, ceiling: float) -> None:
        self.ceiling = self.rate = ceiling
        self._next, self._cut = time.monotonic(), -math.inf
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for this request's turn."""
        with self._lock:
            now = time.monotonic()
            self.rate = min(self.ceiling, self.rate * (1 + 0.002))
            # A quarter of a second of turns may be saved up, so that a pause is made good.
            turn = max(self._next, now - 0.25)
            self._next = turn + 1 / self.rate
        if turn > now:
            time.sleep(turn - now)

    def slower(self) -> None:
        """Halve the rate, once for a burst of throttled answers."""
        with self._lock:
            now = time.monotonic()
            if now - self._cut > 0.5:
                self.rate, self._cut = max(self.rate / 2, 1.0), now


class RampUp:
    """How many threads move blocks at once: few, and twice as many when they leave the processor idle.

    On a fast line a few threads keep a core busy, and more of them push each other's blocks out of its cache.
    On a slow one they all wait: within a quarter of a second everybody is let in.

    Parameters
    ----------
    most
        How many threads there are.
    """

    def __init__(self, most: int) -> None:
        self.open, self.most = min(FEW_THREADS, most), most
        self._turns = threading.Semaphore(self.open)
        self._at, self._used = time.monotonic(), time.process_time()

    def __enter__(self) -> None:
        self._turns.acquire()

    def __exit__(self, *_exception: object) -> None:
        self._turns.release()

    @property
    def seconds(self) -> float | None:
        """After how long to look again; ``None`` when everybody is in."""
        return LOOK_SECONDS if self.open < self.most else None

    def update(self) -> None:
        """Let more in when this process used less than half a core since the last look."""
        now, used = time.monotonic(), time.process_time()
        if self.open == self.most or now - self._at < LOOK_SECONDS:
            return
        if used - self._used < (now - self._at) / 2:
            more = min(self.open, self.most - self.open)
            self.open += more
            self._turns.release(more)
        self._at, self._used = now, used


class Refused(Exception):  # noqa: N818 (a message between the threads of this process)
    """AWS's final word on a block."""

    def __init__(self, answer: Answer, index: int) -> None:
        super().__init__(f"{answer.code}: {answer.message}")
        self.answer, self.index = answer, index


class _Own(threading.local):
    """What each thread has for itself."""

    buffer: bytearray | None = None


class Worker:
    """Carries out batches on a pool of threads, one connection each."""

    def __init__(self, job: Job, target: Target, keys: Keys) -> None:
        self.job = job
        self.wire = BlockWire(target, keys)
        self.limiter = RateLimiter(job.rate)
        self.started = time.monotonic()
        self.throttled = 0
        self.fresh_keys = threading.Event()
        self._say = threading.Lock()
        self._own = _Own()

    def say(self, message: dict[str, Any]) -> None:
        """Write one line to the parent."""
        with self._say:
            try:
                sys.stdout.write(json.dumps(message) + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                # The parent was killed. Nobody hears what is done here, and the next run may be at it.
                os._exit(1)

    def put(self, image: DiskImage, index: int, digest: str) -> int:
        """Send a block, if the buffer that is sent has this digest."""
        block, raw = self._buffer(), bytes.fromhex(digest)
        try:
            image.read_into(index * BLOCK_BYTES, block)
        except ImageError as error:
            raise Refused(Answer(0, CHANGED, str(error)), index) from error
        if hashlib.sha256(block).digest() != raw:
            raise Refused(Answer(0, CHANGED, "the block is not the one that was hashed"), index)
        self._patiently(
            index, lambda patience: self.wire.put(self.job.snapshot_id, index, block, raw, patience=patience)
        )
        return index

    def get(self, file: int, index: int, token: str) -> int:
        """Fetch a block, compare its checksum, and write it where it belongs; zeros stay a hole."""
        body = self._fetch(index, token).body
        if body != ZEROS:
            os.pwrite(file, body, index * BLOCK_BYTES)
        return index

    def digest(self, index: int, token: str) -> tuple[int, str]:
        """Fetch a block, and return its index and its SHA-256 in hexadecimal."""
        return index, base64.b64decode(self._fetch(index, token).checksum).hex()

    def _buffer(self) -> bytearray:
        """Return this thread's own block: new memory for each would cost more than reading into it."""
        if self._own.buffer is None:
            self._own.buffer = bytearray(BLOCK_BYTES)
        return self._own.buffer

    def _fetch(self, index: int, token: str) -> Answer:
        """Return a block whose bytes match the checksum beside them."""

        def ask(patience: int) -> Answer:
            answer = self.wire.get(self.job.snapshot_id, index, token, patience=patience)
            if not answer.ok:
                return answer
            digest = base64.b64encode(hashlib.sha256(answer.body).digest()).decode()
            if len(answer.body) != BLOCK_BYTES or digest != answer.checksum:
                raise ConnectionFailed("the bytes do not match their checksum")
            return answer

        return self._patiently(index, ask)

    def _patiently(self, index: int, send: Callable[[int], Answer]) -> Answer:
        """Send until it is done; wait out what passes, within the budget."""
        deadline, pause, patience = time.monotonic() + self.job.budget, 0.1, 1
        while True:
            self.limiter.wait()
            used = self.wire.keys
            try:
                answer = send(patience)
            except ConnectionFailed as error:
                answer = Answer(0, "ConnectionFailed", str(error))
                patience = min(patience * 2, MOST_PATIENCE)
            if answer.ok:
                return answer
            if not self._passes(answer) or time.monotonic() + pause > deadline:
                raise Refused(answer, index)
            if answer.code in error_codes.EXPIRED and not self._has_newer_keys(used):
                raise Refused(answer, index)
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _passes(self, answer: Answer) -> bool:
        """Whether another try may go through."""
        if answer.code in THROTTLED or answer.status == 429:
            self.throttled += 1
            self.limiter.slower()
            return True
        if answer.code == NOT_YET:
            return time.monotonic() - self.started < NOT_YET_SECONDS
        return (
            answer.code == "ConnectionFailed"
            or answer.status >= 500
            or answer.code in error_codes.EXPIRED
            or answer.code in error_codes.SERVER_FAULTS
        )

    def _has_newer_keys(self, used: Keys) -> bool:
        """Whether the parent had newer credentials than those that were used."""
        if self.wire.keys == used:
            self.fresh_keys.clear()
            self.say({"keys": True})
            self.fresh_keys.wait(KEYS_SECONDS)
        return self.wire.keys != used


def open_disk(path: str, *, raw: bool) -> DiskImage:
    """Open the image of a job."""
    if not raw:
        return open_image(path)
    source = PathSource(Path(path))
    return RawImage(source, source.size)


def main() -> int:
    """Read the job and batches from standard input until it ends."""
    opening = json.loads(sys.stdin.readline())
    job = Job(**opening["job"])
    worker = Worker(job, Target(**opening["target"]), Keys(**opening["keys"]))
    batches: Inbox = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(worker, batches), daemon=True).start()
    threading.Thread(target=_end_with, args=(opening["parent"],), daemon=True).start()
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
        answer = refused.answer
        worker.say(
            {
                "failed": {
                    "index": refused.index,
                    "status": answer.status,
                    "code": answer.code,
                    "message": answer.message,
                    "reason": answer.reason,
                }
            }
        )
        return 1
    except Exception as error:  # noqa: BLE001 (the parent reports every error)
        # An image that was sound when it was identified, and cannot be opened now, has changed.
        worker.say(
            {
                "failed": {
                    "index": -1,
                    "status": 0,
                    "code": CHANGED if isinstance(error, ImageError) else type(error).__name__,
                    "message": str(error),
                    "reason": "",
                }
            }
        )
        return 1
    return 0


def _run(worker: Worker, batches: Inbox, work: Callable[[int, str], int | tuple[int, str]]) -> None:
    """Carry out batches as they come; the first failure ends it, also while it waits for more."""
    ramp_up = RampUp(worker.job.threads)

    def carry_out(batch: list[list[Any]]) -> None:
        try:
            with ramp_up:
                done = [work(index, extra) for index, extra in batch]
            worker.say({"done": done, "throttled": worker.throttled})
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


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed: nobody would count what is sent then."""
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
