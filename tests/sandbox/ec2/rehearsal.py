"""A sandbox for the tests of EC2 and EBS: one server for all, emptied for each, with a clock that steps.

Nothing here waits: a test says how many seconds pass.
"""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from vmsnix_ops.sandbox.access import vm_import_role_policy, vm_import_trust_policy
from vmsnix_ops.sandbox.core import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.sandbox import Sandbox

KINDS = [
    "buckets",
    "roles",
    "policies",
    "users",
    "images",
    "snapshots",
    "volumes",
    "instances",
    "import_tasks",
    "launch_templates",
    "parameters",
    "ec2_settings",
    "ec2_tokens",
    "ebs_tokens",
    "opted_in_regions",
    "organization",
    "launch_configurations",
    "auto_scaling_groups",
]
ALMOST_STILL = 0.001
"""Sandbox seconds in a real one: on a busy machine too, time passes only when a test says so."""

MIB, GIB, BLOCK = 2**20, 2**30, 524_288


class Rehearsal:
    """A sandbox and the few things that nearly every test needs."""

    def __init__(self, served: Sandbox) -> None:
        self.served = served
        self.account = served.account
        self._clients: dict[tuple[str, str], Any] = {}
        self._names = itertools.count(1)
        self._session = served.session()

    def reset(self) -> None:
        """Forget everything that earlier tests made."""
        for kind in KINDS:
            for table in self.served.world.tables.of_kind(kind).values():
                table.clear()
        self.served.world.clock = Clock(ALMOST_STILL)
        self.served.faults.clear()

    def client(self, service: str, region: str = "us-east-1") -> Any:
        """Return a boto3 client; they are kept, because making one takes longer than a test."""
        known = self._clients.get((service, region))
        if known is None:
            known = self._clients[service, region] = self._session.client(service, region)
        return known

    @property
    def ec2(self) -> Any:
        return self.client("ec2")

    @property
    def ebs(self) -> Any:
        return self.client("ebs")

    @property
    def s3(self) -> Any:
        return self.client("s3")

    def prepare(self, bucket: str, role: str = "vmimport") -> None:
        """Make a bucket and a role that VM Import may use for all of it."""
        self.s3.create_bucket(Bucket=bucket)
        iam, trust = self.client("iam"), json.dumps(vm_import_trust_policy())
        iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)
        policy = json.dumps(vm_import_role_policy(bucket))
        iam.put_role_policy(RoleName=role, PolicyName=role, PolicyDocument=policy)

    def pass_time(self, seconds: float) -> None:
        self.served.clock.advance(seconds)

    def snapshot(self, size: int = 3, **more: Any) -> str:
        """Return a completed snapshot of an empty volume."""
        volume = self.ec2.create_volume(Size=size, AvailabilityZone="us-east-1a")["VolumeId"]
        snapshot_id: str = self.ec2.create_snapshot(VolumeId=volume, **more)["SnapshotId"]
        self.pass_time(60)
        return snapshot_id

    def image(self, snapshot_id: str | None = None, **more: Any) -> str:
        """Return an available image."""
        root = {"SnapshotId": snapshot_id or self.snapshot(), "VolumeType": "gp3"}
        asked = {
            "Name": f"image-{next(self._names)}",
            "Architecture": "x86_64",
            "RootDeviceName": "/dev/sda1",
            "VirtualizationType": "hvm",
            "EnaSupport": True,
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": root}],
        }
        image_id: str = self.ec2.register_image(**(asked | more))["ImageId"]
        return image_id

    def describe(self, image_id: str, region: str = "us-east-1", **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.client("ec2", region).describe_images(ImageIds=[image_id], **more)[
            "Images"
        ][0]
        return found

    def describe_snapshot(self, snapshot_id: str, region: str = "us-east-1") -> dict[str, Any]:
        ec2 = self.client("ec2", region)
        found: dict[str, Any] = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]
        return found


@contextmanager
def refused(code: str, text: str = "") -> Iterator[None]:
    """Expect AWS's error code and a part of its text."""
    with pytest.raises(ClientError) as caught:
        yield
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    assert text in error.get("Message", ""), error
