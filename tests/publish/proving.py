"""AMIs made block by block, their records, and proofs of them. It shares no code with the package."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import wait_until
from vmsnix_ops import prove
from vmsnix_ops.progress import silent
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.sandbox import Sandbox

HOME, WEST = "us-east-1", "us-west-2"
BLOCK = 524_288
Disk = dict[int, bytes]


def block(number: int) -> bytes:
    """Return a unique block."""
    return hashlib.shake_128(f"block {number}".encode()).digest(BLOCK)


def disk() -> Disk:
    """Return a disk of 12 blocks in two runs, one of them all zeros."""
    return {**{index: block(index) for index in (*range(8), 1000, 1001, 1002)}, 8: bytes(BLOCK)}


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def identity(blocks: Mapping[int, bytes]) -> str:
    """Return the identity as docs/reference/identity.md defines it."""
    parts = [
        index.to_bytes(8, "big") + sha(data) for index, data in sorted(blocks.items()) if data.strip(b"\0")
    ]
    return sha(b"vmsnix-disk-v1\n" + b"".join(parts)).hex()


@dataclass
class Account:
    """An AWS account, with the tables and the archive of vmsnix."""

    aws: Sandbox
    names: int = field(default=0)

    def client(self, service: str, region: str = HOME) -> Any:
        return self.aws.client(service, region)

    def snapshot(
        self, blocks: Mapping[int, bytes], *, region: str = HOME, size: int = 1, tag: str = "", **more: Any
    ) -> str:
        """Write a snapshot and return its ID."""
        ebs, tags = self.client("ebs", region), [{"Key": "vmsnix:digest", "Value": tag}] if tag else []
        started: str = ebs.start_snapshot(VolumeSize=size, Tags=tags, Timeout=4320, **more)["SnapshotId"]
        for index, data in blocks.items():
            ebs.put_snapshot_block(
                SnapshotId=started,
                BlockIndex=index,
                BlockData=data,
                DataLength=BLOCK,
                Checksum=base64.b64encode(sha(data)).decode(),
                ChecksumAlgorithm="SHA256",
            )
        ebs.complete_snapshot(SnapshotId=started, ChangedBlocksCount=len(blocks))
        ec2 = self.client("ec2", region)
        wait_until(
            lambda: ec2.describe_snapshots(SnapshotIds=[started])["Snapshots"][0]["State"] == "completed",
            "the snapshot",
        )
        return started

    def ami(
        self,
        snapshot: str,
        *,
        region: str = HOME,
        tag: str = "",
        root: str = "/dev/xvda",
        others: Mapping[str, str] | None = None,
    ) -> str:
        """Register an AMI and return its ID."""
        self.names += 1
        disks = {root: snapshot, **(others or {})}
        tags = [{"Key": "vmsnix:digest", "Value": tag}] if tag else []
        registered: str = self.client("ec2", region).register_image(
            Name=f"image-{self.names}",
            Architecture="x86_64",
            VirtualizationType="hvm",
            RootDeviceName=root,
            BlockDeviceMappings=[
                {"DeviceName": device, "Ebs": {"SnapshotId": one}} for device, one in disks.items()
            ],
            **({"TagSpecifications": [{"ResourceType": "image", "Tags": tags}]} if tags else {}),
        )["ImageId"]
        return registered

    def published(self, blocks: Mapping[int, bytes] | None = None, **more: Any) -> str:
        """Publish an AMI as vmsnix does: tags, tables and the archived result; return its ID."""
        blocks = disk() if blocks is None else blocks
        mine = identity(blocks)
        snapshot = self.snapshot(blocks, tag=mine, **more)
        ami = self.ami(snapshot, tag=mine)
        self.record(ami, mine, snapshot)
        return ami

    def record(self, ami: str, mine: str, snapshot: str = "", *, region: str = HOME, **result: Any) -> str:
        """Record a publish in tables and archive; return the run's ID."""
        run_id = new_run_id("publish-ami")
        row = {
            "ami_id": ami,
            "name": "image-1",
            "region": region,
            "digest": mine,
            "snapshot_id": snapshot or None,
            "run_id": run_id,
            "recorded_at": datetime.now(UTC),
            "source": "publish",
        }
        open_tables(load()).append("amis", [row])
        self.archive(run_id, {"ami_id": ami, "digest": mine, **result})
        return run_id

    def archive(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Put a ``result.json`` into the archive."""
        folder = Path(load().archive) / run_id
        folder.mkdir(parents=True)
        usual = {"run_id": run_id, "runbook": "publish-ami", "status": "done", "via": "direct"}
        (folder / "result.json").write_text(json.dumps({**usual, **values}))

    def copied(self, ami: str, to: str = WEST, **more: Any) -> str:
        """Copy an AMI to a region as a person does, and return the copy's ID when it is available."""
        ec2 = self.client("ec2", to)
        self.names += 1
        name = f"copy-{self.names}"
        made: str = ec2.copy_image(Name=name, SourceImageId=ami, SourceRegion=HOME, **more)["ImageId"]
        wait_until(
            lambda: ec2.describe_images(ImageIds=[made])["Images"][0]["State"] == "available", "the copy"
        )
        return made

    def gets(self) -> int:
        """Return how many blocks were read so far."""
        return sum(call.operation == "GetSnapshotBlock" and call.outcome == "ok" for call in self.aws.calls)


def proof(*amis: str, **params: Any) -> prove.ProofResult:
    """Plan and carry out a proof."""
    return prove.plan(amis=amis, progress=silent(), **params).apply()


def verdict(*amis: str, **params: Any) -> str:
    return proof(*amis, **params).verdict


def row(result: prove.ProofResult) -> dict[str, Any]:
    """Return the only row of a result."""
    (found,) = result.as_dict()["proofs"]
    return dict(found)
