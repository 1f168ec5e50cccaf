"""How images come to rest: deprecation, disabling, protection, deregistration.

Sources: the reference pages of the operations; "Deprecate an AMI", "Disable an AMI", "Protect an AMI from
deregistration" of the EC2 user guide.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import images, snapshot_locks, snapshots

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.state import Image

YEAR = timedelta(days=365.25)


@operation("ec2", "EnableImageDeprecation", honours=("DeprecateAt", "ImageId"))
def enable_image_deprecation(context: Context, params: Params) -> dict[str, Any]:
    """Set the date from which an image is deprecated, to the minute."""
    image = images.own(context, params["ImageId"])
    moment: datetime = params["DeprecateAt"]
    now = context.clock.now()
    limit = image.created + 2 * YEAR if image.public() else now + 10 * YEAR
    if not now <= moment <= limit:
        text = f"Value ({images.timestamp(moment)}) for parameter DeprecateAt is invalid."  # text from memory
        raise AwsError("InvalidParameterValue", text)
    half_up = moment + timedelta(seconds=30)
    image.deprecate_at = half_up.replace(second=0, microsecond=0)
    image.deprecation_set = now
    return {"Return": True}


@operation("ec2", "DisableImageDeprecation", honours=("ImageId",))
def disable_image_deprecation(context: Context, params: Params) -> dict[str, Any]:
    """Take the deprecation date away."""
    images.own(context, params["ImageId"]).deprecate_at = None
    return {"Return": True}


@operation("ec2", "DisableImage", honours=("ImageId",))
def disable_image(context: Context, params: Params) -> dict[str, Any]:
    """Make an image unlaunchable, unlisted and private again."""
    image = images.own(context, params["ImageId"])
    if image.state(context.clock) not in ("available", "disabled"):
        text = f"The image {image.image_id} is in the state {image.state(context.clock)}."  # text from memory
        raise AwsError("IncorrectState", text)
    image.disabled = True
    image.permissions.clear()
    return {"Return": True}


@operation("ec2", "EnableImage", honours=("ImageId",))
def enable_image(context: Context, params: Params) -> dict[str, Any]:
    """Make a disabled image available; whoever it was shared with does not come back."""
    images.own(context, params["ImageId"]).disabled = False
    return {"Return": True}


@operation("ec2", "EnableImageDeregistrationProtection", honours=("ImageId", "WithCooldown"))
def enable_image_deregistration_protection(context: Context, params: Params) -> dict[str, Any]:
    """Protect an image from being deregistered."""
    image = images.own(context, params["ImageId"])
    image.protection = "enabled-with-cooldown" if params.get("WithCooldown") else "enabled-without-cooldown"
    image.protection_lifted = None
    return {"Return": "true"}


@operation("ec2", "DisableImageDeregistrationProtection", honours=("ImageId",))
def disable_image_deregistration_protection(context: Context, params: Params) -> dict[str, Any]:
    """Lift the protection, at once or 24 hours later when it was enabled with a cooldown."""
    image = images.own(context, params["ImageId"])
    if image.protection == "enabled-with-cooldown":
        image.protection_lifted = image.protection_lifted or context.clock.now()
    else:
        image.protection = "disabled"
    return {"Return": "true"}


@operation("ec2", "DeregisterImage", honours=("DeleteAssociatedSnapshots", "ImageId"))
def deregister_image(context: Context, params: Params) -> dict[str, Any]:
    """Deregister an image and, when asked, delete those of its snapshots that no other image needs."""
    image = images.own(context, params["ImageId"])
    protection = images.protection(image, context.clock)
    if protection != "disabled":
        # The code is documented; the text is from memory.
        text = f"The image {image.image_id} cannot be deregistered: its protection is {protection}."
        raise AwsError("OperationNotPermitted", text)
    del context.table("images")[image.image_id]
    _release(context, image)
    if not params.get("DeleteAssociatedSnapshots"):
        return {"Return": True}
    results = []
    table = context.table("snapshots")
    for snapshot_id in image.snapshot_ids():
        if snapshots.using_images(context, snapshot_id):
            results.append({"SnapshotId": snapshot_id, "ReturnCode": "skipped"})
        elif snapshot_id in table and snapshot_locks.locked(table[snapshot_id], context.clock):
            results.append({"SnapshotId": snapshot_id, "ReturnCode": "client-error"})  # a guess
        elif snapshot_id in table:
            del table[snapshot_id]
            results.append({"SnapshotId": snapshot_id, "ReturnCode": "success"})
        else:  # it belongs to another account that shared it
            results.append({"SnapshotId": snapshot_id, "ReturnCode": "missing-permissions"})
    return {"Return": True, "DeleteSnapshotResults": results}


def _release(context: Context, image: Image) -> None:
    """Note on the image's snapshots that they were in use until now."""
    table = context.table("snapshots")
    for snapshot_id in image.snapshot_ids():
        if snapshot_id in table:
            table[snapshot_id].released = context.clock.now()
