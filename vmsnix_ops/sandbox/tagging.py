"""The Resource Groups Tagging API: list and change the tags of resources of all services.

TagResources and UntagResources call the service of each resource with the permissions of the caller. The
other operations list resources that have tags. AWS also lists resources whose tags were all removed; the
sandbox does not.

Sources: the operations in the Resource Groups Tagging API Reference, and its "Services that support the
Resource Groups Tagging API", which has no IAM users and roles, and no Auto Scaling groups. The texts of
errors are from memory, except for an invalid ARN.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.authorization import access_denied, denial_reason, required_permissions
from vmsnix_ops.sandbox.core import (
    OPERATIONS,
    ApiError,
    not_emulated,
    operation,
    page_start,
    page_token,
    tag_list,
    words,
)
from vmsnix_ops.sandbox.ec2.common import RESOURCE_KINDS, tagged_resources
from vmsnix_ops.sandbox.iam import policies_of_principal
from vmsnix_ops.sandbox.ssm import parameter_name, parameters
from vmsnix_ops.sandbox.storage import find_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmsnix_ops.sandbox.core import Context, Params


SERVICE = "resourcegroupstaggingapi"
GLOBAL_REGION = "us-east-1"
"""The region whose endpoint lists the resources of IAM."""

PAGE_SIZE = 50  # a guess: AWS documents no default
MAX_RESOURCES, TAGS_PER_PAGE = 100, range(100, 501)

ARN = re.compile(r"arn:aws[a-z-]*:[a-z0-9-]+:[a-z0-9-]*:(\d{12})?:.+")


def _invalid_parameter(text: str) -> ApiError:
    return ApiError("InvalidParameterException", text)


def _tagged(context: Context) -> dict[str, dict[str, str]]:
    """Return the tags of all tagged resources of the account in the region of the call, by ARN.

    Unlike in policies, the ARNs of AMIs and snapshots contain the account, as in the Cost and Usage Report
    and in public answers of License Manager.
    """
    return {arn: tags for arn, tags in sorted(_resources(context)) if tags}


def _resources(context: Context) -> Iterator[tuple[str, dict[str, str]]]:
    for kind in RESOURCE_KINDS:
        for resource_id, resource in tagged_resources(context, kind).items():
            yield context.arn("ec2", f"{kind.resource_type}/{resource_id}"), resource.tags
    for bucket in context.table("buckets", region="").values():
        if bucket.region == context.region:
            tags = bucket.settings.get("tagging", {"TagSet": []})["TagSet"]
            yield f"arn:{context.partition}:s3:::{bucket.name}", {tag["Key"]: tag["Value"] for tag in tags}
    yield from ((one.arn, one.tags) for one in parameters(context).values())
    for table in ("kms_keys", "topics", "retention_rules"):
        yield from ((one.arn, one.tags) for one in context.table(table).values())
    if context.region == GLOBAL_REGION:
        for table in ("policies", "instance_profiles", "oidc_providers"):
            yield from ((one.arn, one.tags) for one in context.table(table, region="").values())


# Lists


def _resource_types(arn: str) -> set[str]:
    """Return the type filters that match an ARN, such as ``ec2`` and ``ec2:instance``."""
    service, resource = arn.split(":", 5)[2::3]
    kind = {"s3": "bucket", "sns": "topic"}.get(service) or re.split("[/:]", resource)[0]
    return {service, f"{service}:{kind}"}


def _matches(tags: dict[str, str], filters: list[Params]) -> bool:
    """Return whether tags match all filters: by key, and by value if the filter has values."""
    return all(
        entry.get("Key") in tags and (not entry.get("Values") or tags[entry["Key"]] in entry["Values"])
        for entry in filters
    )


@operation(
    SERVICE,
    "GetResources",
    "PaginationToken TagFilters ResourcesPerPage TagsPerPage ResourceTypeFilters ResourceARNList",
)
def get_resources(context: Context, params: Params) -> dict[str, Any]:
    """Return the tagged resources that match tags and types, or those with the given ARNs."""
    found = _tagged(context)
    if "ResourceARNList" in params:
        for other in words("TagFilters ResourceTypeFilters ResourcesPerPage TagsPerPage PaginationToken"):
            if params.get(other):
                raise _invalid_parameter(f"ResourceARNList and {other} can't be specified together.")
        for arn in params["ResourceARNList"]:
            _check_arn(arn)
        chosen = [arn for arn in found if arn in set(params["ResourceARNList"])]
    else:
        kinds = set(params.get("ResourceTypeFilters") or ())
        filters = params.get("TagFilters") or []
        chosen = [
            arn
            for arn, tags in found.items()
            if _matches(tags, filters) and (not kinds or kinds & _resource_types(arn))
        ]
    start = _read_token(params)
    size = params.get("ResourcesPerPage", MAX_RESOURCES if "ResourceARNList" in params else PAGE_SIZE)
    if not 1 <= size <= MAX_RESOURCES:
        raise _invalid_parameter(f"ResourcesPerPage must be between 1 and {MAX_RESOURCES}.")
    most = params.get("TagsPerPage")
    if most is not None and most not in TAGS_PER_PAGE:
        raise _invalid_parameter("TagsPerPage must be between 100 and 500.")
    end = min(start + size, len(chosen))
    while most is not None and sum(len(found[arn]) for arn in chosen[start:end]) > most:
        end -= 1
    shown = [{"ResourceARN": arn, "Tags": tag_list(found[arn])} for arn in chosen[start:end]]
    return {"ResourceTagMappingList": shown, "PaginationToken": page_token(end) if end < len(chosen) else ""}


def _read_token(params: Params) -> int:
    if not params.get("PaginationToken"):
        return 0
    try:
        return page_start(params["PaginationToken"])
    except ValueError:
        raise _invalid_parameter("The pagination token is invalid.") from None


@operation(SERVICE, "GetTagKeys", "PaginationToken")
def get_tag_keys(context: Context, params: Params) -> dict[str, Any]:
    """Return all tag keys in use, on one page."""
    keys = sorted({key for tags in _tagged(context).values() for key in tags})
    return {"TagKeys": keys[_read_token(params) :], "PaginationToken": ""}


@operation(SERVICE, "GetTagValues", "PaginationToken Key")
def get_tag_values(context: Context, params: Params) -> dict[str, Any]:
    """Return all values of a tag key that are in use, on one page."""
    values = sorted({tags[params["Key"]] for tags in _tagged(context).values() if params["Key"] in tags})
    return {"TagValues": values[_read_token(params) :], "PaginationToken": ""}


# Changes


def _check_arn(arn: str) -> None:
    if not ARN.fullmatch(arn):
        raise _invalid_parameter(f"{arn} is not a valid AmazonResourceName (ARN)")


@operation(SERVICE, "TagResources", "ResourceARNList Tags")
def tag_resources(context: Context, params: Params) -> dict[str, Any]:
    """Add tags to resources, or replace them. The answer has the error of each resource that failed."""
    return _change(context, params, params["Tags"], ())


@operation(SERVICE, "UntagResources", "ResourceARNList TagKeys")
def untag_resources(context: Context, params: Params) -> dict[str, Any]:
    """Remove tags from resources. The answer has the error of each resource that failed."""
    return _change(context, params, {}, params["TagKeys"])


def _change(context: Context, params: Params, tags: dict[str, str], keys: tuple[str, ...]) -> dict[str, Any]:
    for arn in params["ResourceARNList"]:
        _check_arn(arn)
    if any(key.lower().startswith("aws:") for key in (*tags, *keys)):
        raise _invalid_parameter("aws: prefixed tag key names are not allowed for external use.")
    # Find all calls before the first one runs, so that a resource that is not emulated leaves all unchanged.
    calls = {arn: _calls_of(context, arn, tags, keys) for arn in params["ResourceARNList"]}
    failed = {}
    for arn, calls_of_arn in calls.items():
        try:
            for service, name, request in calls_of_arn():
                _call(context, service, name, request)
        except ApiError as error:
            failed[arn] = {"StatusCode": error.status, "ErrorCode": error.code, "ErrorMessage": error.message}
    return {"FailedResourcesMap": failed}


def _call(context: Context, service: str, name: str, request: Params) -> None:
    """Run an operation of another service, with the permissions of the caller."""
    called = replace(context, service=service, operation=name)
    documents = policies_of_principal(context, context.principal)
    # For a caller without policies the decision was made before: everything is allowed, or nothing.
    for permission in required_permissions(called, request) if documents or service == "s3" else ():
        reason = denial_reason(called, documents or None, permission)
        if reason:
            raise access_denied(called, permission, reason)
    if name != "GetBucketTagging":  # called only to check its permission
        OPERATIONS[service, name].handler(called, request)


Calls = list[tuple[str, str, "Params"]]


def _calls_of(context: Context, arn: str, tags: dict[str, str], keys: tuple[str, ...]) -> Callable[[], Calls]:
    """Return the function that returns the calls which change the tags of a resource."""
    _, partition, service, region, account, resource = arn.split(":", 5)
    kind, _, name = resource.partition("/")
    here = region == ("" if service in {"iam", "s3"} else context.region)
    own = account in {context.account, ""} and partition == context.partition
    if not here or not own or (service == "iam" and context.region != GLOBAL_REGION):
        text = f"{arn} is not a resource of the account {context.account} in {context.region}."
        return _refuse(_invalid_parameter(text))
    pairs, named = tag_list(tags), {"ResourceArn": arn}
    if service == "ec2":
        change = {"Tags": pairs} if tags else {"Tags": [{"Key": key} for key in keys]}
        return lambda: [("ec2", "CreateTags" if tags else "DeleteTags", {"Resources": [name], **change})]
    if service == "s3" and "/" not in resource:
        return lambda: _bucket_calls(context, resource, tags, keys)
    if service == "ssm" and kind == "parameter":
        named = {"ResourceType": "Parameter", "ResourceId": parameter_name(arn)}
        add, remove = "AddTagsToResource", "RemoveTagsFromResource"
    elif service == "kms" and kind == "key":
        named, add, remove = {"KeyId": arn}, "TagResource", "UntagResource"
        pairs = [{"TagKey": key, "TagValue": value} for key, value in tags.items()]
    elif service == "iam" and kind == "role":
        named, add, remove = {"RoleName": resource.rpartition("/")[2]}, "TagRole", "UntagRole"
    elif service in {"rbin", "sns"}:
        add, remove = "TagResource", "UntagResource"
    else:
        raise not_emulated(f"the tags of {arn} in {SERVICE}")
    changed: Params = {"Tags": pairs} if tags else {"TagKeys": list(keys)}
    return lambda: [(service, add if tags else remove, named | changed)]


def _refuse(error: ApiError) -> Callable[[], Calls]:
    def refuse() -> Calls:
        raise error

    return refuse


def _bucket_calls(context: Context, name: str, tags: dict[str, str], keys: tuple[str, ...]) -> Calls:
    """Return the calls for a bucket, whose tags can only be replaced as a whole.

    Documented: s3:GetBucketTagging is needed too.
    """
    request = {"Bucket": name}
    bucket = find_bucket(context.tables, name)
    known = [] if bucket is None else bucket.settings.get("tagging", {"TagSet": []})["TagSet"]
    changed = {tag["Key"]: tag["Value"] for tag in known} | tags
    left = {key: value for key, value in changed.items() if key not in keys}
    read = ("s3", "GetBucketTagging", request)
    if not left:
        return [read, ("s3", "DeleteBucketTagging", request)]
    return [read, ("s3", "PutBucketTagging", {**request, "Tagging": {"TagSet": tag_list(left)}})]
