"""Compare the audit of a large account with plain boto3 that reads the same lists.

``python -m benchmarks.inventory`` fills a sandbox in a process of its own (by default 20 regions of 5,000
AMIs) and measures, each in a new process:

*paging*  boto3's paginators over the same lists with the same number of threads; the pages are dropped.
*audit*   `vmsnix_ops.audit.inventory.scan` and all findings, in memory.

The aims: the audit takes at most 1.2 times as long as the paging, and less than 1 GiB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
THREADS = 8
MOST_RATIO, MOST_MIB = 1.2, 1024
LARGE = 100_000


def serve(regions: int, amis: int) -> None:
    """Serve a filled sandbox until the parent closes standard input."""
    from tests.large_account import REGIONS, populate
    from vmsnix_ops.sandbox import sandbox

    with sandbox() as aws:
        made = populate(aws, regions=REGIONS[:regions], amis=amis)
        ready = {"environment": aws.environment, "amis": made.amis, "referenced": made.referenced}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


def page(regions: list[str]) -> dict[str, Any]:
    """Read with plain boto3 everything that the audit reads."""
    import boto3

    started = time.monotonic()
    session = boto3.Session()
    clients = [
        tuple(session.client(service, region_name=region) for service in ("ec2", "autoscaling", "ssm"))
        for region in regions
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        counts = list(pool.map(_page_region, clients))
    return {"seconds": time.monotonic() - started, "amis": sum(counts)}


def _page_region(clients: tuple[Any, Any, Any]) -> int:
    ec2, autoscaling, ssm = clients

    def count(client: Any, operation: str, member: str, size: int = 1000, **request: Any) -> int:
        pages = client.get_paginator(operation).paginate(**request, PaginationConfig={"PageSize": size})
        return sum(len(page[member]) for page in pages)

    count(ec2, "describe_snapshots", "Snapshots", OwnerIds=["self"])
    images = {"Owners": ["self"], "IncludeDisabled": True, "IncludeDeprecated": True}
    amis = count(ec2, "describe_images", "Images", **images)
    count(ec2, "describe_import_snapshot_tasks", "ImportSnapshotTasks")
    count(ec2, "describe_instances", "Reservations")
    templates = [
        template["LaunchTemplateId"]
        for page in ec2.get_paginator("describe_launch_templates").paginate()
        for template in page["LaunchTemplates"]
    ]
    for template in templates:
        versions = "describe_launch_template_versions", "LaunchTemplateVersions"
        count(ec2, *versions, 200, LaunchTemplateId=template)
    count(autoscaling, "describe_launch_configurations", "LaunchConfigurations", 100)
    count(autoscaling, "describe_auto_scaling_groups", "AutoScalingGroups", 100)
    names = [
        one["Name"]
        for page in ssm.get_paginator("describe_parameters").paginate()
        for one in page["Parameters"]
    ]
    for start in range(0, len(names), 10):
        ssm.get_parameters(Names=names[start : start + 10])
    return amis


def audit(regions: list[str]) -> dict[str, Any]:
    """Scan all regions, and evaluate all findings."""
    from vmsnix_ops.audit import inventory, rules

    started = time.monotonic()
    found = inventory.scan(regions=regions, one_by_one="no")
    scanned, scan_peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    findings = rules.evaluate(found)
    ended = time.monotonic()
    return {
        "seconds": ended - started,
        "scan_seconds": scanned - started,
        "findings_seconds": ended - scanned,
        "scan_peak_mib": scan_peak / 1024,
        "amis": len(found.amis),
        "rows": len(found.frame),
        "referenced": int(found.amis["referenced"].fillna(value=False).sum()),
        "findings": len(findings),
        "unread": len(found.unread),
    }


def measured(work: str, regions: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Measure `page` or `audit` in a new process, and return its figures."""
    with tempfile.TemporaryDirectory() as state:
        more = {"VMSNIX_STATE": state, "VMSNIX_PROGRESS": "silent"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.inventory", "--work", work, "--names", ",".join(regions)],
            cwd=FOLDER, env={**os.environ, **environment, **more},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print the figures, and check the aims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--regions", type=int, default=20, help="number of regions")
    parser.add_argument("--amis", type=int, default=5000, help="AMIs in each region")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds; the fastest counts")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--work", choices=["serve", "paging", "audit"], help=argparse.SUPPRESS)
    parser.add_argument("--names", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work == "serve":
        serve(options.regions, options.amis)
    elif options.work:
        work = {"paging": page, "audit": audit}[options.work]
        found = work(options.names.split(","))
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found["cpu_seconds"] = time.process_time()
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Run paging and audit in turn, and print the fastest round of each."""
    from tests.large_account import REGIONS

    command = [sys.executable, "-m", "benchmarks.inventory", "--work", "serve"]
    command += ["--regions", str(options.regions), "--amis", str(options.amis)]
    server = subprocess.Popen(command, cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        ready = json.loads(server.stdout.readline() if server.stdout else "")
        regions = list(REGIONS[: options.regions])
        rounds = [
            {work: measured(work, regions, ready["environment"]) for work in ("paging", "audit")}
            for _ in range(options.rounds)
        ]
    finally:
        server.communicate()
    best = {
        work: min((one[work] for one in rounds), key=lambda f: f["seconds"]) for work in ("paging", "audit")
    }
    ratio = best["audit"]["seconds"] / best["paging"]["seconds"]
    cpu = best["audit"]["cpu_seconds"] / best["paging"]["cpu_seconds"]
    for work, figures in best.items():
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value:.1f}" if isinstance(value, float) else f"{name} {value:,}"
            for name, value in figures.items()
        )
        print(f"{work:8} {shown}")
    print(f"ratio    {ratio:.2f} of the paging's time (aim: at most {MOST_RATIO}), {cpu:.2f} of its CPU time")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "best": best, "ratio": ratio}, indent=1))
    assert best["audit"]["amis"] == best["paging"]["amis"] == ready["amis"]
    assert best["audit"]["referenced"] == ready["referenced"]
    if ready["amis"] < LARGE:
        print(f"Aims not checked: below {LARGE:,} AMIs the imports of pandas and arrow take most time.")
    elif ratio > MOST_RATIO or best["audit"]["peak_mib"] > MOST_MIB:
        raise SystemExit("The audit does not reach the aims.")


if __name__ == "__main__":
    main()
