"""Publish many times while a share of all calls goes wrong, and count the right outcomes.

``just soak`` (``python -m benchmarks.soak``): 200 publishes, 5 % of the calls spoiled by one of the faults
below, seeded so that a run can be repeated. Each publish begins with an empty account. A right outcome is one
AMI with one snapshot and nothing else in the account and one row in ``amis``, after as many tries as an
operator would make (`TRIES`), each of which ended well or with an error that this package words itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.account import look, wrong_tables
from tests.faults.crash_sweep import Sweep, stage
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
    """Publish once, again as long as it fails, and return what is wrong in the end."""
    via = "direct" if number % 4 == 3 else "import"
    state = ready.clean(via)
    ready.aws.faults.seed(number)
    # Most calls match about seven of the rules.
    rules = [ready.aws.faults.add({**fault, "probability": rate / 7}) for fault in FAULTS]
    known = {name for name in vars(errors) if name.endswith("Error")} | {"BlockRefusedError"}
    ended = None
    for attempt in range(TRIES):
        (ended,) = ready.publishers.run(ready.job(state, via))
        if ended.status == 0:
            figures[f"went through at try {attempt + 1}"] += 1
            break
        figures[f"  ended with {ended.error}"] += 1
        if ended.error not in known:
            return [f"ended with {ended.error}: {ended.text}"]
    figures["calls"] += len(ready.aws.calls)
    figures["faults that struck"] += sum(rule.applied for rule in rules)
    ready.aws.faults.clear()
    if ended is None or ended.status:
        return [f"failed {TRIES} times, at last: {ended.text if ended else ''}"]
    wrong = list(look(ready.aws).leftovers())
    # Steps that failed are in the table too, so only the AMI's and the run's rows are looked at.
    found = wrong_tables(state, run_id=ended.result["run_id"], ami_id=ended.result["ami_id"])
    return wrong + [text for text in found if text.startswith("amis")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publishes", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.05, help="share of the calls that go wrong")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    options = parser.parse_args(arguments)
    figures: Counter[str] = Counter()
    seconds, right = [], 0
    with tempfile.TemporaryDirectory(prefix="vmsnix-soak-") as folder, stage(Path(folder)) as ready:
        for number in range(options.first, options.first + options.publishes):
            started = time.monotonic()
            wrong = publish(ready, number, options.rate, figures)
            seconds.append(time.monotonic() - started)
            right += not wrong
            if wrong:
                print(f"publish {number}: {'; '.join(wrong)}", flush=True)
            elif number % 20 == 19:
                print(f"{number + 1} publishes, {right} right outcomes", flush=True)
    print(f"publishes {options.publishes}, right outcomes {right}")
    for name, count in figures.items():
        print(f"{name}: {count}")
    share = 100 * figures["faults that struck"] / max(figures["calls"], 1)
    print(f"share of calls that went wrong: {share:.1f} %")
    print(f"seconds a publish: median {statistics.median(seconds):.1f}, longest {max(seconds):.1f}")
    return 0 if right == options.publishes else 1


if __name__ == "__main__":
    sys.exit(main())
