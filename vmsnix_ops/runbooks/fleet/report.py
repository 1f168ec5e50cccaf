"""What is left of a fleet: one static page, the targets as JSON, and ``result.json``.

The page follows the rules of `vmsnix_ops.runbooks.evidence.report`: no scripts, nothing remote.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, files, templates
from vmsnix_ops.errors import InterruptedRunError, PartialError, RunFailedError
from vmsnix_ops.progress import counted, human_seconds
from vmsnix_ops.records.result import Result
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.evidence.secrets import Redactor, secret_values
from vmsnix_ops.text import link_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from vmsnix_ops.runbooks.fleet.ledger import Document


# What became of a fleet: one document a target, and what they add up to.


@dataclass(frozen=True, slots=True)
class FleetResult(Result):
    """The outcome of a fleet, target by target.

    Attributes
    ----------
    name, round
        The fleet, and which of its rounds.
    dry_run
        Whether nothing was run.
    documents
        What the ledger says of each target.
    seconds
        How long this start took.
    session
        This start of the fleet.
    values
        Content of ``result.json``; empty after a dry run.
    """

    runbook = "fleet"
    name: str
    round: str
    dry_run: bool
    documents: tuple[Document, ...]
    seconds: float
    session: str
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """How many targets there are in each state."""
        found: dict[str, int] = {}
        for document in self.documents:
            found[document["state"]] = found.get(document["state"], 0) + 1
        return found

    @property
    def status(self) -> str:
        """``done``, ``partial`` (some targets done, or a part of some), ``failed`` or ``cancelled``."""
        states = set(self.counts)
        if states <= {"done"} or self.dry_run:
            return "done"
        if states & {"done", "partial"}:
            return "partial"
        return "cancelled" if states & {"cancelled", "planned", "running"} else "failed"

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed or cancelled, 3 partial."""
        return {"done": 0, "partial": 3}.get(self.status, 1)

    def frame(self) -> pd.DataFrame:
        """Return one row a target: ``target``, ``state``, ``tries``, ``seconds``, ``ami_id``, ``error``."""
        import pandas as pd

        columns = ["target", "state", "tries", "seconds", "ami_id", "error"]
        return pd.DataFrame(rows(self.documents), columns=columns)

    @property
    def error(self) -> PartialError | RunFailedError | InterruptedRunError | None:
        """What is left as an error, ``None`` when all is done."""
        if self.status == "done":
            return None
        left = [document for document in self.documents if document["state"] != "done"]
        what = (
            f"{len(left)} of {counted(len(self.documents), 'target')} of the fleet {self.name} "
            f"{'is' if len(left) == 1 else 'are'} not done."
        )
        told = next((document for document in left if document["state"] in ("failed", "partial")), left[0])
        why = f"{told['target']}: {told['error'] or told['state']}"
        fix = "Run it again: it continues with what is left. The report lists every target."
        kinds: dict[str, type[PartialError | RunFailedError | InterruptedRunError]]
        kinds = {"partial": PartialError, "cancelled": InterruptedRunError}
        return kinds.get(self.status, RunFailedError)(what, why=why, fix=fix)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` of this run contains it; the round has one of its own."""
        return {
            "status": self.status,
            "fleet": self.name,
            "round": self.round,
            "fleet_report": self.values.get("report"),
            "dry_run": self.dry_run,
            "targets": self.counts,
            "error": str(self.error) if self.error else None,
        }

    @property
    def title(self) -> str:
        """One line."""
        counts = ", ".join(f"{count} {state}" for state, count in sorted(self.counts.items()))
        return f"Fleet {self.name}: {counts}"

    def table(self) -> display.Shown:
        """Return one row a target, for people."""
        columns = ("target", "state", "tries", "took", "ami_id", "error")
        found = [{**row, "took": display.seconds(row["seconds"] or None)} for row in rows(self.documents)]
        return display.shown(
            columns, [[row[name] for name in columns] for row in found], right=("tries", "took")
        )


COLOURS = {
    "done": "--done",
    "failed": "--failed",
    "lost": "--failed",
    "partial": "--partial",
    "cancelled": "--partial",
}


def rows(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Return the targets as rows of plain values."""
    return [
        {
            "target": document["target"],
            "runbook": document["runbook"],
            "state": document["state"],
            "tries": len(document["attempts"]),
            "seconds": sum(attempt.get("seconds") or 0 for attempt in document["attempts"]),
            "run_id": document["attempts"][-1].get("run_id", "") if document["attempts"] else "",
            "error": document["error"],
            "ami_id": None,
            "report": None,
            **document["result"],
        }
        for document in documents
    ]


def write(
    outcome: FleetResult, folder: archive.RunFolder, started: datetime, trouble: str | None
) -> dict[str, Any]:
    """Write ``report.html``, ``fleet.json`` and ``result.json``, and tell the CI job that this is part of.

    Parameters
    ----------
    outcome
        What became of the fleet.
    folder
        The round's place in the archive; the entry (``result.json``) comes last, and replaces that of an
        earlier start.
    started
        When this start began.
    trouble
        What went wrong with the fleet as a whole.

    Returns
    -------
    dict
        Content of ``result.json``.

    Raises
    ------
    ArchiveError
        When S3 refuses; the files stay on this machine, and the error says where.
    """
    from vmsnix_ops.records.result import KEYS
    from vmsnix_ops.runbooks.evidence import github

    redactor = Redactor(secret_values())
    error = outcome.error
    values: dict[str, Any] = {
        **dict.fromkeys(KEYS),
        "run_id": outcome.round,
        "runbook": "fleet",
        "status": outcome.status,
        "exit_code": outcome.exit_code,
        "fleet": outcome.name,
        "targets": outcome.counts,
        "started_at": started.isoformat(timespec="milliseconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": outcome.seconds,
        "error": trouble or (str(error) if error else None),
        "result": folder.entry,
        "files": {},
        "problems": [],
    }
    values = redactor.value(values)
    documents = redactor.value([dict(document) for document in outcome.documents])
    files.make_folder(folder.local)
    folder.write(archive.REPORT, page(values, documents, folder.local))
    folder.write_json(archive.FLEET, {"fleet": values, "targets": documents})
    for name in (archive.REPORT, archive.FLEET, archive.LOG):
        kept = folder.keep(name)
        if kept is not None:
            values["files"][name] = kept.to_json()
    values["report"] = values["files"][archive.REPORT]["place"]
    folder.write_json(archive.RESULT, values)
    folder.close(done=True)
    github.tell(values, os.environ)
    return values


def page(values: Mapping[str, Any], documents: Sequence[Document], folder: Path) -> str:
    """Return the page: what there is to know of the fleet, then every target with its tries over time."""
    spans = [[span for one in document["attempts"] if (span := _span(one))] for document in documents]
    first = min((begin for tries in spans for begin, _, _ in tries), default=0.0)
    whole = max((end for tries in spans for _, end, _ in tries), default=first) - first or 1.0
    targets = [
        {
            **row,
            "link": _link(row["report"], folder),
            "took": human_seconds(row["seconds"]) if row["seconds"] else "",
            "bars": [
                (100 * (begin - first) / whole, 100 * (end - begin) / whole, colour)
                for begin, end, colour in tries
            ],
        }
        for row, tries in zip(rows(documents), spans, strict=True)
    ]
    facts = {
        "targets": ", ".join(f"{count} {state}" for state, count in sorted(values["targets"].items())),
        "round": values["run_id"],
        "started": values["started_at"],
        "took": human_seconds(values["seconds"]),
    }
    return templates.page(
        "runbooks/fleet/report.html",
        style=(resources("vmsnix_ops.runbooks") / "_report" / "report.css").read_text(encoding="utf-8"),
        fleet=values["fleet"],
        status=values["status"],
        error=values["error"],
        facts=facts,
        whole=human_seconds(whole),
        targets=targets,
    )


def _span(attempt: Mapping[str, Any]) -> tuple[float, float, str] | None:
    """Return when a try began and ended, and its colour."""
    if not attempt.get("started_at"):
        return None
    begin = datetime.fromisoformat(attempt["started_at"]).timestamp()
    return begin, begin + (attempt.get("seconds") or 0.0), COLOURS.get(attempt["verdict"], "--soft")


def _link(report: str | None, folder: Path) -> str:
    """Return the way from the page to a run's report: relative, so that the folder may be moved."""
    if not report or str(report).startswith("s3://"):
        return ""
    return link_target(os.path.relpath(report, folder))
