"""Jobs: their state, cancelling them, and finding them again."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import wait_until
from vmsnix_ops.errors import ParameterError
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.console import jobs
from vmsnix_ops.runbooks.console.backends import Backend
from vmsnix_ops.runbooks.console.jobs import Job, JobReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.runbooks.shelf import Shelf

    Wait = Callable[[Callable[[], object]], None]

STEPS = """
import time
from vmsnix_ops import progress
with progress.current().step("upload", total=100, unit="bytes") as step:
    step.advance(100)
    step.message("sent all of it")
print("hello", name)
"""
WAITS = """
import time
from pathlib import Path
try:
    print("under way", flush=True)
    time.sleep(300)
finally:
    Path(name).write_text("cleaned up")
"""


def start(shelf: Shelf, cell: str, given: dict[str, object]) -> Job:
    shelf.put("10-try-this.ipynb", cell)
    return jobs.start(catalog.find("try-this", shelf.folder), given, Backend())


def test_the_state_of_a_job_is_read_from_its_first_step_to_its_outcome(shelf: Shelf, wait: Wait) -> None:
    job = start(shelf, STEPS, {"name": "Ada"})
    reader = JobReader(job, os.environ)
    assert job.folder.stat().st_mode & 0o077 == 0
    wait(lambda: reader.read().outcome)
    state = reader.read()
    assert state.outcome is not None
    assert (state.outcome["status"], state.outcome["run_id"]) == ("done", job.run_id)
    (step,) = state.steps
    assert (step.event.step, step.event.kind, step.event.done) == ("upload", "finished", 100)
    assert step.notes == ["sent all of it"]
    assert "hello Ada" in state.log
    assert (state.cells_done, state.cells) == (3, 3)
    kept = json.loads(Path(state.outcome["result"]).read_text())
    assert (kept["status"], kept["parameters"]["name"]) == ("done", "Ada")
    assert jobs.running_jobs(Backend()) == []


def test_a_running_job_is_found_by_another_console_and_cleans_up_when_cancelled(
    shelf: Shelf, tmp_path: Path, wait: Wait
) -> None:
    left = tmp_path / "left"
    job = start(shelf, WAITS, {"name": str(left)})
    reader = JobReader(job, os.environ)
    wait(lambda: "under way" in reader.read().log)
    assert jobs.running_jobs(Backend()) == [job]
    assert os.getpid() not in parents(job)
    job.cancel()
    wait(lambda: reader.read().outcome)
    state = reader.read()
    assert state.cancelled
    assert state.outcome is not None
    assert state.outcome["status"] == "cancelled"
    assert left.read_text() == "cleaned up"


def processes(job: Job) -> list[int]:
    """Return the processes whose command line names a job's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            if str(job.folder).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def parents(job: Job) -> list[int]:
    """Return the process ids above the process that works in a job's folder."""
    (process,) = processes(job)
    found: list[int] = []
    while process > 1:
        stat = Path(f"/proc/{process}/stat").read_text()
        process = int(stat.rpartition(")")[2].split()[1])
        found.append(process)
    return found


def test_a_job_whose_process_was_killed_has_failed(shelf: Shelf) -> None:
    job = start(shelf, WAITS, {})
    # Its command line names the folder only once the child has executed the program.
    (process,) = wait_until(lambda: processes(job), "the process of the job")
    os.kill(process, signal.SIGKILL)
    reader = JobReader(job, os.environ)
    outcome = wait_until(lambda: reader.read().outcome, "the outcome of a killed run")
    assert outcome["status"] == "failed"
    assert "without a result" in outcome["error"]["what"]


def test_an_invalid_parameter_starts_no_job(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="count"):
        start(shelf, STEPS, {"count": "many"})
    assert not (tmp_path / "state" / "console").exists()


def test_the_folder_of_an_old_job_is_deleted_after_a_day(shelf: Shelf, tmp_path: Path) -> None:
    for name, age in (("old", jobs.KEEP_SECONDS + 60), ("young", 60)):
        folder = tmp_path / "state" / "console" / name
        folder.mkdir(parents=True)
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    assert jobs.running_jobs(Backend()) == []
    assert [path.name for path in (tmp_path / "state" / "console").iterdir()] == ["young"]


def test_secrets_in_messages_of_a_step_are_not_shown(shelf: Shelf, tmp_path: Path) -> None:
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    job = Job("id", "try-this", "Try", {}, tmp_path, tmp_path, 0.0)
    event = {"step": "upload", "kind": "message", "message": f"with {secret}", "at": 1.0}
    (tmp_path / jobs.EVENTS).write_text(json.dumps(event) + "\n" + json.dumps(event)[:20])
    (step,) = JobReader(job, {"AWS_SECRET_ACCESS_KEY": secret}).read().steps
    assert secret not in step.notes[0]
    assert step.notes[0].startswith("with ")
