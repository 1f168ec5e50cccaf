"""Which AMI a channel goes back to in a region, or why it cannot go anywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import images, parameters, snapshots
from vmsnix_ops.channels.history import Entry, entries
from vmsnix_ops.progress import counted
from vmsnix_ops.publish import served

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.session import Client

LATELY = timedelta(hours=1)
"""How long a second rollback without a name is taken for the first one again."""
_NOTE = re.compile(r"rolled back from (?P<before>.+) by the run (?P<run>\S+)$")


@dataclass(frozen=True, slots=True)
class Target:
    """One region.

    Attributes
    ----------
    region
        Where.
    entries
        What the channel pointed to there, the oldest first.
    target
        The AMI that it will point to; ``None`` when that cannot be.
    problem
        Why not.
    """

    region: str
    entries: tuple[Entry, ...] = ()
    target: Ami | None = None
    problem: errors.VmsnixError | None = field(default=None, compare=False)
    ec2: Client = field(default=None, repr=False, compare=False)
    ssm: Client = field(default=None, repr=False, compare=False)

    @property
    def now(self) -> Entry | None:
        """Where it points now."""
        return self.entries[-1] if self.entries else None

    @property
    def so(self) -> bool:
        """Whether it points to the target already."""
        return self.now is not None and self.target is not None and self.now.ami_id == self.target.ami_id

    @property
    def before(self) -> str:
        """What it was rolled back from, when that was its last change; empty otherwise."""
        found = _NOTE.search(self.now.note) if self.now else None
        return found["before"] if found else ""


def note(then: Ami, now: Entry, run_id: str) -> str:
    """Return what is written beside the pointer; `Target.before` reads it."""
    return f"{then.name}, rolled back from {now.name or now.ami_id} by the run {run_id}"


def look(target: Target, pointer: str) -> Target:
    """Return a region with what its channel pointed to; what is wrong there is part of the plan."""
    try:
        target = replace(target, entries=entries(target.ec2, target.ssm, pointer))
        found = parameters.find(target.ssm, pointer)
        if found is not None:
            parameters.check_kind(found)
            parameters.check_room(pointer, parameters.history(target.ssm, pointer), target.region)
    except errors.VmsnixError as error:
        return replace(target, problem=error)
    return target


def without(target: Target, pointer: str) -> Target:
    """Return a region that was asked for and has no such channel."""
    problem = errors.PointerError(
        f"There is no parameter {pointer} in {target.region}.",
        cure="Leave the region out, or promote an AMI there first.",
    )
    return replace(target, problem=problem)


def choose(targets: Iterable[Target], to: str, *, account: str) -> list[Target]:
    """Return the regions with the AMI that each will point to.

    Parameters
    ----------
    targets
        The regions, looked at.
    to
        Id or name of the AMI to go back to; an id means the same image in the other regions, too. Nothing:
        the one before.
    account
        Who must own it.
    """
    targets = list(targets)
    known = [entry for target in targets for entry in target.entries]
    digests = {entry.digest for entry in known if to and to in (entry.ami_id, entry.name)} - {""}
    return [
        _chosen(target, to, digests, account) if target.entries and not target.problem else target
        for target in targets
    ]


def check_usable(ec2: Client, ami_id: str, *, account: str) -> Ami:
    """Return an AMI that a channel may go back to, as it is now.

    Raises
    ------
    vmsnix_ops.errors.PointerError
        It is gone.
    vmsnix_ops.errors.RegistrationError
        It is disabled, deprecated, half deleted, or not ours.
    """
    found = images.find(ec2, [ami_id]).get(ami_id)
    if found is None:
        raise errors.PointerError(
            f"The AMI {ami_id}, to which the channel pointed before, is gone from {ec2.meta.region_name}.",
            why="It was deregistered.",
        )
    served.check_usable(found, owner=account, now=datetime.now(UTC))
    snapshots.check_whole(ec2, found)
    return found


def check_alike(targets: Iterable[Target], *, to: str) -> None:
    """Refuse to leave regions with different images; what was rolled back a moment ago may lie ahead.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The one before is not the same everywhere.
    """
    sound = [target for target in targets if target.target is not None and target.now is not None]
    then = {target.target.digest for target in sound if target.target}
    # What is gone has no digest any more, and tells nothing.
    now = {target.now.digest for target in sound if target.now and not target.so} - {""}
    if len(then) <= 1 and (to or len(now) <= 1):
        return
    told = "; ".join(
        f"{t.region} {t.now.name or t.now.ami_id}, before {t.target.name}"
        for t in sound
        if t.now and t.target
    )
    raise errors.ParameterError(
        "The regions point to different images, so that the one before is not the same everywhere.",
        why=f"{told}. A promotion was cut off, or somebody moved one of them.",
        cure="Name the AMI that all shall point to: --to NAME.",
    )


def _chosen(target: Target, to: str, digests: set[str], account: str) -> Target:
    try:
        entry = _entry(target, to, digests)
        try:
            return replace(target, target=check_usable(target.ec2, entry.ami_id, account=account))
        except (errors.PointerError, errors.RegistrationError) as error:
            cure = f"{error.cure} {_others(target.entries, entry.ami_id)}".strip()
            raise errors.PointerError(error.what, why=error.why, cure=cure) from error
    except errors.VmsnixError as error:
        return replace(target, problem=error)


def _entry(target: Target, to: str, digests: set[str]) -> Entry:
    """Return the value to go back to."""
    known, now = target.entries, target.entries[-1]
    if to:
        wanted = [one for one in known if to in (one.ami_id, one.name) or one.digest in digests]
    elif target.before and datetime.now(UTC) - now.since < LATELY:
        return now  # the same command again
    elif target.before:
        raise errors.PointerError(
            f"The channel was rolled back already in {target.region}, on {now.since:%Y-%m-%d %H:%M} UTC.",
            why=f"It pointed to {target.before} before; the one before now is that one.",
            cure=f"Say where to: --to {target.before} returns there. {_others(known)}",
        )
    else:
        wanted = [one for one in known if one.ami_id != now.ami_id]
    if not wanted:
        what = f"never pointed to {to}" if to else f"never pointed to anything but {now.ami_id}"
        raise errors.PointerError(
            f"The channel {what} in {target.region}.",
            why=f"Its history has {counted(len(known), 'value')}, since {known[0].since:%Y-%m-%d}.",
            cure=_others(known),
        )
    return wanted[-1]


def _others(known: tuple[Entry, ...], *refused: str) -> str:
    """Return which AMIs there are to choose from."""
    not_these = {known[-1].ami_id, *refused}
    names = dict.fromkeys(e.name for e in reversed(known) if e.usable and e.ami_id not in not_these)
    return f"Choose with --to: {', '.join(list(names)[:5])}." if names else "Promote another AMI."
