"""Kill a publisher at every AWS call, run it again, and look at what is there.

``python -m tests.faults.crash_sweep`` (``just crash-sweep``) sweeps all points of both paths; the tests
sweep a few. Every call is a point three times: killed before the request, after it was sent and before its
answer was read, and after the answer. Commits to the tables are points too.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.account import BUCKET, REGION, look, wrong_tables
from tests.faults.publishers import MOMENTS, Ended, Job, Kill, Publishers, environment
from tests.support import wait_until
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmsnix_ops.sandbox import Fault

MIB = 2**20
SPEED = 5000  # of the sandbox's clock
DIRECT_SPEED = 500  # there a pending snapshot expires after an hour, and should not while we rerun
PARTS = 2
ONCE = {
    "ec2:ImportSnapshot": 1,
    "ec2:RegisterImage": 1,
    "s3:CompleteMultipartUpload": 1,
    "s3:UploadPart": PARTS,
}
"""Calls that are expensive, or make something, and how often they may come to their end for one image."""


PUT = "ebs:PutSnapshotBlock"


@dataclass(frozen=True)
class Point:
    """A place where the publisher was killed, and what was wrong after it ran again."""

    via: str
    kill: Kill
    wrong: tuple[str, ...]

    @property
    def converged(self) -> bool:
        return not self.wrong


class Sweep:
    """A sandbox, an image, and publishers to kill."""

    def __init__(self, aws: Sandbox, publishers: Publishers, folder: Path) -> None:
        self.aws, self.publishers, self.folder = aws, publishers, folder
        # Two parts of an upload, and a disk that is quickly read.
        self.image = make_sample_image(folder / "image", data_bytes=7 * MIB)
        self._count = 0
        self.blocks = 0
        self.state = folder
        self._prepared: bytes | None = None

    def clean(self, via: str = "import") -> Path:
        """Begin with an empty account and an empty state folder; return the folder."""
        # The bucket and the role are made once; `reset` would take them away.
        if self._prepared is None:
            self.aws.prepare(bucket=BUCKET, region=REGION)
            self._prepared = self.aws.save_tables()
        self.aws.restore_tables(self._prepared)
        self.aws.clock.speed = SPEED if via == "import" else DIRECT_SPEED
        self._count += 1
        self.state = self.folder / f"state-{self._count}"
        return self.state

    def job(self, state: Path, via: str, kill: Kill | None = None, **more: Any) -> Job:
        """Return the one command that is given over and over."""
        plan = {"image": str(self.image), "region": REGION, "bucket": BUCKET, "via": via}
        return Job(plan | more, environment(self.aws, state), kill)

    def points(self, via: str) -> list[Kill]:
        """Publish once undisturbed, and return every point of that run."""
        (ended,) = self.publishers.run(self.job(self.clean(via), via))
        if ended.status:
            raise RuntimeError(f"{ended.error}: {ended.text}")
        seen: Counter[str] = Counter()
        kills = []
        for call in ended.calls:
            seen[call] += 1
            moments = ("before", "after") if call.startswith("table:") else MOMENTS
            kills += [Kill(call, seen[call], moment) for moment in moments]
        # Blocks are put by processes of their own; the publisher dies while the server holds one of them.
        self.blocks = self.aws.calls.count(PUT, ran=True)
        some = {1, self.blocks // 2, self.blocks} if self.blocks else set()
        return [*kills, *(Kill(PUT, nth, moment) for nth in sorted(some) for moment in ("before", "after"))]

    def sweep(self, via: str, kill: Kill) -> Point:
        """Kill a publisher there, run the same command again, and check everything."""
        state = self.clean(via)
        if kill.call == PUT:
            hold = {"op": PUT, "nth": kill.nth, "do": "delay", "when": kill.moment, "seconds": 0.3}
            fault = self.aws.faults.add(hold)
            (first,) = self.publishers.run(self.job(state, via), during=lambda ids: _kill(ids, fault))
        else:
            (first,) = self.publishers.run(self.job(state, via, kill))
        (second,) = self.publishers.run(self.job(state, via))
        return Point(via, kill, tuple(self._wrong(kill, state, first, second)))

    def _wrong(self, kill: Kill, state: Path, first: Ended, second: Ended) -> Iterator[str]:
        if not first.killed:
            yield f"was not killed but ended with {first.status} {first.error} {first.text}"
        if second.status:
            yield f"the second run failed: {second.error}: {second.text}"
            return
        account = look(self.aws)
        yield from account.leftovers()
        if second.result["ami_id"] not in account.amis:
            yield f"the result names {second.result['ami_id']}, the account has {account.amis}"
        yield from wrong_tables(state, run_id=second.result["run_id"], ami_id=second.result["ami_id"])
        # A block that was under way when the publisher died is sent again, and so is its batch.
        blocks = self.blocks * 2 if kill.call == PUT else self.blocks
        for name, most in {**ONCE, PUT: blocks}.items():
            ran = self.aws.calls.matching(name, ran=True)
            done = [call for call in ran if call.outcome in ("ok", "Disconnected")]
            if len(done) > most:
                yield f"{name} was done {len(done)} times"
        if len(account.tasks) > 1:
            yield f"{len(account.tasks)} imports were started"


def _kill(processes: list[int], fault: Fault) -> None:
    """Kill publishers as soon as the fault holds up a call."""
    wait_until(lambda: fault.applied, f"the call {fault.op}")
    for process in processes:
        os.kill(process, signal.SIGKILL)


@contextmanager
def stage(folder: Path) -> Iterator[Sweep]:
    """Everything that a sweep needs."""
    with sandbox(speed=SPEED) as aws, Publishers(folder) as publishers:
        yield Sweep(aws, publishers, folder)


def sweep_all(stage: Sweep, via: str, kills: Iterable[Kill]) -> Iterator[Point]:
    """Sweep points, one after the other."""
    for kill in kills:
        yield stage.sweep(via, kill)


def main(arguments: list[str] | None = None) -> int:
    """Sweep everything and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--via", action="append", choices=["import", "direct"])
    parser.add_argument("--only", default="", help="points whose name holds these words")
    options = parser.parse_args(arguments)
    swept = converged = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vmsnix-sweep-") as folder, stage(Path(folder)) as ready:
        for via in options.via or ["import", "direct"]:
            kills = [kill for kill in ready.points(via) if options.only in str(kill)]
            for point in sweep_all(ready, via, kills):
                swept, converged = swept + 1, converged + point.converged
                print(f"{via} {point.kill}: {'; '.join(point.wrong) or 'ok'}", flush=True)
    print(f"points swept {swept}, converged {converged} ({time.monotonic() - started:.0f} s)")
    return 0 if swept == converged else 1


if __name__ == "__main__":
    sys.exit(main())
