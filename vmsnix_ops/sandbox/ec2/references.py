"""DescribeImageReferences: the instances, launch templates and parameters that name an image.

Sources: the reference page of the operation; "How AMI reference checks work" (by default all instance states
and the ten newest versions of a launch template).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2.common import IMAGE, check_id, check_one_of, find_image_id, image_parameters
from vmsnix_ops.sandbox.ec2.filters import paginate
from vmsnix_ops.sandbox.ec2.instances import remove_terminated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmsnix_ops.sandbox.core import Context


RESOURCE_TYPES = (
    "ec2:Instance",
    "ec2:LaunchTemplate",
    "ssm:Parameter",
    "imagebuilder:ImageRecipe",
    "imagebuilder:ContainerRecipe",
)
INSTANCE_STATES = ("pending", "running", "shutting-down", "terminated", "stopping", "stopped")
DEFAULT_DEPTH, MAX_DEPTH = 10, 10_000
OPTIONS = {"ec2:Instance": "state-name", "ec2:LaunchTemplate": "version-depth"}


def _requested_types(params: Params) -> dict[str, list[str]]:
    """Return the requested resource types, each with the values of its option."""
    wanted: dict[str, list[str]] = {}
    if params.get("IncludeAllResourceTypes"):
        wanted = {kind: [] for kind in RESOURCE_TYPES}
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
        raise AwsError("MissingParameter", text)
    return wanted


def _instance_references(context: Context, states: list[str]) -> Iterator[tuple[str, str]]:
    remove_terminated(context)
    for state in states:
        check_one_of("state-name", state, INSTANCE_STATES)
    for instance in context.table("instances").values():
        if not states or instance.state(context.clock) in states:
            yield instance.image_id, f"instance/{instance.instance_id}"


def _template_references(context: Context, depths: list[str]) -> Iterator[tuple[str, str]]:
    depth = int(depths[0]) if depths and depths[0].isdecimal() else (0 if depths else DEFAULT_DEPTH)
    if not 1 <= depth <= MAX_DEPTH:
        text = f"Value ({depths}) for parameter version-depth is invalid."
        raise AwsError("InvalidParameterValue", text)
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
    shown, token = paginate(found, params, lambda reference: f"{reference['ImageId']} {reference['Arn']}")
    return {"ImageReferences": shown} | ({"NextToken": token} if token else {})
