"""Announce irreversible actions on the disk before they are done in AWS.

Before a run deletes, deregisters or stops sharing something, it writes a line to ``acts.jsonl``. After a
crash, the file lists these actions. If the line cannot be written, the action is not done.

>>> from pathlib import Path
>>> with recording(Path("runs/one"), "one"):  # doctest: +SKIP
...     announce("ec2:DeleteSnapshot", "snap-0123456789abcdef0", "eu-central-1")
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops import files
from vmsnix_ops.errors import UnrecordedActError, VmsnixError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_NAME = "acts.jsonl"
LISTED = 10
"""Maximum number of actions in an error; the file has all of them."""


@dataclass(frozen=True, slots=True)
class _Place:
    folder: Path
    run_id: str
    announced: list[str] = field(default_factory=list)


_PLACE: ContextVar[_Place | None] = ContextVar("vmsnix_acts", default=None)


@contextmanager
def recording(folder: Path, run_id: str) -> Iterator[None]:
    """Announce the actions of the block, in this thread, in the folder of a run.

    The error for an action that cannot be announced lists the earlier actions of the block.
    """
    token = _PLACE.set(_Place(folder, run_id))
    try:
        yield
    finally:
        _PLACE.reset(token)


def announce(act: str, resource: str, region: str = "") -> None:
    """Write a line about the next irreversible action, and return when it is on the disk.

    Outside of `recording` the line is written to the state folder. If the line cannot be written,
    `UnrecordedActError` is raised, and the action must not be done.
    """
    place, new_folder = _PLACE.get(), False
    if place is None:
        from vmsnix_ops.settings import load

        place, new_folder = _Place(load().state, ""), True
    line = {
        "at": datetime.now(UTC).isoformat(),
        "run_id": place.run_id or None,
        "act": act,
        "resource": resource,
        "region": region or None,
    }
    path = place.folder / FILE_NAME
    try:
        if new_folder:
            files.make_folder(place.folder)
        files.append_line(path, json.dumps(line), durable=True)
    except OSError as error:
        why = f"Could not record it first in {path}: {error.strerror or error}."
        if isinstance(error.__context__, VmsnixError):  # the error after which this action cleans up
            why += f" It was part of undoing a failed run: {error.__context__}"
        if place.announced:
            done = list(place.announced)
            if len(done) > LISTED:
                done[:-LISTED] = [f"{len(done) - LISTED} other requests"]
            why += f" Done before it: {', '.join(done)}."
        raise UnrecordedActError(
            f"{act} of {resource} was not done.",
            why=why,
            announced=place.announced,
            fix="Free disk space or correct the folder's permissions, then run the same command again: it "
            "continues with the other requests.",
        ) from error
    place.announced.append(f"{act} of {resource}")
