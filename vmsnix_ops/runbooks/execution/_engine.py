"""The papermill engine of vmsnix; the only module that uses papermill, nbclient and jupyter_client.

papermill's own engine uses an installed kernel spec, changes the directory of the whole process, keeps all
output, and marks cells that never ran as "completed". This engine starts the kernel with its own interpreter,
in its own directory and environment, and limits output while it arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.v4 import new_output
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import ERROR_MARKER_TAG, execute_notebook

from vmsnix_ops.progress import MESSAGE
from vmsnix_ops.runbooks.execution import cards, kernels
from vmsnix_ops.runbooks.execution import translator as _translator  # noqa: F401 - registers itself
from vmsnix_ops.runbooks.execution._output import HeadAndTail, LiveOutput, OutputLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vmsnix_ops.runbooks.execution._interrupts import Interrupter
    from vmsnix_ops.runbooks.execution._secrets import SecretReceiver

ENGINE = "vmsnix"
SILENT = logging.getLogger("vmsnix_ops.runbooks.engine")
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False

STARTUP_SECONDS = 120  # a busy CI machine is slow to start a kernel
SHUTDOWN_SECONDS = 1.0  # without a limit, a graceful shutdown hangs for 3.3 s in one run of ten
OUTPUT_SECONDS = 120  # time for output that arrives after the cell has ended
FLUSHING_MESSAGES = frozenset({"display_data", "execute_result", "error", "clear_output"})


class KernelStartError(Exception):
    """The kernel did not start; no cell has run."""


@dataclass
class KernelSession:
    """Input and result of one execution."""

    environment: Mapping[str, str]  # all variables of the kernel
    cwd: Path  # of the kernel
    live: LiveOutput  # shows and logs the output
    limits: OutputLimits  # of the saved output
    interrupter: Interrupter  # interrupts the kernel, and stops the run between two cells
    kernel_log: Path  # output of the kernel process itself, such as a crash
    save: Callable[[Any], None]  # called with the notebook after every cell
    on_kernel_start: Callable[[], None]  # called while the kernel starts
    receiver: SecretReceiver  # receives the credentials of the kernel
    notebook: Any = None  # the executed one; None before the execution starts


def execute(notebook: Any, parameters: dict[str, object], session: KernelSession) -> None:
    """Execute a notebook with papermill. The result is in `session.notebook`, also after an error.

    Raises a `KernelStartError` if the kernel did not start in two attempts, and nbclient's `DeadKernelError`
    if it died.
    """
    if ENGINE not in papermill_engines._engines:
        papermill_engines.register(ENGINE, _Engine)
    with contextlib.suppress(PapermillExecutionError):  # the caller reads the error from the cells' output
        execute_notebook(
            notebook,
            None,
            parameters=parameters,
            engine_name=ENGINE,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            request_save_on_cell_execute=False,
            start_timeout=STARTUP_SECONDS,
            vmsnix=session,
        )
    if session.notebook is not None:
        # papermill inserts a cell to mark an error, which would shift all indexes.
        session.notebook.cells = [
            cell for cell in session.notebook.cells if ERROR_MARKER_TAG not in cell.metadata.get("tags", [])
        ]


def _merge_streams(cell: Any) -> None:
    """Merge the outputs of each stream of a cell, and apply carriage returns as a terminal does."""
    merged: dict[str, Any] = {}
    kept = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream" and output["name"] in merged:
            merged[output["name"]]["text"] += output["text"]
            continue
        if output["output_type"] == "stream":
            merged[output["name"]] = output
        kept.append(output)
    for output in merged.values():
        lines = output["text"].split("\n")
        output["text"] = "\n".join(line[:-1].rpartition("\r")[2] + line[-1:] for line in lines)
    if kept:
        cell.outputs = kept


class _Client(PapermillNotebookClient):  # type: ignore[misc]
    """Runs the cells, shows and limits their output, and stops between two cells after an interrupt."""

    def __init__(self, nb_man: Any, session: KernelSession, **options: Any) -> None:
        super().__init__(nb_man, **options)
        self.session = session
        self._kept_outputs: dict[str, HeadAndTail] = {}
        self._kept_size = 0

    def create_kernel_manager(self) -> AsyncKernelManager:
        self.km = AsyncKernelManager(
            kernel_name=self.kernel_name,
            kernel_spec_manager=_ThisInterpreter(),
            shutdown_wait_time=SHUTDOWN_SECONDS,
            transport_encryption="auto",
            log=SILENT,
        )
        return self.km

    def start_new_kernel_client(self, **options: Any) -> Any:
        self.session.on_kernel_start()
        try:
            client = super().start_new_kernel_client(**options)
        except RuntimeError as error:
            raise KernelStartError(str(error)) from error
        provisioner: Any = self.km.provisioner
        self.session.interrupter.attach(provisioner.pgid or provisioner.pid)
        return client

    def papermill_execute_cells(self) -> None:
        for index, cell in enumerate(self.nb.cells):
            if self.session.interrupter.requested:
                return
            self.nb_man.cell_start(cell, index)
            self._kept_outputs = {}
            try:
                self.execute_cell(cell, index)
            except CellExecutionError as error:
                self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                return
            finally:
                self._close_cell(cell)
                self.nb_man.cell_complete(cell, cell_index=index)
                self.session.save(self.nb)

    def process_message(self, message: Any, cell: Any, cell_index: int) -> Any:
        self.session.receiver.receive()  # first, because the message can contain a secret that is new
        kind, content = message["msg_type"], message["content"]
        if kind in FLUSHING_MESSAGES:
            self._flush(cell)
        if kind == "display_data" and MESSAGE in content["data"]:
            text = self.session.live.progress(content["data"][MESSAGE])
            kind = message["msg_type"] = message["header"]["msg_type"] = "stream"
            content = message["content"] = {"name": "stdout", "text": text}
        elif kind == "stream":
            content["text"] = self.session.live.stream(content["name"], content["text"])
        if kind == "stream":
            if not content["text"]:
                return None
            content["text"] = self._kept(content["name"]).add(content["text"])
            self._kept_size += len(content["text"])
            if not content["text"]:
                return None
        elif kind in ("display_data", "execute_result", "update_display_data"):
            if cards.ERROR in content["data"] or cards.HEAD in content["data"]:
                self.session.live.note(content["data"]["text/plain"], screen=False)
            elif kind != "update_display_data":
                self.session.live.display(content["data"])
            content["data"] = self._display_within_limits(content["data"])
        elif kind == "error":
            self.session.live.note("\n".join(content["traceback"]), screen=False)
        return super().process_message(message, cell, cell_index)

    def _kept(self, name: str) -> HeadAndTail:
        """Return what is kept of a stream of the current cell."""
        limit = max(min(self.session.limits.cell, self.session.limits.notebook - self._kept_size), 0)
        return self._kept_outputs.setdefault(name, HeadAndTail(limit))

    def _display_within_limits(self, data: dict[str, Any]) -> dict[str, Any]:
        size = sum(len(value) if isinstance(value, str) else len(str(value)) for value in data.values())
        limit = min(self.session.limits.display, self.session.limits.notebook - self._kept_size)
        if size <= limit:
            self._kept_size += size
            return data
        return {"text/plain": f"[... {size:,} characters of output left out ...]"}

    def _flush(self, cell: Any) -> None:
        """Append the incomplete lines that were kept back because a secret could continue in them."""
        for name, text in self.session.live.flush():
            self._append(cell, name, self._kept(name).add(text))

    def _append(self, cell: Any, name: str, text: str) -> None:
        if not text:
            return
        self._kept_size += len(text)
        streams = [output for output in cell.outputs if output.get("name") == name]
        if streams:
            streams[-1]["text"] += text
        else:
            cell.outputs.append(new_output("stream", name=name, text=text))  # type: ignore[no-untyped-call]

    def _close_cell(self, cell: Any) -> None:
        """Append the end of a cell's output if its middle was left out, and merge its streams."""
        self.session.receiver.receive()
        self._flush(cell)
        for name, kept in self._kept_outputs.items():
            self._append(cell, name, kept.tail())
        _merge_streams(cell)


class _Engine(Engine):  # type: ignore[misc]
    """Runs a notebook with `_Client`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        session: KernelSession = options["vmsnix"]
        session.notebook = nb_man.nb
        nb_man.autosave_cell_every = 0
        try:
            cls._execute(nb_man, session, kernel_name, options["start_timeout"])
        except KernelStartError:
            # Two runs that start at the same time can get the same port. No cell has run, so a second
            # attempt is safe.
            cls._execute(nb_man, session, kernel_name, options["start_timeout"])
        finally:
            session.interrupter.detach()
            _close_loop()

    @classmethod
    def _execute(cls, nb_man: Any, session: KernelSession, kernel_name: str, start_timeout: int) -> None:
        client = _Client(
            nb_man,
            session,
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            iopub_timeout=OUTPUT_SECONDS,
            store_widget_state=False,
            coalesce_streams=False,  # its search for carriage returns takes minutes for a long line
            log=SILENT,
        )
        with session.kernel_log.open("ab") as words:
            client.execute(
                cwd=str(session.cwd),
                env={**session.environment, "VMSNIX_SECRETS": str(session.receiver.descriptor)},
                stdout=words,
                stderr=subprocess.STDOUT,
                pass_fds=(session.receiver.descriptor,),
            )


def _close_loop() -> None:
    """Close the event loop that nbclient created for this thread, because nbclient does not."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        ensure_event_loop().close()  # jupyter_core creates a new one when it needs one


class _ThisInterpreter(KernelSpecManager):
    """Has one kernel spec, which starts the interpreter of this process; installed specs are not used."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=kernels.argv(),
            display_name="Python 3 (vmsnix)",
            language="python",
            metadata=kernels.METADATA,
            resource_dir="",
            name=kernel_name,
        )


__all__ = ["DeadKernelError", "KernelSession", "KernelStartError", "execute"]
