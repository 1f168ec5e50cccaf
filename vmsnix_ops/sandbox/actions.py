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
from vmsnix_ops.sandbox.ec2 import common as ids
from vmsnix_ops.sandbox.ec2 import common as parameters
from vmsnix_ops.sandbox.ec2 import instances, places, templates
from vmsnix_ops.sandbox.iam.evaluation import DELEGATED, Question, evaluate_resource_policy
from vmsnix_ops.sandbox.iam.policies import listed
from vmsnix_ops.sandbox.ssm import common as secrets

from . import credentials, objects
from .ssm import common as parameter_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmsnix_ops.sandbox.core import Context, Params

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

KINDS: dict[str, tuple[str, str]] = {
    kind.prefix + "-": (kind.resource_type, kind.table) for kind in ids.KINDS
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

NO_IDS = frozenset(
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

NO_ACCOUNT = frozenset({"image", "snapshot"})  # their ARNs leave the account empty
NO_PERMISSION = frozenset({("sts", "GetCallerIdentity"), ("sts", "GetSessionToken")})


@dataclass(frozen=True)
class Demand:
    """One action on one resource, with the condition keys that are known of this call, in lower case.

    `granted` says that a policy of the resource allows it to the whole account: only a Deny is in the way.
    """

    action: str
    resource: str
    keys: Mapping[str, list[str]] = field(default_factory=dict)
    granted: bool = False


def demands(context: Context, params: Params) -> list[Demand]:
    """Return everything that the caller must be allowed for this call to run."""
    if (context.service, context.operation) in NO_PERMISSION:
        return []
    by_service = {"s3": _s3, "ec2": _ec2, "ebs": _ebs, "iam": _iam}
    found = by_service.get(context.service, _other)(context, params)
    common = common_keys(context)
    return [replace(demand, keys={**common, **demand.keys}) for demand in found]


def common_keys(context: Context) -> dict[str, list[str]]:
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
    credential = credentials.table(context.tables).get(context.access_key)
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


S3_KEYS: dict[str, str] = {
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


def _s3(context: Context, params: Params) -> Iterator[Demand]:
    name = context.operation
    action = f"s3:{S3_ACTIONS.get(name, name)}"
    if name == "ListBuckets":
        yield Demand(action, "*")
        return
    keys = {key: [str(params[member])] for member, key in S3_KEYS.items() if member in params}
    keys["s3:signatureversion"] = ["AWS4-HMAC-SHA256"]
    held = objects.find_bucket(context.tables, params["Bucket"])
    if held is not None:
        keys |= {"aws:resourceaccount": [held.account], "s3:resourceaccount": [held.account]}
    if params.get("Tagging") and isinstance(params["Tagging"], str):
        tags = parse_qsl(params["Tagging"], keep_blank_values=True)
        keys |= {f"s3:requestobjecttag/{key.lower()}": [value] for key, value in tags}
        keys["s3:requestobjecttagkeys"] = [key for key, _ in tags]
    bucket = f"arn:{context.partition}:s3:::{params['Bucket']}"
    if name == "DeleteObjects":
        for item in params["Delete"]["Objects"]:
            yield Demand(action, f"{bucket}/{item['Key']}", keys)
        return
    if "Key" not in params:
        yield Demand(action, bucket, keys)
        return
    stored = held.objects.get(params["Key"]) if held is not None else None
    if stored is not None:
        keys |= {f"s3:existingobjecttag/{key.lower()}": [value] for key, value in stored.tags.items()}
    yield Demand(action, f"{bucket}/{params['Key']}", keys)
    if name == "GetObjectAttributes":
        yield Demand("s3:GetObject", f"{bucket}/{params['Key']}", keys)
    if params.get("Tagging") and name != "PutObjectTagging":
        yield Demand("s3:PutObjectTagging", f"{bucket}/{params['Key']}", keys)
    if params.get("CopySource"):
        source = unquote(str(params["CopySource"]).partition("?versionId=")[0]).lstrip("/")
        yield Demand("s3:GetObject", f"arn:{context.partition}:s3:::{source}")
    if name in {"GetObject", "HeadObject"} and stored is None:
        # Who may not list is not told what there is: 403 instead of 404.
        yield Demand("s3:ListBucket", bucket)


def _ec2(context: Context, params: Params) -> Iterator[Demand]:
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
        yield from _looked_at(context, params)
    if name.startswith(("Describe", "Get")) and name != "GetConsoleOutput":
        yield Demand(action, "*")
        return
    if name == "RunInstances":
        yield from _launch(context, params)
    else:
        region = params.get("SourceRegion") or context.region
        given = {kind: _request_tags(params, kind) for kind, _ in KINDS.values()}
        created = [
            Demand(action, ec2_arn(context, kind, "*"), given[kind] | _new_keys(context, params, kind))
            for kind in CREATES.get(name, ())
        ]
        named = []
        for resource_id in _ids(context, params):
            kind = _kind(resource_id)
            keys = given[kind] | _existing_keys(context, resource_id, region)
            named.append(Demand(action, _arn_of(context, resource_id, region), keys | _asked(params)))
        yield from [*created, *named] or [Demand(action, "*")]
    if name == "DeregisterImage" and params.get("DeleteAssociatedSnapshots"):
        # AWS would deregister and tell ``missing-permissions`` of each snapshot; here all of it is refused.
        image = _found(context, params["ImageId"], context.region)
        for snapshot_id in image.snapshot_ids() if image is not None else ():
            yield _existing(context, "ec2:DeleteSnapshot", snapshot_id)
    for specification in params.get("TagSpecifications") or ():
        if specification.get("Tags"):
            kind = specification.get("ResourceType", "*")
            tags = _tag_keys(specification["Tags"])
            yield _tagged(context, kind, tags, name)


def _tagged(context: Context, kind: str, tags: dict[str, list[str]], name: str) -> Demand:
    """Return the right to tag what an action creates."""
    return Demand("ec2:CreateTags", ec2_arn(context, kind, "*"), {**tags, "ec2:createaction": [name]})


def _launch(context: Context, params: Params) -> Iterator[Demand]:
    """Return what RunInstances needs ("Example policies to control access the Amazon EC2 API", launching).

    A snapshot is asked for when the call or its launch template names it; the snapshots of the AMI come with
    the AMI, as ``ec2:ParentSnapshot`` of the new volumes. Networks are not emulated: their ARNs end in an
    asterisk. Assumption: an instance profile has the role of its own name, as the console makes it.
    """
    action, template = "ec2:RunInstances", None
    asked = params
    with suppress(AwsError):  # an unknown template is refused by the operation itself
        if "LaunchTemplate" in params:
            template = templates.find(context, params["LaunchTemplate"])
            asked = templates.merged(context, params)
    reference = str(asked.get("ImageId", ""))
    if reference.startswith(parameters.PREFIX):
        name = reference.removeprefix(parameters.PREFIX)
        yield Demand("ssm:GetParameters", _parameter_arn(context, name))
    image_id = parameters.image_or_none(context, reference) or ""
    through = {} if template is None else {"ec2:launchtemplate": [_arn_of(context, template.template_id)]}
    profile = asked.get("IamInstanceProfile") or {}
    if profile:
        role_name = (profile.get("Name") or profile.get("Arn", "")).rpartition("/")[2]
        yield pass_role(context, role_name, "ec2.amazonaws.com")
    zone = (asked.get("Placement") or {}).get("AvailabilityZone") or places.zones(context.region)[0]
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
        yield Demand(action, ec2_arn(context, kind, "*"), tags | keys | through)
    for kind in ("security-group", "subnet"):
        yield Demand(action, ec2_arn(context, kind, "*"), through)
    named = [image_id] if _kind(image_id) == "image" else []
    named += [template.template_id] if template is not None else []
    named += _ids(context, {"BlockDeviceMappings": asked.get("BlockDeviceMappings")})
    for resource_id in named:
        yield Demand(action, _arn_of(context, resource_id), _existing_keys(context, resource_id) | through)
    image = _found(context, image_id, context.region)
    devices = list(asked.get("BlockDeviceMappings") or ())
    with suppress(AwsError):  # devices that do not fit are refused by the operation itself
        devices = instances.instance_devices(image, devices) if image is not None else devices
    for device in devices:
        keys = _volume_keys(context, device.get("Ebs") or {}, zone)
        yield Demand(action, ec2_arn(context, "volume", "*"), _request_tags(asked, "volume") | keys | through)


def pass_role(context: Context, role_name: str, service: str) -> Demand:
    """Return the right to hand a role to a service ("Grant a user permissions to pass a role")."""
    role = context.table("roles", region="").get(role_name)
    arn = role.arn if role is not None else f"arn:{context.partition}:iam::{context.account}:role/{role_name}"
    keys = {**common_keys(context), "iam:passedtoservice": [service]}
    return Demand("iam:PassRole", arn, keys)


def _looked_at(context: Context, params: Params) -> Iterator[Demand]:
    """Return what the caller must be allowed besides: EC2 looks for references as its caller."""
    kinds = {one.get("ResourceType", "") for one in params.get("ResourceTypes") or ()}
    keys = {"aws:calledvia": ["ec2-images.amazonaws.com"]}
    anything = f"arn:{context.partition}:ssm:{context.region}:{context.account}:parameter/*"
    for kind, actions in REFERENCES.items():
        if kind in kinds or params.get("IncludeAllResourceTypes"):
            for action in actions:
                yield Demand(action, anything if action == "ssm:GetParameters" else "*", keys)


def _ids(context: Context, params: Params) -> list[str]:
    """Return every id of a resource that a request names, at any depth, each once."""
    found = _ids_in(params)
    if "LaunchTemplateName" in params and context.operation != "CreateLaunchTemplate":
        with suppress(AwsError):
            found[templates.find(context, params).template_id] = None
    return list(found)


def _ids_in(value: Any) -> dict[str, None]:
    found: dict[str, None] = {}
    if isinstance(value, str):
        if _kind(value):
            found[value] = None
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NO_IDS:
                found |= _ids_in(item)
    elif isinstance(value, list):
        for item in value:
            found |= _ids_in(item)
    return found


def _kind(resource_id: str) -> str:
    """Return the kind of an id; "" for a text that is none."""
    matching = [p for p in KINDS if resource_id.startswith(p) and resource_id != p]
    return KINDS[matching[0]][0] if matching else ""


def _found(context: Context, resource_id: str, region: str) -> Any | None:
    """Return the resource of an id, whoever owns it."""
    for prefix, (_, table) in KINDS.items():
        if resource_id.startswith(prefix):
            for (_, place), resources in context.tables.everywhere(table).items():
                if place == region and resource_id in resources:
                    return resources[resource_id]
    return None


def _arn_of(context: Context, resource_id: str, region: str = "") -> str:
    return ec2_arn(context, _kind(resource_id), resource_id, region=region)


def _existing(context: Context, action: str, resource_id: str) -> Demand:
    return Demand(action, _arn_of(context, resource_id), _existing_keys(context, resource_id))


def _existing_keys(context: Context, resource_id: str, region: str = "") -> dict[str, list[str]]:
    """Return the condition keys of a resource that there is.

    Tags of a resource that another account shared are not known to the caller's account ("Share an AMI with
    specific AWS accounts"), so they are no keys.
    """
    found, kind = _found(context, resource_id, region or context.region), _kind(resource_id)
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


def _new_keys(context: Context, params: Params, kind: str) -> dict[str, list[str]]:
    """Return what is known of a resource before it is made."""
    keys = {"ec2:region": [context.region]}
    if kind in NO_ACCOUNT:
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


def _asked(params: Params) -> dict[str, list[str]]:
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
    account = "" if kind in NO_ACCOUNT else context.account
    return f"arn:{context.partition}:ec2:{region or context.region}:{account}:{kind}/{name}"


def _ebs(context: Context, params: Params) -> Iterator[Demand]:
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
        yield Demand(action, new, keys)
        if tags:
            yield _tagged(context, "snapshot", tags, context.operation)
        return
    for name in ("SnapshotId", "FirstSnapshotId", "SecondSnapshotId"):
        if params.get(name):
            keys = _existing_keys(context, params[name])
            keys = {key: value for key, value in keys.items() if key.startswith("aws:")}
            yield Demand(action, ec2_arn(context, "snapshot", params[name]), keys)


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
        yield from _secrets(context, params)
    elif context.service == "sns" and "TopicArn" in params:
        resources = [params["TopicArn"]]
    elif context.service == "sts" and "RoleArn" in params:
        role = context.table("roles", region="").get(params["RoleArn"].rpartition("/")[2])
        if role is not None and params["RoleArn"].split(":")[4:5] == [context.account]:
            keys = common_keys(context)
            keys |= {"sts:externalid": [params["ExternalId"]]} if "ExternalId" in params else {}
            question = Question("sts:AssumeRole", params["RoleArn"], keys)
            decision = evaluate_resource_policy(
                role.trust_policy, context.principal, context.account, question
            )
            # A trust policy that names the caller is enough; one that names its account delegates.
            yield Demand("sts:AssumeRole", params["RoleArn"], granted=decision != DELEGATED)
            return
        resources = [params["RoleArn"]]
    for resource in resources:
        yield Demand(f"{service}:{context.operation}", resource)


def _secrets(context: Context, params: Params) -> Iterator[Demand]:
    """Return what a call needs of KMS for the SecureString parameters that it decrypts or writes.

    Parameter Store asks KMS as its caller. The policy of ``aws/ssm`` lets every principal of the account use
    the key through Parameter Store, so that only a Deny in the caller's own policies keeps it from that; with
    a customer key the caller's policies must allow it ("Restricting decryption of SecureString parameter
    values", "AWS KMS encryption for AWS Systems Manager Parameter Store SecureString parameters").
    Assumption: a customer key has the default key policy, which leaves all to the policies of the account.
    """
    name = context.operation
    known = parameter_store.parameters(context)
    found: list[tuple[str, str]] = []  # key and parameter
    action = "kms:Decrypt"
    if name == "PutParameter":
        kept = known.get(parameter_store.plain_name(params["Name"]))
        kind = params.get("Type") or (kept.newest.kind if kept is not None else "")
        action = "kms:GenerateDataKey" if params.get("Tier") == "Advanced" else "kms:Encrypt"
        if kind == "SecureString":
            with suppress(AwsError):  # a key that there is not is refused by the operation itself
                key = secrets.key_of(context, params.get("KeyId"))
                found = [(key, _parameter_arn(context, params["Name"]))]
    elif params.get("WithDecryption"):
        if name == "GetParametersByPath":
            path = f"{params['Path'].rstrip('/')}/"
            read = [p for parameter_name, p in known.items() if parameter_name.startswith(path)]
        else:
            asked = [parameter_store.plain_name(one) for one in listed(params.get("Names") or params["Name"])]
            read = [known[one] for one in (text.partition(":")[0] for text in asked) if one in known]
        found = [(v.key, p.arn) for p in read for v in p.versions if v.key]
    for key, parameter in dict.fromkeys(found):
        managed = key == secrets.managed_key(context)
        keys = {
            "aws:calledvia": ["ssm.amazonaws.com"],
            "aws:viaawsservice": ["true"],
            "kms:calleraccount": [context.account],
            "kms:encryptioncontext:parameter_arn": [parameter],
            "kms:encryptioncontextkeys": ["PARAMETER_ARN"],
            "kms:viaservice": [f"ssm.{context.region}.amazonaws.com"],
        }
        keys |= {"kms:resourcealiases": [secrets.DEFAULT_ALIAS]} if managed else {}
        yield Demand(action, key, keys, granted=managed)


def _parameter_arn(context: Context, name: str) -> str:
    """Return the ARN of a parameter, however it is named; those that AWS publishes have no account."""
    if name.startswith("arn:"):
        return re.sub(r"^((?:[^:]*:){5}[^:]*):.*$", r"\1", name)  # a version or label is no part of it
    name = name.partition(":")[0].strip("/")
    account = "" if name.startswith("aws/service/") else context.account
    return f"arn:{context.partition}:ssm:{context.region}:{account}:parameter/{name}"
