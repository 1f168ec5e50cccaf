"""The table ``parameters`` of each region, and what several operations of Parameter Store share."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


@dataclass(slots=True)
class Version:
    """One version of a parameter."""

    number: int
    value: str
    kind: str  # String, StringList or SecureString
    data_type: str  # text or aws:ec2:image
    modified: datetime
    principal: str
    description: str
    allowed_pattern: str
    tier: str
    labels: list[str] = field(default_factory=list)
    key: str = ""  # ARN of the KMS key of a SecureString
    alias: str = ""  # and how the caller named it


@dataclass(slots=True)
class Parameter:
    """A parameter with its versions, the newest last."""

    name: str
    arn: str
    versions: list[Version]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def newest(self) -> Version:
        """The version that counts."""
        return self.versions[-1]


@dataclass(slots=True)
class Unchecked:
    """A value of the type aws:ec2:image that Parameter Store accepted and has not checked yet.

    In table ``unchecked_parameters`` of each region by the id of the request, in their order.
    """

    name: str
    arn: str
    version: Version
    tags: dict[str, str]


# Names, selectors and answers of parameters.
#
# Source: "Working with Parameter Store" in the AWS Systems Manager User Guide; GetParameter in the API
# Reference.


NAME = re.compile(r"[a-zA-Z0-9_.\-/]+")
CHECK_SECONDS = 1.0
"""How long the check of an aws:ec2:image value takes; AWS says only that it comes after the answer."""

VERSIONS_KEPT = 100


def parameters(context: Context) -> dict[str, Parameter]:
    """Return the parameters of the region by name, with the values that were checked by now."""
    known: dict[str, Parameter] = context.table("parameters")
    waiting: dict[str, Unchecked] = context.table("unchecked_parameters")
    for request, value in list(waiting.items()):
        if context.clock.age(value.version.modified) < CHECK_SECONDS:
            continue
        del waiting[request]
        if not _image_exists(context, value.version.value):
            continue  # AWS keeps nothing and tells EventBridge
        if value.name in known:
            keep(known[value.name], value.version)
        else:
            known[value.name] = Parameter(value.name, value.arn, [value.version], value.tags)
    return known


def _image_exists(context: Context, image_id: str) -> bool:
    everywhere = context.tables.everywhere("images")
    return any(region == context.region and image_id in images for (_, region), images in everywhere.items())


def keep(parameter: Parameter, version: Version) -> None:
    """Add a version; beyond a hundred the oldest goes."""
    if len(parameter.versions) >= VERSIONS_KEPT:
        del parameter.versions[0]
    parameter.versions.append(version)


def not_found() -> AwsError:
    """Return the refusal of a name that is not there; AWS says no more than the code."""
    return AwsError("ParameterNotFound", "")


def plain_name(text: str) -> str:
    """Return the name in an ARN, or the text itself."""
    match = re.fullmatch(r"arn:[^:]+:ssm:[^:]*:\d*:parameter(/.+)", text)
    if match is None:
        return text
    return match[1] if match[1].count("/") > 1 else match[1][1:]


def parameter_of(context: Context, text: str) -> Parameter:
    """Return a parameter by name or ARN, or raise ``ParameterNotFound``."""
    found = parameters(context).get(plain_name(text))
    if found is None:
        raise not_found()
    return found


def select(context: Context, text: str) -> tuple[Parameter, Version, str]:
    """Return what a name, ``name:version`` or ``name:label`` stands for, and the selector.

    Raises
    ------
    AwsError
        ``ParameterNotFound``, ``ParameterVersionNotFound``.
    """
    name, selector = plain_name(text), ""
    if ":" in name:
        name, _, selector = name.rpartition(":")
    parameter = parameter_of(context, name)
    if not selector:
        return parameter, parameter.newest, ""
    for version in parameter.versions:
        if selector in {str(version.number), *version.labels}:
            return parameter, version, f":{selector}"
    what = f"version {selector}" if selector.isdecimal() else f"label {selector}"
    raise AwsError(
        "ParameterVersionNotFound",
        f"Systems Manager could not find {what} of {name}. Verify the version and try again.",
    )


def show(parameter: Parameter, version: Version, selector: str, params: Params) -> dict[str, Any]:
    """Return a parameter as GetParameter shows it; a secret as ciphertext unless it is to be decrypted."""
    shown = {
        "Name": parameter.name,
        "Type": version.kind,
        "Value": shown_value(version, params),
        "Version": version.number,
        "LastModifiedDate": version.modified,
        "ARN": parameter.arn,
        "DataType": version.data_type,
    }
    return shown | ({"Selector": selector} if selector else {})


def describe(parameter: Parameter, version: Version) -> dict[str, Any]:
    """Return a parameter as DescribeParameters and GetParameterHistory show it, without its value."""
    shown: dict[str, Any] = {
        "Name": parameter.name,
        "Type": version.kind,
        "LastModifiedDate": version.modified,
        "LastModifiedUser": version.principal,
        "Version": version.number,
        "Tier": version.tier,
        "Policies": [],
        "DataType": version.data_type,
    }
    if version.description:
        shown["Description"] = version.description
    if version.key:
        shown["KeyId"] = version.alias
    if version.allowed_pattern:
        shown["AllowedPattern"] = version.allowed_pattern
    return shown


def page(items: list[Any], params: Params, member: str, most: int) -> dict[str, Any]:
    """Return one page of a list with its ``NextToken``.

    Raises
    ------
    AwsError
        ``InvalidNextToken``; ``ValidationException`` for ``MaxResults`` beyond `most`.
    """
    limit = params.get("MaxResults", most)
    if not 1 <= limit <= most:
        bound = "less than or equal to" if limit > most else "greater than or equal to"
        raise AwsError(
            "ValidationException",
            f"1 validation error detected: Value '{limit}' at 'maxResults' failed to satisfy constraint: "
            f"Member must have value {bound} {most if limit > most else 1}",
        )
    start = _read_token(params["NextToken"]) if "NextToken" in params else 0
    answer: dict[str, Any] = {member: items[start : start + limit]}
    if start + limit < len(items):
        answer["NextToken"] = base64.b64encode(f"after {start + limit}".encode()).decode()
    return answer


def _read_token(token: str) -> int:
    try:
        return int(base64.b64decode(token, validate=True).decode().removeprefix("after "))
    except (binascii.Error, ValueError):
        raise AwsError("InvalidNextToken", "The specified token is not valid.") from None


def check_name(name: str) -> None:
    """Refuse names that Parameter Store refuses.

    Raises
    ------
    AwsError
        ``ValidationException``, ``HierarchyLevelLimitExceededException``, ``AccessDeniedException``.
    """
    if (
        not NAME.fullmatch(name)
        or name.endswith("/")
        or "//" in name
        or ("/" in name and not name.startswith("/"))
    ):
        raise AwsError(
            "ValidationException",
            "Parameter name must be a fully qualified name: only a mix of letters, numbers and the following "
            "3 symbols .-_ , beginning with / when it has several levels.",
        )
    first = name.strip("/").split("/")[0].lower()
    if first.startswith(("aws", "ssm")):
        code = "AccessDeniedException" if name.startswith("/aws") else "ValidationException"
        raise AwsError(code, f'Parameter name: can\'t be prefixed with "{first[:3]}" (case-insensitive).')
    if name.count("/") > 15:
        raise AwsError(
            "HierarchyLevelLimitExceededException", "A parameter hierarchy can have a maximum of 15 levels."
        )


# SecureString parameters: their KMS keys, and how they look without decryption.
#
# There is no KMS in the sandbox. ``alias/aws/ssm`` is the key that AWS manages; a customer key is one of the
# caller's account and region, by id or ARN. Sources: "AWS KMS encryption for AWS Systems Manager Parameter
# Store SecureString parameters" and "Restricting decryption of SecureString parameter values" in the Systems
# Manager User Guide.

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
