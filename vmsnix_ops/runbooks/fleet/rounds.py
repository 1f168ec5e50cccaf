"""The rounds of a fleet in its ledger: which is under way, and how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.runbooks.fleet.ledger import change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmsnix_ops.runbooks.fleet.entries import Target
    from vmsnix_ops.runbooks.fleet.ledger import Document, Ledger


def open_round(ledger: Ledger, name: str, *, fresh: bool) -> str:
    """Return the round that is under way, or begin one; of two clients that begin one, both get the same."""
    begun = new_run_id(f"fleet-{name}")

    def decide(now: Document | None) -> Document | None:
        if now is not None and not now["closed"] and not fresh:
            return None
        return {"fleet": name, "round": begun, "closed": False}

    document = change(ledger, f"fleets/{name}.json", decide)
    fleet = str(document["round"]) if document else begun
    change(ledger, f"fleets/{fleet}.json", lambda now: None if now else {"fleet": name, "round": fleet})
    return fleet


def close_round(ledger: Ledger, name: str, fleet: str) -> None:
    """Close a round, all of whose targets are done: the next start begins a new one."""

    def decide(now: Document | None) -> Document | None:
        return {**now, "closed": True} if now and now["round"] == fleet and not now["closed"] else None

    change(ledger, f"fleets/{name}.json", decide)


def unfinished_round(ledger: Ledger, name: str) -> str:
    """Return the round that is under way; empty when there is none."""
    kept = ledger.read(f"fleets/{name}.json")
    return "" if kept is None or kept.value["closed"] else str(kept.value["round"])


def states(ledger: Ledger, targets: Sequence[Target], fleet: str) -> dict[str, str]:
    """Return the state of each target in a round, by key; ``planned`` where nothing is known."""
    return {
        target.key: last_word(ledger, target, fleet)["state"] if fleet else "planned" for target in targets
    }


def last_word(ledger: Ledger, target: Target, fleet: str) -> Document:
    """Return what the ledger says of a target in a round."""
    kept = ledger.read(f"targets/{target.key}.json")
    if kept is None or kept.value["fleet"] != fleet:
        return unrun(target, "planned")
    return {**kept.value, "target": target.name}


def unrun(target: Target, state: str) -> Document:
    """Return the document of a target that was never run."""
    return {
        "target": target.name,
        "key": target.key,
        "runbook": target.runbook,
        "state": state,
        "attempts": [],
        "error": None,
        "result": {},
        "session": "",
    }
