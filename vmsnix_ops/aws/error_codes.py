"""AWS error codes by what they mean for the caller: the one list for every retry and every explanation.

Sources: "Common errors" of the EC2, S3, Systems Manager, Auto Scaling and STS API references; "Errors" of
PutSnapshotBlock in the EBS direct APIs' reference, whose `Reason` says which limit was reached.
"""

from __future__ import annotations

CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
"""The credentials are wrong, expired, or unknown in this region."""

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidSignatureException", "RequestExpired"})
"""Newer credentials may pass."""

CLOCK = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
"""This machine's clock is wrong."""

DENIED = frozenset(
    {"AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation", "403"}
)
"""A policy does not allow the action."""

THROTTLING = frozenset(
    {
        "Client.RequestLimitExceeded",
        "EC2ThrottledException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
"""Too many requests in a short time: the same request passes later."""

SERVER_FAULTS = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "InternalServerException",
        "RequestTimeout",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "Unavailable",
    }
)
"""AWS failed, not the request: the same request passes later."""

RETRYABLE = THROTTLING | SERVER_FAULTS
"""The same request may pass later."""

QUOTA = frozenset(
    {
        "AMIQuotaExceeded",
        "ConcurrentLimitExceededException",
        "ResourceCountLimitExceeded",
        "ResourceLimitExceeded",
        "ServiceQuotaExceededException",
        "SnapshotLimitExceeded",
    }
)
"""A service quota is used up: the same request passes when something was deleted or the quota was raised."""


def throttle_cause(code: str, reason: str, operation: str) -> str:
    """Return which limit a throttled request reached, as a sentence; empty when AWS does not say.

    Parameters
    ----------
    code
        AWS's error code.
    reason
        Member ``Reason`` of a ``RequestThrottledException`` of the EBS direct APIs.
    operation
        Such as ``"PutSnapshotBlock"``; may be empty.
    """
    if reason == "RESOURCE_LEVEL_THROTTLE":
        return "AWS allows 1,000 requests a second for one snapshot. This limit is fixed; no quota raises it."
    if reason == "ACCOUNT_THROTTLED" or code == "ThrottlingException":
        quota = f"{operation} requests per account" if operation else "requests per account"
        return f"The account reached its quota for {quota} in this region. AWS can raise it."
    return ""
