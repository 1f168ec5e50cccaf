"""Whose it is, and whether it is still what was published."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops.audit.findings import Facts, found, rule, together
from vmsnix_ops.aws import drift
from vmsnix_ops.aws.images import Ami
from vmsnix_ops.aws.snapshots import Snapshot

if TYPE_CHECKING:
    from collections.abc import Hashable

    import pandas as pd


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
    """Find AMIs that differ from what was recorded when they were published and promoted."""
    expected = {(row["ami_id"], row["region"]): row for row in facts.expected}
    amis = facts.amis[facts.amis["resource_id"].isin({ami_id for ami_id, _ in expected})]
    held = _snapshots(facts, amis)
    blind = {(one.account, one.region) for one in facts.inventory.unread if one.source == "snapshots"}
    words = []
    for row in amis.to_dict("records"):
        ami = _seen(row)
        then = dict(expected.get((ami.ami_id, ami.region), {}))
        if (ami.account, ami.region) in blind:
            ami = replace(ami, snapshot_ids=())
            then.pop("snapshot_id", None)
        known = {name: value for name, value in then.items() if name not in _UNSEEN}
        found_ = [*drift.registration(known, ami, held), *drift.dated(known, ami)] if known else []
        words.append("; ".join(_told(one) for one in found_))
    some = amis.assign(difference=words).query("difference != ''")
    return found(
        some,
        "It is not as it was recorded: {difference}. The command compares it in full, and says what puts it "
        "right, and what takes over what AWS has; a person decides.",
        evidence="tables amis, promotions and retirements",
        cure="vmsnix run verify-amis --regions {region}",
    )


_UNSEEN = ("architecture", "ena_support", "tpm_support", "description")
"""What a verification compares and no inventory holds."""


def _seen(row: dict[Hashable, Any]) -> Ami:
    """Return an AMI as the inventory saw it."""
    import pandas as pd

    given: dict[str, Any] = {str(name): None if pd.isna(one) else one for name, one in row.items()}
    return Ami(
        ami_id=given["resource_id"],
        name=given["name"] or "",
        region=given["region"],
        account=given["account"],
        state=given["state"] or "",
        created_at=given["created_at"],
        architecture="",
        boot_mode=given["boot_mode"] or "",
        root_device=given["root_device"] or "",
        snapshot_ids=tuple(json.loads(given["snapshots"] or "[]")),
        size_gib=int(given["size_gib"] or 0),
        public=bool(given["public"]),
        imds_support=given["imds_support"] or "",
        ena_support=False,
        tpm_support="",
        tags=json.loads(given["tags"] or "{}"),
        deprecated_at=given["deprecated_at"],
    )


def _snapshots(facts: Facts, amis: pd.DataFrame) -> dict[str, Snapshot]:
    """Return the snapshots of some AMIs by id, as the inventory saw them."""
    wanted = {one for text in amis["snapshots"].fillna("[]") for one in json.loads(text)}
    rows = facts.of("snapshot", "direct-upload")
    return {
        row["resource_id"]: Snapshot(
            row["resource_id"],
            row["state"],
            row["created_at"],
            int(row["size_gib"]),
            json.loads(row["tags"]),
        )
        for row in rows[rows["resource_id"].isin(wanted)].to_dict("records")
    }


def _told(one: drift.Difference) -> str:
    return f"{one.field} was {one.recorded or 'nothing'}, is {one.found or 'nothing'}"
