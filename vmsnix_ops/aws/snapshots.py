"""Snapshots as AWS describes them, with the one field that tells why a copy failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import Client, calling

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.aws.images import Ami

AT_ONCE = 200  # values of one filter


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot.

    Attributes
    ----------
    snapshot_id, state
        ``state`` is ``"pending"``, ``"completed"`` or ``"error"``.
    percent
        Its progress.
    message
        AWS's StateMessage: why it is in ``error``.
    size_gib
        Size of a volume made from it.
    encrypted, kms_key
        Whether it is encrypted, and the ARN of the key.
    """

    snapshot_id: str
    state: str
    percent: float
    message: str
    size_gib: int
    encrypted: bool
    kms_key: str


@needs("ec2:DescribeSnapshots")
def find(ec2: Client, snapshot_ids: Iterable[str]) -> dict[str, Snapshot]:
    """Return those of these snapshots that are there, by id. What is gone is left out and no error."""
    wanted, found = list(dict.fromkeys(snapshot_ids)), {}
    with calling("look at snapshots"):
        for start in range(0, len(wanted), AT_ONCE):
            values = wanted[start : start + AT_ONCE]
            pages = ec2.get_paginator("describe_snapshots").paginate(
                Filters=[{"Name": "snapshot-id", "Values": values}]
            )
            for one in (one for page in pages for one in page["Snapshots"]):
                found[str(one["SnapshotId"])] = Snapshot(
                    snapshot_id=str(one["SnapshotId"]),
                    state=str(one.get("State", "")),
                    percent=_percent(one.get("Progress")),
                    message=str(one.get("StateMessage") or ""),
                    size_gib=int(one.get("VolumeSize") or 0),
                    encrypted=bool(one.get("Encrypted")),
                    kms_key=str(one.get("KmsKeyId") or ""),
                )
    return found


def check_whole(ec2: Client, ami: Ami) -> tuple[Snapshot, ...]:
    """Return the snapshots of an AMI that can be launched, or say what it lacks.

    Raises
    ------
    vmsnix_ops.errors.RegistrationError
        A snapshot was deleted below the AMI, or is not completed.
    """
    found = find(ec2, ami.snapshot_ids)
    gone = [snapshot_id for snapshot_id in ami.snapshot_ids if snapshot_id not in found]
    if gone or not ami.snapshot_ids:
        raise errors.RegistrationError(
            f"The AMI {ami.ami_id} in {ami.region} is half deleted.",
            why=f"Its snapshot {', '.join(gone)} is gone." if gone else "It has no snapshot.",
            cure="Deregister it, and publish the image again: nothing can be launched from it.",
        )
    bad = [one for one in found.values() if one.state != "completed"]
    if bad:
        raise errors.RegistrationError(
            f"The AMI {ami.ami_id} in {ami.region} is not ready.",
            why=f"Its snapshot {bad[0].snapshot_id} is {bad[0].state}. {bad[0].message}".strip(),
            cure="Wait until the snapshot is completed; one in error must be published again.",
            status_message=bad[0].message,
        )
    return tuple(found.values())


def _percent(text: object) -> float:
    digits = str(text or "0").rstrip("%")
    return float(digits) if digits.replace(".", "", 1).isdigit() else 0.0
