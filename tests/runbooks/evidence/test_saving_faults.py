"""A run continues when evidence cannot be saved; it ends partial and lists what is missing."""

from __future__ import annotations

import errno
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.command_line import run_vmsnix
from tests.runbooks.execution.test_signals import PROGRAM, ROOT, WAITS
from tests.support import killed_after
from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.redaction import Redactor
from vmsnix_ops.runbooks.evidence import archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from tests.runbooks.shelf import Shelf

    RunVmsnix = Any

__all__ = ["run_vmsnix"]
WORK = """
from pathlib import Path
import os
worked = Path(os.environ["WORKED"])
print("first line", flush=True)
worked.write_text("first")
"""
GOES_ON = """
print("x" * 200_000, flush=True)
worked.write_text("second")
"""
REMOVE_FOLDER = "import shutil; shutil.rmtree(os.environ['VMSNIX_RUN_DIR'])"
REPLACE_FOLDER = REMOVE_FOLDER + "\nPath(os.environ['VMSNIX_RUN_DIR']).write_text('in the way')"
FILL_DISK = """
with suppress(OSError), open(os.environ["VMSNIX_RUN_DIR"] + "/filler", "wb") as filler:
    while True:
        filler.write(bytes(65536))
        filler.flush()
"""


@pytest.fixture
def worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "worked"
    monkeypatch.setenv("WORKED", str(path))
    return path


@pytest.mark.parametrize("fault", [REMOVE_FOLDER, REPLACE_FOLDER], ids=["removed", "replaced"])
@pytest.mark.variants(seconds=2)
def test_a_run_whose_folder_is_deleted_continues_and_ends_partial(
    shelf: Shelf, worked: Path, fault: str
) -> None:
    outcome = shelf.run(WORK, fault, GOES_ON)
    assert worked.read_text() == "second"
    assert outcome.exit_code == 3
    assert outcome.problems
    assert "first line" in shelf.screen.getvalue()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, check=False, capture_output=True, timeout=120).returncode
    ):
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=120)


def test_a_run_on_a_full_disk_continues_and_ends_partial(
    shelf: Shelf, worked: Path, small_disk: Path
) -> None:
    shelf.archive = small_disk / "archive"
    outcome = shelf.run("from contextlib import suppress\n" + WORK, FILL_DISK, GOES_ON)
    assert worked.read_text() == "second"
    assert outcome.exit_code == 3
    assert any(os.strerror(errno.ENOSPC) in problem for problem in outcome.problems)
    assert not any("Errno" in problem for problem in outcome.problems)
    # The first entry is complete: the full disk has damaged nothing.
    entry = json.loads((shelf.archive / outcome.run_id / "result.json").read_text())
    assert entry["run_id"] == outcome.run_id


def test_a_run_that_cannot_begin_on_a_full_disk_is_refused_and_leaves_no_folder(
    shelf: Shelf, small_disk: Path
) -> None:
    shelf.archive = small_disk / "archive"
    shelf.archive.mkdir()
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):  # ends: the disk is full
            pass
    with pytest.raises(ArchiveError, match=r"No space left.*Free disk space"):
        shelf.run("print('never')")
    assert list(shelf.archive.iterdir()) == []


OBSTACLE = """
import os
with suppress(FileNotFoundError):
    os.remove(f"{os.environ['VMSNIX_RUN_DIR']}/{name}")
os.mkdir(f"{os.environ['VMSNIX_RUN_DIR']}/{name}")
"""


@pytest.mark.parametrize("name", ["report.html", "notebook.ipynb"])
@pytest.mark.variants
def test_repair_creates_a_missing_report_and_reports_a_lost_notebook_once(
    shelf: Shelf, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("VMSNIX_ARCHIVE", str(shelf.archive))
    outcome = shelf.run(
        "from contextlib import suppress\nprint('first line')", OBSTACLE, given={"name": name}
    )
    assert outcome.exit_code == 3
    folder = shelf.archive / outcome.run_id
    (folder / name).rmdir()
    lost = name == "notebook.ipynb"
    code, shown, _ = run_vmsnix("runs", "repair")
    assert (code, "notebook is incomplete" in shown) == ((3, True) if lost else (0, False))
    entry = json.loads((folder / "result.json").read_text())
    assert (entry["exit_code"], bool(entry["problems"])) == ((3, True) if lost else (0, False))
    assert "first line" in (folder / "report.html").read_text()
    assert entry["report"] == str(folder / "report.html")
    assert "No runs to" in run_vmsnix("runs", "repair")[1]


def test_a_file_with_a_secret_that_cannot_be_rewritten_on_a_full_disk_is_deleted(small_disk: Path) -> None:
    secret = "Zq7/hunter+Xk29=pL0"
    folder = archive.RunFolder("one", small_disk / "run", "", {}, Redactor((secret,)))
    folder.local.mkdir()
    folder.path("large.txt").write_text(secret + "x" * 600_000)  # no room for a second file
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):  # ends: the disk is full
            pass
    assert folder.redact() == []
    assert folder.path("large.txt").read_text() == (
        "[secret removed: secret of the environment]" + "x" * 600_000
    )


def start(shelf: Shelf, *, stdout: int | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("print(outcome.result, flush=True)\n", ""),
         str(shelf.folder), str(shelf.archive)],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "VMSNIX_STATE": str(shelf.archive.parent / "state")},
    )  # fmt: skip


def test_a_reader_that_closes_the_output_stops_no_run(shelf: Shelf, worked: Path) -> None:
    shelf.put("10-try-this.ipynb", WORK, GOES_ON, GOES_ON)
    process = start(shelf, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with killed_after(process):
        assert b"first line" in process.stdout.readline()  # ends: with the program
    process.stdout.close()  # like `| head -1`
    _, complained = process.communicate(timeout=120)
    assert worked.read_text() == "second"
    assert process.returncode == 3
    assert b"Traceback" not in complained
    (folder,) = shelf.archive.glob("*/")
    entry = json.loads((folder / "result.json").read_text())
    assert entry["status"] == "partial"
    assert any(os.strerror(errno.EPIPE) in problem for problem in entry["problems"])
    assert "x" * 1000 in (folder / "log.txt").read_text()


def test_a_run_whose_terminal_is_closed_cleans_up_and_keeps_the_evidence(shelf: Shelf) -> None:
    shelf.put("10-try-this.ipynb", WAITS, "print('never')")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ["VMSNIX_STATE"] = str(shelf.archive.parent / "state")
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, str(shelf.folder), str(shelf.archive)])
    try:
        wait_for_words(terminal, b"under way")
    finally:
        os.close(terminal)  # the kernel sends SIGHUP, and every write to the terminal fails from now on
        ended = wait_for_end(child)
    assert ended is not None
    (folder,) = shelf.archive.glob("*/")
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "cancelled"
    assert "cleaned up" in (folder / "notebook.ipynb").read_text()


def test_a_command_works_with_closed_standard_streams(shelf: Shelf, worked: Path) -> None:
    shelf.put("10-try-this.ipynb", WORK, GOES_ON)
    program = f"""
import sys
from pathlib import Path
from vmsnix_ops.cli import main
from tests.runbooks.shelf import replace_package
replace_package(Path({str(shelf.folder)!r}))
sys.exit(main(["run", "try-this"]))
"""
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program],
        cwd=ROOT,
        env={**os.environ, "VMSNIX_STATE": str(shelf.archive.parent / "state")},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert worked.read_text() == "second"


@pytest.mark.parametrize("output", ["| head -1", "> /dev/full"])
@pytest.mark.variants
def test_a_run_whose_output_could_not_be_written_ends_partial(
    shelf: Shelf, worked: Path, output: str, tmp_path: Path
) -> None:
    shelf.put("10-try-this.ipynb", WORK, GOES_ON)
    program = f"""
import sys
from pathlib import Path
from vmsnix_ops.cli import main
from tests.runbooks.shelf import replace_package
replace_package(Path({str(shelf.folder)!r}))
sys.exit(main(["run", "try-this"]))
"""
    code = tmp_path / "code"
    done = subprocess.run(
        ["sh", "-c", f'{{ "$0" -c "$1"; echo $? > {code}; }} {output}', sys.executable, program],
        cwd=ROOT,
        env={**os.environ, "VMSNIX_STATE": str(shelf.archive.parent / "state")},
        timeout=120,
        check=False,
        capture_output=True,
    )
    assert code.read_text().strip() == "3"
    assert worked.read_text() == "second"
    assert b"Traceback" not in done.stderr
    # Standard error gets what standard output could not.
    assert b"try-this partial in" in done.stderr
    assert b"result.json" in done.stderr
    assert b"The output display stopped early: " in done.stderr


def wait_for_words(terminal: int, words: bytes, *, seconds: float = 60.0) -> None:
    """Read a pseudo-terminal until it has shown the words."""
    deadline, shown = time.monotonic() + seconds, b""
    while words not in shown:  # ends: at the deadline
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"{words!r} was not shown within {seconds} s: {shown!r}"
        shown += os.read(terminal, 4096)


def wait_for_end(child: int, *, seconds: float = 60.0) -> int | None:
    """Return the wait status of a child process; kill it and return None when it does not end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:  # ends: at the deadline
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)  # ends: it was killed
    return None
