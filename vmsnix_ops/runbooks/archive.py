"""Where the evidence of runs is kept: one folder a run, on this machine or on S3.

A run writes into a local folder from its first second on, so that a killed run leaves what there was. An
archive on S3 gets each file once, at the end, and a ``result.json`` at the beginning that says ``running``.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTEBOOK, REPORT, RESULT, LOG = "notebook.ipynb", "report.html", "result.json", "log.txt"
FILES = (NOTEBOOK, REPORT, RESULT, LOG)
CONTENT_TYPES = {
    NOTEBOOK: "application/x-ipynb+json",
    REPORT: "text/html; charset=utf-8",
    RESULT: "application/json",
    LOG: "text/plain; charset=utf-8",
}


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
        ``s3://bucket/prefix/run_id`` when that is where the archive is, else empty.
    environment
        Variables with which S3 is reached, when they differ from this process's.
    """

    run_id: str
    local: Path
    remote: str
    environment: Mapping[str, str]

    def path(self, name: str) -> Path:
        """Return the local path of a file."""
        return self.local / name

    def place(self, name: str) -> str:
        """Return where a file is found in the end: a path, or an ``s3://`` location."""
        return f"{self.remote}/{name}" if self.remote else str(self.local / name)

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """Write a JSON file whole or not at all."""
        write_whole(self.path(name), json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Bring the files to S3, once each, where the archive is there; then the local copy is not needed.

        Raises
        ------
        ArchiveError
            When S3 refuses; the local files stay and the error says where.
        """
        if not self.remote:
            return
        for name in FILES:
            if self.path(name).is_file():
                self._put(name)
        shutil.rmtree(self.local)

    def _put(self, name: str) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = self.place(name).removeprefix("s3://").partition("/")
        try:
            _s3(self.environment).put_object(
                Bucket=bucket, Key=key, Body=self.path(name).read_bytes(), ContentType=CONTENT_TYPES[name]
            )
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise ArchiveError(
                f"The run could not be archived: {self.place(name)}.",
                why=f"{error}.",
                cure=f"Correct the bucket or the rights; the files of this run are in {self.local}.",
            ) from error


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
    remote = str(archive).startswith("s3://")
    location = f"{str(archive).rstrip('/')}/{run_id}" if remote else ""
    local = (work if remote else Path(archive)).absolute() / run_id
    folder = RunFolder(run_id, local, location, environment)
    try:
        local.mkdir(parents=True)
        folder.write_json(RESULT, started)
    except OSError as error:
        raise ArchiveError(
            f"The archive cannot be written: {archive}.",
            why=f"{error.strerror}: {error.filename}.",
            cure="Correct its permissions, or name another with --archive or VMSNIX_ARCHIVE.",
        ) from error
    if remote:
        try:
            folder._put(RESULT)
        except ArchiveError as error:
            shutil.rmtree(local)
            raise ArchiveError(
                f"The archive cannot be written: {archive}.",
                why=error.why,
                cure="Correct the bucket or the rights, or name another with --archive. Nothing has run.",
            ) from error
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _s3(environment: Mapping[str, str]) -> Any:
    """Return an S3 client that follows the run's variables, which may be those of a sandbox."""
    import boto3

    def known(name: str) -> str | None:
        return environment.get(name) or None

    session = boto3.session.Session(
        aws_access_key_id=known("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=known("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=known("AWS_SESSION_TOKEN"),
        region_name=known("AWS_REGION") or known("AWS_DEFAULT_REGION"),
    )
    return session.client("s3", endpoint_url=known("AWS_ENDPOINT_URL_S3") or known("AWS_ENDPOINT_URL"))
