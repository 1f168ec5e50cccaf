"""Block device mappings of images and instances.

Sources: "EbsBlockDevice" of the API reference (sizes, IOPS and throughput by volume type); texts from public
transcripts where not marked otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params
from vmsnix_ops.sandbox.ec2 import checks, snapshots

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

SIZES = {
    "standard": (1, 1024),
    "gp2": (1, 16384),
    "gp3": (1, 65536),
    "io1": (4, 16384),
    "io2": (4, 65536),
    "st1": (125, 16384),
    "sc1": (125, 16384),
}
"""GiB from and to, for each volume type."""

IOPS = {"gp3": (3000, 80000), "io1": (100, 64000), "io2": (100, 256000)}
THROUGHPUT = (125, 2000)


def _error(text: str) -> AwsError:
    return AwsError("InvalidBlockDeviceMapping", text)


def check_volume(kind: str, size: int, iops: int | None, throughput: int | None) -> None:
    """Refuse a size, IOPS or throughput that the volume type does not have."""
    checks.one_of("volumeType", kind, SIZES)
    smallest, largest = SIZES[kind]
    if not smallest <= size <= largest:
        text = f"Volume of {size}GiB is invalid for volume type {kind}: between {smallest} and {largest}."
        raise AwsError("InvalidParameterValue", text)  # text from memory
    if kind in ("io1", "io2") and iops is None:
        raise AwsError("MissingParameter", f"The parameter iops must be specified for {kind} volumes.")
    if iops is not None:
        if kind not in IOPS:
            text = f"The parameter iops is not supported for {kind} volumes."
            raise AwsError("InvalidParameterCombination", text)
        if not IOPS[kind][0] <= iops <= IOPS[kind][1]:
            text = f"Volume iops of {iops} is not between {IOPS[kind][0]} and {IOPS[kind][1]}."
            raise AwsError("InvalidParameterValue", text)
    if throughput is not None:
        if kind != "gp3":
            text = f"The parameter throughput is not supported for {kind} volumes."
            raise AwsError("InvalidParameterCombination", text)
        if not THROUGHPUT[0] <= throughput <= THROUGHPUT[1]:
            text = f"Throughput of {throughput} is not between {THROUGHPUT[0]} and {THROUGHPUT[1]}."
            raise AwsError("InvalidParameterValue", text)


def of_image(context: Context, params: Params) -> list[dict[str, Any]]:
    """Return the mapping of an image that is registered, as DescribeImages shows it.

    Raises
    ------
    AwsError
        The root device has no snapshot, a snapshot is unknown or pending, a volume is smaller than its
        snapshot.
    """
    root = params.get("RootDeviceName", "/dev/sda1")
    wanted = params.get("BlockDeviceMappings") or []
    shown, seen = [], set()
    for mapping in wanted:
        device = mapping.get("DeviceName", "")
        if not device or device in seen:
            raise _error(f"The device '{device}' is used in more than one block-device mapping")
        seen.add(device)
        if "Ebs" in mapping:
            shown.append({"DeviceName": device, "Ebs": _ebs(context, mapping["Ebs"])})
        else:
            shown.append({k: v for k, v in mapping.items() if k in ("DeviceName", "VirtualName", "NoDevice")})
    if not any(m["DeviceName"] == root and "SnapshotId" in m.get("Ebs", {}) for m in shown):
        raise _error("No root snapshot specified in device mapping.")
    return shown


def _ebs(context: Context, ebs: Params) -> dict[str, Any]:
    honoured = {
        "DeleteOnTermination",
        "Encrypted",
        "Iops",
        "SnapshotId",
        "Throughput",
        "VolumeSize",
        "VolumeType",
    }
    for member in ebs:
        if member not in honoured:
            text = f"The parameter {member} is not supported in an image's block device mapping."
            raise AwsError("UnsupportedOperation", text)  # text from memory
    kind = ebs.get("VolumeType", "gp2")
    shown: dict[str, Any] = {"DeleteOnTermination": ebs.get("DeleteOnTermination", True)}
    size, encrypted = ebs.get("VolumeSize"), bool(ebs.get("Encrypted"))
    if "SnapshotId" in ebs:
        snapshot = snapshots.usable(context, ebs["SnapshotId"])
        if "Encrypted" in ebs:
            # Documented: the encryption state cannot be given with a snapshot; text from memory.
            text = "The parameter encrypted cannot be used with the parameter snapshotId."
            raise AwsError("InvalidParameterCombination", text)
        size = snapshot.size_gib if size is None else size
        encrypted = snapshot.encrypted
        check_fits(size, snapshot.snapshot_id, snapshot.size_gib)
        shown["SnapshotId"] = snapshot.snapshot_id
    if size is None:
        raise AwsError("MissingParameter", "Either a snapshot ID or a volume size must be specified.")
    check_volume(kind, size, ebs.get("Iops"), ebs.get("Throughput"))
    shown |= {"VolumeSize": size, "VolumeType": kind, "Encrypted": encrypted}
    return shown | {k: ebs[k] for k in ("Iops", "Throughput") if k in ebs}


def check_fits(size: int, snapshot_id: str, snapshot_gib: int) -> None:
    """Refuse a volume that is smaller than the snapshot that it starts from."""
    if size < snapshot_gib:
        raise _error(
            f"Volume of size {size}GB is smaller than snapshot '{snapshot_id}', "
            f"expect size >= {snapshot_gib}GB"
        )
