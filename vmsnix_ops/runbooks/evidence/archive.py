"""The archive of runs, on this machine or on S3.

A run has an entry, ``<archive>/<run ID>/result.json``, which lists its other files with their SHA-256. In a
local archive, these files are in the same folder. In a bucket their keys derive from their content
(``objects/<sha256>/report.html``): a repeated upload sends nothing, and a changed file no longer matches its
key. See ``docs/decisions/0007-evidence-by-content.md``.

A run writes into a local folder from the start, so that the files of a killed run exist. In a bucket, the
entry is written at the start, with the status ``running``, to check that the bucket can be written. The other
files are uploaded once, at the end.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from vmsnix_ops import credentials, files
from vmsnix_ops.aws.iam.permissions import needs, needs_of
from vmsnix_ops.aws.session import session_of
from vmsnix_ops.errors import ArchiveError, UsageError
from vmsnix_ops.redaction import Redactor, remember, secret_values
from vmsnix_ops.runbooks.evidence import chain
from vmsnix_ops.text import json as as_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from types_boto3_s3.client import S3Client

NOTEBOOK, REPORT, RESULT, LOG = "notebook.ipynb", "report.html", "result.json", "log.txt"
AUDIT_PAGE = "audit.html"
JOURNAL = "journal.jsonl"  # of a publish, to undo it
FLEET = "fleet.json"  # the targets of a fleet
LOCK = ".running"  # locked while the run's process is alive
MAX_NAME_BYTES = 255
LOCK_SECONDS = 0.05  # between two attempts: `is_running` locks the file for a moment
CONTINUED = (JOURNAL, chain.FILE_NAME, "rows.jsonl", "acts.jsonl")
"""Files to which each attempt of a run appends."""

CONTENT_TYPES = {
    "ipynb": "application/x-ipynb+json",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "txt": "text/plain; charset=utf-8",
}
CONFLICTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"})
"""Answers to a conditional PUT: changed, being changed, deleted."""
NOT_FOUND = frozenset({"404", "NoSuchKey", "NotFound"})
FORBIDDEN = frozenset({"403", "AccessDenied"})  # S3's answer to a HEAD without s3:GetObject


def is_remote(archive: str | Path) -> bool:
    """Whether an archive is in a bucket."""
    return str(archive).startswith("s3://")


def split(location: str) -> tuple[str, str]:
    """Return bucket and key of an ``s3://`` location."""
    bucket, _, key = location.removeprefix("s3://").partition("/")
    return bucket, key


@needs("s3:PutObject")
def put(environment: Mapping[str, str], location: str, content: bytes, **conditions: Any) -> str:
    """Write an object, and return its ETag. S3 compares the received bytes with their SHA-256."""
    bucket, key = split(location)
    written = client(environment).put_object(
        Bucket=bucket,
        Key=key,
        Body=content,
        ContentType=CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream"),
        ChecksumSHA256=base64.b64encode(hashlib.sha256(content).digest()).decode(),
        **conditions,
    )
    return written["ETag"]


@needs("s3:GetObject", "s3:ListBucket", "s3:PutObject")
def put_once(environment: Mapping[str, str], location: str, content: bytes) -> None:
    """Write an object whose key derives from its content, unless it exists."""
    from botocore.exceptions import ClientError

    bucket, key = split(location)
    try:
        existing = client(environment).head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] not in NOT_FOUND | FORBIDDEN:
            raise
    else:
        if existing["ContentLength"] == len(content):
            return
    put(environment, location, content)


@needs("s3:GetObject", "s3:PutObject")
def put_if(environment: Mapping[str, str], location: str, content: bytes, version: str) -> str:
    """Write an object if it still has a version, empty for a new object; return its new version.

    Empty if another writer was first. S3 supports the conditions ``If-Match`` and ``If-None-Match`` of a PUT
    since November 2024, and answers 412, or 409 during another write of the object ("Add preconditions to S3
    operations with conditional requests" in the S3 user guide).
    """
    from botocore.exceptions import ClientError

    try:
        return put(
            environment, location, content, **({"IfMatch": version} if version else {"IfNoneMatch": "*"})
        )
    except ClientError as error:
        if error.response["Error"]["Code"] in CONFLICTS:
            return ""
        raise


@needs("s3:GetObject", "s3:ListBucket")
def get_version(environment: Mapping[str, str], location: str) -> tuple[bytes | None, str]:
    """Return the content of an object and its version for `put_if`; ``None`` if it does not exist."""
    from botocore.exceptions import ClientError

    bucket, key = split(location)
    try:
        found = client(environment).get_object(Bucket=bucket, Key=key)
        return found["Body"].read(), found["ETag"]
    except ClientError as error:
        if error.response["Error"]["Code"] in NOT_FOUND:
            return None, ""
        raise


@needs("s3:GetObject", "s3:ListBucket")
def get(environment: Mapping[str, str], location: str) -> bytes | None:
    """Return the content of an object; ``None`` if it does not exist."""
    return get_version(environment, location)[0]


@needs("s3:ListBucket")
def folders(environment: Mapping[str, str], archive: str) -> list[str]:
    """Return the names of the folders (common prefixes) directly below a location."""
    bucket, prefix = split(archive.rstrip("/") + "/")
    pages = client(environment).get_paginator("list_objects_v2")
    return [
        str(found["Prefix"]).removeprefix(prefix).rstrip("/")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        for found in page.get("CommonPrefixes", [])
    ]


@contextmanager
def archive_errors(what: str, fix: str) -> Iterator[None]:
    """Turn an error of boto3 into an `ArchiveError`."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise ArchiveError(what, why=f"{error}.", fix=fix) from error


def client(environment: Mapping[str, str]) -> S3Client:
    """Return an S3 client that uses the environment variables of a run, such as those of a sandbox."""
    return _client(tuple(sorted((k, v) for k, v in environment.items() if k.startswith("AWS_"))))


@lru_cache(maxsize=8)
def _client(variables: tuple[tuple[str, str], ...]) -> S3Client:
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 6}, connect_timeout=10, max_pool_connections=16
    )
    made: S3Client = session_of(dict(variables)).client("s3", config=config)
    return made


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run."""

    run_id: str
    local: Path  # folder in which the run works
    remote: str  # s3://bucket/prefix if the archive is on S3; otherwise empty
    environment: Mapping[str, str]  # for S3
    redactor: Redactor = field(default_factory=Redactor, repr=False)
    _locks: list[int] = field(default_factory=list)
    _redacted: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """Location of ``result.json``: a path, or an ``s3://`` location."""
        return f"{self.remote}/{self.run_id}/{RESULT}" if self.remote else str(self.local / RESULT)

    def path(self, name: str) -> Path:
        """Return the local path of a file."""
        return self.local / name

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """Write a JSON file atomically, without secrets."""
        self.write(name, as_json(self.redactor.value(value), indent=2) + "\n")

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file atomically, without secrets."""
        files.write(self.path(name), content, redactor=self.redactor)

    def names(self) -> list[str]:
        """Return the names of all files of the run, such as ``"findings.csv"``, without the entry."""
        found = []
        for folder, folders, names in os.walk(self.local):  # skips folders that cannot be read
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):
                    if not name.startswith(".") and path.is_file():
                        found.append(path.relative_to(self.local).as_posix())
        return sorted(name for name in found if name != RESULT)

    def store(self, name: str) -> dict[str, Any] | None:
        """Store a finished file in the archive, and return its entry for ``result.json``.

        The entry has ``place`` (path or ``s3://`` location), ``sha256`` and ``bytes``; ``None`` for a file
        that does not exist. Safe to run twice: its location derives from its content, and an existing object
        is not sent again. If S3 refuses it, the local file is kept, and the `ArchiveError` contains its path.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        content = self._redact_file(path)
        digest = hashlib.sha256(content).hexdigest()
        place = f"{self.remote}/objects/{digest}/{path.name}" if self.remote else str(path)
        if self.remote:
            with self._archive_errors(place):
                put_once(self.environment, place, content)
        return {"place": place, "sha256": digest, "bytes": len(content)}

    def close(self, *, done: bool, keep: bool = False) -> None:
        """Release the lock. If the archive is on S3, store the entry there and delete the local copies.

        With `keep`, only the entry is stored: the process of the run may continue to write into the folder.
        If the run is not `done` (or not completely stored), its journal, which is needed to undo it, and
        files that the entry does not list are kept. If S3 refuses the entry, the local files are kept, and
        the `ArchiveError` contains their folder.
        """
        if not keep:
            self.release()
        if not self.remote:
            return
        entry = self._redact_file(self.path(RESULT))
        with self._archive_errors(self.entry):
            put(self.environment, self.entry, entry)
        if keep:
            return
        if done:
            shutil.rmtree(self.local)
            return
        stored = set(json.loads(entry).get("files", ())) - {JOURNAL}
        for name in {*stored, RESULT}:
            self.path(name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self.local.rmdir()

    def redact(self) -> list[str]:
        """Remove secrets from all files in the folder, from their names, and from the targets of links.

        Only files with a secret are rewritten. Returns sentences about files that could not be searched; all
        others contain no secrets.
        """
        problems = []

        def collect(error: OSError, path: str) -> None:
            if not isinstance(error, FileNotFoundError):  # a process that still runs has deleted the file
                name = self.redactor.text(os.path.relpath(path, self.local))
                problems.append(f"{name} could not be searched for secrets: {error.strerror}.")

        walk = os.walk(self.local, topdown=False, onerror=lambda error: collect(error, str(error.filename)))
        for folder, folders, names in walk:
            for name in sorted((*folders, *names)):
                if name == LOCK:
                    continue
                try:
                    self._redact_path(Path(folder, name))
                except OSError as error:
                    collect(error, str(Path(folder, name)))
        return problems

    def _redact_path(self, path: Path) -> None:
        try:
            if path.is_symlink():
                target = str(path.readlink())
                clean = self.redactor.text(target)
                if clean != target:
                    path.unlink()
                    files.write(path, f"a link to {clean}\n", redactor=self.redactor)
            if path.is_file():
                self._redact_file(path)
        finally:  # also the name of a file that cannot be read
            name = self.redactor.text(path.name)
            if name != path.name:
                path.rename(_free_name(path, name))

    def _redact_file(self, path: Path) -> bytes:
        """Remove the secrets from a file, and return its content."""
        status = path.stat()
        state = (status.st_mtime_ns, status.st_size, self.redactor.version())
        content = path.read_bytes()
        if self._redacted.get(path) == state:
            return content
        if path.name == chain.FILE_NAME:
            clean = chain.redacted(content, self.redactor)
        else:
            clean = self.redactor.content(content, path.name)
        if clean != content:
            try:
                # This replaces a link, and does not change its target, which is outside of the folder.
                self._replace(path, clean)
            except OSError:  # the disk is full: delete the file first, because it contains secrets
                path.unlink()
                self._replace(path, clean)
            status = path.stat()
            state = (status.st_mtime_ns, status.st_size, self.redactor.version())
        self._redacted[path] = state
        return clean

    def _replace(self, path: Path, clean: bytes) -> None:
        """Replace a file by its redacted content; another redaction would break the chain of a journal."""
        files.write(path, clean, redactor=Redactor() if path.name == chain.FILE_NAME else self.redactor)

    def mark_running(self) -> bool:
        """Mark the run as running, until `release` or the end of this process.

        Return false if another process has marked it.
        """
        descriptor = files.create(self.path(LOCK), os.O_RDWR)
        self._locks.append(descriptor)
        return lock(descriptor)

    def abandon(self) -> None:
        """Close the lock file, which belongs to another process."""
        while self._locks:
            os.close(self._locks.pop())

    def release(self) -> None:
        """Mark the run as no longer running."""
        self.abandon()
        with suppress(OSError):  # deleted, or replaced by a folder
            self.path(LOCK).unlink()

    def _archive_errors(self, location: str) -> Any:
        return archive_errors(
            f"Could not archive the run: {location}.",
            f"Correct the bucket or the permissions. The files of this run are in {self.local}.",
        )


def lock(descriptor: int) -> bool:
    """Lock a file; return False if another process has locked it, and True on file systems without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _free_name(path: Path, name: str) -> Path:
    """Return an unused path in the folder of `path`, with a name that is shortened if necessary."""
    name = name.replace("/", "_")
    suffix = PurePath(name).suffix if len(PurePath(name).suffix) < 20 else ""
    stem = name.removesuffix(suffix).encode("utf-8", "surrogateescape")
    number = 1
    while True:
        end = (f" {number}" if number > 1 else "") + suffix
        shown = stem[: MAX_NAME_BYTES - len(os.fsencode(end))].decode("utf-8", "ignore")
        free = path.with_name(f"{shown}{end}")
        if not os.path.lexists(free):
            return free
        number += 1


def _folder(archive: str | Path, run_id: str, work: Path, environment: Mapping[str, str]) -> RunFolder:
    remote = str(archive).rstrip("/") if is_remote(archive) else ""
    local = (work if remote else Path(archive)).absolute() / run_id
    credentials.watch_botocore()
    remember(*credentials.read_files(environment))
    return RunFolder(run_id, local, remote, environment, Redactor(secret_values(environment)))


def open_folder(
    archive: str | Path,
    run_id: str,
    started: Mapping[str, object],
    *,
    work: Path,
    environment: Mapping[str, str],
) -> RunFolder:
    """Create the folder of a run, and write its first entry to the archive, before anything runs.

    `archive` is a local folder or ``s3://bucket/prefix``, and `environment` has the variables for S3.
    `started` is the first ``result.json``, with the status ``running``. `work` is the local folder for runs
    whose archive is on S3. Raises an `ArchiveError` if the archive cannot be written.
    """
    folder = _folder(archive, run_id, work, environment)
    local = folder.local
    try:
        files.make_folder(local, new=True)
        folder.mark_running()  # first: a run with an entry "running" and without a lock is lost
        folder.write_json(RESULT, started)
    except OSError as error:
        folder.release()
        if not isinstance(error, FileExistsError):  # a folder without an entry would be listed as lost
            shutil.rmtree(local, ignore_errors=True)
        fix = f"{files.fix_of(error)}, or use another with --archive or VMSNIX_ARCHIVE."
        raise _unwritable(archive, error, folder, fix) from error
    try:
        fix = "Correct the bucket or the permissions, or use another with --archive. Nothing was run."
        _put_first_entry(archive, folder, fix)
    except ArchiveError:
        folder.release()
        shutil.rmtree(local)
        raise
    return folder


def reopen_folder(
    archive: str | Path,
    run_id: str,
    started: Mapping[str, object],
    *,
    evidence: Mapping[str, bytes],
    before: Mapping[str, Any],
    work: Path,
    environment: Mapping[str, str],
) -> RunFolder:
    """Open the folder of a run again for its next attempt; most arguments are as for `open_folder`.

    The evidence of the attempt before, with its ``result.json`` `before`, is moved to a folder such as
    ``attempt-1``, which the archive then contains too. Safe to run twice: a file that was moved is not moved
    again. `evidence` has the files of the run in an archive on S3 by name: its folder may be on another
    machine. Raises a `UsageError` if another process has just resumed the run, and an `ArchiveError` as
    `open_folder`.
    """
    folder = _folder(archive, run_id, work, environment)
    local = folder.local
    earlier = f"attempt-{before.get('attempt') or 1}"
    try:
        files.make_folder(local)
        if not _lock_soon(folder):
            raise UsageError(
                f"The run {run_id} is running.",
                why="Another process has just resumed it.",
                fix=f"Wait for its end: vmsnix runs show {run_id}",
            )
        files.make_folder(local / earlier)
        for name, content in evidence.items():
            target = local / name if _is_kept(name) else local / earlier / name
            if not target.exists():
                files.make_folder(target.parent)
                files.write(target, content)
        _write_earlier(folder, earlier, before)
        for path in sorted(local.iterdir()):
            if path.name not in (RESULT, LOCK) and not _is_kept(path.name):
                path.rename(local / earlier / path.name)
        folder.write_json(RESULT, started)
    except OSError as error:
        folder.release()
        raise _unwritable(archive, error, folder, f"{files.fix_of(error)}.") from error
    _put_first_entry(archive, folder, "Nothing was run.")
    return folder


def _unwritable(archive: str | Path, error: OSError, folder: RunFolder, fix: str) -> ArchiveError:
    return ArchiveError(
        f"Could not write to the archive: {archive}.",
        why=f"{error.strerror}: {error.filename or folder.local}.",
        fix=f"{fix} Nothing was run.",
    )


def _put_first_entry(archive: str | Path, folder: RunFolder, fix: str) -> None:
    if folder.remote:
        with archive_errors(f"Could not write to the archive: {archive}.", fix):
            put(folder.environment, folder.entry, folder.path(RESULT).read_bytes())


def _lock_soon(folder: RunFolder) -> bool:
    """Lock a folder; wait for `is_running` of another process, which locks the file for a moment."""
    for _ in range(5):
        if folder.mark_running():
            return True
        folder.abandon()
        time.sleep(LOCK_SECONDS)
    return False


def _is_kept(name: str) -> bool:
    """Whether a file stays where it is when a run is resumed: it is continued, or of an earlier attempt."""
    return name in CONTINUED or name.startswith("attempt-")


def _write_earlier(folder: RunFolder, earlier: str, before: Mapping[str, Any]) -> None:
    """Write ``result.json`` of an earlier attempt, with the new places of its files."""
    if folder.path(f"{earlier}/{RESULT}").exists():
        return
    stored = before.get("files") or {}
    moved = {
        str(folder.path(name)): str(folder.path(f"{earlier}/{name}"))
        for name in stored
        if not folder.remote and not _is_kept(name)
    }
    values = {
        key: moved.get(value, value) if isinstance(value, str) else value for key, value in before.items()
    }
    places = {name: {**one, "place": moved.get(one["place"], one["place"])} for name, one in stored.items()}
    folder.write_json(f"{earlier}/{RESULT}", {**values, "files": places})


def is_running(folder: Path) -> bool:
    """Whether the process of the run in a local folder is alive, by its lock."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unknown: the lock belongs to another user
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # locked, or unknown on a file system without locks
    finally:
        os.close(file)
    return False


def archivist_actions() -> tuple[str, ...]:
    """Return the IAM actions for saving evidence in a bucket, and for reading it."""
    return needs_of(put, put_once, put_if, get, folders)
