"""Ctrl-C in each step: the process ends with one clear error, and the next run with one AMI."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support import wait_until

BUCKET, REGION = "vmsnix-images", "us-east-1"
PUBLISHER = """
import sys
from vmsnix_ops import errors, publish
try:
    publish.plan(image=sys.argv[1], region="us-east-1", bucket="vmsnix-images").apply()
except errors.InterruptedRunError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def interrupt_when(fault, image) -> subprocess.CompletedProcess[str]:
    """Publish in a process of its own, and press Ctrl-C in the middle of the call that the fault delays."""
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(image)], env=os.environ, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: fault.applied or process.poll() is not None, "the delayed call")
    assert fault.applied, process.communicate(timeout=60)[1]
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, "", stderr)


@pytest.mark.parametrize(
    ("slow", "text"),
    [
        (
            {"op": "s3:UploadPart", "do": "delay", "when": "after", "seconds": 1},
            "uploaded parts are kept",
        ),
        (
            {"op": "ec2:ImportSnapshot", "do": "delay", "when": "after", "seconds": 1},
            "import was cancelled",
        ),
        (
            {"op": "ec2:RegisterImage", "do": "delay", "when": "after", "seconds": 2},
            "snapshot is kept",
        ),
    ],
)
@pytest.mark.variants(seconds=9)
def test_after_ctrl_c_the_next_run_continues(aws, plan, image, left, slow, text):
    fast = aws.clock.speed
    if slow["op"] == "ec2:ImportSnapshot":
        aws.clock.speed = 1.0  # then an import takes minutes, and still runs when it is stopped
    ended = interrupt_when(aws.faults.add(slow), image)
    aws.clock.speed = fast
    assert ended.returncode == 1
    assert text in ended.stderr
    assert "Run the same command again" in ended.stderr
    assert left().running == []
    aws.faults.clear()
    result = plan().apply()
    there = left()
    assert there.amis == [result.ami_id]
    assert there.snapshots == [result.snapshot_id]
    assert (there.objects, there.uploads, there.running) == ([], [], [])
