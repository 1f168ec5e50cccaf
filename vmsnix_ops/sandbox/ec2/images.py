"""Images: register, describe, attributes, copy, deregister, and their block device mappings.

Sources: the reference pages of the operations; "Image" and "EbsBlockDevice" of the API reference.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, given, not_emulated, operation, tag_list, words
from vmsnix_ops.sandbox.ec2.common import (
    IMAGE,
    SNAPSHOT,
    attribute_member,
    attribute_name,
    check_description,
    check_image_name,
    check_one_of,
    check_registration,
    find_of_any_account,
    find_token_result,
    invalid_value,
    is_managed_key,
    new_image,
    permission_changes,
    record_token_result,
    resource_not_found,
    select_visible,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.filters import Filters, absent, by_name, describe
from vmsnix_ops.sandbox.ec2.imports import advance_import_tasks
from vmsnix_ops.sandbox.ec2.resources import EmulatedSnapshot, Image
from vmsnix_ops.sandbox.ec2.snapshots import (
    add_snapshot_copy,
    check_completion_minutes,
    check_copy_limit,
    check_volume_size,
    check_volume_type,
    copy_encryption,
    find_usable_snapshot,
    images_of_snapshot,
    is_locked,
)
from vmsnix_ops.sandbox.public_amis import AMAZON_ACCOUNT, DISK_GIB, PUBLIC_IMAGES, PUBLISHED
from vmsnix_ops.sandbox.rbin import delete_or_recycle
from vmsnix_ops.sandbox.storage import find_bucket
from vmsnix_ops.sandbox.wire.models import format_time

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Clock, Context


FORMER_IMAGES = "former_images"
"""The table of deregistered images with instances, which DescribeInstanceImageMetadata still shows."""

LAUNCH_REPORT_SECONDS = 24 * 3600.0
"""LastLaunchedTime appears 24 hours after a launch (documented)."""


OWNER_ALIASES = {AMAZON_ACCOUNT: "amazon"}


def image_view(context: Context, image: Image) -> dict[str, Any]:
    """Return an image as DescribeImages shows it."""
    clock, launched = context.clock, image.last_launched
    reported = launched is not None and clock.age(launched) >= LAUNCH_REPORT_SECONDS
    view: dict[str, Any] = {
        "ImageId": image.image_id,
        "ImageLocation": image.location or f"{OWNER_ALIASES.get(image.owner, image.owner)}/{image.name}",
        "ImageType": "machine",
        "Name": image.name,
        "OwnerId": image.owner,
        "State": image.state(clock),
        "CreationDate": format_time(image.created.replace(microsecond=0)),  # AWS reports whole seconds
        "Public": image.public(),
        "Architecture": image.architecture,
        "Hypervisor": "xen",
        "VirtualizationType": image.virtualization,
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "RootDeviceName": image.root_device,
        "RootDeviceType": image.root_type,
        "BlockDeviceMappings": image.mappings,
        "EnaSupport": image.ena,
        "DeregistrationProtection": deregistration_protection(image, clock),
    }
    return view | given(
        ImageOwnerAlias=OWNER_ALIASES.get(image.owner, ""),
        Description=image.description,
        SriovNetSupport=image.sriov,
        BootMode=image.boot_mode,
        TpmSupport=image.tpm,
        ImdsSupport=image.imds,
        SourceImageId=image.source_image,
        SourceImageRegion=image.source_region,
        SourceInstanceId=image.source_instance,
        DeprecationTime=format_time(image.deprecate_at) if image.deprecate_at else "",
        LastLaunchedTime=format_time(launched) if launched and reported else "",
        Tags=tag_list(image.tags),
    )


def deregistration_protection(image: Image, clock: Clock) -> str:
    """Return the state of deregistration protection. A cooldown lasts 24 hours after the protection ended."""
    if image.protection_lifted is None:
        return image.protection
    return "disabled-cooldown" if clock.age(image.protection_lifted) < 24 * 3600 else "disabled"


def add_public_images(context: Context) -> None:
    """Add Amazon's public images to the region, unless it has them."""
    images = context.tables.table(AMAZON_ACCOUNT, context.region, IMAGE.table)
    snapshots = context.tables.table(AMAZON_ACCOUNT, context.region, SNAPSHOT.table)
    for public in PUBLIC_IMAGES:
        image_id, snapshot_id = public.image_id(context.region), public.snapshot_id(context.region)
        if image_id in images:
            continue
        snapshots[snapshot_id] = EmulatedSnapshot(
            snapshot_id,
            AMAZON_ACCOUNT,
            context.region,
            DISK_GIB,
            PUBLISHED,
            lineage=snapshot_id,
            public=True,
        )
        root = {
            "DeleteOnTermination": True,
            "SnapshotId": snapshot_id,
            "VolumeSize": DISK_GIB,
            "VolumeType": public.volume_type,
            "Encrypted": False,
        }
        images[image_id] = Image(
            image_id,
            AMAZON_ACCOUNT,
            context.region,
            public.name,
            PUBLISHED,
            public.architecture,
            root_device="/dev/xvda",
            mappings=[{"DeviceName": "/dev/xvda", "Ebs": root}],
            description=public.description,
            boot_mode=public.boot_mode,
            ena=True,
            sriov="simple",
            imds=public.imds,
            permissions=[{"Group": "all"}],
        )


IMAGE_FILTERS: Filters = (
    by_name(
        "architecture boot-mode creation-date description ena-support hypervisor image-id "
        "image-type name owner-id root-device-name root-device-type source-image-id "
        "source-image-region source-instance-id sriov-net-support state virtualization-type"
    )
    | absent(
        "kernel-id platform product-code product-code.type ramdisk-id state-reason-code state-reason-message"
    )
    | {
        "block-device-mapping.delete-on-termination": "BlockDeviceMappings.Ebs.DeleteOnTermination",
        "block-device-mapping.device-name": "BlockDeviceMappings.DeviceName",
        "block-device-mapping.encrypted": "BlockDeviceMappings.Ebs.Encrypted",
        "block-device-mapping.snapshot-id": "BlockDeviceMappings.Ebs.SnapshotId",
        "block-device-mapping.volume-size": "BlockDeviceMappings.Ebs.VolumeSize",
        "block-device-mapping.volume-type": "BlockDeviceMappings.Ebs.VolumeType",
        "is-public": "Public",
        "manifest-location": "ImageLocation",
        "owner-alias": "ImageOwnerAlias",
    }
)


@operation(
    "ec2",
    "DescribeImages",
    "ExecutableUsers Filters ImageIds IncludeDeprecated IncludeDisabled MaxResults NextToken Owners",
)
def describe_images(context: Context, params: Params) -> dict[str, Any]:
    """Return images that this account owns or may launch."""
    clock = context.clock
    add_public_images(context)
    images = [i for i in context.tables.in_region("images", context.region) if may_launch(i, context)]
    if params.get("ImageIds"):
        visible = {image.image_id: image for image in images}
        wanted = [i for i in params["ImageIds"] if i in visible or not _was_launched_from(context, i)]
        images = select_visible(IMAGE, visible, wanted)
    if not params.get("IncludeDisabled"):
        images = [i for i in images if not i.disabled or i.state(clock) != "disabled"]
    if not params.get("IncludeDeprecated"):
        # Documented: the owner always sees deprecated images.
        images = [i for i in images if i.owner == context.account or not i.deprecated(clock)]
    if params.get("Owners"):
        for owner in {"aws-backup-vault", "aws-marketplace"} & set(params["Owners"]):
            raise not_emulated(f"the owner {owner!r} of ec2:DescribeImages")
        owners = {context.account if owner == "self" else owner for owner in params["Owners"]}
        images = [i for i in images if owners & {i.owner, OWNER_ALIASES.get(i.owner)}]
    if params.get("ExecutableUsers"):
        users = params["ExecutableUsers"]
        images = [i for i in images if any(executable_by(i, user, context) for user in users)]
    return describe(context, params, images, image_view, filters=IMAGE_FILTERS, key="image_id")


def _was_launched_from(context: Context, image_id: str) -> bool:
    """Return whether an image is deregistered and the caller has an instance of it that is not terminated.

    Documented: DescribeImages returns neither the image nor an error until all of them are terminated.
    """
    instances = context.table("instances").values()
    return context.tables.find("images", context.region, image_id) is None and any(
        one.image_id == image_id and one.state(context.clock) != "terminated" for one in instances
    )


# Which account may launch an image
#
# The table ``organization`` has the organizations of an account (keys ``organizations`` and ``units``, lists
# of ARNs). The Organizations service itself is not emulated.


def may_launch(image: Image, context: Context) -> bool:
    """Return whether the caller may use an image. Only the owner sees a disabled or failed one."""
    if image.owner == context.account:
        return True
    if image.state(context.clock) != "available":
        return False
    return image.public() or _shared_with_caller(image, context)


def executable_by(image: Image, user: str, context: Context) -> bool:
    """Return whether an image is explicitly shared with ``self``, an account, or ``all``."""
    if user == "all":
        return image.public()
    if user in ("self", context.account):
        return _shared_with_caller(image, context)
    return {"UserId": user} in image.permissions


def _shared_with_caller(image: Image, context: Context) -> bool:
    known = context.table("organization", region="")
    grantees = {context.account, *known.get("organizations", ()), *known.get("units", ())}
    return any(grantee in grantees for entry in image.permissions for grantee in entry.values())


def find_own_image(context: Context, image_id: str) -> Image:
    """Return an image of this account; an error if another account only shared it."""
    image = find_launchable_image(context, image_id)
    if image.owner != context.account:
        raise ApiError("AuthFailure", f"Not authorized for image:{image_id}")
    return image


def find_launchable_image(context: Context, image_id: str, *, region: str | None = None) -> Image:
    """Return an image of this account, or one that is shared with it, in any state."""
    add_public_images(context if region is None else replace(context, region=region))
    image: Image | None = find_of_any_account(context, IMAGE, image_id, region=region)
    if image is None or not may_launch(image, context):
        raise resource_not_found(IMAGE, image_id)
    return image


def check_free_name(context: Context, name: str | None) -> str:
    """Return a name, after the check that it is valid and not in use."""
    name = check_image_name(name)
    for image in context.table("images").values():
        if image.name == name and image.state(context.clock) != "failed":
            text = f"AMI name {name} is already in use by AMI {image.image_id}"
            raise ApiError("InvalidAMIName.Duplicate", text)
    return name


@operation(
    "ec2",
    "RegisterImage",
    "Architecture BlockDeviceMappings BootMode Description EnaSupport ImageLocation ImdsSupport Name",
    "RootDeviceName SriovNetSupport TagSpecifications TpmSupport UefiData VirtualizationType",
    locks=False,
)
def register_image(context: Context, params: Params) -> dict[str, Any]:
    """Register an image with a snapshot as root device, or an image of a bundle in S3.

    EC2 reads a bundle with the permissions of the bucket's ACL. The sandbox has no ACLs: it accepts every
    manifest in a bucket of the account and does not read its content.
    """
    advance_import_tasks(context)
    with context.lock:
        check_registration(params)
        tags = tags_at_creation(params, "image")["image"]
        name = check_free_name(context, params.get("Name"))
        devices = _image_devices(context, params)
        _check_manifest(context, params.get("ImageLocation", ""))
        image = new_image(
            context,
            name,
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
            location=params.get("ImageLocation", ""),
        )
        context.table("images")[image.image_id] = image
    return {"ImageId": image.image_id}


# Block device mappings of images and instances
#
# Source: "EbsBlockDevice" of the API reference (sizes, IOPS and throughput by volume type).


EBS_MEMBERS = set(words("DeleteOnTermination Encrypted Iops SnapshotId Throughput VolumeSize VolumeType"))


def _mapping_error(text: str) -> ApiError:
    return ApiError("InvalidBlockDeviceMapping", text)


def _image_devices(context: Context, params: Params) -> list[dict[str, Any]]:
    """Return the block device mapping of a new image, as DescribeImages shows it.

    Refused: a root device without a snapshot, a snapshot that is unknown or pending, and a volume that is
    smaller than its snapshot.
    """
    root = params.get("RootDeviceName", "/dev/sda1")
    shown, seen = [], set()
    for mapping in params.get("BlockDeviceMappings") or []:
        device = mapping.get("DeviceName", "")
        if not device or device in seen:
            raise _mapping_error(f"The device '{device}' is used in more than one block-device mapping")
        seen.add(device)
        if "Ebs" in mapping:
            shown.append({"DeviceName": device, "Ebs": _ebs_device(context, mapping["Ebs"])})
        else:
            shown.append({k: v for k, v in mapping.items() if k in ("DeviceName", "VirtualName", "NoDevice")})
    rooted = any(m["DeviceName"] == root and "SnapshotId" in m.get("Ebs", {}) for m in shown)
    if not rooted and not params.get("ImageLocation"):
        raise _mapping_error("No root snapshot specified in device mapping.")
    return shown


def _check_manifest(context: Context, location: str) -> None:
    """Check that EC2 can read the manifest of a bundle."""
    bucket, _, key = location.partition("/")
    found = find_bucket(context.tables, bucket)
    if location and (found is None or found.account != context.account or key not in found.objects):
        text = f"HTTP 403 (Forbidden) response for URL http://s3.amazonaws.com:80/{location}"
        raise ApiError("InvalidManifest", text)


def _ebs_device(context: Context, ebs: Params) -> dict[str, Any]:
    for member in ebs.keys() - EBS_MEMBERS:
        text = f"The parameter {member} is not supported in an image's block device mapping."
        raise ApiError("UnsupportedOperation", text)  # text from memory
    kind = ebs.get("VolumeType", "gp2")
    shown: dict[str, Any] = {"DeleteOnTermination": ebs.get("DeleteOnTermination", True)}
    size, encrypted = ebs.get("VolumeSize"), bool(ebs.get("Encrypted"))
    if "SnapshotId" in ebs:
        snapshot = find_usable_snapshot(context, ebs["SnapshotId"])
        if "Encrypted" in ebs:
            # Documented: the encryption state cannot be given with a snapshot; text from memory.
            text = "The parameter encrypted cannot be used with the parameter snapshotId."
            raise ApiError("InvalidParameterCombination", text)
        size = snapshot.size_gib if size is None else size
        encrypted = snapshot.encrypted
        check_volume_size(size, snapshot.snapshot_id, snapshot.size_gib)
        shown["SnapshotId"] = snapshot.snapshot_id
    if size is None:
        raise ApiError("MissingParameter", "Either a snapshot ID or a volume size must be specified.")
    check_volume_type(kind, size, ebs.get("Iops"), ebs.get("Throughput"))
    shown |= {"VolumeSize": size, "VolumeType": kind, "Encrypted": encrypted}
    return shown | {k: ebs[k] for k in ("Iops", "Throughput") if k in ebs}


# Deprecation, disabling, protection, deregistration
#
# Sources: the reference pages of the operations; "Deprecate an AMI", "Disable an AMI", "Protect an AMI from
# deregistration" of the EC2 user guide.

YEAR = timedelta(days=365.25)


@operation("ec2", "EnableImageDeprecation", "DeprecateAt ImageId")
def enable_image_deprecation(context: Context, params: Params) -> dict[str, Any]:
    """Set the deprecation date of an image, rounded to the minute."""
    image = find_own_image(context, params["ImageId"])
    moment: datetime = params["DeprecateAt"]
    now = context.clock.now()
    limit = image.created + 2 * YEAR if image.public() else now + 10 * YEAR
    if not now <= moment <= limit:
        text = f"Value ({format_time(moment)}) for parameter DeprecateAt is invalid."  # text from memory
        raise invalid_value(text)
    image.deprecate_at = (moment + timedelta(seconds=30)).replace(second=0, microsecond=0)
    image.deprecation_set = now
    return {"Return": True}


@operation("ec2", "DisableImageDeprecation", "ImageId")
def disable_image_deprecation(context: Context, params: Params) -> dict[str, Any]:
    """Remove the deprecation date."""
    find_own_image(context, params["ImageId"]).deprecate_at = None
    return {"Return": True}


@operation("ec2", "DisableImage", "ImageId")
def disable_image(context: Context, params: Params) -> dict[str, Any]:
    """Disable an image: it is private, not listed, and cannot be launched."""
    image = find_own_image(context, params["ImageId"])
    state = image.state(context.clock)
    if state not in ("available", "disabled"):
        text = f"The image {image.image_id} is in the state {state}."  # text from memory
        raise ApiError("IncorrectState", text)
    image.disabled = True
    image.permissions.clear()
    return {"Return": True}


@operation("ec2", "EnableImage", "ImageId")
def enable_image(context: Context, params: Params) -> dict[str, Any]:
    """Make a disabled image available. Its former launch permissions are not restored."""
    find_own_image(context, params["ImageId"]).disabled = False
    return {"Return": True}


@operation("ec2", "EnableImageDeregistrationProtection", "ImageId WithCooldown")
def enable_image_deregistration_protection(context: Context, params: Params) -> dict[str, Any]:
    """Protect an image from being deregistered."""
    image = find_own_image(context, params["ImageId"])
    image.protection = "enabled-with-cooldown" if params.get("WithCooldown") else "enabled-without-cooldown"
    image.protection_lifted = None
    return {"Return": "true"}


@operation("ec2", "DisableImageDeregistrationProtection", "ImageId")
def disable_image_deregistration_protection(context: Context, params: Params) -> dict[str, Any]:
    """End the protection at once; if it was enabled with a cooldown, 24 hours later."""
    image = find_own_image(context, params["ImageId"])
    if image.protection == "enabled-with-cooldown":
        image.protection_lifted = image.protection_lifted or context.clock.now()
    else:
        image.protection = "disabled"
    return {"Return": "true"}


@operation("ec2", "DeregisterImage", "DeleteAssociatedSnapshots ImageId")
def deregister_image(context: Context, params: Params) -> dict[str, Any]:
    """Deregister an image; on request, delete those of its snapshots that no other image uses.

    A snapshot that the caller may not delete is reported as ``missing-permissions``, and the image is
    deregistered (DeleteSnapshotReturnCode in the Amazon EC2 API Reference).
    Only images with EBS snapshots can enter the Recycle Bin (documented); assumption: and only complete ones.
    """
    image = find_own_image(context, params["ImageId"])
    protection = deregistration_protection(image, context.clock)
    if protection != "disabled":
        # The code is documented; the text is from memory.
        text = f"The image {image.image_id} cannot be deregistered: its protection is {protection}."
        raise ApiError("OperationNotPermitted", text)
    retainable = not image.location and image.state(context.clock) in {"available", "disabled"}
    if any(one.image_id == image.image_id for one in context.tables.in_region("instances", image.region)):
        context.table(FORMER_IMAGES)[image.image_id] = image
    delete_or_recycle(context, "images", image.image_id, retainable=retainable)
    table = context.table("snapshots")
    own = [snapshot_id for snapshot_id in image.snapshot_ids() if snapshot_id in table]
    for snapshot_id in own:
        table[snapshot_id].released = context.clock.now()
    if not params.get("DeleteAssociatedSnapshots"):
        return {"Return": True}
    results = []
    for snapshot_id in image.snapshot_ids():
        named = {"SnapshotId": snapshot_id}
        if images_of_snapshot(context, snapshot_id):
            code = "skipped"
        elif snapshot_id not in own or not context.authorizer.allows(context, "DeleteSnapshot", named):
            # It may belong to another account that shared it.
            code = "missing-permissions"
        elif is_locked(table[snapshot_id], context.clock):
            code = "client-error"  # a guess
        else:
            delete_or_recycle(context, "snapshots", snapshot_id)
            code = "success"
        results.append(named | {"ReturnCode": code})
    return {"Return": True, "DeleteSnapshotResults": results}


# Image attributes, launch permissions, block public access
#
# Sources: the reference pages of the operations; "Block public access to your AMIs"; quota "Public AMIs" (5 a
# region).

MAX_PUBLIC_IMAGES = 5
GRANTEE_MEMBERS = {
    "UserIds": "UserId",
    "UserGroups": "Group",
    "OrganizationArns": "OrganizationArn",
    "OrganizationalUnitArns": "OrganizationalUnitArn",
}


@operation(
    "ec2",
    "ModifyImageAttribute",
    "Attribute Description ImageId ImdsSupport LaunchPermission OperationType OrganizationArns",
    "OrganizationalUnitArns UserGroups UserIds Value",
)
def modify_image_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Change the description, the IMDS requirement or the launch permissions of an image."""
    image = find_own_image(context, params["ImageId"])
    changeable = ("description", "imdsSupport", "launchPermission")
    attribute = attribute_name(params.get("Attribute"), changeable, "ImageAttributeName")
    changes = {name: params.get(name, {}).get("Value") for name in ("Description", "ImdsSupport")}
    if attribute in ("description", "imdsSupport") and "Value" in params:
        changes[attribute[0].upper() + attribute[1:]] = params["Value"]
    description, imds = changes.values()
    check_one_of("imdsSupport", imds, ("v2.0",))
    check_description(description)
    added, removed = permission_changes(params, "LaunchPermission", GRANTEE_MEMBERS)
    if description is None and imds is None and not added and not removed:
        raise ApiError("InvalidParameterCombination", "No attributes specified.")
    _check_sharing(context, image, added)
    if description is not None:
        image.description = description
    image.imds = imds or image.imds
    image.permissions = [p for p in image.permissions if p not in removed]
    image.permissions.extend(p for p in added if p not in image.permissions)
    return {}


def _check_sharing(context: Context, image: Image, added: list[dict[str, str]]) -> None:
    if not added:
        return
    state = image.state(context.clock)
    if state != "available":
        text = f"The image {image.image_id} is {state} and cannot be shared."  # text from memory
        raise ApiError("InvalidAMIID.Unavailable" if state != "disabled" else "OperationNotPermitted", text)
    for snapshot_id in image.snapshot_ids():
        snapshot = context.table("snapshots").get(snapshot_id)
        if snapshot is not None and snapshot.encrypted and is_managed_key(context, snapshot.kms_key):
            # Code and text: public transcripts, of Packer among others.
            text = "Snapshots encrypted with the AWS Managed CMK can't be shared. Specify another snapshot."
            raise ApiError("InvalidParameter", text)
    if {"Group": "all"} not in added or image.public():
        return
    if _public_access_block(context) == "block-new-sharing":
        raise ApiError(
            "OperationNotPermitted",
            "You can't publicly share this image because block public access for AMIs is enabled "
            "for this account.",
        )
    if any(mapping.get("Ebs", {}).get("Encrypted") for mapping in image.mappings):
        # Documented: an image with encrypted volumes cannot be public; text from memory.
        raise ApiError("OperationNotPermitted", f"The image {image.image_id} has encrypted snapshots.")
    if sum(1 for other in context.table("images").values() if other.public()) >= MAX_PUBLIC_IMAGES:
        # Text from memory.
        text = f"You have reached your quota of {MAX_PUBLIC_IMAGES} public images in this region."
        raise ApiError("ResourceLimitExceeded", text)


@operation("ec2", "ResetImageAttribute", "Attribute ImageId")
def reset_image_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Remove all launch permissions."""
    attribute_name(params["Attribute"], ("launchPermission",), "ResetImageAttributeName")
    find_own_image(context, params["ImageId"]).permissions.clear()
    return {}


@operation("ec2", "DescribeImageAttribute", "Attribute ImageId")
def describe_image_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Return one attribute of an image of this account."""
    image = find_own_image(context, params["ImageId"])
    attribute = params["Attribute"][:1].lower() + params["Attribute"][1:]
    if attribute == "blockDeviceMapping":
        # Documented: this attribute is deprecated and answers AuthFailure. DescribeImages has the devices.
        raise ApiError("AuthFailure", "Unauthorized attempt to access restricted resource")
    answer: dict[str, Any] = {"ImageId": image.image_id}
    if attribute == "launchPermission":
        return answer | {"LaunchPermissions": list(image.permissions)}
    if attribute == "productCodes":
        return answer | {"ProductCodes": []}
    view = image_view(context, image)
    values = {
        "description": image.description,
        "kernel": "",
        "ramdisk": "",
        "sriovNetSupport": image.sriov,
        "bootMode": image.boot_mode,
        "tpmSupport": image.tpm,
        "uefiData": image.uefi_data,
        "lastLaunchedTime": view.get("LastLaunchedTime", ""),
        "imdsSupport": image.imds,
        "deregistrationProtection": view["DeregistrationProtection"],
    }
    attribute_name(attribute, values, "ImageAttributeName")
    return answer | attribute_member(attribute, values[attribute])


def _public_access_block(context: Context) -> str:
    return str(context.table("ec2_settings").get("image_block", "block-new-sharing"))


@operation("ec2", "EnableImageBlockPublicAccess", "ImageBlockPublicAccessState")
def enable_image_block_public_access(context: Context, params: Params) -> dict[str, Any]:
    """Refuse to make images of this region public."""
    state = params["ImageBlockPublicAccessState"]
    check_one_of("imageBlockPublicAccessState", state, ("block-new-sharing",))
    context.table("ec2_settings")["image_block"] = state
    return {"ImageBlockPublicAccessState": state}


@operation("ec2", "DisableImageBlockPublicAccess")
def disable_image_block_public_access(context: Context, _params: Params) -> dict[str, Any]:
    """Allow images to be made public."""
    context.table("ec2_settings")["image_block"] = "unblocked"
    return {"ImageBlockPublicAccessState": "unblocked"}


@operation("ec2", "GetImageBlockPublicAccessState")
def get_image_block_public_access_state(context: Context, _params: Params) -> dict[str, Any]:
    """Return whether images may be made public."""
    return {"ImageBlockPublicAccessState": _public_access_block(context), "ManagedBy": "account"}


# CopyImage
#
# The copy has its own snapshots and is ``pending`` first. When its key cannot be used, it becomes ``failed``
# later; only StateMessage of its snapshot has the reason. Unlike RegisterImage, CopyImage accepts a name that
# is in use. Sources: the reference page of CopyImage; public transcripts of failed and of repeated copies.

COPY_EXTRA_SECONDS = 5.0
"""Seconds from the completion of its last snapshot until a copied image is available."""


@operation(
    "ec2",
    "CopyImage",
    "ClientToken CopyImageTags Description Encrypted KmsKeyId Name",
    "SnapshotCopyCompletionDurationMinutes SourceImageId SourceRegion TagSpecifications",
)
def copy_image(context: Context, params: Params) -> dict[str, Any]:
    """Start a copy of an image from another region or from this one.

    With ``state_message`` in the outcome of a fault rule, the copy fails with this text.
    """
    earlier = find_token_result(context, params)
    if earlier in context.table("images"):
        return {"ImageId": earlier}
    tags = tags_at_creation(params, "image", "snapshot")
    source = find_launchable_image(context, params["SourceImageId"], region=params["SourceRegion"])
    state = source.state(context.clock)
    if state != "available":
        text = f"The image {source.image_id} is not available: it is {state}."  # text from memory
        raise ApiError("InvalidAMIID.Unavailable", text)
    if source.location:
        raise not_emulated("an image with an instance store of ec2:CopyImage")
    name = check_image_name(params.get("Name"))
    check_description(params.get("Description"))
    minutes = params.get("SnapshotCopyCompletionDurationMinutes")
    check_completion_minutes(minutes)
    check_copy_limit(context, len(source.snapshot_ids()))
    own_tags = dict(source.tags) if params.get("CopyImageTags") and source.owner == context.account else {}
    image = new_image(
        context,
        name,
        architecture=source.architecture,
        root_device=source.root_device,
        mappings=copy.deepcopy(source.mappings),
        description=params.get("Description", ""),
        virtualization=source.virtualization,
        boot_mode=source.boot_mode,
        tpm=source.tpm,
        ena=source.ena,
        sriov=source.sriov,
        imds=source.imds,
        uefi_data=source.uefi_data,
        tags=own_tags | tags["image"],
        source_image=source.image_id,
        source_region=source.region,
    )
    _copy_snapshots(context, params, image, source, tags["snapshot"])
    context.table("images")[image.image_id] = image
    record_token_result(context, params, image.image_id)
    return {"ImageId": image.image_id}


def _copy_snapshots(
    context: Context, params: Params, image: Image, source: Image, tags: dict[str, str]
) -> None:
    """Copy the snapshots of all devices, and set the duration and the outcome of the image's copy."""
    planned, made = [], {}
    for snapshot_id in source.snapshot_ids():
        original = find_of_any_account(context, SNAPSHOT, snapshot_id, region=source.region)
        if original is None or not original.readable_by(context.account, context.clock):
            # The snapshot must be shared too, or the image cannot be copied.
            raise ApiError("InvalidRequest", "You do not have permission to access the storage of this ami")
        planned.append((snapshot_id, original, copy_encryption(context, params, original)))
    for snapshot_id, original, chosen in planned:
        milliseconds = int(context.clock.now().timestamp() * 1000)
        duplicate = add_snapshot_copy(
            context,
            original,
            chosen,
            description=f"Copied for DestinationAmi {image.image_id} from SourceAmi {source.image_id} "
            f"for SourceSnapshot {snapshot_id}. Task created on {milliseconds:,}.",
            tags=dict(tags),
            minutes=params.get("SnapshotCopyCompletionDurationMinutes"),
        )
        duplicate.failure = str(context.outcome.get("state_message", duplicate.failure))
        made[snapshot_id] = duplicate
        image.failure = image.failure or duplicate.failure
        image.seconds = max(image.seconds, duplicate.seconds + COPY_EXTRA_SECONDS)
    for mapping in image.mappings:
        ebs = mapping.get("Ebs", {})
        if ebs.get("SnapshotId") in made:
            duplicate = made[ebs["SnapshotId"]]
            ebs |= {"Encrypted": duplicate.encrypted, "SnapshotId": duplicate.snapshot_id}
