"""Copies of an AMI in other regions: find or create, wait, and tell why one failed.

CopyImage, because it has a ClientToken and CopySnapshot has none. A copy that fails does so later and
silently: the AMI turns ``failed``, and the reason stands only in the StateMessage of its snapshot.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import images, retiring, snapshots
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam.permissions import needs
from vmsnix_ops.aws.polling import PollResult, poll
from vmsnix_ops.aws.session import calling, code_of, retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_ec2.client import EC2Client
    from types_boto3_ec2.type_defs import CopyImageRequestTypeDef

    from vmsnix_ops.aws.images import Ami
    from vmsnix_ops.outcomes import StepOutcome
    from vmsnix_ops.progress import Step

COPY_SECONDS = 2 * 3600.0
LIMIT_SECONDS = 30 * 60.0  # how long to wait for room among the copies in flight
ATTEMPTS = 8
_USED = ("IdempotentParameterMismatch", "IdempotentInstanceTerminated")


@dataclass(frozen=True, slots=True)
class ImageCopy:
    """A copy that is wanted.

    Attributes
    ----------
    source
        The AMI in its own region.
    kms_key
        Key that encrypts the copy: id, ARN or alias, of the region that it goes to. Empty: as the source is,
        or as the region encrypts by default.
    """

    source: Ami
    kms_key: str = ""

    def request(self, token: str) -> CopyImageRequestTypeDef:
        """Return the parameters of ``CopyImage``.

        The tags are given and not only carried (``CopyImageTags``), because snapshots carry none. They are
        the source's own, so that the same copy is asked for with the same words, whoever asks.
        """
        tags = _carried(self.source)
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
        """Return the ClientToken: the same for the same copy, another one for another attempt."""
        said = json.dumps([self.request(""), region, attempt], sort_keys=True)
        return f"vmsnix-{hashlib.sha256(said.encode()).hexdigest()[:48]}"


@needs("ec2:DescribeImages", "ec2:DescribeSnapshots")
def find_copy(ec2: EC2Client, wanted: ImageCopy) -> Ami | None:
    """Return the copy that is there or on its way, or ``None``. One that failed is none.

    Raises
    ------
    vmsnix_ops.errors.NameTakenError
        The name belongs to other bytes, or to a copy that is encrypted otherwise.
    vmsnix_ops.errors.RegistrationError
        The copy is disabled, or half deleted.
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
    """Return what a copy must have of its source; AWS encrypts the disks of a copy by the copy's own key."""
    return {name: fact for name, fact in source.facts().items() if not name.startswith(images.ENCRYPTION)}


def missing_tags(source: Ami, made: Ami) -> dict[str, str]:
    """Return the tags of the source that its copy lacks, or has otherwise."""
    return {key: value for key, value in _carried(source).items() if made.tags.get(key) != value}


def _carried(source: Ami) -> dict[str, str]:
    """Return the tags that a copy shares with its source: not those of AWS, nor of a retirement."""
    return {
        key: value
        for key, value in source.tags.items()
        if not key.startswith("aws:") and not retiring.is_retirement_tag(key)
    }


@needs("ec2:CreateTags of our resources")
def copy_tags(ec2: EC2Client, source: Ami, made: Ami) -> None:
    """Give a copy and its snapshots what `missing_tags` names. Safe to run twice."""
    missing = tagging.to_list(missing_tags(source, made))
    if missing:
        with calling(f"tag {made.ami_id}"):
            ec2.create_tags(Resources=[made.ami_id, *made.snapshot_ids], Tags=missing)


@needs("ec2:DescribeImages", "ec2:DescribeSnapshots", "ec2:CopyImage", "ec2:CreateTags")
def copy_ami(
    ec2: EC2Client,
    wanted: ImageCopy,
    *,
    step: Step | None = None,
    still_wanted: Callable[[], None] = lambda: None,
) -> tuple[Ami, StepOutcome]:
    """Make the copy, or find it, and wait until it is available.

    Safe to run twice: the copy is looked for by its name, which derives from the image's digest; the
    ClientToken derives from what is asked for, so that a call whose answer was lost, and a copy that is not
    seen yet, are not made twice. The token of a copy that failed is used up: the next attempt has another.

    Parameters
    ----------
    ec2
        Of the region that the copy goes to.
    wanted
        Which copy.
    step
        Where progress is shown.
    still_wanted
        Called between two looks; it raises when the operator asked to stop.

    Raises
    ------
    vmsnix_ops.errors.CopyFailedError
        The copy turned ``failed``; with the StateMessage of its snapshot.
    vmsnix_ops.errors.QuotaError
        Half an hour long there was no room for one more copy to this region.
    vmsnix_ops.errors.NameTakenError
        As `find_copy`.
    """
    existing = find_copy(ec2, wanted)
    outcome: StepOutcome = "reused"
    if existing is None:
        ami_id, outcome = _begin(ec2, wanted, step, still_wanted), "created"
    else:
        ami_id = existing.ami_id
    ami = _available(ec2, ami_id, step, still_wanted)
    if existing is not None and existing.state != "available":
        images.check_same_registration(ami, digest=wanted.source.digest, facts=_facts(wanted.source))
    for snapshot in snapshots.check_snapshots_of(ec2, ami):
        _check_key(ami, snapshot, wanted.kms_key)
    return ami, outcome


def _begin(ec2: EC2Client, wanted: ImageCopy, step: Step | None, still_wanted: Callable[[], None]) -> str:
    """Ask for the copy, with the token of the first attempt that did not fail, and return its id."""
    region = ec2.meta.region_name
    failed = {
        ami.ami_id
        for ami in images.find_all_by_name(ec2, wanted.source.name)
        if ami.state in images.FAILED_STATES
    }
    told = False

    def call(token: str) -> str:
        nonlocal told
        still_wanted()
        try:
            return ec2.copy_image(**wanted.request(token))["ImageId"]
        except ec2.exceptions.ClientError as error:
            if code_of(error) == "ResourceLimitExceeded" and step is not None and not told:
                step.message(f"{region} does not accept another copy yet")
                told = True
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
                    # Another promoter was faster, or the answer to our own first try was lost.
                    return retry(lambda: _must_find(ec2, wanted), "NotYetVisible", seconds=30).ami_id
                if code_of(error) in _USED:
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


def _available(ec2: EC2Client, ami_id: str, step: Step | None, still_wanted: Callable[[], None]) -> Ami:
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
    seen = poll(read, what=what, deadline=COPY_SECONDS, step=step)
    if seen.outcome == "failed":
        raise _failure(seen.value, seen.message)
    return seen.value


def _failure(ami: Ami, message: str) -> errors.CopyFailedError:
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
    """Refuse a copy that is not encrypted as asked; an alias cannot be compared with a key's ARN."""
    asked = kms_key.rpartition("/")[2]
    if not kms_key or (
        snapshot.encrypted and ("alias/" in kms_key or snapshot.kms_key.endswith(f"/{asked}"))
    ):
        return
    held = f"is encrypted with {snapshot.kms_key}" if snapshot.encrypted else "is not encrypted"
    raise errors.NameTakenError(
        f"The copy {ami.ami_id} in {ami.region} has another encryption than requested.",
        why=f"{snapshot.snapshot_id} {held}, but the requested key is {kms_key}.",
        fix="Deregister that copy if nothing needs it, or promote without a key for this region.",
    )
