"""Which AMIs and snapshots go and which stay, and why: rules over what was seen, without a call to AWS.

An AMI goes only when every rule lets it go. One reason to stay is enough, and all of them are told.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.audit.retirement import view as retirement_view
from vmsnix_ops.audit.retirement.view import Decision, Place, Rules, View, owned_amis
from vmsnix_ops.aws import retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.references import SEARCH, References
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from datetime import datetime

    from vmsnix_ops.audit.retirement.view import Action, Place, Rules
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.references import Reference
    from vmsnix_ops.aws.snapshots import Snapshot


TOLD = 3
"""How many signs of use one reason names; the number of the others follows."""


def decide_by_rules(views: Iterable[View], rules: Rules, now: datetime) -> tuple[Decision, ...]:
    """Return what becomes of every AMI and every orphan of the regions that were seen.

    Parameters
    ----------
    views
        What was seen.
    rules
        What may go.
    now
        From when ages count.
    """
    views = tuple(views)
    elsewhere = _Elsewhere.of(views)
    found = [one for view in views for one in _Region(view, rules, now, elsewhere).decisions()]
    going = sorted((one for one in found if one.goes), key=lambda one: (one.created_at, one.resource_id))
    asked = {view.region: view.asked for view in views}
    known = [one for one in going if _is_in(asked[one.region], one.resource_id)]
    first = {id(one) for one in known[: rules.max_count]}
    reason = f"would go, but no more than {rules.max_count} go in one run, the oldest first"
    found = [_kept(one, reason) if one.goes and id(one) not in first else one for one in found]
    by_region: dict[str, list[Decision]] = defaultdict(list)
    for one in found:
        by_region[one.region].append(one)
    return tuple(one for view in views for one in _with_snapshots(view, by_region[view.region]))


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """An AMI or orphan that goes unless something is learned of it; they sort by age, the oldest first."""

    created_at: datetime
    resource_id: str
    region: str


def candidates(views: Iterable[View], rules: Rules, now: datetime) -> list[Candidate]:
    """Return what would go if nothing more were known, the oldest first: what is worth asking about."""
    views = tuple(views)
    elsewhere = _Elsewhere.of(views)
    return sorted(one for view in views for one in _Region(view, rules, now, elsewhere).candidates())


def orphans(view: View) -> tuple[Snapshot, ...]:
    """Return the snapshots of ours that no AMI of this account holds, oldest first."""
    held = {snapshot_id for ami in view.amis for snapshot_id in ami.snapshot_ids}
    found = [one for one in view.snapshots.values() if one.snapshot_id not in held and _ours(one.tags)]
    return tuple(sorted(found, key=lambda one: (one.created_at, one.snapshot_id)))


class _Region:
    """Decides about one region."""

    def __init__(self, view: View, rules: Rules, now: datetime, elsewhere: _Elsewhere) -> None:
        self.view, self.rules, self.now, self.elsewhere = view, rules, now, elsewhere
        self.newer = _newer(view.amis)
        self.in_channel = _in_channels(view.channels, rules.keep_last)

    def decisions(self) -> list[Decision]:
        found = [Decision.of_ami(self.view, ami, *self.verdict(ami)) for ami in self.view.amis]
        return found + [
            Decision.of_snapshot(self.view, one, *self._orphan_verdict(one)) for one in self._orphans()
        ]

    def candidates(self) -> Iterator[Candidate]:
        for ami in self.view.amis:
            if self.verdict(ami)[0] != "keep":
                yield Candidate(ami.created_at, ami.ami_id, self.view.region)
        for one in self._orphans():
            if self._orphan_verdict(one)[0] != "keep":
                yield Candidate(one.created_at, one.snapshot_id, self.view.region)

    def _orphans(self) -> tuple[Snapshot, ...]:
        return orphans(self.view) if self.rules.orphans and not self.rules.amis else ()

    def verdict(self, ami: Ami) -> tuple[Action, list[str]]:
        if not _ours(ami.tags):
            return "keep", [f"not ours: it has no tag {tagging.DIGEST}"]
        if self.rules.images and ami.tags.get(tagging.IMAGE) not in self.rules.images:
            return "keep", [f"not asked for: only {', '.join(self.rules.images)}"]
        if self.rules.amis and ami.ami_id not in self.rules.amis:
            return "keep", ["not asked for: only the AMIs that were named"]
        if ami.state not in ("available", "disabled", "failed"):
            return "keep", [f"it is {ami.state}"]
        known = retiring.mark(ami.tags)
        retired = known is not None and ami.state == "disabled"
        staying = [*self._used(ami), *self._wanted(ami, retired=retired)]
        if known is not None and retired and self.now < known.grace_until:
            staying.append(f"retired on {_day(known.at)}, can be restored until {_day(known.grace_until)}")
        if retired or ami.state == "failed":
            staying += self._locked(ami.ami_id)
        if tagging.RESTORING in ami.tags:
            staying.append(
                f"the run {ami.tags[tagging.RESTORING]} restores it, or was interrupted: restore it"
            )
        if staying and known is not None and not retired:
            staying.append(
                f"its retirement of {_day(known.at)} was interrupted, or undone by hand: restore it"
            )
        if staying:
            return "keep", staying
        if ami.state == "failed":
            return "delete", ["it never became available", f"made {self._age(ami.created_at)} ago"]
        if known is not None and retired:
            return "delete", [
                f"retired on {_day(known.at)}",
                f"grace ended on {_day(known.grace_until)}",
                "nothing uses it",
            ]
        return "retire", self._why(ami, again=known is not None)

    def _used(self, ami: Ami) -> list[str]:
        """Return what keeps an AMI because somebody uses it or may use it."""
        found = [*self._named(ami.ami_id), *self._shared(ami.ami_id, public=ami.public)]
        launched = ami.launched_at
        if launched is not None and self.now - launched < timedelta(days=self.rules.launched_days):
            found.append(f"launched {self._age(launched)} ago, less than {_days(self.rules.launched_days)}")
        used = self.elsewhere.used.get(ami.digest, {})
        copies = [words for region, words in used.items() if region != self.view.region]
        if copies:
            found.append(f"a copy is in use: {_some(copies)}")
        coming = self.elsewhere.coming.get((self.view.region, ami.ami_id), ())
        if coming:
            found.append(f"it is being copied to {_some(coming)}")
        return found

    def _shared(self, resource_id: str, *, public: bool = False) -> list[str]:
        """Return what keeps an AMI or a snapshot because others may use it."""
        shared = self._shared_with(resource_id) or (["everybody"] if public else [])
        if shared and not self.rules.allow_shared:
            return [f"shared with {_some(shared)}: whether they use it cannot be seen from here"]
        if shared and not retiring.fits(shared):
            return [f"shared with {len(shared)}, more than its tags could remember"]
        return []

    def _shared_with(self, resource_id: str) -> list[str]:
        """Return with whom something is shared, each once; where only a snapshot of an AMI is, that, too."""
        found: dict[str, str] = {}
        for one in self.view.references.of(resource_id):
            who = "everybody" if one.id == "all" else one.id
            if one.kind == "shared-with":
                found[who] = who
            elif one.kind == "snapshot-shared-with":
                found.setdefault(who, f"{who} ({', '.join(map(str, one.through))} only)")
        return sorted(found.values())

    def _locked(self, resource_id: str) -> list[str]:
        """Return what keeps an AMI or a snapshot because AWS would not delete a snapshot."""
        locks = [one for one in self.view.references.of(resource_id) if one.kind == "snapshot-lock"]
        return [f"{one.id} is locked ({one.type})" for one in locks]

    def _named(self, resource_id: str) -> list[str]:
        """Return what keeps an AMI or a snapshot because something names it, or may."""
        references, found = self.view.references, []
        if references.unread:
            found.append(f"not known whether it is used: {', '.join(references.unread)} could not be read")
        names = _told(references.names(resource_id))
        if names:
            found.append(f"in use: {_some(names)}")
        return found

    def _wanted(self, ami: Ami, *, retired: bool) -> list[str]:
        """Return what keeps an AMI although nobody uses it."""
        named = {one.id for one in self.view.references.names(ami.ami_id)}
        found = [words for name, words in self.in_channel.get(ami.ami_id, ()) if name not in named]
        if ami.state != "failed" and self.newer[ami.ami_id] < self.rules.keep_last:
            image = ami.tags.get(tagging.IMAGE) or ami.name
            found.append(f"one of the newest {self.rules.keep_last} of {image} ({ami.architecture})")
        least = self.rules.orphan_days if ami.state == "failed" else self.rules.min_age_days
        if not retired and self.now - ami.created_at < timedelta(days=least):
            found.append(f"made {self._age(ami.created_at)} ago, less than {_days(least)}")
        if ami.protection != "disabled":
            found.append(f"protected from deregistration ({ami.protection})")
        return found

    def _why(self, ami: Ami, *, again: bool) -> list[str]:
        newer = self.newer[ami.ami_id]
        found = [
            f"made {self._age(ami.created_at)} ago",
            *([f"{newer} newer"] if newer else []),
            "nothing uses it",
            f"last launched {self._age(ami.launched_at)} ago" if ami.launched_at else "no launch is known",
        ]
        shared = self._shared_with(ami.ami_id)
        if shared:
            found.append(f"shared with {_some(shared)}, who lose it")
        if again:
            found.append("its retirement was interrupted, or somebody enabled it since")
        elif ami.state == "disabled":
            found.append("it is disabled already")
        return found

    def _orphan_verdict(self, snapshot: Snapshot) -> tuple[Action, list[str]]:
        rules, known = self.rules, retiring.mark(snapshot.tags)
        if rules.images and snapshot.tags.get(tagging.IMAGE) not in rules.images:
            return "keep", [f"not asked for: only {', '.join(rules.images)}"]
        staying = self._named(snapshot.snapshot_id)
        if snapshot.tags.get(tagging.DIGEST, "") in self.view.importing:
            staying.append("an import of this image is under way")
        staying += self._shared(snapshot.snapshot_id)
        if known is None and self.now - snapshot.created_at < timedelta(days=rules.orphan_days):
            age = self._age(snapshot.created_at)
            staying.append(
                f"made {age} ago, less than {_days(rules.orphan_days)}: a publish may go on with it"
            )
        if known is not None and self.now < known.grace_until:
            staying.append(f"retired on {_day(known.at)}, is kept until {_day(known.grace_until)}")
        if known is not None:
            staying += self._locked(snapshot.snapshot_id)
        if tagging.RESTORING in snapshot.tags:
            run = snapshot.tags[tagging.RESTORING]
            staying.append(f"the run {run} restores it, or was interrupted: restore it")
        if staying:
            return "keep", staying
        if known is not None and known.with_ami:
            return "delete", [f"left behind by {known.with_ami}, which is gone", "its grace is over"]
        if known is not None:
            return "delete", ["no AMI holds it", f"grace ended on {_day(known.grace_until)}"]
        if snapshot.state != "completed":
            return "delete", [f"it is {snapshot.state}: an upload or import that did not end well"]
        return "retire", ["no AMI holds it", f"made {self._age(snapshot.created_at)} ago"]

    def _age(self, moment: datetime) -> str:
        return _days(max((self.now - moment) / timedelta(days=1), 0.0))


def _newer(amis: Iterable[Ami]) -> dict[str, int]:
    """Return how many available AMIs of the same image and architecture are newer than each."""
    groups: dict[tuple[str, str], list[Ami]] = defaultdict(list)
    for ami in amis:
        groups[(ami.tags.get(tagging.IMAGE) or ami.name, ami.architecture)].append(ami)
    newer: dict[str, int] = {}
    for group in groups.values():
        seen = 0
        for ami in sorted(group, key=lambda one: (one.created_at, one.ami_id), reverse=True):
            newer[ami.ami_id] = seen
            seen += ami.state == "available" and _ours(ami.tags)
    return newer


def _in_channels(channels: Mapping[str, tuple[str, ...]], keep_last: int) -> dict[str, list[tuple[str, str]]]:
    """Return which pointers keep each AMI, and why: they point at it, or did lately."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, values in sorted(channels.items()):
        for place, ami_id in enumerate(dict.fromkeys(values)):
            if place == 0:
                found[ami_id].append((name, f"{name} points at it"))
            elif place < keep_last:
                found[ami_id].append((name, f"one of the last {keep_last} of {name}"))
    return found


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """What all regions together say of the copies of an AMI.

    Attributes
    ----------
    used
        For each image's bytes, the regions in which an AMI of them is in use, and by what.
    coming
        For each AMI, by region and id, the copies that are being made of it.
    """

    used: Mapping[str, Mapping[str, str]]
    coming: Mapping[tuple[str, str], tuple[str, ...]]

    @classmethod
    def of(cls, views: Iterable[View]) -> _Elsewhere:
        used: dict[str, dict[str, str]] = defaultdict(dict)
        coming: dict[tuple[str, str], tuple[str, ...]] = defaultdict(tuple)
        for view in views:
            for ami in view.amis:
                names = _told(view.references.names(ami.ami_id))
                if ami.digest and names:
                    used[ami.digest][view.region] = f"{ami.ami_id} in {view.region} by {_some(names)}"
                if ami.state == "pending" and ami.source_ami_id:
                    coming[ami.source_region, ami.source_ami_id] += (f"{ami.ami_id} in {view.region}",)
        return cls(used, coming)


def _with_snapshots(view: View, decisions: Iterable[Decision]) -> Iterator[Decision]:
    """Add to each AMI that goes which of its snapshots go with it, and which stay and why.

    A snapshot that several AMIs hold goes with the last of them.
    """
    holders: dict[str, list[Ami]] = defaultdict(list)
    for ami in view.amis:
        for snapshot_id in dict.fromkeys(ami.snapshot_ids):
            holders[snapshot_id].append(ami)
    amis = {ami.ami_id: ami for ami in view.amis}
    done: dict[str, set[str]] = {"retire": set(), "delete": set()}
    decisions = tuple(decisions)
    retired = {ami.ami_id for ami in view.amis if ami.state == "disabled" and retiring.mark(ami.tags)}
    for one in decisions:
        if not one.goes or one.kind != "ami":
            yield one
            continue
        goes, stays = [], []
        # Retiring is noted on a snapshot when all its AMIs are retired; it is deleted when they are gone.
        before = done["delete"] | (done["retire"] | retired if one.action == "retire" else set())
        for snapshot_id in dict.fromkeys(amis[one.resource_id].snapshot_ids):
            others = [a.ami_id for a in holders[snapshot_id] if a.ami_id not in {one.resource_id, *before}]
            if snapshot_id not in view.snapshots:
                stays.append((snapshot_id, "it is another account's, or gone"))
            elif not _ours(view.snapshots[snapshot_id].tags):
                stays.append((snapshot_id, f"not ours: it has no tag {tagging.DIGEST}"))
            elif others:
                stays.append((snapshot_id, f"{', '.join(others)} needs it"))
            elif named := _told(view.references.names(snapshot_id)):  # a launch makes a volume of it
                stays.append((snapshot_id, f"in use: {_some(named)}"))
            else:
                goes.append(snapshot_id)
        done[one.action].add(one.resource_id)
        yield replace(one, snapshots=tuple(goes), kept_snapshots=tuple(stays))


def _told(references: Iterable[Reference]) -> list[str]:
    """Return references as texts; what both AWS's own search and ours found is told once, by ours."""
    found: dict[tuple[str, str], str] = {}
    for one in sorted(references, key=lambda one: (one.source != SEARCH, one.kind, one.id)):
        found[one.kind, one.id] = str(one)
    return sorted(found.values())


def _is_in(chosen: frozenset[str] | None, name: str) -> bool:
    return chosen is None or name in chosen


def _kept(decision: Decision, reason: str) -> Decision:
    return replace(decision, action="keep", reasons=(reason, *decision.reasons))


def _ours(tags: Mapping[str, str]) -> bool:
    return bool(tags.get(tagging.DIGEST))


def _some(words: Iterable[str]) -> str:
    known = list(dict.fromkeys(words))
    more = f" and {len(known) - TOLD} more" if len(known) > TOLD else ""
    return ", ".join(known[:TOLD]) + more


def _days(days: float) -> str:
    return counted(int(days), "day")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


# Bring back what was retired: which AMIs and snapshots, and as what they were.


def look_at_retired(place: Place) -> View:
    """Return the AMIs and snapshots of a region; nobody's use matters here."""
    return View(
        region=place.region,
        account=place.account,
        amis=owned_amis(place.ec2),
        snapshots=snapshots.owned(place.ec2),
        references=References(place.region, {}),
    )


def decide_what_returns(views: Iterable[View], rules: Rules, now: datetime) -> tuple[Decision, ...]:
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


# Look at all regions of a retirement at once, and decide about what was seen.


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
        As for `vmsnix_ops.audit.retirement._plan`; `prefix` is that of the channels' pointers.
    only
        A plan is looked at again: what goes by it. Nothing else goes, and these need no turn.
    """
    by_region = {place.region: place for place in places}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="retire") as pool:

        def look(place: Place) -> View | errors.VmsnixError:
            try:
                if work == "restore":
                    return look_at_retired(place)
                return retirement_view.look(place, prefix=prefix)
            except errors.AwsError as error:
                return error

        found = dict(zip(by_region, pool.map(look, by_region.values()), strict=True))
        unread = {region: one for region, one in found.items() if isinstance(one, errors.VmsnixError)}
        views = {region: one for region, one in found.items() if not isinstance(one, errors.VmsnixError)}
        if work == "restore":
            return decide_what_returns(views.values(), rules, now), unread

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
    return decide_by_rules(views.values(), rules, now), unread


def _questions(
    views: Collection[View], rules: Rules, now: datetime, only: frozenset[str] | None
) -> Mapping[str, list[str]]:
    """Return about what to ask next, by region: the oldest that would go, until as many go as may.

    Some of those asked about turn out to be shared or in use, and keep copies elsewhere, too. So it is looked
    how many are left, and asked on about newer ones; else what stays for ever would keep them from a turn.
    """
    asked = {name for view in views for name in view.asked or ()}
    left = candidates(views, rules, now)
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
