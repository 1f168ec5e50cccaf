"""Which AMIs and snapshots are retired, deleted and kept, and why: the rules of retirements and of audits.

An AMI is retired only when every rule allows it. One reason to keep it is enough; a decision lists them all.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.arguments import MOST_DAYS, check_range
from vmsnix_ops.audit import region as reading
from vmsnix_ops.aws import retiring
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.references import AMI_ID, SEARCH
from vmsnix_ops.progress import counted
from vmsnix_ops.settings import RetirementPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from datetime import datetime

    from vmsnix_ops.audit.region import Place, Region
    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.references import Reference, References
    from vmsnix_ops.aws.snapshots import Snapshot


# What a retirement decides by, and what it decides: rules, and a decision about each AMI and snapshot.

Action = Literal["keep", "retire", "delete", "restore"]


@dataclass(frozen=True, slots=True)
class Rules(RetirementPolicy):
    """What is retired and deleted: the policy, and for what.

    Attributes
    ----------
    allow_shared
        Whether AMIs are retired that other accounts may launch. Whether they do cannot be seen from here.
    orphans
        Whether orphans are retired at all.
    images, amis
        Only AMIs of these images, only these AMIs; empty for all.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A number or an id cannot be right.
    """

    allow_shared: bool = False
    orphans: bool = True
    images: tuple[str, ...] = ()
    amis: tuple[str, ...] = ()

    @classmethod
    def of(cls, policy: RetirementPolicy, numbers: Mapping[str, float | None], **scope: Any) -> Rules:
        """Return rules with the numbers of a policy, except those that are given."""
        given = {name: value for name, value in numbers.items() if value is not None}
        return cls(**{**asdict(policy), **given}, **scope)

    def __str__(self) -> str:
        return ", ".join(f"{one.name} {getattr(self, one.name):g}" for one in fields(RetirementPolicy))

    def options(self, policy: RetirementPolicy) -> list[str]:
        """Return the options of ``vmsnix retire`` for the numbers that are not those of a policy."""
        numbers = {one.name: getattr(self, one.name) for one in fields(RetirementPolicy)}
        changed = [name for name, value in numbers.items() if value != getattr(policy, name)]
        return [f"--{name.replace('_', '-')} {numbers[name]:g}" for name in changed]

    def __post_init__(self) -> None:
        for number in fields(RetirementPolicy):
            check_range(number.name, getattr(self, number.name), 0, MOST_DAYS)  # refuses NaN, too
        for ami_id in self.amis:
            if not AMI_ID.fullmatch(ami_id):
                raise errors.ParameterError(
                    f"{ami_id!r} is not the id of an AMI.",
                    why="One is ami- and 17 or 8 hexadecimal digits.",
                    fix="Give ids as amis; names of images go into images.",
                )


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one AMI or snapshot, and why.

    Attributes
    ----------
    kind
        ``"ami"`` or ``"snapshot"`` (an orphan).
    resource_id, name, image, digest, region
        Which one.
    action
        ``"keep"``, ``"retire"`` (can be restored), ``"delete"`` (cannot) or ``"restore"``.
    reasons
        Why; of an AMI that stays, everything that keeps it.
    snapshots
        What goes with an AMI.
    kept_snapshots
        Which of its snapshots stay, and why.
    created_at, size_gib
        Of the AMI's volumes, or of the snapshot.
    stored_bytes
        What is billed: what its snapshots hold, by AWS's word; ``None`` where AWS does not say.
    facts
        State and references from which this follows; `fingerprint` sums them up.
    """

    kind: Literal["ami", "snapshot"]
    resource_id: str
    name: str
    image: str
    digest: str
    region: str
    action: Action
    reasons: tuple[str, ...]
    created_at: datetime
    size_gib: int
    stored_bytes: int | None = None
    snapshots: tuple[str, ...] = ()
    kept_snapshots: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def of_ami(cls, view: Region, ami: Ami, action: Action, reasons: Iterable[str]) -> Decision:
        """Return what becomes of an AMI; `snapshots` and `kept_snapshots` are for whoever knows them."""
        return cls(
            "ami",
            ami.ami_id,
            ami.name,
            ami.tags.get(tagging.IMAGE, ""),
            ami.digest,
            view.region,
            action,
            tuple(reasons),
            ami.created_at,
            ami.size_gib,
            _stored(view, ami),
            facts=ami_facts(ami, view.references),
        )

    @classmethod
    def of_snapshot(
        cls, view: Region, snapshot: Snapshot, action: Action, reasons: Iterable[str]
    ) -> Decision:
        """Return what becomes of a snapshot that no AMI holds."""
        return cls(
            "snapshot",
            snapshot.snapshot_id,
            snapshot.tags.get(tagging.NAME, ""),
            snapshot.tags.get(tagging.IMAGE, ""),
            snapshot.tags.get(tagging.DIGEST, ""),
            view.region,
            action,
            tuple(reasons),
            snapshot.created_at,
            snapshot.size_gib,
            snapshot.stored_bytes,
            facts=snapshot_facts(snapshot, view.references, view.importing),
        )

    @property
    def goes(self) -> bool:
        """Whether anything is to be done."""
        return self.action != "keep"

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with what is to be done, its state, and what uses it."""
        whole = json.dumps(
            [self.kind, self.resource_id, self.region, self.action, self.snapshots, self.facts]
        )
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def changes(self, now: Decision | None) -> tuple[str, ...]:
        """Return what is different now, in words; empty when this still holds."""
        if now is None:
            return ("it is gone",)
        if self.fingerprint == now.fingerprint:
            return ()
        before, after = dict(self.facts), dict(now.facts)
        found = [
            f"{name}: {before.get(name, '') or 'nothing'} before, {after.get(name, '') or 'nothing'} now"
            for name in dict.fromkeys((*before, *after))
            if before.get(name, "") != after.get(name, "")
        ]
        if self.action != now.action:
            found.append(f"it would {now.action} it now: {'; '.join(now.reasons)}")
        if self.snapshots != now.snapshots:
            found.append(f"snapshots: {', '.join(self.snapshots)} before, {', '.join(now.snapshots)} now")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a retirement would do with one AMI or orphan, and why: a decision for whoever only asks that."""

    action: Action
    reasons: tuple[str, ...]

    @property
    def goes(self) -> bool:
        """Whether it would be retired or deleted."""
        return self.action != "keep"


def ami_facts(ami: Ami, references: References) -> tuple[tuple[str, str], ...]:
    """Return state and references of an AMI as texts that can be compared."""
    return (
        ("state", ami.state),
        ("name", ami.name),
        ("snapshots", " ".join(ami.snapshot_ids)),
        ("public", str(ami.public)),
        ("deprecated", str(ami.deprecated_at or "")),
        ("protection", ami.protection),
        ("last launch", str(ami.launched_at or "")),
        ("tags", json.dumps(dict(sorted(ami.tags.items())))),
        ("references", _sentences(references, ami.ami_id)),
    )


def snapshot_facts(
    snapshot: Snapshot, references: References, importing: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Return state and references of a snapshot as texts that can be compared."""
    busy = snapshot.tags.get(tagging.DIGEST, "") in importing
    return (
        ("state", snapshot.state),
        ("tags", json.dumps(dict(sorted(snapshot.tags.items())))),
        ("references", _sentences(references, snapshot.snapshot_id)),
        ("import", "of its image under way" if busy else ""),
    )


def _sentences(references: References, resource_id: str) -> str:
    return "; ".join(sorted(str(one) for one in references.of(resource_id) if one.kind != "launched"))


def _stored(view: Region, ami: Ami) -> int | None:
    """Return what the snapshots of an AMI hold; ``None`` when AWS does not say it of all of them."""
    known = [view.snapshots.get(snapshot_id) for snapshot_id in dict.fromkeys(ami.snapshot_ids)]
    sizes = [one.stored_bytes if one else None for one in known]
    return None if None in sizes else sum(size for size in sizes if size is not None)


# Rules over what was read.

TOLD = 3
"""How many signs of use one reason names; the number of the others follows."""


def decide_by_rules(views: Iterable[Region], rules: Rules, now: datetime) -> tuple[Decision, ...]:
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
    return _Account(views, rules, now).decisions()


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """An AMI or orphan that goes unless something is learned of it; they sort by age, the oldest first."""

    created_at: datetime
    resource_id: str
    region: str


class _Account:
    """Decides about the regions of one account, of which more is learned by and by.

    Attributes
    ----------
    regions
        By name, each with what is known of it.
    left
        What would go by what is known, the oldest first: what is worth asking about. It only gets less.
    """

    def __init__(self, views: Iterable[Region], rules: Rules, now: datetime) -> None:
        self.rules = rules
        self.regions = {view.region: _Region(view, rules, now) for view in views}
        self.left: list[Candidate] = []
        self._find(None)

    def learn(self, views: Iterable[Region]) -> None:
        """Take more that is known of some regions."""
        for view in views:
            self.regions[view.region].view = view
        self._find(frozenset((one.region, one.resource_id) for one in self.left))

    def _find(self, among: frozenset[tuple[str, str]] | None) -> None:
        elsewhere = _Elsewhere.of(region.view for region in self.regions.values())
        for region in self.regions.values():
            region.elsewhere = elsewhere
        self.left = sorted(one for region in self.regions.values() for one in region.candidates(among))

    def decisions(
        self, *, most: int | None = None, told: Callable[[Ami | Snapshot], bool] = lambda _one: True
    ) -> tuple[Decision, ...]:
        """Return what becomes of each; of what is kept only of those that `told` names.

        Parameters
        ----------
        most
            How many go at most, instead of the number of the rules.
        told
            Whether to tell of an AMI or snapshot that is kept.
        """
        most = self.rules.max_count if most is None else most
        known = [one for one in self.left if self._is_asked(one)]
        first = frozenset((one.region, one.resource_id) for one in known[:most])
        return tuple(
            one
            for region in self.regions.values()
            for one in _with_snapshots(region.view, region.decisions(first, most, told))
        )

    def questions(self, only: frozenset[str] | None) -> Mapping[str, list[str]]:
        """Return about what to ask next, by region: the oldest that would go, until as many go as may.

        Some of those asked about turn out to be shared or in use, and keep copies elsewhere, too. So it is
        looked how many are left, and asked on about newer ones; else what stays for ever would keep them from
        a turn.
        """
        unknown = [one for one in self.left if not self._is_asked(one)]
        if only is not None:
            unknown = [one for one in unknown if one.resource_id in only]
        elif len(self.left) - len(unknown) >= self.rules.max_count:
            return {}
        else:
            # More with every round, because each round looks at everything that may go.
            asked = sum(len(region.view.asked or ()) for region in self.regions.values())
            unknown = unknown[: max(ASKED_AT_ONCE, asked // 2)]
        found: dict[str, list[str]] = defaultdict(list)
        for one in unknown:
            found[one.region].append(one.resource_id)
        return found

    def _is_asked(self, one: Candidate) -> bool:
        asked = self.regions[one.region].view.asked
        return asked is None or one.resource_id in asked


def candidates(views: Iterable[Region], rules: Rules, now: datetime) -> list[Candidate]:
    """Return what would go if nothing more were known, the oldest first: what is worth asking about."""
    return _Account(views, rules, now).left


class _Region:
    """Decides about one region."""

    def __init__(self, view: Region, rules: Rules, now: datetime) -> None:
        self.view, self.rules, self.now = view, rules, now
        self.newer = _newer(view.amis)
        self.in_channel = _in_channels(view.channels, rules.keep_last)
        self.orphans = view.orphans() if rules.orphans and not rules.amis else ()
        self.elsewhere = _Elsewhere({}, {})

    def decisions(
        self, first: frozenset[tuple[str, str]], most: int, told: Callable[[Ami | Snapshot], bool]
    ) -> Iterator[Decision]:
        for ami in self.view.amis:
            goes = (self.view.region, ami.ami_id) in first
            if goes or told(ami):
                yield Decision.of_ami(self.view, ami, *_turn(self.verdict(ami), most, goes=goes))
        for one in self.orphans:
            goes = (self.view.region, one.snapshot_id) in first
            if goes or told(one):
                verdict = _turn(self._orphan_verdict(one), most, goes=goes)
                yield Decision.of_snapshot(self.view, one, *verdict)

    def candidates(self, among: frozenset[tuple[str, str]] | None) -> Iterator[Candidate]:
        name = self.view.region
        for ami in self.view.amis:
            if (among is None or (name, ami.ami_id) in among) and self.verdict(ami)[0] != "keep":
                yield Candidate(ami.created_at, ami.ami_id, name)
        for one in self.orphans:
            wanted = among is None or (name, one.snapshot_id) in among
            if wanted and self._orphan_verdict(one)[0] != "keep":
                yield Candidate(one.created_at, one.snapshot_id, name)

    def verdict(self, ami: Ami) -> tuple[Action, list[str]]:
        if not tagging.ours(ami.tags):
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
        if known is not None and retired and self.now < known.retained_until:
            staying.append(f"retired on {_day(known.at)}, can be restored until {_day(known.retained_until)}")
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
                f"grace ended on {_day(known.retained_until)}",
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
        if known is not None and self.now < known.retained_until:
            staying.append(f"retired on {_day(known.at)}, is kept until {_day(known.retained_until)}")
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
            return "delete", ["no AMI holds it", f"grace ended on {_day(known.retained_until)}"]
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
            seen += ami.state == "available" and tagging.ours(ami.tags)
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
    def of(cls, views: Iterable[Region]) -> _Elsewhere:
        used: dict[str, dict[str, str]] = defaultdict(dict)
        coming: dict[tuple[str, str], tuple[str, ...]] = defaultdict(tuple)
        for view in views:
            for ami in view.amis:
                names = view.references.names(ami.ami_id)
                if names and ami.digest:
                    used[ami.digest][view.region] = f"{ami.ami_id} in {view.region} by {_some(_told(names))}"
                if ami.state == "pending" and ami.source_ami_id:
                    coming[ami.source_region, ami.source_ami_id] += (f"{ami.ami_id} in {view.region}",)
        return cls(used, coming)


def _with_snapshots(view: Region, decisions: Iterable[Decision]) -> Iterator[Decision]:
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
            elif not tagging.ours(view.snapshots[snapshot_id].tags):
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


def _turn(verdict: tuple[Action, list[str]], most: int, *, goes: bool) -> tuple[Action, list[str]]:
    """Return a verdict, and for what has no turn in this run that it is kept."""
    action, reasons = verdict
    if goes or action == "keep":
        return verdict
    return "keep", [f"would go, but no more than {most} go in one run, the oldest first", *reasons]


def _some(words: Iterable[str]) -> str:
    known = list(dict.fromkeys(words))
    more = f" and {len(known) - TOLD} more" if len(known) > TOLD else ""
    return ", ".join(known[:TOLD]) + more


def _days(days: float) -> str:
    return counted(int(days), "day")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


# Bring back what was retired: which AMIs and snapshots, and as what they were.


def decide_what_returns(views: Iterable[Region], rules: Rules, now: datetime) -> tuple[Decision, ...]:
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


def _region(view: Region, rules: Rules, now: datetime) -> Iterator[Decision]:
    for ami in view.amis:
        yield _ami(view, ami, rules, now)
    if rules.orphans and not rules.amis:
        for snapshot in view.orphans():
            if retiring.mark(snapshot.tags) is not None:
                yield _orphan(view, snapshot, rules)


def _ami(view: Region, ami: Ami, rules: Rules, now: datetime) -> Decision:
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


def _orphan(view: Region, snapshot: Snapshot, rules: Rules) -> Decision:
    known = retiring.mark(snapshot.tags)
    action: Action = "restore"
    reasons = ["no AMI holds it", f"retired on {known.at:%Y-%m-%d}" if known else ""]
    if known is not None and known.with_ami:
        action, reasons = "keep", [f"its AMI {known.with_ami} is gone"]
    elif rules.images and snapshot.tags.get(tagging.IMAGE) not in rules.images:
        action, reasons = "keep", [f"not asked for: only {', '.join(rules.images)}"]
    return Decision.of_snapshot(view, snapshot, action, reasons)


# Decide about all regions of one account, and read what that takes.


Work = Literal["retire", "restore"]
AT_ONCE = 8  # regions
ASKED_AT_ONCE = 50
"""AMIs and orphans about which is asked, at least, before looking how many of them go."""


def read_and_decide(
    places: Mapping[str, Place],
    work: Work,
    rules: Rules,
    now: datetime,
    prefix: str,
    *,
    only: frozenset[str] | None = None,
) -> tuple[tuple[Decision, ...], dict[str, errors.VmsnixError]]:
    """Return what becomes of everything in these regions, and which of them could not be read.

    Parameters
    ----------
    places
        The regions, by name.
    work, rules, now, prefix
        As for `vmsnix_ops.audit.retirement._plan`; `prefix` is that of the channels' parameters.
    only
        As for `decide`.
    """
    found = reading.read_all(places.values(), prefix=prefix, usage=work == "retire")
    if work == "restore":
        read, unread = _readable(found)
        return decide_what_returns(read.values(), rules, now), unread
    return decide(found, rules, now, places.__getitem__, only=only)


def decide(
    regions: Mapping[str, Region],
    rules: Rules,
    now: datetime,
    place_of: Callable[[str], Place],
    *,
    only: frozenset[str] | None = None,
    told: Callable[[Ami | Snapshot], bool] = lambda _one: True,
) -> tuple[tuple[Decision, ...], dict[str, errors.VmsnixError]]:
    """Return what becomes of everything in the regions of one account, and which could not be read.

    One that refuses does not end the others. One in which anything that may use an AMI could not be read is
    told, too, and nothing goes there.

    Parameters
    ----------
    regions
        What was read of each.
    rules, now
        What may go, and from when ages count.
    place_of
        Where to ask about single AMIs and snapshots of a region; called by the caller's own thread.
    only
        A plan is looked at again: what goes by it. Nothing else goes, and these need no turn.
    told
        Whether to tell of an AMI or snapshot that is kept.
    """
    read, unread = _readable(regions)
    account = _Account(read.values(), rules, now)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="retire") as pool:
        while questions := account.questions(only):
            asked = [(place_of(name), account.regions[name].view, ids) for name, ids in questions.items()]
            account.learn(pool.map(lambda one: reading.ask(*one), asked))
    for name, region in account.regions.items():
        if region.view.references.unread:
            unread[name] = _incomplete(name, region.view.references.unread)
    return account.decisions(most=None if only is None else len(only), told=told), unread


def _readable(
    regions: Mapping[str, Region],
) -> tuple[dict[str, Region], dict[str, errors.VmsnixError]]:
    """Return the regions of which every list was read, and the first error of each of the others."""
    read = {name: one for name, one in regions.items() if not one.unread}
    return read, {name: next(iter(one.unread.values())) for name, one in regions.items() if one.unread}


def _incomplete(region: str, sources: Mapping[str, errors.AwsError]) -> errors.VmsnixError:
    """Return what to say of a region in which nobody can tell what is used."""
    first = next(iter(sources.values()))
    return errors.VmsnixError(
        f"Nothing goes in {region}: whether its AMIs are used is not known.",
        why=f"Could not read {', '.join(sources)}. {first.why}".strip(),
        fix=first.fix or "Run it again.",
    )
