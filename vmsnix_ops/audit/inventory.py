"""Every AMI and every snapshot that is ours, in one frame.

An AMI counts as referenced when an instance was made from it, a snapshot when an AMI holds it. That is
evidence for use, and its absence is not yet evidence against it: launch templates, Auto Scaling groups,
parameters and other accounts are not asked.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.account import identity
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import Client, calling, client
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.records.result import write_result
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import boto3
    import pandas as pd
    from matplotlib.figure import Figure

REGIONS_AT_ONCE = 8
PAGE = 1000
COLUMNS = {
    "kind": "ami or snapshot",
    "resource_id": "its identifier",
    "name": "name of the AMI, or the Name tag of the snapshot",
    "region": "AWS region",
    "account": "owner",
    "state": "state as AWS names it",
    "created_at": "when AWS created it, UTC",
    "age_days": "days since then",
    "size_gib": "size of the volume, GiB",
    "stored_bytes": "bytes that the snapshot holds, where AWS tells them",
    "referenced": "whether anything was found that uses it",
    "evidence": "what uses it: instance ids of an AMI, AMI ids of a snapshot",
    "public": "whether every AWS account may launch it; empty for snapshots",
    "encrypted": "whether its bytes are encrypted",
    "image": "tag vmsnix:image",
    "digest": "tag vmsnix:digest",
    "run_id": "tag vmsnix:run",
}
"""Columns of the frame and their meaning."""


@needs("ec2:DescribeRegions", "ec2:DescribeImages", "ec2:DescribeSnapshots", "ec2:DescribeInstances")
def scan(*, regions: Iterable[str] = (), session: boto3.Session | None = None) -> pd.DataFrame:
    """Return the AMIs and snapshots that this account owns.

    Parameters
    ----------
    regions
        Where to look; by default the settings' region, else AWS's own. ``["all"]``: every region that is
        enabled.
    session
        Whose account is scanned.

    Returns
    -------
    pandas.DataFrame
        Columns as in `COLUMNS`, AMIs before snapshots, oldest first.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        A region could not be read; a scan that leaves one out would mislead.
    """
    import pandas as pd

    session = session or default_session()
    chosen = _regions(session, tuple(regions))
    account = identity(session, chosen[0]).account
    clients = [
        client(session, "ec2", region) for region in chosen
    ]  # sessions are not thread safe, clients are
    with ThreadPoolExecutor(REGIONS_AT_ONCE, thread_name_prefix="scan") as pool:
        rows = [row for found in pool.map(_region, clients) for row in found]
    now = datetime.now(UTC)
    for row in rows:
        row["account"] = account
        row["age_days"] = round((now - row["created_at"]).total_seconds() / 86400, 2)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["created_at"] = pd.to_datetime(frame["created_at"], utc=True)
    kinds = {"size_gib": "Int64", "stored_bytes": "Int64", "public": "boolean", "encrypted": "boolean"}
    return frame.astype(kinds).sort_values(["kind", "created_at"], ignore_index=True)


def summary(inventory: pd.DataFrame) -> pd.DataFrame:
    """Return, for each region and kind: how many there are, how many of them unreferenced, and their GiB."""
    import pandas as pd

    marked = inventory.assign(unreferenced=~inventory["referenced"].astype(bool))
    groups = marked.groupby(["region", "kind"], as_index=False)
    table = groups.agg(
        count=("resource_id", "size"),
        unreferenced=("unreferenced", "sum"),
        size_gib=("size_gib", "sum"),
        oldest_days=("age_days", "max"),
    )
    return pd.DataFrame(table)


def show(inventory: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the rows of one kind with the columns that a person reads, the oldest first."""
    hidden = ["kind", "account", "created_at", "stored_bytes", "public", "encrypted", "digest", "run_id"]
    return inventory[inventory["kind"] == kind].drop(columns=hidden).reset_index(drop=True)


def plot(inventory: pd.DataFrame) -> Figure:
    """Return a figure: GiB of snapshots by age, referenced and not."""
    from vmsnix_ops.records.figures import new_figure

    snapshots = inventory[inventory["kind"] == "snapshot"]
    edges = [0, 1, 7, 30, 90, 365, float("inf")]
    labels = ["1 day", "1 week", "1 month", "3 months", "1 year", "older"]
    figure = new_figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    bottom = [0.0] * len(labels)
    parts = ((True, "held by an AMI", "#4c78a8"), (False, "held by nothing", "#e45756"))
    for referenced, label, colour in parts:
        chosen = snapshots[snapshots["referenced"] == referenced]
        heights = [
            float(chosen[(chosen["age_days"] >= low) & (chosen["age_days"] < high)]["size_gib"].sum())
            for low, high in itertools.pairwise(edges)
        ]
        axes.bar(labels, heights, bottom=bottom, label=label, color=colour)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set(xlabel="age of the snapshot, up to", ylabel="volume size (GiB)", title="Snapshots by age")
    axes.legend()
    return figure


def finish(inventory: pd.DataFrame) -> None:
    """Write ``result.json``: counts, and the whole inventory as ``inventory.csv`` beside it."""
    run = current_run("audit-inventory")
    path = run.folder / "inventory.csv"
    inventory.to_csv(path, index=False)
    amis, unreferenced = inventory["kind"] == "ami", ~inventory["referenced"].astype(bool)
    counts = {
        "amis": int(amis.sum()),
        "amis_unreferenced": int((amis & unreferenced).sum()),
        "snapshots": int((~amis).sum()),
        "snapshots_unreferenced": int((~amis & unreferenced).sum()),
    }
    write_result(run, {"status": "done", "inventory": path, **counts})


def _regions(session: boto3.Session, asked: tuple[str, ...]) -> tuple[str, ...]:
    settings = load()
    home = settings.region or session.region_name or ""
    if asked == ("all",):
        with calling("list the enabled regions"):
            answer = client(session, "ec2", home or "us-east-1").describe_regions()
        return tuple(sorted(region["RegionName"] for region in answer["Regions"]))
    chosen = asked or ((home,) if home else ())
    if not chosen:
        raise errors.ParameterError(
            "No region was given.",
            cure="Give regions (or all), set region in vmsnix.toml, or set AWS_REGION.",
        )
    known = {r for p in session.get_available_partitions() for r in session.get_available_regions("ec2", p)}
    for region in chosen:
        if region not in known:
            raise errors.RegionError(f"There is no AWS region {region!r}.", why=errors.nearest(region, known))
    return chosen


def _region(ec2: Client) -> list[dict[str, Any]]:
    region = ec2.meta.region_name
    with calling(f"list the AMIs and snapshots of {region}"):
        images = _pages(
            ec2, "describe_images", "Images", Owners=["self"], IncludeDisabled=True, IncludeDeprecated=True
        )
        snapshots = _pages(ec2, "describe_snapshots", "Snapshots", OwnerIds=["self"])
        reservations = _pages(ec2, "describe_instances", "Reservations")
    users: dict[str, list[str]] = {}
    for reservation in reservations:
        for instance in reservation["Instances"]:
            if instance["State"]["Name"] != "terminated":
                users.setdefault(instance["ImageId"], []).append(instance["InstanceId"])
    holders: dict[str, list[str]] = {}
    for image in images:
        for device in image.get("BlockDeviceMappings", ()):
            if device.get("Ebs", {}).get("SnapshotId"):
                holders.setdefault(device["Ebs"]["SnapshotId"], []).append(image["ImageId"])
    stored = {s["SnapshotId"]: s.get("FullSnapshotSizeInBytes") for s in snapshots}
    amis = [_ami_row(image, region, users.get(image["ImageId"], []), stored) for image in images]
    return amis + [_snapshot_row(s, region, holders.get(s["SnapshotId"], [])) for s in snapshots]


def _pages(ec2: Client, operation: str, member: str, **request: Any) -> list[dict[str, Any]]:
    pages = ec2.get_paginator(operation).paginate(**request, PaginationConfig={"PageSize": PAGE})
    return [item for page in pages for item in page.get(member, ())]


def _ami_row(
    image: Mapping[str, Any], region: str, used_by: list[str], stored: Mapping[str, int | None]
) -> dict[str, Any]:
    volumes = [device["Ebs"] for device in image.get("BlockDeviceMappings", ()) if "Ebs" in device]
    sizes = [stored.get(volume.get("SnapshotId", "")) for volume in volumes]
    return {
        "kind": "ami",
        "resource_id": image["ImageId"],
        "name": image.get("Name", ""),
        "region": region,
        "state": image.get("State", ""),
        "created_at": datetime.fromisoformat(image["CreationDate"]),
        "size_gib": sum(int(volume.get("VolumeSize") or 0) for volume in volumes),
        "stored_bytes": sum(size for size in sizes if size is not None) if None not in sizes else None,
        "referenced": bool(used_by),
        "evidence": ", ".join(used_by),
        "public": bool(image.get("Public")),
        "encrypted": bool(volumes) and all(volume.get("Encrypted") for volume in volumes),
        **_own_tags(image),
    }


def _snapshot_row(snapshot: Mapping[str, Any], region: str, held_by: list[str]) -> dict[str, Any]:
    return {
        "kind": "snapshot",
        "resource_id": snapshot["SnapshotId"],
        "name": tagging.to_dict(snapshot.get("Tags")).get(tagging.NAME, ""),
        "region": region,
        "state": snapshot.get("State", ""),
        "created_at": snapshot["StartTime"],
        "size_gib": int(snapshot["VolumeSize"]),
        "stored_bytes": snapshot.get("FullSnapshotSizeInBytes"),
        "referenced": bool(held_by),
        "evidence": ", ".join(held_by),
        "public": None,
        "encrypted": bool(snapshot.get("Encrypted")),
        **_own_tags(snapshot),
    }


def _own_tags(resource: Mapping[str, Any]) -> dict[str, str]:
    tags = tagging.to_dict(resource.get("Tags"))
    return {
        "image": tags.get(tagging.IMAGE, ""),
        "digest": tags.get(tagging.DIGEST, ""),
        "run_id": tags.get(tagging.RUN, ""),
    }
