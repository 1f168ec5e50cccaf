"""DescribeInstanceAttribute and ModifyInstanceAttribute: what DescribeInstances does not show of a launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import checks, ids

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.state import Instance


@operation("ec2", "DescribeInstanceAttribute", honours=("Attribute", "InstanceId"))
def describe_instance_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Return one attribute of an instance."""
    instance: Instance = ids.find_own(context, ids.INSTANCE, params["InstanceId"])
    values: dict[str, tuple[str, object]] = {
        "disableApiTermination": ("DisableApiTermination", instance.protected),
        "instanceInitiatedShutdownBehavior": ("InstanceInitiatedShutdownBehavior", instance.shutdown),
        "instanceType": ("InstanceType", instance.kind),
        "rootDeviceName": ("RootDeviceName", instance.root_device),
        "userData": ("UserData", instance.user_data),
    }
    checks.one_of("attribute", params["Attribute"], values)
    name, value = values[params["Attribute"]]
    return {"InstanceId": instance.instance_id, name: {} if value == "" else {"Value": value}}


@operation("ec2", "ModifyInstanceAttribute", honours=("DisableApiTermination", "InstanceId"))
def modify_instance_attribute(context: Context, params: Params) -> dict[str, Any]:
    """Protect an instance from termination, or lift the protection."""
    instance: Instance = ids.find_own(context, ids.INSTANCE, params["InstanceId"])
    if "DisableApiTermination" not in params:
        raise AwsError("InvalidParameterCombination", "No attributes specified.")
    instance.protected = bool(params["DisableApiTermination"].get("Value"))
    return {}
