"""What VM Import reads: an S3 object, as the service role may see it, and the disk image in it.

Failure texts are from public transcripts where not marked otherwise.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from vmsnix_ops.disk.formats import open_image
from vmsnix_ops.sandbox import objects
from vmsnix_ops.sandbox.core import AwsError, Params
from vmsnix_ops.sandbox.ec2 import import_role
from vmsnix_ops.sandbox.ec2.state import BLOCK_BYTES, ImportTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.sandbox.core import Context

logger = logging.getLogger("vmsnix_ops.sandbox")

LOOK_SECONDS = 10.0
"""Real seconds that one look at a task spends on reading its source; clients wait for a minute by default."""

NOT_LOCAL = "The given S3 object is not local to the region"
VALIDATION = "ClientError: Disk validation failed"


class UnusableError(Exception):
    """The source cannot be imported; the text is the task's StatusMessage."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the check of a source found: its format, the bytes of the file and of the disk in it."""

    image_format: str
    file_bytes: int
    disk_bytes: int


def location(container: Params) -> tuple[str, str, str]:
    """Return bucket, key and URL that a DiskContainer names; the URL is "" when it names a bucket.

    Raises
    ------
    AwsError
        It names none, or both, or a URL that is not one of S3.
    """
    bucket, url = container.get("UserBucket") or {}, container.get("Url", "")
    if bool(bucket) == bool(url):
        text = "Exactly one of UserBucket and Url must be given."  # text from memory
        raise AwsError("InvalidParameter", text)
    if not url:
        if not bucket.get("S3Bucket") or not bucket.get("S3Key"):
            raise AwsError("MissingParameter", "The request must contain the parameters S3Bucket and S3Key")
        return bucket["S3Bucket"], bucket["S3Key"], ""
    parts = urlsplit(url)
    path = unquote(parts.path).lstrip("/")
    if parts.scheme == "s3" and parts.netloc and path:
        return parts.netloc, path, url
    host = parts.netloc.split(":")[0]
    if parts.scheme == "https" and host.endswith(".amazonaws.com") and ".s3" in host and path:
        return host.split(".s3")[0], path, url
    raise AwsError("InvalidParameter", f"The URL '{url}' is not one of an S3 object.")  # text from memory


def check_access(context: Context, role_name: str, bucket: str, key: str) -> None:
    """Refuse at once what ImportSnapshot refuses at once: the role, and a bucket elsewhere."""
    import_role.check(context, role_name, bucket, key)
    found = objects.find_bucket(context.tables, bucket)
    if found is not None and found.region != context.region:
        raise AwsError("InvalidParameter", NOT_LOCAL)


def require_present(context: Context, task: ImportTask) -> None:
    """Fail the task when its object is gone, or out of the role's reach."""
    bucket = objects.find_bucket(context.tables, task.bucket)
    reason = ""
    if not import_role.may(context, task.role_name, "s3:GetObject", f"{task.bucket}/{task.key}"):
        reason = "403 Forbidden"
    elif bucket is None or task.key not in bucket.objects:
        # Without the right to list, S3 does not tell what exists: it answers 403.
        listing = import_role.may(context, task.role_name, "s3:ListBucket", task.bucket)
        reason = "404 Not Found" if listing else "403 Forbidden"
    elif not _may_decrypt(context, task, bucket.objects[task.key].headers):
        reason = "403 Forbidden"
    elif task.etag and bucket.objects[task.key].etag != task.etag:
        # What AWS says then is not known; half of one image and half of another must not become a snapshot.
        raise UnusableError(f"{VALIDATION} [The given resource was changed while it was read]")
    if reason:
        raise UnusableError(f"{VALIDATION} [We do not have access to the given resource. Reason {reason}]")


def _may_decrypt(context: Context, task: ImportTask, headers: Mapping[str, object]) -> bool:
    """Tell whether the role may decrypt an object that a customer's key encrypts; key policies allow it."""
    key = str(headers.get("SSEKMSKeyId") or "")
    return not key.startswith("arn:") or import_role.may_use_key(context, task.role_name, "kms:Decrypt", key)


@contextmanager
def _reader(context: Context, task: ImportTask) -> Iterator[objects.ObjectReader]:
    require_present(context, task)
    try:
        reader = objects.open_object(context.tables, context.folder, task.bucket, task.key)
        with reader:
            yield reader
    except FileNotFoundError as error:  # it was deleted while it was read
        reason = "We do not have access to the given resource. Reason 404 Not Found"
        raise UnusableError(f"{VALIDATION} [{reason}]") from error


@contextmanager
def _image(reader: objects.ObjectReader, task: ImportTask) -> Iterator[DiskImage]:
    """Open the source as what the request says that it is; whatever is wrong with it fails the task."""
    vmdk = task.image_format == "VMDK"
    text = "Unsupported VMDK File Format" if vmdk else "Unsupported specified file format"
    unsupported = UnusableError(f"{VALIDATION} [{text}]")
    try:
        with open_image(reader) as image:
            _require(image.format == task.image_format.lower(), unsupported)
            _require(not vmdk or image.subformat == "streamOptimized", unsupported)
            yield image
    except (UnusableError, OSError):
        raise
    except Exception as error:
        # The classes of `disk`'s errors are in a module that the sandbox must not know; a program that is
        # missing here is no fault of the image.
        if type(error).__name__ == "ToolMissingError":
            raise
        logger.info("%s: %s", task.task_id, error)
        raise unsupported from error


def _require(condition: bool, error: UnusableError) -> None:
    if not condition:
        raise error


def inspect(context: Context, task: ImportTask) -> Found:
    """Open the source and check that it is what it was said to be.

    Raises
    ------
    UnusableError
        It is not there, not readable, empty, or of another format. RAW takes any bytes, a VHD's too.
    """
    with _reader(context, task) as reader:
        bucket = objects.find_bucket(context.tables, task.bucket)
        stored = bucket.objects.get(task.key) if bucket is not None else None
        task.etag = stored.etag if stored is not None else ""
        if reader.size == 0:
            raise UnusableError(f"{VALIDATION} [Unsupported specified file format]")
        if task.image_format == "RAW":
            return Found("raw", reader.size, reader.size)
        with _image(reader, task) as image:
            return Found(image.format, reader.size, image.size)


def read_blocks(context: Context, task: ImportTask) -> None:
    """Put blocks that are not all zeros into the block store, for a few seconds at most.

    A large disk takes several looks at its task, so that no answer takes longer than a client waits. The task
    is changed under the state lock, and marked as read when nothing is left.

    Raises
    ------
    UnusableError
        The source is gone, or damaged where it was not looked at before.
    """
    kept: dict[int, bytes] = {}
    enough = time.monotonic() + LOOK_SECONDS
    done = True
    with _reader(context, task) as reader:
        for index, data in _blocks(reader, task):
            kept[index] = bytes.fromhex(context.blocks.put(data))
            if time.monotonic() > enough:
                done = False
                break
    with context.lock:
        task.blocks.update(kept)
        task.next_block = max(kept, default=task.next_block - 1) + 1
        task.read = done


def _blocks(reader: objects.ObjectReader, task: ImportTask) -> Iterator[tuple[int, bytes | memoryview]]:
    """Yield the blocks that hold data and were not read yet."""
    if task.image_format == "RAW":
        yield from _raw_blocks(reader, task.next_block)
        return
    with _image(reader, task) as image:
        for block in image.blocks(BLOCK_BYTES, first=task.next_block):
            yield block.index, block.data


def _raw_blocks(reader: objects.ObjectReader, first: int) -> Iterator[tuple[int, bytes]]:
    zeros = bytes(BLOCK_BYTES)
    reader.seek(first * BLOCK_BYTES)
    index = first
    while data := reader.read(BLOCK_BYTES):
        block = data.ljust(BLOCK_BYTES, b"\0")
        if block != zeros:
            yield index, block
        index += 1
