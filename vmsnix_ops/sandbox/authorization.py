"""Authorization: the permissions that a call needs, and the check of the caller's policies.

Most operations need the action of their own name. The exceptions and the ARNs follow the tables "Actions
defined by ..." of the Service Authorization Reference for Amazon EC2, Amazon EBS, Amazon S3, IAM and Systems
Manager, and "Required permissions for Amazon S3 API operations" in the Amazon S3 User Guide.

The sandbox's administrator may do everything. Users and roles need permissions once they have a policy, or
always with ``sandbox(enforce_iam=True)``. Bucket policies apply to everybody (`s3.buckets`). KMS keys are
checked only for Parameter Store. Permission boundaries, session policies and organizations are not evaluated.

Texts: "Troubleshoot access denied error messages" in the IAM User Guide, and public transcripts of EC2.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from vmsnix_ops.sandbox.core import ApiError, given, words
from vmsnix_ops.sandbox.credentials import credentials_table
from vmsnix_ops.sandbox.ec2.common import PARAMETER_PREFIX, RESOURCE_KINDS, find_image_id
from vmsnix_ops.sandbox.ec2.imports import VM_IMPORT_SERVICE, unusable_role
from vmsnix_ops.sandbox.ec2.instance_types import DEFAULT_INSTANCE_TYPE
from vmsnix_ops.sandbox.ec2.instances import (
    CREATE_ROLE_ACTION,
    SPOT_SERVICE,
    lacks_spot_role,
    launch_devices,
    launch_network,
    spot_role_arn,
)
from vmsnix_ops.sandbox.ec2.networks import zones_of
from vmsnix_ops.sandbox.ec2.templates import find_template, merge_launch
from vmsnix_ops.sandbox.iam import find_identity, is_administrator, policies_of_principal
from vmsnix_ops.sandbox.kms import find_stored_key, key_of_ciphertext, managed_key
from vmsnix_ops.sandbox.policies import (
    ALLOWED,
    DELEGATED,
    EXPLICIT_DENY,
    AccessRequest,
    as_list,
    evaluate,
    evaluate_resource_policy,
    request_tag_keys,
)
from vmsnix_ops.sandbox.s3.buckets import s3_denial_reason
from vmsnix_ops.sandbox.s3.store import versions_of
from vmsnix_ops.sandbox.ssm import SSM_KEY_ALIAS, kms_key_arn, parameter_name, parameters
from vmsnix_ops.sandbox.storage import StoredObject, find_bucket
from vmsnix_ops.sandbox.sts import tag_condition_keys
from vmsnix_ops.sandbox.wire.models import service_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.storage import Bucket


S3_ACTIONS: dict[str, str] = {
    "CompleteMultipartUpload": "PutObject",
    "CopyObject": "PutObject",
    "CreateMultipartUpload": "PutObject",
    "DeleteBucketLifecycle": "PutLifecycleConfiguration",
    "DeleteBucketEncryption": "PutEncryptionConfiguration",
    "DeleteBucketOwnershipControls": "PutBucketOwnershipControls",
    "DeleteBucketTagging": "PutBucketTagging",
    "DeleteObjects": "DeleteObject",
    "DeletePublicAccessBlock": "PutBucketPublicAccessBlock",
    "GetBucketAccelerateConfiguration": "GetAccelerateConfiguration",
    "GetBucketCors": "GetBucketCORS",
    "GetBucketEncryption": "GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "GetBucketNotificationConfiguration": "GetBucketNotification",
    "GetBucketReplication": "GetReplicationConfiguration",
    "GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "HeadBucket": "ListBucket",
    "HeadObject": "GetObject",
    "ListBuckets": "ListAllMyBuckets",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListObjectVersions": "ListBucketVersions",
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "ListParts": "ListMultipartUploadParts",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
    "UploadPart": "PutObject",
    "UploadPartCopy": "PutObject",
}
"""S3 actions whose name is not that of their operation."""

VERSION_ACTIONS: dict[str, str] = {
    f"s3:{action}": f"s3:{action.replace('Object', 'ObjectVersion')}"
    for action in words(
        "DeleteObject DeleteObjectTagging GetObject GetObjectAcl GetObjectAttributes GetObjectTagging "
        "PutObjectTagging"
    )
}
"""The actions of requests that name a version."""

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
"""The resources that EC2 actions create. RunInstances also creates a volume for each device."""

RESOURCE_TYPES: dict[str, tuple[str, str]] = {
    kind.prefix + "-": (kind.resource_type, kind.table) for kind in RESOURCE_KINDS
}
"""By the prefix of an EC2 ID: the resource type in its ARN, and its table in the sandbox."""

REFERENCE_ACTIONS: dict[str, tuple[str, ...]] = {
    "ec2:Instance": ("ec2:DescribeInstances",),
    "ec2:LaunchTemplate": ("ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions"),
    "ssm:Parameter": ("ssm:DescribeParameters", "ssm:GetParameters"),
    "imagebuilder:ImageRecipe": ("imagebuilder:ListImageRecipes",),
    "imagebuilder:ContainerRecipe": ("imagebuilder:ListContainerRecipes", "imagebuilder:GetContainerRecipe"),
}
"""The resource types of DescribeImageReferences, and the actions that the caller needs (EC2 User Guide)."""

MEMBERS_WITHOUT_IDS = frozenset(
    words("ClientToken Description DiskContainer LaunchTemplateData Name TagSpecifications Tags UserData")
)
"""Members of EC2 requests that name no resource of the call: free text, and the data of a template."""

TYPES_WITHOUT_ACCOUNT = frozenset({"image", "snapshot"})  # their ARNs leave the account empty
ALWAYS_ALLOWED = frozenset(
    {("sts", "GetCallerIdentity"), ("sts", "GetSessionToken"), ("sts", "AssumeRoleWithWebIdentity")}
)


@dataclass(frozen=True)
class RequiredPermission(AccessRequest):
    """One action on one resource, with the condition keys of the call.

    With `granted`, a policy of the resource already allows it to the whole account: only a Deny refuses it.
    """

    granted: bool = False


def required_permissions(context: Context, params: Params) -> list[RequiredPermission]:
    """Return every permission that the caller needs for this call."""
    if (context.service, context.operation) in ALWAYS_ALLOWED:
        return []
    by_service = {
        "s3": _s3_permissions,
        "ec2": _ec2_permissions,
        "ebs": _ebs_permissions,
        "iam": _iam_permissions,
        "kms": _key_permissions,
        "rbin": _rbin_permissions,
        "sns": _sns_permissions,
        "ssm": _ssm_permissions,
        "sts": _sts_permissions,
    }
    permissions = by_service.get(context.service, _default_permissions)(context, params)
    common = global_condition_keys(context)
    return [replace(permission, keys={**common, **permission.keys}) for permission in permissions]


def global_condition_keys(context: Context) -> dict[str, list[str]]:
    """Return the condition keys that every call has ("AWS global condition context keys").

    ``aws:PrincipalArn`` of a session is its role. ``aws:SecureTransport`` is true, because the endpoints of
    AWS use TLS.
    """
    principal, name = context.principal, context.principal.rpartition("/")[2]
    principal_type = "Account" if principal.endswith(":root") else "User" if principal else "Anonymous"
    if ":assumed-role/" in principal:
        principal_type, principal = "AssumedRole", _role_arn(context, principal.split("/")[1])
    credential = credentials_table(context.tables).get(context.access_key)
    now = context.clock.now()
    keys = condition_keys(
        "aws",
        currenttime=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        epochtime=int(now.timestamp()),
        principalisawsservice=False,
        principaltype=principal_type,
        requestedregion=context.region,
        securetransport=True,
        sourceip="127.0.0.1",
        viaawsservice=False,
    )
    if credential is not None:
        keys["aws:userid"] = [credential.user_id]
        tags = _principal_tags(context) | credential.tags
        keys |= {f"aws:principaltag/{key.lower()}": [value] for key, value in tags.items()}
    if principal:  # "AWS global condition context keys": an anonymous request has none of these
        keys |= condition_keys("aws", principalaccount=context.account, principalarn=principal)
    return keys | (condition_keys("aws", username=name) if principal_type == "User" else {})


def condition_keys(service: str, **values: object) -> dict[str, list[str]]:
    """Return condition keys of a service with one value each; True is ``true``."""
    return {
        f"{service}:{name}": [str(value).lower() if isinstance(value, bool) else str(value)]
        for name, value in values.items()
    }


def _principal_tags(context: Context) -> dict[str, str]:
    """Return the tags of the calling user, or of the role of the calling session."""
    with suppress(ApiError):  # an administrator, or a deleted user
        return find_identity(context, context.principal).tags
    return {}


def _role_arn(context: Context, role_name: str) -> str:
    role = context.table("roles", region="").get(role_name)
    return role.arn if role is not None else context.arn("iam", f"role/{role_name}", region="")


S3_CONDITION_KEYS = words(
    "ACL CopySource Delimiter IfMatch IfNoneMatch MaxKeys MetadataDirective ObjectOwnership Prefix "
    "SSEKMSKeyId ServerSideEncryption StorageClass VersionId"
)
"""Request parameters whose header or query key is a condition key ("Policy keys in Amazon S3")."""


def _s3_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    name = context.operation
    action = f"s3:{S3_ACTIONS.get(name, name)}"
    if name == "ListBuckets":
        yield RequiredPermission(action, "*")
        return
    shape: Any = service_model("s3").operation(name).input_shape
    keyed = {n: shape.members[n].serialization["name"] for n in S3_CONDITION_KEYS if n in params}
    keys = {f"s3:{key.lower()}": [str(params[n])] for n, key in keyed.items()}
    keys |= context.signature_keys
    bucket = find_bucket(context.tables, params["Bucket"])
    if bucket is not None:
        keys |= {"aws:resourceaccount": [bucket.account], "s3:resourceaccount": [bucket.account]}
    if params.get("Tagging") and isinstance(params["Tagging"], str):
        tags = parse_qsl(params["Tagging"], keep_blank_values=True)
        keys |= {f"s3:requestobjecttag/{key.lower()}": [value] for key, value in tags}
        keys["s3:requestobjecttagkeys"] = [key for key, _ in tags]
    bucket_arn = f"arn:{context.partition}:s3:::{params['Bucket']}"
    if name == "DeleteObjects":
        for item in params["Delete"]["Objects"]:
            needed = VERSION_ACTIONS[action] if "VersionId" in item else action
            yield RequiredPermission(needed, f"{bucket_arn}/{item['Key']}", keys)
        return
    if "Key" not in params:
        yield RequiredPermission(action, bucket_arn, keys)
        return
    object_arn = f"{bucket_arn}/{params['Key']}"
    stored = _stored_object(bucket, params)
    if stored is not None:
        keys |= {f"s3:existingobjecttag/{key.lower()}": [value] for key, value in stored.tags.items()}
    versioned = VERSION_ACTIONS if "VersionId" in params else {}
    yield RequiredPermission(versioned.get(action, action), object_arn, keys)
    if name == "GetObjectAttributes":
        yield RequiredPermission(versioned.get("s3:GetObject", "s3:GetObject"), object_arn, keys)
    if params.get("Tagging") and name != "PutObjectTagging":
        yield RequiredPermission("s3:PutObjectTagging", object_arn, keys)
    if params.get("CopySource"):
        path, _, version = str(params["CopySource"]).partition("?versionId=")
        source = unquote(path).lstrip("/")
        read = "s3:GetObjectVersion" if version else "s3:GetObject"
        yield RequiredPermission(read, f"arn:{context.partition}:s3:::{source}")
    if name in {"GetObject", "HeadObject"} and stored is None and "VersionId" not in params:
        # Without s3:ListBucket, S3 does not reveal that the key is missing: 403 instead of 404.
        yield RequiredPermission("s3:ListBucket", bucket_arn)


def _stored_object(bucket: Bucket | None, params: Params) -> StoredObject | None:
    """Return the object that a call names, for the condition keys of its tags."""
    if bucket is None:
        return None
    versions = versions_of(bucket, params["Key"])
    found = [one for one in versions if params.get("VersionId") in {None, one.version_id}]
    return found[0] if found and isinstance(found[0], StoredObject) else None


def _ec2_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Yield the permissions of an EC2 call.

    A creating action is checked on each new resource and on each source. A new resource has no ID yet: its
    ARN ends with an asterisk, which ``snapshot/${*}`` matches and ``snapshot/snap-*`` does not ("Example
    policies to control access the Amazon EC2 API", copying snapshots). With tags, ``ec2:CreateTags`` is
    checked on the new resource too, with ``ec2:CreateAction`` ("Grant permission to tag Amazon EC2 resources
    during creation"); a call of CreateTags has no such key.

    Sources: CopyImage since October 2024 ("Grant permissions to copy Amazon EC2 AMIs": the snapshots of the
    source are copied with it and not checked), CopySnapshot since April 2025 ("Example policies ...": both
    snapshots), CreateVolume, RegisterImage.

    Assumptions, because no page documents it: the source of CopyImage has its tags as ``aws:ResourceTag``;
    the ARN of a source in another region contains that region; a source is checked with the request's tags
    for its resource type, so a condition on these tags alone does not restrict the source.
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
        tags = {kind: _request_tags(params, kind) for kind, _ in RESOURCE_TYPES.values()}
        permissions = [
            RequiredPermission(
                action, ec2_arn(context, kind, "*"), tags[kind] | _new_resource_keys(context, params, kind)
            )
            for kind in CREATED_RESOURCES.get(name, ())
        ]
        for resource_id in _named_resources(context, params):
            keys = tags[_resource_type(resource_id)] | _existing_resource_keys(context, resource_id, region)
            arn = _resource_arn(context, resource_id, region)
            permissions.append(RequiredPermission(action, arn, keys | _change_keys(params)))
        yield from permissions or [RequiredPermission(action, "*")]
    for specification in params.get("TagSpecifications") or ():
        if specification.get("Tags"):
            kind = specification.get("ResourceType", "*")
            yield _create_tags_permission(context, kind, request_tag_keys(specification["Tags"]), name)


def _create_tags_permission(
    context: Context, kind: str, tags: dict[str, list[str]], name: str
) -> RequiredPermission:
    """Return the permission to tag the new resource of an action."""
    keys = {**tags, "ec2:createaction": [name]}
    return RequiredPermission("ec2:CreateTags", ec2_arn(context, kind, "*"), keys)


def _launch_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Yield the permissions of RunInstances ("Example policies to control access the Amazon EC2 API").

    A snapshot is checked when the call or its launch template names it. The snapshots of the AMI belong to
    the AMI and appear as ``ec2:ParentSnapshot`` of the new volumes. Assumption: without an instance
    profile of this name, the role of the same name is meant, as the console creates it.
    """
    action, template = "ec2:RunInstances", None
    launch = params
    with suppress(ApiError):  # the operation itself refuses an unknown template
        if "LaunchTemplate" in params:
            template = find_template(context, params["LaunchTemplate"])
            launch = merge_launch(context, params)
    reference = str(launch.get("ImageId", ""))
    if reference.startswith(PARAMETER_PREFIX):
        name = reference.removeprefix(PARAMETER_PREFIX)
        yield RequiredPermission("ssm:GetParameters", _parameter_arn(context, name))
    image_id = find_image_id(context, reference) or ""
    template_arn = [_resource_arn(context, template.template_id)] if template is not None else []
    template_keys = {"ec2:launchtemplate": template_arn} if template_arn else {}
    profile = launch.get("IamInstanceProfile") or {}
    if profile:
        role_name = (profile.get("Name") or profile.get("Arn", "")).rpartition("/")[2]
        known = context.table("instance_profiles", region="").get(role_name)
        role_name = known.role if known is not None else role_name
        yield pass_role_permission(context, role_name, "ec2.amazonaws.com")
    zone = (launch.get("Placement") or {}).get("AvailabilityZone") or zones_of(context.region)[0]
    network = None
    with suppress(ApiError):  # the operation itself refuses an unknown subnet or security group
        network = launch_network(context, launch)
        zone = network.subnet.zone
    market = (launch.get("InstanceMarketOptions") or {}).get("MarketType")
    metadata = launch.get("MetadataOptions") or {}
    instance = condition_keys(
        "ec2",
        availabilityzone=zone,
        instancetype=launch.get("InstanceType", DEFAULT_INSTANCE_TYPE),
        rootdevicetype="ebs",
        tenancy="default",
        **given(instancemarkettype=market, metadatahttptokens=metadata.get("HttpTokens")),
    )
    for kind, keys in (("instance", instance), ("network-interface", {"ec2:availabilityzone": [zone]})):
        tags = _request_tags(launch, kind)
        yield RequiredPermission(action, ec2_arn(context, kind, "*"), tags | keys | template_keys)
    named = [image_id] if _resource_type(image_id) == "image" else []
    named += [network.subnet.subnet_id, *network.group_ids] if network is not None else []
    named += [template.template_id] if template is not None else []
    named += _named_resources(context, {"BlockDeviceMappings": launch.get("BlockDeviceMappings")})
    for resource_id in named:
        keys = _existing_resource_keys(context, resource_id) | template_keys
        yield RequiredPermission(action, _resource_arn(context, resource_id), keys)
    image = _find_resource(context, image_id, context.region)
    devices = list(launch.get("BlockDeviceMappings") or ())
    with suppress(ApiError):  # the operation itself refuses invalid devices
        devices = launch_devices(image, devices) if image is not None else devices
    for device in devices:
        keys = _request_tags(launch, "volume") | _volume_keys(context, device.get("Ebs") or {}, zone)
        yield RequiredPermission(action, ec2_arn(context, "volume", "*"), keys | template_keys)


def pass_role_permission(context: Context, role_name: str, service: str) -> RequiredPermission:
    """Return the permission to pass a role to a service ("Grant a user permissions to pass a role")."""
    keys = {**global_condition_keys(context), "iam:passedtoservice": [service]}
    return RequiredPermission("iam:PassRole", _role_arn(context, role_name), keys)


def _reference_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Yield the further permissions of DescribeImageReferences: EC2 calls the services as its caller."""
    kinds = {entry.get("ResourceType", "") for entry in params.get("ResourceTypes") or ()}
    keys = {"aws:calledvia": ["ec2-images.amazonaws.com"]}
    for kind, actions in REFERENCE_ACTIONS.items():
        if kind in kinds or params.get("IncludeAllResourceTypes"):
            for action in actions:
                resource = context.arn("ssm", "parameter/*") if action == "ssm:GetParameters" else "*"
                yield RequiredPermission(action, resource, keys)


def _named_resources(context: Context, params: Params) -> list[str]:
    """Return every resource ID in a request, at any depth, without repetition."""
    found = list(_ids_in(params))
    if "LaunchTemplateName" in params and context.operation != "CreateLaunchTemplate":
        with suppress(ApiError):
            found.append(find_template(context, params).template_id)
    return list(dict.fromkeys(found))


def _ids_in(value: Any) -> Iterator[str]:
    if isinstance(value, str) and _resource_type(value):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in MEMBERS_WITHOUT_IDS:
                yield from _ids_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _ids_in(item)


def _resource_type(resource_id: str) -> str:
    """Return the resource type of an EC2 ID; "" for other text."""
    matching = [p for p in RESOURCE_TYPES if resource_id.startswith(p) and resource_id != p]
    return RESOURCE_TYPES[matching[0]][0] if matching else ""


def _find_resource(context: Context, resource_id: str, region: str) -> Any | None:
    """Return the resource of an ID, whichever account owns it."""
    for prefix, (_, table) in RESOURCE_TYPES.items():
        if resource_id.startswith(prefix):
            found = context.tables.find(table, region, resource_id)
            if found is None and (one := context.tables.find(f"recycled_{table}", region, resource_id)):
                return one.resource
            return found
    return None


def _resource_arn(context: Context, resource_id: str, region: str = "") -> str:
    return ec2_arn(context, _resource_type(resource_id), resource_id, region=region)


def _existing_resource_keys(context: Context, resource_id: str, region: str = "") -> dict[str, list[str]]:
    """Return the condition keys of an existing resource.

    Another account does not see the tags of a shared resource ("Share an AMI with specific AWS accounts"),
    so they are no condition keys for it.
    """
    found, kind = _find_resource(context, resource_id, region or context.region), _resource_type(resource_id)
    keys = condition_keys("ec2", region=context.region)
    if found is None:
        return keys
    if getattr(found, "owner", context.account) == context.account:
        for key, value in found.tags.items():
            for service in ("aws", "ec2"):
                keys.setdefault(f"{service}:resourcetag/{key.lower()}", []).append(value)
    facts: dict[str, object] = {}
    if kind == "image":
        facts = {"imageid": resource_id, "imagetype": "machine", "owner": found.owner}
        facts |= {"public": found.public(), "rootdevicetype": found.root_type}
    elif kind == "snapshot":
        volume = f"arn:{context.partition}:ec2:{found.region}:{found.owner}:volume/{found.volume_id}"
        facts = {"encrypted": found.encrypted, "owner": found.owner, "parentvolume": volume}
        facts |= {"snapshotid": resource_id, "volumesize": found.size_gib}
        facts |= {"snapshottime": f"{found.started:%Y-%m-%dT%H:%M:%SZ}"}
    elif kind == "volume":
        facts = {"availabilityzone": found.zone, "encrypted": found.encrypted, "volumeid": resource_id}
        facts |= {"volumesize": found.size_gib, "volumetype": found.volume_type}
    elif kind in ("security-group", "subnet"):
        facts = {"vpc": ec2_arn(context, "vpc", found.vpc_id)}
        if kind == "subnet":
            facts |= {"availabilityzone": found.zone, "subnetid": resource_id}
    elif kind == "instance":
        facts = {"availabilityzone": found.zone, "instanceid": resource_id, "tenancy": "default"}
        facts |= {"instancetype": found.instance_type, "rootdevicetype": "ebs"}
    return keys | condition_keys("ec2", **facts)


def _new_resource_keys(context: Context, params: Params, kind: str) -> dict[str, list[str]]:
    """Return the condition keys of a resource before it is created."""
    facts: dict[str, object] = {"region": context.region}
    if kind in TYPES_WITHOUT_ACCOUNT:
        facts["owner"] = context.account
    if context.operation == "CreateSnapshot":
        facts["parentvolume"] = ec2_arn(context, "volume", params["VolumeId"])
    elif context.operation == "CopySnapshot":
        region = params.get("SourceRegion", "")
        facts["parentsnapshot"] = ec2_arn(context, "snapshot", params["SourceSnapshotId"], region=region)
    keys = condition_keys("ec2", **facts)
    if context.operation == "CreateVolume":
        keys |= _volume_keys(context, params, params.get("AvailabilityZone", ""))
    return keys


def _volume_keys(context: Context, ebs: Params, zone: str) -> dict[str, list[str]]:
    """Return the condition keys of a volume before it is created."""
    facts = {"availabilityzone": zone, "volumetype": ebs.get("VolumeType", "gp2")}
    facts |= given(volumesize=ebs.get("VolumeSize"))
    if "Encrypted" in ebs:
        facts["encrypted"] = bool(ebs["Encrypted"])
    if ebs.get("SnapshotId"):
        facts["parentsnapshot"] = ec2_arn(context, "snapshot", ebs["SnapshotId"])
    return condition_keys("ec2", **facts)


def _change_keys(params: Params) -> dict[str, list[str]]:
    """Return the condition keys of a change of a resource: its tags, attributes and permissions."""
    keys = request_tag_keys(params.get("Tags") or ())
    if params.get("Attribute"):
        keys["ec2:attribute"] = [params["Attribute"]]
    changed = {
        word.lower(): list((params.get("CreateVolumePermission") or {}).get(word) or ())
        for word in ("Add", "Remove")
    }
    operation = params.get("OperationType", "")
    changed.setdefault(operation, []).extend({"UserId": user} for user in params.get("UserIds") or ())
    changed[operation].extend({"Group": group} for group in params.get("GroupNames") or ())
    for word in ("add", "remove"):
        for entry in changed[word]:
            for member, value in entry.items():
                keys.setdefault(f"ec2:{word}/{member.lower()}", []).append(value)
    return keys


def _request_tags(params: Params, kind: str) -> dict[str, list[str]]:
    """Return the condition keys of the tags that a request sets on new resources of a type."""
    return request_tag_keys(
        tag
        for specification in params.get("TagSpecifications") or ()
        if specification.get("ResourceType") == kind
        for tag in specification.get("Tags", ())
    )


def _tagging_keys(params: Params, existing: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the condition keys of a request that adds or removes tags of a resource with existing tags."""
    tags = params.get("Tags") or ()
    keys = request_tag_keys(
        {"Key": one.get("TagKey", one.get("Key")), "Value": one.get("TagValue", one.get("Value", ""))}
        for one in tags
    )
    if isinstance(params.get("TagKeys"), list):
        keys["aws:tagkeys"] = params["TagKeys"]
    return keys | {f"aws:resourcetag/{key.lower()}": [value] for key, value in existing.items()}


def ec2_arn(context: Context, kind: str, name: str, *, region: str = "") -> str:
    """Return the ARN of an EC2 resource. Images and snapshots have no account in theirs."""
    account = "" if kind in TYPES_WITHOUT_ACCOUNT else context.account
    return f"arn:{context.partition}:ec2:{region or context.region}:{account}:{kind}/{name}"


def _ebs_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Yield the permissions of a call of the EBS direct APIs.

    StartSnapshot is checked on the new snapshot only, with its parent as the key ``ebs:ParentSnapshot``
    ("Actions, resources, and condition keys for Amazon Elastic Block Store"). That table also has
    ``aws:ResourceTag`` for StartSnapshot, but no page documents whose tags these are. Here they are missing,
    so no policy can compare the tags of the parent. Assumption: ``ec2:CreateTags`` for its tags has
    ``ec2:CreateAction`` with the value ``StartSnapshot``; the value is not documented.
    """
    action = f"ebs:{context.operation}"
    if context.operation == "StartSnapshot":
        tags = request_tag_keys(params.get("Tags") or ())
        facts = {"volumesize": params["VolumeSize"], **given(description=params.get("Description"))}
        if params.get("ParentSnapshotId"):
            facts["parentsnapshot"] = ec2_arn(context, "snapshot", params["ParentSnapshotId"])
        keys = tags | condition_keys("ebs", **facts)
        yield RequiredPermission(action, ec2_arn(context, "snapshot", "*"), keys)
        if tags:
            yield _create_tags_permission(context, "snapshot", tags, context.operation)
        return
    for name in ("SnapshotId", "FirstSnapshotId", "SecondSnapshotId"):
        if params.get(name):
            keys = _existing_resource_keys(context, params[name])
            keys = {key: value for key, value in keys.items() if key.startswith("aws:")}
            yield RequiredPermission(action, ec2_arn(context, "snapshot", params[name]), keys)


def _iam_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    resource = "*"
    if "RoleName" in params:
        resource = _role_arn(context, params["RoleName"])
    elif "UserName" in params:
        user = context.table("users", region="").get(params["UserName"])
        missing = context.arn("iam", f"user/{params['UserName']}", region="")
        resource = user.arn if user is not None else missing
    elif "PolicySourceArn" in params or "PolicyArn" in params:
        resource = params.get("PolicySourceArn") or params["PolicyArn"]
    elif "PolicyName" in params:
        resource = context.arn("iam", f"policy{params.get('Path', '/')}{params['PolicyName']}", region="")
    yield RequiredPermission(f"iam:{context.operation}", resource)


def _default_permissions(context: Context, _params: Params) -> Iterator[RequiredPermission]:
    prefixes = {"resourcegroupstaggingapi": "tag", "service-quotas": "servicequotas"}
    yield RequiredPermission(f"{prefixes.get(context.service, context.service)}:{context.operation}", "*")


def _key_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Yield the permissions of a call of KMS: on its key, and on its alias ("Actions defined by AWS KMS").

    Decrypt finds its key in the ciphertext.
    """
    action, alias = f"kms:{context.operation}", params.get("AliasName", "")
    key = None
    with suppress(ApiError):  # the operation itself refuses an unknown key
        if "CiphertextBlob" in params:
            key = key_of_ciphertext(context, params["CiphertextBlob"])
        elif name := params.get("KeyId") or params.get("TargetKeyId") or alias:
            key = find_stored_key(context, name)
    keys = _tagging_keys(params, {} if key is None else key.tags)
    bound = params.get("EncryptionContext") or {}
    keys |= {f"kms:encryptioncontext:{name.lower()}": [value] for name, value in bound.items()}
    keys |= {"kms:encryptioncontextkeys": list(bound)} if bound else {}
    keys["kms:calleraccount"] = [context.account]
    yield RequiredPermission(action, "*" if key is None else key.arn, keys)
    if alias and context.operation in {"CreateAlias", "DeleteAlias"}:
        yield RequiredPermission(action, context.arn("kms", alias), keys)


def _rbin_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Yield the permission of a call of Recycle Bin, with the keys of the rule and of the request."""
    arn = params.get("ResourceArn") or context.arn("rbin", f"rule/{params.get('Identifier', '*')}")
    rule = context.table("retention_rules").get(arn.rpartition("/")[2])
    keys = _tagging_keys(params, {} if rule is None else rule.tags)
    if rule is not None:
        keys["rbin:attribute/resourcetype"] = [rule.resource_type]
    elif "ResourceType" in params:
        keys["rbin:request/resourcetype"] = [params["ResourceType"]]
    resource = "*" if context.operation == "ListRules" else arn
    yield RequiredPermission(f"rbin:{context.operation}", resource, keys)


def _sns_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Yield the permission of a call of SNS: on its topic, which is the only resource type of SNS.

    The actions on one subscription have none ("Actions defined by Amazon SNS").
    """
    resource = params.get("TopicArn") or params.get("ResourceArn") or params.get("TargetArn") or "*"
    if "Name" in params:
        resource = context.arn("sns", params["Name"])
    tags = _tagging_keys(params, {})
    yield RequiredPermission(f"sns:{context.operation}", resource, tags)
    if tags and context.operation == "CreateTopic":
        yield RequiredPermission("sns:TagResource", resource, tags)


def _sts_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    action, arn = f"sts:{context.operation}", params.get("RoleArn", "*")
    role = context.table("roles", region="").get(arn.rpartition("/")[2])
    granted = False
    if role is not None and arn.split(":")[4:5] == [context.account]:
        keys = global_condition_keys(context) | tag_condition_keys(params)
        keys |= {"sts:externalid": [params["ExternalId"]]} if "ExternalId" in params else {}
        request = AccessRequest("sts:AssumeRole", arn, keys)
        decision = evaluate_resource_policy(role.trust_policy, context.principal, context.account, request)
        # A trust policy that names the caller is enough. One that names its account delegates to the
        # policies of the caller.
        granted = decision != DELEGATED
    tags = tag_condition_keys(params) if params.get("Tags") else {}
    yield RequiredPermission(action, arn, tags, granted=granted)
    if tags:
        yield RequiredPermission("sts:TagSession", arn, tags, granted=granted)


def _ssm_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    action = f"ssm:{context.operation}"
    names = params.get("Names") or params.get("Name") or params.get("Path") or params.get("ResourceId")
    if not names:
        yield RequiredPermission(action, "*")
        return
    arns = [_parameter_arn(context, name) for name in as_list(names)]
    if params.get("Tags"):
        yield from (RequiredPermission("ssm:AddTagsToResource", arn) for arn in arns)
    yield from _kms_permissions(context, params)
    yield from (RequiredPermission(action, arn) for arn in arns)


def _kms_permissions(context: Context, params: Params) -> Iterator[RequiredPermission]:
    """Yield the KMS permissions for the SecureString parameters that a call decrypts or writes.

    Parameter Store calls KMS as its caller. The policy of ``aws/ssm`` allows every principal of the account
    to use the key through Parameter Store, so only a Deny in the caller's own policies refuses it. A customer
    key must be allowed by the caller's policies ("Restricting decryption of SecureString parameter values",
    "AWS KMS encryption for AWS Systems Manager Parameter Store SecureString parameters"). Assumption: a
    customer key has the default key policy, which delegates to the policies of the account.
    """
    existing = parameters(context)
    used: list[tuple[str, str]] = []  # ARNs of key and parameter
    action = "kms:Decrypt"
    if context.operation == "PutParameter":
        known = existing.get(parameter_name(params["Name"]))
        kind = params.get("Type") or (known.newest.parameter_type if known is not None else "")
        action = "kms:GenerateDataKey" if params.get("Tier") == "Advanced" else "kms:Encrypt"
        if kind == "SecureString":
            with suppress(ApiError):  # the operation itself refuses an unknown key
                key = kms_key_arn(context, params.get("KeyId"))
                used = [(key, _parameter_arn(context, params["Name"]))]
    elif params.get("WithDecryption"):
        if context.operation == "GetParametersByPath":
            path = f"{params['Path'].rstrip('/')}/"
            read = [parameter for name, parameter in existing.items() if name.startswith(path)]
        else:
            requested = [parameter_name(text) for text in as_list(params.get("Names") or params["Name"])]
            names = [text.partition(":")[0] for text in requested]
            read = [existing[name] for name in names if name in existing]
        used = [(v.key, p.arn) for p in read for v in p.versions if v.key]
    for key, parameter in dict.fromkeys(used):
        managed = key == managed_key(context, SSM_KEY_ALIAS)
        keys = condition_keys("aws", calledvia="ssm.amazonaws.com", viaawsservice=True)
        keys |= {
            "kms:calleraccount": [context.account],
            "kms:encryptioncontext:parameter_arn": [parameter],
            "kms:encryptioncontextkeys": ["PARAMETER_ARN"],
            "kms:viaservice": [f"ssm.{context.region}.amazonaws.com"],
            **({"kms:resourcealiases": [SSM_KEY_ALIAS]} if managed else {}),
        }
        yield RequiredPermission(action, key, keys, granted=managed)


def _parameter_arn(context: Context, name: str) -> str:
    """Return the ARN of a parameter by its name or ARN. AWS's own parameters have no account."""
    if name.startswith("arn:"):
        return re.sub(r"^((?:[^:]*:){5}[^:]*):.*$", r"\1", name)  # without a version or label
    name = name.partition(":")[0].strip("/")
    account = "" if name.startswith("aws/service/") else context.account
    return f"arn:{context.partition}:ssm:{context.region}:{account}:parameter/{name}"


ACCESS_DENIED_ERRORS: dict[str, tuple[str, int]] = {
    "ec2": ("UnauthorizedOperation", 403),
    "sns": ("AuthorizationError", 403),
    "json": ("AccessDeniedException", 400),
    "rest-json": ("AccessDeniedException", 403),
}
"""Error code and HTTP status of a refusal, by service or protocol, if not ``AccessDenied`` and 403."""


class Authorizer:
    """Refuses calls that the caller's policies do not allow.

    With `enforce`, users and roles without any policy are refused everything, as on AWS.
    """

    def __init__(self, *, enforce: bool = False) -> None:
        self.enforce = enforce

    def __call__(self, context: Context, params: Params) -> None:
        """Raise the service's error unless the caller has every permission that the call needs.

        The text contains the action and the resource. When the caller may not pass the role of an import, the
        text says that the role lacks permissions, as on AWS.
        """
        with context.lock:
            if not context.principal and context.operation in {"CreateBucket", "ListBuckets"}:
                raise ApiError("AccessDenied", "Access Denied", status=403)
            documents = policies_of_principal(context, context.principal)
            if not documents and not self.enforce:
                documents = None
            if documents is None and context.service != "s3":
                return
            for permission in required_permissions(context, params):
                reason = denial_reason(context, documents, permission)
                if reason:
                    raise access_denied(context, permission, reason)
            if documents is None:
                return
            called = (context.service, context.operation)
            if called == ("ec2", "RunInstances"):
                _check_spot_role(context, documents, params)
            if called == ("ec2", "ImportSnapshot"):
                role_name = params.get("RoleName") or "vmimport"
                needed = pass_role_permission(context, role_name, VM_IMPORT_SERVICE)
                if denial_reason(context, documents, needed):
                    raise unusable_role(role_name)

    def allows(self, context: Context, name: str, params: Params) -> bool:
        """Return whether the caller may also call another operation of the same service.

        An operation that acts on several resources reports this for each instead of failing.
        """
        try:
            self(replace(context, operation=name), params)
        except ApiError:
            return False
        return True


def denial_reason(context: Context, documents: list[str] | None, permission: RequiredPermission) -> str:
    """Return in AWS's words why the caller lacks a permission; "" when it has the permission."""
    if permission.action.startswith("s3:"):
        return s3_denial_reason(
            context.tables,
            permission,
            account=context.account,
            principal=context.principal,
            documents=documents,
            root=is_administrator(context, context.principal),
        )
    decision = ALLOWED if documents is None else evaluate(documents, permission)
    if decision == EXPLICIT_DENY:
        return "with an explicit deny in an identity-based policy"
    if decision == ALLOWED or permission.granted:
        return ""
    return f"because no identity-based policy allows the {permission.action} action"


def access_denied(context: Context, permission: RequiredPermission, reason: str) -> ApiError:
    """Return the service's error for a missing permission. S3 gives no reason to other accounts."""
    protocol = service_model(context.service).protocol
    code, status = ACCESS_DENIED_ERRORS.get(
        context.service, ACCESS_DENIED_ERRORS.get(protocol, ("AccessDenied", 403))
    )
    resource = permission.resource
    if context.service == "s3":
        bucket = find_bucket(context.tables, resource.partition(":::")[2].partition("/")[0])
        if bucket is not None and bucket.account != context.account:
            return ApiError(code, "Access Denied", status=status)
        resource = f'"{resource}"'
    action = permission.action
    if context.service == "sns":  # which writes its name in capitals, also in the policy of a topic
        action = action.replace("sns:", "SNS:")
        reason = reason.replace("sns:", "SNS:")
    text = f"User: {context.principal} is not authorized to perform: {action} on resource: {resource}"
    if context.service == "ec2":
        # AWS adds an encoded message that only sts:DecodeAuthorizationMessage can read.
        text = f"You are not authorized to perform this operation. {text}"
    return ApiError(code, f"{text} {reason}", status=status)


def _check_spot_role(context: Context, documents: list[str], params: Params) -> None:
    keys = {**global_condition_keys(context), "iam:awsservicename": [SPOT_SERVICE]}
    request = AccessRequest(CREATE_ROLE_ACTION, spot_role_arn(context), keys)
    if lacks_spot_role(context, params) and evaluate(documents, request) != ALLOWED:
        raise ApiError(
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role for "
            "EC2 Spot Instances.",
            status=403,
        )
