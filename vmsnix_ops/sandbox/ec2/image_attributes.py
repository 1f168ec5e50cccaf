"""Image attributes, launch permissions, and the account's block on public images.

Sources: the reference pages of the operations; "Block public access to your AMIs"; quota "Public AMIs" (5 a
region).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import checks, encryption, images, sharing

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.state import Image

PUBLIC_IMAGES = 5
MEMBERS = {
    "UserIds": "UserId",
    "UserGroups": "Group",
    "OrganizationArns": "OrganizationArn",
    "OrganizationalUnitArns": "OrganizationalUnitArn",
}


def _permissions(params: Params) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the launch permissions to add and to remove, from either form of the request."""
    structure = params.get("LaunchPermission") or {}
    added = [dict(entry) for entry in structure.get("Add") or []]
    removed = [dict(entry) for entry in structure.get("Remove") or []]
    flat = [{item: value} for member, item in MEMBERS.items() for value in params.get(member) or []]
    if flat:
        checks.one_of("operationType", params.get("OperationType", ""), ("add", "remove"))
        (added if params["OperationType"] == "add" else removed).extend(flat)
    for entry in added + removed:
        for item, value in entry.items():
            sharing.check_grantee(item, value)
    return added, removed


@operation(
    "ec2",
    "ModifyImageAttribute",
    honours=(
        "Attribute",
        "Description",
        "ImageId",
        "ImdsSupport",
        "LaunchPermission",
        "OperationType",
        "OrganizationArns",
        "OrganizationalUnitArns",
        "UserGroups",
        "UserIds",
        "Value",
    ),
)
def modify_image_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Change the description, the IMDS requirement or the launch permissions of an image."""
    image = images.own(context, params["ImageId"])
    attribute = params.get("Attribute")
    checks.one_of("attribute", attribute, ("description", "imdsSupport", "launchPermission"))
    description = params.get("Description", {}).get("Value")
    imds = params.get("ImdsSupport", {}).get("Value")
    if attribute == "description":
        description = params.get("Value", description)
    if attribute == "imdsSupport":
        imds = params.get("Value", imds)
    checks.one_of("imdsSupport", imds, ("v2.0",))
    checks.description(description)
    added, removed = _permissions(params)
    if description is None and imds is None and not added and not removed:
        raise AwsError("InvalidParameterCombination", "No attributes specified.")
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
        raise AwsError("InvalidAMIID.Unavailable" if state != "disabled" else "OperationNotPermitted", text)
    for snapshot_id in image.snapshot_ids():
        snapshot = context.table("snapshots").get(snapshot_id)
        if snapshot is not None and snapshot.encrypted and encryption.managed(context, snapshot.kms_key):
            # Code and text: public transcripts, of Packer among others.
            text = "Snapshots encrypted with the AWS Managed CMK can't be shared. Specify another snapshot."
            raise AwsError("InvalidParameter", text)
    if {"Group": "all"} not in added or image.public():
        return
    if _blocked(context) == "block-new-sharing":
        raise AwsError(
            "OperationNotPermitted",
            "You can't publicly share this image because block public access for AMIs is enabled "
            "for this account.",
        )
    if any(mapping.get("Ebs", {}).get("Encrypted") for mapping in image.mappings):
        # Documented: an image with encrypted volumes cannot be public; text from memory.
        raise AwsError("OperationNotPermitted", f"The image {image.image_id} has encrypted snapshots.")
    if sum(1 for other in context.table("images").values() if other.public()) >= PUBLIC_IMAGES:
        # Text from memory.
        text = f"You have reached your quota of {PUBLIC_IMAGES} public images in this region."
        raise AwsError("ResourceLimitExceeded", text)


@operation("ec2", "ResetImageAttribute", honours=("Attribute", "ImageId"))
def reset_image_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Take all launch permissions away."""
    checks.one_of("attribute", params["Attribute"], ("launchPermission",))
    images.own(context, params["ImageId"]).permissions.clear()
    return {}


@operation("ec2", "DescribeImageAttribute", honours=("Attribute", "ImageId"))
def describe_image_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Return one attribute of an image of this account."""
    image = images.own(context, params["ImageId"])
    attribute = params["Attribute"]
    if attribute == "blockDeviceMapping":
        # Documented: the attribute is deprecated and answers AuthFailure; DescribeImages shows the devices.
        raise AwsError("AuthFailure", "Unauthorized attempt to access restricted resource")
    answer: dict[str, Any] = {"ImageId": image.image_id}
    if attribute == "launchPermission":
        return answer | {"LaunchPermissions": list(image.permissions)}
    if attribute == "productCodes":
        return answer | {"ProductCodes": []}
    view = images.image_view(image, context.clock)
    values = {
        "description": ("Description", image.description),
        "kernel": ("KernelId", ""),
        "ramdisk": ("RamdiskId", ""),
        "sriovNetSupport": ("SriovNetSupport", image.sriov),
        "bootMode": ("BootMode", image.boot_mode),
        "tpmSupport": ("TpmSupport", image.tpm),
        "uefiData": ("UefiData", image.uefi_data),
        "lastLaunchedTime": ("LastLaunchedTime", view.get("LastLaunchedTime", "")),
        "imdsSupport": ("ImdsSupport", image.imds),
        "deregistrationProtection": ("DeregistrationProtection", view["DeregistrationProtection"]),
    }
    checks.one_of("attribute", attribute, (*values, "blockDeviceMapping", "launchPermission", "productCodes"))
    name, value = values[attribute]
    return answer | {name: {"Value": value} if value else {}}


def _blocked(context: Context) -> str:
    return str(context.table("ec2_settings").get("image_block", "unblocked"))


@operation("ec2", "EnableImageBlockPublicAccess", honours=("ImageBlockPublicAccessState",))
def enable_image_block_public_access(context: Context, params: Params) -> dict[str, Any]:
    """Refuse from now on to make images of this region public."""
    state = params["ImageBlockPublicAccessState"]
    checks.one_of("imageBlockPublicAccessState", state, ("block-new-sharing",))
    context.table("ec2_settings")["image_block"] = state
    return {"ImageBlockPublicAccessState": state}


@operation("ec2", "DisableImageBlockPublicAccess")
def disable_image_block_public_access(context: Context, _params: Params) -> dict[str, Any]:
    """Allow images to be made public."""
    context.table("ec2_settings")["image_block"] = "unblocked"
    return {"ImageBlockPublicAccessState": "unblocked"}


@operation("ec2", "GetImageBlockPublicAccessState")
def get_image_block_public_access_state(context: Context, _params: Params) -> dict[str, Any]:
    """Tell whether images may be made public."""
    return {"ImageBlockPublicAccessState": _blocked(context), "ManagedBy": "account"}
