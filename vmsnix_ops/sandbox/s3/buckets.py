"""Buckets: create, head, list, delete, location, settings, policies.

Sources: CreateBucket, HeadBucket, ListBuckets, DeleteBucket, GetBucketLocation in the Amazon S3 API
Reference; "Bucket naming rules" in the Amazon S3 User Guide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, load_json, operation
from vmsnix_ops.sandbox.policies import (
    ALLOWED,
    DELEGATED,
    EXPLICIT_DENY,
    IMPLICIT_DENY,
    PRINCIPAL_KINDS,
    AccessRequest,
    as_list,
    evaluate,
    evaluate_resource_policy,
    statements,
    wildcard_match,
)
from vmsnix_ops.sandbox.regions import region_exists
from vmsnix_ops.sandbox.s3.common import canonical_user_id, check_tags, requested_bucket
from vmsnix_ops.sandbox.storage import Bucket, find_bucket

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params, Tables


BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
IP_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
BUCKETS_PER_PAGE = 10_000


def _check_name(name: str) -> None:
    if (
        not BUCKET_NAME.fullmatch(name)
        or ".." in name
        or IP_ADDRESS.fullmatch(name)
        or name.startswith("xn--")
    ):
        raise AwsError("InvalidBucketName", "The specified bucket is not valid.", BucketName=name)


@operation(
    "s3",
    "CreateBucket",
    honours=["Bucket", "CreateBucketConfiguration", "ACL", "ObjectOwnership"],
)
def create_bucket(context: Context, params: Params) -> dict[str, Any]:
    """Make a bucket in the region that the request is signed for."""
    name = params["Bucket"]
    _check_name(name)
    if params.get("ACL", "private") != "private":
        raise AwsError(
            "InvalidBucketAclWithObjectOwnership",
            "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
        )
    region = _new_region(context, params)
    existing = find_bucket(context.tables, name)
    if existing is not None:
        _refuse_existing(context, existing)
        return {"Location": f"/{name}"}
    bucket = Bucket(name, context.account, region, context.clock.now(), settings=_default_settings())
    if "ObjectOwnership" in params:
        bucket.settings["ownership"] = {"Rules": [{"ObjectOwnership": params["ObjectOwnership"]}]}
    tags = (params.get("CreateBucketConfiguration") or {}).get("Tags")
    if tags:
        bucket.settings["tagging"] = {"TagSet": tags}
    context.table("buckets", region="")[name] = bucket
    return {"Location": f"/{name}" if region == "us-east-1" else f"http://{name}.s3.amazonaws.com/"}


def _new_region(context: Context, params: Params) -> str:
    """Return the region of a new bucket; only the us-east-1 endpoint makes buckets elsewhere."""
    configuration = params.get("CreateBucketConfiguration") or {}
    for member in configuration:
        if member not in {"LocationConstraint", "Tags"}:
            raise AwsError(
                "NotImplemented", f"The sandbox does not emulate {member} of CreateBucket.", status=501
            )
    constraint = configuration.get("LocationConstraint")
    constraint = "eu-west-1" if constraint == "EU" else constraint
    if context.region == "us-east-1":
        if constraint is None:
            return "us-east-1"
        if constraint == "us-east-1" or not region_exists(constraint):
            raise AwsError(
                "InvalidLocationConstraint",
                "The specified location-constraint is not valid",
                LocationConstraint=constraint,
            )
        return str(constraint)
    if constraint != context.region:
        shown = constraint or "unspecified"
        raise AwsError(
            "IllegalLocationConstraintException",
            f"The {shown} location constraint is incompatible for the region specific endpoint this request "
            "was sent to.",
        )
    return context.region


def _refuse_existing(context: Context, existing: Bucket) -> None:
    if existing.account != context.account:
        raise AwsError(
            "BucketAlreadyExists",
            "The requested bucket name is not available. The bucket namespace is shared by all users of "
            "the system. "
            "Please select a different name and try again.",
            status=409,
            BucketName=existing.name,
        )
    if not (existing.region == "us-east-1" and context.region == "us-east-1"):  # there, repeating it succeeds
        raise AwsError(
            "BucketAlreadyOwnedByYou",
            "Your previous request to create the named bucket succeeded and you already own it.",
            status=409,
            BucketName=existing.name,
        )


@operation("s3", "HeadBucket", honours=["Bucket", "ExpectedBucketOwner"])
def head_bucket(context: Context, params: Params) -> dict[str, Any]:
    """Say whether a bucket exists, is ours, and where it is."""
    bucket = requested_bucket(context, params)
    return {"BucketRegion": bucket.region, "AccessPointAlias": False}


@operation("s3", "GetBucketLocation", honours=["Bucket", "ExpectedBucketOwner"])
def get_bucket_location(context: Context, params: Params) -> dict[str, Any]:
    """Return the region of a bucket; us-east-1 is an empty text. Any region may ask."""
    bucket = find_bucket(context.tables, params["Bucket"])
    if bucket is not None and params.get("ExpectedBucketOwner") in {None, bucket.account}:
        return {"LocationConstraint": "" if bucket.region == "us-east-1" else bucket.region}
    requested_bucket(context, params)
    raise AwsError("AccessDenied", "Access Denied", status=403)


@operation("s3", "ListBuckets", honours=["MaxBuckets", "ContinuationToken", "Prefix", "BucketRegion"])
def list_buckets(context: Context, params: Params) -> dict[str, Any]:
    """List the account's buckets of all regions."""
    prefix, region = params.get("Prefix", ""), params.get("BucketRegion")
    start = params.get("ContinuationToken", "")
    limit = params.get("MaxBuckets", BUCKETS_PER_PAGE)
    found = [
        bucket
        for name, bucket in sorted(context.table("buckets", region="").items())
        if name.startswith(prefix) and name > start and region in {None, bucket.region}
    ]
    answer: dict[str, Any] = {
        "Buckets": [
            {"Name": b.name, "CreationDate": b.created, "BucketRegion": b.region} for b in found[:limit]
        ],
        "Owner": {"ID": canonical_user_id(context.account)},
    }
    if prefix:
        answer["Prefix"] = prefix
    if len(found) > limit:
        answer["ContinuationToken"] = found[limit - 1].name
    return answer


@operation("s3", "DeleteBucket", honours=["Bucket", "ExpectedBucketOwner"])
def delete_bucket(context: Context, params: Params) -> dict[str, Any]:
    """Delete an empty bucket."""
    bucket = requested_bucket(context, params)
    if bucket.objects:
        raise AwsError(
            "BucketNotEmpty",
            "The bucket you tried to delete is not empty",
            status=409,
            BucketName=bucket.name,
        )
    for upload in bucket.uploads.values():
        for part in upload.parts.values():
            part.path(context.folder).unlink(missing_ok=True)
    del context.tables.table(bucket.account, "", "buckets")[bucket.name]
    return {"__status__": 204}


# Settings of buckets: get, put and delete of documents that S3 keeps beside the objects.
#
# Bucket policies are evaluated (`bucket_policies`) and public ones blocked; the other settings are kept and
# shown. Sources: the operations' pages in
# the Amazon S3 API Reference; "Default settings for new S3 buckets FAQ" in the Amazon S3 User Guide.


GET = ("Bucket", "ExpectedBucketOwner")
PUT = (*GET, "ContentMD5", "ChecksumAlgorithm")
PUBLIC_ACCESS_BLOCK = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}


def _default_settings() -> dict[str, Any]:
    """Return the settings of a new bucket: private, encrypted, without ACLs (since 2023)."""
    return {
        "public_access_block": dict(PUBLIC_ACCESS_BLOCK),
        "encryption": _default_encryption(),
        "ownership": _default_ownership(),
    }


def _default_encryption() -> dict[str, Any]:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": False}
    return {"Rules": [rule]}


def _default_ownership() -> dict[str, Any]:
    return {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}


def _no_such_setting(bucket: Bucket, code: str, text: str) -> AwsError:
    return AwsError(code, text, status=404, BucketName=bucket.name)


DocumentCheck = Callable[[Any], Any]


def _register_setting(
    setting: str,
    *,
    member: str,
    get: str,
    put: str | None = None,
    delete: str | None = None,
    missing: tuple[str, str] = ("", ""),
    check: DocumentCheck | None = None,
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
        bucket = requested_bucket(context, params)
        document = bucket.settings.get(setting)
        if document is None:
            raise _no_such_setting(bucket, *missing)
        return {member: document}

    operation("s3", get, honours=GET)(get_setting)

    if put is not None:

        def put_setting(context: Context, params: Params) -> dict[str, Any]:
            bucket = requested_bucket(context, params)
            if member not in params:
                raise AwsError("MissingRequestBodyError", "Request Body is empty")
            document = params[member]
            bucket.settings[setting] = document if check is None else check(document)
            return {}

        operation("s3", put, honours=[*PUT, member])(put_setting)

    if delete is not None:

        def delete_setting(context: Context, params: Params) -> dict[str, Any]:
            bucket = requested_bucket(context, params)
            bucket.settings.pop(setting, None)
            if delete_resets is not None:
                bucket.settings[setting] = delete_resets()
            return {"__status__": 204}

        operation("s3", delete, honours=GET)(delete_setting)


def _check_block(document: dict[str, Any]) -> dict[str, Any]:
    return {name: bool(document.get(name, False)) for name in PUBLIC_ACCESS_BLOCK}


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


_register_setting(
    "public_access_block",
    member="PublicAccessBlockConfiguration",
    get="GetPublicAccessBlock",
    put="PutPublicAccessBlock",
    delete="DeletePublicAccessBlock",
    missing=("NoSuchPublicAccessBlockConfiguration", "The public access block configuration was not found"),
    check=_check_block,
)
_register_setting(
    "encryption",
    member="ServerSideEncryptionConfiguration",
    get="GetBucketEncryption",
    put="PutBucketEncryption",
    delete="DeleteBucketEncryption",
    delete_resets=_default_encryption,
)
_register_setting(
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
    state = requested_bucket(context, params).settings.get("versioning")
    return {"Status": state} if state else {}


@operation("s3", "PutBucketVersioning", honours=[*PUT, "VersioningConfiguration"])
def put_versioning(context: Context, params: Params) -> dict[str, Any]:
    """Suspend versioning, which leaves objects as they are without it; versions are not emulated."""
    bucket = requested_bucket(context, params)
    status = params.get("VersioningConfiguration", {}).get("Status")
    if status != "Suspended":
        raise AwsError("NotImplemented", "The sandbox does not emulate versions of objects.", status=501)
    bucket.settings["versioning"] = status
    return {}


@operation("s3", "GetBucketTagging", honours=GET)
def get_bucket_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Return the tags of a bucket."""
    bucket = requested_bucket(context, params)
    if "tagging" not in bucket.settings:
        raise _no_such_setting(bucket, "NoSuchTagSet", "The TagSet does not exist")
    return dict(bucket.settings["tagging"])


@operation("s3", "PutBucketTagging", honours=[*PUT, "Tagging"])
def put_bucket_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Replace the tags of a bucket."""
    requested_bucket(context, params).settings["tagging"] = _check_tagging(params["Tagging"])
    return {"__status__": 204}


@operation("s3", "DeleteBucketTagging", honours=GET)
def delete_bucket_tagging(context: Context, params: Params) -> dict[str, Any]:
    """Remove the tags of a bucket."""
    requested_bucket(context, params).settings.pop("tagging", None)
    return {"__status__": 204}


@operation("s3", "GetBucketLifecycleConfiguration", honours=GET)
def get_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Return the lifecycle rules; they are kept and shown, no rule runs here."""
    bucket = requested_bucket(context, params)
    if "lifecycle" not in bucket.settings:
        raise _no_such_setting(
            bucket, "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"
        )
    return dict(bucket.settings["lifecycle"])


@operation(
    "s3", "PutBucketLifecycleConfiguration", honours=[*GET, "ChecksumAlgorithm", "LifecycleConfiguration"]
)
def put_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Replace the lifecycle rules."""
    bucket = requested_bucket(context, params)
    if "LifecycleConfiguration" not in params:
        raise AwsError("MissingRequestBodyError", "Request Body is empty")
    bucket.settings["lifecycle"] = _check_lifecycle(params["LifecycleConfiguration"])
    return {}


@operation("s3", "DeleteBucketLifecycle", honours=GET)
def delete_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Remove the lifecycle rules."""
    requested_bucket(context, params).settings.pop("lifecycle", None)
    return {"__status__": 204}


def _own_bucket(context: Context, params: Params) -> Bucket:
    """Return a bucket of the caller's account: nobody else manages its policy, whatever the policy allows."""
    bucket = requested_bucket(context, params)
    if bucket.account != context.account:
        raise AwsError(
            "MethodNotAllowed", "The specified method is not allowed against this resource.", status=405
        )
    return bucket


@operation("s3", "GetBucketPolicy", honours=GET)
def get_policy(context: Context, params: Params) -> dict[str, Any]:
    """Return the bucket policy as it was given."""
    bucket = _own_bucket(context, params)
    if "policy" not in bucket.settings:
        raise _no_such_setting(bucket, "NoSuchBucketPolicy", "The bucket policy does not exist")
    return {"Policy": bucket.settings["policy"]}


@operation("s3", "PutBucketPolicy", honours=[*PUT, "Policy"])
def put_policy(context: Context, params: Params) -> dict[str, Any]:
    """Replace the bucket policy; a public one is refused while the bucket blocks public policies."""
    bucket = _own_bucket(context, params)
    document = _parse_bucket_policy(params["Policy"], bucket.name)
    block = bucket.settings.get("public_access_block", {})
    if block.get("BlockPublicPolicy") and _is_public_policy(document):
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
    _own_bucket(context, params).settings.pop("policy", None)
    return {"__status__": 204}


@operation("s3", "GetBucketPolicyStatus", honours=GET)
def get_policy_status(context: Context, params: Params) -> dict[str, Any]:
    """Say whether the bucket policy makes the bucket public."""
    bucket = requested_bucket(context, params)
    if "policy" not in bucket.settings:
        raise _no_such_setting(bucket, "NoSuchBucketPolicy", "The bucket policy does not exist")
    return {"PolicyStatus": {"IsPublic": _is_public_policy(json.loads(bucket.settings["policy"]))}}


@operation("s3", "GetBucketAcl", honours=GET)
def get_acl(context: Context, params: Params) -> dict[str, Any]:
    """Return the only ACL that there is with BucketOwnerEnforced: the owner's full control."""
    owner = {"ID": canonical_user_id(requested_bucket(context, params).account)}
    return {
        "Owner": owner,
        "Grants": [{"Grantee": {**owner, "Type": "CanonicalUser"}, "Permission": "FULL_CONTROL"}],
    }


# Bucket policies: what S3 accepts as one, when it is public, and what it decides beside identity policies.
#
# Sources: "Policy evaluation logic" and "Cross-account policy evaluation logic" in the IAM User Guide (within
# an account one of the two policies is enough, across accounts both must allow, a Deny in either wins);
# PutBucketPolicy in the Amazon S3 API Reference (the root user of the owner can always manage the policy);
# "Blocking public access to your Amazon S3 storage" (the meaning of public, RestrictPublicBuckets);
# "Troubleshoot access denied (403 Forbidden) errors in Amazon S3" (across accounts the text says no reason).

POLICY_ACTIONS = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})
RESTRICTING_KEYS = frozenset(
    {
        "aws:principalaccount",
        "aws:principalarn",
        "aws:principalorgid",
        "aws:sourceaccount",
        "aws:sourcearn",
        "aws:sourceip",
        "aws:sourceowner",
        "aws:sourcevpc",
        "aws:sourcevpce",
        "aws:userid",
        "s3:dataaccesspointaccount",
        "s3:dataaccesspointarn",
    }
)
"""Keys that make an Allow to everybody no public one, when they are compared with fixed values."""


def _parse_bucket_policy(text: str, bucket: str) -> dict[str, Any]:
    """Return a bucket policy as S3 accepts it.

    Raises
    ------
    AwsError
        ``MalformedPolicy``.
    """
    try:
        document = load_json(text)
    except ValueError:
        raise _malformed("Policies must be valid JSON and the first byte must be '{'") from None
    if not isinstance(document, dict) or not document.get("Statement"):
        raise _malformed("Missing required field Statement")
    for statement in statements(document):
        for name in ("Effect", "Principal", "Action", "Resource"):
            if name not in statement and f"Not{name}" not in statement:
                raise _malformed(f"Missing required field {name}")
        principal = statement.get("Principal", statement.get("NotPrincipal"))
        if principal != "*" and not (isinstance(principal, dict) and set(principal) <= PRINCIPAL_KINDS):
            raise _malformed("Invalid principal in policy")
        for resource in as_list(statement.get("Resource", statement.get("NotResource"))):
            found = re.fullmatch(r"arn:aws[\w-]*:s3:::([^/]*)(/.*)?", resource, re.DOTALL)
            if resource != "*" and (found is None or not wildcard_match(found[1], bucket)):
                raise _malformed("Policy has invalid resource")
    return document


def _malformed(text: str) -> AwsError:
    return AwsError("MalformedPolicy", text)


def _is_public_policy(document: dict[str, Any]) -> bool:
    """Return whether a policy lets everybody in: an Allow to ``*`` that no fixed value of a key narrows."""
    return any(
        statement.get("Effect") == "Allow"
        and ("NotPrincipal" in statement or "*" in _principals(statement))
        and not _is_restricted(statement.get("Condition") or {})
        for statement in statements(document)
    )


def _principals(statement: dict[str, Any]) -> list[Any]:
    principal = statement.get("Principal")
    return as_list(principal.get("AWS")) if isinstance(principal, dict) else [principal]


def _is_restricted(conditions: dict[str, dict[str, Any]]) -> bool:
    return any(
        key.lower() in RESTRICTING_KEYS and not any(set("*?") & set(str(one)) for one in as_list(values))
        for name, keys in conditions.items()
        if not name.endswith("IfExists") and "Not" not in name and name != "Null"
        for key, values in keys.items()
    )


def s3_denial_reason(
    tables: Tables,
    question: AccessRequest,
    *,
    account: str,
    principal: str,
    documents: list[str] | None,
    root: bool = False,
) -> str:
    """Return why a principal may not do something in S3, in AWS's words; "" when it may.

    Parameters
    ----------
    tables
        Of the sandbox: the policy is that of the bucket which the question's resource names.
    question
        Action, ARN and condition keys.
    account, principal
        Account and ARN of who asks; of a service role, the ARN of its session.
    documents
        The identity policies of the principal; None when they allow everything.
    root
        Whether the principal stands for the root user of its account.
    """
    action = question.action
    identity = ALLOWED if documents is None else evaluate(documents, question)
    if identity == EXPLICIT_DENY:
        return "with an explicit deny in an identity-based policy"
    bucket = None if action == "s3:CreateBucket" else find_bucket(tables, _bucket_name(question.resource))
    across = bucket is not None and bucket.account != account
    decision = _bucket_policy_decision(bucket, principal, account, question)
    if decision == EXPLICIT_DENY and not (root and not across and action in POLICY_ACTIONS):
        return "with an explicit deny in a resource-based policy"
    if across and decision not in {ALLOWED, DELEGATED}:
        return f"because no resource-based policy allows the {action} action"
    if identity != ALLOWED and (across or decision != ALLOWED):
        return f"because no identity-based policy allows the {action} action"
    return ""


def _bucket_name(resource: str) -> str:
    return resource.partition(":::")[2].partition("/")[0]


def _bucket_policy_decision(
    bucket: Bucket | None, principal: str, account: str, question: AccessRequest
) -> str:
    """Return what the policy of a bucket decides; ``implicitDeny`` where there is none."""
    text = bucket.settings.get("policy") if bucket is not None else None
    if bucket is None or not text:
        return IMPLICIT_DENY
    decision = evaluate_resource_policy(text, principal, account, question)
    restricted = bucket.settings.get("public_access_block", {}).get("RestrictPublicBuckets")
    if decision != EXPLICIT_DENY and account != bucket.account and restricted:
        return IMPLICIT_DENY if _is_public_policy(json.loads(text)) else decision
    return decision
