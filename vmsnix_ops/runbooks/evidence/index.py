"""The list of all runs in an archive: ``index.json``, and ``index.html`` for people without vmsnix.

Each run adds its row when it ends. The list derives from the entries of the runs, so it can be made again at
any time, and a failure to write it is reported but does not change the status of a run.

Several runs may end at once. In a folder, a lock makes them write one after the other. In a bucket, a run
replaces the ``index.json`` that it read (``If-Match``), else it reads and tries again. The page is written
after the list, and again if the list has changed meanwhile, so that the last page has the last list. A run
that could not write its row, such as a killed one, is in the archive's listing and is added by the next run.
"""

from __future__ import annotations

import json
import os
import random
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vmsnix_ops import files, templates
from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.pages import PLAIN_ROWS, PageColumn, PageTable
from vmsnix_ops.records.result import is_dry_run, places
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence.runs import RUNNING, Archive
from vmsnix_ops.text import json as as_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

DATA, PAGE = "index.json", "index.html"
LOCK = ".index.lock"
VERSION = 1
READ_AT_ONCE = 100  # entries that one run reads to complete the list
ATTEMPTS = 15
SECONDS = 20  # the longest time to wait for other writers
TEXTS = ("runbook", "started_at", "region", "account", "image_name", "user", "host")


def add(folder: archives.RunFolder, values: Mapping[str, Any]) -> str:
    """Add a run that has ended to the list; return the problem as a sentence, or empty text.

    Safe to run twice: the row of the run is replaced.
    """
    archive = Archive(folder.remote or str(folder.local.parent), folder.local.parent, folder.environment)
    return update(archive, {folder.run_id: _row(archive, values, str(values.get("status")))})


def update(
    archive: Archive, ended: Mapping[str, dict[str, Any]] | None = None, *, again: Iterable[str] = ()
) -> str:
    """Write the list as `rebuild` does; return the problem as a sentence, or empty text."""
    try:
        rebuild(archive, ended, again=again)
    except Exception as error:  # noqa: BLE001 - no error may hide the outcome of a run that has ended
        return f"The list of runs was not updated; the next run will do that. {files.describe(error)}"
    return ""


def rebuild(
    archive: Archive,
    ended: Mapping[str, dict[str, Any]] | None = None,
    *,
    again: Iterable[str] = (),
    most: int | None = READ_AT_ONCE,
) -> str:
    """Write the list with the rows of runs that have ended; return the location of its page.

    The entries of the runs `again` are read again, and of at most `most` runs that the list lacks or has as
    running, the newest first. ``None`` reads the entries of all runs again. Raises an `ArchiveError` or
    `OSError` if the archive cannot be read or written, or other runs were first at each attempt.
    """
    place = _Bucket(archive) if archive.remote else _Folder(Path(archive.location))
    ended, fresh = dict(ended or {}), set(again)
    with place.locked():
        content, version = place.read()
        known = _rows(content)
        ids = archive.ids()  # after the list was read, which therefore has no run that these do not have
        gone = known.keys() - set(ids)
        wanted = [one for one in ids if one not in ended and (most is None or _is_open(known.get(one)))]
        wanted = [one for one in dict.fromkeys((*fresh, *wanted[:most])) if one not in ended]
        found = {run.run_id: _row(archive, run.values, run.status) for run in archive.read_all(wanted)}
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, min(2, 0.1 * 2**attempt)))  # noqa: S311 - not to conflict again
                content, version = place.read()
                known = _rows(content)
            # A run that has ended meanwhile has written its own row.
            late = {one for one, row in known.items() if not _is_open(row) and attempt and one not in fresh}
            rows = known | {one: row for one, row in found.items() if one not in late} | ended
            rows = {one: rows[one] for one in sorted(rows, reverse=True) if one in ended or one not in gone}
            if place.replace(as_json({"version": VERSION, "runs": rows}), version, rows):
                return place.page
    raise ArchiveError(
        f"Could not write the list of runs in {archive.location}.",
        why=f"Other runs wrote it first, {ATTEMPTS} times.",
        fix="The next run adds this one. To write the list now: vmsnix runs index",
    )


def _is_open(row: Mapping[str, Any] | None) -> bool:
    """Whether the list lacks a run, or has it as running."""
    return row is None or row.get("status") == RUNNING


def _rows(content: bytes | None) -> dict[str, dict[str, Any]]:
    """Return the rows of a list; none if it is missing, damaged, or of a newer version."""
    with suppress(ValueError, AttributeError, TypeError):
        values = json.loads(content or b"{}")
        if values.get("version") == VERSION:
            return {str(one): row for one, row in values["runs"].items() if isinstance(row, dict)}
    return {}


def _row(archive: Archive, values: Mapping[str, Any], status: str) -> dict[str, Any]:
    """Return the row of a run from its ``result.json``, without secrets."""
    amis = values.get("amis")
    by_region = amis.values() if isinstance(amis, dict) else ()
    files_of_run = values.get("files") or {}

    def link(name: str, place: object) -> str:
        """Return the address of a file, relative, so that it also works in a copy of the archive."""
        _, _, stored = str(place or "").rpartition("/objects/")
        address = f"objects/{stored}" if archive.remote else f"{values.get('run_id')}/{name}"
        return address if place else ""

    row = {name: values.get(name) for name in TEXTS} | {
        **places(values),
        "status": status,
        "dry_run": is_dry_run(values),
        "seconds": values.get("seconds"),
        "amis": list(dict.fromkeys(str(one) for one in (values.get("ami_id"), *by_region) if one)),
        "report": link(archives.REPORT, values.get("report")),
        "page": link(archives.AUDIT_PAGE, (files_of_run.get(archives.AUDIT_PAGE) or {}).get("place")),
        "error": (values.get("failure") or {}).get("what"),
    }
    kept = {name: value for name, value in row.items() if value}
    clean: dict[str, Any] = Redactor(secret_values(archive.environment)).value(kept)
    return clean


COLUMNS = [
    PageColumn("started_at", "started (UTC)", kind="time", width=8.6, below="run_id", link="report"),
    PageColumn("runbook", width=8, below="image_name", link="page", filter=True, group=True),
    PageColumn(
        *("status", "status"),
        below="error",
        filter=True,
        group=True,
        tones={"done": "good", "failed": "bad", "partial": "mixed", "": "soft"},
    ),
    PageColumn("dry_run", "dry run", width=4.8, filter=True),
    PageColumn("seconds", "took (s)", kind="number", width=5),
    PageColumn("amis", "AMIs", width=11.4),
    PageColumn("region", width=7.5, below="account", filter=True, group=True),
    PageColumn("user", "by", width=5.2, below="host", filter=True, group=True),
    *(
        PageColumn(one, hidden=True)
        for one in ("run_id", "report", "page", "image_name", "error", "account", "host")
    ),
]


def _page(rows: Mapping[str, dict[str, Any]]) -> str:
    import pandas as pd

    shown = [
        {
            **{name: str(row.get(name) or "") for name in (*TEXTS, "status", "error")},
            "run_id": run_id,
            "started_at": str(row.get("started_at") or "")[:16].replace("T", " "),
            "dry_run": "dry run" if row.get("dry_run") else "",
            "seconds": seconds if isinstance(seconds := row.get("seconds"), int | float) else None,
            "amis": " ".join(map(str, row.get("amis") or ())),
            **{name: quote(str(row.get(name) or "")) for name in ("report", "page")},
        }
        for run_id, row in rows.items()
    ]
    frame = pd.DataFrame(shown, columns=[one.name for one in COLUMNS])
    table = PageTable("runs", "Runs", COLUMNS, frame, "-started_at", nothing="No runs yet.")
    return templates.page("runbooks/evidence/index.html", table=table, plain_rows=PLAIN_ROWS)


class _Folder:
    """The list in a local archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.page = str(folder / PAGE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        descriptor = files.create(self.folder / LOCK, os.O_RDWR)
        try:
            end = time.monotonic() + SECONDS
            while not archives.lock(descriptor):  # without locks, the next run adds what a conflict lost
                if time.monotonic() > end:
                    raise ArchiveError(f"Another process has locked {self.folder / LOCK} for {SECONDS} s.")
                time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)

    def read(self) -> tuple[bytes | None, str]:
        try:
            return files.read(self.folder / DATA), ""
        except FileNotFoundError:
            return None, ""

    def replace(self, content: str, _version: str, rows: Mapping[str, dict[str, Any]]) -> bool:
        files.write(self.folder / DATA, content, clean=True)
        files.write(self.folder / PAGE, _page(rows), clean=True)
        return True


class _Bucket:
    """The list in an archive on S3."""

    def __init__(self, archive: Archive) -> None:
        self.environment = archive.environment
        self.data = f"{archive.location.rstrip('/')}/{DATA}"
        self.page = f"{archive.location.rstrip('/')}/{PAGE}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        fix = "Correct the bucket or the permissions. The next run writes the list."
        with archives.archive_errors(f"Could not write the list of runs: {self.data}.", fix):
            yield

    def read(self) -> tuple[bytes | None, str]:
        return archives.get_version(self.environment, self.data)

    def replace(self, content: str, version: str, rows: Mapping[str, dict[str, Any]]) -> bool:
        """Replace the list if it still has this version, then the page until it is that of the list."""
        written = archives.put_if(self.environment, self.data, content.encode(), version)
        if not written:
            return False
        for _ in range(ATTEMPTS):
            archives.put(self.environment, self.page, _page(rows).encode())
            now, latest = archives.get_version(self.environment, self.data)
            if latest == written:
                break
            rows, written = _rows(now), latest
        return True
