"""DescribeRegions and DescribeAvailabilityZones.

The regions are botocore's. Which of them an account has without opting in is from "AWS Regions" of the
account management guide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, operation
from vmsnix_ops.sandbox.ec2.filters import Filters, absent, by_name, describe
from vmsnix_ops.sandbox.regions import partition_of, regions_of

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, SandboxTables

DEFAULT_REGIONS = (
    "us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1", "eu-central-1",
    "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "ap-northeast-1", "ap-northeast-2",
    "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2",
)  # fmt: skip
ZONE_LETTERS = "abc"
DIRECTION_CODES = {"northeast": "ne", "northwest": "nw", "southeast": "se", "southwest": "sw"}


def is_region_enabled(tables: SandboxTables, account: str, region: str) -> bool:
    """Return whether an account may use a region. The table ``opted_in_regions`` has those it opted in to."""
    if region in DEFAULT_REGIONS or partition_of(region) != "aws":
        return True
    return region in tables.table(account, "", "opted_in_regions")


def _region_view(context: Context, region: str) -> dict[str, Any]:
    suffix = "amazonaws.com.cn" if context.partition == "aws-cn" else "amazonaws.com"
    status = "opt-in-not-required"
    if context.partition == "aws" and region not in DEFAULT_REGIONS:
        enabled = is_region_enabled(context.tables, context.account, region)
        status = "opted-in" if enabled else "not-opted-in"
    return {"RegionName": region, "Endpoint": f"ec2.{region}.{suffix}", "OptInStatus": status}


@operation("ec2", "DescribeRegions", "AllRegions Filters RegionNames")
def describe_regions(context: Context, params: Params) -> dict[str, Any]:
    """Return the regions that are enabled for the account, or all regions."""
    known = {region: _region_view(context, region) for region in regions_of(context.partition)}
    names = params.get("RegionNames") or []
    for name in names:
        if name not in known:
            raise ApiError("InvalidParameterValue", f"Invalid region names: [{name}]")
    regions = list(known.values())
    if names:
        regions = [region for region in regions if region["RegionName"] in names]
    elif not params.get("AllRegions"):
        regions = [region for region in regions if region["OptInStatus"] != "not-opted-in"]
    filters = by_name("endpoint opt-in-status region-name")
    return describe(context, params, regions, filters=filters, key="RegionName")


def zones_of(region: str) -> list[str]:
    """Return the availability zones of a region."""
    return [region + letter for letter in ZONE_LETTERS]


def zone_ids(region: str) -> list[str]:
    """Return the IDs of the availability zones of a region."""
    return [zone_id(zone) for zone in zones_of(region)]


def check_zone(context: Context, zone: str) -> None:
    """Check that this region has a zone."""
    if zone not in zones_of(context.region):
        raise ApiError("InvalidParameterValue", f"Invalid availability zone: [{zone}]")


def zone_id(zone: str) -> str:
    """Return the ID of an availability zone."""
    region, letter = zone[:-1], zone[-1]
    area, direction, number = region.rsplit("-", 2)
    short = area.replace("-", "")[:3] + DIRECTION_CODES.get(direction, direction[0]) + number
    return f"{short}-az{ZONE_LETTERS.index(letter) + 1}"


def _zone_view(context: Context, zone: str) -> dict[str, Any]:
    return {
        "ZoneName": zone,
        "ZoneId": zone_id(zone),
        "ZoneType": "availability-zone",
        "RegionName": context.region,
        "State": "available",
        "Messages": [],
        "OptInStatus": "opt-in-not-required",
        "GroupName": context.region,
        "NetworkBorderGroup": context.region,
    }


ZONE_FILTERS: Filters = (
    by_name("group-name opt-in-status region-name state zone-id zone-name zone-type")
    | absent("message parent-zone-id parent-zone-name")
    | {"group-long-name": "GroupName"}
)


@operation("ec2", "DescribeAvailabilityZones", "AllAvailabilityZones Filters ZoneIds ZoneNames")
def describe_availability_zones(context: Context, params: Params) -> dict[str, Any]:
    """Return the zones of the region. The sandbox has no local or wavelength zones."""
    zones = zones_of(context.region)
    names, ids = params.get("ZoneNames") or [], params.get("ZoneIds") or []
    for name in names:
        check_zone(context, name)
    for unknown in [one for one in ids if one not in zone_ids(context.region)]:
        raise ApiError("InvalidParameterValue", f"Invalid availability zone-id: [{unknown}]")
    zones = [zone for zone in zones if not names or zone in names]
    zones = [zone for zone in zones if not ids or zone_id(zone) in ids]
    views = [_zone_view(context, zone) for zone in zones]
    return describe(context, params, views, filters=ZONE_FILTERS, key="ZoneName")
