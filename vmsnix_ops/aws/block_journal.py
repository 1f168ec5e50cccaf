"""What an upload (or a download) has already done, in a file that survives the process.

The first line says which snapshot it belongs to; every further line is the index of a block. Lines are
appended when AWS has acknowledged the blocks, so a killed run loses at most what was under way, and sending
that again is harmless. A torn last line, which a power cut can leave, is ignored.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vmsnix_ops.progress import Step


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the journal belongs to.

    Attributes
    ----------
    snapshot_id
        The pending snapshot (or the one that is read).
    attempt
        How many snapshots of these bytes were begun before.
    parent_id
        Snapshot that it starts from; empty for a full upload.
    """

    snapshot_id: str
    attempt: int = 0
    parent_id: str = ""


class BlockJournal:
    """The journal of one upload or download.

    Parameters
    ----------
    path
        Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def read(self) -> tuple[Beginning, set[int]] | None:
        """Return what it belongs to and the blocks that are done, or ``None``."""
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")
            beginning = Beginning(**json.loads(lines[0]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return None  # killed while its first line was written: nothing had been sent yet
        # What follows the last newline is empty or torn. Other versions of this package wrote other lines:
        # what they stand for is done again.
        return beginning, {int(line) for line in lines[1:-1] if line.isdecimal()}

    def begin(self, beginning: Beginning) -> None:
        """Start anew."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8")
        self._file.write(json.dumps(asdict(beginning)) + "\n")
        self._file.flush()

    def resume(self) -> None:
        """Go on where it ended."""
        self.close()
        text = self.path.read_text(encoding="utf-8")
        with self.path.open("r+", encoding="utf-8") as file:
            file.truncate(len(text[: text.rfind("\n") + 1].encode()))
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, done: Sequence[int]) -> None:
        """Write down blocks that are done, by their indices."""
        if self._file is None:
            raise RuntimeError("the journal was neither begun nor resumed")
        self._file.write("".join(f"{index}\n" for index in done))
        self._file.flush()

    def close(self) -> None:
        """Close the file and keep it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Forget everything: the work is done, or will not be continued."""
        self.close()
        self.path.unlink(missing_ok=True)


@contextmanager
def alone(journal: Path, step: Step | None) -> Iterator[None]:
    """Wait for another publisher of the same image on this machine: two would share one journal."""
    lock = journal.with_name(f"{journal.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if step is not None:
                step.message("another publisher on this machine uploads this image; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            if step is not None:
                step.message(f"{lock.parent} cannot be locked ({error.strerror}); going on")
        yield
