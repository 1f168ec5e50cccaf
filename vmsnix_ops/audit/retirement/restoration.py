"""Bring back what was retired: which AMIs and snapshots, and as what they were."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmsnix_ops.audit.retirement.rules import orphans
from vmsnix_ops.audit.retirement.values import Decision, Rules, View
from vmsnix_ops.audit.retirement.view import Place, owned_amis
from vmsnix_ops.aws import retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.references import References

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from vmsnix_ops.audit.retirement.values import Action
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.snapshots import Snapshot


def look(place: Place) -> View:
    """Return the AMIs and snapshots of a region; nobody's use matters here."""
    return View(
        region=place.region,
        account=place.account,
        amis=owned_amis(place.ec2),
        snapshots=snapshots.owned(place.ec2),
        references=References(place.region, {}),
    )


def decide(views: Iterable[View], rules: Rules, now: datetime) -> tuple[Decision, ...]:
    """Return what becomes of every AMI, and of every orphan that was retired.

    Parameters
    ----------
    views
        What was seen.
    rules
        Which: its `images`, its `amis`, and whether `orphans`.
    now
        Against which deprecation dates are held.
    """
    return tuple(one for view in views for one in _region(view, rules, now))


def _region(view: View, rules: Rules, now: datetime) -> Iterator[Decision]:
    for ami in view.amis:
        yield _ami(view, ami, rules, now)
    if rules.orphans and not rules.amis:
        for snapshot in orphans(view):
            if retiring.mark(snapshot.tags) is not None:
                yield _orphan(view, snapshot, rules)


def _ami(view: View, ami: Ami, rules: Rules, now: datetime) -> Decision:
    decision = Decision.of_ami(view, ami, *_verdict(ami, rules, now))
    if not decision.goes:
        return decision
    missing = [name for name in dict.fromkeys(ami.snapshot_ids) if name not in view.snapshots]
    if missing:
        half = f"{', '.join(missing)} is gone, or another account's: see whether it can be launched"
        decision = replace(decision, reasons=(*decision.reasons, half))
    marked = [
        name
        for name in dict.fromkeys(ami.snapshot_ids)
        if name in view.snapshots and retiring.mark(view.snapshots[name].tags) is not None
    ]
    return replace(decision, snapshots=tuple(marked))


def _verdict(ami: Ami, rules: Rules, now: datetime) -> tuple[Action, tuple[str, ...]]:
    known = retiring.mark(ami.tags)
    if not ami.digest:
        return "keep", (f"not ours: it has no tag {tagging.DIGEST}",)
    if rules.images and ami.tags.get(tagging.IMAGE) not in rules.images:
        return "keep", (f"not asked for: only {', '.join(rules.images)}",)
    if rules.amis and ami.ami_id not in rules.amis:
        return "keep", ("not asked for: only the AMIs that were named",)
    if known is None and ami.state == "disabled" and rules.amis:
        return "restore", ("disabled by somebody else: with whom it was shared is not known",)
    if known is None:
        return "keep", (f"not retired by us: it is {ami.state}",)
    before = known.deprecated_before
    date = "no deprecation date" if before is None else f"deprecated from {before:%Y-%m-%d %H:%M} UTC on"
    if before is not None and before <= now:
        date = f"stays deprecated, as it would be since {before:%Y-%m-%d}"
    if known.state_before == "disabled":
        return "restore", (f"retired on {known.at:%Y-%m-%d}", "stays disabled, as it was before")
    with_whom = ", ".join(known.shared_with) or "nobody"
    return "restore", (f"retired on {known.at:%Y-%m-%d}", f"shared with {with_whom}", date)


def _orphan(view: View, snapshot: Snapshot, rules: Rules) -> Decision:
    known = retiring.mark(snapshot.tags)
    action: Action = "restore"
    reasons = ["no AMI holds it", f"retired on {known.at:%Y-%m-%d}" if known else ""]
    if known is not None and known.with_ami:
        action, reasons = "keep", [f"its AMI {known.with_ami} is gone"]
    elif rules.images and snapshot.tags.get(tagging.IMAGE) not in rules.images:
        action, reasons = "keep", [f"not asked for: only {', '.join(rules.images)}"]
    return Decision.of_snapshot(view, snapshot, action, reasons)
