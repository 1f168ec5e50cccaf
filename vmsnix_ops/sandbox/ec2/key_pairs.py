"""Key pairs: create, import, describe, delete. An instance only shows the name of its key pair.

Only this module of the sandbox needs the Python package ``cryptography``.

Sources: the reference pages of the operations; "Amazon EC2 key pairs and Amazon EC2 instances" and "Verify
the fingerprint of your key pair" in the EC2 User Guide; "Error codes for the Amazon EC2 API".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, not_emulated, operation, tag_list, tags_member
from vmsnix_ops.sandbox.ec2.common import (
    KEY_PAIR,
    check_one_of,
    find_own,
    missing_parameter,
    new_id,
    tags_at_creation,
)
from vmsnix_ops.sandbox.ec2.filters import by_name, describe

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


KEY_NAME = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
"""Up to 255 printable ASCII characters, without spaces at the start and the end (documented)."""

RSA_BITS = 2048  # of created keys
IMPORTED_RSA_BITS = (1024, 2048, 4096)


@dataclass(slots=True)
class KeyPair:
    """A key pair; in the table ``key_pairs`` by ID. `public_key` is a line of the OpenSSH format."""

    key_pair_id: str
    name: str
    key_type: str  # rsa or ed25519
    fingerprint: str
    public_key: str
    created: datetime
    tags: dict[str, str] = field(default_factory=dict)


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:  # pragma: no cover
        raise not_emulated("key pairs without the Python package cryptography") from None
    return serialization


def _hexadecimal(digest: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in digest)


def _openssh_fingerprint(public_key: str) -> str:
    """Return the SHA-256 digest of an ED25519 key in Base64."""
    return base64.b64encode(hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()).decode()


def find_key_pair(context: Context, name: str) -> KeyPair:
    """Return a key pair of the caller by name, or raise ``InvalidKeyPair.NotFound``."""
    for pair in context.table("key_pairs").values():
        if pair.name == name:
            return pair  # type: ignore[no-any-return]
    raise ApiError("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")


def _add_key_pair(context: Context, params: Params, pair: KeyPair) -> dict[str, Any]:
    """Add a key pair, and return it as the answers to CreateKeyPair and ImportKeyPair show it."""
    if any(known.name == pair.name for known in context.table("key_pairs").values()):
        raise ApiError("InvalidKeyPair.Duplicate", f"The keypair '{pair.name}' already exists.")
    pair.tags = tags_at_creation(params, "key-pair")["key-pair"]
    context.table("key_pairs")[pair.key_pair_id] = pair
    shown = {"KeyName": pair.name, "KeyFingerprint": pair.fingerprint, "KeyPairId": pair.key_pair_id}
    return shown | tags_member(pair.tags)


def _check_key_name(name: str) -> str:
    if not KEY_NAME.fullmatch(name):
        # Text from memory.
        text = (
            f"Value ({name}) for parameter KeyName is invalid. Character sets beyond ASCII are not supported."
        )
        raise ApiError("InvalidParameterValue", text)
    return name


@operation("ec2", "CreateKeyPair", "KeyName KeyType KeyFormat TagSpecifications", locks=False)
def create_key_pair(context: Context, params: Params) -> dict[str, Any]:
    """Create a key pair, and return its private key, which EC2 does not keep."""
    name, kind = _check_key_name(params["KeyName"]), params.get("KeyType", "rsa")
    check_one_of("keyType", kind, ("rsa", "ed25519"))
    check_one_of("keyFormat", params.get("KeyFormat", "pem"), ("pem",), known=("ppk",))
    pem, public_key, fingerprint = _make_key(kind)
    with context.lock:
        pair = KeyPair(new_id("key"), name, kind, fingerprint, f"{public_key} {name}", context.clock.now())
        return _add_key_pair(context, params, pair) | {"KeyMaterial": pem}


def _make_key(kind: str) -> tuple[str, str, str]:
    """Return a new private key in PEM, its public key in OpenSSH format, and its fingerprint.

    The fingerprint of an RSA key is the SHA-1 digest of the private key in DER (PKCS #8).
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    none, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    openssh = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    if kind == "rsa":
        key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, none)
        text = key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, none).decode()
        public_key = key.public_key().public_bytes(*openssh).decode()
        return text, public_key, _hexadecimal(hashlib.sha1(der, usedforsecurity=False).digest())
    ed25519_key = ed25519.Ed25519PrivateKey.generate()
    text = ed25519_key.private_bytes(pem, serialization.PrivateFormat.OpenSSH, none).decode()
    public_key = ed25519_key.public_key().public_bytes(*openssh).decode()
    return text, public_key, _openssh_fingerprint(public_key)


@operation("ec2", "ImportKeyPair", "KeyName PublicKeyMaterial TagSpecifications")
def import_key_pair(context: Context, params: Params) -> dict[str, Any]:
    """Import a public key in OpenSSH format. The two other formats of AWS are not emulated."""
    name = _check_key_name(params["KeyName"])
    kind, public_key, fingerprint = _read_key(params["PublicKeyMaterial"])
    pair = KeyPair(new_id("key"), name, kind, fingerprint, public_key, context.clock.now())
    return _add_key_pair(context, params, pair)


def _read_key(content: bytes) -> tuple[str, str, str]:
    """Return the type, the text and the fingerprint of a public key.

    The fingerprint of an RSA key is the MD5 digest of the public key in DER.
    """
    serialization = _serialization()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    text = content.decode("utf-8", "replace").strip()
    if text.startswith("---- BEGIN SSH2") or _is_der(text):
        raise not_emulated("public keys that are not in the format of OpenSSH of ec2:ImportKeyPair")
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519", text, _openssh_fingerprint(text)
    if not isinstance(key, rsa.RSAPublicKey):
        raise ApiError("InvalidKey.Format", "Key is not in valid OpenSSH public key format")
    if key.key_size not in IMPORTED_RSA_BITS:
        # The lengths are documented; the text is from memory.
        raise ApiError("InvalidKey.Format", "The length of the key is not 1024, 2048 or 4096 bits")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return "rsa", text, _hexadecimal(hashlib.md5(der, usedforsecurity=False).digest())


def _is_der(text: str) -> bool:
    """Return whether a text is a DER key in Base64."""
    try:
        return base64.b64decode(text, validate=True).startswith(b"\x30\x82")
    except (ValueError, binascii.Error):
        return False


@operation("ec2", "DescribeKeyPairs", "Filters IncludePublicKey KeyNames KeyPairIds")
def describe_key_pairs(context: Context, params: Params) -> dict[str, Any]:
    """Return key pairs of this account, with their public keys on request."""
    found = [find_key_pair(context, name) for name in params.get("KeyNames") or ()]
    found += [find_own(context, KEY_PAIR, key_id) for key_id in params.get("KeyPairIds") or ()]
    pairs = {pair.key_pair_id: pair for pair in found} if found else context.table("key_pairs")

    def view(_context: Context, pair: KeyPair) -> dict[str, Any]:
        shown = {
            "KeyPairId": pair.key_pair_id,
            "KeyName": pair.name,
            "KeyType": pair.key_type,
            "KeyFingerprint": pair.fingerprint,
            "CreateTime": pair.created,
            "Tags": tag_list(pair.tags),
        }
        return shown | ({"PublicKey": pair.public_key} if params.get("IncludePublicKey") else {})

    filters = by_name("key-name key-pair-id") | {"fingerprint": "KeyFingerprint"}
    return describe(context, params, pairs.values(), view, filters=filters, key="name")


@operation("ec2", "DeleteKeyPair", "KeyName KeyPairId")
def delete_key_pair(context: Context, params: Params) -> dict[str, Any]:
    """Delete a key pair. An unknown name is not an error."""
    name, key_id = params.get("KeyName"), params.get("KeyPairId")
    if not name and not key_id:
        raise missing_parameter("KeyName")
    for pair in list(context.table("key_pairs").values()):
        if name in {None, pair.name} and key_id in {None, pair.key_pair_id}:
            del context.table("key_pairs")[pair.key_pair_id]
            return {"Return": True, "KeyPairId": pair.key_pair_id}
    return {"Return": True}
