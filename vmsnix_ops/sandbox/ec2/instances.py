"""Instances: launch, states, attributes, status checks, console output.

An instance does not run: it only has the states of a running instance, and its volumes have the blocks of the
image. Sources: the reference pages of the operations; "Amazon EC2 instance types", "Instance launch behavior
with boot modes", "Configure the AMI" (IMDSv2), "EBS volume lifecycle". Error texts are from public
transcripts, or marked as from memory.
"""

from __future__ import annotations

import base64
import copy
import json
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, given, not_emulated, operation, tags_member, words
from vmsnix_ops.sandbox.credentials import unique_id
from vmsnix_ops.sandbox.ec2.common import (
    INSTANCE,
    attribute_member,
    attribute_name,
    check_one_of,
    find_own,
    find_own_or_all,
    find_token_result,
    invalid_value,
    missing_parameter,
    new_id,
    record_token_result,
    resolve_image_id,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.filters import Filters, absent, by_name, describe
from vmsnix_ops.sandbox.ec2.images import find_launchable_image
from vmsnix_ops.sandbox.ec2.instance_types import DEFAULT_INSTANCE_TYPE, find_instance_type
from vmsnix_ops.sandbox.ec2.networks import (
    check_zone,
    find_groups,
    find_subnet,
    free_private_address,
    free_public_address,
    network_view,
    zone_id,
    zones_of,
)
from vmsnix_ops.sandbox.ec2.resources import EmulatedInstance
from vmsnix_ops.sandbox.ec2.snapshots import add_volume, volumes_of
from vmsnix_ops.sandbox.ec2.templates import merge_launch, template_tags
from vmsnix_ops.sandbox.iam import ROLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.ec2.instance_types import InstanceType
    from vmsnix_ops.sandbox.ec2.networks import Subnet
    from vmsnix_ops.sandbox.ec2.resources import Image


# Checks and details of a launch

METADATA_OPTIONS = {
    "HttpTokens": ("optional", "required"),
    "HttpEndpoint": ("enabled", "disabled"),
    "HttpProtocolIpv6": ("disabled", "enabled"),
    "InstanceMetadataTags": ("disabled", "enabled"),
}


def _check_launch(context: Context, image: Image, kind: InstanceType, launch: Params) -> None:
    """Check that an image can be launched on an instance type."""
    state = image.state(context.clock)
    if state != "available":
        text = f"The image ID '{image.image_id}' is not available: it is {state}"
        raise ApiError("InvalidAMIID.Unavailable", text)
    if image.architecture not in kind.architectures:
        raise invalid_value(
            f"The architecture '{','.join(kind.architectures)}' of the specified instance type does not "
            f"match the architecture '{image.architecture}' of the specified AMI. Specify an instance type "
            "and an AMI that have matching architectures, and try again. You can use "
            "'describe-instance-types' or 'describe-images' to discover the architecture of the instance "
            "type or AMI.",
        )
    if image.boot_mode and _boot_mode(image, kind) not in kind.boot_modes:
        # The code is documented, the text is from memory.
        text = f"The boot mode '{image.boot_mode}' of the AMI is not one of the instance type '{kind.name}'."
        raise invalid_value(text)
    if kind.ena == "required" and not image.ena:
        raise ApiError(
            "InvalidParameterCombination",
            "Enhanced networking with the Elastic Network Adapter (ENA) is required for the "
            f"'{kind.name}' instance type. Ensure that you are using an AMI that is enabled for ENA.",
        )
    if image.tpm and not kind.nitro_tpm:
        text = f"The instance type '{kind.name}' does not support NitroTPM."  # text from memory
        raise ApiError("InvalidParameterCombination", text)
    market = launch.get("InstanceMarketOptions") or {}
    check_one_of("marketType", market.get("MarketType"), ("spot",))
    shutdown = launch.get("InstanceInitiatedShutdownBehavior")
    check_one_of("instanceInitiatedShutdownBehavior", shutdown, ("stop", "terminate"))
    for member, allowed in METADATA_OPTIONS.items():
        check_one_of(member, (launch.get("MetadataOptions") or {}).get(member), allowed)


def _instance_profile(context: Context, launch: Params) -> dict[str, Any]:
    """Return the instance profile of a launch as DescribeInstances shows it; empty without one.

    A role without an instance profile has one with its name too, as the console creates it.
    """
    profile = launch.get("IamInstanceProfile") or {}
    if not profile:
        return {}
    name = (profile.get("Name") or profile.get("Arn", "")).rpartition("/")[2]
    known = context.table("instance_profiles", region="").get(name)
    if known is not None:
        return {"IamInstanceProfile": {"Arn": known.arn, "Id": known.entity_id}}
    if name not in context.table("roles", region=""):
        text = f"Value ({name}) for parameter iamInstanceProfile.name is invalid. "
        raise invalid_value(f"{text}Invalid IAM Instance Profile name")
    account = context.arn("iam", "", region="").rstrip(":")
    shown = {"Arn": f"{account}:instance-profile/{name}", "Id": unique_id("AIPA", account, name)}
    return {"IamInstanceProfile": shown}


def _boot_mode(image: Image, kind: InstanceType) -> str:
    """Return the boot mode of an instance of this image and type."""
    if image.boot_mode == "uefi-preferred":
        return "uefi" if "uefi" in kind.boot_modes else "legacy-bios"
    if image.boot_mode:
        return image.boot_mode
    return "uefi" if kind.boot_modes == ("uefi",) else "legacy-bios"


def _instance_details(image: Image, kind: InstanceType, launch: Params) -> dict[str, Any]:
    """Return the members of DescribeInstances that are not fields of `EmulatedInstance`."""
    options: dict[str, Any] = {name: allowed[0] for name, allowed in METADATA_OPTIONS.items()}
    options["HttpPutResponseHopLimit"] = 1
    if image.imds == "v2.0":
        options |= {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    shown: dict[str, Any] = {
        "MetadataOptions": options | (launch.get("MetadataOptions") or {}),
        "EnaSupport": image.ena,
        "EbsOptimized": bool(launch.get("EbsOptimized")),
        "CurrentInstanceBootMode": _boot_mode(image, kind),
        "Monitoring": {"State": "enabled" if (launch.get("Monitoring") or {}).get("Enabled") else "disabled"},
        "CpuOptions": _cores(kind) | (launch.get("CpuOptions") or {}),
        **given(BootMode=image.boot_mode, TpmSupport=image.tpm),
    }
    if (launch.get("InstanceMarketOptions") or {}).get("MarketType") == "spot":
        shown |= {"InstanceLifecycle": "spot", "SpotInstanceRequestId": new_id("sir")}
    return shown


def _cores(kind: InstanceType) -> dict[str, int]:
    return {"CoreCount": kind.cores, "ThreadsPerCore": kind.threads_per_core}


def launch_devices(image: Image, wanted: list[Params]) -> list[Params]:
    """Return the block devices of a launch: those of the image, changed by the request."""
    found = {m["DeviceName"]: copy.deepcopy(m) for m in image.mappings if "Ebs" in m}
    for mapping in wanted:
        device = mapping.get("DeviceName", "")
        if "NoDevice" in mapping:
            found.pop(device, None)
        elif "Ebs" in mapping:
            known = found.setdefault(device, {"DeviceName": device, "Ebs": {}})
            known["Ebs"].update(mapping["Ebs"])
    if image.root_device not in found:
        raise ApiError("InvalidBlockDeviceMapping", "The root device cannot be left out.")  # text from memory
    return list(found.values())


# Launch, describe, terminate

STATES = ("pending", "running", "shutting-down", "terminated", "stopping", "stopped")
TERMINATED_SECONDS = 3600.0
"""A terminated instance is listed for about an hour (documented)."""

MAX_VCPUS = 64
"""Quota of running on-demand virtual processors of an account and region; new accounts have less."""


def state_view(name: str) -> dict[str, Any]:
    """Return a state with its code, a multiple of 16."""
    return {"Name": name, "Code": 16 * STATES.index(name)}


def remove_terminated(context: Context) -> None:
    """Delete the volumes of terminated instances; an hour later also the instances."""
    table, disks = context.table("instances"), context.table("volumes")
    for instance in [i for i in table.values() if i.state(context.clock) == "terminated"]:
        for volume in volumes_of(context, instance):
            volume.instance_id = ""
            if volume.delete_on_termination:
                del disks[volume.volume_id]
        ended = instance.terminating
        if ended is not None and not context.clock.is_listed(ended, TERMINATED_SECONDS):
            del table[instance.instance_id]


FIXED_MEMBERS: dict[str, Any] = {
    "CapacityReservationSpecification": {"CapacityReservationPreference": "open"},
    "EnclaveOptions": {"Enabled": False},
    "HibernationOptions": {"Configured": False},
    "Hypervisor": "xen",
    "MaintenanceOptions": {"AutoRecovery": "default", "RebootMigration": "default"},
    "NetworkPerformanceOptions": {"BandwidthWeighting": "default"},
    "Operator": {"Managed": False},
    "PlatformDetails": "Linux/UNIX",
    "PrivateDnsNameOptions": {
        "HostnameType": "ip-name",
        "EnableResourceNameDnsARecord": False,
        "EnableResourceNameDnsAAAARecord": False,
    },
    "ProductCodes": [],
    "RootDeviceType": "ebs",
    "UsageOperation": "RunInstances",
    "VirtualizationType": "hvm",
}
"""Members of DescribeInstances that all instances of the sandbox have (examples of the AWS CLI)."""


def instance_view(context: Context, instance: EmulatedInstance) -> dict[str, Any]:
    """Return an instance as DescribeInstances shows it."""
    state = instance.state(context.clock)
    shown = {
        **FIXED_MEMBERS,
        "InstanceId": instance.instance_id,
        "ImageId": instance.image_id,
        "InstanceType": instance.instance_type,
        "State": state_view(state),
        "StateTransitionReason": "",
        "LaunchTime": instance.launched,
        "UsageOperationUpdateTime": instance.launched,
        "AmiLaunchIndex": instance.launch_index,
        "Placement": {
            "AvailabilityZone": instance.zone,
            "AvailabilityZoneId": zone_id(instance.zone),
            "GroupName": "",
            "Tenancy": "default",
        },
        "Architecture": instance.architecture,
        "RootDeviceName": instance.root_device,
        "ClientToken": instance.token,
        "BlockDeviceMappings": [
            {
                "DeviceName": volume.device,
                "Ebs": {
                    "VolumeId": volume.volume_id,
                    "Status": "attaching" if state == "pending" else "attached",
                    "AttachTime": volume.attached,
                    "DeleteOnTermination": volume.delete_on_termination,
                },
            }
            for volume in volumes_of(context, instance)
        ],
        **instance.details,
        **network_view(context, instance, state),
        **tags_member(instance.tags),
    }
    if "MetadataOptions" in shown:
        applied = "pending" if state == "pending" else "applied"
        shown["MetadataOptions"] = shown["MetadataOptions"] | {"State": applied}
    if state == "pending":
        shown["StateReason"] = {"Code": "pending", "Message": "pending"}
    ended = instance.terminating or instance.stopping
    if ended is not None:
        shown["StateTransitionReason"] = f"User initiated ({ended:%Y-%m-%d %H:%M:%S} GMT)"
        shown["StateReason"] = {
            "Code": "Client.UserInitiatedShutdown",
            "Message": "Client.UserInitiatedShutdown: User initiated shutdown",
        }
    return shown


INSTANCE_FILTERS: Filters = (
    by_name(
        "architecture boot-mode client-token current-instance-boot-mode ena-support "
        "enclave-options.enabled hibernation-options.configured hypervisor iam-instance-profile.arn "
        "iam-instance-profile.id image-id instance-id instance-lifecycle instance-type launch-time "
        "metadata-options.http-endpoint metadata-options.http-tokens platform-details "
        "private-dns-name private-ip-address root-device-name root-device-type source-dest-check "
        "spot-instance-request-id subnet-id tpm-support usage-operation virtualization-type vpc-id"
    )
    | absent("affinity kernel-id placement-group-name platform product-code ramdisk-id")
    | {
        "availability-zone": "Placement.AvailabilityZone",
        "availability-zone-id": "Placement.AvailabilityZoneId",
        "block-device-mapping.attach-time": "BlockDeviceMappings.Ebs.AttachTime",
        "block-device-mapping.delete-on-termination": "BlockDeviceMappings.Ebs.DeleteOnTermination",
        "block-device-mapping.device-name": "BlockDeviceMappings.DeviceName",
        "block-device-mapping.status": "BlockDeviceMappings.Ebs.Status",
        "block-device-mapping.volume-id": "BlockDeviceMappings.Ebs.VolumeId",
        "dns-name": "PublicDnsName",
        "instance.group-id": "SecurityGroups.GroupId",
        "instance.group-name": "SecurityGroups.GroupName",
        "instance-state-code": "State.Code",
        "instance-state-name": "State.Name",
        "ip-address": "PublicIpAddress",
        "launch-index": "AmiLaunchIndex",
        "monitoring-state": "Monitoring.State",
        "network-interface.addresses.private-ip-address": "PrivateIpAddress",
        "network-interface.group-id": "SecurityGroups.GroupId",
        "network-interface.group-name": "SecurityGroups.GroupName",
        "network-interface.network-interface-id": "NetworkInterfaces.NetworkInterfaceId",
        "network-interface.private-dns-name": "PrivateDnsName",
        "network-interface.subnet-id": "SubnetId",
        "network-interface.vpc-id": "VpcId",
        "owner-id": lambda instance: [instance.owner],
        "reservation-id": lambda instance: [instance.reservation_id],
        "state-reason-code": "StateReason.Code",
        "tenancy": "Placement.Tenancy",
    }
)


LAUNCH_MEMBERS = (
    "BlockDeviceMappings CpuOptions DisableApiTermination EbsOptimized IamInstanceProfile ImageId "
    "InstanceInitiatedShutdownBehavior InstanceMarketOptions InstanceType MetadataOptions "
    "Monitoring NetworkInterfaces Placement SecurityGroupIds SecurityGroups SubnetId TagSpecifications "
    "UserData"
)
"""The parameters of RunInstances that a launch template can have too."""


@operation("ec2", "RunInstances", LAUNCH_MEMBERS, "ClientToken LaunchTemplate MaxCount MinCount")
def run_instances(context: Context, params: Params) -> dict[str, Any]:
    """Launch instances of an image.

    The outcome of a fault rule can set ``console``, the console output of the instances, and ``impaired``:
    with true, their status checks fail.
    """
    remove_terminated(context)
    earlier = find_token_result(context, params)
    if earlier is not None:
        return _earlier_launch(context, earlier)
    launch = merge_launch(context, params)
    for member in launch.keys() - params.keys() - set(LAUNCH_MEMBERS.split()):
        raise not_emulated(f"the member {member!r} of a launch template of ec2:RunInstances")
    image_id = resolve_image_id(context, launch.get("ImageId", ""))
    if not image_id:
        raise missing_parameter("ImageId")
    image = find_launchable_image(context, image_id)
    if image.location:
        raise not_emulated("an image with an instance store of ec2:RunInstances")
    kind = find_instance_type(launch.get("InstanceType", DEFAULT_INSTANCE_TYPE))
    _check_launch(context, image, kind, launch)
    profile = _instance_profile(context, launch)
    if lacks_spot_role(context, launch):
        _create_spot_role(context)
    network = launch_network(context, launch)
    devices = launch_devices(image, launch.get("BlockDeviceMappings") or [])
    count = _launch_count(context, kind, params)
    tags = tags_at_creation(launch, "instance", "volume", "network-interface", "spot-instances-request")
    reservation = new_id("r")
    started = []
    for index in range(count):
        instance = EmulatedInstance(
            instance_id=new_id("i"),
            reservation_id=reservation,
            owner=context.account,
            image_id=image.image_id,
            instance_type=kind.name,
            zone=network.subnet.zone,
            launched=context.clock.now(),
            architecture=image.architecture,
            root_device=image.root_device,
            details=_instance_details(image, kind, launch) | profile,
            tags=tags["instance"] | template_tags(context, params),
            token=params.get("ClientToken", ""),
            launch_index=index,
            user_data=launch.get("UserData", ""),
            shutdown=launch.get("InstanceInitiatedShutdownBehavior", "stop"),
            protected=bool(launch.get("DisableApiTermination")),
            impaired=bool(context.outcome.get("impaired")),
            subnet_id=network.subnet.subnet_id,
            private_ip=free_private_address(context, network.subnet),
            public_ip=free_public_address(context) if network.public else "",
            group_ids=network.group_ids,
        )
        _attach_volumes(context, instance, devices, tags["volume"])
        instance.console = str(context.outcome.get("console", _boot_sector_text(context, instance)))
        context.table("instances")[instance.instance_id] = instance
        started.append(instance)
    image.last_launched = context.clock.now()
    record_token_result(context, params, reservation)
    # The answer does not list the volumes yet (examples of the AWS CLI).
    views = [instance_view(context, instance) | {"BlockDeviceMappings": []} for instance in started]
    return _reservation_view(context, reservation, views)


@dataclass(frozen=True, slots=True)
class LaunchNetwork:
    """Where an instance is launched, and whether it has a public address."""

    subnet: Subnet
    group_ids: list[str]
    public: bool


INTERFACE_MEMBERS = set(words("AssociatePublicIpAddress DeleteOnTermination DeviceIndex Groups SubnetId"))


def launch_network(context: Context, launch: Params) -> LaunchNetwork:
    """Return the network of a launch: by default the default subnet of the first zone."""
    interfaces = launch.get("NetworkInterfaces") or []
    if len(interfaces) > 1:
        raise not_emulated("several network interfaces of ec2:RunInstances")
    interface = interfaces[0] if interfaces else {}
    for member in interface.keys() - INTERFACE_MEMBERS:
        raise not_emulated(f"the member {member!r} of NetworkInterfaces of ec2:RunInstances")
    if interface.get("DeviceIndex", 0) != 0 or interface.get("DeleteOnTermination") is False:
        raise not_emulated("a network interface that is not the first or is kept, of ec2:RunInstances")
    for member, what in (("SubnetId", "subnet ID"), ("SecurityGroupIds", "security groups")):
        if interface and launch.get(member):
            text = f"Network interfaces and an instance-level {what} may not be specified on the same request"
            raise ApiError("InvalidParameterCombination", text)
    placement = launch.get("Placement") or {}
    for member in placement.keys() - {"AvailabilityZone", "Tenancy"}:
        raise not_emulated(f"the member {member!r} of Placement of ec2:RunInstances")
    check_one_of("tenancy", placement.get("Tenancy"), ("default",))
    zone = placement.get("AvailabilityZone")
    if zone is not None:
        check_zone(context, zone)
    subnet_id = launch.get("SubnetId") or interface.get("SubnetId", "")
    subnet = find_subnet(context, subnet_id, zone or zones_of(context.region)[0])
    if zone not in (None, subnet.zone):
        # The code is documented, the text is from memory.
        raise invalid_value(f"The subnet '{subnet.subnet_id}' is not in the availability zone '{zone}'.")
    wanted = launch.get("SecurityGroupIds") or interface.get("Groups") or []
    groups = find_groups(context, wanted, launch.get("SecurityGroups") or [])
    public = bool(interface.get("AssociatePublicIpAddress", True))
    return LaunchNetwork(subnet, [group.group_id for group in groups], public)


def _earlier_launch(context: Context, reservation: str) -> dict[str, Any]:
    found = [i for i in context.table("instances").values() if i.reservation_id == reservation]
    if not found or any(i.terminating is not None for i in found):
        raise ApiError(
            "IdempotentInstanceTerminated",
            "The request to launch an instance uses the same client token as a previous request "
            "for which the instance has been terminated.",
        )
    return _reservation_view(context, reservation, [instance_view(context, i) for i in found])


def _launch_count(context: Context, kind: InstanceType, params: Params) -> int:
    """Return how many instances to launch: up to MaxCount, as the quota allows, at least MinCount."""
    least, most = params["MinCount"], params["MaxCount"]
    if not 1 <= least <= most:
        text = f"Value ({least}) for parameter minCount is invalid."
        raise invalid_value(f"{text} It must be between 1 and maxCount ({most}).")
    alive = [i for i in context.table("instances").values() if i.terminating is None]
    used = sum(find_instance_type(i.instance_type).processors for i in alive)
    possible = (MAX_VCPUS - used) // kind.processors
    if possible < least:
        raise ApiError(
            "VcpuLimitExceeded",
            f"You have requested more vCPU capacity than your current vCPU limit of {MAX_VCPUS} allows "
            "for the instance bucket that the specified instance type belongs to.",
        )
    return int(min(most, possible))


def _attach_volumes(
    context: Context, instance: EmulatedInstance, devices: list[Params], tags: dict[str, str]
) -> None:
    for device in devices:
        volume = add_volume(context, device["Ebs"], instance.zone, dict(tags), through_image=True)
        volume.instance_id, volume.device = instance.instance_id, device["DeviceName"]
        volume.attached = context.clock.now()
        volume.delete_on_termination = device["Ebs"].get("DeleteOnTermination", True)


def _boot_sector_text(context: Context, instance: EmulatedInstance) -> str:
    """Return the messages in the boot sector of the root volume, as console output.

    The sandbox does not boot the machine. A boot sector that only prints a message, such as that of a sample
    image, contains it as plain text. Other disks have no console output.
    """
    for volume in volumes_of(context, instance):
        if volume.device == instance.root_device and 0 in volume.blocks:
            sector = context.blocks.get(volume.blocks[0].hex())[:446]
            found = re.findall(rb"[\x20-\x7e]{12,}\r\n", sector)
            return b"".join(found).decode("ascii")
    return ""


def _reservation_view(context: Context, reservation: str, views: list[dict[str, Any]]) -> dict[str, Any]:
    return {"ReservationId": reservation, "OwnerId": context.account, "Groups": [], "Instances": views}


@operation("ec2", "DescribeInstances", "Filters InstanceIds MaxResults NextToken")
def describe_instances(context: Context, params: Params) -> dict[str, Any]:
    """Return instances, grouped by the call that launched them."""
    remove_terminated(context)
    found = find_own_or_all(context, INSTANCE, params.get("InstanceIds"))
    answer = describe(context, params, found, instance_view, filters=INSTANCE_FILTERS, key="instance_id")
    table = context.table("instances")
    groups: dict[str, list[dict[str, Any]]] = {}
    for view in answer.pop("Reservations"):
        groups.setdefault(table[view["InstanceId"]].reservation_id, []).append(view)
    return {"Reservations": [_reservation_view(context, r, views) for r, views in groups.items()]} | answer


@operation("ec2", "TerminateInstances", "InstanceIds")
def terminate_instances(context: Context, params: Params) -> dict[str, Any]:
    """Start to terminate instances: all of them, or none when one is protected."""
    remove_terminated(context)
    found = find_own_or_all(context, INSTANCE, params["InstanceIds"])
    for instance in found:
        if instance.protected:
            raise ApiError(
                "OperationNotPermitted",
                f"The instance '{instance.instance_id}' may not be terminated. "
                "Modify its 'disableApiTermination' instance attribute and try again.",
            )

    def terminate(instance: EmulatedInstance) -> None:
        instance.terminating = instance.terminating or context.clock.now()

    return {"TerminatingInstances": _change_states(context, found, terminate)}


# Stop, start
#
# Source: "Amazon EC2 instance state changes" of the EC2 User Guide. A stopped instance keeps its private
# address and its volumes, and gets another public address when it starts.


@operation("ec2", "StopInstances", "Force InstanceIds")
def stop_instances(context: Context, params: Params) -> dict[str, Any]:
    """Start to stop instances. A stopped one does not change."""
    found = find_own_or_all(context, INSTANCE, params["InstanceIds"])
    _check_state(context, found, ("pending", "running", "stopping", "stopped"), "stopped")
    for instance in found:
        if instance.details.get("InstanceLifecycle") == "spot":
            text = (
                f"You can't stop the Spot Instance '{instance.instance_id}' because it is associated with a "
                "one-time Spot Instance request. You can only stop Spot Instances associated with persistent "
                "Spot Instance requests."
            )
            raise ApiError("UnsupportedOperation", text)

    def stop(instance: EmulatedInstance) -> None:
        instance.stopping = instance.stopping or context.clock.now()
        instance.public_ip = ""

    return {"StoppingInstances": _change_states(context, found, stop)}


@operation("ec2", "StartInstances", "InstanceIds")
def start_instances(context: Context, params: Params) -> dict[str, Any]:
    """Start stopped instances. A running one does not change."""
    found = find_own_or_all(context, INSTANCE, params["InstanceIds"])
    _check_state(context, found, ("pending", "running", "stopped"), "started")

    def start(instance: EmulatedInstance) -> None:
        if instance.stopping is not None:
            instance.stopping, instance.launched = None, context.clock.now()
            instance.public_ip = free_public_address(context)

    return {"StartingInstances": _change_states(context, found, start)}


def _check_state(
    context: Context, instances: list[EmulatedInstance], allowed: tuple[str, ...], done: str
) -> None:
    for instance in instances:
        if instance.state(context.clock) not in allowed:
            text = f"The instance '{instance.instance_id}' is not in a state from which it can be {done}."
            raise ApiError("IncorrectInstanceState", text)


def _change_states(
    context: Context, instances: list[EmulatedInstance], change: Callable[[EmulatedInstance], None]
) -> list[dict[str, Any]]:
    """Change instances, and return their states before and after."""
    changes = []
    for instance in instances:
        before = state_view(instance.state(context.clock))
        change(instance)
        after = state_view(instance.state(context.clock))
        changes.append({"InstanceId": instance.instance_id, "PreviousState": before, "CurrentState": after})
    return changes


# Attributes
#
# A type, user data and EBS optimization change only while the instance is stopped (ModifyInstanceAttribute).

CHANGEABLE = words(
    "disableApiTermination ebsOptimized instanceInitiatedShutdownBehavior instanceType sourceDestCheck"
)
STOPPED_ONLY = ("EbsOptimized", "InstanceType", "UserData")


@operation("ec2", "DescribeInstanceAttribute", "Attribute InstanceId")
def describe_instance_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Return one attribute of an instance."""
    instance: EmulatedInstance = find_own(context, INSTANCE, params["InstanceId"])
    values: dict[str, Any] = {
        "disableApiTermination": instance.protected,
        "ebsOptimized": bool(instance.details.get("EbsOptimized")),
        "enaSupport": bool(instance.details.get("EnaSupport")),
        "groupSet": None,
        "instanceInitiatedShutdownBehavior": instance.shutdown,
        "instanceType": instance.instance_type,
        "kernel": "",
        "productCodes": None,
        "ramdisk": "",
        "rootDeviceName": instance.root_device,
        "sourceDestCheck": instance.source_dest_check,
        "userData": instance.user_data,
    }
    name = attribute_name(params["Attribute"], values, "InstanceAttributeName")
    answer: dict[str, Any] = {"InstanceId": instance.instance_id}
    if name == "groupSet":
        groups = find_groups(context, instance.group_ids)
        return answer | {"Groups": [{"GroupId": g.group_id, "GroupName": g.name} for g in groups]}
    if name == "productCodes":
        return answer | {"ProductCodes": []}
    return answer | attribute_member(name, values[name])


@operation(
    "ec2",
    "ModifyInstanceAttribute",
    "Attribute DisableApiTermination EbsOptimized Groups InstanceId InstanceInitiatedShutdownBehavior",
    "InstanceType SourceDestCheck UserData Value",
)
def modify_instance_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Change one attribute of an instance, in either of the two forms of the request."""
    instance: EmulatedInstance = find_own(context, INSTANCE, params["InstanceId"])
    changes = {
        name: value for name, value in params.items() if name not in ("InstanceId", "Attribute", "Value")
    }
    if "Attribute" in params:
        name = attribute_name(params["Attribute"], CHANGEABLE, "InstanceAttributeName")
        value = params.get("Value", "")
        text_only = name in ("instanceInitiatedShutdownBehavior", "instanceType")
        changes[name[0].upper() + name[1:]] = {"Value": value if text_only else value.lower() == "true"}
    if not changes:
        raise ApiError("InvalidParameterCombination", "No attributes specified.")
    if len(changes) > 1:
        text = "Fields for multiple attribute types specified"  # text from memory
        raise ApiError("InvalidParameterCombination", text)
    ((name, change),) = changes.items()
    if name in STOPPED_ONLY and instance.state(context.clock) != "stopped":
        text = f"The instance '{instance.instance_id}' is not in the 'stopped' state."
        raise ApiError("IncorrectInstanceState", text)
    if name == "Groups":
        instance.group_ids = [group.group_id for group in find_groups(context, change)]
        return {}
    value = change.get("Value")
    if name == "DisableApiTermination":
        instance.protected = bool(value)
    elif name == "SourceDestCheck":
        instance.source_dest_check = bool(value)
    elif name == "EbsOptimized":
        instance.details = instance.details | {"EbsOptimized": bool(value)}
    elif name == "InstanceInitiatedShutdownBehavior":
        check_one_of("instanceInitiatedShutdownBehavior", value, ("stop", "terminate"))
        instance.shutdown = value
    elif name == "UserData":
        instance.user_data = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    else:
        kind = find_instance_type(value)
        if instance.architecture not in kind.architectures:
            text = f"The architecture '{instance.architecture}' is not one of the instance type '{value}'."
            raise invalid_value(text)  # text from memory
        instance.instance_type = kind.name
        instance.details = instance.details | {"CpuOptions": _cores(kind)}
    return {}


# Status checks and console output

STATUS_CHECK_SECONDS = 240.0
"""How long the checks of a new instance are ``initializing``; a realistic guess."""

CONSOLE_SECONDS = 60.0
"""Seconds after a launch until the console output is complete and AWS posts it."""

CONSOLE_BYTES = 65_536


def _status_view(context: Context, instance: EmulatedInstance) -> dict[str, Any]:
    """Return an instance as DescribeInstanceStatus shows it. Both checks have the same result."""
    state, detail = instance.state(context.clock), "failed" if instance.impaired else "passed"
    status = "impaired" if instance.impaired else "ok"
    if context.clock.age(instance.launched) < STATUS_CHECK_SECONDS:
        status = detail = "initializing"
    shown = {"Status": status, "Details": [{"Name": "reachability", "Status": detail}]}
    if state != "running":
        shown = {"Status": "not-applicable", "Details": []}
    return {
        "InstanceId": instance.instance_id,
        "AvailabilityZone": instance.zone,
        "InstanceState": state_view(state),
        "InstanceStatus": shown,
        "SystemStatus": shown,
    }


STATUS_FILTERS = by_name("availability-zone instance-status.status system-status.status") | {
    "instance-state-code": "InstanceState.Code",
    "instance-state-name": "InstanceState.Name",
    "instance-status.reachability": "InstanceStatus.Details.Status",
    "system-status.reachability": "SystemStatus.Details.Status",
}


@operation("ec2", "DescribeInstanceStatus", "Filters IncludeAllInstances InstanceIds MaxResults NextToken")
def describe_instance_status(context: Context, params: Params) -> dict[str, Any]:
    """Return the status checks of running instances; of all with ``IncludeAllInstances``."""
    remove_terminated(context)
    instances = find_own_or_all(context, INSTANCE, params.get("InstanceIds"))
    if not params.get("IncludeAllInstances"):
        instances = [i for i in instances if i.state(context.clock) == "running"]
    return describe(context, params, instances, _status_view, filters=STATUS_FILTERS, key="instance_id")


@operation("ec2", "GetConsoleOutput", "InstanceId Latest")
def get_console_output(context: Context, params: Params) -> dict[str, Any]:
    """Return the console output: as posted some time after the launch, or the latest.

    With ``Latest`` the text grows line by line; only Nitro instances have it. AWS keeps the last 64 KiB.
    """
    instance: EmulatedInstance = find_own(context, INSTANCE, params["InstanceId"])
    clock, latest = context.clock, bool(params.get("Latest"))
    if latest and find_instance_type(instance.instance_type).hypervisor != "nitro":
        text = "This instance type does not support retrieving the latest console logs."
        raise ApiError("UnsupportedOperation", text)
    answer: dict[str, Any] = {"InstanceId": instance.instance_id, "Timestamp": clock.now()}
    age = clock.age(instance.launched)
    lines = instance.console.splitlines(keepends=True)
    if age < CONSOLE_SECONDS:
        lines = lines[: int(len(lines) * age / CONSOLE_SECONDS)] if latest else []
    if lines:
        kept = "".join(lines).encode()[-CONSOLE_BYTES:]
        answer["Output"] = base64.b64encode(kept).decode("ascii")
        posted = instance.launched + timedelta(seconds=clock.real_seconds(CONSOLE_SECONDS))
        answer["Timestamp"] = clock.now() if latest else min(clock.now(), posted)
    return answer


# The service-linked role for Spot Instances, which EC2 creates with the first one
#
# Source: "Service-linked role for Spot Instance requests" in the EC2 User Guide: the caller needs
# ``iam:CreateServiceLinkedRole``. The error code is in "Error codes for the Amazon EC2 API".

SPOT_SERVICE, SPOT_ROLE = "spot.amazonaws.com", "AWSServiceRoleForEC2Spot"
SPOT_ROLE_PATH = f"/aws-service-role/{SPOT_SERVICE}/"
CREATE_ROLE_ACTION = "iam:CreateServiceLinkedRole"


def spot_role_arn(context: Context) -> str:
    """Return the ARN of the role."""
    return context.arn("iam", f"role{SPOT_ROLE_PATH}{SPOT_ROLE}", region="")


def lacks_spot_role(context: Context, params: Params) -> bool:
    """Return whether this is a launch of a Spot Instance in an account without the role."""
    market = (params.get("InstanceMarketOptions") or {}).get("MarketType")
    return market == "spot" and SPOT_ROLE not in context.table("roles", region="")


def _create_spot_role(context: Context) -> None:
    trust = {"Effect": "Allow", "Principal": {"Service": SPOT_SERVICE}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    ROLE.create(context, {"RoleName": SPOT_ROLE, "Path": SPOT_ROLE_PATH}, trust_policy=policy)
