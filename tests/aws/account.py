"""AMIs in a sandbox with the tags of a publish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.aws import tags as tagging

if TYPE_CHECKING:
    import boto3

    from vmsnix_ops.sandbox import Sandbox

REGION = "us-east-1"


def thrifty(aws: Sandbox, region: str = REGION) -> boto3.Session:
    """Return a session that creates each client once: that takes longer than most calls."""
    session = aws.session(region)
    make, made = session.client, {}

    def client(service: str, region_name: str | None = None, **more: Any) -> Any:
        key = (service, region_name or region)
        if key not in made:
            made[key] = make(service, region_name=region_name, **more)
        return made[key]

    session.client = client
    return session


def make_ami(
    aws: Sandbox,
    *,
    image: str = "ecs-node",
    version: str = "26.11",
    region: str = REGION,
    digest: str = "",
    size_gib: int = 1,
    tags: dict[str, str] | None = None,
    **registration: Any,
) -> str:
    """Register an AMI with the tags of a publish, and return its ID."""
    ec2 = aws.client("ec2", region)
    digest = digest or (version.encode().hex() * 32)[:64]
    own = {
        tagging.NAME: f"altf4llc-{image}-{version}",
        tagging.IMAGE: image,
        tagging.DIGEST: digest,
        tagging.VERSION: version,
        tagging.RUN: "20261122T213000025Z-publish-ami-000000",
        **(tags or {}),
    }
    volume = ec2.create_volume(AvailabilityZone=f"{region}a", Size=size_gib, VolumeType="gp3")["VolumeId"]
    aws.clock.advance(60)
    snapshot = ec2.create_snapshot(
        VolumeId=volume, TagSpecifications=tagging.tag_specifications("snapshot", own)
    )["SnapshotId"]
    aws.clock.advance(3600)
    ec2.delete_volume(VolumeId=volume)
    request: dict[str, Any] = {
        "Name": own[tagging.NAME],
        "Architecture": "x86_64",
        "BootMode": "legacy-bios",
        "RootDeviceName": "/dev/sda1",
        "VirtualizationType": "hvm",
        "EnaSupport": True,
        "ImdsSupport": "v2.0",
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": snapshot}}],
        "TagSpecifications": tagging.tag_specifications("image", own),
    }
    return str(ec2.register_image(**(request | registration))["ImageId"])
