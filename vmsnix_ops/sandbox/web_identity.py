"""Tokens of identity providers, such as those of GitHub's workflows.

The sandbox signs the tokens of all identity providers with one key of its own, and accepts no other tokens.
On AWS, STS checks a token with the public key of its provider.

Sources: AssumeRoleWithWebIdentity in the AWS STS API Reference; the texts of its errors in public issues of
aws-actions/configure-aws-credentials; "OpenID Connect reference" of GitHub's docs for the claims.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any

from vmsnix_ops.sandbox.core import ApiError, load_json, not_emulated

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
    """Return a token (JWT) of an identity provider.

    Parameters
    ----------
    subject
        The workflow, such as ``repo:acme/images:ref:refs/heads/main``.
    issuer
        URL of the provider.
    audience
        The recipient of the token; ``sts.amazonaws.com`` in GitHub's workflows.
    seconds
        How long the token is valid.
    """
    now = int(time.time())
    claims = {"iss": issuer, "sub": subject, "aud": audience, "iat": now, "nbf": now, "exp": now + seconds}
    signed = f"{_encode(json.dumps(HEADER).encode())}.{_encode(json.dumps(claims).encode())}"
    return f"{signed}.{_encode(_signature(signed))}"


def read_token(token: str) -> WebIdentity:
    """Return the claims of a token of this sandbox.

    Raises
    ------
    ApiError
        ``InvalidIdentityToken`` for a text that is not a token; ``NotImplemented`` for a token that a real
        provider signed, which the sandbox cannot check.
    """
    try:
        header, payload, signature = token.split(".")
        kid, claims = _decode_object(header).get("kid"), _decode_object(payload)
    except (ValueError, AttributeError):
        raise invalid_token(
            "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)"
        ) from None
    if kid != HEADER["kid"]:
        raise not_emulated("the check of tokens that a real identity provider signed")
    if not hmac.compare_digest(_encode(_signature(f"{header}.{payload}")), signature):
        raise invalid_token("Couldn't verify the signature of the token")  # no source has the text
    audience = claims["aud"]
    return WebIdentity(
        issuer=str(claims["iss"]).removeprefix("https://"),
        subject=str(claims["sub"]),
        audiences=tuple(audience) if isinstance(audience, list) else (str(audience),),
        expires=float(claims["exp"]),
    )


def invalid_token(text: str) -> ApiError:
    """Return ``InvalidIdentityToken``."""
    return ApiError("InvalidIdentityToken", text)


def _signature(signed: str) -> bytes:
    return hmac.new(KEY, signed.encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a part of a token, or raise ValueError or AttributeError."""
    return dict(load_json(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)).items())
