"""AWS Signature Version 4: read and verify signatures.

All forms of AWS are accepted: a signature in the Authorization header or in the query (presigned URLs); a
hash of the payload in ``x-amz-content-sha256``, or only in the signature (all services but S3; boto3 with
``awscrt`` does so for EBS blocks); unsigned and ``aws-chunked`` payloads.

Source: "AWS Signature Version 4 for API requests" in the IAM User Guide; "Authenticating Requests (AWS
Signature Version 4)" in the Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.wire.http import Request


UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
ALGORITHM = "AWS4-HMAC-SHA256"
VERSION_2_TEXT = (
    "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
)


class MalformedAuthorizationError(Exception):
    """A request has credentials, but not those of Signature Version 4.

    Parameters
    ----------
    text
        The problem.
    code
        S3's error code.
    """

    def __init__(self, text: str, code: str = "AuthorizationHeaderMalformed") -> None:
        malformed = code == "AuthorizationHeaderMalformed"
        super().__init__(f"The authorization header is malformed; {text}" if malformed else text)
        self.code = code


@dataclass(frozen=True)
class Authorization:
    """The credential and the signature of a request."""

    access_key: str
    date: str
    region: str
    service: str  # the signing name, such as "servicequotas"
    signed_headers: tuple[str, ...]
    signature: str
    timestamp: datetime
    token: str | None
    presigned: bool
    expires: timedelta | None = None  # of a presigned URL

    @property
    def scope(self) -> str:
        """The credential scope."""
        return f"{self.date}/{self.region}/{self.service}/aws4_request"

    @property
    def stamp(self) -> str:
        """The timestamp in the form of signatures."""
        return self.timestamp.strftime("%Y%m%dT%H%M%SZ")


def read_authorization(request: Request) -> Authorization | None:
    """Return the credential and the signature of a request; None when it is unsigned.

    Raises
    ------
    MalformedAuthorizationError
        They are not those of Signature Version 4.
    """
    if "X-Amz-Signature" in request.query:
        return _from_query(request)
    header = request.headers.get("authorization", "")
    algorithm, _, rest = header.partition(" ")
    if algorithm == "AWS" or "AWSAccessKeyId" in request.query:
        raise MalformedAuthorizationError(VERSION_2_TEXT, "InvalidRequest")
    if not header:
        return None
    if algorithm != ALGORITHM:
        raise MalformedAuthorizationError(f"there is no scheme {algorithm!r}.")
    fields = {name.strip(): value.strip() for name, _, value in (p.partition("=") for p in rest.split(","))}
    stamp = request.headers.get("x-amz-date") or request.headers.get("date", "")
    try:
        return _build(
            fields["Credential"],
            fields["SignedHeaders"],
            fields["Signature"],
            stamp,
            token=request.headers.get("x-amz-security-token"),
            presigned=False,
        )
    except KeyError as missing:
        raise MalformedAuthorizationError(f"the Authorization header lacks {missing}") from None


def _from_query(request: Request) -> Authorization:
    query = request.query
    try:
        if query["X-Amz-Algorithm"] != ALGORITHM:
            raise MalformedAuthorizationError(f"X-Amz-Algorithm only supports {ALGORITHM}")
        expires = timedelta(seconds=int(query.get("X-Amz-Expires", "3600")))
        return _build(
            query["X-Amz-Credential"],
            query["X-Amz-SignedHeaders"],
            query["X-Amz-Signature"],
            query["X-Amz-Date"],
            token=query.get("X-Amz-Security-Token"),
            presigned=True,
            expires=expires,
        )
    except KeyError as missing:
        raise MalformedAuthorizationError(f"the query lacks {missing}") from None
    except (ValueError, OverflowError):
        raise MalformedAuthorizationError("X-Amz-Expires is not a number") from None


def _build(
    credential: str,
    signed_headers: str,
    signature: str,
    stamp: str,
    *,
    token: str | None,
    presigned: bool,
    expires: timedelta | None = None,
) -> Authorization:
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or parts[4] != "aws4_request":
        raise MalformedAuthorizationError("the credential is not KEY/DATE/REGION/SERVICE/aws4_request")
    return Authorization(
        access_key=parts[0],
        date=parts[1],
        region=parts[2],
        service=parts[3],
        signed_headers=tuple(signed_headers.split(";")),
        signature=signature,
        timestamp=_parse_stamp(stamp),
        token=token,
        presigned=presigned,
        expires=expires,
    )


def _parse_stamp(stamp: str) -> datetime:
    for form in ("%Y%m%dT%H%M%SZ", "%a, %d %b %Y %H:%M:%S GMT"):
        try:
            return datetime.strptime(stamp, form).replace(tzinfo=UTC)
        except ValueError:
            continue
    raise MalformedAuthorizationError("there is no valid X-Amz-Date or Date")


@lru_cache(maxsize=256)
def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """Return the key that signs one day's requests to one service in one region."""
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def signature_matches(
    request: Request, authorization: Authorization, secret: str, payload_hashes: tuple[str, ...]
) -> bool:
    """Return whether the signature is valid for one of the possible payload hashes and paths.

    Parameters
    ----------
    request, authorization
        The request, with its credential and signature.
    secret
        The secret key of the credential.
    payload_hashes
        Possible values for the payload in the canonical request.
    """
    key = signing_key(secret, authorization.date, authorization.region, authorization.service)
    query = _canonical_query(request, authorization)
    headers = "".join(
        f"{name}:{' '.join(request.headers.get(name, '').split())}\n" for name in authorization.signed_headers
    )
    for path in _canonical_paths(request.raw_path, authorization.service):
        for payload in payload_hashes:
            canonical = "\n".join(
                [request.method, path, query, headers, ";".join(authorization.signed_headers), payload]
            )
            digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
            text = f"{ALGORITHM}\n{authorization.stamp}\n{authorization.scope}\n{digest}"
            expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
            if hmac.compare_digest(expected.encode(), authorization.signature.encode()):
                return True
    return False


def _canonical_query(request: Request, authorization: Authorization) -> str:
    pairs = sorted(
        (quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~"))
        for name, value in request.raw_query
        if not (authorization.presigned and name == "X-Amz-Signature")
    )
    return "&".join(f"{name}={value}" for name, value in pairs)


def _canonical_paths(raw_path: str, service: str) -> list[str]:
    """Return the forms of the path that clients sign. S3 does not normalize it or encode it twice."""
    if service == "s3":
        encoded = quote(unquote(raw_path), safe="/-_.~")
        return [raw_path] if encoded == raw_path else [raw_path, encoded]
    segments: list[str] = []
    for segment in raw_path.split("/"):
        if segment == "..":
            segments = segments[:-1]
        elif segment not in {"", "."}:
            segments.append(segment)
    normalized = "/" + "/".join(segments) + ("/" if segments and raw_path.endswith("/") else "")
    return [quote(normalized, safe="/-_.~"), raw_path]
