"""Retire AMIs that nothing uses, delete them after the retention period, or restore them.

>>> from vmsnix_ops import retire
>>> plan = retire.plan(regions=["eu-central-1"])  # shows its fingerprint  # doctest: +SKIP
>>> act = retire.plan(regions=["eu-central-1"], dry_run=False, confirm=plan.fingerprint)  # doctest: +SKIP
>>> act.apply().raise_for_status()  # doctest: +SKIP

The first run retires an AMI in a way that can be undone (`vmsnix_ops.aws.retiring`). A run after the grace
days deletes it with all its snapshots. `plan(action="restore")` brings back what was retired.

A plan is compared with the account again before anything is done. When an AMI of the plan is in use now, or
was shared, tagged or enabled since, nothing is done, and the error lists what changed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments
from vmsnix_ops.audit.region import Place
from vmsnix_ops.audit.retirement._plan import RetirementPlan, RetirementResult
from vmsnix_ops.audit.retirement.decisions import Rules, read_and_decide
from vmsnix_ops.aws import retiring
from vmsnix_ops.aws.identity import check_account, identity
from vmsnix_ops.aws.regions import chosen as chosen_regions
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.progress import current
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import boto3

    from vmsnix_ops.audit.retirement.decisions import Decision, Work
    from vmsnix_ops.progress import Progress

__all__ = ["RetirementPlan", "RetirementResult", "plan"]


def __dir__() -> list[str]:
    return __all__


@check_arguments
def plan(
    *,
    action: Work = "retire",
    regions: Iterable[str] = (),
    keep_last: int | None = None,
    min_age_days: float | None = None,
    launched_days: float | None = None,
    retention_days: float | None = None,
    orphan_days: float | None = None,
    max_count: int | None = None,
    allow_shared: bool = False,
    orphans: bool = True,
    images: Iterable[str] = (),
    amis: Iterable[str] = (),
    dry_run: bool = True,
    confirm: str = "",
    now: datetime | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> RetirementPlan:
    """Read every AMI and its usage, and decide by the rules. Nothing is changed.

    Parameters
    ----------
    action
        ``"retire"``, or ``"restore"`` for what is retired: all of it, or `images` or `amis` of it.
    regions
        Where; ``["all"]`` for every enabled one, by default the settings' region, else AWS's own.
    keep_last, min_age_days, launched_days, retention_days, orphan_days, max_count
        The retirement policy; by default that of `vmsnix_ops.settings.Settings`.
    allow_shared, orphans, images, amis
        As for `vmsnix_ops.audit.retirement.decisions.Rules`.
    dry_run
        `RetirementPlan.apply` does nothing.
    confirm
        Without a dry run: the fingerprint of the plan that was looked at, the number of AMIs and orphans that
        go, or the account's id.
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
        raise errors.ParameterError(f"action={action!r} is not known.", fix="Give retire or restore.")
    rules = Rules.of(
        settings.retirement,
        {
            "keep_last": keep_last,
            "min_age_days": min_age_days,
            "launched_days": launched_days,
            "retention_days": retention_days,
            "orphan_days": orphan_days,
            "max_count": max_count,
        },
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
    places = {region: Place.of(session, region, account) for region in chosen}
    decisions, unread = read_and_decide(places, action, rules, moment, prefix)
    _check_named(places, rules.amis, decisions, unread)
    return RetirementPlan(
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
        seen = [retiring.look(place.ec2, ami_id) for place in places.values()]
        owner = next((ami.account for ami in seen if ami is not None), "")
        raise errors.ParameterError(
            f"{ami_id} is not an AMI of this account in {', '.join(places)}.",
            why=f"It belongs to {owner}." if owner else "There is none of that id.",
            fix="Use the credentials of its owner." if owner else "Check the id and the regions.",
        )
