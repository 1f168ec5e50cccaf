"""A process that reads, hashes and sends blocks.

One Python process cannot keep a fast network busy, so `vmsnix_ops.aws.block_engine` starts a few of these, as
``python -m vmsnix_ops.aws.block_worker``. They speak JSON, a line a message: a first line with the job, then
batches in, and what became of them out. Nothing but urllib3 is imported, so a worker starts in a tenth of a
second.

In: ``{"blocks": [[index, parent digest or null or token], ...]}`` or ``{"keys": {...}}``; the end of input
ends the worker. Out: ``{"done": [[index, digest, sent], ...], "bytes": n, "throttled": n}``, ``{"keys":
true}`` (they are expired) or ``{"failed": {...}}``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vmsnix_ops.aws.block_wire import BLOCK_BYTES, Answer, BlockWire, ConnectionFailed, Keys, Target
from vmsnix_ops.disk.formats import open_image

THROTTLED = frozenset(
    {
        "RequestThrottled",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
    }
)
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidSignatureException", "RequestExpired"})
NOT_YET = "ResourceNotFoundException"
NOT_YET_SECONDS = 120.0  # a fresh snapshot is sometimes unknown for so long
LONGEST_PAUSE = 10.0
ZEROS = bytes(BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do.

    Attributes
    ----------
    verb
        ``"put"`` reads the image and sends; ``"get"`` fetches and writes.
    snapshot_id
        Of the snapshot.
    path
        The image to read, or the file to write.
    threads
        How many requests at once.
    rate
        Puts a second that this worker may not exceed.
    budget
        Seconds to keep trying one block.
    """

    verb: Literal["put", "get"]
    snapshot_id: str
    path: str
    threads: int
    rate: float
    budget: float


Inbox = queue.SimpleQueue["list[list[Any]] | Exception | None"]


class Pace:
    """A rate that falls by half with every throttled answer and climbs back, never above its ceiling.

    Parameters
    ----------
    ceiling
        Requests a second, at most.
    """

    def __init__(self, ceiling: float) -> None:
        self.ceiling = self.rate = ceiling
        self._next = self._cut = time.monotonic()
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


class Refused(Exception):  # noqa: N818 (a message between the threads of this process)
    """AWS's final word on a block."""

    def __init__(self, answer: Answer, index: int) -> None:
        super().__init__(f"{answer.code}: {answer.message}")
        self.answer, self.index = answer, index


class Worker:
    """Carries out batches on a pool of threads, one connection each."""

    def __init__(self, job: Job, target: Target, keys: Keys) -> None:
        self.job = job
        self.wire = BlockWire(target, keys, connections=job.threads)
        self.pace = Pace(job.rate)
        self.started = time.monotonic()
        self.throttled = 0
        self.fresh_keys = threading.Event()
        self._say = threading.Lock()

    def say(self, message: dict[str, Any]) -> None:
        """Write one line to the parent."""
        with self._say:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    def put(self, image: Any, index: int, parent: str | None) -> tuple[int, str, bool]:
        """Send a block unless it need not be: zero and not in the parent snapshot, or the same there.

        Returns
        -------
        tuple
            Index, digest (hex; empty for a block that stays zero) and whether it was sent.
        """
        data = image.read(index * BLOCK_BYTES, BLOCK_BYTES)
        if len(data) < BLOCK_BYTES:
            data += bytes(BLOCK_BYTES - len(data))
        if parent is None and data == ZEROS:
            return index, "", False
        digest = hashlib.sha256(data).digest()
        if parent == digest.hex():
            return index, parent, False
        self._patiently(index, lambda: self.wire.put(self.job.snapshot_id, index, data, digest))
        return index, digest.hex(), True

    def get(self, file: int, index: int, token: str) -> tuple[int, str, bool]:
        """Fetch a block, compare its checksum, and write it where it belongs."""
        answer = self._patiently(index, lambda: self.wire.get(self.job.snapshot_id, index, token))
        digest = hashlib.sha256(answer.body).digest()
        if answer.checksum and base64.b64encode(digest).decode() != answer.checksum:
            raise Refused(
                Answer(0, "ChecksumMismatch", "the bytes are not those that the checksum names"), index
            )
        if file >= 0:
            os.pwrite(file, answer.body, index * BLOCK_BYTES)
        return index, digest.hex(), True

    def _patiently(self, index: int, send: Any) -> Answer:
        """Send until it is done; wait out what passes, within the budget."""
        deadline, pause = time.monotonic() + self.job.budget, 0.1
        while True:
            self.pace.wait()
            try:
                answer: Answer = send()
            except ConnectionFailed as error:
                answer = Answer(0, "ConnectionFailed", str(error))
            if answer.ok:
                return answer
            if not self._passes(answer) or time.monotonic() + pause > deadline:
                raise Refused(answer, index)
            if answer.code in EXPIRED:
                self._ask_for_keys()
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _passes(self, answer: Answer) -> bool:
        """Whether another try may go through."""
        if answer.code in THROTTLED or answer.status == 429:
            self.throttled += 1
            self.pace.slower()
            return True
        if answer.code == NOT_YET:
            return time.monotonic() - self.started < NOT_YET_SECONDS
        return (
            answer.status == 0
            or answer.status >= 500
            or answer.code in EXPIRED
            or answer.code == "RequestTimeout"
        )

    def _ask_for_keys(self) -> None:
        self.fresh_keys.clear()
        self.say({"keys": True})
        self.fresh_keys.wait(5.0)


def main() -> int:
    """Read the job and batches from standard input until it ends."""
    opening = json.loads(sys.stdin.readline())
    job = Job(**opening["job"])
    worker = Worker(job, Target(**opening["target"]), Keys(**opening["keys"]))
    batches: Inbox = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(worker, batches), daemon=True).start()
    try:
        if job.verb == "put":
            with open_image(job.path) as image:
                _run(worker, batches, lambda index, parent: worker.put(image, index, parent))
        else:
            file = os.open(job.path, os.O_WRONLY) if job.path else -1
            _run(worker, batches, lambda index, token: worker.get(file, index, token))
    except Refused as refused:
        worker.say({"failed": {"index": refused.index, **asdict(refused.answer), "body": ""}})
        return 1
    except Exception as error:  # noqa: BLE001 (whatever it is, the parent must hear of it)
        worker.say(
            {"failed": {"index": -1, "status": 0, "code": type(error).__name__, "message": str(error)}}
        )
        return 1
    return 0


def _run(worker: Worker, batches: Inbox, work: Any) -> None:
    """Carry out batches as they come; the first failure ends it, also while it waits for more."""

    def carry_out(batch: list[list[Any]]) -> None:
        try:
            done = [work(index, extra) for index, extra in batch]
            worker.say({"done": done, "throttled": worker.throttled})
        except Exception as error:  # noqa: BLE001 (handed to the main thread, which tells the parent)
            batches.put(error)

    pool = ThreadPoolExecutor(worker.job.threads)
    try:
        while (batch := batches.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            pool.submit(carry_out, batch)
        pool.shutdown(wait=True)
        if not batches.empty() and isinstance(failure := batches.get(), Exception):
            raise failure
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
