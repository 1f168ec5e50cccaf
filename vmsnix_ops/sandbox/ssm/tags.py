"""Tags of parameters.

Sources: AddTagsToResource, RemoveTagsFromResource, ListTagsForResource in the AWS Systems Manager API
Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from .common import parameters

if TYPE_CHECKING:
    from ..core import Context, Params
    from .state import Parameter

RESOURCE = ("ResourceType", "ResourceId")


def _tagged(context: Context, params: Params) -> Parameter:
    if params["ResourceType"] != "Parameter":
        raise AwsError("NotImplemented", "The sandbox tags parameters only.", status=501)
    found = parameters(context).get(params["ResourceId"])
    if found is None:
        raise AwsError("InvalidResourceId", "The resource ID isn't valid.")
    return found


@operation("ssm", "AddTagsToResource", honours=[*RESOURCE, "Tags"])
def add_tags_to_resource(context: Context, params: Params) -> dict[str, Any]:
    """Add or replace tags."""
    parameter = _tagged(context, params)
    tags = parameter.tags | {tag["Key"]: tag["Value"] for tag in params["Tags"]}
    if len(tags) > 50:
        raise AwsError("TooManyTagsError", "The Targets parameter includes too many tags.")
    parameter.tags = tags
    return {}


@operation("ssm", "RemoveTagsFromResource", honours=[*RESOURCE, "TagKeys"])
def remove_tags_from_resource(context: Context, params: Params) -> dict[str, Any]:
    """Remove tags; keys that are not there do not matter."""
    parameter = _tagged(context, params)
    for key in params["TagKeys"]:
        parameter.tags.pop(key, None)
    return {}


@operation("ssm", "ListTagsForResource", honours=RESOURCE)
def list_tags_for_resource(context: Context, params: Params) -> dict[str, Any]:
    """List the tags of a parameter."""
    return {"TagList": [{"Key": key, "Value": value} for key, value in _tagged(context, params).tags.items()]}
