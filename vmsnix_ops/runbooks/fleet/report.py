"""The evidence of a fleet: a page, the targets as JSON, and ``result.json``.

The page loads nothing, like the pages of `vmsnix_ops.runbooks.evidence.report`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import display, files, templates
from vmsnix_ops.errors import ArchiveError, InterruptedRunError, PartialError, RunFailedError
from vmsnix_ops.pages import Segment
from vmsnix_ops.progress import counted, human_seconds
from vmsnix_ops.records.result import KEYS, Result, marked
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.runbooks.evidence import archive, github, index
from vmsnix_ops.runbooks.evidence.writing import store
from vmsnix_ops.runbooks.execution.status import PARTIAL
from vmsnix_ops.text import link_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from vmsnix_ops.records.fingerprints import FingerprintedPlan
    from vmsnix_ops.runbooks.fleet.ledger import Document


@dataclass(frozen=True, slots=True)
class FleetResult(Result):
    """The result of a fleet.

    Attributes
    ----------
    name
        Name of the fleet.
    fleet_run
        Run ID of this start; empty after a dry run.
    dry_run
        Whether nothing was run.
    documents
        The document of each target in the ledger.
    seconds
        Duration of this start.
    values
        Content of ``result.json``; empty after a dry run.
    plan
        The plan.
    """

    runbook = "fleet"
    name: str
    fleet_run: str
    dry_run: bool
    documents: tuple[Document, ...]
    seconds: float
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    plan: FingerprintedPlan | None = field(default=None, repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """The number of targets in each state."""
        return dict(Counter(document["state"] for document in self.documents))

    @property
    def status(self) -> str:
        """``done``, ``partial`` (some targets are done, or partial), ``failed`` or ``cancelled``."""
        states = set(self.counts)
        if states <= {"done"} or self.dry_run:
            return "done"
        if states & {"done", "partial"}:
            return "partial"
        return "cancelled" if states & {"cancelled", "planned", "running"} else "failed"

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed or cancelled, 3 partial, or done but not fully archived."""
        return self.values.get("exit_code") or {"done": 0, "partial": PARTIAL}.get(self.status, 1)

    def frame(self) -> pd.DataFrame:
        """Return one row per target: ``target``, ``state``, ``tries``, ``seconds``, ``ami_id``, ``error``."""
        import pandas as pd

        columns = ["target", "state", "tries", "seconds", "ami_id", "error"]
        return pd.DataFrame(rows(self.documents), columns=columns)

    @property
    def error(self) -> PartialError | RunFailedError | InterruptedRunError | None:
        """An error with the number of targets that are not done; ``None`` if all are done."""
        if self.status == "done":
            return None
        left = [document for document in self.documents if document["state"] != "done"]
        what = (
            f"{len(left)} of {counted(len(self.documents), 'target')} of the fleet {self.name} "
            f"{'is' if len(left) == 1 else 'are'} not done."
        )
        first = next((document for document in left if document["state"] in ("failed", "partial")), left[0])
        why = f"{first['target']}: {first['error'] or first['state']}"
        fix = "Correct the causes, then run it again: it continues with these. The report lists all targets."
        kinds: dict[str, type[PartialError | RunFailedError | InterruptedRunError]]
        kinds = {"partial": PartialError, "cancelled": InterruptedRunError}
        return kinds.get(self.status, RunFailedError)(what, why=why, fix=fix)

    def as_dict(self) -> dict[str, Any]:
        """Return the ``result.json`` of the notebook's run; the fleet has one of its own."""
        return {
            "status": self.status,
            "fleet": self.name,
            "fleet_run": self.fleet_run,
            "fleet_report": self.values.get("report"),
            "dry_run": self.dry_run,
            "plan_fingerprint": self.plan.fingerprint if self.plan else None,
            "targets": self.counts,
            "error": str(self.error) if self.error else None,
        }

    @property
    def title(self) -> str:
        """One line."""
        title = f"Fleet {self.name}: {counted_states(self.counts)}"
        return f"{title} (dry run)" if self.dry_run else title

    def table(self) -> display.DisplayTable:
        """Return one row per target."""
        columns = ("target", "state", "tries", "took", "ami_id", "error")
        found = [
            {
                **marked(one),
                "state": f"{one['state']} (dry run)" if one["dry_run"] else one["state"],
                "took": display.seconds(one["seconds"] or None),
            }
            for one in rows(self.documents)
        ]
        return display.make_table(
            columns, [[one[c] for c in columns] for one in found], right=("tries", "took")
        )


COLOURS = {"done": "done", "failed": "failed", "lost": "failed", "partial": "partial", "cancelled": "partial"}


def counted_states(counts: Mapping[str, int]) -> str:
    """Return the number of targets in each state as text: ``1 done, 2 failed``."""
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def rows(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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
            "dry_run": False,
            **document["result"],
        }
        for document in documents
    ]


def write(
    result: FleetResult, folder: archive.RunFolder, started: datetime, trouble: str | None
) -> dict[str, Any]:
    """Write the evidence of a fleet and the outputs of its CI job, and return the content of ``result.json``.

    `trouble` is the error of the fleet itself. Files that S3 refuses are kept in the local folder, and listed
    in ``problems``. ``result.json`` is written last, because it lists the other files.
    """
    error = result.error
    values: dict[str, Any] = {
        **dict.fromkeys(KEYS),
        "run_id": result.fleet_run,
        "runbook": "fleet",
        "status": result.status,
        "exit_code": result.exit_code,
        "dry_run": False,  # a dry run of a fleet writes no report
        "plan_fingerprint": result.plan.fingerprint if result.plan else None,
        "fleet": result.name,
        "targets": result.counts,
        "started_at": started.isoformat(timespec="milliseconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": result.seconds,
        "error": trouble or (str(error) if error else None),
        "result": folder.entry,
        "files": {},
        "problems": [],
    }
    redactor = Redactor(secret_values())
    values = redactor.value(values)
    documents = redactor.value([dict(document) for document in result.documents])
    files.make_folder(folder.local)
    folder.write(archive.REPORT, page(values, documents, str(folder.local)))
    folder.write_json(archive.FLEET, {"fleet": values, "targets": documents})
    store(folder, values, [archive.REPORT, archive.FLEET, archive.LOG])
    values["exit_code"] = result.exit_code or (PARTIAL if values["problems"] else 0)
    folder.write_json(archive.RESULT, values)
    try:
        folder.close(done=not values["problems"])
    except ArchiveError as refused:
        values["problems"].append(str(refused))
        values |= {"exit_code": result.exit_code or PARTIAL, "result": str(folder.path(archive.RESULT))}
        folder.write_json(archive.RESULT, values)
    github.write(values, os.environ)
    if unlisted := index.add(folder, values):
        values["problems"].append(unlisted)
    return values


def page(values: Mapping[str, Any], documents: Sequence[Mapping[str, Any]], folder: str) -> str:
    """Return the page: facts about the fleet, and each target with its tries on a time axis."""
    tries = [[_span(one) for one in document["attempts"] if one.get("started_at")] for document in documents]
    first = min((begin for spans in tries for begin, *_ in spans), default=0.0)
    whole = max((end for spans in tries for _, end, *_ in spans), default=first) - first or 1.0
    targets = []
    for row, spans in zip(rows(documents), tries, strict=True):
        # Relative, because the archive can be moved. Browsers cannot open s3://.
        local = row["report"] and not row["report"].startswith("s3://")
        link = link_target(os.path.relpath(row["report"], folder)) if local else ""
        segments = [
            Segment((begin - first) / whole, (end - begin) / whole, *more) for begin, end, *more in spans
        ]
        took = human_seconds(row["seconds"]) if row["seconds"] else ""
        targets.append({**row, "link": link, "took": took, "segments": segments})
    facts = {
        "targets": counted_states(values["targets"]),
        "run": values["run_id"],
        "started": values["started_at"],
        "took": human_seconds(values["seconds"]),
    }
    return templates.page(
        "runbooks/fleet/report.html",
        **{name: values[name] for name in ("fleet", "status", "error")},
        facts=facts,
        whole=human_seconds(whole),
        targets=targets,
    )


def _span(attempt: Mapping[str, Any]) -> tuple[float, float, str, str]:
    """Return the start and end of a try in seconds since the epoch, its colour, and its text."""
    begin, seconds = datetime.fromisoformat(attempt["started_at"]).timestamp(), attempt.get("seconds") or 0.0
    text = f"{attempt['status']}, {human_seconds(seconds)}"
    return begin, begin + seconds, COLOURS.get(attempt["status"], "soft"), text
