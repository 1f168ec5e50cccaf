"""Runs a runbook and keeps the evidence: executed notebook, report, result, log, and a row in the history.

>>> from vmsnix_ops.runbooks.execution.execute import run
>>> outcome = run("publish-ami", {"image": "./result"})  # doctest: +SKIP
>>> outcome.verdict, outcome.values["ami_id"]  # doctest: +SKIP
('done', 'ami-0123456789abcdef0')
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vmsnix_ops import settings as settings_module
from vmsnix_ops.errors import ConfirmationError, ParameterError, RunError
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.redaction import Redactor
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import writing
from vmsnix_ops.runbooks.execution import kernels, side_effects
from vmsnix_ops.runbooks.execution._interrupts import signals
from vmsnix_ops.runbooks.execution._kernel import ERROR_FILE
from vmsnix_ops.runbooks.execution._output import Limits, Live
from vmsnix_ops.runbooks.execution._secrets import Inbox
from vmsnix_ops.runbooks.execution.verdict import Failure, judge, kept_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from vmsnix_ops.outcomes import RunStatus
    from vmsnix_ops.progress import Reporter
    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.declarations import Parameter
    from vmsnix_ops.runbooks.execution._interrupts import Interrupter


# When the runner's heavy libraries are imported: each as late as possible, and not in the way.
#
# Measured by ``python -m benchmarks.overhead``.

GRAMMAR = "rfc3987_syntax"
AFTERWARDS = ("nbconvert.exporters.html", "pygments.formatters")
HISTORY = ("pandas", "pyarrow.dataset", "deltalake")


def warm_up(*, record: bool) -> None:
    """Import what a run needs after its last cell while its kernel starts, which is mostly waiting.

    Parameters
    ----------
    record
        Whether the run gets a row in the history.
    """
    names = AFTERWARDS + (HISTORY if record else ())

    def load() -> None:
        for name in names:
            with suppress(Exception):  # who needs it imports it again, and says what is wrong
                importlib.import_module(name)

    if any(name not in sys.modules for name in names):
        threading.Thread(target=load, name="vmsnix-imports", daemon=True).start()


@contextmanager
def without_grammar() -> Iterator[None]:
    """Let jsonschema be imported in this block without its check of internationalized addresses.

    JupyterLab brings a library for that, which compiles a grammar of its own at import: a second and more
    at the start of every run, for a check that no notebook asks for.
    """
    if "jsonschema" in sys.modules or GRAMMAR in sys.modules:
        yield
        return
    finder = _Absent(threading.get_ident())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Absent(importlib.abc.MetaPathFinder):
    """Makes a library look as if it were not installed, for one thread."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - importlib's signature
        target: ModuleType | None = None,  # noqa: ARG002 - importlib's signature
    ) -> ModuleSpec | None:
        if fullname == GRAMMAR and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{GRAMMAR} is left out", name=GRAMMAR)
        return None


KERNEL_WORDS = 10_000  # characters of a dead kernel's own output that the log keeps


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What became of a run.

    Attributes
    ----------
    run_id
        Sorts by time; also the name of the run's folder in the archive.
    runbook
        Name of the runbook.
    verdict
        ``done``, ``failed``, ``partial`` (some targets done) or ``cancelled``.
    exit_code
        0 done, 1 failed or cancelled, 2 wrong use, 3 partial or done but not fully kept.
    notebook, report, result, log
        Where the evidence is: local paths, or ``s3://`` locations. `report` is empty when it could not be
        made.
    seconds
        From the start of the run to its last cell.
    error
        What ended the run, ``None`` when it is done.
    values
        Content of ``result.json``: the runbook's own results beside the run's.
    problems
        What went wrong after the last cell, such as a history that could not be written, or an archive on
        S3 that refused; its files are on this machine then.
    """

    run_id: str
    runbook: str
    verdict: RunStatus
    exit_code: int
    notebook: str
    report: str
    result: str
    log: str
    seconds: float
    error: Failure | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
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
    limits: Limits | None = None,
    interrupter: Interrupter | None = None,
    run_id: str | None = None,
    confirmed: bool = False,
    record: bool = True,
) -> RunOutcome:
    """Run a runbook through papermill, judge it, and keep the evidence, whatever becomes of it.

    In the main thread, Ctrl-C and SIGTERM interrupt the running cell, so that the notebook's own
    ``finally`` blocks clean up; a second one stops at once.

    Parameters
    ----------
    runbook
        Name, with or without number, or the runbook itself.
    given
        Parameters by name. Text is parsed by the declared type.
    folder
        Where the notebooks are; the package's own by default.
    archive
        Local folder or ``s3://bucket/prefix`` for this run's folder; the setting ``archive`` by default.
    environment
        Variables on top of this process's (``None`` takes one away), for the kernel, the settings and the
        archive (a sandbox's, for example).
    cwd
        Working directory of the kernel, from which relative paths in parameters count; this process's by
        default.
    screen
        Where the notebook's lines are shown while it runs; nowhere by default.
    on_event
        Called with every `vmsnix_ops.progress.Event` of the notebook's steps, in this thread. The screen then
        gets no lines about them; log and notebook do.
    limits
        How much output is kept.
    interrupter
        By which another thread can stop the run.
    run_id
        Name of the run, from `new_run_id`, for a caller who must know it before; a fresh one by default.
    confirmed
        Whether somebody confirmed that a runbook which destroys shall do so. A dry run needs nobody.
    record
        Whether the run gets a row in the history.

    Returns
    -------
    RunOutcome
        Also for a failed run: a failing cell raises nothing here.

    Raises
    ------
    UnknownRunbookError, ParameterError, SettingsError
        The call is wrong; nothing has run.
    ConfirmationError
        The runbook would destroy, and nobody has confirmed it; nothing has run.
    ArchiveError
        The archive cannot be written; nothing has run.
    RunError
        The notebook cannot be read, or no kernel can be started.
    """
    prepared = _prepare(
        runbook, given or {}, folder, archive, environment or {}, _place(cwd), run_id, confirmed=confirmed
    )
    try:
        return _run(prepared, screen, on_event, limits or Limits(), interrupter, record=record)
    finally:
        prepared.folder.rest()


def _prepare(
    runbook: str | catalog.Runbook,
    given: Mapping[str, object],
    folder: Path | None,
    archive: str | Path | None,
    environment: Mapping[str, str | None],
    cwd: Path,
    run_id: str | None,
    *,
    confirmed: bool,
) -> writing.Run:
    wanted = catalog.find(runbook, folder) if isinstance(runbook, str) else runbook
    checked = parameters.check(wanted, given)
    if not confirmed:
        _confirm(wanted, checked)
    merged = {**os.environ, **environment}
    whole = {name: value for name, value in merged.items() if value is not None}
    settings = settings_module.load(cwd, whole)
    started = datetime.now(UTC)
    run_id = run_id or new_run_id(wanted.name, now=started)
    opened = archives.open_folder(
        archive or settings.archive,
        run_id,
        {**writing.about(wanted, run_id, checked, started, whole, cwd), "status": "running"},
        work=settings.state / "runs",
        environment=whole,
    )
    return writing.Run(wanted, checked, settings, whole, cwd, opened, started)


def _confirm(runbook: catalog.Runbook, given: Mapping[str, object]) -> None:
    """Refuse to destroy unasked."""
    settled = writing.settled(runbook, given)
    if side_effects.level(runbook.side_effects, settled) == "destroys":
        raise ConfirmationError(
            f"{runbook.name} would destroy resources. Pass --yes to confirm.",
            why="dry_run is off, and the run is not confirmed.",
            fix="Check a dry run first, then confirm with --yes (in Python: run(..., confirmed=True)).",
        )


def _place(cwd: Path | None) -> Path:
    place = (Path.cwd() if cwd is None else cwd).absolute()
    if not place.is_dir():
        raise RunError(f"The working directory does not exist: {place}.", fix="Use an existing folder.")
    return place


def _run(
    prepared: writing.Run,
    screen: TextIO | None,
    on_event: Reporter | None,
    limits: Limits,
    interrupter: Interrupter | None,
    *,
    record: bool,
) -> RunOutcome:
    redactor = prepared.folder.redactor
    clock = time.monotonic()
    with ExitStack() as stack:
        stopper = stack.enter_context(signals(interrupter))
        live = Live(
            prepared.folder.path(archives.LOG),
            screen,
            redactor,
            limits.log,
            on_event=on_event,
            folds=prepared.environment.get("GITHUB_ACTIONS") == "true",
        )
        stack.callback(live.close)
        live.note(f"{prepared.runbook.slug}, run {prepared.folder.run_id}", screen=False)
        notebook, crash = _execute(prepared, live, redactor, limits, stopper, record=record)
        seconds = round(time.monotonic() - clock, 3)
        judged, failure = judge(
            notebook,
            interrupted=stopper.requested,
            crash=crash,
            kept=kept_error(prepared.folder.path(ERROR_FILE)),
        )
        refused = side_effects.refusals(prepared.folder.local)
        if failure is None and refused:  # the notebook went on as if nothing had been
            judged, failure = "failed", _refusal(refused[0])
        if failure is not None:
            failure = Failure(**redactor.value(failure.to_json()))
            live.note(f"{judged}: {failure}", screen=False)
        values = writing.keep(prepared, notebook, redactor, live, judged, failure, seconds, record=record)
    return RunOutcome(
        run_id=prepared.folder.run_id,
        runbook=prepared.runbook.name,
        verdict=judged,
        exit_code=values["exit_code"],
        notebook=values["notebook"],
        report=values["report"],
        result=values["result"],
        log=values["log"],
        seconds=seconds,
        error=failure,
        values=values,
        problems=tuple(values["problems"]),
    )


def _refusal(refused: Mapping[str, str]) -> Failure:
    return Failure("SideEffectsError", refused["what"], refused["why"], refused["fix"])


def _execute(
    prepared: writing.Run,
    live: Live,
    redactor: Redactor,
    limits: Limits,
    stopper: Interrupter,
    *,
    record: bool,
) -> tuple[Any, Failure | None]:
    """Execute the notebook; return it as far as it came, and what ended it from outside of its cells."""
    with without_grammar():
        import nbformat

        from vmsnix_ops.runbooks.execution import _engine

    notebook = nbformat.read(prepared.runbook.path, as_version=4)  # type: ignore[no-untyped-call]

    def save(executed: Any) -> None:
        with suppress(OSError):  # at the end it is done once more, and then it counts
            writing.write_notebook(prepared.folder, writing.without_secrets(executed, redactor)[0])
            prepared.folder.clean()

    with tempfile.TemporaryDirectory(prefix="vmsnix-ipython-") as ipython, closing(Inbox()) as inbox:
        kernel_log = Path(ipython) / "kernel.log"
        session = _engine.Session(
            environment=_kernel_environment(prepared, ipython),
            cwd=prepared.cwd,
            live=live,
            limits=limits,
            interrupter=stopper,
            kernel_log=kernel_log,
            save=save,
            inbox=inbox,
            waiting=partial(warm_up, record=record),
        )
        crash = None
        try:
            _engine.execute(notebook, dict(prepared.parameters), session)
        except _engine.DeadKernelError:
            crash = Failure(
                "DeadKernelError",
                f"The kernel died in cell {_last_started(session.notebook)}.",
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
            last = kernel_log.read_text(encoding="utf-8", errors="replace")[-KERNEL_WORDS:]
            live.note(f"The last output of the kernel:\n{last}", screen=False)
        return session.notebook if session.notebook is not None else notebook, crash


def _last_started(notebook: Any) -> int:
    return max((cell.get("execution_count") or 0 for cell in notebook.cells), default=0)


def _kernel_environment(prepared: writing.Run, ipython: str) -> dict[str, str]:
    """Return the variables of the kernel: the caller's, who the run is, and nothing of the user's IPython."""
    own = {name: value for name, value in prepared.environment.items() if name not in kernels.STARTUP}
    return {
        **own,
        **kernels.python_path(prepared.environment),
        "VMSNIX_SHARED": "true" if prepared.settings.shared else "false",
        "VMSNIX_RUN_ID": prepared.folder.run_id,
        "VMSNIX_RUNBOOK": prepared.runbook.name,
        "VMSNIX_RUN_DIR": str(prepared.folder.local),
        "VMSNIX_PROGRESS": prepared.environment.get("VMSNIX_PROGRESS") or "messages",
        "VMSNIX_SIDE_EFFECTS": side_effects.level(prepared.runbook.side_effects, prepared.settled),
        "VMSNIX_RUN_ENTRY": prepared.folder.entry if prepared.folder.remote else "",
        "IPYTHONDIR": ipython,
    }


# A run once more, with the same parameters.


def same_parameters(
    runbook: Runbook, recorded: Mapping[str, object], given: Mapping[str, object]
) -> dict[str, object]:
    """Return the parameters of a run, to be used again, with some of them replaced.

    All of them are settled by the record, also those that had their default: a default that has changed
    since does not change what is repeated.

    Parameters
    ----------
    runbook
        As it is now.
    recorded
        Every parameter that the run had, as ``result.json`` has them.
    given
        What shall be another this time.

    Raises
    ------
    ParameterError
        When the runbook takes other parameters than it did, which are named; a parameter that is new or
        of another type may be given. And when a given one does not fit.
    """
    settled = parameters.check(runbook, given)
    declared = {parameter.name: parameter for parameter in runbook.parameters}
    lost = [name for name in recorded if name not in declared]
    new = [name for name in declared if name not in recorded and name not in settled]
    other = [
        name
        for name, value in recorded.items()
        if name in declared and name not in settled and not _fits(declared[name], value)
    ]
    changes = [
        f"{words} {', '.join(names)}"
        for words, names in (
            ("removed since then:", lost),
            ("added since then:", new),
            ("with another type or other choices now:", other),
        )
        if names
    ]
    if changes:
        raise ParameterError(
            f"The parameters of {runbook.name} have changed since that run.",
            why=f"{'; '.join(changes)}."[0].upper() + f"{'; '.join(changes)}."[1:],
            fix=f"Run it as a new run: `vmsnix help {runbook.short_name}` lists its parameters."
            if lost
            else "Add these after the run ID.",
        )
    return {**recorded, **settled}


def _fits(parameter: Parameter, value: object) -> bool:
    if isinstance(value, str) and parameter.type.kind != "str":
        return False  # text is parsed when people give it; a record has values
    if isinstance(value, str) and "[secret removed" in value:
        return False
    try:
        parameters.convert(parameter, value)
    except ParameterError:
        return False
    return True
