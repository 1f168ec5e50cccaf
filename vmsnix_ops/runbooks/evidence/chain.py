"""The journal of a run, ``evidence.jsonl``: each entry contains the SHA-256 of the entry before it.

In a run that a kernel records, the entries are the executed cells; in other runs, the first entry of each
attempt contains its parameters and the SHA-256 of its cells. The last entry of every run contains the SHA-256
of its files. To edit an entry, all entries after it must change too, and so the last one. Its
SHA-256 is therefore copied to places outside of the folder (anchors):

- the row of the run in the table ``runs``, and its ``result.json`` in an archive on S3, both at its end;
- a file below ``<state>/anchors``, after every entry but the last, also for a run that is killed.

`vmsnix_ops.runbooks.evidence.verification` compares them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from vmsnix_ops.redaction import Redactor

FILE_NAME = "evidence.jsonl"
ANCHORS = "anchors"
START = "start"  # kind of the entry with the parameters of an attempt, before its first cell
END = "end"  # kind of the entry with the SHA-256 of the files


def digest(entry: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an entry without its own ``sha256``, in hexadecimal."""
    text = json.dumps({key: value for key, value in entry.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def chained(entry: Mapping[str, Any], number: int, previous: str) -> dict[str, Any]:
    """Return an entry with its number, the SHA-256 of the entry before it, and its own."""
    whole = {**entry, "number": number, "previous": previous}
    return {**whole, "sha256": digest(whole)}


def parse(content: bytes) -> list[dict[str, Any] | None]:
    """Return the entries of a journal; ``None`` for a line that is not a JSON object as `ChainedJournal` has.

    A line with a key twice is unreadable too, because programs read different values from it.
    """
    found: list[dict[str, Any] | None] = []
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        exact = isinstance(entry, dict) and json.dumps(entry).encode() == line
        found.append(entry if exact else None)
    return found


def first_defect(entries: Iterable[Mapping[str, Any] | None]) -> tuple[str, int] | None:
    """Return what is wrong with a chain, ``changed`` or ``removed``, and the number of the entry.

    ``None`` if the chain is consistent. That alone proves nothing: an edited chain can be computed again.
    """
    previous = ""
    for number, entry in enumerate(entries, 1):
        if entry is None or entry.get("sha256") != digest(entry):
            return "changed", number
        if entry.get("number") != number or entry.get("previous") != previous:
            return "removed", number
        previous = entry["sha256"]
    return None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The number of entries that a journal had, and the SHA-256 of the last one."""

    entries: int
    sha256: str


def anchors_file(state: Path, run_id: str) -> Path:
    """Return the file with the anchors of a run on this machine; the runs of a month share it."""
    return state / ANCHORS / f"{run_id[:6] if run_id[:6].isdigit() else 'other'}.jsonl"


def read_anchors(state: Path, run_id: str) -> list[Anchor]:
    """Return the anchors of a run on this machine, in order; a rewritten journal replaces earlier ones."""
    try:
        lines = files.read(anchors_file(state, run_id)).splitlines()
    except OSError:
        return []
    found: list[Anchor] = []
    for line in lines:
        if run_id.encode() not in line:
            continue
        try:
            value = json.loads(line)
            anchor = Anchor(int(value["entries"]), str(value["sha256"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if value.get("run_id") == run_id:
            found = [anchor] if value.get("rewritten") else [*found, anchor]
    return found


@dataclass
class ChainedJournal:
    """Appends to the journal of a run."""

    path: Path
    state: Path  # for the anchors
    run_id: str
    redactor: Redactor  # removes secrets before an entry is hashed
    entries: int = 0
    sha256: str = ""
    problems: dict[str, None] = field(default_factory=dict)  # errors, as sentences; no error is raised

    def append(self, kind: str, **values: Any) -> None:
        """Append an entry, and its anchor. An error is collected, because it must not stop a cell."""
        try:
            entry = chained(self.redactor.value({"kind": kind, **values}), self.entries + 1, self.sha256)
            files.append_line(self.path, json.dumps(entry), clean=True)
            self.entries, self.sha256 = entry["number"], entry["sha256"]
            self._anchor()
        except OSError as error:
            self.problems[f"The journal of the run could not be written: {error.strerror or error}."] = None
        except Exception as error:  # noqa: BLE001 - a value that cannot be written must not stop a cell
            self.problems[f"The journal of the run is incomplete: {type(error).__name__}: {error}."] = None

    def reload(self) -> None:
        """Continue after the last entry in the file, which a redaction may have written again."""
        before = self.sha256
        try:
            entries = parse(files.read(self.path))
        except OSError:
            return
        last = entries[-1] if entries else None
        if last is None or last.get("sha256") == before:
            return
        rewritten = not any(entry is not None and entry.get("sha256") == before for entry in entries)
        self.entries, self.sha256 = len(entries), str(last.get("sha256"))
        try:
            self._anchor(rewritten=rewritten)
        except OSError as error:
            self.problems[f"The copy of the journal's SHA-256 could not be written: {error.strerror}."] = None

    def _anchor(self, *, rewritten: bool = False) -> None:
        line = {"run_id": self.run_id, "entries": self.entries, "sha256": self.sha256}
        path = anchors_file(self.state, self.run_id)
        if not path.parent.is_dir():
            files.make_folder(path.parent)
        files.append_line(path, json.dumps(line | ({"rewritten": True} if rewritten else {})), clean=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the readable entries of the journal in the folder of a run; empty if there is none."""
    try:
        return [entry for entry in parse(files.read(folder / FILE_NAME)) if entry is not None]
    except OSError:
        return []


def last(folder: Path) -> dict[str, Any]:
    """Return ``journal_entries`` and ``journal_sha256`` of the journal in the folder of a run, if any."""
    entries = read(folder)
    if not entries:
        return {}
    return {"journal_entries": len(entries), "journal_sha256": entries[-1].get("sha256")}


def continued(folder: Path, state: Path, run_id: str, redactor: Redactor) -> ChainedJournal:
    """Return the journal in the folder of a run, to append after its last entry."""
    known = last(folder)
    entries, sha256 = known.get("journal_entries", 0), known.get("journal_sha256", "")
    return ChainedJournal(folder / FILE_NAME, state, run_id, redactor, entries, sha256)


def append_end(folder: Path, values: Mapping[str, Any], result: str) -> None:
    """Append the entry with the SHA-256 of the files that ``result.json`` lists, and of its content."""
    before = read(folder)
    entry = {
        "kind": END,
        "run_id": values["run_id"],
        "status": values["status"] if values["failure"] else None,  # without one, a repair may change it
        "result": result,
        "files": {name: stored["sha256"] for name, stored in values["files"].items() if name != FILE_NAME},
    }
    previous = str(before[-1].get("sha256")) if before else ""
    line = json.dumps(chained(entry, len(before) + 1, previous))
    files.append_line(folder / FILE_NAME, line, clean=True)


def redacted(content: bytes, redactor: Redactor) -> bytes:
    """Return a journal without secrets that became known after they were written; its chain is made again.

    The chain of a damaged journal is not made again, so that it remains recognizable as damaged.
    """
    entries = parse(content)
    if first_defect(entries) is not None:
        return redactor.content(content, FILE_NAME)
    clean = [redactor.value(entry) for entry in entries]
    if clean == entries:
        return content
    lines, previous = [], ""
    for number, entry in enumerate(clean, 1):
        whole = chained({key: value for key, value in entry.items() if key != "sha256"}, number, previous)
        lines.append(json.dumps(whole))
        previous = whole["sha256"]
    return "".join(f"{line}\n" for line in lines).encode()
