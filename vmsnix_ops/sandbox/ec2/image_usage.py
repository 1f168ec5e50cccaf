"""The instances, templates and parameters that use images, and the creation of an image from an instance.

Sources: the reference pages of the operations; in the EC2 User Guide, "Create an Amazon EBS-backed AMI" and
"How AMI reference checks work" (defaults: all instance states, the ten newest versions of a template).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, given, operation, tags_member, words
from vmsnix_ops.sandbox.ec2.common import (
    IMAGE,
    INSTANCE,
    check_description,
    check_id,
    check_one_of,
    find_image_id,
    find_own,
    find_own_or_all,
    image_parameters,
    invalid_value,
    new_image,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.filters import Filters, by_name, describe, paginate
from vmsnix_ops.sandbox.ec2.images import FORMER_IMAGES, add_public_images, check_free_name, image_view
from vmsnix_ops.sandbox.ec2.instances import STATES, remove_terminated, state_view
from vmsnix_ops.sandbox.ec2.networks import zone_id
from vmsnix_ops.sandbox.ec2.snapshots import add_volume_snapshot, volumes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.resources import EmulatedInstance, Volume

REGISTER_SECONDS = 5.0
"""A guess: seconds from the completion of the last snapshot until the image is available."""


@operation("ec2", "CreateImage", "Description InstanceId Name NoReboot TagSpecifications")
def create_image(context: Context, params: Params) -> dict[str, Any]:
    """Create an image with snapshots of all volumes of an instance.

    Unless ``NoReboot`` is set, AWS reboots the instance, which does not change its state.
    """
    instance: EmulatedInstance = find_own(context, INSTANCE, params["InstanceId"])
    name = check_free_name(context, params.get("Name"))
    check_description(params.get("Description"))
    tags = tags_at_creation(params, "image", "snapshot")
    state = instance.state(context.clock)
    if state not in ("running", "stopping", "stopped"):
        # Text from memory.
        text = f"The instance '{instance.instance_id}' is {state}: an image cannot be created of it."
        raise ApiError("IncorrectState", text)
    source = context.tables.find(IMAGE.table, context.region, instance.image_id)
    image = new_image(
        context,
        name,
        architecture=instance.architecture,
        root_device=instance.root_device,
        mappings=[],
        description=params.get("Description", ""),
        boot_mode=instance.details.get("BootMode", ""),
        tpm=instance.details.get("TpmSupport", ""),
        ena=bool(instance.details.get("EnaSupport")),
        sriov=source.sriov if source is not None else "",
        imds=source.imds if source is not None else "",
        tags=tags["image"],
        source_instance=instance.instance_id,
        source_image=instance.image_id,
        source_region=context.region,
    )
    for volume in volumes_of(context, instance):
        text = f"Created by CreateImage({instance.instance_id}) for {image.image_id}"
        snapshot = add_volume_snapshot(context, volume, text, dict(tags["snapshot"]))
        image.seconds = max(image.seconds, snapshot.seconds + REGISTER_SECONDS)
        image.mappings.append(_device(volume, snapshot.snapshot_id))
    context.table(IMAGE.table)[image.image_id] = image
    return {"ImageId": image.image_id}


def _device(volume: Volume, snapshot_id: str) -> dict[str, Any]:
    shown = {
        "DeleteOnTermination": volume.delete_on_termination,
        "SnapshotId": snapshot_id,
        "VolumeSize": volume.size_gib,
        "VolumeType": volume.volume_type,
        "Encrypted": volume.encrypted,
    }
    iops = volume.iops if volume.volume_type != "gp2" else None
    return {"DeviceName": volume.device, "Ebs": shown | given(Iops=iops, Throughput=volume.throughput)}


def _metadata_view(context: Context, instance: EmulatedInstance) -> dict[str, Any]:
    """Return an instance with its image, even if that was deregistered or is no longer shared."""
    find, image_id = context.tables.find, instance.image_id
    present = find(IMAGE.table, context.region, image_id)
    image = present or find(FORMER_IMAGES, context.region, image_id)
    shown: dict[str, Any] = {"ImageId": image_id}
    if image is not None:  # `demo` creates an instance of an image that no longer exists
        view = image_view(context, image)
        view["State"] = view["State"] if present is not None else "deregistered"
        names = ("Name", "OwnerId", "State", "ImageOwnerAlias", "CreationDate", "DeprecationTime")
        shown |= {name: view[name] for name in names if name in view}
        shown |= {"ImageAllowed": True, "IsPublic": image.public()}
    view = {
        "InstanceId": instance.instance_id,
        "InstanceType": instance.instance_type,
        "LaunchTime": instance.launched,
        "AvailabilityZone": instance.zone,
        "ZoneId": zone_id(instance.zone),
        "State": state_view(instance.state(context.clock)),
        "OwnerId": instance.owner,
        "ImageMetadata": shown,
        "Operator": {"Managed": False},
    }
    return view | tags_member(instance.tags)


METADATA_FILTERS: Filters = by_name(
    "availability-zone instance-id instance-type launch-time owner-id zone-id"
) | {
    "image-allowed": "ImageMetadata.ImageAllowed",
    "instance-state-name": "State.Name",
    "owner-alias": "ImageMetadata.ImageOwnerAlias",
}


@operation("ec2", "DescribeInstanceImageMetadata", "Filters InstanceIds MaxResults NextToken")
def describe_instance_image_metadata(context: Context, params: Params) -> dict[str, Any]:
    """Return instances, each with its image: owner, creation date, whether it is public."""
    add_public_images(context)
    remove_terminated(context)
    instances = find_own_or_all(context, INSTANCE, params.get("InstanceIds"))
    return describe(context, params, instances, _metadata_view, filters=METADATA_FILTERS, key="instance_id")


# References: the instances, launch templates and parameters that name an image

RESOURCE_TYPES = words(
    "ec2:Instance ec2:LaunchTemplate ssm:Parameter imagebuilder:ImageRecipe imagebuilder:ContainerRecipe"
)
DEFAULT_DEPTH, MAX_DEPTH = 10, 10_000
OPTIONS = {"ec2:Instance": "state-name", "ec2:LaunchTemplate": "version-depth"}


def _requested_types(params: Params) -> dict[str, list[str]]:
    """Return the requested resource types, each with the values of its option."""
    kinds = RESOURCE_TYPES if params.get("IncludeAllResourceTypes") else ()
    wanted: dict[str, list[str]] = {kind: [] for kind in kinds}
    for request in params.get("ResourceTypes") or []:
        kind = request.get("ResourceType", "")
        check_one_of("resourceType", kind, RESOURCE_TYPES)
        values: list[str] = []
        for option in request.get("ResourceTypeOptions") or []:
            check_one_of("optionName", option.get("OptionName"), (OPTIONS.get(kind, ""),))
            values += option.get("OptionValues") or []
        wanted[kind] = values
    if not wanted:
        text = "Either IncludeAllResourceTypes or ResourceTypes must be specified."
        raise ApiError("MissingParameter", text)
    return wanted


def _instance_references(context: Context, states: list[str]) -> Iterator[tuple[str, str]]:
    remove_terminated(context)
    for state in states:
        check_one_of("state-name", state, STATES)
    for instance in context.table("instances").values():
        if not states or instance.state(context.clock) in states:
            yield instance.image_id, f"instance/{instance.instance_id}"


def _template_references(context: Context, depths: list[str]) -> Iterator[tuple[str, str]]:
    depth = int(depths[0]) if depths and depths[0].isdecimal() else (0 if depths else DEFAULT_DEPTH)
    if not 1 <= depth <= MAX_DEPTH:
        raise invalid_value(f"Value ({depths}) for parameter version-depth is invalid.")
    for template in context.table("launch_templates").values():
        newest = sorted(template.versions, reverse=True)[:depth]
        for image_id in {template.versions[number].data.get("ImageId", "") for number in newest}:
            found = find_image_id(context, image_id) or image_id
            yield found, f"launch-template/{template.template_id}"


@operation(
    "ec2", "DescribeImageReferences", "ImageIds IncludeAllResourceTypes MaxResults NextToken ResourceTypes"
)
def describe_image_references(context: Context, params: Params) -> dict[str, Any]:
    """Return the references to images in this region. The sandbox has no recipes of Image Builder."""
    image_ids = set(params["ImageIds"])
    for image_id in image_ids:
        check_id(IMAGE, image_id)
    found: list[dict[str, str]] = []
    for kind, values in _requested_types(params).items():
        pairs: Iterable[tuple[str, str]] = ()
        if kind == "ec2:Instance":
            pairs = _instance_references(context, values)
        elif kind == "ec2:LaunchTemplate":
            pairs = _template_references(context, values)
        elif kind == "ssm:Parameter":
            pairs = ((value, f"parameter{name}") for value, name in image_parameters(context))
        service = kind.partition(":")[0]
        found += [
            {"ImageId": image_id, "ResourceType": kind, "Arn": context.arn(service, resource)}
            for image_id, resource in pairs
            if image_id in image_ids
        ]
    shown, more = paginate(context, params, found, lambda one: f"{one['ImageId']} {one['Arn']}")
    return {"ImageReferences": shown, **more}
