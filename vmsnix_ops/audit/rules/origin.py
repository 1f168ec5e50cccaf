"""Whose it is, and whether it is still what was published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.audit.findings import Facts, found, rule, together

if TYPE_CHECKING:
    import pandas as pd

COMPARED = ("name", "state", "public", "boot_mode", "root_device", "size_gib", "digest")
"""Columns that the table ``amis`` and an inventory share, and that must not change by themselves."""


@rule("low")
def untagged(facts: Facts) -> pd.DataFrame:
    """Find AMIs and snapshots without tags: nobody knows whose they are."""
    some = facts.of("ami", "snapshot")
    return found(
        some[some["tags"] == "{}"],
        "It has no tags, so nobody knows whose it is.",
        evidence="no tags",
        cure="aws ec2 create-tags --region {region} --resources {resource_id} --tags Key=owner,Value=<TEAM>",
    )


@rule("info")
def not_published_by_us(facts: Facts) -> pd.DataFrame:
    """Find AMIs that something else published, or that this history does not know."""
    amis, recorded = facts.amis, facts.recorded
    foreign = found(
        amis[amis["digest"].isna()],
        "It carries no tag of ours: something else made it. A person knows whether that is as it should be.",
        evidence="no tag vmsnix:digest",
        cure="aws ec2 describe-images --region {region} --image-ids {resource_id}",
    )
    if not len(recorded):
        return foreign
    known = set(recorded["ami_id"])
    lost = amis[amis["digest"].notna() & ~amis["resource_id"].isin(known)]
    unknown = found(
        lost,
        "It carries our tags, but this history does not know it.",
        evidence="no row in the table amis",
        cure="vmsnix history sync --region {region}",
    )
    return together(foreign, unknown)


@rule("medium")
def drifted(facts: Facts) -> pd.DataFrame:
    """Find AMIs that differ from what was recorded when they were published."""
    recorded = facts.recorded
    if not len(recorded):
        return found(facts.amis.head(0), "")
    both = facts.amis.merge(
        recorded[["ami_id", "region", *COMPARED]],
        left_on=["resource_id", "region"],
        right_on=["ami_id", "region"],
        suffixes=("", "_then"),
    )
    words: Any = ""
    for column in COMPARED:
        now, then = both[column].astype("str").fillna(""), both[f"{column}_then"].astype("str").fillna("")
        # What nobody recorded has not changed.
        differs = (now != then) & (then != "")
        words = words + (f"{column} was " + then + ", is " + now + "; ").where(differs, "")
    both = both.assign(difference=words).query("difference != ''")
    return found(
        both,
        "It is not as it was recorded: {difference}",
        evidence="table amis",
        cure="vmsnix run verify-amis --regions {region}",
        difference=both["difference"].str.removesuffix("; ") + ".",
    )
