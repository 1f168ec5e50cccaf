"""The bucket of a call, and what every operation on objects has in common.

Sources: "Using Requester Pays general purpose buckets for storage transfers and usage" in the Amazon S3 User
Guide; "Error Responses" in the Amazon S3 API Reference; for a malformed owner, AWS's answers of February 2026
in LocalStack's ``test_s3.snapshot.json``.
"""

from __future__ import annotations

import re
from functools import wraps
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, operation
from vmsnix_ops.sandbox.s3.versions import expire_objects
from vmsnix_ops.sandbox.storage import Bucket, find_bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox.core import Context, Handler, Params


def requested_bucket(context: Context, params: Params) -> Bucket:
    """Return the bucket of a call.

    Raises
    ------
    ApiError
        ``NoSuchBucket``, ``PermanentRedirect`` to its region, ``AccessDenied`` for an unexpected owner or a
        requester who does not pay. The permissions of the caller were checked before.
    """
    name = params["Bucket"]
    bucket = existing_bucket(context, name)
    if bucket.region != context.region:
        raise ApiError(
            "PermanentRedirect",
            "The bucket you are attempting to access must be addressed using the specified endpoint. "
            "Please send all future requests to this endpoint.",
            status=301,
            Endpoint=f"{name}.s3.{bucket.region}.amazonaws.com",
            Bucket=name,
            BucketRegion=bucket.region,
        )
    check_owner(bucket, params.get("ExpectedBucketOwner"))
    if is_charged(context, bucket) and params.get("RequestPayer") != "requester":
        raise ApiError("AccessDenied", "Access Denied", status=403)
    expire_objects(context, bucket)
    return bucket


def existing_bucket(context: Context, name: str) -> Bucket:
    """Return a bucket of any account and region, or raise ``NoSuchBucket``."""
    bucket = find_bucket(context.tables, name)
    if bucket is None:
        raise ApiError("NoSuchBucket", "The specified bucket does not exist", status=404, BucketName=name)
    return bucket


def check_owner(bucket: Bucket, expected: str | None) -> None:
    """Check the account that the caller expects to own a bucket."""
    if expected is None:
        return
    if not re.fullmatch("[0-9]{12}", expected):
        raise ApiError(
            "InvalidBucketOwnerAWSAccountID",
            f"The value of the expected bucket owner parameter must be an AWS Account ID... [{expected}]",
        )
    if expected != bucket.account:
        raise ApiError("AccessDenied", "Access Denied", status=403)


def is_charged(context: Context, bucket: Bucket) -> bool:
    """Return whether the caller, not the owner of the bucket, pays for a call."""
    return bucket.settings.get("payer") == "Requester" and context.account != bucket.account


def object_operation(name: str, *parameters: str, locks: bool = True) -> Callable[[Handler], Handler]:
    """Register an operation of S3 that also has the parameters ExpectedBucketOwner and RequestPayer.

    Its answer has ``RequestCharged`` when the requester pays. The other parameters are those of `operation`.
    """

    def register(handler: Handler) -> Handler:
        @wraps(handler)
        def handle(context: Context, params: Params) -> dict[str, Any]:
            answer = handler(context, params)
            bucket = find_bucket(context.tables, params["Bucket"])
            if bucket is not None and is_charged(context, bucket):
                answer["RequestCharged"] = "requester"
            return answer

        operation("s3", name, *parameters, "ExpectedBucketOwner RequestPayer", locks=locks)(handle)
        return handler

    return register
