"""Channels in Parameter Store: one parameter for each channel of an image, whose value is an AMI ID.

The parameter of a channel is called ``/vmsnix/<image>/<channel>`` and has the data type ``aws:ec2:image``. So
launch templates and CloudFormation can resolve it, and Parameter Store refuses a value that is not an AMI. It
keeps the last hundred values with time and writer. This history records what a channel contained; our tables
only repeat it.

Parameter Store has no conditional write. So a write compares the version in AWS's answer with the version
that its plan read. A version that is higher by more than one means that the write replaced a value that the
plan did not contain.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.polling import PollInterval, PollResult, poll
from vmsnix_ops.aws.session import calling, if_found, retry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from types_boto3_ssm.client import SSMClient
    from types_boto3_ssm.type_defs import ParameterTypeDef, PutParameterRequestTypeDef

    from vmsnix_ops.outcomes import StepOutcome

IMAGE_TYPE = "aws:ec2:image"
MOST_LEVELS = 15  # of a parameter's name; AWS
MOST_CHARACTERS = 1011  # of a parameter's ARN, which contains its name; AWS
BEFORE_THE_NAME = len("arn:aws-us-gov:ssm:ap-southeast-99:123456789012:parameter")
VERSIONS_KEPT = 100
VISIBLE_SECONDS = 60.0
LOST_SECONDS = 5.0  # how long to search for a write whose answer was lost
INTERVAL = PollInterval(shortest=0.2, longest=2.0)


@dataclass(frozen=True, slots=True)
class ChannelParameter:
    """The parameter of a channel."""

    name: str
    region: str
    value: str  # its value: an AMI ID, if vmsnix wrote it
    version: int  # number of this value
    modified_at: datetime  # when the value was set, UTC
    data_type: str  # "aws:ec2:image", or "text" for values that AWS does not check
    kind: str = "String"  # "String", "StringList" or "SecureString"


@dataclass(frozen=True, slots=True)
class ParameterVersion:
    """One value in the history of a channel's parameter."""

    version: int
    value: str  # an AMI ID
    modified_at: datetime  # when it was set, UTC
    modified_by: str  # ARN of its writer
    description: str = ""  # the parameter's description that was set with it
    labels: tuple[str, ...] = ()  # labels of this version; AWS does not delete a version that has one
    tier: str = "Standard"  # "Standard" or "Advanced"


@dataclass(frozen=True, slots=True)
class ExpectedValue:
    """The value that a plan read, and that a write may replace."""

    version: int = 0  # 0 if the parameter did not exist
    value: str = ""  # an AMI ID; empty if the parameter did not exist

    @classmethod
    def of(cls, parameter: ChannelParameter | None) -> ExpectedValue:
        """Return the value of a parameter that was read, or that of a missing one."""
        return cls(parameter.version, parameter.value) if parameter else cls()


@dataclass(frozen=True, slots=True)
class OverwrittenValue:
    """A value that a write replaced although it was not in the plan."""

    name: str
    region: str
    # The replaced value, its number, and the ARN of its writer. Without a value, the parameter had been
    # deleted, or its history does not contain the value.
    version: int
    value: str
    writer: str
    written: int  # version of the value that replaced it
    command: str  # the command that restores the replaced state

    def __str__(self) -> str:
        if not self.version:
            return "the parameter was deleted after the plan was made, and this run created it again"
        if not self.value:
            return f"version {self.version}, which is not in the parameter's history"
        return f"version {self.version}, {self.value}, set by {self.writer} after the plan was made"

    def error(self) -> errors.OverwrittenValueError:
        """Return the error for the run that overwrote the value."""
        return errors.OverwrittenValueError(
            f"This run overwrote a value of {self.name} in {self.region} that was not in its plan.",
            why=f"Overwritten: {self}. This run wrote version {self.written} and changed nothing after that.",
            fix="Decide which AMI the channel must contain. To restore the overwritten state: "
            f"{self.command}",
            overwritten=asdict(self),
        )


@dataclass(frozen=True, slots=True)
class ChannelWrite:
    """The result of `set_channel`."""

    outcome: StepOutcome  # "created" (a new value) or "reused" (the channel contained the AMI already)
    version: int  # of the channel's value
    value: str  # the AMI ID
    overwritten: OverwrittenValue | None = None  # the unexpected value that this write replaced, if any


def parameter_name(prefix: str, image: str, channel: str) -> str:
    """Return the name of a channel's parameter; refuse one that Parameter Store would refuse.

    Source of the limits: "Requirements and constraints for parameter names" in the AWS Systems Manager User
    Guide.

    >>> parameter_name("/vmsnix", "ecs-node", "stable")
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
            fix="Change channel_prefix or channels in vmsnix.toml.",
        )
    return name


def check_parameter_type(parameter: ChannelParameter) -> None:
    """Refuse a parameter of another type than that of channels; AWS cannot change the type."""
    if parameter.kind == "String" and parameter.data_type == IMAGE_TYPE:
        return
    what = f"is of type {parameter.kind}"
    if parameter.kind == "String":
        what = f"has the data type {parameter.data_type}"
    raise errors.ChannelError(
        f"The parameter {parameter.name} in {parameter.region} {what}.",
        why=f"A channel must be a String of the data type {IMAGE_TYPE}, which launch templates can resolve. "
        "AWS cannot change either in an existing parameter.",
        fix="Delete it and promote again, which creates a new parameter. Its history is lost, and launches "
        "that resolve it fail in between: aws ssm delete-parameter "
        f"{_options(parameter.name, parameter.region)}",
    )


def check_accepts_value(name: str, versions: list[ParameterVersion], region: str) -> None:
    """Refuse a parameter that accepts no more values: it has a hundred, and the oldest has a label."""
    if len(versions) < VERSIONS_KEPT or not versions[0].labels:
        return
    oldest = versions[0]
    raise errors.ChannelError(
        f"The parameter {name} in {region} accepts no more values.",
        why=f"It has {len(versions)} versions, and AWS cannot delete the oldest ({oldest.version}) while it "
        f"has the label {', '.join(oldest.labels)}.",
        fix=f"Remove the label: aws ssm unlabel-parameter-version --region {region} --name {name} "
        f"--parameter-version {oldest.version} --labels {' '.join(oldest.labels)}",
    )


def _options(name: str, region: str) -> str:
    """Return the options of the AWS CLI that choose a parameter."""
    return f"--region {region} --name {shlex.quote(name)}"


@needs("ssm:GetParameter")
def find_parameter(ssm: SSMClient, name: str) -> ChannelParameter | None:
    """Return a channel's parameter, or ``None`` if there is none of that name."""
    with calling(f"read the parameter {name}"):
        answer = if_found(lambda: ssm.get_parameter(Name=name), "ParameterNotFound")
    return _parse(answer["Parameter"], ssm.meta.region_name) if answer else None


@needs("ssm:GetParametersByPath")
def list_parameters(ssm: SSMClient, prefix: str) -> list[ChannelParameter]:
    """Return all parameters below a prefix such as ``/vmsnix``, by name."""
    with calling(f"list the parameters below {prefix}"):
        pages = ssm.get_paginator("get_parameters_by_path").paginate(Path=prefix, Recursive=True)
        found = [_parse(one, ssm.meta.region_name) for page in pages for one in page["Parameters"]]
    return sorted(found, key=lambda parameter: parameter.name)


@needs("ssm:GetParameterHistory")
def read_history(ssm: SSMClient, name: str) -> list[ParameterVersion]:
    """Return the last hundred values of a channel, oldest first; an empty list without a parameter."""
    with calling(f"read the history of the parameter {name}"):
        pages = ssm.get_paginator("get_parameter_history").paginate(Name=name)
        found = if_found(lambda: [one for page in pages for one in page["Parameters"]], "ParameterNotFound")
    versions = [
        ParameterVersion(
            version=one["Version"],
            value=one["Value"],
            modified_at=one["LastModifiedDate"],
            modified_by=one.get("LastModifiedUser", ""),
            description=one.get("Description", ""),
            labels=tuple(one.get("Labels") or ()),
            tier=one.get("Tier") or "Standard",
        )
        for one in found or ()
    ]
    return sorted(versions, key=lambda version: version.version)


@needs("ssm:GetParameter", "ssm:PutParameter", "ssm:AddTagsToResource", "ssm:GetParameterHistory")
def set_channel(
    ssm: SSMClient,
    name: str,
    ami_id: str,
    *,
    expected: ExpectedValue,
    description: str,
    tags: Mapping[str, str],
) -> ChannelWrite:
    """Set a channel to an AMI, wait until a read returns it, and report what the write replaced.

    Safe to run twice: a channel that contains the AMI is unchanged, so its history has one entry for each
    change. The history has a second entry only if AWS's answer to the first write was lost. After an error,
    the history decides whether the value was written. `description` is stored with the value; it names the
    run, which identifies a write whose answer was lost.

    A ChannelError if the parameter has another value than the plan read (`expected`) or cannot be a channel,
    or if Parameter Store accepted the value and then discarded it: it checks later whether the AMI exists.
    """
    before = find_parameter(ssm, name)
    if before is not None:
        check_parameter_type(before)
        if before.value == ami_id:
            return ChannelWrite("reused", before.version, ami_id)
    if ExpectedValue.of(before) != expected:
        raise changed_since_plan(name, ssm.meta.region_name, before)
    request = _request(name, ami_id, description)
    own = _OwnWrite(ami_id, request["Description"], expected.version)
    try:
        with calling(f"set {name} to {ami_id}"):
            version = _put(ssm, request, tags, overwrite=bool(expected.version))
    except errors.AwsError as error:
        # An attempt whose answer was lost may have created the parameter before this one was refused.
        if error.code not in ("", "ParameterAlreadyExists"):
            raise
        version = _find_lost_write(ssm, name, own)
        if not version and error.code:
            raise changed_since_plan(name, ssm.meta.region_name, find_parameter(ssm, name)) from error
        if not version:
            raise
    _wait_until_visible(ssm, name, ami_id, version)
    return ChannelWrite("created", version, ami_id, _find_overwritten(ssm, name, expected, version, own))


def changed_since_plan(name: str, region: str, now: ChannelParameter | None) -> errors.ChannelError:
    """Return the error for a channel that was changed after the plan was made."""
    return errors.ChannelError(
        f"{name} in {region} was changed after the plan was made.",
        why=f"It is now {now.value} (version {now.version})." if now else "It was deleted.",
        fix="Make a new plan.",
    )


@dataclass(frozen=True, slots=True)
class _OwnWrite:
    """A write of this run, to recognize its value in the history even if AWS's answer was lost."""

    value: str
    description: str
    after: int

    def matches(self, one: ParameterVersion) -> bool:
        same = (one.value, one.description) == (self.value, self.description)
        return same and one.version > self.after


def _request(name: str, value: str, description: str) -> PutParameterRequestTypeDef:
    return {
        "Name": name,
        "Value": value,
        "Type": "String",
        "DataType": IMAGE_TYPE,
        "Description": description[:1024],
    }


def _put(
    ssm: SSMClient, request: PutParameterRequestTypeDef, tags: Mapping[str, str], *, overwrite: bool
) -> int:
    """Set the value, and return its version.

    AWS accepts tags only with a new parameter. An existing parameter in the advanced tier must be written in
    that tier: AWS does not make it standard, and a request without a tier uses the account's default, usually
    standard ("Tier" and "Policies" of PutParameter in the Systems Manager API Reference).
    """
    request["Overwrite"] = overwrite
    if not overwrite:
        request["Tags"] = [{"Key": key, "Value": value} for key, value in tagging.clean_tags(tags).items()]
    else:
        try:
            versions = read_history(ssm, request["Name"])
        except errors.AwsError:
            versions = []
        if versions and versions[-1].tier == "Advanced":
            request["Tier"] = "Advanced"
    return retry(lambda: ssm.put_parameter(**request), "TooManyUpdates", seconds=20)["Version"]


def _find_lost_write(ssm: SSMClient, name: str, own: _OwnWrite) -> int:
    """Return the version that this run wrote although no answer arrived; 0 if none appears within seconds."""

    def read() -> PollResult[int]:
        written = [one.version for one in read_history(ssm, name) if own.matches(one)]
        return PollResult("done" if written else "waiting", max(written, default=0))

    try:
        return poll(read, what=f"the parameter {name}", deadline=LOST_SECONDS, interval=INTERVAL).value
    except errors.AwsError:
        return 0


def _wait_until_visible(ssm: SSMClient, name: str, ami_id: str, version: int) -> None:
    """Wait until a read returns the value, or a later one that replaced it."""

    def read() -> PollResult[ChannelParameter | None]:
        parameter = find_parameter(ssm, name)
        visible = parameter is not None and (parameter.version > version or parameter.value == ami_id)
        return PollResult("done" if visible else "waiting", parameter)

    try:
        poll(read, what=f"the parameter {name}", deadline=VISIBLE_SECONDS, interval=INTERVAL)
    except errors.DeadlineError as error:
        raise errors.ChannelError(
            f"Parameter Store did not set {name} to {ami_id}.",
            why="It accepts such a value first, then checks whether the caller can see that AMI, and "
            "discards the value if not.",
            fix=f"Check that {ami_id} exists (ec2:DescribeImages), then run the same command again.",
        ) from error


def _find_overwritten(
    ssm: SSMClient, name: str, expected: ExpectedValue, version: int, own: _OwnWrite
) -> OverwrittenValue | None:
    """Return the unexpected value that this run's write replaced, or ``None``.

    AWS's version number decides. The history distinguishes another writer's value from an earlier attempt of
    this run whose answer was lost, and names the writer. If the history cannot be read, only the number
    counts.
    """
    try:
        versions = _wait_for_history(ssm, name, version)
    except errors.AwsError:
        versions = []
    attempts = sum(own.matches(one) for one in versions if one.version < version)
    others = [one for one in versions if one.version < version and not own.matches(one)]
    newest = others[-1] if others else None
    replaced = ExpectedValue(newest.version, newest.value) if newest else ExpectedValue()
    # The number alone is not enough: the versions of a parameter that was deleted and created again start
    # at 1.
    if version == expected.version + 1 + attempts and (replaced == expected or not versions):
        return None
    region = ssm.meta.region_name
    options = _options(name, region)
    if newest is not None and replaced != expected:
        command = (
            f"aws ssm put-parameter {options} --type String --data-type {IMAGE_TYPE} --overwrite "
            f"--value {shlex.quote(newest.value)}{' --tier Advanced' if newest.tier == 'Advanced' else ''}"
        )
        return OverwrittenValue(
            name, region, newest.version, newest.value, newest.modified_by, version, command
        )
    if versions and newest is None:
        return OverwrittenValue(name, region, 0, "", "", version, f"aws ssm delete-parameter {options}")
    # The replaced value is unknown.
    command = f"aws ssm get-parameter-history {options}"
    return OverwrittenValue(name, region, version - 1, "", "", version, command)


def _wait_for_history(ssm: SSMClient, name: str, version: int) -> list[ParameterVersion]:
    """Return the history as soon as it contains a version that was just written."""

    def read() -> PollResult[list[ParameterVersion]]:
        versions = read_history(ssm, name)
        visible = any(one.version >= version for one in versions)
        return PollResult("done" if visible else "waiting", versions)

    return poll(read, what=f"the history of {name}", deadline=VISIBLE_SECONDS, interval=INTERVAL).value


@needs("ssm:GetParameter", "ssm:GetParameterHistory", "ssm:PutParameter", "ssm:DeleteParameter")
def restore_channel(
    ssm: SSMClient, name: str, written: ChannelWrite, before: ExpectedValue, *, description: str
) -> str:
    """Set a channel to the value that it had before `set_channel`, and return the result as a sentence.

    Only the value that `set_channel` wrote is replaced. A later value of another writer is kept, also if the
    parameter was deleted and created again and its versions start at 1. A parameter that `set_channel`
    created is deleted.
    """
    now, region = _read_at_least(ssm, name, written.version), ssm.meta.region_name
    if now is None:
        return f"{name} in {region} was deleted in the meantime."
    if (now.version, now.value) != (written.version, written.value):
        return f"{name} in {region} is now {now.value}: it was changed in the meantime."
    if not before.version:
        with calling(f"delete {name}, which this run created"):
            ssm.delete_parameter(Name=name)
        return f"{name} in {region} did not exist before and was deleted again."
    with calling(f"set {name} to {before.value} again"):
        version = _put(ssm, _request(name, before.value, description), {}, overwrite=True)
    _wait_until_visible(ssm, name, before.value, version)
    if version != written.version + 1:
        return (
            f"{name} in {region} is {before.value} again, as version {version}; it was also changed in the "
            f"meantime: aws ssm get-parameter-history {_options(name, region)}"
        )
    return f"{name} in {region} is {before.value} again."


def _read_at_least(ssm: SSMClient, name: str, version: int) -> ChannelParameter | None:
    """Return the parameter once a read returns at least a version that is known to exist.

    If reads return only older versions for `LOST_SECONDS`, the parameter was deleted and created again.
    """

    def read() -> PollResult[ChannelParameter | None]:
        parameter = find_parameter(ssm, name)
        return PollResult(
            "done" if parameter is None or parameter.version >= version else "waiting", parameter
        )

    try:
        return poll(read, what=f"the parameter {name}", deadline=LOST_SECONDS, interval=INTERVAL).value
    except errors.DeadlineError:
        return find_parameter(ssm, name)


def _parse(one: ParameterTypeDef, region: str) -> ChannelParameter:
    return ChannelParameter(
        name=one["Name"],
        region=region,
        value=one.get("Value", ""),
        version=one.get("Version", 0),
        modified_at=one["LastModifiedDate"],
        data_type=one.get("DataType", "text"),
        kind=one.get("Type", "String"),
    )
