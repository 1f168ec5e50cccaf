"""Run the tests that depend most on timing again and again, while busy loops take the machine's time.

Usage: python -m tests.stress [--times 50] [--busy 2] [TEST ...]
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIMING = (
    "tests/runbooks/console/test_jobs.py",
    "tests/runbooks/execution/test_signals.py",
    "tests/runbooks/execution/test_execute.py::test_an_interrupt_lets_the_notebook_clean_up",
    "tests/runbooks/execution/test_execute.py::test_a_notebook_that_does_not_stop_is_stopped",
    "tests/runbooks/fleet/test_fleet.py::test_a_worker_that_is_killed_loses_nothing",
    "tests/runbooks/fleet/test_fleet.py::test_a_fleet_that_is_asked_to_stop_lets_its_runs_clean_up",
    "tests/runbooks/fleet/test_kills.py::"
    "test_whatever_is_killed_starting_again_finishes_the_rest_and_doubles_nothing[0-3]",
    "tests/runbooks/fleet/test_ledger.py",
    "tests/runbooks/fleet/test_task.py",
    "tests/publish/test_interrupts.py",
    "tests/faults/test_stopping.py",
    "tests/aws/ebs_direct/test_resume.py",
    "tests/aws/ebs_direct/test_faults.py",
    "tests/aws/ebs_direct/test_reading.py::test_a_killed_download_goes_on",
    "tests/aws/test_paging.py::test_who_waits_is_stopped_at_once",
    "tests/records/test_tables.py::test_readers_never_stumble_over_the_first_commit",
    "tests/records/test_tables.py::test_many_processes_lose_nothing_and_double_nothing[3-10]",
    "tests/records/test_tables_on_s3.py::test_many_processes_lose_nothing_and_double_nothing_on_s3[3-5-3]",
    "tests/nix/test_command.py",
    "tests/boot/test_boot.py::test_no_machine_outlives_its_test",
    "tests/sandbox/test_state.py::test_serving_in_the_foreground_prints_exports_and_stops_cleanly",
)
"""The tests that depend most on timing: signals, kills, leases and races."""


def burn() -> None:
    """Take a processor's time for ever."""
    while True:  # ends: its parent kills it
        pass


def once(tests: list[str]) -> list[str]:
    """Run the tests once and return the lines of those that failed."""
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-rfE", "--no-header", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *tests], cwd=ROOT, capture_output=True, text=True, timeout=300 * 60, check=False
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed or ([done.stdout[-2000:] + done.stderr[-2000:]] if done.returncode else [])


def main(arguments: list[str] | None = None) -> int:
    """Run them and print how often each failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tests", nargs="*", default=list(TIMING), help="tests, as pytest takes them")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--busy", type=int, default=2, help="busy loops beside the tests")
    options = parser.parse_args(arguments)
    loops = [multiprocessing.Process(target=burn, daemon=True) for _ in range(options.busy)]
    for loop in loops:
        loop.start()
    failed: Counter[str] = Counter()
    for number in range(1, options.times + 1):
        found = once(options.tests)
        failed.update(line.split(" - ")[0] for line in found)
        print(f"{number}/{options.times}: {len(found)} failed", *found, sep="\n", flush=True)
    for loop in loops:
        loop.kill()
    for line, count in failed.most_common():
        print(f"{count} of {options.times}: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
