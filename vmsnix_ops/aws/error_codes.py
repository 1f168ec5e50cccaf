"""AWS error codes by meaning: the one table for retries and for the texts of errors.

Sources: "Common errors" of the EC2, S3, Systems Manager, Auto Scaling and STS API references; "Errors" of
PutSnapshotBlock in the EBS direct APIs' reference, whose `Reason` names the limit.
"""

from __future__ import annotations

CREDENTIALS = frozenset({
    "AuthFailure", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId",
    "InvalidToken", "RequestExpired", "SignatureDoesNotMatch", "UnrecognizedClientException",
})  # fmt: skip
"""The credentials are wrong, expired, or unknown in this region."""

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidSignatureException", "RequestExpired"})
"""The same request may succeed with newer credentials."""

CLOCK = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
"""This machine's clock is wrong."""

DENIED = frozenset(
    {"AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation", "403"}
)
"""A policy does not allow the action."""

THROTTLING = frozenset({
    "Client.RequestLimitExceeded", "EC2ThrottledException", "RequestLimitExceeded", "RequestThrottled",
    "RequestThrottledException", "SlowDown", "ThrottledException", "Throttling", "ThrottlingException",
    "TooManyRequestsException",
})  # fmt: skip
"""Too many requests in a short time: the same request succeeds later."""

SERVER_FAULTS = frozenset({
    "InternalError", "InternalFailure", "InternalServerError", "InternalServerException", "RequestTimeout",
    "ServiceUnavailable", "ServiceUnavailableException", "Unavailable",
})  # fmt: skip
"""A fault of AWS, not of the request: the same request succeeds later."""

RETRYABLE = THROTTLING | SERVER_FAULTS
"""The same request may succeed later."""

AMI_NOT_FOUND = "InvalidAMIID.NotFound"
INSTANCE_NOT_FOUND = "InvalidInstanceID.NotFound"
SNAPSHOT_NOT_FOUND = "InvalidSnapshot.NotFound"
"""The resource does not exist, or is not visible yet: reads may lag behind a create call for a moment."""

QUOTA = frozenset({
    "AMIQuotaExceeded", "ConcurrentLimitExceededException", "ResourceCountLimitExceeded",
    "ResourceLimitExceeded", "ServiceQuotaExceededException", "SnapshotLimitExceeded",
})  # fmt: skip
"""A service quota is reached: the request succeeds after a deletion or with a higher quota."""


def throttle_cause(code: str, reason: str, operation: str) -> str:
    """Return a sentence about the limit that a throttled request reached; empty if AWS does not name it.

    `reason` is the member ``Reason`` of a ``RequestThrottledException`` of the EBS direct APIs.
    """
    if reason == "RESOURCE_LEVEL_THROTTLE":
        return "AWS allows 1,000 requests a second for one snapshot. This limit is fixed; no quota raises it."
    if reason == "ACCOUNT_THROTTLED" or code == "ThrottlingException":
        quota = f"{operation} requests per account" if operation else "requests per account"
        return f"The account reached its quota for {quota} in this region. AWS can raise it."
    return ""
