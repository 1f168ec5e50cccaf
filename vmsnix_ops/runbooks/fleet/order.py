"""Which target waits for which: from the entries' ``after`` to an order without cycles."""

from __future__ import annotations

from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from vmsnix_ops.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmsnix_ops.runbooks.fleet.entries import Entry, Target
    from vmsnix_ops.runbooks.fleet.faults import Faults


def order(faults: Faults, entries: Sequence[Entry]) -> tuple[Target, ...]:
    """Return all targets, each behind those it waits for.

    A target waits for those targets of the entries in ``after`` that have the same value wherever both
    entries list the same (image, region, account or a parameter): the promotion in a region waits for
    the publish there.
    """
    by_name = {entry.name: entry for entry in entries}
    for entry in entries:
        for name in entry.after:
            if name not in by_name:
                faults.add(f"{entry.name}: {name!r} in after is no entry. {nearest(name, by_name)}".rstrip())
    sorter = TopologicalSorter(
        {entry.name: [name for name in entry.after if name in by_name] for entry in entries}
    )
    try:
        ordered = [by_name[name] for name in sorter.static_order()]
    except CycleError as error:
        # graphlib lists a cycle from what is waited for to what waits; the plan file says it the other way.
        faults.add(f"The entries wait for each other: {' → '.join(reversed(error.args[1]))}.")
        ordered = list(entries)
    targets: list[Target] = []
    for entry in ordered:
        before = [by_name[name] for name in entry.after if name in by_name]
        for target in entry.targets:
            after = [name for other in before for name in _matching(faults, target, other)]
            targets.append(replace(target, after=tuple(after)))
    _check_doubles(faults, targets)
    return tuple(targets)


def _matching(faults: Faults, target: Target, other: Entry) -> list[str]:
    found = [
        candidate.name
        for candidate in other.targets
        if all(target.axes[axis] == value for axis, value in candidate.axes.items() if axis in target.axes)
    ]
    if other.targets and not found:
        shared = [axis for axis in other.targets[0].axes if axis in target.axes]
        values = " and ".join(f"{axis} {target.axes[axis]}" for axis in shared)
        faults.add(f"{target.name} is to come after {other.name}, which has no target with {values}.")
    return found


def _check_doubles(faults: Faults, targets: Sequence[Target]) -> None:
    names: dict[str, Target] = {}
    keys: dict[str, Target] = {}
    for target in targets:
        if target.key in keys:
            faults.add(
                f"{target.name} and {keys[target.key].name} are the same: {target.runbook} with the same "
                "parameters in the same account."
            )
        elif target.name in names:
            faults.add(
                f"There are two targets {target.name}; rename an entry, or list what tells them apart."
            )
        names[target.name] = keys[target.key] = target
