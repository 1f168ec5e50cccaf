"""The policies of who audits, of the role in another account, and of who retires."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.audit import inventory, region
from vmsnix_ops.aws import (
    accounts,
    buckets,
    deprecation,
    images,
    imports,
    references,
    regions,
    retiring,
    sharing,
    snapshots,
)
from vmsnix_ops.aws.iam.permissions import needs_of
from vmsnix_ops.aws.iam.policies import VERSION

if TYPE_CHECKING:
    from vmsnix_ops.aws.iam.policies import Place


def member_actions() -> tuple[str, ...]:
    """Return what the inventory looks at in any account: to look, and nothing else."""
    return needs_of(regions.enabled_regions, inventory.read_region, *_REGION)


_REGION = (
    images.owned,
    snapshots.owned,
    snapshots.locks,
    imports.listed,
    region.channel_values,
    region.references_one_by_one,
    references.instances,
    references.Templates.read,
    references.scaling,
    references.parameters,
    references.image_references,
    references.launch_permissions,
    references.snapshot_permissions,
)
"""What reads a region, for an audit and for a retirement."""


def auditor_actions() -> tuple[str, ...]:
    """Return what an audit needs in its own account: that, the bucket's leftovers, and roles elsewhere."""
    from vmsnix_ops.aws.iam.permissions import PERMISSIONS

    own = needs_of(buckets.region_of, buckets.objects, buckets.uploads, accounts.assume_role, images.ours)
    found = {*own, *member_actions()}
    return tuple(action for action in PERMISSIONS if action in found)


def member_trust(place: Place, *, external_id: str = "") -> dict[str, Any]:
    """Return the trust policy of that role: the auditing account may take it.

    Parameters
    ----------
    place
        The auditing account, which must be given, and the partition.
    external_id
        What an auditor has to know besides.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        No account was given: the role would trust everybody.
    """
    if place.account == "*":
        raise errors.ParameterError(
            "No account was given.", fix="Give the account that audits: --account 012345678901."
        )
    statement: dict[str, Any] = {
        "Sid": "Auditor",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{place.partition}:iam::{place.account}:root"},
        "Action": "sts:AssumeRole",
    }
    if external_id:
        statement["Condition"] = {"StringEquals": {"sts:ExternalId": external_id}}
    return {"Version": VERSION, "Statement": [statement]}


# What who retires must be allowed: to look, and to change and remove only what carries our tag.


def retirer_actions() -> tuple[str, ...]:
    """Return what retiring, removing and restoring need."""
    return needs_of(
        regions.enabled_regions,
        *_REGION,
        snapshots.find,
        sharing.of_snapshot,
        sharing.share,
        sharing.revoke,
        sharing.share_snapshot,
        sharing.revoke_snapshot,
        deprecation.deprecate,
        deprecation.undeprecate,
        region.channels_and_instances,
        retiring.retirement_tags,
        retiring.write_retirement_tags,
        retiring.undo_retirement_tags,
        retiring.claim,
        retiring.retire,
        retiring.retire_snapshot,
        retiring.restore,
        retiring.restore_snapshot,
        retiring.deregister,
        retiring.delete_snapshot,
    )
