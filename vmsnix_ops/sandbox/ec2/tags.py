"""CreateTags, DeleteTags, DescribeTags, and the tags given when something is created.

Sources: "Tag your Amazon EC2 resources" (50 tags a resource, ``aws:`` reserved); "Tag" of the Amazon EC2 API
Reference (keys of 127 and values of 256 characters) and of the EBS direct APIs (127 and 255).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2 import common
from vmsnix_ops.sandbox.ec2.filters import page, select

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmsnix_ops.sandbox.core import Context

MAXIMUM_TAGS, KEY_LENGTH, VALUE_LENGTH, EBS_VALUE_LENGTH = 50, 127, 256, 255


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return tags as answers show them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def checked(tags: Iterable[dict[str, Any]], *, longest: int = VALUE_LENGTH) -> dict[str, str]:
    """Return the tags of a request as a dictionary, or refuse them as EC2 does."""
    found: dict[str, str] = {}
    for tag in tags:
        key, value = tag.get("Key", ""), tag.get("Value") or ""
        if not key:
            raise AwsError("InvalidParameterValue", "Tag key cannot be null or empty")
        if key.lower().startswith("aws:"):
            raise AwsError(
                "InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use"
            )
        if len(key) > KEY_LENGTH:
            raise AwsError(
                "InvalidParameterValue", f"Tag key exceeds the maximum length of {KEY_LENGTH} characters"
            )
        if len(value) > longest:
            text = f"Tag value exceeds the maximum length of {longest} characters"
            raise AwsError("InvalidParameterValue", text)
        if key in found:
            raise AwsError("InvalidParameterValue", f"Duplicate tag key '{key}' specified.")
        found[key] = value
    return limited(found)


def limited(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags of one resource, or refuse them for being too many."""
    if len(tags) > MAXIMUM_TAGS:
        raise AwsError("TagLimitExceeded", f"The maximum number of tags per resource is {MAXIMUM_TAGS}")
    return tags


def at_creation(params: Params, *resource_types: str) -> dict[str, dict[str, str]]:
    """Return the request's TagSpecifications by resource type.

    Raises
    ------
    AwsError
        A resource type is not one that this operation creates, or is named twice.
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in resource_types}
    seen: set[str] = set()
    for specification in params.get("TagSpecifications") or []:
        kind = specification.get("ResourceType", "")
        if kind not in found:
            text = f"'{kind}' is not a valid taggable resource type for this operation."
            raise AwsError("InvalidParameterValue", text)
        if kind in seen:
            raise AwsError(
                "InvalidParameterValue", f"Tag specification resource type '{kind}' is given twice."
            )
        seen.add(kind)
        tags = specification.get("Tags") or []
        if not tags:
            raise AwsError("InvalidParameterValue", "Tag specification must have at least one tag")
        found[kind] = checked(tags)
    return found


def _resource(context: Context, resource_id: str) -> Any:
    for kind in common.KINDS:
        if resource_id.startswith(kind.prefix + "-"):
            return common.find_own(context, kind, resource_id)
    raise AwsError("InvalidID", f"The ID '{resource_id}' is not valid")


@operation("ec2", "CreateTags", honours=("Resources", "Tags"))
def create_tags(context: Context, params: Params) -> dict[str, Any]:
    """Add tags to resources of this account, or none when one of the resources does not exist."""
    tags = checked(params.get("Tags") or [])
    if not tags:
        raise AwsError("MissingParameter", "The request must contain the parameter Tags")
    resources = [_resource(context, resource_id) for resource_id in params["Resources"]]
    for resource in resources:
        limited(resource.tags | tags)
    for resource in resources:
        resource.tags.update(tags)
    return {}


@operation("ec2", "DeleteTags", honours=("Resources", "Tags"))
def delete_tags(context: Context, params: Params) -> dict[str, Any]:
    """Remove tags: by key, by key and value, or all of them when the request names none."""
    resources = [_resource(context, resource_id) for resource_id in params["Resources"]]
    for resource in resources:
        if "Tags" not in params:
            resource.tags.clear()
        for tag in params.get("Tags") or []:
            key = tag.get("Key", "")
            if key in resource.tags and ("Value" not in tag or resource.tags[key] == tag["Value"]):
                del resource.tags[key]
    return {}


@dataclass(frozen=True, slots=True)
class _Tag:
    resource_id: str
    resource_type: str
    key: str
    value: str

    @property
    def tags(self) -> dict[str, str]:
        return {self.key: self.value}


@operation("ec2", "DescribeTags", honours=("Filters", "MaxResults", "NextToken"))
def describe_tags(context: Context, params: Params) -> dict[str, Any]:
    """Return tags of this account's resources, one entry a tag."""
    found = [
        _Tag(resource_id, kind.resource_type, key, value)
        for kind in common.KINDS
        for resource_id, resource in context.table(kind.table).items()
        for key, value in resource.tags.items()
    ]
    readers = {
        "key": lambda t: [t.key],
        "value": lambda t: [t.value],
        "resource-id": lambda t: [t.resource_id],
        "resource-type": lambda t: [t.resource_type],
    }
    kept = select(found, params, readers)
    shown, token = page(kept, params, lambda t: f"{t.resource_id} {t.key}", smallest=5)
    tags = [
        {"ResourceId": t.resource_id, "ResourceType": t.resource_type, "Key": t.key, "Value": t.value}
        for t in shown
    ]
    return {"Tags": tags} | ({"NextToken": token} if token else {})
