"""IAM actions that promoting, verifying and testing published AMIs need."""

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
    """Return the actions of promotions and rollbacks that may make AMIs public or notify SNS topics."""
    functions: list[Any] = [
        identity.check_region,
        images.find_amis,
        images.list_published_amis,
        snapshots.find_snapshots,
        image_copy.copy_ami,
        image_copy.copy_tags,
        sharing.read_launch_permissions,
        sharing.share_ami,
        sharing.read_snapshot_permissions,
        sharing.share_snapshot,
        sharing.check_copy_key,
        deprecation.deprecate,
        deprecation.protect,
        deprecation.unprotect,
        parameters.set_channel,
        parameters.restore_channel,
        parameters.read_history,
        history.count_instances,
    ]
    if public:
        functions += [quotas.check_public_sharing, quotas.check_quotas]
    if announce:
        functions += [topics.check_topic_exists, topics.publish_message]
    return needs_of(*functions)


def smoke_tester_actions(*, spot: bool = False) -> tuple[str, ...]:
    """Return the actions of a smoke test, also for the first spot instance of the account."""
    return needs_of(
        *((instances.spot_options,) if spot else ()),
        identity.check_region,
        images.find_amis,
        images.list_published_amis,
        snapshots.find_snapshots,
        parameters.find_parameter,
        instances.launch_instance,
        instances.find_leftover_instances,
        instances.wait_checks,
        instances.read_console,
        instances.terminate_instances,
    )


def verifier_actions(*, blocks: bool = False) -> tuple[str, ...]:
    """Return the actions of a verification, which changes nothing; also to read or download blocks."""
    functions: list[Any] = [
        images.find_amis,
        snapshots.find_snapshots,
        sharing.read_launch_permissions,
        sharing.read_snapshot_permissions,
        parameters.find_parameter,
    ]
    if blocks:
        functions += [identity.check_region, images.find_all_by_name, reading.verify]
    return needs_of(*functions)
