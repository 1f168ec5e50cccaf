"""Buckets: create, list, delete, location, settings, and the evaluation of bucket policies.

Sources: CreateBucket, HeadBucket, ListBuckets, DeleteBucket, GetBucketLocation in the Amazon S3 API
Reference; "Bucket naming rules" in the Amazon S3 User Guide; AWS's answers of February 2026 in LocalStack's
``test_s3.snapshot.json``, ``test_s3_api...`` and ``test_s3_list_operations...``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, given, load_json, not_emulated, operation, words
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
from vmsnix_ops.sandbox.s3.common import (
    canonical_user_id,
    check_tags,
    invalid_argument,
    invalid_request,
    owner_acl,
    s3_error,
)
from vmsnix_ops.sandbox.s3.store import check_owner, existing_bucket, requested_bucket
from vmsnix_ops.sandbox.storage import Bucket, find_bucket
from vmsnix_ops.sandbox.wire.protocols import malformed_xml

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox.core import Context, Params, SandboxTables


BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
IP_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
BUCKETS_PER_PAGE = 10_000
OWNERSHIPS = ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter")  # since 2023, the first: no ACLs


def _check_name(name: str) -> None:
    if (
        not BUCKET_NAME.fullmatch(name)
        or ".." in name
        or IP_ADDRESS.fullmatch(name)
        or name.startswith("xn--")
    ):
        raise s3_error("InvalidBucketName", BucketName=name)


@operation("s3", "CreateBucket", "Bucket CreateBucketConfiguration ACL ObjectOwnership")
def create_bucket(context: Context, params: Params) -> dict[str, Any]:
    """Create a bucket in the region of the call."""
    name = params["Bucket"]
    _check_name(name)
    if params.get("ACL", "private") != "private":
        raise s3_error("InvalidBucketAclWithObjectOwnership")
    region = _new_region(context, params)
    existing = find_bucket(context.tables, name)
    tags = (params.get("CreateBucketConfiguration") or {}).get("Tags")
    answer = {"BucketArn": _bucket_arn(context, name)}
    if existing is not None:
        _refuse_existing(context, existing, tagged=bool(tags))
        return {"Location": f"/{name}", **answer}
    ownership = params.get("ObjectOwnership", OWNERSHIPS[0])
    if ownership not in OWNERSHIPS:
        text = f"Invalid x-amz-object-ownership header: {ownership}"
        raise invalid_argument(text, "x-amz-object-ownership")
    settings = {
        "public_access_block": dict(PUBLIC_ACCESS_BLOCK),
        "ownership": {"Rules": [{"ObjectOwnership": ownership}]},
    }
    if tags:
        check_tags(tags, limit=50)
        settings["tagging"] = {"TagSet": tags}
    bucket = Bucket(name, context.account, region, context.clock.now(), settings=settings)
    context.table("buckets", region="")[name] = bucket
    return {"Location": f"/{name}" if region == "us-east-1" else f"http://{name}.s3.amazonaws.com/", **answer}


def _bucket_arn(context: Context, name: str) -> str:
    return f"arn:{context.partition}:s3:::{name}"


def _new_region(context: Context, params: Params) -> str:
    """Return the region of a new bucket. Only us-east-1 creates buckets of other regions."""
    configuration = params.get("CreateBucketConfiguration") or {}
    for member in configuration:
        if member not in {"LocationConstraint", "Tags"}:
            raise not_emulated(f"{member} of CreateBucket")
    written = configuration.get("LocationConstraint")
    constraint = "eu-west-1" if written == "EU" else written
    if context.region == "us-east-1":
        if constraint is None:
            return "us-east-1"
        if constraint == "us-east-1" or not region_exists(constraint):
            raise s3_error("InvalidLocationConstraint", LocationConstraint=constraint)
        return str(constraint)
    if constraint != context.region:
        shown = written or "unspecified"
        raise ApiError(
            "IllegalLocationConstraintException",
            f"The {shown} location constraint is incompatible for the region specific endpoint this request "
            "was sent to.",
        )
    return context.region


def _refuse_existing(context: Context, existing: Bucket, *, tagged: bool) -> None:
    """Refuse to create a bucket again. In us-east-1, a repeated call without tags succeeds."""
    if existing.account != context.account:
        raise s3_error("BucketAlreadyExists", BucketName=existing.name)
    if tagged or not existing.region == context.region == "us-east-1":
        raise s3_error("BucketAlreadyOwnedByYou", BucketName=existing.name)


@operation("s3", "HeadBucket", "Bucket ExpectedBucketOwner")
def head_bucket(context: Context, params: Params) -> dict[str, Any]:
    """Return the region of a bucket that the caller may use."""
    bucket = requested_bucket(context, params)
    return {
        "BucketRegion": bucket.region,
        "BucketArn": _bucket_arn(context, bucket.name),
        "AccessPointAlias": False,
    }


@operation("s3", "GetBucketLocation", "Bucket ExpectedBucketOwner")
def get_bucket_location(context: Context, params: Params) -> dict[str, Any]:
    """Return the region of a bucket, "" for us-east-1. Every region answers."""
    bucket = existing_bucket(context, params["Bucket"])
    check_owner(bucket, params.get("ExpectedBucketOwner"))
    return {"LocationConstraint": "" if bucket.region == "us-east-1" else bucket.region}


@operation("s3", "ListBuckets", "MaxBuckets ContinuationToken Prefix BucketRegion")
def list_buckets(context: Context, params: Params) -> dict[str, Any]:
    """List the buckets of the account in all regions."""
    prefix, region = params.get("Prefix", ""), params.get("BucketRegion")
    start = params.get("ContinuationToken", "")
    limit = params.get("MaxBuckets", BUCKETS_PER_PAGE)
    if region is not None and not region_exists(region):
        text = f"Argument value {region} is not a valid AWS Region"
        raise invalid_argument(text, "bucket-region")
    found = [
        bucket
        for name, bucket in sorted(context.table("buckets", region="").items())
        if name.startswith(prefix) and name > start and region in {None, bucket.region}
    ]
    shown = [
        {
            "Name": bucket.name,
            "CreationDate": bucket.created,
            "BucketRegion": bucket.region,
            "BucketArn": _bucket_arn(context, bucket.name),
        }
        for bucket in found[:limit]
    ]
    token = found[limit - 1].name if len(found) > limit else ""
    answer = {"Buckets": shown, "Owner": {"ID": canonical_user_id(context.account)}}
    return answer | given(Prefix=prefix, ContinuationToken=token)


@operation("s3", "DeleteBucket", "Bucket ExpectedBucketOwner")
def delete_bucket(context: Context, params: Params) -> dict[str, Any]:
    """Delete an empty bucket."""
    bucket = requested_bucket(context, params)
    if bucket.objects or bucket.history:
        versioned = ". You must delete all versions in the bucket." if "versioning" in bucket.settings else ""
        text = f"The bucket you tried to delete is not empty{versioned}"
        raise ApiError("BucketNotEmpty", text, status=409, BucketName=bucket.name)
    for upload in bucket.uploads.values():
        for part in upload.parts.values():
            part.path(context.folder).unlink(missing_ok=True)
    del context.tables.table(bucket.account, "", "buckets")[bucket.name]
    return {"__status__": 204}


# Settings
#
# Bucket policies are evaluated, and public ones are blocked. Versioning, lifecycle rules and Requester Pays
# work. The other settings have no effect. Source: "Default settings for new S3 buckets FAQ" in the Amazon S3
# User Guide.


GET = ("Bucket", "ExpectedBucketOwner")
PUT = (*GET, "ContentMD5", "ChecksumAlgorithm")
PUBLIC_ACCESS_BLOCK = dict.fromkeys(
    words("BlockPublicAcls IgnorePublicAcls BlockPublicPolicy RestrictPublicBuckets"), True
)


def _default_encryption() -> dict[str, Any]:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": False}
    return {"Rules": [rule]}


def _register_setting(
    setting: str,
    *,
    member: str,
    noun: str,
    missing: str = "",
    check: Callable[[Any], Any],
    default: Callable[[], Any] | None = None,
    is_answer: bool = False,
    put_status: int = 200,
) -> None:
    """Register the operations ``Get``, ``Put`` and ``Delete`` with `noun`, for a document of a bucket.

    `setting` is its key in `Bucket.settings`. `member` is the parameter with the document, and also the
    member of the answer, unless the document `is_answer`. `missing` is the code of the error without a
    document, unless `default` returns one. `check` returns a checked new document; None deletes the document.
    """

    def get_setting(context: Context, params: Params) -> dict[str, Any]:
        bucket = requested_bucket(context, params)
        document = bucket.settings.get(setting) or (default() if default is not None else None)
        if document is None:
            raise s3_error(missing, BucketName=bucket.name)
        return dict(document) if is_answer else {member: document}

    def put_setting(context: Context, params: Params) -> dict[str, Any]:
        bucket = requested_bucket(context, params)
        if member not in params:
            raise s3_error("MissingRequestBodyError")
        document = check(params[member])
        if document is None:
            bucket.settings.pop(setting, None)
        else:
            bucket.settings[setting] = document
        return {} if put_status == 200 else {"__status__": put_status}

    def delete_setting(context: Context, params: Params) -> dict[str, Any]:
        bucket = requested_bucket(context, params)
        bucket.settings.pop(setting, None)
        return {"__status__": 204}

    operation("s3", f"Get{noun}", *GET)(get_setting)
    operation("s3", f"Put{noun}", *PUT, member)(put_setting)
    operation("s3", f"Delete{noun}", *GET)(delete_setting)


def _check_block(document: dict[str, Any]) -> dict[str, Any]:
    return {name: bool(document.get(name, False)) for name in PUBLIC_ACCESS_BLOCK}


def _check_tagging(document: dict[str, Any]) -> dict[str, Any] | None:
    """Check the tags of a bucket. An empty list removes all tags: then S3 answers ``NoSuchTagSet``."""
    check_tags(document["TagSet"], limit=50)
    return document if document["TagSet"] else None


def _check_encryption(document: dict[str, Any]) -> dict[str, Any]:
    default = _only_rule(document).get("ApplyServerSideEncryptionByDefault", {})
    if "KMSMasterKeyID" in default and not str(default.get("SSEAlgorithm")).startswith("aws:kms"):
        raise invalid_argument(
            "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse",
            "ApplyServerSideEncryptionByDefault",
        )
    return document


def _check_ownership(document: dict[str, Any]) -> dict[str, Any]:
    _only_rule(document)
    return document


def _only_rule(document: dict[str, Any]) -> dict[str, Any]:
    rules: list[dict[str, Any]] = document["Rules"]
    if len(rules) != 1:
        raise malformed_xml()
    return rules[0]


_register_setting(
    "public_access_block",
    member="PublicAccessBlockConfiguration",
    noun="PublicAccessBlock",
    missing="NoSuchPublicAccessBlockConfiguration",
    check=_check_block,
)
_register_setting(
    "encryption",
    member="ServerSideEncryptionConfiguration",
    noun="BucketEncryption",
    check=_check_encryption,
    default=_default_encryption,
)
_register_setting(
    "ownership",
    member="OwnershipControls",
    noun="BucketOwnershipControls",
    missing="OwnershipControlsNotFoundError",
    check=_check_ownership,
)
_register_setting(
    "tagging",
    member="Tagging",
    noun="BucketTagging",
    missing="NoSuchTagSet",
    check=_check_tagging,
    is_answer=True,
    put_status=204,
)


# Documents that no operation of the sandbox can put: the errors for a bucket without them

UNSET_DOCUMENTS = {
    "GetBucketCors": "NoSuchCORSConfiguration",
    "GetBucketReplication": "ReplicationConfigurationNotFoundError",
    "GetBucketWebsite": "NoSuchWebsiteConfiguration",
    "GetObjectLockConfiguration": "ObjectLockConfigurationNotFoundError",
}
EMPTY_DOCUMENTS = words(
    "GetBucketAccelerateConfiguration GetBucketLogging GetBucketNotificationConfiguration"
)
EMPTY_LISTS = words(
    "ListBucketAnalyticsConfigurations ListBucketIntelligentTieringConfigurations "
    "ListBucketInventoryConfigurations ListBucketMetricsConfigurations"
)


def _register_unset(name: str, answer: dict[str, Any] | str, *more: str) -> None:
    """Register an operation that reads a document which no bucket of the sandbox has.

    `answer` is its answer, or the code of its error.
    """

    def get_unset(context: Context, params: Params) -> dict[str, Any]:
        bucket = requested_bucket(context, params)
        if isinstance(answer, dict):
            return dict(answer)
        raise s3_error(answer, BucketName=bucket.name)

    operation("s3", name, *GET, *more)(get_unset)


for _name, _error in UNSET_DOCUMENTS.items():
    _register_unset(_name, _error)
for _name in EMPTY_DOCUMENTS:
    _register_unset(_name, {})
for _name in EMPTY_LISTS:
    _register_unset(_name, {"IsTruncated": False}, "ContinuationToken")


# Lifecycle rules; `store` applies them

LIFECYCLE_ACTIONS = set(
    words(
        "Expiration Transitions NoncurrentVersionTransitions NoncurrentVersionExpiration "
        "AbortIncompleteMultipartUpload"
    )
)
MINIMUM_SIZES = ("all_storage_classes_128K", "varies_by_storage_class")  # the default first


@operation("s3", "GetBucketLifecycleConfiguration", *GET)
def get_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Return the lifecycle rules of a bucket."""
    bucket = requested_bucket(context, params)
    if "lifecycle" not in bucket.settings:
        raise s3_error("NoSuchLifecycleConfiguration", BucketName=bucket.name)
    return dict(bucket.settings["lifecycle"])


@operation(
    "s3",
    "PutBucketLifecycleConfiguration",
    *GET,
    "ChecksumAlgorithm LifecycleConfiguration TransitionDefaultMinimumObjectSize",
)
def put_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Replace the lifecycle rules of a bucket."""
    bucket = requested_bucket(context, params)
    if "LifecycleConfiguration" not in params:
        raise s3_error("MissingRequestBodyError")
    size = params.get("TransitionDefaultMinimumObjectSize", MINIMUM_SIZES[0])
    if size not in MINIMUM_SIZES:
        raise invalid_request(f"Invalid TransitionDefaultMinimumObjectSize found: {size}")
    rules = _check_rules(params["LifecycleConfiguration"].get("Rules", []))
    bucket.settings["lifecycle"] = {"Rules": rules, "TransitionDefaultMinimumObjectSize": size}
    bucket.expired_on = ""
    return {"TransitionDefaultMinimumObjectSize": size}


@operation("s3", "DeleteBucketLifecycle", *GET)
def delete_lifecycle(context: Context, params: Params) -> dict[str, Any]:
    """Remove the lifecycle rules of a bucket."""
    requested_bucket(context, params).settings.pop("lifecycle", None)
    return {"__status__": 204}


def _check_rules(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rules or any(rule.get("Status") not in {"Enabled", "Disabled"} for rule in rules):
        raise malformed_xml()
    for number, rule in enumerate(rules):
        if not LIFECYCLE_ACTIONS & set(rule):
            raise invalid_request("At least one action needs to be specified in a rule")
        expiration = rule.get("Expiration", {})
        if expiration.get("ExpiredObjectDeleteMarker") and {"Days", "Date"} & set(expiration):
            raise malformed_xml()
        rule.setdefault("ID", f"rule-{number}")
    if len({rule["ID"] for rule in rules}) != len(rules):
        raise ApiError("InvalidArgument", "Rule ID must be unique. Found same ID for more than one rule")
    return rules


# Requester Pays, versioning


@operation("s3", "GetBucketRequestPayment", *GET)
def get_request_payment(context: Context, params: Params) -> dict[str, Any]:
    """Return who pays for requests."""
    return {"Payer": requested_bucket(context, params).settings.get("payer", "BucketOwner")}


@operation("s3", "PutBucketRequestPayment", *PUT, "RequestPaymentConfiguration")
def put_request_payment(context: Context, params: Params) -> dict[str, Any]:
    """Set who pays for requests."""
    bucket = requested_bucket(context, params)
    bucket.settings["payer"] = params["RequestPaymentConfiguration"]["Payer"]
    return {}


@operation("s3", "GetBucketVersioning", *GET)
def get_versioning(context: Context, params: Params) -> dict[str, Any]:
    """Return the versioning state of a bucket; empty if it was never set."""
    state = requested_bucket(context, params).settings.get("versioning")
    return {"Status": state} if state else {}


@operation("s3", "PutBucketVersioning", *PUT, "VersioningConfiguration")
def put_versioning(context: Context, params: Params) -> dict[str, Any]:
    """Enable or suspend versioning. MFA Delete is not emulated."""
    bucket = requested_bucket(context, params)
    configuration = params.get("VersioningConfiguration", {})
    if configuration.get("MFADelete") == "Enabled":
        raise not_emulated("MFADelete of s3:PutBucketVersioning")
    if "Status" not in configuration:
        raise s3_error("IllegalVersioningConfigurationException")
    bucket.settings["versioning"] = configuration["Status"]
    return {}


def _own_bucket(context: Context, params: Params) -> Bucket:
    """Return a bucket of the caller. No policy allows another account to manage it."""
    bucket = requested_bucket(context, params)
    if bucket.account != context.account:
        raise s3_error("MethodNotAllowed")
    return bucket


@operation("s3", "GetBucketPolicy", *GET)
def get_policy(context: Context, params: Params) -> dict[str, Any]:
    """Return the bucket policy as it was sent."""
    return {"Policy": _policy_of(_own_bucket(context, params))}


def _policy_of(bucket: Bucket) -> str:
    if "policy" not in bucket.settings:
        raise s3_error("NoSuchBucketPolicy", BucketName=bucket.name)
    return str(bucket.settings["policy"])


@operation("s3", "PutBucketPolicy", *PUT, "Policy")
def put_policy(context: Context, params: Params) -> dict[str, Any]:
    """Replace the bucket policy. A public policy is refused while the bucket blocks public policies."""
    bucket = _own_bucket(context, params)
    document = _parse_bucket_policy(params["Policy"], bucket.name)
    block = bucket.settings.get("public_access_block", {})
    if block.get("BlockPublicPolicy") and _is_public_policy(document):
        raise ApiError(
            "AccessDenied",
            f"User: {context.principal} is not authorized to perform: s3:PutBucketPolicy on resource: "
            f'"{_bucket_arn(context, bucket.name)}" because public policies are prevented by the '
            "BlockPublicPolicy setting in S3 Block Public Access.",
            status=403,
        )
    bucket.settings["policy"] = params["Policy"]
    return {"__status__": 204}


@operation("s3", "DeleteBucketPolicy", *GET)
def delete_policy(context: Context, params: Params) -> dict[str, Any]:
    """Remove the bucket policy."""
    _own_bucket(context, params).settings.pop("policy", None)
    return {"__status__": 204}


@operation("s3", "GetBucketPolicyStatus", *GET)
def get_policy_status(context: Context, params: Params) -> dict[str, Any]:
    """Return whether the bucket policy makes the bucket public."""
    policy = json.loads(_policy_of(requested_bucket(context, params)))
    return {"PolicyStatus": {"IsPublic": _is_public_policy(policy)}}


@operation("s3", "GetBucketAcl", *GET)
def get_acl(context: Context, params: Params) -> dict[str, Any]:
    """Return the ACL of every bucket with BucketOwnerEnforced: full control for the owner."""
    return owner_acl(requested_bucket(context, params))


# Bucket policies
#
# Sources: "Policy evaluation logic" and "Cross-account policy evaluation logic" in the IAM User Guide
# (within an account, an Allow in the bucket policy or the identity policies is enough; across accounts both
# must allow; a Deny in either refuses); PutBucketPolicy in the Amazon S3 API Reference (the root user of
# the owner can always manage the policy); "Blocking public access to your Amazon S3 storage" (definition of
# public, RestrictPublicBuckets); "Troubleshoot access denied (403 Forbidden) errors in Amazon S3" (across
# accounts the text has no reason).

POLICY_ACTIONS = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})
RESTRICTING_KEYS = frozenset(
    words(
        "aws:principalaccount aws:principalarn aws:principalorgid aws:sourceaccount aws:sourcearn "
        "aws:sourceip aws:sourceowner aws:sourcevpc aws:sourcevpce aws:userid s3:dataaccesspointaccount "
        "s3:dataaccesspointarn"
    )
)
"""Condition keys with which an Allow to everybody is not public, if they are compared with fixed values."""


def _parse_bucket_policy(text: str, bucket: str) -> dict[str, Any]:
    """Return the document of a bucket policy, or raise ``MalformedPolicy``."""
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


def _malformed(text: str) -> ApiError:
    return ApiError("MalformedPolicy", text)


def _is_public_policy(document: dict[str, Any]) -> bool:
    """Return whether a policy is public: an Allow to ``*`` without a condition on a fixed value."""
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
    tables: SandboxTables,
    request: AccessRequest,
    *,
    account: str,
    principal: str,
    documents: list[str] | None,
    root: bool = False,
) -> str:
    """Return in AWS's words why a request to S3 is denied; "" when it is allowed.

    The bucket policy is that of the bucket in the request. `principal` is the ARN of the caller; for a
    service role, that of its session. `documents` are the identity policies of the principal; None: they
    allow everything, as for the root user.
    """
    action = request.action
    identity = ALLOWED if documents is None else evaluate(documents, request)
    if identity == EXPLICIT_DENY:
        return "with an explicit deny in an identity-based policy"
    name = request.resource.partition(":::")[2].partition("/")[0]
    bucket = None if action == "s3:CreateBucket" else find_bucket(tables, name)
    across = bucket is not None and bucket.account != account
    decision = _bucket_policy_decision(bucket, principal, account, request)
    if decision == EXPLICIT_DENY and not (root and not across and action in POLICY_ACTIONS):
        return "with an explicit deny in a resource-based policy"
    if across and decision not in {ALLOWED, DELEGATED}:
        return f"because no resource-based policy allows the {action} action"
    if identity != ALLOWED and (across or decision != ALLOWED):
        return f"because no identity-based policy allows the {action} action"
    return ""


def _bucket_policy_decision(
    bucket: Bucket | None, principal: str, account: str, request: AccessRequest
) -> str:
    """Return the decision of a bucket's policy; ``implicitDeny`` without a policy."""
    text = bucket.settings.get("policy") if bucket is not None else None
    if bucket is None or not text:
        return IMPLICIT_DENY
    decision = evaluate_resource_policy(text, principal, account, request)
    restricted = bucket.settings.get("public_access_block", {}).get("RestrictPublicBuckets")
    if decision != EXPLICIT_DENY and account != bucket.account and restricted:
        return IMPLICIT_DENY if _is_public_policy(json.loads(text)) else decision
    return decision
