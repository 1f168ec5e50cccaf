"""Where the evidence of runs is kept: on this machine or on S3.

A run has an entry, ``<archive>/<run ID>/result.json``, which names everything else with its SHA-256. In a
local archive the other files lie beside it. In a bucket their keys derive from what is in them
(``objects/<sha256>/report.html``): an upload that is done again sends nothing, and nobody can change a file
without breaking its name. See ``docs/decisions/0007-evidence-by-content.md``.

A run writes into a local folder from its first second on, so that a killed run leaves what there was. A
bucket gets the entry at the beginning, which says ``running`` and proves that it can be written, and each
file once, at the end.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from vmsnix_ops import credentials, files
from vmsnix_ops.aws.iam.permissions import needs, needs_of
from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.redaction import Redactor, remember, secret_values
from vmsnix_ops.text import json as as_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from types_boto3_s3.client import S3Client


# The few calls to S3 that an archive in a bucket needs.

CONTENT_TYPES = {
    "ipynb": "application/x-ipynb+json",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "txt": "text/plain; charset=utf-8",
}
ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
UNKNOWN = frozenset({"403", "AccessDenied"})  # what a HEAD is answered with by who may only write


def is_remote(archive: str | Path) -> bool:
    """Whether an archive is in a bucket."""
    return str(archive).startswith("s3://")


def split(place: str) -> tuple[str, str]:
    """Return bucket and key of an ``s3://`` location."""
    bucket, _, key = place.removeprefix("s3://").partition("/")
    return bucket, key


@needs("s3:PutObject")
def put(environment: Mapping[str, str], place: str, content: bytes) -> None:
    """Write an object. S3 compares the bytes that arrive with their SHA-256."""
    bucket, key = split(place)
    client(environment).put_object(
        Bucket=bucket,
        Key=key,
        Body=content,
        ContentType=CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream"),
        ChecksumSHA256=base64.b64encode(hashlib.sha256(content).digest()).decode(),
    )


@needs("s3:GetObject", "s3:ListBucket", "s3:PutObject")
def put_once(environment: Mapping[str, str], place: str, content: bytes) -> None:
    """Write an object whose key derives from its content, unless it is there already."""
    from botocore.exceptions import ClientError

    bucket, key = split(place)
    try:
        there = client(environment).head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ABSENT | UNKNOWN:
            raise
    else:
        if there["ContentLength"] == len(content):
            return
    put(environment, place, content)


@needs("s3:GetObject", "s3:ListBucket")
def get(environment: Mapping[str, str], place: str) -> bytes | None:
    """Return an object's content, or ``None`` when there is none."""
    from botocore.exceptions import ClientError

    bucket, key = split(place)
    try:
        content = client(environment).get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in ABSENT:
            return None
        raise
    return content


@needs("s3:ListBucket")
def folders(environment: Mapping[str, str], archive: str) -> list[str]:
    """Return the names of what looks like a folder directly below a location."""
    bucket, prefix = split(archive.rstrip("/") + "/")
    pages = client(environment).get_paginator("list_objects_v2")
    return [
        str(found["Prefix"]).removeprefix(prefix).rstrip("/")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        for found in page.get("CommonPrefixes", [])
    ]


@contextmanager
def explained(what: str, fix: str) -> Iterator[None]:
    """Turn what boto3 raises into one error of ours."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise ArchiveError(what, why=f"{error}.", fix=fix) from error


def client(environment: Mapping[str, str]) -> S3Client:
    """Return an S3 client that follows the run's variables, which may be those of a sandbox."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    key, secret, token, profile = (environment.get(name) or None for name in names)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    # As everywhere in AWS, keys in the environment count more than a profile.
    return _client(key, secret, token, None if key else profile, region or None, endpoint or None)


@lru_cache(maxsize=8)
def _client(
    key: str | None,
    secret: str | None,
    token: str | None,
    profile: str | None,
    region: str | None,
    endpoint: str | None,
) -> S3Client:
    import boto3
    from botocore.config import Config

    credentials.watch_botocore()
    session = boto3.session.Session(
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        profile_name=profile,
        region_name=region,
    )
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 6}, connect_timeout=10, max_pool_connections=16
    )
    made: S3Client = session.client("s3", endpoint_url=endpoint, config=config)
    return made


NOTEBOOK, REPORT, RESULT, LOG = "notebook.ipynb", "report.html", "result.json", "log.txt"
JOURNAL = "journal.jsonl"  # a publish writes it, and whoever undoes it reads it
FLEET = "fleet.json"  # the targets of a fleet
LONGEST_NAME = 255  # bytes
ALIVE = ".running"  # locked while the run's process lives


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of a run, as its entry names it.

    Attributes
    ----------
    place
        Path, or ``s3://`` location.
    sha256
        Of its content, in hexadecimal.
    bytes
        Its size.
    """

    place: str
    sha256: str
    bytes: int

    def to_json(self) -> dict[str, object]:
        """Return it as ``result.json`` has it."""
        return {"place": self.place, "sha256": self.sha256, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The place of one run.

    Attributes
    ----------
    run_id
        Whose it is.
    local
        Folder in which the run works.
    remote
        ``s3://bucket/prefix`` when that is where the archive is, else empty.
    environment
        Variables with which S3 is reached, when they differ from this process's.
    redactor
        Who knows what is secret: nothing is written or sent without it.
    """

    run_id: str
    local: Path
    remote: str
    environment: Mapping[str, str]
    redactor: Redactor = field(default_factory=Redactor, repr=False)
    _alive: list[int] = field(default_factory=list)
    _seen: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """Where ``result.json`` is found: a path, or an ``s3://`` location."""
        return f"{self.remote}/{self.run_id}/{RESULT}" if self.remote else str(self.local / RESULT)

    def path(self, name: str) -> Path:
        """Return the local path of a file."""
        return self.local / name

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """Write a JSON file whole or not at all."""
        clean = self.redactor.value(value)
        self.write(name, as_json(clean, indent=2) + "\n")

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file whole or not at all, and without secrets."""
        files.write(self.path(name), content, redactor=self.redactor)

    def names(self) -> list[str]:
        """Return the names of all files that the run has left, such as ``"findings.csv"``, but the entry."""
        found = []
        for folder, folders, names in os.walk(self.local):  # passes over what cannot be read
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):
                    if not name.startswith(".") and path.is_file():
                        found.append(path.relative_to(self.local).as_posix())
        return sorted(name for name in found if name != RESULT)

    def keep(self, name: str) -> Kept | None:
        """Bring a finished file to where it is kept; ``None`` when the run has no such file.

        Safe to do twice: the place derives from the content, and what is there already is not sent again.

        Raises
        ------
        ArchiveError
            When S3 refuses; the local files stay and the error says where.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        content = self._clean(path)
        digest = hashlib.sha256(content).hexdigest()
        place = f"{self.remote}/objects/{digest}/{path.name}" if self.remote else str(path)
        if self.remote:
            with self._explained(place):
                put_once(self.environment, place, content)
        return Kept(place, digest, len(content))

    def close(self, *, done: bool) -> None:
        """Bring the entry to S3, where the archive is there; then the local copy is not needed.

        Parameters
        ----------
        done
            Whether the run has done its job and everything of it is kept. Otherwise its journal stays, by
            which it can be undone, and what the entry does not name.

        Raises
        ------
        ArchiveError
            When S3 refuses; the local files stay and the error says where.
        """
        self.rest()
        if not self.remote:
            return
        entry = self._clean(self.path(RESULT))
        with self._explained(self.entry):
            put(self.environment, self.entry, entry)
        if done:
            shutil.rmtree(self.local)
            return
        kept = set(json.loads(entry).get("files", ())) - {JOURNAL}
        for name in {*kept, RESULT}:
            self.path(name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self.local.rmdir()

    def clean(self) -> list[str]:
        """Take the secrets out of everything that lies in the folder, whoever wrote it.

        Files are only rewritten when they hold a secret. Links that name one, and names of files that do, are
        replaced.

        Returns
        -------
        list of str
            What could not be searched, as sentences; everything else is clean.
        """
        problems = []

        def collect(error: OSError, path: str) -> None:
            if not isinstance(error, FileNotFoundError):  # of a process that is still at work
                place = self.redactor.text(os.path.relpath(path, self.local))
                problems.append(f"{place} could not be searched for secrets: {error.strerror}.")

        walk = os.walk(self.local, topdown=False, onerror=lambda error: collect(error, str(error.filename)))
        for folder, folders, names in walk:
            for name in sorted((*folders, *names)):
                if name == ALIVE:
                    continue
                try:
                    self._clean_name(Path(folder, name))
                except OSError as error:
                    collect(error, str(Path(folder, name)))
        return problems

    def _clean_name(self, path: Path) -> None:
        try:
            if path.is_symlink():
                target = str(path.readlink())
                clean = self.redactor.text(target)
                if clean != target:
                    path.unlink()
                    files.write(path, f"a link to {clean}\n", redactor=self.redactor)
            if path.is_file():
                self._clean(path)
        finally:  # a file that cannot be read has a name, too
            name = self.redactor.text(path.name)
            if name != path.name:
                path.rename(_free_name(path, name))

    def _clean(self, path: Path) -> bytes:
        """Return the content of a file without secrets, after taking them out of the file."""
        status = path.stat()
        seen = (status.st_mtime_ns, status.st_size, self.redactor.version())
        content = path.read_bytes()
        if self._seen.get(path) == seen:
            return content
        clean = self.redactor.content(content, path.name)
        if clean != content:
            if path.is_symlink():  # what it leads to is not ours
                path.unlink()
            try:
                files.write(path, clean, redactor=self.redactor)
            except OSError:  # a full disk; its own room is enough for it, and it must not stay as it is
                path.unlink()
                files.write(path, clean, redactor=self.redactor)
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_size, self.redactor.version())
        self._seen[path] = seen
        return clean

    def rest(self) -> None:
        """Tell everybody that the run's process has nothing more to do."""
        while self._alive:
            os.close(self._alive.pop())
        with suppress(OSError):  # gone, or something else is in its place
            self.path(ALIVE).unlink()

    def live(self) -> None:
        """Tell everybody that the run's process is alive, until `rest` or its death."""
        descriptor = files.create(self.path(ALIVE), os.O_RDWR)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._alive.append(descriptor)

    def _explained(self, place: str) -> Any:
        return explained(
            f"Could not archive the run: {place}.",
            f"Correct the bucket or the permissions. The files of this run are in {self.local}.",
        )


def _free_name(path: Path, name: str) -> Path:
    """Return a path beside another one that has a name, shortened to what file systems take, and is free."""
    name = name.replace("/", "_")
    number = 1
    while True:
        suffix = PurePath(name).suffix if len(PurePath(name).suffix) < 20 else ""
        end = (f" {number}" if number > 1 else "") + suffix
        stem = name.removesuffix(suffix).encode("utf-8", "surrogateescape")
        shown = stem[: LONGEST_NAME - len(os.fsencode(end))].decode("utf-8", "ignore")
        free = path.with_name(f"{shown}{end}")
        if not os.path.lexists(free):
            return free
        number += 1


def open_folder(
    archive: str | Path,
    run_id: str,
    started: Mapping[str, object],
    *,
    work: Path,
    environment: Mapping[str, str],
) -> RunFolder:
    """Make the folder of a run and prove that it can be written, before anything runs.

    Parameters
    ----------
    archive
        Local folder, or ``s3://bucket/prefix``.
    run_id
        Name of the new folder.
    started
        First ``result.json``, with the status ``running``.
    work
        Local folder for runs whose archive is on S3.
    environment
        Variables with which S3 is reached.

    Raises
    ------
    ArchiveError
        When the archive cannot be written.
    """
    remote = str(archive).rstrip("/") if is_remote(archive) else ""
    local = (work if remote else Path(archive)).absolute() / run_id
    credentials.watch_botocore()
    remember(*credentials.read_files(environment))
    folder = RunFolder(run_id, local, remote, environment, Redactor(secret_values(environment)))
    try:
        files.make_folder(local, new=True)
        folder.live()  # first: an entry that says "running" without it belongs to a lost run
        folder.write_json(RESULT, started)
    except OSError as error:
        raise ArchiveError(
            f"Could not write to the archive: {archive}.",
            why=f"{error.strerror}: {error.filename or local}.",
            fix="Correct its permissions, or use another with --archive or VMSNIX_ARCHIVE.",
        ) from error
    if remote:
        try:
            with explained(
                f"Could not write to the archive: {archive}.",
                "Correct the bucket or the permissions, or use another with --archive. Nothing was run.",
            ):
                put(environment, folder.entry, folder.path(RESULT).read_bytes())
        except ArchiveError:
            folder.rest()
            shutil.rmtree(local)
            raise
    return folder


def is_alive(folder: Path) -> bool:
    """Whether the process of the run that works in a local folder is alive, as its lock shows."""
    try:
        file = os.open(folder / ALIVE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # of another user: nobody can tell
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # locked; or a file system without locks, where nobody can tell
    finally:
        os.close(file)
    return False


def archivist_actions() -> tuple[str, ...]:
    """Return what keeping evidence in a bucket needs, and reading it."""
    return needs_of(put, put_once, get, folders)
