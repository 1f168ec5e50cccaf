"""Instance types. Sources: recorded answers of DescribeInstanceTypes; "Amazon EC2 instance types"."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused


def types(aws: SandboxClients, **filters: str) -> dict[str, dict[str, Any]]:
    wanted = [{"Name": name.replace("_", "-"), "Values": [value]} for name, value in filters.items()]
    pages = aws.ec2.get_paginator("describe_instance_types").paginate(Filters=wanted)
    return {kind["InstanceType"]: kind for page in pages for kind in page["InstanceTypes"]}


@pytest.mark.parametrize(
    ("name", "architectures", "boot_modes", "tpm", "ena", "processors", "memory"),
    [
        ("t2.micro", ["i386", "x86_64"], ["legacy-bios"], "unsupported", "unsupported", 1, 1024),
        ("t3.small", ["x86_64"], ["legacy-bios", "uefi"], "supported", "required", 2, 2048),
        ("t4g.nano", ["arm64"], ["uefi"], "supported", "required", 2, 512),
        ("m5.large", ["x86_64"], ["legacy-bios", "uefi"], "supported", "required", 2, 8192),
        ("m8g.large", ["arm64"], ["uefi"], "supported", "required", 2, 8192),
        ("c7i-flex.large", ["x86_64"], ["legacy-bios", "uefi"], "supported", "required", 2, 4096),
        ("r6idn.large", ["x86_64"], ["legacy-bios", "uefi"], "supported", "required", 2, 16384),
        ("g5g.xlarge", ["arm64"], ["uefi"], "unsupported", "required", 4, 8192),
        ("c5.metal", ["x86_64"], ["legacy-bios"], "unsupported", "required", 96, 196608),
    ],
)
def test_a_type_has_its_architecture_boot_modes_tpm_and_size(
    aws: SandboxClients,
    name: str,
    architectures: list[str],
    boot_modes: list[str],
    tpm: str,
    ena: str,
    processors: int,
    memory: int,
) -> None:
    (kind,) = aws.ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
    assert kind["ProcessorInfo"]["SupportedArchitectures"] == architectures
    assert (kind["SupportedBootModes"], kind["NitroTpmSupport"]) == (boot_modes, tpm)
    assert kind["NetworkInfo"]["EnaSupport"] == ena
    assert (kind["VCpuInfo"]["DefaultVCpus"], kind["MemoryInfo"]["SizeInMiB"]) == (processors, memory)


def test_the_families_that_operators_use_exist(aws: SandboxClients) -> None:
    families = {name.partition(".")[0] for name in types(aws)}
    assert {"t2", "t3", "t3a", "t4g", "g4dn", "g5", "g5g", "g6"} <= families
    for letter in "mcr":
        for suffix in (
            "5",
            "5a",
            "5d",
            "5n",
            "6a",
            "6g",
            "6gd",
            "6i",
            "6id",
            "7a",
            "7g",
            "7gd",
            "7i",
            "8g",
            "8i",
        ):
            assert f"{letter}{suffix}" in families


def test_types_are_filtered(aws: SandboxClients) -> None:
    arm = types(aws, **{"processor-info.supported-architecture": "arm64"})
    assert "t4g.micro" in arm
    assert "t3.micro" not in arm
    assert (
        types(aws, nitro_tpm_support="unsupported", instance_type="t*").keys()
        == types(aws, instance_type="t2.*").keys()
    )


def test_a_type_that_aws_may_have_is_not_emulated(aws: SandboxClients) -> None:
    for name in ("x2gd.medium", "u-6tb1.metal", "m9g.large"):
        with refused("NotImplemented", f"the instance type '{name}'"):
            aws.ec2.describe_instance_types(InstanceTypes=[name])
    for name in ("t3.mega", "t3.3xlarge", "micro"):
        with refused("InvalidInstanceType", f"[{name}]"):
            aws.ec2.describe_instance_types(InstanceTypes=[name])


def test_types_are_offered_in_every_zone(aws: SandboxClients) -> None:
    params: dict[str, Any] = {"Filters": [{"Name": "instance-type", "Values": ["t3.micro"]}]}
    offered = aws.ec2.describe_instance_type_offerings(LocationType="availability-zone", **params)
    assert [o["Location"] for o in offered["InstanceTypeOfferings"]] == [
        "us-east-1a",
        "us-east-1b",
        "us-east-1c",
    ]
    (region,) = aws.ec2.describe_instance_type_offerings(**params)["InstanceTypeOfferings"]
    assert (region["LocationType"], region["Location"]) == ("region", "us-east-1")


def test_a_launch_without_a_type_has_the_default_type(aws: SandboxClients) -> None:
    """RunInstances: the default is m1.small."""
    launched = aws.ec2.run_instances(ImageId=aws.image(EnaSupport=False), MinCount=1, MaxCount=1)
    assert launched["Instances"][0]["InstanceType"] == "m1.small"
