"""What a retirement decides by, and what it decides: rules, what was seen of a region, a decision."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.references import AMI_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.references import References
    from vmsnix_ops.aws.snapshots import Snapshot

Action = Literal["keep", "retire", "delete", "restore"]
LONGEST_DAYS = 36500


@dataclass(frozen=True, slots=True)
class Rules:
    """What may go.

    Attributes
    ----------
    keep_last
        How many AMIs stay of each image and architecture, the newest; and of each channel, the last that it
        pointed to.
    min_age_days
        No AMI goes that is younger.
    launched_days
        No AMI goes from which an instance was launched since; AWS tells that a day late.
    grace_days
        How long a retired AMI can be restored, before a later run removes it.
    orphan_days
        From what age on a snapshot of ours that no AMI holds is an orphan; a publish that died may go on with
        a younger one.
    max_count
        How many AMIs and orphans may go in one run, over all regions: the oldest.
    allow_shared
        Whether AMIs go that other accounts may launch. Whether they do cannot be seen from here.
    orphans
        Whether orphans go at all.
    images, amis
        Only AMIs of these images, only these AMIs; empty for all.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A number or an id cannot be right.
    """

    keep_last: int = 3
    min_age_days: float = 30
    launched_days: float = 30
    grace_days: float = 14
    orphan_days: float = 7
    max_count: int = 25
    allow_shared: bool = False
    orphans: bool = True
    images: tuple[str, ...] = ()
    amis: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("keep_last", "min_age_days", "launched_days", "grace_days", "orphan_days", "max_count"):
            value = getattr(self, name)
            if not 0 <= value <= LONGEST_DAYS:  # NaN is refused, too
                raise errors.ParameterError(
                    f"{name}={value} cannot be right.", cure=f"Give 0 to {LONGEST_DAYS}."
                )
        for ami_id in self.amis:
            if not AMI_ID.fullmatch(ami_id):
                raise errors.ParameterError(
                    f"{ami_id!r} is not the id of an AMI.",
                    why="One is ami- and 17 or 8 hexadecimal digits.",
                    cure="Give ids as amis; names of images go into images.",
                )


@dataclass(frozen=True, slots=True)
class View:
    """What was seen of one region.

    Attributes
    ----------
    region, account
        Of what.
    amis
        Every AMI of the account, oldest first.
    snapshots
        Every snapshot of the account, by id.
    references
        Evidence of use; its `unread` names what could not be read.
    channels
        The AMIs that each pointer points and pointed to, the present one first.
    importing
        Digests of images that an import works on.
    asked
        The AMIs and snapshots about which AWS was asked one by one who uses and who may use them; ``None``
        for all.
    """

    region: str
    account: str
    amis: tuple[Ami, ...]
    snapshots: Mapping[str, Snapshot]
    references: References
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    importing: frozenset[str] = frozenset()
    asked: frozenset[str] | None = None


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
        State and evidence from which this follows; `fingerprint` sums them up.
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
    def of_ami(cls, view: View, ami: Ami, action: Action, reasons: Iterable[str]) -> Decision:
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
    def of_snapshot(cls, view: View, snapshot: Snapshot, action: Action, reasons: Iterable[str]) -> Decision:
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
        """Sixteen hexadecimal digits that change with what is to be done, its state, and its evidence."""
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


def ami_facts(ami: Ami, references: References) -> tuple[tuple[str, str], ...]:
    """Return state and evidence of an AMI as texts that can be compared."""
    return (
        ("state", ami.state),
        ("name", ami.name),
        ("snapshots", " ".join(ami.snapshot_ids)),
        ("public", str(ami.public)),
        ("deprecated", str(ami.deprecated_at or "")),
        ("protection", ami.protection),
        ("last launch", str(ami.launched_at or "")),
        ("tags", json.dumps(dict(sorted(ami.tags.items())))),
        ("evidence", _evidence(references, ami.ami_id)),
    )


def snapshot_facts(
    snapshot: Snapshot, references: References, importing: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Return state and evidence of a snapshot as texts that can be compared."""
    busy = snapshot.tags.get(tagging.DIGEST, "") in importing
    return (
        ("state", snapshot.state),
        ("tags", json.dumps(dict(sorted(snapshot.tags.items())))),
        ("evidence", _evidence(references, snapshot.snapshot_id)),
        ("import", "of its image under way" if busy else ""),
    )


def _evidence(references: References, resource_id: str) -> str:
    return "; ".join(sorted(str(one) for one in references.of(resource_id) if one.kind != "launched"))


def _stored(view: View, ami: Ami) -> int | None:
    """Return what the snapshots of an AMI hold; ``None`` when AWS does not say it of all of them."""
    known = [view.snapshots.get(snapshot_id) for snapshot_id in dict.fromkeys(ami.snapshot_ids)]
    sizes = [one.stored_bytes if one else None for one in known]
    return None if None in sizes else sum(size for size in sizes if size is not None)
