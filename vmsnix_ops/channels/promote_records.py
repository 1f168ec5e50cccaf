"""What a promotion leaves in the tables: its steps, copied AMIs, and what each AMI was promoted to."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.aws import images, sharing, snapshots
from vmsnix_ops.aws import tags as tagging

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.session import Client
    from vmsnix_ops.channels.promote import Plan
    from vmsnix_ops.channels.promote_steps import Spot
    from vmsnix_ops.publish.outcomes import StepOutcome
    from vmsnix_ops.records.run_context import RunContext
    from vmsnix_ops.records.run_tables import RunTables

SHARED = ("shared_with", "snapshots_shared_with")
STATUS = {"done": "finished", "already so": "reused", "failed": "failed"}
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


def facts(ec2: Client, ami: Ami) -> dict[str, Any]:
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


def write(plan: Plan, spot: Spot, *, pointed: bool = True) -> None:
    """Record what the AMI of one region is now, as AWS says it; safe to run twice.

    A row is only written when it says something new of the AMI or of the channel, so that a promotion that
    died between its last step and this is recorded by the next one, and one that finds everything done adds
    nothing.

    Parameters
    ----------
    plan, spot
        Which promotion, and which region of it.
    pointed
        Whether the channel points to the AMI; not so where a step of the region failed.
    """
    channel = plan.channel if pointed else ""
    ami = images.describe(spot.ec2, spot.ami_id)
    source = plan.wanted.source
    record_ami(plan.tables, ami)
    row = {
        "run_id": plan.run.run_id,
        "promoted_at": datetime.now(UTC),
        "how": "promote",
        "ami_id": ami.ami_id,
        "region": ami.region,
        "account": ami.account,
        "name": ami.name,
        "image": plan.image,
        "version": ami.tags.get(tagging.VERSION),
        "digest": ami.digest,
        "source_ami_id": source.ami_id if ami.region != source.region else None,
        "source_region": source.region if ami.region != source.region else None,
        "channel": channel or None,
        "pointer": plan.wanted.pointer or None if pointed else None,
        "previous_ami_id": spot.pointed_to or None,
        **facts(spot.ec2, ami),
    }
    of_channel, of_ami = latest(plan.tables, ami.region, plan.image, channel), latest_of(plan.tables, ami)
    if not _same(of_channel, row, ("ami_id", "channel", *FACTS)) or not _same(of_ami, row, FACTS):
        plan.tables.append("promotions", [row])


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


def strangers(tables: RunTables, ec2: Client, ami: Ami) -> sharing.Audience:
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
    rows: Iterable[StepOutcome],
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
            "status": STATUS[row.outcome],
            "started_at": now - timedelta(seconds=row.seconds),
            "finished_at": now,
            "seconds": row.seconds,
            "image": image,
            "digest": digest or None,
            "region": row.region,
            "detail": detail or {"ami_id": row.ami_id, "what": row.what, "error": row.why or None},
        }
        for row in rows
        if row.outcome in STATUS
    ]
    if written:
        tables.append("steps", written)


def _same(before: dict[str, Any], row: dict[str, Any], names: Iterable[str]) -> bool:
    return bool(before) and all(_plain(before.get(name)) == _plain(row.get(name)) for name in names)


def _plain(value: Any) -> Any:
    """Return a value so that one from a frame and one of ours compare: pandas spells nothing in many ways."""
    import pandas as pd

    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return bool(value) if hasattr(value, "item") else value
