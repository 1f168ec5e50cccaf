"""Access keys of users.

Sources: CreateAccessKey, ListAccessKeys, UpdateAccessKey, DeleteAccessKey in the IAM API Reference.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import credentials
from ..core import AwsError, operation
from ..credentials import Credential
from .common import PAGING, no_such, page, user_of

if TYPE_CHECKING:
    from ..core import Context, Params
    from .state import User

KEYS_MOST = 2


def _user(context: Context, params: Params) -> User:
    return user_of(context, params.get("UserName") or context.principal.rpartition("/")[2])


def _key_of(user: User, access_key: str) -> str:
    if access_key not in user.keys:
        raise no_such(f"The Access Key with id {access_key} cannot be found.")
    return access_key


def _status(context: Context, access_key: str) -> str:
    return "Active" if credentials.table(context.tables)[access_key].active else "Inactive"


@operation("iam", "CreateAccessKey", honours=["UserName"])
def create_access_key(context: Context, params: Params) -> dict[str, Any]:
    """Make a key; its secret is shown this once."""
    user = _user(context, params)
    if len(user.keys) >= KEYS_MOST:
        raise AwsError("LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2", status=409)
    credential = Credential(
        access_key="AKIA" + secrets.token_hex(8).upper(),
        secret=secrets.token_urlsafe(30),
        account=context.account,
        principal=user.arn,
        user_id=user.user_id,
    )
    credentials.table(context.tables)[credential.access_key] = credential
    user.keys[credential.access_key] = context.clock.now().replace(microsecond=0)
    return {
        "AccessKey": {
            "UserName": user.name,
            "AccessKeyId": credential.access_key,
            "Status": "Active",
            "SecretAccessKey": credential.secret,
            "CreateDate": user.keys[credential.access_key],
        }
    }


@operation("iam", "ListAccessKeys", honours=["UserName", *PAGING])
def list_access_keys(context: Context, params: Params) -> dict[str, Any]:
    """List a user's keys without their secrets."""
    user = _user(context, params)
    shown = [
        {"UserName": user.name, "AccessKeyId": key, "Status": _status(context, key), "CreateDate": created}
        for key, created in user.keys.items()
    ]
    return page(shown, params, "AccessKeyMetadata")


@operation("iam", "UpdateAccessKey", honours=["UserName", "AccessKeyId", "Status"])
def update_access_key(context: Context, params: Params) -> dict[str, Any]:
    """Switch a key on or off."""
    key = _key_of(_user(context, params), params["AccessKeyId"])
    known = credentials.table(context.tables)
    known[key] = replace(known[key], active=params["Status"] == "Active")
    return {}


@operation("iam", "DeleteAccessKey", honours=["UserName", "AccessKeyId"])
def delete_access_key(context: Context, params: Params) -> dict[str, Any]:
    """Delete a key."""
    user = _user(context, params)
    key = _key_of(user, params["AccessKeyId"])
    del user.keys[key]
    del credentials.table(context.tables)[key]
    return {}
