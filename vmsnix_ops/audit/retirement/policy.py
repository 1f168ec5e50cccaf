"""What who retires must be allowed: to look, and to change and remove only what carries our tag."""

from __future__ import annotations

from vmsnix_ops.audit.retirement import view
from vmsnix_ops.aws import deprecation, references, regions, retiring, sharing, snapshots
from vmsnix_ops.aws.iam.permissions import needs_of


def retirer_actions() -> tuple[str, ...]:
    """Return what retiring, removing and restoring need."""
    return needs_of(
        regions.enabled,
        view.owned_amis,
        snapshots.owned,
        snapshots.find,
        snapshots.locks,
        view.importing,
        view.channels,
        view.one_by_one,
        references.instances,
        references.Templates.read,
        references.scaling,
        references.parameters,
        references.image_references,
        references.launch_permissions,
        references.snapshot_permissions,
        sharing.of_snapshot,
        sharing.share,
        sharing.revoke,
        sharing.share_snapshot,
        sharing.revoke_snapshot,
        deprecation.deprecate,
        deprecation.undeprecate,
        view.used_now,
        retiring.note,
        retiring.announce,
        retiring.take_back,
        retiring.claim,
        retiring.retire,
        retiring.retire_snapshot,
        retiring.restore,
        retiring.restore_snapshot,
        retiring.deregister,
        retiring.remove_snapshot,
    )
