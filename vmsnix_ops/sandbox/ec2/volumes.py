"""Volumes: create, describe, delete. Source: the reference pages of the operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, operation, tags_member
from vmsnix_ops.sandbox.ec2.common import (
    VOLUME,
    find_own,
    find_own_or_all,
    find_token_result,
    missing_parameter,
    new_id,
    record_token_result,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.encryption import choose_encryption, key_not_accessible
from vmsnix_ops.sandbox.ec2.filters import Filters, by_name, describe
from vmsnix_ops.sandbox.ec2.images import check_volume_size, check_volume_type
from vmsnix_ops.sandbox.ec2.resources import Volume
from vmsnix_ops.sandbox.ec2.snapshots import find_usable_snapshot
from vmsnix_ops.sandbox.ec2.zones import check_zone

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.resources import EmulatedInstance


def volume_view(context: Context, volume: Volume) -> dict[str, Any]:
    """Return a volume as DescribeVolumes shows it."""
    view: dict[str, Any] = {
        "VolumeId": volume.volume_id,
        "Size": volume.size_gib,
        "SnapshotId": volume.snapshot_id,
        "AvailabilityZone": volume.zone,
        "State": volume.state(context.clock),
        "CreateTime": volume.created,
        "VolumeType": volume.volume_type,
        "Encrypted": volume.encrypted,
        "MultiAttachEnabled": False,
        "Attachments": [_attachment(volume)] if volume.instance_id else [],
    }
    optional = {"Iops": volume.iops, "Throughput": volume.throughput, "KmsKeyId": volume.kms_key}
    return view | {name: value for name, value in optional.items() if value} | tags_member(volume.tags)


def volumes_of(context: Context, instance: EmulatedInstance) -> list[Volume]:
    """Return the attached volumes of an instance."""
    volumes = context.table("volumes").values()
    return [volume for volume in volumes if volume.instance_id == instance.instance_id]


def _attachment(volume: Volume) -> dict[str, Any]:
    return {
        "VolumeId": volume.volume_id,
        "InstanceId": volume.instance_id,
        "Device": volume.device,
        "State": "attached",
        "AttachTime": volume.attached,
        "DeleteOnTermination": volume.delete_on_termination,
    }


VOLUME_FILTERS: Filters = by_name(
    "availability-zone create-time encrypted multi-attach-enabled size snapshot-id volume-id volume-type"
) | {
    "attachment.attach-time": "Attachments.AttachTime",
    "attachment.delete-on-termination": "Attachments.DeleteOnTermination",
    "attachment.device": "Attachments.Device",
    "attachment.instance-id": "Attachments.InstanceId",
    "attachment.status": "Attachments.State",
    "fast-restored": lambda _volume: [False],
    "status": "State",
}


def add_volume(
    context: Context, ebs: Params, zone: str, tags: dict[str, str], *, through_image: bool = False
) -> Volume:
    """Create a volume of an ``Ebs`` structure or a CreateVolume request.

    Parameters
    ----------
    through_image
        Whether the snapshot is that of a launched image. It then need not be shared with the account.

    Raises
    ------
    ApiError
        Snapshot and size are missing, the snapshot cannot be used, the size is smaller than the snapshot's,
        or IOPS are out of range.
    """
    size, snapshot = ebs.get("VolumeSize"), None
    if ebs.get("SnapshotId"):
        snapshot = find_usable_snapshot(context, ebs["SnapshotId"], shared=through_image)
        size = snapshot.size_gib if size is None else size
        check_volume_size(size, snapshot.snapshot_id, snapshot.size_gib)
    if size is None:
        raise missing_parameter("size/snapshot")
    kind = ebs.get("VolumeType", "gp2")
    check_volume_type(kind, size, ebs.get("Iops"), ebs.get("Throughput"))
    encrypted = snapshot is not None and snapshot.encrypted
    chosen = choose_encryption(
        context,
        wanted=encrypted or ebs.get("Encrypted"),
        key=ebs.get("KmsKeyId"),
        source=encrypted,
        source_key=snapshot.kms_key if snapshot is not None else "",
    )
    if chosen.failure:
        raise key_not_accessible(chosen.key)
    volume_id = new_id("vol")
    volume = Volume(
        volume_id=volume_id,
        size_gib=size,
        zone=zone,
        created=context.clock.now(),
        volume_type=kind,
        iops=ebs.get("Iops") or _default_iops(kind, size),
        throughput=ebs.get("Throughput") or (125 if kind == "gp3" else None),
        snapshot_id=snapshot.snapshot_id if snapshot is not None else "",
        lineage=snapshot.lineage if snapshot is not None else volume_id,
        encrypted=chosen.encrypted,
        kms_key=chosen.key,
        tags=tags,
        blocks=snapshot.blocks if snapshot is not None else {},
    )
    context.table("volumes")[volume_id] = volume
    return volume


def _default_iops(kind: str, size: int) -> int | None:
    if kind == "gp3":
        return 3000
    return min(max(100, 3 * size), 16000) if kind == "gp2" else None


@operation(
    "ec2",
    "CreateVolume",
    "AvailabilityZone ClientToken Encrypted Iops KmsKeyId Size SnapshotId TagSpecifications Throughput",
    "VolumeType",
)
def create_volume(context: Context, params: Params) -> dict[str, Any]:
    """Create an empty volume, or one with the blocks of a snapshot."""
    earlier = find_token_result(context, params)
    if earlier in context.table("volumes"):
        return volume_view(context, context.table("volumes")[earlier])
    zone = params.get("AvailabilityZone")
    if not zone:
        raise missing_parameter("AvailabilityZone")
    check_zone(context, zone)
    tags = tags_at_creation(params, "volume")["volume"]
    ebs = dict(params) | ({"VolumeSize": params["Size"]} if "Size" in params else {})
    volume = add_volume(context, ebs, zone, tags)
    record_token_result(context, params, volume.volume_id)
    return volume_view(context, volume)


@operation("ec2", "DescribeVolumes", "Filters MaxResults NextToken VolumeIds")
def describe_volumes(context: Context, params: Params) -> dict[str, Any]:
    """Return the account's volumes in this region."""
    volumes = find_own_or_all(context, VOLUME, params.get("VolumeIds"))
    return describe(context, params, volumes, volume_view, filters=VOLUME_FILTERS, key="volume_id")


@operation("ec2", "DeleteVolume", "VolumeId")
def delete_volume(context: Context, params: Params) -> dict[str, Any]:
    """Delete a volume that is not attached."""
    volume: Volume = find_own(context, VOLUME, params["VolumeId"])
    if volume.instance_id:
        text = f"Volume {volume.volume_id} is currently attached to {volume.instance_id}"
        raise ApiError("VolumeInUse", text)
    del context.table("volumes")[volume.volume_id]
    return {}
