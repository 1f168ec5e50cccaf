"""AWS signatures: read and verify them.

Signature Version 4 is accepted in all forms of AWS: in the Authorization header, in the query (presigned
URLs) or in a form (presigned POST); with a hash of the payload in ``x-amz-content-sha256``, or only in the
signature (all services but S3; boto3 with ``awscrt`` does so for EBS blocks); with unsigned and
``aws-chunked`` payloads. Signature Version 2 is accepted in the same three places, as S3 accepts it in
us-east-1, where boto3 signs URLs with it by default.

Sources: "AWS Signature Version 4 for API requests" in the IAM User Guide; "Authenticating Requests (AWS
Signature Version 4)" in the Amazon S3 API Reference; "Signing and authenticating REST requests (AWS signature
version 2)" and "Amazon S3 Signature Version 4 Authentication Specific Policy Keys" in the Amazon S3
documentation; the text about a missing date: public error reports; other errors: AWS's answers of February
2026 in LocalStack's ``test_s3.snapshot.json``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from vmsnix_ops.sandbox.core import ApiError, not_emulated, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmsnix_ops.sandbox.wire.http import Request


UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
ALGORITHM = "AWS4-HMAC-SHA256"
ASYMMETRIC_ALGORITHM = "AWS4-ECDSA-P256-SHA256"
VERSION_2_REGION = "us-east-1"
MAX_EXPIRES = 604_800  # seconds
SUB_RESOURCES = frozenset(
    words(
        "accelerate acl analytics cors delete inventory lifecycle location logging metrics notification "
        "object-lock partNumber policy replication requestPayment response-cache-control "
        "response-content-disposition response-content-encoding response-content-language "
        "response-content-type response-expires restore select select-type tagging torrent uploadId "
        "uploads versionId versioning versions website"
    )
)
"""The query keys that Signature Version 2 covers."""


def malformed_authorization(text: str, **more: Any) -> ApiError:
    """Return ``AuthorizationHeaderMalformed``."""
    return ApiError("AuthorizationHeaderMalformed", f"The authorization header is malformed; {text}", **more)


@dataclass(frozen=True)
class Authorization:
    """The credential and the signature of a request. Only Version 4 has a credential scope."""

    access_key: str
    signature: str
    timestamp: datetime  # of a URL with Version 2: when it expires
    token: str | None
    date: str = ""
    region: str = VERSION_2_REGION
    service: str = "s3"  # the signing name, such as "servicequotas"
    signed_headers: tuple[str, ...] = ()
    presigned: bool = False
    expires: timedelta | None = None  # of a presigned URL
    version: int = 4
    policy: str | None = None  # of a form: its policy in base64, which is all that is signed

    @property
    def scope(self) -> str:
        """The credential scope."""
        return f"{self.date}/{self.region}/{self.service}/aws4_request"

    @property
    def stamp(self) -> str:
        """The timestamp in the form of signatures."""
        return self.timestamp.strftime("%Y%m%dT%H%M%SZ")

    def condition_keys(self, age: float) -> dict[str, list[str]]:
        """Return the condition keys of S3 about the signature. `age` is in seconds; only a URL has one."""
        place = "REST-QUERY-STRING" if self.presigned else "REST-HEADER"
        keys = {
            "s3:authtype": ["POST" if self.policy is not None else place],
            "s3:signatureversion": ["AWS" if self.version == 2 else ALGORITHM],
        }
        if self.expires is not None:
            keys["s3:signatureage"] = [str(int(age * 1000))]
        return keys


def read_authorization(request: Request) -> Authorization | None:
    """Return the credential and the signature of a request; None when it is unsigned.

    An `ApiError` if they are not complete, or not those of a version that is accepted here.
    """
    if request.query.keys() & set(QUERY_FIELDS):
        return _from_query(request.query)
    if {"AWSAccessKeyId", "Signature"} & request.query.keys():
        return _from_version_2_query(request.query)
    header = request.headers.get("authorization", "")
    algorithm, _, rest = header.partition(" ")
    if algorithm == "AWS":
        return _from_version_2_header(rest, request.headers)
    if not header:
        return None
    _check_emulated(algorithm)
    if algorithm != ALGORITHM:
        raise malformed_authorization(f"the scheme {algorithm!r} is unknown.")
    fields = {name.strip(): value.strip() for name, _, value in (p.partition("=") for p in rest.split(","))}
    stamp = request.headers.get("x-amz-date") or request.headers.get("date", "")
    try:
        credential, headers, signature = fields["Credential"], fields["SignedHeaders"], fields["Signature"]
    except KeyError as missing:
        raise malformed_authorization(f"the Authorization header lacks {missing}") from None
    return _build(credential, headers, signature, stamp, request.headers.get("x-amz-security-token"))


def _check_emulated(algorithm: str) -> None:
    """Refuse Signature Version 4A, which AWS accepts: it signs for several regions."""
    if algorithm == ASYMMETRIC_ALGORITHM:
        raise not_emulated("Signature Version 4A")


QUERY_FIELDS = words(
    "X-Amz-Algorithm X-Amz-Credential X-Amz-Signature X-Amz-Date X-Amz-SignedHeaders X-Amz-Expires"
)


def _query_error(text: str) -> ApiError:
    return ApiError("AuthorizationQueryParametersError", text)


def _from_query(query: Mapping[str, str]) -> Authorization:
    missing = set(QUERY_FIELDS) - query.keys()
    if missing and (missing != {"X-Amz-Expires"} or "/s3/" in query["X-Amz-Credential"]):
        raise _query_error(
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
            "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
        )
    _check_emulated(query["X-Amz-Algorithm"])
    if query["X-Amz-Algorithm"] != ALGORITHM:
        raise _query_error(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    expires = query.get("X-Amz-Expires", "3600")
    if not expires.removeprefix("-").isdecimal():
        raise _query_error("X-Amz-Expires should be a number")
    if expires.startswith("-"):
        raise _query_error("X-Amz-Expires must be non-negative")
    if len(expires) > 10 or int(expires) > MAX_EXPIRES:
        raise _query_error(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be "
            f"less than {MAX_EXPIRES} seconds"
        )
    credential, headers = query["X-Amz-Credential"], query["X-Amz-SignedHeaders"]
    if not _is_credential(credential):
        raise _query_error(
            "Error parsing the X-Amz-Credential parameter; the Credential is mal-formed; expecting "
            '"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'
        )
    signature, stamp, token = query["X-Amz-Signature"], query["X-Amz-Date"], query.get("X-Amz-Security-Token")
    return _build(credential, headers, signature, stamp, token, expires=timedelta(seconds=int(expires)))


def _from_version_2_query(query: Mapping[str, str]) -> Authorization:
    """Return the credential of a URL with Signature Version 2, which names no region."""
    if not {"AWSAccessKeyId", "Signature", "Expires"} <= query.keys():
        text = "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters"
        raise ApiError("AccessDenied", text, status=403)
    expires = query["Expires"]
    if not expires.isdecimal() or len(expires) > 11:
        text = f"Invalid date (should be seconds since epoch): {expires}"
        raise ApiError("AccessDenied", text, status=403)
    end, token = datetime.fromtimestamp(int(expires), UTC), query.get("x-amz-security-token")
    return Authorization(query["AWSAccessKeyId"], query["Signature"], end, token, presigned=True, version=2)


def _from_version_2_header(credential: str, headers: Mapping[str, str]) -> Authorization:
    access_key, colon, signature = credential.strip().rpartition(":")
    if not colon:
        text = "AWS authorization header is invalid.  Expected AwsAccessKeyId:signature"  # text from memory
        raise ApiError("InvalidArgument", text)
    try:
        date = parsedate_to_datetime(headers.get("x-amz-date") or headers["date"])
        utc = date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (KeyError, ValueError, OverflowError):
        text = "AWS authentication requires a valid Date or x-amz-date header"
        raise ApiError("AccessDenied", text, status=403) from None
    return Authorization(access_key, signature, utc, headers.get("x-amz-security-token"), version=2)


def missing_field(name: str) -> ApiError:
    """Return the error for a form without a field."""
    text = (
        f"Bucket POST must contain a field named '{name}'.  If it is specified, please check the order of "
        "the fields."
    )
    return ApiError("InvalidArgument", text, ArgumentName=name, ArgumentValue="")


def authorization_of_form(fields: Mapping[str, str]) -> Authorization | None:
    """Return the credential and the signature in a form; None when it has neither.

    `fields` has the fields of the form by lower-case name.
    """
    version_4 = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Signature", "policy")
    version_2 = ("AWSAccessKeyId", "Signature", "policy")
    for names in (version_4, version_2):
        if not any(name.lower() in fields for name in names[:-1]):
            continue
        for name in names:
            if name.lower() not in fields:
                raise missing_field(name)
        token, policy = fields.get("x-amz-security-token"), fields["policy"]
        if names is version_2:
            key, signature = fields["awsaccesskeyid"], fields["signature"]
            end = datetime.max.replace(tzinfo=UTC)
            return Authorization(key, signature, end, token, presigned=True, version=2, policy=policy)
        credential, signature = fields["x-amz-credential"], fields["x-amz-signature"]
        return _build(credential, "", signature, fields["x-amz-date"], token, policy=policy)
    return None


def _is_credential(credential: str) -> bool:
    return credential.count("/") >= 4 and credential.endswith("/aws4_request")


def _build(
    credential: str,
    signed_headers: str,
    signature: str,
    stamp: str,
    token: str | None,
    *,
    expires: timedelta | None = None,
    policy: str | None = None,
) -> Authorization:
    timestamp = _parse_stamp(stamp)
    if not _is_credential(credential):
        raise malformed_authorization("the credential is not KEY/DATE/REGION/SERVICE/aws4_request")
    access_key, date, region, service, _ = credential.rsplit("/", 4)
    return Authorization(
        *(access_key, signature, timestamp, token, date, region, service),
        tuple(signed_headers.split(";")),
        presigned=expires is not None or policy is not None,
        expires=expires,
        policy=policy,
    )


def _parse_stamp(stamp: str) -> datetime:
    for form in ("%Y%m%dT%H%M%SZ", "%a, %d %b %Y %H:%M:%S GMT"):
        try:
            return datetime.strptime(stamp, form).replace(tzinfo=UTC)
        except ValueError:
            continue
    raise malformed_authorization("X-Amz-Date or Date is missing or invalid")


@lru_cache(maxsize=256)
def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """Return the key that signs one day's requests to one service in one region."""
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


@dataclass(frozen=True)
class Signed:
    """The text that a client signs, and for Version 4 the canonical request in it."""

    text: str
    canonical: str = ""

    def details(self, authorization: Authorization) -> dict[str, str]:
        """Return the members of a ``SignatureDoesNotMatch`` of S3, which show what the server signed."""
        found = {
            "AWSAccessKeyId": authorization.access_key,
            "StringToSign": self.text,
            "SignatureProvided": authorization.signature,
            "StringToSignBytes": _bytes_as_text(self.text),
        }
        if self.canonical:
            found |= {
                "CanonicalRequest": self.canonical,
                "CanonicalRequestBytes": _bytes_as_text(self.canonical),
            }
        return found


def _bytes_as_text(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").hex(" ")


def possible_texts(
    request: Request, authorization: Authorization, path: str, payload_hashes: tuple[str, ...]
) -> Iterator[Signed]:
    """Yield the texts that a client may have signed, the usual form first."""
    if authorization.policy is not None:
        yield Signed(authorization.policy)
        return
    if authorization.version == 2:
        yield Signed(_version_2_text(request, authorization, path))
        # boto3 signs the path of a bucket with a slash at the end, without sending it.
        if path.count("/") == 1:
            yield Signed(_version_2_text(request, authorization, f"{path}/"))
        return
    query = _canonical_query(request, authorization)
    headers = "".join(
        f"{name}:{' '.join(request.headers.get(name, '').split())}\n" for name in authorization.signed_headers
    )
    for raw in _canonical_paths(request.raw_path, authorization.service):
        for payload in payload_hashes:
            canonical = "\n".join(
                [request.method, raw, query, headers, ";".join(authorization.signed_headers), payload]
            )
            digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
            text = f"{ALGORITHM}\n{authorization.stamp}\n{authorization.scope}\n{digest}"
            yield Signed(text, canonical)


def signature_is_right(signed: Signed, authorization: Authorization, secret: str) -> bool:
    """Return whether the signature is that of a text."""
    text = signed.text.encode("utf-8", "surrogateescape")
    if authorization.version == 2:
        expected = base64.b64encode(hmac.new(secret.encode(), text, hashlib.sha1).digest())
    else:
        key = signing_key(secret, authorization.date, authorization.region, authorization.service)
        expected = hmac.new(key, text, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(expected, authorization.signature.encode())


def _version_2_text(request: Request, authorization: Authorization, path: str) -> str:
    """Return the text that Signature Version 2 signs. Its ``x-amz-`` headers may be in the query."""
    headers = {name: value for name, value in request.headers.items() if name.startswith("x-amz-")}
    headers |= {name.lower(): value for name, value in request.query.items() if name.startswith("x-amz-")}
    date = "" if "x-amz-date" in headers else request.headers.get("date", "")
    if authorization.presigned:
        date = str(int(authorization.timestamp.timestamp()))
    covered = []
    for name, raw in sorted(request.raw_query):
        if name in SUB_RESOURCES:
            covered.append(f"{name}={unquote(raw)}" if raw else name)
    return "\n".join(
        [
            request.method,
            request.headers.get("content-md5", ""),
            request.headers.get("content-type", ""),
            date,
            *(f"{name}:{headers[name].strip()}" for name in sorted(headers)),
            path + ("?" + "&".join(covered) if covered else ""),
        ]
    )


def hoist_query(request: Request, authorization: Authorization | None) -> Request:
    """Return the request of a presigned URL with the ``x-amz-`` headers in its query as headers.

    The JavaScript SDK puts all headers there, boto3 with Signature Version 2 too. S3 ignores the checksums
    there: a client cannot know them when it makes the URL.
    """
    if authorization is None or not authorization.presigned or authorization.policy is not None:
        return request
    signing = {name.lower() for name in QUERY_FIELDS} | {"x-amz-security-token", "x-amz-content-sha256"}
    version_2 = {"AWSAccessKeyId", "Signature", "Expires", "content-type", "content-md5"}
    hoisted, rest = {}, []
    for name, value in request.raw_query:
        lower = name.lower()
        if lower.startswith("x-amz-") and lower not in signing:
            if not lower.startswith("x-amz-checksum-") or lower == "x-amz-checksum-mode":
                hoisted[lower] = unquote(value)
        elif authorization.version != 2 or name not in version_2 | {"x-amz-security-token"}:
            rest.append(f"{name}={value}" if value else name)
    target = request.raw_path + ("?" + "&".join(rest) if rest else "")
    return replace(request, target=target, headers=hoisted | request.headers)


def unsigned_headers(request: Request, authorization: Authorization) -> list[str]:
    """Return the ``x-amz-`` headers that the signature of a presigned URL does not cover."""
    if not authorization.presigned or authorization.version == 2 or authorization.policy is not None:
        return []
    return sorted(
        name
        for name in request.headers
        if name.startswith("x-amz-")
        and name != "x-amz-content-sha256"
        and name not in authorization.signed_headers
    )


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
