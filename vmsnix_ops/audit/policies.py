"""IAM actions of auditing and retiring, and the trust policy of the role in an audited account."""

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
from vmsnix_ops.aws.iam.documents import policy
from vmsnix_ops.aws.iam.permissions import needs_of

if TYPE_CHECKING:
    from vmsnix_ops.aws.iam.policies import PolicyScope


_REGION = (
    regions.enabled_regions,
    images.list_amis,
    snapshots.list_snapshots,
    snapshots.list_locks,
    imports.list_tasks,
    region.channel_values,
    region.references_one_by_one,
    references.instance_references,
    references.LaunchTemplates.read,
    references.scaling_references,
    references.parameter_references,
    references.image_references,
    references.launch_permission_references,
    references.snapshot_permission_references,
)
"""The functions that read regions, for audits and retirements."""


def member_actions() -> tuple[str, ...]:
    """Return the actions that an audit needs in every account. All of them only read."""
    return needs_of(inventory.scan_region, *_REGION)


def auditor_actions() -> tuple[str, ...]:
    """Return the actions that an audit needs in its own account: also for buckets and the roles of others."""
    return needs_of(
        inventory.scan_region,
        *_REGION,
        buckets.bucket_region,
        buckets.list_objects,
        buckets.list_multipart_uploads,
        accounts.assume_role,
        images.list_published_amis,
    )


def member_trust(scope: PolicyScope, *, external_id: str = "") -> dict[str, Any]:
    """Return the trust policy of the role in an audited account: the auditing account may assume it."""
    if scope.account == "*":
        raise errors.ParameterError("No account given.", fix="Add --account with the auditing account.")
    statement: dict[str, Any] = {
        "Sid": "Auditor",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{scope.partition}:iam::{scope.account}:root"},
        "Action": "sts:AssumeRole",
    }
    if external_id:
        statement["Condition"] = {"StringEquals": {"sts:ExternalId": external_id}}
    return policy(statement)


def retirer_actions() -> tuple[str, ...]:
    """Return the actions that retiring, deleting and restoring need."""
    return needs_of(
        *_REGION,
        snapshots.find_snapshots,
        sharing.read_snapshot_permissions,
        sharing.share_ami,
        sharing.revoke_ami,
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
