"""Retire AMIs that nothing uses, delete them after the retention period, or restore them.

>>> from vmsnix_ops import retire
>>> plan = retire.plan(regions=["eu-central-1"])  # shows its fingerprint  # doctest: +SKIP
>>> act = retire.plan(regions=["eu-central-1"], dry_run=False, confirm=plan.fingerprint)  # doctest: +SKIP
>>> act.apply().raise_for_status()  # doctest: +SKIP

The first run retires an AMI, which can be undone (`vmsnix_ops.aws.retiring`). A run after the retention
period deletes it with all its snapshots. `plan(action="restore")` restores what was retired.

`apply` reads the account again before it changes anything. If an AMI of the plan was used, shared, tagged or
enabled since, nothing is done, and the error lists what changed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments, check_parameters
from vmsnix_ops.audit.region import RegionContext
from vmsnix_ops.audit.retirement._plan import RetirementPlan, RetirementResult
from vmsnix_ops.audit.retirement.decisions import RetirementRules, read_and_decide
from vmsnix_ops.aws.identity import check_account, read_account
from vmsnix_ops.aws.images import find_ami
from vmsnix_ops.aws.regions import resolve_regions
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.progress import current
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import boto3

    from vmsnix_ops.audit.retirement.decisions import Decision, PlanAction
    from vmsnix_ops.progress import Progress

__all__ = ["RetirementPlan", "RetirementResult", "check_parameters", "plan"]


def __dir__() -> list[str]:
    return __all__


@check_arguments
def plan(
    *,
    action: PlanAction = "retire",
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
    expect_plan: str = "",
    now: datetime | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> RetirementPlan:
    """Read every AMI and its usage, and decide by the rules. Nothing is changed.

    Parameters
    ----------
    action
        ``"retire"``, or ``"restore"`` to restore what is retired.
    regions
        Regions to read; ``["all"]`` for every enabled one, by default the region of the settings or of AWS.
    keep_last, min_age_days, launched_days, retention_days, orphan_days, max_count
        The retirement policy; by default that of `vmsnix_ops.settings.Settings`.
    allow_shared
        Whether to retire AMIs that other accounts may launch. Whether they use them is unknown.
    orphans
        Whether to retire snapshots without an AMI.
    images, amis
        Retire or restore only AMIs of these images, only these AMIs; empty for all.
    dry_run
        `RetirementPlan.apply` does nothing.
    confirm
        Without a dry run: the fingerprint of the plan that was checked, the number of AMIs and snapshots in
        it, or the account ID.
    expect_plan
        Fingerprint of the dry run that was checked: `apply` refuses another plan. It also confirms the plan.
    now
        The time from which ages count; by default the present.
    progress, session
        Override the defaults from vmsnix.toml and the AWS environment.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        A rule or a region is invalid, or one of `amis` does not exist or belongs to another account.
    vmsnix_ops.errors.CredentialsError
        There are no credentials, or the settings do not allow their account.
    """
    settings, session = load(), session or default_session()
    if action not in ("retire", "restore"):
        raise errors.ParameterError(f"Invalid action {action!r}.", fix="Use retire or restore.")
    rules = RetirementRules.of(
        settings.retirement,
        keep_last=keep_last,
        min_age_days=min_age_days,
        launched_days=launched_days,
        retention_days=retention_days,
        orphan_days=orphan_days,
        max_count=max_count,
        allow_shared=allow_shared,
        orphans=orphans,
        images=tuple(images),
        amis=tuple(amis),
    )
    chosen = resolve_regions(session, regions, home=settings.region)
    account = read_account(session, chosen)
    check_account(account, settings.allowed_accounts)
    moment = now or datetime.now(UTC)
    contexts = {
        region: RegionContext.of(session, region, account, channel_prefix=settings.channel_prefix)
        for region in chosen
    }
    decisions, unread = read_and_decide(contexts, action, rules, moment)
    _check_owned(contexts, rules.amis, decisions, unread)
    return RetirementPlan(
        account=account,
        regions=chosen,
        action=action,
        rules=rules,
        decisions=decisions,
        unread=unread,
        now=moment,
        dry_run=dry_run,
        confirm=confirm,
        expect_plan=expect_plan,
        run=current_run("retire-amis"),
        contexts=contexts,
        progress=progress or current(),
    )


def _check_owned(
    contexts: Mapping[str, RegionContext],
    amis: tuple[str, ...],
    decisions: tuple[Decision, ...],
    unread: Mapping[str, errors.VmsnixError],
) -> None:
    """Refuse AMIs that this account does not own in any of the regions."""
    known = {one.resource_id for one in decisions}
    for ami_id in amis:
        if ami_id in known or unread:
            continue
        found = [find_ami(context.ec2, ami_id) for context in contexts.values()]
        owner = next((ami.account for ami in found if ami is not None), "")
        raise errors.ParameterError(
            f"{ami_id} is not an AMI of this account in {', '.join(contexts)}.",
            why=f"It belongs to account {owner}." if owner else "There is no AMI with this ID.",
            fix="Use the credentials of its owner." if owner else "Check the ID and the regions.",
        )
