"""Measure how many runs a fleet can do on one machine, with one, two and four workers.

``just bench-fleet`` (``python -m benchmarks.fleet``) runs the same plan with each number of workers, against
a sandbox in a process of its own. A run makes one call, which lists the AMIs of the account. So this measures
the fixed cost of a run: the start of its process and its kernel, papermill, the report, and the row in the
history. For comparison it does the same number of runs one after the other in one process, without Dask.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def plan_file(folder: Path, runs: int) -> Path:
    """Write a plan of runs that differ only in their number."""
    notebooks = folder / "notebooks"
    notebooks.mkdir(exist_ok=True)
    (notebooks / "10-list.ipynb").write_text(json.dumps(notebook()), encoding="utf-8")
    path = folder / "plan.toml"
    path.write_text(
        f'name = "benchmark"\nnotebooks = "notebooks"\n[[entry]]\nrunbook = "list"\n'
        f"matrix = {{ number = {list(range(runs))} }}\n",
        encoding="utf-8",
    )
    return path


def notebook() -> dict[str, Any]:
    """Return a runbook with one call to AWS, which lists the AMIs of the account."""

    def code(name: str, source: str, **metadata: Any) -> dict[str, Any]:
        empty: dict[str, Any] = {"outputs": [], "execution_count": None}
        return {"cell_type": "code", "id": name, "metadata": metadata, "source": source, **empty}

    source = (
        "from vmsnix_ops.aws.session import client, session\n"
        'len(client(session(), "ec2").describe_images(Owners=["self"])["Images"])'
    )
    about = {"title": "List", "description": "List the AMIs.", "side_effects": "read_only"}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "vmsnix": {"name": "list", **about},
        },
        "cells": [
            {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# List"},
            code("parameters", "number: int = 0  # number of the run", tags=["parameters"]),
            code("list", source),
        ],
    }


def run_in_turn(plan: Path, runs: int, environment: dict[str, str]) -> None:
    """Run the same runs in this process, without Dask."""
    from vmsnix_ops.runbooks.execution.execute import run

    for number in range(runs):
        outcome = run("list", {"number": number}, folder=plan.parent / "notebooks", environment=environment)
        if outcome.error is not None:
            raise SystemExit(str(outcome.error))


def run_on_workers(plan: Path, workers: int, environment: dict[str, str]) -> None:
    """Run the plan as a fleet."""
    from vmsnix_ops.progress import silent
    from vmsnix_ops.runbooks import fleet

    outcome = fleet.plan(
        plan,
        workers=workers,
        dry_run=False,
        fresh=True,
        environment=environment,
        ledger=str(plan.parent / "ledger"),
    ).apply(progress=silent())
    if outcome.status != "done":
        raise SystemExit(str(outcome.error))


def main(arguments: list[str] | None = None) -> int:
    from vmsnix_ops.sandbox import sandbox_process

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=64, help="number of runs")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of workers")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    figures: list[dict[str, Any]] = []
    print(f"{options.runs} runs, {os.cpu_count()} cores\n")
    print("| workers | s | runs per minute | CPU s per run | vs one worker |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="vmsnix-fleet-") as name, sandbox_process() as aws:
        folder = Path(name)
        os.environ["VMSNIX_STATE"] = str(folder / "state")
        environment = {**aws.environment, "VMSNIX_STATE": str(folder / "state")}
        plan = plan_file(folder, options.runs)
        for workers in (0, *options.workers):
            before = _cpu()
            started = time.monotonic()
            if workers:
                run_on_workers(plan, workers, environment)
            else:
                run_in_turn(plan, options.runs, environment)
            seconds, cpu = time.monotonic() - started, _cpu() - before
            figures.append({"workers": workers, "seconds": seconds, "cpu_seconds": cpu})
            one = next((each["seconds"] for each in figures if each["workers"] == 1), None)
            ratio = f"{one / seconds:.2f}" if one and workers else ""
            shown = str(workers) if workers else "none, one run after the other"
            per_run = f"{60 * options.runs / seconds:.0f} | {cpu / options.runs:.2f}"
            print(f"| {shown} | {seconds:.1f} | {per_run} | {ratio} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"runs": options.runs, "figures": figures}, indent=1) + "\n")
    return 0


def _cpu() -> float:
    """Return the CPU seconds of this process and of all children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


if __name__ == "__main__":
    sys.exit(main())
