"""Encryption of volumes and snapshots, and EBS encryption by default. For the keys see `kms`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Params, operation
from vmsnix_ops.sandbox.kms import find_key, managed_key

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context

KEY_NOT_ACCESSIBLE = "Given key ID is not accessible"
"""StateMessage of a snapshot copy that failed because of its key (public transcripts)."""

EBS_KEY_ALIAS = "alias/aws/ebs"


def key_not_accessible(key: str) -> ApiError:
    """Return the error for a key that cannot be used."""
    return ApiError("InvalidKmsKey.InvalidState", f"The key ID '{key}' is not accessible")  # text from memory


@dataclass(frozen=True, slots=True)
class Encryption:
    """Whether a new resource is encrypted, its key (an ARN), and why the key cannot be used; "" if it can."""

    encrypted: bool
    key: str
    failure: str = ""


def choose_encryption(
    context: Context, *, wanted: bool | None, key: str | None, source: bool = False, source_key: str = ""
) -> Encryption:
    """Return the encryption of a new volume or snapshot.

    Parameters
    ----------
    wanted, key
        ``Encrypted`` and ``KmsKeyId`` of the request.
    source, source_key
        Whether its source is encrypted, and the key to keep; "" means the default key.

    Raises
    ------
    ApiError
        The request names a key without ``Encrypted``, or would decrypt the source.
    """
    if key and not wanted:
        text = "The parameter KmsKeyId requires the parameter Encrypted to be set."
        raise ApiError("InvalidParameterDependency", text)
    if source and wanted is False:
        raise ApiError(
            "InvalidParameterCombination", "Encrypted resources cannot be copied to unencrypted ones."
        )
    settings = context.table("ec2_settings")
    if not (wanted or source or settings.get("ebs_encryption")):
        return Encryption(encrypted=False, key="")
    if not key:
        default = settings.get("ebs_key") or managed_key(context, EBS_KEY_ALIAS)
        return Encryption(encrypted=True, key=source_key or default)
    arn = find_key(context, key, EBS_KEY_ALIAS)
    return Encryption(True, arn or key, "" if arn else KEY_NOT_ACCESSIBLE)


def is_managed_key(context: Context, key: str) -> bool:
    """Return whether a key is AWS's own for EBS. What it encrypts cannot be shared."""
    return key.endswith(EBS_KEY_ALIAS) or key == managed_key(context, EBS_KEY_ALIAS)


@operation("ec2", "GetEbsEncryptionByDefault")
def get_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Return whether EBS encryption by default is on in this region."""
    enabled = bool(context.table("ec2_settings").get("ebs_encryption"))
    return {"EbsEncryptionByDefault": enabled, "SseType": "sse-ebs"}


@operation("ec2", "EnableEbsEncryptionByDefault")
def enable_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Encrypt every new volume and snapshot copy of this region."""
    context.table("ec2_settings")["ebs_encryption"] = True
    return {"EbsEncryptionByDefault": True}


@operation("ec2", "DisableEbsEncryptionByDefault")
def disable_ebs_encryption_by_default(context: Context, _params: Params) -> dict[str, Any]:
    """Encrypt only on request."""
    context.table("ec2_settings")["ebs_encryption"] = False
    return {"EbsEncryptionByDefault": False}


@operation("ec2", "GetEbsDefaultKmsKeyId")
def get_ebs_default_kms_key_id(context: Context, _params: Params) -> dict[str, Any]:
    """Return the default key for EBS encryption; ``alias/aws/ebs`` unless another one was set."""
    return {"KmsKeyId": context.table("ec2_settings").get("ebs_key") or EBS_KEY_ALIAS}


@operation("ec2", "ModifyEbsDefaultKmsKeyId", "KmsKeyId")
def modify_ebs_default_kms_key_id(context: Context, params: Params) -> dict[str, Any]:
    """Set the default key for EBS encryption."""
    arn = find_key(context, params["KmsKeyId"], EBS_KEY_ALIAS)
    if arn is None:
        raise key_not_accessible(params["KmsKeyId"])
    context.table("ec2_settings")["ebs_key"] = arn
    return {"KmsKeyId": arn}


@operation("ec2", "ResetEbsDefaultKmsKeyId")
def reset_ebs_default_kms_key_id(context: Context, _params: Params) -> dict[str, Any]:
    """Make the AWS managed key the default again."""
    context.table("ec2_settings").pop("ebs_key", None)
    return {"KmsKeyId": managed_key(context, EBS_KEY_ALIAS)}
