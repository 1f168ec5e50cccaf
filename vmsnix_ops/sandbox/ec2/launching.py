"""What a launch takes from the image and the instance type, and when the two do not fit.

Sources: "Instance launch behavior with boot modes", "Configure the AMI" (IMDSv2), "EBS volume lifecycle".
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params
from vmsnix_ops.sandbox.credentials import unique_id
from vmsnix_ops.sandbox.ec2 import checks, ids

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.instance_types import InstanceType
    from vmsnix_ops.sandbox.ec2.state import Image

METADATA = {
    "HttpTokens": ("optional", "required"),
    "HttpEndpoint": ("enabled", "disabled"),
    "HttpProtocolIpv6": ("disabled", "enabled"),
    "InstanceMetadataTags": ("disabled", "enabled"),
}


def check(context: Context, image: Image, kind: InstanceType, asked: Params) -> None:
    """Refuse an image that cannot be launched now, or not on this type."""
    state = image.state(context.clock)
    if state != "available":
        raise AwsError(
            "InvalidAMIID.Unavailable", f"The image ID '{image.image_id}' is not available: it is {state}"
        )
    if image.architecture not in kind.architectures:
        raise AwsError(
            "InvalidParameterValue",
            f"The architecture '{','.join(kind.architectures)}' of the specified instance type does not "
            f"match the architecture '{image.architecture}' of the specified AMI. Specify an instance type "
            "and an AMI "
            "that have matching architectures, and try again. You can use 'describe-instance-types' or "
            "'describe-images' to discover the architecture of the instance type or AMI.",
        )
    if image.boot_mode and boot_mode(image, kind) not in kind.boot_modes:
        # The code is documented, the text is from memory.
        text = f"The boot mode '{image.boot_mode}' of the AMI is not one of the instance type '{kind.name}'."
        raise AwsError("InvalidParameterValue", text)
    if kind.nitro and not image.ena:
        raise AwsError(
            "InvalidParameterCombination",
            "Enhanced networking with the Elastic Network Adapter (ENA) is required for the "
            f"'{kind.name}' instance type. Ensure that you are using an AMI that is enabled for ENA.",
        )
    if image.tpm and not kind.nitro:
        text = f"The instance type '{kind.name}' does not support NitroTPM."  # text from memory
        raise AwsError("InvalidParameterCombination", text)
    market = asked.get("InstanceMarketOptions") or {}
    checks.one_of("marketType", market.get("MarketType"), ("spot",))
    checks.one_of(
        "instanceInitiatedShutdownBehavior",
        asked.get("InstanceInitiatedShutdownBehavior"),
        ("stop", "terminate"),
    )
    for member, allowed in METADATA.items():
        checks.one_of(member, (asked.get("MetadataOptions") or {}).get(member), allowed)


def instance_profile(context: Context, asked: Params) -> dict[str, Any]:
    """Return the instance profile of a launch as DescribeInstances shows it; empty without one.

    Instance profiles are not emulated: each role has one of its own name, as the console makes it.
    """
    profile = asked.get("IamInstanceProfile") or {}
    if not profile:
        return {}
    name = (profile.get("Name") or profile.get("Arn", "")).rpartition("/")[2]
    if name not in context.table("roles", region=""):
        text = f"Value ({name}) for parameter iamInstanceProfile.name is invalid. "
        raise AwsError("InvalidParameterValue", f"{text}Invalid IAM Instance Profile name")
    home = f"arn:{context.partition}:iam::{context.account}"
    shown = {"Arn": f"{home}:instance-profile/{name}", "Id": unique_id("AIPA", home, name)}
    return {"IamInstanceProfile": shown}


def boot_mode(image: Image, kind: InstanceType) -> str:
    """Return the boot mode that an instance of this image on this type has."""
    if image.boot_mode == "uefi-preferred":
        return "uefi" if "uefi" in kind.boot_modes else "legacy-bios"
    if image.boot_mode:
        return image.boot_mode
    return "uefi" if kind.boot_modes == ("uefi",) else "legacy-bios"


def details(image: Image, kind: InstanceType, asked: Params) -> dict[str, Any]:
    """Return what DescribeInstances shows beyond the instance's own fields."""
    required = image.imds == "v2.0"
    metadata = {name: allowed[0] for name, allowed in METADATA.items()}
    metadata["HttpTokens"] = "required" if required else "optional"
    options = {"State": "applied", "HttpPutResponseHopLimit": 2 if required else 1} | metadata
    shown: dict[str, Any] = {
        "MetadataOptions": options | (asked.get("MetadataOptions") or {}),
        "EnaSupport": image.ena,
        "EbsOptimized": False,
        "CurrentInstanceBootMode": boot_mode(image, kind),
    }
    if image.boot_mode:
        shown["BootMode"] = image.boot_mode
    if image.tpm:
        shown["TpmSupport"] = image.tpm
    if (asked.get("InstanceMarketOptions") or {}).get("MarketType") == "spot":
        shown |= {"InstanceLifecycle": "spot", "SpotInstanceRequestId": ids.new_id("sir")}
    return shown


def devices(image: Image, wanted: list[Params]) -> list[Params]:
    """Return the image's block devices with the launch's changes."""
    found = {m["DeviceName"]: copy.deepcopy(m) for m in image.mappings if "Ebs" in m}
    for mapping in wanted:
        device = mapping.get("DeviceName", "")
        if "NoDevice" in mapping:
            found.pop(device, None)
        elif "Ebs" in mapping:
            known = found.setdefault(device, {"DeviceName": device, "Ebs": {}})
            known["Ebs"].update(mapping["Ebs"])
    if image.root_device not in found:
        raise AwsError("InvalidBlockDeviceMapping", "The root device cannot be left out.")  # text from memory
    return list(found.values())
