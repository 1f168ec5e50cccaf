"""Instances that live for one test: launch, wait for their checks, read their console, terminate.

They are found again by a tag, so that whoever comes next can end what a killed process left running.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.polling import PollResult, poll
from vmsnix_ops.aws.session import calling, code_of, retrying

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.literals import InstanceTypeType, ResourceTypeType
    from types_boto3_ec2.type_defs import (
        InstanceMarketOptionsRequestTypeDef,
        InstanceTypeDef,
        RunInstancesRequestTypeDef,
    )

    from vmsnix_ops.progress import Step

TYPES = {"x86_64": "t3.small", "arm64": "t4g.small"}
"""Instance type by the AMI's architecture: the smallest that boots a NixOS comfortably."""

OVERDUE = timedelta(hours=1)
"""No test takes as long: an older instance of any test was left behind."""

RUNNING_SECONDS, CHECKS_SECONDS, TERMINATED_SECONDS = 5 * 60.0, 20 * 60.0, 10 * 60.0
ATTEMPTS = 50
ALIVE = ["pending", "running", "stopping", "stopped"]
COMING = ("pending", "running")
UNSEEN = "InvalidInstanceID.NotFound"  # for a moment after a launch
_USED = ("IdempotentInstanceTerminated", "IdempotentParameterMismatch")
_NO_SPOT_ROLE = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
_CAPACITY = (
    "InsufficientInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "Unsupported",
)


@dataclass(frozen=True, slots=True)
class Launch:
    """An instance that is wanted.

    Attributes
    ----------
    ami_id, instance_type
        What runs on what.
    spot
        Whether it runs on spare capacity, at a fraction of the price, and may be taken away.
    subnet
        Where; empty for the default one.
    tags
        Of instance and volumes; `vmsnix_ops.aws.tags.SMOKE` among them.
    """

    ami_id: str
    instance_type: str
    spot: bool = False
    subnet: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def request(self, token: str) -> RunInstancesRequestTypeDef:
        """Return the parameters of ``RunInstances``: no key, session tokens only, gone when it shuts down."""
        kinds: list[ResourceTypeType] = ["instance", "volume"]
        kinds += ["spot-instances-request"] if self.spot else []
        request: RunInstancesRequestTypeDef = {
            "ImageId": self.ami_id,
            "InstanceType": cast("InstanceTypeType", self.instance_type),  # the stubs lag behind AWS's list
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": token,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
            "TagSpecifications": [one for kind in kinds for one in tagging.specification(kind, self.tags)],
        }
        if self.spot:
            request["InstanceMarketOptions"] = spot_options()
        if self.subnet:
            request["SubnetId"] = self.subnet
        return request

    def token(self, attempt: int) -> str:
        """Return the ClientToken: what is launched, and the attempt, since a terminated one's is used up."""
        said = json.dumps([self.request(""), attempt], sort_keys=True)
        return f"vmsnix-{hashlib.sha256(said.encode()).hexdigest()[:48]}"


@needs("iam:CreateServiceLinkedRole")
def spot_options() -> InstanceMarketOptionsRequestTypeDef:
    """Return what asks for spare capacity. An account's first spot instance makes EC2's role for them."""
    return {
        "MarketType": "spot",
        "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
    }


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as AWS describes it.

    Attributes
    ----------
    instance_id, ami_id, state
        Of the instance.
    launched_at
        In UTC.
    reason
        AWS's words on its last change of state.
    spot
        Whether it runs on spare capacity.
    tags
        All of them.
    """

    instance_id: str
    ami_id: str
    state: str
    launched_at: datetime
    reason: str
    spot: bool
    tags: Mapping[str, str]


@needs("ec2:DescribeInstances")
def left_behind(ec2: EC2Client, ami_id: str, *, now: datetime | None = None) -> list[Instance]:
    """Return the instances of earlier tests of this AMI, and those of any test that are overdue.

    A test of one AMI owns the AMI's test instances: one that runs at the same time loses its own.
    """
    now = now or datetime.now(UTC)
    with calling("find instances of earlier tests"):
        pages = ec2.get_paginator("describe_instances").paginate(
            Filters=[
                {"Name": "tag-key", "Values": [tagging.SMOKE]},
                {"Name": "instance-state-name", "Values": ALIVE},
            ]
        )
        found = [
            _read(one)
            for page in pages
            for reservation in page["Reservations"]
            for one in reservation["Instances"]
        ]
    return [one for one in found if one.ami_id == ami_id or now - one.launched_at > OVERDUE]


@needs("ec2:RunInstances", "ec2:CreateTags")
def launch(ec2: EC2Client, wanted: Launch) -> str:
    """Launch an instance, and return its id.

    Safe to run twice: the ClientToken derives from what is launched, so that a call whose answer was lost
    returns the same instance. When that one is terminated, the next attempt has another token.

    Raises
    ------
    vmsnix_ops.errors.SmokeTestError
        AWS has no such capacity now, or not for this AMI.
    vmsnix_ops.errors.AccessDeniedError
        The caller may not; or the account has no spot instances yet, and the caller may not make their role.
    """
    try:
        with calling(f"launch an instance of {wanted.ami_id}"):
            for attempt in range(ATTEMPTS):
                request = wanted.request(wanted.token(attempt))
                try:
                    answer = retrying(
                        partial(ec2.run_instances, **request),
                        "InvalidAMIID.NotFound",
                    )
                except ec2.exceptions.ClientError as error:
                    if code_of(error) in _USED:
                        continue
                    raise
                (instance,) = answer["Instances"]
                return instance["InstanceId"]
    except errors.AwsError as error:
        if error.code == _NO_SPOT_ROLE:
            raise _no_spot_role(error) from error
        if error.code not in _CAPACITY:
            raise
        raise errors.SmokeTestError(
            error.what,
            why=error.why,
            fix="Try another instance type, without spot, or later.",
            code=error.code,
            operation=error.operation,
            request_id=error.request_id,
        ) from error
    raise errors.SmokeTestError(
        f"{wanted.ami_id} was tested {ATTEMPTS} times in a short time.",
        why="AWS remembers the client tokens of terminated instances.",
        fix="Wait an hour, or test it with another instance type.",
    )


def _no_spot_role(error: errors.AwsError) -> errors.AccessDeniedError:
    return errors.AccessDeniedError(
        error.what,
        why=error.why,
        fix="An account's first spot instance needs iam:CreateServiceLinkedRole once. Ask an administrator "
        "to run aws iam create-service-linked-role --aws-service-name spot.amazonaws.com, use the policy of "
        "vmsnix iam-policy smoke-tester --spot, or test without spot.",
        code=error.code,
        operation=error.operation,
        request_id=error.request_id,
    )


@needs("ec2:DescribeInstances")
def describe(ec2: EC2Client, instance_id: str) -> Instance:
    """Return an instance; a moment after its launch too, when AWS does not yet see it."""
    with calling(f"read the instance {instance_id}"):
        answer = retrying(lambda: ec2.describe_instances(InstanceIds=[instance_id]), UNSEEN)
    return _read(answer["Reservations"][0]["Instances"][0])


def wait_running(ec2: EC2Client, instance_id: str, *, step: Step | None = None) -> Instance:
    """Wait until an instance runs.

    Raises
    ------
    vmsnix_ops.errors.SmokeTestError
        It ended instead; with AWS's reason.
    """

    def read() -> PollResult[Instance]:
        one = describe(ec2, instance_id)
        outcome: Literal["waiting", "done", "failed"] = "failed"
        if one.state in COMING:
            outcome = "done" if one.state == "running" else "waiting"
        return PollResult(outcome, one, None, one.state)

    seen = poll(read, what=f"the instance {instance_id}", deadline=RUNNING_SECONDS, step=step)
    if seen.outcome == "failed":
        raise _ended(seen.value)
    return seen.value


@needs("ec2:DescribeInstances", "ec2:DescribeInstanceStatus")
def wait_checks(ec2: EC2Client, instance_id: str, *, step: Step | None = None) -> None:
    """Wait until both status checks of an instance are ``ok``.

    Raises
    ------
    vmsnix_ops.errors.SmokeTestError
        A check failed (``impaired``), or the instance ended.
    """

    def read() -> PollResult[Mapping[str, str]]:
        with calling(f"read the status checks of {instance_id}"):
            answer = retrying(lambda: ec2.describe_instance_status(InstanceIds=[instance_id]), UNSEEN)
        if not answer["InstanceStatuses"]:  # only running instances are listed, and those a moment late
            seen = describe(ec2, instance_id)
            if seen.state in COMING:
                return PollResult("waiting", {}, None, seen.state)
            raise _ended(seen)
        one = answer["InstanceStatuses"][0]
        checks = {name: one[name]["Status"] for name in ("SystemStatus", "InstanceStatus")}
        state = ", ".join(
            f"{name.removesuffix('Status').lower()} {status}" for name, status in checks.items()
        )
        if "impaired" in checks.values():
            return PollResult("failed", checks, None, state)
        return PollResult("done" if set(checks.values()) == {"ok"} else "waiting", checks, None, state)

    seen = poll(
        read,
        what=f"the status checks of {instance_id}",
        deadline=CHECKS_SECONDS,
        step=step,
    )
    if seen.outcome == "failed":
        raise errors.SmokeTestError(
            f"The instance {instance_id} failed its status checks.",
            why=f"AWS reported: {seen.state}. The instance check tests whether its network answers (ARP).",
            fix="Check its console below for a wrong boot mode, root device or network driver.",
        )


@needs("ec2:GetConsoleOutput")
def console(ec2: EC2Client, instance_id: str) -> str:
    """Return what an instance printed on its serial port so far: the latest, where its type can tell it."""
    with calling(f"read the console of {instance_id}"):
        try:
            answer = retrying(lambda: ec2.get_console_output(InstanceId=instance_id, Latest=True), UNSEEN)
        except ec2.exceptions.ClientError as error:
            if code_of(error) != "UnsupportedOperation":
                raise
            answer = ec2.get_console_output(InstanceId=instance_id)
    return answer.get("Output") or ""


@needs("ec2:TerminateInstances")
def terminate(ec2: EC2Client, instance_ids: Iterable[str]) -> None:
    """Begin to terminate instances. Safe to run twice: who is gone is no error."""
    for instance_id in instance_ids:  # one by one: AWS terminates all of a call or none
        with calling(f"terminate the instance {instance_id}"):
            _terminate(ec2, instance_id)


def _terminate(ec2: EC2Client, instance_id: str) -> None:
    try:
        retrying(lambda: ec2.terminate_instances(InstanceIds=[instance_id]), UNSEEN, seconds=10)
    except ec2.exceptions.ClientError as error:
        if code_of(error) != UNSEEN:
            raise


def wait_terminated(ec2: EC2Client, instance_id: str, *, step: Step | None = None) -> None:
    """Wait until an instance is terminated."""

    def read() -> PollResult[Instance]:
        one = describe(ec2, instance_id)
        return PollResult("done" if one.state == "terminated" else "waiting", one, None, one.state)

    what = f"the termination of {instance_id}"
    poll(read, what=what, deadline=TERMINATED_SECONDS, step=step)


def _ended(instance: Instance) -> errors.SmokeTestError:
    return errors.SmokeTestError(
        f"The instance {instance.instance_id} is {instance.state}.",
        why=f"AWS reported: {instance.reason}." if instance.reason else "AWS reported no reason.",
        fix="If it was a spot instance, AWS may have reclaimed it: run the test again, or without spot. "
        "Otherwise check the AMI's snapshot, its key and the instance type.",
    )


def _read(one: InstanceTypeDef) -> Instance:
    return Instance(
        instance_id=one["InstanceId"],
        ami_id=one.get("ImageId", ""),
        state=one["State"]["Name"],
        launched_at=one["LaunchTime"],
        reason=str((one.get("StateReason") or {}).get("Message") or one.get("StateTransitionReason") or ""),
        spot=one.get("InstanceLifecycle") == "spot",
        tags=tagging.to_dict(one.get("Tags")),
    )
