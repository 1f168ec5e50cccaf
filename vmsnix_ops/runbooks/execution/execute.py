"""Run a runbook and save the evidence: executed notebook, report, result, log, and a row in the history.

>>> from vmsnix_ops.runbooks.execution.execute import run
>>> outcome = run("publish-ami", {"image": "./result"})  # doctest: +SKIP
>>> outcome.status, outcome.values["ami_id"]  # doctest: +SKIP
('done', 'ami-0123456789abcdef0')
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TextIO

from vmsnix_ops import settings as settings_module
from vmsnix_ops.errors import ConfirmationError, ParameterError, RunError
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import chain, index, writing
from vmsnix_ops.runbooks.execution import kernels, notices, side_effects
from vmsnix_ops.runbooks.execution._interrupts import signals
from vmsnix_ops.runbooks.execution._kernel import ERROR_FILE
from vmsnix_ops.runbooks.execution._output import LiveOutput, OutputLimits
from vmsnix_ops.runbooks.execution._secrets import SecretReceiver
from vmsnix_ops.runbooks.execution.status import Failure, read_error, run_status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.outcomes import RunStatus
    from vmsnix_ops.progress import Reporter
    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter
    from vmsnix_ops.runbooks.execution._interrupts import Interrupter
    from vmsnix_ops.runbooks.execution.resume import Resumed


# Slow libraries are imported late, while the kernel starts (measured by ``python -m benchmarks.overhead``).
RFC3987_LIBRARY = "rfc3987_syntax"
REPORT_LIBRARIES = ("nbconvert.exporters.html", "pygments.formatters")
HISTORY_LIBRARIES = ("pandas", "pyarrow.dataset", "deltalake")
KERNEL_LOG_CHARACTERS = 10_000  # of the output of a dead kernel that the log keeps


def preload(*, record: bool) -> None:
    """Import the libraries that a run needs after its last cell, in another thread."""
    names = REPORT_LIBRARIES + (HISTORY_LIBRARIES if record else ())

    def load() -> None:
        for name in names:
            with suppress(Exception):  # the import that needs it reports the error
                importlib.import_module(name)

    if any(name not in sys.modules for name in names):
        threading.Thread(target=load, name="vmsnix-imports", daemon=True).start()


@contextmanager
def without_rfc3987() -> Iterator[None]:
    """Import jsonschema in this block without its check of internationalized addresses.

    The import of the library for this check, a dependency of JupyterLab, takes more than a second. Notebooks
    do not need the check.
    """
    if "jsonschema" in sys.modules or RFC3987_LIBRARY in sys.modules:
        yield
        return
    thread = threading.get_ident()

    def find_spec(name: str, *_others: object) -> None:
        if name == RFC3987_LIBRARY and threading.get_ident() == thread:
            raise ModuleNotFoundError(f"{RFC3987_LIBRARY} is left out", name=RFC3987_LIBRARY)

    finder: Any = SimpleNamespace(find_spec=find_spec)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The outcome of a run."""

    run_id: str  # also the name of its folder in the archive
    runbook: str
    status: RunStatus  # done, failed, partial (some targets done, or evidence missing) or cancelled
    exit_code: int  # 0 done, 1 failed or cancelled, 2 usage error, 3 partial
    # Locations of the evidence: paths, or s3:// locations. `report` is empty if it could not be created.
    notebook: str
    report: str
    result: str
    log: str
    seconds: float  # time from the start of the run to its last cell
    error: Failure | None = None  # None if the run is done
    values: Mapping[str, Any] = field(default_factory=dict)  # content of result.json
    # What could not be saved after the last cell, such as a row of the history, or files on S3, which are
    # then on this machine.
    problems: tuple[str, ...] = ()


def run(
    runbook: str | catalog.Runbook,
    given: Mapping[str, object] | None = None,
    *,
    folder: Path | None = None,
    archive: str | Path | None = None,
    environment: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    screen: TextIO | None = None,
    on_event: Reporter | None = None,
    limits: OutputLimits | None = None,
    interrupter: Interrupter | None = None,
    run_id: str | None = None,
    confirmed: bool = False,
    modified: bool = False,
    record: bool = True,
    notify: bool = False,
    resumed: Resumed | None = None,
) -> RunOutcome:
    """Run a runbook with papermill, and save the evidence, also of a failed run.

    In the main thread, Ctrl-C and SIGTERM interrupt the running cell, so that its ``finally`` blocks clean
    up; a second signal stops the run immediately. `interrupter` lets another thread stop it. An error in a
    cell is not raised: the outcome has it.

    Text in `given` is parsed by the declared type of its parameter. `environment` changes the variables of
    this process for the kernel, the settings and the archive; ``None`` removes one. `screen` shows the
    output; with `on_event`, which this thread calls with every `vmsnix_ops.progress.Event`, only the log and
    the notebook contain lines about progress. With `notify`, a failed or partial run sends the notices of the
    settings. `resumed` is the past run of which this is the next attempt; then `archive` and `run_id` are not
    used.

    A run that is not a dry run needs `confirmed` if the runbook deletes, and, except on a sandbox, `modified`
    if the cells of a notebook of the package were modified and it does not only read. A modified notebook has
    the parameters and defaults of the unmodified one.

    Nothing has run after an `UnknownRunbookError`, `ParameterError`, `SettingsError` (the call is wrong),
    `ConfirmationError` or `ArchiveError` (the archive cannot be written). A `RunError`: the notebook cannot
    be read, or no kernel can be started.
    """
    cwd = (Path.cwd() if cwd is None else cwd).absolute()
    if not cwd.is_dir():
        raise RunError(f"The working directory does not exist: {cwd}.", fix="Use an existing folder.")
    merged = {**os.environ, **(environment or {})}
    variables = {name: value for name, value in merged.items() if value is not None}
    wanted = runbook
    if isinstance(wanted, str):
        wanted = catalog.find(wanted, folder, start=cwd, environment=variables)
    checked = parameters.check_call(wanted, given or {}, environment=variables, cwd=cwd)
    values = writing.all_parameters(wanted, checked)
    allowed = modified or bool(variables.get("VMSNIX_SANDBOX"))
    content, differs = read_notebook(wanted, values, modified=allowed)
    if not confirmed and side_effects.allowed_effects(wanted.side_effects, values) == "deletes":
        raise ConfirmationError(
            f"{wanted.name} would delete resources. Pass --yes to confirm.",
            why="dry_run is off, and the run is not confirmed.",
            fix="Check a dry run first, then confirm with --yes (in Python: run(..., confirmed=True)).",
        )
    settings = settings_module.load(cwd, variables)
    started = datetime.now(UTC)
    past = resumed.past if resumed is not None else None
    run_id = past.run_id if past is not None else run_id or new_run_id(wanted.name, now=started)
    attempt = past.attempt + 1 if past is not None else 1
    entry = writing.first_entry(wanted, run_id, values, variables, cwd, started, attempt=attempt)
    entry["modified"] = differs if past is None else past.values.get("modified")
    work = settings.state / "runs"
    if resumed is not None:
        opened = resumed.reopen(entry, variables, settings)
    else:
        opened = archives.open_folder(
            archive or settings.archive,
            run_id,
            {**entry, "status": "running"},
            work=work,
            environment=variables,
        )
    journal = chain.continued(opened.local, settings.state, run_id, opened.redactor)
    journal.append(chain.START, entry=entry, cells=catalog.digest(json.loads(content)))
    # An edited parameters cell must not change a default.
    passed = values if differs else checked
    prepared = writing.PreparedRun(wanted, content, passed, settings, variables, cwd, opened, entry)
    try:
        outcome = _run(prepared, screen, on_event, limits or OutputLimits(), interrupter, record=record)
    finally:
        opened.release()
    if notify and (unsent := notices.send(outcome.values, settings, variables)):
        outcome = replace(outcome, problems=(*outcome.problems, *unsent))
    return outcome


def read_notebook(
    runbook: Runbook, values: Mapping[str, object], *, modified: bool = False
) -> tuple[str, bool | None]:
    """Return the content of a notebook, and whether it was modified, as `catalog.content`.

    A `ConfirmationError` if it was modified and would change something in AWS with these parameters, and
    `modified` is not set.
    """
    content, differs = catalog.content(runbook)
    effect = side_effects.allowed_effects(runbook.side_effects, values)
    if differs and not modified and effect != "read_only":
        raise ConfirmationError(
            f"{runbook.path.name} was modified: its cells differ from those of the package.",
            why=f"{runbook.name} {effect} resources, so a modified notebook needs a confirmation.",
            fix=f"Compare it: vmsnix runbooks diff {runbook.short_name}. {catalog.restore(runbook)}. "
            "To run the modified notebook, add --modified (in Python: run(..., modified=True)).",
        )
    return content, differs


def _run(
    prepared: writing.PreparedRun,
    screen: TextIO | None,
    on_event: Reporter | None,
    limits: OutputLimits,
    interrupter: Interrupter | None,
    *,
    record: bool,
) -> RunOutcome:
    redactor = prepared.folder.redactor
    clock = time.monotonic()
    with ExitStack() as stack:
        stopper = stack.enter_context(signals(interrupter))
        live = LiveOutput(
            prepared.folder.path(archives.LOG),
            screen,
            redactor,
            limits.log,
            on_event=on_event,
            folds=prepared.environment.get("GITHUB_ACTIONS") == "true",
        )
        stack.callback(live.close)
        title = f"{prepared.runbook.slug}, run {prepared.folder.run_id}"
        if prepared.entry["modified"]:
            live.note(f"{title}, MODIFIED: its cells differ from those of the package")
        else:
            live.note(title, screen=False)
        notebook, crash = _execute(prepared, live, limits, stopper, record=record)
        seconds = round(time.monotonic() - clock, 3)
        status, failure = run_status(
            notebook,
            interrupted=stopper.requested,
            crash=crash,
            described=read_error(prepared.folder.path(ERROR_FILE)),
        )
        refused = side_effects.read_refusal(prepared.folder.local)
        if failure is None and refused is not None:  # the notebook suppressed the error
            status, failure = "failed", refused
        if failure is not None:
            failure = Failure(**redactor.value(failure.to_json()))
            live.note(f"{status}: {failure}", screen=False)
        values = writing.save(prepared, notebook, live, status, failure, seconds, record=record)
        unlisted = index.add(prepared.folder, values)
    names = ("status", "exit_code", "notebook", "report", "result", "log")
    return RunOutcome(
        run_id=prepared.folder.run_id,
        runbook=prepared.runbook.name,
        **{name: values[name] for name in names},
        seconds=seconds,
        error=failure,
        values=values,
        problems=(*values["problems"], *([unlisted] if unlisted else [])),
    )


def _execute(
    prepared: writing.PreparedRun,
    live: LiveOutput,
    limits: OutputLimits,
    stopper: Interrupter,
    *,
    record: bool,
) -> tuple[Any, Failure | None]:
    """Execute the notebook; return it, also if it is incomplete, and an error outside of its cells."""
    with without_rfc3987():
        import nbformat

        from vmsnix_ops.runbooks.execution import _engine

    notebook = nbformat.reads(prepared.content, as_version=4)  # type: ignore[no-untyped-call]

    def save(executed: Any) -> None:
        with suppress(OSError):  # the notebook is saved again at the end, where an error is reported
            clean, _found = writing.without_secrets(executed, prepared.folder.redactor)
            writing.write_notebook(prepared.folder, clean)
            prepared.folder.redact()

    with (
        tempfile.TemporaryDirectory(prefix="vmsnix-ipython-") as ipython,
        closing(SecretReceiver()) as receiver,
    ):
        kernel_log = Path(ipython) / "kernel.log"
        session = _engine.KernelSession(
            environment=_kernel_environment(prepared, ipython),
            cwd=prepared.cwd,
            live=live,
            limits=limits,
            interrupter=stopper,
            kernel_log=kernel_log,
            save=save,
            receiver=receiver,
            on_kernel_start=partial(preload, record=record),
        )
        crash = None
        try:
            _engine.execute(notebook, dict(prepared.parameters), session)
        except _engine.DeadKernelError:
            counts = (cell.get("execution_count") or 0 for cell in session.notebook.cells)
            crash = Failure(
                "DeadKernelError",
                f"The kernel died in cell {max(counts, default=0)}.",
                why="It was killed or it crashed; a common reason is a lack of memory.",
                fix="Run it again with more memory: it continues where it stopped.",
            )
        except _engine.KernelStartError as error:
            crash = Failure(
                "KernelStartError",
                "The notebook's kernel did not start in two attempts.",
                why=f"{error}.",
                fix=f"Check the output of `{sys.executable} -m ipykernel_launcher`.",
            )
        if crash is not None and kernel_log.is_file():
            text = kernel_log.read_text(encoding="utf-8", errors="replace")[-KERNEL_LOG_CHARACTERS:]
            live.note(f"The last output of the kernel:\n{text}", screen=False)
        return session.notebook if session.notebook is not None else notebook, crash


def _kernel_environment(prepared: writing.PreparedRun, ipython: str) -> dict[str, str]:
    """Return the environment variables of the kernel, without those of the user's IPython."""
    own = {name: value for name, value in prepared.environment.items() if name not in kernels.STARTUP}
    if sys.stdout.isatty():
        own = {"COLUMNS": str(shutil.get_terminal_size().columns), **own}  # for the texts of the cells
    return {
        **own,
        **kernels.python_path(prepared.environment),
        "VMSNIX_SHARED": "true" if prepared.settings.shared else "false",
        "VMSNIX_RUN_ID": prepared.folder.run_id,
        "VMSNIX_RUNBOOK": prepared.runbook.name,
        "VMSNIX_NOTEBOOK": str(prepared.runbook.path),
        "VMSNIX_RUN_DIR": str(prepared.folder.local),
        "VMSNIX_PROGRESS": prepared.environment.get("VMSNIX_PROGRESS") or "messages",
        "VMSNIX_SIDE_EFFECTS": side_effects.allowed_effects(
            prepared.runbook.side_effects, prepared.entry["parameters"]
        ),
        "VMSNIX_RUN_ENTRY": prepared.folder.entry if prepared.folder.remote else "",
        "IPYTHONDIR": ipython,
    }


def same_parameters(
    runbook: Runbook, recorded: Mapping[str, object], given: Mapping[str, object]
) -> dict[str, object]:
    """Return the recorded parameters of a past run, with the given ones replaced, to run it again.

    Recorded defaults are used too: a default that has changed since then does not change a repeated run. A
    `ParameterError` if a given parameter is invalid, or the parameters of the runbook have changed since
    then. A parameter that is new or has another type can be given.
    """
    replaced = parameters.check(runbook, given)
    declared = {parameter.name: parameter for parameter in runbook.parameters}
    removed = [name for name in recorded if name not in declared]
    added = [name for name in declared if name not in recorded and name not in replaced]
    changed = [
        name
        for name, value in recorded.items()
        if name in declared and name not in replaced and not _is_valid(declared[name], value)
    ]
    changes = "; ".join(
        f"{words} {', '.join(names)}"
        for words, names in (
            ("removed since then:", removed),
            ("added since then:", added),
            ("with another type or other choices now:", changed),
        )
        if names
    )
    if changes:
        raise ParameterError(
            f"The parameters of {runbook.name} have changed since that run.",
            why=f"{changes[0].upper()}{changes[1:]}.",
            fix=f"Run it as a new run: `vmsnix help {runbook.short_name}` lists its parameters."
            if removed
            else "Add these after the run ID.",
        )
    return {**recorded, **replaced}


def _is_valid(parameter: Parameter, value: object) -> bool:
    if isinstance(value, str) and parameter.type.kind != "str":
        return False  # only text that people type is parsed; recorded values have their type
    if isinstance(value, str) and "[secret removed" in value:
        return False
    try:
        parameters.convert(parameter, value)
    except ParameterError:
        return False
    return True
