"""The lines that announce irreversible acts: written and synchronised before AWS is asked to do them.

A run that deletes, deregisters or stops sharing something writes one line of ``acts.jsonl`` first, so that
what a killed process did can be found without AWS. If the line cannot be written, the act is not done.

>>> from pathlib import Path
>>> with recording(Path("runs/one"), "one"):  # doctest: +SKIP
...     announce("ec2:DeleteSnapshot", "snap-0123456789abcdef0", "eu-central-1")
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.errors import UnrecordedActError, VmsnixError
from vmsnix_ops.redaction import Redactor, secret_values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_NAME = "acts.jsonl"
LISTED = 10
"""How many acts an error lists; `FILE_NAME` has all of them."""


@dataclass(frozen=True, slots=True)
class _Place:
    folder: Path
    run_id: str
    announced: list[str] = field(default_factory=list)


_PLACE: ContextVar[_Place | None] = ContextVar("vmsnix_acts", default=None)


@contextmanager
def recording(folder: Path, run_id: str) -> Iterator[None]:
    """Let the acts of this block, in this thread, be announced in the folder of a run.

    An act that cannot be announced is reported with those of the same block that were done before it.
    """
    token = _PLACE.set(_Place(folder, run_id))
    try:
        yield
    finally:
        _PLACE.reset(token)


def announce(act: str, resource: str, region: str = "") -> None:
    """Write that an irreversible act comes next; return when the line is on the disk.

    Outside of `recording` the line goes into the state folder.

    Parameters
    ----------
    act
        The call, such as ``"ec2:DeregisterImage"``.
    resource
        What it is done to.
    region
        AWS region.

    Raises
    ------
    vmsnix_ops.errors.UnrecordedActError
        The line could not be written; the act must not be done.
    """
    place = _PLACE.get()
    if place is None:
        from vmsnix_ops.settings import load

        place, make = _Place(load().state, ""), True
    else:
        make = False
    line = {
        "at": datetime.now(UTC).isoformat(),
        "run_id": place.run_id or None,
        "act": act,
        "resource": resource,
        "region": region or None,
    }
    path = place.folder / FILE_NAME
    try:
        if make:
            files.make_folder(place.folder)
        _append(path, Redactor(secret_values()).json(json.dumps(line)) + "\n")
    except OSError as error:
        why = f"Could not announce it in {path}: {error.strerror or error}."
        if isinstance(error.__context__, VmsnixError):  # a failure that was being cleaned up after
            why += f"It was to undo a failed run. The failure: {error.__context__}"
        if place.announced:
            done = list(place.announced)
            if len(done) > LISTED:
                done[:-LISTED] = [f"{len(done) - LISTED} acts"]
            why += f" Done before it: {', '.join(done)}."
        raise UnrecordedActError(
            f"{act} of {resource} was not done.",
            why=why,
            announced=place.announced,
            fix="Free disk space or correct the folder's permissions, then run the same command again: it "
            "continues with what is left.",
        ) from error
    place.announced.append(f"{act} of {resource}")


def _append(path: Path, text: str) -> None:
    """Append a whole line and synchronise it, and the folder's entry when the file is new."""
    new = not path.exists()
    descriptor = files.create(path, os.O_RDWR | os.O_APPEND)
    try:
        data = text.encode()
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data  # a full disk or a power cut left half a line, which must not spoil this one
        if os.write(descriptor, data) != len(data):  # a full disk takes a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
