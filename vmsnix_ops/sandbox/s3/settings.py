"""Settings of buckets: get, put and delete of documents that S3 keeps beside the objects.

Bucket policies are evaluated (`bucket_policies`) and public ones blocked; the other settings are kept and
shown. Sources: the operations' pages in
the Amazon S3 API Reference; "Default settings for new S3 buckets FAQ" in the Amazon S3 User Guide.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from . import bucket_policies
from .common import bucket_of, check_tags, owner_id

if TYPE_CHECKING:
    from ..core import Context, Params
    from ..objects import Bucket

GET = ("Bucket", "ExpectedBucketOwner")
PUT = (*GET, "ContentMD5", "ChecksumAlgorithm")
BLOCKED = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}


def defaults() -> dict[str, Any]:
    """Return the settings of a new bucket: private, encrypted, without ACLs (since 2023)."""
    return {
        "public_access_block": dict(BLOCKED),
        "encryption": _default_encryption(),
        "ownership": _default_ownership(),
    }


def _default_encryption() -> dict[str, Any]:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": False}
    return {"Rules": [rule]}


def _default_ownership() -> dict[str, Any]:
    return {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}


def _missing(bucket: Bucket, code: str, text: str) -> AwsError:
    return AwsError(code, text, status=404, BucketName=bucket.name)


Check = Callable[[Any], Any]


def _register(
    setting: str,
    *,
    member: str,
    get: str,
    put: str | None = None,
    delete: str | None = None,
    missing: tuple[str, str] = ("", ""),
    check: Check | None = None,
    delete_resets: Callable[[], Any] | None = None,
) -> None:
    """Register get, put and delete of one document.

    Parameters
    ----------
    setting
        Where it is kept in `Bucket.settings`.
    member
        The member that carries it.
    get, put, delete
        Names of the operations.
    missing
        Code and text when there is none.
    check
        Called with a new document; raises, or returns what is kept.
    delete_resets
        What is there after a deletion, where that is not nothing.
    """

    def get_setting(context: Context, params: Params) -> dict[str, Any]:
        bucket = bucket_of(context, params)
        document = bucket.settings.get(setting)
        if document is None:
            raise _missing(bucket, *missing)
        return {member: document}

    operation("s3", get, honours=GET)(get_setting)

    if put is not None:

        def put_setting(context: Context, params: Params) -> dict[str, Any]:
            bucket = bucket_of(context, params)
            if member not in params:
                raise AwsError("MissingRequestBodyError", "Request Body is empty")
            document = params[member]
            bucket.settings[setting] = document if check is None else check(document)
            return {}

        operation("s3", put, honours=[*PUT, member])(put_setting)

    if delete is not None:

        def delete_setting(context: Context, params: Params) -> dict[str, Any]:
            bucket = bucket_of(context, params)
            bucket.settings.pop(setting, None)
            if delete_resets is not None:
                bucket.settings[setting] = delete_resets()
            return {"__status__": 204}

        operation("s3", delete, honours=GET)(delete_setting)


def _check_block(document: dict[str, Any]) -> dict[str, Any]:
    return {name: bool(document.get(name, False)) for name in BLOCKED}


def _check_lifecycle(document: dict[str, Any]) -> dict[str, Any]:
    rules = document.get("Rules", [])
    actions = {
        "Expiration",
        "Transitions",
        "NoncurrentVersionTransitions",
        "NoncurrentVersionExpiration",
        "AbortIncompleteMultipartUpload",
    }
    if not rules or any(rule.get("Status") not in {"Enabled", "Disabled"} for rule in rules):
        raise AwsError(
            "MalformedXML",
            "The XML you provided was not well-formed or did not validate against our published schema",
        )
    for number, rule in enumerate(rules):
        if not actions & set(rule):
            raise AwsError("InvalidRequest", "At least one action needs to be specified in a rule")
        expiration = rule.get("Expiration", {})
        if expiration.get("ExpiredObjectDeleteMarker") and {"Days", "Date"} & set(expiration):
            raise AwsError(
                "MalformedXML",
                "The XML you provided was not well-formed or did not validate against our published schema",
            )
        rule.setdefault("ID", f"rule-{number}")
    if len({rule["ID"] for rule in rules}) != len(rules):
        raise AwsError("InvalidArgument", "Rule ID must be unique. Found same ID for more than one rule")
    return document


def _check_tagging(document: dict[str, Any]) -> dict[str, Any]:
    check_tags(document["TagSet"], limit=50)
    return document


_register(
    "public_access_block",
    member="PublicAccessBlockConfiguration",
    get="GetPublicAccessBlock",
    put="PutPublicAccessBlock",
    delete="DeletePublicAccessBlock",
    missing=("NoSuchPublicAccessBlockConfiguration", "The public access block configuration was not found"),
    check=_check_block,
)
_register(
    "encryption",
    member="ServerSideEncryptionConfiguration",
    get="GetBucketEncryption",
    put="PutBucketEncryption",
    delete="DeleteBucketEncryption",
    delete_resets=_default_encryption,
)
_register(
    "ownership",
    member="OwnershipControls",
    get="GetBucketOwnershipControls",
    put="PutBucketOwnershipControls",
    delete="DeleteBucketOwnershipControls",
    missing=("OwnershipControlsNotFoundError", "The bucket ownership controls were not found"),
)


@operation("s3", "GetBucketVersioning", honours=GET)
def get_versioning(context: Context, params: Params) -> dict[str, Any]:
    """Return the versioning state of a bucket; an empty document when nobody ever set it."""
    state = bucket_of(context, params).settings.get("versioning")
    return {"Status": state} if state else {}


@operation("s3", "PutBucketVersioning", honours=[*PUT, "VersioningConfiguration"])
def put_versioning(context: Context, params: Params) -> dict[str, Any]:
    """Suspend versioning, which leaves objects as they are without it; versions are not emulated."""
    bucket = bucket_of(context, params)
    status = params.get("VersioningConfiguration", {}).get("Status")
    if status != "Suspended":
        raise AwsError("NotImplemented", "The sandbox does not emulate versions of objects.", status=501)
    bucket.settings["versioning"] = status
    return {}


@operation("s3", "GetBucketTagging", honours=GET)
def get_bucket_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Return the tags of a bucket."""
    bucket = bucket_of(context, params)
    if "tagging" not in bucket.settings:
        raise _missing(bucket, "NoSuchTagSet", "The TagSet does not exist")
    return dict(bucket.settings["tagging"])


@operation("s3", "PutBucketTagging", honours=[*PUT, "Tagging"])
def put_bucket_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Replace the tags of a bucket."""
    bucket_of(context, params).settings["tagging"] = _check_tagging(params["Tagging"])
    return {"__status__": 204}


@operation("s3", "DeleteBucketTagging", honours=GET)
def delete_bucket_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Remove the tags of a bucket."""
    bucket_of(context, params).settings.pop("tagging", None)
    return {"__status__": 204}


@operation("s3", "GetBucketLifecycleConfiguration", honours=GET)
def get_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Return the lifecycle rules; they are kept and shown, no rule runs here."""
    bucket = bucket_of(context, params)
    if "lifecycle" not in bucket.settings:
        raise _missing(bucket, "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist")
    return dict(bucket.settings["lifecycle"])


@operation(
    "s3", "PutBucketLifecycleConfiguration", honours=[*GET, "ChecksumAlgorithm", "LifecycleConfiguration"]
)
def put_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Replace the lifecycle rules."""
    bucket = bucket_of(context, params)
    if "LifecycleConfiguration" not in params:
        raise AwsError("MissingRequestBodyError", "Request Body is empty")
    bucket.settings["lifecycle"] = _check_lifecycle(params["LifecycleConfiguration"])
    return {}


@operation("s3", "DeleteBucketLifecycle", honours=GET)
def delete_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Remove the lifecycle rules."""
    bucket_of(context, params).settings.pop("lifecycle", None)
    return {"__status__": 204}


def _owned(context: Context, params: Params) -> Bucket:
    """Return a bucket of the caller's account: nobody else manages its policy, whatever the policy allows."""
    bucket = bucket_of(context, params)
    if bucket.account != context.account:
        raise AwsError(
            "MethodNotAllowed", "The specified method is not allowed against this resource.", status=405
        )
    return bucket


@operation("s3", "GetBucketPolicy", honours=GET)
def get_policy(context: Context, params: Params) -> dict[str, Any]:
    """Return the bucket policy as it was given."""
    bucket = _owned(context, params)
    if "policy" not in bucket.settings:
        raise _missing(bucket, "NoSuchBucketPolicy", "The bucket policy does not exist")
    return {"Policy": bucket.settings["policy"]}


@operation("s3", "PutBucketPolicy", honours=[*PUT, "Policy"])
def put_policy(context: Context, params: Params) -> dict[str, Any]:
    """Replace the bucket policy; a public one is refused while the bucket blocks public policies."""
    bucket = _owned(context, params)
    document = bucket_policies.parse(params["Policy"], bucket.name)
    block = bucket.settings.get("public_access_block", {})
    if block.get("BlockPublicPolicy") and bucket_policies.is_public(document):
        raise AwsError(
            "AccessDenied",
            f"User: {context.principal} is not authorized to perform: s3:PutBucketPolicy on resource: "
            f'"arn:aws:s3:::{bucket.name}" because public policies are prevented by the BlockPublicPolicy '
            "setting in "
            "S3 Block Public Access.",
            status=403,
        )
    bucket.settings["policy"] = params["Policy"]
    return {"__status__": 204}


@operation("s3", "DeleteBucketPolicy", honours=GET)
def delete_policy(context: Context, params: Params) -> dict[str, Any]:
    """Remove the bucket policy."""
    _owned(context, params).settings.pop("policy", None)
    return {"__status__": 204}


@operation("s3", "GetBucketPolicyStatus", honours=GET)
def get_policy_status(context: Context, params: Params) -> dict[str, Any]:
    """Say whether the bucket policy makes the bucket public."""
    bucket = bucket_of(context, params)
    if "policy" not in bucket.settings:
        raise _missing(bucket, "NoSuchBucketPolicy", "The bucket policy does not exist")
    return {"PolicyStatus": {"IsPublic": bucket_policies.is_public(json.loads(bucket.settings["policy"]))}}


@operation("s3", "GetBucketAcl", honours=GET)
def get_acl(context: Context, params: Params) -> dict[str, Any]:
    """Return the only ACL that there is with BucketOwnerEnforced: the owner's full control."""
    owner = {"ID": owner_id(bucket_of(context, params).account)}
    return {
        "Owner": owner,
        "Grants": [{"Grantee": {**owner, "Type": "CanonicalUser"}, "Permission": "FULL_CONTROL"}],
    }
