"""Regions, zones and networks: the default VPC of each account and region, its subnets, and security groups.

The regions are botocore's. Which of them an account has without opting in is from "AWS Regions" of the
account management guide. Each region has a default VPC with one subnet for each zone and a default security
group, as in a new account. Other VPCs and subnets cannot be created, and no traffic flows. Sources: "Default
VPCs" and "Default security groups for your VPCs" of the VPC User Guide; the reference pages of the
operations; the examples of the AWS CLI. Error texts are from public transcripts, or marked as from memory.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, not_emulated, operation, tags_member
from vmsnix_ops.sandbox.ec2.common import (
    SECURITY_GROUP,
    SUBNET,
    VPC,
    find_own,
    find_own_or_all,
    invalid_value,
    missing_parameter,
    new_id,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.filters import Filters, absent, by_name, describe
from vmsnix_ops.sandbox.regions import partition_of, regions_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmsnix_ops.sandbox.core import Context, SandboxTables
    from vmsnix_ops.sandbox.ec2.resources import EmulatedInstance


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
    enabled = is_region_enabled(context.tables, context.account, region)
    status = "opted-in" if enabled else "not-opted-in"
    if context.partition != "aws" or region in DEFAULT_REGIONS:
        status = "opt-in-not-required"
    return {"RegionName": region, "Endpoint": f"ec2.{region}.{suffix}", "OptInStatus": status}


@operation("ec2", "DescribeRegions", "AllRegions Filters RegionNames")
def describe_regions(context: Context, params: Params) -> dict[str, Any]:
    """Return the regions that are enabled for the account, or all regions."""
    known = {region: _region_view(context, region) for region in regions_of(context.partition)}
    names = params.get("RegionNames") or []
    for name in names:
        if name not in known:
            raise invalid_value(f"Invalid region names: [{name}]")
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
        raise invalid_value(f"Invalid availability zone: [{zone}]")


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
    names, ids = params.get("ZoneNames") or [], params.get("ZoneIds") or []
    for name in names:
        check_zone(context, name)
    for unknown in [one for one in ids if one not in zone_ids(context.region)]:
        raise invalid_value(f"Invalid availability zone-id: [{unknown}]")
    zones = [zone for zone in zones_of(context.region) if not names or zone in names]
    views = [_zone_view(context, zone) for zone in zones if not ids or zone_id(zone) in ids]
    return describe(context, params, views, filters=ZONE_FILTERS, key="ZoneName")


VPC_CIDR = "172.31.0.0/16"
SUBNET_ADDRESSES = 4096 - 5
"""Addresses of a /20 subnet, apart from the five that AWS reserves."""


@dataclass(slots=True)
class Vpc:
    """The default VPC of a region."""

    vpc_id: str
    owner: str
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Subnet:
    """The default subnet of a zone. `number` counts the /20 networks of the VPC."""

    subnet_id: str
    owner: str
    vpc_id: str
    zone: str
    number: int
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def cidr(self) -> str:
        """Its network, such as ``172.31.16.0/20``."""
        return f"172.31.{16 * self.number}.0/20"


@dataclass(slots=True)
class SecurityGroup:
    """A security group. `ingress` and `egress` are lists of IpPermission structures."""

    group_id: str
    owner: str
    vpc_id: str
    name: str
    description: str
    ingress: list[dict[str, Any]] = field(default_factory=list)
    egress: list[dict[str, Any]] = field(
        default_factory=lambda: [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    )
    tags: dict[str, str] = field(default_factory=dict)


def default_vpc(context: Context) -> Vpc:
    """Return the default VPC of the region; creates it with its subnets and its security group.

    The IDs are the same in every sandbox for an account and region.
    """
    vpcs = context.table(VPC.table)
    vpc_id = _fixed_id(context, VPC.prefix, "")
    if vpc_id not in vpcs:
        vpcs[vpc_id] = Vpc(vpc_id, context.account)
        for number, zone in enumerate(zones_of(context.region)):
            subnet = Subnet(_fixed_id(context, SUBNET.prefix, zone), context.account, vpc_id, zone, number)
            context.table(SUBNET.table)[subnet.subnet_id] = subnet
        group_id, text = _fixed_id(context, SECURITY_GROUP.prefix, "default"), "default VPC security group"
        itself = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id, "UserId": context.account}]}
        group = SecurityGroup(group_id, context.account, vpc_id, "default", text, ingress=[itself])
        context.table(SECURITY_GROUP.table)[group_id] = group
    found: Vpc = vpcs[vpc_id]
    return found


def _fixed_id(context: Context, prefix: str, name: str) -> str:
    text = f"{context.account} {context.region} {prefix} {name}"
    return f"{prefix}-0{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def find_subnet(context: Context, subnet_id: str, zone: str = "") -> Subnet:
    """Return a subnet of the caller, without an ID the default one of a zone.

    The ``Malformed`` or ``NotFound`` error for an ID of another form or of no subnet.
    """
    default_vpc(context)
    found: Subnet = find_own(context, SUBNET, subnet_id or _fixed_id(context, SUBNET.prefix, zone))
    return found


def find_groups(context: Context, group_ids: Iterable[str], names: Iterable[str] = ()) -> list[SecurityGroup]:
    """Return security groups of the caller by ID and name; the default group when both are empty."""
    vpc_id = default_vpc(context).vpc_id
    groups = {group.name: group for group in context.table(SECURITY_GROUP.table).values()}
    found = [find_own(context, SECURITY_GROUP, group_id) for group_id in group_ids]
    for name in names:
        if name not in groups:
            text = f"The security group '{name}' does not exist in default VPC '{vpc_id}'"
            raise ApiError("InvalidGroup.NotFound", text)
        found.append(groups[name])
    return found or [groups["default"]]


def _vpc_view(_context: Context, vpc: Vpc) -> dict[str, Any]:
    association = {
        "AssociationId": f"vpc-cidr-assoc-{vpc.vpc_id.removeprefix('vpc-')}",
        "CidrBlock": VPC_CIDR,
        "CidrBlockState": {"State": "associated"},
    }
    view: dict[str, Any] = {
        "VpcId": vpc.vpc_id,
        "OwnerId": vpc.owner,
        "State": "available",
        "CidrBlock": VPC_CIDR,
        "CidrBlockAssociationSet": [association],
        "DhcpOptionsId": f"dopt-{vpc.vpc_id.removeprefix('vpc-')}",
        "InstanceTenancy": "default",
        "IsDefault": True,
    }
    return view | tags_member(vpc.tags)


# AWS accepts some names in camel case too: they are in its documentation, or public tools send them.
VPC_FILTERS: Filters = (
    by_name("dhcp-options-id is-default isDefault owner-id state vpc-id")
    | absent(
        "ipv6-cidr-block-association.association-id ipv6-cidr-block-association.ipv6-cidr-block "
        "ipv6-cidr-block-association.ipv6-pool ipv6-cidr-block-association.state"
    )
    | {
        "cidr": "CidrBlock",
        "cidr-block-association.association-id": "CidrBlockAssociationSet.AssociationId",
        "cidr-block-association.cidr-block": "CidrBlockAssociationSet.CidrBlock",
        "cidr-block-association.state": "CidrBlockAssociationSet.CidrBlockState.State",
    }
)


@operation("ec2", "DescribeVpcs", "Filters MaxResults NextToken VpcIds")
def describe_vpcs(context: Context, params: Params) -> dict[str, Any]:
    """Return the default VPC of the region."""
    default_vpc(context)
    vpcs = find_own_or_all(context, VPC, params.get("VpcIds"))
    return describe(context, params, vpcs, _vpc_view, filters=VPC_FILTERS, key="vpc_id")


def _subnet_view(context: Context, subnet: Subnet) -> dict[str, Any]:
    used = [
        i for i in context.table("instances").values() if i.subnet_id == subnet.subnet_id and i.private_ip
    ]
    view: dict[str, Any] = {
        "SubnetId": subnet.subnet_id,
        "SubnetArn": context.arn("ec2", f"subnet/{subnet.subnet_id}"),
        "OwnerId": subnet.owner,
        "VpcId": subnet.vpc_id,
        "State": "available",
        "AvailabilityZone": subnet.zone,
        "AvailabilityZoneId": zone_id(subnet.zone),
        "CidrBlock": subnet.cidr,
        "AvailableIpAddressCount": SUBNET_ADDRESSES - len(used),
        "DefaultForAz": True,
        "MapPublicIpOnLaunch": True,
        "MapCustomerOwnedIpOnLaunch": False,
        "AssignIpv6AddressOnCreation": False,
        "Ipv6CidrBlockAssociationSet": [],
        "EnableDns64": False,
        "Ipv6Native": False,
        "PrivateDnsNameOptionsOnLaunch": {
            "HostnameType": "ip-name",
            "EnableResourceNameDnsARecord": False,
            "EnableResourceNameDnsAAAARecord": False,
        },
    }
    return view | tags_member(subnet.tags)


SUBNET_FILTERS: Filters = (
    by_name(
        "availability-zone availabilityZone availability-zone-id availabilityZoneId "
        "available-ip-address-count cidr-block cidrBlock default-for-az defaultForAz enable-dns64 "
        "ipv6-native map-customer-owned-ip-on-launch map-public-ip-on-launch owner-id "
        "private-dns-name-options-on-launch.hostname-type state subnet-arn subnet-id vpc-id"
    )
    | absent(
        "customer-owned-ipv4-pool ipv6-cidr-block-association.association-id "
        "ipv6-cidr-block-association.ipv6-cidr-block ipv6-cidr-block-association.state outpost-arn"
    )
    | {"cidr": "CidrBlock"}
)


@operation("ec2", "DescribeSubnets", "Filters MaxResults NextToken SubnetIds")
def describe_subnets(context: Context, params: Params) -> dict[str, Any]:
    """Return the default subnets of the region."""
    default_vpc(context)
    subnets = find_own_or_all(context, SUBNET, params.get("SubnetIds"))
    return describe(context, params, subnets, _subnet_view, filters=SUBNET_FILTERS, key="subnet_id")


# Network interfaces
#
# An instance has one interface. Its ID and its MAC address follow from the instance's ID. Public addresses
# are of the networks that RFC 5737 reserves for documentation.

PUBLIC_NETWORKS = ("203.0.113", "198.51.100", "192.0.2")


def free_private_address(context: Context, subnet: Subnet) -> str:
    """Return an address of a subnet that no instance has."""
    used = {instance.private_ip for instance in context.table("instances").values()}
    start = ip_network(subnet.cidr).network_address
    return next(str(start + number) for number in range(4, 4095) if str(start + number) not in used)


def free_public_address(context: Context) -> str:
    """Return a public address that no instance of the account has in this region."""
    used = {instance.public_ip for instance in context.table("instances").values()}
    addresses = (f"{network}.{number}" for network in PUBLIC_NETWORKS for number in range(1, 255))
    return next((address for address in addresses if address not in used), "")


def network_view(context: Context, instance: EmulatedInstance, state: str) -> dict[str, Any]:
    """Return the members of DescribeInstances about the network of an instance.

    A terminated instance has none. The public address belongs to a running instance only.
    """
    nothing: dict[str, Any] = {"PrivateDnsName": "", "PublicDnsName": "", "SecurityGroups": []}
    if state == "terminated":
        return nothing | {"NetworkInterfaces": []}
    subnet = find_subnet(context, instance.subnet_id, instance.zone)
    region = context.region
    address = instance.private_ip or str(ip_network(subnet.cidr).network_address + 4)
    domain = "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"
    name = f"ip-{address.replace('.', '-')}.{domain}"
    public = _public_address_view(region, instance.public_ip) if state == "running" else {}
    found = find_groups(context, instance.group_ids)
    groups = [{"GroupName": group.name, "GroupId": group.group_id} for group in found]
    association = {"Association": {"IpOwnerId": "amazon", **public}} if public else {}
    number = instance.instance_id.removeprefix("i-")
    digest = hashlib.sha256(number.encode()).hexdigest()
    own = {"PrivateDnsName": name, "PrivateIpAddress": address}
    shown = {
        "SourceDestCheck": instance.source_dest_check,
        "SubnetId": subnet.subnet_id,
        "VpcId": subnet.vpc_id,
    }
    interface = {
        **association,
        "Attachment": {
            "AttachTime": instance.launched,
            "AttachmentId": f"eni-attach-{number}",
            "DeleteOnTermination": True,
            "DeviceIndex": 0,
            "Status": "attaching" if state == "pending" else "attached",
            "NetworkCardIndex": 0,
        },
        "Description": "",
        "Groups": groups,
        "Ipv6Addresses": [],
        "MacAddress": ":".join(["0a", *(digest[i : i + 2] for i in range(0, 10, 2))]),
        "NetworkInterfaceId": f"eni-{number}",
        "OwnerId": context.account,
        **own,
        "PrivateIpAddresses": [own | association | {"Primary": True}],
        **shown,
        "Status": "in-use",
        "InterfaceType": "interface",
    }
    return {
        **own,
        **shown,
        "PublicDnsName": public.get("PublicDnsName", ""),
        **({"PublicIpAddress": public["PublicIp"]} if public else {}),
        "SecurityGroups": groups,
        "NetworkInterfaces": [interface],
    }


def _public_address_view(region: str, address: str) -> dict[str, str]:
    domain = "compute-1" if region == "us-east-1" else f"{region}.compute"
    name = f"ec2-{address.replace('.', '-')}.{domain}.amazonaws.com"
    return {"PublicIp": address, "PublicDnsName": name} if address else {}


# Security groups

RULE_LISTS = ("IpRanges", "Ipv6Ranges", "PrefixListIds", "UserIdGroupPairs")


def _group_view(context: Context, group: SecurityGroup) -> dict[str, Any]:
    empty: dict[str, Any] = {name: [] for name in RULE_LISTS}
    view: dict[str, Any] = {
        "GroupId": group.group_id,
        "GroupName": group.name,
        "Description": group.description,
        "OwnerId": group.owner,
        "VpcId": group.vpc_id,
        "SecurityGroupArn": context.arn("ec2", f"security-group/{group.group_id}"),
        "IpPermissions": [empty | rule for rule in group.ingress],
        "IpPermissionsEgress": [empty | rule for rule in group.egress],
    }
    return view | tags_member(group.tags)


_RULE_FILTERS = {
    "cidr": "IpRanges.CidrIp",
    "from-port": "FromPort",
    "group-id": "UserIdGroupPairs.GroupId",
    "group-name": "UserIdGroupPairs.GroupName",
    "ipv6-cidr": "Ipv6Ranges.CidrIpv6",
    "prefix-list-id": "PrefixListIds.PrefixListId",
    "protocol": "IpProtocol",
    "to-port": "ToPort",
    "user-id": "UserIdGroupPairs.UserId",
}
GROUP_FILTERS: Filters = by_name("description group-id group-name owner-id vpc-id") | {
    **{f"ip-permission.{name}": f"IpPermissions.{path}" for name, path in _RULE_FILTERS.items()},
    **{f"egress.ip-permission.{name}": f"IpPermissionsEgress.{path}" for name, path in _RULE_FILTERS.items()},
}


@operation("ec2", "DescribeSecurityGroups", "Filters GroupIds GroupNames MaxResults NextToken")
def describe_security_groups(context: Context, params: Params) -> dict[str, Any]:
    """Return security groups by ID or name, or all of the region."""
    default_vpc(context)
    wanted = list(context.table(SECURITY_GROUP.table).values())
    if params.get("GroupIds") or params.get("GroupNames"):
        wanted = find_groups(context, params.get("GroupIds") or (), params.get("GroupNames") or ())
    return describe(context, params, wanted, _group_view, filters=GROUP_FILTERS, key="group_id")


@operation("ec2", "CreateSecurityGroup", "Description GroupName TagSpecifications VpcId")
def create_security_group(context: Context, params: Params) -> dict[str, Any]:
    """Create a security group that allows all outbound traffic."""
    vpc_id = default_vpc(context).vpc_id
    vpc_id = find_own(context, VPC, params.get("VpcId") or vpc_id).vpc_id
    table = context.table(SECURITY_GROUP.table)
    if any(group.name == params["GroupName"] for group in table.values()):
        text = f"The security group '{params['GroupName']}' already exists for VPC '{vpc_id}'"
        raise ApiError("InvalidGroup.Duplicate", text)
    group = SecurityGroup(
        new_id(SECURITY_GROUP.prefix),
        context.account,
        vpc_id,
        params["GroupName"],
        params["Description"],
        tags=tags_at_creation(params, SECURITY_GROUP.resource_type)[SECURITY_GROUP.resource_type],
    )
    table[group.group_id] = group
    answer: dict[str, Any] = {"GroupId": group.group_id}
    answer["SecurityGroupArn"] = context.arn("ec2", f"security-group/{group.group_id}")
    return answer | tags_member(group.tags)


def _requested_group(context: Context, params: Params) -> SecurityGroup:
    """Return the security group that a request names by ID or name."""
    ids, names = ([params[name]] if params.get(name) else [] for name in ("GroupId", "GroupName"))
    if not ids and not names:
        raise missing_parameter("GroupName or GroupId")
    (group,) = find_groups(context, ids, names)
    return group


@operation("ec2", "DeleteSecurityGroup", "GroupId GroupName")
def delete_security_group(context: Context, params: Params) -> dict[str, Any]:
    """Delete a security group that no instance uses."""
    group = _requested_group(context, params)
    if group.name == "default":
        text = f'the specified group: "{group.group_id}" name: "default" cannot be deleted by a user'
        raise ApiError("CannotDelete", text)
    clock = context.clock
    for instance in context.table("instances").values():
        if group.group_id in instance.group_ids and instance.state(clock) != "terminated":
            raise ApiError("DependencyViolation", f"resource {group.group_id} has a dependent object")
    del context.table(SECURITY_GROUP.table)[group.group_id]
    return {"Return": True, "GroupId": group.group_id}


@operation(
    "ec2",
    "AuthorizeSecurityGroupIngress",
    "GroupId GroupName IpPermissions CidrIp FromPort IpProtocol ToPort",
)
def authorize_security_group_ingress(context: Context, params: Params) -> dict[str, Any]:
    """Allow inbound traffic."""
    group = _requested_group(context, params)
    rules = copy.deepcopy(params.get("IpPermissions") or [])
    if params.get("CidrIp"):
        flat = {name: params[name] for name in ("FromPort", "IpProtocol", "ToPort") if name in params}
        rules.append(flat | {"IpRanges": [{"CidrIp": params["CidrIp"]}]})
    if not rules:
        raise not_emulated("a call of ec2:AuthorizeSecurityGroupIngress without rules")
    for rule in rules:
        if rule in group.ingress:
            raise ApiError("InvalidPermission.Duplicate", "the specified rule already exists")
    group.ingress += rules
    return {"Return": True, "SecurityGroupRules": list(_rule_entries(group, rules))}


def _rule_entries(group: SecurityGroup, rules: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the security group rules of inbound permissions: one for each source."""
    for rule in rules:
        common: dict[str, Any] = {
            name: rule[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in rule
        }
        sources = [{"CidrIpv4": item["CidrIp"]} for item in rule.get("IpRanges", ())]
        sources += [{"CidrIpv6": item["CidrIpv6"]} for item in rule.get("Ipv6Ranges", ())]
        sources += [{"PrefixListId": item["PrefixListId"]} for item in rule.get("PrefixListIds", ())]
        for pair in rule.get("UserIdGroupPairs", ()):
            sources.append({"ReferencedGroupInfo": {"UserId": group.owner} | pair})
        for source in sources:
            digest = hashlib.sha256(f"{group.group_id} {common} {source}".encode()).hexdigest()
            yield {
                "SecurityGroupRuleId": f"sgr-0{digest[:16]}",
                "GroupId": group.group_id,
                "GroupOwnerId": group.owner,
                "IsEgress": False,
                **common,
                **source,
            }
