"""Serve in the foreground, for ``vmsnix sandbox`` and ``python -m vmsnix_ops.sandbox``."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from vmsnix_ops.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import FrameType

    from vmsnix_ops.sandbox.access import Access


NOT_EXPORTED = {"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"}  # a person's shell keeps its own files


def serve(
    port: int = 0,
    speed: float = 1.0,
    state: Path | str | None = None,
    *,
    as_json: bool = False,
    prepare: str | None = None,
    limits: Literal["aws"] | None = None,
    seed: Literal["demo"] | None = None,
    more: Callable[[Sandbox], Mapping[str, str]] | None = None,
) -> None:
    """Serve until SIGINT (Ctrl-C), SIGTERM or SIGHUP.

    The first three arguments, `limits` and `seed` are those of `vmsnix_ops.sandbox.Sandbox`. `as_json` prints
    one line of JSON for a program instead of ``export`` lines for a shell. `prepare` names a bucket to create
    at the start, with a role for VM Import. `more` returns further variables to export, before anything is
    printed.

    An `OSError` if the port is in use, or the folder cannot be used. The text has the fix.
    """
    with (
        stop_signal() as finished,
        Sandbox(port=port, speed=speed, state=state, limits=limits, seed=seed) as sandbox,
    ):
        if prepare is not None:
            sandbox.prepare(prepare)
        variables = sandbox.environment | dict(more(sandbox) if more is not None else {})
        sys.stdout.write(_as_json(sandbox, variables) if as_json else export_lines(sandbox, state, variables))
        sys.stdout.flush()
        finished.wait()


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGINT (Ctrl-C), SIGTERM and SIGHUP set, instead of ending the process."""
    finished = threading.Event()

    def finish(_number: int, _frame: FrameType | None) -> None:
        finished.set()

    # A closed terminal sends SIGHUP; nohup makes the process ignore it.
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    numbers = (signal.SIGINT, signal.SIGTERM, *hangup)
    before = {number: signal.signal(number, finish) for number in numbers}
    try:
        yield finished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_json(sandbox: Sandbox, variables: Mapping[str, str]) -> str:
    facts = {name: getattr(sandbox, name) for name in ("url", "access_key", "secret_key", "account")}
    return json.dumps({**facts, "environment": variables}) + "\n"


def export_lines(sandbox: Access, state: Path | str | None, variables: Mapping[str, str]) -> str:
    """Return the lines with which a shell uses a sandbox, whose state is kept in a folder."""
    exported = {name: value for name, value in variables.items() if name not in NOT_EXPORTED}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
    kept = f"state is kept in {state}" if state is not None else "nothing is kept"
    return "\n".join(
        [
            f"# The sandbox serves on {sandbox.url} as account {sandbox.account}; {kept}. Ctrl-C stops it.",
            # Source: the changelogs of both versions of the AWS CLI.
            "# The AWS CLI before 2.13.0 (version 1: 1.29.0) ignores AWS_ENDPOINT_URL and calls AWS itself.",
            f"# Check `aws --version`. With an older one, add --endpoint-url {sandbox.url} to every command.",
            "# In another shell:",
            *lines,
            "",
        ]
    )
