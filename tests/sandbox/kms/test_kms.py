"""KMS: keys, aliases, grants, encryption, and keys that other services name.

Sources: the operations' pages in the AWS KMS API Reference; "Key states of AWS KMS keys".
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.clients import SandboxClients, refused, user_access

DAY = 24 * 3600


def make_key(aws: SandboxClients, alias: str = "", **more: Any) -> str:
    arn: str = aws.kms.create_key(**more)["KeyMetadata"]["Arn"]
    if alias:
        aws.kms.create_alias(AliasName=alias, TargetKeyId=arn)
    return arn


def test_a_key_is_described_by_id_arn_and_alias(aws: SandboxClients) -> None:
    tags = [{"TagKey": "a", "TagValue": "b"}]
    arn = make_key(aws, "alias/images", Description="for images", Tags=tags)
    for name in (arn, arn.rpartition("/")[2], "alias/images", arn.partition("key/")[0] + "alias/images"):
        key = aws.kms.describe_key(KeyId=name)["KeyMetadata"]
        assert (key["Arn"], key["KeyState"], key["KeyManager"]) == (arn, "Enabled", "CUSTOMER")
    assert key["Description"] == "for images"
    assert aws.kms.list_resource_tags(KeyId=arn)["Tags"] == tags
    assert arn in {key["KeyArn"] for key in aws.kms.list_keys()["Keys"]}
    names = {alias["AliasName"] for alias in aws.kms.list_aliases()["Aliases"]}
    assert names == {"alias/aws/ebs", "alias/aws/ssm", "alias/images"}


def test_unknown_keys_are_refused(aws: SandboxClients) -> None:
    unknown = "11111111-2222-3333-4444-555555555555"
    with refused(
        "NotFoundException", f"Key 'arn:aws:kms:us-east-1:{aws.account}:key/{unknown}' does not exist"
    ):
        aws.kms.describe_key(KeyId=unknown)
    with refused("NotFoundException", "alias/none is not found."):
        aws.kms.describe_key(KeyId="alias/none")
    with refused("NotFoundException"):
        aws.client("kms", "eu-west-1").describe_key(KeyId=make_key(aws))
    with refused("NotImplemented", "'RSA_2048' of KeySpec"):
        aws.kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")


def test_aliases_are_unique(aws: SandboxClients) -> None:
    first, second = make_key(aws, "alias/images"), make_key(aws)
    with refused("AlreadyExistsException", "alias/images already exists"):
        aws.kms.create_alias(AliasName="alias/images", TargetKeyId=second)
    assert [one["AliasName"] for one in aws.kms.list_aliases(KeyId=first)["Aliases"]] == ["alias/images"]
    aws.kms.delete_alias(AliasName="alias/images")
    assert aws.kms.list_aliases(KeyId=first)["Aliases"] == []
    with refused("NotFoundException"):
        aws.kms.delete_alias(AliasName="alias/images")


def test_a_text_is_decrypted_with_its_key_and_context_only(aws: SandboxClients) -> None:
    key, bound = make_key(aws, "alias/images"), {"EncryptionContext": {"purpose": "test"}}
    sealed = aws.kms.encrypt(KeyId="alias/images", Plaintext=b"secret", **bound)["CiphertextBlob"]
    assert b"secret" not in sealed
    answer = aws.kms.decrypt(CiphertextBlob=sealed, **bound)
    assert (answer["Plaintext"], answer["KeyId"]) == (b"secret", key)
    with refused("InvalidCiphertextException"):
        aws.kms.decrypt(CiphertextBlob=sealed)
    with refused("IncorrectKeyException"):
        aws.kms.decrypt(CiphertextBlob=sealed, KeyId=make_key(aws), **bound)
    data = aws.kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert len(data["Plaintext"]) == 32
    assert aws.kms.decrypt(CiphertextBlob=data["CiphertextBlob"])["Plaintext"] == data["Plaintext"]
    assert "Plaintext" not in aws.kms.generate_data_key_without_plaintext(KeyId=key, NumberOfBytes=8)


def test_a_disabled_or_deleted_key_cannot_be_used(aws: SandboxClients) -> None:
    key = make_key(aws)
    aws.kms.disable_key(KeyId=key)
    with refused("DisabledException", f"{key} is disabled."):
        aws.kms.encrypt(KeyId=key, Plaintext=b"x")
    aws.kms.enable_key(KeyId=key)
    aws.kms.encrypt(KeyId=key, Plaintext=b"x")
    assert aws.kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)["KeyState"] == "PendingDeletion"
    with refused("KMSInvalidStateException", f"{key} is pending deletion."):
        aws.kms.encrypt(KeyId=key, Plaintext=b"x")
    aws.pass_time(8 * DAY)
    with refused("NotFoundException"):
        aws.kms.describe_key(KeyId=key)


def test_grants_are_listed_and_revoked(aws: SandboxClients) -> None:
    key, grantee = make_key(aws), "arn:aws:iam::123456789012:root"
    grant = aws.kms.create_grant(KeyId=key, GranteePrincipal=grantee, Operations=["Decrypt"])["GrantId"]
    (shown,) = aws.kms.list_grants(KeyId=key)["Grants"]
    assert (shown["GrantId"], shown["GranteePrincipal"], shown["Operations"]) == (grant, grantee, ["Decrypt"])
    aws.kms.revoke_grant(KeyId=key, GrantId=grant)
    assert aws.kms.list_grants(KeyId=key)["Grants"] == []


@pytest.mark.parametrize("usable", [True, False])
def test_a_snapshot_is_copied_with_a_usable_key_by_its_alias(aws: SandboxClients, usable: bool) -> None:
    key = make_key(aws, "alias/images")
    if not usable:
        aws.kms.disable_key(KeyId=key)
    volume = aws.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]
    snapshot = aws.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    aws.pass_time(120)
    copy = aws.ec2.copy_snapshot(
        SourceSnapshotId=snapshot, SourceRegion="us-east-1", Encrypted=True, KmsKeyId="alias/images"
    )["SnapshotId"]
    aws.pass_time(120)
    shown = aws.describe_snapshot(copy)
    if usable:
        assert (shown["State"], shown["KmsKeyId"]) == ("completed", key)
    else:
        assert (shown["State"], shown["StateMessage"]) == ("error", "Given key ID is not accessible")


def test_a_secret_parameter_uses_a_key_by_its_alias(aws: SandboxClients) -> None:
    make_key(aws, "alias/images")
    secret = {"Name": "/s", "Value": "v", "Type": "SecureString"}
    aws.ssm.put_parameter(KeyId="alias/images", **secret)
    assert aws.ssm.get_parameter(Name="/s", WithDecryption=True)["Parameter"]["Value"] == "v"
    with refused("InvalidKeyId"):
        aws.ssm.put_parameter(KeyId="alias/none", Overwrite=True, **secret)


def test_policies_name_the_key(aws: SandboxClients) -> None:
    allowed, other = make_key(aws), make_key(aws)
    user = user_access(aws.sandbox, {"Effect": "Allow", "Action": "kms:Encrypt", "Resource": allowed})
    kms = user.client("kms", "us-east-1")
    kms.encrypt(KeyId=allowed, Plaintext=b"x")
    with refused("AccessDeniedException", f"kms:Encrypt on resource: {other}"):
        kms.encrypt(KeyId=other, Plaintext=b"x")


def test_decrypt_needs_permission_for_the_key_of_the_text(aws: SandboxClients) -> None:
    allowed, other = make_key(aws), make_key(aws)
    bound = {"EncryptionContext": {"purpose": "images"}}
    condition = {"StringEquals": {"kms:EncryptionContext:purpose": "images"}}
    statement = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": allowed, "Condition": condition}
    kms = user_access(aws.sandbox, statement).client("kms", "us-east-1")
    sealed = {
        key: aws.kms.encrypt(KeyId=key, Plaintext=b"x", **bound)["CiphertextBlob"] for key in (allowed, other)
    }
    assert kms.decrypt(CiphertextBlob=sealed[allowed], **bound)["Plaintext"] == b"x"
    with refused("AccessDeniedException", f"kms:Decrypt on resource: {other}"):
        kms.decrypt(CiphertextBlob=sealed[other], **bound)
    with refused("AccessDeniedException", f"kms:Decrypt on resource: {allowed}"):
        kms.decrypt(CiphertextBlob=sealed[allowed])


def test_an_alias_needs_permission_on_itself_and_on_its_key(aws: SandboxClients) -> None:
    key = make_key(aws)
    arn = key.partition("key/")[0] + "alias/"
    statement = {"Effect": "Allow", "Action": "kms:*Alias", "Resource": [key, f"{arn}mine"]}
    kms = user_access(aws.sandbox, statement).client("kms", "us-east-1")
    kms.create_alias(AliasName="alias/mine", TargetKeyId=key)
    with refused("AccessDeniedException", f"kms:CreateAlias on resource: {arn}other"):
        kms.create_alias(AliasName="alias/other", TargetKeyId=key)
    kms.delete_alias(AliasName="alias/mine")


@pytest.mark.parametrize("wrong", [{"NumberOfBytes": 1025}, {"KeySpec": "AES_512"}], ids=str)
def test_data_keys_have_up_to_1024_bytes(aws: SandboxClients, wrong: dict[str, Any]) -> None:
    with refused("ValidationException"):
        aws.kms.generate_data_key(KeyId=make_key(aws), **wrong)


def test_managed_keys_of_other_services_are_not_emulated(aws: SandboxClients) -> None:
    """Source: "KeyId" of DescribeKey: KMS creates the key of such an alias."""
    with refused("NotImplemented", "the key alias/aws/lambda"):
        aws.kms.describe_key(KeyId="alias/aws/lambda")
