"""AWS Key Management Service: symmetric keys, aliases, grants, encryption of short texts.

Other services only name keys: nothing that they store is encrypted. They accept every well-formed key ID of
the caller's account and region, also one that KMS did not create, so that tests can use the IDs of real keys.
A key of another region or account, an unknown alias, and a key that is disabled or will be deleted are not
accessible. Grants are stored and not evaluated. Every key has the default policy, which leaves the decision
to the policies of the account.

Sources: the reference pages of the operations in the AWS KMS API Reference; "Key states of AWS KMS keys",
"Default key policy" and "Aliases in AWS KMS" in the Developer Guide. Error texts are from public transcripts,
or marked as from memory.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, Paging, given, not_emulated, operation, register_tags

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params

KEY_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32}")
ALIAS_NAME = re.compile(r"alias/[a-zA-Z0-9/_-]{1,250}")
MANAGED_ALIASES = ("alias/aws/ebs", "alias/aws/ssm")
KEY_BYTES = {"AES_128": 16, "AES_256": 32}
KEY_DEFAULTS = {
    "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
    "KeySpec": "SYMMETRIC_DEFAULT",
    "KeyUsage": "ENCRYPT_DECRYPT",
    "MultiRegion": False,
    "Origin": "AWS_KMS",
}
"""The parameters of CreateKey of which only one value is emulated; every key has it."""


@dataclass(slots=True)
class Key:
    """A symmetric key. `secret` is its key material; `deletion` is when it will be deleted."""

    key_id: str
    arn: str
    created: datetime
    secret: bytes
    description: str = ""
    enabled: bool = True
    deletion: datetime | None = None
    manager: str = "CUSTOMER"
    tags: dict[str, str] = field(default_factory=dict)
    grants: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """``Enabled``, ``Disabled`` or ``PendingDeletion``."""
        if self.deletion is not None:
            return "PendingDeletion"
        return "Enabled" if self.enabled else "Disabled"


# Keys as other services name them


def managed_key(context: Context, alias: str) -> str:
    """Return the ARN of the AWS managed key with this alias, in the account and region of the call."""
    key_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{context.account} {context.region} {alias}")
    return context.arn("kms", f"key/{key_id}")


def find_key(context: Context, key: str, alias: str) -> str | None:
    """Return the ARN of a key by the ID or ARN of it or of an alias; None when it is not accessible.

    `alias` is that of the service's managed key, such as ``alias/aws/ebs``.
    """
    prefix = context.arn("kms", "")
    name = key.removeprefix(prefix)
    if name == alias:
        return managed_key(context, alias)
    key_id = name.removeprefix("key/") if name != key else name
    if not name.startswith("alias/aws/"):  # a managed key is for its own service
        key_id = context.table("kms_aliases").get(name, key_id)
    known: Key | None = context.table("kms_keys").get(key_id)
    if known is not None and known.state != "Enabled":
        return None
    return f"{prefix}key/{key_id}" if KEY_ID.fullmatch(key_id) else None


# Keys


def _not_found(text: str) -> ApiError:
    return ApiError("NotFoundException", text)


def _add_managed_keys(context: Context) -> None:
    """Create the AWS managed keys of the region, unless it has them."""
    for alias in MANAGED_ALIASES:
        arn = managed_key(context, alias)
        key_id = arn.rpartition("/")[2]
        if key_id not in context.table("kms_keys"):
            service = alias.rpartition("/")[2].upper()
            text = f"Default key that protects my {service} data when no other key is defined"
            secret = hashlib.sha256(arn.encode()).digest()
            key = Key(key_id, arn, context.clock.now(), secret, text, manager="AWS")
            context.table("kms_keys")[key_id] = key
            context.table("kms_aliases")[alias] = key_id


def find_stored_key(context: Context, name: str) -> Key:
    """Return a key of KMS by the ID or ARN of a key or an alias, or raise ``NotFoundException``."""
    _add_managed_keys(context)
    prefix = context.arn("kms", "")
    short = name.removeprefix(prefix)
    if short.startswith("alias/"):
        key_id = context.table("kms_aliases").get(short, "")
        if not key_id and short.startswith("alias/aws/"):
            # KMS creates the managed key of a service when its alias is read ("KeyId" of DescribeKey).
            raise not_emulated(f"the key {short}")
        text = f"Alias {prefix}{short} is not found."
    else:
        key_id = short.removeprefix("key/")
        text = f"Key '{prefix}key/{key_id}' does not exist"
        if not KEY_ID.fullmatch(key_id):
            text = f"Invalid keyId '{name}'"
    found: Key | None = context.table("kms_keys").get(key_id)
    if found is None or (found.deletion is not None and context.clock.is_past(found.deletion)):
        raise _not_found(text)
    return found


def _find_kept(context: Context, name: str) -> Key:
    """Return a key that is not pending deletion."""
    key = find_stored_key(context, name)
    if key.deletion is not None:
        raise ApiError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
    return key


def _find_enabled(context: Context, name: str) -> Key:
    """Return a key that can be used, or raise the error of its state."""
    key = _find_kept(context, name)
    if not key.enabled:
        raise ApiError("DisabledException", f"{key.arn} is disabled.")
    return key


def _key_view(context: Context, key: Key) -> dict[str, Any]:
    return {
        "AWSAccountId": context.account,
        "KeyId": key.key_id,
        "Arn": key.arn,
        "CreationDate": key.created,
        "Enabled": key.state == "Enabled",
        "Description": key.description,
        "KeyState": key.state,
        "KeyManager": key.manager,
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        **KEY_DEFAULTS,
        **given(DeletionDate=key.deletion),
    }


PAGES = Paging(
    "Limit",
    1000,
    100,
    lambda: ApiError("InvalidMarkerException", "Could not deserialize marker"),  # text from memory
    token="Marker",  # noqa: S106 - the name of a parameter
    next_token="NextMarker",  # noqa: S106 - the name of a member
    truncated="Truncated",
)


@operation("kms", "CreateKey", "BypassPolicyLockoutSafetyCheck Description Tags", " ".join(KEY_DEFAULTS))
def create_key(context: Context, params: Params) -> dict[str, Any]:
    """Create a symmetric key with the default policy, with which the account can always manage it."""
    for name, value in KEY_DEFAULTS.items():
        if params.get(name, value) != value:
            raise not_emulated(f"the value {params[name]!r} of {name} of kms:CreateKey")
    key_id = str(uuid.uuid4())
    tags = {tag["TagKey"]: tag["TagValue"] for tag in params.get("Tags") or ()}
    key = Key(
        key_id,
        context.arn("kms", f"key/{key_id}"),
        context.clock.now(),
        secrets.token_bytes(32),
        params.get("Description", ""),
        tags=tags,
    )
    context.table("kms_keys")[key_id] = key
    return {"KeyMetadata": _key_view(context, key)}


@operation("kms", "DescribeKey", "GrantTokens KeyId")
def describe_key(context: Context, params: Params) -> dict[str, Any]:
    """Return a key by the ID or ARN of a key or an alias."""
    return {"KeyMetadata": _key_view(context, find_stored_key(context, params["KeyId"]))}


@operation("kms", "ListKeys", "Limit Marker")
def list_keys(context: Context, params: Params) -> dict[str, Any]:
    """Return the IDs and ARNs of all keys, including those of AWS."""
    _add_managed_keys(context)
    keys = [{"KeyId": key.key_id, "KeyArn": key.arn} for key in context.table("kms_keys").values()]
    return PAGES.page(sorted(keys, key=lambda key: key["KeyId"]), params, "Keys")


@operation("kms", "EnableKey", "KeyId")
def enable_key(context: Context, params: Params) -> dict[str, Any]:
    """Enable a key."""
    _find_own_key(context, params["KeyId"]).enabled = True
    return {}


@operation("kms", "DisableKey", "KeyId")
def disable_key(context: Context, params: Params) -> dict[str, Any]:
    """Disable a key: it cannot be used."""
    _find_own_key(context, params["KeyId"]).enabled = False
    return {}


def _find_own_key(context: Context, name: str) -> Key:
    """Return a customer key that is not pending deletion."""
    key = _find_kept(context, name)
    if key.manager == "AWS":
        raise ApiError("AccessDeniedException", f"{key.arn} is managed by AWS.")  # text from memory
    return key


@operation("kms", "ScheduleKeyDeletion", "KeyId PendingWindowInDays")
def schedule_key_deletion(context: Context, params: Params) -> dict[str, Any]:
    """Delete a key after 7 to 30 days."""
    key, days = _find_own_key(context, params["KeyId"]), params.get("PendingWindowInDays", 30)
    if not 7 <= days <= 30:
        # Text from memory.
        raise ApiError("ValidationException", "PendingWindowInDays must be between 7 and 30")
    end = key.deletion = context.clock.now() + timedelta(days=days)
    return {"KeyId": key.arn, "DeletionDate": end, "KeyState": key.state, "PendingWindowInDays": days}


def _find_tagged(context: Context, params: Params) -> Key:
    return _find_own_key(context, params["KeyId"])


register_tags("kms", _find_tagged, "KeyId", ("TagResource", "UntagResource", ""), prefix="Tag")


@operation("kms", "ListResourceTags", "KeyId Limit Marker")
def list_resource_tags(context: Context, params: Params) -> dict[str, Any]:
    """Return the tags of a key."""
    tags = find_stored_key(context, params["KeyId"]).tags
    return PAGES.page([{"TagKey": key, "TagValue": value} for key, value in tags.items()], params, "Tags")


# Aliases


@operation("kms", "CreateAlias", "AliasName TargetKeyId")
def create_alias(context: Context, params: Params) -> dict[str, Any]:
    """Create an alias of a key."""
    name = params["AliasName"]
    if name.startswith("alias/aws/"):
        raise ApiError("NotAuthorizedException", "")
    if not ALIAS_NAME.fullmatch(name):
        text = 'Alias must start with the prefix "alias/". Please see the API documentation.'  # memory
        raise ApiError("ValidationException", text)
    key, aliases = _find_own_key(context, params["TargetKeyId"]), context.table("kms_aliases")
    if name in aliases:
        text = f"An alias with the name {context.arn('kms', name)} already exists"
        raise ApiError("AlreadyExistsException", text)
    aliases[name] = key.key_id
    return {}


@operation("kms", "DeleteAlias", "AliasName")
def delete_alias(context: Context, params: Params) -> dict[str, Any]:
    """Delete an alias. Its key does not change."""
    name, aliases = params["AliasName"], context.table("kms_aliases")
    if name.startswith("alias/aws/"):
        raise ApiError("NotAuthorizedException", "")
    if name not in aliases:
        raise _not_found(f"Alias {context.arn('kms', name)} is not found.")
    del aliases[name]
    return {}


@operation("kms", "ListAliases", "KeyId Limit Marker")
def list_aliases(context: Context, params: Params) -> dict[str, Any]:
    """Return all aliases, or those of a key."""
    _add_managed_keys(context)
    wanted = find_stored_key(context, params["KeyId"]).key_id if params.get("KeyId") else ""
    aliases = [
        {"AliasName": name, "AliasArn": context.arn("kms", name), "TargetKeyId": key_id}
        for name, key_id in sorted(context.table("kms_aliases").items())
        if wanted in ("", key_id)
    ]
    return PAGES.page(aliases, params, "Aliases")


# Grants


@operation("kms", "CreateGrant", "Constraints GranteePrincipal KeyId Name Operations RetiringPrincipal")
def create_grant(context: Context, params: Params) -> dict[str, Any]:
    """Add a grant to a key. It is not evaluated."""
    key, number = _find_enabled(context, params["KeyId"]), secrets.token_hex(32)
    members = ("Constraints", "GranteePrincipal", "Name", "Operations", "RetiringPrincipal")
    key.grants[number] = {
        "GrantId": number,
        "KeyId": key.arn,
        "CreationDate": context.clock.now(),
        "IssuingAccount": context.arn("iam", "root", region=""),
        **{name: params[name] for name in members if name in params},
    }
    return {"GrantId": number, "GrantToken": secrets.token_urlsafe(96)}


@operation("kms", "ListGrants", "GrantId GranteePrincipal KeyId Limit Marker")
def list_grants(context: Context, params: Params) -> dict[str, Any]:
    """Return the grants of a key."""
    grants = find_stored_key(context, params["KeyId"]).grants.values()
    wanted = {name: params[name] for name in ("GrantId", "GranteePrincipal") if params.get(name)}
    return PAGES.page([g for g in grants if wanted.items() <= g.items()], params, "Grants")


@operation("kms", "RevokeGrant", "GrantId KeyId")
def revoke_grant(context: Context, params: Params) -> dict[str, Any]:
    """Delete a grant."""
    grants = find_stored_key(context, params["KeyId"]).grants
    if params["GrantId"] not in grants:
        raise _not_found(f"Grant ID {params['GrantId']} not found")
    del grants[params["GrantId"]]
    return {}


# Encryption
#
# A ciphertext has the ID of its key, a random number, a message authentication code and the text, combined
# with a key stream. It protects nothing: it only makes a wrong key or a changed text fail.


CIPHERTEXT_START = b"\x01\x02"


def _seal(key: Key, encryption_context: dict[str, str], text: bytes) -> bytes:
    nonce = secrets.token_bytes(16)
    hidden = _combine(key, nonce, text)
    code = _authenticate(key, encryption_context, nonce + hidden)
    return CIPHERTEXT_START + key.key_id.encode().ljust(36) + nonce + code + hidden


def _combine(key: Key, nonce: bytes, text: bytes) -> bytes:
    """Return a text combined with the key stream; twice is the text itself."""
    stream = hashlib.shake_256(key.secret + nonce).digest(len(text))
    return bytes(a ^ b for a, b in zip(text, stream, strict=True))


def _authenticate(key: Key, encryption_context: dict[str, str], content: bytes) -> bytes:
    bound = json.dumps(encryption_context, sort_keys=True).encode()
    return hmac.digest(key.secret, bound + content, "sha256")


def key_of_ciphertext(context: Context, sealed: bytes) -> Key | None:
    """Return the key that encrypted a text; None for another text."""
    key: Key | None = context.table("kms_keys").get(sealed[2:38].decode("latin-1").strip())
    return key if sealed.startswith(CIPHERTEXT_START) else None


def _open(context: Context, sealed: bytes, encryption_context: dict[str, str]) -> tuple[Key, bytes]:
    """Return the key and the text of a ciphertext, or raise ``InvalidCiphertextException``."""
    invalid = ApiError("InvalidCiphertextException", "")
    key = key_of_ciphertext(context, sealed)
    if key is None:
        raise invalid
    _find_enabled(context, key.arn)
    nonce, code, hidden = sealed[38:54], sealed[54:86], sealed[86:]
    if not hmac.compare_digest(code, _authenticate(key, encryption_context, nonce + hidden)):
        raise invalid
    return key, _combine(key, nonce, hidden)


@operation("kms", "Encrypt", "EncryptionAlgorithm EncryptionContext GrantTokens KeyId Plaintext")
def encrypt(context: Context, params: Params) -> dict[str, Any]:
    """Encrypt up to 4096 bytes."""
    key, text = _find_enabled(context, params["KeyId"]), params["Plaintext"]
    _check_algorithm(params)
    sealed = _seal(key, params.get("EncryptionContext") or {}, text)
    return {"CiphertextBlob": sealed, "KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}


@operation("kms", "Decrypt", "CiphertextBlob EncryptionAlgorithm EncryptionContext GrantTokens KeyId")
def decrypt(context: Context, params: Params) -> dict[str, Any]:
    """Decrypt a ciphertext with the key that encrypted it."""
    _check_algorithm(params)
    key, text = _open(context, params["CiphertextBlob"], params.get("EncryptionContext") or {})
    if params.get("KeyId") and find_stored_key(context, params["KeyId"]) is not key:
        problem = "The key ID in the request does not identify a CMK that can perform this operation."
        raise ApiError("IncorrectKeyException", problem)
    return {"Plaintext": text, "KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}


def _check_algorithm(params: Params) -> None:
    algorithm = params.get("EncryptionAlgorithm", "SYMMETRIC_DEFAULT")
    if algorithm != "SYMMETRIC_DEFAULT":
        raise not_emulated(f"the encryption algorithm {algorithm!r} of kms")


DATA_KEY = "EncryptionContext GrantTokens KeyId KeySpec NumberOfBytes"


@operation("kms", "GenerateDataKey", DATA_KEY)
def generate_data_key(context: Context, params: Params) -> dict[str, Any]:
    """Return a new data key, in plain and encrypted."""
    key = _find_enabled(context, params["KeyId"])
    if ("KeySpec" in params) == ("NumberOfBytes" in params):
        raise ApiError("ValidationException", "Please specify either number of bytes or key spec.")
    plain = secrets.token_bytes(params.get("NumberOfBytes") or KEY_BYTES[params["KeySpec"]])
    sealed = _seal(key, params.get("EncryptionContext") or {}, plain)
    return {"CiphertextBlob": sealed, "Plaintext": plain, "KeyId": key.arn}


@operation("kms", "GenerateDataKeyWithoutPlaintext", DATA_KEY)
def generate_data_key_without_plaintext(context: Context, params: Params) -> dict[str, Any]:
    """Return a new data key, encrypted only."""
    answer = generate_data_key(context, params)
    del answer["Plaintext"]
    return answer
