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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.disk.sample import boot_sector
from vmsnix_ops.sandbox.autoscaling import AutoScalingGroup, LaunchConfiguration
from vmsnix_ops.sandbox.ec2.resources import (
    BLOCK_BYTES,
    GIB,
    DirectUpload,
    EmulatedImportTask,
    EmulatedInstance,
    EmulatedSnapshot,
    Image,
)
from vmsnix_ops.sandbox.ec2.templates import LaunchTemplate, TemplateVersion
from vmsnix_ops.sandbox.regions import partition_of
from vmsnix_ops.sandbox.ssm import EmulatedParameter, EmulatedVersion
from vmsnix_ops.sandbox.storage import BlockStore, Bucket, MultipartUpload, Part, StoredObject

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.sandbox.core import SandboxTables

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
class PublishedAmi:
    """A published AMI. `facts` are the members that its rows in several tables have."""

    facts: dict[str, Any]
    created: datetime
    image: Image
    snapshot: EmulatedSnapshot

    @property
    def name(self) -> str:
        """Name of its image."""
        return str(self.facts["image"])

    @property
    def region(self) -> str:
        """Its region."""
        return str(self.facts["region"])


class Filler:
    """Creates the resources of an account without calls, so that they can have any age."""

    def __init__(self, tables: SandboxTables, account: str, seed: str, now: datetime) -> None:
        self.tables, self.account, self.now = tables, account, now
        self.random = random.Random(seed)  # noqa: S311 - no secrets

    def table(self, kind: str, region: str) -> dict[str, Any]:
        """Return the resources of one kind in a region."""
        return self.tables.table(self.account, region, kind)

    def new_id(self, prefix: str) -> str:
        """Return an ID of a resource."""
        return f"{prefix}-0{self.random.getrandbits(64):016x}"

    def arn(self, service: str, region: str, resource: str) -> str:
        """Return an ARN of the account."""
        return f"arn:{partition_of(region)}:{service}:{region}:{self.account}:{resource}"

    def root(self, region: str) -> str:
        """Return the ARN of the root user in the partition of a region."""
        return f"arn:{partition_of(region)}:iam::{self.account}:root"

    def add_snapshot(self, region: str, size_gib: int, started: datetime, **more: Any) -> EmulatedSnapshot:
        """Create a completed snapshot; `more` are fields of `EmulatedSnapshot`."""
        snapshot_id = self.new_id("snap")
        fields = {"since": started, "lineage": snapshot_id, **more}
        snapshot = EmulatedSnapshot(snapshot_id, self.account, region, size_gib, started, **fields)
        self.table("snapshots", region)[snapshot_id] = snapshot
        return snapshot

    def add_image(self, name: str, snapshot: EmulatedSnapshot, created: datetime, **more: Any) -> Image:
        """Create an image of a snapshot; `more` are fields of `Image`."""
        ebs = {"DeleteOnTermination": True, "SnapshotId": snapshot.snapshot_id, "VolumeType": "gp3"}
        ebs |= {"VolumeSize": snapshot.size_gib, "Encrypted": False}
        device, region = "/dev/xvda", snapshot.region
        fields = {"boot_mode": "uefi", "ena": True, "sriov": "simple", "imds": "v2.0", **more}
        fields |= {"root_device": device, "mappings": [{"DeviceName": device, "Ebs": ebs}]}
        image_id = self.new_id("ami")
        image = Image(image_id, self.account, region, name, created, "x86_64", **fields)
        self.table("images", region)[image_id] = image
        return image

    def add_instance(self, region: str, ami_id: str, days: int, **tags: str) -> None:
        """Create an instance that was launched some days ago."""
        instance_id, launched = self.new_id("i"), self.now - timedelta(days=days)
        self.table("instances", region)[instance_id] = EmulatedInstance(
            *(instance_id, self.new_id("r"), self.account, ami_id, "t3.small", f"{region}a", launched),
            *("x86_64", "/dev/xvda", {}),
            tags=tags,
        )

    def add_template(self, region: str, name: str, ami_ids: list[str], days: int = 210) -> LaunchTemplate:
        """Create a launch template with a version for each AMI."""
        created, by = self.now - timedelta(days=days), self.root(region)
        template = LaunchTemplate(self.new_id("lt"), name, created, by, 1, len(ami_ids))
        for number, ami_id in enumerate(ami_ids, 1):
            data = {"ImageId": ami_id, "InstanceType": "t3.small"}
            template.versions[number] = TemplateVersion(number, "", created, by, data)
        self.table("launch_templates", region)[template.template_id] = template
        return template

    def add_group(self, region: str, name: str, source: dict[str, Any], desired: int = 0) -> None:
        """Create an Auto Scaling group, without its instances."""
        arn = self._scaling_arn(region, "autoScalingGroup", name)
        created, zones = self.now - timedelta(days=200), [f"{region}a"]
        group = AutoScalingGroup(name, arn, created, source, zones, 0, 6, desired)
        self.table("auto_scaling_groups", region)[name] = group

    def add_configuration(self, region: str, name: str, ami_id: str) -> None:
        """Create a launch configuration, and a group of the same name that uses it."""
        arn, created = self._scaling_arn(region, "launchConfiguration", name), self.now - timedelta(days=590)
        data = {"ImageId": ami_id, "InstanceType": "t3.small"}
        self.table("launch_configurations", region)[name] = LaunchConfiguration(name, arn, created, data)
        self.add_group(region, name, {"LaunchConfigurationName": name})

    def _scaling_arn(self, region: str, kind: str, name: str) -> str:
        return self.arn("autoscaling", region, f"{kind}:{self.new_id('g')}:{kind}Name/{name}")

    def add_parameter(self, region: str, name: str, values: list[tuple[datetime, str]]) -> None:
        """Create a parameter that names AMIs, with a version for each time and AMI."""
        by, fixed = self.root(region), ("", "", "Standard")
        versions = [
            EmulatedVersion(number, ami_id, "String", "aws:ec2:image", moment, by, *fixed)
            for number, (moment, ami_id) in enumerate(values, 1)
        ]
        parameter = EmulatedParameter(name, self.arn("ssm", region, f"parameter{name}"), versions)
        self.table("parameters", region)[name] = parameter


def fill(
    tables: SandboxTables, account: str, folder: Path, *, home: str = REGIONS[0], now: datetime | None = None
) -> Rows:
    """Fill an account, and return the matching rows of vmsnix's tables by the names of the tables.

    The caller has locked the tables of the sandbox. `home` is the region of the publishes and of the bucket;
    AMIs are promoted to two other regions. Ages are counted back from `now`.
    """
    now = (now or datetime.now(UTC)).replace(second=0, microsecond=0)
    demo = _Demo(tables, account, folder, home, now)
    demo.publish_all()
    demo.add_references()
    demo.add_leftovers()
    demo.rows["runs"].sort(key=lambda row: row["started_at"])
    return demo.rows


class _Demo(Filler):
    def __init__(self, tables: SandboxTables, account: str, folder: Path, home: str, now: datetime) -> None:
        super().__init__(tables, account, "demo", now)
        self.folder, self.home = folder, home
        # Of each snapshot: a boot sector that prints a text, and zeros.
        first = boot_sector("Welcome to NixOS (demo)", partition_start=2048, partition_sectors=2048)
        store = BlockStore(folder / "blocks")
        digests = [store.put(data) for data in (first.ljust(BLOCK_BYTES, b"\0"), bytes(BLOCK_BYTES))]
        self.blocks = [bytes.fromhex(digest) for digest in digests]
        names = ("runs", "steps", "amis", "promotions", "retirements", "packages")
        self.rows: Rows = {name: [] for name in names}
        self.amis: list[PublishedAmi] = []  # those that exist, oldest first
        # The times and AMIs of each channel, by region, image and channel.
        self.channels: dict[tuple[str, str, str], list[tuple[datetime, str]]] = {}
        self.other_regions = tuple(name for name in REGIONS if name != home)[:2]
        self.common = {"account": account, "endpoint": "sandbox"}  # of the rows of all tables

    # Helpers

    def run_id(self, runbook: str, started: datetime) -> str:
        return f"{started:%Y%m%dT%H%M%S}000Z-{runbook}-{self.random.getrandbits(24):06x}"

    def add_run(
        self, runbook: str, started: datetime, seconds: float, *, status: str = "done", **more: Any
    ) -> str:
        run_id = self.run_id(runbook, started)
        finished = started + timedelta(seconds=seconds)
        row = {"run_id": run_id, "runbook": runbook, "status": status, "started_at": started}
        row |= {"finished_at": finished, "seconds": round(seconds, 3), "region": self.home, **self.common}
        row |= {"modified": False, "dry_run": False, "user": "ci", "host": "builder-1", "version": "0.1.0"}
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
            via = "direct" if age < DIRECT_SINCE_DAYS and self.random.random() < 0.7 else "import"
            if count % 17 == 9:
                self.fail(image, moment - timedelta(hours=2), size, number)
            if count % 29 == 20:
                self.cancel(image, moment - timedelta(hours=3))
            self.publish(image, number, moment, size, via, age)
        for age in (3, 10):
            parameters = {"image": "./nix#ecs-node", "dry_run": True}
            moment = self.now - timedelta(days=age, hours=4)
            self.add_run("publish-ami", moment, 3.2, image="ecs-node", dry_run=True, parameters=parameters)
        for (region, image, channel), values in self.channels.items():
            self.add_parameter(region, f"/vmsnix/{image}/{channel}", sorted(values))

    def publish(self, image: str, number: int, moment: datetime, size: float, via: str, age: int) -> None:
        """Publish one AMI and promote it. Retire it if it is old, except every third one."""
        version = f"{moment:%y.%m}.{number}"
        digest = hashlib.sha256(f"{image} {version}".encode()).hexdigest()
        seconds, steps = self.steps(image, moment, size, via, digest)
        parameters = {"image": f"./nix#{image}", "region": self.home, "via": via}
        run_id = self.add_run("publish-ami", moment, seconds, image=image, parameters=parameters)
        self.rows["steps"] += [{**row, "run_id": run_id} for row in steps]
        created = moment + timedelta(seconds=seconds)
        facts = {"image": image, "version": version, "digest": digest, "run_id": run_id, "via": via}
        ami = self.register(facts | {"region": self.home}, created, size)
        self.rows["runs"][-1] |= {"ami_id": ami.image.image_id, "image_name": ami.image.name}
        self.rows["amis"].append(self.ami_row(ami, "publish", created))
        self.record_packages(ami, number)
        self.promote(ami, "candidate", created + timedelta(hours=2), (self.home,))
        if number % 2 == 0:
            regions = (self.home, *(self.other_regions if age <= OTHER_REGIONS_SINCE_DAYS else ()))
            days = min(self.random.uniform(3, 9), age / 2)
            self.promote(ami, "stable", created + timedelta(days=days), regions)
        if age > RETIRED_FROM_DAYS and number % 3:
            self.retire(ami)
        else:
            self.amis.append(ami)

    def steps(
        self, image: str, moment: datetime, size: float, via: str, digest: str
    ) -> tuple[float, list[dict[str, Any]]]:
        """Return the duration of a publish in seconds, and its rows of the table ``steps``."""
        whole = int(size * GIB) // BLOCK_BYTES * BLOCK_BYTES
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
            end = at + timedelta(seconds=seconds)
            row = {"step": step, "status": "created", "started_at": at, "finished_at": end}
            row |= {"seconds": round(seconds, 3), "bytes": moved, "items": items}
            facts = {"image": image, "digest": digest, "region": self.home, "via": via}
            rows.append(row | facts | self.common)
            at = end
        return (at - moment).total_seconds(), rows

    def fail(self, image: str, moment: datetime, size: float, number: int) -> None:
        """Record a publish whose import failed."""
        digest = hashlib.sha256(f"{image} failed {number}".encode()).hexdigest()
        _, steps = self.steps(image, moment, size, "import", digest)
        steps = steps[:4]
        steps[-1] |= {"status": "failed"}
        text = "The import of the image failed. ClientError: Disk validation failed "
        more: dict[str, Any] = {"image": image, "error": f"{text}[Unsupported specified file format]"}
        more |= {"parameters": {"image": f"./nix#{image}", "region": self.home}}
        seconds = (steps[-1]["finished_at"] - moment).total_seconds()
        run_id = self.add_run("publish-ami", moment, seconds, status="failed", **more)
        self.rows["steps"] += [{**row, "run_id": run_id} for row in steps]

    def cancel(self, image: str, moment: datetime) -> None:
        """Record a publish that an operator stopped."""
        parameters = {"image": f"./nix#{image}", "region": self.home}
        more = {"error": "The upload was interrupted.", "parameters": parameters}
        self.add_run("publish-ami", moment, 41.0, status="cancelled", image=image, **more)

    def register(
        self, facts: dict[str, Any], created: datetime, size: float, source: PublishedAmi | None = None
    ) -> PublishedAmi:
        """Create a snapshot and its AMI; with `source`, as copies of another AMI."""
        image, version, digest = facts["image"], facts["version"], facts["digest"]
        created, description = created.replace(microsecond=0), f"NixOS image {image} {version}"
        name = f"acme-{image}-{version}-x86_64-linux-{digest[:8]}"
        tags = {"Name": name, "vmsnix:image": image, "vmsnix:digest": digest, "vmsnix:run": facts["run_id"]}
        tags |= {"vmsnix:version": version, "vmsnix:flake": f"github:acme/images/{digest[:40]}#{image}"}
        stored = range(int(size * 0.3 * GIB / BLOCK_BYTES))
        copied = f"Copied for DestinationAmi from {source.snapshot.snapshot_id}" if source else ""
        snapshot = self.add_snapshot(
            facts["region"],
            int(size) + 1,
            created - timedelta(minutes=3),
            description=copied or description,
            copied=source is not None,
            direct=facts["via"] == "direct" and source is None,
            tags=dict(tags),
            blocks={**dict.fromkeys(stored, self.blocks[1]), 0: self.blocks[0]},
        )
        origin = {"source_image": source.image.image_id, "source_region": source.region} if source else {}
        ami = self.add_image(name, snapshot, created, description=description, tags=dict(tags), **origin)
        return PublishedAmi(facts, created, ami, snapshot)

    def ami_row(self, ami: PublishedAmi, source: str, recorded: datetime) -> dict[str, Any]:
        one = ami.image
        return {
            **ami.facts,
            **self.common,
            "ami_id": one.image_id,
            "name": one.name,
            "system": "x86_64-linux",
            "snapshot_id": ami.snapshot.snapshot_id,
            "created_at": ami.created,
            "recorded_at": recorded,
            "size_gib": ami.snapshot.size_gib,
            "boot_mode": one.boot_mode,
            "root_device": one.root_device,
            "imds_support": one.imds,
            "tpm_support": "",
            "ena_support": one.ena,
            "public": one.public(),
            "deprecated_at": one.deprecate_at,
            "protected": False,
            "description": one.description,
            "state": "available",
            "flake": one.tags["vmsnix:flake"],
            "source": source,
            "tags": dict(one.tags),
        }

    def record_packages(self, ami: PublishedAmi, number: int) -> None:
        """Record some packages of an image, whose versions increase from image to image."""
        versions = {
            "openssl": f"3.0.{8 + number // 4}",
            "curl": f"8.{5 + number // 5}.0",
            "systemd": f"25{5 + number // 12}.{number % 12}",
            "linux": f"6.{6 + number // 8}.{number}",
        }
        for name, version in versions.items():
            path = hashlib.sha256(f"{name} {version}".encode()).hexdigest()[:32]
            names = {"name": name, "version": version, "system": "x86_64-linux"}
            found = {
                "store_path": f"/nix/store/{path}-{name}-{version}",
                "bytes": 3_000_000 + 40_000 * number,
            }
            facts = {member: ami.facts[member] for member in ("digest", "image", "run_id")}
            more = {"image_version": ami.facts["version"], "recorded_at": ami.created}
            self.rows["packages"].append(names | found | facts | more)

    def promote(self, ami: PublishedAmi, channel: str, moment: datetime, regions: tuple[str, ...]) -> None:
        """Set a channel to an AMI, in other regions to copies of it. Share stable AMIs."""
        stable = channel == "stable"
        run_id = self.add_run(
            "promote-ami",
            moment,
            12.0 + 200.0 * (len(regions) - 1),
            image=ami.name,
            ami_id=ami.image.image_id,
            image_name=ami.image.name,
            parameters={"image": ami.name, "channel": channel, "regions": list(regions)},
        )
        for region in regions:
            one = ami
            if region != ami.region:
                copied, size = moment + timedelta(minutes=3), ami.snapshot.size_gib - 0.5
                one = self.register(ami.facts | {"region": region}, copied, size, source=ami)
                self.rows["amis"].append(self.ami_row(one, "promote", copied) | {"via": None})
                self.amis.append(one)
            image = one.image
            previous = self.channels.setdefault((region, ami.name, channel), [])
            if stable:
                image.permissions = [{"UserId": WORKLOADS}]
                image.deprecate_at = (moment + timedelta(days=365)).replace(microsecond=0, second=0)
                image.deprecation_set = moment
            facts = {name: one.facts[name] for name in ("image", "version", "digest", "region")}
            self.rows["promotions"].append(
                {
                    **facts,
                    **self.common,
                    "run_id": run_id,
                    "promoted_at": moment + timedelta(minutes=4),
                    "how": "promote",
                    "ami_id": image.image_id,
                    "name": image.name,
                    "source_ami_id": image.source_image or None,
                    "source_region": image.source_region or None,
                    "channel": channel,
                    "channel_parameter": f"/vmsnix/{ami.name}/{channel}",
                    "previous_ami_id": previous[-1][1] if previous else None,
                    "shared_with": [WORKLOADS] if stable else [],
                    "snapshots_shared_with": [],
                    "public": False,
                    "deprecated_at": image.deprecate_at,
                    "protected": False,
                    "encrypted": False,
                }
            )
            previous.append((moment, image.image_id))

    def retire(self, ami: PublishedAmi) -> None:
        """Retire an AMI after ten months, and delete it and its snapshot a month later."""
        retired = ami.created + timedelta(days=300)
        deleted = retired + timedelta(days=30)
        ami_id, snapshot_id = ami.image.image_id, ami.snapshot.snapshot_id
        shared = [one["UserId"] for one in ami.image.permissions]
        facts = {name: ami.facts[name] for name in ("image", "digest", "region")} | self.common
        facts |= {"name": ami.image.name, "reasons": ["not used"], "size_gib": ami.snapshot.size_gib}
        facts |= {"stored_bytes": ami.snapshot.stored_bytes()}
        for action, moment in (("retired", retired), ("deleted", deleted)):
            run_id = self.add_run("retire-amis", moment, 21.0, image=ami.name)
            done = {"run_id": run_id, "done_at": moment, "action": action}
            until = deleted if action == "retired" else None
            ids = {"kind": "ami", "resource_id": ami_id, "shared_with": shared, "retained_until": until}
            self.rows["retirements"].append(facts | done | ids)
        ids = {"kind": "snapshot", "resource_id": snapshot_id, "ami_id": ami_id}
        self.rows["retirements"].append(facts | done | ids)
        gone = {"state": "deregistered", "source": "retire", "recorded_at": deleted}
        self.rows["amis"].append(self.ami_row(ami, "retire", retired) | gone)
        del self.table("images", ami.region)[ami_id]
        del self.table("snapshots", ami.region)[snapshot_id]

    # References to AMIs

    def newest(
        self, image: str, region: str | None = None, *, age: int = 0, shared: bool = False
    ) -> PublishedAmi:
        """Return the newest AMI of an image that is at least this many days old."""
        latest = self.now - timedelta(days=age)
        place = (image, region or self.home)
        found = [ami for ami in self.amis if (ami.name, ami.region) == place and ami.created <= latest]
        return max((ami for ami in found if ami.image.permissions or not shared), key=lambda one: one.created)

    def add_references(self) -> None:
        """Create instances, launch templates and Auto Scaling groups; make AMIs public, and share one."""
        home, west, central = self.home, *self.other_regions
        ecs_node, gc_fwd = self.newest("ecs-node", age=420), self.newest("gc-fwd", age=500)
        stable = self.newest("ecs-node", shared=True)
        for ami, name, days in (
            (stable, "ecs-1", 2),
            (stable, "ecs-2", 2),
            (self.newest("ecs-node", age=40), "ecs-staging", 30),
            (ecs_node, "billing-legacy", 400),
            (gc_fwd, "forwarder-1", 480),
            (self.newest("ecs-node", west), "ecs-eu-1", 3),
            (self.newest("gc-fwd", central), "forwarder-eu-1", 20),
        ):
            self.add_instance(ami.region, ami.image.image_id, days, Name=name)
            ami.image.last_launched = self.now - timedelta(days=days)
        retired = [row["resource_id"] for row in self.rows["retirements"] if row["kind"] == "ami"]
        self.add_instance(home, retired[-1], 500, Name="forgotten")

        recent = [self.newest("ecs-node", age=age).image.image_id for age in (200, 60, 0)]
        nodes = self.add_template(home, "ecs-nodes", recent)
        nodes.default = 2
        runner = "resolve:ssm:/vmsnix/actions-runner/stable"
        runners = self.add_template(home, "actions-runners", [runner])
        self.add_template(home, "gc-fwd-old", [gc_fwd.image.image_id])
        nodes_eu = self.add_template(west, "ecs-nodes", [self.newest("ecs-node", west).image.image_id])
        for region, name, template, version, desired in (
            (home, "ecs-cluster", nodes, "$Default", 3),
            (home, "actions-runners", runners, "$Latest", 2),
            (west, "ecs-cluster", nodes_eu, "$Latest", 2),
        ):
            named = {"LaunchTemplateId": template.template_id, "LaunchTemplateName": template.name}
            self.add_group(region, name, {"LaunchTemplate": named | {"Version": version}}, desired)
        self.add_configuration(home, "nightly-batch", self.newest("ecs-node", age=600).image.image_id)

        public = self.newest("gc-fwd", shared=True).image
        public.permissions.append({"Group": "all"})
        self.table("ec2_settings", home)["image_block"] = "unblocked"
        row = [one for one in self.rows["promotions"] if one["ami_id"] == public.image_id][-1]
        row["public"] = True

        # Shared by hand: no row of the table ``promotions`` has it.
        self.newest("actions-runner", age=60).image.permissions.append({"UserId": UNKNOWN_ACCOUNT})

    # Leftovers

    def add_leftovers(self) -> None:
        """Create snapshots without AMIs, unfinished uploads, a failed import, and an AMI without tags."""
        images = self.table("images", self.home)
        facts = {"image": "ecs-node", "region": self.home, "via": "import"}
        for number, days in enumerate((210, 95, 33)):
            digest = hashlib.sha256(f"orphan {number}".encode()).hexdigest()
            moment = self.now - timedelta(days=days)
            facts |= {"version": f"orphan.{number}", "digest": digest}
            facts["run_id"] = self.run_id("publish-ami", moment)
            del images[self.register(dict(facts), moment, 2.5).image.image_id]
        original = self.newest("ecs-node", age=300).facts
        copy = self.register(original | {"version": "by-hand"}, self.now - timedelta(days=250), 2.5)
        copy.image.name, copy.image.imds, copy.image.tags = "jenkins-golden-image", "", {"Name": "jenkins"}
        copy.image.description, copy.snapshot.description, copy.snapshot.tags = "", "", {}
        self.add_unfinished_upload()
        self.add_failed_import()
        self.add_bucket_leftovers()

    def add_unfinished_upload(self) -> None:
        """Create a snapshot whose direct upload is unfinished. It began minutes ago, because it expires."""
        started = self.now - timedelta(minutes=20)
        tags = {"vmsnix:image": "ecs-node", "vmsnix:digest": hashlib.sha256(b"direct").hexdigest()}
        tags["vmsnix:run"] = self.run_id("publish-ami", started)
        upload = DirectUpload(None, 4320, started)
        more = {"description": "NixOS image ecs-node", "direct": True, "upload": upload}
        self.add_snapshot(self.home, 4, started, tags=tags, **more)

    def add_failed_import(self) -> None:
        created = self.now - timedelta(minutes=25)
        task_id = self.new_id("import-snap")
        self.table("import_tasks", self.home)[task_id] = EmulatedImportTask(
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
        created = self.now - timedelta(days=730)
        new = Bucket(BUCKET, self.account, self.home, created)
        bucket = self.table("buckets", "").setdefault(BUCKET, new)
        moment = self.now - timedelta(days=45)
        key = "vmsnix/ecs-node/" + hashlib.sha256(b"object").hexdigest()[:32] + ".vhd"
        part = self.part("demo-object", 1, 48 * 1024**2, moment)
        bucket.objects[key] = StoredObject(key, (part,), part.md5, moment)
        began = self.now - timedelta(days=20)
        upload_id = hashlib.sha256(b"upload").hexdigest()
        bucket.uploads[upload_id] = MultipartUpload(
            upload_id=upload_id,
            key="vmsnix/actions-runner/" + hashlib.sha256(b"part").hexdigest()[:32] + ".vhd",
            initiated=began,
            principal=self.root(self.home),
            algorithm=None,
            checksum_type="",
            headers={},
            metadata={},
            tags={},
            parts={n: self.part(f"demo-part-{n}", n, 16 * 1024**2, began) for n in (1, 2)},
        )

    def part(self, name: str, number: int, size: int, moment: datetime) -> Part:
        """Write a sparse file of zeros, and return it as a part of an object."""
        file = hashlib.sha256(name.encode()).hexdigest()[:32]
        part = Part(
            number, file, size, hashlib.md5(bytes(size), usedforsecurity=False).hexdigest(), {}, moment
        )
        path = part.path(self.folder)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("wb") as target:
            target.truncate(size)
        return part
