"""The blocks of snapshots: manifests beside the tables, and the lists of AWS.

A manifest has the SHA-256 of each block of a snapshot. With the manifest of the parent snapshot, an upload
sends only the blocks that differ.
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
from vmsnix_ops.disk.identity import identity_of
from vmsnix_ops.disk.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from types_boto3_ebs.client import EBSClient
    from types_boto3_ebs.type_defs import ListSnapshotBlocksRequestTypeDef, ListSnapshotBlocksResponseTypeDef
    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import FilterTypeDef

    from vmsnix_ops.aws.snapshots import Snapshot
    from vmsnix_ops.records.tables import Tables

CANDIDATES = 5  # earlier snapshots that are checked, newest first
PAGE = 10_000
_NOTHING = Digests()


@dataclass(frozen=True, slots=True)
class Parent:
    """The parent of an incremental upload."""

    snapshot_id: str = ""  # ID of the snapshot; empty for a full upload
    blocks: Digests = field(default_factory=Digests, repr=False)  # all blocks of the snapshot
    why: str = ""
    identity: str = ""  # identity of its disk


@dataclass(frozen=True, slots=True)
class BlockList:
    """AWS's list of the blocks of a snapshot."""

    size_gib: int  # volume size of the snapshot
    tokens: Mapping[int, str]  # block tokens by index; valid for seven days


def save(tables: Tables, manifest: Manifest) -> None:
    """Write the manifest of a snapshot beside the tables. Safe to run twice."""
    tables.write_object(_name(manifest.snapshot_id), manifest.dump())


def read(tables: Tables, snapshot_id: str) -> Manifest | None:
    """Return the manifest of a snapshot, or ``None`` if there is none.

    A manifest that is damaged, belongs to another snapshot, or has another identity is a RecordsError.
    """
    content = tables.read_object(_name(snapshot_id))
    if content is None:
        return None
    found = Manifest.load(content, snapshot_id=snapshot_id)
    found.check_identity()
    return found


def load(tables: Tables, snapshot_id: str, *, identity: str | None = None) -> Digests:
    """Return the blocks in the manifest of a snapshot; none without a valid one of this identity."""
    try:
        found = read(tables, snapshot_id)
    except errors.RecordsError:
        return _NOTHING
    if found is None or identity not in (None, found.identity):
        return _NOTHING
    return found.blocks


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
    """Return the parent for a new snapshot of an image, or the reason for a full upload.

    A parent is a completed snapshot of this account and region. It is not larger than the new snapshot, has
    the same encryption (a child gets its parent's key), and contains exactly the blocks of its manifest. The
    manifest must have the identity in the snapshot's tag: who may write tables may not set this tag.
    """
    filters: list[FilterTypeDef] = [
        {"Name": f"tag:{tagging.IMAGE}", "Values": [image]},
        {"Name": "status", "Values": ["completed"]},
    ]
    with calling("find an earlier snapshot of this image"):
        pages = ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], Filters=filters)
        found = [snapshots.parse_snapshot(one) for page in pages for one in page["Snapshots"]]
        key = kms_key or default_key(ec2)
    found.sort(key=lambda snapshot: (snapshot.created_at, snapshot.snapshot_id), reverse=True)
    if not found:
        return Parent(why=f"there is no earlier snapshot of {image} in this region and account")
    why = ""
    for snapshot in found[:CANDIDATES]:
        blocks, reason = _usable(ebs, tables, snapshot, size_gib=size_gib, key=key)
        if blocks:
            return Parent(snapshot.snapshot_id, blocks, identity=snapshot.tags.get(tagging.DIGEST, ""))
        why = why or f"{snapshot.snapshot_id} {reason}"
    return Parent(why=why)


def default_key(ec2: EC2Client) -> str:
    """Return the account's key for new snapshots, an ARN or ``alias/aws/ebs``; empty without encryption."""
    if not ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"]:
        return ""
    return ec2.get_ebs_default_kms_key_id()["KmsKeyId"]


def list_blocks(ebs: EBSClient, snapshot_id: str) -> BlockList:
    """Return AWS's list of the blocks of a completed snapshot."""
    size_gib, tokens = 0, dict[int, str]()
    for page in list_pages(ebs, snapshot_id):
        size_gib = page["VolumeSize"]
        tokens.update((block["BlockIndex"], block["BlockToken"]) for block in page["Blocks"])
    return BlockList(size_gib, tokens)


@needs("ebs:ListSnapshotBlocks")
def list_indices(ebs: EBSClient, snapshot_id: str) -> array[int]:
    """Return the indices of the blocks of a snapshot, ascending."""
    return array(
        "I", (block["BlockIndex"] for page in list_pages(ebs, snapshot_id) for block in page["Blocks"])
    )


def list_pages(
    ebs: EBSClient, snapshot_id: str, *, start: int = 0
) -> Iterator[ListSnapshotBlocksResponseTypeDef]:
    """Yield the pages of AWS's list of the blocks of a snapshot, ascending from the index `start`."""
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
    ebs: EBSClient, tables: Tables, snapshot: Snapshot, *, size_gib: int, key: str
) -> tuple[Digests, str]:
    """Return the blocks of a candidate for the parent, or no blocks and the reason."""
    if snapshot.size_gib > size_gib:
        return _NOTHING, f"is larger ({snapshot.size_gib} GiB) than the new image ({size_gib} GiB)"
    if snapshot.encrypted != bool(key):
        return _NOTHING, (
            "is not encrypted, but the new snapshot will be" if key else "is encrypted, but new ones are not"
        )
    # EC2 does not report the key of an alias. A snapshot that was started with this alias has it in a tag.
    if key and "alias/" in key and snapshot.tags.get(tagging.KEY) != key:
        return _NOTHING, f"is encrypted with {snapshot.kms_key}, which may differ from {key}"
    if key and "alias/" not in key and _key_id(snapshot.kms_key) != _key_id(key):
        return _NOTHING, "is encrypted with another key than the new snapshot"
    if snapshot.archived:
        return _NOTHING, "is in the archive tier"
    blocks = load(tables, snapshot.snapshot_id)
    if not blocks:
        return _NOTHING, "has no manifest beside the tables, or it cannot be used"
    try:
        there = list_indices(ebs, snapshot.snapshot_id)
    except errors.AwsError as error:
        denied = denied_action(error.why, error.operation)
        reason = f"{denied} is not allowed" if denied else error.code or error.why
        return _NOTHING, f"cannot be listed ({reason})"
    if len(there) != len(blocks) or any(index not in blocks for index in there):
        return _NOTHING, f"contains other blocks ({len(there)}) than its manifest ({len(blocks)})"
    if identity_of(blocks.raw()) != snapshot.tags.get(tagging.DIGEST, ""):
        return _NOTHING, "has another identity in its tag than in its manifest"
    return blocks, ""


def _key_id(arn: str) -> str:
    """Return the ID in a key's ARN, because EC2 does not always report the whole ARN."""
    return arn.rpartition("/")[2]
