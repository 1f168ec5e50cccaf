"""canonical/awspub makes, lists, publishes and deletes AMIs in the sandbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.disk.images import qemu_make
from tests.foreign.conftest import BUCKET, REGION, WEST, Program, program
from tests.support import wait_until
from vmsnix_ops.disk.sample import make_sample_image

if TYPE_CHECKING:
    from pathlib import Path

    from vmsnix_ops.sandbox import Sandbox

FRIEND = "222233334444"
CONFIGURATION = """
awspub:
  s3:
    bucket_name: {bucket}
  source:
    path: disk.vmdk
    architecture: x86_64
  tags:
    team: platform
  images:
    "acme-server":
      description: A server
      boot_mode: uefi-preferred
      root_device_volume_size: 4
      imds_support: v2.0
      regions: [{region}, {west}]
      share: ["{friend}"]
      tags: {{kind: server}}
      ssm_parameter:
        - name: /acme/server/latest
          description: The newest server
          allow_overwrite: true
      sns:
        - acme-news:
            subject: A new server
            message: {{default: New server, email: There is a new server.}}
            regions: [{west}]
    "acme-trial":
      description: For a day
      boot_mode: legacy-bios
      root_device_volume_size: 4
      regions: [{region}]
      temporary: true
    "acme-public":
      description: For everybody
      boot_mode: uefi
      tpm_support: v2.0
      separate_snapshot: true
      regions: [{region}]
      public: true
"""


@pytest.fixture
def awspub(aws: Sandbox, tmp_path: Path) -> Program:
    tool = program("awspub", "awspub", aws, tmp_path)
    output = make_sample_image(tmp_path / "raw", name="disk", format="raw", size=2**30, data_bytes=2**20)
    raw = next(output.glob("*.img"))
    qemu_make(tmp_path / "disk.vmdk", raw, "vmdk", "subformat=streamOptimized")
    (tmp_path / "images.yaml").write_text(
        CONFIGURATION.format(bucket=BUCKET, region=REGION, west=WEST, friend=FRIEND)
    )
    return tool


def test_awspub_makes_lists_publishes_and_deletes_images(awspub: Program, aws: Sandbox) -> None:
    made = json.loads(awspub.run("create", "images.yaml"))["images"]
    assert set(made) == {"acme-server", "acme-trial", "acme-public"}
    server, trial, public = made["acme-server"], made["acme-trial"], made["acme-public"]
    assert set(server) == {REGION, WEST}
    assert json.loads(awspub.run("create", "images.yaml"))["images"] == made  # nothing is made twice
    assert json.loads(awspub.run("list", "images.yaml"))["images"] == made

    ec2 = aws.client("ec2", REGION)
    [image] = ec2.describe_images(ImageIds=[server[REGION]])["Images"]
    assert (image["BootMode"], image["ImdsSupport"], image["EnaSupport"]) == ("uefi-preferred", "v2.0", True)
    tags = {tag["Key"]: tag["Value"] for tag in image["Tags"]}
    assert (tags["team"], tags["kind"]) == ("platform", "server")
    assert ec2.describe_images(ImageIds=[public[REGION]])["Images"][0]["TpmSupport"] == "v2.0"

    # A new account does not share AMIs publicly, and has no topics.
    failed = awspub.fail("publish", "images.yaml")
    assert "Topic does not exist" in failed
    topic = aws.client("sns", WEST).create_topic(Name="acme-news")["TopicArn"]
    assert "block public access for AMIs is enabled" in awspub.fail("publish", "images.yaml")
    ec2.disable_image_block_public_access()
    awspub.run("publish", "images.yaml")

    grants = ec2.describe_image_attribute(ImageId=server[REGION], Attribute="launchPermission")
    assert grants["LaunchPermissions"] == [{"UserId": FRIEND}]
    [shown] = ec2.describe_images(ImageIds=[public[REGION]])["Images"]
    snapshot = shown["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    grants = ec2.describe_snapshot_attribute(SnapshotId=snapshot, Attribute="createVolumePermission")
    assert (shown["Public"], grants["CreateVolumePermissions"]) == (True, [{"Group": "all"}])
    for region in (REGION, WEST):
        ssm = aws.client("ssm", region)
        wait_until(lambda ssm=ssm: ssm.describe_parameters()["Parameters"])
        found = ssm.get_parameter(Name="/acme/server/latest")["Parameter"]
        assert (found["Value"], found["DataType"]) == (server[region], "aws:ec2:image")
    messages = aws.state.tables.table(aws.account, WEST, "topics")[topic].messages
    assert [(one.subject, one.texts["email"], one.text) for one in messages][-1] == (
        "A new server",
        "There is a new server.",
        "New server",
    )

    awspub.run("cleanup", "images.yaml")
    left = {image["ImageId"] for image in ec2.describe_images(Owners=["self"])["Images"]}
    assert left == {server[REGION], public[REGION]}
    assert trial[REGION] not in left
