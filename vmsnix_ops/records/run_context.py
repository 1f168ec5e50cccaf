"""The run of this process: its ID, and the folder for its results."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import RecordsError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.settings import Settings

# A run ID is used as a folder name, a tag value and a part of a key: it must not contain "/".
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NEW_RUN_ID = re.compile(r"(?P<started>\d{8}T\d{9}Z)-(?P<runbook>[A-Za-z0-9-]+)-[0-9a-f]{6}")
"""Run IDs of `new_run_id`; they sort by the start of the run."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run of one runbook."""

    run_id: str
    runbook: str  # its name, or "interactive"
    folder: Path  # for result.json and logs
    managed: bool  # whether the runner or the kernel's recorder archives the folder and records the run
    entry: str = ""  # URL of result.json in an archive on S3; empty for a local archive
    # Values of result.json that those of a job do not replace, such as the status before the end.
    known: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


_kernel_run: RunContext | None = None


def set_kernel_run(run: RunContext | None) -> None:
    """Set the run of this kernel, which the runner did not start; `current_run` returns it from now on."""
    global _kernel_run
    _kernel_run = run


def new_run_id(runbook: str, *, now: datetime | None = None) -> str:
    """Return a new run ID: start time in milliseconds, runbook, and six random hexadecimal digits.

    >>> new_run_id("publish-ami", now=datetime(2026, 11, 22, 21, 30, tzinfo=UTC))[:-6]
    '20261122T213000000Z-publish-ami-'
    """
    moment = datetime.now(UTC) if now is None else now.astimezone(UTC)
    word = re.sub(r"[^A-Za-z0-9]+", "-", runbook).strip("-")[:64] or "run"
    return f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03}Z-{word}-{secrets.token_hex(3)}"


def current_run(
    runbook: str = "interactive",
    *,
    settings: Settings | None = None,
    environment: Mapping[str, str] | None = None,
    make_folder: bool = True,
) -> RunContext:
    """Return the run of this kernel, or a new one.

    The runner passes its run to the kernel with ``VMSNIX_RUN_ID``, ``VMSNIX_RUNBOOK``, ``VMSNIX_RUN_DIR``
    and, with an archive on S3, ``VMSNIX_RUN_ENTRY``. In a kernel that the runner did not start, the first
    call of a runbook starts a run (`vmsnix_ops.runbooks.execution.interactive`). Otherwise, such as in a
    program, every call creates a new run with its own folder below ``<state>/runs``, and `runbook` is a part
    of its ID. Without `make_folder` the folder is not created: a job that only reads creates it when its
    result is saved.

    Raises a `SettingsError` for an invalid ``VMSNIX_RUN_ID``, and a `RecordsError` if the folder cannot be
    created.
    """
    environment = os.environ if environment is None else environment
    run_id = environment.get("VMSNIX_RUN_ID", "")
    if run_id and not RUN_ID.fullmatch(run_id):
        raise SettingsError(
            f"Invalid run ID VMSNIX_RUN_ID={run_id!r}.",
            why="A run ID is used as a folder name and a tag: up to 128 letters, digits, '.', '_' and '-'.",
            fix="Run unset VMSNIX_RUN_ID; vmsnix sets it where it is needed.",
        )
    managed = bool(run_id)
    if not managed and _kernel_run is not None and environment is os.environ:
        return _kernel_run
    if managed:
        runbook = environment.get("VMSNIX_RUNBOOK") or runbook
    else:
        run_id = new_run_id(runbook)
    path = environment.get("VMSNIX_RUN_DIR", "") if managed else ""
    folder = Path(path).absolute() if path else _state(settings, environment) / "runs" / run_id
    try:
        if make_folder:
            files.make_folder(folder)
    except OSError as error:
        raise RecordsError(
            f"Could not create the folder of the run: {folder}.",
            why=f"{error.strerror}.",
            fix=f"{files.fix_of(error)}, or set VMSNIX_STATE to another folder.",
        ) from error
    entry = environment.get("VMSNIX_RUN_ENTRY", "") if managed else ""
    return RunContext(run_id, runbook, folder, managed, entry)


def _state(settings: Settings | None, environment: Mapping[str, str]) -> Path:
    if settings is None:
        from vmsnix_ops.settings import load

        settings = load(environment=environment)
    return settings.state
