"""One answer of AWS, one row of the inventory: columns are filled, and what AWS said is forgotten at once.

An account may hold a hundred thousand AMIs. A dictionary for each would take gigabytes, so rows go straight
into columns; times stay the texts that they came as until a whole column is parsed at once. Fields that are
absent (a half-deleted AMI, a task that just began) leave holes, never an error.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.records import schemas

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import pyarrow as pa

    from vmsnix_ops.aws.buckets import Leftover

NAMES = schemas.INVENTORY.names
PACK = 1000  # rows that stay Python's own
NO_VOLUME = "vol-ffffffff"  # of snapshots that were copied, imported or uploaded


class Columns:
    """The growing columns of one account and region.

    Parameters
    ----------
    run_id, scanned_at, account, region
        The same for every row.
    """

    def __init__(self, run_id: str, scanned_at: datetime, account: str, region: str) -> None:
        self.run_id, self.scanned_at, self.account, self.region = run_id, scanned_at, account, region
        self._values: dict[str, list[Any]] = {name: [] for name in NAMES if name not in _SAME}
        self._packed: list[pa.Table] = []
        self._length = 0

    def add(self, **row: Any) -> None:
        """Add a row; columns left out are empty."""
        for name, values in self._values.items():
            values.append(row.get(name))
        self._length += 1
        if self._length == PACK:
            self._pack()

    def arrow(self) -> pa.Table:
        """Return the rows as a table of the schema, and forget them."""
        import pyarrow as pa

        self._pack()
        packed, self._packed = self._packed, []
        return pa.concat_tables(packed)

    def _pack(self) -> None:
        """Put the rows since the last time into arrow's memory, a fifth of what Python's texts take."""
        import pyarrow as pa

        schema = schemas.INVENTORY.arrow()
        same = {
            "run_id": self.run_id,
            "scanned_at": self.scanned_at,
            "account": self.account,
            "region": self.region,
        }
        arrays = []
        for field in schema:
            if field.name in same:
                arrays.append(pa.repeat(pa.scalar(same[field.name], field.type), self._length))
                continue
            values, self._values[field.name] = self._values[field.name], []
            arrays.append(
                _times(values) if pa.types.is_timestamp(field.type) else pa.array(values, field.type)
            )
        self._packed.append(pa.Table.from_arrays(arrays, schema=schema))
        self._length = 0


_SAME = frozenset({"run_id", "scanned_at", "account", "region"})


def _times(values: list[Any]) -> pa.Array:
    """Return times as EC2 spells them in images (text) and in snapshots (datetime)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.timestamp("us", tz="UTC")
    texts = pa.array([value if isinstance(value, str) and value else None for value in values], pa.string())
    moments = pa.array([value if isinstance(value, datetime) else None for value in values], kind)
    return pc.coalesce(moments, texts.cast(kind))


def snapshots(
    columns: Columns, found: Iterable[Mapping[str, Any]], public: Collection[str] | None = None
) -> dict[str, tuple[int | None, int]]:
    """Add snapshots, and return the stored bytes and the GiB of each.

    `public` are those that everybody may use; None where nobody could tell.

    A pending one that comes from no volume and is no copy is being written through the EBS direct APIs, or
    was until its writer died.
    """
    sizes: dict[str, tuple[int | None, int]] = {}
    for snapshot in found:
        tags = tagging.to_dict(snapshot.get("Tags"))
        size, stored = int(snapshot.get("VolumeSize") or 0), snapshot.get("FullSnapshotSizeInBytes")
        sizes[snapshot["SnapshotId"]] = (stored, size)
        pending = snapshot.get("State") == "pending"
        direct = pending and snapshot.get("VolumeId") == NO_VOLUME and not _is_made_by_aws(snapshot)
        columns.add(
            kind="direct-upload" if direct else "snapshot",
            resource_id=snapshot["SnapshotId"],
            name=tags.get(tagging.NAME),
            state=snapshot.get("State"),
            created_at=snapshot.get("StartTime"),
            size_gib=size,
            stored_bytes=stored,
            estimated=stored is None,
            tier=snapshot.get("StorageTier"),
            public=None if public is None else snapshot["SnapshotId"] in public,
            encrypted=bool(snapshot.get("Encrypted")),
            source=_source(snapshot),
            message=snapshot.get("StateMessage"),
            image=tags.get(tagging.IMAGE),
            digest=tags.get(tagging.DIGEST),
            tags=_json(tags),
        )
    return sizes


def _is_made_by_aws(snapshot: Mapping[str, Any]) -> bool:
    """Tell whether a snapshot is a copy or an import, by what AWS says of it or how AWS describes it."""
    described = str(snapshot.get("Description") or "")
    return "TransferType" in snapshot or described.startswith(
        ("Copied for ", "[Copied ", "Created by AWS-VMImport", "imported from")
    )


def _source(snapshot: Mapping[str, Any]) -> str | None:
    """Return the volume or the description: what tells a backup of a volume from an image's snapshot."""
    volume = snapshot.get("VolumeId")
    return volume if volume and volume != NO_VOLUME else snapshot.get("Description") or None


def images(
    columns: Columns,
    found: Iterable[Mapping[str, Any]],
    sizes: Mapping[str, tuple[int | None, int]],
    holders: dict[str, list[str]],
    launched: dict[str, str],
) -> None:
    """Add AMIs; note in `holders` which of them hold each snapshot, in `launched` their last launches."""
    for image in found:
        launched[image["ImageId"]] = image.get("LastLaunchedTime") or ""
        volumes = [device["Ebs"] for device in image.get("BlockDeviceMappings") or () if "Ebs" in device]
        held = [volume["SnapshotId"] for volume in volumes if volume.get("SnapshotId")]
        for snapshot_id in held:
            holders.setdefault(snapshot_id, []).append(image["ImageId"])
        stored = [sizes.get(snapshot_id, (None, 0))[0] for snapshot_id in held]
        known = [size for size in stored if size is not None]
        tags = tagging.to_dict(image.get("Tags"))
        columns.add(
            kind="ami",
            resource_id=image["ImageId"],
            name=image.get("Name"),
            state=image.get("State"),
            created_at=image.get("CreationDate"),
            size_gib=sum(int(volume.get("VolumeSize") or 0) for volume in volumes),
            stored_bytes=sum(known) if len(known) == len(stored) else None,
            estimated=len(known) != len(stored),
            public=bool(image.get("Public")),
            encrypted=bool(volumes) and all(volume.get("Encrypted") for volume in volumes),
            last_launched_at=image.get("LastLaunchedTime"),
            deprecated_at=image.get("DeprecationTime"),
            snapshots=json.dumps(held),
            imds_support=image.get("ImdsSupport") or "",
            boot_mode=image.get("BootMode") or "",
            root_device=image.get("RootDeviceName") or "",
            source=image.get("SourceImageId"),
            message=(image.get("StateReason") or {}).get("Message"),
            image=tags.get(tagging.IMAGE),
            digest=tags.get(tagging.DIGEST),
            tags=_json(tags),
        )


def import_tasks(columns: Columns, found: Iterable[Mapping[str, Any]]) -> None:
    """Add imports; AWS lists those that ended for a week."""
    for task in found:
        detail, tags = task.get("SnapshotTaskDetail") or {}, tagging.to_dict(task.get("Tags"))
        place = detail.get("UserBucket") or {}
        columns.add(
            kind="import-task",
            resource_id=task["ImportTaskId"],
            name=tags.get(tagging.NAME),
            state=detail.get("Status"),
            message=detail.get("StatusMessage"),
            source=f"s3://{place['S3Bucket']}/{place.get('S3Key', '')}" if place.get("S3Bucket") else None,
            # Completed ones alone have a snapshot that can be trusted.
            snapshots=json.dumps([detail["SnapshotId"]] if detail.get("SnapshotId") else []),
            image=tags.get(tagging.IMAGE),
            digest=tags.get(tagging.DIGEST),
            tags=_json(tags),
        )


def leftovers(columns: Columns, bucket: str, found: Iterable[Leftover]) -> None:
    """Add what uploads left in a bucket."""
    for one in found:
        columns.add(
            kind=one.kind,
            resource_id=one.id,
            name=one.key,
            state="unfinished" if one.kind == "multipart-upload" else "stored",
            created_at=one.since,
            stored_bytes=one.bytes,
            estimated=False,
            source=f"s3://{bucket}/{one.key}",
        )


def _json(tags: Mapping[str, str]) -> str:
    return json.dumps(tags, sort_keys=True, ensure_ascii=False)
