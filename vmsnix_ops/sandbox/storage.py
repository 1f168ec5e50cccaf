"""Stored bytes: the blocks of snapshots, and the objects of S3.

Other services read objects through `find_bucket` and `open_object`; only `s3` changes them.
"""

from __future__ import annotations

import hashlib
import io
import os
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.wire.http import FileRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from pathlib import Path

    from vmsnix_ops.sandbox.core import SandboxTables


class BlockStore:
    """A folder of blocks, as files named by their SHA-256.

    No block is deleted while the sandbox runs, because many snapshots can share it. The folder is deleted
    with the sandbox, or kept with its state.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return the file of a block, by the hexadecimal SHA-256 of its bytes."""
        return self._folder / digest[:2] / digest

    def put(self, data: bytes | memoryview) -> str:
        """Store a block and return the hexadecimal SHA-256 of its bytes. The sandbox needs no fsync."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary = path.with_name(f"{digest}.{os.urandom(4).hex()}")
            temporary.write_bytes(data)
            temporary.replace(path)  # two writers of the same block both succeed
        return digest

    def receive(self, pieces: Iterable[memoryview]) -> str:
        """Store a block from its pieces, and return its digest as `put`.

        A block that is being received is not in memory: with 64 connections, that would be 32 MiB.
        """
        temporary = self._folder / f"incoming.{os.urandom(8).hex()}"
        computed = hashlib.sha256()
        try:
            with temporary.open("wb", buffering=0) as file:
                for piece in pieces:
                    computed.update(piece)
                    file.write(piece)
            digest = computed.hexdigest()
            path = self.path(digest)
            try:
                temporary.replace(path)
            except FileNotFoundError:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return digest

    def get(self, digest: str) -> bytes:
        """Return a block's bytes."""
        return self.path(digest).read_bytes()


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an object: a file and its checksums."""

    number: int  # of a part of a multipart upload; 1 for the object of a single PUT
    file: str  # name of the file below objects/
    size: int  # in bytes
    md5: str  # hexadecimal, from which ETags are made
    checksums: dict[str, str]  # base64 by algorithm, such as {"sha256": "..."}
    modified: datetime  # time of its upload

    def path(self, folder: Path) -> Path:
        """Return the path of the file; `folder` is that of the sandbox."""
        return object_path(folder, self.file)


@dataclass(slots=True)
class StoredObject:
    """An object: its metadata, and its parts."""

    key: str
    parts: tuple[Part, ...]
    etag: str  # without quotes
    modified: datetime
    headers: dict[str, Any] = field(default_factory=dict)  # by botocore's names, such as ContentType
    metadata: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)  # of the whole object; composite ones end in "-N"
    checksum_type: str = "FULL_OBJECT"
    multipart: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    version_id: str = "null"

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.size for part in self.parts)


@dataclass(slots=True)
class DeleteMarker:
    """The version of a key that a deletion makes in a versioned bucket."""

    key: str
    modified: datetime
    version_id: str


@dataclass(slots=True)
class MultipartUpload:
    """An unfinished multipart upload."""

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
    """A bucket with its objects.

    `objects` has the current objects. `history` has the other versions and the delete markers of each key,
    newest first; a key whose newest version is a delete marker is only there.
    """

    name: str
    account: str
    region: str
    created: datetime
    objects: dict[str, StoredObject] = field(default_factory=dict)
    uploads: dict[str, MultipartUpload] = field(default_factory=dict)
    completed: dict[str, tuple[str, str]] = field(default_factory=dict)  # key and ETag by upload ID
    settings: dict[str, Any] = field(default_factory=dict)  # policy, tagging, encryption, ... by name
    history: dict[str, list[StoredObject | DeleteMarker]] = field(default_factory=dict)
    expired_on: str = ""  # when lifecycle rules were last applied


def object_path(folder: Path, file: str) -> Path:
    """Return the path of a part file in the sandbox's folder.

    The name is from the state file, so it is checked: it must not be a path out of the folder.
    """
    if not file.isalnum():
        raise OSError(f"The state file of the sandbox contains an invalid file name of an object: {file!r}.")
    return folder / "objects" / file[:2] / file


def find_bucket(tables: SandboxTables, name: str) -> Bucket | None:
    """Return a bucket of any account by its name, which is globally unique."""
    found: Bucket | None = tables.find("buckets", "", name)
    return found


def open_object(tables: SandboxTables, folder: Path, bucket: str, key: str) -> ObjectReader:
    """Return the content of the current object of a key as one seekable binary file.

    A `FileNotFoundError` if the bucket or the object does not exist.
    """
    found = find_bucket(tables, bucket)
    if found is None or key not in found.objects:
        raise FileNotFoundError(f"s3://{bucket}/{key}")
    return object_reader(found.objects[key], folder)


def object_reader(stored: StoredObject, folder: Path) -> ObjectReader:
    """Return an object's content as one seekable binary file."""
    return ObjectReader([(part.path(folder), part.size) for part in stored.parts])


def file_ranges(stored: StoredObject, folder: Path, start: int, length: int) -> list[FileRange]:
    """Return the ranges of part files with `length` bytes of an object from `start`."""
    ranges, offset = [], 0
    for part in stored.parts:
        first = max(start, offset)
        last = min(start + length, offset + part.size)
        if first < last:
            ranges.append(FileRange(part.path(folder), first - offset, last - first))
        offset += part.size
    return ranges


class ObjectReader(io.RawIOBase):
    """Part files as one seekable binary file. At most one of them is open."""

    def __init__(self, parts: Sequence[tuple[Path, int]]) -> None:
        self._parts = list(parts)
        *self._starts, self.size = accumulate((size for _, size in self._parts), initial=0)
        self._position = 0
        self._open: tuple[int, io.FileIO] | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset and return it. After the end, reads return nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and return the number of bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._position < self.size:
            index = bisect_right(self._starts, self._position) - 1
            start, (_, size) = self._starts[index], self._parts[index]
            file = self._file(index)
            file.seek(self._position - start)
            count = file.readinto(view[done : done + start + size - self._position])
            if not count:
                raise OSError(f"{self._parts[index][0]} is shorter than it should be")
            done += count
            self._position += count
        return done

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
