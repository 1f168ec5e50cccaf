"""Pointers: parameters of Parameter Store that say which AMI a channel stands for.

A pointer is called ``/vmsnix/<image>/<channel>`` and has the data type ``aws:ec2:image``, so that launch
templates and CloudFormation resolve it and Parameter Store itself refuses what is no AMI. It keeps its last
hundred values, with when and by whom: that history, and no table of ours, tells what a channel was.

Parameter Store has no conditional write. So every write says which version it was planned for, and the
version that AWS answers with is compared with it: a higher one means that the write has overwritten a value
which the plan never saw.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.polling import PollInterval, PollResult, poll
from vmsnix_ops.aws.session import calling, retrying

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from types_boto3_ssm.client import SSMClient
    from types_boto3_ssm.type_defs import ParameterTypeDef, PutParameterRequestTypeDef

    from vmsnix_ops.outcomes import StepOutcome

IMAGE_TYPE = "aws:ec2:image"
MOST_LEVELS = 15  # of a name; AWS
MOST_CHARACTERS = 1011  # of a parameter's ARN, and so of its name with what stands before it; AWS
BEFORE_THE_NAME = len("arn:aws-us-gov:ssm:ap-southeast-99:123456789012:parameter")
VERSIONS_KEPT = 100
VISIBLE_SECONDS = 60.0
INTERVAL = PollInterval(shortest=0.2, longest=2.0)
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
    kind
        ``"String"``, ``"StringList"`` or ``"SecureString"``.
    """

    name: str
    region: str
    value: str
    version: int
    modified_at: datetime
    data_type: str
    kind: str = "String"


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
    labels
        The labels of this version; AWS does not drop a version that has one.
    tier
        ``"Standard"`` or ``"Advanced"``.
    """

    version: int
    value: str
    modified_at: datetime
    modified_by: str
    description: str = ""
    labels: tuple[str, ...] = ()
    tier: str = "Standard"


@dataclass(frozen=True, slots=True)
class Planned:
    """The value that a plan saw, and that a write replaces.

    Attributes
    ----------
    version
        Its number; 0 when there was no such parameter.
    value
        The AMI id; empty when there was none.
    """

    version: int = 0
    value: str = ""

    @classmethod
    def of(cls, pointer: Pointer | None) -> Planned:
        """Return what a read showed."""
        return cls(pointer.version, pointer.value) if pointer else cls()


@dataclass(frozen=True, slots=True)
class Overwritten:
    """A change of a channel that nobody planned for, and that a write has replaced.

    Attributes
    ----------
    name, region
        Which parameter.
    version, value, writer
        The value that was replaced, its number, and the ARN of who set it. Without a value the parameter had
        been deleted, or its history does not say.
    written
        Number of the value that replaced it.
    command
        The command that sets the channel to that value again.
    """

    name: str
    region: str
    version: int
    value: str
    writer: str
    written: int
    command: str

    def __str__(self) -> str:
        if not self.version:
            return "the parameter was deleted after the plan was made, and this run created it again"
        if not self.value:
            return f"version {self.version}, which is not in the parameter's history"
        return f"version {self.version}, {self.value}, set by {self.writer} after the plan was made"

    def error(self) -> errors.OverwrittenValueError:
        """Return the error that a run which overwrote it ends with."""
        return errors.OverwrittenValueError(
            f"This run overwrote a value of {self.name} in {self.region} that was not in its plan.",
            why=f"Overwritten: {self}. This run wrote version {self.written} and changed nothing after that.",
            fix="Decide which AMI the channel must contain. To restore the overwritten state: "
            f"{self.command}",
            overwritten=asdict(self),
        )


@dataclass(frozen=True, slots=True)
class Moved:
    """What `point` did.

    Attributes
    ----------
    outcome
        ``"created"`` (a new value) or ``"reused"`` (it named the AMI already).
    version, value
        Number of the value that names the AMI, and the AMI id.
    overwritten
        The change that was replaced without having been planned for, if there was one.
    """

    outcome: StepOutcome
    version: int
    value: str
    overwritten: Overwritten | None = field(default=None)


def pointer_name(prefix: str, image: str, channel: str) -> str:
    """Return the name of a channel's parameter.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        Parameter Store would refuse that name. Source of the limits: "Requirements and constraints for
        parameter names" in the AWS Systems Manager User Guide.

    Examples
    --------
    >>> pointer_name("/vmsnix", "ecs-node", "stable")
    '/vmsnix/ecs-node/stable'
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", image):
        raise errors.ParameterError(
            f"The image {image!r} cannot have channels.",
            why="Parameter Store takes letters, digits, dots, dashes and underscores.",
            fix="Rename the image in its flake.",
        )
    name = f"{prefix}/{image}/{channel}"
    rule = ""
    if not re.fullmatch(r"(/[A-Za-z0-9_.-]+)+", name):
        rule = "use levels of letters, digits, dots, dashes or underscores, each after a slash"
    elif re.match(r"/(aws|ssm)", name, re.IGNORECASE):
        rule = "names that start with aws or ssm are reserved by AWS"
    elif name.count("/") > MOST_LEVELS:
        rule = f"it has {name.count('/')} levels, but AWS allows {MOST_LEVELS}"
    elif BEFORE_THE_NAME + len(name) > MOST_CHARACTERS:
        rule = (
            f"it has {len(name)} characters, but AWS allows {MOST_CHARACTERS}, of which the ARN before the "
            f"name takes up to {BEFORE_THE_NAME}"
        )
    if rule:
        shown = name if len(name) <= 120 else f"{name[:117]}..."
        raise errors.ParameterError(
            f"Invalid parameter name {shown}: {rule}.",
            fix="Change pointer_prefix or channels in vmsnix.toml.",
        )
    return name


def check_kind(pointer: Pointer) -> None:
    """Refuse a parameter that can never become a channel: AWS changes neither its type nor its data type.

    Raises
    ------
    vmsnix_ops.errors.PointerError
        With the commands that replace it.
    """
    if pointer.kind == "String" and pointer.data_type == IMAGE_TYPE:
        return
    what = f"is of type {pointer.kind}"
    if pointer.kind == "String":
        what = f"has the data type {pointer.data_type}"
    where = f"--region {pointer.region} --name {shlex.quote(pointer.name)}"
    raise errors.PointerError(
        f"The parameter {pointer.name} in {pointer.region} {what}.",
        why=f"A channel must be a String of the data type {IMAGE_TYPE}, which launch templates can resolve. "
        "AWS cannot change either in an existing parameter.",
        fix="Delete it and promote again, which creates a new parameter. Its history is lost, and launches "
        f"that resolve it fail in between: aws ssm delete-parameter {where}",
    )


def check_room(name: str, known: list[PointerVersion], region: str) -> None:
    """Refuse a parameter that takes no further value: it has a hundred, and the oldest has a label.

    Raises
    ------
    vmsnix_ops.errors.PointerError
        With the command that removes the label.
    """
    if len(known) < VERSIONS_KEPT or not known[0].labels:
        return
    oldest = known[0]
    raise errors.PointerError(
        f"The parameter {name} in {region} accepts no more values.",
        why=f"It has {len(known)} versions, and AWS cannot delete the oldest ({oldest.version}) while it has "
        f"the label {', '.join(oldest.labels)}.",
        fix=f"Remove the label: aws ssm unlabel-parameter-version --region {region} --name {name} "
        f"--parameter-version {oldest.version} --labels {' '.join(oldest.labels)}",
    )


@needs("ssm:GetParameter")
def find(ssm: SSMClient, name: str) -> Pointer | None:
    """Return a pointer, or ``None`` when there is none of that name."""
    with calling(f"read the parameter {name}"):
        try:
            answer = ssm.get_parameter(Name=name)
        except ssm.exceptions.ParameterNotFound:
            return None
    return _read(answer["Parameter"], ssm.meta.region_name)


@needs("ssm:GetParametersByPath")
def pointers(ssm: SSMClient, prefix: str) -> list[Pointer]:
    """Return every parameter below a prefix such as ``/vmsnix``, by name."""
    with calling(f"list the parameters below {prefix}"):
        pages = ssm.get_paginator("get_parameters_by_path").paginate(Path=prefix, Recursive=True)
        found = [_read(one, ssm.meta.region_name) for page in pages for one in page["Parameters"]]
    return sorted(found, key=lambda pointer: pointer.name)


@needs("ssm:GetParameterHistory")
def history(ssm: SSMClient, name: str) -> list[PointerVersion]:
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
            version=one["Version"],
            value=one["Value"],
            modified_at=one["LastModifiedDate"],
            modified_by=one.get("LastModifiedUser", ""),
            description=one.get("Description", ""),
            labels=tuple(one.get("Labels") or ()),
            tier=one.get("Tier") or "Standard",
        )
        for page in pages
        for one in page["Parameters"]
    ]
    return sorted(found, key=lambda version: version.version)


@needs("ssm:GetParameter", "ssm:PutParameter", "ssm:AddTagsToResource", "ssm:GetParameterHistory")
def point(
    ssm: SSMClient, name: str, ami_id: str, *, planned: Planned, description: str, tags: Mapping[str, str]
) -> Moved:
    """Set a channel to an AMI, wait until a read shows it, and report what the write has replaced.

    Safe to run twice: a parameter that names the AMI already is unchanged, so that its history has an entry
    for every change; and a second one of the same only where AWS's answer to the first was lost. After an
    error the history is read: what it says then is what counts.

    Parameters
    ----------
    ssm, name, ami_id
        Which parameter, and the AMI.
    planned
        The value that the plan saw.
    description
        Kept beside the value; it names the run, by which a lost answer's value is recognised.
    tags
        Of the parameter, when it is made.

    Raises
    ------
    vmsnix_ops.errors.PointerError
        The parameter is not what the plan saw, cannot be a channel, or Parameter Store accepted the value and
        did not take it: it checks later whether there is such an AMI.
    """
    before = find(ssm, name)
    if before is not None:
        check_kind(before)
        if before.value == ami_id:
            return Moved("reused", before.version, ami_id)
    if Planned.of(before) != planned:
        raise changed_meanwhile(name, ssm.meta.region_name, before)
    description = description[:1024]
    request: PutParameterRequestTypeDef = {
        "Name": name,
        "Value": ami_id,
        "Type": "String",
        "DataType": IMAGE_TYPE,
        "Description": description,
    }
    ours = _Ours(ami_id, description, planned.version)
    try:
        with calling(f"set {name} to {ami_id}"):
            version = _put(ssm, request, tags, overwrite=bool(planned.version))
    except errors.AwsError as error:
        # An attempt whose answer was lost may have made the parameter before this one was refused.
        if error.code not in ("", "ParameterAlreadyExists"):
            raise
        version = _after_a_lost_answer(ssm, name, ours)
        if not version and error.code:
            raise changed_meanwhile(name, ssm.meta.region_name, find(ssm, name)) from error
        if not version:
            raise
    _settle(ssm, name, ami_id, version)
    return Moved("created", version, ami_id, _overwritten(ssm, name, planned, version, ours))


def _is_advanced(ssm: SSMClient, name: str) -> bool:
    """Return whether an existing parameter takes a value in the advanced tier only; its policies are kept.

    A request without a tier is one of the account's default tier, usually the standard one, and AWS makes no
    advanced parameter standard ("Tier" and "Policies" of PutParameter in the Systems Manager API Reference).
    """
    try:
        known = history(ssm, name)
    except errors.AwsError:
        return False
    return bool(known) and known[-1].tier == "Advanced"


def changed_meanwhile(name: str, region: str, now: Pointer | None) -> errors.PointerError:
    """Return the refusal of a plan whose channel somebody has changed since."""
    return errors.PointerError(
        f"{name} in {region} was changed after the plan was made.",
        why=f"It is now {now.value} (version {now.version})." if now else "It was deleted.",
        fix="Make a new plan.",
    )


@dataclass(frozen=True, slots=True)
class _Ours:
    """By what a value of this run is recognised: also one whose answer was lost."""

    value: str
    description: str
    after: int

    def wrote(self, one: PointerVersion) -> bool:
        same = (one.value, one.description) == (self.value, self.description)
        return same and one.version > self.after


def _put(
    ssm: SSMClient, request: PutParameterRequestTypeDef, tags: Mapping[str, str], *, overwrite: bool
) -> int:
    """Set the value, and return its version.

    Tags can be given only when a parameter is made, and its tier is kept afterwards.
    """
    request["Overwrite"] = overwrite
    if not overwrite:
        request["Tags"] = [{"Key": key, "Value": value} for key, value in tagging.clean(tags).items()]
    elif _is_advanced(ssm, request["Name"]):
        request["Tier"] = "Advanced"
    return retrying(lambda: ssm.put_parameter(**request), "TooManyUpdates", seconds=20)["Version"]


def _after_a_lost_answer(ssm: SSMClient, name: str, ours: _Ours) -> int:
    """Return the version that this run wrote although no answer said so; wait a moment for it. 0: none."""

    def read() -> PollResult[int]:
        wrote = [one.version for one in history(ssm, name) if ours.wrote(one)]
        return PollResult("done" if wrote else "waiting", max(wrote, default=0))

    try:
        return poll(read, what=f"the parameter {name}", deadline=LOST_SECONDS, interval=INTERVAL).value
    except errors.AwsError:
        return 0


def _settle(ssm: SSMClient, name: str, ami_id: str, version: int) -> None:
    """Wait until a read shows the value, or a later one: who changed the channel after us knew ours."""

    def read() -> PollResult[Pointer | None]:
        seen = find(ssm, name)
        there = seen is not None and (seen.version > version or seen.value == ami_id)
        return PollResult(
            "done" if there else "waiting", seen, state="not there yet" if not there else "there"
        )

    try:
        poll(read, what=f"the parameter {name}", deadline=VISIBLE_SECONDS, interval=INTERVAL)
    except errors.DeadlineError as error:
        raise errors.PointerError(
            f"Parameter Store did not set {name} to {ami_id}.",
            why="It accepts such a value first, then checks whether the caller can see that AMI, and "
            "discards the value if not.",
            fix=f"Check that {ami_id} exists (ec2:DescribeImages), then run the same command again.",
        ) from error


def _overwritten(
    ssm: SSMClient, name: str, planned: Planned, version: int, ours: _Ours
) -> Overwritten | None:
    """Return the change that our write has replaced and that the plan did not see; ``None`` without one.

    AWS's version number is what decides. The history tells a foreign value from a first try of ours whose
    answer was lost, and names the writer. Where it cannot be read, the number alone counts.
    """
    try:
        known = _whole_history(ssm, name, version)
    except errors.AwsError:
        known = []
    again = sum(ours.wrote(one) for one in known if one.version < version)
    foreign = [one for one in known if one.version < version and not ours.wrote(one)]
    newest = foreign[-1] if foreign else None
    found = Planned(newest.version, newest.value) if newest else Planned()
    # The number alone is not enough: a parameter that was deleted and made again counts from 1.
    if version == planned.version + 1 + again and (found == planned or not known):
        return None
    region = ssm.meta.region_name
    where = f"--region {region} --name {shlex.quote(name)}"
    if newest is not None and found != planned:
        command = (
            f"aws ssm put-parameter {where} --type String --data-type {IMAGE_TYPE} --overwrite "
            f"--value {shlex.quote(newest.value)}{' --tier Advanced' if newest.tier == 'Advanced' else ''}"
        )
        return Overwritten(name, region, newest.version, newest.value, newest.modified_by, version, command)
    if known and newest is None:
        return Overwritten(name, region, 0, "", "", version, f"aws ssm delete-parameter {where}")
    command = f"aws ssm get-parameter-history {where}"  # what was there is not known, nor is its value
    return Overwritten(name, region, version - 1, "", "", version, command)


def _whole_history(ssm: SSMClient, name: str, version: int) -> list[PointerVersion]:
    """Return the history up to a version that was just written; wait until a read shows it."""

    def read() -> PollResult[list[PointerVersion]]:
        known = history(ssm, name)
        there = any(one.version >= version for one in known)
        return PollResult("done" if there else "waiting", known)

    return poll(read, what=f"the history of {name}", deadline=VISIBLE_SECONDS, interval=INTERVAL).value


@needs("ssm:GetParameter", "ssm:GetParameterHistory", "ssm:PutParameter", "ssm:DeleteParameter")
def put_back(ssm: SSMClient, name: str, moved: Moved, before: Planned, *, description: str) -> str:
    """Give a channel the value that it had before `point`, and return what became of it, as a sentence.

    Only the value that `point` wrote is replaced: a value that another writer set after it is kept, also in a
    parameter that was deleted and made again, whose versions count from 1. A channel that was new is deleted
    again.

    Raises
    ------
    vmsnix_ops.errors.AwsError
        AWS refused.
    """
    now, region = _not_older(ssm, name, moved.version), ssm.meta.region_name
    if now is None:
        return f"{name} in {region} was deleted in the meantime."
    if (now.version, now.value) != (moved.version, moved.value):
        return f"{name} in {region} is now {now.value}: it was changed in the meantime."
    if not before.version:
        with calling(f"delete {name}, which this run created"):
            ssm.delete_parameter(Name=name)
        return f"{name} in {region} did not exist before and was deleted again."
    with calling(f"set {name} to {before.value} again"):
        request: PutParameterRequestTypeDef = {
            "Name": name,
            "Value": before.value,
            "Type": "String",
            "DataType": IMAGE_TYPE,
            "Description": description[:1024],
        }
        version = _put(ssm, request, {}, overwrite=True)
    _settle(ssm, name, before.value, version)
    if version != moved.version + 1:
        return (
            f"{name} in {region} is {before.value} again, as version {version}; it was also changed in the "
            f"meantime: aws ssm get-parameter-history --region {region} --name {shlex.quote(name)}"
        )
    return f"{name} in {region} is {before.value} again."


def _not_older(ssm: SSMClient, name: str, version: int) -> Pointer | None:
    """Return the parameter as a read shows it that is no older than a version which was seen before.

    Where only older ones are seen for `LOST_SECONDS`, the parameter was deleted and made again.
    """

    def read() -> PollResult[Pointer | None]:
        seen = find(ssm, name)
        return PollResult("done" if seen is None or seen.version >= version else "waiting", seen)

    try:
        return poll(read, what=f"the parameter {name}", deadline=LOST_SECONDS, interval=INTERVAL).value
    except errors.DeadlineError:
        return find(ssm, name)


def _read(one: ParameterTypeDef, region: str) -> Pointer:
    return Pointer(
        name=one["Name"],
        region=region,
        value=one.get("Value", ""),
        version=one.get("Version", 0),
        modified_at=one["LastModifiedDate"],
        data_type=one.get("DataType", "text"),
        kind=one.get("Type", "String"),
    )
