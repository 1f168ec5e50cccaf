"""Parameters: put, get, delete, describe, history, labels, tags.

Sources: PutParameter, GetParameter, GetParameters, DeleteParameter, DeleteParameters in the AWS Systems
Manager API Reference; "Using native parameter support in Parameter Store for Amazon Machine Image IDs" in its
User Guide.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, operation
from vmsnix_ops.sandbox.ssm import common
from vmsnix_ops.sandbox.ssm.common import (
    VERSIONS_KEPT,
    Parameter,
    Unchecked,
    Version,
    check_name,
    describe,
    keep,
    page,
    parameter_of,
    parameters,
    plain_name,
    select,
    show,
)

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context, Params


IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")
DATA_TYPES = {"text", "aws:ec2:image"}
SIZES = {"Standard": 4096, "Advanced": 8192, "Intelligent-Tiering": 8192}


@operation(
    "ssm",
    "PutParameter",
    honours=[
        "Name",
        "Description",
        "Value",
        "Type",
        "Overwrite",
        "AllowedPattern",
        "Tags",
        "Tier",
        "DataType",
        "KeyId",
    ],
)
def put_parameter(context: Context, params: Params) -> dict[str, Any]:
    """Make a parameter, or a new version of it."""
    name = plain_name(params["Name"])
    check_name(name)
    known = parameters(context)
    existing = known.get(name)
    overwrite = params.get("Overwrite", False)
    if existing is not None and not overwrite:
        raise AwsError(
            "ParameterAlreadyExists",
            "The parameter already exists. To overwrite this value, set the overwrite option in the "
            "request to true.",
        )
    if overwrite and params.get("Tags"):
        raise AwsError(
            "ValidationException",
            "Invalid request: tags and overwrite can't be used together. To create a parameter with tags, "
            "please "
            "remove overwrite flag. To update tags for an existing parameter, please use AddTagsToResource "
            "or "
            "RemoveTagsFromResource.",
        )
    version = _new_version(context, params, existing)
    if existing is not None:
        _check_room(existing)
    arn = f"arn:{context.partition}:ssm:{context.region}:{context.account}:parameter/{name.lstrip('/')}"
    tags = {tag["Key"]: tag["Value"] for tag in params.get("Tags", [])}
    if version.data_type == "aws:ec2:image":
        # AWS accepts the request, then checks the AMI, and keeps nothing when there is none.
        waiting = context.table("unchecked_parameters")
        ahead = [value for value in waiting.values() if value.name == name]
        version.number += len(ahead)
        waiting[context.request_id] = Unchecked(name, arn, version, tags)
    elif existing is None:
        known[name] = Parameter(name, arn, [version], tags)
    else:
        keep(existing, version)
    return {"Version": version.number, "Tier": version.tier}


def _new_version(context: Context, params: Params, existing: Parameter | None) -> Version:
    kind = params.get("Type") or (existing.newest.kind if existing is not None else None)
    if kind is None:
        raise AwsError("ValidationException", "A parameter type is required when you create a parameter.")
    if params.get("KeyId") and kind != "SecureString":
        raise AwsError("ValidationException", f"KeyId is not supported for the parameter type {kind}.")
    key = common.key_of(context, params.get("KeyId")) if kind == "SecureString" else ""
    if existing is not None and kind != existing.newest.kind:
        raise AwsError("HierarchyTypeMismatchException", "Parameter type can't be changed.")
    data_type = params.get("DataType") or (existing.newest.data_type if existing is not None else "text")
    if existing is not None and data_type != existing.newest.data_type:
        # Seen in public reports: AWS changes the data type of no existing parameter. The text is from memory.
        raise AwsError("ValidationException", "The data type of an existing parameter can't be changed.")
    tier = params.get("Tier", "Standard")
    if existing is not None and existing.newest.tier == "Advanced":
        # Without a tier a request is of the default tier, which is the standard one ("Tier" of PutParameter).
        if tier == "Standard":
            raise AwsError(
                "ValidationException",
                "This parameter uses the advanced-parameter tier. You can't downgrade a parameter from the "
                "advanced-parameter tier to the standard-parameter tier. If necessary, you can delete the "
                "advanced parameter and recreate it as a standard parameter.",
            )
        tier = "Advanced"
    _check_value(params, tier, kind, data_type)
    return Version(
        number=1 if existing is None else existing.newest.number + 1,
        value=params["Value"],
        kind=kind,
        data_type=data_type,
        modified=context.clock.now(),
        principal=context.principal,
        description=params.get("Description", existing.newest.description if existing is not None else ""),
        allowed_pattern=params.get("AllowedPattern", ""),
        tier="Standard" if tier == "Intelligent-Tiering" else tier,
        key=key,
        alias=params.get("KeyId", common.DEFAULT_ALIAS) if key else "",
    )


def _check_value(params: Params, tier: str, kind: str, data_type: str) -> None:
    value = params["Value"]
    if not value:
        raise AwsError(
            "ValidationException",
            "1 validation error detected: Value '' at 'value' failed to satisfy constraint: Member must "
            "have length "
            "greater than or equal to 1.",
        )
    if tier not in SIZES or len(value.encode()) > SIZES[tier]:
        raise AwsError(
            "ValidationException",
            f"{tier} tier parameters support a maximum parameter value of {SIZES.get(tier, 4096)} "
            "characters.",
        )
    if data_type not in DATA_TYPES:
        raise AwsError(
            "ValidationException",
            f"The following data type is not supported: {data_type} (Data type names are all lowercase.)",
        )
    if data_type == "aws:ec2:image" and (kind != "String" or not IMAGE_ID.fullmatch(value)):
        raise AwsError(  # the text is from memory
            "ValidationException",
            f"Invalid parameter value: {value}. The data type aws:ec2:image takes the id of an AMI, such as "
            "ami-12345abcdeEXAMPLE.",
        )
    pattern = params.get("AllowedPattern")
    if pattern and not re.search(pattern, value):
        raise AwsError(
            "ParameterPatternMismatchException",
            "Parameter value, cannot be validated against allowedPattern: " + pattern,
        )


def _check_room(parameter: Parameter) -> None:
    """Refuse a version beyond the hundredth while the oldest has a label."""
    if len(parameter.versions) >= VERSIONS_KEPT and parameter.versions[0].labels:
        raise AwsError(
            "ParameterMaxVersionLimitExceeded",
            f"You attempted to create a new version of {parameter.name} by calling the PutParameter API "
            "with the "
            f"overwrite flag. Version {parameter.versions[0].number}, the oldest version, can't be "
            "deleted because "
            "it has a label associated with it. Move the label to another version of the parameter, "
            "and try again.",
        )


@operation("ssm", "GetParameter", honours=["Name", "WithDecryption"])
def get_parameter(context: Context, params: Params) -> dict[str, Any]:
    """Return a parameter; a version or label may follow the name."""
    return {"Parameter": show(*select(context, params["Name"]), params)}


@operation("ssm", "GetParameters", honours=["Names", "WithDecryption"])
def get_parameters(context: Context, params: Params) -> dict[str, Any]:
    """Return up to ten parameters, and the names that are none."""
    if not 1 <= len(params["Names"]) <= 10:
        raise AwsError(
            "ValidationException",
            f"1 validation error detected: Value '{params['Names']}' at 'names' failed to satisfy "
            "constraint: "
            "Member must have length less than or equal to 10",
        )
    found, invalid = [], []
    for name in params["Names"]:
        try:
            found.append(show(*select(context, name), params))
        except AwsError:
            invalid.append(name)
    return {"Parameters": found, "InvalidParameters": invalid}


@operation("ssm", "DeleteParameter", honours=["Name"])
def delete_parameter(context: Context, params: Params) -> dict[str, Any]:
    """Delete a parameter with all its versions."""
    parameter = parameter_of(context, params["Name"])
    del parameters(context)[parameter.name]
    return {}


@operation("ssm", "DeleteParameters", honours=["Names"])
def delete_parameters(context: Context, params: Params) -> dict[str, Any]:
    """Delete several parameters, and say which names are none."""
    known = parameters(context)
    deleted = [name for name in params["Names"] if known.pop(plain_name(name), None) is not None]
    return {
        "DeletedParameters": deleted,
        "InvalidParameters": [n for n in params["Names"] if n not in deleted],
    }


# Looking at many parameters: by path, history, descriptions.
#
# Sources: GetParametersByPath, GetParameterHistory, DescribeParameters in the AWS Systems Manager API
# Reference.


@operation(
    "ssm", "GetParametersByPath", honours=["Path", "Recursive", "WithDecryption", "MaxResults", "NextToken"]
)
def get_parameters_by_path(context: Context, params: Params) -> dict[str, Any]:
    """Return the parameters below a path; directly below it unless recursive."""
    path = params["Path"]
    if not path.startswith("/"):
        raise AwsError(
            "ValidationException",
            "The parameter doesn't meet the parameter name requirements. The parameter name must begin "
            "with a forward "
            'slash "/".',
        )
    prefix = path if path.endswith("/") else f"{path}/"
    found = [
        show(parameter, parameter.newest, "", params)
        for name, parameter in sorted(parameters(context).items())
        if name.startswith(prefix) and (params.get("Recursive") or "/" not in name[len(prefix) :])
    ]
    return page(found, params, "Parameters", 10)


@operation("ssm", "GetParameterHistory", honours=["Name", "WithDecryption", "MaxResults", "NextToken"])
def get_parameter_history(context: Context, params: Params) -> dict[str, Any]:
    """Return all versions of a parameter, the oldest first."""
    parameter = parameter_of(context, params["Name"])
    shown = [
        describe(parameter, version)
        | {"Value": common.shown_value(version, params), "Labels": version.labels}
        for version in parameter.versions
    ]
    return page(shown, params, "Parameters", 50)


@operation("ssm", "DescribeParameters", honours=["ParameterFilters", "MaxResults", "NextToken"])
def describe_parameters(context: Context, params: Params) -> dict[str, Any]:
    """Describe parameters, without their values."""
    found = [parameter for _, parameter in sorted(parameters(context).items())]
    for condition in params.get("ParameterFilters", []):
        found = [parameter for parameter in found if _matches(parameter, condition)]
    shown = [describe(parameter, parameter.newest) | {"ARN": parameter.arn} for parameter in found]
    return page(shown, params, "Parameters", 50)


def _matches(parameter: Parameter, condition: dict[str, Any]) -> bool:
    """Return whether a parameter meets one of the filters that are emulated."""
    key, option, values = condition["Key"], condition.get("Option"), condition.get("Values", [])
    if key == "Name" and option in {None, "Equals"}:
        return parameter.name in values
    if key == "Name" and option == "BeginsWith":
        return parameter.name.startswith(tuple(values))
    if key == "Name" and option == "Contains":
        return any(value in parameter.name for value in values)
    if key == "Path" and option in {"Recursive", "OneLevel", None}:
        return any(_below(parameter.name, value, recursive=option == "Recursive") for value in values)
    if key == "Type" and option in {None, "Equals"}:
        return parameter.newest.kind in values
    if key == "DataType" and option in {None, "Equals"}:
        return parameter.newest.data_type in values
    if key.startswith("tag:") and option in {None, "Equals"}:
        value = parameter.tags.get(key.removeprefix("tag:"))
        return value is not None and (not values or value in values)
    raise AwsError(
        "NotImplemented", f"The sandbox does not emulate the filter {key} {option or ''}.", status=501
    )


def _below(name: str, path: str, *, recursive: bool) -> bool:
    prefix = f"{path.rstrip('/')}/"
    return name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])


# Labels of versions.
#
# Sources: LabelParameterVersion, UnlabelParameterVersion in the AWS Systems Manager API Reference.

LABEL = re.compile(r"(?!\d)(?!(?i:aws|ssm))[a-zA-Z0-9_.\-]{1,100}")
LABELS_MOST = 10


def _version(parameter: Parameter, number: int | None) -> Version:
    if number is None:
        return parameter.newest
    for version in parameter.versions:
        if version.number == number:
            return version
    raise AwsError(
        "ParameterVersionNotFound",
        f"Systems Manager could not find version {number} of {parameter.name}. Verify the version and try "
        "again.",
    )


@operation("ssm", "LabelParameterVersion", honours=["Name", "ParameterVersion", "Labels"])
def label_parameter_version(context: Context, params: Params) -> dict[str, Any]:
    """Give a version labels; a label that another version has moves here."""
    parameter = parameter_of(context, params["Name"])
    version = _version(parameter, params.get("ParameterVersion"))
    valid = [label for label in params["Labels"] if LABEL.fullmatch(label)]
    if len({*version.labels, *valid}) > LABELS_MOST:
        raise AwsError(
            "ParameterVersionLabelLimitExceeded", "A parameter version can have a maximum of ten labels."
        )
    for other in parameter.versions:
        other.labels = [label for label in other.labels if label not in valid]
    version.labels += valid
    invalid = [label for label in params["Labels"] if label not in valid]
    return {"InvalidLabels": invalid, "ParameterVersion": version.number}


@operation("ssm", "UnlabelParameterVersion", honours=["Name", "ParameterVersion", "Labels"])
def unlabel_parameter_version(context: Context, params: Params) -> dict[str, Any]:
    """Take labels from a version."""
    version = _version(parameter_of(context, params["Name"]), params["ParameterVersion"])
    removed = [label for label in params["Labels"] if label in version.labels]
    version.labels = [label for label in version.labels if label not in removed]
    return {"RemovedLabels": removed, "InvalidLabels": [n for n in params["Labels"] if n not in removed]}


# Tags of parameters.
#
# Sources: AddTagsToResource, RemoveTagsFromResource, ListTagsForResource in the AWS Systems Manager API
# Reference.

RESOURCE = ("ResourceType", "ResourceId")


def _tagged(context: Context, params: Params) -> Parameter:
    if params["ResourceType"] != "Parameter":
        raise AwsError("NotImplemented", "The sandbox tags parameters only.", status=501)
    found = parameters(context).get(params["ResourceId"])
    if found is None:
        raise AwsError("InvalidResourceId", "The resource ID isn't valid.")
    return found


@operation("ssm", "AddTagsToResource", honours=[*RESOURCE, "Tags"])
def add_tags_to_resource(context: Context, params: Params) -> dict[str, Any]:
    """Add or replace tags."""
    parameter = _tagged(context, params)
    tags = parameter.tags | {tag["Key"]: tag["Value"] for tag in params["Tags"]}
    if len(tags) > 50:
        raise AwsError("TooManyTagsError", "The Targets parameter includes too many tags.")
    parameter.tags = tags
    return {}


@operation("ssm", "RemoveTagsFromResource", honours=[*RESOURCE, "TagKeys"])
def remove_tags_from_resource(context: Context, params: Params) -> dict[str, Any]:
    """Remove tags; keys that are not there do not matter."""
    parameter = _tagged(context, params)
    for key in params["TagKeys"]:
        parameter.tags.pop(key, None)
    return {}


@operation("ssm", "ListTagsForResource", honours=RESOURCE)
def list_tags_for_resource(context: Context, params: Params) -> dict[str, Any]:
    """List the tags of a parameter."""
    return {"TagList": [{"Key": key, "Value": value} for key, value in _tagged(context, params).tags.items()]}
