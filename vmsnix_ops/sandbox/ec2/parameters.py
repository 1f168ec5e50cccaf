"""Images by way of Systems Manager parameters: ``resolve:ssm:/name``, perhaps with a version or label.

Source: "Use a Systems Manager parameter instead of an AMI ID".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.core import AwsError
from vmsnix_ops.sandbox.ssm.common import parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ssm.state import Parameter

PREFIX = "resolve:ssm:"
IMAGE_TYPE = "aws:ec2:image"


def image_or_none(context: Context, reference: str) -> str | None:
    """Return the image id that a reference stands for, or None when it stands for none."""
    if not reference.startswith(PREFIX):
        return reference
    name, _, selector = reference.removeprefix(PREFIX).partition(":")
    parameter = parameters(context).get(name)
    if parameter is None or parameter.newest.kind == "SecureString":  # documented: not supported
        return None
    return _value(parameter, selector)


def image_of(context: Context, reference: str) -> str:
    """Return the image id that a reference stands for.

    Raises
    ------
    AwsError
        It names a parameter, or a version of one, that does not exist.
    """
    found = image_or_none(context, reference)
    if found is None:
        # Text from memory.
        text = f"The systems manager parameter '{reference}' could not be resolved to an image."
        raise AwsError("InvalidAMIID.Malformed", text)
    return found


def images(context: Context) -> Iterator[tuple[str, str]]:
    """Yield image id and name of every parameter whose data type is that of images."""
    for name, parameter in parameters(context).items():
        if parameter.newest.data_type == IMAGE_TYPE:
            yield parameter.newest.value, name if name.startswith("/") else f"/{name}"


def _value(parameter: Parameter, selector: str) -> str | None:
    """Return the value of the latest version, or of the version or label that is asked for."""
    for version in reversed(parameter.versions):
        if not selector or selector == str(version.number) or selector in version.labels:
            return version.value
    return None
