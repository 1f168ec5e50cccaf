"""What EC2 refuses in the parameters of an image.

Codes are documented ("Error codes for the Amazon EC2 API"); texts marked so are from memory.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.core import AwsError, Params

if TYPE_CHECKING:
    from collections.abc import Collection

NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")
ARCHITECTURES = ("i386", "x86_64", "arm64", "x86_64_mac", "arm64_mac")
BOOT_MODES = ("legacy-bios", "uefi", "uefi-preferred")
DESCRIPTION_LENGTH = 255


def image_name(name: str) -> None:
    """Refuse a name outside 3 to 128 of the documented characters."""
    if not NAME.fullmatch(name):
        raise AwsError(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, "
            "'(', ')', '.', '-', '/' and '_'",
        )


def one_of(parameter: str, value: str | None, allowed: Collection[str]) -> None:
    """Refuse a value that is not one of the allowed ones; None passes."""
    if value is not None and value not in allowed:
        text = f"Value ({value}) for parameter {parameter} is invalid. Expected one of: {', '.join(allowed)}."
        raise AwsError("InvalidParameterValue", text)


def description(text: str | None) -> None:
    """Refuse a description beyond 255 characters."""
    if text is not None and len(text) > DESCRIPTION_LENGTH:
        message = f"Character sets beyond {DESCRIPTION_LENGTH} characters are not supported for description."
        raise AwsError("InvalidParameterValue", message)  # text from memory


def registration(params: Params) -> None:
    """Refuse what RegisterImage does not accept, its block devices aside."""
    one_of("architecture", params.get("Architecture"), ARCHITECTURES)
    one_of("virtualizationType", params.get("VirtualizationType"), ("hvm", "paravirtual"))
    one_of("bootMode", params.get("BootMode"), BOOT_MODES)
    one_of("tpmSupport", params.get("TpmSupport"), ("v2.0",))
    one_of("imdsSupport", params.get("ImdsSupport"), ("v2.0",))
    one_of("sriovNetSupport", params.get("SriovNetSupport"), ("simple",))
    description(params.get("Description"))
    if params.get("TpmSupport") and params.get("BootMode") != "uefi":
        # Documented: NitroTPM needs the UEFI boot mode; text from memory.
        text = "The parameter TpmSupport requires the boot mode uefi."
        raise AwsError("InvalidParameterCombination", text)
    if params.get("VirtualizationType", "paravirtual") == "paravirtual":
        for parameter in ("EnaSupport", "SriovNetSupport", "BootMode", "TpmSupport"):
            if params.get(parameter):
                # Documented as HVM only; text from memory.
                text = f"{parameter} is not supported for paravirtual images; set VirtualizationType to hvm."
                raise AwsError("InvalidParameterCombination", text)
