"""KMS keys of volumes and snapshots, and EBS encryption by default.

There is no KMS in the sandbox. A customer key of the caller's own account in the region at hand is taken to
exist; a key of another region, a key of another account and an alias other than ``alias/aws/ebs`` are not
accessible. These are the mistakes that people make when they copy images between regions.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context


KEY_NOT_ACCESSIBLE = "Given key ID is not accessible"
"""StateMessage of a snapshot whose copy failed for its key (seen in public transcripts)."""

KEY_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32}")
DEFAULT_ALIAS = "alias/aws/ebs"


@dataclass(frozen=True, slots=True)
class Encryption:
    """How something new is encrypted: whether, with which key (an ARN), and whether the key can be used."""

    encrypted: bool
    key: str
    failure: str = ""


def managed_key(context: Context) -> str:
    """Return the ARN of the AWS managed key for EBS of this account and region."""
    number = uuid.uuid5(uuid.NAMESPACE_OID, f"{context.account} {context.region} {DEFAULT_ALIAS}")
    return f"arn:{context.partition}:kms:{context.region}:{context.account}:key/{number}"


def _default_key(context: Context) -> str:
    """Return the key when none is named: the account's choice, else the AWS managed one."""
    return str(context.table("ec2_settings").get("ebs_key") or managed_key(context))


def _encrypts_by_default(context: Context) -> bool:
    """Tell whether EBS encryption by default is on in this region."""
    return bool(context.table("ec2_settings").get("ebs_encryption"))


def choose_encryption(
    context: Context, *, wanted: bool | None, key: str | None, source: bool = False, old: str = ""
) -> Encryption:
    """Decide how a new volume or snapshot is encrypted.

    Parameters
    ----------
    wanted, key
        ``Encrypted`` and ``KmsKeyId`` of the request.
    source, old
        Whether what it is made from is encrypted, and the key to keep then; "" means the default key.

    Raises
    ------
    AwsError
        A key is named without asking for encryption, or encryption cannot be removed.
    """
    if key and not wanted:
        text = "The parameter KmsKeyId requires the parameter Encrypted to be set."
        raise AwsError("InvalidParameterDependency", text)
    if source and wanted is False:
        raise AwsError(
            "InvalidParameterCombination", "Encrypted resources cannot be copied to unencrypted ones."
        )
    if not (wanted or source or _encrypts_by_default(context)):
        return Encryption(encrypted=False, key="")
    if not key:
        return Encryption(encrypted=True, key=old or _default_key(context))
    arn = key_arn(context, key)
    return Encryption(True, arn or key, "" if arn else KEY_NOT_ACCESSIBLE)


def is_managed_key(context: Context, key: str) -> bool:
    """Tell whether a key is AWS's own for EBS, with which nothing encrypted can be shared."""
    return key.endswith(DEFAULT_ALIAS) or key == managed_key(context)


def key_arn(context: Context, key: str) -> str | None:
    """Return the ARN of a key named in any of the four forms, or None when it is not accessible here."""
    here = f"arn:{context.partition}:kms:{context.region}:{context.account}:"
    name = key.removeprefix(here)
    if name == DEFAULT_ALIAS:
        return managed_key(context)
    number = name.removeprefix("key/") if name != key else name
    return f"{here}key/{number}" if KEY_ID.fullmatch(number) else None


@operation("ec2", "GetEbsEncryptionByDefault")
def get_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Tell whether EBS encryption by default is on."""
    return {"EbsEncryptionByDefault": _encrypts_by_default(context), "SseType": "sse-ebs"}


@operation("ec2", "EnableEbsEncryptionByDefault")
def enable_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Encrypt every new volume and snapshot copy of this region from now on."""
    context.table("ec2_settings")["ebs_encryption"] = True
    return {"EbsEncryptionByDefault": True}


@operation("ec2", "DisableEbsEncryptionByDefault")
def disable_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Stop encrypting what nobody asks to be encrypted."""
    context.table("ec2_settings")["ebs_encryption"] = False
    return {"EbsEncryptionByDefault": False}


@operation("ec2", "GetEbsDefaultKmsKeyId")
def get_ebs_default_kms_key_id(context: Context, _params: Params) -> dict[str, Any]:
    """Return the default key for EBS encryption: ``alias/aws/ebs`` until another one is chosen."""
    return {"KmsKeyId": context.table("ec2_settings").get("ebs_key") or DEFAULT_ALIAS}


@operation("ec2", "ModifyEbsDefaultKmsKeyId", honours=("KmsKeyId",))
def modify_ebs_default_kms_key_id(context: Context, params: Params) -> dict[str, Any]:
    """Choose the default key for EBS encryption."""
    arn = key_arn(context, params["KmsKeyId"])
    if arn is None:
        text = f"The key ID '{params['KmsKeyId']}' is not accessible"  # text from memory
        raise AwsError("InvalidKmsKey.InvalidState", text)
    context.table("ec2_settings")["ebs_key"] = arn
    return {"KmsKeyId": arn}


@operation("ec2", "ResetEbsDefaultKmsKeyId")
def reset_ebs_default_kms_key_id(context: Context, _params: Params) -> dict[str, Any]:
    """Go back to the AWS managed key."""
    context.table("ec2_settings").pop("ebs_key", None)
    return {"KmsKeyId": managed_key(context)}
