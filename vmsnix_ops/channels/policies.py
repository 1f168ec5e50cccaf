"""The policies of who promotes, verifies and tests what was published."""

from __future__ import annotations

from typing import Any

from vmsnix_ops.aws import (
    deprecation,
    identity,
    image_copy,
    images,
    instances,
    parameters,
    quotas,
    sharing,
    snapshots,
    topics,
)
from vmsnix_ops.aws.ebs_direct import reading
from vmsnix_ops.aws.iam.permissions import needs_of
from vmsnix_ops.channels import history


def promoter_actions(*, public: bool = False, announce: bool = False) -> tuple[str, ...]:
    """Return what a promotion and a rollback need.

    Parameters
    ----------
    public
        Whether AMIs are made public.
    announce
        Whether a topic is told.
    """
    functions: list[Any] = [
        identity.check_region,
        images.find,
        images.ours,
        snapshots.find,
        image_copy.copy,
        image_copy.carry_tags,
        sharing.make_private,
        sharing.check_key_of_copies,
        deprecation.deprecate,
        deprecation.protect,
        deprecation.unprotect,
        parameters.set_channel,
        parameters.restore_channel,
        parameters.read_history,
        history.running,
    ]
    if public:
        functions += [quotas.check_public_sharing, quotas.check_quotas]
    if announce:
        functions += [topics.check, topics.announce]
    return needs_of(*functions)


def smoke_tester_actions(*, spot: bool = False) -> tuple[str, ...]:
    """Return what a smoke test needs.

    Parameters
    ----------
    spot
        Whether it may launch the account's first spot instance.
    """
    return needs_of(
        *((instances.spot_options,) if spot else ()),
        identity.check_region,
        images.find,
        images.ours,
        snapshots.find,
        parameters.find_parameter,
        instances.launch,
        instances.left_behind,
        instances.wait_checks,
        instances.console,
        instances.terminate,
    )


def verifier_actions(*, blocks: bool = False) -> tuple[str, ...]:
    """Return the permissions of who compares what was published with the records, and changes nothing.

    Parameters
    ----------
    blocks
        Whether the bytes of snapshots are read: to compare them with an image
        (``publish-ami --via direct --verify whole --dry-run``), and to download them.
    """
    functions: list[Any] = [
        images.find,
        snapshots.find,
        sharing.of_image,
        sharing.of_snapshot,
        parameters.find_parameter,
    ]
    if blocks:
        functions += [identity.check_region, images.find_by_name, reading.verify]
    return needs_of(*functions)
