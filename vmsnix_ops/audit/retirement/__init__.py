"""Retire AMIs: a plan with a reason for every one that goes and every one that stays, then what it says.

::

    plan = retirement.plan(regions=["eu-central-1"])  # look at it: it prints its fingerprint
    result = retirement.plan(regions=["eu-central-1"], dry_run=False, confirm=plan.fingerprint).apply()
    retirement.finish(result)

The first run takes an AMI out of use in a way that can be undone (`vmsnix_ops.aws.retiring`). A run after the
grace days removes it with all its snapshots. `plan(action="restore")` brings back what was retired.

A plan is frozen, and it is held against the account again before anything is done: when an AMI of it is used
now, was shared, tagged or enabled since, nothing is done at all, and the error says what changed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.arguments import checked as typed
from vmsnix_ops.audit.retirement import view
from vmsnix_ops.audit.retirement._plan import DONE, Plan, Result, verdict, write
from vmsnix_ops.audit.retirement.decisions import decide
from vmsnix_ops.audit.retirement.view import Decision, Rules
from vmsnix_ops.aws.identity import check_account, identity
from vmsnix_ops.aws.regions import chosen as chosen_regions
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.progress import counted, current
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import boto3

    from vmsnix_ops.audit.retirement.decisions import Work
    from vmsnix_ops.audit.retirement.view import Place
    from vmsnix_ops.progress import Progress

__all__ = ["Plan", "Result", "finish", "plan"]


@typed
def plan(
    *,
    action: Work = "retire",
    regions: Iterable[str] = (),
    keep_last: int = 3,
    min_age_days: float = 30,
    launched_days: float = 30,
    grace_days: float = 14,
    orphan_days: float = 7,
    max_count: int = 25,
    allow_shared: bool = False,
    orphans: bool = True,
    images: Iterable[str] = (),
    amis: Iterable[str] = (),
    dry_run: bool = True,
    confirm: str = "",
    now: datetime | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> Plan:
    """Look at every AMI, what uses it, and decide by the rules. Nothing is changed.

    Parameters
    ----------
    action
        ``"retire"``, or ``"restore"`` for what is retired: all of it, or `images` or `amis` of it.
    regions
        Where; ``["all"]`` for every enabled one, by default the settings' region, else AWS's own.
    keep_last, min_age_days, launched_days, grace_days, orphan_days, max_count, allow_shared, orphans
        As for `vmsnix_ops.audit.retirement.view.Rules`.
    images, amis
        As for `vmsnix_ops.audit.retirement.view.Rules`.
    dry_run
        `Plan.apply` does nothing.
    confirm
        Without a dry run: the fingerprint of the plan that was looked at (`Plan.fingerprint`), the number of
        AMIs and orphans that go, or the account's id.
    now
        From when ages count; the present by default.
    progress, session
        Where they do not come from the surroundings.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A rule or a region cannot be right, or one of `amis` is not there, or another account's.
    vmsnix_ops.errors.CredentialsError
        There are none, or they are of an account that may not be used.
    """
    settings, session = load(), session or default_session()
    if action not in ("retire", "restore"):
        raise errors.ParameterError(f"action={action!r} is not known.", cure="Give retire or restore.")
    rules = Rules(
        keep_last=keep_last,
        min_age_days=min_age_days,
        launched_days=launched_days,
        grace_days=grace_days,
        orphan_days=orphan_days,
        max_count=max_count,
        allow_shared=allow_shared,
        orphans=orphans,
        images=tuple(images),
        amis=tuple(amis),
    )
    chosen = chosen_regions(session, regions, home=settings.region)
    account = _account(session, chosen)
    check_account(account, settings.allowed_accounts)
    moment = now or datetime.now(UTC)
    prefix = settings.pointer_prefix
    places = {region: view.Place.of(session, region, account) for region in chosen}
    decisions, unread = decide(places.values(), action, rules, moment, prefix)
    _check_named(places, rules.amis, decisions, unread)
    return Plan(
        account=account,
        regions=chosen,
        work=action,
        rules=rules,
        decisions=decisions,
        unread=unread,
        now=moment,
        dry_run=dry_run,
        confirm=confirm,
        run=current_run("retire-amis"),
        places=places,
        progress=progress or current(),
        prefix=prefix,
    )


def finish(result: Result) -> None:
    """Write ``result.json``: what went, and what did not; and the whole plan as ``plan.csv`` beside it.

    Raises
    ------
    vmsnix_ops.errors.PartialError
        Some of it was not done, or a region could not be looked at. Running it again does the rest.
    vmsnix_ops.errors.VmsnixError
        Nothing at all was done: the first error.
    """
    plan = result.plan
    try:
        status, wrong = write(result)
    except errors.RecordsError as unsaved:  # it must not hide what was done
        status, wrong = verdict(result)
        if not wrong:
            raise
        wrong.append(str(unsaved))
    none = status == "failed" and result.unrecorded is None
    if not wrong:
        _require_named(result)
        return
    if none and plan.unread:
        raise next(iter(plan.unread.values()))
    whole = len(plan.regions) + len(plan.going)
    what = f"{len(wrong)} of {whole} regions, AMIs and snapshots did not come as planned."
    if result.unrecorded is not None:
        done = [f"{one.outcome} {one.decision.resource_id}" for one in result.outcomes if one.outcome in DONE]
        begun = next((one.decision for one in reversed(result.outcomes) if one.outcome == "failed"), None)
        if begun is not None and begun.action == "retire" and result.unrecorded.announced:
            # It has the mark, and may have lost permissions already: a promotion would refuse it.
            done.append(f"a part of the retirement of {begun.resource_id}")
        raise errors.UnrecordedActError(
            f"The run stopped early. Done: {', '.join(done) or 'nothing'}.",
            why=f"{result.unrecorded.what} {result.unrecorded.why}",
            cure=result.unrecorded.cure,
        )
    kind = errors.VmsnixError if none else errors.PartialError
    raise kind(
        what, why=" ".join(wrong[:3]), cure="Cure it and run the same command again: it does the rest."
    )


def _require_named(result: Result) -> None:
    """Raise when AMIs that were asked for by their ids were left as they are.

    Raises
    ------
    vmsnix_ops.errors.PartialError
        Some of them were.
    vmsnix_ops.errors.RunFailedError
        All of them were.
    """
    plan = result.plan
    going = {one.resource_id for one in plan.going}
    kept = [
        one
        for one in plan.decisions
        if one.resource_id in plan.rules.amis
        and one.resource_id not in going
        and dict(one.facts).get("state") != "disabled"  # retired already
    ]
    if plan.dry_run or plan.work != "retire" or not kept:
        return
    kind = errors.PartialError if going else errors.RunFailedError
    raise kind(
        f"{len(kept)} of {counted(len(plan.rules.amis), 'AMI')} in amis cannot be retired.",
        why=" ".join(f"{one.resource_id}: {'; '.join(one.reasons)}." for one in kept[:3]),
        cure="Change the rule that keeps them, or leave them out of amis.",
    )


def _account(session: boto3.Session, regions: tuple[str, ...]) -> str:
    """Return whose credentials these are; a region that is not enabled does not tell."""
    refused: list[errors.AwsError] = []
    for region in regions:
        try:
            return identity(session, region).account
        except (errors.CredentialsError, errors.RegionError) as error:
            refused.append(error)
    raise refused[0]


def _check_named(
    places: Mapping[str, Place],
    named: tuple[str, ...],
    decisions: tuple[Decision, ...],
    unread: Mapping[str, errors.VmsnixError],
) -> None:
    """Refuse an AMI that was named and is not one of this account, in any of the regions."""
    known = {one.resource_id for one in decisions}
    for ami_id in named:
        if ami_id in known or unread:
            continue
        owners = [view.owner(place.ec2, ami_id) for place in places.values()]
        owner = next(filter(None, owners), "")
        raise errors.ParameterError(
            f"{ami_id} is not an AMI of this account in {', '.join(places)}.",
            why=f"It belongs to {owner}." if owner else "There is none of that id.",
            cure="Use the credentials of its owner." if owner else "Check the id and the regions.",
        )
