"""Stored bytes: objects of S3, and blocks of snapshots as files named by their content."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.wire.http import FileRange

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from vmsnix_ops.sandbox.core import Tables


class BlockStore:
    """A folder of content-addressed blocks.

    Nothing is ever removed while the sandbox runs: a block may belong to many snapshots, and the folder goes
    with the sandbox (or stays with its state).

    Parameters
    ----------
    folder
        Where the blocks lie; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return the file of a block, by the hexadecimal SHA-256 of its bytes."""
        return self._folder / digest[:2] / digest

    def put(self, data: bytes | memoryview) -> str:
        """Keep a block and return the hexadecimal SHA-256 of its bytes; a sandbox needs no fsync."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary = path.with_name(f"{digest}.{os.urandom(4).hex()}")
            temporary.write_bytes(data)
            temporary.replace(path)  # two writers of the same block both succeed
        return digest

    def get(self, digest: str) -> bytes:
        """Return a block's bytes."""
        return self.path(digest).read_bytes()

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()


# S3's buckets and objects as they lie on disk: an object is a list of part files, readable as one.
#
# Other services read objects through `find_bucket` and `open_object`; only `s3` changes them.


@dataclass(frozen=True, slots=True)
class Part:
    """One file of bytes and its checksums.

    Parameters
    ----------
    number
        Part number of a multipart upload; 1 for an object put at once.
    file
        Name of the file below ``objects/``.
    size
        Bytes.
    md5
        Hexadecimal MD5, from which ETags are made.
    checksums
        Base64 by algorithm, such as ``{"sha256": "..."}``.
    modified
        When it was uploaded.
    """

    number: int
    file: str
    size: int
    md5: str
    checksums: dict[str, str]
    modified: datetime

    def path(self, folder: Path) -> Path:
        """Return the file's path; `folder` is the world's."""
        return object_path(folder, self.file)


@dataclass(slots=True)
class StoredObject:
    """An object: what S3 knows about it, and its parts."""

    key: str
    parts: tuple[Part, ...]
    etag: str  # without quotes
    modified: datetime
    headers: dict[str, Any] = field(
        default_factory=dict
    )  # ContentType, ContentEncoding, ... by botocore's names
    metadata: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)  # of the whole object; composite ones end in "-N"
    checksum_type: str = "FULL_OBJECT"
    multipart: bool = False
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.size for part in self.parts)


@dataclass(slots=True)
class Upload:
    """A multipart upload that was neither completed nor aborted."""

    upload_id: str
    key: str
    initiated: datetime
    principal: str
    algorithm: str | None  # of the checksums, in lower case; None when the client did not choose
    checksum_type: str
    headers: dict[str, Any]
    metadata: dict[str, str]
    tags: dict[str, str]
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(slots=True)
class Bucket:
    """A bucket with its objects."""

    name: str
    account: str
    region: str
    created: datetime
    objects: dict[str, StoredObject] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    completed: dict[str, tuple[str, str]] = field(
        default_factory=dict
    )  # upload id -> (key, etag), for repeated completes
    settings: dict[str, Any] = field(default_factory=dict)  # policy, tagging, encryption, ... by name


def object_path(folder: Path, file: str) -> Path:
    """Return where a part file lies below the world's folder.

    The name comes from the state file, and must not lead out of the folder.
    """
    if not file.isalnum():
        raise OSError(f"The state of the sandbox names a file of an object {file!r}: that is no such name.")
    return folder / "objects" / file[:2] / file


def find_bucket(tables: Tables, name: str) -> Bucket | None:
    """Return a bucket by its name, which is unique over all accounts; None when there is none."""
    for buckets in tables.everywhere("buckets").values():
        if name in buckets:
            found: Bucket = buckets[name]
            return found
    return None


def open_object(tables: Tables, folder: Path, bucket: str, key: str) -> ObjectReader:
    """Return an object's content as one seekable binary file.

    Raises
    ------
    FileNotFoundError
        When there is no such bucket or object.
    """
    found = find_bucket(tables, bucket)
    if found is None or key not in found.objects:
        raise FileNotFoundError(f"s3://{bucket}/{key}")
    return ObjectReader([(part.path(folder), part.size) for part in found.objects[key].parts])


def file_ranges(stored: StoredObject, folder: Path, start: int, length: int) -> list[FileRange]:
    """Return the stretches of part files that hold `length` bytes from `start`."""
    ranges, offset = [], 0
    for part in stored.parts:
        first = max(start, offset)
        last = min(start + length, offset + part.size)
        if first < last:
            ranges.append(FileRange(part.path(folder), first - offset, last - first))
        offset += part.size
    return ranges


class ObjectReader(io.RawIOBase):
    """Part files read as one seekable binary file; at most one of them is open.

    Parameters
    ----------
    parts
        Path and size in bytes of each part, in order.
    """

    def __init__(self, parts: Sequence[tuple[Path, int]]) -> None:
        self._parts = list(parts)
        self._starts = []
        total = 0
        for _, size in self._parts:
            self._starts.append(total)
            total += size
        self.size = total
        self._position = 0
        self._open: tuple[int, io.FileIO] | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset and return it; positions behind the end read nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the content goes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._position < self.size:
            index = self._index()
            start, (_, size) = self._starts[index], self._parts[index]
            file = self._file(index)
            file.seek(self._position - start)
            count = file.readinto(view[done : done + start + size - self._position])
            if not count:
                raise OSError(f"{self._parts[index][0]} is shorter than it should be")
            done += count
            self._position += count
        return done

    def _index(self) -> int:
        low, high = 0, len(self._starts) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._starts[middle] <= self._position:
                low = middle
            else:
                high = middle - 1
        return low

    def _file(self, index: int) -> io.FileIO:
        if self._open is None or self._open[0] != index:
            self._close_file()
            self._open = (index, io.FileIO(self._parts[index][0], "r"))
        return self._open[1]

    def _close_file(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        """Close the part that is open."""
        self._close_file()
        super().close()
