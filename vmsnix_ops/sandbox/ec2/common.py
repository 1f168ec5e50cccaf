"""What several EC2 operations share: ids, checks of parameters, client tokens.

Sources: the client error codes of the Amazon EC2 developer guide; texts as public transcripts show them.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops.sandbox.core import AwsError, Params
from vmsnix_ops.sandbox.ssm.common import parameters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ssm.common import Parameter


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of resource: its id prefix, its table, its name in tags, its error codes and texts."""

    prefix: str
    table: str
    resource_type: str
    malformed: str
    malformed_text: str
    not_found: str
    not_found_text: str


IMAGE = Kind(
    "ami",
    "images",
    "image",
    "InvalidAMIID.Malformed",
    'Invalid id: "{id}" (expecting "ami-...")',
    "InvalidAMIID.NotFound",
    "The image id '[{id}]' does not exist",
)
SNAPSHOT = Kind(
    "snap",
    "snapshots",
    "snapshot",
    "InvalidSnapshotID.Malformed",
    "Value ({id}) for parameter snapshotId is invalid. Expected: 'snap-...'.",
    "InvalidSnapshot.NotFound",
    "The snapshot '{id}' does not exist.",
)
VOLUME = Kind(
    "vol",
    "volumes",
    "volume",
    "InvalidParameterValue",
    "Value ({id}) for parameter volumeId is invalid. Expected: 'vol-...'.",
    "InvalidVolume.NotFound",
    "The volume '{id}' does not exist.",
)
INSTANCE = Kind(
    "i",
    "instances",
    "instance",
    "InvalidInstanceID.Malformed",
    'Invalid id: "{id}"',
    "InvalidInstanceID.NotFound",
    "The instance ID '{id}' does not exist",
)
IMPORT_TASK = Kind(
    "import-snap",
    "import_tasks",
    "import-snapshot-task",
    "InvalidConversionTaskId.Malformed",
    "The conversion task id '{id}' is malformed",  # text from memory; the code is documented
    "InvalidConversionTaskId",
    "The conversion task '{id}' does not exist",  # text from memory; the code is documented
)
LAUNCH_TEMPLATE = Kind(
    "lt",
    "launch_templates",
    "launch-template",
    "InvalidLaunchTemplateId.Malformed",
    'Invalid id: "{id}" (expecting "lt-...")',
    "InvalidLaunchTemplateId.NotFound",
    "The specified launch template, with template ID {id}, does not exist.",
)
KINDS = (IMAGE, SNAPSHOT, VOLUME, INSTANCE, IMPORT_TASK, LAUNCH_TEMPLATE)

Resource = TypeVar("Resource")


def new_id(prefix: str) -> str:
    """Return a fresh id: the prefix, a dash and 17 hexadecimal digits."""
    return f"{prefix}-0{secrets.token_hex(8)}"


def check_id(kind: Kind, resource_id: str) -> None:
    """Refuse an id that cannot be one of this kind.

    Raises
    ------
    AwsError
        The kind's own ``Malformed`` code.
    """
    if not re.fullmatch(rf"{kind.prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}})", resource_id):
        raise AwsError(kind.malformed, kind.malformed_text.format(id=resource_id))


def not_found(kind: Kind, resource_id: str) -> AwsError:
    """Return the error that says that there is no such resource."""
    return AwsError(kind.not_found, kind.not_found_text.format(id=resource_id))


def find_own(context: Context, kind: Kind, resource_id: str, *, region: str | None = None) -> Any:
    """Return the caller's resource of this id.

    Raises
    ------
    AwsError
        The id is malformed, or the account has no such resource in the region.
    """
    check_id(kind, resource_id)
    found = context.table(kind.table, region=region).get(resource_id)
    if found is None:
        raise not_found(kind, resource_id)
    return found


def everywhere(context: Context, kind: Kind, *, region: str | None = None) -> list[Any]:
    """Return the resources of this kind of all accounts in one region."""
    where = context.region if region is None else region
    tables = context.tables.everywhere(kind.table)
    return [
        resource
        for (_, place), table in tables.items()
        if place == where
        for resource in list(table.values())
    ]


def find_anywhere(context: Context, kind: Kind, resource_id: str, *, region: str | None = None) -> Any | None:
    """Return the resource of this id whoever owns it, or None."""
    check_id(kind, resource_id)
    where = context.region if region is None else region
    for (_, place), table in context.tables.everywhere(kind.table).items():
        if place == where and resource_id in table:
            return table[resource_id]
    return None


# What EC2 refuses in the parameters of an image.
#
# Codes are documented ("Error codes for the Amazon EC2 API"); texts marked so are from memory.

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


# Images by way of Systems Manager parameters: ``resolve:ssm:/name``, perhaps with a version or label.
#
# Source: "Use a Systems Manager parameter instead of an AMI ID".

PREFIX = "resolve:ssm:"
IMAGE_TYPE = "aws:ec2:image"


def image_or_none(context: Context, reference: str) -> str | None:
    """Return the image id that a reference stands for, or None when it stands for none."""
    if not reference.startswith(PREFIX):
        return reference
    name, _, selector = reference.removeprefix(PREFIX).partition(":")
    parameter = parameters(context).get(name)
    if parameter is None or parameter.newest.kind == "SecureString":  # documented: not supported
        return None
    return _value(parameter, selector)


def image_of(context: Context, reference: str) -> str:
    """Return the image id that a reference stands for.

    Raises
    ------
    AwsError
        It names a parameter, or a version of one, that does not exist.
    """
    found = image_or_none(context, reference)
    if found is None:
        # Text from memory.
        text = f"The systems manager parameter '{reference}' could not be resolved to an image."
        raise AwsError("InvalidAMIID.Malformed", text)
    return found


def images(context: Context) -> Iterator[tuple[str, str]]:
    """Yield image id and name of every parameter whose data type is that of images."""
    for name, parameter in parameters(context).items():
        if parameter.newest.data_type == IMAGE_TYPE:
            yield parameter.newest.value, name if name.startswith("/") else f"/{name}"


def _value(parameter: Parameter, selector: str) -> str | None:
    """Return the value of the latest version, or of the version or label that is asked for."""
    for version in reversed(parameter.versions):
        if not selector or selector == str(version.number) or selector in version.labels:
            return version.value
    return None


# ClientTokens: the same call twice makes one thing; the same token with other parameters is refused.
#
# Source: "Ensuring idempotency in Amazon EC2 API requests".


def fingerprint(params: Params) -> str:
    """Return a digest of everything that a request asks for."""
    asked = {k: v for k, v in params.items() if k not in ("ClientToken", "DryRun")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def earlier(context: Context, params: Params) -> str | None:
    """Return what an earlier call with this token made, or None.

    Raises
    ------
    AwsError
        The token was used with other parameters.
    """
    known = context.table("ec2_tokens").get(f"{context.operation} {params.get('ClientToken')}")
    if not params.get("ClientToken") or known is None:
        return None
    digest, made = known
    if digest != fingerprint(params):
        raise AwsError(
            "IdempotentParameterMismatch",
            "Arguments on this idempotent request are inconsistent with arguments used in "
            "previous request(s).",
        )
    return str(made)


def remember(context: Context, params: Params, made: str) -> None:
    """Note what this call made, if it has a token."""
    if params.get("ClientToken"):
        table = context.table("ec2_tokens")
        table[f"{context.operation} {params['ClientToken']}"] = (fingerprint(params), made)
