"""Running a runbook: its status, its evidence, and known problems of papermill."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import join, wait_until
from vmsnix_ops.errors import ArchiveError, ParameterError, RunError, UnknownRunbookError
from vmsnix_ops.records.result import KEYS
from vmsnix_ops.runbooks.execution import _engine
from vmsnix_ops.runbooks.execution._interrupts import Interrupter
from vmsnix_ops.runbooks.execution._output import OutputLimits
from vmsnix_ops.runbooks.execution.execute import run

if TYPE_CHECKING:
    from tests.runbooks.shelf import Shelf
    from vmsnix_ops.progress import Event


def test_a_run_leaves_notebook_report_result_and_log(shelf: Shelf) -> None:
    outcome = shelf.run("print(f'hello {name}')", "6 * 7", given={"name": "Ada"})
    assert (outcome.status, outcome.exit_code, outcome.error) == ("done", 0, None)
    folder = shelf.archive / outcome.run_id
    assert sorted(path.name for path in folder.iterdir()) == [
        "evidence.jsonl",
        "log.txt",
        "notebook.ipynb",
        "report.html",
        "result.json",
    ]
    assert "hello Ada" in shelf.outputs(outcome)
    assert "hello Ada" in Path(outcome.report).read_text()
    assert "hello Ada\n42\n" in Path(outcome.log).read_text()
    assert "hello Ada" in shelf.screen.getvalue()
    result = json.loads(Path(outcome.result).read_text())
    assert result == outcome.values
    assert result["status"] == "done"
    assert result["parameters"] == {"name": "Ada", "account": "", "count": 1, "loud": False}
    assert result["report"] == outcome.report
    assert result.keys() >= KEYS.keys()
    assert [
        key for key, value in result.items() if value is not None and not isinstance(value, KEYS[key][0])
    ] == []
    assert set(result["files"]) == {"evidence.jsonl", "log.txt", "notebook.ipynb", "report.html"}
    for kept in result["files"].values():
        assert hashlib.sha256(Path(kept["place"]).read_bytes()).hexdigest() == kept["sha256"]


def test_the_committed_notebook_is_not_touched(shelf: Shelf) -> None:
    path = shelf.put("10-try-this.ipynb", "print('x')")
    before = path.read_bytes()
    run("try-this", folder=shelf.folder, archive=shelf.archive, record=False)
    assert path.read_bytes() == before


def test_values_that_the_notebook_wrote_to_result_json_are_kept(shelf: Shelf) -> None:
    outcome = shelf.run(
        "from vmsnix_ops.records.result import write_result\n"
        "from vmsnix_ops.records.run_context import current_run\n"
        "write_result(current_run(), {'status': 'done', 'ami_id': 'ami-1', 'steps': [], 'seconds': 0.1})"
    )
    assert outcome.values["ami_id"] == "ami-1"
    assert outcome.values["steps"] == []
    assert outcome.values["run_id"] == outcome.run_id
    assert outcome.values["runbook"] == "try-this"


def test_cells_that_never_ran_do_not_count_as_completed(shelf: Shelf) -> None:
    # papermill saves this run as completed, without an exception.
    outcome = shelf.run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "print('never')")
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert outcome.error is not None
    assert outcome.error.type == "DeadKernelError"
    assert "memory" in outcome.error.why
    assert Path(outcome.report).is_file()
    assert shelf.executed(outcome)["cells"][-1]["execution_count"] is None


def test_parameters_arrive_with_their_declared_types(shelf: Shelf) -> None:
    outcome = shelf.run(
        "print([loud, account, count])", given={"loud": "false", "account": "012345678901", "count": "3"}
    )
    assert "[False, '012345678901', 3]" in shelf.screen.getvalue()
    assert outcome.values["parameters"]["account"] == "012345678901"


def test_the_kernel_ends_quickly_and_prints_no_warning_about_encryption(
    shelf: Shelf, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = shelf.run("print('x')")
    assert outcome.status == "done"
    printed = capfd.readouterr()
    assert "encryption" not in printed.out + printed.err + Path(outcome.log).read_text()
    assert _engine.SHUTDOWN_SECONDS == 1.0


def test_relative_paths_start_at_the_given_folder(shelf: Shelf, tmp_path: Path) -> None:
    before = Path.cwd()
    shelf.run("import os\nprint(os.getcwd())", cwd=tmp_path)
    assert shelf.screen.getvalue().strip() == str(tmp_path)
    assert Path.cwd() == before


def test_without_a_folder_relative_paths_start_at_the_working_directory(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shelf.run("import os\nprint(os.getcwd())")
    assert shelf.screen.getvalue().strip() == str(tmp_path)


@pytest.mark.parametrize("code", [0, 7])
@pytest.mark.variants
def test_a_notebook_that_exits_has_not_done_its_job(shelf: Shelf, code: int) -> None:
    outcome = shelf.run(f"import sys\nsys.exit({code})", "print('never')")
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert outcome.error is not None
    assert f"sys.exit({code})" in outcome.error.what
    assert "never\n" not in shelf.screen.getvalue()


def test_a_notebook_that_reads_input_fails_instead_of_waiting(shelf: Shelf) -> None:
    outcome = shelf.run("input('Sure?')")
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.type == "StdinNotImplementedError"


def test_progress_is_shown_as_plain_lines(shelf: Shelf) -> None:
    shelf.run(
        "from vmsnix_ops.progress import current\n"
        "with current().step('upload', total=2, unit='bytes') as step:\n    step.advance(2)"
    )
    assert "upload ...\nupload finished in " in shelf.screen.getvalue()


def test_the_callback_gets_events_and_the_evidence_gets_lines(shelf: Shelf) -> None:
    seen: list[Event] = []
    outcome = shelf.run(
        "from vmsnix_ops.progress import current\n"
        "print('before')\n"
        "with current().step('upload', total=10, unit='bytes') as step:\n"
        "    step.advance(4)\n"
        "    step.message('ghp_' + 'a' * 36)\n"
        "print('after')",
        on_event=seen.append,
    )
    assert [(event.step, event.kind) for event in seen] == [
        ("upload", kind) for kind in ("started", "advanced", "message", "finished")
    ]
    assert seen[1].done == 4
    assert "[secret removed" in seen[2].message
    assert shelf.screen.getvalue().startswith("before\nafter\n")
    log = Path(outcome.log).read_text()
    assert (
        log.index("before\n")
        < log.index("upload ...\n")
        < log.index("upload finished")
        < log.index("after\n")
    )
    assert "upload finished" in shelf.outputs(outcome)
    assert "application/vnd" not in Path(outcome.notebook).read_text()


def test_progress_from_other_threads_and_processes_is_kept(shelf: Shelf) -> None:
    outcome = shelf.run(
        "import subprocess, sys, threading\n"
        "from vmsnix_ops.progress import current\n"
        "def work():\n"
        "    with current().step('aside'): pass\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()",
        "program = 'from vmsnix_ops.progress import current\\nwith current().step(\"child\"): pass'\n"
        "done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)\n"
        "print(done.stdout)",
    )
    log = Path(outcome.log).read_text()
    assert "aside finished" in log
    assert "child finished" in log


TABLE = {
    "text/plain": "\n".join(f"row {number}" for number in range(50)),
    "text/html": '<table class="dataframe"></table>',
}
"""A frame of pandas as a cell displays it."""


def test_output_is_limited_to_its_beginning_and_end(shelf: Shelf) -> None:
    limits = OutputLimits(cell=1000, notebook=5000, display=2000, log=3000)
    outcome = shelf.run(
        "for number in range(20_000):\n    print(f'line {number}')",
        "print('y' * 100_000)",
        "from IPython.display import HTML, display\nHTML('z' * 100_000)",
        f"display({TABLE!r}, raw=True)",
        "print('the last word')",
        limits=limits,
    )
    assert outcome.status == "done"
    shown = shelf.outputs(outcome)
    assert "line 0\\n" in shown
    assert "line 19999" in shown
    assert "characters left out" in shown
    assert "characters of output left out" in shown
    assert "the last word" in shown
    assert Path(outcome.notebook).stat().st_size < 12_000
    assert Path(outcome.log).stat().st_size < 3_500
    assert "line 19999" in shelf.screen.getvalue()  # the screen shows everything printed,
    assert "row 19\n30 more lines of this table in the report.\n" in shelf.screen.getvalue()
    assert "row 49" in shown


def test_parallel_runs_do_not_disturb_each_other(shelf: Shelf) -> None:
    shelf.put("10-try-this.ipynb", "import os\nprint(name, os.environ['VMSNIX_RUN_ID'])")

    def one(number: int) -> tuple[str, str]:
        outcome = run(
            "try-this", {"name": f"n{number}"}, folder=shelf.folder, archive=shelf.archive, record=False
        )
        return outcome.status, f"n{number} {outcome.run_id}" if outcome.status == "done" else outcome.log

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(one, range(3)))
    assert [status for status, _ in results] == ["done"] * 3
    for _, expected in results:
        assert expected in (shelf.archive / expected.split()[1] / "log.txt").read_text()


def test_error_markers_do_not_shift_the_cells(shelf: Shelf) -> None:
    path = shelf.put("10-try-this.ipynb", "1 / 0", "print('never')")
    outcome = run("try-this", folder=shelf.folder, archive=shelf.archive, record=False)
    before = [cell["source"] for cell in json.loads(path.read_text())["cells"]]
    assert ["".join(cell["source"]) for cell in shelf.executed(outcome)["cells"]] == before


def test_a_kernel_that_does_not_start_is_started_again_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    right = _engine.kernels.argv

    def taken_once(*more: str) -> list[str]:
        tries.append(more)
        # The same happens when another run has taken the port of the kernel.
        return ["/bin/sh", "-c", "exit 1"] if len(tries) == 1 else right(*more)

    monkeypatch.setattr(_engine.kernels, "argv", taken_once)
    assert shelf.run("print('x')").status == "done"
    assert len(tries) == 2


def test_a_kernel_that_never_starts_fails_the_run_with_evidence(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine.kernels, "argv", lambda *_: ["/bin/sh", "-c", "exit 1"])
    outcome = shelf.run("print('x')")
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "did not start" in outcome.error.what
    assert json.loads(Path(outcome.result).read_text())["status"] == "failed"
    assert Path(outcome.report).is_file()


def test_the_kernel_is_this_interpreter_whatever_is_installed(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "jupyter" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python"], "display_name": "wrong", "language": "python"}
    (wrong / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    outcome = shelf.run("import sys\nprint(sys.executable == '" + os.sys.executable + "')")
    assert outcome.status == "done"
    assert "True" in shelf.screen.getvalue()


def test_the_log_contains_the_last_output_of_a_crashed_kernel(
    shelf: Shelf, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["/bin/sh", "-c", "echo out of luck AKIA$0 >&2; exit 1", "ABCDEFGHIJKLMNOP"]
    monkeypatch.setattr(_engine.kernels, "argv", lambda *_: command)
    log = Path(shelf.run("print('x')").log).read_text()
    assert "out of luck [secret removed: AWS access key]" in log
    assert "out of luck" not in "".join(capfd.readouterr())


def test_the_kernel_has_the_variables_of_its_run(shelf: Shelf) -> None:
    outcome = shelf.run(
        "import os\nprint(os.environ['VMSNIX_RUN_ID'], os.environ['VMSNIX_RUNBOOK'], os.environ['EXTRA'])\n"
        "print('GONE' in os.environ, os.path.isdir(os.environ['VMSNIX_RUN_DIR']))",
        environment={"EXTRA": "more", "GONE": None},
    )
    assert shelf.screen.getvalue().startswith(f"{outcome.run_id} try-this more\nFalse True")


def test_run_ids_sort_by_time_and_differ(shelf: Shelf) -> None:
    first, second = shelf.run("1"), shelf.run("2")
    assert first.run_id[:16] <= second.run_id[:16]
    assert first.run_id != second.run_id


@pytest.mark.parametrize(
    ("error", "status", "exit_code"),
    [("RoleError", "failed", 1), ("ParameterError", "failed", 2), ("PartialError", "partial", 3)],
)
@pytest.mark.variants
def test_an_error_of_vmsnix_keeps_what_why_and_fix(
    shelf: Shelf, error: str, status: str, exit_code: int
) -> None:
    outcome = shelf.run(
        "print('before')",
        f"from vmsnix_ops.errors import {error}\n"
        f"raise {error}('It broke.', why='It was old.', fix='Mend it.')",
        "print('never')",
    )
    assert (outcome.status, outcome.exit_code) == (status, exit_code)
    failure = outcome.error
    assert failure is not None
    assert (failure.type, failure.what, failure.why, failure.fix) == (
        error,
        "It broke.",
        "It was old.",
        "Mend it.",
    )
    assert failure.cell == 3
    assert "Traceback" in shelf.outputs(outcome)
    assert "Traceback" in Path(outcome.log).read_text()
    assert "Traceback" not in shelf.screen.getvalue()
    result = json.loads(Path(outcome.result).read_text())
    assert result["error"] == "It broke. It was old. Mend it."
    assert result["failure"]["fix"] == "Mend it."
    assert not (shelf.archive / outcome.run_id / ".error.json").exists()


def test_the_details_of_an_aws_error_are_kept(shelf: Shelf) -> None:
    outcome = shelf.run(
        "from vmsnix_ops.errors import RegistrationError\n"
        "raise RegistrationError('No.', code='InvalidAMIName.Duplicate', request_id='req-1')"
    )
    assert outcome.error is not None
    assert outcome.error.detail == {"code": "InvalidAMIName.Duplicate", "request_id": "req-1"}


def test_another_error_is_reported_in_one_line_with_file_and_line(shelf: Shelf) -> None:
    outcome = shelf.run("import json\njson.loads('{')")
    assert outcome.error is not None
    assert outcome.error.what.startswith("Cell 2 failed: JSONDecodeError: Expecting property name")
    assert "decoder.py" in outcome.error.why


def interrupt_at(started: Path, stopper: Interrupter) -> threading.Thread:
    """Interrupt a run when a cell has made a file; return the thread that waits for it."""

    def stop() -> None:
        wait_until(started.exists, "the start of the cell")
        stopper.interrupt()

    thread = threading.Thread(target=stop)
    thread.start()
    return thread


def test_an_interrupt_lets_the_notebook_clean_up(shelf: Shelf, tmp_path: Path) -> None:
    started, cleaned = tmp_path / "started", tmp_path / "cleaned"
    stopper = Interrupter()
    thread = interrupt_at(started, stopper)
    outcome = shelf.run(
        "import pathlib, time\n"
        f"try:\n    pathlib.Path({str(started)!r}).touch()\n    time.sleep(60)\n"
        f"finally:\n    pathlib.Path({str(cleaned)!r}).touch()\n    print('cleaned up')",
        "print('never')",
        interrupter=stopper,
    )
    join(thread)
    assert (outcome.status, outcome.exit_code) == ("cancelled", 1)
    assert cleaned.exists()
    assert "cleaned up" in shelf.outputs(outcome)
    assert outcome.error is not None
    assert outcome.error.what == "The run was interrupted in cell 2."
    assert json.loads(Path(outcome.result).read_text())["status"] == "cancelled"


def test_an_interrupt_before_the_first_cell_runs_nothing(shelf: Shelf) -> None:
    stopper = Interrupter()
    stopper.interrupt()
    outcome = shelf.run("print('never')", interrupter=stopper)
    assert outcome.status == "cancelled"
    assert shelf.screen.getvalue() == ""


def test_a_notebook_that_ignores_an_interrupt_is_killed(shelf: Shelf, tmp_path: Path) -> None:
    started = tmp_path / "started"
    stopper = Interrupter(cleanup_seconds=0.5)
    thread = interrupt_at(started, stopper)
    outcome = shelf.run(
        f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\n"
        "while True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        pass",
        interrupter=stopper,
    )
    join(thread)
    assert outcome.status == "cancelled"


@pytest.mark.parametrize("place", ["file", "folder"])
def test_an_archive_that_cannot_be_written_is_refused_before_anything_runs(
    shelf: Shelf, tmp_path: Path, place: str
) -> None:
    ran = tmp_path / "ran"
    archive = tmp_path / "taken"
    archive.touch()
    with pytest.raises(ArchiveError, match="taken"):
        shelf.run(
            f"open({str(ran)!r}, 'w').close()",
            archive=archive if place == "file" else archive / "below",
        )
    assert not ran.exists()


def test_invalid_parameters_leave_no_files(shelf: Shelf) -> None:
    shelf.put("10-try-this.ipynb", "print('x')")
    for error, name, given in (
        (UnknownRunbookError, "try-that", {}),
        (ParameterError, "try-this", {"nam": "x"}),
        (ParameterError, "try-this", {"count": "x"}),
    ):
        with pytest.raises(error):
            run(name, given, folder=shelf.folder, archive=shelf.archive, record=False)
    with pytest.raises(RunError, match="working directory"):
        run("try-this", folder=shelf.folder, archive=shelf.archive, cwd=shelf.folder / "nowhere")
    assert not shelf.archive.exists()


def test_secrets_reach_neither_notebook_nor_report_nor_result_nor_log_nor_screen(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", "no-shape-at-all-but-secret")
    outcome = shelf.run(
        "import os\nprint('key', 'AKIA' + 'ABCD' * 4)\nprint(os.environ['DEPLOY_TOKEN'])",
        "from pathlib import Path\nfolder = Path(os.environ['VMSNIX_RUN_DIR'])\n"
        "(folder / 'rows.csv').write_text('id,key\\n1,AKIA' + 'ABCD' * 4)\n"
        "(folder / 'blob.bin').write_bytes(bytes(range(256)))",
        "raise ValueError('signed with X-Amz-Signature=' + 'ab' * 32)",
    )
    texts = [
        Path(place).read_text() for place in (outcome.notebook, outcome.report, outcome.result, outcome.log)
    ]
    kept = {name: Path(file["place"]).read_bytes() for name, file in outcome.values["files"].items()}
    assert kept["rows.csv"] == b"id,key\n1,[secret removed: AWS access key]"
    assert kept["blob.bin"] == bytes(range(256))
    for text in [*texts, shelf.screen.getvalue()]:
        assert "ABCD" * 4 not in text
        assert "no-shape-at-all" not in text
        assert "ab" * 32 not in text
    assert outcome.values["secrets_removed"]


def test_a_notebook_that_damages_its_result_file_still_gets_a_result(shelf: Shelf) -> None:
    outcome = shelf.run(
        "import os, pathlib\npathlib.Path(os.environ['VMSNIX_RUN_DIR'], 'result.json').write_text('{')"
    )
    assert json.loads(Path(outcome.result).read_text())["status"] == "done"


def test_pythonstartup_does_not_run_in_an_evidence_kernel(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("print('my own start-up')\nmine = 1")
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "mine.py"))
    shelf.run("print('mine' in globals())")
    assert "False" in shelf.screen.getvalue()
    assert "my own" not in shelf.screen.getvalue()


def test_the_users_own_ipython_profile_is_not_loaded(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-mine.py").write_text("print('my own start-up')")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shelf.run("print('x')")
    assert "my own" not in shelf.screen.getvalue()
