"""Decide which AMIs and snapshots to retire, delete or keep, and why. Retirements and audits use these rules.

An AMI is retired only if every rule allows it. One reason is enough to keep it; a decision lists all reasons.
"""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_range
from vmsnix_ops.audit import region as reading
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.images import Ami, age_key
from vmsnix_ops.aws.references import AMI_ID, SEARCH
from vmsnix_ops.aws.retiring import RetirementTags, fits_into_tags
from vmsnix_ops.progress import counted
from vmsnix_ops.records.fingerprints import differences, fingerprint
from vmsnix_ops.settings import RetirementPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from datetime import datetime

    from vmsnix_ops.audit.region import RegionContext, RegionState
    from vmsnix_ops.aws.references import Reference, References
    from vmsnix_ops.aws.snapshots import Snapshot


Action = Literal["keep", "retire", "delete", "restore"]
PlanAction = Literal["retire", "restore"]
MAX_LISTED = 3
"""How many references or accounts a reason names; it only counts the others."""


@dataclass(frozen=True, slots=True)
class RetirementRules(RetirementPolicy):
    """The retirement policy, and the AMIs and snapshots that it applies to; invalid values are refused."""

    # Whether to retire AMIs that other accounts may launch. Whether they use them is unknown.
    allow_shared: bool = False
    orphans: bool = True  # whether to retire snapshots without an AMI
    # Apply only to AMIs of these images, only to these AMIs; empty for all.
    images: tuple[str, ...] = ()
    amis: tuple[str, ...] = ()

    @classmethod
    def of(cls, policy: RetirementPolicy, **given: Any) -> RetirementRules:
        """Return rules with the given values; numbers that are ``None`` come from a policy."""
        return cls(**asdict(policy) | {name: value for name, value in given.items() if value is not None})

    def __str__(self) -> str:
        return ", ".join(f"{one.name} {getattr(self, one.name):g}" for one in fields(RetirementPolicy))

    def options(self, policy: RetirementPolicy) -> list[str]:
        """Return the options of ``vmsnix retire`` for the numbers that differ from a policy."""
        numbers = {one.name: getattr(self, one.name) for one in fields(RetirementPolicy)}
        changed = [name for name, value in numbers.items() if value != getattr(policy, name)]
        return [f"--{name.replace('_', '-')} {numbers[name]:g}" for name in changed]

    def __post_init__(self) -> None:
        for number in fields(RetirementPolicy):
            check_range(number.name, getattr(self, number.name))
        for ami_id in self.amis:
            if not AMI_ID.fullmatch(ami_id):
                raise errors.ParameterError(
                    f"{ami_id!r} is not an AMI ID.",
                    why="An AMI ID is ami- and 17 or 8 hexadecimal digits.",
                    fix="Give AMI IDs as amis, and names of images as images.",
                )

    def why_not_selected(self, tags: Mapping[str, str], ami_id: str = "") -> str:
        """Return why the rules do not apply to an AMI or a snapshot; empty if they apply."""
        if self.images and tags.get(tagging.IMAGE) not in self.images:
            return f"not selected: only images {', '.join(self.images)}"
        return "not selected: only the given AMIs" if self.amis and ami_id not in self.amis else ""


@dataclass(frozen=True, slots=True)
class RuleResult:
    """What to do with an AMI or snapshot, and why."""

    action: Action
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether nothing is done."""
        return self.action == "keep"


def _keep(*reasons: str) -> RuleResult:
    return RuleResult("keep", reasons)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one AMI or snapshot, and why."""

    kind: Literal["ami", "snapshot"]  # a snapshot without an AMI
    resource_id: str
    name: str
    image: str
    digest: str
    region: str
    action: Action
    reasons: tuple[str, ...]  # if it is kept, every reason to keep it
    created_at: datetime
    size_gib: int  # of the volumes of an AMI
    stored_bytes: int | None = None  # what AWS bills; None if AWS does not report it
    # Snapshots of an AMI that are retired, deleted or restored with it, and that are kept and why.
    snapshots: tuple[str, ...] = ()
    kept_snapshots: tuple[tuple[str, str], ...] = ()
    # State and references from which the decision follows; part of the fingerprint.
    facts: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, state: RegionState, one: Ami | Snapshot, result: RuleResult) -> Decision:
        """Return the decision about an AMI, without its snapshots, or about a snapshot."""
        if isinstance(one, Ami):
            found = [state.snapshots.get(name) for name in dict.fromkeys(one.snapshot_ids)]
            sizes = [each.stored_bytes if each else None for each in found]
            name, facts = one.name, ami_facts(one, state.references)
            stored = None if None in sizes else sum(size for size in sizes if size is not None)
        else:
            name, stored = one.tags.get(tagging.NAME, ""), one.stored_bytes
            facts = snapshot_facts(one, state.references, state.importing)
        return cls(
            "ami" if isinstance(one, Ami) else "snapshot",
            _id_of(one),
            name,
            one.tags.get(tagging.IMAGE, ""),
            one.tags.get(tagging.DIGEST, ""),
            state.region,
            result.action,
            result.reasons,
            one.created_at,
            one.size_gib,
            stored,
            facts=facts,
        )

    @property
    def kept(self) -> bool:
        """Whether nothing is done."""
        return self.action == "keep"

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the action, the state and the references."""
        return fingerprint({"id": self.resource_id, "region": self.region, **self.content()})

    def content(self) -> dict[str, str]:
        """Return the action, the state and the references by name."""
        return {"action": self.action, "with it": ", ".join(self.snapshots), **dict(self.facts)}

    def changes(self, now: Decision | None) -> tuple[str, ...]:
        """Return the differences from a later decision as texts; empty if there are none."""
        if now is None:
            return ("it no longer exists",)
        found = differences(dict(self.facts), dict(now.facts))
        if self.action != now.action:
            found.append(f"action: {self.action} before, {now.action} now ({'; '.join(now.reasons)})")
        if self.snapshots != now.snapshots:
            found.append(f"snapshots: {', '.join(self.snapshots)} before, {', '.join(now.snapshots)} now")
        return tuple(found)


def _id_of(one: Ami | Snapshot) -> str:
    return one.ami_id if isinstance(one, Ami) else one.snapshot_id


def ami_facts(ami: Ami, references: References) -> tuple[tuple[str, str], ...]:
    """Return state and references of an AMI as text that can be compared."""
    return (
        ("state", ami.state),
        ("name", ami.name),
        ("snapshots", " ".join(ami.snapshot_ids)),
        ("public", str(ami.public)),
        ("deprecated", str(ami.deprecated_at or "")),
        ("protection", ami.protection),
        ("last launch", str(ami.launched_at or "")),
        ("tags", tags_as_text(ami.tags)),
        ("references", _joined(references, ami.ami_id)),
    )


def snapshot_facts(
    snapshot: Snapshot, references: References, importing: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Return state and references of a snapshot as text that can be compared."""
    return (
        ("state", snapshot.state),
        ("tags", tags_as_text(snapshot.tags)),
        ("references", _joined(references, snapshot.snapshot_id)),
        ("import of its image", "running" if snapshot.tags.get(tagging.DIGEST, "") in importing else ""),
    )


def tags_as_text(tags: Mapping[str, str]) -> str:
    """Return tags as text that can be compared."""
    return json.dumps(dict(sorted(tags.items())))


def _joined(references: References, resource_id: str) -> str:
    return "; ".join(sorted(str(one) for one in references.of(resource_id) if one.kind != "launched"))


# Read all regions of one account, and decide.

MIN_BATCH = 50
"""How many AMIs and orphans are at least read one by one before the rules are applied again."""


def read_and_decide(
    contexts: Mapping[str, RegionContext],
    action: PlanAction,
    rules: RetirementRules,
    now: datetime,
    *,
    only: frozenset[str] | None = None,
) -> tuple[tuple[Decision, ...], dict[str, errors.VmsnixError]]:
    """Read regions; return the decision about every AMI and orphan, and the regions that cannot be read.

    `only` is explained in `decide`.
    """
    found = reading.read_regions(contexts.values(), usage=action == "retire")
    if action == "restore":
        read, unread = _split_by_readable(found)
        return tuple(one for state in read.values() for one in _restorations(state, rules, now)), unread
    return decide(found, rules, now, contexts.__getitem__, only=only)


def decide(
    regions: Mapping[str, RegionState],
    rules: RetirementRules,
    now: datetime,
    context_of: Callable[[str], RegionContext],
    *,
    only: frozenset[str] | None = None,
    include_kept: Callable[[Ami | Snapshot], bool] = lambda _one: True,
) -> tuple[tuple[Decision, ...], dict[str, errors.VmsnixError]]:
    """Return the decision about every AMI and orphan of one account, and the regions that cannot be read.

    A region that cannot be read does not stop the others. If a source of references of a region cannot be
    read, everything in it is kept, and the region is among those that cannot be read.

    Ages count from `now`. `context_of` returns the context of a region, to read single AMIs and snapshots; it
    is called in the caller's thread. `only` are AMIs and snapshots of an earlier plan that is checked again:
    everything else is kept. `include_kept` returns whether to list an AMI or snapshot that is kept.
    """
    read, unread = _split_by_readable(regions)
    account = AccountDecider(read.values(), rules, now)
    with ThreadPoolExecutor(reading.REGIONS_AT_ONCE, thread_name_prefix="retire") as pool:
        while batch := account.next_to_read(only):
            jobs = [(context_of(name), account.regions[name].state, ids) for name, ids in batch.items()]
            account.update(pool.map(lambda job: reading.with_references_one_by_one(*job), jobs))
    for name, region in account.regions.items():
        if region.state.references.unread:
            unread[name] = _usage_unknown(name, region.state.references.unread)
    limit = None if only is None else len(only)
    return account.decisions(limit=limit, include_kept=include_kept), unread


def _split_by_readable(
    regions: Mapping[str, RegionState],
) -> tuple[dict[str, RegionState], dict[str, errors.VmsnixError]]:
    """Return the regions of which every list was read, and the first error of each other region."""
    read = {name: one for name, one in regions.items() if not one.unread}
    return read, {name: next(iter(one.unread.values())) for name, one in regions.items() if one.unread}


def _usage_unknown(region: str, sources: Mapping[str, errors.AwsError]) -> errors.VmsnixError:
    first = next(iter(sources.values()))
    return errors.VmsnixError(
        f"Nothing is retired or deleted in {region}: it is unknown whether its AMIs are used.",
        why=f"Could not read {', '.join(sources)}. {first.why}".strip(),
        fix=first.fix or "Run it again.",
    )


# Apply the retirement rules.


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """An AMI or orphan that no rule keeps by what was read; candidates are sorted by age, oldest first."""

    created_at: datetime
    resource_id: str
    region: str


class AccountDecider:
    """Decides about the regions of one account, and which AMIs to read next.

    `candidates` are the AMIs and orphans that no rule keeps by what was read so far, oldest first. Reading
    more only removes candidates.
    """

    def __init__(self, states: Iterable[RegionState], rules: RetirementRules, now: datetime) -> None:
        self.rules = rules
        self.regions = {state.region: _RegionDecider(state, rules, now) for state in states}
        self.candidates: list[Candidate] = []
        self._find_candidates(None)

    def update(self, states: Iterable[RegionState]) -> None:
        """Replace some regions by states of which more was read."""
        for state in states:
            self.regions[state.region].state = state
        self._find_candidates(frozenset((one.region, one.resource_id) for one in self.candidates))

    def _find_candidates(self, among: frozenset[tuple[str, str]] | None) -> None:
        copies = _Copies.of(region.state for region in self.regions.values())
        for region in self.regions.values():
            region.copies = copies
        self.candidates = sorted(one for region in self.regions.values() for one in region.candidates(among))

    def decisions(
        self, *, limit: int | None = None, include_kept: Callable[[Ami | Snapshot], bool] = lambda _one: True
    ) -> tuple[Decision, ...]:
        """Return the decision about every AMI and orphan; see `decide`.

        A limit replaces the number of AMIs and orphans that the rules allow to retire or delete.
        """
        limit = self.rules.max_count if limit is None else limit
        known = [one for one in self.candidates if self._was_read(one)]
        chosen = frozenset((one.region, one.resource_id) for one in known[:limit])
        return tuple(
            one
            for region in self.regions.values()
            for one in _with_snapshots(region.state, region.decisions(chosen, limit, include_kept))
        )

    def next_to_read(self, only: frozenset[str] | None) -> Mapping[str, list[str]]:
        """Return the candidates to read one by one next, by region; empty if enough are known.

        Some of them are shared or in use, and keep their copies in other regions too. So batches of the
        oldest are read until enough candidates are left. Otherwise, AMIs that are always kept would use up
        the limit of every run.
        """
        unread = [one for one in self.candidates if not self._was_read(one)]
        if only is not None:
            unread = [one for one in unread if one.resource_id in only]
        elif len(self.candidates) - len(unread) >= self.rules.max_count:
            return {}
        else:
            # Batches grow, because after each one the rules are applied to all candidates.
            read = sum(len(region.state.read_one_by_one or ()) for region in self.regions.values())
            unread = unread[: max(MIN_BATCH, read // 2)]
        found: dict[str, list[str]] = defaultdict(list)
        for one in unread:
            found[one.region].append(one.resource_id)
        return found

    def _was_read(self, one: Candidate) -> bool:
        read = self.regions[one.region].state.read_one_by_one
        return read is None or one.resource_id in read


class _RegionDecider:
    def __init__(self, state: RegionState, rules: RetirementRules, now: datetime) -> None:
        self.state, self.rules, self.now = state, rules, now
        self.newer = _count_newer(state.amis)
        self.channel_reasons = _channel_reasons(state.channels, rules.keep_last)
        orphans = state.orphans() if rules.orphans and not rules.amis else ()
        self.resources: tuple[Ami | Snapshot, ...] = (*state.amis, *orphans)
        self.copies = _Copies({}, {})

    def decisions(
        self, chosen: frozenset[tuple[str, str]], limit: int, include_kept: Callable[[Ami | Snapshot], bool]
    ) -> Iterator[Decision]:
        for one in self.resources:
            is_chosen = (self.state.region, _id_of(one)) in chosen
            if not is_chosen and not include_kept(one):
                continue
            result = self.evaluate(one)
            if not is_chosen and not result.kept:
                result = _keep(f"over the limit of {limit} per run, oldest first", *result.reasons)
            yield Decision.of(self.state, one, result)

    def candidates(self, among: frozenset[tuple[str, str]] | None) -> Iterator[Candidate]:
        for one in self.resources:
            region, resource_id = self.state.region, _id_of(one)
            if (among is None or (region, resource_id) in among) and not self.evaluate(one).kept:
                yield Candidate(one.created_at, resource_id, region)

    def evaluate(self, one: Ami | Snapshot) -> RuleResult:
        return self.evaluate_ami(one) if isinstance(one, Ami) else self.evaluate_orphan(one)

    def evaluate_ami(self, ami: Ami) -> RuleResult:
        if not tagging.is_published(ami.tags):
            return _keep(NOT_OURS)
        if reason := self.rules.why_not_selected(ami.tags, ami.ami_id):
            return _keep(reason)
        if ami.state not in ("available", "disabled", "failed"):
            return _keep(f"it is {ami.state}")
        record = RetirementTags.parse(ami.tags)
        retired = record is not None and ami.state == "disabled"
        reasons = [*self._usage_reasons(ami), *self._policy_reasons(ami, retired=retired)]
        if record is not None and retired:
            reasons += self._retention_reasons(record)
        if retired or ami.state == "failed":
            reasons += self._lock_reasons(ami.ami_id)
        reasons += _restoring_reasons(ami.tags)
        if reasons and record is not None and not retired:
            day = _day(record.retired_at)
            reasons.append(f"its retirement on {day} was interrupted or undone by hand: restore it")
        if reasons:
            return _keep(*reasons)
        if ami.state == "failed":
            return RuleResult(
                "delete", ("it never became available", f"created {self._age(ami.created_at)} ago")
            )
        if record is not None and retired:
            ended = f"retention period ended on {_day(record.retained_until)}"
            return RuleResult("delete", (f"retired on {_day(record.retired_at)}", ended, "nothing uses it"))
        return RuleResult("retire", self._why_retire(ami, again=record is not None))

    def _why_retire(self, ami: Ami, *, again: bool) -> tuple[str, ...]:
        newer = self.newer[ami.ami_id]
        found = [f"created {self._age(ami.created_at)} ago"]
        found += [counted(newer, "newer AMI")] if newer else []
        found.append("nothing uses it")
        found.append(
            f"last launched {self._age(ami.launched_at)} ago" if ami.launched_at else "no known launch"
        )
        shared = self._shared_with(ami.ami_id)
        if shared:
            found.append(f"shared with {_first_few(shared)}, who will lose access")
        if again:
            found.append("its retirement was interrupted, or it was enabled again")
        elif ami.state == "disabled":
            found.append("already disabled")
        return tuple(found)

    def evaluate_orphan(self, snapshot: Snapshot) -> RuleResult:
        if reason := self.rules.why_not_selected(snapshot.tags):
            return _keep(reason)
        record = RetirementTags.parse(snapshot.tags)
        age, least = self._age(snapshot.created_at), self.rules.orphan_days
        reasons = self._reference_reasons(snapshot.snapshot_id)
        if snapshot.tags.get(tagging.DIGEST, "") in self.state.importing:
            reasons.append("an import of this image is running")
        reasons += self._sharing_reasons(snapshot.snapshot_id)
        if record is not None:
            reasons += [*self._retention_reasons(record), *self._lock_reasons(snapshot.snapshot_id)]
        elif self.now - snapshot.created_at < timedelta(days=least):
            reasons.append(f"created {age} ago, less than {_days(least)}: a publish may still need it")
        reasons += _restoring_reasons(snapshot.tags)
        if reasons:
            return _keep(*reasons)
        if record is not None:
            why = f"its AMI {record.with_ami} no longer exists" if record.with_ami else NO_AMI
            return RuleResult("delete", (why, f"retention period ended on {_day(record.retained_until)}"))
        if snapshot.state != "completed":
            return RuleResult("delete", (f"state {snapshot.state}: its upload or import did not complete",))
        return RuleResult("retire", (NO_AMI, f"created {age} ago"))

    def _usage_reasons(self, ami: Ami) -> list[str]:
        """Return reasons to keep an AMI that is in use or may be."""
        found = [*self._reference_reasons(ami.ami_id), *self._sharing_reasons(ami.ami_id, public=ami.public)]
        launched, least = ami.launched_at, self.rules.launched_days
        if launched is not None and self.now - launched < timedelta(days=least):
            found.append(f"launched {self._age(launched)} ago, less than {_days(least)}")
        used = self.copies.used.get(ami.digest, {})
        copies = [text for region, text in used.items() if region != self.state.region]
        if copies:
            found.append(f"a copy is in use: {_first_few(copies)}")
        copying = self.copies.copying.get((self.state.region, ami.ami_id), ())
        if copying:
            found.append(f"it is being copied to {_first_few(copying)}")
        return found

    def _reference_reasons(self, resource_id: str) -> list[str]:
        """Return reasons to keep an AMI or a snapshot because of references, known or unknown."""
        references, found = self.state.references, []
        if references.unread:
            found.append(f"usage unknown: {', '.join(references.unread)} could not be read")
        names = _reference_texts(references.names(resource_id))
        if names:
            found.append(f"in use: {_first_few(names)}")
        return found

    def _sharing_reasons(self, resource_id: str, *, public: bool = False) -> list[str]:
        """Return reasons to keep an AMI or a snapshot that others may use."""
        shared = self._shared_with(resource_id) or (["everybody"] if public else [])
        if shared and not self.rules.allow_shared:
            return [f"shared with {_first_few(shared)}, who may use it"]
        if shared and not fits_into_tags(shared):
            return [f"shared with {len(shared)} accounts, more than its tags can record"]
        return []

    def _shared_with(self, resource_id: str) -> list[str]:
        """Return with whom an AMI or a snapshot is shared, or only a snapshot of the AMI."""
        found: dict[str, str] = {}
        for one in self.state.references.of(resource_id):
            who = "everybody" if one.id == "all" else one.id
            if one.kind == "shared-with":
                found[who] = who
            elif one.kind == "snapshot-shared-with":
                found.setdefault(who, f"{who} ({', '.join(map(str, one.through))} only)")
        return sorted(found.values())

    def _lock_reasons(self, resource_id: str) -> list[str]:
        """Return reasons to keep an AMI or a snapshot because AWS would not delete a snapshot."""
        locks = [one for one in self.state.references.of(resource_id) if one.kind == "snapshot-lock"]
        return [f"{one.id} is locked ({one.type})" for one in locks]

    def _retention_reasons(self, record: RetirementTags) -> list[str]:
        if self.now >= record.retained_until:
            return []
        return [f"retired on {_day(record.retired_at)}, can be restored until {_day(record.retained_until)}"]

    def _policy_reasons(self, ami: Ami, *, retired: bool) -> list[str]:
        """Return reasons to keep an AMI that nothing uses."""
        named = {one.id for one in self.state.references.names(ami.ami_id)}
        found = [text for name, text in self.channel_reasons.get(ami.ami_id, ()) if name not in named]
        if ami.state != "failed" and self.newer[ami.ami_id] < self.rules.keep_last:
            image = ami.tags.get(tagging.IMAGE) or ami.name
            found.append(f"one of the newest {self.rules.keep_last} of {image} ({ami.architecture})")
        least = self.rules.orphan_days if ami.state == "failed" else self.rules.min_age_days
        if not retired and self.now - ami.created_at < timedelta(days=least):
            found.append(f"created {self._age(ami.created_at)} ago, less than {_days(least)}")
        if ami.protection != "disabled":
            found.append(f"protected from deregistration ({ami.protection})")
        return found

    def _age(self, moment: datetime) -> str:
        return _days(max((self.now - moment) / timedelta(days=1), 0.0))


NOT_OURS = f"not published by vmsnix: it has no tag {tagging.DIGEST}"
NO_AMI = "no AMI uses it"


def _restoring_reasons(tags: Mapping[str, str]) -> list[str]:
    run = tags.get(tagging.RESTORING)
    return [] if run is None else [f"the run {run} is restoring it, or was interrupted: restore it"]


def _count_newer(amis: Iterable[Ami]) -> dict[str, int]:
    """Return how many available AMIs of the same image and architecture are newer than each."""
    groups: dict[tuple[str, str], list[Ami]] = defaultdict(list)
    for ami in amis:
        groups[(ami.tags.get(tagging.IMAGE) or ami.name, ami.architecture)].append(ami)
    newer: dict[str, int] = {}
    for group in groups.values():
        count = 0
        for ami in sorted(group, key=age_key, reverse=True):
            newer[ami.ami_id] = count
            count += ami.state == "available" and tagging.is_published(ami.tags)
    return newer


def _channel_reasons(
    channels: Mapping[str, tuple[str, ...]], keep_last: int
) -> dict[str, list[tuple[str, str]]]:
    """Return, for each AMI that channels keep, the names of their parameters and the reasons."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, values in sorted(channels.items()):
        for place, ami_id in enumerate(dict.fromkeys(values)):
            if place == 0:
                found[ami_id].append((name, f"current AMI of {name}"))
            elif place < keep_last:
                found[ami_id].append((name, f"one of the last {keep_last} of {name}"))
    return found


@dataclass(frozen=True, slots=True)
class _Copies:
    """Copies of AMIs in all regions of an account."""

    # By digest, the regions in which a copy is in use, each with the references as text.
    used: Mapping[str, Mapping[str, str]]
    # By region and ID of an AMI, the copies of it that are not finished.
    copying: Mapping[tuple[str, str], tuple[str, ...]]

    @classmethod
    def of(cls, states: Iterable[RegionState]) -> _Copies:
        used: dict[str, dict[str, str]] = defaultdict(dict)
        copying: dict[tuple[str, str], tuple[str, ...]] = defaultdict(tuple)
        for state in states:
            for ami in state.amis:
                where, names = f"{ami.ami_id} in {state.region}", state.references.names(ami.ami_id)
                if names and ami.digest:
                    used[ami.digest][state.region] = f"{where} by {_first_few(_reference_texts(names))}"
                if ami.state == "pending" and ami.source_ami_id:
                    copying[ami.source_region, ami.source_ami_id] += (where,)
        return cls(used, copying)


def _with_snapshots(state: RegionState, decisions: Iterable[Decision]) -> Iterator[Decision]:
    """Add the snapshots of each AMI that is retired or deleted, and those that are kept with the reason.

    A snapshot of several AMIs is retired or deleted with the last of them.
    """
    by_snapshot, amis = state.amis_by_snapshot(), {ami.ami_id: ami for ami in state.amis}
    done: dict[str, set[str]] = {"retire": set(), "delete": set()}
    retired = {ami.ami_id for ami in state.amis if ami.state == "disabled" and RetirementTags.parse(ami.tags)}
    for one in decisions:
        if one.kept or one.kind != "ami":
            yield one
            continue
        with_ami, kept = [], []
        # A snapshot is retired when all its AMIs are retired, and deleted when all are deregistered.
        before = done["delete"] | (done["retire"] | retired if one.action == "retire" else set())
        for snapshot_id in dict.fromkeys(amis[one.resource_id].snapshot_ids):
            others = [
                name for name in by_snapshot[snapshot_id] if name != one.resource_id and name not in before
            ]
            if snapshot_id not in state.snapshots:
                kept.append((snapshot_id, ELSEWHERE))
            elif not tagging.is_published(state.snapshots[snapshot_id].tags):
                kept.append((snapshot_id, NOT_OURS))
            elif others:
                kept.append((snapshot_id, f"{', '.join(others)} needs it"))
            # A launch may create a volume from it.
            elif references := _reference_texts(state.references.names(snapshot_id)):
                kept.append((snapshot_id, f"in use: {_first_few(references)}"))
            else:
                with_ami.append(snapshot_id)
        done[one.action].add(one.resource_id)
        yield replace(one, snapshots=tuple(with_ami), kept_snapshots=tuple(kept))


ELSEWHERE = "it belongs to another account or no longer exists"


def _reference_texts(references: Iterable[Reference]) -> list[str]:
    """Return references as text; one that EC2's own search found too is listed once."""
    found: dict[tuple[str, str], str] = {}
    for one in sorted(references, key=lambda one: (one.source != SEARCH, one.kind, one.id)):
        found[one.kind, one.id] = str(one)
    return sorted(found.values())


def _first_few(texts: Iterable[str]) -> str:
    known = list(dict.fromkeys(texts))
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return ", ".join(known[:MAX_LISTED]) + more


def _days(days: float) -> str:
    return counted(int(days), "day")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


# Decide what to restore.


def _restorations(state: RegionState, rules: RetirementRules, now: datetime) -> Iterator[Decision]:
    """Yield the decision about every AMI of a region, and about every orphan that was retired."""
    for ami in state.amis:
        decision = Decision.of(state, ami, _evaluate_restore(ami, rules, now))
        if not decision.kept:
            names = list(dict.fromkeys(ami.snapshot_ids))
            known = [state.snapshots[name] for name in names if name in state.snapshots]
            retired = [one.snapshot_id for one in known if RetirementTags.parse(one.tags) is not None]
            decision = replace(decision, snapshots=tuple(retired))
            missing = [name for name in names if name not in state.snapshots]
            if missing:
                reason = f"{', '.join(missing)}: {ELSEWHERE}; check whether the AMI can be launched"
                decision = replace(decision, reasons=(*decision.reasons, reason))
        yield decision
    if rules.orphans and not rules.amis:
        for snapshot in state.orphans():
            record = RetirementTags.parse(snapshot.tags)
            if record is None:
                continue
            result = RuleResult("restore", (NO_AMI, f"retired on {_day(record.retired_at)}"))
            if record.with_ami:
                result = _keep(f"its AMI {record.with_ami} no longer exists")
            elif reason := rules.why_not_selected(snapshot.tags):
                result = _keep(reason)
            yield Decision.of(state, snapshot, result)


def _evaluate_restore(ami: Ami, rules: RetirementRules, now: datetime) -> RuleResult:
    record = RetirementTags.parse(ami.tags)
    if not ami.digest:
        return _keep(NOT_OURS)
    if reason := rules.why_not_selected(ami.tags, ami.ami_id):
        return _keep(reason)
    if record is None and ami.state == "disabled" and rules.amis:
        return RuleResult("restore", ("not disabled by vmsnix: its earlier sharing is unknown",))
    if record is None:
        return _keep(f"not retired: it is {ami.state}")
    retired = f"retired on {_day(record.retired_at)}"
    if record.state_before == "disabled":
        return RuleResult("restore", (retired, "remains disabled, as before"))
    before = record.deprecated_before
    if before is None:
        date = "no deprecation date"
    elif before <= now:
        date = f"remains deprecated, from {_day(before)}"
    else:
        date = f"deprecated from {before:%Y-%m-%d %H:%M} UTC"
    shared = f"shared with {', '.join(record.shared_with)}" if record.shared_with else "not shared"
    return RuleResult("restore", (retired, shared, date))
