"""SecureString parameters and the permission to decrypt them.

Sources: "Restricting decryption of SecureString parameter values" and "AWS KMS encryption for AWS Systems
Manager Parameter Store SecureString parameters" in the Systems Manager User Guide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.sandbox.clients import ONCE, refused, user_access

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

SECRET, OPEN, NAME = "hunter2 and more", "ami-0123", "/app/password"
KEY = "arn:aws:kms:us-east-1:012345678901:key/01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def aws(enforcing_sandbox: Sandbox) -> Sandbox:
    return enforcing_sandbox


def reader(aws: Sandbox, *more: dict[str, Any]) -> Any:
    may_read = {"Effect": "Allow", "Action": ["ssm:*"], "Resource": "*"}
    return user_access(aws, may_read, *more).client("ssm", config=ONCE)


def put_secret(aws: Sandbox, **more: Any) -> None:
    ssm = aws.client("ssm")
    ssm.put_parameter(Name=NAME, Value=SECRET, Type="SecureString", **more)
    ssm.put_parameter(Name="/app/ami", Value=OPEN, Type="String")


def reads(ssm: Any, *, decrypt: bool = True) -> list[list[str]]:
    """Return the values in the answers of all operations that read values."""
    params = {"WithDecryption": decrypt}
    history = ssm.get_parameter_history(Name=NAME, **params)["Parameters"]
    return [
        [ssm.get_parameter(Name=NAME, **params)["Parameter"]["Value"]],
        [one["Value"] for one in ssm.get_parameters(Names=[NAME], **params)["Parameters"]],
        [one["Value"] for one in history],
        [
            one["Value"]
            for one in ssm.get_parameters_by_path(Path="/app", **params)["Parameters"]
            if one["Name"] == NAME
        ],
    ]


NO_DECRYPTION = {
    "Effect": "Deny",
    "Action": "kms:Decrypt",
    "Resource": "*",
    "Condition": {"StringLike": {"kms:ViaService": "ssm.*.amazonaws.com"}},
}


def test_without_decryption_a_secret_is_ciphertext(aws: Sandbox) -> None:
    put_secret(aws)
    for values in reads(reader(aws, NO_DECRYPTION), decrypt=False):
        (value,) = values
        assert value
        assert SECRET not in value


def test_every_user_of_the_account_may_decrypt_with_the_managed_key(aws: Sandbox) -> None:
    put_secret(aws)
    assert reads(reader(aws)) == [[SECRET]] * 4


def test_a_deny_of_decryption_through_parameter_store_applies(aws: Sandbox) -> None:
    put_secret(aws)
    ssm = reader(aws, NO_DECRYPTION)
    params = {"WithDecryption": True}
    for operation, more in (
        ("get_parameter", {"Name": NAME}),
        ("get_parameter", {"Name": f"{NAME}:1"}),
        ("get_parameter", {"Name": f"arn:aws:ssm:us-east-1:{aws.account}:parameter{NAME}"}),
        ("get_parameters", {"Names": ["/app/ami", NAME]}),
        ("get_parameter_history", {"Name": NAME}),
        ("get_parameters_by_path", {"Path": "/app"}),
        ("get_parameters_by_path", {"Path": "/", "Recursive": True}),
    ):
        with refused("AccessDeniedException", "kms:Decrypt"):
            getattr(ssm, operation)(**more, **params)
    assert ssm.get_parameter(Name="/app/ami", **params)["Parameter"]["Value"] == OPEN


def test_a_deny_through_another_service_does_not_apply(aws: Sandbox) -> None:
    put_secret(aws)
    other = NO_DECRYPTION | {"Condition": {"StringLike": {"kms:ViaService": "s3.*.amazonaws.com"}}}
    assert reads(reader(aws, other)) == [[SECRET]] * 4


def test_a_customer_key_needs_permission(aws: Sandbox) -> None:
    put_secret(aws, KeyId=KEY)
    with refused("AccessDeniedException", "no identity-based policy allows the kms:Decrypt action"):
        reads(reader(aws))
    context = {
        "StringEquals": {
            "kms:EncryptionContext:PARAMETER_ARN": f"arn:aws:ssm:us-east-1:{aws.account}:parameter{NAME}"
        }
    }
    allowed = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": KEY, "Condition": context}
    assert reads(reader(aws, allowed)) == [[SECRET]] * 4


def test_writing_with_a_customer_key_needs_permission_to_encrypt(aws: Sandbox) -> None:
    params = {"Name": NAME, "Value": SECRET, "Type": "SecureString"}
    reader(aws).put_parameter(**params)
    with refused("AccessDeniedException", "kms:Encrypt"):
        reader(aws).put_parameter(**params, Overwrite=True, KeyId=KEY)
    (described,) = aws.client("ssm").describe_parameters()["Parameters"]
    assert (described["Type"], described["KeyId"]) == ("SecureString", "alias/aws/ssm")


def test_an_unknown_key_and_a_key_for_a_plain_text_are_refused(aws: Sandbox) -> None:
    ssm = aws.client("ssm", config=ONCE)
    with refused("InvalidKeyId"):
        ssm.put_parameter(Name=NAME, Value="x", Type="SecureString", KeyId="alias/unknown")
    with refused("ValidationException"):
        ssm.put_parameter(Name=NAME, Value="x", Type="String", KeyId=KEY)
