"""Whether it is used, and whether what uses it can still launch it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

from vmsnix_ops.audit.findings import Facts, found, publish_again, rule, together
from vmsnix_ops.aws.references import SETTLED, Evidence

if TYPE_CHECKING:
    import pandas as pd


@rule("low")
def unreferenced(facts: Facts) -> pd.DataFrame:
    """Find AMIs that nothing uses."""
    amis = facts.amis
    unused = (amis["referenced"] == False).fillna(value=False) & (amis["state"] == "available")  # noqa: E712
    reason = (
        "No instance, launch template, group or parameter names it, nobody else may launch it, and it was "
        "not launched lately."
    )
    evidence, ours = "no evidence of use in any source", amis["digest"].notna()
    # The runbook retires what we published, and has its own safeguards; it leaves other people's AMIs alone.
    one = found(
        amis[unused & ours],
        reason + " The command shows whether the rules let it go now (they keep the newest three of an "
        "image, and what is younger than 30 days) and what to add so that it does; a person decides.",
        evidence=evidence,
        cure="vmsnix run retire-amis --regions {region} --amis {resource_id}",
    )
    other = found(
        amis[unused & ~ours],
        reason + " Disabled, it cannot be launched, and can be enabled again.",
        evidence=evidence,
        cure="aws ec2 disable-image --region {region} --image-id {resource_id}",
    )
    return together(one, other)


@rule("info")
def use_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs that nothing we see names, but that others may use."""
    amis = facts.amis
    some = amis[amis["referenced"].isna() & (amis["state"] == "available")]
    young = some["created_at"] > facts.now - SETTLED
    words = some["evidence"].map(_words).astype("str")
    words = words.where(words != "", "a source could not be read")
    return found(
        some,
        "Nothing that we can see names it, but that is not the whole truth: do not remove it by this alone. "
        "The command shows who may launch it; a person decides.",
        evidence=words.where(
            ~young | (some["evidence"] != "[]"), "younger than two days, and AWS tells launches a day late"
        ),
        cure="aws ec2 describe-image-attribute --region {region} --image-id {resource_id} "
        "--attribute launchPermission",
    )


def _words(evidence: str) -> str:
    return "; ".join(str(Evidence(*one)) for one in json.loads(evidence))


@rule("high")
def deprecated_in_use(facts: Facts) -> pd.DataFrame:
    """Find deprecated AMIs that are still used."""
    amis = facts.amis
    some = amis[(amis["deprecated_at"] < facts.now) & _used(amis)]
    return found(
        some,
        "It is deprecated since {since}, and is still used: move its users to a newer one, or keep it, with "
        "the command.",
        evidence=some["evidence"].map(_words).astype("str"),
        cure="aws ec2 disable-image-deprecation --region {region} --image-id {resource_id}",
        since=some["deprecated_at"].dt.strftime("%Y-%m-%d"),
    )


@rule("critical", "low")
def disabled_in_use(facts: Facts) -> pd.DataFrame:
    """Find disabled AMIs that are still used; critical where the next launch takes one, and fails."""
    amis = facts.amis
    some = amis[(amis["state"] == "disabled") & _used(amis)]
    launches = some["evidence"].map(lambda text: any(Evidence(*one).launches for one in json.loads(text)))
    result = {True: "the next launch takes it, and fails", False: "it cannot be launched again"}
    return found(
        some,
        "It is disabled, and is still named: {result}. Move what names it to another one, or enable it.",
        evidence=some["evidence"].map(_words).astype("str"),
        cure="aws ec2 enable-image --region {region} --image-id {resource_id}",
        result=launches.map(result),
    ).assign(severity=launches.map({True: "critical", False: "low"}))


@rule("low")
def old(facts: Facts) -> pd.DataFrame:
    """Find AMIs that are older than images should become, and that nobody said will go."""
    amis = facts.amis
    aged = amis["created_at"] < facts.now - timedelta(days=facts.measure.old_days)
    some = amis[aged & amis["deprecated_at"].isna() & (amis["state"] == "available")]
    some = some.assign(age=(facts.now - some["created_at"]).dt.days)
    reason = "It is {age} days old; its packages are as old."
    evidence, day, used = "created {day}", some["created_at"].dt.strftime("%Y-%m-%d"), _used(some)
    # Who uses it would be told a month later that it is deprecated, and would be no further.
    one = found(
        some[used],
        reason + " It is used: publish a newer one, move its users there, and retire this one; until then "
        "this stays.",
        evidence=evidence,
        cure=publish_again(some[used]),
        day=day,
    )
    other = found(
        some[~used],
        reason + " The command lets it go out of the lists in 30 days.",
        evidence=evidence,
        cure="aws ec2 enable-image-deprecation --region {region} --image-id {resource_id} "
        f"--deprecate-at {facts.now + timedelta(days=30):%Y-%m-%dT00:00:00Z}",
        day=day,
    )
    return together(one, other)


def _used(amis: pd.DataFrame) -> pd.Series[bool]:
    return (amis["referenced"] == True).fillna(value=False)  # noqa: E712
