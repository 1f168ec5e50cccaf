"""NixOS/amis upload-ami uploads, copies, tests and deletes AMIs in the sandbox.

No package index has it. ``VMSNIX_UPLOAD_AMI`` names the folder ``upload-ami`` of a checkout of it.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.foreign.conftest import BUCKET, REGION, WEST, Program, program
from tests.support import unavailable
from vmsnix_ops.disk.sample import make_sample_image

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

NAME = "nixos/26.11-x86_64-linux.1"
DAY = 86400
CONSOLE = "<<< Welcome to NixOS 26.11 >>>\r\n"


@pytest.fixture
def python(aws: Sandbox, tmp_path: Path) -> Program:
    """A Python that imports the tool from its checkout."""
    checkout = os.environ.get("VMSNIX_UPLOAD_AMI")
    if not checkout:
        unavailable("upload-ami", "VMSNIX_UPLOAD_AMI names no checkout of NixOS/amis' upload-ami")
    tool = program("boto3", "python", aws, tmp_path)
    source = str(Path(checkout).resolve() / "src")
    return replace(tool, environment={**tool.environment, "PYTHONPATH": source, "AWS_REGION": REGION})


def image_info(folder: Path, container: str) -> str:
    """Write the description of an image, as a build of NixOS does; return its path."""
    output = make_sample_image(
        folder / container, name="nixos", format=container, size=2**30, data_bytes=4 * 2**20
    )
    info = json.loads((output / "nix-support" / "image-info.json").read_text())
    stated = {
        "file": str(output / info["file"]) if not Path(info["file"]).is_absolute() else info["file"],
        "label": "26.11",
        "system": "x86_64-linux",
        "boot_mode": "uefi",
        "format": "VHD" if container == "vhd" else "RAW",
    }
    path = folder / f"{container}.json"
    path.write_text(json.dumps(stated))
    return str(path)


def check_upload_ami(python: Program, aws: Sandbox, *method: str, container: str) -> None:
    aws.faults.add({"op": "ec2:RunInstances", "do": "outcome", "outcome": {"console": CONSOLE}})
    ec2 = aws.client("ec2", REGION)
    for region in (REGION, WEST):
        aws.client("ec2", region).disable_image_block_public_access()
    options = (
        *("-m", "upload_ami.upload_ami", "--image-info", image_info(python.folder, container)),
        *("--prefix", "nixos/", "--run-id", "1", "--enable-tpm", *method),
        *("--copy-to-regions", "--dest-region", WEST, "--public"),
    )
    made = json.loads(python.run(*options, minutes=15))
    assert set(made) == {REGION, WEST}
    assert json.loads(python.run(*options)) == made  # nothing is made twice

    [image] = ec2.describe_images(Owners=["self"])["Images"]
    assert (image["Name"], image["ImageId"], image["Public"]) == (NAME, made[REGION], True)
    assert (image["TpmSupport"], image["BootMode"]) == ("v2.0", "uefi")
    [copy] = aws.client("ec2", WEST).describe_images(Owners=["self"])["Images"]
    assert (copy["Name"], copy["ImageId"]) == (NAME, made[WEST])
    assert "DeprecationTime" in image
    assert aws.client("s3", REGION).list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0

    smoke = ("-m", "upload_ami.smoke_test", "--image-id", made[REGION], "--run-id", "1", "--no-spot")
    python.run(*smoke, minutes=15)
    python.run(*smoke, "--cancel", minutes=15)
    states = [
        instance["State"]["Name"]
        for page in ec2.get_paginator("describe_instances").paginate()
        for reservation in page["Reservations"]
        for instance in reservation["Instances"]
    ]
    assert set(states) <= {"shutting-down", "terminated"}


@pytest.mark.parametrize(
    ("method", "container"),
    [(("--s3-bucket", BUCKET), "vhd"), (("--ebs-direct",), "raw")],
    ids=["s3", "direct"],
)
def test_upload_ami_makes_copies_and_tests_an_ami(
    python: Program, aws: Sandbox, method: tuple[str, ...], container: str
) -> None:
    check_upload_ami(python, aws, *method, container=container)


@pytest.mark.long(seconds=400)
@pytest.mark.parametrize("speed", [1.0])
def test_upload_ami_works_at_the_speed_of_aws(python: Program, aws: Sandbox, speed: float) -> None:
    check_upload_ami(python, aws, "--ebs-direct", container="raw")


def test_upload_ami_deletes_deprecated_images_and_orphaned_snapshots(python: Program, aws: Sandbox) -> None:
    python.run(
        *("-m", "upload_ami.upload_ami", "--image-info", image_info(python.folder, "raw")),
        *("--prefix", "nixos/", "--run-id", "1", "--ebs-direct"),
    )
    ec2, ebs = aws.client("ec2", REGION), aws.client("ebs", REGION)
    orphan = ebs.start_snapshot(VolumeSize=1, Tags=[{"Key": "ManagedBy", "Value": "NixOS/amis"}])
    ebs.complete_snapshot(SnapshotId=orphan["SnapshotId"], ChangedBlocksCount=0)
    [image] = ec2.describe_images(Owners=["self"])["Images"]
    image_snapshot = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]

    def snapshots() -> set[str]:
        return {one["SnapshotId"] for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}

    python.run("-c", "from upload_ami.delete_orphaned_snapshots import main; main()")
    assert snapshots() == {image_snapshot}
    aws.clock.advance(91 * DAY)
    python.run("-m", "upload_ami.delete_deprecated_images")
    assert snapshots() == {image_snapshot}  # by the tool's clock, the image is not yet deprecated
    python.run("-m", "upload_ami.delete_deprecated_images", "--grace-period", "-91")
    assert ec2.describe_images(Owners=["self"])["Images"] == []
    assert snapshots() == set()
