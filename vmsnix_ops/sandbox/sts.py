"""AWS STS: who am I, and sessions of roles."""

from __future__ import annotations

from typing import Any

from . import credentials
from .core import Context, Params, operation


@operation("sts", "GetCallerIdentity")
def get_caller_identity(context: Context, _params: Params) -> dict[str, Any]:
    """Say who asks."""
    credential = credentials.table(context.tables)[context.access_key]
    return {"UserId": credential.user_id, "Account": context.account, "Arn": context.principal}
