"""What ``result.json`` and ``plan.csv`` say of a retirement, also of one that was interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vmsnix_ops.audit.retirement.plan import DONE, OUTCOMES
from vmsnix_ops.records.result import write_result
from vmsnix_ops.text import write_csv

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.audit.retirement.plan import Result

Status = Literal["done", "partly", "failed", "interrupted"]


def verdict(result: Result) -> tuple[Status, list[str]]:
    """Return what became of the whole, and what is not as planned."""
    plan, wrong = result.plan, [str(error) for error in result.plan.unread.values()]
    wrong += [f"{one.decision.resource_id}: {one.words}" for one in result.trouble]
    # Where one region was read and had nothing to do, that is done, too.
    none = len(plan.unread) == len(plan.regions) or bool(
        result.outcomes and all(one.outcome not in DONE for one in result.outcomes)
    )
    return ("failed" if none and result.unrecorded is None else "partly") if wrong else "done", wrong


def write(result: Result, *, interrupted: bool = False) -> tuple[Status, list[str]]:
    """Write both, and return what became of the whole and what is not as planned.

    Parameters
    ----------
    result
        What became of each.
    interrupted
        Whether somebody asked the run to stop.
    """
    plan = result.plan
    status, wrong = verdict(result)
    counts = {name: sum(one.outcome == name for one in result.outcomes) for name in OUTCOMES}
    try:
        path: Path | None = (file := plan.run.folder / "plan.csv")
        write_csv(plan.frame(), file)
    except OSError as error:  # what was done is told nevertheless
        path, wrong = None, [*wrong, f"plan.csv could not be written: {error}."]
        status = "partly" if status == "done" else status
    write_result(
        plan.run,
        {
            "status": "interrupted" if interrupted else status,
            "dry_run": plan.dry_run,
            "account": plan.account,
            "regions": list(plan.regions),
            "plan": path,
            "fingerprint": plan.fingerprint,
            "going": [one.resource_id for one in plan.going],
            "kept": sum(not one.goes for one in plan.decisions),
            "trouble": wrong,
            **counts,
            "outcomes": [one.plain() for one in result.outcomes],
        },
    )
    return status, wrong
