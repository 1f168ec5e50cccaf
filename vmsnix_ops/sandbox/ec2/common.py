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

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2.filters import apply_filters, paginate
from vmsnix_ops.sandbox.ssm import parameters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ssm import Parameter


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind of resource: its id prefix, its table, its name in tags, its error codes and texts."""

    prefix: str
    table: str
    resource_type: str
    malformed: str
    malformed_text: str
    not_found: str
    not_found_text: str


IMAGE = ResourceKind(
    "ami",
    "images",
    "image",
    "InvalidAMIID.Malformed",
    'Invalid id: "{id}" (expecting "ami-...")',
    "InvalidAMIID.NotFound",
    "The image id '[{id}]' does not exist",
)
SNAPSHOT = ResourceKind(
    "snap",
    "snapshots",
    "snapshot",
    "InvalidSnapshotID.Malformed",
    "Value ({id}) for parameter snapshotId is invalid. Expected: 'snap-...'.",
    "InvalidSnapshot.NotFound",
    "The snapshot '{id}' does not exist.",
)
VOLUME = ResourceKind(
    "vol",
    "volumes",
    "volume",
    "InvalidParameterValue",
    "Value ({id}) for parameter volumeId is invalid. Expected: 'vol-...'.",
    "InvalidVolume.NotFound",
    "The volume '{id}' does not exist.",
)
INSTANCE = ResourceKind(
    "i",
    "instances",
    "instance",
    "InvalidInstanceID.Malformed",
    'Invalid id: "{id}"',
    "InvalidInstanceID.NotFound",
    "The instance ID '{id}' does not exist",
)
IMPORT_TASK = ResourceKind(
    "import-snap",
    "import_tasks",
    "import-snapshot-task",
    "InvalidConversionTaskId.Malformed",
    "The conversion task id '{id}' is malformed",  # text from memory; the code is documented
    "InvalidConversionTaskId",
    "The conversion task '{id}' does not exist",  # text from memory; the code is documented
)
LAUNCH_TEMPLATE = ResourceKind(
    "lt",
    "launch_templates",
    "launch-template",
    "InvalidLaunchTemplateId.Malformed",
    'Invalid id: "{id}" (expecting "lt-...")',
    "InvalidLaunchTemplateId.NotFound",
    "The specified launch template, with template ID {id}, does not exist.",
)
RESOURCE_KINDS = (IMAGE, SNAPSHOT, VOLUME, INSTANCE, IMPORT_TASK, LAUNCH_TEMPLATE)

Resource = TypeVar("Resource")


def new_id(prefix: str) -> str:
    """Return a fresh id: the prefix, a dash and 17 hexadecimal digits."""
    return f"{prefix}-0{secrets.token_hex(8)}"


def check_id(kind: ResourceKind, resource_id: str) -> None:
    """Refuse an id that cannot be one of this kind.

    Raises
    ------
    AwsError
        The kind's own ``Malformed`` code.
    """
    if not re.fullmatch(rf"{kind.prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}})", resource_id):
        raise AwsError(kind.malformed, kind.malformed_text.format(id=resource_id))


def resource_not_found(kind: ResourceKind, resource_id: str) -> AwsError:
    """Return the error that says that there is no such resource."""
    return AwsError(kind.not_found, kind.not_found_text.format(id=resource_id))


def find_own(context: Context, kind: ResourceKind, resource_id: str, *, region: str | None = None) -> Any:
    """Return the caller's resource of this id.

    Raises
    ------
    AwsError
        The id is malformed, or the account has no such resource in the region.
    """
    check_id(kind, resource_id)
    found = context.table(kind.table, region=region).get(resource_id)
    if found is None:
        raise resource_not_found(kind, resource_id)
    return found


def list_of_all_accounts(context: Context, kind: ResourceKind, *, region: str | None = None) -> list[Any]:
    """Return the resources of this kind of all accounts in one region."""
    where = context.region if region is None else region
    tables = context.tables.everywhere(kind.table)
    return [
        resource
        for (_, place), table in tables.items()
        if place == where
        for resource in list(table.values())
    ]


def find_of_any_account(
    context: Context, kind: ResourceKind, resource_id: str, *, region: str | None = None
) -> Any | None:
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

IMAGE_NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")
ARCHITECTURES = ("i386", "x86_64", "arm64", "x86_64_mac", "arm64_mac")
BOOT_MODES = ("legacy-bios", "uefi", "uefi-preferred")
MAX_DESCRIPTION = 255


def check_image_name(name: str) -> None:
    """Refuse a name outside 3 to 128 of the documented characters."""
    if not IMAGE_NAME.fullmatch(name):
        raise AwsError(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, "
            "'(', ')', '.', '-', '/' and '_'",
        )


def check_one_of(parameter: str, value: str | None, allowed: Collection[str]) -> None:
    """Refuse a value that is not one of the allowed ones; None passes."""
    if value is not None and value not in allowed:
        text = f"Value ({value}) for parameter {parameter} is invalid. Expected one of: {', '.join(allowed)}."
        raise AwsError("InvalidParameterValue", text)


def check_description(text: str | None) -> None:
    """Refuse a description beyond 255 characters."""
    if text is not None and len(text) > MAX_DESCRIPTION:
        message = f"Character sets beyond {MAX_DESCRIPTION} characters are not supported for description."
        raise AwsError("InvalidParameterValue", message)  # text from memory


def check_registration(params: Params) -> None:
    """Refuse what RegisterImage does not accept, its block devices aside."""
    check_one_of("architecture", params.get("Architecture"), ARCHITECTURES)
    check_one_of("virtualizationType", params.get("VirtualizationType"), ("hvm", "paravirtual"))
    check_one_of("bootMode", params.get("BootMode"), BOOT_MODES)
    check_one_of("tpmSupport", params.get("TpmSupport"), ("v2.0",))
    check_one_of("imdsSupport", params.get("ImdsSupport"), ("v2.0",))
    check_one_of("sriovNetSupport", params.get("SriovNetSupport"), ("simple",))
    check_description(params.get("Description"))
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

PARAMETER_PREFIX = "resolve:ssm:"
IMAGE_DATA_TYPE = "aws:ec2:image"


def find_image_id(context: Context, reference: str) -> str | None:
    """Return the image id that a reference stands for, or None when it stands for none."""
    if not reference.startswith(PARAMETER_PREFIX):
        return reference
    name, _, selector = reference.removeprefix(PARAMETER_PREFIX).partition(":")
    parameter = parameters(context).get(name)
    if parameter is None or parameter.newest.kind == "SecureString":  # documented: not supported
        return None
    return _version_value(parameter, selector)


def resolve_image_id(context: Context, reference: str) -> str:
    """Return the image id that a reference stands for.

    Raises
    ------
    AwsError
        It names a parameter, or a version of one, that does not exist.
    """
    found = find_image_id(context, reference)
    if found is None:
        # Text from memory.
        text = f"The systems manager parameter '{reference}' could not be resolved to an image."
        raise AwsError("InvalidAMIID.Malformed", text)
    return found


def image_parameters(context: Context) -> Iterator[tuple[str, str]]:
    """Yield image id and name of every parameter whose data type is that of images."""
    for name, parameter in parameters(context).items():
        if parameter.newest.data_type == IMAGE_DATA_TYPE:
            yield parameter.newest.value, name if name.startswith("/") else f"/{name}"


def _version_value(parameter: Parameter, selector: str) -> str | None:
    """Return the value of the latest version, or of the version or label that is asked for."""
    for version in reversed(parameter.versions):
        if not selector or selector == str(version.number) or selector in version.labels:
            return version.value
    return None


# ClientTokens: the same call twice makes one thing; the same token with other parameters is refused.
#
# Source: "Ensuring idempotency in Amazon EC2 API requests".


def _request_digest(params: Params) -> str:
    """Return a digest of everything that a request asks for."""
    asked = {k: v for k, v in params.items() if k not in ("ClientToken", "DryRun")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def find_token_result(context: Context, params: Params) -> str | None:
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
    if digest != _request_digest(params):
        raise AwsError(
            "IdempotentParameterMismatch",
            "Arguments on this idempotent request are inconsistent with arguments used in "
            "previous request(s).",
        )
    return str(made)


def record_token_result(context: Context, params: Params, made: str) -> None:
    """Note what this call made, if it has a token."""
    if params.get("ClientToken"):
        table = context.table("ec2_tokens")
        table[f"{context.operation} {params['ClientToken']}"] = (_request_digest(params), made)


GRANTEE_PATTERNS = {
    "UserId": re.compile(r"\d{12}"),
    "Group": re.compile("all"),
    "OrganizationArn": re.compile(r"arn:aws[a-z-]*:organizations::\d{12}:organization/o-[a-z0-9]{10,32}"),
    "OrganizationalUnitArn": re.compile(
        r"arn:aws[a-z-]*:organizations::\d{12}:ou/o-[a-z0-9]{10,32}/ou-[a-z0-9-]{8,68}"
    ),
}


def check_grantee(item: str, value: str) -> None:
    """Refuse an account, group, organization or unit that cannot be one."""
    if not GRANTEE_PATTERNS[item].fullmatch(value):
        name = item[0].lower() + item[1:]
        raise AwsError(
            "InvalidAMIAttributeItemValue", f'Invalid attribute item value "{value}" for {name} item type.'
        )


MAX_TAGS, MAX_TAG_KEY, MAX_TAG_VALUE, MAX_EBS_TAG_VALUE = 50, 127, 256, 255


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return tags as answers show them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def check_tags(tags: Iterable[dict[str, Any]], *, longest: int = MAX_TAG_VALUE) -> dict[str, str]:
    """Return the tags of a request as a dictionary, or refuse them as EC2 does."""
    found: dict[str, str] = {}
    for tag in tags:
        key, value = tag.get("Key", ""), tag.get("Value") or ""
        if not key:
            raise AwsError("InvalidParameterValue", "Tag key cannot be null or empty")
        if key.lower().startswith("aws:"):
            raise AwsError(
                "InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use"
            )
        if len(key) > MAX_TAG_KEY:
            raise AwsError(
                "InvalidParameterValue", f"Tag key exceeds the maximum length of {MAX_TAG_KEY} characters"
            )
        if len(value) > longest:
            text = f"Tag value exceeds the maximum length of {longest} characters"
            raise AwsError("InvalidParameterValue", text)
        if key in found:
            raise AwsError("InvalidParameterValue", f"Duplicate tag key '{key}' specified.")
        found[key] = value
    return _check_tag_count(found)


def _check_tag_count(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags of one resource, or refuse them for being too many."""
    if len(tags) > MAX_TAGS:
        raise AwsError("TagLimitExceeded", f"The maximum number of tags per resource is {MAX_TAGS}")
    return tags


def tags_at_creation(params: Params, *resource_types: str) -> dict[str, dict[str, str]]:
    """Return the request's TagSpecifications by resource type.

    Raises
    ------
    AwsError
        A resource type is not one that this operation creates, or is named twice.
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in resource_types}
    seen: set[str] = set()
    for specification in params.get("TagSpecifications") or []:
        kind = specification.get("ResourceType", "")
        if kind not in found:
            text = f"'{kind}' is not a valid taggable resource type for this operation."
            raise AwsError("InvalidParameterValue", text)
        if kind in seen:
            raise AwsError(
                "InvalidParameterValue", f"Tag specification resource type '{kind}' is given twice."
            )
        seen.add(kind)
        tags = specification.get("Tags") or []
        if not tags:
            raise AwsError("InvalidParameterValue", "Tag specification must have at least one tag")
        found[kind] = check_tags(tags)
    return found


def _find_tagged(context: Context, resource_id: str) -> Any:
    for kind in RESOURCE_KINDS:
        if resource_id.startswith(kind.prefix + "-"):
            return find_own(context, kind, resource_id)
    raise AwsError("InvalidID", f"The ID '{resource_id}' is not valid")


@operation("ec2", "CreateTags", honours=("Resources", "Tags"))
def create_tags(context: Context, params: Params) -> dict[str, Any]:
    """Add tags to resources of this account, or none when one of the resources does not exist."""
    tags = check_tags(params.get("Tags") or [])
    if not tags:
        raise AwsError("MissingParameter", "The request must contain the parameter Tags")
    resources = [_find_tagged(context, resource_id) for resource_id in params["Resources"]]
    for resource in resources:
        _check_tag_count(resource.tags | tags)
    for resource in resources:
        resource.tags.update(tags)
    return {}


@operation("ec2", "DeleteTags", honours=("Resources", "Tags"))
def delete_tags(context: Context, params: Params) -> dict[str, Any]:
    """Remove tags: by key, by key and value, or all of them when the request names none."""
    resources = [_find_tagged(context, resource_id) for resource_id in params["Resources"]]
    for resource in resources:
        if "Tags" not in params:
            resource.tags.clear()
        for tag in params.get("Tags") or []:
            key = tag.get("Key", "")
            if key in resource.tags and ("Value" not in tag or resource.tags[key] == tag["Value"]):
                del resource.tags[key]
    return {}


@dataclass(frozen=True, slots=True)
class _Tag:
    resource_id: str
    resource_type: str
    key: str
    value: str

    @property
    def tags(self) -> dict[str, str]:
        return {self.key: self.value}


@operation("ec2", "DescribeTags", honours=("Filters", "MaxResults", "NextToken"))
def describe_tags(context: Context, params: Params) -> dict[str, Any]:
    """Return tags of this account's resources, one entry a tag."""
    found = [
        _Tag(resource_id, kind.resource_type, key, value)
        for kind in RESOURCE_KINDS
        for resource_id, resource in context.table(kind.table).items()
        for key, value in resource.tags.items()
    ]
    readers = {
        "key": lambda t: [t.key],
        "value": lambda t: [t.value],
        "resource-id": lambda t: [t.resource_id],
        "resource-type": lambda t: [t.resource_type],
    }
    kept = apply_filters(found, params, readers)
    shown, token = paginate(kept, params, lambda t: f"{t.resource_id} {t.key}", smallest=5)
    tags = [
        {"ResourceId": t.resource_id, "ResourceType": t.resource_type, "Key": t.key, "Value": t.value}
        for t in shown
    ]
    return {"Tags": tags} | ({"NextToken": token} if token else {})
