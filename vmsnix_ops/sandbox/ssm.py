"""AWS Systems Manager: Parameter Store.

Sources: the reference pages of the operations in the AWS Systems Manager API Reference; "Working with
Parameter Store", "Using native parameter support in Parameter Store for Amazon Machine Image IDs", "AWS KMS
encryption for AWS Systems Manager Parameter Store SecureString parameters" and "Restricting decryption of
SecureString parameter values" in the User Guide. For KMS keys see `kms`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import (
    NOT_EMULATED,
    ApiError,
    Paging,
    given,
    not_emulated,
    operation,
    register_tags,
)
from vmsnix_ops.sandbox.iam import policies_of_principal
from vmsnix_ops.sandbox.kms import find_key
from vmsnix_ops.sandbox.policies import ALLOWED, AccessRequest, evaluate
from vmsnix_ops.sandbox.public_amis import PARAMETER_PATH, PUBLIC_IMAGES, PUBLISHED

if TYPE_CHECKING:
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params


@dataclass(slots=True)
class EmulatedVersion:
    """One version of a parameter."""

    number: int
    value: str
    parameter_type: str  # String, StringList or SecureString
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
class EmulatedParameter:
    """A parameter with its versions, the newest last."""

    name: str
    arn: str
    versions: list[EmulatedVersion]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def newest(self) -> EmulatedVersion:
        """The newest version, which is the current one."""
        return self.versions[-1]


@dataclass(slots=True)
class UncheckedParameter:
    """A value of the type aws:ec2:image that Parameter Store accepted but has not checked yet.

    In the table ``unchecked_parameters`` of each region by request ID, in the order of the requests.
    """

    name: str
    arn: str
    version: EmulatedVersion
    tags: dict[str, str]


OWN_PATH = "/aws/"
"""Only names of AWS's own parameters begin with it."""

NAME = re.compile(r"[a-zA-Z0-9_.-]+|(/[a-zA-Z0-9_.-]+)+")
IMAGE_CHECK_SECONDS = 1.0
"""How long the check of an aws:ec2:image value takes. AWS only documents that it is asynchronous."""

MAX_VERSIONS = 100


def parameters(context: Context) -> dict[str, EmulatedParameter]:
    """Return the parameters of the region by name, including values whose check is complete."""
    known: dict[str, EmulatedParameter] = context.table("parameters")
    waiting: dict[str, UncheckedParameter] = context.table("unchecked_parameters")
    for request, value in list(waiting.items()):
        if context.clock.age(value.version.modified) < IMAGE_CHECK_SECONDS:
            continue
        del waiting[request]
        if not _image_exists(context, value.version.value):
            continue  # AWS drops the value and sends an event to EventBridge
        if value.name in known:
            _add_version(known[value.name], value.version)
        else:
            known[value.name] = EmulatedParameter(value.name, value.arn, [value.version], value.tags)
    return known


@lru_cache
def public_parameters(region: str, partition: str) -> dict[str, EmulatedParameter]:
    """Return the parameters of AWS in a region by name. Their ARNs have no account."""
    found = {}
    for image in PUBLIC_IMAGES:
        for word in image.parameters:
            name = PARAMETER_PATH + word
            version = EmulatedVersion(
                number=1,
                value=image.image_id(region),
                parameter_type="String",
                data_type="text",
                modified=PUBLISHED,
                principal="",
                description="",
                allowed_pattern="",
                tier="Standard",
            )
            arn = f"arn:{partition}:ssm:{region}::parameter{name}"
            found[name] = EmulatedParameter(name, arn, [version])
    return found


def readable_parameters(context: Context) -> dict[str, EmulatedParameter]:
    """Return the parameters of the region and those of AWS by name."""
    return parameters(context) | public_parameters(context.region, context.partition)


def _image_exists(context: Context, image_id: str) -> bool:
    public = any(image.image_id(context.region) == image_id for image in PUBLIC_IMAGES)
    return public or context.tables.find("images", context.region, image_id) is not None


def _add_version(parameter: EmulatedParameter, version: EmulatedVersion) -> None:
    """Add a version, and delete the oldest beyond a hundred."""
    if len(parameter.versions) >= MAX_VERSIONS:
        del parameter.versions[0]
    parameter.versions.append(version)


def _validation_error(text: str) -> ApiError:
    return ApiError("ValidationException", text)


def _parameter_not_found() -> ApiError:
    """Return the error for an unknown name. AWS sends no text."""
    return ApiError("ParameterNotFound", "")


def parameter_name(text: str) -> str:
    """Return the name of a parameter from its name or ARN."""
    match = re.fullmatch(r"arn:[^:]+:ssm:[^:]*:\d*:parameter(/.+)", text)
    if match is None:
        return text
    return match[1] if match[1].count("/") > 1 else match[1][1:]


def _find_parameter(context: Context, text: str) -> EmulatedParameter:
    """Return a parameter by name or ARN, or raise ``ParameterNotFound``."""
    found = parameters(context).get(parameter_name(text))
    if found is None:
        raise _parameter_not_found()
    return found


def refuse_unknown_aws_name(name: str) -> None:
    """Refuse a name of AWS's own parameters, of which the sandbox has few, as not emulated."""
    if name.startswith(OWN_PATH):
        raise not_emulated(f"the parameter {name!r}")


def _find_version(context: Context, text: str) -> tuple[EmulatedParameter, EmulatedVersion, str]:
    """Return parameter, version and selector of ``name``, ``name:version`` or ``name:label``."""
    name, selector = parameter_name(text), ""
    if ":" in name:
        name, _, selector = name.rpartition(":")
    parameter = readable_parameters(context).get(parameter_name(name))
    if parameter is None:
        refuse_unknown_aws_name(name)
        raise _parameter_not_found()
    if not selector:
        return parameter, parameter.newest, ""
    kind = "version" if selector.isdecimal() else "label"
    return parameter, _select_version(parameter, selector, kind), f":{selector}"


def _select_version(parameter: EmulatedParameter, selector: str, kind: str = "version") -> EmulatedVersion:
    """Return a version by its number, or by one of its labels."""
    for version in parameter.versions:
        if selector in {str(version.number), *version.labels}:
            return version
    text = f"could not find {kind} {selector} of {parameter.name}. Verify the version and try again."
    raise ApiError("ParameterVersionNotFound", f"Systems Manager {text}")


def _parameter_view(
    parameter: EmulatedParameter, version: EmulatedVersion, selector: str, params: Params
) -> dict[str, Any]:
    """Return a parameter as GetParameter shows it."""
    return {
        "Name": parameter.name,
        "Type": version.parameter_type,
        "Value": _shown_value(version, params),
        "Version": version.number,
        "LastModifiedDate": version.modified,
        "ARN": parameter.arn,
        "DataType": version.data_type,
        **given(Selector=selector),
    }


def _parameter_metadata(parameter: EmulatedParameter, version: EmulatedVersion) -> dict[str, Any]:
    """Return a parameter without its value, as DescribeParameters and GetParameterHistory show it."""
    return {
        "Name": parameter.name,
        "Type": version.parameter_type,
        "LastModifiedDate": version.modified,
        "LastModifiedUser": version.principal,
        "Version": version.number,
        "Tier": version.tier,
        "Policies": [],
        "DataType": version.data_type,
        **given(Description=version.description, KeyId=version.alias, AllowedPattern=version.allowed_pattern),
    }


def _pages(most: int) -> Paging:
    """Return the pages of a list, with at most this many items each."""
    invalid = ApiError("InvalidNextToken", "The specified token is not valid.")
    return Paging("MaxResults", most, most, lambda: invalid)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise _validation_error(
            "Parameter name must be a fully qualified name: only a mix of letters, numbers and the following "
            "3 symbols .-_ , beginning with / when it has several levels."
        )
    first = name.strip("/").split("/")[0].lower()
    if first.startswith(("aws", "ssm")):
        code = "AccessDeniedException" if name.startswith("/aws") else "ValidationException"
        raise ApiError(code, f'Parameter name: can\'t be prefixed with "{first[:3]}" (case-insensitive).')
    if name.count("/") > 15:
        text = "A parameter hierarchy can have a maximum of 15 levels."
        raise ApiError("HierarchyLevelLimitExceededException", text)


SSM_KEY_ALIAS = "alias/aws/ssm"


def kms_key_arn(context: Context, key_id: str | None) -> str:
    """Return the ARN of the key in a request; without one, of the managed key.

    ``InvalidKeyId`` if the key is not of this account and region.
    """
    arn = find_key(context, key_id or SSM_KEY_ALIAS, SSM_KEY_ALIAS)
    if arn is None:
        raise ApiError("InvalidKeyId", f"Key '{key_id}' is not found")  # text from memory
    return arn


def _shown_value(version: EmulatedVersion, params: Params) -> str:
    """Return the value of a version; for a SecureString the ciphertext, unless ``WithDecryption`` is set."""
    if not version.key or params.get("WithDecryption"):
        return version.value
    digest = hashlib.sha512(f"{version.key} {version.number} {version.value}".encode()).digest()
    return base64.b64encode(b"\x01\x01" + digest).decode()


IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")
DATA_TYPES = {"text", "aws:ec2:image"}
MAX_VALUE_BYTES = {"Standard": 4096, "Advanced": 8192, "Intelligent-Tiering": 8192}


@operation(
    "ssm", "PutParameter", "Name Description Value Type Overwrite AllowedPattern Tags Tier DataType KeyId"
)
def put_parameter(context: Context, params: Params) -> dict[str, Any]:
    """Create a parameter, or a new version of it."""
    name = parameter_name(params["Name"])
    _check_name(name)
    known = parameters(context)
    existing = known.get(name)
    overwrite = params.get("Overwrite", False)
    if existing is not None and not overwrite:
        raise ApiError(
            "ParameterAlreadyExists",
            "The parameter already exists. To overwrite this value, set the overwrite option in the "
            "request to true.",
        )
    if overwrite and params.get("Tags"):
        raise _validation_error(
            "Invalid request: tags and overwrite can't be used together. To create a parameter with tags, "
            "please remove overwrite flag. To update tags for an existing parameter, please use "
            "AddTagsToResource or RemoveTagsFromResource."
        )
    version = _new_version(context, params, existing)
    if existing is not None:
        _check_oldest_version(existing)
    arn = context.arn("ssm", f"parameter/{name.lstrip('/')}")
    tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags", [])}
    if version.data_type == "aws:ec2:image":
        # AWS accepts the request, checks the AMI later, and drops the value when the AMI does not exist.
        if not _may_describe_images(context):
            return {"Version": version.number, "Tier": version.tier}
        waiting = context.table("unchecked_parameters")
        ahead = [value for value in waiting.values() if value.name == name]
        version.number += len(ahead)
        waiting[context.request_id] = UncheckedParameter(name, arn, version, tags)
    elif existing is None:
        known[name] = EmulatedParameter(name, arn, [version], tags)
    else:
        _add_version(existing, version)
    return {"Version": version.number, "Tier": version.tier}


def _may_describe_images(context: Context) -> bool:
    """Return whether the caller may describe images. Otherwise AWS drops a value of the type aws:ec2:image.

    Source: "Using native parameter support in Parameter Store for Amazon Machine Image IDs".
    """
    documents = policies_of_principal(context, context.principal)
    if not documents:  # an administrator; or a caller without any policy, which may do everything
        return True
    keys = {"aws:principalaccount": [context.account], "aws:requestedregion": [context.region]}
    return evaluate(documents, AccessRequest("ec2:DescribeImages", "*", keys)) == ALLOWED


def _new_version(context: Context, params: Params, existing: EmulatedParameter | None) -> EmulatedVersion:
    kind = params.get("Type") or (existing.newest.parameter_type if existing is not None else None)
    if kind is None:
        raise _validation_error("A parameter type is required when you create a parameter.")
    if params.get("KeyId") and kind != "SecureString":
        raise _validation_error(f"KeyId is not supported for the parameter type {kind}.")
    key = kms_key_arn(context, params.get("KeyId")) if kind == "SecureString" else ""
    if existing is not None and kind != existing.newest.parameter_type:
        raise ApiError("HierarchyTypeMismatchException", "Parameter type can't be changed.")
    data_type = params.get("DataType") or (existing.newest.data_type if existing is not None else "text")
    if existing is not None and data_type != existing.newest.data_type:
        # Public reports: the data type of an existing parameter cannot change. The text is from memory.
        raise _validation_error("The data type of an existing parameter can't be changed.")
    tier = params.get("Tier", "Standard")
    if existing is not None and existing.newest.tier == "Advanced":
        # The default of Tier is the standard tier ("Tier" of PutParameter).
        if tier == "Standard":
            raise _validation_error(
                "This parameter uses the advanced-parameter tier. You can't downgrade a parameter from the "
                "advanced-parameter tier to the standard-parameter tier. If necessary, you can delete the "
                "advanced parameter and recreate it as a standard parameter."
            )
        tier = "Advanced"
    _check_value(params, tier, kind, data_type)
    if tier == "Intelligent-Tiering":  # "Tier" of PutParameter
        size = len(params["Value"].encode())
        tier = "Standard" if size <= MAX_VALUE_BYTES["Standard"] else "Advanced"
    return EmulatedVersion(
        number=1 if existing is None else existing.newest.number + 1,
        value=params["Value"],
        parameter_type=kind,
        data_type=data_type,
        modified=context.clock.now(),
        principal=context.principal,
        description=params.get("Description", existing.newest.description if existing is not None else ""),
        allowed_pattern=params.get("AllowedPattern", ""),
        tier=tier,
        key=key,
        alias=params.get("KeyId", SSM_KEY_ALIAS) if key else "",
    )


def _check_value(params: Params, tier: str, kind: str, data_type: str) -> None:
    value = params["Value"]
    if not value:
        raise _validation_error(
            "1 validation error detected: Value '' at 'value' failed to satisfy constraint: Member must have "
            "length greater than or equal to 1."
        )
    if len(value.encode()) > MAX_VALUE_BYTES[tier]:
        raise _validation_error(
            f"{tier} tier parameters support a maximum parameter value of {MAX_VALUE_BYTES[tier]} characters."
        )
    if data_type not in DATA_TYPES:
        raise _validation_error(
            f"The following data type is not supported: {data_type} (Data type names are all lowercase.)"
        )
    if data_type == "aws:ec2:image" and (kind != "String" or not IMAGE_ID.fullmatch(value)):
        # The text is from memory.
        raise _validation_error(
            f"Invalid parameter value: {value}. The data type aws:ec2:image takes the id of an AMI, such as "
            "ami-12345abcdeEXAMPLE."
        )
    pattern = params.get("AllowedPattern")
    if pattern and not re.search(pattern, value):
        text = f"Parameter value, cannot be validated against allowedPattern: {pattern}"
        raise ApiError("ParameterPatternMismatchException", text)


def _check_oldest_version(parameter: EmulatedParameter) -> None:
    """Check that the oldest version has no label when the new one would replace it."""
    if len(parameter.versions) >= MAX_VERSIONS and parameter.versions[0].labels:
        raise ApiError(
            "ParameterMaxVersionLimitExceeded",
            f"You attempted to create a new version of {parameter.name} by calling the PutParameter API with "
            f"the overwrite flag. Version {parameter.versions[0].number}, the oldest version, can't be "
            "deleted because it has a label associated with it. Move the label to another version of the "
            "parameter, and try again.",
        )


@operation("ssm", "GetParameter", "Name WithDecryption")
def get_parameter(context: Context, params: Params) -> dict[str, Any]:
    """Return a parameter by its name, with an optional version or label."""
    return {"Parameter": _parameter_view(*_find_version(context, params["Name"]), params)}


@operation("ssm", "GetParameters", "Names WithDecryption")
def get_parameters(context: Context, params: Params) -> dict[str, Any]:
    """Return up to ten parameters, and the unknown names."""
    found, invalid = [], []
    for name in params["Names"]:
        try:
            found.append(_parameter_view(*_find_version(context, name), params))
        except ApiError as error:
            if error.code == NOT_EMULATED:
                raise
            invalid.append(name)
    return {"Parameters": found, "InvalidParameters": invalid}


@operation("ssm", "DeleteParameter", "Name")
def delete_parameter(context: Context, params: Params) -> dict[str, Any]:
    """Delete a parameter with all its versions."""
    parameter = _find_parameter(context, params["Name"])
    del parameters(context)[parameter.name]
    return {}


@operation("ssm", "DeleteParameters", "Names")
def delete_parameters(context: Context, params: Params) -> dict[str, Any]:
    """Delete parameters, and return the unknown names."""
    known = parameters(context)
    deleted = [name for name in params["Names"] if known.pop(parameter_name(name), None) is not None]
    invalid = [name for name in params["Names"] if name not in deleted]
    return {"DeletedParameters": deleted, "InvalidParameters": invalid}


# Lists and history


@operation("ssm", "GetParametersByPath", "Path Recursive WithDecryption MaxResults NextToken")
def get_parameters_by_path(context: Context, params: Params) -> dict[str, Any]:
    """Return the parameters directly below a path; with ``Recursive``, at any depth.

    AWS's own parameters are listed only below their own paths. Assumption: not below ``/``.
    """
    path = params["Path"]
    if not path.startswith("/"):
        raise _validation_error(
            "The parameter doesn't meet the parameter name requirements. The parameter name must begin "
            'with a forward slash "/".'
        )
    recursive = params.get("Recursive", False)
    public = f"{path}/".startswith(PARAMETER_PATH)
    if not public:
        refuse_unknown_aws_name(f"{path}/")
    known = public_parameters(context.region, context.partition) if public else parameters(context)
    found = [
        _parameter_view(parameter, parameter.newest, "", params)
        for name, parameter in sorted(known.items())
        if _is_below(name, path, recursive=recursive)
    ]
    return _pages(10).page(found, params, "Parameters")


@operation("ssm", "GetParameterHistory", "Name WithDecryption MaxResults NextToken")
def get_parameter_history(context: Context, params: Params) -> dict[str, Any]:
    """Return all versions of a parameter, oldest first."""
    parameter = _find_parameter(context, params["Name"])
    shown = [
        _parameter_metadata(parameter, version)
        | {"Value": _shown_value(version, params), "Labels": version.labels}
        for version in parameter.versions
    ]
    return _pages(50).page(shown, params, "Parameters")


@operation("ssm", "DescribeParameters", "ParameterFilters MaxResults NextToken")
def describe_parameters(context: Context, params: Params) -> dict[str, Any]:
    """Describe parameters, without their values."""
    found = [parameter for _, parameter in sorted(parameters(context).items())]
    for condition in params.get("ParameterFilters", []):
        found = [parameter for parameter in found if _matches_filter(parameter, condition)]
    shown = [_parameter_metadata(parameter, parameter.newest) | {"ARN": parameter.arn} for parameter in found]
    return _pages(50).page(shown, params, "Parameters")


def _matches_filter(parameter: EmulatedParameter, condition: dict[str, Any]) -> bool:
    key, option, values = condition["Key"], condition.get("Option"), condition.get("Values", [])
    if key == "Name" and option in {None, "Equals"}:
        return parameter.name in values
    if key == "Name" and option == "BeginsWith":
        return parameter.name.startswith(tuple(values))
    if key == "Name" and option == "Contains":
        return any(value in parameter.name for value in values)
    if key == "Path" and option in {"Recursive", "OneLevel", None}:
        return any(_is_below(parameter.name, value, recursive=option == "Recursive") for value in values)
    if key == "Type" and option in {None, "Equals"}:
        return parameter.newest.parameter_type in values
    if key == "DataType" and option in {None, "Equals"}:
        return parameter.newest.data_type in values
    if key.startswith("tag:") and option in {None, "Equals"}:
        value = parameter.tags.get(key.removeprefix("tag:"))
        return value is not None and (not values or value in values)
    raise not_emulated(f"the filter {key} {option or 'Equals'}")


def _is_below(name: str, path: str, *, recursive: bool) -> bool:
    prefix = f"{path.rstrip('/')}/"
    return name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])


# Labels

LABEL = re.compile(r"(?!\d)(?!(?i:aws|ssm))[a-zA-Z0-9_.\-]{1,100}")
MAX_LABELS = 10


@operation("ssm", "LabelParameterVersion", "Name ParameterVersion Labels")
def label_parameter_version(context: Context, params: Params) -> dict[str, Any]:
    """Add labels to a version. A label of another version moves to this one."""
    parameter = _find_parameter(context, params["Name"])
    version = _select_version(parameter, str(params.get("ParameterVersion", parameter.newest.number)))
    valid = [label for label in params["Labels"] if LABEL.fullmatch(label)]
    if len({*version.labels, *valid}) > MAX_LABELS:
        text = "A parameter version can have a maximum of ten labels."
        raise ApiError("ParameterVersionLabelLimitExceeded", text)
    for other in parameter.versions:
        other.labels = [label for label in other.labels if label not in valid]
    version.labels += valid
    invalid = [label for label in params["Labels"] if label not in valid]
    return {"InvalidLabels": invalid, "ParameterVersion": version.number}


@operation("ssm", "UnlabelParameterVersion", "Name ParameterVersion Labels")
def unlabel_parameter_version(context: Context, params: Params) -> dict[str, Any]:
    """Remove labels from a version."""
    version = _select_version(_find_parameter(context, params["Name"]), str(params["ParameterVersion"]))
    removed = [label for label in params["Labels"] if label in version.labels]
    version.labels = [label for label in version.labels if label not in removed]
    return {"RemovedLabels": removed, "InvalidLabels": [n for n in params["Labels"] if n not in removed]}


# Tags


def _tagged_parameter(context: Context, params: Params) -> EmulatedParameter:
    if params["ResourceType"] != "Parameter":
        raise not_emulated("tags of resources other than parameters")
    found = parameters(context).get(params["ResourceId"])
    if found is None:
        raise ApiError("InvalidResourceId", "The resource ID isn't valid.")
    return found


def _check_parameter_tags(tags: dict[str, str], _given: list[dict[str, str]]) -> None:
    if len(tags) > 50:
        raise ApiError("TooManyTagsError", "The Targets parameter includes too many tags.")


register_tags(
    *("ssm", _tagged_parameter, "ResourceType ResourceId"),
    ("AddTagsToResource", "RemoveTagsFromResource", "ListTagsForResource"),
    check=_check_parameter_tags,
    member="TagList",
)
