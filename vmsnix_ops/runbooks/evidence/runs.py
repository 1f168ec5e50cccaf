"""Past runs, as the archive has them: list, find, and open their evidence.

The archive holds what can be opened and repeated; `vmsnix_ops.records.history` holds rows, which are what
questions over many runs are asked of.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.errors import ArchiveError, UnknownRunError, nearest
from vmsnix_ops.records import run_tables
from vmsnix_ops.records.result import parse, runs_row
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.evidence import archive as archives

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.settings import Settings

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[A-Za-z0-9-]+-[0-9a-f]{6}")
AT_ONCE = 16  # entries that are read from S3 side by side
RUNNING, LOST, UNREADABLE = "running", "lost", "unreadable"


@dataclass(frozen=True, slots=True)
class Entry:
    """A run, as its ``result.json`` tells it.

    Attributes
    ----------
    run_id
        Its name.
    values
        The whole content of ``result.json``.
    status
        ``done``, ``failed``, ``partly``, ``interrupted``, ``running``; ``lost`` when its process is gone
        without a verdict; ``unreadable`` when its files cannot be read.
    """

    run_id: str
    values: Mapping[str, Any]
    status: str

    @property
    def runbook(self) -> str:
        """Name of its runbook."""
        return str(self.values.get("runbook") or self.run_id[17:-7])

    @property
    def parameters(self) -> Mapping[str, object]:
        """Every parameter with the value that it had."""
        given = self.values.get("parameters")
        return given if isinstance(given, dict) else {}

    @property
    def image(self) -> str:
        """The image that it was about, empty when about none."""
        return str(self.values.get("image") or self.parameters.get("image") or "")

    def fits(self, *, runbook: str = "", image: str = "", status: str = "", ami: str = "") -> bool:
        """Whether it is one of those that somebody looks for; an empty word lets everything pass."""
        return (
            runbook in ("", self.runbook)
            and status in ("", self.status)
            and ami in ("", self.values.get("ami_id"))
            and (image in ("", self.image) or self.image.endswith(f"#{image}"))
        )


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive, to be read.

    Attributes
    ----------
    place
        Local folder, or ``s3://bucket/prefix``.
    work
        Local folder in which runs work whose archive is on S3.
    environment
        Variables with which S3 is reached.
    """

    place: str
    work: Path
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def remote(self) -> bool:
        """Whether it is in a bucket."""
        return archive.is_remote(self.place)

    def ids(self) -> list[str]:
        """Return the ids of all runs, newest first; none when there is no archive yet.

        Raises
        ------
        ArchiveError
            When it cannot be read.
        """
        if self.remote:
            with self._explained():
                names = archive.folders(self.environment, self.place)
        else:
            try:
                names = [path.name for path in Path(self.place).iterdir()]
            except FileNotFoundError:
                names = []
            except OSError as error:
                raise ArchiveError(
                    f"The archive cannot be read: {self.place}.",
                    why=f"{error.strerror}.",
                    cure="Correct its permissions, or name another with --archive.",
                ) from error
        return sorted((name for name in names if RUN_ID.fullmatch(name)), reverse=True)

    def entries(
        self, *, runbook: str = "", image: str = "", status: str = "", ami: str = "", last: int | None = None
    ) -> list[Entry]:
        """Return runs, newest first.

        Parameters
        ----------
        runbook, image, status, ami
            Only runs of this runbook, about this image, with this status, that made this AMI.
        last
            Only so many, the newest; all when left out.

        Raises
        ------
        ArchiveError
            When the archive cannot be read.
        """
        found = self._read_all([name for name in self.ids() if f"-{runbook}" in name])
        fitting = (one for one in found if one.fits(runbook=runbook, image=image, status=status, ami=ami))
        return list(islice(fitting, last))

    def find(self, word: str) -> Entry:
        """Return the run of that id, or the only one whose id begins or ends so.

        Raises
        ------
        UnknownRunError
            When there is none, which names the nearest, or several.
        ArchiveError
            When the archive cannot be read.
        """
        found = self._read(self.full_id(word))
        if found is None:
            raise self._unknown(word, self.ids())
        return found

    def full_id(self, word: str) -> str:
        """Return the id of a run as `find` does, also of one whose entry cannot be read.

        Raises
        ------
        UnknownRunError
            When there is none, which names the nearest, or several.
        ArchiveError
            When the archive cannot be read.
        """
        ids = self.ids()
        fitting = [name for name in ids if name == word] or [
            name for name in ids if word and (name.startswith(word) or name.endswith(f"-{word}"))
        ]
        if len(fitting) == 1:
            return fitting[0]
        if len(fitting) > 1:
            shown = ", ".join(fitting[:5]) + (", ..." if len(fitting) > 5 else "")
            raise UnknownRunError(
                f"{len(fitting)} runs begin with {word!r}.",
                why=f"They are {shown}.",
                cure="Give more of the id.",
            )
        raise self._unknown(word, ids)

    def _unknown(self, word: str, ids: list[str]) -> UnknownRunError:
        return UnknownRunError(
            f"There is no run {word!r} in {self.place}.",
            why=nearest(word, ids) or ("" if ids else "The archive holds no runs yet."),
            cure="`vmsnix runs` lists them; --archive and --sandbox look elsewhere.",
        )

    def fetch(self, entry: Entry, name: str) -> bytes:
        """Return a file of a run's evidence, after a look whether it still is what was kept.

        Parameters
        ----------
        entry
            The run.
        name
            Such as ``"report.html"``.

        Raises
        ------
        ArchiveError
            When it is not there, cannot be read, or is not what was kept.
        """
        kept = (entry.values.get("files") or {}).get(name)
        if not isinstance(kept, dict):
            raise ArchiveError(
                f"The run {entry.run_id} has no {name}.",
                why=f"It is {entry.status}." if entry.status in (RUNNING, LOST) else "",
                cure="Look at its other files.",
            )
        place = str(kept["place"])
        content = self._content(place)
        if content is None:
            raise ArchiveError(
                f"The evidence is gone: {place}.",
                why="The run's result.json names it, and it is not there.",
                cure="Restore it, or look for who removed it.",
            )
        if hashlib.sha256(content).hexdigest() != kept["sha256"]:
            raise ArchiveError(
                f"The evidence was changed: {place}.",
                why=f"It does not have the SHA-256 {kept['sha256']} that the run's result.json gives.",
                cure="Do not rely on it.",
            )
        return content

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what the runs have kept of the tables: the table's name and a row.

        A run whose files cannot be read has none to give; the others still have.

        Raises
        ------
        ArchiveError
            When the archive cannot be read.
        """
        for entry in self._read_all(self.ids()):
            with suppress(KeyError, TypeError, ValueError):
                if entry.values.get("finished_at"):
                    yield "runs", runs_row(entry.values)
            with suppress(ArchiveError, OSError):
                for line in run_tables.lines_of(self._kept_rows(entry)):
                    yield from ((line["table"], row) for row in run_tables.rows_from(line))

    def _kept_rows(self, entry: Entry) -> bytes:
        local = (self.work if self.remote else Path(self.place)) / entry.run_id / run_tables.FILE_NAME
        if local.is_file():
            return files.read(local)
        return self.fetch(entry, run_tables.FILE_NAME)

    def _read_all(self, ids: list[str]) -> Iterator[Entry]:
        if not self.remote:
            yield from filter(None, map(self._listed, ids))
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for some in _batched(ids, AT_ONCE):  # no more than a few beyond those that are wanted
                yield from filter(None, pool.map(self._listed, some))

    def _listed(self, run_id: str) -> Entry | None:
        """Return a run as a list shows it: one that cannot be read hides no other."""
        try:
            return self._read(run_id)
        except ArchiveError as error:
            return Entry(
                run_id, {"run_id": run_id, "runbook": run_id[17:-7], "error": str(error)}, UNREADABLE
            )

    def _read(self, run_id: str) -> Entry | None:
        """Return a run; ``None`` when what looks like one has no entry.

        Raises
        ------
        ArchiveError
            Its entry cannot be read, or is no whole ``result.json``.
        """
        local = (self.work if self.remote else Path(self.place)) / run_id
        place = str(local / archives.RESULT)
        content = _local(local / archives.RESULT)
        values = parse(content)
        if values.get("status") in (None, RUNNING) and self.remote:
            place = f"{self.place.rstrip('/')}/{run_id}/{archives.RESULT}"
            kept = self._content(place)
            content, values = (content, values) if kept is None and not values else (kept, parse(kept))
        if not values:
            if content is None:
                return None
            raise ArchiveError(
                f"The entry of the run {run_id} is damaged: {place}.",
                why=f"Its {len(content)} bytes are not a whole result.json.",
                cure=f"Restore it from the tables, on the machine of the run: vmsnix runs repair {run_id}.",
            )
        status = str(values.get("status") or RUNNING)
        return Entry(run_id, values, LOST if status == RUNNING and self._is_lost(local, values) else status)

    def _is_lost(self, local: Path, values: Mapping[str, Any]) -> bool:
        """Whether a run without a verdict has no process any more; one on another machine may have."""
        here = not self.remote or local.exists() or values.get("host") == socket.gethostname()
        return here and not archives.is_alive(local)

    def _content(self, place: str) -> bytes | None:
        if not archive.is_remote(place):
            return _local(Path(place))
        with self._explained():
            return archive.get(self.environment, place)

    def _explained(self) -> Any:
        return archive.explained(
            f"The archive cannot be read: {self.place}.",
            "Correct the bucket or the rights, or name another with --archive.",
        )


def open_archive(
    settings: Settings, *, place: str = "", environment: Mapping[str, str] | None = None
) -> Archive:
    """Return the archive of these settings.

    Parameters
    ----------
    settings
        Where it is.
    place
        Another one: a local folder, or ``s3://bucket/prefix``.
    environment
        Variables with which S3 is reached; ``os.environ`` by default.
    """
    return Archive(
        place or settings.archive,
        settings.state / "runs",
        os.environ if environment is None else environment,
    )


def _local(path: Path) -> bytes | None:
    try:
        return files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArchiveError(
            f"The evidence cannot be read: {path}.", why=f"{error.strerror}.", cure="Correct its permissions."
        ) from error


def _batched(ids: list[str], size: int) -> Iterator[list[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
