"""What a fleet remembers: one small JSON document a target, in a local folder or on S3.

A document is only ever replaced by whoever read its last version (compare and swap: a lock in a folder,
``If-Match`` on S3), so two fleets that want the same target cannot both have it, and whatever is killed
leaves the last whole document.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vmsnix_ops import files
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.errors import ArchiveError
from vmsnix_ops.redaction import Redactor, secret_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Document = dict[str, Any]


class StaleError(Exception):
    """Somebody else replaced the document since it was read."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A document and the version that was read."""

    value: Document
    version: str


class Ledger(Protocol):
    """Where the documents are."""

    def read(self, name: str) -> Kept | None:
        """Return a document, ``None`` when there is none."""

    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace the version `last` (``None``: make it), and return the new version.

        Raises
        ------
        StaleError
            When that is not the last version any more.
        """


def open_ledger(location: str) -> Ledger:
    """Return the ledger at a place: a local folder, or ``s3://bucket/prefix``."""
    return S3Ledger(location) if location.startswith("s3://") else FolderLedger(Path(location))


@dataclass(frozen=True, slots=True)
class FolderLedger:
    """Documents in a folder of this machine, or one that all machines mount and can lock.

    Attributes
    ----------
    folder
        Made when first written to.
    """

    folder: Path

    def read(self, name: str) -> Kept | None:
        """Return a document, ``None`` when there is none."""
        try:
            text = files.read(self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused("read", str(self.folder / name), error) from error
        return Kept(_parsed(text, str(self.folder / name)), hashlib.sha256(text).hexdigest())

    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace a document under the folder's lock; see `Ledger.write`."""
        text = _text(value)
        try:
            files.make_folder((self.folder / name).parent)
            with self._locked():
                kept = self.read(name)
                if (kept.version if kept else None) != last:
                    raise StaleError(name)
                files.write(self.folder / name, text)
        except OSError as error:
            raise _refused("written", str(self.folder / name), error) from error
        return hashlib.sha256(text.encode()).hexdigest()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = files.create(self.folder / ".lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class S3Ledger:
    """Documents on S3, replaced by conditional PUTs; credentials are those of this process.

    Parameters
    ----------
    location
        ``s3://bucket/prefix``.
    """

    def __init__(self, location: str) -> None:
        self.bucket, _, prefix = location.removeprefix("s3://").rstrip("/").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self._client: Any = None

    @needs("s3:GetObject", "s3:ListBucket")
    def read(self, name: str) -> Kept | None:
        """Return a document, ``None`` when there is none."""
        from vmsnix_ops.aws.session import calling

        place = f"s3://{self.bucket}/{self.prefix}{name}"
        with calling(f"read {place}"):
            answer, text = self._get(name)
            return Kept(_parsed(text, place), answer["ETag"]) if answer else None

    @needs("s3:PutObject")
    def write(self, name: str, value: Document, last: str | None) -> str:
        """Replace a document if nobody else did; see `Ledger.write`."""
        from vmsnix_ops.aws.session import calling, code_of, retrying

        condition = {"IfNoneMatch": "*"} if last is None else {"IfMatch": last}
        mark = uuid.uuid4().hex
        request: dict[str, Any] = {"Bucket": self.bucket, "Key": self.prefix + name, **condition}
        request |= {"Body": _text(value).encode(), "Metadata": {"write": mark}}
        with calling(f"write s3://{self.bucket}/{self.prefix}{name}"):
            try:
                # Two writers at the same moment: S3 asks one of them to try again.
                answer = retrying(
                    lambda: self._s3().put_object(**request, ContentType="application/json"),
                    "ConditionalRequestConflict",
                )
            except Exception as error:
                if code_of(error) not in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                    raise
                # A lost answer makes our own write look like somebody else's; the mark tells.
                answer, _ = self._get(name)
                if answer.get("Metadata", {}).get("write") != mark:
                    raise StaleError(name) from error
            return str(answer["ETag"])

    def _get(self, name: str) -> tuple[dict[str, Any], bytes]:
        from vmsnix_ops.aws.session import code_of

        try:
            answer = self._s3().get_object(Bucket=self.bucket, Key=self.prefix + name)
        except Exception as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return {}, b""
            raise
        with answer["Body"] as body:
            return answer, body.read()

    def _s3(self) -> Any:
        if self._client is None:
            from vmsnix_ops.aws.session import client, session

            self._client = client(session(), "s3")
        return self._client


def change(
    ledger: Ledger, name: str, decide: Callable[[Document | None], Document | None]
) -> Document | None:
    """Replace a document by what `decide` makes of it, and try again when somebody else was faster.

    Parameters
    ----------
    ledger, name
        Which document.
    decide
        Told the document as it is (``None``: there is none); what it returns is written, and ``None``
        leaves all as it is.

    Returns
    -------
    dict or None
        The document as it is then.
    """
    while True:
        kept = ledger.read(name)
        wanted = decide(dict(kept.value) if kept else None)
        if wanted is None:
            return kept.value if kept else None
        with suppress(StaleError):
            ledger.write(name, wanted, kept.version if kept else None)
            return wanted


def _text(value: Document) -> str:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n"
    return Redactor(secret_values()).json(text)


def _parsed(text: bytes, place: str) -> Document:
    try:
        value = json.loads(text)
        return dict(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArchiveError(
            f"The ledger holds something that is not JSON: {place}.",
            why=f"{error}.",
            cure="Move it away; the target is run again, which doubles nothing.",
        ) from error


def _refused(done: str, place: str, error: OSError) -> ArchiveError:
    return ArchiveError(
        f"The ledger cannot be {done}: {place}.",
        why=f"{error.strerror}.",
        cure="Correct its permissions, or name another place with ledger.",
    )
