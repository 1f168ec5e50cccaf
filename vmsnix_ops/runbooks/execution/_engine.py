"""The papermill engine that runs our notebooks; the only module that knows papermill, nbclient and kernels.

papermill's own engine trusts the installed kernel specs, changes the directory of the whole process, keeps
all output, and calls cells that never ran "completed". This one starts the interpreter that it runs in,
gives the kernel its own directory and environment, caps output while it arrives, and hands back the
notebook for an honest judgement.
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
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import ERROR_MARKER_TAG, execute_notebook

from vmsnix_ops.progress import MESSAGE
from vmsnix_ops.runbooks.execution import kernels
from vmsnix_ops.runbooks.execution import translator as _translator  # noqa: F401 - registers itself
from vmsnix_ops.runbooks.execution._output import Kept, Limits, Live

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vmsnix_ops.runbooks.execution._interrupts import Interrupter
    from vmsnix_ops.runbooks.execution._secrets import Inbox

ENGINE = "vmsnix"
QUIET = logging.getLogger("vmsnix_ops.runbooks.engine")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False

STARTUP_SECONDS = 120  # a loaded CI machine is slow to start a kernel
SHUTDOWN_SECONDS = 1.0  # a graceful shutdown stalls for 3.3 s in one run of ten otherwise
IOPUB_SECONDS = 120  # output that is still under way when the cell has ended


SETTLING = frozenset({"display_data", "execute_result", "error", "clear_output"})


class KernelStartError(Exception):
    """The kernel did not come up; no cell has run."""


@dataclass
class Session:
    """One execution: what the engine is given, and what it leaves.

    Attributes
    ----------
    environment
        All variables of the kernel.
    cwd
        Its working directory.
    live
        Takes what it prints.
    limits
        How much of it is kept.
    interrupter
        Told which process to interrupt, and asked between cells.
    kernel_log
        Takes what the kernel's process says outside of cells: crashes, and noise while it ends.
    save
        Called with the notebook after every cell, so that a killed run leaves its evidence.
    inbox
        Learns the credentials of the kernel.
    waiting
        Called while the kernel starts.
    notebook
        The executed notebook, once there is one.
    """

    environment: Mapping[str, str]
    cwd: Path
    live: Live
    limits: Limits
    interrupter: Interrupter
    kernel_log: Path
    save: Callable[[Any], None]
    waiting: Callable[[], None]
    inbox: Inbox
    notebook: Any = None
    cells_started: int = 0


def execute(notebook: Any, parameters: dict[str, object], session: Session) -> None:
    """Execute a notebook through papermill; `session.notebook` is the outcome, whatever happened.

    Parameters
    ----------
    notebook
        ``NotebookNode`` of format 4, which is changed.
    parameters
        Already typed.

    Raises
    ------
    KernelStartError
        When the kernel did not start, on the first and the second try.
    nbclient.exceptions.DeadKernelError
        When the kernel died.
    """
    if ENGINE not in papermill_engines._engines:
        papermill_engines.register(ENGINE, _Engine)
    with contextlib.suppress(PapermillExecutionError):  # the error outputs tell, and are judged by the caller
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
        session.notebook.cells = [cell for cell in session.notebook.cells if not _is_marker(cell)]


def _merge_streams(cell: Any) -> None:
    """Make one output of each stream of a cell, as a terminal shows it: a carriage return overwrites."""
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


def _is_marker(cell: Any) -> bool:
    """Tell papermill's inserted error cells, which shift all indexes, from the notebook's own."""
    return ERROR_MARKER_TAG in cell.metadata.get("tags", [])


class _Client(PapermillNotebookClient):  # type: ignore[misc]
    """Runs cells one by one, shows and caps their output, and stops between cells when asked."""

    def __init__(self, nb_man: Any, session: Session, **options: Any) -> None:
        super().__init__(nb_man, **options)
        self.session = session
        self._kept: dict[str, Kept] = {}
        self._kept_total = 0

    def create_kernel_manager(self) -> AsyncKernelManager:
        self.km = AsyncKernelManager(
            kernel_name=self.kernel_name,
            kernel_spec_manager=_ThisInterpreter(),
            shutdown_wait_time=SHUTDOWN_SECONDS,
            transport_encryption="auto",
            log=QUIET,
        )
        return self.km

    def start_new_kernel_client(self, **options: Any) -> Any:
        self.session.waiting()
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
            self._kept = {}
            self.session.cells_started += 1
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
        self.session.inbox.drain()  # first: what is printed next may be a secret that it has just got
        kind, content = message["msg_type"], message["content"]
        if kind in SETTLING:
            self._settle(cell)
        if kind == "display_data" and MESSAGE in content["data"]:
            text = self.session.live.progress(content["data"][MESSAGE])
            kind = message["msg_type"] = message["header"]["msg_type"] = "stream"
            content = message["content"] = {"name": "stdout", "text": text}
        elif kind == "stream":
            content["text"] = self.session.live.stream(content["name"], content["text"])
        if kind == "stream":
            if not content["text"]:
                return None
            kept = self._kept.setdefault(content["name"], Kept(self._cell_limit()))
            content["text"] = kept.feed(content["text"])
            self._kept_total += len(content["text"])
            if not content["text"]:
                return None
        elif kind in ("display_data", "execute_result", "update_display_data"):
            if kind != "update_display_data":
                self.session.live.display(content["data"])
            content["data"] = self._display_within_limits(content["data"])
        elif kind == "error":
            self.session.live.note("\n".join(content["traceback"]), screen=False)
        return super().process_message(message, cell, cell_index)

    def _cell_limit(self) -> int:
        return max(min(self.session.limits.cell, self.session.limits.notebook - self._kept_total), 0)

    def _display_within_limits(self, data: dict[str, Any]) -> dict[str, Any]:
        size = sum(len(value) if isinstance(value, str) else len(str(value)) for value in data.values())
        room = min(self.session.limits.display, self.session.limits.notebook - self._kept_total)
        if size <= room:
            self._kept_total += size
            return data
        return {"text/plain": f"[... {size:,} characters of output left out ...]"}

    def _settle(self, cell: Any) -> None:
        """Append the unfinished lines that were held back until it was known whether they hold a secret."""
        for name, text in self.session.live.settle():
            kept = self._kept.setdefault(name, Kept(self._cell_limit()))
            head = kept.feed(text)
            if head:
                self._kept_total += len(head)
                self._append(cell, name, head)

    def _append(self, cell: Any, name: str, text: str) -> None:
        streams = [output for output in cell.outputs if output.get("name") == name]
        if streams:
            streams[-1]["text"] += text
        else:
            cell.outputs.append(_stream(name, text))

    def _close_cell(self, cell: Any) -> None:
        """Append the end of what was printed to a cell whose middle was left out."""
        self.session.inbox.drain()
        self._settle(cell)
        for name, kept in self._kept.items():
            end = kept.end()
            if not end:
                continue
            self._kept_total += len(end)
            self._append(cell, name, end)
        _merge_streams(cell)


class _Engine(Engine):  # type: ignore[misc]
    """Hands the notebook to our client."""

    client_class = _Client

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        session: Session = options["vmsnix"]
        session.notebook = nb_man.nb
        nb_man.autosave_cell_every = 0
        try:
            cls._execute(nb_man, session, kernel_name, options["start_timeout"])
        except KernelStartError:
            # Two runs that start together may be given the same port. No cell has run, so trying again is
            # safe.
            cls._execute(nb_man, session, kernel_name, options["start_timeout"])
        finally:
            session.interrupter.detach()
            _close_loop()

    @classmethod
    def _execute(cls, nb_man: Any, session: Session, kernel_name: str, start_timeout: int) -> None:
        client = cls.client_class(
            nb_man,
            session,
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            iopub_timeout=IOPUB_SECONDS,
            store_widget_state=False,
            coalesce_streams=False,  # its search for carriage returns takes minutes for a long line
            log=QUIET,
        )
        with session.kernel_log.open("ab") as words:
            client.execute(
                cwd=str(session.cwd),
                env={**session.environment, "VMSNIX_SECRETS": str(session.inbox.descriptor)},
                stdout=words,
                stderr=subprocess.STDOUT,
                pass_fds=(session.inbox.descriptor,),
            )


def _close_loop() -> None:
    """Close the event loop that nbclient made for this thread; nobody else does, and threads come and go."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        ensure_event_loop().close()  # jupyter_core makes a new one when it needs one again


class _ThisInterpreter(KernelSpecManager):
    """Knows one kernel: the interpreter that runs this process, whatever is or is not installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=kernels.argv(),
            display_name="Python 3 (vmsnix)",
            language="python",
            metadata=kernels.METADATA,
            resource_dir="",
            name=kernel_name,
        )


def _stream(name: str, text: str) -> Any:
    from nbformat.v4 import new_output

    return new_output("stream", name=name, text=text)  # type: ignore[no-untyped-call]


__all__ = ["DeadKernelError", "KernelStartError", "Session", "execute"]
