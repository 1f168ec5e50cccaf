"""What a promotion or a rollback leaves: rows in the tables, and a message to an SNS topic."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors, outcomes
from vmsnix_ops.aws import images, sharing, snapshots, topics
from vmsnix_ops.publish.outcomes import ANNOUNCE, RegionStep, recorded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.run_tables import RunTables


SHARED = ("shared_with", "snapshots_shared_with")
FACTS = (
    "shared_with",
    "snapshots_shared_with",
    "public",
    "deprecated_at",
    "protected",
    "encrypted",
    "kms_key",
)
"""What may change of an AMI: a promotion that finds everything as recorded records nothing."""


def facts(ec2: EC2Client, ami: Ami) -> dict[str, Any]:
    """Return what AWS says of an AMI that may change after it was registered, as `promotions` has it."""
    held = snapshots.find(ec2, ami.snapshot_ids)
    who = sharing.of_image(ec2, ami.ami_id)
    accounts = {name for snapshot_id in held for name in sharing.of_snapshot(ec2, snapshot_id).names()}
    first = next(iter(held.values()), None)
    return {
        "shared_with": json.dumps([name for name in who.names() if name != sharing.PUBLIC]),
        "snapshots_shared_with": json.dumps(sorted(accounts)),
        "public": who.public,
        "deprecated_at": ami.deprecated_at,
        "protected": ami.protection.startswith("enabled"),
        "encrypted": bool(held) and all(one.encrypted for one in held.values()),
        "kms_key": first.kms_key or None if first else None,
    }


def record_ami(tables: RunTables, ami: Ami) -> None:
    """Record a copied AMI in ``amis``, once."""
    where = [("ami_id", "==", ami.ami_id), ("region", "==", ami.region)]
    if not len(tables.read_or_empty("amis", columns=["ami_id"], where=where)):
        tables.append("amis", [images.row(ami, recorded_at=datetime.now(UTC), source="promote")])


def latest(tables: RunTables, region: str, image: str, channel: str) -> dict[str, Any]:
    """Return the newest row of a channel in a region; empty when there is none."""
    where = [("region", "==", region), ("image", "==", image)]
    frame = tables.read_or_empty("promotions", where=where)
    return _newest(frame[frame["channel"].isna() if not channel else frame["channel"] == channel])


def latest_of(tables: RunTables, ami: Ami) -> dict[str, Any]:
    """Return the newest row that says what an AMI is, whatever its channel; empty without."""
    where = [("region", "==", ami.region), ("ami_id", "==", ami.ami_id), ("how", "==", "promote")]
    return _newest(tables.read_or_empty("promotions", where=where))


def strangers(tables: RunTables, ec2: EC2Client, ami: Ami) -> sharing.Audience:
    """Return who may use an AMI or its snapshots although nobody recorded that."""
    row = latest_of(tables, ami)
    known = {who for name in SHARED for who in json.loads(row.get(name) or "[]")}
    if row.get("public") or _published_as_public(tables, ami):
        known.add(sharing.PUBLIC)
    found = [sharing.of_image(ec2, ami.ami_id)]
    found += [sharing.of_snapshot(ec2, snapshot_id) for snapshot_id in ami.snapshot_ids]
    return sharing.audience([name for one in found for name in one.names() if name not in known])


def _published_as_public(tables: RunTables, ami: Ami) -> bool:
    where = [("ami_id", "==", ami.ami_id), ("region", "==", ami.region)]
    return bool(tables.read_or_empty("amis", columns=["public"], where=where)["public"].fillna(False).any())


def _newest(frame: pd.DataFrame) -> dict[str, Any]:
    if not len(frame):
        return {}
    return {str(name): value for name, value in frame.sort_values("promoted_at").iloc[-1].items()}


def write_rows(
    tables: RunTables,
    run: RunContext,
    rows: Iterable[RegionStep],
    *,
    image: str,
    digest: str = "",
    detail: dict[str, Any] | None = None,
) -> None:
    """Record steps that were carried out in ``steps``; one that was skipped is none."""
    now = datetime.now(UTC)
    written = [
        {
            "run_id": run.run_id,
            "step": row.step,
            "status": row.outcome,
            "started_at": now - timedelta(seconds=row.seconds),
            "finished_at": now,
            "seconds": row.seconds,
            "image": image,
            "digest": digest or None,
            "region": row.region,
            "detail": detail or {"ami_id": row.ami_id, "what": row.what, "error": row.why or None},
        }
        for row in rows
        if row.outcome in (*outcomes.SUCCEEDED, "failed")
    ]
    if written:
        tables.append("steps", written)


def same(before: dict[str, Any], row: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether a recorded row says the same under these names as another one."""
    return bool(before) and all(_plain(before.get(name)) == _plain(row.get(name)) for name in names)


def _plain(value: Any) -> Any:
    """Return a value so that one from a frame and one of ours compare: pandas spells nothing in many ways."""
    import pandas as pd

    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return bool(value) if hasattr(value, "item") else value


# Telling an SNS topic where a channel points, once for each time that it is pointed somewhere.


def announce(
    topic: str,
    content: Mapping[str, Any],
    *,
    run: RunContext,
    tables: RunTables,
    session: boto3.Session,
) -> list[RegionStep]:
    """Send a message unless it is the last that this topic was told of the channel; say what became of it.

    Parameters
    ----------
    topic
        ARN of the topic.
    content
        What it is told, as JSON: ``image``, ``channel``, ``name``, ``digest``, ``account``, and ``amis`` by
        region.
    run, tables, session
        Who tells it, and where that is written down.
    """
    where, started = topic.split(":")[3], time.monotonic()
    row = RegionStep(where, ANNOUNCE, "skipped", f"to {topic}")
    if not content["amis"]:
        return [replace(row, why="there is nothing to report")]
    message = json.dumps(content, sort_keys=True)
    image, channel = str(content["image"]), str(content["channel"])
    try:
        if _last(tables, topic, image, channel) == message:
            return [replace(row, outcome="unchanged")]
        subject = f"{image} {channel or 'AMI'}: {content['name']}"
        told = topics.announce(topic, subject, message, group=image, session=session)
    except errors.VmsnixError as error:
        return [replace(row, outcome="failed", why=str(error), error=error)]
    row = replace(row, outcome="created", seconds=round(time.monotonic() - started, 3))
    detail = {"topic": topic, "channel": channel, "message": message, "message_id": told}

    def record() -> None:
        digest = str(content["digest"])
        write_rows(tables, run, [row], image=image, digest=digest, detail=detail)

    return recorded([row], where, record)


def planned(topic: str) -> list[RegionStep]:
    """Return what a dry run would tell, when there is a topic."""
    return [RegionStep(topic.split(":")[3], ANNOUNCE, "planned", f"to {topic}")] if topic else []


def _last(tables: RunTables, topic: str, image: str, channel: str) -> str:
    """Return what a topic was told last of a channel: a channel may point to the same AMI a second time."""
    where = [("step", "==", ANNOUNCE), ("image", "==", image), ("status", "in", outcomes.WORKED)]
    frame = tables.read_or_empty("steps", columns=["detail", "finished_at"], where=where).sort_values(
        "finished_at"
    )
    told = [json.loads(detail) for detail in frame["detail"]]
    ours = [one for one in told if (one.get("topic"), one.get("channel")) == (topic, channel)]
    return str(ours[-1]["message"]) if ours else ""
