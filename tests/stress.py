"""Run the tests that depend most on timing many times, while busy loops use the machine's CPU.

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
TIMING = """
tests/runbooks/console/test_jobs.py::test_a_running_job_is_found_by_another_console_and_cleans_up_when_cancelled
tests/runbooks/execution/test_signals.py::test_a_signal_lets_the_notebook_clean_up_and_keeps_the_evidence[2]
tests/runbooks/execution/test_signals.py::test_a_second_signal_stops_at_once_and_keeps_the_evidence
tests/runbooks/execution/test_signals.py::test_a_killed_run_leaves_its_files
tests/runbooks/execution/test_execute.py::test_an_interrupt_lets_the_notebook_clean_up
tests/runbooks/execution/test_execute.py::test_a_notebook_that_ignores_an_interrupt_is_killed
tests/runbooks/fleet/test_fleet.py::test_a_target_whose_process_is_killed_runs_again
tests/runbooks/fleet/test_fleet.py::test_a_stopped_fleet_lets_its_runs_clean_up
tests/runbooks/fleet/test_worker.py::test_a_worker_waits_for_a_run_on_another_machine
tests/runbooks/fleet/test_worker.py::test_only_one_of_two_workers_runs_a_target
tests/runbooks/fleet/test_worker.py::test_a_run_on_another_machine_is_taken_over_when_its_beat_does_not_change
tests/runbooks/fleet/test_ledger.py::test_the_claim_of_another_machine_is_abandoned_when_its_beat_does_not_change
tests/publish/test_interrupts.py::test_after_ctrl_c_the_next_run_continues
tests/faults/test_stopping.py::test_one_signal_ends_the_run_with_the_command_that_continues_it[sighup]
tests/faults/test_stopping.py::test_two_signals_end_the_run_at_once
tests/aws/ebs_direct/test_resume.py::test_killed_at_random_points_and_resumed[4]
tests/aws/ebs_direct/test_resume.py::test_workers_end_with_their_parent
tests/aws/ebs_direct/test_resume.py::test_no_worker_outlives_an_upload_that_is_killed
tests/aws/ebs_direct/test_resume.py::test_a_killed_upload_sends_only_what_was_not_acknowledged
tests/aws/ebs_direct/test_faults.py::test_the_ceiling_bounds_the_rate
tests/aws/ebs_direct/test_faults.py::test_a_hanging_put_is_sent_again
tests/aws/ebs_direct/test_faults.py::test_all_threads_are_active_when_they_wait_and_few_when_they_work
tests/aws/ebs_direct/test_reading.py::test_a_killed_download_is_continued
tests/aws/test_paging.py::test_stopping_a_time_limit_ends_a_wait_at_once
tests/records/test_tables.py::test_readers_never_fail_during_the_first_commit
tests/records/test_tables.py::test_simultaneous_writers_lose_and_duplicate_nothing[3-10]
tests/records/test_tables_on_s3.py::test_simultaneous_writers_lose_and_duplicate_nothing_on_s3[3-5-3]
tests/nix/test_command.py::test_a_remaining_grandchild_does_not_block
tests/boot/test_boot.py::test_qemu_ends_with_the_test
tests/sandbox/test_state.py::test_serving_in_the_foreground_prints_exports_and_stops_cleanly[15]
""".strip().splitlines()
"""The tests that depend most on timing: signals, kills, claims and races."""


def burn() -> None:
    """Use a processor until killed."""
    while True:  # ends: the parent kills it
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
    """Run the tests and print how often each failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tests", nargs="*", default=TIMING, help="tests, as pytest takes them")
    parser.add_argument("--times", type=int, default=50, help="number of runs")
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
