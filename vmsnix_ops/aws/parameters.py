"""Pointers: parameters of Parameter Store that say which AMI a channel stands for.

A pointer is called ``/vmsnix/<image>/<channel>`` and has the data type ``aws:ec2:image``, so that launch
templates and CloudFormation resolve it and Parameter Store itself refuses what is no AMI. It keeps its last
hundred values, with when and by whom: that history, and no table of ours, tells what a channel was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.permissions import needs
from vmsnix_ops.aws.session import Client, calling, code_of, retrying
from vmsnix_ops.aws.waiting import Pace, Sighting, wait

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

IMAGE_TYPE = "aws:ec2:image"
VISIBLE_SECONDS = 60.0
LOST_SECONDS = 5.0  # how long to look for a change whose answer was lost


@dataclass(frozen=True, slots=True)
class Pointer:
    """A parameter that names an AMI.

    Attributes
    ----------
    name, region
        Which parameter it is.
    value
        Its text as it stands; an AMI id for a pointer of ours.
    version
        Number of this value.
    modified_at
        When the value was set, in UTC.
    data_type
        ``"aws:ec2:image"``, or ``"text"`` for one that nobody checks.
    """

    name: str
    region: str
    value: str
    version: int
    modified_at: datetime
    data_type: str


@dataclass(frozen=True, slots=True)
class PointerVersion:
    """One value that a pointer has or had.

    Attributes
    ----------
    version
        Its number.
    value
        The AMI id.
    modified_at, modified_by
        When it was set, in UTC, and the ARN of who set it.
    description
        What was written beside it.
    """

    version: int
    value: str
    modified_at: datetime
    modified_by: str
    description: str = ""


def pointer_name(prefix: str, image: str, channel: str) -> str:
    """Return the name of a pointer.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        The image's name cannot stand in it.

    Examples
    --------
    >>> pointer_name("/vmsnix", "ecs-node", "stable")
    '/vmsnix/ecs-node/stable'
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", image):
        raise errors.ParameterError(
            f"The image {image!r} cannot have pointers.",
            why="Parameter Store takes letters, digits, dots, dashes and underscores.",
            cure="Give the image another name in its flake.",
        )
    return f"{prefix}/{image}/{channel}"


@needs("ssm:GetParameter")
def find(ssm: Client, name: str) -> Pointer | None:
    """Return a pointer, or ``None`` when there is none of that name."""
    with calling(f"look at the parameter {name}"):
        try:
            answer = ssm.get_parameter(Name=name)
        except ssm.exceptions.ParameterNotFound:
            return None
    return _read(answer["Parameter"], ssm.meta.region_name)


@needs("ssm:GetParametersByPath")
def pointers(ssm: Client, prefix: str) -> list[Pointer]:
    """Return every parameter below a prefix such as ``/vmsnix``, by name."""
    with calling(f"list the parameters below {prefix}"):
        pages = ssm.get_paginator("get_parameters_by_path").paginate(Path=prefix, Recursive=True)
        found = [_read(one, ssm.meta.region_name) for page in pages for one in page["Parameters"]]
    return sorted(found, key=lambda pointer: pointer.name)


@needs("ssm:GetParameterHistory")
def history(ssm: Client, name: str) -> list[PointerVersion]:
    """Return the values of a pointer, the oldest first; an empty list when there is no such parameter.

    AWS keeps the last hundred.
    """
    with calling(f"read the history of the parameter {name}"):
        try:
            pages = list(ssm.get_paginator("get_parameter_history").paginate(Name=name))
        except ssm.exceptions.ParameterNotFound:
            return []
    found = [
        PointerVersion(
            version=int(one["Version"]),
            value=str(one["Value"]),
            modified_at=one["LastModifiedDate"],
            modified_by=str(one.get("LastModifiedUser", "")),
            description=str(one.get("Description", "")),
        )
        for page in pages
        for one in page["Parameters"]
    ]
    return sorted(found, key=lambda version: version.version)


@needs("ssm:GetParameter", "ssm:PutParameter", "ssm:AddTagsToResource")
def point(
    ssm: Client,
    name: str,
    ami_id: str,
    *,
    description: str,
    tags: Mapping[str, str],
    pace: Pace | None = None,
) -> tuple[Pointer, Literal["created", "reused"]]:
    """Let a pointer name an AMI, and wait until it does.

    Safe to run twice: a pointer that names the AMI already is left alone, so that its history has an entry
    for every change; and a second one of the same only where AWS's answer to the first was lost. After an
    error the pointer is looked at once more: what it names then is what counts.

    Parameters
    ----------
    ssm, name, ami_id
        Which pointer, and where to.
    description
        Kept beside the value, for who reads the history.
    tags
        Of the parameter, when it is made.
    pace
        How often to look.

    Raises
    ------
    vmsnix_ops.errors.PointerError
        Parameter Store accepted the value and did not take it: it checks later whether there is such an AMI.
    """
    before = find(ssm, name)
    if before is not None and before.value == ami_id and before.data_type == IMAGE_TYPE:
        return before, "reused"
    request = {
        "Name": name,
        "Value": ami_id,
        "Type": "String",
        "DataType": IMAGE_TYPE,
        "Description": description[:1024],
    }
    pace = pace or Pace(quickest=0.2, slowest=2.0)
    try:
        with calling(f"point {name} to {ami_id}"):
            version = int(_put(ssm, request, tags, overwrite=before is not None)["Version"])
    except errors.AwsError as error:
        if error.code:  # AWS itself refused
            raise
        seen = _after_a_lost_answer(ssm, name, ami_id, pace)
        if seen is None:
            raise
        return seen, "created"
    return _settled(ssm, name, ami_id, version, pace), "created"


def _put(
    ssm: Client, request: dict[str, Any], tags: Mapping[str, str], *, overwrite: bool
) -> Mapping[str, Any]:
    """Set the value. Tags can be given only when a parameter is made."""
    if not overwrite:
        request = {**request, "Tags": tagging.to_list(tags)}
    try:
        answer: Mapping[str, Any] = retrying(
            lambda: ssm.put_parameter(**request, Overwrite=overwrite), "TooManyUpdates", seconds=20
        )
    except ssm.exceptions.ClientError as error:
        if overwrite or code_of(error) != "ParameterAlreadyExists":
            raise
        answer = _put(ssm, {k: v for k, v in request.items() if k != "Tags"}, tags, overwrite=True)
    return answer


def _after_a_lost_answer(ssm: Client, name: str, ami_id: str, pace: Pace) -> Pointer | None:
    """Return the pointer when it names the AMI although no answer said so; wait a moment for that."""

    def look() -> Sighting[Pointer | None]:
        seen = find(ssm, name)
        there = seen is not None and seen.value == ami_id and seen.data_type == IMAGE_TYPE
        return Sighting("done" if there else "waiting", seen)

    try:
        return wait(look, what=f"the parameter {name}", deadline=LOST_SECONDS, pace=pace).value
    except errors.AwsError:
        return None


def _settled(ssm: Client, name: str, ami_id: str, version: int, pace: Pace) -> Pointer:
    def look() -> Sighting[Pointer | None]:
        seen = find(ssm, name)
        there = seen is not None and (seen.version > version or (seen.value == ami_id))
        return Sighting("done" if there else "waiting", seen, state="not there yet" if not there else "there")

    try:
        seen = wait(look, what=f"the parameter {name}", deadline=VISIBLE_SECONDS, pace=pace).value
    except errors.DeadlineError as error:
        raise errors.PointerError(
            f"Parameter Store did not point {name} to {ami_id}.",
            why="It accepts such a value at once, checks then whether the caller sees an AMI of that id, and "
            "drops the value when not.",
            cure=f"See whether {ami_id} is there (ec2:DescribeImages), and run the same command again.",
        ) from error
    if seen is None or seen.value != ami_id:
        raise errors.PointerError(
            f"Somebody else pointed {name} to {seen.value if seen else 'nothing'} at the same time.",
            cure="Agree on who does it, and run the command again.",
        )
    return seen


def _read(one: Mapping[str, Any], region: str) -> Pointer:
    return Pointer(
        name=str(one["Name"]),
        region=region,
        value=str(one.get("Value", "")),
        version=int(one.get("Version", 0)),
        modified_at=one["LastModifiedDate"],
        data_type=str(one.get("DataType", "text")),
    )
