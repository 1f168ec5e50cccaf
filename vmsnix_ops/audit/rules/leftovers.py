"""What is left behind: orphans, halves, failures, unfinished work."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

from vmsnix_ops.audit.findings import Facts, found, publish_again, rule, together

if TYPE_CHECKING:
    import pandas as pd

FAILED = ("failed", "error", "invalid")
OF_AN_IMAGE = (
    r"^(?:Created by CreateImage\(|Copied for (?:Source|Destination)Ami|Created by AWS-VMImport|"
    r"\[Copied |imported from)"
)
"""How AWS describes snapshots that it made for an AMI."""
IMPORT_RUNS = ("active", "pending", "converting", "updating", "validating")
IMPORT_ENDED = ("deleted", "deleting", "error", "cancelled")
MAKING = timedelta(days=1)
"""A snapshot so young may be one that a publish is about to register."""
YOUNG = timedelta(minutes=5)
"""Snapshots and AMIs are listed one after the other, and clocks differ: what came between proves nothing."""


@rule("medium")
def orphan_snapshot(facts: Facts) -> pd.DataFrame:
    """Find snapshots that were made for an AMI and that no AMI holds any more."""
    held = facts.of("snapshot")
    unused = (held["referenced"] == False).fillna(value=False) & (held["state"] == "completed")  # noqa: E712
    unused &= ~(held["created_at"] > facts.now - MAKING)
    ours = held["digest"].notna() | held["source"].fillna("").str.contains(OF_AN_IMAGE)
    return found(
        held[unused & ours],
        "It was made for an AMI, and no AMI holds it.",
        evidence="{origin}",
        cure="aws ec2 delete-snapshot --region {region} --snapshot-id {resource_id}",
        origin=held["source"]
        .fillna("")
        .where(held["digest"].isna(), "vmsnix:digest=" + held["digest"].fillna("")),
    )


@rule("medium")
def half_deleted(facts: Facts) -> pd.DataFrame:
    """Find AMIs that name a snapshot which is not there."""
    amis = facts.amis
    amis = amis[~(amis["created_at"] > facts.now - YOUNG)]
    present = set(facts.of("snapshot", "direct-upload")["resource_id"])
    blind = {(one.account, one.region) for one in facts.inventory.unread if one.source == "snapshots"}
    lists = amis["snapshots"].fillna("[]")
    lost = [
        ", ".join(one for one in (json.loads(text) if place not in blind else ()) if one not in present)
        for text, place in zip(lists, zip(amis["account"], amis["region"], strict=True), strict=True)
    ]
    some = amis.assign(lost=lost).query("lost != ''")
    free = (some["referenced"] == False).fillna(value=False)  # noqa: E712
    reason = "Its snapshot {lost} is not in this account: it is deleted, or another account's."
    evidence = "DescribeSnapshots does not list {lost}"
    one = found(
        some[free],
        reason,
        evidence=evidence,
        cure="aws ec2 deregister-image --region {region} --image-id {resource_id}",
    )
    other = found(
        some[~free],
        reason + " It is used, or nobody can tell: move its users to another AMI first; a person decides.",
        evidence=evidence,
    )
    return together(one, other)


@rule("high")
def failed(facts: Facts) -> pd.DataFrame:
    """Find copies and registrations that failed, and why."""
    reasons = _failures(facts)
    amis = facts.amis[facts.amis["state"].isin(FAILED)]
    held = facts.of("snapshot")
    held = held[held["state"].isin(FAILED)]
    said = [
        message or "; ".join(reasons[one] for one in json.loads(some) if one in reasons) or "nothing"
        for message, some in zip(amis["message"].fillna(""), amis["snapshots"].fillna("[]"), strict=True)
    ]
    one = found(
        amis,
        "It is {state}; AWS says: {said}",
        evidence="state {state}",
        cure="aws ec2 deregister-image --region {region} --image-id {resource_id}",
        said=said,
    )
    other = found(
        held,
        "It is in state {state}; AWS says: {said}",
        evidence="state {state}",
        cure="aws ec2 delete-snapshot --region {region} --snapshot-id {resource_id}",
        said=held["message"].fillna("nothing"),
    )
    return together(one, other)


def _failures(facts: Facts) -> dict[str, str]:
    """Return why snapshots failed: that of a failed copy tells what the AMI does not."""
    held = facts.of("snapshot")
    some = held[held["state"].isin(FAILED) & held["message"].notna()]
    return dict(zip(some["resource_id"], some["message"], strict=True))


@rule("medium")
def dead_upload(facts: Facts) -> pd.DataFrame:
    """Find direct uploads that nobody finished; they count against the account's pending snapshots."""
    return found(
        facts.unfinished(facts.of("direct-upload")),
        "It is written through the EBS direct APIs since {created_at}, and is not finished.",
        evidence="state pending, from no volume and no copy",
        cure="aws ec2 delete-snapshot --region {region} --snapshot-id {resource_id}",
    )


@rule("low")
def s3_leftover(facts: Facts) -> pd.DataFrame:
    """Find objects and multipart uploads that publishing left in the bucket."""
    some = facts.unfinished(facts.of("object", "multipart-upload"))
    uploads = some["kind"] == "multipart-upload"
    bucket = some["source"].str.removeprefix("s3://").str.split("/").str[0].fillna("")
    tasks = facts.of("import-task")
    read_now = some["source"].isin(tasks.loc[tasks["state"].isin(IMPORT_RUNS), "source"])
    # VM Import reads only from a bucket of its own region, so the imports there are all that count.
    blind = {(one.account, one.region) for one in facts.inventory.unread if one.source == "imports"}
    looked = set(facts.inventory.places) - blind
    sure = ~uploads & some.index.isin(
        [row for row, *place in some[["account", "region"]].itertuples() if tuple(place) in looked]
    )
    one = found(
        some[sure & ~read_now],
        "No import that runs reads it; publishing removes what it uploaded.",
        evidence="{source}",
        cure="aws s3api delete-object --bucket {bucket} --key={name}",
        bucket=bucket,
    )
    unsure = found(
        some[~sure & ~uploads],
        "Whether an import reads it is unknown: the imports of its region were not read. The command reads "
        "them; a person decides.",
        evidence="{source}",
        cure="vmsnix run audit-inventory --regions {region} --buckets {bucket}",
        bucket=bucket,
    )
    other = found(
        some[uploads],
        "This multipart upload was begun and not ended; its parts are billed and are in no listing.",
        evidence="{source}",
        cure="aws s3api abort-multipart-upload --bucket {bucket} --key={name} --upload-id={upload}",
        bucket=bucket,
        upload=some["resource_id"],
    )
    return together(one, unsure, other)


@rule("low", "info")
def import_tasks(facts: Facts) -> pd.DataFrame:
    """Find imports that failed in the last week, and imports that run."""
    tasks = facts.of("import-task")
    running = tasks[tasks["state"].isin(IMPORT_RUNS)]
    ended = tasks[tasks["state"].isin(IMPORT_ENDED) & tasks["message"].notna()]
    one = found(
        running,
        "It runs; a publish that waits for it shows it too. AWS says: {said}",
        evidence="{source}",
        cure="aws ec2 cancel-import-task --region {region} --import-task-id {resource_id}",
        said=running["message"].fillna("nothing"),
    ).assign(severity="info")
    other = found(
        ended,
        "It failed: {message} Nothing has to be removed: AWS lists it for a week; until then this stays.",
        evidence="{source}",
        cure=publish_again(ended),
        message=ended["message"].str.removesuffix(".") + ".",
    ).assign(severity="low")
    return together(one, other)
