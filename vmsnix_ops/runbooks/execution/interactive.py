"""Record a runbook in a kernel that the runner did not start, such as of JupyterLab or plain papermill.

The first call of every runbook, ``check_parameters``, starts the run: it gets an ID, a folder in the
archive, and the guard of its side effects. From then on, IPython's hooks append every executed cell to the
run's journal (`vmsnix_ops.runbooks.evidence.chain`). A second first call continues the run, also with other
parameters; after the end of the run it starts a new one.

The run ends

- with its last cell; what is executed after it belongs to the run too, but does not change its status;
- with a failed cell, if no person executes the cells: papermill stops there;
- with its kernel. A run whose kernel was closed before its last cell is ``cancelled``. A killed kernel leaves
  a run that is ``lost``, with its journal.
"""

from __future__ import annotations

import atexit
import base64
import os
import signal
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vmsnix_ops import settings as settings_module
from vmsnix_ops.endpoints import endpoint_kind
from vmsnix_ops.errors import ArchiveError, RunError
from vmsnix_ops.records.run_context import RunContext, new_run_id, set_kernel_run
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import cells, chain, index, writing
from vmsnix_ops.runbooks.execution import cards, notices, side_effects
from vmsnix_ops.runbooks.execution.status import INTERRUPTS, PARTIAL, Failure, cell_failure, describe
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.outcomes import RunStatus
    from vmsnix_ops.runbooks.catalog import Runbook

INLINE_CHARACTERS = 20_000  # outputs of a cell in the journal; longer ones are only in the notebook
DISPLAY_CHARACTERS = 5_000_000  # one output in the notebook
LOG_CHARACTERS = 20_000_000
AFTER_THE_END = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")  # written once
FIRST_FACTS = ("run_id", "runbook", "started_at", "user", "host", "package_version", "parameters")
WIDGET = "application/vnd.jupyter.widget-view+json"

_run: KernelRun | None = None
_guard: side_effects.Guard | None = None


def begin(runbook: Runbook, values: Mapping[str, object], *, modified: bool = False) -> str:
    """Start the run of this kernel, or continue it; return its ID.

    Empty outside of a kernel, and in a kernel that the runner started. With `modified`, cells that differ
    from those of the package may change something in AWS; on a sandbox, they always may. Raises a
    `SettingsError`, or an `ArchiveError` if no folder for the run can be created.
    """
    global _run
    shell = cards.kernel_shell()
    if shell is None or "VMSNIX_RUN_ID" in os.environ:
        return ""
    if _run is not None and _run.prepared.runbook.name == runbook.name and not _run.ended:
        _run.confirmed = modified
        _run.change(values)
        return _run.run_id
    first = 1
    with side_effects.saving_evidence():
        if _run is not None:
            first = _run.hand_over()
        _run = KernelRun(shell, runbook, values, first, modified)
    return _run.run_id


def is_unattended() -> bool:
    """Whether this is a kernel of papermill or another program that runs a notebook without a person."""
    return cards.kernel_shell() is not None and "VMSNIX_RUN_ID" not in os.environ and _is_unattended()


def _is_unattended() -> bool:
    return "JPY_SESSION_NAME" not in os.environ


class KernelRun:
    """The run of a kernel."""

    def __init__(
        self, shell: Any, runbook: Runbook, values: Mapping[str, object], first: int, confirmed: bool
    ) -> None:
        self._shell = shell
        self._clock = time.monotonic()
        self._started = datetime.now(UTC)
        self.run_id = new_run_id(runbook.name, now=self._started)
        self.ended = False
        self.confirmed = confirmed
        self.newest = len(shell.history_manager.input_hist_raw) - 1  # number of the newest cell
        self._current: int | None = None  # number of the running cell
        self._last_cell = 0  # number of the cell that ended the run
        self._parameters_cell = 0  # number of the newest execution of the parameters cell
        self._cell_started = time.monotonic()
        self._failure: tuple[RunStatus, Failure] | None = None  # of the newest cell
        self._outputs: dict[int, list[Any]] = {}  # of cells, if they are too long for the journal
        self._shown: list[Any] = []  # outputs of the running cell, as IPython keeps them
        shell.history_manager.outputs = _Outputs(self._shown)
        self._saved_entries = 0
        self._values: dict[str, Any] = {}
        self._known: dict[str, Any] = {}
        self._places = _places(runbook)
        self._edited: dict[int, str] = {}  # how executed cells differ from the runbook, by their place
        with suppress(RunError):
            _text, differs = catalog.content(runbook)
            if differs:  # `vmsnix lab --edit` opens the notebooks of the package themselves
                self._edited[-2] = f"{runbook.path.name} was modified."
        self.prepared, problem = self._prepare(runbook, values)
        folder = self.prepared.folder
        self.journal = chain.ChainedJournal(
            folder.path(chain.FILE_NAME), self.prepared.settings.state, self.run_id, folder.redactor
        )
        if problem:
            self.journal.problems[problem] = None
        set_kernel_run(
            RunContext(
                self.run_id,
                runbook.name,
                folder.local,
                managed=True,
                entry=folder.entry if folder.remote else "",
                known=self._known,
            )
        )
        self._guard_side_effects()
        self._write_first_entries(first)
        shell.events.register("pre_run_cell", self._before_cell)
        shell.events.register("post_run_cell", self._after_cell)
        atexit.register(self._finish_at_exit)

    def _prepare(self, runbook: Runbook, values: Mapping[str, object]) -> tuple[writing.PreparedRun, str]:
        """Create the folder of the run; if the archive cannot be written, on this machine."""
        environment = dict(os.environ)
        cwd = Path.cwd()
        settings = settings_module.load(cwd, environment)
        entry = writing.first_entry(
            runbook, self.run_id, values, environment, cwd, self._started, interactive=True
        )
        self._known |= {**entry, "status": "running"}
        work, problem = settings.state / "runs", ""
        try:
            folder = archives.open_folder(
                settings.archive, self.run_id, self._known, work=work, environment=environment
            )
        except ArchiveError as error:
            problem = str(error)
            folder = archives.open_folder(work, self.run_id, self._known, work=work, environment=environment)
        prepared = writing.PreparedRun(runbook, "", values, settings, environment, cwd, folder, entry)
        return prepared, problem

    def _guard_side_effects(self) -> None:
        global _guard
        runbook, folder = self.prepared.runbook, self.prepared.folder.local
        allowed = side_effects.allowed_effects(runbook.side_effects, self.prepared.entry["parameters"])
        if _guard is None:
            _guard = side_effects.install(allowed, runbook.name, folder)
        else:
            _guard.restart(allowed, runbook.name, folder)

    def _write_first_entries(self, first: int) -> None:
        entry = self.prepared.entry
        self.journal.append(
            "run",
            **{key: entry[key] for key in FIRST_FACTS},
            cells=[
                {"id": one.id, "sha256": one.sha256, "parameters": one.parameters} for one in self._places
            ],
        )
        sources = self._shell.history_manager.input_hist_raw
        # A first call that refused the parameters started no run.
        calls = [n for n in range(first, self.newest) if sources[n] == sources[self.newest]]
        for number in range(calls[-1] + 1 if calls else first, self.newest):
            self.journal.append(cells.EARLIER, cell=number, source=sources[number])
        self._start_cell(self.newest, sources[self.newest], None)

    def change(self, values: Mapping[str, object]) -> None:
        """Continue the run with other parameters; the guard follows ``dry_run``."""
        entry = cast("dict[str, Any]", self.prepared.entry)
        before = entry["parameters"]
        changed = {name: value for name, value in values.items() if before.get(name) != value}
        if not changed:
            return
        # A run that was no dry run for a while may have changed something.
        dry_run = entry["dry_run"] and values.get("dry_run") is True
        for known in (entry, self._known):
            known |= {"parameters": dict(values), "dry_run": dry_run}
        allowed = side_effects.allowed_effects(self.prepared.runbook.side_effects, values)
        if _guard is not None:
            _guard.allowed = allowed
        self.journal.append("parameters", changed=changed, side_effects=allowed, at=_now())
        try:
            self.prepared.folder.write_json(archives.RESULT, self._known)
        except OSError as error:
            self.journal.problems[f"The entry of the run could not be written: {error.strerror}."] = None

    def _before_cell(self, info: Any) -> None:
        if self._shell is None or info.silent or not info.store_history:
            return
        number = len(self._shell.history_manager.input_hist_raw)
        self._start_cell(number, info.raw_cell, getattr(info, "cell_id", None))

    def _start_cell(self, number: int, source: str, identifier: str | None) -> None:
        self.newest = self._current = number
        place = cells.place_of(self._places, identifier, source)
        if place is not None and self._places[place].parameters:
            self._parameters_cell = number
        self.journal.append(cells.STARTED, cell=number, id=identifier, at=_now(), source=source)
        self._check_source(number, source, place, unattended=identifier is None and _is_unattended())
        self._shown.clear()
        self._cell_started = time.monotonic()

    def _check_source(self, number: int, source: str, place: int | None, *, unattended: bool) -> None:
        """Let the guard refuse changes in AWS by cells that differ from those of the package.

        A cell that the runbook does not have counts while it runs; under papermill, which passes no IDs of
        cells, it also counts afterwards. An edited cell counts until it is executed in its original form.
        """
        now = ""
        if place is None and self._places:
            now = f"cell [{number}] is not in the runbook."
            if unattended:
                self._edited[-1] = now
        elif place is not None:
            self._edited.pop(place, None)
            known = self._places[place]
            if not known.parameters and cells.source_digest(source) != known.sha256:
                self._edited[place] = f"cell [{number}] was modified."
        if _guard is not None:
            allowed = self.confirmed or self.prepared.runbook.own or endpoint_kind() == "sandbox"
            _guard.unconfirmed = "" if allowed else now or next(iter(self._edited.values()), "")

    def _after_cell(self, result: Any) -> None:
        seconds, number = time.monotonic() - self._cell_started, self._current
        if result is None or number is None or result.info.silent or not result.info.store_history:
            return
        info = result.info
        identifier = getattr(info, "cell_id", None)
        try:
            self._end_cell(number, info.raw_cell, identifier, result, seconds)
        except Exception as error:  # noqa: BLE001 - an error of the recorder must not stop the notebook
            self.journal.problems[f"The recorder failed: {type(error).__name__}: {error}."] = None

    def _end_cell(
        self, number: int, source: str, identifier: str | None, result: Any, seconds: float
    ) -> None:
        self._current = None
        error = result.error_before_exec or result.error_in_exec
        outputs = self._outputs_of(number)
        described = None
        if error is not None:
            outputs.append(self._error_output(number, error))
            described = self._describe(number, error, outputs[-1])
        size = sum(len(str(output)) for output in outputs)
        kept = size <= INLINE_CHARACTERS
        if not kept:
            self._outputs[number] = outputs
        self.journal.append(
            "cell",
            cell=number,
            id=identifier,
            at=_now(),
            seconds=round(seconds, 3),
            outcome=cells.ERROR if error is not None else cells.OK,
            error=described,
            outputs=outputs if kept else [],
            characters_left_out=0 if kept else size,
        )
        place = cells.place_of(self._places, identifier, source)
        if self.ended:
            return
        unattended = identifier is None and _is_unattended()
        if place == len(self._places) - 1 or (unattended and error is not None):
            with side_effects.saving_evidence():
                self.end()

    def _error_output(self, number: int, error: BaseException) -> Any:
        from nbformat.v4 import new_output

        stored = getattr(self._shell.history_manager, "exceptions", {}).get(number) or {}
        traceback = [str(line) for line in stored.get("traceback", [])]
        return new_output(  # type: ignore[no-untyped-call]
            "error", ename=type(error).__name__, evalue=str(error), traceback=traceback
        )

    def _describe(self, number: int, error: BaseException, output: Any) -> dict[str, Any]:
        """Return an error as in ``result.json``, and remember it as the failure of the run."""
        failure = cell_failure(output, number, describe(error))
        status: RunStatus = "partial" if failure.exit_code == PARTIAL else "failed"
        if failure.type in INTERRUPTS:
            status = "cancelled"
        self._failure = (status, failure)
        return failure.to_json()

    def _outputs_of(self, number: int) -> list[Any]:
        """Return the outputs of a cell in nbformat's form, as far as IPython keeps them."""
        found: list[Any] = []
        for output in self._shown:
            kind, bundle = output.output_type, output.bundle
            if kind in ("out_stream", "err_stream"):
                name = "stdout" if kind == "out_stream" else "stderr"
                found.append({"output_type": "stream", "name": name, "text": "".join(bundle["stream"])})
                continue
            data = {
                key: base64.b64encode(value).decode() if isinstance(value, bytes) else value  # a picture
                for key, value in bundle.items()
                if key != WIDGET
            }
            if WIDGET in bundle or sum(len(str(value)) for value in data.values()) > DISPLAY_CHARACTERS:
                continue
            more = {"execution_count": number} if kind == "execute_result" else {}
            found.append({"output_type": kind, "data": data, "metadata": {}, **more})
        return found

    def end(self, *, final: bool = False) -> None:
        """Save the evidence of the run: status, row in the history, notebook and report."""
        from vmsnix_ops.runbooks.execution._output import LiveOutput

        again, self.ended = self.ended, True
        self._last_cell = self._last_cell or self.newest
        folder, prepared = self.prepared.folder, self.prepared
        if again:
            environment = {k: v for k, v in prepared.environment.items() if k not in AFTER_THE_END}
            prepared = replace(prepared, environment=environment)
        else:
            self._decide(final=final)
            # First, because a kernel that is shut down may be killed while the rest is saved: then
            # `vmsnix runs repair` completes the run.
            self._write_status()
        failure = Failure(**self._values["failure"]) if self._values["failure"] else None
        entries = chain.read(folder.local)
        executed = cells.executions(entries)
        cast("dict[str, Any]", prepared.entry)["modified"] = -2 in self._edited or any(
            one.modified for one in executed
        )
        notebook = cells.notebook(entries, self._outputs)
        live = LiveOutput(folder.path(archives.LOG), None, folder.redactor, LOG_CHARACTERS)
        live.problems |= self.journal.problems
        for one in executed:
            live.note(f"[{one.number}] {one.at} {one.outcome} {one.note}".rstrip(), screen=False)
            for output in one.outputs:
                live.note("".join(output.get("text", "")).rstrip(), screen=False)
        values = writing.save(
            prepared,
            notebook,
            live,
            self._values["status"],
            failure,
            self._values["seconds"],
            finished=self._values["finished_at"],
            record=True,
            keep=not final,
        )
        problems = [index.add(folder, values)]
        if not again and _is_unattended():
            problems += notices.send(values, prepared.settings, prepared.environment)
        for problem in filter(None, problems):
            echo(problem, err=True)
        self._values = values
        self._known |= {key: values[key] for key in writing.RUNNER_KEYS}
        if not final:
            self.journal.reload()
        self._saved_entries = self.journal.entries

    def _decide(self, *, final: bool) -> None:
        """Determine the status of the run at its end."""
        status: RunStatus = "done"
        failure: Failure | None = None
        refused = side_effects.read_refusal(self.prepared.folder.local)
        newest_failed = self._failure is not None and self._failure[1].cell == self.newest
        if self._failure is not None and newest_failed:
            status, failure = self._failure
        elif refused is not None:
            status, failure = "failed", refused
        # A program, which executes every cell, may close the kernel after a cell.
        elif final and not (self._current is None and _is_unattended()):
            where = f"in cell {self._current}" if self._current is not None else "before its last cell"
            status = "cancelled"
            failure = Failure(
                "InterruptedRunError",
                f"The kernel was shut down {where}.",
                why="The notebook was closed, or its kernel was stopped or restarted.",
                fix="Run all its cells again: it continues where it stopped.",
                cell=self._current or 0,
            )
        self._values = {
            "status": status,
            "failure": failure.to_json() if failure is not None else None,
            "seconds": round(time.monotonic() - self._clock, 3),
            "finished_at": _now(),
        }

    def _write_status(self) -> None:
        with suppress(OSError):  # reported when the whole entry is written
            path = self.prepared.folder.path(archives.RESULT)
            written = writing.written_values(path)
            self.prepared.folder.write_json(
                archives.RESULT,
                {
                    **written,
                    **self._known,
                    **self._values,
                    "exit_code": (self._values["failure"] or {}).get("exit_code", PARTIAL),
                    "status": "partial" if self._values["status"] == "done" else self._values["status"],
                    "problems": [writing.INCOMPLETE],
                },
            )

    def hand_over(self) -> int:
        """Finish this run for the next one in this kernel; return the number of its first cell.

        The next run begins with the parameters cell that was executed after the end of this run, if any.
        """
        first = self._parameters_cell if self._parameters_cell > self._last_cell else self.newest
        self.journal.append(cells.NEXT, cell=first)
        self.finish()
        return first

    def _finish_at_exit(self) -> None:
        with suppress(ValueError, OSError):  # the program that shuts the kernel down sends it soon
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.finish()

    def finish(self) -> None:
        """End the run if it has not ended, or save what was executed after its end; then forget it."""
        if self._shell is None:
            return
        for event, hook in (("pre_run_cell", self._before_cell), ("post_run_cell", self._after_cell)):
            with suppress(ValueError):
                self._shell.events.unregister(event, hook)
        atexit.unregister(self._finish_at_exit)
        try:
            with side_effects.saving_evidence():
                if not self.ended or self.journal.entries != self._saved_entries:
                    self.end(final=True)
                else:
                    self.prepared.folder.close(done=self._values["status"] == "done")
        except Exception as error:  # noqa: BLE001 - the next run starts anyway
            echo(f"The evidence of the run {self.run_id} is incomplete: {error}", err=True)
        finally:
            self.prepared.folder.release()
            set_kernel_run(None)
            self._shell = None


class _Outputs(defaultdict[int, list[Any]]):
    """IPython's outputs by the number of the cell, with a list of all in their order.

    The numbers cannot be used: ipykernel and IPython count differently while a cell runs.
    """

    def __init__(self, shown: list[Any]) -> None:
        super().__init__()
        self._shown = shown

    def __missing__(self, number: int) -> list[Any]:
        self[number] = _OutputList(self._shown)
        return self[number]

    def setdefault(self, number: int, _default: object = None) -> list[Any]:
        return self[number]


class _OutputList(list[Any]):
    def __init__(self, shown: list[Any]) -> None:
        super().__init__()
        self._shown = shown

    def append(self, output: Any) -> None:
        super().append(output)
        self._shown.append(output)


def _places(runbook: Runbook) -> list[cells.CellPlace]:
    """Return the cells of a runbook; none if its notebook cannot be read, or is of another version."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return cells.places(runbook.path)
    return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
