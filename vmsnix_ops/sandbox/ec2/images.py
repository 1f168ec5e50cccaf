"""RegisterImage, DescribeImages and what an image looks like.

Sources: the reference pages of the operations; "Image" and "EbsBlockDevice" of the API reference.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import checks, ids, imports, mappings, sharing
from vmsnix_ops.sandbox.ec2.filters import Reader, one, page, select
from vmsnix_ops.sandbox.ec2.state import Image
from vmsnix_ops.sandbox.ec2.tags import at_creation, tag_list

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Clock, Context

LAUNCH_REPORT_SECONDS = 24 * 3600.0
"""LastLaunchedTime is reported 24 hours after a launch (documented)."""


def timestamp(moment: datetime) -> str:
    """Return a time as image fields show it: ``2021-09-29T11:04:43.305Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def image_view(image: Image, clock: Clock) -> dict[str, Any]:
    """Return an image as DescribeImages shows it."""
    state = image.state(clock)
    view: dict[str, Any] = {
        "ImageId": image.image_id,
        "ImageLocation": f"{image.owner}/{image.name}",
        "ImageType": "machine",
        "Name": image.name,
        "OwnerId": image.owner,
        "State": state,
        "CreationDate": timestamp(image.created),
        "Public": image.public(),
        "Architecture": image.architecture,
        "Hypervisor": "xen",
        "VirtualizationType": image.virtualization,
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "RootDeviceName": image.root_device,
        "RootDeviceType": "ebs",
        "BlockDeviceMappings": image.mappings,
        "EnaSupport": image.ena,
        "DeregistrationProtection": protection(image, clock),
    }
    optional = {
        "Description": image.description,
        "SriovNetSupport": image.sriov,
        "BootMode": image.boot_mode,
        "TpmSupport": image.tpm,
        "ImdsSupport": image.imds,
        "SourceImageId": image.source_image,
        "SourceImageRegion": image.source_region,
        "SourceInstanceId": image.source_instance,
        "DeprecationTime": timestamp(image.deprecate_at) if image.deprecate_at else "",
        "LastLaunchedTime": _launched(image, clock),
        "Tags": tag_list(image.tags),
    }
    view.update({name: value for name, value in optional.items() if value})
    return view


def protection(image: Image, clock: Clock) -> str:
    """Return the state of deregistration protection; a cooldown ends 24 hours after it was lifted."""
    if image.protection_lifted is not None and clock.age(image.protection_lifted) < 24 * 3600:
        return "disabled-cooldown"
    return "disabled" if image.protection_lifted is not None else image.protection


def _launched(image: Image, clock: Clock) -> str:
    if image.last_launched is None or clock.age(image.last_launched) < LAUNCH_REPORT_SECONDS:
        return ""
    return timestamp(image.last_launched)


def _devices(field: str) -> Reader:
    return lambda image: [m["Ebs"][field] for m in image.mappings if field in m.get("Ebs", {})]


def _never(_image: Image) -> list[object]:
    """Match nothing: no image of the sandbox has this attribute."""
    return []


def _readers(clock: Clock) -> dict[str, Reader]:
    return {
        "architecture": lambda i: [i.architecture],
        "block-device-mapping.delete-on-termination": _devices("DeleteOnTermination"),
        "block-device-mapping.device-name": lambda i: [m["DeviceName"] for m in i.mappings],
        "block-device-mapping.encrypted": _devices("Encrypted"),
        "block-device-mapping.snapshot-id": _devices("SnapshotId"),
        "block-device-mapping.volume-size": _devices("VolumeSize"),
        "block-device-mapping.volume-type": _devices("VolumeType"),
        "boot-mode": lambda i: one(i.boot_mode),
        "creation-date": lambda i: [timestamp(i.created)],
        "description": lambda i: one(i.description),
        "ena-support": lambda i: [i.ena],
        "free-tier-eligible": _never,
        "hypervisor": lambda _i: ["xen"],
        "image-allowed": _never,  # Allowed AMIs is not in use
        "image-id": lambda i: [i.image_id],
        "image-type": lambda _i: ["machine"],
        "is-public": lambda i: [i.public()],
        "kernel-id": _never,
        "manifest-location": lambda i: [f"{i.owner}/{i.name}"],
        "name": lambda i: [i.name],
        "owner-alias": _never,  # only AWS's own images have one
        "owner-id": lambda i: [i.owner],
        "platform": _never,  # set for Windows only
        "product-code": _never,
        "product-code.type": _never,
        "public-ssm-parameter-name": _never,
        "ramdisk-id": _never,
        "root-device-name": lambda i: [i.root_device],
        "root-device-type": lambda _i: ["ebs"],
        "source-image-id": lambda i: one(i.source_image),
        "source-image-region": lambda i: one(i.source_region),
        "source-instance-id": lambda i: one(i.source_instance),
        "sriov-net-support": lambda i: one(i.sriov),
        "state": lambda i: [i.state(clock)],
        # A failed copy gives its reason in StateMessage of its snapshot only.
        "state-reason-code": _never,
        "state-reason-message": _never,
        "virtualization-type": lambda i: [i.virtualization],
    }


@operation(
    "ec2",
    "DescribeImages",
    honours=(
        "ExecutableUsers",
        "Filters",
        "ImageIds",
        "IncludeDeprecated",
        "IncludeDisabled",
        "MaxResults",
        "NextToken",
        "Owners",
    ),
)
def describe_images(context: Context, params: Params) -> dict[str, Any]:
    """Return images that this account owns or may launch."""
    clock = context.clock
    images = [i for i in ids.everywhere(context, ids.IMAGE) if sharing.may_launch(i, context)]
    asked = params.get("ImageIds") or []
    if asked:
        known = {i.image_id: i for i in images}
        for image_id in asked:
            ids.check_id(ids.IMAGE, image_id)
            if image_id not in known:
                raise ids.not_found(ids.IMAGE, image_id)
        images = [known[image_id] for image_id in dict.fromkeys(asked)]
    if not params.get("IncludeDisabled"):
        images = [i for i in images if not i.disabled or i.state(clock) != "disabled"]
    if not params.get("IncludeDeprecated"):
        # The owner sees deprecated images whatever this parameter says (documented).
        images = [i for i in images if i.owner == context.account or not i.deprecated(clock)]
    owners = params.get("Owners") or []
    if owners:
        accounts = [context.account if o == "self" else o for o in owners]
        images = [i for i in images if i.owner in accounts]
    users = params.get("ExecutableUsers") or []
    if users:
        images = [i for i in images if any(sharing.executable_by(i, user, context) for user in users)]
    kept = select(images, params, _readers(clock), operation="DescribeImages")
    shown, token = page(kept, params, lambda i: i.image_id)
    answer: dict[str, Any] = {"Images": [image_view(i, clock) for i in shown]}
    return answer | ({"NextToken": token} if token else {})


def own(context: Context, image_id: str) -> Image:
    """Return an image of this account, to change it.

    Raises
    ------
    AwsError
        It is malformed, unknown, or belongs to an account that only shared it.
    """
    image = usable(context, image_id)
    if image.owner != context.account:
        raise AwsError("AuthFailure", f"Not authorized for image:{image_id}")
    return image


def usable(context: Context, image_id: str, *, region: str | None = None) -> Image:
    """Return an image that this account may launch, whatever its state.

    Raises
    ------
    AwsError
        It is malformed, unknown in the region or not shared with this account.
    """
    image: Image | None = ids.find_anywhere(context, ids.IMAGE, image_id, region=region)
    if image is None or not sharing.may_launch(image, context):
        raise ids.not_found(ids.IMAGE, image_id)
    return image


def check_name(context: Context, name: str | None) -> str:
    """Return a name that is free, or refuse it as malformed or taken."""
    if not name:
        raise AwsError("MissingParameter", "The request must contain the parameter Name")
    checks.image_name(name)
    for image in context.table("images").values():
        if image.name == name and image.state(context.clock) != "failed":
            text = f"AMI name {name} is already in use by AMI {image.image_id}"
            raise AwsError("InvalidAMIName.Duplicate", text)
    return name


@operation(
    "ec2",
    "RegisterImage",
    honours=(
        "Architecture",
        "BlockDeviceMappings",
        "BootMode",
        "Description",
        "EnaSupport",
        "ImdsSupport",
        "Name",
        "RootDeviceName",
        "SriovNetSupport",
        "TagSpecifications",
        "TpmSupport",
        "UefiData",
        "VirtualizationType",
    ),
    locks=False,
)
def register_image(context: Context, params: Params) -> dict[str, Any]:
    """Register an image whose root device starts from a snapshot."""
    imports.settle(context)
    with context.lock:
        checks.registration(params)
        tags = at_creation(params, "image")["image"]
        name = check_name(context, params.get("Name"))
        devices = mappings.of_image(context, params)
        image = Image(
            image_id=ids.new_id("ami"),
            owner=context.account,
            region=context.region,
            name=name,
            created=context.clock.now(),
            architecture=params.get("Architecture", "i386"),
            root_device=params.get("RootDeviceName", "/dev/sda1"),
            mappings=devices,
            description=params.get("Description", ""),
            virtualization=params.get("VirtualizationType", "paravirtual"),
            boot_mode=params.get("BootMode", ""),
            tpm=params.get("TpmSupport", ""),
            ena=bool(params.get("EnaSupport")),
            sriov=params.get("SriovNetSupport", ""),
            imds=params.get("ImdsSupport", ""),
            uefi_data=params.get("UefiData", ""),
            tags=tags,
        )
        context.table("images")[image.image_id] = image
    return {"ImageId": image.image_id}
