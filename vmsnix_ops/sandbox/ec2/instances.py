"""RunInstances, DescribeInstances, TerminateInstances.

An instance is not run: it goes through the states that one would, and its volumes hold the image's blocks.
Networks are not emulated. Sources: the reference pages of the operations; error texts from public transcripts
where not marked otherwise.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import (
    idempotency,
    ids,
    images,
    instance_types,
    launching,
    places,
    spot_role,
    templates,
    volumes,
)
from vmsnix_ops.sandbox.ec2.filters import Reader, one, page, select
from vmsnix_ops.sandbox.ec2.state import Instance
from vmsnix_ops.sandbox.ec2.tags import at_creation, tag_list

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48}
TERMINATED_SECONDS = 3600.0
"""A terminated instance is listed for about an hour (documented)."""

RUN_PARAMETERS = (
    "BlockDeviceMappings",
    "ClientToken",
    "DisableApiTermination",
    "IamInstanceProfile",
    "ImageId",
    "InstanceInitiatedShutdownBehavior",
    "InstanceMarketOptions",
    "InstanceType",
    "LaunchTemplate",
    "MaxCount",
    "MetadataOptions",
    "MinCount",
    "Placement",
    "TagSpecifications",
    "UserData",
)
VCPU_LIMIT = 64
"""Quota of running on-demand virtual processors of an account and region; new accounts have less."""


def state_view(name: str) -> dict[str, Any]:
    """Return a state with its code."""
    return {"Name": name, "Code": CODES[name]}


def tidy(context: Context) -> None:
    """Remove what terminated instances leave: volumes at once, the instances themselves an hour later."""
    table, disks = context.table("instances"), context.table("volumes")
    for instance in [i for i in table.values() if i.state(context.clock) == "terminated"]:
        for volume in [v for v in disks.values() if v.instance_id == instance.instance_id]:
            volume.instance_id = ""
            if volume.delete_on_termination:
                del disks[volume.volume_id]
        if instance.terminating is not None and context.clock.age(instance.terminating) > TERMINATED_SECONDS:
            del table[instance.instance_id]


def instance_view(context: Context, instance: Instance) -> dict[str, Any]:
    """Return an instance as DescribeInstances shows it."""
    state = instance.state(context.clock)
    attached = [v for v in context.table("volumes").values() if v.instance_id == instance.instance_id]
    shown = {
        "InstanceId": instance.instance_id,
        "ImageId": instance.image_id,
        "InstanceType": instance.kind,
        "State": state_view(state),
        "LaunchTime": instance.launched,
        "AmiLaunchIndex": instance.launch_index,
        "Placement": {"AvailabilityZone": instance.zone, "Tenancy": "default"},
        "Architecture": instance.architecture,
        "Hypervisor": "xen",
        "VirtualizationType": "hvm",
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "RootDeviceName": instance.root_device,
        "RootDeviceType": "ebs",
        "Monitoring": {"State": "disabled"},
        "BlockDeviceMappings": [
            {
                "DeviceName": volume.device,
                "Ebs": {
                    "VolumeId": volume.volume_id,
                    "Status": "attached" if state == "running" else "attaching",
                    "AttachTime": volume.attached,
                    "DeleteOnTermination": volume.delete_on_termination,
                },
            }
            for volume in attached
        ],
    } | instance.details
    if instance.token:
        shown["ClientToken"] = instance.token
    if instance.tags:
        shown["Tags"] = tag_list(instance.tags)
    if instance.terminating is not None:
        shown["StateTransitionReason"] = f"User initiated ({instance.terminating:%Y-%m-%d %H:%M:%S} GMT)"
        shown["StateReason"] = {
            "Code": "Client.UserInitiatedShutdown",
            "Message": "Client.UserInitiatedShutdown: User initiated shutdown",
        }
    return shown


def _details(name: str, inner: str = "") -> Reader:
    def read(instance: Any) -> list[object]:
        value = instance.details.get(name)
        return one(value.get(inner) if inner and value is not None else value)

    return read


def _readers(context: Context) -> dict[str, Reader]:
    clock = context.clock
    return {
        "architecture": lambda i: [i.architecture],
        "availability-zone": lambda i: [i.zone],
        "boot-mode": _details("BootMode"),
        "client-token": lambda i: one(i.token),
        "current-instance-boot-mode": _details("CurrentInstanceBootMode"),
        "ena-support": _details("EnaSupport"),
        "hypervisor": lambda _i: ["xen"],
        "image-id": lambda i: [i.image_id],
        "instance-id": lambda i: [i.instance_id],
        "instance-lifecycle": _details("InstanceLifecycle"),
        "instance-state-code": lambda i: [CODES[i.state(clock)]],
        "instance-state-name": lambda i: [i.state(clock)],
        "instance-type": lambda i: [i.kind],
        "launch-index": lambda i: [i.launch_index],
        "launch-time": lambda i: [images.timestamp(i.launched)],
        "metadata-options.http-tokens": _details("MetadataOptions", "HttpTokens"),
        "owner-id": lambda i: [i.owner],
        "platform-details": lambda _i: ["Linux/UNIX"],
        "reservation-id": lambda i: [i.reservation_id],
        "root-device-name": lambda i: [i.root_device],
        "root-device-type": lambda _i: ["ebs"],
        "spot-instance-request-id": _details("SpotInstanceRequestId"),
        "tpm-support": _details("TpmSupport"),
        "virtualization-type": lambda _i: ["hvm"],
    }


@operation("ec2", "RunInstances", honours=RUN_PARAMETERS)
def run_instances(context: Context, params: Params) -> dict[str, Any]:
    """Launch instances of an image.

    A fault rule's outcome may give ``console``, the text that the instances print, and ``impaired``: true for
    status checks that fail.
    """
    tidy(context)
    known = idempotency.earlier(context, params)
    if known is not None:
        return _launched_before(context, known)
    asked = templates.resolve(context, params)
    image_id = asked.get("ImageId")
    if not image_id:
        raise AwsError("MissingParameter", "The request must contain the parameter ImageId")
    image = images.usable(context, image_id)
    kind = instance_types.find(asked.get("InstanceType", "m1.small"))
    launching.check(context, image, kind, asked)
    profile = launching.instance_profile(context, asked)
    if spot_role.lacks(context, asked):
        spot_role.make(context)
    zone = (asked.get("Placement") or {}).get("AvailabilityZone") or places.zones(context.region)[0]
    places.check_zone(context, zone)
    devices = launching.devices(image, asked.get("BlockDeviceMappings") or [])
    count = _count(context, kind, params)
    given = at_creation(asked, "instance", "volume", "spot-instances-request")
    reservation = ids.new_id("r")
    started = []
    for index in range(count):
        instance = Instance(
            instance_id=ids.new_id("i"),
            reservation_id=reservation,
            owner=context.account,
            image_id=image.image_id,
            kind=kind.name,
            zone=zone,
            launched=context.clock.now(),
            architecture=image.architecture,
            root_device=image.root_device,
            details=launching.details(image, kind, asked) | profile,
            tags=dict(given["instance"]),
            token=params.get("ClientToken", ""),
            launch_index=index,
            user_data=asked.get("UserData", ""),
            shutdown=asked.get("InstanceInitiatedShutdownBehavior", "stop"),
            protected=bool(asked.get("DisableApiTermination")),
            impaired=bool(context.outcome.get("impaired")),
        )
        _attach(context, instance, devices, given["volume"])
        instance.console = str(context.outcome.get("console", _boot_text(context, instance)))
        context.table("instances")[instance.instance_id] = instance
        started.append(instance)
    image.last_launched = context.clock.now()
    idempotency.remember(context, params, reservation)
    return _reservation(context, reservation, started)


def _launched_before(context: Context, reservation: str) -> dict[str, Any]:
    found = [i for i in context.table("instances").values() if i.reservation_id == reservation]
    if not found or any(i.terminating is not None for i in found):
        raise AwsError(
            "IdempotentInstanceTerminated",
            "The request to launch an instance uses the same client token as a previous request "
            "for which the instance has been terminated.",
        )
    return _reservation(context, reservation, found)


def _count(context: Context, kind: instance_types.InstanceType, params: Params) -> int:
    """Return how many instances to launch: as many as the quota lets, at least MinCount."""
    least, most = params["MinCount"], params["MaxCount"]
    if not 1 <= least <= most:
        text = (
            f"Value ({least}) for parameter minCount is invalid. It must be between 1 and maxCount ({most})."
        )
        raise AwsError("InvalidParameterValue", text)
    alive = [i for i in context.table("instances").values() if i.terminating is None]
    used = sum(instance_types.find(i.kind).processors for i in alive)
    room = (VCPU_LIMIT - used) // kind.processors
    if room < least:
        raise AwsError(
            "VcpuLimitExceeded",
            f"You have requested more vCPU capacity than your current vCPU limit of {VCPU_LIMIT} allows "
            "for the instance bucket that the specified instance type belongs to.",
        )
    return int(min(most, room))


def _attach(context: Context, instance: Instance, devices: list[Params], tags: dict[str, str]) -> None:
    for device in devices:
        volume = volumes.make_volume(context, device["Ebs"], instance.zone, dict(tags), through_image=True)
        volume.instance_id, volume.device = instance.instance_id, device["DeviceName"]
        volume.attached = context.clock.now()
        volume.delete_on_termination = device["Ebs"].get("DeleteOnTermination", True)


def _boot_text(context: Context, instance: Instance) -> str:
    """Return the texts that stand in the root volume's boot sector.

    What a machine would print cannot be known without running it. A boot sector that prints a message and
    stops, such as that of a sample image, has it as plain text; of any other disk nothing is shown.
    """
    for volume in context.table("volumes").values():
        if (
            volume.instance_id == instance.instance_id
            and volume.device == instance.root_device
            and 0 in volume.blocks
        ):
            sector = context.blocks.get(volume.blocks[0].hex())[:446]
            found = re.findall(rb"[\x20-\x7e]{12,}\r\n", sector)
            return b"".join(found).decode("ascii")
    return ""


def _reservation(context: Context, reservation: str, found: list[Instance]) -> dict[str, Any]:
    return {
        "ReservationId": reservation,
        "OwnerId": context.account,
        "Instances": [instance_view(context, instance) for instance in found],
    }


@operation("ec2", "DescribeInstances", honours=("Filters", "InstanceIds", "MaxResults", "NextToken"))
def describe_instances(context: Context, params: Params) -> dict[str, Any]:
    """Return instances, grouped by the call that launched them."""
    tidy(context)
    asked = params.get("InstanceIds") or []
    found = [ids.find_own(context, ids.INSTANCE, i) for i in dict.fromkeys(asked)]
    kept = select(
        found if asked else context.table("instances").values(),
        params,
        _readers(context),
        operation="DescribeInstances",
    )
    shown, token = page(kept, params, lambda i: i.instance_id, smallest=5, not_with="InstanceIds")
    groups: dict[str, list[Instance]] = {}
    for instance in shown:
        groups.setdefault(instance.reservation_id, []).append(instance)
    answer: dict[str, Any] = {
        "Reservations": [_reservation(context, r, group) for r, group in groups.items()]
    }
    return answer | ({"NextToken": token} if token else {})


@operation("ec2", "TerminateInstances", honours=("InstanceIds",))
def terminate_instances(context: Context, params: Params) -> dict[str, Any]:
    """Begin to terminate instances, all or none of them."""
    tidy(context)
    found = [ids.find_own(context, ids.INSTANCE, i) for i in dict.fromkeys(params["InstanceIds"])]
    for instance in found:
        if instance.protected:
            raise AwsError(
                "OperationNotPermitted",
                f"The instance '{instance.instance_id}' may not be terminated. "
                "Modify its 'disableApiTermination' instance attribute and try again.",
            )
    changes = []
    for instance in found:
        before = instance.state(context.clock)
        instance.terminating = instance.terminating or context.clock.now()
        changes.append(
            {
                "InstanceId": instance.instance_id,
                "PreviousState": state_view(before),
                "CurrentState": state_view(instance.state(context.clock)),
            }
        )
    return {"TerminatingInstances": changes}
