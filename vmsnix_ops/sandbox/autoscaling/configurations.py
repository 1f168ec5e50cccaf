"""Launch configurations: create, describe, delete.

AWS gives them to accounts that had them before 2023 only; here every account may have them, because the old
ones are what an audit must find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.autoscaling.common import Configuration, arn, check_name, invalid, page
from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.ec2 import images, instance_types

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params


def find(context: Context, name: str) -> Configuration:
    """Return a launch configuration by its name or ARN."""
    for known in context.table("launch_configurations").values():
        if name in (known.name, known.arn):
            return known  # type: ignore[no-any-return]
    raise invalid(f"Launch configuration name not found - Launch configuration {name} not found")


def launch(configuration: Configuration) -> dict[str, Any]:
    """Return what RunInstances is asked for on behalf of a launch configuration."""
    wanted = ("ImageId", "InstanceType", "UserData", "BlockDeviceMappings", "MetadataOptions")
    return {name: configuration.asked[name] for name in wanted if name in configuration.asked}


def _view(configuration: Configuration) -> dict[str, Any]:
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
        check_name(params["LaunchConfigurationName"], "launch configuration"),
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
            raise invalid(f"{text}InstanceType parameters.")
    try:
        images.usable(context, params["ImageId"])
        instance_types.find(params["InstanceType"])
    except AwsError as error:
        raise invalid(f"AMI {params['ImageId']} is invalid: {error.message}") from None
    asked = {key: value for key, value in params.items() if key != "LaunchConfigurationName"}
    where = arn(context, "launchConfiguration", name)
    table[name] = Configuration(name, where, context.clock.now(), asked)
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
    return page(found, params, "LaunchConfigurations", _view)


@operation("autoscaling", "DeleteLaunchConfiguration", honours=("LaunchConfigurationName",))
def delete_launch_configuration(context: Context, params: Params) -> dict[str, Any]:
    """Delete a launch configuration that no group uses."""
    configuration = find(context, params["LaunchConfigurationName"])
    for group in context.table("auto_scaling_groups").values():
        if group.source.get("LaunchConfigurationName") == configuration.name:
            text = f"Cannot delete launch configuration {configuration.name} because it is attached to "
            raise AwsError("ResourceInUse", f"{text}AutoScalingGroup {group.name}")
    del context.table("launch_configurations")[configuration.name]
    return {}
