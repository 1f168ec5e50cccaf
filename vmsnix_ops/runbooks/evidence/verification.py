"""Verify the evidence of a run: its journal against its anchors, and its files against their SHA-256.

What is guaranteed: an entry or a file that was changed, removed or cut off after its SHA-256 was copied to an
anchor is found, also if the chain was computed again, as long as one anchor is unchanged. To hide a change, a
person has to change all anchors: the row in the table ``runs``, the entry in the bucket, and the file of the
anchors on the machine of the run. The anchors prove nothing about what the kernel wrote at first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from vmsnix_ops import files
from vmsnix_ops.errors import ArchiveError, RecordsError
from vmsnix_ops.progress import counted
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import chain, writing
from vmsnix_ops.runbooks.execution.status import PARTIAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmsnix_ops.runbooks.evidence.runs import Archive, ArchivedRun
    from vmsnix_ops.settings import Settings

Finding = Literal["intact", "not anchored", "cut off", "removed", "changed", "unreadable"]
"""The result of a check, from the best to the worst."""
ORDER: tuple[Finding, ...] = get_args(Finding)
JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class EvidenceCheck:
    """One checked part of the evidence."""

    name: str  # "journal", or the name of a file
    finding: Finding
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The evidence of a run."""

    run_id: str
    checks: tuple[EvidenceCheck, ...]
    anchors: tuple[str, ...]  # where the journal is anchored
    problems: tuple[str, ...]  # anchors that could not be read

    @property
    def finding(self) -> Finding:
        """The worst finding."""
        return max((check.finding for check in self.checks), key=ORDER.index, default="not anchored")

    @property
    def exit_code(self) -> int:
        """0 if the evidence is intact, 3 if it is consistent but not anchored, otherwise 1."""
        return {"intact": 0, "not anchored": 3}.get(self.finding, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the verification for programs."""
        return {"finding": self.finding, "exit_code": self.exit_code, **asdict(self)}


Anchors = dict[str, list[chain.Anchor]]
"""The anchors of a journal by their location, as people read it."""


def verify(archive: Archive, settings: Settings, run: ArchivedRun) -> Verification:
    """Verify the evidence of a run in an archive."""
    content, problem = _journal(archive, run)
    known, problems = _anchors(archive, settings, run)
    entries = chain.parse(content or b"")
    journal = _check_journal(run, content, entries, known)
    if problem:
        journal = EvidenceCheck(JOURNAL, "unreadable", problem)
    valid = journal is not None and journal.finding in ("intact", "not anchored")
    seal, start = (_seal(entries), _start(entries)) if valid else ({}, {})
    sealed = seal.get("files") or {}
    stored = run.values.get("files") or {}
    checks = [
        *([journal] if journal is not None else []),
        *_check_result(archive, run, seal, start),
        *_check_cells(archive, run, start),
        *(
            _check_file(archive, run, name, sealed.get(name))
            for name in sorted({*stored, *sealed} - {chain.FILE_NAME})
        ),
    ]
    if archives.is_running(archive.local_folder(run.run_id)):
        problems.append("The kernel of the run is still open, and may add to its evidence.")
    places = tuple(place for place, anchors in known.items() if anchors)
    return Verification(run.run_id, tuple(checks), places, tuple(problems))


def _journal(archive: Archive, run: ArchivedRun) -> tuple[bytes | None, str]:
    """Return the content of the journal, and why it could not be read."""
    stored = (run.values.get("files") or {}).get(chain.FILE_NAME)
    local = archive.local_folder(run.run_id) / chain.FILE_NAME
    try:
        if stored is not None and not local.is_file():
            return archive.content(str(stored["place"])), ""
        return files.read(local), ""
    except FileNotFoundError:
        return None, ""
    except (ArchiveError, OSError) as error:
        return None, files.describe(error)


def _anchors(archive: Archive, settings: Settings, run: ArchivedRun) -> tuple[Anchors, list[str]]:
    """Return the anchors of a journal outside of its folder, and why places could not be read.

    Each attempt of a run appends to its journal, so the rows of all attempts are anchors.
    """
    found = {f"the state folder {settings.state}": chain.read_anchors(settings.state, run.run_id)}
    problems = []
    columns = ["journal_entries", "journal_sha256"]
    try:
        rows = open_tables(settings).read(
            "runs", columns=columns, where=[("run_id", "==", run.run_id)], endpoint="all"
        )
    except RecordsError as error:
        problems.append(f"The history could not be read: {error}")
    else:
        rows = rows.dropna(subset=columns)  # a row of an earlier version has no journal
        pairs = zip(rows["journal_entries"], rows["journal_sha256"], strict=True)
        found["the history (table runs)"] = [chain.Anchor(int(n), str(s)) for n, s in pairs]
    entries, sha256 = (run.values.get(name) for name in columns)
    if archive.remote and isinstance(entries, int) and isinstance(sha256, str):
        found[f"the archive ({archive.location})"] = [chain.Anchor(entries, sha256)]
    return found, problems


def _check_journal(
    run: ArchivedRun, content: bytes | None, entries: Sequence[Mapping[str, Any] | None], known: Anchors
) -> EvidenceCheck | None:
    """Check the journal; ``None`` for a run without one, which an earlier version made."""
    anchors = sorted(set().union(*known.values()), key=lambda one: one.entries)
    claimed = run.values.get("journal_entries")
    if content is None:
        if anchors or claimed:
            return EvidenceCheck(JOURNAL, "removed", f"{chain.FILE_NAME} is missing.")
        return None
    defect = chain.first_defect(entries)
    if defect is not None:
        finding, number = defect
        text = {
            "changed": f"Entry {number} was changed: its SHA-256 is that of other content.",
            "removed": f"An entry before line {number} was removed, added or moved.",
        }
        return EvidenceCheck(JOURNAL, "changed" if finding == "changed" else "removed", text[finding])
    return _compare_with_anchors(entries, anchors)


def _compare_with_anchors(
    entries: Sequence[Mapping[str, Any] | None], anchors: Sequence[chain.Anchor]
) -> EvidenceCheck:
    hashes = [str(entry.get("sha256")) for entry in entries if entry is not None]
    count = counted(len(hashes), "entry", "entries")
    for anchor in anchors:
        if anchor.entries <= len(hashes) and hashes[anchor.entries - 1] != anchor.sha256:
            text = f"Entry {anchor.entries} differs from the anchored copy: it or an earlier entry was "
            text += "changed or removed."
            return EvidenceCheck(JOURNAL, "changed", text)
    if not anchors:
        text = f"{count}, consistent, not anchored: no copy of its last SHA-256."
        return EvidenceCheck(JOURNAL, "not anchored", text)
    later = len(hashes) - anchors[-1].entries
    if later < 0:
        text = f"{counted(-later, 'entry', 'entries')} missing at its end."
        return EvidenceCheck(JOURNAL, "cut off", text)
    if later:
        more = f"{count}, of which the last {counted(later, 'is', 'are')} not anchored."
        return EvidenceCheck(JOURNAL, "not anchored", more)
    return EvidenceCheck(JOURNAL, "intact", f"{count}.")


def _seal(entries: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any]:
    """Return the last entry with the SHA-256 of the files; empty if there is none."""
    ends = [entry for entry in entries if entry is not None and entry.get("kind") == chain.END]
    return ends[-1] if ends else {}


def _start(entries: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any]:
    """Return the first entry of an attempt that has not ended; empty if there is none."""
    last = entries[-1] if entries else None
    return last if last is not None and last.get("kind") == chain.START else {}


def _check_cells(archive: Archive, run: ArchivedRun, start: Mapping[str, Any]) -> list[EvidenceCheck]:
    """Check the cells of the notebook of an attempt that has not ended; `resume` would execute them."""
    content = archive.notebook(run) if start else None
    if content is None:
        return []
    try:
        notebook = catalog.without_injected(json.loads(content))
        changed = catalog.digest(notebook) != start.get("cells")
    except (ValueError, KeyError, TypeError, AttributeError):
        changed = True
    text = "Its cells are not those with which the run started."
    return [EvidenceCheck(archives.NOTEBOOK, "changed", text)] if changed else []


def _check_result(
    archive: Archive, run: ArchivedRun, seal: Mapping[str, Any], start: Mapping[str, Any]
) -> list[EvidenceCheck]:
    """Check ``result.json``; of a run that has not ended, only what it contained at the start."""
    location, content = archive.entry(run.run_id)
    if content is None:
        return [EvidenceCheck(archives.RESULT, "removed", f"{location} is missing.")]
    if not _is_exact(content, run.values):
        text = "It contains a key twice, or a value of another type than documented."
        return [EvidenceCheck(archives.RESULT, "changed", text)]
    if start:
        given: Mapping[str, Any] = start.get("entry") or {}
        text = "Its values are not those with which the run started."
        same = all(run.values.get(name) == value for name, value in given.items())
        return [] if same else [EvidenceCheck(archives.RESULT, "changed", text)]
    return [_check_values(run, seal)] if seal or run.values.get("finished_at") else []


def _is_exact(content: bytes, values: Mapping[str, Any]) -> bool:
    """Whether another program would read the same values: no key occurs twice, and no value was converted."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError
        return found

    try:
        return bool(json.loads(content, object_pairs_hook=unique) == values)
    except (ValueError, RecursionError):
        return False


def _check_values(run: ArchivedRun, seal: Mapping[str, Any]) -> EvidenceCheck:
    if not seal:
        return EvidenceCheck(archives.RESULT, "not anchored", "The journal does not contain its SHA-256.")
    values = run.values
    if writing.result_digest(values) != seal.get("result"):
        text = "Its values are not those whose SHA-256 the journal contains."
        if not values.get("finished_at"):
            text += " Or the run was killed while it wrote them: see vmsnix runs repair."
        return EvidenceCheck(archives.RESULT, "changed", text)
    if (values.get("journal_entries"), values.get("journal_sha256")) != (seal["number"], seal["sha256"]):
        text = "Its journal_entries and journal_sha256 are not those of the journal."
        return EvidenceCheck(archives.RESULT, "changed", text)
    if not str(values.get("result")).endswith(f"/{run.run_id}/{archives.RESULT}"):
        return EvidenceCheck(archives.RESULT, "changed", "Its result is the location of another file.")
    failure, status = values.get("failure"), values.get("status")
    if failure:  # its status is final
        expected = (seal.get("status") or status, failure.get("exit_code"))
        valid = status != "done"
    else:  # a repair changes it with the problems
        expected = ("partial", PARTIAL) if values.get("problems") else ("done", 0)
        valid = True
    if not valid or (status, values.get("exit_code")) != expected:
        text = "Its status or exit code does not fit its failure and its problems."
        return EvidenceCheck(archives.RESULT, "changed", text)
    return EvidenceCheck(archives.RESULT, "intact")


def _check_file(archive: Archive, run: ArchivedRun, name: str, sealed: str | None) -> EvidenceCheck:
    stored = (run.values.get("files") or {}).get(name)
    if stored is None:
        text = f"The journal contains its SHA-256, but {archives.RESULT} does not."
        return EvidenceCheck(name, "changed", text)
    try:
        content = archive.content(str(stored["place"]))
    except ArchiveError as error:
        return EvidenceCheck(name, "unreadable", str(error))
    if content is None:
        return EvidenceCheck(name, "removed", f"{stored['place']} is missing.")
    sha256 = hashlib.sha256(content).hexdigest()
    if (sha256, len(content)) != (stored["sha256"], stored.get("bytes")):
        return EvidenceCheck(name, "changed", f"Its SHA-256 or size is not the one in {archives.RESULT}.")
    ends = (f"/{run.run_id}/{name}", f"/objects/{sha256}/{name.rpartition('/')[2]}")
    if not str(stored["place"]).endswith(ends):
        return EvidenceCheck(name, "changed", f"{archives.RESULT} names a copy of it in another place.")
    key = writing.LOCATION_KEYS.get(name, "")
    if key and run.values.get(key) != stored["place"]:
        return EvidenceCheck(name, "changed", f"In {archives.RESULT}, {key} is another file.")
    if sealed is None:
        text = f"It matches {archives.RESULT}; the journal does not contain its SHA-256."
        return EvidenceCheck(name, "not anchored", text)
    if sha256 != sealed:
        text = f"It and {archives.RESULT} were changed: the journal has another SHA-256."
        return EvidenceCheck(name, "changed", text)
    return EvidenceCheck(name, "intact")
