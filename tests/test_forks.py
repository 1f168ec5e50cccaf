"""A forked program behaves as one that was started as usual."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import DEADLINE, kill, read_line, wait_until


@pytest.fixture(autouse=True)
def forks(request: pytest.FixtureRequest) -> None:
    if sys.platform != "linux" or request.config.getoption("--no-forks"):
        pytest.skip("programs are not forked")


MARK = "# forked\n"
DESCRIBE = f"""{MARK}
import json, os, signal, subprocess, sys, threading
handlers = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
streams = [[one.encoding, one.errors, one.line_buffering] for one in (sys.stdin, sys.stdout, sys.stderr)]
print(json.dumps({{
    "argv": sys.argv,
    "path": sys.path,
    "main": sorted(vars(sys.modules["__main__"]).keys() & {{"__name__", "json", "handlers"}}),
    "folder": os.getcwd(),
    "parent": os.getppid(),
    "session": os.getsid(0) == os.getpid(),
    "umask": os.umask(0),
    "handlers": handlers,
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "variables": dict(os.environ),
    "streams": streams,
    "input": sys.stdin.read(),
    "command": open("/proc/self/cmdline").read().strip("\\0").split("\\0"),
    "threads": threading.active_count(),
    "file": os.read(int(sys.argv[1]), 10).decode(),
}}))
"""


def run(code: str, *words: str, usual: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in Python, which is forked unless `usual`."""
    command = [sys.executable, "-c", code, *words]
    options |= {"executable": sys.executable} if usual else {}
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, **options)


@pytest.mark.parametrize("session", [False, True])
def test_a_fork_finds_what_a_program_finds(tmp_path: Path, session: bool) -> None:
    (tmp_path / "file").write_text("content")
    found = []
    for usual in (False, True):
        with (tmp_path / "file").open() as file:
            more = str(file.fileno()), "a word"
            environment = {**os.environ, "SOME": "value", "PYTHONPATH": str(Path(__file__).parents[1])}
            done = run(
                DESCRIBE,
                *more,
                usual=usual,
                cwd=tmp_path,
                env=environment,
                input="some text",
                pass_fds=[file.fileno()],
                start_new_session=session,
            )
            assert done.stderr == ""
            found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert found[0]["parent"] == os.getpid()
    assert (found[0]["input"], found[0]["file"]) == ("some text", "content")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", 0),
        ("import sys; print('out'); print('error', file=sys.stderr); sys.exit(3)", 3),
        ("raise SystemExit('a text')", 1),
        ("1 / 0", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT); input()", -signal.SIGINT),
        ("import atexit; atexit.register(print, 'at the end')", 0),
        ("import threading, time; threading.Timer(0.1, print, ['last']).start()", 0),
    ],
)
def test_a_fork_ends_as_a_program(code: str, status: int) -> None:
    forked, usual = (run(MARK + code, usual=how) for how in (False, True))
    assert forked.returncode == usual.returncode == status
    assert (forked.stdout, forked.stderr) == (usual.stdout, usual.stderr)


def test_a_fork_starts_forks_as_its_children() -> None:
    inner = f"{MARK}import os; print(os.getppid(), os.path.exists('/proc/self'))"
    outer = f"{MARK}import os, subprocess, sys; print(os.getpid(), flush=True)\n"
    outer += f"print(subprocess.run([sys.executable, '-c', {inner!r}], stdout=-1, text=True).stdout)"
    done = run(outer)
    parent, child = done.stdout.split()[:2]
    assert parent == child, done.stderr


def test_a_fork_can_be_killed_and_waited_for() -> None:
    code = f"{MARK}import sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        read_line(process, "ready")
        assert process.poll() is None
        kill(process)


def test_a_process_that_forks_is_started_again_after_it_was_killed() -> None:
    code = f"{MARK}import sys; print('pandas' in sys.modules)"
    assert run(code).stdout == "True\n"
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    (forking,) = (pid for pid in children if b"tests/forks.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(forking), signal.SIGKILL)
    assert run(code).stdout == "True\n"


def test_only_forks_have_all_libraries() -> None:
    code = f"{MARK}import sys; print('pandas' in sys.modules)"
    assert [run(code, usual=usual).stdout for usual in (False, True)] == ["True\n", "False\n"]


def test_a_fork_in_the_background_continues_without_its_starter(tmp_path: Path) -> None:
    code = f"{MARK}import os; open('parent', 'w').write(f'{{os.getppid()}}.')"
    command = ["sh", "-c", '"$@" &', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=tmp_path, check=True, timeout=DEADLINE).stdout is None
    written = tmp_path / "parent"
    wait_until(lambda: written.exists() and written.read_text().endswith("."), "the end of the program")
    assert int(written.read_text()[:-1]) not in (0, os.getpid())


def test_a_forked_kernel_ends_when_its_starter_was_killed(tmp_path: Path) -> None:
    code = f"""{MARK}
import time
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel()
client.execute_interactive("import os; open('kernel', 'w').write(f'{{os.getpid()}}.')")
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as process:
        written = tmp_path / "kernel"
        wait_until(lambda: written.exists() and written.read_text().endswith("."), "the start of the kernel")
        kill(process)
    kernel = Path(f"/proc/{written.read_text()[:-1]}")
    wait_until(lambda: not kernel.exists(), "the end of the kernel")
