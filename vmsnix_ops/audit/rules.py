"""The rules of an audit. Each is one function: which rows, why, and the command that cures it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.audit.findings import Facts, found, rule
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    import pandas as pd

FAILED = ("failed", "error", "invalid")
OF_AN_IMAGE = (
    r"^(?:Created by CreateImage\(|Copied for (?:Source|Destination)Ami|Created by AWS-VMImport|"
    r"\[Copied |imported from)"
)
"""How AWS describes snapshots that it made for an AMI."""
IMPORT_RUNS = ("active", "pending", "converting", "updating", "validating")
COMPARED = ("name", "state", "public", "boot_mode", "root_device", "size_gib", "digest")
"""Columns that the table ``amis`` and an inventory share, and that must not change by themselves."""


# Who may use it


@rule("high")
def public(facts: Facts) -> pd.DataFrame:
    """Find AMIs that everybody may launch."""
    amis = facts.amis
    return found(
        amis[amis["public"].fillna(value=False)],
        "Every AWS account may launch it and read its disk.",
        evidence="Public is true",
        cure="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--launch-permission {change}",
        change="Remove=[{Group=all}]",
    )


@rule("high")
def shared_with_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs that are shared with accounts, organizations or units which nobody declared known."""
    known = facts.measure.known_accounts | {account for account, _ in facts.inventory.places}
    amis = facts.amis
    amis = amis[amis["evidence"].str.contains('"shared-with"', regex=False)]
    strangers = amis["evidence"].map(lambda text: _strangers(text, known)).astype("str")
    amis, strangers = amis[strangers != ""], strangers[strangers != ""]
    members = {"arn:": "OrganizationArn", "": "UserId"}
    first = strangers.str.split(", ").str[0].fillna("")
    member = first.map(lambda who: members["arn:" if who.startswith("arn:") else ""])
    return found(
        amis,
        "It is shared with {strangers}, which nobody declared known.",
        evidence="launch permission",
        cure="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} "
        "--launch-permission {change}",
        strangers=strangers,
        change="Remove=[{" + member + "=" + first + "}]",
    )


def _strangers(evidence: str, known: frozenset[str] | set[str]) -> str:
    shared = [who for kind, who, _ in json.loads(evidence) if kind == "shared-with"]
    return ", ".join(who for who in shared if who != "all" and who not in known)


@rule("medium")
def unencrypted(facts: Facts) -> pd.DataFrame:
    """Find AMIs whose disk is not encrypted."""
    amis = facts.amis
    return found(
        amis[~amis["encrypted"].fillna(value=False) & (amis["size_gib"] > 0)],
        "Its disk is not encrypted; so are volumes made from it, unless the account encrypts by default.",
        evidence="Encrypted is false for a block device",
        cure="aws ec2 copy-image --region {region} --source-region {region} --source-image-id {resource_id} "
        "--name {copy} --encrypted",
        copy=amis["name"].fillna("") + "-encrypted",
    )


@rule("medium")
def no_imdsv2(facts: Facts) -> pd.DataFrame:
    """Find AMIs whose instances answer metadata requests without a session token."""
    amis = facts.amis
    return found(
        amis[amis["imds_support"] != "v2.0"],
        "Its instances answer metadata requests without a token (IMDSv1), unless the launch forbids it.",
        evidence="ImdsSupport is not v2.0",
        cure="aws ec2 modify-image-attribute --region {region} --image-id {resource_id} --imds-support v2.0",
    )


# Is it used


@rule("low")
def unreferenced(facts: Facts) -> pd.DataFrame:
    """Find AMIs that nothing uses."""
    amis = facts.amis
    unused = (amis["referenced"] == False).fillna(value=False) & (amis["state"] == "available")  # noqa: E712
    reason = (
        "No instance, launch template, group or parameter names it, nobody else may launch it, and it was "
    )
    reason += "not launched lately."
    evidence, ours = "no evidence of use in any source", amis["digest"].notna()
    # The runbook retires what we published, and has its own safeguards; it leaves other people's AMIs alone.
    one = found(
        amis[unused & ours],
        reason,
        evidence=evidence,
        cure="vmsnix run retire-amis --regions {region} --amis {resource_id}",
    )
    other = found(
        amis[unused & ~ours],
        reason,
        evidence=evidence,
        cure="aws ec2 disable-image --region {region} --image-id {resource_id}",
    )
    return _together(one, other)


@rule("info")
def use_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs that nothing we see names, but that others may use."""
    amis = facts.amis
    some = amis[amis["referenced"].isna() & (amis["state"] == "available")]
    return found(
        some,
        "Nothing that we can see names it, but that is not the whole truth: do not remove it by this alone.",
        evidence=some["evidence"].map(_words).astype("str"),
        cure="aws ec2 describe-image-attribute --region {region} --image-id {resource_id} "
        "--attribute launchPermission",
    )


def _words(evidence: str) -> str:
    found = [
        f"{kind} {who}" + (f" ({detail})" if detail else "") for kind, who, detail in json.loads(evidence)
    ]
    return "; ".join(found) or "a source could not be read"


@rule("high")
def deprecated_in_use(facts: Facts) -> pd.DataFrame:
    """Find deprecated AMIs that are still used."""
    amis = facts.amis
    some = amis[(amis["deprecated_at"] < facts.now) & (amis["referenced"] == True).fillna(value=False)]  # noqa: E712
    return found(
        some,
        "It is deprecated since {since}, and is still used: move its users to a newer one, or keep it.",
        evidence=some["evidence"].map(_words).astype("str"),
        cure="aws ec2 disable-image-deprecation --region {region} --image-id {resource_id}",
        since=some["deprecated_at"].dt.strftime("%Y-%m-%d"),
    )


@rule("low")
def old(facts: Facts) -> pd.DataFrame:
    """Find AMIs that are older than images should become."""
    amis = facts.amis
    some = amis[amis["created_at"] < facts.now - timedelta(days=facts.measure.old_days)]
    return found(
        some,
        "It is {age} days old; its packages are as old.",
        evidence="created {day}",
        cure="aws ec2 enable-image-deprecation --region {region} --image-id {resource_id} "
        f"--deprecate-at {facts.now + timedelta(days=30):%Y-%m-%dT00:00:00Z}",
        age=(facts.now - some["created_at"]).dt.days,
        day=some["created_at"].dt.strftime("%Y-%m-%d"),
    )


@rule("info")
def not_asked_one_by_one(facts: Facts) -> pd.DataFrame:
    """Find regions with so many AMIs that AWS was not asked, for each, who else may launch it."""
    return _places(
        [
            (account, region, counted(facts.inventory.places.get((account, region), 0), "AMI"))
            for account, region in facts.inventory.hurried
        ],
        reason="{name}: AWS was not asked for each which other accounts may launch it.",
        cure="vmsnix run audit-inventory --regions {region} --accounts {account} --one-by-one yes",
    )


# Snapshots and leftovers


@rule("medium")
def orphan_snapshot(facts: Facts) -> pd.DataFrame:
    """Find snapshots that were made for an AMI and that no AMI holds any more."""
    held = facts.of("snapshot")
    unused = (held["referenced"] == False).fillna(value=False) & (held["state"] == "completed")  # noqa: E712
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
    present = set(facts.of("snapshot", "direct-upload")["resource_id"])
    blind = {(one.account, one.region) for one in facts.inventory.unread if one.source == "snapshots"}
    lists = amis["snapshots"].fillna("[]")
    lost = [
        ", ".join(one for one in (json.loads(text) if place not in blind else ()) if one not in present)
        for text, place in zip(lists, zip(amis["account"], amis["region"], strict=True), strict=True)
    ]
    return found(
        amis.assign(lost=lost).query("lost != ''"),
        "Its snapshot {lost} is not in this account: it is deleted, or another account's.",
        evidence="DescribeSnapshots does not list {lost}",
        cure="aws ec2 deregister-image --region {region} --image-id {resource_id}",
    )


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
    return _together(one, other)


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
    one = found(
        some[~uploads],
        "No import reads it any more; publishing removes what it uploaded.",
        evidence="{source}",
        cure="aws s3api delete-object --bucket {bucket} --key {name}",
        bucket=bucket,
    )
    other = found(
        some[uploads],
        "This multipart upload was begun and not ended; its parts are billed and are in no listing.",
        evidence="{source}",
        cure="aws s3api abort-multipart-upload --bucket {bucket} --key {name} --upload-id {upload}",
        bucket=bucket,
        upload=some["resource_id"],
    )
    return _together(one, other)


@rule("medium")
def import_tasks(facts: Facts) -> pd.DataFrame:
    """Find imports that run, or that failed in the last week."""
    tasks = facts.of("import-task")
    running = tasks[tasks["state"].isin(IMPORT_RUNS)]
    ended = tasks[
        tasks["state"].isin(("deleted", "deleting", "error", "cancelled")) & tasks["message"].notna()
    ]
    one = found(
        running,
        "It runs; a publish that waits for it shows it too. AWS says: {said}",
        evidence="{source}",
        cure="aws ec2 cancel-import-task --region {region} --import-task-id {resource_id}",
        said=running["message"].fillna("nothing"),
    ).assign(severity="info")
    other = found(ended, "It failed: {message}", evidence="{source}", cure="").assign(severity="low")
    return _together(one, other)


# Is it what it should be


@rule("low")
def untagged(facts: Facts) -> pd.DataFrame:
    """Find AMIs and snapshots without tags: nobody knows whose they are."""
    some = facts.of("ami", "snapshot")
    return found(
        some[some["tags"] == "{}"],
        "It has no tags, so nobody knows whose it is.",
        evidence="no tags",
        cure="aws ec2 create-tags --region {region} --resources {resource_id} --tags Key=owner,Value=TEAM",
    )


@rule("info")
def not_published_by_us(facts: Facts) -> pd.DataFrame:
    """Find AMIs that something else published, or that this history does not know."""
    amis, recorded = facts.amis, facts.recorded
    foreign = found(
        amis[amis["digest"].isna() & (amis["tags"] != "{}")],
        "It carries no tag of ours: something else made it.",
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
    return _together(foreign, unknown)


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


@rule("critical")
def pointer_to_missing(facts: Facts) -> pd.DataFrame:
    """Find parameters, templates and groups that name an AMI which does not exist."""
    import pandas as pd

    rows = [
        {
            "severity": "info" if one.evidence.kind == "instance" else "critical",
            "account": one.account,
            "region": one.region,
            "kind": one.evidence.kind,
            "resource_id": one.evidence.id,
            "name": one.ami_id,
            "reason": _missing(one.evidence.kind, one.ami_id),
            "evidence": str(one.evidence),
            "cure": _repoint(one.evidence.kind, one.evidence.id, one.region),
        }
        for one in facts.inventory.pointers
        if not one.owner
    ]
    return pd.DataFrame(rows)


def _missing(kind: str, ami_id: str) -> str:
    if kind == "instance":
        return f"It runs on, but its AMI {ami_id} is gone: it cannot be launched again."
    return f"It names {ami_id}, which does not exist here, or is not shared with this account any more."


def _repoint(kind: str, name: str, region: str) -> str:
    import shlex

    where, quoted = f"--region {region}", shlex.quote(name)
    commands = {
        "parameter": f"aws ssm put-parameter {where} --name {quoted} --value AMI --overwrite",
        "launch-template": f"aws ec2 create-launch-template-version {where} --launch-template-id {quoted} "
        "--source-version '$Latest' --launch-template-data ImageId=AMI",
        "launch-configuration": f"aws autoscaling delete-launch-configuration {where} "
        f"--launch-configuration-name {quoted}",
        "auto-scaling-group": f"aws autoscaling update-auto-scaling-group {where} "
        f"--auto-scaling-group-name {quoted} --launch-template LaunchTemplateId=TEMPLATE",
    }
    return commands.get(kind, "")


@rule("info")
def pointer_to_others(facts: Facts) -> pd.DataFrame:
    """Find parameters, templates and groups that name an AMI of another account."""
    import pandas as pd

    known = {account for account, _ in facts.inventory.places}
    rows = [
        {
            "account": one.account,
            "region": one.region,
            "kind": one.evidence.kind,
            "resource_id": one.evidence.id,
            "name": one.ami_id,
            "reason": f"It names {one.ami_id} of account {one.owner}, which may take it away at any time.",
            "evidence": str(one.evidence),
            "cure": f"aws ec2 copy-image --region {one.region} --source-region {one.region} "
            f"--source-image-id {one.ami_id} --name NAME",
        }
        for one in facts.inventory.pointers
        if one.owner and one.owner not in known and one.evidence.kind != "instance"
    ]
    return pd.DataFrame(rows)


@rule("high")
def contains_package(facts: Facts) -> pd.DataFrame:
    """Find AMIs that contain a package which was asked for, such as openssl older than 3.0.15."""
    packages, parts = facts.packages, []
    for wanted in facts.measure.packages:
        rows = packages[packages["name"] == wanted.name]
        versions = {version: wanted.matches(version) for version in rows["version"].fillna("").unique()}
        rows = rows[rows["version"].fillna("").map(versions).astype(bool)]
        if not len(rows):
            continue
        inside = rows.groupby("digest")["version"].agg(lambda some: ", ".join(sorted(set(some.dropna()))))
        amis = facts.amis[facts.amis["digest"].isin(inside.index)]
        parts.append(
            found(
                amis,
                f"It contains {wanted.name} {{versions}} ({wanted} was asked for).",
                evidence="table packages",
                cure="vmsnix run publish-ami --image {image}",
                versions=amis["digest"].map(inside),
            )
        )
    return _together(*parts) if parts else found(facts.amis.head(0), "")


# What we do not know


@rule("medium")
def contents_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs of which nobody recorded what is inside, when packages were asked for."""
    amis = facts.amis
    if not facts.measure.packages:
        return found(amis.head(0), "")
    asked = ", ".join(str(wanted) for wanted in facts.measure.packages)
    unknown = ~amis["digest"].isin(facts.known_digests)
    return found(
        amis[unknown & amis["digest"].notna()],
        f"Nobody recorded what is inside it, so it cannot be said whether it contains {asked}.",
        evidence="no rows in the table packages",
        cure="vmsnix run publish-ami --image {image}",
    )


@rule("high")
def unread(facts: Facts) -> pd.DataFrame:
    """Find accounts, regions and sources that could not be read."""
    import pandas as pd

    rows = [
        {
            "account": one.account,
            "region": one.region,
            "kind": "region" if one.region else "account",
            "resource_id": one.source,
            "reason": f"{one.error.what} What is there, and what uses it, is unknown.",
            "evidence": one.error.why,
            "cure": one.error.cure,
        }
        for one in facts.inventory.unread
    ]
    return pd.DataFrame(rows)


def _places(places: list[tuple[str, str, str]], *, reason: str, cure: str) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(places, columns=["account", "region", "name"]).assign(
        kind="region", resource_id=[region for _, region, _ in places]
    )
    return found(frame, reason, cure=cure)


def _together(*parts: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    full = [part for part in parts if len(part)]
    return pd.concat(full) if full else parts[0]
