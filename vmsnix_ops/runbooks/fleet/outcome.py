"""What became of a fleet: one document a target, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import InterruptedRunError, PartlyDoneError, RunFailedError
from vmsnix_ops.progress import counted
from vmsnix_ops.text import line

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from vmsnix_ops.runbooks.fleet.ledger import Document


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a fleet.

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
        """``done``, ``partly`` (some targets done, or a part of some), ``failed`` or ``interrupted``."""
        states = set(self.counts)
        if states <= {"done"} or self.dry_run:
            return "done"
        if states & {"done", "partly"}:
            return "partly"
        return "interrupted" if states & {"interrupted", "planned", "running"} else "failed"

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed or interrupted, 3 partly done."""
        return {"done": 0, "partly": 3}.get(self.status, 1)

    def frame(self) -> pd.DataFrame:
        """Return one row a target: ``target``, ``state``, ``tries``, ``seconds``, ``ami_id``, ``error``."""
        import pandas as pd

        from vmsnix_ops.runbooks.fleet.report import rows

        columns = ["target", "state", "tries", "seconds", "ami_id", "error"]
        return pd.DataFrame(rows(self.documents), columns=columns)

    def error(self) -> PartlyDoneError | RunFailedError | InterruptedRunError | None:
        """Return what is left as an error, ``None`` when all is done."""
        if self.status == "done":
            return None
        left = [document for document in self.documents if document["state"] != "done"]
        what = f"Not done: {len(left)} of {counted(len(self.documents), 'target')} of the fleet {self.name}."
        told = next((document for document in left if document["state"] in ("failed", "partly")), left[0])
        why = f"{told['target']}: {told['error'] or told['state']}"
        cure = "Start it again: it goes on with what is left. The report has every target."
        kinds: dict[str, type[PartlyDoneError | RunFailedError | InterruptedRunError]]
        kinds = {"partly": PartlyDoneError, "interrupted": InterruptedRunError}
        return kinds.get(self.status, RunFailedError)(what, why=why, cure=cure)

    def _repr_html_(self) -> str:
        from vmsnix_ops.runbooks.fleet.report import outcome_table

        return outcome_table(self)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(self.counts.items()))
        return line(f"Fleet {self.name}: {counts}")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 (IPython's protocol)
        printer.text(str(self))
