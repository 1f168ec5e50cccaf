"""Other accounts: a session in each, by way of a role that lets us look.

One account audits many. Each member account has a role of the same name that trusts the auditing account
(``vmsnix iam-policy audit-member`` and ``audit-member-trust`` print its policies).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.identity import identity
from vmsnix_ops.aws.paging import Limit, Waits, insist
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
class Account:
    """An account that we may look into.

    Attributes
    ----------
    account
        Twelve digits.
    session
        Its session; ``None`` where the role could not be taken.
    error
        Why not.
    """

    account: str
    session: boto3.Session | None = field(repr=False)
    error: errors.AwsError | None = None


def accounts(
    wanted: Iterable[str] = (),
    *,
    role: str = "vmsnix-auditor",
    external_id: str = "",
    region: str | None = None,
    limit: Limit | None = None,
    session: boto3.Session | None = None,
) -> tuple[Account, ...]:
    """Return a session for each account, each account once; one that refuses us does not end the rest.

    Parameters
    ----------
    wanted
        Account ids, or ARNs of roles where an account has a role of another name. The caller's own account is
        looked into with the caller's own credentials. By default that account alone.
    role
        Name of the role, perhaps with its path, in the other accounts.
    external_id
        What their trust policies ask for, if they do.
    region
        Whose STS to ask.
    limit
        When waiting for it ends.
    session
        Who asks.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        An entry is neither an account id nor the ARN of a role.
    vmsnix_ops.errors.CredentialsError
        The caller has no credentials: then nothing can be said about any account.
    """
    session = session or default_session()
    entries, waits = each_once(wanted), Waits(limit or Limit())
    me = insist(lambda: identity(session, region), waits)
    found = []
    for account, entry in (entries or {me.account: me.account}).items():
        if account == me.account:
            found.append(Account(account, session))
            continue
        arn = entry if entry != account else f"arn:{me.partition}:iam::{account}:role/{role}"
        try:
            given = assume(session, arn, external_id=external_id, region=region, waits=waits)
            found.append(Account(account, given))
        except errors.AwsError as error:
            found.append(Account(account, None, error))
    return tuple(found)


def each_once(wanted: Iterable[str]) -> dict[str, str]:
    """Return the entry of each account: its id, or the ARN of a role in it. The first of an account counts.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        An entry is neither.
    """
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
def assume(
    session: boto3.Session,
    role_arn: str,
    *,
    external_id: str = "",
    region: str | None = None,
    waits: Waits | None = None,
) -> boto3.Session:
    """Return a session of a role; its credentials renew themselves, because an audit may take hours.

    `waits` are shared by those who ask the same STS.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        The role cannot be taken.
    """
    import boto3
    import botocore.session
    from botocore.credentials import RefreshableCredentials

    sts = client(session, "sts", region)
    asked: AssumeRoleRequestTypeDef = {"RoleArn": role_arn, "RoleSessionName": SESSION_NAME}
    if external_id:
        asked["ExternalId"] = external_id

    def fresh() -> dict[str, Any]:
        try:
            with calling(f"assume the role {role_arn}"):
                given = insist(lambda: sts.assume_role(**asked), waits)["Credentials"]
        except errors.AccessDeniedError as error:
            # AWS tells a missing role, one that does not trust us and a missing permission in the same words.
            raise errors.AccessDeniedError(
                error.what,
                why=error.why,
                fix="Create the role there (vmsnix iam-policy audit-member and audit-member-trust print its "
                "policies), and allow sts:AssumeRole in the caller's own account.",
                code=error.code,
                operation=error.operation,
                request_id=error.request_id,
            ) from error
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    core = botocore.session.Session()
    # One loader for all accounts: EC2's model alone takes a second to read and tens of megabytes to keep.
    core.register_component("data_loader", session._session.get_component("data_loader"))
    # The only door that botocore has for credentials which renew themselves.
    core._credentials = RefreshableCredentials.create_from_metadata(  # type: ignore[attr-defined]
        metadata=fresh(), refresh_using=fresh, method="sts-assume-role"
    )
    return boto3.Session(botocore_session=core, region_name=session.region_name)
