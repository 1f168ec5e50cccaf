"""ClientTokens: the same call twice makes one thing; the same token with other parameters is refused.

Source: "Ensuring idempotency in Amazon EC2 API requests".
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.core import AwsError, Params

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context


def fingerprint(params: Params) -> str:
    """Return a digest of everything that a request asks for."""
    asked = {k: v for k, v in params.items() if k not in ("ClientToken", "DryRun")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def earlier(context: Context, params: Params) -> str | None:
    """Return what an earlier call with this token made, or None.

    Raises
    ------
    AwsError
        The token was used with other parameters.
    """
    known = context.table("ec2_tokens").get(f"{context.operation} {params.get('ClientToken')}")
    if not params.get("ClientToken") or known is None:
        return None
    digest, made = known
    if digest != fingerprint(params):
        raise AwsError(
            "IdempotentParameterMismatch",
            "Arguments on this idempotent request are inconsistent with arguments used in "
            "previous request(s).",
        )
    return str(made)


def remember(context: Context, params: Params, made: str) -> None:
    """Note what this call made, if it has a token."""
    if params.get("ClientToken"):
        table = context.table("ec2_tokens")
        table[f"{context.operation} {params['ClientToken']}"] = (fingerprint(params), made)
