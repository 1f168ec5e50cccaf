"""Which IAM actions a call needs, and on which resources.

Most operations need the action of their own name. The exceptions, and the ARNs, follow the tables "Actions
defined by ..." of the Service Authorization Reference for Amazon EC2, Amazon EBS, Amazon S3, IAM and Systems
Manager, and "Required permissions for Amazon S3 API operations" in the Amazon S3 User Guide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import objects
from .iam.documents import listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .core import Context, Params

S3_ACTIONS: dict[str, str] = {
    "AbortMultipartUpload": "AbortMultipartUpload",
    "CompleteMultipartUpload": "PutObject",
    "CopyObject": "PutObject",
    "CreateMultipartUpload": "PutObject",
    "DeleteBucketLifecycle": "PutLifecycleConfiguration",
    "DeleteBucketEncryption": "PutEncryptionConfiguration",
    "DeleteBucketOwnershipControls": "PutBucketOwnershipControls",
    "DeleteBucketTagging": "PutBucketTagging",
    "DeleteObjects": "DeleteObject",
    "DeletePublicAccessBlock": "PutBucketPublicAccessBlock",
    "GetBucketEncryption": "GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "HeadBucket": "ListBucket",
    "HeadObject": "GetObject",
    "ListBuckets": "ListAllMyBuckets",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "ListParts": "ListMultipartUploadParts",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
    "UploadPart": "PutObject",
    "UploadPartCopy": "PutObject",
}
"""S3's actions, where they are not called as their operation."""

CREATES: dict[str, tuple[str, ...]] = {
    "CopyImage": ("image",),
    "CopySnapshot": ("snapshot",),
    "CreateImage": ("image",),
    "CreateLaunchTemplate": ("launch-template",),
    "CreateSnapshot": ("snapshot",),
    "CreateVolume": ("volume",),
    "ImportSnapshot": ("import-snapshot-task",),
    "RegisterImage": ("image",),
    "RunInstances": ("instance",),
}
KINDS: dict[str, tuple[str, str]] = {
    "ami-": ("image", "images"),
    "snap-": ("snapshot", "snapshots"),
    "vol-": ("volume", "volumes"),
    "i-": ("instance", "instances"),
    "import-snap-": ("import-snapshot-task", "import_tasks"),
    "lt-": ("launch-template", "launch_templates"),
}
"""Prefix of an EC2 id: the kind in its ARN, and the table of the sandbox that has it."""

REFERENCES: dict[str, tuple[str, ...]] = {
    "ec2:Instance": ("ec2:DescribeInstances",),
    "ec2:LaunchTemplate": ("ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions"),
    "ssm:Parameter": ("ssm:DescribeParameters", "ssm:GetParameters"),
    "imagebuilder:ImageRecipe": ("imagebuilder:ListImageRecipes",),
    "imagebuilder:ContainerRecipe": ("imagebuilder:ListContainerRecipes", "imagebuilder:GetContainerRecipe"),
}
"""What DescribeImageReferences looks at, and the actions that it needs of its caller (EC2 User Guide)."""

NO_IDS = frozenset({"ClientToken", "Description", "DiskContainer", "Name", "TagSpecifications", "Tags"})
"""Members of EC2's requests that hold texts of people."""

NO_ACCOUNT = frozenset({"image", "snapshot"})  # their ARNs leave the account empty
NO_PERMISSION = frozenset({("sts", "GetCallerIdentity"), ("sts", "GetSessionToken")})


@dataclass(frozen=True)
class Demand:
    """One action on one resource, with the condition keys that are known of this call, in lower case."""

    action: str
    resource: str
    keys: Mapping[str, list[str]] = field(default_factory=dict)


def demands(context: Context, params: Params) -> list[Demand]:
    """Return everything that the caller must be allowed for this call to run."""
    if (context.service, context.operation) in NO_PERMISSION:
        return []
    by_service = {"s3": _s3, "ec2": _ec2, "ebs": _ebs, "iam": _iam}
    found = by_service.get(context.service, _other)(context, params)
    return [Demand(d.action, d.resource, {**common_keys(context), **d.keys}) for d in found]


def common_keys(context: Context) -> dict[str, list[str]]:
    """Return the condition keys that every call has."""
    session = ":assumed-role/" in context.principal
    name = context.principal.rpartition("/")[2]
    return {
        "aws:requestedregion": [context.region],
        "aws:principalarn": [context.principal],
        "aws:principalaccount": [context.account],
        "aws:securetransport": ["true"],  # the sandbox stands for endpoints that speak TLS only
        **({} if session else {"aws:username": [name]}),
    }


def _s3(context: Context, params: Params) -> Iterator[Demand]:
    name = context.operation
    action = f"s3:{S3_ACTIONS.get(name, name)}"
    if name == "ListBuckets":
        yield Demand(action, "*")
        return
    bucket = f"arn:{context.partition}:s3:::{params['Bucket']}"
    if name == "DeleteObjects":
        for item in params["Delete"]["Objects"]:
            yield Demand(action, f"{bucket}/{item['Key']}")
        return
    if "Key" not in params:
        yield Demand(action, bucket)
        return
    yield Demand(action, f"{bucket}/{params['Key']}")
    if name == "GetObjectAttributes":
        yield Demand("s3:GetObject", f"{bucket}/{params['Key']}")
    if params.get("Tagging") and name != "PutObjectTagging":
        yield Demand("s3:PutObjectTagging", f"{bucket}/{params['Key']}")
    if params.get("CopySource"):
        yield Demand(
            "s3:GetObject",
            f"arn:{context.partition}:s3:::{str(params['CopySource']).lstrip('/').split('?')[0]}",
        )
    if name in {"GetObject", "HeadObject"}:
        held = objects.find_bucket(context.tables, params["Bucket"])
        if held is None or params["Key"] not in held.objects:
            # Who may not list is not told what there is: 403 instead of 404.
            yield Demand("s3:ListBucket", bucket)


def _ec2(context: Context, params: Params) -> Iterator[Demand]:
    name, action = context.operation, f"ec2:{context.operation}"
    if name == "DescribeImageReferences":
        yield from _looked_at(context, params)
    if name.startswith(("Describe", "Get")) and name != "GetConsoleOutput":
        yield Demand(action, "*")
        return
    given = _request_tags(params)
    created = [Demand(action, ec2_arn(context, kind, "*"), given) for kind in CREATES.get(name, ())]
    named = [_existing(context, action, resource, params) for resource in _ids(params)]
    yield from [*created, *named] or [Demand(action, "*")]
    for specification in params.get("TagSpecifications") or ():
        if specification.get("Tags"):
            arn = ec2_arn(context, specification.get("ResourceType", "*"), "*")
            yield Demand("ec2:CreateTags", arn, {**given, "ec2:createaction": [name]})


def _looked_at(context: Context, params: Params) -> Iterator[Demand]:
    """Return what the caller must be allowed besides: EC2 looks for references as its caller."""
    kinds = {one.get("ResourceType", "") for one in params.get("ResourceTypes") or ()}
    keys = {"aws:calledvia": ["ec2-images.amazonaws.com"]}
    anything = f"arn:{context.partition}:ssm:{context.region}:{context.account}:parameter/*"
    for kind, actions in REFERENCES.items():
        if kind in kinds or params.get("IncludeAllResourceTypes"):
            for action in actions:
                yield Demand(action, anything if action == "ssm:GetParameters" else "*", keys)


def _ids(value: Any) -> list[str]:
    """Return every id of a resource that a request names, at any depth, each once."""
    found: dict[str, None] = {}
    if isinstance(value, str):
        if any(value.startswith(prefix) and value.removeprefix(prefix) for prefix in KINDS):
            found[value] = None
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NO_IDS:
                found |= dict.fromkeys(_ids(item))
    elif isinstance(value, list):
        for item in value:
            found |= dict.fromkeys(_ids(item))
    return list(found)


def _existing(context: Context, action: str, resource_id: str, params: Params) -> Demand:
    prefix = next(p for p in KINDS if resource_id.startswith(p))
    kind, table = KINDS[prefix]
    resource = context.table(table).get(resource_id)
    tags: Mapping[str, str] = getattr(resource, "tags", None) or {}
    keys = {f"aws:resourcetag/{key.lower()}": [value] for key, value in tags.items()}
    if action in {"ec2:CreateTags", "ec2:DeleteTags"}:
        keys |= _tag_keys(params.get("Tags") or ())
    return Demand(action, ec2_arn(context, kind, resource_id), keys)


def _request_tags(params: Params) -> dict[str, list[str]]:
    tags = [
        tag
        for specification in params.get("TagSpecifications") or ()
        for tag in specification.get("Tags", ())
    ]
    return _tag_keys(tags)


def _tag_keys(tags: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    known = list(tags)
    keys = {f"aws:requesttag/{tag['Key'].lower()}": [tag.get("Value", "")] for tag in known}
    return keys | ({"aws:tagkeys": [tag["Key"] for tag in known]} if known else {})


def ec2_arn(context: Context, kind: str, name: str) -> str:
    """Return the ARN of a resource of EC2; images and snapshots have no account in theirs."""
    account = "" if kind in NO_ACCOUNT else context.account
    return f"arn:{context.partition}:ec2:{context.region}:{account}:{kind}/{name}"


def _ebs(context: Context, params: Params) -> Iterator[Demand]:
    action = f"ebs:{context.operation}"
    if context.operation == "StartSnapshot":
        yield Demand(action, ec2_arn(context, "snapshot", "*"), _tag_keys(params.get("Tags") or ()))
        if params.get("ParentSnapshotId"):
            yield Demand(action, ec2_arn(context, "snapshot", params["ParentSnapshotId"]))
        if params.get("Tags"):
            yield Demand("ec2:CreateTags", ec2_arn(context, "snapshot", "*"), _tag_keys(params["Tags"]))
        return
    for name in ("SnapshotId", "FirstSnapshotId", "SecondSnapshotId"):
        if params.get(name):
            yield _existing(context, action, params[name], {})


def _iam(context: Context, params: Params) -> Iterator[Demand]:
    home = f"arn:{context.partition}:iam::{context.account}"
    resource = "*"
    if "RoleName" in params:
        role = context.table("roles", region="").get(params["RoleName"])
        resource = role.arn if role is not None else f"{home}:role/{params['RoleName']}"
    elif "UserName" in params:
        user = context.table("users", region="").get(params["UserName"])
        resource = user.arn if user is not None else f"{home}:user/{params['UserName']}"
    elif "PolicySourceArn" in params or "PolicyArn" in params:
        resource = params.get("PolicySourceArn") or params["PolicyArn"]
    elif "PolicyName" in params:
        resource = f"{home}:policy{params.get('Path', '/')}{params['PolicyName']}"
    yield Demand(f"iam:{context.operation}", resource)


def _other(context: Context, params: Params) -> Iterator[Demand]:
    service = {"service-quotas": "servicequotas"}.get(context.service, context.service)
    resources = ["*"]
    names = params.get("Names") or params.get("Name") or params.get("Path")
    if context.service == "ssm" and names:
        resources = [_parameter_arn(context, name) for name in listed(names)]
        if params.get("Tags"):
            yield from (Demand("ssm:AddTagsToResource", resource) for resource in resources)
    elif context.service == "sns" and "TopicArn" in params:
        resources = [params["TopicArn"]]
    elif context.service == "sts" and "RoleArn" in params:
        if params["RoleArn"].split(":")[4:5] == [context.account]:
            return  # the role's trust policy decides, where caller and role are of one account
        resources = [params["RoleArn"]]
    for resource in resources:
        yield Demand(f"{service}:{context.operation}", resource)


def _parameter_arn(context: Context, name: str) -> str:
    """Return the ARN of a parameter, however it is named; those that AWS publishes have no account."""
    if name.startswith("arn:"):
        return re.sub(r"^((?:[^:]*:){5}[^:]*):.*$", r"\1", name)  # a version or label is no part of it
    name = name.partition(":")[0].strip("/")
    account = "" if name.startswith("aws/service/") else context.account
    return f"arn:{context.partition}:ssm:{context.region}:{account}:parameter/{name}"
