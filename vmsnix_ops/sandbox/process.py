"""A sandbox in another process, with its own memory and processor time."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal
from urllib import request

from vmsnix_ops.sandbox.access import Access

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType


STOP_SECONDS = 10


class SandboxProcess(Access):
    """A sandbox in a child process. A context manager, created by `sandbox_process`.

    Parameters
    ----------
    process
        The child.
    ready
        The line of JSON that it printed: url, access_key, secret_key, account.
    """

    def __init__(self, process: subprocess.Popen[str], ready: Mapping[str, str]) -> None:
        super().__init__(ready["url"], ready["access_key"], ready["secret_key"], ready["account"])
        self.process = process

    def admin(self, name: str, method: str = "GET", value: Any = None) -> Any:
        """Send a request of the `admin` module; `name` is calls, faults, clock or state."""
        data = None if value is None else json.dumps(value).encode()
        sent = request.Request(f"{self.url}/_vmsnix/{name}", data=data, method=method)  # noqa: S310 - always http
        with request.urlopen(sent, timeout=60) as answer:  # noqa: S310 - always http
            return json.load(answer)

    def calls(self, name: str = "*") -> list[dict[str, Any]]:
        """Return the calls whose name matches, such as ``"ec2:*"``, oldest first."""
        found: list[dict[str, Any]] = self.admin(f"calls?name={name}")
        return found

    def add_fault(self, **rule: Any) -> dict[str, Any]:
        """Add a fault rule; the keywords are the fields of `Fault`."""
        added: dict[str, Any] = self.admin("faults", "POST", rule)
        return added

    def clear_faults(self) -> None:
        """Remove all fault rules."""
        self.admin("faults", "DELETE")

    def advance(self, seconds: float) -> None:
        """Make all resources older by this many sandbox seconds."""
        self.admin("clock", "POST", {"advance": seconds})

    def stop(self) -> None:
        """Stop the child, which saves its state."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> SandboxProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def sandbox_process(
    *,
    speed: float = 1.0,
    state: Path | str | None = None,
    port: int = 0,
    limits: Literal["aws"] | None = None,
) -> SandboxProcess:
    """Start a sandbox in a child process, and return once it answers requests.

    Parameters
    ----------
    speed, state, port, limits
        As for `Sandbox`.

    Raises
    ------
    OSError
        The sandbox could not start; the text is from the child.
    """
    module = ["-m", "vmsnix_ops.sandbox", "--json"]
    command = [sys.executable, *module, "--port", str(port), "--speed", str(speed)]
    if state is not None:
        command += ["--state", str(state)]
    if limits is not None:
        command += ["--limits", limits]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline() if process.stdout is not None else ""
    ready = json.loads(line) if line else {"error": "The sandbox ended before it served."}
    if "error" in ready:
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        raise OSError(ready["error"])
    return SandboxProcess(process, ready)
