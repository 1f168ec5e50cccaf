"""The run that this process is part of: its name, and the folder where its results go."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.errors import RecordsError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.settings import Settings

# A run id becomes a folder, a tag value and part of a key: nothing in it may lead out of a folder or look
# like an option.
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NEW_RUN_ID = re.compile(r"(?P<started>\d{8}T\d{9}Z)-(?P<runbook>[A-Za-z0-9-]+)-[0-9a-f]{6}")
"""Run IDs as `new_run_id` makes them; they sort by the time when the run started."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run of one runbook.

    Attributes
    ----------
    run_id
        Name of the run; sorts by time.
    runbook
        The runbook, ``"interactive"`` when there is none.
    folder
        Existing folder for ``result.json`` and logs.
    managed
        Whether a runner started it, who then archives the folder and writes the row in `runs`.
    entry
        Where its ``result.json`` will be found by everybody, ``s3://...``; empty when the archive is on this
        machine.
    """

    run_id: str
    runbook: str
    folder: Path
    managed: bool
    entry: str = ""


def new_run_id(runbook: str, *, now: datetime | None = None) -> str:
    """Return a new run ID: start time in milliseconds, runbook, and six random hexadecimal digits.

    Parameters
    ----------
    runbook
        The runbook; characters that have no place in a file name become ``-``.
    now
        When the run starts; now by default.

    Examples
    --------
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
) -> RunContext:
    """Return the run that the runner started, or begin a new one.

    The runner names its run to every kernel with ``VMSNIX_RUN_ID``, ``VMSNIX_RUNBOOK``, ``VMSNIX_RUN_DIR``
    and, with an archive on S3, ``VMSNIX_RUN_ENTRY``. Without them (JupyterLab, a program) every call begins a
    new run in its own folder below ``<state>/runs``.

    Parameters
    ----------
    runbook
        What a new run is called after.
    settings
        Tell the state folder; loaded when left out and needed.
    environment
        The variables; ``os.environ`` by default.

    Raises
    ------
    SettingsError
        When ``VMSNIX_RUN_ID`` is no name for a run.
    RecordsError
        When the run's folder cannot be made.
    """
    environment = os.environ if environment is None else environment
    run_id = environment.get("VMSNIX_RUN_ID", "")
    if run_id and not _RUN_ID.fullmatch(run_id):
        raise SettingsError(
            f"Invalid run id VMSNIX_RUN_ID={run_id!r}.",
            why="A run id is used as a folder name and a tag: up to 128 letters, digits, '.', '_' and '-'.",
            fix="Run unset VMSNIX_RUN_ID; vmsnix sets it where it is needed.",
        )
    managed = bool(run_id)
    if managed:
        runbook = environment.get("VMSNIX_RUNBOOK") or runbook
    else:
        run_id = new_run_id(runbook)
    named = environment.get("VMSNIX_RUN_DIR", "") if managed else ""
    folder = Path(named).absolute() if named else _state(settings, environment) / "runs" / run_id
    try:
        files.make_folder(folder)
    except OSError as error:
        raise RecordsError(
            f"Could not create the folder of the run: {folder}.",
            why=f"{error.strerror}.",
            fix="Correct its permissions, or set VMSNIX_STATE to another folder.",
        ) from error
    entry = environment.get("VMSNIX_RUN_ENTRY", "") if managed else ""
    return RunContext(run_id, runbook, folder, managed, entry)


def _state(settings: Settings | None, environment: Mapping[str, str]) -> Path:
    if settings is None:
        from vmsnix_ops.settings import load

        settings = load(environment=environment)
    return settings.state
