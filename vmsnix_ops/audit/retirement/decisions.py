"""Look at all regions of a retirement at once, and decide about what was seen."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.audit.retirement import restoration
from vmsnix_ops.audit.retirement import rules as retirement_rules
from vmsnix_ops.audit.retirement import view as retirement_view

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from vmsnix_ops.audit.retirement.rules import Candidate
    from vmsnix_ops.audit.retirement.values import Decision, Rules, View
    from vmsnix_ops.audit.retirement.view import Place

Work = Literal["retire", "restore"]
AT_ONCE = 8  # regions
ASKED_AT_ONCE = 50
"""AMIs and orphans about which is asked, at least, before looking how many of them go."""


def decide(
    places: Iterable[Place],
    work: Work,
    rules: Rules,
    now: datetime,
    prefix: str,
    *,
    only: frozenset[str] | None = None,
) -> tuple[tuple[Decision, ...], dict[str, errors.VmsnixError]]:
    """Return what becomes of everything in these regions, and which of them could not be looked at.

    One that refuses does not end the others. One in which anything that may use an AMI could not be read is
    told, too, and nothing goes there.

    Parameters
    ----------
    places
        The regions.
    work, rules, now, prefix
        As for `vmsnix_ops.audit.retirement.plan`; `prefix` is that of the channels' pointers.
    only
        A plan is looked at again: what goes by it. Nothing else goes, and these need no turn.
    """
    by_region = {place.region: place for place in places}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="retire") as pool:

        def look(place: Place) -> View | errors.VmsnixError:
            try:
                if work == "restore":
                    return restoration.look(place)
                return retirement_view.look(place, prefix=prefix)
            except errors.AwsError as error:
                return error

        found = dict(zip(by_region, pool.map(look, by_region.values()), strict=True))
        unread = {region: one for region, one in found.items() if isinstance(one, errors.VmsnixError)}
        views = {region: one for region, one in found.items() if not isinstance(one, errors.VmsnixError)}
        if work == "restore":
            return restoration.decide(views.values(), rules, now), unread

        def ask(asked: tuple[str, list[str]]) -> View:
            region, resource_ids = asked
            return retirement_view.ask(by_region[region], views[region], resource_ids)

        while questions := _questions(views.values(), rules, now, only):
            views |= dict(zip(questions, pool.map(ask, questions.items()), strict=True))
    for region, view in views.items():
        if view.references.unread:
            unread[region] = _incomplete(region, view.references.unread)
    if only is not None:
        rules = replace(rules, max_count=len(only))
    return retirement_rules.decide(views.values(), rules, now), unread


def _questions(
    views: Collection[View], rules: Rules, now: datetime, only: frozenset[str] | None
) -> Mapping[str, list[str]]:
    """Return about what to ask next, by region: the oldest that would go, until as many go as may.

    Some of those asked about turn out to be shared or in use, and keep copies elsewhere, too. So it is looked
    how many are left, and asked on about newer ones; else what stays for ever would keep them from a turn.
    """
    asked = {name for view in views for name in view.asked or ()}
    left = retirement_rules.candidates(views, rules, now)
    unknown = [one for one in left if one.resource_id not in asked]
    if only is not None:
        return _by_region(one for one in unknown if one.resource_id in only)
    if len(left) - len(unknown) >= rules.max_count:
        return {}
    # More with every round, because each round looks at everything that may go.
    return _by_region(unknown[: max(ASKED_AT_ONCE, len(asked) // 2)])


def _by_region(candidates: Iterable[Candidate]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for one in candidates:
        found[one.region].append(one.resource_id)
    return found


def _incomplete(region: str, sources: Mapping[str, errors.AwsError]) -> errors.VmsnixError:
    """Return what to say of a region in which nobody can tell what is used."""
    first = next(iter(sources.values()))
    return errors.VmsnixError(
        f"Nothing goes in {region}: whether its AMIs are used is not known.",
        why=f"Could not read {', '.join(sources)}. {first.why}".strip(),
        cure=first.cure or "Run it again.",
    )
