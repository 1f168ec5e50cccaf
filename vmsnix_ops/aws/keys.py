"""KMS keys that encrypt uploads, snapshots and AMIs.

A key is given as its ARN or its ID. An alias is refused: it can be moved to another key at any time, and AWS
reports only the key's ARN for a snapshot.

Sources: "Required permissions for VM Import/Export"; "StartSnapshot" (``KmsKeyArn``) in the EBS direct APIs
Reference; "Permissions for IAM users" of "Amazon EBS encryption"; "Protecting data with SSE-KMS".
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops import errors
from vmsnix_ops.aws.iam.documents import allow

if TYPE_CHECKING:
    from vmsnix_ops.aws.identity import CallerIdentity

_ID = r"(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32})"
KEY_ID = re.compile(_ID)
KEY_ARN = re.compile(rf"arn:(aws(?:-[a-z]+)*):kms:([a-z0-9-]+):([0-9]{{12}}):key/{_ID}")
_USE = ("kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt")
ROLE_ACTIONS = (*_USE, "kms:GenerateDataKey*", "kms:ReEncrypt*")
"""Actions on the key that VM Import's role needs."""

_DATA_KEYS = ("kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext")
SIMULATED = (*_USE, *_DATA_KEYS, "kms:ReEncryptFrom", "kms:ReEncryptTo")
"""`ROLE_ACTIONS` without wildcards, for IAM's policy simulator."""


def check_key(kms_key: str) -> str:
    """Return the key; refuse a text that is not a key's ARN or ID. No key (an empty text) is accepted."""
    if not kms_key or KEY_ID.fullmatch(kms_key) or KEY_ARN.fullmatch(kms_key):
        return kms_key
    if "alias/" in kms_key:
        alias = kms_key[kms_key.index("alias/") :]
        raise errors.ParameterError(
            f"The kms_key {kms_key!r} is an alias.",
            why="An alias can be moved to another key, so two publishes could be encrypted differently.",
            fix=f"Pass the key's ARN: aws kms describe-key --key-id {alias} --query KeyMetadata.Arn",
        )
    raise errors.ParameterError(
        f"{kms_key!r} is not a KMS key ARN.",
        fix="Use an ARN such as arn:aws:kms:eu-west-1:012345678901:key/12345678-1234-1234-1234-123456789012.",
    )


def key_arn(kms_key: str, *, region: str, who: CallerIdentity) -> str:
    """Return the ARN of a key of a region; empty without a key."""
    if KEY_ID.fullmatch(check_key(kms_key)):
        return f"arn:{who.partition}:kms:{region}:{who.account}:key/{kms_key}"
    found = KEY_ARN.fullmatch(kms_key)
    if found is not None and found[2] != region:
        raise errors.ParameterError(
            f"The key {kms_key} is in {found[2]}, but the publish is to {region}.",
            why="EBS encrypts with a key in the snapshot's region.",
            fix=f"Use a key in {region} as kms_key.",
        )
    return kms_key


def key_suffix(kms_key: str) -> str:
    """Return a suffix for names of objects and journals, different for each KMS key; empty without a key."""
    return f"-{hashlib.sha256(kms_key.encode()).hexdigest()[:8]}" if kms_key else ""


def caller_statements(kms_key: str, *, via: str) -> list[dict[str, Any]]:
    """Return the statements that let a publisher use a key through AWS's services only; none without a key.

    EBS and its direct APIs call KMS through ``ec2.REGION...`` with the publisher's permissions; S3 calls it
    through ``s3.REGION...`` when it encrypts an upload. The rest of the service's name is the partition's
    domain. Sources: "kms:ViaService" in the KMS Developer Guide; the managed policy
    AWSBackupServiceRolePolicyForIndexing for the EBS direct APIs; "Permissions for IAM users" of "Amazon EBS
    encryption" for the condition on grants.
    """
    if not kms_key:
        return []
    region = kms_key.split(":")[3]
    ebs, s3 = f"ec2.{region}.*", f"s3.{region}.*"
    through = {"StringLike": {"kms:ViaService": [ebs, s3] if via == "import" else [ebs]}}
    granting = {"StringLike": {"kms:ViaService": [ebs]}, "Bool": {"kms:GrantIsForAWSResource": "true"}}
    used = ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
    return [
        allow("UseTheKey", used, [kms_key], through),
        allow("LetEbsUseTheKey", ["kms:CreateGrant"], [kms_key], granting),
    ]


def reader_statements(kms_key: str) -> list[dict[str, Any]]:
    """Return the statement that lets a caller read encrypted snapshots; none without a key.

    Sources: as for `caller_statements`.
    """
    if not kms_key:
        return []
    through = {"StringLike": {"kms:ViaService": [f"ec2.{kms_key.split(':')[3]}.*"]}}
    return [allow("ReadWithTheKey", ["kms:Decrypt"], [kms_key], through)]


def role_statements(kms_key: str) -> list[dict[str, Any]]:
    """Return the statement that lets VM Import's role use a key; none without a key.

    It has no condition on ``kms:ViaService``: AWS documents the actions that the role needs, but not the
    service through which VM Import uses them. Only VM Import may assume the role.
    """
    if not kms_key:
        return []
    return [allow("UseTheKey", list(ROLE_ACTIONS), [kms_key])]
