"""One signal ends a publish cleanly, two end it at once; the same command continues in both cases."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.account import BUCKET, REGION
from tests.support import wait_until
from vmsnix_ops import publish
from vmsnix_ops.progress import silent


def stop_in(sweep, fault, *signals):
    """Publish, and send the signals while the fault delays a call."""
    rule = sweep.aws.faults.add(fault)

    def send(processes):
        wait_until(lambda: rule.applied, "the delayed call")
        for number in signals:
            time.sleep(0.2)  # the second arrives during the clean-up after the first
            os.kill(processes[0], number)

    state = os.environ["VMSNIX_STATE"]
    (ended,) = sweep.publishers.run(sweep.job(type(sweep.folder)(state), "import"), during=send)
    sweep.aws.faults.clear()
    return ended


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["ctrl-c", "sigterm", "sighup"]
)
@pytest.mark.variants
def test_one_signal_ends_the_run_with_the_command_that_continues_it(sweep, number):
    sweep.aws.clock.speed = 20  # the import still runs when the signal comes
    ended = stop_in(
        sweep,
        {"op": "ec2:DescribeImportSnapshotTasks", "nth": 3, "do": "delay", "seconds": 1},
        number,
    )
    assert (ended.status, ended.error) == (1, "InterruptedRunError")
    assert "import was cancelled" in ended.text
    assert "Run the same command again" in ended.text
    sweep.aws.clock.speed = 5000
    assert sweep.account().running == []
    publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent()).apply()
    assert sweep.problems() == []


def test_two_signals_end_the_run_at_once(sweep):
    hang = {"op": "s3:UploadPart", "do": "hang", "seconds": 10_000}  # longer than any test may take
    ended = stop_in(sweep, hang, signal.SIGINT, signal.SIGINT)
    assert ended.status == -signal.SIGINT
    publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent()).apply()
    assert sweep.problems() == []
