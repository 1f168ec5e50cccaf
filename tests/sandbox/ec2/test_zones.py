"""Regions and zones. Sources: DescribeRegions, DescribeAvailabilityZones; "AWS Regions" (account guide)."""

from __future__ import annotations

import pytest

from tests.sandbox.clients import SandboxClients, refused


def test_an_account_has_seventeen_regions_without_opting_in(aws: SandboxClients) -> None:
    regions = aws.ec2.describe_regions()["Regions"]
    assert len(regions) == 17
    assert {region["OptInStatus"] for region in regions} == {"opt-in-not-required"}
    assert {"us-east-1", "eu-central-1"} <= {region["RegionName"] for region in regions}


def test_valid_keys_are_unknown_in_a_region_without_opt_in(aws: SandboxClients) -> None:
    operations = {
        "ec2": "describe_images",
        "ssm": "describe_parameters",
        "sts": "get_caller_identity",
        "autoscaling": "describe_auto_scaling_groups",
    }
    codes = {}
    for service, operation in operations.items():
        client = aws.sandbox.client(service, "me-south-1")
        with pytest.raises(client.exceptions.ClientError) as caught:
            getattr(client, operation)()
        codes[service] = caught.value.response["Error"]["Code"]
    assert codes == {
        "ec2": "AuthFailure",
        "ssm": "UnrecognizedClientException",
        "sts": "InvalidClientTokenId",
        "autoscaling": "InvalidClientTokenId",
    }


def test_all_regions_include_those_without_opt_in(aws: SandboxClients) -> None:
    regions = {
        r["RegionName"]: r["OptInStatus"] for r in aws.ec2.describe_regions(AllRegions=True)["Regions"]
    }
    assert regions["af-south-1"] == "not-opted-in"
    assert len(regions) > 30


def test_regions_are_described_by_name(aws: SandboxClients) -> None:
    answer = aws.ec2.describe_regions(RegionNames=["eu-west-1"])["Regions"]
    assert [region["Endpoint"] for region in answer] == ["ec2.eu-west-1.amazonaws.com"]
    with refused("InvalidParameterValue", "Invalid region names: [mars-north-1]"):
        aws.ec2.describe_regions(RegionNames=["mars-north-1"])


def test_zones_have_names_and_ids(aws: SandboxClients) -> None:
    zones = aws.client("ec2", "ap-southeast-2").describe_availability_zones()["AvailabilityZones"]
    assert zones[0]["ZoneName"] == "ap-southeast-2a"
    assert zones[0]["ZoneId"] == "apse2-az1"
    assert {zone["State"] for zone in zones} == {"available"}


def test_zones_are_described_by_name_and_id(aws: SandboxClients) -> None:
    by_id = aws.ec2.describe_availability_zones(ZoneIds=["use1-az2"])["AvailabilityZones"]
    by_name = aws.ec2.describe_availability_zones(ZoneNames=["us-east-1b"])["AvailabilityZones"]
    assert [zone["ZoneName"] for zone in by_id] == ["us-east-1b"]
    assert by_name == by_id
    with refused("InvalidParameterValue", "Invalid availability zone-id: [use1-az9]"):
        aws.ec2.describe_availability_zones(ZoneIds=["use1-az9"])
