"""KMS keys. The sandbox has no KMS: a request can name keys, but nothing is encrypted.

Every customer key of the caller's account in the region of the call exists. A key of another region or
account, and any alias but that of the service's own managed key, is not accessible: these are the mistakes
that people make when they copy images between regions.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

KEY_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32}")


def managed_key(context: Context, alias: str) -> str:
    """Return the ARN of the AWS managed key with this alias, in the account and region of the call."""
    key_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{context.account} {context.region} {alias}")
    return context.arn("kms", f"key/{key_id}")


def find_key(context: Context, key: str, alias: str) -> str | None:
    """Return the ARN of a key by its ID or ARN; None when it is not accessible.

    Parameters
    ----------
    key
        ID or ARN of a key or an alias.
    alias
        The alias of the service's managed key, such as ``alias/aws/ebs``.
    """
    prefix = context.arn("kms", "")
    name = key.removeprefix(prefix)
    if name == alias:
        return managed_key(context, alias)
    key_id = name.removeprefix("key/") if name != key else name
    return f"{prefix}key/{key_id}" if KEY_ID.fullmatch(key_id) else None
