"""Publish many times while some of the calls fail, and count the correct outcomes.

``just soak`` (``python -m benchmarks.soak``) publishes 200 times. One of the faults below spoils each of 5 %
of the calls; the faults follow from a seed, so a run can be repeated. Each publish starts with an empty
account and is tried up to `TRIES` times, as an operator would. The outcome is correct if the account then has
one AMI with one snapshot and nothing else, ``amis`` has one row, and every failed try ended with an error of
`vmsnix_ops.errors`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.account import read_account, table_problems
from tests.faults.crash_sweep import Sweep, open_sweep
from vmsnix_ops import errors

TRIES = 5
FAULTS = (
    {"op": "ec2:*", "do": "error", "code": "RequestLimitExceeded", "http": 503},
    {"op": "s3:*", "do": "error", "code": "SlowDown", "http": 503},
    {"op": "*", "do": "error", "code": "InternalError", "http": 500},
    {"op": "*", "do": "error", "code": "ServiceUnavailable", "http": 503},
    {"op": "*", "do": "drop", "when": "before"},
    {"op": "*", "do": "drop", "when": "after"},
    {"op": "*", "do": "reset", "when": "after"},
    {"op": "s3:UploadPart", "do": "reset", "when": "body", "of": "request", "keep": 65536},
    {"op": "ec2:Describe*", "do": "drop", "when": "body", "keep": 100},
    {"op": "*", "do": "delay", "seconds": 0.2},
    {"op": "ec2:DescribeImportSnapshotTasks", "do": "blank", "fields": ["Progress", "StatusMessage"]},
    {
        "op": "ec2:ImportSnapshot",
        "do": "outcome",
        "outcome": {"status_message": "SERVER_ERROR : conversion : AWS initiated task cancellation"},
    },
    {"op": "ec2:RegisterImage", "do": "error", "code": "InvalidSnapshot.NotFound", "http": 400},
    {"op": "ec2:*", "do": "error", "code": "RequestExpired", "http": 400},
    {"op": "ebs:*", "do": "error", "code": "RequestThrottledException", "http": 400},
)


def publish(ready: Sweep, number: int, rate: float, figures: Counter[str]) -> list[str]:
    """Publish until a try succeeds, and return what is wrong afterwards."""
    via = "direct" if number % 4 == 3 else "import"
    state = ready.clean(via)
    ready.aws.faults.seed(number)
    # About seven of the rules match each call.
    rules = [ready.aws.faults.add({**fault, "probability": rate / 7}) for fault in FAULTS]
    known = {name for name in vars(errors) if name.endswith("Error")} | {"BlockRefusedError"}
    ended = None
    for attempt in range(TRIES):
        (ended,) = ready.publishers.run(ready.job(state, via))
        if ended.status == 0:
            figures[f"succeeded at try {attempt + 1}"] += 1
            break
        figures[f"  ended with {ended.error}"] += 1
        if ended.error not in known:
            return [f"ended with {ended.error}: {ended.text}"]
    figures["calls"] += len(ready.aws.calls)
    figures["applied faults"] += sum(rule.applied for rule in rules)
    ready.aws.faults.clear()
    if ended is None or ended.status:
        return [f"failed {TRIES} times; the last error: {ended.text if ended else ''}"]
    wrong = list(read_account(ready.aws).problems())
    # The table of steps has failed steps too, so only the rows of `amis` are checked.
    found = table_problems(state, run_id=ended.result["run_id"], ami_id=ended.result["ami_id"])
    return wrong + [text for text in found if text.startswith("amis")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publishes", type=int, default=200, help="number of publishes")
    parser.add_argument("--rate", type=float, default=0.05, help="share of the calls that fail")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    options = parser.parse_args(arguments)
    figures: Counter[str] = Counter()
    seconds, right = [], 0
    with tempfile.TemporaryDirectory(prefix="vmsnix-soak-") as folder, open_sweep(Path(folder)) as ready:
        for number in range(options.first, options.first + options.publishes):
            started = time.monotonic()
            wrong = publish(ready, number, options.rate, figures)
            seconds.append(time.monotonic() - started)
            right += not wrong
            if wrong:
                print(f"publish {number}: {'; '.join(wrong)}", flush=True)
            elif number % 20 == 19:
                print(f"{number + 1} publishes, {right} correct", flush=True)
    print(f"publishes: {options.publishes}, correct: {right}")
    for name, count in figures.items():
        print(f"{name}: {count}")
    share = 100 * figures["applied faults"] / max(figures["calls"], 1)
    print(f"share of calls that failed: {share:.1f} %")
    print(f"seconds per publish: median {statistics.median(seconds):.1f}, longest {max(seconds):.1f}")
    return 0 if right == options.publishes else 1


if __name__ == "__main__":
    sys.exit(main())
