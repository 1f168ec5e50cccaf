"""Buckets: create, head, list, delete, location.

Sources: CreateBucket, HeadBucket, ListBuckets, DeleteBucket, GetBucketLocation in the Amazon S3 API
Reference; "Bucket naming rules" in the Amazon S3 User Guide.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from ..objects import Bucket, find_bucket
from ..wire import regions
from .common import bucket_of, owner_id
from .settings import defaults

if TYPE_CHECKING:
    from ..core import Context, Params

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
BUCKETS_PER_PAGE = 10_000


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or ".." in name or ADDRESS.fullmatch(name) or name.startswith("xn--"):
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
    bucket = Bucket(name, context.account, region, context.clock.now(), settings=defaults())
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
        if constraint == "us-east-1" or not regions.exists(constraint):
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
    bucket = bucket_of(context, params)
    return {"BucketRegion": bucket.region, "AccessPointAlias": False}


@operation("s3", "GetBucketLocation", honours=["Bucket", "ExpectedBucketOwner"])
def get_bucket_location(context: Context, params: Params) -> dict[str, Any]:
    """Return the region of a bucket; us-east-1 is an empty text. Any region may ask."""
    bucket = find_bucket(context.tables, params["Bucket"])
    if bucket is not None and params.get("ExpectedBucketOwner") in {None, bucket.account}:
        return {"LocationConstraint": "" if bucket.region == "us-east-1" else bucket.region}
    bucket_of(context, params)
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
        "Owner": {"ID": owner_id(context.account)},
    }
    if prefix:
        answer["Prefix"] = prefix
    if len(found) > limit:
        answer["ContinuationToken"] = found[limit - 1].name
    return answer


@operation("s3", "DeleteBucket", honours=["Bucket", "ExpectedBucketOwner"])
def delete_bucket(context: Context, params: Params) -> dict[str, Any]:
    """Delete an empty bucket."""
    bucket = bucket_of(context, params)
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
