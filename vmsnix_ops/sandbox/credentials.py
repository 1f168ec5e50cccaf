"""Access keys and sessions, and the authentication of requests.

Error codes differ by service. Sources: "Common Errors" in the API references of IAM, STS, Systems Manager and
EBS direct APIs; "Error codes for the Amazon EC2 API"; "Error Responses" in the Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Clock, SandboxTables, later
from vmsnix_ops.sandbox.regions import region_exists
from vmsnix_ops.sandbox.wire.http import SIGNATURE_TEXT
from vmsnix_ops.sandbox.wire.signature import (
    UNSIGNED_PAYLOAD,
    malformed_authorization,
    possible_texts,
    signature_is_right,
    unsigned_headers,
)

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.wire.http import Request
    from vmsnix_ops.sandbox.wire.models import Service
    from vmsnix_ops.sandbox.wire.signature import Authorization


DEFAULT_ACCOUNT = "012345678901"  # begins with a zero, which is lost where an account ID is read as a number
DEFAULT_ACCESS_KEY = "AKIAVMSNIXSANDBOX000"
DEFAULT_SECRET_KEY = "vmsnix-sandbox-secret-key-that-opens-nothing"  # noqa: S105 - of no AWS account


@dataclass(frozen=True)
class Credential:
    """One access key, or the key of one session."""

    access_key: str
    secret: str
    account: str
    principal: str  # ARN
    user_id: str
    token: str | None = None
    issued: datetime | None = None
    expires: datetime | None = None
    tags: dict[str, str] = field(default_factory=dict)  # of a session
    transitive: tuple[str, ...] = ()  # keys of the tags that sessions of this session inherit


ANONYMOUS = Credential(access_key="", secret="", account="", principal="", user_id="")
"""The caller of an unsigned request."""


def credentials_table(tables: SandboxTables) -> dict[str, Credential]:
    """Return all credentials of all accounts by access key."""
    return tables.table("", "", "credentials")


def add_credential(
    tables: SandboxTables, prefix: str, account: str, principal: str, user_id: str, **session: Any
) -> Credential:
    """Create an access key that begins with a prefix; `session` are the fields of a session's credential."""
    key = prefix + secrets.token_hex(8).upper()
    credential = Credential(key, secrets.token_urlsafe(30), account, principal, user_id, **session)
    credentials_table(tables)[key] = credential
    return credential


def unique_id(prefix: str, *parts: str) -> str:
    """Return an ID such as ``AIDA...``, the same for the same parts."""
    return prefix + hashlib.sha256("/".join(parts).encode()).hexdigest()[:17].upper()


_TOKEN_INVALID = "The security token included in the request is invalid."  # noqa: S105 - a message
_TOKEN_EXPIRED = "The security token included in the request is expired"  # noqa: S105 - a message
_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. "
    "Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
)
_KEY_UNKNOWN = "The AWS Access Key Id you provided does not exist in our records."
_NOT_VALIDATED = "AWS was not able to validate the provided access credentials"
_MISSING = "Request is missing Authentication Token"
AUTHENTICATION_ERRORS: dict[str, dict[str, tuple[str, int, str]]] = {  # by protocol: code, status, text
    "ec2": {
        "unknown": ("AuthFailure", 401, _NOT_VALIDATED),
        "signature": ("AuthFailure", 401, _NOT_VALIDATED),
        "expired": ("RequestExpired", 400, "Request has expired."),
        "unsigned": ("MissingAuthenticationToken", 403, _MISSING),
    },
    "query": {
        "unknown": ("InvalidClientTokenId", 403, _TOKEN_INVALID),
        "signature": ("SignatureDoesNotMatch", 403, _MISMATCH),
        "expired": ("ExpiredToken", 403, _TOKEN_EXPIRED),
        "unsigned": ("MissingAuthenticationToken", 403, _MISSING),
    },
    **{
        protocol: {
            "unknown": ("UnrecognizedClientException", status, _TOKEN_INVALID),
            "signature": ("InvalidSignatureException", status, _MISMATCH),
            "expired": ("ExpiredTokenException", status, _TOKEN_EXPIRED),
            "unsigned": ("MissingAuthenticationTokenException", status, "Missing Authentication Token"),
        }
        for protocol, status in (("json", 400), ("rest-json", 403))
    },
    "rest-xml": {
        "unknown": ("InvalidAccessKeyId", 403, _KEY_UNKNOWN),
        "signature": ("SignatureDoesNotMatch", 403, SIGNATURE_TEXT),
        "expired": ("ExpiredToken", 400, "The provided token has expired."),
        "unsigned": ("AccessDenied", 403, "Access Denied"),
    },
}


def authentication_error(service: Service, kind: str, **extra: Any) -> ApiError:
    """Return the service's error of a kind: ``unknown``, ``signature``, ``expired`` or ``unsigned``."""
    code, status, text = AUTHENTICATION_ERRORS[service.protocol][kind]
    return ApiError(code, text, status=status, **extra)


def authenticate(
    request: Request,
    authorization: Authorization,
    service: Service,
    path: str,
    tables: SandboxTables,
    clock: Clock,
) -> Credential:
    """Return the credential that signed a request.

    Otherwise the service's error for an unknown key, a wrong signature, an expired session or URL, a wrong
    clock, or an unknown region.
    """
    xml = service.protocol == "rest-xml"
    credential = credentials_table(tables).get(authorization.access_key)
    if credential is None:
        key: dict[str, Any] = {"AWSAccessKeyId": authorization.access_key} if xml else {}
        raise authentication_error(service, "unknown", **key)
    _check_time(authorization, service, clock)
    _check_scope(authorization, service)
    texts = list(possible_texts(request, authorization, path, _payload_hashes(request, authorization)))
    if not any(signature_is_right(text, authorization, credential.secret) for text in texts):
        details: dict[str, Any] = texts[0].details(authorization) if xml else {}
        raise authentication_error(service, "signature", **details)
    unsigned = unsigned_headers(request, authorization) if xml else []
    if unsigned:
        text = "There were headers present in the request which were not signed"
        raise ApiError("AccessDenied", text, status=403, HeadersNotSigned=", ".join(unsigned))
    if credential.token is not None:
        if authorization.token != credential.token:
            if xml:
                raise ApiError("InvalidToken", "The provided token is malformed or otherwise invalid.")
            raise authentication_error(service, "unknown")
        issued, expires = credential.issued, credential.expires
        if issued is not None and expires is not None and clock.is_past(expires, since=issued):
            raise authentication_error(service, "expired")
    return credential


def _payload_hashes(request: Request, authorization: Authorization) -> tuple[str, ...]:
    if authorization.version == 2:  # it does not cover the payload
        return ()
    header = request.headers.get("x-amz-content-sha256")
    if authorization.presigned and authorization.service == "s3":
        return (UNSIGNED_PAYLOAD, *([header] if header is not None else []))
    if header is not None:
        return (header,)
    return (hashlib.sha256(request.body.read()).hexdigest(), UNSIGNED_PAYLOAD)


def _check_time(authorization: Authorization, service: Service, clock: Clock) -> None:
    now, stamp = clock.shown(), authorization.timestamp
    if authorization.policy is not None:  # the policy of a form has its own time
        return
    if authorization.version == 2 and authorization.presigned:
        # Such a URL does not contain its creation time, so `advance` does not make it expire.
        if now >= stamp:
            raise _expired(Expires=_iso(stamp), ServerTime=_iso(now))
        return
    if authorization.presigned and authorization.expires is not None:
        end = later(stamp, seconds=authorization.expires.total_seconds())
        if clock.is_past(end, since=stamp):
            if service.protocol == "rest-xml":
                seconds = str(int(authorization.expires.total_seconds()))
                raise _expired(**{"X-Amz-Expires": seconds}, Expires=_iso(end), ServerTime=_iso(now))
            raise authentication_error(service, "signature")
        return
    allowed = timedelta(minutes=15 if service.protocol == "rest-xml" else 5)
    if abs(now - stamp) <= allowed:
        return
    if service.protocol == "rest-xml":
        raise ApiError(
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
            status=403,
            RequestTime=authorization.stamp,
            ServerTime=_iso(now),
            MaxAllowedSkewMilliseconds="900000",
        )
    if service.protocol == "ec2":
        raise authentication_error(service, "expired")
    code, status, _ = AUTHENTICATION_ERRORS[service.protocol]["signature"]
    kind, relation, sign, limit = ("not yet current", "still later", "+", now + allowed)
    if stamp < now:
        kind, relation, sign, limit = ("expired", "now earlier", "-", now - allowed)
    text = f"Signature {kind}: {authorization.stamp} is {relation} than {limit:%Y%m%dT%H%M%SZ} "
    raise ApiError(code, f"{text}({now:%Y%m%dT%H%M%SZ} {sign} 5 min.)", status=status)


def _expired(**extra: Any) -> ApiError:
    return ApiError("AccessDenied", "Request has expired", status=403, **extra)


def _check_scope(authorization: Authorization, service: Service) -> None:
    if region_exists(authorization.region):
        return
    if service.protocol == "rest-xml":
        text = f"the region '{authorization.region}' is wrong; expecting 'us-east-1'"
        raise malformed_authorization(text, Region="us-east-1")
    if service.protocol == "ec2":
        raise authentication_error(service, "unknown")
    code, status, _ = AUTHENTICATION_ERRORS[service.protocol]["signature"]
    text = f"Credential should be scoped to a valid region, not '{authorization.region}'."
    raise ApiError(code, text, status=status)


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
