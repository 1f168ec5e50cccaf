"""The policy of who audits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.audit import inventory
from vmsnix_ops.aws import images
from vmsnix_ops.aws.permissions import needs_of
from vmsnix_ops.aws.policies import document

if TYPE_CHECKING:
    from vmsnix_ops.aws.policies import Place


def auditor_actions() -> tuple[str, ...]:
    """Return what the inventory and ``vmsnix history sync`` need: to look, and nothing else."""
    return needs_of(inventory.scan, images.ours)


def auditor(place: Place) -> dict[str, Any]:
    """Return the policy of who audits."""
    return document(auditor_actions(), place)
