"""Kill a publisher at every AWS call, run the same command again, and check account and tables.

``python -m tests.faults.crash_sweep`` (``just crash-sweep``) does this at all points of both methods; the
tests do it at some. A publisher is killed at three moments of each call: before the request, between request
and response, and after the response. It is also killed before and after each commit to the tables.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.account import BUCKET, REGION, read_account, table_problems
from tests.faults.publishers import Ended, Job, Kill, Publishers, environment, kills_of
from tests.support import wait_until
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.account import Account
    from vmsnix_ops.sandbox import Fault

MIB = 2**20
SPEED = 5000  # of the sandbox's clock
PARTS = 2
ONCE = {
    "ec2:ImportSnapshot": 1,
    "ec2:RegisterImage": 1,
    "s3:CompleteMultipartUpload": 1,
    "s3:UploadPart": PARTS,
}
"""Expensive and creating calls, and how often each may succeed for one image."""
PUT = "ebs:PutSnapshotBlock"


@dataclass(frozen=True)
class Point:
    """A kill, and what was wrong after the same command ran again."""

    via: str
    kill: Kill
    wrong: tuple[str, ...]

    @property
    def converged(self) -> bool:
        return not self.wrong


class Sweep:
    """A sandbox, an image and publishers."""

    def __init__(self, aws: Sandbox, publishers: Publishers, folder: Path) -> None:
        self.aws, self.publishers, self.folder = aws, publishers, folder
        # An upload of two parts, and a disk that is read quickly.
        self.image = make_sample_image(folder / "image", data_bytes=7 * MIB)
        self._count = 0
        self.blocks = 0
        self.state = folder
        self._prepared: bytes | None = None

    def account(self) -> Account:
        """Return everything in the account."""
        return read_account(self.aws)

    def problems(self, *, amis: int = 1) -> list[str]:
        """Return what is wrong in the account if it should have `amis` AMIs."""
        return list(self.account().problems(amis=amis))

    def clean(self) -> Path:
        """Empty the account, and return an empty state folder."""
        # Bucket and role are created once; `reset` would delete them.
        if self._prepared is None:
            self.aws.prepare(bucket=BUCKET, region=REGION)
            self._prepared = self.aws.save_tables()
        self.aws.restore_tables(self._prepared)
        self.aws.clock.speed = SPEED
        self._count += 1
        self.state = self.folder / f"state-{self._count}"
        return self.state

    def job(self, state: Path, via: str, kill: Kill | None = None, **more: Any) -> Job:
        """Return a publish of the image."""
        plan = {"image": str(self.image), "region": REGION, "bucket": BUCKET, "via": via}
        return Job(plan | more, environment(self.aws, state), kill)

    def points(self, via: str) -> list[Kill]:
        """Publish once without a kill, and return a kill for every moment of that run."""
        (ended,) = self.publishers.run(self.job(self.clean(), via))
        if ended.status:
            raise RuntimeError(f"{ended.error}: {ended.text}")
        # Worker processes put the blocks: the publisher is killed while the sandbox delays such a call.
        self.blocks = self.aws.calls.count(PUT, ran=True)
        some = {1, self.blocks // 2, self.blocks} if self.blocks else set()
        puts = [Kill(PUT, nth, moment) for nth in sorted(some) for moment in ("before", "after")]
        return [*kills_of(ended.calls), *puts]

    def kill_and_rerun(self, via: str, kill: Kill) -> Point:
        """Kill a publisher, run the same command again, and check account and tables."""
        state = self.clean()
        if kill.call == PUT:
            delay = {"op": PUT, "nth": kill.nth, "do": "delay", "when": kill.moment, "seconds": 0.3}
            fault = self.aws.faults.add(delay)
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
        account = self.account()
        yield from account.problems()
        if second.result["ami_id"] not in account.amis:
            yield f"the result names {second.result['ami_id']}, the account has {account.amis}"
        yield from table_problems(state, run_id=second.result["run_id"], ami_id=second.result["ami_id"])
        # A block that was being sent when the publisher died is sent again with its batch.
        blocks = self.blocks * 2 if kill.call == PUT else self.blocks
        for name, most in {**ONCE, PUT: blocks}.items():
            ran = self.aws.calls.matching(name, ran=True)
            done = [call for call in ran if call.outcome in ("ok", "Disconnected")]
            if len(done) > most:
                yield f"{name} succeeded {len(done)} times"
        if len(account.tasks) > 1:
            yield f"{len(account.tasks)} imports were started"


def _kill(processes: list[int], fault: Fault) -> None:
    """Kill publishers as soon as the fault delays a call."""
    wait_until(lambda: fault.applied, f"the call {fault.op}")
    for process in processes:
        os.kill(process, signal.SIGKILL)


@contextmanager
def open_sweep(folder: Path) -> Iterator[Sweep]:
    """Start a sandbox and publishers."""
    with sandbox(speed=SPEED) as aws, Publishers(folder) as publishers:
        yield Sweep(aws, publishers, folder)


def main(arguments: list[str] | None = None) -> int:
    """Kill publishers at all points, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--via", action="append", choices=["import", "direct"])
    parser.add_argument("--only", default="", help="only points whose name contains this text")
    options = parser.parse_args(arguments)
    swept = converged = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vmsnix-sweep-") as folder, open_sweep(Path(folder)) as ready:
        for via in options.via or ["import", "direct"]:
            kills = [kill for kill in ready.points(via) if options.only in str(kill)]
            for kill in kills:
                point = ready.kill_and_rerun(via, kill)
                swept, converged = swept + 1, converged + point.converged
                print(f"{via} {kill}: {'; '.join(point.wrong) or 'ok'}", flush=True)
    print(f"points swept {swept}, converged {converged} ({time.monotonic() - started:.0f} s)")
    return 0 if swept == converged else 1


if __name__ == "__main__":
    sys.exit(main())
