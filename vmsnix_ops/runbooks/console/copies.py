"""The evidence of a run where JupyterLab can open it: copied below the folder of the notebook that is open.

The archive lies in the state folder or on S3, outside of what a Jupyter server shows. What is opened here is
a copy: whoever edits it leaves the evidence as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import ArchiveError, VmsnixError
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.evidence.runs import open_archive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.console.places import Place
    from vmsnix_ops.runbooks.evidence.runs import Archive, Entry

FOLDER = "runs"
KEPT = 30
"""Runs whose copies are kept; older ones are copied again when somebody asks."""

FILES = (archive.NOTEBOOK, archive.REPORT, archive.LOG)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The files of a run.

    Attributes
    ----------
    place
        Folder or ``s3://`` location of the archive.
    links
        File name to its path relative to the notebook that is open: what JupyterLab can open.
    report
        The report as HTML text; empty when there is none.
    values
        Content of ``result.json``.
    problem
        What is missing, and why.
    """

    place: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    report: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def bring(run_id: str, place: Place) -> Evidence:
    """Copy the files of a run below the folder of the notebook that is open, and return where they are."""
    try:
        settings = place.settings()
        shelf = open_archive(settings, environment=place.environment)
        entry = shelf.find(run_id)
    except VmsnixError as error:
        return Evidence(problem=str(error))
    folder = Path(os.environ.get("JPY_SESSION_NAME", "")).absolute().parent / FOLDER / run_id
    where = f"{settings.archive.rstrip('/')}/{run_id}"
    try:
        files.make_folder(folder)
        problem = _copy(shelf, entry, folder)
        _clear(folder.parent)
    except OSError as error:
        problem = f"The files cannot be copied: {error.strerror}: {error.filename}."
        return Evidence(where, values=entry.values, problem=problem)
    names = [name for name in (*FILES, archive.RESULT) if (folder / name).is_file()]
    report = folder / archive.REPORT
    return Evidence(
        where,
        {name: f"{FOLDER}/{run_id}/{name}" for name in names},
        report.read_text(encoding="utf-8") if report.is_file() else "",
        entry.values,
        problem,
    )


def _copy(shelf: Archive, entry: Entry, folder: Path) -> str:
    """Copy what there is; return what is wrong with the rest."""
    problems = []
    files.write(folder / archive.RESULT, json.dumps(entry.values, indent=2, ensure_ascii=False) + "\n")
    for name in FILES:
        try:
            files.write(folder / name, shelf.fetch(entry, name))
        except ArchiveError as error:
            problems.append(f"{error.what} {error.why}".strip())
    return " ".join(problems)


def _clear(copies: Path) -> None:
    """Remove the copies that were made longest ago."""
    ordered = sorted(copies.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in ordered[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
