"""EC2 Auto Scaling: launch configurations and groups.

Sources: the reference pages of the operations and "Common Errors" in the Amazon EC2 Auto Scaling API
Reference. Texts are from public transcripts, or marked as from memory.
"""

from __future__ import annotations

import copy
import re
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Paging, operation
from vmsnix_ops.sandbox.ec2.images import find_launchable_image
from vmsnix_ops.sandbox.ec2.instance_types import find_instance_type
from vmsnix_ops.sandbox.ec2.instances import run_instances
from vmsnix_ops.sandbox.ec2.networks import check_zone, find_subnet
from vmsnix_ops.sandbox.ec2.templates import find_template, find_template_version

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.ec2.resources import EmulatedInstance


NAME = re.compile(r"[\u0020-\u0039\u003b-\uD7FF\uE000-\uFFFD\r\n\t]{1,255}")  # a colon is refused


@dataclass(slots=True)
class LaunchConfiguration:
    """A launch configuration; `data` are the parameters of the request that created it."""

    name: str
    arn: str
    created: datetime
    data: dict[str, Any]


@dataclass(slots=True)
class AutoScalingGroup:
    """An Auto Scaling group. Its instances have the tag ``aws:autoscaling:groupName``.

    `source` has the one member of DescribeAutoScalingGroups that defines what it launches. `origins` has the
    source of each instance at its launch.
    """

    name: str
    arn: str
    created: datetime
    source: dict[str, Any]
    zones: list[str]
    min_size: int
    max_size: int
    desired: int
    tags: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)
    subnets: list[str] = field(default_factory=list)


def _validation_error(text: str) -> ApiError:
    """Return the error that Auto Scaling has for nearly every cause."""
    return ApiError("ValidationError", text)


def _check_name(name: str, what: str) -> str:
    """Return a name, after the check that it is valid."""
    if not NAME.fullmatch(name):
        raise _validation_error(f"Invalid {what} name: {name!r}")  # text from memory
    return name


def _new_arn(context: Context, kind: str, name: str) -> str:
    """Return a new ARN of a kind, such as ``autoScalingGroup``."""
    return context.arn("autoscaling", f"{kind}:{uuid.uuid4()}:{kind}Name/{name}")


PAGES = Paging(
    "MaxRecords",
    100,
    50,
    lambda: ApiError("InvalidNextToken", "The token is not valid."),
    lambda size: _validation_error(  # text from memory
        f"The value '{size}' of the parameter maxRecords is not between 1 and 100."
    ),
)


# Launch configurations
#
# On AWS, only accounts from before 2023 can create them. Here every account can, because an audit must find
# old ones.


def _find_configuration(context: Context, name: str) -> LaunchConfiguration:
    """Return a launch configuration by its name or ARN."""
    for known in context.table("launch_configurations").values():
        if name in (known.name, known.arn):
            return known  # type: ignore[no-any-return]
    raise _validation_error(f"Launch configuration name not found - Launch configuration {name} not found")


def _configuration_view(configuration: LaunchConfiguration) -> dict[str, Any]:
    return {
        "KeyName": "",
        "UserData": "",
        "KernelId": "",
        "RamdiskId": "",
        "SecurityGroups": [],
        "ClassicLinkVPCSecurityGroups": [],
        "BlockDeviceMappings": [],
        "InstanceMonitoring": {"Enabled": True},
        "EbsOptimized": False,
        **configuration.data,
        "LaunchConfigurationName": configuration.name,
        "LaunchConfigurationARN": configuration.arn,
        "CreatedTime": configuration.created,
    }


@operation(
    "autoscaling",
    "CreateLaunchConfiguration",
    "BlockDeviceMappings EbsOptimized ImageId InstanceMonitoring InstanceType LaunchConfigurationName",
    "MetadataOptions UserData",
)
def create_launch_configuration(context: Context, params: Params) -> dict[str, Any]:
    """Create a launch configuration with an image that this account may launch."""
    table = context.table("launch_configurations")
    name = _check_name(params["LaunchConfigurationName"], "launch configuration")
    if name in table:
        text = f"A launch configuration already exists with the name {name}"
        raise ApiError("AlreadyExists", f"Launch Configuration by this name already exists - {text}")
    if not params.get("ImageId") or not params.get("InstanceType"):
        raise _validation_error(
            "Valid requests must contain either the InstanceID parameter or both the ImageId and "
            "InstanceType parameters."
        )
    try:
        find_launchable_image(context, params["ImageId"])
        find_instance_type(params["InstanceType"])
    except ApiError as error:
        raise _validation_error(f"AMI {params['ImageId']} is invalid: {error.message}") from None
    data = {key: value for key, value in params.items() if key != "LaunchConfigurationName"}
    arn = _new_arn(context, "launchConfiguration", name)
    table[name] = LaunchConfiguration(name, arn, context.clock.now(), data)
    return {}


@operation("autoscaling", "DescribeLaunchConfigurations", "LaunchConfigurationNames MaxRecords NextToken")
def describe_launch_configurations(context: Context, params: Params) -> dict[str, Any]:
    """Return launch configurations. Unknown names are ignored."""
    names = params.get("LaunchConfigurationNames")
    known = sorted(context.table("launch_configurations").items())
    found = [one for name, one in known if not names or name in names or one.arn in names]
    views = [_configuration_view(configuration) for configuration in found]
    return PAGES.page(views, params, "LaunchConfigurations")


@operation("autoscaling", "DeleteLaunchConfiguration", "LaunchConfigurationName")
def delete_launch_configuration(context: Context, params: Params) -> dict[str, Any]:
    """Delete a launch configuration that no group uses."""
    configuration = _find_configuration(context, params["LaunchConfigurationName"])
    for group in context.table("auto_scaling_groups").values():
        if group.source.get("LaunchConfigurationName") == configuration.name:
            text = f"Cannot delete launch configuration {configuration.name}"
            raise ApiError("ResourceInUse", f"{text} because it is attached to AutoScalingGroup {group.name}")
    del context.table("launch_configurations")[configuration.name]
    return {}


# Auto Scaling groups
#
# A group launches or terminates instances only when its sizes are set. It does not replace instances that
# other calls terminate, and does not scale automatically.


NAME_TAG = "aws:autoscaling:groupName"
SOURCES = ("LaunchConfigurationName", "LaunchTemplate", "MixedInstancesPolicy")
LIFECYCLE = {
    "pending": "Pending",
    "running": "InService",
    "shutting-down": "Terminating",
    "terminated": "Terminated",
    "stopping": "Terminating",  # on AWS, the group replaces an instance that stops
    "stopped": "Terminated",
}
SERVICE_ROLE = "role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
FIXED = {"DefaultCooldown": 300, "HealthCheckType": "EC2", "HealthCheckGracePeriod": 0}


def _find_group(context: Context, name: str) -> AutoScalingGroup:
    """Return a group by its name."""
    found: AutoScalingGroup | None = context.table("auto_scaling_groups").get(name)
    if found is None:
        raise _validation_error(f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
    return found


def _template_reference(context: Context, reference: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to an existing launch template by ID and name, as groups show it."""
    named = {key: reference[key] for key in ("LaunchTemplateId", "LaunchTemplateName") if reference.get(key)}
    if not named:
        raise _validation_error("Valid requests must contain either launchTemplateId or LaunchTemplateName")
    try:
        template = find_template(context, named)
        find_template_version(template, reference.get("Version"))
    except ApiError as error:
        # AWS's text, with that of EC2 after it.
        text = "You must use a valid fully-formed launch template."
        raise _validation_error(f"{text} {error.message}") from None
    shown = {"LaunchTemplateId": template.template_id, "LaunchTemplateName": template.name}
    return shown | ({"Version": reference["Version"]} if reference.get("Version") else {})


def _launch_source(context: Context, params: Params) -> dict[str, Any]:
    """Return the member that defines what a group launches, after the checks."""
    given = [name for name in SOURCES if params.get(name)]
    if len(given) != 1:
        raise _validation_error(
            "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or "
            "MixedInstancesPolicy parameter."
        )
    if given == ["LaunchConfigurationName"]:
        return {given[0]: _find_configuration(context, params[given[0]]).name}
    if given == ["LaunchTemplate"]:
        return {given[0]: _template_reference(context, params[given[0]])}
    policy = copy.deepcopy(params[given[0]])
    mixed = policy.get("LaunchTemplate") or {}
    if not mixed.get("LaunchTemplateSpecification"):
        # Text from memory.
        raise _validation_error("The launch template of the mixed instances policy is missing.")
    for part in (mixed, *mixed.get("Overrides", [])):
        if wanted := part.get("LaunchTemplateSpecification"):
            part["LaunchTemplateSpecification"] = _template_reference(context, wanted)
    return {given[0]: policy}


def _launch_request(context: Context, source: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of RunInstances for a group; for a mixed policy those of the first override."""
    if "LaunchConfigurationName" in source:
        data = _find_configuration(context, source["LaunchConfigurationName"]).data
        wanted = ("ImageId", "InstanceType", "UserData", "BlockDeviceMappings", "MetadataOptions")
        return {name: data[name] for name in wanted if name in data}
    if "LaunchTemplate" in source:
        override: dict[str, Any] = {}
        wanted = source["LaunchTemplate"]
    else:
        mixed = source["MixedInstancesPolicy"]["LaunchTemplate"]
        override = next(iter(mixed.get("Overrides", [])), {})
        wanted = override.get("LaunchTemplateSpecification") or mixed["LaunchTemplateSpecification"]
    launch: dict[str, Any] = {
        "LaunchTemplate": {key: wanted[key] for key in ("LaunchTemplateId", "Version") if key in wanted}
    }
    return launch | {key: override[key] for key in ("ImageId", "InstanceType") if key in override}


def _members(context: Context, group: AutoScalingGroup) -> list[EmulatedInstance]:
    instances = context.table("instances").values()
    return [i for i in instances if i.tags.get(NAME_TAG) == group.name and i.terminating is None]


def _scale_to_desired(context: Context, group: AutoScalingGroup) -> None:
    """Launch missing instances, in each zone in turn, or terminate the oldest surplus ones."""
    members = sorted(_members(context, group), key=lambda i: i.launched)
    as_ec2 = replace(context, service="ec2", operation="RunInstances")
    for number in range(len(members), group.desired):
        zone = group.zones[number % len(group.zones)]
        placed = {"Placement": {"AvailabilityZone": zone}}
        launch = _launch_request(context, group.source) | placed | {"MinCount": 1, "MaxCount": 1}
        started = run_instances(as_ec2, launch)["Instances"][0]["InstanceId"]
        own = {tag["Key"]: tag.get("Value", "") for tag in group.tags if tag.get("PropagateAtLaunch", True)}
        context.table("instances")[started].tags |= own | {NAME_TAG: group.name}
        group.origins[started] = {k: v for k, v in group.source.items() if k != "MixedInstancesPolicy"}
    for instance in members[: max(0, len(members) - group.desired)]:
        instance.terminating = context.clock.now()


def _group_sizes(params: Params, group: AutoScalingGroup | None = None) -> tuple[int, int, int]:
    min_size = params.get("MinSize", group.min_size if group else 0)
    max_size = params.get("MaxSize", group.max_size if group else 0)
    if max_size < min_size:
        text = f"Max bound, {max_size}, must be greater than or equal to min bound, {min_size}"
        raise _validation_error(text)
    nearest = min(max(group.desired, min_size), max_size) if group else min_size
    desired = params.get("DesiredCapacity", nearest)
    capacity = f"Desired capacity:{desired} must be"
    if desired > max_size:
        raise _validation_error(f"{capacity} less than or equal to max bound:{max_size}")
    if desired < min_size:
        raise _validation_error(f"{capacity} greater than or equal to min bound:{min_size}")
    return min_size, max_size, desired


@operation(
    "autoscaling",
    "CreateAutoScalingGroup",
    *SOURCES,
    "AutoScalingGroupName AvailabilityZones DesiredCapacity MaxSize MinSize Tags VPCZoneIdentifier",
)
def create_auto_scaling_group(context: Context, params: Params) -> dict[str, Any]:
    """Create a group and launch its instances."""
    name, table = _check_name(params["AutoScalingGroupName"], "group"), context.table("auto_scaling_groups")
    if name in table:
        text = f"AutoScalingGroup by this name already exists - A group with the name {name} already exists"
        raise ApiError("AlreadyExists", text)
    source, zones = _launch_source(context, params), params.get("AvailabilityZones") or []
    subnets = [word.strip() for word in params.get("VPCZoneIdentifier", "").split(",") if word.strip()]
    if not zones and not subnets:
        raise _validation_error("At least one Availability Zone or VPC Subnet is required.")
    for zone in zones:
        check_zone(context, zone)
    try:
        subnet_zones = list(dict.fromkeys(find_subnet(context, subnet_id).zone for subnet_id in subnets))
    except ApiError as error:
        text = f"The subnet ID '{', '.join(subnets)}' does not exist"  # text from memory
        raise _validation_error(text) from error
    if zones and subnets and set(zones) != set(subnet_zones):
        text = "The availability zones of the specified subnets and the Auto Scaling group do not match"
        raise _validation_error(text)
    min_size, max_size, desired = _group_sizes(params)
    arn, now = _new_arn(context, "autoScalingGroup", name), context.clock.now()
    tags = [
        {"ResourceId": name, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": True, **tag}
        for tag in params.get("Tags", [])
    ]
    group = AutoScalingGroup(
        name, arn, now, source, zones or subnet_zones, min_size, max_size, desired, tags, subnets=subnets
    )
    table[name] = group
    _scale_to_desired(context, group)
    return {}


@operation(
    "autoscaling", "DescribeAutoScalingGroups", "AutoScalingGroupNames IncludeInstances MaxRecords NextToken"
)
def describe_auto_scaling_groups(context: Context, params: Params) -> dict[str, Any]:
    """Return groups with their instances. Unknown names are ignored."""
    names = params.get("AutoScalingGroupNames")
    known = sorted(context.table("auto_scaling_groups").items())
    found = [group for name, group in known if not names or name in names]

    def view(group: AutoScalingGroup) -> dict[str, Any]:
        shown = {
            "AutoScalingGroupName": group.name,
            "AutoScalingGroupARN": group.arn,
            "MinSize": group.min_size,
            "MaxSize": group.max_size,
            "DesiredCapacity": group.desired,
            "AvailabilityZones": group.zones,
            "CreatedTime": group.created,
            "LoadBalancerNames": [],
            "TargetGroupARNs": [],
            "SuspendedProcesses": [],
            "EnabledMetrics": [],
            "ServiceLinkedRoleARN": context.arn("iam", SERVICE_ROLE, region=""),
            "TrafficSources": [],
            "TerminationPolicies": ["Default"],
            "NewInstancesProtectedFromScaleIn": False,
            "VPCZoneIdentifier": ",".join(group.subnets),
            "Tags": group.tags,
        }
        instances = [_instance_view(context, i, group) for i in _members(context, group)]
        with_instances = params.get("IncludeInstances", True)
        return shown | FIXED | group.source | ({"Instances": instances} if with_instances else {})

    return PAGES.page([view(group) for group in found], params, "AutoScalingGroups")


def _instance_view(context: Context, instance: EmulatedInstance, group: AutoScalingGroup) -> dict[str, Any]:
    return {
        "InstanceId": instance.instance_id,
        "InstanceType": instance.instance_type,
        "AvailabilityZone": instance.zone,
        "LifecycleState": LIFECYCLE[instance.state(context.clock)],
        "HealthStatus": "Healthy",
        "ProtectedFromScaleIn": False,
        **group.origins.get(instance.instance_id, {}),
    }


@operation(
    "autoscaling", "UpdateAutoScalingGroup", *SOURCES, "AutoScalingGroupName DesiredCapacity MaxSize MinSize"
)
def update_auto_scaling_group(context: Context, params: Params) -> dict[str, Any]:
    """Change the sizes of a group or what it launches. Running instances do not change."""
    group = _find_group(context, params["AutoScalingGroupName"])
    min_size, max_size, desired = _group_sizes(params, group)
    if any(params.get(name) for name in SOURCES):
        group.source = _launch_source(context, params)
    group.min_size, group.max_size, group.desired = min_size, max_size, desired
    _scale_to_desired(context, group)
    return {}


@operation("autoscaling", "DeleteAutoScalingGroup", "AutoScalingGroupName ForceDelete")
def delete_auto_scaling_group(context: Context, params: Params) -> dict[str, Any]:
    """Delete a group without instances; with ``ForceDelete``, also its instances."""
    group = _find_group(context, params["AutoScalingGroupName"])
    members = _members(context, group)
    if members and not params.get("ForceDelete"):
        raise ApiError(
            "ResourceInUse",
            "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance "
            "request(s) still in the group.",
        )
    for instance in members:
        instance.terminating = context.clock.now()
    del context.table("auto_scaling_groups")[group.name]
    return {}
