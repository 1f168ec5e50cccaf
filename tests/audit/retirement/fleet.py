"""An account with AMIs of any age, and methods to use and share them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.audit import retirement
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.progress import silent
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import boto3

REGION, OTHER = "us-east-1", "eu-west-1"
OTHER_ACCOUNT = "210987654321"


@dataclass
class Fleet:
    """A sandbox with methods to create and read AMIs and snapshots."""

    aws: Sandbox
    session: boto3.Session
    clients: dict[tuple[str, str], Any]
    number: int = 0

    def client(self, service: str, region: str = REGION) -> Any:
        if (service, region) not in self.clients:
            self.clients[service, region] = self.aws.client(service, region)
        return self.clients[service, region]

    @property
    def ec2(self) -> Any:
        return self.client("ec2")

    def snapshot(self, *, days: float = 60, region: str = REGION, tags: dict[str, str] | None = None) -> str:
        ec2 = self.client("ec2", region)
        volume = ec2.create_volume(AvailabilityZone=f"{region}a", Size=1, VolumeType="gp3")["VolumeId"]
        self.aws.clock.advance(60)
        wanted = tagging.tag_specifications("snapshot", tags) if tags else []
        found: str = ec2.create_snapshot(VolumeId=volume, TagSpecifications=wanted)["SnapshotId"]
        ec2.delete_volume(VolumeId=volume)
        self.aws.clock.advance(3600)
        self.row("snapshots", found, region).started = datetime.now(UTC) - timedelta(days=days)
        return found

    def ami(
        self,
        image: str = "web",
        *,
        days: float = 60,
        digest: str = "",
        region: str = REGION,
        devices: int = 1,
        snapshots: tuple[str, ...] = (),
        tags: dict[str, str] | None = None,
        **registration: Any,
    ) -> str:
        """Register an AMI as vmsnix does, this many days ago."""
        self.number += 1
        own = (
            tags if tags is not None else {tagging.IMAGE: image, tagging.DIGEST: digest or f"d{self.number}"}
        )
        made = snapshots or tuple(
            self.snapshot(days=days, region=region, tags=own | ({"Name": "data"} if n else {}))
            for n in range(devices)
        )
        names = ("/dev/sda1", *(f"/dev/sd{letter}" for letter in "bcdefgh"))
        request: dict[str, Any] = {
            "Name": f"{image}-{self.number}",
            "Architecture": "x86_64",
            "RootDeviceName": "/dev/sda1",
            "VirtualizationType": "hvm",
            "EnaSupport": True,
            "BlockDeviceMappings": [
                {"DeviceName": name, "Ebs": {"SnapshotId": snapshot}}
                for name, snapshot in zip(names, made, strict=False)
            ],
            "TagSpecifications": tagging.tag_specifications("image", own) if own else [],
        }
        ami_id: str = self.client("ec2", region).register_image(**(request | registration))["ImageId"]
        self.row("images", ami_id, region).created = datetime.now(UTC) - timedelta(days=days)
        return ami_id

    def row(self, kind: str, name: str, region: str = REGION) -> Any:
        """Return an object of the sandbox, which a test may change."""
        return self.aws.state.tables.table(self.aws.account, region, kind)[name]

    def remove(self, kind: str, name: str) -> None:
        """Remove an object from the sandbox."""
        del self.aws.state.tables.table(self.aws.account, REGION, kind)[name]

    def plan(self, **changes: Any) -> retirement.RetirementPlan:
        """Plan by rules that keep nothing because of its number."""
        request: dict[str, Any] = {
            "regions": [REGION],
            "keep_last": 0,
            "confirm": self.aws.account,
            "dry_run": False,
            "progress": silent(),
            "session": self.session,
        }
        return retirement.plan(**(request | changes))

    def apply(self, **changes: Any) -> retirement.RetirementResult:
        return self.plan(**changes).apply()

    def later(self, days: float = 20) -> datetime:
        return datetime.now(UTC) + timedelta(days=days)

    def amis(self, region: str = REGION) -> dict[str, str]:
        """Return the state of each AMI."""
        found = self.client("ec2", region).describe_images(Owners=["self"], IncludeDisabled=True)["Images"]
        return {one["ImageId"]: one["State"] for one in found}

    def snapshots(self, region: str = REGION) -> set[str]:
        found = self.client("ec2", region).describe_snapshots(OwnerIds=["self"])["Snapshots"]
        return {one["SnapshotId"] for one in found}

    def image(self, ami_id: str, region: str = REGION) -> Any:
        """Return an AMI as DescribeImages does, also a disabled one."""
        (found,) = self.client("ec2", region).describe_images(ImageIds=[ami_id], IncludeDisabled=True)[
            "Images"
        ]
        return found

    def snapshots_of(self, ami_id: str, region: str = REGION) -> list[str]:
        return [mapping["Ebs"]["SnapshotId"] for mapping in self.image(ami_id, region)["BlockDeviceMappings"]]

    def snapshot_permissions(self, snapshot_id: str) -> list[dict[str, str]]:
        answer = self.ec2.describe_snapshot_attribute(
            SnapshotId=snapshot_id, Attribute="createVolumePermission"
        )
        found: list[dict[str, str]] = answer["CreateVolumePermissions"]
        return found

    def fail(self, operation: str, code: str = "UnauthorizedOperation", http: int = 403, **more: Any) -> None:
        """Let an operation fail with a code of AWS."""
        self.aws.faults.add({"op": operation, "do": "error", "code": code, "http": http, **more})

    def permissions(self, ami_id: str) -> list[dict[str, str]]:
        answer = self.ec2.describe_image_attribute(ImageId=ami_id, Attribute="launchPermission")
        found: list[dict[str, str]] = answer["LaunchPermissions"]
        return found

    def share(self, ami_id: str, *accounts: str) -> None:
        self.ec2.modify_image_attribute(
            ImageId=ami_id, LaunchPermission={"Add": [{"UserId": account} for account in accounts]}
        )

    def share_snapshot(self, snapshot_id: str, *accounts: str) -> None:
        """Share a snapshot, by default with OTHER_ACCOUNT."""
        self.ec2.modify_snapshot_attribute(
            SnapshotId=snapshot_id,
            Attribute="createVolumePermission",
            OperationType="add",
            UserIds=list(accounts or [OTHER_ACCOUNT]),
        )

    def tags(self, ami_id: str) -> dict[str, str]:
        return tagging.to_dict(self.image(ami_id).get("Tags"))

    def set_parameter(self, name: str, *amis: str) -> None:
        """Set a parameter to one AMI after the other."""
        ssm = self.client("ssm")
        for ami_id in amis:
            ssm.put_parameter(
                Name=name, Value=ami_id, Type="String", DataType="aws:ec2:image", Overwrite=True
            )
            self.aws.clock.advance(60)


@pytest.fixture(scope="module")
def fleet_sandbox() -> Iterator[Fleet]:
    """A sandbox for all tests of a file."""
    with sandbox(speed=5000) as aws:
        yield Fleet(aws, aws.session(REGION), {})


@pytest.fixture
def fleet(fleet_sandbox: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    """The sandbox, empty; this process's environment points to it."""
    fleet_sandbox.aws.reset()
    for name, value in fleet_sandbox.aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return fleet_sandbox


def why(plan: retirement.RetirementPlan, resource_id: str) -> str:
    """Return the action and the reasons of a plan for one AMI or snapshot."""
    (one,) = [one for one in plan.decisions if one.resource_id == resource_id]
    return f"{one.action}: {'; '.join(one.reasons)}"
