"""DescribeInstanceStatus and GetConsoleOutput.

Status checks say ``initializing`` for some minutes after a launch; the console's text comes later than the
instance. Sources: the reference pages of the operations.
"""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import ids, instance_types, instances
from vmsnix_ops.sandbox.ec2.filters import page, select

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Clock, Context
    from vmsnix_ops.sandbox.ec2.state import Instance

CHECKED_SECONDS = 240.0
"""How long the checks of a new instance say ``initializing``; a guess of the right size."""

CONSOLE_SECONDS = 60.0
"""How long after its start an instance has printed all that it prints here, and that is posted."""

CONSOLE_BYTES = 65_536


def _health(instance: Instance, clock: Clock) -> tuple[str, str]:
    """Return the status and the detail of both checks."""
    if instance.state(clock) != "running":
        return "not-applicable", "not-applicable"
    if clock.age(instance.launched) < CHECKED_SECONDS:
        return "initializing", "initializing"
    return ("impaired", "failed") if instance.impaired else ("ok", "passed")


def _check(instance: Instance, clock: Clock) -> dict[str, Any]:
    status, detail = _health(instance, clock)
    details = [] if status == "not-applicable" else [{"Name": "reachability", "Status": detail}]
    return {"Status": status, "Details": details}


@operation(
    "ec2",
    "DescribeInstanceStatus",
    honours=("Filters", "IncludeAllInstances", "InstanceIds", "MaxResults", "NextToken"),
)
def describe_instance_status(context: Context, params: Params) -> dict[str, Any]:
    """Return the status checks of running instances; of all with ``IncludeAllInstances``."""
    instances.tidy(context)
    clock = context.clock
    asked = params.get("InstanceIds") or []
    found = [ids.find_own(context, ids.INSTANCE, i) for i in dict.fromkeys(asked)]
    candidates = found if asked else list(context.table("instances").values())
    if not params.get("IncludeAllInstances"):
        candidates = [i for i in candidates if i.state(clock) == "running"]
    readers = {
        "availability-zone": lambda i: [i.zone],
        "instance-state-code": lambda i: [instances.CODES[i.state(clock)]],
        "instance-state-name": lambda i: [i.state(clock)],
        "instance-status.reachability": lambda i: [_health(i, clock)[1]],
        "instance-status.status": lambda i: [_health(i, clock)[0]],
        "system-status.reachability": lambda i: [_health(i, clock)[1]],
        "system-status.status": lambda i: [_health(i, clock)[0]],
    }
    kept = select(candidates, params, readers, tags=False, operation="DescribeInstanceStatus")
    shown, token = page(kept, params, lambda i: i.instance_id, smallest=5, not_with="InstanceIds")
    statuses = [
        {
            "InstanceId": i.instance_id,
            "AvailabilityZone": i.zone,
            "InstanceState": instances.state_view(i.state(clock)),
            "InstanceStatus": _check(i, clock),
            "SystemStatus": _check(i, clock),
        }
        for i in shown
    ]
    return {"InstanceStatuses": statuses} | ({"NextToken": token} if token else {})


@operation("ec2", "GetConsoleOutput", honours=("InstanceId", "Latest"))
def get_console_output(context: Context, params: Params) -> dict[str, Any]:
    """Return what an instance printed: the text that was posted some time after its start, or the latest.

    ``Latest`` shows the text grow line by line; only instances of the Nitro system have it. AWS keeps the
    last 64 KiB.
    """
    instance: Instance = ids.find_own(context, ids.INSTANCE, params["InstanceId"])
    clock, latest = context.clock, bool(params.get("Latest"))
    if latest and not instance_types.find(instance.kind).nitro:
        text = "This instance type does not support retrieving the latest console logs."
        raise AwsError("UnsupportedOperation", text)
    answer: dict[str, Any] = {"InstanceId": instance.instance_id, "Timestamp": clock.now()}
    age = clock.age(instance.launched)
    lines = instance.console.splitlines(keepends=True)
    if age < CONSOLE_SECONDS:
        lines = lines[: int(len(lines) * age / CONSOLE_SECONDS)] if latest else []
    if lines:
        kept = "".join(lines).encode()[-CONSOLE_BYTES:]
        answer["Output"] = base64.b64encode(kept).decode("ascii")
        posted = instance.launched + timedelta(seconds=CONSOLE_SECONDS / clock.speed)
        answer["Timestamp"] = clock.now() if latest else min(clock.now(), posted)
    return answer
