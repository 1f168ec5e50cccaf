"""The rows that promotions and rollbacks write to the tables, and read from them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops import outcomes
from vmsnix_ops.aws import images, sharing, snapshots
from vmsnix_ops.display import missing
from vmsnix_ops.publish.outcomes import ANNOUNCE

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from types_boto3_ec2.client import EC2Client

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.publish.outcomes import RegionStep
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.run_tables import RunTables


SHARED = ("shared_with", "snapshots_shared_with")
FACTS = (*SHARED, "public", "deprecated_at", "protected", "encrypted", "kms_key")
"""The columns of an AMI that can change. A promotion that changes none of them writes no row."""


def facts(ec2: EC2Client, ami: Ami) -> dict[str, Any]:
    """Return the columns `FACTS` of an AMI, as AWS returns them now."""
    found = snapshots.find_snapshots(ec2, ami.snapshot_ids)
    audience = sharing.read_launch_permissions(ec2, ami.ami_id)
    accounts = {
        name for snapshot_id in found for name in sharing.read_snapshot_permissions(ec2, snapshot_id).names()
    }
    first = next(iter(found.values()), None)
    return {
        "shared_with": json.dumps([name for name in audience.names() if name != sharing.PUBLIC]),
        "snapshots_shared_with": json.dumps(sorted(accounts)),
        "public": audience.public,
        "deprecated_at": ami.deprecated_at,
        "protected": ami.protection.startswith("enabled"),
        "encrypted": bool(found) and all(one.encrypted for one in found.values()),
        "kms_key": first.kms_key or None if first else None,
    }


def record_ami(tables: RunTables, ami: Ami) -> None:
    """Record a copied AMI in the table ``amis``, once."""
    where = [("ami_id", "==", ami.ami_id), ("region", "==", ami.region)]
    if not len(tables.read_or_empty("amis", columns=["ami_id"], where=where)):
        tables.append("amis", [images.ami_row(ami, recorded_at=datetime.now(UTC), source="promote")])


def latest_of_channel(tables: RunTables, region: str, image: str, channel: str) -> dict[str, Any]:
    """Return the newest row of a channel in a region; empty if there is none."""
    where = [("region", "==", region), ("image", "==", image)]
    frame = tables.read_or_empty("promotions", where=where)
    return _newest(frame[frame["channel"].isna() if not channel else frame["channel"] == channel])


def latest_of_ami(tables: RunTables, ami: Ami) -> dict[str, Any]:
    """Return the newest row with the facts of an AMI, of any channel; empty if there is none."""
    where = [("region", "==", ami.region), ("ami_id", "==", ami.ami_id), ("how", "==", "promote")]
    return _newest(tables.read_or_empty("promotions", where=where))


def _newest(frame: pd.DataFrame) -> dict[str, Any]:
    if not len(frame):
        return {}
    return {str(name): value for name, value in frame.sort_values("promoted_at").iloc[-1].items()}


def read_grants(ec2: EC2Client, ami: Ami) -> sharing.Audience:
    """Return the accounts that may use an AMI or its snapshots."""
    found = [sharing.read_launch_permissions(ec2, ami.ami_id)]
    found += [sharing.read_snapshot_permissions(ec2, snapshot_id) for snapshot_id in ami.snapshot_ids]
    return sharing.parse_audience([name for one in found for name in one.names()])


def without_recorded(tables: RunTables, ami: Ami, names: Iterable[str]) -> list[str]:
    """Return the accounts that may use an AMI or its snapshots although no row says so."""
    row = latest_of_ami(tables, ami)
    recorded = {name for column in SHARED for name in json.loads(row.get(column) or "[]")}
    where = [("ami_id", "==", ami.ami_id), ("region", "==", ami.region)]
    published = tables.read_or_empty("amis", columns=["public"], where=where)["public"]
    if row.get("public") or published.fillna(False).any():
        recorded.add(sharing.PUBLIC)
    return [name for name in names if name not in recorded]


def write_steps(
    tables: RunTables,
    run: RunContext,
    rows: Iterable[RegionStep],
    *,
    image: str,
    account: str,
    digest: str = "",
    detail: dict[str, Any] | None = None,
) -> None:
    """Record steps in the table ``steps``, except planned and skipped ones."""
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
            "account": account or None,
            "detail": detail or {"ami_id": row.ami_id, "what": row.what, "error": row.why or None},
        }
        for row in rows
        if row.outcome in (*outcomes.SUCCEEDED, "failed")
    ]
    if written:
        tables.append("steps", written)


def last_message(tables: RunTables, topic: str, image: str, channel: str) -> str:
    """Return the last message about a channel that a topic was sent; empty if there is none."""
    where = [("step", "==", ANNOUNCE), ("image", "==", image), ("status", "in", outcomes.WORKED)]
    frame = tables.read_or_empty("steps", columns=["detail", "finished_at"], where=where)
    details = [json.loads(detail) for detail in frame.sort_values("finished_at")["detail"]]
    sent = [one for one in details if (one.get("topic"), one.get("channel")) == (topic, channel)]
    return str(sent[-1]["message"]) if sent else ""


def is_recorded(row: dict[str, Any], latest: dict[str, Any], columns: Iterable[str]) -> bool:
    """Return whether the latest row of a table has the same values as a new one in these columns."""
    return bool(latest) and all(_plain(latest.get(name)) == _plain(row.get(name)) for name in columns)


def _plain(value: Any) -> Any:
    """Return a value without pandas' types and its several missing values."""
    if missing(value):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return bool(value) if hasattr(value, "item") else value
