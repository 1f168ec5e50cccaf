"""Key pairs. Sources: the operations' reference pages; "Verify the fingerprint of your key pair"."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as formats
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.sandbox.clients import ONCE, SandboxClients, refused, user_access


def openssh(key: Any) -> bytes:
    text: bytes = key.public_key().public_bytes(formats.Encoding.OpenSSH, formats.PublicFormat.OpenSSH)
    return text


def with_colons(digest: str) -> str:
    return ":".join(digest[start : start + 2] for start in range(0, len(digest), 2))


def launch(aws: SandboxClients, client: Any = None, **more: Any) -> dict[str, Any]:
    params = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    started = (client or aws.ec2).run_instances(**{"ImageId": more.get("ImageId") or aws.image()} | params)
    return dict(started["Instances"][0])


def test_a_created_rsa_key_matches_its_fingerprint_and_public_key(aws: SandboxClients) -> None:
    tags = [{"ResourceType": "key-pair", "Tags": [{"Key": "a", "Value": "b"}]}]
    made = aws.ec2.create_key_pair(KeyName="web", TagSpecifications=tags)
    assert made["KeyMaterial"].startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    key = formats.load_pem_private_key(made["KeyMaterial"].encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    der = key.private_bytes(formats.Encoding.DER, formats.PrivateFormat.PKCS8, formats.NoEncryption())
    assert made["KeyFingerprint"] == with_colons(hashlib.sha1(der).hexdigest())
    (shown,) = aws.ec2.describe_key_pairs(KeyNames=["web"], IncludePublicKey=True)["KeyPairs"]
    assert shown.pop("CreateTime")
    assert shown == {
        "KeyPairId": made["KeyPairId"],
        "KeyName": "web",
        "KeyType": "rsa",
        "KeyFingerprint": made["KeyFingerprint"],
        "Tags": [{"Key": "a", "Value": "b"}],
        "PublicKey": f"{openssh(key).decode()} web",
    }


def test_a_created_ed25519_key_can_be_loaded(aws: SandboxClients) -> None:
    made = aws.ec2.create_key_pair(KeyName="web", KeyType="ed25519")
    key = formats.load_ssh_private_key(made["KeyMaterial"].encode(), None)
    blob = base64.b64decode(openssh(key).split()[1])
    assert made["KeyFingerprint"] == base64.b64encode(hashlib.sha256(blob).digest()).decode()
    (shown,) = aws.ec2.describe_key_pairs(KeyPairIds=[made["KeyPairId"]])["KeyPairs"]
    assert (shown["KeyType"], "PublicKey" in shown) == ("ed25519", False)


def test_public_keys_are_imported(aws: SandboxClients) -> None:
    key = rsa.generate_private_key(65537, 1024)
    made = aws.ec2.import_key_pair(KeyName="rsa", PublicKeyMaterial=openssh(key) + b" me@home\n")
    der = key.public_key().public_bytes(formats.Encoding.DER, formats.PublicFormat.SubjectPublicKeyInfo)
    assert made["KeyFingerprint"] == with_colons(hashlib.md5(der).hexdigest())
    small = openssh(ed25519.Ed25519PrivateKey.generate())
    aws.ec2.import_key_pair(KeyName="small", PublicKeyMaterial=small)
    filters = [{"Name": "key-name", "Values": ["s*"]}]
    (shown,) = aws.ec2.describe_key_pairs(Filters=filters, IncludePublicKey=True)["KeyPairs"]
    assert (shown["KeyType"], shown["PublicKey"]) == ("ed25519", small.decode())
    with refused("InvalidKeyPair.Duplicate"):
        aws.ec2.import_key_pair(KeyName="small", PublicKeyMaterial=small)


@pytest.mark.parametrize(
    "content", [b"hello", b"ssh-rsa AAAA", openssh(ec.generate_private_key(ec.SECP256R1()))]
)
def test_other_keys_are_refused(aws: SandboxClients, content: bytes) -> None:
    with refused("InvalidKey.Format", "Key is not in valid OpenSSH public key format"):
        aws.ec2.import_key_pair(KeyName="web", PublicKeyMaterial=content)


def test_invalid_requests_are_refused(aws: SandboxClients) -> None:
    with refused("InvalidParameterValue"):
        aws.ec2.create_key_pair(KeyName=" web")
    with refused("InvalidParameterValue"):
        aws.ec2.create_key_pair(KeyName="web", KeyType="dsa")
    with refused("NotImplemented"):
        aws.ec2.create_key_pair(KeyName="web", KeyFormat="ppk")
    with refused("InvalidKeyPair.NotFound", "The key pair 'web' does not exist"):
        aws.ec2.describe_key_pairs(KeyNames=["web"])
    with refused("MissingParameter"):
        aws.ec2.delete_key_pair()


def test_an_instance_is_launched_with_a_key_pair(aws: SandboxClients) -> None:
    with refused("InvalidKeyPair.NotFound", "The key pair 'web' does not exist"):
        launch(aws, KeyName="web")
    made = aws.ec2.create_key_pair(KeyName="web", KeyType="ed25519")
    assert launch(aws, KeyName="web")["KeyName"] == "web"
    assert "KeyName" not in launch(aws)
    found = aws.ec2.describe_instances(Filters=[{"Name": "key-name", "Values": ["web"]}])["Reservations"]
    assert len(found) == 1
    data = {"ImageId": aws.image(), "InstanceType": "t3.micro", "KeyName": "web"}
    aws.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=data)
    template = {"LaunchTemplate": {"LaunchTemplateName": "web"}, "MinCount": 1, "MaxCount": 1}
    assert aws.ec2.run_instances(**template)["Instances"][0]["KeyName"] == "web"
    deleted = aws.ec2.delete_key_pair(KeyName="web")
    assert (deleted["Return"], deleted["KeyPairId"]) == (True, made["KeyPairId"])
    aws.ec2.delete_key_pair(KeyName="web")
    with refused("InvalidKeyPair.NotFound"):
        aws.ec2.run_instances(**template)


def test_permissions_have_the_name_of_the_key_pair(aws: SandboxClients) -> None:
    tags = [{"ResourceType": "key-pair", "Tags": [{"Key": "team", "Value": "os"}]}]
    image, key_id = aws.image(), ""
    for name in ("mine", "key-theirs"):
        key_id = aws.ec2.create_key_pair(KeyName=name, KeyType="ed25519", TagSpecifications=tags)["KeyPairId"]
    arn = f"arn:aws:ec2:us-east-1:{aws.account}:key-pair/"
    others = [f"arn:aws:ec2:us-east-1:{aws.account}:{kind}/*" for kind in ("instance", "volume", "subnet")]
    others += [f"arn:aws:ec2:us-east-1:{aws.account}:network-interface/*", "arn:aws:ec2:us-east-1::image/*"]
    others += [f"arn:aws:ec2:us-east-1:{aws.account}:security-group/*"]
    ours = {"StringEquals": {"aws:ResourceTag/team": "os"}}
    statements = [
        {"Effect": "Allow", "Action": "ec2:RunInstances", "Resource": [*others, f"{arn}mine"]},
        {"Effect": "Allow", "Action": "ec2:DeleteKeyPair", "Resource": f"{arn}key-*", "Condition": ours},
        {"Effect": "Allow", "Action": "ec2:CreateKeyPair", "Resource": f"{arn}new-*"},
    ]
    ec2 = user_access(aws.sandbox, *statements).client("ec2", config=ONCE)
    assert launch(aws, ec2, ImageId=image, KeyName="mine")["KeyName"] == "mine"
    with refused("UnauthorizedOperation", f"{arn}key-theirs"):
        launch(aws, ec2, ImageId=image, KeyName="key-theirs")
    ec2.create_key_pair(KeyName="new-1", KeyType="ed25519")
    with refused("UnauthorizedOperation", f"{arn}old"):
        ec2.create_key_pair(KeyName="old", KeyType="ed25519")
    with refused("UnauthorizedOperation", f"{arn}mine"):
        ec2.delete_key_pair(KeyName="mine")
    ec2.delete_key_pair(KeyPairId=key_id)


def test_key_pairs_have_tags(aws: SandboxClients) -> None:
    key_id = aws.ec2.create_key_pair(KeyName="web", KeyType="ed25519")["KeyPairId"]
    aws.ec2.create_tags(Resources=[key_id], Tags=[{"Key": "a", "Value": "b"}])
    filters = [{"Name": "resource-type", "Values": ["key-pair"]}]
    assert aws.ec2.describe_tags(Filters=filters)["Tags"][0]["ResourceId"] == key_id
    assert len(aws.ec2.describe_key_pairs(Filters=[{"Name": "tag:a", "Values": ["b"]}])["KeyPairs"]) == 1
