"""Fill an account with thousands of AMIs, without thousands of calls.

Each AMI has a snapshot of its own, and most have the tags of vmsnix. By default, one AMI in twenty has a
reference: an instance, a launch template, an Auto Scaling group with a launch configuration, or a parameter.
The same seed creates the same account.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.autoscaling import AutoScalingGroup, LaunchConfiguration
from vmsnix_ops.sandbox.ec2.resources import Image, Instance, Snapshot
from vmsnix_ops.sandbox.ec2.templates import LaunchTemplate, TemplateVersion
from vmsnix_ops.sandbox.ec2.zones import DEFAULT_REGIONS
from vmsnix_ops.sandbox.regions import partition_of
from vmsnix_ops.sandbox.ssm import Parameter, ParameterVersion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmsnix_ops.sandbox.core import Tables


REGIONS = (*DEFAULT_REGIONS, "af-south-1", "ap-east-1", "me-south-1")
"""Twenty regions. An account must opt in to the last three."""

TEMPLATE_VERSIONS = 3


@dataclass(frozen=True)
class SeededAccount:
    """How many resources were created.

    Parameters
    ----------
    amis, snapshots
        Numbers of AMIs and snapshots.
    referenced
        Number of AMIs with a reference.
    """

    amis: int
    snapshots: int
    referenced: int


def populate(
    tables: Tables,
    account: str,
    *,
    regions: Sequence[str] = REGIONS,
    amis: int = 5000,
    referenced_one_in: int = 20,
    seed: int = 0,
    now: datetime | None = None,
) -> SeededAccount:
    """Fill regions of an account.

    Parameters
    ----------
    tables
        The tables of the sandbox, locked by the caller.
    account
        The account to fill.
    regions
        The regions to fill. The account is opted in to them.
    amis
        Number of AMIs in each region.
    referenced_one_in
        One AMI in this many has a reference.
    seed
        Seed of the random numbers.
    now
        Time of the newest resources. Default: now.
    """
    now = now or datetime.now(UTC)
    opted_in = tables.table(account, "", "opted_in_regions")
    referenced = 0
    for region in regions:
        opted_in[region] = True
        generator = random.Random(f"{seed} {region}")  # noqa: S311 - sizes and ages, not secrets
        referenced += _RegionSeeder(tables, account, region, generator, now).fill(amis, referenced_one_in)
    return SeededAccount(amis * len(regions), amis * len(regions), referenced)


class _RegionSeeder:
    """Fills one region."""

    def __init__(
        self, tables: Tables, account: str, region: str, generator: random.Random, now: datetime
    ) -> None:
        self.tables, self.account, self.region = tables, account, region
        self.random, self.now = generator, now
        self.partition = partition_of(region)
        # Snapshots share a few block maps, because their content is never read.
        block = bytes(32)
        self.contents = [dict.fromkeys(range(size), block) for size in (300, 1500, 4000, 9000)]

    def table(self, kind: str) -> dict[str, Any]:
        return self.tables.table(self.account, self.region, kind)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-0{self.random.getrandbits(64):016x}"

    def fill(self, amis: int, referenced_one_in: int) -> int:
        sources = (self.instance, self.template, self.configuration, self.parameter)
        referenced = [self.ami(number) for number in range(amis)][::referenced_one_in]
        for number, ami_id in enumerate(referenced):
            sources[number % len(sources)](ami_id, number)
        return len(referenced)

    def ami(self, number: int) -> str:
        digest = f"{self.random.getrandbits(256):064x}"
        image = ("ecs-node", "gc-fwd", "actions-runner", "web")[number % 4]
        made = self.now - timedelta(hours=self.random.uniform(1, 24 * 900))
        name = f"altf4llc-{image}-26.11.{number}-x86_64-linux-{digest[:8]}"
        tags = {
            "Name": name,
            "vmsnix:image": image,
            "vmsnix:digest": digest,
            "vmsnix:run": f"{made:%Y%m%dT%H%M%SZ}-publish-ami-{digest[:6]}",
            "vmsnix:version": f"26.11.{number}",
            "vmsnix:flake": f"github:acme/images/{digest[:40]}",
        }
        if number % 50 == 7:
            tags = {}
        snapshot = Snapshot(
            snapshot_id=self.new_id("snap"),
            owner=self.account,
            region=self.region,
            size_gib=8,
            started=made,
            since=made,
            description=f"Created by AWS-VMImport service for import-snap-0{digest[:16]}",
            tags=tags,
            blocks=self.random.choice(self.contents),
        )
        self.table("snapshots")[snapshot.snapshot_id] = snapshot
        ami = Image(
            image_id=self.new_id("ami"),
            owner=self.account,
            region=self.region,
            name=name,
            created=made,
            architecture="x86_64",
            root_device="/dev/sda1",
            mappings=[
                {
                    "DeviceName": "/dev/sda1",
                    "Ebs": {
                        "DeleteOnTermination": True,
                        "SnapshotId": snapshot.snapshot_id,
                        "VolumeSize": 8,
                        "VolumeType": "gp3",
                        "Encrypted": False,
                    },
                }
            ],
            description=f"NixOS image {image}",
            boot_mode="uefi",
            ena=True,
            sriov="simple",
            imds="v2.0" if number % 10 else "",
            tags=dict(tags),
            permissions=[{"Group": "all"}] if number % 1000 == 13 else [],
            last_launched=made + timedelta(hours=1) if number % 3 == 0 else None,
        )
        self.table("images")[ami.image_id] = ami
        return ami.image_id

    def instance(self, ami_id: str, _number: int) -> None:
        instance_id = self.new_id("i")
        self.table("instances")[instance_id] = Instance(
            instance_id=instance_id,
            reservation_id=self.new_id("r"),
            owner=self.account,
            image_id=ami_id,
            instance_type="t3.micro",
            zone=f"{self.region}a",
            launched=self.now - timedelta(days=2),
            architecture="x86_64",
            root_device="/dev/sda1",
            details={},
        )

    def template(self, ami_id: str, number: int) -> None:
        data = {"ImageId": ami_id, "InstanceType": "t3.micro"}
        template = LaunchTemplate(
            self.new_id("lt"), f"nodes-{number}", self.now, f"arn:{self.partition}:iam::{self.account}:root"
        )
        for version in range(1, TEMPLATE_VERSIONS + 1):
            template.versions[version] = TemplateVersion(version, "", self.now, template.created_by, data)
        template.latest = TEMPLATE_VERSIONS
        self.table("launch_templates")[template.template_id] = template

    def configuration(self, ami_id: str, number: int) -> None:
        name = f"old-{number}"
        prefix = f"arn:{self.partition}:autoscaling:{self.region}:{self.account}"
        arn = f"{prefix}:launchConfiguration:{number}:launchConfigurationName/{name}"
        data = {"ImageId": ami_id, "InstanceType": "t3.micro"}
        self.table("launch_configurations")[name] = LaunchConfiguration(name, arn, self.now, data)
        self.table("auto_scaling_groups")[name] = AutoScalingGroup(
            name,
            f"{prefix}:autoScalingGroup:{number}:autoScalingGroupName/{name}",
            self.now,
            {"LaunchConfigurationName": name},
            [f"{self.region}a"],
            0,
            2,
            0,
        )

    def parameter(self, ami_id: str, number: int) -> None:
        name = f"/vmsnix/seeded-{number}/stable"
        arn = f"arn:{self.partition}:ssm:{self.region}:{self.account}:parameter{name}"
        by = f"arn:{self.partition}:iam::{self.account}:root"
        version = ParameterVersion(1, ami_id, "String", "aws:ec2:image", self.now, by, "", "", "Standard")
        self.table("parameters")[name] = Parameter(name, arn, [version])
