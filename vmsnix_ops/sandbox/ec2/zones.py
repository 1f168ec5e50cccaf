"""DescribeRegions and DescribeAvailabilityZones.

Which regions there are comes from botocore; which of them an account has without opting in, from "AWS
Regions" of the account management guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2.filters import apply_filters
from vmsnix_ops.sandbox.regions import partition_of, regions_of

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Tables


DEFAULT_REGIONS = frozenset(
    [
        "us-east-1",
        "us-east-2",
        "us-west-1",
        "us-west-2",
        "ca-central-1",
        "sa-east-1",
        "eu-central-1",
        "eu-north-1",
        "eu-west-1",
        "eu-west-2",
        "eu-west-3",
        "ap-northeast-1",
        "ap-northeast-2",
        "ap-northeast-3",
        "ap-south-1",
        "ap-southeast-1",
        "ap-southeast-2",
    ]
)
ZONE_LETTERS = "abc"
DIRECTION_CODES = {"northeast": "ne", "northwest": "nw", "southeast": "se", "southwest": "sw"}


@dataclass(frozen=True, slots=True)
class _Region:
    name: str
    endpoint: str
    opt_in: str


def _is_enabled(context: Context, region: str) -> bool:
    """Tell whether the caller's account may use a region."""
    return is_region_enabled(context.tables, context.account, region)


def is_region_enabled(tables: Tables, account: str, region: str) -> bool:
    """Tell whether an account may use a region; opted-in ones are in the table ``opted_in_regions``."""
    if region in DEFAULT_REGIONS or partition_of(region) != "aws":
        return True
    return region in tables.table(account, "", "opted_in_regions")


def _opt_in(context: Context, region: str) -> str:
    if context.partition != "aws" or region in DEFAULT_REGIONS:
        return "opt-in-not-required"
    return "opted-in" if _is_enabled(context, region) else "not-opted-in"


@operation("ec2", "DescribeRegions", honours=("AllRegions", "Filters", "RegionNames"))
def describe_regions(context: Context, params: Params) -> dict[str, Any]:
    """Return the regions that are enabled for the account, or all of them."""
    suffix = "amazonaws.com.cn" if context.partition == "aws-cn" else "amazonaws.com"
    known = [
        _Region(name, f"ec2.{name}.{suffix}", _opt_in(context, name))
        for name in regions_of(context.partition)
    ]
    asked = params.get("RegionNames") or []
    for name in asked:
        if name not in [r.name for r in known]:
            raise AwsError("InvalidParameterValue", f"Invalid region names: [{name}]")
    if asked:
        known = [r for r in known if r.name in asked]
    elif not params.get("AllRegions"):
        known = [r for r in known if r.opt_in != "not-opted-in"]
    readers = {
        "endpoint": lambda r: [r.endpoint],
        "opt-in-status": lambda r: [r.opt_in],
        "region-name": lambda r: [r.name],
    }
    kept = apply_filters(known, params, readers, tags=False)
    return {
        "Regions": [{"RegionName": r.name, "Endpoint": r.endpoint, "OptInStatus": r.opt_in} for r in kept]
    }


def zones_of(region: str) -> list[str]:
    """Return the availability zones of a region."""
    return [region + letter for letter in ZONE_LETTERS]


def check_zone(context: Context, zone: str) -> None:
    """Refuse a zone that this region does not have."""
    if zone not in zones_of(context.region):
        raise AwsError("InvalidParameterValue", f"Invalid availability zone: [{zone}]")


def _zone_id(zone: str) -> str:
    region, letter = zone[:-1], zone[-1]
    area, direction, number = region.rsplit("-", 2)
    short = area.replace("-", "")[:3] + DIRECTION_CODES.get(direction, direction[0]) + number
    return f"{short}-az{ZONE_LETTERS.index(letter) + 1}"


@operation(
    "ec2", "DescribeAvailabilityZones", honours=("AllAvailabilityZones", "Filters", "ZoneIds", "ZoneNames")
)
def describe_availability_zones(context: Context, params: Params) -> dict[str, Any]:
    """Return the zones of the region; there are no local or wavelength zones here, opted in to or not."""
    found = zones_of(context.region)
    for name in params.get("ZoneNames") or []:
        check_zone(context, name)
    for zone_id in params.get("ZoneIds") or []:
        if zone_id not in [_zone_id(z) for z in found]:
            raise AwsError("InvalidParameterValue", f"Invalid availability zone-id: [{zone_id}]")
    if params.get("ZoneNames"):
        found = [z for z in found if z in params["ZoneNames"]]
    if params.get("ZoneIds"):
        found = [z for z in found if _zone_id(z) in params["ZoneIds"]]
    readers = {
        "group-long-name": lambda _z: [context.region],
        "group-name": lambda _z: [context.region],
        "message": lambda _z: [],
        "opt-in-status": lambda _z: ["opt-in-not-required"],
        "parent-zone-id": lambda _z: [],
        "parent-zone-name": lambda _z: [],
        "region-name": lambda _z: [context.region],
        "state": lambda _z: ["available"],
        "zone-id": lambda z: [_zone_id(z)],
        "zone-name": lambda z: [z],
        "zone-type": lambda _z: ["availability-zone"],
    }
    kept = apply_filters(found, params, readers, tags=False)
    return {
        "AvailabilityZones": [
            {
                "ZoneName": zone,
                "ZoneId": _zone_id(zone),
                "ZoneType": "availability-zone",
                "RegionName": context.region,
                "State": "available",
                "OptInStatus": "opt-in-not-required",
                "GroupName": context.region,
                "NetworkBorderGroup": context.region,
            }
            for zone in kept
        ]
    }
