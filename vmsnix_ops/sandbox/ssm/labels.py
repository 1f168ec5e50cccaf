"""Labels of versions.

Sources: LabelParameterVersion, UnlabelParameterVersion in the AWS Systems Manager API Reference.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..core import AwsError, operation
from .common import parameter_of

if TYPE_CHECKING:
    from ..core import Context, Params
    from .state import Parameter, Version

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
