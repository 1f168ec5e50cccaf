"""Judge the probe's answers: which share of them the sandbox must give truly.

Usage: python .ci/probe_totals.py PROBE.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

SERVICES = {"s3": "S3", "ec2": "EC2", "ebs": "EBS direct"}
AT_LEAST = {"S3": 27, "EC2": 45, "IAM, STS, SSM, keys": 7}


def main(path: Path) -> int:
    """Print the totals; return 1 when one is too low."""
    true: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for verdict, question, _ in json.loads(path.read_text(encoding="utf-8")):
        service = SERVICES.get(question.split()[0], "IAM, STS, SSM, keys")
        asked[service] += 1
        true[service] += verdict == "OK"
    for service, count in asked.items():
        sys.stdout.write(f"{service}: {true[service]} of {count}, wanted {AT_LEAST.get(service, 0)}\n")
    return int(any(true[service] < wanted for service, wanted in AT_LEAST.items()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
