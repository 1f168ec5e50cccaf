"""CopyImage: an image of its own in this region, with snapshots of its own.

The copy is ``pending`` first. When the key cannot be used it becomes ``failed`` later; the reason stands in
StateMessage of its snapshot only. Other than RegisterImage it minds no name that is taken: who copies twice
has two images of one name. Sources: the reference page of CopyImage; public transcripts of failed copies, and
of copies that were made twice.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import checks, encryption, idempotency, ids, images, snapshots
from vmsnix_ops.sandbox.ec2.state import Image
from vmsnix_ops.sandbox.ec2.tags import at_creation

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

SETTLE_SECONDS = 5.0
"""How much later than its last snapshot a copied image becomes available."""


@operation(
    "ec2",
    "CopyImage",
    honours=(
        "ClientToken",
        "CopyImageTags",
        "Description",
        "Encrypted",
        "KmsKeyId",
        "Name",
        "SnapshotCopyCompletionDurationMinutes",
        "SourceImageId",
        "SourceRegion",
        "TagSpecifications",
    ),
)
def copy_image(context: Context, params: Params) -> dict[str, Any]:
    """Begin a copy of an image from another region, or within this one.

    A fault rule's outcome may give ``state_message``: the copy then fails with it.
    """
    known = idempotency.earlier(context, params)
    if known in context.table("images"):
        return {"ImageId": known}
    tags = at_creation(params, "image", "snapshot")
    source = images.usable(context, params["SourceImageId"], region=params["SourceRegion"])
    state = source.state(context.clock)
    if state != "available":
        text = f"The image {source.image_id} is not available: it is {state}."  # text from memory
        raise AwsError("InvalidAMIID.Unavailable", text)
    name = params.get("Name")
    if not name:
        raise AwsError("MissingParameter", "The request must contain the parameter Name")
    checks.image_name(name)  # which may be taken: see above
    checks.description(params.get("Description"))
    minutes = params.get("SnapshotCopyCompletionDurationMinutes")
    snapshots.check_minutes(minutes)
    snapshots.check_copy_limit(context, len(source.snapshot_ids()))
    own_tags = dict(source.tags) if params.get("CopyImageTags") and source.owner == context.account else {}
    image = Image(
        image_id=ids.new_id("ami"),
        owner=context.account,
        region=context.region,
        name=name,
        created=context.clock.now(),
        architecture=source.architecture,
        root_device=source.root_device,
        mappings=copy.deepcopy(source.mappings),
        description=params.get("Description", ""),
        virtualization=source.virtualization,
        boot_mode=source.boot_mode,
        tpm=source.tpm,
        ena=source.ena,
        sriov=source.sriov,
        imds=source.imds,
        uefi_data=source.uefi_data,
        tags=own_tags | tags["image"],
        source_image=source.image_id,
        source_region=source.region,
    )
    _copy_snapshots(context, params, image, source, tags["snapshot"])
    context.table("images")[image.image_id] = image
    idempotency.remember(context, params, image.image_id)
    return {"ImageId": image.image_id}


def _copy_snapshots(
    context: Context, params: Params, image: Image, source: Image, tags: dict[str, str]
) -> None:
    """Give every device of the copy a snapshot of its own, and the copy its duration and outcome."""
    made: dict[str, str] = {}
    originals = {
        snapshot_id: _original(context, source, snapshot_id) for snapshot_id in source.snapshot_ids()
    }
    choices = {
        snapshot_id: encryption.choose(
            context,
            wanted=params.get("Encrypted"),
            key=params.get("KmsKeyId"),
            source=original.encrypted,
            old=original.kms_key if source.region == context.region else "",
        )
        for snapshot_id, original in originals.items()
    }
    for snapshot_id, original in originals.items():
        milliseconds = int(context.clock.now().timestamp() * 1000)
        duplicate = snapshots.copy_of(
            context,
            original,
            choices[snapshot_id],
            description=f"Copied for DestinationAmi {image.image_id} from SourceAmi {source.image_id} "
            f"for SourceSnapshot {snapshot_id}. Task created on {milliseconds:,}.",
            tags=dict(tags),
            minutes=params.get("SnapshotCopyCompletionDurationMinutes"),
        )
        duplicate.failure = str(context.outcome.get("state_message", duplicate.failure))
        made[snapshot_id] = duplicate.snapshot_id
        image.failure = image.failure or duplicate.failure
        image.seconds = max(image.seconds, duplicate.seconds + SETTLE_SECONDS)
    for mapping in image.mappings:
        ebs = mapping.get("Ebs", {})
        if ebs.get("SnapshotId") in made:
            ebs["Encrypted"] = choices[ebs["SnapshotId"]].encrypted
            ebs["SnapshotId"] = made[ebs["SnapshotId"]]


def _original(context: Context, source: Image, snapshot_id: str) -> Any:
    """Return a source image's snapshot, which must be shared as well as the image to be copied."""
    original = ids.find_anywhere(context, ids.SNAPSHOT, snapshot_id, region=source.region)
    if original is None or not original.readable_by(context.account):
        text = "You do not have permission to access the storage of this ami"
        raise AwsError("InvalidRequest", text)
    return original
