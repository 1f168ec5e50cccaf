"""Copy AMIs to other regions.

CopyImage has a ClientToken, which CopySnapshot lacks. A copy fails asynchronously: its AMI becomes
``failed``, and only the StateMessage of its snapshot has the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import images, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.polling import PollResult, poll
from vmsnix_ops.aws.session import calling, client_token, code_of, retry
from vmsnix_ops.progress import NO_STEP

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import CopyImageRequestTypeDef

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step

COPY_SECONDS = 2 * 3600.0
LIMIT_SECONDS = 30 * 60.0  # how long to wait while the region accepts no more copies
ATTEMPTS = 8
_TOKEN_USED = ("IdempotentParameterMismatch", "IdempotentInstanceTerminated")


@dataclass(frozen=True, slots=True)
class ImageCopy:
    """The parameters of a copy."""

    source: Ami
    # ID, ARN or alias of the key of the target region that encrypts the copy. Empty: the encryption of the
    # source, or the region's default.
    kms_key: str = ""

    def request(self, token: str) -> CopyImageRequestTypeDef:
        """Return the parameters of ``CopyImage``.

        ``CopyImageTags`` copies no tags to snapshots, so the request also has the tags of the source. All
        processes that copy the same AMI send the same request.
        """
        tags = tags_to_copy(self.source)
        request: CopyImageRequestTypeDef = {
            "Name": self.source.name,
            "SourceImageId": self.source.ami_id,
            "SourceRegion": self.source.region,
            "ClientToken": token,
            "CopyImageTags": True,
            "TagSpecifications": [
                *tagging.tag_specifications("image", tags),
                *tagging.tag_specifications("snapshot", tags),
            ],
        }
        if self.source.description:
            request["Description"] = self.source.description
        if self.kms_key:
            request |= {"Encrypted": True, "KmsKeyId": self.kms_key}
        return request

    def token(self, region: str, attempt: int) -> str:
        """Return the ClientToken: a hash of the copy, the region and the attempt."""
        return client_token(self.request(""), region, attempt)


@needs("ec2:DescribeImages", "ec2:DescribeSnapshots")
def find_copy(ec2: EC2Client, wanted: ImageCopy) -> Ami | None:
    """Return the copy if it exists or is being created, or ``None``. Failed copies are ignored.

    Refuse a name that belongs to an AMI with other bytes or to a copy with another encryption, and a copy
    that is disabled or lacks a snapshot.
    """
    named = [
        ami
        for ami in images.find_all_by_name(ec2, wanted.source.name)
        if ami.state not in images.FAILED_STATES
    ]
    if not named:
        return None
    existing = min(named, key=lambda ami: ami.state != "available")
    images.check_same_registration(existing, digest=wanted.source.digest, facts=_facts(wanted.source))
    if existing.stuck:
        images.usable_ami([existing])  # raises
    if existing.state == "disabled":
        raise errors.RegistrationError(
            f"The copy {existing.ami_id} in {existing.region} is disabled.",
            why="It was retired.",
            fix=f"Restore it ({images.restore_command(existing)}), or deregister it so that a new copy can "
            "be created.",
        )
    if existing.state == "available":
        for snapshot in snapshots.check_snapshots_of(ec2, existing):
            _check_key(existing, snapshot, wanted.kms_key)
    return existing


def _facts(source: Ami) -> dict[str, str]:
    """Return the facts of the source that its copy must have.

    Each copy has its own encryption. The size of the root disk is left out: an AMI that was published in the
    other region from another container of the disk may be larger or smaller.
    """
    facts = {name: fact for name, fact in source.facts().items() if not name.startswith(images.ENCRYPTION)}
    root = f"disk {source.root_device}"
    return facts | ({root: images.without_size(facts[root])} if root in facts else {})


def missing_tags(source: Ami, made: Ami) -> dict[str, str]:
    """Return the tags of the source that its copy lacks, or that have another value."""
    return {key: value for key, value in tags_to_copy(source).items() if made.tags.get(key) != value}


def tags_to_copy(source: Ami) -> dict[str, str]:
    """Return the tags of the source except those of AWS and of a retirement."""
    return {
        key: value
        for key, value in source.tags.items()
        if not key.startswith("aws:") and not retiring.is_retirement_tag(key)
    }


@needs("ec2:CreateTags of our resources")
def copy_tags(ec2: EC2Client, source: Ami, made: Ami) -> None:
    """Add `missing_tags` to a copy and its snapshots. Safe to run twice."""
    missing = tagging.to_list(missing_tags(source, made))
    if missing:
        with calling(f"tag {made.ami_id}"):
            ec2.create_tags(Resources=[made.ami_id, *made.snapshot_ids], Tags=missing)


@needs("ec2:DescribeImages", "ec2:DescribeSnapshots", "ec2:CopyImage", "ec2:CreateTags")
def copy_ami(
    ec2: EC2Client,
    wanted: ImageCopy,
    *,
    step: Step = NO_STEP,
    still_wanted: Callable[[], None] = lambda: None,
) -> tuple[Ami, StepOutcome]:
    """Copy an AMI, or find the copy, and wait until it is available.

    Safe to run twice: the copy is found by its name, which is derived from the image's digest. The
    ClientToken is derived from the request, so a copy whose answer was lost, or that is not visible yet, is
    not created twice. AWS does not accept the token of a failed copy again, so the next attempt uses another.
    The error of a failed copy has the StateMessage of its snapshot.

    `still_wanted` is called before each read, and raises an error to end the wait.
    """
    existing = find_copy(ec2, wanted)
    outcome: StepOutcome = "reused"
    if existing is None:
        ami_id, outcome = _start_copy(ec2, wanted, step, still_wanted), "created"
    else:
        ami_id = existing.ami_id
    ami = _wait_available(ec2, ami_id, step, still_wanted)
    if existing is not None and existing.state != "available":
        images.check_same_registration(ami, digest=wanted.source.digest, facts=_facts(wanted.source))
    for snapshot in snapshots.check_snapshots_of(ec2, ami):
        _check_key(ami, snapshot, wanted.kms_key)
    return ami, outcome


def _start_copy(ec2: EC2Client, wanted: ImageCopy, step: Step, still_wanted: Callable[[], None]) -> str:
    """Start the copy, with the token of the first attempt that did not fail, and return the AMI ID."""
    region = ec2.meta.region_name
    failed = {
        ami.ami_id
        for ami in images.find_all_by_name(ec2, wanted.source.name)
        if ami.state in images.FAILED_STATES
    }
    shown = False

    def call(token: str) -> str:
        nonlocal shown
        still_wanted()
        try:
            return ec2.copy_image(**wanted.request(token))["ImageId"]
        except ec2.exceptions.ClientError as error:
            if code_of(error) == "ResourceLimitExceeded" and not shown:
                step.message(f"{region} does not accept another copy yet")
                shown = True
            raise

    with calling(f"copy {wanted.source.ami_id} to {region}"):
        for attempt in range(ATTEMPTS):
            token = wanted.token(region, attempt)
            try:
                ami_id = retry(
                    partial(call, token),
                    "ResourceLimitExceeded",
                    seconds=LIMIT_SECONDS,
                    attempts=int(LIMIT_SECONDS),
                )
            except ec2.exceptions.ClientError as error:
                if code_of(error) == "InvalidAMIName.Duplicate":
                    # Another process was faster, or the answer to an earlier attempt was lost.
                    return retry(lambda: _must_find(ec2, wanted), "NotYetVisible", seconds=30).ami_id
                if code_of(error) in _TOKEN_USED:
                    continue
                raise
            if ami_id not in failed:
                return ami_id
    raise errors.CopyFailedError(
        f"{wanted.source.ami_id} was copied to {region} {ATTEMPTS} times and failed each time.",
        fix="Correct the cause, then deregister the failed copies there; the audit lists them.",
    )


def _must_find(ec2: EC2Client, wanted: ImageCopy) -> Ami:
    found = find_copy(ec2, wanted)
    if found is None:
        raise errors.CopyFailedError(
            f"The AMI name {wanted.source.name} is in use in {ec2.meta.region_name}, but no AMI with it was "
            "found.",
            why="It was copied a moment ago, or it is being deregistered.",
            fix="Run the same command again.",
            code="NotYetVisible",
        )
    return found


def _wait_available(ec2: EC2Client, ami_id: str, step: Step, still_wanted: Callable[[], None]) -> Ami:
    def read() -> PollResult[Ami]:
        still_wanted()
        ami = images.describe_ami(ec2, ami_id)
        if ami.state == "available":
            return PollResult("done", ami, 100.0, ami.state)
        parts = snapshots.find_snapshots(ec2, ami.snapshot_ids)
        bad = [part for part in parts.values() if part.state == "error"]
        if bad or ami.state not in ("pending", "transient"):
            return PollResult("failed", ami, None, ami.state, bad[0].message if bad else "")
        percent = min((part.percent for part in parts.values()), default=0.0)
        return PollResult("waiting", ami, min(percent, 99.0), ami.state)

    what = f"the copy {ami_id} in {ec2.meta.region_name}"
    result = poll(read, what=what, deadline=COPY_SECONDS, step=step)
    if result.outcome == "failed":
        raise _copy_failed(result.value, result.message)
    return result.value


def _copy_failed(ami: Ami, message: str) -> errors.CopyFailedError:
    fix = (
        "Run the same command again to create a new copy. Deregister the failed copy, which the audit lists."
    )
    if "key" in message.lower():
        fix = (
            "Use a key in that region that the caller may use (kms:CreateGrant, kms:DescribeKey, "
            "kms:GenerateDataKeyWithoutPlaintext, kms:ReEncrypt*), then run the same command again."
        )
    return errors.CopyFailedError(
        f"The copy {ami.ami_id} in {ami.region} failed.",
        why=f"AWS reported for its snapshot: {message}." if message else "AWS reported no reason.",
        fix=fix,
        status_message=message,
    )


def _check_key(ami: Ami, snapshot: snapshots.Snapshot, kms_key: str) -> None:
    """Refuse a copy with another encryption than requested; an alias cannot be compared with a key's ARN."""
    key_id = kms_key.rpartition("/")[2]
    if not kms_key or (
        snapshot.encrypted and ("alias/" in kms_key or snapshot.kms_key.endswith(f"/{key_id}"))
    ):
        return
    actual = f"is encrypted with {snapshot.kms_key}" if snapshot.encrypted else "is not encrypted"
    raise errors.NameTakenError(
        f"The copy {ami.ami_id} in {ami.region} has another encryption than requested.",
        why=f"{snapshot.snapshot_id} {actual}, but the requested key is {kms_key}.",
        fix="Deregister that copy if nothing needs it, or promote without a key for this region.",
    )
