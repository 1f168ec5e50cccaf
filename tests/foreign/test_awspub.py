"""canonical/awspub makes and lists AMIs in the sandbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.disk.images import qemu_make
from tests.foreign.conftest import BUCKET, REGION, WEST, Program, program
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


def test_awspub_makes_images_once_and_lists_them(awspub: Program, aws: Sandbox) -> None:
    made = json.loads(awspub.run("create", "images.yaml"))["images"]
    assert set(made) == {"acme-server", "acme-trial", "acme-public"}
    server, public = made["acme-server"], made["acme-public"]
    assert set(server) == {REGION, WEST}
    assert json.loads(awspub.run("create", "images.yaml"))["images"] == made  # nothing is made twice
    assert json.loads(awspub.run("list", "images.yaml"))["images"] == made

    ec2 = aws.client("ec2", REGION)
    [image] = ec2.describe_images(ImageIds=[server[REGION]])["Images"]
    assert (image["BootMode"], image["ImdsSupport"], image["EnaSupport"]) == ("uefi-preferred", "v2.0", True)
    tags = {tag["Key"]: tag["Value"] for tag in image["Tags"]}
    assert (tags["team"], tags["kind"]) == ("platform", "server")
    assert ec2.describe_images(ImageIds=[public[REGION]])["Images"][0]["TpmSupport"] == "v2.0"
