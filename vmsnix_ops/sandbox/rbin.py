"""Recycle Bin: the retention rules, and the deleted images and snapshots, which EC2 lists and restores.

Sources: the operations in the Recycle Bin API Reference and in the Amazon EC2 API Reference; "Recycle Bin",
"Considerations for Recycle Bin", "Control access to Recycle Bin with IAM" in the Amazon EBS User Guide; the
actions in the Service Authorization Reference; the examples of the AWS CLI. Texts of errors are from memory,
their codes and reasons are documented. Rules for volumes and locks of rules are not
emulated.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Paging, not_emulated, operation, register_tags, tag_list
from vmsnix_ops.sandbox.ec2.common import (
    IMAGE,
    RECYCLABLE,
    SNAPSHOT,
    Recycled,
    check_id,
    recycled,
    resource_not_found,
    select_visible,
)
from vmsnix_ops.sandbox.ec2.filters import paginate

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Clock, Context, Params
    from vmsnix_ops.sandbox.ec2.common import ResourceKind
    from vmsnix_ops.sandbox.ec2.resources import EmulatedSnapshot


IN_BIN_TAG = "aws:recycle-bin:resource-in-bin"
"""The tag of a resource in the Recycle Bin. Its value is ``true``."""

ACTIVATION_SECONDS = 2.0
"""How long a new rule is pending and retains nothing. AWS documents only that it may take a moment."""

MAX_DAYS = 365


@dataclass(slots=True)
class RetentionRule:
    """A retention rule; in the table ``retention_rules`` of its region by ID.

    `matching` are the tags of a tag-level rule, `excluded` the exclusion tags of a region-level rule; a tag
    without a value has the value None.
    """

    rule_id: str
    arn: str
    resource_type: str
    days: int
    created: datetime
    description: str = ""
    matching: list[tuple[str, str | None]] = field(default_factory=list)
    excluded: list[tuple[str, str | None]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def status(self, clock: Clock) -> str:
        """Return ``pending`` or ``available``."""
        return "pending" if clock.age(self.created) < ACTIVATION_SECONDS else "available"

    def retains(self, tags: dict[str, str]) -> bool:
        """Return whether the rule retains a resource with these tags."""
        if self.matching:
            return any(_has_tag(tags, key, value) for key, value in self.matching)
        return not any(_has_tag(tags, key, value) for key, value in self.excluded)


def _has_tag(tags: dict[str, str], key: str, value: str | None) -> bool:
    """Return whether a resource has a tag of a rule. Assumption: without a value, any value matches."""
    return key in tags and value in {None, tags[key]}


# Resources in the bin


def delete_or_recycle(context: Context, table: str, resource_id: str, *, retainable: bool = True) -> None:
    """Delete a resource. If rules retain it, move it to the bin, for the longest of their periods."""
    resource = context.table(table).pop(resource_id)
    days = [
        rule.days
        for rule in context.table("retention_rules").values()
        if RECYCLABLE[rule.resource_type] == table
        and rule.status(context.clock) == "available"
        and rule.retains(resource.tags)
    ]
    if days and retainable:
        resource.tags[IN_BIN_TAG] = "true"
        recycled(context, table)[resource_id] = Recycled(resource, context.clock.now(), max(days))


# Rules


def _validation_error(text: str, reason: str = "INVALID_PARAMETER_VALUE") -> ApiError:
    return ApiError("ValidationException", text, Reason=reason)


PAGES = Paging(
    "MaxResults",
    1000,
    1000,
    lambda: _validation_error("The page token is invalid.", "INVALID_PAGE_TOKEN"),
)


def _rule_view(rule: RetentionRule, clock: Clock) -> dict[str, Any]:
    """Return a rule as GetRule shows it."""
    return {
        "Identifier": rule.rule_id,
        "RuleArn": rule.arn,
        "Description": rule.description,
        "ResourceType": rule.resource_type,
        "RetentionPeriod": {"RetentionPeriodValue": rule.days, "RetentionPeriodUnit": "DAYS"},
        "ResourceTags": _tag_view(rule.matching),
        "ExcludeResourceTags": _tag_view(rule.excluded),
        "Status": rule.status(clock),
    }


def _tag_view(tags: list[tuple[str, str | None]]) -> list[dict[str, str]]:
    return [
        {"ResourceTagKey": key} | ({} if value is None else {"ResourceTagValue": value})
        for key, value in tags
    ]


def _read_tags(params: Params, member: str) -> list[tuple[str, str | None]]:
    return [(tag["ResourceTagKey"], tag.get("ResourceTagValue")) for tag in params.get(member) or ()]


def _read_days(params: Params) -> int:
    days: int = params["RetentionPeriod"]["RetentionPeriodValue"]
    if days > MAX_DAYS:  # documented; the model allows more
        raise _validation_error("The retention period must be between 1 and 365 days.")
    return days


def _store_rule(context: Context, rule: RetentionRule) -> dict[str, Any]:
    """Store a new or changed rule after the check of its tags, and return it as GetRule shows it."""
    if rule.matching and rule.excluded:
        raise _validation_error("Exclusion tags can't be specified for a tag-level retention rule.")
    context.table("retention_rules")[rule.rule_id] = rule
    return _rule_view(rule, context.clock)


def _check_resource_type(resource_type: str) -> str:
    if resource_type == "EBS_VOLUME":
        raise not_emulated("the resource type EBS_VOLUME of Recycle Bin")
    return resource_type


def _find_rule(context: Context, rule_id: str) -> RetentionRule:
    found: RetentionRule | None = context.table("retention_rules").get(rule_id)
    if found is None:
        text = f"The rule {rule_id} was not found."
        raise ApiError("ResourceNotFoundException", text, status=404, Reason="RULE_NOT_FOUND")
    return found


@operation(
    "rbin", "CreateRule", "RetentionPeriod Description Tags ResourceType ResourceTags ExcludeResourceTags"
)
def create_rule(context: Context, params: Params) -> dict[str, Any]:
    """Create a rule: tag-level with ResourceTags, region-level without."""
    rule_id = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(11))
    rule = RetentionRule(
        rule_id=rule_id,
        arn=context.arn("rbin", f"rule/{rule_id}"),
        resource_type=_check_resource_type(params["ResourceType"]),
        days=_read_days(params),
        created=context.clock.now(),
        description=params.get("Description", ""),
        matching=_read_tags(params, "ResourceTags"),
        excluded=_read_tags(params, "ExcludeResourceTags"),
        tags={tag["Key"]: tag["Value"] for tag in params.get("Tags") or ()},
    )
    return _store_rule(context, rule) | {"Tags": tag_list(rule.tags)}


@operation("rbin", "GetRule", "Identifier")
def get_rule(context: Context, params: Params) -> dict[str, Any]:
    """Return a rule."""
    return _rule_view(_find_rule(context, params["Identifier"]), context.clock)


@operation(
    "rbin",
    "UpdateRule",
    "Identifier RetentionPeriod Description ResourceType ResourceTags ExcludeResourceTags",
)
def update_rule(context: Context, params: Params) -> dict[str, Any]:
    """Change the given members of a rule."""
    changed = replace(_find_rule(context, params["Identifier"]))
    if "ResourceType" in params:  # documented as not supported
        raise _validation_error("The resource type of a rule can't be changed.")
    if "RetentionPeriod" in params:
        changed.days = _read_days(params)
    if "Description" in params:
        changed.description = params["Description"]
    if "ResourceTags" in params:
        changed.matching = _read_tags(params, "ResourceTags")
    if "ExcludeResourceTags" in params:
        changed.excluded = _read_tags(params, "ExcludeResourceTags")
    return _store_rule(context, changed)


@operation("rbin", "DeleteRule", "Identifier")
def delete_rule(context: Context, params: Params) -> dict[str, Any]:
    """Delete a rule. The resources that it retained stay in the bin."""
    rule = _find_rule(context, params["Identifier"])
    del context.table("retention_rules")[rule.rule_id]
    return {}


@operation("rbin", "ListRules", "MaxResults NextToken ResourceType ResourceTags ExcludeResourceTags")
def list_rules(context: Context, params: Params) -> dict[str, Any]:
    """Return the rules for a resource type. Assumption: a rule must have all the tags of the request."""
    kind = _check_resource_type(params["ResourceType"])
    matching = set(_read_tags(params, "ResourceTags"))
    excluded = set(_read_tags(params, "ExcludeResourceTags"))
    rules = [
        rule
        for _, rule in sorted(context.table("retention_rules").items())
        if rule.resource_type == kind and matching <= set(rule.matching) and excluded <= set(rule.excluded)
    ]
    members = ("Identifier", "Description", "RetentionPeriod", "RuleArn")
    views = (_rule_view(rule, context.clock) for rule in rules)
    shown = [{name: view[name] for name in members if name in view} for view in views]
    return PAGES.page(shown, params, "Rules")


# Tags


def _tagged_rule(context: Context, params: Params) -> RetentionRule:
    arn = params["ResourceArn"]
    prefix = context.arn("rbin", "rule/")
    if not re.fullmatch(r"arn:\S+:rbin:[a-z\-0-9]{0,63}:[0-9]{12}:rule/[0-9a-zA-Z]{11}", arn):
        raise _validation_error(f"The resource ARN {arn} is invalid.")
    return _find_rule(context, arn.removeprefix(prefix))


register_tags("rbin", _tagged_rule, "ResourceArn", ("TagResource", "UntagResource", "ListTagsForResource"))


def _list_recycled(
    context: Context, params: Params, kind: ResourceKind, ids: str, members: dict[str, str]
) -> dict[str, Any]:
    """Return one page of the recycled resources that a request names, or of all of a kind.

    `ids` is the parameter with their IDs, and `members` has the fields that the answer shows, by member.
    """
    found = recycled(context, kind.table)
    wanted = list(dict.fromkeys(params.get(ids) or found))
    select_visible(kind, found, wanted)
    shown, more = paginate(context, params, wanted, str)
    views = [
        {ids.removesuffix("s"): one}
        | {member: getattr(found[one].resource, field) for member, field in members.items()}
        | {"RecycleBinEnterTime": found[one].entered, "RecycleBinExitTime": found[one].exits}
        for one in shown
    ]
    return {ids.replace("Id", ""): views} | more


@operation("ec2", "ListImagesInRecycleBin", "ImageIds MaxResults NextToken")
def list_images_in_recycle_bin(context: Context, params: Params) -> dict[str, Any]:
    """Return the images of this account in the bin."""
    members = {"Name": "name", "Description": "description"}
    return _list_recycled(context, params, IMAGE, "ImageIds", members)


@operation("ec2", "ListSnapshotsInRecycleBin", "MaxResults NextToken SnapshotIds")
def list_snapshots_in_recycle_bin(context: Context, params: Params) -> dict[str, Any]:
    """Return the snapshots of this account in the bin."""
    members = {"VolumeId": "volume_id", "Description": "description"}
    return _list_recycled(context, params, SNAPSHOT, "SnapshotIds", members)


def _restore(context: Context, kind: ResourceKind, resource_id: str) -> Any:
    """Move a resource from the bin back to its table, and return it."""
    check_id(kind, resource_id)
    if resource_id not in recycled(context, kind.table):
        raise resource_not_found(kind, resource_id)
    resource = recycled(context, kind.table)[resource_id].resource
    for snapshot_id in resource.snapshot_ids() if kind is IMAGE else ():
        if context.tables.find(SNAPSHOT.table, context.region, snapshot_id) is None:
            raise resource_not_found(SNAPSHOT, snapshot_id)
    del recycled(context, kind.table)[resource_id], resource.tags[IN_BIN_TAG]
    context.table(kind.table)[resource_id] = resource
    return resource


@operation("ec2", "RestoreSnapshotFromRecycleBin", "SnapshotId")
def restore_snapshot_from_recycle_bin(context: Context, params: Params) -> dict[str, Any]:
    """Restore a snapshot with its permissions.

    The answer has the state ``recovering``, but the snapshot "is immediately available for use" (documented).
    """
    snapshot: EmulatedSnapshot = _restore(context, SNAPSHOT, params["SnapshotId"])
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
    _restore(context, IMAGE, params["ImageId"])
    return {"Return": True}
