"""Fill an account with two years of published images, for tutorials, notebooks and screenshots.

Versions of three images were published in a home region, promoted to two other regions, used by instances,
launch templates and Auto Scaling groups, and partly retired. Some things went wrong: there are failed
imports, snapshots without an AMI, unfinished uploads, and an AMI that was shared by hand. `fill` also returns
the rows that vmsnix would have written to its tables, so that the history matches the account.

The content depends only on the time of the call and on a fixed seed: IDs, digests, durations and ages are
always the same.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.autoscaling import AutoScalingGroup, LaunchConfiguration
from vmsnix_ops.sandbox.ec2.resources import DirectUpload, Image, ImportTask, Instance, Snapshot
from vmsnix_ops.sandbox.ec2.templates import LaunchTemplate, TemplateVersion
from vmsnix_ops.sandbox.regions import partition_of
from vmsnix_ops.sandbox.ssm import Parameter, ParameterVersion
from vmsnix_ops.sandbox.storage import Bucket, Part, StoredObject, Upload

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.sandbox.core import Tables

GIB = 1024**3
BLOCK = 524_288
REGIONS = ("us-east-1", "eu-west-1", "eu-central-1")
BUCKET = "vmsnix-images"
WORKLOADS = "111122223333"
"""The account that stable AMIs are shared with."""
UNKNOWN_ACCOUNT = "999988887777"
"""The account that one AMI was shared with by hand."""

IMAGES = {
    # Days between publishes, age of the first version in days, GiB of its disk and of the newest one's.
    "ecs-node": (14, 728, 2.2, 3.4),
    "gc-fwd": (42, 700, 1.6, 2.1),
    "actions-runner": (28, 392, 5.8, 7.4),
}
DIRECT_SINCE_DAYS = 300
OTHER_REGIONS_SINCE_DAYS = 120
RETIRED_FROM_DAYS = 365

Rows = dict[str, list[dict[str, Any]]]


@dataclass
class Ami:
    """A published AMI, with the values of its row in the table ``amis``."""

    image: str
    version: str
    region: str
    digest: str
    created: datetime
    run_id: str
    via: str
    size_gib: int
    resource: Image
    snapshot: Snapshot


def fill(
    tables: Tables,
    account: str,
    folder: Path,
    *,
    home: str = REGIONS[0],
    now: datetime | None = None,
) -> Rows:
    """Fill an account, and return the matching rows of vmsnix's tables by the names of the tables.

    Parameters
    ----------
    tables
        The tables of the sandbox, locked by the caller.
    account
        The account to fill.
    folder
        The folder of the sandbox, for the objects in its bucket.
    home
        The region of the publishes and of the bucket. AMIs are promoted to two other regions.
    now
        The time from which ages are counted back; None: the present.
    """
    now = (now or datetime.now(UTC)).replace(second=0, microsecond=0)
    demo = _Demo(tables, account, folder, home, now)
    demo.publish_all()
    demo.add_references()
    demo.add_leftovers()
    demo.rows["runs"].sort(key=lambda row: row["started_at"])
    return demo.rows


@dataclass
class _Demo:
    tables: Tables
    account: str
    folder: Path
    home: str
    now: datetime
    random: random.Random = field(default_factory=lambda: random.Random("demo"))  # noqa: S311 - no secrets
    rows: Rows = field(
        default_factory=lambda: {
            name: [] for name in ("runs", "steps", "amis", "promotions", "retirements", "packages")
        }
    )
    amis: list[Ami] = field(default_factory=list)  # those that exist, oldest first
    channels: dict[tuple[str, str, str], list[tuple[datetime, str]]] = field(default_factory=dict)

    # Helpers

    @property
    def root(self) -> str:
        return f"arn:{partition_of(self.home)}:iam::{self.account}:root"

    @property
    def other_regions(self) -> tuple[str, ...]:
        return tuple(name for name in REGIONS if name != self.home)[:2]

    def table(self, kind: str, region: str | None = None) -> dict[str, Any]:
        return self.tables.table(self.account, self.home if region is None else region, kind)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-0{self.random.getrandbits(64):016x}"

    def run_id(self, runbook: str, started: datetime) -> str:
        return f"{started:%Y%m%dT%H%M%S}000Z-{runbook}-{self.random.getrandbits(24):06x}"

    def add_run(
        self, runbook: str, started: datetime, seconds: float, *, status: str = "done", **more: Any
    ) -> str:
        run_id = self.run_id(runbook, started)
        row = {
            "run_id": run_id,
            "runbook": runbook,
            "status": status,
            "started_at": started,
            "finished_at": started + timedelta(seconds=seconds),
            "seconds": round(seconds, 3),
            "region": self.home,
            "account": self.account,
            "endpoint": "sandbox",
            "modified": False,
            "dry_run": False,
            "user": "ci",
            "host": "builder-1",
            "version": "0.1.0",
        }
        self.rows["runs"].append(row | more)
        return run_id

    # Publish, promote, retire

    def publish_all(self) -> None:
        """Publish all versions in the order of time, with some failures between them."""
        planned = []
        for image, (every, first, small, large) in IMAGES.items():
            for number, age in enumerate(range(first, 0, -every)):
                size = small + (large - small) * (first - age) / first
                planned.append((age, image, number, size))
        for count, (age, image, number, size) in enumerate(sorted(planned, reverse=True)):
            moment = self.now - timedelta(days=age, hours=self.random.uniform(0, 6))
            via = "import"
            if age < DIRECT_SINCE_DAYS and self.random.random() < 0.7:
                via = "direct"
            if count % 17 == 9:
                self.fail(image, moment - timedelta(hours=2), size, number)
            if count % 29 == 20:
                self.cancel(image, moment - timedelta(hours=3))
            self.publish(image, number, moment, size, via, age)
        for age in (3, 10):
            self.add_run(
                "publish-ami",
                self.now - timedelta(days=age, hours=4),
                3.2,
                image="ecs-node",
                dry_run=True,
                parameters={"image": "./nix#ecs-node", "dry_run": True},
            )
        self.set_channels()

    def publish(self, image: str, number: int, moment: datetime, size: float, via: str, age: int) -> None:
        """Publish one AMI and promote it. Retire it if it is old, except every third one."""
        version = f"{moment:%y.%m}.{number}"
        digest = hashlib.sha256(f"{image} {version}".encode()).hexdigest()
        seconds, steps = self.steps(image, moment, size, via, digest)
        run_id = self.add_run(
            "publish-ami",
            moment,
            seconds,
            image=image,
            parameters={"image": f"./nix#{image}", "region": self.home, "via": via},
        )
        self.rows["steps"] += [{**row, "run_id": run_id} for row in steps]
        created = moment + timedelta(seconds=seconds)
        ami = self.register(image, version, self.home, digest, created, run_id, via, size)
        self.rows["runs"][-1] |= {
            "ami_id": ami.resource.image_id,
            "image_name": ami.resource.name,
        }
        self.rows["amis"].append(self.ami_row(ami, "publish", created))
        self.record_packages(ami, number)
        self.promote(ami, "candidate", created + timedelta(hours=2), (self.home,))
        if number % 2 == 0:
            regions = (self.home, *(self.other_regions if age <= OTHER_REGIONS_SINCE_DAYS else ()))
            self.promote(
                ami, "stable", created + timedelta(days=min(self.random.uniform(3, 9), age / 2)), regions
            )
        if age > RETIRED_FROM_DAYS and number % 3:
            self.retire(ami)
        else:
            self.amis.append(ami)

    def steps(
        self, image: str, moment: datetime, size: float, via: str, digest: str
    ) -> tuple[float, list[dict[str, Any]]]:
        """Return the duration of a publish in seconds, and its rows of the table ``steps``."""
        whole = int(size * GIB) // BLOCK * BLOCK
        sent = whole if via == "import" else int(whole * self.random.uniform(0.05, 0.2))
        cold = self.random.random() < 0.15
        slow = 3.0 if self.random.random() < 0.03 else 1.0
        means = {
            "build": (size * (70 if cold else 15), None, int(size * (160 if cold else 7))),
            "digest": (size * 1.5, whole, None),
            "upload": (size * 9 if via == "import" else 6 + sent / GIB * 14, sent, None),
            "import": ((95 + size * 62) * slow if via == "import" else 2.4, whole, None),
            "register": (1.7, None, None),
            "finish": (0.5, None, None),
        }
        rows, at = [], moment
        for step, (mean, moved, items) in means.items():
            seconds = mean * self.random.lognormvariate(0, 0.12)
            rows.append(
                {
                    "step": step,
                    "status": "created",
                    "started_at": at,
                    "finished_at": at + timedelta(seconds=seconds),
                    "seconds": round(seconds, 3),
                    "bytes": moved,
                    "items": items,
                    "image": image,
                    "digest": digest,
                    "region": self.home,
                    "account": self.account,
                    "endpoint": "sandbox",
                    "via": via,
                }
            )
            at += timedelta(seconds=seconds)
        return (at - moment).total_seconds(), rows

    def fail(self, image: str, moment: datetime, size: float, number: int) -> None:
        """Record a publish whose import failed."""
        digest = hashlib.sha256(f"{image} failed {number}".encode()).hexdigest()
        _, steps = self.steps(image, moment, size, "import", digest)
        steps = steps[:4]
        steps[-1] |= {"status": "failed"}
        run_id = self.add_run(
            "publish-ami",
            moment,
            (steps[-1]["finished_at"] - moment).total_seconds(),
            status="failed",
            image=image,
            error="The import of the image failed. ClientError: Disk validation failed "
            "[Unsupported specified file format]",
            parameters={"image": f"./nix#{image}", "region": self.home},
        )
        self.rows["steps"] += [{**row, "run_id": run_id} for row in steps]

    def cancel(self, image: str, moment: datetime) -> None:
        """Record a publish that an operator stopped."""
        parameters = {"image": f"./nix#{image}", "region": self.home}
        self.add_run(
            "publish-ami",
            moment,
            41.0,
            status="cancelled",
            image=image,
            error="The upload was interrupted.",
            parameters=parameters,
        )

    def register(
        self,
        image: str,
        version: str,
        region: str,
        digest: str,
        created: datetime,
        run_id: str,
        via: str,
        size: float,
        source: Ami | None = None,
    ) -> Ami:
        """Create a snapshot and its AMI; with `source`, as copies of another AMI."""
        created = created.replace(microsecond=0)
        name = f"acme-{image}-{version}-x86_64-linux-{digest[:8]}"
        tags = {
            "Name": name,
            "vmsnix:image": image,
            "vmsnix:digest": digest,
            "vmsnix:run": run_id,
            "vmsnix:version": version,
            "vmsnix:flake": f"github:acme/images/{digest[:40]}#{image}",
        }
        whole = int(size) + 1
        stored = int(size * 0.3 * GIB / BLOCK)
        snapshot = Snapshot(
            snapshot_id=self.new_id("snap"),
            owner=self.account,
            region=region,
            size_gib=whole,
            started=created - timedelta(minutes=3),
            since=created - timedelta(minutes=3),
            description=f"Copied for DestinationAmi from {source.snapshot.snapshot_id}"
            if source
            else f"NixOS image {image} {version}",
            copied=source is not None,
            direct=via == "direct" and source is None,
            tags=dict(tags),
            blocks=dict.fromkeys(range(stored), hashlib.sha256(bytes(BLOCK)).digest()),
        )
        snapshot.lineage = snapshot.snapshot_id
        root = {
            "DeleteOnTermination": True,
            "SnapshotId": snapshot.snapshot_id,
            "VolumeSize": whole,
            "VolumeType": "gp3",
            "Encrypted": False,
        }
        resource = Image(
            image_id=self.new_id("ami"),
            owner=self.account,
            region=region,
            name=name,
            created=created,
            architecture="x86_64",
            root_device="/dev/xvda",
            mappings=[{"DeviceName": "/dev/xvda", "Ebs": root}],
            description=f"NixOS image {image} {version}",
            boot_mode="uefi",
            ena=True,
            sriov="simple",
            imds="v2.0",
            tags=dict(tags),
            source_image=source.resource.image_id if source else "",
            source_region=source.region if source else "",
        )
        self.table("snapshots", region)[snapshot.snapshot_id] = snapshot
        self.table("images", region)[resource.image_id] = resource
        return Ami(image, version, region, digest, created, run_id, via, whole, resource, snapshot)

    def ami_row(self, ami: Ami, source: str, recorded: datetime) -> dict[str, Any]:
        one = ami.resource
        return {
            "ami_id": one.image_id,
            "name": one.name,
            "image": ami.image,
            "version": ami.version,
            "system": "x86_64-linux",
            "digest": ami.digest,
            "region": ami.region,
            "account": self.account,
            "endpoint": "sandbox",
            "snapshot_id": ami.snapshot.snapshot_id,
            "run_id": ami.run_id,
            "created_at": ami.created,
            "recorded_at": recorded,
            "size_gib": ami.size_gib,
            "boot_mode": one.boot_mode,
            "root_device": one.root_device,
            "imds_support": one.imds,
            "tpm_support": "",
            "ena_support": one.ena,
            "via": ami.via,
            "public": one.public(),
            "deprecated_at": one.deprecate_at,
            "protected": False,
            "description": one.description,
            "state": "available",
            "flake": one.tags["vmsnix:flake"],
            "source": source,
            "tags": dict(one.tags),
        }

    def record_packages(self, ami: Ami, number: int) -> None:
        """Record some packages of an image, whose versions increase from image to image."""
        versions = {
            "openssl": f"3.0.{8 + number // 4}",
            "curl": f"8.{5 + number // 5}.0",
            "systemd": f"25{5 + number // 12}.{number % 12}",
            "linux": f"6.{6 + number // 8}.{number}",
        }
        for name, version in versions.items():
            path = hashlib.sha256(f"{name} {version}".encode()).hexdigest()[:32]
            self.rows["packages"].append(
                {
                    "digest": ami.digest,
                    "image": ami.image,
                    "image_version": ami.version,
                    "system": "x86_64-linux",
                    "name": name,
                    "version": version,
                    "store_path": f"/nix/store/{path}-{name}-{version}",
                    "bytes": 3_000_000 + 40_000 * number,
                    "run_id": ami.run_id,
                    "recorded_at": ami.created,
                }
            )

    def promote(self, ami: Ami, channel: str, moment: datetime, regions: tuple[str, ...]) -> None:
        """Set a channel to an AMI, in other regions to copies of it. Share stable AMIs."""
        stable = channel == "stable"
        run_id = self.add_run(
            "promote-ami",
            moment,
            12.0 + 200.0 * (len(regions) - 1),
            image=ami.image,
            ami_id=ami.resource.image_id,
            image_name=ami.resource.name,
            parameters={"image": ami.image, "channel": channel, "regions": list(regions)},
        )
        for region in regions:
            one = ami
            if region != ami.region:
                copied = moment + timedelta(minutes=3)
                one = self.register(
                    *(ami.image, ami.version, region, ami.digest, copied, run_id, ami.via),
                    ami.size_gib - 0.5,
                    source=ami,
                )
                one.resource.tags["vmsnix:run"] = one.snapshot.tags["vmsnix:run"] = ami.run_id
                one.run_id = ami.run_id
                self.rows["amis"].append(self.ami_row(one, "promote", copied) | {"via": None})
                self.amis.append(one)
            previous = self.channels.setdefault((region, ami.image, channel), [])
            if stable:
                one.resource.permissions = [{"UserId": WORKLOADS}]
                one.resource.deprecate_at = (moment + timedelta(days=365)).replace(microsecond=0, second=0)
                one.resource.deprecation_set = moment
            self.rows["promotions"].append(
                {
                    "run_id": run_id,
                    "promoted_at": moment + timedelta(minutes=4),
                    "how": "promote",
                    "ami_id": one.resource.image_id,
                    "region": region,
                    "account": self.account,
                    "endpoint": "sandbox",
                    "name": one.resource.name,
                    "image": ami.image,
                    "version": ami.version,
                    "digest": ami.digest,
                    "source_ami_id": one.resource.source_image or None,
                    "source_region": one.resource.source_region or None,
                    "channel": channel,
                    "channel_parameter": f"/vmsnix/{ami.image}/{channel}",
                    "previous_ami_id": previous[-1][1] if previous else None,
                    "shared_with": [WORKLOADS] if stable else [],
                    "snapshots_shared_with": [],
                    "public": False,
                    "deprecated_at": one.resource.deprecate_at,
                    "protected": False,
                    "encrypted": False,
                }
            )
            previous.append((moment, one.resource.image_id))

    def retire(self, ami: Ami) -> None:
        """Retire an AMI after ten months, and delete it and its snapshot a month later."""
        retired = ami.created + timedelta(days=300)
        for action, moment in (("retired", retired), ("deleted", retired + timedelta(days=30))):
            run_id = self.add_run("retire-amis", moment, 21.0, image=ami.image)
            common = {
                "run_id": run_id,
                "done_at": moment,
                "account": self.account,
                "region": ami.region,
                "endpoint": "sandbox",
                "action": action,
                "image": ami.image,
                "digest": ami.digest,
                "name": ami.resource.name,
                "reasons": ["not used"],
                "size_gib": ami.size_gib,
                "stored_bytes": ami.snapshot.stored_bytes(),
            }
            until = retired + timedelta(days=30) if action == "retired" else None
            shared = [one["UserId"] for one in ami.resource.permissions]
            ids = {"kind": "ami", "resource_id": ami.resource.image_id, "shared_with": shared}
            self.rows["retirements"].append(common | ids | {"retained_until": until})
        ids = {"kind": "snapshot", "resource_id": ami.snapshot.snapshot_id, "ami_id": ami.resource.image_id}
        self.rows["retirements"].append(common | ids)
        gone = {"state": "deregistered", "source": "retire", "recorded_at": retired + timedelta(days=30)}
        self.rows["amis"].append(self.ami_row(ami, "retire", retired) | gone)
        del self.table("images", ami.region)[ami.resource.image_id]
        del self.table("snapshots", ami.region)[ami.snapshot.snapshot_id]

    def set_channels(self) -> None:
        """Create the parameters of the channels, with a version for each promotion."""
        for (region, image, channel), values in self.channels.items():
            name = f"/vmsnix/{image}/{channel}"
            values.sort()
            versions = [
                ParameterVersion(
                    number, ami_id, "String", "aws:ec2:image", moment, self.root, "", "", "Standard"
                )
                for number, (moment, ami_id) in enumerate(values, 1)
            ]
            arn = f"arn:{partition_of(region)}:ssm:{region}:{self.account}:parameter{name}"
            self.table("parameters", region)[name] = Parameter(name, arn, versions)

    # References to AMIs

    def newest(self, image: str, region: str | None = None, *, age: int = 0, shared: bool = False) -> Ami:
        """Return the newest AMI of an image that is at least this many days old."""
        latest = self.now - timedelta(days=age)
        found = [
            ami
            for ami in self.amis
            if ami.image == image and ami.region == (region or self.home) and ami.created <= latest
            if ami.resource.permissions or not shared
        ]
        return max(found, key=lambda one: one.created)

    def add_references(self) -> None:
        """Create instances, launch templates and Auto Scaling groups; make AMIs public, and share one."""
        ecs_node, gc_fwd = self.newest("ecs-node", age=420), self.newest("gc-fwd", age=500)
        stable = self.newest("ecs-node", shared=True)
        for ami, name, days in (
            (stable, "ecs-1", 2),
            (stable, "ecs-2", 2),
            (self.newest("ecs-node", age=40), "ecs-staging", 30),
            (ecs_node, "billing-legacy", 400),
            (gc_fwd, "forwarder-1", 480),
            (self.newest("ecs-node", self.other_regions[0]), "ecs-eu-1", 3),
            (self.newest("gc-fwd", self.other_regions[1]), "forwarder-eu-1", 20),
        ):
            self.launch(ami.resource.image_id, name, ami.region, days)
            ami.resource.last_launched = self.now - timedelta(days=days)
        retired = [row["resource_id"] for row in self.rows["retirements"] if row["kind"] == "ami"]
        self.launch(retired[-1], "forgotten", self.home, 500)

        recent = [self.newest("ecs-node", age=age) for age in (200, 60, 0)]
        nodes = self.template("ecs-nodes", self.home, [one.resource.image_id for one in recent], default=2)
        runner = "resolve:ssm:/vmsnix/actions-runner/stable"
        runners = self.template("actions-runners", self.home, [runner])
        self.template("gc-fwd-old", self.home, [gc_fwd.resource.image_id])
        copy = self.newest("ecs-node", self.other_regions[0])
        nodes_eu = self.template("ecs-nodes", self.other_regions[0], [copy.resource.image_id])
        self.group("ecs-cluster", self.home, nodes, "$Default", 3)
        self.group("actions-runners", self.home, runners, "$Latest", 2)
        self.group("ecs-cluster", self.other_regions[0], nodes_eu, "$Latest", 2)
        self.configuration("nightly-batch", self.newest("ecs-node", age=600).resource.image_id)

        public = self.newest("gc-fwd", shared=True)
        public.resource.permissions.append({"Group": "all"})
        self.table("ec2_settings")["image_block"] = "unblocked"
        row = [one for one in self.rows["promotions"] if one["ami_id"] == public.resource.image_id][-1]
        row["public"] = True

        # Shared by hand: no row of the table ``promotions`` has it.
        self.newest("actions-runner", age=60).resource.permissions.append({"UserId": UNKNOWN_ACCOUNT})

    def launch(self, ami_id: str, name: str, region: str, days: int) -> None:
        instance_id = self.new_id("i")
        self.table("instances", region)[instance_id] = Instance(
            instance_id=instance_id,
            reservation_id=self.new_id("r"),
            owner=self.account,
            image_id=ami_id,
            instance_type="t3.small",
            zone=f"{region}a",
            launched=self.now - timedelta(days=days),
            architecture="x86_64",
            root_device="/dev/xvda",
            details={},
            tags={"Name": name},
        )

    def template(self, name: str, region: str, amis: list[str], default: int = 1) -> str:
        created = self.now - timedelta(days=210)
        template = LaunchTemplate(self.new_id("lt"), name, created, self.root, default, len(amis))
        for number, ami_id in enumerate(amis, 1):
            data = {"ImageId": ami_id, "InstanceType": "t3.small"}
            template.versions[number] = TemplateVersion(number, "", created, self.root, data)
        self.table("launch_templates", region)[template.template_id] = template
        return template.template_id

    def group_arn(self, region: str, kind: str, number: str, name: str) -> str:
        prefix = f"arn:{partition_of(region)}:autoscaling:{region}:{self.account}"
        return f"{prefix}:{kind}:{number}:{kind}Name/{name}"

    def group(self, name: str, region: str, template: str, version: str, desired: int) -> None:
        found: LaunchTemplate = self.table("launch_templates", region)[template]
        source = {
            "LaunchTemplate": {
                "LaunchTemplateId": template,
                "LaunchTemplateName": found.name,
                "Version": version,
            }
        }
        arn = self.group_arn(region, "autoScalingGroup", self.new_id("g"), name)
        created = self.now - timedelta(days=200)
        self.table("auto_scaling_groups", region)[name] = AutoScalingGroup(
            name, arn, created, source, [f"{region}a"], 0, 6, desired
        )

    def configuration(self, name: str, ami_id: str) -> None:
        created = self.now - timedelta(days=590)
        arn = self.group_arn(self.home, "launchConfiguration", self.new_id("c"), name)
        data = {"ImageId": ami_id, "InstanceType": "t3.small"}
        self.table("launch_configurations")[name] = LaunchConfiguration(name, arn, created, data)
        arn = self.group_arn(self.home, "autoScalingGroup", self.new_id("g"), name)
        self.table("auto_scaling_groups")[name] = AutoScalingGroup(
            name, arn, created, {"LaunchConfigurationName": name}, [f"{self.home}a"], 0, 2, 0
        )

    # Leftovers

    def add_leftovers(self) -> None:
        """Create snapshots without AMIs, unfinished uploads, a failed import, and an AMI without tags."""
        for number, days in enumerate((210, 95, 33)):
            digest = hashlib.sha256(f"orphan {number}".encode()).hexdigest()
            moment = self.now - timedelta(days=days)
            one = self.register(
                *("ecs-node", f"orphan.{number}", self.home, digest, moment),
                *(self.run_id("publish-ami", moment), "import", 2.5),
            )
            del self.table("images")[one.resource.image_id]
        by_hand = self.new_id("ami")
        original = self.newest("ecs-node", age=300)
        copy = self.register(
            *("ecs-node", "by-hand", self.home, original.digest, self.now - timedelta(days=250)),
            *(original.run_id, "import", 2.5),
        )
        del self.table("images")[copy.resource.image_id]
        copy.resource.image_id, copy.resource.name = by_hand, "jenkins-golden-image"
        copy.resource.imds, copy.resource.tags, copy.snapshot.tags = "", {"Name": "jenkins"}, {}
        copy.resource.description = copy.snapshot.description = ""
        self.table("images")[by_hand] = copy.resource
        self.add_unfinished_upload()
        self.add_failed_import()
        self.add_bucket_leftovers()

    def add_unfinished_upload(self) -> None:
        """Create a snapshot whose direct upload is unfinished. It began minutes ago, because it expires."""
        digest = hashlib.sha256(b"direct").hexdigest()
        started = self.now - timedelta(minutes=20)
        snapshot = Snapshot(
            snapshot_id=self.new_id("snap"),
            owner=self.account,
            region=self.home,
            size_gib=4,
            started=started,
            since=started,
            description="NixOS image ecs-node",
            tags={
                "vmsnix:image": "ecs-node",
                "vmsnix:digest": digest,
                "vmsnix:run": self.run_id("publish-ami", started),
            },
            direct=True,
            upload=DirectUpload(None, 4320, started),
        )
        self.table("snapshots")[snapshot.snapshot_id] = snapshot

    def add_failed_import(self) -> None:
        created = self.now - timedelta(minutes=25)
        task_id = self.new_id("import-snap")
        self.table("import_tasks")[task_id] = ImportTask(
            task_id=task_id,
            owner=self.account,
            region=self.home,
            created=created,
            bucket=BUCKET,
            key="vmsnix/gc-fwd/broken.vhd",
            image_format="VHD",
            description="NixOS image gc-fwd",
            disk_description="",
            url="",
            role_name="vmimport",
            encrypted=False,
            kms_key="",
            tags={"vmsnix:image": "gc-fwd", "vmsnix:run": self.run_id("publish-ami", created)},
            outcome="deleted",
            message="ClientError: Disk validation failed [Unsupported specified file format]",
            ended=self.now - timedelta(minutes=5),
        )

    def add_bucket_leftovers(self) -> None:
        """Create the bucket, an object whose publish did not finish, and an unfinished multipart upload."""
        buckets = self.tables.table(self.account, "", "buckets")
        bucket = buckets.setdefault(
            BUCKET, Bucket(BUCKET, self.account, self.home, self.now - timedelta(days=730))
        )
        moment = self.now - timedelta(days=45)
        key = "vmsnix/ecs-node/" + hashlib.sha256(b"object").hexdigest()[:32] + ".vhd"
        part = self.part("demo-object", 1, 48 * 1024**2, moment)
        bucket.objects[key] = StoredObject(key, (part,), part.md5, moment)
        began = self.now - timedelta(days=20)
        upload_id = hashlib.sha256(b"upload").hexdigest()
        bucket.uploads[upload_id] = Upload(
            upload_id=upload_id,
            key="vmsnix/actions-runner/" + hashlib.sha256(b"part").hexdigest()[:32] + ".vhd",
            initiated=began,
            principal=self.root,
            algorithm=None,
            checksum_type="",
            headers={},
            metadata={},
            tags={},
            parts={
                number: self.part(f"demo-part-{number}", number, 16 * 1024**2, began) for number in (1, 2)
            },
        )

    def part(self, name: str, number: int, size: int, moment: datetime) -> Part:
        """Write a sparse file of zeros, and return it as a part of an object."""
        file = hashlib.sha256(name.encode()).hexdigest()[:32]
        part = Part(number, file, size, _md5_of_zeros(size), {}, moment)
        path = part.path(self.folder)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("wb") as target:
            target.truncate(size)
        return part


def _md5_of_zeros(size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for _ in range(size // 2**20):
        digest.update(bytes(2**20))
    return digest.hexdigest()
