"""Auto Scaling groups: create, describe, change what they launch and how many, delete.

A group launches what it lacks and terminates what it has too much when its sizes are set. It does not watch
its instances: one that somebody else terminates is not replaced, and nothing scales by itself.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.autoscaling import configurations
from vmsnix_ops.sandbox.autoscaling.common import Group, arn, check_name, invalid, page
from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.ec2 import instances, places, templates

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.ec2.state import Instance

NAME_TAG = "aws:autoscaling:groupName"
SOURCES = ("LaunchConfigurationName", "LaunchTemplate", "MixedInstancesPolicy")
LIFECYCLE = {
    "pending": "Pending",
    "running": "InService",
    "shutting-down": "Terminating",
    "terminated": "Terminated",
}
FIXED = {"DefaultCooldown": 300, "HealthCheckType": "EC2", "HealthCheckGracePeriod": 0}


def find(context: Context, name: str) -> Group:
    """Return a group by its name."""
    found: Group | None = context.table("auto_scaling_groups").get(name)
    if found is None:
        raise invalid(f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
    return found


def _template(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """Return a launch template with both its id and its name, as groups show it; it must exist."""
    named = {key: asked[key] for key in ("LaunchTemplateId", "LaunchTemplateName") if asked.get(key)}
    try:
        template = templates.find(context, named)
        templates.version_of(template, asked.get("Version"))
    except AwsError as error:
        # AWS words it so; what stands after the dash is EC2's own text.
        text = "You must use a valid fully-formed launch template."
        raise invalid(f"{text} {error.message}") from None
    shown = {"LaunchTemplateId": template.template_id, "LaunchTemplateName": template.name}
    return shown | ({"Version": asked["Version"]} if asked.get("Version") else {})


def _source(context: Context, params: Params) -> dict[str, Any]:
    """Return the member that says what a group launches, checked."""
    given = [name for name in SOURCES if params.get(name)]
    if len(given) != 1:
        text = "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or "
        raise invalid(f"{text}MixedInstancesPolicy parameter.")
    if given == ["LaunchConfigurationName"]:
        return {given[0]: configurations.find(context, params[given[0]]).name}
    if given == ["LaunchTemplate"]:
        return {given[0]: _template(context, params[given[0]])}
    policy = copy.deepcopy(params[given[0]])
    mixed = policy.get("LaunchTemplate") or {}
    if not mixed.get("LaunchTemplateSpecification"):
        raise invalid("The launch template of the mixed instances policy is missing.")  # text from memory
    for part in (mixed, *mixed.get("Overrides", [])):
        if part.get("LaunchTemplateSpecification"):
            part["LaunchTemplateSpecification"] = _template(context, part["LaunchTemplateSpecification"])
    return {given[0]: policy}


def _launch(context: Context, source: dict[str, Any]) -> dict[str, Any]:
    """Return what RunInstances is asked for: of a mixed policy the first override."""
    if "LaunchConfigurationName" in source:
        return configurations.launch(configurations.find(context, source["LaunchConfigurationName"]))
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


def _members(context: Context, group: Group) -> list[Instance]:
    held = context.table("instances").values()
    return [i for i in held if i.tags.get(NAME_TAG) == group.name and i.terminating is None]


def _reach(context: Context, group: Group) -> None:
    """Launch what the group lacks, over its zones in turn; terminate the oldest that are too many."""
    members = sorted(_members(context, group), key=lambda i: i.launched)
    as_ec2 = replace(context, service="ec2", operation="RunInstances")
    for number in range(len(members), group.desired):
        placed = {"AvailabilityZone": group.zones[number % len(group.zones)]}
        asked = _launch(context, group.source) | {"MinCount": 1, "MaxCount": 1, "Placement": placed}
        started = instances.run_instances(as_ec2, asked)["Instances"][0]["InstanceId"]
        context.table("instances")[started].tags[NAME_TAG] = group.name
        group.origins[started] = {k: v for k, v in group.source.items() if k != "MixedInstancesPolicy"}
    for instance in members[: max(0, len(members) - group.desired)]:
        instance.terminating = context.clock.now()


def _sizes(params: Params, group: Group | None = None) -> tuple[int, int, int]:
    least = params.get("MinSize", group.least if group else 0)
    most = params.get("MaxSize", group.most if group else 0)
    if most < least:
        raise invalid(f"Max bound, {most}, must be greater than or equal to min bound, {least}")
    desired = params.get("DesiredCapacity", min(max(group.desired, least), most) if group else least)
    if not least <= desired <= most:
        side = "less than or equal to max bound" if desired > most else "greater than or equal to min bound"
        raise invalid(f"Desired capacity:{desired} must be {side}:{most if desired > most else least}")
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
    name, table = check_name(params["AutoScalingGroupName"], "group"), context.table("auto_scaling_groups")
    if name in table:
        text = "AutoScalingGroup by this name already exists - A group with the name "
        raise AwsError("AlreadyExists", f"{text}{name} already exists")
    source, zones = _source(context, params), params.get("AvailabilityZones") or []
    if not zones:
        raise invalid("At least one Availability Zone or VPC Subnet is required.")
    for zone in zones:
        places.check_zone(context, zone)
    least, most, desired = _sizes(params)
    where, now = arn(context, "autoScalingGroup", name), context.clock.now()
    tags = [
        {"ResourceId": name, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": True, **tag}
        for tag in params.get("Tags", [])
    ]
    group = Group(name, where, now, source, zones, least, most, desired, tags)
    table[name] = group
    _reach(context, group)
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

    def view(group: Group) -> dict[str, Any]:
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
        held = [_instance(context, i, group) for i in _members(context, group)]
        with_instances = params.get("IncludeInstances", True)
        return shown | FIXED | group.source | ({"Instances": held} if with_instances else {})

    return page(found, params, "AutoScalingGroups", view)


def _instance(context: Context, instance: Instance, group: Group) -> dict[str, Any]:
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
    group = find(context, params["AutoScalingGroupName"])
    least, most, desired = _sizes(params, group)
    if any(params.get(name) for name in SOURCES):
        group.source = _source(context, params)
    group.least, group.most, group.desired = least, most, desired
    _reach(context, group)
    return {}


@operation("autoscaling", "DeleteAutoScalingGroup", honours=("AutoScalingGroupName", "ForceDelete"))
def delete_auto_scaling_group(context: Context, params: Params) -> dict[str, Any]:
    """Delete a group without instances, or with them when forced."""
    group = find(context, params["AutoScalingGroupName"])
    members = _members(context, group)
    if members and not params.get("ForceDelete"):
        text = "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance "
        raise AwsError("ResourceInUse", f"{text}request(s) still in the group.")
    for instance in members:
        instance.terminating = context.clock.now()
    del context.table("auto_scaling_groups")[group.name]
    return {}
