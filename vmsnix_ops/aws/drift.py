"""Compare AMIs with their records, field by field, for verifications and audits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.aws import parameters, sharing
from vmsnix_ops.aws import tags as tagging

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ssm.client import SSMClient

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.aws.snapshots import Snapshot

MEASURED = ("root_hash", "uki_sha384", "pcr4_sha384", "pcr12_sha384")
"""Fields that are computed from the bytes of an attested AMI's snapshot."""

MEANINGS = {
    "ami": "it was deregistered: launches that reference it fail",
    "state": "only an available AMI can be launched",
    "name": "another AMI has this ID: the tables are of another account",
    "description": "its description was changed",
    **dict.fromkeys(
        ("architecture", "boot_mode", "root_device", "size_gib", "ena_support", "tpm_support"),
        "it was registered again outside vmsnix",
    ),
    "imds_support": "instances may accept requests without a session token",
    "public": "public access was granted or removed",
    "snapshot": "the AMI has no snapshot, or another one",
    "snapshot_state": "an AMI cannot be launched if its snapshot is missing or unfinished",
    "shared_with": "launch permissions were added or removed",
    "snapshots_shared_with": "snapshot permissions were added or removed",
    "deprecated_at": "its deprecation date is not the recorded one",
    "protected": "its deregistration protection was turned on or off",
    "encrypted": "its encryption is not the recorded one",
    "kms_key": "it is encrypted with another key",
    "channel": "launches use another AMI than the promoted one",
    **dict.fromkeys(MEASURED, "the snapshot has other bytes than were published; key policies refuse it"),
    "access": "unknown: this could not be read",
}
"""What a difference means, for each field; the field of a tag is ``tag`` and its key."""

SNAPSHOT_DIGEST = f"snapshot tag {tagging.DIGEST}"

PROMOTED_FIELDS = (
    "public",
    "shared_with",
    "snapshots_shared_with",
    "deprecated_at",
    "protected",
    "encrypted",
    "kms_key",
    "channel",
)
"""Fields that a promotion sets and records. Other fields are recorded by the publish and by a sync."""

UNFIXABLE_FIELDS = ("ami", "snapshot", "snapshot_state", *MEASURED)
"""Fields that neither a promotion nor a tag can correct."""

PUBLIC_DAYS = timedelta(days=2 * 365)  # AWS deprecates a public AMI two years after its creation

REGISTERED = (
    "state",
    "name",
    "description",
    "architecture",
    "boot_mode",
    "root_device",
    "size_gib",
    "ena_support",
    "tpm_support",
    "imds_support",
    "public",
)
"""Fields of the registration, which are attributes of an `Ami`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A field whose value differs from the record."""

    field: str
    recorded: str
    found: str


def meaning(field: str) -> str:
    """Return what a difference in the field means."""
    if field == SNAPSHOT_DIGEST:
        return "our policies do not allow sharing or deleting a snapshot without it"
    if field == f"tag {tagging.NAME}":
        return "it cannot be found by its name"
    return "vmsnix uses this tag to find it" if field.startswith("tag ") else MEANINGS[field]


def compare_registration(
    row: Mapping[str, Any], ami: Ami | None, snapshots: Mapping[str, Snapshot]
) -> Iterator[Difference]:
    """Compare an AMI's registration, tags and snapshots."""
    if ami is None:
        yield Difference("ami", str(row.get("state", "exists")), "deleted")
        return
    for name in REGISTERED:
        if row.get(name) is not None:
            yield from _compare(name, row[name], getattr(ami, name))
    if row.get("snapshot_id") is not None:
        yield from _compare("snapshot", row["snapshot_id"], next(iter(ami.snapshot_ids), ""))
    for snapshot_id in ami.snapshot_ids:
        state = snapshots[snapshot_id].state if snapshot_id in snapshots else "deleted"
        yield from _compare("snapshot_state", "completed", state)
        if snapshot_id in snapshots and row.get("digest"):
            yield from _compare(
                SNAPSHOT_DIGEST, row["digest"], snapshots[snapshot_id].tags.get(tagging.DIGEST, "")
            )
    tags = json.loads(row.get("tags") or "{}")
    for key, value in tags.items():
        yield from _compare(f"tag {key}", value, ami.tags.get(key, ""))


def compare_deprecation(row: Mapping[str, Any], ami: Ami) -> Iterator[Difference]:
    """Compare the deprecation date."""
    if "deprecated_at" in row and not _deprecated_by_aws(row, ami):
        yield from _compare("deprecated_at", _minute(row["deprecated_at"]), _minute(ami.deprecated_at))


def compare_promotion(
    ec2: EC2Client, row: Mapping[str, Any], ami: Ami | None, snapshots: Mapping[str, Snapshot]
) -> Iterator[Difference]:
    """Compare what a promotion sets: deprecation, protection, audiences and encryption."""
    if ami is None:
        return
    yield from compare_deprecation(row, ami)
    if "protected" in row:
        yield from _compare("protected", row["protected"], ami.protection.startswith("enabled"))
    who = sharing.read_launch_permissions(ec2, ami.ami_id).names()
    yield from _compare("shared_with", *_audience_texts(row["shared_with"], who, but=sharing.PUBLIC))
    own = [snapshots[snapshot_id] for snapshot_id in ami.snapshot_ids if snapshot_id in snapshots]
    if not own or len(own) < len(ami.snapshot_ids):
        return  # `compare_registration` reports the missing snapshot
    if "encrypted" in row:
        yield from _compare("encrypted", row["encrypted"], all(one.encrypted for one in own))
    if "kms_key" in row:
        yield from _compare("kms_key", row["kms_key"], own[0].kms_key)
    users = {name for one in own for name in sharing.read_snapshot_permissions(ec2, one.snapshot_id).names()}
    yield from _compare("snapshots_shared_with", *_audience_texts(row["snapshots_shared_with"], users))


def compare_channels(ssm: SSMClient, row: Mapping[str, Any]) -> Iterator[Difference]:
    """Compare the values of the channels that were last set to the AMI."""
    for name in row["channel_parameters"]:
        parameter = parameters.find_parameter(ssm, name)
        found = parameter.value if parameter else "nothing"
        if parameter and parameter.data_type != parameters.IMAGE_TYPE:
            found += f" ({parameter.data_type})"
        if found != row["ami_id"]:
            yield Difference("channel", f"{name} is {row['ami_id']}", found)


def _compare(field: str, recorded: Any, found: Any) -> Iterator[Difference]:
    if _plain(recorded) != _plain(found):
        yield Difference(field, _plain(recorded), _plain(found))


def _plain(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    return "" if value is None else str(value)


def _minute(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if moment is not None else ""


def _deprecated_by_aws(row: Mapping[str, Any], ami: Ami) -> bool:
    """Return whether AWS set the deprecation date of a public AMI, so that no record has it."""
    if row["deprecated_at"] is not None or ami.deprecated_at is None or not ami.public:
        return False
    return abs(ami.deprecated_at - ami.created_at - PUBLIC_DAYS) <= timedelta(days=2)  # leap days


def _audience_texts(recorded: Iterable[str], found: Iterable[str], *, but: str = "") -> tuple[str, str]:
    """Return two audiences as text, without the member `but`, which another field compares."""
    texts = [", ".join(sorted({name for name in names if name != but})) for names in (recorded, found)]
    return texts[0], texts[1]
