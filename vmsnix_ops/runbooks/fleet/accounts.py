"""The accounts of a plan, and the environment in which a run finds its account's credentials.

A role is taken anew for each try, by the worker and with the worker's own credentials; what AWS gives goes
to the kernel's environment and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.fleet.entries import Target
    from vmsnix_ops.runbooks.fleet.faults import Faults

ACCOUNT_KEYS = ("id", "role", "profile")
ACCOUNT_ID = re.compile(r"[0-9]{12}")
ROLE = re.compile(r"arn:aws[a-z-]*:iam::(?P<account>[0-9]{12}):role/[\w+=,.@/-]+")
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
JOB_FILES = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")


@dataclass(frozen=True, slots=True)
class Account:
    """An AWS account, and how its runs get there.

    Attributes
    ----------
    name
        In the plan file.
    id
        Twelve digits; its runs refuse to work in any other. Empty: whatever the credentials say.
    role
        ARN of a role that each run takes for itself.
    profile
        Profile of the workers' own AWS configuration.
    """

    name: str = ""
    id: str = ""
    role: str = ""
    profile: str = ""


def read_accounts(faults: Faults, tables: Mapping[str, Any]) -> dict[str, Account]:
    """Return the accounts of a plan, by name."""
    accounts = {}
    for name, table in tables.items():
        place = f"accounts.{name}"
        if not isinstance(table, dict):
            faults.add(f"{place} is not a table.")
            continue
        faults.unknown(table, ACCOUNT_KEYS, place)
        account = Account(
            name,
            *(
                _account_id(faults, table, place),
                *(faults.take(table, key, str, "", place) for key in ("role", "profile")),
            ),
        )
        named = ROLE.fullmatch(account.role)
        if account.role and named is None:
            faults.add(f"{place}: {account.role!r} is no ARN of a role (arn:aws:iam::ACCOUNT:role/NAME).")
        elif named and account.id and named["account"] != account.id:
            faults.add(f"{place}: the role is one of {named['account']}, and the account is {account.id}.")
        if account.role and account.profile:
            faults.add(f"{place} has both a role and a profile; give one.")
        accounts[name] = account
    return accounts


def _account_id(faults: Faults, table: Mapping[str, Any], place: str) -> str:
    value = table.get("id", "")
    if isinstance(value, int) and not isinstance(value, bool):
        faults.add(
            f'{place}: id = {value} is a number, and numbers lose leading zeros; write "{value:012d}".'
        )
        return ""
    text = faults.take(table, "id", str, "", place)
    if text and not ACCOUNT_ID.fullmatch(text):
        faults.add(f"{place}: {text!r} is not an account id, which has 12 digits.")
    return text


def environment_of(target: Target, common: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables of a target's run on top of the worker's; ``None`` takes one away.

    The files of a CI job are the fleet's own to write, not those of its runs.
    """
    made: dict[str, str | None] = {**dict.fromkeys(JOB_FILES), **common, **target.environment}
    account = target.account
    if account.profile:
        # Keys in the environment would win over the profile.
        made |= {**dict.fromkeys(CREDENTIALS), "AWS_PROFILE": account.profile}
    if account.role:
        made |= {**_assumed(account, target.region), "AWS_PROFILE": None}
    return made


def _assumed(account: Account, region: str) -> dict[str, str]:
    """Return the variables of temporary credentials of an account's role."""
    from vmsnix_ops.aws.accounts import assume
    from vmsnix_ops.aws.session import session

    taken = assume(session(region or None), account.role, region=region or "us-east-1")
    given = taken.get_credentials().get_frozen_credentials()
    return dict(zip(CREDENTIALS, (given.access_key, given.secret_key, given.token), strict=True))
