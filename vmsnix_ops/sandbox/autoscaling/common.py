"""What Auto Scaling remembers, its names and its pages.

Sources: the reference pages of the operations and "Common Errors" in the Amazon EC2 Auto Scaling API
Reference; texts as public transcripts show them where not marked otherwise.
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from vmsnix_ops.sandbox.core import AwsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from vmsnix_ops.sandbox.core import Context, Params

Item = TypeVar("Item")
NAME = re.compile(r"[\u0020-\u0039\u003b-\uD7FF\uE000-\uFFFD\r\n\t]{1,255}")  # a colon is refused
USUAL_PAGE, LARGEST_PAGE = 50, 100


@dataclass(slots=True)
class Configuration:
    """A launch configuration; `asked` is the request that made it."""

    name: str
    arn: str
    created: datetime
    asked: dict[str, Any]


@dataclass(slots=True)
class Group:
    """An Auto Scaling group. Which instances it has, their tag ``aws:autoscaling:groupName`` says.

    `source` holds the one member that says what it launches, as DescribeAutoScalingGroups shows it, `origins`
    what each instance was launched from.
    """

    name: str
    arn: str
    created: datetime
    source: dict[str, Any]
    zones: list[str]
    least: int
    most: int
    desired: int
    tags: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)


def invalid(text: str) -> AwsError:
    """Return the refusal that Auto Scaling has for nearly everything."""
    return AwsError("ValidationError", text)


def check_name(name: str, what: str) -> str:
    """Return a name, or refuse it."""
    if not NAME.fullmatch(name):
        raise invalid(f"Invalid {what} name: {name!r}")  # text from memory
    return name


def arn(context: Context, kind: str, name: str) -> str:
    """Return a fresh ARN of a kind, such as ``autoScalingGroup``."""
    home = f"arn:{context.partition}:autoscaling:{context.region}:{context.account}"
    return f"{home}:{kind}:{uuid.uuid4()}:{kind}Name/{name}"


def page(
    items: Sequence[Item], params: Params, member: str, view: Callable[[Item], dict[str, Any]]
) -> dict[str, Any]:
    """Return one page of items that are in the order of their names.

    Raises
    ------
    AwsError
        ``ValidationError`` for ``MaxRecords`` out of its bounds, ``InvalidNextToken``.
    """
    size = params.get("MaxRecords", USUAL_PAGE)
    if not 1 <= size <= LARGEST_PAGE:
        text = f"The value '{size}' of the parameter maxRecords is not between 1 and {LARGEST_PAGE}."
        raise invalid(text)  # text from memory
    start = 0
    if params.get("NextToken"):
        try:
            start = int(base64.b64decode(params["NextToken"], validate=True).decode().removeprefix("after "))
        except (binascii.Error, ValueError):
            raise AwsError("InvalidNextToken", "The token is not valid.") from None
    answer: dict[str, Any] = {member: [view(item) for item in items[start : start + size]]}
    if start + size < len(items):
        answer["NextToken"] = base64.b64encode(f"after {start + size}".encode()).decode()
    return answer
