"""List and restore the images and snapshots in the Recycle Bin. The retention rules are in `rbin`.

Sources: the reference pages of the operations; "Considerations for Recycle Bin" in the Amazon EBS User Guide;
the examples of the AWS CLI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import operation
from vmsnix_ops.sandbox.ec2.common import IMAGE, SNAPSHOT, check_id, resource_not_found, select_visible
from vmsnix_ops.sandbox.ec2.filters import paginate
from vmsnix_ops.sandbox.rbin import recycled, restore

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.ec2.common import ResourceKind
    from vmsnix_ops.sandbox.ec2.resources import EmulatedSnapshot, Image
    from vmsnix_ops.sandbox.rbin import Recycled


def _page(
    context: Context, params: Params, kind: ResourceKind, resource_ids: list[str] | None
) -> tuple[list[tuple[str, Recycled]], dict[str, str]]:
    """Return one page of recycled resources with their IDs, and the ``NextToken`` member of the answer."""
    found = recycled(context, kind.table)
    wanted = dict.fromkeys(resource_ids) if resource_ids else dict.fromkeys(found)
    select_visible(kind, found, list(wanted))
    shown, more = paginate(context, params, wanted, str)
    return [(one, found[one]) for one in shown], more


def _times(one: Recycled) -> dict[str, Any]:
    return {"RecycleBinEnterTime": one.entered, "RecycleBinExitTime": one.exits}


@operation("ec2", "ListImagesInRecycleBin", "ImageIds MaxResults NextToken")
def list_images_in_recycle_bin(context: Context, params: Params) -> dict[str, Any]:
    """Return the images of this account in the bin."""
    shown, more = _page(context, params, IMAGE, params.get("ImageIds"))
    views = []
    for image_id, one in shown:
        names = {"Name": one.resource.name, "Description": one.resource.description}
        views.append({"ImageId": image_id, **names, **_times(one)})
    return {"Images": views} | more


@operation("ec2", "ListSnapshotsInRecycleBin", "MaxResults NextToken SnapshotIds")
def list_snapshots_in_recycle_bin(context: Context, params: Params) -> dict[str, Any]:
    """Return the snapshots of this account in the bin."""
    shown, more = _page(context, params, SNAPSHOT, params.get("SnapshotIds"))
    views = []
    for snapshot_id, one in shown:
        names = {"VolumeId": one.resource.volume_id, "Description": one.resource.description}
        views.append({"SnapshotId": snapshot_id, **names, **_times(one)})
    return {"Snapshots": views} | more


def _find_recycled(context: Context, kind: ResourceKind, resource_id: str) -> Any:
    check_id(kind, resource_id)
    if resource_id not in recycled(context, kind.table):
        raise resource_not_found(kind, resource_id)
    return recycled(context, kind.table)[resource_id].resource


@operation("ec2", "RestoreSnapshotFromRecycleBin", "SnapshotId")
def restore_snapshot_from_recycle_bin(context: Context, params: Params) -> dict[str, Any]:
    """Restore a snapshot with its permissions.

    The answer has the state ``recovering``, but the snapshot "is immediately available for use" (documented).
    """
    _find_recycled(context, SNAPSHOT, params["SnapshotId"])
    snapshot: EmulatedSnapshot = restore(context, SNAPSHOT.table, params["SnapshotId"])
    return {
        "SnapshotId": snapshot.snapshot_id,
        "Description": snapshot.description,
        "Encrypted": snapshot.encrypted,
        "OwnerId": snapshot.owner,
        "Progress": "99%",
        "StartTime": snapshot.started,
        "State": "recovering",
        "VolumeId": snapshot.volume_id,
        "VolumeSize": snapshot.size_gib,
    }


@operation("ec2", "RestoreImageFromRecycleBin", "ImageId")
def restore_image_from_recycle_bin(context: Context, params: Params) -> dict[str, Any]:
    """Restore an image with its permissions. All its snapshots must be restored first.

    AWS documents this condition, but not the error. Assumption: it is that of an unknown snapshot.
    """
    image: Image = _find_recycled(context, IMAGE, params["ImageId"])
    for snapshot_id in image.snapshot_ids():
        if context.tables.find(SNAPSHOT.table, context.region, snapshot_id) is None:
            raise resource_not_found(SNAPSHOT, snapshot_id)
    restore(context, IMAGE.table, image.image_id)
    return {"Return": True}
