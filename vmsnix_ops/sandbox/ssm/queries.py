"""Looking at many parameters: by path, history, descriptions.

Sources: GetParametersByPath, GetParameterHistory, DescribeParameters in the AWS Systems Manager API
Reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from . import secrets
from .common import describe, page, parameter_of, parameters, show

if TYPE_CHECKING:
    from ..core import Context, Params
    from .state import Parameter


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
        | {"Value": secrets.shown_value(version, params), "Labels": version.labels}
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
