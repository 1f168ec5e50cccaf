"""An account to audit, with short methods to create resources in it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tests.sandbox.clients import allow_public_images
from vmsnix_ops.audit import inventory
from vmsnix_ops.audit.retirement.decisions import RetirementRules
from vmsnix_ops.settings import RetirementPolicy, load

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Access, Sandbox

REGION = "us-east-1"
OTHER_ACCOUNT, FOREIGN_ACCOUNT = "111122223333", "444455556666"
DIGEST = {"vmsnix:digest": "d" * 64, "vmsnix:image": "web"}


@dataclass
class Owner:
    """Creates AMIs and references to them, as one account; time passes only if a test advances it."""

    aws: Sandbox
    access: Access | None = None
    names: Any = field(default_factory=lambda: itertools.count(1))
    clients: dict[tuple[str, str], Any] = field(default_factory=dict)

    def client(self, service: str, region: str = REGION) -> Any:
        """Return a client, created once."""
        if (service, region) not in self.clients:
            self.clients[service, region] = (self.access or self.aws).client(service, region)
        return self.clients[service, region]

    @property
    def account(self) -> str:
        """The account ID."""
        return (self.access or self.aws).account

    def snapshot(self, region: str = REGION, tags: dict[str, str] | None = None, **more: Any) -> str:
        """Return a completed snapshot of an empty volume, three days old."""
        ec2 = self.client("ec2", region)
        volume = ec2.create_volume(Size=3, AvailabilityZone=f"{region}a")["VolumeId"]
        if tags:
            more["TagSpecifications"] = [{"ResourceType": "snapshot", "Tags": listed(tags)}]
        made: str = ec2.create_snapshot(VolumeId=volume, **more)["SnapshotId"]
        self.aws.clock.advance(60)
        self.table("snapshots", region)[made].started -= timedelta(days=3)
        return made

    def ami(self, region: str = REGION, tags: dict[str, str] | None = None, **more: Any) -> str:
        """Return an available AMI with IMDSv2, old enough that AWS reports its launches."""
        request = {
            "Name": f"image-{next(self.names)}",
            "Architecture": "x86_64",
            "RootDeviceName": "/dev/sda1",
            "VirtualizationType": "hvm",
            "EnaSupport": True,
            "ImdsSupport": "v2.0",
            "BootMode": "uefi",
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": self.snapshot(region, tags)}}
            ],
        }
        if tags:
            request["TagSpecifications"] = [{"ResourceType": "image", "Tags": listed(tags)}]
        made: str = self.client("ec2", region).register_image(**(request | more))["ImageId"]
        self.table("images", region)[made].created -= timedelta(days=3)
        return made

    def template(self, ami: str, name: str = "nodes", region: str = REGION) -> str:
        """Return a launch template with an AMI."""
        data = {"ImageId": ami, "InstanceType": "t3.micro"}
        made = self.client("ec2", region).create_launch_template(
            LaunchTemplateName=name, LaunchTemplateData=data
        )
        template_id: str = made["LaunchTemplate"]["LaunchTemplateId"]
        return template_id

    def versions(self, name: str, *amis: str, default: int = 1) -> str:
        """Return a launch template with a version for each AMI."""
        ec2, template = self.client("ec2"), self.template(amis[0], name)
        for ami in amis[1:]:
            data = {"ImageId": ami, "InstanceType": "t3.micro"}
            ec2.create_launch_template_version(LaunchTemplateId=template, LaunchTemplateData=data)
        ec2.modify_launch_template(LaunchTemplateId=template, DefaultVersion=str(default))
        return template

    def import_object(self, key: str, bucket: str) -> str:
        """Return a task that imports an object that is not a disk."""
        self.client("s3").put_object(Bucket=bucket, Key=key, Body=b"no disk")
        container = {"Format": "VHD", "UserBucket": {"S3Bucket": bucket, "S3Key": key}}
        task: str = self.client("ec2").import_snapshot(DiskContainer=container)["ImportTaskId"]
        return task

    def launch(self, ami: str, region: str = REGION) -> str:
        """Return a running instance of an AMI."""
        run = self.client("ec2", region).run_instances(
            ImageId=ami, InstanceType="t3.micro", MinCount=1, MaxCount=1
        )
        instance: str = run["Instances"][0]["InstanceId"]
        return instance

    def scan(self, **options: Any) -> inventory.Inventory:
        """Scan as this account; options may contain numbers of the retirement policy."""
        return inventory.scan(policy_rules(options), session=(self.access or self.aws).session(), **options)

    def table(self, kind: str, region: str = REGION) -> dict[str, Any]:
        """Return the objects of the sandbox of a kind, such as images, by ID; a test may change them."""
        found: dict[str, Any] = self.aws.state.tables.table(self.account, region, kind)
        return found

    def fail(self, operation: str, code: str = "UnauthorizedOperation", http: int = 403, **more: Any) -> None:
        """Let an operation fail with a code of AWS."""
        self.aws.faults.add({"op": operation, "do": "error", "code": code, "http": http, **more})

    def share(self, ami: str, *accounts: str, region: str = REGION) -> None:
        """Share an AMI with accounts; ``all`` is everybody."""
        if "all" in accounts:
            allow_public_images(self.aws, region)
        add = [{"Group": "all"} if one == "all" else {"UserId": one} for one in accounts]
        self.client("ec2", region).modify_image_attribute(ImageId=ami, LaunchPermission={"Add": add})


def policy_rules(options: dict[str, Any]) -> RetirementRules:
    """Return the retirement rules with the numbers in some options, which are removed from there."""
    names = {one.name for one in fields(RetirementPolicy)} & options.keys()
    return RetirementRules.of(load().retirement, **{name: options.pop(name) for name in names})


def listed(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return tags as the API expects them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]
