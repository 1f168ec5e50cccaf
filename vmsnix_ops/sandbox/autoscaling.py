"""Auto Scaling as far as it refers to images: launch configurations and groups.

Sources: the reference pages of the operations and "Common Errors" in the Amazon EC2 Auto Scaling API
Reference; texts as public transcripts show them where not marked otherwise.
"""

from __future__ import annotations

import base64
import binascii
import copy
import re
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.ec2.images import find_launchable_image
from vmsnix_ops.sandbox.ec2.instances import find_instance_type, run_instances
from vmsnix_ops.sandbox.ec2.templates import find_template, find_template_version
from vmsnix_ops.sandbox.ec2.zones import check_zone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.ec2.resources import Instance


Item = TypeVar("Item")
NAME = re.compile(r"[\u0020-\u0039\u003b-\uD7FF\uE000-\uFFFD\r\n\t]{1,255}")  # a colon is refused
DEFAULT_PAGE, MAX_PAGE = 50, 100


@dataclass(slots=True)
class LaunchConfiguration:
    """A launch configuration; `asked` is the request that made it."""

    name: str
    arn: str
    created: datetime
    asked: dict[str, Any]


@dataclass(slots=True)
class AutoScalingGroup:
    """An Auto Scaling group. Which instances it has, their tag ``aws:autoscaling:groupName`` says.

    `source` holds the one member that says what it launches, as DescribeAutoScalingGroups shows it, `origins`
    what each instance was launched from.
    """

    name: str
    arn: str
    created: datetime
    source: dict[str, Any]
    zones: list[str]
    least: int
    most: int
    desired: int
    tags: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)


def _validation_error(text: str) -> AwsError:
    """Return the refusal that Auto Scaling has for nearly everything."""
    return AwsError("ValidationError", text)


def _check_name(name: str, what: str) -> str:
    """Return a name, or refuse it."""
    if not NAME.fullmatch(name):
        raise _validation_error(f"Invalid {what} name: {name!r}")  # text from memory
    return name


def _new_arn(context: Context, kind: str, name: str) -> str:
    """Return a fresh ARN of a kind, such as ``autoScalingGroup``."""
    home = f"arn:{context.partition}:autoscaling:{context.region}:{context.account}"
    return f"{home}:{kind}:{uuid.uuid4()}:{kind}Name/{name}"


def _page(
    items: Sequence[Item], params: Params, member: str, view: Callable[[Item], dict[str, Any]]
) -> dict[str, Any]:
    """Return one page of items that are in the order of their names.

    Raises
    ------
    AwsError
        ``ValidationError`` for ``MaxRecords`` out of its bounds, ``InvalidNextToken``.
    """
    size = params.get("MaxRecords", DEFAULT_PAGE)
    if not 1 <= size <= MAX_PAGE:
        text = f"The value '{size}' of the parameter maxRecords is not between 1 and {MAX_PAGE}."
        raise _validation_error(text)  # text from memory
    start = 0
    if params.get("NextToken"):
        try:
            start = int(base64.b64decode(params["NextToken"], validate=True).decode().removeprefix("after "))
        except (binascii.Error, ValueError):
            raise AwsError("InvalidNextToken", "The token is not valid.") from None
    answer: dict[str, Any] = {member: [view(item) for item in items[start : start + size]]}
    if start + size < len(items):
        answer["NextToken"] = base64.b64encode(f"after {start + size}".encode()).decode()
    return answer


# Launch configurations: create, describe, delete.
#
# AWS gives them to accounts that had them before 2023 only; here every account may have them, because the old
# ones are what an audit must find.


def _find_configuration(context: Context, name: str) -> LaunchConfiguration:
    """Return a launch configuration by its name or ARN."""
    for known in context.table("launch_configurations").values():
        if name in (known.name, known.arn):
            return known  # type: ignore[no-any-return]
    raise _validation_error(f"Launch configuration name not found - Launch configuration {name} not found")


def _configuration_launch(configuration: LaunchConfiguration) -> dict[str, Any]:
    """Return what RunInstances is asked for on behalf of a launch configuration."""
    wanted = ("ImageId", "InstanceType", "UserData", "BlockDeviceMappings", "MetadataOptions")
    return {name: configuration.asked[name] for name in wanted if name in configuration.asked}


def _configuration_view(configuration: LaunchConfiguration) -> dict[str, Any]:
    asked = configuration.asked
    empty = {"KeyName": "", "UserData": "", "KernelId": "", "RamdiskId": ""}
    return {
        **empty,
        "SecurityGroups": [],
        "ClassicLinkVPCSecurityGroups": [],
        "BlockDeviceMappings": [],
        "InstanceMonitoring": {"Enabled": True},
        "EbsOptimized": False,
        **asked,
        "LaunchConfigurationName": configuration.name,
        "LaunchConfigurationARN": configuration.arn,
        "CreatedTime": configuration.created,
    }


@operation(
    "autoscaling",
    "CreateLaunchConfiguration",
    honours=(
        "BlockDeviceMappings",
        "EbsOptimized",
        "ImageId",
        "InstanceMonitoring",
        "InstanceType",
        "LaunchConfigurationName",
        "MetadataOptions",
        "UserData",
    ),
)
def create_launch_configuration(context: Context, params: Params) -> dict[str, Any]:
    """Create a launch configuration of an image that this account may launch."""
    table, name = (
        context.table("launch_configurations"),
        _check_name(params["LaunchConfigurationName"], "launch configuration"),
    )
    if name in table:
        text = (
            "Launch Configuration by this name already exists - A launch configuration already exists "
            f"with the name {name}"
        )
        raise AwsError("AlreadyExists", text)
    for member in ("ImageId", "InstanceType"):
        if not params.get(member):
            text = "Valid requests must contain either the InstanceID parameter or both the ImageId and "
            raise _validation_error(f"{text}InstanceType parameters.")
    try:
        find_launchable_image(context, params["ImageId"])
        find_instance_type(params["InstanceType"])
    except AwsError as error:
        raise _validation_error(f"AMI {params['ImageId']} is invalid: {error.message}") from None
    asked = {key: value for key, value in params.items() if key != "LaunchConfigurationName"}
    where = _new_arn(context, "launchConfiguration", name)
    table[name] = LaunchConfiguration(name, where, context.clock.now(), asked)
    return {}


@operation(
    "autoscaling",
    "DescribeLaunchConfigurations",
    honours=("LaunchConfigurationNames", "MaxRecords", "NextToken"),
)
def describe_launch_configurations(context: Context, params: Params) -> dict[str, Any]:
    """Return launch configurations; names that do not exist are left out."""
    names = params.get("LaunchConfigurationNames")
    known = sorted(context.table("launch_configurations").items())
    found = [one for name, one in known if not names or name in names or one.arn in names]
    return _page(found, params, "LaunchConfigurations", _configuration_view)


@operation("autoscaling", "DeleteLaunchConfiguration", honours=("LaunchConfigurationName",))
def delete_launch_configuration(context: Context, params: Params) -> dict[str, Any]:
    """Delete a launch configuration that no group uses."""
    configuration = _find_configuration(context, params["LaunchConfigurationName"])
    for group in context.table("auto_scaling_groups").values():
        if group.source.get("LaunchConfigurationName") == configuration.name:
            text = f"Cannot delete launch configuration {configuration.name} because it is attached to "
            raise AwsError("ResourceInUse", f"{text}AutoScalingGroup {group.name}")
    del context.table("launch_configurations")[configuration.name]
    return {}


# Auto Scaling groups: create, describe, change what they launch and how many, delete.
#
# A group launches what it lacks and terminates what it has too much when its sizes are set. It does not watch
# its instances: one that somebody else terminates is not replaced, and nothing scales by itself.


NAME_TAG = "aws:autoscaling:groupName"
SOURCES = ("LaunchConfigurationName", "LaunchTemplate", "MixedInstancesPolicy")
LIFECYCLE = {
    "pending": "Pending",
    "running": "InService",
    "shutting-down": "Terminating",
    "terminated": "Terminated",
}
FIXED = {"DefaultCooldown": 300, "HealthCheckType": "EC2", "HealthCheckGracePeriod": 0}


def _find_group(context: Context, name: str) -> AutoScalingGroup:
    """Return a group by its name."""
    found: AutoScalingGroup | None = context.table("auto_scaling_groups").get(name)
    if found is None:
        raise _validation_error(f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
    return found


def _template_reference(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """Return a launch template with both its id and its name, as groups show it; it must exist."""
    named = {key: asked[key] for key in ("LaunchTemplateId", "LaunchTemplateName") if asked.get(key)}
    try:
        template = find_template(context, named)
        find_template_version(template, asked.get("Version"))
    except AwsError as error:
        # AWS words it so; what stands after the dash is EC2's own text.
        text = "You must use a valid fully-formed launch template."
        raise _validation_error(f"{text} {error.message}") from None
    shown = {"LaunchTemplateId": template.template_id, "LaunchTemplateName": template.name}
    return shown | ({"Version": asked["Version"]} if asked.get("Version") else {})


def _launch_source(context: Context, params: Params) -> dict[str, Any]:
    """Return the member that says what a group launches, checked."""
    given = [name for name in SOURCES if params.get(name)]
    if len(given) != 1:
        text = "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or "
        raise _validation_error(f"{text}MixedInstancesPolicy parameter.")
    if given == ["LaunchConfigurationName"]:
        return {given[0]: _find_configuration(context, params[given[0]]).name}
    if given == ["LaunchTemplate"]:
        return {given[0]: _template_reference(context, params[given[0]])}
    policy = copy.deepcopy(params[given[0]])
    mixed = policy.get("LaunchTemplate") or {}
    if not mixed.get("LaunchTemplateSpecification"):
        raise _validation_error(
            "The launch template of the mixed instances policy is missing."
        )  # text from memory
    for part in (mixed, *mixed.get("Overrides", [])):
        if part.get("LaunchTemplateSpecification"):
            part["LaunchTemplateSpecification"] = _template_reference(
                context, part["LaunchTemplateSpecification"]
            )
    return {given[0]: policy}


def _launch_request(context: Context, source: dict[str, Any]) -> dict[str, Any]:
    """Return what RunInstances is asked for: of a mixed policy the first override."""
    if "LaunchConfigurationName" in source:
        return _configuration_launch(_find_configuration(context, source["LaunchConfigurationName"]))
    if "LaunchTemplate" in source:
        override: dict[str, Any] = {}
        wanted = source["LaunchTemplate"]
    else:
        mixed = source["MixedInstancesPolicy"]["LaunchTemplate"]
        override = next(iter(mixed.get("Overrides", [])), {})
        wanted = override.get("LaunchTemplateSpecification") or mixed["LaunchTemplateSpecification"]
    asked: dict[str, Any] = {
        "LaunchTemplate": {key: wanted[key] for key in ("LaunchTemplateId", "Version") if key in wanted}
    }
    return asked | {key: override[key] for key in ("ImageId", "InstanceType") if key in override}


def _members(context: Context, group: AutoScalingGroup) -> list[Instance]:
    held = context.table("instances").values()
    return [i for i in held if i.tags.get(NAME_TAG) == group.name and i.terminating is None]


def _scale_to_desired(context: Context, group: AutoScalingGroup) -> None:
    """Launch what the group lacks, over its zones in turn; terminate the oldest that are too many."""
    members = sorted(_members(context, group), key=lambda i: i.launched)
    as_ec2 = replace(context, service="ec2", operation="RunInstances")
    for number in range(len(members), group.desired):
        placed = {"AvailabilityZone": group.zones[number % len(group.zones)]}
        asked = _launch_request(context, group.source) | {"MinCount": 1, "MaxCount": 1, "Placement": placed}
        started = run_instances(as_ec2, asked)["Instances"][0]["InstanceId"]
        context.table("instances")[started].tags[NAME_TAG] = group.name
        group.origins[started] = {k: v for k, v in group.source.items() if k != "MixedInstancesPolicy"}
    for instance in members[: max(0, len(members) - group.desired)]:
        instance.terminating = context.clock.now()


def _group_sizes(params: Params, group: AutoScalingGroup | None = None) -> tuple[int, int, int]:
    least = params.get("MinSize", group.least if group else 0)
    most = params.get("MaxSize", group.most if group else 0)
    if most < least:
        raise _validation_error(f"Max bound, {most}, must be greater than or equal to min bound, {least}")
    desired = params.get("DesiredCapacity", min(max(group.desired, least), most) if group else least)
    if not least <= desired <= most:
        side = "less than or equal to max bound" if desired > most else "greater than or equal to min bound"
        raise _validation_error(
            f"Desired capacity:{desired} must be {side}:{most if desired > most else least}"
        )
    return least, most, desired


@operation(
    "autoscaling",
    "CreateAutoScalingGroup",
    honours=(
        "AutoScalingGroupName",
        "AvailabilityZones",
        "DesiredCapacity",
        "MaxSize",
        "MinSize",
        "Tags",
        *SOURCES,
    ),
)
def create_auto_scaling_group(context: Context, params: Params) -> dict[str, Any]:
    """Create a group and launch its instances. Networks are not emulated: it is placed by zones."""
    name, table = _check_name(params["AutoScalingGroupName"], "group"), context.table("auto_scaling_groups")
    if name in table:
        text = "AutoScalingGroup by this name already exists - A group with the name "
        raise AwsError("AlreadyExists", f"{text}{name} already exists")
    source, zones = _launch_source(context, params), params.get("AvailabilityZones") or []
    if not zones:
        raise _validation_error("At least one Availability Zone or VPC Subnet is required.")
    for zone in zones:
        check_zone(context, zone)
    least, most, desired = _group_sizes(params)
    where, now = _new_arn(context, "autoScalingGroup", name), context.clock.now()
    tags = [
        {"ResourceId": name, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": True, **tag}
        for tag in params.get("Tags", [])
    ]
    group = AutoScalingGroup(name, where, now, source, zones, least, most, desired, tags)
    table[name] = group
    _scale_to_desired(context, group)
    return {}


@operation(
    "autoscaling",
    "DescribeAutoScalingGroups",
    honours=("AutoScalingGroupNames", "IncludeInstances", "MaxRecords", "NextToken"),
)
def describe_auto_scaling_groups(context: Context, params: Params) -> dict[str, Any]:
    """Return groups with their instances; names that do not exist are left out."""
    names = params.get("AutoScalingGroupNames")
    found = [
        g for name, g in sorted(context.table("auto_scaling_groups").items()) if not names or name in names
    ]

    def view(group: AutoScalingGroup) -> dict[str, Any]:
        shown = {
            "AutoScalingGroupName": group.name,
            "AutoScalingGroupARN": group.arn,
            "MinSize": group.least,
            "MaxSize": group.most,
            "DesiredCapacity": group.desired,
            "AvailabilityZones": group.zones,
            "CreatedTime": group.created,
            "LoadBalancerNames": [],
            "TargetGroupARNs": [],
            "SuspendedProcesses": [],
            "EnabledMetrics": [],
            "TerminationPolicies": ["Default"],
            "NewInstancesProtectedFromScaleIn": False,
            "VPCZoneIdentifier": "",
            "Tags": group.tags,
        }
        held = [_instance_view(context, i, group) for i in _members(context, group)]
        with_instances = params.get("IncludeInstances", True)
        return shown | FIXED | group.source | ({"Instances": held} if with_instances else {})

    return _page(found, params, "AutoScalingGroups", view)


def _instance_view(context: Context, instance: Instance, group: AutoScalingGroup) -> dict[str, Any]:
    return {
        "InstanceId": instance.instance_id,
        "InstanceType": instance.kind,
        "AvailabilityZone": instance.zone,
        "LifecycleState": LIFECYCLE[instance.state(context.clock)],
        "HealthStatus": "Healthy",
        "ProtectedFromScaleIn": False,
        **group.origins.get(instance.instance_id, {}),
    }


@operation(
    "autoscaling",
    "UpdateAutoScalingGroup",
    honours=("AutoScalingGroupName", "DesiredCapacity", "MaxSize", "MinSize", *SOURCES),
)
def update_auto_scaling_group(context: Context, params: Params) -> dict[str, Any]:
    """Change sizes, or what is launched from now on; instances that run keep what they were made of."""
    group = _find_group(context, params["AutoScalingGroupName"])
    least, most, desired = _group_sizes(params, group)
    if any(params.get(name) for name in SOURCES):
        group.source = _launch_source(context, params)
    group.least, group.most, group.desired = least, most, desired
    _scale_to_desired(context, group)
    return {}


@operation("autoscaling", "DeleteAutoScalingGroup", honours=("AutoScalingGroupName", "ForceDelete"))
def delete_auto_scaling_group(context: Context, params: Params) -> dict[str, Any]:
    """Delete a group without instances, or with them when forced."""
    group = _find_group(context, params["AutoScalingGroupName"])
    members = _members(context, group)
    if members and not params.get("ForceDelete"):
        text = "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance "
        raise AwsError("ResourceInUse", f"{text}request(s) still in the group.")
    for instance in members:
        instance.terminating = context.clock.now()
    del context.table("auto_scaling_groups")[group.name]
    return {}
