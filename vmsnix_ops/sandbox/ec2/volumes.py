"""CreateVolume, DescribeVolumes, DeleteVolume: as far as snapshots and instances need them.

Source: the reference pages of the operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2.common import (
    VOLUME,
    find_own,
    find_token_result,
    new_id,
    record_token_result,
    tag_list,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.encryption import choose_encryption
from vmsnix_ops.sandbox.ec2.filters import FilterReader, apply_filters, optional_value, paginate
from vmsnix_ops.sandbox.ec2.images import check_volume_size, check_volume_type
from vmsnix_ops.sandbox.ec2.resources import Volume
from vmsnix_ops.sandbox.ec2.snapshots import find_usable_snapshot
from vmsnix_ops.sandbox.ec2.zones import check_zone

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Clock, Context


def volume_view(volume: Volume, clock: Clock) -> dict[str, Any]:
    """Return a volume as DescribeVolumes shows it."""
    view: dict[str, Any] = {
        "VolumeId": volume.volume_id,
        "Size": volume.size_gib,
        "SnapshotId": volume.snapshot_id,
        "AvailabilityZone": volume.zone,
        "State": volume.state(clock),
        "CreateTime": volume.created,
        "VolumeType": volume.kind,
        "Encrypted": volume.encrypted,
        "MultiAttachEnabled": False,
        "Attachments": [_attachment(volume)] if volume.instance_id else [],
    }
    optional = {"Iops": volume.iops, "Throughput": volume.throughput, "KmsKeyId": volume.kms_key}
    view.update({name: value for name, value in optional.items() if value})
    if volume.tags:
        view["Tags"] = tag_list(volume.tags)
    return view


def _attachment(volume: Volume) -> dict[str, Any]:
    return {
        "VolumeId": volume.volume_id,
        "InstanceId": volume.instance_id,
        "Device": volume.device,
        "State": "attached",
        "AttachTime": volume.attached,
        "DeleteOnTermination": volume.delete_on_termination,
    }


def _attachment_value(field: str) -> FilterReader:
    return lambda volume: optional_value(_attachment(volume)[field]) if volume.instance_id else []


def _readers(clock: Clock) -> dict[str, FilterReader]:
    return {
        "attachment.attach-time": _attachment_value("AttachTime"),
        "attachment.delete-on-termination": _attachment_value("DeleteOnTermination"),
        "attachment.device": _attachment_value("Device"),
        "attachment.instance-id": _attachment_value("InstanceId"),
        "attachment.status": _attachment_value("State"),
        "availability-zone": lambda v: [v.zone],
        "create-time": lambda v: [v.created.isoformat(timespec="milliseconds").replace("+00:00", "Z")],
        "encrypted": lambda v: [v.encrypted],
        "fast-restored": lambda _v: [False],
        "multi-attach-enabled": lambda _v: [False],
        "size": lambda v: [v.size_gib],
        "snapshot-id": lambda v: optional_value(v.snapshot_id),
        "status": lambda v: [v.state(clock)],
        "volume-id": lambda v: [v.volume_id],
        "volume-type": lambda v: [v.kind],
    }


def add_volume(
    context: Context, ebs: Params, zone: str, tags: dict[str, str], *, through_image: bool = False
) -> Volume:
    """Add a volume as an ``Ebs`` structure or a CreateVolume request describes it, and return it.

    Parameters
    ----------
    through_image
        Whether an image leads to the snapshot: whoever may launch the image may then use it.

    Raises
    ------
    AwsError
        Neither snapshot nor size, a snapshot that cannot be used, a size below the snapshot's, IOPS out of
        range.
    """
    size, snapshot = ebs.get("VolumeSize"), None
    if ebs.get("SnapshotId"):
        snapshot = find_usable_snapshot(context, ebs["SnapshotId"], shared=through_image)
        size = snapshot.size_gib if size is None else size
        check_volume_size(size, snapshot.snapshot_id, snapshot.size_gib)
    if size is None:
        raise AwsError("MissingParameter", "The request must contain the parameter size/snapshot")
    kind = ebs.get("VolumeType", "gp2")
    check_volume_type(kind, size, ebs.get("Iops"), ebs.get("Throughput"))
    chosen = choose_encryption(
        context,
        wanted=True if snapshot is not None and snapshot.encrypted else ebs.get("Encrypted"),
        key=ebs.get("KmsKeyId"),
        source=snapshot is not None and snapshot.encrypted,
        old=snapshot.kms_key if snapshot is not None else "",
    )
    if chosen.failure:
        raise AwsError(
            "InvalidKmsKey.InvalidState", f"The key ID '{chosen.key}' is not accessible"
        )  # text from memory
    number = new_id("vol")
    volume = Volume(
        volume_id=number,
        size_gib=size,
        zone=zone,
        created=context.clock.now(),
        kind=kind,
        iops=ebs.get("Iops") or _default_iops(kind, size),
        throughput=ebs.get("Throughput") or (125 if kind == "gp3" else None),
        snapshot_id=snapshot.snapshot_id if snapshot is not None else "",
        lineage=snapshot.lineage if snapshot is not None else number,
        encrypted=chosen.encrypted,
        kms_key=chosen.key,
        tags=tags,
        blocks=snapshot.blocks if snapshot is not None else {},
    )
    context.table("volumes")[number] = volume
    return volume


def _default_iops(kind: str, size: int) -> int | None:
    if kind == "gp3":
        return 3000
    return min(max(100, 3 * size), 16000) if kind == "gp2" else None


@operation(
    "ec2",
    "CreateVolume",
    honours=(
        "AvailabilityZone",
        "ClientToken",
        "Encrypted",
        "Iops",
        "KmsKeyId",
        "Size",
        "SnapshotId",
        "TagSpecifications",
        "Throughput",
        "VolumeType",
    ),
)
def create_volume(context: Context, params: Params) -> dict[str, Any]:
    """Create an empty volume, or one with the blocks of a snapshot."""
    known = find_token_result(context, params)
    if known in context.table("volumes"):
        return volume_view(context.table("volumes")[known], context.clock)
    zone = params.get("AvailabilityZone")
    if not zone:
        raise AwsError("MissingParameter", "The request must contain the parameter AvailabilityZone")
    check_zone(context, zone)
    tags = tags_at_creation(params, "volume")["volume"]
    ebs = dict(params) | ({"VolumeSize": params["Size"]} if "Size" in params else {})
    volume = add_volume(context, ebs, zone, tags)
    record_token_result(context, params, volume.volume_id)
    return volume_view(volume, context.clock)


@operation("ec2", "DescribeVolumes", honours=("Filters", "MaxResults", "NextToken", "VolumeIds"))
def describe_volumes(context: Context, params: Params) -> dict[str, Any]:
    """Return the account's volumes in this region."""
    asked = params.get("VolumeIds") or []
    found = [find_own(context, VOLUME, i) for i in dict.fromkeys(asked)]
    kept = apply_filters(
        found if asked else context.table("volumes").values(),
        params,
        _readers(context.clock),
        operation="DescribeVolumes",
    )
    shown, token = paginate(kept, params, lambda v: v.volume_id, smallest=5, not_with="VolumeIds")
    answer: dict[str, Any] = {"Volumes": [volume_view(v, context.clock) for v in shown]}
    return answer | ({"NextToken": token} if token else {})


@operation("ec2", "DeleteVolume", honours=("VolumeId",))
def delete_volume(context: Context, params: Params) -> dict[str, Any]:
    """Delete a volume that is attached to nothing."""
    volume: Volume = find_own(context, VOLUME, params["VolumeId"])
    if volume.instance_id:
        text = f"Volume {volume.volume_id} is currently attached to {volume.instance_id}"
        raise AwsError("VolumeInUse", text)
    del context.table("volumes")[volume.volume_id]
    return {}
