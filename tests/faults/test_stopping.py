"""Asked once a publisher ends cleanly, asked twice at once; either way the same command goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.account import BUCKET, REGION, look
from tests.support import wait_until
from vmsnix_ops import publish
from vmsnix_ops.progress import silent


def stop_in(publishers, fault, *signals):
    """Publish, and send the signals while the fault holds up a call."""
    struck = publishers.aws.faults.add(fault)

    def send(processes):
        wait_until(lambda: struck.applied, "the call that is held up")
        for number in signals:
            time.sleep(0.2)  # the second comes while the first is cleaning up
            os.kill(processes[0], number)

    state = os.environ["VMSNIX_STATE"]
    (ended,) = publishers.publishers.run(
        publishers.job(type(publishers.folder)(state), "import"), during=send
    )
    publishers.aws.faults.clear()
    return ended


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["ctrl-c", "sigterm", "sighup"]
)
def test_asked_once_it_says_how_to_go_on(publishers, number):
    publishers.aws.clock.speed = 20  # the import still runs when the signal comes
    ended = stop_in(
        publishers,
        {"op": "ec2:DescribeImportSnapshotTasks", "nth": 3, "do": "delay", "seconds": 1},
        number,
    )
    assert (ended.status, ended.error) == (1, "InterruptedRunError")
    assert "import was cancelled" in ended.text
    assert "Run the same command again" in ended.text
    publishers.aws.clock.speed = 5000
    assert look(publishers.aws).running == []
    publish.plan(image=str(publishers.image), region=REGION, bucket=BUCKET, progress=silent()).apply()
    assert list(look(publishers.aws).leftovers()) == []


def test_asked_twice_it_stops_at_once(publishers):
    held = {"op": "s3:UploadPart", "do": "hang", "seconds": 10_000}  # longer than any test may take
    ended = stop_in(publishers, held, signal.SIGINT, signal.SIGINT)
    assert ended.status == -signal.SIGINT
    publish.plan(image=str(publishers.image), region=REGION, bucket=BUCKET, progress=silent()).apply()
    assert list(look(publishers.aws).leftovers()) == []
