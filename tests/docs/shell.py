"""A shell for the commands of a page; ``vmsnix`` runs in this process, because a new one takes a second."""

from __future__ import annotations

import os
import select
import subprocess
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING
from unittest import mock

from tests.support import kill
from vmsnix_ops.cli import main, shared_sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LONGEST = 200  # seconds that a program may take
SPEED = 300  # sandbox seconds per real second: a signed request is valid for 15 minutes, so for 3 s
FUNCTIONS = """
vmsnix() {
    printf '%s\\0' "$@" > "$CALLS/words"
    env -0 > "$CALLS/environment"
    echo "$PWD" > "$CALLS/folder"
    if [ /dev/fd/1 -ef /dev/fd/2 ]; then echo together >&"$EVENTS"; else echo apart >&"$EVENTS"; fi
    local code
    read -r code <&"$ANSWERS"
    cat "$CALLS/stdout"
    cat "$CALLS/stderr" >&2
    return "$code"
}
last=0
"""
RUN = """
(exit "$last"); . "$CALLS/script" </dev/null >"$CALLS/shown" 2>&1; last=$?; echo "end $last" >&"$EVENTS"
"""


class Shell:
    """One bash for all commands of a page, so that variables and folders last. A context manager."""

    def __init__(self, folder: Path, calls: Path, environment: Mapping[str, str]) -> None:
        self._calls = calls
        self._events, events = os.pipe()
        answers, self._answers = os.pipe()
        own = {"CALLS": str(calls), "EVENTS": str(events), "ANSWERS": str(answers)}
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={**environment, **own},
            pass_fds=(events, answers),
        )
        os.close(events)
        os.close(answers)
        self._send(FUNCTIONS)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_error: object) -> None:
        kill(self._bash)
        assert self._bash.stdin is not None
        self._bash.stdin.close()
        os.close(self._events)
        os.close(self._answers)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; return its exit code and what it prints."""
        (self._calls / "script").write_text(f"{command}\n", encoding="utf-8")
        self._send(RUN)
        while True:  # ends: every event has a deadline
            event, _, code = self._next_event().partition(" ")
            if event == "end":
                return int(code), (self._calls / "shown").read_text(encoding="utf-8")
            os.write(self._answers, f"{self._call(together=event == 'together')}\n".encode())

    def _send(self, text: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(text.encode())
        self._bash.stdin.flush()

    def _next_event(self) -> str:
        ready, _, _ = select.select([self._events], [], [], LONGEST)
        assert ready, f"the command did not end within {LONGEST} s"
        return os.read(self._events, 100).decode().strip()

    def _call(self, *, together: bool) -> int:
        words = (self._calls / "words").read_text(encoding="utf-8").split("\0")[:-1]
        variables = (self._calls / "environment").read_text(encoding="utf-8").split("\0")[:-1]
        folder = (self._calls / "folder").read_text(encoding="utf-8").rstrip("\n")
        with ExitStack() as stack:
            out = stack.enter_context((self._calls / "stdout").open("w", encoding="utf-8"))
            err = stack.enter_context((self._calls / "stderr").open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(out))
            stack.enter_context(redirect_stderr(out if together else err))
            changes = dict(variable.split("=", 1) for variable in variables)
            stack.enter_context(mock.patch.dict(os.environ, changes, clear=True))
            stack.enter_context(chdir(folder))
            stack.enter_context(mock.patch.object(shared_sandbox, "SPEED", SPEED))
            return main(words)
