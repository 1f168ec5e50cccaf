"""SecureString parameters: their KMS keys, and how they look without decryption.

There is no KMS in the sandbox. ``alias/aws/ssm`` is the key that AWS manages; a customer key is one of the
caller's account and region, by id or ARN. Sources: "AWS KMS encryption for AWS Systems Manager Parameter
Store SecureString parameters" and "Restricting decryption of SecureString parameter values" in the Systems
Manager User Guide.
"""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from typing import TYPE_CHECKING

from ..core import AwsError

if TYPE_CHECKING:
    from ..core import Context, Params
    from .state import Version

DEFAULT_ALIAS = "alias/aws/ssm"
_KEY_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32}")


def managed_key(context: Context) -> str:
    """Return the ARN of the key that AWS manages for Parameter Store in this account and region."""
    number = uuid.uuid5(uuid.NAMESPACE_OID, f"{context.account} {context.region} {DEFAULT_ALIAS}")
    return f"arn:{context.partition}:kms:{context.region}:{context.account}:key/{number}"


def key_of(context: Context, key_id: str | None) -> str:
    """Return the ARN of the key that a request names; the managed key when it names none.

    Raises
    ------
    AwsError
        ``InvalidKeyId`` for a key that is not one of this account and region.
    """
    here = f"arn:{context.partition}:kms:{context.region}:{context.account}:"
    name = (key_id or DEFAULT_ALIAS).removeprefix(here)
    if name == DEFAULT_ALIAS:
        return managed_key(context)
    number = name.removeprefix("key/")
    if not _KEY_ID.fullmatch(number):
        raise AwsError("InvalidKeyId", f"Key '{key_id}' is not found")  # text from memory
    return f"{here}key/{number}"


def shown_value(version: Version, params: Params) -> str:
    """Return the value of a version; of a SecureString its ciphertext, unless decryption is asked for."""
    if not version.key or params.get("WithDecryption"):
        return version.value
    digest = hashlib.sha512(f"{version.key} {version.number} {version.value}".encode()).digest()
    return base64.b64encode(b"\x01\x01" + digest).decode()
