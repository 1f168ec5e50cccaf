"""CreateVolume, DescribeVolumes, DeleteVolume: as far as snapshots and instances need them.

Source: the reference pages of the operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import common, encryption, images, places, snapshots
from vmsnix_ops.sandbox.ec2.filters import Reader, one, page, select
from vmsnix_ops.sandbox.ec2.state import Volume
from vmsnix_ops.sandbox.ec2.tags import at_creation, tag_list

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


def _attached(field: str) -> Reader:
    return lambda volume: one(_attachment(volume)[field]) if volume.instance_id else []


def _readers(clock: Clock) -> dict[str, Reader]:
    return {
        "attachment.attach-time": _attached("AttachTime"),
        "attachment.delete-on-termination": _attached("DeleteOnTermination"),
        "attachment.device": _attached("Device"),
        "attachment.instance-id": _attached("InstanceId"),
        "attachment.status": _attached("State"),
        "availability-zone": lambda v: [v.zone],
        "create-time": lambda v: [v.created.isoformat(timespec="milliseconds").replace("+00:00", "Z")],
        "encrypted": lambda v: [v.encrypted],
        "fast-restored": lambda _v: [False],
        "multi-attach-enabled": lambda _v: [False],
        "size": lambda v: [v.size_gib],
        "snapshot-id": lambda v: one(v.snapshot_id),
        "status": lambda v: [v.state(clock)],
        "volume-id": lambda v: [v.volume_id],
        "volume-type": lambda v: [v.kind],
    }


def make_volume(
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
        snapshot = snapshots.usable(context, ebs["SnapshotId"], shared=through_image)
        size = snapshot.size_gib if size is None else size
        images.check_fits(size, snapshot.snapshot_id, snapshot.size_gib)
    if size is None:
        raise AwsError("MissingParameter", "The request must contain the parameter size/snapshot")
    kind = ebs.get("VolumeType", "gp2")
    images.check_volume(kind, size, ebs.get("Iops"), ebs.get("Throughput"))
    chosen = encryption.choose(
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
    number = common.new_id("vol")
    volume = Volume(
        volume_id=number,
        size_gib=size,
        zone=zone,
        created=context.clock.now(),
        kind=kind,
        iops=ebs.get("Iops") or _usual_iops(kind, size),
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


def _usual_iops(kind: str, size: int) -> int | None:
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
    known = common.earlier(context, params)
    if known in context.table("volumes"):
        return volume_view(context.table("volumes")[known], context.clock)
    zone = params.get("AvailabilityZone")
    if not zone:
        raise AwsError("MissingParameter", "The request must contain the parameter AvailabilityZone")
    places.check_zone(context, zone)
    tags = at_creation(params, "volume")["volume"]
    ebs = dict(params) | ({"VolumeSize": params["Size"]} if "Size" in params else {})
    volume = make_volume(context, ebs, zone, tags)
    common.remember(context, params, volume.volume_id)
    return volume_view(volume, context.clock)


@operation("ec2", "DescribeVolumes", honours=("Filters", "MaxResults", "NextToken", "VolumeIds"))
def describe_volumes(context: Context, params: Params) -> dict[str, Any]:
    """Return the account's volumes in this region."""
    asked = params.get("VolumeIds") or []
    found = [common.find_own(context, common.VOLUME, i) for i in dict.fromkeys(asked)]
    kept = select(
        found if asked else context.table("volumes").values(),
        params,
        _readers(context.clock),
        operation="DescribeVolumes",
    )
    shown, token = page(kept, params, lambda v: v.volume_id, smallest=5, not_with="VolumeIds")
    answer: dict[str, Any] = {"Volumes": [volume_view(v, context.clock) for v in shown]}
    return answer | ({"NextToken": token} if token else {})


@operation("ec2", "DeleteVolume", honours=("VolumeId",))
def delete_volume(context: Context, params: Params) -> dict[str, Any]:
    """Delete a volume that is attached to nothing."""
    volume: Volume = common.find_own(context, common.VOLUME, params["VolumeId"])
    if volume.instance_id:
        text = f"Volume {volume.volume_id} is currently attached to {volume.instance_id}"
        raise AwsError("VolumeInUse", text)
    del context.table("volumes")[volume.volume_id]
    return {}
