"""Look at all regions of a retirement at once, and decide about what was seen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.audit import restoration, retirement_rules, retirement_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from vmsnix_ops.audit.retirement_values import Decision, Rules, View
    from vmsnix_ops.audit.retirement_view import Place

Work = Literal["retire", "restore"]
AT_ONCE = 8


def decide(
    places: Iterable[Place], work: Work, rules: Rules, now: datetime, prefix: str
) -> tuple[tuple[Decision, ...], dict[str, errors.VmsnixError]]:
    """Return what becomes of everything in these regions, and which of them could not be looked at.

    One that refuses does not end the others. One in which anything that may use an AMI could not be read is
    told, too, and nothing goes there.
    """
    places, unread = tuple(places), dict[str, errors.VmsnixError]()

    def look(place: Place) -> View | errors.VmsnixError:
        try:
            if work == "restore":
                return restoration.look(place)
            return retirement_view.look(place, rules, now, prefix=prefix)
        except errors.AwsError as error:
            return error

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="retire") as pool:
        found = list(pool.map(look, places))
    views = []
    for place, view in zip(places, found, strict=True):
        if isinstance(view, errors.VmsnixError):
            unread[place.region] = view
            continue
        views.append(view)
        if view.references.unread:
            unread[place.region] = _incomplete(place.region, view.references.unread)
    decider = restoration.decide if work == "restore" else retirement_rules.decide
    return decider(views, rules, now), unread


def _incomplete(region: str, sources: Mapping[str, errors.AwsError]) -> errors.VmsnixError:
    """Return what to say of a region in which nobody can tell what is used."""
    first = next(iter(sources.values()))
    return errors.VmsnixError(
        f"Nothing goes in {region}: whether its AMIs are used is not known.",
        why=f"Could not read {', '.join(sources)}. {first.why}".strip(),
        cure=first.cure or "Run it again.",
    )
