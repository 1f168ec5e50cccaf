"""AWS STS: the identity of the caller, and sessions of users and roles.

Sources: GetCallerIdentity, AssumeRole, GetSessionToken in the AWS STS API Reference.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.credentials import create_session, credentials_table
from vmsnix_ops.sandbox.policies import AccessRequest, trust_policy_allows

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.credentials import Credential
    from vmsnix_ops.sandbox.iam import Role


SESSION_NAME = re.compile(r"[\w+=,.@-]{2,64}")
ROLE_ARN = re.compile(r"arn:aws[\w-]*:iam::(\d{12}):role/(?:.*/)?([^/]+)")


@operation("sts", "GetCallerIdentity")
def get_caller_identity(context: Context, _params: Params) -> dict[str, Any]:
    """Return the identity of the caller. No policy can deny this."""
    credential = credentials_table(context.tables)[context.access_key]
    return {"UserId": credential.user_id, "Account": context.account, "Arn": context.principal}


@operation("sts", "AssumeRole", "RoleArn RoleSessionName DurationSeconds ExternalId")
def assume_role(context: Context, params: Params) -> dict[str, Any]:
    """Return credentials of a new session, if the role's trust policy allows the caller."""
    name = params["RoleSessionName"]
    if not SESSION_NAME.fullmatch(name):
        raise AwsError(
            "ValidationError",
            f"1 validation error detected: Value '{name}' at 'roleSessionName' failed to satisfy constraint: "
            "Member must satisfy regular expression pattern: [\\w+=,.@-]*",
        )
    match = ROLE_ARN.fullmatch(params["RoleArn"])
    if match is None:
        raise AwsError("ValidationError", f"{params['RoleArn']} is invalid")
    account, role_name = match.groups()
    role: Role | None = context.tables.table(account, "", "roles").get(role_name)
    keys = {"sts:externalid": [params["ExternalId"]]} if "ExternalId" in params else {}
    question = AccessRequest("sts:AssumeRole", params["RoleArn"], keys)
    if role is None or not trust_policy_allows(
        role.trust_policy, context.principal, context.account, question
    ):
        raise AwsError(
            "AccessDenied",
            f"User: {context.principal} is not authorized to perform: sts:AssumeRole on resource: "
            f"{params['RoleArn']}",
            status=403,
        )
    seconds = _session_seconds(params, role.max_session_seconds)
    principal = f"arn:{context.partition}:sts::{account}:assumed-role/{role.name}/{name}"
    user_id = f"{role.role_id}:{name}"
    issued = context.clock.now()
    session = create_session(context.tables, account, principal, user_id, issued, seconds)
    return {
        "Credentials": _credentials_view(session),
        "AssumedRoleUser": {"AssumedRoleId": user_id, "Arn": principal},
        "PackedPolicySize": 0,
    }


def _session_seconds(params: Params, longest: int) -> int:
    seconds = int(params.get("DurationSeconds", 3600))
    if seconds < 900:
        raise AwsError(
            "ValidationError",
            f"1 validation error detected: Value '{seconds}' at 'durationSeconds' failed to satisfy "
            "constraint: Member must have value greater than or equal to 900",
        )
    if seconds > longest:
        raise AwsError(
            "ValidationError",
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
        )
    return seconds


def _credentials_view(session: Credential) -> dict[str, Any]:
    return {
        "AccessKeyId": session.access_key,
        "SecretAccessKey": session.secret,
        "SessionToken": session.token,
        "Expiration": session.expires,
    }


@operation("sts", "GetSessionToken", "DurationSeconds")
def get_session_token(context: Context, params: Params) -> dict[str, Any]:
    """Return temporary credentials of the same user."""
    own = credentials_table(context.tables)[context.access_key]
    if own.token is not None:
        raise AwsError("AccessDenied", "Cannot call GetSessionToken with session credentials", status=403)
    seconds = _session_seconds({"DurationSeconds": params.get("DurationSeconds", 43_200)}, 129_600)
    issued = context.clock.now()
    session = create_session(context.tables, own.account, own.principal, own.user_id, issued, seconds)
    return {"Credentials": _credentials_view(session)}
