"""AWS STS: the identity of the caller, and sessions of users and roles.

Sources: GetCallerIdentity, AssumeRole, AssumeRoleWithWebIdentity, GetSessionToken in the AWS STS API
Reference; "Pass session tags in AWS STS" in the IAM User Guide; AWS's answers of 2024 and 2025 in
LocalStack's ``test_sts.snapshot.json``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, constraint_text, operation
from vmsnix_ops.sandbox.credentials import create_session, credentials_table
from vmsnix_ops.sandbox.policies import AccessRequest, trust_policy_allows
from vmsnix_ops.sandbox.web_identity import invalid_token, read_token

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params
    from vmsnix_ops.sandbox.credentials import Credential
    from vmsnix_ops.sandbox.iam import IdentityProvider, Role


SESSION_NAME = re.compile(r"[\w+=,.@-]{2,64}")
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
    for action in actions:
        request = AccessRequest(action, params["RoleArn"], keys)
        if role is None or not trust_policy_allows(
            role.trust_policy, context.principal, context.account, request
        ):
            raise ApiError(
                "AccessDenied",
                f"User: {context.principal} is not authorized to perform: {action} on resource: "
                f"{params['RoleArn']}",
                status=403,
            )
    assert role is not None  # noqa: S101 - for mypy: a missing role was refused
    seconds = _session_seconds(params, role.max_session_seconds)
    if caller.token is not None and seconds > 3600 and ":assumed-role/" in context.principal:
        raise ApiError(
            "ValidationError",
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role "
            "chaining.",
        )
    return _start_session(context, account, role, params, seconds, tags, transitive)


def _requested_role(context: Context, params: Params) -> tuple[str, Role | None]:
    """Return account and role of a call, after the check of the names."""
    name = params["RoleSessionName"]
    if not SESSION_NAME.fullmatch(name):
        text = constraint_text(name, "roleSessionName", "satisfy regular expression pattern: [\\w+=,.@-]*")
        raise ApiError("ValidationError", text)
    match = ROLE_ARN.fullmatch(params["RoleArn"])
    if match is None:
        raise ApiError("ValidationError", f"{params['RoleArn']} is invalid")
    account, role_name = match.groups()
    return account, context.tables.table(account, "", "roles").get(role_name)


def _start_session(
    context: Context,
    account: str,
    role: Role,
    params: Params,
    seconds: int,
    tags: dict[str, str],
    transitive: tuple[str, ...],
) -> dict[str, Any]:
    principal = f"arn:{context.partition}:sts::{account}:assumed-role/{role.name}/{params['RoleSessionName']}"
    user_id = f"{role.role_id}:{params['RoleSessionName']}"
    issued = context.clock.now()
    session = create_session(
        context.tables, account, principal, user_id, issued, seconds, tags=tags, transitive=transitive
    )
    return {
        "Credentials": _credentials_view(session),
        "AssumedRoleUser": {"AssumedRoleId": user_id, "Arn": principal},
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
    tags = params.get("Tags") or ()
    keys = {f"aws:requesttag/{tag['Key'].lower()}": [tag["Value"]] for tag in tags}
    keys["aws:tagkeys"] = [tag["Key"] for tag in tags]
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
        raise invalid_token(f"No OpenIDConnect provider found in your account for https://{identity.issuer}")
    audience = next((one for one in identity.audiences if one in provider.client_ids), None)
    if audience is None:
        raise invalid_token("Incorrect token audience")
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
        **_start_session(context, account, role, params, seconds, {}, ()),
        "SubjectFromWebIdentityToken": identity.subject,
        "Provider": arn,
        "Audience": audience,
    }


def _session_seconds(params: Params, longest: int) -> int:
    seconds = int(params.get("DurationSeconds", 3600))
    if seconds < 900:
        text = constraint_text(seconds, "durationSeconds", "have value greater than or equal to 900")
        raise ApiError("ValidationError", text)
    if seconds > longest:
        raise ApiError(
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
        raise ApiError("AccessDenied", "Cannot call GetSessionToken with session credentials", status=403)
    seconds = _session_seconds({"DurationSeconds": params.get("DurationSeconds", 43_200)}, 129_600)
    issued = context.clock.now()
    session = create_session(context.tables, own.account, own.principal, own.user_id, issued, seconds)
    return {"Credentials": _credentials_view(session)}
