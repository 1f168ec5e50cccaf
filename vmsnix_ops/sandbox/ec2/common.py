"""Helpers of all EC2 operations: IDs, checks, permissions, image parameters, client tokens, tags.

Sources: "Error codes for the Amazon EC2 API", "Ensuring idempotency in Amazon EC2 API requests", "Use a
Systems Manager parameter instead of an AMI ID", "Tag your Amazon EC2 resources" (50 tags per resource,
``aws:`` reserved), "Tag" of the Amazon EC2 API Reference (keys of 127 and values of 256 characters) and of
the EBS direct APIs (127 and 255). Texts are from public transcripts, or marked as from memory.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, not_emulated, operation, params_digest
from vmsnix_ops.sandbox.ec2.filters import by_name, describe
from vmsnix_ops.sandbox.ec2.resources import EmulatedSnapshot, Image
from vmsnix_ops.sandbox.kms import find_key, managed_key
from vmsnix_ops.sandbox.ssm import parameters, readable_parameters, refuse_unknown_aws_name
from vmsnix_ops.sandbox.wire.models import service_model

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from vmsnix_ops.sandbox.core import Context

# IDs


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind of resource: the prefix of its IDs, its table, its name in tags, its error codes and texts."""

    prefix: str
    table: str
    resource_type: str
    malformed: str
    not_found: str
    not_found_text: str
    several_not_found_text: str = ""
    malformed_text: str = 'Invalid id: "{id}" (expecting "{prefix}-...")'


# The codes are documented. The texts of malformed VPC and subnet IDs and of import tasks are from memory.
IMAGE = ResourceKind(
    *("ami", "images", "image", "InvalidAMIID.Malformed", "InvalidAMIID.NotFound"),
    "The image id '[{id}]' does not exist",
    "The image ids '[{id}]' do not exist",
)
SNAPSHOT = ResourceKind(
    *("snap", "snapshots", "snapshot", "InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound"),
    "The snapshot '{id}' does not exist.",
    malformed_text="Value ({id}) for parameter snapshotId is invalid. Expected: 'snap-...'.",
)
VOLUME = ResourceKind(
    *("vol", "volumes", "volume", "InvalidParameterValue", "InvalidVolume.NotFound"),
    "The volume '{id}' does not exist.",
    malformed_text="Value ({id}) for parameter volumeId is invalid. Expected: 'vol-...'.",
)
INSTANCE = ResourceKind(
    *("i", "instances", "instance", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound"),
    "The instance ID '{id}' does not exist",
    "The instance IDs '{id}' do not exist",
    'Invalid id: "{id}"',
)
IMPORT_TASK = ResourceKind(
    *("import-snap", "import_tasks", "import-snapshot-task"),
    *("InvalidConversionTaskId.Malformed", "InvalidConversionTaskId"),
    "The conversion task '{id}' does not exist",
    malformed_text="The conversion task id '{id}' is malformed",
)
LAUNCH_TEMPLATE = ResourceKind(
    *("lt", "launch_templates", "launch-template"),
    *("InvalidLaunchTemplateId.Malformed", "InvalidLaunchTemplateId.NotFound"),
    "The specified launch template, with template ID {id}, does not exist.",
)
VPC = ResourceKind(
    *("vpc", "vpcs", "vpc", "InvalidVpcID.Malformed", "InvalidVpcID.NotFound"),
    "The vpc ID '{id}' does not exist",
)
SUBNET = ResourceKind(
    *("subnet", "subnets", "subnet", "InvalidSubnetID.Malformed", "InvalidSubnetID.NotFound"),
    "The subnet ID '{id}' does not exist",
)
SECURITY_GROUP = ResourceKind(
    *("sg", "security_groups", "security-group", "InvalidGroupId.Malformed", "InvalidGroup.NotFound"),
    "The security group '{id}' does not exist",
    malformed_text='Invalid id: "{id}"',
)
RESOURCE_KINDS = (
    *(IMAGE, SNAPSHOT, VOLUME, INSTANCE, IMPORT_TASK, LAUNCH_TEMPLATE, VPC, SUBNET, SECURITY_GROUP),
)


def new_id(prefix: str) -> str:
    """Return a new ID: the prefix, a dash and 17 hexadecimal digits."""
    return f"{prefix}-0{secrets.token_hex(8)}"


def check_id(kind: ResourceKind, resource_id: str) -> None:
    """Raise the ``Malformed`` error of the kind for an ID of another form."""
    if not re.fullmatch(rf"{kind.prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}})", resource_id):
        raise ApiError(kind.malformed, kind.malformed_text.format(id=resource_id, prefix=kind.prefix))


def resource_not_found(kind: ResourceKind, resource_id: str) -> ApiError:
    """Return the ``NotFound`` error of the kind."""
    return ApiError(kind.not_found, kind.not_found_text.format(id=resource_id))


def find_own(context: Context, kind: ResourceKind, resource_id: str) -> Any:
    """Return a resource of the caller in this region, or raise the ``Malformed`` or ``NotFound`` error."""
    check_id(kind, resource_id)
    found = context.table(kind.table).get(resource_id)
    if found is None:
        raise resource_not_found(kind, resource_id)
    return found


def find_own_or_all(context: Context, kind: ResourceKind, resource_ids: list[str] | None) -> list[Any]:
    """Return the caller's resources of a kind with these IDs; without IDs all of this region."""
    table = context.table(kind.table)
    return select_visible(kind, table, resource_ids) if resource_ids else list(table.values())


def find_of_any_account(
    context: Context, kind: ResourceKind, resource_id: str, *, region: str | None = None
) -> Any | None:
    """Return a resource, whichever account owns it, by default in the region of the call."""
    check_id(kind, resource_id)
    return context.tables.find(kind.table, context.region if region is None else region, resource_id)


def select_visible(kind: ResourceKind, visible: Mapping[str, Any], resource_ids: list[str]) -> list[Any]:
    """Return the resources with these IDs, or raise the ``Malformed`` or ``NotFound`` error."""
    for resource_id in resource_ids:
        check_id(kind, resource_id)
    missing = [resource_id for resource_id in dict.fromkeys(resource_ids) if resource_id not in visible]
    if len(missing) > 1 and kind.several_not_found_text:
        raise ApiError(kind.not_found, kind.several_not_found_text.format(id=", ".join(missing)))
    if missing:
        raise resource_not_found(kind, missing[0])
    return [visible[resource_id] for resource_id in dict.fromkeys(resource_ids)]


# Checks of parameters


def missing_parameter(name: str) -> ApiError:
    """Return ``MissingParameter``."""
    return ApiError("MissingParameter", f"The request must contain the parameter {name}")


def invalid_value(text: str) -> ApiError:
    """Return ``InvalidParameterValue``."""
    return ApiError("InvalidParameterValue", text)


IMAGE_NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")
ARCHITECTURES = ("i386", "x86_64", "arm64", "x86_64_mac", "arm64_mac")
BOOT_MODES = ("legacy-bios", "uefi", "uefi-preferred")
MAX_DESCRIPTION = 255


def check_image_name(name: str | None) -> str:
    """Return a name, after the check that it has 3 to 128 of the documented characters."""
    if not name:
        raise missing_parameter("Name")
    if not IMAGE_NAME.fullmatch(name):
        raise ApiError(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, "
            "'(', ')', '.', '-', '/' and '_'",
        )
    return name


@lru_cache
def _documented_values(parameter: str) -> frozenset[str]:
    """Return the values that botocore's model of EC2 lists for members with this name."""
    model = service_model("ec2").model
    found: set[str] = set()
    for shape in map(model.shape_for, model.shape_names):
        for name, member in getattr(shape, "members", {}).items():
            if name.lower() == parameter.lower():
                found.update(getattr(member, "enum", ()))
    return frozenset(found)


def check_one_of(
    parameter: str, value: str | None, allowed: Collection[str], *, known: Collection[str] = ()
) -> None:
    """Check that a value is None or one of the allowed values.

    Another value of AWS, in botocore's model or in `known`, is ``NotImplemented``; one that AWS refuses is
    ``InvalidParameterValue``.
    """
    if value is None or value in allowed:
        return
    if value in known or value in _documented_values(parameter):
        raise not_emulated(f"the value {value!r} of the parameter {parameter!r}")
    text = f"Value ({value}) for parameter {parameter} is invalid. Expected one of: {', '.join(allowed)}."
    raise invalid_value(text)


def attribute_name(name: str | None, allowed: Collection[str], shape: str) -> str:
    """Return the name of an attribute of a request as EC2's lists have it; "" for None.

    EC2 accepts the name of an attribute with a capital letter too, such as ``LaunchPermission``, as public
    tools send it. `shape` in botocore's model has all attributes of the kind of resource.
    """
    name = name[:1].lower() + name[1:] if name else ""
    known: Collection[str] = service_model("ec2").model.shape_for(shape).enum  # type: ignore[attr-defined]
    check_one_of("attribute", name or None, allowed, known=known)
    return name


def attribute_member(name: str, value: object) -> dict[str, Any]:
    """Return the member of an answer that has the value of an attribute; "" for none."""
    member = {"kernel": "KernelId", "ramdisk": "RamdiskId"}.get(name, name[0].upper() + name[1:])
    return {member: {} if value == "" else {"Value": value}}


def check_description(text: str | None) -> None:
    """Check that a description has at most 255 characters."""
    if text is not None and len(text) > MAX_DESCRIPTION:
        text = f"Character sets beyond {MAX_DESCRIPTION} characters are not supported for description."
        raise invalid_value(text)  # text from memory


def check_registration(params: Params) -> None:
    """Check the parameters of RegisterImage, except for its block devices."""
    check_one_of("architecture", params.get("Architecture"), ARCHITECTURES)
    check_one_of("virtualizationType", params.get("VirtualizationType"), ("hvm", "paravirtual"))
    check_one_of("bootMode", params.get("BootMode"), BOOT_MODES)
    check_one_of("tpmSupport", params.get("TpmSupport"), ("v2.0",))
    check_one_of("imdsSupport", params.get("ImdsSupport"), ("v2.0",))
    check_one_of("sriovNetSupport", params.get("SriovNetSupport"), ("simple",))
    check_description(params.get("Description"))
    if params.get("TpmSupport") and params.get("BootMode") != "uefi":
        # Documented: NitroTPM needs the UEFI boot mode; text from memory.
        raise ApiError("InvalidParameterCombination", "The parameter TpmSupport requires the boot mode uefi.")
    if params.get("VirtualizationType", "paravirtual") == "paravirtual":
        for parameter in ("EnaSupport", "SriovNetSupport", "BootMode", "TpmSupport"):
            if params.get(parameter):
                # Documented as HVM only; text from memory.
                text = f"{parameter} is not supported for paravirtual images; set VirtualizationType to hvm."
                raise ApiError("InvalidParameterCombination", text)


# Permissions of images and snapshots

GRANTEE_PATTERNS = {
    "UserId": re.compile(r"\d{12}"),
    "Group": re.compile("all"),
    "OrganizationArn": re.compile(r"arn:aws[a-z-]*:organizations::\d{12}:organization/o-[a-z0-9]{10,32}"),
    "OrganizationalUnitArn": re.compile(
        r"arn:aws[a-z-]*:organizations::\d{12}:ou/o-[a-z0-9]{10,32}/ou-[a-z0-9-]{8,68}"
    ),
}

Permissions = list[dict[str, str]]


def permission_changes(
    params: Params, structure: str, members: Mapping[str, str]
) -> tuple[Permissions, Permissions]:
    """Return the permissions that a request adds and removes, in either of its two forms.

    One has a structure with ``Add`` and ``Remove``, such as ``LaunchPermission``. The other has
    ``OperationType`` and lists; `members` has the kind of grantee in each list.
    """
    changes = params.get(structure) or {}
    added = [dict(entry) for entry in changes.get("Add") or []]
    removed = [dict(entry) for entry in changes.get("Remove") or []]
    flat = [{kind: value} for member, kind in members.items() for value in params.get(member) or []]
    if flat:
        check_one_of("operationType", params.get("OperationType", ""), ("add", "remove"))
        (added if params["OperationType"] == "add" else removed).extend(flat)
    for entry in added + removed:
        for kind, value in entry.items():
            if not GRANTEE_PATTERNS[kind].fullmatch(value):
                name = kind[0].lower() + kind[1:]
                text = f'Invalid attribute item value "{value}" for {name} item type.'
                raise ApiError("InvalidAMIAttributeItemValue", text)
    return added, removed


# Systems Manager parameters as images: ``resolve:ssm:/name``, with an optional version or label

PARAMETER_PREFIX = "resolve:ssm:"
IMAGE_DATA_TYPE = "aws:ec2:image"


def find_image_id(context: Context, reference: str) -> str | None:
    """Return the image ID of a reference; None when its parameter or version does not exist."""
    if not reference.startswith(PARAMETER_PREFIX):
        return reference
    name, _, selector = reference.removeprefix(PARAMETER_PREFIX).partition(":")
    parameter = readable_parameters(context).get(name)
    if parameter is None or parameter.newest.parameter_type == "SecureString":  # documented: not supported
        return None
    for version in reversed(parameter.versions):
        if not selector or selector == str(version.number) or selector in version.labels:
            return version.value
    return None


def resolve_image_id(context: Context, reference: str) -> str:
    """Return the image ID of a reference."""
    found = find_image_id(context, reference)
    if found is None:
        refuse_unknown_aws_name(reference.removeprefix(PARAMETER_PREFIX))
        # Text from memory.
        text = f"The systems manager parameter '{reference}' could not be resolved to an image."
        raise ApiError("InvalidAMIID.Malformed", text)
    return found


def image_parameters(context: Context) -> Iterator[tuple[str, str]]:
    """Yield the image ID and the name of every parameter of the data type ``aws:ec2:image``."""
    for name, parameter in parameters(context).items():
        if parameter.newest.data_type == IMAGE_DATA_TYPE:
            yield parameter.newest.value, name if name.startswith("/") else f"/{name}"


def new_image(context: Context, name: str, **fields: Any) -> Image:
    """Return a new image of the caller, which is not in its table yet. `fields` are those of `Image`."""
    return Image(new_id("ami"), context.account, context.region, name, context.clock.now(), **fields)


def new_snapshot(context: Context, size_gib: int, **more: Any) -> EmulatedSnapshot:
    """Add a snapshot to the caller's account. `more` are fields of `EmulatedSnapshot`."""
    now, snapshot_id = context.clock.now(), new_id("snap")
    fields = {"lineage": snapshot_id, "since": now, **more}
    snapshot = EmulatedSnapshot(snapshot_id, context.account, context.region, size_gib, now, **fields)
    context.table("snapshots")[snapshot_id] = snapshot
    return snapshot


# Encryption of volumes and snapshots

KEY_NOT_ACCESSIBLE = "Given key ID is not accessible"
"""StateMessage of a snapshot copy that failed because of its key (public transcripts)."""

EBS_KEY_ALIAS = "alias/aws/ebs"


def key_not_accessible(key: str) -> ApiError:
    """Return the error for a key that cannot be used."""
    return ApiError("InvalidKmsKey.InvalidState", f"The key ID '{key}' is not accessible")  # text from memory


@dataclass(frozen=True, slots=True)
class Encryption:
    """Whether a new resource is encrypted, its key (an ARN), and why the key cannot be used; "" if it can."""

    encrypted: bool
    key: str
    failure: str = ""


def choose_encryption(
    context: Context, *, wanted: bool | None, key: str | None, source: bool = False, source_key: str = ""
) -> Encryption:
    """Return the encryption of a new volume or snapshot.

    `source` says whether its source is encrypted, and `source_key` is the key to keep; "" means the default
    key. A key without ``Encrypted`` is refused, and so is a request that would decrypt the source.
    """
    if key and not wanted:
        text = "The parameter KmsKeyId requires the parameter Encrypted to be set."
        raise ApiError("InvalidParameterDependency", text)
    if source and wanted is False:
        text = "Encrypted resources cannot be copied to unencrypted ones."
        raise ApiError("InvalidParameterCombination", text)
    settings = context.table("ec2_settings")
    if not (wanted or source or settings.get("ebs_encryption")):
        return Encryption(encrypted=False, key="")
    if not key:
        default = settings.get("ebs_key") or managed_key(context, EBS_KEY_ALIAS)
        return Encryption(encrypted=True, key=source_key or default)
    arn = find_key(context, key, EBS_KEY_ALIAS)
    return Encryption(True, arn or key, "" if arn else KEY_NOT_ACCESSIBLE)


def is_managed_key(context: Context, key: str) -> bool:
    """Return whether a key is AWS's own for EBS. What it encrypts cannot be shared."""
    return key.endswith(EBS_KEY_ALIAS) or key == managed_key(context, EBS_KEY_ALIAS)


# Client tokens: a repeated call returns the first result; with other parameters it is refused


def find_token_result(context: Context, params: Params) -> str | None:
    """Return the ID that an earlier call with the same client token created, or None."""
    known = context.table("ec2_tokens").get(f"{context.operation} {params.get('ClientToken')}")
    if not params.get("ClientToken") or known is None:
        return None
    digest, resource_id = known
    if digest != params_digest(params, "ClientToken"):
        raise ApiError(
            "IdempotentParameterMismatch",
            "Arguments on this idempotent request are inconsistent with arguments used in "
            "previous request(s).",
        )
    return str(resource_id)


def record_token_result(context: Context, params: Params, resource_id: str) -> None:
    """Record the ID that this call created, if it has a client token."""
    if params.get("ClientToken"):
        key = f"{context.operation} {params['ClientToken']}"
        context.table("ec2_tokens")[key] = (params_digest(params, "ClientToken"), resource_id)


# Resources in the Recycle Bin

RECYCLABLE = {"EBS_SNAPSHOT": "snapshots", "EC2_IMAGE": "images"}
"""The emulated resource types, and the tables of their resources."""


@dataclass(slots=True)
class Recycled:
    """An image or a snapshot in the bin, in the table ``recycled_images`` or ``recycled_snapshots`` by ID."""

    resource: Any
    entered: datetime
    days: int

    @property
    def exits(self) -> datetime:
        """When the retention period ends."""
        return self.entered + timedelta(days=self.days)


def recycled(context: Context, table: str) -> dict[str, Recycled]:
    """Return the recycled resources of a table by ID, after deleting those whose retention period is over.

    The period is sandbox time, and lasts at least the real minutes of `Clock.is_listed`.
    """
    found: dict[str, Recycled] = context.table(f"recycled_{table}")
    for resource_id, one in list(found.items()):
        if not context.clock.is_listed(one.entered, one.days * 86400.0):
            del found[resource_id]
    return found


# Tags

AWS_PREFIX = "aws:"
"""The prefix of the tags that only AWS sets and deletes."""

RESERVED = "Tag keys starting with 'aws:' are reserved for internal use"

MAX_TAGS, MAX_TAG_KEY, MAX_TAG_VALUE, MAX_EBS_TAG_VALUE = 50, 127, 256, 255


def check_tags(tags: Iterable[dict[str, Any]], *, longest: int = MAX_TAG_VALUE) -> dict[str, str]:
    """Return the tags of a request as a dictionary, after EC2's checks."""
    found: dict[str, str] = {}
    for tag in tags:
        key, value = tag.get("Key", ""), tag.get("Value") or ""
        for refused, text in (
            (not key, "Tag key cannot be null or empty"),
            (key.lower().startswith(AWS_PREFIX), RESERVED),
            (len(key) > MAX_TAG_KEY, f"Tag key exceeds the maximum length of {MAX_TAG_KEY} characters"),
            (len(value) > longest, f"Tag value exceeds the maximum length of {longest} characters"),
            (key in found, f"Duplicate tag key '{key}' specified."),
        ):
            if refused:
                raise invalid_value(text)
        found[key] = value
    return _check_tag_count(found)


def _check_tag_count(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags of a resource, after the check of their number. Those of AWS do not count."""
    if sum(not key.startswith(AWS_PREFIX) for key in tags) > MAX_TAGS:
        raise ApiError("TagLimitExceeded", f"The maximum number of tags per resource is {MAX_TAGS}")
    return tags


def tags_at_creation(params: Params, *resource_types: str) -> dict[str, dict[str, str]]:
    """Return the tags of a request for its new resources, by resource type.

    A type that the operation does not create, or that occurs twice, is refused.
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in resource_types}
    for specification in params.get("TagSpecifications") or []:
        kind = specification.get("ResourceType", "")
        if kind not in found:
            raise invalid_value(f"'{kind}' is not a valid taggable resource type for this operation.")
        if found[kind]:
            raise invalid_value(f"Tag specification resource type '{kind}' is given twice.")
        found[kind] = check_tags(specification.get("Tags") or [])
        if not found[kind]:
            raise invalid_value("Tag specification must have at least one tag")
    return found


def _find_tagged(context: Context, resource_id: str) -> Any:
    """Return a resource of the caller, also from the Recycle Bin, where its tags can be changed."""
    for kind in RESOURCE_KINDS:
        if resource_id.startswith(kind.prefix + "-"):
            known = tagged_resources(context, kind)
            return known[resource_id] if resource_id in known else find_own(context, kind, resource_id)
    raise ApiError("InvalidID", f"The ID '{resource_id}' is not valid")


def tagged_resources(context: Context, kind: ResourceKind) -> dict[str, Any]:
    """Return the resources of a kind by ID, and those in the Recycle Bin."""
    found = dict(context.table(kind.table))
    if kind.table in RECYCLABLE.values():
        found |= {one_id: one.resource for one_id, one in recycled(context, kind.table).items()}
    return found


@operation("ec2", "CreateTags", "Resources Tags")
def create_tags(context: Context, params: Params) -> dict[str, Any]:
    """Add tags to resources of this account. When one of them does not exist, none is tagged."""
    tags = check_tags(params.get("Tags") or [])
    if not tags:
        raise missing_parameter("Tags")
    resources = [_find_tagged(context, resource_id) for resource_id in params["Resources"]]
    for resource in resources:
        _check_tag_count(resource.tags | tags)
    for resource in resources:
        resource.tags.update(tags)
    return {}


@operation("ec2", "DeleteTags", "Resources Tags")
def delete_tags(context: Context, params: Params) -> dict[str, Any]:
    """Remove tags by key, by key and value, or all but those of AWS."""
    resources = [_find_tagged(context, resource_id) for resource_id in params["Resources"]]
    if any(tag.get("Key", "").lower().startswith(AWS_PREFIX) for tag in params.get("Tags") or ()):
        raise invalid_value(RESERVED)
    for resource in resources:
        if "Tags" not in params:
            kept = {key: value for key, value in resource.tags.items() if key.startswith(AWS_PREFIX)}
            resource.tags.clear()
            resource.tags.update(kept)
        for tag in params.get("Tags") or []:
            key = tag.get("Key", "")
            if key in resource.tags and ("Value" not in tag or resource.tags[key] == tag["Value"]):
                del resource.tags[key]
    return {}


@operation("ec2", "DescribeTags", "Filters MaxResults NextToken")
def describe_tags(context: Context, params: Params) -> dict[str, Any]:
    """Return the tags of this account's resources, one entry per tag."""
    found = [
        {"ResourceId": resource_id, "ResourceType": kind.resource_type, "Key": key, "Value": value}
        for kind in RESOURCE_KINDS
        for resource_id, resource in tagged_resources(context, kind).items()
        for key, value in resource.tags.items()
    ]
    filters = by_name("key resource-id resource-type") | {"value": lambda tag: [tag["Value"]]}
    return describe(
        context, params, found, filters=filters, key=lambda tag: f"{tag['ResourceId']} {tag['Key']}"
    )
