"""The executed cells of an interactive run: from its journal to a notebook in the order of execution."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.progress import counted
from vmsnix_ops.runbooks import catalog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

OK, ERROR, STARTED, EARLIER = "ok", "error", "started", "earlier"
NEXT = "next"  # kind of the entry with the first cell of the next run in the same kernel
NOT_ENDED = "This cell did not end: the kernel was shut down or killed while it ran."


@dataclass(frozen=True, slots=True)
class CellPlace:
    """A code cell of the runbook, in its order."""

    id: str
    sha256: str  # of its source
    parameters: bool = False  # whether it is the parameters cell


def source_digest(source: str) -> str:
    """Return the SHA-256 of a cell's source without surrounding white space."""
    return hashlib.sha256(source.strip().encode("utf-8", "surrogatepass")).hexdigest()


def places(path: Path) -> list[CellPlace]:
    """Return the code cells of a notebook that are not empty, in its order."""
    found = []
    for number, cell in enumerate(json.loads(files.read(path))["cells"]):
        source = "".join(cell.get("source", ""))
        if cell.get("cell_type") == "code" and source.strip():
            tags = cell.get("metadata", {}).get("tags", [])
            name = str(cell.get("id") or f"cell-{number}")
            found.append(CellPlace(name, source_digest(source), "parameters" in tags))
    return found


def place_of(known: Iterable[CellPlace], identifier: str | None, source: str) -> int | None:
    """Return the index of a cell in the runbook, by its ID or its source; ``None`` for any other cell."""
    wanted = source_digest(source)
    for number, place in enumerate(known):
        if place.id == identifier or place.sha256 == wanted:
            return number
    return None


@dataclass(slots=True)
class Execution:
    """One execution of a cell."""

    number: int  # as JupyterLab shows it
    source: str
    outcome: str
    place: int | None = None  # index of its cell in the runbook
    id: str | None = None
    at: str = ""
    seconds: float | None = None
    error: Mapping[str, Any] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)
    modified: bool = False  # whether the runbook has no such cell
    note: str = ""  # why its output may not be that of the whole notebook


def executions(entries: Sequence[Mapping[str, Any]]) -> list[Execution]:
    """Return the executions in a journal, in order, with notes about their order."""
    known = _places(entries)
    found: dict[int, Execution] = {}
    for entry in entries:
        kind, number = entry.get("kind"), int(entry.get("cell") or 0)
        if kind in (STARTED, EARLIER):
            source = str(entry.get("source", ""))
            identifier = entry.get("id")
            found[number] = Execution(
                number, source, kind, place_of(known, identifier, source), identifier, entry.get("at") or ""
            )
        elif kind == NEXT:
            found = {key: one for key, one in found.items() if key < number}
        elif kind == "cell" and number in found:
            one = found[number]
            one.id = one.id or entry.get("id")
            one.place = place_of(known, one.id, one.source)
            one.outcome, one.seconds = str(entry.get("outcome")), entry.get("seconds")
            one.error, one.outputs = entry.get("error") or {}, list(entry.get("outputs") or [])
    executed = list(found.values())
    _add_notes(executed, known)
    return executed


def _add_notes(executed: list[Execution], known: list[CellPlace]) -> None:
    """Note which executions were out of the runbook's order, are out of date, or are of changed cells."""
    before: Execution | None = None  # the last executed cell of the runbook
    # The parameters cell was executed before the first call, which started the run.
    seen = {number for number, place in enumerate(known) if place.parameters}
    for at, one in enumerate(executed):
        notes = [NOT_ENDED] if one.outcome == STARTED else []
        if one.place is None:
            if one.outcome != EARLIER and known:
                one.modified = True
                notes.append("This cell is not in the runbook.")
        else:
            if source_digest(one.source) != known[one.place].sha256 and not known[one.place].parameters:
                one.modified = True
                notes.append("Its source differs from the runbook.")
            skipped = one.place - len([place for place in seen if place < one.place])
            if before is not None and before.place is not None and one.place < before.place:
                notes.append(
                    f"Out of order: it was executed after cell [{before.number}], which is below it in the "
                    "runbook."
                )
            elif skipped:
                notes.append(f"Out of order: {counted(skipped, 'cell')} above it had not been executed.")
            before = one
            seen.add(one.place)
            later = executed[at + 1 :]
            again = next((other for other in later if other.place == one.place), None)
            above = next(
                (other for other in later if other.place is not None and other.place < one.place), None
            )
            if again is not None:
                notes.append(f"Executed again later as cell [{again.number}].")
            elif above is not None:
                earlier = [other for other in executed[:at] if other.place == above.place]
                changed = bool(earlier) and earlier[-1].source != above.source
                what = "changed and executed" if changed else "executed"
                notes.append(f"Out of date: a cell above it was {what} again later as cell [{above.number}].")
        one.note = " ".join(notes)


def notebook(entries: Sequence[Mapping[str, Any]], outputs: Mapping[int, list[Any]] | None = None) -> Any:
    """Return the executed cells of a journal as a notebook, in the order of their execution.

    `outputs` are those that were too long for the journal, by the number of the cell.
    """
    import nbformat

    parameters = {number for number, place in enumerate(_places(entries)) if place.parameters}
    found = []
    for one in executions(entries):
        tags = ["parameters"] if one.place in parameters else []
        about = {"cell": one.id, "started_at": one.at, "seconds": one.seconds, "note": one.note}
        found.append(
            {
                "cell_type": "code",
                "id": f"run-{one.number}",
                "metadata": {"tags": tags, "vmsnix": about},
                "source": one.source,
                "outputs": (outputs or {}).get(one.number) or one.outputs,
                "execution_count": one.number,
            }
        )
    whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": catalog.NOTEBOOK_METADATA, "cells": found}
    return nbformat.from_dict(whole)  # type: ignore[no-untyped-call]


def _places(entries: Iterable[Mapping[str, Any]]) -> list[CellPlace]:
    for entry in entries:
        if entry.get("kind") == "run":
            return [CellPlace(**place) for place in entry.get("cells") or []]
    return []
