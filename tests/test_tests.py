"""Rules for the tests themselves: each belongs to a part, and each wait and each test ends."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import parts, stress
from tests.support import require

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
ROOT = HERE.parent
ENDLESS = {"wait", "join", "result", "get", "acquire", "communicate", "lock"}
"""Methods that may wait for ever when they are called without an argument."""
WAITING = {"sleep", "wait", "recv", "readline", "accept", "is_set", "poll"}
"""Calls with which a loop waits for something outside."""
NEED_TIMEOUT = {"run", "call", "check_call", "check_output", "urlopen", "create_connection", "HTTPConnection"}
MODULES = {"subprocess", "request", "urllib.request", "socket", "http.client", ""}


def test_every_folder_of_tests_belongs_to_a_part() -> None:
    names = ("test_*.py", "*_test.py")  # pytest collects both
    folders = {parts.folder_of(path) for name in names for path in HERE.rglob(name)} - {""}
    assert sorted(folders) == sorted((*parts.QUICK, *parts.SEPARATE)), "list it once in tests/parts.py"


def test_every_package_has_a_folder_of_tests() -> None:
    package = ROOT / "vmsnix_ops"
    packages = [path.parent.relative_to(package) for path in package.rglob("__init__.py")]
    assert [str(one) for one in packages if not [*(ROOT / "tests" / one).glob("test_*.py")]] == []


def test_readme_ci_and_nightly_run_their_parts() -> None:
    readme, ci, recipes = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run", "justfile")
    )
    assert re.search(r"^  \.venv/bin/pytest$", readme, re.MULTILINE), "no option: the quick part"
    assert "run_readme_command pytest" in ci
    assert f"--parts={','.join((*parts.SEPARATE, 'long'))} --long-sample=" in ci
    assert re.search(r"^    pytest --parts=all --no-forks ", recipes, re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder whose tests run with the options of this repository."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = settings[settings.index("[tool.pytest.ini_options]") :]
    section = section.replace('["."]', f'["{ROOT}"]').replace('["tests"]', '["checks"]')
    (tmp_path / "pyproject.toml").write_text(section)
    checks = tmp_path / "checks"
    (tmp_path / "conftest.py").write_text(
        f"import pathlib\nfrom tests.conftest import *\nparts.HERE = pathlib.Path({str(checks)!r})\n"
    )
    checks.mkdir()
    return tmp_path


def run(project: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stdout + done.stderr


PARTS = """
import pytest

def test_quick(): pass

@pytest.mark.long(seconds=10)
@pytest.mark.parametrize("number", range(9))
def test_long(number): pass

@pytest.mark.long(seconds=20, always=True)
def test_always(): pass

@pytest.mark.parametrize("number", range(5))
@pytest.mark.variants(quick=2, seconds=40)
def test_variants(number): pass
"""
BROWSER_PART = """
import pytest

def test_browser(): pass

@pytest.mark.long(seconds=100)
def test_long_browser(): pass
"""


@pytest.mark.long(seconds=10)
def test_parts_are_chosen_and_a_sample_can_be_repeated(project: Path) -> None:
    (project / "checks" / "test_some.py").write_text(PARTS)
    (project / "checks" / "browser").mkdir()
    (project / "checks" / "browser" / "test_browser.py").write_text(BROWSER_PART)

    def ran(*options: str) -> list[str]:
        return re.findall(r"::(\S+) PASSED", run(project, "-n0", "-v", *options))

    assert ran() == ["test_quick", "test_variants[0]", "test_variants[1]"]
    assert ran("--parts=browser") == ["test_browser"]
    assert ran("checks/browser") == ["test_browser"]
    assert ran("checks/test_some.py::test_long[3]", "checks/test_some.py::test_quick") == [
        "test_long[3]",
        "test_quick",
    ]
    assert ran("checks/test_some.py::test_variants[4]") == ["test_variants[4]"]
    assert len(ran("--parts=all")) == 18
    sampled = ran("--parts=long", "--long-sample=seed/40")
    assert len(sampled) == 3
    assert "test_always" in sampled
    assert ran("--parts=long", "--long-sample=seed/40") == sampled
    assert "no part slow" in run(project, "--parts=slow")


@pytest.mark.parametrize(("version", "used"), [("1.45.0", True), ("2.9.19", False), ("2.13.0", True)])
def test_an_aws_cli_that_would_reach_aws_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, used: bool
) -> None:
    program = tmp_path / "aws"
    program.write_text(f"#!/bin/sh\necho aws-cli/{version} Python/3.11.2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("VMSNIX_REQUIRE", raising=False)
    if used:
        assert require("aws") == str(program)
    else:
        with pytest.raises(pytest.skip.Exception, match="it would reach AWS"):
            require("aws")


HANGS = """
import subprocess, sys, threading

def test_that_hangs():
    thread = threading.Thread(target=waits_below, daemon=True)
    thread.start()
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(200)", "left-behind"])
    program.wait()

def waits_below():
    threading.Event().wait()

def test_that_comes_after(): pass
"""


# On a busy machine the fixtures alone may take longer than such a short time.
TIMEOUT = ("-o", "timeout=3", "-o", "timeout_func_only=true")


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.variants(seconds=6)
def test_a_test_that_hangs_fails_with_all_stacks_and_its_programs_are_killed(
    project: Path, processes: str
) -> None:
    (project / "checks" / "test_some.py").write_text(HANGS)
    printed = run(project, *TIMEOUT, f"-n{processes}")
    assert "Timeout (>3.0s)" in printed
    assert "1 failed, 1 passed" in printed
    assert "program.wait()" in printed  # the stack of the main thread
    assert "in waits_below" in printed  # and of the others
    assert re.search(r"\d+ \S*python\S* -c import time; time.sleep\(200\) left-behind", printed)


STUCK = """
import ctypes, threading

import pytest

@pytest.mark.timeout(200)
def test_that_sets_up_what_all_tests_share(): pass

def waits_below():
    threading.Event().wait()

def test_that_never_comes_back():
    threading.Thread(target=waits_below, daemon=True).start()
    ctypes.PyDLL(None).sleep(200)  # a library that keeps the lock of the interpreter
"""


def test_a_test_that_is_stuck_in_a_library_ends_too_with_all_stacks(project: Path) -> None:
    (project / "checks" / "test_some.py").write_text(STUCK)
    conftest = project / "conftest.py"
    conftest.write_text(conftest.read_text() + "hanging.MORE_SECONDS = 2\n")
    printed = run(project, *TIMEOUT, "-n0")
    assert "test_that_never_comes_back" in printed
    assert "in waits_below" in printed


# Every wait has a deadline


def endless(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and code of each call that may wait for ever."""
    for node in ast.walk(tree):
        if isinstance(node, ast.While):
            calls = {_name(one)[1] for one in ast.walk(node) if isinstance(one, ast.Call)}
            passes = all(isinstance(one, ast.Pass) for one in node.body)
            if calls & WAITING or passes or isinstance(node.test, ast.Constant):
                yield node.lineno, f"while {ast.unparse(node.test)}"
        elif isinstance(node, ast.Call):
            owner, name = _name(node)
            given = {keyword.arg for keyword in node.keywords}
            if owner and name in ENDLESS and not node.args and not given:
                yield node.lineno, f"{owner}.{name}()"
            if name == "communicate" and node.args and "timeout" not in given:
                yield node.lineno, f"{owner}.{name} without a timeout"
            if name == "join" and node.args and isinstance(node.args[0], ast.Constant | ast.BinOp):
                yield node.lineno, f"{owner}.join, after which the thread may still run"
            if name == "readline" and owner.endswith(("stdout", "stderr")):
                yield node.lineno, f"{owner}.readline"
            if owner == "os" and name == "waitpid" and "WNOHANG" not in ast.unparse(node):
                yield node.lineno, "os.waitpid"
            in_module = owner in MODULES and (owner or name in {"urlopen", "create_connection"})
            positional = len(node.args) > 1 and name in {"urlopen", "create_connection", "HTTPConnection"}
            if in_module and name in NEED_TIMEOUT and not positional and not given & {"timeout", None}:
                yield node.lineno, f"{owner}.{name} without a timeout"


def _name(call: ast.Call) -> tuple[str, str]:
    if isinstance(call.func, ast.Attribute):
        return ast.unparse(call.func.value), call.func.attr
    return "", ast.unparse(call.func)


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.py")), ids=lambda path: str(path.relative_to(HERE)))
def test_every_wait_has_a_deadline(path: Path) -> None:
    """Use `tests.support`, or a comment ``# ends: …`` with the reason why a wait needs no deadline."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = [(line, what) for line, what in endless(ast.parse(text)) if "# ends: " not in lines[line - 1]]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "while not ready():\n    pass",
        "while not ready():\n    time.sleep(1)",
        "while True:\n    read(page)",
        "while len(body) < 5:\n    body += connection.recv(5)",
        "while not done.is_set():\n    read()",
        "process.communicate(b'text')",
        "thread.join(60)",
        "process.stdout.readline()",
        "os.waitpid(child, 0)",
        "process.wait()",
        "thread.join()",
        "process.communicate()",
        "future.result()",
        "queue.get()",
        "subprocess.run(['true'], check=True)",
        "urlopen('http://127.0.0.1/')",
        "socket.create_connection(address)",
    ],
)
def test_a_wait_without_a_deadline_is_found(code: str) -> None:
    assert list(endless(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "', '.join(words)",
        "process.wait(3)",
        "process.communicate(b'text', timeout=3)",
        "os.waitpid(child, os.WNOHANG)",
        "while left > 1:\n    left //= 2",
        "there.get('name')",
        "subprocess.run([], timeout=3)",
        "run(plan)",
    ],
)
def test_calls_that_end_are_not_found(code: str) -> None:
    assert list(endless(ast.parse(code))) == []


def test_the_tests_for_stress_exist() -> None:
    for name in stress.TIMING:
        path, _, function = name.partition("::")
        assert f"def {function.partition('[')[0]}" in (ROOT / path).read_text(encoding="utf-8")
