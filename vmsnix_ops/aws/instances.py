"""Instances of smoke tests: launch, wait for the status checks, read the console, terminate.

A tag marks these instances, so a later test can terminate the instances of a killed process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, cast

from vmsnix_ops import errors
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.error_codes import AMI_NOT_FOUND, INSTANCE_NOT_FOUND
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.paging import read_pages
from vmsnix_ops.aws.polling import Outcome, PollResult, poll
from vmsnix_ops.aws.session import calling, client_token, code_of, if_found, retry
from vmsnix_ops.progress import NO_STEP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.literals import InstanceTypeType, ResourceTypeType
    from types_boto3_ec2.type_defs import (
        FilterTypeDef,
        InstanceMarketOptionsRequestTypeDef,
        InstanceTypeDef,
        RunInstancesRequestTypeDef,
    )

    from vmsnix_ops.progress import Step

INSTANCE_TYPES = {"x86_64": "t3.small", "arm64": "t4g.small"}
"""Instance type for each architecture: the smallest with enough memory to boot NixOS."""

OVERDUE = timedelta(hours=1)
"""Older instances belong to no running test: no test takes this long."""

RUNNING_SECONDS, CHECKS_SECONDS, TERMINATED_SECONDS = 5 * 60.0, 20 * 60.0, 10 * 60.0
ATTEMPTS = 50
ALIVE = ("pending", "running", "stopping", "stopped")
"""States of instances that are not terminated, nor about to be."""
STARTING = ("pending", "running")
_TOKEN_USED = ("IdempotentInstanceTerminated", "IdempotentParameterMismatch")
_NO_SPOT_ROLE = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
_NO_SPOT_ROLE_FIX = (
    "An account's first spot instance needs iam:CreateServiceLinkedRole once. Ask an administrator to run "
    "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com, use the policy of vmsnix "
    "iam-policy smoke-tester --spot, or test without spot."
)
_CAPACITY = (
    "InsufficientInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "Unsupported",
)


@dataclass(frozen=True, slots=True)
class InstanceLaunch:
    """The parameters of an instance to launch."""

    ami_id: str
    instance_type: str
    spot: bool = False  # cheaper, but AWS may terminate it at any time
    subnet: str = ""  # subnet ID; empty for the default subnet
    # Tags of instance and volumes, including `vmsnix_ops.aws.tags.SMOKE`.
    tags: Mapping[str, str] = field(default_factory=dict)

    def request(self, token: str) -> RunInstancesRequestTypeDef:
        """Return the parameters of ``RunInstances``: no key pair, IMDSv2 only, terminated at shutdown.

        With hop limit 1 (AWS's default is 2 for AMIs with IMDSv2), containers cannot read the metadata.
        """
        kinds: list[ResourceTypeType] = ["instance", "volume"]
        kinds += ["spot-instances-request"] if self.spot else []
        request: RunInstancesRequestTypeDef = {
            "ImageId": self.ami_id,
            "InstanceType": cast("InstanceTypeType", self.instance_type),  # the stubs lag behind AWS's list
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": token,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {
                "HttpTokens": "required",
                "HttpEndpoint": "enabled",
                "HttpPutResponseHopLimit": 1,
            },
            "TagSpecifications": [
                one for kind in kinds for one in tagging.tag_specifications(kind, self.tags)
            ],
        }
        if self.spot:
            request["InstanceMarketOptions"] = spot_options()
        if self.subnet:
            request["SubnetId"] = self.subnet
        return request

    def token(self, attempt: int) -> str:
        """Return the ClientToken: a hash of the launch and the attempt.

        AWS does not accept the token of a terminated instance again.
        """
        return client_token(self.request(""), attempt)


@needs("iam:CreateServiceLinkedRole")
def spot_options() -> InstanceMarketOptionsRequestTypeDef:
    """Return the options of a spot instance; for an account's first one, EC2 creates its service role."""
    return {
        "MarketType": "spot",
        "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
    }


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as AWS describes it."""

    instance_id: str
    ami_id: str
    state: str
    launched_at: datetime  # UTC
    reason: str  # AWS's reason for its last change of state
    spot: bool
    tags: Mapping[str, str]


@needs("ec2:DescribeInstances")
def list_instances(ec2: EC2Client, filters: Mapping[str, Sequence[str]]) -> Iterator[InstanceTypeDef]:
    """Yield the instances that match all filters; a filter has one or more values."""
    chosen: list[FilterTypeDef] = [{"Name": name, "Values": values} for name, values in filters.items()]
    for page in read_pages(ec2.describe_instances, Filters=chosen, MaxResults=1000):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


@needs("ec2:DescribeInstances")
def find_leftover_instances(ec2: EC2Client, ami_id: str) -> list[Instance]:
    """Return the instances of earlier tests of this AMI, and those of other tests older than `OVERDUE`.

    Two tests of one AMI at the same time are not supported: the second terminates the first one's instance.
    """
    overdue = datetime.now(UTC) - OVERDUE
    wanted = {"tag-key": [tagging.SMOKE], "instance-state-name": ALIVE}
    with calling("find instances of earlier tests"):
        found = [_parse(one) for one in list_instances(ec2, wanted)]
    return [one for one in found if one.ami_id == ami_id or one.launched_at < overdue]


@needs("ec2:RunInstances", "ec2:CreateTags")
def launch_instance(ec2: EC2Client, wanted: InstanceLaunch) -> str:
    """Launch an instance, and return its ID.

    Safe to run twice: the ClientToken is derived from the launch, so a call whose answer was lost returns the
    same instance. If that instance is terminated, the next attempt uses another token.
    """
    try:
        with calling(f"launch an instance of {wanted.ami_id}"):
            for attempt in range(ATTEMPTS):
                request = wanted.request(wanted.token(attempt))
                try:
                    answer = retry(partial(ec2.run_instances, **request), AMI_NOT_FOUND)
                except ec2.exceptions.ClientError as error:
                    if code_of(error) in _TOKEN_USED:
                        continue
                    raise
                (instance,) = answer["Instances"]
                return instance["InstanceId"]
    except errors.AwsError as error:
        if error.code == _NO_SPOT_ROLE:
            raise error.with_fix(_NO_SPOT_ROLE_FIX, errors.AccessDeniedError) from error
        if error.code not in _CAPACITY:
            raise
        fix = "Try another instance type, without spot, or later."
        raise error.with_fix(fix, errors.SmokeTestError) from error
    raise errors.SmokeTestError(
        f"{wanted.ami_id} was tested {ATTEMPTS} times in a short time.",
        why="AWS remembers the client tokens of terminated instances.",
        fix="Wait an hour, or test it with another instance type.",
    )


@needs("ec2:DescribeInstances")
def describe_instance(ec2: EC2Client, instance_id: str) -> Instance:
    """Return an instance; retry while a new instance is not visible yet."""
    with calling(f"read the instance {instance_id}"):
        answer = retry(lambda: ec2.describe_instances(InstanceIds=[instance_id]), INSTANCE_NOT_FOUND)
    return _parse(answer["Reservations"][0]["Instances"][0])


def wait_running(ec2: EC2Client, instance_id: str, *, step: Step = NO_STEP) -> Instance:
    """Wait until an instance runs; a SmokeTestError with AWS's reason if it stopped."""

    def read() -> PollResult[Instance]:
        one = describe_instance(ec2, instance_id)
        outcomes: dict[str, Outcome] = {"running": "done", "pending": "waiting"}
        return PollResult(outcomes.get(one.state, "failed"), one, None, one.state)

    result = poll(read, what=f"the instance {instance_id}", deadline=RUNNING_SECONDS, step=step)
    if result.outcome == "failed":
        raise _not_running_error(result.value)
    return result.value


@needs("ec2:DescribeInstances", "ec2:DescribeInstanceStatus")
def wait_checks(ec2: EC2Client, instance_id: str, *, step: Step = NO_STEP) -> None:
    """Wait until both status checks of an instance are ``ok``; a SmokeTestError if one is ``impaired``."""

    def read() -> PollResult[Mapping[str, str]]:
        with calling(f"read the status checks of {instance_id}"):
            answer = retry(
                lambda: ec2.describe_instance_status(InstanceIds=[instance_id]), INSTANCE_NOT_FOUND
            )
        if not answer["InstanceStatuses"]:  # AWS lists only running instances, with a delay
            instance = describe_instance(ec2, instance_id)
            if instance.state in STARTING:
                return PollResult("waiting", {}, None, instance.state)
            raise _not_running_error(instance)
        one = answer["InstanceStatuses"][0]
        checks = {name: one[name]["Status"] for name in ("SystemStatus", "InstanceStatus")}
        state = ", ".join(
            f"{name.removesuffix('Status').lower()} {status}" for name, status in checks.items()
        )
        if "impaired" in checks.values():
            return PollResult("failed", checks, None, state)
        return PollResult("done" if set(checks.values()) == {"ok"} else "waiting", checks, None, state)

    result = poll(read, what=f"the status checks of {instance_id}", deadline=CHECKS_SECONDS, step=step)
    if result.outcome == "failed":
        raise errors.SmokeTestError(
            f"The instance {instance_id} failed its status checks.",
            why=f"AWS reported: {result.state}. The instance check tests whether its network answers (ARP).",
            fix="Check its console below for a wrong boot mode, root device or network driver.",
        )


@needs("ec2:GetConsoleOutput")
def read_console(ec2: EC2Client, instance_id: str) -> str:
    """Return the serial console output of an instance: the latest, if its instance type supports that."""
    with calling(f"read the console of {instance_id}"):
        try:
            answer = retry(
                lambda: ec2.get_console_output(InstanceId=instance_id, Latest=True), INSTANCE_NOT_FOUND
            )
        except ec2.exceptions.ClientError as error:
            if code_of(error) != "UnsupportedOperation":
                raise
            answer = ec2.get_console_output(InstanceId=instance_id)
    return answer.get("Output") or ""


@needs("ec2:TerminateInstances")
def terminate_instances(ec2: EC2Client, instance_ids: Iterable[str]) -> None:
    """Begin to terminate instances. Safe to run twice: a missing instance is not an error."""
    for instance_id in instance_ids:  # one by one: one call terminates all of its instances or none
        call = partial(ec2.terminate_instances, InstanceIds=[instance_id])
        with calling(f"terminate the instance {instance_id}"):
            if_found(partial(retry, call, INSTANCE_NOT_FOUND, seconds=10), INSTANCE_NOT_FOUND)


def wait_terminated(ec2: EC2Client, instance_id: str, *, step: Step = NO_STEP) -> None:
    """Wait until an instance is terminated."""

    def read() -> PollResult[Instance]:
        one = describe_instance(ec2, instance_id)
        return PollResult("done" if one.state == "terminated" else "waiting", one, None, one.state)

    what = f"the termination of {instance_id}"
    poll(read, what=what, deadline=TERMINATED_SECONDS, step=step)


def _not_running_error(instance: Instance) -> errors.SmokeTestError:
    return errors.SmokeTestError(
        f"The instance {instance.instance_id} is {instance.state}.",
        why=f"AWS reported: {instance.reason}." if instance.reason else "AWS reported no reason.",
        fix="If it was a spot instance, AWS may have reclaimed it: run the test again, or without spot. "
        "Otherwise check the AMI's snapshot, its key and the instance type.",
    )


def _parse(one: InstanceTypeDef) -> Instance:
    return Instance(
        instance_id=one["InstanceId"],
        ami_id=one.get("ImageId", ""),
        state=one["State"]["Name"],
        launched_at=one["LaunchTime"],
        reason=str((one.get("StateReason") or {}).get("Message") or one.get("StateTransitionReason") or ""),
        spot=one.get("InstanceLifecycle") == "spot",
        tags=tagging.to_dict(one.get("Tags")),
    )
