"""Sessions in other accounts, for audits of many accounts.

Each member account has a role of the same name that trusts the auditing account. ``vmsnix iam-policy
audit-member`` and ``audit-member-trust`` print the role's policies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.identity import read_caller
from vmsnix_ops.aws.paging import RetryState, TimeLimit, retry_read
from vmsnix_ops.aws.session import calling, client
from vmsnix_ops.aws.session import session as default_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    import boto3
    from types_boto3_sts.type_defs import AssumeRoleRequestTypeDef

SESSION_NAME = "vmsnix-audit"
_ACCOUNT = re.compile(r"[0-9]{12}")
_ROLE_ARN = re.compile(r"arn:aws[\w-]*:iam::([0-9]{12}):role/(.+)")


@dataclass(frozen=True, slots=True)
class MemberAccount:
    """An account to audit, with its session or the reason why there is none."""

    account: str  # account ID, 12 digits
    session: boto3.Session | None = field(repr=False)  # `None` if the role could not be assumed
    error: errors.AwsError | None = None


def open_accounts(
    wanted: Iterable[str] = (),
    *,
    role: str = "vmsnix-auditor",
    external_id: str = "",
    region: str | None = None,
    limit: TimeLimit | None = None,
    session: boto3.Session | None = None,
) -> tuple[MemberAccount, ...]:
    """Return a session for each account. An account that refuses the role does not end the others.

    `wanted` are account IDs, or ARNs of roles for accounts whose role has another name; by default the
    caller's own account, which is read with the caller's own credentials. `role` is the name of the role in
    the other accounts, with its path if it has one; `external_id` the external ID that their trust policies
    require; `region` that of the STS endpoint; `session` that of the auditing account.
    """
    session = session or default_session()
    entries, retries = parse_accounts(wanted), RetryState(limit or TimeLimit())
    caller = retry_read(lambda: read_caller(session, region), retries)
    found = []
    for account, entry in (entries or {caller.account: caller.account}).items():
        if account == caller.account:
            found.append(MemberAccount(account, session))
            continue
        arn = entry if entry != account else f"arn:{caller.partition}:iam::{account}:role/{role}"
        try:
            assumed = assume_role(session, arn, external_id=external_id, region=region, retries=retries)
            found.append(MemberAccount(account, assumed))
        except errors.AwsError as error:
            found.append(MemberAccount(account, None, error))
    return tuple(found)


def parse_accounts(wanted: Iterable[str]) -> dict[str, str]:
    """Return the first entry for each account: its ID, or the ARN of a role in it; refuse other texts."""
    entries: dict[str, str] = {}
    for entry in wanted:
        match = _ROLE_ARN.fullmatch(entry)
        if match is None and not _ACCOUNT.fullmatch(entry):
            raise errors.ParameterError(
                f"{entry!r} is not an account.",
                why="An account ID has 12 digits without dashes, including leading zeros.",
                fix="Use account IDs, or ARNs of roles to assume.",
            )
        entries.setdefault(match[1] if match else entry, entry)
    return entries


@needs("sts:AssumeRole")
def assume_role(
    session: boto3.Session,
    role_arn: str,
    *,
    external_id: str = "",
    region: str | None = None,
    retries: RetryState | None = None,
) -> boto3.Session:
    """Return a session of a role. It renews its credentials, because an audit may take hours.

    Calls to the same STS endpoint share `retries`.
    """
    import boto3
    import botocore.session
    from botocore.credentials import RefreshableCredentials

    sts = client(session, "sts", region)
    request: AssumeRoleRequestTypeDef = {"RoleArn": role_arn, "RoleSessionName": SESSION_NAME}
    if external_id:
        request["ExternalId"] = external_id

    def refresh() -> dict[str, Any]:
        try:
            with calling(f"assume the role {role_arn}"):
                given = retry_read(lambda: sts.assume_role(**request), retries)["Credentials"]
        except errors.AccessDeniedError as error:
            # AWS has one message for a missing role, a role that does not trust us, and a missing permission.
            raise error.with_fix(
                "Create the role there (vmsnix iam-policy audit-member and audit-member-trust print its "
                "policies), and allow sts:AssumeRole in the caller's own account."
            ) from error
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    core = botocore.session.Session()
    # One loader for all accounts: EC2's model takes a second to read and tens of megabytes.
    core.register_component("data_loader", session._session.get_component("data_loader"))
    # Botocore has no public way to set credentials that renew themselves.
    core._credentials = RefreshableCredentials.create_from_metadata(  # type: ignore[attr-defined]
        metadata=refresh(), refresh_using=refresh, method="sts-assume-role"
    )
    return boto3.Session(botocore_session=core, region_name=session.region_name)
