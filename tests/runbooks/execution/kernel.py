"""A kernel that the runner did not start, as JupyterLab or another program starts it."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from tests.support import DEADLINE, wait_until
from vmsnix_ops.runbooks import catalog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Kernel:
    """A running kernel; `execute` runs a cell as JupyterLab does, with the ID of the cell."""

    manager: Any
    client: Any
    state: Path

    def execute(self, source: str, cell: str | None = None) -> str:
        """Run a cell; return its error, or an empty string."""
        content = {
            "code": source,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,  # otherwise the next cell can be aborted
        }
        message = self.client.session.msg("execute_request", content)
        message["metadata"] = {"cellId": cell} if cell else {}
        self.client.shell_channel.send(message)
        while True:  # ends: after DEADLINE without an answer
            reply = self.client.get_shell_msg(timeout=DEADLINE)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                assert reply["content"]["status"] in ("ok", "error")
                error = reply["content"].get("ename", "")
                return f"{error}: {reply['content']['evalue']}" if error else ""

    def execute_cells(self, runbook: str, *names: str) -> None:
        """Run cells of a runbook, which must not fail; all by default."""
        for name, source in code_cells(runbook).items():
            if not names or name in names:
                error = self.execute(source, name)
                assert error == "", f"{error} in the cell {name}"

    def shut_down(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()

    def kill(self) -> None:
        os.kill(self.manager.provisioner.pid, signal.SIGKILL)
        wait_until(lambda: not self.manager.is_alive(), "the end of the kernel")

    def run(self, number: int = -1) -> RunFiles:
        """Return one of the runs of this kernel, by default the newest."""
        return runs_in(self.state)[number]


@dataclass
class RunFiles:
    """The files of a run in a local archive."""

    folder: Path

    @property
    def values(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def journal(self) -> Path:
        return self.folder / "evidence.jsonl"

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    def notes(self) -> dict[int, str]:
        """Return the note about each cell of the saved notebook that has one."""
        cells = json.loads((self.folder / "notebook.ipynb").read_text())["cells"]
        found = {cell["execution_count"]: cell["metadata"]["vmsnix"]["note"] for cell in cells}
        return {number: note for number, note in found.items() if note}


def runs_in(state: Path) -> list[RunFiles]:
    """Return the runs in the archive below a state folder, oldest first."""
    return [RunFiles(folder) for folder in sorted((state / "archive").glob("*/"))]


def code_cells(runbook: str) -> dict[str, str]:
    """Return the sources of a runbook's code cells by their IDs."""
    content = json.loads(catalog.find(runbook).path.read_text(encoding="utf-8"))
    return {cell["id"]: "".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"}


@contextmanager
def kernel(state: Path, *, lab: bool = True, **environment: str) -> Iterator[Kernel]:
    """Start a kernel, by default as JupyterLab does, and end it after the block."""
    spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    manager = KernelManager(kernel_name="python3")
    manager._kernel_spec = spec
    variables = {**os.environ, "VMSNIX_STATE": str(state), **environment}
    if lab:
        variables["JPY_SESSION_NAME"] = "notebook.ipynb"
    state.mkdir(parents=True, exist_ok=True)
    manager.start_kernel(env=variables, cwd=str(state))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=DEADLINE)
        yield Kernel(manager, client, state)
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel(now=True)
        manager.context.destroy()
