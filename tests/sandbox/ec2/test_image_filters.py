"""Filters of DescribeImages.

Sources: its reference page, whose list botocore carries; "List and filter using the CLI and API" (wildcards).
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused
from vmsnix_ops.sandbox.ec2.filters import documented_filters, wildcard_pattern

NOT_EMULATED = {
    name
    for name in documented_filters("DescribeImages")
    if name.startswith(("image-watermark.", "scan-result.", "instance-type-specification."))
} | {"free-tier-eligible", "image-allowed", "public-ssm-parameter-name"}
VALUES = {"informational", "low", "medium", "high", "critical"}
"""Values of a filter, which the documentation lists like filters."""


@pytest.fixture
def image(aws: SandboxClients) -> dict[str, Any]:
    tags = [{"Key": "Name", "Value": "a node"}]
    image = aws.image(
        BootMode="uefi-preferred",
        Description="one of many",
        Name="filtered-1",
        SriovNetSupport="simple",
        TagSpecifications=[{"ResourceType": "image", "Tags": tags}],
    )
    time.sleep(0.002)  # the copy's creation date, in milliseconds, differs
    copy = aws.ec2.copy_image(Name="other-1", SourceImageId=image, SourceRegion="us-east-1")["ImageId"]
    aws.pass_time(600)
    aws.ec2.modify_image_attribute(ImageId=copy, LaunchPermission={"Add": [{"Group": "all"}]})
    return aws.describe(image) | {"copy": copy}


def found(aws: SandboxClients, name: str, *values: str) -> list[str]:
    answer = aws.ec2.describe_images(Owners=["self"], Filters=[{"Name": name, "Values": list(values)}])
    return [image["ImageId"] for image in answer["Images"]]


def test_every_filter_compares_its_attribute(aws: SandboxClients, image: dict[str, Any]) -> None:
    device = image["BlockDeviceMappings"][0]["Ebs"]
    both = {
        "architecture": "x86_64",
        "block-device-mapping.delete-on-termination": "true",
        "block-device-mapping.device-name": "/dev/sda1",
        "block-device-mapping.encrypted": "false",
        "block-device-mapping.volume-size": "3",
        "block-device-mapping.volume-type": "gp3",
        "boot-mode": "uefi-preferred",
        "ena-support": "true",
        "hypervisor": "xen",
        "image-type": "machine",
        "owner-id": aws.account,
        "root-device-name": "/dev/sda1",
        "root-device-type": "ebs",
        "sriov-net-support": "simple",
        "state": "available",
        "virtualization-type": "hvm",
    }
    one = {
        "block-device-mapping.snapshot-id": device["SnapshotId"],
        "description": "one of many",
        "image-id": image["ImageId"],
        "is-public": "false",
        "manifest-location": f"{aws.account}/filtered-1",
        "name": "filtered-1",
        "tag-key": "Name",
        "tag:Name": "a node",
    }
    other = {"source-image-id": image["ImageId"], "source-image-region": "us-east-1", "is-public": "true"}
    everything = sorted([image["ImageId"], image["copy"]])
    for values, expected in ((both, everything), (one, [image["ImageId"]]), (other, [image["copy"]])):
        for name, value in values.items():
            assert sorted(found(aws, name, value)) == expected, name
            assert found(aws, name, "no-such-value") == [], name


def test_every_documented_filter_is_known(aws: SandboxClients, image: dict[str, Any]) -> None:
    for name in sorted(documented_filters("DescribeImages") - NOT_EMULATED - VALUES):
        assert found(aws, name, "no-such-value") == [], name


def test_filters_that_are_not_emulated_are_refused_as_such(aws: SandboxClients) -> None:
    for name in sorted(NOT_EMULATED):
        with refused("NotImplemented", name):
            found(aws, name, "2026-01-01")


def test_unknown_filters_are_refused_as_aws_does(aws: SandboxClients) -> None:
    with refused("InvalidParameterValue", "The filter 'bogus' is invalid"):
        found(aws, "bogus", "x")


def test_one_value_and_every_filter_must_match(aws: SandboxClients, image: dict[str, Any]) -> None:
    assert len(found(aws, "name", "filtered-1", "other-1")) == 2
    filters = [{"Name": "name", "Values": ["filtered-1", "other-1"]}, {"Name": "tag-key", "Values": ["Name"]}]
    answer = aws.ec2.describe_images(Owners=["self"], Filters=filters)
    assert [i["ImageId"] for i in answer["Images"]] == [image["ImageId"]]


def test_values_have_wildcards_and_case(aws: SandboxClients, image: dict[str, Any]) -> None:
    assert found(aws, "name", "filtered-*") == [image["ImageId"]]
    assert found(aws, "name", "filtered-?") == [image["ImageId"]]
    assert found(aws, "name", "Filtered-*") == []
    assert found(aws, "creation-date", image["CreationDate"][:10] + "*") != []
    assert found(aws, "tag:Name", "a *") == [image["ImageId"]]


@pytest.mark.parametrize(
    ("wanted", "text", "matches"),
    [
        ("a*", "abc", True),
        ("a*", "ba", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        (r"a\*", "a*", True),
        (r"a\*", "ab", False),
        ("a.c", "abc", False),
        ("[ab]", "a", False),
        ("", "", True),
    ],
)
def test_only_star_and_question_mark_are_wildcards(wanted: str, text: str, matches: bool) -> None:
    assert (wildcard_pattern(wanted).fullmatch(text) is not None) is matches


def test_a_filter_without_values_is_refused(aws: SandboxClients) -> None:
    with refused("InvalidParameterValue"):
        aws.ec2.describe_images(Filters=[{"Name": "name", "Values": []}])


def test_a_filter_has_at_most_200_values(aws: SandboxClients) -> None:
    assert found(aws, "name", *(str(n) for n in range(200))) == []
    with refused("FilterLimitExceeded"):
        found(aws, "name", *(str(n) for n in range(201)))
