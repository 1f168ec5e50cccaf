"""Manifests of snapshots, beside the tables: the SHA-256 of each block that a snapshot contains.

With the manifest of the previous image, an upload sends only what differs, and reads nothing back.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import denied_action, needs
from vmsnix_ops.aws.session import calling
from vmsnix_ops.disk.digests import Digests
from vmsnix_ops.disk.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from types_boto3_ebs.client import EBSClient
    from types_boto3_ebs.type_defs import (
        ListSnapshotBlocksRequestTypeDef,
        ListSnapshotBlocksResponseTypeDef,
    )
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import FilterTypeDef, SnapshotTypeDef

    from vmsnix_ops.records.tables import Tables

CANDIDATES = 5  # previous snapshots that are looked at, newest first
PAGE = 10_000
_NOTHING = Digests()


@dataclass(frozen=True, slots=True)
class Parent:
    """The snapshot that an incremental upload starts from.

    Attributes
    ----------
    snapshot_id
        Such as ``snap-0123456789abcdef0``; empty when there is none to start from.
    blocks
        Every block that it contains.
    why
        Why there is none, for the operator.
    """

    snapshot_id: str = ""
    blocks: Digests = field(default_factory=Digests, repr=False)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """The blocks that AWS lists of a snapshot.

    Attributes
    ----------
    size_gib
        Size of a volume made from it.
    tokens
        Index to block token; tokens are good for seven days.
    """

    size_gib: int
    tokens: Mapping[int, str]


def save(tables: Tables, manifest: Manifest) -> None:
    """Write the manifest of a snapshot beside the tables. Safe to run twice."""
    tables.write_object(_name(manifest.snapshot_id), manifest.dump())


def read(tables: Tables, snapshot_id: str) -> Manifest | None:
    """Return the manifest of a snapshot; ``None`` when none was written.

    Raises
    ------
    vmsnix_ops.errors.RecordsError
        It cannot be read, is damaged, belongs to another snapshot, or its blocks have another identity.
    """
    content = tables.read_object(_name(snapshot_id))
    if content is None:
        return None
    found = Manifest.load(content, snapshot_id=snapshot_id)
    found.check_identity()
    return found


def load(tables: Tables, snapshot_id: str) -> Digests:
    """Return the blocks of a snapshot; none when it has no manifest or the manifest cannot be used."""
    try:
        found = read(tables, snapshot_id)
    except errors.RecordsError:
        return _NOTHING  # the upload is a full one
    return found.blocks if found is not None else _NOTHING


def _name(snapshot_id: str) -> str:
    return f"manifests/{snapshot_id}"


@needs(
    "ec2:DescribeSnapshots",
    "ec2:GetEbsEncryptionByDefault",
    "ec2:GetEbsDefaultKmsKeyId",
    "ebs:ListSnapshotBlocks",
    "ebs:StartSnapshot with a parent",
)
def choose_parent(
    ec2: EC2Client, ebs: EBSClient, tables: Tables, *, image: str, size_gib: int, kms_key: str = ""
) -> Parent:
    """Return the snapshot of the same image to start from, or why a full upload is needed.

    A parent must be completed, ours, in this region, no larger than the new one, and contain exactly the
    blocks of its manifest: a manifest that is wrong by one block would make a wrong image. It must be
    encrypted as the new snapshot is to be: a child gets its parent's key, and StartSnapshot takes no other.

    Parameters
    ----------
    ec2, ebs
        Clients of the region.
    tables
        Where manifests are kept.
    image
        Name of the image (the tag ``vmsnix:image``).
    size_gib
        Volume size of the new snapshot.
    kms_key
        ARN of the key that is to encrypt it; empty: as the account encrypts by default.
    """
    filters: list[FilterTypeDef] = [
        {"Name": f"tag:{tagging.IMAGE}", "Values": [image]},
        {"Name": "status", "Values": ["completed"]},
    ]
    with calling("find an earlier snapshot of this image"):
        pages = ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], Filters=filters)
        found = [snapshot for page in pages for snapshot in page["Snapshots"]]
        key = kms_key or default_key(ec2)
    found.sort(key=lambda snapshot: (snapshot["StartTime"], snapshot["SnapshotId"]), reverse=True)
    if not found:
        return Parent(why=f"there is no earlier snapshot of {image} in this region and account")
    why = ""
    for snapshot in found[:CANDIDATES]:
        blocks, reason = _usable(ebs, tables, snapshot, size_gib=size_gib, key=key)
        if blocks:
            return Parent(snapshot["SnapshotId"], blocks)
        why = why or f"{snapshot['SnapshotId']} {reason}"
    return Parent(why=why)


def default_key(ec2: EC2Client) -> str:
    """Return the key of new snapshots, an ARN or ``alias/aws/ebs``; empty when they are not encrypted."""
    if not ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"]:
        return ""
    return ec2.get_ebs_default_kms_key_id()["KmsKeyId"]


def listed(ebs: EBSClient, snapshot_id: str) -> Listed:
    """Return the blocks that AWS lists of a snapshot.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        There is no such completed snapshot, or the caller may not read it.
    """
    size_gib, tokens = 0, dict[int, str]()
    for page in pages(ebs, snapshot_id):
        size_gib = page["VolumeSize"]
        tokens.update((block["BlockIndex"], block["BlockToken"]) for block in page["Blocks"])
    return Listed(size_gib, tokens)


@needs("ebs:ListSnapshotBlocks")
def indices(ebs: EBSClient, snapshot_id: str) -> array[int]:
    """Return the indices of the blocks that AWS lists of a snapshot, ascending."""
    return array("I", (block["BlockIndex"] for page in pages(ebs, snapshot_id) for block in page["Blocks"]))


def pages(ebs: EBSClient, snapshot_id: str, *, start: int = 0) -> Iterator[ListSnapshotBlocksResponseTypeDef]:
    """Yield what AWS lists of the blocks of a snapshot from an index on, page by page, ascending."""
    request: ListSnapshotBlocksRequestTypeDef = {
        "SnapshotId": snapshot_id,
        "MaxResults": PAGE,
        "StartingBlockIndex": start,
    }
    with calling(f"list the blocks of {snapshot_id}"):
        while True:
            answer = ebs.list_snapshot_blocks(**request)
            yield answer
            if not answer.get("NextToken"):
                return
            request["NextToken"] = answer["NextToken"]


def _usable(
    ebs: EBSClient, tables: Tables, snapshot: SnapshotTypeDef, *, size_gib: int, key: str
) -> tuple[Digests, str]:
    """Return the manifest, or an empty one and the reason why this snapshot will not do."""
    if snapshot["VolumeSize"] > size_gib:
        return _NOTHING, f"is larger ({snapshot['VolumeSize']} GiB) than the new image ({size_gib} GiB)"
    if bool(snapshot.get("Encrypted")) != bool(key):
        return (
            Digests(),
            "is not encrypted, but the new snapshot is to be"
            if key
            else "is encrypted, but new ones are not",
        )
    # EC2 does not show which key an alias is; a snapshot that was started with this alias has it in a tag.
    if key and "alias/" in key and tagging.to_dict(snapshot.get("Tags")).get(tagging.KEY) != key:
        return _NOTHING, f"is encrypted with {snapshot.get('KmsKeyId')}, which may differ from {key}"
    if key and "alias/" not in key and _key_id(snapshot.get("KmsKeyId") or "") != _key_id(key):
        return _NOTHING, "is encrypted with another key than the new snapshot"
    if snapshots.parse_snapshot(snapshot).archived:
        return _NOTHING, "is in the archive tier"
    blocks = load(tables, snapshot["SnapshotId"])
    if not blocks:
        return _NOTHING, "has no manifest beside the tables, or it cannot be used"
    try:
        there = indices(ebs, snapshot["SnapshotId"])
    except errors.AwsError as error:
        lacking = denied_action(error.why, error.operation)
        return (
            Digests(),
            f"cannot be listed ({f'{lacking} is not allowed' if lacking else error.code or error.why})",
        )
    if len(there) != len(blocks) or any(index not in blocks for index in there):
        return _NOTHING, f"contains other blocks ({len(there)}) than its manifest ({len(blocks)})"
    return blocks, ""


def _key_id(arn: str) -> str:
    """Return the last part of a key's ARN, because EC2 does not always name the whole of it."""
    return arn.rpartition("/")[2]
