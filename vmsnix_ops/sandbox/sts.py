"""AWS STS: the identity of the caller, sessions of users and roles, tokens of identity providers.

The sandbox signs the tokens of all identity providers, such as those of GitHub's workflows, with one key of
its own, and accepts no other tokens. On AWS, STS checks a token with the public key of its provider.

Sources: GetCallerIdentity, AssumeRole, AssumeRoleWithWebIdentity, GetSessionToken in the AWS STS API
Reference; "Pass session tags in AWS STS" in the IAM User Guide; AWS's answers of 2024 and 2025 in
LocalStack's ``test_sts.snapshot.json``; the texts of token errors in public issues of
aws-actions/configure-aws-credentials; "OpenID Connect reference" of GitHub's docs for the claims.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, load_json, not_emulated, operation
from vmsnix_ops.sandbox.credentials import add_credential, credentials_table
from vmsnix_ops.sandbox.policies import AccessRequest, request_tag_keys, trust_policy_allows

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.credentials import Credential
    from vmsnix_ops.sandbox.iam import IdentityProvider, Role


ROLE_ARN = re.compile(r"arn:aws[\w-]*:iam::(\d{12}):role/(?:.*/)?([^/]+)")


@operation("sts", "GetCallerIdentity")
def get_caller_identity(context: Context, _params: Params) -> dict[str, Any]:
    """Return the identity of the caller. No policy can deny this."""
    credential = credentials_table(context.tables)[context.access_key]
    return {"UserId": credential.user_id, "Account": context.account, "Arn": context.principal}


@operation("sts", "AssumeRole", "RoleArn RoleSessionName DurationSeconds ExternalId Tags TransitiveTagKeys")
def assume_role(context: Context, params: Params) -> dict[str, Any]:
    """Return credentials of a new session, if the role's trust policy allows the caller.

    With tags, the trust policy must also allow ``sts:TagSession``. The answer lacks PackedPolicySize, which
    AWS gives for a session with tags: how it is computed is not documented.
    """
    account, role = _requested_role(context, params)
    caller = credentials_table(context.tables)[context.access_key]
    tags, transitive = _session_tags(params, caller)
    keys = {"sts:externalid": [params["ExternalId"]]} if "ExternalId" in params else {}
    actions = ["sts:AssumeRole"]
    if "Tags" in params:
        actions.append("sts:TagSession")
        keys |= tag_condition_keys(params)
    principal = (context.principal, context.account)
    for action in actions:
        request = AccessRequest(action, params["RoleArn"], keys)
        if role is None or not trust_policy_allows(role.trust_policy, *principal, request):
            text = f"User: {context.principal} is not authorized to perform: {action} on resource: "
            raise ApiError("AccessDenied", text + params["RoleArn"], status=403)
    assert role is not None  # noqa: S101 - for mypy: a missing role was refused
    seconds = _session_seconds(params, role.max_session_seconds)
    if caller.token is not None and seconds > 3600 and ":assumed-role/" in context.principal:
        raise ApiError(
            "ValidationError",
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role "
            "chaining.",
        )
    return _start_session(context, account, role, params, seconds, tags=tags, transitive=transitive)


def _requested_role(context: Context, params: Params) -> tuple[str, Role | None]:
    match = ROLE_ARN.fullmatch(params["RoleArn"])
    if match is None:
        raise ApiError("ValidationError", f"{params['RoleArn']} is invalid")
    account, role_name = match.groups()
    return account, context.tables.table(account, "", "roles").get(role_name)


def _start_session(
    context: Context, account: str, role: Role, params: Params, seconds: int, **tags: Any
) -> dict[str, Any]:
    principal = f"arn:{context.partition}:sts::{account}:assumed-role/{role.name}/{params['RoleSessionName']}"
    user_id = f"{role.entity_id}:{params['RoleSessionName']}"
    return {
        "Credentials": _create_session(context, account, principal, user_id, seconds, **tags),
        "AssumedRoleUser": {"AssumedRoleId": user_id, "Arn": principal},
    }


def _create_session(
    context: Context, account: str, principal: str, user_id: str, seconds: int, **tags: Any
) -> dict[str, Any]:
    """Create the credentials of a session, and return them as answers show them."""
    now = context.clock.now()
    times = {"issued": now, "expires": now.replace(microsecond=0) + timedelta(seconds=seconds)}
    token = secrets.token_urlsafe(180)
    session = add_credential(
        context.tables, "ASIA", account, principal, user_id, token=token, **times, **tags
    )
    return {
        "AccessKeyId": session.access_key,
        "SecretAccessKey": session.secret,
        "SessionToken": session.token,
        "Expiration": session.expires,
    }


def _session_tags(params: Params, caller: Credential) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the tags of a new session, with those that it inherits, and the keys of the transitive ones."""
    tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags") or ()}
    transitive = tuple(params.get("TransitiveTagKeys") or ())
    lower = [tag["Key"].lower() for tag in params.get("Tags") or ()]
    if len(set(lower)) != len(lower):
        raise _invalid("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
    if not set(transitive) <= set(tags):
        raise _invalid("The specified transitive tag key must be included in the requested tags.")
    if {key.lower() for key in caller.transitive} & set(lower):
        raise _invalid(
            "One of the specified transitive tag keys can't be set because it conflicts with a transitive "
            "tag key from the calling session."
        )
    inherited = {key: caller.tags[key] for key in caller.transitive}
    return inherited | tags, (*caller.transitive, *transitive)


def _invalid(text: str) -> ApiError:
    return ApiError("InvalidParameterValue", text)


def tag_condition_keys(params: Params) -> dict[str, list[str]]:
    """Return the condition keys of the tags of a new session."""
    keys = request_tag_keys(params.get("Tags") or ())
    if params.get("TransitiveTagKeys"):
        keys["sts:transitivetagkeys"] = list(params["TransitiveTagKeys"])
    return keys


@operation("sts", "AssumeRoleWithWebIdentity", "RoleArn RoleSessionName WebIdentityToken DurationSeconds")
def assume_role_with_web_identity(context: Context, params: Params) -> dict[str, Any]:
    """Return credentials of a new session for the token of an identity provider, without a signature."""
    account, role = _requested_role(context, params)
    identity = read_token(params["WebIdentityToken"])
    arn = f"arn:{context.partition}:iam::{account}:oidc-provider/{identity.issuer}"
    providers: dict[str, IdentityProvider] = context.tables.table(account, "", "oidc_providers")
    provider = providers.get(arn)
    if provider is None:
        raise _invalid_token(f"No OpenIDConnect provider found in your account for https://{identity.issuer}")
    audience = next((one for one in identity.audiences if one in provider.client_ids), None)
    if audience is None:
        raise _invalid_token("Incorrect token audience")
    now = context.clock.now()
    if context.clock.is_past(datetime.fromtimestamp(identity.expires, UTC), since=now):
        raise ApiError(
            "ExpiredTokenException",
            f"Token expired: current date/time {int(now.timestamp())} must be before the expiration "
            f"date/time {int(identity.expires)}",
        )
    keys = {
        f"{identity.issuer}:aud".lower(): list(identity.audiences),
        f"{identity.issuer}:sub".lower(): [identity.subject],
    }
    request = AccessRequest("sts:AssumeRoleWithWebIdentity", params["RoleArn"], keys)
    if role is None or not trust_policy_allows(role.trust_policy, arn, "", request):
        text = "Not authorized to perform sts:AssumeRoleWithWebIdentity"
        raise ApiError("AccessDenied", text, status=403)
    seconds = _session_seconds(params, role.max_session_seconds)
    return {
        **_start_session(context, account, role, params, seconds),
        "SubjectFromWebIdentityToken": identity.subject,
        "Provider": arn,
        "Audience": audience,
    }


def _session_seconds(params: Params, longest: int) -> int:
    seconds = int(params.get("DurationSeconds", 3600))
    if seconds > longest:
        text = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
        raise ApiError("ValidationError", text)
    return seconds


@operation("sts", "GetSessionToken", "DurationSeconds")
def get_session_token(context: Context, params: Params) -> dict[str, Any]:
    """Return temporary credentials of the same user."""
    own = credentials_table(context.tables)[context.access_key]
    if own.token is not None:
        raise ApiError("AccessDenied", "Cannot call GetSessionToken with session credentials", status=403)
    seconds = _session_seconds({"DurationSeconds": params.get("DurationSeconds", 43_200)}, 129_600)
    return {"Credentials": _create_session(context, own.account, own.principal, own.user_id, seconds)}


GITHUB = "https://token.actions.githubusercontent.com"
STS_AUDIENCE = "sts.amazonaws.com"
KEY = b"vmsnix sandbox: the key of every identity provider"
HEADER = {"typ": "JWT", "alg": "HS256", "kid": "vmsnix-sandbox"}
TOKEN_SECONDS = 300


@dataclass(frozen=True)
class WebIdentity:
    """The claims of a token, as far as STS reads them."""

    issuer: str  # without https://
    subject: str
    audiences: tuple[str, ...]
    expires: float  # seconds since 1970


def make_token(
    subject: str, *, issuer: str = GITHUB, audience: str = STS_AUDIENCE, seconds: float = TOKEN_SECONDS
) -> str:
    """Return a token (JWT) of an identity provider, valid for some seconds.

    `subject` is the workflow, such as ``repo:acme/images:ref:refs/heads/main``; `issuer` is the URL of the
    provider; `audience` is the recipient of the token, ``sts.amazonaws.com`` in GitHub's workflows.
    """
    now = int(time.time())
    claims = {"iss": issuer, "sub": subject, "aud": audience, "iat": now, "nbf": now, "exp": now + seconds}
    signed = f"{_encode(json.dumps(HEADER).encode())}.{_encode(json.dumps(claims).encode())}"
    return f"{signed}.{_encode(_signature(signed))}"


def read_token(token: str) -> WebIdentity:
    """Return the claims of a token of this sandbox.

    ``InvalidIdentityToken`` for a text that is not a token; ``NotImplemented`` for a token that a real
    provider signed, which the sandbox cannot check.
    """
    try:
        header, payload, signature = token.split(".")
        kid, claims = _decode_object(header).get("kid"), _decode_object(payload)
    except (ValueError, AttributeError):
        raise _invalid_token(
            "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)"
        ) from None
    if kid != HEADER["kid"]:
        raise not_emulated("the check of tokens that a real identity provider signed")
    if not hmac.compare_digest(_encode(_signature(f"{header}.{payload}")), signature):
        raise _invalid_token("Couldn't verify the signature of the token")  # no source has the text
    audience = claims["aud"]
    return WebIdentity(
        issuer=str(claims["iss"]).removeprefix("https://"),
        subject=str(claims["sub"]),
        audiences=tuple(audience) if isinstance(audience, list) else (str(audience),),
        expires=float(claims["exp"]),
    )


def _invalid_token(text: str) -> ApiError:
    return ApiError("InvalidIdentityToken", text)


def _signature(signed: str) -> bytes:
    return hmac.new(KEY, signed.encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a part of a token, or raise ValueError or AttributeError."""
    return dict(load_json(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)).items())
