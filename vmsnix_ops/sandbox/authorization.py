"""Which IAM actions a call needs, and on which resources.

Most operations need the action of their own name. The exceptions, and the ARNs, follow the tables "Actions
defined by ..." of the Service Authorization Reference for Amazon EC2, Amazon EBS, Amazon S3, IAM and Systems
Manager, and "Required permissions for Amazon S3 API operations" in the Amazon S3 User Guide.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from vmsnix_ops.sandbox.core import AwsError
from vmsnix_ops.sandbox.credentials import credentials_table
from vmsnix_ops.sandbox.ec2.common import PARAMETER_PREFIX, RESOURCE_KINDS, find_image_id
from vmsnix_ops.sandbox.ec2.instances import (
    CREATE_ROLE_ACTION,
    SPOT_SERVICE,
    lacks_spot_role,
    launch_devices,
    spot_role_arn,
)
from vmsnix_ops.sandbox.ec2.templates import find_template, merge_launch
from vmsnix_ops.sandbox.ec2.zones import zones_of
from vmsnix_ops.sandbox.iam import find_identity, is_administrator, policies_of_identity
from vmsnix_ops.sandbox.policies import (
    ALLOWED,
    DELEGATED,
    EXPLICIT_DENY,
    AccessRequest,
    as_list,
    evaluate,
    evaluate_resource_policy,
)
from vmsnix_ops.sandbox.s3.buckets import s3_denial_reason
from vmsnix_ops.sandbox.ssm import SSM_KEY_ALIAS, kms_key_arn, parameter_name, parameters, ssm_managed_key
from vmsnix_ops.sandbox.storage import find_bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmsnix_ops.sandbox.core import Context, Operation, Params


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

CREATED_RESOURCES: dict[str, tuple[str, ...]] = {
    "CopyImage": ("image", "snapshot"),
    "CopySnapshot": ("snapshot",),
    "CreateImage": ("image", "snapshot"),
    "CreateLaunchTemplate": ("launch-template",),
    "CreateSnapshot": ("snapshot",),
    "CreateVolume": ("volume",),
    "ImportSnapshot": ("import-snapshot-task", "snapshot"),
    "RegisterImage": ("image",),
    "RunInstances": ("instance", "network-interface"),
}
"""The new resources of EC2's creating actions; RunInstances makes a volume for each device besides."""

RESOURCE_TYPES: dict[str, tuple[str, str]] = {
    kind.prefix + "-": (kind.resource_type, kind.table) for kind in RESOURCE_KINDS
}
"""Prefix of an EC2 id: the kind in its ARN, and the table of the sandbox that has it."""

REFERENCE_ACTIONS: dict[str, tuple[str, ...]] = {
    "ec2:Instance": ("ec2:DescribeInstances",),
    "ec2:LaunchTemplate": ("ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions"),
    "ssm:Parameter": ("ssm:DescribeParameters", "ssm:GetParameters"),
    "imagebuilder:ImageRecipe": ("imagebuilder:ListImageRecipes",),
    "imagebuilder:ContainerRecipe": ("imagebuilder:ListContainerRecipes", "imagebuilder:GetContainerRecipe"),
}
"""What DescribeImageReferences looks at, and the actions that it needs of its caller (EC2 User Guide)."""

MEMBERS_WITHOUT_IDS = frozenset(
    {
        "ClientToken",
        "Description",
        "DiskContainer",
        "LaunchTemplateData",
        "Name",
        "TagSpecifications",
        "Tags",
        "UserData",
    }
)
"""Members of EC2's requests that are no resources of the call: texts of people, and what a template keeps."""

TYPES_WITHOUT_ACCOUNT = frozenset({"image", "snapshot"})  # their ARNs leave the account empty
ALWAYS_ALLOWED = frozenset({("sts", "GetCallerIdentity"), ("sts", "GetSessionToken")})


@dataclass(frozen=True)
class RequiredPermission:
    """One action on one resource, with the condition keys that are known of this call, in lower case.

    `granted` says that a policy of the resource allows it to the whole account: only a Deny is in the way.
    """

    action: str
    resource: str
    keys: Mapping[str, list[str]] = field(default_factory=dict)
    granted: bool = False


def required_permissions(context: Context, params: Params) -> list[RequiredPermission]:
    """Return everything that the caller must be allowed for this call to run."""
    if (context.service, context.operation) in ALWAYS_ALLOWED:
        return []
    by_service = {
        "s3": _s3_permissions,
        "ec2": _ec2_permissions,
        "ebs": _ebs_permissions,
        "iam": _iam_permissions,
    }
    found = by_service.get(context.service, _other_permissions)(context, params)
    common = global_condition_keys(context)
    return [replace(demand, keys={**common, **demand.keys}) for demand in found]


def global_condition_keys(context: Context) -> dict[str, list[str]]:
    """Return the condition keys that every call has ("AWS global condition context keys").

    ``aws:PrincipalArn`` of a session is its role. The sandbox stands for endpoints that speak TLS only.
    """
    principal, name = context.principal, context.principal.rpartition("/")[2]
    kind = "Account" if principal.endswith(":root") else "User"
    if ":assumed-role/" in principal:
        kind, role_name = "AssumedRole", principal.split("/")[1]
        role = context.table("roles", region="").get(role_name)
        principal = (
            role.arn
            if role is not None
            else f"arn:{context.partition}:iam::{context.account}:role/{role_name}"
        )
    credential = credentials_table(context.tables).get(context.access_key)
    now = context.clock.now()
    keys = {
        "aws:currenttime": [f"{now:%Y-%m-%dT%H:%M:%SZ}"],
        "aws:epochtime": [str(int(now.timestamp()))],
        "aws:principalaccount": [context.account],
        "aws:principalarn": [principal],
        "aws:principalisawsservice": ["false"],
        "aws:principaltype": [kind],
        "aws:requestedregion": [context.region],
        "aws:securetransport": ["true"],
        "aws:sourceip": ["127.0.0.1"],
        "aws:viaawsservice": ["false"],
    }
    if credential is not None:
        keys["aws:userid"] = [credential.user_id]
    return keys | ({"aws:username": [name]} if kind == "User" else {})


S3_CONDITION_KEYS: dict[str, str] = {
    "ACL": "s3:x-amz-acl",
    "CopySource": "s3:x-amz-copy-source",
    "Delimiter": "s3:delimiter",
    "IfMatch": "s3:if-match",
    "IfNoneMatch": "s3:if-none-match",
    "MaxKeys": "s3:max-keys",
    "MetadataDirective": "s3:x-amz-metadata-directive",
    "ObjectOwnership": "s3:x-amz-object-ownership",
    "Prefix": "s3:prefix",
    "SSEKMSKeyId": "s3:x-amz-server-side-encryption-aws-kms-key-id",
    "ServerSideEncryption": "s3:x-amz-server-side-encryption",
    "StorageClass": "s3:x-amz-storage-class",
}
"""Parameters of requests that are condition keys ("Policy keys in Amazon S3")."""


def _s3_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    name = context.operation
    action = f"s3:{S3_ACTIONS.get(name, name)}"
    if name == "ListBuckets":
        yield RequiredPermission(action, "*")
        return
    keys = {key: [str(params[member])] for member, key in S3_CONDITION_KEYS.items() if member in params}
    keys["s3:signatureversion"] = ["AWS4-HMAC-SHA256"]
    held = find_bucket(context.tables, params["Bucket"])
    if held is not None:
        keys |= {"aws:resourceaccount": [held.account], "s3:resourceaccount": [held.account]}
    if params.get("Tagging") and isinstance(params["Tagging"], str):
        tags = parse_qsl(params["Tagging"], keep_blank_values=True)
        keys |= {f"s3:requestobjecttag/{key.lower()}": [value] for key, value in tags}
        keys["s3:requestobjecttagkeys"] = [key for key, _ in tags]
    bucket = f"arn:{context.partition}:s3:::{params['Bucket']}"
    if name == "DeleteObjects":
        for item in params["Delete"]["Objects"]:
            yield RequiredPermission(action, f"{bucket}/{item['Key']}", keys)
        return
    if "Key" not in params:
        yield RequiredPermission(action, bucket, keys)
        return
    stored = held.objects.get(params["Key"]) if held is not None else None
    if stored is not None:
        keys |= {f"s3:existingobjecttag/{key.lower()}": [value] for key, value in stored.tags.items()}
    yield RequiredPermission(action, f"{bucket}/{params['Key']}", keys)
    if name == "GetObjectAttributes":
        yield RequiredPermission("s3:GetObject", f"{bucket}/{params['Key']}", keys)
    if params.get("Tagging") and name != "PutObjectTagging":
        yield RequiredPermission("s3:PutObjectTagging", f"{bucket}/{params['Key']}", keys)
    if params.get("CopySource"):
        source = unquote(str(params["CopySource"]).partition("?versionId=")[0]).lstrip("/")
        yield RequiredPermission("s3:GetObject", f"arn:{context.partition}:s3:::{source}")
    if name in {"GetObject", "HeadObject"} and stored is None:
        # Who may not list is not told what there is: 403 instead of 404.
        yield RequiredPermission("s3:ListBucket", bucket)


def _ec2_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Return what a call of EC2 needs.

    A creating action is asked for each new resource and for each source. A new resource has no id yet: its
    ARN ends in an asterisk, which ``snapshot/${*}`` matches and ``snapshot/snap-*`` does not ("Example
    policies to control access the Amazon EC2 API", copying snapshots). With tags it is asked for
    ``ec2:CreateTags`` on the new resource too, with ``ec2:CreateAction`` ("Grant permission to tag Amazon EC2
    resources during creation"); a call of CreateTags has no such key.

    Sources: CopyImage since October 2024 ("Grant permissions to copy Amazon EC2 AMIs": the snapshots of the
    source are copied with it and are not asked for), CopySnapshot since April 2025 ("Example policies ...":
    both snapshots), CreateVolume, RegisterImage.

    Assumptions, because no page says it: the source of CopyImage has its tags as ``aws:ResourceTag``; the ARN
    of a source in another region names that region; a source is asked with the request's tags for its kind,
    so a condition on these alone tells nothing about the source.
    """
    name, action = context.operation, f"ec2:{context.operation}"
    if name == "DescribeImageReferences":
        yield from _reference_permissions(context, params)
    if name.startswith(("Describe", "Get")) and name != "GetConsoleOutput":
        yield RequiredPermission(action, "*")
        return
    if name == "RunInstances":
        yield from _launch_permissions(context, params)
    else:
        region = params.get("SourceRegion") or context.region
        given = {kind: _request_tags(params, kind) for kind, _ in RESOURCE_TYPES.values()}
        created = [
            RequiredPermission(
                action, ec2_arn(context, kind, "*"), given[kind] | _new_resource_keys(context, params, kind)
            )
            for kind in CREATED_RESOURCES.get(name, ())
        ]
        named = []
        for resource_id in _named_resources(context, params):
            kind = _resource_type(resource_id)
            keys = given[kind] | _existing_resource_keys(context, resource_id, region)
            named.append(
                RequiredPermission(
                    action, _resource_arn(context, resource_id, region), keys | _change_keys(params)
                )
            )
        yield from [*created, *named] or [RequiredPermission(action, "*")]
    if name == "DeregisterImage" and params.get("DeleteAssociatedSnapshots"):
        # AWS would deregister and tell ``missing-permissions`` of each snapshot; here all of it is refused.
        image = _find_resource(context, params["ImageId"], context.region)
        for snapshot_id in image.snapshot_ids() if image is not None else ():
            yield _permission_on_existing(context, "ec2:DeleteSnapshot", snapshot_id)
    for specification in params.get("TagSpecifications") or ():
        if specification.get("Tags"):
            kind = specification.get("ResourceType", "*")
            tags = _tag_keys(specification["Tags"])
            yield _create_tags_permission(context, kind, tags, name)


def _create_tags_permission(
    context: Context, kind: str, tags: dict[str, list[str]], name: str
) -> RequiredPermission:
    """Return the right to tag what an action creates."""
    return RequiredPermission(
        "ec2:CreateTags", ec2_arn(context, kind, "*"), {**tags, "ec2:createaction": [name]}
    )


def _launch_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Return what RunInstances needs ("Example policies to control access the Amazon EC2 API", launching).

    A snapshot is asked for when the call or its launch template names it; the snapshots of the AMI come with
    the AMI, as ``ec2:ParentSnapshot`` of the new volumes. Networks are not emulated: their ARNs end in an
    asterisk. Assumption: an instance profile has the role of its own name, as the console makes it.
    """
    action, template = "ec2:RunInstances", None
    asked = params
    with suppress(AwsError):  # an unknown template is refused by the operation itself
        if "LaunchTemplate" in params:
            template = find_template(context, params["LaunchTemplate"])
            asked = merge_launch(context, params)
    reference = str(asked.get("ImageId", ""))
    if reference.startswith(PARAMETER_PREFIX):
        name = reference.removeprefix(PARAMETER_PREFIX)
        yield RequiredPermission("ssm:GetParameters", _parameter_arn(context, name))
    image_id = find_image_id(context, reference) or ""
    through = (
        {} if template is None else {"ec2:launchtemplate": [_resource_arn(context, template.template_id)]}
    )
    profile = asked.get("IamInstanceProfile") or {}
    if profile:
        role_name = (profile.get("Name") or profile.get("Arn", "")).rpartition("/")[2]
        yield pass_role_permission(context, role_name, "ec2.amazonaws.com")
    zone = (asked.get("Placement") or {}).get("AvailabilityZone") or zones_of(context.region)[0]
    market = (asked.get("InstanceMarketOptions") or {}).get("MarketType")
    metadata = asked.get("MetadataOptions") or {}
    instance = {
        "ec2:availabilityzone": [zone],
        "ec2:instancetype": [asked.get("InstanceType", "m1.small")],
        "ec2:rootdevicetype": ["ebs"],
        "ec2:tenancy": ["default"],
    }
    instance |= {"ec2:instancemarkettype": [market]} if market else {}
    instance |= {"ec2:metadatahttptokens": [metadata["HttpTokens"]]} if "HttpTokens" in metadata else {}
    for kind, keys in (("instance", instance), ("network-interface", {"ec2:availabilityzone": [zone]})):
        tags = _request_tags(asked, kind)
        yield RequiredPermission(action, ec2_arn(context, kind, "*"), tags | keys | through)
    for kind in ("security-group", "subnet"):
        yield RequiredPermission(action, ec2_arn(context, kind, "*"), through)
    named = [image_id] if _resource_type(image_id) == "image" else []
    named += [template.template_id] if template is not None else []
    named += _named_resources(context, {"BlockDeviceMappings": asked.get("BlockDeviceMappings")})
    for resource_id in named:
        yield RequiredPermission(
            action,
            _resource_arn(context, resource_id),
            _existing_resource_keys(context, resource_id) | through,
        )
    image = _find_resource(context, image_id, context.region)
    devices = list(asked.get("BlockDeviceMappings") or ())
    with suppress(AwsError):  # devices that do not fit are refused by the operation itself
        devices = launch_devices(image, devices) if image is not None else devices
    for device in devices:
        keys = _volume_keys(context, device.get("Ebs") or {}, zone)
        yield RequiredPermission(
            action, ec2_arn(context, "volume", "*"), _request_tags(asked, "volume") | keys | through
        )


def pass_role_permission(context: Context, role_name: str, service: str) -> RequiredPermission:
    """Return the right to hand a role to a service ("Grant a user permissions to pass a role")."""
    role = context.table("roles", region="").get(role_name)
    arn = role.arn if role is not None else f"arn:{context.partition}:iam::{context.account}:role/{role_name}"
    keys = {**global_condition_keys(context), "iam:passedtoservice": [service]}
    return RequiredPermission("iam:PassRole", arn, keys)


def _reference_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Return what the caller must be allowed besides: EC2 looks for references as its caller."""
    kinds = {one.get("ResourceType", "") for one in params.get("ResourceTypes") or ()}
    keys = {"aws:calledvia": ["ec2-images.amazonaws.com"]}
    anything = f"arn:{context.partition}:ssm:{context.region}:{context.account}:parameter/*"
    for kind, actions in REFERENCE_ACTIONS.items():
        if kind in kinds or params.get("IncludeAllResourceTypes"):
            for action in actions:
                yield RequiredPermission(action, anything if action == "ssm:GetParameters" else "*", keys)


def _named_resources(context: Context, params: Params) -> list[str]:
    """Return every id of a resource that a request names, at any depth, each once."""
    found = _ids_in(params)
    if "LaunchTemplateName" in params and context.operation != "CreateLaunchTemplate":
        with suppress(AwsError):
            found[find_template(context, params).template_id] = None
    return list(found)


def _ids_in(value: Any) -> dict[str, None]:
    found: dict[str, None] = {}
    if isinstance(value, str):
        if _resource_type(value):
            found[value] = None
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in MEMBERS_WITHOUT_IDS:
                found |= _ids_in(item)
    elif isinstance(value, list):
        for item in value:
            found |= _ids_in(item)
    return found


def _resource_type(resource_id: str) -> str:
    """Return the kind of an id; "" for a text that is none."""
    matching = [p for p in RESOURCE_TYPES if resource_id.startswith(p) and resource_id != p]
    return RESOURCE_TYPES[matching[0]][0] if matching else ""


def _find_resource(context: Context, resource_id: str, region: str) -> Any | None:
    """Return the resource of an id, whoever owns it."""
    for prefix, (_, table) in RESOURCE_TYPES.items():
        if resource_id.startswith(prefix):
            for (_, place), resources in context.tables.everywhere(table).items():
                if place == region and resource_id in resources:
                    return resources[resource_id]
    return None


def _resource_arn(context: Context, resource_id: str, region: str = "") -> str:
    return ec2_arn(context, _resource_type(resource_id), resource_id, region=region)


def _permission_on_existing(context: Context, action: str, resource_id: str) -> RequiredPermission:
    return RequiredPermission(
        action, _resource_arn(context, resource_id), _existing_resource_keys(context, resource_id)
    )


def _existing_resource_keys(context: Context, resource_id: str, region: str = "") -> dict[str, list[str]]:
    """Return the condition keys of a resource that there is.

    Tags of a resource that another account shared are not known to the caller's account ("Share an AMI with
    specific AWS accounts"), so they are no keys.
    """
    found, kind = _find_resource(context, resource_id, region or context.region), _resource_type(resource_id)
    keys = {"ec2:region": [context.region]}
    if found is None:
        return keys
    if getattr(found, "owner", context.account) == context.account:
        for key, value in found.tags.items():
            for service in ("aws", "ec2"):
                keys.setdefault(f"{service}:resourcetag/{key.lower()}", []).append(value)
    if kind == "image":
        keys |= {
            "ec2:imageid": [resource_id],
            "ec2:imagetype": ["machine"],
            "ec2:owner": [found.owner],
            "ec2:public": [str(found.public()).lower()],
            "ec2:rootdevicetype": [found.root_type],
        }
    elif kind == "snapshot":
        volume = f"arn:{context.partition}:ec2:{found.region}:{found.owner}:volume/{found.volume_id}"
        keys |= {
            "ec2:encrypted": [str(found.encrypted).lower()],
            "ec2:owner": [found.owner],
            "ec2:parentvolume": [volume],
            "ec2:snapshotid": [resource_id],
            "ec2:snapshottime": [f"{found.started:%Y-%m-%dT%H:%M:%SZ}"],
            "ec2:volumesize": [str(found.size_gib)],
        }
    elif kind == "volume":
        keys |= {
            "ec2:availabilityzone": [found.zone],
            "ec2:encrypted": [str(found.encrypted).lower()],
            "ec2:volumeid": [resource_id],
            "ec2:volumesize": [str(found.size_gib)],
            "ec2:volumetype": [found.kind],
        }
    elif kind == "instance":
        keys |= {
            "ec2:availabilityzone": [found.zone],
            "ec2:instanceid": [resource_id],
            "ec2:instancetype": [found.kind],
            "ec2:rootdevicetype": ["ebs"],
            "ec2:tenancy": ["default"],
        }
    return keys


def _new_resource_keys(context: Context, params: Params, kind: str) -> dict[str, list[str]]:
    """Return what is known of a resource before it is made."""
    keys = {"ec2:region": [context.region]}
    if kind in TYPES_WITHOUT_ACCOUNT:
        keys["ec2:owner"] = [context.account]
    if context.operation == "CreateSnapshot":
        keys["ec2:parentvolume"] = [ec2_arn(context, "volume", params["VolumeId"])]
    elif context.operation == "CopySnapshot":
        region = params.get("SourceRegion", "")
        keys["ec2:parentsnapshot"] = [ec2_arn(context, "snapshot", params["SourceSnapshotId"], region=region)]
    elif context.operation == "CreateVolume":
        keys |= _volume_keys(context, params, params.get("AvailabilityZone", ""))
    return keys


def _volume_keys(context: Context, ebs: Params, zone: str) -> dict[str, list[str]]:
    """Return the condition keys of a volume that is about to be made."""
    keys = {"ec2:availabilityzone": [zone], "ec2:volumetype": [ebs.get("VolumeType", "gp2")]}
    if ebs.get("VolumeSize"):
        keys["ec2:volumesize"] = [str(ebs["VolumeSize"])]
    if "Encrypted" in ebs:
        keys["ec2:encrypted"] = [str(bool(ebs["Encrypted"])).lower()]
    if ebs.get("SnapshotId"):
        keys["ec2:parentsnapshot"] = [ec2_arn(context, "snapshot", ebs["SnapshotId"])]
    return keys


def _change_keys(params: Params) -> dict[str, list[str]]:
    """Return the keys of what a request asks to do to a resource: tags, attributes, sharing."""
    keys = _tag_keys(params.get("Tags") or ())
    if params.get("Attribute"):
        keys["ec2:attribute"] = [params["Attribute"]]
    changed = {
        word.lower(): list((params.get("CreateVolumePermission") or {}).get(word) or ())
        for word in ("Add", "Remove")
    }
    operation = params.get("OperationType", "")
    changed.setdefault(operation, []).extend({"UserId": one} for one in params.get("UserIds") or ())
    changed[operation].extend({"Group": one} for one in params.get("GroupNames") or ())
    for word in ("add", "remove"):
        for entry in changed[word]:
            for member, value in entry.items():
                keys.setdefault(f"ec2:{word}/{member.lower()}", []).append(value)
    return keys


def _request_tags(params: Params, kind: str) -> dict[str, list[str]]:
    """Return the keys of the tags that a request gives to new resources of a kind."""
    return _tag_keys(
        tag
        for specification in params.get("TagSpecifications") or ()
        if specification.get("ResourceType") == kind
        for tag in specification.get("Tags", ())
    )


def _tag_keys(tags: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    known = list(tags)
    keys = {f"aws:requesttag/{tag['Key'].lower()}": [tag.get("Value", "")] for tag in known}
    return keys | ({"aws:tagkeys": [tag["Key"] for tag in known]} if known else {})


def ec2_arn(context: Context, kind: str, name: str, *, region: str = "") -> str:
    """Return the ARN of a resource of EC2; images and snapshots have no account in theirs."""
    account = "" if kind in TYPES_WITHOUT_ACCOUNT else context.account
    return f"arn:{context.partition}:ec2:{region or context.region}:{account}:{kind}/{name}"


def _ebs_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Return what a call of the EBS direct APIs needs.

    StartSnapshot is asked for the new snapshot alone, with its parent as the key ``ebs:ParentSnapshot``
    ("Actions, resources, and condition keys for Amazon Elastic Block Store"). That table has
    ``aws:ResourceTag`` for StartSnapshot too, but nothing says whose tags: here none, so no policy can
    compare the tags of the parent. Assumption: ``ec2:CreateTags`` for its tags has ``ec2:CreateAction`` with
    the value ``StartSnapshot``; the value is not documented.
    """
    action = f"ebs:{context.operation}"
    if context.operation == "StartSnapshot":
        new, tags = ec2_arn(context, "snapshot", "*"), _tag_keys(params.get("Tags") or ())
        keys = {**tags, "ebs:volumesize": [str(params["VolumeSize"])]}
        if params.get("Description"):
            keys["ebs:description"] = [params["Description"]]
        if params.get("ParentSnapshotId"):
            keys["ebs:parentsnapshot"] = [ec2_arn(context, "snapshot", params["ParentSnapshotId"])]
        yield RequiredPermission(action, new, keys)
        if tags:
            yield _create_tags_permission(context, "snapshot", tags, context.operation)
        return
    for name in ("SnapshotId", "FirstSnapshotId", "SecondSnapshotId"):
        if params.get(name):
            keys = _existing_resource_keys(context, params[name])
            keys = {key: value for key, value in keys.items() if key.startswith("aws:")}
            yield RequiredPermission(action, ec2_arn(context, "snapshot", params[name]), keys)


def _iam_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
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
    yield RequiredPermission(f"iam:{context.operation}", resource)


def _other_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    service = {"service-quotas": "servicequotas"}.get(context.service, context.service)
    resources = ["*"]
    names = params.get("Names") or params.get("Name") or params.get("Path")
    if context.service == "ssm" and names:
        resources = [_parameter_arn(context, name) for name in as_list(names)]
        if params.get("Tags"):
            yield from (RequiredPermission("ssm:AddTagsToResource", resource) for resource in resources)
        yield from _kms_permissions(context, params)
    elif context.service == "sns" and "TopicArn" in params:
        resources = [params["TopicArn"]]
    elif context.service == "sts" and "RoleArn" in params:
        role = context.table("roles", region="").get(params["RoleArn"].rpartition("/")[2])
        if role is not None and params["RoleArn"].split(":")[4:5] == [context.account]:
            keys = global_condition_keys(context)
            keys |= {"sts:externalid": [params["ExternalId"]]} if "ExternalId" in params else {}
            question = AccessRequest("sts:AssumeRole", params["RoleArn"], keys)
            decision = evaluate_resource_policy(
                role.trust_policy, context.principal, context.account, question
            )
            # A trust policy that names the caller is enough; one that names its account delegates.
            yield RequiredPermission("sts:AssumeRole", params["RoleArn"], granted=decision != DELEGATED)
            return
        resources = [params["RoleArn"]]
    for resource in resources:
        yield RequiredPermission(f"{service}:{context.operation}", resource)


def _kms_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Return what a call needs of KMS for the SecureString parameters that it decrypts or writes.

    Parameter Store asks KMS as its caller. The policy of ``aws/ssm`` lets every principal of the account use
    the key through Parameter Store, so that only a Deny in the caller's own policies keeps it from that; with
    a customer key the caller's policies must allow it ("Restricting decryption of SecureString parameter
    values", "AWS KMS encryption for AWS Systems Manager Parameter Store SecureString parameters").
    Assumption: a customer key has the default key policy, which leaves all to the policies of the account.
    """
    name = context.operation
    known = parameters(context)
    found: list[tuple[str, str]] = []  # key and parameter
    action = "kms:Decrypt"
    if name == "PutParameter":
        kept = known.get(parameter_name(params["Name"]))
        kind = params.get("Type") or (kept.newest.kind if kept is not None else "")
        action = "kms:GenerateDataKey" if params.get("Tier") == "Advanced" else "kms:Encrypt"
        if kind == "SecureString":
            with suppress(AwsError):  # a key that there is not is refused by the operation itself
                key = kms_key_arn(context, params.get("KeyId"))
                found = [(key, _parameter_arn(context, params["Name"]))]
    elif params.get("WithDecryption"):
        if name == "GetParametersByPath":
            path = f"{params['Path'].rstrip('/')}/"
            read = [p for name, p in known.items() if name.startswith(path)]
        else:
            asked = [parameter_name(one) for one in as_list(params.get("Names") or params["Name"])]
            read = [known[one] for one in (text.partition(":")[0] for text in asked) if one in known]
        found = [(v.key, p.arn) for p in read for v in p.versions if v.key]
    for key, parameter in dict.fromkeys(found):
        managed = key == ssm_managed_key(context)
        keys = {
            "aws:calledvia": ["ssm.amazonaws.com"],
            "aws:viaawsservice": ["true"],
            "kms:calleraccount": [context.account],
            "kms:encryptioncontext:parameter_arn": [parameter],
            "kms:encryptioncontextkeys": ["PARAMETER_ARN"],
            "kms:viaservice": [f"ssm.{context.region}.amazonaws.com"],
        }
        keys |= {"kms:resourcealiases": [SSM_KEY_ALIAS]} if managed else {}
        yield RequiredPermission(action, key, keys, granted=managed)


def _parameter_arn(context: Context, name: str) -> str:
    """Return the ARN of a parameter, however it is named; those that AWS publishes have no account."""
    if name.startswith("arn:"):
        return re.sub(r"^((?:[^:]*:){5}[^:]*):.*$", r"\1", name)  # a version or label is no part of it
    name = name.partition(":")[0].strip("/")
    account = "" if name.startswith("aws/service/") else context.account
    return f"arn:{context.partition}:ssm:{context.region}:{account}:parameter/{name}"


# May the caller do this: policies, evaluated before every operation runs.
#
# The sandbox's own operator may do everything, as an administrator may. Users and roles are held to their
# policies once they have any, or always with ``sandbox(enforce_iam=True)``. Bucket policies hold for
# everybody, the operator included (`s3.bucket_policies`); keys of AWS KMS as far as Parameter Store needs
# them. Permission boundaries, session policies, organizations, and the KMS keys of volumes, snapshots and
# objects are not evaluated.
#
# Texts: "Troubleshoot access denied error messages" in the IAM User Guide, and public transcripts of EC2.

ACCESS_DENIED_ERRORS: dict[str, tuple[str, int]] = {
    "ec2": ("UnauthorizedOperation", 403),
    "s3": ("AccessDenied", 403),
    "iam": ("AccessDenied", 403),
    "sts": ("AccessDenied", 403),
    "ebs": ("AccessDeniedException", 403),
    "ssm": ("AccessDeniedException", 400),
    "service-quotas": ("AccessDeniedException", 400),
    "sns": ("AuthorizationError", 403),
    "autoscaling": ("AccessDenied", 403),
}
"""Error code and HTTP status of a refusal, by service."""

IMPORT_SERVICE = "vmie.amazonaws.com"


class Authorizer:
    """Refuses what the caller's policies do not allow.

    Parameters
    ----------
    enforce
        Whether a user or role without any policy is refused everything, as on AWS.
    """

    def __init__(self, *, enforce: bool = False) -> None:
        self.enforce = enforce

    def __call__(self, context: Context, operation: Operation, params: Params) -> None:  # noqa: ARG002
        """Raise the service's refusal unless every action that the call needs is allowed.

        Raises
        ------
        AwsError
            With the action and the resource in its text. A caller who may not pass the role of an import
            is told that the role lacks permissions, as on AWS.
        """
        with context.lock:
            documents = self._documents(context)
            if documents is None and context.service != "s3":
                return
            for demand in required_permissions(context, params):
                reason = denial_reason(context, documents, demand)
                if reason:
                    raise access_denied(context, demand, reason)
            if documents is None:
                return
            if (context.service, context.operation) == ("ec2", "RunInstances"):
                _check_spot_role(context, documents, params)
            if (context.service, context.operation) == ("ec2", "ImportSnapshot"):
                _check_pass_role(context, documents, params.get("RoleName") or "vmimport")

    def _documents(self, context: Context) -> list[str] | None:
        """Return the caller's policies; None for one who is not held to any."""
        if is_administrator(context, context.principal):
            return None
        try:
            documents = policies_of_identity(context, find_identity(context, context.principal))
        except AwsError:  # a user or role that was deleted while its keys live on
            documents = []
        return documents if documents or self.enforce else None


def denial_reason(context: Context, documents: list[str] | None, demand: RequiredPermission) -> str:
    """Return why the caller may not do one action on one resource, in AWS's words; "" when it may."""
    question = AccessRequest(demand.action, demand.resource, demand.keys)
    if demand.action.startswith("s3:"):
        return s3_denial_reason(
            context.tables,
            question,
            account=context.account,
            principal=context.principal,
            documents=documents,
            root=is_administrator(context, context.principal),
        )
    decision = ALLOWED if documents is None else evaluate(documents, question)
    if decision == EXPLICIT_DENY:
        return "with an explicit deny in an identity-based policy"
    if decision == ALLOWED or demand.granted:
        return ""
    return f"because no identity-based policy allows the {demand.action} action"


def access_denied(context: Context, demand: RequiredPermission, reason: str) -> AwsError:
    """Return the refusal in the words of the service; S3 gives other accounts no reason."""
    code, status = ACCESS_DENIED_ERRORS[context.service]
    name = demand.resource.partition(":::")[2].partition("/")[0]
    bucket = find_bucket(context.tables, name) if context.service == "s3" else None
    if bucket is not None and bucket.account != context.account:
        return AwsError(code, "Access Denied", status=status)
    resource = f'"{demand.resource}"' if context.service == "s3" else demand.resource
    text = f"User: {context.principal} is not authorized to perform: {demand.action} on resource: {resource}"
    if context.service == "ec2":
        # AWS adds an encoded message that only sts:DecodeAuthorizationMessage can read.
        text = f"You are not authorized to perform this operation. {text}"
    return AwsError(code, f"{text} {reason}", status=status)


def _check_spot_role(context: Context, documents: list[str], params: Params) -> None:
    keys = {**global_condition_keys(context), "iam:awsservicename": [SPOT_SERVICE]}
    question = AccessRequest(CREATE_ROLE_ACTION, spot_role_arn(context), keys)
    if lacks_spot_role(context, params) and evaluate(documents, question) != ALLOWED:
        raise AwsError(
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role for "
            "EC2 Spot Instances.",
            status=403,
        )


def _check_pass_role(context: Context, documents: list[str], role_name: str) -> None:
    if denial_reason(context, documents, pass_role_permission(context, role_name, IMPORT_SERVICE)):
        raise AwsError(
            "InvalidParameter",
            f"The service role {role_name} provided does not exist or does not have sufficient permissions",
        )
